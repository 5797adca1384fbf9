//! FLAT as a format of whole runs, from a source that serves one template and its own idea of FLAT.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use atlas_engine::engine::{Engine, RETRY_QUARANTINE_AFTER, SweepTerms};
use atlas_engine::export::Report;
use atlas_engine::lease::RunLeaseTerms;
use atlas_engine::local::LocalQueue;
use atlas_engine::memory::{Commits, MemoryStore, SimulatedClock};
use atlas_engine::model::{
    Census, CensusLine, Cursor, Format, LeaseTerms, Meta, Mode, Outcome, Page, Request, Row, Scope,
    Selection, Usage,
};
use atlas_engine::plan::PlanTerms;
use atlas_engine::ports::{
    Clock, Compositions, Definitions, Event, FlatOracle, Observer, Source, Store,
};
use atlas_engine::slots::{SlotGatedSource, SlotTerms};
use atlas_engine::transform::Transform;
use atlas_engine::work::Budget;
use atlas_engine::work::flat::{
    Compared, ConverterCache, Flat, FlatConverters, LOSSES_LOOKED_AT, compare,
};
use atlas_engine::work::page::PageTerms;
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::flat::Ids;
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::json::{self, Tape};
use atlas_openehr::time::Instant;
use serde_json::{Value, json};

const BEGIN: &str = "2026-11-23T08:00:00Z";
const OBSERVED: &str = "/content[openEHR-EHR-EVALUATION.weight.v1]";

fn template() -> TemplateId {
    TemplateId::new("note")
}

/// A note of any number of weights, and of one remark.
fn web_template() -> Value {
    let node = |id: &str, rm: &str, code: &str, max: i64, path: &str| {
        json!({
            "id": id, "name": id, "rmType": rm, "nodeId": code, "min": 0, "max": max,
            "aqlPath": format!("{OBSERVED}{path}"),
        })
    };
    let mut weight = node(
        "weight",
        "EVALUATION",
        "openEHR-EHR-EVALUATION.weight.v1",
        -1,
        "",
    );
    weight["children"] = json!([
        node(
            "grams",
            "DV_QUANTITY",
            "at0002",
            1,
            "/data[at0001]/items[at0002]/value"
        ),
        node(
            "remark",
            "DV_TEXT",
            "at0003",
            1,
            "/data[at0001]/items[at0003]/value"
        ),
    ]);
    json!({
        "templateId": "note", "version": "2.3", "defaultLanguage": "en",
        "tree": {
            "id": "note", "name": "note", "rmType": "COMPOSITION", "min": 1, "max": 1,
            "nodeId": "openEHR-EHR-COMPOSITION.note.v1", "children": [weight],
        },
    })
}

/// Canonical JSON; the real encoding is one that FLAT never shows.
fn composition(number: usize) -> String {
    let element = |code: &str, name: &str, value: Value| {
        json!({
            "_type": "ELEMENT", "name": {"_type": "DV_TEXT", "value": name},
            "archetype_node_id": code, "value": value,
        })
    };
    let items = [
        element(
            "at0002",
            "grams",
            json!({"_type": "DV_QUANTITY", "magnitude": 10_000_000 + number, "units": "g"}),
        ),
        element(
            "at0003",
            "remark",
            json!({"_type": "DV_TEXT", "value": "a \"quoted\" remark"}),
        ),
    ];
    json!({
        "_type": "COMPOSITION", "name": {"_type": "DV_TEXT", "value": "note"},
        "archetype_node_id": "openEHR-EHR-COMPOSITION.note.v1",
        "content": [{
            "_type": "EVALUATION", "name": {"_type": "DV_TEXT", "value": "weight"},
            "archetype_node_id": "openEHR-EHR-EVALUATION.weight.v1",
            "encoding": {
                "_type": "CODE_PHRASE", "code_string": "ISO-8859-1",
                "terminology_id": {"_type": "TERMINOLOGY_ID", "value": "IANA_character-sets"},
            },
            "data": {
                "_type": "ITEM_TREE", "name": {"_type": "DV_TEXT", "value": "Tree"},
                "archetype_node_id": "at0001", "items": items,
            },
        }],
    })
    .to_string()
}

