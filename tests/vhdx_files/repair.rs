//! What a repair does, what it will not do, and that it leaves alone what it cannot mend.

use lunaring::vhdx::{RepairReport, Severity, repair};

use crate::check::reseal;
use crate::hand::{child, dynamic, entry_at, geometry, put_block, source, word};
use crate::vhdx_support::{Host, MIB, RecordedFile, SparseFile};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const BAT: u64 = 3 * MIB;

fn repaired(file: &mut SparseFile) -> RepairReport {
    let report = repair(file, source(1)).expect("the file can be read and written");
    // Once is enough.
    let mut recorded = RecordedFile::new(file.clone());
    let again = repair(&mut recorded, source(2)).expect("read");
    assert!(again.done.is_empty() && recorded.history.is_empty(), "{:?}", again.done);
    assert_eq!(again.after, report.after);
    report
}

fn assert_mended(report: &RepairReport, words: &[&str]) {
    assert_eq!(report.done.len(), words.len(), "{:?}", report.done);
    for (done, word) in report.done.iter().zip(words) {
        assert!(done.contains(word), "{done} is not {word}");
    }
    assert!(report.refused.is_empty() && report.after.is_sound(), "{:?}", report.refused);
    assert_eq!(report.after.count(Severity::Warning), 0, "{:?}", report.after.findings);
}

#[test]
fn a_sound_file_is_left_alone() {
    let mut recorded = RecordedFile::new(dynamic(5 * MIB));
    let report = repair(&mut recorded, source(1)).expect("read");
    assert!(report.done.is_empty() && report.refused.is_empty() && recorded.history.is_empty());
}

#[test]
fn lost_copies_and_sizes_are_mended() {
    for copy in 0..2 {
        let mut file = dynamic(5 * MIB);
        put_block(&mut file, 1, 6);
        let data_write_guid =
            repair(&mut file.clone(), source(3)).expect("read").after.header().expect("valid").data_write_guid;
        file.write(HEADERS[copy], b"torn");
        file.write(REGION_TABLES[copy] + 100, b"torn");
        let len = file.len;
        file.set_len(len + 512);
        let report = repaired(&mut file);
        assert_mended(&report, &["region table", "extended the file", "both headers"]);
        assert_eq!(file.len, len + MIB);
        assert_eq!(report.after.header().expect("valid").data_write_guid, data_write_guid, "no child loses its parent");
    }
    // Two valid region tables that differ: the first counts.
    let mut file = dynamic(5 * MIB);
    file.write(REGION_TABLES[1] + 8, &[1]);
    reseal(&mut file, REGION_TABLES[1], 64 << 10);
    assert_mended(&repaired(&mut file), &["region table 2"]);
    // A last block that old writers cut short.
    let mut file = dynamic(5 * MIB + 4096);
    put_block(&mut file, 5, 6);
    let len = file.len;
    file.set_len(len - MIB + 4096);
    assert_mended(&repaired(&mut file), &["extended the file"]);
    assert_eq!(file.len, len);
}

#[test]
fn a_pending_log_is_replayed() {
    let mut host = Host::open(RecordedFile::new(dynamic(8 * MIB)), 1);
    host.write(3 * MIB, &[7; 4096]).expect("writes");
    let mut dirty = host.file.now;
    let report = repaired(&mut dirty);
    assert_mended(&report, &["replayed"]);
    let mut byte = [0];
    let place = word(&dirty, entry_at(&geometry(&dirty), 3)) & !(MIB - 1);
    dirty.read(place, &mut byte);
    assert_eq!(byte, [7]);
}

/// Bits that no reader may look at are cleared; blocks, and anchors that are rightly there, stay.
#[test]
fn entries_lose_what_means_nothing() {
    let mut file = dynamic(5 << 30);
    let places: Vec<u64> = (0..3).map(|block| put_block(&mut file, block, 6)).collect();
    let entries = [
        (1, places[1] | 6 | 0xff0, places[1] | 6),
        (2, places[2] | 3, places[2] | 3),
        (3, places[0] | 2, 2),
        (4, places[0] | 3, 3),
        (5, (900_000 * MIB) | 1, 1),
        (4096, (77 * MIB) | 6, 0),
        (4100, 5 * MIB, 0),
    ];
    for (index, bad, _) in entries {
        file.write(BAT + index * 8, &u64::to_le_bytes(bad));
    }
    let report = repaired(&mut file);
    assert_mended(&report, &["6 table entries"]);
    for (index, _, good) in entries {
        assert_eq!(word(&file, BAT + index * 8), good, "entry {index}");
    }
    // More pages than one log entry holds.
    let mut file = dynamic(120 << 30);
    for page in 0..230 {
        file.write(BAT + page * 4096 + 64, &(MIB | 2).to_le_bytes());
    }
    assert_mended(&repaired(&mut file), &["230 table entries"]);
}

#[test]
fn what_needs_a_guess_is_refused_and_nothing_is_written() {
    type Damage<'a> = (&'a str, &'a dyn Fn(&mut SparseFile));
    let breaks: [Damage<'_>; 6] = [
        ("reserved", &|file| file.write(BAT, &5u64.to_le_bytes())),
        ("overlap", &|file| file.write(BAT, &(MIB | 6).to_le_bytes())),
        ("neither header", &|file| HEADERS.iter().for_each(|at| file.write(*at, b"torn"))),
        ("neither region table", &|file| REGION_TABLES.iter().for_each(|at| file.write(*at, b"torn"))),
        ("vhdxfile", &|file| file.write(0, b"elfxdhv")),
        ("no complete sequence", &|file| {
            for header in HEADERS {
                file.write(header + 48, &[7; 16]);
                reseal(file, header, 4096);
            }
        }),
    ];
    for (words, damage) in breaks {
        let mut file = child(5 * MIB);
        // Something that could be mended is not touched either.
        let len = file.len;
        file.set_len(len + 512);
        damage(&mut file);
        let mut recorded = RecordedFile::new(file);
        let report = repair(&mut recorded, source(1)).expect("read");
        assert!(report.done.is_empty() && recorded.history.is_empty(), "{words}");
        assert!(report.refused.iter().any(|finding| finding.text.contains(words)), "{words}: {:?}", report.refused);
    }
}
