//! Watermarks, runs, control records and holds.
#![allow(missing_docs, reason = "the names are the sentences")]

use std::collections::BTreeSet;
use std::sync::Arc;

use atlas_engine::model::{
    Counts, Cut, Format, Mode, Origin, Outcome, Reason, Record, Rejected, Request, Run, RunPhase,
    Selection, SelectionKey, Slice, Watermark,
};
use atlas_engine::ports::Hold;
use atlas_openehr::id::{ObjectVersion, TemplateId};
use futures::future::join_all;

use crate::Probe;
use crate::fixture::{at, meta, selection, slice, template};

pub async fn a_second_hold_is_taken_until_the_first_ends(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let other = probe.another().await;
    let hold = match store.ledger().hold("export").await.unwrap() {
        Hold::Alone(hold) => hold,
        // Leases do.
        Hold::Unknown => return,
        Hold::Taken => panic!("nobody has it"),
    };
    for handle in [&other, &store] {
        let second = handle.ledger().hold("export").await.unwrap();
        assert!(matches!(second, Hold::Taken));
    }
    drop(hold);
    let hold = other.ledger().hold("export").await.unwrap();
    assert!(matches!(hold, Hold::Alone(_)), "it ended with the value");
    let second = store.ledger().hold("export").await.unwrap();
    assert!(matches!(second, Hold::Taken));
}

pub async fn holds_of_different_names_do_not_meet(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let mut holds = Vec::new();
    for name in ["export 1/2", "export 1.2", "EXPORT 1.2", "export 1%2e2"] {
        let hold = store.ledger().hold(name).await.unwrap();
        assert!(!matches!(hold, Hold::Taken), "{name}");
        holds.push(hold);
    }
}

pub async fn watermarks_never_go_back(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let other = TemplateId::new("Laboratory.v2");
    let watermark = |template: &TemplateId, until, late_checked_until| Watermark {
        position: Some(format!("the place {until}")),
        template: template.clone(),
        until: at(until),
        late_checked_until: at(late_checked_until),
    };
    assert!(
        store
            .ledger()
            .watermarks(&selection())
            .await
            .unwrap()
            .is_empty()
    );
    for (until, late_checked_until) in [(100, 10), (80, 20), (100, 20), (90, 5)] {
        let raise = [
            watermark(&template(), until, late_checked_until),
            watermark(&other, until / 2, late_checked_until / 2),
        ];
        store
            .ledger()
            .raise_watermarks(&selection(), &raise)
            .await
            .unwrap();
    }
    store
        .ledger()
        .raise_watermarks(&selection(), &[])
        .await
        .unwrap();
    let mut stands = store.ledger().watermarks(&selection()).await.unwrap();
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
        position: None,
        template: template.clone(),
        until: at(100),
        late_checked_until: at(20),
    };
    let both = [watermark(&other), watermark(&template())];
    store
        .ledger()
        .raise_watermarks(&selection(), &both)
        .await
        .unwrap();
    for _ in 0..2 {
        let forget = [template()];
        store
            .ledger()
            .forget_watermarks(&selection(), &forget)
            .await
            .unwrap();
    }
    let stands = store.ledger().watermarks(&selection()).await.unwrap();
    assert_eq!(stands, [watermark(&other)]);
}

pub async fn watermarks_of_different_selections_are_apart(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let other = SelectionKey("ffffffffffffffff".to_owned());
    let watermark = |seconds| Watermark {
        position: None,
        template: template(),
        until: at(seconds),
        late_checked_until: at(seconds),
    };
    store
        .ledger()
        .raise_watermarks(&selection(), &[watermark(100)])
        .await
        .unwrap();
    store
        .ledger()
        .raise_watermarks(&other, &[watermark(7)])
        .await
        .unwrap();
    assert_eq!(
        store.ledger().watermarks(&selection()).await.unwrap(),
        [watermark(100)]
    );
    assert_eq!(
        store.ledger().watermarks(&other).await.unwrap(),
        [watermark(7)]
    );
}

