//! What may be asked for.

use std::collections::BTreeSet;

use atlas_engine::model::{Mode, Request, Selection};
use atlas_openehr::id::{EhrId, TemplateId};
use atlas_openehr::time::Instant;
use atlas_runtime::problem::Problem;
use serde::Deserialize;

/// Most templates or EHRs of one request.
const MOST: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    templates: Vec<String>,
    #[serde(default)]
    ehrs: Vec<String>,
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    to: Option<String>,
    #[serde(default)]
    mode: Option<Mode>,
}

/// Reads a body; what it leaves out is as the schedule has it. An empty body asks for what the schedule copies.
///
/// # Errors
/// What is wrong with it, without repeating any of it.
pub(crate) fn read(body: &[u8], schedule: &Request) -> Result<Request, Problem> {
    let body: Body = match body.trim_ascii_start() {
        [] => serde_json::from_str("{}"),
        [b'{', ..] => serde_json::from_slice(body),
        // A list would be taken for the members in their order.
        _ => return Err(not_asked_for("at its beginning")),
    }
    .map_err(|error| {
        // The text of the error can quote the body.
        not_asked_for(&format!(
            "at line {}, column {}",
            error.line(),
            error.column()
        ))
    })?;
    let copied = &schedule.selection;
    let (from, to) = (time("from", body.from)?, time("to", body.to)?);
    let too_early = copied
        .from
        .is_some_and(|earliest| from.is_some_and(|from| from < earliest));
    let too_late = copied
        .to
        .is_some_and(|latest| to.is_some_and(|to| to > latest));
    if too_early || too_late {
        return Err(outside(
            "`from` and `to`",
            "time_range_start and openehr.query.time_range_end",
        ));
    }
    let selection = Selection {
        ehrs: within(
            "`ehrs`",
            "ehr_ids",
            &copied.ehrs,
            names("ehrs", body.ehrs)?,
            EhrId::new,
        )?,
        from: from.or(copied.from),
        to: to.or(copied.to),
        format: copied.format,
    };
    if let (Some(from), Some(to)) = (selection.from, selection.to)
        && from >= to
    {
        return Err(Problem::bad_request("`from` must lie before `to`"));
    }
    let templates = names("templates", body.templates)?;
    Ok(Request {
        mode: body.mode.unwrap_or(Mode::Incremental),
        templates: within(
            "`templates`",
            "template_ids",
            &schedule.templates,
            templates,
            TemplateId::new,
        )?,
        selection,
    })
}

fn not_asked_for(place: &str) -> Problem {
    Problem::bad_request(format!("the body is not what is asked for here, {place}"))
        .fix("send a JSON object with templates, ehrs, from, to and mode (`incremental` or `full`), each of them optional")
}

/// Whoever set up Atlas decided what may leave the server: an empty list there allows everything, an empty list here asks
/// for all that is allowed.
fn within<T: PartialEq + Clone>(
    member: &str,
    key: &str,
    allowed: &[T],
    asked: BTreeSet<String>,
    new: impl Fn(&str) -> T,
) -> Result<Vec<T>, Problem> {
    if asked.is_empty() {
        return Ok(allowed.to_vec());
    }
    let asked: Vec<T> = asked.iter().map(|name| new(name)).collect();
    if allowed.is_empty() || asked.iter().all(|one| allowed.contains(one)) {
        Ok(asked)
    } else {
        Err(outside(member, key))
    }
}

fn outside(member: &str, key: &str) -> Problem {
    Problem::bad_request(format!(
        "{member} asks for more than this installation exports"
    ))
    .fix(format!("openehr.query.{key} says what it does"))
}

/// Sorted, each once: the order of a list is no difference.
fn names(member: &str, names: Vec<String>) -> Result<BTreeSet<String>, Problem> {
    if names.len() > MOST {
        return Err(Problem::bad_request(format!(
            "`{member}` has more than {MOST} entries"
        )));
    }
    if names.iter().any(|name| name.trim().is_empty()) {
        return Err(Problem::bad_request(format!(
            "`{member}` has an empty entry"
        )));
    }
    // No id has any, and PostgreSQL takes no text with a zero byte.
    if names.iter().any(|name| name.chars().any(char::is_control)) {
        return Err(Problem::bad_request(format!(
            "`{member}` has an entry with a control character"
        )));
    }
    Ok(names.into_iter().collect())
}

fn time(member: &str, text: Option<String>) -> Result<Option<Instant>, Problem> {
    let Some(text) = text else {
        return Ok(None);
    };
    Instant::parse(&text).map(Some).map_err(|_| {
        Problem::bad_request(format!("`{member}` is not a date and time with an offset"))
            .fix("write it like 2026-11-25T09:15:00Z")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use atlas_engine::model::Format;
    use axum::response::IntoResponse as _;

    fn schedule(ehrs: &[&str]) -> Request {
        Request {
            mode: Mode::Incremental,
            templates: Vec::new(),
            selection: Selection {
                ehrs: ehrs.iter().map(|id| EhrId::new(id)).collect(),
                from: Instant::parse("2025-01-01T00:00:00Z").ok(),
                to: None,
                format: Format::Preserve,
            },
        }
    }

    #[test]
    fn what_a_body_leaves_out_is_as_the_schedule_has_it() {
        let schedule = schedule(&["b", "a"]);
        for body in ["", "{}", r#"{"templates":[],"ehrs":[],"from":null}"#] {
            let request = read(body.as_bytes(), &schedule).unwrap();
            assert_eq!(request, schedule);
        }
    }

    #[test]
    fn the_order_of_lists_is_no_difference() {
        let of = |body: &str| read(body.as_bytes(), &schedule(&[])).unwrap();
        assert_eq!(
            of(r#"{"templates":["b","a","b"],"ehrs":["2","1"],"mode":"full"}"#),
            of(r#"{"mode":"full","ehrs":["1","2"],"templates":["a","b"]}"#)
        );
    }

    #[test]
    fn bad_bodies_are_refused_without_being_repeated() {
        for body in [
            "nonsense",
            "[]",
            r#"{"template":["secret"]}"#,
            r#"{"templates":"secret"}"#,
            r#"{"templates":[" "]}"#,
            r#"{"ehrs":["secret"]}"#,
            r#"{"templates":["secret\u0000"]}"#,
            r#"{"ehrs":["known\u001b"]}"#,
            r#"{"from":"secret"}"#,
            r#"{"from":"2024-12-31T23:59:59Z"}"#,
            r#"{"from":"2026-01-02T00:00:00Z","to":"2026-01-02T00:00:00Z"}"#,
            r#"{"mode":"secret"}"#,
        ] {
            let problem = read(body.as_bytes(), &schedule(&["known"])).unwrap_err();
            assert!(!format!("{problem:?}").contains("secret"), "{body}");
            assert_eq!(problem.into_response().status(), 400, "{body}");
        }
    }
}
