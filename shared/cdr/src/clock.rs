//! The server's clock beside this machine's. Atlas goes by the server's, which says up to where a run reads: one that is far off
//! is told, and not believed where the server itself shows the contrary.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use atlas_openehr::time::Instant;
use tracing::warn;

use crate::failure::Failure;

/// Compares clocks, and tells once when they part.
pub(crate) struct ClockWatch {
    /// How far they may be apart: `openehr.max_clock_skew_seconds`.
    most: Duration,
    /// Whether it was told.
    is_told: AtomicBool,
}

impl ClockWatch {
    pub(crate) fn new(most: Duration) -> Self {
        Self {
            most,
            is_told: AtomicBool::new(false),
        }
    }

    /// Looks at the clock of an answer.
    pub(crate) fn look(&self, server: Instant) {
        let Some(skew) = self.skew(server) else {
            self.is_told.store(false, Ordering::Relaxed);
            return;
        };
        if self.is_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let direction = match server < now() {
            true => "behind",
            false => "ahead of",
        };
        warn!(
            skew_seconds = skew.as_secs(),
            "the clock of the openEHR server says {server}, {} s {direction} this machine's, and more than \
             openehr.max_clock_skew_seconds ({}) allows: Atlas reads up to what that clock says. Synchronise both with NTP",
            skew.as_secs(),
            self.most.as_secs()
        );
    }

    /// Holds a server's clock against the last commits that it names. A single commit time can be wrong, and so can the clock of
    /// this machine; but a clock that is far off and lies before commits of its own server leaves them out of every run.
    ///
    /// # Errors
    /// [`Failure::Clock`].
    pub(crate) fn check(
        &self,
        server: Instant,
        mut last_commits: impl Iterator<Item = Instant>,
    ) -> Result<(), Failure> {
        let believable = server.saturating_add(self.most);
        if self.skew(server).is_some() && last_commits.any(|last| last > believable) {
            return Err(Failure::Clock { says: server });
        }
        Ok(())
    }

    /// How far the clocks are apart, if that is too far.
    fn skew(&self, server: Instant) -> Option<Duration> {
        let now = now();
        let skew = now.duration_since(server).max(server.duration_since(now));
        (skew > self.most).then_some(skew)
    }
}

/// The clock of this machine.
pub(crate) fn now() -> Instant {
    Instant::from_micros(jiff::Timestamp::now().as_microsecond()).unwrap_or(Instant::EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(300);

    #[test]
    fn a_clock_before_its_own_commits_is_believed_only_while_it_is_near_ours() {
        let watch = ClockWatch::new(MOST);
        let hour = Duration::from_secs(3_600);
        let (past, future) = (now().saturating_sub(hour), now().saturating_add(hour));
        let check = |server, last| {
            watch
                .check(server, [Instant::EPOCH, last].into_iter())
                .is_ok()
        };
        // One commit time that is wrong, seen by a clock that is right.
        assert!(check(now(), Instant::MAX));
        assert!(check(now(), now()));
        // A clock that is off, and shows no contrary.
        assert!(check(past, past));
        assert!(check(past, past.saturating_add(MOST)));
        assert!(check(future, now()));
        for server in [past, Instant::EPOCH, Instant::MIN] {
            assert!(!check(server, now()));
        }
        assert!(watch.check(Instant::EPOCH, std::iter::empty()).is_ok());
    }

    #[test]
    fn it_is_told_once_and_again_after_it_was_right() {
        let watch = ClockWatch::new(MOST);
        let is_told = || watch.is_told.load(Ordering::Relaxed);
        watch.look(now());
        assert!(!is_told());
        for far in [Instant::MIN, Instant::EPOCH, Instant::MAX] {
            watch.look(far);
            assert!(is_told());
        }
        watch.look(now());
        assert!(!is_told());
    }
}
