//! Lunaring.
fn main() {}
