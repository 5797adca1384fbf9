//! Objects that name a member twice. RFC 8259 leaves open what such an object says, and stores
//! differ in what they keep of it.

use super::canonical::compare_names;
use super::text::path_to;
use super::{ESCAPED, Kind, Node};

/// Objects with more members than this are sorted instead of compared pair by pair.
const FEW: usize = 16;

/// Finds the first object, in the order of the text, that names a member twice, and answers where
/// it is: member names and indexes, such as `content[0].name`, and `the value` for the outermost.
/// Names are compared as they read, whatever escapes they are written with.
///
/// Runs on every composition: looks at names once, and asks for memory only for large objects.
pub fn doubled_member(node: Node<'_>) -> Option<String> {
    let entries = node.tape.entries_of(node.index);
    entries
        .iter()
        .zip(node.index..)
        .filter(|(entry, _)| entry.is_container())
        .map(|(_, index)| Node { index, ..node })
        .find(|value| value.kind() == Kind::Object && has_doubled_member(*value))
        .map(|object| path_to(node, object.index))
}

fn has_doubled_member(object: Node<'_>) -> bool {
    let mut few = [0; FEW];
    let mut count = 0;
    for (name, _) in object.members() {
        let Some(slot) = few.get_mut(count) else {
            return has_doubled_member_among_many(object);
        };
        *slot = tag(name);
        count += 1;
    }
    let tags = few.get(..count).unwrap_or_default();
    let is_repeated = |(place, tag): (usize, &u64)| {
        let before = tags.get(..place).unwrap_or_default();
        before.contains(tag) || *tag == UNKNOWN
    };
    // Equal tags are no proof: the names themselves decide.
    tags.iter().enumerate().any(is_repeated) && has_doubled_member_among_many(object)
}

fn has_doubled_member_among_many(object: Node<'_>) -> bool {
    let mut names: Vec<Node<'_>> = object.members().map(|(name, _)| name).collect();
    names.sort_unstable_by(|one, other| compare_names(*one, *other));
    names
        .windows(2)
        .any(|pair| matches!(pair, [one, other] if compare_names(*one, *other).is_eq()))
}

/// The tag of a name with escapes: it can be equal to any other.
const UNKNOWN: u64 = u64::MAX;

/// A number that equal names share and that most others do not: the first bytes, the last and the length.
fn tag(name: Node<'_>) -> u64 {
    if name.entry().link == ESCAPED {
        return UNKNOWN;
    }
    let bytes = name.raw_str().unwrap_or_default().as_bytes();
    let word = |from: usize| -> u64 {
        match bytes.get(from..).and_then(|rest| rest.first_chunk::<8>()) {
            Some(chunk) => u64::from_le_bytes(*chunk),
            None => bytes
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte)),
        }
    };
    let ends = word(0) ^ word(bytes.len().saturating_sub(8)).rotate_left(23);
    // Never `UNKNOWN`, whose bits are all set.
    (ends ^ (bytes.len() as u64).rotate_left(56)) >> 1
}
