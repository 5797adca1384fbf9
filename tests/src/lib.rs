//! What the scenarios in `tests/` share: the `atlas` program as users run it, and readers that share no code with it.
//!
//! | module | what |
//! |---|---|
//! | [`atlas`] | a configuration in a folder of its own, runs of the program with it, exit code, JSON, messages, peak memory |
//! | [`store`] | what lies in SQLite and PostgreSQL, read by plain SQL |
//! | [`source`] | what EHRbase and the sample CDR hold, asked for composition by composition |
//! | [`hosted`] | the function suite in a host of either cloud, with its store in PostgreSQL |
//! | [`points`] | moments between two statements at which a worker is held, to be killed there |
//! | [`sweep`] | exports that are killed at many moments
//! | [`infra`] | Terraform, Bicep and the app folder, read back and compared
//! | [`json`] | JSON with its number text, decimals, RFC 8785 |
//!
//! | scenarios | what has to hold |
//! |---|---|
//! | `ehrbase` | a real server: the corpus arrives whole, updates, backfill, an idle run |
//! | `kill` | SIGKILL, SIGTERM and SIGINT at many moments |
//! | `bad_input` | what is wrong is named with its fix, by exit code and message, and nothing is lost |
//! | `faults` | servers that are busy, slow, broken, ill or large |
//! | `changes` | the server, the selection or the format changes between runs |
//! | `histories` | all of that at random; `ATLAS_TEST_SEEDS` says how many |
//! | `privacy` | nothing personal is printed or logged |
//! | `strangers` | texts, clocks and numbers of others: nothing of them is printed, believed or kept that must not be |
//! | `newcomer` | demo, init, usage errors, dry run |
//! | `suite` | the function suite over both hosts and all queues: what it copies |
//! | `suite_faults` | the same with everything that can go wrong |
//! | `laptop` | the hosts by their command line: stopped, killed, started again |
//! | `flat_live` | FLAT against the server's own |
//! | `infra` | what is deployed: queues, schedules, rights, and numbers that agree everywhere |
//! | `judge` | the comparison itself notices what is wrong |
//! | `house` | names in the code, and dependencies between the engine's files |
//!
//! The program is the one beside the tests (`cargo build -p atlas`), or the one that `ATLAS_BIN` names.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation is what a test is for"
)]

pub mod atlas;
pub mod hosted;
pub mod infra;
pub mod json;
pub mod points;
pub mod source;
pub mod store;
pub mod sweep;

use std::collections::BTreeMap;

pub use atlas::{Atlas, Run};
pub use source::Composition;
pub use store::{Kind, Row, Store};

/// Makes a test for each store out of functions that take a [`Kind`].
#[macro_export]
macro_rules! into_both_stores {
    ($($sentence:ident),+ $(,)?) => {
        mod into_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $sentence() {
                super::$sentence($crate::Kind::Sqlite).await;
            })+
        }
        mod into_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $sentence() {
                super::$sentence($crate::Kind::Postgres).await;
            })+
        }
    };
}

/// Holds the copy against what the source says: the same compositions in the same versions, each equal in content,
/// each with a checksum that comes out again. Numbers are compared as text in SQLite, as decimals in PostgreSQL.
pub async fn assert_copy(store: &Store, expected: &BTreeMap<String, Composition>) {
    let rows = store.rows().await;
    let missing = expected.keys().filter(|id| !rows.contains_key(*id)).count();
    let surplus = rows.keys().filter(|id| !expected.contains_key(*id)).count();
    assert_eq!(
        (missing, surplus),
        (0, 0),
        "missing and surplus of {} compositions",
        expected.len()
    );
    for (id, composition) in expected {
        assert_row(store.kind(), &rows[id], composition);
    }
}

/// Holds one row against what the source says.
pub fn assert_row(kind: Kind, row: &Row, composition: &Composition) {
    let Composition {
        uid,
        ehr_id,
        template_id,
        content,
    } = composition;
    assert_eq!(&row.uid, uid);
    assert_eq!(
        Some(row.version.to_string().as_str()),
        uid.rsplit("::").next()
    );
    assert_eq!(&row.ehr_id, ehr_id);
    assert_eq!(&row.template_id, template_id);
    let (stored, wanted) = (json::parse(&row.content), json::parse(content));
    let equal = match kind {
        Kind::Sqlite => stored == wanted,
        Kind::Postgres => stored.decimals() == wanted.decimals(),
    };
    assert!(
        equal,
        "a composition of `{template_id}` differs\nstored {}\nwanted {content}",
        row.content
    );
    assert_eq!(
        row.checksum,
        stored.checksum(),
        "checksum of a composition of `{template_id}`"
    );
}