/// What EHRbase makes of [`composition`], number text included.
fn flat_of(number: usize) -> String {
    let magnitude = match number {
        0 => "1.0E7".to_owned(),
        _ => format!("1.{}E7", format!("{number:07}").trim_end_matches('0')),
    };
    let uid = meta(number).uid;
    format!(
        "{{\n  \"note/_uid\" : \"{uid}\",\n  \"note/weight:0/grams|magnitude\" : {magnitude},\n  \"note/weight:0/grams|unit\" : \"g\",\n  \
         \"note/weight:0/remark\" : \"a \\\"quoted\\\" remark\",\n  \
         \"note/weight:0/encoding|code\" : \"UTF-8\",\n  \
         \"note/weight:0/encoding|terminology\" : \"IANA_character-sets\"\n}}"
    )
}

/// How a server writes the composition of a number.
type ServerFlat = fn(usize) -> String;

/// A CDR of one template.
struct Cdr {
    compositions: usize,
    unreadable: BTreeSet<usize>,
    web_template: Mutex<String>,
    templates_served: AtomicU64,
    /// What stands behind a number in this server's FLAT.
    flat: ServerFlat,
    flats_served: AtomicU64,
    clock: SimulatedClock,
}

impl Cdr {
    fn of(compositions: usize) -> Self {
        Self {
            compositions,
            unreadable: BTreeSet::new(),
            web_template: Mutex::new(web_template().to_string()),
            templates_served: AtomicU64::new(0),
            flat: flat_of,
            flats_served: AtomicU64::new(0),
            clock: SimulatedClock::starting_at(Instant::parse(BEGIN).unwrap()),
        }
    }

    fn templates_served(&self) -> u64 {
        self.templates_served.load(Ordering::SeqCst)
    }

    fn flats_served(&self) -> u64 {
        self.flats_served.load(Ordering::SeqCst)
    }

    fn behind(&self, scope: &Scope, after: Option<&Cursor>) -> impl Iterator<Item = usize> {
        let (window, after) = (scope.window, after.cloned());
        (0..self.compositions).filter(move |number| {
            let meta = meta(*number);
            let is_inside = window.from <= meta.committed && meta.committed < window.to;
            is_inside && after.as_ref().is_none_or(|after| meta.cursor() > *after)
        })
    }

    fn answer(&self, numbers: &[usize]) -> Result<Page> {
        if numbers
            .iter()
            .any(|number| self.unreadable.contains(number))
        {
            return Err(Error::new(ErrorKind::SourceUnreadable, "read a page"));
        }
        let contents: Vec<String> = numbers.iter().map(|number| composition(*number)).collect();
        let text = format!("[{}]", contents.join(","));
        let tape = Tape::parse(&text).unwrap();
        let rows = numbers
            .iter()
            .zip(tape.root(&text).items())
            .map(|(number, node)| Row {
                meta: meta(*number),
                content: node.id(),
            })
            .collect();
        Ok(Page {
            rows,
            tape,
            text,
            misfits: Vec::new(),
        })
    }
}

fn meta(number: usize) -> Meta {
    let begin = Instant::parse("2026-11-20T08:00:00Z").unwrap();
    Meta {
        uid: VersionUid::parse(&format!("object-{number:05}::cdr::1")).unwrap(),
        ehr: EhrId::new("ehr"),
        template: template(),
        committed: begin.saturating_add(Duration::from_secs(number as u64)),
        position: None,
        change_type: "creation".to_owned(),
    }
}

fn number_of(object: &ObjectId) -> usize {
    object
        .as_str()
        .strip_prefix("object-")
        .unwrap()
        .parse()
        .unwrap()
}

#[async_trait]
impl Compositions for Cdr {
    async fn census(&self, scope: &Scope) -> Result<Census> {
        let open = Scope {
            window: atlas_engine::model::Window {
                to: Instant::MAX,
                ..scope.window
            },
            ..scope.clone()
        };
        let numbers: Vec<usize> = self.behind(&open, None).collect();
        let line = numbers
            .first()
            .zip(numbers.last())
            .map(|(first, last)| CensusLine {
                template: template(),
                count: numbers.len() as u64,
                first: meta(*first).committed,
                last: meta(*last).committed,
            });
        Ok(Census {
            server_time: self.clock.now(),
            lines: line.into_iter().collect(),
        })
    }

    async fn count(&self, scope: &Scope) -> Result<u64> {
        Ok(self.behind(scope, None).count() as u64)
    }

