//! FLAT against a real EHRbase: the doctor's comparison, templates that are kept, names that SQL likes.
//! That `preserve` is the server's own FLAT, into both stores, is in `ehrbase.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use atlas_ehrbase::{Shared, shared};
use atlas_scenarios::json::{self, Tree};
use atlas_scenarios::source::{next_second, object_id};
use atlas_scenarios::{Atlas, Kind, Row};
use reqwest::Method;
use reqwest::header::ACCEPT;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The corpus on a server, and a copy of it in `format` that does not exist yet.
async fn corpus_as(format: &str) -> (Shared, Atlas) {
    let shared = shared().await.unwrap();
    let ehrs: BTreeSet<&str> = shared
        .loaded
        .compositions
        .iter()
        .map(|one| one.ehr_id.as_str())
        .collect();
    let ehrs: Vec<&str> = ehrs.into_iter().collect();
    let atlas = Atlas::of_ehrbase(Kind::Sqlite, &shared.ehrbase, &ehrs)
        .await
        .with("export.export_composition_format", json!(format));
    next_second(&shared.ehrbase).await;
    (shared, atlas)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_composition_equals_the_servers_flat_and_every_template_is_kept_as_served() {
    let (Shared { ehrbase, loaded }, atlas) = corpus_as("preserve").await;
    let report = atlas.export(&[]).await.exits(1);
    assert_eq!(report["written"], json!(loaded.readable().count()));
    let rows = atlas.store().rows().await;
    for one in loaded.readable() {
        let theirs = ehrbase
            .get_flat(&one.ehr_id, &one.version_uid)
            .await
            .unwrap();
        let ours = &rows[object_id(&one.version_uid)].content;
        assert_eq!(json::parse(ours), json::parse(&theirs), "{}", one.stem);
    }

    let kept = atlas
        .store()
        .query("SELECT template_id, web_template, digest FROM atlas_templates")
        .await;
    let templates: BTreeSet<&str> = loaded
        .compositions
        .iter()
        .map(|one| one.template_id.as_str())
        .collect();
    assert_eq!(
        kept.iter()
            .map(|row| row[0].as_str())
            .collect::<BTreeSet<_>>(),
        templates
    );
    for row in &kept {
        let path = format!("definition/template/adl1.4/{}", row[0]);
        let request = ehrbase.request(Method::GET, &path);
        let request = request.header(ACCEPT, "application/openehr.wt+json");
        let served = request.send().await.unwrap().text().await.unwrap();
        assert!(
            row[1] == served,
            "`{}` is kept as another text than is served",
            row[0]
        );
        let digest = Sha256::digest(&served);
        assert_eq!(
            row[2],
            digest
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        );
    }

    // What FLAT does not carry was looked for in every composition, and something was found.
    let templates = report["templates"].as_array().unwrap();
    let looked_at: u64 = templates
        .iter()
        .map(|one| one["losses"]["looked_at"].as_u64().unwrap())
        .sum();
    assert_eq!(looked_at as usize, loaded.readable().count());
    assert!(
        templates
            .iter()
            .any(|one| one["losses"]["leaves"]["encoding"].is_u64())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_every_template_equal() {
    let (Shared { loaded, .. }, atlas) = corpus_as("preserve").await;
    let answer = atlas
        .run(&["doctor", "--json", "--flat-sample", "4"])
        .await
        .exits(0);
    let checks = answer["checks"].as_array().unwrap();
    let flat: Vec<&Value> = checks
        .iter()
        .filter(|check| check["check"] == "FLAT")
        .collect();
    let equal: Vec<&str> = flat
        .iter()
        .filter(|check| check["status"] == "ok")
        .map(|check| check["detail"].as_str().unwrap())
        .collect();
    let [equal] = equal[..] else {
        panic!("{flat:#?}")
    };
    let numbers: Vec<usize> = equal
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let templates: BTreeSet<&str> = loaded
        .readable()
        .map(|one| one.template_id.as_str())
        .collect();
    assert!(
        matches!(numbers[..], [compositions, of] if compositions >= of && of >= templates.len()),
        "{equal}"
    );
    for check in flat {
        assert!(
            !check["detail"].as_str().unwrap().contains("differ"),
            "{check}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flatten_loses_no_key_and_its_names_lead_back() {
    let (Shared { ehrbase, loaded }, atlas) = corpus_as("flatten").await;
    let report = atlas.export(&[]).await.exits(1);
    assert_eq!(report["written"], json!(loaded.readable().count()));
    let templates = names_by_template(&atlas).await;
    for (template, names) in &templates {
        let distinct: BTreeSet<&String> = names.values().collect();
        assert_eq!(
            distinct.len(),
            names.len(),
            "two paths of `{template}` share a name"
        );
    }
    let rows = atlas.store().rows().await;
    let mut from_the_map = 0;
    for one in loaded.readable() {
        let flat = ehrbase
            .get_flat(&one.ehr_id, &one.version_uid)
            .await
            .unwrap();
        let Row {
            content, checksum, ..
        } = &rows[object_id(&one.version_uid)];
        let flattened = json::parse(content);
        assert_eq!(checksum, &flattened.checksum(), "{}", one.stem);
        let (flat, mut flattened) = (members(json::parse(&flat)), members(flattened));
        assert_eq!(flat.len(), flattened.len(), "{}", one.stem);
        for name in flattened.keys() {
            let is_valid = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
            assert!(name.chars().all(is_valid), "{}: {name}", one.stem);
        }
        let names = &templates[&one.template_id];
        for (key, value) in flat {
            let template_path = without_indexes(&key);
            let mut name = spelled(&key);
            if let Some(mapped) = names.get(&template_path) {
                from_the_map += 1;
                name += mapped.strip_prefix(&spelled(&template_path)).unwrap();
            }
            assert_eq!(
                flattened.remove(&name),
                Some(value),
                "{}: {key} is not in {name}",
                one.stem
            );
        }
    }
    assert!(
        from_the_map > 1_000,
        "only {from_the_map} keys are in the map"
    );
}

/// FLAT path without indexes to name, as the store keeps it for each template.
async fn names_by_template(atlas: &Atlas) -> BTreeMap<String, BTreeMap<String, String>> {
    let kept = atlas
        .store()
        .query("SELECT template_id, names FROM atlas_templates")
        .await;
    kept.into_iter()
        .map(|row| {
            let [template, names] = row.try_into().unwrap();
            (template, serde_json::from_str(&names).unwrap())
        })
        .collect()
}

fn members(object: Tree) -> BTreeMap<String, Tree> {
    match object {
        Tree::Object(members) => members,
        other => panic!("no object: {other:?}"),
    }
}

/// `a/b:0|c` as `a__b_0_c`.
fn spelled(key: &str) -> String {
    key.replace('/', "__").replace([':', '|'], "_")
}

/// `a/b:0|c` as `a/b|c`.
fn without_indexes(key: &str) -> String {
    let mut parts = key.split(':');
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |path, part| {
        path + part.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}
