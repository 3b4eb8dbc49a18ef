//! Traces of commands: read, written, told as text. The format is described in perf/README.md; whoever records it
//! writes from there and not from here.

use std::fmt::Write;

use super::choice::Action;

const MAGIC: &[u8; 8] = b"LUNTRACE";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 32;

const READ: u8 = 0;
const WRITE: u8 = 1;
const SYNCHRONIZE_CACHE: u8 = 2;
const UNMAP: u8 = 3;
/// Commands that the recorder lost, by number.
const GAP: u8 = 14;
const COMMAND_MASK: u8 = 0x0f;
const FUA: u8 = 0x10;
const SAME_PLACE: u8 = 0x20;
const SAME_LENGTH: u8 = 0x40;

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Since the trace began, in microseconds.
    pub at_us: u64,
    /// What.
    pub action: Action,
    /// Force unit access.
    pub fua: bool,
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub blocks: u32,
}

/// What one disk was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Bytes of a logical block.
    pub block_len: u32,
    /// Blocks of the disk.
    pub disk_blocks: u64,
    /// When it began, in microseconds since 1970.
    pub began_us: u64,
    /// In the order of their arrival.
    pub records: Vec<Record>,
    /// Commands that were lost by the recorder, or that this version does not know.
    pub missing: u64,
}

/// The variable-length integers of the format: seven bits in a byte, the lowest first; the highest bit says that more
/// follow.
fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Small numbers of both signs as small numbers.
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

impl Trace {
    /// Read a trace. What is cut off at its end is left out, as a recorder that was killed leaves it.
    pub fn parse(bytes: &[u8]) -> Result<Trace, String> {
        let word = |at: usize, len: usize| -> u64 {
            bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        if bytes.len() < HEADER_LEN || &bytes[..8] != MAGIC {
            return Err("this is no trace: it does not begin with LUNTRACE".to_owned());
        }
        let version = word(8, 2);
        if version != u64::from(VERSION) {
            return Err(format!("the trace has version {version}; this program reads version {VERSION}"));
        }
        let (block_len, disk_blocks) = (word(12, 4) as u32, word(16, 8));
        if block_len == 0 || disk_blocks.checked_mul(u64::from(block_len)).is_none() {
            return Err(format!("the trace is of {disk_blocks} blocks of {block_len} bytes, which no disk has"));
        }
        let mut trace = Trace { block_len, disk_blocks, began_us: word(24, 8), records: vec![], missing: 0 };
        let mut rest = &bytes[HEADER_LEN..];
        let (mut at_us, mut end, mut blocks) = (0u64, 0u64, 0u64);
        while let Some((flags, after, place)) = header(&mut rest) {
            at_us = at_us.saturating_add(after);
            let lba = end.wrapping_add_signed(place);
            if flags & SAME_LENGTH == 0 {
                let Some(number) = take(&mut rest) else { break };
                blocks = number;
            }
            if flags & COMMAND_MASK != GAP {
                end = lba.wrapping_add(blocks);
            }
            let action = match flags & COMMAND_MASK {
                READ => Action::Read,
                WRITE => Action::Write,
                SYNCHRONIZE_CACHE => Action::Flush,
                UNMAP => Action::Unmap,
                GAP => {
                    trace.missing = trace.missing.saturating_add(blocks);
                    continue;
                }
                _ => {
                    trace.missing += 1;
                    continue;
                }
            };
            if lba.checked_add(blocks).is_none_or(|end| end > disk_blocks) || blocks > u64::from(u32::MAX) {
                return Err(format!("record {}: {blocks} blocks at {lba} of {disk_blocks}", trace.records.len()));
            }
            trace.records.push(Record { at_us, action, fua: flags & FUA != 0, lba, blocks: blocks as u32 });
        }
        Ok(trace)
    }

    /// Write it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + 8 * self.records.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.block_len.to_le_bytes());
        out.extend_from_slice(&self.disk_blocks.to_le_bytes());
        out.extend_from_slice(&self.began_us.to_le_bytes());
        let (mut at_us, mut end, mut blocks) = (0, 0u64, 0);
        for record in &self.records {
            let command = match record.action {
                Action::Read => READ,
                Action::Write => WRITE,
                Action::Flush => SYNCHRONIZE_CACHE,
                Action::Unmap => UNMAP,
            };
            let place = record.lba.wrapping_sub(end).cast_signed();
            let same_place = if place == 0 { SAME_PLACE } else { 0 };
            let same_length = if record.blocks == blocks { SAME_LENGTH } else { 0 };
            out.push(command | if record.fua { FUA } else { 0 } | same_place | same_length);
            put(&mut out, record.at_us.saturating_sub(at_us));
            if same_place == 0 {
                put(&mut out, zigzag(place));
            }
            if same_length == 0 {
                put(&mut out, u64::from(record.blocks));
            }
            at_us = at_us.max(record.at_us);
            end = record.lba.wrapping_add(u64::from(record.blocks));
            blocks = record.blocks;
        }
        out
    }

