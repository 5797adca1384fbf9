//! Every key of the reference does something: with another value the settings are other ones, or are refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use atlas_cdr::Auth;
use atlas_runtime::settings::{AzureAccess, QueueAccess, Settings, Store};
use secrecy::{ExposeSecret, SecretString};

const OPENEHR: &str = "[openehr]\nbase_url = \"http://localhost:8080/ehrbase\"\n";
const BASIC: &str = "username = \"u\"\npassword = \"p\"\n";
const OIDC: &str =
    "oidc_token_url = \"https://login.example.org/t\"\nclient_id = \"c\"\nclient_secret = \"s\"\n";
const POSTGRESQL: &str = "[postgresql]\nconnection_string = \"host=h\"\n";
const OTHER_POSTGRESQL: &str = "database_target = \"postgresql\"\n";
const QUEUE: &str = "https://a.queue.core.windows.net/q";
const TLS: &str = "tls_client_cert = \"a.pem\"\ntls_client_key = \"a.key\"\n";
const LOG: &str = "[logging]\nlocal_enabled = true\n";

/// A key, a value other than its default, and the file around it: lines of the root, of `[openehr]`, and further sections.
type Line = (&'static str, &'static str, [&'static str; 3]);

const EMPTY: [&str; 3] = ["", "", ""];
const WITH_POSTGRESQL: [&str; 3] = [OTHER_POSTGRESQL, "", POSTGRESQL];
const WITH_LOG: [&str; 3] = ["", "", LOG];

const KEYS: &[Line] = &[
    (
        "environment",
        "\"production\"",
        ["", "tls_verify = false\n", ""],
    ),
    ("database_target", "\"postgresql\"", ["", "", POSTGRESQL]),
    (
        "export.database_target",
        "\"postgresql\"",
        ["", "", POSTGRESQL],
    ),
    ("application.log_level", "\"debug\"", EMPTY),
    ("application.dry_run", "true", EMPTY),
    ("openehr.base_url", "\"http://localhost/other\"", EMPTY),
    ("openehr.vendor", "\"ehrbase\"", EMPTY),
    ("openehr.vendor_type", "\"ehrbase\"", EMPTY),
    ("openehr.auth_type", "\"none\"", ["", BASIC, ""]),
    ("openehr.username", "\"other\"", ["", BASIC, ""]),
    ("openehr.password", "\"other\"", ["", BASIC, ""]),
    ("openehr.token", "\"other\"", EMPTY),
    (
        "openehr.oidc_token_url",
        "\"https://other.example.org/t\"",
        ["", OIDC, ""],
    ),
    ("openehr.client_id", "\"other\"", ["", OIDC, ""]),
    ("openehr.client_secret", "\"other\"", ["", OIDC, ""]),
    ("openehr.scope", "\"other\"", ["", OIDC, ""]),
    ("openehr.tls_verify", "false", EMPTY),
    ("openehr.tls_verify_certificates", "false", EMPTY),
    ("openehr.tls_ca_cert", "\"a.pem\"", EMPTY),
    ("openehr.tls_client_cert", "\"other.pem\"", ["", TLS, ""]),
    ("openehr.tls_client_key", "\"other.key\"", ["", TLS, ""]),
    ("openehr.timeout_seconds", "7", EMPTY),
    ("openehr.max_clock_skew_seconds", "7", EMPTY),
    ("openehr.retry.max_retries", "7", EMPTY),
    ("openehr.retry.initial_delay_ms", "7", EMPTY),
    ("openehr.retry.max_delay_ms", "40000", EMPTY),
    ("openehr.retry.backoff_multiplier", "3.5", EMPTY),
    ("openehr.query.template_ids", "[\"t\"]", EMPTY),
    ("openehr.query.ehr_ids", "[\"e\"]", EMPTY),
    ("openehr.query.time_range_start", "\"2024-01-01\"", EMPTY),
    ("openehr.query.time_range_end", "\"2024-01-01\"", EMPTY),
    ("openehr.query.batch_size", "7", EMPTY),
    ("openehr.query.parallel", "7", EMPTY),
    ("openehr.query.parallel_ehrs", "7", EMPTY),
    ("export.mode", "\"full\"", EMPTY),
    ("export.export_composition_format", "\"canonical\"", EMPTY),
    ("export.ids", "\"template\"", EMPTY),
    ("export.verify_flat_sample", "7", EMPTY),
    ("export.max_retries", "7", EMPTY),
    ("export.retry_backoff_ms", "[7]", EMPTY),
    ("export.shutdown_timeout_secs", "7", EMPTY),
    ("export.dry_run", "true", EMPTY),
    ("export.safety_lag_seconds", "7", EMPTY),
    ("export.overlap_seconds", "7", EMPTY),
    ("export.slice_size", "7", EMPTY),
    ("export.memory_mb", "7", EMPTY),
    ("export.max_composition_mb", "7", EMPTY),
    ("export.history", "\"all\"", EMPTY),
    ("export.on_delete", "\"delete\"", EMPTY),
    ("sqlite.path", "\"other.db\"", EMPTY),
    (
        "postgresql.connection_string",
        "\"host=other\"",
        WITH_POSTGRESQL,
    ),
    ("postgresql.max_connections", "7", WITH_POSTGRESQL),
    (
        "postgresql.connection_timeout_seconds",
        "7",
        WITH_POSTGRESQL,
    ),
    ("postgresql.statement_timeout_seconds", "7", WITH_POSTGRESQL),
    ("postgresql.ssl_mode", "\"disable\"", WITH_POSTGRESQL),
    ("postgresql.ssl_root_cert", "\"a.pem\"", WITH_POSTGRESQL),
    ("postgresql.schema", "\"other\"", WITH_POSTGRESQL),
    ("queue.url", "\"https://a.queue.core.windows.net/q\"", EMPTY),
    (
        "queue.connection_string",
        "\"AccountName=a;AccountKey=a2V5\"",
        EMPTY,
    ),
    ("state.lease_seconds", "30", EMPTY),
    ("state.heartbeat_seconds", "2", EMPTY),
    ("state.keep_runs_days", "7", EMPTY),
    ("functions.slice_seconds", "7", EMPTY),
    ("functions.timeout_seconds", "700", EMPTY),
    ("functions.lease_seconds", "7", EMPTY),
    ("functions.orphan_seconds", "7", EMPTY),
    ("functions.revive_seconds", "7", EMPTY),
    ("schedule.plan", "\"0 0 * * * *\"", EMPTY),
    ("schedule.report", "\"0 0 * * * *\"", EMPTY),
    ("serve.listen", "\"127.0.0.1:7\"", EMPTY),
    ("serve.token", "\"other\"", EMPTY),
    ("serve.workers", "7", EMPTY),
    ("logging.local_enabled", "true", EMPTY),
    ("logging.local_path", "\"other\"", WITH_LOG),
    ("logging.local_rotation", "\"hourly\"", WITH_LOG),
    ("logging.local_max_size_mb", "7", WITH_LOG),
    ("logging.local_max_files", "7", WITH_LOG),
    ("logging.azure_enabled", "true", EMPTY),
    ("state.enable_checkpointing", "false", EMPTY),
    ("state.checkpoint_interval_seconds", "7", EMPTY),
    ("verification.enable_verification", "true", EMPTY),
    ("anonymization.enabled", "true", EMPTY),
];

/// What files of v2 hold and what is checked for a store or a log that is still to come: the reference says so of each.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("application.name", "informative"),
    ("application.version", "informative"),
    ("cosmosdb.", "Checked, but not used yet."),
    ("logging.azure_", "the keys below are checked only"),
];

fn without_effect(key: &str) -> Option<&'static str> {
    let mut all = WITHOUT_EFFECT.iter();
    all.find(|(prefix, _)| key.starts_with(prefix))
        .map(|(_, said)| *said)
}

