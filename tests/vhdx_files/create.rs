//! New differencing disks.

use std::time::Instant;

use lunaring::vhdx::{CreateError, CreateOptions, DiskKind, check, create};

use crate::hand::{child_options, locator, made};
use crate::vhdx_support::{MIB, SparseFile, create_options};

const TIB: u64 = 1 << 40;

#[test]
fn a_child_is_made_whatever_the_size() {
    for (size, parent, block) in
        [(5 * MIB, 5 * MIB, MIB), (64 * TIB, 64 * TIB, 2 * MIB), (64 * TIB, TIB, MIB), (300 * MIB, 7 * MIB, 256 * MIB)]
    {
        let options = child_options(size, parent, block);
        let started = Instant::now();
        let file = made(&options);
        assert!(started.elapsed().as_secs() < 1 && file.pages.len() < 100, "the table is a hole");
        let report = check(&mut file.clone()).expect("read");
        assert!(report.is_sound() && report.findings.is_empty(), "{:?}", report.findings);
        let shape = report.geometry.expect("sound");
        assert!(shape.has_parent && !shape.fixed && shape.bat_entries() * 8 <= shape.bat_region_len_bytes());
        assert_eq!((shape.disk_size_bytes, u64::from(shape.block_size_bytes)), (size, block));
        assert_eq!((report.parent, report.virtual_disk_id), (Some(locator("golden.vhdx")), options.virtual_disk_id));
    }
    let default = CreateOptions { block_size_bytes: None, ..child_options(50 << 30, 50 << 30, MIB) };
    let shape = check(&mut made(&default)).expect("read").geometry.expect("sound");
    assert_eq!(u64::from(shape.block_size_bytes), 2 * MIB);
}

#[test]
fn children_that_cannot_be_are_refused() {
    let refusal = |change: &dyn Fn(&mut CreateOptions)| {
        let mut options = child_options(8 * MIB, 8 * MIB, MIB);
        change(&mut options);
        create(&options, &mut SparseFile::default()).expect_err("refused")
    };
    assert_eq!(refusal(&|options| options.kind = DiskKind::Fixed), CreateError::FixedWithParent);
    let smaller = CreateError::SmallerThanParent { size_bytes: 8 * MIB - 512, parent_bytes: 8 * MIB };
    assert_eq!(refusal(&|options| options.size_bytes -= 512), smaller);
    let sector = CreateError::ParentSector { logical_bytes: 4096, parent_bytes: 512 };
    assert_eq!(refusal(&|options| options.logical_sector_bytes = 4096), sector);
    let long = refusal(&|options| options.parent.as_mut().expect("a child").locator = locator(&"x".repeat(40_000)));
    assert!(matches!(long, CreateError::Locator(_)), "{long}");
    assert_eq!(refusal(&|options| options.size_bytes = 65 * TIB), CreateError::Size { size_bytes: 65 * TIB });
    // A parent below the smallest disk can have a child of its own size.
    let small = child_options(MIB, MIB, MIB);
    assert_eq!(check(&mut made(&small)).expect("read").geometry.expect("sound").disk_size_bytes, MIB);
    let alone = create(&create_options(MIB, DiskKind::Dynamic, MIB), &mut SparseFile::default());
    assert_eq!(alone, Err(CreateError::Size { size_bytes: MIB }));
}
