//! `local-hosts azure|lambda`: the suite on this machine.
fn main() {}
