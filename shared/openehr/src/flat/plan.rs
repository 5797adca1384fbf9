//! Everything that depends on the template alone, done once.
//!
//! A served web template is rebuilt into the tree the CDR itself walks ([`draft`](mod@super::draft)),
//! and that tree is laid out as a list of [`PlanNode`]s with all decisions taken: which nodes
//! show in a path, which ids are shared by twins, which candidates belong to which child.

use super::draft::{self, Draft};
use super::leaf::Form;
use super::rm::RmType;
use super::walk::{ATTRIBUTES, code_tag};
use super::{CompileError, Ids};
use crate::webtemplate::WebTemplate;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How a template's compositions become FLAT. Compiled once, shared between threads.
#[derive(Debug, PartialEq)]
pub struct Plan {
    pub(super) template_id: String,
    /// The archetype at the root.
    pub(super) archetype: Option<String>,
    pub(super) ids: Ids,
    /// The root comes first, parents before their children.
    pub(super) nodes: Vec<PlanNode>,
    /// FLAT path (without indexes) and SQL name of each column the template knows.
    pub(super) sql_names: Vec<SqlName>,
    /// The names that differ from what spelling alone gives, by node and suffix.
    pub(super) renamed: HashMap<(u32, &'static str), u32>,
}

/// One FLAT path of a template and its name in SQL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SqlName {
    /// The FLAT path without indexes.
    pub flat: String,
    /// The same with `__`, `_` and `_` for `/`, `:` and `|`, and a number where two would be equal.
    pub sql: String,
}

/// A node of the rebuilt and expanded template tree.
#[derive(Debug, PartialEq)]
pub(super) struct PlanNode {
    pub(super) rm: RmType,
    /// The type's full name, to tell types apart that [`RmType`] does not know.
    pub(super) rm_name: Box<str>,
    /// The text this node adds to a path, if it adds one.
    pub(super) id: Option<Box<str>>,
    /// Nodes with the same class are told apart by nothing in a path: one node of the template for
    /// different types and, with the ids of [`Ids::Ehrbase`], nodes whose ids are equal all the way.
    pub(super) class: u32,
    /// Another node of the template can show the same text at the same place.
    pub(super) twin: bool,
    /// Occurs more than once, so that its index shows.
    pub(super) indexed: bool,
    /// Its value is written as keys.
    pub(super) leaf: bool,
    /// The walk goes into it.
    pub(super) walked: bool,
    /// The post rules of its class run.
    pub(super) post: bool,
    /// Among these the rules of LOCATABLE.
    pub(super) locatable_post: bool,
    /// How its value is written.
    pub(super) form: Form,
    /// `instruction_id` and `activity_id` of an ACTION: written by one rule, removed by another.
    pub(super) removed: bool,
    /// The name in the template: `_name` is written when the composition has another.
    pub(super) name: Box<str>,
    /// The attributes that the groups read.
    pub(super) attributes: Box<[Box<str>]>,
    pub(super) groups: Box<[Group]>,
    /// How many of the groups write at the place of the container (quirk Q6), not under this
    /// node's own text.
    pub(super) outside: usize,
}

/// Children with one archetype path: one child, or a choice between several.
#[derive(Debug, PartialEq)]
pub(super) struct Group {
    /// Index into [`PlanNode::attributes`].
    pub(super) attribute: usize,
    pub(super) code: Option<Box<str>>,
    /// The code's [`code_tag`].
    pub(super) tag: u64,
    /// The name that a LOCATABLE must have.
    pub(super) name: Option<Box<str>>,
    /// Indexes of plan nodes.
    pub(super) members: Box<[u32]>,
    /// Any of the members may occur more than once.
    pub(super) multi: bool,
    /// The first one may: its matches are what is counted through.
    pub(super) first_multi: bool,
}

/// A node of a [`Plan`], for sinks that keep something per node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeRef(pub(super) u32);

impl NodeRef {
    /// The node's place in the plan's list, from 0 to [`Plan::node_count`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Plan {
    /// Takes all decisions that a template allows to take.
    pub fn compile(template: &WebTemplate, ids: Ids) -> Result<Self, CompileError> {
        let root = draft::rebuild(template)?;
        let mut plan = Self {
            template_id: template.template_id.clone(),
            archetype: template.tree.node_id.clone(),
            ids,
            nodes: Vec::new(),
            sql_names: Vec::new(),
            renamed: HashMap::new(),
        };
        let mut layout = Layout {
            plan: &mut plan,
            shown: Vec::new(),
            classes: HashMap::new(),
        };
        layout.place(&root, None, &root.base, false);
        layout.decide_ids();
        plan.check()?;
        plan.decide_sql_names();
        Ok(plan)
    }

