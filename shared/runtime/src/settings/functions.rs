//! The sections for functions and for `serve`: queue, times, schedules, listening.

use std::net::SocketAddr;

use atlas_cdr::Config;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::{DateTime, date};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::problem::Place;
use super::read::DAY;
use super::reader::{Reader, Secret, Text};
use super::safety::{Safety, is_loopback};
use super::{AzureAccess, Functions, QueueAccess, Schedule, Serve};
use crate::suite;

const TIMEOUT: &str = "functions.timeout_seconds";
const URL: &str = "queue.url";
const CONNECTION: &str = "queue.connection_string";

/// The storage account of the emulator, with the key that its documentation prints.
const EMULATOR: &str = "http://127.0.0.1:10001/devstoreaccount1";
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
const EMULATOR_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// The queue, if one is named.
pub(super) fn queue(reader: &mut Reader<'_>, safety: Safety) -> Option<Option<QueueAccess>> {
    let url = reader.secret(URL);
    let connection = reader.secret(CONNECTION);
    if let (Some(_), Some(Secret { place, .. })) = (&url, &connection) {
        let rule = "names a queue, and so does `queue.url`";
        let place = place.clone();
        reader.problem(CONNECTION, place, rule, Some("keep one of the two".into()));
        return None;
    }
    if let Some(secret) = url {
        return queue_at(reader, safety, secret).map(Some);
    }
    if let Some(secret) = connection {
        return queue_of_account(reader, safety, secret).map(Some);
    }
    // One that cannot be read must not be taken for none.
    (!reader.has_problem(URL) && !reader.has_problem(CONNECTION)).then_some(None)
}

/// The path of the address tells the two clouds apart: all queues of SQS lie below an account of twelve digits, and no storage
/// account has such a name.
fn queue_at(reader: &mut Reader<'_>, safety: Safety, secret: Secret) -> Option<QueueAccess> {
    const EXAMPLES: &str = "write https://ACCOUNT.queue.core.windows.net/QUEUE or https://sqs.REGION.amazonaws.com/ACCOUNT/QUEUE";
    let place = secret.place.clone();
    let url = match Url::parse(secret.value.expose_secret().trim()) {
        Ok(url)
            if matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none() =>
        {
            url
        }
        _ => {
            let rule = "must be the http or https address of a queue";
            reader.problem(URL, place, rule, Some(EXAMPLES.into()));
            return None;
        }
    };
    let is_account = |name: &str| name.len() == 12 && name.bytes().all(|b| b.is_ascii_digit());
    let of_azure = url.host_str().is_some_and(|host| host.contains(".queue."));
    let names: Vec<&str> = url.path_segments().into_iter().flatten().collect();
    let is_sqs = match names.as_slice() {
        [_, ""] | [""] | ["", _] => None,
        [account, _] if is_account(account) => Some(true),
        [_] if of_azure => Some(false),
        // As emulators have it.
        [_, _] if !of_azure => Some(false),
        _ => None,
    };
    let Some(is_sqs) = is_sqs else {
        let rule = "must be the address of one queue";
        reader.problem(URL, place, rule, Some(EXAMPLES.into()));
        return None;
    };
    safety.queue(reader, URL, &url, place.clone());
    if is_sqs {
        if url.query().is_some() {
            reader.problem(URL, place, "must end with the name of the queue", None);
            return None;
        }
        return Some(QueueAccess::Sqs { url: url.into() });
    }
    let access = if url.query_pairs().any(|(name, _)| name == "sig") {
        AzureAccess::Signed
    } else if url.query().is_some() {
        let rule = "holds parameters, but no signature";
        let fix = "write the whole SAS behind the `?`, or no `?` to use an identity";
        reader.problem(URL, place, rule, Some(fix.into()));
        return None;
    } else if url.scheme() == "https" {
        AzureAccess::Identity
    } else if is_loopback(&url) {
        AzureAccess::Signed
    } else {
        let rule = "must be https where an identity lets us in";
        reader.problem(URL, place, rule, Some("write https, or a SAS".into()));
        return None;
    };
    if matches!(access, AzureAccess::Signed) {
        for signature in signatures(url.as_str()) {
            reader.mask(&signature);
        }
        safety.check_written(reader, URL, &secret, signatures);
    }
    let url = SecretString::from(String::from(url));
    Some(QueueAccess::Azure { url, access })
}

