//! What the servers hold, read composition by composition and never by AQL.

use std::collections::BTreeMap;
use std::time::Duration;

use atlas_ehrbase::EhrBase;
use atlas_ehrbase::corpus::Composition as Loaded;
use atlas_sample_cdr::{Clock, Handle, Profile, SampleCdr};
use reqwest::Method;
use reqwest::header::DATE;
use serde_json::value::RawValue;
use tokio::time::sleep;

/// The latest version of a composition.
#[derive(Debug, Clone)]
pub struct Composition {
    /// `object id::system id::version`.
    pub uid: String,
    /// The EHR it belongs to.
    pub ehr_id: String,
    /// Its template.
    pub template_id: String,
    /// Canonical JSON, as the server writes it.
    pub content: String,
}

/// By object id.
pub type Expected = BTreeMap<String, Composition>;

/// The first part of a version uid.
pub fn object_id(uid: &str) -> &str {
    uid.split("::").next().unwrap()
}

/// A sample CDR of small compositions whose clock stands still, months after the last commit, until a test moves it.
pub fn sample(compositions: u64) -> SampleCdr {
    SampleCdr::builder()
        .compositions(compositions)
        .profile(Profile::Compact)
        .clock(Clock::Fixed("2026-06-01T00:00:00Z".parse().unwrap()))
}

/// Everything that a sample CDR shows.
pub fn of_sample(cdr: &Handle) -> Expected {
    (0..cdr.numbers())
        .filter_map(|number| composition(cdr, number))
        .map(|one| (object_id(&one.uid).to_owned(), one))
        .collect()
}

/// A composition of a sample CDR; `None` while it shows none of this number.
pub fn composition(cdr: &Handle, number: u64) -> Option<Composition> {
    Some(Composition {
        uid: cdr.version_uid(number)?,
        ehr_id: cdr.ehr_id(number)?,
        template_id: cdr.template(number).id().to_owned(),
        content: cdr.content(number)?,
    })
}

/// These compositions, each as GET answers it.
pub async fn of_ehrbase<'a>(
    ehrbase: &EhrBase,
    compositions: impl Iterator<Item = &'a Loaded>,
) -> Expected {
    let mut expected = Expected::new();
    for Loaded {
        version_uid,
        ehr_id,
        template_id,
        ..
    } in compositions
    {
        let composition = Composition {
            uid: version_uid.clone(),
            ehr_id: ehr_id.clone(),
            template_id: template_id.clone(),
            content: ehrbase.get_canonical(ehr_id, version_uid).await.unwrap(),
        };
        expected.insert(object_id(version_uid).to_owned(), composition);
    }
    expected
}

/// Posts what `original` holds as a new composition of `ehr_id`.
pub async fn post_again(ehrbase: &EhrBase, original: &Loaded, ehr_id: &str) -> Loaded {
    let text = without_uid(ehrbase, original).await;
    let version_uid = ehrbase.post_composition(ehr_id, &text).await.unwrap();
    Loaded {
        version_uid,
        ehr_id: ehr_id.to_owned(),
        ..original.clone()
    }
}

/// Canonical JSON of a composition without its uid, fit to be posted.
pub async fn without_uid(ehrbase: &EhrBase, composition: &Loaded) -> String {
    let Loaded {
        version_uid,
        ehr_id,
        ..
    } = composition;
    let text = ehrbase.get_canonical(ehr_id, version_uid).await.unwrap();
    let mut members: BTreeMap<&str, &RawValue> = serde_json::from_str(&text).unwrap();
    members.remove("uid");
    serde_json::to_string(&members).unwrap()
}

/// Waits until the server's clock shows the next second: then everything that was committed lies before a cut without
/// safety lag.
pub async fn next_second(ehrbase: &EhrBase) {
    let date = async || {
        let request = ehrbase.request(Method::GET, "definition/template/adl1.4/none");
        request.send().await.unwrap().headers()[DATE].clone()
    };
    let begun = date().await;
    while date().await == begun {
        sleep(Duration::from_millis(50)).await;
    }
}
