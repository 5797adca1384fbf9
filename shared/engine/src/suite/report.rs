//! How far the copy is, for people and for monitoring: lag, watermarks, slices, quarantine, slots, runs. Counts and times
//! only.

use std::collections::BTreeMap;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::Result;
use crate::message::Unreadable;
use crate::model::{
    ALL_TEMPLATES, Counts, Mode, Origin, Outcome, Record, SelectionKey, SliceTotals, SlicesOf,
};
use crate::ports::Store;
use crate::slots::{SlotState, SlotTerms, record, slot_state};
use crate::suite::unplanned::{Unplanned, unplanned};

/// The record that keeps the last report.
const REPORT: &str = "report";
/// The record that counts messages nobody could read.
const UNREADABLE: &str = "unreadable";
/// Runs in a report.
const RUNS: usize = 10;

/// How far the copy of one selection is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// When it was made, by the store's clock.
    pub at: Instant,
    /// Seconds between then and the oldest watermark, or the first plan of a template that was never read to its end; `None`
    /// before the first plan.
    pub lag_seconds: Option<f64>,
    /// By template.
    pub templates: Vec<TemplateState>,
    /// Slices of all templates.
    pub slices: SliceCounts,
    /// Seconds for which that slice has not moved that is under way, or given up, and stands still longest; 0 if there is none. A
    /// slice that waits for its turn does not count.
    pub stalled_slice_seconds: f64,
    /// Compositions in quarantine.
    pub quarantined: u64,
    /// Slots of the source.
    pub slots: SlotState,
    /// Messages that nobody could read, so far.
    pub unreadable_messages: u64,
    /// Ticks in a row that planned nothing; `None` if the last one planned.
    pub unplanned: Option<Unplanned>,
    /// The last runs, newest first.
    pub runs: Vec<RunLine>,
}

/// How far one template is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TemplateState {
    /// The template.
    pub template_id: TemplateId,
    /// Everything committed before this was seen.
    pub checked_until: Option<Instant>,
    /// The newest composition in the store.
    pub newest_data: Option<Instant>,
    /// Compositions in the store.
    pub compositions: u64,
    /// Compositions in quarantine.
    pub quarantined: u64,
    /// Its slices.
    pub slices: SliceCounts,
    /// Why one of its slices failed last, without any personal data.
    pub failure: Option<String>,
}

/// Slices by what happens to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SliceCounts {
    /// Waiting for a worker.
    pub waiting: u64,
    /// In work.
    pub in_work: u64,
    /// Given up, until the planner tries them again.
    pub failed: u64,
}

