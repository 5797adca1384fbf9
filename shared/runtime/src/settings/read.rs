//! From keys to settings, section by section: each default, range and rule stands here, once.
//!
//! A reading function answers `None` when it recorded a problem.

use std::path::{Path, PathBuf};
use std::time::Duration;

use atlas_cdr::{Auth, Config, Oidc, Retry, Tls, Vendor};
use atlas_engine::model::{Format, Mode};
use atlas_openehr::flat::Ids;
use atlas_store_postgres as postgres;
use atlas_store_sqlite::check_path;
use secrecy::ExposeSecret;
use url::Url;

use super::functions;
use super::mask::Mask;
use super::problem::Place;
use super::reader::{Reader, Secret, Text};
use super::safety::Safety;
use super::{Export, LogFile, LogLevel, Query, Rotation, Settings, Stage, State, Store, Target};

pub(super) const DAY: i64 = 24 * 3_600;

/// The store that is asked for.
pub(super) fn target(reader: &mut Reader<'_>) -> Option<Target> {
    let options = [
        ("sqlite", Target::Sqlite),
        ("postgresql", Target::Postgresql),
        ("cosmosdb", Target::Later("cosmosdb")),
        ("lake", Target::Later("lake")),
    ];
    let keys = ["database_target", "export.database_target"];
    let (target, place) = reader.choice(&keys, Target::Sqlite, &options)?;
    if let Target::Later(name) = target {
        let rule = format!("asks for `{name}`, which this version does not have yet");
        reader.problem(
            keys[0],
            place,
            rule,
            Some("use `sqlite` or `postgresql`".into()),
        );
    }
    Some(target)
}

/// Everything. All sections are read, whatever is wrong with the one before.
pub(super) fn settings(reader: &mut Reader<'_>, target: Option<Target>) -> Option<Settings> {
    let stages = [
        ("development", Stage::Development),
        ("staging", Stage::Staging),
        ("production", Stage::Production),
    ];
    let stage = reader
        .choice(&["environment"], Stage::Development, &stages)
        .map(|(s, _)| s);
    let safety = Safety::of(stage);
    let levels = LogLevel::ALL.map(|level| (level.name(), level));
    let log_level = reader.choice(&["application.log_level"], LogLevel::Info, &levels);
    // Informative, for people who read the file.
    reader.text("application.name");
    reader.text("application.version");

    let query = query(reader);
    let export = export(reader);
    let max_composition = megabytes(reader, "export.max_composition_mb", 24);
    let openehr = openehr(reader, safety, query.parallel, max_composition);
    let queue = functions::queue(reader, safety);
    let functions = functions::functions(reader, queue.as_ref().and_then(Option::as_ref));
    if let (Some(openehr), Some(Some(_))) = (&openehr, &queue) {
        functions::fits(reader, &functions, openehr);
    }
    let schedule = functions::schedule(reader);
    let serve = functions::serve(reader, safety, query.parallel);
    let state = state(reader);
    let sqlite = sqlite(reader);
    let postgresql = postgresql(reader, safety, target == Some(Target::Postgresql));
    cosmosdb(reader, safety);
    let log_file = logging(reader, safety);
    without_effect(reader);
    replaced(reader);

    let store = match target? {
        Target::Sqlite => Store::Sqlite { path: sqlite? },
        Target::Postgresql => Store::Postgresql(postgresql?),
        Target::Later(_) => return None,
    };
    Some(Settings {
        log_level: log_level?.0,
        openehr: openehr?,
        query,
        export: export?,
        store,
        queue: queue?,
        functions,
        schedule: schedule?,
        serve: serve?,
        state,
        log_file: log_file?,
        mask: Mask::default(),
        notices: Vec::new(),
    })
}

