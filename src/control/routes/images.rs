//! Routes of images, snapshots and jobs.

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use uuid::Uuid;

use super::{Answer, InBody, InPath, Server, body, path};
use crate::control::api;
use crate::control::controller::View;
use crate::control::error::Refused;
use crate::jobs::check::Report;
use crate::jobs::{JobId, JobInfo, JobKind};
use crate::limits::USER_METADATA_BYTES_MAX;

/// A metadata item's value as digits, with what is around it.
const METADATA_BODY_BYTES_MAX: usize = 2 * USER_METADATA_BYTES_MAX + 1024;

pub(super) fn routes() -> Router<Server> {
    let item = get(metadata_get).put(metadata_set).delete(metadata_delete);
    Router::new()
        .route("/v1/disks/{disk}/resize", post(resize))
        .route("/v1/disks/{disk}/check", post(check))
        .route("/v1/disks/{disk}/convert", post(convert))
        .route("/v1/disks/{disk}/merge", post(merge))
        .route("/v1/disks/{disk}/compact", post(compact))
        .route("/v1/disks/{disk}/trace", post(trace))
        .route("/v1/disks/{disk}/metadata", get(metadata_list))
        .route("/v1/disks/{disk}/metadata/{item}", item.layer(DefaultBodyLimit::max(METADATA_BODY_BYTES_MAX)))
        .route("/v1/disks/{disk}/snapshots", get(snapshots).post(snapshot_new))
        .route("/v1/disks/{disk}/snapshots/{snapshot}", delete(snapshot_delete))
        .route("/v1/disks/{disk}/snapshots/{snapshot}/restore", post(snapshot_restore))
        .route("/v1/disks/{disk}/snapshots/{snapshot}/export", post(snapshot_export))
        .route("/v1/snapshots", post(snapshot_group))
        .route("/v1/jobs", get(async |State(server): State<Server>| Json(server.handle.api_jobs())))
        .route("/v1/jobs/{job}", get(job).delete(job_cancel))
}

async fn resize(
    State(server): State<Server>,
    disk: InPath<String>,
    wanted: InBody<api::Resize>,
) -> Answer<Json<api::Disk>> {
    let (disk, wanted) = (path(disk)?, body(wanted)?);
    let name = disk.clone();
    server.handle.change(move |c| Box::pin(async move { c.disk_resize(&name, wanted).await })).await?;
    server.handle.look(move |view| view.api_disk_mapped(&disk)).await.map(Json)
}

async fn check(State(server): State<Server>, disk: InPath<String>, wanted: InBody<api::Check>) -> Answer<Json<Report>> {
    let (disk, wanted) = (path(disk)?, body(wanted)?);
    let report = server.handle.change(move |c| Box::pin(async move { c.disk_check(&disk, wanted.repair).await }));
    report.await.map(Json)
}

type Started = (StatusCode, Json<JobInfo>);

fn started(job: JobInfo) -> Started {
    (StatusCode::ACCEPTED, Json(job))
}

async fn convert(State(server): State<Server>, disk: InPath<String>, wanted: InBody<api::Convert>) -> Answer<Started> {
    server.handle.start_convert(path(disk)?, body(wanted)?).await.map(started)
}

async fn merge(State(server): State<Server>, disk: InPath<String>) -> Answer<Started> {
    let disk = path(disk)?;
    let name = disk.clone();
    let told = server.handle.change(move |c| Box::pin(async move { c.merge_begin(&name).await })).await?;
    server.handle.start_merge(JobKind::Merge, disk, told).await.map(started)
}

async fn compact(State(server): State<Server>, disk: InPath<String>) -> Answer<Started> {
    server.handle.start_compact(path(disk)?).await.map(started)
}

async fn trace(
    State(server): State<Server>,
    disk: InPath<String>,
    wanted: InBody<api::RecordTrace>,
) -> Answer<Json<api::RecordedTrace>> {
    let (disk, wanted) = (path(disk)?, body(wanted)?);
    server.handle.record(&disk, wanted).await.map(Json)
}

async fn metadata_list(State(server): State<Server>, disk: InPath<String>) -> Answer<Json<api::Metadata>> {
    let disk = path(disk)?;
    let items = server.handle.change(move |c| Box::pin(async move { c.metadata_list(&disk).await }));
    items.await.map(Json)
}

async fn metadata_get(State(server): State<Server>, named: InPath<(String, Uuid)>) -> Answer<Json<api::MetadataItem>> {
    let (disk, item) = path(named)?;
    let value = server.handle.change(move |c| Box::pin(async move { c.metadata_get(&disk, item).await })).await?;
    let len_bytes = u32::try_from(value.len()).unwrap_or(u32::MAX);
    Ok(Json(api::MetadataItem { item, len_bytes, value_hex: Some(to_hex(&value)) }))
}

