//! A random life of a CDR and of its copy, from one seed: new versions, late rows, faults of source and store, runs that are killed,
//! stopped or frozen at random instants. In the end the copy equals the source. Single-threaded, under a simulated clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atlas_engine::ErrorKind;
use atlas_engine::engine::Engine;
use atlas_engine::export::Report;
use atlas_engine::memory::{Commits, Fault, MemoryStore};
use atlas_engine::message::Message;
use atlas_engine::model::{Mode, Outcome, QuarantineFilter, Request};
use atlas_engine::ports::{Ledger, Store};
use atlas_engine::retrying::RetryingStore;
use atlas_engine::suite::runs::RunRequested;
use atlas_engine::work::Budget;
use atlas_openehr::id::{EhrId, ObjectId};
use atlas_openehr::time::Instant;
use fastrand::Rng;

use super::freezer::{Freezer, Frozen};
use super::tokens::Tokens;
use super::{BEGIN, Version, World, content, engine_over, meta, object_id, request, template_id};

/// Those of [`atlas_engine::plan::PlanTerms`] by default.
const SAFETY_LAG: Duration = Duration::from_secs(60);
const OVERLAP: Duration = Duration::from_secs(900);
/// That of [`atlas_engine::lease::RunLeaseTerms`] by default, and a little more.
const LEASE: Duration = Duration::from_secs(16);

/// How a store is stood up.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    /// How pages become durable.
    pub commits: Commits,
    /// Whether rows lie under tokens instead of the source's ids.
    pub tokens: bool,
}

impl Scene {
    /// Every mode, and each of them with tokens.
    pub fn all() -> impl Iterator<Item = Self> {
        Commits::ALL
            .into_iter()
            .flat_map(|commits| [false, true].map(|tokens| Self { commits, tokens }))
    }
}

struct Life {
    rng: Rng,
    world: Arc<World>,
    store: MemoryStore,
    scene: Scene,
    /// EHRs of the selection; empty = all.
    ehrs: Vec<EhrId>,
    /// Whether a replica answers now and then, which is behind.
    has_replica: bool,
    objects: u64,
}

impl Life {
    fn new(seed: u64, scene: Scene) -> Self {
        let mut rng = Rng::with_seed(seed);
        let world = World::new(rng.u64(..), 4);
        let ehrs = if rng.u8(0..3) == 0 {
            (0..3)
                .map(|ehr| EhrId::new(&format!("ehr-{ehr}")))
                .collect()
        } else {
            Vec::new()
        };
        world.expect_selection(&ehrs);
        let has_replica = rng.u8(0..4) == 0;
        let mut life = Self {
            has_replica,
            rng,
            world,
            store: MemoryStore::new(scene.commits),
            scene,
            ehrs,
            objects: 0,
        };
        let mut at = Instant::parse(BEGIN)
            .unwrap()
            .saturating_sub(Duration::from_secs(500_000));
        for _ in 0..life.rng.u64(20..250) {
            if life.rng.u8(0..10) > 2 {
                at = at.saturating_add(Duration::from_micros(life.rng.u64(1..2_000_000_000)));
            }
            life.create(at, Duration::ZERO);
        }
        life
    }

    fn create(&mut self, at: Instant, late: Duration) {
        let template = self.rng.usize(0..3);
        let unreadable = self.rng.u8(0..40) == 0;
        self.world.put(self.objects, template, at, late, unreadable);
        self.objects += 1;
    }

    fn live_on(&mut self) {
        let now = self.world.now();
        for _ in 0..self.rng.u64(0..12) {
            let late = Duration::from_secs(self.rng.u64(0..400));
            if self.rng.bool() {
                self.create(now, late);
            } else {
                let object = self.rng.u64(0..self.objects);
                self.world.commit(object, (object % 3) as usize, now, late);
            }
        }
    }

