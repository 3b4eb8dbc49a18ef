//! Merging a differencing layer into its parent: afterwards the parent alone holds what both held together.
//!
//! Whoever reads through both layers meanwhile sees no change: what is written to the parent is what the layer hides
//! there. And it can be done again: a merge that was interrupted begins anew and writes the same bytes. The parent's
//! identity is chosen before the first byte is changed, and the layer names it as a second identity of its parent, so
//! that the two belong together at every moment.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::registry::{JobError, Progress, failed};
use crate::blocks::{BlockMap, Fault, State, load_blocking};
use crate::medium::blocking::{BlockingDisk, BlockingFile};
use crate::medium::offline::{self, Hold, ResizePlan, SingleLayer};
use crate::medium::{self, DiskFormat, LayerFile};
use crate::vhdx::Guid;

/// Bytes that are copied at once, and between two looks at whether the job is still wanted.
const COPY_BYTES: usize = 1 << 20;

/// Who keeps other processes from reading a file that is merged into.
#[derive(Clone)]
pub enum Lower {
    /// The caller has locked it exclusively.
    Locked,
    /// The layer holds a shared lock, which becomes exclusive for the time of the merge.
    Open(Arc<LayerFile>),
    /// Nobody has it open: it is locked for the time of the merge.
    Closed,
}

/// A lock for the time of a merge.
enum Alone {
    Callers,
    Layers(Arc<LayerFile>),
    Own(#[expect(dead_code, reason = "it holds the lock")] File),
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Self::Layers(layer) = self
            && let Err(error) = layer.share_lock()
        {
            tracing::warn!("{error}; other programs cannot read it until the server ends");
        }
    }
}

/// What to merge.
pub struct Merge {
    /// The layer, which nobody writes.
    pub layer: PathBuf,
    /// Its parent, which nobody writes and nobody else is based on.
    pub into: PathBuf,
    /// Who locks that.
    pub lower: Lower,
    /// The parent's identity afterwards, where its format has one that changes with its content.
    pub identifier: Guid,
}

/// A run of a layer's own content.
struct Run {
    offset_bytes: u64,
    len_bytes: u64,
    /// Where in the layer's file; `None`: zeros.
    at: Option<u64>,
}

impl Merge {
    /// Merge. Blocking; both files are durable and clean afterwards.
    ///
    /// # Errors
    /// Cancelled, or a file failed. The layer over its parent still holds what it held.
    pub fn run(&self, progress: &Progress) -> Result<(), JobError> {
        let _alone = self.lock()?;
        let parent = medium::describe(&self.into).map_err(|e| failed(&self.into, e))?;
        let child = medium::describe(&self.layer).map_err(|e| failed(&self.layer, e))?;
        match parent.format {
            DiskFormat::Raw => offline::restamp_raw_parent(&self.layer, &self.into),
            _ => offline::expect_identity(&self.layer, Hold::Held, self.identifier),
        }
        .map_err(|e| failed(&self.layer, e))?;
        if parent.size_bytes != child.size_bytes {
            let plan = ResizePlan {
                size_bytes: child.size_bytes,
                allow_shrink: true,
                identifier: Some(self.identifier),
                ..ResizePlan::default()
            };
            offline::resize(&self.into, Hold::Held, plan).map_err(|e| failed(&self.into, e))?;
        }
        let mut layer = SingleLayer::open(&self.layer, false, None).map_err(|e| failed(&self.layer, e))?;
        let into = SingleLayer::open(&self.into, true, Some(self.identifier)).map_err(|e| failed(&self.into, e))?;
        let Some(map) = layer.map.clone() else {
            return Err(failed(&self.layer, "it has no parent, so there is nothing to merge it into"));
        };
        let has_parent = into.map.as_ref().is_some_and(|map| map.shape().has_parent);
        let block_bytes = into.map.as_ref().map_or(1, |map| map.shape().block_bytes());
        progress.set_total(map.shape().size_bytes);
        let mut target = into.into_disk();
        self.identify(&mut target)?;
        let mut buffer = vec![0; COPY_BYTES];
        let result = each_run(&map, &mut layer.file, progress, |file, run| {
            match run.at {
                Some(at) => copy(file, at, &mut target, &run, &mut buffer, progress),
                None => erase(&mut target, &run, has_parent, block_bytes),
            }
            .map_err(|error| match error {
                JobError::Failed(why) => failed(&self.into, why),
                cancelled => cancelled,
            })
        });
        // What was copied so far is sound either way; a clean file is easier on whoever comes next.
        let closed = target.close().map_err(|e| failed(&self.into, e)).map(drop);
        result.and(closed)
    }

