//! Decides what a run does: which windows of which templates are read, compared and tried again.

use std::collections::{BTreeMap, BTreeSet};

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    ALL_TEMPLATES, Census, CensusLine, Counts, Cut, Member, Mode, Request, Scope, SelectionKey,
    Slice, SliceKind, SliceState, Watermark, Window, short_digest,
};
use crate::plan::census::{Splitter, in_time, proven_census};
use crate::plan::contiguous::{contiguous, is_behind};
use crate::plan::keeper::PlanKeeper;
use crate::plan::overlap::{lacking, unchecked_late};
use crate::plan::terms::{Plan, PlanTerms};
use crate::ports::{Source, Store};
use crate::seeded::{Bug, planted};
use crate::transform::Transform;
use crate::work::Budget;

/// A template whose news are at most this part of a slice shares one with others: so many parts at least can be worked at once.
const SHARE: u64 = 4;

/// So many templates share a slice at most: a page can hold compositions of each of them, and their converters are needed at once.
const MEMBERS: usize = 50;

/// What a plan looks at.
pub struct PlanParts<'a> {
    /// Where compositions come from.
    pub source: &'a dyn Source,
    /// What the copy holds.
    pub store: &'a dyn Store,
    /// Names the rows of the copy.
    pub transform: &'a Transform,
    /// Keeps what is planned so far.
    pub keeper: &'a dyn PlanKeeper,
    /// Looked at before each question to the source.
    pub budget: &'a Budget,
}

/// Plans a run. Its slices are kept as they are found; planned again, a run goes on behind those that it has. Its watermarks are
/// for whoever asked, to be raised when all slices are kept. Finished slices of the runs `counted` stay: their counts are still
/// wanted.
///
/// # Errors
/// `FutureWatermark`, `UnknownTemplate`, `Interrupted` at the end of the budget, and whatever the source and the store could not do.
pub async fn plan(
    parts: PlanParts<'_>,
    terms: &PlanTerms,
    request: &Request,
    run: &str,
    due: Instant,
    counted: &[String],
) -> Result<Plan> {
    let PlanParts {
        source,
        store,
        transform,
        keeper,
        budget,
    } = parts;
    let selection = request.selection.key();
    let watermarks: BTreeMap<TemplateId, Watermark> = store
        .ledger()
        .watermarks(&selection)
        .await?
        .into_iter()
        .map(|watermark| (watermark.template.clone(), watermark))
        .collect();
    let existing = store.ledger().slices(&selection).await?;
    let planner = Planner {
        source,
        store,
        transform,
        keeper,
        budget,
        terms,
        request,
        run,
        counted,
        selection,
        watermarks,
        existing,
    };
    planner.plan(due).await
}

/// What a full run throws away before it begins.
#[derive(Default)]
struct Forgotten {
    templates: Vec<TemplateId>,
    slices: Vec<String>,
}

struct Planner<'a> {
    source: &'a dyn Source,
    store: &'a dyn Store,
    transform: &'a Transform,
    keeper: &'a dyn PlanKeeper,
    budget: &'a Budget,
    terms: &'a PlanTerms,
    request: &'a Request,
    run: &'a str,
    counted: &'a [String],
    selection: SelectionKey,
    watermarks: BTreeMap<TemplateId, Watermark>,
    existing: Vec<Slice>,
}

