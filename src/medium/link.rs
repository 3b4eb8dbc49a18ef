//! How an image names its parent, whatever its format: where the file may be, and how it is recognised.

use std::fmt;
use std::path::{Path, PathBuf};

use super::ImageIdentity;
use crate::vhd::VhdParent;
use crate::vhdx::{ParentLocator, PathKind};

/// What a differencing image says of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentLink {
    /// As a VHDX says it.
    Vhdx(ParentLocator),
    /// As a VHD does.
    Vhd(VhdParent),
}

impl ParentLink {
    /// Where to look for the parent of an image in this folder, in order. Windows' separators become `/`; paths that
    /// name a volume or drive mean nothing here.
    pub fn places(&self, folder: &Path) -> Vec<PathBuf> {
        match self {
            Self::Vhdx(locator) => locator
                .search_paths()
                .into_iter()
                .map(|(kind, path)| if kind == PathKind::Relative { folder.join(path) } else { PathBuf::from(path) })
                .collect(),
            Self::Vhd(parent) => vhd_places(parent, folder),
        }
    }

    /// Whether an image of this identity is the parent.
    pub fn matches(&self, identity: ImageIdentity) -> bool {
        match (self, identity) {
            (Self::Vhdx(ParentLocator::Vhdx(parent)), ImageIdentity::Vhdx(guid)) => parent.matches(guid),
            (Self::Vhdx(ParentLocator::Raw(parent)), ImageIdentity::Raw { size_bytes, modified_ns }) => {
                parent.matches(size_bytes, modified_ns)
            }
            (Self::Vhd(parent), ImageIdentity::Vhd(id)) => parent.unique_id == id && !id.is_nil(),
            _ => false,
        }
    }

    /// The identity that the parent must have, for people.
    pub fn wanted(&self) -> String {
        match self {
            Self::Vhdx(ParentLocator::Vhdx(parent)) => match parent.linkage2 {
                Some(other) => format!("{} or {other}", parent.linkage),
                None => parent.linkage.to_string(),
            },
            Self::Vhdx(ParentLocator::Raw(parent)) => {
                ImageIdentity::Raw { size_bytes: parent.size_bytes, modified_ns: parent.modified_ns }.to_string()
            }
            Self::Vhd(parent) => parent.unique_id.to_string(),
        }
    }
}

impl fmt::Display for ParentLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vhdx(locator) => write!(f, "{locator}"),
            Self::Vhd(parent) => write!(f, "{}, identity {}", parent.name, parent.unique_id),
        }
    }
}

/// Relative paths first; the bare name in the same folder last, since old writers say no more.
fn vhd_places(parent: &VhdParent, folder: &Path) -> Vec<PathBuf> {
    let unix = |path: &String| path.replace('\\', "/");
    let is_drive = |path: &&String| path.as_bytes().get(1) == Some(&b':') || path.starts_with(r"\\");
    let relative = parent.relative_paths.iter().filter(|path| !is_drive(path));
    let absolute = parent.absolute_paths.iter().filter(|path| !is_drive(path) && path.starts_with(['/', '\\']));
    let name = Some(&parent.name).filter(|name| !name.is_empty() && !name.contains(['/', '\\', ':']));
    let mut places: Vec<PathBuf> = relative.map(|path| folder.join(unix(path).trim_start_matches('/'))).collect();
    places.extend(absolute.map(|path| PathBuf::from(unix(path))));
    places.extend(name.map(|name| folder.join(name)));
    places.dedup();
    places
}

/// How a new VHD in `folder` names its parent; both paths are absolute.
pub(super) fn vhd_parent(parent: &Path, identity: uuid::Uuid, folder: &Path) -> VhdParent {
    let windows = |path: String| path.replace('/', "\\");
    // The same words that a VHDX would use.
    let said = crate::vhdx::VhdxParent::new(crate::vhdx::Guid::ZERO, parent, folder);
    let name = parent.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    VhdParent {
        unique_id: identity,
        timestamp: 0,
        name,
        relative_paths: said.relative_path.into_iter().collect(),
        absolute_paths: parent.to_str().map(|path| windows(path.to_owned())).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vhds_parent_is_looked_for_where_its_paths_lead_and_beside_it() {
        let parent = VhdParent {
            unique_id: uuid::Uuid::from_u128(7),
            timestamp: 0,
            name: "golden.vhd".into(),
            relative_paths: vec![r".\sub\golden.vhd".into()],
            absolute_paths: vec![r"C:\images\golden.vhd".into(), r"\images\golden.vhd".into()],
        };
        let link = ParentLink::Vhd(parent);
        let places: Vec<String> = link.places(Path::new("/d")).iter().map(|p| p.display().to_string()).collect();
        assert_eq!(places, ["/d/./sub/golden.vhd", "/images/golden.vhd", "/d/golden.vhd"]);
        assert!(link.matches(ImageIdentity::Vhd(uuid::Uuid::from_u128(7))));
        assert!(!link.matches(ImageIdentity::Vhd(uuid::Uuid::from_u128(8))));
    }

    #[test]
    fn a_new_vhd_names_its_parent_from_its_own_folder() {
        let parent = vhd_parent(Path::new("/a/b/golden.vhd"), uuid::Uuid::from_u128(1), Path::new("/a/c"));
        assert_eq!(parent.relative_paths, [r"..\b\golden.vhd"]);
        assert_eq!(ParentLink::Vhd(parent).places(Path::new("/a/c"))[0], Path::new("/a/c/../b/golden.vhd"));
    }
}
