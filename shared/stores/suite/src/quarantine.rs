//! What could not be copied. Always by the ids of the source.
#![allow(missing_docs, reason = "the names are the sentences")]

use std::collections::HashMap;

use atlas_engine::model::{QuarantineCount, QuarantineFilter, Quarantined, Reason, Rejected};
use atlas_openehr::id::{ObjectVersion, TemplateId};

use crate::Probe;
use crate::fixture::{
    Draft, RUN, at, begin, meta, object, page, quarantined, row_of, template, unchanged,
};

const A: &str = r#"{"systolic":120}"#;

pub async fn a_row_ends_the_quarantine_of_its_object(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe)
        .reject(meta(1, 1))
        .reject(meta(2, 1))
        .reject(meta(3, 1))
        .commit(&*store, &slice)
        .await;
    let second = page(probe)
        .row(meta(1, 1), A)
        .row(meta(2, 2), A)
        .commit(&*store, &first)
        .await;
    let waiting = quarantined(&*store).await;
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].meta, meta(3, 1));

    // A version that is in the store may still be refused, in another format for one. Read again, it is well again.
    let third = page(probe)
        .reject(meta(1, 1))
        .commit(&*store, &second)
        .await;
    assert_eq!(quarantined(&*store).await.len(), 2);
    let fourth = page(probe).row(meta(1, 1), A).commit(&*store, &third).await;
    assert_eq!(fourth.counts.since(&third.counts), unchanged(1));
    assert_eq!(
        quarantined(&*store).await.len(),
        1,
        "a row that was there ends it too"
    );
}

pub async fn a_row_leaves_the_quarantine_of_a_newer_version(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe).reject(meta(1, 3)).commit(&*store, &slice).await;
    page(probe).row(meta(1, 2), A).commit(&*store, &first).await;
    let waiting = quarantined(&*store).await;
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].meta, meta(1, 3));
    assert_eq!(row_of(probe, 1).await.meta.uid.version(), 2);
}

pub async fn tries_count_runs_under_the_first_date(probe: &dyn Probe) {
    let store = probe.store();
    let mut stands = begin(&*store).await;
    let (first, second) = (RUN, "0193571a-0000-7000-8000-000000000002");
    let tries = [
        (first, 100),
        (first, 150),
        (second, 200),
        (second, 250),
        (first, 300),
    ];
    for (run, now) in tries {
        let page = Draft {
            run: run.to_owned(),
            ..page(probe).reject(meta(1, 1)).at(at(now))
        };
        stands = page.commit(&*store, &stands).await;
    }
    let expected = Quarantined {
        meta: meta(1, 1),
        reason: Reason::Unreadable,
        detail: "the server answered 500".to_owned(),
        run: first.to_owned(),
        since: at(100),
        tried: at(300),
        tries: 3,
        tried_by: first.to_owned(),
    };
    assert_eq!(quarantined(&*store).await, [expected]);
    assert_eq!(stands.counts.quarantined, 5, "counts count pages");
}

pub async fn the_last_reason_stands_with_the_first_date(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    for (reason, now) in [
        (Reason::Unreadable, 100),
        (Reason::TooLarge, 200),
        (Reason::Inconvertible, 300),
        (Reason::Unstorable, 400),
    ] {
        let rejected = Rejected::new(meta(1, 1), reason, reason.name());
        for _ in 0..2 {
            let rejected = std::slice::from_ref(&rejected);
            store
                .ledger()
                .quarantine(rejected, &format!("run {now}"), at(now))
                .await
                .unwrap();
        }
        let waiting = quarantined(&*store).await;
        assert_eq!(
            (waiting[0].reason, waiting[0].detail.as_str()),
            (reason, reason.name())
        );
        assert_eq!(
            (waiting[0].since, waiting[0].tries),
            (at(100), now as u32 / 100)
        );
    }
}

pub async fn a_rejected_row_replaces_the_entry_of_an_older_version_only(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe)
        .reject(meta(1, 1))
        .at(at(100))
        .commit(&*store, &slice)
        .await;
    let second = page(probe)
        .reject(meta(1, 3))
        .at(at(200))
        .commit(&*store, &first)
        .await;
    let newest = quarantined(&*store).await;
    assert_eq!(newest.len(), 1);
    assert_eq!(newest[0].meta, meta(1, 3));
    assert_eq!(
        (newest[0].since, newest[0].tries),
        (at(200), 1),
        "another version, another story"
    );

    page(probe)
        .reject(meta(1, 2))
        .at(at(300))
        .commit(&*store, &second)
        .await;
    assert_eq!(quarantined(&*store).await, newest);
}

