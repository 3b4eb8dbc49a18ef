//! The parent locator (section 2.6.2.6): which file is the parent of a differencing disk, and how it is recognised.
//!
//! Strings only: finding and opening the file is the caller's work. Paths in a locator are Windows paths; what can be
//! said about them here is how they read on this system ([`VhdxParent::search_paths`]).

use std::fmt;
use std::path::{Component, Path};

use uuid::Uuid;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::{LocatorError, OpenError};
use super::format::{Guid, METADATA_ITEM_LEN_MAX};

/// LocatorType of a parent that is a VHDX (section 2.6.2.6.1).
pub const LOCATOR_VHDX: Guid = Guid::from_u128(0xB04AEFB7_D19E_4A81_B789_25B8E9445913);

/// LocatorType of a parent that is a raw image. Ours alone: the format knows no such parents, and a reader that does
/// not know the type must refuse the disk rather than show zeros for what the image holds.
pub const LOCATOR_RAW: Guid = Guid::from_u128(0xE6AC6690_82F5_4B1F_BAD4_A02397B24113);

const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
const RELATIVE_PATH: &str = "relative_path";
const VOLUME_PATH: &str = "volume_path";
const ABSOLUTE_WIN32_PATH: &str = "absolute_win32_path";
const RAW_PATH: &str = "path";
const RAW_SIZE: &str = "size_bytes";
const RAW_MODIFIED: &str = "modified_ns";
const RAW_DISK_ID: &str = "disk_id";

/// The start of the item (section 2.6.2.6.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocatorHeader {
    locator_type: Guid,
    reserved: U16,
    count: U16,
}

/// One key and its value (section 2.6.2.6.2); offsets count from the start of the item, lengths are bytes of UTF-16LE.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocatorEntry {
    key_offset: U32,
    value_offset: U32,
    key_length: U16,
    value_length: U16,
}

const HEADER_LEN: usize = size_of::<LocatorHeader>();
const ENTRY_LEN: usize = size_of::<LocatorEntry>();
const _: () = assert!(HEADER_LEN == 20 && ENTRY_LEN == 12);

/// Which file is the parent of a differencing disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentLocator {
    /// Another VHDX, as the format has it.
    Vhdx(VhdxParent),
    /// A raw image: this program's own extension, which every other reader refuses.
    Raw(RawParent),
}

/// A parent that is a VHDX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdxParent {
    /// DataWriteGuid that the parent must have.
    pub linkage: Guid,
    /// Another DataWriteGuid that it may have instead: the one that a merge is about to give it. `None` where the file
    /// has no such key or a zero there, which Windows writes and which matches nothing.
    pub linkage2: Option<Guid>,
    /// From the child's directory, as Windows writes it: `.\golden.vhdx`.
    pub relative_path: Option<String>,
    /// `\\?\Volume{GUID}\...`.
    pub volume_path: Option<String>,
    /// `\\?\C:\...`; Windows itself leaves the prefix out.
    pub absolute_win32_path: Option<String>,
    /// Keys that the format does not name, kept as they are.
    pub others: Vec<(String, String)>,
}

/// A parent that is a raw image. It carries no identity, so its size and the time of its last change stand for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawParent {
    /// From the child's directory, `/` between its parts.
    pub relative_path: Option<String>,
    /// From the root.
    pub path: Option<String>,
    /// The image's size in bytes.
    pub size_bytes: u64,
    /// Its last change, in nanoseconds since 1970-01-01 UTC.
    pub modified_ns: u64,
    /// Identity of the disk that was served from the image when the child was made; zero where it had none.
    pub disk_id: Guid,
}

/// Which of a locator's paths; in the order in which section 2.6.2.6.3 tries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathKind {
    /// From the child's directory.
    Relative,
    /// By volume; never usable on this system.
    Volume,
    /// From the root.
    Absolute,
}

impl ParentLocator {
    /// Read the item's bytes. Every rule of section 2.6.2.6 is checked but one: a locator without any path is read,
    /// because a parent that the operator names needs none.
    pub fn parse(item: &[u8]) -> Result<Self, LocatorError> {
        let (locator_type, pairs) = pairs_of(item)?;
        match locator_type {
            LOCATOR_VHDX => Ok(Self::Vhdx(VhdxParent::from_pairs(pairs)?)),
            LOCATOR_RAW => Ok(Self::Raw(RawParent::from_pairs(&pairs)?)),
            other => Err(LocatorError::Type { locator_type: other }),
        }
    }

