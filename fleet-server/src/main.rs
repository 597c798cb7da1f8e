//! Stub, replaced by the next commits.
fn main() {}
