//! Census to slices: what is new since the watermarks, split by counting until a slice is small enough.
//!
//! ```text
//!            watermark                 cut = the source's clock - safety lag
//!  ───────┼───────┼─────────────────────┼──────► commit time
//!         │ uids  │  slices to read ────┤  too young
//!  late_checked_until          │                 │
//! ```
//! An idle run asks the source twice: one census, one listing of the overlap. A row can become visible as late as the
//! overlap after its commit time; what was read or compared when it was younger than that is not checked for late rows, and is
//! compared again by the next run, however long ago it was read.
//!
//! | module | what |
//! |---|---|
//! | `terms` | how runs are cut, and what a plan is |
//! | `keeper` | where a plan is kept while it is made |
//! | `planner` | decides what a run does |
//! | `census` | what the source counts: a proven census, windows divided by counting |
//! | `overlap` | uids that are compared again |
//! | `contiguous` | how far finished slices carry a watermark |

mod census;
mod contiguous;
mod keeper;
mod overlap;
mod planner;
mod terms;

pub use census::proven_census;
pub use contiguous::watermark;
pub(crate) use contiguous::{is_behind, is_covered};
pub use keeper::{PlanKeeper, Unkept};
pub use planner::{PlanParts, plan};
pub use terms::{Plan, PlanTerms};
