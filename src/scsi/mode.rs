//! MODE SENSE and MODE SELECT (SPC-5 clauses 6.11 to 6.14, pages of SPC-5 clause 7.5 and SBC-4 clause 6.5).
//!
//! Two fields can be changed, and saved, where the unit's owner carries the change out: WCE on a unit that has a write
//! cache, and SWP on one that can be written. All other values are fixed.

use super::cdb::Cdb;
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::sense::{Sense, SenseCode, SenseFormat};
use super::unit::{Features, Unit};

/// PAGE CODE and SUBPAGE CODE that ask for all.
const ALL_PAGES: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

/// A mode page: where it is asked for, and its bytes after the page's header.
pub(super) struct Page {
    pub(super) code: u8,
    pub(super) subpage: u8,
    /// Bytes after the header.
    body_bytes: u8,
    /// Writes values into a zeroed body.
    fill: fn(&Unit, Values, &mut [u8]),
}

/// PAGE CONTROL: which values are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    Current,
    /// A one for every bit that MODE SELECT can change.
    Changeable,
    Default,
    Saved,
}

impl Page {
    /// The page's body with these values; only its first `body_bytes` count.
    pub(super) fn body(&self, unit: &Unit, values: Values) -> [u8; BODY_BYTES_MAX] {
        let mut body = [0; BODY_BYTES_MAX];
        (self.fill)(unit, values, &mut body[..usize::from(self.body_bytes)]);
        body
    }

    /// Bytes before the body: with a subpage the header is longer.
    pub(super) fn header_bytes(&self) -> usize {
        if self.subpage == 0 { 2 } else { 4 }
    }

    pub(super) fn body_bytes(&self) -> usize {
        usize::from(self.body_bytes)
    }

    /// PS: its values can be saved.
    fn is_saveable(&self, unit: &Unit) -> bool {
        self.body(unit, Values::Changeable) != [0; BODY_BYTES_MAX]
    }
}

/// MODE SELECT can change and save WCE.
pub(super) fn can_change_cache(unit: &Unit) -> bool {
    unit.write_cache_exists() && unit.features().contains(Features::MODE_SELECT)
}

/// MODE SELECT can change and save SWP. Who may not write a unit has no say in who else may.
pub(super) fn can_change_protection(unit: &Unit) -> bool {
    !unit.always_read_only() && unit.features().contains(Features::MODE_SELECT)
}

/// There are saved values.
pub(super) fn can_save(unit: &Unit) -> bool {
    can_change_cache(unit) || can_change_protection(unit)
}

/// WCE in the body of the caching page.
pub(super) const WCE: u8 = 1 << 2;

/// Where SWP is in the body of the control page.
pub(super) const SWP_BYTE: usize = 2;
pub(super) const SWP: u8 = 1 << 3;

/// PAGE CODEs of the pages with fields that can be changed.
pub(super) const CACHING: u8 = 0x08;
pub(super) const CONTROL: u8 = 0x0a;

/// Every page, ascending.
pub(super) const PAGES: [Page; 4] = [
    Page { code: CACHING, subpage: 0, body_bytes: 18, fill: caching },
    Page { code: CONTROL, subpage: 0, body_bytes: 10, fill: control },
    Page { code: CONTROL, subpage: 1, body_bytes: 28, fill: nothing_set },
    Page { code: 0x1c, subpage: 0, body_bytes: 10, fill: informational_exceptions },
];

/// The longest body.
pub(super) const BODY_BYTES_MAX: usize = 28;

/// Caching (SBC-4 clause 6.5.6): WCE is the truth about answered writes.
fn caching(unit: &Unit, values: Values, body: &mut [u8]) {
    let write_cache = match values {
        Values::Current => unit.write_cache_enabled(),
        Values::Changeable => can_change_cache(unit),
        Values::Default => unit.write_cache_exists(),
        Values::Saved => unit.write_cache_saved(),
    };
    body[0] = if write_cache { WCE } else { 0 };
}

/// Control (SPC-5 clause 7.5.9): D_SENSE; QUEUE ALGORITHM MODIFIER 1, since simple commands in flight are not kept in
/// order; SWP; TAS, since a command that another initiator aborts is answered with TASK ABORTED.
fn control(unit: &Unit, values: Values, body: &mut [u8]) {
    let protected = match values {
        Values::Current => unit.write_protected(),
        Values::Changeable => can_change_protection(unit),
        Values::Default => false,
        Values::Saved => unit.write_protection_saved(),
    };
    body[SWP_BYTE] = if protected { SWP } else { 0 };
    if values != Values::Changeable {
        body[0] = u8::from(unit.sense_format() == SenseFormat::Descriptor) << 2;
        body[1] = 1 << 4;
        body[3] = 1 << 6;
    }
}

