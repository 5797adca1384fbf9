//! Sinks that write one JSON object: with FLAT keys, or with SQL names for them.

use super::loss::Loss;
use super::plan::Plan;
use super::value::{Data, push_double};
use super::walk::{FlatError, Key, Sink, Walker};
use super::{Value, library};
use crate::json::Node;
use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};

/// Writes compositions as FLAT JSON, one compact object each, into a buffer it keeps.
#[derive(Default)]
pub struct JsonWriter {
    text: String,
    seen: Seen,
}

impl JsonWriter {
    /// A writer with an empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// The FLAT JSON of a composition. Overwritten by the next one. A version uid that the caller
    /// knows stands under `_uid` in place of the composition's own.
    pub fn write(
        &mut self,
        plan: &Plan,
        walker: &mut Walker,
        composition: Node<'_>,
        version_uid: Option<&str>,
    ) -> Result<&str, FlatError> {
        self.begin();
        plan.walk(walker, composition, version_uid, self)?;
        Ok(self.end())
    }

    /// The same, with a report of what the composition loses.
    pub fn write_with_loss(
        &mut self,
        plan: &Plan,
        walker: &mut Walker,
        composition: Node<'_>,
        version_uid: Option<&str>,
        loss: &mut Loss,
    ) -> Result<&str, FlatError> {
        self.begin();
        plan.walk_with_loss(walker, composition, version_uid, self, loss)?;
        Ok(self.end())
    }

    fn begin(&mut self) {
        self.text.clear();
        self.text.push('{');
        self.seen.clear();
    }

    fn end(&mut self) -> &str {
        self.text.push('}');
        &self.text
    }
}

impl Sink for JsonWriter {
    fn emit(&mut self, key: Key<'_>, value: Value<'_>) {
        let start = open_member(&mut self.text);
        push_flat_key(&mut self.text, key);
        let member = close_member(&mut self.text, start, value);
        self.seen.keep_last(&mut self.text, member);
    }
}

/// Writes compositions like [`JsonWriter`], with names that SQL likes: `/`, `:` and `|` become
/// `__`, `_` and `_`. Two keys never share a name: what the template can decide is in
/// [`Plan::name_map`], the rest gets a number in the order of the walk and is told by
/// [`FlattenedWriter::renamed`].
#[derive(Default)]
pub struct FlattenedWriter {
    text: String,
    names: Seen,
    /// The FLAT keys of the composition, to tell a doubled key from a clash of names.
    keys: String,
    keys_seen: Seen,
    renamed: Vec<Renamed>,
}

/// A key whose SQL name was taken when the walk came to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Renamed {
    /// The FLAT key, indexes included.
    pub flat: String,
    /// The name it got.
    pub sql: String,
}

impl FlattenedWriter {
    /// A writer with an empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// The JSON object of a composition with SQL names. Overwritten by the next one. A version uid
    /// that the caller knows stands under `_uid` in place of the composition's own.
    pub fn write(
        &mut self,
        plan: &Plan,
        walker: &mut Walker,
        composition: Node<'_>,
        version_uid: Option<&str>,
    ) -> Result<&str, FlatError> {
        self.text.clear();
        self.text.push('{');
        self.names.clear();
        self.keys.clear();
        self.keys_seen.clear();
        self.renamed.clear();
        let mut flattening = Flattening { writer: self, plan };
        plan.walk(walker, composition, version_uid, &mut flattening)?;
        self.text.push('}');
        Ok(&self.text)
    }

    /// The keys of the last composition whose names clashed in a way that only it could show.
    pub fn renamed(&self) -> &[Renamed] {
        &self.renamed
    }
}

struct Flattening<'f> {
    writer: &'f mut FlattenedWriter,
    plan: &'f Plan,
}

impl Sink for Flattening<'_> {
    fn emit(&mut self, key: Key<'_>, value: Value<'_>) {
        let FlattenedWriter {
            text,
            names,
            keys,
            keys_seen,
            renamed,
        } = &mut *self.writer;
        let key_start = keys.len();
        push_flat_key(keys, key);
        let start = open_member(text);
        match keys_seen.find(keys, key_start, keys.len()) {
            Ok(place) => {
                keys.truncate(key_start);
                let member = close_member(text, start, value);
                return names.replace(place, text, member);
            }
            Err(free) => {
                let key_end = keys.len();
                keys_seen.insert(
                    keys,
                    Member {
                        key: key_start,
                        key_end,
                        end: key_end,
                    },
                    free,
                );
            }
        }
        push_sql_name(text, key.path, key.suffix);
        if key.own
            && let Some(number) = self.plan.sql_number(key)
        {
            push_number_behind(text, number);
        }
        let plain = text.len();
        let mut number = 1;
        let free = loop {
            match names.find(text, start, text.len()) {
                Err(free) => break free,
                Ok(_) => {
                    number += 1;
                    text.truncate(plain);
                    push_number_behind(text, number);
                }
            }
        };
        if number > 1 {
            let sql = text.get(start..).unwrap_or_default().to_owned();
            let flat = keys.get(key_start..).unwrap_or_default().to_owned();
            renamed.push(Renamed { flat, sql });
        }
        let member = close_member(text, start, value);
        names.insert(text, member, free);
    }
}

fn push_flat_key(out: &mut String, key: Key<'_>) {
    out.push_str(key.path);
    if !key.suffix.is_empty() {
        out.push('|');
        out.push_str(key.suffix);
    }
}

/// Spells a FLAT key for SQL.
pub(super) fn push_sql_name(out: &mut String, path: &str, suffix: &str) {
    push_sql_spelling(out, path);
    if !suffix.is_empty() {
        out.push('_');
        push_sql_spelling(out, suffix);
    }
}

