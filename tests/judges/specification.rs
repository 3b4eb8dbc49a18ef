//! Files made from the specification, read by everybody who may be believed, and by us.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::judge::{Format, JUDGES, Verdict};
use crate::made::{Content, Made, Recipe, bytes_of, random_disk};
use crate::made_vhd::{Kind, random_vhd};
use crate::trust::{Log, Subject};
use crate::vhdx_support::{MIB, Random};
use crate::{reference, source};

/// What a disk with this content must be read as.
pub fn verdict_of(content: &Content, sector_bytes: u64) -> Verdict {
    let size = content.len() as u64 * sector_bytes;
    Verdict::of(size, |offset, into| {
        let first = (offset / sector_bytes) as usize;
        into.copy_from_slice(&bytes_of(&content[first..first + into.len() / sector_bytes as usize], sector_bytes));
        Ok::<(), String>(())
    })
}

/// A chain of files in one directory, leaf first, and what is on the disk.
pub struct MadeChain {
    pub directory: TempDir,
    pub paths: Vec<PathBuf>,
    pub made: Vec<Made>,
    pub content: Content,
}

impl MadeChain {
    /// `sizes`: one for each file, the root's first.
    pub fn new(recipe: &Recipe, sizes: &[u64], seed: u64) -> Self {
        let chain = Self::in_memory(recipe, sizes, seed);
        chain.save();
        chain
    }

    /// Without writing the files.
    pub fn in_memory(recipe: &Recipe, sizes: &[u64], seed: u64) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut chain = Self { directory, paths: Vec::new(), made: Vec::new(), content: Vec::new() };
        for (depth, size) in sizes.iter().enumerate() {
            let parent = chain.made.first().map(|made| (made.data_write_guid, format!("disk{}.vhdx", depth - 1)));
            let below = parent.is_some().then_some(&chain.content);
            let recipe = Recipe { size_bytes: *size, parent, ..recipe.clone() };
            let (made, content) = random_disk(recipe, below, seed ^ (depth as u64) << 32);
            chain.made.insert(0, made);
            chain.content = content;
            chain.paths.insert(0, chain.directory.path().join(format!("disk{depth}.vhdx")));
        }
        chain
    }

    pub fn save(&self) {
        for (made, path) in self.made.iter().zip(&self.paths) {
            made.file.save(path);
        }
    }

    pub fn leaf_first(&self) -> Vec<&Path> {
        self.paths.iter().map(PathBuf::as_path).collect()
    }
}

/// What those say who are not believed is shown, so that the table in `trust` can be followed.
fn show_the_others(subject: &Subject, chain: &[&Path], expected: &Verdict) {
    for judge in JUDGES {
        if let Err(reason) = subject.trust(judge) {
            let agrees = if &judge.read(chain) == expected { "agrees" } else { "disagrees" };
            println!("   {judge:?} is not believed ({reason}) and {agrees}");
        }
    }
}

/// Everybody who may be believed says what was expected, and so does the reader from the specification.
pub fn judge_all(subject: &Subject, chain: &[&Path], expected: &Verdict) {
    let mut believed = 0;
    for judge in JUDGES.into_iter().filter(|judge| subject.trust(*judge).is_ok()) {
        let verdict = judge.read(chain);
        if &verdict != expected {
            panic!("{judge:?} says {verdict:?}, expected {expected:?}: {subject:?}; {}", keep(chain));
        }
        believed += 1;
    }
    assert!(believed > 0, "nobody can judge {subject:?}");
}

/// Copy a chain that was misjudged to where it outlives the test.
fn keep(chain: &[&Path]) -> String {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("misjudged");
    std::fs::create_dir_all(&to).expect("the target directory can be written");
    for path in chain {
        std::fs::copy(path, to.join(path.file_name().expect("a file"))).expect("the target directory has space");
    }
    format!("the files are kept in {}", to.display())
}

