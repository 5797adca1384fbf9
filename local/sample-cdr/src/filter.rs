//! A WHERE clause with its parameters put in: a test for rows, and the box of rows it can possibly hold for.

use std::collections::BTreeSet;

use jiff::civil;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    aql::{Comparison, Condition, Operand, Path, Refusal},
    quirks::Quirks,
    templates::Template,
    world::{Row, World},
};

/// The third part of every version uid.
pub(crate) const SYSTEM_ID: &str = "sample.atlas";

/// A condition on rows, with values instead of parameters.
#[derive(Debug, Clone)]
pub(crate) enum Filter {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Nothing,
    Time(Comparison, i64),
    /// Microseconds and the nanoseconds behind them, where commit times have both.
    Fine(Comparison, (i64, i64)),
    Uid(Comparison, UidValue),
    UidIn(BTreeSet<UidValue>),
    Template(BTreeSet<Template>),
    Ehr(BTreeSet<u128>),
    Change(BTreeSet<&'static str>),
}

/// An object id, or with a version a version uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UidValue {
    pub(crate) object_id: u128,
    pub(crate) version: Option<u32>,
}

impl Filter {
    pub(crate) fn bind(
        condition: Option<&Condition>,
        parameters: &Map<String, Value>,
        quirks: &Quirks,
    ) -> Result<Self, Refusal> {
        let Some(condition) = condition else {
            return Ok(Self::All(Vec::new()));
        };
        let many = |parts: &[Condition]| -> Result<Vec<Self>, Refusal> {
            parts
                .iter()
                .map(|part| Self::bind(Some(part), parameters, quirks))
                .collect()
        };
        match condition {
            Condition::Compare(Path::EhrId, ..) | Condition::Matches(Path::EhrId, _)
                if quirks.ignores_ehrs =>
            {
                Ok(Self::All(Vec::new()))
            }
            Condition::Compare(Path::TemplateId, ..) | Condition::Matches(Path::TemplateId, _)
                if quirks.ignores_templates =>
            {
                Ok(Self::All(Vec::new()))
            }
            Condition::And(parts) => Ok(Self::All(many(parts)?)),
            Condition::Or(parts) => Ok(Self::Any(many(parts)?)),
            Condition::Not(inner) => Ok(Self::Not(Box::new(Self::bind(
                Some(inner),
                parameters,
                quirks,
            )?))),
            Condition::Compare(path, comparison, operand) => {
                let values = values(operand, parameters)?;
                match values.as_slice() {
                    [value] if *path == Path::Time && quirks.nanoseconds => fine_time(value)
                        .map_or_else(
                            || Err(Refusal::internal()),
                            |time| Ok(Self::Fine(*comparison, time)),
                        ),
                    [value] => compare(*path, *comparison, value),
                    _ => Err(Refusal::bad_request(
                        "Only primitive operands are supported",
                    )),
                }
            }
            Condition::Matches(path, operands) => {
                let mut any = Vec::new();
                for operand in operands {
                    any.extend(values(operand, parameters)?);
                }
                match any.is_empty() {
                    true => Err(Refusal::bad_request(
                        "Could not parse AQL query: Parameter replacement resulted in empty operand list",
                    )),
                    false => one_of(*path, &any),
                }
            }
        }
    }

