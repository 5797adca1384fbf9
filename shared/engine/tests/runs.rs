//! Whole runs against a simulated CDR, in stores with and without transactions.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atlas_engine::ErrorKind;
use atlas_engine::engine::Engine;
use atlas_engine::memory::{Commits, Fault, MemoryStore};
use atlas_engine::model::{
    Counts, Format, Mode, Origin, Outcome, QuarantineFilter, Reason, Record, Rejected, Request, Run,
};
use atlas_engine::ports::{Event, Observer, Store};
use atlas_engine::work::Budget;
use atlas_engine::work::convert::{Converter, Converters};
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use tokio_util::sync::CancellationToken;

use support::{AsItIs, BEGIN, World, copy, engine, meta, request, template_id};

const HOUR: Duration = Duration::from_secs(3600);

fn filled(seed: u64, objects: u64) -> std::sync::Arc<World> {
    let world = World::new(seed, 3);
    let begin = Instant::parse(BEGIN).unwrap().saturating_sub(48 * HOUR);
    for object in 0..objects {
        // Every fifth shares its commit time with the one before.
        let tick = object - object % 5 % 2;
        let committed = begin.saturating_add(Duration::from_millis(tick * 700));
        world.commit(object, (object % 3) as usize, committed, Duration::ZERO);
    }
    world
}

#[tokio::test(start_paused = true)]
async fn a_full_export_copies_everything_and_an_idle_run_asks_twice_and_writes_nothing() {
    for commits in Commits::ALL {
        let world = filled(1, 500);
        let store = MemoryStore::new(commits);
        let engine = engine(&world, &store);
        let first = engine
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .unwrap();
        assert_eq!(first.outcome, Outcome::Complete);
        assert_eq!(first.counts.written, 500);
        assert!(first.counts.conserved());
        assert_eq!(copy(&store), world.truth());
        for report in first.templates.values() {
            assert_eq!(report.watermark, Some(first.cut));
        }

        let commits = store.commits();
        let second = engine
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .unwrap();
        assert_eq!(second.outcome, Outcome::Complete);
        assert_eq!(second.usage.requests, 2);
        assert_eq!(second.counts.read, 0);
        assert_eq!(store.commits(), commits);
    }
}

