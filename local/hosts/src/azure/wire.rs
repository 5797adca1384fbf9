//! What goes over the wire to a custom handler, and what its answer means.
//!
//! ```text
//! request   {"Data": {binding: value}, "Metadata": {key: value, "sys": {…}}}
//! answer    {"Outputs": {binding: value}, "Logs": ["…"], "ReturnValue": …}
//! ```
//!
//! The real host encodes a string, a number or an array once more as JSON inside of a string; objects and times
//! it does not. A handler must also read the form of the published examples, in which nothing is encoded twice.
//! `tests/azure/recorded.rs` compares each form with what the real host sent.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::Query;
use axum::http::{HeaderMap, StatusCode, Uri};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::history::{Outcome, Reason};
use super::queue::Received;
use super::{Encoding, app::Function};

/// What the real host writes about the failure before a retry; id, name and numbers are filled in.
const EXCEPTIONS: &str = include_str!("exceptions.json");

/// A value before it is encoded.
enum Datum {
    /// Objects and times: as they are.
    Once(Value),
    /// Strings, numbers, arrays, `null`: as a string that holds their JSON.
    Twice(Value),
}

impl Datum {
    fn text(text: impl Into<String>) -> Self {
        Self::Twice(Value::String(text.into()))
    }

    fn time(time: Timestamp) -> Self {
        Self::Once(Value::String(offset_time(time)))
    }

    fn encode(self, encoding: Encoding) -> Value {
        match (self, encoding) {
            (Self::Once(value), _) | (Self::Twice(value), Encoding::Docs) => value,
            (Self::Twice(value), Encoding::Real) => Value::String(value.to_string()),
        }
    }
}

/// Metadata under construction. Names are compared without regard to case: the first spelling stays, the last value wins.
struct Metadata {
    encoding: Encoding,
    map: Map<String, Value>,
}

impl Metadata {
    fn new(function: &Function, encoding: Encoding) -> Self {
        let sys = json!({
            "MethodName": function.name,
            "UtcNow": ticks(Timestamp::now()).to_string(),
            "RandGuid": Uuid::new_v4().to_string(),
        });
        let mut made = Self {
            encoding,
            map: Map::new(),
        };
        made.set("sys", Datum::Once(sys));
        made
    }

    fn set(&mut self, name: &str, datum: Datum) {
        if name.to_ascii_lowercase().ends_with("trigger") {
            return;
        }
        let name = self
            .map
            .keys()
            .find(|known| known.eq_ignore_ascii_case(name))
            .cloned()
            .unwrap_or_else(|| name.to_owned());
        self.map.insert(name, datum.encode(self.encoding));
    }
}

fn body(binding: &str, data: Value, metadata: Metadata) -> Value {
    json!({ "Data": { binding: data }, "Metadata": metadata.map })
}

/// A queue message; `None` if it lies in no queue, because a person started the function with the text. `text` is what it says
/// when its encoding in the queue is undone.
pub(super) fn queue(
    function: &Function,
    binding: &str,
    message: Option<&Received>,
    text: &str,
    encoding: Encoding,
) -> Value {
    let mut metadata = Metadata::new(function, encoding);
    match message {
        Some(message) => {
            metadata.set("DequeueCount", Datum::Twice(json!(message.dequeue_count)));
            metadata.set("ExpirationTime", Datum::time(message.expires));
            metadata.set("Id", Datum::text(&message.id));
            metadata.set("InsertionTime", Datum::time(message.inserted));
            metadata.set("NextVisibleTime", Datum::time(message.next_visible));
            metadata.set("PopReceipt", Datum::text(&message.receipt));
        }
        None => {
            metadata.set("DequeueCount", Datum::Twice(json!(0)));
            metadata.set("ExpirationTime", Datum::Once(json!(NEVER)));
            metadata.set("InsertionTime", Datum::time(Timestamp::now()));
            metadata.set("NextVisibleTime", Datum::Once(json!(NEVER)));
            metadata.set(binding, Datum::text(text));
        }
    }
    if let Ok(Value::Object(members)) = serde_json::from_str(text) {
        for (name, value) in members {
            match value {
                Value::Array(_) | Value::Null => {}
                Value::Object(_) => metadata.set(&name, Datum::Once(value)),
                Value::String(text) => {
                    let text = dotnet_time(&text).unwrap_or(text);
                    metadata.set(&name, Datum::text(text));
                }
                scalar => metadata.set(&name, Datum::text(dotnet_text(&scalar))),
            }
        }
    }
    let data = Datum::text(text).encode(encoding);
    body(binding, data, metadata)
}

