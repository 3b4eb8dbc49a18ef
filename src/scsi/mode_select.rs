//! MODE SELECT (SPC-5 clauses 6.11 and 6.12): the command, and what its parameter list changes.
//!
//! An initiator sends back whole pages that it has read with MODE SENSE; a value that cannot be changed must be the
//! current one.

use super::cdb::Cdb;
use super::execute::Action;
use super::mode::{self, PAGES, Page, SWP, SWP_BYTE, Values, WCE};
use super::sense::{Outcome, Sense, SenseCode};
use super::unit::Unit;

/// What a parameter list changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModeChange {
    /// The new value of WCE; `None` if the list has no caching page, or WCE cannot be changed.
    pub write_cache_enabled: Option<bool>,
    /// The new value of SWP; `None` if the list has no control page, or SWP cannot be changed.
    pub write_protected: Option<bool>,
}

pub(super) fn mode_select_6(cdb: Cdb<'_>, unit: &Unit) -> Action {
    mode_select(cdb, u16::from(cdb.byte(4)), false, unit)
}

pub(super) fn mode_select_10(cdb: Cdb<'_>, unit: &Unit) -> Action {
    mode_select(cdb, cdb.be16(7), true, unit)
}

fn mode_select(cdb: Cdb<'_>, list_bytes: u16, long: bool, unit: &Unit) -> Action {
    let (page_format, save) = (cdb.bit(1, 4), cdb.bit(1, 0));
    // Without PF the pages would be vendor specific.
    if !page_format && list_bytes > 0 {
        return Sense::invalid_field_in_cdb(1, Some(4)).into();
    }
    if save && !mode::can_save(unit) {
        return Sense::invalid_field_in_cdb(1, Some(0)).into();
    }
    match usize::from(list_bytes) {
        0 => Action::Done(Outcome::GOOD),
        bytes if bytes < header_bytes(long) => Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR).into(),
        _ => Action::ModeSelect { list_bytes, long, save },
    }
}

/// Bytes of the mode parameter header.
fn header_bytes(long: bool) -> usize {
    if long { 8 } else { 4 }
}

const LENGTH_ERROR: Sense = Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR);

/// Read the parameter list, which is Data-Out of [`Action::ModeSelect`]; `long` is that of the action. Everything is
/// checked: nothing has to be undone.
pub fn parse(list: &[u8], long: bool, unit: &Unit) -> Result<ModeChange, Sense> {
    if list.len() < header_bytes(long) {
        return Err(LENGTH_ERROR);
    }
    // MODE DATA LENGTH is reserved here; what MODE SENSE says of the device is passed over. MEDIUM TYPE is zero.
    let (medium_type_byte, long_lba, descriptor_bytes) = if long {
        (2, list[4] & 1 != 0, usize::from(u16::from_be_bytes([list[6], list[7]])))
    } else {
        (1, false, usize::from(list[3]))
    };
    if list[usize::from(medium_type_byte)] != 0 {
        return Err(Sense::invalid_field_in_list(medium_type_byte, None));
    }
    let start = header_bytes(long);
    let descriptor = list.get(start..start + descriptor_bytes).ok_or(LENGTH_ERROR)?;
    if !is_current(descriptor, long_lba, unit) {
        return Err(Sense::invalid_field_in_list(start as u16, None));
    }
    let mut change = ModeChange::default();
    let mut at = start + descriptor_bytes;
    while at < list.len() {
        at += parse_page(&list[at..], at, unit, &mut change)?;
    }
    Ok(change)
}

/// A block descriptor says what is true already, or there is none: blocks are not changed here.
fn is_current(descriptor: &[u8], long_lba: bool, unit: &Unit) -> bool {
    let (blocks, block_bytes, most) = match (descriptor, long_lba) {
        ([], _) => return true,
        (&[a, b, c, d, 0, x, y, z], false) => {
            (u64::from(u32::from_be_bytes([a, b, c, d])), [0, x, y, z], u64::from(u32::MAX))
        }
        (&[a, b, c, d, e, f, g, h, _, _, _, _, w, x, y, z], true) => {
            (u64::from_be_bytes([a, b, c, d, e, f, g, h]), [w, x, y, z], u64::MAX)
        }
        _ => return false,
    };
    // No number leaves the capacity as it is; the largest one asks for all that there is.
    let capacity = [0, unit.capacity_blocks(), most].contains(&blocks);
    capacity && u32::from_be_bytes(block_bytes) == unit.block_length().bytes()
}

