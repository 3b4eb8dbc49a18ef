//! A disk's content in a new image, of any format and kind. What reads as zeros takes no space there.

use std::fs::File;
use std::path::Path;

use super::registry::{JobError, Progress, failed};
use crate::medium::blocking::BlockingDisk;
use crate::medium::offline::SingleLayer;
use crate::medium::{self, CreateSpec, Disk, FileError};

/// Bytes that are copied at once, and between two looks at whether the job is still wanted.
const COPY_BYTES: u64 = 1 << 20;

/// A disk that nobody writes, to be read here. `None`: it is not kept in files.
///
/// # Errors
/// A layer's file cannot be opened once more.
pub fn reader_of(disk: &Disk) -> Result<Option<BlockingDisk<File>>, FileError> {
    let Some(chain) = disk.chain() else { return Ok(None) };
    let files = disk.layers().iter().map(|layer| layer.open_reader()).collect::<Result<Vec<File>, _>>()?;
    Ok(Some(BlockingDisk::new(chain.clone(), files, None, false)))
}

/// Copy a disk into a new image. Blocking. The image is complete and durable afterwards, or it is gone again.
///
/// # Errors
/// Cancelled, or a file failed.
pub fn convert(source: &Disk, target: &CreateSpec, progress: &Progress) -> Result<(), JobError> {
    progress.set_total(source.size_bytes());
    let reader = reader_of(source).map_err(|e| JobError::Failed(e.to_string()))?;
    let Some(reader) = reader else {
        return Err(JobError::Failed("the disk has no file to copy from".to_owned()));
    };
    medium::create_file(target).map_err(|e| failed(&target.path, e))?;
    let copied = copy(reader, &target.path, progress);
    if copied.is_err() {
        // The refusal matters more than a leftover.
        let _ = std::fs::remove_file(&target.path);
    }
    copied
}

fn copy(mut source: BlockingDisk<File>, path: &Path, progress: &Progress) -> Result<(), JobError> {
    let opened = SingleLayer::open(path, true, None).map_err(|e| failed(path, e))?;
    let mut target = opened.into_disk();
    let reading = |e: medium::blocking::BlockingError| JobError::Failed(format!("the source: {e}"));
    let size_bytes = source.size_bytes();
    let mut buffer = vec![0; COPY_BYTES as usize];
    let mut at = 0;
    while at < size_bytes {
        progress.go_on()?;
        progress.set_done(at);
        let status = source.status(at, size_bytes - at).map_err(reading)?;
        if !status.mapped {
            at += status.len_bytes;
            continue;
        }
        let len = status.len_bytes.min(COPY_BYTES);
        let part = &mut buffer[..len as usize];
        source.read_at(at, part).map_err(reading)?;
        if !part.iter().all(|byte| *byte == 0) {
            target.write_at(at, part).map_err(|e| failed(path, e))?;
        }
        at += len;
    }
    let files = target.close().map_err(|e| failed(path, e))?;
    for file in files {
        file.sync_all().map_err(|e| failed(path, format!("cannot flush: {e}")))?;
    }
    progress.set_done(size_bytes);
    Ok(())
}
