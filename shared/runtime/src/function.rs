//! What every function of the suite begins with: settings from its environment, the engine they describe, and how long one
//! invocation may go on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atlas_engine::engine::Engine;
use atlas_engine::model::{Mode, Request};
use atlas_engine::ports::{Observer, Queue};
use atlas_engine::work::Budget;
use tokio::sync::OnceCell;
use tokio::time::Instant as Moment;
use tokio_util::sync::CancellationToken;

use crate::cloud::{LoadError, Queues};
use crate::settings::Settings;
use crate::{Environment, cloud, suite, wiring};

/// Names the configuration file of a function; without it, its variables say everything.
const CONFIG: &str = "ATLAS_CONFIG";

/// An instance of a function gets one message at a time on both clouds.
const MESSAGES_AT_ONCE: usize = 1;

/// A function that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What is wrong with the settings.
    #[error(transparent)]
    Settings(#[from] LoadError),
    /// What a part could not do.
    #[error(transparent)]
    Engine(#[from] atlas_engine::Error),
}

/// A wired engine, with what its settings say about invocations.
pub struct Suite {
    /// The engine; its queue is the one that the settings name.
    pub engine: Engine,
    /// What the schedule keeps up to date. Always incremental: `export.mode` is for the command line.
    pub request: Request,
    /// The settings.
    pub settings: Settings,
    /// The queues of the cloud; `None` where messages stay in this process.
    pub queues: Option<Queues>,
    /// Ends all invocations at their next page boundary.
    pub stop: CancellationToken,
}

impl Suite {
    /// Reads the settings from the variables of this process, and the file that `ATLAS_CONFIG` names.
    ///
    /// # Errors
    /// Why it cannot start, with the fix.
    pub async fn from_environment() -> Result<Self, StartError> {
        let environment = Environment::of_process();
        let file = environment.get(CONFIG).map(PathBuf::from);
        let settings = cloud::load(file.as_deref(), environment, &[]).await?;
        for notice in &settings.notices {
            tracing::warn!("{notice}");
        }
        let queue = cloud::queue(&settings)?;
        let queues = Queues::of(&settings)?;
        let mut suite = Self::new(settings, queue)?;
        suite.queues = queues;
        suite.engine.pages = wiring::pages(&suite.settings, MESSAGES_AT_ONCE);
        // Once a process: a report or a scrape finds the tables there, and asks for nothing but them.
        suite.engine.store.prepare().await?;
        Ok(suite)
    }

    /// The parts that settings describe, around a queue.
    ///
    /// # Errors
    /// What prevents a part from being made.
    pub fn new(settings: Settings, queue: Arc<dyn Queue>) -> atlas_engine::Result<Self> {
        let source = Arc::new(wiring::source(&settings)?);
        let store = wiring::store(&settings)?;
        let engine = Engine {
            queue,
            pages: wiring::pages(&settings, settings.serve.workers),
            ..wiring::engine(&settings, source, store, Arc::new(Logged))
        };
        Ok(Self {
            request: schedule(&settings),
            engine,
            settings,
            queues: None,
            stop: CancellationToken::new(),
        })
    }

    /// How long a worker may go on whose platform ends it in `left`: another page may be begun until the slice's time is over, and
    /// what is still under way shortly before the end is given up, so that the slice is released in time.
    #[must_use]
    pub fn budget(&self, left: Duration) -> Budget {
        self.within(left, self.settings.functions.slice)
    }

    /// How long a planner may go on whose platform ends it in `left`: its time is not that of a slice.
    #[must_use]
    pub fn planning_budget(&self, left: Duration) -> Budget {
        self.within(left, left)
    }

    fn within(&self, left: Duration, most: Duration) -> Budget {
        // A platform that leaves less than the margins still gets some work done.
        let soft = left.saturating_sub(suite::MARGIN).max(left / 3);
        let last = left.saturating_sub(suite::MARGIN / 3).max(left * 2 / 3);
        let budget = Budget {
            until: Some(Moment::now() + soft.min(most)),
            stop: self.stop.child_token(),
            ..Budget::default()
        };
        let stop = budget.stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(last).await;
            stop.cancel();
        });
        budget
    }
}

/// What the schedule keeps up to date.
fn schedule(settings: &Settings) -> Request {
    Request {
        mode: Mode::Incremental,
        ..wiring::request(settings)
    }
}

/// A suite that is made when it is first needed, so that a function is ready at once; a failure is tried again by the next
/// invocation.
#[derive(Default)]
pub struct Lazy(OnceCell<Arc<Suite>>);

impl From<Arc<Suite>> for Lazy {
    fn from(suite: Arc<Suite>) -> Self {
        Self(OnceCell::new_with(Some(suite)))
    }
}

impl Lazy {
    /// The suite.
    ///
    /// # Errors
    /// Why it cannot start.
    pub async fn get(&self) -> Result<&Suite, StartError> {
        let suite = self
            .0
            .get_or_try_init(async || Suite::from_environment().await.map(Arc::new));
        Ok(suite.await?)
    }

    /// Ends all work at the next page boundary: what is left is handed on.
    pub fn stop(&self) {
        if let Some(suite) = self.0.get() {
            suite.stop.cancel();
        }
    }
}

/// Nobody watches a function: what happens is logged where it is decided.
struct Logged;

impl Observer for Logged {
    fn event(&self, event: &atlas_engine::ports::Event<'_>) {
        if let atlas_engine::ports::Event::Note(note) = event {
            tracing::info!("{note}");
        }
    }
}
