//! Log lines: text on stderr, and JSON in a rotated file when `[logging]` asks for one.
//!
//! Lines of Atlas' own crates follow the level of the settings; those of libraries are shown from
//! `warn` on, because theirs may quote what they send. Whatever a text holds, a line stays one line, and nothing in it acts upon a
//! terminal.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use atlas_openehr::printable::{printable, printable_json};
use file_rotate::compression::Compression;
use file_rotate::suffix::{AppendTimestamp, DateFrom, FileLimit};
use file_rotate::{ContentLimit, FileRotate};
use tracing::Level;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;

use crate::settings::{LogFile, LogLevel, Rotation, UnknownLogLevel};

/// Target of events for the log file only: the person sees the same as a table or an explained error.
pub const REPORT: &str = "atlas::report";

/// Logging that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log file cannot be opened.
    #[error("failed to open the log file `{}`; check `logging.local_path` and its rights", path.display())]
    File {
        /// The file that was tried.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// `ATLAS_LOG_LEVEL` is none of the levels.
    #[error("failed to read the environment variable ATLAS_LOG_LEVEL")]
    Level(#[from] UnknownLogLevel),
    /// Something in this process logs already.
    #[error("failed to start logging")]
    Started(#[source] tracing_subscriber::util::TryInitError),
}

/// Starts logging for the whole process. `stderr` is what writes text lines: stderr itself, or something
/// that knows about progress bars on it.
pub fn init<W>(level: LogLevel, file: Option<&LogFile>, stderr: W) -> Result<(), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let json = opened(file)?.map(|writer| {
        tracing_subscriber::fmt::layer()
            .json()
            .with_writer(Printed(Mutex::new(writer), printable_json))
    });
    let text = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(Printed(stderr, printable))
        .with_filter(filter_fn(|metadata| metadata.target() != REPORT));
    let filter = Targets::new()
        .with_default(Level::WARN)
        .with_target("atlas", level);
    tracing_subscriber::registry()
        .with(filter)
        .with(text)
        .with(json)
        .try_init()
        .map_err(TelemetryError::Started)
}

/// Starts logging of a function: JSON lines on stdout. The Functions host takes a line on stderr for an error.
///
/// # Errors
/// If `ATLAS_LOG_LEVEL` is no level, or something in this process logs already.
pub fn init_function() -> Result<(), TelemetryError> {
    // The settings are read later, with what is wrong with them to be logged: only the variable counts here.
    let level = match std::env::var("ATLAS_LOG_LEVEL") {
        Ok(name) if !name.trim().is_empty() => name.parse()?,
        _ => LogLevel::Info,
    };
    init_service(level, None)
}

/// Starts logging of a service: JSON lines on stdout, and in a file when `[logging]` asks for one.
///
/// # Errors
/// If the file cannot be opened, or something in this process logs already.
pub fn init_service(level: LogLevel, file: Option<&LogFile>) -> Result<(), TelemetryError> {
    let file = opened(file)?.map(|writer| {
        tracing_subscriber::fmt::layer()
            .json()
            .with_writer(Printed(Mutex::new(writer), printable_json))
    });
    let filter = Targets::new()
        .with_default(Level::WARN)
        .with_target("atlas", level);
    let stdout = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_writer(Printed(io::stdout, printable_json));
    tracing_subscriber::registry()
        .with(filter)
        .with(stdout)
        .with(file)
        .try_init()
        .map_err(TelemetryError::Started)
}

/// Makes writers that rewrite each line before it goes anywhere.
struct Printed<M>(M, fn(&str) -> Cow<'_, str>);

impl<'w, M: MakeWriter<'w>> MakeWriter<'w> for Printed<M> {
    type Writer = PrintedLine<M::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        PrintedLine(self.0.make_writer(), self.1)
    }
}

