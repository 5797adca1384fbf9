//! Settings to parts: the source, the store and the engine between them.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use atlas_cdr::Cdr;
use atlas_engine::Result;
use atlas_engine::checked::CheckedSource;
use atlas_engine::engine::{Engine, RETRY_QUARANTINE_AFTER, SweepTerms};
use atlas_engine::lease::RunLeaseTerms;
use atlas_engine::local::LocalQueue;
use atlas_engine::model::{Format, LeaseTerms, Request, Selection};
use atlas_engine::plan::PlanTerms;
use atlas_engine::ports::{Clock, Observer, Source, Store};
use atlas_engine::retrying::RetryingStore;
use atlas_engine::slots::{SlotGatedSource, SlotTerms};
use atlas_engine::transform::Transform;
use atlas_engine::work::canonical::CanonicalConverters;
use atlas_engine::work::convert::Converters;
use atlas_engine::work::flat::{ConverterCache, FlatConverters};
use atlas_engine::work::page::PageTerms;
use atlas_openehr::id::{EhrId, TemplateId};
use atlas_openehr::time::Instant;
pub use atlas_store_postgres::Look as PostgresLook;
use atlas_store_postgres::{PostgresStore, UnusableName};
use atlas_store_sqlite::SqliteStore;

use crate::Settings;
use crate::settings;

/// The clock of this machine.
#[must_use]
pub fn machine_time() -> Instant {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(duration) => Instant::EPOCH.saturating_add(duration),
        Err(before) => Instant::EPOCH.saturating_sub(before.duration()),
    }
}

/// The clock of this machine, corrected by what the store's clock showed last: machines disagree by hours, and a lease must
/// mean the same to all of them.
#[derive(Debug, Default)]
pub struct SharedClock {
    /// Microseconds that this machine is behind.
    behind: AtomicI64,
}

impl Clock for SharedClock {
    fn now(&self) -> Instant {
        let corrected = machine_time().as_micros() + self.behind.load(Ordering::Relaxed);
        Instant::from_micros(corrected).unwrap_or_else(machine_time)
    }

    fn follow(&self, now: Instant) {
        let behind = now.as_micros() - machine_time().as_micros();
        self.behind.store(behind, Ordering::Relaxed);
    }
}

/// The openEHR server. Nothing is sent yet.
///
/// # Errors
/// A certificate that cannot be read, or a dialect that is not known yet.
pub fn source(settings: &Settings) -> Result<Cdr> {
    Cdr::connect(settings.openehr.clone())
}

/// The chosen store, asked again when it is briefly away. Nothing is created yet.
///
/// # Errors
/// What prevents it from being opened.
pub fn store(settings: &Settings) -> Result<Arc<dyn Store>> {
    let store: Arc<dyn Store> = match &settings.store {
        settings::Store::Sqlite { path } => Arc::new(SqliteStore::new(path)?),
        settings::Store::Postgresql(config) => Arc::new(PostgresStore::new(config)?),
    };
    Ok(retrying(settings, store))
}

/// What a look at the store shows, of each kind of store.
#[derive(Debug)]
pub enum Look {
    /// A file and its folder.
    Sqlite(atlas_store_sqlite::Look),
    /// A role, a schema and its tables.
    Postgresql(PostgresLook),
}

/// Looks at the chosen store. Nothing is created or changed.
///
/// # Errors
/// What prevents it from being opened, or from becoming a copy.
pub async fn look(settings: &Settings) -> Result<Look> {
    Ok(match &settings.store {
        settings::Store::Sqlite { path } => Look::Sqlite(SqliteStore::new(path)?.look().await?),
        settings::Store::Postgresql(config) => {
            Look::Postgresql(PostgresStore::new(config)?.look().await?)
        }
    })
}

/// Any store, asked again when it is briefly away: a store that this crate does not know is wired by it.
pub fn retrying(settings: &Settings, store: Arc<dyn Store>) -> Arc<dyn Store> {
    let waits = &settings.export.retry_backoff;
    let last = waits.last().copied();
    let pauses = waits
        .iter()
        .copied()
        .chain(std::iter::repeat_n(last, usize::MAX).flatten());
    let pauses = pauses.take(settings.export.max_retries as usize).collect();
    Arc::new(RetryingStore::new(store, pauses))
}

