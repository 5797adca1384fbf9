//! One instance: a handler process, started, watched, and started again by the rules of the real host.
//!
//! ```text
//!            GET / answers            ends: exit 200, killed at functionTimeout
//! Starting ───────────────► Ready ─────────────────────────────────────────────► Starting
//!     │                       │       ends: exit 0 ────────────────────────────► Down(Closed)
//!     └── never ready: error ─┴────── ends otherwise: error, the third one ────► Down(Failed)
//! ```

use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use axum::response::Response;
use futures::{StreamExt as _, TryStreamExt as _};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Inner;
use super::app::Raw;
use super::end::{Down, End};
use super::faults::Fault;
use super::history::{Event, Level, Outcome, Reason};
use super::wire::{self, Answer};
use crate::process::{Lines, Process, Program, Stream};

/// Between two attempts to reach a process that starts.
const PROBE: Duration = Duration::from_millis(25);

/// After a connection broke, how long to see whether that was the end of the process.
const SETTLE: Duration = Duration::from_secs(1);

/// Of the host that is played: the one whose requests were recorded.
const VERSION: &str = "4.1037.0.0";

/// As the host calls itself.
const AGENT: &str = "Azure-Functions-Host/4.1037.0.0";

/// To the handlers. It adds no header to a request and follows no redirect, as the real host does.
pub(super) type Client = Http<HttpConnector, Body>;

/// A client for all handlers of a host.
pub(super) fn client() -> Client {
    Http::builder(TokioExecutor::new()).build_http()
}

/// Headers that belong to one connection, so they are not handed on. The length is that of the body that is handed on.
const HOP: [HeaderName; 3] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
];

impl End {
    fn of(status: Option<ExitStatus>) -> Self {
        match status.and_then(|status| status.code()) {
            Some(code) => Self::Exit(code),
            None => Self::Killed,
        }
    }
}

/// A process that answers.
#[derive(Debug)]
pub(super) struct Live {
    process: Process,
    base: String,
    struck: AtomicBool,
}

impl Live {
    /// Kills the process without a word, as the host does at `functionTimeout`, and waits for its end. How the invocation
    /// ended that asked for it: the first one timed out, one that comes meanwhile has lost its process.
    async fn strike(&self) -> Outcome {
        let first = !self.struck.swap(true, Ordering::SeqCst);
        let _ = self.process.signal(Signal::KILL);
        self.process.ended().await;
        if first {
            Outcome::TimedOut
        } else {
            Outcome::Lost
        }
    }
}

/// Where an instance is.
#[derive(Debug, Clone)]
enum State {
    Starting(Option<Process>),
    Ready(Arc<Live>),
    Down(Down),
}

/// See the head of the module.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) index: usize,
    state: watch::Receiver<State>,
    /// Cancelled: nothing new is given to it.
    pub(super) dispatch: CancellationToken,
    /// Cancelled: its process is killed.
    kill: CancellationToken,
    /// What is under way in it.
    pub(super) tasks: TaskTracker,
    supervisor: TaskTracker,
}

impl Instance {
    pub(super) fn start(inner: &Arc<Inner>, index: usize) -> Arc<Self> {
        let (state, seen) = watch::channel(State::Starting(None));
        let instance = Arc::new(Self {
            index,
            state: seen,
            dispatch: inner.stop.child_token(),
            kill: inner.stop.child_token(),
            tasks: TaskTracker::new(),
            supervisor: TaskTracker::new(),
        });
        let kill = instance.kill.clone();
        let supervised = supervise(Arc::clone(inner), index, state, kill);
        instance.supervisor.spawn(supervised);
        instance
    }

    /// Waits until it is ready for the first time, or never will be.
    pub(super) async fn settled(&self) -> Result<(), Down> {
        self.live().await.map(drop)
    }

    pub(super) fn process(&self) -> Option<Process> {
        match &*self.state.borrow() {
            State::Starting(process) => process.clone(),
            State::Ready(live) => Some(live.process.clone()),
            State::Down(_) => None,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(*self.state.borrow(), State::Ready(_))
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(*self.state.borrow(), State::Down(_))
    }

    /// Whether it is being taken away: what happens to its messages now, a host on another machine cannot know.
    pub(super) fn is_leaving(&self) -> bool {
        self.kill.is_cancelled()
    }

    /// Does something that ends when the instance is killed; `None` if it was.
    pub(super) async fn unless_killed<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        self.kill.run_until_cancelled(what).await
    }

