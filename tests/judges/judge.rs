//! The judges: other people's programs, and the reader written from the specifications. Each gives the full content of
//! a disk, or refuses it. A program that is not there fails the test with the line that installs it.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use wxtla::images::vhd::VhdImage;
use wxtla::images::vhdx::VhdxImage;
use wxtla::{ByteSource, FileDataSource, RelatedPathBuf, RelatedSourceRequest, RelatedSourceResolver, SourceIdentity};

use crate::reference;

const PIECE_BYTES: usize = 1 << 20;

/// What a judge says of a disk.
#[derive(Clone, PartialEq, Eq)]
pub enum Verdict {
    Content { size_bytes: u64, sha256: String },
    Refused(String),
}

impl fmt::Debug for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content { size_bytes, sha256 } => write!(out, "{size_bytes} bytes, {}", &sha256[..16]),
            Self::Refused(why) => write!(out, "refused: {why}"),
        }
    }
}

impl Verdict {
    /// Of a disk whose bytes `read` gives piece by piece.
    pub fn of<E: fmt::Display>(size_bytes: u64, mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>) -> Self {
        let (mut hash, mut bytes) = (Sha256::new(), vec![0; PIECE_BYTES]);
        for offset in (0..size_bytes).step_by(PIECE_BYTES) {
            let part = &mut bytes[..(size_bytes - offset).min(PIECE_BYTES as u64) as usize];
            if let Err(error) = read(offset, part) {
                return Self::Refused(format!("at {offset}: {error}"));
            }
            hash.update(part);
        }
        Self::Content { size_bytes, sha256: hexadecimal(hash) }
    }

    fn of_stream(mut stream: impl Read) -> Self {
        let (mut hash, mut bytes, mut size_bytes) = (Sha256::new(), vec![0; PIECE_BYTES], 0);
        loop {
            match stream.read(&mut bytes).expect("a pipe or file can be read") {
                0 => return Self::Content { size_bytes, sha256: hexadecimal(hash) },
                read => {
                    hash.update(&bytes[..read]);
                    size_bytes += read as u64;
                }
            }
        }
    }
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Vhdx,
    Vhd,
}

impl Format {
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("vhdx" | "avhdx") => Self::Vhdx,
            Some("vhd") => Self::Vhd,
            _ => panic!("{}: name it .vhdx or .vhd", path.display()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    QemuImg,
    SevenZip,
    Dissect,
    Libvhdi,
    Wxtla,
    Reference,
}

pub const JUDGES: [Judge; 6] =
    [Judge::QemuImg, Judge::SevenZip, Judge::Dissect, Judge::Libvhdi, Judge::Wxtla, Judge::Reference];

impl Judge {
    /// What is on the disk of `chain`: the leaf, then its parents, all of which are in one directory.
    pub fn read(self, chain: &[&Path]) -> Verdict {
        let leaf = chain[0];
        match (self, Format::of(leaf)) {
            (Self::QemuImg, Format::Vhdx) => qemu_img(leaf, "vhdx"),
            (Self::QemuImg, Format::Vhd) => qemu_img(leaf, "vpc"),
            (Self::SevenZip, Format::Vhdx) => seven_zip(leaf, "-tvhdx"),
            (Self::SevenZip, Format::Vhd) => seven_zip(leaf, "-tvhd"),
            (Self::Dissect, Format::Vhdx) => python("dissect-vhdx", chain),
            (Self::Dissect, Format::Vhd) => python("dissect-vhd", chain),
            (Self::Libvhdi, _) => python("libvhdi", chain),
            (Self::Wxtla, format) => wxtla(leaf, format),
            (Self::Reference, _) => by_the_specification(leaf),
        }
    }
}

pub fn by_the_specification(leaf: &Path) -> Verdict {
    match reference::Chain::open_file(leaf) {
        Ok(chain) => Verdict::of(chain.size_bytes(), |offset, into| {
            chain.read(offset, into);
            Ok::<(), String>(())
        }),
        Err(error) => Verdict::Refused(error.to_string()),
    }
}

/// Run a program of a package; its output if it succeeded.
pub fn run(program: &str, package: &str, arguments: &[&str], directory: &Path) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed ({error}): apt-get install {package}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(text) } else { Err(text.trim().to_owned()) }
}

