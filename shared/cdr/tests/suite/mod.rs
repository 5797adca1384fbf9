//! What every server must keep for Atlas, sentence by sentence: the contract of `Source`, over a small world
//! that each test has for itself. `contract!` makes a test of each sentence for one kind of server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use atlas_cdr::Cdr;
use atlas_engine::ErrorKind;
use atlas_engine::model::{Cursor, Meta, Scope, Window};
use atlas_engine::ports::{Compositions, Definitions, FlatOracle, Source};
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::time::Instant;

/// A server, and a part of it that nobody else changes.
#[async_trait]
pub trait World: Send + Sync {
    /// The server as Atlas sees it.
    fn source(&self) -> &Cdr;
    /// At least 8 compositions of at least 2 templates, two of them committed in the same microsecond, all readable.
    fn scope(&self) -> Scope;
    /// Writes a new version of a composition.
    async fn update(&self, meta: &Meta);
    /// Deletes a composition; its history stays.
    async fn delete(&self, meta: &Meta);
    /// Removes a composition and its history.
    async fn erase(&self, meta: &Meta);
    /// Where there is one composition that the server cannot read back, and at least one that it can.
    async fn unreadable(&self) -> (Scope, ObjectId);
}

const ALL: usize = 10_000;
const MICROSECOND: Duration = Duration::from_micros(1);

pub async fn keyset_pages_lose_nothing_and_repeat_nothing(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let expected = uids(&source.list(&scope, None, ALL).await.unwrap());
    assert!(expected.len() >= 8, "the world is too small");
    for limit in [1, 2, 3, 7, 500] {
        let (mut listed, mut read) = (Vec::new(), Vec::new());
        let mut after: Option<Cursor> = None;
        loop {
            let metas = source.list(&scope, after.as_ref(), limit).await.unwrap();
            let page = source.page(&scope, after.as_ref(), limit).await.unwrap();
            assert!(page.rows.len() <= limit);
            read.extend(page.rows.iter().map(|row| row.meta.uid.as_str().to_owned()));
            let Some(last) = metas.last() else { break };
            after = Some(last.cursor());
            listed.extend(uids(&metas));
        }
        assert_eq!(listed, expected, "listed by {limit}");
        assert_eq!(read, expected, "read by {limit}");
    }
}

pub async fn order_is_by_commit_time_and_ties_by_object_id(world: &dyn World) {
    let metas = world
        .source()
        .list(&world.scope(), None, ALL)
        .await
        .unwrap();
    assert!(
        metas
            .windows(2)
            .all(|pair| pair[0].cursor() < pair[1].cursor())
    );
    assert!(
        metas
            .windows(2)
            .any(|pair| pair[0].committed == pair[1].committed),
        "the world has no tie"
    );
}

pub async fn windows_are_half_open_to_the_microsecond(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let metas = source.list(&scope, None, ALL).await.unwrap();
    for meta in metas.iter().take(6) {
        let at = meta.committed;
        let next = at.checked_add(MICROSECOND).unwrap();
        for (from, to) in [
            (at, next),
            (Instant::EPOCH, at),
            (Instant::EPOCH, next),
            (next, scope.window.to),
        ] {
            let scope = within(&scope, from, to);
            let expected: Vec<Meta> = metas
                .iter()
                .filter(|meta| from <= meta.committed && meta.committed < to)
                .cloned()
                .collect();
            assert_eq!(source.list(&scope, None, ALL).await.unwrap(), expected);
            assert_eq!(source.count(&scope).await.unwrap(), expected.len() as u64);
            let page = source.page(&scope, None, 500).await.unwrap();
            assert_eq!(page.rows.len(), expected.len());
        }
    }
}

pub async fn a_cursor_before_the_window_does_not_widen_it(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let metas = source.list(&scope, None, ALL).await.unwrap();
    let scope = within(&scope, metas[4].committed, scope.window.to);
    let listed = source
        .list(&scope, Some(&metas[0].cursor()), ALL)
        .await
        .unwrap();
    assert!(!listed.is_empty());
    assert!(
        listed
            .iter()
            .all(|meta| meta.committed >= scope.window.from)
    );
}

