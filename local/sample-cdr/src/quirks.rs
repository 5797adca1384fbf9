//! Ways of a server that are no accident: they last, and its answers look well. What goes wrong with single answers is in
//! [`faults`](crate::Fault).

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::world::Row;

/// How a server answers queries otherwise than EHRbase does out of the box.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quirks {
    /// Answers to queries end after so many rows, lines of counts included, and do not say so.
    pub most_rows: Option<u64>,
    /// More rows than this may not be asked for: 422, as with EHRbase's `max-fetch`.
    pub max_fetch: Option<u64>,
    /// Conditions on the EHR hold for every EHR.
    pub ignores_ehrs: bool,
    /// Conditions on the template hold for every template.
    pub ignores_templates: bool,
    /// Counts and lists are right, pages with content have no rows.
    pub has_no_pages: bool,
    /// Commit times have nine digits, are compared to the last one, and differ inside a microsecond.
    pub nanoseconds: bool,
    /// Compositions, by number, whose uid names a branch.
    pub branches: BTreeSet<u64>,
    /// Compositions, by number, without a change type.
    pub no_change_type: BTreeSet<u64>,
    /// Compositions, by number, whose content is a text.
    pub no_object: BTreeSet<u64>,
}

impl Quirks {
    /// Nanoseconds behind the microsecond of a row's commit time. Grows with the object id, so that rows of one microsecond
    /// stay in the order they have without it.
    pub(crate) fn nanos(&self, row: &Row) -> i64 {
        match self.nanoseconds {
            true => 1 + ((row.object_id >> 119) as i64),
            false => 0,
        }
    }
}
