//! One process that does everything and has the queue inside itself (`atlas serve`) takes over from the one before it. A
//! cloud's queue and the other workers outlive a process; here its messages are gone, and whoever holds a lease is dead.
//!
//! ```text
//!  lease ─► leases of dead workers: let go ─► open slices: a message each ─► runs that nobody planned: a message each
//! ```
//! Without this, work would wait until leases end (a slice, its slot of the source) and messages count as lost.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{RunLease, RunLeaseRequest};
use crate::message::Message;
use crate::model::{Origin, Record, Selection, SelectionKey, Slice, SliceState};
use crate::slots::SLOT;
use crate::suite::deliver::WORKER_OWNER;
use crate::suite::planner::{PLANNER, PLANNER_OWNER};

/// Name of the lease that such processes take.
const SERVE_LEASE: &str = "serve";

/// What a process found, and the lease that keeps others of its kind away as long as it lives.
pub struct TakenOver {
    /// Messages that were sent for what was left.
    pub sent: usize,
    /// Once it is lost, this process must begin nothing more.
    pub lease: RunLease,
}

impl Engine {
    /// Makes this process the only one of its kind on its store, and goes on at once with what the one before left: slices
    /// of the schedule's selection and of runs that have no end, and runs that were asked for and not planned.
    ///
    /// # Errors
    /// `Held` if another such process is alive; else what the store could not do: called again, it goes on.
    pub async fn take_over(
        &self,
        schedule: &Selection,
        stop: &CancellationToken,
    ) -> Result<TakenOver> {
        self.store.prepare().await?;
        self.follow_store_clock().await?;
        let lease = RunLeaseRequest {
            store: &self.store,
            clock: &self.clock,
            observer: self.observer.as_ref(),
            terms: self.run_lease,
            name: SERVE_LEASE,
            owner: format!("serve/{}", uuid::Uuid::now_v7()),
        };
        let Some(lease) = RunLease::take(lease, stop).await? else {
            return Err(Error::new(
                ErrorKind::Held,
                "begin to serve: another `atlas serve` works with this store",
            )
            .fix("stop the other one first, or give this one a store of its own"));
        };
        self.free_records().await?;
        let mut selections: BTreeSet<SelectionKey> = BTreeSet::from([schedule.key()]);
        let mut sent = 0;
        for origin in [Origin::Timer, Origin::OnDemand] {
            for run in self.store.ledger().unfinished_runs(origin).await? {
                if origin == Origin::OnDemand && run.cut.is_none() {
                    let message = Message::plan(&run.id);
                    self.queue.send(&message, Duration::ZERO).await?;
                    sent += 1;
                }
                selections.insert(run.selection);
            }
        }
        for selection in selections {
            for slice in self.store.ledger().slices(&selection).await? {
                if slice.state == SliceState::Open && self.send_orphan(slice).await? {
                    sent += 1;
                }
            }
        }
        Ok(TakenOver { sent, lease })
    }

    /// Sends the message of a slice unless somebody of another kind works on it, such as `atlas export`.
    async fn send_orphan(&self, slice: Slice) -> Result<bool> {
        let free = if is_of_dead(slice.owner.as_deref()) {
            let freed = Slice {
                fence: slice.fence + 1,
                owner: None,
                lease_until: None,
                ..slice.clone()
            };
            self.store.ledger().swap_slice(&slice, &freed).await?
        } else {
            Some(slice).filter(|slice| !slice.is_leased(self.clock.now()))
        };
        match free {
            Some(slice) => {
                self.enqueue(&slice).await?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Slots of the source and the planner's lease.
    async fn free_records(&self) -> Result<()> {
        let mut records = self.store.ledger().records(SLOT).await?;
        records.push(self.record(PLANNER).await?);
        for record in records {
            if is_of_dead(record.owner.as_deref()) {
                let free = Record {
                    owner: None,
                    until: None,
                    ..record.clone()
                };
                self.store.ledger().swap_record(&record, &free).await?;
            }
        }
        Ok(())
    }
}

/// Functions of a cloud have the same owners, but never the same store as `serve`. If they had, they would lose a lease
/// once, and stop at their next commit.
fn is_of_dead(owner: Option<&str>) -> bool {
    owner.is_some_and(|owner| owner.starts_with(WORKER_OWNER) || owner.starts_with(PLANNER_OWNER))
}
