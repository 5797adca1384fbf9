//! What a server says about a query that it refuses: the reason for a person, and how many rows it gives at most.
//!
//! Refusals echo parameters, and parameters are ids of patients. So a word is shown only if it is one of the words that such
//! messages are made of, and a number only if the message is about the number of rows that was asked for.

use std::fmt;

use serde_json::Value;

/// A refusal is a sentence. What is longer is a page of something else.
pub(crate) const MOST_BYTES: usize = 16 << 10;

/// Characters of a reason at most.
const MOST_SHOWN: usize = 200;

/// A limit is not believed to be lower just because a small number stands beside it.
const LEAST_NAMED: usize = 10;

/// What refusals are made of, in lower case.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "a", "above", "aggregate", "allowed", "an", "and", "any", "aql", "are", "at", "available", "be", "below", "between", "by",
    "cannot", "clause", "configuration", "configured", "contains", "could", "denied", "does", "entity", "error", "exceeded",
    "exceeding", "exceeds", "exception", "expected", "failed", "fetch", "for", "forbidden", "found", "from", "function", "given",
    "greater", "has", "have", "higher", "implemented", "in", "internal", "invalid", "is", "it", "large", "larger", "least", "less",
    "limit", "limited", "lower", "many", "max", "max-fetch", "maximal", "maximum", "memory", "min", "minimum", "missing", "more",
    "most", "must", "no", "not", "number", "of", "offset", "on", "one", "only", "operands", "or", "order", "out", "over", "page",
    "pagesize", "parameter", "parameters", "parse", "path", "per", "please", "policy", "present", "primitive", "processable",
    "queries", "query", "quota", "reduce", "refused", "rejected", "request", "requested", "requests", "result", "results", "resultset", "row",
    "rows", "select", "server", "set", "should", "size", "statement", "supported", "than", "the", "this", "time", "timeout", "to", "too",
    "unprocessable", "unsupported", "up", "value", "version", "where", "with", "without", "you", "your",
];

/// A number behind one of these is a limit, in a message that is about the number of rows.
const BEFORE_LIMITS: &[&str] = &[
    "above",
    "exceeding",
    "exceeds",
    "fetch",
    "is",
    "limit",
    "max",
    "max-fetch",
    "maximum",
    "most",
    "of",
    "over",
    "than",
    "to",
];

/// The refusal of one query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    reason: String,
    /// Whether there are no words at all.
    is_silent: bool,
    /// Rows that were asked for.
    fetch: usize,
    numbers: Vec<usize>,
}

impl Said {
    /// Reads the body of a refusal of a query for `fetch` rows.
    pub(crate) fn read(body: &str, fetch: usize) -> Self {
        let json: Option<Value> = serde_json::from_str(body).ok();
        let text = match &json {
            Some(json) => sentence(json).unwrap_or_default(),
            None => body,
        };
        let numbers = numbers(text);
        Self {
            reason: shown(text, numbers.contains(&fetch).then_some(fetch)),
            is_silent: text.trim().is_empty(),
            fetch,
            numbers,
        }
    }

    /// Whether the refusal repeats the number of rows that was asked for.
    pub(crate) fn is_about_rows(&self) -> bool {
        self.numbers.contains(&self.fetch)
    }

    /// Whether the refusal gives no reason.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// How many rows to ask for instead, if the refusal is about their number; `None` if there is no smaller number.
    pub(crate) fn fewer_rows(&self) -> Option<usize> {
        if self.fetch <= 1 {
            return None;
        }
        let named = self
            .numbers
            .iter()
            .copied()
            .filter(|number| (LEAST_NAMED..self.fetch).contains(number))
            .max();
        Some(named.unwrap_or(self.fetch / 2))
    }
}

/// The sentence for a person in a refusal, wherever servers put it.
fn sentence(json: &Value) -> Option<&str> {
    const MEMBERS: [&str; 6] = [
        "message",
        "detail",
        "error_description",
        "error",
        "errors",
        "title",
    ];
    match json {
        Value::String(text) => Some(text),
        Value::Array(items) => items.iter().find_map(sentence),
        Value::Object(members) => {
            let mut found = MEMBERS.iter().filter_map(|name| members.get(*name));
            found.find_map(sentence)
        }
        _ => None,
    }
}

/// `: ` and the reason, or nothing.
impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.reason)
    }
}

/// The text with `…` for every word that could be anybody's. `fetch`: the number of rows, if the text is about it.
fn shown(text: &str, fetch: Option<usize>) -> String {
    let mut out = String::new();
    let (mut known, mut before) = (0, String::new());
    for word in text.split_whitespace() {
        if out.chars().count() > MOST_SHOWN {
            break;
        }
        let bare = word
            .trim_matches(|c: char| ",.;:!()[]'\"`".contains(c))
            .to_ascii_lowercase();
        let is_shown = match (whole_number(&bare), fetch) {
            (Some(number), Some(fetch)) if number == fetch => !before.is_empty(),
            (Some(_), Some(_)) => BEFORE_LIMITS.contains(&before.as_str()),
            (Some(_), None) => false,
            (None, _) => WORDS.contains(&bare.as_str()),
        };
        before.clear();
        if is_shown {
            known += 1;
            push(&mut out, word);
            before = bare;
        } else if !out.ends_with('…') {
            push(&mut out, "…");
        }
    }
    match known {
        0 => String::new(),
        _ => out,
    }
}

