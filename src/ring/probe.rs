//! What the running kernel's io_uring can do, asked once at start, and why it may be nothing.

use std::fmt;
use std::io;

use io_uring::{IoUring, opcode};

use super::Errno;

/// The oldest kernel that everything works on.
pub const KERNEL_MIN: KernelVersion = KernelVersion { major: 5, minor: 15 };

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

/// The features that rings use. What is off is missing from the kernel, or ruled out by the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// The running kernel.
    pub kernel: KernelVersion,
    /// What was allowed.
    pub limit: FeatureLimit,
    /// IORING_SETUP_SINGLE_ISSUER (6.0): the kernel needs no locking between submitters.
    pub single_issuer: bool,
    /// IORING_SETUP_DEFER_TASKRUN (6.1): completions are worked off when we enter, in one go.
    pub defer_taskrun: bool,
    /// IORING_SETUP_COOP_TASKRUN with IORING_SETUP_TASKRUN_FLAG (5.19): no interrupts of the running thread, and a poll
    /// without pending work costs no system call.
    pub coop_taskrun: bool,
    /// IORING_SETUP_SUBMIT_ALL (5.18): one bad submission does not hold up those after it.
    pub submit_all: bool,
    /// IORING_SETUP_NO_SQARRAY (6.6): one indirection less.
    pub no_sqarray: bool,
    /// IORING_REGISTER_RING_FDS (5.18): no look-up of the ring's descriptor on each system call.
    pub registered_ring: bool,
    /// IORING_ENTER_NO_IOWAIT (6.15): an idle server does not show as waiting for disks.
    pub no_iowait: bool,
    /// Multishot accept (5.19).
    pub multishot_accept: bool,
    /// A sparse table of fixed buffers (5.19): file operations need not pin pages each time.
    pub fixed_buffers: bool,
    /// IORING_OP_SENDMSG_ZC with a report of copies (6.2).
    pub zero_copy_send: bool,
    /// IORING_OP_FTRUNCATE (6.9).
    pub truncate: bool,
}

/// Why io_uring cannot be used. The message says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The kernel was built without io_uring, or a sandbox hides it.
    #[error(
        "this kernel has no io_uring (ENOSYS); use Linux 5.15 or later with CONFIG_IO_URING, \
         outside of sandboxes that hide it"
    )]
    Missing,
    /// A kernel that lacks what everything here is built on.
    #[error("Linux {0} is too old; io_uring is complete enough from Linux {KERNEL_MIN} on")]
    TooOld(KernelVersion),
    /// Switched off for everyone or for all but a privileged group.
    #[error(
        "io_uring is disabled on this host (kernel.io_uring_disabled = {value}); \
         run `sysctl kernel.io_uring_disabled=0`{}",
        if *.value == 1 { ", or run the server with CAP_SYS_ADMIN or in the group kernel.io_uring_group" } else { "" }
    )]
    Disabled {
        /// The value of the sysctl.
        value: u32,
    },
    /// Refused by a filter, most often a container's.
    #[error(
        "io_uring is forbidden to this process (EPERM), usually by the seccomp profile of a container; \
         allow io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Forbidden,
    /// No memory, or not enough that may be locked.
    #[error(
        "no memory for an io_uring (ENOMEM); raise the limit of locked memory \
         (`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the service unit)"
    )]
    Memory,
    /// A system call failed in another way.
    #[error("io_uring: {what} failed: {errno}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        errno: Errno,
    },
}