pub async fn an_empty_window_holds_nothing_and_costs_nothing(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let before = source.usage();
    let scope = within(&scope, Instant::MAX, Instant::EPOCH);
    assert_eq!(source.count(&scope).await.unwrap(), 0);
    assert!(
        source
            .page(&scope, None, 500)
            .await
            .unwrap()
            .rows
            .is_empty()
    );
    assert!(source.list(&scope, None, 500).await.unwrap().is_empty());
    assert_eq!(source.usage(), before);
}

pub async fn a_census_groups_what_a_listing_shows(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let metas = source.list(&scope, None, ALL).await.unwrap();
    let middle = metas[metas.len() / 2].committed;
    for from in [Instant::EPOCH, middle] {
        let scope = within(&scope, from, scope.window.to);
        let mut expected: BTreeMap<&str, Vec<Instant>> = BTreeMap::new();
        for meta in metas.iter().filter(|meta| meta.committed >= from) {
            expected
                .entry(meta.template.as_str())
                .or_default()
                .push(meta.committed);
        }
        let census = source.census(&scope).await.unwrap();
        assert_eq!(census.lines.len(), expected.len());
        for line in &census.lines {
            let times = &expected[line.template.as_str()];
            assert_eq!(line.count, times.len() as u64);
            assert_eq!(Some(&line.first), times.first());
            assert_eq!(Some(&line.last), times.last());
        }
        // The header has whole seconds.
        let newest = metas.last().unwrap().committed;
        assert!(census.server_time.saturating_add(Duration::from_secs(1)) > newest);
    }
}

pub async fn a_census_reaches_back_to_the_first_instant_there_is(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let scope = within(&scope, Instant::MIN, scope.window.to);
    let census = source.census(&scope).await.unwrap();
    let count = source.count(&scope).await.unwrap();
    assert!(count >= 8);
    assert_eq!(
        census.lines.iter().map(|line| line.count).sum::<u64>(),
        count
    );
}

pub async fn templates_and_ehrs_restrict_each_other(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let metas = source.list(&scope, None, ALL).await.unwrap();
    let templates: BTreeSet<&TemplateId> = metas.iter().map(|meta| &meta.template).collect();
    assert!(templates.len() >= 2, "the world has one template only");
    let mut sum = 0;
    for template in &templates {
        let scope = Scope {
            templates: vec![(*template).clone()],
            ..scope.clone()
        };
        let listed = source.list(&scope, None, ALL).await.unwrap();
        assert!(listed.iter().all(|meta| meta.template == **template));
        assert_eq!(source.count(&scope).await.unwrap(), listed.len() as u64);
        sum += listed.len();
    }
    assert_eq!(sum, metas.len());
    let scope = Scope {
        templates: templates.into_iter().cloned().collect(),
        ..scope
    };
    assert_eq!(source.count(&scope).await.unwrap(), metas.len() as u64);
}

pub async fn an_unknown_template_has_nothing(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let unknown = TemplateId::new("no such template 'here'");
    let scope = Scope {
        templates: vec![unknown.clone()],
        ..scope
    };
    assert_eq!(source.count(&scope).await.unwrap(), 0);
    assert!(
        source
            .page(&scope, None, 500)
            .await
            .unwrap()
            .rows
            .is_empty()
    );
    assert!(source.census(&scope).await.unwrap().lines.is_empty());
    let error = source.web_template(&unknown).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownTemplate);
}

pub async fn content_belongs_to_its_row(world: &dyn World) {
    let source = world.source();
    let page = source.page(&world.scope(), None, 500).await.unwrap();
    assert!(page.rows.len() >= 8);
    for row in &page.rows {
        let content = page.content(row);
        let text = |path: &[&str]| content.at(path).and_then(|node| node.as_str()).unwrap();
        assert_eq!(
            text(&["archetype_details", "template_id", "value"]),
            row.meta.template.as_str()
        );
        assert!(text(&["uid", "value"]).starts_with(row.meta.uid.object_id().as_str()));
    }
}

