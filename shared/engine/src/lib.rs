//! The export engine: what decides which compositions are read, in which order they are
//! written, and how far a copy is complete. It knows no HTTP and no database.
//!
//! | module | what |
//! |---|---|
//! | [`ports`] | [`Source`](ports::Source), [`Store`](ports::Store), [`Clock`](ports::Clock): what the engine needs from the outside; the comments are the contract |
//! | [`model`] | the records that cross the ports: slices, pages, cursors, counts, quarantine, runs |
//! | [`error`] | one error type: kind, what was tried, cause, fix; and what is done about each kind |
//! | [`plan`] | census to slices: what is new, split by counting |
//! | [`page`] | reads the pages of a slice: adapts their size, isolates what the server cannot read |
//! | [`convert`] | a page of the source to a batch of the store, in the format that was chosen |
//! | [`flat`] | FLAT as such a format: templates kept, losses counted, a sample compared with the source's own |
//! | [`work`] | one slice from lease to last checkpoint, fetch, convert and write overlapped |
//! | [`seat`] | slots of the source, which all processes share |
//! | [`deliver`] | what a worker does with a message |
//! | [`tick`] | what the planner does when its timer fires; runs on demand |
//! | [`takeover`] | what a process finds whose predecessor died with the queue inside it |
//! | [`export`] | a whole run in one process. What the command line calls |
//! | [`report`] | how far the copy is |
//! | [`local`] | a queue inside one process |
//! | [`patience`] | a store that is asked again when it was briefly away |
//! | [`message`] | what travels over a queue |
//! | [`memory`] | stores and sources in memory, with scripted faults: the twin of the real ones in tests |
//!
//! ```text
//!  tick ───┬─► plan ──► slices ──► queue ──► deliver ──► work (×N, each from a seat at the source)
//!  export ─┘              ▲                     ▲          fetch ─► convert ─► commit   (page by page, overlapped)
//!                         │                     └── rest ──┤
//!                         └───────── cursor, fence, counts ┘
//! ```

pub mod convert;
pub mod deliver;
pub mod error;
pub mod export;
pub mod flat;
pub mod local;
pub mod memory;
pub mod message;
pub mod model;
pub mod page;
pub mod patience;
pub mod plan;
pub mod ports;
pub mod report;
pub mod seat;
pub mod takeover;
pub mod tick;
pub mod work;

pub use error::{Error, ErrorKind, Result};
