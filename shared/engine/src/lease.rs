//! The lease that makes runs and planners exclusive over all processes of a store: a record with a heartbeat.
//!
//! ```text
//!  held by another? ─ no ──────────────────────────────► take it, renew it at each heartbeat
//!        │ yes: proof of its death (a file lock)? ─ yes ─► take it at once
//!        └ watch it for one lease: a heartbeat ─► held · none ─► take it: its process is dead, or stopped
//! ```
//! A process that was only stopped finds at its next heartbeat that the lease is lost, and works no further; the fences of its
//! slices were raised meanwhile.

use std::sync::Arc;
use std::time::Duration;

use atlas_openehr::time::Instant;
use tokio::sync::Mutex;
use tokio::time::Instant as Moment;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::model::Record;
use crate::ports::{Clock, Event, Hold, Observer, Store};
use crate::slots::record;

/// How long a run is left alone, and how often it says that it is alive.
#[derive(Debug, Clone, Copy)]
pub struct RunLeaseTerms {
    /// Without a heartbeat for so long, a run is dead.
    pub duration: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
}

impl Default for RunLeaseTerms {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            heartbeat: Duration::from_secs(3),
        }
    }
}

/// What a lease is taken with.
pub(crate) struct RunLeaseRequest<'a> {
    pub(crate) store: &'a Arc<dyn Store>,
    pub(crate) clock: &'a Arc<dyn Clock>,
    pub(crate) observer: &'a dyn Observer,
    pub(crate) terms: RunLeaseTerms,
    /// What is exclusive: also the name of the record.
    pub(crate) name: &'static str,
    /// Unique among all that ever take it.
    pub(crate) owner: String,
}

/// A lease that is held, and renewed in the background.
pub struct RunLease {
    beat: Arc<Beat>,
    _beating: AbortOnDropHandle<()>,
    _hold: Hold,
}

struct Beat {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    terms: RunLeaseTerms,
    held: Mutex<Record>,
    lost: CancellationToken,
}

impl RunLease {
    /// Takes a lease; `None` if somebody who is alive holds it. Ends early when `stop` is cancelled.
    ///
    /// # Errors
    /// `Interrupted` by `stop`; else what the ledger could not do.
    pub(crate) async fn take(
        request: RunLeaseRequest<'_>,
        stop: &CancellationToken,
    ) -> Result<Option<Self>> {
        let hold = request.store.ledger().hold(request.name).await?;
        let mut stands = record(request.store.as_ref(), request.name).await?;
        if stands.is_held(request.clock.now()) && !matches!(hold, Hold::Alone(_)) {
            match request.watch(stands, stop).await? {
                Some(silent) => stands = silent,
                None => return Ok(None),
            }
        }
        request.claim(stands, hold).await
    }

    /// Takes a lease that nobody holds; `None` if somebody does, alive or not.
    ///
    /// # Errors
    /// What the ledger could not do.
    pub(crate) async fn take_free(request: RunLeaseRequest<'_>) -> Result<Option<Self>> {
        let stands = record(request.store.as_ref(), request.name).await?;
        match stands.is_held(request.clock.now()) {
            true => Ok(None),
            false => request.claim(stands, Hold::Unknown).await,
        }
    }

    fn hold(request: &RunLeaseRequest<'_>, held: Record, hold: Hold) -> Self {
        let beat = Arc::new(Beat {
            store: Arc::clone(request.store),
            clock: Arc::clone(request.clock),
            terms: request.terms,
            held: Mutex::new(held),
            lost: CancellationToken::new(),
        });
        let beating = Arc::clone(&beat);
        Self {
            _beating: AbortOnDropHandle::new(tokio::spawn(async move { beating.go_on().await })),
            beat,
            _hold: hold,
        }
    }

    /// Cancelled when the lease is lost: nothing more may be begun then.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.beat.lost
    }

    /// Gives the lease back. A failure costs only the rest of it.
    pub async fn release(self) {
        // Waits for a heartbeat that is under way, so that what is given back is what stands.
        let held = self.beat.held.lock().await.clone();
        let free = Record {
            owner: None,
            until: None,
            ..held.clone()
        };
        if let Err(error) = self.beat.store.ledger().swap_record(&held, &free).await {
            tracing::warn!(
                "a lease was not given back and is held until it ends: {}",
                error.chain()
            );
        }
    }
}

impl RunLeaseRequest<'_> {
    /// Refused means that somebody was faster, and is alive.
    async fn claim(&self, stands: Record, hold: Hold) -> Result<Option<RunLease>> {
        let mine = Record {
            owner: Some(self.owner.clone()),
            until: Some(self.until()),
            ..stands.clone()
        };
        let taken = self.store.ledger().swap_record(&stands, &mine).await?;
        Ok(taken.map(|held| RunLease::hold(self, held, hold)))
    }

    fn until(&self) -> Instant {
        self.clock.now().saturating_add(self.terms.duration)
    }

    /// Watches a lease that somebody holds for the length of one: answers it as it stands if there was no heartbeat, or if it
    /// was given back.
    async fn watch(&self, mut stands: Record, stop: &CancellationToken) -> Result<Option<Record>> {
        let seconds = self.terms.duration.as_secs_f64();
        let note = format!(
            "another run is noted in this store: watching for {seconds} s whether it is alive"
        );
        self.observer.event(&Event::Note(&note));
        let patience = Moment::now() + self.terms.duration;
        while Moment::now() < patience {
            let pause = tokio::time::sleep(self.terms.heartbeat);
            if stop.run_until_cancelled(pause).await.is_none() {
                return Err(Error::new(
                    ErrorKind::Interrupted,
                    "wait for the lease of another run: a stop was asked for",
                )
                .fix("run again; nothing was changed"));
            }
            let now = record(self.store.as_ref(), self.name).await?;
            if now.owner.is_none() {
                return Ok(Some(now));
            }
            if now.step != stands.step {
                return Ok(None);
            }
            stands = now;
        }
        self.observer.event(&Event::Note(
            "the other run gave no sign of life: going on with its work",
        ));
        Ok(Some(stands))
    }
}

impl Beat {
    async fn go_on(&self) {
        let mut renewed = Moment::now();
        loop {
            tokio::time::sleep(self.terms.heartbeat).await;
            match self.renew().await {
                Ok(true) => renewed = Moment::now(),
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!("a lease was not renewed: {}", error.chain());
                    if renewed.elapsed() >= self.terms.duration {
                        break;
                    }
                }
            }
        }
        self.lost.cancel();
    }

    /// Answers whether the lease is still held.
    async fn renew(&self) -> Result<bool> {
        let mut held = self.held.lock().await;
        let renewed = Record {
            until: Some(self.clock.now().saturating_add(self.terms.duration)),
            ..held.clone()
        };
        Ok(
            match self.store.ledger().swap_record(&held, &renewed).await? {
                Some(renewed) => {
                    *held = renewed;
                    true
                }
                None => false,
            },
        )
    }
}
