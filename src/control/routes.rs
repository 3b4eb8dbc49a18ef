//! The HTTP routes of the control socket: each reads one request, calls one function, writes one answer.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::api;
use super::config::Config;
use super::controller::Handle;
use super::error::{ErrorKind, Refused};
use super::openapi;
use crate::limits::{CONTROL_BODY_BYTES_MAX, CONTROL_CONFIG_BYTES_MAX};

/// What every route can reach.
#[derive(Clone)]
pub struct Server {
    /// The controller and the view.
    pub handle: Handle,
    /// What `/v1/version` says, but for the uptime.
    pub about: api::Version,
    /// When the server started.
    pub started: std::time::Instant,
}

mod entrance;
mod images;
mod ports;
mod settings;

type Answer<T> = Result<T, Refused>;

/// Every route. [`openapi`] describes the same ones, and a test compares the two.
pub const ROUTES: &[(&str, &[&str])] = &[
    ("/metrics", &["get"]),
    ("/v1/openapi.json", &["get"]),
    ("/v1/version", &["get"]),
    ("/v1/stats", &["get"]),
    ("/v1/config", &["get", "put"]),
    ("/v1/disks", &["get", "post"]),
    ("/v1/disks/{disk}", &["get", "delete"]),
    ("/v1/disks/{disk}/resize", &["post"]),
    ("/v1/disks/{disk}/check", &["post"]),
    ("/v1/disks/{disk}/convert", &["post"]),
    ("/v1/disks/{disk}/merge", &["post"]),
    ("/v1/disks/{disk}/compact", &["post"]),
    ("/v1/disks/{disk}/trace", &["post"]),
    ("/v1/disks/{disk}/metadata", &["get"]),
    ("/v1/disks/{disk}/metadata/{item}", &["get", "put", "delete"]),
    ("/v1/disks/{disk}/snapshots", &["get", "post"]),
    ("/v1/disks/{disk}/snapshots/{snapshot}", &["delete"]),
    ("/v1/disks/{disk}/snapshots/{snapshot}/restore", &["post"]),
    ("/v1/disks/{disk}/snapshots/{snapshot}/export", &["post"]),
    ("/v1/snapshots", &["post"]),
    ("/v1/disks/{disk}/reservations", &["get", "delete"]),
    ("/v1/jobs", &["get"]),
    ("/v1/jobs/{job}", &["get", "delete"]),
    ("/v1/targets", &["get", "post"]),
    ("/v1/targets/{target}", &["get", "delete"]),
    ("/v1/targets/{target}/luns", &["post"]),
    ("/v1/targets/{target}/luns/{lun}", &["delete"]),
    ("/v1/targets/{target}/access", &["post", "delete"]),
    ("/v1/targets/{target}/auth", &["put", "delete"]),
    ("/v1/targets/{target}/portgroups", &["get", "delete"]),
    ("/v1/targets/{target}/portgroups/{group}", &["put", "patch", "delete"]),
    ("/v1/targets/{target}/redirect", &["put", "delete"]),
    ("/v1/discovery", &["get"]),
    ("/v1/discovery/auth", &["put", "delete"]),
    ("/v1/chap", &["get", "put"]),
    ("/v1/isns", &["get", "put"]),
    ("/v1/settings", &["get", "patch"]),
    ("/v1/targets/{target}/settings", &["get", "patch"]),
    ("/v1/disks/{disk}/settings", &["get", "patch"]),
    ("/v1/portals", &["get", "post"]),
    ("/v1/portals/{portal}", &["delete"]),
    ("/v1/sessions", &["get"]),
    ("/v1/sessions/{session}", &["delete"]),
];

