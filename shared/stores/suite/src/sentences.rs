//! The sentences of the port's comments, one test each. Every test gets an empty store of its own.
#![allow(missing_docs, reason = "the names are the sentences")]

use std::collections::HashMap;
use std::sync::Arc;

use atlas_engine::model::{
    Committed, Counts, Format, Holding, Known, Mode, Origin, Outcome, QuarantineFilter,
    Quarantined, Reason, Record, Request, Run, Selection, SelectionKey, Slice, SliceKind,
    SliceState, StoredTemplate, Watermark, Window,
};
use atlas_engine::ports::Store;
use atlas_openehr::id::{EhrId, ObjectVersion, TemplateId, VersionUid};
use futures::future::join_all;

use crate::fixture::{Draft, RUN, at, begin, meta, object, selection, slice, template};
use crate::value::equal_texts;
use crate::{Probe, StoredRow};

const A: &str = r#"{"systolic":120}"#;
const B: &str = r#"{"systolic":121}"#;

async fn only_row(probe: &dyn Probe) -> StoredRow {
    let mut rows = probe.rows().await;
    assert_eq!(rows.len(), 1, "one composition is in the store");
    rows.remove(0)
}

async fn quarantine(store: &dyn Store) -> Vec<Quarantined> {
    store
        .quarantined(&QuarantineFilter::default())
        .await
        .unwrap()
}

fn written(count: u64) -> Counts {
    Counts {
        read: count,
        written: count,
        ..Counts::default()
    }
}

fn unchanged(count: u64) -> Counts {
    Counts {
        read: count,
        unchanged: count,
        ..Counts::default()
    }
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
    Draft::new()
        .row(meta(1, 1), A)
        .commit(&*store, &slice)
        .await;
    for store in &handles {
        store.prepare().await.unwrap();
    }
    assert_eq!(
        only_row(probe).await.version,
        1,
        "preparing again loses nothing"
    );
}

pub async fn an_older_version_never_replaces_a_newer_one(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = Draft::new()
        .row(meta(1, 2), A)
        .commit(&*store, &slice)
        .await;
    let second = Draft::new()
        .row(meta(1, 1), B)
        .commit(&*store, &first)
        .await;
    let row = only_row(probe).await;
    assert_eq!((row.version, row.content.contains("120")), (2, true));
    assert_eq!(row.composition_uid, meta(1, 2).uid.as_str());
    assert_eq!(second.counts.since(&first.counts), unchanged(1));
}

pub async fn a_newer_version_replaces_an_older_one(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = Draft::new()
        .row(meta(1, 9), A)
        .commit(&*store, &slice)
        .await;
    let second = Draft::new()
        .row(meta(1, 10), B)
        .commit(&*store, &first)
        .await;
    let row = only_row(probe).await;
    assert_eq!(row.id, object(1).as_str());
    assert_eq!(row.composition_uid, meta(1, 10).uid.as_str());
    assert_eq!((row.version, row.content.contains("121")), (10, true));
    assert_eq!(row.time_committed, meta(1, 10).committed);
    assert_eq!(second.counts.since(&first.counts), written(1));
}

pub async fn the_same_version_again_is_unchanged(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let page = || Draft::new().row(meta(1, 1), A).row(meta(2, 1), B);
    let first = page().commit(&*store, &slice).await;
    let before = probe.rows().await;
    let second = page().at(at(500)).commit(&*store, &first).await;
    assert_eq!(first.counts, written(2));
    assert_eq!(second.counts.since(&first.counts), unchanged(2));
    assert_eq!(probe.rows().await, before);
}

pub async fn the_same_version_with_another_content_or_format_is_replaced(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = Draft::new()
        .row(meta(1, 1), A)
        .commit(&*store, &slice)
        .await;
    let second = Draft::new()
        .row(meta(1, 1), B)
        .commit(&*store, &first)
        .await;
    assert_eq!(second.counts.since(&first.counts), written(1));
    let row = only_row(probe).await;
    assert!(row.content.contains("121"));

    let other = Draft {
        format: Format::Preserve,
        ..Draft::new().row(meta(1, 1), B)
    };
    let third = other.commit(&*store, &second).await;
    assert_eq!(third.counts.since(&second.counts), written(1));
    assert_eq!(only_row(probe).await.export_mode, "preserve");
}

pub async fn a_tombstone_gives_way_to_newer_versions_only(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = Draft::new()
        .row(meta(1, 2), A)
        .commit(&*store, &slice)
        .await;
    if !probe.tombstone(&object(1), at(50)).await {
        return;
    }
    let second = Draft::new()
        .row(meta(1, 2), B)
        .commit(&*store, &first)
        .await;
    assert_eq!(second.counts.since(&first.counts), unchanged(1));
    assert_eq!(only_row(probe).await.deleted_at, Some(at(50)));
    assert!(
        store.holdings().await.unwrap().is_empty(),
        "a tombstone is no holding"
    );
    let known = store.known(&[object(1)]).await.unwrap();
    assert_eq!(known.len(), 1, "a tombstone is known");

    let third = Draft::new()
        .row(meta(1, 3), B)
        .commit(&*store, &second)
        .await;
    assert_eq!(third.counts.since(&second.counts), written(1));
    let row = only_row(probe).await;
    assert_eq!((row.version, row.deleted_at), (3, None));
}

