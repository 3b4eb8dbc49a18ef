//! Reservations (SPC-5 clause 5.14, and RESERVE and RELEASE of SPC-2): who may use a unit.
//!
//! [`Reservations`] is the state of one unit, a pure state machine over registrations keyed by I_T nexus
//! ([`Nexus`]: the initiator's name and ISID, and the target port). Its owner is the unit's home shard:
//!
//! 1. PERSISTENT RESERVE OUT reaches home with its parameter list; home clones the state and [`Reservations::apply`]s
//!    the change to the clone. Anything but GOOD has changed nothing.
//! 2. If [`Reservations::to_bytes`] says something else than before, that is made durable (APTPL).
//! 3. The new state goes to every shard, which computes for each of its sessions the [`Standing`] on the unit and
//!    acknowledges. [`execute`](super::execute()) holds every command against the standing of its nexus.
//! 4. The effects that `apply` reported (unit attentions, commands to abort) are carried out; then the command is
//!    answered.
//!
//! PERSISTENT RESERVE IN can be answered from any shard's copy ([`Reservations::report`]).

mod change;
mod commands;
mod nexus;
pub mod place;
mod report;
mod request;
mod standing;
mod state;
mod stored;
#[cfg(test)]
mod tests;
mod unit_reserve;

pub use change::{Change, Effect};
pub(super) use commands::{release_unit, reserve_in, reserve_out, reserve_unit};
pub use nexus::{InitiatorPort, Nexus};
pub use report::ReserveIn;
pub use request::ReserveOut;
pub use standing::Standing;
pub use state::{ReservationKind, Reservations};
pub use stored::StoredError;
