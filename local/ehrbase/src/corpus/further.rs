//! The templates of the corpus under further ids, with compositions of each: a server as hospitals have them, with hundreds of
//! templates of which few have most of the compositions.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use serde_json::value::RawValue;

use super::{CONNECTIONS, Document, accepted, files, make_ehrs, post_all, read, refusal};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::server::EhrBase;

/// Opens the id of a template, and once more that of its root node, which the server does not compare with it.
const TEMPLATE_ID: &str = "<template_id>";

/// A template of the server, and what there is of it.
struct Template {
    id: String,
    /// Places of its compositions among the documents.
    documents: Vec<usize>,
    /// Compositions that the server holds already.
    held: usize,
}

/// Loads the corpus once, then its templates under further ids until there are `templates` that have compositions, or the server
/// refuses them, then compositions until the server holds `total`: of the second template half as many as of the first, of
/// the third a third, and so on, at least one, evenly mixed in time. `progress` is told how many compositions are there.
pub(crate) async fn load(
    ehrbase: &EhrBase,
    corpus: &Path,
    templates: usize,
    total: usize,
    progress: impl Fn(usize),
) -> Result<()> {
    let documents = accepted(ehrbase, corpus).await?;
    let mut by_template: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, document) in documents.iter().enumerate() {
        let places = by_template.entry(&document.template_id).or_default();
        places.push(place);
    }
    let operational = operational(corpus)?;
    let mut known: Vec<Template> = by_template
        .into_iter()
        .map(|(id, documents)| Template {
            id: id.to_owned(),
            held: documents.len(),
            documents,
        })
        .collect();
    let originals = known.len();
    let missing = templates.saturating_sub(originals);
    let further = (0..missing).map(|number| {
        let original = &known[number % originals];
        let id = format!("{}.{}", original.id, number / originals + 2);
        let xml = operational
            .get(&original.id)
            .map(|xml| renamed_template(xml, &id));
        let documents = original.documents.clone();
        async move {
            let taken = match xml {
                None => false,
                Some(xml) => match ehrbase.post_template(xml).await {
                    Ok(()) => true,
                    Err(error) if refusal(&error) => false,
                    Err(error) => return Err(error),
                },
            };
            Ok(taken.then_some(Template {
                id,
                documents,
                held: 0,
            }))
        }
    });
    let further: Vec<Option<Template>> = stream::iter(further)
        .buffered(CONNECTIONS)
        .try_collect()
        .await?;
    known.extend(further.into_iter().flatten());

    let ehrs = make_ehrs(ehrbase).await?;
    let posts = spread(&known, total).into_iter().enumerate();
    let posts = posts.map(|(index, (template, number))| {
        let template = &known[template];
        let document = &documents[template.documents[number % template.documents.len()]];
        let text = match document.template_id == template.id {
            true => Cow::from(&document.text),
            false => renamed_composition(document, &template.id)?.into(),
        };
        Ok((ehrs[index % ehrs.len()].as_str(), text))
    });
    post_all(ehrbase, posts, documents.len(), progress).await
}

/// The compositions that are still missing, in the order of their commits: the place of a template, and the how manieth of it.
fn spread(templates: &[Template], total: usize) -> Vec<(usize, usize)> {
    let whole: f64 = (1..=templates.len()).map(|rank| 1.0 / rank as f64).sum();
    let mut missing: Vec<(f64, usize, usize)> = Vec::new();
    for (place, template) in templates.iter().enumerate() {
        let share = total as f64 / whole / (place + 1) as f64;
        let wanted = (share.round() as usize)
            .max(1)
            .saturating_sub(template.held);
        let moments = (0..wanted).map(|number| {
            let moment = (number as f64 + 0.5) / wanted as f64;
            (moment, place, number)
        });
        missing.extend(moments);
    }
    missing.sort_by(|one, other| one.0.total_cmp(&other.0));
    missing
        .into_iter()
        .map(|(_, place, number)| (place, number))
        .collect()
}