/// The schedule status that a timer's handler receives. Fields are `None` until they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Status {
    pub(super) last: Option<Timestamp>,
    pub(super) next: Option<Timestamp>,
    pub(super) updated: Option<Timestamp>,
}

impl Status {
    /// As it is sent, and as it lies in the status file.
    pub(super) fn json(&self) -> Value {
        let time = |time: Option<Timestamp>| {
            time.map_or_else(|| "0001-01-01T00:00:00+00:00".to_owned(), offset_time)
        };
        json!({ "Last": time(self.last), "Next": time(self.next), "LastUpdated": time(self.updated) })
    }
}

/// Which try of an invocation it is, where `function.json` has a policy of retries.
pub(super) struct Try<'a> {
    pub(super) id: Uuid,
    /// 0 is the first one.
    pub(super) count: u32,
    pub(super) most: u32,
    /// How the try before ended.
    pub(super) failure: Option<&'a Outcome>,
    /// `functionTimeout`.
    pub(super) timeout: Duration,
}

impl Try<'_> {
    fn context(&self, function: &str) -> Value {
        let exception = self.failure.map(|failure| {
            let known: Value = serde_json::from_str(EXCEPTIONS).unwrap_or_default();
            let is_late = *failure == Outcome::TimedOut;
            let mut exception = known[if is_late { "timeout" } else { "status" }].clone();
            exception["InstanceId"] = json!(self.id.to_string());
            if is_late {
                let timeout = time_span(self.timeout);
                exception["Message"] = json!(format!(
                    "Timeout value of {timeout} was exceeded by function: Functions.{function}"
                ));
                exception["Timeout"] = json!(timeout);
                exception["MethodName"] = json!(format!("Functions.{function}"));
            } else {
                let status = match failure {
                    Outcome::Failed(Reason::Status(status)) => *status,
                    _ => 500,
                };
                let reason = StatusCode::from_u16(status).ok();
                let reason = reason.and_then(|status| status.canonical_reason());
                exception["Message"] = json!(format!(
                    "Exception while executing function: Functions.{function}"
                ));
                exception["MethodName"] = json!(format!("Host.Functions.{function}"));
                exception["InnerException"]["StatusCode"] = json!(status);
                exception["InnerException"]["Message"] = json!(format!(
                    "Response status code does not indicate success: {status} ({}).",
                    reason.unwrap_or_default()
                ));
            }
            exception
        });
        json!({
            "RetryCount": self.count,
            "MaxRetryCount": self.most,
            "Exception": exception,
            "Instance": null,
            "State": {},
        })
    }
}

/// A timer's occurrence; `status` is `None` without `useMonitor`, `attempt` without a policy of retries.
pub(super) fn timer(
    function: &Function,
    binding: &str,
    status: Option<&Status>,
    past_due: bool,
    attempt: Option<&Try<'_>>,
    encoding: Encoding,
) -> Value {
    let mut metadata = Metadata::new(function, encoding);
    if let Some(attempt) = attempt {
        let context = attempt.context(&function.name);
        metadata.set("RetryContext", Datum::Once(context));
    }
    let data = json!({
        "Schedule": { "AdjustForDST": true },
        "ScheduleStatus": status.map(Status::json),
        "IsPastDue": past_due,
    });
    body(binding, data, metadata)
}

/// An HTTP request that is sent in an envelope.
pub(super) struct Request<'a> {
    pub(super) url: String,
    pub(super) method: &'a str,
    pub(super) query: &'a [(String, String)],
    pub(super) headers: &'a HeaderMap,
    /// Those of the route; an optional one that is not there has no value.
    pub(super) parameters: &'a BTreeMap<String, Option<String>>,
    pub(super) key: Option<Key>,
    pub(super) body: &'a [u8],
}

/// The key by which a request was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// Of the functions.
    Function,
    /// Of everything.
    Master,
}

