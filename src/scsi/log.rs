//! LOG SENSE and LOG SELECT (SPC-5 clauses 6.8 and 6.9, pages of SPC-5 clause 7.3 and SBC-4 clause 6.4): what was
//! done on the unit, and how much space is behind it.
//!
//! The lists of pages and the pages of a unit that nothing happens to are answered at once; for the others the caller
//! gives the numbers ([`LogData`]).

use super::cdb::Cdb;
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::sense::{Outcome, Sense};
use super::unit::{Features, Unit};

/// What the log pages tell. All counts are since the unit was opened, or since LOG SELECT set them back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogData {
    /// Commands that read blocks.
    pub reads: u64,
    /// Commands that wrote blocks.
    pub writes: u64,
    /// Bytes that came from initiators.
    pub bytes_received: u64,
    /// Bytes that went to initiators.
    pub bytes_transmitted: u64,
    /// Time in which reading commands were at work, summed over them, in microseconds.
    pub read_us: u64,
    /// The same of writing ones.
    pub write_us: u64,
    /// Time in which no command was at work, in microseconds.
    pub idle_us: u64,
    /// Bytes that a thin provisioned unit can still allocate.
    pub available_bytes: u64,
    /// Bytes that it has allocated.
    pub used_bytes: u64,
}

impl LogData {
    /// Leave out what had been counted by the time of `base`.
    pub fn count_from(&mut self, base: &Self) {
        for (count, base) in [
            (&mut self.reads, base.reads),
            (&mut self.writes, base.writes),
            (&mut self.bytes_received, base.bytes_received),
            (&mut self.bytes_transmitted, base.bytes_transmitted),
            (&mut self.read_us, base.read_us),
            (&mut self.write_us, base.write_us),
            (&mut self.idle_us, base.idle_us),
        ] {
            *count = count.saturating_sub(base);
        }
    }
}

/// A log page that there is, on units that it is for.
struct Page {
    code: u8,
    needs: Features,
    push: fn(&Unit, &LogData, &mut ParameterList<'_>),
}

/// Every page, ascending; all have subpage zero.
const PAGES: [Page; 5] = [
    Page { code: 0x00, needs: Features::NONE, push: supported_pages },
    Page { code: 0x0c, needs: Features::LOG_DATA.and(Features::UNMAP), push: logical_block_provisioning },
    Page { code: 0x0e, needs: Features::NONE, push: start_stop_cycle_counter },
    Page { code: 0x19, needs: Features::LOG_DATA, push: general_statistics },
    Page { code: 0x2f, needs: Features::NONE, push: informational_exceptions },
];

/// SUBPAGE CODE that asks for all: only in the list of pages and subpages.
const ALL_SUBPAGES: u8 = 0xff;

fn pages(unit: &Unit) -> impl Iterator<Item = &'static Page> {
    PAGES.iter().filter(|page| unit.features().contains(page.needs))
}

pub(super) fn log_sense(cdb: Cdb<'_>, unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    let (page_control, code, subpage) = (cdb.byte(2) >> 6, cdb.byte(2) & 0x3f, cdb.byte(3));
    // Cumulative values are the only ones: there are no thresholds, and no defaults to go back to.
    if page_control != 1 && !(page_control == 0 && code == 0) {
        return Sense::invalid_field_in_cdb(2, Some(7)).into();
    }
    let Some(page) = pages(unit).find(|page| page.code == code) else {
        return Sense::invalid_field_in_cdb(2, Some(5)).into();
    };
    if subpage != 0 && !(subpage == ALL_SUBPAGES && code == 0) {
        return Sense::invalid_field_in_cdb(3, None).into();
    }
    // PARAMETER POINTER: where in the page to begin; only the beginning is.
    if cdb.be16(5) != 0 {
        return Sense::invalid_field_in_cdb(5, None).into();
    }
    let allocation_length = cdb.be16(7);
    if page.needs.contains(Features::LOG_DATA) {
        return Action::LogSense { page: code, allocation_length };
    }
    out.begin(u32::from(allocation_length));
    if subpage == ALL_SUBPAGES {
        push_page(0x40, ALL_SUBPAGES, out, |out| pages_and_subpages(unit, out));
    } else {
        push_page(code, 0, out, |out| (page.push)(unit, &LogData::default(), out));
    }
    Action::DataIn
}

/// LOG SELECT sets what was counted back to zero (PCR), and changes nothing else: no parameter can be set to a value of
/// the initiator's, so that there is no parameter list.
pub(super) fn log_select(cdb: Cdb<'_>, unit: &Unit) -> Action {
    const GENERAL_STATISTICS: u8 = 0x19;
    let (reset, code, subpage) = (cdb.bit(1, 1), cdb.byte(2) & 0x3f, cdb.byte(3));
    if code != 0 && !pages(unit).any(|page| page.code == code) {
        return Sense::invalid_field_in_cdb(2, Some(5)).into();
    }
    if !matches!(subpage, 0 | ALL_SUBPAGES) {
        return Sense::invalid_field_in_cdb(3, None).into();
    }
    if cdb.be16(7) != 0 {
        return Sense::invalid_field_in_cdb(7, None).into();
    }
    match (reset, code) {
        (true, 0 | GENERAL_STATISTICS) => Action::LogReset,
        _ => Action::Done(Outcome::GOOD),
    }
}

