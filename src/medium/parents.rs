//! Parents, opened once for all their children.
//!
//! A registry of the control plane; everything here may block. A parent is known by its file, whatever it is called,
//! and stays open as long as some disk stands on it. It is opened read-only under a shared lock, so that nobody writes
//! it meanwhile, and must be the file that its child was made from: a child holds the identity of its parent's content,
//! and what differs is refused.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::image::{load_page, open_file, open_parent};
use super::layer::{FileId, LayerFile};
use super::{FileError, ParentLink, describe};
use crate::blocks::{BlockMap, Chain, Fault, FlatMap, LEVELS_MAX, Level};

/// Layers of one disk at most: what a flat map can name.
pub const LAYERS_MAX: usize = 4095;

/// The layers that disks stand on.
#[derive(Default)]
pub struct Parents {
    open: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    layers: HashMap<FileId, Weak<LayerFile>>,
    /// Folded chains, by their layers.
    flats: HashMap<Vec<FileId>, Weak<FlatMap>>,
}

impl Parents {
    /// An empty registry.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The ancestors of a layer, nearest first, opened where they are not. `first` names the file of the nearest, in
    /// place of what the layer says.
    pub(super) fn ancestors(&self, leaf: &LayerFile, first: Option<&Path>) -> Result<Vec<Arc<LayerFile>>, FileError> {
        let mut ancestors: Vec<Arc<LayerFile>> = Vec::new();
        let mut named = first;
        loop {
            let child: &LayerFile = ancestors.last().map_or(leaf, |layer| layer);
            let Some(link) = child.parent() else { return Ok(ancestors) };
            let parent = self.parent_of(child, link, named.take())?;
            let seen = parent.id() == leaf.id() || ancestors.iter().any(|ancestor| ancestor.id() == parent.id());
            if seen {
                return Err(FileError::ParentLoop(parent.path().to_owned()));
            }
            if ancestors.len() + 2 > LAYERS_MAX {
                return Err(FileError::TooManyParents { path: leaf.path().to_owned(), layers_max: LAYERS_MAX });
            }
            ancestors.push(parent);
        }
    }

    /// The parent of a layer, verified.
    fn parent_of(
        &self,
        child: &LayerFile,
        link: &ParentLink,
        named: Option<&Path>,
    ) -> Result<Arc<LayerFile>, FileError> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => find(child.path(), link)?,
        };
        let parent = self.open(&path)?;
        if !link.matches(parent.identity()) {
            return Err(FileError::ParentChanged {
                child: child.path().to_owned(),
                parent: path,
                wanted: link.wanted(),
                found: parent.identity().to_string(),
            });
        }
        Ok(parent)
    }

    /// A layer for reading; the one that is open where there is one.
    pub fn open(&self, path: &Path) -> Result<Arc<LayerFile>, FileError> {
        let id = FileId::of(&open_file(path, true)?, path)?;
        if let Some(layer) = self.registry().layers.get(&id).and_then(Weak::upgrade) {
            return Ok(layer);
        }
        let layer = Arc::new(open_parent(path)?);
        // Opened twice at once is no harm: both are read-only.
        self.registry().layers.insert(layer.id(), Arc::downgrade(&layer));
        Ok(layer)
    }

    /// A leaf has become a parent: its lock becomes a shared one, and others that stand on the same file share the
    /// layer from now on. Its file must be clean.
    pub fn adopt(&self, layer: &Arc<LayerFile>) -> Result<(), FileError> {
        layer.share_lock()?;
        layer.set_identity(describe(layer.path())?.identity);
        self.registry().layers.insert(layer.id(), Arc::downgrade(layer));
        Ok(())
    }

    /// A layer's file has been changed (merged into): who opens it from now on opens it anew.
    pub fn forget(&self, layer: &LayerFile) {
        let mut registry = self.registry();
        registry.layers.remove(&layer.id());
        registry.flats.retain(|layers, _| !layers.contains(&layer.id()));
    }

    /// A chain of these layers, leaf first, folded where it is deep. What lies below the leaf must not change any more.
    pub fn chain(&self, layers: &[Arc<LayerFile>]) -> Result<Chain, FileError> {
        if layers.len() <= LEVELS_MAX {
            return Ok(Chain::new(levels_of(layers, 0)));
        }
        let mut levels = vec![layers[0].level(0)];
        levels.extend(self.folded(&layers[1..], 1)?);
        Ok(Chain::new(levels))
    }

    /// The same for a new leaf over a former one, which may still change: only what lies below that is folded.
    pub(super) fn chain_over(&self, layers: &[Arc<LayerFile>]) -> Result<Chain, FileError> {
        let mut levels = vec![layers[0].level(0), layers[1].level(1)];
        match &layers[2..] {
            [] => {}
            [one] => levels.push(one.level(2)),
            several => levels.extend(self.folded(several, 2)?),
        }
        Ok(Chain::new(levels))
    }

    /// Layers in one map; as they are where that would be too large. `first_layer` is the number of the first.
    fn folded(&self, layers: &[Arc<LayerFile>], first_layer: u16) -> Result<Vec<Level>, FileError> {
        let key: Vec<FileId> = layers.iter().map(|layer| layer.id()).collect();
        if let Some(map) = self.registry().flats.get(&key).and_then(Weak::upgrade) {
            return Ok(vec![Level::Flat { first_layer, map }]);
        }
        // Folding the nearest layer over those behind it is quick when these are folded already.
        let levels: Vec<Level> = match self.registry().flats.get(&key[1..]).and_then(Weak::upgrade) {
            Some(map) => vec![layers[0].level(0), Level::Flat { first_layer: 1, map }],
            None => levels_of(layers, 0),
        };
        let mut load = |layer: u16, map: &BlockMap, fault: Fault| load_page(&layers[usize::from(layer)], map, fault);
        let Some(map) = FlatMap::build(&levels, &mut load, &mut |_, _| Ok(()))? else {
            return Ok(levels_of(layers, first_layer));
        };
        let map = Arc::new(map);
        let mut registry = self.registry();
        registry.flats.retain(|_, map| map.strong_count() > 0);
        registry.flats.insert(key, Arc::downgrade(&map));
        Ok(vec![Level::Flat { first_layer, map }])
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Parents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parents").field("open", &self.registry().layers.len()).finish()
    }
}

/// Layers one by one; the first has the number `first_layer`.
fn levels_of(layers: &[Arc<LayerFile>], first_layer: u16) -> Vec<Level> {
    (first_layer..).zip(layers).map(|(number, layer)| layer.level(number)).collect()
}

/// Where the parent is: the first of the locator's paths at which there is a file.
fn find(child: &Path, link: &ParentLink) -> Result<PathBuf, FileError> {
    let child = child.canonicalize().map_err(|source| FileError::io("find", child, source))?;
    let folder = child.parent().unwrap_or(Path::new("/"));
    let places = link.places(folder);
    match places.iter().find(|place| place.exists()) {
        Some(place) => Ok(place.canonicalize().unwrap_or_else(|_| place.clone())),
        None => Err(FileError::ParentMissing { child, locator: link.to_string(), places }),
    }
}