/// The operational templates of the corpus by their ids.
fn operational(corpus: &Path) -> Result<HashMap<String, String>> {
    let mut templates = HashMap::new();
    for file in files(&corpus.join("opt"))? {
        let xml = read(&file)?;
        let id = template_id(&xml).ok_or_else(|| {
            Error::new(ErrorKind::Input, format!("read {}", file.display()))
                .because("it has no template id")
        })?;
        templates.insert(id.to_owned(), xml);
    }
    Ok(templates)
}

fn template_id(xml: &str) -> Option<&str> {
    let (_, rest) = xml.split_once(TEMPLATE_ID)?;
    let (_, rest) = rest.split_once("<value>")?;
    rest.split('<').next()
}

/// An operational template under another id.
fn renamed_template(xml: &str, id: &str) -> String {
    let mut parts = xml.split(TEMPLATE_ID);
    let mut renamed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // The id lies between the first `<value>` and its end.
        let (before, after) = part.split_once("</value>").unwrap_or((part, ""));
        let (before, _) = before.split_once("<value>").unwrap_or((before, ""));
        renamed.extend([TEMPLATE_ID, before, "<value>", id, "</value>", after]);
    }
    renamed
}

/// A composition as one of another template, its numbers as they are.
fn renamed_composition(document: &Document, id: &str) -> Result<String> {
    let renamed = || -> Result<String, serde_json::Error> {
        let mut members: BTreeMap<&str, &RawValue> = serde_json::from_str(&document.text)?;
        let mut details: BTreeMap<&str, &RawValue> = match members.get("archetype_details") {
            Some(details) => serde_json::from_str(details.get())?,
            None => BTreeMap::new(),
        };
        let id = RawValue::from_string(json!({ "value": id }).to_string())?;
        details.insert("template_id", &id);
        let details = RawValue::from_string(serde_json::to_string(&details)?)?;
        members.insert("archetype_details", &details);
        serde_json::to_string(&members)
    };
    renamed().context(
        ErrorKind::Input,
        format!("give {} another template", document.stem),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_template_is_renamed_wherever_it_names_itself_and_nowhere_else() {
        let xml = "<uid><value>u</value></uid><template_id>\n <value>a</value></template_id><x>a</x>\
                   <template_id><value>b</value></template_id><value>a</value>";
        assert_eq!(template_id(xml), Some("a"));
        assert_eq!(
            renamed_template(xml, "c"),
            "<uid><value>u</value></uid><template_id>\n <value>c</value></template_id><x>a</x>\
             <template_id><value>c</value></template_id><value>a</value>"
        );
    }

    #[test]
    fn a_composition_is_renamed_with_its_number_text() {
        let document = Document {
            stem: "stem".to_owned(),
            template_id: "a".to_owned(),
            text: r#"{"archetype_details":{"rm_version":"1.0.4","template_id":{"value":"a"}},"n":[1.50,1e3]}"#.to_owned(),
        };
        let expected = r#"{"archetype_details":{"rm_version":"1.0.4","template_id":{"value":"b"}},"n":[1.50,1e3]}"#;
        assert_eq!(renamed_composition(&document, "b").unwrap(), expected);
    }

    #[test]
    fn compositions_are_spread_over_all_templates_most_of_them_in_few() {
        let templates: Vec<Template> = (0..300)
            .map(|place| Template {
                id: place.to_string(),
                documents: vec![0],
                held: usize::from(place < 10),
            })
            .collect();
        let posts = spread(&templates, 20_000);
        let of = |place| posts.iter().filter(|(one, _)| *one == place).count();
        assert!((19_900..20_100).contains(&(posts.len() + 10)));
        assert!(of(0) > 3_000 && (5..15).contains(&of(299)), "{}", of(299));
        // Each is there from the beginning to the end.
        assert!(posts[..100].iter().any(|(place, _)| *place == 0));
        assert!(posts[19_000..].iter().any(|(place, _)| *place > 200));
        assert!(spread(&templates, 1).len() >= 290);
    }
}
