//! A store whose every call goes through one function, which may hold it up or make it again.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use atlas_openehr::id::{EhrId, ObjectId, ObjectVersion, TemplateId};
use atlas_openehr::time::Instant;

use crate::error::Result;
use crate::model::{
    Commit, Committed, Counts, Format, Known, LandAnswer, LandedPage, Landing, Origin,
    QuarantineCount, QuarantineFilter, Quarantined, Reason, Record, Rejected, RowKey, Run, Scan,
    SelectionKey, Slice, SliceFilter, SlicesOf, StoredRow, StoredTemplate, TemplateCounts, Totals,
    Watermark,
};
use crate::ports::{Hold, Index, Ledger, Rows, Store, Templates};

/// What happens around each call of a store.
pub trait Around: Send + Sync {
    /// Makes the call: every method of a store may be repeated with the same arguments.
    fn call<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        call: impl FnMut() -> F + Send,
    ) -> impl Future<Output = Result<T>> + Send;
}

/// A store with something around each of its calls.
pub struct WrappedStore<A> {
    inner: Arc<dyn Store>,
    around: A,
}

impl<A: Around> WrappedStore<A> {
    /// Puts `around` around each call of `inner`.
    #[must_use]
    pub fn wrap(inner: Arc<dyn Store>, around: A) -> Self {
        Self { inner, around }
    }
}

#[async_trait]
impl<A: Around> Store for WrappedStore<A> {
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
        self.around.call(|| self.inner.prepare()).await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        self.around.call(|| self.inner.commit(commit)).await
    }
}

#[async_trait]
impl<A: Around> Index for WrappedStore<A> {
    async fn known(&self, keys: &[RowKey]) -> Result<HashMap<ObjectId, Known>> {
        self.around.call(|| self.inner.index().known(keys)).await
    }
}

#[async_trait]
impl<A: Around> Rows for WrappedStore<A> {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn refuses(&self, content: &str) -> Option<(Reason, String)> {
        self.inner.rows().refuses(content)
    }

    async fn prepare(&self) -> Result<()> {
        self.around.call(|| self.inner.rows().prepare()).await
    }

    async fn land(&self, landing: &Landing<'_>) -> Result<LandAnswer> {
        self.around.call(|| self.inner.rows().land(landing)).await
    }

    async fn landed(&self, slice: &Slice) -> Result<Option<LandedPage>> {
        self.around.call(|| self.inner.rows().landed(slice)).await
    }

    async fn scan(&self, scan: &Scan) -> Result<Vec<StoredRow>> {
        self.around.call(|| self.inner.rows().scan(scan)).await
    }

    async fn newest(&self, templates: &[TemplateId]) -> Result<HashMap<TemplateId, Instant>> {
        self.around
            .call(|| self.inner.rows().newest(templates))
            .await
    }

    async fn erase(&self, ehr: &EhrId) -> Result<u64> {
        self.around.call(|| self.inner.rows().erase(ehr)).await
    }
}

#[async_trait]
impl<A: Around> Ledger for WrappedStore<A> {
    async fn prepare(&self) -> Result<()> {
        self.around.call(|| self.inner.ledger().prepare()).await
    }

    async fn now(&self) -> Result<Option<Instant>> {
        self.around.call(|| self.inner.ledger().now()).await
    }

    async fn hold(&self, name: &str) -> Result<Hold> {
        self.around.call(|| self.inner.ledger().hold(name)).await
    }

    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>> {
        self.around
            .call(|| self.inner.ledger().watermarks(selection))
            .await
    }

    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()> {
        self.around
            .call(|| self.inner.ledger().raise_watermarks(selection, watermarks))
            .await
    }

    async fn forget_watermarks(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
    ) -> Result<()> {
        self.around
            .call(|| self.inner.ledger().forget_watermarks(selection, templates))
            .await
    }

    async fn keep_format(&self, format: Format) -> Result<()> {
        self.around
            .call(|| self.inner.ledger().keep_format(format))
            .await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        self.around
            .call(|| self.inner.ledger().add_slices(slices))
            .await
    }

    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>> {
        self.around
            .call(|| self.inner.ledger().slices(selection))
            .await
    }

