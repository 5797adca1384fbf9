//! The records that cross the ports. Times are instants in UTC, to the microsecond; intervals are half-open.
//!
//! | module | what |
//! |---|---|
//! | `source` | what a source is asked and answers: scopes, cursors, metas, pages, censuses |
//! | `selection` | what a copy selects, and what a run is asked to do |
//! | `slice` | the unit of work, of lease and of checkpoint |
//! | `rows` | the copy: keys, rows, what landing a page answers, what is read back |
//! | `commit` | a page on its way into the store, and what it means for its slice |
//! | `counts` | how many compositions took which way |
//! | `quarantine` | what could not be copied, and why |
//! | `watermark` | how far a template is complete |
//! | `run` | the records of runs |
//! | `record` | small control records: leases, slots, reports |
//! | `template` | web templates as the store keeps them |

mod commit;
mod counts;
mod quarantine;
mod record;
mod rows;
mod run;
mod selection;
mod slice;
mod source;
mod template;
mod watermark;

pub use commit::{Commit, Committed, counts_of};
pub use counts::{Counts, PageCounts};
pub use quarantine::{
    QuarantineCount, QuarantineFilter, QuarantinePlace, Quarantined, Reason, Rejected,
};
pub use record::{LeaseTerms, Record};
pub use rows::{
    Batch, Body, DeleteReason, Deleted, Held, Known, LandAnswer, Landed, LandedPage, Landing,
    NewRow, RefusedRow, RowKey, Scan, SideRow, StoredRow, Way, judge,
};
pub use run::{Cut, Origin, Outcome, Run, RunPhase};
pub(crate) use selection::short_digest;
pub use selection::{Format, Mode, Request, Selection, SelectionKey};
pub use slice::{Member, Slice, SliceFilter, SliceKind, SliceState, SliceTotals, SlicesOf, Totals};
pub use source::{Census, CensusLine, Cursor, Meta, Misfit, Page, Row, Scope, Usage, Window};
pub use template::{StoredTemplate, TemplateCounts};
pub use watermark::{ALL_TEMPLATES, Watermark};

/// Gives the variants of an enum the names by which configuration, stores and reports know them.
macro_rules! named {
    ($type:ident { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// The name in configuration, stores and reports.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The variant of that name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}
use named;