impl KernelVersion {
    /// From a release such as `6.1.0-18-amd64`.
    pub fn parse(release: &str) -> Option<KernelVersion> {
        let mut parts = release.trim().split(['.', '-', '+']);
        Some(KernelVersion { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }

    /// The running kernel's; zero when it does not tell.
    fn running() -> KernelVersion {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        KernelVersion::parse(&release).unwrap_or_default()
    }
}

impl Features {
    /// Ask the kernel. Fails when io_uring is missing, forbidden or too old.
    pub fn probe(limit: FeatureLimit) -> Result<Features, RingError> {
        let kernel = KernelVersion::running();
        let mut features = Features { kernel, limit, ..Features::default() };
        if limit == FeatureLimit::Full {
            features.probe_setup();
        }
        let ring = features.builder().build(8).map_err(setup_error)?;
        if !ring.params().is_feature_nodrop()
            || !ring.params().is_feature_ext_arg()
            || !ring.params().is_feature_submit_stable()
            || !ring.params().is_feature_resource_tagging()
        {
            return Err(RingError::TooOld(kernel));
        }
        if limit == FeatureLimit::Full {
            features.probe_operations(&ring);
        }
        Ok(features)
    }

    /// Try the set-up flags, each alone or with what it needs, on rings that are dropped at once.
    fn probe_setup(&mut self) {
        let works = |features: Features| features.builder().build(2).is_ok();
        let none = Features::default();
        self.submit_all = works(Features { submit_all: true, ..none });
        self.coop_taskrun = works(Features { coop_taskrun: true, ..none });
        self.single_issuer = works(Features { single_issuer: true, ..none });
        self.defer_taskrun = works(Features { single_issuer: true, defer_taskrun: true, ..none });
        self.no_sqarray = works(Features { no_sqarray: true, ..none });
    }

    fn probe_operations(&mut self, ring: &IoUring) {
        let mut probe = io_uring::Probe::new();
        if ring.submitter().register_probe(&mut probe).is_err() {
            return;
        }
        // Multishot accept cannot be asked for; the SOCKET operation came with the same release.
        self.multishot_accept = probe.is_supported(opcode::Socket::CODE);
        // Zero-copy send is in 6.1, its report of copies (without which it may cost more than it saves) one later.
        let reports_copies = self.kernel >= KernelVersion { major: 6, minor: 2 };
        self.zero_copy_send = probe.is_supported(opcode::SendMsgZc::CODE) && reports_copies;
        self.truncate = probe.is_supported(opcode::Ftruncate::CODE);
        self.fixed_buffers = ring.submitter().register_buffers_sparse(1).is_ok();
        let mut submitter = ring.submitter();
        self.registered_ring = submitter.register_ring_fd().is_ok() && submitter.unregister_ring_fd().is_ok();
        self.no_iowait = ring.params().is_feature_no_iowait();
    }

    /// A ring's set-up flags.
    pub(super) fn builder(&self) -> io_uring::Builder {
        let mut builder = IoUring::builder();
        builder.dontfork();
        if self.submit_all {
            builder.setup_submit_all();
        }
        if self.coop_taskrun {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if self.single_issuer {
            builder.setup_single_issuer();
        }
        if self.defer_taskrun {
            builder.setup_defer_taskrun();
        }
        if self.no_sqarray {
            builder.setup_no_sqarray();
        }
        builder
    }

    fn table(&self) -> [(&'static str, bool); 11] {
        [
            ("single issuer", self.single_issuer),
            ("deferred task work", self.defer_taskrun),
            ("cooperative task work", self.coop_taskrun),
            ("submit all", self.submit_all),
            ("no SQ array", self.no_sqarray),
            ("registered ring", self.registered_ring),
            ("no iowait", self.no_iowait),
            ("multishot accept", self.multishot_accept),
            ("fixed buffers", self.fixed_buffers),
            ("zero-copy send", self.zero_copy_send),
            ("truncate", self.truncate),
        ]
    }
}

/// What a failed `io_uring_setup` means.
pub(super) fn setup_error(error: io::Error) -> RingError {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let disabled = disabled.and_then(|value| value.trim().parse().ok()).unwrap_or(0);
    explain(error.raw_os_error().unwrap_or(libc::EIO), disabled)
}

fn explain(errno: i32, disabled: u32) -> RingError {
    match errno {
        libc::ENOSYS => RingError::Missing,
        libc::EPERM | libc::EACCES if disabled != 0 => RingError::Disabled { value: disabled },
        libc::EPERM | libc::EACCES => RingError::Forbidden,
        libc::ENOMEM => RingError::Memory,
        errno => RingError::System { what: "io_uring_setup", errno: Errno(errno) },
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io_uring on Linux {}", self.kernel)?;
        if self.limit == FeatureLimit::Baseline {
            return write!(f, ", limited to what Linux {KERNEL_MIN} has");
        }
        for (state, mut separator) in [(true, ": with "), (false, "; without ")] {
            for (name, _) in self.table().iter().filter(|(_, on)| *on == state) {
                write!(f, "{separator}{name}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_understood() {
        let version = |major, minor| Some(KernelVersion { major, minor });
        assert_eq!(KernelVersion::parse("6.1.0-18-amd64\n"), version(6, 1));
        assert_eq!(KernelVersion::parse("5.15.167.4-microsoft-standard-WSL2"), version(5, 15));
        assert_eq!(KernelVersion::parse("6.12-rc1"), version(6, 12));
        assert_eq!(KernelVersion::parse("unknown"), None);
        assert!(KernelVersion::parse("5.4.0") < Some(KERNEL_MIN) && KernelVersion::parse("6.2.0") > Some(KERNEL_MIN));
    }

    #[test]
    fn a_refusal_says_in_one_line_what_to_change() {
        for (errno, disabled, word) in [
            (libc::ENOSYS, 0, "CONFIG_IO_URING"),
            (libc::EPERM, 2, "sysctl kernel.io_uring_disabled=0"),
            (libc::EPERM, 1, "kernel.io_uring_group"),
            (libc::EPERM, 0, "seccomp"),
            (libc::ENOMEM, 0, "LimitMEMLOCK"),
            (libc::EMFILE, 0, "Too many open files"),
        ] {
            let message = explain(errno, disabled).to_string();
            assert!(message.contains(word) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn features_print_as_one_line() {
        let features = Features {
            kernel: KernelVersion { major: 6, minor: 0 },
            single_issuer: true,
            submit_all: true,
            ..Features::default()
        };
        let line = features.to_string();
        assert!(line.starts_with("io_uring on Linux 6.0: with single issuer, submit all; without deferred"), "{line}");
        let line = Features { limit: FeatureLimit::Baseline, ..features }.to_string();
        assert_eq!(line, "io_uring on Linux 6.0, limited to what Linux 5.15 has");
    }

    #[test]
    fn the_baseline_uses_nothing_that_is_newer() {
        let features = Features::probe(FeatureLimit::Baseline).expect("io_uring works here");
        assert!(features.table().iter().all(|(_, on)| !on));
    }
}