    /// The item's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, LocatorError> {
        match self {
            Self::Vhdx(parent) => encode(LOCATOR_VHDX, &parent.pairs()),
            Self::Raw(parent) => encode(LOCATOR_RAW, &parent.pairs()),
        }
    }

    /// Whether a VHDX with this DataWriteGuid is the parent. Zero never is, and neither is any VHDX where the parent is
    /// a raw image.
    pub fn matches(&self, data_write_guid: Guid) -> bool {
        match self {
            Self::Vhdx(parent) => parent.matches(data_write_guid),
            Self::Raw(_) => false,
        }
    }

    /// Where to look for the parent, in order, as paths of this system.
    pub fn search_paths(&self) -> Vec<(PathKind, String)> {
        match self {
            Self::Vhdx(parent) => parent.search_paths(),
            Self::Raw(parent) => {
                let relative = parent.relative_path.clone().map(|path| (PathKind::Relative, path));
                relative.into_iter().chain(parent.path.clone().map(|path| (PathKind::Absolute, path))).collect()
            }
        }
    }

    /// Every fact as key and text, for people.
    pub fn facts(&self) -> Vec<(String, String)> {
        match self {
            Self::Vhdx(parent) => parent.pairs(),
            Self::Raw(parent) => parent.pairs(),
        }
    }
}

impl fmt::Display for ParentLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vhdx(parent) => {
                let path = parent.relative_path.as_ref().or(parent.absolute_win32_path.as_ref());
                match path.or(parent.volume_path.as_ref()) {
                    Some(path) => write!(f, "{path}, identity {}", parent.linkage),
                    None => write!(f, "a file that is not named, identity {}", parent.linkage),
                }
            }
            Self::Raw(parent) => match parent.path.as_ref().or(parent.relative_path.as_ref()) {
                Some(path) => write!(f, "raw image {path} of {} bytes", parent.size_bytes),
                None => write!(f, "a raw image of {} bytes that is not named", parent.size_bytes),
            },
        }
    }
}

impl VhdxParent {
    /// The locator of a child in the directory `child_directory` whose parent is `parent`, both absolute. A path with
    /// a part that is not UTF-8 or holds a `\` cannot be said; where that leaves no path at all the parent can only be
    /// named by the operator.
    pub fn new(linkage: Guid, parent: &Path, child_directory: &Path) -> Self {
        let windows = |path: String| path.replace('/', "\\");
        let sayable = |path: &String| !path.contains('\\');
        let relative_path = relative(parent, child_directory).filter(sayable).map(windows);
        let absolute = parent.to_str().map(str::to_owned).filter(sayable).map(windows);
        Self {
            linkage,
            linkage2: None,
            relative_path,
            volume_path: None,
            absolute_win32_path: absolute,
            others: Vec::new(),
        }
    }

    /// Whether a file with this DataWriteGuid is the parent. Zero never is.
    pub fn matches(&self, data_write_guid: Guid) -> bool {
        data_write_guid != Guid::ZERO
            && (self.linkage == data_write_guid || self.linkage2.is_some_and(|guid| guid == data_write_guid))
    }