pub async fn a_commit_moves_its_slice(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let mut slice = slice("slice 1");
    slice.failure = Some("the server answered 503".to_owned());
    store
        .add_slices(std::slice::from_ref(&slice))
        .await
        .unwrap();

    let first = Draft::new()
        .row(meta(1, 1), A)
        .commit(&*store, &slice)
        .await;
    let expected = Slice {
        step: 4,
        cursor: Some(meta(1, 1).cursor()),
        counts: written(1),
        lease_until: Some(at(180)),
        failure: None,
        ..slice
    };
    assert_eq!(first, expected);
    assert_eq!(store.slice("slice 1").await.unwrap(), Some(expected));

    let last = Draft {
        state: SliceState::Done,
        lease_until: None,
        ..Draft::new().row(meta(2, 1), A)
    };
    let last = last.commit(&*store, &first).await;
    let expected = Slice {
        step: 5,
        cursor: Some(meta(2, 1).cursor()),
        counts: written(2),
        state: SliceState::Done,
        lease_until: None,
        owner: None,
        ..first
    };
    assert_eq!(last, expected);
    assert_eq!(store.slice("slice 1").await.unwrap(), Some(expected));
}

pub async fn an_empty_page_moves_its_slice_too(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let end = Draft {
        state: SliceState::Done,
        lease_until: None,
        ..Draft::new()
    };
    let after = end.commit(&*store, &slice).await;
    assert_eq!(
        (after.state, after.step, after.owner),
        (SliceState::Done, 4, None)
    );
    assert_eq!(after.counts, Counts::default());
    assert!(probe.rows().await.is_empty());
}

pub async fn the_same_commit_again_counts_nothing_twice(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let page = Draft {
        filtered: 3,
        ..Draft::new().row(meta(1, 1), A).reject(meta(2, 1))
    };
    let first = page.commit(&*store, &slice).await;
    let rows = probe.rows().await;
    let waiting = quarantine(&*store).await;
    // As if the answer had been lost: the worker still knows the slice as it was.
    let again = page.commit(&*store, &slice).await;
    assert_eq!(again, first);
    assert_eq!(store.slice(&slice.id).await.unwrap(), Some(first));
    assert_eq!(probe.rows().await, rows);
    assert_eq!(quarantine(&*store).await, waiting, "not even the tries");
}

pub async fn a_commit_under_an_old_fence_leaves_nothing(probe: &dyn Probe) {
    let store = probe.store();
    let frozen = begin(&*store).await;
    let taken = Slice {
        fence: frozen.fence + 1,
        owner: Some("worker 2".to_owned()),
        ..frozen.clone()
    };
    let taken = store.swap_slice(&frozen, &taken).await.unwrap().unwrap();

    let late = Draft::new().row(meta(1, 1), A).reject(meta(2, 1));
    assert_eq!(
        late.try_commit(&*store, &frozen).await.unwrap(),
        Committed::Lost
    );
    // Not even by a worker that has heard of the new step.
    let informed = Slice {
        step: taken.step,
        ..frozen
    };
    assert_eq!(
        late.try_commit(&*store, &informed).await.unwrap(),
        Committed::Lost
    );

    assert!(probe.rows().await.is_empty());
    assert!(quarantine(&*store).await.is_empty());
    assert_eq!(store.slice(&taken.id).await.unwrap(), Some(taken));
}

pub async fn a_commit_at_an_old_step_leaves_nothing(probe: &dyn Probe) {
    let store = probe.store();
    let old = begin(&*store).await;
    let first = Draft::new().row(meta(1, 1), A).commit(&*store, &old).await;
    let second = Draft::new()
        .row(meta(2, 1), A)
        .commit(&*store, &first)
        .await;

    let late = Draft::new().row(meta(3, 1), A);
    assert_eq!(
        late.try_commit(&*store, &old).await.unwrap(),
        Committed::Lost
    );
    assert_eq!(probe.rows().await.len(), 2);
    assert_eq!(store.slice(&old.id).await.unwrap(), Some(second));
}

pub async fn a_commit_for_a_slice_that_is_gone_is_lost(probe: &dyn Probe) {
    let store = probe.store();
    begin(&*store).await;
    let gone = slice("never added");
    let page = Draft::new().row(meta(1, 1), A);
    assert_eq!(
        page.try_commit(&*store, &gone).await.unwrap(),
        Committed::Lost
    );
    assert!(probe.rows().await.is_empty());
}

