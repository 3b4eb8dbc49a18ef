//! Which judge may be believed for what. Measured on files made from the specification (`specification` shows it at
//! each run), and by reading what the judges document. Where judges disagree the specification decides, which is what
//! the reader in `tests/reference` is written from; every line below that denies a judge says what it gets wrong.
//!
//! * qemu-img: 512-byte sectors without a parent; clean, or our own log after `check -r all`. It refuses 4096-byte
//!   sectors and differencing VHDX, misreplays logs of other shapes, and reads a differencing VHD without its parent.
//! * 7-Zip: clean files of both formats, with parents. It does not replay logs, meets an end of data where a parent is
//!   smaller than the child, and refuses sizes that are not whole physical sectors.
//! * dissect: clean VHDX; with parents, two files deep. It ignores logs, cuts runs of sectors short from the third file
//!   on unless they start at a byte of the bitmap, and reads a differencing VHD without its parent.
//! * libvhdi: clean files without parents. It ignores logs, refuses parents of a VHDX and misreads bits of a VHD.
//! * wxtla: VHDX with any log and any sectors; children whose blocks are absent, full or partial. Behind blocks of the
//!   states 1 to 3, which hide the parent, it shows the parent; it cannot read past the end of a smaller parent,
//!   and refuses fixed disks whose blocks are not all there, which is how QEMU makes them.
//! * the reader from the specification: everything.

use crate::judge::{Format, Judge};

/// What is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    Clean,
    /// Written by our engine: the shapes that every known reader replays rightly.
    Ours,
    /// Any legal shape.
    Any,
}

/// A disk to be judged, as far as it matters for who can.
#[derive(Debug, Clone)]
pub struct Subject {
    pub format: Format,
    /// Files of the chain; 1 without a parent.
    pub depth: usize,
    pub sector_bytes: u64,
    pub size_bytes: u64,
    pub log: Log,
    /// A child has blocks of the states 1 to 3, which hide the parent.
    pub any_states: bool,
    /// Runs of sectors of a child begin and end at whole bytes of the bitmap.
    pub runs_are_whole_bytes: bool,
    pub parent_smaller: bool,
    /// LeaveBlocksAllocated is set, but not all blocks are there.
    pub fixed_with_holes: bool,
    /// There are metadata items which the specification does not name.
    pub other_items: bool,
}

impl Subject {
    /// A clean disk without a parent, 512-byte sectors.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            depth: 1,
            sector_bytes: 512,
            size_bytes: 1 << 20,
            log: Log::Clean,
            any_states: false,
            runs_are_whole_bytes: false,
            parent_smaller: false,
            fixed_with_holes: false,
            other_items: false,
        }
    }

    /// `Err`: why not.
    pub fn trust(&self, judge: Judge) -> Result<(), &'static str> {
        let (differencing, dirty) = (self.depth > 1, self.log != Log::Clean);
        match (self.format, judge) {
            (_, Judge::Reference) => Ok(()),
            (_, Judge::Wxtla | Judge::SevenZip | Judge::Dissect) if self.parent_smaller => {
                Err("expects a parent to be as large as the child")
            }
            (Format::Vhdx, Judge::Wxtla) if differencing && self.any_states => {
                Err("shows the parent behind blocks that hide it")
            }
            (Format::Vhdx, Judge::Wxtla) if self.fixed_with_holes => Err("refuses a fixed disk with absent blocks"),
            (Format::Vhdx, Judge::Wxtla) => Ok(()),
            (Format::Vhdx, _) if dirty => Err("does not replay logs, or not all"),
            (Format::Vhdx, Judge::QemuImg) if self.sector_bytes != 512 => Err("knows sectors of 512 bytes only"),
            (_, Judge::QemuImg) if differencing => Err("has no differencing disks"),
            (_, Judge::Libvhdi) if differencing => Err("refuses parents of a VHDX, misreads bits of a VHD"),
            (_, Judge::Libvhdi | Judge::Dissect) if self.other_items => Err("refuses unknown metadata items"),
            (Format::Vhdx, Judge::Dissect) if self.depth > 2 && !self.runs_are_whole_bytes => {
                Err("cuts bitmaps short from the third file on")
            }
            (Format::Vhd, Judge::Dissect) if differencing => Err("drops the parent of a VHD"),
            (Format::Vhdx, Judge::SevenZip) if !self.size_bytes.is_multiple_of(4096.max(2 * self.sector_bytes)) => {
                Err("refuses sizes that are not whole physical sectors")
            }
            _ => Ok(()),
        }
    }
}
