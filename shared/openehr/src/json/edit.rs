//! A value with some of its parts dropped or replaced, as text: what leaves out a part leaves it
//! out for every reader behind.

use super::{JsonError, JsonErrorKind, Kind, Node, NodeId, Tape, minify};
use std::collections::BTreeMap;
use std::fmt;

/// What becomes of single values of a text: dropped with their member or item, or replaced by
/// another value. Of two edits of one value the later counts; of two in each other the outer wins.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Edits(BTreeMap<u32, Edit>);

#[derive(Clone, PartialEq, Eq)]
enum Edit {
    Drop,
    Replace(String),
}

/// Shows the number only: a replacement may be a patient's.
impl fmt::Debug for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Edits({})", self.0.len())
    }
}

impl Edits {
    /// No edits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves out a value: a member with its name, or an item of a list, whose successors move up.
    pub fn drop_node(&mut self, node: NodeId) {
        self.0.insert(node.0, Edit::Drop);
    }

    /// Puts another value in a value's place: the text of one JSON value.
    pub fn replace(&mut self, node: NodeId, json_text: impl Into<String>) {
        self.0.insert(node.0, Edit::Replace(json_text.into()));
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Appends a value without insignificant white space, with the edits made: what [`minify()`] writes
/// where there are none. Edits of values outside this one have no effect.
///
/// Fails if the whole value is dropped, if an edit names a member's name, or if a replacement is
/// no JSON value, even one that an outer edit hides; nothing is appended then.
pub fn edited(node: Node<'_>, edits: &Edits, out: &mut String) -> Result<(), JsonError> {
    let start = out.len();
    let written = check(node, edits).and_then(|()| push(node, edits, out));
    if written.is_err() {
        out.truncate(start);
    }
    written
}

/// What must hold wherever an edit lies.
fn check(node: Node<'_>, edits: &Edits) -> Result<(), JsonError> {
    if edits.0.get(&node.index) == Some(&Edit::Drop) {
        return Err(JsonError {
            kind: JsonErrorKind::RootDropped,
            offset: node.span().start,
        });
    }
    let mut tape = Tape::new();
    edits.0.values().try_for_each(|edit| match edit {
        Edit::Drop => Ok(()),
        Edit::Replace(text) => tape.reparse(text),
    })
}

/// Recursion is no danger, the parser has limited the depth.
fn push(node: Node<'_>, edits: &Edits, out: &mut String) -> Result<(), JsonError> {
    if let Some(Edit::Replace(text)) = edits.0.get(&node.index) {
        minify(Tape::parse(text)?.root(text), out);
        return Ok(());
    }
    if edits.0.range(node.index..node.after()).next().is_none() {
        minify(node, out);
        return Ok(());
    }
    let is_kept = |value: &Node<'_>| edits.0.get(&value.index) != Some(&Edit::Drop);
    let (open, close) = match node.kind() {
        Kind::Object => ('{', '}'),
        _ => ('[', ']'),
    };
    out.push(open);
    let start = out.len();
    for item in node.items().filter(is_kept) {
        separate(start, out);
        push(item, edits, out)?;
    }
    for (name, value) in node.members() {
        if edits.0.contains_key(&name.index) {
            return Err(JsonError {
                kind: JsonErrorKind::NameEdited,
                offset: name.span().start,
            });
        }
        if is_kept(&value) {
            separate(start, out);
            out.push_str(name.raw());
            out.push(':');
            push(value, edits, out)?;
        }
    }
    out.push(close);
    Ok(())
}

/// Writes the comma, unless this is the first.
fn separate(start: usize, out: &mut String) {
    if out.len() > start {
        out.push(',');
    }
}
