//! The space behind a thin provisioned disk, as it was when somebody last looked.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::Disk;

/// What was last seen. Shared by the forms of a disk.
#[derive(Debug, Default)]
pub struct Space {
    available_bytes: AtomicU64,
    allocated_bytes: AtomicU64,
}

impl Space {
    /// Bytes that the file system behind the leaf had left for us.
    pub fn available_bytes(&self) -> u64 {
        self.available_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the leaf's file took there.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes.load(Ordering::Relaxed)
    }
}

impl Disk {
    /// What was last seen of the space behind the disk.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Look at the space behind the disk now. Blocking. `None`: there is no file, or its file system does not tell.
    pub fn look_at_space(&self) -> Option<u64> {
        let leaf = self.leaf()?;
        let system = rustix::fs::fstatvfs(leaf.file().file().as_fd()).ok()?;
        let available_bytes = system.f_bavail.saturating_mul(system.f_frsize);
        self.space.available_bytes.store(available_bytes, Ordering::Relaxed);
        self.space.allocated_bytes.store(leaf.allocated_bytes(), Ordering::Relaxed);
        Some(available_bytes)
    }
}
