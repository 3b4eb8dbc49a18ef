//! Each client command: one request, and what is printed of its answer.

use std::path::Path;

use clap::ValueEnum;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::arguments::{
    ClientOptions, DiskAdd, DiskArguments, DiskCreate, DiskVerb, PortalArguments, PortalVerb, SessionArguments,
    SessionVerb, StatsArguments, TargetArguments, TargetVerb,
};
use super::client::{Client, ClientError, segment};
use super::{entrance, images, ports, settings, show, socket};

pub(super) type Printed = Result<String, ClientError>;

/// Asks, and prints the answer as JSON or in words.
pub(super) struct Asker {
    pub(super) client: Client,
    pub(super) json: bool,
}

impl Asker {
    pub(super) fn new(options: ClientOptions) -> Asker {
        Asker { client: Client::new(socket(options.socket)), json: options.json }
    }

    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        words: impl FnOnce(&Value) -> String,
    ) -> Printed {
        let answer = self.client.request(method, path, body.as_ref())?;
        self.print(answer, words)
    }

    /// An answer as JSON or in words.
    pub(super) fn print(&self, answer: Value, words: impl FnOnce(&Value) -> String) -> Printed {
        if !self.json {
            return Ok(words(&answer));
        }
        let answer = if answer.is_null() { json!({}) } else { answer };
        serde_json::to_string_pretty(&answer).map_err(|e| ClientError::new(e.to_string()))
    }

    pub(super) fn get(&self, path: &str, words: fn(&Value) -> String) -> Printed {
        self.ask(Method::GET, path, None, words)
    }
}

/// `lunaring disk`
pub fn disk(arguments: DiskArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    match arguments.verb {
        DiskVerb::List => asker.get("/v1/disks", show::disks),
        DiskVerb::Show { name } => asker.get(&format!("/v1/disks/{}", segment(&name)), show::disk),
        DiskVerb::Create(create) => {
            let body = create_body(&create)?;
            asker.ask(Method::POST, "/v1/disks", Some(body), |disk| created("created", disk))
        }
        DiskVerb::Add(DiskAdd { name, file, parent, read_only }) => {
            let mut body = json!({ "name": name, "existing": true, "file": absolute(&file)?, "read_only": read_only });
            if let Some(parent) = parent {
                body["parent"] = json!(absolute(&parent)?);
            }
            asker.ask(Method::POST, "/v1/disks", Some(body), |disk| created("added", disk))
        }
        DiskVerb::Delete { name, keep_file } => {
            let path = format!("/v1/disks/{}?keep_file={keep_file}", segment(&name));
            asker.ask(Method::DELETE, &path, None, |answer| deleted(&name, answer))
        }
        DiskVerb::Set(set) => settings::of_disk(&asker, set),
        verb => images::disk(&asker, verb),
    }
}

fn create_body(create: &DiskCreate) -> Result<Value, ClientError> {
    let mut body = Map::new();
    body.insert("name".to_owned(), json!(create.name));
    let mut optional = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(field.to_owned(), value);
        }
    };
    optional("size_bytes", create.size.map(Value::from));
    optional("parent", create.parent.as_deref().map(images::disk_or_file).transpose()?.map(Value::from));
    optional("format", create.format.as_ref().map(word));
    optional("kind", create.kind.as_ref().map(word));
    optional("cache", create.cache.as_ref().map(word));
    optional("block_size_bytes", create.block_size.map(Value::from));
    optional("sector_size_bytes", create.sector_size.map(Value::from));
    optional("file", create.file.as_deref().map(absolute).transpose()?.map(Value::from));
    Ok(Value::Object(body))
}

/// The word that the command line and the API have for a choice.
pub(super) fn word(choice: &impl ValueEnum) -> Value {
    choice.to_possible_value().map_or(Value::Null, |value| Value::from(value.get_name()))
}

/// A file as the server must see it: the server may run in another folder.
pub(super) fn absolute(file: &Path) -> Result<String, ClientError> {
    let path = std::path::absolute(file).map_err(|e| ClientError::new(format!("{}: {e}", file.display())))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| ClientError::new(format!("the path {} is not text (UTF-8); rename the file", path.display())))
}

fn created(done: &str, disk: &Value) -> String {
    let name = disk["name"].as_str().unwrap_or_default();
    let mut said = format!("disk '{name}' {done}");
    if let Some(file) = disk["file"].as_str() {
        said.push_str(&format!(": {file}"));
    }
    for note in disk["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        said.push_str(&format!("\nnote: {note}"));
    }
    said
}

