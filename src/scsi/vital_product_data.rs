//! Vital product data pages (SPC-5 clause 7.7, SBC-4 clause 6.6): identity, limits and provisioning of a unit.

use super::copy::third_party;
use super::execute::TargetView;
use super::inquiry::{DIRECT_ACCESS, NO_UNIT};
use super::parameter_list::ParameterList;
use super::unit::{self, Features, Unit};
use crate::limits;

/// A page: writes what follows the four-byte header.
struct Page {
    code: u8,
    /// Only units that have these features have the page.
    needs: Features,
    push_body: fn(&TargetView<'_>, &Unit, &mut ParameterList<'_>),
}

/// Every page, ascending.
const PAGES: [Page; 9] = [
    page(0x00, supported_pages),
    page(0x80, unit_serial_number),
    page(0x83, device_identification),
    page(0x86, extended_inquiry_data),
    page(0x87, mode_page_policy),
    Page { needs: Features::COPY, ..page(0x8f, third_party::push_page) },
    page(0xb0, block_limits),
    page(0xb1, block_device_characteristics),
    page(0xb2, logical_block_provisioning),
];

const fn page(code: u8, push_body: fn(&TargetView<'_>, &Unit, &mut ParameterList<'_>)) -> Page {
    Page { code, needs: Features::NONE, push_body }
}

impl Page {
    fn is_of(&self, unit: &Unit) -> bool {
        unit.features().contains(self.needs)
    }
}

/// Write the page, or say that there is none of this code. A LUN without a unit has the list of pages only, which says
/// so.
pub(super) fn push_page(code: u8, target: &TargetView<'_>, unit: Option<&Unit>, out: &mut ParameterList<'_>) -> bool {
    let Some(unit) = unit else {
        if code == 0 {
            out.push(&[NO_UNIT, 0, 0, 1, 0]);
        }
        return code == 0;
    };
    let Some(page) = PAGES.iter().find(|page| page.code == code && page.is_of(unit)) else {
        return false;
    };
    out.push(&[DIRECT_ACCESS, code, 0, 0]);
    (page.push_body)(target, unit, out);
    let body_bytes = u16::try_from(out.total_len() - 4).expect("a page is shorter than 64 KiB");
    out.set_u16(2, body_bytes);
    true
}

fn supported_pages(_target: &TargetView<'_>, unit: &Unit, out: &mut ParameterList<'_>) {
    for page in PAGES.iter().filter(|page| page.is_of(unit)) {
        out.push_u8(page.code);
    }
}

fn unit_serial_number(_target: &TargetView<'_>, unit: &Unit, out: &mut ParameterList<'_>) {
    out.push(&unit.serial_number());
}

/// CODE SET values.
const BINARY: u8 = 1;
const ASCII: u8 = 2;
const UTF_8: u8 = 3;

/// ASSOCIATION values, with PIV where a protocol is named.
const LOGICAL_UNIT: u8 = 0 << 4;
const TARGET_PORT: u8 = 0x80 | 1 << 4;
const TARGET_DEVICE: u8 = 0x80 | 2 << 4;

/// PROTOCOL IDENTIFIER of iSCSI, in its place.
const ISCSI: u8 = 5 << 4;

/// Device Identification: the most specific designator of the unit first, since some initiators take the first that
/// they know.
fn device_identification(target: &TargetView<'_>, unit: &Unit, out: &mut ParameterList<'_>) {
    let naa = unit.naa_identifier();
    out.push(&[BINARY, LOGICAL_UNIT | 3, 0, 16]);
    out.push(&naa);
    let serial_number = unit.serial_number();
    out.push(&[ASCII, LOGICAL_UNIT | 1, 0, 8 + 32]);
    out.push_ascii(unit::VENDOR, 8);
    out.push(&serial_number);
    push_name(UTF_8, LOGICAL_UNIT, &[b"naa.", &unit::upper_hex(naa)], out);

    out.push(&[ISCSI | BINARY, TARGET_PORT | 4, 0, 4, 0, 0]);
    out.push_u16(target.relative_target_port);
    out.push(&[ISCSI | BINARY, TARGET_PORT | 5, 0, 4, 0, 0]);
    out.push_u16(target.target_port_group);
    let tag = unit::upper_hex(target.portal_group_tag.to_be_bytes());
    push_name(ISCSI | UTF_8, TARGET_PORT, &[target.name.as_bytes(), b",t,0x", &tag[..4]], out);
    push_name(ISCSI | UTF_8, TARGET_DEVICE, &[target.name.as_bytes()], out);
}

