//! Pages of block maps on their way into memory, by the home shard of the disk that needs them: those of its leaf when
//! that has no engine, and those of the layers below, which other disks may share.

use super::core::{Io, Mail, Mark, Stall};
use super::home::answer;
use super::peer::Asker;
use crate::blocks::{BlockMap, Done, LevelFault, PAGE_BYTES, PieceList};
use crate::medium::Disk;
use crate::mem::Buf;
use crate::ring::{Completion, Fd, Op, Ring, Wake, Window};
use crate::scsi::MediumError;
use crate::units::Lba;

/// Pages of one disk that are read at once.
const RUNNING_MAX: usize = 8;

/// Room for waiting requests that is reserved beforehand; more take memory, up to what all shards may ask for.
const WAITING_RESERVED: usize = 64;

/// What direct I/O asks of offsets and lengths at least. A piece that is not aligned to it is read with the sectors
/// around it.
const SECTOR_BYTES: u64 = 512;

/// Behind the page: place for the sectors of one piece.
const SCRATCH_BYTES: usize = PAGE_BYTES + 2 * SECTOR_BYTES as usize;

/// A page being read, piece by piece.
struct Load {
    fault: LevelFault,
    fd: Fd,
    pieces: PieceList,
    /// The piece that is read next, and where in the page it goes.
    next: usize,
    at: u32,
}

/// A disk's pages that are wanted or being read.
pub(crate) struct Loads {
    slot: u32,
    /// Who waits for which page.
    waiting: Vec<(LevelFault, Asker)>,
    running: Vec<Option<Load>>,
    stalled: Stall,
}

impl Loads {
    pub(crate) fn new(slot: u32) -> Self {
        let running = (0..RUNNING_MAX).map(|_| None).collect();
        Self { slot, waiting: Vec::with_capacity(WAITING_RESERVED), running, stalled: Stall::default() }
    }

    /// Somebody needs a page.
    pub(crate) fn wanted(&mut self, disk: &Disk, fault: LevelFault, asker: Asker) {
        // Where another page is needed to find this one, that is what is waited for: the asker plans again and comes
        // back.
        let mut fault = fault;
        let mut pieces = PieceList::new();
        while let Some(Err(other)) = map_of(disk, fault).map(|map| map.source().pieces(map, fault.fault, &mut pieces)) {
            fault.fault = other;
            pieces.clear();
        }
        self.waiting.push((fault, asker));
    }

