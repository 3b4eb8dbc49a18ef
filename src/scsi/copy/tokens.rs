//! Which tokens of a disk are valid, and what they stand for: shared by all shards, without a lock.
//!
//! A table has a fixed number of places, made when the first token is. Who writes to the disk asks
//! [`TokenTable::revoke_written`] first: while no token is valid, that is one load. A place changes hands by its state
//! word, which counts how often it has; readers look at that word before and after the rest.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use subtle::ConstantTimeEq;

use super::token::{self, TOKEN_BYTES};
use crate::limits::{TOKEN_LIFETIME_MAX_S, TOKEN_RANGES_MAX, TOKENS_PER_DISK_MAX};
use crate::scsi::sense::{Sense, SenseCode};
use crate::scsi::unit::Unit;

/// A state word: what the place is, in the low byte, and above it how often it was taken.
const FREE: u64 = 0;
const CLAIMED: u64 = 1;
const VALID: u64 = 2;
const REVOKED: u64 = 3;
const EXPIRED: u64 = 4;
const DELETED: u64 = 5;
const STATE: u64 = 0xff;
const TAKEN_ONCE: u64 = 0x100;

/// How often a place is looked for anew when others take it at the same moment.
const ATTEMPTS: usize = 16;

/// Bits of a place's index in a token's number; 24 more count how often the place was taken.
const INDEX_BITS: u32 = 8;
const _: () = assert!(TOKENS_PER_DISK_MAX == 1 << INDEX_BITS);

/// One token.
struct Place {
    state: AtomicU64,
    used_ms: AtomicU64,
    timeout_ms: AtomicU64,
    expires_ms: AtomicU64,
    /// Of all ranges, the first byte and the byte behind the last.
    bounds: [AtomicU64; 2],
    count: AtomicU32,
    /// First byte and byte behind the last.
    ranges: [[AtomicU64; 2]; TOKEN_RANGES_MAX],
    /// Of the token's bytes.
    digest: [AtomicU64; 4],
}

/// The tokens of one disk.
#[derive(Default)]
pub struct TokenTable {
    /// How many are valid, or about to be.
    valid: AtomicU32,
    places: OnceLock<Box<[Place]>>,
}

/// A valid token, for as long as it stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenKey {
    index: u8,
    /// The state word that it has while it is valid.
    state: u64,
}

/// What a token is made of.
#[derive(Clone, Copy, Debug)]
pub struct NewToken<'a> {
    /// The disk's unit.
    pub unit: &'a Unit,
    /// A number of the disk that no other disk has.
    pub disk: u32,
    /// The name of the target through which it is made.
    pub target: &'a str,
    /// How long it may be idle, in seconds.
    pub timeout_s: u32,
    /// 256 bits that nobody can guess and nothing else has.
    pub secret: [u8; 32],
}

/// What a valid token stands for: at most [`TOKEN_RANGES_MAX`] ranges of the disk, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct TokenRanges {
    ranges: [(u64, u64); TOKEN_RANGES_MAX],
    count: usize,
}

impl TokenRanges {
    /// First byte and length of each, in order.
    pub fn as_slice(&self) -> &[(u64, u64)] {
        &self.ranges[..self.count]
    }

    /// Bytes of all.
    pub fn len_bytes(&self) -> u64 {
        self.as_slice().iter().map(|(_, len_bytes)| len_bytes).sum()
    }
}

/// Which disk and place a token's number names.
pub fn disk_of(identifier: u64) -> u32 {
    (identifier >> 32) as u32
}

