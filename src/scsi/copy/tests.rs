//! The engine of copy offload against the tables of the standards.

use super::extended::{CopyFault, Length};
use super::tokens::disk_of;
use super::*;
use crate::limits::{COPY_SEGMENT_BYTES_MAX, TOKEN_BYTES_MAX, TOKENS_PER_DISK_MAX};
use crate::scsi::Action;
use crate::scsi::fixture::{DISK, THIN, invalid_field, refused, reply, run, unit};
use crate::scsi::parameter_list::ParameterList;
use crate::scsi::sense::{Outcome, Sense, SenseCode, SenseFormat, Status};
use crate::scsi::unit::{BlockLength, Unit, UnitConfig};

/// A CSCD descriptor with this unit's NAA identifier.
fn cscd(unit: &Unit) -> Vec<u8> {
    let mut descriptor = vec![0xe4, 0, 0, 0, 1, 3, 0, 16];
    descriptor.extend(unit.naa_identifier());
    descriptor.extend([0; 4]);
    descriptor.extend(unit.block_length().bytes().to_be_bytes());
    descriptor
}

fn blocks(flags: u8, from: u16, to: u16, count: u16, source: u64, destination: u64) -> Vec<u8> {
    let mut descriptor = vec![0x02, flags, 0, 0x18];
    descriptor.extend(from.to_be_bytes());
    descriptor.extend(to.to_be_bytes());
    descriptor.extend([0, 0]);
    descriptor.extend(count.to_be_bytes());
    descriptor.extend(source.to_be_bytes());
    descriptor.extend(destination.to_be_bytes());
    descriptor
}

fn bytes(count: u32, source: (u64, u16), destination: (u64, u16)) -> Vec<u8> {
    let mut descriptor = vec![0x0a, 0, 0, 0x1c, 0, 0, 0, 1];
    descriptor.extend(count.to_be_bytes());
    descriptor.extend(source.0.to_be_bytes());
    descriptor.extend(destination.0.to_be_bytes());
    descriptor.extend(source.1.to_be_bytes());
    descriptor.extend(destination.1.to_be_bytes());
    descriptor
}

fn lid1(identifier: u8, flags: u8, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut list = vec![identifier, flags];
    list.extend((cscds.len() as u16).to_be_bytes());
    list.extend([0; 4]);
    list.extend((segments.len() as u32).to_be_bytes());
    list.extend([0; 4]);
    [list, cscds, segments].concat()
}

fn lid4(identifier: u32, flags: u8, immed: u8, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut list = vec![1, flags, 0, 0x20];
    list.extend([0; 11]);
    list.extend([immed, 0xff, 0, 0, 0]);
    list.extend(identifier.to_be_bytes());
    list.extend([0; 18]);
    list.extend((cscds.len() as u16).to_be_bytes());
    list.extend((segments.len() as u16).to_be_bytes());
    list.extend([0; 2]);
    [list, cscds, segments].concat()
}

fn other() -> UnitConfig<'static> {
    UnitConfig { disk_uuid: [7; 16], block_length: BlockLength::B4096, capacity_blocks: 1000, ..DISK }
}

fn invalid(byte: u16, bit: Option<u8>) -> Sense {
    Sense::invalid_field_in_list(byte, bit)
}

