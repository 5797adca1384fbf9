//! What `atlas.toml` may say, and what is answered when it says something else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::time::Duration;

use atlas_cdr::{Auth, Oidc, Vendor};
use atlas_engine::model::{Format, Mode};
use atlas_runtime::Environment;
use atlas_runtime::settings::{
    AzureAccess, ConfigError, Functions, Invalid, Override, Place, Problem, QueueAccess, Rotation,
    Settings, Store,
};
use atlas_runtime::suite;
use atlas_store_postgres::SslMode;
use secrecy::ExposeSecret;

const MINIMAL: &str = "[openehr]\nbase_url = \"http://localhost:8080/ehrbase\"\n";

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Settings, Invalid> {
    let environment = variables.iter().copied().collect();
    Settings::parse(text, Path::new("atlas.toml"), &environment, &[])
}

fn problems(text: &str) -> Vec<Problem> {
    parse(text, &[])
        .expect_err("the text has a problem")
        .problems
}

fn line(problem: &Problem) -> usize {
    match problem.place {
        Place::File { line, .. } => line,
        _ => 0,
    }
}

/// The minimal file with one more key, and the line on which it stands.
fn with_key(key: &str, value: &str) -> (String, usize) {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let text = match section {
        "" => format!("{name} = {value}\n{MINIMAL}"),
        "openehr" if name == "base_url" => format!("[openehr]\nbase_url = {value}\n"),
        "openehr" => format!("{MINIMAL}{name} = {value}\n"),
        section => format!("{MINIMAL}[{section}]\n{name} = {value}\n"),
    };
    let line = text
        .lines()
        .position(|line| line == format!("{name} = {value}"))
        .unwrap()
        + 1;
    (text, line)
}

