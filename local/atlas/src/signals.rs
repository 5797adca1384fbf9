//! SIGINT and SIGTERM: the first one stops the work at the next page boundary, the second one at once.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::failure::{Exit, Failure};
use crate::output;

/// How work ended.
pub(crate) enum Ended<T> {
    /// By itself.
    Done(T),
    /// At a page boundary after a signal, which says how to exit.
    Stopped(Exit, T),
    /// In the middle of something, because nobody waits any longer.
    AtOnce(Exit),
}

/// Works until the end or a signal. At the first signal `stop` is cancelled, and the work has `patience` to end.
pub(crate) async fn watched<T>(
    work: impl Future<Output = T>,
    stop: &CancellationToken,
    patience: Duration,
) -> Result<Ended<T>, Failure> {
    let mut signals = Signals::new()
        .map_err(|e| Failure::new(Exit::Internal, "failed to watch for signals").because(e))?;
    tokio::pin!(work);
    let first = tokio::select! {
        result = &mut work => return Ok(Ended::Done(result)),
        signal = signals.next() => signal,
    };
    stop.cancel();
    output::tell(&format!(
        "stopping at the next page boundary, within {} s; once more stops at once",
        patience.as_secs()
    ));
    Ok(tokio::select! {
        result = &mut work => Ended::Stopped(first, result),
        second = signals.next() => Ended::AtOnce(second),
        () = tokio::time::sleep(patience) => Ended::AtOnce(first),
    })
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Exit {
        match tokio::signal::ctrl_c().await {
            Ok(()) => Exit::Interrupted,
            Err(_) => std::future::pending().await,
        }
    }
}