    pub(crate) fn holds(&self, row: &Row, world: &World, quirks: &Quirks) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.holds(row, world, quirks)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(row, world, quirks)),
            Self::Not(inner) => !inner.holds(row, world, quirks),
            Self::Nothing => false,
            Self::Time(comparison, us) => ordered(*comparison, row.committed_us.cmp(us)),
            Self::Fine(comparison, time) => {
                ordered(*comparison, (row.committed_us, quirks.nanos(row)).cmp(time))
            }
            Self::Uid(comparison, value) => ordered(*comparison, value.order_of(row)),
            Self::UidIn(values) => [None, Some(row.version)].into_iter().any(|version| {
                values.contains(&UidValue {
                    object_id: row.object_id,
                    version,
                })
            }),
            Self::Template(templates) => templates.contains(&row.template),
            Self::Ehr(ids) => ids.contains(&world.base().ehr_id(row.patient)),
            Self::Change(names) => names.contains(row.change.name()),
        }
    }

    /// The box that contains every row this filter holds for.
    pub(crate) fn bounds(&self) -> Bounds {
        match self {
            Self::All(parts) => parts.iter().fold(Bounds::everything(), |bounds, part| {
                bounds.and(part.bounds())
            }),
            Self::Any(parts) => parts
                .iter()
                .map(Self::bounds)
                .reduce(Bounds::or)
                .unwrap_or_else(Bounds::nothing),
            Self::Nothing => Bounds::nothing(),
            Self::Time(comparison, us) => Bounds {
                time: interval(*comparison, *us, i64::MIN, i64::MAX),
                exact: *comparison != Comparison::NotEqual,
                ..Bounds::everything()
            },
            // Whatever is in the microsecond itself can be on either side.
            Self::Fine(comparison, (us, _)) => Bounds {
                time: match comparison {
                    Comparison::Equal => (*us, *us),
                    Comparison::NotEqual => (i64::MIN, i64::MAX),
                    Comparison::Less | Comparison::AtMost => (i64::MIN, *us),
                    Comparison::Greater | Comparison::AtLeast => (*us, i64::MAX),
                },
                exact: false,
                ..Bounds::everything()
            },
            Self::Uid(comparison, value) => {
                // A full uid is compared with its version: the object itself may be on either side.
                let (from, to) = match comparison {
                    Comparison::NotEqual => (0, u128::MAX),
                    Comparison::Equal => (value.object_id, value.object_id),
                    Comparison::Less | Comparison::AtMost => (0, value.object_id),
                    Comparison::Greater | Comparison::AtLeast => (value.object_id, u128::MAX),
                };
                Bounds {
                    object_ids: (from, to),
                    among: (*comparison == Comparison::Equal)
                        .then(|| BTreeSet::from([value.object_id])),
                    exact: false,
                    ..Bounds::everything()
                }
            }
            Self::UidIn(values) => Bounds {
                among: Some(values.iter().map(|value| value.object_id).collect()),
                exact: false,
                ..Bounds::everything()
            },
            Self::Template(templates) => Bounds {
                templates: templates.clone(),
                ..Bounds::everything()
            },
            Self::Not(_) | Self::Ehr(_) | Self::Change(_) => Bounds {
                exact: false,
                ..Bounds::everything()
            },
        }
    }
}

/// A box in the space of commit times, templates and object ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// First and last microsecond, both included.
    pub(crate) time: (i64, i64),
    pub(crate) templates: BTreeSet<Template>,
    /// Lowest and highest object id, both included.
    pub(crate) object_ids: (u128, u128),
    /// The only objects in question, where the filter names them.
    pub(crate) among: Option<BTreeSet<u128>>,
    /// Whether the filter holds for every row in the box.
    pub(crate) exact: bool,
}

impl Bounds {
    fn everything() -> Self {
        Self {
            time: (i64::MIN, i64::MAX),
            templates: Template::ALL.into(),
            object_ids: (0, u128::MAX),
            among: None,
            exact: true,
        }
    }

    fn nothing() -> Self {
        Self {
            time: (i64::MAX, i64::MIN),
            templates: BTreeSet::new(),
            object_ids: (u128::MAX, 0),
            among: Some(BTreeSet::new()),
            exact: true,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            time: (self.time.0.max(other.time.0), self.time.1.min(other.time.1)),
            templates: &self.templates & &other.templates,
            object_ids: (
                self.object_ids.0.max(other.object_ids.0),
                self.object_ids.1.min(other.object_ids.1),
            ),
            among: match (self.among, other.among) {
                (Some(a), Some(b)) => Some(&a & &b),
                (a, b) => a.or(b),
            },
            exact: self.exact && other.exact,
        }
    }

