//! A Functions host and a Lambda host: they start the shipped programs as child processes and speak only the
//! wire protocol with them. They link no handler code.

pub mod azure;
pub mod lambda;
pub mod process;
