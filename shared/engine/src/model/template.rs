//! Web templates as the store keeps them, and what the copy holds of each template.

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;

use super::Counts;

/// A web template as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTemplate {
    /// The template.
    pub template: TemplateId,
    /// SHA-256 of `web_template`, hexadecimal.
    pub digest: String,
    /// As the source served it.
    pub web_template: String,
    /// FLAT path to SQL name, as JSON, where the format renames; empty otherwise.
    pub names: String,
    /// When it was fetched.
    pub fetched: Instant,
}

/// What became of the compositions of a template, over all runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateCounts {
    /// The template.
    pub template: TemplateId,
    /// Sums over its slices, those that are removed included.
    pub counts: Counts,
}

impl TemplateCounts {
    /// Compositions in the copy, tombstones left out.
    #[must_use]
    pub fn compositions(&self) -> u64 {
        self.counts.inserted.saturating_sub(self.counts.deleted)
    }
}
