//! The architecture and the house rules, held by machine: module arrows, what sans-IO modules may import, where
//! `unsafe` may live, sizes, names and columns. Reads the source tree as text and knows nothing of what the code does.
//!
//! Every rule is a function from one source file to its complaints, and each has a test that feeds it a bad file, so a
//! rule that stopped seeing anything fails too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may name whom, one step down; the rest follows by transitivity (DESIGN: arrows point down only).
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli", "control", "sim"]),
    ("cli", &[]),
    ("control", &["jobs", "shard"]),
    ("jobs", &["shard"]),
    ("shard", &["iscsi", "medium", "ring", "mem", "observe"]),
    ("sim", &["shard", "ring", "mem"]),
    ("iscsi", &["scsi"]),
    ("medium", &["vhdx", "vhd", "ring", "mem", "scsi", "observe"]),
    ("ring", &["mem"]),
    ("scsi", &[]),
    ("vhdx", &["blocks"]),
    ("vhd", &["blocks"]),
    ("blocks", &[]),
    ("mem", &[]),
    ("observe", &[]),
    ("bounded", &[]),
    ("crc32c", &[]),
    ("limits", &[]),
    ("units", &[]),
];

/// Small modules that every module may use.
const LEAFS: &[&str] = &["bounded", "crc32c", "limits", "units"];

/// Modules without sockets, files, clocks or threads.
const SANS_IO: &[&str] = &["iscsi", "scsi", "blocks", "vhdx", "vhd"];

/// Modules that may hold `unsafe`.
const UNSAFE_ALLOWED: &[&str] = &["src/ring/", "src/mem/"];

/// Test files that need `unsafe`, with the reason.
const UNSAFE_ALLOWED_FILES: &[(&str, &str)] = &[
    ("perf/src/uring.rs", "the load generator's own io_uring; nothing of the server is in it"),
    ("tests/allocation.rs", "a counting global allocator is an unsafe impl by definition"),
    ("tests/ring_allocation.rs", "a counting global allocator is an unsafe impl by definition"),
    ("tests/fuzz/coverage.rs", "LLVM's coverage pass calls a function by its name, with pointers to its counters"),
    ("tests/fuzz/main.rs", "a counting global allocator is an unsafe impl by definition"),
];

/// Functions that may exceed the line limit, with the reason: (file, function, reason).
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[];

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 1000;
const COLUMNS_MAX: usize = 120;

/// Words that are drawers, not names.
const BANNED_FILE_NAMES: &[&str] = &["util", "utils", "common", "base", "manager"];

// ---------------------------------------------------------------------------------------------------------- the rules

#[test]
fn arrows_point_down_only() {
    check(rust_files(&["src"]), arrow_complaints);
}

#[test]
fn sans_io_modules_import_nothing_of_the_environment() {
    check(rust_files(&["src"]), sans_io_complaints);
}

#[test]
fn sans_io_modules_forbid_unsafe() {
    for module in SANS_IO {
        let path = root().join("src").join(module).join("mod.rs");
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if !text.contains("mod ") {
            continue; // Nothing in it yet.
        }
        assert!(
            text.contains("#![forbid(unsafe_code)]"),
            "src/{module}/mod.rs: write #![forbid(unsafe_code)] at its top"
        );
    }
}

#[test]
fn unsafe_lives_in_ring_and_mem_with_a_proof() {
    check(rust_files(&["src", "perf", "tools", "tests", "benches"]), unsafe_complaints);
}

#[test]
fn files_start_with_what_they_are_for() {
    check(rust_files(&["src", "perf", "tools", "tests", "benches"]), |source| {
        if source.text.starts_with("//! ") {
            vec![]
        } else {
            vec!["line 1: start with `//! `: what it is for".to_owned()]
        }
    });
}

#[test]
fn functions_fit_a_screen() {
    check(rust_files(&["src", "perf", "tools", "tests", "benches"]), function_length_complaints);
}

#[test]
fn files_have_one_subject() {
    check(rust_files(&["src", "perf", "tools", "tests", "benches"]), |source| {
        let lines = source.text.lines().take(production_lines(&source.text)).count();
        if lines <= FILE_LINES_MAX {
            vec![]
        } else {
            vec![format!("{lines} lines before its tests; split it by subject")]
        }
    });
}

#[test]
fn file_names_say_what_is_inside() {
    let bad: Vec<PathBuf> = every_file()
        .into_iter()
        .filter(|path| path.file_stem().and_then(|s| s.to_str()).is_some_and(|s| BANNED_FILE_NAMES.contains(&s)))
        .collect();
    assert!(bad.is_empty(), "name what it gives instead: {bad:?}");
}