pub async fn what_is_fetched_by_uid_is_what_the_page_shows(world: &dyn World) {
    let source = world.source();
    let page = source.page(&world.scope(), None, 500).await.unwrap();
    let objects: Vec<ObjectId> = page
        .rows
        .iter()
        .map(|row| row.meta.uid.object_id().clone())
        .collect();
    let unknown = ObjectId::new("00000000-0000-4000-8000-000000000000");
    for asked in [
        objects.clone(),
        objects[..1].to_vec(),
        [&objects[..], &[unknown]].concat(),
    ] {
        let fetched = source.fetch(&everything(), &asked).await.unwrap();
        let expected: BTreeMap<&str, (&Meta, &str)> = page
            .rows
            .iter()
            .filter(|row| asked.contains(row.meta.uid.object_id()))
            .map(|row| (row.meta.uid.as_str(), (&row.meta, page.content(row).raw())))
            .collect();
        let got: BTreeMap<&str, (&Meta, &str)> = fetched
            .rows
            .iter()
            .map(|row| {
                (
                    row.meta.uid.as_str(),
                    (&row.meta, fetched.content(row).raw()),
                )
            })
            .collect();
        assert_eq!(got, expected);
    }
    assert!(
        source
            .fetch(&everything(), &[])
            .await
            .unwrap()
            .rows
            .is_empty()
    );
}

pub async fn an_unreadable_composition_is_listed_and_fails_its_page(world: &dyn World) {
    let source = world.source();
    let (scope, culprit) = world.unreadable().await;
    let before = source.usage().requests;
    let kind = |error: atlas_engine::Error| error.kind();
    assert_eq!(
        source.page(&scope, None, 500).await.err().map(kind),
        Some(ErrorKind::SourceUnreadable)
    );
    assert_eq!(
        source
            .fetch(&everything(), std::slice::from_ref(&culprit))
            .await
            .err()
            .map(kind),
        Some(ErrorKind::SourceUnreadable)
    );
    assert_eq!(
        source.usage().requests - before,
        2,
        "asked again for nothing"
    );
    let metas = source.list(&scope, None, ALL).await.unwrap();
    assert_eq!(source.count(&scope).await.unwrap(), metas.len() as u64);
    let (bad, good): (Vec<&Meta>, Vec<&Meta>) = metas
        .iter()
        .partition(|meta| *meta.uid.object_id() == culprit);
    assert_eq!(bad.len(), 1);
    let good: Vec<ObjectId> = good
        .iter()
        .map(|meta| meta.uid.object_id().clone())
        .collect();
    assert!(!good.is_empty());
    assert_eq!(
        source.fetch(&everything(), &good).await.unwrap().rows.len(),
        good.len()
    );
    assert_eq!(
        source.flat(bad[0]).await.err().map(kind),
        Some(ErrorKind::SourceUnreadable)
    );
}

pub async fn an_update_moves_its_composition_to_the_end(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let before = source.list(&scope, None, ALL).await.unwrap();
    let old = &before[1];
    world.update(old).await;
    let after = source.list(&scope, None, ALL).await.unwrap();
    let new = after.last().unwrap();
    assert_eq!(new.uid.object_id(), old.uid.object_id());
    assert_eq!(new.uid.version(), old.uid.version() + 1);
    assert_eq!(new.change_type, "modification");
    assert!(new.committed > before.last().unwrap().committed);
    let expected: Vec<&Meta> = before.iter().filter(|meta| meta.uid != old.uid).collect();
    assert_eq!(
        after[..after.len() - 1].iter().collect::<Vec<_>>(),
        expected
    );
    let fetched = source
        .fetch(&everything(), &[old.uid.object_id().clone()])
        .await
        .unwrap();
    assert_eq!(fetched.rows.len(), 1);
    assert_eq!(&fetched.rows[0].meta, new);
}

