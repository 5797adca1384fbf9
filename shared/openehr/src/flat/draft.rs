//! Rebuilds the tree that the CDR walks from the one it serves.
//!
//! Serving drops containers and hoists their children, but each `aqlPath` still names them. So
//! every path is cut into segments, and each segment without a served node becomes a rebuilt
//! one that shows nothing. Then the abstract types are expanded into what can really occur.

use super::CompileError;
use super::path::{self, Segment};
use super::rm::RmType;
use crate::webtemplate::{Node, WebTemplate};

/// How deep the rebuilt tree may be. Real ones stay below 50; the walk recurses this deep.
const MAX_DEPTH: usize = 256;

/// How many nodes a template may have after expansion. Real ones stay below 10,000.
const MAX_NODES: u32 = 200_000;

/// A node of the rebuilt tree.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) rm: RmType,
    /// The type's name without its parameter.
    pub(super) rm_name: String,
    /// The id as served, or the attribute's name.
    pub(super) id: String,
    /// The id without the number that tells it from served siblings.
    pub(super) base: String,
    pub(super) name: String,
    pub(super) min: i64,
    pub(super) max: i64,
    pub(super) other: bool,
    /// The full path from the composition.
    pub(super) path: Vec<Segment>,
    /// Not served: put back here.
    pub(super) rebuilt: bool,
    /// Copies for different types keep the class of their original.
    pub(super) class: u32,
    pub(super) children: Vec<Draft>,
}

/// Rebuilds and expands the tree of a template.
pub(super) fn rebuild(template: &WebTemplate) -> Result<Draft, CompileError> {
    let mut rebuilder = Rebuilder { nodes: 0 };
    let mut root = rebuilder.served(&template.tree, Vec::new())?;
    rebuilder.add_children(&mut root, &template.tree, 0)?;
    rebuilder.expand(&mut root)?;
    Ok(root)
}

impl Draft {
    /// An ELEMENT around a value, which itself does not show: its value shows in its place.
    pub(super) fn carries_value(&self) -> bool {
        self.rm == RmType::Element && self.children.iter().any(|child| child.id == "value")
    }

    /// Whether the node, below this parent, adds nothing to a path.
    pub(super) fn hidden_below(&self, parent: Option<&Draft>) -> bool {
        let Some(parent) = parent else { return false };
        if self.rebuilt || self.rm.is_nameless() {
            return true;
        }
        if parent.rm == RmType::Composition && self.rm == RmType::EventContext && self.min == 0 {
            return true;
        }
        if parent.rm == RmType::IsmTransition && parent.base != "ism_transition" {
            return true;
        }
        if self.rm.is(RmType::Event) {
            let mut events = parent
                .children
                .iter()
                .filter(|child| child.rm.is(RmType::Event));
            return self.max == 1 && events.all(|event| event.path == self.path);
        }
        match self.rm {
            RmType::Element => self.carries_value(),
            RmType::IsmTransition => self.base != "ism_transition",
            RmType::CodePhrase => parent.rm == RmType::DvCodedText,
            _ => false,
        }
    }

    fn size(&self) -> usize {
        1 + self.children.iter().map(Draft::size).sum::<usize>()
    }

    /// The children by path, in the order in which the paths first appear.
    pub(super) fn groups(&self) -> Vec<Vec<&Draft>> {
        let mut groups: Vec<Vec<&Draft>> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for child in &self.children {
            let next = groups.len();
            let place = *places.entry(&child.path).or_insert(next);
            match groups.get_mut(place) {
                Some(group) => group.push(child),
                None => groups.push(vec![child]),
            }
        }
        groups
    }
}

struct Rebuilder {
    /// How many nodes there are by now, copies included.
    nodes: u32,
}

impl Rebuilder {
    /// A class of its own for a new node.
    fn class(&mut self) -> Result<u32, CompileError> {
        self.count(1)?;
        Ok(self.nodes)
    }

    fn count(&mut self, nodes: usize) -> Result<(), CompileError> {
        self.nodes = self
            .nodes
            .saturating_add(u32::try_from(nodes).unwrap_or(u32::MAX));
        if self.nodes > MAX_NODES {
            return Err(CompileError::TooLarge { limit: MAX_NODES });
        }
        Ok(())
    }