impl Key {
    /// As the real host tells a function of it.
    fn identity(self) -> Value {
        let (level, id) = match self {
            Self::Function => ("Function", "default"),
            Self::Master => ("Admin", "master"),
        };
        let claim = |name: &str, value: &str| {
            json!({
                "Issuer": "LOCAL AUTHORITY",
                "OriginalIssuer": "LOCAL AUTHORITY",
                "Properties": {},
                "Type": format!("http://schemas.microsoft.com/2017/07/functions/claims/{name}"),
                "Value": value,
                "ValueType": "http://www.w3.org/2001/XMLSchema#string",
            })
        };
        json!({
            "AuthenticationType": "WebJobsAuthLevel",
            "IsAuthenticated": true,
            "Actor": null,
            "BootstrapContext": null,
            "Claims": [claim("authlevel", level), claim("invoke", "true"), claim("keyid", id)],
            "Label": null,
            "Name": null,
            "NameClaimType": "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/name",
            "RoleClaimType": "http://schemas.microsoft.com/ws/2008/06/identity/claims/role",
        })
    }
}

/// The parameters of a query, decoded, in their order.
pub(super) fn query(uri: &Uri) -> Vec<(String, String)> {
    Query::try_from_uri(uri).map_or_else(|_| Vec::new(), |Query(query)| query)
}

/// Each name once, in the order of its first value; its values with commas between them.
pub(super) fn joined(query: &[(String, String)]) -> Vec<(String, String)> {
    let mut joined: Vec<(String, String)> = Vec::new();
    for (name, value) in query {
        match joined.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => *values = format!("{values},{value}"),
            None => joined.push((name.clone(), value.clone())),
        }
    }
    joined
}

/// As the real host spells the name of a header: words begin with a capital, but not those of the caller's own headers.
fn spelled(name: &str) -> String {
    if name.starts_with("x-") {
        return name.to_owned();
    }
    let words = name.split('-').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        format!("{}{rest}", first.to_ascii_uppercase())
    });
    words.collect::<Vec<_>>().join("-")
}

/// An HTTP request in its envelope.
pub(super) fn http(
    function: &Function,
    binding: &str,
    request: &Request<'_>,
    encoding: Encoding,
) -> Value {
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in request.headers {
        headers
            .entry(spelled(name.as_str()))
            .or_default()
            .push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let flat: BTreeMap<&str, String> = headers
        .iter()
        .map(|(name, values)| (name.as_str(), values.join(", ")))
        .collect();
    let all: BTreeMap<String, String> = joined(request.query).into_iter().collect();
    // The last value of each name.
    let last: BTreeMap<&str, &str> = request
        .query
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mut data = json!({
        "Url": request.url,
        "Method": request.method,
        "Query": match encoding {
            Encoding::Real => json!(all),
            Encoding::Docs => Value::String(json!(all).to_string()),
        },
        "Headers": headers,
        "Params": request.parameters,
        "Identities": [request.key.map_or_else(|| json!({}), Key::identity)],
    });
    if !request.body.is_empty() {
        let kind = headers
            .get("Content-Type")
            .and_then(|values| values.first())
            .map_or("", String::as_str);
        let binary = kind.starts_with("application/octet-stream") || kind.starts_with("multipart/");
        data["Body"] = Value::String(if binary {
            BASE64_STANDARD.encode(request.body)
        } else {
            String::from_utf8_lossy(request.body).into_owned()
        });
    }
    let mut metadata = Metadata::new(function, encoding);
    metadata.set("Query", Datum::Once(json!(last)));
    metadata.set("Headers", Datum::Once(json!(flat)));
    for (name, value) in &last {
        metadata.set(name, Datum::text(*value));
    }
    for (name, value) in request.parameters {
        if let Some(value) = value {
            metadata.set(name, Datum::text(value));
        }
    }
    body(binding, data, metadata)
}

/// The answer of a handler.
#[derive(Debug, Default)]
pub(super) struct Answer {
    outputs: Map<String, Value>,
    /// Lines for the invocation's log.
    pub(super) logs: Vec<String>,
    value: Value,
}

impl Answer {
    /// The value of an output binding; `null` is as good as none.
    pub(super) fn output(&self, name: &str) -> Option<&Value> {
        if name == "$return" {
            return Some(&self.value).filter(|value| !value.is_null());
        }
        member(&self.outputs, name).filter(|value| !value.is_null())
    }
}

/// Reads an answer. `Ok(None)` is the one that the real host waits for without end: a success with nothing in it.
pub(super) fn answer(
    status: StatusCode,
    media_type: Option<&str>,
    content: &[u8],
) -> Result<Option<Answer>, Reason> {
    if !status.is_success() {
        return Err(Reason::Status(status.as_u16()));
    }
    if content.trim_ascii().is_empty() {
        return Ok(None);
    }
    let kind = media_type.and_then(|kind| kind.split(';').next());
    if !kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Err(Reason::MediaType);
    }
    match serde_json::from_slice(content) {
        Ok(Value::Null) => Ok(None),
        Ok(Value::Object(members)) => {
            let outputs = match member(&members, "Outputs") {
                None | Some(Value::Null) => Map::new(),
                Some(Value::Object(outputs)) => outputs.clone(),
                Some(_) => return Err(Reason::InvalidJson),
            };
            let logs = match member(&members, "Logs") {
                None | Some(Value::Null) => Vec::new(),
                Some(Value::Array(lines)) => lines.iter().map(dotnet_text).collect(),
                Some(_) => return Err(Reason::InvalidJson),
            };
            let value = member(&members, "ReturnValue").cloned().unwrap_or_default();
            Ok(Some(Answer {
                outputs,
                logs,
                value,
            }))
        }
        Ok(_) | Err(_) => Err(Reason::InvalidJson),
    }
}

