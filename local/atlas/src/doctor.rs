//! `atlas doctor`: tries, step by step, everything that an export needs; each line with its fix.

use std::sync::Arc;
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
use atlas_runtime::settings::{Settings, near_matches};
use atlas_runtime::wiring;
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

async fn check_store(settings: &Settings, checks: &mut Checks) {
    let store = match wiring::store(settings) {
        Ok(store) => store,
        Err(error) => return checks.error("store", &error),
    };
    match try_store(store).await {
        Ok(detail) => checks.ok("store", detail),
        Err(error) => checks.error("store", &error),
    }
}

/// Creating the tables is what an export begins with: whether it may is only known by doing it.
async fn try_store(store: Arc<dyn Store>) -> atlas_engine::Result<String> {
    store.prepare().await?;
    let held: u64 = store
        .ledger()
        .template_counts()
        .await?
        .iter()
        .map(TemplateCounts::compositions)
        .sum();
    let (kind, held) = (store.kind(), output::count(held));
    Ok(format!(
        "{kind}: tables are ready, {held} compositions in it"
    ))
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