fn deleted(name: &str, answer: &Value) -> String {
    let mut said = format!("disk '{name}' deleted");
    if let Some(file) = answer["kept_file"].as_str() {
        said.push_str(&format!("; its file {file} is still there"));
    }
    if let Some(warning) = answer["warning"].as_str() {
        said.push_str(&format!("\nwarning: {warning}"));
    }
    said
}

/// `lunaring target`
pub fn target(arguments: TargetArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    let path = |name: &str, rest: &str| format!("/v1/targets/{}{rest}", segment(name));
    match arguments.verb {
        TargetVerb::List => asker.get("/v1/targets", show::targets),
        TargetVerb::Show { name } => asker.get(&path(&name, ""), show::target),
        TargetVerb::Create { name, iqn } => {
            let body = match iqn {
                Some(iqn) => json!({ "name": name, "iqn": iqn }),
                None => json!({ "name": name }),
            };
            asker.ask(Method::POST, "/v1/targets", Some(body), |target| {
                let iqn = target["iqn"].as_str().unwrap_or_default();
                format!("target '{name}' created: {iqn}\nallow somebody with 'lunaring target allow {name} RULE'")
            })
        }
        TargetVerb::Delete { name } => {
            asker.ask(Method::DELETE, &path(&name, ""), None, |_| format!("target '{name}' deleted"))
        }
        TargetVerb::Map { target, disk, lun, read_only, only_for } => {
            let mut body = json!({ "disk": disk, "read_only": read_only });
            let mut whom = String::new();
            if let Some(rule) = only_for {
                whom = format!(" for {rule}");
                body["for"] = json!(rule);
            }
            if let Some(lun) = lun {
                body["lun"] = json!(lun);
            }
            asker.ask(Method::POST, &path(&target, "/luns"), Some(body), |lun| {
                format!("disk '{disk}' is LUN {} of target '{target}'{whom}", lun["lun"])
            })
        }
        TargetVerb::Unmap { target, lun, only_for } => {
            let whom = only_for.as_ref().map_or(String::new(), |rule| format!(" for {rule}"));
            let query = only_for.map_or(String::new(), |rule| format!("?for={}", segment(&rule)));
            let words = |_: &Value| format!("target '{target}' has no LUN {lun}{whom} any more");
            asker.ask(Method::DELETE, &path(&target, &format!("/luns/{lun}{query}")), None, words)
        }
        TargetVerb::Allow { target, rule } => {
            let words = |_: &Value| format!("{rule} may log in to target '{target}'");
            asker.ask(Method::POST, &path(&target, "/access"), Some(json!({ "rule": rule })), words)
        }
        TargetVerb::Deny { target, rule } => {
            let words = |_: &Value| format!("target '{target}' has no rule {rule} any more");
            asker.ask(Method::DELETE, &path(&target, &format!("/access?rule={}", segment(&rule))), None, words)
        }
        TargetVerb::Auth(auth) => {
            let what = format!("target '{}'", auth.target);
            entrance::set_demand(&asker, &path(&auth.target, "/auth"), &what, &auth.demand)
        }
        TargetVerb::Redirect(redirect) => entrance::redirect(&asker, &redirect),
        TargetVerb::Set(set) => settings::of_target(&asker, set),
        TargetVerb::Portgroup { verb } => ports::portgroup(&asker, verb),
    }
}

/// `lunaring portal`
pub fn portal(arguments: PortalArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    match arguments.verb {
        PortalVerb::List => asker.get("/v1/portals", show::portals),
        PortalVerb::Add { address, group, advertise } => {
            let mut body = json!({ "address": address });
            if let Some(group) = group {
                body["group"] = json!(group);
            }
            let mut told = String::new();
            if let Some(advertise) = advertise {
                told = format!(", advertised as {advertise}");
                body["advertise"] = json!(advertise);
            }
            asker.ask(Method::POST, "/v1/portals", Some(body), |_| format!("listening on {address}{told}"))
        }
        PortalVerb::Remove { address } => {
            let path = format!("/v1/portals/{}", segment(&address));
            asker.ask(Method::DELETE, &path, None, |_| format!("not listening on {address} any more"))
        }
    }
}

/// `lunaring session`
pub fn session(arguments: SessionArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    match arguments.verb {
        SessionVerb::List => asker.get("/v1/sessions", show::sessions),
        SessionVerb::Drop { id } => {
            asker.ask(Method::DELETE, &format!("/v1/sessions/{id}"), None, |_| format!("session {id} dropped"))
        }
    }
}

/// `lunaring stats`
pub fn stats(arguments: StatsArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    match arguments.disk {
        Some(disk) => asker.get(&format!("/v1/stats?disk={}", segment(&disk)), show::stats),
        None => asker.get("/v1/stats", show::stats),
    }
}
