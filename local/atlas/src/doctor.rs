//! `atlas doctor`: tries, step by step, everything that an export needs; each line with its fix.

use std::path::PathBuf;
use std::time::Duration;

use atlas_cdr::Vendor;
use atlas_engine::error::InRun;
use atlas_engine::model::{Format, Scope, TemplateCounts, Window};
use atlas_engine::plan::proven_census;
use atlas_engine::ports::{Compositions, Definitions, Source, Store};
use atlas_engine::work::flat::{self, Flat};
use atlas_openehr::flat::Ids;
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use atlas_runtime::settings::{self, Settings, near_matches};
use atlas_runtime::wiring::{self, Look, PostgresLook};
use serde_json::{Value, json};

use crate::cli::{Doctor, Global};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{output, session};

/// Limit of looking up a name and of connecting.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of the answer.
struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
    fix: Option<String>,
}

#[derive(Default)]
struct Checks {
    lines: Vec<Check>,
    exit: Option<Exit>,
}

impl Checks {
    fn ok(&mut self, name: &'static str, detail: impl Into<String>) {
        self.push(name, Verdict::Ok, detail.into(), None);
    }

    fn warn(&mut self, name: &'static str, detail: impl Into<String>, fix: impl Into<String>) {
        self.push(name, Verdict::Warn, detail.into(), Some(fix.into()));
    }

    fn fail(&mut self, name: &'static str, detail: impl Into<String>, fix: impl Into<String>) {
        self.exit.get_or_insert(Exit::Unavailable);
        self.push(name, Verdict::Fail, detail.into(), Some(fix.into()));
    }

    fn error(&mut self, name: &'static str, error: &atlas_engine::Error) {
        self.exit.get_or_insert(error.kind().into());
        self.push(
            name,
            Verdict::Fail,
            error.chain(),
            error.help().map(str::to_owned),
        );
    }

    fn push(&mut self, name: &'static str, verdict: Verdict, detail: String, fix: Option<String>) {
        self.lines.push(Check {
            name,
            verdict,
            detail,
            fix,
        });
    }
}

pub(crate) async fn run(global: &Global, arguments: &Doctor) -> Result<Exit, Failure> {
    let settings = session::begin(global, Vec::new(), &Progress::new())?;
    let mut checks = Checks::default();
    checks.ok(
        "configuration",
        format!("`{}` is valid", global.config.display()),
    );
    check_source(&settings, arguments.flat_sample, &mut checks).await;
    check_store(&settings, &mut checks).await;
    check_files(global, &settings, &mut checks);
    if arguments.json {
        output::print_json(&document(&checks))?;
    } else {
        show(&checks)?;
    }
    Ok(checks.exit.unwrap_or(Exit::Complete))
}

/// Each step only makes sense after the one before.
async fn check_source(settings: &Settings, flat_sample: usize, checks: &mut Checks) {
    if !check_network(&settings.openehr.base_url, checks).await {
        return;
    }
    let source = match wiring::source(settings) {
        Ok(source) => source,
        Err(error) => return checks.error("certificates", &error),
    };
    let server = match source.server_info().await {
        Ok(server) => server,
        Err(error) => return checks.error("server", &error),
    };
    let vendor = match server.vendor {
        Some(Vendor::EhrBase) => "EHRbase",
        Some(Vendor::Better) => "Better",
        Some(Vendor::Ocean) => "Ocean",
        None => "an openEHR server",
    };
    let version = server.version.as_deref().unwrap_or("of unknown version");
    checks.ok(
        "server",
        format!("{vendor} {version}, credentials accepted"),
    );
    check_clock(server.server_time, settings.openehr.max_clock_skew, checks);

    let window = Window {
        from: Instant::EPOCH,
        to: server.server_time,
    };
    let everything = Scope {
        templates: Vec::new(),
        ehrs: Vec::new(),
        window,
    };
    let census = match proven_census(&source, &everything, |now| now).await {
        Ok(census) => census,
        Err(error) => return checks.error("AQL", &error),
    };
    let total: u64 = census.lines.iter().map(|line| line.count).sum();
    if let Err(error) = source.list(&everything, None, 1).await {
        return checks.error("AQL", &error);
    }
    checks.ok("AQL", "counts by template and pages by commit time work");
    if total == 0 {
        checks.warn(
            "compositions",
            "none are visible",
            "does this user have the right to read EHRs?",
        );
    } else {
        let templates = census.lines.len();
        let total = output::count(total);
        checks.ok("compositions", format!("{total} of {templates} templates"));
    }
    match source.templates().await {
        Ok(served) => check_templates(settings, &served, checks),
        Err(error) => return checks.error("templates", &error),
    }
    let wanted = &settings.query.template_ids;
    let is_wanted = |id: &TemplateId| wanted.is_empty() || wanted.iter().any(|w| w == id.as_str());
    let templates = census
        .lines
        .into_iter()
        .map(|line| line.template)
        .filter(is_wanted);
    check_flat(settings, &source, templates, flat_sample, checks).await;
}

