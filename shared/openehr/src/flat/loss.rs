//! What FLAT does not carry of a composition, and why.
//!
//! A walk with a report notes which canonical leaves became keys and which objects belong to
//! which template node. Then all leaves are gone through: those without a key are lost, and the
//! place where their path left the template gives the reason. A walk without a report pays nothing.
//!
//! Not counted as leaves, as they say what an object is and not what was recorded, or go without
//! saying: `_type`, `archetype_node_id`, `archetype_details`, a name that is the template's, a flag
//! of an interval that is the usual one, an origin that is the time of an event, and `null`.

use super::plan::{NodeRef, Plan, PlanNode};
use super::rm::RmType;
use super::value::{Data, Value};
use super::walk::{FlatError, Key, Object, Sink, Walker, push_number};
use crate::json::{Kind, Node};
use std::collections::HashMap;

/// Why a leaf is not in FLAT, or is there twice. Where a quirk of EHRbase is the reason, its number is given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LossKind {
    /// Q3: an ENTRY's encoding is always written as UTF-8; the real one is another.
    Encoding,
    /// Q4: the node has a name that EHRbase takes for an attribute's, such as `origin`.
    Hidden,
    /// Q5: a limit of an interval whose limits the template leaves open.
    OpenInterval,
    /// Q6: not lost but written at two places.
    Doubled,
    /// Q7: the template tells siblings apart by name, and this one was renamed.
    Renamed,
    /// Q8: more than the template allows; only the first is kept.
    Surplus,
    /// Q9: of a type that the template does not have at this place.
    UnexpectedType,
    /// Q10: in a slot that the template does not fill, or nowhere in the template.
    NotInTemplate,
    /// Q12: mappings, ranges and the like, where EHRbase does not look for them.
    NoPostRules,
    /// Name, uid, links or audit of a container that no path shows.
    Container,
    /// Another value has the same key and came later.
    Overwritten,
    /// A member that FLAT has no key for, such as a text's hyperlink.
    NoKey,
}

impl LossKind {
    /// All kinds, in the order of [`Loss::counts`].
    pub const ALL: [Self; 12] = [
        Self::Encoding,
        Self::Hidden,
        Self::OpenInterval,
        Self::Doubled,
        Self::Renamed,
        Self::Surplus,
        Self::UnexpectedType,
        Self::NotInTemplate,
        Self::NoPostRules,
        Self::Container,
        Self::Overwritten,
        Self::NoKey,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Encoding => "encoding",
            Self::Hidden => "hidden",
            Self::OpenInterval => "open_interval",
            Self::Doubled => "doubled",
            Self::Renamed => "renamed",
            Self::Surplus => "surplus",
            Self::UnexpectedType => "unexpected_type",
            Self::NotInTemplate => "not_in_template",
            Self::NoPostRules => "no_post_rules",
            Self::Container => "container",
            Self::Overwritten => "overwritten",
            Self::NoKey => "no_key",
        }
    }
}

/// A leaf without a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostLeaf {
    /// Member names, indexes and at-codes: `/content[0,openEHR-EHR-OBSERVATION.pulse.v1]/data`.
    pub path: String,
    /// Why it is lost.
    pub kind: LossKind,
}

/// What was lost over one or more compositions.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Loss {
    counts: [u64; LossKind::ALL.len()],
    carried: u64,
    leaves: Option<Vec<LostLeaf>>,
}

impl Loss {
    /// A report that counts.
    pub fn counting() -> Self {
        Self::default()
    }

    /// A report that also names each lost leaf.
    pub fn with_leaves() -> Self {
        Self {
            leaves: Some(Vec::new()),
            ..Self::default()
        }
    }

    /// How many leaves of a kind.
    pub fn count(&self, kind: LossKind) -> u64 {
        self.counts.get(kind as usize).copied().unwrap_or_default()
    }

    /// Every kind with its number of leaves.
    pub fn counts(&self) -> impl Iterator<Item = (LossKind, u64)> {
        LossKind::ALL.into_iter().zip(self.counts)
    }

    /// How many leaves are in FLAT.
    pub fn carried(&self) -> u64 {
        self.carried
    }

    /// How many leaves are not in FLAT.
    pub fn lost(&self) -> u64 {
        self.counts()
            .filter(|(kind, _)| *kind != LossKind::Doubled)
            .map(|(_, count)| count)
            .sum()
    }

    /// The lost leaves in the order of the document; empty if the report only counts.
    pub fn leaves(&self) -> &[LostLeaf] {
        self.leaves.as_deref().unwrap_or_default()
    }

    fn add(&mut self, kind: LossKind) {
        if let Some(count) = self.counts.get_mut(kind as usize) {
            *count += 1;
        }
    }
}

impl Plan {
    /// Walks like [`Plan::walk`] and adds to a report what the composition loses.
    pub fn walk_with_loss<S: Sink>(
        &self,
        walker: &mut Walker,
        composition: Node<'_>,
        version_uid: Option<&str>,
        sink: &mut S,
        loss: &mut Loss,
    ) -> Result<(), FlatError> {
        let mut tracing = Tracing {
            sink,
            trace: Trace::default(),
            written: HashMap::new(),
        };
        self.walk(walker, composition, version_uid, &mut tracing)?;
        let trace = tracing.trace;
        let mut search = Search {
            plan: self,
            trace: &trace,
            loss,
            path: String::new(),
        };
        search.value(composition, LossKind::NotInTemplate);
        Ok(())
    }
}