    fn faults(&mut self) {
        self.world
            .flaky(*[0, 0, 3, 20].get(self.rng.usize(0..4)).unwrap());
        if self.has_replica {
            let behind = Duration::from_secs(self.rng.u64(0..450));
            self.world.fall_behind(behind);
        }
        self.world.cap_answers(
            *[usize::MAX, usize::MAX, 5]
                .get(self.rng.usize(0..3))
                .unwrap(),
        );
        if self.rng.bool() {
            self.store
                .fail_by_chance(self.rng.u8(0..25), self.rng.u64(..));
            return;
        }
        let script: Vec<Option<Fault>> = (0..self.rng.usize(0..8))
            .map(|_| {
                let kind = if self.rng.u8(0..4) == 0 {
                    ErrorKind::StoreFull
                } else {
                    ErrorKind::StoreUnreachable
                };
                match self.rng.u8(0..6) {
                    0 => Some(Fault::Refuse(kind)),
                    1 => Some(Fault::LoseAnswer(kind)),
                    2 => Some(Fault::DieBetween(kind)),
                    _ => None,
                }
            })
            .collect();
        self.store.script(script);
    }

    fn request(&self, mode: Mode) -> Request {
        let mut asked = request(mode);
        asked.selection.ehrs.clone_from(&self.ehrs);
        asked
    }

    /// A process of its own, over the wrappers that every process has.
    fn process(&self) -> Engine {
        self.process_over(Arc::new(self.store.clone()))
    }

    fn process_over(&self, store: Arc<dyn Store>) -> Engine {
        let pauses = vec![Duration::from_millis(50); 3];
        let mut engine = engine_over(&self.world, Arc::new(RetryingStore::new(store, pauses)));
        if self.scene.tokens {
            engine.transform.keys = Arc::new(Tokens);
        }
        engine
    }

    fn is_selected(&self, version: &Version) -> bool {
        self.ehrs.is_empty() || self.ehrs.contains(&meta(version).ehr)
    }

    /// The object under which the copy shows a composition.
    fn shown_as(&self, object: u64) -> ObjectId {
        if self.scene.tokens {
            Tokens::of(&object_id(object))
        } else {
            object_id(object)
        }
    }

    /// What a copy holds when it is complete, unreadable versions left out.
    fn truth(&self) -> BTreeMap<(ObjectId, u32), String> {
        self.world
            .shown()
            .into_iter()
            .filter(|version| self.is_selected(version) && !version.unreadable)
            .map(|version| {
                let key = (self.shown_as(version.object), version.version);
                (key, content(&version))
            })
            .collect()
    }

    fn unreadable(&self) -> BTreeSet<u64> {
        self.world
            .shown()
            .into_iter()
            .filter(|version| self.is_selected(version) && version.unreadable)
            .map(|version| version.object)
            .collect()
    }

    /// An object whose newest version is unreadable keeps the older one that was readable: leave it out of the comparison.
    fn copy_of_latest(&self) -> BTreeMap<(ObjectId, u32), String> {
        let unreadable: BTreeSet<ObjectId> = self
            .unreadable()
            .into_iter()
            .map(|object| self.shown_as(object))
            .collect();
        self.store
            .compositions()
            .into_iter()
            .map(|row| {
                let object = row.meta.uid.object_id().clone();
                ((object, row.meta.uid.version()), row.content)
            })
            .filter(|((object, _), _)| !unreadable.contains(object))
            .collect()
    }

    async fn quarantined(&self) -> BTreeSet<ObjectId> {
        self.store
            .ledger()
            .quarantined(&QuarantineFilter::default(), usize::MAX)
            .await
            .unwrap()
            .into_iter()
            .map(|entry| entry.meta.uid.object_id().clone())
            .collect()
    }