    /// Gives it nothing new, waits for what is under way, then ends it.
    pub(super) async fn retire(&self, grace: Duration) {
        self.dispatch.cancel();
        self.tasks.close();
        let _ = timeout(grace, self.tasks.wait()).await;
        self.kill.cancel();
        self.supervisor.close();
        self.supervisor.wait().await;
        self.tasks.wait().await;
    }

    async fn live(&self) -> Result<Arc<Live>, Down> {
        let mut state = self.state.clone();
        let settled = state
            .wait_for(|state| !matches!(state, State::Starting(_)))
            .await;
        match settled.as_deref() {
            Ok(State::Ready(live)) => Ok(Arc::clone(live)),
            Ok(State::Down(down)) => Err(*down),
            // The supervisor is gone.
            Ok(State::Starting(_)) | Err(_) => Err(Down::Asked),
        }
    }

    async fn target(&self) -> Result<Arc<Live>, Outcome> {
        self.live().await.map_err(|down| {
            Outcome::Failed(match down {
                Down::Closed => Reason::Closed,
                Down::Failed { .. } | Down::Asked => Reason::Stopped,
            })
        })
    }

    /// Sends an envelope to a function and reads its answer.
    pub(super) async fn invoke(
        &self,
        inner: &Inner,
        function: &str,
        id: Uuid,
        body: &Value,
    ) -> Result<Answer, Outcome> {
        let _running = self.tasks.token();
        let live = self.target().await?;
        // A stream has no length that is known before: the request is chunked, like the real host's.
        let content = Bytes::from(body.to_string());
        let content =
            futures::stream::once(async move { Ok::<_, std::convert::Infallible>(content) });
        let Ok(mut request) = Request::post(format!("{}/{function}", live.base))
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
            .body(Body::from_stream(content))
        else {
            return Err(Outcome::Failed(Reason::Request));
        };
        request.headers_mut().extend(own_headers(id));
        let exchange = async {
            let response = inner.http.request(request).await.map_err(|_| Unreachable)?;
            let (parts, content) = response.into_parts();
            let content = axum::body::to_bytes(Body::new(content), usize::MAX);
            let content = content.await.map_err(|_| Unreachable)?;
            if parts.status.is_success() && inner.switches.take(Fault::DropResponse).is_some() {
                return Ok::<_, Unreachable>(Err(Reason::Dropped));
            }
            let media_type = parts.headers.get(header::CONTENT_TYPE);
            let media_type = media_type.and_then(|kind| kind.to_str().ok());
            match wire::answer(parts.status, media_type, &content) {
                Ok(None) => std::future::pending().await,
                Ok(Some(answer)) => Ok(Ok(answer)),
                Err(reason) => Ok(Err(reason)),
            }
        };
        match guarded(&live, inner.timeout(), exchange).await? {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(reason)) => Err(Outcome::Failed(reason)),
            Err(Unreachable) => Err(lost_or_unreachable(&live).await),
        }
    }

    /// Hands a request on as it is; `answer` gets the response as soon as there is one to send.
    pub(super) async fn forward(
        &self,
        inner: &Inner,
        raw: Raw,
        id: Uuid,
        request: axum::extract::Request,
        answer: oneshot::Sender<Response>,
    ) -> Outcome {
        let _running = self.tasks.token();
        let live = match self.target().await {
            Ok(live) => live,
            Err(outcome) => return outcome,
        };
        let end = Instant::now() + inner.timeout().min(Duration::from_secs(86_400 * 365));
        let (parts, body) = request.into_parts();
        let Ok(mut request) = Request::builder()
            .method(parts.method)
            .uri(format!("{}{}", live.base, forwarded(&parts.uri)))
            .body(body)
        else {
            return Outcome::Failed(Reason::Request);
        };
        let mut headers = own_headers(id);
        // The caller's own name stays in front of the host's.
        if let Some(caller) = parts.headers.get(header::USER_AGENT)
            && let Ok(both) =
                HeaderValue::from_bytes(&[caller.as_bytes(), b" ", AGENT.as_bytes()].concat())
        {
            headers.insert(header::USER_AGENT, both);
        }
        *request.headers_mut() = kept(&parts.headers);
        request.headers_mut().extend(headers);
        let sent = inner.http.request(request);
        let response = match guarded(&live, end - Instant::now(), sent).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => return lost_or_unreachable(&live).await,
            Err(outcome) => return outcome,
        };
        let (status, headers) = (response.status(), kept(response.headers()));
        let respond = |body: Body| {
            let mut response = Response::new(body);
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            // The caller may be gone. The function ran all the same.
            let _ = answer.send(response);
        };
        let mut chunks = Body::new(response.into_body()).into_data_stream();
        match raw {
            Raw::Forward => {
                let collected = chunks.try_fold(Vec::new(), |mut all, chunk| async move {
                    all.extend_from_slice(&chunk);
                    Ok(all)
                });
                match guarded(&live, end - Instant::now(), collected).await {
                    Ok(Ok(content)) => respond(Body::from(content)),
                    Ok(Err(_)) => return lost_or_unreachable(&live).await,
                    Err(outcome) => return outcome,
                }
            }
            Raw::Proxy => {
                let (give, take) = mpsc::channel::<std::io::Result<Bytes>>(16);
                respond(Body::from_stream(ReceiverStream::new(take)));
                let pump = async {
                    while let Some(chunk) = chunks.next().await {
                        let Ok(chunk) = chunk else {
                            return Err(lost_or_unreachable(&live).await);
                        };
                        if give.send(Ok(chunk)).await.is_err() {
                            // The caller is gone.
                            break;
                        }
                    }
                    Ok(())
                };
                let pumped = guarded(&live, end - Instant::now(), pump).await;
                if let Err(outcome) | Ok(Err(outcome)) = pumped {
                    // Without it the answer would look as if it were complete.
                    let _ = give.try_send(Err(std::io::ErrorKind::ConnectionReset.into()));
                    return outcome;
                }
            }
        }
        Outcome::Succeeded
    }
}

