//! A store that is asked again when it was briefly away. Every method of the port may be repeated with the same
//! arguments, so a lost answer costs nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::json::Node;
use atlas_openehr::time::Instant;
use futures::future::BoxFuture;

use crate::error::{ErrorKind, Result};
use crate::model::{
    Commit, Committed, Format, Holding, Known, Origin, QuarantineFilter, Quarantined, Reason,
    Record, Run, SelectionKey, Slice, StoredTemplate, Watermark,
};
use crate::ports::{Hold, Store};

/// Repeats what failed with `StoreUnreachable`, after the pauses of `export.retry_backoff_ms`.
pub struct RetryingStore {
    inner: Arc<dyn Store>,
    pauses: Vec<Duration>,
}

impl RetryingStore {
    /// `pauses` has one entry for each repetition.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, pauses: Vec<Duration>) -> Self {
        Self { inner, pauses }
    }

    async fn again<'a, T>(&self, call: impl Fn() -> BoxFuture<'a, Result<T>> + Send) -> Result<T> {
        for pause in &self.pauses {
            match call().await {
                Err(error) if error.kind() == ErrorKind::StoreUnreachable => {
                    tracing::warn!(
                        store = self.inner.kind(),
                        pause_ms = pause.as_millis() as u64,
                        "the store is away, asking again: {}",
                        error.chain()
                    );
                    tokio::time::sleep(*pause).await;
                }
                answer => return answer,
            }
        }
        call().await
    }
}

#[async_trait]
impl Store for RetryingStore {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn refuses(&self, content: Node<'_>) -> Option<(Reason, String)> {
        self.inner.refuses(content)
    }

    async fn prepare(&self) -> Result<()> {
        self.again(|| self.inner.prepare()).await
    }

    async fn hold(&self, name: &str) -> Result<Option<Hold>> {
        self.again(|| self.inner.hold(name)).await
    }

    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>> {
        self.again(|| self.inner.watermarks(selection)).await
    }

    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()> {
        self.again(|| self.inner.raise_watermarks(selection, watermarks))
            .await
    }

    async fn forget_watermarks(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
    ) -> Result<()> {
        self.again(|| self.inner.forget_watermarks(selection, templates))
            .await
    }

    async fn keep_format(&self, format: Format) -> Result<()> {
        self.again(|| self.inner.keep_format(format)).await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        self.again(|| self.inner.add_slices(slices)).await
    }

    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>> {
        self.again(|| self.inner.slices(selection)).await
    }

    async fn slice(&self, id: &str) -> Result<Option<Slice>> {
        self.again(|| self.inner.slice(id)).await
    }

    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>> {
        self.again(|| self.inner.swap_slice(before, after)).await
    }

    async fn remove_slices(&self, ids: &[String]) -> Result<()> {
        self.again(|| self.inner.remove_slices(ids)).await
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        self.again(|| self.inner.drop_slices(ids)).await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        self.again(|| self.inner.commit(commit)).await
    }

    async fn known(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, Known>> {
        self.again(|| self.inner.known(objects)).await
    }

    async fn quarantined(&self, filter: &QuarantineFilter) -> Result<Vec<Quarantined>> {
        self.again(|| self.inner.quarantined(filter)).await
    }

    async fn holdings(&self) -> Result<Vec<Holding>> {
        self.again(|| self.inner.holdings()).await
    }

    async fn add_run(&self, run: &Run) -> Result<bool> {
        self.again(|| self.inner.add_run(run)).await
    }

    async fn save_run(&self, run: &Run) -> Result<()> {
        self.again(|| self.inner.save_run(run)).await
    }

    async fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        self.again(|| self.inner.runs(limit)).await
    }

    async fn run(&self, id: &str) -> Result<Option<Run>> {
        self.again(|| self.inner.run(id)).await
    }

    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>> {
        self.again(|| self.inner.unfinished_runs(origin)).await
    }

    async fn now(&self) -> Result<Option<Instant>> {
        self.again(|| self.inner.now()).await
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        self.again(|| self.inner.records(prefix)).await
    }

    async fn swap_record(&self, before: &Record, after: &Record) -> Result<Option<Record>> {
        self.again(|| self.inner.swap_record(before, after)).await
    }

    async fn template(&self, template: &TemplateId) -> Result<Option<StoredTemplate>> {
        self.again(|| self.inner.template(template)).await
    }

    async fn save_template(&self, template: &StoredTemplate) -> Result<()> {
        self.again(|| self.inner.save_template(template)).await
    }
}
