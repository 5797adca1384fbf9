//! Slices: commits and swaps, steps, fences, leases and counts.
#![allow(missing_docs, reason = "the names are the sentences")]

use std::collections::BTreeMap;
use std::sync::Arc;

use atlas_engine::model::{
    Committed, Counts, Cursor, DeleteReason, Format, Meta, SelectionKey, Slice, SliceFilter,
    SliceKind, SliceState, SlicesOf, TemplateCounts, Totals, Watermark, Window,
};
use atlas_engine::ports::Store;
use atlas_openehr::id::TemplateId;
use futures::future::join_all;

use crate::Probe;
use crate::fixture::{
    Draft, at, begin, begin_with, filtered, inserted, meta, other_template, page, quarantined,
    rows, selection, shared, slice, template,
};

const A: &str = r#"{"systolic":120}"#;
const B: &str = r#"{"systolic":121}"#;

pub async fn a_commit_moves_its_slice(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let mut slice = slice("slice 1");
    slice.failure = Some("the server answered 503".to_owned());
    store
        .ledger()
        .add_slices(std::slice::from_ref(&slice))
        .await
        .unwrap();

    let first = page(probe).row(meta(1, 1), A).commit(&*store, &slice).await;
    let expected = Slice {
        step: 4,
        page: 1,
        cursor: Some(meta(1, 1).cursor()),
        counts: inserted(1),
        lease_until: Some(at(180)),
        moved: Some(at(100)),
        failure: None,
        ..slice
    };
    assert_eq!(first, expected);
    assert_eq!(
        store.ledger().slice("slice 1").await.unwrap(),
        Some(expected)
    );

    let last = Draft {
        state: SliceState::Done,
        lease_until: None,
        ..page(probe).row(meta(2, 1), A)
    };
    let last = last.commit(&*store, &first).await;
    let expected = Slice {
        step: 5,
        page: 2,
        cursor: Some(meta(2, 1).cursor()),
        counts: inserted(2),
        state: SliceState::Done,
        lease_until: None,
        owner: None,
        ..first
    };
    assert_eq!(last, expected);
    assert_eq!(
        store.ledger().slice("slice 1").await.unwrap(),
        Some(expected)
    );
}

pub async fn an_empty_page_moves_its_slice_too(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let end = Draft {
        state: SliceState::Done,
        lease_until: None,
        ..page(probe)
    };
    let after = end.commit(&*store, &slice).await;
    assert_eq!(
        (after.state, after.step, after.owner),
        (SliceState::Done, 4, None)
    );
    assert_eq!(after.counts, Counts::default());
    assert!(rows(probe).await.is_empty());
}

pub async fn the_same_commit_again_counts_nothing_twice(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let page = Draft {
        filtered: filtered(3),
        ..page(probe).row(meta(1, 1), A).reject(meta(2, 1))
    };
    let first = page.commit(&*store, &slice).await;
    let before = rows(probe).await;
    let waiting = quarantined(&*store).await;
    // As if the answer had been lost: the worker still knows the slice as it was.
    let again = page.commit(&*store, &slice).await;
    assert_eq!(again, first);
    assert_eq!(store.ledger().slice(&slice.id).await.unwrap(), Some(first));
    assert_eq!(rows(probe).await, before);
    assert_eq!(quarantined(&*store).await, waiting, "not even the tries");
}

pub async fn a_commit_under_an_old_fence_leaves_nothing(probe: &dyn Probe) {
    let store = probe.store();
    let frozen = begin(&*store).await;
    let taken = Slice {
        fence: frozen.fence + 1,
        owner: Some("worker 2".to_owned()),
        ..frozen.clone()
    };
    let taken = store
        .ledger()
        .swap_slice(&frozen, &taken)
        .await
        .unwrap()
        .unwrap();

    let late = page(probe).row(meta(1, 1), A).reject(meta(2, 1));
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

    assert!(rows(probe).await.is_empty());
    assert!(quarantined(&*store).await.is_empty());
    assert_eq!(store.ledger().slice(&taken.id).await.unwrap(), Some(taken));
}

