//! One composition, in template order.

use super::plan::{Group, NodeRef, Plan, PlanNode};
use super::rm::RmType;
use super::value::{Data, Value};
use super::{leaf, post};
use crate::json::{Kind, Node};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};

/// Takes the keys of a composition.
pub trait Sink {
    /// Takes one key and its value. A key can come twice: the last value counts.
    fn emit(&mut self, key: Key<'_>, value: Value<'_>);

    /// Told of every object of the composition that the template has a node for, before its
    /// keys. Most sinks do not care.
    fn visit(&mut self, object: Node<'_>, node: NodeRef) {
        let _ = (object, node);
    }
}

/// The name of a value in FLAT.
#[derive(Clone, Copy)]
pub struct Key<'a> {
    /// `vital_signs/pulse:0/any_event:1/rate`
    pub path: &'a str,
    /// What stands behind the `|`, such as `magnitude`; empty if nothing does.
    pub suffix: &'a str,
    /// The template node whose rules made the key.
    pub node: NodeRef,
    /// Whether the key is the node's own value, not a link, mapping or other addition to it.
    pub own: bool,
}

/// Why a document has no FLAT form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FlatError {
    /// The document is another thing than a composition.
    #[error(
        "the document is not a canonical COMPOSITION, so it has no FLAT form; check which column of the query holds the composition"
    )]
    NotAComposition,
}

/// The buffers of a walk, kept by the caller so that walks need no memory of their own.
#[derive(Default)]
pub struct Walker {
    path: String,
    text: String,
    candidates: Vec<Candidate<'static>>,
    tags: Vec<u64>,
    twins: Twins,
}

impl Walker {
    /// A walker with empty buffers.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Plan {
    /// Gives the keys of a composition to a sink, in template order. A version uid that the caller
    /// knows is given under `_uid`, whatever uid the composition has or lacks.
    pub fn walk<S: Sink>(
        &self,
        walker: &mut Walker,
        composition: Node<'_>,
        version_uid: Option<&str>,
        sink: &mut S,
    ) -> Result<(), FlatError> {
        let is_other = |kind: Node<'_>| !kind.is_str("COMPOSITION");
        if composition.kind() != Kind::Object || composition.get("_type").is_some_and(is_other) {
            return Err(FlatError::NotAComposition);
        }
        walker.path.clear();
        walker.twins.clear();
        walker.tags.clear();
        let mut walk = Walk {
            plan: self,
            candidates: recycle(std::mem::take(&mut walker.candidates)),
            tags: &mut walker.tags,
            twins: &mut walker.twins,
            out: Out {
                sink,
                path: &mut walker.path,
                text: &mut walker.text,
                node: NodeRef(0),
                own: None,
                removed: false,
                version_uid,
            },
        };
        walk.visit(0, Object::new(composition), None);
        walker.candidates = recycle(walk.candidates);
        Ok(())
    }
}

/// An object of the composition and what it says its type is.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    node: Node<'a>,
    stated: Stated<'a>,
}

#[derive(Clone, Copy)]
enum Stated<'a> {
    Nothing,
    Type(&'a str),
    /// With escapes, which is odd but valid.
    Escaped,
}

impl<'a> Object<'a> {
    pub(super) fn new(node: Node<'a>) -> Self {
        Self::with_type(node, node.get("_type"))
    }

    fn with_type(node: Node<'a>, stated: Option<Node<'a>>) -> Self {
        let stated = match stated {
            Some(name) if name.has_escapes() => Stated::Escaped,
            Some(name) => name.raw_str().map_or(Stated::Nothing, Stated::Type),
            None => Stated::Nothing,
        };
        Self { node, stated }
    }