#[test]
fn lines_fit_and_hold_no_leftovers() {
    let files = every_file().into_iter().filter(|p| is_text(p)).filter_map(|p| Source::read(&p)).collect();
    check(files, line_complaints);
}

/// Complaints about names of other modules that this file's module may not know.
fn arrow_complaints(source: &Source) -> Vec<String> {
    let Some(own) = source.module() else { return vec![] };
    if source.is_test() {
        return vec![];
    }
    let reach = reachable(&own);
    let code = blank_comments_and_literals(&production(&source.text));
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let mut complaints = vec![];
    for (line, other) in crate_names(&code, source.depth()) {
        if !known.contains(other.as_str()) || other == own || LEAFS.contains(&other.as_str()) {
            continue;
        }
        if !reach.contains(other.as_str()) {
            complaints.push(format!("line {line}: `{own}` may not name `{other}`"));
        }
    }
    complaints.dedup();
    complaints
}

fn sans_io_complaints(source: &Source) -> Vec<String> {
    const BANNED_STD: &[&str] = &["fs", "thread", "os", "process", "env"];
    const BANNED_WORDS: &[&str] = &["Instant", "SystemTime"];
    const BANNED_CRATES: &[&str] =
        &["libc", "io_uring", "glommio", "crossbeam_queue", "socket2", "core_affinity", "getrandom", "hyper", "axum"];
    const PLAIN_ADDRESSES: &[&str] =
        &["IpAddr", "SocketAddr", "Ipv4Addr", "Ipv6Addr", "SocketAddrV4", "SocketAddrV6", "AddrParseError"];
    let own = source.module().unwrap_or_default();
    if !SANS_IO.contains(&own.as_str()) || source.is_test() {
        return vec![];
    }
    let code = blank_comments_and_literals(&production(&source.text));
    let mut complaints = vec![];
    for (line, path) in paths_after(&code, "std") {
        let mut segments = path.split("::");
        let (first, second) = (segments.next().unwrap_or(""), segments.next().unwrap_or(""));
        if BANNED_STD.contains(&first) || (first == "net" && !PLAIN_ADDRESSES.contains(&second)) {
            complaints.push(format!("line {line}: a sans-IO module may not use `std::{path}`"));
        }
    }
    for (number, text) in code.lines().enumerate() {
        for word in words(text) {
            if BANNED_WORDS.contains(&word) || BANNED_CRATES.contains(&word) {
                complaints.push(format!("line {}: a sans-IO module may not use `{word}`", number + 1));
            }
        }
    }
    complaints
}

fn unsafe_complaints(source: &Source) -> Vec<String> {
    let allowed = UNSAFE_ALLOWED.iter().any(|dir| source.path.starts_with(dir))
        || UNSAFE_ALLOWED_FILES.iter().any(|(file, _)| source.path == *file);
    let code = blank_comments_and_literals(&source.text);
    let originals: Vec<&str> = source.text.lines().collect();
    let mut complaints = vec![];
    for (number, text) in code.lines().enumerate() {
        if !words(text).any(|word| word == "unsafe") {
            continue;
        }
        if !allowed {
            complaints.push(format!("line {}: `unsafe` outside src/ring and src/mem", number + 1));
            continue;
        }
        let opens = text.contains("unsafe {") || text.contains("unsafe impl");
        if opens && !originals[number.saturating_sub(12)..=number].iter().any(|l| l.contains("// SAFETY:")) {
            complaints.push(format!("line {}: `unsafe` without a `// SAFETY:` proof above it", number + 1));
        }
    }
    complaints
}

fn function_length_complaints(source: &Source) -> Vec<String> {
    if source.is_test() {
        return vec![];
    }
    let code = blank_comments_and_literals(&production(&source.text));
    let mut complaints = vec![];
    for function in functions(&code) {
        let listed = LONG_FUNCTIONS.iter().any(|(file, name, _)| source.path == *file && function.name == *name);
        if function.lines > FUNCTION_LINES_MAX && !listed {
            let Function { name, line, lines } = function;
            complaints.push(format!("line {line}: `{name}` has {lines} lines; the limit is {FUNCTION_LINES_MAX}"));
        }
    }
    complaints
}

