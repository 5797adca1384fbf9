//! A small CDR under a simulated clock: it shows compositions from an instant after their commit time on, fails as it
//! is told to, and knows the truth that a copy is compared with.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    missing_docs,
    unreachable_pub
)]

pub mod cloud;
pub mod freezer;
pub mod life;
pub mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use atlas_engine::checked::CheckedSource;
use atlas_engine::engine::{Engine, RETRY_QUARANTINE_AFTER, SweepTerms};
use atlas_engine::lease::RunLeaseTerms;
use atlas_engine::local::LocalQueue;
use atlas_engine::memory::{MemoryStore, SimulatedClock, Unobserved};
use atlas_engine::model::{
    Census, CensusLine, Cursor, Format, LeaseTerms, Meta, Mode, Page, Request, Row, Scope,
    Selection, Usage, Window,
};
use atlas_engine::plan::PlanTerms;
use atlas_engine::ports::{Clock, Compositions, Definitions, FlatOracle, Source, Store};
use atlas_engine::retrying::RetryingStore;
use atlas_engine::slots::{SlotGatedSource, SlotTerms};
use atlas_engine::transform::Transform;
use atlas_engine::work::convert::{Canonical, Converter, Converters};
use atlas_engine::work::page::PageTerms;
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::json::Tape;
use atlas_openehr::time::Instant;

pub const BEGIN: &str = "2026-11-23T08:00:00Z";

#[derive(Debug, Clone)]
pub struct Version {
    pub object: u64,
    pub version: u32,
    pub committed: Instant,
    pub visible: Instant,
    pub template: usize,
    pub unreadable: bool,
    pub value: String,
}

#[derive(Default)]
struct State {
    versions: Vec<Version>,
    templates: usize,
    /// Chance in percent that a request fails with a transient error.
    flaky: u64,
    latency_ms: u64,
    too_large: usize,
    /// No answer has more rows, whatever is asked.
    cap: usize,
    /// The view of a replica that is so far behind.
    behind: Duration,
    /// What every query has to name; empty = nothing.
    selected: Vec<EhrId>,
    /// Queries that named other EHRs.
    strayed: u64,
    /// Of this template every single composition is too large.
    giants: Option<usize>,
}

/// The CDR.
pub struct World {
    state: Mutex<State>,
    clock: SimulatedClock,
    rng: Mutex<fastrand::Rng>,
    requests: AtomicU64,
    open: AtomicU64,
    most_at_once: AtomicU64,
    pub pages_given: AtomicU64,
}

pub fn object_id(object: u64) -> ObjectId {
    // Scattered, so that the order by object id is not the order of creation.
    let scattered = object.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ObjectId::new(&format!("{scattered:016x}-{object:08}"))
}

pub fn template_id(template: usize) -> TemplateId {
    TemplateId::new(&format!("template {template}.v1"))
}

