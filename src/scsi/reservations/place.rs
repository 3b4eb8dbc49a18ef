//! Where reservations are kept that outlast a loss of power: one place for each disk in a file, with two copies that
//! are written in turn, so that one whole copy is there at every moment.
//!
//! A copy is a header and then what [`Reservations::to_bytes`] says (nothing, when nothing has to outlast). All numbers
//! are little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `LUNARRES` |
//! | 4 | CRC32C of everything after it, up to the end of the state |
//! | 4 | bytes of the state |
//! | 8 | sequence number: the copy with the higher one holds |
//! | 16 | the disk's UUID |
//! | 1 | bytes of the disk's name |
//! | 223 | the name, then zeros |

use super::state::Reservations;
use crate::crc32c::crc32c;

const MAGIC: &[u8; 8] = b"LUNARRES";
/// Bytes of a copy before its state.
pub const HEADER_BYTES: usize = 8 + 4 + 4 + 8 + 16 + 1 + NAME_BYTES_MAX;
const NAME_BYTES_MAX: usize = 223;
/// Bytes of a registration with the longest name.
const REGISTRATION_BYTES_MAX: usize = 8 + 2 + 1 + 6 + 1 + 223;

/// Bytes between the starts of the two copies.
pub const COPY_BYTES: usize = 128 << 10;
/// Bytes of a place.
pub const PLACE_BYTES: u64 = 2 * COPY_BYTES as u64;

const _: () = assert!(HEADER_BYTES + 16 + Reservations::REGISTRATIONS_MAX * REGISTRATION_BYTES_MAX <= COPY_BYTES);

/// Whose reservations they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The disk's identity.
    pub uuid: [u8; 16],
    /// Its name, at most 223 bytes.
    pub name: String,
}

/// What a place holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Whose it is.
    pub owner: Owner,
    /// Of the copy that holds.
    pub sequence: u64,
    /// What was stored; empty when nothing has to outlast.
    pub state: Vec<u8>,
}

/// Where in its place a copy goes.
pub fn copy_offset_bytes(sequence: u64) -> u64 {
    (sequence % 2) * COPY_BYTES as u64
}

/// A copy. `state` is of [`Reservations::to_bytes`].
pub fn copy(owner: &Owner, sequence: u64, state: &[u8]) -> Vec<u8> {
    let name = &owner.name.as_bytes()[..owner.name.len().min(NAME_BYTES_MAX)];
    let mut body = Vec::with_capacity(HEADER_BYTES + state.len());
    body.extend(u32::try_from(state.len()).expect("a state fits its place").to_le_bytes());
    body.extend(sequence.to_le_bytes());
    body.extend(owner.uuid);
    body.push(name.len() as u8);
    body.extend(name);
    body.resize(HEADER_BYTES - 12, 0);
    body.extend(state);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(crc32c(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// What a place holds, of its two copies' bytes. `None`: nothing that is whole.
pub fn kept(copies: [&[u8]; 2]) -> Option<Kept> {
    copies.into_iter().filter_map(read_copy).max_by_key(|kept| kept.sequence)
}

/// Whether there is something in a place, be it whole or not.
pub fn is_used(copies: [&[u8]; 2]) -> bool {
    copies.into_iter().any(|copy| copy.starts_with(MAGIC))
}

fn read_copy(bytes: &[u8]) -> Option<Kept> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (crc, body) = rest.split_first_chunk::<4>()?;
    let (state_bytes, after) = body.split_first_chunk::<4>()?;
    let state_bytes = u32::from_le_bytes(*state_bytes) as usize;
    let body = body.get(..(HEADER_BYTES - 12).checked_add(state_bytes)?)?;
    if crc32c(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (sequence, after) = after.split_first_chunk::<8>()?;
    let (uuid, after) = after.split_first_chunk::<16>()?;
    let (&name_bytes, name) = after.split_first()?;
    let name = std::str::from_utf8(name.get(..usize::from(name_bytes))?).ok()?.to_owned();
    let owner = Owner { uuid: *uuid, name };
    Some(Kept { owner, sequence: u64::from_le_bytes(*sequence), state: body[HEADER_BYTES - 12..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner { uuid: *b"0123456789abcdef", name: "disk".into() }
    }

    #[test]
    fn the_newest_whole_copy_holds() {
        let (old, new) = (copy(&owner(), 6, b"old"), copy(&owner(), 7, b"newer"));
        assert_eq!((copy_offset_bytes(6), copy_offset_bytes(7)), (0, COPY_BYTES as u64));
        let kept_new = Kept { owner: owner(), sequence: 7, state: b"newer".to_vec() };
        assert_eq!(kept([&old, &new]), Some(kept_new.clone()));
        let padded = [&new[..], &[0xff; 100]].concat();
        assert_eq!(kept([&old, &padded]), Some(kept_new), "what comes after it does not matter");
        for cut in 0..new.len() {
            let torn = [&new[..cut], &vec![0; new.len() - cut]].concat();
            assert_eq!(kept([&old, &torn]).expect("the old one").sequence, 6, "{cut}");
        }
        for at in 8..new.len() {
            let mut changed = new.clone();
            changed[at] ^= 0x10;
            assert_eq!(kept([&old, &changed]).expect("the old one").sequence, 6, "{at}");
            assert!(is_used([&[], &changed]) && kept([&[], &changed]).is_none());
        }
        assert!(kept([&[], &[0; 300]]).is_none() && !is_used([&[], &[0; 300]]));
    }
}
