//! What is in an image, and what is wrong with it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::medium::offline::{self, Hold};
use crate::medium::{self, DiskFormat, DiskKind, FileError, ImageDescription, ImageIdentity, ParentLink};
use crate::vhd;
use crate::vhdx::{self, Severity};

/// How long the metadata of a disk that is served is left to settle.
const BETWEEN_TRIES: Duration = Duration::from_millis(2);

/// Parents that are looked at.
const CHAIN_MAX: usize = 4096;

/// Everything that a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The image.
    pub file: PathBuf,
    /// Its format.
    pub format: Option<DiskFormat>,
    /// How it gets its space.
    pub kind: Option<DiskKind>,
    /// Who made it; for people only.
    pub creator: Option<String>,
    /// Size of the disk in bytes.
    pub size_bytes: Option<u64>,
    /// Logical sector size in bytes.
    pub sector_size_bytes: Option<u32>,
    /// Physical sector size in bytes.
    pub physical_sector_size_bytes: Option<u32>,
    /// Bytes of a block.
    pub block_size_bytes: Option<u64>,
    /// The identity that initiators see.
    pub disk_id: Option<Uuid>,
    /// What children know it by.
    pub identifier: Option<String>,
    /// The state of a VHDX's log, in words.
    pub log: Option<String>,
    /// Blocks by state.
    pub blocks: Vec<BlockCount>,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Space that the file takes.
    pub allocated_bytes: u64,
    /// Bytes inside the file that nothing refers to.
    pub unreferenced_bytes: u64,
    /// The image and its parents, as far as they can be found.
    pub chain: Vec<ChainLink>,
    /// What is wrong, in the order of the file.
    pub findings: Vec<Finding>,
    /// What a repair did.
    pub repaired: Vec<String>,
    /// What to bear in mind.
    pub notes: Vec<String>,
}

/// How many blocks are in a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCount {
    /// The state.
    pub state: String,
    /// Blocks.
    pub count: u64,
}

/// One file of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainLink {
    /// The file.
    pub file: PathBuf,
    /// Its format.
    pub format: Option<DiskFormat>,
    /// What children know it by.
    pub identifier: Option<String>,
    /// Why it cannot be used where it is; none when it can.
    pub problem: Option<String>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `error`: the disk cannot be opened or loses data; `warning`: it can be used all the same; `note`: worth knowing.
    pub severity: String,
    /// Where in the file, in bytes.
    pub offset: Option<u64>,
    /// The rule that is broken.
    pub rule: String,
    /// What is wrong there.
    pub what: String,
}

/// How to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Repair what can be repaired without guessing.
    pub repair: bool,
    /// The file's lock is held by this process already.
    pub held: bool,
    /// The disk is being served: its log is in use, and not left behind by an unclean end.
    pub served: bool,
    /// The parent of a differencing image, in place of what the image says.
    pub parent: Option<&'a Path>,
}

/// Check an image. Blocking. Nothing is written, unless a repair is asked for.
///
/// # Errors
/// The file cannot be read at all.
pub fn check(path: &Path, options: Options<'_>) -> Result<Report, FileError> {
    let metadata = path.metadata().map_err(|source| FileError::unreadable(path, source))?;
    let mut report = Report {
        file: path.to_owned(),
        file_bytes: metadata.len(),
        allocated_bytes: std::os::unix::fs::MetadataExt::blocks(&metadata).saturating_mul(512),
        ..Report::default()
    };
    let probed = offline::format_of_file(path)?;
    report.format = Some(probed);
    match probed {
        DiskFormat::Vhdx => check_vhdx(&mut report, options)?,
        DiskFormat::Vhd => check_vhd(&mut report, options)?,
        _ => check_by_description(&mut report, options)?,
    }
    walk_chain(&mut report, options.parent);
    Ok(report)
}

