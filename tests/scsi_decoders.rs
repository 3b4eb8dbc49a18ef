//! Replies of the SCSI engine as other people's decoders read them. Needs the package sg3-utils; without it these tests
//! fail.

use std::io::Write;
use std::process::{Command, Stdio};

use lunaring::scsi::command_table::COMMANDS;
use lunaring::scsi::{
    Action, BlockLength, CommandRequest, Condition, Features, LbaStatusReply, LogData, LogicalUnit, NexusUnit,
    ParameterList, Provisioning, ReportType, Sense, SenseCode, SenseFormat, TargetView, Unit, UnitConfig, execute, log,
    lun,
};
use lunaring::units::{Lba, Lun};

/// What a decoder of sg3-utils says about hexadecimal bytes on its standard input.
fn decoded(tool: &str, arguments: &[&str], bytes: &[u8]) -> String {
    let hex: Vec<_> =
        bytes.chunks(16).map(|line| line.iter().map(|byte| format!("{byte:02x} ")).collect::<String>()).collect();
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{tool}: {error}; install the package sg3-utils"));
    // A tool that takes its bytes from the command line may be gone before it is given any.
    let _ = child.stdin.take().expect("piped").write_all((hex.join("\n") + "\n").as_bytes());
    let output = child.wait_with_output().expect("the tool ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?} refuses {bytes:02x?}: {text}{errors}");
    assert!(errors.is_empty(), "{tool} {arguments:?} complains about {bytes:02x?}: {errors}");
    text
}

fn disk() -> UnitConfig<'static> {
    UnitConfig {
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
    }
}

/// The same disk, thin provisioned in blocks of 2 MiB.
fn thin() -> UnitConfig<'static> {
    UnitConfig { thin_provisioned: true, unmap_granularity_blocks: 4096, ..disk() }
}

/// The Data-In of a command to the disk.
fn reply(cdb: &[u8]) -> Vec<u8> {
    reply_of(&disk(), cdb)
}

/// The Data-In of a command to a disk that is described so.
fn reply_of(config: &UnitConfig<'_>, cdb: &[u8]) -> Vec<u8> {
    reply_of_unit(&Unit::new(config).expect("a valid description"), cdb)
}

fn reply_of_unit(unit: &Unit, cdb: &[u8]) -> Vec<u8> {
    let target = TargetView {
        name: "iqn.2026-11.io.lunaring:demo",
        relative_target_port: 1,
        portal_group_tag: 1,
        target_port_group: 1,
        luns: &[Lun(0), Lun(300)],
    };
    let mut padded = [0; 16];
    padded[..cdb.len()].copy_from_slice(cdb);
    let mut buffer = vec![0; ParameterList::BYTES_MIN];
    let mut out = ParameterList::new(&mut buffer);
    let mut nexus = NexusUnit::default();
    let logical_unit = LogicalUnit { unit, nexus: &mut nexus, condition: Condition::Ready };
    let action = execute(&CommandRequest { cdb: &padded, data_out_bytes: None }, &target, Some(logical_unit), &mut out);
    assert_eq!(action, Action::DataIn, "{cdb:02x?}");
    out.bytes().to_vec()
}

/// Every line is in the decoder's text, in this order, whatever stands between them.
fn assert_lines(text: &str, lines: &[&str]) {
    let mut rest = text.lines().map(str::trim);
    for line in lines {
        assert!(rest.any(|found| found == *line), "{line:?} is missing or out of order in:\n{text}");
    }
}

/// A VPD page as `sg_vpd` reads it.
fn vpd_page(code: u8) -> String {
    decoded("sg_vpd", &["--inhex=-"], &reply(&[0x12, 1, code, 2, 0, 0]))
}

#[test]
fn standard_inquiry_data() {
    let text = decoded("sg_inq", &["--inhex=-", "--descriptors"], &reply(&[0x12, 0, 0, 0, 255, 0]));
    assert_lines(
        &text,
        &[
            "PQual=0  PDT=0  RMB=0  LU_CONG=0  hot_pluggable=0  version=0x06  [SPC-4]",
            "[AERC=0]  [TrmTsk=0]  NormACA=0  HiSUP=1  Resp_data_format=2",
            "SCCS=0  ACC=0  TPGS=0  3PC=0  Protect=0  [BQue=0]",
            "[RelAdr=0]  WBus16=0  Sync=0  [Linked=0]  [TranDis=0]  CmdQue=1",
            "length=96 (0x60)   Peripheral device type: disk",
            "Vendor identification: LUNARING",
            "Product identification: VHDX disk",
            "Product revision level: 0.1",
            "SAM-5 (no version claimed)",
            "iSCSI (no version claimed)",
            "SPC-4 (no version claimed)",
            "SBC-3 (no version claimed)",
        ],
    );
}

