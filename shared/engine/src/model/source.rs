//! What a source is asked, and what it answers.

use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::json::{Node, NodeId, Tape};
use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

/// Half-open interval of commit time: `from` belongs to it, `to` does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    /// First instant inside.
    pub from: Instant,
    /// First instant after.
    pub to: Instant,
}

impl Window {
    /// All of time.
    pub const EVER: Self = Self {
        from: Instant::EPOCH,
        to: Instant::MAX,
    };

    /// Whether no instant lies inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.from >= self.to
    }

    /// Whether an instant lies inside.
    #[must_use]
    pub fn contains(&self, at: Instant) -> bool {
        self.from <= at && at < self.to
    }
}

/// Which compositions a query is about. An empty list does not restrict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Templates, any of them.
    pub templates: Vec<TemplateId>,
    /// EHRs, any of them.
    pub ehrs: Vec<EhrId>,
    /// Commit times.
    pub window: Window,
}

/// The place of a composition in the order of the source: by commit time, ties by object id.
/// A cursor stands behind the composition that it names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// Commit time, to the microsecond.
    pub committed: Instant,
    /// Versioned object, as lower-case text: the source compares it like this.
    pub object: ObjectId,
    /// The source's own text of the place, where `committed` is too coarse for it: a commit time finer than a microsecond, or
    /// a snapshot where the source is a database. Only the source reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

/// What the source says about one version, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// As the source said it; identity is object id and version number.
    pub uid: VersionUid,
    /// The EHR it belongs to.
    pub ehr: EhrId,
    /// Its template.
    pub template: TemplateId,
    /// When the source committed this version, to the microsecond.
    pub committed: Instant,
    /// [`Cursor::position`] of this version, where the source has one.
    pub position: Option<String>,
    /// `creation`, `modification`, … as the source said it.
    pub change_type: String,
}

impl Meta {
    /// The cursor behind this composition.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor {
            committed: self.committed,
            object: self.uid.object_id().clone(),
            position: self.position.clone(),
        }
    }
}

/// One composition of a page.
#[derive(Debug, Clone)]
pub struct Row {
    /// What identifies and places it.
    pub meta: Meta,
    /// Where its canonical JSON lies in the page's tape.
    pub content: NodeId,
}

/// An answer of the source: its text is kept once, rows point into it.
#[derive(Debug, Default)]
pub struct Page {
    /// The whole answer.
    pub text: String,
    /// Where each value lies in `text`.
    pub tape: Tape,
    /// In the order of the source.
    pub rows: Vec<Row>,
    /// Rows that cannot be read as compositions (a uid of a branch, content that is no object, …), in the order of the source.
    pub misfits: Vec<Misfit>,
}

/// A row of an answer that is no composition as Atlas understands it. It goes into quarantine by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// What could be read of it.
    pub meta: Meta,
    /// What is wrong; no ids, no content.
    pub detail: String,
}

impl Page {
    /// The canonical JSON of a row of this page.
    #[must_use]
    pub fn content(&self, row: &Row) -> Node<'_> {
        self.tape.node(&self.text, row.content)
    }
}

/// One line of a census.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CensusLine {
    /// The template.
    pub template: TemplateId,
    /// How many compositions of it were committed since the census' start.
    pub count: u64,
    /// The earliest commit time among them.
    pub first: Instant,
    /// The latest.
    pub last: Instant,
}

/// What was committed since some instant, by template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// The source's own clock when it answered.
    pub server_time: Instant,
    /// Only templates with at least one composition.
    pub lines: Vec<CensusLine>,
}

/// What a source was asked so far, by this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// HTTP requests, repeated ones included.
    pub requests: u64,
    /// Bytes of answers, after decompression.
    pub bytes: u64,
    /// Answers that asked for a pause (429, 503).
    pub busy: u64,
}
