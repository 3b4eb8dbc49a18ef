//! The registrar: which sessions live, across all shards, and which connections each has. It runs on shard 0.
//!
//! A login asks it for a session handle (TSIH) before its last Login Response. When a session of the same name lives,
//! that one is ended first and the new login waits until its connections are gone (session reinstatement, RFC 7143
//! section 6.3.5), so two sessions of one name never overlap. A login that names the handle of a session joins it, or
//! takes the place of one of its connections (section 6.3.4); the session's shard sees to what that means. Plain data;
//! messages go out through the caller.

use std::collections::HashMap;

use super::peer::LinkKey;
use crate::iscsi::login::{Admission, LivingSession, SessionIdentity, admission};
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

/// A login that wants a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applicant {
    /// Who it is.
    pub(crate) identity: SessionIdentity,
    /// MaxConnections that it has negotiated; means nothing where it names a session.
    pub(crate) connections_max: u16,
    /// Its connection.
    pub(crate) place: Place,
}

/// A living session. All of its connections are on one shard.
#[derive(Debug)]
struct Living {
    name: Option<NexusName>,
    /// Its connections that have not ended, with their CIDs; one that has been replaced has none any more.
    connections: Vec<(Option<u16>, Place)>,
    connections_max: u16,
    /// A login of the same name that waits for this session's end. A still newer login replaces the waiting one.
    successor: Option<Applicant>,
}

/// What a login gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Granted {
    /// A session of its own.
    Session,
    /// A place in the session with that handle; the connection that it replaces, if it does, ends first.
    Place { replaces: Option<LinkKey> },
}

/// What the caller must send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Tell the connection its handle and what it gets.
    Grant(Place, u16, Granted),
    /// Tell the connection why it gets none.
    Refuse(Place, LoginStatus),
    /// Tell these connections to end; the new login waits.
    End(Vec<Place>),
}

/// The table of living sessions.
#[derive(Debug, Default)]
pub(crate) struct Registrar {
    sessions: HashMap<u16, Living>,
    by_name: HashMap<NexusName, u16>,
    last_tsih: u16,
}

impl Registrar {
    /// A login wants a session: it gets one or a place in one, or the older session must end first (or a login that
    /// waited for that is refused).
    pub(crate) fn register(&mut self, applicant: Applicant) -> Decision {
        let name = NexusName::of(&applicant.identity);
        let tsih = name.and_then(|name| self.by_name.get(&name)).copied();
        let session = tsih.and_then(|tsih| Some((tsih, self.sessions.get_mut(&tsih)?)));
        let connection_ids: Vec<u16> =
            session.iter().flat_map(|(_, session)| &session.connections).filter_map(|(id, _)| *id).collect();
        let living = session.as_ref().map(|(tsih, session)| LivingSession {
            tsih: *tsih,
            connection_ids: &connection_ids,
            connections_max: session.connections_max,
        });
        let decision = admission(&applicant.identity, living);
        let place = applicant.place;
        match (decision, session) {
            (Admission::Refuse(status), _) => Decision::Refuse(place, status),
            (Admission::Reinstate, Some((_, session))) => match session.successor.replace(applicant) {
                Some(overtaken) => Decision::Refuse(overtaken.place, LoginStatus::TARGET_ERROR),
                None => Decision::End(session.connections.iter().map(|(_, place)| *place).collect()),
            },
            (Admission::Join | Admission::Replace, Some((tsih, session))) => session.admit(tsih, &applicant),
            (Admission::Join | Admission::Replace, None) => {
                Decision::Refuse(place, LoginStatus::SESSION_DOES_NOT_EXIST)
            }
            (Admission::New | Admission::Reinstate, _) => self.grant(applicant),
        }
    }

    /// A session's connection is gone. With the last one goes the session, and its successor, if any, gets a handle.
    pub(crate) fn ended(&mut self, tsih: u16, place: Place) -> Option<Decision> {
        let session = self.sessions.get_mut(&tsih)?;
        session.connections.retain(|(_, other)| *other != place);
        if !session.connections.is_empty() {
            return None;
        }
        let session = self.sessions.remove(&tsih)?;
        if let Some(name) = session.name {
            self.by_name.remove(&name);
        }
        session.successor.map(|successor| self.grant(successor))
    }

    /// The shard where a session lives.
    pub(crate) fn shard_of(&self, tsih: u16) -> Option<ShardId> {
        self.sessions.get(&tsih)?.connections.first().map(|(_, (shard, _))| *shard)
    }