/// Every line of the specification of keys, with values that it excludes.
const WRONG: &[(&str, &[&str])] = &[
    ("environment", &["1", "\"prod\"", "[\"production\"]"]),
    (
        "database_target",
        &["true", "\"mysql\"", "\"cosmosdb\"", "\"lake\""],
    ),
    (
        "export.database_target",
        &["1", "\"mysql\"", "\"cosmosdb\"", "\"lake\""],
    ),
    ("application.log_level", &["3", "\"loud\""]),
    ("application.dry_run", &["\"true\"", "1"]),
    ("application.name", &["1"]),
    ("application.version", &["2.0"]),
    (
        "openehr.base_url",
        &[
            "1",
            "\"\"",
            "\"localhost:8080\"",
            "\"ftp://cdr\"",
            "\"http://u:p@cdr/ehrbase\"",
            "\"http://cdr/?x=1\"",
        ],
    ),
    ("openehr.vendor_type", &["1", "\"epic\""]),
    ("openehr.vendor", &["true", "\"epic\""]),
    ("openehr.auth_type", &["1", "\"digest\""]),
    ("openehr.username", &["1"]),
    (
        "openehr.password",
        &[
            "1",
            "\"keyvault:secret\"",
            "\"secretsmanager:secret\"",
            "\"file:/nowhere/at/all\"",
            "\"env:NOT_SET\"",
            "\"${NOT_SET}\"",
            "\"${\"",
        ],
    ),
    ("openehr.token", &["1", "\"${NOT_SET}\""]),
    ("openehr.client_id", &["1"]),
    ("openehr.client_secret", &["1", "\"${NOT_SET}\""]),
    ("openehr.scope", &["1", "[\"openid\"]"]),
    ("openehr.tls_verify", &["\"yes\"", "0"]),
    ("openehr.tls_verify_certificates", &["\"yes\"", "0"]),
    ("openehr.tls_ca_cert", &["1", "\"\""]),
    ("openehr.tls_client_cert", &["1", "\"\""]),
    ("openehr.tls_client_key", &["1", "\"\""]),
    (
        "openehr.timeout_seconds",
        &["0", "3601", "-1", "1.5", "\"60\"", "99999999999999999999"],
    ),
    (
        "openehr.max_clock_skew_seconds",
        &["0", "86401", "-1", "0.5", "\"300\"", "99999999999999999999"],
    ),
    ("openehr.retry.max_retries", &["-1", "21", "\"3\""]),
    ("openehr.retry.initial_delay_ms", &["0", "600001", "1.0"]),
    ("openehr.retry.max_delay_ms", &["0", "600001", "true"]),
    (
        "openehr.retry.backoff_multiplier",
        &["0.9", "10.1", "\"2\"", "nan", "inf"],
    ),
    (
        "openehr.query.template_ids",
        &["\"a\"", "[1]", "[\"\"]", "[[\"a\"]]"],
    ),
    ("openehr.query.ehr_ids", &["\"a\"", "[1]", "[\" \"]"]),
    (
        "openehr.query.time_range_start",
        &["1", "\"yesterday\"", "\"2024\"", "07:32:00"],
    ),
    (
        "openehr.query.time_range_end",
        &["1", "\"tomorrow\"", "\"2024-02-30\""],
    ),
    ("openehr.query.batch_size", &["0", "5001", "\"500\""]),
    ("openehr.query.parallel", &["0", "101", "1.0"]),
    ("openehr.query.parallel_ehrs", &["0", "101", "1.0"]),
    ("export.mode", &["1", "\"delta\""]),
    (
        "export.export_composition_format",
        &["1", "\"json\"", "\"tables\""],
    ),
    ("export.ids", &["1", "\"server\""]),
    ("export.verify_flat_sample", &["-1", "10001", "\"1\""]),
    ("export.max_retries", &["-1", "21", "\"3\""]),
    (
        "export.retry_backoff_ms",
        &["1000", "[-1]", "[\"1000\"]", "[600001]", "[1.5]"],
    ),
    ("export.shutdown_timeout_secs", &["0", "3601", "\"30\""]),
    ("export.dry_run", &["\"true\"", "1"]),
    ("export.safety_lag_seconds", &["-1", "86401", "\"60\""]),
    ("export.overlap_seconds", &["-1", "604801", "\"900\""]),
    ("export.slice_size", &["0", "10000001", "\"20000\""]),
    ("export.history", &["1", "\"all\"", "\"some\""]),
    ("export.on_delete", &["1", "\"delete\"", "\"forget\""]),
    ("cosmosdb.endpoint", &["1", "\"account\""]),
    ("cosmosdb.key", &["1", "\"keyvault:k\""]),
    ("cosmosdb.database_name", &["1"]),
    ("cosmosdb.control_container", &["1"]),
    ("cosmosdb.data_container_prefix", &["1"]),
    ("cosmosdb.partition_key", &["[\"/ehr_id\"]"]),
    ("cosmosdb.max_concurrency", &["0", "1001", "\"10\""]),
    ("cosmosdb.request_timeout_seconds", &["0", "3601", "\"60\""]),
    ("postgresql.connection_string", &["1", "\"keyvault:k\""]),
    ("postgresql.max_connections", &["0", "1001", "\"20\""]),
    (
        "postgresql.connection_timeout_seconds",
        &["0", "3601", "\"30\""],
    ),
    (
        "postgresql.statement_timeout_seconds",
        &["0", "86401", "\"60\""],
    ),
    ("postgresql.ssl_mode", &["true", "\"on\"", "\"verify\""]),
    ("postgresql.ssl_root_cert", &["1", "\"\""]),
    ("postgresql.schema", &["1", "\"\""]),
    ("sqlite.path", &["1", "\"\""]),
    (
        "queue.url",
        &[
            "1",
            "\"\"",
            "\"export-work\"",
            "\"ftp://a.queue.core.windows.net/q\"",
            "\"https://a.queue.core.windows.net\"",
            "\"https://a.queue.core.windows.net/q/messages\"",
            "\"https://u:p@a.queue.core.windows.net/q\"",
            "\"https://a.queue.core.windows.net/q?sv=2021-12-02\"",
            "\"http://a.queue.core.windows.net/q\"",
            "\"http://azurite:10001/devstoreaccount1/q\"",
            "\"https://sqs.eu-central-1.amazonaws.com/q\"",
            "\"https://sqs.eu-central-1.amazonaws.com/123456789012/q?x=1\"",
            "\"keyvault:q\"",
        ],
    ),
    (
        "queue.connection_string",
        &[
            "1",
            "\"\"",
            "\"AccountName=a\"",
            "\"AccountName=a;AccountKey=\"",
            "\"AccountName=a;AccountKey=not base64\"",
            "\"AccountName=a;AccountKey=a2V5;QueueEndpoint=nowhere\"",
            "\"AccountName=a;AccountKey=a2V5;DefaultEndpointsProtocol=ftp\"",
            "\"QueueEndpoint=https://a.queue.core.windows.net;SharedAccessSignature=sv=1&sig=x\"",
        ],
    ),
    ("functions.slice_seconds", &["0", "86401", "\"240\"", "1.5"]),
    ("functions.timeout_seconds", &["0", "86401", "\"600\""]),
    ("functions.lease_seconds", &["1", "3601", "\"90\""]),
    ("functions.orphan_seconds", &["0", "604801", "\"1800\""]),
    ("functions.revive_seconds", &["0", "2592001", "\"3600\""]),
    ("schedule.plan", WRONG_SCHEDULES),
    ("schedule.report", WRONG_SCHEDULES),
    (
        "serve.listen",
        &[
            "8080",
            "\"\"",
            "\"localhost:8080\"",
            "\"127.0.0.1\"",
            "\":8080\"",
        ],
    ),
    ("serve.token", &["1", "\"\"", "\" \"", "\"keyvault:t\""]),
    ("serve.workers", &["0", "101", "\"2\""]),
    ("state.enable_checkpointing", &["1", "\"true\""]),
    (
        "state.checkpoint_interval_seconds",
        &["0", "86401", "\"30\""],
    ),
    ("verification.enable_verification", &["1", "true"]),
    ("logging.local_enabled", &["1", "\"true\""]),
    ("logging.local_path", &["1", "\"\""]),
    ("logging.local_rotation", &["1", "\"weekly\""]),
    ("logging.local_max_size_mb", &["0", "100001", "\"100\""]),
    ("logging.local_max_files", &["0", "10001", "\"30\""]),
    ("state.lease_seconds", &["0", "3601", "\"15\"", "1.5"]),
    ("state.heartbeat_seconds", &["0", "1201", "\"3\""]),
    ("state.keep_runs_days", &["0", "36501", "\"90\"", "0.5"]),
    ("export.memory_mb", &["0", "4096", "\"64\"", "1.5"]),
    ("export.max_composition_mb", &["0", "4096", "\"24\""]),
    ("logging.azure_enabled", &["1", "true"]),
    ("logging.azure_tenant_id", &["1"]),
    ("logging.azure_client_id", &["1"]),
    ("logging.azure_client_secret", &["1"]),
    ("logging.azure_log_analytics_workspace_id", &["1"]),
    ("logging.azure_dcr_immutable_id", &["1"]),
    ("logging.azure_dce_endpoint", &["1"]),
    ("logging.azure_stream_name", &["1"]),
    ("anonymization.enabled", &["1", "true"]),
];

const WRONG_SCHEDULES: &[&str] = &[
    "1",
    "\"\"",
    "\"*/15 * * * *\"",
    "\"0 0 * * * * 2026\"",
    "\"00:15:00\"",
    "\"@daily\"",
    "\"61 * * * * *\"",
    "\"0 0 0 L * *\"",
    "\"0 0 0 ? * *\"",
    "\"0 0 0 30 2 *\"",
    "\"* */15 * * * *\"",
    "\"*/5 * * * * *\"",
    "\"0,55 * * * * *\"",
    "\"5,56 0,59 0,23 * * *\"",
];