    fn or(self, other: Self) -> Self {
        // Two boxes that differ in their templates alone make a box again.
        let exact = self.exact
            && other.exact
            && self.time == other.time
            && self.object_ids == other.object_ids
            && self.among == other.among;
        Self {
            time: (self.time.0.min(other.time.0), self.time.1.max(other.time.1)),
            templates: &self.templates | &other.templates,
            object_ids: (
                self.object_ids.0.min(other.object_ids.0),
                self.object_ids.1.max(other.object_ids.1),
            ),
            among: match (self.among, other.among) {
                (Some(a), Some(b)) => Some(&a | &b),
                _ => None,
            },
            exact,
        }
    }

    pub(crate) fn contains(&self, row: &Row) -> bool {
        (self.time.0..=self.time.1).contains(&row.committed_us)
            && self.templates.contains(&row.template)
    }
}

fn interval(comparison: Comparison, at: i64, lowest: i64, highest: i64) -> (i64, i64) {
    match comparison {
        Comparison::Equal => (at, at),
        Comparison::NotEqual => (lowest, highest),
        Comparison::Less => (lowest, at.saturating_sub(1)),
        Comparison::AtMost => (lowest, at),
        Comparison::Greater => (at.saturating_add(1), highest),
        Comparison::AtLeast => (at, highest),
    }
}

fn ordered(comparison: Comparison, ordering: std::cmp::Ordering) -> bool {
    match comparison {
        Comparison::Equal => ordering.is_eq(),
        Comparison::NotEqual => ordering.is_ne(),
        Comparison::Less => ordering.is_lt(),
        Comparison::AtMost => ordering.is_le(),
        Comparison::Greater => ordering.is_gt(),
        Comparison::AtLeast => ordering.is_ge(),
    }
}

impl UidValue {
    /// How `row` compares to this value: by object id alone, or with the version when there is one.
    fn order_of(&self, row: &Row) -> std::cmp::Ordering {
        let by_id = row.object_id.cmp(&self.object_id);
        match self.version {
            Some(version) => by_id.then(row.version.cmp(&version)),
            None => by_id,
        }
    }

    /// Reads an object id or a version uid of any system.
    pub(crate) fn parse(text: &str) -> Option<(Self, Option<&str>)> {
        let mut parts = text.split("::");
        let object_id = parse_uuid(parts.next()?)?;
        let Some(system) = parts.next() else {
            let value = Self {
                object_id,
                version: None,
            };
            return Some((value, None));
        };
        let version = parts.next()?.parse().ok()?;
        let value = Self {
            object_id,
            version: Some(version),
        };
        parts.next().is_none().then_some((value, Some(system)))
    }
}

/// A uuid in its usual form only: 36 characters.
pub(crate) fn parse_uuid(text: &str) -> Option<u128> {
    (text.len() == 36)
        .then(|| Uuid::try_parse(text).ok())
        .flatten()
        .map(|uuid| uuid.as_u128())
}

/// What an operand stands for: a list parameter is many values.
fn values(operand: &Operand, parameters: &Map<String, Value>) -> Result<Vec<Value>, Refusal> {
    match operand {
        Operand::Text(text) => Ok(vec![Value::String(text.clone())]),
        Operand::Number(number) => Ok(vec![Value::String(number.clone())]),
        Operand::Parameter(name) => match parameters.get(name) {
            None => Err(Refusal::bad_request(
                "Only primitive operands are supported",
            )),
            Some(Value::Null) => Err(Refusal::bad_request(format!("Missing parameter '{name}'"))),
            Some(Value::Array(values)) => Ok(values.clone()),
            Some(value) => Ok(vec![value.clone()]),
        },
    }
}

fn compare(path: Path, comparison: Comparison, value: &Value) -> Result<Filter, Refusal> {
    if path == Path::Time {
        return match (parse_time(value), comparison) {
            (Some((us, true)), _) => Ok(Filter::Time(comparison, us)),
            (Some((us, false)), comparison) if comparison != Comparison::Equal => {
                Ok(Filter::Time(comparison, us))
            }
            // EHRbase compares texts for equality and times for order.
            (_, Comparison::Equal) => Ok(Filter::Nothing),
            (_, Comparison::NotEqual) => Ok(Filter::All(Vec::new())),
            _ => Err(Refusal::internal()),
        };
    }
    if path == Path::Uid {
        return Ok(Filter::Uid(comparison, uid(value)?));
    }
    let equal = one_of(path, std::slice::from_ref(value))?;
    Ok(match comparison {
        Comparison::NotEqual => Filter::Not(Box::new(equal)),
        _ => equal,
    })
}