/// The Data-In of [`Action::LogSense`], written to `buffer`: its length.
pub fn report(unit: &Unit, page: u8, data: &LogData, allocation_length: u16, buffer: &mut [u8; 128]) -> usize {
    let mut out = ParameterList::new(buffer);
    out.begin(u32::from(allocation_length));
    if let Some(page) = pages(unit).find(|known| known.code == page) {
        push_page(page.code, 0, &mut out, |out| (page.push)(unit, data, out));
    }
    out.len()
}

fn push_page(code: u8, subpage: u8, out: &mut ParameterList<'_>, push: impl FnOnce(&mut ParameterList<'_>)) {
    out.push(&[code, subpage, 0, 0]);
    push(out);
    let bytes = u16::try_from(out.total_len() - 4).expect("a page is short");
    out.set_u16(2, bytes);
}

/// FORMAT AND LINKING 11b: a binary list, which nobody changes.
const BINARY_LIST: u8 = 0x03;

/// A parameter's header.
fn push_parameter(code: u16, bytes: u8, out: &mut ParameterList<'_>) {
    out.push_u16(code);
    out.push(&[BINARY_LIST, bytes]);
}

fn supported_pages(unit: &Unit, _data: &LogData, out: &mut ParameterList<'_>) {
    pages(unit).for_each(|page| out.push_u8(page.code));
}

fn pages_and_subpages(unit: &Unit, out: &mut ParameterList<'_>) {
    out.push(&[0, 0, 0, ALL_SUBPAGES]);
    pages(unit).skip(1).for_each(|page| out.push(&[page.code, 0]));
}

/// Logical Block Provisioning (SBC-4 clause 6.4.5): available and used, counted in threshold sets.
fn logical_block_provisioning(unit: &Unit, data: &LogData, out: &mut ParameterList<'_>) {
    /// SCOPE: the count is of what this unit alone uses, or of what it shares with others.
    const THIS_UNIT: u8 = 1;
    const SHARED: u8 = 2;
    let shift = u32::from(unit.threshold_exponent()) + unit.block_length().shift();
    for (code, bytes, scope) in [(0x0001, data.available_bytes, SHARED), (0x0002, data.used_bytes, THIS_UNIT)] {
        push_parameter(code, 8, out);
        out.push_u32(u32::try_from(bytes >> shift).unwrap_or(u32::MAX));
        out.push(&[scope, 0, 0, 0]);
    }
}

/// Start-Stop Cycle Counter (SPC-5 clause 7.3.20): nothing spins, so none was counted.
fn start_stop_cycle_counter(_unit: &Unit, _data: &LogData, out: &mut ParameterList<'_>) {
    push_parameter(0x0004, 4, out);
    out.push_u32(0);
}

/// General Statistics and Performance (SPC-5 clause 7.3.10), with intervals of one microsecond.
fn general_statistics(unit: &Unit, data: &LogData, out: &mut ParameterList<'_>) {
    let shift = unit.block_length().shift();
    push_parameter(0x0001, 64, out);
    for value in [
        data.reads,
        data.writes,
        data.bytes_received >> shift,
        data.bytes_transmitted >> shift,
        data.read_us,
        data.write_us,
        // The weights are not kept.
        0,
        0,
    ] {
        out.push_u64(value);
    }
    push_parameter(0x0002, 8, out);
    out.push_u64(data.idle_us);
    // Time interval: an integer and a negative power of ten.
    push_parameter(0x0003, 8, out);
    out.push_u32(6);
    out.push_u32(1);
}