impl World {
    pub fn new(seed: u64, templates: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                templates,
                latency_ms: 20,
                too_large: usize::MAX,
                cap: usize::MAX,
                ..State::default()
            }),
            clock: SimulatedClock::starting_at(Instant::parse(BEGIN).unwrap()),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            requests: AtomicU64::new(0),
            open: AtomicU64::new(0),
            most_at_once: AtomicU64::new(0),
            pages_given: AtomicU64::new(0),
        })
    }

    pub fn clock(&self) -> SimulatedClock {
        self.clock
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    pub fn flaky(&self, percent: u64) {
        self.state.lock().unwrap().flaky = percent;
    }

    /// Each request takes up to so long.
    pub fn slow(&self, latency: Duration) {
        self.state.lock().unwrap().latency_ms = latency.as_millis() as u64;
    }

    pub fn too_large_above(&self, rows: usize) {
        self.state.lock().unwrap().too_large = rows;
    }

    pub fn too_large_of(&self, template: usize) {
        self.state.lock().unwrap().giants = Some(template);
    }

    /// A server or a proxy that cuts answers short, without a word.
    pub fn cap_answers(&self, rows: usize) {
        self.state.lock().unwrap().cap = rows;
    }

    /// A replica that is so far behind answers from here on.
    pub fn fall_behind(&self, behind: Duration) {
        self.state.lock().unwrap().behind = behind;
    }

    /// Every query has to name these EHRs from here on, but for those that try whether the source reads anything at all.
    pub fn expect_selection(&self, ehrs: &[EhrId]) {
        self.state.lock().unwrap().selected = ehrs.to_vec();
    }

    /// Queries that asked for more than the selection.
    pub fn strayed(&self) -> u64 {
        self.state.lock().unwrap().strayed
    }

    /// A world with 120 compositions in its past.
    pub fn with_some_life(seed: u64) -> Arc<Self> {
        let world = Self::new(seed, 4);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut at = Instant::parse(BEGIN)
            .unwrap()
            .saturating_sub(Duration::from_secs(500_000));
        for object in 0..120 {
            at = at.saturating_add(Duration::from_secs(rng.u64(0..2000)));
            world.put(object, rng.usize(0..3), at, Duration::ZERO, false);
        }
        world
    }

    /// Commits a new object, or a new version of an old one.
    pub fn commit(&self, object: u64, template: usize, committed: Instant, late: Duration) {
        self.put(object, template, committed, late, false);
    }

    pub fn put(
        &self,
        object: u64,
        template: usize,
        committed: Instant,
        late: Duration,
        unreadable: bool,
    ) {
        let mut state = self.state.lock().unwrap();
        let version = 1 + state
            .versions
            .iter()
            .filter(|version| version.object == object)
            .count() as u32;
        let value = format!("{}.{:02}e-1", object % 977, version);
        state.versions.push(Version {
            object,
            version,
            committed,
            visible: committed.saturating_add(late),
            template,
            unreadable,
            value,
        });
    }

    /// What the CDR shows now: the latest visible version of each object, in order.
    pub fn shown(&self) -> Vec<Version> {
        let state = self.state.lock().unwrap();
        let now = self.now().saturating_sub(state.behind);
        let mut latest: BTreeMap<u64, &Version> = BTreeMap::new();
        for version in state
            .versions
            .iter()
            .filter(|version| version.visible <= now)
        {
            let newest = latest.entry(version.object).or_insert(version);
            if newest.version < version.version {
                *newest = version;
            }
        }
        let mut shown: Vec<Version> = latest.into_values().cloned().collect();
        shown.sort_by_key(|version| (version.committed, object_id(version.object)));
        shown
    }

    /// The most requests that were ever under way at once.
    pub fn most_at_once(&self) -> u64 {
        self.most_at_once.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// What a copy holds when it is complete: object and version to value.
    pub fn truth(&self) -> BTreeMap<(ObjectId, u32), String> {
        self.shown()
            .into_iter()
            .filter(|version| !version.unreadable)
            .map(|version| {
                let key = (object_id(version.object), version.version);
                (key, content(&version))
            })
            .collect()
    }

    pub fn unreadable(&self) -> BTreeSet<ObjectId> {
        self.shown()
            .into_iter()
            .filter(|version| version.unreadable)
            .map(|version| object_id(version.object))
            .collect()
    }

    async fn request(&self) -> Result<()> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let (latency, fails) = {
            let state = self.state.lock().unwrap();
            let mut rng = self.rng.lock().unwrap();
            (rng.u64(1..=state.latency_ms), rng.u64(0..100) < state.flaky)
        };
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(open, Ordering::SeqCst);
        let under_way = UnderWay(&self.open);
        tokio::time::sleep(Duration::from_millis(latency)).await;
        drop(under_way);
        if fails {
            return Err(Error::new(ErrorKind::SourceUnreachable, "reach the world"));
        }
        Ok(())
    }

    fn in_scope(&self, scope: &Scope) -> Vec<Version> {
        {
            let mut state = self.state.lock().unwrap();
            let anything = scope.templates.is_empty() && scope.window == Window::EVER;
            if scope.ehrs != state.selected && !anything {
                state.strayed += 1;
            }
        }
        self.shown()
            .into_iter()
            .filter(|version| {
                (scope.templates.is_empty()
                    || scope.templates.contains(&template_id(version.template)))
                    && (scope.ehrs.is_empty() || scope.ehrs.contains(&meta(version).ehr))
                    && scope.window.from <= version.committed
                    && version.committed < scope.window.to
            })
            .collect()
    }

    fn behind(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Vec<Version> {
        let cap = self.state.lock().unwrap().cap;
        self.in_scope(scope)
            .into_iter()
            .filter(|version| after.is_none_or(|after| meta(version).cursor() > *after))
            .take(limit.min(cap))
            .collect()
    }

    fn answer(&self, versions: &[Version]) -> Result<Page> {
        let (rows, giants) = {
            let state = self.state.lock().unwrap();
            (state.too_large, state.giants)
        };
        let giant = |version: &Version| Some(version.template) == giants;
        if versions.len() > rows || versions.iter().any(giant) {
            return Err(
                Error::new(ErrorKind::SourceTooLarge, "read a page").fix("Raise the limit.")
            );
        }
        if versions.iter().any(|version| version.unreadable) {
            return Err(Error::new(
                ErrorKind::SourceUnreadable,
                "read a page: status 500",
            ));
        }
        self.pages_given.fetch_add(1, Ordering::SeqCst);
        Ok(page_of(versions))
    }
}

pub fn content(version: &Version) -> String {
    format!(
        r#"{{"_type":"COMPOSITION","value":{},"object":{}}}"#,
        version.value, version.object
    )
}

pub fn meta(version: &Version) -> Meta {
    let object = object_id(version.object);
    let uid = format!("{}::world::{}", object.as_str(), version.version);
    Meta {
        uid: VersionUid::parse(&uid).unwrap(),
        ehr: EhrId::new(&format!("ehr-{}", version.object % 7)),
        template: template_id(version.template),
        committed: version.committed,
        position: None,
        change_type: "creation".to_owned(),
    }
}

fn page_of(versions: &[Version]) -> Page {
    let contents: Vec<String> = versions.iter().map(content).collect();
    let text = format!("[ {} ]", contents.join(" , "));
    let tape = Tape::parse(&text).unwrap();
    let rows = versions
        .iter()
        .zip(tape.root(&text).items())
        .map(|(version, node)| Row {
            meta: meta(version),
            content: node.id(),
        })
        .collect();
    Page {
        rows,
        tape,
        text,
        misfits: Vec::new(),
    }
}

/// A request, which may be given up.
struct UnderWay<'a>(&'a AtomicU64);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Compositions for World {
    async fn census(&self, scope: &Scope) -> Result<Census> {
        self.request().await?;
        let open = Scope {
            window: Window {
                to: Instant::MAX,
                ..scope.window
            },
            ..scope.clone()
        };
        let mut lines: BTreeMap<TemplateId, CensusLine> = BTreeMap::new();
        for version in self.in_scope(&open) {
            let template = template_id(version.template);
            let line = lines.entry(template.clone()).or_insert(CensusLine {
                template,
                count: 0,
                first: version.committed,
                last: version.committed,
            });
            line.count += 1;
            line.first = line.first.min(version.committed);
            line.last = line.last.max(version.committed);
        }
        Ok(Census {
            server_time: self.now(),
            lines: lines.into_values().collect(),
        })
    }

