//! What was invoked, and how it ended.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{broadcast, watch};

use crate::process::Stream;

/// Invocations that are remembered; a host on a laptop may run for days.
const REMEMBERED: usize = 10_000;

/// One invocation that has ended.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The request id. An event that is delivered again after a failure keeps it.
    pub id: String,
    /// The function.
    pub function: String,
    /// When the event was handed to a process.
    pub started: Timestamp,
    /// When the process was ready for the next one, or gone.
    pub ended: Timestamp,
    /// From `started` to `ended`.
    pub duration: Duration,
    /// From the start of the process to its first request for an event, if this was its first event.
    pub init: Option<Duration>,
    /// Peak resident memory of the process so far, in bytes. `None` where there is no `/proc`.
    pub memory: Option<u64>,
    /// The process id; `None` if no process could be started.
    pub process: Option<i32>,
    /// How it ended.
    pub outcome: Outcome,
    /// The function's answer. Only the caller of the invocation gets it; it is not remembered and not broadcast.
    pub answer: Option<Bytes>,
}

/// How an invocation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The function answered. For a queue: no message failed.
    Succeeded,
    /// The function said that it failed, or its process never asked for an event.
    Failed(String),
    /// The function answered, and messages of its queue come back: it named them, or its answer had a wrong form. Lambda counts no
    /// error of the function.
    Returned(String),
    /// It was killed at its time limit.
    TimedOut,
    /// Its process ended without an answer, or the answer got lost.
    Lost,
}

/// A line that a function wrote.
#[derive(Debug, Clone)]
pub struct Line {
    /// The function.
    pub function: String,
    /// Where to.
    pub stream: Stream,
    /// Without the line break.
    pub text: String,
}

/// All of it, and who wants to be reported.
#[derive(Debug)]
pub(super) struct History {
    ended: Mutex<VecDeque<Invocation>>,
    reported: broadcast::Sender<Invocation>,
    pub(super) lines: broadcast::Sender<Line>,
    /// (started so far, running now)
    pub(super) running: watch::Sender<(u64, usize)>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            ended: Mutex::default(),
            reported: broadcast::channel(1024).0,
            lines: broadcast::channel(1024).0,
            running: watch::channel((0, 0)).0,
        }
    }
}

/// Something is under way until this is dropped.
#[derive(Debug)]
pub(super) struct Running<'a>(&'a History);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.send_modify(|(_, now)| *now -= 1);
    }
}

impl History {
    pub(super) fn run(&self) -> Running<'_> {
        self.running.send_modify(|(started, now)| {
            *started += 1;
            *now += 1;
        });
        Running(self)
    }

    pub(super) fn add(&self, invocation: &Invocation) {
        let invocation = Invocation {
            answer: None,
            ..invocation.clone()
        };
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() == REMEMBERED {
            ended.pop_front();
        }
        ended.push_back(invocation.clone());
        drop(ended);
        // There may be no listener.
        let _ = self.reported.send(invocation);
    }

    pub(super) fn all(&self) -> Vec<Invocation> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.iter().cloned().collect()
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Invocation> {
        self.reported.subscribe()
    }
}
