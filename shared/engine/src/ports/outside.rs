//! Queue, clock and observer.

use std::time::Duration;

use async_trait::async_trait;
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;

use crate::error::Result;
use crate::message::Message;

/// Brings messages to workers: at least once, in any order, possibly much later. What makes that harmless is the slice's
/// record, not the queue.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Puts a message into the queue of work; it is delivered `delay` from now at the earliest (15 minutes at most: longer
    /// ones are cut). Durable when it returns `Ok`. After an error it may or may not be in the queue.
    ///
    /// # Errors
    /// `QueueUnreachable` if the same call can succeed later, `QueueDenied` if it cannot.
    async fn send(&self, message: &Message, delay: Duration) -> Result<()>;
}

/// Tells the time. Waiting is tokio's, so that a test can turn both at once.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Instant;

    /// Goes by another clock from here on, which shows `now` at this moment: the one that all processes of a store share.
    /// A clock that is that one already has nothing to do.
    fn follow(&self, _now: Instant) {}
}

/// What is told to the person watching. Never blocks, never fails.
pub trait Observer: Send + Sync {
    /// Called from any task.
    fn event(&self, event: &Event<'_>);
}

/// What happens during a run, as far as a person wants to watch it.
#[derive(Debug)]
pub enum Event<'a> {
    /// The census is in: so many compositions of a template are to be read.
    Planned {
        /// The template.
        template: &'a TemplateId,
        /// Compositions in all slices of it that are not finished.
        expected: u64,
    },
    /// A page is durable.
    Page {
        /// The template.
        template: &'a TemplateId,
        /// What this page added.
        counts: crate::model::Counts,
        /// Bytes of the source's answer.
        bytes: u64,
    },
    /// A slice is finished.
    SliceDone {
        /// The template.
        template: &'a TemplateId,
    },
    /// A slice could not go on; the run goes on with others.
    SliceFailed {
        /// The template.
        template: &'a TemplateId,
        /// Why.
        error: &'a crate::Error,
    },
    /// Something worth a line.
    Note(&'a str),
}
