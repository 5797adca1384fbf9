//! The contract of `Source`, held by a real EHRbase.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

#[macro_use]
mod suite;

use std::collections::BTreeSet;

use async_trait::async_trait;
use atlas_cdr::{Auth, Cdr, Config};
use atlas_ehrbase::{EhrBase, Shared};
use atlas_engine::ErrorKind;
use atlas_engine::model::{Meta, Scope, Window};
use atlas_engine::ports::{Compositions, Definitions, FlatOracle, Source};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::time::Instant;
use reqwest::Method;
use serde_json::{Value, json};
use suite::World;

const EVERYTHING: Window = Window {
    from: Instant::EPOCH,
    to: Instant::MAX,
};

/// An EHR of its own in the shared EHRbase.
struct OwnEhr {
    cdr: Cdr,
    shared: Shared,
    ehr: EhrId,
    /// Of several templates, readable.
    documents: Vec<String>,
}

async fn own_ehr() -> OwnEhr {
    let shared = atlas_ehrbase::shared().await.unwrap();
    let ehr = EhrId::new(&shared.ehrbase.create_ehr().await.unwrap());
    let mut documents = Vec::new();
    let mut seen = BTreeSet::new();
    for composition in shared.loaded.readable() {
        if documents.len() < 5 && seen.insert(&composition.template_id) {
            documents.push(document(&composition.stem));
        }
    }
    let world = OwnEhr {
        cdr: connect(&shared.ehrbase, |_| {}),
        shared,
        ehr,
        documents,
    };
    for document in world.documents.iter().chain(&world.documents) {
        world.post(document).await;
    }
    world.contribute(&world.documents[..2]).await;
    world
}

/// A composition of the corpus, as it is posted.
fn document(stem: &str) -> String {
    let path = atlas_ehrbase::corpus::folder()
        .unwrap()
        .join(format!("canonical/{stem}.json"));
    let mut document: Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    document.as_object_mut().unwrap().remove("uid");
    document.to_string()
}

fn connect(ehrbase: &EhrBase, change: impl FnOnce(&mut Config)) -> Cdr {
    let mut config = Config {
        auth: Auth::Basic {
            user: ehrbase.user().to_owned(),
            password: ehrbase.password().into(),
        },
        ..Config::new(ehrbase.base_url())
    };
    change(&mut config);
    Cdr::connect(config).unwrap()
}

impl OwnEhr {
    async fn post(&self, document: &str) -> VersionUid {
        let uid = self
            .shared
            .ehrbase
            .post_composition(self.ehr.as_str(), document)
            .await
            .unwrap();
        VersionUid::parse(&uid).unwrap()
    }

    /// One contribution: all its versions have one commit time.
    async fn contribute(&self, documents: &[String]) {
        let coded = |value: &str, code: &str| {
            json!({"_type": "DV_CODED_TEXT", "value": value, "defining_code": {"_type": "CODE_PHRASE",
                "terminology_id": {"_type": "TERMINOLOGY_ID", "value": "openehr"}, "code_string": code}})
        };
        let audit = json!({"_type": "AUDIT_DETAILS", "system_id": "tests", "change_type": coded("creation", "249"),
            "committer": {"_type": "PARTY_IDENTIFIED", "name": "Atlas tests"}});
        let versions: Vec<Value> = documents
            .iter()
            .map(|document| {
                json!({"_type": "ORIGINAL_VERSION", "commit_audit": audit, "lifecycle_state": coded("complete", "532"),
                    "data": serde_json::from_str::<Value>(document).unwrap()})
            })
            .collect();
        let answer = self
            .shared
            .ehrbase
            .request(
                Method::POST,
                &format!("ehr/{}/contribution", self.ehr.as_str()),
            )
            .json(&json!({"_type": "CONTRIBUTION", "versions": versions, "audit": audit}))
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
    }
}

#[async_trait]
impl World for OwnEhr {
    fn source(&self) -> &Cdr {
        &self.cdr
    }

    fn scope(&self) -> Scope {
        Scope {
            templates: Vec::new(),
            ehrs: vec![self.ehr.clone()],
            window: EVERYTHING,
        }
    }

    async fn update(&self, meta: &Meta) {
        let ehrbase = &self.shared.ehrbase;
        let text = ehrbase
            .get_canonical(meta.ehr.as_str(), meta.uid.as_str())
            .await
            .unwrap();
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document.as_object_mut().unwrap().remove("uid");
        ehrbase
            .put_composition(meta.ehr.as_str(), meta.uid.as_str(), &document.to_string())
            .await
            .unwrap();
    }

