//! The independent proof that our files are right: other people's programs, and a reader written from the
//! specifications, look at what we write, and we at what they write.

#[path = "../reference/mod.rs"]
mod reference;
#[path = "../vhdx_support/mod.rs"]
mod vhdx_support;

mod judge;
mod made;
mod specification;
mod trust;

use std::sync::Arc;

use lunaring::vhdx::{DiskKind, create};
use vhdx_support::{Host, MIB, Random, RecordedFile, SECTOR, SparseFile, create_options};

/// The file as the reference reader takes it.
fn source(file: &SparseFile) -> Arc<dyn reference::Source> {
    let (file, len_bytes) = (file.clone(), file.len);
    Arc::new(reference::Bytes { len_bytes, read: move |offset, into: &mut [u8]| file.read(offset, into) })
}

#[test]
fn the_reference_reads_what_we_write_clean_and_dirty() {
    let size = 20 * MIB + 512;
    let mut start = SparseFile::default();
    create(&create_options(size, DiskKind::Dynamic, MIB), &mut start).expect("creates");
    let mut host = Host::open(RecordedFile::new(start), 1);
    let (mut expected, mut random) = (vec![0; size as usize], Random(7));
    for _ in 0..50 {
        let at = (random.below(size / SECTOR) * SECTOR) as usize;
        let bytes = [random.next() as u8 | 1; SECTOR as usize];
        host.write(at as u64, &bytes).expect("writes");
        expected[at..at + SECTOR as usize].copy_from_slice(&bytes);
    }
    let dirty = host.file.now.clone();
    let clean = host.close().0.now;
    for (file, is_dirty) in [(dirty, true), (clean, false)] {
        let chain = reference::Chain::open(vec![source(&file)]).expect("sound");
        let reference::Layer::Vhdx(image) = &chain.layers[0] else { panic!("a VHDX") };
        assert_eq!(image.entries_replayed.is_some(), is_dirty);
        let mut content = vec![0; size as usize];
        chain.read(0, &mut content);
        assert!(content == expected);
    }
}
