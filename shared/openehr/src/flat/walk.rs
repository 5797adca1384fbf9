//! One composition, in template order.

use super::plan::{Group, NodeRef, Plan, PlanNode};
use super::rm::RmType;
use super::value::{Data, Value};
use super::{leaf, post};
use crate::json::{Kind, Node};
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
    #[error("the document is not a canonical COMPOSITION, so it has no FLAT form; check which column of the query holds the composition")]
    NotAComposition,
}

/// The buffers of a walk, kept by the caller so that walks need no memory of their own.
#[derive(Default)]
pub struct Walker {
    path: String,
    text: String,
    candidates: Vec<Candidate<'static>>,
    twins: Twins,
}

impl Walker {
    /// A walker with empty buffers.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Plan {
    /// Gives the keys of a composition to a sink, in template order.
    pub fn walk<S: Sink>(
        &self,
        walker: &mut Walker,
        composition: Node<'_>,
        sink: &mut S,
    ) -> Result<(), FlatError> {
        let is_other = |kind: Node<'_>| !kind.is_str("COMPOSITION");
        if composition.kind() != Kind::Object || composition.get("_type").is_some_and(is_other) {
            return Err(FlatError::NotAComposition);
        }
        walker.path.clear();
        walker.twins.clear();
        let mut walk = Walk {
            plan: self,
            candidates: recycle(std::mem::take(&mut walker.candidates)),
            twins: &mut walker.twins,
            out: Out {
                sink,
                path: &mut walker.path,
                text: &mut walker.text,
                node: NodeRef(0),
                own: None,
                removed: false,
            },
        };
        walk.visit(0, composition, None);
        walker.candidates = recycle(walk.candidates);
        Ok(())
    }
}

/// An object that may belong to a child of the template, and its code.
struct Candidate<'a> {
    object: Node<'a>,
    code: Option<Node<'a>>,
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

/// More attributes than the types of the reference model have.
const ATTRIBUTES: usize = 16;

struct Walk<'w, 'a, S> {
    plan: &'w Plan,
    candidates: Vec<Candidate<'a>>,
    twins: &'w mut Twins,
    out: Out<'w, S>,
}

impl<'w, 'a, S: Sink> Walk<'w, 'a, S> {
    /// Recursion follows the plan, whose depth is limited when it is compiled.
    fn visit(&mut self, index: u32, object: Node<'a>, occurrence: Option<usize>) {
        let plan = self.plan;
        let Some(node) = plan.nodes.get(index as usize) else { return };
        self.out.sink.visit(object, NodeRef(index));
        let start = self.out.path.len();
        let class = class_of(object, node);
        if node.walked {
            let mut attributes = [Attribute::default(); ATTRIBUTES];
            let buffered = self.candidates.len();
            self.gather(node, object, &mut attributes);
            let (outside, inside) = node.groups.split_at_checked(node.outside).unwrap_or_default();
            for group in outside {
                self.group(group, &attributes);
            }
            self.show(node, occurrence);
            for group in inside {
                self.group(group, &attributes);
            }
            self.candidates.truncate(buffered);
        } else {
            self.show(node, occurrence);
            self.out.node = NodeRef(index);
            if node.leaf {
                self.out.own = Some(self.out.path.len());
                leaf::emit(&mut self.out, class, object, node);
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
        }
        self.out.removed = node.removed && !numbered;
    }

    /// Finds the attributes that the node's groups read, in one pass over the object.
    fn gather(&mut self, node: &PlanNode, object: Node<'a>, attributes: &mut [Attribute<'a>; ATTRIBUTES]) {
        for (key, value) in object.members() {
            let place = leaf::place(key, &node.attributes);
            if let Some(attribute) = place.and_then(|place| attributes.get_mut(place)) {
                attribute.value = Some(value);
            }
        }
        for attribute in attributes.iter_mut() {
            let Some(list) = attribute.value.filter(|value| value.kind() == Kind::Array) else { continue };
            let start = self.candidates.len();
            self.candidates.extend(
                list.items().map(|object| Candidate { object, code: object.get("archetype_node_id") }),
            );
            attribute.list = Some((start, self.candidates.len()));
        }
    }

