//! Route templates of HTTP triggers: `exports/{id?}`, `files/{*path}`.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

/// One part between two slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    One(String),
    Optional(String),
    Rest(String),
}

/// A template that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    text: String,
    parts: Vec<Part>,
}

impl Route {
    /// Reads a template without its prefix.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let trimmed = text.trim_matches('/');
        let parts: Vec<Part> = trimmed
            .split('/')
            .filter(|part| !part.is_empty())
            .map(part)
            .collect::<Result<_, _>>()
            .map_err(|why| format!("the route `{text}` {why}"))?;
        let last = parts.len().saturating_sub(1);
        if parts
            .iter()
            .take(last)
            .any(|part| matches!(part, Part::Optional(_) | Part::Rest(_)))
        {
            return Err(format!(
                "the route `{text}` has an optional or a catch-all part that is not its last one"
            ));
        }
        Ok(Self {
            text: trimmed.to_owned(),
            parts,
        })
    }

    /// As it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The values of its parameters if a path (as it was typed, without prefix) is one of this route. A slash at the end
    /// counts for nothing, two slashes are no route.
    pub(crate) fn matches(&self, path: &str) -> Option<BTreeMap<String, Option<String>>> {
        let mut values = BTreeMap::new();
        let path = path.strip_suffix('/').unwrap_or(path);
        let parts: Vec<String> = match path {
            "" => Vec::new(),
            path => path.split('/').map(decoded).collect::<Option<_>>()?,
        };
        let mut given = parts.iter().map(String::as_str);
        for part in &self.parts {
            match (part, given.next()) {
                (Part::Literal(text), Some(value)) if text.eq_ignore_ascii_case(value) => {}
                (Part::One(name) | Part::Optional(name), Some(value)) => {
                    values.insert(name.clone(), Some(value.to_owned()));
                }
                (Part::Rest(name), Some(value)) => {
                    let rest: Vec<&str> = std::iter::once(value).chain(given.by_ref()).collect();
                    values.insert(name.clone(), Some(rest.join("/")));
                }
                (Part::Optional(name) | Part::Rest(name), None) => {
                    values.insert(name.clone(), None);
                }
                _ => return None,
            }
        }
        given.next().is_none().then_some(values)
    }

    /// More literal parts win when two routes match.
    pub(crate) fn weight(&self) -> usize {
        self.parts
            .iter()
            .filter(|part| matches!(part, Part::Literal(_)))
            .count()
    }

    /// Whether no path could tell the two apart.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let shape = |route: &Self| -> Vec<String> {
            route
                .parts
                .iter()
                .map(|part| match part {
                    Part::Literal(text) => text.to_ascii_lowercase(),
                    Part::One(_) => "{}".to_owned(),
                    Part::Optional(_) => "{?}".to_owned(),
                    Part::Rest(_) => "{*}".to_owned(),
                })
                .collect()
        };
        shape(self) == shape(other)
    }
}

/// One part of a path, decoded; an encoded slash stays as it is, so that it divides nothing. `None` for an empty one.
fn decoded(part: &str) -> Option<String> {
    let mut made = String::new();
    let mut rest = part;
    while let Some(at) = rest.to_ascii_lowercase().find("%2f") {
        made += &percent_decode_str(&rest[..at]).decode_utf8().ok()?;
        made += &rest[at..at + 3];
        rest = &rest[at + 3..];
    }
    made += &percent_decode_str(rest).decode_utf8().ok()?;
    (!made.is_empty()).then_some(made)
}

fn part(text: &str) -> Result<Part, &'static str> {
    let Some(inner) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) else {
        return if text.contains(['{', '}']) {
            Err("mixes text and a parameter in one part; give the parameter a part of its own")
        } else {
            Ok(Part::Literal(text.to_owned()))
        };
    };
    if inner.contains([':', '=']) {
        return Err(
            "has a constraint or a default, which this host does not know; check the value in the handler",
        );
    }
    let made = if let Some(name) = inner.strip_prefix('*') {
        Part::Rest(name.trim_start_matches('*').to_owned())
    } else if let Some(name) = inner.strip_suffix('?') {
        Part::Optional(name.to_owned())
    } else {
        Part::One(inner.to_owned())
    };
    match &made {
        Part::One(name) | Part::Optional(name) | Part::Rest(name) if name.is_empty() => {
            Err("has a parameter without a name")
        }
        _ => Ok(made),
    }
}
