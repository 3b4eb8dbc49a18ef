//! The OpenAPI document of the control socket.

mod entrance;
mod images;
mod ports;
mod settings;

use serde_json::{Value, json};

/// The document at `/v1/openapi.json`.
pub fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Lunaring control API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Controls a running Lunaring server over its unix control socket. Changes are durable when \
                            they are answered. A refusal changes nothing and says in one line what is wrong and what \
                            to do."
        },
        "paths": paths(),
        "components": { "schemas": schemas() }
    })
}

fn paths() -> Value {
    let mut paths = serde_json::Map::new();
    let parts = [
        server_paths(),
        disk_paths(),
        images::image_paths(),
        images::snapshot_and_job_paths(),
        target_paths(),
        ports::paths(),
        entrance::paths(),
        settings::paths(),
        portal_and_session_paths(),
    ];
    for part in parts {
        if let Value::Object(part) = part {
            paths.extend(part);
        }
    }
    Value::Object(paths)
}

fn server_paths() -> Value {
    json!({
        "/metrics": { "get": {
            "summary": "Everything that is counted, as Prometheus text",
            "responses": { "200": {
                "description": "Metrics",
                "content": { "text/plain": { "schema": { "type": "string" } } },
            } },
        } },
        "/v1/openapi.json": { "get": operation("This document", &[], None, ("200", None)) },
        "/v1/version": { "get": operation("What this server is", &[], None, ("200", Some("Version"))) },
        "/v1/config": {
            "get": operation(
                "The whole configuration, secrets included, as config.json holds it",
                &[], None, ("200", Some("Config")),
            ),
            "put": operation(
                "Put a whole configuration into force. Disks that are served stay as they are; files of disks that are \
                 not in it any more are kept",
                &[], Some("Config"), ("200", Some("Replaced")),
            ),
        },
        "/v1/stats": { "get": operation(
            "Counters and latencies since the server started",
            &[in_query("disk", "Only this disk", "string", false)], None, ("200", Some("Stats"))
        ) },
    })
}

fn disk_paths() -> Value {
    let disk = || in_path("disk", "The disk's name", "string");
    let keep = || in_query("keep_file", "Leave the image file", "boolean", false);
    json!({
        "/v1/disks": {
            "get": operation("All disks", &[], None, ("200", Some("Disks"))),
            "post": operation(
                "Create a disk, or serve an image that exists", &[], Some("NewDisk"), ("201", Some("Disk")),
            ),
        },
        "/v1/disks/{disk}": {
            "get": operation("One disk", &[disk()], None, ("200", Some("Disk"))),
            "delete": operation(
                "Delete a disk that no target maps", &[disk(), keep()], None, ("200", Some("DeletedDisk")),
            ),
        },
    })
}

fn target_paths() -> Value {
    let target = || in_path("target", "The target's name or iSCSI name", "string");
    let lun = || in_path("lun", "The logical unit number", "integer");
    let rule = || in_query("rule", "any, iqn:NAME, iqn:BEGINNING*, ip:CIDR or portal:ADDR:PORT", "string", true);
    let only_for = || in_query("for", "The unit of this access rule, and not everybody's", "string", false);
    json!({
        "/v1/targets": {
            "get": operation("All targets", &[], None, ("200", Some("Targets"))),
            "post": operation("Create a target", &[], Some("NewTarget"), ("201", Some("Target"))),
        },
        "/v1/targets/{target}": {
            "get": operation("One target", &[target()], None, ("200", Some("Target"))),
            "delete": operation("Delete a target and drop its sessions", &[target()], None, ("204", None)),
        },
        "/v1/targets/{target}/luns": {
            "post": operation(
                "Put a disk behind a logical unit number", &[target()], Some("NewLun"), ("201", Some("TargetLun")),
            ),
        },
        "/v1/targets/{target}/luns/{lun}": {
            "delete": operation(
                "Take a logical unit away", &[target(), lun(), only_for()], None, ("204", None),
            ),
        },
        "/v1/targets/{target}/access": {
            "post": operation("Let somebody log in", &[target()], Some("AccessChange"), ("200", Some("Target"))),
            "delete": operation("Take an access rule back", &[target(), rule()], None, ("200", Some("Target"))),
        },
        "/v1/targets/{target}/auth": {
            "put": operation("Demand CHAP", &[target()], Some("NewAuth"), ("200", Some("Target"))),
            "delete": operation("Demand no authentication", &[target()], None, ("200", Some("Target"))),
        },
    })
}