struct PrintedLine<W>(W, fn(&str) -> Cow<'_, str>);

impl<W: Write> Write for PrintedLine<W> {
    /// Gets one whole line at a time, as every event is written.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        self.0
            .write_all(format!("{}\n", (self.1)(text)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn opened(file: Option<&LogFile>) -> Result<Option<RotatedFile>, TelemetryError> {
    let Some(file) = file else {
        return Ok(None);
    };
    match RotatedFile::open(file) {
        Ok(opened) => Ok(Some(opened)),
        Err(source) => Err(TelemetryError::File {
            path: file.path.clone(),
            source,
        }),
    }
}

impl From<LogLevel> for tracing_subscriber::filter::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// A file that starts anew by size, as `file_rotate` sees to, and by time. The one with the configured name is always the current
/// one; older ones are named after the moment they were closed, and the oldest of them are removed.
struct RotatedFile {
    file: FileRotate<AppendTimestamp>,
    rotation: Rotation,
    period: u64,
    is_empty: bool,
}

impl RotatedFile {
    fn open(wanted: &LogFile) -> io::Result<Self> {
        if let Some(folder) = wanted.path.parent() {
            atlas_files::create_folders(folder)?;
        }
        // Lines name templates, servers and times: they are for whoever runs Atlas.
        let mut options = atlas_files::options();
        options.read(true).create(true).append(true);
        // A file that cannot be opened would swallow lines later on.
        let metadata = options.open(&wanted.path)?.metadata()?;
        let suffix = AppendTimestamp::with_format(
            "%Y-%m-%dT%H-%M-%S",
            FileLimit::MaxFiles(wanted.keep),
            DateFrom::Now,
        );
        let limit = ContentLimit::BytesSurpassed(wanted.max_size);
        Ok(Self {
            file: FileRotate::new(
                &wanted.path,
                suffix,
                limit,
                Compression::None,
                Some(options),
            ),
            rotation: wanted.rotation,
            // What an earlier process left belongs to the period of its last line.
            period: period(wanted.rotation, metadata.modified()?),
            is_empty: metadata.len() == 0,
        })
    }

    fn write_line(&mut self, line: &[u8], now: SystemTime) -> io::Result<usize> {
        let period = period(self.rotation, now);
        if period != self.period && !self.is_empty {
            self.file.rotate()?;
        }
        (self.period, self.is_empty) = (period, false);
        self.file.write(line)
    }
}

impl Write for RotatedFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_line(line, SystemTime::now())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Which hour or day a moment belongs to, counted from 1970 in UTC.
fn period(rotation: Rotation, moment: SystemTime) -> u64 {
    let seconds = moment
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    match rotation {
        Rotation::Hourly => seconds / 3_600,
        Rotation::Daily => seconds / 86_400,
        Rotation::Never => 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]

    use std::path::Path;
    use std::time::Duration;

    use super::*;

    fn start(folder: &Path, rotation: Rotation, max_size: usize, keep: usize) -> RotatedFile {
        RotatedFile::open(&LogFile {
            path: folder.join("logs/atlas.log"),
            rotation,
            max_size,
            keep,
        })
        .unwrap()
    }

    /// The contents of the closed files in the order of their names, and of the current one.
    fn contents(folder: &Path) -> (Vec<String>, String) {
        let mut paths: Vec<_> = std::fs::read_dir(folder.join("logs"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        let mut texts = paths
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap());
        // The shortest name comes first.
        let current = texts.next().unwrap();
        (texts.collect(), current)
    }

    fn later(hours: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(hours * 3_600)
    }

    #[test]
    fn a_file_that_is_full_is_closed_and_the_oldest_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, now) = (start(folder.path(), Rotation::Never, 10, 2), later(0));
        for line in [
            "first line\n",
            "second line\n",
            "third line\n",
            "fourth line\n",
            "fifth\n",
        ] {
            assert_eq!(file.write_line(line.as_bytes(), now).unwrap(), line.len());
        }
        let (closed, current) = contents(folder.path());
        assert_eq!(current, "fifth\n");
        assert_eq!(closed.len(), 2, "{closed:?}");
        for line in ["third line\n", "fourth line\n"] {
            assert!(closed.iter().any(|text| text == line), "{closed:?}");
        }
    }

    #[test]
    fn a_new_hour_or_day_starts_a_new_file_also_after_a_restart() {
        for (rotation, hours) in [(Rotation::Hourly, 1), (Rotation::Daily, 24)] {
            for restarted in [false, true] {
                let (now, then) = (later(0), later(hours));
                let folder = tempfile::tempdir().unwrap();
                let mut file = start(folder.path(), rotation, 1_000, 30);
                file.write_line(b"a\n", now).unwrap();
                file.write_line(b"b\n", now).unwrap();
                if restarted {
                    file = start(folder.path(), rotation, 1_000, 30);
                }
                file.write_line(b"c\n", then).unwrap();
                let expected = (vec!["a\nb\n".to_owned()], "c\n".to_owned());
                assert_eq!(contents(folder.path()), expected, "{rotation:?}");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_user_of_atlas_reads_its_log_files() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let (mut file, now) = (start(folder.path(), Rotation::Never, 4, 30), later(0));
        for _ in 0..3 {
            file.write_line(b"line\n", now).unwrap();
        }
        let entries = std::fs::read_dir(folder.path().join("logs")).unwrap();
        let modes = entries.map(|entry| entry.unwrap().metadata().unwrap().permissions().mode());
        let modes: Vec<u32> = modes.map(|mode| mode & 0o777).collect();
        assert_eq!(modes, [0o600; 3]);
    }
}