pub async fn a_rejected_row_that_the_store_has_overtaken_leaves_no_entry(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe).row(meta(1, 2), A).commit(&*store, &slice).await;
    let second = page(probe).reject(meta(1, 1)).commit(&*store, &first).await;
    assert!(quarantined(&*store).await.is_empty());
    assert_eq!(second.counts.since(&first.counts), unchanged(1));
    assert_eq!(row_of(probe, 1).await.meta.uid.version(), 2);
}

pub async fn the_quarantine_is_filtered_and_the_longest_untried_come_first(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let mut other = meta(4, 1);
    other.template = TemplateId::new("Laboratory.v2");
    let mut stands = slice;
    for (rejected, now) in [(meta(1, 1), 300), (meta(2, 1), 100), (other.clone(), 200)] {
        let page = page(probe).reject(rejected).at(at(now));
        stands = page.commit(&*store, &stands).await;
    }
    let ask = async |filter: QuarantineFilter| -> Vec<_> {
        let entries = store.ledger().quarantined(&filter, 10).await.unwrap();
        entries.into_iter().map(|entry| entry.meta).collect()
    };
    let all = QuarantineFilter::default();
    assert_eq!(
        ask(all.clone()).await,
        [meta(2, 1), other.clone(), meta(1, 1)]
    );
    let limited = store.ledger().quarantined(&all, 2).await.unwrap();
    let limited: Vec<_> = limited.into_iter().map(|entry| entry.meta).collect();
    assert_eq!(limited, [meta(2, 1), other.clone()]);
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

/// 30 entries of two templates, tried at three moments.
async fn many(probe: &dyn Probe) -> Vec<Rejected> {
    let store = probe.store();
    store.prepare().await.unwrap();
    let mut all = Vec::new();
    for number in 0..30 {
        let mut meta = meta(number, 1);
        if number % 5 == 0 {
            meta.template = TemplateId::new("Laboratory.v2");
        }
        let reason = if number % 3 == 0 {
            Reason::TooLarge
        } else {
            Reason::Unreadable
        };
        let rejected = Rejected::new(meta, reason, "any");
        let tried = at(100 + u64::from(number * 7 % 3));
        let one = std::slice::from_ref(&rejected);
        store.ledger().quarantine(one, RUN, tried).await.unwrap();
        all.push(rejected);
    }
    all
}

pub async fn the_quarantine_comes_page_by_page(probe: &dyn Probe) {
    many(probe).await;
    let store = probe.store();
    let whole = quarantined(&*store).await;
    assert_eq!(whole.len(), 30);
    assert!(
        whole.is_sorted_by_key(Quarantined::place),
        "in the order of their places"
    );
    for (template, tried_before) in [
        (None, None),
        (Some(template()), None),
        (None, Some(at(102))),
        (Some(TemplateId::new("Laboratory.v2")), Some(at(102))),
    ] {
        let mut filter = QuarantineFilter {
            template,
            tried_before,
            ..QuarantineFilter::default()
        };
        let expected: Vec<_> = whole
            .iter()
            .filter(|entry| {
                filter
                    .template
                    .as_ref()
                    .is_none_or(|template| template == &entry.meta.template)
                    && filter
                        .tried_before
                        .is_none_or(|before| entry.tried < before)
            })
            .cloned()
            .collect();
        assert!(!expected.is_empty());
        let mut pages = Vec::new();
        loop {
            let page = store.ledger().quarantined(&filter, 4).await.unwrap();
            assert!(page.len() <= 4);
            let Some(last) = page.last() else { break };
            filter.after = Some(last.place());
            pages.extend(page);
        }
        assert_eq!(pages, expected);
    }
}

pub async fn the_quarantine_is_counted_by_template_and_reason(probe: &dyn Probe) {
    many(probe).await;
    let store = probe.store();
    let whole = quarantined(&*store).await;
    for tried_before in [None, Some(at(102)), Some(at(100))] {
        let mut counted = store
            .ledger()
            .quarantine_counts(tried_before)
            .await
            .unwrap();
        counted.sort_by(|a, b| (&a.template, a.reason).cmp(&(&b.template, b.reason)));
        let mut expected: Vec<QuarantineCount> = Vec::new();
        for template in [TemplateId::new("Laboratory.v2"), template()] {
            for reason in [Reason::Unreadable, Reason::TooLarge] {
                let entries = whole.iter().filter(|entry| {
                    entry.meta.template == template
                        && entry.reason == reason
                        && tried_before.is_none_or(|before| entry.tried < before)
                });
                let since: Vec<_> = entries.map(|entry| entry.since).collect();
                if let Some(oldest) = since.iter().min() {
                    expected.push(QuarantineCount {
                        template: template.clone(),
                        reason,
                        entries: since.len() as u64,
                        oldest: *oldest,
                    });
                }
            }
        }
        assert_eq!(counted, expected);
    }
}

pub async fn objects_in_quarantine_are_found_with_their_version(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    page(probe)
        .reject(meta(1, 3))
        .reject(meta(2, 1))
        .row(meta(3, 1), A)
        .commit(&*store, &slice)
        .await;
    let ledger = store.ledger();
    let asked = [object(1), object(2), object(3), object(4)];
    let waiting = ledger.in_quarantine(&asked).await.unwrap();
    assert_eq!(waiting, HashMap::from([(object(1), 3), (object(2), 1)]));
    assert!(ledger.in_quarantine(&[]).await.unwrap().is_empty());
}

pub async fn entries_end_with_their_version_or_a_newer_one(probe: &dyn Probe) {
    let store = probe.store();
    store.prepare().await.unwrap();
    let ledger = store.ledger();
    let rejected =
        [1, 2, 3, 4].map(|number| Rejected::new(meta(number, 2), Reason::Unreadable, ""));
    ledger.quarantine(&rejected, RUN, at(100)).await.unwrap();
    let version = |number, version| ObjectVersion {
        object_id: object(number),
        version,
    };
    let ended = [version(1, 1), version(2, 2), version(3, 3), version(9, 1)];
    for _ in 0..2 {
        ledger.end_quarantine(&ended).await.unwrap();
        let left: Vec<_> = quarantined(&*store)
            .await
            .into_iter()
            .map(|entry| entry.meta)
            .collect();
        assert_eq!(left, [meta(1, 2), meta(4, 2)]);
    }
    ledger.end_quarantine(&[]).await.unwrap();
    ledger.quarantine(&[], RUN, at(200)).await.unwrap();
    assert_eq!(quarantined(&*store).await.len(), 2);
}

pub async fn a_tombstone_ends_the_quarantine_of_its_version(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let first = page(probe).row(meta(1, 1), A).commit(&*store, &slice).await;
    let second = page(probe).reject(meta(1, 1)).commit(&*store, &first).await;
    assert_eq!(quarantined(&*store).await.len(), 1);
    page(probe)
        .asked(at(60))
        .delete(
            meta(1, 1),
            at(60),
            atlas_engine::model::DeleteReason::Deleted,
        )
        .commit(&*store, &second)
        .await;
    assert!(quarantined(&*store).await.is_empty());
}

pub async fn rows_that_the_store_refuses_go_into_quarantine_alone(probe: &dyn Probe) {
    let store = probe.store();
    let slice = begin(&*store).await;
    let page_of = |numbers: &[u32]| {
        let rows = numbers.iter().map(|number| meta(*number, 1));
        rows.fold(page(probe), |page, meta| page.row(meta, A))
    };
    for number in [2, 4] {
        let key = probe.keys().key(&meta(number, 1));
        if !probe.refuse_object(&key.object).await {
            return;
        }
    }
    let mixed = page_of(&[1, 2, 3, 4]);
    let first = mixed.commit(&*store, &slice).await;
    assert_eq!((first.counts.read, first.counts.inserted), (4, 2));
    assert_eq!(first.counts.quarantined, 2);
    assert!(first.counts.conserved());
    assert_eq!((first.page, first.step), (slice.page + 1, slice.step + 1));
    assert_eq!(first.cursor, Some(meta(4, 1).cursor()));
    let waiting = quarantined(&*store).await;
    let reasons: Vec<_> = waiting
        .iter()
        .map(|entry| (entry.meta.clone(), entry.reason))
        .collect();
    let unstorable = |number| (meta(number, 1), Reason::Unstorable);
    assert_eq!(reasons, [unstorable(2), unstorable(4)]);
    for entry in &waiting {
        assert!(!entry.detail.is_empty());
        assert!(!entry.detail.contains(object(2).as_str()) && !entry.detail.contains("systolic"));
    }
    assert_eq!(
        mixed.commit(&*store, &slice).await,
        first,
        "its answer was lost"
    );

    // Nothing else of their page lands: the store proves by a row of its own that it is not to blame.
    let second = page_of(&[2, 4]).commit(&*store, &first).await;
    assert_eq!(second.counts.since(&first.counts).quarantined, 2);
    // What is unchanged proves nothing either.
    let third = page_of(&[1, 4]).commit(&*store, &second).await;
    let step = third.counts.since(&second.counts);
    assert_eq!((step.unchanged, step.quarantined), (1, 1));
    assert_eq!(row_of(probe, 1).await.meta.uid.version(), 1);
    assert_eq!(quarantined(&*store).await.len(), 2);
}
