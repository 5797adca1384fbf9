//! Pages that land without their checkpoint: the first phase of a commit over rows and a ledger that share no transaction.
#![allow(missing_docs, reason = "the names are the sentences")]

use atlas_engine::model::{Body, Committed, Counts, DeleteReason, LandAnswer, Landed, Slice, Way};
use atlas_engine::ports::Store;
use atlas_engine::two_phase::adopt_landed;

use crate::Probe;
use crate::fixture::{
    Draft, at, begin, deleted, filtered, inserted, meta, page, quarantined, replaced, rows, slice,
};

const A: &str = r#"{"systolic":120}"#;
const B: &str = r#"{"systolic":121}"#;

fn landed(answer: LandAnswer) -> Vec<Landed> {
    match answer {
        LandAnswer::Landed(landed) => landed,
        other => panic!("the page landed: {other:?}"),
    }
}

/// The slice as it is once a page is committed to it.
fn behind(slice: &Slice, page: u64) -> Slice {
    Slice {
        page,
        ..slice.clone()
    }
}

/// The slice as another worker takes it.
async fn taken(store: &dyn Store, slice: &Slice) -> Slice {
    let taken = Slice {
        fence: slice.fence + 1,
        owner: Some("worker 2".to_owned()),
        ..slice.clone()
    };
    store
        .ledger()
        .swap_slice(slice, &taken)
        .await
        .unwrap()
        .unwrap()
}

/// Whether this store answers what was landed; one that lands a page with its checkpoint does not.
async fn answers_landed(store: &dyn Store) -> bool {
    let other = slice("a slice to try with");
    store
        .ledger()
        .add_slices(std::slice::from_ref(&other))
        .await
        .unwrap();
    let land = Draft::plain().row(meta(99, 1), A).land(store, &other).await;
    landed(land);
    store.rows().landed(&other).await.unwrap().is_some()
}

pub async fn landing_answers_for_each_row_in_its_place(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe)
        .row(meta(5, 1), A)
        .row(meta(2, 2), A)
        .row(meta(4, 1), A)
        .row(meta(1, 1), A)
        .row(meta(3, 1), A)
        .land(&*store, &slice)
        .await;
    assert_eq!(landed(first), vec![Landed::New; 5]);
    let keys = [1, 2, 3, 4, 5].map(|number| probe.keys().key(&meta(number, 1)));
    let before = store.index().known(&keys).await.unwrap();
    let held = |number: usize| Landed::Replaced(before[&keys[number - 1].object].clone());
    let second = page(probe)
        .asked(at(60))
        .row(meta(3, 2), B)
        .row(meta(2, 1), B)
        .delete(meta(1, 1), at(60), DeleteReason::Deleted)
        .row(meta(6, 1), B)
        .row(meta(5, 1), A)
        .delete(meta(4, 2), at(60), DeleteReason::Deleted)
        .delete(meta(7, 1), at(60), DeleteReason::Deleted);
    let answer = landed(second.land(&*store, &behind(&slice, 1)).await);
    let expected = [
        held(3),
        Landed::Older,
        held(1),
        Landed::New,
        Landed::Unchanged,
        Landed::Older,
        Landed::Unchanged,
    ];
    assert_eq!(answer, expected);
}

pub async fn the_same_page_again_changes_nothing(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe)
        .row(meta(1, 1), A)
        .row(meta(2, 1), A)
        .row(meta(3, 1), A);
    landed(first.land(&*store, &slice).await);
    let second = page(probe)
        .asked(at(60))
        .row(meta(4, 1), A)
        .row(meta(3, 2), B)
        .delete(meta(2, 1), at(60), DeleteReason::Deleted)
        .row(meta(1, 1), A);
    let slice = behind(&slice, 1);
    landed(second.land(&*store, &slice).await);
    let before = rows(probe).await;
    for _ in 0..2 {
        let again = landed(second.land(&*store, &slice).await);
        let ways = [Way::Inserted, Way::Replaced, Way::Deleted, Way::Unchanged];
        assert_eq!(again, ways.map(Landed::Again));
        assert_eq!(rows(probe).await, before);
    }
}

pub async fn an_older_fence_lands_nothing(probe: &dyn Probe) {
    let store = probe.store();
    let frozen = begin(&*store).await;
    let first = page(probe).row(meta(1, 1), A);
    landed(first.land(&*store, &frozen).await);
    let taken = taken(&*store, &frozen).await;
    // This page landed, under another fence.
    let same_page = page(probe).row(meta(2, 1), A).land(&*store, &taken).await;
    assert_eq!(same_page, LandAnswer::Superseded);
    let next = page(probe).row(meta(3, 1), A);
    landed(next.land(&*store, &behind(&taken, 1)).await);
    let before = rows(probe).await;
    for number in 0..3 {
        let late = page(probe).row(meta(4, 1), A);
        let late = late.land(&*store, &behind(&frozen, number)).await;
        assert_eq!(late, LandAnswer::Superseded, "page {}", number + 1);
    }
    assert_eq!(rows(probe).await, before);
}

