//! One lie of a server after the other, each in variations.

use atlas_openehr::id::VersionUid;
use atlas_openehr::time::Instant;
use proptest::prelude::*;

use super::*;
use crate::error::InRun;
use crate::model::{Misfit, Row, Window};

/// Answers whatever it was given, to any question.
#[derive(Default)]
struct Scripted {
    metas: Vec<Meta>,
    misfits: Vec<Meta>,
    lines: Vec<CensusLine>,
}

#[async_trait]
impl Compositions for Scripted {
    async fn census(&self, _: &Scope) -> Result<Census> {
        Ok(Census {
            server_time: Instant::MAX,
            lines: self.lines.clone(),
        })
    }

    async fn count(&self, _: &Scope) -> Result<u64> {
        Ok(self.metas.len() as u64)
    }

    async fn page(&self, _: &Scope, _: Option<&Cursor>, _: usize) -> Result<Page> {
        let content = Page::default().tape.root("").id();
        let row = |meta: &Meta| Row {
            meta: meta.clone(),
            content,
        };
        let misfit = |meta: &Meta| Misfit {
            meta: meta.clone(),
            detail: String::new(),
        };
        Ok(Page {
            rows: self.metas.iter().map(row).collect(),
            misfits: self.misfits.iter().map(misfit).collect(),
            ..Page::default()
        })
    }

    async fn list(&self, _: &Scope, _: Option<&Cursor>, _: usize) -> Result<Vec<Meta>> {
        Ok(self.metas.clone())
    }

    async fn fetch(&self, scope: &Scope, _: &[ObjectId]) -> Result<Page> {
        self.page(scope, None, usize::MAX).await
    }
}

#[async_trait]
impl Definitions for Scripted {
    async fn templates(&self) -> Result<Vec<TemplateId>> {
        Ok(vec![TemplateId::new(TEMPLATE)])
    }

    async fn web_template(&self, template: &TemplateId) -> Result<String> {
        Ok(template.to_string())
    }
}

#[async_trait]
impl FlatOracle for Scripted {
    async fn flat(&self, meta: &Meta) -> Result<String> {
        Ok(meta.change_type.clone())
    }
}

impl Source for Scripted {
    fn usage(&self) -> Usage {
        Usage {
            requests: 7,
            ..Usage::default()
        }
    }
}

const TEMPLATE: &str = "vitals";
const EHR: &str = "7D44B88C-4199-4BAD-97DC-D78268E01398";

fn at(micros: i64) -> Instant {
    Instant::from_micros(micros).unwrap()
}

fn object(number: u32) -> ObjectId {
    ObjectId::new(&format!("{number:08x}-0000-4000-8000-000000000000"))
}

fn meta(micros: i64, number: u32) -> Meta {
    Meta {
        uid: VersionUid::parse(&format!("{}::sys::1", object(number).as_str())).unwrap(),
        ehr: EhrId::new(EHR),
        template: TemplateId::new(TEMPLATE),
        committed: at(micros),
        position: None,
        change_type: "creation".to_owned(),
    }
}

/// Commit times from 100 to 200, one template, one EHR.
fn scope() -> Scope {
    Scope {
        templates: vec![TemplateId::new("other"), TemplateId::new(TEMPLATE)],
        ehrs: vec![EhrId::new(EHR)],
        window: Window {
            from: at(100),
            to: at(200),
        },
    }
}

fn rows(metas: &[Meta]) -> CheckedSource {
    CheckedSource::new(Arc::new(Scripted {
        metas: metas.to_vec(),
        ..Scripted::default()
    }))
}

fn misfits(metas: &[Meta]) -> CheckedSource {
    CheckedSource::new(Arc::new(Scripted {
        misfits: metas.to_vec(),
        ..Scripted::default()
    }))
}

fn change(mut meta: Meta, change: impl FnOnce(&mut Meta)) -> Meta {
    change(&mut meta);
    meta
}