pub async fn counts_are_conserved(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = Draft::new()
        .row(meta(1, 1), A)
        .row(meta(2, 5), A)
        .commit(&*store, &slice)
        .await;
    let mixed = Draft {
        filtered: 7,
        ..Draft::new()
            .row(meta(1, 2), B)
            .row(meta(2, 4), B)
            .row(meta(3, 1), B)
            .reject(meta(4, 1))
            .reject(meta(5, 1))
    };
    let second = mixed.commit(&*store, &first).await;
    let expected = Counts {
        read: 12,
        written: 2,
        unchanged: 1,
        filtered: 7,
        quarantined: 2,
    };
    assert_eq!(second.counts.since(&first.counts), expected);
    assert!(second.counts.conserved());
    assert_eq!(
        store.slice(&slice.id).await.unwrap().unwrap().counts,
        second.counts
    );
}

pub async fn a_row_ends_the_quarantine_of_its_object(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = Draft::new()
        .reject(meta(1, 1))
        .reject(meta(2, 1))
        .reject(meta(3, 1))
        .commit(&*store, &slice)
        .await;
    let second = Draft::new()
        .row(meta(1, 1), A)
        .row(meta(2, 2), A)
        .commit(&*store, &first)
        .await;
    let waiting = quarantine(&*store).await;
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].meta, meta(3, 1));

    // A version that is in the store may still be refused, in another format for one. Read again, it is well again.
    let third = Draft::new()
        .reject(meta(1, 1))
        .commit(&*store, &second)
        .await;
    assert_eq!(quarantine(&*store).await.len(), 2);
    let fourth = Draft::new()
        .row(meta(1, 1), A)
        .commit(&*store, &third)
        .await;
    assert_eq!(fourth.counts.since(&third.counts), unchanged(1));
    assert_eq!(
        quarantine(&*store).await.len(),
        1,
        "a row that was there ends it too"
    );
}

pub async fn a_row_leaves_the_quarantine_of_a_newer_version(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = Draft::new()
        .reject(meta(1, 3))
        .commit(&*store, &slice)
        .await;
    Draft::new()
        .row(meta(1, 2), A)
        .commit(&*store, &first)
        .await;
    let waiting = quarantine(&*store).await;
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].meta, meta(1, 3));
    assert_eq!(only_row(probe).await.version, 2);
}

pub async fn a_rejected_row_is_counted_up_under_its_first_date(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let mut stands = slice;
    for now in [100, 200, 300] {
        let page = Draft::new().reject(meta(1, 1)).at(at(now));
        stands = page.commit(&*store, &stands).await;
    }
    let waiting = quarantine(&*store).await;
    let expected = Quarantined {
        meta: meta(1, 1),
        reason: Reason::Unreadable,
        detail: "the server answered 500".to_owned(),
        run: RUN.to_owned(),
        since: at(100),
        tried: at(300),
        tries: 3,
    };
    assert_eq!(waiting, [expected]);
    assert_eq!(stands.counts.quarantined, 3);
}

pub async fn a_rejected_row_replaces_the_entry_of_an_older_version_only(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = Draft::new()
        .reject(meta(1, 1))
        .at(at(100))
        .commit(&*store, &slice)
        .await;
    let second = Draft::new()
        .reject(meta(1, 3))
        .at(at(200))
        .commit(&*store, &first)
        .await;
    let newest = quarantine(&*store).await;
    assert_eq!(newest.len(), 1);
    assert_eq!(newest[0].meta, meta(1, 3));
    assert_eq!(
        (newest[0].since, newest[0].tries),
        (at(200), 1),
        "another version, another story"
    );

    Draft::new()
        .reject(meta(1, 2))
        .at(at(300))
        .commit(&*store, &second)
        .await;
    assert_eq!(quarantine(&*store).await, newest);
}

pub async fn a_rejected_row_that_the_store_has_overtaken_leaves_no_entry(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = Draft::new()
        .row(meta(1, 2), A)
        .commit(&*store, &slice)
        .await;
    let second = Draft::new()
        .reject(meta(1, 1))
        .commit(&*store, &first)
        .await;
    assert!(quarantine(&*store).await.is_empty());
    assert!(second.counts.conserved());
    assert_eq!(only_row(probe).await.version, 2);
}

