//! Environment variables as a value, so that whoever reads settings says where they come from.

mod dotenv;

use std::collections::BTreeMap;
use std::path::Path;

use secrecy::SecretString;

pub use dotenv::{DotEnvError, dotenv_line};

use crate::settings::Reference;

/// The variables that `${NAME}`, `env:NAME` and `ATLAS_<SECTION>_<KEY>` look at, and the secrets that vaults gave out.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    secrets: BTreeMap<Reference, SecretString>,
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
    ///
    /// # Errors
    /// Why a file that is there cannot be used: others may write it, or a line of it is no entry.
    pub fn with_dotenv(mut self, folder: &Path) -> Result<Self, DotEnvError> {
        // Of a name that comes twice the last value counts, as in a shell.
        let file: BTreeMap<String, String> = dotenv::read(folder)?.into_iter().collect();
        for (name, value) in file {
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
