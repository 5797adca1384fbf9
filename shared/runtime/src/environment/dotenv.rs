//! The `.env` file beside a configuration, read literally: nothing in it is replaced or carried out.
//!
//! | line | value |
//! |---|---|
//! | `NAME=value # comment` | `value`; a `#` belongs to the value unless a space stands before it |
//! | `NAME='any text'` | the text between the quotes |
//! | `NAME="any text"` | the same, with `\"` for a quote and `\\` for a backslash |
//! | `export NAME=value` | as without `export` |

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A `.env` file that is there, but cannot be used. Never shows what a line holds.
#[derive(Debug, thiserror::Error)]
pub enum DotEnvError {
    /// The file cannot be opened or read.
    #[error("failed to read `{}`; make it readable or remove it", path.display())]
    Unreadable {
        /// The `.env` file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
    /// It is a folder, a pipe or something else.
    #[error("failed to read `{}`, which is not a file; rename it or remove it", path.display())]
    NotAFile {
        /// The `.env` file.
        path: PathBuf,
    },
    /// Others could choose where Atlas sends secrets.
    #[error(
        "refused `{}`, which other users may write; run `chmod go-w` on it",
        path.display()
    )]
    Writable {
        /// The `.env` file.
        path: PathBuf,
    },
    /// Another user wrote it, or can do so at any time.
    #[error(
        "refused `{}`, which belongs to another user (uid {owner}); remove it, or make it yours with `chown`",
        path.display()
    )]
    Foreign {
        /// The `.env` file.
        path: PathBuf,
        /// Who it belongs to.
        owner: u32,
    },
    /// A line is not `NAME=value`.
    #[error(
        "failed to read entry {entry} of `{}`; write `NAME=value`, and quote values that hold spaces",
        path.display()
    )]
    Malformed {
        /// The `.env` file.
        path: PathBuf,
        /// Which entry, counted from 1 without comments and empty lines.
        entry: usize,
    },
}

/// The variables of the `.env` file in `folder`, in the order of the file; none if there is no such file.
///
/// # Errors
/// Why the file that is there cannot be used.
pub(super) fn read(folder: &Path) -> Result<Vec<(String, String)>, DotEnvError> {
    let path = folder.join(".env");
    let unreadable = |source| DotEnvError::Unreadable {
        path: path.clone(),
        source,
    };
    // To open a pipe would wait for somebody who writes.
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(DotEnvError::NotAFile { path }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    }
    let mut file = File::open(&path).map_err(unreadable)?;
    check_owner(&file, &path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    let not_text = |_| unreadable(std::io::ErrorKind::InvalidData.into());
    let text = String::from_utf8(bytes).map_err(not_text)?;
    parse(&text).map_err(|entry| DotEnvError::Malformed { path, entry })
}

/// The line that gives a variable this value, with its end. `name` is a name of a variable.
#[must_use]
pub fn dotenv_line(name: &str, value: &str) -> String {
    if value.contains('\'') {
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
        format!("{name}=\"{escaped}\"\n")
    } else {
        format!("{name}='{value}'\n")
    }
}

/// Looks at the opened file: a name can be given to another file meanwhile.
#[cfg(unix)]
fn check_owner(file: &File, path: &Path) -> Result<(), DotEnvError> {
    use std::os::unix::fs::MetadataExt;

    const WRITABLE_BY_OTHERS: u32 = 0o022;
    let metadata = file.metadata().map_err(|source| DotEnvError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let (owner, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != us && owner != 0 {
        return Err(DotEnvError::Foreign {
            path: path.to_owned(),
            owner,
        });
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(DotEnvError::Writable {
            path: path.to_owned(),
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_owner(_file: &File, _path: &Path) -> Result<(), DotEnvError> {
    Ok(())
}

/// Names and values; or the number of the entry that is none.
fn parse(text: &str) -> Result<Vec<(String, String)>, usize> {
    let mut entries = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(entries);
        }
        if rest.starts_with('#') {
            rest = line(rest).1;
            continue;
        }
        let (name, value, after) = entry(rest).ok_or(entries.len() + 1)?;
        entries.push((name.to_owned(), value));
        rest = after;
    }
}

/// The first line without its end, and all that follows.
fn line(text: &str) -> (&str, &str) {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    (line.strip_suffix('\r').unwrap_or(line), rest)
}

/// The name and value at the start of a text, and what follows the line on which the value ends.
fn entry(text: &str) -> Option<(&str, String, &str)> {
    let (name, value) = text.split_once('=')?;
    let name = match name.strip_prefix("export") {
        Some(behind) if behind.starts_with([' ', '\t']) => behind,
        _ => name,
    };
    let name = name.trim_matches([' ', '\t']);
    if !is_name(name) {
        return None;
    }
    let value = value.trim_start_matches([' ', '\t']);
    let (value, after) = match value.chars().next() {
        Some(quote @ ('\'' | '"')) => {
            let (value, after) = quoted(value.get(1..)?, quote)?;
            let (left, after) = line(after);
            // Nothing but a comment may follow the quote.
            without_comment(left).is_empty().then_some((value, after))?
        }
        _ => {
            // A space behind the `=` begins a comment as well as one further on.
            let is_close = text_before(text, value).ends_with('=');
            let (whole, after) = line(value);
            let is_comment = whole.starts_with('#') && !is_close;
            let found = if is_comment {
                ""
            } else {
                without_comment(whole)
            };
            let has_space = found.contains([' ', '\t']);
            (!has_space).then(|| (found.to_owned(), after))?
        }
    };
    Some((name, value, after))
}

/// What stands in `text` before its end `tail`.
fn text_before<'t>(text: &'t str, tail: &str) -> &'t str {
    text.get(..text.len() - tail.len()).unwrap_or_default()
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
}

/// The text up to the closing quote, and what follows that quote.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Some((value, text.get(at + 1..)?)),
            '\\' if quote == '"' && text.get(at + 1..)?.starts_with(['"', '\\']) => {
                value.extend(chars.next().map(|(_, escaped)| escaped));
            }
            c => value.push(c),
        }
    }
    None
}

