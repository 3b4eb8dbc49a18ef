//! Commands that take long: each is a job, whose worker comes back to the controller for every change that it makes to
//! what is served.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::api;
use super::controller::{Controller, Handle};
use super::disks::refusal;
use super::error::Refused;
use super::executor::{blocking, spawn};
use super::images::refuse_taken;
use super::state;
use crate::jobs::{JobError, JobId, JobInfo, JobKind, Progress, Running};
use crate::medium::{self, CreateSpec, Disk, DiskFormat, DiskKind};
use crate::shard::message::ToShard;

/// How often a job that waits looks whether it is still wanted.
const CANCEL_LOOK: Duration = Duration::from_millis(100);

/// Block size of a copy: what is empty between two files of a guest takes no space. The format's own default for new
/// disks is larger.
const COPY_BLOCK_BYTES: u64 = 2 << 20;

impl Controller {
    /// Refuse to touch a disk that a job works on.
    pub(super) fn refuse_busy(&self, name: &str) -> Result<(), Refused> {
        match self.busy.get(name) {
            None => Ok(()),
            Some(job) => Err(Refused::conflict(format!(
                "job {job} works on disk '{name}'; wait for it, or stop it with 'lunaring job cancel {job}'"
            ))),
        }
    }

    /// Start a job on a disk.
    ///
    /// # Errors
    /// Another one works on it, or too many run.
    pub(super) fn job_begin(&mut self, kind: JobKind, disk: &str, detail: Option<String>) -> Result<Running, Refused> {
        self.refuse_busy(disk)?;
        let running = self.jobs.begin(kind, disk, detail).map_err(Refused::conflict)?;
        self.busy.insert(disk.to_owned(), running.id());
        self.publish();
        Ok(running)
    }

    /// A job has come to its end.
    async fn job_end(&mut self, disk: String, job: JobId) -> Result<(), Refused> {
        if self.busy.get(&disk) == Some(&job) {
            self.busy.remove(&disk);
        }
        self.publish();
        Ok(())
    }

    /// A copy has its name, or is gone.
    async fn forget_unfinished(&mut self, id: Uuid) -> Result<(), Refused> {
        self.state.end_unfinished(id);
        Ok(())
    }

    /// The disks with merges that a former run of the server left behind.
    pub fn merges_left(&self) -> Vec<String> {
        self.config.disks.keys().filter(|name| self.has_merge(name)).cloned().collect()
    }

    /// A disk that nobody writes and that shows what the disk shows now; and whether its leaf was frozen for that.
    ///
    /// # Errors
    /// The disk is not in files, or cannot be frozen.
    async fn frozen_view(&mut self, name: &str) -> Result<(Arc<Disk>, bool), Refused> {
        let disk = self.online(name)?;
        if disk.layers().is_empty() {
            return Err(Refused::conflict(format!(
                "disk '{name}' is a {} disk: it has no files that could be copied while it changes",
                disk.format().as_str()
            )));
        }
        if disk.read_only() {
            return Ok((disk, false));
        }
        self.freeze_leaf(name).await?;
        // The former form of the disk has the frozen leaf and all below it.
        Ok((disk, true))
    }
}

/// What a new image will be.
fn conversion(source: &Disk, wanted: &api::Convert) -> Result<(CreateSpec, PathBuf, Uuid), Refused> {
    if !wanted.to.is_absolute() {
        return Err(Refused::invalid("'to' must be an absolute path"));
    }
    refuse_taken(&wanted.to)?;
    let id = Uuid::new_v4();
    let format = wanted.format.map_or_else(|| format_by_name(&wanted.to), Ok)?;
    let has_blocks = matches!(format, DiskFormat::Vhdx | DiskFormat::Vhd);
    if wanted.block_size_bytes.is_some() && !has_blocks {
        return Err(Refused::invalid("--block-size is for vhdx and vhd images"));
    }
    let spec = CreateSpec {
        path: wanted.to.with_file_name(format!(".lunaring-{id}")),
        format,
        kind: wanted.kind.unwrap_or(DiskKind::Dynamic),
        size_bytes: source.size_bytes(),
        block_size_bytes: wanted.block_size_bytes.or(has_blocks.then_some(COPY_BLOCK_BYTES)),
        sector_size_bytes: source.block_length(),
        parent: None,
        disk_id: None,
    };
    if !spec.format.has_file() {
        return Err(Refused::invalid(format!("{} is not the format of a file", spec.format.as_str())));
    }
    if spec.kind == DiskKind::Differencing {
        return Err(Refused::invalid("a copy has no parent; use --kind dynamic or fixed"));
    }
    Ok((spec, wanted.to.clone(), id))
}