/// The number that a word is, if it is nothing else.
fn whole_number(word: &str) -> Option<usize> {
    let is_number = word
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b",_'".contains(&byte));
    match numbers(word).as_slice() {
        [number] if is_number => Some(*number),
        _ => None,
    }
}

fn push(out: &mut String, word: &str) {
    if !out.is_empty() {
        out.push(' ');
    }
    out.push_str(word);
}

/// The whole numbers in a text; `1,000` is one.
fn numbers(text: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        bytes
            .iter()
            .skip(from)
            .take_while(|byte| byte.is_ascii_digit())
            .count()
    };
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let mut length = digits(at);
        if length == 0 {
            at += 1;
            continue;
        }
        let mut number: String = text.get(at..at + length).unwrap_or_default().to_owned();
        at += length;
        let is_group = |at: usize| {
            bytes.get(at).is_some_and(|byte| b",_'".contains(byte)) && digits(at + 1) == 3
        };
        while length <= 3 && is_group(at) {
            number.push_str(text.get(at + 1..at + 4).unwrap_or_default());
            at += 4;
        }
        length = number.len();
        if length <= 9 {
            found.extend(number.parse::<usize>().ok());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const EHRBASE: &str = r#"{"error":"Unprocessable Entity","message":"Fetch parameter 100000 exceeds maximum fetch 1000"}"#;

    #[test]
    fn a_limit_is_read_from_the_refusal_or_found_by_halving() {
        for (body, fetch, about_rows, expected) in [
            (EHRBASE, 100_000, true, Some(1000)),
            (EHRBASE, 500, false, Some(250)),
            (
                r#"{"message":"max 1,000, asked for 100'000"}"#,
                100_000,
                true,
                Some(1000),
            ),
            (
                r#"{"message":"1 to 500 rows, not 2000"}"#,
                2000,
                true,
                Some(500),
            ),
            (
                r#"{"message":"at most 5, not 2000"}"#,
                2000,
                true,
                Some(1000),
            ),
            (
                r#"{"error":{"code":"E1","message":"fetch 2000 exceeds 500"}}"#,
                2000,
                true,
                Some(500),
            ),
            (
                r#"{"errors":[{"detail":"fetch 2000 exceeds 500"}]}"#,
                2000,
                true,
                Some(500),
            ),
            (r#"{"errors":["2000 > 500"]}"#, 2000, true, Some(500)),
            ("the most is 500", 2000, false, Some(500)),
            ("too many rows", 2000, false, Some(1000)),
            ("no", 3, false, Some(1)),
            ("no", 1, false, None),
            ("", 500, false, Some(250)),
            ("{}", 500, false, Some(250)),
        ] {
            let said = Said::read(body, fetch);
            assert_eq!(said.is_about_rows(), about_rows, "{body} {fetch}");
            assert_eq!(said.fewer_rows(), expected, "{body} {fetch}");
        }
    }

    #[test]
    fn a_limit_is_always_found() {
        for limit in [1, 2, 7, 10, 99, 1000] {
            for body in ["no", EHRBASE, r#"{"message":"422: too many"}"#] {
                let mut fetch = 100_000;
                let mut asked = 0;
                while fetch > limit {
                    let fewer = Said::read(body, fetch).fewer_rows();
                    assert!(
                        fewer.is_some_and(|fewer| fewer < fetch && fewer > 0),
                        "{fetch}"
                    );
                    fetch = fewer.unwrap_or(1);
                    asked += 1;
                }
                assert!(asked <= 20, "{limit} {asked}");
            }
        }
    }

    #[test]
    fn the_reason_is_shown_and_nobodys_ids() {
        for (body, fetch, expected) in [
            (
                EHRBASE,
                100_000,
                ": Fetch parameter 100000 exceeds maximum fetch 1000",
            ),
            (EHRBASE, 7, ": Fetch parameter … exceeds maximum fetch …"),
            (
                r#"{"message":"Parameter 4711 is not a valid value, fetch 500"}"#,
                500,
                ": Parameter … is not a … value, fetch 500",
            ),
            (
                r#"{"message":"8849fb3b-0000-4000-8000-0000000000aa is not a valid uid for Jane Doe"}"#,
                500,
                ": … is not a … for …",
            ),
            (
                r#"{"error":"Unprocessable Entity"}"#,
                500,
                ": Unprocessable Entity",
            ),
            (r#"{"message":"Jane Doe 1234567"}"#, 1_234_567, ""),
            ("[]", 1, ""),
            ("", 1, ""),
        ] {
            assert_eq!(Said::read(body, fetch).to_string(), expected);
        }
        let long = "limit ".repeat(10_000);
        assert!(Said::read(&long, 1).to_string().len() < 300);
    }
}
