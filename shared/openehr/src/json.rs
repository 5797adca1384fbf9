//! JSON as it was written: exact, borrowed, flat.
//!
//! | module | what it does |
//! |---|---|
//! | this one | [`Tape`]: where each value of a text lies; [`Node`]: one value, read through the tape |
//! | `parse` | the strict RFC 8259 parser that fills a tape |
//! | `text` | string escapes; which texts PostgreSQL refuses |
//! | `minify` | the text without insignificant white space |
//! | `edit` | the text with values dropped or replaced |
//! | `canonical` | the form in which equal values are equal, and its SHA-256 |
//! | `doubled` | objects that name a member twice |
//!
//! A composition is parsed once and never turned into a tree of owned values: a tape is one
//! vector of offsets, twelve bytes for each value, that can be kept beside the text or used
//! again for the next one. Numbers stay the text the server sent, so nothing is rounded on
//! the way; whoever needs a double asks for it.
//!
//! ```
//! use atlas_openehr::json::{Tape, checksum, minify};
//!
//! let text = r#"{ "name": { "value": "Blood pressure" }, "magnitude": 120.0 }"#;
//! let tape = Tape::parse(text)?;
//! let root = tape.root(text);
//! assert_eq!(root.at(&["name", "value"]).and_then(|name| name.as_str()).as_deref(), Some("Blood pressure"));
//! assert_eq!(root.get("magnitude").and_then(|magnitude| magnitude.number()), Some("120.0"));
//!
//! let mut short = String::new();
//! minify(root, &mut short);
//! assert_eq!(checksum(root), checksum(Tape::parse(&short)?.root(&short)));
//! # Ok::<(), atlas_openehr::json::JsonError>(())
//! ```

mod canonical;
mod doubled;
mod edit;
mod minify;
mod parse;
mod text;

pub use canonical::{Checksum, canonicalize, checksum};
pub use doubled::doubled_member;
pub use edit::{Edits, edited};
pub use minify::minify;
pub use parse::{JsonError, JsonErrorKind, MAX_DEPTH};
pub use text::{UnstorableKind, UnstorableText, push_escaped, unstorable_text};

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// Where each value of a JSON text lies.
///
/// Holds offsets only, so it can be kept beside the text it describes. Every method that takes
/// the text expects the one that was parsed; a text of another length is a bug and panics.
#[derive(Clone, Debug, Default)]
pub struct Tape {
    entries: Vec<Entry>,
    text_len: usize,
    /// Whether white space stands between values: most servers write none.
    has_white_space: bool,
}

/// One value or member name. Values come in the order of the text, a name right before its value.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Offset of the first byte of the value; this byte also tells its kind.
    start: u32,
    /// Offset behind the last byte of the value.
    end: u32,
    /// Array or object: the entry behind its last descendant. Anything else: [`PLAIN`] or [`ESCAPED`].
    link: u32,
}

/// A value without children and without escapes. No container links to entry 0.
const PLAIN: u32 = 0;
/// A string with at least one escape. A text of less than 4 GiB has fewer entries than this.
const ESCAPED: u32 = u32::MAX;

impl Entry {
    fn is_container(self) -> bool {
        self.link != PLAIN && self.link != ESCAPED
    }
}

impl Tape {
    /// An empty tape. It describes nothing until [`Tape::reparse`] filled it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses a text, the whole of which must be one JSON value.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let mut tape = Self::new();
        tape.reparse(text)?;
        Ok(tape)
    }

    /// Describes another text, in the memory this tape already has. After an error the tape is empty.
    pub fn reparse(&mut self, text: &str) -> Result<(), JsonError> {
        self.entries.clear();
        self.text_len = text.len();
        let parsed = parse::parse(text, &mut self.entries);
        if parsed.is_err() {
            // What a text like this needed, the next one need not.
            self.entries = Vec::new();
        }
        self.has_white_space = parsed?;
        Ok(())
    }

    /// The value that the whole text is. An empty tape answers a `null` that lies nowhere.
    pub fn root<'a>(&'a self, text: &'a str) -> Node<'a> {
        self.node(text, NodeId(0))
    }

    /// The value with an id that a node of this tape gave.
    pub fn node<'a>(&'a self, text: &'a str, id: NodeId) -> Node<'a> {
        assert_eq!(
            text.len(),
            self.text_len,
            "a tape is read with the text it was parsed from"
        );
        Node {
            text,
            tape: self,
            index: id.0,
        }
    }

    fn entry(&self, index: u32) -> Entry {
        let nowhere = Entry {
            start: u32::MAX,
            end: u32::MAX,
            link: PLAIN,
        };
        self.entries.get(index as usize).copied().unwrap_or(nowhere)
    }

    /// The index behind a value and everything in it.
    fn after(&self, index: u32) -> u32 {
        let entry = self.entry(index);
        if entry.is_container() {
            entry.link
        } else {
            index + 1
        }
    }

    /// The entries of a value and of everything in it.
    fn entries_of(&self, index: u32) -> &[Entry] {
        self.entries
            .get(index as usize..self.after(index) as usize)
            .unwrap_or_default()
    }
}

/// Names a value of a [`Tape`], for as long as the tape is not parsed anew.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeId(u32);

/// What a JSON value is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number, kept as its text
    Number,
    /// A string
    String,
    /// A list of values
    Array,
    /// A list of members
    Object,
}

/// One value of a text: two references and an index, made to be copied.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    text: &'a str,
    tape: &'a Tape,
    index: u32,
}

/// Shows kind and place only: the text may be a patient's.
impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("kind", &self.kind())
            .field("span", &self.span())
            .finish_non_exhaustive()
    }
}