/// The SQL that gives a role the rights an export needs, for a store that has roles.
pub fn grant_script(
    settings: &Settings,
    role: &str,
) -> Option<std::result::Result<String, UnusableName>> {
    match &settings.store {
        settings::Store::Sqlite { .. } => None,
        settings::Store::Postgresql(config) => {
            let schema = config.schema.as_deref();
            Some(atlas_store_postgres::grant_script(schema, role))
        }
    }
}

/// What a run is asked to do.
pub fn request(settings: &Settings) -> Request {
    let query = &settings.query;
    Request {
        mode: settings.export.mode,
        templates: query
            .template_ids
            .iter()
            .map(|id| TemplateId::new(id))
            .collect(),
        selection: Selection {
            ehrs: query.ehr_ids.iter().map(|id| EhrId::new(id)).collect(),
            from: query.from,
            to: query.to,
            format: settings.export.format,
        },
    }
}

/// The slots of the source.
pub fn slots(settings: &Settings) -> SlotTerms {
    SlotTerms::new(settings.query.parallel, settings.functions.lease)
}

/// How large pages may become in a process that carries out so many slices at the same time: they share its memory. What others do
/// at the same time, as the source's slots count it, takes no memory here.
#[must_use]
pub fn pages(settings: &Settings, at_once: usize) -> PageTerms {
    /// Memory that a byte of a page takes: a page is text, then a tree, then rows, and three pages are under way.
    const MEMORY_PER_BYTE: usize = 32;
    /// Less than a composition may take gains nothing.
    const LEAST: usize = 64 << 10;
    let full = PageTerms::default();
    let most = settings.query.batch_size;
    let bytes = settings.export.memory / MEMORY_PER_BYTE / at_once.max(1);
    let bytes = bytes.max(LEAST);
    let first = full.first.saturating_mul(bytes) / full.bytes;
    PageTerms {
        first: first.clamp(1, most.max(1)),
        most,
        bytes,
        ..full
    }
}

/// The engine between a source and a store, with a queue inside this process.
pub fn engine(
    settings: &Settings,
    source: Arc<dyn Source>,
    store: Arc<dyn Store>,
    observer: Arc<dyn Observer>,
) -> Engine {
    let (export, query) = (&settings.export, &settings.query);
    // A reader's next slice begins while its last one is committed, and the store holds what it writes once more.
    let pages = pages(settings, query.parallel * 2);
    let clock: Arc<dyn Clock> = Arc::new(SharedClock::default());
    let lease = LeaseTerms {
        duration: settings.functions.lease,
    };
    let slots = slots(settings);
    let source = Arc::new(CheckedSource::new(source));
    let source = Arc::new(SlotGatedSource::new(source, Arc::clone(&clock), &slots));
    let transform = Transform::default();
    let converters: Arc<dyn Converters> = match export.format {
        Format::Canonical => Arc::new(CanonicalConverters {
            source: Arc::clone(&source) as Arc<dyn Source>,
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            observer: Arc::clone(&observer),
            seen: Mutex::default(),
        }),
        format @ (Format::Preserve | Format::Flatten) => Arc::new(FlatConverters {
            source: Arc::clone(&source) as Arc<dyn Source>,
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            observer: Arc::clone(&observer),
            format,
            ids: export.ids,
            verify_sample: export.verify_flat_sample,
            transform: transform.clone(),
            cache: ConverterCache::default(),
        }),
    };
    Engine {
        source,
        store,
        queue: Arc::new(LocalQueue::default()),
        clock,
        observer,
        transform,
        converters,
        plan: PlanTerms {
            safety_lag: export.safety_lag,
            overlap: export.overlap,
            slice_size: export.slice_size,
            ..PlanTerms::default()
        },
        pages,
        lease,
        run_lease: RunLeaseTerms {
            duration: settings.state.lease,
            heartbeat: settings.state.heartbeat,
        },
        slots,
        sweep: SweepTerms {
            orphan: settings.functions.orphan,
            revive: settings.functions.revive,
        },
        readers: query.parallel,
        retry_after: RETRY_QUARANTINE_AFTER,
        keep_runs: settings.state.keep_runs,
    }
}