    /// Promise P7: whatever the source showed in time when the run began, and lies before a watermark, is in the store or in
    /// quarantine. What became visible later than the safety lag is found by the overlap, possibly by the next run.
    async fn watermarks_hold(&self, shown: &[Version], seen: &mut BTreeMap<String, Instant>) {
        let key = self.request(Mode::Incremental).selection.key();
        let held: BTreeMap<ObjectId, u32> = self
            .store
            .compositions()
            .into_iter()
            .map(|row| (row.meta.uid.object_id().clone(), row.meta.uid.version()))
            .collect();
        let waiting = self.quarantined().await;
        let now: BTreeSet<(u64, u32)> = self
            .world
            .shown()
            .iter()
            .map(|version| (version.object, version.version))
            .collect();
        for watermark in self.store.watermarks(&key).await.unwrap() {
            let before = seen.insert(watermark.template.to_string(), watermark.until);
            assert!(before <= Some(watermark.until), "a watermark went back");
            for version in shown {
                // A newer version may have taken its place since, in another template even.
                if !self.is_selected(version) || !now.contains(&(version.object, version.version)) {
                    continue;
                }
                let in_time = version.visible.duration_since(version.committed) <= SAFETY_LAG;
                if template_id(version.template) == watermark.template
                    && version.committed < watermark.until
                    && in_time
                {
                    let there = held
                        .get(&self.shown_as(version.object))
                        .is_some_and(|held| *held >= version.version);
                    assert!(
                        there || waiting.contains(&object_id(version.object)),
                        "the watermark passed {version:?}"
                    );
                }
            }
        }
    }

    /// What holds at any time: P2, P3, P8, P11, and that nobody else's data is here.
    fn invariants(&self) {
        for (slice, pages) in self.store.history() {
            let orderly = pages.windows(2).all(|pair| match pair {
                [before, after] => before.0 <= after.0 && before.1 < after.1,
                _ => true,
            });
            assert!(orderly, "a slice went back: {slice} {pages:?}");
        }
        assert_eq!(
            self.world.strayed(),
            0,
            "a query asked for EHRs outside the selection"
        );
        let appended = self.store.appended();
        let lines: BTreeSet<_> = appended
            .iter()
            .map(|line| (&line.object, line.version))
            .collect();
        assert_eq!(lines.len(), appended.len(), "a row was appended twice");
    }

    /// A run that dies, is stopped, or is frozen while the next one works, at a random instant.
    async fn run(&mut self, asked: &Request) {
        let patience = Duration::from_millis(1 << self.rng.u64(0..13));
        let budget = Budget::default();
        match self.rng.u8(0..4) {
            // Dropping the run in the middle is what a kill leaves behind: only what was committed.
            0 => {
                let process = self.process();
                let exporting = process.export(asked, &budget);
                if let Ok(Ok(report)) = tokio::time::timeout(patience, exporting).await {
                    assert!(report.counts.conserved(), "{:?}", report.counts);
                }
            }
            1 => {
                let process = self.process();
                let (ended, ()) = tokio::join!(process.export(asked, &budget), async {
                    tokio::time::sleep(patience).await;
                    budget.stop.cancel();
                });
                if let Ok(report) = ended {
                    assert!(report.counts.conserved(), "{:?}", report.counts);
                }
            }
            2 => self.take_back(asked, patience).await,
            _ => self.freeze_and_go_on(asked, patience).await,
        }
    }

    /// A run on demand that is taken back while it is planned, a little before, or a little after.
    async fn take_back(&mut self, asked: &Request, patience: Duration) {
        let (planner, canceller) = (self.process(), self.process());
        let Ok(RunRequested::New(run)) = canceller.request_run(None, asked.clone()).await else {
            return;
        };
        let (message, budget) = (Message::plan(&run.id), Budget::default());
        let (_, cancelled) = tokio::join!(planner.deliver(&message, &budget), async {
            tokio::time::sleep(patience / 16).await;
            canceller.cancel(&run.id).await
        });
        if let Ok(Some(answered)) = cancelled
            && answered.outcome == Some(Outcome::Cancelled)
        {
            let stands = Ledger::run(&self.store, &run.id).await.unwrap().unwrap();
            assert_eq!(stands.outcome, answered.outcome, "a cancel was overwritten");
        }
    }