#[test]
fn every_key_with_a_wrong_value_is_named_with_its_line() {
    for (key, values) in WRONG {
        for value in *values {
            let (text, expected) = with_key(key, value);
            if value.contains("9999999999") {
                // Beyond 64 bits it may already not be TOML; the line is what counts.
                assert!(
                    problems(&text).iter().any(|p| line(p) == expected),
                    "{key} = {value}"
                );
                continue;
            }
            let found = problems(&text);
            // `database_target` has one name at the root and one in `[export]`.
            let names =
                |problem: &Problem| problem.key.ends_with(key) || key.ends_with(&problem.key);
            let named = found
                .iter()
                .any(|problem| names(problem) && line(problem) == expected);
            assert!(named, "{key} = {value}: {found:?}");
        }
    }
}

#[test]
fn the_token_address_of_oidc_must_be_an_address() {
    let text = format!(
        "{MINIMAL}client_id = \"a\"\nclient_secret = \"b\"\noidc_token_url = \"nowhere\"\n"
    );
    let found = problems(&text);
    assert_eq!(
        (found[0].key.as_str(), line(&found[0])),
        ("openehr.oidc_token_url", 5)
    );
}

#[test]
fn a_misspelt_key_is_named_with_its_line_and_the_right_name() {
    for (key, _) in WRONG
        .iter()
        .filter(|(key, _)| *key != "anonymization.enabled")
    {
        let (text, line_of_key) = with_key(&format!("{key}x"), "\"x\"");
        let found = problems(&text);
        let unknown = found
            .iter()
            .find(|p| p.key == format!("{key}x"))
            .expect(key);
        assert_eq!(line(unknown), line_of_key, "{key}");
        assert!(unknown.rule.contains("unknown"), "{key}: {unknown}");
        let fix = unknown.fix.as_deref().unwrap_or_default();
        assert!(fix.contains(&format!("`{key}`")), "{key}: {unknown}");
    }
}

#[test]
fn a_section_that_does_not_exist_is_an_error_even_when_it_is_empty() {
    let found = problems(&format!("{MINIMAL}[opnehr.query]\n"));
    assert_eq!(
        (found[0].key.as_str(), line(&found[0])),
        ("opnehr.query", 3)
    );
    assert!(found[0].fix.as_deref().unwrap().contains("`openehr.query`"));
}

#[test]
fn a_key_in_the_wrong_section_is_shown_the_right_one() {
    let found = problems(&format!("{MINIMAL}batch_size = 500\n"));
    assert!(
        found[0]
            .fix
            .as_deref()
            .unwrap()
            .contains("`openehr.query.batch_size`")
    );
}

#[test]
fn a_section_written_as_a_value_and_a_value_written_as_a_section_are_explained() {
    let found = problems(&format!("sqlite = \"atlas.db\"\n{MINIMAL}"));
    assert!(found[0].to_string().contains("[sqlite]"), "{}", found[0]);
    let found = problems(&format!("{MINIMAL}[export.mode]\nfull = true\n"));
    assert!(
        found[0].to_string().contains("is a value, not a section"),
        "{}",
        found[0]
    );
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = "environment = \"moon\"\n[openehr]\ntimeout_seconds = 0\n[export]\nmode = \"delta\"\nmood = 1\n";
    let found = problems(text);
    let keys: Vec<&str> = found.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "environment",
            "openehr.timeout_seconds",
            "export.mode",
            "export.mood",
            "openehr.base_url"
        ]
    );
}

#[test]
fn what_is_not_toml_is_told_with_its_line_and_without_the_text() {
    let invalid = parse("[openehr]\npassword = \"s3cret\nbase_url = 1\n", &[]).unwrap_err();
    assert_eq!(line(&invalid.problems[0]), 2);
    assert_eq!(invalid.excerpt, None);
    assert!(!format!("{invalid} {invalid:?}").contains("s3cret"));
}

#[test]
fn a_problem_points_at_the_column_of_its_value() {
    let found = problems("[openehr]\nbase_url = \"http://x\"\ntimeout_seconds = 0\n");
    let Place::File {
        line,
        column,
        ref span,
    } = found[0].place
    else {
        panic!("{found:?}")
    };
    assert_eq!((line, column, span.len()), (3, 19, 1));
}

#[test]
fn nothing_secret_is_shown_beside_a_problem() {
    let text = "openehr = { base_url = \"https://u:s3cret@cdr/x\", password = \"s3cret\", pasword = \"s3cret\", query = { ehr_ids = [\"s3cret\", 1] }, timeout_seconds = 0 }\n[postgresql]\nconnection_string = \"postgres://u:s3cret@h/d\"\n";
    let invalid = parse(text, &[]).unwrap_err();
    assert!(invalid.problems.len() >= 4, "{invalid}");
    assert!(
        !format!("{invalid} {invalid:?}").contains("s3cret"),
        "{invalid:?}"
    );
    assert_eq!(invalid.excerpt.as_ref().unwrap().len(), text.len());
}

#[test]
fn a_wrong_address_is_shown_unless_it_holds_a_password() {
    let excerpt = |address: &str| {
        let text = format!("[openehr]\nbase_url = \"{address}\"\n");
        parse(&text, &[]).unwrap_err().excerpt.unwrap()
    };
    assert!(excerpt("ftp://cdr.example").contains("ftp://cdr.example"));
    assert!(!excerpt("ftp://u:s3cret@cdr.example").contains("s3cret"));
}

#[test]
fn settings_never_print_a_secret() {
    let text = format!("{MINIMAL}username = \"u\"\npassword = \"s3cret\"\n");
    let settings = parse(&text, &[]).unwrap();
    assert!(!format!("{settings:?}").contains("s3cret"));
}