impl TokenTable {
    /// Make a token of these ranges (first byte and length, at most [`TOKEN_RANGES_MAX`], on the disk). When every
    /// place is taken, the token that was idle longest is cancelled for it. `None`: others took every place that was
    /// tried.
    pub fn create(
        &self,
        new: &NewToken<'_>,
        ranges: impl Iterator<Item = (u64, u64)>,
        now_ms: u64,
    ) -> Option<[u8; TOKEN_BYTES]> {
        let places = self.places.get_or_init(|| (0..TOKENS_PER_DISK_MAX).map(|_| Place::new()).collect());
        // Writers must look before the first byte that this token promises can change.
        self.valid.fetch_add(1, Ordering::SeqCst);
        let Some((index, claimed)) = self.claim(places) else {
            self.valid.fetch_sub(1, Ordering::SeqCst);
            return None;
        };
        let place = &places[index];
        let (mut count, mut bounds, mut len_bytes) = (0, [u64::MAX, 0], 0);
        for ((start, len), slot) in ranges.zip(&place.ranges) {
            slot[0].store(start, Ordering::Relaxed);
            slot[1].store(start + len, Ordering::Relaxed);
            bounds = [bounds[0].min(start), bounds[1].max(start + len)];
            len_bytes += len;
            count += 1;
        }
        place.count.store(count, Ordering::Relaxed);
        place.bounds[0].store(bounds[0], Ordering::Relaxed);
        place.bounds[1].store(bounds[1], Ordering::Relaxed);
        place.used_ms.store(now_ms, Ordering::Relaxed);
        place.timeout_ms.store(u64::from(new.timeout_s) * 1000, Ordering::Relaxed);
        place.expires_ms.store(now_ms + u64::from(TOKEN_LIFETIME_MAX_S) * 1000, Ordering::Relaxed);
        let number = ((claimed >> INDEX_BITS) as u32) << INDEX_BITS | index as u32;
        let identifier = u64::from(new.disk) << 32 | u64::from(number);
        let token = token::write(new.unit, new.target, identifier, len_bytes, &new.secret);
        for (word, bytes) in place.digest.iter().zip(token::digest(&token).chunks_exact(8)) {
            word.store(u64::from_be_bytes(bytes.try_into().unwrap_or_default()), Ordering::Relaxed);
        }
        place.state.store(claimed | VALID, Ordering::SeqCst);
        Some(token)
    }

