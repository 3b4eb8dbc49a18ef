//! What a check says: each broken rule with its place and section, all of them, and never more than is useful.

use lunaring::crc32c::crc32c;
use lunaring::vhdx::format::ITEM_PARENT_LOCATOR;
use lunaring::vhdx::{CheckReport, FINDINGS_PER_KIND_MAX, LogFacts, ParentLocator, Severity, VhdxParent, check};

use crate::hand::{PARENT, child, child_options, dynamic, entry_at, geometry, locator, made, put_block, put_sector};
use crate::vhdx_support::{MIB, SparseFile};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const LOG: u64 = MIB;
const METADATA: u64 = 2 * MIB;
const BAT: u64 = 3 * MIB;

fn report_of(file: &SparseFile) -> CheckReport {
    check(&mut file.clone()).expect("a file in memory can be read")
}

pub fn reseal(file: &mut SparseFile, offset: u64, len: usize) {
    let mut content = vec![0; len];
    file.read(offset, &mut content);
    content[4..8].fill(0);
    file.write(offset + 4, &crc32c(&content).to_le_bytes());
}

/// The findings have exactly these severities, sections, places and words, in this order.
fn assert_findings(report: &CheckReport, expected: &[(Severity, &str, u64, &str)]) {
    let listed: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    for (at, (severity, section, offset_bytes, words)) in expected.iter().enumerate() {
        let finding =
            report.findings.get(at).unwrap_or_else(|| panic!("finding {at} ({words}) is missing: {listed:#?}"));
        let same = finding.severity == *severity && finding.section == *section;
        assert!(same && finding.offset_bytes == Some(*offset_bytes), "finding {at} ({words}): {listed:#?}");
        assert!(finding.text.contains(words), "finding {at}: '{}' does not say '{words}'", finding.text);
    }
    assert_eq!(listed.len(), expected.len(), "{listed:#?}");
}

use Severity::{Error, Note, Warning};

#[test]
fn a_check_goes_on_behind_every_problem() {
    let mut file = dynamic(9 * MIB);
    let places: Vec<u64> = (0..3).map(|block| put_block(&mut file, block, 6)).collect();
    file.write(HEADERS[1] + 20, &[0xff]);
    file.write(REGION_TABLES[0] + 4000, &[0xff]);
    let entry = |block: u64| BAT + block * 8;
    for (block, word) in [
        (1, places[1] | 6 | 1 << 4),
        (3, 4),
        (4, places[0] | 6),
        (5, (900 * MIB) | 6),
        (6, LOG | 6),
        (7, places[2] | 2),
        (8, places[2] | 3),
    ] {
        file.write(entry(block), &u64::to_le_bytes(word));
    }
    let end = file.len;
    file.set_len(end + 2 * MIB + 512);
    let report = report_of(&file);
    assert_findings(
        &report,
        &[
            (Warning, "2.2.2", HEADERS[1], "header 2"),
            (Warning, "2.1", end + 2 * MIB + 512, "not whole MiB"),
            (Warning, "2.2.3", REGION_TABLES[0], "region table 1"),
            (Warning, "2.5.1", entry(1), "reserved bits"),
            (Error, "2.5.1.1", entry(3), "its state is reserved"),
            (Error, "2.5.1.1", entry(5), "it passes the end of the file"),
            (Warning, "2.5.1", entry(7), "block 7 names a place"),
            (Warning, "2.5.1", entry(8), "block 8 was trimmed, and the space that it keeps is in use"),
            (Error, "2.1", places[0], "block 0 and block 4 overlap"),
            (Error, "2.1", LOG, "the log and block 6 overlap"),
        ],
    );
    assert!(!report.is_sound());
    assert_eq!((report.count(Error), report.count(Warning), report.count(Note)), (4, 6, 0));
    assert_eq!((report.blocks.fully_present, report.blocks.zero, report.blocks.reserved), (6, 1, 1));
    assert_eq!(report.tail_bytes, 2 * MIB + 512);
}