    /// Nothing is wanted or being read.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.iter().all(Option::is_none)
    }

    /// Memory or the ring has refused something.
    pub(crate) fn stalled(&self) -> bool {
        self.stalled.is_set()
    }

    /// Begin with pages that are wanted.
    pub(crate) fn start<R: Ring>(&mut self, disk: &Disk, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        self.stalled.clear();
        while let Some(place) = self.running.iter().position(Option::is_none) {
            let runs = |fault: &LevelFault| self.running.iter().flatten().any(|load| load.fault == *fault);
            let Some(&(fault, _)) = self.waiting.iter().find(|(fault, _)| !runs(fault)) else { return };
            let Some((map, fd)) = map_of(disk, fault).zip(disk.fd_of_level(fault.level)) else {
                self.ended(mail, fault, Err(MediumError::Corrupt));
                continue;
            };
            let mut pieces = PieceList::new();
            if map.source().pieces(map, fault.fault, &mut pieces).is_err() {
                // A page that had been there has been evicted meanwhile: plan again, and come back for that one.
                self.ended(mail, fault, Ok(Done::PlanAgain));
                continue;
            }
            let Some(page) = io.arena.take(PAGE_BYTES + SCRATCH_BYTES) else {
                self.stalled.set(io);
                return;
            };
            self.running[place] = Some(Load { fault, fd, pieces, next: 0, at: 0 });
            if !self.go_on(disk, io, mail, place, page) {
                return;
            }
        }
    }

    /// A piece has been read.
    pub(crate) fn completed<R: Ring>(
        &mut self,
        disk: &Disk,
        io: &mut Io<R>,
        mail: &mut Mail<R::Waker>,
        place: usize,
        completion: Completion,
    ) {
        let Some(Op::Read { mut into, .. }) = completion.op else { unreachable!("pages are read") };
        match completion.result {
            Ok(read) => {
                // What is behind the file's end reads as zeros.
                into.bytes_mut()[read as usize..].fill(0);
                if let Some(load) = &mut self.running[place] {
                    load.has_read(&mut into);
                }
                self.go_on(disk, io, mail, place, into.buf);
            }
            Err(_) => {
                if let Some(load) = self.running[place].take() {
                    self.ended(mail, load.fault, Err(MediumError::ReadFailed { lba: Lba(0) }));
                }
            }
        }
        self.start(disk, io, mail);
    }

    /// Read the next piece, or put the page in its place. False: the ring is full.
    fn go_on<R: Ring>(
        &mut self,
        disk: &Disk,
        io: &mut Io<R>,
        mail: &mut Mail<R::Waker>,
        place: usize,
        mut page: Buf,
    ) -> bool {
        let Some(load) = self.running[place].as_mut() else { return true };
        while let Some(piece) = load.pieces.as_slice().get(load.next) {
            let Some(offset_bytes) = piece.offset_bytes else {
                page[load.at as usize..][..piece.len_bytes as usize].fill(0);
                load.at += piece.len_bytes;
                load.next += 1;
                continue;
            };
            let (offset_bytes, into) = load.window(page, offset_bytes, piece.len_bytes);
            let op = Op::Read { file: load.fd, offset_bytes, into };
            let started = io.submit(Mark::Load(self.slot, place as u32), op).is_ok();
            if !started {
                self.running[place] = None;
                self.stalled.set(io);
            }
            return started;
        }
        let fault = load.fault;
        self.running[place] = None;
        if let (Some(map), Ok(bytes)) =
            (map_of(disk, fault), <&mut [u8; PAGE_BYTES]>::try_from(&mut page[..PAGE_BYTES]))
        {
            map.source().decode(fault.fault, bytes);
            // Refused while somebody else fills, or when all pages are in use: whoever waits plans again, and asks
            // again.
            map.table(fault.fault.table).fill(fault.fault.page, bytes);
        }
        self.ended(mail, fault, Ok(Done::PlanAgain));
        true
    }

    /// Tell everybody who waits for a page.
    fn ended<W: Wake>(&mut self, mail: &mut Mail<W>, fault: LevelFault, result: Result<Done, MediumError>) {
        self.waiting.retain(|(waiting, asker)| {
            if *waiting == fault {
                answer(mail, *asker, result);
            }
            *waiting != fault
        });
    }
}

impl Load {
    /// Where in the file to read a piece, and where to: into its place in the page, or with the sectors around it
    /// behind the page.
    fn window(&self, buf: Buf, offset_bytes: u64, len_bytes: u32) -> (u64, Window) {
        let end = offset_bytes + u64::from(len_bytes);
        let aligned = |value: u64| value.is_multiple_of(SECTOR_BYTES);
        if aligned(offset_bytes) && aligned(end) && aligned(u64::from(self.at)) {
            return (offset_bytes, Window { buf, at: self.at, len: len_bytes });
        }
        let start = offset_bytes / SECTOR_BYTES * SECTOR_BYTES;
        let len = (end.next_multiple_of(SECTOR_BYTES) - start) as u32;
        (start, Window { buf, at: PAGE_BYTES as u32, len })
    }

    /// The next piece has been read.
    fn has_read(&mut self, into: &mut Window) {
        let Some(piece) = self.pieces.as_slice().get(self.next) else { return };
        let (at, len) = (self.at as usize, piece.len_bytes as usize);
        if into.at as usize == PAGE_BYTES {
            let skip = (piece.offset_bytes.unwrap_or(0) % SECTOR_BYTES) as usize;
            into.buf.copy_within(PAGE_BYTES + skip..PAGE_BYTES + skip + len, at);
        }
        self.at += piece.len_bytes;
        self.next += 1;
    }
}

fn map_of(disk: &Disk, fault: LevelFault) -> Option<&BlockMap> {
    Some(&**disk.chain()?.map(fault.level)?)
}