    /// A line for each record, behind a line for the disk: microseconds, command, first block, blocks.
    pub fn to_text(&self) -> String {
        let mut text = format!("disk {} {}\n", self.disk_blocks, self.block_len);
        for Record { at_us, action, fua, lba, blocks } in &self.records {
            let name = match (action, fua) {
                (Action::Read, false) => "read",
                (Action::Read, true) => "read-fua",
                (Action::Write, false) => "write",
                (Action::Write, true) => "write-fua",
                (Action::Flush, _) => "flush",
                (Action::Unmap, _) => "unmap",
            };
            let _ = writeln!(text, "{at_us} {name} {lba} {blocks}");
        }
        text
    }

    /// Read what [`Trace::to_text`] writes.
    pub fn from_text(text: &str) -> Result<Trace, String> {
        let mut trace = Trace { block_len: 0, disk_blocks: 0, began_us: 0, records: vec![], missing: 0 };
        for (number, line) in text.lines().enumerate() {
            let wrong = || format!("line {}: '{line}' is not `MICROSECONDS COMMAND LBA BLOCKS`", number + 1);
            let words: Vec<&str> = line.split_whitespace().collect();
            let parse = |word: &str| word.parse::<u64>().map_err(|_| wrong());
            match words[..] {
                [] => {}
                ["disk", blocks, len] => {
                    trace.disk_blocks = parse(blocks)?;
                    trace.block_len = u32::try_from(parse(len)?).map_err(|_| wrong())?;
                }
                [at, name, lba, blocks] => {
                    let (action, fua) = match name {
                        "read" => (Action::Read, false),
                        "read-fua" => (Action::Read, true),
                        "write" => (Action::Write, false),
                        "write-fua" => (Action::Write, true),
                        "flush" => (Action::Flush, false),
                        "unmap" => (Action::Unmap, false),
                        _ => return Err(wrong()),
                    };
                    let blocks = u32::try_from(parse(blocks)?).map_err(|_| wrong())?;
                    trace.records.push(Record { at_us: parse(at)?, action, fua, lba: parse(lba)?, blocks });
                }
                _ => return Err(wrong()),
            }
        }
        // The same rules as for the bytes.
        Trace::parse(&trace.to_bytes())
    }
}

/// The fields that every record has: flags, time since the one before, distance from its end.
fn header(rest: &mut &[u8]) -> Option<(u8, u64, i64)> {
    let (flags, behind) = rest.split_first()?;
    *rest = behind;
    let after = take(rest)?;
    let place = if flags & SAME_PLACE != 0 { 0 } else { unzigzag(take(rest)?) };
    Some((*flags, after, place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn sample() -> Trace {
        let mut random = Random::new(3);
        let mut at_us = 0;
        let records = (0..500)
            .map(|_| {
                at_us += random.below(3000);
                let action = [Action::Read, Action::Write, Action::Flush, Action::Unmap][random.below(4) as usize];
                let fua = action == Action::Write && random.one_in(3);
                Record { at_us, action, fua, lba: random.below(1 << 40), blocks: random.below(300) as u32 }
            })
            .collect();
        Trace { block_len: 512, disk_blocks: 1 << 41, began_us: 77, records, missing: 0 }
    }

    /// By hand from the description in README.md.
    #[test]
    fn the_bytes_are_those_of_the_description() {
        let mut bytes = b"LUNTRACE\x01\0\0\0\0\x02\0\0".to_vec();
        bytes.extend_from_slice(&[0, 0, 1, 0, 0, 0, 0, 0]); // 65,536 blocks
        bytes.extend_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[0x00, 0x0a, 0x90, 0x03, 0x08]); // read, 10 us, +200, 8 blocks
        bytes.extend_from_slice(&[0x71, 0xac, 0x02]); // write with FUA, 300 us later, right behind, as long
        bytes.extend_from_slice(&[0x4e, 0x00, 0x00]); // a gap of 8
        bytes.extend_from_slice(&[0x00, 0x01, 0x9f, 0x03, 0x01]); // read, 1 us later, -208, 1 block
        bytes.extend_from_slice(&[0x00, 0x80]); // cut off
        let trace = Trace::parse(&bytes).expect("a trace");
        let record = |at_us, action, fua, lba, blocks| Record { at_us, action, fua, lba, blocks };
        assert_eq!(
            trace.records,
            [
                record(10, Action::Read, false, 200, 8),
                record(310, Action::Write, true, 208, 8),
                record(311, Action::Read, false, 8, 1)
            ]
        );
        assert_eq!((trace.block_len, trace.disk_blocks, trace.began_us, trace.missing), (512, 65_536, 5, 8));
    }

    #[test]
    fn what_was_written_is_read_again() {
        let trace = sample();
        let bytes = trace.to_bytes();
        assert_eq!(Trace::parse(&bytes), Ok(trace.clone()));
        let text = Trace { began_us: 0, ..trace };
        assert_eq!(Trace::from_text(&text.to_text()), Ok(text));
    }

    #[test]
    fn no_bytes_end_in_a_panic() {
        let bytes = sample().to_bytes();
        let mut random = Random::new(11);
        for _ in 0..20_000 {
            let mut bad = bytes.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(bad.len() as u64) as usize;
                bad[at] = random.next_u64() as u8;
            }
            bad.truncate(random.below(bad.len() as u64 + 1) as usize);
            let _ = Trace::parse(&bad);
        }
        assert!(Trace::parse(b"LUNTRACE").is_err() && Trace::from_text("1 read 0 1").is_err());
    }
}
