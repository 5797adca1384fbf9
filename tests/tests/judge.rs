//! The judge of the other scenarios, judged: a copy that is wrong in one place is noticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use atlas_scenarios::source::{Expected, of_sample, sample};
use atlas_scenarios::{Atlas, Kind, Store, assert_copy};

async fn accepts(store: &Store, expected: &Expected) -> bool {
    let (store, expected) = (store.clone(), expected.clone());
    tokio::spawn(async move { assert_copy(&store, &expected).await })
        .await
        .is_ok()
}

atlas_scenarios::into_both_stores!(every_way_to_be_wrong_is_noticed);

async fn every_way_to_be_wrong_is_noticed(kind: Kind) {
    let server = sample(60).start().await.unwrap();
    let atlas = Atlas::new(kind, &server.base_url()).await;
    atlas.export(&[]).await.exits(0);
    let (store, expected) = (atlas.store(), of_sample(&server.handle()));
    assert!(accepts(store, &expected).await);

    let one = "(SELECT min(id) FROM compositions WHERE template_id = 'sample_vital_signs.v1')";
    let (text, json, keeping_ids) = match kind {
        Kind::Sqlite => ("content", "", ""),
        Kind::Postgres => ("content::text", "::jsonb", "OVERRIDING SYSTEM VALUE"),
    };
    store
        .execute("CREATE TABLE saved AS SELECT * FROM compositions")
        .await;
    let change = |set: String| format!("UPDATE compositions SET {set} WHERE id = {one}");
    let replaced =
        |from: &str, to: &str| change(format!("content = replace({text}, '{from}', '{to}'){json}"));
    let mut wrongs = vec![
        (
            "a row is missing",
            format!("DELETE FROM compositions WHERE id = {one}"),
        ),
        (
            "a row is too many",
            format!(
                "CREATE TABLE surplus AS SELECT * FROM compositions WHERE id = {one};
                 UPDATE surplus SET id = 'another', row_id = -row_id;
                 INSERT INTO compositions {keeping_ids} SELECT * FROM surplus"
            ),
        ),
        ("an EHR is another", change("ehr_id = 'another'".to_owned())),
        ("a version is another", change("version = 2".to_owned())),
        (
            "a checksum is another",
            change("checksum = upper(checksum)".to_owned()),
        ),
        ("a text is another", replaced("ISO_639-1", "ISO_639-2")),
        ("a member is missing", replaced("rm_version", "rm-version")),
        (
            "a tombstone stands for it",
            change("deleted_at = exported_at".to_owned()),
        ),
    ];
    if kind == Kind::Sqlite {
        wrongs.push(("number text is another", replaced(".0}", ".00}")));
    }
    for (what, statement) in wrongs {
        let before = store.query("SELECT * FROM compositions ORDER BY id").await;
        store.execute(&statement).await;
        let after = store.query("SELECT * FROM compositions ORDER BY id").await;
        assert_ne!(before, after, "{what}: nothing was changed");
        assert!(
            !accepts(store, &expected).await,
            "{what}, and nobody notices"
        );
        store
            .execute(&format!(
                "DELETE FROM compositions; INSERT INTO compositions {keeping_ids} SELECT * FROM saved"
            ))
            .await;
        assert!(accepts(store, &expected).await);
    }
}
