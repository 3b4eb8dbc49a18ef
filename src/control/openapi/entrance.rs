//! Discovery, CHAP algorithms and redirection in the OpenAPI document.

use serde_json::{Value, json};

use super::{in_path, in_query, object, operation};

pub(super) fn paths() -> Value {
    let target = || in_path("target", "The target's name or iSCSI name", "string");
    let portal = || in_query("portal", "Only what was said for this portal", "string", false);
    json!({
        "/v1/discovery": { "get": operation(
            "What is demanded in discovery sessions", &[], None, ("200", Some("Discovery")),
        ) },
        "/v1/discovery/auth": {
            "put": operation("Demand CHAP in discovery sessions", &[], Some("NewAuth"), ("200", Some("Discovery"))),
            "delete": operation("Demand nothing in discovery sessions", &[], None, ("200", Some("Discovery"))),
        },
        "/v1/chap": {
            "get": operation("The CHAP algorithms that the server allows", &[], None, ("200", Some("ChapPolicy"))),
            "put": operation(
                "Allow only these CHAP algorithms; none in the list: all", &[], Some("ChapPolicy"),
                ("200", Some("ChapPolicy")),
            ),
        },
        "/v1/isns": {
            "get": operation("Where targets and portals are registered", &[], None, ("200", Some("Isns"))),
            "put": operation(
                "Register with this iSNS server, or without one nowhere", &[], Some("NewIsns"), ("200", Some("Isns")),
            ),
        },
        "/v1/targets/{target}/redirect": {
            "put": operation(
                "Send initiators elsewhere (login redirection)", &[target()], Some("NewRedirect"),
                ("200", Some("Target")),
            ),
            "delete": operation("Let initiators in again", &[target(), portal()], None, ("200", Some("Target"))),
        },
    })
}

pub(super) fn schemas() -> Value {
    json!({
        "NewAuth": object(
            "chap_user string, chap_secret string, mutual_user? string, mutual_secret? string, algorithms? string[]",
        ),
        "Discovery": object("auth? TargetAuth"),
        "ChapPolicy": object("algorithms string[]"),
        "Isns": object("server? string, entity? string, registered boolean, reason? string, targets integer"),
        "NewIsns": object("server? string"),
        "Redirect": object("to string, permanent boolean, portal? string"),
        "NewRedirect": object("to string, permanent? boolean, portal? string"),
    })
}