/// What the error says, which must stop the run and name nobody.
fn untrue<T>(answer: Result<T>) -> String {
    let Err(error) = answer else {
        panic!("the lie was believed")
    };
    assert_eq!(error.kind(), ErrorKind::SourceUntrue);
    assert_eq!(error.kind().policy().run, InRun::Stop);
    assert!(error.help().is_some());
    let text = format!("{} {:?}", error.chain(), error.help());
    for secret in [EHR, &EHR.to_lowercase(), "-4000-8000-", "vitals", "1970-"] {
        assert!(!text.contains(secret), "{text}");
    }
    error.chain()
}

/// Page, list and fetch of the same rows; the object asked for is that of each row.
async fn all(metas: &[Meta], said: &str) {
    let source = rows(metas);
    let objects: Vec<ObjectId> = metas.iter().map(|m| m.uid.object_id().clone()).collect();
    for told in [
        untrue(source.page(&scope(), None, 500).await),
        untrue(source.list(&scope(), None, 500).await),
        untrue(source.fetch(&scope(), &objects).await),
    ] {
        assert!(told.contains(said), "{told}");
    }
}

#[tokio::test]
async fn what_answers_the_question_passes() {
    let metas = [meta(100, 1), meta(150, 3), meta(150, 4), meta(199, 2)];
    let source = rows(&metas);
    let after = meta(99, 9).cursor();
    for after in [None, Some(&after)] {
        assert_eq!(source.page(&scope(), after, 4).await.unwrap().rows.len(), 4);
        assert_eq!(source.list(&scope(), after, 4).await.unwrap(), metas);
    }
    let objects = [object(1), object(2), object(3), object(4), object(5)];
    assert_eq!(
        source.fetch(&scope(), &objects).await.unwrap().rows.len(),
        4
    );
    let everything = Scope {
        templates: Vec::new(),
        ehrs: Vec::new(),
        window: Window::EVER,
    };
    assert_eq!(source.list(&everything, None, 4).await.unwrap(), metas);
    assert_eq!(source.count(&scope()).await.unwrap(), 4);
    assert_eq!(source.usage().requests, 7);
    assert_eq!(
        source.templates().await.unwrap(),
        [TemplateId::new(TEMPLATE)]
    );
    let template = TemplateId::new("t");
    assert_eq!(source.web_template(&template).await.unwrap(), "t");
    assert_eq!(source.flat(&metas[0]).await.unwrap(), "creation");
}

#[tokio::test]
async fn a_row_of_another_template_is_a_lie() {
    for other in ["Vitals", "vitals ", "evil"] {
        let lie = change(meta(150, 2), |meta| meta.template = TemplateId::new(other));
        all(&[meta(120, 1), lie], "condition on the template").await;
    }
}

#[tokio::test]
async fn a_row_of_another_ehr_is_a_lie_and_case_does_not_matter() {
    let other = EhrId::new("other");
    let lie = change(meta(150, 2), |meta| meta.ehr = other.clone());
    all(
        &[meta(120, 1), lie.clone()],
        "ignored the condition on the EHR (`e/ehr_id/value`)",
    )
    .await;
    let shouting = Scope {
        ehrs: vec![EhrId::new("OTHER")],
        ..scope()
    };
    assert!(rows(&[lie]).page(&shouting, None, 5).await.is_ok());
}

#[tokio::test]
async fn a_row_outside_the_window_is_a_lie() {
    for micros in [0, 99] {
        all(&[meta(micros, 1)], "lower bound of the commit time").await;
    }
    for micros in [200, 201, 1_000_000] {
        all(
            &[meta(150, 1), meta(micros, 2)],
            "upper bound of the commit time",
        )
        .await;
    }
}

#[tokio::test]
async fn a_row_that_is_not_behind_the_cursor_is_a_lie() {
    let after = meta(150, 5).cursor();
    for lie in [meta(149, 9), meta(150, 4), meta(150, 5)] {
        let source = rows(&[lie, meta(160, 1)]);
        for told in [
            untrue(source.page(&scope(), Some(&after), 500).await),
            untrue(source.list(&scope(), Some(&after), 500).await),
        ] {
            assert!(told.contains("behind the last row"), "{told}");
        }
    }
    let source = rows(&[meta(150, 6), meta(160, 1)]);
    assert!(source.page(&scope(), Some(&after), 500).await.is_ok());
}

