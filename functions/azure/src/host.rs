//! Whether the host still wants this process.

use std::os::unix::process::parent_id;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// A host that stops sends no signal: its handler would live on, and answer into closed connections.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Ends on SIGTERM, or soon after the process that started this one has ended.
pub(crate) async fn told_to_end() {
    tokio::select! {
        () = terminated() => {}
        () = left_alone() => tracing::warn!("the host is gone: what is under way is handed on"),
    }
}

async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(error) => {
            tracing::warn!("SIGTERM is not watched for: {error}");
            std::future::pending().await
        }
    }
}

async fn left_alone() {
    let host = parent_id();
    let mut look = tokio::time::interval(LOOK_EVERY);
    while parent_id() == host {
        look.tick().await;
    }
}