/// Our FLAT of some compositions of each template, beside the server's own.
async fn check_flat(
    settings: &Settings,
    source: &dyn Source,
    templates: impl Iterator<Item = TemplateId>,
    sample: usize,
    checks: &mut Checks,
) {
    let (format, ids) = (settings.export.format, settings.export.ids);
    let needless = match (format, ids) {
        (Format::Canonical, _) => Some("the format is `canonical`"),
        (_, Ids::Template) => {
            Some("with `ids = \"template\"` keys differ from the server's on purpose")
        }
        _ if sample == 0 => Some("no sample was asked for"),
        _ => None,
    };
    if let Some(reason) = needless {
        return checks.ok(
            "FLAT",
            format!("not compared with the server's own: {reason}"),
        );
    }
    let (mut compositions, mut equal, mut unread) = (0, 0, 0);
    for template in templates {
        let compared = async {
            let web_template = source.web_template(&template).await?;
            let flat = Flat::compile(&template, &web_template, format, ids)?;
            flat::compare(source, &template, ids, &flat, sample).await
        };
        match compared.await {
            Ok(compared) if compared.differing > 0 => {
                let detail = format!(
                    "`{template}`: {} of {} compositions differ from the server's own FLAT",
                    compared.differing, compared.compared
                );
                let fix = match format {
                    Format::Flatten => "export this template as `preserve`, and report it",
                    Format::Preserve | Format::Canonical => {
                        "set `export.verify_flat_sample`: the server then converts what differs; and report it"
                    }
                };
                checks.warn("FLAT", detail, fix);
            }
            Ok(compared) if compared.compared == 0 => unread += 1,
            Ok(compared) => {
                equal += 1;
                compositions += compared.compared;
            }
            Err(error) => {
                checks.error("FLAT", &error);
                // What is wrong with one template need not be wrong with the next.
                if error.kind().policy().run == InRun::Stop {
                    return;
                }
            }
        }
    }
    if equal > 0 {
        let detail = format!(
            "{compositions} compositions of {equal} templates are equal to the server's own FLAT"
        );
        checks.ok("FLAT", detail);
    }
    if unread > 0 {
        let detail = format!("{unread} templates: the server gave no FLAT to compare ours with");
        let fix = "compare some compositions with `atlas flat`, or export as `canonical`";
        checks.warn("FLAT", detail, fix);
    }
}

/// Name, connection: told apart, because they are repaired by different people.
async fn check_network(base_url: &str, checks: &mut Checks) -> bool {
    let target = url::Url::parse(base_url).ok().and_then(|url| {
        Some((
            url.host_str()?.trim_matches(['[', ']']).to_owned(),
            url.port_or_known_default()?,
        ))
    });
    let Some((host, port)) = target else {
        checks.fail("DNS", "the address has no host", "check `openehr.base_url`");
        return false;
    };
    let found =
        tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host.as_str(), port))).await;
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            let fix = "check the host in `openehr.base_url`, and the DNS of this machine";
            checks.fail("DNS", format!("`{host}` is not found: {error}"), fix);
            return false;
        }
        Err(_) => {
            checks.fail("DNS", "no answer in time", "check the DNS of this machine");
            return false;
        }
    };
    checks.ok("DNS", format!("`{host}` is known ({})", addresses.len()));
    let connected =
        tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(&*addresses)).await;
    let fix = "is the server running, and does a firewall let this machine through?";
    match connected {
        Ok(Ok(_)) => {
            checks.ok("TCP", format!("port {port} is open"));
            true
        }
        Ok(Err(error)) => {
            checks.fail("TCP", format!("port {port} does not answer: {error}"), fix);
            false
        }
        Err(_) => {
            checks.fail("TCP", format!("port {port} does not answer in time"), fix);
            false
        }
    }
}

