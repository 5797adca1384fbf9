//! One request with its retries, limits and time-outs. One pool of connections for everything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atlas_engine::model::Usage;
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::time::Instant;
use backon::Retryable;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Certificate, Client, Identity, RequestBuilder, Response, StatusCode, Url, redirect};
use tokio::sync::Semaphore;
use tokio::time::{Instant as Moment, sleep, timeout};
use tracing::debug;

use crate::auth::Authorization;
use crate::clock::{self, ClockWatch};
use crate::config::{Auth, Config, Retry, Tls};
use crate::failure::{Failure, RequestSubject};
use crate::said::{MOST_BYTES, Said};

/// Connections are let go before the server does (EHRbase: 60 s), so that none breaks under a request.
const IDLE: Duration = Duration::from_secs(45);
const CONNECT: Duration = Duration::from_secs(10);

/// Bytes of a web template at most, whatever a composition may have: three times the largest that is known (670 kB). Compiled, one of
/// this size takes up to 60 MB, which a worker of 128 MB bears beside its pages.
pub(crate) const LARGEST_TEMPLATE: usize = 2 << 20;

/// One request, as often as it takes.
pub(crate) struct Call {
    /// Completes the sentence "failed to …".
    pub(crate) action: &'static str,
    pub(crate) subject: RequestSubject,
    pub(crate) url: Url,
    pub(crate) accept: &'static str,
    /// A query to post; `None` = a GET.
    pub(crate) body: Option<Body>,
}

/// A query on its way.
pub(crate) struct Body {
    pub(crate) json: String,
    /// Rows that it asks for.
    pub(crate) fetch: usize,
}

/// A successful answer, whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// The server's clock.
    pub(crate) date: Option<Instant>,
    pub(crate) text: String,
}

/// Speaks with one server.
pub(crate) struct Http {
    client: Client,
    authorization: Authorization,
    permits: Semaphore,
    retry: Retry,
    limits: Limits,
    clock: ClockWatch,
    requests: AtomicU64,
    bytes: AtomicU64,
    busy: AtomicU64,
}

/// How long and how large an answer may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// From the request to the head of the answer, and again from there to its end.
    pub(crate) time: Duration,
    /// Bytes after decompression.
    pub(crate) bytes: usize,
}

impl Limits {
    /// Between two pieces of an answer.
    fn pause(&self) -> Duration {
        self.time / 2
    }
}

