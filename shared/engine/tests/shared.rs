//! Small templates share a slice: few requests, counts and watermarks of their own, and one that cannot go on holds up nobody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use atlas_engine::engine::Engine;
use atlas_engine::memory::{Commits, MemoryStore};
use atlas_engine::model::{Format, Mode, Outcome, SliceState};
use atlas_engine::plan::PlanTerms;
use atlas_engine::ports::Store;
use atlas_engine::suite::runs::MarkedFailed;
use atlas_engine::work::Budget;
use atlas_engine::work::convert::{Canonical, Converter, Converters};
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;

use support::cloud::Cloud;
use support::{BEGIN, World, copy, engine, request, template_id};

const TEMPLATES: usize = 90;

/// Three compositions of each template, one after the other.
fn world(seed: u64) -> Arc<World> {
    let world = World::new(seed, TEMPLATES);
    let begin = Instant::parse(BEGIN).unwrap();
    for object in 0..3 * TEMPLATES as u64 {
        let committed = begin.saturating_sub(Duration::from_secs(86_400 - object * 60));
        let template = object as usize % TEMPLATES;
        world.commit(object, template, committed, Duration::ZERO);
    }
    world
}

fn cloud(seed: u64) -> Cloud {
    Cloud {
        world: world(seed),
        store: MemoryStore::new(Commits::InTwoPhases),
        queue: Arc::default(),
    }
}

/// Makes canonical JSON, but not of these templates.
#[derive(Default)]
struct Refusing(Mutex<BTreeSet<TemplateId>>);

impl Refusing {
    fn refuse(&self, templates: impl IntoIterator<Item = usize>) {
        *self.0.lock().unwrap() = templates.into_iter().map(template_id).collect();
    }
}

#[async_trait]
impl Converters for Refusing {
    fn format(&self) -> Format {
        Format::Canonical
    }

    async fn of(&self, template: &TemplateId) -> Result<Converter> {
        if self.0.lock().unwrap().contains(template) {
            let action = format!("compile the web template of `{template}`");
            return Err(Error::new(ErrorKind::SourceUnsupported, action));
        }
        Ok(Converter::Here(Arc::new(Canonical)))
    }
}

fn sharing(engine: Engine, converters: &Arc<Refusing>) -> Engine {
    Engine {
        converters: Arc::clone(converters) as Arc<dyn Converters>,
        plan: PlanTerms {
            slice_size: 1_000,
            ..engine.plan
        },
        ..engine
    }
}

#[tokio::test(start_paused = true)]
async fn ninety_small_templates_cost_little_more_than_one_large_one() {
    for commits in Commits::ALL {
        let world = world(1);
        let store = MemoryStore::new(commits);
        let exporting = sharing(engine(&world, &store), &Arc::default());
        let asked = request(Mode::Incremental);
        let report = exporting.export(&asked, &Budget::default()).await.unwrap();
        assert_eq!(report.outcome, Outcome::Complete);
        assert_eq!(copy(&store), world.truth());
        // Pages of 16, then of 32, an empty one at the end of each slice, a census with its proof.
        assert!(world.requests() < 25, "{}", world.requests());
        assert_eq!(report.templates.len(), TEMPLATES);
        for (template, report) in &report.templates {
            assert_eq!(report.counts.inserted, 3, "{template:?}");
            assert!(report.counts.conserved());
            assert!(report.watermark.is_some());
        }
        // Later news of some of them, and nothing of the others.
        for object in 0..10 {
            world.commit(object, object as usize, world.now(), Duration::ZERO);
        }
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        let before = world.requests();
        let report = sharing(engine(&world, &store), &Arc::default())
            .export(&asked, &Budget::default())
            .await
            .unwrap();
        assert_eq!((report.counts.written, report.counts.inserted), (10, 0));
        assert_eq!(copy(&store), world.truth());
        assert!(world.requests() - before < 10);
        let cuts: BTreeSet<_> = report.templates.values().map(|one| one.watermark).collect();
        assert_eq!(cuts, BTreeSet::from([Some(report.cut)]), "of all of them");
    }
}

