//! What the server was asked and what it cost, counted since its start.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use crate::query::Kind;

/// A copy of the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Requests of any kind, faulty answers included. Requests under `/sample` are not counted.
    pub requests: u64,
    /// AQL queries for whole compositions.
    pub aql_pages: u64,
    /// AQL queries for rows without compositions.
    pub aql_lists: u64,
    /// AQL queries with COUNT, MIN or MAX.
    pub aql_aggregates: u64,
    /// Answers that a scripted fault replaced or damaged.
    pub faults: u64,
    /// The most requests that were ever open at once, from their head to the end of their answer.
    pub most_at_once: u64,
    /// Bytes of answers handed to connections, after compression, without heads.
    pub body_bytes: u64,
    /// Compositions written as text.
    pub compositions: u64,
    /// Rows looked at to find and count those of answers: what queries cost.
    pub rows_examined: u64,
}

/// The counters of a running server.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: AtomicU64,
    aql_pages: AtomicU64,
    aql_lists: AtomicU64,
    aql_aggregates: AtomicU64,
    pub(crate) faults: AtomicU64,
    open: AtomicU64,
    most_at_once: AtomicU64,
    pub(crate) body_bytes: AtomicU64,
    pub(crate) compositions: AtomicU64,
    rows_examined: AtomicU64,
}

impl Tally {
    pub(crate) fn examine(&self) {
        self.rows_examined.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_query(&self, kind: Kind) {
        let counter = match kind {
            Kind::Page => &self.aql_pages,
            Kind::List => &self.aql_lists,
            Kind::Aggregate => &self.aql_aggregates,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn open(&self) {
        let open = self.open.fetch_add(1, Relaxed) + 1;
        self.most_at_once.fetch_max(open, Relaxed);
    }

    pub(crate) fn close(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    pub(crate) fn read(&self) -> Counters {
        Counters {
            requests: self.requests.load(Relaxed),
            aql_pages: self.aql_pages.load(Relaxed),
            aql_lists: self.aql_lists.load(Relaxed),
            aql_aggregates: self.aql_aggregates.load(Relaxed),
            faults: self.faults.load(Relaxed),
            most_at_once: self.most_at_once.load(Relaxed),
            body_bytes: self.body_bytes.load(Relaxed),
            compositions: self.compositions.load(Relaxed),
            rows_examined: self.rows_examined.load(Relaxed),
        }
    }
}
