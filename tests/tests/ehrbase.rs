//! A real EHRbase with the corpus, into both stores. The oracle is GET, composition by composition.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;

use atlas_ehrbase::corpus::{self, Composition as Loaded};
use atlas_ehrbase::{EhrBase, Shared, shared};
use atlas_scenarios::source::{
    Expected, next_second, object_id, of_ehrbase, post_again, without_uid,
};
use atlas_scenarios::{Atlas, Kind, assert_copy, assert_row};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

atlas_scenarios::into_both_stores!(
    the_corpus_arrives_as_get_shows_it_and_the_unreadable_is_quarantined,
    the_default_format_is_the_servers_own_flat,
    a_second_run_asks_four_times_at_most_and_writes_nothing,
    an_update_replaces_what_was_there,
    a_template_that_is_added_to_the_list_is_backfilled,
    ties_and_small_pages_lose_nothing,
);

/// The EHRs that hold the corpus; nobody changes them.
fn ehrs_of(loaded: &[Loaded]) -> Vec<&str> {
    let ehrs: BTreeSet<&str> = loaded.iter().map(|one| one.ehr_id.as_str()).collect();
    ehrs.into_iter().collect()
}

async fn corpus_into(kind: Kind) -> (Shared, Atlas) {
    let shared = shared().await.unwrap();
    let ehrs = ehrs_of(&shared.loaded.compositions);
    let atlas = Atlas::of_ehrbase(kind, &shared.ehrbase, &ehrs).await;
    next_second(&shared.ehrbase).await;
    (shared, atlas)
}

/// What GET answers for the corpus, asked once for all tests of this file.
async fn corpus_by_get(ehrbase: &EhrBase, loaded: &corpus::Loaded) -> &'static Expected {
    static CORPUS: OnceCell<Expected> = OnceCell::const_new();
    CORPUS
        .get_or_init(|| of_ehrbase(ehrbase, loaded.readable()))
        .await
}

/// Compositions that can be read back, of different templates.
fn some_readable(shared: &Shared, count: usize) -> Vec<&Loaded> {
    let mut templates = BTreeSet::new();
    let fresh = |one: &&Loaded| templates.insert(one.template_id.clone());
    let some: Vec<&Loaded> = shared.loaded.readable().filter(fresh).take(count).collect();
    assert_eq!(some.len(), count);
    some
}

async fn the_corpus_arrives_as_get_shows_it_and_the_unreadable_is_quarantined(kind: Kind) {
    let (Shared { ehrbase, loaded }, atlas) = corpus_into(kind).await;
    let report = atlas.export(&[]).await.exits(1);

    assert_copy(atlas.store(), corpus_by_get(&ehrbase, &loaded).await).await;
    let mut unreadable: Vec<&str> = loaded
        .unreadable()
        .map(|one| one.version_uid.as_str())
        .collect();
    unreadable.sort_unstable();
    assert!(!unreadable.is_empty(), "this server reads everything back");
    assert_eq!(atlas.store().quarantined().await, unreadable);

    assert_eq!(report["outcome"], "partial");
    assert_eq!(report["written"], json!(loaded.readable().count()));
    assert_eq!(report["quarantined"], json!(unreadable.len()));
    assert_eq!(report["read"], json!(loaded.compositions.len()));
}

async fn the_default_format_is_the_servers_own_flat(kind: Kind) {
    let (Shared { ehrbase, loaded }, atlas) = corpus_into(kind).await;
    let atlas = atlas.with("export.export_composition_format", json!("preserve"));
    atlas.export(&[]).await.exits(1);
    let mut expected = corpus_by_get(&ehrbase, &loaded).await.clone();
    for composition in expected.values_mut() {
        composition.content = ehrbase
            .get_flat(&composition.ehr_id, &composition.uid)
            .await
            .unwrap();
    }
    assert_copy(atlas.store(), &expected).await;
}

async fn a_second_run_asks_four_times_at_most_and_writes_nothing(kind: Kind) {
    let (Shared { loaded, .. }, atlas) = corpus_into(kind).await;
    atlas.export(&[]).await.exits(1);
    let before = atlas.store().rows().await;

    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["outcome"], "complete");
    assert_eq!(report["written"], 0);
    let requests = report["source_requests"].as_u64().unwrap();
    // The corpus was committed within the overlap.
    assert!((1..=4).contains(&requests), "asked {requests} times");
    for (id, row) in atlas.store().rows().await {
        assert_eq!(row.run_id, before[&id].run_id, "a row was written again");
    }

    let status = atlas.run(&["status", "--json"]).await.exits(0);
    assert_eq!(status["quarantined"], json!(loaded.unreadable().count()));
}

