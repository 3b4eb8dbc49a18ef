//! `tools vhdx`: what a VHDX file holds, without changing it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lunaring::units::HumanBytes;
use lunaring::vhdx::{self, Access, OpenDisk, OpenOptions, Storage, StorageError};

/// What to look at.
#[derive(clap::Args)]
pub struct Arguments {
    /// The file.
    file: PathBuf,
    /// List every payload block that has space in the file.
    #[arg(long)]
    blocks: bool,
}

/// Look; fails if the file is not a VHDX that can be opened.
pub fn run(arguments: &Arguments) -> ExitCode {
    match look(&arguments.file) {
        Ok(open) => {
            print(&open, arguments.blocks);
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{}: {why}", arguments.file.display());
            ExitCode::FAILURE
        }
    }
}

fn look(path: &Path) -> Result<OpenDisk, String> {
    let mut file = ReadOnly(File::open(path).map_err(|error| error.to_string())?);
    // Reading draws no identities.
    let options = OpenOptions { access: Access::ReadOnly, guids: Box::new(|| vhdx::Guid::ZERO), data_write_guid: None };
    vhdx::open(&mut file, options).map_err(|error| error.to_string())
}

fn print(open: &OpenDisk, with_blocks: bool) {
    let geometry = &open.geometry;
    println!("size             {} ({} bytes)", HumanBytes(geometry.disk_size_bytes), geometry.disk_size_bytes);
    println!("kind             {}", if geometry.fixed { "fixed" } else { "dynamic" });
    println!("sectors          {} logical, {} physical", geometry.logical_sector_bytes, geometry.physical_sector_bytes);
    println!("block size       {}", HumanBytes(u64::from(geometry.block_size_bytes)));
    println!("blocks           {} of {} have space", open.map.blocks_allocated(), geometry.block_count);
    println!("table at         {}", geometry.bat_offset_bytes);
    println!("virtual disk id  {}", open.virtual_disk_id);
    println!("data write id    {}", open.data_write_guid);
    println!("made by          {}", open.creator);
    match &open.replay {
        None => println!("log              empty"),
        Some(replay) => {
            println!("log              {} entries to replay, {} descriptors", replay.entries, replay.descriptors);
        }
    }
    for warning in &open.warnings {
        println!("warning          {warning:?}");
    }
    if with_blocks {
        let present = (0..geometry.block_count).filter_map(|block| Some((block, open.map.entry(block).ok()?)));
        for (block, entry) in present.filter(|(_, entry)| entry.is_present()) {
            println!("block {block:>10} at {}", entry.offset_bytes());
        }
    }
}

/// A file that is only read.
struct ReadOnly(File);

fn failed(error: std::io::Error) -> StorageError {
    StorageError::Failed(error.to_string())
}

impl Storage for ReadOnly {
    fn len_bytes(&mut self) -> Result<u64, StorageError> {
        self.0.metadata().map(|metadata| metadata.len()).map_err(failed)
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.0.read_exact_at(into, offset_bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                StorageError::UnexpectedEnd(offset_bytes.saturating_add(into.len() as u64))
            }
            _ => failed(error),
        })
    }

    fn write_at(&mut self, _offset_bytes: u64, _bytes: &[u8]) -> Result<(), StorageError> {
        Err(StorageError::Failed("the file is open for reading".to_owned()))
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        Ok(())
    }

    fn set_len(&mut self, _len_bytes: u64) -> Result<(), StorageError> {
        Err(StorageError::Failed("the file is open for reading".to_owned()))
    }
}
