//! An EHRbase with as many compositions as a benchmark needs. Filling one takes
//! minutes, so its database is kept in the cache folder and each start works on a copy.

use std::path::Path;
use std::process::Command;

use atlas_machine::cache_folder;
use sha2::{Digest, Sha256};

use crate::corpus::{self, further};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::launcher::{hex, key};
use crate::postgres::{Postgres, Programs};
use crate::process::temporary_folder;
use crate::server::EhrBase;

/// A server and the cluster under it, both ours and thrown away afterwards.
pub struct Filled {
    /// The server; ended before its database.
    pub ehrbase: EhrBase,
    /// Its database, and room for others.
    pub postgres: Postgres,
}

/// What an EHRbase is filled with.
#[derive(Debug, Clone, Copy)]
pub enum Filling {
    /// The corpus over and over, until there are so many compositions.
    Corpus(usize),
    /// The corpus' templates under further ids, most of them with few compositions.
    Templates {
        /// Templates that the compositions are spread over.
        templates: usize,
        /// Compositions of all of them.
        compositions: usize,
    },
}

impl Filling {
    /// What tells one filling from another.
    fn name(self) -> String {
        match self {
            Self::Corpus(compositions) => format!("{compositions} false"),
            Self::Templates {
                templates,
                compositions,
            } => format!("{compositions} of {templates} templates"),
        }
    }

    async fn load(self, ehrbase: &EhrBase, corpus: &Path, progress: impl Fn(usize)) -> Result<()> {
        match self {
            Self::Corpus(compositions) => {
                corpus::load_many(ehrbase, corpus, compositions, progress).await
            }
            Self::Templates {
                templates,
                compositions,
            } => further::load(ehrbase, corpus, templates, compositions, progress).await,
        }
    }
}

/// Starts an EHRbase that holds `filling`. `progress` is told how many compositions are there, if they have to be loaded first.
pub async fn filled(corpus: &Path, filling: Filling, progress: impl Fn(usize)) -> Result<Filled> {
    let programs = Programs::find()?;
    let mut hash = Sha256::new();
    hash.update(key());
    hash.update(programs.version()?);
    hash.update(corpus::digest(corpus)?);
    hash.update(filling.name());
    let kept = cache_folder()?.join(format!("cluster-{}", hex(&hash.finalize()[..8])));
    if !kept.is_dir() {
        fill(corpus, filling, progress, &kept).await?;
    }
    let folder = temporary_folder()?;
    programs.own(folder.path())?;
    copy(&kept, &folder.path().join("data"))?;
    let postgres = Postgres::start_in(programs, folder, None).await?;
    let ehrbase = EhrBase::start(&postgres).await?;
    Ok(Filled { ehrbase, postgres })
}

async fn fill(
    corpus: &Path,
    filling: Filling,
    progress: impl Fn(usize),
    kept: &Path,
) -> Result<()> {
    let postgres = Postgres::start().await?;
    let ehrbase = EhrBase::start(&postgres).await?;
    filling.load(&ehrbase, corpus, progress).await?;
    // Plans must not depend on when the server happens to look at its tables.
    postgres.execute("ehrbase", "VACUUM ANALYZE").await?;
    ehrbase.stop();
    let Some(folder) = postgres.stop_cleanly()? else {
        return Err(Error::new(
            ErrorKind::System,
            "keep a filled PostgreSQL cluster",
        ));
    };
    // Complete, or not there: a copy that was cut short has another name.
    let unfinished = kept.with_extension(std::process::id().to_string());
    copy(&folder.path().join("data"), &unfinished)?;
    std::fs::rename(&unfinished, kept).context(ErrorKind::System, "keep a filled cluster")
}

/// Copies a folder with its owners and modes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let action = || format!("copy {} to {}", from.display(), to.display());
    let status = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .context(ErrorKind::System, action())?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::System, action()).because(format!("cp ended with {status}")))
}
