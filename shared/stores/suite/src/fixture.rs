//! Metas, slices and pages to write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atlas_engine::model::{
    Batch, Body, Commit, Committed, Counts, Cursor, DeleteReason, Deleted, Format, LandAnswer,
    Member, Meta, NewRow, QuarantineFilter, Quarantined, Reason, Rejected, Scan, SelectionKey,
    Slice, SliceKind, SliceState, StoredRow, Window,
};
use atlas_engine::ports::Store;
use atlas_engine::transform::{Keys, SourceKeys};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::json::{self, Tape};
use atlas_openehr::time::Instant;

use crate::Probe;

/// The run of everything that is written here.
pub const RUN: &str = "0193571a-0000-7000-8000-000000000001";

/// So many seconds and 116,601 microseconds after the beginning of our time.
#[must_use]
pub fn at(seconds: u64) -> Instant {
    let begin = Instant::parse("2026-11-23T03:50:12.116601Z").unwrap();
    begin.checked_add(Duration::from_secs(seconds)).unwrap()
}

/// The selection of [`slice()`].
#[must_use]
pub fn selection() -> SelectionKey {
    SelectionKey("00c0ffee00c0ffee".to_owned())
}

/// The template of [`slice()`] and [`meta`].
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
        members: Vec::new(),
        kind: SliceKind::Read,
        window: Window {
            from: at(0),
            to: at(1_000_000),
        },
        planned: at(1_000_060),
        expected: 500,
        state: SliceState::Open,
        step: 3,
        page: 0,
        fence: 2,
        owner: Some("worker 1".to_owned()),
        lease_until: Some(at(90)),
        part: 4,
        sent_part: 3,
        enqueued: Some(at(30)),
        moved: Some(at(60)),
        next_page: Some(40),
        cursor: None,
        counts: Counts::default(),
        failure: None,
    }
}

/// Another template, which can share a slice with [`template`].
#[must_use]
pub fn other_template() -> TemplateId {
    TemplateId::new("Laboratory.v2")
}

/// A slice that two templates share; its counts are the other one's so far.
#[must_use]
pub fn shared(slice: Slice) -> Slice {
    let member = |template, expected, counts| Member {
        template,
        expected,
        taken_out: false,
        counts,
    };
    Slice {
        template: other_template(),
        members: vec![
            member(other_template(), slice.expected - 20, slice.counts),
            member(template(), 20, Counts::default()),
        ],
        ..slice
    }
}

/// Compositions of [`template`] that are not meant for the store.
#[must_use]
pub fn filtered(count: u64) -> BTreeMap<TemplateId, u64> {
    BTreeMap::from([(template(), count)])
}

/// A prepared store with one slice in it.
pub async fn begin(store: &dyn Store) -> Slice {
    begin_with(store, slice("slice 1")).await
}

/// A prepared store with this slice in it.
pub async fn begin_with(store: &dyn Store, slice: Slice) -> Slice {
    store.prepare().await.unwrap();
    store
        .ledger()
        .add_slices(std::slice::from_ref(&slice))
        .await
        .unwrap();
    slice
}

/// An empty page whose rows have the keys of a probe.
#[must_use]
pub fn page(probe: &dyn Probe) -> Draft {
    Draft::new(probe.keys())
}

/// A meta as the copy shows it.
#[must_use]
pub fn shown(probe: &dyn Probe, meta: &Meta) -> Meta {
    let (keys, meta) = (probe.keys(), meta.clone());
    let key = keys.key(&meta);
    Meta {
        uid: keys.uid(&meta),
        ehr: key.ehr,
        template: key.template,
        ..meta
    }
}

/// Every row of the copy, tombstones included, by object.
pub async fn rows(probe: &dyn Probe) -> Vec<StoredRow> {
    let everything = Scan {
        limit: usize::MAX >> 1,
        ..Scan::default()
    };
    probe.store().rows().scan(&everything).await.unwrap()
}

/// The row of that object of the source.
pub async fn row_of(probe: &dyn Probe, number: u32) -> StoredRow {
    let wanted = shown(probe, &meta(number, 1));
    let mut rows = rows(probe).await;
    rows.retain(|row| row.meta.uid.object_id() == wanted.uid.object_id());
    assert_eq!(rows.len(), 1, "the copy has one row of an object");
    rows.remove(0)
}

/// The whole quarantine.
pub async fn quarantined(store: &dyn Store) -> Vec<Quarantined> {
    let all = QuarantineFilter::default();
    store.ledger().quarantined(&all, 10_000).await.unwrap()
}

/// So many compositions that were read and written, and were not there before.
#[must_use]
pub fn inserted(count: u64) -> Counts {
    Counts {
        inserted: count,
        ..replaced(count)
    }
}

/// So many compositions that were read and written in the place of others.
#[must_use]
pub fn replaced(count: u64) -> Counts {
    Counts {
        read: count,
        written: count,
        ..Counts::default()
    }
}

