//! The blocking boundary of control-plane work, which all formats share.

pub use crate::blocks::{Storage, StorageError};