    /// Refuses what a walk takes for granted that it never meets.
    fn check(&self) -> Result<(), CompileError> {
        let breaks_path =
            |char: char| char.is_control() || matches!(char, '"' | '\\' | '/' | '|' | ':');
        let mut ids = self.nodes.iter().filter_map(|node| node.id.as_deref());
        if ids.any(|id| id.is_empty() || id.contains(breaks_path)) {
            return Err(CompileError::Id);
        }
        let odd = self
            .nodes
            .iter()
            .find(|node| node.attributes.len() > ATTRIBUTES);
        odd.map_or(Ok(()), |node| {
            let name = node.name.to_string();
            Err(CompileError::TooManyAttributes {
                name,
                limit: ATTRIBUTES,
            })
        })
    }

    /// The id of the template, as the server has it.
    pub fn template_id(&self) -> &str {
        &self.template_id
    }

    /// The archetype at the root, if the template names it.
    pub(super) fn archetype(&self) -> Option<&str> {
        self.archetype.as_deref()
    }

    /// Which ids the paths are made of.
    pub fn ids(&self) -> Ids {
        self.ids
    }

    /// How many nodes there are, for sinks that keep something per node.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// FLAT path (without indexes) and SQL name of all that the template itself can have, in
    /// template order. What only compositions bring (links, mappings, participations) is not in
    /// it; [`super::FlattenedWriter::renamed`] tells about clashes among those.
    pub fn name_map(&self) -> &[SqlName] {
        &self.sql_names
    }
}

/// The ids by which the CDR tells the children of a node apart: of several with one base id, the
/// later ones have a number behind it. Such an id can be another child's base id.
fn numbered_ids(parent: &Draft) -> HashMap<u32, String> {
    let mut ids = HashMap::new();
    let mut counts: HashMap<&str, u32> = HashMap::new();
    for child in &parent.children {
        ids.entry(child.class).or_insert_with(|| {
            let count = counts.entry(&child.base).or_default();
            *count += 1;
            match count {
                1 => child.base.clone(),
                count => format!("{}{count}", child.base),
            }
        });
    }
    ids
}

/// A node that shows in paths.
struct Shown {
    node: u32,
    class: u32,
    /// The class of the node above that shows.
    parent: Option<u32>,
    base: String,
    served: String,
}

struct Layout<'p> {
    plan: &'p mut Plan,
    shown: Vec<Shown>,
    /// For [`Ids::Ehrbase`], which knows nodes by their ids from the root: the class of a node by
    /// the class above it and its own id.
    classes: HashMap<(Option<u32>, String), u32>,
}

/// What a node has to know of the one above it.
#[derive(Clone, Copy)]
struct Above<'d> {
    draft: &'d Draft,
    class: u32,
    /// The nearest that shows: class and type.
    shown: Option<(u32, RmType)>,
    removed: bool,
}