/// Waits for an exchange, for the end of the process, and for `functionTimeout`, which ends the process.
async fn guarded<T>(
    live: &Live,
    limit: Duration,
    exchange: impl Future<Output = T>,
) -> Result<T, Outcome> {
    tokio::select! {
        biased;
        done = exchange => Ok(done),
        _ = live.process.ended() => Err(Outcome::Lost),
        () = sleep(limit) => Err(live.strike().await),
    }
}

/// A connection that broke is mostly the first sign of a process that ended.
async fn lost_or_unreachable(live: &Live) -> Outcome {
    match timeout(SETTLE, live.process.ended()).await {
        Ok(_) => Outcome::Lost,
        Err(_) => Outcome::Failed(Reason::Unreachable),
    }
}

/// The handler's connection broke, or there was none.
struct Unreachable;

/// Path and query as the real host hands them on: the path as it was typed, the query put together anew.
fn forwarded(uri: &Uri) -> String {
    let path = uri.path();
    let query: Vec<String> = wire::joined(&wire::query(uri))
        .into_iter()
        .map(|(name, value)| format!("{}={}", encoded(&name), encoded(&value)))
        .collect();
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", query.join("&"))
    }
}

/// What may stand in a query as it is; the comma is what joins repeated values.
const PLAIN: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b',');

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, &PLAIN).to_string()
}

fn own_headers(id: Uuid) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert("x-azure-functions-invocationid", id);
    }
    headers.insert(
        "x-azure-functions-hostversion",
        HeaderValue::from_static(VERSION),
    );
    headers.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
    headers
}

fn kept(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in &HOP {
        kept.remove(name);
    }
    kept
}

