//! File operations of the simulated kernel.

use super::{FileEntry, Kernel, OpKey, PERHAPS, Thing};
use crate::ring::{AllocateMode, Fd, Nanos, Op, Window};
use crate::sim::disk::{FileState, SECTOR_BYTES, Survival};
use crate::sim::faults::{FileFaults, latency};
use crate::sim::history::{What, hash_bytes};

/// What a file operation takes when nothing is wrong.
const DISK_LATENCY: Nanos = Nanos(100_000);

/// How a simulated file behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// Direct I/O: offsets, lengths and buffer addresses must be multiples of this many bytes, or the operation fails
    /// with EINVAL. 1 for buffered files.
    pub alignment_bytes: u32,
    /// Writes fail with EBADF.
    pub read_only: bool,
}

impl Default for FileOptions {
    fn default() -> FileOptions {
        FileOptions { alignment_bytes: 1, read_only: false }
    }
}

/// Blocks can be shared in these units.
const BLOCK_BYTES: u64 = 4096;

/// Largest file size (as the kernel's `loff_t`).
const FILE_LEN_MAX: u64 = i64::MAX as u64;

impl Kernel {
    pub(in crate::sim) fn file_create(&mut self, name: &str, len_bytes: u64) {
        assert!(self.file_index(name).is_none(), "the file '{name}' exists already");
        self.files.push(FileEntry { name: name.to_owned(), state: FileState::new(len_bytes), faults: None });
    }

    pub(in crate::sim) fn file_index(&self, name: &str) -> Option<usize> {
        self.files.iter().position(|file| file.name == name)
    }

    pub(in crate::sim) fn file_open(&mut self, index: usize, options: FileOptions) -> Fd {
        assert!(options.alignment_bytes > 0);
        self.open_descriptor(Thing::File { index, options })
    }

    pub(in crate::sim) fn file_state(&mut self, index: usize) -> &mut FileState {
        &mut self.files[index].state
    }

    pub(in crate::sim) fn set_faults_of_file(&mut self, index: usize, faults: Option<FileFaults>) {
        self.files[index].faults = faults;
    }

    pub(in crate::sim) fn files_after_power_cut(&mut self, seed: u64) {
        let mut random = crate::sim::Random::new(seed);
        for file in &mut self.files {
            let survival = Survival::draw(&mut random);
            file.state.power_cut(survival, &mut random);
        }
    }

    /// Take over another world's files.
    pub(in crate::sim) fn copy_files(&mut self, from: &Kernel) {
        for file in &from.files {
            self.files.push(FileEntry { name: file.name.clone(), state: file.state.clone(), faults: None });
        }
    }

    pub(super) fn file_of(&self, fd: Fd) -> Option<usize> {
        match self.descriptor(fd)?.thing {
            Thing::File { index, .. } => Some(index),
            Thing::Listener(_) | Thing::Socket(_) => None,
        }
    }

    fn file_with_options(&self, fd: Fd) -> Result<(usize, FileOptions), i32> {
        match self.descriptor(fd).map(|descriptor| &descriptor.thing) {
            Some(&Thing::File { index, options }) => Ok((index, options)),
            _ => Err(libc::EBADF),
        }
    }

    pub(super) fn schedule_file(&mut self, key: OpKey, fd: Fd) {
        let after = self.operation_takes(fd);
        self.schedule_effect(key, Nanos(self.now().0 + after.0));
    }

    pub(super) fn schedule_sync(&mut self, key: OpKey, fd: Fd) {
        let after = self.operation_takes(fd).0 + self.faults_of(fd).sync_takes.0;
        self.schedule_effect(key, Nanos(self.now().0 + after));
    }

    fn faults_of(&self, fd: Fd) -> &FileFaults {
        self.file_of(fd).and_then(|file| self.files[file].faults.as_ref()).unwrap_or(&self.file_faults)
    }

    fn operation_takes(&mut self, fd: Fd) -> Nanos {
        let (delay, delay_max) = (self.faults_of(fd).delay, self.faults_of(fd).delay_max);
        latency(&mut self.random, DISK_LATENCY, delay, delay_max)
    }

    fn roll(&mut self, file: usize, chance: impl Fn(&FileFaults) -> crate::sim::Chance) -> bool {
        let chance = chance(self.files[file].faults.as_ref().unwrap_or(&self.file_faults));
        self.random.happens(chance)
    }