    /// The same node for another type. Counted before it is made: copies of copies grow fast.
    fn copy(&mut self, original: &Draft, rm: RmType, rm_name: &str) -> Result<Draft, CompileError> {
        self.count(original.size())?;
        Ok(Draft {
            rm,
            rm_name: rm_name.to_owned(),
            ..original.clone()
        })
    }

    fn served(&mut self, node: &Node, path: Vec<Segment>) -> Result<Draft, CompileError> {
        Ok(Draft {
            rm: RmType::from_name(&node.rm_type),
            rm_name: node.rm_type.clone(),
            id: node.id.clone(),
            base: base_id(&node.id, &node.name),
            name: node.name.clone(),
            min: node.min,
            max: node.max,
            other: node.has_other(),
            path,
            rebuilt: false,
            class: self.class()?,
            children: Vec::new(),
        })
    }

    /// A node that the template does not name: occurs once, shows nothing.
    fn put_back(
        &mut self,
        rm: RmType,
        rm_name: &str,
        path: Vec<Segment>,
    ) -> Result<Draft, CompileError> {
        let id = path
            .last()
            .map(|step| step.attribute.clone())
            .unwrap_or_default();
        Ok(Draft {
            rm,
            rm_name: rm_name.to_owned(),
            base: id.clone(),
            name: id.clone(),
            id,
            min: 1,
            max: 1,
            other: false,
            path,
            rebuilt: true,
            class: self.class()?,
            children: Vec::new(),
        })
    }

    /// Hangs the served children of `node` below `draft`, with what lies between.
    fn add_children(
        &mut self,
        draft: &mut Draft,
        node: &Node,
        depth: usize,
    ) -> Result<(), CompileError> {
        for served in &node.children {
            let Some(path) = path::split(&served.aql_path) else {
                return Err(CompileError::Path {
                    id: served.id.clone(),
                    path: served.aql_path.clone(),
                });
            };
            let between = path.len().saturating_sub(draft.path.len());
            if between == 0 {
                return Err(CompileError::NotBelow {
                    id: served.id.clone(),
                    path: served.aql_path.clone(),
                });
            }
            if depth + between > MAX_DEPTH {
                return Err(CompileError::TooDeep {
                    id: served.id.clone(),
                    limit: MAX_DEPTH,
                });
            }
            let mut child = self.served(served, path)?;
            self.add_children(&mut child, served, depth + between)?;
            self.hang(draft, child)?;
        }
        Ok(())
    }

    fn hang(&mut self, parent: &mut Draft, mut child: Draft) -> Result<(), CompileError> {
        let own = parent.path.len();
        let last = child.path.len().saturating_sub(1);
        let in_element = last > own && is_value_of_element(&child.path);
        let containers_end = if in_element { last - 1 } else { last };
        let mut at = parent;
        for end in own + 1..=containers_end {
            let Some(path) = child.path.get(..end) else {
                break;
            };
            let place = match at
                .children
                .iter()
                .position(|known| known.rebuilt && known.path == path)
            {
                Some(place) => place,
                None => {
                    let behind = child.path.get(end).map(|step| step.attribute.as_str());
                    let (rm, rm_name) = container(at.rm, path, behind);
                    let between = self.put_back(rm, rm_name, path.to_vec())?;
                    at.children.push(between);
                    at.children.len() - 1
                }
            };
            let Some(next) = at.children.get_mut(place) else {
                return Ok(());
            };
            at = next;
        }
        if in_element {
            // The served node stands for the ELEMENT and its value at once.
            let mut element = child.clone();
            element.path.truncate(last);
            element.rm = RmType::Element;
            element.rm_name = "ELEMENT".to_owned();
            element.children = Vec::new();
            element.other = false;
            element.class = self.class()?;
            child.id = child
                .path
                .last()
                .map(|step| step.attribute.clone())
                .unwrap_or_default();
            child.base.clone_from(&child.id);
            child.min = 1;
            child.max = 1;
            element.children.push(child);
            at.children.push(element);
        } else {
            at.children.push(child);
        }
        Ok(())
    }

