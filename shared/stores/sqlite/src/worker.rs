//! The one thread that owns the connection. Calls are handed to it in order and answered when they are done, so that a
//! slow disk never blocks the runtime. A caller that gives up waiting does not stop a call that has begun.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use atlas_engine::{Error, ErrorKind, Result};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{Access, AtFlags};
use tokio::sync::oneshot;

use crate::error::explain;
use crate::{Look, lock, schema};

/// How long a call waits for another process that writes.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// A commit dirties about as many pages of the indexes over random ids as it has rows: the fewer bytes a page has, the fewer are
/// written twice, to the log and to the file.
const PAGE_SIZE: u32 = 4096;
/// 256 MiB of log: leaves of the index over random ids that several commits dirty are copied into the file once. Up to a million
/// rows that halves what is copied.
const CHECKPOINT_AFTER_PAGES: u32 = 65536;
/// Holds the inner pages of the indexes at any size that a file has, and half of their leaves at a million rows.
const CACHE_KIB: i32 = 16 * 1024;

/// Whoever makes a file closes it before anybody in this process opens it: closing takes the locks of the whole process away.
static CREATING: Mutex<()> = Mutex::new(());

type Job = Box<dyn FnOnce(&mut Database) + Send>;

pub(crate) struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    closing: Arc<AtomicBool>,
}

impl Worker {
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let closing = Arc::new(AtomicBool::new(false));
        let mut database = Database {
            path: path.to_owned(),
            connection: None,
            closing: Arc::clone(&closing),
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
            closing,
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

    /// Looks at the file and its folder; changes neither.
    pub(crate) async fn look(&self) -> Result<Look> {
        self.run(|database| database.look()).await
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

/// Waits until the connection is closed: closing folds the log into the file, which is then complete by itself. What waits for
/// another process gives up at once, so that a program that was asked to stop does.
impl Drop for Worker {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
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
    closing: Arc<AtomicBool>,
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
            lock::refuse_second_name(&self.path)?;
            let connection = self
                .connect()
                .map_err(|error| explain(error, action, &self.path))?;
            schema::require_current(&connection, &self.path)?;
            self.connection = Some(connection);
        }
        self.connection
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "keep the SQLite connection"))
    }

    fn prepare(&mut self) -> Result<()> {
        self.connection = None;
        lock::refuse_second_name(&self.path)?;
        self.create_file();
        let mut connection = self
            .connect()
            .map_err(|error| explain(error, "open the SQLite file", &self.path))?;
        schema::prepare(&mut connection, &self.path)?;
        self.connection = Some(connection);
        Ok(())
    }

    fn look(&mut self) -> Result<Look> {
        let may = |path: &Path, access| {
            rustix::fs::accessat(rustix::fs::CWD, path, access, AtFlags::EACCESS).is_ok()
        };
        let folder = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        // SQLite makes and removes its log there.
        let in_folder = may(folder, Access::WRITE_OK | Access::EXEC_OK);
        if !self.path.exists() {
            return Ok(Look {
                is_prepared: false,
                may_write: in_folder,
            });
        }
        lock::refuse_second_name(&self.path)?;
        let connection = self
            .connect()
            .map_err(|error| explain(error, "open the SQLite file", &self.path))?;
        Ok(Look {
            is_prepared: schema::is_prepared(&connection, &self.path)?,
            may_write: in_folder && may(&self.path, Access::WRITE_OK),
        })
    }

    /// Makes the file for this user alone. SQLite would make it for everybody whom the umask lets in, and gives the log and the
    /// journal beside it the mode of the file.
    fn create_file(&self) {
        let _alone = CREATING.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be made is not there when SQLite opens it, which tells why.
        drop(atlas_files::create(&self.path));
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = {
            let _after = CREATING.lock().unwrap_or_else(PoisonError::into_inner);
            Connection::open_with_flags(&self.path, flags)?
        };
        wait_while_busy(&mut connection, Arc::clone(&self.closing))?;
        connection.set_prepared_statement_cache_capacity(64);
        // Takes effect in a file that is still empty.
        connection.pragma_update(None, "page_size", PAGE_SIZE)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        // With NORMAL a power failure could undo the last commits, which their cursors have passed already.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_AFTER_PAGES)?;
        Ok(connection)
    }
}

/// Lets SQLite try again while another process writes, until the time is over or the store is closing.
fn wait_while_busy(connection: &mut Connection, closing: Arc<AtomicBool>) -> rusqlite::Result<()> {
    let mut begun = Instant::now();
    connection.busy_handler(Some(move |tries| {
        if tries == 0 {
            begun = Instant::now();
        }
        let goes_on = begun.elapsed() < BUSY_TIMEOUT && !closing.load(Ordering::Relaxed);
        if goes_on {
            std::thread::sleep(BUSY_PAUSE);
        }
        goes_on
    }))
}
