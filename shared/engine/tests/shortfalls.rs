//! A source that shows less than it counts or lists: nothing of that is taken for the whole.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use atlas_engine::checked::CheckedSource;
use atlas_engine::engine::Engine;
use atlas_engine::export::Report;
use atlas_engine::memory::{Commits, MemoryStore};
use atlas_engine::model::{
    Census, Cursor, Meta, Mode, Outcome, Page, QuarantineFilter, Reason, Scope, Usage, Window,
};
use atlas_engine::plan::proven_census;
use atlas_engine::ports::{Compositions, Definitions, FlatOracle, Source, Store};
use atlas_engine::slots::SlotGatedSource;
use atlas_engine::work::Budget;
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::time::Instant;

use support::{BEGIN, World, copy, engine, object_id, request};

/// What a server leaves out of its answers.
#[derive(Default)]
struct LeftOut {
    /// Lines of a census at most.
    census_lines: Option<usize>,
    /// Of pages.
    of_pages: Vec<ObjectId>,
    /// Of pages, from the second one of a slice on: all.
    pages_after_the_first: bool,
    /// Pages fail, as if a composition could not be read.
    no_pages: bool,
    /// Of answers to a question by uid.
    of_fetches: Vec<ObjectId>,
    /// Of answers to a question by uid: all.
    all_of_fetches: bool,
    /// Of pages and listings.
    of_everything: Vec<ObjectId>,
    /// Counts are all the same.
    bounds_of_counts: bool,
    /// Half of a time holds so much of what the whole holds, by the server's counts.
    share_of_halves: Option<f64>,
}

/// What a server that lies about halves counts in the whole, and the seconds that this lies in.
const COUNTED: f64 = 1e9;
const COUNTED_IN: f64 = 20_000.0;

/// The world, through such a server.
struct Server {
    world: Arc<World>,
    left_out: LeftOut,
    /// Commits one more composition after each census.
    busy: Option<AtomicU64>,
}

fn without(page: &mut Page, objects: &[ObjectId]) {
    let is_left_out = |meta: &Meta| objects.contains(meta.uid.object_id());
    page.rows.retain(|row| !is_left_out(&row.meta));
}

#[async_trait]
impl Compositions for Server {
    async fn census(&self, scope: &Scope) -> Result<Census> {
        let mut census = self.world.census(scope).await?;
        let most = self.left_out.census_lines.unwrap_or(usize::MAX);
        census.lines.truncate(most);
        if self.left_out.share_of_halves.is_some() {
            census.lines.truncate(1);
            for line in &mut census.lines {
                line.count = COUNTED as u64;
                line.last = line
                    .first
                    .saturating_add(Duration::from_secs_f64(COUNTED_IN));
            }
        }
        if let Some(number) = &self.busy {
            // Visible only after the census, and committed before its cut.
            let committed = self.world.now().saturating_sub(Duration::from_secs(90));
            let object = number.fetch_add(1, Ordering::Relaxed);
            self.world.commit(object, 0, committed, Duration::ZERO);
        }
        Ok(census)
    }

    async fn count(&self, scope: &Scope) -> Result<u64> {
        if let Some(share) = self.left_out.share_of_halves {
            let length = scope.window.to.duration_since(scope.window.from);
            let halvings = (COUNTED_IN / length.as_secs_f64().max(1e-6)).log2();
            return Ok((COUNTED * share.powf(halvings.max(0.0))) as u64);
        }
        match self.left_out.bounds_of_counts {
            true => Ok(120),
            false => self.world.count(scope).await,
        }
    }