    async fn count(&self, scope: &Scope) -> Result<u64> {
        self.request().await?;
        Ok(self.in_scope(scope).len() as u64)
    }

    async fn page(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Page> {
        self.request().await?;
        self.answer(&self.behind(scope, after, limit))
    }

    async fn list(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Vec<Meta>> {
        self.request().await?;
        Ok(self.behind(scope, after, limit).iter().map(meta).collect())
    }

    async fn fetch(&self, scope: &Scope, objects: &[ObjectId]) -> Result<Page> {
        self.request().await?;
        let wanted: BTreeSet<&ObjectId> = objects.iter().collect();
        let versions: Vec<Version> = self
            .in_scope(scope)
            .into_iter()
            .filter(|version| wanted.contains(&object_id(version.object)))
            .collect();
        self.answer(&versions)
    }
}

#[async_trait]
impl Definitions for World {
    async fn templates(&self) -> Result<Vec<TemplateId>> {
        self.request().await?;
        Ok((0..self.state.lock().unwrap().templates)
            .map(template_id)
            .collect())
    }

    async fn web_template(&self, _template: &TemplateId) -> Result<String> {
        Err(Error::new(
            ErrorKind::SourceUnsupported,
            "read a web template of the world",
        ))
    }
}

#[async_trait]
impl FlatOracle for World {
    async fn flat(&self, _meta: &Meta) -> Result<String> {
        Err(Error::new(
            ErrorKind::SourceUnsupported,
            "read FLAT of the world",
        ))
    }
}

impl Source for World {
    fn usage(&self) -> Usage {
        Usage {
            requests: self.requests(),
            bytes: 0,
            busy: 0,
        }
    }
}

/// Canonical JSON, of whatever template.
pub struct AsItIs;

#[async_trait]
impl Converters for AsItIs {
    fn format(&self) -> Format {
        Format::Canonical
    }

    async fn of(&self, _template: &TemplateId) -> Result<Converter> {
        Ok(Converter::Here(Arc::new(Canonical)))
    }
}

/// A process: what is left of it after a kill is in the store.
pub fn engine(world: &Arc<World>, store: &MemoryStore) -> Engine {
    engine_over(world, Arc::new(store.clone()))
}

/// The same over any store.
pub fn engine_over(world: &Arc<World>, store: Arc<dyn Store>) -> Engine {
    let lease = LeaseTerms::default();
    let slots = SlotTerms::new(3, lease.duration);
    let source = Arc::new(CheckedSource::new(Arc::clone(world) as Arc<dyn Source>));
    Engine {
        source: Arc::new(SlotGatedSource::new(
            source,
            Arc::new(world.clock()),
            &slots,
        )),
        store: Arc::new(RetryingStore::new(
            store,
            vec![Duration::from_millis(50); 3],
        )),
        queue: Arc::new(LocalQueue::default()),
        clock: Arc::new(world.clock()),
        observer: Arc::new(Unobserved),
        converters: Arc::new(AsItIs),
        plan: PlanTerms {
            slice_size: 60,
            list: 50,
            ..PlanTerms::default()
        },
        pages: PageTerms {
            first: 16,
            most: 32,
            list: 50,
            ..PageTerms::default()
        },
        transform: Transform::default(),
        lease,
        run_lease: RunLeaseTerms::default(),
        slots,
        sweep: SweepTerms::default(),
        retry_after: RETRY_QUARANTINE_AFTER,
        keep_runs: Duration::from_secs(90 * 86_400),
        readers: 3,
    }
}

pub fn request(mode: Mode) -> Request {
    Request {
        mode,
        templates: Vec::new(),
        selection: Selection {
            ehrs: Vec::new(),
            from: None,
            to: None,
            format: Format::Canonical,
        },
    }
}

/// What the store holds, as [`World::truth`] says it should.
pub fn copy(store: &MemoryStore) -> BTreeMap<(ObjectId, u32), String> {
    store
        .compositions()
        .into_iter()
        .map(|row| {
            let key = (row.meta.uid.object_id().clone(), row.meta.uid.version());
            (key, row.content)
        })
        .collect()
}