#[test]
fn the_least_file_has_the_documented_defaults() {
    let settings = parse(MINIMAL, &[]).unwrap();
    assert_eq!(settings.openehr.base_url, "http://localhost:8080/ehrbase");
    assert!(matches!(settings.openehr.auth, Auth::None));
    assert!(settings.openehr.tls.verify);
    assert_eq!(settings.openehr.timeout, Duration::from_secs(60));
    assert_eq!(settings.query.batch_size, 1_000);
    assert_eq!(settings.query.parallel, 2);
    assert_eq!(settings.export.mode, Mode::Incremental);
    assert_eq!(settings.export.format, Format::Preserve);
    assert_eq!(settings.export.safety_lag, Duration::from_secs(60));
    assert_eq!(settings.export.overlap, Duration::from_secs(900));
    assert_eq!(settings.export.slice_size, 20_000);
    assert!(matches!(&settings.store, Store::Sqlite { path } if path.ends_with("atlas.db")));
    assert_eq!(settings.log_file, None);
    assert!(settings.notices.is_empty(), "{:?}", settings.notices);
}

#[test]
fn the_address_may_end_with_the_path_of_the_interface() {
    for end in ["", "/", "/rest/openehr/v1", "/rest/openehr/v1/"] {
        let text = format!("[openehr]\nbase_url = \"https://cdr.example/ehrbase{end}\"\n");
        let settings = parse(&text, &[]).unwrap();
        assert_eq!(
            settings.openehr.base_url, "https://cdr.example/ehrbase",
            "{end}"
        );
    }
}

#[test]
fn old_and_new_names_mean_the_same_but_must_not_disagree() {
    let settings = parse(&format!("{MINIMAL}vendor_type = \"better\"\n"), &[]).unwrap();
    assert_eq!(settings.openehr.vendor, Some(Vendor::Better));
    let both = format!("{MINIMAL}tls_verify = false\ntls_verify_certificates = false\n");
    assert!(!parse(&both, &[]).unwrap().openehr.tls.verify);
    let found = problems(&format!(
        "{MINIMAL}tls_verify = true\ntls_verify_certificates = false\n"
    ));
    assert_eq!(
        (found[0].key.as_str(), line(&found[0])),
        ("openehr.tls_verify_certificates", 4)
    );
}

