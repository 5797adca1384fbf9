//! Ticks of the schedule that planned nothing: each of them ends well, so that only what is kept about them shows that a copy
//! grows old.

use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::Result;
use crate::model::Record;
use crate::ports::Store;
use crate::slots::record;

/// The record that counts them.
const UNPLANNED: &str = "unplanned";

/// Why a tick planned nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyUnplanned {
    /// Another planner was at work.
    OtherPlanner,
    /// All slots of the source stayed taken, or the time ran out before one was free.
    NoSlot,
    /// The time ran out before the plan was whole; the next tick goes on.
    TimeOver,
    /// Source or store could not do what planning takes.
    Failed,
}

impl WhyUnplanned {
    /// For people.
    #[must_use]
    pub fn explanation(self) -> &'static str {
        match self {
            Self::OtherPlanner => "another planner was at work",
            Self::NoSlot => "all slots of the source stayed taken",
            Self::TimeOver => {
                "the time was over before the plan was whole, and the next tick goes on"
            }
            Self::Failed => "planning failed; the planner's log says why",
        }
    }
}

/// Ticks in a row that planned nothing, up to the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unplanned {
    /// How many occurrences of the schedule.
    pub ticks: u64,
    /// When the first of them gave up.
    pub since: Instant,
    /// Why the last one planned nothing.
    pub reason: WhyUnplanned,
    /// The run that the last one would have planned: an occurrence that is tried again counts once.
    pub run: String,
}

impl Engine {
    /// Keeps for the report how a tick ended; `reason` = why it planned nothing, `None` if it planned.
    pub(super) async fn note_planning(
        &self,
        run: &str,
        reason: Option<WhyUnplanned>,
    ) -> Result<()> {
        loop {
            let (kept, before) = kept(self.store.as_ref()).await?;
            let after = reason.map(|reason| match &before {
                Some(before) => Unplanned {
                    ticks: before.ticks + u64::from(before.run != run),
                    since: before.since,
                    reason,
                    run: run.to_owned(),
                },
                None => Unplanned {
                    ticks: 1,
                    since: self.clock.now(),
                    reason,
                    run: run.to_owned(),
                },
            });
            if before == after {
                return Ok(());
            }
            let noted = Record {
                value: after.map_or_else(String::new, |after| serde_json::json!(after).to_string()),
                ..kept.clone()
            };
            let swapped = self.store.ledger().swap_record(&kept, &noted).await?;
            if swapped.is_some() {
                return Ok(());
            }
        }
    }
}

/// The ticks in a row that planned nothing; `None` if the last one planned.
pub(super) async fn unplanned(store: &dyn Store) -> Result<Option<Unplanned>> {
    Ok(kept(store).await?.1)
}

async fn kept(store: &dyn Store) -> Result<(Record, Option<Unplanned>)> {
    let kept = record(store, UNPLANNED).await?;
    // One that this program does not understand says nothing: the next tick replaces it.
    let unplanned = serde_json::from_str(&kept.value).ok();
    Ok((kept, unplanned))
}