/// A line without a comment, which begins with a `#` behind a space, and without spaces at its ends.
fn without_comment(line: &str) -> &str {
    let comments = line.match_indices('#').map(|(at, _)| at);
    let mut comments = comments.filter(|at| {
        let before = line.get(..*at).unwrap_or_default();
        before.ends_with([' ', '\t'])
    });
    let end = comments.next().unwrap_or(line.len());
    line.get(..end)
        .unwrap_or_default()
        .trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]

    use super::*;

    fn value(line: &str) -> String {
        let entries = parse(line).unwrap();
        assert_eq!((entries.len(), entries[0].0.as_str()), (1, "PW"), "{line}");
        entries.into_iter().next().unwrap().1
    }

    #[test]
    fn every_sign_of_a_value_is_kept() {
        for word in [
            "abc$def%x",
            "pa$$word",
            "${HOME}",
            "$(id)",
            "`id`",
            "$",
            "%HOME%",
            "a\\$b",
            "a\\nb",
            "a#b",
            "#a",
            "!a&b|c;d<e>f*g?h~",
            "p@ss=w=rd",
            "a:b/c",
            "\u{e4}\u{20ac}\u{1f512}",
            "",
        ] {
            for line in [
                format!("PW={word}"),
                format!("PW='{word}'"),
                format!("PW=\"{word}\""),
                format!("export PW={word}"),
                format!("  export\tPW='{word}'\t# a comment"),
                format!("PW=\"{word}\" # a 'comment'\r\n"),
                format!("\u{feff}PW={word}\r\n"),
                format!("# PW=other\n\n\t# more\nPW={word}  # comment\n"),
            ] {
                assert_eq!(value(&line), word, "{line:?}");
            }
        }
    }

    #[test]
    fn a_line_that_is_written_is_read_again() {
        for word in [
            "",
            "plain",
            "a b # c",
            "it's",
            "it's \"so\"",
            "back\\slash",
            "b\\\\'s",
            "\\'",
            "'\\",
            "\"",
            "$(id) ${HOME} `id`",
            " spaced ",
            "one\ntwo",
            "postgresql://u:p%40'ss@h/d?a=b#c",
        ] {
            let line = dotenv_line("PW", word);
            assert_eq!(value(&line), word, "{line:?}");
            assert_eq!(value(&format!("# more\n{line}")), word, "{line:?}");
        }
    }

    #[test]
    fn quotes_hold_spaces_lines_and_the_other_quote() {
        for (line, expected) in [
            ("PW='two words'", "two words"),
            ("PW=\" # no comment \"", " # no comment "),
            ("PW='say \"no\"'", "say \"no\""),
            ("PW=\"it's\"", "it's"),
            (r#"PW="a\"b\\c\d""#, r#"a"b\c\d"#),
            (r"PW='a\'", r"a\"),
            ("PW='one\ntwo'", "one\ntwo"),
            ("PW=it's\"so\"", "it's\"so\""),
            ("PW = spaced", "spaced"),
            ("PW= # nothing", ""),
            ("PW=", ""),
        ] {
            assert_eq!(value(line), expected, "{line:?}");
        }
    }

    #[test]
    fn what_is_no_entry_is_counted() {
        for (text, entry) in [
            ("PW", 1),
            ("=x", 1),
            ("A B=x", 1),
            ("9A=x", 1),
            ("export=x\nPW", 2),
            ("A=1\n# comment\n\nPW=two words\n", 2),
            ("A=1\nB=2\nPW='open\n", 3),
            ("PW=\"open\\\"", 1),
            ("PW='a'b", 1),
        ] {
            assert_eq!(parse(text).unwrap_err(), entry, "{text:?}");
        }
    }
}