#[test]
fn identity_pages() {
    let pages = [
        "Unit serial number [sn]",
        "Device identification [di]",
        "Extended inquiry data [ei]",
        "Mode page policy [mpp]",
        "Block limits (SBC) [bl]",
        "Block device characteristics (SBC) [bdc]",
        "Logical block provisioning (SBC) [lbpv]",
    ];
    assert_lines(&vpd_page(0x00), &pages);
    assert_lines(&vpd_page(0x80), &["Unit serial number: 0123456789AB4DEF8EDCBA9876543210"]);
    assert_lines(
        &vpd_page(0x83),
        &[
            "Addressed logical unit:",
            "designator type: NAA,  code set: Binary",
            "0x6024c55789ab4def8edcba9876543210",
            "designator type: T10 vendor identification,  code set: ASCII",
            "vendor id: LUNARING",
            "vendor specific: 0123456789AB4DEF8EDCBA9876543210",
            "naa.6024C55789AB4DEF8EDCBA9876543210",
            "Target port:",
            "designator type: Relative target port,  code set: Binary",
            "transport: Internet SCSI (iSCSI)",
            "Relative target port: 0x1",
            "Target port group: 0x1",
            "iqn.2026-11.io.lunaring:demo,t,0x0001",
            "Target device that contains addressed lu:",
            "transport: Internet SCSI (iSCSI)",
            "iqn.2026-11.io.lunaring:demo",
        ],
    );
    assert_lines(
        &vpd_page(0x87),
        &["therefore the policy applies to all modes pages and subpages", "MLUS=0,  Policy: shared"],
    );
}

#[test]
fn limits_and_provisioning_pages() {
    assert_lines(
        &vpd_page(0x86),
        &["UASK_SUP=0 GROUP_SUP=0 PRIOR_SUP=0 HEADSUP=1 ORDSUP=1 SIMPSUP=1", "WU_SUP=0 [CRD_SUP=0] NV_SUP=0 V_SUP=1"],
    );
    assert_lines(
        &vpd_page(0xb0),
        &[
            "Maximum compare and write length: 0 blocks [Command not implemented]",
            "Optimal transfer length granularity: 8 blocks",
            "Maximum transfer length: 65536 blocks",
            "Optimal transfer length: 2048 blocks",
            "Maximum unmap LBA count: 0 [Unmap command not implemented]",
            "Maximum write same length: 0x80000 blocks",
        ],
    );
    assert!(vpd_page(0xb0).contains("Write same non-zero (WSNZ): 0"));
    assert_lines(&vpd_page(0xb1), &["Non-rotating medium (e.g. solid state)", "FUAB=1"]);
    assert_lines(
        &vpd_page(0xb2),
        &["Unmap command supported (LBPU): 0", "Provisioning type: 0 (not known or fully provisioned)"],
    );
}

#[test]
fn copy_offload_page() {
    let unit = Unit::new(&disk()).expect("valid").with_features(Features::COPY);
    let text = decoded("sg_vpd", &["--page=0x8f", "--inhex=-"], &reply_of_unit(&unit, &[0x12, 1, 0x8f, 4, 0, 0]));
    assert_lines(
        &text,
        &[
            "Block Device ROD Token Limits:",
            "Maximum range descriptors: 64",
            "Maximum inactivity timeout: 900 seconds",
            "Default inactivity timeout: 60 seconds",
            "Maximum token transfer size: 2097152",
            "Optimal transfer count: 131072",
            "Extended copy(LID1)",
            "Populate token",
            "Write using token",
            "Copy operation abort",
            "Receive copy operating parameters",
            "Receive ROD token information",
            "Maximum CSCD descriptor count: 64",
            "Maximum segment descriptor count: 256",
            "Maximum descriptor list length: 8192",
            "Maximum inline data length: 0",
            "block -> block [0x2]",
            "verify CSCD [0x7]",
            "block<o> -> block<o> [0xa]",
            "CSCD: Identification Descriptor [0xe4]",
            "copy src or dst is copy manager LU [0xffff]",
            "Remote tokens: 0",
            "Maximum token lifetime: 86400 seconds",
            "Optimal block ROD length granularity: 8",
            "Maximum Bytes in block ROD: 1073741824",
            "Optimal Bytes to token per segment: -1 [no limit]",
            "ROD type: point in time copy - default [0x800000]",
            "ROD type: point in time copy - change vulnerable [0x800001]",
            "ROD type: point in time copy - any [0x80ffff]",
            "ROD type: block device zero [0xffff0001]",
            "Total concurrent copies: 8",
            "Maximum segment length: 33554432",
            "Data segment granularity: 512",
        ],
    );
}