    fn stated(&self) -> Option<Cow<'a, str>> {
        match self.stated {
            Stated::Nothing => None,
            Stated::Type(name) => Some(Cow::Borrowed(name)),
            Stated::Escaped => leaf::stated_type(self.node),
        }
    }

    /// The class the object says it has; what the template expects if it does not say.
    fn class(&self, node: &PlanNode) -> RmType {
        match self.stated() {
            // Nearly always, and cheaper than going through all names.
            Some(name) if *name == *node.rm_name => node.rm,
            Some(name) => RmType::from_name(&name),
            None => node.rm,
        }
    }

    /// Whether the object is of exactly the child's type.
    fn has_type(&self, child: &PlanNode) -> bool {
        self.stated().is_none_or(|name| {
            *name == *child.rm_name
                || name
                    .split_once('<')
                    .is_some_and(|(outer, _)| *outer == *child.rm_name)
        })
    }

    /// Whether the object is of the child's type or one below it.
    pub(super) fn can_stand_for(&self, child: &PlanNode) -> bool {
        let below =
            |name: Cow<'_, str>| child.rm != RmType::Other && RmType::from_name(&name).is(child.rm);
        self.has_type(child) || self.stated().is_none_or(below)
    }

    /// An ELEMENT where the template has a value stands for its value.
    fn for_child(self, child: &PlanNode) -> Option<Self> {
        if child.rm == RmType::Element || self.stated().as_deref() != Some("ELEMENT") {
            return Some(self);
        }
        self.node
            .get("value")
            .filter(|value| !value.is_null())
            .map(Self::new)
    }

    /// Whether the object has the name that the group's path asks for.
    fn is_named(&self, group: &Group, child: &PlanNode) -> bool {
        match &group.name {
            Some(name) if child.rm.is(RmType::Locatable) => self
                .node
                .at(&["name", "value"])
                .is_some_and(|value| value.is_str(name)),
            _ => true,
        }
    }
}

/// An item of a list, which may belong to a child of the template.
struct Candidate<'a> {
    object: Object<'a>,
    code: Option<Node<'a>>,
}

/// A number that differs between most codes, so that few codes are compared byte by byte.
pub(super) fn code_tag(code: &str) -> u64 {
    let start = code
        .bytes()
        .take(4)
        .fold(0, |tag, byte| tag << 8 | u64::from(byte));
    let end = code
        .bytes()
        .rev()
        .take(4)
        .fold(start, |tag, byte| tag << 8 | u64::from(byte));
    end.wrapping_add((code.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Empties a buffer and keeps its memory for candidates of another text.
fn recycle<'b>(mut candidates: Vec<Candidate<'_>>) -> Vec<Candidate<'b>> {
    candidates.clear();
    // The standard library collects in place here; were it not to, memory would be asked for anew.
    candidates.into_iter().map_while(|_| None).collect()
}

/// Where an attribute's candidates lie in the buffer.
#[derive(Clone, Copy, Default)]
struct Attribute<'a> {
    value: Option<Node<'a>>,
    /// The range in the buffer, if the value is a list.
    list: Option<(usize, usize)>,
}

/// As many attributes as the largest type of the reference model has; plans stay within.
pub(super) const ATTRIBUTES: usize = 16;

struct Walk<'w, 'a, S> {
    plan: &'w Plan,
    candidates: Vec<Candidate<'a>>,
    /// The [`code_tag`] of each candidate, side by side for the search.
    tags: &'w mut Vec<u64>,
    twins: &'w mut Twins,
    out: Out<'w, S>,
}

impl<'w, 'a, S: Sink> Walk<'w, 'a, S> {
    /// Recursion follows the plan, whose depth is limited when it is compiled.
    fn visit(&mut self, index: u32, object: Object<'a>, occurrence: Option<usize>) {
        let plan = self.plan;
        let Some(node) = plan.nodes.get(index as usize) else {
            return;
        };
        let class = object.class(node);
        let object = object.node;
        self.out.sink.visit(object, NodeRef(index));
        let start = self.out.path.len();
        if node.walked {
            let mut attributes = [Attribute::default(); ATTRIBUTES];
            let buffered = self.candidates.len();
            self.gather(node, object, &mut attributes);
            let (outside, inside) = node
                .groups
                .split_at_checked(node.outside)
                .unwrap_or_default();
            for group in outside {
                self.group(group, &attributes);
            }
            self.show(node, occurrence);
            for group in inside {
                self.group(group, &attributes);
            }
            self.candidates.truncate(buffered);
            self.tags.truncate(buffered);
        } else {
            self.show(node, occurrence);
            self.out.node = NodeRef(index);
            if node.leaf {
                self.out.own = Some(self.out.path.len());
                leaf::value(&mut self.out, class, object, node.form);
                self.out.own = None;
            }
        }
        if node.post {
            self.out.node = NodeRef(index);
            post::emit(&mut self.out, class, object, node);
        }
        self.out.path.truncate(start);
    }

