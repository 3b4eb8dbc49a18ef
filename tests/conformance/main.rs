//! Whether the server keeps to iSCSI and SCSI, as others and the standards have it.
//!
//! [`iscsi_test_cu`] runs libiscsi's test program, each test against a table of what is expected of it.
//!
//! The others speak PDUs of their own making, by subject; each names the sections of RFC 7143 that it holds the server
//! to. `README.md` lists them by section, with the defect that each was seen to fail with.

mod data_in;
mod data_out;
mod digests;
mod iscsi_test_cu;
mod login;
mod numbering;
mod requests;
#[path = "../interop/server.rs"]
#[allow(dead_code, reason = "the interoperability tests use more of it")]
mod server;
mod support;
mod table;
mod task_management;
mod text;
