//! The registrar: which sessions live, across all shards. It runs on shard 0.
//!
//! A login asks it for a session handle (TSIH) before its last Login Response. When a session of the same name lives,
//! that one is ended first and the new login waits until its connection is gone (session reinstatement, RFC 7143
//! section 6.3.5), so two sessions of one name never overlap. Plain data; messages go out through the caller.

use std::collections::HashMap;

use super::peer::LinkKey;
use crate::iscsi::login::{Admission, SessionIdentity, admission};
use crate::iscsi::names::IscsiName;
use crate::iscsi::pdu::LoginStatus;
use crate::units::{ShardId, TargetId};

/// A connection of some shard.
pub(crate) type Place = (ShardId, LinkKey);

/// The name of an I_T nexus: what session reinstatement compares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct NexusName {
    initiator: IscsiName,
    isid: [u8; 6],
    target: TargetId,
    portal_group_tag: u16,
}

/// A living session.
#[derive(Debug)]
struct Living {
    identity: SessionIdentity,
    place: Place,
    /// A login of the same name that waits for this session's end. A still newer login replaces the waiting one.
    successor: Option<(Place, SessionIdentity)>,
}

/// What the caller must send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Tell the connection its handle, or why it gets none.
    Grant(Place, Result<u16, LoginStatus>),
    /// Tell the connection to end; the new login waits.
    End(Place),
}

/// The table of living sessions.
#[derive(Debug, Default)]
pub(crate) struct Registrar {
    sessions: HashMap<u16, Living>,
    by_name: HashMap<NexusName, u16>,
    last_tsih: u16,
}

impl Registrar {
    /// A login wants a session: it gets one, or the older session must end first (or a login that waited for that is
    /// refused).
    pub(crate) fn register(&mut self, identity: SessionIdentity, place: Place) -> Decision {
        let living = NexusName::of(&identity).and_then(|name| self.by_name.get(&name)).copied();
        match (admission(&identity, living), living.and_then(|tsih| self.sessions.get_mut(&tsih))) {
            (Admission::Refuse(status), _) => Decision::Grant(place, Err(status)),
            (Admission::Reinstate, Some(session)) => match session.successor.replace((place, identity)) {
                Some((overtaken, _)) => Decision::Grant(overtaken, Err(LoginStatus::TARGET_ERROR)),
                None => Decision::End(session.place),
            },
            (Admission::New | Admission::Reinstate, _) => self.grant(identity, place),
        }
    }

    /// A session's connection is gone. Its successor, if any, gets a handle now.
    pub(crate) fn ended(&mut self, tsih: u16) -> Option<Decision> {
        let session = self.sessions.remove(&tsih)?;
        if let Some(name) = NexusName::of(&session.identity) {
            self.by_name.remove(&name);
        }
        let (place, identity) = session.successor?;
        Some(self.grant(identity, place))
    }

    /// How many sessions live.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.sessions.len()
    }

    fn grant(&mut self, identity: SessionIdentity, place: Place) -> Decision {
        let Some(tsih) = self.free_tsih() else {
            return Decision::Grant(place, Err(LoginStatus::OUT_OF_RESOURCES));
        };
        if let Some(name) = NexusName::of(&identity) {
            self.by_name.insert(name, tsih);
        }
        self.sessions.insert(tsih, Living { identity, place, successor: None });
        Decision::Grant(place, Ok(tsih))
    }

    /// The next handle not in use. Zero is reserved for "none" (RFC 7143 section 11.12.6).
    fn free_tsih(&mut self) -> Option<u16> {
        for _ in 0..u16::MAX {
            self.last_tsih = self.last_tsih.checked_add(1).unwrap_or(1);
            if !self.sessions.contains_key(&self.last_tsih) {
                return Some(self.last_tsih);
            }
        }
        None
    }
}

impl NexusName {
    /// Discovery sessions have none.
    fn of(identity: &SessionIdentity) -> Option<Self> {
        let (target, _) = identity.target.as_ref()?;
        Some(Self {
            initiator: identity.initiator_name.clone(),
            isid: identity.isid,
            target: *target,
            portal_group_tag: identity.portal_group_tag,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(initiator: &str) -> SessionIdentity {
        SessionIdentity {
            initiator_name: IscsiName::new(initiator).unwrap(),
            isid: [0x40, 0, 0, 0, 0, 1],
            target: Some((TargetId(1), IscsiName::new("iqn.2026-11.io.x:t").unwrap())),
            portal_group_tag: 1,
            tsih: 0,
            connection_id: 0,
        }
    }

    fn place(index: u32) -> Place {
        (ShardId(0), LinkKey { index, generation: 1 })
    }

    #[test]
    fn a_second_login_of_one_name_waits_until_the_first_is_gone() {
        let mut registrar = Registrar::default();
        assert_eq!(registrar.register(name("iqn.2026-11.io.x:a"), place(1)), Decision::Grant(place(1), Ok(1)));
        assert_eq!(registrar.register(name("iqn.2026-11.io.x:b"), place(2)), Decision::Grant(place(2), Ok(2)));
        assert_eq!(registrar.register(name("iqn.2026-11.io.x:a"), place(3)), Decision::End(place(1)));
        assert_eq!(registrar.ended(1), Some(Decision::Grant(place(3), Ok(3))));
        assert_eq!(registrar.ended(3), None);
        assert_eq!(registrar.count(), 1);
    }

    #[test]
    fn a_third_login_overtakes_the_one_that_waits() {
        let mut registrar = Registrar::default();
        registrar.register(name("iqn.2026-11.io.x:a"), place(1));
        registrar.register(name("iqn.2026-11.io.x:a"), place(2));
        assert_eq!(
            registrar.register(name("iqn.2026-11.io.x:a"), place(3)),
            Decision::Grant(place(2), Err(LoginStatus::TARGET_ERROR))
        );
        assert_eq!(registrar.ended(1), Some(Decision::Grant(place(3), Ok(2))));
    }

    #[test]
    fn discovery_sessions_are_never_reinstated_and_handles_run_out_with_a_refusal() {
        let mut registrar = Registrar::default();
        let discovery = SessionIdentity { target: None, ..name("iqn.2026-11.io.x:a") };
        for index in 0..u32::from(u16::MAX) {
            let Decision::Grant(_, Ok(tsih)) = registrar.register(discovery.clone(), place(index)) else {
                panic!("refused at {index}");
            };
            assert_ne!(tsih, 0);
        }
        assert_eq!(
            registrar.register(discovery, place(9)),
            Decision::Grant(place(9), Err(LoginStatus::OUT_OF_RESOURCES))
        );
    }
}
