//! How runs are cut, and what a plan is.

use std::collections::BTreeSet;
use std::time::Duration;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;

use crate::model::{Slice, Watermark};

/// How runs are cut into slices.
#[derive(Debug, Clone, Copy)]
pub struct PlanTerms {
    /// The cut lies this far before the source's clock: a commit time is taken when a request starts, and the row
    /// shows up later.
    pub safety_lag: Duration,
    /// How far before the watermark uids are compared again.
    pub overlap: Duration,
    /// Compositions in a slice at most.
    pub slice_size: u64,
    /// Uids in one listing.
    pub list: usize,
}

impl Default for PlanTerms {
    fn default() -> Self {
        Self {
            safety_lag: Duration::from_secs(60),
            overlap: Duration::from_secs(900),
            slice_size: 20_000,
            list: 10_000,
        }
    }
}

/// What a run will do.
#[derive(Debug)]
pub struct Plan {
    /// The source's clock.
    pub planned: Instant,
    /// Commit times before this belong to the run.
    pub cut: Instant,
    /// New slices.
    pub slices: Vec<Slice>,
    /// Watermarks that can be raised once its slices are kept: nothing else lies between them and the cut.
    pub watermarks: Vec<Watermark>,
    /// Templates that take part.
    pub templates: BTreeSet<TemplateId>,
}