    async fn page(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Page> {
        self.answer(&self.behind(scope, after).take(limit).collect::<Vec<_>>())
    }

    async fn list(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Vec<Meta>> {
        Ok(self.behind(scope, after).take(limit).map(meta).collect())
    }

    async fn fetch(&self, _scope: &Scope, objects: &[ObjectId]) -> Result<Page> {
        self.answer(&objects.iter().map(number_of).collect::<Vec<_>>())
    }
}

#[async_trait]
impl Definitions for Cdr {
    async fn templates(&self) -> Result<Vec<TemplateId>> {
        Ok(vec![template()])
    }

    async fn web_template(&self, wanted: &TemplateId) -> Result<String> {
        assert_eq!(wanted, &template());
        self.templates_served.fetch_add(1, Ordering::SeqCst);
        let web_template = self.web_template.lock().unwrap().clone();
        let failed = |kind| Err(Error::new(kind, "read a web template"));
        match web_template.as_str() {
            "unknown" => failed(ErrorKind::UnknownTemplate),
            "in trouble" => failed(ErrorKind::SourceUnreachable),
            _ => Ok(web_template),
        }
    }
}

#[async_trait]
impl FlatOracle for Cdr {
    async fn flat(&self, meta: &Meta) -> Result<String> {
        self.flats_served.fetch_add(1, Ordering::SeqCst);
        Ok((self.flat)(number_of(meta.uid.object_id())))
    }
}

impl Source for Cdr {
    fn usage(&self) -> Usage {
        Usage::default()
    }
}

/// Remembers the notes.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Observer for Notes {
    fn event(&self, event: &Event<'_>) {
        if let Event::Note(note) = event {
            self.0.lock().unwrap().push((*note).to_owned());
        }
    }
}

impl Notes {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A copy in the making. Each run gets converters of its own, as each process does.
struct Copying {
    cdr: Arc<Cdr>,
    store: MemoryStore,
    notes: Arc<Notes>,
    format: Format,
    verify_sample: usize,
}

impl Copying {
    fn new(cdr: Cdr, format: Format) -> Self {
        Self {
            cdr: Arc::new(cdr),
            store: MemoryStore::new(Commits::InOneTransaction),
            notes: Arc::default(),
            format,
            verify_sample: 0,
        }
    }

    async fn run(&self, mode: Mode) -> Report {
        let source = Arc::clone(&self.cdr) as Arc<dyn Source>;
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let observer = Arc::clone(&self.notes) as Arc<dyn Observer>;
        let clock: Arc<dyn Clock> = Arc::new(self.cdr.clock);
        let lease = LeaseTerms::default();
        let slots = SlotTerms::new(3, lease.duration);
        let source = Arc::new(SlotGatedSource::new(source, Arc::clone(&clock), &slots));
        let converters = FlatConverters {
            source: Arc::clone(&source) as Arc<dyn Source>,
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            observer: Arc::clone(&observer),
            format: self.format,
            ids: Ids::Ehrbase,
            verify_sample: self.verify_sample,
            transform: Transform::default(),
            cache: ConverterCache::default(),
        };
        let engine = Engine {
            source,
            store,
            queue: Arc::new(LocalQueue::default()),
            clock,
            observer,
            converters: Arc::new(converters),
            // Several slices and several pages each.
            plan: PlanTerms {
                slice_size: 60,
                list: 50,
                ..PlanTerms::default()
            },
            pages: PageTerms {
                first: 16,
                most: 32,
                list: 50,
                ..PageTerms::default()
            },
            transform: Transform::default(),
            lease,
            run_lease: RunLeaseTerms::default(),
            slots,
            sweep: SweepTerms::default(),
            retry_after: RETRY_QUARANTINE_AFTER,
            keep_runs: Duration::MAX,
            readers: 3,
        };
        let request = Request {
            mode,
            templates: Vec::new(),
            selection: Selection {
                ehrs: Vec::new(),
                from: None,
                to: None,
                format: self.format,
            },
        };
        engine.export(&request, &Budget::default()).await.unwrap()
    }