pub async fn the_quarantine_is_filtered_and_the_longest_untried_come_first(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let mut other = meta(4, 1);
    other.template = TemplateId::new("Laboratory.v2");
    let mut stands = slice;
    for (rejected, now) in [(meta(1, 1), 300), (meta(2, 1), 100), (other.clone(), 200)] {
        let page = Draft::new().reject(rejected).at(at(now));
        stands = page.commit(&*store, &stands).await;
    }
    let ask = async |filter: QuarantineFilter| -> Vec<_> {
        let entries = store.quarantined(&filter).await.unwrap();
        entries.into_iter().map(|entry| entry.meta).collect()
    };
    let all = QuarantineFilter::default();
    assert_eq!(
        ask(all.clone()).await,
        [meta(2, 1), other.clone(), meta(1, 1)]
    );
    let limited = QuarantineFilter {
        limit: Some(2),
        ..all.clone()
    };
    assert_eq!(ask(limited).await, [meta(2, 1), other.clone()]);
    let by_template = QuarantineFilter {
        template: Some(template()),
        ..all.clone()
    };
    assert_eq!(ask(by_template).await, [meta(2, 1), meta(1, 1)]);
    let by_time = QuarantineFilter {
        tried_before: Some(at(300)),
        ..all.clone()
    };
    assert_eq!(ask(by_time).await, [meta(2, 1), other.clone()]);
    let by_object = QuarantineFilter {
        object: Some(object(1)),
        ..all.clone()
    };
    assert_eq!(ask(by_object).await, [meta(1, 1)]);
    let nothing = QuarantineFilter {
        object: Some(object(1)),
        tried_before: Some(at(300)),
        ..all
    };
    assert!(ask(nothing).await.is_empty());
}

pub async fn a_second_hold_is_refused_until_the_first_ends(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let other = probe.another().await;
    let hold = store.hold("export").await.unwrap();
    assert!(hold.is_some());
    assert!(
        other.hold("export").await.unwrap().is_none(),
        "another process is refused"
    );
    assert!(
        store.hold("export").await.unwrap().is_none(),
        "so is the same one"
    );
    drop(hold);
    let hold = other.hold("export").await.unwrap();
    assert!(hold.is_some(), "it ended with the value");
    assert!(store.hold("export").await.unwrap().is_none());
}

pub async fn holds_of_different_names_do_not_meet(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let one = store.hold("export 1/2").await.unwrap();
    let two = store.hold("export 1.2").await.unwrap();
    assert!(one.is_some() && two.is_some());
}

pub async fn watermarks_never_go_back(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let other = TemplateId::new("Laboratory.v2");
    let watermark = |template: &TemplateId, until, late_checked_until| Watermark {
        template: template.clone(),
        until: at(until),
        late_checked_until: at(late_checked_until),
    };
    assert!(store.watermarks(&selection()).await.unwrap().is_empty());
    for (until, late_checked_until) in [(100, 10), (80, 20), (100, 20), (90, 5)] {
        let raise = [
            watermark(&template(), until, late_checked_until),
            watermark(&other, until / 2, late_checked_until / 2),
        ];
        store.raise_watermarks(&selection(), &raise).await.unwrap();
    }
    store.raise_watermarks(&selection(), &[]).await.unwrap();
    let mut stands = store.watermarks(&selection()).await.unwrap();
    stands.sort_by(|a, b| a.template.cmp(&b.template));
    assert_eq!(
        stands,
        [watermark(&other, 50, 10), watermark(&template(), 100, 20)]
    );
}

pub async fn a_forgotten_watermark_is_gone_and_the_others_stay(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let other = TemplateId::new("other");
    let watermark = |template: &TemplateId| Watermark {
        template: template.clone(),
        until: at(100),
        late_checked_until: at(20),
    };
    let both = [watermark(&other), watermark(&template())];
    store.raise_watermarks(&selection(), &both).await.unwrap();
    for _ in 0..2 {
        let forget = [template()];
        store
            .forget_watermarks(&selection(), &forget)
            .await
            .unwrap();
    }
    let stands = store.watermarks(&selection()).await.unwrap();
    assert_eq!(stands, [watermark(&other)]);
}

pub async fn the_watermarks_and_slices_of_another_format_are_forgotten(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let key = |format| SelectionKey(SelectionKey::prefix(format) + "0123456789abcdef");
    let formats = [Format::Canonical, Format::Preserve, Format::Flatten];
    for format in formats {
        let watermark = Watermark {
            template: template(),
            until: at(100),
            late_checked_until: at(20),
        };
        store
            .raise_watermarks(&key(format), &[watermark])
            .await
            .unwrap();
        let slice = Slice {
            id: format.name().to_owned(),
            selection: key(format),
            ..slice("any")
        };
        store.add_slices(&[slice]).await.unwrap();
    }
    store.keep_format(Format::Preserve).await.unwrap();
    for format in formats {
        let kept = usize::from(format == Format::Preserve);
        let watermarks = store.watermarks(&key(format)).await.unwrap();
        let slices = store.slices(&key(format)).await.unwrap();
        assert_eq!((watermarks.len(), slices.len()), (kept, kept), "{format:?}");
    }
}

pub async fn watermarks_of_different_selections_are_apart(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let other = SelectionKey("ffffffffffffffff".to_owned());
    let watermark = |seconds| Watermark {
        template: template(),
        until: at(seconds),
        late_checked_until: at(seconds),
    };
    store
        .raise_watermarks(&selection(), &[watermark(100)])
        .await
        .unwrap();
    store
        .raise_watermarks(&other, &[watermark(7)])
        .await
        .unwrap();
    assert_eq!(
        store.watermarks(&selection()).await.unwrap(),
        [watermark(100)]
    );
    assert_eq!(store.watermarks(&other).await.unwrap(), [watermark(7)]);
}