fn openehr(
    reader: &mut Reader<'_>,
    safety: Safety,
    parallel: usize,
    max_composition: usize,
) -> Option<Config> {
    let base_url = base_url(reader, safety);
    let vendors = [
        ("ehrbase", Some(Vendor::EhrBase)),
        ("better", Some(Vendor::Better)),
        ("ocean", Some(Vendor::Ocean)),
    ];
    let vendor = reader.choice(&["openehr.vendor", "openehr.vendor_type"], None, &vendors);
    let auth = auth(reader, safety);
    let tls = tls(reader, safety);
    let timeout = reader.seconds("openehr.timeout_seconds", 60, 1..=3_600);
    let max_clock_skew = reader.seconds("openehr.max_clock_skew_seconds", 300, 1..=DAY);
    let retry = retry(reader);
    Some(Config {
        vendor: vendor?.0,
        auth: auth?,
        tls,
        timeout,
        retry,
        parallel,
        body_limit: max_composition,
        max_clock_skew,
        ..Config::new(base_url?)
    })
}

/// The address without `/rest/openehr/v1` and without a slash at the end.
fn base_url(reader: &mut Reader<'_>, safety: Safety) -> Option<String> {
    const KEY: &str = "openehr.base_url";
    let Some(Text { value, place }) = reader.address(KEY) else {
        if !reader.has_problem(KEY) {
            reader.required(KEY, "is missing: the address of the openEHR server");
        }
        return None;
    };
    let mut url = http_url(reader, KEY, &value, &place)?;
    if url.query().is_some() || url.fragment().is_some() {
        reader.problem(
            KEY,
            place,
            "must end with the path",
            Some("leave out what follows `?` or `#`".into()),
        );
        return None;
    }
    let path = url.path().trim_end_matches('/');
    let path = path
        .strip_suffix("/rest/openehr/v1")
        .unwrap_or(path)
        .to_owned();
    url.set_path(&path);
    safety.url(reader, KEY, &url, place);
    Some(url.as_str().trim_end_matches('/').to_owned())
}

fn http_url(reader: &mut Reader<'_>, key: &str, text: &str, place: &Place) -> Option<Url> {
    let example = "write it as https://cdr.example.org/ehrbase";
    let url = match Url::parse(text.trim()) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => {
            reader.problem(
                key,
                place.clone(),
                "must be an http or https address",
                Some(example.into()),
            );
            return None;
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        let fix = "write them in `username` and `password`";
        reader.problem(
            key,
            place.clone(),
            "must not hold a user name or password",
            Some(fix.into()),
        );
        return None;
    }
    Some(url)
}

#[derive(Clone, Copy, PartialEq)]
enum AuthType {
    None,
    Basic,
    Bearer,
    Oidc,
}

fn auth(reader: &mut Reader<'_>, safety: Safety) -> Option<Auth> {
    let user = reader.text("openehr.username").map(|text| text.value);
    let password = reader.secret("openehr.password");
    let password = safety.secret(reader, "openehr.password", password);
    let token = reader.secret("openehr.token");
    let token = safety.secret(reader, "openehr.token", token);
    let token_url = reader.address("openehr.oidc_token_url");
    let client_id = reader.text("openehr.client_id").map(|text| text.value);
    let client_secret = reader.secret("openehr.client_secret");
    let client_secret = safety.secret(reader, "openehr.client_secret", client_secret);
    let scope = reader.text("openehr.scope").map(|text| text.value);

    // Without `auth_type`, the credentials that are there say which one is meant.
    // A token that could not be had yet counts as one.
    let default = if token_url.is_some() {
        AuthType::Oidc
    } else if token.is_some() || reader.has_problem("openehr.token") {
        AuthType::Bearer
    } else if user.is_some() {
        AuthType::Basic
    } else {
        AuthType::None
    };
    let types = [
        ("basic", AuthType::Basic),
        ("oidc", AuthType::Oidc),
        ("bearer", AuthType::Bearer),
        ("none", AuthType::None),
    ];
    let (auth_type, _) = reader.choice(&["openehr.auth_type"], default, &types)?;
    let mut needed = |key: &'static str, is_set: bool| {
        if !is_set && !reader.has_problem(key) {
            reader.required(key, "is missing for the chosen `openehr.auth_type`");
        }
    };
    match auth_type {
        AuthType::None => Some(Auth::None),
        AuthType::Basic => {
            needed("openehr.username", user.is_some());
            needed("openehr.password", password.is_some());
            Some(Auth::Basic {
                user: user?,
                password: password?,
            })
        }
        AuthType::Bearer => {
            needed("openehr.token", token.is_some());
            Some(Auth::Bearer { token: token? })
        }
        AuthType::Oidc => {
            needed("openehr.oidc_token_url", token_url.is_some());
            needed("openehr.client_id", client_id.is_some());
            match &user {
                Some(_) => needed("openehr.password", password.is_some()),
                None => needed("openehr.client_secret", client_secret.is_some()),
            }
            let Text { value, place } = token_url?;
            let token_url = http_url(reader, "openehr.oidc_token_url", &value, &place)?;
            safety.url(reader, "openehr.oidc_token_url", &token_url, place);
            let user = match user {
                Some(user) => Some((user, password?)),
                None => None,
            };
            if user.is_none() && client_secret.is_none() {
                return None;
            }
            Some(Auth::Oidc(Oidc {
                token_url: token_url.into(),
                client_id: client_id?,
                client_secret,
                scope,
                user,
            }))
        }
    }
}