/// Informational Exceptions (SPC-5 clause 7.3.14): none is pending, and there is no temperature.
fn informational_exceptions(_unit: &Unit, _data: &LogData, out: &mut ParameterList<'_>) {
    push_parameter(0x0000, 4, out);
    out.push(&[0, 0, 0xff, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_select_sets_counts_back_and_nothing_else() {
        let select =
            |flags: u8, page: u8, subpage: u8, list: u8| run(&DISK, &[0x4c, flags, page, subpage, 0, 0, 0, 0, list]);
        for (page, subpage) in [(0x00, 0), (0x40, 0), (0x19, 0), (0x59, 0xff), (0x00, 0xff)] {
            assert_eq!(select(2, page, subpage, 0), Action::LogReset, "{page:02x}");
            assert_eq!(select(0, page, subpage, 0), Action::Done(Outcome::GOOD), "{page:02x}");
        }
        assert_eq!(select(2, 0x0e, 0, 0), Action::Done(Outcome::GOOD), "nothing is counted there");
        assert_eq!(select(2, 0x0d, 0, 0), invalid_field(2, Some(5)), "no such page");
        assert_eq!(select(2, 0x19, 1, 0), invalid_field(3, None));
        assert_eq!(select(2, 0, 0, 8), invalid_field(7, None));
        assert_eq!(select(0, 0x19, 0, 8), invalid_field(7, None));
        assert_eq!(select(3, 0, 0, 0), invalid_field(1, Some(0)), "nothing is saved");
    }
    use crate::scsi::fixture::{DISK, THIN, invalid_field, reply, run, run_on, unit};
    use crate::scsi::{BlockLength, NexusUnit, UnitConfig};

    fn page(code: u8) -> [u8; 10] {
        [0x4d, 0, 0x40 | code, 0, 0, 0, 0, 2, 0, 0]
    }

    #[test]
    fn the_lists_are_of_what_the_unit_has() {
        assert_eq!(reply(&THIN, &page(0)), [0, 0, 0, 5, 0x00, 0x0c, 0x0e, 0x19, 0x2f]);
        assert_eq!(reply(&DISK, &page(0)), [0, 0, 0, 4, 0x00, 0x0e, 0x19, 0x2f]);
        let plain = Unit::new(&THIN).expect("valid");
        let (_, data) = run_on(Some(&plain), &mut NexusUnit::default(), &page(0));
        assert_eq!(data, [0, 0, 0, 3, 0x00, 0x0e, 0x2f]);
        let mut all = page(0);
        all[3] = 0xff;
        let expected = [0x40, 0xff, 0, 10, 0, 0, 0, 0xff, 0x0e, 0, 0x19, 0, 0x2f, 0];
        assert_eq!(reply(&DISK, &all), expected);
    }

    #[test]
    fn pages_without_numbers() {
        assert_eq!(reply(&DISK, &page(0x0e)), [0x0e, 0, 0, 8, 0, 4, 3, 4, 0, 0, 0, 0]);
        assert_eq!(reply(&DISK, &page(0x2f)), [0x2f, 0, 0, 8, 0, 0, 3, 4, 0, 0, 0xff, 0]);
    }

    #[test]
    fn pages_with_numbers_ask_for_them() {
        for code in [0x0c, 0x19] {
            assert_eq!(run(&THIN, &page(code)), Action::LogSense { page: code, allocation_length: 512 });
        }
        let data = LogData {
            reads: 1,
            writes: 2,
            bytes_received: 3 << 9,
            bytes_transmitted: 4 << 9,
            read_us: 5,
            write_us: 6,
            idle_us: 7,
            available_bytes: 8 << 20,
            used_bytes: 9 << 20,
        };
        let mut buffer = [0xee; 128];
        let len = report(&unit(&DISK), 0x19, &data, 512, &mut buffer);
        let mut expected = vec![0x19, 0, 0, 92, 0, 1, 3, 64];
        expected.extend([1, 2, 3, 4, 5, 6, 0, 0].iter().flat_map(|value: &u64| value.to_be_bytes()));
        expected.extend([0, 2, 3, 8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 3, 3, 8, 0, 0, 0, 6, 0, 0, 0, 1]);
        assert_eq!(buffer[..len], expected);

        let long = UnitConfig { block_length: BlockLength::B4096, ..THIN };
        for config in [THIN, long] {
            let len = report(&unit(&config), 0x0c, &data, 512, &mut buffer);
            let expected = [0x0c, 0, 0, 24, 0, 1, 3, 8, 0, 0, 0, 8, 2, 0, 0, 0, 0, 2, 3, 8, 0, 0, 0, 9, 1, 0, 0, 0];
            assert_eq!(buffer[..len], expected);
        }
        assert_eq!(report(&unit(&THIN), 0x0c, &data, 4, &mut buffer), 4);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        assert_eq!(run(&DISK, &page(0x0c)), invalid_field(2, Some(5)), "nothing is provisioned");
        assert_eq!(run(&DISK, &page(0x0d)), invalid_field(2, Some(5)), "no thermometer");
        let changed = |index: usize, value| {
            let mut cdb = page(0x0e);
            cdb[index] = value;
            run(&DISK, &cdb)
        };
        assert_eq!(changed(2, 0x0e), invalid_field(2, Some(7)), "thresholds");
        assert_eq!(changed(2, 0xce), invalid_field(2, Some(7)), "defaults");
        assert_eq!(changed(3, 1), invalid_field(3, None));
        assert_eq!(changed(6, 1), invalid_field(5, None));
        assert_eq!(changed(1, 1), invalid_field(1, Some(0)), "SP");
    }
}
