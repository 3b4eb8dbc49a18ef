//! Other sizes: what the disk shows afterwards, which space it gives back, and what is refused.

use lunaring::vhdx::{CheckReport, CreateOptions, DiskKind, EditError, ResizeOptions, Resized, check, resize};

use crate::hand::{
    child_options, dynamic, entry_at, geometry, made, put_block, put_sector, read_sector, resize_options, samples, word,
};
use crate::vhdx_support::{MIB, RecordedFile, SECTOR, SparseFile, create_options};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn with(parent_size_bytes: Option<u64>, allow_cut: bool) -> ResizeOptions {
    ResizeOptions { allow_cut, parent_size_bytes, ..resize_options(1) }
}

fn sound(file: &SparseFile) -> CheckReport {
    let report = check(&mut file.clone()).expect("read");
    assert!(report.is_sound() && report.findings.iter().all(|f| f.text.contains("refers to")), "{:?}", report.findings);
    report
}

/// Every sampled sector of the resized disk is what the old one showed, or zero behind its end.
fn grown(before: &SparseFile, size_bytes: u64, parent_bytes: u64, options: ResizeOptions) -> (SparseFile, Resized) {
    let mut file = before.clone();
    // What an interrupted session left behind the last object.
    file.write(before.len.next_multiple_of(MIB), &[0xee; 5 << 20]);
    let resized = resize(&mut file, size_bytes, options).expect("grows");
    sound(&file);
    let (old, new) = (geometry(before), geometry(&file));
    assert_eq!(resized.geometry, new);
    assert_eq!((new.disk_size_bytes, file.len), (size_bytes, resized.file_len_bytes));
    for sector in samples(&new) {
        let expected =
            if sector * SECTOR < old.disk_size_bytes { read_sector(before, &old, sector, parent_bytes) } else { 0 };
        assert_eq!(read_sector(&file, &new, sector, parent_bytes), expected, "sector {sector}");
    }
    (file, resized)
}

#[test]
fn new_space_reads_as_zeros_and_old_content_stays() {
    for end in [5 * MIB, 5 * MIB + 512, 5 * MIB + MIB / 2] {
        let mut disk = dynamic(end);
        for block in [0, 4, 5] {
            if u64::from(block) * MIB < end {
                let at = put_block(&mut disk, block, 6);
                // Behind the end of the disk too: what a shrink or another writer left there.
                disk.write(at, &[block as u8 + 1; MIB as usize]);
            }
        }
        // Words behind the table's last entry mean nothing, whatever they are.
        let shape = geometry(&disk);
        disk.write(shape.bat_offset_bytes + shape.bat_entries() * 8, &[0xff; 4096 * 3]);
        for size in [end + 512, 6 * MIB, 6 * MIB + 1024, 900 * MIB] {
            let (_, resized) = grown(&disk, size, 0, with(None, false));
            assert_eq!((resized.geometry.bat_offset_bytes, resized.released), (shape.bat_offset_bytes, vec![]));
        }
    }
}

/// The parent is larger than the child was: new space hides it, wherever it could show.
#[test]
fn a_parent_does_not_show_in_new_space() {
    for end in [5 * MIB, 5 * MIB + MIB / 2] {
        for state in [0, 2, 6, 7] {
            let mut disk = made(&child_options(end, 4 * MIB, MIB));
            let last = ((end - 1) / MIB) as u32;
            if state < 6 {
                disk.write(entry_at(&geometry(&disk), last), &u64::to_le_bytes(state));
            } else {
                let at = put_block(&mut disk, last, state);
                disk.write(at + MIB / 2, &[0xee; MIB as usize / 2]);
                put_sector(&mut disk, u64::from(last) * 2048 + 9, 0x66);
            }
            put_block(&mut disk, 1, 7);
            put_sector(&mut disk, 2048 + 8, 0x67);
            for (known, size) in [(None, 7 * MIB), (Some(9 * MIB), 40 * MIB), (Some(6 * MIB), 5 * MIB + 1024 * 700)] {
                let parent_bytes = known.unwrap_or(20 * MIB);
                grown(&disk, size, parent_bytes, with(known, false));
            }
        }
    }
    // Behind the parent there is nothing to hide, and nothing is written down.
    let disk = made(&child_options(5 * MIB, 5 * MIB, MIB));
    let (file, _) = grown(&disk, 9 * GIB, 5 * MIB, with(Some(5 * MIB), false));
    let report = sound(&file);
    assert_eq!((report.blocks.zero, report.blocks.not_present), (0, 9 * 1024));
}