pub async fn a_slice_that_is_there_is_not_added_again(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let moved = Draft::new()
        .row(meta(1, 1), A)
        .commit(&*store, &slice)
        .await;
    let new = crate::fixture::slice("slice 2");
    store.add_slices(&[slice, new.clone()]).await.unwrap();
    assert_eq!(store.slice(&moved.id).await.unwrap(), Some(moved));
    assert_eq!(store.slice(&new.id).await.unwrap(), Some(new));
    assert_eq!(store.slice("slice 3").await.unwrap(), None);
}

pub async fn slices_come_by_template_and_window(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let make = |id: &str, template: &str, from, to| Slice {
        template: TemplateId::new(template),
        window: Window {
            from: at(from),
            to: at(to),
        },
        ..slice(id)
    };
    let ordered = [
        make("9", "Laboratory.v2", 0, 5),
        make("3", "Laboratory.v2", 5, 9),
        make("7", "Vital signs.v1", 0, 3),
        make("1", "Vital signs.v1", 3, 4),
        make("4", "apgar", 0, 9),
    ];
    let mut added: Vec<Slice> = ordered.to_vec();
    added.rotate_left(2);
    added.push(Slice {
        selection: SelectionKey("ffffffffffffffff".to_owned()),
        ..make("0", "apgar", 0, 9)
    });
    store.add_slices(&added).await.unwrap();
    assert_eq!(store.slices(&selection()).await.unwrap(), ordered);
}

pub async fn a_slice_comes_back_as_it_was_added(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let counts = Counts {
        read: 10,
        written: 4,
        unchanged: 3,
        filtered: 2,
        quarantined: 1,
    };
    let full = Slice {
        kind: SliceKind::Compare,
        state: SliceState::Failed,
        cursor: Some(meta(1, 1).cursor()),
        counts,
        failure: Some("the server answered 500 – five times".to_owned()),
        ..slice("full")
    };
    let bare = Slice {
        kind: SliceKind::Retry,
        owner: None,
        lease_until: None,
        ..slice("bare")
    };
    store
        .add_slices(&[full.clone(), bare.clone()])
        .await
        .unwrap();
    assert_eq!(store.slice("full").await.unwrap(), Some(full));
    assert_eq!(store.slice("bare").await.unwrap(), Some(bare));
}

pub async fn a_swap_of_a_slice_that_moved_on_is_refused(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let taken = Slice {
        fence: slice.fence + 1,
        owner: Some("worker 2".to_owned()),
        ..slice.clone()
    };
    let taken = store.swap_slice(&slice, &taken).await.unwrap().unwrap();
    assert_eq!((taken.step, taken.fence), (slice.step + 1, slice.fence + 1));
    let late = Slice {
        state: SliceState::Failed,
        ..slice.clone()
    };
    assert_eq!(store.swap_slice(&slice, &late).await.unwrap(), None);
    let unknown = crate::fixture::slice("never added");
    assert_eq!(store.swap_slice(&unknown, &unknown).await.unwrap(), None);
    assert_eq!(store.slice(&slice.id).await.unwrap(), Some(taken));
}

pub async fn a_swap_repeated_after_a_lost_answer_answers_the_same(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let after = Slice {
        // Whatever it says, the step goes up by one.
        step: 99,
        state: SliceState::Failed,
        owner: None,
        lease_until: None,
        failure: Some("gave up".to_owned()),
        ..slice.clone()
    };
    let first = store.swap_slice(&slice, &after).await.unwrap().unwrap();
    assert_eq!(
        first,
        Slice {
            step: slice.step + 1,
            ..after.clone()
        }
    );
    let again = store.swap_slice(&slice, &after).await.unwrap();
    assert_eq!(again, Some(first));
}

pub async fn of_many_workers_one_gets_the_slice(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let handles = [probe.store(), probe.another().await];
    let tries = (0..10_usize).map(|worker| {
        let (store, slice) = (Arc::clone(&handles[worker % 2]), slice.clone());
        tokio::spawn(async move {
            let taken = Slice {
                fence: slice.fence + 1,
                owner: Some(format!("worker {worker}")),
                ..slice.clone()
            };
            store.swap_slice(&slice, &taken).await.unwrap()
        })
    });
    let taken: Vec<Slice> = join_all(tries)
        .await
        .into_iter()
        .filter_map(|done| done.unwrap())
        .collect();
    assert_eq!(taken.len(), 1, "exactly one worker has it");
    assert_eq!(
        store.slice(&slice.id).await.unwrap().as_ref(),
        taken.first()
    );
}

