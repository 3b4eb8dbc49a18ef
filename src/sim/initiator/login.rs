//! The initiator's side of the login (RFC 7143 section 6): what it offers, and what came of it.
//!
//! **May know:** the sibling PDU module.

use super::pdu::{Digests, Pdu, request};
use crate::sim::Random;

/// What an initiator offers. Drawn by chance, so that many combinations are met.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub starts_with_security: bool,
    pub header_digest: bool,
    pub data_digest: bool,
    pub initial_r2t: bool,
    pub immediate_data: bool,
    pub max_recv_data_segment_length: u32,
    pub first_burst_length: u32,
    pub max_burst_length: u32,
    pub max_outstanding_r2t: u32,
}

impl Offer {
    pub fn draw(random: &mut Random) -> Offer {
        let mut coin = || random.below(2) == 0;
        let (starts_with_security, header_digest, data_digest) = (coin(), coin(), coin());
        let (initial_r2t, immediate_data) = (coin(), coin());
        let max_burst_length = [8192, 20_000, 65_536, 262_144][random.index(4)];
        Offer {
            starts_with_security,
            header_digest,
            data_digest,
            initial_r2t,
            immediate_data,
            max_recv_data_segment_length: [512, 4096, 8192, 65_536, 262_144][random.index(5)],
            first_burst_length: [512, 4096, 65_536][random.index(3)].min(max_burst_length),
            max_burst_length,
            max_outstanding_r2t: 1 + random.below(4) as u32,
        }
    }

    fn operational_keys(&self) -> Vec<(String, String)> {
        let digest = |on: bool| if on { "CRC32C,None" } else { "None,CRC32C" }.to_owned();
        let yes = |on: bool| if on { "Yes" } else { "No" }.to_owned();
        let keys = [
            ("HeaderDigest", digest(self.header_digest)),
            ("DataDigest", digest(self.data_digest)),
            ("InitialR2T", yes(self.initial_r2t)),
            ("ImmediateData", yes(self.immediate_data)),
            ("MaxRecvDataSegmentLength", self.max_recv_data_segment_length.to_string()),
            ("FirstBurstLength", self.first_burst_length.to_string()),
            ("MaxBurstLength", self.max_burst_length.to_string()),
            ("MaxOutstandingR2T", self.max_outstanding_r2t.to_string()),
            ("MaxConnections", "1".to_owned()),
            ("DataPDUInOrder", "Yes".to_owned()),
            ("DataSequenceInOrder", "Yes".to_owned()),
            ("ErrorRecoveryLevel", "0".to_owned()),
            ("DefaultTime2Wait", "2".to_owned()),
            ("DefaultTime2Retain", "0".to_owned()),
        ];
        keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// What was agreed. The defaults are the standard's (RFC 7143 section 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub digests: Digests,
    pub initial_r2t: bool,
    pub immediate_data: bool,
    /// What the target accepts in one PDU.
    pub target_segment_length_max: u32,
    pub first_burst_length: u32,
    pub max_burst_length: u32,
    pub max_outstanding_r2t: u32,
}

/// The names that a login gives.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub initiator: String,
    pub target: String,
    pub isid: [u8; 6],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Security = 0,
    Operational = 1,
    FullFeature = 3,
}

/// A login under way.
#[derive(Debug)]
pub(super) struct Login {
    names: Names,
    offer: Offer,
    stage: Stage,
    task_tag: u32,
    cmd_sn: u32,
    exp_stat_sn: u32,
    agreed: Agreed,
    keys_sent: bool,
    pub requests_sent: u32,
}

/// What a login response led to.
#[derive(Debug)]
pub(super) enum Progress {
    Send(Pdu),
    Done {
        agreed: Agreed,
        exp_stat_sn: u32,
    },
    /// Refused with this status class and detail.
    Refused(u8, u8),
}

impl Login {
    pub fn new(names: Names, offer: Offer, task_tag: u32, cmd_sn: u32) -> Login {
        let stage = if offer.starts_with_security { Stage::Security } else { Stage::Operational };
        let agreed = Agreed {
            digests: Digests::default(),
            initial_r2t: true,
            immediate_data: true,
            target_segment_length_max: 8192,
            first_burst_length: 65_536,
            max_burst_length: 262_144,
            max_outstanding_r2t: 1,
        };
        Login { names, offer, stage, task_tag, cmd_sn, exp_stat_sn: 0, agreed, keys_sent: false, requests_sent: 0 }
    }