/// The router.
pub fn router(server: Server) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/openapi.json", get(async || Json(openapi::document())))
        .route("/v1/version", get(version))
        .route("/v1/stats", get(stats))
        .route("/v1/config", get(config).put(config_put).layer(DefaultBodyLimit::max(CONTROL_CONFIG_BYTES_MAX)))
        .route("/v1/disks", get(disks).post(disk_new))
        .route("/v1/disks/{disk}", get(disk).delete(disk_delete))
        .merge(images::routes())
        .merge(ports::routes())
        .merge(entrance::routes())
        .merge(settings::routes())
        .route("/v1/targets", get(targets).post(target_new))
        .route("/v1/targets/{target}", get(target).delete(target_delete))
        .route("/v1/targets/{target}/luns", post(lun_new))
        .route("/v1/targets/{target}/luns/{lun}", delete(lun_delete))
        .route("/v1/targets/{target}/access", post(allow).delete(deny))
        .route("/v1/targets/{target}/auth", axum::routing::put(auth).delete(auth_none))
        .route("/v1/portals", get(portals).post(portal_new))
        .route("/v1/portals/{portal}", delete(portal_delete))
        .route("/v1/sessions", get(sessions))
        .route("/v1/sessions/{session}", delete(session_drop))
        .fallback(async |request: Request| {
            Refused::not_found(format!("there is no {}; /v1/openapi.json lists what there is", request.uri().path()))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let error =
                format!("{} is not possible on {}; see /v1/openapi.json", request.method(), request.uri().path());
            (StatusCode::METHOD_NOT_ALLOWED, Json(api::ErrorBody { error }))
        })
        .layer(DefaultBodyLimit::max(CONTROL_BODY_BYTES_MAX))
        .with_state(server)
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.kind {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(api::ErrorBody { error: self.message })).into_response()
    }
}

/// The parts of a request, or a refusal in this API's own form.
fn body<T>(body: Result<Json<T>, JsonRejection>) -> Answer<T> {
    body.map(|Json(value)| value).map_err(|rejection| Refused::invalid(rejection.body_text()))
}

fn path<T>(path: Result<Path<T>, PathRejection>) -> Answer<T> {
    path.map(|Path(value)| value).map_err(|rejection| Refused::invalid(rejection.body_text()))
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Answer<T> {
    query.map(|Query(value)| value).map_err(|rejection| Refused::invalid(rejection.body_text()))
}

type InBody<T> = Result<Json<T>, JsonRejection>;
type InPath<T> = Result<Path<T>, PathRejection>;
type InQuery<T> = Result<Query<T>, QueryRejection>;

async fn config(State(server): State<Server>) -> Json<Config> {
    Json(server.handle.view().config.clone())
}

async fn config_put(State(server): State<Server>, new: InBody<Config>) -> Answer<Json<api::Replaced>> {
    let new = body(new)?;
    let change = server.handle.change(move |controller| Box::pin(async move { controller.config_replace(new).await }));
    change.await.map(Json)
}

async fn metrics(State(server): State<Server>) -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, server.handle.metrics()).into_response()
}

async fn version(State(server): State<Server>) -> Json<api::Version> {
    let mut about = server.about;
    about.uptime_seconds = server.started.elapsed().as_secs();
    Json(about)
}

#[derive(Deserialize)]
struct StatsQuery {
    disk: Option<String>,
}

async fn stats(State(server): State<Server>, asked: InQuery<StatsQuery>) -> Answer<Json<api::Stats>> {
    let asked = query(asked)?;
    server.handle.api_stats(asked.disk.as_deref()).map(Json)
}

async fn disks(State(server): State<Server>) -> Answer<Json<api::Disks>> {
    server.handle.look(|view| Ok(view.api_disks())).await.map(Json)
}

async fn disk(State(server): State<Server>, name: InPath<String>) -> Answer<Json<api::Disk>> {
    server.handle.api_disk(&path(name)?).await.map(Json)
}

async fn disk_new(State(server): State<Server>, new: InBody<api::NewDisk>) -> Answer<(StatusCode, Json<api::Disk>)> {
    let new = body(new)?;
    let name = new.name.clone();
    server.handle.change(move |controller| Box::pin(controller.disk_new(new))).await?;
    let disk = server.handle.look(move |view| view.api_disk_mapped(&name)).await?;
    Ok((StatusCode::CREATED, Json(disk)))
}

#[derive(Deserialize)]
struct DeleteDiskQuery {
    #[serde(default)]
    keep_file: bool,
}

async fn disk_delete(
    State(server): State<Server>,
    name: InPath<String>,
    asked: InQuery<DeleteDiskQuery>,
) -> Answer<Json<api::DeletedDisk>> {
    let (name, asked) = (path(name)?, query(asked)?);
    let change = server
        .handle
        .change(move |controller| Box::pin(async move { controller.disk_delete(&name, asked.keep_file).await }));
    change.await.map(Json)
}

async fn targets(State(server): State<Server>) -> Json<api::Targets> {
    Json(server.handle.view().api_targets())
}

async fn target(State(server): State<Server>, name: InPath<String>) -> Answer<Json<api::Target>> {
    server.handle.view().api_target(&path(name)?).map(Json)
}

