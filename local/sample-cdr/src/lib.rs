//! A small openEHR server with synthetic patients: for the demo, for tests and for benchmarks.
//!
//! It answers the requests that Atlas makes to EHRbase, and nothing more, from compositions that are made up
//! when they are read: a server with a million of them starts at once and needs no memory for them.
//! A test or the demo changes it while it runs, and scripts what goes wrong. It shares no code with Atlas, so that
//! a mistake there cannot hide itself here.
//!
//! | module | what |
//! |---|---|
//! | [`server`](SampleCdr) | builder, start and stop |
//! | [`handle`](Handle) | new versions, deletes, late arrivals, faults, counters of a running server |
//! | `routes` | the REST interface; what happens to every answer on its way out |
//! | `aql` | the part of AQL that is understood, as a syntax tree |
//! | `filter` | a WHERE clause with its parameters, and the window of rows it can hold for |
//! | `query` | which rows in which order, and the text of the answer |
//! | `world` | what exists: `base`, which is arithmetic, under the few compositions that were changed |
//! | `content`, [`templates`](Template) | compositions as canonical JSON, and the web templates they follow |
//! | [`quirks`](Quirks) | lasting ways in which a server differs: caps, limits, conditions that it ignores |
//! | [`faults`](Fault), `counters`, `clock` | scripted misbehaviour, what was asked, whose time it is |
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use atlas_sample_cdr::{Fault, On, SampleCdr, Template};
//!
//! let cdr = SampleCdr::builder().seed(7).compositions(20_000).start().await?;
//! let handle = cdr.handle();
//! handle.update(3);
//! handle.delete(17);
//! handle.commit(Template::VitalSigns);
//! handle.inject(Fault::CutBody { after_bytes: 5_000 }.next(1).on(On::AqlPages));
//! println!("{}", cdr.base_url());
//! # Ok(())
//! # }
//! ```

mod aql;
mod base;
mod clock;
mod content;
mod counters;
mod faults;
mod filter;
mod handle;
mod query;
mod quirks;
mod routes;
mod server;
mod templates;
mod world;

pub use clock::Clock;
pub use content::Profile;
pub use counters::Counters;
pub use faults::{Fault, On, Rule};
pub use handle::{Commit, Handle};
pub use query::Release;
pub use quirks::Quirks;
pub use server::{Running, SampleCdr, StartError};
pub use templates::Template;

/// Where the openEHR REST interface is mounted, behind the server's origin.
pub const REST_BASE: &str = "/ehrbase/rest/openehr/v1";
