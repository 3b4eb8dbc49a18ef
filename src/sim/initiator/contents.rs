//! What a disk must contain: the initiator's own memory of what it wrote and what it was told.
//!
//! Contents are kept by sectors of 512 bytes, each a *version*. A sector's bytes are made from its place and its
//! version, so that a sector in the wrong place, an older one, and a mixture are all seen for what they are.
//!
//! **May know:** nothing.

use std::fmt;

/// Bytes that have one version.
pub const UNIT_BYTES: usize = 512;

/// What was written when: 0 is a disk's first state, zeros.
pub type Version = u32;

/// Set in versions of which all sectors look alike.
pub(super) const SAME: Version = 1 << 31;

/// What a sector of a layered disk holds at first: nothing, or what was written to one of its two parents.
pub fn layered_version(unit: u64) -> Version {
    const RUN: u64 = 72;
    match unit / RUN % 4 {
        0 => 0,
        1 => LAYER_VERSIONS[0],
        2 => LAYER_VERSIONS[1],
        _ if (unit / 8).is_multiple_of(3) => LAYER_VERSIONS[0],
        _ => LAYER_VERSIONS[1],
    }
}

/// Versions of what was written to the grandparent and to the parent of a layered disk.
pub const LAYER_VERSIONS: [Version; 2] = [1 << 30, 1 << 30 | 1];

/// What may be in one unit.
#[derive(Clone, Debug, Default)]
struct Unit {
    /// What a power cut surely leaves, unless something later is left.
    durable: Version,
    /// What came later, in order.
    later: Vec<Later>,
}

#[derive(Clone, Copy, Debug)]
struct Later {
    version: Version,
    order: u64,
    /// Answered GOOD, or read. Otherwise the write had no answer, or an error, and may have happened or not.
    certain: bool,
}

impl Unit {
    /// What a read may find now: the last thing that is certain, or what came after it without being certain.
    fn possible(&self) -> Vec<Version> {
        let certain = self.later.iter().rposition(|later| later.certain);
        let first = if certain.is_none() { Some(self.durable) } else { None };
        first.into_iter().chain(self.later[certain.unwrap_or(0)..].iter().map(|later| later.version)).collect()
    }
}

/// The units `first ..` of a logical unit that one initiator writes alone.
pub(super) struct Contents {
    first: u64,
    units: Vec<Unit>,
    version_next: Version,
    order: u64,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors from {}", self.units.len(), self.first)
    }
}

impl Contents {
    /// `count` units of zeros, of which the first is number `first` on the disk.
    pub fn new(first: u64, count: usize) -> Contents {
        Contents { first, units: vec![Unit::default(); count], version_next: 1, order: 0 }
    }

    /// The same of a layered disk.
    pub fn layered(first: u64, count: usize) -> Contents {
        let unit = |number| Unit { durable: layered_version(number), later: Vec::new() };
        let units = (first..first + count as u64).map(unit).collect();
        Contents { units, ..Contents::new(first, 0) }
    }

    /// These units are said to read as zeros.
    pub fn check_zeros(&self, unit: u64, count: u64) -> Result<(), String> {
        let end = self.first + self.count();
        for number in unit.max(self.first)..(unit.saturating_add(count)).min(end) {
            let possible = self.units[(number - self.first) as usize].possible();
            if !possible.contains(&0) {
                return Err(format!("sector {number} is deallocated, but holds a version of {possible:?}"));
            }
        }
        Ok(())
    }

    pub fn first(&self) -> u64 {
        self.first
    }

    pub fn count(&self) -> u64 {
        self.units.len() as u64
    }

    /// The one version that all these units certainly hold, if it looks the same everywhere.
    pub fn uniform(&self, unit: u64, count: u64) -> Option<Version> {
        let start = (unit - self.first) as usize;
        let units = &self.units[start..start + count as usize];
        let version = *units.first()?.possible().first()?;
        let is_same = version == 0 || version & SAME != 0;
        (is_same && units.iter().all(|unit| unit.possible() == [version])).then_some(version)
    }

    /// A version that was never written.
    pub fn new_version(&mut self) -> Version {
        self.version_next += 1;
        self.version_next - 1
    }

    /// Everything that is known by now: a synchronisation that is sent now covers it.
    pub fn order(&self) -> u64 {
        self.order
    }

    /// These units were written and answered GOOD; `durable` if that was promised with it (FUA).
    pub fn written(&mut self, unit: u64, count: u64, version: Version, durable: bool) {
        let order = self.next_order();
        for unit in self.range_mut(unit, count) {
            if durable {
                *unit = Unit { durable: version, later: Vec::new() };
            } else {
                unit.later.push(Later { version, order, certain: true });
            }
        }
    }

