//! What the engine needs from the outside. The comments are the contract: whoever implements a
//! port keeps it, and the shared suites check it.
//!
//! | module | port |
//! |---|---|
//! | `source` | [`Compositions`], [`Definitions`], [`FlatOracle`]: together a [`Source`] |
//! | `rows` | [`Rows`] with its [`Index`]: the copy |
//! | `ledger` | [`Ledger`]: slices, watermarks, runs, records, quarantine |
//! | `store` | [`Templates`], and the [`Store`] that all of them are, with one `commit` |
//! | `outside` | [`Queue`], [`Clock`], [`Observer`] |

mod ledger;
mod outside;
mod rows;
mod source;
mod store;

pub use ledger::{Hold, Ledger};
pub use outside::{Clock, Event, Observer, Queue};
pub use rows::{Index, Rows};
pub use source::{Compositions, Definitions, FlatOracle, Source};
pub use store::{Store, Templates};
