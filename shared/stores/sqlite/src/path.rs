//! Paths that SQLite takes for something else than a file: what it wrote there would be gone with the process, or lie elsewhere.

use std::fmt;
use std::path::Path;

/// Why a path cannot be the one of a store: the rule it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnusablePath(&'static str);

impl fmt::Display for UnusablePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for UnusablePath {}

/// Endings by which SQLite names what it keeps beside a database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Looks at the text of a path, not at what is there.
///
/// # Errors
/// The rule that it breaks.
pub fn check_path(path: &Path) -> Result<(), UnusablePath> {
    let text = path.to_string_lossy();
    let rule = if text.trim().is_empty() {
        "must not be an empty path"
    } else if text.starts_with(':') {
        "must be a file: what begins with `:`, as `:memory:` does, is gone with the process"
    } else if has_scheme(&text) {
        "must be a path, not an address such as `file:…` or `sqlite:…`"
    } else if text.contains(char::is_control) {
        "must not hold control characters"
    } else if text.trim() != text {
        "must not begin or end with a space"
    } else if !names_a_file(&text) {
        "must name a file, not a folder"
    } else if BESIDE.iter().any(|ending| text.ends_with(ending)) {
        "must not end with `-wal`, `-shm` or `-journal`: SQLite names its logs so"
    } else {
        return Ok(());
    };
    Err(UnusablePath(rule))
}

/// Whether it begins as an address does. A single letter is a drive.
fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else {
        return false;
    };
    scheme.len() > 1
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

fn names_a_file(text: &str) -> bool {
    let name = text.rsplit('/').next().unwrap_or_default();
    !matches!(name, "" | "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plain_file_is_refused() {
        for path in [
            "",
            " ",
            ":memory:",
            ":MEMORY:",
            ":memory",
            ":",
            "file:x.db",
            "file:x.db?mode=memory",
            "file::memory:?cache=shared",
            "FILE:///x.db",
            "file:///tmp/x.db",
            "sqlite:x.db",
            "sqlite://x.db",
            "https://example.org/x.db",
            "a\0b.db",
            "a\nb.db",
            "\u{1b}[31m.db",
            " a.db",
            "a.db ",
            "a.db\t",
            ".",
            "..",
            "/",
            "data/",
            "data/.",
            "data/..",
            "a.db-wal",
            "a.db-shm",
            "a.db-journal",
        ] {
            assert!(check_path(Path::new(path)).is_err(), "{path:?}");
        }
    }

    #[test]
    fn every_file_is_taken() {
        for path in [
            "atlas.db",
            "data/atlas",
            "./:memory:",
            "./file:x.db",
            "/data/a b.db",
            "a?mode=memory",
            "a#b%20.db",
            "C:/data/atlas.db",
            "..data",
            "data.",
            "d/a:b.db",
            "\u{e4}\u{1f512}.db",
            "-wal.db",
        ] {
            assert_eq!(check_path(Path::new(path)), Ok(()), "{path:?}");
        }
    }
}