pub async fn a_commit_at_an_old_step_leaves_nothing(probe: &dyn Probe) {
    let store = probe.store();
    let old = begin(&*store).await;
    let first = page(probe).row(meta(1, 1), A).commit(&*store, &old).await;
    let second = page(probe).row(meta(2, 1), A).commit(&*store, &first).await;

    let late = page(probe).row(meta(3, 1), A);
    assert_eq!(
        late.try_commit(&*store, &old).await.unwrap(),
        Committed::Lost
    );
    assert_eq!(rows(probe).await.len(), 2);
    assert_eq!(store.ledger().slice(&old.id).await.unwrap(), Some(second));
}

pub async fn a_commit_for_a_slice_that_is_gone_is_lost(probe: &dyn Probe) {
    let store = probe.store();
    begin(&*store).await;
    let gone = slice("never added");
    let page = page(probe).row(meta(1, 1), A);
    assert_eq!(
        page.try_commit(&*store, &gone).await.unwrap(),
        Committed::Lost
    );
    assert!(rows(probe).await.is_empty());
}

pub async fn a_page_counts_for_each_template_that_shares_its_slice(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin_with(&*store, shared(slice("shared"))).await;
    let ledger = store.ledger();
    let of_other = |number, version| Meta {
        template: other_template(),
        ..meta(number, version)
    };
    let first = page(probe)
        .row(meta(1, 1), A)
        .row(of_other(2, 1), A)
        .row(of_other(3, 4), A)
        .commit(&*store, &slice)
        .await;
    let second = Draft {
        filtered: BTreeMap::from([(template(), 2), (other_template(), 1)]),
        ..page(probe)
            .row(meta(1, 2), B)
            .row(of_other(2, 1), A)
            .reject(meta(4, 1))
            .reject(of_other(5, 1))
            // The copy holds a newer one.
            .reject(of_other(3, 3))
    };
    let second = second.commit(&*store, &first).await;
    let expected = [
        Counts {
            read: 6,
            written: 2,
            inserted: 2,
            unchanged: 2,
            filtered: 1,
            quarantined: 1,
            deleted: 0,
        },
        Counts {
            read: 5,
            written: 2,
            inserted: 1,
            unchanged: 0,
            filtered: 2,
            quarantined: 1,
            deleted: 0,
        },
    ];
    let of_members: Vec<Counts> = second.members.iter().map(|member| member.counts).collect();
    assert_eq!(of_members, expected);
    assert_eq!(second.counts, sum(expected));
    assert!(expected.iter().all(Counts::conserved));
    assert_eq!(ledger.slice("shared").await.unwrap(), Some(second.clone()));
    let by_template = [
        counts_of(&other_template(), expected[0]),
        counts_of(&template(), expected[1]),
    ];
    assert_eq!(counts(&*store).await, by_template);
    let done = Draft {
        state: SliceState::Done,
        lease_until: None,
        ..page(probe)
    };
    done.commit(&*store, &second).await;
    ledger.remove_slices(&["shared".to_owned()]).await.unwrap();
    assert_eq!(counts(&*store).await, by_template, "they stay");
}

pub async fn a_template_is_taken_out_of_a_slice_with_what_it_counted(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin_with(&*store, shared(slice("shared"))).await;
    let ledger = store.ledger();
    let first = page(probe).row(meta(1, 1), A).commit(&*store, &slice).await;
    let (rest, own) = first.without(&template()).unwrap();
    assert!(rest.without(&template()).is_none(), "once");
    ledger.add_slices(std::slice::from_ref(&own)).await.unwrap();
    let rest = ledger.swap_slice(&first, &rest).await.unwrap().unwrap();
    assert_eq!(rest.templates().collect::<Vec<_>>(), [&other_template()]);
    assert_eq!(own.templates().collect::<Vec<_>>(), [&template()]);
    assert_eq!(
        (own.window, own.expected, own.cursor.clone()),
        (slice.window, 20, None)
    );
    assert_eq!(ledger.slice(&own.id).await.unwrap(), Some(own));
    assert_eq!(
        counts(&*store).await[1],
        counts_of(&template(), inserted(1))
    );
}

