//! A queue service inside of this process: the part of the Storage Queue REST interface that host and handlers use.
//!
//! It looks at no credentials and can be told to fail. Everything is in memory, and in a file as well if a host that is started
//! later is to go on with it. The suite of queue behaviour in
//! `tests/azure_queue.rs` holds for it and for Azurite alike.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::error::HostError;
use super::faults::{Fault, Point, Shared, Switches};
use super::lock;
use super::queue::{HOST_HEADER, MOST};
use crate::journal::{Journal, Message as Left};

/// The account's name in URLs, as in every emulator.
const ACCOUNT: &str = "devstoreaccount1";

/// Bytes of a message's text.
const LARGEST: usize = 64 * 1024;

/// Seconds: seven days, the longest visibility and the default life of a message.
const WEEK: i64 = 7 * 24 * 3600;

#[derive(Debug)]
struct Message {
    id: String,
    text: String,
    inserted: Timestamp,
    expires: Timestamp,
    visible: Timestamp,
    receipt: String,
    dequeued: u32,
}

#[derive(Debug, Default)]
struct Queues {
    by_name: HashMap<String, Vec<Message>>,
    /// How far this clock is ahead of the machine's.
    ahead: SignedDuration,
}

impl Queues {
    /// The queues with what the last host left in them.
    fn of(left: Vec<Left>) -> Self {
        let now = Timestamp::now();
        let mut queues = Self::default();
        for message in left {
            let queue = queues.by_name.entry(message.queue).or_default();
            queue.push(Message {
                id: message.id,
                text: message.text,
                inserted: now,
                expires: after(now, WEEK),
                visible: now,
                receipt: receipt(),
                dequeued: 0,
            });
        }
        queues
    }

    fn now(&self) -> Timestamp {
        Timestamp::now()
            .checked_add(self.ahead)
            .unwrap_or(Timestamp::MAX)
    }

    /// A queue without what has expired.
    fn queue(&mut self, name: &str) -> Result<(&mut Vec<Message>, Timestamp), Refusal> {
        let now = self.now();
        let queue = self.by_name.get_mut(name).ok_or(Refusal::QueueNotFound)?;
        queue.retain(|message| message.expires > now);
        Ok((queue, now))
    }
}

/// The service, as the host holds it.
#[derive(Debug, Clone)]
pub(super) struct QueueServer {
    queues: Arc<Mutex<Queues>>,
    switches: Shared,
    endpoint: String,
    journal: Option<Arc<Journal>>,
}

/// The messages in a queue, counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// Messages that can be taken now.
    pub visible: usize,
    /// Messages that are being worked on, or were put with a delay, or wait after a failure.
    pub invisible: usize,
    /// Texts as they lie in the queue: all of them in the in-process service, up to 32 visible ones elsewhere.
    pub texts: Vec<String>,
}