impl Http {
    /// Reads the files of `config.tls`; sends nothing.
    pub(crate) fn new(config: &Config, base: &Url) -> Result<Self> {
        let limits = Limits {
            time: config.timeout,
            bytes: config.body_limit,
        };
        let authorization = Authorization::new(&config.auth, limits)?;
        let secured = base.scheme() == "https" || matches!(config.auth, Auth::Oidc(_));
        let client = Client::builder()
            .user_agent(concat!("atlas/", env!("CARGO_PKG_VERSION")))
            // A redirect would carry the credentials to an address that nobody configured.
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT.min(config.timeout))
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(config.parallel)
            .http1_only();
        Ok(Self {
            client: tls(client, &config.tls, secured)?,
            authorization,
            permits: Semaphore::new(config.parallel.max(1)),
            retry: config.retry,
            limits,
            clock: ClockWatch::new(config.max_clock_skew),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            busy: AtomicU64::new(0),
        })
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            busy: self.busy.load(Ordering::Relaxed),
        }
    }

    /// The server's clock beside this machine's.
    pub(crate) fn clock(&self) -> &ClockWatch {
        &self.clock
    }

    /// Whether so many bytes may be kept for one question.
    pub(crate) fn check_size(&self, bytes: usize) -> Result<(), Failure> {
        let limit = self.limits.bytes;
        match bytes <= limit {
            true => Ok(()),
            false => Err(Failure::TooLarge { limit }),
        }
    }

    /// Asks until `read` can make something of the answer, or trying again is of no use.
    pub(crate) async fn call<T>(
        &self,
        call: &Call,
        read: impl Fn(Answer) -> Result<T, Failure>,
    ) -> Result<T> {
        self.try_call(call, read)
            .await
            .map_err(|failure| failure.into_error(call.action, call.subject))
    }

    /// [`call`](Self::call), for a caller who can do something about the failure.
    pub(crate) async fn try_call<T>(
        &self,
        call: &Call,
        read: impl Fn(Answer) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let read = &read;
        let mut tried = 0;
        (|| async move { self.attempt(call).await.and_then(read) })
            .retry(self.retry.backoff())
            .sleep(sleep)
            .when(|failure: &Failure| failure.is_transient(call.subject))
            .adjust(|failure, planned| self.retry.wait(planned, failure.retry_after()))
            .notify(|failure, delay| {
                tried += 1;
                debug!(
                    action = call.action,
                    retry = tried,
                    delay_ms = millis(delay),
                    "failed to {}: {failure}; retry {tried} follows",
                    call.action
                );
            })
            .await
    }

    async fn attempt(&self, call: &Call) -> Result<Answer, Failure> {
        // Held until the body is read. An error would mean a closed semaphore, and this one is never closed.
        let _permit = self.permits.acquire().await;
        let credentials = self.authorization.header(&self.client).await?;
        let mut response = self.send(call, credentials.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(used) = &credentials
            && let Some(renewed) = self.authorization.renewed(&self.client, used).await?
        {
            response = self.send(call, Some(&renewed)).await?;
        }
        let (status, headers) = (response.status(), response.headers());
        if matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        if !status.is_success() {
            return Err(match (status, &call.body) {
                (
                    StatusCode::BAD_REQUEST
                    | StatusCode::PAYLOAD_TOO_LARGE
                    | StatusCode::RANGE_NOT_SATISFIABLE
                    | StatusCode::UNPROCESSABLE_ENTITY,
                    Some(body),
                ) => Failure::Refused {
                    status,
                    said: Said::read(&self.reason(response).await, body.fetch),
                },
                _ => refusal(status, headers),
            });
        }
        let date = header(headers, DATE).and_then(http_date);
        if let Some(date) = date {
            self.clock.look(date);
        }
        let limits = match call.subject {
            RequestSubject::Template => Limits {
                bytes: self.limits.bytes.min(LARGEST_TEMPLATE),
                ..self.limits
            },
            _ => self.limits,
        };
        let started = Moment::now();
        let read = read_body(response, limits, |bytes| {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        })
        .await;
        if let Ok(text) = &read {
            debug!(
                action = call.action,
                status = status.as_u16(),
                bytes = text.len(),
                elapsed_ms = millis(started.elapsed()),
                "answer to {} is complete",
                call.action
            );
        }
        Ok(Answer {
            status,
            date,
            text: read?,
        })
    }

    /// The body of a refusal; nothing if it cannot be read or is no sentence.
    async fn reason(&self, response: Response) -> String {
        let limits = Limits {
            bytes: MOST_BYTES,
            ..self.limits
        };
        let count = |bytes| {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        };
        read_body(response, limits, count).await.unwrap_or_default()
    }

    async fn send(
        &self,
        call: &Call,
        credentials: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut request = match &call.body {
            Some(body) => self
                .client
                .post(call.url.clone())
                .header(CONTENT_TYPE, "application/json")
                .body(body.json.clone()),
            None => self.client.get(call.url.clone()),
        };
        request = request.header(ACCEPT, call.accept);
        if let Some(credentials) = credentials {
            request = request.header(AUTHORIZATION, credentials.clone());
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let started = Moment::now();
        let response = begin(request, self.limits).await?;
        debug!(
            action = call.action,
            status = response.status().as_u16(),
            elapsed_ms = millis(started.elapsed()),
            "answer to {} begins",
            call.action
        );
        Ok(response)
    }
}

/// Sends a request and waits for the head of its answer.
pub(crate) async fn begin(request: RequestBuilder, limits: Limits) -> Result<Response, Failure> {
    match timeout(limits.time, request.send()).await {
        Ok(sent) => sent.map_err(Failure::transport),
        Err(_) => Err(Failure::Late(limits.time)),
    }
}

/// What an answer without success is; its body is not looked at, it can echo ids.
pub(crate) fn refusal(status: StatusCode, headers: &HeaderMap) -> Failure {
    Failure::Status {
        status,
        retry_after: header(headers, RETRY_AFTER)
            .and_then(|text| pause(text, header(headers, DATE))),
    }
}

/// The text of an answer, in one piece that was never copied. `count` is told of each chunk.
pub(crate) async fn read_body(
    mut response: Response,
    limits: Limits,
    count: impl Fn(usize),
) -> Result<String, Failure> {
    let expected = response
        .content_length()
        .and_then(|length| usize::try_from(length).ok());
    let mut body = Vec::with_capacity(expected.unwrap_or(0).min(limits.bytes));
    let whole = async {
        while let Some(chunk) = timeout(limits.pause(), response.chunk())
            .await
            .map_err(|_| Failure::Stalled(limits.pause()))?
            .map_err(Failure::transport)?
        {
            count(chunk.len());
            if chunk.len() > limits.bytes - body.len() {
                return Err(Failure::TooLarge {
                    limit: limits.bytes,
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(())
    };
    timeout(limits.time, whole)
        .await
        .map_err(|_| Failure::Endless(limits.time))??;
    // Pages wait for their turn to be converted and written: what they do not use is given back.
    body.shrink_to_fit();
    String::from_utf8(body).map_err(|_| Failure::NotText)
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The two forms of a date that HTTP has given up, and everybody has to understand.
const OLD_DATES: [&str; 2] = ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

fn http_date(text: &str) -> Option<Instant> {
    let of_today = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text);
    let timestamp = of_today.ok().or_else(|| {
        let mut old = OLD_DATES.iter();
        old.find_map(|form| {
            let date = jiff::fmt::strtime::parse(form, text).ok()?;
            let zoned = date.to_datetime().ok()?.to_zoned(jiff::tz::TimeZone::UTC);
            Some(zoned.ok()?.timestamp())
        })
    })?;
    Instant::parse(&timestamp.to_string()).ok()
}

/// `Retry-After`: seconds, or a date by the server's own clock, or by ours if it does not tell its time.
fn pause(text: &str, now: Option<&str>) -> Option<Duration> {
    /// Nobody waits for longer, and what is added to a time must not overflow.
    const MOST: Duration = Duration::from_secs(365 * 24 * 3_600);
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(text.parse().map_or(MOST, Duration::from_secs).min(MOST));
    }
    let until = http_date(text)?;
    let now = now.and_then(http_date).unwrap_or_else(clock::now);
    Some(until.duration_since(now).min(MOST))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `secured`: whether some address begins with `https`. A machine without any certificates can still do without it.
fn tls(client: reqwest::ClientBuilder, tls: &Tls, secured: bool) -> Result<Client> {
    let mut client = client;
    if !tls.verify {
        client = client.tls_danger_accept_invalid_certs(true);
    }
    if let Some(path) = &tls.ca_cert {
        let action = "read openehr.tls_ca_cert";
        let pem = read_file(path, action)?;
        let certificates =
            Certificate::from_pem_bundle(&pem).map_err(|error| not_pem(action).because(error))?;
        if certificates.is_empty() {
            return Err(not_pem(action));
        }
        client = client.tls_certs_merge(certificates);
    } else if !secured {
        client = client.tls_certs_only([]);
    }
    match (&tls.client_cert, &tls.client_key) {
        (Some(certificate), Some(key)) => {
            let mut pem = read_file(certificate, "read openehr.tls_client_cert")?;
            pem.push(b'\n');
            pem.extend(read_file(key, "read openehr.tls_client_key")?);
            let action = "read openehr.tls_client_cert and tls_client_key";
            client = client.identity(
                Identity::from_pem(&pem).map_err(|error| not_pem(action).because(error))?,
            );
        }
        (None, None) => {}
        _ => {
            return Err(
                Error::new(ErrorKind::Usage, "set up TLS with a client certificate")
                    .fix("Set openehr.tls_client_cert and openehr.tls_client_key together."),
            );
        }
    }
    client.build().map_err(|error| {
        Error::new(ErrorKind::Usage, "set up TLS")
            .because(error)
            .fix(
                "Check the files of openehr.tls_ca_cert, tls_client_cert and tls_client_key. Without tls_ca_cert the \
                 system's certificates are needed (package ca-certificates).",
            )
    })
}

fn read_file(path: &std::path::Path, action: &'static str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        Error::new(ErrorKind::Usage, action)
            .because(error)
            .fix(format!(
                "Check that {} exists and can be read.",
                path.display()
            ))
    })
}

fn not_pem(action: &'static str) -> Error {
    Error::new(ErrorKind::Usage, action).fix(
        "The file must be PEM (`-----BEGIN …-----`), and the key not encrypted: `openssl` converts other forms.",
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_said_in_seconds_or_as_a_date_of_the_servers_clock() {
        let date = "Mon, 23 Nov 2026 20:35:38 GMT";
        let later = "Mon, 23 Nov 2026 20:36:08 GMT";
        assert_eq!(pause(" 120", None), Some(Duration::from_secs(120)));
        assert_eq!(pause(later, Some(date)), Some(Duration::from_secs(30)));
        assert_eq!(pause(date, Some(later)), Some(Duration::ZERO));
        for old in ["Monday, 23-Nov-26 20:36:08 GMT", "Mon Nov 23 20:36:08 2026"] {
            assert_eq!(
                pause(old, Some(date)),
                Some(Duration::from_secs(30)),
                "{old}"
            );
        }
        assert_eq!(
            pause("Mon Nov  2 20:36:08 2026", Some(date)),
            Some(Duration::ZERO)
        );
        // Without the server's clock, by ours.
        assert_eq!(
            pause("Mon, 01 Jan 2001 00:00:00 GMT", None),
            Some(Duration::ZERO)
        );
        assert!(pause("Tue, 01 Jan 2999 00:00:00 GMT", None) > Some(Duration::from_secs(600)));
        assert!(pause("99999999999999999999", None) > Some(Duration::from_secs(600)));
        assert_eq!(pause("-5", Some(date)), None);
        assert_eq!(pause("soon", Some(date)), None);
    }

    #[test]
    fn the_date_header_is_the_servers_clock() {
        assert_eq!(
            http_date("Mon, 23 Nov 2026 20:35:38 GMT")
                .unwrap()
                .to_string(),
            "2026-11-23T20:35:38.000000Z"
        );
        assert_eq!(http_date("2026-11-23"), None);
    }
}
