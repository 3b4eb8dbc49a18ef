//! Damaged logins: whatever comes, the answer is a PDU or the end of the connection.

use super::{Bench, CAPTURE, LoginReceive, LoginStep, Reply, captured, chap};

/// A small generator (xorshift), so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// Damage a PDU: flip, overwrite, cut, repeat or insert bytes, with zeros and `=` more likely than others.
fn damage(pdu: &mut Vec<u8>, dice: &mut Dice) {
    const LIKED: [u8; 8] = [0, b'=', b',', 0xff, b'0', b'x', 0x80, b'~'];
    for _ in 0..=dice.below(3) {
        let at = dice.below(pdu.len().max(1));
        match dice.below(6) {
            0 if at < pdu.len() => pdu[at] ^= 1 << dice.below(8),
            1 if at < pdu.len() => pdu[at] = LIKED[dice.below(LIKED.len())],
            2 => pdu.truncate(at),
            3 if at < pdu.len() => pdu.insert(at, LIKED[dice.below(LIKED.len())]),
            4 if at < pdu.len() => {
                pdu.remove(at);
            }
            _ if pdu.len() > 48 && pdu.len() < 1000 => pdu.extend_from_within(48..),
            _ => {}
        }
    }
    // Half of the time the length is made right again, so that the damage reaches the text.
    if pdu.len() >= 48 && dice.below(2) == 0 {
        let len = u32::try_from(pdu.len() - 48).unwrap();
        pdu[4] = 0;
        pdu[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
        pdu.resize(pdu.len().next_multiple_of(4), 0);
    }
}

#[test]
fn a_hundred_thousand_damaged_requests_are_answered_or_ended() {
    let sessions = ["discovery", "no authentication", "CHAP", "mutual CHAP"];
    assert_eq!(CAPTURE.matches('[').count(), sessions.len());
    let pdus: Vec<Vec<Vec<u8>>> = sessions
        .iter()
        .map(|session| captured(session).into_iter().filter(|(side, _)| *side == 'I').map(|(_, pdu)| pdu).collect())
        .collect();
    let mut dice = Dice(0x1ace_1ace_1ace_1ace);
    let (mut cases, mut established, mut refused) = (0, 0, 0);
    while cases < 100_000 {
        let session = dice.below(pdus.len());
        let mut bench = if session < 2 { Bench::open() } else { Bench::new(chap(session == 3)) };
        for pdu in &pdus[session] {
            let mut pdu = pdu.clone();
            if dice.below(3) > 0 {
                damage(&mut pdu, &mut dice);
            }
            cases += 1;
            match bench.receive(&pdu) {
                LoginReceive::NeedBytes(n) => {
                    assert!(n > pdu.len() && n <= 48 + 8192);
                    break;
                }
                LoginReceive::Pdu { len, step } => {
                    assert!(len <= pdu.len());
                    match step {
                        LoginStep::Reply(reply) => assert_eq!(Reply::read(&reply).status.0, 0),
                        LoginStep::Establish(_) => {
                            established += 1;
                            let (reply, _) = bench.login.granted(1);
                            assert!(Reply::read(&reply).transit);
                            break;
                        }
                        LoginStep::Close { reply, .. } => {
                            refused += 1;
                            assert!(reply.is_none_or(|reply| Reply::read(&reply).status.0 != 0));
                            break;
                        }
                    }
                }
            }
        }
    }
    // The damage is neither so light nor so heavy that one path is hardly tried.
    assert!(established > 5_000, "{established}");
    assert!(refused > 20_000, "{refused}");
}

#[test]
fn a_login_cut_off_anywhere_only_waits() {
    for session in ["discovery", "no authentication"] {
        let (_, pdu) = &captured(session)[0];
        for len in 0..pdu.len() {
            assert!(matches!(Bench::open().receive(&pdu[..len]), LoginReceive::NeedBytes(_)), "{len}");
        }
    }
}