fn tls(reader: &mut Reader<'_>, safety: Safety) -> Tls {
    let keys = ["openehr.tls_verify", "openehr.tls_verify_certificates"];
    let (verify, place) = reader.boolean(&keys, true);
    safety.tls_verify(reader, keys[0], verify, place);
    let ca_cert = reader.path("openehr.tls_ca_cert");
    let client_cert = reader.path("openehr.tls_client_cert");
    let client_key = reader.path("openehr.tls_client_key");
    match (&client_cert, &client_key) {
        (Some(_), None) => {
            let rule = "is missing beside `openehr.tls_client_cert`";
            reader.required("openehr.tls_client_key", rule);
        }
        (None, Some(_)) => {
            let rule = "is missing beside `openehr.tls_client_key`";
            reader.required("openehr.tls_client_cert", rule);
        }
        _ => {}
    }
    Tls {
        verify,
        ca_cert,
        client_cert,
        client_key,
    }
}

fn retry(reader: &mut Reader<'_>) -> Retry {
    let retry = Retry {
        max_retries: reader.number("openehr.retry.max_retries", 3, 0..=20),
        initial_delay: reader.millis("openehr.retry.initial_delay_ms", 1_000, 1..=600_000),
        max_delay: reader.millis("openehr.retry.max_delay_ms", 30_000, 1..=600_000),
        multiplier: reader.decimal("openehr.retry.backoff_multiplier", 2.0, 1.0..=10.0),
    };
    if retry.max_delay < retry.initial_delay && !reader.has_problem("openehr.retry.max_delay_ms") {
        let rule = "must be at least `openehr.retry.initial_delay_ms`";
        reader.problem("openehr.retry.max_delay_ms", Place::Nowhere, rule, None);
    }
    retry
}

fn query(reader: &mut Reader<'_>) -> Query {
    let template_ids = reader
        .list("openehr.query.template_ids")
        .unwrap_or_default();
    reader.hide("openehr.query.ehr_ids");
    let ehr_ids = reader.list("openehr.query.ehr_ids").unwrap_or_default();
    let from = reader.instant("openehr.query.time_range_start");
    let to = reader.instant("openehr.query.time_range_end");
    if let (Some((from, _)), Some((to, place))) = (&from, &to)
        && from >= to
    {
        let rule = "must be later than `openehr.query.time_range_start`";
        reader.problem("openehr.query.time_range_end", place.clone(), rule, None);
    }
    Query {
        template_ids,
        ehr_ids,
        from: from.map(|(instant, _)| instant),
        to: to.map(|(instant, _)| instant),
        batch_size: reader.number("openehr.query.batch_size", 1_000, 1..=5_000),
        // v2 had 8. Two already take what the server has to give, and more cost memory.
        parallel: reader.number_any(
            &["openehr.query.parallel", "openehr.query.parallel_ehrs"],
            2,
            1..=100,
        ),
    }
}

