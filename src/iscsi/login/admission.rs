//! What a finished login does to the sessions that live (RFC 7143 sections 4.4.3 and 6.3.4 to 6.3.6): a pure decision
//! for whoever keeps their register.

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
    /// The connection joins the living session.
    Join,
    /// The same, in the place of the session's connection with the same CID, whose tasks end without a word.
    Replace,
    /// Answer with this status.
    Refuse(LoginStatus),
}

/// The living session of the I_T nexus that a login names: same InitiatorName, ISID, target and portal group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivingSession<'a> {
    /// Its handle.
    pub tsih: u16,
    /// CIDs of its connections.
    pub connection_ids: &'a [u16],
    /// MaxConnections.
    pub connections_max: u16,
}

/// Decide about `identity`.
///
/// Discovery sessions have no I_T nexus and no tasks; each is new, so that two tools under one name do not end each
/// other's.
#[must_use]
pub fn admission(identity: &SessionIdentity, living: Option<LivingSession<'_>>) -> Admission {
    match (identity.tsih, living) {
        (0, None) => Admission::New,
        (0, Some(_)) if identity.is_discovery() => Admission::New,
        (0, Some(_)) => Admission::Reinstate,
        (wanted, Some(living)) if wanted == living.tsih => {
            if living.connection_ids.contains(&identity.connection_id) {
                Admission::Replace
            } else if living.connection_ids.len() < usize::from(living.connections_max) {
                Admission::Join
            } else {
                Admission::Refuse(LoginStatus::TOO_MANY_CONNECTIONS)
            }
        }
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
    fn the_table_of_isid_tsih_and_cid_is_followed() {
        let name = IscsiName::new("iqn.2026-11.io.x:a").unwrap();
        let identity = |tsih, connection_id, target: bool| SessionIdentity {
            initiator_name: name.clone(),
            isid: [0; 6],
            target: target.then(|| (TargetId(1), name.clone())),
            portal_group_tag: 1,
            tsih,
            connection_id,
        };
        let living = Some(LivingSession { tsih: 5, connection_ids: &[0, 7], connections_max: 2 });
        let larger = Some(LivingSession { tsih: 5, connection_ids: &[0, 7], connections_max: 3 });
        let absent = Admission::Refuse(LoginStatus::SESSION_DOES_NOT_EXIST);
        assert_eq!(admission(&identity(0, 0, true), None), Admission::New);
        assert_eq!(admission(&identity(0, 0, true), living), Admission::Reinstate);
        assert_eq!(admission(&identity(0, 9, true), living), Admission::Reinstate);
        assert_eq!(admission(&identity(5, 0, true), living), Admission::Replace);
        assert_eq!(admission(&identity(5, 7, true), living), Admission::Replace);
        let full = Admission::Refuse(LoginStatus::TOO_MANY_CONNECTIONS);
        assert_eq!(admission(&identity(5, 1, true), living), full);
        assert_eq!(admission(&identity(5, 1, true), larger), Admission::Join);
        assert_eq!(admission(&identity(6, 0, true), living), absent);
        assert_eq!(admission(&identity(6, 0, true), None), absent);
        assert_eq!(admission(&identity(5, 0, false), None), absent);
        assert_eq!(admission(&identity(0, 0, false), None), Admission::New);
    }
}
