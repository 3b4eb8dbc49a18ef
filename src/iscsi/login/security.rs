//! The SecurityNegotiation stage (RFC 7143 section 12): which method, and how far it has come.

#![forbid(unsafe_code)]

use super::{ChapKeys, Environment, LoginStatus, Refused};
use crate::iscsi::chap::{Chap, ChapFailure};
use crate::iscsi::directory::{Authentication, ChapCredentials};
use crate::iscsi::keys::Key;
use crate::iscsi::text::{self, TextBuilder};

/// How far the proof has come.
#[derive(Debug)]
pub(super) enum Security {
    /// The method is not chosen yet; this is what the target asks for.
    Undecided(Authentication),
    /// CHAP is going on.
    Chap(Chap, ChapCredentials),
    /// All that was asked for is proven.
    Passed,
}

/// The security keys of one text.
#[derive(Debug, Default)]
pub(super) struct SecurityKeys<'a> {
    methods: Option<&'a str>,
    chap: ChapKeys<'a>,
}

impl<'a> SecurityKeys<'a> {
    /// Take a key of kind `Authentication`.
    pub(super) fn set(&mut self, key: Key, value: &'a str) {
        let place = match key {
            Key::AuthMethod => &mut self.methods,
            Key::ChapA => &mut self.chap.algorithms,
            Key::ChapI => &mut self.chap.identifier,
            Key::ChapC => &mut self.chap.challenge,
            Key::ChapN => &mut self.chap.name,
            Key::ChapR => &mut self.chap.response,
            _ => return,
        };
        *place = Some(value);
    }
}

impl Security {
    /// Whether the login may leave the stage.
    pub(super) fn is_passed(&self) -> bool {
        matches!(self, Security::Passed)
    }

    /// The initiator goes without the stage, or without naming a method.
    pub(super) fn skip(&mut self) -> Result<(), Refused> {
        match self {
            Security::Undecided(Authentication::None) | Security::Passed => {
                *self = Security::Passed;
                Ok(())
            }
            _ => Err(unproven("CHAP is required, and the initiator does not offer it")),
        }
    }

    /// Handle one complete text of the stage. `transit`: the initiator wants to leave it.
    pub(super) fn handle(
        &mut self,
        keys: &SecurityKeys<'_>,
        transit: bool,
        environment: &mut Environment<'_>,
        answer: &mut TextBuilder,
    ) -> Result<(), Refused> {
        match self {
            Security::Undecided(authentication) => {
                if !keys.chap.is_empty() {
                    return Err(unproven("CHAP keys before the method was chosen"));
                }
                match keys.methods {
                    Some(methods) => *self = choose(authentication, methods, answer)?,
                    None if transit => self.skip()?,
                    None => {}
                }
                Ok(())
            }
            Security::Chap(chap, credentials) => {
                let all = environment.policy.chap_algorithms.iter().copied();
                let allowed: Vec<_> = all.filter(|algorithm| credentials.allows(*algorithm)).collect();
                let entropy = &mut *environment.entropy;
                chap.handle(&keys.chap, credentials, &allowed, entropy, answer)?;
                if matches!(chap, Chap::Done) {
                    *self = Security::Passed;
                }
                Ok(())
            }
            Security::Passed if keys.chap.is_empty() => Ok(()),
            Security::Passed => Err(unproven("CHAP keys after the end of CHAP")),
        }
    }
}

/// The first text of the stage that names methods decides.
fn choose(authentication: &Authentication, methods: &str, answer: &mut TextBuilder) -> Result<Security, Refused> {
    let offers = |method: &str| text::list(methods).any(|item| item == method);
    match authentication {
        Authentication::None if offers("None") => {
            answer.pair("AuthMethod", "None");
            Ok(Security::Passed)
        }
        Authentication::Chap(credentials) if offers("CHAP") => {
            answer.pair("AuthMethod", "CHAP");
            Ok(Security::Chap(Chap::AwaitAlgorithms, credentials.clone()))
        }
        Authentication::None => Err(unproven("the initiator insists on authentication, and none is configured")),
        Authentication::Chap(_) => Err(unproven("CHAP is required, and the initiator does not offer it")),
    }
}

impl From<ChapFailure> for Refused {
    fn from(failure: ChapFailure) -> Refused {
        let status = match failure {
            ChapFailure::Entropy(_) => LoginStatus::TARGET_ERROR,
            _ => LoginStatus::AUTHENTICATION_FAILURE,
        };
        Refused::new(status, failure.to_string())
    }
}

fn unproven(reason: &str) -> Refused {
    Refused::new(LoginStatus::AUTHENTICATION_FAILURE, reason)
}
