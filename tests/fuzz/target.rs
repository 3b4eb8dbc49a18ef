//! What is done with every mutated file: it is checked, opened in both ways, read whole, and written. Nothing may
//! panic, read or write without bound, or contradict the reader from the specification.

use std::sync::Arc;

use lunaring::vhdx::{self, Access, OpenOptions, Storage, StorageError};

use crate::reference;
use crate::vhdx_support::{Host, MIB, Random, RecordedFile, SparseFile, guids, read_disk};
use lunaring::blocks::Event;

/// What one pass over a file may read and write: the largest table there can be, three times over.
const READ_MAX: u64 = 3 << 30;
const WRITTEN_MAX: u64 = 1 << 30;

/// A file that counts what is asked of it.
pub struct Watched {
    pub file: SparseFile,
    pub writes: u64,
    read: u64,
    written: u64,
}

impl Watched {
    pub fn new(file: &SparseFile) -> Self {
        Self { file: file.clone(), writes: 0, read: 0, written: 0 }
    }
}

impl Storage for Watched {
    fn len_bytes(&mut self) -> Result<u64, StorageError> {
        Ok(self.file.len)
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.read += into.len() as u64;
        assert!(self.read < READ_MAX, "no end of reading");
        let end = offset_bytes.checked_add(into.len() as u64).expect("a place that no file has");
        if end > self.file.len {
            return Err(StorageError::UnexpectedEnd(end));
        }
        self.file.read(offset_bytes, into);
        Ok(())
    }

    fn write_at(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.writes += 1;
        self.written += bytes.len() as u64;
        assert!(self.written < WRITTEN_MAX, "no end of writing");
        self.file.write(offset_bytes, bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        Ok(())
    }

    fn zero(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<(), StorageError> {
        self.writes += 1;
        assert!(offset_bytes + len_bytes <= self.file.len, "zeros that the file does not have");
        self.file.zero(offset_bytes, len_bytes);
        Ok(())
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<(), StorageError> {
        self.writes += 1;
        if len_bytes > 1 << 50 {
            return Err(StorageError::OutOfSpace);
        }
        self.file.set_len(len_bytes);
        Ok(())
    }
}

/// A file of which nothing may be read that it does not hold.
struct Exact<'a>(&'a SparseFile);

impl Storage for Exact<'_> {
    fn len_bytes(&mut self) -> Result<u64, StorageError> {
        Ok(u64::MAX)
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let end = offset_bytes + into.len() as u64;
        assert!(end <= self.0.len, "a clean file of {} bytes is read up to {end}", self.0.len);
        self.0.read(offset_bytes, into);
        Ok(())
    }

    fn write_at(&mut self, _: u64, _: &[u8]) -> Result<(), StorageError> {
        unreachable!("a reader does not write")
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        unreachable!("a reader does not flush")
    }

    fn set_len(&mut self, _: u64) -> Result<(), StorageError> {
        unreachable!("a reader does not grow files")
    }
}

pub fn source(file: &SparseFile) -> Arc<dyn reference::Source> {
    let (file, len_bytes) = (file.clone(), file.len);
    Arc::new(reference::Bytes { len_bytes, read: move |offset, into: &mut [u8]| file.read(offset, into) })
}

/// What we and the specification think of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Both read it, and alike.
    Read,
    /// Both refuse it.
    Refused,
    /// We refuse what the reader from the specification reads: why.
    Strict(String),
    /// We read what the reader from the specification refuses: why it does.
    Lenient(String),
}

/// The parts of a disk that are looked at: all of a small one.
pub fn windows(size: u64) -> Vec<(u64, usize)> {
    let step = 64 << 10;
    let mut starts: Vec<u64> = (0..size.min(6 * MIB)).step_by(step).collect();
    starts.extend([size / 3 / 4096 * 4096, size / 2 / 4096 * 4096, size.saturating_sub(step as u64) / 4096 * 4096]);
    starts.into_iter().map(|at| (at, (size - at).min(step as u64) as usize)).collect()
}

/// What the specification makes of a VHDX over the bytes of its parent.
fn truth_of(file: &SparseFile, parent: Option<&SparseFile>) -> Result<reference::Chain, reference::Broken> {
    let mut layers = vec![reference::Layer::Vhdx(reference::vhdx::Image::open(source(file))?)];
    if layers[0].has_parent() {
        // A file that was made a child by a mutation has no parent but zeros.
        layers.extend(parent.map(|parent| reference::Layer::Raw(source(parent))));
    }
    Ok(reference::Chain { layers })
}

