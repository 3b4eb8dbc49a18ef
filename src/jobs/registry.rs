//! Which jobs there are and were.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::limits::{JOBS_FINISHED_MAX, JOBS_RUNNING_MAX};

/// A job's number, for as long as the server runs.
pub type JobId = u64;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Copies a disk's content into a new image.
    Convert,
    /// Merges a differencing disk into its parent.
    Merge,
    /// Merges the file of a deleted snapshot with the one above it.
    SnapshotDelete,
    /// Gives unused space back to the file system.
    Compact,
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It works.
    Running,
    /// It is done.
    Done,
    /// It could not be done.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// A job as it is told to people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its number.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The disk that it works on.
    pub disk: String,
    /// What it works on besides: the file that is written, the snapshot that goes.
    pub detail: Option<String>,
    /// Where it is.
    pub state: JobState,
    /// Bytes worked through so far.
    pub bytes_done: u64,
    /// Bytes to work through, as far as they are known.
    pub bytes_total: u64,
    /// Why it failed, and what to do.
    pub error: Option<String>,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// When it ended.
    pub finished: Option<u64>,
}

/// How far a job is, and whether it is still wanted. Shared by the worker and everybody who asks.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    cancelled: AtomicBool,
}

/// Why a job did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Somebody cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// In one line: what is wrong and what to do.
    #[error("{0}")]
    Failed(String),
}

/// As many jobs run as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{JOBS_RUNNING_MAX} jobs run already; wait for one of them, or cancel one with 'lunaring job cancel'")]
pub struct TooMany;

/// All jobs of a server. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Jobs>>);

#[derive(Debug, Default)]
struct Jobs {
    last: JobId,
    /// By number: the oldest comes first.
    jobs: BTreeMap<JobId, Entry>,
}

#[derive(Debug)]
struct Entry {
    info: JobInfo,
    progress: Arc<Progress>,
}

/// A job that runs. Dropped without [`Running::finish`] it counts as failed.
#[derive(Debug)]
pub struct Running {
    id: JobId,
    registry: Registry,
    progress: Arc<Progress>,
    finished: bool,
}

impl Progress {
    /// There is so much to do, as far as is known.
    pub fn set_total(&self, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }

    /// So much more is done.
    pub fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much is done in all.
    pub fn set_done(&self, bytes: u64) {
        self.done_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes done, and in all.
    pub fn bytes(&self) -> (u64, u64) {
        (self.done_bytes.load(Ordering::Relaxed), self.total_bytes.load(Ordering::Relaxed))
    }

    /// Ask the worker to stop.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Go on, unless the job was cancelled. Workers ask at least once for every few megabytes.
    ///
    /// # Errors
    /// [`JobError::Cancelled`].
    pub fn go_on(&self) -> Result<(), JobError> {
        if self.cancelled.load(Ordering::Acquire) { Err(JobError::Cancelled) } else { Ok(()) }
    }
}

impl Registry {
    /// Start a job's life.
    ///
    /// # Errors
    /// Too many run.
    pub fn begin(&self, kind: JobKind, disk: &str, detail: Option<String>) -> Result<Running, TooMany> {
        let mut jobs = self.jobs();
        if jobs.jobs.values().filter(|entry| entry.info.state == JobState::Running).count() >= JOBS_RUNNING_MAX {
            return Err(TooMany);
        }
        jobs.last += 1;
        let info = JobInfo {
            id: jobs.last,
            kind,
            disk: disk.to_owned(),
            detail,
            state: JobState::Running,
            bytes_done: 0,
            bytes_total: 0,
            error: None,
            started: now(),
            finished: None,
        };
        let progress = Arc::new(Progress::default());
        let id = info.id;
        jobs.jobs.insert(id, Entry { info, progress: Arc::clone(&progress) });
        drop(jobs);
        Ok(Running { id, registry: self.clone(), progress, finished: false })
    }

    /// Every job that runs and the last ones that ended, oldest first.
    pub fn list(&self) -> Vec<JobInfo> {
        self.jobs().jobs.values().map(Entry::told).collect()
    }

    /// One job.
    pub fn get(&self, id: JobId) -> Option<JobInfo> {
        self.jobs().jobs.get(&id).map(Entry::told)
    }

    /// Ask a job to stop; it does so in its own time. Nothing happens to one that has ended.
    pub fn cancel(&self, id: JobId) -> Option<JobInfo> {
        let jobs = self.jobs();
        let entry = jobs.jobs.get(&id)?;
        entry.progress.cancel();
        Some(entry.told())
    }

    /// Ask every job to stop.
    pub fn cancel_all(&self) {
        self.jobs().jobs.values().for_each(|entry| entry.progress.cancel());
    }