    /// Take a place: a free one, else one whose token is no longer valid, else the one that was idle longest. Its index,
    /// and its state word without a state.
    fn claim(&self, places: &[Place]) -> Option<(usize, u64)> {
        for _ in 0..ATTEMPTS {
            let rank = |place: &Place| {
                let state = place.state.load(Ordering::SeqCst);
                let class = match state & STATE {
                    FREE => 0,
                    VALID => 2,
                    CLAIMED => 3,
                    _ => 1,
                };
                (class, place.used_ms.load(Ordering::Relaxed), state)
            };
            let (index, place) = places.iter().enumerate().min_by_key(|(_, place)| rank(place))?;
            let (class, _, state) = rank(place);
            let claimed = (state & !STATE).wrapping_add(TAKEN_ONCE);
            let taken = class < 3
                && place.state.compare_exchange(state, claimed | CLAIMED, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if taken {
                if state & STATE == VALID {
                    self.valid.fetch_sub(1, Ordering::SeqCst);
                }
                return Some((index, claimed));
            }
        }
        None
    }

    /// What a token that names this disk stands for, if it is valid. That counts as use.
    pub fn resolve(
        &self,
        token: &[u8; TOKEN_BYTES],
        identifier: u64,
        now_ms: u64,
    ) -> Result<(TokenKey, TokenRanges), Sense> {
        let unknown = Sense::new(SenseCode::INVALID_TOKEN_UNKNOWN);
        let number = u64::from(identifier as u32);
        let index = (number & STATE) as usize;
        let place = self.places.get().and_then(|places| places.get(index)).ok_or(unknown)?;
        let state = place.state.load(Ordering::SeqCst);
        // Both count how often the place was taken from their eighth bit on; the token's count is shorter.
        if (state & !STATE) as u32 != number as u32 & !(STATE as u32) || state & STATE == FREE {
            return Err(unknown);
        }
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(8).zip(&place.digest) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_be_bytes());
        }
        if !bool::from(token::digest(token).ct_eq(&digest)) {
            return Err(Sense::new(SenseCode::INVALID_TOKEN_CORRUPT));
        }
        let mut found = TokenRanges { ranges: [(0, 0); TOKEN_RANGES_MAX], count: 0 };
        found.count = (place.count.load(Ordering::Relaxed) as usize).min(TOKEN_RANGES_MAX);
        for (range, slot) in found.ranges.iter_mut().zip(&place.ranges).take(found.count) {
            let (start, end) = (slot[0].load(Ordering::Relaxed), slot[1].load(Ordering::Relaxed));
            *range = (start, end.saturating_sub(start));
        }
        // What was read is the token's, if the place is still the same when this has been read.
        fence(Ordering::Acquire);
        let key = TokenKey { index: index as u8, state: state & !STATE | VALID };
        self.use_again(key, now_ms)?;
        Ok((key, found))
    }

    /// Use a token once more: what was read under it before this is what it stands for. Otherwise why it is no longer
    /// valid.
    pub fn use_again(&self, key: TokenKey, now_ms: u64) -> Result<(), Sense> {
        let unknown = Sense::new(SenseCode::INVALID_TOKEN_UNKNOWN);
        let place = self.places.get().and_then(|places| places.get(usize::from(key.index))).ok_or(unknown)?;
        let state = place.state.load(Ordering::SeqCst);
        let code = match state & STATE {
            _ if state & !STATE != key.state & !STATE => SenseCode::INVALID_TOKEN_CANCELLED,
            VALID if !place.is_late(now_ms) => {
                place.used_ms.fetch_max(now_ms, Ordering::Relaxed);
                return Ok(());
            }
            VALID => {
                self.end(place, state, EXPIRED);
                SenseCode::INVALID_TOKEN_EXPIRED
            }
            REVOKED => SenseCode::INVALID_TOKEN_REVOKED,
            EXPIRED => SenseCode::INVALID_TOKEN_EXPIRED,
            DELETED => SenseCode::INVALID_TOKEN_DELETED,
            _ => SenseCode::INVALID_TOKEN_UNKNOWN,
        };
        Err(Sense::new(code))
    }

    /// Delete a token.
    pub fn delete(&self, key: TokenKey) {
        if let Some(place) = self.places.get().and_then(|places| places.get(usize::from(key.index))) {
            self.end(place, key.state, DELETED);
        }
    }

    /// The disk's bytes from `start` on are about to be changed: revoke the tokens that stand for any of them. Tokens
    /// that have expired go at the same time.
    #[inline]
    pub fn revoke_written(&self, start: u64, len_bytes: u64, now_ms: u64) {
        if self.valid.load(Ordering::SeqCst) > 0 {
            self.revoke(start, start.saturating_add(len_bytes), now_ms);
        }
    }

    /// All that the disk holds changes, or may.
    pub fn revoke_all(&self) {
        for place in self.places.get().into_iter().flatten() {
            self.end(place, place.state.load(Ordering::SeqCst), REVOKED);
        }
    }

    /// How many tokens are valid, as far as anybody has noticed.
    pub fn valid_count(&self) -> u32 {
        self.valid.load(Ordering::SeqCst)
    }

    #[cold]
    fn revoke(&self, start: u64, end: u64, now_ms: u64) {
        for place in self.places.get().into_iter().flatten() {
            let state = place.state.load(Ordering::SeqCst);
            if state & STATE != VALID {
                continue;
            }
            if place.is_late(now_ms) {
                self.end(place, state, EXPIRED);
            } else if place.covers_any(start, end) {
                self.end(place, state, REVOKED);
            }
        }
    }

    /// Make a valid token invalid, unless it has become so meanwhile.
    fn end(&self, place: &Place, state: u64, why: u64) {
        let ended = state & !STATE | why;
        if state & STATE == VALID
            && place.state.compare_exchange(state, ended, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            self.valid.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Place {
    fn new() -> Self {
        Self {
            state: AtomicU64::new(FREE),
            used_ms: AtomicU64::new(0),
            timeout_ms: AtomicU64::new(0),
            expires_ms: AtomicU64::new(0),
            bounds: [const { AtomicU64::new(0) }; 2],
            count: AtomicU32::new(0),
            ranges: [const { [const { AtomicU64::new(0) }; 2] }; TOKEN_RANGES_MAX],
            digest: [const { AtomicU64::new(0) }; 4],
        }
    }

    fn is_late(&self, now_ms: u64) -> bool {
        let idle_ms = now_ms.saturating_sub(self.used_ms.load(Ordering::Relaxed));
        idle_ms > self.timeout_ms.load(Ordering::Relaxed) || now_ms > self.expires_ms.load(Ordering::Relaxed)
    }

    fn covers_any(&self, start: u64, end: u64) -> bool {
        let meets =
            |range: &[AtomicU64; 2]| start < range[1].load(Ordering::Relaxed) && range[0].load(Ordering::Relaxed) < end;
        let count = (self.count.load(Ordering::Relaxed) as usize).min(TOKEN_RANGES_MAX);
        meets(&self.bounds) && self.ranges[..count].iter().any(meets)
    }
}

impl std::fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenTable").field("valid", &self.valid_count()).finish()
    }
}
