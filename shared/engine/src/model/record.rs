//! Small control records that all processes share, and the times of leases.

use std::time::Duration;

use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

/// A small control record that all processes share: a lease with a value. Changed by compare-and-swap only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Unique in the store.
    pub name: String,
    /// Changes so far: what compare-and-swap compares.
    pub step: u64,
    /// Who holds it; `None` = nobody.
    pub owner: Option<String>,
    /// Until when the holder is left alone.
    pub until: Option<Instant>,
    /// JSON, or empty.
    pub value: String,
}

impl Record {
    /// As it is before anybody wrote it.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            step: 0,
            owner: None,
            until: None,
            value: String::new(),
        }
    }

    /// Whether somebody holds it at this instant.
    #[must_use]
    pub fn is_held(&self, now: Instant) -> bool {
        self.owner.is_some() && self.until.is_some_and(|until| until > now)
    }
}

/// Time-outs and limits of the slice protocol.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTerms {
    /// How long a worker is left alone after each checkpoint.
    pub duration: Duration,
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(90),
        }
    }
}