fn check_clock(server_time: Instant, most: Duration, checks: &mut Checks) {
    let now = wiring::machine_time();
    let skew = now
        .duration_since(server_time)
        .max(server_time.duration_since(now));
    let detail = format!(
        "{} apart from the server's",
        output::duration(skew.as_secs())
    );
    if skew <= most {
        checks.ok("clock", detail);
    } else {
        let fix = "Atlas reads up to what the server's clock says. Synchronise both with NTP; `openehr.max_clock_skew_seconds` says how far they may be apart";
        checks.warn("clock", detail, fix);
    }
}

fn check_templates(settings: &Settings, served: &[TemplateId], checks: &mut Checks) {
    let names = || served.iter().map(TemplateId::as_str);
    let wanted = &settings.query.template_ids;
    let unknown: Vec<&String> = wanted
        .iter()
        .filter(|id| !names().any(|name| name == *id))
        .collect();
    for id in &unknown {
        let near = near_matches(id, names());
        let fix = if near.is_empty() {
            "`atlas discover` lists all".to_owned()
        } else {
            format!(
                "did you mean `{}`? `atlas discover` lists all",
                near.join("`, `")
            )
        };
        checks.exit.get_or_insert(Exit::Usage);
        checks.push(
            "templates",
            Verdict::Fail,
            format!("the server has no `{id}`"),
            Some(fix),
        );
    }
    if unknown.is_empty() {
        let wanted = match wanted.len() {
            0 => "all are exported".to_owned(),
            count => format!("the {count} wanted ones are there"),
        };
        checks.ok(
            "templates",
            format!("{} on the server, {wanted}", served.len()),
        );
    }
}

/// Looks, and makes nothing: whoever asks for a diagnosis has not asked for tables.
async fn check_store(settings: &Settings, checks: &mut Checks) {
    let (store, look) = match (wiring::store(settings), wiring::look(settings).await) {
        (Ok(store), Ok(look)) => (store, look),
        (Err(error), _) | (_, Err(error)) => return checks.error("store", &error),
    };
    let kind = store.kind();
    match &look {
        Look::Sqlite(look) if !look.may_write => {
            let detail = format!("{kind}: this user may not write the file and its folder");
            let fix = "make the folder and give this user the right to write there, or set `sqlite.path` to another place";
            return checks.fail("store", detail, fix);
        }
        Look::Postgresql(look) if !look.lacks.is_empty() => {
            let detail = format!("{kind}: this role lacks {}", look.lacks.join(", "));
            let fix = "let the owner of the schema run what `atlas grants --role …` prints";
            return checks.fail("store", detail, fix);
        }
        Look::Postgresql(look) if !look.is_prepared && !look.may_prepare => {
            let detail =
                format!("{kind}: the tables are not there, and this role may not make them");
            let fix = "run `atlas prepare` as the role that owns the schema, then what `atlas grants --role …` prints";
            return checks.fail("store", detail, fix);
        }
        Look::Sqlite(_) | Look::Postgresql(_) => {}
    }
    let is_prepared = match &look {
        Look::Sqlite(look) => look.is_prepared,
        Look::Postgresql(look) => look.is_prepared,
    };
    if is_prepared {
        match held(&*store).await {
            Ok(held) => {
                let held = output::count(held);
                checks.ok(
                    "store",
                    format!("{kind}: tables are ready, {held} compositions in it"),
                );
            }
            Err(error) => return checks.error("store", &error),
        }
    } else {
        checks.ok(
            "store",
            format!("{kind}: empty; the first `atlas export` makes the tables, or `atlas prepare`"),
        );
    }
    if let Look::Postgresql(look) = &look {
        check_rights(look, checks);
    }
}