fn line_complaints(source: &Source) -> Vec<String> {
    // Put together here so that this file passes its own rule.
    let machine_paths = ["/wo", "/tmp/br", "/ho", "/ro"].into_iter().zip(["rk/", "ief", "me/", "ot/"]);
    let machine_paths: Vec<String> = machine_paths.map(|(a, b)| format!("{a}{b}")).collect();
    let leftovers = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let rust = source.path.ends_with(".rs");
    let mut complaints = vec![];
    for (number, line) in source.text.lines().enumerate() {
        let number = number + 1;
        if rust && line.chars().count() > COLUMNS_MAX {
            complaints.push(format!("line {number}: {} columns; the limit is {COLUMNS_MAX}", line.chars().count()));
        }
        for path in &machine_paths {
            let hit = line.find(path.as_str()).is_some_and(|at| {
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'))
            });
            if hit {
                complaints.push(format!("line {number}: a path of somebody's machine ({path})"));
            }
        }
        if rust && words(line).any(|word| leftovers.iter().any(|l| l == word)) {
            complaints.push(format!("line {number}: unfinished business; finish it or take it out"));
        }
    }
    complaints
}

// ----------------------------------------------------------------------------------------------------- reading sources

/// One source file: its path from the repository's root and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn read(path: &Path) -> Option<Source> {
        let text = fs::read_to_string(path).ok()?;
        let path = path.strip_prefix(root()).ok()?.to_str()?.to_owned();
        Some(Source { path, text })
    }

    /// The top-level module of the server that the file belongs to.
    fn module(&self) -> Option<String> {
        let inside = self.path.strip_prefix("src/")?;
        let first = inside.split('/').next()?;
        (first != "lib.rs").then(|| first.trim_end_matches(".rs").to_owned())
    }

    /// How many `super::` lead from this file's module to the crate's root.
    fn depth(&self) -> usize {
        let Some(inside) = self.path.strip_prefix("src/") else { return usize::MAX };
        let parts = inside.split('/').count();
        if inside.ends_with("/mod.rs") { parts - 1 } else { parts }
    }

    /// A file of a unit-test module, which may look wherever the test needs.
    fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or("");
        let inside_src = self.path.starts_with("src/");
        inside_src && (name == "tests.rs" || name.ends_with("_tests.rs") || self.path.contains("/tests/"))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dirs: &[&str]) -> Vec<Source> {
    let files: Vec<Source> = dirs
        .iter()
        .flat_map(|dir| walk(&root().join(dir)))
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .filter_map(|path| Source::read(&path))
        .collect();
    assert!(files.len() > 3, "the source tree was not found");
    files
}

fn every_file() -> Vec<PathBuf> {
    walk(&root())
}

fn is_text(path: &Path) -> bool {
    let known = ["rs", "toml", "md", "sh", "txt", "json", "yml"];
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| known.contains(&e))
        || path.file_name().is_some_and(|name| name == "run")
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if path.is_dir() {
            let hidden = name.starts_with('.') && name != ".ci";
            if !hidden && name != "target" && name != "lunaring-demo" {
                found.extend(walk(&path));
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn check(files: Vec<Source>, rule: impl Fn(&Source) -> Vec<String>) {
    let complaints: Vec<String> =
        files.iter().flat_map(|s| rule(s).into_iter().map(|c| format!("{}: {c}", s.path))).collect();
    assert!(complaints.is_empty(), "{} complaints:\n{}\n", complaints.len(), complaints.join("\n"));
}

/// Every module that `from` may name, over any number of arrows.
fn reachable(from: &str) -> BTreeSet<&'static str> {
    let mut reach = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(name) = open.pop() {
        let Some((_, below)) = ARROWS.iter().find(|(n, _)| *n == name) else {
            panic!("src/{name} is not in the table of arrows; add it where DESIGN puts it")
        };
        for module in below.iter() {
            if reach.insert(*module) {
                open.push((*module).to_owned());
            }
        }
    }
    reach
}

/// How many lines come before the file's inline test module.
fn production_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        if line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test") {
            let item = lines[number + 1..].iter().find(|l| !l.starts_with("#[")).copied().unwrap_or("");
            if item.starts_with("mod ") && item.ends_with('{') {
                return number;
            }
        }
    }
    lines.len()
}

fn production(text: &str) -> String {
    text.lines().take(production_lines(text)).flat_map(|line| [line, "\n"]).collect()
}

