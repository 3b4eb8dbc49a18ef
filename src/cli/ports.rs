//! The client commands on target ports and reservations.

use hyper::Method;
use serde_json::{Map, Value, json};

use super::arguments::{PortgroupVerb, ReservationArguments, ReservationVerb};
use super::client::{ClientError, segment};
use super::commands::{Asker, Printed, word};
use super::show;

/// `lunaring reservation`
pub(super) fn reservation(arguments: ReservationArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    let path = |disk: &str| format!("/v1/disks/{}/reservations", segment(disk));
    match arguments.verb {
        ReservationVerb::List { disk } => asker.get(&path(&disk), show::reservations),
        ReservationVerb::Clear { disk } => asker.ask(Method::DELETE, &path(&disk), None, |_| {
            format!("disk '{disk}' has no registrations and no reservation any more")
        }),
    }
}

/// `lunaring target portgroup`
pub(super) fn portgroup(asker: &Asker, verb: PortgroupVerb) -> Printed {
    let all = |target: &str| format!("/v1/targets/{}/portgroups", segment(target));
    let one = |target: &str, group: u16| format!("{}/{group}", all(target));
    match verb {
        PortgroupVerb::List { target } => asker.get(&all(&target), show::portgroups),
        PortgroupVerb::All { target } => asker.ask(Method::DELETE, &all(&target), None, show::portgroups),
        PortgroupVerb::Add { target, group } => asker.ask(Method::PUT, &one(&target, group), None, show::portgroups),
        PortgroupVerb::Remove { target, group } => {
            asker.ask(Method::DELETE, &one(&target, group), None, show::portgroups)
        }
        PortgroupVerb::Set { target, group, state, preferred } => {
            let mut body = Map::new();
            if let Some(state) = state {
                body.insert("state".to_owned(), word(&state));
            }
            if let Some(preferred) = preferred {
                body.insert("preferred".to_owned(), json!(preferred));
            }
            if body.is_empty() {
                return Err(ClientError::new("say what to change, with --state or --preferred".to_owned()));
            }
            asker.ask(Method::PATCH, &one(&target, group), Some(Value::Object(body)), show::portgroups)
        }
    }
}