    /// Adds the attributes that only the post rules see, and replaces abstract types.
    fn expand(&mut self, node: &mut Draft) -> Result<(), CompileError> {
        if !node.rm.is_walked() {
            node.children.clear();
            return Ok(());
        }
        if node.rm == RmType::Action {
            let mut seen = false;
            node.children.retain(|child| {
                child.rm != RmType::IsmTransition || !std::mem::replace(&mut seen, true)
            });
        }
        let attributes: &[(RmType, &str, &str)] = match node.rm {
            RmType::Element => &[(RmType::DvCodedText, "DV_CODED_TEXT", "null_flavour")],
            RmType::Instruction => &[(RmType::DvParsable, "DV_PARSABLE", "wf_definition")],
            RmType::History => &[
                (RmType::DvDateTime, "DV_DATE_TIME", "origin"),
                (RmType::DvDuration, "DV_DURATION", "period"),
                (RmType::DvDuration, "DV_DURATION", "duration"),
            ],
            _ => &[],
        };
        for (rm, rm_name, attribute) in attributes {
            let mut path = node.path.clone();
            path.push(Segment::attribute(attribute));
            if !node.children.iter().any(|child| child.path == path) {
                let attribute = self.put_back(*rm, rm_name, path)?;
                node.children.push(attribute);
            }
        }
        self.expand_types(node)?;
        for child in &mut node.children {
            self.expand(child)?;
        }
        Ok(())
    }

    fn expand_types(&mut self, node: &mut Draft) -> Result<(), CompileError> {
        let mut added = Vec::new();
        let mut replaced = Vec::new();
        for (place, child) in node.children.iter().enumerate() {
            let lacks = |rm: RmType| {
                !node.children.iter().enumerate().any(|(other, sibling)| {
                    other != place && sibling.rm == rm && sibling.path == child.path
                })
            };
            match child.rm {
                // Attributes put back for their post rules take whatever class the object has.
                _ if child.rebuilt && !child.rm.is_walked() => {}
                RmType::DvText if lacks(RmType::DvCodedText) => {
                    added.push(self.copy(child, RmType::DvCodedText, "DV_CODED_TEXT")?);
                }
                RmType::PartyProxy => {
                    added.push(self.copy(child, RmType::PartySelf, "PARTY_SELF")?);
                    added.push(self.copy(child, RmType::PartyIdentified, "PARTY_IDENTIFIED")?);
                    added.push(self.copy(child, RmType::PartyRelated, "PARTY_RELATED")?);
                    replaced.push(place);
                }
                RmType::PartyIdentified if lacks(RmType::PartyRelated) => {
                    added.push(self.copy(child, RmType::PartyRelated, "PARTY_RELATED")?);
                }
                RmType::Event => {
                    let mut interval = self.copy(child, RmType::IntervalEvent, "INTERVAL_EVENT")?;
                    for (rm, rm_name, attribute) in [
                        (RmType::DvDuration, "DV_DURATION", "width"),
                        (RmType::DvCodedText, "DV_CODED_TEXT", "math_function"),
                    ] {
                        let mut path = interval.path.clone();
                        path.push(Segment::attribute(attribute));
                        if interval.children.iter().any(|known| known.path == path) {
                            continue;
                        }
                        let mut attribute = self.put_back(rm, rm_name, path)?;
                        attribute.rebuilt = false;
                        interval.children.push(attribute);
                    }
                    added.push(interval);
                    added.push(self.copy(child, RmType::PointEvent, "POINT_EVENT")?);
                    replaced.push(place);
                }
                _ => {}
            }
        }
        let mut place = 0;
        node.children.retain(|_| {
            place += 1;
            !replaced.contains(&(place - 1))
        });
        node.children.append(&mut added);
        Ok(())
    }
}

/// Whether a path ends in the value (or the null flavour) of an ELEMENT.
fn is_value_of_element(path: &[Segment]) -> bool {
    let [.., element, value] = path else {
        return false;
    };
    matches!(value.attribute.as_str(), "value" | "null_flavour")
        && matches!(element.attribute.as_str(), "items" | "item")
}