fn portal_and_session_paths() -> Value {
    let portal = || in_path("portal", "ADDRESS:PORT", "string");
    let session = || in_path("session", "The session's id", "integer");
    json!({
        "/v1/portals": {
            "get": operation("All portals", &[], None, ("200", Some("Portals"))),
            "post": operation("Listen on another portal", &[], Some("NewPortal"), ("201", Some("Portals"))),
        },
        "/v1/portals/{portal}": {
            "delete": operation("Stop listening; its sessions stay", &[portal()], None, ("204", None)),
        },
        "/v1/sessions": { "get": operation("All sessions", &[], None, ("200", Some("Sessions"))) },
        "/v1/sessions/{session}": { "delete": operation("Drop a session", &[session()], None, ("204", None)) },
    })
}

fn operation(summary: &str, parameters: &[Value], body: Option<&str>, (status, answer): (&str, Option<&str>)) -> Value {
    let reference = |schema: &str| json!({ "$ref": format!("#/components/schemas/{schema}") });
    let content = |schema: &str| json!({ "application/json": { "schema": reference(schema) } });
    let mut good = json!({ "description": "Done" });
    if let Some(schema) = answer {
        good["content"] = content(schema);
    }
    let refused = json!({ "description": "Refused; nothing was changed", "content": content("Error") });
    let mut operation = json!({ "summary": summary, "responses": { "default": refused } });
    operation["responses"][status] = good;
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters.to_vec());
    }
    if let Some(schema) = body {
        operation["requestBody"] = json!({ "required": true, "content": content(schema) });
    }
    operation
}

fn in_path(name: &str, description: &str, kind: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": { "type": kind } })
}

fn in_query(name: &str, description: &str, kind: &str, required: bool) -> Value {
    json!({ "name": name, "in": "query", "required": required, "description": description, "schema": { "type": kind } })
}

/// An object's schema from `name type` pairs; a `?` after the name: may be absent or null; `[]` after the type: a list;
/// a capital letter: another schema; `a|b`: one of these words.
fn object(fields: &str) -> Value {
    let mut properties = serde_json::Map::new();
    let mut required = Vec::new();
    for (name, kind) in fields.split(',').filter_map(|field| field.trim().split_once(' ')) {
        let item = kind.trim_end_matches("[]");
        let mut schema = match item {
            "string" | "integer" | "number" | "boolean" => json!({ "type": item }),
            words if words.contains('|') => json!({ "enum": words.split('|').collect::<Vec<_>>() }),
            other => json!({ "$ref": format!("#/components/schemas/{other}") }),
        };
        if item != kind {
            schema = json!({ "type": "array", "items": schema });
        }
        match name.strip_suffix('?') {
            Some(name) => drop(properties.insert(name.to_owned(), json!({ "anyOf": [schema, { "type": "null" }] }))),
            None => {
                required.push(name);
                properties.insert(name.to_owned(), schema);
            }
        }
    }
    json!({ "type": "object", "properties": properties, "required": required })
}

fn schemas() -> Value {
    let mut schemas = resource_schemas();
    for more in [images::schemas(), entrance::schemas(), ports::schemas(), settings::schemas()] {
        if let (Value::Object(all), Value::Object(more)) = (&mut schemas, more) {
            all.extend(more);
        }
    }
    schemas
}

