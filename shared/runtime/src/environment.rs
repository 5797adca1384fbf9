//! Environment variables as a value, so that whoever reads settings says where they come from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use crate::settings::Reference;

/// The variables that `${NAME}`, `env:NAME` and `ATLAS_<SECTION>_<KEY>` look at, and the secrets that vaults gave out.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    secrets: BTreeMap<Reference, SecretString>,
}

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
    /// A line is not `NAME=value`.
    #[error(
        "failed to read entry {entry} of `{}`; write `NAME=value`, and quote values that hold spaces, `#` or `$`",
        path.display()
    )]
    Malformed {
        /// The `.env` file.
        path: PathBuf,
        /// Which entry, counted from 1 without comments and empty lines.
        entry: usize,
    },
}

impl Environment {
    /// The variables of this process; those whose name or value is not Unicode are left out.
    pub fn of_process() -> Self {
        let unicode = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        std::env::vars_os().filter_map(unicode).collect()
    }

    /// Adds the variables of the `.env` file in `folder`, if there is one. What is already set wins.
    pub fn with_dotenv(mut self, folder: &Path) -> Result<Self, DotEnvError> {
        let path = folder.join(".env");
        let entries = match dotenvy::from_path_iter(&path) {
            Ok(entries) => entries,
            Err(error) if error.not_found() => return Ok(self),
            Err(error) => return Err(dotenv_error(path, 1, error)),
        };
        for (index, entry) in entries.enumerate() {
            let (name, value) = entry.map_err(|e| dotenv_error(path.clone(), index + 1, e))?;
            self.variables.entry(name).or_insert(value);
        }
        Ok(self)
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// Adds what vaults answered.
    pub(crate) fn with_secrets(mut self, secrets: BTreeMap<Reference, SecretString>) -> Self {
        self.secrets.extend(secrets);
        self
    }

    pub(crate) fn secret(&self, reference: &Reference) -> Option<&SecretString> {
        self.secrets.get(reference)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().map(String::as_str)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let variables = variables.into_iter().map(|(n, v)| (n.into(), v.into()));
        Self {
            variables: variables.collect(),
            secrets: BTreeMap::new(),
        }
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Environment({} variables)", self.variables.len())
    }
}

fn dotenv_error(path: PathBuf, entry: usize, error: dotenvy::Error) -> DotEnvError {
    match error {
        dotenvy::Error::Io(source) => DotEnvError::Unreadable { path, source },
        _ => DotEnvError::Malformed { path, entry },
    }
}
