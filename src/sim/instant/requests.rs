//! What the measured initiator sends, byte by byte from RFC 7143 and SBC-3.
//!
//! **May know:** nothing of the server but its digest function.

use crate::crc32c::crc32c;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// READ (10).
    Read,
    /// WRITE (10) with all of its data as immediate data.
    Write,
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// What its commands do.
    pub access: Access,
    /// Bytes of each: a multiple of 512.
    pub len_bytes: u32,
    /// HeaderDigest and DataDigest.
    pub digests: bool,
}

/// Bytes of a basic header segment.
pub(super) const HEADER_LEN: usize = 48;

/// Bytes of the disk that commands spread over.
pub(super) const SPAN_BYTES: u64 = 16 << 20;

const LOGIN: u8 = 0x43;
const SCSI_COMMAND: u8 = 0x01;
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;

/// A Login Request that asks for everything in one step, from operational negotiation to full feature phase.
pub(super) fn login(target: &str, digests: bool, cmd_sn: u32) -> Vec<u8> {
    let digest = if digests { "CRC32C" } else { "None" };
    let keys = [
        "InitiatorName=iqn.2026-11.io.lunaring:rig".to_owned(),
        "SessionType=Normal".to_owned(),
        format!("TargetName={target}"),
        format!("HeaderDigest={digest}"),
        format!("DataDigest={digest}"),
        "MaxRecvDataSegmentLength=262144".to_owned(),
        "MaxBurstLength=1048576".to_owned(),
        "FirstBurstLength=262144".to_owned(),
        "InitialR2T=No".to_owned(),
        "ImmediateData=Yes".to_owned(),
        "MaxOutstandingR2T=1".to_owned(),
        "MaxConnections=1".to_owned(),
        "DataPDUInOrder=Yes".to_owned(),
        "DataSequenceInOrder=Yes".to_owned(),
        "ErrorRecoveryLevel=0".to_owned(),
        "DefaultTime2Wait=2".to_owned(),
        "DefaultTime2Retain=0".to_owned(),
    ];
    let text: Vec<u8> = keys.iter().flat_map(|key| key.bytes().chain([0])).collect();
    let mut pdu = vec![0; HEADER_LEN];
    pdu[0] = LOGIN;
    // T, CSG = operational negotiation, NSG = full feature phase.
    pdu[1] = 0x87;
    pdu[5..8].copy_from_slice(&(text.len() as u32).to_be_bytes()[1..]);
    // ISID: random format.
    pdu[8] = 0x80;
    pdu[24..28].copy_from_slice(&cmd_sn.to_be_bytes());
    pdu.extend_from_slice(&text);
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    pdu
}

/// Append one command on LUN 0.
pub(super) fn command(pdus: &mut Vec<u8>, workload: &Workload, cmd_sn: u32, exp_stat_sn: u32, lba: u32) {
    let Workload { access, len_bytes, digests } = *workload;
    let start = pdus.len();
    let mut header = [0; HEADER_LEN];
    header[0] = SCSI_COMMAND;
    // F, the direction, and the SIMPLE attribute.
    header[1] = 0x80 | 0x01 | if access == Access::Read { 0x40 } else { 0x20 };
    if access == Access::Write {
        header[5..8].copy_from_slice(&len_bytes.to_be_bytes()[1..]);
    }
    header[16..20].copy_from_slice(&cmd_sn.to_be_bytes());
    header[20..24].copy_from_slice(&len_bytes.to_be_bytes());
    header[24..28].copy_from_slice(&cmd_sn.to_be_bytes());
    header[28..32].copy_from_slice(&exp_stat_sn.to_be_bytes());
    header[32] = if access == Access::Read { READ_10 } else { WRITE_10 };
    header[34..38].copy_from_slice(&lba.to_be_bytes());
    header[39..41].copy_from_slice(&((len_bytes / 512) as u16).to_be_bytes());
    pdus.extend_from_slice(&header);
    if digests {
        pdus.extend_from_slice(&crc32c(&pdus[start..]).to_le_bytes());
    }
    if access == Access::Write {
        let data = pdus.len();
        pdus.resize(data + len_bytes as usize, cmd_sn as u8);
        if digests {
            pdus.extend_from_slice(&crc32c(&pdus[data..]).to_le_bytes());
        }
    }
}

/// Go through what a session was answered: how many commands ended with GOOD, and how many otherwise.
pub(super) fn count_statuses(mut answers: &[u8], digests: bool) -> (usize, usize) {
    const SCSI_RESPONSE: u8 = 0x21;
    const DATA_IN: u8 = 0x25;
    let (mut good, mut other) = (0, 0);
    while let Some((header, rest)) = answers.split_first_chunk::<HEADER_LEN>() {
        let with_status = header[0] == SCSI_RESPONSE || header[0] == DATA_IN && header[1] & 1 != 0;
        let is_good = with_status && header[3] == 0;
        good += usize::from(is_good);
        other += usize::from(!is_good);
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let digest = if digests { 4 } else { 0 };
        let data_digest = if len > 0 { digest } else { 0 };
        answers = rest.get(digest + len.next_multiple_of(4) + data_digest..).unwrap_or_default();
    }
    (good, other)
}
