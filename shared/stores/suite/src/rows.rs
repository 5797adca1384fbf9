//! What commits leave in the copy, and how it is read back.
#![allow(missing_docs, reason = "the names are the sentences")]

use std::collections::HashMap;
use std::sync::Arc;

use atlas_engine::model::{
    Body, Counts, DeleteReason, Deleted, Format, Meta, Scan, Slice, StoredRow, StoredTemplate,
    Window,
};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use futures::future::join_all;

use crate::Probe;
use crate::fixture::{
    Draft, at, begin, deleted, inserted, meta, object, page, quarantined, replaced, row_of, rows,
    shown, slice, template, unchanged,
};
use crate::value::equal_texts;

const A: &str = r#"{"systolic":120}"#;
const B: &str = r#"{"systolic":121}"#;

async fn only_row(probe: &dyn Probe) -> StoredRow {
    let mut rows = rows(probe).await;
    assert_eq!(rows.len(), 1, "one composition is in the store");
    rows.remove(0)
}

pub async fn preparing_is_safe_at_any_time_and_by_several_at_once(probe: &dyn Probe) {
    let mut handles = vec![probe.store()];
    for _ in 0..3 {
        handles.push(probe.another().await);
    }
    for done in join_all(handles.iter().map(|store| store.prepare())).await {
        done.unwrap();
    }
    let store = probe.store();
    let slice = begin(&*store).await;
    page(probe).row(meta(1, 1), A).commit(&*store, &slice).await;
    for store in &handles {
        store.prepare().await.unwrap();
    }
    assert_eq!(
        only_row(probe).await.meta.uid.version(),
        1,
        "preparing again loses nothing"
    );
}

pub async fn an_older_version_never_replaces_a_newer_one(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe).row(meta(1, 2), A).commit(&*store, &slice).await;
    let second = page(probe).row(meta(1, 1), B).commit(&*store, &first).await;
    let row = only_row(probe).await;
    assert_eq!(row.meta, shown(probe, &meta(1, 2)));
    assert!(row.content.contains("120"));
    assert_eq!(second.counts.since(&first.counts), unchanged(1));
}

pub async fn a_newer_version_replaces_an_older_one(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe).row(meta(1, 9), A).commit(&*store, &slice).await;
    let second = page(probe)
        .row(meta(1, 10), B)
        .commit(&*store, &first)
        .await;
    let row = only_row(probe).await;
    assert_eq!(row.meta, shown(probe, &meta(1, 10)));
    assert!(row.content.contains("121"));
    assert_eq!(second.counts.since(&first.counts), replaced(1));
}

pub async fn the_same_version_again_is_unchanged(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let page = || page(probe).row(meta(1, 1), A).row(meta(2, 1), B);
    let first = page().commit(&*store, &slice).await;
    let before = rows(probe).await;
    let second = page().at(at(500)).commit(&*store, &first).await;
    assert_eq!(first.counts, inserted(2));
    assert_eq!(second.counts.since(&first.counts), unchanged(2));
    assert_eq!(rows(probe).await, before);
}

pub async fn content_comes_back_value_for_value(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let contents = [
        r#"{"numbers":[0,-0.0,1.0,0.1,120.30,1e2,1E-7,5e-324,1.7976931348623157e308]}"#,
        r#"{"seventeen":[0.30000000000000004,72.05759403792794,9007199254740993,123456789012345678901234567890]}"#,
        r#"{"beyond doubles":[1e400,-1e-400,3.14159265358979323846264338327950288]}"#,
        r#"{"text":["Käse","日本語","🩺","\"\\\/\b\f\n\r\t","\ud83e\ude7a","é","'; DROP TABLE compositions; --"]}"#,
        r#"{"empty":["",{},[],null,true,false],"":{"":""}}"#,
        r#"{"_type":"COMPOSITION","name":{"_type":"DV_TEXT","value":"Ä"},"z":1,"a":{"c":1,"b":2}}"#,
        " {\n  \"indented\" : [ 1 , 2 ]\n}",
    ];
    let mut page = page(probe);
    for (number, content) in (1..).zip(contents) {
        page = page.row(meta(number, 1), content);
    }
    page.commit(&*store, &slice).await;
    assert_eq!(rows(probe).await.len(), contents.len());
    for (number, (new, content)) in (1..).zip(page.batch.rows.iter().zip(contents)) {
        let row = row_of(probe, number).await;
        assert!(
            equal_texts(&row.content, content),
            "wrote {content}\nread  {}",
            row.content
        );
        let Body::Content { checksum, .. } = &new.body else {
            panic!("it has a content");
        };
        assert_eq!(row.checksum, *checksum);
        assert_eq!(row.meta, shown(probe, &new.meta));
    }
}