    async fn delete(&self, meta: &Meta) {
        self.shared
            .ehrbase
            .delete_composition(meta.ehr.as_str(), meta.uid.as_str())
            .await
            .unwrap();
    }

    async fn erase(&self, meta: &Meta) {
        self.shared
            .ehrbase
            .erase_composition(meta.ehr.as_str(), meta.uid.as_str())
            .await
            .unwrap();
    }

    async fn unreadable(&self) -> (Scope, ObjectId) {
        let stem = self.shared.loaded.unreadable().next().unwrap().stem.clone();
        let uid = self.post(&document(&stem)).await;
        (self.scope(), uid.object_id().clone())
    }
}

contract!(own_ehr);

#[tokio::test]
async fn the_whole_corpus_comes_back_template_by_template() {
    let shared = atlas_ehrbase::shared().await.unwrap();
    let cdr = connect(&shared.ehrbase, |_| {});
    let ehrs: BTreeSet<&str> = shared
        .loaded
        .compositions
        .iter()
        .map(|one| one.ehr_id.as_str())
        .collect();
    let ehrs: Vec<EhrId> = ehrs.into_iter().map(EhrId::new).collect();
    let broken: BTreeSet<&str> = shared
        .loaded
        .unreadable()
        .map(|one| one.template_id.as_str())
        .collect();
    let (mut read, mut expected) = (BTreeSet::new(), BTreeSet::new());
    let mut templates = BTreeSet::new();
    for composition in &shared.loaded.compositions {
        if !broken.contains(composition.template_id.as_str()) {
            expected.insert(
                VersionUid::parse(&composition.version_uid)
                    .unwrap()
                    .identity()
                    .clone(),
            );
            templates.insert(composition.template_id.as_str());
        }
    }
    for template in templates {
        let scope = Scope {
            templates: vec![TemplateId::new(template)],
            ehrs: ehrs.clone(),
            window: EVERYTHING,
        };
        let mut after = None;
        loop {
            let page = cdr.page(&scope, after.as_ref(), 10).await.unwrap();
            let Some(last) = page.rows.last() else { break };
            after = Some(last.meta.cursor());
            read.extend(page.rows.iter().map(|row| row.meta.uid.identity().clone()));
        }
    }
    assert!(expected.len() > 200);
    assert_eq!(read, expected);
}

#[tokio::test]
async fn flat_comes_as_the_server_writes_it() {
    let world = own_ehr().await;
    let metas = world.cdr.list(&world.scope(), None, 3).await.unwrap();
    for meta in &metas {
        let flat: Value = serde_json::from_str(&world.cdr.flat(meta).await.unwrap()).unwrap();
        let expected: Value = serde_json::from_str(
            &world
                .shared
                .ehrbase
                .get_flat(meta.ehr.as_str(), meta.uid.as_str())
                .await
                .unwrap(),
        )
        .unwrap();
        assert_eq!(flat, expected);
    }
}

#[tokio::test]
async fn a_wrong_password_is_refused_with_its_fix() {
    let shared = atlas_ehrbase::shared().await.unwrap();
    let wrong = Auth::Basic {
        user: shared.ehrbase.user().to_owned(),
        password: "not-the-password".into(),
    };
    for auth in [
        wrong,
        Auth::None,
        Auth::Bearer {
            token: "none".into(),
        },
    ] {
        let cdr = connect(&shared.ehrbase, |config| config.auth = auth);
        for error in [
            cdr.templates().await.unwrap_err(),
            cdr.server_info().await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::SourceDenied);
            assert!(
                error
                    .help()
                    .is_some_and(|fix| fix.contains("openehr.auth_type"))
            );
        }
        assert_eq!(cdr.usage().requests, 2, "a refusal is not asked again");
    }
}

#[tokio::test]
async fn a_wrong_path_is_told_from_a_server_that_is_down() {
    let shared = atlas_ehrbase::shared().await.unwrap();
    let wrong = shared.ehrbase.base_url().replace("/ehrbase", "/nowhere");
    let cdr = connect(&shared.ehrbase, |config| config.base_url = wrong);
    let error = cdr.templates().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUnsupported);
    assert!(error.help().is_some_and(|fix| fix.contains("/ehrbase")));
}