pub async fn runs_come_newest_first_and_are_replaced(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let begun = |id: &str, started| Run {
        id: id.to_owned(),
        step: 0,
        origin: Origin::Timer,
        request: None,
        selection: selection(),
        mode: Mode::Incremental,
        started: at(started),
        ended: None,
        cut: None,
        source_clock: None,
        planned: false,
        outcome: None,
        counts: Counts::default(),
        failure: None,
    };
    let runs = [begun("c", 10), begun("a", 30), begun("b", 20)];
    for run in &runs {
        store.ledger().add_run(run).await.unwrap();
    }
    let ended = Run {
        step: 1,
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
        source_clock: Some(at(85)),
        planned: true,
        outcome: Some(Outcome::Partial),
        counts: Counts {
            read: 22,
            written: 5,
            inserted: 2,
            unchanged: 4,
            filtered: 3,
            quarantined: 3,
            deleted: 7,
        },
        ..begun("b", 20)
    };
    for again in 0..2 {
        let changed = store.ledger().swap_run(&begun("b", 20), &ended).await;
        assert_eq!(changed.unwrap(), Some(ended.clone()), "{again}");
    }
    assert_eq!(
        store.ledger().runs(10).await.unwrap(),
        [begun("a", 30), ended.clone(), begun("c", 10)]
    );
    assert_eq!(
        store.ledger().runs(2).await.unwrap(),
        [begun("a", 30), ended]
    );
    for outcome in [
        Outcome::Complete,
        Outcome::Interrupted,
        Outcome::Failed,
        Outcome::Cancelled,
    ] {
        let run = Run {
            outcome: Some(outcome),
            ..begun(outcome.name(), 40)
        };
        store.ledger().add_run(&run).await.unwrap();
        assert_eq!(store.ledger().run(outcome.name()).await.unwrap(), Some(run));
    }
}

