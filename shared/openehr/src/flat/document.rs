//! What a JSON document is that someone took for a composition: servers answer much that looks like
//! one from outside, and FLAT of it would be an empty object.

use super::plan::Plan;
use crate::json::{Kind, Node};

/// What a document is. Prints as what it is and what to do about it, without a piece of the document.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum DocumentKind {
    /// A composition in canonical JSON.
    #[error("a composition in canonical JSON")]
    Composition,
    /// What a server answers when it refuses a request.
    #[error("an error answer of the server; look at what the request asked for")]
    ErrorBody,
    /// A whole AQL answer: columns and rows.
    #[error("a whole AQL answer; take the compositions out of it, as `jq -c '.rows[][0]'` does")]
    AqlResult,
    /// An EHR, not one of its compositions.
    #[error("an EHR; ask the server for one of its compositions")]
    Ehr,
    /// A version of a versioned object, which holds a composition.
    #[error("a version with its audit; the composition is its member `data`")]
    Version,
    /// An object around a composition.
    #[error("an object around a composition; take its member `composition`")]
    Wrapped,
    /// A list of documents.
    #[error("a list; give its items one by one, as `jq -c '.[]'` does")]
    List,
    /// FLAT already, with its own names or with SQL names.
    #[error("FLAT already; ask the server for canonical JSON (`Accept: application/json`)")]
    Flat,
    /// A composition in the STRUCTURED format.
    #[error(
        "a composition in the STRUCTURED format; ask the server for canonical JSON (`Accept: application/json`)"
    )]
    Structured,
    /// A web template.
    #[error("a web template; it goes behind `--web-template`")]
    WebTemplate,
    /// An object of another class of the reference model.
    #[error("an object of another class than COMPOSITION")]
    OtherClass,
    /// An object in which nothing is known.
    #[error("an object without anything that a composition has")]
    Unknown,
    /// A text, a number, `true`, `false` or `null`.
    #[error("a single value")]
    SingleValue,
}

impl DocumentKind {
    /// Finds out what a document is, by its `_type` or, without one, by its members.
    pub fn of(document: Node<'_>) -> Self {
        match document.kind() {
            Kind::Object => {}
            Kind::Array => return Self::List,
            _ => return Self::SingleValue,
        }
        if let Some(class) = document.get("_type").and_then(|class| class.as_str()) {
            return match &*class {
                "COMPOSITION" => Self::Composition,
                "EHR" => Self::Ehr,
                "ORIGINAL_VERSION" | "IMPORTED_VERSION" => Self::Version,
                _ => Self::OtherClass,
            };
        }
        let has = |name: &str| document.get(name).is_some();
        let has_list = |name: &str| {
            document
                .get(name)
                .is_some_and(|value| value.kind() == Kind::Array)
        };
        if has_list("rows") || has_list("resultSet") || has_list("columns") {
            Self::AqlResult
        } else if has("webTemplate") || (has("tree") && has("templateId")) {
            Self::WebTemplate
        } else if has("archetype_node_id") || has("archetype_details") {
            Self::Composition
        } else if has("composition") {
            Self::Wrapped
        } else if has("ehr_id") {
            Self::Ehr
        } else if has("error") || has("errors") || has("message") || has("status") {
            Self::ErrorBody
        } else {
            Self::by_names(document)
        }
    }

    fn by_names(document: Node<'_>) -> Self {
        let mut is_structured = false;
        for (name, value) in document.members() {
            let name = name.as_str().unwrap_or_default();
            if name.contains(['/', '|']) || name.contains("__") {
                return Self::Flat;
            }
            is_structured |= name == "ctx" || value.kind() == Kind::Object;
        }
        match is_structured {
            true => Self::Structured,
            false => Self::Unknown,
        }
    }
}

/// A composition is of another template than the plan.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "a composition of {found}, and the web template is of `{wanted}`; take the web template that belongs to it"
)]
pub struct OtherTemplate {
    /// What the composition is of: its template, or the archetype at its root if it names no template.
    pub found: String,
    /// The id of the plan's template.
    pub wanted: String,
}

impl Plan {
    /// Fails if a composition says that it is of another template: by its template id, or, where it
    /// has none, by the archetype at its root.
    pub fn accepts(&self, composition: Node<'_>) -> Result<(), OtherTemplate> {
        let text = |path: &[&str]| composition.at(path).and_then(|value| value.as_str());
        let template = text(&["archetype_details", "template_id", "value"]);
        let (what, found, wanted) = match (template, self.archetype()) {
            (Some(template), _) => ("the template", template, self.template_id()),
            (None, Some(archetype)) => match text(&["archetype_node_id"]) {
                Some(own) => ("the archetype", own, archetype),
                None => return Ok(()),
            },
            (None, None) => return Ok(()),
        };
        if found == wanted {
            return Ok(());
        }
        Err(OtherTemplate {
            found: format!("{what} `{found}`"),
            wanted: self.template_id().to_owned(),
        })
    }
}