#[test]
fn what_is_made_is_what_the_judges_read() {
    for (block, sector, sizes) in [
        (MIB, 512, vec![9 * MIB + 4096]),
        (MIB, 4096, vec![7 * MIB + 4096]),
        (32 * MIB, 4096, vec![40 * MIB]),
        (MIB, 512, vec![7 * MIB; 2]),
        (2 * MIB, 512, vec![11 * MIB; 5]),
        (MIB, 4096, vec![9 * MIB; 3]),
        (MIB, 512, vec![5 * MIB, 7 * MIB, 6 * MIB + 4096]),
    ] {
        for dirty in [false, true] {
            let mut chain = MadeChain::new(&Recipe::dynamic(0, block, sector), &sizes, block ^ sector);
            if dirty {
                chain.made[0].move_to_log(sector);
                chain.save();
            }
            let expected = verdict_of(&chain.content, sector);
            println!("blocks {block}, sectors {sector}, sizes {sizes:?}, dirty {dirty}: {expected:?}");
            let subject = Subject {
                depth: sizes.len(),
                sector_bytes: sector,
                size_bytes: *sizes.last().expect("some"),
                log: if dirty { Log::Any } else { Log::Clean },
                any_states: true,
                parent_smaller: sizes.windows(2).any(|pair| pair[0] < pair[1]),
                ..Subject::new(Format::Vhdx)
            };
            judge_all(&subject, &chain.leaf_first(), &expected);
            show_the_others(&subject, &chain.leaf_first(), &expected);
        }
    }
}

/// The reader from the specification against what was made, over many more files.
#[test]
fn the_reference_reads_what_was_made() {
    for seed in 0..16 {
        let mut random = Random(seed);
        let sector = if random.below(2) == 0 { 512 } else { 4096 };
        let block = MIB << random.below(3);
        let depth = 1 + random.below(4);
        let sizes: Vec<u64> = (0..depth).map(|_| 4096 * (1 + random.below(900))).collect();
        let mut chain = MadeChain::in_memory(&Recipe::dynamic(0, block, sector), &sizes, seed);
        for made in &mut chain.made {
            if random.below(2) == 0 {
                made.move_to_log(random.next());
            }
        }
        let sources = chain.made.iter().map(|made| source(&made.file)).collect();
        let read = reference::Chain::open(sources).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let size = chain.content.len() as u64 * sector;
        assert_eq!(read.size_bytes(), size);
        let mut bytes = vec![0; size as usize];
        read.read(0, &mut bytes);
        assert!(bytes == bytes_of(&chain.content, sector), "seed {seed}");
    }
}

/// The same for VHD: fixed, dynamic, and chains on either.
#[test]
fn what_is_made_as_vhd_is_what_the_judges_read() {
    for (root, block, sizes) in [
        (Kind::Fixed, 2 * MIB, vec![3 * MIB]),
        (Kind::Dynamic, 2 * MIB, vec![9 * MIB]),
        (Kind::Dynamic, 512 << 10, vec![3 * MIB + 512]),
        (Kind::Fixed, 2 * MIB, vec![5 * MIB; 2]),
        (Kind::Dynamic, 2 * MIB, vec![5 * MIB; 4]),
        (Kind::Dynamic, 512 << 10, vec![3 * MIB; 3]),
    ] {
        let directory = TempDir::new().expect("a temporary directory");
        let (mut paths, mut content, mut parent) = (Vec::<PathBuf>::new(), Content::new(), None);
        for (depth, size) in sizes.iter().enumerate() {
            let kind = if depth == 0 { root } else { Kind::Differencing };
            let (made, new) = random_vhd(kind, *size, block, parent.as_ref(), &content, block + 7 * depth as u64);
            let name = format!("disk{depth}.vhd");
            paths.insert(0, directory.path().join(&name));
            made.file.save(&paths[0]);
            parent = Some((made.unique_id, name));
            content = new;
        }
        let expected = verdict_of(&content, 512);
        println!("{root:?}, blocks {block}, sizes {sizes:?}: {expected:?}");
        let (depth, size_bytes) = (sizes.len(), sizes[sizes.len() - 1]);
        let subject = Subject { depth, size_bytes, ..Subject::new(Format::Vhd) };
        let chain: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        judge_all(&subject, &chain, &expected);
        show_the_others(&subject, &chain, &expected);
    }
}
