//! All that a source lists of a scope, part by part.

use crate::error::Result;
use crate::model::{Cursor, Meta, Scope};
use crate::ports::Source;

/// A listing that goes on until an answer has no rows, however short the one before was: servers cap answers without a word.
pub(crate) struct Listing<'a> {
    source: &'a dyn Source,
    scope: &'a Scope,
    limit: usize,
    after: Option<Cursor>,
}

impl<'a> Listing<'a> {
    /// From the beginning of the scope, at most `limit` rows in an answer.
    pub(crate) fn new(source: &'a dyn Source, scope: &'a Scope, limit: usize) -> Self {
        Self {
            source,
            scope,
            limit,
            after: None,
        }
    }

    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// What the source could not do.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Meta>>> {
        let after = self.after.as_ref();
        let metas = self.source.list(self.scope, after, self.limit).await?;
        let Some(last) = metas.last() else {
            return Ok(None);
        };
        self.after = Some(last.cursor());
        Ok(Some(metas))
    }
}