/// The messages that the value of a queue output stands for.
///
/// A lone string is taken for base64 if it can be, else for JSON if it can be; an array of strings is left alone.
pub(super) fn messages(value: &Value, binary: bool) -> Vec<Vec<u8>> {
    match value {
        Value::String(text) => {
            if let (false, Ok(bytes)) = (binary, BASE64_STANDARD.decode(text)) {
                return vec![bytes];
            }
            match serde_json::from_str(text) {
                Ok(parsed @ (Value::Array(_) | Value::Object(_))) => messages(&parsed, binary),
                _ => vec![text.clone().into_bytes()],
            }
        }
        Value::Array(items) => items
            .iter()
            .map(|item| dotnet_text(item).into_bytes())
            .collect(),
        other => vec![dotnet_text(other).into_bytes()],
    }
}

/// The HTTP answer that the value of an `http` output stands for.
pub(super) fn http_answer(value: &Value) -> (StatusCode, Vec<(String, String)>, Vec<u8>) {
    let Value::Object(members) = value else {
        return (StatusCode::OK, Vec::new(), dotnet_text(value).into_bytes());
    };
    let status = member(members, "statusCode")
        .or_else(|| member(members, "status"))
        .and_then(|status| dotnet_text(status).parse::<u16>().ok())
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::OK);
    let headers = member(members, "headers")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), dotnet_text(value)))
        .collect();
    let content = member(members, "body").map(dotnet_text).unwrap_or_default();
    (status, headers, content.into_bytes())
}

fn member<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    members
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

/// As .NET turns a JSON value into text: `True`, an empty string for `null`, indented objects.
fn dotnet_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => format!("{value:#}"),
    }
}

/// The end of .NET's calendar: what lies in no queue never ends.
const NEVER: &str = "9999-12-31T23:59:59+00:00";

/// .NET counts time in steps of 100 ns.
fn ticks(time: Timestamp) -> Timestamp {
    const TICK: i128 = 100;
    Timestamp::from_nanosecond(time.as_nanosecond() / TICK * TICK).unwrap_or(time)
}

/// As .NET writes a time with an offset.
fn offset_time(time: Timestamp) -> String {
    ticks(time)
        .strftime("%Y-%m-%dT%H:%M:%S%.f+00:00")
        .to_string()
}

/// As .NET writes a duration in JSON, whole seconds.
fn time_span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

/// What the real host makes of a text that looks like a time: it reads it as one, and writes it as .NET does. `None` for any
/// other text.
fn dotnet_time(text: &str) -> Option<String> {
    const WRITTEN: &str = "%m/%d/%Y %H:%M:%S";
    if text.as_bytes().get(10) != Some(&b'T') {
        return None;
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time.strftime(WRITTEN).to_string());
    }
    let time: jiff::civil::DateTime = text.parse().ok()?;
    Some(time.strftime(WRITTEN).to_string())
}