#[test]
fn the_target_may_stand_at_the_root_or_under_export() {
    let section =
        "[postgresql]\nconnection_string = \"postgres://db/atlas\"\nssl_mode = \"verify-ca\"\n";
    let at_root = format!("database_target = \"postgresql\"\n{MINIMAL}{section}");
    let under_export = format!("{MINIMAL}{section}[export]\ndatabase_target = \"PostgreSQL\"\n");
    for text in [at_root, under_export] {
        match parse(&text, &[]).unwrap().store {
            Store::Postgresql(postgresql) => {
                assert_eq!(
                    postgresql.connection_string.expose_secret(),
                    "postgres://db/atlas"
                );
                assert_eq!(postgresql.ssl_mode, Some(SslMode::VerifyCa));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_variable_overrides_a_key_and_a_flag_overrides_the_variable() {
    let text = format!("{MINIMAL}[export]\nmode = \"incremental\"\n");
    assert_eq!(
        parse(&text, &[("ATLAS_EXPORT_MODE", "full")])
            .unwrap()
            .export
            .mode,
        Mode::Full
    );
    let environment = [("ATLAS_EXPORT_MODE", "full")].into_iter().collect();
    let flag = Override {
        key: "export.mode",
        flag: "--mode",
        value: "incremental".into(),
    };
    let settings = Settings::parse(
        &text,
        Path::new("atlas.toml"),
        &environment,
        std::slice::from_ref(&flag),
    )
    .unwrap();
    assert_eq!(settings.export.mode, Mode::Incremental);
    let wrong = Override {
        value: "delta".into(),
        ..flag
    };
    let invalid =
        Settings::parse(&text, Path::new("atlas.toml"), &environment, &[wrong]).unwrap_err();
    assert_eq!(invalid.problems[0].place, Place::Flag("--mode".into()));
}

#[test]
fn a_wrong_variable_is_named() {
    let invalid = parse(MINIMAL, &[("ATLAS_OPENEHR_TIMEOUT_SECONDS", "soon")]).unwrap_err();
    assert_eq!(
        invalid.problems[0].place,
        Place::Variable("ATLAS_OPENEHR_TIMEOUT_SECONDS".into())
    );
    assert_eq!(invalid.problems[0].key, "openehr.timeout_seconds");
}

#[test]
fn every_kind_of_value_can_come_from_a_variable() {
    let settings = parse(
        "",
        &[
            ("ATLAS_OPENEHR_BASE_URL", "https://cdr.example/ehrbase"),
            ("ATLAS_OPENEHR_TLS_VERIFY", "false"),
            ("ATLAS_OPENEHR_RETRY_BACKOFF_MULTIPLIER", "1.5"),
            ("ATLAS_OPENEHR_QUERY_TEMPLATE_IDS", "[\"a,b\", \"c\"]"),
            ("ATLAS_OPENEHR_QUERY_EHR_IDS", "one, two"),
            ("ATLAS_OPENEHR_QUERY_TIME_RANGE_START", "2024-01-01"),
            ("ATLAS_EXPORT_RETRY_BACKOFF_MS", "5,10"),
            ("ATLAS_EXPORT_COMPOSITION_FORMAT", "canonical"),
            ("ATLAS_DATABASE_TARGET", "sqlite"),
            ("ATLAS_SQLITE_PATH", "copy.db"),
        ],
    )
    .unwrap();
    assert!(!settings.openehr.tls.verify);
    assert_eq!(settings.openehr.retry.multiplier, 1.5);
    assert_eq!(settings.query.template_ids, ["a,b", "c"]);
    assert_eq!(settings.query.ehr_ids, ["one", "two"]);
    assert_eq!(
        settings.query.from.unwrap().to_string(),
        "2024-01-01T00:00:00.000000Z"
    );
    assert_eq!(
        settings.export.retry_backoff,
        [Duration::from_millis(5), Duration::from_millis(10)]
    );
    // No variable is stray; that the certificate is not checked is said.
    let [notice] = settings.notices.as_slice() else {
        panic!("{:?}", settings.notices)
    };
    assert!(notice.contains("`openehr.tls_verify`"), "{notice}");
}

#[test]
fn an_empty_variable_clears_a_list_and_takes_other_keys_back() {
    let text = format!("{MINIMAL}timeout_seconds = 5\n[openehr.query]\ntemplate_ids = [\"a\"]\n");
    let variables = [
        ("ATLAS_OPENEHR_QUERY_TEMPLATE_IDS", ""),
        ("ATLAS_OPENEHR_TIMEOUT_SECONDS", ""),
    ];
    let settings = parse(&text, &variables).unwrap();
    assert!(settings.query.template_ids.is_empty());
    assert_eq!(settings.openehr.timeout, Duration::from_secs(60));
}

#[test]
fn a_variable_that_looks_like_a_key_but_is_none_is_noticed() {
    let settings = parse(MINIMAL, &[("ATLAS_OPENEHR_PASWORD", "x")]).unwrap();
    let notice = settings
        .notices
        .iter()
        .find(|n| n.contains("ATLAS_OPENEHR_PASWORD"))
        .unwrap();
    assert!(
        notice.contains("did you mean ATLAS_OPENEHR_PASSWORD?"),
        "{notice}"
    );
}

#[test]
fn a_substituted_value_is_not_substituted_again() {
    let text = format!("{MINIMAL}username = \"$${{A}}-${{A}}\"\npassword = \"${{P}}\"\n");
    let variables = [("A", "${B}"), ("B", "never"), ("P", "env:B")];
    match parse(&text, &variables).unwrap().openehr.auth {
        Auth::Basic { user, password } => {
            assert_eq!(user, "${A}-${B}");
            assert_eq!(password.expose_secret(), "env:B");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_variable_is_an_error_that_names_the_key_and_the_variable() {
    let found = problems(&format!(
        "{MINIMAL}username = \"u\"\npassword = \"${{ATLAS_OPENEHR_PASSWORD}}\"\n"
    ));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].key, "openehr.password");
    assert!(found[0].rule.contains("`ATLAS_OPENEHR_PASSWORD`"));
}

#[test]
fn a_missing_variable_of_a_store_that_is_not_used_is_only_noticed() {
    let text = format!("{MINIMAL}[postgresql]\nconnection_string = \"postgres://u:${{PW}}@h/d\"\n");
    let settings = parse(&text, &[]).unwrap();
    assert!(
        settings
            .notices
            .iter()
            .any(|notice| notice.contains("`PW`"))
    );
    let found = problems(&format!("database_target = \"postgresql\"\n{text}"));
    assert_eq!(found[0].key, "postgresql.connection_string");
}

#[test]
fn a_secret_can_be_a_reference() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, "from a file\n").unwrap();
    let cases = [
        (format!("file:{}", path.display()), "from a file"),
        ("env:PW".into(), "from a variable"),
    ];
    for (reference, expected) in cases {
        let text = format!("{MINIMAL}username = \"u\"\npassword = '{reference}'\n");
        match parse(&text, &[("PW", "from a variable")])
            .unwrap()
            .openehr
            .auth
        {
            Auth::Basic { password, .. } => assert_eq!(password.expose_secret(), expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn credentials_that_are_not_complete_are_told_by_key() {
    let cases = [
        (
            "auth_type = \"basic\"",
            vec!["openehr.username", "openehr.password"],
        ),
        ("auth_type = \"bearer\"", vec!["openehr.token"]),
        (
            "auth_type = \"oidc\"",
            vec![
                "openehr.oidc_token_url",
                "openehr.client_id",
                "openehr.client_secret",
            ],
        ),
        (
            "auth_type = \"oidc\"\nusername = \"u\"",
            vec![
                "openehr.oidc_token_url",
                "openehr.client_id",
                "openehr.password",
            ],
        ),
        ("username = \"u\"", vec!["openehr.password"]),
        (
            "tls_client_cert = \"a.pem\"",
            vec!["openehr.tls_client_key"],
        ),
        (
            "tls_client_key = \"a.key\"",
            vec!["openehr.tls_client_cert"],
        ),
    ];
    for (lines, keys) in cases {
        let found = problems(&format!("{MINIMAL}{lines}\n"));
        let found: Vec<&str> = found.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(found, keys, "{lines}");
    }
}

#[test]
fn oidc_asks_for_a_user_when_there_is_one() {
    let oidc = "oidc_token_url = \"https://login.example/token\"\nclient_id = \"c\"\n";
    let user = format!("{MINIMAL}{oidc}username = \"u\"\npassword = \"p\"\n");
    let client = format!("{MINIMAL}{oidc}client_secret = \"s\"\n");
    let grant = |text: &str| match parse(text, &[]).unwrap().openehr.auth {
        Auth::Oidc(oidc) => oidc,
        other => panic!("{other:?}"),
    };
    assert!(matches!(
        grant(&user),
        Oidc {
            client_secret: None,
            user: Some(_),
            ..
        }
    ));
    assert!(matches!(
        grant(&client),
        Oidc {
            client_secret: Some(_),
            user: None,
            ..
        }
    ));
}

#[test]
fn production_refuses_what_is_unsafe() {
    let text = "environment = \"production\"\ndatabase_target = \"postgresql\"\n[openehr]\nbase_url = \"http://cdr/ehrbase\"\nusername = \"u\"\npassword = \"inline\"\ntls_verify = false\n[postgresql]\nconnection_string = \"postgres://u:inline@h/d\"\n";
    let found = problems(text);
    let keys: Vec<(&str, usize)> = found.iter().map(|p| (p.key.as_str(), line(p))).collect();
    let expected = [
        ("openehr.base_url", 4),
        ("openehr.password", 6),
        ("openehr.tls_verify", 7),
        ("postgresql.connection_string", 9),
    ];
    assert_eq!(keys, expected);
    // The same everywhere else.
    assert!(parse(&text.replace("production", "staging"), &[]).is_ok());
    // And safe values in production.
    let safe = text
        .replace("http://", "https://")
        .replace("\"inline\"", "\"${PW}\"")
        .replace("u:inline@", "u:${PW}@")
        .replace("tls_verify = false", "tls_verify = true");
    assert!(parse(&safe, &[("PW", "x")]).is_ok());
}

#[test]
fn a_time_range_must_not_be_empty() {
    let range = "[openehr.query]\ntime_range_start = 2024-02-01\ntime_range_end = \"2024-02-01T00:00:00Z\"\n";
    let found = problems(&format!("{MINIMAL}{range}"));
    assert_eq!(
        (found[0].key.as_str(), line(&found[0])),
        ("openehr.query.time_range_end", 5)
    );
}

#[test]
fn keys_without_effect_are_told_once() {
    let text = format!(
        "{MINIMAL}[state]\nenable_checkpointing = false\ncheckpoint_interval_seconds = 5\n"
    );
    let notices = parse(&text, &[]).unwrap().notices;
    assert_eq!(
        notices
            .iter()
            .filter(|notice| notice.contains("[state]"))
            .count(),
        1
    );
}

#[test]
fn a_section_of_later_is_refused_with_the_reason() {
    let found = problems(&format!("{MINIMAL}[deid]\nmethod = \"pseudonym\"\n"));
    assert_eq!((found.len(), found[0].key.as_str()), (1, "deid"));
    let found = problems(&format!(
        "{MINIMAL}[anonymization]\nenabled = true\nmode = \"gdpr\"\n"
    ));
    assert_eq!(
        (found.len(), found[0].key.as_str()),
        (1, "anonymization.enabled")
    );
    assert!(found[0].rule.contains("[deid]"));
    // A slip must not send identifiable data to the store.
    let found = problems(&format!("{MINIMAL}[anonymization]\nenable = true\n"));
    assert_eq!((found.len(), found[0].key.as_str()), (1, "anonymization"));
}

#[test]
fn a_log_folder_gets_a_file() {
    let logging = "[logging]\nlocal_enabled = true\nlocal_path = \"/var/log/atlas\"\nlocal_rotation = \"hourly\"\n";
    let file = parse(&format!("{MINIMAL}{logging}"), &[])
        .unwrap()
        .log_file
        .unwrap();
    assert_eq!(file.path, Path::new("/var/log/atlas/atlas.log"));
    assert_eq!(
        (file.rotation, file.max_size),
        (Rotation::Hourly, 100_000_000)
    );
}

#[test]
fn functions_and_schedules_have_the_numbers_of_the_suite() {
    let settings = parse(MINIMAL, &[]).unwrap();
    assert!(settings.queue.is_none());
    let expected = Functions {
        slice: suite::SLICE_BUDGET,
        timeout: suite::AZURE_TIMEOUT,
        lease: Duration::from_secs(90),
        orphan: Duration::from_secs(1_800),
        revive: Duration::from_secs(3_600),
    };
    assert_eq!(settings.functions, expected);
    assert_eq!(settings.schedule.plan.as_str(), suite::PLAN_SCHEDULE);
    assert_eq!(settings.schedule.report.as_str(), suite::REPORT_SCHEDULE);
    let serve = settings.serve;
    assert_eq!(serve.listen.to_string(), "127.0.0.1:8080");
    assert!(serve.token.is_none());
    assert_eq!(serve.workers, settings.query.parallel);
}

#[test]
fn the_address_of_a_queue_says_whose_it_is_and_how_it_lets_us_in() {
    let kind = |url: &str| {
        let settings = parse(MINIMAL, &[("ATLAS_QUEUE_URL", url)]).unwrap();
        match settings.queue.unwrap() {
            QueueAccess::Sqs { url: kept } => {
                assert_eq!(kept, url);
                "sqs"
            }
            QueueAccess::Azure { url: kept, access } => {
                assert_eq!(kept.expose_secret(), url);
                match access {
                    AzureAccess::Identity => "identity",
                    AzureAccess::Signed => "signed",
                    AzureAccess::Key { .. } => "key",
                }
            }
        }
    };
    for (url, expected) in [
        (
            "https://sqs.eu-central-1.amazonaws.com/123456789012/q",
            "sqs",
        ),
        (
            "https://eu-west-1.queue.amazonaws.com/123456789012/q",
            "sqs",
        ),
        ("http://127.0.0.1:5000/123456789012/q", "sqs"),
        ("https://a.queue.core.windows.net/q", "identity"),
        ("https://a.queue.core.usgovcloudapi.net/q", "identity"),
        ("https://127.0.0.1:10001/devstoreaccount1/q", "identity"),
        ("https://a.queue.core.windows.net/q?sv=1&sig=x", "signed"),
        (
            "http://azurite:10001/devstoreaccount1/q?sv=1&sig=x",
            "signed",
        ),
        ("http://localhost:10001/devstoreaccount1/q", "signed"),
    ] {
        assert_eq!(kind(url), expected, "{url}");
    }
}

#[test]
fn a_connection_string_leads_to_the_queue_of_work_of_its_account() {
    let queue = |text: &str| {
        let settings = parse(MINIMAL, &[("ATLAS_QUEUE_CONNECTION_STRING", text)]).unwrap();
        assert!(!format!("{settings:?}").contains("a2V5"));
        match settings.queue.unwrap() {
            QueueAccess::Azure {
                url,
                access: AzureAccess::Key { account, key },
            } => (
                url.expose_secret().to_owned(),
                account,
                key.expose_secret().to_owned(),
            ),
            other => panic!("{other:?}"),
        }
    };
    let key = "AccountKey=a2V5";
    for (text, url) in [
        (
            format!(
                "DefaultEndpointsProtocol=https;AccountName=acc;{key};EndpointSuffix=core.windows.net"
            ),
            "https://acc.queue.core.windows.net/export-work",
        ),
        (
            format!(" accountname = acc ; {key} ; EndpointSuffix=core.chinacloudapi.cn;"),
            "https://acc.queue.core.chinacloudapi.cn/export-work",
        ),
        (
            format!("AccountName=acc;{key};QueueEndpoint=http://azurite:10001/acc/"),
            "http://azurite:10001/acc/export-work",
        ),
    ] {
        let expected = (url.to_owned(), "acc".to_owned(), "a2V5".to_owned());
        assert_eq!(queue(&text), expected, "{text}");
    }
    let (url, account, _) = queue("UseDevelopmentStorage=true");
    assert_eq!(url, "http://127.0.0.1:10001/devstoreaccount1/export-work");
    assert_eq!(account, "devstoreaccount1");
}

#[test]
fn two_queues_are_one_too_many() {
    let text = format!(
        "{MINIMAL}[queue]\nurl = \"https://a.queue.core.windows.net/q\"\nconnection_string = \"UseDevelopmentStorage=true\"\n"
    );
    let found = problems(&text);
    assert_eq!(
        (found.len(), found[0].key.as_str(), line(&found[0])),
        (1, "queue.connection_string", 5)
    );
}

#[test]
fn a_queue_whose_address_is_not_there_yet_is_not_taken_for_none() {
    for value in ["env:NOT_SET", "secretsmanager:queue"] {
        let found = problems(&format!("{MINIMAL}[queue]\nurl = \"{value}\"\n"));
        assert_eq!((found.len(), found[0].key.as_str()), (1, "queue.url"));
    }
}

#[test]
fn production_keeps_keys_of_queues_out_of_the_file_and_off_plain_http() {
    let production = |queue: &str, variables: &[(&str, &str)]| {
        let text = format!(
            "environment = \"production\"\n[openehr]\nbase_url = \"https://cdr\"\n[queue]\n{queue}\n"
        );
        parse(&text, variables).map(|settings| settings.queue.is_some())
    };
    let account = "AccountName=a;AccountKey=a2V5";
    let signed = "https://a.queue.core.windows.net/q?sv=1&sig=s3cret";
    for refused in [
        format!("url = \"{signed}\""),
        "url = \"http://localhost:10001/devstoreaccount1/q\"".to_owned(),
        "url = \"http://sqs.eu-central-1.amazonaws.com/123456789012/q\"".to_owned(),
        format!("connection_string = \"{account}\""),
        "connection_string = \"${CONNECTION};DefaultEndpointsProtocol=http\"".to_owned(),
        "connection_string = \"UseDevelopmentStorage=true\"".to_owned(),
    ] {
        let invalid = production(&refused, &[("CONNECTION", account)]).unwrap_err();
        let is_here = |problem: &Problem| problem.key.starts_with("queue.") && line(problem) == 5;
        assert!(invalid.problems.iter().all(is_here), "{refused}: {invalid}");
        assert!(!format!("{invalid} {invalid:?}").contains("s3cret"));
    }
    for fine in [
        "url = \"https://a.queue.core.windows.net/q\"",
        "url = \"https://sqs.eu-central-1.amazonaws.com/123456789012/q\"",
        "url = \"env:SIGNED\"",
        "connection_string = \"env:CONNECTION\"",
    ] {
        let variables = [("SIGNED", signed), ("CONNECTION", account)];
        assert!(production(fine, &variables).unwrap(), "{fine}");
    }
}

#[test]
fn a_worker_must_end_before_its_platform_ends_it() {
    let with = |slice: u64, timeout: u64| {
        let section =
            format!("[functions]\nslice_seconds = {slice}\ntimeout_seconds = {timeout}\n");
        parse(&format!("{MINIMAL}{section}"), &[])
    };
    assert!(with(284, 300).is_ok());
    let invalid = with(285, 300).unwrap_err();
    assert_eq!(invalid.problems.len(), 1);
    assert_eq!(invalid.problems[0].key, "functions.slice_seconds");
}

#[test]
fn a_request_with_all_its_tries_must_fit_into_an_invocation_where_there_are_functions() {
    const AZURE: &str = "https://a.queue.core.windows.net/q";
    const SQS: &str = "https://sqs.eu-central-1.amazonaws.com/123456789012/q";
    /// Queue, seconds of a request, its retries, seconds of an invocation, and what the fix says, if that is not enough.
    type Case = (
        Option<&'static str>,
        u64,
        &'static str,
        Option<u64>,
        Option<&'static str>,
    );
    // The waits are 2 + 4 + 8 seconds at most, where nothing else is said.
    let cases: [Case; 22] = [
        (None, 3_600, "max_retries = 20", None, None),
        (Some(AZURE), 60, "", None, None),
        (Some(SQS), 60, "", None, None),
        (Some(AZURE), 142, "", None, None),
        (Some(AZURE), 143, "", None, Some("142")),
        (Some(SQS), 67, "", None, None),
        (Some(SQS), 68, "", None, Some("67")),
        (Some(SQS), 142, "", Some(600), None),
        (Some(SQS), 143, "", Some(600), Some("142")),
        (Some(AZURE), 67, "", Some(300), None),
        (Some(AZURE), 68, "", Some(300), Some("67")),
        (Some(AZURE), 584, "max_retries = 0", None, None),
        (Some(AZURE), 585, "max_retries = 0", None, Some("584")),
        (Some(SQS), 284, "max_retries = 0", None, None),
        (Some(SQS), 285, "max_retries = 0", None, Some("284")),
        (
            Some(AZURE),
            195,
            "max_retries = 2\ninitial_delay_ms = 1\nmax_delay_ms = 1",
            None,
            Some("194"),
        ),
        (
            Some(AZURE),
            194,
            "max_retries = 2\ninitial_delay_ms = 1\nmax_delay_ms = 1",
            None,
            None,
        ),
        // Waits of 2, 4, 8 and 16 seconds, and sixteen of 30.
        (Some(AZURE), 3, "max_retries = 20", None, None),
        (
            Some(AZURE),
            4,
            "max_retries = 20",
            None,
            Some("lower it to 3,"),
        ),
        (Some(SQS), 1, "max_retries = 20", None, Some("alone")),
        (
            Some(AZURE),
            1,
            "max_delay_ms = 600000\nbackoff_multiplier = 10.0\ninitial_delay_ms = 60000",
            None,
            Some("alone"),
        ),
        (
            Some(AZURE),
            1,
            "max_delay_ms = 200000\nbackoff_multiplier = 1.0\ninitial_delay_ms = 50000",
            None,
            None,
        ),
    ];
    for (queue, request, retry, invocation, most) in cases {
        let functions = invocation.map_or_else(String::new, |seconds| {
            format!("[functions]\ntimeout_seconds = {seconds}\n")
        });
        let text =
            format!("{MINIMAL}timeout_seconds = {request}\n[openehr.retry]\n{retry}\n{functions}");
        let variables: Vec<_> = queue
            .map(|url| ("ATLAS_QUEUE_URL", url))
            .into_iter()
            .collect();
        match (parse(&text, &variables), most) {
            (Ok(_), None) => {}
            (Err(invalid), Some(most)) => {
                assert_eq!(invalid.problems.len(), 1, "{text}");
                let problem = &invalid.problems[0];
                assert_eq!(problem.key, "openehr.timeout_seconds", "{text}");
                let fix = problem.fix.as_deref().unwrap();
                assert!(fix.contains(most), "{text}: {fix}");
                assert!(fix.contains("openehr.retry.max_retries"), "{text}: {fix}");
            }
            (answer, _) => panic!("{queue:?} {text}: {answer:?}"),
        }
    }
    // What is wrong by itself is said once.
    let text = format!("{MINIMAL}timeout_seconds = 3600\n[openehr.retry]\nmax_retries = 99\n");
    let invalid = parse(&text, &[("ATLAS_QUEUE_URL", SQS)]).unwrap_err();
    assert_eq!(invalid.problems.len(), 1);
    assert_eq!(invalid.problems[0].key, "openehr.retry.max_retries");
}

#[test]
fn a_schedule_that_fires_every_second_of_a_minute_is_explained() {
    let found = problems(&format!("{MINIMAL}[schedule]\nplan = \"* */15 * * * *\"\n"));
    assert!(
        found[0].rule.contains("fires again 1 second"),
        "{}",
        found[0]
    );
    let fix = found[0].fix.as_deref().unwrap();
    assert!(fix.contains("first field is seconds"), "{fix}");
    for fine in [
        "0 0 2 * * MON-FRI",
        "30 5,35 * * JAN,dec *",
        "*/10 * * * * *",
        "0 0 0 29 2 *",
        "0 0 3 1 * 0",
    ] {
        let text = format!("{MINIMAL}[schedule]\nreport = \"{fine}\"\n");
        assert!(parse(&text, &[]).is_ok(), "{fine}");
    }
}

#[test]
fn serving_others_than_this_machine_needs_a_token() {
    let with = |listen: &str, token: Option<&str>| {
        let variables = [
            Some(("ATLAS_SERVE_LISTEN", listen)),
            token.map(|t| ("ATLAS_SERVE_TOKEN", t)),
        ];
        let variables: Vec<_> = variables.into_iter().flatten().collect();
        parse(MINIMAL, &variables)
    };
    for listen in ["127.0.0.1:0", "127.1.2.3:80", "[::1]:8080"] {
        assert!(with(listen, None).is_ok(), "{listen}");
    }
    for listen in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:80"] {
        let invalid = with(listen, None).unwrap_err();
        assert_eq!(invalid.problems[0].key, "serve.token", "{listen}");
        let settings = with(listen, Some("s3cret")).unwrap();
        assert!(!format!("{settings:?}").contains("s3cret"));
    }
}

#[test]
fn every_example_loads() {
    let examples = atlas_machine::checkout().unwrap().join("docs/examples");
    let environment: Environment = [
        ("ATLAS_OPENEHR_USERNAME", "user"),
        ("ATLAS_OPENEHR_PASSWORD", "password"),
        ("ATLAS_OPENEHR_CLIENT_SECRET", "secret"),
        ("ATLAS_PG_PASSWORD", "password"),
        ("ATLAS_COSMOSDB_KEY", "key"),
    ]
    .into_iter()
    .collect();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_owned();
        match Settings::load(&path, &environment, &[]) {
            Ok(_) => {}
            // With a vault, they are loaded by `tests/cloud.rs`.
            Err(ConfigError::Invalid(invalid)) if name.to_string_lossy().contains("functions") => {
                let only_secrets = |problem: &Problem| problem.rule.contains("cannot read");
                assert!(invalid.problems.iter().all(only_secrets), "{invalid}");
            }
            Err(error) => panic!("{}: {error}", path.display()),
        }
        names.push(name);
    }
    names.sort();
    let expected = [
        "aws-functions.toml",
        "azure-functions.toml",
        "minimal.toml",
        "oidc.toml",
        "postgres-production.toml",
        "sqlite-quick-start.toml",
        "v2.toml",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error =
        Settings::load(Path::new("nowhere.toml"), &Environment::default(), &[]).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }));
    assert!(error.to_string().contains("nowhere.toml"));
}

#[test]
fn a_dotenv_file_adds_what_is_not_set() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join(".env"),
        "# a comment\nA=file\nB='from # file'\n",
    )
    .unwrap();
    let environment: Environment = [("A", "set")].into_iter().collect();
    let environment = environment.with_dotenv(folder.path()).unwrap();
    assert_eq!(
        (environment.get("A"), environment.get("B")),
        (Some("set"), Some("from # file"))
    );
}

#[test]
fn of_a_name_that_comes_twice_in_a_dotenv_file_the_last_value_counts() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), "A=old\nB=1\nA=new\n").unwrap();
    let environment = Environment::default().with_dotenv(folder.path()).unwrap();
    assert_eq!(environment.get("A"), Some("new"));
}

#[test]
fn a_broken_dotenv_file_is_an_error_that_shows_nothing_of_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join(".env"),
        "A=1\nPASSWORD=s3cret 'and more\n",
    )
    .unwrap();
    let error = Environment::default()
        .with_dotenv(folder.path())
        .unwrap_err();
    assert!(error.to_string().contains("entry 2"), "{error}");
    assert!(!format!("{error} {error:?}").contains("s3cret"));
}
