//! Real servers for tests, which leave nothing behind.
//!
//! - `postgres`: a private PostgreSQL cluster, with or without TLS.
//! - `exporter`: a database whose tables belong to one role while another one exports.
//! - `launcher`: EHRbase's program, built once from its published packages.
//! - `server`: a running EHRbase, and what tests ask of it.
//! - [`corpus`]: the compositions of the conformance corpus, once or many times over, or under further template ids.
//! - `filled`: an EHRbase with as many compositions as a benchmark needs, filled once.
//! - `shared`: the servers that one test run shares.
//! - `process`: how a server ends with the process that started it.
//!
//! The program `atlas-test-servers` starts both: `cargo xtask test` runs it, and so can you to try something by hand
//! (`cargo run -p atlas-ehrbase [COMPOSITIONS]`).

pub mod corpus;
mod error;
mod exporter;
mod filled;
mod launcher;
mod postgres;
mod process;
mod server;
mod shared;

pub use error::{Error, ErrorKind, Result, chain};
pub use exporter::{EXPORTER, EXPORTER_PASSWORD, Prepared};
pub use filled::{Filled, Filling, filled};
pub use postgres::{Postgres, SUPERUSER};
pub use server::{Access, EhrBase};
pub use shared::{
    ENV_EHRBASE, ENV_POSTGRES, Shared, SharedEhrBase, SharedFile, shared, shared_postgres,
};
