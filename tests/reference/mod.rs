//! A second reader of VHDX and VHD, written from the specifications alone and as plainly as they read: whole structures
//! are looked at one field after another, nothing is cached, nothing is fast. It is the judge where no other program
//! can be believed (4096-byte sectors, dirty differencing disks) and where thousands of files have to be judged.
//!
//! It shares no code with `src/`, and must not: include it with `mod reference;` and hand it bytes.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod log;
pub mod vhd;
pub mod vhdx;

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// Why a file is not what the specification describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Stop with a sentence.
macro_rules! broken {
    ($($word:tt)*) => { return Err(crate::reference::Broken(format!($($word)*))) };
}
pub(crate) use broken;

/// Stop with a sentence unless a rule holds.
macro_rules! rule {
    ($holds:expr, $($word:tt)*) => { if !($holds) { crate::reference::broken!($($word)*) } };
}
pub(crate) use rule;

/// The bytes of a file.
pub trait Source: Send + Sync {
    fn len_bytes(&self) -> u64;
    /// Bytes past the end are zeros.
    fn read(&self, offset_bytes: u64, into: &mut [u8]);
}

impl Source for Vec<u8> {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset_bytes: u64, into: &mut [u8]) {
        for (at, byte) in into.iter_mut().enumerate() {
            *byte = self.get(offset_bytes as usize + at).copied().unwrap_or(0);
        }
    }
}

impl Source for File {
    fn len_bytes(&self) -> u64 {
        self.metadata().expect("a file has a size").len()
    }

    fn read(&self, offset_bytes: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            match self.read_at(&mut into[done..], offset_bytes + done as u64).expect("the file can be read") {
                0 => {
                    into[done..].fill(0);
                    return;
                }
                read => done += read,
            }
        }
    }
}

/// Any bytes, by a function: `(offset, into)`; past the end it leaves zeros.
pub struct Bytes<F> {
    pub len_bytes: u64,
    pub read: F,
}

impl<F: Fn(u64, &mut [u8]) + Send + Sync> Source for Bytes<F> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset_bytes: u64, into: &mut [u8]) {
        (self.read)(offset_bytes, into);
    }
}

pub fn bytes<const N: usize>(source: &dyn Source, offset_bytes: u64) -> [u8; N] {
    let mut bytes = [0; N];
    source.read(offset_bytes, &mut bytes);
    bytes
}

pub fn vector(source: &dyn Source, offset_bytes: u64, len_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len_bytes).expect("small")];
    source.read(offset_bytes, &mut bytes);
    bytes
}

/// Where a byte of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    File(u64),
    Zeros,
    Parent,
}

/// One file of a chain.
pub enum Layer {
    Vhdx(vhdx::Image),
    Vhd(vhd::Image),
    Raw(Arc<dyn Source>),
}

impl Layer {
    pub fn open(source: Arc<dyn Source>) -> Result<Self, Broken> {
        let magic = bytes::<8>(&*source, 0);
        if &magic == b"vhdxfile" {
            vhdx::Image::open(source).map(Self::Vhdx)
        } else if vhd::looks_like_one(&*source) {
            vhd::Image::open(source).map(Self::Vhd)
        } else {
            Ok(Self::Raw(source))
        }
    }

    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Vhdx(image) => image.size_bytes,
            Self::Vhd(image) => image.size_bytes,
            Self::Raw(source) => source.len_bytes(),
        }
    }

    pub fn has_parent(&self) -> bool {
        match self {
            Self::Vhdx(image) => image.has_parent,
            Self::Vhd(image) => image.has_parent(),
            Self::Raw(_) => false,
        }
    }

    /// Where the byte at `offset_bytes` is, and for how many bytes that holds.
    fn place(&self, offset_bytes: u64) -> (Place, u64) {
        match self {
            Self::Vhdx(image) => image.place(offset_bytes),
            Self::Vhd(image) => image.place(offset_bytes),
            Self::Raw(source) => (Place::File(offset_bytes), source.len_bytes() - offset_bytes),
        }
    }

    fn read_file(&self, offset_bytes: u64, into: &mut [u8]) {
        match self {
            Self::Vhdx(image) => image.file.read(offset_bytes, into),
            Self::Vhd(image) => image.file.read(offset_bytes, into),
            Self::Raw(source) => source.read(offset_bytes, into),
        }
    }

    /// The parent must be the one that the child was made for.
    fn accepts(&self, parent: &Self) -> Result<(), Broken> {
        match (self, parent) {
            (Self::Vhdx(child), Self::Vhdx(parent)) => child.accepts(parent),
            (Self::Vhd(child), Self::Vhd(parent)) => child.accepts(parent),
            // No specification says anything of raw parents.
            (Self::Vhdx(_), Self::Raw(_)) => Ok(()),
            _ => broken!("the parent's format is not the child's"),
        }
    }
}