async fn held(store: &dyn Store) -> atlas_engine::Result<u64> {
    let counts = store.ledger().template_counts().await?;
    Ok(counts.iter().map(TemplateCounts::compositions).sum())
}

/// What the role that exports could do beyond an export, and who else could change what it does.
fn check_rights(look: &PostgresLook, checks: &mut Checks) {
    const NAME: &str = "store rights";
    let as_another = "make the tables as another role with `atlas prepare`, and export as one that has only what \
                      `atlas grants --role …` prints";
    let before = checks.lines.len();
    if look.is_superuser {
        let detail = "this role is a superuser or may become one: whoever gets hold of it has the whole server";
        checks.warn(NAME, detail, as_another);
    } else if look.is_owner && look.is_prepared {
        let detail = "this role owns the tables or their schema, so it may drop and change them";
        checks.warn(NAME, detail, as_another);
    }
    if !look.creators.is_empty() {
        let names: Vec<String> = look
            .creators
            .iter()
            .map(|name| format!("`{}`", name.escape_debug()))
            .collect();
        let detail = format!(
            "others may create in the schema, and put a trap where the owner looks for something: {}",
            names.join(", ")
        );
        let fix = "use a schema of its own that belongs to the owner of the tables: ALTER SCHEMA … OWNER TO …; REVOKE CREATE ON SCHEMA … FROM …";
        checks.warn(NAME, detail, fix);
    }
    if checks.lines.len() == before {
        checks.ok(NAME, "this role may export and no more");
    }
}

/// Warns of what other users of this machine can read.
fn check_files(global: &Global, settings: &Settings, checks: &mut Checks) {
    let mut open: Vec<PathBuf> = private_files(global, settings);
    open.retain(|path| {
        let is_open =
            |about: std::fs::Metadata| about.is_file() && atlas_files::is_open_to_others(&about);
        path.metadata().is_ok_and(is_open)
    });
    for path in &open {
        let path = path.display();
        checks.warn(
            "files",
            format!("other users may read or write `{path}`"),
            format!("chmod 600 '{path}'"),
        );
    }
    if open.is_empty() {
        checks.ok("files", "only you can read copy, logs and secrets");
    }
}

/// What holds health records, secrets or log lines.
fn private_files(global: &Global, settings: &Settings) -> Vec<PathBuf> {
    let mut files = vec![global.config.with_file_name(".env")];
    // A configuration that only refers to its secrets can be shown to anybody.
    let holds_secret = |text: String| settings.mask.apply(&text) != text;
    if std::fs::read_to_string(&global.config).is_ok_and(holds_secret) {
        files.push(global.config.clone());
    }
    if let settings::Store::Sqlite { path } = &settings.store {
        files.extend(["", "-wal", "-shm", "-journal"].map(|ending| {
            let mut name = path.clone().into_os_string();
            name.push(ending);
            PathBuf::from(name)
        }));
    }
    if let Some(log) = &settings.log_file {
        files.extend(log.files());
    }
    files
}

fn document(checks: &Checks) -> Value {
    let lines: Vec<Value> = checks
        .lines
        .iter()
        .map(|check| {
            json!({
                "check": check.name,
                "status": check.verdict.word(),
                "detail": check.detail,
                "fix": check.fix,
            })
        })
        .collect();
    json!({ "healthy": checks.exit.is_none(), "checks": lines })
}

fn show(checks: &Checks) -> Result<(), Failure> {
    let mut text = String::new();
    for check in &checks.lines {
        text.push_str(&format!(
            "{:<5} {:<14} {}\n",
            check.verdict.word(),
            check.name,
            check.detail
        ));
        if let Some(fix) = &check.fix {
            text.push_str(&format!("      {:<14} fix: {fix}\n", ""));
        }
    }
    output::print(&text)?;
    output::tell(match checks.exit {
        None => "next: atlas discover, or atlas export",
        Some(_) => "next: the first fix above, then atlas doctor again",
    });
    Ok(())
}
