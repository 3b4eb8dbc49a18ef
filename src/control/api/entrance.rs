//! How initiators come in, in the API.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::TargetAuth;

/// `PUT /v1/targets/{target}/auth`, `PUT /v1/discovery/auth`
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAuth {
    /// The name that an initiator proves.
    pub chap_user: String,
    /// Its secret, 12 to 255 bytes.
    pub chap_secret: String,
    /// The name that the target proves in return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutual_user: Option<String>,
    /// Its secret, another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutual_secret: Option<String>,
    /// The algorithms that may be used: of `md5`, `sha1`, `sha256`, `sha3-256`. All that the server allows, when there
    /// are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<String>,
}

/// `GET /v1/discovery`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Discovery {
    /// CHAP, where it is demanded; without the secrets.
    pub auth: Option<TargetAuth>,
}

/// `GET /v1/chap`, `PUT /v1/chap`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChapPolicy {
    /// The algorithms that the server allows; in a request, none means all.
    pub algorithms: Vec<String>,
}

/// Where initiators of a target are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// Where to: an address or domain name, with a port.
    pub to: String,
    /// They may remember it.
    pub permanent: bool,
    /// Only those that come in through this portal.
    pub portal: Option<SocketAddr>,
}

/// `PUT /v1/targets/{target}/redirect`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRedirect {
    /// Where to: an address or domain name, with a port.
    pub to: String,
    /// They may remember it.
    #[serde(default)]
    pub permanent: bool,
    /// Only those that come in through this portal: `ADDRESS:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portal: Option<String>,
}

/// `GET /v1/isns`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isns {
    /// The iSNS server, when there is one.
    pub server: Option<String>,
    /// What this server is called there.
    pub entity: Option<String>,
    /// What is configured is registered there.
    pub registered: bool,
    /// Why it is not.
    pub reason: Option<String>,
    /// Targets that are registered.
    pub targets: usize,
}

/// `PUT /v1/isns`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewIsns {
    /// The iSNS server: an address or domain name, with a port unless it is 3205. None: register nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}