    fn is_bad(&self, file: usize, offset_bytes: u64, len_bytes: u64) -> bool {
        self.files[file].faults.as_ref().unwrap_or(&self.file_faults).is_bad(offset_bytes, len_bytes)
    }

    /// The file, if the range is one that the kernel would look at.
    fn file_for(&self, fd: Fd, offset_bytes: u64, len_bytes: u64, address: usize) -> Result<usize, i32> {
        let (file, options) = self.file_with_options(fd)?;
        let end = offset_bytes.checked_add(len_bytes).ok_or(libc::EINVAL)?;
        if end > FILE_LEN_MAX {
            return Err(libc::EFBIG);
        }
        let alignment = u64::from(options.alignment_bytes);
        let is_aligned = [offset_bytes, len_bytes, address as u64].iter().all(|n| n.is_multiple_of(alignment));
        if is_aligned { Ok(file) } else { Err(libc::EINVAL) }
    }

    fn writable(&self, fd: Fd) -> Result<(), i32> {
        let (_, options) = self.file_with_options(fd)?;
        if options.read_only { Err(libc::EBADF) } else { Ok(()) }
    }

    pub(super) fn read(&mut self, fd: Fd, offset_bytes: u64, into: &mut Window) -> Result<u32, i32> {
        let target = &mut into.buf[into.at as usize..][..into.len as usize];
        let file = self.file_for(fd, offset_bytes, target.len() as u64, target.as_ptr() as usize)?;
        if self.roll(file, |faults| faults.eio_read) || self.is_bad(file, offset_bytes, target.len() as u64) {
            self.random.fill(target);
            return Err(libc::EIO);
        }
        let count = self.files[file].state.read(offset_bytes, target);
        Ok(count as u32)
    }

    pub(super) fn write(&mut self, fd: Fd, offset_bytes: u64, from: &[u8], durable: bool) -> Result<u32, i32> {
        self.writable(fd)?;
        let len = from.len() as u64;
        let file = self.file_for(fd, offset_bytes, len, from.as_ptr() as usize)?;
        if self.files[file].state.needs_space(offset_bytes, len) && self.roll(file, |faults| faults.enospc) {
            return Err(libc::ENOSPC);
        }
        if self.roll(file, |faults| faults.eio_write) || self.is_bad(file, offset_bytes, len) {
            self.write_some_sectors(file, offset_bytes, from);
            return Err(libc::EIO);
        }
        if durable && self.roll(file, |faults| faults.eio_sync) {
            self.files[file].state.write(offset_bytes, from);
            return Err(libc::EIO);
        }
        let mut count = from.len();
        if len > SECTOR_BYTES && self.roll(file, |faults| faults.short_write) {
            let sectors = self.random.within(1..len.div_ceil(SECTOR_BYTES));
            count = (sectors * SECTOR_BYTES) as usize;
        }
        let state = &mut self.files[file].state;
        if durable {
            state.write_durable(offset_bytes, &from[..count]);
        } else {
            state.write(offset_bytes, &from[..count]);
        }
        let fd = self.own(fd);
        self.record(What::Wrote { file: fd, content: hash_bytes(&from[..count]) });
        Ok(count as u32)
    }

    /// What a write that did not end may have done.
    fn write_some_sectors(&mut self, file: usize, offset_bytes: u64, from: &[u8]) {
        let first = (SECTOR_BYTES - offset_bytes % SECTOR_BYTES).min(from.len() as u64) as usize;
        let (head, rest) = from.split_at(first);
        let mut at = offset_bytes;
        for sector in std::iter::once(head).chain(rest.chunks(SECTOR_BYTES as usize)) {
            if !sector.is_empty() && self.random.happens(PERHAPS) {
                self.files[file].state.write(at, sector);
            }
            at += sector.len() as u64;
        }
    }

    pub(super) fn sync(&mut self, fd: Fd, covers: u64) -> Result<u32, i32> {
        let file = self.file_of(fd).ok_or(libc::EBADF)?;
        if self.roll(file, |faults| faults.eio_sync) {
            self.files[file].state.sync_failed(covers, &mut self.random);
            return Err(libc::EIO);
        }
        self.files[file].state.sync(covers);
        Ok(0)
    }

