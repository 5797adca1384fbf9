//! The contract of `Source`, held by the sample CDR as by a real server, and its scripted faults.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

#[macro_use]
mod suite;

use std::sync::Arc;
use std::time::{Duration, Instant as Moment};

use async_trait::async_trait;
use atlas_cdr::{Auth, Cdr, Config, Retry};
use atlas_engine::ErrorKind;
use atlas_engine::checked::CheckedSource;
use atlas_engine::model::{Meta, Page, Scope, Window};
use atlas_engine::ports::{Compositions, Definitions, Source};
use atlas_openehr::id::ObjectId;
use atlas_openehr::time::Instant;
use atlas_sample_cdr::{Fault, Handle, On, Quirks, Release, Running, SampleCdr};
use suite::World;

/// A server for one test; more compositions than the tie pattern is long.
struct Sample {
    cdr: Cdr,
    running: Running,
}

async fn start(builder: SampleCdr) -> Sample {
    let running = builder.start().await.unwrap();
    let cdr = Cdr::connect(config(&running)).unwrap();
    Sample { cdr, running }
}

fn config(running: &Running) -> Config {
    Config {
        retry: Retry {
            initial_delay: Duration::from_millis(1),
            ..Retry::default()
        },
        ..Config::new(running.base_url())
    }
}

async fn old_release() -> Sample {
    start(
        SampleCdr::builder()
            .compositions(220)
            .release(Release::Ehrbase2_16),
    )
    .await
}

async fn new_release() -> Sample {
    start(
        SampleCdr::builder()
            .compositions(220)
            .release(Release::Ehrbase2_31)
            .gzip(true),
    )
    .await
}

impl Sample {
    fn handle(&self) -> Handle {
        self.running.handle()
    }

    fn number(&self, meta: &Meta) -> u64 {
        let handle = self.handle();
        (0..handle.numbers())
            .find(|number| handle.version_uid(*number).as_deref() == Some(meta.uid.as_str()))
            .unwrap()
    }
}

#[async_trait]
impl World for Sample {
    fn source(&self) -> &Cdr {
        &self.cdr
    }

    fn scope(&self) -> Scope {
        Scope {
            templates: Vec::new(),
            ehrs: Vec::new(),
            window: Window {
                from: Instant::EPOCH,
                to: Instant::MAX,
            },
        }
    }

    async fn update(&self, meta: &Meta) {
        assert!(self.handle().update(self.number(meta)));
    }

    async fn delete(&self, meta: &Meta) {
        assert!(self.handle().delete(self.number(meta)));
    }

    async fn erase(&self, meta: &Meta) {
        assert!(self.handle().erase(self.number(meta)));
    }

    async fn unreadable(&self) -> (Scope, ObjectId) {
        let metas = self.cdr.list(&self.scope(), None, 100).await.unwrap();
        self.handle().set_unreadable(self.number(&metas[77]), true);
        (self.scope(), metas[77].uid.object_id().clone())
    }
}

mod release_2_16 {
    use super::old_release;
    contract!(old_release);
}

/// A server with a limit, which was learnt from its first refusal.
async fn narrow() -> Sample {
    let sample = new_release().await;
    sample.handle().set_quirks(Quirks {
        max_fetch: Some(400),
        ..Quirks::default()
    });
    sample.cdr.census(&sample.scope()).await.unwrap();
    sample
}

/// A server whose commit times differ inside a microsecond.
async fn fine() -> Sample {
    let sample = new_release().await;
    sample.handle().set_quirks(Quirks {
        nanoseconds: true,
        ..Quirks::default()
    });
    sample
}

mod with_max_fetch {
    use super::narrow;
    contract!(narrow);
}

mod with_nanoseconds {
    use super::fine;
    contract! { fine:
        keyset_pages_lose_nothing_and_repeat_nothing,
        windows_are_half_open_to_the_microsecond,
        a_cursor_before_the_window_does_not_widen_it,
        templates_and_ehrs_restrict_each_other,
        what_is_fetched_by_uid_is_what_the_page_shows,
        an_update_moves_its_composition_to_the_end,
        what_is_deleted_or_erased_vanishes,
    }
}

mod release_2_31 {
    use super::new_release;
    contract!(new_release);
}

/// All rows and misfits, read by pages.
async fn read_all(cdr: &dyn Source, scope: &Scope, limit: usize) -> (Vec<Meta>, Vec<Meta>) {
    let (mut rows, mut misfits) = (Vec::new(), Vec::new());
    let mut after = None;
    loop {
        let page = cdr.page(scope, after.as_ref(), limit).await.unwrap();
        let cursors = page.rows.iter().map(|row| row.meta.cursor());
        let misfit_cursors = page.misfits.iter().map(|misfit| misfit.meta.cursor());
        let Some(last) = cursors.chain(misfit_cursors).max() else {
            return (rows, misfits);
        };
        after = Some(last);
        rows.extend(page.rows.into_iter().map(|row| row.meta));
        misfits.extend(page.misfits.into_iter().map(|misfit| misfit.meta));
        assert!(rows.len() + misfits.len() <= 1000, "paging does not end");
    }
}

#[tokio::test]
async fn capped_pages_lose_nothing() {
    let sample = old_release().await;
    for cap in [1, 10, 219, 220] {
        sample.handle().set_quirks(Quirks {
            most_rows: Some(cap),
            ..Quirks::default()
        });
        let (rows, _) = read_all(&sample.cdr, &sample.scope(), 500).await;
        assert_eq!(rows.len(), 220, "capped at {cap}");
        let objects: Vec<ObjectId> = rows.iter().map(|m| m.uid.object_id().clone()).collect();
        let page = sample
            .cdr
            .fetch(&sample.scope(), &objects[..30])
            .await
            .unwrap();
        assert_eq!(page.rows.len(), 30, "capped at {cap}");
    }
}