    /// Adds the node's text to the path.
    fn show(&mut self, node: &PlanNode, occurrence: Option<usize>) {
        let Some(id) = &node.id else { return };
        let path = &mut *self.out.path;
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(id);
        let mut numbered = false;
        if node.twin {
            let number = self.twins.number(path, node.class);
            if number > 1 {
                push_number(path, number);
                numbered = true;
            }
        }
        if let (true, Some(occurrence)) = (node.indexed, occurrence) {
            path.push(':');
            push_number(path, occurrence);
            numbered = true;
        } else if node.twin && numbered {
            // The text with its number is taken too (quirk Q14).
            self.twins.number(path, node.class);
        }
        self.out.removed = node.removed && !numbered;
    }

    /// Finds the attributes that the node's groups read, in one pass over the object.
    fn gather(
        &mut self,
        node: &PlanNode,
        object: Node<'a>,
        attributes: &mut [Attribute<'a>; ATTRIBUTES],
    ) {
        for (key, value) in object.members() {
            let place = leaf::place(key, &node.attributes);
            if let Some(attribute) = place.and_then(|place| attributes.get_mut(place)) {
                attribute.value = Some(value);
            }
        }
        for attribute in attributes.iter_mut() {
            let Some(list) = attribute.value.filter(|value| value.kind() == Kind::Array) else {
                continue;
            };
            let start = self.candidates.len();
            for item in list.items() {
                let [stated, code] = leaf::fields(item, ["_type", "archetype_node_id"]);
                let text = code.and_then(|code| code.as_str());
                self.tags.push(text.map_or(0, |code| code_tag(&code)));
                self.candidates.push(Candidate {
                    object: Object::with_type(item, stated),
                    code,
                });
            }
            attribute.list = Some((start, self.candidates.len()));
        }
    }

    fn group(&mut self, group: &Group, attributes: &[Attribute<'a>; ATTRIBUTES]) {
        let Some(attribute) = attributes.get(group.attribute).copied() else {
            return;
        };
        let Some(value) = attribute.value.filter(|value| !value.is_null()) else {
            return;
        };
        let choice = group.members.len() > 1;
        let single = if attribute.list.is_none() {
            Some(Object::new(value))
        } else {
            None
        };
        if group.multi {
            if group.first_multi {
                self.multi(group, single, attribute.list, choice);
            }
            return;
        }
        for member in &group.members {
            let Some(child) = self.plan.nodes.get(*member as usize) else {
                continue;
            };
            let fits = |found: &Object<'a>| {
                found.is_named(group, child) && (!choice || found.has_type(child))
            };
            let found = match attribute.list {
                None => single.filter(fits),
                Some((from, to)) => self.matches(group, from, to).find(fits),
            };
            if let Some(found) = found.and_then(|found| found.for_child(child)) {
                self.visit(*member, found, None);
            }
        }
    }

    /// Counts through the matches of the first member; each goes to the first member it fits.
    fn multi(
        &mut self,
        group: &Group,
        single: Option<Object<'a>>,
        list: Option<(usize, usize)>,
        choice: bool,
    ) {
        let plan = self.plan;
        let first = group
            .members
            .first()
            .and_then(|first| plan.nodes.get(*first as usize));
        let Some(first) = first else { return };
        if let Some(single) = single.filter(|single| single.is_named(group, first)) {
            self.occurrence(group, single, 0, choice);
        }
        let mut occurrence = 0;
        let (from, to) = list.unwrap_or_default();
        for at in from..to {
            let found = self.matches(group, at, at + 1).next();
            if let Some(found) = found.filter(|found| found.is_named(group, first)) {
                self.occurrence(group, found, occurrence, choice);
                occurrence += 1;
            }
        }
    }

    fn occurrence(&mut self, group: &Group, found: Object<'a>, occurrence: usize, choice: bool) {
        let plan = self.plan;
        let fits = |member: &&u32| {
            let child = plan.nodes.get(**member as usize);
            child.is_some_and(|child| !choice || found.can_stand_for(child))
        };
        if let Some(member) = group.members.iter().find(fits) {
            self.visit(*member, found, Some(occurrence));
        }
    }

    /// The candidates in a range whose code is the group's.
    fn matches(&self, group: &Group, from: usize, to: usize) -> impl Iterator<Item = Object<'a>> {
        let tags = self.tags.get(from..to).unwrap_or_default();
        let candidates = self.candidates.get(from..to).unwrap_or_default();
        let is_wanted = |(tag, candidate): &(&u64, &Candidate<'a>)| {
            let Some(wanted) = &group.code else {
                return true;
            };
            **tag == group.tag && candidate.code.is_some_and(|code| code.is_str(wanted))
        };
        tags.iter()
            .zip(candidates)
            .filter(is_wanted)
            .map(|(_, candidate)| candidate.object)
    }
}

