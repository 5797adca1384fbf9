//! Building, starting and stopping a server.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{Base, Shape},
    clock::{Clock, Ticking},
    content::Profile,
    counters::Tally,
    faults::Script,
    handle::{App, Handle},
    query::{Release, Style},
    routes,
    world::World,
};

/// Numbers of compositions have to fit into the ids that are made of them.
const MOST_COMPOSITIONS: u64 = 1 << 40;

/// Commits are spread over at most this time from the first one.
const LONGEST_HISTORY: Duration = Duration::from_secs(300 * 24 * 3600);

/// A server to be started.
#[derive(Debug, Clone)]
pub struct SampleCdr {
    seed: u64,
    compositions: u64,
    patients: Option<u64>,
    profile: Profile,
    release: Release,
    user: Option<(String, String)>,
    clock: Clock,
    first_commit: Option<Timestamp>,
    commit_step: Option<Duration>,
    gzip: bool,
    port: u16,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No address to listen on.
    #[error("failed to listen on port {port} of this machine; 0 takes any free port")]
    Listen {
        /// The port that was asked for.
        port: u16,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// More compositions than can be numbered.
    #[error(
        "{0} compositions are more than a sample server can number; ask for at most {MOST_COMPOSITIONS}"
    )]
    TooMany(u64),
    /// The last commit would be later than the server's clock.
    #[error(
        "the last commit would be at {last}, later than the server's clock ({now}); start earlier, or commit in smaller steps"
    )]
    CommitsInTheFuture {
        /// Commit time of the last composition.
        last: Timestamp,
        /// The server's time.
        now: Timestamp,
    },
}

impl SampleCdr {
    /// A server with 1,000 compositions, without access control, on a free port.
    pub fn builder() -> Self {
        Self {
            seed: 1,
            compositions: 1_000,
            patients: None,
            profile: Profile::default(),
            release: Release::default(),
            user: None,
            clock: Clock::default(),
            first_commit: None,
            commit_step: None,
            gzip: false,
            port: 0,
        }
    }

    /// The same seed and size give the same server.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// How many compositions there are at the start. They are made when somebody reads them.
    pub fn compositions(self, compositions: u64) -> Self {
        Self {
            compositions,
            ..self
        }
    }

    /// How many EHRs they belong to; without this one for 20 compositions.
    pub fn patients(self, patients: u64) -> Self {
        Self {
            patients: Some(patients),
            ..self
        }
    }

    /// How large compositions are.
    pub fn profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// Which EHRbase to behave like.
    pub fn release(self, release: Release) -> Self {
        Self { release, ..self }
    }

    /// Asks for this user and password by basic authentication.
    pub fn auth(self, user: &str, password: &str) -> Self {
        Self {
            user: Some((user.to_owned(), password.to_owned())),
            ..self
        }
    }

    /// Where the server takes the time from.
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Commit time of composition 0, up to one step later; without this 2025-01-01.
    pub fn first_commit(self, at: Timestamp) -> Self {
        Self {
            first_commit: Some(at),
            ..self
        }
    }

    /// Mean time between two commits; without this 20 s, or less so that all of them fit into 300 days.
    pub fn commit_step(self, step: Duration) -> Self {
        Self {
            commit_step: Some(step),
            ..self
        }
    }

    /// Compresses answers for clients that accept it.
    pub fn gzip(self, gzip: bool) -> Self {
        Self { gzip, ..self }
    }

    /// The port to listen on; 0, which is the default, takes any free one.
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Starts the server on the loopback interface, inside the current tokio runtime.
    ///
    /// # Errors
    /// When it cannot listen, or when the compositions asked for are impossible.
    pub async fn start(self) -> Result<Running, StartError> {
        let app = Arc::new(self.app()?);
        let port = self.port;
        let listen = |source| StartError::Listen { port, source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let stopping = app.stopping.clone();
        let router = routes::router(Arc::clone(&app));
        let server = tokio::spawn(async move {
            axum::serve(listener, router)
                .with_graceful_shutdown(stopping.cancelled_owned())
                .await
        });
        Ok(Running {
            address,
            handle: Handle::new(Arc::clone(&app)),
            stopping: app.stopping.clone(),
            server,
        })
    }

    fn app(&self) -> Result<App, StartError> {
        if self.compositions > MOST_COMPOSITIONS {
            return Err(StartError::TooMany(self.compositions));
        }
        let step = self.commit_step.unwrap_or_else(|| {
            let even = LONGEST_HISTORY.as_micros() / u128::from(self.compositions.max(1));
            Duration::from_secs(20).min(Duration::from_micros(even as u64))
        });
        // 2025-01-01T00:00:00Z
        let first_us = self
            .first_commit
            .map_or(1_735_689_600_000_000, Timestamp::as_microsecond);
        let base = Base::new(Shape {
            seed: self.seed,
            compositions: self.compositions,
            patients: self.patients.unwrap_or(self.compositions / 20),
            first_us,
            step_us: i64::try_from(step.as_micros()).unwrap_or(i64::MAX),
        });
        let clock = Ticking::new(self.clock);
        let now_us = clock.now_us();
        if let Some(last) = self.compositions.checked_sub(1) {
            let last_us = base.committed_us(last);
            if last_us > now_us {
                let time = |us| Timestamp::from_microsecond(us).unwrap_or(Timestamp::MAX);
                return Err(StartError::CommitsInTheFuture {
                    last: time(last_us),
                    now: time(now_us),
                });
            }
        }
        let authorization = self.user.as_ref().map(|(user, password)| {
            format!(
                "Basic {}",
                BASE64_STANDARD.encode(format!("{user}:{password}"))
            )
        });
        Ok(App {
            world: RwLock::new(Arc::new(World::new(base))),
            clock,
            tally: Arc::new(Tally::default()),
            script: Mutex::new(Script::default()),
            style: Style {
                profile: self.profile,
                release: self.release,
            },
            quirks: RwLock::default(),
            authorization,
            gzip: self.gzip,
            stopping: CancellationToken::new(),
        })
    }
}

/// A server that answers until it is shut down or dropped.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    handle: Handle,
    stopping: CancellationToken,
    server: JoinHandle<io::Result<()>>,
}

impl Running {
    /// What to configure as the server's address: `http://127.0.0.1:PORT/ehrbase`.
    pub fn base_url(&self) -> String {
        format!("{}/ehrbase", self.origin())
    }

    /// `http://127.0.0.1:PORT`, under which `/sample/…` is.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes the server while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Breaks off what is still being answered and waits until nothing listens any more.
    ///
    /// # Errors
    /// When the server's task ended with an error.
    pub async fn shutdown(mut self) -> io::Result<()> {
        self.stopping.cancel();
        match (&mut self.server).await {
            Ok(result) => result,
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}
