//! The same for a VHD: checked, opened in both ways, read whole, written, closed and looked at again.

use std::io;

use lunaring::blocks::{Chain, Engine, Level, MapLimits};
use lunaring::medium::blocking::{BlockingDisk, BlockingFile};
use lunaring::vhd::{self, Access, OpenOptions, OpenVhd};

use crate::reference;
use crate::target::{Outcome, Watched, source, windows, without_numbers};
use crate::vhdx_support::{Random, SparseFile};

/// A file in memory.
struct Memory(SparseFile);

impl BlockingFile for Memory {
    fn read(&mut self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset_bytes + into.len() as u64;
        assert!(end <= self.0.len, "a file of {} bytes is read up to {end}", self.0.len);
        self.0.read(offset_bytes, into);
        Ok(())
    }

    fn write(&mut self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        self.0.write(offset_bytes, from);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn extend(&mut self, _: u64, to_bytes: u64) -> io::Result<()> {
        self.0.set_len(to_bytes);
        Ok(())
    }

    fn zero_range(&mut self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.0.zero(offset_bytes, len_bytes);
        Ok(())
    }

    fn punch_hole(&mut self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.0.zero(offset_bytes, len_bytes);
        Ok(())
    }

    fn truncate(&mut self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes);
        Ok(())
    }
}

fn truth_of(file: &SparseFile, parent: Option<&SparseFile>) -> Result<reference::Chain, reference::Broken> {
    let mut layers = vec![reference::Layer::Vhd(reference::vhd::Image::open(source(file))?)];
    if layers[0].has_parent() {
        layers.extend(parent.map(|parent| reference::Layer::Raw(source(parent))));
    }
    Ok(reference::Chain { layers })
}

fn open(file: &mut Watched, access: Access) -> Result<OpenVhd, vhd::OpenError> {
    vhd::open(file, OpenOptions { access, limits: MapLimits::default() })
}

fn disk(file: &SparseFile, parent: Option<&SparseFile>, opened: OpenVhd, writable: bool) -> BlockingDisk<Memory> {
    let mut levels = vec![match opened.map {
        Some(map) => Level::Map { layer: 0, map },
        None => Level::Raw { layer: 0, size_bytes: opened.shape.size_bytes },
    }];
    let mut files = vec![Memory(file.clone())];
    if let Some(parent) = parent.filter(|_| opened.parent.is_some()) {
        levels.push(Level::Raw { layer: 1, size_bytes: parent.len });
        files.push(Memory(parent.clone()));
    }
    let engine = opened.engine.map(|engine| engine as Box<dyn Engine>);
    BlockingDisk::new(Chain::new(levels), files, engine, writable)
}

/// Look at a file in all ways; `parent`: the bytes behind it.
pub fn examine_vhd(file: &SparseFile, parent: Option<&SparseFile>) -> Outcome {
    let mut watched = Watched::new(file);
    let report = vhd::check(&mut watched).expect("the storage does not fail");
    let opened = open(&mut watched, Access::ReadOnly);
    let described = vhd::describe(&mut watched);
    assert_eq!(watched.writes, 0, "looking at a file changed it");
    let refusal = opened.as_ref().err().map(ToString::to_string);
    let texts: Vec<String> = report.findings.iter().map(|finding| format!("{finding:?}")).collect();
    assert_eq!(report.is_sound(), opened.is_ok(), "check {texts:?} and open {refusal:?} disagree");
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            assert!(!error.to_string().is_empty() && !error.advice().is_empty());
            return match truth_of(file, parent) {
                Ok(_) => Outcome::Strict(without_numbers(&error.to_string())),
                Err(_) => Outcome::Refused,
            };
        }
    };
    let described = described.expect("what can be opened can be described");
    assert_eq!((described.size_bytes, described.unique_id), (opened.shape.size_bytes, opened.unique_id));
    let truth = match truth_of(file, parent) {
        Ok(truth) => truth,
        Err(broken) => return Outcome::Lenient(without_numbers(&broken.to_string())),
    };
    assert_eq!(opened.shape.size_bytes, truth.size_bytes());
    let mut ours = disk(file, parent, opened, false);
    for (offset, len) in windows(truth.size_bytes()) {
        let (mut here, mut there) = (vec![0; len], vec![0; len]);
        ours.read_at(offset, &mut here).expect("reads");
        truth.read(offset, &mut there);
        assert!(here == there, "the content differs near {offset}");
    }
    let Ok(writable) = open(&mut watched, Access::ReadWrite) else { return Outcome::Read };
    assert_eq!(watched.writes, 0, "opening changed the file");
    let mut ours = disk(file, parent, writable, true);
    live(&mut ours, &truth, parent, file.len);
    Outcome::Read
}

/// Use the disk: write and unmap; then the reader from the specification looks at the file as it is and as it is left.
fn live(ours: &mut BlockingDisk<Memory>, before: &reference::Chain, parent: Option<&SparseFile>, seed: u64) {
    let size = before.size_bytes();
    let mut random = Random(size ^ seed);
    let mut changes: Vec<(u64, u64, u8)> = Vec::new();
    for _ in 0..6 {
        let len = (512 << random.below(9)).min(size);
        let at = random.below((size - len) / 512 + 1) * 512;
        let value = random.next() as u8 * u8::from(random.below(3) > 0);
        let done = match value {
            0 => ours.write_zeros(at, len).is_ok(),
            _ => ours.write_at(at, &vec![value; len as usize]).is_ok(),
        };
        if !done {
            return;
        }
        changes.push((at, len, value));
    }
    ours.flush().expect("memory can be flushed");
    let file = ours.file(0).0.clone();
    let after = truth_of(&file, parent).unwrap_or_else(|broken| panic!("we left: {broken}"));
    let report = vhd::check(&mut Watched::new(&file)).expect("the storage does not fail");
    assert!(report.is_sound(), "we left: {:?}", report.findings);
    for (offset, len) in windows(size) {
        let (mut old, mut new) = (vec![0; len], vec![0; len]);
        before.read(offset, &mut old);
        after.read(offset, &mut new);
        for (at, changed, value) in &changes {
            let (from, to) = ((*at).max(offset), (at + changed).min(offset + len as u64));
            if from < to {
                old[(from - offset) as usize..(to - offset) as usize].fill(*value);
            }
        }
        assert!(old == new, "after {changes:x?} the content is wrong near {offset}");
    }
}