fn bare_run(id: &str, origin: Origin, started: u64, ended: Option<u64>) -> Run {
    Run {
        id: id.to_owned(),
        step: 0,
        origin,
        request: None,
        selection: selection(),
        mode: Mode::Incremental,
        started: at(started),
        ended: ended.map(at),
        cut: None,
        source_clock: None,
        planned: false,
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
    assert!(store.ledger().add_run(&first).await.unwrap());
    assert!(!store.ledger().add_run(&second).await.unwrap());
    assert_eq!(store.ledger().run("a").await.unwrap(), Some(first));
    assert_eq!(store.ledger().run("b").await.unwrap(), None);
}

pub async fn the_record_of_a_run_is_changed_by_whoever_knows_how_it_stands(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let asked = bare_run("a", Origin::OnDemand, 1, None);
    assert_eq!(asked.planned(), None, "it has no cut");
    let cut = Cut {
        at: at(2),
        source_clock: at(3),
    };
    let begun = asked.with_cut(cut).unwrap();
    assert_eq!(begun.made_cut(), Some(cut));
    assert_eq!(begun.with_cut(cut), None, "it has one");
    let planned = begun.planned().unwrap();
    let cancelled = |run: &Run| run.ended(at(3), Outcome::Cancelled, Counts::default());
    let swap = async |before: &Run, after: &Run| {
        let swapped = store.ledger().swap_run(before, after).await;
        swapped.unwrap()
    };
    assert_eq!(swap(&asked, &planned).await, None, "it is not there");
    store.ledger().add_run(&asked).await.unwrap();
    let first = swap(&asked, &cancelled(&asked).unwrap()).await.unwrap();
    assert_eq!((first.step, first.phase()), (1, RunPhase::Cancelled));
    assert_eq!(swap(&asked, &planned).await, None, "it moved on");
    assert_eq!(first.with_cut(cut), None, "no way leads back");
    assert_eq!(cancelled(&first), None);
    let renamed = Run {
        id: "b".to_owned(),
        ..first.clone()
    };
    let second = swap(&first, &renamed).await.unwrap();
    assert_eq!((&*second.id, second.step), ("a", 2));
    assert_eq!(store.ledger().run("a").await.unwrap(), Some(second));
    assert_eq!(store.ledger().run("b").await.unwrap(), None);
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
        store.ledger().add_run(&run).await.unwrap();
    }
    let ids = async |origin| {
        let runs = store.ledger().unfinished_runs(origin).await.unwrap();
        runs.into_iter().map(|run| run.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(Origin::Timer).await, ["old", "young"]);
    assert_eq!(ids(Origin::OnDemand).await, ["asked for"]);
    assert_eq!(ids(Origin::CommandLine).await, ["by hand"]);
}

pub async fn records_of_runs_go_when_they_are_old_and_nothing_speaks_of_them(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let ledger = store.ledger();
    for (id, ended) in [
        ("old", Some(10)),
        ("old too", Some(19)),
        ("on the edge", Some(20)),
        ("young", Some(30)),
        ("still runs", None),
        ("has a slice", Some(10)),
        ("first refused", Some(10)),
        ("tried last", Some(10)),
    ] {
        let run = bare_run(id, Origin::Timer, 1, ended);
        assert!(ledger.add_run(&run).await.unwrap());
    }
    let slice = Slice {
        run: "has a slice".to_owned(),
        ..slice("slice")
    };
    ledger
        .add_slices(std::slice::from_ref(&slice))
        .await
        .unwrap();
    let refused = [Rejected::new(meta(1, 1), Reason::Unreadable, String::new())];
    for run in ["first refused", "tried last"] {
        ledger.quarantine(&refused, run, at(5)).await.unwrap();
    }
    let left = async || {
        let runs = ledger.runs(100).await.unwrap().into_iter();
        runs.map(|run| run.id).collect::<BTreeSet<_>>()
    };
    let all = left().await;
    ledger.prune_runs(at(10)).await.unwrap();
    assert_eq!(left().await, all, "an instant is not before itself");
    for _ in 0..2 {
        ledger.prune_runs(at(20)).await.unwrap();
        let stay = [
            "first refused",
            "has a slice",
            "on the edge",
            "still runs",
            "tried last",
            "young",
        ];
        assert_eq!(left().await, stay.map(str::to_owned).into());
    }
    // What spoke of them is gone.
    ledger.drop_slices(&[slice.id]).await.unwrap();
    let version = ObjectVersion {
        object_id: meta(1, 1).uid.object_id().clone(),
        version: 1,
    };
    ledger.end_quarantine(&[version]).await.unwrap();
    ledger.prune_runs(at(20)).await.unwrap();
    let stay = ["on the edge", "still runs", "young"];
    assert_eq!(left().await, stay.map(str::to_owned).into());
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
    let first = store
        .ledger()
        .swap_record(&unwritten, &mine)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        first,
        Record {
            step: 1,
            ..mine.clone()
        }
    );
    let repeated = store.ledger().swap_record(&unwritten, &mine).await.unwrap();
    assert_eq!(repeated, Some(first.clone()), "its answer was lost");
    let theirs = Record {
        owner: Some("worker 2".to_owned()),
        ..mine
    };
    assert_eq!(
        other
            .ledger()
            .swap_record(&unwritten, &theirs)
            .await
            .unwrap(),
        None
    );
    let second = other
        .ledger()
        .swap_record(&first, &theirs)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(second.step, 2);
    assert_eq!(
        store
            .ledger()
            .swap_record(&first, &unwritten)
            .await
            .unwrap(),
        None
    );
    let released = store
        .ledger()
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
        store
            .ledger()
            .swap_record(&record, &record)
            .await
            .unwrap()
            .unwrap();
    }
    let names = async |prefix| {
        let records = other.ledger().records(prefix).await.unwrap();
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
        let stands = handles[0].ledger().records(name).await.unwrap().pop();
        let stands = stands.unwrap_or_else(|| Record::new(name));
        assert_eq!(stands.step, round);
        let tries = (0..10_usize).map(|worker| {
            let (store, stands) = (Arc::clone(&handles[worker % 2]), stands.clone());
            tokio::spawn(async move {
                let mine = Record {
                    owner: Some(format!("worker {worker}")),
                    ..stands.clone()
                };
                store.ledger().swap_record(&stands, &mine).await.unwrap()
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
    let (first, second) = (
        store.ledger().now().await.unwrap(),
        other.ledger().now().await.unwrap(),
    );
    assert_eq!(first.is_some(), second.is_some());
    assert!(first <= second);
}