/// What a walk did, by where in the text a value begins.
#[derive(Default)]
struct Trace {
    visited: HashMap<usize, NodeRef>,
    /// How many keys hold the leaf; 0 if another value has overwritten them all.
    keys: HashMap<usize, usize>,
}

struct Tracing<'s, S> {
    sink: &'s mut S,
    trace: Trace,
    written: HashMap<String, Written>,
}

/// What stands behind a key by now.
struct Written {
    source: Option<usize>,
    /// The value as text, to see whether overwriting it changed anything.
    text: String,
}

impl<S: Sink> Sink for Tracing<'_, S> {
    fn emit(&mut self, key: Key<'_>, value: Value<'_>) {
        let source = value.source.map(|source| source.span().start);
        if let Some(source) = source {
            *self.trace.keys.entry(source).or_default() += 1;
            if let Data::Json(object) = value.data {
                self.object(object);
            }
        }
        let text = match value.data {
            Data::Raw(text) | Data::Text(text) | Data::Number(text) => text.to_owned(),
            Data::Integer(number) => number.to_string(),
            Data::Double(number) => number.to_string(),
            Data::Bool(bool) => bool.to_string(),
            Data::Json(object) => object.raw().to_owned(),
        };
        let name = format!("{}|{}", key.path, key.suffix);
        let earlier = self.written.get(&name);
        if let Some(Written {
            source: Some(earlier),
            text: before,
        }) = earlier
            && *before != text
            && let Some(keys) = self.trace.keys.get_mut(earlier)
        {
            *keys = keys.saturating_sub(1);
        }
        self.written.insert(name, Written { source, text });
        self.sink.emit(key, value);
    }

    fn visit(&mut self, object: Node<'_>, node: NodeRef) {
        self.trace
            .visited
            .entry(object.span().start)
            .or_insert(node);
        self.sink.visit(object, node);
    }
}

impl<S> Tracing<'_, S> {
    /// All leaves of an object that is written as it is.
    fn object(&mut self, object: Node<'_>) {
        let mut pending = vec![object];
        while let Some(value) = pending.pop() {
            match value.kind() {
                Kind::Object => pending.extend(value.members().map(|(_, value)| value)),
                Kind::Array => pending.extend(value.items()),
                _ => *self.trace.keys.entry(value.span().start).or_default() += 1,
            }
        }
    }
}

struct Search<'t> {
    plan: &'t Plan,
    trace: &'t Trace,
    loss: &'t mut Loss,
    path: String,
}

impl<'t> Search<'t> {
    /// Goes through a value whose leaves, where they are lost, are so for the reason given.
    /// Recursion follows the document, whose depth the JSON parser limits.
    fn value(&mut self, value: Node<'_>, kind: LossKind) {
        match value.kind() {
            Kind::Null => {}
            Kind::Object => self.object(value, kind),
            Kind::Array => self.items(value, |_, _| kind),
            _ => self.leaf(value, kind),
        }
    }

