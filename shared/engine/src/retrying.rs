//! A store that is asked again when it was briefly away. Every method of its ports may be repeated with the same
//! arguments, so a lost answer costs nothing.

use std::sync::Arc;
use std::time::Duration;

use backon::Retryable;

use crate::error::{Error, ErrorKind, Result};
use crate::ports::Store;
use crate::wrapped::{Around, WrappedStore};

/// Repeats what failed with `StoreUnreachable`, after the pauses of `export.retry_backoff_ms`.
pub type RetryingStore = WrappedStore<Retries>;

/// How a store is asked again.
pub struct Retries {
    /// For log lines.
    kind: &'static str,
    pauses: Vec<Duration>,
}

impl RetryingStore {
    /// `pauses` has one entry for each repetition.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, pauses: Vec<Duration>) -> Self {
        let kind = inner.kind();
        Self::wrap(inner, Retries { kind, pauses })
    }
}

impl Around for Retries {
    async fn call<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        call: impl FnMut() -> F + Send,
    ) -> Result<T> {
        call.retry(self.pauses.clone().into_iter())
            .when(|error: &Error| error.kind() == ErrorKind::StoreUnreachable)
            .notify(|error, pause| {
                tracing::warn!(
                    store = self.kind,
                    pause_ms = pause.as_millis() as u64,
                    "the store is away, asking again: {}",
                    error.chain()
                );
            })
            .await
    }
}
