//! How far a template is complete.

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;

/// How far a template is complete, for one selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// The template.
    pub template: TemplateId,
    /// Every composition committed before this instant was seen, unless it became visible late: the watermark,
    /// "checked until".
    pub until: Instant,
    /// Every composition committed before this instant was looked for when it was at least the overlap old. Between
    /// here and `until`, the next run compares uids. Never after `until`.
    pub late_checked_until: Instant,
    /// [`Cursor::position`](super::Cursor::position) of `until`, where the source has one.
    pub position: Option<String>,
}

/// The name of the watermark up to which censuses over all templates have looked. Without it a run over all templates
/// looks from the beginning: the watermarks of a listed run say nothing about templates that were not on the list.
pub const ALL_TEMPLATES: &str = "*";
