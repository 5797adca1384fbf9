//! The time the server believes it is: the real one, or one that a test turns by hand.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use jiff::Timestamp;

/// Where the server takes the time from: its `Date` header, new commits, what is visible yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The clock of the machine.
    #[default]
    Real,
    /// Stands still until [`crate::Handle::advance`] moves it.
    Fixed(Timestamp),
}

/// A clock that runs, or stands, in a server.
#[derive(Debug)]
pub(crate) enum Ticking {
    Real,
    /// Microseconds since 1970.
    Fixed(AtomicI64),
}

impl Ticking {
    pub(crate) fn new(clock: Clock) -> Self {
        match clock {
            Clock::Real => Self::Real,
            Clock::Fixed(at) => Self::Fixed(AtomicI64::new(at.as_microsecond())),
        }
    }

    pub(crate) fn now_us(&self) -> i64 {
        match self {
            Self::Real => Timestamp::now().as_microsecond(),
            Self::Fixed(at) => at.load(Ordering::SeqCst),
        }
    }

    /// Moves a fixed clock; a real one goes by itself.
    pub(crate) fn advance(&self, by: Duration) {
        if let Self::Fixed(at) = self {
            let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
            at.fetch_add(by, Ordering::SeqCst);
        }
    }
}