async fn an_update_replaces_what_was_there(kind: Kind) {
    let shared = shared().await.unwrap();
    let ehrbase = &shared.ehrbase;
    let ehr_id = ehrbase.create_ehr().await.unwrap();
    let mut held = Vec::new();
    for original in some_readable(&shared, 4) {
        held.push(post_again(ehrbase, original, &ehr_id).await);
    }
    let atlas = Atlas::of_ehrbase(kind, ehrbase, &[&ehr_id]).await;
    next_second(ehrbase).await;
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], 4);

    let text = without_uid(ehrbase, &held[0]).await;
    let before = held[0].version_uid.clone();
    held[0].version_uid = ehrbase
        .put_composition(&ehr_id, &before, &text)
        .await
        .unwrap();
    assert!(held[0].version_uid.ends_with("::2"));
    next_second(ehrbase).await;
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], 1);
    assert_copy(atlas.store(), &of_ehrbase(ehrbase, held.iter()).await).await;
}

async fn a_template_that_is_added_to_the_list_is_backfilled(kind: Kind) {
    let shared = shared().await.unwrap();
    let ehrbase = &shared.ehrbase;
    let ehr_id = ehrbase.create_ehr().await.unwrap();
    let mut held = Vec::new();
    for original in some_readable(&shared, 3) {
        held.push(post_again(ehrbase, original, &ehr_id).await);
    }
    let templates: Vec<&str> = held.iter().map(|one| one.template_id.as_str()).collect();
    let mut atlas = Atlas::of_ehrbase(kind, ehrbase, &[&ehr_id]).await;
    atlas.set("openehr.query.template_ids", json!([templates[0]]));
    next_second(ehrbase).await;
    atlas.export(&[]).await.exits(0);
    assert_copy(
        atlas.store(),
        &of_ehrbase(ehrbase, held.iter().take(1)).await,
    )
    .await;

    atlas.set("openehr.query.template_ids", json!(templates[..2]));
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], 1);
    assert_copy(
        atlas.store(),
        &of_ehrbase(ehrbase, held.iter().take(2)).await,
    )
    .await;

    // No list means all of the server.
    atlas.set("openehr.query.template_ids", json!([]));
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], 1);
    assert_copy(atlas.store(), &of_ehrbase(ehrbase, held.iter()).await).await;
}

async fn ties_and_small_pages_lose_nothing(kind: Kind) {
    let (Shared { ehrbase, loaded }, atlas) = corpus_into(kind).await;
    let atlas = atlas
        .with("openehr.query.batch_size", json!(3))
        .with("openehr.query.parallel", json!(4))
        .with("export.slice_size", json!(5));
    let report = atlas.export(&[]).await.exits(1);
    assert_eq!(report["written"], json!(loaded.readable().count()));
    assert_copy(atlas.store(), corpus_by_get(&ehrbase, &loaded).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_filters_everything_on_the_server_is_copied() {
    let Shared { ehrbase, loaded } = shared().await.unwrap();
    let mut atlas = Atlas::of_ehrbase(Kind::Sqlite, &ehrbase, &[]).await;
    next_second(&ehrbase).await;
    let report = atlas.export(&[]).await.exits(1);
    let read = ["written", "unchanged", "filtered", "quarantined"]
        .iter()
        .map(|counter| report[counter].as_u64().unwrap())
        .sum::<u64>();
    assert_eq!(report["read"].as_u64(), Some(read));

    // Others write at the same time: what they add may be there too.
    let rows = atlas.store().rows().await;
    for (id, composition) in corpus_by_get(&ehrbase, &loaded).await {
        assert_row(Kind::Sqlite, &rows[id], composition);
    }
    let quarantined = atlas.store().quarantined().await;
    assert!(
        loaded
            .unreadable()
            .all(|one| quarantined.contains(&one.version_uid))
    );

    let one = loaded.readable().next().unwrap();
    atlas.set(
        "openehr.query.ehr_ids",
        Value::from(vec![one.ehr_id.as_str()]),
    );
    atlas.export(&[]).await;
    assert_eq!(
        atlas.store().rows().await[object_id(&one.version_uid)].uid,
        one.version_uid
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_and_discover_understand_a_real_server() {
    let (Shared { loaded, .. }, atlas) = corpus_into(Kind::Sqlite).await;
    atlas.run(&["doctor", "--json"]).await.exits(0);
    let found = atlas
        .run(&["discover", "--json"])
        .await
        .exits(0)
        .to_string();
    let templates: BTreeSet<&str> = loaded
        .compositions
        .iter()
        .map(|one| one.template_id.as_str())
        .collect();
    for template in templates {
        assert!(
            found.contains(&json!(template).to_string()),
            "{template} is not discovered"
        );
    }
}