/// Read one page, which stands at `at` of the list; how many bytes it has.
fn parse_page(rest: &[u8], at: usize, unit: &Unit, change: &mut ModeChange) -> Result<usize, Sense> {
    let wrong = |byte: usize, bit| Sense::invalid_field_in_list(u16::try_from(at + byte).unwrap_or(u16::MAX), bit);
    let has_subpage = rest[0] & 0x40 != 0;
    let (code, subpage) = (rest[0] & 0x3f, if has_subpage { rest.get(1).copied().ok_or(LENGTH_ERROR)? } else { 0 });
    let known = |page: &&Page| page.code == code && page.subpage == subpage && (subpage != 0) == has_subpage;
    let page = PAGES.iter().find(known).ok_or(wrong(0, Some(5)))?;
    let header = page.header_bytes();
    let end = header + page.body_bytes();
    let length = match rest.get(..header).ok_or(LENGTH_ERROR)? {
        [_, length] => usize::from(*length),
        [.., high, low] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    if length != page.body_bytes() {
        return Err(wrong(header - if has_subpage { 2 } else { 1 }, None));
    }
    let body = rest.get(header..end).ok_or(LENGTH_ERROR)?;
    let (current, changeable) = (page.body(unit, Values::Current), page.body(unit, Values::Changeable));
    for (index, byte) in body.iter().enumerate() {
        let differs = (byte ^ current[index]) & !changeable[index];
        if differs != 0 {
            return Err(wrong(header + index, Some(7 - differs.leading_zeros() as u8)));
        }
    }
    match page.code {
        mode::CACHING if changeable[0] & WCE != 0 => change.write_cache_enabled = Some(body[0] & WCE != 0),
        mode::CONTROL if changeable[SWP_BYTE] & SWP != 0 => {
            change.write_protected = Some(body[SWP_BYTE] & SWP != 0);
        }
        _ => {}
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, invalid_field, refused, reply, run, unit};
    use crate::scsi::{BlockLength, UnitConfig};

    fn change(list: &[u8], long: bool) -> Result<Option<bool>, Sense> {
        parse(list, long, &unit(&DISK)).map(|change| change.write_cache_enabled)
    }

    /// What an initiator makes of a MODE SENSE reply: the lengths of the header and PS are zero.
    fn sent_back(cdb: &[u8]) -> Vec<u8> {
        let mut list = reply(&DISK, cdb);
        list[0] = 0;
        if cdb[0] == 0x5a {
            list[1] = 0;
        }
        list
    }

    #[test]
    fn the_command_names_its_list() {
        let expected = |list_bytes, long, save| Action::ModeSelect { list_bytes, long, save };
        assert_eq!(run(&DISK, &[0x15, 0x10, 0, 0, 24, 0]), expected(24, false, false));
        assert_eq!(run(&DISK, &[0x15, 0x11, 0, 0, 24, 0]), expected(24, false, true));
        assert_eq!(run(&DISK, &[0x55, 0x11, 0, 0, 0, 0, 0, 1, 2, 0]), expected(258, true, true));
        assert_eq!(run(&DISK, &[0x15]), Action::Done(Outcome::GOOD), "no list changes nothing");
        assert_eq!(run(&DISK, &[0x15, 0, 0, 0, 24, 0]), invalid_field(1, Some(4)), "PF");
        assert_eq!(run(&DISK, &[0x15, 0x12, 0, 0, 24, 0]), invalid_field(1, Some(1)), "RTD");
        assert_eq!(run(&DISK, &[0x15, 0x10, 0, 0, 3, 0]), refused(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
        assert_eq!(run(&DISK, &[0x55, 0x10, 0, 0, 0, 0, 0, 0, 7]), refused(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
        let uncached = UnitConfig { write_cache_enabled: false, read_only: true, ..DISK };
        assert_eq!(run(&uncached, &[0x15, 0x11, 0, 0, 24, 0]), invalid_field(1, Some(0)), "nothing to save");
    }

    #[test]
    fn the_write_cache_is_turned_off_and_on() {
        for cdb in [
            &[0x1a, 0x08, 0x08, 0, 255][..],
            &[0x1a, 0, 0x08, 0, 255],
            &[0x5a, 0x08, 0x08, 0, 0, 0, 0, 0, 255],
            &[0x5a, 0x10, 0x08, 0, 0, 0, 0, 0, 255],
            &[0x5a, 0x00, 0x08, 0, 0, 0, 0, 0, 255],
        ] {
            let mut list = sent_back(cdb);
            let wce = list.len() - 18;
            assert_eq!(change(&list, cdb[0] == 0x5a), Ok(Some(true)), "{cdb:02x?}");
            list[wce] = 0;
            assert_eq!(change(&list, cdb[0] == 0x5a), Ok(Some(false)), "{cdb:02x?}");
        }
    }

    #[test]
    fn the_unit_is_protected_and_not() {
        let parse = |list: &[u8], config| parse(list, false, &unit(config)).map(|change| change.write_protected);
        let mut list = sent_back(&[0x1a, 0x08, 0x0a, 0, 255]);
        assert_eq!(parse(&list, &DISK), Ok(Some(false)));
        list[4 + 4] |= 8;
        assert_eq!(parse(&list, &DISK), Ok(Some(true)));
        let read_only = UnitConfig { read_only: true, ..DISK };
        assert_eq!(parse(&list, &read_only), Err(Sense::invalid_field_in_list(8, Some(3))), "not for those");
        list[4 + 4] &= !8;
        assert_eq!(parse(&list, &read_only), Ok(None));
    }

    #[test]
    fn every_page_may_be_sent_back_as_it_was_read() {
        let all = sent_back(&[0x5a, 0, 0x3f, 0xff, 0, 0, 0, 1, 0]);
        assert_eq!(change(&all, true), Ok(Some(true)));
        assert_eq!(change(&sent_back(&[0x1a, 0, 0x0a, 0, 255]), false), Ok(None));
    }

    #[test]
    fn what_cannot_be_changed_must_not_be() {
        let all = sent_back(&[0x1a, 0, 0x3f, 0xff, 255]);
        for index in 4..all.len() {
            for bit in 0..8 {
                let mut list = all.clone();
                list[index] ^= 1 << bit;
                let harmless = match index {
                    // Nobody looks at a page's PS bit; WCE and SWP are what can be changed.
                    12 | 32 | 44 | 76 => bit == 7,
                    14 => bit == 2,
                    36 => bit == 3,
                    _ => false,
                };
                assert_eq!(change(&list, false).is_ok(), harmless, "byte {index} bit {bit}");
            }
        }
        let mut list = sent_back(&[0x1a, 0x08, 0x08, 0, 255]);
        list[7] = 0x40;
        assert_eq!(change(&list, false), Err(Sense::invalid_field_in_list(7, Some(6))));
    }

    #[test]
    fn lists_that_end_too_early() {
        let all = sent_back(&[0x1a, 0, 0x08, 0, 255]);
        for end in 0..all.len() {
            let expected = if end == 12 { Ok(None) } else { Err(LENGTH_ERROR) };
            assert_eq!(change(&all[..end], false), expected, "{end}");
        }
        assert_eq!(change(&[0, 1, 0, 0], false), Err(Sense::invalid_field_in_list(1, None)), "MEDIUM TYPE");
        assert_eq!(change(&[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 2], false), Err(Sense::invalid_field_in_list(4, None)));
        assert_eq!(change(&[0, 0, 0, 0, 0x01, 0x0a], false), Err(Sense::invalid_field_in_list(4, Some(5))));
        let length = [0, 0, 0, 0, 0x0a, 0x0b, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(change(&length, false), Err(Sense::invalid_field_in_list(5, None)));
    }

    #[test]
    fn a_block_descriptor_says_what_is() {
        let short = |blocks: u32, bytes: u32| {
            let list = [&[0, 0, 0, 8][..], &blocks.to_be_bytes(), &bytes.to_be_bytes()].concat();
            change(&list, false).is_ok()
        };
        assert!(short(0, 512) && short(20_971_520, 512) && short(u32::MAX, 512));
        assert!(!short(20_971_519, 512) && !short(0, 4096) && !short(0, 0));
        let large = UnitConfig { block_length: BlockLength::B4096, capacity_blocks: 1 << 40, ..DISK };
        let long = |blocks: u64, bytes: u32| {
            let header = [0, 0, 0, 0, 1, 0, 0, 16];
            let list = [&header[..], &blocks.to_be_bytes(), &[0; 4], &bytes.to_be_bytes()].concat();
            parse(&list, true, &unit(&large)).is_ok()
        };
        assert!(long(1 << 40, 4096) && !long(1 << 39, 4096) && !long(1 << 40, 512));
    }
}
