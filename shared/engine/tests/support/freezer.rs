//! A process that is frozen: whatever it asks its store waits until it thaws.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::Result;
use atlas_engine::model::*;
use atlas_engine::ports::{Hold, Index, Ledger, Rows, Store, Templates};
use atlas_openehr::id::{EhrId, ObjectId, ObjectVersion, TemplateId};
use atlas_openehr::time::Instant;
use tokio::sync::watch;

/// Freezes and thaws one process.
#[derive(Clone)]
pub struct Freezer(watch::Sender<bool>);

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

    async fn warm(&self) {
        let _ = self.0.subscribe().wait_for(|frozen| !frozen).await;
    }
}

/// A store as a frozen process sees it.
pub struct Frozen {
    inner: Arc<dyn Store>,
    freezer: Freezer,
}

impl Frozen {
    pub fn new(inner: Arc<dyn Store>, freezer: Freezer) -> Self {
        Self { inner, freezer }
    }
}

#[async_trait]
impl Store for Frozen {
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
        self.freezer.warm().await;
        self.inner.prepare().await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        self.freezer.warm().await;
        self.inner.commit(commit).await
    }
}

#[async_trait]
impl Index for Frozen {
    async fn known(&self, keys: &[RowKey]) -> Result<HashMap<ObjectId, Known>> {
        self.freezer.warm().await;
        self.inner.index().known(keys).await
    }
}

#[async_trait]
impl Rows for Frozen {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn refuses(&self, content: &str) -> Option<(Reason, String)> {
        self.inner.rows().refuses(content)
    }

    async fn prepare(&self) -> Result<()> {
        self.freezer.warm().await;
        self.inner.rows().prepare().await
    }

    async fn land(&self, landing: &Landing<'_>) -> Result<LandAnswer> {
        self.freezer.warm().await;
        self.inner.rows().land(landing).await
    }

    async fn landed(&self, slice: &Slice) -> Result<Option<LandedPage>> {
        self.freezer.warm().await;
        self.inner.rows().landed(slice).await
    }

    async fn scan(&self, scan: &Scan) -> Result<Vec<StoredRow>> {
        self.freezer.warm().await;
        self.inner.rows().scan(scan).await
    }

    async fn newest(&self, templates: &[TemplateId]) -> Result<HashMap<TemplateId, Instant>> {
        self.freezer.warm().await;
        self.inner.rows().newest(templates).await
    }

    async fn erase(&self, ehr: &EhrId) -> Result<u64> {
        self.freezer.warm().await;
        self.inner.rows().erase(ehr).await
    }
}

#[async_trait]
impl Ledger for Frozen {
    async fn prepare(&self) -> Result<()> {
        self.freezer.warm().await;
        self.inner.ledger().prepare().await
    }

    async fn now(&self) -> Result<Option<Instant>> {
        self.freezer.warm().await;
        self.inner.ledger().now().await
    }

    async fn hold(&self, name: &str) -> Result<Hold> {
        self.freezer.warm().await;
        self.inner.ledger().hold(name).await
    }

    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>> {
        self.freezer.warm().await;
        self.inner.ledger().watermarks(selection).await
    }

    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()> {
        self.freezer.warm().await;
        self.inner
            .ledger()
            .raise_watermarks(selection, watermarks)
            .await
    }

    async fn forget_watermarks(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
    ) -> Result<()> {
        self.freezer.warm().await;
        self.inner
            .ledger()
            .forget_watermarks(selection, templates)
            .await
    }

    async fn keep_format(&self, format: Format) -> Result<()> {
        self.freezer.warm().await;
        self.inner.ledger().keep_format(format).await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        self.freezer.warm().await;
        self.inner.ledger().add_slices(slices).await
    }

    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>> {
        self.freezer.warm().await;
        self.inner.ledger().slices(selection).await
    }

    async fn slice(&self, id: &str) -> Result<Option<Slice>> {
        self.freezer.warm().await;
        self.inner.ledger().slice(id).await
    }

    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>> {
        self.freezer.warm().await;
        self.inner.ledger().swap_slice(before, after).await
    }

    async fn remove_slices(&self, ids: &[String]) -> Result<()> {
        self.freezer.warm().await;
        self.inner.ledger().remove_slices(ids).await
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        self.freezer.warm().await;
        self.inner.ledger().drop_slices(ids).await
    }

    async fn template_counts(&self) -> Result<Vec<TemplateCounts>> {
        self.freezer.warm().await;
        self.inner.ledger().template_counts().await
    }

    async fn set_template_counts(&self, template: &TemplateId, counts: &Counts) -> Result<()> {
        self.freezer.warm().await;
        self.inner
            .ledger()
            .set_template_counts(template, counts)
            .await
    }

    async fn quarantine(&self, rejected: &[Rejected], run: &str, now: Instant) -> Result<()> {
        self.freezer.warm().await;
        self.inner.ledger().quarantine(rejected, run, now).await
    }

    async fn end_quarantine(&self, versions: &[ObjectVersion]) -> Result<()> {
        self.freezer.warm().await;
        self.inner.ledger().end_quarantine(versions).await
    }

    async fn in_quarantine(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, u32>> {
        self.freezer.warm().await;
        self.inner.ledger().in_quarantine(objects).await
    }

    async fn quarantined(
        &self,
        filter: &QuarantineFilter,
        limit: usize,
    ) -> Result<Vec<Quarantined>> {
        self.freezer.warm().await;
        self.inner.ledger().quarantined(filter, limit).await
    }

    async fn quarantine_counts(
        &self,
        tried_before: Option<Instant>,
    ) -> Result<Vec<QuarantineCount>> {
        self.freezer.warm().await;
        self.inner.ledger().quarantine_counts(tried_before).await
    }

    async fn add_run(&self, run: &Run) -> Result<bool> {
        self.freezer.warm().await;
        self.inner.ledger().add_run(run).await
    }

    async fn swap_run(&self, before: &Run, after: &Run) -> Result<Option<Run>> {
        self.freezer.warm().await;
        self.inner.ledger().swap_run(before, after).await
    }

    async fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        self.freezer.warm().await;
        self.inner.ledger().runs(limit).await
    }

    async fn run(&self, id: &str) -> Result<Option<Run>> {
        self.freezer.warm().await;
        self.inner.ledger().run(id).await
    }

    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>> {
        self.freezer.warm().await;
        self.inner.ledger().unfinished_runs(origin).await
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        self.freezer.warm().await;
        self.inner.ledger().records(prefix).await
    }

    async fn swap_record(&self, before: &Record, after: &Record) -> Result<Option<Record>> {
        self.freezer.warm().await;
        self.inner.ledger().swap_record(before, after).await
    }
}

#[async_trait]
impl Templates for Frozen {
    async fn template(&self, template: &TemplateId) -> Result<Option<StoredTemplate>> {
        self.freezer.warm().await;
        self.inner.templates().template(template).await
    }

    async fn save_template(&self, template: &StoredTemplate) -> Result<()> {
        self.freezer.warm().await;
        self.inner.templates().save_template(template).await
    }
}