    /// How many sessions live.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.sessions.len()
    }

    fn grant(&mut self, applicant: Applicant) -> Decision {
        let Applicant { identity, connections_max, place } = applicant;
        let Some(tsih) = self.free_tsih() else {
            return Decision::Refuse(place, LoginStatus::OUT_OF_RESOURCES);
        };
        let name = NexusName::of(&identity);
        if let Some(name) = &name {
            self.by_name.insert(name.clone(), tsih);
        }
        let connections = vec![(Some(identity.connection_id), place)];
        self.sessions.insert(tsih, Living { name, connections, connections_max, successor: None });
        Decision::Grant(place, tsih, Granted::Session)
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

impl Living {
    /// A connection joins, or replaces the one with its CID.
    fn admit(&mut self, tsih: u16, applicant: &Applicant) -> Decision {
        let (place, connection_id) = (applicant.place, Some(applicant.identity.connection_id));
        if self.successor.is_some() {
            // It is being ended.
            return Decision::Refuse(place, LoginStatus::SESSION_DOES_NOT_EXIST);
        }
        if self.connections.iter().any(|(_, (shard, _))| *shard != place.0) {
            // It could not be moved to the session's shard.
            return Decision::Refuse(place, LoginStatus::OUT_OF_RESOURCES);
        }
        let replaced = self.connections.iter_mut().find(|(id, _)| *id == connection_id);
        let replaces = replaced.map(|(id, (_, link))| {
            *id = None;
            *link
        });
        self.connections.push((connection_id, place));
        Decision::Grant(place, tsih, Granted::Place { replaces })
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

    fn applicant(initiator: &str, index: u32) -> Applicant {
        Applicant { identity: name(initiator), connections_max: 2, place: place(index) }
    }

    fn joining(tsih: u16, connection_id: u16, index: u32) -> Applicant {
        let identity = SessionIdentity { tsih, connection_id, ..name("iqn.2026-11.io.x:a") };
        Applicant { identity, connections_max: 1, place: place(index) }
    }

    #[test]
    fn a_second_login_of_one_name_waits_until_the_first_is_gone() {
        let mut registrar = Registrar::default();
        let granted = |index, tsih| Decision::Grant(place(index), tsih, Granted::Session);
        assert_eq!(registrar.register(applicant("iqn.2026-11.io.x:a", 1)), granted(1, 1));
        assert_eq!(registrar.register(applicant("iqn.2026-11.io.x:b", 2)), granted(2, 2));
        assert_eq!(registrar.register(applicant("iqn.2026-11.io.x:a", 3)), Decision::End(vec![place(1)]));
        assert_eq!(registrar.ended(1, place(1)), Some(granted(3, 3)));
        assert_eq!(registrar.ended(3, place(3)), None);
        assert_eq!(registrar.count(), 1);
    }

    #[test]
    fn a_third_login_overtakes_the_one_that_waits() {
        let mut registrar = Registrar::default();
        registrar.register(applicant("iqn.2026-11.io.x:a", 1));
        registrar.register(applicant("iqn.2026-11.io.x:a", 2));
        assert_eq!(
            registrar.register(applicant("iqn.2026-11.io.x:a", 3)),
            Decision::Refuse(place(2), LoginStatus::TARGET_ERROR)
        );
        assert_eq!(registrar.ended(1, place(1)), Some(Decision::Grant(place(3), 2, Granted::Session)));
    }

    #[test]
    fn connections_join_replace_and_leave_and_the_last_one_ends_the_session() {
        let mut registrar = Registrar::default();
        registrar.register(applicant("iqn.2026-11.io.x:a", 1));
        let joined = |index, replaces| Decision::Grant(place(index), 1, Granted::Place { replaces });
        assert_eq!(registrar.register(joining(1, 7, 2)), joined(2, None));
        assert_eq!(registrar.register(joining(1, 8, 3)), Decision::Refuse(place(3), LoginStatus::TOO_MANY_CONNECTIONS));
        assert_eq!(registrar.register(joining(1, 7, 4)), joined(4, Some(place(2).1)));
        // The replaced one leaves its CID free at once, and is waited for all the same.
        assert_eq!(registrar.ended(1, place(1)), None);
        assert_eq!((registrar.count(), registrar.shard_of(1)), (1, Some(ShardId(0))));
        let elsewhere = Applicant { place: (ShardId(1), place(5).1), ..joining(1, 0, 5) };
        let refused = Decision::Refuse(elsewhere.place, LoginStatus::OUT_OF_RESOURCES);
        assert_eq!(registrar.register(elsewhere), refused);
        let reinstating = registrar.register(applicant("iqn.2026-11.io.x:a", 6));
        assert_eq!(reinstating, Decision::End(vec![place(2), place(4)]));
        assert_eq!(
            registrar.register(joining(1, 0, 7)),
            Decision::Refuse(place(7), LoginStatus::SESSION_DOES_NOT_EXIST)
        );
        assert_eq!(registrar.ended(1, place(4)), None);
        assert_eq!(registrar.ended(1, place(2)), Some(Decision::Grant(place(6), 2, Granted::Session)));
        assert_eq!(registrar.shard_of(1), None);
    }

    #[test]
    fn discovery_sessions_are_never_reinstated_and_handles_run_out_with_a_refusal() {
        let mut registrar = Registrar::default();
        let identity = SessionIdentity { target: None, ..name("iqn.2026-11.io.x:a") };
        let discovery = |index| Applicant { identity: identity.clone(), connections_max: 1, place: place(index) };
        for index in 0..u32::from(u16::MAX) {
            let Decision::Grant(_, tsih, Granted::Session) = registrar.register(discovery(index)) else {
                panic!("refused at {index}");
            };
            assert_ne!(tsih, 0);
        }
        let refused = Decision::Refuse(place(9), LoginStatus::OUT_OF_RESOURCES);
        assert_eq!(registrar.register(discovery(9)), refused);
    }
}
