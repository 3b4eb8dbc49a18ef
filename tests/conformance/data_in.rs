//! Data-In, residuals of reads, and status (RFC 7143 sections 11.4 and 11.7).
//!
//! Seen to fail: with ExpDataSN that counts R2Ts too (`exp_data_sn_is_0_without_data_in`).

use perf::client::Client;
use perf::pdu::{FINAL, Header, response};

use crate::support::{BLOCK, Bench, command, ended, expect, read_16};

/// Read so many blocks; the headers of all Data-In, with their invariants checked.
fn read(client: &mut Client, blocks: usize, segment_max: usize, burst_max: usize) -> Vec<Header> {
    let total = blocks * BLOCK;
    let command = command(client, FINAL | 0x40, total, &read_16(0, blocks));
    client.wire.send(command, &[]).expect("sent");
    let (mut headers, mut at, mut sequence) = (vec![], 0, 0);
    while at < total {
        let pdu = expect(client, response::DATA_IN);
        let header = pdu.header;
        assert_eq!(header.task_tag(), command.task_tag());
        assert_eq!(header.word(36) as usize, headers.len(), "section 11.7.5: DataSN counts from 0");
        assert_eq!(header.word(40) as usize, at, "section 13.18: in order, without gap");
        assert!(pdu.data.len() <= segment_max, "section 13.12: {} bytes in one PDU", pdu.data.len());
        (at, sequence) = (at + pdu.data.len(), sequence + pdu.data.len());
        assert!(sequence <= burst_max, "section 13.13: {sequence} bytes in one sequence");
        assert!(at == total || !pdu.data.is_empty());
        if sequence == burst_max || at == total {
            assert_ne!(header.flags() & FINAL, 0, "section 11.7.1: the last of a sequence has F");
        }
        if header.flags() & FINAL != 0 {
            sequence = 0;
        }
        assert_eq!(header.flags() & 0x40, 0, "section 11.7.2: A only at ErrorRecoveryLevel 1 and above");
        assert_eq!(header.word(20), u32::MAX, "section 11.7.4: no Target Transfer Tag without A");
        let status = header.flags() & 1 != 0;
        assert!(!status || at == total, "section 11.7.3: status only in the last");
        if !status {
            assert_eq!((header.word(24), header.0[3], header.word(44)), (0, 0, 0), "section 11.7: reserved without S");
        }
        headers.push(header);
    }
    if headers.last().expect("data").flags() & 1 == 0 {
        assert_eq!(ended(&expect(client, response::SCSI_RESPONSE)), (0, None));
    }
    headers
}

#[test]
fn data_in_keeps_to_segment_and_burst_length() {
    let bench = Bench::start();
    for (segment, burst) in [(512, 1024), (1000, 4096), (8192, 8192), (65536, 16384), (4096, 1 << 20)] {
        let (mut client, _) = bench
            .client_asking(&format!("MaxRecvDataSegmentLength={segment}|MaxBurstLength={burst}|FirstBurstLength=512"));
        read(&mut client, 1, segment, burst);
        let pdus = read(&mut client, 100, segment, burst).len();
        assert!(pdus >= (100 * BLOCK).div_ceil(segment), "{pdus} PDUs of {segment}");
    }
}

/// Section 11.4.5: less than the initiator expects is an underflow, and no byte more than it expects is sent.
#[test]
fn residuals_of_reads() {
    let bench = Bench::start();
    let mut client = bench.client();
    let inquiry = client.read(0, &[0x12, 0, 0, 0, 36, 0], 255).expect("an answer");
    assert_eq!((inquiry.status, inquiry.data.len()), (0, 36));
    assert_eq!((inquiry.flags & 6, inquiry.residual), (2, 219));
    let short = client.read(0, &read_16(0, 4), BLOCK as u32).expect("an answer");
    assert_eq!((short.status, short.data.len()), (0, BLOCK));
    assert_eq!((short.flags & 6, short.residual), (4, 3 * BLOCK as u32));
    let odd = client.read(0, &read_16(0, 1), 100).expect("an answer");
    assert_eq!((odd.data.len(), odd.flags & 6, odd.residual), (100, 4, BLOCK as u32 - 100));
    let exact = client.read(0, &read_16(0, 4), 4 * BLOCK as u32).expect("an answer");
    assert_eq!((exact.data.len(), exact.flags & 6, exact.residual), (4 * BLOCK, 0, 0));
    // Nothing is expected at all.
    let none = client.bare(0, &read_16(0, 2)).expect("an answer");
    assert_eq!((none.status, none.flags & 6, none.residual), (0, 4, 2 * BLOCK as u32));
    assert!(none.data.is_empty());
}

