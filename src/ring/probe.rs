//! What the running kernel's io_uring can do, asked once at start.

use std::fmt;

/// How much of the kernel a ring may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FeatureLimit {
    /// All that the kernel has.
    #[default]
    Full,
    /// Only what Linux 5.15 has, to test and to rule newer features out as a cause.
    Baseline,
}

/// A kernel release, as far as features go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// As in 6.x.
    pub major: u32,
    /// As in x.1.
    pub minor: u32,
}

/// The features that rings use, and those that the kernel lacks (or that are ruled out).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The running kernel.
    pub kernel: KernelVersion,
    /// What was allowed.
    pub limit: FeatureLimit,
    /// IORING_SETUP_SINGLE_ISSUER (6.0).
    pub single_issuer: bool,
    /// IORING_SETUP_DEFER_TASKRUN (6.1).
    pub defer_taskrun: bool,
    /// IORING_SETUP_COOP_TASKRUN with IORING_SETUP_TASKRUN_FLAG (5.19).
    pub coop_taskrun: bool,
    /// Multishot accept (5.19).
    pub multishot_accept: bool,
    /// A sparse table of fixed buffers (5.19).
    pub fixed_buffers: bool,
    /// IORING_OP_SENDMSG_ZC with a report of copies (6.2).
    pub zero_copy_send: bool,
    /// IORING_OP_FTRUNCATE (6.9).
    pub truncate: bool,
    /// IORING_REGISTER_RING_FDS (5.18).
    pub registered_ring: bool,
    /// Waits that do not count as disk waits (6.15).
    pub no_iowait: bool,
}

/// Why io_uring cannot be used. The message says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A system call failed.
    #[error("io_uring: {what} failed: {errno}")]
    System {
        /// Which.
        what: &'static str,
        /// How.
        errno: super::Errno,
    },
}

impl Features {
    /// Ask the kernel. Fails when io_uring is missing, forbidden or older than Linux 5.15.
    pub fn probe(limit: FeatureLimit) -> Result<Features, RingError> {
        let _ = limit;
        todo!()
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io_uring on Linux {}.{}", self.kernel.major, self.kernel.minor)
    }
}
