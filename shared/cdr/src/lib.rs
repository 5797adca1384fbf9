//! [`Cdr`]: an openEHR server as the engine's [`Source`](atlas_engine::ports::Source), over REST and AQL.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | where the server is and how it is asked |
//! | `source` | the port's methods, one by one |
//! | `dialect` | the text of every query, and nothing else |
//! | `table` | an AQL answer: its text kept once, its rows located in it, rows that are no compositions set apart |
//! | `place` | the place of a row in the server's order, finer than a microsecond where the server is |
//! | `http` | one request with its retries, limits and time-outs |
//! | `said` | the reason of a refusal, without what it echoes, and the limit that it names |
//! | `failure` | what can go wrong with one attempt, and the whole policy about it |
//! | `clock` | the server's clock beside this machine's |
//! | `auth` | the `Authorization` header; OIDC tokens are fetched, kept and renewed |
//!
//! ```text
//!  source ──► dialect ──► http ──► attempt ──► (auth) ──► server
//!     ▲                    │  ▲       │
//!     └── table ◄── text ──┘  └ wait ◄┴ failure
//! ```
//! Nothing of an answer, no parameter and no secret goes into a log or an error: status, size, time, and of a refusal the
//! words that name no one.

mod auth;
mod clock;
pub mod config;
mod dialect;
mod failure;
mod http;
mod place;
mod said;
mod source;
mod table;

pub use config::{Auth, Config, Oidc, Retry, Tls, Vendor};
pub use source::{Cdr, ServerInfo};