impl QueueServer {
    /// Listens on a free loopback port until `stop`.
    pub(super) async fn start(
        switches: Shared,
        stop: CancellationToken,
        journal: Option<Journal>,
        left: Vec<Left>,
    ) -> Result<Self, HostError> {
        let listen = |error| HostError::system("listen on a loopback port for the queues", error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let server = Self {
            queues: Arc::new(Mutex::new(Queues::of(left))),
            switches: Arc::clone(&switches),
            endpoint: format!("http://{address}/{ACCOUNT}"),
            journal: journal.map(Arc::new),
        };
        let router = Router::new()
            .route(
                "/{account}/{queue}",
                put(create).get(properties).delete(remove),
            )
            .route(
                "/{account}/{queue}/messages",
                get(take).post(send).delete(clear),
            )
            .route(
                "/{account}/{queue}/messages/{id}",
                put(update).delete(delete),
            )
            .layer(axum::middleware::from_fn_with_state(
                switches.clone(),
                unavailable,
            ))
            .with_state(server.clone());
        let door = Door {
            open: Some(listener),
            address,
            refusing: switches.refusing(),
        };
        tokio::spawn(async move {
            // Serving ends with its task; an accept that failed is tried again inside.
            tokio::select! {
                _ = axum::serve(door, router) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(server)
    }

    fn put(&self, queue: &str, message: &Message) {
        if let Some(journal) = &self.journal {
            journal.put(queue, &message.id, &message.text);
        }
    }

    fn gone<'a>(&self, messages: impl IntoIterator<Item = &'a Message>) {
        if let Some(journal) = &self.journal {
            for message in messages {
                journal.gone(&message.id);
            }
        }
    }

    /// Leaves the journal to another host.
    pub(super) fn close(&self) {
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn advance(&self, by: Duration) {
        let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
        let mut queues = lock(&self.queues);
        queues.ahead = queues.ahead.saturating_add(by);
    }

    pub(super) fn contents(&self, name: &str) -> Contents {
        let mut queues = lock(&self.queues);
        let Ok((queue, now)) = queues.queue(name) else {
            return Contents::default();
        };
        let visible = queue
            .iter()
            .filter(|message| message.visible <= now)
            .count();
        Contents {
            visible,
            invisible: queue.len() - visible,
            texts: queue.iter().map(|message| message.text.clone()).collect(),
        }
    }
}

/// What the service answers when it does not.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    QueueNotFound,
    MessageNotFound,
    PopReceiptMismatch,
    OutOfRange,
    InvalidName,
    InvalidXml,
    TooLarge,
    Busy,
}

#[derive(Serialize)]
#[serde(rename = "Error", rename_all = "PascalCase")]
struct ErrorBody {
    code: &'static str,
    message: &'static str,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            Self::QueueNotFound => (404, "QueueNotFound", "There is no such queue."),
            Self::MessageNotFound => (404, "MessageNotFound", "There is no such message."),
            Self::PopReceiptMismatch => (
                400,
                "PopReceiptMismatch",
                "The receipt is not the message's current one.",
            ),
            Self::OutOfRange => (
                400,
                "OutOfRangeQueryParameterValue",
                "A number in the query is too small or too large.",
            ),
            Self::InvalidName => (
                400,
                "InvalidResourceName",
                "A queue's name has 3 to 63 of a-z, 0-9 and single hyphens between them.",
            ),
            Self::InvalidXml => (400, "InvalidXmlDocument", "The content is no message."),
            Self::TooLarge => (413, "RequestBodyTooLarge", "A text has at most 64 KiB."),
            Self::Busy => (503, "ServerBusy", "Unavailable on purpose."),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = xml(status, &ErrorBody { code, message });
        answer.headers_mut().insert(
            "x-ms-error-code",
            axum::http::HeaderValue::from_static(code),
        );
        answer
    }
}

fn xml(status: StatusCode, body: &impl Serialize) -> Response {
    match quick_xml::se::to_string(body) {
        Ok(text) => (
            status,
            [(header::CONTENT_TYPE, "application/xml")],
            format!(r#"<?xml version="1.0" encoding="utf-8"?>{text}"#),
        )
            .into_response(),
        // Only a type that has no XML form comes here, and there is none above or below.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn unavailable(
    State(switches): State<Arc<Switches>>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    if switches.take(Fault::Unavailable).is_some() {
        return Refusal::Busy.into_response();
    }
    next.run(request).await
}

type Named = Path<(String, String)>;

async fn create(
    State(server): State<QueueServer>,
    Path((_, name)): Named,
) -> Result<StatusCode, Refusal> {
    let letters = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let hyphens = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    if !(3..=63).contains(&name.len()) || !letters || hyphens {
        return Err(Refusal::InvalidName);
    }
    let mut queues = lock(&server.queues);
    if queues.by_name.contains_key(&name) {
        return Ok(StatusCode::NO_CONTENT);
    }
    queues.by_name.insert(name, Vec::new());
    Ok(StatusCode::CREATED)
}

async fn remove(
    State(server): State<QueueServer>,
    Path((_, name)): Named,
) -> Result<StatusCode, Refusal> {
    match lock(&server.queues).by_name.remove(&name) {
        Some(messages) => {
            server.gone(&messages);
            Ok(StatusCode::NO_CONTENT)
        }
        None => Err(Refusal::QueueNotFound),
    }
}

async fn properties(
    State(server): State<QueueServer>,
    Path((_, name)): Named,
) -> Result<Response, Refusal> {
    let count = lock(&server.queues).queue(&name)?.0.len();
    let headers = [("x-ms-approximate-messages-count", count.to_string())];
    Ok((StatusCode::OK, headers).into_response())
}

async fn clear(
    State(server): State<QueueServer>,
    Path((_, name)): Named,
) -> Result<StatusCode, Refusal> {
    let mut queues = lock(&server.queues);
    let (queue, _) = queues.queue(&name)?;
    server.gone(queue.iter());
    queue.clear();
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(rename = "QueueMessage")]
struct Sent {
    #[serde(rename = "MessageText", default)]
    text: String,
}

#[derive(Deserialize)]
struct SendQuery {
    visibilitytimeout: Option<i64>,
    messagettl: Option<i64>,
}

/// A message in an answer; which members it has depends on the request.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    message_id: String,
    insertion_time: String,
    expiration_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pop_receipt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_next_visible: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dequeue_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_text: Option<String>,
}

#[derive(Serialize)]
#[serde(rename = "QueueMessagesList")]
struct List {
    #[serde(rename = "QueueMessage")]
    messages: Vec<Shown>,
}

impl Message {
    fn shown(&self) -> Shown {
        Shown {
            message_id: self.id.clone(),
            insertion_time: http_date(self.inserted),
            expiration_time: http_date(self.expires),
            pop_receipt: Some(self.receipt.clone()),
            time_next_visible: Some(http_date(self.visible)),
            dequeue_count: Some(self.dequeued),
            message_text: Some(self.text.clone()),
        }
    }
}

fn http_date(time: Timestamp) -> String {
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn receipt() -> String {
    Uuid::new_v4().simple().to_string()
}

fn after(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

fn visibility(seconds: i64, least: i64) -> Result<i64, Refusal> {
    (least..=WEEK)
        .contains(&seconds)
        .then_some(seconds)
        .ok_or(Refusal::OutOfRange)
}

async fn send(
    State(server): State<QueueServer>,
    Path((_, name)): Named,
    Query(query): Query<SendQuery>,
    headers: HeaderMap,
    body: String,
) -> Result<Response, Refusal> {
    let sent: Sent = quick_xml::de::from_str(&body).map_err(|_| Refusal::InvalidXml)?;
    if sent.text.len() > LARGEST {
        return Err(Refusal::TooLarge);
    }
    let hidden = visibility(query.visibilitytimeout.unwrap_or(0), 0)?;
    let life = match query.messagettl {
        None => Some(WEEK),
        Some(-1) => None,
        Some(seconds) if seconds > hidden => Some(seconds),
        Some(_) => return Err(Refusal::OutOfRange),
    };
    let handlers = !headers.contains_key(HOST_HEADER);
    if handlers {
        server.switches.pass(Point::BeforeSend).await;
    }
    let shown = {
        let mut queues = lock(&server.queues);
        let (queue, now) = queues.queue(&name)?;
        let mut visible = after(now, hidden);
        if let Some(Fault::Delay(by)) = server.switches.take(Fault::Delay(Duration::ZERO)) {
            visible = visible.checked_add(by).unwrap_or(Timestamp::MAX);
        }
        let message = Message {
            id: Uuid::new_v4().to_string(),
            text: sent.text,
            inserted: now,
            expires: life.map_or(Timestamp::MAX, |seconds| after(now, seconds)),
            visible,
            receipt: receipt(),
            dequeued: 0,
        };
        let shown = Shown {
            dequeue_count: None,
            message_text: None,
            ..message.shown()
        };
        server.put(&name, &message);
        queue.push(message);
        shown
    };
    if handlers {
        server.switches.pass(Point::AfterSend).await;
    }
    let list = List {
        messages: vec![shown],
    };
    Ok(xml(StatusCode::CREATED, &list))
}

#[derive(Deserialize)]
struct TakeQuery {
    numofmessages: Option<u32>,
    visibilitytimeout: Option<i64>,
    peekonly: Option<bool>,
}

async fn take(
    State(server): State<QueueServer>,
    Path((_, name)): Named,
    Query(query): Query<TakeQuery>,
) -> Result<Response, Refusal> {
    let count = query.numofmessages.unwrap_or(1);
    if !(1..=MOST).contains(&count) {
        return Err(Refusal::OutOfRange);
    }
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let hidden = visibility(query.visibilitytimeout.unwrap_or(30), 1)?;
    let peek = query.peekonly.unwrap_or(false);
    let mut queues = lock(&server.queues);
    let (queue, now) = queues.queue(&name)?;
    let mut ready: Vec<&mut Message> = queue
        .iter_mut()
        .filter(|message| message.visible <= now)
        .collect();
    if ready.len() > 1 && !peek && server.switches.take(Fault::Reverse).is_some() {
        ready.reverse();
    }
    let messages = ready
        .into_iter()
        .take(count)
        .map(|message| {
            if peek {
                return Shown {
                    pop_receipt: None,
                    time_next_visible: None,
                    ..message.shown()
                };
            }
            message.dequeued += 1;
            message.visible = after(now, hidden);
            message.receipt = receipt();
            message.shown()
        })
        .collect();
    Ok(xml(StatusCode::OK, &List { messages }))
}

#[derive(Deserialize)]
struct ChangeQuery {
    popreceipt: String,
    visibilitytimeout: Option<i64>,
}

type NamedMessage = Path<(String, String, String)>;

/// Where the message is, if the receipt is its current one.
fn place(queue: &[Message], id: &str, receipt: &str) -> Result<usize, Refusal> {
    let place = queue
        .iter()
        .position(|message| message.id == id)
        .ok_or(Refusal::MessageNotFound)?;
    if queue[place].receipt == receipt {
        Ok(place)
    } else {
        Err(Refusal::PopReceiptMismatch)
    }
}

async fn update(
    State(server): State<QueueServer>,
    Path((_, name, id)): NamedMessage,
    Query(query): Query<ChangeQuery>,
    body: String,
) -> Result<Response, Refusal> {
    let hidden = visibility(query.visibilitytimeout.ok_or(Refusal::OutOfRange)?, 0)?;
    let text = if body.is_empty() {
        None
    } else {
        let sent: Sent = quick_xml::de::from_str(&body).map_err(|_| Refusal::InvalidXml)?;
        if sent.text.len() > LARGEST {
            return Err(Refusal::TooLarge);
        }
        Some(sent.text)
    };
    let mut queues = lock(&server.queues);
    let (queue, now) = queues.queue(&name)?;
    let place = place(queue, &id, &query.popreceipt)?;
    let message = &mut queue[place];
    if let Some(text) = text {
        message.text = text;
        server.put(&name, message);
    }
    message.visible = after(now, hidden);
    message.receipt = receipt();
    let headers = [
        ("x-ms-popreceipt", message.receipt.clone()),
        ("x-ms-time-next-visible", http_date(message.visible)),
    ];
    Ok((StatusCode::NO_CONTENT, headers).into_response())
}

async fn delete(
    State(server): State<QueueServer>,
    Path((_, name, id)): NamedMessage,
    Query(query): Query<ChangeQuery>,
) -> Result<StatusCode, Refusal> {
    let mut queues = lock(&server.queues);
    let (queue, _) = queues.queue(&name)?;
    let place = place(queue, &id, &query.popreceipt)?;
    server.gone([&queue.remove(place)]);
    Ok(StatusCode::NO_CONTENT)
}

/// A port that can be shut: then connections are refused, and those that are open break.
struct Door {
    /// `None` while it is shut.
    open: Option<TcpListener>,
    address: SocketAddr,
    refusing: watch::Receiver<bool>,
}

impl axum::serve::Listener for Door {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        loop {
            let refusing = *self.refusing.borrow_and_update();
            if refusing && self.open.take().is_some() {
                // The port is bound but not listened on, so that no other process can take it meanwhile.
                let reserved = bound(self.address);
                let _ = self.refusing.wait_for(|refusing| !refusing).await;
                drop(reserved);
            }
            let listener = match self.open.take() {
                Some(listener) => self.open.insert(listener),
                None => match bound(self.address).and_then(|socket| socket.listen(1024)) {
                    Ok(listener) => self.open.insert(listener),
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    }
                },
            };
            tokio::select! {
                // Axum's own way to accept, which outlasts errors.
                (stream, address) = axum::serve::Listener::accept(listener) => {
                    let wire = Wire { stream, refusing: self.refusing.clone() };
                    return (wire, address);
                }
                _ = self.refusing.changed() => {}
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// A connection that breaks when the door is shut.
struct Wire {
    stream: TcpStream,
    refusing: watch::Receiver<bool>,
}

impl Wire {
    fn check(&self) -> io::Result<()> {
        if *self.refusing.borrow() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
