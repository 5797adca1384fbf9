//! Rows, ledger and templates together.

use async_trait::async_trait;
use atlas_openehr::id::TemplateId;

use super::{Index, Ledger, Rows};
use crate::error::Result;
use crate::model::{Commit, Committed, StoredTemplate};

/// Web templates, kept with every format.
#[async_trait]
pub trait Templates: Send + Sync {
    /// A web template.
    async fn template(&self, template: &TemplateId) -> Result<Option<StoredTemplate>>;

    /// Inserts or replaces a web template.
    async fn save_template(&self, template: &StoredTemplate) -> Result<()>;
}

/// Where the copy and its control records live: rows with their index, a ledger and templates, and one commit over them.
#[async_trait]
pub trait Store: Send + Sync {
    /// `sqlite`, `postgres`, …
    fn kind(&self) -> &'static str {
        self.rows().kind()
    }

    /// The copy.
    fn rows(&self) -> &dyn Rows;

    /// What the copy holds of single objects.
    fn index(&self) -> &dyn Index;

    /// The control records.
    fn ledger(&self) -> &dyn Ledger;

    /// The web templates.
    fn templates(&self) -> &dyn Templates;

    /// Creates what is needed or brings it up to date. Safe to run by several processes at once.
    ///
    /// # Errors
    /// `StoreNewer` if what is there is newer than this program; nothing is changed then.
    async fn prepare(&self) -> Result<()>;

    /// Makes a page durable together with its slice's cursor, or nothing of it (see [`Committed::Lost`]).
    ///
    /// - Rows land as [`Rows::land`] says. Rows that the store refuses go into quarantine, too.
    /// - A row that landed, or was already there, ends a quarantine of the same or an older version of its object.
    /// - What is rejected goes into [quarantine](Ledger::quarantine), unless the copy holds a newer version of it: then it
    ///   counts as unchanged.
    /// - The slice's counts grow by what happened; its `step` and its `page` by one. Owner and lease are cleared if `lease_until`
    ///   is `None`.
    /// - The same commit again (same fence, `step` one further, its page, cursor and state: a lost answer) answers the slice as
    ///   it stands.
    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed>;
}