/// A disk: its file and the parents behind it, leaf first.
pub struct Chain {
    pub layers: Vec<Layer>,
}

impl Chain {
    /// Leaf first. As many files as the chain has, no more and no fewer.
    pub fn open(sources: Vec<Arc<dyn Source>>) -> Result<Self, Broken> {
        let layers = sources.into_iter().map(Layer::open).collect::<Result<Vec<_>, _>>()?;
        for pair in layers.windows(2) {
            pair[0].accepts(&pair[1])?;
        }
        let last = layers.last().ok_or_else(|| Broken("no file".to_owned()))?;
        rule!(!last.has_parent(), "the last file of the chain needs a parent");
        let parents = layers.iter().take(layers.len() - 1).all(Layer::has_parent);
        rule!(parents, "a file that has no parent was given one");
        Ok(Self { layers })
    }

    /// The file and its parents, which are found by their relative paths.
    pub fn open_file(path: &Path) -> Result<Self, Broken> {
        let mut sources: Vec<Arc<dyn Source>> = Vec::new();
        let mut next = Some(path.to_path_buf());
        while let Some(path) = next {
            rule!(sources.len() < 256, "the chain has a loop");
            let file = File::open(&path).map_err(|error| Broken(format!("{}: {error}", path.display())))?;
            let source: Arc<dyn Source> = Arc::new(file);
            next = parent_path(&Layer::open(source.clone())?, &path)?;
            sources.push(source);
        }
        Self::open(sources)
    }

    pub fn size_bytes(&self) -> u64 {
        self.layers[0].size_bytes()
    }

    /// Read from the disk; the range must be inside it.
    pub fn read(&self, offset_bytes: u64, into: &mut [u8]) {
        assert!(offset_bytes + into.len() as u64 <= self.size_bytes());
        let mut done = 0;
        while done < into.len() {
            let at = offset_bytes + done as u64;
            let mut run = (into.len() - done) as u64;
            let mut found = None;
            for layer in &self.layers {
                // Behind the end of a smaller parent there are zeros.
                if at >= layer.size_bytes() {
                    break;
                }
                let (place, holds) = layer.place(at);
                run = run.min(holds).min(layer.size_bytes() - at);
                match place {
                    Place::Parent => {}
                    Place::Zeros => break,
                    Place::File(offset) => {
                        found = Some((layer, offset));
                        break;
                    }
                }
            }
            let part = &mut into[done..done + run as usize];
            match found {
                Some((layer, offset)) => layer.read_file(offset, part),
                None => part.fill(0),
            }
            done += run as usize;
        }
    }

    /// SHA-256 of the whole disk, in lower case hexadecimal.
    pub fn sha256(&self) -> String {
        let (mut hash, mut bytes) = (Sha256::new(), vec![0; 1 << 20]);
        for offset in (0..self.size_bytes()).step_by(bytes.len()) {
            let len = (self.size_bytes() - offset).min(bytes.len() as u64) as usize;
            self.read(offset, &mut bytes[..len]);
            hash.update(&bytes[..len]);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn parent_path(layer: &Layer, path: &Path) -> Result<Option<PathBuf>, Broken> {
    if !layer.has_parent() {
        return Ok(None);
    }
    let relative = match layer {
        Layer::Vhdx(image) => image.locator("relative_path"),
        Layer::Vhd(image) => image.relative_path(),
        Layer::Raw(_) => None,
    };
    let Some(relative) = relative else { broken!("{}: no relative path to the parent", path.display()) };
    let directory = path.parent().expect("a file is in a directory");
    Ok(Some(directory.join(relative.replace('\\', "/"))))
}
