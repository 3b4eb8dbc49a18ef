//! The independent proof that our files are right: other people's programs, and a reader written from the
//! specifications, look at what we write, and we at what they write.

#[path = "../reference/mod.rs"]
mod reference;
#[path = "../interop/server.rs"]
#[allow(dead_code, reason = "the interoperability tests use more of it")]
mod server;
#[path = "../vhdx_support/mod.rs"]
mod vhdx_support;

mod judge;
mod made;
mod made_vhd;
mod matrix;
mod ours;
mod served;
mod specification;
mod trust;

use std::sync::Arc;

use vhdx_support::SparseFile;

/// The file as the reference reader takes it.
fn source(file: &SparseFile) -> Arc<dyn reference::Source> {
    let (file, len_bytes) = (file.clone(), file.len);
    Arc::new(reference::Bytes { len_bytes, read: move |offset, into: &mut [u8]| file.read(offset, into) })
}
