//! Who may do what: the script of `grants`, and what a look at the tables shows.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub
)]

mod common;

use atlas_engine::ErrorKind;
use atlas_engine::ports::Store;
use atlas_store_postgres::{Config, Look, PostgresStore, grant_script};
use common::{Database, config};

/// A role of a test's own, and how it connects.
async fn login(database: &Database, name: &str) -> String {
    let quoted = name.replace('"', "\"\"");
    let sql = format!("CREATE ROLE \"{quoted}\" LOGIN PASSWORD 'secret'");
    database.cluster.execute("postgres", &sql).await.unwrap();
    let encoded = name.bytes().map(|byte| format!("%{byte:02x}"));
    database
        .cluster
        .connection_string_as(&encoded.collect::<String>(), "secret", &database.name)
}

async fn drop_role(database: &Database, name: &str) {
    let quoted = name.replace('"', "\"\"");
    let sql = format!("DROP OWNED BY \"{quoted}\" CASCADE; DROP ROLE \"{quoted}\"");
    database
        .cluster
        .execute(&database.name, &sql)
        .await
        .unwrap();
}

fn in_schema(url: &str, schema: &str) -> Config {
    Config {
        schema: Some(schema.to_owned()),
        ..config(url)
    }
}

async fn look(config: &Config) -> Look {
    PostgresStore::new(config).unwrap().look().await.unwrap()
}

#[tokio::test]
async fn a_granted_role_has_its_rights_whatever_it_is_called() {
    let database = Database::new().await;
    let own = database.name.clone();
    for (place, sign) in [
        "%s",
        "%1$I",
        "$atlas$",
        "$_atlas$ $atlas$",
        "\"",
        "it's",
        "back\\slash",
        "\\'",
        "; DROP",
        "-- x",
        "\u{e4}\u{1f512}",
        "A B",
        "user",
    ]
    .into_iter()
    .enumerate()
    {
        let role = format!("{sign} {own}");
        let url = login(&database, &role).await;
        // In the schema that is configured, and in the first one of the search path.
        let schema = format!("The {sign} \"copy\"");
        let owner = PostgresStore::new(&in_schema(&database.url, &schema)).unwrap();
        owner.prepare().await.unwrap();
        let path = schema.replace('"', "\"\"");
        let first = format!("SET search_path TO \"{path}\";");
        let script = match place % 2 {
            0 => grant_script(Some(&schema), &role).unwrap(),
            _ => format!("{first} {}", grant_script(None, &role).unwrap()),
        };
        let before = look(&in_schema(&url, &schema)).await;
        assert!(
            !before.is_prepared && !before.lacks.is_empty(),
            "{before:?}"
        );
        database.cluster.execute(&own, &script).await.unwrap();
        let after = look(&in_schema(&url, &schema)).await;
        let expected = Look {
            is_prepared: true,
            may_prepare: false,
            lacks: Vec::new(),
            is_superuser: false,
            is_owner: false,
            creators: Vec::new(),
        };
        assert_eq!(after, expected, "{role}");
        drop_role(&database, &role).await;
    }
}

#[tokio::test]
async fn the_first_schema_of_the_search_path_gets_no_rights_while_everybody_may_create_there() {
    let database = Database::new().await;
    database.store().prepare().await.unwrap();
    let role = format!("exports {}", database.name);
    login(&database, &role).await;
    let script = grant_script(None, &role).unwrap();
    let execute = async |sql: &str| database.cluster.execute(&database.name, sql).await;
    execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        .await
        .unwrap();
    assert!(execute(&script).await.is_err());
    execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        .await
        .unwrap();
    execute(&script).await.unwrap();
    drop_role(&database, &role).await;
}