    fn end(&self, id: JobId, outcome: Result<(), JobError>) {
        let mut jobs = self.jobs();
        if let Some(entry) = jobs.jobs.get_mut(&id) {
            entry.info = entry.told();
            entry.info.finished = Some(now());
            (entry.info.state, entry.info.error) = match outcome {
                Ok(()) => (JobState::Done, None),
                Err(JobError::Cancelled) => (JobState::Cancelled, None),
                Err(JobError::Failed(why)) => (JobState::Failed, Some(why)),
            };
            if entry.info.state == JobState::Done {
                entry.info.bytes_total = entry.info.bytes_total.max(entry.info.bytes_done);
                entry.info.bytes_done = entry.info.bytes_total;
            }
        }
        let ended = |entry: &Entry| entry.info.state != JobState::Running;
        let surplus = jobs.jobs.values().filter(|entry| ended(entry)).count().saturating_sub(JOBS_FINISHED_MAX);
        let oldest: Vec<JobId> =
            jobs.jobs.iter().filter(|(_, entry)| ended(entry)).map(|(id, _)| *id).take(surplus).collect();
        for id in oldest {
            jobs.jobs.remove(&id);
        }
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn told(&self) -> JobInfo {
        let mut info = self.info.clone();
        if info.state == JobState::Running {
            info.bytes_done = self.progress.done_bytes.load(Ordering::Relaxed);
            info.bytes_total = self.progress.total_bytes.load(Ordering::Relaxed);
        }
        info
    }
}

impl Running {
    /// Its number.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// How far it is.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// It as it is told.
    pub fn info(&self) -> Option<JobInfo> {
        self.registry.get(self.id)
    }

    /// It has come to its end.
    pub fn finish(mut self, outcome: Result<(), JobError>) {
        self.finished = true;
        self.registry.end(self.id, outcome);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.finished {
            let why = "its worker ended without a result; see the server's log, and start it again".to_owned();
            self.registry.end(self.id, Err(JobError::Failed(why)));
        }
    }
}

/// A failure that has to do with a file.
pub(super) fn failed(path: &Path, error: impl fmt::Display) -> JobError {
    let (shown, said) = (path.display().to_string(), error.to_string().replace(['\n', '\r'], " "));
    JobError::Failed(if said.contains(&shown) { said } else { format!("{shown}: {said}") })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_job_tells_how_far_it_is_and_how_it_ended() {
        let registry = Registry::default();
        let job = registry.begin(JobKind::Convert, "d", Some("/x".into())).unwrap();
        job.progress().set_total(100);
        job.progress().add(40);
        let told = registry.get(job.id()).unwrap();
        assert_eq!((told.bytes_done, told.bytes_total, told.state), (40, 100, JobState::Running));
        let id = job.id();
        job.finish(Ok(()));
        let told = registry.get(id).unwrap();
        assert_eq!((told.bytes_done, told.bytes_total, told.state), (100, 100, JobState::Done));
        assert!(told.finished.is_some());
    }

    #[test]
    fn a_cancelled_job_is_told_so_and_one_that_vanishes_has_failed() {
        let registry = Registry::default();
        let job = registry.begin(JobKind::Merge, "d", None).unwrap();
        assert_eq!(job.progress().go_on(), Ok(()));
        registry.cancel(job.id()).unwrap();
        assert_eq!(job.progress().go_on(), Err(JobError::Cancelled));
        let id = job.id();
        job.finish(Err(JobError::Cancelled));
        assert_eq!(registry.get(id).unwrap().state, JobState::Cancelled);
        let lost = registry.begin(JobKind::Merge, "d", None).unwrap();
        let id = lost.id();
        drop(lost);
        assert_eq!(registry.get(id).unwrap().state, JobState::Failed);
        assert_eq!(registry.cancel(99), None);
    }

    #[test]
    fn jobs_that_run_and_jobs_that_ended_are_bounded() {
        let registry = Registry::default();
        let running: Vec<Running> =
            (0..JOBS_RUNNING_MAX).map(|_| registry.begin(JobKind::Compact, "d", None).unwrap()).collect();
        assert_eq!(registry.begin(JobKind::Compact, "d", None).unwrap_err(), TooMany);
        drop(running);
        for _ in 0..JOBS_FINISHED_MAX + 10 {
            registry.begin(JobKind::Compact, "d", None).unwrap().finish(Ok(()));
        }
        let list = registry.list();
        assert_eq!(list.len(), JOBS_FINISHED_MAX);
        assert_eq!(list.last().unwrap().id, (JOBS_RUNNING_MAX + JOBS_FINISHED_MAX + 10) as u64, "the newest stay");
    }
}