async fn supervise(
    inner: Arc<Inner>,
    index: usize,
    state: watch::Sender<State>,
    kill: CancellationToken,
) {
    let mut errors = 0_u32;
    let mut previous: Option<Instant> = None;
    let down = loop {
        let last = run(&inner, index, &state, &kill).await;
        state.send_replace(State::Starting(None));
        match last {
            End::Asked => break Down::Asked,
            End::Exit(0) => break Down::Closed,
            End::Exit(200) | End::Struck => {}
            End::Exit(_) | End::Killed | End::NeverReady | End::NotStarted(_) => {
                if previous.is_some_and(|at| at.elapsed() > inner.pace.error_memory) {
                    errors = 0;
                }
                previous = Some(Instant::now());
                errors = errors.saturating_add(1);
                if errors >= inner.pace.errors_to_stop {
                    break Down::Failed { errors, last };
                }
            }
        }
        inner.history.note(format!(
            "the handler of instance {index} {last}; it is started again"
        ));
    };
    if down != Down::Asked {
        inner
            .history
            .note(format!("instance {index} does nothing more: {down}"));
    }
    state.send_replace(State::Down(down));
}

/// One process from its start to its end.
async fn run(
    inner: &Arc<Inner>,
    index: usize,
    state: &watch::Sender<State>,
    kill: &CancellationToken,
) -> End {
    if kill.is_cancelled() {
        return End::Asked;
    }
    let started = free_port().and_then(|port| {
        let program = program(inner, port);
        Process::start(&program, lines(inner, index)).map(|process| (process, port))
    });
    let (process, port) = match started {
        Ok(started) => started,
        Err(error) => return End::NotStarted(error.kind()),
    };
    state.send_replace(State::Starting(Some(process.clone())));
    let base = format!("http://127.0.0.1:{port}");
    let ready = timeout(inner.pace.readiness, probe(inner, &base));
    tokio::select! {
        biased;
        () = kill.cancelled() => return end(inner, &process).await,
        status = process.ended() => return End::of(status),
        ready = ready => if ready.is_err() {
            let _ = process.signal(Signal::KILL);
            process.ended().await;
            return End::NeverReady;
        },
    }
    let live = Arc::new(Live {
        process: process.clone(),
        base,
        struck: AtomicBool::new(false),
    });
    state.send_replace(State::Ready(Arc::clone(&live)));
    tokio::select! {
        biased;
        () = kill.cancelled() => end(inner, &process).await,
        status = process.ended() => if live.struck.load(Ordering::SeqCst) {
            End::Struck
        } else {
            End::of(status)
        },
    }
}

/// The host gives no time to end: SIGKILL, unless it was asked to be kinder than the real one.
async fn end(inner: &Inner, process: &Process) -> End {
    if let Some(patience) = inner.pace.terminate_first {
        let _ = process.signal(Signal::TERM);
        let _ = timeout(patience, process.ended()).await;
    }
    let _ = process.signal(Signal::KILL);
    process.ended().await;
    End::Asked
}

fn program(inner: &Inner, port: u16) -> Program {
    let app = &inner.app;
    let mut program = Program::new(&app.executable, &app.folder);
    program.arguments.clone_from(&app.arguments);
    program.environment.clone_from(&inner.environment);
    let worker = Uuid::new_v4().to_string();
    let own = [
        ("FUNCTIONS_CUSTOMHANDLER_PORT", port.to_string()),
        ("FUNCTIONS_HTTPWORKER_PORT", port.to_string()),
        ("FUNCTIONS_CUSTOMHANDLER_WORKER_ID", worker.clone()),
        ("FUNCTIONS_HTTPWORKER_ID", worker),
        (
            "FUNCTIONS_APP_ROOT_PATH",
            app.root.to_string_lossy().into_owned(),
        ),
    ];
    program
        .environment
        .extend(own.map(|(name, value)| (name.to_owned(), value)));
    program
}

fn lines(inner: &Arc<Inner>, index: usize) -> Lines {
    // Weak: a line reader that outlives the host must not keep it.
    let inner = Arc::downgrade(inner);
    Arc::new(move |stream, text| {
        let level = match stream {
            Stream::Out => Level::Information,
            Stream::Err if text.to_ascii_lowercase().contains("warn") => Level::Warning,
            Stream::Err => Level::Error,
        };
        if let Some(inner) = inner.upgrade() {
            inner.history.tell(Event::Line {
                instance: index,
                level,
                text: text.to_owned(),
            });
        }
    })
}

/// Any answer will do, whatever its status.
async fn probe(inner: &Inner, base: &str) {
    let Ok(uri) = Uri::try_from(format!("{base}/")) else {
        return;
    };
    while inner.http.get(uri.clone()).await.is_err() {
        sleep(PROBE).await;
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}
