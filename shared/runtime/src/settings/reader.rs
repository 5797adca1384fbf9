//! Reads keys one by one and keeps what is wrong with them.
//!
//! A key is known because something reads it: what nobody asked for is reported at the end, with the
//! nearest known key. A flag wins over a variable, a variable over the file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use atlas_openehr::time::Instant;
use secrecy::{ExposeSecret, SecretString};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mask::Mask;
use super::problem::{Invalid, Place, Problem, nearest};
use super::reference::Reference;
use crate::Environment;

/// A value given on the command line, for a key of the file.
#[derive(Debug, Clone)]
pub struct Override {
    /// The key it stands for, such as `export.mode`.
    pub key: &'static str,
    /// The flag as the user types it, such as `--mode`.
    pub flag: &'static str,
    /// Lists are JSON or separated by commas.
    pub value: String,
}

pub(super) struct Reader<'i> {
    path: &'i Path,
    text: &'i str,
    environment: &'i Environment,
    overrides: &'i [Override],
    /// What the file says and nobody has read yet, by dotted path.
    unread: BTreeMap<String, Entry<'i>>,
    sections: BTreeMap<String, Range<usize>>,
    known: BTreeSet<&'static str>,
    /// Where the names of keys and sections stand.
    names: Vec<Range<usize>>,
    /// Where values of all keys stand.
    values: Vec<Range<usize>>,
    /// Values that an excerpt may show: those of known keys that are no secrets.
    shown: Vec<Range<usize>>,
    /// Variables that stood in for a `${NAME}` or `env:NAME`.
    used_variables: BTreeSet<String>,
    /// Keys whose value is not to be shown.
    hidden: BTreeSet<&'static str>,
    /// Secrets that were read.
    mask: Mask,
    /// What values refer to and nobody gave: variables, and secrets in vaults.
    missing: Vec<Missing>,
    problems: Vec<Problem>,
    notices: Vec<String>,
}

/// A problem only if the key that asks is in use.
struct Missing {
    problem: Problem,
    /// What was not given, if a vault could.
    reference: Option<Reference>,
}

struct Entry<'i> {
    key: Range<usize>,
    value: Spanned<DeValue<'i>>,
}

/// A value as somebody gave it.
pub(super) struct Given<'i> {
    key: &'static str,
    value: Value<'i>,
    pub(super) place: Place,
}

enum Value<'i> {
    Toml(DeValue<'i>),
    /// From a variable or a flag: text, whatever the key holds.
    Plain(String),
}

/// A string, and who gave it.
pub(super) struct Text {
    pub(super) value: String,
    pub(super) place: Place,
}

/// A secret, and who gave it.
pub(super) struct Secret {
    pub(super) value: SecretString,
    /// What the file says, with a NUL for each `${NAME}`; `None` if it only refers to the secret, or says nothing.
    pub(super) written: Option<String>,
    pub(super) place: Place,
}

/// Stands for a `${NAME}` in what was written.
pub(super) const VARIABLE: char = '\0';

/// Whether a part of what was written holds more than variables.
pub(super) fn is_written(part: &str) -> bool {
    part.chars().any(|c| c != VARIABLE)
}

/// What a person would write into the file, with a NUL for each `${NAME}`.
pub(super) fn written(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.find("${").map(|at| rest.split_at(at)) {
        let escaped = before.strip_suffix('$');
        written.push_str(escaped.unwrap_or(before));
        rest = match name_of_variable(from).filter(|_| escaped.is_none()) {
            Some((_, after)) => {
                written.push(VARIABLE);
                after
            }
            None => {
                written.push_str("${");
                from.get(2..).unwrap_or_default()
            }
        };
    }
    written.push_str(rest);
    written
}

/// The name in the `${NAME}` at the beginning of a text, and what follows it.
fn name_of_variable(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix("${")?.split_once('}')?;
    is_name(name).then_some((name, after))
}

/// A text as it was written, and what became of it.
struct Substituted {
    value: String,
    /// With a NUL for each `${NAME}`.
    written: String,
}

impl Substituted {
    fn push(&mut self, text: &str) {
        self.value.push_str(text);
        self.written.push_str(text);
    }
}

