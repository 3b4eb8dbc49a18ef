//! From a parameter list to what there is to copy. Everything is found out before the first byte is moved: which units
//! are meant, whether this session may use them so, and whether every range lies on its unit.

use super::mover::{Leg, Mover, Side, View};
use super::{Copies, CopyRecord, Runs};
use crate::iscsi::transfer::TaskId;
use crate::ring::Ring;
use crate::scsi::copy::extended::CopyFault;
use crate::scsi::copy::{
    Cscd, ExtendedCopy, ListIdUsage, NewToken, PopulateToken, Segment, SegmentKind, TokenKind, WriteUsingToken, tokens,
};
use crate::scsi::{CopyOut, CopyState, CopyStatus, MediumError, Outcome, Sense, SenseCode};
use crate::shard::session::{Step, Work};
use crate::units::DiskId;

/// `None`: the command is answered when its copy has ended.
type Begun = Result<Option<Outcome>, Outcome>;

impl<R: Ring> Work<'_, R> {
    pub(super) fn extended_copy(&mut self, task: TaskId, what: CopyOut, list: &[u8]) -> Begun {
        let parsed = match what {
            CopyOut::ExtendedCopyLid1 => ExtendedCopy::parse_lid1(list),
            _ => ExtendedCopy::parse_lid4(list),
        };
        let copy = parsed.map_err(Outcome::check_condition)?;
        let list_identifier = (copy.usage != ListIdUsage::None).then_some(copy.list_identifier);
        if let Some(list_identifier) = list_identifier {
            self.take_list_identifier(list_identifier)?;
        }
        let mut legs = Vec::with_capacity(usize::from(copy.segment_count()));
        for segment in copy.segments() {
            match self.leg_of(task, &copy, &segment) {
                Ok(Some(leg)) => legs.push(leg),
                Ok(None) => {}
                Err(sense) => {
                    self.keep_failure(task, what, list_identifier, segment.number, sense);
                    return Err(sense.into());
                }
            }
        }
        let mover = Mover::new(what, list_identifier, self.addressed(task), legs, View::Units);
        self.begin_copy(task, mover, copy.immed)
    }

    /// A copy that ended before it began is known of as well.
    fn keep_failure(&mut self, task: TaskId, what: CopyOut, id: Option<u32>, segment: u16, sense: Sense) {
        let Some(list_identifier) = id else { return };
        let mut status = CopyStatus::new(what, false, 0);
        status.state = CopyState::Done(sense.into());
        status.segments = segment + 1;
        let disk = self.addressed(task);
        let runs = Runs::Ended;
        self.session.ledger.keep(CopyRecord { list_identifier, status, token: None, told: false, disk, runs });
    }

    fn addressed(&self, task: TaskId) -> u32 {
        self.session.tasks[usize::from(task.0)].disk.expect("a copy command has a unit")
    }

    /// What a segment copies, if anything.
    fn leg_of(&self, task: TaskId, copy: &ExtendedCopy<'_>, segment: &Segment) -> Result<Option<Leg>, Sense> {
        let fault = |fault: CopyFault| fault.sense(segment.number, None);
        let side = |id: u16, writes: bool| -> Result<Side, Sense> {
            let cscd = copy.cscd(id).map_err(fault)?;
            let side = self.side_of(task, &cscd, writes).ok_or_else(|| fault(cscd.not_reachable()))?;
            cscd.check_block_length(self.core.disks.of_task(side.slot).unit(false))?;
            Ok(side)
        };
        match segment.kind {
            SegmentKind::Verify { cscd, .. } => side(cscd, false).map(|_| None),
            SegmentKind::Copy { source, destination, .. } => {
                let (source, destination) = (side(source, false)?, side(destination, true)?);
                let unit = |side: Side| self.core.disks.of_task(side.slot).unit(false);
                let placement = segment.kind.placement(segment.at, unit(source), unit(destination)).map_err(fault)?;
                self.may_copy(source, false).and_then(|()| self.may_copy(destination, true)).map_err(fault)?;
                let leg = Leg {
                    number: segment.number,
                    source: Some(source),
                    source_at: placement.source_bytes,
                    destination,
                    destination_at: placement.destination_bytes,
                    len_bytes: placement.len_bytes,
                };
                Ok((leg.len_bytes > 0).then_some(leg))
            }
        }
    }

    /// The unit that a descriptor means: one that this session sees, and no other. Of a disk that it sees under several
    /// numbers, one that may be written where it is to be.
    fn side_of(&self, task: TaskId, cscd: &Cscd<'_>, writes: bool) -> Option<Side> {
        let session = &*self.session;
        let side = |index: usize| Side { slot: session.luns[index].disk, lun: session.luns[index].lun };
        if *cscd == Cscd::Addressed {
            let lun = crate::scsi::lun::decode(session.connection.command(task).lun_raw)?;
            return session.lun_index(lun).map(side);
        }
        let named = || {
            let names = |index: &usize| cscd.names(self.core.disks.of_task(session.luns[*index].disk).unit(false));
            (0..session.luns.len()).filter(names)
        };
        let writable = named().find(|index| !session.luns[*index].read_only).filter(|_| writes);
        writable.or_else(|| named().next()).map(side)
    }

    /// Whether this session may still read, or write, the unit.
    pub(super) fn may_copy(&self, side: Side, writes: bool) -> Result<(), CopyFault> {
        let index = self.session.lun_index(side.lun);
        let entry = index.map(|index| &self.session.luns[index]).filter(|entry| entry.disk == side.slot);
        let entry = entry.ok_or(CopyFault::new(SenseCode::COPY_TARGET_DEVICE_NOT_REACHABLE))?;
        let slot = self.core.disks.at(side.slot).ok_or(CopyFault::new(SenseCode::COPY_TARGET_DEVICE_NOT_REACHABLE))?;
        if writes && slot.unit(entry.read_only).read_only() {
            return Err(CopyFault::new(SenseCode::INVALID_OPERATION_FOR_COPY_SOURCE_OR_DESTINATION));
        }
        if entry.nexus.refuses_copy(writes) {
            return Err(CopyFault::new(SenseCode::THIRD_PARTY_DEVICE_FAILURE));
        }
        self.serves_copies(side.slot)
    }

    /// Whether the disk serves anybody: nobody formats it, for one.
    pub(super) fn serves_copies(&self, slot: u32) -> Result<(), CopyFault> {
        let serves = self.core.disks.at(slot).is_some_and(|slot| slot.settings.condition.sense().is_none());
        if serves { Ok(()) } else { Err(CopyFault::new(SenseCode::THIRD_PARTY_DEVICE_FAILURE)) }
    }

    pub(super) fn populate_token(
        &mut self,
        task: TaskId,
        list_identifier: u32,
        list: &[u8],
    ) -> Result<Outcome, Outcome> {
        let slot = self.addressed(task);
        let disk = self.core.disks.of_task(slot);
        let unit = disk.unit(false);
        let asked = PopulateToken::parse(list, unit).map_err(Outcome::check_condition)?;
        self.take_list_identifier(list_identifier)?;
        let disk = self.core.disks.of_task(slot);
        let unit = disk.unit(false);
        let mut status = CopyStatus::new(CopyOut::PopulateToken, false, unit.block_length().shift());
        status.transferred_bytes = asked.ranges.len_bytes();
        status.state = CopyState::Done(Outcome::GOOD);
        let mut token = None;
        if asked.ranges.blocks() > 0 {
            let secret = self.core.secrets.give().ok_or(MediumError::Busy)?;
            let target = self.session.target.as_ref().map_or("", |(_, name)| name.as_str());
            let disk = self.core.disks.of_task(slot);
            let new =
                NewToken { unit: disk.unit(false), disk: disk.id().0, target, timeout_s: asked.timeout_s, secret };
            let made = disk.tokens().create(&new, asked.ranges.in_bytes(), self.core.now_ms());
            token = Some(Box::new(made.ok_or(MediumError::Busy)?));
        }
        let runs = Runs::Ended;
        self.session.ledger.keep(CopyRecord { list_identifier, status, token, told: false, disk: slot, runs });
        Ok(Outcome::GOOD)
    }

    pub(super) fn write_using_token(&mut self, task: TaskId, list_identifier: u32, list: &[u8]) -> Begun {
        let what = CopyOut::WriteUsingToken;
        let addressed = self.addressed(task);
        let unit = self.core.disks.of_task(addressed).unit(false);
        let block_bytes = u64::from(unit.block_length().bytes());
        let asked = WriteUsingToken::parse(list, unit).map_err(Outcome::check_condition)?;
        let kind = TokenKind::of(asked.token).map_err(Outcome::check_condition)?;
        self.take_list_identifier(list_identifier)?;
        let wanted = asked.ranges.len_bytes();
        let (view, there) = match kind {
            TokenKind::Zero => (View::Zeros, wanted),
            TokenKind::Made { identifier } => {
                let unknown = Outcome::check_condition(Sense::new(SenseCode::INVALID_TOKEN_UNKNOWN));
                let slot = self.core.disks.find(DiskId(tokens::disk_of(identifier))).ok_or(unknown)?;
                let (key, ranges) = self
                    .tokens_of(slot)
                    .resolve(asked.token, identifier, self.core.now_ms())
                    .map_err(Outcome::check_condition)?;
                let len_bytes = ranges.len_bytes();
                if asked.offset_bytes >= len_bytes {
                    return Err(WriteUsingToken::offset_outside().into());
                }
                let there = (len_bytes - asked.offset_bytes).next_multiple_of(block_bytes);
                (View::Token { slot, key, ranges: Box::new(ranges), delete: asked.delete }, there)
            }
        };
        let lun = crate::scsi::lun::decode(self.session.connection.command(task).lun_raw);
        let lun = lun.ok_or(MediumError::Removed)?;
        let (mut left, mut source_at) = (there.min(wanted), asked.offset_bytes);
        let mut legs = Vec::new();
        for (start, len) in asked.ranges.in_bytes() {
            let len_bytes = len.min(left);
            if len_bytes == 0 {
                break;
            }
            let destination = Side { slot: addressed, lun };
            legs.push(Leg { number: 0, source: None, source_at, destination, destination_at: start, len_bytes });
            source_at += len_bytes;
            left -= len_bytes;
        }
        let mut mover = Mover::new(what, Some(list_identifier), addressed, legs, view);
        mover.status.block_shift = block_bytes.trailing_zeros();
        mover.is_short = there < wanted;
        self.begin_copy(task, mover, asked.immed)
    }

    /// Give a copy a task, and have it begin in the connection's next turn.
    fn begin_copy(&mut self, task: TaskId, mut mover: Mover, immed: bool) -> Begun {
        let place = self.free_copy_place().ok_or(MediumError::Busy)?;
        let runs = self.runs_as(Copies::task_at(place));
        mover.status.background = immed;
        mover.owner = (!immed).then_some(task);
        for slot in mover.disks() {
            if let Some(entry) = self.core.disks.at_mut(slot) {
                entry.tasks += 1;
            }
        }
        if let Some(list_identifier) = mover.list_identifier {
            let (status, disk) = (mover.status, mover.addressed);
            self.session.ledger.keep(CopyRecord { list_identifier, status, token: None, told: false, disk, runs });
        }
        self.session.copies.movers[place] = Some(Box::new(mover));
        self.wait_for_turn(Copies::task_at(place));
        if immed {
            return Ok(Some(Outcome::GOOD));
        }
        self.begin_operation(task);
        self.set_step(task, Step::Copying);
        Ok(None)
    }
}