pub async fn only_finished_slices_are_removed(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let make = |id: &str, state| Slice { state, ..slice(id) };
    let slices = [
        make("done", SliceState::Done),
        make("open", SliceState::Open),
        make("failed", SliceState::Failed),
        make("also done", SliceState::Done),
    ];
    store.add_slices(&slices).await.unwrap();
    let reached = Watermark {
        template: template(),
        until: slices[0].window.to,
        late_checked_until: slices[0].window.to,
    };
    store
        .raise_watermarks(&selection(), &[reached])
        .await
        .unwrap();
    let ids = ["done", "open", "failed", "never added"].map(str::to_owned);
    store.remove_slices(&ids).await.unwrap();
    store.remove_slices(&ids).await.unwrap();
    let mut left: Vec<String> = store
        .slices(&selection())
        .await
        .unwrap()
        .into_iter()
        .map(|slice| slice.id)
        .collect();
    left.sort();
    assert_eq!(left, ["also done", "failed", "open"]);
}

pub async fn known_is_the_newest_of_store_and_quarantine(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = Draft::new()
        .row(meta(1, 2), A)
        .row(meta(2, 10), A)
        .reject(meta(3, 1))
        .commit(&*store, &slice)
        .await;
    Draft::new()
        .reject(meta(1, 3))
        .reject(meta(2, 9))
        .commit(&*store, &first)
        .await;
    let asked = [object(1), object(2), object(3), object(4)];
    let known = store.known(&asked).await.unwrap();
    let entry = |number, version| {
        let object_id = object(number);
        let version = ObjectVersion {
            object_id: object_id.clone(),
            version,
        };
        (object_id, Known { version })
    };
    let expected: HashMap<_, _> = [entry(1, 3), entry(2, 10), entry(3, 1)].into();
    assert_eq!(known, expected);
    assert!(store.known(&[]).await.unwrap().is_empty());
}

pub async fn holdings_count_by_template(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    assert!(store.holdings().await.unwrap().is_empty());
    let mut other = meta(3, 1);
    other.template = TemplateId::new("Laboratory.v2");
    let page = Draft::new()
        .row(meta(2, 2), A)
        .row(meta(1, 1), A)
        .row(other.clone(), A)
        .reject(meta(4, 1));
    page.commit(&*store, &slice).await;
    let mut holdings = store.holdings().await.unwrap();
    holdings.sort_by(|a, b| a.template.cmp(&b.template));
    let expected = [
        Holding {
            template: other.template,
            compositions: 1,
            newest: Some(other.committed),
        },
        Holding {
            template: template(),
            compositions: 2,
            newest: Some(meta(2, 2).committed),
        },
    ];
    assert_eq!(holdings, expected);
}

pub async fn runs_come_newest_first_and_are_replaced(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let begun = |id: &str, started| Run {
        id: id.to_owned(),
        origin: Origin::Timer,
        request: None,
        selection: selection(),
        mode: Mode::Incremental,
        started: at(started),
        ended: None,
        cut: None,
        outcome: None,
        counts: Counts::default(),
        failure: None,
    };
    let runs = [begun("c", 10), begun("a", 30), begun("b", 20)];
    for run in &runs {
        store.save_run(run).await.unwrap();
    }
    let ended = Run {
        mode: Mode::Full,
        origin: Origin::OnDemand,
        request: Some(Request {
            mode: Mode::Full,
            templates: vec![template()],
            selection: Selection {
                ehrs: vec![meta(1, 1).ehr],
                from: Some(at(3)),
                to: None,
                format: Format::Canonical,
            },
        }),
        failure: Some("no such template".to_owned()),
        ended: Some(at(90)),
        cut: Some(at(80)),
        outcome: Some(Outcome::Partial),
        counts: Counts {
            read: 15,
            written: 5,
            unchanged: 4,
            filtered: 3,
            quarantined: 3,
        },
        ..begun("b", 20)
    };
    store.save_run(&ended).await.unwrap();
    store.save_run(&ended).await.unwrap();
    assert_eq!(
        store.runs(10).await.unwrap(),
        [begun("a", 30), ended.clone(), begun("c", 10)]
    );
    assert_eq!(store.runs(2).await.unwrap(), [begun("a", 30), ended]);
    for outcome in [
        Outcome::Complete,
        Outcome::Interrupted,
        Outcome::Failed,
        Outcome::Cancelled,
    ] {
        let run = Run {
            outcome: Some(outcome),
            ..begun("d", 40)
        };
        store.save_run(&run).await.unwrap();
        assert_eq!(store.runs(1).await.unwrap(), [run]);
    }
}

fn bare_run(id: &str, origin: Origin, started: u64, ended: Option<u64>) -> Run {
    Run {
        id: id.to_owned(),
        origin,
        request: None,
        selection: selection(),
        mode: Mode::Incremental,
        started: at(started),
        ended: ended.map(at),
        cut: None,
        outcome: None,
        counts: Counts::default(),
        failure: None,
    }
}

pub async fn a_run_is_added_once_and_found_by_its_id(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let first = bare_run("a", Origin::OnDemand, 1, None);
    let second = bare_run("a", Origin::OnDemand, 2, Some(3));
    assert!(store.add_run(&first).await.unwrap());
    assert!(!store.add_run(&second).await.unwrap());
    assert_eq!(store.run("a").await.unwrap(), Some(first));
    assert_eq!(store.run("b").await.unwrap(), None);
}