#[tokio::test(start_paused = true)]
async fn records_of_old_runs_go_with_the_next_export_or_plan() {
    for by_schedule in [false, true] {
        let (world, store) = (filled(1, 5), MemoryStore::new(Commits::InOneTransaction));
        let engine = engine(&world, &store);
        let now = engine.clock.now();
        for days in [91, 89] {
            let ended = now.saturating_sub(days * 24 * HOUR);
            let run = Run {
                id: format!("{days} days ago"),
                step: 0,
                origin: Origin::Timer,
                request: None,
                selection: request(Mode::Incremental).selection.key(),
                mode: Mode::Incremental,
                started: ended,
                ended: Some(ended),
                cut: None,
                source_clock: None,
                planned: true,
                outcome: Some(Outcome::Complete),
                counts: Counts::default(),
                failure: None,
            };
            assert!(store.ledger().add_run(&run).await.unwrap());
        }
        let (request, budget) = (request(Mode::Incremental), Budget::default());
        if by_schedule {
            let tick = engine.plan_and_repair(now, &request, &budget).await;
            assert!(tick.unwrap().cut.is_some());
        } else {
            engine.export(&request, &budget).await.unwrap();
        }
        assert!(store.ledger().run("91 days ago").await.unwrap().is_none());
        assert!(store.ledger().run("89 days ago").await.unwrap().is_some());
        assert_eq!(store.ledger().runs(9).await.unwrap().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_replaces_and_a_late_arrival_within_the_overlap_is_found() {
    for commits in Commits::ALL {
        let world = filled(2, 90);
        let store = MemoryStore::new(commits);
        let engine = engine(&world, &store);
        // Committed well before the cut of the first run, visible only after it.
        let late = world.now().saturating_sub(Duration::from_secs(120));
        world.commit(1000, 1, late, Duration::from_secs(300));
        engine
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .unwrap();
        assert_eq!(store.compositions().len(), 90);

        tokio::time::advance(Duration::from_secs(400)).await;
        world.commit(7, 7 % 3, world.now(), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(100)).await;
        let report = engine
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .unwrap();
        assert_eq!(report.outcome, Outcome::Complete);
        assert_eq!(report.counts.written, 2);
        assert_eq!(copy(&store), world.truth());
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_composition_goes_to_quarantine_and_the_rest_arrives() {
    for commits in Commits::ALL {
        let world = filled(3, 200);
        let begin = Instant::parse(BEGIN).unwrap().saturating_sub(40 * HOUR);
        for object in [900, 901, 950] {
            let at = begin.saturating_add(Duration::from_secs(object));
            world.put(object, 1, at, Duration::ZERO, true);
        }
        let store = MemoryStore::new(commits);
        let engine = engine(&world, &store);
        let first = engine
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .unwrap();
        assert_eq!(first.outcome, Outcome::Partial);
        assert_eq!((first.counts.written, first.counts.quarantined), (200, 3));
        assert!(first.counts.conserved());
        assert_eq!(copy(&store), world.truth());

        let second = engine
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .unwrap();
        assert_eq!(
            (second.outcome, second.usage.requests),
            (Outcome::Complete, 2)
        );

        // A day later each is tried once, by itself.
        tokio::time::advance(25 * HOUR).await;
        let third = engine
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .unwrap();
        assert_eq!(
            (third.outcome, third.counts.quarantined),
            (Outcome::Complete, 3)
        );
        let entries = store
            .ledger()
            .quarantined(&QuarantineFilter::default(), usize::MAX)
            .await
            .unwrap();
        assert!(entries.iter().all(|entry| entry.tries == 2), "{entries:?}");

        // Mended in the source: the new version ends the quarantine.
        world.commit(900, 1, world.now(), Duration::ZERO);
        tokio::time::advance(HOUR).await;
        engine
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .unwrap();
        let left = store
            .ledger()
            .quarantined(&QuarantineFilter::default(), usize::MAX)
            .await
            .unwrap();
        assert_eq!(left.len(), 2);
        assert_eq!(copy(&store), world.truth());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_repeats_but_does_not_duplicate() {
    for commits in Commits::ALL {
        let world = filled(4, 120);
        let store = MemoryStore::new(commits);
        let lost = Some(Fault::LoseAnswer(ErrorKind::StoreUnreachable));
        let between = Some(Fault::DieBetween(ErrorKind::StoreUnreachable));
        store.script([None, lost, None, between, lost, lost]);
        let report = engine(&world, &store)
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .unwrap();
        assert_eq!(report.outcome, Outcome::Complete);
        assert_eq!(report.counts.read, 120);
        assert!(report.counts.conserved());
        assert_eq!(copy(&store), world.truth());
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_full_stops_the_run_and_the_next_one_completes_it() {
    let world = filled(5, 300);
    let store = MemoryStore::new(Commits::InOneTransaction);
    store.script([None, None, Some(Fault::Refuse(ErrorKind::StoreFull))]);
    let engine = engine(&world, &store);
    let report = engine
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(report.outcome, Outcome::Failed);
    assert_eq!(
        report.stopped_by.map(|error| error.kind()),
        Some(ErrorKind::StoreFull)
    );
    assert!(report.counts.written < 300);
    let report = engine
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
    assert_eq!(copy(&store), world.truth());
}

/// Asks for a stop once so many pages are durable.
struct StopAfter {
    pages: AtomicU64,
    stop: CancellationToken,
}

impl Observer for StopAfter {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::Page { .. }) && self.pages.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.stop.cancel();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_comes_at_a_page_boundary_and_the_next_run_goes_on() {
    let world = filled(6, 400);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let budget = Budget::default();
    let stopping = Engine {
        observer: std::sync::Arc::new(StopAfter {
            pages: AtomicU64::new(5),
            stop: budget.stop.clone(),
        }),
        ..engine(&world, &store)
    };
    let first = stopping
        .export(&request(Mode::Incremental), &budget)
        .await
        .unwrap();
    assert_eq!(first.outcome, Outcome::Interrupted);
    assert!(first.counts.conserved());
    assert!(
        (1..400).contains(&first.counts.written),
        "{:?}",
        first.counts
    );
    let second = engine(&world, &store)
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(second.outcome, Outcome::Complete);
    assert_eq!(first.counts.written + second.counts.written, 400);
    assert_eq!(second.counts.unchanged, 0);
    assert_eq!(copy(&store), world.truth());
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_begins_no_page_and_the_next_run_goes_on() {
    let world = filled(17, 400);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let engine = engine(&world, &store);
    let budget = Budget {
        until: Some(tokio::time::Instant::now()),
        ..Budget::default()
    };
    let first = engine
        .export(&request(Mode::Incremental), &budget)
        .await
        .unwrap();
    assert_eq!(first.outcome, Outcome::Interrupted);
    assert_eq!(first.counts.read, 0);
    engine
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(copy(&store), world.truth());
}

#[tokio::test(start_paused = true)]
async fn a_second_run_at_once_is_refused() {
    let world = filled(7, 100);
    let store = MemoryStore::new(Commits::InOneTransaction);
    world.slow(Duration::from_secs(20));
    let (one, two) = (engine(&world, &store), engine(&world, &store));
    let (asked, budget) = (request(Mode::Incremental), Budget::default());
    let (one, two) = tokio::join!(one.export(&asked, &budget), async {
        let begun = tokio::time::Instant::now();
        let refused = two.export(&asked, &budget).await;
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "a heartbeat is enough"
        );
        refused
    });
    assert_eq!(one.unwrap().outcome, Outcome::Complete);
    assert_eq!(two.unwrap_err().kind(), ErrorKind::Held);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_died_is_taken_over_after_one_lease_with_all_that_it_held() {
    for commits in Commits::ALL {
        let world = filled(7, 200);
        let store = MemoryStore::new(commits);
        let asked = request(Mode::Incremental);
        world.slow(Duration::from_secs(1));
        let first = engine(&world, &store);
        // Dropped in the middle, as a kill does.
        let quiet = Budget::default();
        let dying = first.export(&asked, &quiet);
        let died = tokio::time::timeout(Duration::from_secs(3), dying).await;
        assert!(died.is_err());
        let begun = tokio::time::Instant::now();
        world.slow(Duration::from_millis(20));
        let report = engine(&world, &store)
            .export(&asked, &Budget::default())
            .await
            .unwrap();
        assert_eq!(report.outcome, Outcome::Complete);
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(20), "{commits:?}: {waited:?}");
        assert_eq!(copy(&store), world.truth());
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_dead_run_ends_by_a_stop() {
    let world = filled(7, 100);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let asked = request(Mode::Incremental);
    world.slow(Duration::from_secs(5));
    let first = engine(&world, &store);
    let quiet = Budget::default();
    let dying = first.export(&asked, &quiet);
    assert!(
        tokio::time::timeout(Duration::from_secs(1), dying)
            .await
            .is_err()
    );
    let budget = Budget::default();
    let second = engine(&world, &store);
    let (ended, ()) = tokio::join!(second.export(&asked, &budget), async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        budget.stop.cancel();
    });
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Interrupted);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_stopped_for_a_while_finds_its_lease_lost_and_works_no_further() {
    let world = filled(7, 300);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let asked = request(Mode::Incremental);
    world.slow(Duration::from_secs(30));
    let first = engine(&world, &store);
    let budget = Budget::default();
    let (first, ()) = tokio::join!(first.export(&asked, &budget), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Somebody has taken over, as after a lease without a heartbeat.
        let lease = store.ledger().records("export").await.unwrap().remove(0);
        let other = Record {
            owner: Some("export/other".to_owned()),
            ..lease.clone()
        };
        store
            .ledger()
            .swap_record(&lease, &other)
            .await
            .unwrap()
            .unwrap();
    });
    match first {
        Ok(report) => assert_eq!(report.stopped_by.unwrap().kind(), ErrorKind::LostLease),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted),
    }
    assert!(store.compositions().len() < 300);
}

#[tokio::test(start_paused = true)]
async fn a_template_added_to_the_list_is_filled_up_from_the_beginning() {
    let world = filled(8, 90);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let engine = engine(&world, &store);
    let only = |templates: &[usize]| Request {
        templates: templates.iter().copied().map(template_id).collect(),
        ..request(Mode::Incremental)
    };
    engine
        .export(&only(&[0]), &Budget::default())
        .await
        .unwrap();
    assert_eq!(store.compositions().len(), 30);
    tokio::time::advance(HOUR).await;
    let report = engine
        .export(&only(&[0, 2]), &Budget::default())
        .await
        .unwrap();
    assert_eq!(report.counts.written, 30);
    assert_eq!(store.compositions().len(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_run_over_all_templates_reads_what_a_listed_run_left_out() {
    let world = filled(14, 90);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let engine = engine(&world, &store);
    let listed = Request {
        templates: vec![template_id(1)],
        ..request(Mode::Incremental)
    };
    engine.export(&listed, &Budget::default()).await.unwrap();
    assert_eq!(store.compositions().len(), 30);
    tokio::time::advance(HOUR).await;
    engine
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(copy(&store), world.truth());
}

#[tokio::test(start_paused = true)]
async fn the_first_composition_of_a_template_is_found_when_it_becomes_visible_late() {
    let world = filled(15, 30);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let engine = engine(&world, &store);
    let late = world.now().saturating_sub(Duration::from_secs(120));
    // `World::new` has three templates with compositions; nobody has seen this one yet.
    world.commit(500, 3, late, Duration::from_secs(300));
    engine
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    tokio::time::advance(Duration::from_secs(400)).await;
    engine
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(store.compositions().len(), 31);
    assert_eq!(copy(&store), world.truth());
}

/// Writes canonical JSON and calls it something else.
struct Renamed(Format);

#[async_trait::async_trait]
impl Converters for Renamed {
    fn format(&self) -> Format {
        self.0
    }

    async fn of(&self, template: &TemplateId) -> atlas_engine::Result<Converter> {
        AsItIs.of(template).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_return_to_an_earlier_format_writes_everything_again() {
    let world = filled(16, 60);
    let store = MemoryStore::new(Commits::InOneTransaction);
    for format in [
        Format::Canonical,
        Format::Preserve,
        Format::Canonical,
        Format::Canonical,
    ] {
        let engine = Engine {
            converters: std::sync::Arc::new(Renamed(format)),
            ..engine(&world, &store)
        };
        let mut asked = request(Mode::Incremental);
        asked.selection.format = format;
        let report = engine.export(&asked, &Budget::default()).await.unwrap();
        assert_eq!(report.outcome, Outcome::Complete);
        assert!(store.compositions().iter().all(|row| row.format == format));
        tokio::time::advance(HOUR).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_template_is_named_with_its_nearest() {
    let world = filled(9, 10);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let asked = Request {
        templates: vec![atlas_openehr::id::TemplateId::new("Tempalte 2.v1")],
        ..request(Mode::Incremental)
    };
    let error = engine(&world, &store)
        .export(&asked, &Budget::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownTemplate);
    assert!(error.to_string().contains("Tempalte 2.v1"));
    assert!(error.help().unwrap().contains("`template 2.v1`"));
}

#[tokio::test(start_paused = true)]
async fn a_watermark_in_the_future_is_refused() {
    let world = filled(10, 10);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let key = request(Mode::Incremental).selection.key();
    let watermark = atlas_engine::model::Watermark {
        template: template_id(0),
        until: world.now().saturating_add(HOUR),
        late_checked_until: world.now(),
        position: None,
    };
    store
        .ledger()
        .raise_watermarks(&key, &[watermark])
        .await
        .unwrap();
    let error = engine(&world, &store)
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FutureWatermark);
    assert!(store.compositions().is_empty());

    // The way out that the error names.
    let full = engine(&world, &store)
        .export(&request(Mode::Full), &Budget::default())
        .await
        .unwrap();
    assert_eq!(full.outcome, Outcome::Complete);
    assert_eq!(copy(&store), world.truth());
    let watermarks = store.ledger().watermarks(&key).await.unwrap();
    assert!(
        watermarks
            .iter()
            .all(|watermark| watermark.until <= world.now())
    );
    let next = engine(&world, &store)
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(next.outcome, Outcome::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_full_run_reads_everything_again_and_counts_it_as_unchanged() {
    let world = filled(11, 150);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let engine = engine(&world, &store);
    engine
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    let budget = Budget::default();
    let stopping = Engine {
        observer: std::sync::Arc::new(StopAfter {
            pages: AtomicU64::new(2),
            stop: budget.stop.clone(),
        }),
        ..support::engine(&world, &store)
    };
    let cut_short = stopping
        .export(&request(Mode::Full), &budget)
        .await
        .unwrap();
    assert_eq!(cut_short.outcome, Outcome::Interrupted);
    let rest = engine
        .export(&request(Mode::Full), &Budget::default())
        .await
        .unwrap();
    assert_eq!(rest.outcome, Outcome::Complete);
    assert_eq!(cut_short.counts.unchanged + rest.counts.unchanged, 150);
    assert_eq!((cut_short.counts.written, rest.counts.written), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_lost_its_lease_commits_nothing_more() {
    for commits in Commits::ALL {
        let world = filled(12, 200);
        let store = MemoryStore::new(commits);
        let frozen = engine(&world, &store);
        let asked = request(Mode::Incremental);
        let budget = Budget::default();
        let run = async {
            let slices = loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let slices = store.ledger().slices(&asked.selection.key()).await.unwrap();
                if slices.iter().any(|slice| slice.owner.is_some()) {
                    break slices;
                }
            };
            // Somebody else takes every slice.
            for slice in slices {
                let taken = atlas_engine::model::Slice {
                    fence: slice.fence + 1,
                    owner: Some("thief".to_owned()),
                    ..slice.clone()
                };
                store.ledger().swap_slice(&slice, &taken).await.unwrap();
            }
        };
        let (report, ()) = tokio::join!(frozen.export(&asked, &budget), run);
        let report = report.unwrap();
        assert_eq!(report.outcome, Outcome::Partial);
        for slice in store.ledger().slices(&asked.selection.key()).await.unwrap() {
            if slice.owner.as_deref() == Some("thief") {
                assert_eq!(slice.fence, 2.min(slice.fence));
            }
        }
        // Another kind of worker is left alone while its lease lasts, and what it left behind is taken over then.
        let early = engine(&world, &store).export(&asked, &budget).await;
        assert_eq!(early.unwrap().outcome, Outcome::Partial);
        tokio::time::sleep(Duration::from_secs(91)).await;
        engine(&world, &store)
            .export(&asked, &budget)
            .await
            .unwrap();
        assert_eq!(copy(&store), world.truth());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_the_page_on_its_way() {
    let world = filled(13, 400);
    world.slow(Duration::from_secs(50));
    let store = MemoryStore::new(Commits::InOneTransaction);
    let engine = engine(&world, &store);
    let budget = Budget::default();
    let stop = budget.stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(300)).await;
        stop.cancel();
    });
    let begun = tokio::time::Instant::now();
    let early = engine
        .export(&request(Mode::Incremental), &budget)
        .await
        .unwrap_err();
    assert_eq!(early.kind(), ErrorKind::Interrupted);
    assert_eq!(begun.elapsed().as_secs(), 300);

    let budget = Budget::default();
    let stop = budget.stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(900)).await;
        stop.cancel();
    });
    let first = engine
        .export(&request(Mode::Incremental), &budget)
        .await
        .unwrap();
    assert_eq!(first.outcome, Outcome::Interrupted);
    assert_eq!(begun.elapsed().as_secs(), 1200);
    world.slow(Duration::from_millis(20));
    let second = engine
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(second.outcome, Outcome::Complete);
    assert_eq!(copy(&store), world.truth());
}

#[tokio::test(start_paused = true)]
async fn a_quarantine_of_any_size_is_counted_by_the_plan_and_the_report_and_retried_in_parts() {
    let world = World::new(31, 1);
    let begin = Instant::parse(BEGIN)
        .unwrap()
        .saturating_sub(Duration::from_secs(90_000));
    let mut rejected = Vec::new();
    for object in 0..5_000 {
        let committed = begin.saturating_add(Duration::from_secs(object));
        world.put(object, 0, committed, Duration::ZERO, false);
    }
    for version in world.shown() {
        rejected.push(Rejected::new(meta(&version), Reason::Unreadable, "500"));
    }
    let store = MemoryStore::new(Commits::InOneTransaction);
    store
        .ledger()
        .quarantine(&rejected, "an earlier run", begin)
        .await
        .unwrap();
    let process = engine(&world, &store);
    let selection = request(Mode::Incremental).selection.key();
    let report = process.report(&selection).await.unwrap();
    assert_eq!((report.quarantined, store.most_quarantined()), (5_000, 0));
    process.dry_run(&request(Mode::Incremental)).await.unwrap();
    assert_eq!(store.most_quarantined(), 0, "a plan counts them");

    let report = process
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
    assert_eq!(copy(&store), world.truth());
    assert!(store.most_quarantined() <= 1_000);
    let left = process.report(&selection).await.unwrap();
    assert_eq!(
        (left.quarantined, left.templates[0].compositions),
        (0, 5_000)
    );
}