    async fn find_slices(&self, filter: &SliceFilter<'_>, limit: usize) -> Result<Vec<Slice>> {
        self.around
            .call(|| self.inner.ledger().find_slices(filter, limit))
            .await
    }

    async fn slice_totals(&self, of: SlicesOf<'_>, now: Instant) -> Result<Totals> {
        self.around
            .call(|| self.inner.ledger().slice_totals(of, now))
            .await
    }

    async fn slice(&self, id: &str) -> Result<Option<Slice>> {
        self.around.call(|| self.inner.ledger().slice(id)).await
    }

    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>> {
        self.around
            .call(|| self.inner.ledger().swap_slice(before, after))
            .await
    }

    async fn remove_slices(&self, ids: &[String]) -> Result<()> {
        self.around
            .call(|| self.inner.ledger().remove_slices(ids))
            .await
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        self.around
            .call(|| self.inner.ledger().drop_slices(ids))
            .await
    }

    async fn template_counts(&self) -> Result<Vec<TemplateCounts>> {
        self.around
            .call(|| self.inner.ledger().template_counts())
            .await
    }

    async fn set_template_counts(&self, template: &TemplateId, counts: &Counts) -> Result<()> {
        self.around
            .call(|| self.inner.ledger().set_template_counts(template, counts))
            .await
    }

    async fn quarantine(&self, rejected: &[Rejected], run: &str, now: Instant) -> Result<()> {
        self.around
            .call(|| self.inner.ledger().quarantine(rejected, run, now))
            .await
    }

    async fn end_quarantine(&self, versions: &[ObjectVersion]) -> Result<()> {
        self.around
            .call(|| self.inner.ledger().end_quarantine(versions))
            .await
    }

    async fn in_quarantine(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, u32>> {
        self.around
            .call(|| self.inner.ledger().in_quarantine(objects))
            .await
    }

    async fn quarantined(
        &self,
        filter: &QuarantineFilter,
        limit: usize,
    ) -> Result<Vec<Quarantined>> {
        self.around
            .call(|| self.inner.ledger().quarantined(filter, limit))
            .await
    }

    async fn quarantine_counts(
        &self,
        tried_before: Option<Instant>,
    ) -> Result<Vec<QuarantineCount>> {
        self.around
            .call(|| self.inner.ledger().quarantine_counts(tried_before))
            .await
    }

    async fn add_run(&self, run: &Run) -> Result<bool> {
        self.around.call(|| self.inner.ledger().add_run(run)).await
    }

    async fn swap_run(&self, before: &Run, after: &Run) -> Result<Option<Run>> {
        self.around
            .call(|| self.inner.ledger().swap_run(before, after))
            .await
    }

    async fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        self.around.call(|| self.inner.ledger().runs(limit)).await
    }

    async fn run(&self, id: &str) -> Result<Option<Run>> {
        self.around.call(|| self.inner.ledger().run(id)).await
    }

    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>> {
        self.around
            .call(|| self.inner.ledger().unfinished_runs(origin))
            .await
    }

    async fn prune_runs(&self, ended_before: Instant) -> Result<()> {
        self.around
            .call(|| self.inner.ledger().prune_runs(ended_before))
            .await
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        self.around
            .call(|| self.inner.ledger().records(prefix))
            .await
    }

    async fn swap_record(&self, before: &Record, after: &Record) -> Result<Option<Record>> {
        self.around
            .call(|| self.inner.ledger().swap_record(before, after))
            .await
    }
}

#[async_trait]
impl<A: Around> Templates for WrappedStore<A> {
    async fn template(&self, template: &TemplateId) -> Result<Option<StoredTemplate>> {
        self.around
            .call(|| self.inner.templates().template(template))
            .await
    }

    async fn save_template(&self, template: &StoredTemplate) -> Result<()> {
        self.around
            .call(|| self.inner.templates().save_template(template))
            .await
    }
}
