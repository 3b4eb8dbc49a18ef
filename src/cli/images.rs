//! Commands on images, snapshots and jobs.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::arguments::{
    Command, ConfigArguments, ConfigVerb, DiskCheck, DiskConvert, DiskVerb, JobArguments, JobVerb, MetaVerb,
    SnapshotArguments, SnapshotVerb, TraceArguments, TraceVerb,
};
use super::client::{ClientError, segment};
use super::commands::{Asker, Printed, absolute, word};
use super::progress::ProgressLine;
use super::show;

/// How often a client that waits asks how far a job is.
const JOB_LOOK: Duration = Duration::from_millis(100);

/// A command on a file, for which no server is needed.
#[derive(Debug)]
pub enum FileCommand {
    /// `disk check FILE`; whether JSON is wanted.
    Check(DiskCheck, bool),
    /// `disk convert FILE`; whether JSON is wanted.
    Convert(DiskConvert, bool),
    /// `config check FILE`; whether JSON is wanted.
    CheckConfig(PathBuf, bool),
}

/// Whether a command is about a file and not about a server.
pub fn file_command(command: Command) -> Result<FileCommand, Box<Command>> {
    let disk = match command {
        Command::Disk(disk) => disk,
        Command::Config(ConfigArguments { client, verb: ConfigVerb::Check { file } }) => {
            return Ok(FileCommand::CheckConfig(file, client.json));
        }
        command => return Err(Box::new(command)),
    };
    let json = disk.client.json;
    match disk.verb {
        DiskVerb::Check(check) if is_file(&check.image) => Ok(FileCommand::Check(check, json)),
        DiskVerb::Convert(convert) if is_file(&convert.image) => Ok(FileCommand::Convert(convert, json)),
        _ => Err(Box::new(Command::Disk(disk))),
    }
}

/// What is meant by NAME|FILE: a file has a '/' in its name, or exists.
fn is_file(image: &str) -> bool {
    image.contains('/') || Path::new(image).metadata().is_ok_and(|found| !found.is_dir())
}

/// NAME|FILE as the server must see it.
pub(super) fn disk_or_file(image: &str) -> Result<String, ClientError> {
    if is_file(image) { absolute(Path::new(image)) } else { Ok(image.to_owned()) }
}

fn disk_path(name: &str, rest: &str) -> String {
    format!("/v1/disks/{}{rest}", segment(name))
}

/// `lunaring trace`
pub(super) fn trace(arguments: TraceArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    let TraceVerb::Record { name, seconds, to } = arguments.verb;
    let file = absolute(&to.unwrap_or_else(|| PathBuf::from(format!("{name}.trace"))))?;
    let body = json!({ "seconds": seconds, "to": file });
    let words = |done: &Value| {
        let missing = match done["missing"].as_u64() {
            Some(missing @ 1..) => format!("; there was no room for {missing} more"),
            _ => String::new(),
        };
        format!("{} commands in {} bytes: {file}{missing}", done["commands"], done["file_bytes"])
    };
    asker.ask(Method::POST, &disk_path(&name, "/trace"), Some(body), words)
}

/// The verbs of `lunaring disk` that are about images.
pub(super) fn disk(asker: &Asker, verb: DiskVerb) -> Printed {
    match verb {
        DiskVerb::Resize { name, size, allow_shrink } => {
            let body = json!({ "size_bytes": size, "allow_shrink": allow_shrink });
            let words = |disk: &Value| show::resized(&name, disk);
            asker.ask(Method::POST, &disk_path(&name, "/resize"), Some(body), words)
        }
        DiskVerb::Check(DiskCheck { parent: Some(_), .. }) => {
            Err(ClientError::new("--parent is for image files; a disk of the server has its parent already"))
        }
        DiskVerb::Check(DiskCheck { image, repair, .. }) => {
            let body = json!({ "repair": repair });
            let report = asker.client.request(Method::POST, &disk_path(&image, "/check"), Some(&body))?;
            checked(&report, asker.json)
        }
        DiskVerb::Convert(convert) => converted(asker, &convert),
        DiskVerb::Merge { name, detach } => {
            let words = |job: &Value| match job["detail"].as_str() {
                Some(told) => format!("disk '{name}' is merged into its parent: {told}"),
                None => format!("disk '{name}' is merged into its parent"),
            };
            run_job(asker, Method::POST, &disk_path(&name, "/merge"), None, detach, words)
        }
        DiskVerb::Compact { name, detach } => {
            let words = |_: &Value| format!("disk '{name}' is compact");
            run_job(asker, Method::POST, &disk_path(&name, "/compact"), None, detach, words)
        }
        DiskVerb::Meta { verb } => metadata(asker, verb),
        DiskVerb::Create(_)
        | DiskVerb::Add(_)
        | DiskVerb::List
        | DiskVerb::Show { .. }
        | DiskVerb::Set(_)
        | DiskVerb::Delete { .. } => Err(ClientError::new("this verb is not about an image")),
    }
}