#[test]
fn thin_provisioning() {
    let page = |code| decoded("sg_vpd", &["--inhex=-"], &reply_of(&thin(), &[0x12, 1, code, 2, 0, 0]));
    assert_lines(
        &page(0xb0),
        &[
            "Maximum unmap LBA count: 1048576",
            "Maximum unmap block descriptor count: 256",
            "Optimal unmap granularity: 4096 blocks",
            "Unmap granularity alignment valid: true",
            "Unmap granularity alignment: 0",
        ],
    );
    assert_lines(
        &page(0xb2),
        &[
            "Unmap command supported (LBPU): 1",
            "Write same (16) with unmap bit supported (LBPWS): 1",
            "Write same (10) with unmap bit supported (LBPWS10): 1",
            "Logical block provisioning read zeros (LBPRZ): 1",
            "Anchored LBAs supported (ANC_SUP): 0",
            "Provisioning type: 2 (thin provisioned)",
        ],
    );
}

#[test]
fn log_pages() {
    let unit = Unit::new(&thin()).expect("a valid description").with_features(Features::ALL);
    let data = LogData {
        reads: 11,
        writes: 12,
        bytes_received: 13 << 9,
        bytes_transmitted: 14 << 9,
        read_us: 15,
        write_us: 16,
        idle_us: 17,
        available_bytes: 18 << 20,
        used_bytes: 19 << 20,
    };
    let text = |page| {
        let mut buffer = [0; 128];
        let len = log::report(&unit, page, &data, 512, &mut buffer);
        decoded("sg_logs", &["--in=-"], &buffer[..len])
    };
    let lines = [
        "number of read commands = 11",
        "number of write commands = 12",
        "number of logical blocks received = 13",
        "number of logical blocks transmitted = 14",
        "read command processing intervals = 15",
        "write command processing intervals = 16",
        "idle time intervals = 17",
        "time interval negative exponent = 6",
        "time interval integer = 1",
    ];
    assert_lines(&text(0x19), &lines);
    let lines = [
        "Available LBA mapping threshold resource count: 18",
        "Scope: not dedicated to lu",
        "Used LBA mapping threshold resource count: 19",
        "Scope: dedicated to lu",
    ];
    assert_lines(&text(0x0c), &lines);
    let page = |code: u8| decoded("sg_logs", &["--in=-"], &reply(&[0x4d, 0, 0x40 | code, 0, 0, 0, 0, 2, 0]));
    assert_lines(&page(0x00), &["0x00        Supported log pages [sp]", "0x0e        Start-stop cycle counter [sscc]"]);
    assert_lines(&page(0x0e), &["Accumulated start-stop cycles = 0"]);
    assert_lines(&page(0x2f), &["IE asc = 0x0, ascq = 0x0"]);
}