impl SliceCounts {
    fn of(totals: &SliceTotals) -> Self {
        Self {
            waiting: totals.waiting,
            in_work: totals.in_work,
            failed: totals.failed,
        }
    }
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunLine {
    /// Its id.
    pub run: String,
    /// Who asked for it.
    pub origin: &'static str,
    /// Full or incremental.
    pub mode: Mode,
    /// When it began.
    pub started: Instant,
    /// When it ended.
    pub ended: Option<Instant>,
    /// Commit times before this were looked at.
    pub cut: Option<Instant>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What became of its compositions; of a run that has not ended, nothing yet.
    pub counts: Counts,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Seen {
    count: u64,
    /// Who counted last. Without it two processes that count at once would write the same record, and the second one would take the
    /// first one's for its own.
    by: String,
}

/// How far the copy of a selection is, at an instant of the store's clock. Counts are kept, not made, so that it costs the same
/// at any number of compositions.
///
/// # Errors
/// What the store could not do.
pub async fn report(
    store: &dyn Store,
    slots: &SlotTerms,
    selection: &SelectionKey,
    at: Instant,
) -> Result<Report> {
    let mut templates: BTreeMap<TemplateId, TemplateState> = BTreeMap::new();
    fn of<'a>(
        templates: &'a mut BTreeMap<TemplateId, TemplateState>,
        id: &TemplateId,
    ) -> &'a mut TemplateState {
        templates
            .entry(id.clone())
            .or_insert_with(|| TemplateState {
                template_id: id.clone(),
                checked_until: None,
                newest_data: None,
                compositions: 0,
                quarantined: 0,
                slices: SliceCounts::default(),
                failure: None,
            })
    }
    for watermark in store.ledger().watermarks(selection).await? {
        if watermark.template.as_str() != ALL_TEMPLATES {
            of(&mut templates, &watermark.template).checked_until = Some(watermark.until);
        }
    }
    let totals = store
        .ledger()
        .slice_totals(SlicesOf::Selection(selection), at)
        .await?;
    let all = totals.all;
    let planned: BTreeMap<TemplateId, Option<Instant>> = totals
        .templates
        .iter()
        .map(|(template, totals)| (template.clone(), totals.first_planned))
        .collect();
    for (id, totals) in totals.templates {
        let template = of(&mut templates, &id);
        template.slices = SliceCounts::of(&totals);
        template.failure = totals.failure;
    }
    for counts in store.ledger().template_counts().await? {
        of(&mut templates, &counts.template).compositions = counts.compositions();
    }
    let mut quarantined = 0;
    for count in store.ledger().quarantine_counts(None).await? {
        quarantined += count.entries;
        of(&mut templates, &count.template).quarantined += count.entries;
    }
    let names: Vec<TemplateId> = templates.keys().cloned().collect();
    for (template, newest) in store.rows().newest(&names).await? {
        of(&mut templates, &template).newest_data = Some(newest);
    }
    let since = |template: &TemplateState| {
        let planned = planned.get(&template.template_id).copied().flatten();
        template.checked_until.or(planned)
    };
    let oldest = templates.values().filter_map(since).min();
    let runs = store.ledger().runs(RUNS).await?;
    Ok(Report {
        at,
        lag_seconds: oldest.map(|oldest| at.duration_since(oldest).as_secs_f64()),
        templates: templates.into_values().collect(),
        slices: SliceCounts::of(&all),
        stalled_slice_seconds: all
            .still_since
            .map_or(0.0, |since| at.duration_since(since).as_secs_f64()),
        quarantined,
        slots: slot_state(store, slots, at).await?,
        unreadable_messages: seen(store).await?.1.count,
        unplanned: unplanned(store).await?,
        runs: runs
            .into_iter()
            .map(|run| RunLine {
                run: run.id,
                origin: Origin::name(run.origin),
                mode: run.mode,
                started: run.started,
                ended: run.ended,
                cut: run.cut,
                outcome: run.outcome,
                counts: run.counts,
            })
            .collect(),
    })
}

impl Report {
    /// Ticks in a row that planned nothing; 0 if the last one planned.
    #[must_use]
    pub fn unplanned_ticks(&self) -> u64 {
        self.unplanned
            .as_ref()
            .map_or(0, |unplanned| unplanned.ticks)
    }
}

impl Engine {
    /// How far the copy of a selection is. The store has to be prepared.
    ///
    /// # Errors
    /// What the store could not do.
    pub async fn report(&self, selection: &SelectionKey) -> Result<Report> {
        self.follow_store_clock().await?;
        report(
            self.store.as_ref(),
            &self.slots,
            selection,
            self.clock.now(),
        )
        .await
    }

    /// Keeps a report in the store, in place of the last one.
    ///
    /// # Errors
    /// What the store could not do.
    pub async fn keep_report(&self, report: &Report) -> Result<()> {
        let before = self.record(REPORT).await?;
        let after = Record {
            value: serde_json::json!(report).to_string(),
            ..before.clone()
        };
        // Refused means that another one was kept at the same time: as good.
        self.store
            .ledger()
            .swap_record(&before, &after)
            .await
            .map(|_| ())
    }

    /// Counts a message that nobody can read, for the report.
    ///
    /// # Errors
    /// What the store could not do.
    pub async fn note_unreadable(&self, why: &Unreadable) -> Result<()> {
        tracing::error!("a message was set aside: {why}");
        loop {
            let (before, seen) = seen(self.store.as_ref()).await?;
            let value = Seen {
                count: seen.count + 1,
                by: uuid::Uuid::now_v7().to_string(),
            };
            let after = Record {
                value: serde_json::json!(value).to_string(),
                ..before.clone()
            };
            if self
                .store
                .ledger()
                .swap_record(&before, &after)
                .await?
                .is_some()
            {
                return Ok(());
            }
        }
    }
}

async fn seen(store: &dyn Store) -> Result<(Record, Seen)> {
    let kept = record(store, UNREADABLE).await?;
    let seen = serde_json::from_str(&kept.value).unwrap_or_default();
    Ok((kept, seen))
}