    fn group(&mut self, group: &Group, attributes: &[Attribute<'a>; ATTRIBUTES]) {
        let Some(attribute) = attributes.get(group.attribute).copied() else { return };
        let Some(value) = attribute.value else { return };
        let choice = group.members.len() > 1;
        if group.multi {
            if group.first_multi {
                self.multi(group, value, attribute.list, choice);
            }
            return;
        }
        for member in &group.members {
            let Some(child) = self.plan.nodes.get(*member as usize) else { continue };
            let fits = |found: &Node<'a>| named(group, child, *found) && (!choice || has_type(*found, child));
            let found = match attribute.list {
                None => Some(value).filter(|value| value.kind() != Kind::Null).filter(fits),
                Some((from, to)) => self.matches(group, from, to).find(fits),
            };
            if let Some(found) = found.and_then(|found| unwrap_element(found, child)) {
                self.visit(*member, found, None);
            }
        }
    }

    /// Counts through the matches of the first member; each goes to the first member it fits.
    fn multi(&mut self, group: &Group, value: Node<'a>, list: Option<(usize, usize)>, choice: bool) {
        let Some(first) = group.members.first().and_then(|first| self.plan.nodes.get(*first as usize)) else {
            return;
        };
        let Some((from, to)) = list else {
            if value.kind() != Kind::Null && named(group, first, value) {
                self.occurrence(group, value, 0, choice);
            }
            return;
        };
        let mut occurrence = 0;
        for at in from..to {
            let Some(found) = self.matches(group, at, at + 1).next() else { continue };
            if named(group, first, found) {
                self.occurrence(group, found, occurrence, choice);
                occurrence += 1;
            }
        }
    }

    fn occurrence(&mut self, group: &Group, found: Node<'a>, occurrence: usize, choice: bool) {
        let plan = self.plan;
        let fits = |member: &&u32| {
            let child = plan.nodes.get(**member as usize);
            child.is_some_and(|child| !choice || can_stand_for(found, child))
        };
        if let Some(member) = group.members.iter().find(fits) {
            self.visit(*member, found, Some(occurrence));
        }
    }

    /// The candidates in a range whose code is the group's.
    fn matches<'g>(&'g self, group: &'g Group, from: usize, to: usize) -> impl Iterator<Item = Node<'a>> + use<'g, 'w, 'a, S> {
        let range = self.candidates.get(from..to).unwrap_or_default();
        let wanted = group.code.as_deref();
        range
            .iter()
            .filter(move |candidate| match (wanted, candidate.code) {
                (None, _) => true,
                (Some(wanted), Some(code)) => code.is_str(wanted),
                (Some(_), None) => false,
            })
            .map(|candidate| candidate.object)
    }
}

/// Whether an object has the name that the group's path asks for.
fn named(group: &Group, child: &PlanNode, object: Node<'_>) -> bool {
    match &group.name {
        Some(name) if child.rm.is(RmType::Locatable) => {
            object.at(&["name", "value"]).is_some_and(|value| value.is_str(name))
        }
        _ => true,
    }
}

/// The class an object says it has; what the template expects if it does not say.
fn class_of(object: Node<'_>, node: &PlanNode) -> RmType {
    match leaf::stated_type(object) {
        // Nearly always, and cheaper than going through all names.
        Some(name) if *name == *node.rm_name => node.rm,
        Some(name) => RmType::from_name(&name),
        None => node.rm,
    }
}

fn has_type(object: Node<'_>, child: &PlanNode) -> bool {
    leaf::stated_type(object).is_none_or(|name| {
        let name = name.split_once('<').map_or(&*name, |(outer, _)| outer);
        name == &*child.rm_name
    })
}

pub(super) fn can_stand_for(object: Node<'_>, child: &PlanNode) -> bool {
    match (leaf::stated_type(object), child.rm) {
        (None, _) => true,
        (Some(_), RmType::Other) => has_type(object, child),
        (Some(name), rm) => *name == *child.rm_name || RmType::from_name(&name).is(rm),
    }
}

/// An ELEMENT where the template has a value stands for its value.
fn unwrap_element<'a>(object: Node<'a>, child: &PlanNode) -> Option<Node<'a>> {
    if child.rm != RmType::Element && leaf::stated_type(object).as_deref() == Some("ELEMENT") {
        return object.get("value").filter(|value| !value.is_null());
    }
    Some(object)
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
}

impl<S: Sink> Out<'_, S> {
    /// Writes one key at the present path.
    pub(super) fn put(&mut self, suffix: &str, value: Option<Value<'_>>) {
        let Some(value) = value else { return };
        let own = self.own == Some(self.path.len());
        if own && self.removed && suffix.is_empty() {
            return;
        }
        self.sink.emit(Key { path: self.path, suffix, node: self.node, own }, value);
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
    pub(super) fn each<'a>(&mut self, name: &str, list: Node<'a>, mut run: impl FnMut(&mut Self, Node<'a>)) {
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