    fn items(&mut self, list: Node<'_>, reason: impl Fn(&Self, Node<'_>) -> LossKind) {
        for (index, item) in list.items().enumerate() {
            let start = self.path.len();
            self.path.push('[');
            push_number(&mut self.path, index);
            if let Some(code) = item
                .get("archetype_node_id")
                .and_then(|code| code.raw_str())
            {
                self.path.push(',');
                self.path.push_str(code);
            }
            self.path.push(']');
            let kind = reason(self, item);
            self.value(item, kind);
            self.path.truncate(start);
        }
    }

    fn leaf(&mut self, leaf: Node<'_>, kind: LossKind) {
        let kind = match self.trace.keys.get(&leaf.span().start) {
            Some(0) if kind == LossKind::Encoding => kind,
            Some(0) => LossKind::Overwritten,
            Some(keys) => {
                self.loss.carried += 1;
                if *keys > 1 {
                    self.loss.add(LossKind::Doubled);
                }
                return;
            }
            None => kind,
        };
        self.loss.add(kind);
        if let Some(leaves) = &mut self.loss.leaves {
            leaves.push(LostLeaf {
                path: self.path.clone(),
                kind,
            });
        }
    }

    fn object(&mut self, object: Node<'_>, kind: LossKind) {
        let visited = self.trace.visited.get(&object.span().start);
        let plan: &'t Plan = self.plan;
        let owner = visited.and_then(|node| plan.nodes.get(node.index()));
        for (key, value) in object.members() {
            let Some(name) = key.as_str() else { continue };
            if matches!(&*name, "_type" | "archetype_node_id" | "archetype_details") {
                continue;
            }
            let start = self.path.len();
            self.path.push('/');
            self.path.push_str(&name);
            match owner {
                _ if is_usual_flag(&name, value) => {}
                Some(owner) if name == "name" && is_template_name(value, owner) => {}
                Some(_) if name == "origin" && is_time_of_event(value, object) => {}
                Some(_) if kind == LossKind::Encoding => self.value(value, kind),
                Some(owner) if value.kind() == Kind::Array => {
                    self.items(value, |search, item| search.reason(&name, item, owner));
                }
                Some(owner) => self.value(value, self.reason(&name, value, owner)),
                None => self.value(value, kind),
            }
            self.path.truncate(start);
        }
    }

    /// Why a value would be lost, if it is.
    fn reason(&self, name: &str, value: Node<'_>, owner: &PlanNode) -> LossKind {
        if owner.rm.is(RmType::Entry) && name == "encoding" {
            return LossKind::Encoding;
        }
        if !owner.walked {
            return match name {
                _ if owner.removed => LossKind::Hidden,
                _ if !owner.post && is_post_rule(name) => LossKind::NoPostRules,
                _ => LossKind::NoKey,
            };
        }
        if matches!(name, "name" | "uid" | "links" | "feeder_audit")
            && owner.rm.is(RmType::Locatable)
        {
            let shown = owner.locatable_post && owner.post;
            return if shown {
                LossKind::NoKey
            } else {
                LossKind::Container
            };
        }
        let mut groups = owner
            .groups
            .iter()
            .filter(|group| {
                owner
                    .attributes
                    .get(group.attribute)
                    .is_some_and(|own| **own == *name)
            })
            .peekable();
        if groups.peek().is_none() {
            return match (owner.rm, name) {
                (RmType::DvInterval, "lower" | "upper") => LossKind::OpenInterval,
                (RmType::DvInterval, _) => LossKind::NoKey,
                _ if is_content(name) => LossKind::NotInTemplate,
                _ if !owner.post => LossKind::NoPostRules,
                _ => LossKind::NoKey,
            };
        }
        let code = value.get("archetype_node_id");
        let of_code: Vec<_> = groups
            .filter(|group| match (&group.code, code) {
                (Some(wanted), Some(code)) => code.is_str(wanted),
                _ => true,
            })
            .collect();
        let own_name = value.at(&["name", "value"]);
        let is_named = |wanted: &str| own_name.is_some_and(|name| name.is_str(wanted));
        if of_code.is_empty() {
            return if NAMES_TAKEN_FOR_ATTRIBUTES.into_iter().any(is_named) {
                LossKind::Hidden
            } else {
                LossKind::NotInTemplate
            };
        }
        let Some(group) = of_code
            .iter()
            .find(|group| group.name.as_deref().is_none_or(is_named))
        else {
            return LossKind::Renamed;
        };
        let fits = |member: &u32| {
            let child = self.plan.nodes.get(*member as usize);
            child.is_some_and(|child| Object::new(value).can_stand_for(child))
        };
        if group.members.iter().any(fits) {
            LossKind::Surplus
        } else {
            LossKind::UnexpectedType
        }
    }
}

fn is_template_name(name: Node<'_>, owner: &PlanNode) -> bool {
    let plain = name
        .members()
        .all(|(key, _)| key.is_str("_type") || key.is_str("value"));
    plain
        && name
            .get("value")
            .is_some_and(|value| value.is_str(&owner.name))
}

/// Whether a flag of an interval says what holds without it.
fn is_usual_flag(name: &str, value: Node<'_>) -> bool {
    match name {
        "lower_included" | "upper_included" => value.as_bool() == Some(true),
        "lower_unbounded" | "upper_unbounded" => value.as_bool() == Some(false),
        _ => false,
    }
}

/// Whether the origin of a history can be read off one of its events.
fn is_time_of_event(origin: Node<'_>, history: Node<'_>) -> bool {
    let Some(origin) = origin.get("value").and_then(|value| value.as_str()) else {
        return false;
    };
    let mut events = history
        .get("events")
        .into_iter()
        .flat_map(|events| events.items());
    events.any(|event| {
        event
            .at(&["time", "value"])
            .is_some_and(|time| time.is_str(&origin))
    })
}

/// Node names that make EHRbase skip the node.
const NAMES_TAKEN_FOR_ATTRIBUTES: [&str; 8] = [
    "name",
    "archetype_node_id",
    "origin",
    "media_type",
    "upper_included",
    "lower_included",
    "upper_unbounded",
    "lower_unbounded",
];

/// Attributes of data values that only post rules write.
fn is_post_rule(name: &str) -> bool {
    matches!(
        name,
        "mappings"
            | "language"
            | "encoding"
            | "charset"
            | "thumbnail"
            | "normal_range"
            | "normal_status"
            | "other_reference_ranges"
            | "magnitude_status"
            | "accuracy"
            | "accuracy_is_percent"
    )
}

/// Attributes that hold what a template constrains.
fn is_content(name: &str) -> bool {
    matches!(
        name,
        "content"
            | "items"
            | "item"
            | "rows"
            | "events"
            | "data"
            | "state"
            | "protocol"
            | "description"
            | "activities"
            | "other_context"
            | "value"
    )
}
