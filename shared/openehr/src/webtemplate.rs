//! A served web template as a typed tree: the parts that conversion and tables read.
//!
//! A web template is what `GET /definition/template/adl1.4/{id}` answers. It is a *filtered* view
//! of the template: containers that say nothing by themselves are dropped and their children
//! hoisted, but every `aqlPath` is complete. [`crate::flat::Plan`] puts the containers back.
//! Members that no one here reads are passed over, so newer servers can add theirs.

use crate::json::{JsonError, Kind, Node as Json, Tape};
use std::fmt;

/// How deep the tree of a template may be. Real ones stay below 30.
const MAX_DEPTH: usize = 128;

/// A template: its id and its tree.
#[derive(Clone, Debug, PartialEq)]
pub struct WebTemplate {
    /// `templateId`, with blanks and umlauts as the server has them.
    pub template_id: String,
    /// `defaultLanguage`, an ISO 639-1 code; empty if the server does not say.
    pub default_language: String,
    /// The COMPOSITION.
    pub tree: Node,
}

/// A node of the tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The id that is unique among the served siblings: base id and number.
    pub id: String,
    /// The label in the default language, or the attribute's name.
    pub name: String,
    /// The reference model type without its parameter: `DV_INTERVAL`.
    pub rm_type: String,
    /// The type parameter, if there is one: `DV_QUANTITY` of `DV_INTERVAL<DV_QUANTITY>`.
    pub rm_parameter: Option<String>,
    /// The at-code or archetype id; absent on attributes.
    pub node_id: Option<String>,
    /// The least number of occurrences.
    pub min: i64,
    /// The greatest number of occurrences; -1 is unbounded.
    pub max: i64,
    /// The path from the composition, predicates included; empty on the root.
    pub aql_path: String,
    /// The description in the default language.
    pub description: Option<String>,
    /// What a form would ask for.
    pub inputs: Vec<Input>,
    /// The nodes below, in template order.
    pub children: Vec<Node>,
}

impl Node {
    /// Whether text outside the value list is allowed: EHRbase writes that under `|other`.
    pub fn has_other(&self) -> bool {
        self.inputs
            .iter()
            .any(|input| input.suffix.as_deref() == Some("other"))
    }
}

/// One field of a form.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// What stands behind the `|`; absent for the value itself.
    pub suffix: Option<String>,
    /// `TEXT`, `CODED_TEXT`, `DECIMAL`, `INTEGER`, …; empty if the server does not say.
    pub kind: String,
}

/// Why a text is not a web template.
#[derive(Debug, thiserror::Error)]
pub enum WebTemplateError {
    /// The text is not JSON at all.
    #[error("the web template is not JSON; fetch it with `Accept: application/openehr.wt+json`")]
    Json(#[from] JsonError),
    /// A member has to be there and is not, or is of another kind.
    #[error(
        "`{path}` of the web template must be {expected}; fetch it with `Accept: application/openehr.wt+json`"
    )]
    Member {
        /// Where in the document, such as `tree.children[3].rmType`.
        path: Place,
        /// What should stand there.
        expected: &'static str,
    },
    /// The tree is deeper than any real template.
    #[error(
        "`{path}` of the web template lies deeper than {MAX_DEPTH} levels; such a template cannot be real"
    )]
    TooDeep {
        /// The node that was one too many.
        path: Place,
    },
}

/// A place in the web template document: member names and indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place(String);

impl Place {
    fn member(&self, name: &str) -> Self {
        Self(if self.0.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.0)
        })
    }

    fn item(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() {
            "the top"
        } else {
            &self.0
        })
    }
}

impl WebTemplate {
    /// Reads a web template from the text of a server's answer. EhrScape servers wrap theirs
    /// in `webTemplate`; that is understood too.
    pub fn parse(text: &str) -> Result<Self, WebTemplateError> {
        let tape = Tape::parse(text)?;
        let root = tape.root(text);
        match root.get("webTemplate") {
            Some(wrapped) => Self::read(wrapped),
            None => Self::read(root),
        }
    }

    /// Reads a web template that is part of a larger document.
    pub fn read(root: Json<'_>) -> Result<Self, WebTemplateError> {
        let top = Place::default();
        let tree = root.get("tree").filter(|tree| tree.kind() == Kind::Object);
        let place = top.member("tree");
        let Some(tree) = tree else {
            return Err(WebTemplateError::Member {
                path: place,
                expected: "an object",
            });
        };
        let language = optional_text(root, "defaultLanguage").unwrap_or_default();
        Ok(Self {
            template_id: text(root, "templateId", &top)?,
            tree: node(tree, &place, &language, 0)?,
            default_language: language,
        })
    }
}

fn node(
    json: Json<'_>,
    place: &Place,
    language: &str,
    depth: usize,
) -> Result<Node, WebTemplateError> {
    if depth == MAX_DEPTH {
        return Err(WebTemplateError::TooDeep {
            path: place.clone(),
        });
    }
    let rm_type = text(json, "rmType", place)?;
    // One public template has blanks behind its types.
    let (rm_type, rm_parameter) = match rm_type.split_once('<') {
        Some((outer, inner)) => (
            outer,
            Some(inner.trim().trim_end_matches('>').trim().to_owned()),
        ),
        None => (rm_type.as_str(), None),
    };
    let below = place.member("children");
    let children = list(json, "children", place)?
        .enumerate()
        .map(|(index, child)| node(child, &below.item(index), language, depth + 1))
        .collect::<Result<_, _>>()?;
    let inputs = list(json, "inputs", place)?
        .map(|input| Input {
            suffix: optional_text(input, "suffix"),
            kind: optional_text(input, "type").unwrap_or_default(),
        })
        .collect();
    let id = text(json, "id", place)?;
    Ok(Node {
        name: optional_text(json, "name").unwrap_or_else(|| id.clone()),
        id,
        rm_type: rm_type.trim().to_owned(),
        rm_parameter,
        node_id: optional_text(json, "nodeId"),
        min: integer(json, "min", place)?,
        max: integer(json, "max", place)?,
        aql_path: optional_text(json, "aqlPath").unwrap_or_default(),
        description: json
            .get("localizedDescriptions")
            .and_then(|texts| optional_text(texts, language)),
        inputs,
        children,
    })
}

fn text(json: Json<'_>, name: &str, place: &Place) -> Result<String, WebTemplateError> {
    optional_text(json, name).ok_or_else(|| WebTemplateError::Member {
        path: place.member(name),
        expected: "a string",
    })
}

fn optional_text(json: Json<'_>, name: &str) -> Option<String> {
    json.get(name)?.as_str().map(|text| text.into_owned())
}

fn integer(json: Json<'_>, name: &str, place: &Place) -> Result<i64, WebTemplateError> {
    json.get(name)
        .and_then(|number| number.as_i64())
        .ok_or_else(|| WebTemplateError::Member {
            path: place.member(name),
            expected: "an integer",
        })
}

/// The items of a list; an absent list is empty, as the server leaves empty ones out.
fn list<'a>(
    json: Json<'a>,
    name: &str,
    place: &Place,
) -> Result<impl Iterator<Item = Json<'a>> + use<'a>, WebTemplateError> {
    match json.get(name) {
        Some(list) if !matches!(list.kind(), Kind::Array | Kind::Null) => {
            Err(WebTemplateError::Member {
                path: place.member(name),
                expected: "a list",
            })
        }
        found => Ok(found.into_iter().flat_map(|list| list.items())),
    }
}