#[tokio::test(start_paused = true)]
async fn a_template_that_cannot_be_converted_holds_up_nobody_and_comes_when_it_can() {
    for refused in [vec![7], vec![0, 1, 2, 89], (0..TEMPLATES).collect()] {
        for commits in Commits::ALL {
            let world = world(2);
            let store = MemoryStore::new(commits);
            let converters: Arc<Refusing> = Arc::default();
            converters.refuse(refused.clone());
            let asked = request(Mode::Incremental);
            let report = sharing(engine(&world, &store), &converters)
                .export(&asked, &Budget::default())
                .await
                .unwrap();
            assert_eq!(report.outcome, Outcome::Partial);
            for number in 0..TEMPLATES {
                let template = &report.templates[&template_id(number)];
                let is_refused = refused.contains(&number);
                assert_eq!(template.failure.is_some(), is_refused, "{number}");
                assert_eq!(template.watermark.is_none(), is_refused, "{number}");
                assert_eq!(template.counts.inserted, if is_refused { 0 } else { 3 });
            }
            converters.refuse([]);
            let cured = sharing(engine(&world, &store), &converters)
                .export(&asked, &Budget::default())
                .await
                .unwrap();
            assert_eq!(cured.outcome, Outcome::Complete);
            assert_eq!(cured.counts.inserted, 3 * refused.len() as u64);
            assert_eq!(copy(&store), world.truth());
            let counts = store.ledger().template_counts().await.unwrap();
            assert!(counts.iter().all(|one| one.compositions() == 3));
            assert_eq!(counts.len(), TEMPLATES);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_template_that_cannot_go_on_later_is_taken_out_and_workers_finish_the_rest() {
    let cloud = cloud(3);
    let converters: Arc<Refusing> = Arc::default();
    let process = || sharing(cloud.process(), &converters);
    let begin = Instant::parse(BEGIN).unwrap();
    let asked = request(Mode::Incremental);
    let budget = Budget::default();
    let tick = process().plan_and_repair(begin, &asked, &budget).await;
    assert!(tick.unwrap().cut.is_some());
    cloud.world.slow(Duration::from_secs(2));
    // After some pages, two of them cannot be converted any more.
    let later = async {
        while cloud.store.compositions().len() < 40 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        converters.refuse([3, 60]);
    };
    let work = async {
        while let Some(message) = cloud.queue.take_one() {
            process().deliver(&message, &budget).await;
        }
    };
    tokio::join!(work, later);
    let failed: BTreeSet<TemplateId> = cloud
        .slices()
        .await
        .into_iter()
        .filter(|slice| slice.state == SliceState::Failed)
        .map(|slice| slice.template)
        .collect();
    assert_eq!(failed, BTreeSet::from([template_id(3), template_id(60)]));
    let key = asked.selection.key();
    let watermarks = cloud.store.ledger().watermarks(&key).await.unwrap();
    // And the one of all templates.
    assert_eq!(watermarks.len(), TEMPLATES - 2 + 1);
    let run = cloud.store.ledger().runs(1).await.unwrap().remove(0);
    assert_eq!(run.outcome, Some(Outcome::Partial));

    converters.refuse([]);
    tokio::time::sleep(Duration::from_secs(3_700)).await;
    let tick = process()
        .plan_and_repair(cloud.world.now(), &asked, &budget)
        .await;
    assert_eq!(tick.unwrap().revived, 2);
    while let Some(message) = cloud.queue.take_one() {
        process().deliver(&message, &budget).await;
    }
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_shared_slice_that_fails_too_often_is_divided_and_one_template_holds_up_nobody() {
    let cloud = cloud(4);
    let converters: Arc<Refusing> = Arc::default();
    let process = || sharing(cloud.process(), &converters);
    let begin = Instant::parse(BEGIN).unwrap();
    let asked = request(Mode::Incremental);
    let tick = process()
        .plan_and_repair(begin, &asked, &Budget::default())
        .await;
    assert!(tick.unwrap().cut.is_some());
    let shared = cloud.slices().await.len();
    let message = cloud.queue.take_one().unwrap();
    // Some pages, and then the source fails.
    cloud.world.slow(Duration::from_secs(4));
    let budget = Budget {
        until: Some(tokio::time::Instant::now() + Duration::from_secs(5)),
        ..Budget::default()
    };
    process().deliver(&message, &budget).await;
    let begun = cloud.store.compositions().len();
    assert!(begun > 0);
    let mut messages = cloud.queue.take();
    let message = messages.pop().unwrap();
    cloud.queue.put(messages);
    cloud.world.flaky(100);
    let again = process().deliver(&message, &Budget::default()).await;
    assert!(again.error().is_some(), "{again:?}");
    let divided = process().mark_failed(&message).await.unwrap();
    assert_eq!(divided, MarkedFailed::Divided);
    assert!(cloud.slices().await.len() > shared + 40, "each has its own");
    cloud.world.flaky(0);
    cloud.world.slow(Duration::from_millis(20));
    while let Some(message) = cloud.queue.take_one() {
        process().deliver(&message, &Budget::default()).await;
    }
    cloud.assert_done().await;
    let counts = cloud.store.ledger().template_counts().await.unwrap();
    assert!(counts.iter().all(|one| one.compositions() == 3));
    let run = cloud.store.ledger().runs(1).await.unwrap().remove(0);
    assert_eq!(run.outcome, Some(Outcome::Complete));
    assert_eq!(run.counts.inserted, 3 * TEMPLATES as u64);
}
