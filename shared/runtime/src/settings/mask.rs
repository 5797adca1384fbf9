//! Keeps secrets out of texts by their values, wherever they got to.

use std::fmt;
use std::ops::Range;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};

/// What is shorter cannot be told from ordinary text.
const SHORTEST: usize = 4;

/// Stands for a secret in a text for people.
const STARS: &str = "***";

/// The secrets of a configuration, to be kept out of what is printed.
#[derive(Clone, Default)]
pub struct Mask {
    secrets: Vec<SecretString>,
}

impl Mask {
    /// Keeps one more text out, and the same without its URL encoding.
    pub(super) fn add(&mut self, secret: &str) {
        let decoded = percent_decode_str(secret).decode_utf8_lossy();
        for text in [secret, secret.trim(), &decoded] {
            let is_known = self.secrets.iter().any(|s| s.expose_secret() == text);
            if text.len() >= SHORTEST && !is_known {
                self.secrets.push(text.into());
            }
        }
    }

    /// The text with stars for each secret in it, plain or URL-encoded.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut end = 0;
        for range in self.ranges(text) {
            out.push_str(text.get(end..range.start).unwrap_or_default());
            out.push_str(STARS);
            end = range.end;
        }
        out.push_str(text.get(end..).unwrap_or_default());
        out
    }

    /// Where secrets stand in a text, in order and apart from each other.
    pub(super) fn ranges(&self, text: &str) -> Vec<Range<usize>> {
        let as_it_is: Vec<Sign> = (0..)
            .zip(text.bytes())
            .map(|(at, byte)| Sign::new(byte, at..at + 1))
            .collect();
        let decoded = decoded(text.as_bytes(), false);
        let decoded_form = decoded_form(text);
        let mut found = Vec::new();
        for secret in &self.secrets {
            let secret = secret.expose_secret().as_bytes();
            for signs in [&as_it_is, &decoded, &decoded_form] {
                find(signs, secret, &mut found);
            }
            find_cut(&as_it_is, text, secret, &mut found);
        }
        found.sort_by_key(|range| range.start);
        found.dedup_by(|next, kept| {
            let is_apart = next.start > kept.end;
            if !is_apart {
                kept.end = kept.end.max(next.end);
            }
            !is_apart
        });
        found
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mask({} texts)", self.secrets.len())
    }
}

/// A byte of a text, and where it is written there.
struct Sign {
    byte: u8,
    at: Range<usize>,
}

impl Sign {
    fn new(byte: u8, at: Range<usize>) -> Self {
        Self { byte, at }
    }
}

/// A text without its URL encoding, which may cover any of its characters.
fn decoded(text: &[u8], plus_is_space: bool) -> Vec<Sign> {
    let hex = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut signs = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let digits = hex(at + 1).zip(hex(at + 2));
        let (byte, length) = match (byte, digits) {
            (b'%', Some((high, low))) => (u8::try_from(high * 16 + low).unwrap_or(byte), 3),
            (b'+', _) if plus_is_space => (b' ', 1),
            _ => (byte, 1),
        };
        signs.push(Sign::new(byte, at..at + length));
        at += length;
    }
    signs
}

/// The same as forms have it: `+` is a space.
fn decoded_form(text: &str) -> Vec<Sign> {
    decoded(text.as_bytes(), true)
}

fn find(signs: &[Sign], secret: &[u8], found: &mut Vec<Range<usize>>) {
    for part in signs.windows(secret.len()) {
        if part.iter().map(|sign| sign.byte).eq(secret.iter().copied())
            && let (Some(first), Some(last)) = (part.first(), part.last())
        {
            found.push(first.at.start..last.at.end);
        }
    }
}

/// A text that was cut short ends with a `…`, and what stands before it can be the beginning of a secret.
fn find_cut(signs: &[Sign], text: &str, secret: &[u8], found: &mut Vec<Range<usize>>) {
    for (end, _) in text.match_indices('…') {
        let before = signs.get(..end).unwrap_or_default();
        let lengths = (SHORTEST..secret.len().min(before.len() + 1)).rev();
        let ends_with = |length: &usize| {
            let tail = before.iter().rev().take(*length).rev();
            tail.map(|sign| sign.byte)
                .eq(secret.iter().take(*length).copied())
        };
        found.extend(
            lengths
                .into_iter()
                .find(ends_with)
                .map(|length| end - length..end),
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(missing_docs)]

    use super::*;

    fn mask(secrets: &[&str]) -> Mask {
        let mut mask = Mask::default();
        for secret in secrets {
            mask.add(secret);
        }
        mask
    }

    #[test]
    fn a_secret_is_found_in_any_spelling() {
        let mask = mask(&["p@ss w\u{f6}rd/1"]);
        for text in [
            "p@ss w\u{f6}rd/1",
            "p%40ss%20w%C3%B6rd%2F1",
            "p%40ss%20w%c3%b6rd%2f1",
            "p%40ss w\u{f6}rd/1",
            "p%40ss+w%C3%B6rd%2F1",
            "%70@ss w\u{f6}rd/1",
        ] {
            assert_eq!(mask.apply(text), "***", "{text}");
            let inside = format!("http://u:{text}@h/{text}?x={text}!");
            assert_eq!(mask.apply(&inside), "http://u:***@h/***?x=***!");
        }
        assert_eq!(mask.apply("100% of p@ss"), "100% of p@ss");
    }

    #[test]
    fn a_secret_that_is_encoded_itself_is_found_decoded() {
        let mask = mask(&["a%40b%20c"]);
        for text in ["a%40b%20c", "a@b c", "a%2540b%2520c"] {
            assert_eq!(mask.apply(text), "***", "{text}");
        }
    }

    #[test]
    fn secrets_that_touch_are_one_and_the_beginning_of_one_is_hidden() {
        let mask = mask(&["abcdef", "defghi", "0123456789"]);
        assert_eq!(mask.apply("-abcdefghi-abcdef-"), "-***-***-");
        assert_eq!(mask.apply("found `01234567…`"), "found `***…`");
        assert_eq!(mask.apply("found `012…`"), "found `012…`");
    }

    #[test]
    fn short_texts_are_no_secrets() {
        assert_eq!(mask(&["", "abc"]).apply("abc"), "abc");
    }
}