fn push_sql_spelling(out: &mut String, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(['/', ':', '|']) {
        let (plain, behind) = rest.split_at(at);
        out.push_str(plain);
        out.push_str(if behind.starts_with('/') { "__" } else { "_" });
        rest = behind.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
}

pub(super) fn push_number_behind(out: &mut String, number: u32) {
    // Writing to a String cannot fail.
    let _ = write!(out, "_{number}");
}

/// Writes up to the first byte of the key and answers where that is.
fn open_member(text: &mut String) -> usize {
    text.push_str(if text.len() > 1 { ",\"" } else { "\"" });
    text.len()
}

/// Writes what comes behind the key. Ids with characters that need escapes are refused when a
/// plan is compiled, so keys have none.
fn close_member(text: &mut String, key: usize, value: Value<'_>) -> Member {
    let key_end = text.len();
    text.push_str("\":");
    match value.data {
        Data::Raw(raw) => {
            text.push('"');
            text.push_str(raw);
            text.push('"');
        }
        Data::Text(plain) => push_quoted(text, plain),
        Data::Number(number) => text.push_str(number),
        Data::Integer(number) => {
            let _ = write!(text, "{number}");
        }
        Data::Double(number) => push_double(number, text),
        Data::Bool(true) => text.push_str("true"),
        Data::Bool(false) => text.push_str("false"),
        Data::Json(object) => library::push_object(object, text),
    }
    Member {
        key,
        key_end,
        end: text.len(),
    }
}

fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{0}'..'\u{20}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            char => out.push(char),
        }
    }
    out.push('"');
}

/// Where a member stands in the text: its key without quotes, and the end of its value.
#[derive(Clone, Copy)]
struct Member {
    key: usize,
    key_end: usize,
    end: usize,
}

impl Member {
    /// The first byte of the value, behind `":`.
    fn value(self) -> usize {
        self.key_end + 2
    }
}

/// The members written so far, found by their keys: an open-addressed table over the text.
#[derive(Default)]
struct Seen {
    members: Vec<Member>,
    /// Indexes of members plus one; 0 is free. A power of two long, at most half full.
    slots: Vec<u32>,
    hasher: Seed,
}

/// Makes every writer hash in its own way, so that no composition can be made to be slow.
struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0_u64) | 1)
    }
}

impl Seen {
    fn clear(&mut self) {
        self.members.clear();
        self.slots.fill(0);
    }

    /// Takes in the member at the end of the text. If its key was there before, that one gets
    /// the new value and the member at the end goes: first position, last value.
    fn keep_last(&mut self, text: &mut String, member: Member) {
        match self.find(text, member.key, member.key_end) {
            Ok(place) => self.replace(place, text, member),
            Err(free) => self.insert(text, member, free),
        }
    }

    /// Moves the value of the member at the end of the text to an earlier one.
    fn replace(&mut self, place: usize, text: &mut String, last: Member) {
        let Some(earlier) = self.members.get(place).copied() else {
            return;
        };
        let old = earlier.value()..earlier.end;
        let same = text.get(old.clone()) == text.get(last.value()..);
        let value = if same {
            None
        } else {
            text.get(last.value()..).map(str::to_owned)
        };
        // Two bytes before the key: the comma and the quote.
        text.truncate(last.key - 2);
        let Some(value) = value else { return };
        let shift = |at: usize| at + value.len() - old.len();
        text.replace_range(old.clone(), &value);
        for member in self.members.iter_mut().skip(place) {
            if member.key > old.start {
                member.key = shift(member.key);
                member.key_end = shift(member.key_end);
            }
            member.end = shift(member.end);
        }
    }

    /// The member with a key, or the slot where it would go.
    fn find(&self, text: &str, key: usize, key_end: usize) -> Result<usize, usize> {
        let key = text.get(key..key_end).unwrap_or_default();
        let mut slot = self.slot(key);
        while let Some(taken) = self.slots.get(slot)
            && let Some(place) = (*taken as usize).checked_sub(1)
            && let Some(member) = self.members.get(place)
        {
            if text.get(member.key..member.key_end) == Some(key) {
                return Ok(place);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        Err(slot)
    }

    /// Takes in a member at the slot that [`Seen::find`] gave.
    fn insert(&mut self, text: &str, member: Member, free: usize) {
        self.members.push(member);
        if self.members.len() * 2 <= self.slots.len() {
            return self.occupy(free, self.members.len());
        }
        let length = (self.slots.len() * 2).max(512);
        self.slots.clear();
        self.slots.resize(length, 0);
        for place in 0..self.members.len() {
            if let Some(member) = self.members.get(place)
                && let Err(free) = self.find(text, member.key, member.key_end)
            {
                self.occupy(free, place + 1);
            }
        }
    }

    fn occupy(&mut self, slot: usize, place_plus_one: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = u32::try_from(place_plus_one).unwrap_or(u32::MAX);
        }
    }

    /// Where the search for a key starts.
    fn slot(&self, key: &str) -> usize {
        let mut hash = self.hasher.0;
        let mut take = |word: u64| {
            hash = (hash ^ word)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .rotate_left(29)
        };
        let (words, rest) = key.as_bytes().as_chunks::<8>();
        for word in words {
            take(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        for (byte, slot) in rest.iter().zip(&mut last) {
            *slot = *byte;
        }
        take(u64::from_le_bytes(last) ^ key.len() as u64);
        // A multiplication mixes upwards, so the lower half alone would be poor.
        ((hash ^ (hash >> 32)) as usize) & self.slots.len().wrapping_sub(1)
    }
}