pub async fn what_is_deleted_or_erased_vanishes(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let before = source.list(&scope, None, ALL).await.unwrap();
    world.delete(&before[0]).await;
    world.erase(&before[2]).await;
    let mut expected = before.clone();
    expected.remove(2);
    expected.remove(0);
    assert_eq!(source.list(&scope, None, ALL).await.unwrap(), expected);
    assert_eq!(source.count(&scope).await.unwrap(), expected.len() as u64);
    let objects: Vec<ObjectId> = before
        .iter()
        .map(|meta| meta.uid.object_id().clone())
        .collect();
    assert_eq!(
        source
            .fetch(&everything(), &objects)
            .await
            .unwrap()
            .rows
            .len(),
        expected.len()
    );
    assert!(
        source
            .fetch(&everything(), &objects[..1])
            .await
            .unwrap()
            .rows
            .is_empty()
    );
    for gone in [&before[0], &before[2]] {
        // By object id: EHRbase still shows the old version of a deleted composition under its own uid.
        assert!(
            source
                .fetch(&everything(), &[gone.uid.object_id().clone()])
                .await
                .unwrap()
                .rows
                .is_empty()
        );
    }
}

pub async fn web_templates_are_there_for_what_is_listed(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let known: BTreeSet<TemplateId> = source.templates().await.unwrap().into_iter().collect();
    let metas = source.list(&scope, None, ALL).await.unwrap();
    let templates: BTreeSet<TemplateId> = metas.into_iter().map(|meta| meta.template).collect();
    assert!(templates.is_subset(&known));
    for template in templates {
        let text = source.web_template(&template).await.unwrap();
        let tape = atlas_openehr::json::Tape::parse(&text).unwrap();
        let root = tape.root(&text);
        assert_eq!(
            root.get("templateId").and_then(|id| id.as_str()).as_deref(),
            Some(template.as_str())
        );
        assert!(root.get("tree").is_some());
    }
}

pub async fn the_server_says_who_it_is(world: &dyn World) {
    let info = world.source().server_info().await.unwrap();
    assert_eq!(info.vendor, Some(atlas_cdr::Vendor::EhrBase));
    assert!(info.version.is_some_and(|version| !version.is_empty()));
}

pub async fn more_requests_than_a_connection_takes_do_no_harm(world: &dyn World) {
    let (source, scope) = (world.source(), world.scope());
    let before = source.usage();
    for _ in 0..230 {
        source.count(&scope).await.unwrap();
    }
    assert_eq!(
        source.usage().requests - before.requests,
        230,
        "some had to be repeated"
    );
}

fn within(scope: &Scope, from: Instant, to: Instant) -> Scope {
    Scope {
        window: Window { from, to },
        ..scope.clone()
    }
}

fn uids(metas: &[Meta]) -> Vec<String> {
    metas
        .iter()
        .map(|meta| meta.uid.as_str().to_owned())
        .collect()
}

/// A test of each sentence, in a world that `$make` makes.
#[macro_export]
macro_rules! contract {
    ($make:path) => {
        $crate::contract! { $make:
            keyset_pages_lose_nothing_and_repeat_nothing,
            order_is_by_commit_time_and_ties_by_object_id,
            windows_are_half_open_to_the_microsecond,
            a_cursor_before_the_window_does_not_widen_it,
            an_empty_window_holds_nothing_and_costs_nothing,
            a_census_groups_what_a_listing_shows,
            a_census_reaches_back_to_the_first_instant_there_is,
            templates_and_ehrs_restrict_each_other,
            an_unknown_template_has_nothing,
            content_belongs_to_its_row,
            what_is_fetched_by_uid_is_what_the_page_shows,
            an_unreadable_composition_is_listed_and_fails_its_page,
            an_update_moves_its_composition_to_the_end,
            what_is_deleted_or_erased_vanishes,
            web_templates_are_there_for_what_is_listed,
            the_server_says_who_it_is,
            more_requests_than_a_connection_takes_do_no_harm,
        }
    };
    ($make:path: $($sentence:ident,)+) => {
        $(#[tokio::test]
        async fn $sentence() {
            $crate::suite::$sentence(&$make().await).await;
        })+
    };
}

/// All that a source has.
fn everything() -> Scope {
    Scope {
        templates: Vec::new(),
        ehrs: Vec::new(),
        window: Window::EVER,
    }
}
