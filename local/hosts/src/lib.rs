//! A Functions host and a Lambda host: they start the shipped programs as child processes and speak only the
//! wire protocol with them. They link no handler code.

pub mod azure;
mod journal;
pub mod lambda;
mod laptop;
pub mod process;

pub use journal::JournalError;
