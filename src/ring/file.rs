//! Files as the data plane needs them: how direct I/O must be aligned, who else has the file open.

use std::fs::File;
use std::io;

/// What direct I/O on a file asks for (statx, STATX_DIOALIGN; Linux 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DioAlignment {
    /// Buffers must start at a multiple of this, in bytes.
    pub memory: u32,
    /// Offsets and lengths must be multiples of this, in bytes.
    pub offset: u32,
}

/// The alignment direct I/O needs on this file; `None` when the kernel does not tell or the file has no direct I/O.
pub fn direct_io_alignment(file: &File) -> Option<DioAlignment> {
    let _ = file;
    todo!()
}

/// Take the file for this process: exclusive, or shared among readers. Held until every descriptor of this opening is closed.
/// `Ok(false)` when another process has it.
pub fn lock(file: &File, exclusive: bool) -> io::Result<bool> {
    let _ = (file, exclusive);
    todo!()
}