    /// Keep other processes from reading what is going to be written.
    fn lock(&self) -> Result<Alone, JobError> {
        match &self.lower {
            Lower::Locked => Ok(Alone::Callers),
            Lower::Open(layer) => layer.lock_alone().map(|()| Alone::Layers(Arc::clone(layer))),
            Lower::Closed => offline::lock_alone(&self.into).map(Alone::Own),
        }
        .map_err(|e| failed(&self.into, e))
    }

    /// Let the parent have its new identity even where no byte of it will change.
    fn identify(&self, target: &mut BlockingDisk<File>) -> Result<(), JobError> {
        if target.engine().is_none() {
            return Ok(());
        }
        target.begin_write_session().map_err(|e| failed(&self.into, e))
    }
}

fn copy(
    file: &mut File,
    at: u64,
    target: &mut BlockingDisk<File>,
    run: &Run,
    buffer: &mut [u8],
    progress: &Progress,
) -> Result<(), JobError> {
    let mut done = 0;
    while done < run.len_bytes {
        progress.go_on()?;
        let len = (run.len_bytes - done).min(buffer.len() as u64) as usize;
        let part = &mut buffer[..len];
        BlockingFile::read(file, at + done, part).map_err(|e| JobError::Failed(format!("cannot read: {e}")))?;
        target.write_at(run.offset_bytes + done, part).map_err(|e| JobError::Failed(e.to_string()))?;
        done += len as u64;
    }
    Ok(())
}

/// Make a run read as zeros in the parent. Where that has a parent itself, space that it does not have shows what is
/// below, so the edges of blocks are written.
fn erase(target: &mut BlockingDisk<File>, run: &Run, has_parent: bool, block_bytes: u64) -> Result<(), JobError> {
    let because = |e: medium::blocking::BlockingError| JobError::Failed(e.to_string());
    if !has_parent {
        return target.write_zeros(run.offset_bytes, run.len_bytes).map_err(because);
    }
    target.unmap(run.offset_bytes, run.len_bytes).map_err(because)?;
    let end = run.offset_bytes + run.len_bytes;
    let first_whole = run.offset_bytes.next_multiple_of(block_bytes).min(end);
    let last_whole = if end == target.size_bytes() { end } else { end / block_bytes * block_bytes };
    let zeros = vec![0; COPY_BYTES];
    for (from, to) in [(run.offset_bytes, first_whole), (last_whole.max(first_whole), end)] {
        let mut at = from;
        while at < to {
            let len = (to - at).min(zeros.len() as u64);
            target.write_at(at, &zeros[..len as usize]).map_err(because)?;
            at += len;
        }
    }
    Ok(())
}

/// Call `f` with every run of content that a layer has itself, in order.
fn each_run(
    map: &BlockMap,
    file: &mut File,
    progress: &Progress,
    mut f: impl FnMut(&mut File, Run) -> Result<(), JobError>,
) -> Result<(), JobError> {
    let shape = map.shape();
    let block_bytes = shape.block_bytes();
    for block in 0..shape.blocks() {
        let offset_bytes = u64::from(block) * block_bytes;
        let len_bytes = block_bytes.min(shape.size_bytes - offset_bytes);
        if block.is_multiple_of(4096) {
            progress.go_on()?;
        }
        progress.set_done(offset_bytes);
        let entry = loaded(map, file, || map.entry(block))?;
        let at = entry.offset_bytes();
        match entry.state() {
            State::Absent => {}
            State::Zeros => f(file, Run { offset_bytes, len_bytes, at: None })?,
            State::Full => f(file, Run { offset_bytes, len_bytes, at: Some(at) })?,
            State::Partial => {
                let (first, sectors) = (offset_bytes >> shape.sector_shift, len_bytes >> shape.sector_shift);
                let mut done = 0;
                while done < sectors {
                    let (here, count) = loaded(map, file, || map.run(first + done, sectors - done))?;
                    let (from, len) = (done << shape.sector_shift, count << shape.sector_shift);
                    if here {
                        let run = Run { offset_bytes: offset_bytes + from, len_bytes: len, at: Some(at + from) };
                        f(file, run)?;
                    }
                    done += count;
                }
            }
        }
    }
    progress.set_done(shape.size_bytes);
    Ok(())
}

/// Ask a map, loading what it needs.
fn loaded<T>(map: &BlockMap, file: &mut File, ask: impl Fn() -> Result<T, Fault>) -> Result<T, JobError> {
    loop {
        match ask() {
            Ok(found) => return Ok(found),
            Err(fault) => load_blocking(map, fault, &mut |at, into| BlockingFile::read(file, at, into))
                .map_err(|e| JobError::Failed(format!("cannot read a layer's block table: {e}")))?,
        }
    }
}
