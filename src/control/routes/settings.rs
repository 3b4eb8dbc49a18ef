//! Routes of settings.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};

use super::{Answer, InBody, InPath, Server, body, path};
use crate::control::api;
use crate::control::settings::SettingsOf;

/// These routes.
pub(super) fn routes() -> Router<Server> {
    Router::new()
        .route("/v1/settings", get(of_server).patch(change_of_server))
        .route("/v1/targets/{target}/settings", get(of_target).patch(change_of_target))
        .route("/v1/disks/{disk}/settings", get(of_disk).patch(change_of_disk))
}

async fn of_server(State(server): State<Server>) -> Answer<Json<api::Settings>> {
    server.handle.view().api_settings(&SettingsOf::Server).map(Json)
}

async fn of_target(State(server): State<Server>, target: InPath<String>) -> Answer<Json<api::Settings>> {
    server.handle.view().api_settings(&SettingsOf::Target(path(target)?)).map(Json)
}

async fn of_disk(State(server): State<Server>, disk: InPath<String>) -> Answer<Json<api::Settings>> {
    server.handle.view().api_settings(&SettingsOf::Disk(path(disk)?)).map(Json)
}

async fn change_of_server(
    State(server): State<Server>,
    change: InBody<api::SettingsChange>,
) -> Answer<Json<api::Settings>> {
    changed(&server, SettingsOf::Server, body(change)?).await
}

async fn change_of_target(
    State(server): State<Server>,
    target: InPath<String>,
    change: InBody<api::SettingsChange>,
) -> Answer<Json<api::Settings>> {
    changed(&server, SettingsOf::Target(path(target)?), body(change)?).await
}

async fn change_of_disk(
    State(server): State<Server>,
    disk: InPath<String>,
    change: InBody<api::SettingsChange>,
) -> Answer<Json<api::Settings>> {
    changed(&server, SettingsOf::Disk(path(disk)?), body(change)?).await
}

async fn changed(server: &Server, of: SettingsOf, change: api::SettingsChange) -> Answer<Json<api::Settings>> {
    let changed = of.clone();
    let done = server
        .handle
        .change(move |controller| Box::pin(async move { controller.settings_change(changed, change).await }));
    done.await?;
    server.handle.view().api_settings(&of).map(Json)
}