pub async fn counts_are_conserved(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe)
        .row(meta(1, 1), A)
        .row(meta(2, 5), A)
        .row(meta(6, 1), A)
        .commit(&*store, &slice)
        .await;
    let mixed = Draft {
        filtered: filtered(7),
        ..page(probe)
            .row(meta(1, 2), B)
            .row(meta(2, 4), B)
            .row(meta(3, 1), B)
            .delete(meta(6, 1), at(60), DeleteReason::Deleted)
            .reject(meta(4, 1))
            .reject(meta(5, 1))
            // The copy holds a newer one.
            .reject(meta(2, 3))
    };
    let second = mixed.commit(&*store, &first).await;
    let expected = Counts {
        read: 14,
        written: 2,
        inserted: 1,
        unchanged: 2,
        filtered: 7,
        quarantined: 2,
        deleted: 1,
    };
    assert_eq!(second.counts.since(&first.counts), expected);
    assert!(second.counts.conserved());
    assert_eq!(
        store
            .ledger()
            .slice(&slice.id)
            .await
            .unwrap()
            .unwrap()
            .counts,
        second.counts
    );
}

pub async fn a_slice_that_is_there_is_not_added_again(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let moved = page(probe).row(meta(1, 1), A).commit(&*store, &slice).await;
    let new = crate::fixture::slice("slice 2");
    store
        .ledger()
        .add_slices(&[slice, new.clone()])
        .await
        .unwrap();
    assert_eq!(store.ledger().slice(&moved.id).await.unwrap(), Some(moved));
    assert_eq!(store.ledger().slice(&new.id).await.unwrap(), Some(new));
    assert_eq!(store.ledger().slice("slice 3").await.unwrap(), None);
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
    store.ledger().add_slices(&added).await.unwrap();
    assert_eq!(store.ledger().slices(&selection()).await.unwrap(), ordered);
}

/// Slices in every state that filters and totals tell apart, of two runs, selections and templates.
fn in_every_state() -> Vec<Slice> {
    let mut slices = Vec::new();
    let states = [
        (SliceState::Open, SliceKind::Read),
        (SliceState::Open, SliceKind::Retry),
        (SliceState::Done, SliceKind::Read),
        (SliceState::Done, SliceKind::Compare),
        (SliceState::Failed, SliceKind::Read),
    ];
    let leases = [
        (None, None),
        (Some("worker 1"), Some(at(90))),
        (Some("worker 2"), Some(at(110))),
        (Some("worker 3"), None),
    ];
    for (state, kind) in states {
        for (owner, lease_until) in leases {
            for sent_part in [0, 3, 4] {
                let number = slices.len() as u64;
                let with_page = number.is_multiple_of(5);
                let slice = Slice {
                    run: ["run a", "run b"][(number % 2) as usize].to_owned(),
                    selection: match number % 7 {
                        0 => SelectionKey("ffffffffffffffff".to_owned()),
                        _ => selection(),
                    },
                    template: TemplateId::new(
                        ["Vital signs.v1", "apgar"][(number % 3 / 2) as usize],
                    ),
                    kind,
                    window: Window {
                        from: at(1_000 - number % 11 * 50),
                        to: at(1_000 - number % 11 * 50 + 50),
                    },
                    state,
                    owner: owner.map(str::to_owned),
                    lease_until,
                    sent_part,
                    enqueued: (!number.is_multiple_of(4)).then(|| at(20 + number)),
                    moved: with_page.then(|| at(40 + number)),
                    counts: inserted(number),
                    failure: number.is_multiple_of(6).then(|| format!("reason {number}")),
                    ..slice(&format!("slice {}", number * 37 % 100))
                };
                slices.push(match kind == SliceKind::Read && number % 5 < 2 {
                    true => shared(slice),
                    false => slice,
                });
            }
        }
    }
    slices
}

