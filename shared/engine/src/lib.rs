//! The export engine: what decides which compositions are read, in which order they are
//! written, and how far a copy is complete. It knows no HTTP and no database.
//!
//! | module | what |
//! |---|---|
//! | [`ports`] | [`Source`](ports::Source), [`Store`](ports::Store), [`Clock`](ports::Clock): what the engine needs from the outside; the comments are the contract |
//! | [`model`] | the records that cross the ports: slices, pages, cursors, counts, quarantine, runs |
//! | [`error`] | one error type: kind, what was tried, cause, fix; and what is done about each kind |
//! | [`plan`] | census to slices: what is new, split by counting |
//! | [`work`] | one slice from lease to last checkpoint: pages, conversion, commits |
//! | [`slots`] | slots of the source, which all processes share |
//! | [`suite`] | what planner, workers and reporter of a cloud do |
//! | [`export`] | a whole run in one process. What the command line calls |
//! | [`local`] | a queue inside one process |
//! | `listing` | all that a source lists of a scope, part by part |
//! | [`checked`] | a source whose every row is compared with the question that was asked |
//! | [`wrapped`] | a store with something around each of its calls |
//! | [`retrying`] | a store that is asked again when it was briefly away |
//! | [`message`] | what travels over a queue |
//! | [`memory`] | stores and sources in memory, with scripted faults: the twin of the real ones in tests |
//!
//! ```text
//!  plan_and_repair ─┬─► plan ──► slices ──► queue ──► deliver ──► work (×N, each with a slot of the source)
//!  export ──────────┘              ▲                     ▲          fetch ─► convert ─► commit   (page by page, overlapped)
//!                                  │                     └── rest ──┤
//!                                  └───────── cursor, fence, counts ┘
//! ```

pub mod checked;
pub mod engine;
pub mod error;
pub mod export;
pub mod lease;
mod listing;
pub mod local;
pub mod memory;
pub mod message;
pub mod model;
pub mod plan;
pub mod ports;
pub mod quarantine;
pub mod retrying;
pub mod seeded;
pub mod slots;
pub mod suite;
pub mod transform;
pub mod two_phase;
pub mod work;
pub mod wrapped;

pub use error::{Error, ErrorKind, Result};
