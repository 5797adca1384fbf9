//! A process that is frozen: whatever it asks its store waits until it thaws.

use atlas_engine::Result;
use atlas_engine::wrapped::{Around, WrappedStore};
use tokio::sync::watch;

/// Freezes and thaws one process.
#[derive(Clone)]
pub struct Freezer(watch::Sender<bool>);

/// A store as a process sees it that can be frozen.
pub type Frozen = WrappedStore<Freezer>;

impl Default for Freezer {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Freezer {
    pub fn freeze(&self) {
        self.0.send_replace(true);
    }

    pub fn thaw(&self) {
        self.0.send_replace(false);
    }
}

impl Around for Freezer {
    async fn call<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        mut call: impl FnMut() -> F + Send,
    ) -> Result<T> {
        let _ = self.0.subscribe().wait_for(|frozen| !frozen).await;
        call().await
    }
}