    pub(super) fn allocate(&mut self, fd: Fd, mode: AllocateMode, offset: u64, len: u64) -> Result<u32, i32> {
        self.writable(fd)?;
        let file = self.file_of(fd).ok_or(libc::EBADF)?;
        if len == 0 {
            return Err(libc::EINVAL);
        }
        if offset.checked_add(len).is_none_or(|end| end > FILE_LEN_MAX) {
            return Err(libc::EFBIG);
        }
        if mode == AllocateMode::Extend {
            if self.roll(file, |faults| faults.enospc) {
                return Err(libc::ENOSPC);
            }
            self.files[file].state.extend(offset, len);
            return Ok(0);
        }
        if self.roll(file, |faults| faults.allocate_unsupported) {
            return Err(libc::EOPNOTSUPP);
        }
        if self.roll(file, |faults| faults.eio_write) || self.is_bad(file, offset, len) {
            return Err(libc::EIO);
        }
        self.files[file].state.zero(offset, len, mode == AllocateMode::PunchHole);
        Ok(0)
    }

    pub(super) fn truncate(&mut self, fd: Fd, len_bytes: u64) -> Result<u32, i32> {
        self.writable(fd)?;
        let file = self.file_of(fd).ok_or(libc::EBADF)?;
        if len_bytes > FILE_LEN_MAX {
            return Err(libc::EFBIG);
        }
        self.files[file].state.set_len(len_bytes);
        Ok(0)
    }

    /// Blocks of one file become those of another. What that file holds changes as by a write; the source's bytes go
    /// with it, durable or not.
    pub(super) fn share(&mut self, from: (Fd, u64), into: (Fd, u64), len_bytes: u64) -> Result<u32, i32> {
        self.writable(into.0)?;
        let (source, file) = (self.file_of(from.0).ok_or(libc::EBADF)?, self.file_of(into.0).ok_or(libc::EBADF)?);
        let end = from.1.checked_add(len_bytes).ok_or(libc::EINVAL)?;
        let target_end = into.1.checked_add(len_bytes).filter(|end| *end <= FILE_LEN_MAX).ok_or(libc::EFBIG)?;
        let is_aligned = [from.1, into.1, len_bytes].iter().all(|n| n.is_multiple_of(BLOCK_BYTES));
        let meets = source == file && from.1 < target_end && into.1 < end;
        if !is_aligned || meets || len_bytes == 0 || end > self.files[source].state.len_bytes() {
            return Err(libc::EINVAL);
        }
        if self.roll(file, |faults| faults.share_unsupported) {
            return Err(if self.random.happens(PERHAPS) { libc::EOPNOTSUPP } else { libc::EAGAIN });
        }
        if self.roll(file, |faults| faults.enospc) {
            return Err(libc::ENOSPC);
        }
        let mut bytes = vec![0; len_bytes as usize];
        self.files[source].state.read(from.1, &mut bytes);
        if self.roll(file, |faults| faults.eio_write) || self.is_bad(file, into.1, len_bytes) {
            self.write_some_sectors(file, into.1, &bytes);
            return Err(libc::EIO);
        }
        self.files[file].state.write(into.1, &bytes);
        let fd = self.own(into.0);
        self.record(What::Wrote { file: fd, content: hash_bytes(&bytes) });
        Ok(0)
    }

    /// A published operation whose process died: a write may have happened in part, a sync may have happened.
    pub(super) fn settle_file_op(&mut self, op: &Op) {
        match op {
            Op::Write { file, offset_bytes, from, .. } => {
                let Ok(index) = self.file_for(*file, *offset_bytes, from.len() as u64, from.as_ptr() as usize) else {
                    return;
                };
                if self.random.happens(PERHAPS) {
                    self.files[index].state.write(*offset_bytes, from);
                } else {
                    self.write_some_sectors(index, *offset_bytes, from);
                }
            }
            &Op::Allocate { file, mode, offset_bytes, len_bytes } if self.random.happens(PERHAPS) => {
                // What it answers interests nobody any more.
                let _ = self.allocate(file, mode, offset_bytes, len_bytes);
            }
            &Op::Truncate { file, len_bytes } if self.random.happens(PERHAPS) => {
                let _ = self.truncate(file, len_bytes);
            }
            &Op::Share { from, from_bytes, file, offset_bytes, len_bytes } if self.random.happens(PERHAPS) => {
                let _ = self.share((from, from_bytes), (file, offset_bytes), len_bytes);
            }
            _ => {}
        }
    }
}
