//! A plan of so many compositions as the first argument says, spread over time as the second one says. The source counts by
//! arithmetic and answers at once, so that nothing but planning takes time; PostgreSQL holds the plan. Run by
//! `cargo xtask bench plan`, which measures the memory of this process; prints one JSON document.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use atlas_ehrbase::Postgres;
use atlas_engine::memory::Unobserved;
use atlas_engine::model::{Census, CensusLine, Cursor, Meta, Page, Scope, Usage, Window};
use atlas_engine::ports::{Compositions, Definitions, FlatOracle, Source};
use atlas_engine::work::Budget;
use atlas_engine::{Error as EngineError, ErrorKind};
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::time;
use atlas_runtime::{Environment, Settings, wiring};
use serde_json::json;
use tokio::time::Instant;

/// A slice of the default size holds a 128th of one of them at a hundred million: about 5,000 slices.
const TEMPLATES: u64 = 40;
const YEAR: i64 = 365 * 86_400 * 1_000_000;
/// The source's clock, in microseconds, when it has ten years behind it.
const NOW: i64 = 56 * YEAR;
const BEGIN: i64 = NOW - 10 * YEAR;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// So many commits, evenly between two instants in microseconds.
struct Span {
    from: i64,
    to: i64,
    commits: u64,
}

/// Counts by arithmetic; holds nothing that could be read.
struct Simulated {
    /// Of each template, in the order of time.
    spans: Vec<Span>,
    requests: AtomicU64,
}

impl Simulated {
    fn new(compositions: u64, shape: &str) -> Result<Self> {
        let each = compositions / TEMPLATES;
        let spans = match shape {
            "even" => vec![Span {
                from: BEGIN,
                to: NOW - YEAR / 365,
                commits: each,
            }],
            // What an old system held came in within a day; since then it grows.
            "imported" => vec![
                Span {
                    from: BEGIN,
                    to: BEGIN + YEAR / 365,
                    commits: each * 9 / 10,
                },
                Span {
                    from: BEGIN + YEAR / 365,
                    to: NOW - YEAR / 365,
                    commits: each - each * 9 / 10,
                },
            ],
            _ => return Err(format!("the shape is `even` or `imported`, not `{shape}`").into()),
        };
        Ok(Self {
            spans,
            requests: AtomicU64::new(0),
        })
    }

    /// Commits of one template before an instant.
    fn before(&self, at: time::Instant) -> u64 {
        let at = at.as_micros();
        self.spans
            .iter()
            .map(|span| {
                let passed = u128::from(at.clamp(span.from, span.to).abs_diff(span.from));
                let whole = u128::from(span.to.abs_diff(span.from));
                (u128::from(span.commits) * passed).div_ceil(whole) as u64
            })
            .sum()
    }

    fn in_window(&self, window: Window) -> u64 {
        self.before(window.to)
            .saturating_sub(self.before(window.from))
    }

    /// Templates that a scope asks for.
    fn asked(scope: &Scope) -> Vec<TemplateId> {
        (0..TEMPLATES)
            .map(|number| TemplateId::new(&format!("simulated.{number}")))
            .filter(|id| scope.templates.is_empty() || scope.templates.contains(id))
            .collect()
    }

    fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

fn instant(micros: i64) -> time::Instant {
    time::Instant::from_micros(micros).unwrap_or(time::Instant::MAX)
}

fn unreadable() -> EngineError {
    EngineError::new(
        ErrorKind::SourceUnreadable,
        "read from a source that only counts",
    )
}

#[async_trait]
impl Compositions for Simulated {
    async fn census(&self, scope: &Scope) -> atlas_engine::Result<Census> {
        self.request();
        let window = Window {
            from: scope.window.from,
            to: time::Instant::MAX,
        };
        let count = self.in_window(window);
        // No commit lies behind the last one before the end of its span.
        let last = self.spans.iter().map(|span| {
            let step = (span.to - span.from) / span.commits.max(1) as i64;
            span.to - step
        });
        let last = instant(last.max().unwrap_or(BEGIN));
        let line = |template| CensusLine {
            template,
            count,
            first: scope.window.from.max(instant(BEGIN)),
            last,
        };
        Ok(Census {
            server_time: instant(NOW),
            lines: match count {
                0 => Vec::new(),
                _ => Self::asked(scope).into_iter().map(line).collect(),
            },
        })
    }

    async fn count(&self, scope: &Scope) -> atlas_engine::Result<u64> {
        self.request();
        Ok(self.in_window(scope.window) * Self::asked(scope).len() as u64)
    }

    async fn page(&self, _: &Scope, _: Option<&Cursor>, _: usize) -> atlas_engine::Result<Page> {
        Err(unreadable())
    }

    async fn list(
        &self,
        _: &Scope,
        _: Option<&Cursor>,
        _: usize,
    ) -> atlas_engine::Result<Vec<Meta>> {
        Err(unreadable())
    }

    async fn fetch(&self, _: &Scope, _: &[ObjectId]) -> atlas_engine::Result<Page> {
        Err(unreadable())
    }
}

#[async_trait]
impl Definitions for Simulated {
    async fn templates(&self) -> atlas_engine::Result<Vec<TemplateId>> {
        self.request();
        Ok((0..TEMPLATES)
            .map(|number| TemplateId::new(&format!("simulated.{number}")))
            .collect())
    }

    async fn web_template(&self, _: &TemplateId) -> atlas_engine::Result<String> {
        Err(unreadable())
    }
}

#[async_trait]
impl FlatOracle for Simulated {
    async fn flat(&self, _: &Meta) -> atlas_engine::Result<String> {
        Err(unreadable())
    }
}

impl Source for Simulated {
    fn usage(&self) -> Usage {
        Usage {
            requests: self.requests.load(Ordering::Relaxed),
            ..Usage::default()
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let compositions: u64 = arguments.next().unwrap_or_default().parse()?;
    let source = Arc::new(Simulated::new(
        compositions,
        &arguments.next().unwrap_or_default(),
    )?);
    let postgres = Postgres::start().await?;
    let text = format!(
        "database_target = \"postgresql\"\n[postgresql]\nconnection_string = {:?}\nssl_mode = \"disable\"\n\
         [openehr]\nbase_url = \"http://127.0.0.1:9\"\n[export]\nexport_composition_format = \"canonical\"\n",
        postgres.fresh_database().await?
    );
    let settings = Settings::parse(&text, Path::new("plan.toml"), &Environment::default(), &[])?;
    let store = wiring::store(&settings)?;
    let engine = wiring::engine(
        &settings,
        Arc::clone(&source) as _,
        Arc::clone(&store),
        Arc::new(Unobserved),
    );
    let request = wiring::request(&settings);
    store.prepare().await?;

    let begun = Instant::now();
    let mut ticks = 1;
    let occurrence = time::Instant::EPOCH;
    // A planner may stop before it is done; the next one goes on.
    while engine
        .plan_and_repair(occurrence, &request, &Budget::default())
        .await?
        .cut
        .is_none()
    {
        ticks += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let slices = store.ledger().slices(&request.selection.key()).await?;
    let expected: u64 = slices.iter().map(|slice| slice.expected).sum();
    if expected != compositions {
        return Err(format!("the slices hold {expected} of {compositions} compositions").into());
    }
    println!(
        "{}",
        json!({
            "slices": slices.len(),
            "requests": source.usage().requests,
            "seconds": seconds,
            "ticks": ticks,
        })
    );
    Ok(())
}
