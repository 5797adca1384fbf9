//! The engine in one process with the sample CDR and a store that forgets:
//! what planning, checking, converting and checkpointing add to reading the
//! same pages from the same source. Run by `cargo xtask bench engine`; prints
//! the section of the report. It is an example so that it is built with optimisation,
//! and `cargo xtask bench` is not.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atlas_cdr::Cdr;
use atlas_engine::memory::{MemoryStore, Unobserved};
use atlas_engine::model::{Outcome, Scope, Window};
use atlas_engine::ports::Source;
use atlas_engine::work::Budget;
use atlas_openehr::time;
use atlas_runtime::{Environment, Settings, wiring};
use atlas_sample_cdr::SampleCdr;

const COMPOSITIONS: u64 = 50_000;
const PAGE: usize = 500;
const PAIRS: usize = 5;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let sample = SampleCdr::builder()
        .seed(1)
        .compositions(COMPOSITIONS)
        .start()
        .await?;
    let text = format!(
        "[openehr]\nbase_url = {:?}\n[openehr.query]\nparallel = 1\nbatch_size = {PAGE}\n\
         [export]\nexport_composition_format = \"canonical\"\n",
        sample.base_url()
    );
    let settings = Settings::parse(
        &text,
        Path::new("engine.toml"),
        &Environment::default(),
        &[],
    )?;
    let source = Arc::new(wiring::source(&settings)?);
    println!(
        "Sample CDR in the same process with {COMPOSITIONS} compositions, a store that keeps nothing, one reader, \
         pages of {PAGE}. Ratio = a whole run of the engine / reading the same pages with the same source alone.\n"
    );
    println!(
        "| pair | source alone s | engine s | ratio | compositions/s |\n|---|---|---|---|---|"
    );
    for pair in 1..=PAIRS {
        let alone = read(source.as_ref()).await?;
        let whole = export(&settings, Arc::clone(&source)).await?;
        println!(
            "| {pair} | {:.2} | {:.2} | {:.3} | {:.0} |",
            alone.as_secs_f64(),
            whole.as_secs_f64(),
            whole.as_secs_f64() / alone.as_secs_f64(),
            COMPOSITIONS as f64 / whole.as_secs_f64()
        );
    }
    Ok(())
}

/// Reads every page, template by template, and drops it.
async fn read(source: &dyn Source) -> Result<Duration, Box<dyn Error>> {
    let begun = Instant::now();
    let all = Window {
        from: time::Instant::EPOCH,
        to: time::Instant::MAX,
    };
    let scope = |templates| Scope {
        templates,
        ehrs: Vec::new(),
        window: all,
    };
    let mut read = 0;
    for line in source.census(&scope(Vec::new())).await?.lines {
        let scope = scope(vec![line.template]);
        let mut after = None;
        loop {
            let page = source.page(&scope, after.as_ref(), PAGE).await?;
            read += page.rows.len() as u64;
            after = page.rows.last().map(|row| row.meta.cursor());
            if page.rows.len() < PAGE {
                break;
            }
        }
    }
    complete(read)?;
    Ok(begun.elapsed())
}

/// A whole run into an empty store.
async fn export(settings: &Settings, source: Arc<Cdr>) -> Result<Duration, Box<dyn Error>> {
    let begun = Instant::now();
    let store = Arc::new(MemoryStore::forgetting());
    let engine = wiring::engine(settings, source, store, Arc::new(Unobserved));
    let report = engine
        .export(&wiring::request(settings), &Budget::default())
        .await?;
    if report.outcome != Outcome::Complete {
        return Err(format!("the run ended as {:?}", report.outcome).into());
    }
    complete(report.counts.written)?;
    Ok(begun.elapsed())
}

fn complete(compositions: u64) -> Result<(), Box<dyn Error>> {
    match compositions {
        COMPOSITIONS => Ok(()),
        some => Err(format!("{some} of {COMPOSITIONS} compositions arrived").into()),
    }
}