async fn metadata_set(
    State(server): State<Server>,
    named: InPath<(String, Uuid)>,
    new: InBody<api::NewMetadataItem>,
) -> Answer<Json<api::MetadataItem>> {
    let ((disk, item), new) = (path(named)?, body(new)?);
    let value = from_hex(&new.value_hex)
        .ok_or_else(|| Refused::invalid("'value_hex' must be pairs of hexadecimal digits, one for each byte"))?;
    let len_bytes = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let set = server.handle.change(move |c| Box::pin(async move { c.metadata_set(&disk, item, Some(value)).await }));
    set.await?;
    Ok(Json(api::MetadataItem { item, len_bytes, value_hex: None }))
}

async fn metadata_delete(State(server): State<Server>, named: InPath<(String, Uuid)>) -> Answer<StatusCode> {
    let (disk, item) = path(named)?;
    let gone = server.handle.change(move |c| Box::pin(async move { c.metadata_set(&disk, item, None).await }));
    gone.await.map(|()| StatusCode::NO_CONTENT)
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    pairs.remainder().is_empty().then(|| pairs.map(|pair| (pair[0] << 4) | pair[1]).collect())
}

async fn snapshots(State(server): State<Server>, disk: InPath<String>) -> Answer<Json<api::Snapshots>> {
    let disk = path(disk)?;
    server.handle.look(move |view| view.api_snapshots(&disk)).await.map(Json)
}

async fn snapshot_new(
    State(server): State<Server>,
    disk: InPath<String>,
    new: InBody<api::NewSnapshot>,
) -> Answer<(StatusCode, Json<api::TakenSnapshots>)> {
    let (disk, new) = (path(disk)?, body(new)?);
    take(&server, vec![disk], new.name).await
}

async fn snapshot_group(
    State(server): State<Server>,
    new: InBody<api::NewSnapshotGroup>,
) -> Answer<(StatusCode, Json<api::TakenSnapshots>)> {
    let new = body(new)?;
    take(&server, new.disks, new.name).await
}

async fn take(
    server: &Server,
    disks: Vec<String>,
    name: Option<String>,
) -> Answer<(StatusCode, Json<api::TakenSnapshots>)> {
    let taken = server.handle.change(move |c| Box::pin(async move { c.snapshot_take(disks, name).await })).await?;
    let of = taken.snapshots;
    let look = move |view: &View| of.iter().map(|(disk, snapshot)| view.api_snapshot(disk, snapshot)).collect();
    let snapshots = server.handle.look(look).await?;
    Ok((StatusCode::CREATED, Json(api::TakenSnapshots { snapshots, pause_ms: taken.pause_ms })))
}

async fn snapshot_delete(
    State(server): State<Server>,
    named: InPath<(String, String)>,
) -> Answer<Json<api::DeletedSnapshot>> {
    let (disk, snapshot) = path(named)?;
    let (on, name) = (disk.clone(), snapshot.clone());
    let deleted = server.handle.change(move |c| Box::pin(async move { c.snapshot_delete(&on, &name).await }));
    let job = match deleted.await? {
        true => Some(server.handle.start_merge(JobKind::SnapshotDelete, disk, Some(snapshot.clone())).await?),
        false => None,
    };
    Ok(Json(api::DeletedSnapshot { name: snapshot, job }))
}

async fn snapshot_restore(State(server): State<Server>, named: InPath<(String, String)>) -> Answer<Json<api::Disk>> {
    let (disk, snapshot) = path(named)?;
    let on = disk.clone();
    let restored = server.handle.change(move |c| Box::pin(async move { c.snapshot_restore(&on, &snapshot).await }));
    let note = restored.await?;
    let mut disk = server.handle.look(move |view| view.api_disk_mapped(&disk)).await?;
    disk.notes.extend(note);
    Ok(Json(disk))
}

async fn snapshot_export(
    State(server): State<Server>,
    named: InPath<(String, String)>,
    export: InBody<api::ExportSnapshot>,
) -> Answer<(StatusCode, Json<api::Disk>)> {
    let ((disk, snapshot), export) = (path(named)?, body(export)?);
    let new = export.name.clone();
    let exported =
        server.handle.change(move |c| Box::pin(async move { c.snapshot_export(&disk, &snapshot, export).await }));
    exported.await?;
    let disk = server.handle.look(move |view| view.api_disk_mapped(&new)).await?;
    Ok((StatusCode::CREATED, Json(disk)))
}

async fn job(State(server): State<Server>, id: InPath<JobId>) -> Answer<Json<JobInfo>> {
    server.handle.api_job(path(id)?).map(Json)
}

async fn job_cancel(State(server): State<Server>, id: InPath<JobId>) -> Answer<Json<JobInfo>> {
    server.handle.job_cancel(path(id)?).map(Json)
}