pub async fn ids_of_any_text_are_kept(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let mut odd = meta(1, 1);
    odd.uid = VersionUid::parse("Röntgen'\"%_\\ 1::system.::4294967295").unwrap();
    odd.ehr = EhrId::new("patient's EHR 🩺");
    odd.template = TemplateId::new("Überweisung; \"β\" v1.0");
    odd.change_type = "amendment".to_owned();
    let page = page(probe).row(odd.clone(), A).reject({
        let mut rejected = odd.clone();
        rejected.uid = VersionUid::parse("not a uuid::x::4294967295").unwrap();
        rejected
    });
    let after = page.commit(&*store, &slice).await;
    assert_eq!(
        after.cursor,
        page.batch.rows[0]
            .meta
            .cursor()
            .max(page.rejected[0].meta.cursor())
            .into()
    );
    assert_eq!(only_row(probe).await.meta, shown(probe, &odd));
    let keys = [probe.keys().key(&odd)];
    let known = store.index().known(&keys).await.unwrap();
    assert_eq!(known[&keys[0].object].version, u32::MAX);
    assert_eq!(quarantined(&*store).await[0].meta, page.rejected[0].meta);
    let newest = store
        .rows()
        .newest(std::slice::from_ref(&odd.template))
        .await;
    assert_eq!(newest.unwrap()[&odd.template], odd.committed);
}

