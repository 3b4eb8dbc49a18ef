//! Single steps of a command's way, on their own.
//!
//! **May know:** `iscsi`, `scsi`, `shard`.

use std::hint::black_box;

use super::requests::{self, Access, HEADER_LEN, Workload};
use super::rig::COMMANDS_PER_TURN;
use super::ring::InstantWaker;
use crate::iscsi::pdu::{Bhs, DataIn, Residual, ScsiCommandRequest, ScsiStatus, Sequence};
use crate::scsi::{
    self, Action, BlockLength, CommandRequest, Condition, LogicalUnit, NexusUnit, ParameterList, SenseFormat,
    TargetView, Unit, UnitConfig,
};
use crate::shard::{Mailbox, Sender, ToShard, mailbox};
use crate::units::Lun;

/// What the steps work on: [`COMMANDS_PER_TURN`] commands that read, and a unit.
pub struct Pieces {
    requests: Vec<u8>,
    unit: Unit,
    nexus: NexusUnit,
    scratch: Vec<u8>,
    sender: Sender<InstantWaker>,
    mailbox: Mailbox,
}

impl Default for Pieces {
    fn default() -> Self {
        Self::new()
    }
}

impl Pieces {
    /// Commands of 4 KiB on a disk of 10 GiB.
    pub fn new() -> Self {
        let workload = Workload { access: Access::Read, len_bytes: 4096, digests: false };
        let mut requests = Vec::new();
        for number in 0..COMMANDS_PER_TURN {
            requests::command(&mut requests, &workload, number, 0, number * 1024);
        }
        let unit = Unit::new(&UnitConfig {
            block_length: BlockLength::B512,
            physical_block_exponent: 3,
            capacity_blocks: 20_971_520,
            read_only: false,
            write_cache_enabled: true,
            thin_provisioned: false,
            unmap_granularity_blocks: 0,
            disk_uuid: [7; 16],
            product: "measured",
            sense_format: SenseFormat::Fixed,
        });
        let unit = unit.expect("a valid description");
        let scratch = vec![0; ParameterList::BYTES_MIN];
        // The default has no unit attention pending.
        let (sender, mailbox) = mailbox(InstantWaker);
        Self { requests, unit, nexus: NexusUnit::default(), scratch, sender, mailbox }
    }

    /// Send messages to a mailbox and take them out.
    #[inline(never)]
    pub fn mail(&mut self) {
        for _ in 0..COMMANDS_PER_TURN {
            let sent = self.sender.send_control(black_box(ToShard::Stop)).is_ok();
            assert!(
                sent && self.mailbox.take_control().is_some(),
                "an empty mailbox takes a message and gives it back"
            );
        }
    }

    /// Read the header of each command.
    #[inline(never)]
    pub fn parse(&self) {
        for bytes in self.requests.chunks_exact(HEADER_LEN) {
            let bhs = Bhs::from_prefix(black_box(bytes)).expect("a whole header");
            let request = ScsiCommandRequest::parse(bhs).expect("a legal command");
            black_box(&request);
        }
    }

    /// Build the header of each answer.
    #[inline(never)]
    pub fn build(&self) {
        for number in 0..COMMANDS_PER_TURN {
            let data_in = DataIn {
                is_final: true,
                status: Some((ScsiStatus::GOOD, Residual::None)),
                acknowledge: None,
                initiator_task_tag: black_box(number),
                data_sn: 0,
                buffer_offset: 0,
                data_segment_len: black_box(4096),
            };
            let sequence = Sequence { stat_sn: number, exp_cmd_sn: number, max_cmd_sn: number };
            black_box(data_in.encode(sequence));
        }
    }

    /// Look each command up in the command table and have it checked.
    #[inline(never)]
    pub fn dispatch(&mut self) {
        let target = TargetView {
            name: "iqn.2026-11.io.lunaring:rig",
            relative_target_port: 1,
            portal_group_tag: 1,
            target_port_group: 1,
            luns: &[Lun(0)],
        };
        for bytes in self.requests.chunks_exact(HEADER_LEN) {
            let cdb = <&[u8; 16]>::try_from(&bytes[32..]).expect("a header ends with its CDB");
            let unit = LogicalUnit { unit: &self.unit, nexus: &mut self.nexus, condition: Condition::Ready };
            let request = CommandRequest { cdb: black_box(cdb), data_out_bytes: Some(0) };
            let action = scsi::execute(&request, &target, Some(unit), &mut ParameterList::new(&mut self.scratch));
            assert!(matches!(black_box(action), Action::Read { .. }), "a READ on a unit that is ready");
        }
    }
}