/// A check's report as JSON or in words; a refusal when something is wrong.
///
/// # Errors
/// The number of errors, with the report.
pub fn checked(report: &Value, json: bool) -> Printed {
    let printed = match json {
        true => serde_json::to_string_pretty(report).map_err(|e| ClientError::new(e.to_string()))?,
        false => show::check(report),
    };
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let errors = findings.iter().filter(|finding| finding["severity"] == "error").count();
    let file = report["file"].as_str().unwrap_or("the image");
    match errors {
        0 => Ok(printed),
        1 => Err(ClientError::after(printed, format!("{file}: 1 error was found"))),
        many => Err(ClientError::after(printed, format!("{file}: {many} errors were found"))),
    }
}

fn converted(asker: &Asker, convert: &DiskConvert) -> Printed {
    if convert.parent.is_some() {
        return Err(ClientError::new("--parent is for image files; a disk of the server has its parent already"));
    }
    let to = absolute(&convert.to)?;
    let body = conversion(convert, &to);
    let words = |_: &Value| format!("disk '{}' is copied into {to}", convert.image);
    run_job(asker, Method::POST, &disk_path(&convert.image, "/convert"), Some(body), convert.detach, words)
}

/// What a copy is to be, as the API has it.
pub fn conversion(convert: &DiskConvert, to: &str) -> Value {
    let mut body = json!({ "to": to });
    if let Some(format) = &convert.format {
        body["format"] = word(format);
    }
    if let Some(kind) = &convert.kind {
        body["kind"] = word(kind);
    }
    if let Some(block_size) = convert.block_size {
        body["block_size_bytes"] = json!(block_size);
    }
    body
}

/// Start a job, and wait for its end unless nobody wants to.
fn run_job(
    asker: &Asker,
    method: Method,
    path: &str,
    body: Option<Value>,
    detach: bool,
    words: impl FnOnce(&Value) -> String,
) -> Printed {
    let job = asker.client.request(method, path, body.as_ref())?;
    if detach {
        return asker.print(job, show::job_started);
    }
    let ended = await_job(asker, job)?;
    asker.print(ended, words)
}

/// Wait for a job's end.
fn await_job(asker: &Asker, job: Value) -> Result<Value, ClientError> {
    let id = job["id"].as_u64().unwrap_or(0);
    let mut line = ProgressLine::new(show::doing(&job));
    let mut job = job;
    while job["state"] == "running" {
        line.show(job["bytes_done"].as_u64().unwrap_or(0), job["bytes_total"].as_u64().unwrap_or(0));
        std::thread::sleep(JOB_LOOK);
        job = asker.client.request(Method::GET, &format!("/v1/jobs/{id}"), None)?;
    }
    match job["state"].as_str() {
        Some("done") => Ok(job),
        Some("cancelled") => Err(ClientError::new(format!("job {id} was cancelled"))),
        _ => Err(ClientError::new(job["error"].as_str().unwrap_or("the job failed").to_owned())),
    }
}

fn metadata(asker: &Asker, verb: MetaVerb) -> Printed {
    let path = |name: &str, item: uuid::Uuid| disk_path(name, &format!("/metadata/{item}"));
    match verb {
        MetaVerb::List { name } => asker.get(&disk_path(&name, "/metadata"), show::metadata),
        MetaVerb::Get { name, item, output } => {
            let answer = asker.client.request(Method::GET, &path(&name, item), None)?;
            if asker.json && output.is_none() {
                return asker.print(answer, |_| String::new());
            }
            let value = from_hex(answer["value_hex"].as_str().unwrap_or_default())
                .ok_or_else(|| ClientError::new("the server gave a value that is not hexadecimal"))?;
            match output {
                Some(file) => fs::write(&file, &value)
                    .map_err(|e| ClientError::new(format!("cannot write {}: {e}", file.display())))
                    .map(|()| format!("{} bytes written to {}", value.len(), file.display())),
                None => std::io::stdout()
                    .lock()
                    .write_all(&value)
                    .map_err(|e| ClientError::new(format!("cannot write to standard output: {e}")))
                    .map(|()| String::new()),
            }
        }
        MetaVerb::Set { name, item, file } => {
            let value = value_from(file)?;
            let body = json!({ "value_hex": to_hex(&value) });
            let words = |_: &Value| format!("item {item} of disk '{name}' has {} bytes", value.len());
            asker.ask(Method::PUT, &path(&name, item), Some(body), words)
        }
        MetaVerb::Delete { name, item } => {
            let words = |_: &Value| format!("disk '{name}' has no item {item} any more");
            asker.ask(Method::DELETE, &path(&name, item), None, words)
        }
    }
}