    pub fn cmd_sn(&self) -> u32 {
        self.cmd_sn
    }

    /// The next request in the current stage.
    pub fn request(&mut self) -> Pdu {
        let mut keys = Vec::new();
        if self.requests_sent == 0 {
            keys.push(("InitiatorName".to_owned(), self.names.initiator.clone()));
            keys.push(("TargetName".to_owned(), self.names.target.clone()));
            keys.push(("SessionType".to_owned(), "Normal".to_owned()));
            if self.stage == Stage::Security {
                keys.push(("AuthMethod".to_owned(), "None".to_owned()));
            }
        }
        if self.stage == Stage::Operational && !std::mem::replace(&mut self.keys_sent, true) {
            keys.extend(self.offer.operational_keys());
        }
        let next = if self.stage == Stage::Security { Stage::Operational } else { Stage::FullFeature };
        let flags = 0x80 | (self.stage as u8) << 2 | next as u8;
        let text = keys.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect();
        self.requests_sent += 1;
        Pdu::new(request::LOGIN | request::IMMEDIATE, flags)
            .set_bytes(8, &self.names.isid)
            .set_word(16, self.task_tag)
            .set_word(24, self.cmd_sn)
            .set_word(28, self.exp_stat_sn)
            .with_data(text)
    }

    pub fn on_response(&mut self, pdu: &Pdu) -> Result<Progress, String> {
        if pdu.initiator_task_tag() != self.task_tag {
            return Err("a login response with another task tag".to_owned());
        }
        if pdu.bhs[36] != 0 {
            return Ok(Progress::Refused(pdu.bhs[36], pdu.bhs[37]));
        }
        if pdu.bhs[8..14] != self.names.isid {
            return Err("a login response with another ISID".to_owned());
        }
        let current = pdu.bhs[1] >> 2 & 3;
        if current != self.stage as u8 {
            return Err(format!("a login response of stage {current} in {:?}", self.stage));
        }
        if self.requests_sent > 1 && pdu.stat_sn() != self.exp_stat_sn {
            return Err(format!("StatSN {} in the login, expected {}", pdu.stat_sn(), self.exp_stat_sn));
        }
        self.exp_stat_sn = pdu.stat_sn().wrapping_add(1);
        self.take_keys(&pdu.data)?;
        if pdu.flag(0x40) {
            return Ok(Progress::Send(self.empty_request()));
        }
        if pdu.flag(0x80) {
            match pdu.bhs[1] & 3 {
                1 if self.stage == Stage::Security => self.stage = Stage::Operational,
                3 => {
                    if pdu.bhs[14..16] == [0, 0] {
                        return Err("a finished login without TSIH".to_owned());
                    }
                    self.agreed.first_burst_length = self.agreed.first_burst_length.min(self.agreed.max_burst_length);
                    return Ok(Progress::Done { agreed: self.agreed.clone(), exp_stat_sn: self.exp_stat_sn });
                }
                next => return Err(format!("a transit from {:?} to stage {next}", self.stage)),
            }
        }
        if self.requests_sent > 10 {
            return Err("a login without end".to_owned());
        }
        Ok(Progress::Send(self.request()))
    }

    /// Asks for the rest of a continued response.
    fn empty_request(&mut self) -> Pdu {
        self.requests_sent += 1;
        Pdu::new(request::LOGIN | request::IMMEDIATE, (self.stage as u8) << 2)
            .set_bytes(8, &self.names.isid)
            .set_word(16, self.task_tag)
            .set_word(24, self.cmd_sn)
            .set_word(28, self.exp_stat_sn)
    }

