//! What a copy selects, and what a run is asked to do.

use atlas_openehr::id::{EhrId, TemplateId};
use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::named;

/// The format of `content` in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// FLAT JSON, as the source itself would answer.
    Preserve,
    /// FLAT JSON under names that SQL likes.
    Flatten,
    /// Canonical JSON, value for value.
    Canonical,
}

/// What a copy selects: each selection has watermarks of its own, so that a wider selection is
/// filled up from the beginning and a narrower one does not claim more than it read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// EHRs; empty = all.
    pub ehrs: Vec<EhrId>,
    /// Commit times from here on; `None` = from the beginning.
    pub from: Option<Instant>,
    /// Commit times before this; `None` = up to the cut of each run.
    pub to: Option<Instant>,
    /// Format of the copy: another format is another copy.
    pub format: Format,
}

/// Names the watermarks of one [`Selection`]: its format and 16 hexadecimal digits of its SHA-256, such as
/// `preserve-0123456789abcdef`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SelectionKey(pub String);

impl SelectionKey {
    /// What the keys of all selections in a format begin with.
    #[must_use]
    pub fn prefix(format: Format) -> String {
        format!("{}-", format.name())
    }
}

/// Incremental runs go on at the watermarks; full runs read everything again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// From the watermark, or from the beginning where there is none.
    Incremental,
    /// From the beginning.
    Full,
}

/// What a run is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Incremental or full.
    pub mode: Mode,
    /// Templates; empty = all that the source has compositions of.
    pub templates: Vec<TemplateId>,
    /// What belongs to the copy.
    pub selection: Selection,
}

impl Request {
    /// As a store keeps it.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Reads what [`to_json`](Self::to_json) wrote; `None` for anything else.
    #[must_use]
    pub fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl Selection {
    /// Names the watermarks of this selection. The order of EHRs does not matter.
    #[must_use]
    pub fn key(&self) -> SelectionKey {
        let mut ehrs: Vec<&str> = self.ehrs.iter().map(|ehr| ehr.as_str()).collect();
        ehrs.sort_unstable();
        ehrs.dedup();
        let bounds = [self.from, self.to].map(|at| at.map(|at| at.to_string()).unwrap_or_default());
        let parts = ehrs.into_iter().chain(bounds.iter().map(String::as_str));
        SelectionKey(SelectionKey::prefix(self.format) + &short_digest(parts))
    }

    /// Where it begins.
    #[must_use]
    pub fn origin(&self) -> Instant {
        self.from.unwrap_or(Instant::EPOCH)
    }
}

/// The first 8 bytes of SHA-256 over some texts, hexadecimal: a short name for all of them in their order.
pub(crate) fn short_digest<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update(text.as_bytes());
        digest.update([0]);
    }
    let digest = digest.finalize();
    let bytes = digest.iter().take(8);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

named!(Format { Preserve => "preserve", Flatten => "flatten", Canonical => "canonical" });
named!(Mode { Incremental => "incremental", Full => "full" });
