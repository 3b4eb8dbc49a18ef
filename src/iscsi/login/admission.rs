//! What a finished login does to the sessions that live (RFC 7143 sections 4.4.3 and 6.3.5): a pure decision for
//! whoever keeps their register.

#![forbid(unsafe_code)]

use super::SessionIdentity;
use crate::iscsi::pdu::LoginStatus;

/// What becomes of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Make a new session.
    New,
    /// End the living session of the same I_T nexus, its tasks without a word, then make a new session.
    Reinstate,
    /// Answer with this status.
    Refuse(LoginStatus),
}

/// Decide about `identity`. `living_tsih` is the handle of the living session of the same I_T nexus: same
/// InitiatorName, ISID, target and portal group.
///
/// A session has one connection, so a second one is refused, one that would replace the first included: nobody
/// reassigns tasks here (ErrorRecoveryLevel 0), and session reinstatement serves that purpose. Discovery sessions have
/// no I_T nexus and no tasks; each is new, so that two tools under one name do not end each other's.
#[must_use]
pub fn admission(identity: &SessionIdentity, living_tsih: Option<u16>) -> Admission {
    match (identity.tsih, living_tsih) {
        (0, None) => Admission::New,
        (0, Some(_)) if identity.is_discovery() => Admission::New,
        (0, Some(_)) => Admission::Reinstate,
        (wanted, Some(living)) if wanted == living => Admission::Refuse(LoginStatus::TOO_MANY_CONNECTIONS),
        _ => Admission::Refuse(LoginStatus::SESSION_DOES_NOT_EXIST),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::iscsi::names::IscsiName;
    use crate::units::TargetId;

    #[test]
    fn the_table_of_isid_and_tsih_is_followed() {
        let name = IscsiName::new("iqn.2026-11.io.x:a").unwrap();
        let identity = |tsih, target: bool| SessionIdentity {
            initiator_name: name.clone(),
            isid: [0; 6],
            target: target.then(|| (TargetId(1), name.clone())),
            portal_group_tag: 1,
            tsih,
            connection_id: 0,
        };
        assert_eq!(admission(&identity(0, true), None), Admission::New);
        assert_eq!(admission(&identity(0, true), Some(5)), Admission::Reinstate);
        assert_eq!(admission(&identity(5, true), Some(5)), Admission::Refuse(LoginStatus::TOO_MANY_CONNECTIONS));
        assert_eq!(admission(&identity(6, true), Some(5)), Admission::Refuse(LoginStatus::SESSION_DOES_NOT_EXIST));
        assert_eq!(admission(&identity(6, true), None), Admission::Refuse(LoginStatus::SESSION_DOES_NOT_EXIST));
        assert_eq!(admission(&identity(0, false), Some(5)), Admission::New);
    }
}