#[tokio::test]
async fn misfits_of_the_sample_cdr_stand_alone() {
    let sample = new_release().await;
    sample.handle().set_quirks(Quirks {
        branches: [3, 18].into(),
        no_change_type: [90, 91].into(),
        no_object: [219].into(),
        ..Quirks::default()
    });
    for limit in [1, 7, 500] {
        let (rows, misfits) = read_all(&sample.cdr, &sample.scope(), limit).await;
        assert_eq!((rows.len(), misfits.len()), (215, 5), "by {limit}");
    }
}

#[tokio::test]
async fn a_sample_cdr_that_ignores_conditions_is_caught_by_the_check() {
    let sample = new_release().await;
    let listed = sample.cdr.list(&sample.scope(), None, 50).await.unwrap();
    let scope = Scope {
        templates: vec![listed[0].template.clone()],
        ehrs: vec![listed[0].ehr.clone()],
        ..sample.scope()
    };
    let objects: Vec<ObjectId> = listed.iter().map(|m| m.uid.object_id().clone()).collect();
    let checked = CheckedSource::new(Arc::new(Cdr::connect(config(&sample.running)).unwrap()));
    assert!(
        !checked
            .page(&scope, None, 50)
            .await
            .unwrap()
            .rows
            .is_empty()
    );
    let ignoring = |ehrs, templates| Quirks {
        ignores_ehrs: ehrs,
        ignores_templates: templates,
        ..Quirks::default()
    };
    for (quirks, said) in [
        (ignoring(true, false), "e/ehr_id/value"),
        (ignoring(false, true), "template_id"),
    ] {
        sample.handle().set_quirks(quirks);
        for error in [
            checked.page(&scope, None, 50).await.err(),
            checked.list(&scope, None, 50).await.err(),
            checked.fetch(&scope, &objects).await.err(),
        ] {
            let error = error.unwrap();
            assert_eq!(error.kind(), ErrorKind::SourceUntrue);
            assert!(error.chain().contains(said), "{}", error.chain());
        }
    }
    let error = checked.census(&scope).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUntrue);
}

#[tokio::test]
async fn faults_that_pass_cost_a_retry_each() {
    let sample = old_release().await;
    let scope = sample.scope();
    let contents = |page: &Page| -> Vec<String> {
        let raw = |row| page.content(row).raw().to_owned();
        page.rows.iter().map(raw).collect()
    };
    let expected = contents(&sample.cdr.page(&scope, None, 50).await.unwrap());
    assert_eq!(expected.len(), 50);
    let busy = |status, retry_after_secs| Fault::Status {
        status,
        retry_after_secs,
    };
    for fault in [
        busy(503, None),
        busy(429, Some(0)),
        Fault::CutBody { after_bytes: 1000 },
    ] {
        let before = sample.cdr.usage().requests;
        sample.handle().inject(fault.next(2).on(On::AqlPages));
        let page = sample.cdr.page(&scope, None, 50).await.unwrap();
        assert_eq!(contents(&page), expected);
        assert_eq!(sample.cdr.usage().requests - before, 3);
    }
}

#[tokio::test]
async fn faults_that_stay_are_told_apart() {
    let sample = old_release().await;
    let scope = sample.scope();
    let mut config = config(&sample.running);
    config.timeout = Duration::from_millis(500);
    config.retry.max_retries = 1;
    let cdr = Cdr::connect(config).unwrap();
    for (fault, kind) in [
        (Fault::Html, ErrorKind::SourceUnsupported),
        (Fault::EndlessBody, ErrorKind::SourceTooLarge),
        (
            Fault::SlowBody {
                bytes: 1,
                pause_millis: 20,
            },
            ErrorKind::SourceUnreachable,
        ),
        (
            Fault::Latency { millis: 60_000 },
            ErrorKind::SourceUnreachable,
        ),
        (
            Fault::Status {
                status: 500,
                retry_after_secs: None,
            },
            ErrorKind::SourceUnreadable,
        ),
    ] {
        sample.handle().inject(fault.clone().always());
        // How much of an endless answer comes in time is up to the machine.
        let got = cdr.page(&scope, None, 50).await.unwrap_err().kind();
        let in_time = fault == Fault::EndlessBody && got == ErrorKind::SourceUnreachable;
        assert!(got == kind || in_time, "{fault:?}: {got:?}");
        sample.handle().clear_faults();
    }
    assert_eq!(cdr.page(&scope, None, 5).await.unwrap().rows.len(), 5);
}

#[tokio::test]
async fn a_pause_of_the_sample_cdr_is_kept() {
    let sample = old_release().await;
    let busy = Fault::Status {
        status: 429,
        retry_after_secs: Some(1),
    };
    sample.handle().inject(busy.next(1));
    let started = Moment::now();
    sample.cdr.count(&sample.scope()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn the_password_decides_who_may_read() {
    let running = SampleCdr::builder()
        .compositions(9)
        .auth("reader", "right")
        .start()
        .await
        .unwrap();
    for (password, refused) in [("right", None), ("wrong", Some(ErrorKind::SourceDenied))] {
        let auth = Auth::Basic {
            user: "reader".to_owned(),
            password: password.into(),
        };
        let cdr = Cdr::connect(Config {
            auth,
            ..config(&running)
        })
        .unwrap();
        assert_eq!(
            cdr.templates().await.err().map(|error| error.kind()),
            refused
        );
    }
}