pub async fn slices_are_found_by_what_is_to_be_done_with_them(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let slices = in_every_state();
    store.ledger().add_slices(&slices).await.unwrap();
    let (vital, apgar) = (TemplateId::new("Vital signs.v1"), TemplateId::new("apgar"));
    let (selection, now) = (&selection(), at(100));
    let read = |template, beyond| SliceFilter::Read {
        selection,
        template,
        beyond,
    };
    let together = |beyond| SliceFilter::ReadTogether { selection, beyond };
    let filters = [
        SliceFilter::Waiting { run: "run a", now },
        SliceFilter::Waiting {
            run: "run b",
            now: at(120),
        },
        SliceFilter::UnderWay { now },
        SliceFilter::UnderWay { now: at(120) },
        SliceFilter::Failed { selection },
        read(&vital, at(0)),
        read(&vital, at(800)),
        read(&apgar, at(0)),
        together(at(0)),
        together(at(700)),
    ];
    for filter in filters {
        let mut expected: Vec<Slice> = slices
            .iter()
            .filter(|slice| filter.takes(slice))
            .cloned()
            .collect();
        expected.sort_by_key(|slice| {
            let place = (slice.window.from, slice.window.to, slice.id.clone());
            match filter {
                SliceFilter::Waiting { .. } => (Some(slice.template.clone()), Some(place)),
                SliceFilter::Read { .. } | SliceFilter::ReadTogether { .. } => (None, Some(place)),
                _ => (Some(TemplateId::new(&slice.id)), None),
            }
        });
        assert!(expected.len() > 1, "{filter:?}");
        for limit in [1, 2, 1_000] {
            let found = store.ledger().find_slices(&filter, limit).await.unwrap();
            let of = expected.iter().take(limit).cloned().collect::<Vec<_>>();
            assert_eq!(found, of, "{filter:?} {limit}");
        }
    }
    let nobody = SliceFilter::Waiting { run: "run c", now };
    assert!(
        store
            .ledger()
            .find_slices(&nobody, 9)
            .await
            .unwrap()
            .is_empty()
    );
}

pub async fn slices_are_counted_by_how_they_stand(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let slices = in_every_state();
    store.ledger().add_slices(&slices).await.unwrap();
    let selection = selection();
    let none = SlicesOf::Run("run c");
    let all = [
        SlicesOf::Run("run a"),
        SlicesOf::Run("run b"),
        SlicesOf::Selection(&selection),
    ];
    for (of, now) in all
        .into_iter()
        .flat_map(|of| [(of, at(100)), (of, at(10_000))])
    {
        let mut expected = Totals::default();
        for slice in &slices {
            if of.takes(slice) {
                expected.add(slice, now);
            }
        }
        let found = store.ledger().slice_totals(of, now).await.unwrap();
        assert_eq!(found, expected, "{of:?}");
        assert_eq!(found.templates.len(), 3);
    }
    let found = store.ledger().slice_totals(none, at(100)).await.unwrap();
    assert_eq!(found, Totals::default());
}

