//! Images, snapshots and jobs in the OpenAPI document.

use serde_json::{Value, json};

use super::{in_path, object, operation};

fn disk() -> Value {
    in_path("disk", "The disk's name", "string")
}

pub(super) fn image_paths() -> Value {
    let item = || in_path("item", "The item's GUID", "string");
    let job = ("202", Some("Job"));
    json!({
        "/v1/disks/{disk}/resize": { "post": operation(
            "Change a disk's size while it is served", &[disk()], Some("Resize"), ("200", Some("Disk")),
        ) },
        "/v1/disks/{disk}/check": { "post": operation(
            "Check a disk's image; its commands wait meanwhile", &[disk()], Some("Check"), ("200", Some("CheckReport")),
        ) },
        "/v1/disks/{disk}/convert": { "post": operation(
            "Copy a disk into a new image, as it is now", &[disk()], Some("Convert"), job,
        ) },
        "/v1/disks/{disk}/merge": { "post": operation(
            "Merge a differencing disk into its parent, whose file it goes on with", &[disk()], None, job,
        ) },
        "/v1/disks/{disk}/compact": { "post": operation(
            "Give space that holds nothing back to the file system", &[disk()], None, job,
        ) },
        "/v1/disks/{disk}/trace": { "post": operation(
            "Record what initiators ask a disk for; answered when the time is over", &[disk()], Some("RecordTrace"),
            ("200", Some("RecordedTrace")),
        ) },
        "/v1/disks/{disk}/metadata": { "get": operation(
            "The user metadata of a VHDX", &[disk()], None, ("200", Some("Metadata")),
        ) },
        "/v1/disks/{disk}/metadata/{item}": {
            "get": operation("A user metadata item", &[disk(), item()], None, ("200", Some("MetadataItem"))),
            "put": operation(
                "Set a user metadata item", &[disk(), item()], Some("NewMetadataItem"), ("200", Some("MetadataItem")),
            ),
            "delete": operation("Delete a user metadata item", &[disk(), item()], None, ("204", None)),
        },
    })
}

pub(super) fn snapshot_and_job_paths() -> Value {
    let snapshot = || in_path("snapshot", "The snapshot's name", "string");
    let job = || in_path("job", "The job's number", "integer");
    json!({
        "/v1/disks/{disk}/snapshots": {
            "get": operation("A disk's snapshots, oldest first", &[disk()], None, ("200", Some("Snapshots"))),
            "post": operation(
                "Take a snapshot", &[disk()], Some("NewSnapshot"), ("201", Some("TakenSnapshots")),
            ),
        },
        "/v1/disks/{disk}/snapshots/{snapshot}": { "delete": operation(
            "Delete a snapshot; its file is merged in the background", &[disk(), snapshot()], None,
            ("200", Some("DeletedSnapshot")),
        ) },
        "/v1/disks/{disk}/snapshots/{snapshot}/restore": { "post": operation(
            "Take a disk back to a snapshot", &[disk(), snapshot()], None, ("200", Some("Disk")),
        ) },
        "/v1/disks/{disk}/snapshots/{snapshot}/export": { "post": operation(
            "Make a disk that shows a snapshot", &[disk(), snapshot()], Some("ExportSnapshot"), ("201", Some("Disk")),
        ) },
        "/v1/snapshots": { "post": operation(
            "Take snapshots of several disks at one instant", &[], Some("NewSnapshotGroup"),
            ("201", Some("TakenSnapshots")),
        ) },
        "/v1/jobs": { "get": operation("All jobs", &[], None, ("200", Some("Jobs"))) },
        "/v1/jobs/{job}": {
            "get": operation("One job", &[job()], None, ("200", Some("Job"))),
            "delete": operation("Ask a job to stop", &[job()], None, ("200", Some("Job"))),
        },
    })
}

pub(super) fn schemas() -> Value {
    json!({
        "Layer": object(
            "file string, format vhdx|vhd|raw, size_bytes integer, allocated_bytes integer, file_bytes integer, \
             identifier? string, snapshot? string, disk? string",
        ),
        "Space": object(
            "file_bytes integer, chain_allocated_bytes integer, block_bytes? integer, free_inside_bytes? integer, \
             given_up_bytes? integer, files_closing? integer",
        ),
        "Resize": object("size_bytes integer, allow_shrink? boolean"),
        "Check": object("repair? boolean"),
        "CheckReport": object(
            "file string, format? vhdx|vhd|raw, kind? dynamic|fixed|differencing, creator? string, \
             size_bytes? integer, sector_size_bytes? integer, physical_sector_size_bytes? integer, \
             block_size_bytes? integer, disk_id? string, identifier? string, log? string, blocks BlockCount[], \
             file_bytes integer, allocated_bytes integer, unreferenced_bytes integer, chain ChainLink[], \
             findings Finding[], repaired string[], notes string[]",
        ),
        "BlockCount": object("state string, count integer"),
        "ChainLink": object("file string, format? vhdx|vhd|raw, identifier? string, problem? string"),
        "Finding": object("severity error|warning|note, offset? integer, rule string, what string"),
        "Convert": object(
            "to string, format? vhdx|vhd|raw, kind? dynamic|fixed, block_size_bytes? integer",
        ),
        "RecordTrace": object("seconds integer, to string"),
        "RecordedTrace": object("file string, commands integer, missing integer, file_bytes integer"),
        "MetadataItem": object("item string, len_bytes integer, value_hex? string"),
        "NewMetadataItem": object("value_hex string"),
        "Metadata": object("items MetadataItem[]"),
        "Snapshot": object(
            "name string, disk string, created integer, parent? string, current boolean, group? string, \
             size_bytes integer, format vhdx|vhd|raw, file string, allocated_bytes integer, exports string[], \
             deleting boolean, kept_for? string[]",
        ),
        "Snapshots": object("snapshots Snapshot[]"),
        "NewSnapshot": object("name? string"),
        "NewSnapshotGroup": object("disks string[], name? string"),
        "TakenSnapshots": object("snapshots Snapshot[], pause_ms number"),
        "ExportSnapshot": object("name string, writable? boolean"),
        "DeletedSnapshot": object("name string, job? Job"),
        "Job": object(
            "id integer, kind convert|merge|snapshot_delete|compact, disk string, detail? string, \
             state running|done|failed|cancelled, bytes_done integer, bytes_total integer, error? string, \
             started integer, finished? integer",
        ),
        "Jobs": object("jobs Job[]"),
    })
}