pub(super) fn push_number(out: &mut String, number: usize) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{number}");
}

/// Which of several nodes with one id came first (quirk Q1).
#[derive(Default)]
struct Twins {
    hasher: RandomState,
    /// How many nodes have shown a path text. Texts are told apart by 64 keyed bits: two that
    /// clash would need a composition with billions of nodes.
    shown: HashMap<u64, usize>,
    numbers: HashMap<(u64, u32), usize>,
}

impl Twins {
    fn clear(&mut self) {
        self.shown.clear();
        self.numbers.clear();
    }

    /// The number of this node among those that show this text: 1 for the first, and so on.
    fn number(&mut self, path: &str, class: u32) -> usize {
        let text = self.hasher.hash_one(path);
        *self.numbers.entry((text, class)).or_insert_with(|| {
            let shown = self.shown.entry(text).or_default();
            *shown += 1;
            *shown
        })
    }
}

/// Where keys go, and the path they have.
pub(super) struct Out<'w, S> {
    pub(super) sink: &'w mut S,
    pub(super) path: &'w mut String,
    /// For texts that are made here: re-formatted times, numbered suffixes.
    pub(super) text: &'w mut String,
    pub(super) node: NodeRef,
    /// The length of the path of the leaf that is being written.
    pub(super) own: Option<usize>,
    /// Whether the bare key of the node that showed last is left out.
    pub(super) removed: bool,
    /// The composition's uid, if the caller knows it better.
    pub(super) version_uid: Option<&'w str>,
}

impl<S: Sink> Out<'_, S> {
    /// Writes one key at the present path.
    pub(super) fn put(&mut self, suffix: &str, value: Option<Value<'_>>) {
        let Some(value) = value else { return };
        let own = self.own == Some(self.path.len());
        if own && self.removed && suffix.is_empty() {
            return;
        }
        self.sink.emit(
            Key {
                path: self.path,
                suffix,
                node: self.node,
                own,
            },
            value,
        );
    }

    pub(super) fn text(&mut self, suffix: &str, node: Option<Node<'_>>) {
        self.put(suffix, node.and_then(Value::text));
    }

    pub(super) fn added(&mut self, suffix: &str, text: &'static str) {
        self.put(suffix, Some(Value::added(Data::Text(text))));
    }

    /// Runs with `/name` behind the path.
    pub(super) fn below(&mut self, name: &str, run: impl FnOnce(&mut Self)) {
        let start = self.path.len();
        self.path.push('/');
        self.path.push_str(name);
        run(self);
        self.path.truncate(start);
    }

    /// Runs for every item of a list with `/name:index` behind the path.
    pub(super) fn each<'a>(
        &mut self,
        name: &str,
        list: Node<'a>,
        mut run: impl FnMut(&mut Self, Node<'a>),
    ) {
        let start = self.path.len();
        for (index, item) in list.items().enumerate() {
            self.path.push('/');
            self.path.push_str(name);
            self.path.push(':');
            push_number(self.path, index);
            run(self, item);
            self.path.truncate(start);
        }
    }
}
