//! What a disk must contain: the initiator's own memory of what it wrote and what it was told.
//!
//! Contents are kept by sectors of 512 bytes, each a *version*. A sector's bytes are made from its place and its version, so
//! that a sector in the wrong place, an older one, and a mixture are all seen for what they are.
//!
//! **May know:** nothing.

/// Bytes that have one version.
pub(super) const UNIT_BYTES: usize = 512;

/// What was written when: 0 is a disk's first state, zeros.
pub(super) type Version = u32;

/// The states one unit may be in. More than one after a write whose end is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Possible {
    known: Version,
    others: Vec<Version>,
}

/// The units `first ..` of a logical unit that one initiator writes alone.
#[derive(Debug)]
pub(super) struct Contents {
    first: u64,
    units: Vec<Possible>,
    version_next: Version,
}

impl Contents {
    /// `count` units of zeros, of which the first is number `first` on the disk.
    pub fn new(first: u64, count: usize) -> Contents {
        Contents { first, units: vec![Possible { known: 0, others: Vec::new() }; count], version_next: 1 }
    }

    pub fn first(&self) -> u64 {
        self.first
    }

    pub fn count(&self) -> u64 {
        self.units.len() as u64
    }

    /// A version that was never written.
    pub fn new_version(&mut self) -> Version {
        self.version_next += 1;
        self.version_next - 1
    }

    /// These units were written and answered GOOD.
    pub fn written(&mut self, unit: u64, count: u64, version: Version) {
        for possible in self.range_mut(unit, count) {
            *possible = Possible { known: version, others: Vec::new() };
        }
    }

    /// A write of these units ended without an answer, or with an error: each may have it or not.
    pub fn perhaps_written(&mut self, unit: u64, count: u64, version: Version) {
        for possible in self.range_mut(unit, count) {
            possible.others.push(version);
        }
    }

    /// These bytes were read and answered GOOD. What could have been is now settled.
    pub fn check(&mut self, unit: u64, bytes: &[u8]) -> Result<(), String> {
        let units = self.range_mut(unit, (bytes.len() / UNIT_BYTES) as u64);
        for ((number, possible), bytes) in (unit..).zip(units).zip(bytes.chunks(UNIT_BYTES)) {
            let candidates = std::iter::once(possible.known).chain(possible.others.iter().copied());
            let Some(version) = candidates.into_iter().find(|&version| is_version(number, version, bytes)) else {
                return Err(format!("sector {number} holds {}, not {possible:?}", describe(number, bytes)));
            };
            *possible = Possible { known: version, others: Vec::new() };
        }
        Ok(())
    }

    fn range_mut(&mut self, unit: u64, count: u64) -> &mut [Possible] {
        let start = (unit - self.first) as usize;
        &mut self.units[start..start + count as usize]
    }
}

/// The bytes of one unit.
fn word(unit: u64, version: Version, at: usize) -> u64 {
    let word = (unit << 32 | u64::from(version)).wrapping_add((at as u64) << 57 | at as u64);
    if at < 2 { word } else { word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) }
}

/// Append the bytes of `count` units.
pub(super) fn fill(unit: u64, count: u64, version: Version, out: &mut Vec<u8>) {
    for number in unit..unit + count {
        for at in 0..UNIT_BYTES / 8 {
            let word = if version == 0 { 0 } else { word(number, version, at) };
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
}

fn is_version(unit: u64, version: Version, bytes: &[u8]) -> bool {
    if version == 0 {
        return bytes.iter().all(|&byte| byte == 0);
    }
    bytes.chunks(8).enumerate().all(|(at, chunk)| chunk == word(unit, version, at).to_le_bytes())
}

fn describe(unit: u64, bytes: &[u8]) -> String {
    if is_version(unit, 0, bytes) {
        return "zeros".to_owned();
    }
    let mut head = [0; 8];
    head.copy_from_slice(&bytes[..8]);
    let head = u64::from_le_bytes(head);
    let (seen_unit, seen_version) = (head >> 32, head as u32);
    if is_version(seen_unit, seen_version, bytes) {
        return format!("version {seen_version} of sector {seen_unit}");
    }
    format!("a mixture or noise, starting {:02x?}", &bytes[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_misplaced_torn_and_old_sectors_are_all_seen() {
        let mut contents = Contents::new(100, 10);
        let (old, new) = (contents.new_version(), contents.new_version());
        contents.written(100, 4, old);
        contents.written(100, 4, new);
        let bytes = |unit, version| {
            let mut bytes = Vec::new();
            fill(unit, 4, version, &mut bytes);
            bytes
        };
        assert_eq!(contents.check(100, &bytes(100, new)), Ok(()));
        let wrong =
            |bytes: &[u8]| Contents { first: 100, ..contents_of(new) }.check(100, bytes).expect_err("it is wrong");
        assert!(wrong(&bytes(100, old)).contains("version 1 of sector 100"));
        assert!(wrong(&bytes(101, new)).contains("version 2 of sector 101"));
        assert!(wrong(&bytes(100, 0)).contains("zeros"));
        let mut torn = bytes(100, new);
        torn[256..512].copy_from_slice(&bytes(100, old)[256..512]);
        assert!(wrong(&torn).contains("a mixture"));
    }

    fn contents_of(version: Version) -> Contents {
        let mut contents = Contents::new(100, 10);
        contents.written(100, 4, version);
        contents
    }

    #[test]
    fn a_write_without_an_answer_may_be_there_or_not_but_not_change_its_mind() {
        let mut contents = contents_of(1);
        contents.perhaps_written(100, 1, 5);
        let (mut old, mut new) = (Vec::new(), Vec::new());
        fill(100, 1, 1, &mut old);
        fill(100, 1, 5, &mut new);
        assert_eq!(contents.check(100, &new), Ok(()));
        assert!(contents.check(100, &old).is_err());
    }
}