/// Check the image of a disk that is being written meanwhile. Blocking. `None`: its metadata changed under every one of
/// the tries, so nothing can be said of it.
///
/// # Errors
/// The file cannot be read at all.
pub fn check_steady(path: &Path, options: Options<'_>, tries: u32) -> Result<Option<Report>, FileError> {
    assert!(!options.repair, "only what nobody else writes is repaired");
    steady(|| offline::metadata_mark(path), || check(path, options), tries)
}

/// Look until `mark` says the same before and after it.
fn steady<T, E>(
    mut mark: impl FnMut() -> Result<Vec<u32>, E>,
    mut look: impl FnMut() -> Result<T, E>,
    tries: u32,
) -> Result<Option<T>, E> {
    for _ in 0..tries {
        let before = mark()?;
        let seen = look()?;
        if mark()? == before {
            return Ok(Some(seen));
        }
        std::thread::sleep(BETWEEN_TRIES);
    }
    Ok(None)
}

fn check_by_description(report: &mut Report, options: Options<'_>) -> Result<(), FileError> {
    let found = medium::describe(&report.file)?;
    describe(report, &found);
    if options.repair {
        report.notes.push(format!("a {} image has nothing to repair", found.format.as_str()));
    }
    if found.format == DiskFormat::Raw && !found.size_bytes.is_multiple_of(512) {
        report.findings.push(Finding {
            severity: "error".to_owned(),
            offset: Some(found.size_bytes),
            rule: "whole sectors".to_owned(),
            what: format!("it holds {} bytes, which are not whole sectors", found.size_bytes),
        });
    }
    Ok(())
}

fn describe(report: &mut Report, found: &ImageDescription) {
    report.kind = Some(found.kind);
    report.size_bytes = Some(found.size_bytes);
    report.sector_size_bytes = Some(found.sector_size_bytes);
    report.physical_sector_size_bytes = Some(found.physical_sector_bytes);
    report.block_size_bytes = found.block_size_bytes;
    report.disk_id = found.disk_id;
    report.identifier = Some(found.identity.to_string());
}

fn check_vhdx(report: &mut Report, options: Options<'_>) -> Result<(), FileError> {
    let found = if options.repair {
        let hold = if options.held { Hold::Held } else { Hold::Lock };
        let repaired = offline::repair_vhdx(&report.file, hold)?;
        report.repaired = repaired.done;
        repaired.after
    } else {
        offline::check_vhdx(&report.file)?
    };
    tell_vhdx(report, &found, options.served);
    Ok(())
}

fn tell_vhdx(report: &mut Report, found: &vhdx::CheckReport, served: bool) {
    report.creator = Some(found.creator.clone()).filter(|creator| !creator.is_empty());
    report.identifier = found.header().map(|header| header.data_write_guid.to_string());
    report.unreferenced_bytes = found.unreferenced_bytes;
    if let Some(geometry) = &found.geometry {
        report.kind = Some(match (geometry.has_parent, geometry.fixed) {
            (true, _) => DiskKind::Differencing,
            (false, true) => DiskKind::Fixed,
            (false, false) => DiskKind::Dynamic,
        });
        report.size_bytes = Some(geometry.disk_size_bytes);
        report.sector_size_bytes = Some(geometry.logical_sector_bytes);
        report.physical_sector_size_bytes = Some(geometry.physical_sector_bytes);
        report.block_size_bytes = Some(u64::from(geometry.block_size_bytes));
        report.disk_id = Some(Uuid::from_bytes_le(found.virtual_disk_id.0));
    }
    report.log = Some(match found.log {
        vhdx::LogFacts::Empty => "empty".to_owned(),
        vhdx::LogFacts::Pending(replay) if served => {
            format!("in use: {} entries, which are part of what is described here", replay.entries)
        }
        vhdx::LogFacts::Pending(replay) => format!(
            "{} entries of an unclean end, which the next writable open replays; this is the disk after that",
            replay.entries
        ),
        vhdx::LogFacts::Broken => "broken: it promises entries that cannot be replayed".to_owned(),
    });
    let blocks = &found.blocks;
    report.blocks = [
        ("full", u64::from(blocks.fully_present)),
        ("partial", u64::from(blocks.partially_present)),
        ("absent", u64::from(blocks.not_present)),
        ("zero", u64::from(blocks.zero)),
        ("unmapped", u64::from(blocks.unmapped)),
        ("undefined", u64::from(blocks.undefined)),
        ("reserved", u64::from(blocks.reserved)),
        ("bitmap", u64::from(blocks.bitmaps)),
    ]
    .into_iter()
    .map(|(state, count)| BlockCount { state: state.to_owned(), count })
    .collect();
    report.findings.extend(found.findings.iter().map(|finding| Finding {
        severity: word(finding.severity).to_owned(),
        offset: finding.offset_bytes,
        rule: if finding.section.is_empty() { String::new() } else { format!("MS-VHDX {}", finding.section) },
        what: finding.text.clone(),
    }));
    for tally in found.tallies.iter().filter(|tally| tally.count > vhdx::FINDINGS_PER_KIND_MAX) {
        report.notes.push(format!("{} times in all: {}", tally.count, tally.rule));
    }
}