/// The signatures in an address.
fn signatures(address: &str) -> Vec<String> {
    let query = address.split_once('?').map_or("", |(_, query)| query);
    let parameters = url::form_urlencoded::parse(query.as_bytes());
    let signatures = parameters.filter(|(name, _)| name.eq_ignore_ascii_case("sig"));
    signatures.map(|(_, value)| value.into_owned()).collect()
}

/// The value of a part of a connection string of Azure.
fn part<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let mut parts = text
        .split(';')
        .filter_map(|part| part.trim().split_once('='));
    let (_, value) = parts.find(|(given, _)| given.trim().eq_ignore_ascii_case(name))?;
    Some(value.trim()).filter(|value| !value.is_empty())
}

/// The parts of a connection string of Azure that let somebody in.
fn keys(text: &str) -> Vec<String> {
    let keys = ["AccountKey", "SharedAccessSignature"];
    keys.into_iter()
        .filter_map(|name| part(text, name))
        .map(str::to_owned)
        .collect()
}

/// The queue of work in the account of a connection string, as the Azure portal shows it.
fn queue_of_account(
    reader: &mut Reader<'_>,
    safety: Safety,
    secret: Secret,
) -> Option<QueueAccess> {
    let place = secret.place.clone();
    let text = secret.value.expose_secret();
    for key in keys(text) {
        reader.mask(&key);
    }
    safety.check_written(reader, CONNECTION, &secret, keys);
    let part = |name: &str| part(text, name);
    let is_emulator =
        part("UseDevelopmentStorage").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let account = if is_emulator {
        Some((EMULATOR_ACCOUNT, EMULATOR_KEY, Some(EMULATOR)))
    } else {
        let endpoint = part("QueueEndpoint");
        part("AccountName")
            .zip(part("AccountKey"))
            .map(|(account, key)| (account, key, endpoint))
    };
    let Some((account, key, endpoint)) = account else {
        let rule = "must hold `AccountName` and `AccountKey`";
        let fix =
            "copy it from the access keys of the storage account; a SAS belongs into `queue.url`";
        reader.problem(CONNECTION, place, rule, Some(fix.into()));
        return None;
    };
    if STANDARD.decode(key).is_err() {
        let rule = "holds an `AccountKey` that is not base64";
        let fix = "copy it from the access keys of the storage account";
        reader.problem(CONNECTION, place, rule, Some(fix.into()));
        return None;
    }
    let endpoint = match endpoint {
        Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
        None => {
            let protocol = part("DefaultEndpointsProtocol").unwrap_or("https");
            let suffix = part("EndpointSuffix").unwrap_or("core.windows.net");
            format!("{protocol}://{account}.queue.{suffix}")
        }
    };
    let url = Url::parse(&format!("{endpoint}/{}", suite::WORK_QUEUE))
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.query().is_none());
    let Some(url) = url else {
        let rule = "holds an address of queues that is none";
        let fix = "write `QueueEndpoint=https://ACCOUNT.queue.core.windows.net`, or leave it out";
        reader.problem(CONNECTION, place, rule, Some(fix.into()));
        return None;
    };
    safety.queue(reader, CONNECTION, &url, place);
    Some(QueueAccess::Azure {
        url: String::from(url).into(),
        access: AzureAccess::Key {
            account: account.to_owned(),
            key: key.into(),
        },
    })
}