/// A SCSI name string (SPC-5 clause 7.7.6.11): ended by zero and padded with zeros to a multiple of four. A name that
/// does not fit the one-byte length, which no iSCSI name is long enough for, is left out.
fn push_name(code_set: u8, association: u8, parts: &[&[u8]], out: &mut ParameterList<'_>) {
    let name_bytes: usize = parts.iter().map(|part| part.len()).sum();
    let padded = (name_bytes + 1).next_multiple_of(4);
    let Ok(length) = u8::try_from(padded) else {
        return;
    };
    out.push(&[code_set, association | 8, 0, length]);
    for part in parts {
        out.push(part);
    }
    out.push_zeros(padded - name_bytes);
}

/// Extended INQUIRY Data: HEADSUP, ORDSUP and SIMPSUP (the shard keeps the order); V_SUP when there is a volatile
/// cache.
fn extended_inquiry_data(_target: &TargetView<'_>, unit: &Unit, out: &mut ParameterList<'_>) {
    const HEADSUP_ORDSUP_SIMPSUP: u8 = 0x07;
    out.push(&[0, HEADSUP_ORDSUP_SIMPSUP, u8::from(unit.write_cache_exists())]);
    out.push_zeros(60 - 3);
}

/// Mode Page Policy: every page and subpage is shared by all I_T nexuses.
fn mode_page_policy(_target: &TargetView<'_>, _unit: &Unit, out: &mut ParameterList<'_>) {
    out.push(&[0x3f, 0xff, 0, 0]);
}

/// Block Limits. Zero stands for every command that the unit does not serve.
fn block_limits(_target: &TargetView<'_>, unit: &Unit, out: &mut ParameterList<'_>) {
    // WSNZ zero: WRITE SAME of no number of blocks goes to the end.
    let compare_and_write = unit.features().contains(Features::COMPARE_AND_WRITE);
    out.push(&[0, if compare_and_write { limits::COMPARE_AND_WRITE_BLOCKS_MAX } else { 0 }]);
    out.push_u16(unit.optimal_granularity_blocks());
    out.push_u32(unit.transfer_blocks_max());
    out.push_u32(limits::TRANSFER_BYTES_OPTIMAL >> unit.block_length().shift());
    // MAXIMUM PREFETCH LENGTH: none is named.
    out.push_u32(0);
    if unit.thin_provisioned() {
        // UGAVALID; what is allocated at once starts at block 0.
        const ALIGNMENT: u32 = 1 << 31;
        out.push_u32(unit.unmap_blocks_max());
        out.push_u32(limits::UNMAP_DESCRIPTORS_MAX as u32);
        out.push_u32(unit.unmap_granularity_blocks());
        out.push_u32(ALIGNMENT);
    } else {
        out.push_zeros(16);
    }
    out.push_u64(u64::from(unit.write_same_blocks_max()));
    // Never with a boundary inside: the last two fields are zero.
    out.push_u32(unit.atomic_write_blocks_max());
    let granularity = if unit.atomic_write_blocks_max() > 0 { unit.atomic_write_granularity_blocks() } else { 1 };
    // ATOMIC ALIGNMENT and ATOMIC TRANSFER LENGTH GRANULARITY; zero: none.
    let told = if granularity > 1 { granularity } else { 0 };
    out.push_u32(told);
    out.push_u32(told);
    out.push_zeros(60 - 52);
}

