//! Lunaring: a userspace iSCSI target for Linux. Start reading here.
//!
//! # The two planes
//!
//! ```text
//!   initiators ══TCP══►  shard 0 … shard N-1            control plane
//!                        (one pinned thread each)        (one thread)
//!    NIC RX queue k ──►  shard k                         unix socket: HTTP/1.1 + JSON API
//!                        link → iscsi → scsi             metrics (Prometheus), configuration file
//!                          → medium (vhdx, vhd) → ring ◄────►
//!                                           bounded mailboxes only
//! ```
//!
//! A **shard** ([`shard`]) is one thread on one CPU with its own io_uring ([`ring`]), its own memory ([`mem`]) and the
//! connections that the kernel steers to it. It never blocks, takes a lock, logs on the fast path, or allocates between
//! login and logout. The **control plane** ([`control`]) is everything that is not an initiator's I/O; it reaches
//! shards by message only, and the command line ([`cli`]) reaches it over a unix socket.
//!
//! # The way of a command
//!
//! READ: received bytes → [`iscsi::connection`] parses the header in place and checks CmdSN and digests →
//! [`scsi::execute()`] looks the opcode up in its command table and says what the medium has to do →
//! [`medium::Disk::plan_read`] gives extents of the files of the disk's chain ([`blocks::Chain`]) → the ring reads them
//! into an owned buffer → headers and that same buffer leave in one gathered send, GOOD in the last Data-In.
//!
//! WRITE: immediate data, unsolicited and solicited Data-Out gather in one aligned buffer (large payload is received
//! straight into it) → digests are checked → [`medium::Disk::plan_write`] gives extents, or the disk's home shard is
//! asked to prepare the range → the ring writes them → where what was written is not visible yet (a differencing disk),
//! the home shard commits it → status.
//!
//! # Modules, and what each may use
//!
//! ```text
//! main → cli ; main → control → jobs → shard → { iscsi, scsi, medium, ring, mem, observe }  sim → { shard, ring, mem }
//! iscsi → scsi     medium → { vhdx, vhd, scsi, ring, mem, observe }     vhdx, vhd → blocks     blocks, scsi → nothing
//! ring → mem
//! ```
//!
//! `bounded`, `crc32c`, `limits` and `units` are leafs that all may use. [`iscsi`], [`scsi`], [`blocks`], [`vhdx`] and
//! [`vhd`] are sans-IO: no sockets, files, clocks or threads; time and randomness are arguments. `unsafe` lives in
//! [`ring`] and [`mem`] only. `tests/tidy.rs` holds all of this.
//!
//! # What always holds
//!
//! * **The promise of GOOD.** A write is answered GOOD only once its bytes, and every metadata change it needs, have
//!   left the process. SYNCHRONIZE CACHE and FUA make it durable, and the caching mode page says so. Held by
//!   `tests/interop` (a hundred times `kill -9` under a verifying load) and `tests/vhdx_crash.rs` (power cuts at every
//!   write).
//! * **Who owns a buffer.** An operation owns its buffers while the kernel may touch them ([`ring`]); a connection is
//!   closed only when everything of it has come back ([`shard`]). Held by `tests/ring_parity`.
//! * **Home shards.** One shard alone changes a disk's metadata; all others read a lock-free map ([`blocks::BlockMap`])
//!   and ask by message.
//! * **Space changes hands behind a barrier.** What a block leaves is given to another only when its entry is durable,
//!   every plan of every shard that could still use it has been carried out, and the space reads as zeros durably.
//! * **Parents do not change.** A chain's lower files are opened once and never written while anybody reads through
//!   them, except where a layer above hides every byte that is written (merging).
//! * **Reading and writing back is one thing.** COMPARE AND WRITE and ORWRITE have their blocks to themselves on all
//!   shards, by grant of the home shard. Held by the scenario `shared` of `tests/sim_shard.rs` and by `tests/interop`.
//! * **An atomic write is whole or is not.** WRITE ATOMIC is offered only where that holds for every reader, after a
//!   kill, and after a power cut, whoever replays the log. Held by the same, and by `tests/vhdx_crash.rs`.
//! * **A file that hangs is nobody else's trouble.** Its commands end with ABORTED COMMAND, the kernel keeps its
//!   buffers, and nothing of the disk is read or written until what may still come late has come. Held by the scenario
//!   `hung`.
//! * **What runs is what is simulated.** [`shard::Shard`] is generic over [`ring::Ring`]; [`sim`] is the second
//!   implementation, seeded. Held by `tests/ring_parity` and `tests/sim_shard.rs`.
//! * **Everything is bounded** ([`limits`]). What is full refuses by protocol: a closed command window, a delayed R2T,
//!   BUSY, TCP.
//! * **Nothing that a peer, a file or a user sends ends in a panic.** Held by the mutation tests of each engine and the
//!   storm of `tests/interop`.
#![deny(unsafe_code)]

pub mod blocks;
pub mod bounded;
pub mod cli;
pub mod control;
pub mod crc32c;
pub mod iscsi;
pub mod jobs;
pub mod limits;
pub mod medium;
pub mod mem;
pub mod observe;
pub mod ring;
pub mod scsi;
pub mod shard;
pub mod sim;
pub mod units;
pub mod vhd;
pub mod vhdx;