fn one_of(path: Path, values: &[Value]) -> Result<Filter, Refusal> {
    let texts = values.iter().filter_map(Value::as_str);
    match path {
        Path::Uid => Ok(Filter::UidIn(
            values.iter().map(uid).collect::<Result<_, _>>()?,
        )),
        Path::Time => values
            .iter()
            .map(|value| compare(Path::Time, Comparison::Equal, value))
            .collect::<Result<_, _>>()
            .map(Filter::Any),
        Path::TemplateId => Ok(Filter::Template(
            texts.filter_map(Template::from_id).collect(),
        )),
        Path::EhrId => Ok(Filter::Ehr(texts.filter_map(parse_uuid).collect())),
        Path::ChangeType => Ok(Filter::Change(
            texts
                .filter_map(|text| {
                    ["creation", "modification"]
                        .into_iter()
                        .find(|name| *name == text)
                })
                .collect(),
        )),
        Path::TimeText | Path::Composition => Err(Refusal::internal()),
    }
}

fn uid(value: &Value) -> Result<UidValue, Refusal> {
    match value.as_str().and_then(UidValue::parse) {
        Some((value, None | Some(SYSTEM_ID))) => Ok(value),
        Some((_, Some(_))) => Err(Refusal::bad_request(format!(
            "CREATING_SYSTEM_ID of {value} does not match this server ({SYSTEM_ID})"
        ))),
        None => Err(Refusal::bad_request(format!(
            "{value} is not a valid OBJECT_VERSION_ID/UID"
        ))),
    }
}

/// A time as a server takes it that compares nanoseconds: microseconds since 1970, rounded down, and the nanoseconds behind
/// them.
fn fine_time(value: &Value) -> Option<(i64, i64)> {
    let text = value.as_str()?;
    let digits: String = match text.split_once('.') {
        Some((_, fraction)) => fraction.chars().take_while(char::is_ascii_digit).collect(),
        None => String::new(),
    };
    let micros: String = digits.chars().take(6).collect();
    let nanos = format!("{:0<3}", digits.chars().skip(6).take(3).collect::<String>());
    let (us, _) = parse_time(&Value::String(text.replacen(&digits, &micros, 1)))?;
    Some((us, nanos.parse().ok()?))
}

/// A time as EHRbase takes it in a comparison: microseconds since 1970, and whether it was exact to the microsecond.
///
/// A date, or a date-time in basic or extended form with seconds; no zone means UTC; the fraction is rounded.
fn parse_time(value: &Value) -> Option<(i64, bool)> {
    let text = value.as_str()?;
    let digits = |text: &str| -> Option<i32> {
        text.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
        text.parse().ok()
    };
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let date = without(date, 8, &[(4, b'-'), (7, b'-')])?;
    let date = civil::Date::new(
        i16::try_from(digits(&date[..4])?).ok()?,
        i8::try_from(digits(&date[4..6])?).ok()?,
        i8::try_from(digits(&date[6..])?).ok()?,
    )
    .ok()?;
    let at_us = |civil: civil::DateTime, offset: i32| -> Option<i64> {
        // By civil time: a timestamp ends hours before the year 9999 does, and EHRbase reads on.
        let epoch = civil::date(1970, 1, 1).at(0, 0, 0, 0);
        let since = civil.duration_since(epoch).as_micros() - i128::from(offset) * 1_000_000;
        i64::try_from(since).ok()
    };
    let Some(time) = time else {
        return Some((at_us(date.at(0, 0, 0, 0), 0)?, false));
    };
    let (time, offset) = match time.find(['Z', '+', '-']) {
        Some(at) => (&time[..at], offset_seconds(&time[at..])?),
        None => (time, 0),
    };
    let (time, fraction) = match time.split_once('.') {
        Some((time, fraction)) => (time, fraction),
        None => (time, "0"),
    };
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let nanos = digits(fraction)? * 10_i32.pow(9 - u32::try_from(fraction.len()).ok()?);
    let time = without(time, 6, &[(2, b':'), (5, b':')])?;
    let part = |range| i8::try_from(digits(&time[range])?).ok();
    let time = civil::Time::new(part(0..2)?, part(2..4)?, part(4..6)?, 0).ok()?;
    let seconds_us = at_us(date.to_datetime(time), offset)?;
    let micros = i64::from((nanos + 500) / 1000);
    Some((seconds_us.checked_add(micros)?, nanos % 1000 == 0))
}