/// The bytes of a file, or of standard input.
fn value_from(file: Option<PathBuf>) -> Result<Vec<u8>, ClientError> {
    let mut value = Vec::new();
    match &file {
        Some(file) => {
            fs::File::open(file)
                .and_then(|mut opened| opened.read_to_end(&mut value))
                .map_err(|e| ClientError::new(format!("cannot read the value from {}: {e}", file.display())))?;
        }
        None => {
            std::io::stdin()
                .lock()
                .read_to_end(&mut value)
                .map_err(|e| ClientError::new(format!("cannot read the value from standard input: {e}")))?;
        }
    }
    Ok(value)
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    pairs.remainder().is_empty().then(|| pairs.map(|pair| (pair[0] << 4) | pair[1]).collect())
}

/// `lunaring snapshot`
pub fn snapshot(arguments: SnapshotArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    let path = |disk: &str, name: &str, rest: &str| disk_path(disk, &format!("/snapshots/{}{rest}", segment(name)));
    match arguments.verb {
        SnapshotVerb::Create { disk: Some(disk), name, .. } => {
            let body = name.map_or_else(|| json!({}), |name| json!({ "name": name }));
            asker.ask(Method::POST, &disk_path(&disk, "/snapshots"), Some(body), show::taken)
        }
        SnapshotVerb::Create { disk: None, group, group_name, .. } => {
            let mut body = json!({ "disks": group });
            if let Some(name) = group_name {
                body["name"] = json!(name);
            }
            asker.ask(Method::POST, "/v1/snapshots", Some(body), show::taken)
        }
        SnapshotVerb::List { disk } => asker.get(&disk_path(&disk, "/snapshots"), show::snapshots),
        SnapshotVerb::Restore { disk, name } => {
            let words = |_: &Value| format!("disk '{disk}' is what it was in snapshot '{name}'");
            asker.ask(Method::POST, &path(&disk, &name, "/restore"), None, words)
        }
        SnapshotVerb::Delete { disk, name, detach } => {
            let answer = asker.client.request(Method::DELETE, &path(&disk, &name, ""), None)?;
            let deleted = format!("snapshot '{name}' of disk '{disk}' deleted");
            if answer["job"].is_null() {
                return asker.print(answer, |_| deleted);
            }
            if detach {
                return asker.print(answer, |answer| format!("{deleted}; {}", show::job_started(&answer["job"])));
            }
            let job = await_job(&asker, answer["job"].clone())?;
            asker.print(json!({ "name": name, "job": job }), |_| deleted)
        }
        SnapshotVerb::Export { disk, name, new, writable } => {
            let body = json!({ "name": new, "writable": writable });
            let words = |_: &Value| format!("disk '{new}' shows snapshot '{name}' of disk '{disk}'");
            asker.ask(Method::POST, &path(&disk, &name, "/export"), Some(body), words)
        }
    }
}

/// `lunaring job`
pub fn job(arguments: JobArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    match arguments.verb {
        JobVerb::List => asker.get("/v1/jobs", show::jobs),
        JobVerb::Show { id } => asker.get(&format!("/v1/jobs/{id}"), show::job),
        JobVerb::Cancel { id } => {
            asker.ask(Method::DELETE, &format!("/v1/jobs/{id}"), None, |_| format!("job {id} was asked to stop"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_go_there_and_back_as_digits() {
        let value: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&value)), Some(value));
        assert_eq!((from_hex("0"), from_hex("0g"), from_hex("")), (None, None, Some(vec![])));
    }

    #[test]
    fn a_file_is_what_exists_or_has_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        assert!(is_file("./x") && is_file("/no/such") && !is_file("no-such-name"));
        fs::write(&file, "x").unwrap();
        assert!(is_file(file.to_str().unwrap()));
        assert_eq!(disk_or_file("golden").unwrap(), "golden");
        assert!(disk_or_file("./golden").unwrap().starts_with('/'));
    }

    #[test]
    fn a_report_with_errors_is_printed_and_fails() {
        let report = json!({"file": "/x", "findings": [{"severity": "warning", "what": "odd"}]});
        assert!(checked(&report, false).is_ok());
        let report = json!({"file": "/x", "findings": [{"severity": "error", "what": "broken", "offset": 4096}]});
        let error = checked(&report, true).unwrap_err();
        assert_eq!(error.to_string(), "/x: 1 error was found");
        assert!(error.printed.unwrap().contains("broken"));
    }
}
