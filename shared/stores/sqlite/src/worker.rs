//! The one thread that owns the connection. Calls are handed to it in order and answered when they are done, so that a
//! slow disk never blocks the runtime. A caller that gives up waiting does not stop a call that has begun.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use atlas_engine::{Error, ErrorKind, Result};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use crate::error::explain;
use crate::{lock, schema};

/// How long a call waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// A page of 500 rows of 10 KB is 5 MB of log: with SQLite's own 4 MB every page would be copied at once.
const CHECKPOINT_AFTER_PAGES: u32 = 4000;
/// Contents are a few KB: larger pages than SQLite's 4 KB mean fewer of them per row.
const PAGE_SIZE: u32 = 8192;

type Job = Box<dyn FnOnce(&mut Database) + Send>;

pub(crate) struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Worker {
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let mut database = Database {
            path: path.to_owned(),
            connection: None,
        };
        let thread = std::thread::Builder::new()
            .name("atlas-sqlite".to_owned())
            .spawn(move || {
                for job in queue {
                    job(&mut database);
                }
            })
            .map_err(|cause| {
                Error::new(ErrorKind::Internal, "start the thread of the SQLite store")
                    .because(cause)
            })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            path: path.to_owned(),
        })
    }

    /// Runs `work` on the connection. `action` completes the sentence "failed to …".
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.path.clone();
        self.run(move |database| {
            let connection = database.open()?;
            work(connection).map_err(|error| explain(error, action, &path))
        })
        .await
    }

    /// Creates the file and its tables, or brings the tables up to date.
    pub(crate) async fn prepare(&self) -> Result<()> {
        self.run(Database::prepare).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let gone = || Error::new(ErrorKind::Internal, "reach the thread of the SQLite store");
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |database| {
            // Nobody waits any more: the work is done all the same.
            let _ = answer.send(work(database));
        });
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// Waits until the connection is closed: closing folds the log into the file, which is then complete by itself.
impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the SQLite store ended with a panic");
        }
    }
}

/// The connection, opened when it is first needed.
struct Database {
    path: PathBuf,
    connection: Option<Connection>,
}

impl Database {
    /// The connection to a file that is there and has the tables of this program.
    fn open(&mut self) -> Result<&mut Connection> {
        if self.connection.is_none() {
            let action = "open the SQLite file";
            let there = self.path.try_exists().map_err(|cause| {
                Error::new(
                    ErrorKind::StoreDenied,
                    format!("{action} ({})", self.path.display()),
                )
                .because(cause)
                .fix("Check the rights of the folders on the way to sqlite.path.")
            })?;
            if !there {
                return Err(schema::missing(&self.path));
            }
            let connection = connect(&self.path, OpenFlags::empty())
                .map_err(|error| explain(error, action, &self.path))?;
            schema::require_current(&connection, &self.path)?;
            self.connection = Some(connection);
        }
        self.connection
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "keep the SQLite connection"))
    }

    fn prepare(&mut self) -> Result<()> {
        // SQLite does not wait when two processes switch a new file to WAL at once: they take turns instead.
        let _turn = lock::wait(&self.path, "prepare")?;
        self.connection = None;
        let mut connection = connect(&self.path, OpenFlags::SQLITE_OPEN_CREATE)
            .map_err(|error| explain(error, "open the SQLite file", &self.path))?;
        schema::prepare(&mut connection, &self.path)?;
        self.connection = Some(connection);
        Ok(())
    }
}

fn connect(path: &Path, create: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Takes effect in a file that is still empty.
    connection.pragma_update(None, "page_size", PAGE_SIZE)?;
    // With NORMAL a power failure could undo the last commits, which their cursors have passed already.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_AFTER_PAGES)?;
    Ok(connection)
}