#[test]
fn the_commands_ask_for_their_lists() {
    let cdb = |action: u8, identifier: [u8; 4], len: u32| {
        let [a, b, c, d] = len.to_be_bytes();
        let [i, j, k, l] = identifier;
        vec![0x83, action, 0, 0, 0, 0, i, j, k, l, a, b, c, d, 0, 0]
    };
    let out = |what, list_identifier, list_bytes| Action::CopyOut { what, list_identifier, list_bytes };
    assert_eq!(run(&DISK, &cdb(0x00, [0; 4], 76)), out(CopyOut::ExtendedCopyLid1, 0, 76));
    assert_eq!(run(&DISK, &cdb(0x01, [0; 4], 0x4000)), out(CopyOut::ExtendedCopyLid4, 0, 0x4000));
    assert_eq!(run(&DISK, &cdb(0x10, [1, 2, 3, 4], 32)), out(CopyOut::PopulateToken, 0x0102_0304, 32));
    assert_eq!(run(&DISK, &cdb(0x11, [0xff; 4], 552)), out(CopyOut::WriteUsingToken, u32::MAX, 552));
    for action in [0x00, 0x01, 0x10, 0x11] {
        assert_eq!(run(&DISK, &cdb(action, [0; 4], 0)), Action::Done(Outcome::GOOD), "no list is no error");
        let long = refused(SenseCode::PARAMETER_LIST_LENGTH_ERROR);
        assert_eq!(run(&DISK, &cdb(action, [0; 4], 0x4001)), long);
    }
    assert_eq!(run(&DISK, &cdb(0x00, [0, 0, 0, 1], 76)), invalid_field(9, Some(0)), "reserved there");
    let abort = [0x83, 0x1c, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(run(&DISK, &abort), Action::CopyAbort { list_identifier: 0xdead_beef });
    let receive = |action: u8| [0x84, action, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
    let told = |what, list_identifier| Action::CopyIn { what, list_identifier, allocation_length: 512 };
    assert_eq!(run(&DISK, &receive(0x05)), told(CopyIn::StatusLid4, 0x0102_0304));
    assert_eq!(run(&DISK, &receive(0x07)), told(CopyIn::TokenInformation, 0x0102_0304));
    let receive = |action: u8| [0x84, action, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
    assert_eq!(run(&DISK, &receive(0x00)), told(CopyIn::StatusLid1, 9));
    assert_eq!(run(&DISK, &receive(0x04)), told(CopyIn::FailureDetailsLid1, 9));
    assert_eq!(run(&DISK, &receive(0x01)), invalid_field(1, Some(4)), "RECEIVE COPY DATA");
}

#[test]
fn both_forms_of_extended_copy_say_the_same() {
    let (a, b) = (unit(&DISK), unit(&other()));
    let cscds = [cscd(&a), cscd(&b)];
    let segments = [blocks(0, 0, 1, 8, 5, 6), vec![7, 0, 0, 8, 0, 1, 0, 0, 1, 0, 0, 0], bytes(4096, (9, 512), (3, 0))];
    let first = lid1(0x44, 0x10, &cscds, &segments);
    let second = lid4(0x1234_5678, 0x00, 3, &cscds, &segments);
    let parsed = [ExtendedCopy::parse_lid1(&first), ExtendedCopy::parse_lid4(&second)].map(|copy| copy.expect("valid"));
    assert_eq!((parsed[0].list_identifier, parsed[0].usage, parsed[0].immed), (0x44, ListIdUsage::Discard, false));
    assert_eq!((parsed[1].list_identifier, parsed[1].usage, parsed[1].immed), (0x1234_5678, ListIdUsage::Hold, true));
    for (copy, header) in parsed.iter().zip([16, 48]) {
        let segments: Vec<Segment> = copy.segments().collect();
        assert_eq!(copy.segment_count(), 3);
        let expected = SegmentKind::Copy {
            source: 0,
            destination: 1,
            length: Length::SourceBlocks(8),
            source_lba: 5,
            destination_lba: 6,
            source_offset: 0,
            destination_offset: 0,
        };
        assert_eq!(segments[0], Segment { number: 0, at: header + 64, kind: expected });
        assert_eq!(segments[1].kind, SegmentKind::Verify { cscd: 1, test_unit_ready: true });
        assert_eq!((segments[1].at, segments[2].at), (header + 64 + 28, header + 64 + 40));
        let placement = segments[0].kind.placement(segments[0].at, &a, &b);
        assert_eq!(placement, Ok(Placement { source_bytes: 5 * 512, destination_bytes: 6 * 4096, len_bytes: 4096 }));
        let placement = segments[2].kind.placement(segments[2].at, &a, &b);
        assert_eq!(placement, Ok(Placement { source_bytes: 10 * 512, destination_bytes: 3 * 4096, len_bytes: 4096 }));
        assert!(copy.cscd(0).expect("there").names(&a) && !copy.cscd(0).expect("there").names(&b));
        assert!(copy.cscd(1).expect("there").names(&b));
        assert_eq!(copy.cscd(0xffff), Ok(Cscd::Addressed));
        assert_eq!(copy.cscd(2), Err(CopyFault::new(SenseCode::COPY_TARGET_DEVICE_NOT_REACHABLE)));
    }
}

#[test]
fn what_is_wrong_in_a_list_is_told() {
    let a = unit(&DISK);
    let good = lid1(1, 0, &[cscd(&a)], &[blocks(0, 0, 0, 1, 0, 1)]);
    let error = |list: &[u8]| ExtendedCopy::parse_lid1(list).expect_err("refused");
    let length = Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR);
    for len in 0..good.len() {
        assert_eq!(error(&good[..len]), length, "{len}");
    }
    let with = |at: usize, byte: u8| {
        let mut list = good.clone();
        list[at] = byte;
        list
    };
    assert_eq!(error(&with(1, 0x08)), invalid(1, Some(4)), "LIST ID USAGE 01b");
    assert_eq!(error(&with(1, 0x18)), invalid(0, None), "an identifier that is not used");
    assert_eq!(error(&with(1, 0x80)), invalid(1, Some(7)));
    assert_eq!(error(&with(6, 1)), invalid(6, None));
    assert_eq!(error(&with(15, 1)), Sense::new(SenseCode::INLINE_DATA_LENGTH_EXCEEDED));
    assert_eq!(error(&with(3, 31)), length);
    assert_eq!(error(&with(16, 0xe0)), Sense::new(SenseCode::UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE));
    assert!(ExtendedCopy::parse_lid1(&with(17, 0xc0)).is_ok(), "LU ID TYPE");
    assert_eq!(error(&with(23, 21)), invalid(23, None), "a designator that does not fit");
    assert_eq!(error(&with(48, 3)), Sense::new(SenseCode::UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE));
    assert_eq!(error(&with(51, 0x14)), invalid(50, None));
    let many =
        |cscds: usize, segments: usize| lid1(1, 0, &vec![cscd(&a); cscds], &vec![blocks(0, 0, 0, 1, 0, 1); segments]);
    assert!(ExtendedCopy::parse_lid1(&many(32, 256)).is_ok());
    assert!(ExtendedCopy::parse_lid1(&many(64, 200)).is_ok());
    assert_eq!(error(&many(64, 256)), length, "MAXIMUM DESCRIPTOR LIST LENGTH");
    assert_eq!(error(&many(65, 1)), Sense::new(SenseCode::TOO_MANY_TARGET_DESCRIPTORS));
    assert_eq!(error(&many(1, 257)), Sense::new(SenseCode::TOO_MANY_SEGMENT_DESCRIPTORS));

    let good = lid4(1, 0, 0, &[cscd(&a)], &[blocks(0, 0, 0, 1, 0, 1)]);
    let error = |at: usize, byte: u8| {
        let mut list = good.clone();
        list[at] = byte;
        ExtendedCopy::parse_lid4(&list).expect_err("refused")
    };
    assert_eq!(error(0, 2), invalid(0, None));
    assert_eq!(error(3, 0), invalid(2, None));
    assert_eq!(error(9, 1), invalid(9, None));
    assert_eq!(error(15, 4), invalid(15, None));
    assert_eq!(error(16, 0xe4), invalid(16, None));
    assert_eq!(error(41, 1), invalid(41, None));
    assert_eq!(error(1, 0x18), invalid(20, None));
    assert_eq!(error(47, 1), Sense::new(SenseCode::INLINE_DATA_LENGTH_EXCEEDED));
}

#[test]
fn units_that_a_segment_cannot_use_end_the_copy() {
    let a = unit(&DISK);
    let with = |at: usize, byte: u8| {
        let mut list = lid1(1, 0, &[cscd(&a)], &[blocks(0, 0, 0, 1, 0, 1)]);
        list[at] = byte;
        list
    };
    let fault = |list: &[u8]| {
        let copy = ExtendedCopy::parse_lid1(list).expect("well formed");
        copy.cscd(0).map(|cscd| cscd.names(&a)).map_err(|fault| fault.sense(0, None))
    };
    let reach = Sense::new(SenseCode::COPY_TARGET_DEVICE_NOT_REACHABLE).with_segment(0, None, Some(16));
    assert_eq!(fault(&with(17, 0x20)), Err(reach), "NUL");
    let kind = Sense::new(SenseCode::INCORRECT_COPY_TARGET_DEVICE_TYPE).with_segment(0, None, Some(16));
    assert_eq!(fault(&with(17, 0x03)), Err(kind));
    assert_eq!(fault(&with(17, 0x00)), Ok(true));
    for (at, byte) in [(20, 2), (21, 0x13), (21, 1), (23, 15), (24, 0x61), (39, 0x11)] {
        assert_eq!(fault(&with(at, byte)), Ok(false), "byte {at}");
    }
    let list = with(46, 0x10);
    let cscd = ExtendedCopy::parse_lid1(&list).expect("well formed").cscd(0).expect("there");
    assert_eq!(cscd.check_block_length(&a), Err(invalid(16 + 29, None)), "another block length");
}

#[test]
fn segments_lie_on_both_units_and_are_whole_blocks() {
    let (short, long) = (unit(&DISK), unit(&other()));
    let place = |descriptor: Vec<u8>, from: &Unit, to: &Unit| {
        let list = lid1(1, 0, &[], &[descriptor]);
        let segment = ExtendedCopy::parse_lid1(&list).expect("well formed").segments().next().expect("one");
        segment.kind.placement(segment.at, from, to).map_err(|fault| fault.sense(segment.number, Some(5)))
    };
    let ended = |byte| Err(Sense::new(SenseCode::COPY_ENDED).with_segment(0, Some(5), Some(byte)));
    let at = |source_bytes, destination_bytes, len_bytes| Ok(Placement { source_bytes, destination_bytes, len_bytes });
    let last = short.capacity_blocks();
    assert_eq!(place(blocks(0, 0, 0, 2, last - 2, 0), &short, &short), at((last - 2) * 512, 0, 1024));
    assert_eq!(place(blocks(0, 0, 0, 2, last - 1, 0), &short, &short), ended(16 + 12));
    assert_eq!(place(blocks(0, 0, 0, 2, 0, last - 1), &short, &short), ended(16 + 20));
    assert_eq!(place(blocks(0, 0, 0, 1, u64::MAX, 0), &short, &short), ended(16 + 12));
    assert_eq!(place(blocks(0, 0, 0, 0, last, 0), &short, &short), at(last * 512, 0, 0));
    assert_eq!(place(blocks(2, 0, 0, 2, 0, 0), &short, &long), at(0, 0, 8192), "DC");
    assert_eq!(place(blocks(0, 0, 0, 2, 0, 0), &long, &short), at(0, 0, 8192));
    let inexact = Sense::new(SenseCode::UNEXPECTED_INEXACT_SEGMENT).with_segment(0, Some(5), None);
    assert_eq!(place(blocks(0, 0, 0, 9, 0, 0), &short, &long), Err(inexact));
    assert_eq!(place(bytes(513, (0, 0), (0, 0)), &short, &short), Err(inexact));
    let granularity = Sense::new(SenseCode::COPY_SEGMENT_GRANULARITY_VIOLATION).with_segment(0, Some(5), None);
    assert_eq!(place(bytes(512, (0, 1), (0, 0)), &short, &short), Err(granularity));
    assert_eq!(place(bytes(4096, (0, 0), (0, 512)), &short, &long), Err(granularity));
    assert_eq!(place(bytes(COPY_SEGMENT_BYTES_MAX, (0, 0), (0, 0)), &short, &short), at(0, 0, 32 << 20));
    let long_one = bytes(COPY_SEGMENT_BYTES_MAX + 512, (0, 0), (0, 0));
    assert_eq!(place(long_one, &short, &short), Err(invalid(16 + 8, None)));
}

fn range_list(header: &[u8], ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = header.to_vec();
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    let data_length = (list.len() - 2) as u16;
    list[0..2].copy_from_slice(&data_length.to_be_bytes());
    let at = header.len();
    list[at - 2..at].copy_from_slice(&((ranges.len() * 16) as u16).to_be_bytes());
    list
}

fn populate(flags: u8, timeout: u32, rod_type: u32, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut header = vec![0, 0, flags, 0];
    header.extend(timeout.to_be_bytes());
    header.extend(rod_type.to_be_bytes());
    header.extend([0; 4]);
    range_list(&header, ranges)
}

fn write_using(flags: u8, offset: u64, token: &[u8; TOKEN_BYTES], ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut header = vec![0, 0, flags, 0, 0, 0, 0, 0];
    header.extend(offset.to_be_bytes());
    header.extend(token);
    header.extend([0; 8]);
    range_list(&header, ranges)
}

#[test]
fn populate_token_names_ranges_and_a_type() {
    let disk = unit(&DISK);
    let parse = |list: &[u8]| {
        PopulateToken::parse(list, &disk).map(|asked| (asked.timeout_s, asked.ranges.in_bytes().collect::<Vec<_>>()))
    };
    assert_eq!(parse(&populate(0, 0, 99, &[(5, 3), (0, 0), (20, 1)])), Ok((60, vec![(2560, 1536), (10_240, 512)])));
    for rod_type in [0x0080_0000, 0x0080_0001, 0x0080_ffff] {
        assert_eq!(parse(&populate(2, 900, rod_type, &[(0, 1)])), Ok((900, vec![(0, 512)])));
    }
    for rod_type in [0x0001_0000, 0x0080_0002, 0xffff_0001, 0] {
        assert_eq!(parse(&populate(2, 0, rod_type, &[(0, 1)])), Err(invalid(8, None)), "{rod_type:x}");
    }
    assert_eq!(parse(&populate(0, 901, 0, &[(0, 1)])), Err(invalid(4, None)));
    assert_eq!(parse(&populate(0, 0, 0, &[])), Err(invalid(0, None)), "a data length below 30");
    let mut none = populate(0, 0, 0, &[(0, 1)]);
    none[15] = 15;
    assert_eq!(parse(&none), Err(invalid(14, None)));
    let length = Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
    assert_eq!(parse(&none[..15]), length);
    assert_eq!(parse(&populate(0, 0, 0, &[(0, 1), (9, 1)])[..47]), Ok((60, vec![(0, 512)])), "cut off, and ignored");
    let outside = |lba| Err(Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE).with_information(lba));
    assert_eq!(parse(&populate(0, 0, 0, &[(0x13f_ffff, 2)])), outside(0x140_0000));
    assert_eq!(parse(&populate(0, 0, 0, &[(u64::MAX, 1)])), outside(u64::MAX));
    assert_eq!(parse(&populate(0, 0, 0, &[(5, 5), (20, 5), (9, 2)])), Err(invalid(48, None)), "a block twice");
    let most = (TOKEN_BYTES_MAX / 512) as u32;
    assert!(parse(&populate(0, 0, 0, &[(0, most)])).is_ok());
    assert_eq!(parse(&populate(0, 0, 0, &[(0, most), (u64::from(most), 1)])), Err(invalid(16 + 16 + 8, None)));
    let ranges: Vec<(u64, u32)> = (0..65).map(|n| (n, 1)).collect();
    assert!(parse(&populate(0, 0, 0, &ranges[..64])).is_ok());
    assert_eq!(parse(&populate(0, 0, 0, &ranges)), Err(Sense::new(SenseCode::TOO_MANY_SEGMENT_DESCRIPTORS)));
}

#[test]
fn write_using_token_counts_in_its_own_blocks() {
    let disk = unit(&other());
    let token = [3; TOKEN_BYTES];
    let list = write_using(3, 2, &token, &[(7, 2)]);
    let asked = WriteUsingToken::parse(&list, &disk).expect("valid");
    assert_eq!((asked.immed, asked.delete, asked.offset_bytes, *asked.token), (true, true, 8192, token));
    assert_eq!(asked.ranges.in_bytes().collect::<Vec<_>>(), [(7 * 4096, 8192)]);
    let error = |list: &[u8]| WriteUsingToken::parse(list, &disk).map(|_| ()).expect_err("refused");
    assert_eq!(error(&list[..535]), Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
    assert_eq!(error(&write_using(0, u64::MAX, &token, &[(7, 2)])), invalid(8, None));
    assert_eq!(error(&write_using(0, 0, &token, &[])), invalid(0, None));
    let mut list = list;
    list[535] = 8;
    assert_eq!(error(&list), invalid(534, None));
}

fn new_token<'a>(unit: &'a Unit, secret: u8) -> NewToken<'a> {
    NewToken { unit, disk: 0x17, target: "iqn.2026-11.io.lunaring:demo", timeout_s: 10, secret: [secret; 32] }
}