impl Planner<'_> {
    async fn plan(mut self, due: Instant) -> Result<Plan> {
        let census = self.census().await?;
        let forgotten = self.future_watermarks(census.server_time)?;
        let cut = self
            .keeper
            .fix_cut(Cut {
                at: self.cut(census.server_time),
                source_clock: census.server_time,
            })
            .await?;
        let lines: BTreeMap<&TemplateId, &CensusLine> = census
            .lines
            .iter()
            .map(|line| (&line.template, line))
            .collect();
        let templates = self.templates(&lines);
        self.refuse_unknown(&templates, &lines).await?;

        let mut finished = self.finished();
        finished.extend(forgotten.slices);
        self.keeper.forget(&forgotten.templates, &finished).await?;
        let mut plan = Plan {
            planned: cut.source_clock,
            cut: cut.at,
            slices: Vec::new(),
            watermarks: Vec::new(),
            templates: templates.clone(),
        };
        let mut small = BTreeMap::new();
        let mut large = Vec::new();
        for template in &templates {
            let line = lines.get(template).copied();
            let Some((window, line)) = self.news(template, line, &mut plan) else {
                continue;
            };
            match line.count <= self.terms.slice_size / SHARE {
                true => small.entry(window).or_insert_with(Vec::new).push(line),
                false => large.push((window, line)),
            }
        }
        for (window, lines) in small {
            let slices = self.shared_slices(window, &lines, plan.planned);
            self.add(&mut plan, slices).await?;
        }
        for (window, line) in large {
            self.plan_large(window, line, &mut plan).await?;
        }
        if self.request.templates.is_empty() {
            plan.watermarks.push(Watermark {
                template: TemplateId::new(ALL_TEMPLATES),
                until: plan.cut,
                late_checked_until: self.late_checked_at(plan.planned).min(plan.cut),
                position: None,
            });
        }
        self.plan_overlap(&mut plan).await?;
        self.plan_retries(due, &mut plan).await?;
        Ok(plan)
    }

    async fn census(&self) -> Result<Census> {
        let origin = self.request.selection.origin();
        let from = match self.request.mode {
            Mode::Full => origin,
            Mode::Incremental => self.census_start().unwrap_or(origin),
        };
        let scope = self.scope(self.request.templates.clone(), from, from);
        let census = proven_census(self.source, &scope, |server_time| self.cut(server_time));
        in_time(self.budget, census).await
    }

    /// Keeps slices, and makes them part of the plan.
    async fn add(&self, plan: &mut Plan, slices: Vec<Slice>) -> Result<()> {
        if !slices.is_empty() {
            self.keeper.add_slices(&slices).await?;
            plan.slices.extend(slices);
        }
        Ok(())
    }

    /// Up to where this run reads, if nobody fixed its cut before.
    fn cut(&self, server_time: Instant) -> Instant {
        let lagged = server_time.saturating_sub(self.terms.safety_lag);
        let selected = self.request.selection.to;
        selected.map_or(lagged, |to| to.min(lagged))
    }

    /// From where on something can be new; `None` = from the beginning.
    fn census_start(&self) -> Option<Instant> {
        if !self.request.templates.is_empty() {
            let starts = self.request.templates.iter().map(|template| {
                let known = self.watermarks.contains_key(template);
                known.then(|| self.start(template))
            });
            // A template without a watermark has no start, and sorts first.
            return starts.min().flatten();
        }
        // A template that nobody has seen yet shows up from where earlier censuses over all templates were checked for late rows.
        let all = self.watermarks.get(&TemplateId::new(ALL_TEMPLATES))?;
        let starts = self
            .templates_with_watermark()
            .map(|template| self.start(template))
            .chain([all.late_checked_until]);
        if planted(Bug::CensusFromNewestWatermark) {
            return starts.max();
        }
        starts.min()
    }

    fn is_asked_for(&self, template: &TemplateId) -> bool {
        self.request.templates.is_empty() || self.request.templates.contains(template)
    }

    fn templates_with_watermark(&self) -> impl Iterator<Item = &TemplateId> {
        self.watermarks
            .keys()
            .filter(|template| template.as_str() != ALL_TEMPLATES)
    }

    fn scope(&self, templates: Vec<TemplateId>, from: Instant, to: Instant) -> Scope {
        Scope {
            templates,
            ehrs: self.request.selection.ehrs.clone(),
            window: Window { from, to },
        }
    }

    /// Watermarks after the source's own clock: they would hide what is committed until then. Whoever asks for a full
    /// run gets them forgotten, with the finished slices that they came from.
    fn future_watermarks(&mut self, server_time: Instant) -> Result<Forgotten> {
        let future: Vec<Watermark> = self
            .watermarks
            .values()
            .filter(|watermark| {
                let asked_for = self.is_asked_for(&watermark.template)
                    || watermark.template.as_str() == ALL_TEMPLATES;
                asked_for && watermark.until > server_time
            })
            .cloned()
            .collect();
        let Some(Watermark {
            template, until, ..
        }) = future.first()
        else {
            return Ok(Forgotten::default());
        };
        if self.request.mode == Mode::Incremental {
            return Err(Error::new(
                ErrorKind::FutureWatermark,
                format!(
                    "go on from the watermark of {}: it says {until}, the source's clock says {server_time}",
                    match template.as_str() {
                        ALL_TEMPLATES => "all templates".to_owned(),
                        name => format!("`{name}`"),
                    }
                ),
            )
            .fix(
                "is the source's clock right, and is this the store of this source? If both are, `atlas export --mode full` \
                 forgets this watermark and reads everything again",
            ));
        }
        let templates: Vec<TemplateId> = future
            .into_iter()
            .map(|watermark| watermark.template)
            .collect();
        self.watermarks
            .retain(|template, _| !templates.contains(template));
        let (slices, kept) =
            std::mem::take(&mut self.existing)
                .into_iter()
                .partition(|slice: &Slice| {
                    slice.state == SliceState::Done && slice.window.to > server_time
                });
        self.existing = kept;
        Ok(Forgotten {
            templates,
            slices: slices.into_iter().map(|slice| slice.id).collect(),
        })
    }

    fn templates(&self, lines: &BTreeMap<&TemplateId, &CensusLine>) -> BTreeSet<TemplateId> {
        if self.request.templates.is_empty() {
            lines
                .keys()
                .map(|template| (*template).clone())
                .chain(self.templates_with_watermark().cloned())
                .chain(self.existing.iter().flat_map(Slice::templates).cloned())
                .collect()
        } else {
            self.request.templates.iter().cloned().collect()
        }
    }

    /// A template nobody has heard of is looked up once, before its first watermark says "complete" about nothing.
    async fn refuse_unknown(
        &self,
        templates: &BTreeSet<TemplateId>,
        lines: &BTreeMap<&TemplateId, &CensusLine>,
    ) -> Result<()> {
        let silent: Vec<&TemplateId> = templates
            .iter()
            .filter(|template| {
                !lines.contains_key(template) && !self.watermarks.contains_key(*template)
            })
            .collect();
        if silent.is_empty() {
            return Ok(());
        }
        let served = in_time(self.budget, self.source.templates()).await?;
        match silent
            .into_iter()
            .find(|template| !served.contains(template))
        {
            None => Ok(()),
            Some(unknown) => Err(unknown_template(unknown, &served)),
        }
    }

    /// Where the next slice of a template begins: behind the watermark and the slices that follow it without a gap. A full run
    /// begins anew, and goes on behind its own slices.
    fn start(&self, template: &TemplateId) -> Instant {
        let is_full = self.request.mode == Mode::Full;
        let watermark = self
            .watermarks
            .get(template)
            .filter(|_| !is_full)
            .map(|watermark| watermark.until);
        let mut reads: Vec<Window> = self
            .existing
            .iter()
            .filter(|slice| slice.reads(template))
            .filter(|slice| !is_full || slice.id.ends_with(self.run))
            .map(|slice| slice.window)
            .collect();
        contiguous(
            watermark.unwrap_or_else(|| self.request.selection.origin()),
            &mut reads,
        )
    }

    /// What is new of a template, and where; without news its watermark can be raised.
    fn news<'l>(
        &self,
        template: &TemplateId,
        line: Option<&'l CensusLine>,
        plan: &mut Plan,
    ) -> Option<(Window, &'l CensusLine)> {
        let start = self.start(template);
        let window = Window {
            from: start,
            to: plan.cut,
        };
        if window.is_empty() {
            return None;
        }
        let planned = plan.planned;
        let news = line.filter(|line| line.last >= start && line.first < plan.cut);
        if news.is_none() {
            let idle = !self
                .existing
                .iter()
                .any(|slice| slice.reads(template) && slice.state != SliceState::Done);
            if idle {
                let before = self.watermarks.get(template);
                // Nothing was visible in the window: as good as read. The overlap settles the rest below.
                let late_checked_until = before.map_or_else(
                    || self.late_checked_at(planned).min(plan.cut).max(start),
                    |watermark| watermark.late_checked_until,
                );
                plan.watermarks.push(Watermark {
                    template: template.clone(),
                    until: plan.cut,
                    late_checked_until: late_checked_until.min(plan.cut),
                    position: None,
                });
            }
        }
        news.map(|line| (window, line))
    }

    /// Small templates of the same window, as many in a slice as share it well.
    fn shared_slices(&self, window: Window, lines: &[&CensusLine], planned: Instant) -> Vec<Slice> {
        let mut shared: Vec<Vec<&CensusLine>> = Vec::new();
        let mut held = 0;
        for line in lines {
            match shared.last_mut() {
                Some(last)
                    if last.len() < MEMBERS
                        && held + line.count <= self.terms.slice_size / SHARE =>
                {
                    last.push(line);
                    held += line.count;
                }
                _ => {
                    shared.push(vec![line]);
                    held = line.count;
                }
            }
        }
        let slice = |lines: Vec<&CensusLine>| {
            let expected = lines.iter().map(|line| line.count).sum();
            let (kind, first) = (SliceKind::Read, &lines[0].template);
            if lines.len() == 1 {
                return self.slice(kind, first, window, expected, planned);
            }
            let digest = short_digest(lines.iter().map(|line| line.template.as_str()));
            let members = lines.iter().map(|line| Member {
                template: line.template.clone(),
                expected: line.count,
                taken_out: false,
                counts: Counts::default(),
            });
            Slice {
                id: self.slice_id(kind, &format!("shared-{digest}"), window),
                members: members.collect(),
                ..self.slice(kind, first, window, expected, planned)
            }
        };
        shared.into_iter().map(slice).collect()
    }

    /// A template whose news fill a slice or more.
    async fn plan_large(&self, window: Window, line: &CensusLine, plan: &mut Plan) -> Result<()> {
        let (template, planned) = (&line.template, plan.planned);
        let slice =
            |(window, expected)| self.slice(SliceKind::Read, template, window, expected, planned);
        if line.count <= self.terms.slice_size {
            return self.add(plan, vec![slice((window, line.count))]).await;
        }
        let scope = self.scope(vec![template.clone()], window.from, window.to);
        let size = self.terms.slice_size;
        let mut splitter = Splitter::new(self.source, self.budget, scope, line, size).await?;
        while let Some(parts) = splitter.next().await? {
            self.add(plan, parts.into_iter().map(slice).collect())
                .await?;
        }
        Ok(())
    }

    /// Two planners that decide the same about the same selection give the same id to a slice that is read once, whatever their
    /// cuts are; everything that is done once a run carries the run in its id.
    fn slice_id(&self, kind: SliceKind, name: &str, window: Window) -> String {
        let selection = &self.selection.0;
        let (from, to) = (window.from, window.to);
        if kind == SliceKind::Read && self.request.mode == Mode::Incremental {
            format!("{selection}/{name}/{from}")
        } else {
            let (run, kind) = (self.run, kind.name());
            format!("{selection}/{name}/{from}/{to}/{kind}/{run}")
        }
    }

    fn slice(
        &self,
        kind: SliceKind,
        template: &TemplateId,
        window: Window,
        expected: u64,
        planned: Instant,
    ) -> Slice {
        Slice {
            expected,
            ..Slice::new(
                self.slice_id(kind, template.as_str(), window),
                self.run.to_owned(),
                self.selection.clone(),
                template.clone(),
                kind,
                window,
                planned,
            )
        }
    }

    /// Up to where rows are old enough to be visible, by the source's clock.
    fn late_checked_at(&self, server_time: Instant) -> Instant {
        if planted(Bug::OverlapZero) {
            return server_time;
        }
        server_time.saturating_sub(self.terms.overlap)
    }

    /// Compares uids between `late_checked_until` and `until`, all templates in one listing; a template that lags far behind the
    /// others is compared by itself, when its slice is worked. What is compared now counts as checked as far as it is old enough.
    async fn plan_overlap(&self, plan: &mut Plan) -> Result<()> {
        if self.request.mode == Mode::Full {
            return Ok(());
        }
        let compared: Vec<&Watermark> = self
            .watermarks
            .values()
            .filter(|watermark| {
                plan.templates.contains(&watermark.template)
                    && watermark.late_checked_until < watermark.until
            })
            .collect();
        let Some(earliest_near) = compared
            .iter()
            .map(|watermark| watermark.late_checked_until)
            .max()
            .map(|latest| latest.saturating_sub(self.terms.overlap))
        else {
            return Ok(());
        };
        let (together, alone): (Vec<&Watermark>, Vec<&Watermark>) = compared
            .iter()
            .partition(|watermark| watermark.late_checked_until >= earliest_near);
        let scope = self.scope(
            self.request.templates.clone(),
            Instant::EPOCH,
            Instant::EPOCH,
        );
        let lacking = lacking(
            self.source,
            self.store,
            self.transform,
            &scope,
            &together,
            self.terms.list,
        );
        let lacking = in_time(self.budget, lacking).await?;
        let planned = plan.planned;
        let mut slices = Vec::new();
        for watermark in compared {
            let window = unchecked_late(watermark);
            let expected = lacking.get(&watermark.template).copied();
            if expected.is_some() || alone.contains(&watermark) {
                slices.push(self.slice(
                    SliceKind::Compare,
                    &watermark.template,
                    window,
                    expected.unwrap_or_default(),
                    planned,
                ));
            }
            // Durable together with the slices that still have to fetch what was found lacking.
            plan.watermarks.push(Watermark {
                late_checked_until: self.late_checked_at(planned).min(watermark.until),
                ..watermark.clone()
            });
        }
        self.add(plan, slices).await
    }

    async fn plan_retries(&self, due: Instant, plan: &mut Plan) -> Result<()> {
        let mut by_template: BTreeMap<TemplateId, u64> = BTreeMap::new();
        for count in self.store.ledger().quarantine_counts(Some(due)).await? {
            if plan.templates.contains(&count.template) {
                *by_template.entry(count.template).or_insert(0) += count.entries;
            }
        }
        let mut slices = Vec::new();
        for (template, count) in by_template {
            let waits = self.existing.iter().any(|slice| {
                slice.template == template
                    && slice.kind == SliceKind::Retry
                    && slice.state != SliceState::Done
            });
            if waits {
                continue;
            }
            let window = Window {
                from: self.request.selection.origin(),
                to: plan.cut,
            };
            slices.push(self.slice(SliceKind::Retry, &template, window, count, plan.planned));
        }
        self.add(plan, slices).await
    }

    fn finished(&self) -> Vec<String> {
        let watermarks: Vec<Watermark> = self.watermarks.values().cloned().collect();
        self.existing
            .iter()
            .filter(|slice| is_behind(slice, &watermarks) && !self.counted.contains(&slice.run))
            .map(|slice| slice.id.clone())
            .collect()
    }
}

fn unknown_template(unknown: &TemplateId, served: &[TemplateId]) -> Error {
    let mut near: Vec<(usize, &TemplateId)> = served
        .iter()
        .map(|template| {
            let distance = strsim::damerau_levenshtein(
                &unknown.as_str().to_lowercase(),
                &template.as_str().to_lowercase(),
            );
            (distance, template)
        })
        .collect();
    near.sort();
    let near: Vec<String> = near
        .into_iter()
        .take(3)
        .map(|(_, template)| format!("`{template}`"))
        .collect();
    let fix = if near.is_empty() {
        "the source has no templates at all: is this the right server?".to_owned()
    } else {
        format!(
            "the nearest of the source's {} templates are {}; `atlas discover` lists all",
            served.len(),
            near.join(", ")
        )
    };
    Error::new(
        ErrorKind::UnknownTemplate,
        format!("find the template `{unknown}`"),
    )
    .fix(fix)
}