pub async fn unfinished_runs_come_by_origin_oldest_first(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    for run in [
        bare_run("young", Origin::Timer, 30, None),
        bare_run("ended", Origin::Timer, 20, Some(25)),
        bare_run("old", Origin::Timer, 10, None),
        bare_run("asked for", Origin::OnDemand, 5, None),
        bare_run("by hand", Origin::CommandLine, 5, None),
    ] {
        store.save_run(&run).await.unwrap();
    }
    let ids = async |origin| {
        let runs = store.unfinished_runs(origin).await.unwrap();
        runs.into_iter().map(|run| run.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(Origin::Timer).await, ["old", "young"]);
    assert_eq!(ids(Origin::OnDemand).await, ["asked for"]);
    assert_eq!(ids(Origin::CommandLine).await, ["by hand"]);
}

pub async fn slices_of_a_cancelled_run_are_dropped_whatever_their_state(probe: &dyn Probe) {
    let store = probe.store();
    let taken = begin(&*store).await;
    let failed = Slice {
        state: SliceState::Failed,
        ..slice("failed")
    };
    store.add_slices(&[failed, slice("other")]).await.unwrap();
    let dropped = [taken.id.clone(), "failed".to_owned(), "nobody".to_owned()];
    store.drop_slices(&dropped).await.unwrap();
    store.drop_slices(&dropped).await.unwrap();
    let left = store.slices(&selection()).await.unwrap();
    assert_eq!(left, [slice("other")]);
    let late = Draft::new().try_commit(&*store, &taken).await.unwrap();
    assert_eq!(late, Committed::Lost);
}

pub async fn a_control_record_is_changed_by_whoever_saw_it_last(probe: &dyn Probe) {
    let (store, other) = (probe.store(), probe.another().await);
    store.prepare().await.unwrap();
    let unwritten = Record::new("slot/000");
    let mine = Record {
        owner: Some("worker 1".to_owned()),
        until: Some(at(90)),
        value: r#"{"allowed":2}"#.to_owned(),
        ..unwritten.clone()
    };
    let first = store.swap_record(&unwritten, &mine).await.unwrap().unwrap();
    assert_eq!(
        first,
        Record {
            step: 1,
            ..mine.clone()
        }
    );
    let repeated = store.swap_record(&unwritten, &mine).await.unwrap();
    assert_eq!(repeated, Some(first.clone()), "its answer was lost");
    let theirs = Record {
        owner: Some("worker 2".to_owned()),
        ..mine
    };
    assert_eq!(other.swap_record(&unwritten, &theirs).await.unwrap(), None);
    let second = other.swap_record(&first, &theirs).await.unwrap().unwrap();
    assert_eq!(second.step, 2);
    assert_eq!(store.swap_record(&first, &unwritten).await.unwrap(), None);
    let released = store
        .swap_record(&second, &unwritten)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (released.step, released.owner, released.until),
        (3, None, None)
    );
    for name in ["slot/001", "slots", "other"] {
        let record = Record::new(name);
        store.swap_record(&record, &record).await.unwrap().unwrap();
    }
    let names = async |prefix| {
        let records = other.records(prefix).await.unwrap();
        records
            .into_iter()
            .map(|record| record.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names("slot/").await, ["slot/000", "slot/001"]);
    assert_eq!(names("slot").await, ["slot/000", "slot/001", "slots"]);
    assert_eq!(names("nobody").await, [""; 0]);
}

pub async fn of_many_workers_one_gets_a_control_record(probe: &dyn Probe) {
    let handles = [probe.store(), probe.another().await];
    handles[0].prepare().await.unwrap();
    for round in 0..3 {
        let name = "planner";
        let stands = handles[0].records(name).await.unwrap().pop();
        let stands = stands.unwrap_or_else(|| Record::new(name));
        assert_eq!(stands.step, round);
        let tries = (0..10_usize).map(|worker| {
            let (store, stands) = (Arc::clone(&handles[worker % 2]), stands.clone());
            tokio::spawn(async move {
                let mine = Record {
                    owner: Some(format!("worker {worker}")),
                    ..stands.clone()
                };
                store.swap_record(&stands, &mine).await.unwrap()
            })
        });
        let taken = join_all(tries).await;
        let taken = taken.into_iter().filter_map(|done| done.unwrap()).count();
        assert_eq!(taken, 1, "exactly one worker has it");
    }
}

pub async fn the_clock_of_a_store_is_the_same_for_every_process(probe: &dyn Probe) {
    let (store, other) = (probe.store(), probe.another().await);
    store.prepare().await.unwrap();
    let (first, second) = (store.now().await.unwrap(), other.now().await.unwrap());
    assert_eq!(first.is_some(), second.is_some());
    assert!(first <= second);
}

pub async fn web_templates_come_back_as_they_were_saved(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    assert_eq!(store.template(&template()).await.unwrap(), None);
    let mut saved = StoredTemplate {
        template: template(),
        digest: "00".repeat(32),
        web_template: "{ \"webTemplate\" :\n {\"b\":1.0, \"a\":\"°C\"} }".to_owned(),
        names: String::new(),
        fetched: at(0),
    };
    store.save_template(&saved).await.unwrap();
    assert_eq!(
        store.template(&template()).await.unwrap().as_ref(),
        Some(&saved)
    );
    saved.names = r#"{"a/b|c":"a__b_c"}"#.to_owned();
    saved.fetched = at(1);
    store.save_template(&saved).await.unwrap();
    assert_eq!(store.template(&template()).await.unwrap(), Some(saved));
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
    let mut page = Draft::new();
    for (number, content) in (1..).zip(contents) {
        page = page.row(meta(number, 1), content);
    }
    page.commit(&*store, &slice).await;
    let rows = probe.rows().await;
    assert_eq!(rows.len(), contents.len());
    for (row, (new, content)) in rows.iter().zip(page.batch.rows.iter().zip(contents)) {
        assert!(
            equal_texts(&row.content, content),
            "wrote {content}\nread  {}",
            row.content
        );
        assert_eq!(row.checksum, new.checksum.to_string());
        assert_eq!(row.time_committed, new.meta.committed);
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
    let page = Draft::new().row(odd.clone(), A).reject({
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
    let row = only_row(probe).await;
    assert_eq!(
        (row.composition_uid.as_str(), row.version),
        (odd.uid.as_str(), u32::MAX)
    );
    assert_eq!(row.id, odd.uid.object_id().as_str());
    let known = store.known(&[odd.uid.object_id().clone()]).await.unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!(quarantine(&*store).await[0].meta, page.rejected[0].meta);
    assert_eq!(store.holdings().await.unwrap()[0].template, odd.template);
}

pub async fn pages_of_500_large_rows_arrive_whole(probe: &dyn Probe) {
    let store = probe.store();
    let mut slice = begin(&*store).await;
    let filler = "blood pressure ".repeat(700);
    for page_number in 0..3 {
        let mut page = Draft::new();
        for number in 0..500 {
            let number = page_number * 500 + number;
            let content = format!(r#"{{"number":{number},"text":"{filler}"}}"#);
            page = page.row(meta(number, 1), &content);
        }
        slice = page.commit(&*store, &slice).await;
    }
    assert_eq!(slice.counts, written(1500));
    let rows = probe.rows().await;
    assert_eq!(rows.len(), 1500);
    for (number, row) in rows.iter().enumerate() {
        let content = format!(r#"{{"number":{number},"text":"{filler}"}}"#);
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
    handles[0].add_slices(&slices).await.unwrap();
    let workers = (0..8_u32).zip(slices).map(|(worker, mut slice)| {
        let store = Arc::clone(&handles[worker as usize % 2]);
        tokio::spawn(async move {
            for page in 0..5 {
                let mut draft = Draft::new();
                for row in 0..20 {
                    draft = draft.row(meta(worker * 100 + page * 20 + row, 1), A);
                }
                slice = draft.commit(&*store, &slice).await;
            }
            slice
        })
    });
    for done in join_all(workers).await {
        assert_eq!(done.unwrap().counts, written(100));
    }
    assert_eq!(probe.rows().await.len(), 800);
}

pub async fn parallel_commits_of_the_same_objects_keep_the_newest(probe: &dyn Probe) {
    let first = probe.store();
    first.prepare().await.unwrap();
    let handles = [first, probe.another().await];
    let slices: Vec<Slice> = (0..6)
        .map(|number| slice(&format!("slice {number}")))
        .collect();
    handles[0].add_slices(&slices).await.unwrap();
    let workers = (0..6_u32).zip(slices).map(|(worker, slice)| {
        let store = Arc::clone(&handles[worker as usize % 2]);
        tokio::spawn(async move {
            let mut draft = Draft::new();
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
    let rows = probe.rows().await;
    assert_eq!(rows.len(), 30);
    for row in rows {
        assert_eq!(row.version, 6);
        assert!(equal_texts(&row.content, r#"{"by":5}"#));
    }
}

pub async fn what_is_committed_is_there_for_every_other_process(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let page = Draft::new().row(meta(1, 1), A).reject(meta(2, 1));
    let after = page.commit(&*store, &slice).await;
    let other = probe.another().await;
    assert_eq!(other.slice(&slice.id).await.unwrap(), Some(after));
    assert_eq!(other.known(&[object(1), object(2)]).await.unwrap().len(), 2);
    assert_eq!(
        other.holdings().await.unwrap(),
        store.holdings().await.unwrap()
    );
    assert_eq!(quarantine(&*other).await, quarantine(&*store).await);
    assert_eq!(other.kind(), store.kind());
}