#[test]
fn what_is_no_disk_is_said_once() {
    for (bytes, words) in
        [(vec![], "vhdxfile"), (b"conectix".repeat(100), "vhdxfile"), (b"vhdxfile".to_vec(), "ends inside")]
    {
        let report = report_of(&SparseFile::from_bytes(&bytes));
        assert_findings(&report, &[(Error, if bytes.len() == 8 { "2.2" } else { "2.2.1" }, 0, words)]);
        assert!(report.geometry.is_none());
    }
}

/// Without a header nobody knows whether there is a log; the rest is looked at all the same.
#[test]
fn a_file_without_a_header_or_a_log_is_still_looked_at() {
    let mut file = dynamic(5 * MIB);
    file.write(BAT + 8, &5u64.to_le_bytes());
    let mut headless = file.clone();
    HEADERS.iter().for_each(|at| headless.write(*at, b"dead"));
    let reserved = (Error, "2.5.1.1", BAT + 8, "reserved");
    // The log's place is not known either, so it counts as space that nothing refers to.
    let lost = (Note, "2.1", LOG, "nothing refers to");
    assert_findings(&report_of(&headless), &[(Error, "2.2.2", HEADERS[0], "neither header"), reserved, lost]);
    for header in HEADERS {
        file.write(header + 48, &[7; 16]);
        reseal(&mut file, header, 4096);
    }
    let report = report_of(&file);
    assert_findings(&report, &[(Error, "2.3.3", LOG, "no complete sequence"), reserved]);
    assert_eq!(report.log, LogFacts::Broken);
}

#[test]
fn metadata_is_checked_item_by_item() {
    let mut file = dynamic(5 * MIB);
    // The sixth and seventh: unknown and required, and one that lies nowhere.
    file.write(METADATA + 10, &[7]);
    for (at, offset, length, flags) in [(5u64, 0u32, 0u32, 4u8), (6, 70 << 10, 2 << 20, 1)] {
        let entry = METADATA + 32 + 32 * at;
        file.write(entry, &[0xa0 + at as u8; 16]);
        file.write(entry + 16, &offset.to_le_bytes());
        file.write(entry + 20, &length.to_le_bytes());
        file.write(entry + 24, &[flags]);
    }
    let report = report_of(&file);
    let texts: Vec<&str> = report.findings.iter().map(|finding| finding.text.as_str()).collect();
    assert!(texts[0].contains("items have at most 1 MiB") && texts[1].contains("passes the end"), "{texts:#?}");
    assert!(texts[2].contains("needs metadata item a5a5a5a5") && texts.len() == 3, "{texts:#?}");
    assert_eq!((report.items.len(), report.items[6].is_user, report.items[5].is_required), (7, true, true));
    assert!(report.geometry.is_some(), "what is known is told");
}

#[test]
fn the_parent_is_told_and_its_oddities() {
    let report = report_of(&child(5 * MIB));
    assert_eq!(report.parent, Some(locator("golden.vhdx")));
    assert!(report.is_sound() && report.findings.is_empty(), "{:?}", report.findings);
    let item = report.items.iter().find(|item| item.id == ITEM_PARENT_LOCATOR).expect("listed").offset_bytes;
    let ParentLocator::Vhdx(named) = locator("x") else { panic!("a VHDX") };
    let mut options = child_options(5 * MIB, 5 * MIB, MIB);
    let nameless = VhdxParent { relative_path: None, linkage: Default::default(), ..named };
    options.parent.as_mut().expect("a child").locator = ParentLocator::Vhdx(nameless);
    let odd = [(Warning, "2.6.2.6.3", item, "zero"), (Warning, "2.6.2.6.3", item, "no path")];
    assert_findings(&report_of(&made(&options)), &odd);
    let mut broken = child(5 * MIB);
    broken.write(item, &[9; 16]);
    let report = report_of(&broken);
    assert!(report.findings.len() == 1 && report.findings[0].text.contains("of a kind"), "{:?}", report.findings);
    assert_eq!((report.findings[0].section, report.geometry.is_some()), ("2.6.2.6", true));
    assert_ne!(PARENT, Default::default());
}