/// The type of a container that is not served, from where it stands.
fn container(parent: RmType, path: &[Segment], behind: Option<&str>) -> (RmType, &'static str) {
    let attribute = path.last().map_or("", |step| step.attribute.as_str());
    match (parent, attribute) {
        (RmType::Observation, "data" | "state") => (RmType::History, "HISTORY"),
        (RmType::History, "events") => match behind {
            Some("width" | "math_function") => (RmType::IntervalEvent, "INTERVAL_EVENT"),
            _ => (RmType::Event, "EVENT"),
        },
        // A container whose own name made it vanish, such as a CLUSTER called `origin`.
        (RmType::Section, "items") | (RmType::Composition, "content") => {
            (RmType::Section, "SECTION")
        }
        (_, "items" | "rows") => (RmType::Cluster, "CLUSTER"),
        (_, "data" | "state" | "protocol" | "description" | "other_context" | "summary") => {
            (RmType::ItemTree, "ITEM_TREE")
        }
        (_, "activities") => (RmType::Activity, "ACTIVITY"),
        (_, "context") => (RmType::EventContext, "EVENT_CONTEXT"),
        (_, "ism_transition") => (RmType::IsmTransition, "ISM_TRANSITION"),
        (_, "instruction_details") => (RmType::InstructionDetails, "INSTRUCTION_DETAILS"),
        // An attribute that is no container, of which the template says something all the same,
        // such as the function of a participation: EHRbase does not look into it.
        _ => (RmType::Other, ""),
    }
}

/// The id without the number that tells served siblings apart: made from the name again, as a
/// number can have been baked in before hoisting (`a22`).
fn base_id(served: &str, name: &str) -> String {
    let base = id_from_name(name);
    let without_number = served.trim_end_matches(|char: char| char.is_ascii_digit());
    if served
        .strip_prefix(&base)
        .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    {
        base
    } else if without_number.ends_with("_value") {
        without_number.to_owned()
    } else {
        served.to_owned()
    }
}

/// The id that a label gives.
fn id_from_name(name: &str) -> String {
    let kept = |char: char| {
        char.is_alphabetic() || char.is_ascii_digit() || matches!(char, '.' | '_' | '-')
    };
    // Lower case comes first: it can depend on the neighbours, and make two characters of one.
    let lower = name.to_lowercase();
    let mut id = String::with_capacity(lower.len());
    for word in lower
        .split(|char| !kept(char))
        .filter(|word| !word.is_empty())
    {
        if !id.is_empty() {
            id.push('_');
        }
        id.push_str(word);
    }
    match id.chars().next() {
        None => "_".to_owned(),
        Some('0'..='9') => format!("a{id}"),
        Some(_) => id,
    }
}

#[cfg(test)]
mod tests {
    use super::{base_id, id_from_name};

    #[test]
    fn ids_follow_from_labels() {
        assert_eq!(id_from_name("Any event"), "any_event");
        assert_eq!(id_from_name("  Größe (cm)  "), "größe_cm");
        assert_eq!(id_from_name("24 hour average"), "a24_hour_average");
        assert_eq!(id_from_name("%&"), "_");
        assert_eq!(id_from_name("a.b_c-d"), "a.b_c-d");
        // One capital letter whose small form is two characters, of which the second is no letter.
        assert_eq!(id_from_name("İz"), "i_z");
        // A sigma is not at the end of a word where only a sign stands between it and a letter.
        assert_eq!(id_from_name("ΟΔΟΣ'Α"), "οδοσ_α");
    }

    #[test]
    fn a_number_is_taken_off_only_where_it_was_put_on() {
        assert_eq!(base_id("comment2", "Comment"), "comment");
        assert_eq!(base_id("covid_19", "COVID 19"), "covid_19");
        assert_eq!(base_id("covid_192", "COVID 19"), "covid_19");
        assert_eq!(base_id("quantity_value2", "Result"), "quantity_value");
    }
}
