//! A store that is asked again when it was briefly away. Every method of its ports may be repeated with the same
//! arguments, so a lost answer costs nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atlas_openehr::id::{EhrId, ObjectId, ObjectVersion, TemplateId};
use atlas_openehr::time::Instant;
use backon::Retryable;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Commit, Committed, Counts, Format, Known, LandAnswer, LandedPage, Landing, Origin,
    QuarantineCount, QuarantineFilter, Quarantined, Reason, Record, Rejected, RowKey, Run, Scan,
    SelectionKey, Slice, StoredRow, StoredTemplate, TemplateCounts, Watermark,
};
use crate::ports::{Hold, Index, Ledger, Rows, Store, Templates};

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

    async fn again<T, F: Future<Output = Result<T>>>(&self, call: impl FnMut() -> F) -> Result<T> {
        call.retry(self.pauses.clone().into_iter())
            .when(|error: &Error| error.kind() == ErrorKind::StoreUnreachable)
            .notify(|error, pause| {
                tracing::warn!(
                    store = self.inner.kind(),
                    pause_ms = pause.as_millis() as u64,
                    "the store is away, asking again: {}",
                    error.chain()
                );
            })
            .await
    }
}

#[async_trait]
impl Store for RetryingStore {
    fn rows(&self) -> &dyn Rows {
        self
    }

    fn index(&self) -> &dyn Index {
        self
    }

    fn ledger(&self) -> &dyn Ledger {
        self
    }

    fn templates(&self) -> &dyn Templates {
        self
    }

    async fn prepare(&self) -> Result<()> {
        self.again(|| self.inner.prepare()).await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        self.again(|| self.inner.commit(commit)).await
    }
}

#[async_trait]
impl Index for RetryingStore {
    async fn known(&self, keys: &[RowKey]) -> Result<HashMap<ObjectId, Known>> {
        self.again(|| self.inner.index().known(keys)).await
    }
}

#[async_trait]
impl Rows for RetryingStore {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn refuses(&self, content: &str) -> Option<(Reason, String)> {
        self.inner.rows().refuses(content)
    }

    async fn prepare(&self) -> Result<()> {
        self.again(|| self.inner.rows().prepare()).await
    }

    async fn land(&self, landing: &Landing<'_>) -> Result<LandAnswer> {
        self.again(|| self.inner.rows().land(landing)).await
    }

    async fn landed(&self, slice: &Slice) -> Result<Option<LandedPage>> {
        self.again(|| self.inner.rows().landed(slice)).await
    }

    async fn scan(&self, scan: &Scan) -> Result<Vec<StoredRow>> {
        self.again(|| self.inner.rows().scan(scan)).await
    }

    async fn newest(&self, templates: &[TemplateId]) -> Result<HashMap<TemplateId, Instant>> {
        self.again(|| self.inner.rows().newest(templates)).await
    }

    async fn erase(&self, ehr: &EhrId) -> Result<u64> {
        self.again(|| self.inner.rows().erase(ehr)).await
    }
}

#[async_trait]
impl Ledger for RetryingStore {
    async fn prepare(&self) -> Result<()> {
        self.again(|| self.inner.ledger().prepare()).await
    }

    async fn now(&self) -> Result<Option<Instant>> {
        self.again(|| self.inner.ledger().now()).await
    }

    async fn hold(&self, name: &str) -> Result<Hold> {
        self.again(|| self.inner.ledger().hold(name)).await
    }

    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>> {
        self.again(|| self.inner.ledger().watermarks(selection))
            .await
    }

    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()> {
        self.again(|| self.inner.ledger().raise_watermarks(selection, watermarks))
            .await
    }

    async fn forget_watermarks(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
    ) -> Result<()> {
        self.again(|| self.inner.ledger().forget_watermarks(selection, templates))
            .await
    }

    async fn keep_format(&self, format: Format) -> Result<()> {
        self.again(|| self.inner.ledger().keep_format(format)).await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        self.again(|| self.inner.ledger().add_slices(slices)).await
    }

    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>> {
        self.again(|| self.inner.ledger().slices(selection)).await
    }

    async fn slice(&self, id: &str) -> Result<Option<Slice>> {
        self.again(|| self.inner.ledger().slice(id)).await
    }

    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>> {
        self.again(|| self.inner.ledger().swap_slice(before, after))
            .await
    }

    async fn remove_slices(&self, ids: &[String]) -> Result<()> {
        self.again(|| self.inner.ledger().remove_slices(ids)).await
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        self.again(|| self.inner.ledger().drop_slices(ids)).await
    }

    async fn template_counts(&self) -> Result<Vec<TemplateCounts>> {
        self.again(|| self.inner.ledger().template_counts()).await
    }

    async fn set_template_counts(&self, template: &TemplateId, counts: &Counts) -> Result<()> {
        self.again(|| self.inner.ledger().set_template_counts(template, counts))
            .await
    }

    async fn quarantine(&self, rejected: &[Rejected], run: &str, now: Instant) -> Result<()> {
        self.again(|| self.inner.ledger().quarantine(rejected, run, now))
            .await
    }

    async fn end_quarantine(&self, versions: &[ObjectVersion]) -> Result<()> {
        self.again(|| self.inner.ledger().end_quarantine(versions))
            .await
    }

    async fn in_quarantine(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, u32>> {
        self.again(|| self.inner.ledger().in_quarantine(objects))
            .await
    }

    async fn quarantined(
        &self,
        filter: &QuarantineFilter,
        limit: usize,
    ) -> Result<Vec<Quarantined>> {
        self.again(|| self.inner.ledger().quarantined(filter, limit))
            .await
    }

    async fn quarantine_counts(
        &self,
        tried_before: Option<Instant>,
    ) -> Result<Vec<QuarantineCount>> {
        self.again(|| self.inner.ledger().quarantine_counts(tried_before))
            .await
    }

    async fn add_run(&self, run: &Run) -> Result<bool> {
        self.again(|| self.inner.ledger().add_run(run)).await
    }

    async fn swap_run(&self, before: &Run, after: &Run) -> Result<Option<Run>> {
        self.again(|| self.inner.ledger().swap_run(before, after))
            .await
    }

    async fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        self.again(|| self.inner.ledger().runs(limit)).await
    }

    async fn run(&self, id: &str) -> Result<Option<Run>> {
        self.again(|| self.inner.ledger().run(id)).await
    }

    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>> {
        self.again(|| self.inner.ledger().unfinished_runs(origin))
            .await
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        self.again(|| self.inner.ledger().records(prefix)).await
    }

    async fn swap_record(&self, before: &Record, after: &Record) -> Result<Option<Record>> {
        self.again(|| self.inner.ledger().swap_record(before, after))
            .await
    }
}

#[async_trait]
impl Templates for RetryingStore {
    async fn template(&self, template: &TemplateId) -> Result<Option<StoredTemplate>> {
        self.again(|| self.inner.templates().template(template))
            .await
    }

    async fn save_template(&self, template: &StoredTemplate) -> Result<()> {
        self.again(|| self.inner.templates().save_template(template))
            .await
    }
}