pub async fn a_slice_comes_back_as_it_was_added(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let counts = Counts {
        read: 24,
        written: 4,
        inserted: 3,
        unchanged: 8,
        filtered: 2,
        quarantined: 1,
        deleted: 9,
    };
    let full = Slice {
        kind: SliceKind::Compare,
        state: SliceState::Failed,
        page: 7,
        cursor: Some(Cursor {
            position: Some("2026-11-23T03:50:12.1166015Z".to_owned()),
            ..meta(1, 1).cursor()
        }),
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
        .ledger()
        .add_slices(&[full.clone(), bare.clone()])
        .await
        .unwrap();
    assert_eq!(store.ledger().slice("full").await.unwrap(), Some(full));
    assert_eq!(store.ledger().slice("bare").await.unwrap(), Some(bare));
}

pub async fn a_swap_of_a_slice_that_moved_on_is_refused(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let taken = Slice {
        fence: slice.fence + 1,
        owner: Some("worker 2".to_owned()),
        ..slice.clone()
    };
    let taken = store
        .ledger()
        .swap_slice(&slice, &taken)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((taken.step, taken.fence), (slice.step + 1, slice.fence + 1));
    let late = Slice {
        state: SliceState::Failed,
        ..slice.clone()
    };
    assert_eq!(
        store.ledger().swap_slice(&slice, &late).await.unwrap(),
        None
    );
    let unknown = crate::fixture::slice("never added");
    assert_eq!(
        store.ledger().swap_slice(&unknown, &unknown).await.unwrap(),
        None
    );
    assert_eq!(store.ledger().slice(&slice.id).await.unwrap(), Some(taken));
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
    let first = store
        .ledger()
        .swap_slice(&slice, &after)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        first,
        Slice {
            step: slice.step + 1,
            ..after.clone()
        }
    );
    let again = store.ledger().swap_slice(&slice, &after).await.unwrap();
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
            store.ledger().swap_slice(&slice, &taken).await.unwrap()
        })
    });
    let taken: Vec<Slice> = join_all(tries)
        .await
        .into_iter()
        .filter_map(|done| done.unwrap())
        .collect();
    assert_eq!(taken.len(), 1, "exactly one worker has it");
    assert_eq!(
        store.ledger().slice(&slice.id).await.unwrap().as_ref(),
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
    store.ledger().add_slices(&slices).await.unwrap();
    let reached = Watermark {
        template: template(),
        until: slices[0].window.to,
        late_checked_until: slices[0].window.to,
        position: None,
    };
    store
        .ledger()
        .raise_watermarks(&selection(), &[reached])
        .await
        .unwrap();
    let ids = ["done", "open", "failed", "never added"].map(str::to_owned);
    store.ledger().remove_slices(&ids).await.unwrap();
    store.ledger().remove_slices(&ids).await.unwrap();
    let mut left: Vec<String> = store
        .ledger()
        .slices(&selection())
        .await
        .unwrap()
        .into_iter()
        .map(|slice| slice.id)
        .collect();
    left.sort();
    assert_eq!(left, ["also done", "failed", "open"]);
}

pub async fn slices_of_a_cancelled_run_are_dropped_whatever_their_state(probe: &dyn Probe) {
    let store = probe.store();
    let taken = begin(&*store).await;
    let failed = Slice {
        state: SliceState::Failed,
        ..slice("failed")
    };
    store
        .ledger()
        .add_slices(&[failed, slice("other")])
        .await
        .unwrap();
    let dropped = [taken.id.clone(), "failed".to_owned(), "nobody".to_owned()];
    store.ledger().drop_slices(&dropped).await.unwrap();
    store.ledger().drop_slices(&dropped).await.unwrap();
    let left = store.ledger().slices(&selection()).await.unwrap();
    assert_eq!(left, [slice("other")]);
    let late = page(probe).try_commit(&*store, &taken).await.unwrap();
    assert_eq!(late, Committed::Lost);
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
            position: None,
        };
        store
            .ledger()
            .raise_watermarks(&key(format), &[watermark])
            .await
            .unwrap();
        let slice = Slice {
            id: format.name().to_owned(),
            selection: key(format),
            ..slice("any")
        };
        store.ledger().add_slices(&[slice]).await.unwrap();
    }
    store.ledger().keep_format(Format::Preserve).await.unwrap();
    for format in formats {
        let kept = usize::from(format == Format::Preserve);
        let watermarks = store.ledger().watermarks(&key(format)).await.unwrap();
        let slices = store.ledger().slices(&key(format)).await.unwrap();
        assert_eq!((watermarks.len(), slices.len()), (kept, kept), "{format:?}");
    }
}

pub async fn the_next_page_has_the_next_number_whatever_else_moves_the_step(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe).row(meta(1, 1), A).commit(&*store, &slice).await;
    let renewed = Slice {
        lease_until: Some(at(500)),
        ..first.clone()
    };
    let renewed = store
        .ledger()
        .swap_slice(&first, &renewed)
        .await
        .unwrap()
        .unwrap();
    let second = page(probe)
        .row(meta(2, 1), A)
        .commit(&*store, &renewed)
        .await;
    assert_eq!((second.step, second.page), (slice.step + 3, 2));
}

