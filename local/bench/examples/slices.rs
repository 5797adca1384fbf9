//! Ten thousand slices, many workers, two slots: what a slice costs in messages and store calls, and what forty workers cost
//! beside two. Run by `cargo xtask bench slices`; prints the section of the report.
//!
//! Each worker has an engine of its own, as a process would, over one PostgreSQL and one queue; the source answers from this
//! process, so that nothing but the scheduling takes time.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atlas_cdr::Cdr;
use atlas_ehrbase::Postgres;
use atlas_engine::engine::Engine;
use atlas_engine::local::LocalQueue;
use atlas_engine::memory::Unobserved;
use atlas_engine::model::Outcome;
use atlas_engine::ports::{Queue, Store};
use atlas_engine::suite::deliver::Delivered;
use atlas_engine::work::Budget;
use atlas_engine::wrapped::{Around, WrappedStore};
use atlas_openehr::time;
use atlas_runtime::{Environment, Settings, wiring};
use atlas_sample_cdr::SampleCdr;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Two in a slice at most.
const COMPOSITIONS: u64 = 16_000;
const SLOTS: usize = 2;
/// Time of a message, as a function has it.
const BUDGET: Duration = Duration::from_secs(20);
/// A message that failed comes again after this.
const AGAIN: Duration = Duration::from_secs(1);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Counts the calls of a store: each is one transaction.
struct Counted(Arc<AtomicU64>);

impl Around for Counted {
    async fn call<T: Send, F: Future<Output = atlas_engine::Result<T>> + Send>(
        &self,
        mut call: impl FnMut() -> F + Send,
    ) -> atlas_engine::Result<T> {
        self.0.fetch_add(1, Ordering::Relaxed);
        call().await
    }
}

struct Measured {
    slices: u64,
    planned: Duration,
    deliveries: u64,
    calls: u64,
    at_once: u64,
    worked: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let postgres = Postgres::start().await?;
    println!(
        "A full run over {SLOTS} slots: sample CDR in the same process, PostgreSQL without durability, {} s for each message. Store \
         calls are transactions, heartbeats of slots and leases included. Target: at most 1.2 deliveries a slice, whatever the \
         number of workers.\n",
        BUDGET.as_secs()
    );
    println!(
        "| workers | slices | plan s | work s | deliveries a slice | store calls a slice | most requests at once |\n\
         |---|---|---|---|---|---|---|"
    );
    let mut alone = None;
    for workers in [2, 40] {
        let one = measure(&postgres, workers).await?;
        let slices = one.slices as f64;
        println!(
            "| {workers} | {} | {:.1} | {:.1} | {:.3} | {:.1} | {} |",
            one.slices,
            one.planned.as_secs_f64(),
            one.worked.as_secs_f64(),
            one.deliveries as f64 / slices,
            one.calls as f64 / slices,
            one.at_once
        );
        if let Some(two) = alone.replace(one.worked) {
            let ratio = one.worked.as_secs_f64() / two.as_secs_f64();
            println!("\nForty workers took {ratio:.3} times as long as two.");
        }
    }
    Ok(())
}

async fn measure(postgres: &Postgres, workers: usize) -> Result<Measured> {
    let sample = SampleCdr::builder()
        .seed(1)
        .compositions(COMPOSITIONS)
        .start()
        .await?;
    let url = postgres.fresh_database().await?;
    let text = format!(
        "database_target = \"postgresql\"\n[postgresql]\nconnection_string = {url:?}\nssl_mode = \"disable\"\n\
         [openehr]\nbase_url = {:?}\n[openehr.query]\nparallel = {SLOTS}\n\
         [export]\nexport_composition_format = \"canonical\"\nslice_size = 2\nsafety_lag_seconds = 0\n",
        sample.base_url()
    );
    let settings = Settings::parse(
        &text,
        Path::new("slices.toml"),
        &Environment::default(),
        &[],
    )?;
    let source = Arc::new(wiring::source(&settings)?);
    let calls = Arc::new(AtomicU64::new(0));
    let plain = wiring::store(&settings)?;
    let counted = WrappedStore::wrap(Arc::clone(&plain), Counted(Arc::clone(&calls)));
    let store: Arc<dyn Store> = Arc::new(counted);
    let queue = Arc::new(LocalQueue::default());
    let process = || process(&settings, &source, &store, &queue);

    let begun = Instant::now();
    let request = wiring::request(&settings);
    let tick = process()
        .plan_and_repair(time::Instant::EPOCH, &request, &Budget::default())
        .await?;
    let planned = begun.elapsed();
    let slices = plain.ledger().slices(&request.selection.key()).await?.len() as u64;
    calls.store(0, Ordering::Relaxed);
    let (begun, is_over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let mut working = JoinSet::new();
    for _ in 0..workers {
        let (engine, queue, is_over) = (process(), Arc::clone(&queue), Arc::clone(&is_over));
        working.spawn(async move { work(&engine, &queue, &is_over).await });
    }
    let outcome = loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let run = plain.ledger().run(&tick.run).await?;
        if let Some(outcome) = run.and_then(|run| run.outcome) {
            break outcome;
        }
    };
    let worked = begun.elapsed();
    is_over.store(true, Ordering::Relaxed);
    let deliveries = working.join_all().await.into_iter().sum();
    if outcome != Outcome::Complete {
        return Err(format!("the run ended as {outcome:?}").into());
    }
    Ok(Measured {
        slices,
        planned,
        deliveries,
        calls: calls.load(Ordering::Relaxed),
        at_once: sample.handle().counters().most_at_once,
        worked,
    })
}

fn process(
    settings: &Settings,
    source: &Arc<Cdr>,
    store: &Arc<dyn Store>,
    queue: &Arc<LocalQueue>,
) -> Engine {
    let engine = wiring::engine(
        settings,
        Arc::clone(source) as _,
        Arc::clone(store),
        Arc::new(Unobserved),
    );
    Engine {
        queue: Arc::clone(queue) as Arc<dyn Queue>,
        ..engine
    }
}

/// Takes messages until the run is over; answers how many.
async fn work(engine: &Engine, queue: &LocalQueue, is_over: &AtomicBool) -> u64 {
    let mut deliveries = 0;
    while !is_over.load(Ordering::Relaxed) {
        let Ok(delivery) = timeout(Duration::from_millis(100), queue.recv()).await else {
            continue;
        };
        deliveries += 1;
        let budget = Budget {
            until: Some(Instant::now() + BUDGET),
            ..Budget::default()
        };
        if let Delivered::Again(_) = engine.deliver(&delivery.message, &budget).await {
            queue.again(delivery, AGAIN);
        }
    }
    deliveries
}