fn export(reader: &mut Reader<'_>) -> Option<Export> {
    let modes = [("incremental", Mode::Incremental), ("full", Mode::Full)];
    let mode = reader.choice(&["export.mode"], Mode::Incremental, &modes);
    let format = format(reader);
    let ids = [("ehrbase", Ids::Ehrbase), ("template", Ids::Template)];
    let ids = reader.choice(&["export.ids"], Ids::Ehrbase, &ids);
    let (asked, _) = reader.boolean(&["export.dry_run"], false);
    let (asked_before, _) = reader.boolean(&["application.dry_run"], false);
    only(reader, "export.history", "latest", &["all"]);
    only(reader, "export.on_delete", "mark", &["delete", "ignore"]);
    let export = Export {
        mode: mode?.0,
        format: format?,
        ids: ids?.0,
        verify_flat_sample: reader.number("export.verify_flat_sample", 0, 0..=10_000),
        max_retries: reader.number("export.max_retries", 3, 0..=20),
        retry_backoff: reader.durations_ms("export.retry_backoff_ms", &[1_000, 2_000, 4_000]),
        shutdown_timeout: reader.seconds("export.shutdown_timeout_secs", 30, 1..=3_600),
        dry_run: asked || asked_before,
        safety_lag: reader.seconds("export.safety_lag_seconds", 60, 0..=DAY),
        overlap: reader.seconds("export.overlap_seconds", 900, 0..=7 * DAY),
        slice_size: reader.number("export.slice_size", 20_000, 1..=10_000_000),
        memory: megabytes(reader, "export.memory_mb", 64),
    };
    if export.verify_flat_sample > 0 && export.format == Format::Canonical {
        reader.notice("`export.verify_flat_sample` has no effect with the format `canonical`");
    }
    Some(export)
}

/// Bytes; the key counts in 1,048,576 of them.
fn megabytes(reader: &mut Reader<'_>, key: &'static str, default: usize) -> usize {
    reader.number::<usize>(key, default, 1..=4_095) << 20
}

/// The lease of a run. A heartbeat that nobody set follows a short lease, so that two of them can be lost.
fn state(reader: &mut Reader<'_>) -> State {
    const HEARTBEAT: &str = "state.heartbeat_seconds";
    const BEATS: u32 = 3;
    let lease = reader.seconds("state.lease_seconds", 15, 1..=3_600);
    let days: u32 = reader.number("state.keep_runs_days", 90, 1..=36_500);
    let keep_runs = Duration::from_secs(u64::from(days) * DAY.unsigned_abs());
    let most = lease / BEATS;
    if !reader.is_set(HEARTBEAT) {
        let heartbeat = reader.seconds(HEARTBEAT, 3, 1..=1_200).min(most);
        return State {
            lease,
            heartbeat,
            keep_runs,
        };
    }
    let heartbeat = reader.seconds(HEARTBEAT, 3, 1..=1_200);
    if heartbeat > most && !reader.has_problem(HEARTBEAT) {
        let rule = "must be at most a third of `state.lease_seconds`";
        let fix = "or one lost heartbeat gives the run to another process";
        reader.problem(HEARTBEAT, Place::Nowhere, rule, Some(fix.into()));
    }
    State {
        lease,
        heartbeat,
        keep_runs,
    }
}

fn format(reader: &mut Reader<'_>) -> Option<Format> {
    const KEYS: [&str; 1] = ["export.export_composition_format"];
    let options = [
        ("preserve", Some(Format::Preserve)),
        ("flatten", Some(Format::Flatten)),
        ("canonical", Some(Format::Canonical)),
        // Not made yet.
        ("tables", None),
    ];
    let (format, place) = reader.choice(&KEYS, Some(Format::Preserve), &options)?;
    if format.is_none() {
        let rule = "asks for typed tables, which this version does not have yet";
        let fix = "use `preserve`, `flatten` or `canonical`";
        reader.problem(KEYS[0], place, rule, Some(fix.into()));
    }
    format
}

/// A key that knows one value so far.
fn only(reader: &mut Reader<'_>, key: &'static str, value: &'static str, later: &[&'static str]) {
    let options: Vec<_> = [(value, true)]
        .into_iter()
        .chain(later.iter().map(|word| (*word, false)))
        .collect();
    if let Some((false, place)) = reader.choice(&[key], true, &options) {
        let rule = "asks for what this version does not have yet";
        reader.problem(key, place, rule, Some(format!("use `{value}`")));
    }
}

