//! Texts of others on their way to a terminal or a log.
//!
//! A server, a proxy or a database can put anything into a name: an escape sequence that rewrites the screen, a line break that
//! forges a log line, an override that shows letters in another order. Such characters are written as what they are instead.
//!
//! | function | for |
//! |---|---|
//! | [`printable`] | a text inside a line |
//! | [`printable_lines`] | lines that were laid out here, such as a table |
//! | [`printable_json`] | a JSON text, which stays the same JSON |

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character does something to a screen or a line besides being seen: control characters (C0, DEL, C1), line and
/// paragraph separators, whatever changes the direction of text, and what is not seen at all.
#[must_use]
pub fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text with `\u{1b}` and the like for every character that cannot be printed, line breaks and tabs among them.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    replaced(text, is_unprintable, |character, out| {
        out.extend(character.escape_unicode());
    })
}

/// [`printable`], but for line breaks and tabs.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    let is_foreign = |character| is_unprintable(character) && !matches!(character, '\n' | '\t');
    replaced(text, is_foreign, |character, out| {
        out.extend(character.escape_unicode());
    })
}

/// A JSON text with `\u001b` and the like for every character that cannot be printed. White space between values stays: valid
/// JSON has all the others only within its strings.
#[must_use]
pub fn printable_json(text: &str) -> Cow<'_, str> {
    let is_foreign =
        |character| is_unprintable(character) && !matches!(character, '\n' | '\r' | '\t');
    replaced(text, is_foreign, |character, out| {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    })
}

fn replaced(
    text: &str,
    is_foreign: impl Fn(char) -> bool,
    mut write: impl FnMut(char, &mut String),
) -> Cow<'_, str> {
    let Some(first) = text.find(&is_foreign) else {
        return Cow::Borrowed(text);
    };
    let (before, rest) = text.split_at(first);
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(before);
    for character in rest.chars() {
        if is_foreign(character) {
            write(character, &mut out);
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything between U+0000 and U+10FFFF that a screen acts upon.
    const HOSTILE: &str = "\u{1b}]0;title\u{7}\u{1b}[2J\r\nforged\u{9b}31m\u{85}\u{7f}\u{0}\u{8}\t\u{2028}\u{2029}\u{202e}abc\u{2066}\u{200f}\u{feff}\u{e0041}";

    #[test]
    fn nothing_that_a_screen_acts_upon_is_left() {
        let shown = printable(HOSTILE);
        assert!(!shown.chars().any(is_unprintable), "{shown:?}");
        assert!(shown.starts_with(r"\u{1b}]0;title\u{7}\u{1b}[2J\u{d}\u{a}forged\u{9b}31m"));
        let lines = printable_lines(HOSTILE);
        assert!(
            lines
                .chars()
                .all(|c| !is_unprintable(c) || "\n\t".contains(c))
        );
        assert_eq!(lines.lines().count(), 2);
    }

    #[test]
    fn every_control_character_and_direction_is_unprintable_and_letters_are_not() {
        for code in (0..0x20)
            .chain(0x7f..0xa0)
            .chain(0x202a..0x202f)
            .chain(0x2066..0x206a)
        {
            assert!(char::from_u32(code).is_some_and(is_unprintable), "{code:x}");
        }
        // Persian and Indic scripts join letters with U+200C and U+200D.
        for text in [
            "vital signs.v1",
            "Größe µ 温度 دما",
            "\u{200c}\u{200d}",
            "👩\u{200d}⚕",
        ] {
            assert!(matches!(printable(text), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn json_stays_the_same_json() -> Result<(), serde_json::Error> {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, "a\\b\"c", 1.5] });
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = printable_json(&text);
            assert!(shown.chars().all(|c| !is_unprintable(c) || c == '\n'));
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown)?, value);
        }
        Ok(())
    }
}