/// `text` without its separators; either all of them are there, or none. The result has `length` ASCII digits.
fn without(text: &str, length: usize, separators: &[(usize, u8)]) -> Option<String> {
    let bytes = text.as_bytes();
    let plain: String = match bytes.len() {
        len if len == length => text.to_owned(),
        len if len == length + separators.len() => {
            if separators.iter().any(|(at, byte)| bytes[*at] != *byte) {
                return None;
            }
            text.chars().filter(|c| c.is_ascii_digit()).collect()
        }
        _ => return None,
    };
    (plain.len() == length && plain.bytes().all(|b| b.is_ascii_digit())).then_some(plain)
}

fn offset_seconds(text: &str) -> Option<i32> {
    if text == "Z" {
        return Some(0);
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let digits = without(text.get(1..)?, 4, &[(2, b':')])?;
    let hours: i32 = digits[..2].parse().ok()?;
    let minutes: i32 = digits[2..].parse().ok()?;
    (hours <= 18 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn time(text: &str) -> Option<(i64, bool)> {
        parse_time(&json!(text))
    }

    #[test]
    fn times_are_read_in_the_forms_that_ehrbase_reads() {
        assert!(time("9999-12-31T23:59:59.999999Z").is_some());
        let (midnight, _) = time("2026-11-23").unwrap();
        for text in [
            "2026-11-23T05:20:51.536907Z",
            "2026-11-23T05:20:51.536907",
            "2026-11-23T05:20:51.536907+00:00",
            "2026-11-23T05:20:51.536907+0000",
            "2026-11-23T10:50:51.536907+05:30",
            "2026-11-23T05:20:51.536907000Z",
            "20261123T052051.536907Z",
        ] {
            assert_eq!(
                time(text),
                Some((midnight + 19_251_536_907, true)),
                "{text}"
            );
        }
        let (us, exact) = time("2026-11-23T05:20:51.536907999Z").unwrap();
        assert_eq!(us % 1_000_000, 536_908);
        assert!(!exact);
    }

    #[test]
    fn nanoseconds_are_read_where_they_count() {
        for (text, nanos) in [
            ("2026-11-23T05:20:51.536907999Z", 999),
            ("2026-11-23T05:20:51.5369071Z", 100),
            ("2026-11-23T05:20:51.536907Z", 0),
        ] {
            let (us, _) = time("2026-11-23T05:20:51.536907Z").unwrap();
            assert_eq!(fine_time(&json!(text)), Some((us, nanos)), "{text}");
        }
        assert_eq!(fine_time(&json!("2026-11-23T05:20:51Z")).unwrap().1, 0);
        assert_eq!(fine_time(&json!("x")), None);
    }

    #[test]
    fn other_texts_are_no_times() {
        for text in [
            "",
            "x",
            "2026",
            "2026-11",
            "2026-02-30",
            "2026-11-23T24:00:00Z",
            "2026-11-23T23:59:60Z",
            "2026-11-23T05:20Z",
            "2026-11-23 05:20:51Z",
            "2026-11-23t05:20:51z",
            "2026-11-23T05:20:51,5Z",
            "2026-11-23T05:20:51+00",
            "10000-11-23T05:20:51Z",
            "2026-11-23T05:20:51.Z",
            "2026-11-23T05:20:51é",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
        assert_eq!(parse_time(&json!(2026)), None);
    }
}
