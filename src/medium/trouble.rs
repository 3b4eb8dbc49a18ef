//! What the host did to a disk's file, for the operator: which operation failed first, how, and what to do about it.
//!
//! Shards write it down as it happens, whatever initiators are told; the control plane puts it into words.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What was being done when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Doing {
    /// Payload was written.
    WritingData = 1,
    /// The image's own structures were written, or the file was made larger.
    WritingMetadata = 2,
    /// What had been written was made durable.
    Flushing = 3,
    /// Space was given back.
    ReleasingSpace = 4,
}

impl Doing {
    fn words(number: u32) -> &'static str {
        match number {
            1 => "writing data to",
            2 => "writing metadata of",
            3 => "flushing",
            _ => "giving space back from",
        }
    }
}

/// Failures of a disk's file since it was opened.
#[derive(Debug, Default)]
pub struct Trouble {
    /// The first failure that was not for want of space: what was being done, and the system's number; 0: none.
    first: AtomicU32,
    /// Operations that were refused because no space was left.
    out_of_space: AtomicU64,
}

impl Trouble {
    /// An operation on the file has failed with this number.
    pub fn note(&self, doing: Doing, errno: i32) {
        match errno {
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => {
                self.out_of_space.fetch_add(1, Ordering::Relaxed);
            }
            // The file system cannot do it; whoever asked does it otherwise.
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ECANCELED => {}
            errno => {
                let word = (doing as u32) << 16 | errno.unsigned_abs() & 0xffff;
                let _ = self.first.compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Operations that were refused because no space was left.
    pub fn out_of_space(&self) -> u64 {
        self.out_of_space.load(Ordering::Relaxed)
    }

    /// The first failure in words, and what to do; `None` while there was none.
    pub fn told(&self) -> Option<String> {
        let word = self.first.load(Ordering::Relaxed);
        (word != 0).then(|| {
            let errno = (word & 0xffff) as i32;
            format!(
                "{} its file failed: {}",
                Doing::words(word >> 16),
                system_reason(&io::Error::from_raw_os_error(errno))
            )
        })
    }
}

/// The system's reason, and what to do about those that tell of the host's storage.
pub fn system_reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or folder".to_owned(),
        Some(libc::EACCES | libc::EPERM) => "permission denied".to_owned(),
        Some(libc::ENOSPC) => "no space is left on its file system (ENOSPC); make room there".to_owned(),
        Some(libc::EDQUOT) => "the quota on its file system is used up (EDQUOT); raise it, or make room".to_owned(),
        Some(libc::EFBIG) => {
            "larger than its file system or a limit of the process allows (EFBIG); move it to another one".to_owned()
        }
        Some(libc::EROFS) => "its file system is read-only (EROFS), which is also what a file system becomes after \
                              errors; see the kernel's log, and mount it writable"
            .to_owned(),
        Some(libc::EIO) => {
            "input/output error (EIO): the drive or the way to it fails; see the kernel's log, and save \
                            what can be read before anything else"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_counts_and_want_of_space_is_none() {
        let trouble = Trouble::default();
        trouble.note(Doing::WritingData, libc::ENOSPC);
        trouble.note(Doing::ReleasingSpace, libc::EOPNOTSUPP);
        assert_eq!((trouble.told(), trouble.out_of_space()), (None, 1));
        trouble.note(Doing::Flushing, libc::EIO);
        trouble.note(Doing::WritingData, libc::EROFS);
        let told = trouble.told().unwrap();
        assert!(told.starts_with("flushing its file failed: input/output error (EIO)"), "{told}");
    }

    #[test]
    fn reasons_are_told_apart_and_say_what_to_do() {
        let of = |errno| system_reason(&io::Error::from_raw_os_error(errno));
        assert!(of(libc::ENOSPC).contains("make room"));
        assert!(of(libc::EROFS).contains("mount it writable"));
        assert!(of(libc::EIO).contains("kernel's log"));
        assert!(of(libc::EBUSY).contains("busy"));
    }
}
