//! What happens to a composition between the page and its conversion: stages that drop it, or edit it, and the key of its row.
//!
//! ```text
//!  page ─► stage ─► stage ─► … ─► conversion (FLAT, canonical, side rows) ─► row under its key
//!            │ Drop(reason): counted as filtered
//!            └ Edits: nodes dropped or replaced, for every conversion alike
//! ```
//! Consent, limits on items and de-identification are stages, so that neither the engine nor a conversion has a branch for them.
//! Ledger and quarantine keep the ids of the source; every method of rows takes the keys that are made here.

use std::sync::Arc;

use atlas_openehr::id::VersionUid;
use atlas_openehr::json::{Edits, Node};

use crate::model::{Meta, RowKey};

/// What a stage says of a composition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, with the edits.
    Keep,
    /// It is not meant for the copy, for this reason: a word or two for the report, nothing of its content.
    Drop(&'static str),
}

/// Looks at each composition before it is converted. Pure: the same composition gets the same verdict and the same edits.
pub trait Stage: Send + Sync {
    /// Says whether a composition is meant for the copy, and what of it is dropped or replaced. Edits of earlier stages are in
    /// `edits`; of two about the same node the later one counts.
    fn apply(&self, meta: &Meta, composition: Node<'_>, edits: &mut Edits) -> Verdict;

    /// Whether it ever edits. While one does, the source's own FLAT cannot be used.
    fn edits(&self) -> bool;
}

/// Names the rows of the copy.
pub trait Keys: Send + Sync {
    /// The key of a composition's row. Versions of one object have the same `object`, of different objects never.
    fn key(&self, meta: &Meta) -> RowKey;

    /// The version uid that the row shows.
    fn uid(&self, meta: &Meta) -> VersionUid;
}

/// Rows under the ids of the source.
#[derive(Debug, Clone, Copy)]
pub struct SourceKeys;

impl Keys for SourceKeys {
    fn key(&self, meta: &Meta) -> RowKey {
        meta.key()
    }

    fn uid(&self, meta: &Meta) -> VersionUid {
        meta.uid.clone()
    }
}

/// The stages of a copy, and its keys. Cheap to clone.
#[derive(Clone)]
pub struct Transform {
    /// In the order in which they look at a composition.
    pub stages: Vec<Arc<dyn Stage>>,
    /// Names the rows.
    pub keys: Arc<dyn Keys>,
}

impl Default for Transform {
    /// Everything as it is.
    fn default() -> Self {
        Self {
            stages: Vec::new(),
            keys: Arc::new(SourceKeys),
        }
    }
}

impl Transform {
    /// What all stages say of a composition, and what they edit of it.
    pub(crate) fn apply(&self, meta: &Meta, composition: Node<'_>) -> (Verdict, Edits) {
        let mut edits = Edits::new();
        for stage in &self.stages {
            if let dropped @ Verdict::Drop(_) = stage.apply(meta, composition, &mut edits) {
                return (dropped, edits);
            }
        }
        (Verdict::Keep, edits)
    }

    /// Whether a stage edits contents.
    #[must_use]
    pub fn edits(&self) -> bool {
        self.stages.iter().any(|stage| stage.edits())
    }
}