/// Control Extension (SPC-5 clause 7.5.10): every feature it speaks of is off.
fn nothing_set(_unit: &Unit, _values: Values, _body: &mut [u8]) {}

/// Informational Exceptions Control (SPC-5 clause 7.5.16): DEXCPT, since no failure is predicted.
fn informational_exceptions(_unit: &Unit, values: Values, body: &mut [u8]) {
    if values != Values::Changeable {
        body[0] = 1 << 3;
    }
}

/// What is asked for, the same in both lengths of the command.
struct Request {
    page: u8,
    subpage: u8,
    values: Values,
    block_descriptor: BlockDescriptor,
}

/// The block descriptor to send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BlockDescriptor {
    None,
    Short,
    Long,
}

impl BlockDescriptor {
    fn bytes(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Short => 8,
            Self::Long => 16,
        }
    }
}

impl Request {
    fn parse(cdb: Cdb<'_>, unit: &Unit, long_lba_accepted: bool) -> Result<Self, Sense> {
        let values = match cdb.byte(2) >> 6 {
            0 => Values::Current,
            1 => Values::Changeable,
            2 => Values::Default,
            _ if can_save(unit) => Values::Saved,
            _ => return Err(Sense::new(SenseCode::SAVING_PARAMETERS_NOT_SUPPORTED)),
        };
        let block_descriptor = match (cdb.bit(1, 3), long_lba_accepted) {
            (true, _) => BlockDescriptor::None,
            (false, false) => BlockDescriptor::Short,
            (false, true) => BlockDescriptor::Long,
        };
        let (page, subpage) = (cdb.byte(2) & 0x3f, cdb.byte(3));
        let request = Self { page, subpage, values, block_descriptor };
        if page == ALL_PAGES && !matches!(subpage, 0 | ALL_SUBPAGES) {
            return Err(Sense::invalid_field_in_cdb(3, None));
        }
        if !PAGES.iter().any(|page| request.wants(page)) {
            let known = PAGES.iter().any(|known| known.code == page);
            return Err(if known {
                Sense::invalid_field_in_cdb(3, None)
            } else {
                Sense::invalid_field_in_cdb(2, Some(5))
            });
        }
        Ok(request)
    }

    fn wants(&self, page: &Page) -> bool {
        (self.page == ALL_PAGES || self.page == page.code)
            && (self.subpage == ALL_SUBPAGES || self.subpage == page.subpage)
    }

    /// Block descriptor and pages.
    fn push_rest(&self, unit: &Unit, out: &mut ParameterList<'_>) {
        match self.block_descriptor {
            BlockDescriptor::None => {}
            BlockDescriptor::Short => {
                out.push_u32(u32::try_from(unit.capacity_blocks()).unwrap_or(u32::MAX));
                out.push_u32(unit.block_length().bytes());
            }
            BlockDescriptor::Long => {
                out.push_u64(unit.capacity_blocks());
                out.push_u32(0);
                out.push_u32(unit.block_length().bytes());
            }
        }
        for page in PAGES.iter().filter(|page| self.wants(page)) {
            self.push_page(page, unit, out);
        }
    }

    fn push_page(&self, page: &Page, unit: &Unit, out: &mut ParameterList<'_>) {
        let saveable = u8::from(page.is_saveable(unit)) << 7;
        if page.subpage == 0 {
            out.push(&[saveable | page.code, page.body_bytes]);
        } else {
            // SPF, and a two-byte length.
            out.push(&[saveable | 0x40 | page.code, page.subpage, 0, page.body_bytes]);
        }
        out.push(&page.body(unit, self.values)[..page.body_bytes()]);
    }
}

/// DEVICE-SPECIFIC PARAMETER of a direct-access device (SBC-4 clause 6.5.1): WP, and DPOFUA since both are looked at.
fn device_specific_parameter(unit: &Unit) -> u8 {
    u8::from(unit.read_only()) << 7 | 1 << 4
}