impl<'i> Reader<'i> {
    /// Parses the text; fails only when it is not TOML.
    pub(super) fn new(
        path: &'i Path,
        text: &'i str,
        environment: &'i Environment,
        overrides: &'i [Override],
    ) -> Result<Self, Invalid> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let problem = |error: toml::de::Error| Problem {
                key: String::new(),
                rule: format!("is not TOML: {}", error.message()),
                fix: None,
                place: error
                    .span()
                    .map_or(Place::Nowhere, |span| place(text, span)),
            };
            let problems = errors.into_iter().map(problem).collect();
            return Err(Invalid {
                path: path.to_owned(),
                excerpt: None,
                problems,
            });
        }
        let mut reader = Self {
            path,
            text,
            environment,
            overrides,
            unread: BTreeMap::new(),
            sections: BTreeMap::new(),
            known: BTreeSet::new(),
            names: Vec::new(),
            values: Vec::new(),
            shown: Vec::new(),
            used_variables: BTreeSet::new(),
            hidden: BTreeSet::new(),
            mask: Mask::default(),
            missing: Vec::new(),
            problems: Vec::new(),
            notices: Vec::new(),
        };
        reader.flatten("", table.into_inner());
        Ok(reader)
    }

    fn flatten(&mut self, prefix: &str, table: DeTable<'i>) {
        for (key, value) in table {
            let dot = if prefix.is_empty() { "" } else { "." };
            let path = format!("{prefix}{dot}{}", key.get_ref());
            let span = value.span();
            self.names.push(key.span());
            match value.into_inner() {
                DeValue::Table(table) => {
                    self.sections.insert(path.clone(), key.span());
                    self.flatten(&path, table);
                }
                value => {
                    self.values.push(span.clone());
                    let value = Spanned::new(span, value);
                    self.unread.insert(
                        path,
                        Entry {
                            key: key.span(),
                            value,
                        },
                    );
                }
            }
        }
    }

    /// What somebody said about a key; an empty variable or flag takes the key back.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Given<'i>> {
        self.take_any(&[key])
    }

    /// The same for a key with older names: two names that say different things are a problem.
    fn take_any(&mut self, keys: &[&'static str]) -> Option<Given<'i>> {
        self.known.extend(keys);
        let in_file = self.take_from_file(keys);
        let outside = self.outside(keys);
        match outside {
            Some(Given {
                value: Value::Plain(text),
                ..
            }) if text.is_empty() => None,
            Some(given) => Some(given),
            None => in_file,
        }
    }

    fn outside(&self, keys: &[&'static str]) -> Option<Given<'i>> {
        let flag = keys.iter().find_map(|&key| {
            let given = self.overrides.iter().find(|o| o.key == key)?;
            Some((key, given.value.clone(), Place::Flag(given.flag.to_owned())))
        });
        let variable = || {
            let mut names = keys
                .iter()
                .flat_map(|&key| variables(key).map(move |v| (key, v)));
            names.find_map(|(key, name)| {
                let value = self.environment.get(&name)?.to_owned();
                Some((key, value, Place::Variable(name)))
            })
        };
        let (key, value, place) = flag.or_else(variable)?;
        Some(Given {
            key,
            value: Value::Plain(value),
            place,
        })
    }

    fn take_from_file(&mut self, keys: &[&'static str]) -> Option<Given<'i>> {
        let mut found: Option<(Given<'i>, Range<usize>)> = None;
        for &key in keys {
            let Some(entry) = self.unread.remove(key) else {
                continue;
            };
            let span = entry.value.span();
            if !self.hidden.contains(key) {
                match entry.value.get_ref() {
                    // There can be comments between the items.
                    DeValue::Array(items) => {
                        let is_flat = |item: &&Spanned<DeValue<'_>>| {
                            !matches!(item.get_ref(), DeValue::Array(_) | DeValue::Table(_))
                        };
                        let items = items.iter().filter(is_flat);
                        self.shown.extend(items.map(Spanned::span));
                        let last = span.end.saturating_sub(1);
                        self.shown
                            .extend([span.start..span.start + 1, last..span.end]);
                    }
                    _ => self.shown.push(span.clone()),
                }
            }
            let place = place(self.text, span.clone());
            match &found {
                None => {
                    let value = Value::Toml(entry.value.into_inner());
                    found = Some((Given { key, value, place }, span));
                }
                Some((first, other)) if self.text.get(other.clone()) != self.text.get(span) => {
                    let first = first.key;
                    self.problem(
                        key,
                        place,
                        format!("says something else than `{first}`, which means the same"),
                        Some("keep one of the two".into()),
                    );
                }
                Some(_) => {}
            }
        }
        found.map(|(given, _)| given)
    }

    /// Keeps the value of a key out of every excerpt, from before it is read.
    pub(super) fn hide(&mut self, key: &'static str) {
        self.hidden.insert(key);
    }

    /// Keeps a text out of all that is printed.
    pub(super) fn mask(&mut self, secret: &str) {
        self.mask.add(secret);
    }

    /// Records a problem with a key.
    pub(super) fn problem(
        &mut self,
        key: &str,
        place: Place,
        rule: impl Into<String>,
        fix: Option<String>,
    ) {
        let problem = Problem {
            key: key.to_owned(),
            rule: rule.into(),
            fix,
            place,
        };
        self.problems.push(problem);
    }

    /// Something to tell the user once; not a problem.
    pub(super) fn notice(&mut self, notice: impl Into<String>) {
        self.notices.push(notice.into());
    }

    /// Records that a key nobody set has to be set.
    pub(super) fn required(&mut self, key: &str, rule: &str) {
        let variable = variable(key);
        self.problem(
            key,
            Place::Nowhere,
            rule,
            Some(format!("set it in the file or in {variable}")),
        );
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<Text> {
        let given = self.take(key)?;
        self.string(given).map(|(text, _)| text)
    }

    /// An address; one into which somebody pasted a secret is never shown.
    pub(super) fn address(&mut self, key: &'static str) -> Option<Text> {
        let is_plain = self.unread.get(key).is_none_or(|entry| {
            let text = entry.value.get_ref().as_str();
            text.is_some_and(is_plain_address)
        });
        if !is_plain {
            self.hide(key);
        }
        self.text(key)
    }

    /// Whether anybody says anything about a key that is not read yet.
    pub(super) fn is_set(&self, key: &'static str) -> bool {
        self.unread.contains_key(key) || self.outside(&[key]).is_some()
    }

    /// Whether a problem with the key is recorded already.
    pub(super) fn has_problem(&self, key: &str) -> bool {
        let missing = self.missing.iter().map(|missing| &missing.problem);
        self.problems
            .iter()
            .chain(missing)
            .any(|problem| problem.key == key)
    }

    /// The text, and what the file says.
    fn string(&mut self, given: Given<'i>) -> Option<(Text, Option<String>)> {
        let Given { key, value, place } = given;
        let (value, written) = match value {
            Value::Plain(text) => (text, None),
            Value::Toml(DeValue::String(text)) => {
                let Substituted { value, written } = self.substitute(key, &place, &text)?;
                (value, Some(written))
            }
            Value::Toml(other) => {
                self.problem(
                    key,
                    place,
                    format!("must be a string, found {}", kind(&other)),
                    None,
                );
                return None;
            }
        };
        Some((Text { value, place }, written))
    }

    /// Replaces each `${NAME}` once; what a variable holds is never looked into. `$${` stands for `${`.
    fn substitute(&mut self, key: &str, place: &Place, text: &str) -> Option<Substituted> {
        let mut out = Substituted {
            value: String::with_capacity(text.len()),
            written: String::with_capacity(text.len()),
        };
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            if let Some(escaped) = before.strip_suffix('$') {
                out.push(escaped);
                out.push("${");
                rest = from.get(2..).unwrap_or_default();
                continue;
            }
            out.push(before);
            let Some((name, after)) = name_of_variable(from) else {
                self.problem(
                    key,
                    place.clone(),
                    "holds a `${` that is not `${NAME}`",
                    Some("write `$${` for the two characters themselves".into()),
                );
                return None;
            };
            let Some(value) = self.environment.get(name) else {
                let rule = format!("asks for the environment variable `{name}`, which is not set");
                let fix = format!(
                    "set {name}, in the environment or in a `.env` file beside the configuration"
                );
                self.missing(key, place.clone(), rule, fix, None);
                return None;
            };
            self.used_variables.insert(name.to_owned());
            out.value.push_str(value);
            out.written.push(VARIABLE);
            rest = after;
        }
        out.push(rest);
        Some(out)
    }

    /// A secret: text, or a reference to it (`env:NAME`, `file:PATH`, `keyvault:URL`, `secretsmanager:NAME`).
    pub(super) fn secret(&mut self, key: &'static str) -> Option<Secret> {
        self.hide(key);
        let given = self.take(key)?;
        // A reference is what somebody wrote, never what a variable happened to hold.
        let reference = match &given.value {
            Value::Plain(text) => reference(text),
            Value::Toml(DeValue::String(text)) => reference(text),
            Value::Toml(_) => None,
        };
        let place = given.place.clone();
        let Some((scheme, target)) = reference else {
            let (text, written) = self.string(given)?;
            self.mask.add(&text.value);
            return Some(Secret {
                value: text.value.into(),
                written,
                place,
            });
        };
        let value = match scheme {
            "env" => match self.environment.get(&target) {
                Some(value) => {
                    self.used_variables.insert(target);
                    value.to_owned()
                }
                None => {
                    let rule = "refers to an environment variable that is not set";
                    let fix = "set the variable, or write the reference as `env:NAME`";
                    self.missing(key, place, rule, fix, None);
                    return None;
                }
            },
            "file" => match std::fs::read_to_string(&target) {
                Ok(text) => text.trim_end_matches(['\r', '\n']).to_owned(),
                Err(error) => {
                    let rule = format!("refers to a file that cannot be read ({})", error.kind());
                    let fix = "write `file:PATH`; a relative path starts at the current folder";
                    self.problem(key, place, rule, Some(fix.into()));
                    return None;
                }
            },
            scheme => return self.vault_secret(key, place, scheme, &target),
        };
        self.mask.add(&value);
        Some(Secret {
            value: value.into(),
            written: None,
            place,
        })
    }

    fn vault_secret(
        &mut self,
        key: &str,
        place: Place,
        scheme: &str,
        target: &str,
    ) -> Option<Secret> {
        let Some(reference) = Reference::parse(scheme, target) else {
            let rule = format!("is not a reference as `{scheme}:` needs it");
            let fix = format!("write `{}`", Reference::example(scheme));
            self.problem(key, place, rule, Some(fix));
            return None;
        };
        if let Some(value) = self.environment.secret(&reference) {
            self.mask.add(value.expose_secret());
            return Some(Secret {
                value: value.clone(),
                written: None,
                place,
            });
        }
        let rule = format!("uses `{scheme}:`, which this program cannot read");
        let fix = "use `env:NAME` or `file:PATH`, or a program that was built for this cloud";
        self.missing(key, place, rule, fix, Some(reference));
        None
    }

    fn missing(
        &mut self,
        key: &str,
        place: Place,
        rule: impl Into<String>,
        fix: impl Into<String>,
        reference: Option<Reference>,
    ) {
        let problem = Problem {
            key: key.to_owned(),
            rule: rule.into(),
            fix: Some(fix.into()),
            place,
        };
        self.missing.push(Missing { problem, reference });
    }

    pub(super) fn list(&mut self, key: &'static str) -> Option<Vec<String>> {
        let given = self.take_list(key)?;
        let place = given.place;
        let items = match given.value {
            Value::Plain(text) => plain_list(&text),
            Value::Toml(DeValue::Array(items)) => {
                let mut texts = Vec::with_capacity(items.len());
                for item in items {
                    match item.into_inner() {
                        DeValue::String(text) => {
                            texts.push(self.substitute(key, &place, &text)?.value);
                        }
                        other => {
                            let rule =
                                format!("must be a list of strings, found {} in it", kind(&other));
                            self.problem(key, place, rule, None);
                            return None;
                        }
                    }
                }
                Some(texts)
            }
            Value::Toml(_) => None,
        };
        match items {
            Some(items) if items.iter().all(|item| !item.trim().is_empty()) => Some(items),
            Some(_) => {
                self.problem(key, place, "must not hold an empty string", None);
                None
            }
            None => {
                self.problem(
                    key,
                    place,
                    "must be a list of strings",
                    Some("write [\"a\", \"b\"]; in a variable also a,b".into()),
                );
                None
            }
        }
    }

    /// An empty variable clears a list, which is not the same as a list that nobody set.
    fn take_list(&mut self, key: &'static str) -> Option<Given<'i>> {
        match self.outside(&[key]) {
            Some(given) => {
                self.known.insert(key);
                self.unread.remove(key);
                Some(given)
            }
            None => self.take(key),
        }
    }

    pub(super) fn durations_ms(&mut self, key: &'static str, default: &[u64]) -> Vec<Duration> {
        let millis = |values: &[u64]| values.iter().copied().map(Duration::from_millis).collect();
        let Some(given) = self.take_list(key) else {
            return millis(default);
        };
        let numbers: Option<Vec<u64>> = match given.value {
            Value::Plain(text) => plain_list(&text)
                .and_then(|items| items.iter().map(|item| item.trim().parse().ok()).collect()),
            Value::Toml(DeValue::Array(items)) => items
                .iter()
                .map(|item| integer(item.get_ref())?.try_into().ok())
                .collect(),
            Value::Toml(_) => None,
        };
        match numbers.filter(|numbers| numbers.iter().all(|n| *n <= 600_000)) {
            Some(numbers) => millis(&numbers),
            None => {
                self.problem(
                    key,
                    given.place,
                    "must be a list of whole numbers from 0 to 600000 (milliseconds)",
                    None,
                );
                Vec::new()
            }
        }
    }

    pub(super) fn number<T: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        default: T,
        range: RangeInclusive<i64>,
    ) -> T {
        self.number_any(&[key], default, range)
    }

    pub(super) fn number_any<T: TryFrom<i64>>(
        &mut self,
        keys: &[&'static str],
        default: T,
        range: RangeInclusive<i64>,
    ) -> T {
        let Some(given) = self.take_any(keys) else {
            return default;
        };
        let number = match &given.value {
            Value::Plain(text) => text.trim().parse().ok(),
            Value::Toml(value) => integer(value),
        };
        let in_range = number
            .filter(|n| range.contains(n))
            .and_then(|n| T::try_from(n).ok());
        in_range.unwrap_or_else(|| {
            let (least, most) = (range.start(), range.end());
            let rule = format!(
                "must be a whole number from {least} to {most}{}",
                found(&given.value)
            );
            self.problem(given.key, given.place, rule, None);
            default
        })
    }

    pub(super) fn seconds(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<i64>,
    ) -> Duration {
        Duration::from_secs(self.number(key, default, range))
    }

    pub(super) fn millis(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<i64>,
    ) -> Duration {
        Duration::from_millis(self.number(key, default, range))
    }

    pub(super) fn decimal(
        &mut self,
        key: &'static str,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> f64 {
        let Some(given) = self.take(key) else {
            return default;
        };
        let number: Option<f64> = match &given.value {
            Value::Plain(text) => text.trim().parse().ok(),
            Value::Toml(DeValue::Float(float)) => float.as_str().parse().ok(),
            Value::Toml(value) => integer(value).map(|n| n as f64),
        };
        number.filter(|n| range.contains(n)).unwrap_or_else(|| {
            let (least, most) = (range.start(), range.end());
            let rule = format!(
                "must be a number from {least:?} to {most:?}{}",
                found(&given.value)
            );
            self.problem(given.key, given.place, rule, None);
            default
        })
    }

    pub(super) fn boolean(&mut self, keys: &[&'static str], default: bool) -> (bool, Place) {
        let Some(given) = self.take_any(keys) else {
            return (default, Place::Nowhere);
        };
        let value = match &given.value {
            Value::Toml(DeValue::Boolean(value)) => Some(*value),
            Value::Plain(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => None,
            },
            Value::Toml(_) => None,
        };
        if value.is_none() {
            let rule = format!("must be true or false{}", found(&given.value));
            self.problem(given.key, given.place.clone(), rule, None);
        }
        (value.unwrap_or(default), given.place)
    }

    /// One of a few words; case does not count. `None` when it is another word.
    pub(super) fn choice<T: Copy>(
        &mut self,
        keys: &[&'static str],
        default: T,
        options: &[(&'static str, T)],
    ) -> Option<(T, Place)> {
        let Some(given) = self.take_any(keys) else {
            return Some((default, Place::Nowhere));
        };
        let key = given.key;
        let (Text { value, place }, written) = self.string(given)?;
        let chosen = options
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(value.trim()));
        if let Some((_, chosen)) = chosen {
            return Some((*chosen, place));
        }
        let words: Vec<String> = options
            .iter()
            .map(|(word, _)| format!("`{word}`"))
            .collect();
        let is_shown = !has_variable(written.as_deref());
        let found = shown(&value, is_shown);
        let rule = format!("must be {}, found {found}", words.join(" or "));
        let fix = nearest(&value, options.iter().map(|(word, _)| *word))
            .filter(|_| is_shown)
            .map(|word| format!("did you mean `{word}`?"));
        self.problem(key, place, rule, fix);
        None
    }

    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let Text { value, place } = self.text(key)?;
        if value.is_empty() {
            self.problem(key, place, "must not be an empty path", None);
            return None;
        }
        Some(PathBuf::from(value))
    }

    /// An openEHR date-time, or a date, which is its midnight in UTC.
    pub(super) fn instant(&mut self, key: &'static str) -> Option<(Instant, Place)> {
        let given = self.take(key)?;
        let place = given.place.clone();
        let (text, is_shown) = match given.value {
            Value::Toml(DeValue::Datetime(datetime)) => (datetime.to_string(), true),
            _ => {
                let (text, written) = self.string(given)?;
                (text.value, !has_variable(written.as_deref()))
            }
        };
        match parse_instant(&text) {
            Some(instant) => Some((instant, place)),
            None => {
                self.problem(
                    key,
                    place,
                    format!(
                        "must be a date or a date and time, found {}",
                        shown(&text, is_shown)
                    ),
                    Some("write 2026-11-23 or 2026-11-23T08:00:00Z".into()),
                );
                None
            }
        }
    }

    /// Reads nothing of a section, but knows its keys; tells whether the file holds any.
    pub(super) fn skip_section(&mut self, section: &'static str) -> Option<Place> {
        self.known.insert(section);
        let span = self.sections.remove(section)?;
        let inside = |path: &str| {
            path.strip_prefix(section)
                .is_some_and(|p| p.starts_with('.'))
        };
        self.unread.retain(|path, _| !inside(path));
        self.sections.retain(|path, _| !inside(path));
        Some(place(self.text, span))
    }

    /// Ends a reading that only asks which secrets in vaults are needed, each with a key that needs it. All that can be
    /// wrong without them is an error already.
    pub(super) fn references(
        mut self,
        unused: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, Reference)>, Invalid> {
        let mut references = Vec::new();
        for Missing { problem, reference } in std::mem::take(&mut self.missing) {
            match reference {
                Some(_) if unused(&problem.key) => {}
                Some(reference) => references.push((problem.key, reference)),
                None => self.missing.push(Missing { problem, reference }),
            }
        }
        self.finish(Some(references), unused)
            .map(|(references, ..)| references)
    }

    /// Ends the reading: what nobody read is unknown, and any problem is an error. `unused` tells which
    /// keys belong to sections that are not in use: they may ask for variables that are not set.
    pub(super) fn finish<T>(
        mut self,
        value: Option<T>,
        unused: impl Fn(&str) -> bool,
    ) -> Result<(T, Vec<String>, Mask), Invalid> {
        self.report_unknown();
        self.notice_stray_variables();
        for Missing { problem, .. } in std::mem::take(&mut self.missing) {
            if unused(&problem.key) {
                self.notices
                    .push(format!("{problem}; its section is not in use"));
            } else {
                self.problems.push(problem);
            }
        }
        if let (Some(value), true) = (value, self.problems.is_empty()) {
            let notices = self.notices.iter().map(|n| self.mask.apply(n)).collect();
            return Ok((value, notices, self.mask));
        }
        for Problem { rule, fix, .. } in &mut self.problems {
            *rule = self.mask.apply(rule);
            *fix = fix.as_deref().map(|fix| self.mask.apply(fix));
        }
        self.problems.sort_by_key(|problem| match &problem.place {
            Place::File { span, .. } => span.start,
            _ => usize::MAX,
        });
        let excerpt = Some(self.excerpt());
        Err(Invalid {
            path: self.path.to_owned(),
            excerpt,
            problems: self.problems,
        })
    }

    fn report_unknown(&mut self) {
        for (path, entry) in std::mem::take(&mut self.unread) {
            let place = place(self.text, entry.key);
            let is_section = self.known.iter().any(|key| is_inside(key, &path));
            let is_below_value = self.known.iter().find(|key| is_inside(&path, key));
            let (rule, fix) = if is_section {
                (
                    "is a section, not a value".to_owned(),
                    Some(format!("write `[{path}]` above its keys")),
                )
            } else if let Some(key) = is_below_value {
                (
                    "is unknown".to_owned(),
                    Some(format!("`{key}` is a value, not a section")),
                )
            } else {
                ("is unknown".to_owned(), self.suggestion(&path))
            };
            self.problem(&path, place, rule, fix);
        }
        // Deepest first: a section is reported by what is in it.
        for (path, span) in std::mem::take(&mut self.sections).into_iter().rev() {
            let known = self.known.iter().any(|key| is_inside(key, &path));
            let reported = self.problems.iter().any(|p| is_inside(&p.key, &path));
            if !known && !reported {
                let fix = self.suggestion(&path);
                self.problem(&path, place(self.text, span), "is unknown", fix);
            }
        }
    }

    /// The known key or section nearest to `path`. The last name is compared by itself first: the
    /// right name in the wrong section is the most frequent slip.
    fn suggestion(&self, path: &str) -> Option<String> {
        let name = |path: &str| path.rsplit('.').next().map(str::to_owned);
        let elsewhere = self
            .known
            .iter()
            .find(|key| name(key) == name(path))
            .copied();
        let sections = self
            .known
            .iter()
            .filter_map(|key| key.rsplit_once('.'))
            .map(|(s, _)| s);
        let candidates: BTreeSet<&str> = self.known.iter().copied().chain(sections).collect();
        let best = elsewhere.or_else(|| nearest(path, candidates))?;
        Some(format!("did you mean `{best}`?"))
    }

    /// A variable that looks like a key, but is none, is most likely a slip.
    fn notice_stray_variables(&mut self) {
        let known: BTreeSet<String> = self.known.iter().flat_map(|key| variables(key)).collect();
        let sections: BTreeSet<String> = self
            .known
            .iter()
            .filter_map(|key| key.split_once('.'))
            .map(|(section, _)| format!("{}_", variable(section)))
            .collect();
        let stray = self.environment.names().filter(|name| {
            sections.iter().any(|section| name.starts_with(section))
                && !known.contains(*name)
                && !self.used_variables.contains(*name)
        });
        let notices: Vec<String> = stray
            .map(
                |name| match nearest(name, known.iter().map(String::as_str)) {
                    Some(best) => {
                        format!("environment variable {name} names no key; did you mean {best}?")
                    }
                    None => format!("environment variable {name} names no key"),
                },
            )
            .collect();
        self.notices.extend(notices);
    }

    /// The text of the file with stars for all but names and values that are known to be no secrets: an old password can stand
    /// in a comment.
    fn excerpt(&self) -> String {
        let mut is_shown = vec![false; self.text.len()];
        let mut mark = |spans: &[Range<usize>], shown: bool| {
            for at in spans.iter().cloned().flatten() {
                if let Some(mark) = is_shown.get_mut(at) {
                    *mark = shown;
                }
            }
        };
        mark(&self.frames(), true);
        mark(&self.names, true);
        mark(&self.values, false);
        mark(&self.shown, true);
        mark(&self.mask.ranges(self.text), false);
        let mut excerpt = String::with_capacity(self.text.len());
        for (at, c) in self.text.char_indices() {
            if c.is_whitespace() || is_shown.get(at) == Some(&true) {
                excerpt.push(c);
            } else {
                // As many bytes as before, so that the spans of the problems stay right.
                excerpt.extend(std::iter::repeat_n('*', c.len_utf8()));
            }
        }
        excerpt
    }

    /// What stands between names and values on the lines that have a name, up to a comment.
    fn frames(&self) -> Vec<Range<usize>> {
        let mut frames = Vec::new();
        let mut start = 0;
        for line in self.text.split_inclusive('\n') {
            let (from, to) = (start, start + line.len());
            start = to;
            let is_here = |span: &&Range<usize>| from <= span.start && span.start < to;
            if let Some(header) = header(line)
                && self.known.iter().any(|key| is_inside(key, header))
            {
                let end = line.find(']').map_or(line.len(), |end| end + 1);
                frames.push(from..from + end);
            }
            if !self.names.iter().any(|name| is_here(&name)) {
                continue;
            }
            let inside = |at: usize| {
                let mut spans = self.names.iter().chain(&self.values);
                spans.any(|span| span.contains(&at))
            };
            let outside = line.char_indices().map(|(at, c)| (from + at, c));
            let outside = outside.filter(|(at, _)| !inside(*at));
            let outside = outside.take_while(|(_, c)| *c != '#');
            let signs = outside.filter(|(_, c)| "=[]{}.,\"'".contains(*c));
            frames.extend(signs.map(|(at, _)| at..at + 1));
        }
        frames
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> impl Iterator<Item = &'static str> {
        self.known.iter().copied()
    }
}

/// Reads what people type for a point in time: an openEHR date-time, or a date (its midnight in UTC).
fn parse_instant(text: &str) -> Option<Instant> {
    let text = text.trim();
    Instant::parse(text)
        .or_else(|_| Instant::parse(&format!("{text}T00:00:00Z")))
        .ok()
}

/// The section that a line begins, if its name is a plain one.
fn header(line: &str) -> Option<&str> {
    let (name, _) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    Some(name.trim())
}

/// The variable that overrides a key.
fn variable(key: &str) -> String {
    format!("ATLAS_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// All variables that override a key. Where a key repeats the name of its section, the documented
/// variable says it once: `ATLAS_EXPORT_COMPOSITION_FORMAT`.
fn variables(key: &str) -> impl Iterator<Item = String> {
    let repeats = |(section, name): (&str, &str)| {
        let short = name.strip_prefix(section)?.strip_prefix('_')?;
        Some(variable(&format!("{section}.{short}")))
    };
    let short = key.split_once('.').and_then(repeats);
    short.into_iter().chain([variable(key)])
}

fn place(text: &str, span: Range<usize>) -> Place {
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
    Place::File { line, column, span }
}

fn is_inside(path: &str, section: &str) -> bool {
    path.strip_prefix(section)
        .is_some_and(|rest| rest.starts_with('.'))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn reference(text: &str) -> Option<(&'static str, String)> {
    let (scheme, target) = text.split_once(':')?;
    let schemes = ["env", "file", "keyvault", "secretsmanager"];
    let scheme = schemes.into_iter().find(|known| *known == scheme)?;
    Some((scheme, target.to_owned()))
}

/// Whether a whole value says where a secret is.
pub(super) fn is_reference(text: &str) -> bool {
    reference(text).is_some()
}

fn plain_list(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    if text.starts_with('[') {
        let items: Vec<serde_json::Value> = serde_json::from_str(text).ok()?;
        let item = |item| match item {
            serde_json::Value::String(text) => Some(text),
            serde_json::Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        return items.into_iter().map(item).collect();
    }
    Some(text.split(',').map(|item| item.trim().to_owned()).collect())
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

fn found(value: &Value<'_>) -> String {
    match value {
        Value::Plain(text) => format!(", found `{}`", shortened(text)),
        Value::Toml(DeValue::Integer(integer)) => format!(", found {integer}"),
        Value::Toml(value) => format!(", found {}", kind(value)),
    }
}

fn has_variable(written: Option<&str>) -> bool {
    written.is_some_and(|written| written.contains(VARIABLE))
}

/// A wrong value. What a variable of the file holds may be a secret that went astray.
fn shown(text: &str, is_shown: bool) -> String {
    if is_shown {
        format!("`{}`", shortened(text))
    } else {
        "what a variable holds".to_owned()
    }
}

/// Whether an address is scheme, host, port and path, without any place for a secret.
fn is_plain_address(text: &str) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    let port = match host.rsplit_once(':') {
        Some((_, port)) if !host.ends_with(']') => port,
        _ => "",
    };
    port.chars().all(|c| c.is_ascii_digit()) && !text.contains(['@', '?', '#', '%'])
}

fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
