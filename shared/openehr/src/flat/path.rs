//! Archetype paths: `/content[openEHR-EHR-OBSERVATION.pulse.v1 and name/value='Pulse']/data[at0001]`.

use std::fmt;

/// One step of an archetype path: an attribute, and what its value must be.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Segment {
    pub(super) attribute: String,
    /// The at-code or archetype id in the predicate.
    pub(super) code: Option<String>,
    /// The name in the predicate.
    pub(super) name: Option<String>,
}

impl Segment {
    pub(super) fn attribute(name: &str) -> Self {
        Self {
            attribute: name.to_owned(),
            code: None,
            name: None,
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.attribute)?;
        match (&self.code, &self.name) {
            (None, None) => Ok(()),
            (Some(code), None) => write!(f, "[{code}]"),
            (None, Some(name)) => write!(f, "[name/value='{name}']"),
            (Some(code), Some(name)) => write!(f, "[{code} and name/value='{name}']"),
        }
    }
}

/// Splits a path. `None` if it is not one.
pub(super) fn split(path: &str) -> Option<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        rest = rest.strip_prefix('/')?;
        let end = rest.find(['/', '[']).unwrap_or(rest.len());
        let (attribute, behind) = rest.split_at_checked(end)?;
        if attribute.is_empty() {
            return None;
        }
        let mut segment = Segment::attribute(attribute);
        rest = behind;
        if let Some(behind) = rest.strip_prefix('[') {
            let (predicate, behind) = split_predicate(behind)?;
            read_predicate(predicate, &mut segment)?;
            rest = behind;
        }
        segments.push(segment);
    }
    Some(segments)
}

/// Splits behind `[`. Quotes inside a name are not escaped, so a name ends at the first `']`
/// that a path can continue behind.
fn split_predicate(text: &str) -> Option<(&str, &str)> {
    let plain = text.find(']')?;
    let end = match text.find('\'') {
        Some(quote) if quote < plain => {
            text.match_indices("']").map(|(at, _)| at + 1).find(|at| {
                let behind = text.as_bytes().get(at + 1);
                *at > quote + 1 && matches!(behind, None | Some(b'/'))
            })?
        }
        _ => plain,
    };
    Some((text.get(..end)?, text.get(end + 1..)?))
}

fn read_predicate(predicate: &str, segment: &mut Segment) -> Option<()> {
    let (code, name) = match predicate.split_once('\'') {
        None => (predicate, None),
        Some((before, quoted)) => {
            let before = before.trim_end().trim_end_matches(['=', ',']).trim_end();
            let code = before
                .strip_suffix("name/value")
                .unwrap_or(before)
                .trim_end();
            (
                code.strip_suffix(" and").unwrap_or(code),
                Some(quoted.strip_suffix('\'')?.to_owned()),
            )
        }
    };
    segment.code = Some(code.trim().to_owned()).filter(|code| !code.is_empty());
    segment.name = name;
    Some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::split;

    #[test]
    fn a_quote_inside_a_name_does_not_end_it() {
        let path = "/content[openEHR-EHR-SECTION.adhoc.v1 and name/value='patient's]/x']/items[at0001]/value";
        let segments = split(path).unwrap();
        assert_eq!(segments[0].name.as_deref(), Some("patient's]/x"));
        assert_eq!(
            segments[0].code.as_deref(),
            Some("openEHR-EHR-SECTION.adhoc.v1")
        );
        assert_eq!(segments[1].code.as_deref(), Some("at0001"));
        assert_eq!(segments.len(), 3);
        let text: String = segments.iter().map(ToString::to_string).collect();
        assert_eq!(text, path);
    }

    #[test]
    fn a_predicate_can_be_a_name_alone_and_what_is_no_path_is_refused() {
        let segments = split("/items[name/value='a']").unwrap();
        assert_eq!(
            (segments[0].code.as_deref(), segments[0].name.as_deref()),
            (None, Some("a"))
        );
        for broken in ["items", "/", "//a", "/a[b", "/a[b and name/value='c]"] {
            assert_eq!(split(broken), None, "{broken}");
        }
    }
}
