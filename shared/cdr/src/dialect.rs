//! The text of every query, and nothing else. What varies is a parameter, never pasted in.
//!
//! EHRbase's dialect: commit times are compared on `VERSION v[LATEST_VERSION]` in `WHERE`. The standard's
//! predicates inside `VERSION […]` have not been tried on any server by us, so the vendors that need them are refused.

use atlas_engine::model::{Cursor, Scope};
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::id::ObjectId;
use serde_json::{Map, Value, json};

use crate::config::Vendor;
use crate::place::Behind;

const FROM: &str = "FROM EHR e CONTAINS VERSION v[LATEST_VERSION] CONTAINS COMPOSITION c";
const UID: &str = "v/uid/value";
const TIME: &str = "v/commit_audit/time_committed";
const EHR: &str = "e/ehr_id/value";
const TEMPLATE: &str = "c/archetype_details/template_id/value";
const CHANGE: &str = "v/commit_audit/change_type/value";

/// Lines of a census at most: one for each template, and servers have hundreds.
const CENSUS_LINES: usize = 100_000;

/// A query as the server takes it.
pub(crate) struct Query {
    text: String,
    parameters: Map<String, Value>,
    /// Rows at most. A server without it answers all it has.
    pub(crate) fetch: usize,
}

impl Query {
    /// The body of `POST /query/aql`, for `fetch` rows.
    pub(crate) fn to_json(&self, fetch: usize) -> String {
        json!({"q": self.text, "query_parameters": self.parameters, "fetch": fetch}).to_string()
    }
}

/// Columns: template, count, first commit time, last commit time.
pub(crate) fn census(scope: &Scope) -> Query {
    let mut conditions = Conditions::default();
    conditions.at_or_after(scope);
    conditions.templates_and_ehrs(scope);
    conditions.query(
        &format!("{TEMPLATE}, COUNT({UID}), MIN({TIME}), MAX({TIME})"),
        "",
        CENSUS_LINES,
    )
}

/// Columns: count.
pub(crate) fn count(scope: &Scope) -> Query {
    let mut conditions = Conditions::default();
    conditions.at_or_after(scope);
    conditions.before(scope);
    conditions.templates_and_ehrs(scope);
    // `COUNT(*)` with a parameter is 500 before EHRbase 2.25.
    conditions.query(&format!("COUNT({UID})"), "", 1)
}

/// Columns: those of [`list`], content.
pub(crate) fn page(scope: &Scope, after: Option<&Cursor>, limit: usize) -> Query {
    keyset(scope, after, limit, ", c")
}

/// Columns: version uid, commit time, EHR, template, change type.
pub(crate) fn list(scope: &Scope, after: Option<&Cursor>, limit: usize) -> Query {
    keyset(scope, after, limit, "")
}

/// Columns: as [`page`].
pub(crate) fn fetch(scope: &Scope, objects: &[ObjectId]) -> Query {
    let mut conditions = Conditions::default();
    conditions.at_or_after(scope);
    conditions.before(scope);
    conditions.templates_and_ehrs(scope);
    conditions.any_of(UID, "u", objects.iter().map(ObjectId::as_str));
    conditions.query(
        &format!("{UID}, {TIME}, {EHR}, {TEMPLATE}, {CHANGE}, c"),
        "",
        objects.len(),
    )
}

fn keyset(scope: &Scope, after: Option<&Cursor>, limit: usize, content: &str) -> Query {
    let mut conditions = Conditions::default();
    match after {
        Some(cursor) if cursor.committed >= scope.window.from => conditions.behind(cursor),
        _ => conditions.at_or_after(scope),
    }
    conditions.before(scope);
    conditions.templates_and_ehrs(scope);
    conditions.query(
        &format!("{UID}, {TIME}, {EHR}, {TEMPLATE}, {CHANGE}{content}"),
        &format!(" ORDER BY {TIME}, {UID}"),
        limit,
    )
}

#[derive(Default)]
struct Conditions {
    all: Vec<String>,
    parameters: Map<String, Value>,
}

impl Conditions {
    fn bind(&mut self, name: &str, value: impl ToString) {
        self.parameters
            .insert(name.to_owned(), Value::String(value.to_string()));
    }

    fn at_or_after(&mut self, scope: &Scope) {
        self.bind("from", scope.window.from);
        self.all.push(format!("{TIME} >= $from"));
    }

    fn before(&mut self, scope: &Scope) {
        self.bind("to", scope.window.to);
        self.all.push(format!("{TIME} < $to"));
    }

    /// `AND` outside: the form with `OR` outside makes the server walk from its first row on.
    fn behind(&mut self, cursor: &Cursor) {
        let Behind { time, object, .. } = Behind::of(cursor);
        self.bind("after", time);
        match object {
            Some(object) => {
                self.bind("uid", object.as_str());
                self.all.push(format!(
                    "{TIME} >= $after AND ({TIME} > $after OR {UID} > $uid)"
                ));
            }
            None => self.all.push(format!("{TIME} > $after")),
        }
    }

    fn templates_and_ehrs(&mut self, scope: &Scope) {
        self.any_of(TEMPLATE, "t", scope.templates.iter().map(|id| id.as_str()));
        self.any_of(EHR, "e", scope.ehrs.iter().map(|id| id.as_str()));
    }

    /// No values do not restrict.
    fn any_of<'a>(&mut self, path: &str, prefix: &str, values: impl Iterator<Item = &'a str>) {
        let names: Vec<String> = values
            .enumerate()
            .map(|(number, value)| {
                let name = format!("{prefix}{number}");
                self.bind(&name, value);
                format!("${name}")
            })
            .collect();
        match names.as_slice() {
            [] => {}
            [one] => self.all.push(format!("{path} = {one}")),
            many => self
                .all
                .push(format!("{path} matches {{{}}}", many.join(", "))),
        }
    }

    fn query(self, columns: &str, order: &str, fetch: usize) -> Query {
        Query {
            text: format!(
                "SELECT {columns} {FROM} WHERE {}{order}",
                self.all.join(" AND ")
            ),
            parameters: self.parameters,
            fetch,
        }
    }
}

/// Refuses the vendors whose dialect was never tried.
pub(crate) fn check(vendor: Option<Vendor>) -> Result<()> {
    let name = match vendor {
        None | Some(Vendor::EhrBase) => return Ok(()),
        Some(Vendor::Better) => "better",
        Some(Vendor::Ocean) => "ocean",
    };
    Err(Error::new(
        ErrorKind::Usage,
        format!("speak to a server of vendor `{name}`: not yet supported"),
    )
    .fix(
        "Its AQL dialect has not been tried on a real server by us, and a guessed query can silently leave out \
         compositions. Only `openehr.vendor = \"ehrbase\"` works for now.",
    ))
}
