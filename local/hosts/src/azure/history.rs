//! Invocations and how they ended, and the events that watchers receive.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::lock;

/// The history of a host that runs for days stays at this many invocations.
const KEPT: usize = 100_000;

/// One run of a function that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// As sent in `X-Azure-Functions-InvocationId`.
    pub id: Uuid,
    /// The function's name.
    pub function: String,
    /// Which instance ran it, from 0.
    pub instance: usize,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an invocation ended, as far as the host knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The handler answered, and its outputs were sent.
    Succeeded,
    /// The handler or its answer failed.
    Failed(Reason),
    /// `functionTimeout` was over: the process was killed.
    TimedOut,
    /// The process ended under it.
    Lost,
}

/// Why an invocation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Not 2xx.
    #[error("the handler answered with status {0}")]
    Status(u16),
    /// 2xx with content that is not `application/json`.
    #[error("the handler answered without `Content-Type: application/json`")]
    MediaType,
    /// 2xx with content that is not an object with `Outputs`, `Logs`, `ReturnValue`.
    #[error("the handler answered with invalid JSON")]
    InvalidJson,
    /// No connection to a process that lives.
    #[error("the handler does not answer on its port")]
    Unreachable,
    /// The process ended with exit code 0, which the host takes for the end.
    #[error("the handler ended with exit code 0, so it is not started again")]
    Closed,
    /// The process failed too often, or never got ready.
    #[error("the instance stopped after too many failures of its handler")]
    Stopped,
    /// The content of an HTTP request broke off, or is larger than the host takes.
    #[error("the request could not be read")]
    Request,
    /// The outputs could not be sent to their queue.
    #[error("the outputs could not be sent")]
    Output,
    /// A test's fault dropped the handler's answer.
    #[error("the handler's answer was dropped on purpose")]
    Dropped,
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Standard output, and `Logs` of an answer.
    Information,
    /// Standard error that mentions a warning.
    Warning,
    /// Standard error.
    Error,
}

/// An event that watchers receive.
#[derive(Debug, Clone)]
pub enum Event {
    /// A function was started.
    Started {
        /// Its invocation.
        id: Uuid,
        /// Its name.
        function: String,
        /// Where it runs.
        instance: usize,
    },
    /// An invocation ended.
    Ended(Invocation),
    /// The handler wrote a line.
    Line {
        /// Whose handler.
        instance: usize,
        /// How the host ranks it.
        level: Level,
        /// Without its end.
        text: String,
    },
    /// The host has something to say about itself.
    Note(String),
}

/// Keeps invocations and sends events. There may be no listener.
#[derive(Debug)]
pub(super) struct History {
    ended: Mutex<VecDeque<Invocation>>,
    running: AtomicUsize,
    begun: AtomicUsize,
    events: broadcast::Sender<Event>,
}

impl History {
    pub(super) fn new() -> Self {
        Self {
            ended: Mutex::default(),
            running: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            events: broadcast::Sender::new(16_384),
        }
    }

    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(super) fn tell(&self, event: Event) {
        // An error means that there is no listener.
        let _ = self.events.send(event);
    }

    pub(super) fn note(&self, text: impl Into<String>) {
        self.tell(Event::Note(text.into()));
    }

    pub(super) fn ended(&self) -> Vec<Invocation> {
        lock(&self.ended).iter().cloned().collect()
    }

    /// Counts an invocation, with the host's own work around it, as running until the value is dropped.
    pub(super) fn work(&self) -> Work<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.running.fetch_add(1, Ordering::SeqCst);
        Work(self)
    }

    /// How much is under way, and how much ever was.
    pub(super) fn works(&self) -> (usize, usize) {
        (
            self.running.load(Ordering::SeqCst),
            self.begun.load(Ordering::SeqCst),
        )
    }

    pub(super) fn begin(&self, function: &str, instance: usize) -> Begun {
        self.begin_try(Uuid::new_v4(), function, instance)
    }

    /// One more try of an invocation keeps its id.
    pub(super) fn begin_try(&self, id: Uuid, function: &str, instance: usize) -> Begun {
        self.tell(Event::Started {
            id,
            function: function.to_owned(),
            instance,
        });
        Begun {
            id,
            function: function.to_owned(),
            instance,
            started: Timestamp::now(),
        }
    }

    pub(super) fn end(&self, begun: Begun, outcome: Outcome) -> Invocation {
        let invocation = Invocation {
            id: begun.id,
            function: begun.function,
            instance: begun.instance,
            started: begun.started,
            ended: Timestamp::now(),
            outcome,
        };
        let mut ended = lock(&self.ended);
        if ended.len() == KEPT {
            ended.pop_front();
        }
        ended.push_back(invocation.clone());
        drop(ended);
        self.tell(Event::Ended(invocation.clone()));
        invocation
    }
}

/// An invocation that has not ended.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) id: Uuid,
    function: String,
    instance: usize,
    started: Timestamp,
}

/// See [`History::work`].
#[derive(Debug)]
pub(super) struct Work<'a>(&'a History);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}