#[tokio::test]
async fn rows_out_of_order_are_a_lie_but_fetched_ones_have_none() {
    for metas in [
        [meta(160, 1), meta(150, 2)],
        [meta(150, 2), meta(150, 1)],
        [meta(150, 2), meta(150, 2)],
    ] {
        let source = rows(&metas);
        for told in [
            untrue(source.page(&scope(), None, 500).await),
            untrue(source.list(&scope(), None, 500).await),
        ] {
            assert!(told.contains("the order"), "{told}");
        }
    }
    let source = rows(&[meta(160, 1), meta(150, 2)]);
    assert!(
        source
            .fetch(&scope(), &[object(1), object(2)])
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn ties_that_only_the_source_can_place_are_not_called_out_of_order() {
    let fine = |number, digits: &str| {
        change(meta(150, number), |meta| {
            meta.position = Some(digits.to_owned())
        })
    };
    let metas = [meta(150, 9), fine(8, "1"), fine(3, "2"), meta(151, 1)];
    assert!(rows(&metas).page(&scope(), None, 500).await.is_ok());
    let after = fine(3, "2").cursor();
    let told = untrue(rows(&[fine(3, "2")]).page(&scope(), Some(&after), 5).await);
    assert!(told.contains("behind the last row"), "{told}");
    assert!(
        rows(&[fine(2, "3")])
            .page(&scope(), Some(&after), 5)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn an_object_that_nobody_asked_for_is_a_lie() {
    let source = rows(&[meta(150, 2)]);
    for asked in [vec![object(1)], vec![object(1), object(3)]] {
        let told = untrue(source.fetch(&scope(), &asked).await);
        assert!(told.contains("condition on the uid"), "{told}");
    }
    let source = misfits(&[meta(150, 2)]);
    let told = untrue(source.fetch(&scope(), &[object(1)]).await);
    assert!(told.contains("condition on the uid"), "{told}");
}

#[tokio::test]
async fn more_rows_than_asked_for_are_a_lie() {
    let metas = [meta(150, 1), meta(151, 2), meta(152, 3)];
    for limit in [0, 1, 2] {
        for told in [
            untrue(rows(&metas).page(&scope(), None, limit).await),
            untrue(rows(&metas).list(&scope(), None, limit).await),
            untrue(misfits(&metas).page(&scope(), None, limit).await),
        ] {
            assert!(told.contains("`fetch`"), "{told}");
        }
    }
}

#[tokio::test]
async fn one_object_twice_is_a_lie() {
    let newer = change(meta(170, 1), |meta| {
        meta.uid = VersionUid::parse(&format!("{}::sys::2", object(1).as_str())).unwrap();
    });
    for metas in [
        vec![meta(150, 1), newer],
        vec![meta(150, 1), meta(160, 2), meta(170, 1)],
    ] {
        all(&metas, "twice").await;
    }
}

#[tokio::test]
async fn a_misfit_is_held_to_what_can_be_read_of_it() {
    let unreadable = change(meta(150, 1), |meta| {
        meta.uid = VersionUid::parse("unreadable-0123456789abcdef::unknown::1").unwrap();
        meta.ehr = EhrId::new("");
        meta.template = TemplateId::new("");
    });
    let source = misfits(std::slice::from_ref(&unreadable));
    let after = meta(150, 9).cursor();
    assert!(source.page(&scope(), Some(&after), 5).await.is_ok());
    assert!(source.fetch(&scope(), &[object(4)]).await.is_ok());
    assert!(
        rows(std::slice::from_ref(&unreadable))
            .list(&scope(), Some(&after), 5)
            .await
            .is_ok()
    );
    for (lie, said) in [
        (
            change(unreadable.clone(), |m| m.ehr = EhrId::new("x")),
            "EHR",
        ),
        (
            change(unreadable.clone(), |m| m.template = TemplateId::new("x")),
            "template",
        ),
        (
            change(unreadable.clone(), |m| m.committed = at(99)),
            "lower bound",
        ),
        (
            change(unreadable.clone(), |m| m.committed = at(200)),
            "upper bound",
        ),
        (
            change(unreadable.clone(), |m| m.committed = at(149)),
            "behind the last row",
        ),
    ] {
        let told = untrue(misfits(&[lie]).page(&scope(), Some(&after), 5).await);
        assert!(told.contains(said), "{told}");
    }
}

fn line(template: &str, first: i64, last: i64) -> CensusLine {
    CensusLine {
        template: TemplateId::new(template),
        count: 3,
        first: at(first),
        last: at(last),
    }
}

#[tokio::test]
async fn a_census_of_what_nobody_asked_for_is_a_lie() {
    let census = |lines: &[CensusLine]| {
        CheckedSource::new(Arc::new(Scripted {
            lines: lines.to_vec(),
            ..Scripted::default()
        }))
    };
    // The end of the window is no condition of a census.
    let sound = [line(TEMPLATE, 100, 5000), line("other", 120, 120)];
    assert_eq!(census(&sound).census(&scope()).await.unwrap().lines, sound);
    for (lines, said) in [
        (vec![line("evil", 150, 160)], "condition on the template"),
        (
            vec![sound[0].clone(), line("Vitals", 150, 160)],
            "condition on the template",
        ),
        (vec![line(TEMPLATE, 99, 160)], "lower bound"),
        (vec![line(TEMPLATE, 160, 150)], "`MIN` and `MAX`"),
        (vec![sound[0].clone(), sound[0].clone()], "two lines"),
    ] {
        let told = untrue(census(&lines).census(&scope()).await);
        assert!(told.contains(said), "{told}");
    }
}

/// A server of compositions at random places, and one condition that it may ignore.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ignored {
    Nothing,
    Template,
    Ehr,
    From,
    To,
    After,
    Order,
    Limit,
}

fn answer(world: &[Meta], after: Option<&Cursor>, limit: usize, ignored: Ignored) -> Vec<Meta> {
    let scope = scope();
    let mut rows: Vec<Meta> = world
        .iter()
        .filter(|meta| ignored == Ignored::Template || scope.templates.contains(&meta.template))
        .filter(|meta| ignored == Ignored::Ehr || scope.ehrs.contains(&meta.ehr))
        .filter(|meta| ignored == Ignored::From || meta.committed >= scope.window.from)
        .filter(|meta| ignored == Ignored::To || meta.committed < scope.window.to)
        .filter(|meta| {
            ignored == Ignored::After || after.is_none_or(|after| meta.cursor() > *after)
        })
        .cloned()
        .collect();
    rows.sort_by_key(Meta::cursor);
    if ignored == Ignored::Order {
        rows.reverse();
    }
    if ignored != Ignored::Limit {
        rows.truncate(limit);
    }
    rows
}

proptest! {
    #[test]
    fn an_answer_passes_exactly_if_ignoring_made_no_difference(
        places in proptest::collection::vec((80_i64..220, 0_u8..4), 0..30),
        start in proptest::option::of((100_i64..200, 0_u32..30)),
        limit in 1_usize..20,
        ignored in prop_oneof![
            Just(Ignored::Nothing), Just(Ignored::Template), Just(Ignored::Ehr), Just(Ignored::From),
            Just(Ignored::To), Just(Ignored::After), Just(Ignored::Order), Just(Ignored::Limit),
        ],
    ) {
        let world: Vec<Meta> = places
            .iter()
            .zip(0..)
            .map(|((micros, kind), number)| change(meta(*micros, number), |meta| match kind {
                0 => meta.template = TemplateId::new("evil"),
                1 => meta.ehr = EhrId::new("evil"),
                _ => {}
            }))
            .collect();
        let after = start.map(|(micros, number)| meta(micros, number).cursor());
        let given = answer(&world, after.as_ref(), limit, ignored);
        // A reversed answer that is cut shows other rows, but each of them answers the question.
        let is_true = match ignored {
            Ignored::Order => given.len() < 2,
            _ => given == answer(&world, after.as_ref(), limit, Ignored::Nothing),
        };
        prop_assert_eq!(check_list(&scope(), after.as_ref(), limit, &given).is_ok(), is_true);
    }
}