/// So many compositions that were read and changed nothing.
#[must_use]
pub fn unchanged(count: u64) -> Counts {
    Counts {
        read: count,
        unchanged: count,
        ..Counts::default()
    }
}

/// So many compositions that became tombstones.
#[must_use]
pub fn deleted(count: u64) -> Counts {
    Counts {
        read: count,
        deleted: count,
        ..Counts::default()
    }
}

/// A page to commit.
#[derive(Clone)]
pub struct Draft {
    /// The keys of its rows.
    pub keys: Arc<dyn Keys>,
    /// The rows.
    pub batch: Arc<Batch>,
    /// The rejected rows.
    pub rejected: Vec<Rejected>,
    /// Rows that were read and are not meant for the store, by template.
    pub filtered: BTreeMap<TemplateId, u64>,
    /// The format of the rows.
    pub format: Format,
    /// The slice's cursor afterwards; `None` = behind the last row or rejected row.
    pub cursor: Option<Cursor>,
    /// The slice's state afterwards.
    pub state: SliceState,
    /// The slice's lease afterwards.
    pub lease_until: Option<Instant>,
    /// When its rows were asked for.
    pub asked: Instant,
    /// The run in which this happens.
    pub run: String,
    /// When this happens.
    pub now: Instant,
}

impl Draft {
    /// A page without rows.
    #[must_use]
    pub fn new(keys: Arc<dyn Keys>) -> Self {
        Self {
            keys,
            batch: Arc::default(),
            rejected: Vec::new(),
            filtered: BTreeMap::new(),
            format: Format::Canonical,
            cursor: None,
            state: SliceState::Open,
            lease_until: Some(at(180)),
            asked: at(50),
            run: RUN.to_owned(),
            now: at(100),
        }
    }

    /// A page without rows in a copy that shows ids as they are.
    #[must_use]
    pub fn plain() -> Self {
        Self::new(Arc::new(SourceKeys))
    }

    /// With one more row. `content` is JSON.
    #[must_use]
    pub fn row(mut self, meta: Meta, content: &str) -> Self {
        let tape = Tape::parse(content).unwrap();
        let batch = Arc::make_mut(&mut self.batch);
        let start = batch.text.len();
        batch.text.push_str(content);
        let text = start..batch.text.len();
        self.push(
            meta,
            Body::Content {
                text,
                checksum: json::checksum(tape.root(content)),
                side_rows: 0..0,
            },
        )
    }

    /// With one more tombstone.
    #[must_use]
    pub fn delete(self, meta: Meta, at: Instant, why: DeleteReason) -> Self {
        self.push(meta, Body::Deleted(Deleted { at, why }))
    }

    fn push(mut self, meta: Meta, body: Body) -> Self {
        let row = NewRow {
            key: self.keys.key(&meta),
            uid: self.keys.uid(&meta),
            meta,
            asked: self.asked,
            body,
        };
        Arc::make_mut(&mut self.batch).rows.push(row);
        self
    }

    /// With one more rejected row.
    #[must_use]
    pub fn reject(mut self, meta: Meta) -> Self {
        self.rejected.push(Rejected {
            key: self.keys.key(&meta),
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

    /// Asked for at that time. To be said before the rows.
    #[must_use]
    pub fn asked(mut self, asked: Instant) -> Self {
        self.asked = asked;
        self
    }

    /// The page's last place in the order of the source.
    fn end(&self) -> Option<Cursor> {
        let rows = self.batch.rows.iter().map(|row| &row.meta);
        let rejected = self.rejected.iter().map(|rejected| &rejected.meta);
        let end = rows.chain(rejected).map(Meta::cursor).max();
        self.cursor.clone().or(end)
    }

    /// The page for a slice as the worker knows it.
    #[must_use]
    pub fn of<'a>(&'a self, slice: &'a Slice) -> Commit<'a> {
        Commit {
            slice,
            batch: &self.batch,
            rejected: &self.rejected,
            filtered: &self.filtered,
            cursor: self.end().or_else(|| slice.cursor.clone()),
            state: self.state,
            lease_until: self.lease_until,
            run: &self.run,
            format: self.format,
            now: self.now,
        }
    }

    /// Commits the page for a slice as the worker knows it.
    pub async fn try_commit(
        &self,
        store: &dyn Store,
        slice: &Slice,
    ) -> atlas_engine::Result<Committed> {
        store.commit(&self.of(slice)).await
    }

    /// Lands the rows of the page, as the first phase of a commit does.
    pub async fn land(&self, store: &dyn Store, slice: &Slice) -> LandAnswer {
        let commit = self.of(slice);
        let landing = commit.landing(&self.rejected);
        store.rows().land(&landing).await.unwrap()
    }

    /// Commits a page that must be accepted. Answers the slice.
    pub async fn commit(&self, store: &dyn Store, slice: &Slice) -> Slice {
        match self.try_commit(store, slice).await.unwrap() {
            Committed::Done(slice) => slice,
            Committed::Lost => panic!("the commit was refused"),
        }
    }
}
