//! Target ports and reservations as people read them.

use serde_json::Value;

use super::super::table::Table;
use super::{list, text, yes};

/// `target portgroup list`
pub fn portgroups(answer: &Value) -> String {
    let limited: Vec<String> = list(answer, "limited_to").iter().map(Value::to_string).collect();
    let limited = match limited.is_empty() {
        true => "reached through every portal group".to_owned(),
        false => format!("limited to portal group {}", limited.join(", ")),
    };
    let mut table = Table::new(&[">GROUP", ">PORT", "STATE", "PREFERRED", "REACHED"]);
    for port in list(answer, "ports") {
        let word = |field| if yes(&port, field) { "yes" } else { "no" }.to_owned();
        table.row(vec![
            text(&port, "group"),
            text(&port, "number"),
            text(&port, "state"),
            word("preferred"),
            word("reached"),
        ]);
    }
    format!("{limited}\n\n{}", table.show("no ports"))
}

/// `reservation list`
pub fn reservations(answer: &Value) -> String {
    let mut said = match answer["type"].as_str() {
        Some(kind) => format!("reserved: {kind}"),
        None => "not reserved".to_owned(),
    };
    if yes(answer, "persistent") {
        said.push_str(", outlasts a restart");
    }
    let mut table = Table::new(&["INITIATOR", "ISID", "TARGET", ">GROUP", ">PORT", "KEY", "HOLDER"]);
    let mut row = |registration: &Value| {
        table.row(vec![
            text(registration, "initiator"),
            text(registration, "isid"),
            text(registration, "target"),
            text(registration, "group"),
            text(registration, "target_port"),
            text(registration, "key"),
            if yes(registration, "holder") { "yes" } else { "" }.to_owned(),
        ]);
    };
    list(answer, "registrations").iter().for_each(&mut row);
    if answer["reserved_by"].is_object() {
        "reserved by a RESERVE command".clone_into(&mut said);
        row(&answer["reserved_by"]);
    }
    format!("{said}\n\n{}", table.show("nobody is registered"))
}
