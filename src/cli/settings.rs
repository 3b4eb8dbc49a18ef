//! The client commands on settings.

use hyper::Method;
use serde_json::{Map, Value};

use super::arguments::{DiskSettings, SettingsArguments, SettingsVerb, TargetSettings, Wanted};
use super::client::segment;
use super::commands::{Asker, Printed};
use crate::units::HumanBytes;

/// `lunaring settings`
pub(super) fn settings(arguments: SettingsArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    match arguments.verb {
        SettingsVerb::Show => asker.get("/v1/settings", words),
        SettingsVerb::Set(set) => {
            let body = [
                ("io_deadline_seconds", set.io_deadline),
                ("thin_threshold_bytes", set.thin_threshold),
                ("error_recovery_level", set.error_recovery_level),
                ("max_connections", set.max_connections),
            ];
            change(&asker, "/v1/settings", body)
        }
    }
}

/// `lunaring target set`
pub(super) fn of_target(asker: &Asker, set: TargetSettings) -> Printed {
    let path = format!("/v1/targets/{}/settings", segment(&set.target));
    let body = [("error_recovery_level", set.error_recovery_level), ("max_connections", set.max_connections)];
    change(asker, &path, body)
}

/// `lunaring disk set`
pub(super) fn of_disk(asker: &Asker, set: DiskSettings) -> Printed {
    let path = format!("/v1/disks/{}/settings", segment(&set.disk));
    change(asker, &path, [("thin_threshold_bytes", set.thin_threshold)])
}

/// Change what is given; without anything, show what there is.
fn change(asker: &Asker, path: &str, fields: impl IntoIterator<Item = (&'static str, Option<Wanted>)>) -> Printed {
    let fields = fields.into_iter().filter_map(|(field, wanted)| Some((field.to_owned(), wanted?.0)));
    let body: Map<String, Value> = fields.collect();
    if body.is_empty() {
        return asker.get(path, words);
    }
    asker.ask(Method::PATCH, path, Some(Value::Object(body)), words)
}

fn words(settings: &Value) -> String {
    let line = |(field, words): (&str, &str)| {
        let value = settings[field].as_u64()?;
        let value = match field {
            "thin_threshold_bytes" if value > 0 => HumanBytes(value).to_string(),
            "io_deadline_seconds" => format!("{value} s"),
            _ => value.to_string(),
        };
        Some(format!("{words:<22}{value}"))
    };
    let all = [
        ("io_deadline_seconds", "I/O deadline"),
        ("thin_threshold_bytes", "thin threshold"),
        ("error_recovery_level", "error recovery level"),
        ("max_connections", "connections at most"),
    ];
    let lines: Vec<String> = all.into_iter().filter_map(line).collect();
    if lines.is_empty() { "nothing of its own is set: the server's settings hold".to_owned() } else { lines.join("\n") }
}
