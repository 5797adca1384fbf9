//! Bugs that a test can plant, to see that the simulation catches them: the test of the tests. Switched at run time, for the
//! thread that plants one; builds without debug assertions cannot have any.

#[cfg(debug_assertions)]
use std::cell::Cell;

/// A bug that was or could have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The watermark is raised when slices are planned.
    WatermarkBeforeRows,
    /// A slice that is only open carries the watermark.
    WatermarkOverOpenSlice,
    /// Paging goes on behind a commit time instead of behind a composition.
    TiesSkipped,
    /// A commit is taken from whoever sends it.
    FenceUnchecked,
    /// What became visible late is never looked for.
    OverlapZero,
    /// The census begins at the newest watermark instead of the oldest.
    CensusFromNewestWatermark,
    /// A compared uid counts as known in whatever version.
    ComparedByObjectOnly,
    /// Retries ask for EHRs that are not selected.
    RetryOutsideSelection,
    /// A page that was landed is landed again by the next worker.
    PageLandedTwice,
    /// The checkpoint is written before the rows.
    CheckpointBeforeRows,
    /// Every row that arrives counts as a new one.
    OutcomeTakenForCount,
    /// An older version replaces a newer one.
    OlderVersionWins,
    /// What cannot be read is counted, and written nowhere.
    QuarantineForgotten,
    /// A short page is the end of a slice.
    ShortIsTheEnd,
    /// A stop is taken for the end of a slice.
    StopIsTheEnd,
    /// The planner writes the record of a run as it knew it before.
    CancelOverwritten,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::WatermarkBeforeRows,
        Self::WatermarkOverOpenSlice,
        Self::TiesSkipped,
        Self::FenceUnchecked,
        Self::OverlapZero,
        Self::CensusFromNewestWatermark,
        Self::ComparedByObjectOnly,
        Self::RetryOutsideSelection,
        Self::PageLandedTwice,
        Self::CheckpointBeforeRows,
        Self::OutcomeTakenForCount,
        Self::OlderVersionWins,
        Self::QuarantineForgotten,
        Self::ShortIsTheEnd,
        Self::StopIsTheEnd,
        Self::CancelOverwritten,
    ];
}

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug in what this thread does from here on, or none.
#[cfg(debug_assertions)]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this very bug is planted.
#[cfg(debug_assertions)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Without debug assertions nothing is planted.
#[cfg(not(debug_assertions))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}