fn open(file: &mut Watched, access: Access) -> Result<vhdx::OpenDisk, vhdx::OpenError> {
    vhdx::open(file, OpenOptions { access, guids: guids(5), data_write_guid: None })
}

/// Look at a file in all ways; `parent`: the bytes behind it.
pub fn examine_vhdx(file: &SparseFile, parent: Option<&SparseFile>) -> Outcome {
    let mut watched = Watched::new(file);
    let report = vhdx::check(&mut watched).expect("the storage does not fail");
    for finding in &report.findings {
        assert!(!finding.text.is_empty());
    }
    let opened = open(&mut watched, Access::ReadOnly);
    let described = vhdx::describe(&mut watched);
    assert_eq!(watched.writes, 0, "looking at a file changed it");
    let writable = open(&mut Watched::new(file), Access::ReadWrite).map(drop);
    let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    let refusal = writable.as_ref().err().map(ToString::to_string);
    assert_eq!(report.is_sound(), writable.is_ok(), "check {texts:?} and open {refusal:?} disagree");
    let disk = match opened {
        Ok(disk) => disk,
        Err(error) => {
            assert!(!error.to_string().is_empty() && !error.advice().is_empty());
            return match truth_of(file, parent) {
                Ok(_) => Outcome::Strict(without_numbers(&error.to_string())),
                Err(_) => Outcome::Refused,
            };
        }
    };
    let described = described.expect("what can be opened can be described");
    assert_eq!((described.geometry, described.data_write_guid), (disk.geometry, disk.data_write_guid));
    let truth = match truth_of(file, parent) {
        Ok(truth) => truth,
        Err(broken) => return Outcome::Lenient(without_numbers(&broken.to_string())),
    };
    assert_eq!(disk.geometry.disk_size_bytes, truth.size_bytes());
    let parent = parent.filter(|_| disk.parent.is_some());
    for (offset, len) in windows(truth.size_bytes()) {
        let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
        // Only what a pending log adds to a file may be looked for behind its end.
        match disk.replay {
            None => read_disk(&mut Exact(&watched.file), parent, &disk.map, offset, &mut ours),
            Some(_) => read_disk(&mut watched.file, parent, &disk.map, offset, &mut ours),
        }
        truth.read(offset, &mut theirs);
        assert!(ours == theirs, "the content differs near {offset}");
    }
    live(file, parent, &truth, u64::from(disk.geometry.block_size_bytes));
    Outcome::Read
}

/// Use the disk: write, unmap, move blocks, close; then let the reader from the specification look at everything.
fn live(file: &SparseFile, parent: Option<&SparseFile>, before: &reference::Chain, block: u64) {
    let size = before.size_bytes();
    let mut random = Random(size ^ file.len);
    let mut host = Host::open_over(RecordedFile::new(file.clone()), parent.cloned(), 9);
    // Changes in their order: where, how long, and what.
    let mut changes: Vec<(u64, u64, u8)> = Vec::new();
    for _ in 0..6 {
        let len = 512 << random.below(7);
        let at = random.below(size / 4096 + 1) * 4096;
        if random.below(3) > 0 && at + len <= size && len.is_multiple_of(4096.min(len)) {
            let len = len.max(4096).min(size - at) / 4096 * 4096;
            let value = random.next() as u8;
            if len > 0 && host.write(at, &vec![value; len as usize]).is_ok() {
                changes.push((at, len, value));
            }
        } else if random.below(2) == 0 {
            let at = random.below(size / block + 1) * block;
            let len = block.min(size.saturating_sub(at));
            let mut first = [1; 512];
            if len > 0 && host.unmap(at, len).is_ok() {
                host.read(at, &mut first);
                // A fixed disk keeps its blocks and what is in them.
                if first == [0; 512] {
                    changes.push((at, len, 0));
                }
            }
        } else {
            while host.relocate() {}
        }
    }
    let (file, closed) = host.close();
    let after = truth_of(&file.now, parent).unwrap_or_else(|broken| panic!("we left: {broken}"));
    let report = vhdx::check(&mut Watched::new(&file.now)).expect("the storage does not fail");
    assert!(report.is_sound(), "we left: {:?}", report.findings);
    let Event::Closed(Ok(())) = closed else { return };
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

/// A message's shape, so that like ones can be counted.
pub fn without_numbers(text: &str) -> String {
    let words =
        text.split_whitespace().map(|word| if word.contains(|c: char| c.is_ascii_digit()) { "#" } else { word });
    words.collect::<Vec<_>>().join(" ")
}
