//! Scripted misbehaviour: which answers are delayed, replaced or damaged, and how.

use std::{io, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use serde::Deserialize;

use crate::query::Kind;

/// Something that goes wrong with one answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The answer starts late. Adds to other faults.
    Latency {
        /// Milliseconds before the head is sent.
        millis: u64,
    },
    /// An error answer instead, such as 429, 500 or 503.
    Status {
        /// The HTTP status.
        status: u16,
        /// `Retry-After` in seconds.
        #[serde(default)]
        retry_after_secs: Option<u64>,
    },
    /// The connection breaks inside the body.
    CutBody {
        /// Bytes of the body that are still sent.
        after_bytes: usize,
    },
    /// A login page with status 200, as a proxy sends it.
    Html,
    /// The body comes in drips.
    SlowBody {
        /// Bytes of one drip.
        bytes: usize,
        /// Milliseconds between two drips.
        pause_millis: u64,
    },
    /// The body starts well and then goes on with white space, for ever.
    EndlessBody,
}

/// The requests a [`Rule`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum On {
    /// Every request.
    #[default]
    Any,
    /// Every AQL query.
    Aql,
    /// AQL queries for whole compositions.
    AqlPages,
    /// AQL queries with COUNT, MIN or MAX.
    AqlAggregates,
    /// Reads of single compositions and of their revisions.
    Compositions,
}

/// When a fault happens. Rules are tried in the order they were given; the first that damages an answer wins.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    fault: Fault,
    #[serde(default)]
    on: On,
    /// Matching requests that pass before the first fault.
    #[serde(default)]
    skip: u64,
    /// How many matching requests it happens to; all of them if absent.
    #[serde(default)]
    times: Option<u64>,
}

impl Fault {
    /// Happens to the next `times` requests.
    pub fn next(self, times: u64) -> Rule {
        Rule {
            fault: self,
            on: On::Any,
            skip: 0,
            times: Some(times),
        }
    }

    /// Happens to every request until the faults are cleared.
    pub fn always(self) -> Rule {
        Rule {
            fault: self,
            on: On::Any,
            skip: 0,
            times: None,
        }
    }
}

impl Rule {
    /// Only counts, and happens to, requests of this kind.
    pub fn on(self, on: On) -> Self {
        Self { on, ..self }
    }

    /// Lets `skip` requests pass first.
    pub fn after(self, skip: u64) -> Self {
        Self { skip, ..self }
    }
}

/// What a request was for, put into its answer for the [`Script`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Aql(Kind),
    Composition,
    Other,
}

/// The rules that are still in force.
#[derive(Debug, Default)]
pub(crate) struct Script {
    rules: Vec<Rule>,
}

/// The faults of one answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) latency: Duration,
    pub(crate) damage: Option<Fault>,
}

impl Script {
    pub(crate) fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// The faults of the next answer; counts it.
    pub(crate) fn take(&mut self, asked: Asked) -> Planned {
        let mut planned = Planned::default();
        for rule in &mut self.rules {
            let matches = match rule.on {
                On::Any => true,
                On::Aql => matches!(asked, Asked::Aql(_)),
                On::AqlPages => asked == Asked::Aql(Kind::Page),
                On::AqlAggregates => asked == Asked::Aql(Kind::Aggregate),
                On::Compositions => asked == Asked::Composition,
            };
            let is_latency = matches!(rule.fault, Fault::Latency { .. });
            if !matches || !is_latency && planned.damage.is_some() {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            match &mut rule.times {
                Some(0) => continue,
                Some(times) => *times -= 1,
                None => {}
            }
            match &rule.fault {
                Fault::Latency { millis } => planned.latency += Duration::from_millis(*millis),
                damage => planned.damage = Some(damage.clone()),
            }
        }
        self.rules.retain(|rule| rule.times != Some(0));
        planned
    }
}

/// The answer with `damage` done to it.
pub(crate) fn damaged(response: Response, damage: Fault) -> Response {
    match damage {
        Fault::Latency { .. } => response,
        Fault::Status {
            status,
            retry_after_secs,
        } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = (status, "{\"error\":\"Scripted fault\"}").into_response();
            if let Some(seconds) = retry_after_secs {
                let seconds = HeaderValue::from(seconds);
                response.headers_mut().insert(header::RETRY_AFTER, seconds);
            }
            response
        }
        Fault::Html => {
            let page = "<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>";
            axum::response::Html(page).into_response()
        }
        Fault::CutBody { after_bytes } => with_body(response, |body| {
            let broken = stream::once(async {
                // Waiting once lets the connection send what it has; an error drops what it has not.
                tokio::task::yield_now().await;
                Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "scripted fault",
                ))
            });
            at_most(body, after_bytes).map(Ok).chain(broken)
        }),
        Fault::SlowBody {
            bytes,
            pause_millis,
        } => with_body(response, |body| {
            pieces(body, bytes.max(1)).then(move |piece| async move {
                tokio::time::sleep(Duration::from_millis(pause_millis)).await;
                Ok::<_, io::Error>(piece)
            })
        }),
        Fault::EndlessBody => with_body(response, |body| {
            let blank = Bytes::from_static(&[b' '; 16 * 1024]);
            body.filter_map(|piece| async { piece.ok() })
                .take(1)
                .chain(stream::repeat(blank))
                .map(Ok::<_, io::Error>)
        }),
    }
}

fn with_body<S>(response: Response, change: impl FnOnce(BodyDataStream) -> S) -> Response
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let (mut head, body) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    let body = Body::from_stream(change(body.into_data_stream()));
    Response::from_parts(head, body)
}

/// The body up to `bytes`. A piece that cannot be read ends it.
fn at_most(body: BodyDataStream, bytes: usize) -> impl Stream<Item = Bytes> + Send {
    stream::unfold((body, bytes), |(mut body, left)| async move {
        if left == 0 {
            return None;
        }
        let mut piece = body.next().await?.ok()?;
        piece.truncate(left);
        let left = left - piece.len();
        Some((piece, (body, left)))
    })
}

/// The body in pieces of `size` bytes.
fn pieces(body: BodyDataStream, size: usize) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(
        (body, Bytes::new()),
        move |(mut body, mut rest)| async move {
            while rest.is_empty() {
                rest = body.next().await?.ok()?;
            }
            let piece = rest.split_to(size.min(rest.len()));
            Some((piece, (body, rest)))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOO_MANY: Fault = Fault::Status {
        status: 429,
        retry_after_secs: Some(1),
    };

    #[test]
    fn a_rule_ends_after_its_times() {
        let mut script = Script::default();
        script.add(TOO_MANY.next(2).after(1).on(On::Aql));
        let asked = Asked::Aql(Kind::Page);
        assert_eq!(script.take(asked).damage, None);
        assert_eq!(script.take(Asked::Other).damage, None);
        assert_eq!(script.take(asked).damage, Some(TOO_MANY));
        assert_eq!(script.take(asked).damage, Some(TOO_MANY));
        assert_eq!(script.take(asked).damage, None);
        assert!(script.rules.is_empty());
    }

    #[test]
    fn latency_adds_to_the_first_damage() {
        let mut script = Script::default();
        script.add(Fault::Latency { millis: 5 }.always());
        script.add(Fault::Html.next(1));
        script.add(TOO_MANY.next(1));
        let latency = Duration::from_millis(5);
        for damage in [Some(Fault::Html), Some(TOO_MANY), None] {
            assert_eq!(script.take(Asked::Other), Planned { latency, damage });
        }
    }
}
