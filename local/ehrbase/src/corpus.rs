//! The conformance corpus, loaded into an EHRbase once or many times over.
//!
//! - [`further`]: its templates under further ids.

pub(crate) mod further;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::server::EhrBase;

/// Names the folder of the corpus; without it, `../shared/corpus` beside the workspace.
pub const ENV_CORPUS: &str = "ATLAS_CORPUS";
/// More bring nothing: the server's processor is the limit.
const CONNECTIONS: usize = 4;
const EHRS: usize = 20;

/// What a server holds of the corpus.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Loaded {
    /// File stems of the templates that the server took.
    pub templates: Vec<String>,
    /// File stems of the templates that it refused.
    pub refused_templates: Vec<String>,
    /// The compositions that it took.
    pub compositions: Vec<Composition>,
    /// File stems of the compositions that it refused.
    pub refused: Vec<String>,
}

/// A composition of the corpus on a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Composition {
    /// Of its file in `canonical/`.
    pub stem: String,
    /// As the composition names it.
    pub template_id: String,
    /// `object id::system id::version`.
    pub version_uid: String,
    /// The EHR it was put into.
    pub ehr_id: String,
    /// Whether the server can read it back; EHRbase 2.16 takes some that it cannot.
    pub readable: bool,
}

impl Loaded {
    /// The compositions that the server can read back.
    pub fn readable(&self) -> impl Iterator<Item = &Composition> {
        self.compositions.iter().filter(|one| one.readable)
    }

    /// Those that it took and cannot read back.
    pub fn unreadable(&self) -> impl Iterator<Item = &Composition> {
        self.compositions.iter().filter(|one| !one.readable)
    }
}

/// The folder of the corpus.
pub fn folder() -> Result<PathBuf> {
    let folder = atlas_machine::corpus()?;
    if folder.join("canonical").is_dir() {
        return Ok(folder);
    }
    let what = format!("find the conformance corpus in {}", folder.display());
    Err(Error::new(ErrorKind::Missing, what).fix(format!("set {ENV_CORPUS} to its folder")))
}

/// Loads every template and every composition, each once, into 20 EHRs.
pub async fn load(ehrbase: &EhrBase, corpus: &Path) -> Result<Loaded> {
    let mut loaded = load_templates(ehrbase, corpus).await?;
    let ehrs = make_ehrs(ehrbase).await?;
    let (ehrs, documents) = (&ehrs, documents(corpus)?);
    let loads = documents
        .into_iter()
        .enumerate()
        .map(|(index, document)| async move {
            let outcome = load_one(ehrbase, &ehrs[index % ehrs.len()], &document).await?;
            Ok::<_, Error>((document.stem, outcome))
        });
    let outcomes: Vec<(String, Option<Composition>)> = stream::iter(loads)
        .buffered(CONNECTIONS)
        .try_collect()
        .await?;
    for (stem, outcome) in outcomes {
        match outcome {
            Some(composition) => loaded.compositions.push(composition),
            None => loaded.refused.push(stem),
        }
    }
    Ok(loaded)
}

/// Posts the compositions that the server took and can read back, over and over, until it holds
/// `total` of them. `progress` is told how many are there.
pub async fn load_many(
    ehrbase: &EhrBase,
    corpus: &Path,
    total: usize,
    progress: impl Fn(usize),
) -> Result<()> {
    let documents = accepted(ehrbase, corpus).await?;
    let ehrs = make_ehrs(ehrbase).await?;
    let (documents, ehrs) = (&documents, &ehrs);
    let posts = (documents.len()..total).map(|index| {
        // The next EHR each time around, so that each holds every kind.
        let ehr_id = &ehrs[(index + index / documents.len()) % ehrs.len()];
        let document = &documents[index % documents.len()];
        Ok((ehr_id.as_str(), Cow::from(&document.text)))
    });
    post_all(ehrbase, posts, documents.len(), progress).await
}

/// Loads the corpus once and answers the compositions that the server took and can read back; what it cannot is erased again.
async fn accepted(ehrbase: &EhrBase, corpus: &Path) -> Result<Vec<Document>> {
    let loaded = load(ehrbase, corpus).await?;
    for one in loaded.unreadable() {
        ehrbase
            .erase_composition(&one.ehr_id, &one.version_uid)
            .await?;
    }
    let stems: BTreeSet<&str> = loaded.readable().map(|one| one.stem.as_str()).collect();
    let mut documents = documents(corpus)?;
    documents.retain(|document| stems.contains(document.stem.as_str()));
    if documents.is_empty() {
        return Err(
            Error::new(ErrorKind::Input, "load the corpus many times over")
                .because("the server took nothing of it"),
        );
    }
    Ok(documents)
}