/// Section 11.4.7: sense data behind its length, and never with Data-In status.
#[test]
fn sense_comes_with_check_condition() {
    let bench = Bench::start();
    let mut client = bench.client();
    let command = command(&mut client, FINAL | 0x40, BLOCK, &read_16(1 << 40, 1));
    client.wire.send(command, &[]).expect("sent");
    let answer = expect(&mut client, response::SCSI_RESPONSE);
    assert_eq!(ended(&answer), (2, Some((5, 0x21, 0))));
    assert_eq!(usize::from(u16::from_be_bytes([answer.data[0], answer.data[1]])), answer.data.len() - 2);
    assert_eq!(answer.header.0[2], 0, "section 11.4.3: completed at target");
    assert_eq!(answer.header.flags() & !0x1e, FINAL);
    assert_eq!((answer.header.flags() & 6, answer.header.word(44)), (2, BLOCK as u32), "all of it is missing");
    assert_eq!(answer.header.word(36), 0, "section 11.4.8: ExpDataSN counts no Data-In");
}

/// Section 11.4.8: ExpDataSN is 0 where no Data-In was sent, R2Ts or not.
#[test]
fn exp_data_sn_is_0_without_data_in() {
    let bench = Bench::start();
    let (mut client, _) =
        bench.client_asking("ImmediateData=No|InitialR2T=Yes|MaxBurstLength=1024|FirstBurstLength=512");
    let write = command(&mut client, FINAL | 0x20, 6 * BLOCK, &crate::support::write_16(0, 6));
    client.wire.send(write, &[]).expect("sent");
    for number in 0..3u32 {
        let r2t = expect(&mut client, response::R2T);
        assert_eq!(r2t.header.word(36), number);
        let offset = r2t.header.word(40) as usize;
        let header = crate::support::data_out(&client, write.task_tag(), r2t.header.word(20), 0, offset, true);
        client.wire.send(header, &[1; 2 * BLOCK]).expect("sent");
    }
    let answer = expect(&mut client, response::SCSI_RESPONSE);
    assert_eq!((ended(&answer), answer.header.word(36)), ((0, None), 0));
}

/// Section 11.3.1 and 11.3.4: a read of no blocks needs no data, and a command may expect some and get none.
#[test]
fn commands_without_data() {
    let bench = Bench::start();
    let mut client = bench.client();
    let none = client.read(0, &read_16(0, 0), 512).expect("an answer");
    assert_eq!((none.status, none.data.len(), none.flags & 6, none.residual), (0, 0, 2, 512));
    let ready = client.read(0, &[0; 6], 100).expect("an answer");
    assert_eq!((ready.status, ready.flags & 6, ready.residual), (0, 2, 100));
    let unwanted = client.write(0, &[0; 6], &[1; 300]).expect("an answer");
    assert_eq!((unwanted.status, unwanted.flags & 6, unwanted.residual), (0, 2, 300));
}

/// SAM-5 clause 4.7: logical units that are not there, and addressing methods that nobody uses.
#[test]
fn a_lun_that_is_not_there_is_refused() {
    let bench = Bench::start();
    let mut client = bench.client();
    for lun in [1u16, 255, 256, 16_383] {
        assert_eq!(client.bare(lun, &[0; 6]).expect("an answer").sense_triple(), Some((5, 0x25, 0)), "LUN {lun}");
    }
    for field in [[0xc1, 0, 0, 0, 0, 0, 0, 0], [0x00, 0, 0, 5, 0, 0, 0, 0], [0xff; 8]] {
        let mut header = command(&mut client, FINAL, 0, &[0; 6]);
        header.0[8..16].copy_from_slice(&field);
        client.wire.send(header, &[]).expect("sent");
        assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (2, Some((5, 0x25, 0))), "{field:x?}");
    }
}