#[tokio::test]
async fn a_look_tells_superusers_owners_and_who_else_may_create() {
    let database = Database::new().await;
    let name = |what: &str| format!("{what} {}", database.name);
    let (owner, exporter, other, group) =
        (name("owns"), name("exports"), name("other"), name("group"));
    let owner_url = login(&database, &owner).await;
    let exporter_url = login(&database, &exporter).await;
    login(&database, &other).await;
    login(&database, &group).await;
    let execute = async |sql: String| {
        database
            .cluster
            .execute(&database.name, &sql)
            .await
            .unwrap()
    };
    let (as_owner, as_exporter) = (
        in_schema(&owner_url, "copy"),
        in_schema(&exporter_url, "copy"),
    );
    let as_superuser = in_schema(&database.url, "copy");

    // Nothing is there: who may make it?
    assert!(look(&as_superuser).await.may_prepare);
    let nobody = look(&as_owner).await;
    assert!(!nobody.may_prepare && !nobody.is_prepared, "{nobody:?}");
    let refused = PostgresStore::new(&as_owner)
        .unwrap()
        .prepare()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreDenied);
    assert!(
        refused.help().unwrap().contains("atlas prepare"),
        "{}",
        refused.chain()
    );
    execute(format!("CREATE SCHEMA copy AUTHORIZATION \"{owner}\"")).await;
    let fresh = look(&as_owner).await;
    assert!(
        fresh.may_prepare && !fresh.is_prepared && fresh.creators.is_empty(),
        "{fresh:?}"
    );
    let stranger = look(&as_exporter).await;
    assert!(!stranger.may_prepare, "{stranger:?}");
    assert_eq!(stranger.creators, [owner.as_str()]);

    // A look makes nothing.
    let tables = "SELECT count(*) FROM pg_class WHERE relname LIKE 'atlas_%'";
    let count = database
        .client()
        .await
        .query_one(tables, &[])
        .await
        .unwrap();
    assert_eq!(count.get::<_, i64>(0), 0);

    PostgresStore::new(&as_owner)
        .unwrap()
        .prepare()
        .await
        .unwrap();
    execute(grant_script(Some("copy"), &exporter).unwrap()).await;
    let (owns, exports, superuser) = (
        look(&as_owner).await,
        look(&as_exporter).await,
        look(&as_superuser).await,
    );
    assert!(
        owns.is_owner && !owns.is_superuser && owns.creators.is_empty(),
        "{owns:?}"
    );
    assert!(!exports.is_owner && !exports.is_superuser, "{exports:?}");
    assert!(
        exports.is_prepared && exports.creators.is_empty(),
        "{exports:?}"
    );
    assert!(superuser.is_superuser, "{superuser:?}");

    // By a role that it may become.
    execute(format!("GRANT \"{owner}\" TO \"{group}\"; GRANT \"{group}\" TO \"{exporter}\"; ALTER ROLE \"{exporter}\" NOINHERIT")).await;
    assert!(look(&as_exporter).await.is_owner);
    execute(format!("REVOKE \"{group}\" FROM \"{exporter}\"; ALTER ROLE \"{group}\" SUPERUSER; GRANT \"{group}\" TO \"{exporter}\"")).await;
    assert!(look(&as_exporter).await.is_superuser);
    execute(format!(
        "REVOKE \"{group}\" FROM \"{exporter}\"; ALTER ROLE \"{group}\" NOSUPERUSER"
    ))
    .await;

    // Others in the schema.
    for (grant, revoke, creators) in [
        (
            "GRANT CREATE ON SCHEMA copy TO PUBLIC".to_owned(),
            "REVOKE CREATE ON SCHEMA copy FROM PUBLIC".to_owned(),
            vec!["PUBLIC"],
        ),
        (
            format!("GRANT ALL ON SCHEMA copy TO \"{other}\""),
            format!("REVOKE CREATE ON SCHEMA copy FROM \"{other}\""),
            vec![other.as_str()],
        ),
        (
            format!("GRANT CREATE ON SCHEMA copy TO \"{exporter}\""),
            format!("REVOKE CREATE ON SCHEMA copy FROM \"{exporter}\""),
            vec![exporter.as_str()],
        ),
        (
            format!("ALTER SCHEMA copy OWNER TO \"{other}\""),
            format!("ALTER SCHEMA copy OWNER TO \"{owner}\""),
            vec![other.as_str()],
        ),
    ] {
        execute(grant.clone()).await;
        for config in [&as_owner, &as_superuser] {
            assert_eq!(look(config).await.creators, creators, "{grant}");
        }
        execute(revoke).await;
    }
    // After the schema came back, its owner needs no right that somebody gave.
    assert_eq!(look(&as_owner).await.creators, [""; 0]);

    // What is taken away is named.
    for (revoke, lacks) in [
        (
            format!("REVOKE DELETE ON copy.atlas_runs FROM \"{exporter}\""),
            "DELETE on atlas_runs",
        ),
        (
            format!("REVOKE SELECT ON copy.atlas_migrations FROM \"{exporter}\""),
            "SELECT on atlas_migrations",
        ),
        (
            format!("REVOKE USAGE ON SCHEMA copy FROM \"{exporter}\""),
            "USAGE on the schema",
        ),
    ] {
        execute(revoke).await;
        let look = look(&as_exporter).await;
        assert_eq!(look.lacks, [lacks]);
        assert!(!look.is_prepared && !look.may_prepare, "{look:?}");
        execute(grant_script(Some("copy"), &exporter).unwrap()).await;
    }
    for role in [&exporter, &group, &other, &owner] {
        drop_role(&database, role).await;
    }
}
