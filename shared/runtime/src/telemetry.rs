//! Log lines: text on stderr, and JSON in a rotated file when `[logging]` asks for one.
//!
//! Lines of Atlas' own crates follow the level of the settings; those of libraries are shown from
//! `warn` on, because theirs may quote what they send.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use jiff::Timestamp;
use tracing::Level;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;

use crate::settings::{LogFile, LogLevel, Rotation};

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
            .with_writer(Mutex::new(writer))
    });
    let text = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(stderr)
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
/// If something in this process logs already.
pub fn init_function() -> Result<(), TelemetryError> {
    // The settings are read later, with what is wrong with them to be logged: only the variable counts here.
    let level = match std::env::var("ATLAS_LOG_LEVEL").as_deref() {
        Ok("error") => LogLevel::Error,
        Ok("warn") => LogLevel::Warn,
        Ok("debug") => LogLevel::Debug,
        Ok("trace") => LogLevel::Trace,
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
            .with_writer(Mutex::new(writer))
    });
    let filter = Targets::new()
        .with_default(Level::WARN)
        .with_target("atlas", level);
    let stdout = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_writer(std::io::stdout);
    tracing_subscriber::registry()
        .with(filter)
        .with(stdout)
        .with(file)
        .try_init()
        .map_err(TelemetryError::Started)
}

fn opened(file: Option<&LogFile>) -> Result<Option<RotatedFile>, TelemetryError> {
    let Some(file) = file else {
        return Ok(None);
    };
    match RotatedFile::open(file.clone()) {
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

/// A file that starts anew by time and by size. `atlas.log` is always the current one; older ones are
/// named after the moment they were closed, and nothing removes them.
struct RotatedFile {
    wanted: LogFile,
    file: File,
    written: u64,
    period: u64,
}

impl RotatedFile {
    fn open(wanted: LogFile) -> io::Result<Self> {
        if let Some(folder) = wanted.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&wanted.path)?;
        let metadata = file.metadata()?;
        // What an earlier process left belongs to the period of its last line.
        let period = period(wanted.rotation, metadata.modified()?);
        Ok(Self {
            file,
            written: metadata.len(),
            period,
            wanted,
        })
    }

    fn write_line(&mut self, line: &[u8], now: SystemTime) -> io::Result<usize> {
        let is_full = self.written + line.len() as u64 > self.wanted.max_size;
        let is_over = period(self.wanted.rotation, now) != self.period;
        if self.written > 0 && (is_full || is_over) {
            std::fs::rename(&self.wanted.path, self.closed_name(now))?;
            *self = Self::open(self.wanted.clone())?;
        }
        self.period = period(self.wanted.rotation, now);
        let written = self.file.write(line)?;
        self.written += written as u64;
        Ok(written)
    }

    fn closed_name(&self, now: SystemTime) -> PathBuf {
        let path = &self.wanted.path;
        let part = |part: Option<&std::ffi::OsStr>| {
            part.unwrap_or_default().to_string_lossy().into_owned()
        };
        let (stem, extension) = (part(path.file_stem()), part(path.extension()));
        let moment = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
        let moment = moment.strftime("%Y-%m-%dT%H-%M-%S").to_string();
        let name = |count: u32| match count {
            0 => path.with_file_name(format!("{stem}.{moment}.{extension}")),
            count => path.with_file_name(format!("{stem}.{moment}-{count}.{extension}")),
        };
        let mut count = 0;
        while name(count).exists() {
            count += 1;
        }
        name(count)
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

    use std::time::Duration;

    use super::*;

    fn start(rotation: Rotation, max_size: u64) -> (tempfile::TempDir, RotatedFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/atlas.log");
        let file = RotatedFile::open(LogFile {
            path,
            rotation,
            max_size,
        })
        .unwrap();
        (folder, file)
    }

    fn files(file: &RotatedFile) -> Vec<String> {
        let folder = file.wanted.path.parent().unwrap();
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn day(days: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400)
    }

    #[test]
    fn a_file_that_would_grow_too_large_is_closed_first() {
        let (_folder, mut file) = start(Rotation::Never, 10);
        for _ in 0..3 {
            assert_eq!(file.write_line(b"1234567\n", day(1)).unwrap(), 8);
        }
        let names = [
            "atlas.1970-01-02T00-00-00-1.log",
            "atlas.1970-01-02T00-00-00.log",
            "atlas.log",
        ];
        assert_eq!(files(&file), names);
    }

    #[test]
    fn a_new_day_starts_a_new_file() {
        let (_folder, mut file) = start(Rotation::Daily, 1_000);
        file.write_line(b"a\n", day(1)).unwrap();
        file.write_line(b"b\n", day(1)).unwrap();
        file.write_line(b"c\n", day(2)).unwrap();
        assert_eq!(files(&file), ["atlas.1970-01-03T00-00-00.log", "atlas.log"]);
        assert_eq!(std::fs::read_to_string(&file.wanted.path).unwrap(), "c\n");
    }
}