fn check_vhd(report: &mut Report, options: Options<'_>) -> Result<(), FileError> {
    if options.repair {
        let hold = if options.held { Hold::Held } else { Hold::Lock };
        match offline::repair_vhd(&report.file, hold)? {
            vhd::Repaired::Nothing => {}
            done => report.repaired.push(format!("{done:?}")),
        }
    }
    let found = offline::check_vhd(&report.file)?;
    report.creator = Some(found.creator).filter(|creator| !creator.is_empty());
    report.kind = found.kind.map(|kind| match kind {
        vhd::Kind::Fixed => DiskKind::Fixed,
        vhd::Kind::Dynamic => DiskKind::Dynamic,
        vhd::Kind::Differencing => DiskKind::Differencing,
    });
    report.size_bytes = found.kind.map(|_| found.size_bytes);
    (report.sector_size_bytes, report.physical_sector_size_bytes) = (Some(512), Some(512));
    report.identifier = found.unique_id.map(|id| id.to_string());
    report.unreferenced_bytes = found.unreferenced_bytes;
    let partial = u64::from(found.blocks_partial);
    report.blocks = [("present", u64::from(found.blocks_present)), ("partial", partial)]
        .into_iter()
        .map(|(state, count)| BlockCount { state: state.to_owned(), count })
        .collect();
    report.findings.extend(found.findings.iter().map(|finding| {
        Finding {
            severity: match finding.severity {
                vhd::Severity::Note => "note",
                vhd::Severity::Mendable => "warning",
                vhd::Severity::Corrupt => "error",
            }
            .to_owned(),
            offset: Some(finding.offset_bytes),
            rule: "VHD 1.0".to_owned(),
            what: finding.text.clone(),
        }
    }));
    if found.findings_count > found.findings.len() as u64 {
        report.notes.push(format!("{} problems in all", found.findings_count));
    }
    Ok(())
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// Follow an image's parents. What is wrong with one is an error of the image.
fn walk_chain(report: &mut Report, named: Option<&Path>) {
    let mut named = named.map(Path::to_owned);
    let mut path = report.file.clone();
    let mut expected: Option<ParentLink> = None;
    let mut seen = std::collections::HashSet::new();
    while report.chain.len() < CHAIN_MAX {
        let canonical = path.canonicalize().unwrap_or_else(|_| path.clone());
        let mut link = ChainLink { file: path.clone(), format: None, identifier: None, problem: None };
        let mut next = None;
        match medium::describe(&path) {
            _ if !seen.insert(canonical.clone()) => link.problem = Some("the chain comes back to it".to_owned()),
            Err(error) => link.problem = Some(error.to_string()),
            Ok(found) => {
                link.format = Some(found.format);
                link.identifier = Some(found.identity.to_string());
                link.problem = expected.as_ref().and_then(|locator| mismatch(locator, found.identity));
                next = found.parent;
            }
        }
        let broken = link.problem.clone().filter(|_| !report.chain.is_empty());
        if let Some(problem) = &broken {
            report.findings.push(chain_finding(&path, problem));
        }
        let stop = link.problem.is_some();
        report.chain.push(link);
        let Some(locator) = next.filter(|_| !stop) else { break };
        match named.take().or_else(|| find(&canonical, &locator)) {
            Some(parent) => path = parent,
            None => {
                let problem = format!("its parent is not where it says ({locator}); name it with --parent");
                report.findings.push(chain_finding(&path, &problem));
                break;
            }
        }
        expected = Some(locator);
    }
    if report.chain.len() == 1 {
        report.chain.clear();
    }
}

fn chain_finding(file: &Path, problem: &str) -> Finding {
    let shown = file.display().to_string();
    let what = if problem.contains(&shown) { problem.to_owned() } else { format!("{shown}: {problem}") };
    Finding { severity: "error".to_owned(), offset: None, rule: "MS-VHDX 2.6.2.6".to_owned(), what }
}

/// Why a file is not the parent that is meant.
fn mismatch(link: &ParentLink, identity: ImageIdentity) -> Option<String> {
    let wanted = link.wanted();
    let changed = || format!("it was changed since its child was made: the child wants {wanted}, this is {identity}");
    (!link.matches(identity)).then(changed)
}

fn find(child: &Path, link: &ParentLink) -> Option<PathBuf> {
    link.places(child.parent()?).into_iter().find_map(|place| place.canonicalize().ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::medium::{CreateSpec, create_file};

    /// What is seen while the metadata changes is not believed, and neither is it given up at once.
    #[test]
    fn only_metadata_that_stays_the_same_is_believed() {
        let mut changes = 0;
        let restless = || {
            changes += 1;
            Ok::<_, ()>(vec![changes])
        };
        assert_eq!(steady(restless, || Ok("torn"), 5), Ok(None));
        assert_eq!(changes, 10);
        let mut marks = 0;
        let calmer = || {
            marks += 1;
            Ok::<_, ()>(vec![marks.min(4)])
        };
        let mut looks = 0;
        let look = || {
            looks += 1;
            Ok(looks)
        };
        assert_eq!(steady(calmer, look, 5), Ok(Some(3)));
    }

    /// The mark of a file changes with its headers, log and table, and not with its data.
    #[test]
    fn a_mark_is_of_the_metadata() {
        for (format, offsets) in [(DiskFormat::Vhdx, [440, 0x1_0ff0, 0x10_1000]), (DiskFormat::Vhd, [440, 600, 1540])] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk");
            let (kind, size_bytes) = (DiskKind::Dynamic, 8 << 20);
            let (block_size_bytes, sector_size_bytes, parent, disk_id) = (None, 512, None, None);
            let to = path.clone();
            let spec =
                CreateSpec { path: to, format, kind, size_bytes, block_size_bytes, sector_size_bytes, parent, disk_id };
            create_file(&spec).unwrap();
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let mut last = offline::metadata_mark(&path).unwrap();
            assert_eq!(offline::metadata_mark(&path).unwrap(), last);
            for offset in offsets {
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset).unwrap();
                file.write_all_at(&[!byte[0]], offset).unwrap();
                let mark = offline::metadata_mark(&path).unwrap();
                assert_ne!(mark, last, "{format:?} {offset:#x}");
                file.write_all_at(&byte, offset).unwrap();
                assert_eq!(offline::metadata_mark(&path).unwrap(), last, "{format:?} {offset:#x}");
            }
            file.set_len(file.metadata().unwrap().len() + (1 << 20)).unwrap();
            last = offline::metadata_mark(&path).unwrap();
            if format == DiskFormat::Vhdx {
                let end = file.metadata().unwrap().len();
                file.write_all_at(&[7; 4096], end - 8192).unwrap();
                assert_eq!(offline::metadata_mark(&path).unwrap(), last, "data is no metadata");
            }
        }
    }
}