/// Sections 2.5.1.1 and 2.5.1.2, one rule at a time, in a child of ten blocks with one partially present.
#[test]
fn partial_blocks_and_bitmaps_keep_their_rules() {
    let start = {
        let mut file = child(10 * MIB);
        put_block(&mut file, 1, 7);
        put_sector(&mut file, 2048 + 3, 0x11);
        put_sector(&mut file, 2048 + 9, 0x12);
        file
    };
    let shape = geometry(&start);
    let bitmap = shape.bat_offset_bytes + shape.bitmap_index(0) * 8;
    let report = report_of(&start);
    assert!(report.is_sound() && report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!((report.blocks.partial_sectors, report.blocks.bitmaps, report.blocks.not_present), (2, 1, 9));
    let (block, place) = (BAT + MIB, start.len - MIB);
    for (value, words) in [
        (0, "absent, and the chunk has partially present blocks"),
        (1, "state is reserved"),
        (place | 7, "state is reserved"),
        (6, "inside the header section"),
        (start.len | 6, "passes the end of the file"),
        (!0xf_ffff | 6, "passes the end of the file"),
    ] {
        let mut file = start.clone();
        file.write(bitmap, &u64::to_le_bytes(value));
        let report = report_of(&file);
        let finding = report.findings.iter().find(|finding| finding.severity == Error).expect("an error");
        assert!(finding.text.contains(words), "{value:#x}: {finding}");
        assert_eq!((finding.section, finding.offset_bytes), ("2.5.1.2", Some(bitmap)));
    }
    // A bitmap where a block is.
    let mut file = start.clone();
    file.write(bitmap, &(block | 6).to_le_bytes());
    let overlap = report_of(&file);
    let text = overlap.findings.iter().find(|f| f.severity == Error).expect("an error").text.clone();
    assert!(text.contains("block 1 and the sector bitmap of chunk 0 overlap"), "{text}");
    // Bits that say nothing, and bits that say all.
    for (value, word) in [(0u8, "none"), (0xff, "all")] {
        let mut file = start.clone();
        file.write(place + 256, &[value; 256]);
        assert_findings(&report_of(&file), &[(Note, "2.5.1.1", place + 256, word)]);
    }
    // A disk without a parent.
    let mut file = dynamic(10 * MIB);
    put_block(&mut file, 2, 6);
    file.write(entry_at(&geometry(&file), 2), &[7]);
    let partial = (Error, "2.5.1.1", entry_at(&geometry(&file), 2), "in a disk without a parent");
    assert_findings(&report_of(&file), &[partial]);
    let mut large = dynamic(5 << 30);
    let at = BAT + 4096 * 8;
    large.write(at, &((4 * MIB) | 6).to_le_bytes());
    assert_findings(&report_of(&large), &[(Error, "2.5.1.2", at, "has no sector bitmaps")]);
}

/// A hundred thousand problems are a hundred thousand in number, and a few lines.
#[test]
fn reports_stay_readable() {
    let mut file = dynamic(120 << 30);
    file.write(BAT, &5u64.to_le_bytes().repeat(4096));
    file.write(BAT + 4097 * 8, &(LOG | 6).to_le_bytes().repeat(4096));
    file.write(BAT + 2 * 4097 * 8, &((700 * MIB) | 6).to_le_bytes().repeat(4096));
    let report = report_of(&file);
    assert_eq!(report.findings.len() as u64, 3 * FINDINGS_PER_KIND_MAX);
    let counts: Vec<_> = report.tallies.iter().map(|tally| (tally.rule, tally.count)).collect();
    let expected = [
        ("its state is reserved", 4096),
        ("it passes the end of the file", 4096),
        ("objects do not share bytes", 4096),
    ];
    assert_eq!(counts, expected);
    assert_eq!(report.count(Error), 3 * 4096);
    assert!(report.findings.iter().all(|finding| !finding.to_string().is_empty()));
}
