//! The engine and the offline changes take turns on one file: written, trimmed, compacted, closed or left dirty; then
//! resized, re-parented, given items, repaired; and again. What the disk shows is held against a plain copy of it, by
//! the engine and by an independent reader.

use lunaring::vhdx::{
    Access, Guid, ResizeOptions, Severity, check, delete_item, get_item, repair, resize, set_item, set_parent,
};

use crate::hand::{child_options, dynamic, locator, made, source};
use crate::vhdx_support::guest::parent_of;
use crate::vhdx_support::naive::NaiveDisk;
use crate::vhdx_support::{Host, MIB, Random, RecordedFile, SECTOR, SparseFile, open_with};

struct Life {
    file: SparseFile,
    parent: Option<SparseFile>,
    /// What the disk shows.
    content: Vec<u8>,
    item: Option<Vec<u8>>,
    random: Random,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let size = (6 + random.below(8)) * MIB + random.below(2) * (MIB / 2) + random.below(3) * SECTOR;
        let parent = (!seed.is_multiple_of(3)).then(|| parent_of(size - random.below(2) * 3 * MIB));
        let mut content = vec![0; size as usize];
        let file = match &parent {
            Some(parent) => {
                parent.read(0, &mut content[..parent.len as usize]);
                made(&child_options(size, parent.len, MIB))
            }
            None => dynamic(size),
        };
        Self { file, parent, content, item: None, random }
    }

    fn serve(&mut self) {
        let file = RecordedFile::new(std::mem::take(&mut self.file));
        let mut host = Host::open_over(file, self.parent.clone(), self.random.next());
        let mut seen = vec![0; self.content.len()];
        host.read(0, &mut seen);
        let differs = seen.iter().zip(&self.content).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the disk shows something else");
        for _ in 0..self.random.below(25) {
            let sectors = self.content.len() as u64 / SECTOR;
            match self.random.below(8) {
                0 => {
                    let block = self.random.below(sectors / 2048);
                    let count = 1 + self.random.below(3).min(sectors / 2048 - block - 1);
                    host.unmap(block * MIB, count * MIB).expect("unmaps");
                    self.content[(block * MIB) as usize..((block + count) * MIB) as usize].fill(0);
                }
                1 => drop(host.relocate()),
                2 => host.flush(),
                _ => {
                    let len = 1 + self.random.below(700).min(sectors - 1);
                    let at = (self.random.below(sectors - len + 1) * SECTOR) as usize;
                    let bytes = (self.random.next() | 1).to_le_bytes().repeat((len * SECTOR) as usize / 8);
                    host.write(at as u64, &bytes).expect("writes");
                    self.content[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
        host.settle();
        // Left dirty now and then, as a killed server leaves it.
        self.file = if self.random.below(3) == 0 { host.file.now } else { host.close().0.now };
    }

    fn change(&mut self) {
        let seed = self.random.next();
        match self.random.below(6) {
            0..=2 => {
                let size = 3 * MIB + self.random.below(14 * 2048) * SECTOR;
                let known = self.parent.as_ref().map(|parent| parent.len).filter(|_| self.random.below(2) == 0);
                let options = ResizeOptions { allow_cut: true, parent_size_bytes: known, guids: source(seed) };
                let resized = resize(&mut self.file, size, options).expect("resizes");
                assert_eq!((resized.geometry.disk_size_bytes, resized.file_len_bytes), (size, self.file.len));
                for range in resized.released {
                    // Whoever serves the file may punch these.
                    self.file.zero(range.start, range.end - range.start);
                }
                self.content.resize(size as usize, 0);
            }
            3 if self.parent.is_some() => {
                let name = format!("parent-{seed}.vhdx");
                set_parent(&mut self.file, source(seed), &locator(&name)).expect("sets");
                assert_eq!(check(&mut self.file).expect("read").parent, Some(locator(&name)));
            }
            4 => {
                assert!(repair(&mut self.file, source(seed)).expect("read").refused.is_empty());
            }
            _ if self.item.is_some() && self.random.below(3) == 0 => {
                delete_item(&mut self.file, source(seed), Guid([5; 16])).expect("deletes");
                self.item = None;
            }
            _ => {
                let bytes = vec![seed as u8; self.random.below(400_000) as usize];
                set_item(&mut self.file, source(seed), Guid([5; 16]), false, &bytes).expect("sets");
                self.item = Some(bytes);
            }
        }
    }

    fn judge(&mut self) {
        let report = check(&mut self.file).expect("read");
        assert!(report.is_sound() && report.count(Severity::Warning) == 0, "{:?}", report.findings);
        assert!(open_with(&mut self.file, Access::ReadOnly, 1).is_ok());
        assert_eq!(get_item(&mut self.file, Guid([5; 16])), Ok(self.item.clone()));
        let naive = NaiveDisk::open(&self.file).expect("opens");
        naive.blocks_are_apart().expect("apart");
        let sectors = self.content.len() / SECTOR as usize;
        for sector in (0..sectors).step_by(61).chain(sectors - 3..sectors) {
            let mut bytes = [0; SECTOR as usize];
            naive.read(self.parent.as_ref(), sector as u64, &mut bytes);
            let expected = &self.content[sector * SECTOR as usize..][..SECTOR as usize];
            assert!(bytes == *expected, "sector {sector} of {sectors}, for an independent reader");
        }
    }
}

#[test]
fn the_engine_and_offline_changes_take_turns() {
    for seed in 0..9 {
        println!("seed {seed}");
        let mut life = Life::new(seed);
        for _ in 0..8 {
            life.serve();
            life.judge();
            life.change();
            life.judge();
        }
    }
}
