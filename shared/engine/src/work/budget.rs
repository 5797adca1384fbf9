//! How long work may go on.

use std::time::Duration;

use tokio::time::Instant as Moment;
use tokio_util::sync::CancellationToken;

/// How long work may go on. Looked at before each page, so that it ends at a page boundary.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    /// Cancelled by a signal.
    pub stop: CancellationToken,
    /// Cancelled when somebody else needs the slot of the source more.
    pub give_way: CancellationToken,
    /// Latest moment at which another page may be begun; `None` = any. Not by a clock that others may set.
    pub until: Option<Moment>,
}

impl Budget {
    /// Whether no further page may be begun.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.stop.is_cancelled() || self.give_way.is_cancelled() || self.is_over()
    }

    /// Whether its time is over, so that it did not end for a reason of somebody else's.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Moment::now() >= until)
    }

    /// Whether so much time is left.
    #[must_use]
    pub fn has(&self, time: Duration) -> bool {
        !self.is_spent() && self.until.is_none_or(|until| Moment::now() + time < until)
    }
}