/// The token's fields as SPC-4 tables 111 and 112 and SBC-4 table 287 have them.
#[test]
fn a_token_has_the_form_of_the_standard() {
    let disk = unit(&THIN);
    let table = TokenTable::default();
    let token = table.create(&new_token(&disk, 0xa5), [(0, 512), (4096, 1024)].into_iter(), 0).expect("a token");
    assert_eq!(token[..8], [0, 0x80, 0, 1, 0, 0, 1, 0xf8]);
    let TokenKind::Made { identifier } = TokenKind::of(&token).expect("one of ours") else { panic!("not zeros") };
    assert_eq!((disk_of(identifier), &token[8..16]), (0x17, &identifier.to_be_bytes()[..]));
    assert_eq!(token[16..24], [0xe4, 0, 0, 0, 1, 3, 0, 16]);
    assert_eq!(token[24..40], disk.naa_identifier());
    assert_eq!(token[40..48], [0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(token[48..64], 1536u128.to_be_bytes());
    assert_eq!(token[64..96], [0; 32]);
    assert_eq!(token[96..104], [0, 0, 2, 0, 0, 3, 0xc0, 0]);
    assert_eq!(token[128..132], [0x53, 0xa8, 0, 32]);
    assert_eq!(token[132..164], *b"iqn.2026-11.io.lunaring:demo\0\0\0\0");
    assert_eq!(token[480..], [0xa5; 32]);

    let mut zero = [0; TOKEN_BYTES];
    zero[..8].copy_from_slice(&[0xff, 0xff, 0, 1, 0, 0, 1, 0xf8]);
    assert_eq!(TokenKind::of(&zero), Ok(TokenKind::Zero));
    zero[7] = 0xf7;
    assert_eq!(TokenKind::of(&zero), Err(Sense::new(SenseCode::INVALID_TOKEN_LENGTH)));
    let mut strange = token;
    strange[3] = 2;
    assert_eq!(TokenKind::of(&strange), Err(Sense::new(SenseCode::INVALID_TOKEN_UNSUPPORTED_TYPE)));
}

fn identifier_of(token: &[u8; TOKEN_BYTES]) -> u64 {
    match TokenKind::of(token) {
        Ok(TokenKind::Made { identifier }) => identifier,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_is_good_until_its_data_changes_or_nobody_wants_it() {
    let disk = unit(&DISK);
    let table = TokenTable::default();
    let resolve = |token: &[u8; TOKEN_BYTES], now_ms| {
        table.resolve(token, identifier_of(token), now_ms).map(|(_, ranges)| ranges.as_slice().to_vec())
    };
    let why = |code| Err(Sense::new(code));
    let ranges = vec![(1000, 100), (5000, 100)];
    let make = |secret| table.create(&new_token(&disk, secret), ranges.clone().into_iter(), 1000).expect("a token");
    let token = make(1);
    assert_eq!(table.valid_count(), 1);
    assert_eq!(resolve(&token, 11_000), Ok(ranges.clone()), "idle for ten seconds");
    assert_eq!(resolve(&token, 21_000), Ok(ranges.clone()), "and used again");
    assert_eq!(resolve(&token, 31_001), why(SenseCode::INVALID_TOKEN_EXPIRED));
    assert_eq!((table.valid_count(), resolve(&token, 31_001)), (0, why(SenseCode::INVALID_TOKEN_EXPIRED)));

    let token = make(2);
    for (start, len) in [(0, 1000), (1100, 3900), (5100, 9000)] {
        table.revoke_written(start, len, 1000);
        assert_eq!(resolve(&token, 1000), Ok(ranges.clone()), "{start}+{len} is not of it");
    }
    table.revoke_written(5099, 1, 1000);
    assert_eq!((table.valid_count(), resolve(&token, 1000)), (0, why(SenseCode::INVALID_TOKEN_REVOKED)));

    let token = make(3);
    let (key, _) = table.resolve(&token, identifier_of(&token), 1000).expect("valid");
    assert_eq!(table.use_again(key, 1000), Ok(()));
    table.delete(key);
    assert_eq!(resolve(&token, 1000), why(SenseCode::INVALID_TOKEN_DELETED));
    assert_eq!(table.use_again(key, 1000), Err(Sense::new(SenseCode::INVALID_TOKEN_DELETED)));

    let tokens: Vec<_> = (0..TOKENS_PER_DISK_MAX).map(|n| make(n as u8)).collect();
    let (first, _) = table.resolve(&tokens[0], identifier_of(&tokens[0]), 1001).expect("valid");
    make(9);
    assert_eq!(table.valid_count() as usize, TOKENS_PER_DISK_MAX);
    let left = tokens.iter().filter(|token| resolve(token, 1001).is_ok()).count();
    assert_eq!((left, table.use_again(first, 1001)), (TOKENS_PER_DISK_MAX - 1, Ok(())), "not the one in use");
    table.revoke_all();
    assert_eq!((table.valid_count(), resolve(&tokens[5], 1000)), (0, why(SenseCode::INVALID_TOKEN_REVOKED)));
}

#[test]
fn nobody_makes_a_token_up() {
    let disk = unit(&DISK);
    let table = TokenTable::default();
    let token = table.create(&new_token(&disk, 1), [(0, 512)].into_iter(), 0).expect("a token");
    for bit in 0..TOKEN_BYTES * 8 {
        let mut forged = token;
        forged[bit / 8] ^= 1 << (bit % 8);
        let found = TokenKind::of(&forged).map(|kind| match kind {
            TokenKind::Made { identifier } => table.resolve(&forged, identifier, 0).map(|_| ()),
            TokenKind::Zero => Ok(()),
        });
        assert!(!matches!(found, Ok(Ok(()))), "bit {bit}");
    }
    let empty = TokenTable::default();
    let unknown = Sense::new(SenseCode::INVALID_TOKEN_UNKNOWN);
    assert_eq!(empty.resolve(&token, identifier_of(&token), 0).map(|_| ()), Err(unknown));
}

fn told(status: &CopyStatus, reply: CopyIn, token: Option<&[u8; TOKEN_BYTES]>) -> Result<Vec<u8>, Sense> {
    let mut buffer = [0xee; CopyStatus::REPLY_BYTES_MAX];
    let mut out = ParameterList::new(&mut buffer);
    status.report(reply, token, 1024, SenseFormat::Fixed, &mut out).map(|()| out.bytes().to_vec())
}

#[test]
fn extended_copy_tells_where_it_is() {
    let mut status = CopyStatus::new(CopyOut::ExtendedCopyLid1, false, 9);
    status.transferred_bytes = 0x0102_0304;
    status.segments = 5;
    assert_eq!(told(&status, CopyIn::StatusLid1, None), Ok(vec![0, 0, 0, 8, 0, 0, 5, 0, 1, 2, 3, 4]));
    assert!(told(&status, CopyIn::FailureDetailsLid1, None).is_err(), "not while it runs");
    status.state = CopyState::Done(Outcome::GOOD);
    status.transferred_bytes = 5 << 30;
    assert_eq!(told(&status, CopyIn::StatusLid1, None), Ok(vec![0, 0, 0, 8, 1, 0, 5, 1, 0, 0x50, 0, 0]));
    assert_eq!(told(&status, CopyIn::FailureDetailsLid1, None), Ok(vec![0; 4]));
    let sense = Sense::new(SenseCode::THIRD_PARTY_DEVICE_FAILURE).with_segment(4, Some(7), None);
    status.state = CopyState::Done(sense.into());
    assert_eq!(told(&status, CopyIn::StatusLid1, None).expect("told")[4], 2);
    let details = told(&status, CopyIn::FailureDetailsLid1, None).expect("told");
    let expected = [&[0, 0, 0, 74][..], &[0; 52], &[2, 0, 0, 18], &sense.encode(SenseFormat::Fixed)].concat();
    assert_eq!(details, expected);
    let header = told(&status, CopyIn::StatusLid4, None).expect("told");
    let expected = [
        &[0, 0, 0, 48, 0x00, 0x02, 0, 0, 0xff, 0xff, 0xff, 0xfe, 2, 20, 18, 0x00][..],
        &(5u64 << 30).to_be_bytes(),
        &[0, 5, 0, 0, 0, 0, 0, 0],
        &sense.encode(SenseFormat::Fixed),
        &[0, 0],
    ];
    assert_eq!(header, expected.concat());
    status.state = CopyState::Terminated;
    let header = told(&status, CopyIn::StatusLid4, None).expect("told");
    assert_eq!((header[5], header[12], header[14]), (0x60, Status::TASK_ABORTED.0, 0));
}

#[test]
fn token_commands_tell_blocks_and_the_token() {
    let token = [0x5a; TOKEN_BYTES];
    let mut status = CopyStatus::new(CopyOut::PopulateToken, false, 12);
    status.transferred_bytes = 8192;
    let running = told(&status, CopyIn::TokenInformation, Some(&token)).expect("told");
    assert_eq!((running[5], running.len(), &running[32..]), (0x11, 36, &[0; 4][..]));
    status.state = CopyState::Done(Outcome::GOOD);
    let done = told(&status, CopyIn::TokenInformation, Some(&token)).expect("told");
    let expected = [
        &[0, 0, 0x02, 0x22, 0x10, 0x01, 0, 0, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0xf1][..],
        &[0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 2, 2, 0, 0],
        &token,
    ];
    assert_eq!(done, expected.concat());
    let mut status = CopyStatus::new(CopyOut::WriteUsingToken, true, 9);
    assert_eq!(told(&status, CopyIn::StatusLid4, None).expect("told")[4..6], [0x11, 0x12]);
    status.state = CopyState::Short;
    assert_eq!(told(&status, CopyIn::TokenInformation, None).expect("told")[4..6], [0x11, 0x03]);
}

/// The page descriptor by descriptor, each as its table has it.
#[test]
fn page_8f_has_every_mandatory_descriptor() {
    let page = reply(&DISK, &[0x12, 1, 0x8f, 4, 0, 0]);
    assert_eq!(page[..2], [0, 0x8f]);
    assert_eq!(usize::from(be16(&page, 2)), page.len() - 4);
    let (mut at, mut descriptors) = (4, vec![]);
    while at < page.len() {
        let end = at + 4 + usize::from(be16(&page, at + 2));
        descriptors.push((be16(&page, at), &page[at + 4..end]));
        at = end;
    }
    let codes: Vec<u16> = descriptors.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [0x0000, 0x0001, 0x0004, 0x0008, 0x000c, 0x0106, 0x0108, 0x8001]);
    let of = |code: u16| descriptors.iter().find(|(other, _)| *other == code).expect("there").1;
    let limits = [
        &[0; 6][..],
        &[0, 64],
        &900u32.to_be_bytes(),
        &60u32.to_be_bytes(),
        &(2u64 << 20).to_be_bytes(),
        &(128u64 << 10).to_be_bytes(),
    ];
    assert_eq!(of(0x0000), limits.concat());
    let commands = [14, 0x83, 5, 0, 1, 0x10, 0x11, 0x1c, 0x84, 5, 0, 3, 4, 5, 7];
    assert_eq!(of(0x0001), [&commands[..], &[0]].concat());
    let parameters = [&[0; 4][..], &[0, 64, 1, 0], &8192u32.to_be_bytes(), &[0; 16]].concat();
    assert_eq!(of(0x0004), parameters);
    assert_eq!(of(0x0008), [4, 0x02, 0x07, 0x0a, 0xe4, 0, 0, 0]);
    assert_eq!(of(0x000c), [0, 2, 0xff, 0xff]);
    let features = of(0x0106);
    assert_eq!((features.len(), be16(features, 42)), (44 + 48, 48));
    assert_eq!(features[44..52], [0, 0, 0, 0x2c, 0, 0, 0, 8]);
    assert_eq!(be64(features, 52), TOKEN_BYTES_MAX);
    let types = of(0x0108);
    assert_eq!((types.len(), be16(types, 2)), (4 + 256, 256));
    let listed: Vec<(u32, u8)> = types[4..].chunks_exact(64).map(|rod| (be32(rod, 0), rod[4])).collect();
    assert_eq!(listed, [(0x0080_0000, 1), (0x0080_0001, 3), (0x0080_ffff, 1), (0xffff_0001, 2)]);
    let general = of(0x8001);
    assert_eq!((general.len(), be32(general, 0), be32(general, 8), general[12]), (32, 8, 32 << 20, 9));
}

#[test]
fn operating_parameters_are_those_of_the_page() {
    let data = reply(&DISK, &[0x84, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    let expected = [
        &[0, 0, 0, 44, 1, 0, 0, 0, 0, 64, 1, 0][..],
        &8192u32.to_be_bytes(),
        &(32u32 << 20).to_be_bytes(),
        &[0; 12],
        &[0, 0, 0, 8, 8, 9, 0, 0, 0, 0, 0, 4, 0x02, 0x07, 0x0a, 0xe4],
    ];
    assert_eq!(data, expected.concat());
}

/// Whatever the bytes are, nothing panics, and what is accepted lies on the units.
#[test]
fn half_a_million_mutated_lists_are_refused_or_on_the_disk() {
    let (a, b) = (unit(&DISK), unit(&other()));
    let cscds = [cscd(&a), cscd(&b)];
    let segments = [blocks(2, 0, 1, 8, 5, 6), bytes(4096, (9, 512), (3, 0)), vec![7, 0, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0]];
    let seeds = [
        lid1(1, 0, &cscds, &segments),
        lid4(1, 0, 1, &cscds, &segments),
        populate(2, 5, 0x0080_0001, &[(0, 9), (100, 1000)]),
        write_using(1, 1, &[0; TOKEN_BYTES], &[(0, 9), (100, 1000)]),
    ];
    let mut state = 0x6c75_6e61_7269_6e67u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut accepted = [0u32; 4];
    for round in 0..500_000 {
        let seed = round % seeds.len();
        let mut list = seeds[seed].clone();
        for _ in 0..random() % 4 {
            let at = random() as usize % list.len();
            list[at] = [0, 1, 0xff, random() as u8][random() as usize % 4];
        }
        if random() % 4 == 0 {
            list.truncate(random() as usize % (list.len() + 1));
        }
        let copy = match seed {
            0 => ExtendedCopy::parse_lid1(&list),
            1 => ExtendedCopy::parse_lid4(&list),
            2 => {
                if let Ok(asked) = PopulateToken::parse(&list, &a) {
                    accepted[2] += 1;
                    check_ranges(&asked.ranges, &a);
                }
                continue;
            }
            _ => {
                if let Ok(asked) = WriteUsingToken::parse(&list, &b) {
                    accepted[3] += 1;
                    let _ = TokenKind::of(asked.token);
                    check_ranges(&asked.ranges, &b);
                }
                continue;
            }
        };
        let Ok(copy) = copy else { continue };
        accepted[seed] += 1;
        for segment in copy.segments() {
            let SegmentKind::Copy { source, destination, .. } = segment.kind else { continue };
            let _ = (copy.cscd(source).map(|cscd| cscd.names(&a)), copy.cscd(destination));
            if let Ok(placement) = segment.kind.placement(segment.at, &a, &b) {
                assert!(placement.source_bytes + placement.len_bytes <= a.capacity_blocks() << 9);
                assert!(placement.destination_bytes + placement.len_bytes <= b.capacity_blocks() << 12);
                assert_eq!((placement.source_bytes % 512, placement.destination_bytes % 4096), (0, 0));
            }
        }
    }
    assert!(accepted.iter().all(|count| *count > 1000), "{accepted:?}");
}

fn check_ranges(ranges: &Ranges<'_>, unit: &Unit) {
    let size_bytes = unit.capacity_blocks() << unit.block_length().shift();
    let mut total = 0;
    for (start, len) in ranges.in_bytes() {
        assert!(len > 0 && start + len <= size_bytes);
        total += len;
    }
    assert_eq!(total, ranges.len_bytes());
    assert!(total <= TOKEN_BYTES_MAX);
}
