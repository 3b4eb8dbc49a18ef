//! Target ports and reservations in the OpenAPI document.

use serde_json::{Value, json};

use super::{in_path, object, operation};

pub(super) fn paths() -> Value {
    let target = || in_path("target", "The target's name or iSCSI name", "string");
    let group = || in_path("group", "The portal group tag", "integer");
    let ports = ("200", Some("TargetPorts"));
    let disk = || in_path("disk", "The disk's name", "string");
    json!({
        "/v1/disks/{disk}/reservations": {
            "get": operation(
                "Who is registered with the disk, and who reserves it", &[disk()], None, ("200", Some("Reservations")),
            ),
            "delete": operation("Take all registrations and reservations off the disk", &[disk()], None, ("204", None)),
        },
        "/v1/targets/{target}/portgroups": {
            "get": operation("The target's ports", &[target()], None, ports),
            "delete": operation("Let every portal group reach the target", &[target()], None, ports),
        },
        "/v1/targets/{target}/portgroups/{group}": {
            "put": operation(
                "Limit the target to portal groups: this one, and those that it was limited to before",
                &[target(), group()], None, ports,
            ),
            "patch": operation(
                "Change the asymmetric access state of the target's port in this group", &[target(), group()],
                Some("PortChange"), ports,
            ),
            "delete": operation(
                "Take a group from those that the target is limited to, and drop its sessions there",
                &[target(), group()], None, ports,
            ),
        },
    })
}

const STATES: &str = "optimized|non-optimized|standby|unavailable|offline|transitioning";

pub(super) fn schemas() -> Value {
    json!({
        "TargetPort": object(
            &format!("group integer, number integer, state {STATES}, preferred boolean, reached boolean"),
        ),
        "Reservations": object(
            "disk string, type? string, generation integer, persistent boolean, registrations Registration[], \
             reserved_by? Registration",
        ),
        "Registration": object(
            "initiator string, isid string, target_port integer, target? string, group? integer, key? string, \
             holder boolean",
        ),
        "TargetPorts": object("limited_to integer[], ports TargetPort[]"),
        "PortChange": object(&format!("state? {STATES}, preferred? boolean")),
    })
}