pub async fn who_asks_what_landed_shuts_out_older_fences(probe: &dyn Probe) {
    let store = probe.store();
    let frozen = begin(&*store).await;
    if !answers_landed(&*store).await {
        return;
    }
    let taken = taken(&*store, &frozen).await;
    assert_eq!(
        store.rows().landed(&taken).await.unwrap(),
        None,
        "no page landed"
    );
    let late = page(probe).row(meta(1, 1), A);
    assert_eq!(late.land(&*store, &frozen).await, LandAnswer::Superseded);
    assert_eq!(store.rows().landed(&frozen).await.unwrap(), None);
    assert_eq!(
        late.land(&*store, &frozen).await,
        LandAnswer::Superseded,
        "asking with an old fence opens nothing"
    );
    landed(late.land(&*store, &taken).await);
}

pub async fn a_page_of_an_older_fence_is_superseded_once_a_newer_one_asked(probe: &dyn Probe) {
    let store = probe.store();
    let frozen = begin(&*store).await;
    if !answers_landed(&*store).await {
        return;
    }
    let draft = page(probe).row(meta(1, 1), A);
    landed(draft.land(&*store, &frozen).await);
    let taken = taken(&*store, &frozen).await;
    let page_1 = store.rows().landed(&taken).await.unwrap();
    assert_eq!(page_1.map(|landed| landed.page), Some(1));
    let before = rows(probe).await;
    for who in [&frozen, &taken] {
        let again = draft.land(&*store, who).await;
        assert_eq!(again, LandAnswer::Superseded, "fence {}", who.fence);
    }
    assert_eq!(rows(probe).await, before);
}

pub async fn a_page_that_landed_without_its_checkpoint_is_adopted(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    if !answers_landed(&*store).await {
        // Nothing is adopted, nothing is changed.
        let taken = taken(&*store, &slice).await;
        let adopted = adopt_landed(&*store, taken.clone()).await.unwrap();
        assert_eq!(adopted, Some(taken));
        return;
    }
    let first = page(probe)
        .row(meta(1, 1), A)
        .row(meta(2, 1), A)
        .commit(&*store, &slice)
        .await;
    // A worker that dies after its rows landed.
    let orphan = Draft {
        filtered: filtered(3),
        ..page(probe)
            .asked(at(60))
            .row(meta(1, 2), B)
            .delete(meta(2, 1), at(60), DeleteReason::Deleted)
            .row(meta(3, 1), A)
    };
    landed(orphan.land(&*store, &first).await);
    let taken = taken(&*store, &first).await;
    let adopted = adopt_landed(&*store, taken.clone()).await.unwrap().unwrap();
    assert_eq!(adopted.page, first.page + 1);
    assert_eq!(adopted.cursor, orphan.of(&first).cursor);
    let mut counts = inserted(2);
    counts += orphan_counts();
    assert_eq!(adopted.counts, counts);
    assert!(adopted.counts.conserved());
    let again = adopt_landed(&*store, adopted.clone()).await.unwrap();
    assert_eq!(again, Some(adopted.clone()), "once");

    let late = orphan.try_commit(&*store, &first).await.unwrap();
    assert_eq!(late, Committed::Lost);
    let last = page(probe)
        .row(meta(4, 1), A)
        .commit(&*store, &adopted)
        .await;
    assert_eq!(last.counts.since(&adopted.counts), inserted(1));
    assert_eq!(rows(probe).await.len(), 5, "and the one to try with");
}

fn orphan_counts() -> Counts {
    let mut counts = Counts {
        read: 3,
        filtered: 3,
        ..Counts::default()
    };
    counts += replaced(1);
    counts += deleted(1);
    counts += inserted(1);
    counts
}

pub async fn rows_that_cannot_land_are_named_and_nothing_lands(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let refused = probe.keys().key(&meta(2, 1)).object;
    if !probe.refuse_object(&refused).await {
        return;
    }
    let draft = page(probe)
        .row(meta(1, 1), A)
        .row(meta(2, 1), A)
        .row(meta(3, 1), A);
    let LandAnswer::Refused(rows_refused) = draft.land(&*store, &slice).await else {
        panic!("one row cannot land");
    };
    let places: Vec<usize> = rows_refused.iter().map(|row| row.index).collect();
    assert_eq!(places, [1]);
    assert!(rows(probe).await.is_empty());
    assert!(quarantined(&*store).await.is_empty());
    // A page of this one row.
    let alone = page(probe).row(meta(2, 1), A).land(&*store, &slice).await;
    assert!(matches!(alone, LandAnswer::Refused(rows) if rows.len() == 1 && rows[0].index == 0));
    let sound = page(probe).row(meta(1, 1), A).row(meta(3, 1), A);
    assert!(
        sound
            .batch
            .rows
            .iter()
            .all(|row| matches!(row.body, Body::Content { .. }))
    );
    assert_eq!(
        landed(sound.land(&*store, &slice).await),
        [Landed::New, Landed::New]
    );
}