async fn counts(store: &dyn Store) -> Vec<TemplateCounts> {
    let mut counts = store.ledger().template_counts().await.unwrap();
    counts.sort_by(|a, b| a.template.cmp(&b.template));
    counts
}

fn counts_of(template: &TemplateId, counts: Counts) -> TemplateCounts {
    TemplateCounts {
        template: template.clone(),
        counts,
    }
}

fn some_counts(seed: u64) -> Counts {
    Counts {
        read: 6 * seed + 15,
        written: seed + 5,
        inserted: seed,
        unchanged: seed + 1,
        filtered: seed + 2,
        quarantined: seed + 3,
        deleted: 2 * seed + 4,
    }
}

fn sum(counts: impl IntoIterator<Item = Counts>) -> Counts {
    let mut all = Counts::default();
    for counts in counts {
        all += counts;
    }
    all
}

pub async fn counts_survive_the_removal_of_their_slices(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let ledger = store.ledger();
    assert!(counts(&*store).await.is_empty());
    let other = TemplateId::new("Laboratory.v2");
    let make = |id: &str, template: &TemplateId, state, seed| Slice {
        template: template.clone(),
        state,
        counts: some_counts(seed),
        ..slice(id)
    };
    let foreign = SelectionKey(SelectionKey::prefix(Format::Flatten) + "0123456789abcdef");
    let slices = [
        shared(make("shared", &template(), SliceState::Done, 7)),
        make("removed 1", &template(), SliceState::Done, 1),
        make("removed 2", &template(), SliceState::Done, 2),
        make("dropped", &template(), SliceState::Open, 3),
        make("stays", &template(), SliceState::Open, 4),
        make("of another template", &other, SliceState::Done, 5),
        Slice {
            selection: foreign,
            ..make("of another format", &other, SliceState::Failed, 6)
        },
    ];
    ledger.add_slices(&slices).await.unwrap();
    let expected = [
        counts_of(&other, sum([5, 6, 7].map(some_counts))),
        counts_of(&template(), sum([1, 2, 3, 4].map(some_counts))),
    ];
    assert_eq!(counts(&*store).await, expected);
    let removed = [
        "shared",
        "removed 1",
        "removed 2",
        "of another template",
        "stays",
    ];
    let removed = removed.map(str::to_owned);
    for _ in 0..2 {
        ledger.remove_slices(&removed).await.unwrap();
        assert_eq!(counts(&*store).await, expected);
    }
    for _ in 0..2 {
        ledger.drop_slices(&["dropped".to_owned()]).await.unwrap();
        assert_eq!(counts(&*store).await, expected);
    }
    ledger.keep_format(Format::Canonical).await.unwrap();
    ledger.keep_format(Format::Canonical).await.unwrap();
    assert_eq!(counts(&*store).await, expected);
    assert!(ledger.slice("of another format").await.unwrap().is_none());

    // Somebody counted anew: what slices that are still there have counted is added as before.
    ledger
        .set_template_counts(&other, &some_counts(9))
        .await
        .unwrap();
    ledger
        .set_template_counts(&template(), &Counts::default())
        .await
        .unwrap();
    let stays = ledger.slice("stays").await.unwrap();
    let left = stays.map(|slice| slice.counts).unwrap_or_default();
    assert_eq!(
        counts(&*store).await,
        [
            counts_of(&other, some_counts(9)),
            counts_of(&template(), left),
        ]
    );
}

pub async fn counts_tell_how_many_compositions_the_copy_has(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe)
        .row(meta(1, 1), A)
        .row(meta(2, 1), A)
        .row(meta(3, 1), A)
        .reject(meta(4, 1))
        .commit(&*store, &slice)
        .await;
    let second = page(probe)
        .row(meta(1, 2), B)
        .delete(meta(2, 1), at(60), DeleteReason::Erased)
        .delete(meta(3, 1), at(60), DeleteReason::Deleted)
        .commit(&*store, &first)
        .await;
    page(probe)
        .asked(at(70))
        .row(meta(3, 1), A)
        .commit(&*store, &second)
        .await;
    let all = counts(&*store).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].compositions(), 2);
}