/// Block Device Characteristics: not rotating; what was erased can be read (WABEREQ 01b); and FUA and SYNCHRONIZE CACHE
/// mean what SBC-4 says (FUAB).
fn block_device_characteristics(_target: &TargetView<'_>, unit: &Unit, out: &mut ParameterList<'_>) {
    const NON_ROTATING: u16 = 1;
    const FUAB: u8 = 0x02;
    out.push_u16(NON_ROTATING);
    const READS_AFTER_BLOCK_ERASE: u8 = 1 << 6;
    let erases = unit.features().contains(Features::SANITIZE);
    out.push(&[0, if erases { READS_AFTER_BLOCK_ERASE } else { 0 }, FUAB]);
    out.push_zeros(60 - 5);
}

/// Logical Block Provisioning: which commands unmap, and that unmapped blocks read as zeros. Nothing is anchored, and
/// there are no provisioning groups.
fn logical_block_provisioning(_target: &TargetView<'_>, unit: &Unit, out: &mut ParameterList<'_>) {
    const LBPU_LBPWS_LBPWS10: u8 = 0xe0;
    const LBPRZ: u8 = 1 << 2;
    const THIN: u8 = 2;
    let (flags, provisioning_type) = if unit.thin_provisioned() { (LBPU_LBPWS_LBPWS10 | LBPRZ, THIN) } else { (0, 0) };
    out.push(&[unit.threshold_exponent(), flags, provisioning_type, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, TARGET, THIN, reply, run_on, unit};
    use crate::scsi::{BlockLength, NexusUnit, UnitConfig};

    fn page(config: &UnitConfig<'_>, code: u8) -> Vec<u8> {
        reply(config, &[0x12, 1, code, 0x10, 0, 0])
    }

    #[test]
    fn the_list_of_pages_is_complete_and_true() {
        let list = page(&DISK, 0x00);
        assert_eq!(list, [0, 0, 0, 9, 0x00, 0x80, 0x83, 0x86, 0x87, 0x8f, 0xb0, 0xb1, 0xb2]);
        for code in &list[4..] {
            let data = page(&DISK, *code);
            assert_eq!(data[..2], [0, *code]);
            assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4);
        }
    }

    #[test]
    fn a_unit_that_copies_nothing_has_no_page_about_copying() {
        let plain = Unit::new(&DISK).expect("a valid description");
        let (_, list) = run_on(Some(&plain), &mut NexusUnit::default(), &[0x12, 1, 0, 0, 64, 0]);
        assert_eq!(list, [0, 0, 0, 8, 0x00, 0x80, 0x83, 0x86, 0x87, 0xb0, 0xb1, 0xb2]);
        let (action, _) = run_on(Some(&plain), &mut NexusUnit::default(), &[0x12, 1, 0x8f, 4, 0, 0]);
        assert_eq!(action, crate::scsi::fixture::invalid_field(2, None));
    }

    #[test]
    fn serial_number() {
        assert_eq!(page(&DISK, 0x80), [&[0, 0x80, 0, 32][..], b"0123456789AB4DEF8EDCBA9876543210"].concat());
    }

    #[test]
    fn designators_of_unit_port_and_device() {
        let naa = b"\x60\x24\xc5\x57\x89\xab\x4d\xef\x8e\xdc\xba\x98\x76\x54\x32\x10";
        let expected = [
            &[0x00, 0x83, 0, 204][..],
            &[0x01, 0x03, 0, 16],
            naa,
            &[0x02, 0x01, 0, 40],
            b"LUNARING0123456789AB4DEF8EDCBA9876543210",
            &[0x03, 0x08, 0, 40],
            b"naa.6024C55789AB4DEF8EDCBA9876543210\0\0\0\0",
            &[0x51, 0x94, 0, 4, 0, 0, 0, 1],
            &[0x51, 0x95, 0, 4, 0, 0, 0, 1],
            &[0x53, 0x98, 0, 40],
            b"iqn.2026-11.io.lunaring:demo,t,0x0001\0\0\0",
            &[0x53, 0xa8, 0, 32],
            b"iqn.2026-11.io.lunaring:demo\0\0\0\0",
        ]
        .concat();
        assert_eq!(page(&DISK, 0x83), expected);
    }

    /// RFC 7143 section 4.2.7.1 allows a name of 223 bytes; its port name is the longest designator.
    #[test]
    fn the_longest_name_fits_and_ends_with_zero() {
        let name = "n".repeat(223);
        let target = TargetView { name: &name, portal_group_tag: 0xbeef, ..TARGET };
        let mut buffer = [0xee; ParameterList::BYTES_MIN];
        let mut out = ParameterList::new(&mut buffer);
        out.begin(4096);
        assert!(push_page(0x83, &target, Some(&unit(&DISK)), &mut out));
        let designators = &out.bytes()[4..];
        let port_name = 20 + 44 + 44 + 8 + 8;
        assert_eq!(designators[port_name..port_name + 4], [0x53, 0x98, 0, 236]);
        assert_eq!(designators[port_name + 4 + 223..port_name + 4 + 236], *b",t,0xBEEF\0\0\0\0");
        assert_eq!(designators.len(), port_name + 240 + 4 + 224);
    }

    #[test]
    fn extended_inquiry_and_mode_page_policy() {
        let data = page(&DISK, 0x86);
        assert_eq!((data.len(), &data[4..7]), (64, &[0, 7, 1][..]));
        assert_eq!(data[7..], [0; 57]);
        assert_eq!(page(&UnitConfig { write_cache_enabled: false, ..DISK }, 0x86)[6], 0);
        assert_eq!(page(&DISK, 0x87), [0, 0x87, 0, 4, 0x3f, 0xff, 0, 0]);
    }

    #[test]
    fn limits_count_in_blocks() {
        let data = page(&DISK, 0xb0);
        assert_eq!(data.len(), 64);
        assert_eq!(data[4..16], [0, 255, 0, 8, 0, 1, 0, 0, 0, 0, 8, 0]);
        assert_eq!(data[16..36], [0; 20]);
        assert_eq!(data[36..48], [0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 16]);
        assert_eq!(data[48..], [0; 16]);
        let plain = Unit::new(&DISK).expect("a valid description");
        let (_, data) = run_on(Some(&plain), &mut NexusUnit::default(), &[0x12, 1, 0xb0, 0, 64, 0]);
        assert_eq!((data[5], &data[44..48]), (0, &[0; 4][..]), "neither comparing nor atomic writes");
        let long = UnitConfig { block_length: BlockLength::B4096, physical_block_exponent: 0, ..DISK };
        assert_eq!(page(&long, 0xb0)[4..16], [0, 255, 0, 1, 0, 0, 0x20, 0, 0, 0, 1, 0]);
        assert_eq!(page(&long, 0xb0)[36..44], [0, 0, 0, 0, 0, 1, 0, 0]);
        let thin = UnitConfig { thin_provisioned: true, unmap_granularity_blocks: 512, ..long };
        let unmap = [0, 0x10, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0x80, 0, 0, 0];
        assert_eq!(page(&thin, 0xb0)[20..36], unmap);
    }

    #[test]
    fn characteristics_and_provisioning() {
        let data = page(&DISK, 0xb1);
        assert_eq!((data.len(), &data[4..9]), (64, &[0, 1, 0, 0x40, 2][..]));
        assert_eq!(data[9..], [0; 55]);
        assert_eq!(page(&DISK, 0xb2), [0, 0xb2, 0, 4, 0, 0, 0, 0]);
        assert_eq!(page(&THIN, 0xb2), [0, 0xb2, 0, 4, 11, 0xe4, 2, 0]);
    }
}