/// 131072 entries fill a region of 1 MiB: the table moves when the disk outgrows it, and not before.
#[test]
fn the_table_moves_only_when_it_must() {
    let ratio = 4096;
    let most = (131_072 - 131_072 / (ratio + 1)) * MIB;
    let mut disk = dynamic(most - 5 * GIB);
    let place = put_block(&mut disk, 1000, 6);
    disk.write(place, &[0x21; 512]);
    let here = geometry(&disk).bat_offset_bytes;
    let (full, _) = grown(&disk, most, 0, with(None, false));
    assert_eq!(geometry(&full).bat_offset_bytes, here);
    for size in [most + 512, most + GIB, 20 * TIB] {
        let (file, resized) = grown(&full, size, 0, with(None, false));
        assert_eq!(resized.geometry.bat_offset_bytes, place + MIB, "behind everything else");
        assert_eq!(resized.allocate.len(), 1);
        assert_eq!(sound(&file).unreferenced_bytes, MIB, "the old table's place");
        assert_eq!(word(&file, entry_at(&geometry(&file), 1000)), place | 6);
    }
    // A child's table has a bitmap entry for every chunk.
    let mut disk = made(&child_options(100 * GIB, 100 * GIB, 2 * MIB));
    let at = put_block(&mut disk, 40_000, 7);
    disk.write(at, &[0x44; 2 << 20]);
    put_sector(&mut disk, 40_000 * 4096 + 5, 0x31);
    for (size, moves) in [(200 * GIB, false), (300 * GIB, true), (64 * TIB, true)] {
        let (file, resized) = grown(&disk, size, 100 * GIB, with(Some(100 * GIB), false));
        assert_eq!(resized.geometry.bat_offset_bytes != geometry(&disk).bat_offset_bytes, moves);
        assert_eq!(sound(&file).blocks.partial_sectors, 1);
    }
}

#[test]
fn fixed_disks_stay_fully_allocated() {
    for (start, size) in [(4 * MIB, 9 * MIB), (4 * MIB + 512, 4 * MIB + 1024), (5 * MIB, 200 * GIB)] {
        let disk = made(&create_options(start, DiskKind::Fixed, if size > GIB { 256 * MIB } else { MIB }));
        let (file, resized) = grown(&disk, size, 0, with(None, false));
        let report = sound(&file);
        assert_eq!(u64::from(report.blocks.fully_present), u64::from(resized.geometry.block_count));
        assert!(resized.geometry.fixed && report.unreferenced_bytes == 0 && report.tail_bytes == 0);
    }
}

#[test]
fn shrinking_looks_for_data_first() {
    let mut disk = dynamic(9 * MIB);
    let at = put_block(&mut disk, 6, 6);
    disk.write(at + 70_000, &[1]);
    put_block(&mut disk, 8, 6);
    let shrunk = |size| resize(&mut disk.clone(), size, with(None, false)).map(|resized| resized.file_len_bytes);
    let cut = |least_bytes| EditError::WouldCut { what: "data", offset_bytes: 6 * MIB + 70_000, least_bytes };
    assert_eq!(shrunk(6 * MIB + 65_536), Err(cut(9 * MIB)), "a block of zeros is not worth a second look");
    assert_eq!(shrunk(4 * MIB), Err(cut(9 * MIB)));
    let before = disk.len;
    assert_eq!(shrunk(6 * MIB + 70_144), Ok(before - MIB), "block 8 holds zeros and is given back");
    assert_eq!(shrunk(7 * MIB), Ok(before - MIB));
    let error = shrunk(4 * MIB).expect_err("refused").to_string();
    assert!(error.contains("6361456") && error.contains("9437184"), "{error}");
    // A refusal changes nothing.
    let mut recorded = RecordedFile::new(disk.clone());
    resize(&mut recorded, 4 * MIB, with(None, false)).expect_err("refused");
    assert!(recorded.history.is_empty());
    // A child hides or shows; what its parent may have is data.
    let child = made(&child_options(9 * MIB, 8 * MIB, MIB));
    let refused = |parent| resize(&mut child.clone(), 6 * MIB, with(parent, false)).expect_err("refused");
    for (parent, least_bytes) in [(None, 9 * MIB), (Some(8 * MIB), 8 * MIB)] {
        let what = "what the parent may have";
        assert_eq!(refused(parent), EditError::WouldCut { what, offset_bytes: 6 * MIB, least_bytes });
    }
    assert!(resize(&mut child.clone(), 8 * MIB, with(Some(8 * MIB), false)).is_ok());
}