impl Layout<'_> {
    /// Lays out a node and all below it. `id` tells it from its siblings as the CDR does, `is_name`
    /// says whether that is just `name`.
    fn place(&mut self, draft: &Draft, above: Option<Above<'_>>, id: &str, is_name: bool) -> u32 {
        let index = u32::try_from(self.plan.nodes.len()).unwrap_or(u32::MAX);
        let hidden = draft.hidden_below(above.map(|above| above.draft));
        // The value of such an ELEMENT shows under the ELEMENT's id, so the text is put there.
        let in_carrier = above.is_some_and(|above| above.draft.carries_value());
        let shows = draft.carries_value() || (!hidden && !in_carrier);
        let walked = draft.rm.is_walked();
        let shown_above = above.and_then(|above| above.shown);
        let removed = match above {
            Some(above) if in_carrier => above.removed,
            _ => {
                matches!(draft.base.as_str(), "instruction_id" | "activity_id")
                    && shown_above.is_some_and(|(_, rm)| rm == RmType::Action)
            }
        };
        let class = match self.plan.ids {
            Ids::Ehrbase => {
                let next = u32::try_from(self.classes.len()).unwrap_or(u32::MAX);
                let own = (above.map(|above| above.class), id.to_owned());
                *self.classes.entry(own).or_insert(next)
            }
            Ids::Template => draft.class,
        };
        let post = above.is_none_or(|above| !is_name && above.draft.rm.is(RmType::Locatable));
        self.plan.nodes.push(PlanNode {
            rm: draft.rm,
            rm_name: draft.rm_name.as_str().into(),
            id: shows.then(|| draft.base.as_str().into()),
            class,
            twin: false,
            indexed: shows && draft.max != 1,
            leaf: !walked && !hidden,
            walked,
            post,
            locatable_post: !hidden || draft.rm == RmType::Element,
            form: Form {
                other: draft.other,
                wf_definition: draft.id == "wf_definition",
                java_time: !post,
            },
            removed,
            name: draft.name.as_str().into(),
            attributes: Box::default(),
            groups: Box::default(),
            outside: 0,
        });
        if shows {
            self.shown.push(Shown {
                node: index,
                class,
                parent: shown_above.map(|(class, _)| class),
                base: draft.base.clone(),
                served: draft.id.clone(),
            });
        }
        if walked {
            let shown = if shows {
                Some((class, draft.rm))
            } else {
                shown_above
            };
            self.place_children(
                index,
                Above {
                    draft,
                    class,
                    shown,
                    removed,
                },
            );
        }
        index
    }

    fn place_children(&mut self, index: u32, above: Above<'_>) {
        let draft = above.draft;
        let mut attributes: Vec<Box<str>> = Vec::new();
        let mut outside: Vec<Group> = Vec::new();
        let mut inside: Vec<Group> = Vec::new();
        let ids = numbered_ids(draft);
        for members in draft.groups() {
            let Some(step) = members.first().and_then(|first| first.path.last()) else {
                continue;
            };
            let attribute = attributes.iter().position(|name| **name == *step.attribute);
            let attribute = attribute.unwrap_or_else(|| {
                attributes.push(step.attribute.as_str().into());
                attributes.len() - 1
            });
            // The occurrences of a value are those of its ELEMENT.
            let is_multi = |child: &&Draft| draft.rm != RmType::Element && child.max != 1;
            let mut nodes = Vec::new();
            for child in &members {
                let id = ids.get(&child.class).map_or(&*child.base, |id| &**id);
                nodes.push(self.place(child, Some(above), id, id == "name"));
            }
            let group = Group {
                attribute,
                code: step.code.as_deref().map(Into::into),
                tag: step.code.as_deref().map_or(0, code_tag),
                name: step.name.as_deref().map(Into::into),
                multi: members.iter().any(is_multi),
                first_multi: members.first().is_some_and(is_multi),
                members: nodes.into(),
            };
            let at_container = draft.carries_value() && members.iter().all(|child| child.rebuilt);
            if at_container {
                outside.push(group)
            } else {
                inside.push(group)
            }
        }
        if let Some(node) = self.plan.nodes.get_mut(index as usize) {
            node.attributes = attributes.into();
            node.outside = outside.len();
            outside.append(&mut inside);
            node.groups = outside.into();
        }
    }

    fn decide_ids(&mut self) {
        match self.plan.ids {
            Ids::Ehrbase => self.mark_twins(),
            Ids::Template => self.fix_ids(),
        }
    }

    /// Marks the nodes whose number depends on which of them a composition shows first.
    fn mark_twins(&mut self) {
        let mut classes: BTreeMap<(Option<u32>, &str), BTreeSet<u32>> = BTreeMap::new();
        for shown in &self.shown {
            classes
                .entry((shown.parent, &shown.base))
                .or_default()
                .insert(shown.class);
        }
        classes.retain(|_, classes| classes.len() > 1);
        for shown in &self.shown {
            let is_twin = |base: &str| classes.contains_key(&(shown.parent, base));
            // Quirk Q14: a node called `test2` beside two called `test` takes part in the count.
            let without_number = shown
                .base
                .trim_end_matches(|char: char| char.is_ascii_digit());
            if let Some(node) = self.plan.nodes.get_mut(shown.node as usize) {
                node.twin = is_twin(&shown.base) || is_twin(without_number);
            }
        }
    }

    /// Gives every node the id it is served with, and a number where hoisting made two equal.
    fn fix_ids(&mut self) {
        let mut taken: BTreeMap<(Option<u32>, String), u32> = BTreeMap::new();
        for shown in &self.shown {
            let mut id = shown.served.clone();
            let mut number = 1;
            while *taken
                .entry((shown.parent, id.clone()))
                .or_insert(shown.class)
                != shown.class
            {
                number += 1;
                id = format!("{}{number}", shown.base);
            }
            if let Some(node) = self.plan.nodes.get_mut(shown.node as usize) {
                node.id = Some(id.into());
            }
        }
    }
}
