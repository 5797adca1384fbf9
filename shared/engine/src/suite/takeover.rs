//! One process that does everything and has the queue inside itself (`atlas serve`) takes over from the one before it. A
//! cloud's queue and the other workers outlive a process; here its messages are gone, and whoever holds a lease is dead.
//!
//! ```text
//!  lease ─► slices of dead workers wait again ─► runs that nobody planned: a message each ─► a message for each slot
//! ```
//! Without this, work would wait until leases end (a slice, its slot of the source) and messages count as lost.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{RunLease, RunLeaseRequest};
use crate::message::Message;
use crate::model::{Origin, Record, RunPhase, SliceFilter};
use crate::slots::{SLOT, WORKER_OWNER};
use crate::suite::planner::{PLANNER, PLANNER_OWNER};
use crate::suite::sweep::MANY;

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
    /// Makes this process the only one of its kind on its store, and goes on at once with what the one before left: slices of
    /// runs that have no end, and runs that were asked for and not planned.
    ///
    /// # Errors
    /// `Held` if another such process is alive; else what the store could not do: called again, it goes on.
    pub async fn take_over(&self, stop: &CancellationToken) -> Result<TakenOver> {
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
        let mut sent = 0;
        for run in self
            .store
            .ledger()
            .unfinished_runs(Origin::OnDemand)
            .await?
        {
            if run.phase() == RunPhase::Asked {
                let message = Message::plan(&run.id);
                self.queue.send(&message, Duration::ZERO).await?;
                sent += 1;
            }
        }
        let now = self.clock.now();
        let under_way = self
            .store
            .ledger()
            .find_slices(&SliceFilter::UnderWay { now }, MANY)
            .await?;
        for slice in under_way {
            // Its message is gone with the queue. Somebody of another kind may work on it, such as `atlas export`.
            if is_of_dead(slice.owner.as_deref()) || !slice.is_leased(now) {
                self.make_wait(&slice).await?;
            }
        }
        sent += self.fill("").await?;
        Ok(TakenOver { sent, lease })
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