    /// Promise P8: a process that is frozen in the middle, and wakes up after another one has done its work, changes nothing.
    async fn freeze_and_go_on(&mut self, asked: &Request, patience: Duration) {
        let freezer = Freezer::default();
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let frozen = self.process_over(Arc::new(Frozen::wrap(store, freezer.clone())));
        let (asked_first, budget) = (asked.clone(), Budget::default());
        let first = tokio::spawn(async move { frozen.export(&asked_first, &budget).await });
        tokio::time::sleep(patience).await;
        freezer.freeze();
        tokio::time::sleep(LEASE).await;
        let (process, quiet) = (self.process(), Budget::default());
        let second = process.export(asked, &quiet);
        let _ = tokio::time::timeout(Duration::from_secs(120), second).await;
        self.invariants();
        freezer.thaw();
        if let Ok(report) = first.await.unwrap() {
            assert!(report.counts.conserved(), "{:?}", report.counts);
        }
    }
}

/// Lives through a seed. Panics where a promise is broken.
pub async fn live_through(seed: u64, scene: Scene) {
    let mut life = Life::new(seed, scene);
    let mut watermarks = BTreeMap::new();
    for _ in 0..life.rng.usize(2..9) {
        life.live_on();
        life.faults();
        // A day later, what is in quarantine is tried again.
        let pause = match life.rng.u8(0..6) {
            0 => 90_000,
            _ => life.rng.u64(0..300),
        };
        tokio::time::advance(Duration::from_secs(pause)).await;
        let shown = life.world.shown();
        // What a replica shows again in an older version is read by full runs only.
        let mode = if life.rng.u8(0..5) == 0 || (life.has_replica && life.rng.bool()) {
            Mode::Full
        } else {
            Mode::Incremental
        };
        let mut asked = life.request(mode);
        if life.rng.u8(0..3) == 0 {
            asked.templates = vec![template_id(life.rng.usize(0..3))];
        }
        life.run(&asked).await;
        life.invariants();
        if life.rng.bool() && !life.has_replica {
            life.watermarks_hold(&shown, &mut watermarks).await;
        }
    }
    life.ends_well().await;
}

impl Life {
    async fn quiet_run(&self) -> Option<Report> {
        let asked = self.request(Mode::Incremental);
        self.process().export(&asked, &Budget::default()).await.ok()
    }

    /// Without faults, the copy is complete after some runs, and a run that finds nothing new asks next to nothing.
    async fn ends_well(&mut self) {
        self.world.flaky(0);
        self.world.cap_answers(usize::MAX);
        self.world.fall_behind(Duration::ZERO);
        self.store.script(std::iter::empty());
        tokio::time::advance(Duration::from_secs(700)).await;
        let mut last = None;
        for _ in 0..3 {
            last = self.quiet_run().await;
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let quiet = last.expect("a quiet run ends well").usage.requests;
        assert!(quiet <= 4, "{quiet} requests of an idle run");
        let mut idle = None;
        // Once more, so that what was committed last lies before what is compared.
        for _ in 0..2 {
            tokio::time::advance(OVERLAP).await;
            idle = self.quiet_run().await;
        }
        let idle = idle.expect("an idle run ends well");
        assert_eq!(idle.counts.written, 0);
        assert_eq!(idle.usage.requests, 2, "an idle run asks twice");
        self.invariants();
        assert_eq!(self.copy_of_latest(), self.truth());
        let unreadable: BTreeSet<ObjectId> = self.unreadable().into_iter().map(object_id).collect();
        assert!(unreadable.is_subset(&self.quarantined().await));
        self.counts_are_those_of_the_rows().await;
    }

    /// Kept counts and rows are two ways to the same number. A store without transactions can be left with half a page, whose rows
    /// are then counted as unchanged: there, reconcile counts anew.
    async fn counts_are_those_of_the_rows(&self) {
        if self.scene.commits == Commits::InTwoPhases {
            return;
        }
        let kept = self.store.template_counts().await.unwrap();
        let kept: u64 = kept.iter().map(|counts| counts.compositions()).sum();
        assert_eq!(kept, self.store.compositions().len() as u64);
    }
}

/// Lives through a seed in a runtime of its own; answers whether all promises held.
pub fn survives(seed: u64, scene: Scene) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(live_through(seed, scene));
    }))
    .is_ok()
}