async fn target_new(
    State(server): State<Server>,
    new: InBody<api::NewTarget>,
) -> Answer<(StatusCode, Json<api::Target>)> {
    let new = body(new)?;
    let name = new.name.clone();
    server.handle.change(move |controller| Box::pin(controller.target_new(new))).await?;
    Ok((StatusCode::CREATED, Json(server.handle.view().api_target(&name)?)))
}

async fn target_delete(State(server): State<Server>, name: InPath<String>) -> Answer<StatusCode> {
    let name = path(name)?;
    let change = server.handle.change(move |controller| Box::pin(async move { controller.target_delete(&name).await }));
    change.await.map(|()| StatusCode::NO_CONTENT)
}

async fn lun_new(
    State(server): State<Server>,
    target: InPath<String>,
    new: InBody<api::NewLun>,
) -> Answer<(StatusCode, Json<api::TargetLun>)> {
    let (target, new) = (path(target)?, body(new)?);
    let (disk, read_only, only_for) = (new.disk.clone(), new.read_only, new.only_for.clone());
    let change =
        server.handle.change(move |controller| Box::pin(async move { controller.target_map(&target, new).await }));
    let lun = change.await?;
    Ok((StatusCode::CREATED, Json(api::TargetLun { lun, disk, read_only, only_for })))
}

#[derive(Deserialize)]
struct UnmapQuery {
    #[serde(rename = "for")]
    only_for: Option<String>,
}

async fn lun_delete(
    State(server): State<Server>,
    named: InPath<(String, u16)>,
    asked: InQuery<UnmapQuery>,
) -> Answer<StatusCode> {
    let ((target, lun), asked) = (path(named)?, query(asked)?);
    let change = server.handle.change(move |controller| {
        Box::pin(async move { controller.target_unmap(&target, lun, asked.only_for.as_deref()).await })
    });
    change.await.map(|()| StatusCode::NO_CONTENT)
}

async fn allow(
    State(server): State<Server>,
    target: InPath<String>,
    change: InBody<api::AccessChange>,
) -> Answer<Json<api::Target>> {
    let (target, rule) = (path(target)?, body(change)?.rule);
    let named = target.clone();
    let change =
        server.handle.change(move |controller| Box::pin(async move { controller.target_allow(&target, &rule).await }));
    change.await?;
    server.handle.view().api_target(&named).map(Json)
}

async fn deny(
    State(server): State<Server>,
    target: InPath<String>,
    change: InQuery<api::AccessChange>,
) -> Answer<Json<api::Target>> {
    let (target, rule) = (path(target)?, query(change)?.rule);
    let named = target.clone();
    let change =
        server.handle.change(move |controller| Box::pin(async move { controller.target_deny(&target, &rule).await }));
    change.await?;
    server.handle.view().api_target(&named).map(Json)
}

async fn auth(
    State(server): State<Server>,
    target: InPath<String>,
    new: InBody<api::NewAuth>,
) -> Answer<Json<api::Target>> {
    set_auth(&server, path(target)?, Some(body(new)?)).await
}

async fn auth_none(State(server): State<Server>, target: InPath<String>) -> Answer<Json<api::Target>> {
    set_auth(&server, path(target)?, None).await
}

async fn set_auth(server: &Server, target: String, new: Option<api::NewAuth>) -> Answer<Json<api::Target>> {
    let named = target.clone();
    let change =
        server.handle.change(move |controller| Box::pin(async move { controller.target_auth(&target, new).await }));
    change.await?;
    server.handle.view().api_target(&named).map(Json)
}

async fn portals(State(server): State<Server>) -> Json<api::Portals> {
    Json(server.handle.view().api_portals())
}

async fn portal_new(
    State(server): State<Server>,
    new: InBody<api::NewPortal>,
) -> Answer<(StatusCode, Json<api::Portals>)> {
    let new = body(new)?;
    server.handle.change(move |controller| Box::pin(controller.portal_add(new))).await?;
    Ok((StatusCode::CREATED, Json(server.handle.view().api_portals())))
}

async fn portal_delete(State(server): State<Server>, portal: InPath<String>) -> Answer<StatusCode> {
    let portal = path(portal)?;
    let change =
        server.handle.change(move |controller| Box::pin(async move { controller.portal_remove(&portal).await }));
    change.await.map(|()| StatusCode::NO_CONTENT)
}

async fn sessions(State(server): State<Server>) -> Answer<Json<api::Sessions>> {
    server.handle.sessions().await.map(Json)
}

async fn session_drop(State(server): State<Server>, session: InPath<u64>) -> Answer<StatusCode> {
    server.handle.session_drop(path(session)?).await.map(|()| StatusCode::NO_CONTENT)
}
