//! VHDX files that are made, checked, changed and repaired offline: by table of rules, by other people's programs, and
//! with the power cut at every write. The disks are put together by hand here, word by word, and read the same way, so
//! that nothing is judged by the code that wrote it.

#[path = "../vhdx_support/mod.rs"]
mod vhdx_support;

mod check;
mod crash;
mod create;
mod hand;
mod interop;
mod items;
mod mutation;
mod repair;
mod resize;
mod turns;
