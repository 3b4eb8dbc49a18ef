//! The shard: one pinned thread with its own ring, memory and connections, and the loop that serves them.
//!
//! A turn ([`run`]) reaps completions and messages, runs every connection that has something to do as far as it can go,
//! and then submits what came of it: one gathered send for each connection. Nothing here blocks, takes a lock or
//! (between login and logout) allocates; two rare things do allocate: the answer to a Text Request, and a VHDX's log
//! buffers at its first write.
//!
//! | file | subject |
//! |---|---|
//! | `run` | the turn, waiting and spinning, timers |
//! | `hear` | messages from other shards and from the control plane, and what they set going |
//! | `core` | what all connections of a shard share: ring, memory, disks, mail |
//! | `link` | one TCP connection: buffers, receive and send, teardown by join |
//! | `login`, `newcomers` | the connection before full feature phase; how many such there may be |
//! | `session` | LUNs and tasks of a connection in full feature phase |
//! | `input` | from received bytes to events, and their dispatch |
//! | `command` | a SCSI command's start, and its end |
//! | `at_once` | commands that need nothing but memory |
//! | `read`, `write` | how a command's data moves between connection and medium |
//! | `provision` | UNMAP, WRITE SAME, GET LBA STATUS |
//! | `reserve` | reservations and target port groups |
//! | `agreement` | what all shards must agree on about a disk beside its blocks |
//! | `order` | which command may begin, by its task attribute |
//! | `compare` | COMPARE AND WRITE and ORWRITE |
//! | `atomic` | WRITE ATOMIC |
//! | `log` | LOG SENSE |
//! | `parameters` | commands whose data is a parameter list |
//! | `copy` | copies between disks, and tokens |
//! | `management` | aborts, resets, logout |
//! | `resend` | Data-In that an initiator has missed |
//! | `group` | sessions of several connections, and connections that take another's place |
//! | `fence` | what a function waits for on other initiators' sessions |
//! | `record` | notes of what a disk is asked for, for traces |
//! | `overdue` | commands that wait too long, and the operations that they leave behind |
//! | `pause` | who is at work on a disk's files, and keeping everybody away from them for a moment |
//! | `exclusive` | ranges of a disk that one command has to itself, on all shards |
//! | `erase` | FORMAT UNIT and SANITIZE |
//! | `settings` | what a unit is set to, on all shards |
//! | `change` | another form of a disk in its place, and what else the control plane asks of a home shard |
//! | `home` | what a disk's home shard does for all: space, visibility, pages of maps, flushes |
//! | `driver`, `load` | an engine's operations, and pages of maps, on the ring |
//! | `registrar` | session identities (shard 0) |
//! | `peer`, `message`, `mailbox` | what shards and the control plane say to each other |
//! | `notices` | bounds on log lines that peers cause |
//! | `threads`, `placement` | starting and pinning |
//!
//! **May know:** `iscsi`, `scsi` (through `iscsi` and `medium`), `medium`, `blocks` (the engines it drives), `ring`,
//! `mem`, `observe`. Nothing of the control plane.

mod agreement;
mod at_once;
mod atomic;
mod change;
mod command;
mod compare;
mod copy;
mod core;
mod driver;
mod erase;
mod exclusive;
mod fence;
mod group;
mod hear;
mod home;
mod input;
mod link;
mod load;
mod log;
mod login;
mod mailbox;
mod management;
pub mod message;
mod newcomers;
mod notices;
mod order;
mod output;
mod overdue;
mod parameters;
mod pause;
mod peer;
pub mod placement;
mod provision;
mod read;
pub mod record;
mod registrar;
mod resend;
mod reserve;
mod run;
mod session;
mod settings;
mod threads;
mod write;

pub use agreement::{PlaceMaker, PlaceWanted, ReservationStore};
pub(crate) use mailbox::{Mailbox, PEER_MESSAGES_MAX, Sender, Senders, mailbox, mailbox_with_room};
pub use message::{
    Configuration, ConnectionInfo, DetachError, EngineReport, Hold, LunMap, Mapping, Mask, PauseError, Reply,
    SessionInfo, TargetPort, ToShard,
};
pub use overdue::IO_DEADLINE_MS;
pub(crate) use run::Parts;
pub use run::Shard;
pub use settings::{DiskSettings, Keep, Keeper, Kept, Unfinished};
pub use threads::{Shards, ShardsConfig, StartError, portal_listeners};