/// Times, with the defaults of the cloud that the queue belongs to.
pub(super) fn functions(reader: &mut Reader<'_>, queue: Option<&QueueAccess>) -> Functions {
    let (slice, timeout) = ("functions.slice_seconds", TIMEOUT);
    let platform = match queue {
        Some(QueueAccess::Sqs { .. }) => suite::AWS_TIMEOUT,
        Some(QueueAccess::Azure { .. }) | None => suite::AZURE_TIMEOUT,
    };
    let functions = Functions {
        slice: reader.seconds(slice, suite::SLICE_BUDGET.as_secs(), 1..=DAY),
        timeout: reader.seconds(timeout, platform.as_secs(), 1..=DAY),
        lease: reader.seconds("functions.lease_seconds", 90, 2..=3_600),
        orphan: reader.seconds("functions.orphan_seconds", 1_800, 1..=7 * DAY),
        revive: reader.seconds("functions.revive_seconds", 3_600, 1..=30 * DAY),
    };
    if functions.slice + suite::MARGIN >= functions.timeout
        && !reader.has_problem(slice)
        && !reader.has_problem(timeout)
    {
        let rule = format!(
            "must leave more than {} seconds of `{timeout}`",
            suite::MARGIN.as_secs()
        );
        let fix = "or the platform ends a worker before it hands the rest on";
        reader.problem(slice, Place::Nowhere, rule, Some(fix.into()));
    }
    functions
}

/// A request that takes as long as it may, with all its tries, has to fit into one invocation: else the invocation ends before
/// the request has failed, nobody learns from it, and the same is asked for again and again. (It need not fit into a lease,
/// which is renewed while a request is under way.)
pub(super) fn fits(reader: &mut Reader<'_>, functions: &Functions, openehr: &Config) {
    const KEY: &str = "openehr.timeout_seconds";
    const RETRY: [&str; 4] = [
        "openehr.retry.max_retries",
        "openehr.retry.initial_delay_ms",
        "openehr.retry.max_delay_ms",
        "openehr.retry.backoff_multiplier",
    ];
    let tries = openehr.retry.max_retries.saturating_add(1);
    let waits = openehr.retry.longest_waits();
    let longest = openehr.timeout.saturating_mul(tries).saturating_add(waits);
    let most = functions.timeout.saturating_sub(suite::MARGIN);
    let is_wrong = [KEY, TIMEOUT]
        .iter()
        .chain(&RETRY)
        .any(|key| reader.has_problem(key));
    if longest < most || is_wrong {
        return;
    }
    let rule = format!(
        "makes {tries} tries and their waits take up to {} seconds; when there is a queue, they must leave more than {} seconds \
         of `{TIMEOUT}` ({})",
        longest.as_millis().div_ceil(1_000),
        suite::MARGIN.as_secs(),
        functions.timeout.as_secs(),
    );
    let for_tries = most.saturating_sub(waits).as_millis().saturating_sub(1);
    let fix = match for_tries / 1_000 / u128::from(tries) {
        0 => format!("lower `{}`: the tries alone take too long", RETRY[0]),
        seconds => format!("lower it to {seconds}, or lower `{}`", RETRY[0]),
    };
    reader.problem(KEY, Place::Nowhere, rule, Some(fix));
}

pub(super) fn schedule(reader: &mut Reader<'_>) -> Option<Schedule> {
    let plan = timer(reader, "schedule.plan", suite::PLAN_SCHEDULE);
    let report = timer(reader, "schedule.report", suite::REPORT_SCHEDULE);
    Some(Schedule {
        plan: plan?,
        report: report?,
    })
}

fn timer(reader: &mut Reader<'_>, key: &'static str, default: &str) -> Option<Cron> {
    let (text, place) = match reader.text(key) {
        Some(Text { value, place }) => (value, place),
        None if reader.has_problem(key) => return None,
        None => (default.to_owned(), Place::Nowhere),
    };
    match ncrontab(&text) {
        Ok(cron) => Some(cron),
        Err((rule, fix)) => {
            reader.problem(key, place, rule, Some(fix.into()));
            None
        }
    }
}

/// Less between two runs of a timer is a slip: a run takes longer.
const LEAST_SECONDS: i64 = 10;