    /// The stored contents, by number.
    fn contents(&self) -> Vec<String> {
        let rows = self.store.compositions();
        assert!(rows.iter().all(|row| row.format == self.format));
        rows.into_iter().map(|row| row.content).collect()
    }
}

/// The members of an object in no order, with their text.
fn members(text: &str) -> String {
    let tape = Tape::parse(text).unwrap();
    let mut members: Vec<String> = tape
        .root(text)
        .members()
        .map(|(name, value)| format!("{}: {}", name.raw(), value.raw()))
        .collect();
    members.sort();
    members.join("\n")
}

#[tokio::test(start_paused = true)]
async fn a_run_stores_the_servers_own_flat_and_fetches_the_web_template_once() {
    let copying = Copying::new(Cdr::of(200), Format::Preserve);
    let report = copying.run(Mode::Incremental).await;
    assert_eq!(
        (report.outcome, report.counts.written),
        (Outcome::Complete, 200)
    );
    assert_eq!(
        (copying.cdr.templates_served(), copying.cdr.flats_served()),
        (1, 0)
    );
    let contents = copying.contents();
    assert_eq!(contents.len(), 200);
    for (number, content) in contents.iter().enumerate() {
        assert_eq!(members(content), members(&flat_of(number)));
    }
    assert_eq!(copying.notes.take(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_checksum_is_of_the_content_that_is_stored() {
    for format in [Format::Preserve, Format::Flatten] {
        let copying = Copying::new(Cdr::of(20), format);
        copying.run(Mode::Incremental).await;
        let rows = copying.store.compositions();
        assert_eq!(rows.len(), 20);
        for row in rows {
            let tape = Tape::parse(&row.content).unwrap();
            assert_eq!(row.checksum, json::checksum(tape.root(&row.content)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_template_is_kept_with_its_digest_and_replaced_only_when_it_changes() {
    let copying = Copying::new(Cdr::of(10), Format::Preserve);
    copying.run(Mode::Incremental).await;
    let kept = copying
        .store
        .templates()
        .template(&template())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(kept.web_template, web_template().to_string());
    assert_eq!(kept.digest.len(), 64);
    assert_eq!(kept.names, "");

    tokio::time::advance(Duration::from_secs(60)).await;
    copying.run(Mode::Full).await;
    assert_eq!(
        copying
            .store
            .templates()
            .template(&template())
            .await
            .unwrap()
            .unwrap(),
        kept
    );
    assert_eq!(copying.notes.take(), Vec::<String>::new());

    let mut changed = web_template();
    changed["tree"]["children"][0]["children"][0]["id"] = json!("kilos");
    changed["tree"]["children"][0]["children"][0]["name"] = json!("kilos");
    *copying.cdr.web_template.lock().unwrap() = changed.to_string();
    copying.run(Mode::Full).await;
    assert_eq!(copying.cdr.templates_served(), 1, "trusted for a day");
    tokio::time::advance(Duration::from_secs(86_400)).await;
    copying.run(Mode::Full).await;
    let notes = copying.notes.take();
    assert!(
        matches!(&notes[..], [note] if note.contains("`note` has changed")),
        "{notes:?}"
    );
    let now = copying
        .store
        .templates()
        .template(&template())
        .await
        .unwrap()
        .unwrap();
    assert_ne!(now.digest, kept.digest);
    assert!(now.fetched > kept.fetched);
    for content in copying.contents() {
        assert!(
            content.contains("note/weight:0/kilos|magnitude"),
            "{content}"
        );
    }

    copying.run(Mode::Full).await;
    assert_eq!(
        copying.notes.take(),
        Vec::<String>::new(),
        "told once, not in every run"
    );
}

#[tokio::test(start_paused = true)]
async fn a_template_that_lacks_what_a_composition_holds_is_fetched_again_but_not_all_the_time() {
    for format in [Format::Preserve, Format::Flatten] {
        let copying = Copying::new(Cdr::of(40), format);
        let mut lacking = web_template();
        let children = lacking["tree"]["children"][0]["children"].as_array_mut();
        children.unwrap().pop();
        *copying.cdr.web_template.lock().unwrap() = lacking.to_string();
        copying.run(Mode::Incremental).await;
        let has_remark = |content: &String| content.contains("remark");
        assert!(!copying.contents().iter().any(has_remark));
        assert_eq!(copying.cdr.templates_served(), 1, "it is as it was");

        // Some compositions hold more than their template whatever is asked: once a run, and not at once.
        for (minutes, served) in [(5, 1), (6, 2), (2, 2), (11, 3)] {
            tokio::time::advance(Duration::from_secs(60 * minutes)).await;
            copying.run(Mode::Full).await;
            assert_eq!(copying.cdr.templates_served(), served, "{minutes}");
        }
        *copying.cdr.web_template.lock().unwrap() = web_template().to_string();
        tokio::time::advance(Duration::from_secs(660)).await;
        copying.run(Mode::Full).await;
        assert_eq!(copying.cdr.templates_served(), 4);
        assert!(copying.contents().iter().all(has_remark), "all of them");
        tokio::time::advance(Duration::from_secs(660)).await;
        copying.run(Mode::Full).await;
        assert_eq!(copying.cdr.templates_served(), 4, "nothing is unknown");
    }
}

#[tokio::test(start_paused = true)]
async fn flatten_keeps_the_names_that_lead_back_to_flat_paths() {
    let mut copying = Copying::new(Cdr::of(5), Format::Flatten);
    copying.run(Mode::Incremental).await;
    let kept = copying
        .store
        .templates()
        .template(&template())
        .await
        .unwrap()
        .unwrap();
    let names: Value = serde_json::from_str(&kept.names).unwrap();
    assert_eq!(
        names["note/weight/grams|magnitude"],
        "note__weight__grams_magnitude"
    );
    assert_eq!(names["note/weight/remark"], "note__weight__remark");
    for content in copying.contents() {
        assert!(
            content.contains("\"note__weight_0__grams_magnitude\":1.0"),
            "{content}"
        );
    }

    // Another format in the same store: rows that it does not replace still have these names.
    copying.format = Format::Preserve;
    copying.run(Mode::Incremental).await;
    let still = copying
        .store
        .templates()
        .template(&template())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(still.names, kept.names);
}

#[tokio::test(start_paused = true)]
async fn an_equal_sample_is_asked_for_once_and_nothing_is_said() {
    let mut copying = Copying::new(Cdr::of(50), Format::Preserve);
    copying.verify_sample = 4;
    let report = copying.run(Mode::Incremental).await;
    assert_eq!(report.outcome, Outcome::Complete);
    assert_eq!(copying.cdr.flats_served(), 4);
    assert_eq!(copying.notes.take(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_server_without_flat_is_not_compared_and_that_is_told() {
    let mut copying = Copying::new(
        Cdr {
            flat: composition,
            ..Cdr::of(30)
        },
        Format::Preserve,
    );
    copying.verify_sample = 2;
    let report = copying.run(Mode::Incremental).await;
    assert_eq!(
        (report.outcome, report.counts.written),
        (Outcome::Complete, 30)
    );
    let notes = copying.notes.take();
    assert!(
        matches!(&notes[..], [note] if note.contains("no FLAT of `note`")),
        "{notes:?}"
    );
    assert_eq!(members(&copying.contents()[7]), members(&flat_of(7)));
}

/// Equal but for the spelling of a number, and with a key of its own.
fn another_flat(number: usize) -> String {
    flat_of(number)
        .replace("1.0E7", "10000000")
        .replace("grams|unit", "grams|theirs")
}

#[tokio::test(start_paused = true)]
async fn where_a_sample_differs_the_source_converts_and_that_is_told() {
    let mut copying = Copying::new(
        Cdr {
            flat: another_flat,
            ..Cdr::of(30)
        },
        Format::Preserve,
    );
    copying.verify_sample = 2;
    let report = copying.run(Mode::Incremental).await;
    assert_eq!(
        (report.outcome, report.counts.written),
        (Outcome::Complete, 30)
    );
    let notes = copying.notes.take();
    assert!(
        matches!(&notes[..], [note] if note.contains("`note` differs")),
        "{notes:?}"
    );
    assert_eq!(copying.cdr.flats_served(), 2 + 30);
    for (number, content) in copying.contents().iter().enumerate() {
        assert_eq!(members(content), members(&another_flat(number)));
        assert!(!content.contains('\n'));
    }
    assert_eq!(report.templates[&template()].losses.looked_at, 0);
}

#[tokio::test(start_paused = true)]
async fn flatten_refuses_a_template_whose_sample_differs() {
    let mut copying = Copying::new(
        Cdr {
            flat: another_flat,
            ..Cdr::of(30)
        },
        Format::Flatten,
    );
    copying.verify_sample = 2;
    let report = copying.run(Mode::Incremental).await;
    assert_eq!(
        (report.outcome, report.counts.written),
        (Outcome::Partial, 0)
    );
    let failure = report.templates[&template()].failure.as_deref().unwrap();
    assert!(
        failure.contains("a sampled composition differs"),
        "{failure}"
    );
    assert_eq!(copying.contents(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn number_text_and_every_key_count_and_order_and_layout_do_not() {
    let equal: ServerFlat = |number| {
        let text = flat_of(number);
        let members = text.trim_matches(['{', '}', '\n']).rsplit(",\n");
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    };
    let cases: [(ServerFlat, u64); 5] = [
        (equal, 0),
        (|number| flat_of(number).replace("E7", "e7"), 3),
        (
            |number| flat_of(number).replace("\"g\"", "\"g\", \"more\": 1"),
            3,
        ),
        (
            |number| flat_of(number).replace("\"UTF-8\"", "\"utf-8\""),
            3,
        ),
        (|_| "not JSON".to_owned(), 3),
    ];
    let text = web_template().to_string();
    let flat = Flat::compile(&template(), &text, Format::Preserve, Ids::Ehrbase).unwrap();
    for (theirs, differing) in cases {
        let cdr = Cdr {
            flat: theirs,
            ..Cdr::of(9)
        };
        let compared = compare(&cdr, &template(), Ids::Ehrbase, &flat, 3)
            .await
            .unwrap();
        assert_eq!(
            compared,
            Compared {
                compared: 3,
                differing
            }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_sample_goes_past_compositions_that_the_source_cannot_read() {
    let cdr = Cdr {
        unreadable: [0, 1, 3].into(),
        ..Cdr::of(9)
    };
    let text = web_template().to_string();
    let flat = Flat::compile(&template(), &text, Format::Preserve, Ids::Ehrbase).unwrap();
    let compared = compare(&cdr, &template(), Ids::Ehrbase, &flat, 3)
        .await
        .unwrap();
    assert_eq!(
        compared,
        Compared {
            compared: 3,
            differing: 0
        }
    );

    let cdr = Cdr {
        unreadable: (0..9).collect(),
        ..Cdr::of(9)
    };
    let compared = compare(&cdr, &template(), Ids::Ehrbase, &flat, 3)
        .await
        .unwrap();
    assert_eq!(compared, Compared::default());
}

#[tokio::test(start_paused = true)]
async fn losses_are_counted_by_reason_over_the_compositions_that_were_looked_at() {
    for format in [Format::Preserve, Format::Flatten] {
        let copying = Copying::new(Cdr::of(40), format);
        let report = copying.run(Mode::Incremental).await;
        let losses = &report.templates[&template()].losses;
        assert_eq!(losses.looked_at, 40);
        // Of the real encoding code and terminology, of the tree its name.
        let leaves: Vec<(&str, u64)> = losses.leaves.iter().map(|(k, v)| (*k, *v)).collect();
        assert_eq!(leaves, [("container", 40), ("encoding", 80)]);
    }
}

#[tokio::test(start_paused = true)]
async fn looking_for_losses_ends_after_some_compositions_and_the_report_says_so() {
    let more = LOSSES_LOOKED_AT as usize + 500;
    let copying = Copying::new(Cdr::of(more), Format::Preserve);
    let report = copying.run(Mode::Incremental).await;
    assert_eq!(report.counts.written, more as u64);
    let losses = &report.templates[&template()].losses;
    // At most one more by each of the three readers.
    assert!((LOSSES_LOOKED_AT..LOSSES_LOOKED_AT + 3).contains(&losses.looked_at));
    assert_eq!(losses.leaves["container"], losses.looked_at);
}

#[tokio::test(start_paused = true)]
async fn a_web_template_that_the_source_does_not_give_fails_its_template_and_stops_no_other() {
    for said in ["unknown", "in trouble"] {
        let copying = Copying::new(Cdr::of(3), Format::Preserve);
        *copying.cdr.web_template.lock().unwrap() = said.to_owned();
        let report = copying.run(Mode::Incremental).await;
        assert_eq!(report.outcome, Outcome::Partial);
        assert!(report.stopped_by.is_none(), "{:?}", report.stopped_by);
        let failure = report.templates[&template()].failure.as_deref().unwrap();
        assert!(failure.contains("make FLAT of `note`"), "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_web_template_that_is_none_fails_its_template_and_says_what_to_do() {
    let copying = Copying::new(Cdr::of(3), Format::Preserve);
    *copying.cdr.web_template.lock().unwrap() = "{}".to_owned();
    let report = copying.run(Mode::Incremental).await;
    assert_eq!(
        (report.outcome, report.counts.written),
        (Outcome::Partial, 0)
    );
    let failure = report.templates[&template()].failure.as_deref().unwrap();
    assert!(
        failure.contains("compile the web template of `note`"),
        "{failure}"
    );

    let text = "{}";
    let error = Flat::compile(&template(), text, Format::Preserve, Ids::Ehrbase)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::SourceUnsupported);
    assert!(error.help().unwrap().contains("canonical"));
}
