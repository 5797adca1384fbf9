//! Custom handler.
fn main() {}