#[test]
fn states_of_blocks() {
    let unit = Unit::new(&thin()).expect("a valid description");
    let mut buffer = [0xee; LbaStatusReply::BYTES_MAX];
    let mut reply = LbaStatusReply::new(&unit, Lba(0x123), 4096, ReportType::All);
    for (blocks, state) in [(0xedd, Provisioning::Mapped), (0x2000, Provisioning::Deallocated)] {
        assert!(reply.wants().is_some());
        reply.push(&mut buffer, blocks, state);
    }
    let len = reply.finish(&mut buffer);
    let text = decoded("sg_get_lba_status", &["--inhex=-", "--maxlen=4096"], &buffer[..len]);
    assert_lines(
        &text,
        &[
            "No indication of the completion condition",
            "RTP=0",
            "[1] LBA: 0x0000000000000123  blocks:       3805  mapped (or unknown)",
            "[2] LBA: 0x0000000000001000  blocks:       8192  deallocated",
        ],
    );
    let mut reply = LbaStatusReply::new(&unit, Lba(0x123), 24, ReportType::Deallocated);
    for (blocks, state) in
        [(0xedd, Provisioning::Mapped), (0x2000, Provisioning::Deallocated), (0x1000, Provisioning::Mapped)]
    {
        reply.push(&mut buffer, blocks, state);
    }
    reply.push(&mut buffer, 1, Provisioning::Deallocated);
    let len = reply.finish(&mut buffer);
    let text = decoded("sg_get_lba_status", &["--inhex=-", "--maxlen=24"], &buffer[..len]);
    assert!(text.contains("Command completed due to meeting allocation length"), "{text}");
    assert_lines(&text, &["RTP=1", "[1] LBA: 0x0000000000001000  blocks:       8192  deallocated"]);
}

#[test]
fn every_sense_code_has_its_t10_text_in_both_formats() {
    for (code, text) in SenseCode::ALL {
        for format in [SenseFormat::Fixed, SenseFormat::Descriptor] {
            let decoded = decoded("sg_decode_sense", &["--file=-"], &Sense::new(*code).encode(format));
            let additional = decoded.lines().find_map(|line| line.trim().strip_prefix("Additional sense: "));
            let found = additional.map(str::to_uppercase);
            assert_eq!(found.as_deref(), Some(*text), "{format:?}: {decoded}");
        }
    }
}

#[test]
fn what_a_sense_is_about() {
    let sense = Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE).with_information(0x1234_5678);
    let text = decoded("sg_decode_sense", &["--file=-"], &sense.encode(SenseFormat::Fixed));
    assert_lines(&text, &["Fixed format, current; Sense key: Illegal Request", "Info fld=0x12345678 [305419896]"]);
    let text = decoded("sg_decode_sense", &["--file=-"], &sense.encode(SenseFormat::Descriptor));
    assert_lines(&text, &["Descriptor type: Information: 0x0000000012345678"]);

    let sense = Sense::invalid_field_in_cdb(7, Some(3));
    let text = decoded("sg_decode_sense", &["--file=-"], &sense.encode(SenseFormat::Fixed));
    assert!(text.contains("Error in Command: byte 7 bit 3"), "{text}");
    let text = decoded("sg_decode_sense", &["--file=-"], &sense.encode(SenseFormat::Descriptor));
    assert_lines(&text, &["Error in Command: byte 7 bit 3"]);
    let text =
        decoded("sg_decode_sense", &["--file=-"], &Sense::invalid_field_in_cdb(2, None).encode(SenseFormat::Fixed));
    assert!(text.contains("Error in Command: byte 2") && !text.contains("bit"), "{text}");
}

#[test]
fn every_command_has_the_name_that_its_code_stands_for() {
    let plain = |name: &str| name.to_lowercase().replace(" (", "(").replace('-', " ");
    for command in COMMANDS {
        let opcode = match command.service_action {
            None => format!("--opcode={:#x}", command.opcode),
            Some(service_action) => format!("--opcode={:#x},{service_action:#x}", command.opcode),
        };
        let text = decoded("sg_opcodes", &["--enumerate", "--pdt=0", &opcode], &[]);
        // sg3-utils names the first mode of buffers as well.
        let name = text.lines().nth(1).unwrap_or("").split(", combined header").next().unwrap_or("").trim();
        // SPC-4's first drafts named only the shorter identifier.
        let drafted = plain(command.name).replace("(lid4)", "");
        assert!([plain(command.name), drafted].contains(&plain(name)), "{}: {text}", command.name);
    }
}

#[test]
fn logical_unit_numbers() {
    for (number, method) in
        [(0, "Peripheral device"), (255, "Peripheral device"), (256, "Flat space"), (16_383, "Flat space")]
    {
        let hex: String = lun::encode(Lun(number)).iter().map(|byte| format!("{byte:02x}")).collect();
        let text = decoded("sg_luns", &[&format!("--test={hex}")], &[]);
        assert!(text.contains(method) && text.contains(&format!("lun={number}")), "{text}");
    }
}