    /// Where to look for the parent, in order, as paths of this system: `\` becomes `/`. Paths that name a Windows
    /// volume or drive are left out: they mean nothing here.
    pub fn search_paths(&self) -> Vec<(PathKind, String)> {
        let unix = |path: &str| path.replace('\\', "/");
        let is_drive = |path: &str| path.as_bytes().get(1) == Some(&b':');
        let mut paths = Vec::with_capacity(2);
        if let Some(path) = self.relative_path.as_deref().filter(|path| !is_drive(path)) {
            // Anchored where the format says, whatever the text starts with.
            paths.push((PathKind::Relative, unix(path).trim_start_matches('/').to_owned()));
        }
        if let Some(path) = self.absolute_win32_path.as_deref() {
            let path = path.strip_prefix(r"\\?\").map_or(path, |rest| rest);
            let rooted = path.starts_with('\\') && !path.starts_with(r"\\");
            if (rooted || path.starts_with('/')) && !is_drive(path) {
                paths.push((PathKind::Absolute, unix(path)));
            }
        }
        paths
    }

    fn from_pairs(pairs: Vec<(String, String)>) -> Result<Self, LocatorError> {
        let mut linkage = None;
        let mut parent = Self {
            linkage: Guid::ZERO,
            linkage2: None,
            relative_path: None,
            volume_path: None,
            absolute_win32_path: None,
            others: Vec::new(),
        };
        for (key, value) in pairs {
            match key.as_str() {
                LINKAGE => linkage = Some(guid_of(LINKAGE, &value)?),
                LINKAGE2 => parent.linkage2 = Some(guid_of(LINKAGE2, &value)?).filter(|guid| *guid != Guid::ZERO),
                RELATIVE_PATH => parent.relative_path = Some(value),
                VOLUME_PATH => parent.volume_path = Some(value),
                ABSOLUTE_WIN32_PATH => parent.absolute_win32_path = Some(value),
                _ => parent.others.push((key, value)),
            }
        }
        parent.linkage = linkage.ok_or(LocatorError::Missing { key: LINKAGE })?;
        Ok(parent)
    }

    fn pairs(&self) -> Vec<(String, String)> {
        let guid = |guid: &Guid| format!("{{{guid}}}");
        let named = [
            (LINKAGE, Some(guid(&self.linkage))),
            (LINKAGE2, self.linkage2.as_ref().map(guid)),
            (RELATIVE_PATH, self.relative_path.clone()),
            (VOLUME_PATH, self.volume_path.clone()),
            (ABSOLUTE_WIN32_PATH, self.absolute_win32_path.clone()),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        named.chain(self.others.iter().cloned()).collect()
    }
}

impl RawParent {
    /// The locator of a child in the directory `child_directory` whose parent is the image `parent`, both absolute.
    pub fn new(parent: &Path, child_directory: &Path, size_bytes: u64, modified_ns: u64, disk_id: Guid) -> Self {
        let path = parent.to_str().map(str::to_owned);
        Self { relative_path: relative(parent, child_directory), path, size_bytes, modified_ns, disk_id }
    }

    /// Whether an image of this size and last change is the parent, as far as can be told.
    pub fn matches(&self, size_bytes: u64, modified_ns: u64) -> bool {
        self.size_bytes == size_bytes && self.modified_ns == modified_ns
    }

    fn from_pairs(pairs: &[(String, String)]) -> Result<Self, LocatorError> {
        let text = |wanted| pairs.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.clone());
        let number = |key| {
            let value = text(key).ok_or(LocatorError::Missing { key })?;
            value.parse().map_err(|_| LocatorError::Value { key, value, rule: "it is not a number" })
        };
        Ok(Self {
            relative_path: text(RELATIVE_PATH),
            path: text(RAW_PATH),
            size_bytes: number(RAW_SIZE)?,
            modified_ns: number(RAW_MODIFIED)?,
            disk_id: text(RAW_DISK_ID).map_or(Ok(Guid::ZERO), |value| guid_of(RAW_DISK_ID, &value))?,
        })
    }

    fn pairs(&self) -> Vec<(String, String)> {
        let id = Some(format!("{{{}}}", self.disk_id)).filter(|_| self.disk_id != Guid::ZERO);
        let named = [
            (RELATIVE_PATH, self.relative_path.clone()),
            (RAW_PATH, self.path.clone()),
            (RAW_SIZE, Some(self.size_bytes.to_string())),
            (RAW_MODIFIED, Some(self.modified_ns.to_string())),
            (RAW_DISK_ID, id),
        ];
        named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

/// `to` seen from the directory `from`, with `/`; `None` unless both are absolute, plain and UTF-8. Starts with `./` or
/// `../`, as readers of the format expect.
fn relative(to: &Path, from: &Path) -> Option<String> {
    let parts = |path: &Path| -> Option<Vec<String>> {
        let mut parts = path.components();
        (parts.next() == Some(Component::RootDir)).then_some(())?;
        parts
            .map(|part| if let Component::Normal(name) = part { name.to_str().map(str::to_owned) } else { None })
            .collect()
    };
    let (to, from) = (parts(to)?, parts(from)?);
    let shared = to.iter().zip(&from).take_while(|(a, b)| a == b).count();
    let up = from.len() - shared;
    let start = if up == 0 { ".".to_owned() } else { vec![".."; up].join("/") };
    Some(std::iter::once(start).chain(to[shared..].iter().cloned()).collect::<Vec<_>>().join("/"))
}

/// Text to GUID: braces and case vary between writers.
fn guid_of(key: &'static str, value: &str) -> Result<Guid, LocatorError> {
    let refused = |_| LocatorError::Value { key, value: value.to_owned(), rule: "it is not a GUID" };
    Uuid::try_parse(value.trim()).map(Guid::from_uuid).map_err(refused)
}

fn pairs_of(item: &[u8]) -> Result<(Guid, Vec<(String, String)>), LocatorError> {
    let broken = |rule| LocatorError::Layout { rule };
    let (header, rest) = LocatorHeader::read_from_prefix(item).map_err(|_| broken("it ends inside its header"))?;
    let count = usize::from(header.count.get());
    let (entries, _) = <[LocatorEntry]>::ref_from_prefix_with_elems(rest, count)
        .map_err(|_| broken("its list of keys passes its end"))?;
    // Strings that do not overlap are together no longer than the item. Others could make a small item cost much.
    let total: usize =
        entries.iter().map(|e| usize::from(e.key_length.get()) + usize::from(e.value_length.get())).sum();
    if total > item.len() {
        return Err(broken("its strings overlap"));
    }
    let text = |offset: U32, length: U16| {
        let (at, len) = (offset.get() as usize, usize::from(length.get()));
        if at < HEADER_LEN || len == 0 || len % 2 != 0 {
            return Err(broken("a string must have an offset behind the header and a length of whole UTF-16 units"));
        }
        let bytes = item.get(at..at + len).ok_or(broken("a string passes its end"))?;
        let units = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
        let text: String = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        // The format has no terminators; some writers count one.
        Ok(text.trim_end_matches('\0').to_owned())
    };
    let mut pairs = Vec::with_capacity(count);
    for entry in entries {
        pairs.push((text(entry.key_offset, entry.key_length)?, text(entry.value_offset, entry.value_length)?));
    }
    let mut keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(LocatorError::Twice { key: pair[0].to_owned() });
    }
    Ok((header.locator_type, pairs))
}

fn encode(locator_type: Guid, pairs: &[(String, String)]) -> Result<Vec<u8>, LocatorError> {
    let too_long = || LocatorError::TooLong;
    // An empty string cannot be said (section 2.6.2.6.2).
    let pairs: Vec<_> = pairs.iter().filter(|(key, value)| !key.is_empty() && !value.is_empty()).collect();
    let count = u16::try_from(pairs.len()).map_err(|_| too_long())?;
    let header = LocatorHeader { locator_type, reserved: U16::ZERO, count: U16::new(count) };
    let mut item = vec![0; HEADER_LEN + ENTRY_LEN * pairs.len()];
    item[..HEADER_LEN].copy_from_slice(header.as_bytes());
    let append = |item: &mut Vec<u8>, text: &str| {
        let at = u32::try_from(item.len()).map_err(|_| too_long())?;
        item.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
        let len = u16::try_from(item.len() - at as usize).map_err(|_| too_long())?;
        Ok((U32::new(at), U16::new(len)))
    };
    for (index, (key, value)) in pairs.iter().enumerate() {
        let ((key_offset, key_length), (value_offset, value_length)) =
            (append(&mut item, key)?, append(&mut item, value)?);
        let entry = LocatorEntry { key_offset, value_offset, key_length, value_length };
        item[HEADER_LEN + ENTRY_LEN * index..][..ENTRY_LEN].copy_from_slice(entry.as_bytes());
    }
    if item.len() as u64 > METADATA_ITEM_LEN_MAX {
        return Err(too_long());
    }
    Ok(item)
}

impl From<LocatorError> for OpenError {
    fn from(reason: LocatorError) -> Self {
        Self::ParentLocator { reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: Guid = Guid([0x11; 16]);
    const FUTURE: Guid = Guid([0x22; 16]);

    fn parent() -> VhdxParent {
        VhdxParent::new(PARENT, Path::new("/disks/base/golden.vhdx"), Path::new("/disks/vm"))
    }

    /// An item with these pairs, laid out as Windows does.
    fn item(pairs: &[(&str, &str)]) -> Vec<u8> {
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        encode(LOCATOR_VHDX, &pairs).expect("short")
    }

    #[test]
    fn what_is_written_is_read() {
        let full = VhdxParent {
            linkage2: Some(FUTURE),
            volume_path: Some(r"\\?\Volume{11111111-1111-1111-1111-111111111111}\golden.vhdx".into()),
            others: vec![("another".into(), "kept as it is: \u{1f4be}".into())],
            ..parent()
        };
        let locator = ParentLocator::Vhdx(full.clone());
        assert_eq!(ParentLocator::parse(&locator.encode().expect("short")), Ok(locator));
        assert_eq!(full.relative_path.as_deref(), Some(r"..\base\golden.vhdx"));
        assert_eq!(
            [PARENT, FUTURE, Guid::ZERO, Guid([3; 16])].map(|guid| full.matches(guid)),
            [true, true, false, false]
        );
        let raw =
            RawParent::new(Path::new("/disks/a.img"), Path::new("/disks"), 5 << 30, 1_700_000_000_000_000_001, PARENT);
        assert_eq!(raw.relative_path.as_deref(), Some("./a.img"));
        assert!(raw.matches(5 << 30, 1_700_000_000_000_000_001) && !raw.matches(5 << 30, 0) && !raw.matches(0, 0));
        let locator = ParentLocator::Raw(raw);
        assert_eq!(ParentLocator::parse(&locator.encode().expect("short")), Ok(locator.clone()));
        assert!(!locator.matches(PARENT));
    }

    /// What every child made by Windows has and the text of the format forbids or does not say.
    #[test]
    fn windows_children_are_read() {
        let bytes = item(&[
            ("parent_linkage", "{25A4BC9A-8E2B-4B4D-A9D5-1F3C70B7D1D9}"),
            ("parent_linkage2", "{00000000-0000-0000-0000-000000000000}"),
            ("relative_path", r".\golden.vhdx"),
            ("absolute_win32_path", r"D:\vm\golden.vhdx"),
        ]);
        let Ok(ParentLocator::Vhdx(parent)) = ParentLocator::parse(&bytes) else { panic!("read") };
        let linkage = Guid::from_u128(0x25a4bc9a_8e2b_4b4d_a9d5_1f3c70b7d1d9);
        assert_eq!((parent.linkage, parent.linkage2), (linkage, None));
        assert!(parent.matches(linkage) && !parent.matches(Guid::ZERO));
        assert_eq!(parent.search_paths(), [(PathKind::Relative, "./golden.vhdx".to_owned())]);
        let bare = item(&[("parent_linkage", "25a4bc9a-8e2b-4b4d-a9d5-1f3c70b7d1d9\0")]);
        assert!(ParentLocator::parse(&bare).is_ok_and(|locator| locator.matches(linkage)));
        let zero = item(&[("parent_linkage", "{00000000-0000-0000-0000-000000000000}")]);
        assert!(ParentLocator::parse(&zero).is_ok_and(|locator| !locator.matches(Guid::ZERO)));
    }

    #[test]
    fn paths_are_said_both_ways() {
        let paths = parent().search_paths();
        assert_eq!(paths[0], (PathKind::Relative, "../base/golden.vhdx".to_owned()));
        assert_eq!(paths[1], (PathKind::Absolute, "/disks/base/golden.vhdx".to_owned()));
        let odd = VhdxParent::new(PARENT, Path::new(r"/disks/back\slash.vhdx"), Path::new("/disks"));
        assert_eq!((odd.relative_path, odd.absolute_win32_path), (None, None));
        let unc =
            VhdxParent { absolute_win32_path: Some(r"\\server\share\x.vhdx".into()), relative_path: None, ..parent() };
        assert_eq!(unc.search_paths(), []);
        let rooted = VhdxParent { relative_path: Some(r"\etc\x".into()), absolute_win32_path: None, ..parent() };
        assert_eq!(rooted.search_paths(), [(PathKind::Relative, "etc/x".to_owned())]);
    }

    #[test]
    fn broken_locators_are_refused_with_the_rule() {
        let good = item(&[("parent_linkage", "{25a4bc9a-8e2b-4b4d-a9d5-1f3c70b7d1d9}"), ("relative_path", "x")]);
        assert!(ParentLocator::parse(&good).is_ok());
        let refusal = |at: usize, bytes: &[u8]| {
            let mut item = good.clone();
            item[at..at + bytes.len()].copy_from_slice(bytes);
            ParentLocator::parse(&item).expect_err("refused").to_string()
        };
        assert!(refusal(0, &[9]).contains("of a kind"), "{}", refusal(0, &[9]));
        assert!(refusal(18, &[0xff, 0xff]).contains("list of keys"));
        assert!(refusal(18, &[0]).contains("parent_linkage"));
        assert!(refusal(20, &0u32.to_le_bytes()).contains("offset behind the header"));
        assert!(refusal(20, &u32::MAX.to_le_bytes()).contains("passes its end"));
        assert!(refusal(28, &3u16.to_le_bytes()).contains("whole UTF-16 units"));
        assert!(refusal(28, &0u16.to_le_bytes()).contains("whole UTF-16 units"));
        assert!(refusal(30, &0xfffeu16.to_le_bytes()).contains("overlap"));
        let (first, second) = (good[20..32].to_vec(), good[32..44].to_vec());
        assert!(refusal(32, &first).contains("overlap") || refusal(32, &first).contains("twice"));
        assert!(refusal(20, &second).contains("parent_linkage") || refusal(20, &second).contains("twice"));
        for len in 0..good.len() {
            assert!(ParentLocator::parse(&good[..len]).is_err(), "cut to {len} bytes");
        }
        let text = ParentLocator::parse(&item(&[("parent_linkage", "golden")])).expect_err("refused").to_string();
        assert!(text.contains("golden") && text.contains("not a GUID"), "{text}");
        let twice = item(&[("relative_path", "a"), ("relative_path", "b")]);
        assert_eq!(ParentLocator::parse(&twice), Err(LocatorError::Twice { key: "relative_path".into() }));
        // Keys are case-sensitive: another key, not this one.
        let case = item(&[("Parent_Linkage", "{25a4bc9a-8e2b-4b4d-a9d5-1f3c70b7d1d9}")]);
        assert_eq!(ParentLocator::parse(&case), Err(LocatorError::Missing { key: LINKAGE }));
        let long = VhdxParent { relative_path: Some("x".repeat(40_000)), ..parent() };
        assert_eq!(ParentLocator::Vhdx(long).encode(), Err(LocatorError::TooLong));
    }

    /// An item of 1 MiB whose 65535 keys all point at one string of 64 KiB would be 8 GiB of text.
    #[test]
    fn a_small_item_cannot_cost_much() {
        let mut item = vec![b'a'; 1 << 20];
        item[..16].copy_from_slice(&LOCATOR_VHDX.0);
        item[18..20].copy_from_slice(&[0xff, 0xff]);
        for at in (20..20 + 65535 * 12).step_by(12) {
            let entry = LocatorEntry {
                key_offset: U32::new(800_000),
                value_offset: U32::new(800_000),
                key_length: U16::new(0xfffe),
                value_length: U16::new(0xfffe),
            };
            item[at..at + 12].copy_from_slice(entry.as_bytes());
        }
        assert_eq!(ParentLocator::parse(&item), Err(LocatorError::Layout { rule: "its strings overlap" }));
    }

    #[test]
    fn mutated_locators_never_panic() {
        let sources = [ParentLocator::Vhdx(parent()).encode(), {
            let raw = RawParent::new(Path::new("/a/b"), Path::new("/a"), 1, 2, PARENT);
            ParentLocator::Raw(raw).encode()
        }]
        .map(|item| item.expect("short"));
        let mut state = 1u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let mut read = 0;
        for round in 0..200_000 {
            let mut item = sources[round % 2].clone();
            for _ in 0..1 + next() % 4 {
                let at = if next() % 2 == 0 { next() % 80 } else { next() % item.len() };
                item[at] = [0, 1, 2, 20, 0x7f, 0xff, 0xd8, next() as u8][next() % 8];
            }
            item.truncate(if next() % 8 == 0 { next() % item.len() } else { item.len() });
            if let Ok(locator) = ParentLocator::parse(&item) {
                read += 1;
                let again = locator.encode().expect("no longer than what was read");
                assert!(ParentLocator::parse(&again).is_ok());
                let _ = (locator.search_paths(), locator.to_string());
            }
        }
        assert!((10_000..190_000).contains(&read), "the mutations break some and leave some: {read}");
    }
}