fn reference() -> String {
    let path = atlas_machine::checkout()
        .unwrap()
        .join("docs/configuration.md");
    std::fs::read_to_string(path).unwrap()
}

fn documented(reference: &str) -> BTreeSet<&str> {
    let keys = reference
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0));
    let is_key = |key: &&str| {
        *key != ".env"
            && key
                .chars()
                .all(|c| c.is_ascii_lowercase() || matches!(c, '.' | '_'))
    };
    keys.filter(is_key).collect()
}

/// A file as TOML has it, so that one key can be put where it belongs.
fn file([root, openehr, sections]: [&str; 3]) -> toml::Table {
    format!("{root}{OPENEHR}{openehr}{sections}")
        .parse()
        .unwrap()
}

fn with(mut file: toml::Table, key: &str, value: &str) -> toml::Table {
    let value: toml::Table = format!("value = {value}").parse().unwrap();
    let mut path: Vec<&str> = key.split('.').collect();
    let name = path.pop().unwrap();
    let mut section = &mut file;
    for part in path {
        let entry = section
            .entry(part)
            .or_insert_with(|| toml::Table::new().into());
        section = entry.as_table_mut().unwrap();
    }
    section.insert(name.to_owned(), value["value"].clone());
    file
}

/// Everything that settings say, secrets included; or that they are refused.
fn said(file: &toml::Table) -> String {
    let environment = atlas_runtime::Environment::default();
    let settings = match Settings::parse(
        &file.to_string(),
        Path::new("atlas.toml"),
        &environment,
        &[],
    ) {
        Ok(settings) => settings,
        Err(invalid) => return invalid.to_string(),
    };
    let mut secrets: Vec<&SecretString> = settings.serve.token.iter().collect();
    match &settings.openehr.auth {
        Auth::None => {}
        Auth::Basic { password, .. } => secrets.push(password),
        Auth::Bearer { token } => secrets.push(token),
        Auth::Oidc(oidc) => {
            secrets.extend(&oidc.client_secret);
            secrets.extend(oidc.user.as_ref().map(|(_, password)| password));
        }
    }
    if let Store::Postgresql(config) = &settings.store {
        secrets.push(&config.connection_string);
    }
    if let Some(QueueAccess::Azure { url, access }) = &settings.queue {
        secrets.push(url);
        if let AzureAccess::Key { key, .. } = access {
            secrets.push(key);
        }
    }
    let mut said = format!("{settings:?}");
    for secret in secrets {
        write!(said, " {}", secret.expose_secret()).unwrap();
    }
    said
}