#[test]
fn what_is_cut_off_is_given_back_and_does_not_return() {
    for parent in [false, true] {
        let mut disk = if parent { made(&child_options(9 * MIB, 4 * MIB, MIB)) } else { dynamic(9 * MIB) };
        let mut places = Vec::new();
        for block in [7, 0, 4, 8, 2] {
            let at = put_block(&mut disk, block, if parent && block % 2 == 0 { 7 } else { 6 });
            disk.write(at, &[0x91; MIB as usize]);
            put_sector(&mut disk, u64::from(block) * 2048 + 3, 0x90);
            places.push(at);
        }
        // Anchors and leftovers of blocks that have no content claim nothing.
        disk.write(entry_at(&geometry(&disk), 6), &(places[1] | 2).to_le_bytes());
        let size = 4 * MIB + 8 * SECTOR;
        let before = disk.clone();
        let resized = resize(&mut disk, size, with(Some(4 * MIB), true)).expect("shrinks");
        let report = check(&mut disk).expect("read");
        assert!(report.is_sound());
        assert_eq!(resized.released[0], places[0]..places[0] + MIB, "block 7 lay in front of others");
        let shape = geometry(&disk);
        for sector in samples(&shape) {
            let old = read_sector(&before, &geometry(&before), sector, 4 * MIB);
            assert_eq!(read_sector(&disk, &shape, sector, 4 * MIB), old, "sector {sector}");
        }
        for block in 5..9 {
            assert_eq!(word(&disk, entry_at(&geometry(&before), block)), 0, "no entry is left behind");
        }
        let (file, _) = grown(&disk, 9 * MIB, 4 * MIB, with(Some(4 * MIB), false));
        assert!(file.len <= before.len);
    }
    // The end of the file goes with its last blocks.
    let mut disk = dynamic(9 * MIB);
    for block in 0..9 {
        put_block(&mut disk, block, 6);
    }
    let len = disk.len;
    let resized = resize(&mut disk, 3 * MIB, with(None, true)).expect("shrinks");
    assert_eq!((disk.len, resized.released), (len - 6 * MIB, vec![]));
}

#[test]
fn impossible_sizes_are_refused_with_the_limit() {
    let refusal =
        |options: &CreateOptions, size| resize(&mut made(options), size, with(None, true)).expect_err("refused");
    let options = create_options(8 * MIB, DiskKind::Dynamic, MIB);
    for size_bytes in [0, 3 * MIB - 512, 64 * TIB + 512, u64::MAX] {
        let error = refusal(&options, size_bytes);
        assert_eq!(error, EditError::Size { size_bytes });
        assert!(error.to_string().contains("64T"));
    }
    let uneven = EditError::SizeNotSectors { size_bytes: 9 * MIB + 1, sector_bytes: 512, next_bytes: 9 * MIB + 512 };
    assert_eq!(refusal(&options, 9 * MIB + 1), uneven);
    let large = CreateOptions { logical_sector_bytes: 4096, ..options.clone() };
    let (uneven, next) = (refusal(&large, 9 * MIB + 512), 9 * MIB + 4096);
    assert!(matches!(uneven, EditError::SizeNotSectors { next_bytes, .. } if next_bytes == next), "{uneven}");
    let mut broken = made(&options);
    let at = geometry(&broken).bat_offset_bytes;
    broken.write(at, &[4]);
    let error = resize(&mut broken, 9 * MIB, with(None, false)).expect_err("refused");
    assert!(matches!(&error, EditError::Damaged { errors: 1, first } if first.contains("reserved")), "{error}");
}

/// The same size is nothing to do; every other one renews what children and other programs look at.
#[test]
fn identities_change_exactly_with_the_size() {
    let file = dynamic(8 * MIB);
    let header = |file: &SparseFile| *check(&mut file.clone()).expect("read").header().expect("valid");
    let mut recorded = RecordedFile::new(file.clone());
    let same = resize(&mut recorded, 8 * MIB, with(None, false)).expect("nothing to do");
    assert!(recorded.history.is_empty());
    assert_eq!(same.data_write_guid, header(&file).data_write_guid);
    for size in [5 * MIB, 12 * MIB] {
        let mut other = file.clone();
        let resized = resize(&mut other, size, with(None, false)).expect("resizes");
        let (old, new) = (header(&file), header(&other));
        assert_eq!(resized.data_write_guid, new.data_write_guid);
        assert!(old.data_write_guid != new.data_write_guid && old.file_write_guid != new.file_write_guid);
        assert_eq!(new.log_guid, lunaring::vhdx::Guid::ZERO);
    }
}
