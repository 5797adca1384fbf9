//! The rights that Atlas needs once its tables are there, and the SQL that gives them to a role.

use std::fmt;

use crate::session::quoted;

/// Rights, and the tables that need exactly these: all that Atlas ever does to its tables but making them.
pub(crate) const RIGHTS: &[(&str, &[&str])] = &[
    ("SELECT", &["atlas_migrations", "watermarks"]),
    (
        "SELECT, INSERT, UPDATE",
        &[
            "atlas_counts",
            "atlas_landed",
            "atlas_templates",
            "atlas_records",
        ],
    ),
    (
        "SELECT, INSERT, UPDATE, DELETE",
        &[
            "compositions",
            "atlas_watermarks",
            "atlas_slices",
            "atlas_quarantine",
            "atlas_runs",
        ],
    ),
];

/// Bytes of a name at most: PostgreSQL cuts what is longer, which can make it the name of somebody else.
const LONGEST: usize = 63;

/// Why there is no script for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnusableName {
    what: &'static str,
    rule: &'static str,
}

impl fmt::Display for UnusableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} {}", self.what, self.rule)
    }
}

impl std::error::Error for UnusableName {}

/// The SQL that gives a role exactly the rights an export needs, once the tables are there. Whoever owns the schema runs it.
/// Without a schema it is the first one of the search path of whoever runs it.
///
/// # Errors
/// A name that stands for everybody, or that PostgreSQL does not take as it is.
pub fn grant_script(schema: Option<&str>, role: &str) -> Result<String, UnusableName> {
    const HEAD: &str = "-- What Atlas needs to export once its tables are there: no right to create, change or drop any of them.";
    check("role", role)?;
    let grants = match schema {
        Some(schema) => {
            check("schema", schema)?;
            grants(&quoted(schema), &quoted(role))
        }
        None => in_first_schema(&grants("%1$I", "%2$I"), role),
    };
    Ok(format!("{HEAD}\n{grants}\n"))
}

fn grants(schema: &str, role: &str) -> String {
    let mut script = format!("GRANT USAGE ON SCHEMA {schema} TO {role};");
    for (rights, tables) in RIGHTS {
        let tables: Vec<String> = tables
            .iter()
            .map(|table| format!("{schema}.{table}"))
            .collect();
        script.push_str(&format!(
            "\nGRANT {rights} ON {}\n    TO {role};",
            tables.join(", ")
        ));
    }
    script
}

/// A block that finds the schema when it is run, and writes the names by PostgreSQL's own function.
fn in_first_schema(grants: &str, role: &str) -> String {
    let role = literal(role);
    let block = format!(
        "BEGIN
IF pg_catalog.has_schema_privilege('public', pg_catalog.current_schema(), 'CREATE') THEN
    RAISE EXCEPTION 'everybody may create in the first schema of the search path: revoke that, or set postgresql.schema';
END IF;
EXECUTE pg_catalog.format('
{grants}
', pg_catalog.current_schema(), {role});
END"
    );
    // A name may hold the sign that ends the block.
    let mut tag = String::from("$atlas$");
    while block.contains(&tag) {
        tag.insert(1, '_');
    }
    format!("DO {tag} {block} {tag};")
}

/// A text as SQL writes it, whatever `standard_conforming_strings` says: the rule of `quote_literal`.
fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    match doubled.contains('\\') {
        true => format!("E'{}'", doubled.replace('\\', "\\\\")),
        false => format!("'{doubled}'"),
    }
}

/// Names that mean everybody or nobody mean it in quotes as well.
fn check(what: &'static str, name: &str) -> Result<(), UnusableName> {
    let plain = name.trim_matches(|c: char| c.is_whitespace() || c == '"');
    let plain = plain.to_ascii_lowercase();
    let rule = match plain.as_str() {
        "" => "must not be empty",
        "public" if what == "schema" => {
            "must not be `public`, where everybody looks for tables and may be allowed to make some: set postgresql.schema to a \
             schema of its own"
        }
        "public" => "must not be `public`, which is everybody",
        "none" => "must not be `none`, which PostgreSQL reserves",
        "information_schema" => "must not be `information_schema`, which is PostgreSQL's own",
        reserved if reserved.starts_with("pg_") => {
            "must not begin with `pg_`, which PostgreSQL reserves"
        }
        _ if name.len() > LONGEST => "must not be longer than 63 bytes, which PostgreSQL cuts",
        _ if name.contains(char::is_control) => "must not hold control characters",
        _ => return Ok(()),
    };
    Err(UnusableName { what, rule })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_that_are_not_one_role_or_one_schema_are_refused() {
        let long = "x".repeat(64);
        for name in [
            "",
            " ",
            "\"\"",
            "public",
            "PUBLIC",
            "Public",
            " public ",
            "\"public\"",
            "\"PUBLIC\"",
            "none",
            "pg_monitor",
            "PG_read_all_data",
            "information_schema",
            "a\0b",
            "a\nb",
            &long,
        ] {
            for (schema, role) in [(None, name), (Some("x"), name), (Some(name), "x")] {
                assert!(grant_script(schema, role).is_err(), "{name:?}");
            }
        }
    }

    #[test]
    fn a_name_cannot_end_its_quotes_or_its_block() {
        let script = grant_script(Some("a\"; DROP"), "b\"c").unwrap();
        assert!(
            script.contains("SCHEMA \"a\"\"; DROP\" TO \"b\"\"c\""),
            "{script}"
        );
        let script = grant_script(None, "x$atlas$y $_atlas$").unwrap();
        assert!(script.contains("DO $__atlas$ BEGIN"), "{script}");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'"), "E'a\\\\'''");
    }
}