pub(super) fn mode_sense_6(cdb: Cdb<'_>, unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    let request = match Request::parse(cdb, unit, false) {
        Ok(request) => request,
        Err(sense) => return sense.into(),
    };
    out.begin(u32::from(cdb.byte(4)));
    out.push(&[0, 0, device_specific_parameter(unit), request.block_descriptor.bytes()]);
    request.push_rest(unit, out);
    let data_length = u8::try_from(out.total_len() - 1).expect("all pages fit a short header");
    out.set_u8(0, data_length);
    Action::DataIn
}

pub(super) fn mode_sense_10(cdb: Cdb<'_>, unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    let request = match Request::parse(cdb, unit, cdb.bit(1, 4)) {
        Ok(request) => request,
        Err(sense) => return sense.into(),
    };
    out.begin(u32::from(cdb.be16(7)));
    let long_lba = u8::from(request.block_descriptor == BlockDescriptor::Long);
    let descriptor_bytes = request.block_descriptor.bytes();
    out.push(&[0, 0, 0, device_specific_parameter(unit), long_lba, 0, 0, descriptor_bytes]);
    request.push_rest(unit, out);
    let data_length = u16::try_from(out.total_len() - 2).expect("a few pages");
    out.set_u16(0, data_length);
    Action::DataIn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, invalid_field, refused, reply, run, run_on, unit};
    use crate::scsi::{BlockLength, NexusUnit, UnitConfig};

    const CACHING: [u8; 20] = [0x88, 0x12, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const CONTROL: [u8; 12] = [0x8a, 0x0a, 0, 0x10, 0, 0x40, 0, 0, 0, 0, 0, 0];
    const EXCEPTIONS: [u8; 12] = [0x1c, 0x0a, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    fn control_extension() -> Vec<u8> {
        [&[0x4a, 0x01, 0, 0x1c][..], &[0; 28]].concat()
    }

    #[test]
    fn one_page_with_its_block_descriptor() {
        let header = [31, 0, 0x10, 8, 0x01, 0x40, 0, 0, 0, 0, 2, 0];
        assert_eq!(reply(&DISK, &[0x1a, 0, 0x08, 0, 255, 0]), [&header[..], &CACHING].concat());
        let header = [0, 26, 0, 0x10, 0, 0, 0, 8, 0x01, 0x40, 0, 0, 0, 0, 2, 0];
        assert_eq!(reply(&DISK, &[0x5a, 0, 0x0a, 0, 0, 0, 0, 0, 255, 0]), [&header[..], &CONTROL].concat());
        let header = [0, 34, 0, 0x10, 1, 0, 0, 16, 0, 0, 0, 0, 0x01, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
        assert_eq!(reply(&DISK, &[0x5a, 0x10, 0x1c, 0, 0, 0, 0, 0, 255, 0]), [&header[..], &EXCEPTIONS].concat());
        assert_eq!(reply(&DISK, &[0x5a, 0x18, 0x1c, 0, 0, 0, 0, 0, 6, 0]), [0, 18, 0, 0x10, 0, 0], "DBD, cut");
    }

    #[test]
    fn a_large_unit_has_no_short_block_descriptor() {
        let large = UnitConfig { capacity_blocks: 1 << 33, block_length: BlockLength::B4096, ..DISK };
        assert_eq!(reply(&large, &[0x1a, 0, 0x0a, 0, 12, 0])[4..], [0xff, 0xff, 0xff, 0xff, 0, 0, 0x10, 0]);
        let long = reply(&large, &[0x5a, 0x10, 0x0a, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!(long[8..], [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]);
    }

    #[test]
    fn all_pages_come_in_order_with_or_without_subpages() {
        let pages = [&CACHING[..], &CONTROL, &EXCEPTIONS].concat();
        let data = reply(&DISK, &[0x1a, 0x08, 0x3f, 0, 255, 0]);
        assert_eq!(data, [&[47, 0, 0x10, 0][..], &pages].concat());
        let pages = [&CACHING[..], &CONTROL, &control_extension(), &EXCEPTIONS].concat();
        let data = reply(&DISK, &[0x1a, 0x08, 0x3f, 0xff, 255, 0]);
        assert_eq!(data, [&[79, 0, 0x10, 0][..], &pages].concat());
        let data = reply(&DISK, &[0x1a, 0x08, 0x0a, 0xff, 255, 0]);
        assert_eq!(data, [&[47, 0, 0x10, 0][..], &CONTROL, &control_extension()].concat());
        let data = reply(&DISK, &[0x1a, 0x08, 0x0a, 0x01, 255, 0]);
        assert_eq!(data, [&[35, 0, 0x10, 0][..], &control_extension()].concat());
    }

    #[test]
    fn values_follow_the_unit() {
        let unit =
            UnitConfig { write_cache_enabled: false, read_only: true, sense_format: SenseFormat::Descriptor, ..DISK };
        let data = reply(&unit, &[0x1a, 0x08, 0x3f, 0, 255, 0]);
        assert_eq!((data[2], data[4 + 2], data[24 + 2]), (0x90, 0, 4), "WP, WCE, D_SENSE");
    }

    #[test]
    fn only_the_write_cache_and_protection_can_be_changed_and_saved() {
        let changeable = reply(&DISK, &[0x1a, 0x08, 0x7f, 0xff, 255, 0]);
        let control = [0x8a, 0x0a, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
        let bits = [&[0x88, 0x12, 4][..], &[0; 17], &control, &control_extension(), &[0x1c, 0x0a], &[0; 10]];
        assert_eq!(changeable[4..], bits.concat());
        let unit = unit(&DISK).with_write_cache(false, true);
        let values = |control: u8| run_on(Some(&unit), &mut NexusUnit::default(), &[0x1a, 8, control | 8, 0, 255]).1[6];
        assert_eq!((values(0x00), values(0x40), values(0x80), values(0xc0)), (0, 4, 4, 4));
        let saved = unit.clone().with_write_cache(true, false);
        let (_, data) = run_on(Some(&saved), &mut NexusUnit::default(), &[0x1a, 8, 0xff, 0xff, 255]);
        assert_eq!((data.len(), data[6]), (80, 0), "every page has saved values");
    }

    #[test]
    fn a_protected_unit_says_so_and_refuses_to_write() {
        let unit = unit(&DISK).with_write_protection(true, false);
        let run = |bytes: &[u8]| run_on(Some(&unit), &mut NexusUnit::default(), bytes);
        let values = |control: u8| run(&[0x1a, 8, control | 0x0a, 0, 255]).1[8];
        assert_eq!((values(0x00), values(0x40), values(0x80), values(0xc0)), (8, 8, 0, 0));
        assert_eq!(run(&[0x1a, 8, 0x0a, 0, 255]).1[2], 0x90, "WP");
        let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(run(&write).0, refused(SenseCode::LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED));
        let free = unit.clone().with_write_protection(false, true);
        assert!(!free.read_only() && free.write_protection_saved());
        assert!(matches!(run_on(Some(&free), &mut NexusUnit::default(), &write).0, Action::Write { .. }));
    }

    #[test]
    fn nothing_can_be_changed_or_saved_where_there_is_no_cache_or_nobody_to_do_it() {
        let uncached = UnitConfig { write_cache_enabled: false, read_only: true, ..DISK };
        for unit in [unit(&uncached).with_write_cache(true, true), Unit::new(&DISK).expect("valid")] {
            let run = |bytes: &[u8]| run_on(Some(&unit), &mut NexusUnit::default(), bytes);
            let (_, changeable) = run(&[0x1a, 0x08, 0x48, 0, 255, 0]);
            assert_eq!(changeable[4..], [&[0x08, 0x12][..], &[0; 18]].concat());
            let (action, _) = run(&[0x1a, 0x08, 0xc8, 0, 255, 0]);
            assert_eq!(action, refused(SenseCode::SAVING_PARAMETERS_NOT_SUPPORTED));
            assert_eq!(run(&[0x1a, 0x08, 0x88, 0, 255, 0]), run(&[0x1a, 0x08, 0x08, 0, 255, 0]), "defaults");
        }
    }

    #[test]
    fn pages_that_are_not_there() {
        assert_eq!(run(&DISK, &[0x1a, 0, 0x01, 0, 255, 0]), invalid_field(2, Some(5)));
        assert_eq!(run(&DISK, &[0x1a, 0, 0x00, 0, 255, 0]), invalid_field(2, Some(5)));
        assert_eq!(run(&DISK, &[0x1a, 0, 0x08, 1, 255, 0]), invalid_field(3, None));
        assert_eq!(run(&DISK, &[0x1a, 0, 0x3f, 1, 255, 0]), invalid_field(3, None));
        assert_eq!(run(&DISK, &[0x1a, 0x10, 0x08, 0, 255, 0]), invalid_field(1, Some(4)), "LLBAA in six bytes");
    }
}
