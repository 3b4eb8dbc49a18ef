//! The login phase of a connection (RFC 7143 section 6.3), sans-IO: Login Requests in, Login Responses out.
//!
//! The order of calls: [`Login::receive`] until it gives [`LoginStep::Establish`]; then, when the registrar of sessions has
//! decided, [`Login::granted`] or [`Login::refused`]. After [`LoginStep::Close`] the connection is closed when the reply has left.

#![forbid(unsafe_code)]

use super::chap::{ALGORITHMS, Algorithm, Entropy};
use super::directory::Directory;
use super::names::IscsiName;
use super::negotiation::{Negotiated, Preferences};
use super::pdu::{Bhs, LoginStatus};
use crate::units::{PortalId, TargetId};
use core::net::SocketAddr;

/// What this server asks of every login.
#[derive(Clone, Debug)]
pub struct LoginPolicy {
    /// Operational parameters.
    pub preferences: Preferences,
    /// CHAP algorithms, the most wanted first.
    pub chap_algorithms: Vec<Algorithm>,
    /// Commands that the session may have outstanding; sets MaxCmdSN.
    pub command_window: u32,
}

/// How a connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The portal.
    pub portal: PortalId,
    /// The tag of the portal's group.
    pub portal_group_tag: u16,
    /// The address that the initiator reached.
    pub local: SocketAddr,
    /// The initiator's address.
    pub peer: SocketAddr,
}

/// What the login looks at and draws from.
pub struct Environment<'a> {
    /// The targets and who may use them, as of now.
    pub directory: &'a Directory,
    /// The server's rules.
    pub policy: &'a LoginPolicy,
    /// Randomness for challenges.
    pub entropy: &'a mut dyn Entropy,
}

/// A PDU to send: header and data, digests never (RFC 7143 section 6.3: they begin with the full feature phase).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginReply {
    /// The header.
    pub bhs: Bhs,
    /// The data segment, not padded.
    pub data: Vec<u8>,
}

/// What the head of the stream gave.
#[derive(Clone, Debug)]
pub enum LoginReceive {
    /// Nothing can be done before this many bytes, counted from the head, are there. At most 48 + 1020 + 8192.
    NeedBytes(usize),
    /// A PDU of `len` bytes was handled.
    Pdu {
        /// Bytes to consume.
        len: usize,
        /// What to do.
        step: LoginStep,
    },
}

/// What to do after a Login Request.
#[derive(Clone, Debug)]
pub enum LoginStep {
    /// Send this and go on receiving.
    Reply(LoginReply),
    /// All is negotiated and proven. Ask the registrar; stop receiving until it answers.
    Establish(SessionIdentity),
    /// Send this, if there is anything, and close the connection.
    Close {
        /// The last PDU.
        reply: Option<LoginReply>,
        /// Why, for the operator.
        failure: LoginFailure,
    },
}

/// Who wants which session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionIdentity {
    /// InitiatorName.
    pub initiator_name: IscsiName,
    /// ISID.
    pub isid: [u8; 6],
    /// The target; `None` in a discovery session.
    pub target: Option<(TargetId, IscsiName)>,
    /// The portal group: with the three above, the name of the I_T nexus.
    pub portal_group_tag: u16,
    /// TSIH of the request: zero asks for a new session (and ends an old one of the same I_T nexus).
    pub tsih: u16,
    /// CID.
    pub connection_id: u16,
}

impl SessionIdentity {
    /// Whether this is a discovery session (RFC 7143 section 4.3).
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.target.is_none()
    }
}

/// Everything that a connection in full feature phase begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    /// Who.
    pub identity: SessionIdentity,
    /// The session's handle, chosen by the registrar.
    pub tsih: u16,
    /// The operational parameters.
    pub negotiated: Negotiated,
    /// The first CmdSN to expect.
    pub cmd_sn: u32,
    /// The next StatSN to send.
    pub stat_sn: u32,
    /// How the connection came in.
    pub arrival: Arrival,
}

/// Why a login ended without a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("login of {} refused with status {:04x}: {reason}", initiator_name.as_ref().map_or("an unnamed initiator", |name| name.as_str()), status.0)]
pub struct LoginFailure {
    /// The status that the initiator was told; it is told nothing when the connection did not begin with a Login Request.
    pub status: LoginStatus,
    /// The rule that was broken.
    pub reason: String,
    /// Who it was, as far as it is known.
    pub initiator_name: Option<IscsiName>,
}

impl Default for LoginPolicy {
    fn default() -> LoginPolicy {
        LoginPolicy {
            preferences: Preferences::default(),
            chap_algorithms: ALGORITHMS.to_vec(),
            command_window: crate::limits::COMMANDS_PER_SESSION_MAX,
        }
    }
}

/// The login phase of one connection.
#[derive(Debug)]
pub struct Login {
    arrival: Arrival,
}

#[allow(clippy::todo, unused_variables)]
impl Login {
    /// A login that has not begun.
    #[must_use]
    pub fn new(arrival: Arrival) -> Login {
        Login { arrival }
    }

    /// Look at the bytes at the head of the stream.
    pub fn receive(&mut self, bytes: &[u8], environment: &mut Environment<'_>) -> LoginReceive {
        todo!()
    }

    /// Handle one whole PDU: its header and its data segment without padding.
    pub fn handle(&mut self, bhs: &Bhs, data: &[u8], environment: &mut Environment<'_>) -> LoginStep {
        todo!()
    }

    /// The registrar has made the session: the last reply of the login, and what the connection begins with.
    ///
    /// # Panics
    /// When the last step was not [`LoginStep::Establish`], or `tsih` is zero.
    #[must_use]
    pub fn granted(self, tsih: u16, policy: &LoginPolicy) -> (LoginReply, Established) {
        todo!()
    }

    /// The registrar has refused: the last reply of the login.
    #[must_use]
    pub fn refused(self, status: LoginStatus) -> LoginReply {
        todo!()
    }
}
