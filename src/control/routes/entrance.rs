//! Routes of discovery, CHAP algorithms and redirection.

use axum::extract::State;
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::Deserialize;

use super::{Answer, InBody, InPath, InQuery, Server, body, path, query};
use crate::control::api;

pub(super) fn routes() -> Router<Server> {
    Router::new()
        .route("/v1/discovery", get(discovery))
        .route("/v1/discovery/auth", put(discovery_auth).delete(discovery_auth_none))
        .route("/v1/chap", get(chap).put(chap_set))
        .route("/v1/isns", get(isns).put(isns_set))
        .route("/v1/targets/{target}/redirect", put(redirect).delete(redirect_none))
}

async fn discovery(State(server): State<Server>) -> Json<api::Discovery> {
    Json(server.handle.view().api_discovery())
}

async fn discovery_auth(State(server): State<Server>, new: InBody<api::NewAuth>) -> Answer<Json<api::Discovery>> {
    let new = body(new)?;
    server.handle.change(move |controller| Box::pin(controller.discovery_auth(Some(new)))).await?;
    Ok(discovery(State(server)).await)
}

async fn discovery_auth_none(State(server): State<Server>) -> Answer<Json<api::Discovery>> {
    server.handle.change(move |controller| Box::pin(controller.discovery_auth(None))).await?;
    Ok(discovery(State(server)).await)
}

async fn chap(State(server): State<Server>) -> Json<api::ChapPolicy> {
    Json(server.handle.view().api_chap())
}

async fn chap_set(State(server): State<Server>, new: InBody<api::ChapPolicy>) -> Answer<Json<api::ChapPolicy>> {
    let new = body(new)?;
    server.handle.change(move |controller| Box::pin(controller.chap_algorithms(new))).await?;
    Ok(chap(State(server)).await)
}

async fn isns(State(server): State<Server>) -> Json<api::Isns> {
    Json(server.handle.isns.status(&server.handle.view().config))
}

async fn isns_set(State(server): State<Server>, new: InBody<api::NewIsns>) -> Answer<Json<api::Isns>> {
    let new = body(new)?;
    server.handle.change(move |controller| Box::pin(controller.isns_set(new))).await?;
    Ok(isns(State(server)).await)
}

async fn redirect(
    State(server): State<Server>,
    target: InPath<String>,
    new: InBody<api::NewRedirect>,
) -> Answer<Json<api::Target>> {
    let (target, new) = (path(target)?, body(new)?);
    let named = target.clone();
    let change =
        server.handle.change(move |controller| Box::pin(async move { controller.target_redirect(&target, new).await }));
    change.await?;
    server.handle.view().api_target(&named).map(Json)
}

#[derive(Deserialize)]
struct RedirectQuery {
    portal: Option<String>,
}

async fn redirect_none(
    State(server): State<Server>,
    target: InPath<String>,
    asked: InQuery<RedirectQuery>,
) -> Answer<Json<api::Target>> {
    let (target, portal) = (path(target)?, query(asked)?.portal);
    let named = target.clone();
    let change = server.handle.change(move |controller| {
        Box::pin(async move { controller.target_redirect_none(&target, portal.as_deref()).await })
    });
    change.await?;
    server.handle.view().api_target(&named).map(Json)
}