impl<'a> Node<'a> {
    /// The id under which [`Tape::node`] finds this value again.
    pub fn id(&self) -> NodeId {
        NodeId(self.index)
    }

    /// What the value is.
    pub fn kind(&self) -> Kind {
        let first = self.text.as_bytes().get(self.entry().start as usize);
        match first {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'-' | b'0'..=b'9') => Kind::Number,
            _ => Kind::Null,
        }
    }

    /// The value as it stands in the text, white space inside included.
    pub fn raw(&self) -> &'a str {
        let entry = self.entry();
        self.slice(entry.start, entry.end)
    }

    /// Where the value stands in the text, in bytes.
    pub fn span(&self) -> Range<usize> {
        let entry = self.entry();
        entry.start as usize..entry.end as usize
    }

    /// The text of a string, decoded if it has escapes. Half a surrogate pair, which no Rust
    /// string can hold, reads as U+FFFD; [`unstorable_text`] finds those.
    pub fn as_str(&self) -> Option<Cow<'a, str>> {
        let raw = self.raw_str()?;
        Some(if self.has_escapes() {
            Cow::Owned(text::decode(raw))
        } else {
            Cow::Borrowed(raw)
        })
    }

    /// What stands between the quotes of a string, escapes untouched.
    pub fn raw_str(&self) -> Option<&'a str> {
        if self.kind() != Kind::String {
            return None;
        }
        let entry = self.entry();
        Some(self.slice(entry.start + 1, entry.end - 1))
    }

    /// Whether this is a string with at least one escape, so that its raw text is not its text.
    pub fn has_escapes(&self) -> bool {
        self.entry().link == ESCAPED
    }

    /// The value of `true` or `false`.
    pub fn as_bool(&self) -> Option<bool> {
        (self.kind() == Kind::Bool).then(|| self.raw() == "true")
    }

    /// The number as it was written.
    pub fn number(&self) -> Option<&'a str> {
        (self.kind() == Kind::Number).then(|| self.raw())
    }

    /// The number, if it was written as an integer (no point, no exponent) that fits.
    pub fn as_i64(&self) -> Option<i64> {
        self.number()?.parse().ok()
    }

    /// The double nearest to the number; infinite if the number is beyond all doubles.
    pub fn as_f64(&self) -> Option<f64> {
        self.number()?.parse().ok()
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        self.kind() == Kind::Null
    }

    /// How many items an array or members an object has, doubled members counted twice; 0 for
    /// anything else. Counts by walking.
    pub fn len(&self) -> usize {
        match self.kind() {
            Kind::Object => self.members().count(),
            _ => self.items().count(),
        }
    }

    /// Whether there is no item or member.
    pub fn is_empty(&self) -> bool {
        self.first_child() == self.after()
    }

    /// The items of an array; nothing for any other kind.
    pub fn items(&self) -> Items<'a> {
        Items(self.children(Kind::Array))
    }

    /// The members of an object in the order of the text, each as its name and its value;
    /// nothing for any other kind.
    pub fn members(&self) -> Members<'a> {
        Members(self.children(Kind::Object))
    }

    /// The value of a member. Of two with the same name the last one counts, as in JSONB.
    pub fn get(&self, name: &str) -> Option<Node<'a>> {
        let mut found = None;
        for (key, value) in self.members() {
            if key.is_str(name) {
                found = Some(value);
            }
        }
        found
    }

    /// The value that a chain of member names leads to.
    pub fn at(&self, path: &[&str]) -> Option<Node<'a>> {
        path.iter().try_fold(*self, |node, name| node.get(name))
    }

    /// Whether this is a string with exactly this text. Decodes nothing unless it has to.
    pub fn is_str(&self, text: &str) -> bool {
        if self.has_escapes() {
            return self.as_str().is_some_and(|own| own == text);
        }
        // The length alone rules out most names that `get` asks about.
        self.span().len() == text.len() + 2 && self.raw_str() == Some(text)
    }

    fn entry(&self) -> Entry {
        self.tape.entry(self.index)
    }

    fn after(&self) -> u32 {
        self.tape.after(self.index)
    }

    fn first_child(&self) -> u32 {
        self.index + 1
    }

    fn children(&self, kind: Kind) -> Siblings<'a> {
        let end = if self.kind() == kind {
            self.after()
        } else {
            self.first_child()
        };
        Siblings {
            text: self.text,
            tape: self.tape,
            next: self.first_child(),
            end,
        }
    }

    /// A piece of the text. Slicing by `[]` would print the text when it panics.
    fn slice(&self, start: u32, end: u32) -> &'a str {
        self.text
            .get(start as usize..end as usize)
            .unwrap_or_default()
    }
}

#[derive(Clone)]
struct Siblings<'a> {
    text: &'a str,
    tape: &'a Tape,
    next: u32,
    end: u32,
}

impl<'a> Siblings<'a> {
    fn next(&mut self) -> Option<Node<'a>> {
        if self.next >= self.end {
            return None;
        }
        let node = Node {
            text: self.text,
            tape: self.tape,
            index: self.next,
        };
        self.next = node.after();
        Some(node)
    }
}

/// The items of an array.
#[derive(Clone)]
pub struct Items<'a>(Siblings<'a>);

impl<'a> Iterator for Items<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        self.0.next()
    }
}

/// The members of an object: name, value.
#[derive(Clone)]
pub struct Members<'a>(Siblings<'a>);

impl<'a> Iterator for Members<'a> {
    type Item = (Node<'a>, Node<'a>);

    fn next(&mut self) -> Option<(Node<'a>, Node<'a>)> {
        Some((self.0.next()?, self.0.next()?))
    }
}

#[cfg(test)]
mod tests;