/// The format that the end of a file's name says.
fn format_by_name(file: &std::path::Path) -> Result<DiskFormat, Refused> {
    let end = file.extension().and_then(std::ffi::OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    match end.as_str() {
        "vhdx" | "avhdx" => Ok(DiskFormat::Vhdx),
        "vhd" | "avhd" => Ok(DiskFormat::Vhd),
        "raw" | "img" | "iso" | "bin" => Ok(DiskFormat::Raw),
        _ => Err(Refused::invalid(format!(
            "the name {} does not say which format it shall have; say it with --format",
            file.display()
        ))),
    }
}

/// Copy a disk into a new image and give that its name. Blocking.
fn convert(source: &Disk, spec: &CreateSpec, to: &std::path::Path, progress: &Progress) -> Result<(), JobError> {
    crate::jobs::convert::convert(source, spec, progress).map_err(|error| match error {
        // The passing name means nothing to the reader of a message.
        JobError::Failed(why) => {
            JobError::Failed(why.replace(&spec.path.display().to_string(), &to.display().to_string()))
        }
        cancelled => cancelled,
    })?;
    state::name_exclusively(&spec.path, to).map_err(|error| {
        let _ = std::fs::remove_file(&spec.path);
        JobError::Failed(format!("cannot create {}: {error}", to.display()))
    })
}

/// Copy the image of a disk that no server serves. Blocking.
///
/// # Errors
/// Why not.
pub fn convert_file(
    file: &std::path::Path,
    parent: Option<PathBuf>,
    wanted: &api::Convert,
    progress: &Progress,
) -> Result<(), Refused> {
    let disk = medium::offline::open_to_read(file, parent).map_err(|e| refusal(&e))?;
    let (spec, to, _) = conversion(&disk, wanted)?;
    convert(&disk, &spec, &to, progress).map_err(Refused::failed)
}

impl Handle {
    /// Every job.
    pub fn api_jobs(&self) -> api::Jobs {
        api::Jobs { jobs: self.registry.list() }
    }

    /// One job.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn api_job(&self, id: JobId) -> Result<JobInfo, Refused> {
        self.registry
            .get(id)
            .ok_or_else(|| Refused::not_found(format!("there is no job {id}; see 'lunaring job list'")))
    }

    /// Ask a job to stop.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn job_cancel(&self, id: JobId) -> Result<JobInfo, Refused> {
        let found = self.registry.cancel(id);
        found.ok_or_else(|| Refused::not_found(format!("there is no job {id}; see 'lunaring job list'")))
    }

    /// Start the job that a disk's merges need.
    ///
    /// # Errors
    /// Another job works on the disk.
    pub async fn start_merge(&self, kind: JobKind, disk: String, detail: Option<String>) -> Result<JobInfo, Refused> {
        let name = disk.clone();
        let running = self.change(move |c| Box::pin(async move { c.job_begin(kind, &name, detail) })).await?;
        self.undertake(disk.clone(), running, async move |handle, progress| handle.merge_all(&disk, progress).await)
    }

    /// Go on with merges that a former run of the server left behind.
    pub async fn resume_merges(&self) {
        let left = self.change(|c| Box::pin(async move { Ok(c.merges_left()) })).await.unwrap_or_default();
        for disk in left {
            if let Err(refused) = self.start_merge(JobKind::SnapshotDelete, disk.clone(), None).await {
                tracing::warn!("disk '{disk}': what was left to merge waits: {refused}");
            }
        }
    }

    /// Start copying a disk into a new image.
    ///
    /// # Errors
    /// The new image is not possible, or another job works on the disk.
    pub async fn start_convert(&self, disk: String, wanted: api::Convert) -> Result<JobInfo, Refused> {
        let name = disk.clone();
        let begun = self.change(move |c| {
            Box::pin(async move {
                let (spec, to, id) = conversion(&*c.online(&name)?, &wanted)?;
                let running = c.job_begin(JobKind::Convert, &name, Some(to.display().to_string()))?;
                c.state.begin_unfinished(id, &spec.path)?;
                Ok((running, spec, to, id))
            })
        });
        let (running, spec, to, id) = begun.await?;
        self.undertake(disk.clone(), running, async move |handle, progress| {
            let result = handle.convert(&disk, spec, to, progress).await;
            let ended = handle.change(move |c| Box::pin(c.forget_unfinished(id))).await;
            result.and(ended.map_err(failed))
        })
    }

    /// Start giving a disk's unused space back.
    ///
    /// # Errors
    /// The disk has no unused space that it could give back, or another job works on it.
    pub async fn start_compact(&self, disk: String) -> Result<JobInfo, Refused> {
        let name = disk.clone();
        let begun = self.change(move |c| {
            Box::pin(async move {
                let live = c.online(&name)?;
                if live.read_only() || live.map().is_none() || live.kind() == DiskKind::Fixed {
                    return Err(Refused::conflict(format!(
                        "disk '{name}' has no blocks that could move: only dynamic and differencing VHDX and VHD disks \
                         that can be written are compacted"
                    )));
                }
                Ok((c.job_begin(JobKind::Compact, &name, None)?, live))
            })
        });
        let (running, live) = begun.await?;
        self.undertake(disk, running, async move |handle, progress| handle.compact(&live, progress).await)
    }

    /// Let a job run to its end in the background.
    fn undertake<W>(&self, disk: String, running: Running, work: W) -> Result<JobInfo, Refused>
    where
        W: AsyncFnOnce(Handle, Arc<Progress>) -> Result<(), JobError> + 'static,
    {
        let info = running.info().ok_or_else(|| Refused::failed("the job is gone"))?;
        let handle = self.clone();
        spawn(async move {
            let outcome = work(handle.clone(), Arc::clone(running.progress())).await;
            let id = running.id();
            // The server is ending when this is refused.
            let _ = handle.change(move |c| Box::pin(c.job_end(disk, id))).await;
            running.finish(outcome);
        });
        Ok(info)
    }

    /// Do all merges of a disk.
    async fn merge_all(&self, disk: &str, progress: Arc<Progress>) -> Result<(), JobError> {
        for round in 0.. {
            let name = disk.to_owned();
            let next = self.change(move |c| Box::pin(async move { c.merge_next(&name, round).await })).await;
            let Some(work) = next.map_err(failed)? else { return Ok(()) };
            let counted = Arc::clone(&progress);
            blocking(move || work.run(&counted)).await?;
            let name = disk.to_owned();
            self.change(move |c| Box::pin(async move { c.merge_copied(&name).await })).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn convert(
        &self,
        disk: &str,
        spec: CreateSpec,
        to: PathBuf,
        progress: Arc<Progress>,
    ) -> Result<(), JobError> {
        let name = disk.to_owned();
        let view = self.change(move |c| Box::pin(async move { c.frozen_view(&name).await })).await;
        let (source, frozen) = view.map_err(failed)?;
        let counted = Arc::clone(&progress);
        let copied = blocking(move || convert(&source, &spec, &to, &counted)).await;
        let merged = if frozen { self.merge_all(disk, Arc::default()).await } else { Ok(()) };
        copied.and(merged)
    }

    /// Move a disk's blocks together, step by step.
    async fn compact(&self, disk: &Disk, progress: Arc<Progress>) -> Result<(), JobError> {
        progress.set_total(disk.size_bytes());
        let (id, home) = (disk.id(), disk.home());
        loop {
            progress.go_on()?;
            let step = super::dataplane::ask(&*self.plane, home, |reply| ToShard::Relocate { disk: id, reply }).await;
            let cancelled = async {
                loop {
                    progress.go_on()?;
                    async_io::Timer::after(CANCEL_LOOK).await;
                }
            };
            let stepped = async { step.wait().await.and_then(|more| more.map_err(Refused::failed)).map_err(failed) };
            let more = futures_lite::future::or(stepped, cancelled).await?;
            if !more {
                return Ok(());
            }
            progress.add(disk.payload_block_bytes().unwrap_or(0));
        }
    }
}

fn failed(refused: Refused) -> JobError {
    JobError::Failed(refused.message)
}