fn sqlite(reader: &mut Reader<'_>) -> Option<PathBuf> {
    const KEY: &str = "sqlite.path";
    let Some(Text { value, place }) = reader.text(KEY) else {
        let is_wrong = reader.has_problem(KEY);
        return (!is_wrong).then(|| one_name(PathBuf::from("atlas.db")));
    };
    if let Err(rule) = check_path(Path::new(&value)) {
        let fix = "write the path of a file, as `data/atlas.db`";
        reader.problem(KEY, place, rule.to_string(), Some(fix.into()));
        return None;
    }
    Some(one_name(PathBuf::from(value)))
}

/// The one name of a file that others may reach through symbolic links, and that may still have to be made. A path that leads
/// nowhere stays as it is: the store says what is wrong with it.
fn one_name(mut path: PathBuf) -> PathBuf {
    // As many as Linux follows.
    const MOST_LINKS: usize = 40;
    for _ in 0..MOST_LINKS {
        if let Ok(found) = std::fs::canonicalize(&path) {
            return found;
        }
        let Ok(target) = std::fs::read_link(&path) else {
            break;
        };
        path = folder(&path).join(target);
    }
    match (std::fs::canonicalize(folder(&path)), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn postgresql(
    reader: &mut Reader<'_>,
    safety: Safety,
    is_target: bool,
) -> Option<postgres::Config> {
    const CONNECTION: &str = "postgresql.connection_string";
    let connection = reader.secret(CONNECTION);
    if let Some(secret) = &connection {
        let secrets = |text: &str| postgres::Config::new(text.into()).secrets();
        for secret in secrets(secret.value.expose_secret()) {
            reader.mask(&secret);
        }
        safety.check_written(reader, CONNECTION, secret, secrets);
    }
    if connection.is_none() && is_target && !reader.has_problem(CONNECTION) {
        reader.required(CONNECTION, "is missing: how to reach the PostgreSQL server");
    }
    let modes = postgres::SslMode::ALL.map(|mode| (mode.name(), Some(mode)));
    let max_connections = reader.number("postgresql.max_connections", 20, 1..=1_000);
    let connection_timeout = reader.seconds("postgresql.connection_timeout_seconds", 30, 1..=3_600);
    let statement_timeout = reader.seconds("postgresql.statement_timeout_seconds", 60, 1..=DAY);
    let ssl_mode = reader.choice(&["postgresql.ssl_mode"], None, &modes);
    let ssl_root_cert = reader.path("postgresql.ssl_root_cert");
    let schema = reader.text("postgresql.schema");
    if let Some(Text { value, place }) = &schema
        && (value.is_empty() || value.len() > 63 || value.contains('\0'))
    {
        reader.problem(
            "postgresql.schema",
            place.clone(),
            "must be a name of 1 to 63 bytes",
            None,
        );
    }
    let (ssl_mode, ssl_mode_place) = ssl_mode?;
    let Secret { value, place, .. } = connection?;
    let config = postgres::Config {
        max_connections,
        connection_timeout,
        statement_timeout,
        ssl_mode,
        ssl_root_cert,
        schema: schema.map(|text| text.value),
        ..postgres::Config::new(value)
    };
    if is_target {
        match (config.endpoints(), ssl_mode) {
            (Ok(endpoints), Some(_)) => {
                safety.ssl_mode(reader, "postgresql.ssl_mode", ssl_mode_place, &endpoints);
            }
            (Ok(endpoints), None) => safety.ssl_mode(reader, CONNECTION, place, &endpoints),
            (Err(error), _) => {
                let rule = format!("cannot be used: {error}");
                reader.problem(CONNECTION, place, rule, Some(error.fix()));
            }
        }
    }
    Some(config)
}

/// Checked, so that a file with this section stays right; used once the store exists.
fn cosmosdb(reader: &mut Reader<'_>, safety: Safety) {
    if let Some(Text { value, place }) = reader.address("cosmosdb.endpoint") {
        http_url(reader, "cosmosdb.endpoint", &value, &place)
            .inspect(|url| safety.url(reader, "cosmosdb.endpoint", url, place));
    }
    let key = reader.secret("cosmosdb.key");
    safety.secret(reader, "cosmosdb.key", key);
    for key in [
        "cosmosdb.database_name",
        "cosmosdb.control_container",
        "cosmosdb.data_container_prefix",
        "cosmosdb.partition_key",
    ] {
        reader.text(key);
    }
    reader.number("cosmosdb.max_concurrency", 10, 1..=1_000);
    reader.seconds("cosmosdb.request_timeout_seconds", 60, 1..=3_600);
}

/// The log file, if one is wanted.
fn logging(reader: &mut Reader<'_>, safety: Safety) -> Option<Option<LogFile>> {
    let (enabled, _) = reader.boolean(&["logging.local_enabled"], false);
    let path = reader.path("logging.local_path");
    let rotations = [
        ("hourly", Rotation::Hourly),
        ("daily", Rotation::Daily),
        ("never", Rotation::Never),
    ];
    let rotation = reader.choice(&["logging.local_rotation"], Rotation::Daily, &rotations);
    let max_size_mb: usize = reader.number("logging.local_max_size_mb", 100, 1..=100_000);
    let keep = reader.number("logging.local_max_files", 30, 1..=10_000);

    let (azure, place) = reader.boolean(&["logging.azure_enabled"], false);
    if azure {
        let rule = "asks for Azure Monitor, which this version cannot write to yet";
        let fix = "set it to false and use `local_enabled`";
        reader.problem("logging.azure_enabled", place, rule, Some(fix.into()));
    }
    let secret = reader.secret("logging.azure_client_secret");
    safety.secret(reader, "logging.azure_client_secret", secret);
    for key in [
        "logging.azure_tenant_id",
        "logging.azure_client_id",
        "logging.azure_log_analytics_workspace_id",
        "logging.azure_dcr_immutable_id",
        "logging.azure_dce_endpoint",
        "logging.azure_stream_name",
    ] {
        reader.text(key);
    }

    let (rotation, _) = rotation?;
    let path = path.unwrap_or_else(|| PathBuf::from("logs"));
    // v2 named a folder here.
    let path = if path.extension().is_none() {
        path.join("atlas.log")
    } else {
        path
    };
    let file = LogFile {
        path,
        rotation,
        max_size: max_size_mb * 1_000_000,
        keep,
    };
    Some(enabled.then_some(file))
}

fn without_effect(reader: &mut Reader<'_>) {
    let before = reader.is_set("state.enable_checkpointing")
        || reader.is_set("state.checkpoint_interval_seconds");
    reader.boolean(&["state.enable_checkpointing"], true);
    reader.seconds("state.checkpoint_interval_seconds", 30, 1..=DAY);
    if before {
        reader.notice(
            "`enable_checkpointing` and `checkpoint_interval_seconds` of `[state]` have no effect: a checkpoint comes with every page",
        );
    }
    let (verify, place) = reader.boolean(&["verification.enable_verification"], false);
    if verify {
        let rule = "asks for `verify`, which this version does not have yet";
        let fix = "set it to false";
        reader.problem(
            "verification.enable_verification",
            place,
            rule,
            Some(fix.into()),
        );
    }
}

/// Sections about personal data: what they ask for must never be skipped in silence.
fn replaced(reader: &mut Reader<'_>) {
    let is_decided = reader.is_set("anonymization.enabled");
    let (enabled, place) = reader.boolean(&["anonymization.enabled"], false);
    let section = reader.skip_section("anonymization");
    let fix = "write `enabled = false` only if identifiable data may go to the store";
    if enabled {
        let rule = "is replaced by `[deid]`, which this version does not have yet";
        reader.problem("anonymization.enabled", place, rule, Some(fix.into()));
    } else if let (Some(place), false) = (section, is_decided) {
        let rule = "is replaced by `[deid]`, which this version does not have yet, and does not say `enabled`";
        reader.problem("anonymization", place, rule, Some(fix.into()));
    }
    if let Some(place) = reader.skip_section("deid") {
        let rule = "is a section that this version does not have yet";
        let fix = "remove it only if identifiable data may go to the store";
        reader.problem("deid", place, rule, Some(fix.into()));
    }
}
