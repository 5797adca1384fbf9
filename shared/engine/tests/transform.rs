//! What happens to a composition between the page and its row: stages that drop it or edit it, keys, side rows, and what the
//! store cannot hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use atlas_engine::engine::Engine;
use atlas_engine::memory::{Commits, MemoryStore};
use atlas_engine::model::{Meta, Mode, Outcome, Page, Reason, Row, SideRow};
use atlas_engine::ports::{Ledger, Rows, Store};
use atlas_engine::transform::{Stage, Transform, Verdict};
use atlas_engine::work::Budget;
use atlas_engine::work::convert::{
    Canonical, Convert, Converter, Inconvertible, Out, convert_page,
};
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::json::{Checksum, Edits, Node, Tape, checksum};
use atlas_openehr::time::Instant;
use support::tokens::Tokens;
use support::{BEGIN, World, engine, meta, object_id, request};

/// Keeps what has an even number, and takes the value from it.
struct EvenWithoutValue;

impl Stage for EvenWithoutValue {
    fn apply(&self, _meta: &Meta, composition: Node<'_>, edits: &mut Edits) -> Verdict {
        if composition
            .get("object")
            .and_then(|object| object.as_i64())
            .unwrap()
            % 2
            == 1
        {
            return Verdict::Drop("odd");
        }
        edits.drop_node(composition.get("value").unwrap().id());
        edits.replace(composition.get("_type").unwrap().id(), r#""REDACTED""#);
        Verdict::Keep
    }

    fn edits(&self) -> bool {
        true
    }
}

fn world(objects: u64) -> Arc<World> {
    let world = World::new(1, 1);
    let begin = Instant::parse(BEGIN)
        .unwrap()
        .saturating_sub(Duration::from_secs(90_000));
    for object in 0..objects {
        let committed = begin.saturating_add(Duration::from_secs(object));
        world.put(object, 0, committed, Duration::ZERO, false);
    }
    world
}

fn with(world: &Arc<World>, store: &MemoryStore, transform: Transform) -> Engine {
    Engine {
        transform,
        ..engine(world, store)
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_stage_drops_is_counted_as_filtered_and_what_it_edits_is_written_edited() {
    for commits in Commits::ALL {
        let (world, store) = (world(60), MemoryStore::new(commits));
        let transform = Transform {
            stages: vec![Arc::new(EvenWithoutValue)],
            ..Transform::default()
        };
        let report = with(&world, &store, transform)
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .unwrap();
        assert_eq!(report.outcome, Outcome::Complete);
        assert_eq!((report.counts.read, report.counts.filtered), (60, 30));
        assert!(report.counts.conserved());
        for row in store.compositions() {
            let number = row
                .content
                .split(':')
                .next_back()
                .unwrap()
                .trim_end_matches('}');
            let number: u64 = number.parse().unwrap();
            assert_eq!(
                row.content,
                format!(r#"{{"_type":"REDACTED","object":{number}}}"#)
            );
            assert_eq!(number % 2, 0);
            let tape = Tape::parse(&row.content).unwrap();
            assert_eq!(row.checksum, checksum(tape.root(&row.content)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rows_lie_under_tokens_and_the_quarantine_under_the_ids_of_the_source() {
    let (world, store) = (world(20), MemoryStore::new(Commits::InTwoPhases));
    world.put(
        99,
        0,
        world.now().saturating_sub(Duration::from_secs(200)),
        Duration::ZERO,
        true,
    );
    let transform = Transform {
        keys: Arc::new(Tokens),
        ..Transform::default()
    };
    with(&world, &store, transform)
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    let rows = store.compositions();
    assert_eq!(rows.len(), 20);
    assert!(rows.iter().all(|row| {
        let uid = row.meta.uid.as_str();
        uid.starts_with("t-") && uid.contains("::copy::") && row.meta.ehr.as_str().starts_with("t-")
    }));
    let waiting = store.quarantined(&Default::default(), 10).await.unwrap();
    let objects: Vec<&ObjectId> = waiting
        .iter()
        .map(|entry| entry.meta.uid.object_id())
        .collect();
    assert_eq!(objects, [&object_id(99)]);
}

fn page(contents: &[&str]) -> Page {
    let text = format!("[{}]", contents.join(","));
    let tape = Tape::parse(&text).unwrap();
    let world = world(contents.len() as u64);
    let rows = world
        .shown()
        .iter()
        .zip(tape.root(&text).items())
        .map(|(version, node)| Row {
            meta: meta(version),
            content: node.id(),
        })
        .collect();
    Page {
        text,
        tape,
        rows,
        misfits: Vec::new(),
    }
}

/// One converter for all templates of a page.
fn all_by(page: &Page, converter: Arc<dyn Convert>) -> HashMap<TemplateId, Converter> {
    let templates = page.rows.iter().map(|row| row.meta.template.clone());
    templates
        .map(|template| (template, Converter::Here(Arc::clone(&converter))))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_composition_with_a_doubled_member_goes_to_quarantine_by_itself() {
    for doubled in [
        r#"{"a":1,"a":1}"#,
        r#"{"a":1,"a":2}"#,
        r#"{"x":[0,{"b":{"c":1,"d":2,"\u0063":3}}]}"#,
        r#"{"a":{},"b":1,"a":{}}"#,
    ] {
        let page = page(&[r#"{"a":1}"#, doubled, r#"{"a":{"a":{"a":1}}}"#]);
        let store = MemoryStore::new(Commits::InOneTransaction);
        let converters = all_by(&page, Arc::new(Canonical));
        let converted = convert_page(
            &page,
            Instant::EPOCH,
            &converters,
            &Transform::default(),
            store.rows(),
        )
        .await
        .unwrap();
        assert_eq!(converted.batch.rows.len(), 2, "{doubled}");
        let reasons: Vec<Reason> = converted.rejected.iter().map(|one| one.reason).collect();
        assert_eq!(reasons, [Reason::Inconvertible]);
    }
}

/// Writes a text that canonical JSON does not have, and side rows; fails on some.
struct Decoding;

impl Convert for Decoding {
    fn convert(
        &self,
        uid: &str,
        composition: Node<'_>,
        out: &mut Out<'_>,
    ) -> Result<Checksum, Inconvertible> {
        let start = out.content.len();
        out.side_rows.push(SideRow {
            table: "t".into(),
            values: format!(r#"{{"uid":"{uid}"}}"#),
        });
        out.content.push_str(r#"{"decoded":"\u0000"}"#);
        if composition.get("fails").is_some() {
            return Err(Inconvertible("at `fails`".to_owned()));
        }
        let content = out.content.get(start..).unwrap();
        let tape = Tape::parse(content).unwrap();
        Ok(checksum(tape.root(content)))
    }
}

#[tokio::test(start_paused = true)]
async fn side_rows_go_with_their_composition_and_leave_nothing_of_one_that_fails() {
    let page = page(&[r#"{"a":1}"#, r#"{"fails":1}"#, r#"{"a":2}"#]);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let converters = all_by(&page, Arc::new(Decoding));
    let transform = Transform {
        keys: Arc::new(Tokens),
        ..Transform::default()
    };
    let converted = convert_page(&page, Instant::EPOCH, &converters, &transform, store.rows())
        .await
        .unwrap();
    let batch = converted.batch;
    assert_eq!((batch.rows.len(), batch.side_rows.len()), (2, 2));
    for row in &batch.rows {
        assert_eq!(batch.content(row), r#"{"decoded":"\u0000"}"#);
        let [side] = batch.side_rows(row) else {
            panic!("one side row")
        };
        assert!(
            side.values.contains(row.uid.as_str()),
            "the uid that the copy shows"
        );
    }
}

/// A store that refuses a zero byte, as JSONB does.
struct NoZeroByte(MemoryStore);

#[async_trait::async_trait]
impl atlas_engine::ports::Index for NoZeroByte {
    async fn known(
        &self,
        keys: &[atlas_engine::model::RowKey],
    ) -> atlas_engine::Result<std::collections::HashMap<ObjectId, atlas_engine::model::Known>> {
        atlas_engine::ports::Index::known(&self.0, keys).await
    }
}

#[async_trait::async_trait]
impl Rows for NoZeroByte {
    fn kind(&self) -> &'static str {
        "no zero byte"
    }

    async fn prepare(&self) -> atlas_engine::Result<()> {
        Ok(())
    }

    fn refuses(&self, content: &str) -> Option<(Reason, String)> {
        content
            .contains(r"\u0000")
            .then(|| (Reason::Unstorable, "a zero byte".to_owned()))
    }

    async fn land(
        &self,
        landing: &atlas_engine::model::Landing<'_>,
    ) -> atlas_engine::Result<atlas_engine::model::LandAnswer> {
        self.0.land(landing).await
    }

    async fn landed(
        &self,
        slice: &atlas_engine::model::Slice,
    ) -> atlas_engine::Result<Option<atlas_engine::model::LandedPage>> {
        self.0.landed(slice).await
    }

    async fn scan(
        &self,
        scan: &atlas_engine::model::Scan,
    ) -> atlas_engine::Result<Vec<atlas_engine::model::StoredRow>> {
        self.0.scan(scan).await
    }

    async fn newest(
        &self,
        templates: &[atlas_openehr::id::TemplateId],
    ) -> atlas_engine::Result<std::collections::HashMap<atlas_openehr::id::TemplateId, Instant>>
    {
        self.0.newest(templates).await
    }

    async fn erase(&self, ehr: &atlas_openehr::id::EhrId) -> atlas_engine::Result<u64> {
        self.0.erase(ehr).await
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_store_cannot_hold_is_decided_on_what_will_be_written() {
    // The page has no zero byte; what is made of it has.
    let page = page(&[r#"{"a":1}"#, r#"{"b":2}"#]);
    let rows = NoZeroByte(MemoryStore::new(Commits::InOneTransaction));
    let of = async |converter: Arc<dyn Convert>| {
        convert_page(
            &page,
            Instant::EPOCH,
            &all_by(&page, converter),
            &Transform::default(),
            &rows,
        )
        .await
        .unwrap()
    };
    let decoded = of(Arc::new(Decoding)).await;
    assert_eq!(decoded.batch.rows.len(), 0);
    assert!(decoded.batch.text.is_empty() && decoded.batch.side_rows.is_empty());
    assert!(
        decoded
            .rejected
            .iter()
            .all(|one| one.reason == Reason::Unstorable)
    );
    let as_it_is = of(Arc::new(Canonical)).await;
    assert_eq!((as_it_is.batch.rows.len(), as_it_is.rejected.len()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn an_edit_that_is_no_json_rejects_that_composition_alone() {
    struct Broken;
    impl Stage for Broken {
        fn apply(&self, _meta: &Meta, composition: Node<'_>, edits: &mut Edits) -> Verdict {
            if let Some(bad) = composition.get("bad") {
                edits.replace(bad.id(), "{");
            }
            Verdict::Keep
        }

        fn edits(&self) -> bool {
            true
        }
    }
    let page = page(&[r#"{"a":1}"#, r#"{"bad":2}"#]);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let transform = Transform {
        stages: vec![Arc::new(Broken)],
        ..Transform::default()
    };
    let converters = all_by(&page, Arc::new(Canonical));
    let converted = convert_page(&page, Instant::EPOCH, &converters, &transform, store.rows())
        .await
        .unwrap();
    assert_eq!(
        (converted.batch.rows.len(), converted.rejected.len()),
        (1, 1)
    );
}