fn qemu_img(image: &Path, format: &str) -> Verdict {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let from = image.to_str().expect("a plain path");
    let arguments = ["convert", "-f", format, "-O", "raw", from, "out.raw"];
    match run("qemu-img", "qemu-utils", &arguments, directory.path()) {
        Ok(_) => Verdict::of_stream(File::open(directory.path().join("out.raw")).expect("it was written")),
        Err(text) => Verdict::Refused(text),
    }
}

fn seven_zip(image: &Path, format: &str) -> Verdict {
    let mut child = Command::new("7zz")
        .args(["x", "-so", format])
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("7zz is needed ({error}): apt-get install 7zip"));
    let verdict = Verdict::of_stream(child.stdout.take().expect("piped"));
    let mut complaint = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut complaint).expect("text");
    let status = child.wait().expect("a child can be waited for");
    if status.success() {
        verdict
    } else {
        Verdict::Refused(complaint.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// Versions of the Python readers, as `tests/run` installs them.
const PYTHON_PACKAGES: &str = "libvhdi-python==20260901 dissect.hypervisor==3.21";

/// The directory of their virtual environment.
fn python_directory() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    std::env::var_os("LUNARING_JUDGES").map_or_else(|| target.join("judges"), PathBuf::from)
}

struct Python {
    _child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

static PYTHON: Mutex<Option<Python>> = Mutex::new(None);

fn start_python() -> Python {
    let directory = python_directory();
    let install = format!(
        "python3 -m venv {0} && {0}/bin/pip install {PYTHON_PACKAGES}   (tests/run does it)",
        directory.display()
    );
    let mut child = Command::new(directory.join("bin/python3"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/judges/reader.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("the Python readers are needed ({error}): {install}"));
    let (requests, answers) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    Python { _child: child, requests, answers: BufReader::new(answers) }
}

fn python(reader: &str, chain: &[&Path]) -> Verdict {
    let mut place = PYTHON.lock().unwrap_or_else(PoisonError::into_inner);
    let python = place.get_or_insert_with(start_python);
    let paths: Vec<&str> = chain.iter().map(|path| path.to_str().expect("a plain path")).collect();
    let request = format!("{reader}\t{}\n", paths.join("\t"));
    python.requests.write_all(request.as_bytes()).expect("the reader takes requests");
    let mut answer = String::new();
    python.answers.read_line(&mut answer).expect("the reader answers");
    match answer.trim().split_once(' ') {
        Some(("content", rest)) => {
            let (size, sha256) = rest.split_once(' ').expect("a size and a hash");
            Verdict::Content { size_bytes: size.parse().expect("a size"), sha256: sha256.to_owned() }
        }
        Some(("refused", why)) => Verdict::Refused(why.to_owned()),
        _ => panic!("the Python reader {reader} said {answer:?}; it needs {PYTHON_PACKAGES}"),
    }
}

/// Files of one directory, by name.
struct Siblings(PathBuf);

impl RelatedSourceResolver for Siblings {
    fn resolve(&self, request: &RelatedSourceRequest) -> wxtla::Result<Option<wxtla::ByteSourceHandle>> {
        let path = self.0.join(request.path.to_string());
        Ok(if path.is_file() { Some(Arc::new(FileDataSource::open(&path)?)) } else { None })
    }
}

fn wxtla(leaf: &Path, format: Format) -> Verdict {
    let siblings = Siblings(leaf.parent().expect("a directory").to_path_buf());
    let name = leaf.file_name().and_then(|name| name.to_str()).expect("a plain name");
    let identity = SourceIdentity::new(RelatedPathBuf::from_relative_path(name).expect("a name"));
    let hints = wxtla::SourceHints::new().with_resolver(&siblings).with_source_identity(&identity);
    let source = Arc::new(FileDataSource::open(leaf).expect("the file can be opened"));
    let image: Result<Box<dyn ByteSource>, _> = match format {
        Format::Vhdx => VhdxImage::open_with_hints(source, hints).map(|image| Box::new(image) as _),
        Format::Vhd => VhdImage::open_with_hints(source, hints).map(|image| Box::new(image) as _),
    };
    match image.and_then(|image| Ok((image.size()?, image))) {
        Ok((size, image)) => Verdict::of(size, |offset, into| image.read_exact_at(offset, into)),
        Err(error) => Verdict::Refused(error.to_string()),
    }
}
