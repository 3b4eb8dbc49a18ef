//! What the tests of the command handlers start from: a described disk, a target with three units, and one call per
//! command.

use super::attention::Attentions;
use super::{
    Action, BlockLength, CommandRequest, Condition, Features, LogicalUnit, NexusUnit, Outcome, ParameterList, Sense,
    SenseFormat,
};
use super::{SenseCode, TargetView, Unit, UnitConfig, execute};
use crate::units::Lun;

/// A 10 GiB disk of 512-byte blocks on 4096-byte sectors, with a write cache.
pub(super) const DISK: UnitConfig<'static> = UnitConfig {
    block_length: BlockLength::B512,
    physical_block_exponent: 3,
    capacity_blocks: 20_971_520,
    read_only: false,
    write_cache_enabled: true,
    thin_provisioned: false,
    unmap_granularity_blocks: 0,
    disk_uuid: *b"\x01\x23\x45\x67\x89\xab\x4d\xef\x8e\xdc\xba\x98\x76\x54\x32\x10",
    product: "VHDX disk",
    sense_format: SenseFormat::Fixed,
};

/// The same disk, with 2 MiB allocated and released at once.
pub(super) const THIN: UnitConfig<'static> =
    UnitConfig { thin_provisioned: true, unmap_granularity_blocks: 4096, ..DISK };

pub(super) const TARGET: TargetView<'static> = TargetView {
    name: "iqn.2026-11.io.lunaring:demo",
    relative_target_port: 1,
    portal_group_tag: 1,
    target_port_group: 1,
    luns: &[Lun(0), Lun(1), Lun(300)],
};

/// A unit whose owner does everything.
pub(super) fn unit(config: &UnitConfig<'_>) -> Unit {
    Unit::new(config).expect("a valid description").with_features(Features::ALL).with_atomic_writes(16, 1)
}

/// A CDB with zeros after the bytes given.
pub(super) fn cdb(bytes: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

/// One command to a unit, with the nexus state given; the action and the Data-In of a reply.
pub(super) fn run_on(unit: Option<&Unit>, nexus: &mut NexusUnit, bytes: &[u8]) -> (Action, Vec<u8>) {
    run_with(unit.map(|unit| LogicalUnit { unit, nexus, condition: Condition::Ready }), bytes)
}

/// One command to a disk in a condition.
pub(super) fn run_in(condition: Condition, bytes: &[u8]) -> (Action, Vec<u8>) {
    run_with(Some(LogicalUnit { unit: &unit(&DISK), nexus: &mut NexusUnit::default(), condition }), bytes)
}

fn run_with(logical_unit: Option<LogicalUnit<'_>>, bytes: &[u8]) -> (Action, Vec<u8>) {
    let mut buffer = vec![0xee; ParameterList::BYTES_MIN];
    let mut out = ParameterList::new(&mut buffer);
    let action = execute(&CommandRequest { cdb: &cdb(bytes), data_out_bytes: None }, &TARGET, logical_unit, &mut out);
    let data = if action == Action::DataIn { out.bytes().to_vec() } else { Vec::new() };
    (action, data)
}

/// One command to a disk that has nothing pending.
pub(super) fn run(config: &UnitConfig<'_>, bytes: &[u8]) -> Action {
    run_on(Some(&unit(config)), &mut NexusUnit::default(), bytes).0
}

/// The Data-In of a command that replies.
pub(super) fn reply(config: &UnitConfig<'_>, bytes: &[u8]) -> Vec<u8> {
    let mut nexus = NexusUnit::default();
    let (action, data) = run_on(Some(&unit(config)), &mut nexus, bytes);
    assert_eq!(action, Action::DataIn, "{bytes:02x?}");
    assert_eq!(nexus.attentions(), Attentions::NONE);
    data
}

pub(super) fn refused(code: SenseCode) -> Action {
    Action::Done(Outcome::check_condition(Sense::new(code)))
}

pub(super) fn invalid_field(byte: u8, bit: Option<u8>) -> Action {
    Sense::invalid_field_in_cdb(byte, bit).into()
}
