//! Settings in the OpenAPI document.

use serde_json::{Value, json};

use super::{in_path, object, operation};

pub(super) fn paths() -> Value {
    let target = || in_path("target", "The target's name or iSCSI name", "string");
    let disk = || in_path("disk", "The disk's name", "string");
    let answer = ("200", Some("Settings"));
    let change = Some("SettingsChange");
    json!({
        "/v1/settings": {
            "get": operation("The server's settings, as they hold", &[], None, answer),
            "patch": operation("Change the server's settings; null: back to what holds by itself", &[], change, answer),
        },
        "/v1/targets/{target}/settings": {
            "get": operation("What is set on the target; the server's holds for all else", &[target()], None, answer),
            "patch": operation("Set error_recovery_level or max_connections there", &[target()], change, answer),
        },
        "/v1/disks/{disk}/settings": {
            "get": operation("What is set on the disk; the server's holds for all else", &[disk()], None, answer),
            "patch": operation("Set thin_threshold_bytes of the disk", &[disk()], change, answer),
        },
    })
}

pub(super) fn schemas() -> Value {
    let fields = "io_deadline_seconds? integer, thin_threshold_bytes? integer, error_recovery_level? integer, \
                  max_connections? integer";
    json!({ "Settings": object(fields), "SettingsChange": object(fields) })
}