    async fn page(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Page> {
        if self.left_out.no_pages {
            return Err(Error::new(
                ErrorKind::SourceUnreadable,
                "read a page: status 500",
            ));
        }
        let mut page = self.world.page(scope, after, limit).await?;
        if self.left_out.pages_after_the_first && after.is_some() {
            page.rows.clear();
        }
        without(&mut page, &self.left_out.of_pages);
        without(&mut page, &self.left_out.of_everything);
        Ok(page)
    }

    async fn list(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Vec<Meta>> {
        let mut metas = self.world.list(scope, after, limit).await?;
        metas.retain(|meta| !self.left_out.of_everything.contains(meta.uid.object_id()));
        Ok(metas)
    }

    async fn fetch(&self, scope: &Scope, objects: &[ObjectId]) -> Result<Page> {
        let mut page = self.world.fetch(scope, objects).await?;
        if self.left_out.all_of_fetches {
            page.rows.clear();
        }
        without(&mut page, &self.left_out.of_fetches);
        Ok(page)
    }
}

#[async_trait]
impl Definitions for Server {
    async fn templates(&self) -> Result<Vec<TemplateId>> {
        self.world.templates().await
    }

    async fn web_template(&self, template: &TemplateId) -> Result<String> {
        self.world.web_template(template).await
    }
}

#[async_trait]
impl FlatOracle for Server {
    async fn flat(&self, meta: &Meta) -> Result<String> {
        self.world.flat(meta).await
    }
}

impl Source for Server {
    fn usage(&self) -> Usage {
        self.world.usage()
    }
}

/// 120 compositions of three templates; several of one template share a commit time.
fn world() -> Arc<World> {
    let world = World::new(7, 3);
    let begin = Instant::parse(BEGIN)
        .unwrap()
        .saturating_sub(Duration::from_secs(90_000));
    for object in 0..120 {
        let committed = begin.saturating_add(Duration::from_secs(object / 6));
        world.commit(object, (object % 3) as usize, committed, Duration::ZERO);
    }
    world
}

fn over(world: &Arc<World>, store: &MemoryStore, left_out: LeftOut) -> Engine {
    let engine = engine(world, store);
    let server = Server {
        world: Arc::clone(world),
        left_out,
        busy: None,
    };
    let source = Arc::new(CheckedSource::new(Arc::new(server)));
    Engine {
        source: Arc::new(SlotGatedSource::new(
            source,
            Arc::new(world.clock()),
            &engine.slots,
        )),
        ..engine
    }
}

async fn run(world: &Arc<World>, store: &MemoryStore, left_out: LeftOut) -> Result<Report> {
    over(world, store, left_out)
        .export(&request(Mode::Incremental), &Budget::default())
        .await
}

/// The run says that the server contradicts itself, and an honest server completes the copy afterwards.
async fn is_untrue(left_out: impl Fn() -> LeftOut) {
    for commits in Commits::ALL {
        let world = world();
        let store = MemoryStore::new(commits);
        let kind = match run(&world, &store, left_out()).await {
            Err(error) => error.kind(),
            Ok(report) => report
                .stopped_by
                .expect("the run says what stopped it")
                .kind(),
        };
        assert_eq!(kind, ErrorKind::SourceUntrue);
        let report = run(&world, &store, LeftOut::default()).await.unwrap();
        assert_eq!(report.outcome, Outcome::Complete);
        assert_eq!(copy(&store), world.truth());
    }
}

#[tokio::test(start_paused = true)]
async fn a_census_that_hides_templates_is_untrue_wherever_their_commit_times_lie() {
    for lines in [1, 2] {
        is_untrue(|| LeftOut {
            census_lines: Some(lines),
            ..LeftOut::default()
        })
        .await;
    }
    // What is hidden was committed after everything that is shown.
    let world = World::new(7, 2);
    for object in 0..10 {
        let ago = Duration::from_secs(9_000 - 100 * object);
        let committed = world.now().saturating_sub(ago);
        world.commit(object, (object / 5) as usize, committed, Duration::ZERO);
    }
    let store = MemoryStore::new(Commits::InOneTransaction);
    let left_out = LeftOut {
        census_lines: Some(1),
        ..LeftOut::default()
    };
    let error = run(&world, &store, left_out).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUntrue);
}

#[tokio::test(start_paused = true)]
async fn a_census_of_a_source_that_is_written_to_all_the_time_is_believed() {
    let world = world();
    let server = Server {
        world: Arc::clone(&world),
        left_out: LeftOut::default(),
        busy: Some(AtomicU64::new(1_000)),
    };
    let scope = Scope {
        templates: Vec::new(),
        ehrs: Vec::new(),
        window: Window::EVER,
    };
    let before = world.requests();
    let census = proven_census(&server, &scope, |now| now).await.unwrap();
    assert_eq!(census.lines.len(), 3);
    // One census, a count of all, a count of its templates.
    assert_eq!(world.requests() - before, 3);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_leaves_a_composition_out_is_untrue() {
    for object in [0, 55, 119] {
        is_untrue(|| LeftOut {
            of_pages: vec![object_id(object)],
            ..LeftOut::default()
        })
        .await;
        is_untrue(|| LeftOut {
            of_everything: vec![object_id(object)],
            ..LeftOut::default()
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn pages_that_end_too_early_are_untrue_even_within_one_commit_time() {
    is_untrue(|| LeftOut {
        pages_after_the_first: true,
        ..LeftOut::default()
    })
    .await;
    let world = World::new(7, 1);
    let committed = world.now().saturating_sub(Duration::from_secs(9_000));
    for object in 0..40 {
        world.commit(object, 0, committed, Duration::ZERO);
    }
    let store = MemoryStore::new(Commits::InOneTransaction);
    let left_out = LeftOut {
        pages_after_the_first: true,
        ..LeftOut::default()
    };
    // What the next page should hold is listed, in larger first pages, and read by uid.
    let report = run(&world, &store, left_out).await.unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
    assert_eq!(copy(&store), world.truth());
}

#[tokio::test(start_paused = true)]
async fn what_becomes_visible_behind_the_cursor_while_another_goes_is_read_as_well() {
    let world = world();
    let store = MemoryStore::new(Commits::InOneTransaction);
    // One moves to the end by a new version after the plan has counted it; one shows up where pages have passed already.
    let early = world.shown()[0].committed;
    world.commit(0, 0, world.now(), Duration::from_millis(100));
    world.commit(999, 0, early, Duration::from_millis(150));
    world.slow(Duration::from_millis(60));
    let report = run(&world, &store, LeftOut::default()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
    let copy = copy(&store);
    for version in world.shown().iter().filter(|version| version.object != 0) {
        assert!(copy.contains_key(&(object_id(version.object), version.version)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_composition_that_is_listed_and_never_shown_goes_to_quarantine() {
    for commits in Commits::ALL {
        let world = world();
        let store = MemoryStore::new(commits);
        let left_out = LeftOut {
            no_pages: true,
            of_fetches: vec![object_id(7), object_id(8)],
            ..LeftOut::default()
        };
        let report = run(&world, &store, left_out).await.unwrap();
        assert_eq!(report.outcome, Outcome::Partial);
        assert_eq!((report.counts.written, report.counts.quarantined), (118, 2));
        assert!(report.counts.conserved());
        let entries = store
            .ledger()
            .quarantined(&QuarantineFilter::default(), 10)
            .await
            .unwrap();
        assert!(
            entries
                .iter()
                .all(|entry| entry.reason == Reason::Unreadable)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_lists_everything_and_shows_nothing_puts_nothing_into_quarantine() {
    let world = world();
    let store = MemoryStore::new(Commits::InOneTransaction);
    let left_out = LeftOut {
        no_pages: true,
        all_of_fetches: true,
        ..LeftOut::default()
    };
    let report = run(&world, &store, left_out).await.unwrap();
    assert_eq!(report.outcome, Outcome::Failed);
    assert_eq!((report.counts.read, report.counts.quarantined), (0, 0));
    let report = run(&world, &store, LeftOut::default()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
    assert_eq!(copy(&store), world.truth());
}

#[tokio::test(start_paused = true)]
async fn counts_that_do_not_look_at_their_bounds_end_the_plan() {
    let world = World::new(7, 1);
    for object in 0..120 {
        let ago = Duration::from_secs(90_000 - object);
        let committed = world.now().saturating_sub(ago);
        world.commit(object, 0, committed, Duration::ZERO);
    }
    let store = MemoryStore::new(Commits::InOneTransaction);
    let left_out = LeftOut {
        bounds_of_counts: true,
        ..LeftOut::default()
    };
    let error = run(&world, &store, left_out).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUntrue);
}

#[tokio::test]
async fn counts_that_promise_a_little_more_in_every_half_end_the_planning() {
    // Of honest halves each holds 0.5 of the whole; 0.75 is as much as one division alone is believed.
    for share in [0.6, 0.7, 0.75, 0.8, 1.0] {
        let store = MemoryStore::new(Commits::InOneTransaction);
        let left_out = LeftOut {
            share_of_halves: Some(share),
            ..LeftOut::default()
        };
        let error = run(&world(), &store, left_out).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUntrue, "{share}");
    }
}
