//! What the machine that tests run on has. `cargo xtask` looks here for what it must install, the servers for what they
//! start. Only the standard library is used, so that this is built in a second.
//!
//! - [`checkout`]: the root of this workspace; [`corpus`]: the conformance corpus beside it.
//! - [`cache_folder`]: where things lie that are made once.
//! - [`Jdk`]: the newest Java that can build and run EHRbase.
//! - [`postgres_programs`]: the folder of PostgreSQL's programs.

mod java;
mod postgres;

use std::path::{Path, PathBuf};

pub use java::Jdk;
pub use postgres::postgres_programs;

/// Something that this machine does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What was tried, such as `find Java 21`.
    pub action: String,
    /// What the person at the machine can do.
    pub fix: &'static str,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failed to {}; {}", self.action, self.fix)
    }
}

impl std::error::Error for Missing {}

/// The root of the workspace that a program runs in: of the package that cargo runs, or of the current folder.
///
/// Found when it runs, never when it is compiled: clones that share a build folder run what another one has built.
///
/// # Errors
/// It does not run in a checkout.
pub fn checkout() -> Result<PathBuf, Missing> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = package.or_else(|| std::env::current_dir().ok());
    here.as_deref()
        .into_iter()
        .flat_map(Path::ancestors)
        .find(|folder| folder.join("Cargo.lock").is_file())
        .map(Path::to_owned)
        .ok_or_else(|| Missing {
            action: "find the checkout of Atlas".to_owned(),
            fix: "run this by cargo, or in a folder of the checkout",
        })
}

/// The folder of the conformance corpus: `$ATLAS_CORPUS`, else `shared/corpus` beside the checkout. It may not be there.
///
/// # Errors
/// The variable is not set, and it does not run in a checkout.
pub fn corpus() -> Result<PathBuf, Missing> {
    match std::env::var_os("ATLAS_CORPUS") {
        Some(named) => Ok(PathBuf::from(named)),
        None => Ok(checkout()?.join("../shared/corpus")),
    }
}

/// Where things lie that are made once: `$ATLAS_CACHE`, else `atlas` in `$XDG_CACHE_HOME` or `~/.cache`. The folder
/// itself may not exist yet.
///
/// # Errors
/// None of the three variables is set.
pub fn cache_folder() -> Result<PathBuf, Missing> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    variable("ATLAS_CACHE")
        .map(PathBuf::from)
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("atlas")))
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache/atlas")))
        .ok_or_else(|| Missing {
            action: "find a cache folder".to_owned(),
            fix: "set ATLAS_CACHE to one",
        })
}
