//! Routes of target ports and reservations.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};

use super::{Answer, InBody, InPath, Server, body, path};
use crate::control::api;

/// These routes.
pub(super) fn routes() -> Router<Server> {
    Router::new()
        .route("/v1/disks/{disk}/reservations", get(reservations).delete(reservations_clear))
        .route("/v1/targets/{target}/portgroups", get(portgroups).delete(portgroup_all))
        .route(
            "/v1/targets/{target}/portgroups/{group}",
            put(portgroup_add).patch(portgroup_set).delete(portgroup_remove),
        )
}

async fn reservations(State(server): State<Server>, disk: InPath<String>) -> Answer<Json<api::Reservations>> {
    server.handle.reservations(&path(disk)?).await.map(Json)
}

async fn reservations_clear(State(server): State<Server>, disk: InPath<String>) -> Answer<StatusCode> {
    server.handle.reservations_clear(&path(disk)?).await.map(|()| StatusCode::NO_CONTENT)
}

async fn portgroups(State(server): State<Server>, target: InPath<String>) -> Answer<Json<api::TargetPorts>> {
    server.handle.view().api_target_ports(&path(target)?).map(Json)
}

async fn portgroup_all(State(server): State<Server>, target: InPath<String>) -> Answer<Json<api::TargetPorts>> {
    let target = path(target)?;
    let named = target.clone();
    let change =
        server.handle.change(move |controller| Box::pin(async move { controller.portgroup_all(&target).await }));
    change.await?;
    server.handle.view().api_target_ports(&named).map(Json)
}

async fn portgroup_add(State(server): State<Server>, named: InPath<(String, u16)>) -> Answer<Json<api::TargetPorts>> {
    let (target, group) = path(named)?;
    let named = target.clone();
    let change =
        server.handle.change(move |controller| Box::pin(async move { controller.portgroup_add(&target, group).await }));
    change.await?;
    server.handle.view().api_target_ports(&named).map(Json)
}

async fn portgroup_remove(
    State(server): State<Server>,
    named: InPath<(String, u16)>,
) -> Answer<Json<api::TargetPorts>> {
    let (target, group) = path(named)?;
    let named = target.clone();
    let change = server
        .handle
        .change(move |controller| Box::pin(async move { controller.portgroup_remove(&target, group).await }));
    change.await?;
    server.handle.view().api_target_ports(&named).map(Json)
}

async fn portgroup_set(
    State(server): State<Server>,
    named: InPath<(String, u16)>,
    change: InBody<api::PortChange>,
) -> Answer<Json<api::TargetPorts>> {
    let ((target, group), change) = (path(named)?, body(change)?);
    let named = target.clone();
    let change = server
        .handle
        .change(move |controller| Box::pin(async move { controller.portgroup_set(&target, group, change).await }));
    change.await?;
    server.handle.view().api_target_ports(&named).map(Json)
}