fn resource_schemas() -> Value {
    let shard = crate::observe::ShardSummary::default();
    let shard: Vec<String> = shard.rows().map(|(name, ..)| format!("{name} integer")).collect();
    json!({
        "Error": object("error string"),
        "Version": object(
            "version string, pid integer, state string, uptime_seconds integer, shards integer, cores integer[], \
             io_uring string",
        ),
        "Disk": object(
            "name string, format vhdx|vhd|raw|memory|null, kind? dynamic|fixed|differencing, size_bytes integer, \
             allocated_bytes integer, sector_size_bytes integer, block_size_bytes? integer, \
             atomic_write_bytes integer, file? string, parent? string, chain? Layer[], space? Space, \
             children string[], snapshots integer, job? integer, uuid string, cache direct|buffered, \
             reservations_file? string, read_only boolean, added boolean, state online|offline|failed, \
             reason? string, notes string[], mapped DiskMapping[]",
        ),
        "DiskMapping": object("target string, lun integer"),
        "Disks": object("disks Disk[]"),
        "NewDisk": object(
            "name string, existing? boolean, size_bytes? integer, format? vhdx|vhd|raw|memory|null, \
             kind? dynamic|fixed|differencing, block_size_bytes? integer, parent? string, \
             sector_size_bytes? integer, file? string, cache? direct|buffered, read_only? boolean",
        ),
        "Config": { "type": "object", "description": "The content of config.json" },
        "Replaced": object(
            "disks_added string[], disks_removed string[], targets_added string[], targets_removed string[], \
             targets_changed string[], portals_added string[], portals_removed string[], warnings string[]"
        ),
        "DeletedDisk": object("name string, kept_file? string, warning? string"),
        "Target": object(
            "name string, iqn string, luns TargetLun[], allow string[], auth? TargetAuth, redirects Redirect[], \
             portal_groups integer[]",
        ),
        "TargetLun": object("lun integer, disk string, read_only boolean, for? string"),
        "TargetAuth": object("chap_user string, mutual_user? string, algorithms string[]"),
        "Targets": object("targets Target[]"),
        "NewTarget": object("name string, iqn? string"),
        "NewLun": object("disk string, lun? integer, read_only? boolean, for? string"),
        "AccessChange": object("rule string"),
        "Portal": object(
            "address string, group integer, advertise? string, listening boolean, reason? string, temporary boolean",
        ),
        "Portals": object("portals Portal[]"),
        "NewPortal": object("address string, group? integer, advertise? string"),
        "Session": object(
            "id integer, tsih integer, initiator string, target? string, peer string, portal string, shard integer, \
             header_digest boolean, data_digest boolean, age_seconds integer, commands integer, bytes_read integer, \
             bytes_written integer, errors integer, connections SessionConnection[]",
        ),
        "SessionConnection": object("cid integer, peer string, portal string"),
        "Sessions": object("sessions Session[]"),
        "OperationStats": object(
            "operations integer, bytes integer, errors integer, latency_mean_us number, latency_p50_us number, \
             latency_p99_us number, latency_p999_us number, latency_max_us number",
        ),
        "DiskStats": object(
            "disk string, read OperationStats, write OperationStats, flush OperationStats, other OperationStats",
        ),
        "ShardStats": object(&shard.join(", ")),
        "Stats": object("disks DiskStats[], shards? ShardStats[]"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::control::routes::ROUTES;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document = document();
        let mut described = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            let mut methods: Vec<&str> = operations.as_object().unwrap().keys().map(String::as_str).collect();
            methods.sort_unstable();
            described.push((path.as_str(), methods));
        }
        let mut routed: Vec<(&str, Vec<&str>)> = ROUTES
            .iter()
            .map(|(path, methods)| {
                let mut methods = methods.to_vec();
                methods.sort_unstable();
                (*path, methods)
            })
            .collect();
        described.sort_unstable();
        routed.sort_unstable();
        assert_eq!(described, routed);
    }

    #[test]
    fn every_schema_that_is_referred_to_exists() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "no schema {name}");
        }
    }

    #[test]
    fn path_parameters_are_the_ones_in_the_path() {
        for (path, operations) in document()["paths"].as_object().unwrap() {
            for operation in operations.as_object().unwrap().values() {
                let none = Vec::new();
                let parameters = operation["parameters"].as_array().unwrap_or(&none);
                for parameter in parameters.iter().filter(|parameter| parameter["in"] == "path") {
                    assert!(path.contains(&format!("{{{}}}", parameter["name"].as_str().unwrap())), "{path}");
                }
                assert_eq!(
                    path.matches('{').count(),
                    parameters.iter().filter(|p| p["in"] == "path").count(),
                    "{path}"
                );
            }
        }
    }
}