/// The same text with comments, strings and character literals as blanks; lines and columns stay.
fn blank_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the comment or literal that starts at `at` ends; `at` itself when none starts there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return at + find(rest, b"*/").map_or(rest.len(), |i| i + 2);
    }
    if rest[0] == b'"' {
        let mut i = 1;
        while i < rest.len() && rest[i] != b'"' {
            i += if rest[i] == b'\\' { 2 } else { 1 };
        }
        return at + (i + 1).min(rest.len());
    }
    if !word_before && (rest.starts_with(b"r\"") || rest.starts_with(b"r#") || rest.starts_with(b"br")) {
        let hashes_at = rest.iter().position(|b| *b == b'#' || *b == b'"').unwrap_or(0);
        let hashes = rest[hashes_at..].iter().take_while(|b| **b == b'#').count();
        let raw = hashes_at <= 2 && rest.get(hashes_at + hashes) == Some(&b'"');
        if raw && (rest[0] == b'r' && hashes_at == 1 || rest[0] == b'b' && hashes_at == 2) {
            let closing = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
            let body = hashes_at + hashes + 1;
            return at + find(&rest[body..], &closing).map_or(rest.len(), |i| body + i + closing.len());
        }
    }
    if rest[0] == b'\'' && rest.len() > 2 {
        if rest[1] == b'\\' {
            return at + 3 + rest[3..].iter().position(|b| *b == b'\'').unwrap_or(0).min(10) + 1;
        }
        let character = std::str::from_utf8(&rest[1..rest.len().min(5)])
            .or_else(|e| std::str::from_utf8(&rest[1..1 + e.valid_up_to()]));
        let width = character.ok().and_then(|s| s.chars().next()).map_or(1, char::len_utf8);
        if rest.get(1 + width) == Some(&b'\'') {
            return at + width + 2;
        }
    }
    at
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

/// The crate's top-level names that the code mentions, with their lines: through `crate::`, through as many `super::`
/// as lead out of the file's module, and through `lunaring::` (the binary).
fn crate_names(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut names: Vec<(usize, String)> =
        ["crate", "lunaring"].iter().flat_map(|root| paths_after(code, root)).collect();
    if depth < 8 {
        let supers = vec!["super"; depth].join("::");
        names.extend(paths_after(code, &supers));
    }
    names.into_iter().map(|(line, path)| (line, path.split("::").next().unwrap_or("").to_owned())).collect()
}

/// Every path that follows `root::` in the code, with groups taken apart: `std::{fs, net::IpAddr}` gives `fs` and
/// `net::IpAddr`.
fn paths_after(code: &str, root: &str) -> Vec<(usize, String)> {
    let pattern = format!("{root}::");
    let mut found = vec![];
    let mut from = 0;
    while let Some(at) = code[from..].find(&pattern).map(|i| from + i) {
        from = at + pattern.len();
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        expand(&code[from..], "", &mut |path| found.push((line, path)));
    }
    found
}

