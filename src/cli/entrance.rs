//! Client commands on how initiators come in: CHAP, discovery, redirection.

use std::fs;
use std::path::Path;

use hyper::Method;
use serde_json::{Value, json};

use super::arguments::{
    ChapArguments, ChapVerb, Demand, DiscoveryArguments, DiscoveryVerb, IsnsArguments, IsnsVerb, TargetRedirect,
};
use super::client::{ClientError, segment};
use super::commands::{Asker, Printed};
use super::show;

/// `lunaring discovery`
pub fn discovery(arguments: DiscoveryArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    match arguments.verb {
        DiscoveryVerb::Show => asker.get("/v1/discovery", show::discovery),
        DiscoveryVerb::Auth(demand) => set_demand(&asker, "/v1/discovery/auth", "discovery", &demand),
    }
}

/// `lunaring chap`
pub fn chap(arguments: ChapArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    match arguments.verb {
        ChapVerb::Show => asker.get("/v1/chap", show::chap),
        ChapVerb::Algorithms { list } => {
            let list = if list == ["all"] { Vec::new() } else { list };
            asker.ask(Method::PUT, "/v1/chap", Some(json!({ "algorithms": list })), show::chap)
        }
    }
}

/// `lunaring isns`
pub fn isns(arguments: IsnsArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    match arguments.verb {
        IsnsVerb::Show => asker.get("/v1/isns", show::isns),
        IsnsVerb::Set { server } if server == "none" => {
            asker.ask(Method::PUT, "/v1/isns", Some(json!({})), |_| "registering nowhere".to_owned())
        }
        IsnsVerb::Set { server } => asker.ask(Method::PUT, "/v1/isns", Some(json!({ "server": server })), |isns| {
            format!("registering with {}", isns["server"].as_str().unwrap_or(&server))
        }),
    }
}

/// Demand CHAP of somebody, or nothing.
pub(super) fn set_demand(asker: &Asker, path: &str, what: &str, demand: &Demand) -> Printed {
    let (Some(user), Some(file)) = (&demand.chap_user, &demand.chap_secret_file) else {
        return asker.ask(Method::DELETE, path, None, |_| format!("{what} demands no authentication"));
    };
    let mut body = json!({ "chap_user": user, "chap_secret": secret(file)?, "algorithms": demand.chap_algorithms });
    if let (Some(user), Some(file)) = (&demand.mutual_user, &demand.mutual_secret_file) {
        body["mutual_user"] = json!(user);
        body["mutual_secret"] = json!(secret(file)?);
    }
    asker.ask(Method::PUT, path, Some(body), |_| format!("{what} demands CHAP of '{user}'"))
}

/// `lunaring target redirect`
pub(super) fn redirect(asker: &Asker, redirect: &TargetRedirect) -> Printed {
    let target = &redirect.target;
    let path = format!("/v1/targets/{}/redirect", segment(target));
    let Some(to) = &redirect.to else {
        let query = redirect.portal.as_ref().map_or(String::new(), |portal| format!("?portal={}", segment(portal)));
        let words = |_: &Value| format!("target '{target}' lets initiators in again");
        return asker.ask(Method::DELETE, &format!("{path}{query}"), None, words);
    };
    let mut body = json!({ "to": to, "permanent": redirect.permanent });
    if let Some(portal) = &redirect.portal {
        body["portal"] = json!(portal);
    }
    asker.ask(Method::PUT, &path, Some(body), |_| format!("initiators of target '{target}' are sent to {to}"))
}

/// A secret from its file, without one newline at the end.
fn secret(file: &Path) -> Result<String, ClientError> {
    let shown = file.display();
    let bytes = fs::read(file).map_err(|e| ClientError::new(format!("cannot read the secret file {shown}: {e}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| ClientError::new(format!("the secret in {shown} is not text (UTF-8); choose another secret")))?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    Ok(secret.strip_suffix('\r').unwrap_or(secret).to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_loses_one_newline_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        for (content, wanted) in [("abc\n", "abc"), ("abc\r\n", "abc"), ("abc\n\n", "abc\n"), (" a b ", " a b ")] {
            fs::write(&file, content).unwrap();
            assert_eq!(secret(&file).unwrap(), wanted);
        }
        fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(secret(&file).unwrap_err().message.contains("not text"));
        assert!(secret(&dir.path().join("missing")).unwrap_err().message.contains("cannot read the secret file"));
    }
}
