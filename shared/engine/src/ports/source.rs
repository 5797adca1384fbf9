//! An openEHR server, read-only.

use async_trait::async_trait;
use atlas_openehr::id::{ObjectId, TemplateId};

use crate::error::Result;
use crate::model::{Census, Cursor, Meta, Page, Scope, Usage};

/// The compositions of a server: the latest version of each that is not deleted.
///
/// Order is by commit time, ties by object id (as lower-case text). Every method may be called
/// again after an error. Transient failures are retried inside; what comes out as an error has been tried enough.
#[async_trait]
pub trait Compositions: Send + Sync {
    /// Counts by template what was committed at or after `scope.window.from`, in the scope's templates and EHRs.
    /// `scope.window.to` is not looked at: the answer's own clock decides where a run ends.
    async fn census(&self, scope: &Scope) -> Result<Census>;

    /// How many compositions lie in the scope.
    async fn count(&self, scope: &Scope) -> Result<u64>;

    /// The first compositions of the scope behind `after`, at most `limit`, in order. A short answer proves nothing: servers
    /// cap them. Only an answer without rows, or a count, says that the end is reached.
    ///
    /// # Errors
    /// `SourceUnreadable` if the server fails on this very page, `SourceTooLarge` if the answer exceeds the limit:
    /// the caller asks for less.
    async fn page(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Page>;

    /// Like [`page`](Self::page), without content. Works for compositions that the server cannot read back.
    async fn list(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Vec<Meta>>;

    /// The latest versions of these objects that lie in the scope, in any order. An object that is not there any more is left out.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    async fn fetch(&self, scope: &Scope, objects: &[ObjectId]) -> Result<Page>;
}

/// What a server knows of its templates.
#[async_trait]
pub trait Definitions: Send + Sync {
    /// All templates of the server, with and without compositions.
    async fn templates(&self) -> Result<Vec<TemplateId>>;

    /// The web template, as the server serves it (JSON).
    async fn web_template(&self, template: &TemplateId) -> Result<String>;
}

/// A server's own FLAT, to compare ours with, and to fall back on.
#[async_trait]
pub trait FlatOracle: Send + Sync {
    /// The server's own FLAT of the latest version of a composition (JSON).
    async fn flat(&self, meta: &Meta) -> Result<String>;
}

/// An openEHR server, read-only.
///
/// It bounds how many requests are under way at once, whoever asks: the server has clinicians to serve.
pub trait Source: Compositions + Definitions + FlatOracle {
    /// What was asked so far, by this process.
    fn usage(&self) -> Usage;
}
