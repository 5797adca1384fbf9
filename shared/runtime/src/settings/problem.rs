//! What is wrong with a configuration: every problem at once, each with its key, rule, place and fix.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read the configuration `{}`", path.display())]
    Unreadable {
        /// The file that was tried.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
    /// The file, a variable or a flag says something that cannot be used.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Everything that is wrong with one configuration.
#[derive(Debug, thiserror::Error)]
pub struct Invalid {
    /// The configuration file.
    pub path: PathBuf,
    /// The text of the file to show beside the problems. Secrets, EHR ids and values of unknown keys
    /// are starred out; `None` when the text is not even TOML, so that nobody knows where they are.
    pub excerpt: Option<String>,
    /// At least one problem, in the order of the file.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key, such as `openehr.retry.max_retries`; empty when the file is not TOML.
    pub key: String,
    /// What the key asks for.
    pub rule: String,
    /// What to do about it, where the rule does not say so already.
    pub fix: Option<String>,
    /// Who said it.
    pub place: Place,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The configuration file.
    File {
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// Bytes of the file's text.
        span: Range<usize>,
    },
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(String),
    /// Nobody said anything, but somebody has to.
    Nowhere,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(
            f,
            "the configuration `{}` has {count} {noun}",
            self.path.display()
        )?;
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { line, column, .. } => write!(f, "line {line}, column {column}: ")?,
            Place::Variable(name) => write!(f, "environment variable {name}: ")?,
            Place::Flag(name) => write!(f, "{name}: ")?,
            Place::Nowhere => {}
        }
        if !self.key.is_empty() {
            write!(f, "`{}` ", self.key)?;
        }
        f.write_str(&self.rule)?;
        match &self.fix {
            Some(fix) => write!(f, "; {fix}"),
            None => Ok(()),
        }
    }
}

/// The candidate that `word` was most likely meant to be, if one is close enough to say so.
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    near_matches(word, candidates).into_iter().next()
}

/// At most three candidates close enough to `word` to suggest, best first. Case does not count.
pub fn near_matches<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Vec<&'c str> {
    let word = word.to_lowercase();
    let similarity = |candidate: &'c str| {
        (
            strsim::normalized_damerau_levenshtein(&word, &candidate.to_lowercase()),
            candidate,
        )
    };
    let mut close: Vec<_> = candidates
        .into_iter()
        .map(similarity)
        .filter(|(score, _)| *score >= 0.55)
        .collect();
    close.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    close
        .into_iter()
        .take(3)
        .map(|(_, candidate)| candidate)
        .collect()
}