#[test]
fn every_key_of_the_reference_does_something() {
    let reference = reference();
    let tried: BTreeSet<&str> = KEYS.iter().map(|(key, ..)| *key).collect();
    for key in documented(&reference) {
        match without_effect(key) {
            Some(reason) => assert!(reference.contains(reason), "{key}"),
            None => assert!(tried.contains(key), "nobody knows what `{key}` does"),
        }
    }
    for (key, value, around) in KEYS {
        assert!(
            documented(&reference).contains(key),
            "{key} has no line in the reference"
        );
        let before = said(&file(*around));
        let after = said(&with(file(*around), key, value));
        assert!(!before.contains("problem"), "{key}: {before}");
        assert_ne!(before, after, "{key} = {value} changes nothing");
    }
    assert!(!said(&file(["", "", &format!("[queue]\nurl = \"{QUEUE}\"\n")])).contains("problem"));
}

/// What settings say is of use only if somebody asks for it.
#[test]
fn every_field_of_the_settings_is_read_by_the_programs() {
    let root = atlas_machine::checkout().unwrap();
    let mut sources = String::new();
    for folder in [
        "shared/runtime/src",
        "shared/cdr/src",
        "shared/stores/postgres/src",
        "local/atlas/src",
        "functions",
    ] {
        collect(&root.join(folder), &mut sources);
    }
    let settings = root.join("shared/runtime/src/settings.rs");
    let text = std::fs::read_to_string(settings).unwrap();
    let (definitions, _) = text.split_once("\nimpl Settings").unwrap();
    let field = |line: &str| {
        let name = line.strip_prefix("    pub ")?.split_once(':')?.0;
        name.chars()
            .all(|c| c.is_ascii_lowercase() || c == '_')
            .then(|| name.to_owned())
    };
    let fields: BTreeSet<String> = definitions.lines().filter_map(field).collect();
    assert!(fields.len() > 30, "{fields:?}");
    for field in fields {
        let is_read = sources
            .match_indices(&format!(".{field}"))
            .any(|(at, found)| {
                let next = sources[at + found.len()..].chars().next();
                !next.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '(')
            });
        assert!(is_read, "nobody reads the field `{field}`");
    }
}

/// All Rust below a folder, but for what reads the file and for tests.
fn collect(folder: &Path, sources: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "settings" | "tests") {
                collect(&path, sources);
            }
        } else if name.ends_with(".rs") && name != "settings.rs" {
            sources.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}
