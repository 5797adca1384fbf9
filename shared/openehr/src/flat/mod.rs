//! Canonical JSON to FLAT, key for key what EHRbase answers (openEHR_SDK 2.31.0).
//!
//! ```text
//! web template ──► draft ──► plan          once per template: containers put back, types
//!                              │           expanded, ids, twins and groups decided
//! composition ───► walk ◄──────┘           template order, one path buffer
//!                   ├── leaf               keys of a value, by its class
//!                   ├── library            values of classes without keys, as JSON
//!                   ├── post               keys of links, mappings, ranges, participations …
//!                   ▼
//!                 Sink ──► write           FLAT JSON, or the same with SQL names
//!                     └──► loss            what FLAT does not carry, and why
//! ```
//!
//! What is not obvious in the code below follows from how EHRbase does it. Comments refer to the
//! quirks by number:
//!
//! | | quirk |
//! |---|---|
//! | Q1 | of template nodes with one label, the one a composition shows first has no number |
//! | Q2 | an optional `context` adds nothing to the path |
//! | Q3 | the encoding of an ENTRY is always written as UTF-8 |
//! | Q4 | a node whose name EHRbase takes for an attribute's vanishes |
//! | Q5 | an interval that the template leaves open has flags but no limits |
//! | Q6 | post rules of a null flavour (and a `wf_definition`) write to the container as well |
//! | Q7 | where the template tells siblings apart by name, a renamed one is dropped |
//! | Q8 | more than `max` allows: only the first is kept |
//! | Q9 | an item of an unexpected type leaves a gap in the indexes |
//! | Q10 | what is not in the template is dropped |
//! | Q11 | the code of a single-valued attribute is not looked at |
//! | Q12 | no post rules below EVENT_CONTEXT, ISM_TRANSITION and DV_INTERVAL |
//! | Q13 | a proportion by zero is the greatest double |
//! | Q14 | a label that ends in a number can be the id of a numbered twin, and both have one key |
//! | Q15 | the origin of a history is compared by whole seconds |
//! | Q16 | identifiers of participations have a form of their own |

mod document;
mod draft;
mod leaf;
mod library;
mod loss;
mod path;
mod plan;
mod post;
mod rm;
mod sql;
mod value;
mod walk;
mod write;

pub use document::{DocumentKind, OtherTemplate};
pub use loss::{Loss, LossKind, LostLeaf};
pub use plan::{NodeRef, Plan, SqlName};
pub use rm::RmType;
pub use value::{Data, Value};
pub use walk::{FlatError, Key, Sink, Walker};
pub use write::{FlattenedWriter, JsonWriter, Renamed};

/// Which ids paths are made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Ids {
    /// Exactly EHRbase's: of two template nodes with one label, the one that a composition shows
    /// first goes without a number, so a key can stand for either (quirk Q1).
    #[default]
    Ehrbase,
    /// The ids of the served web template: a key always stands for the same template node.
    Template,
}

/// Why a web template has no plan.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompileError {
    /// A path is not an archetype path.
    #[error(
        "node `{id}` of the web template has the path `{path}`, which is no archetype path; fetch the template again"
    )]
    Path {
        /// The node's id.
        id: String,
        /// Its `aqlPath`.
        path: String,
    },
    /// A path does not lead below the parent's.
    #[error(
        "node `{id}` of the web template has the path `{path}`, which is not below its parent's; fetch the template again"
    )]
    NotBelow {
        /// The node's id.
        id: String,
        /// Its `aqlPath`.
        path: String,
    },
    /// An id could not be part of a path.
    #[error(
        "a node of the web template has an id with a quote, a slash or another character that paths cannot hold; fetch the template again"
    )]
    Id,
    /// The rebuilt tree is deeper than any real template.
    #[error(
        "node `{id}` of the web template lies deeper than {limit} levels; such a template cannot be real"
    )]
    TooDeep {
        /// The node's id.
        id: String,
        /// The greatest depth.
        limit: usize,
    },
    /// An object of the reference model has fewer attributes than the template gives this one.
    #[error(
        "node `{name}` of the web template has more than {limit} attributes, which no object has; fetch the template again"
    )]
    TooManyAttributes {
        /// The node's name.
        name: String,
        /// The greatest number of attributes.
        limit: usize,
    },
    /// The rebuilt tree is larger than any real template.
    #[error("the web template has more than {limit} nodes; such a template cannot be real")]
    TooLarge {
        /// The greatest number of nodes.
        limit: u32,
    },
}
