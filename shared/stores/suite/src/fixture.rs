//! Metas, slices and pages to write.

use std::time::Duration;

use std::sync::Arc;

use atlas_engine::model::{
    Batch, Commit, Committed, Counts, Cursor, Format, Meta, NewRow, Reason, Rejected, SelectionKey,
    Slice, SliceKind, SliceState, Window,
};
use atlas_engine::ports::Store;
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::json::{self, Tape};
use atlas_openehr::time::Instant;

/// The run of everything that is written here.
pub const RUN: &str = "0193571a-0000-7000-8000-000000000001";

/// So many seconds and 116,601 microseconds after the beginning of our time.
#[must_use]
pub fn at(seconds: u64) -> Instant {
    let begin = Instant::parse("2026-11-23T03:50:12.116601Z").unwrap();
    begin.checked_add(Duration::from_secs(seconds)).unwrap()
}

/// The selection of [`slice`].
#[must_use]
pub fn selection() -> SelectionKey {
    SelectionKey("00c0ffee00c0ffee".to_owned())
}

/// The template of [`slice`] and [`meta`].
#[must_use]
pub fn template() -> TemplateId {
    TemplateId::new("Vital signs.v1")
}

/// The object of that number.
#[must_use]
pub fn object(number: u32) -> ObjectId {
    ObjectId::new(&format!("8849182c-82ad-4088-a07f-{number:012x}"))
}

/// A version of the object of that number.
#[must_use]
pub fn meta(number: u32, version: u32) -> Meta {
    Meta {
        uid: VersionUid::parse(&format!(
            "{}::cdr.example.org::{version}",
            object(number).as_str()
        ))
        .unwrap(),
        ehr: EhrId::new(&format!("7d44b88c-4199-4bad-97dc-{:012x}", number % 3)),
        template: template(),
        committed: at(u64::from(number) * 10 + u64::from(version)),
        position: None,
        change_type: if version == 1 {
            "creation"
        } else {
            "modification"
        }
        .to_owned(),
    }
}

/// An open slice that a worker has taken.
#[must_use]
pub fn slice(id: &str) -> Slice {
    Slice {
        id: id.to_owned(),
        run: RUN.to_owned(),
        selection: selection(),
        template: template(),
        kind: SliceKind::Read,
        window: Window {
            from: at(0),
            to: at(1_000_000),
        },
        planned: at(1_000_060),
        expected: 500,
        state: SliceState::Open,
        step: 3,
        fence: 2,
        owner: Some("worker 1".to_owned()),
        lease_until: Some(at(90)),
        part: 4,
        sent_part: 3,
        enqueued: Some(at(30)),
        cursor: None,
        counts: Counts::default(),
        failure: None,
    }
}

/// A prepared store with one slice in it.
pub async fn begin(store: &dyn Store) -> Slice {
    store.prepare().await.unwrap();
    let slice = slice("slice 1");
    store
        .add_slices(std::slice::from_ref(&slice))
        .await
        .unwrap();
    slice
}

/// A page to commit.
#[derive(Debug)]
pub struct Draft {
    /// The rows.
    pub batch: Arc<Batch>,
    /// The rejected rows.
    pub rejected: Vec<Rejected>,
    /// Rows that were read and are not meant for the store.
    pub filtered: u64,
    /// The format of the rows.
    pub format: Format,
    /// The slice's cursor afterwards; `None` = behind the last row or rejected row.
    pub cursor: Option<Cursor>,
    /// The slice's state afterwards.
    pub state: SliceState,
    /// The slice's lease afterwards.
    pub lease_until: Option<Instant>,
    /// When this happens.
    pub now: Instant,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            batch: Arc::default(),
            rejected: Vec::new(),
            filtered: 0,
            format: Format::Canonical,
            cursor: None,
            state: SliceState::Open,
            lease_until: Some(at(180)),
            now: at(100),
        }
    }
}

impl Draft {
    /// A page without rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more row. `content` is JSON.
    #[must_use]
    pub fn row(mut self, meta: Meta, content: &str) -> Self {
        let tape = Tape::parse(content).unwrap();
        let batch = Arc::make_mut(&mut self.batch);
        let start = batch.text.len();
        batch.text.push_str(content);
        batch.rows.push(NewRow {
            meta,
            content: start..batch.text.len(),
            checksum: json::checksum(tape.root(content)),
        });
        self
    }

    /// With one more rejected row.
    #[must_use]
    pub fn reject(mut self, meta: Meta) -> Self {
        self.rejected.push(Rejected {
            meta,
            reason: Reason::Unreadable,
            detail: "the server answered 500".to_owned(),
        });
        self
    }

    /// Written at that time.
    #[must_use]
    pub fn at(mut self, now: Instant) -> Self {
        self.now = now;
        self
    }

    /// The page's last place in the order of the source.
    fn end(&self) -> Option<Cursor> {
        let rows = self.batch.rows.iter().map(|row| &row.meta);
        let rejected = self.rejected.iter().map(|rejected| &rejected.meta);
        let end = rows.chain(rejected).map(Meta::cursor).max();
        self.cursor.clone().or(end)
    }

    /// Commits the page for a slice as the worker knows it.
    pub async fn try_commit(
        &self,
        store: &dyn Store,
        slice: &Slice,
    ) -> atlas_engine::Result<Committed> {
        let commit = Commit {
            slice,
            batch: &self.batch,
            rejected: &self.rejected,
            filtered: self.filtered,
            cursor: self.end().or_else(|| slice.cursor.clone()),
            state: self.state,
            lease_until: self.lease_until,
            run: RUN,
            format: self.format,
            now: self.now,
        };
        store.commit(&commit).await
    }

    /// Commits a page that must be accepted. Answers the slice.
    pub async fn commit(&self, store: &dyn Store, slice: &Slice) -> Slice {
        match self.try_commit(store, slice).await.unwrap() {
            Committed::Done(slice) => slice,
            Committed::Lost => panic!("the commit was refused"),
        }
    }
}