    fn take_keys(&mut self, text: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(text).map_err(|_| "login text that is not UTF-8".to_owned())?;
        for pair in text.split('\0').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("login text '{pair}' without '='"))?;
            self.take_key(key, value).map_err(|why| format!("{key}={value}: {why}"))?;
        }
        Ok(())
    }

    fn take_key(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        let number = || value.parse::<u32>().map_err(|_| "not a number");
        let at_most = |limit: u32| match number() {
            Ok(n) if n <= limit && n > 0 => Ok(n),
            Ok(_) => Err("more than was offered"),
            Err(why) => Err(why),
        };
        let yes = || match value {
            "Yes" => Ok(true),
            "No" => Ok(false),
            _ => Err("neither Yes nor No"),
        };
        let digest = || match value {
            "CRC32C" => Ok(true),
            "None" => Ok(false),
            _ => Err("a digest that was not offered"),
        };
        let (offer, agreed) = (&self.offer, &mut self.agreed);
        match key {
            "HeaderDigest" => agreed.digests.header = digest()?,
            "DataDigest" => agreed.digests.data = digest()?,
            // The result of an OR is Yes when we said Yes; of an AND, No when we said No (RFC 7143 section 13).
            "InitialR2T" if offer.initial_r2t && !yes()? => return Err("we said Yes, and the rule is OR"),
            "InitialR2T" => agreed.initial_r2t = yes()?,
            "ImmediateData" if !offer.immediate_data && yes()? => return Err("we said No, and the rule is AND"),
            "ImmediateData" => agreed.immediate_data = yes()?,
            "MaxRecvDataSegmentLength" => agreed.target_segment_length_max = number()?,
            // Without unsolicited data there is no first burst (RFC 7143 section 13.14).
            "FirstBurstLength" if value == "Irrelevant" && offer.initial_r2t && !offer.immediate_data => {}
            "FirstBurstLength" => agreed.first_burst_length = at_most(offer.first_burst_length)?,
            "MaxBurstLength" => agreed.max_burst_length = at_most(offer.max_burst_length)?,
            "MaxOutstandingR2T" => agreed.max_outstanding_r2t = at_most(offer.max_outstanding_r2t)?,
            "MaxConnections" => _ = at_most(1)?,
            "ErrorRecoveryLevel" if value != "0" => return Err("more than was offered"),
            "AuthMethod" if value != "None" => return Err("a method that was not offered"),
            _ if value == "NotUnderstood" || value == "Reject" => return Err("every key we send is the standard's"),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names { initiator: "iqn.x:i".into(), target: "iqn.x:t".into(), isid: [0x80, 0, 0, 0, 0, 1] }
    }

    fn answer(flags: u8, text: &str, stat_sn: u32) -> Pdu {
        let pdu = Pdu::new(0x23, flags).set_bytes(8, &names().isid).set_bytes(14, &[0, 9]);
        pdu.set_word(16, 5).set_word(24, stat_sn).with_data(text.replace('|', "\0").into_bytes())
    }

    #[test]
    fn a_login_in_two_stages_ends_with_what_was_agreed() {
        let mut offer = Offer::draw(&mut Random::new(1));
        (offer.starts_with_security, offer.initial_r2t, offer.max_burst_length) = (true, false, 65_536);
        let mut login = Login::new(names(), offer, 5, 1);
        let first = login.request();
        assert_eq!((first.bhs[0], first.bhs[1]), (0x43, 0x81));
        assert!(first.data.starts_with(b"InitiatorName=iqn.x:i\0"));
        let Ok(Progress::Send(second)) = login.on_response(&answer(0x81, "AuthMethod=None|", 100)) else { panic!() };
        assert_eq!((second.bhs[1], second.word(28)), (0x87, 101));
        let text = "InitialR2T=No|MaxBurstLength=4096|HeaderDigest=CRC32C|";
        let Ok(Progress::Done { agreed, exp_stat_sn: 102 }) = login.on_response(&answer(0x87, text, 101)) else {
            panic!()
        };
        assert_eq!((agreed.initial_r2t, agreed.max_burst_length, agreed.first_burst_length), (false, 4096, 4096));
        assert!(agreed.digests.header && !agreed.digests.data);
    }

    #[test]
    fn answers_that_break_a_rule_are_told_apart() {
        let mut offer = Offer::draw(&mut Random::new(1));
        (offer.starts_with_security, offer.initial_r2t, offer.immediate_data) = (false, true, false);
        offer.max_burst_length = 8192;
        for text in ["InitialR2T=No|", "ImmediateData=Yes|", "MaxBurstLength=8193|", "MaxBurstLength=x|", "nonsense|"] {
            let mut login = Login::new(names(), offer.clone(), 5, 1);
            login.request();
            assert!(login.on_response(&answer(0x87, text, 1)).is_err(), "{text}");
        }
    }
}