/// Take one use-tree apart; returns how many bytes of it were read.
fn expand(tree: &str, prefix: &str, give: &mut impl FnMut(String)) -> usize {
    let name_len = tree.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(tree.len());
    let name = &tree[..name_len];
    if !tree[name_len..].starts_with('{') {
        give(format!("{prefix}{}", name.trim_end_matches(':')));
        return name_len;
    }
    let prefix = format!("{prefix}{name}");
    let mut at = name_len + 1;
    loop {
        at += tree[at..].len() - tree[at..].trim_start_matches([' ', '\n', ',', '\t']).len();
        match tree[at..].chars().next() {
            None | Some('}') => return (at + 1).min(tree.len()),
            Some(c) if c.is_alphanumeric() || c == '_' => at += expand(&tree[at..], &prefix, give),
            Some(c) => at += c.len_utf8(),
        }
    }
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

/// Functions with a body, from the line of `fn` to the closing brace.
fn functions(code: &str) -> Vec<Function> {
    let bytes = code.as_bytes();
    let mut found = vec![];
    let mut from = 0;
    while let Some(at) = code[from..].find("fn ").map(|i| from + i) {
        from = at + 3;
        if at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_') {
            continue;
        }
        let name: String = code[from..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(body) = body_start(bytes, from) else { continue };
        let end = closing_brace(bytes, body);
        let line = code[..at].matches('\n').count() + 1;
        found.push(Function { name, line, lines: code[at..end].matches('\n').count() + 1 });
    }
    found
}

fn body_start(bytes: &[u8], from: usize) -> Option<usize> {
    let mut nesting = 0i32;
    for (offset, byte) in bytes[from..].iter().enumerate() {
        match byte {
            b'(' | b'[' => nesting += 1,
            b')' | b']' => nesting -= 1,
            b'{' if nesting == 0 => return Some(from + offset),
            b';' | b',' if nesting == 0 && *byte == b';' => return None,
            _ if nesting < 0 => return None,
            _ => {}
        }
    }
    None
}

fn closing_brace(bytes: &[u8], open: usize) -> usize {
    let mut nesting = 0i32;
    for (offset, byte) in bytes[open..].iter().enumerate() {
        match byte {
            b'{' => nesting += 1,
            b'}' => {
                nesting -= 1;
                if nesting == 0 {
                    return open + offset;
                }
            }
            _ => {}
        }
    }
    bytes.len()
}

// ------------------------------------------------------------------------------------------------ the rules can say no

fn bad(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

#[test]
fn a_wrong_arrow_is_seen_however_it_is_written() {
    for (path, text) in [
        ("src/scsi/cdb.rs", "use crate::iscsi::pdu::Bhs;\n"),
        ("src/scsi/cdb.rs", "fn f() { super::super::medium::open(); }\n"),
        ("src/iscsi/mod.rs", "use crate::{limits, shard::{link, turn}};\n"),
        ("src/ring/mod.rs", "use super::observe::Counter;\n"),
        ("src/shard/link.rs", "use crate::{\n    mem::Buf,\n    control::Api,\n};\n"),
    ] {
        assert_eq!(arrow_complaints(&bad(path, text)).len(), 1, "{path}: {text}");
    }
    let production = "use crate::mem::Buf; // crate::control\nfn f() { \"crate::control\"; }\n";
    let fine = format!("{production}#[cfg(test)]\nmod tests {{\n    use crate::sim::Disk;\n}}\n");
    let fine = fine.as_str();
    assert_eq!(arrow_complaints(&bad("src/shard/link.rs", fine)), Vec::<String>::new());
}

#[test]
fn an_import_of_the_environment_is_seen() {
    for text in [
        "use std::net::TcpStream;\n",
        "use std::{fmt, fs::File};\n",
        "fn f() { let t = std::time::Instant::now(); }\n",
        "use libc::c_int;\n",
        "use std::net::{IpAddr, UdpSocket};\n",
    ] {
        assert_eq!(sans_io_complaints(&bad("src/iscsi/login.rs", text)).len(), 1, "{text}");
    }
    let fine = "use std::net::{IpAddr, SocketAddr};\nuse std::collections::HashMap;\n";
    assert_eq!(sans_io_complaints(&bad("src/iscsi/directory.rs", fine)), Vec::<String>::new());
}

#[test]
fn unsafe_in_the_wrong_place_or_without_proof_is_seen() {
    let proven = "// SAFETY: the ring owns it.\nlet x = unsafe { *p };\n";
    assert_eq!(unsafe_complaints(&bad("src/mem/arena.rs", proven)), Vec::<String>::new());
    assert_eq!(unsafe_complaints(&bad("src/scsi/cdb.rs", proven)).len(), 1);
    assert_eq!(unsafe_complaints(&bad("src/mem/arena.rs", "let x = unsafe { *p };\n")).len(), 1);
    assert_eq!(
        unsafe_complaints(&bad("src/scsi/cdb.rs", "// unsafe\n#![forbid(unsafe_code)]\n")),
        Vec::<String>::new()
    );
}

#[test]
fn a_long_function_is_seen() {
    let long = format!("fn long(a: [u8; 4]) -> u8 {{\n{}}}\n", "    a();\n".repeat(FUNCTION_LINES_MAX));
    assert_eq!(function_length_complaints(&bad("src/scsi/cdb.rs", &long)).len(), 1);
    let short = "fn a() { let c = '{'; let s = \"{{{\"; }\nfn b() {}\n";
    assert_eq!(functions(&blank_comments_and_literals(short)).len(), 2);
    assert_eq!(function_length_complaints(&bad("src/scsi/cdb.rs", short)), Vec::<String>::new());
}

#[test]
fn a_wide_line_a_machine_path_and_a_leftover_are_seen() {
    let wide = format!("// {}\n", "x".repeat(COLUMNS_MAX));
    let path = ["let p = \"/wo", "rk/x\";\n"].concat();
    let leftover = ["// TO", "DO: later\n"].concat();
    for text in [wide, path, leftover] {
        assert_eq!(line_complaints(&bad("src/lib.rs", &text)).len(), 1, "{text}");
    }
}