    /// A write of these units ended without an answer, or with an error: each may have it or not.
    pub fn perhaps_written(&mut self, unit: u64, count: u64, version: Version) {
        let order = self.next_order();
        for unit in self.range_mut(unit, count) {
            unit.later.push(Later { version, order, certain: false });
        }
    }

    /// A synchronisation was answered GOOD that was sent when [`Self::order`] was this.
    pub fn synchronized(&mut self, order: u64) {
        for unit in &mut self.units {
            if let Some(at) = unit.later.iter().rposition(|later| later.certain && later.order <= order) {
                unit.durable = unit.later[at].version;
                unit.later.drain(..=at);
            }
        }
    }

    /// The power was cut: of what was not durable each unit may have kept anything.
    pub fn power_was_cut(&mut self) {
        self.units.iter_mut().flat_map(|unit| &mut unit.later).for_each(|later| later.certain = false);
    }

    /// Everything was lost, as it is with memory.
    pub fn were_lost(&mut self) {
        self.units.fill(Unit::default());
    }

    /// These bytes were read and answered GOOD. What could have been is now settled.
    pub fn check(&mut self, unit: u64, bytes: &[u8]) -> Result<(), String> {
        let order = self.next_order();
        let units = self.range_mut(unit, (bytes.len() / UNIT_BYTES) as u64);
        for ((number, unit), bytes) in (unit..).zip(units).zip(bytes.chunks(UNIT_BYTES)) {
            let possible = unit.possible();
            let Some(&version) = possible.iter().find(|&&version| is_version(number, version, bytes)) else {
                return Err(format!(
                    "sector {number} holds {}, not a version of {possible:?}",
                    describe(number, bytes)
                ));
            };
            if possible.len() > 1 {
                unit.later.push(Later { version, order, certain: true });
            }
        }
        Ok(())
    }

    fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    fn range_mut(&mut self, unit: u64, count: u64) -> &mut [Unit] {
        let start = (unit - self.first) as usize;
        &mut self.units[start..start + count as usize]
    }
}

/// The bytes of one unit.
fn word(unit: u64, version: Version, at: usize) -> u64 {
    let unit = if version & SAME == 0 { unit } else { 0 };
    let word = (unit << 32 | u64::from(version)).wrapping_add((at as u64) << 57 | at as u64);
    if at < 2 { word } else { word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) }
}

/// Append the bytes of `count` units.
pub fn fill(unit: u64, count: u64, version: Version, out: &mut Vec<u8>) {
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

    fn bytes(unit: u64, version: Version) -> Vec<u8> {
        let mut bytes = Vec::new();
        fill(unit, 4, version, &mut bytes);
        bytes
    }

    fn written(versions: &[Version]) -> Contents {
        let mut contents = Contents::new(100, 10);
        versions.iter().for_each(|&version| contents.written(100, 4, version, false));
        contents
    }

    #[test]
    fn lost_misplaced_torn_and_old_sectors_are_all_seen() {
        assert_eq!(written(&[1, 2]).check(100, &bytes(100, 2)), Ok(()));
        let wrong = |bytes: &[u8]| written(&[1, 2]).check(100, bytes).expect_err("it is wrong");
        assert!(wrong(&bytes(100, 1)).contains("version 1 of sector 100"));
        assert!(wrong(&bytes(101, 2)).contains("version 2 of sector 101"));
        assert!(wrong(&bytes(100, 0)).contains("zeros"));
        let mut torn = bytes(100, 2);
        torn[256..512].copy_from_slice(&bytes(100, 1)[256..512]);
        assert!(wrong(&torn).contains("a mixture"));
    }

    #[test]
    fn a_write_without_an_answer_may_be_there_or_not_but_not_change_its_mind() {
        let mut contents = written(&[1]);
        contents.perhaps_written(100, 4, 5);
        assert_eq!(contents.check(100, &bytes(100, 5)), Ok(()));
        assert!(contents.check(100, &bytes(100, 1)).is_err());
    }

    #[test]
    fn a_power_cut_leaves_what_was_synchronized_or_something_later() {
        let after = |version: Version| {
            let mut contents = written(&[1, 2]);
            let order = contents.order();
            contents.written(100, 4, 3, false);
            contents.synchronized(order);
            contents.power_was_cut();
            contents.check(100, &bytes(100, version))
        };
        assert_eq!((after(2), after(3)), (Ok(()), Ok(())));
        assert!(after(1).is_err() && after(0).is_err());
        let mut through = written(&[1]);
        through.written(100, 4, 2, true);
        through.power_was_cut();
        assert!(through.check(100, &bytes(100, 1)).is_err());
        assert!(through.check(100, &bytes(100, 2)).is_ok());
    }
}