/// Posts compositions into EHRs, several at once, and tells `progress` how many are there with the `held` from before.
async fn post_all<'a>(
    ehrbase: &EhrBase,
    posts: impl Iterator<Item = Result<(&'a str, Cow<'a, str>)>>,
    held: usize,
    progress: impl Fn(usize),
) -> Result<()> {
    let done = AtomicUsize::new(held);
    let (done, progress) = (&done, &progress);
    let posts = posts.map(|post| async move {
        let (ehr_id, text) = post?;
        ehrbase.post_composition(ehr_id, &text).await?;
        progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        Ok(())
    });
    stream::iter(posts)
        .buffer_unordered(CONNECTIONS)
        .try_collect()
        .await
}

/// What tells one corpus from another: names and texts of everything that is loaded.
pub(crate) fn digest(corpus: &Path) -> Result<Vec<u8>> {
    let mut hash = Sha256::new();
    for folder in ["opt", "canonical"] {
        for file in files(&corpus.join(folder))? {
            hash.update(stem(&file));
            hash.update(read(&file)?);
        }
    }
    Ok(hash.finalize().to_vec())
}

async fn load_templates(ehrbase: &EhrBase, corpus: &Path) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    for file in files(&corpus.join("opt"))? {
        let stem = stem(&file);
        match ehrbase.post_template(read(&file)?).await {
            Ok(()) => loaded.templates.push(stem),
            Err(error) if refusal(&error) => loaded.refused_templates.push(stem),
            Err(error) => return Err(error),
        }
    }
    Ok(loaded)
}

/// `None` if the server refuses the composition.
async fn load_one(
    ehrbase: &EhrBase,
    ehr_id: &str,
    document: &Document,
) -> Result<Option<Composition>> {
    let version_uid = match ehrbase.post_composition(ehr_id, &document.text).await {
        Ok(version_uid) => version_uid,
        Err(error) if refusal(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let readable = match ehrbase.get_canonical(ehr_id, &version_uid).await {
        Ok(_) => true,
        Err(error) if refusal(&error) => false,
        Err(error) => return Err(error),
    };
    Ok(Some(Composition {
        stem: document.stem.clone(),
        template_id: document.template_id.clone(),
        version_uid,
        ehr_id: ehr_id.to_owned(),
        readable,
    }))
}

/// Whether the server answered, and would not have it.
fn refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Status(status) if status != 401 && status != 403)
}

async fn make_ehrs(ehrbase: &EhrBase) -> Result<Vec<String>> {
    let mut ehrs = Vec::with_capacity(EHRS);
    for _ in 0..EHRS {
        ehrs.push(ehrbase.create_ehr().await?);
    }
    Ok(ehrs)
}

/// A composition as it is posted.
struct Document {
    stem: String,
    template_id: String,
    /// Canonical JSON without `uid`, which a server refuses when it is another's.
    text: String,
}

#[derive(Deserialize)]
struct Details {
    template_id: ArchetypeId,
}

#[derive(Deserialize)]
struct ArchetypeId {
    value: String,
}

/// The compositions of the corpus, in the order of their stems.
fn documents(corpus: &Path) -> Result<Vec<Document>> {
    files(&corpus.join("canonical"))?
        .iter()
        .map(|file| {
            let text = read(file)?;
            document(stem(file), &text)
                .context(ErrorKind::Input, format!("read {}", file.display()))
        })
        .collect()
}

fn document(stem: String, text: &str) -> Result<Document, serde_json::Error> {
    // Raw values: number text must arrive as it is.
    let mut members: BTreeMap<&str, &RawValue> = serde_json::from_str(text)?;
    members.remove("uid");
    let details = members
        .get("archetype_details")
        .map_or("null", |raw| raw.get());
    let details: Details = serde_json::from_str(details)?;
    Ok(Document {
        stem,
        template_id: details.template_id.value,
        text: serde_json::to_string(&members)?,
    })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let action = || format!("list {}", folder.display());
    let mut files = std::fs::read_dir(folder)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .context(ErrorKind::System, action())?;
    files.sort();
    Ok(files)
}

fn stem(file: &Path) -> String {
    file.file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).context(ErrorKind::System, format!("read {}", file.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_composition_is_posted_without_uid_and_with_its_number_text() {
        let text = r#"{"uid":{"value":"a::b::1"},"archetype_details":{"template_id":{"value":"t"}},"n":[1.50,1e3]}"#;
        let document = document("stem".to_owned(), text).unwrap();
        assert_eq!(document.template_id, "t");
        assert!(!document.text.contains("uid"));
        assert!(document.text.contains("[1.50,1e3]"));
    }
}