pub async fn pages_of_500_large_rows_arrive_whole(probe: &dyn Probe) {
    let store = probe.store();
    let mut slice = begin(&*store).await;
    let filler = "blood pressure ".repeat(700);
    for page_number in 0..3 {
        let mut page = page(probe);
        for number in 0..500 {
            let number = page_number * 500 + number;
            let content = format!(r#"{{"number":{number},"text":"{filler}"}}"#);
            page = page.row(meta(number, 1), &content);
        }
        slice = page.commit(&*store, &slice).await;
    }
    assert_eq!(slice.counts, inserted(1500));
    let rows = rows(probe).await;
    let rows: HashMap<_, _> = rows
        .iter()
        .map(|row| (row.meta.uid.object_id(), row))
        .collect();
    assert_eq!(rows.len(), 1500);
    for number in 0..1500 {
        let content = format!(r#"{{"number":{number},"text":"{filler}"}}"#);
        let row = rows[&probe.keys().key(&meta(number, 1)).object];
        assert!(equal_texts(&row.content, &content), "row {number}");
    }
}

pub async fn parallel_commits_on_different_slices_all_arrive(probe: &dyn Probe) {
    let first = probe.store();
    first.prepare().await.unwrap();
    let handles = [first, probe.another().await];
    let slices: Vec<Slice> = (0..8)
        .map(|number| slice(&format!("slice {number}")))
        .collect();
    handles[0].ledger().add_slices(&slices).await.unwrap();
    let workers = (0..8_u32).zip(slices).map(|(worker, mut slice)| {
        let store = Arc::clone(&handles[worker as usize % 2]);
        let empty = page(probe);
        tokio::spawn(async move {
            for page in 0..5 {
                let mut draft = empty.clone();
                for row in 0..20 {
                    draft = draft.row(meta(worker * 100 + page * 20 + row, 1), A);
                }
                slice = draft.commit(&*store, &slice).await;
            }
            slice
        })
    });
    for done in join_all(workers).await {
        assert_eq!(done.unwrap().counts, inserted(100));
    }
    assert_eq!(rows(probe).await.len(), 800);
}

pub async fn parallel_commits_of_the_same_objects_keep_the_newest(probe: &dyn Probe) {
    let first = probe.store();
    first.prepare().await.unwrap();
    let handles = [first, probe.another().await];
    let slices: Vec<Slice> = (0..6)
        .map(|number| slice(&format!("slice {number}")))
        .collect();
    handles[0].ledger().add_slices(&slices).await.unwrap();
    let workers = (0..6_u32).zip(slices).map(|(worker, slice)| {
        let store = Arc::clone(&handles[worker as usize % 2]);
        let mut draft = page(probe);
        tokio::spawn(async move {
            // Each in an order of its own: who waits for whom must not end in a deadlock.
            for step in 0..30 {
                let number = if worker % 2 == 0 { step } else { 29 - step };
                draft = draft.row(meta(number, worker + 1), &format!(r#"{{"by":{worker}}}"#));
            }
            draft.commit(&*store, &slice).await
        })
    });
    let mut counts = Counts::default();
    for done in join_all(workers).await {
        counts += done.unwrap().counts;
    }
    assert_eq!(counts.read, 180);
    assert!(counts.conserved());
    let rows = rows(probe).await;
    assert_eq!(rows.len(), 30);
    for row in rows {
        assert_eq!(row.meta.uid.version(), 6);
        assert!(equal_texts(&row.content, r#"{"by":5}"#));
    }
}

pub async fn what_is_committed_is_there_for_every_other_process(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let page = page(probe).row(meta(1, 1), A).reject(meta(2, 1));
    let after = page.commit(&*store, &slice).await;
    let keys = [probe.keys().key(&meta(1, 1))];
    let other = probe.another().await;
    assert_eq!(other.ledger().slice(&slice.id).await.unwrap(), Some(after));
    assert_eq!(other.index().known(&keys).await.unwrap().len(), 1);
    assert_eq!(
        other.ledger().template_counts().await.unwrap(),
        store.ledger().template_counts().await.unwrap()
    );
    assert_eq!(quarantined(&*other).await, quarantined(&*store).await);
    assert_eq!(other.kind(), store.kind());
}

pub async fn web_templates_come_back_as_they_were_saved(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    assert_eq!(store.templates().template(&template()).await.unwrap(), None);
    let mut saved = StoredTemplate {
        template: template(),
        digest: "00".repeat(32),
        web_template: "{ \"webTemplate\" :\n {\"b\":1.0, \"a\":\"°C\"} }".to_owned(),
        names: String::new(),
        fetched: at(0),
    };
    store.templates().save_template(&saved).await.unwrap();
    assert_eq!(
        store
            .templates()
            .template(&template())
            .await
            .unwrap()
            .as_ref(),
        Some(&saved)
    );
    saved.names = r#"{"a/b|c":"a__b_c"}"#.to_owned();
    saved.fetched = at(1);
    store.templates().save_template(&saved).await.unwrap();
    assert_eq!(
        store.templates().template(&template()).await.unwrap(),
        Some(saved)
    );
}

/// Pages one after the other, each asked for at its time; answers what each added to the counts.
async fn counts_of(probe: &dyn Probe, pages: Vec<Draft>) -> Vec<Counts> {
    let store = probe.store();
    let mut stands = begin(&*store).await;
    let mut counts = Vec::new();
    for page in pages {
        let after = page.commit(&*store, &stands).await;
        counts.push(after.counts.since(&stands.counts));
        stands = after;
    }
    counts
}

fn gone(probe: &dyn Probe, asked: u64, version: u32) -> Draft {
    page(probe)
        .asked(at(asked))
        .delete(meta(1, version), at(asked), DeleteReason::Deleted)
}

fn there(probe: &dyn Probe, asked: u64, content: &str) -> Draft {
    page(probe).asked(at(asked)).row(meta(1, 2), content)
}

pub async fn a_tombstone_lands_only_on_the_version_it_names(probe: &dyn Probe) {
    let pages = vec![
        gone(probe, 100, 2),
        there(probe, 50, A),
        gone(probe, 100, 1),
        gone(probe, 100, 3),
        gone(probe, 100, 2),
    ];
    let counts = counts_of(probe, pages).await;
    let expected = [
        unchanged(1),
        inserted(1),
        unchanged(1),
        unchanged(1),
        deleted(1),
    ];
    assert_eq!(counts, expected);
    let row = only_row(probe).await;
    assert_eq!(row.meta, shown(probe, &meta(1, 2)));
    let why = DeleteReason::Deleted;
    assert_eq!(row.deleted, Some(Deleted { at: at(100), why }));
    assert_eq!(row.asked, at(100));
}

pub async fn at_an_equal_version_the_later_asked_wins(probe: &dyn Probe) {
    let cases = [
        // A tombstone over content.
        (there(probe, 50, A), gone(probe, 49, 2), false),
        (there(probe, 50, A), gone(probe, 51, 2), true),
        // Content over a tombstone, whatever content it is.
        (gone(probe, 60, 2), there(probe, 59, A), false),
        (gone(probe, 60, 2), there(probe, 61, A), true),
        (gone(probe, 60, 2), there(probe, 59, B), false),
        (gone(probe, 60, 2), there(probe, 61, B), true),
        // Content over content.
        (there(probe, 50, A), there(probe, 49, B), false),
        (there(probe, 50, A), there(probe, 50, B), true),
        (there(probe, 50, A), there(probe, 51, B), true),
        // Of the same moment, the tombstone.
        (there(probe, 50, A), gone(probe, 50, 2), true),
        (gone(probe, 50, 2), there(probe, 50, A), false),
        (gone(probe, 50, 2), there(probe, 50, B), false),
    ];
    for (number, (asked, then, wins)) in cases.into_iter().enumerate() {
        let store = probe.store();
        // A slice for each case, and no row of the last one.
        store.prepare().await.unwrap();
        let ehr = probe.keys().key(&meta(1, 2)).ehr;
        store.rows().erase(&ehr).await.unwrap();
        let slice = slice(&format!("slice {number}"));
        let ledger = store.ledger();
        ledger
            .add_slices(std::slice::from_ref(&slice))
            .await
            .unwrap();
        let first = there(probe, 10, A).commit(&*store, &slice).await;
        let second = asked.commit(&*store, &first).await;
        let before = only_row(probe).await;
        let third = then.commit(&*store, &second).await;
        let after = only_row(probe).await;
        let step = third.counts.since(&second.counts);
        if wins {
            assert_eq!(step.unchanged, 0, "{before:?} {after:?}");
            assert_eq!(after.asked, then.asked);
        } else {
            assert_eq!(step, unchanged(1), "{before:?} {after:?}");
            assert_eq!(after, before);
        }
        let is_tombstone = |draft: &Draft| matches!(draft.batch.rows[0].body, Body::Deleted(_));
        let last = if wins { &then } else { &asked };
        assert_eq!(after.deleted.is_some(), is_tombstone(last));
    }
}

pub async fn a_page_in_flight_never_revives_and_what_is_alive_again_comes_back(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = there(probe, 50, A).commit(&*store, &slice).await;
    let second = gone(probe, 70, 2).commit(&*store, &first).await;
    // Asked for before the tombstone was.
    let third = there(probe, 60, A).commit(&*store, &second).await;
    assert_eq!(third.counts.since(&second.counts), unchanged(1));
    assert!(only_row(probe).await.deleted.is_some());
    let back = Draft {
        run: "a later run".to_owned(),
        ..there(probe, 80, A)
    };
    let fourth = back.commit(&*store, &third).await;
    assert_eq!(fourth.counts.since(&third.counts), inserted(1));
    let row = only_row(probe).await;
    assert_eq!((row.deleted, row.asked), (None, at(80)));
    assert_eq!(row.run, "a later run");
    assert!(equal_texts(&row.content, A));
    // The tombstone that was asked for before.
    let fifth = gone(probe, 75, 2).commit(&*store, &fourth).await;
    assert_eq!(fifth.counts.since(&fourth.counts), unchanged(1));
    assert_eq!(only_row(probe).await, row);
}

pub async fn a_newer_version_takes_the_place_of_a_tombstone(probe: &dyn Probe) {
    let newer = page(probe).asked(at(60)).row(meta(1, 3), B);
    let pages = vec![there(probe, 50, A), gone(probe, 70, 2), newer];
    let counts = counts_of(probe, pages).await;
    assert_eq!(counts, [inserted(1), deleted(1), inserted(1)]);
    let row = only_row(probe).await;
    assert_eq!(row.meta, shown(probe, &meta(1, 3)));
    assert_eq!((row.deleted, row.asked), (None, at(60)));
}

pub async fn a_tombstone_again_keeps_the_first_reason_and_the_later_asked(probe: &dyn Probe) {
    let again = |asked| {
        let page = page(probe).asked(at(asked));
        page.delete(meta(1, 2), at(asked), DeleteReason::Confirmed)
    };
    let pages = vec![
        there(probe, 50, A),
        gone(probe, 70, 2),
        again(80),
        again(60),
    ];
    let counts = counts_of(probe, pages).await;
    assert_eq!(
        counts,
        [inserted(1), deleted(1), unchanged(1), unchanged(1)]
    );
    let row = only_row(probe).await;
    let why = DeleteReason::Deleted;
    assert_eq!(row.deleted, Some(Deleted { at: at(70), why }));
    assert_eq!(row.asked, at(80));
}

pub async fn a_tombstone_says_when_and_why(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let reasons = [
        DeleteReason::Deleted,
        DeleteReason::Erased,
        DeleteReason::Withdrawn,
        DeleteReason::Confirmed,
    ];
    let (mut first, mut second) = (page(probe), page(probe));
    for (number, why) in (1..).zip(reasons) {
        first = first.row(meta(number, 1), A);
        second = second.delete(meta(number, 1), at(60 + u64::from(number)), why);
    }
    let stands = first.commit(&*store, &slice).await;
    let second = Draft {
        run: "a later run".to_owned(),
        ..second
    };
    let after = second.commit(&*store, &stands).await;
    assert_eq!(after.counts.since(&stands.counts), deleted(4));
    for (number, why) in (1..).zip(reasons) {
        let row = row_of(probe, number).await;
        let at = at(60 + u64::from(number));
        assert_eq!(row.deleted, Some(Deleted { at, why }));
        assert_eq!(row.meta, shown(probe, &meta(number, 1)));
        assert_eq!(row.run, "a later run");
    }
}

pub async fn what_differs_at_the_same_version_is_replaced(probe: &dyn Probe) {
    let sound = meta(1, 2);
    let other_ehr = Meta {
        ehr: EhrId::new("another EHR"),
        ..sound.clone()
    };
    let other_template = Meta {
        template: TemplateId::new("Laboratory.v2"),
        ..sound.clone()
    };
    let other_time = Meta {
        committed: at(7),
        ..sound.clone()
    };
    let other_system = Meta {
        uid: VersionUid::parse(&format!("{}::elsewhere::2", object(1).as_str())).unwrap(),
        ..sound.clone()
    };
    let row = |meta: &Meta, content| page(probe).row(meta.clone(), content);
    let other_format = Draft {
        format: Format::Preserve,
        ..row(&other_time, B)
    };
    let pages = vec![
        row(&sound, A),
        row(&other_ehr, A),
        row(&other_template, A),
        row(&other_time, A),
        row(&other_time, B),
        other_format.clone(),
        // The system id is mere configuration of the server.
        Draft {
            format: Format::Preserve,
            ..row(
                &Meta {
                    committed: at(7),
                    ..other_system
                },
                B,
            )
        },
        other_format,
    ];
    let mut expected = vec![replaced(1); 6];
    expected[0] = inserted(1);
    expected.extend([unchanged(1), unchanged(1)]);
    assert_eq!(counts_of(probe, pages).await, expected);
    let row = only_row(probe).await;
    assert_eq!(row.meta, shown(probe, &other_time));
    assert_eq!(row.format, Format::Preserve);
    assert!(equal_texts(&row.content, B));
}

pub async fn what_is_the_same_keeps_the_later_asked_and_its_run(probe: &dyn Probe) {
    let later = Draft {
        run: "a later run".to_owned(),
        ..there(probe, 80, A)
    };
    let spaced = there(probe, 70, " { \"systolic\" : 120 } ");
    let pages = vec![there(probe, 50, A), later, spaced];
    let counts = counts_of(probe, pages).await;
    assert_eq!(counts, [inserted(1), unchanged(1), unchanged(1)]);
    let row = only_row(probe).await;
    assert_eq!(row.asked, at(80));
    assert_ne!(row.run, "a later run", "nothing was written");
}

pub async fn known_says_what_the_copy_holds_of_an_object(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe)
        .row(meta(1, 2), A)
        .row(meta(2, 10), B)
        .reject(meta(3, 1))
        .commit(&*store, &slice)
        .await;
    page(probe)
        .asked(at(60))
        .delete(meta(2, 10), at(55), DeleteReason::Erased)
        .reject(meta(1, 3))
        .commit(&*store, &first)
        .await;
    let keys = [1, 2, 3, 4].map(|number| probe.keys().key(&meta(number, 1)));
    let known = store.index().known(&keys).await.unwrap();
    assert_eq!(
        known.len(),
        2,
        "quarantine and unknown objects are left out"
    );
    for (number, version, asked, deleted) in [(1, 2, 50, false), (2, 10, 60, true)] {
        let row = row_of(probe, number).await;
        let known = &known[row.meta.uid.object_id()];
        assert_eq!((known.version, known.deleted), (version, deleted));
        assert_eq!(known.asked, at(asked));
        assert_eq!(
            (&known.ehr, &known.template),
            (&row.meta.ehr, &row.meta.template)
        );
        assert!(known.checksum == Some(row.checksum) || known.checksum.is_none() && deleted);
    }
    assert!(store.index().known(&[]).await.unwrap().is_empty());
}

pub async fn rows_are_read_back_in_the_order_of_their_objects(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let other = TemplateId::new("Laboratory.v2");
    let mut metas = Vec::new();
    let mut draft = page(probe);
    for number in [7, 3, 11, 0, 5, 2, 9, 8, 1, 10] {
        let mut meta = meta(number, 1);
        if number % 3 == 0 {
            meta.template = other.clone();
        }
        draft = draft.row(meta.clone(), A);
        metas.push(meta);
    }
    let first = draft.commit(&*store, &slice).await;
    page(probe)
        .delete(meta(8, 1), at(90), DeleteReason::Deleted)
        .commit(&*store, &first)
        .await;
    // From the row of object 2 (inside) to that of object 9 (outside).
    let window = Window {
        from: meta(2, 1).committed,
        to: meta(9, 1).committed,
    };
    for (template, window) in [
        (None, None),
        (Some(template()), None),
        (None, Some(window)),
        (Some(other.clone()), Some(window)),
        (Some(template()), Some(window)),
    ] {
        let wanted = metas.iter().filter(|meta| {
            template
                .as_ref()
                .is_none_or(|template| template == &meta.template)
                && window.is_none_or(|window| window.contains(meta.committed))
        });
        let mut expected: Vec<Meta> = wanted.map(|meta| shown(probe, meta)).collect();
        expected.sort_by(|a, b| a.uid.object_id().cmp(b.uid.object_id()));
        assert!(!expected.is_empty());
        for limit in [1, 3, 100] {
            let mut scan = Scan {
                template: template.clone(),
                window,
                after: None,
                limit,
            };
            let mut pages: Vec<StoredRow> = Vec::new();
            loop {
                let page = store.rows().scan(&scan).await.unwrap();
                assert!(page.len() <= limit);
                let Some(last) = page.last() else { break };
                scan.after = Some(last.meta.uid.object_id().clone());
                pages.extend(page);
            }
            let read: Vec<_> = pages.iter().map(|row| row.meta.clone()).collect();
            assert_eq!(read, expected);
            let gone = pages.iter().filter(|row| row.deleted.is_some()).count();
            let has_gone = expected.contains(&shown(probe, &meta(8, 1)));
            assert_eq!(gone, usize::from(has_gone), "tombstones included");
        }
    }
    let nowhere = Scan {
        after: Some(ObjectId::new("~")),
        limit: 10,
        ..Scan::default()
    };
    assert!(store.rows().scan(&nowhere).await.unwrap().is_empty());
}

pub async fn the_newest_composition_of_a_template_is_found(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let other = TemplateId::new("Laboratory.v2");
    let of_other = Meta {
        template: other.clone(),
        ..meta(9, 1)
    };
    let only_gone = Meta {
        template: TemplateId::new("gone"),
        ..meta(8, 1)
    };
    let asked = [
        template(),
        other.clone(),
        only_gone.template.clone(),
        TemplateId::new("never"),
    ];
    assert!(store.rows().newest(&asked).await.unwrap().is_empty());
    let first = page(probe)
        .row(meta(2, 1), A)
        .row(meta(5, 1), A)
        .row(meta(3, 1), A)
        .row(of_other.clone(), A)
        .row(only_gone.clone(), A)
        .commit(&*store, &slice)
        .await;
    let newest = store.rows().newest(&asked).await.unwrap();
    assert_eq!(newest.len(), 3);
    assert_eq!(newest[&template()], meta(5, 1).committed);
    page(probe)
        .delete(meta(5, 1), at(90), DeleteReason::Deleted)
        .delete(only_gone, at(90), DeleteReason::Deleted)
        .commit(&*store, &first)
        .await;
    let newest = store.rows().newest(&asked).await.unwrap();
    let expected = [
        (template(), meta(3, 1).committed),
        (other, of_other.committed),
    ];
    assert_eq!(newest, HashMap::from(expected));
    assert!(store.rows().newest(&[]).await.unwrap().is_empty());
}

pub async fn an_erased_ehr_leaves_no_row(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    // Objects 1, 4 and 7 share an EHR.
    let draft = (1..=7).fold(page(probe), |page, number| page.row(meta(number, 1), A));
    let first = draft.commit(&*store, &slice).await;
    page(probe)
        .delete(meta(7, 1), at(90), DeleteReason::Deleted)
        .commit(&*store, &first)
        .await;
    let ehr = probe.keys().key(&meta(1, 1)).ehr;
    assert_eq!(store.rows().erase(&ehr).await.unwrap(), 3);
    assert_eq!(store.rows().erase(&ehr).await.unwrap(), 0);
    let left = rows(probe).await;
    assert_eq!(left.len(), 4);
    assert!(left.iter().all(|row| row.meta.ehr != ehr));
    assert_eq!(
        store.rows().erase(&EhrId::new("nobody's")).await.unwrap(),
        0
    );
}