/// Reads six fields as the Functions host reads them.
fn ncrontab(text: &str) -> Result<Cron, (String, &'static str)> {
    const FIX: &str =
        "write second, minute, hour, day, month and day of the week, such as `0 */15 * * * *`";
    let wrong = |rule: &str| (rule.to_owned(), FIX);
    // The parser knows more signs than the host: L, W, # and nicknames.
    let is_word = |word: &str| word.is_empty() || word.len() == 3;
    let words_are_names = text.split(|c: char| !c.is_ascii_alphabetic()).all(is_word);
    let is_sign = |c: char| c.is_ascii_alphanumeric() || " *,-/".contains(c);
    if !text.chars().all(is_sign) || !words_are_names {
        return Err(wrong(
            "must be six fields of numbers, names, `*`, `,`, `-` and `/`",
        ));
    }
    let cron = CronParser::builder()
        .seconds(Seconds::Required)
        .year(Year::Disallowed)
        .dom_and_dow(true)
        .build()
        .parse(text)
        .map_err(|_| wrong("must be six fields within their ranges"))?;
    check_gaps(&cron)?;
    Ok(cron)
}

/// Looks at two days: what comes too soon after something else does so within the minute, the hour or over midnight.
fn check_gaps(cron: &Cron) -> Result<(), (String, &'static str)> {
    let start = date(2026, 1, 1).at(0, 0, 0, 0);
    let first = cron.find_next_occurrence(&start, true).map_err(|_| {
        let rule = "names a day that never comes".to_owned();
        (rule, "look at day and month")
    })?;
    // Once a minute at most, as nearly all are: nothing to look for, at the start of each function.
    let second = cron.as_str().split_whitespace().next();
    if second.is_some_and(|second| second.parse::<u8>().is_ok()) {
        return Ok(());
    }
    let seconds = |from: DateTime, to: DateTime| from.duration_until(to).as_secs();
    let mut before = first;
    for next in cron.iter_after(first) {
        let gap = seconds(before, next);
        if gap < LEAST_SECONDS {
            let rule = format!(
                "fires again {gap} second(s) after {}; {LEAST_SECONDS} is the least",
                before.time()
            );
            let fix = "the first field is seconds: write 0 there, as in `0 */15 * * * *`";
            return Err((rule, fix));
        }
        if seconds(first, next) > 2 * DAY {
            break;
        }
        before = next;
    }
    Ok(())
}

pub(super) fn serve(reader: &mut Reader<'_>, safety: Safety, parallel: usize) -> Option<Serve> {
    const TOKEN: &str = "serve.token";
    let listen = listen(reader);
    let token = reader.secret(TOKEN);
    let is_open = listen.is_some_and(|address| !address.ip().is_loopback());
    match &token {
        Some(Secret { value, place, .. }) if value.expose_secret().trim().is_empty() => {
            let fix = "write something long that nobody guesses";
            reader.problem(TOKEN, place.clone(), "must not be empty", Some(fix.into()));
        }
        None if is_open && !reader.has_problem(TOKEN) => {
            let rule = "is missing: without it, `serve` hands clinical data to everybody who can reach `serve.listen`";
            reader.required(TOKEN, rule);
        }
        Some(secret) if is_open => safety.token(reader, TOKEN, secret),
        _ => {}
    }
    let token = safety.secret(reader, TOKEN, token);
    let workers = reader.number("serve.workers", parallel, 1..=100);
    Some(Serve {
        listen: listen?,
        token,
        workers,
    })
}

fn listen(reader: &mut Reader<'_>) -> Option<SocketAddr> {
    const KEY: &str = "serve.listen";
    let Some(Text { value, place }) = reader.text(KEY) else {
        let default = SocketAddr::from(([127, 0, 0, 1], 8080));
        return (!reader.has_problem(KEY)).then_some(default);
    };
    let listen = value.trim().parse().ok();
    if listen.is_none() {
        let rule = "must be an IP address and a port";
        let fix = "write it as 127.0.0.1:8080, or 0.0.0.0:8080 for all networks";
        reader.problem(KEY, place, rule, Some(fix.into()));
    }
    listen
}
