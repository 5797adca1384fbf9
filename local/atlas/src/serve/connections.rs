//! Takes connections as if everybody were a stranger: none waits for ever, and all of them together leave the process what its
//! own work needs.
//!
//! | who | what happens |
//! |---|---|
//! | sends no whole head, or nothing more on a connection that is kept | closed after [`Limits::head`] |
//! | sends a body drop by drop | answered with 408 by the API itself |
//! | reads its answer drop by drop, or asks without an end | closed after [`Limits::life`] and [`Limits::last`] |
//! | opens more connections than there may be | the oldest one without a request in work gives way |

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Connections at the same time, where the descriptors suffice. Callers are a few people, a probe and a Prometheus.
const MOST: u64 = 128;
/// Of the descriptors that the system gives this process, so many parts are for its own work, and one is for callers.
const PARTS: u64 = 4;
/// What a head may need in bytes: an address, a token, what proxies add.
const HEAD_BYTES: usize = 32 << 10;
/// When the system has no descriptor left, another try follows after this long.
const AGAIN: Duration = Duration::from_millis(200);

/// How long a connection may take for what.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Connections at the same time.
    pub(super) most: usize,
    /// From the first moment, or from the last answer, to the end of the next head.
    pub(super) head: Duration,
    /// A connection gets no further request after this.
    pub(super) life: Duration,
    /// What is in work then, or when the process stops, has so long to end.
    pub(super) last: Duration,
}

impl Limits {
    /// As many connections as the system's limit of descriptors allows.
    pub(super) fn of_system() -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = (descriptors / PARTS).clamp(1, MOST);
        Self {
            most: usize::try_from(most).unwrap_or(1),
            head: Duration::from_secs(10),
            life: Duration::from_secs(120),
            // Every API answers within 25 s.
            last: Duration::from_secs(30),
        }
    }
}

/// Answers callers until `stop`, then those whose request is in work.
pub(super) async fn answer_all(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let mut open = VecDeque::new();
    let mut is_short = false;
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                is_short = false;
                make_room(&mut open, limits.most);
                open.push_back(Connection::begin(
                    stream,
                    router.clone(),
                    limits,
                    stop.clone(),
                ));
            }
            // The caller went away while it waited.
            Err(error) if is_of_the_caller(&error) => {}
            Err(error) => {
                if !is_short {
                    tracing::warn!("no connection can be taken at the moment: {error}");
                }
                is_short = true;
                sleep(AGAIN).await;
            }
        }
    }
    drop(listener);
    for connection in open {
        // Whoever has asked nothing gets no answer either.
        if connection.has_asked.load(Ordering::Acquire) {
            // One that panicked or was closed has ended too.
            let _ = connection.task.await;
        } else {
            connection.task.abort();
        }
    }
}

fn is_of_the_caller(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// One caller.
struct Connection {
    task: JoinHandle<()>,
    /// Whether a request is in work at the moment.
    has_asked: Arc<AtomicBool>,
}

/// Forgets connections that have ended. If that is not enough, the oldest one that waits for its caller is closed, or the oldest
/// of all: a probe that comes now is worth more than a request that somebody keeps open.
fn make_room(open: &mut VecDeque<Connection>, most: usize) {
    if open.len() < most {
        return;
    }
    open.retain(|connection| !connection.task.is_finished());
    while open.len() >= most {
        let idle = open
            .iter()
            .position(|connection| !connection.has_asked.load(Ordering::Acquire));
        match open.remove(idle.unwrap_or(0)) {
            Some(connection) => connection.task.abort(),
            None => return,
        }
    }
}

impl Connection {
    fn begin(stream: TcpStream, router: Router, limits: Limits, stop: CancellationToken) -> Self {
        let has_asked = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&has_asked);
        let task = tokio::spawn(answer(stream, router, asked, limits, stop));
        Self { task, has_asked }
    }
}

async fn answer(
    stream: TcpStream,
    router: Router,
    has_asked: Arc<AtomicBool>,
    limits: Limits,
    stop: CancellationToken,
) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (router, has_asked) = (router.clone(), Arc::clone(&has_asked));
        async move {
            has_asked.store(true, Ordering::Release);
            let request: Request = request.map(Body::new);
            let response: Result<Response<Body>, Infallible> = router.oneshot(request).await;
            has_asked.store(false, Ordering::Release);
            response
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // How a stranger breaks off is nothing to tell.
        _ = &mut connection => return,
        () = sleep(limits.life) => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    // Dropped, the connection is closed.
    let _ = timeout(limits.last, connection).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;
    use tokio::time::Instant;

    use super::*;

    /// Nothing takes this long unless it hangs.
    const LIMIT: Duration = Duration::from_secs(20);

    const LIMITS: Limits = Limits {
        most: 4,
        head: Duration::from_secs(3600),
        life: Duration::from_secs(3600),
        last: Duration::from_millis(100),
    };

    struct Served {
        at: SocketAddr,
        stop: CancellationToken,
        task: JoinHandle<()>,
        /// Lets one request of `/slow` end.
        go: Arc<Notify>,
        /// Told when one has begun.
        begun: Arc<Notify>,
    }

    async fn served(limits: Limits) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let (go, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (going, beginning) = (Arc::clone(&go), Arc::clone(&begun));
        let slow = async move || {
            beginning.notify_one();
            going.notified().await;
            "slow\n"
        };
        let router = Router::new()
            .route("/", get(async || "here\n"))
            .route("/large", get(async || "x".repeat(64 << 20)))
            .route("/body", post(async |_: axum::body::Bytes| "read\n"))
            .route("/slow", get(slow));
        let task = tokio::spawn(answer_all(listener, router, limits, stop.clone()));
        Served {
            at,
            stop,
            task,
            go,
            begun,
        }
    }

    impl Served {
        async fn says(&self, text: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.at).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream
        }

        async fn asks(&self, path: &str) -> String {
            let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let stream = self.says(&head).await;
            end_of(stream).await
        }
    }

    /// All that comes until the other side closes.
    async fn end_of(mut stream: TcpStream) -> String {
        let mut told = Vec::new();
        // A connection that is closed with something unread is reset.
        let ended = timeout(LIMIT, stream.read_to_end(&mut told)).await;
        assert!(ended.is_ok(), "the connection was not closed");
        String::from_utf8_lossy(&told).into_owned()
    }

    #[tokio::test]
    async fn whoever_sends_no_whole_head_is_closed() {
        let head = Duration::from_millis(200);
        let served = served(Limits { head, ..LIMITS }).await;
        for part in [
            "",
            "G",
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: ",
            // Answered, and then silent on the connection that it keeps.
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n",
        ] {
            let stream = served.says(part).await;
            let begun = Instant::now();
            let told = end_of(stream).await;
            assert_eq!(told.contains("here"), part.contains("\r\n\r\n"), "{part:?}");
            assert!(begun.elapsed() >= head / 2, "{part:?}");
        }
    }

    #[tokio::test]
    async fn a_head_that_grows_without_an_end_is_closed() {
        let served = served(LIMITS).await;
        let mut stream = served.says("GET / HTTP/1.1\r\n").await;
        let line = format!("X: {}\r\n", "a".repeat(1000));
        let sends = async {
            loop {
                if stream.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
        };
        assert!(timeout(LIMIT, sends).await.is_ok());
    }

    #[tokio::test]
    async fn strangers_who_wait_give_way_to_whoever_asks() {
        let served = served(LIMITS).await;
        let mut held = Vec::new();
        for _ in 0..50 {
            held.push(served.says("GET / HTTP/1.1\r\n").await);
            assert!(served.asks("/").await.ends_with("here\n"));
        }
        // All but the last few were closed.
        for stream in held.drain(..46) {
            assert_eq!(end_of(stream).await, "");
        }
    }

    #[tokio::test]
    async fn a_request_in_work_stays_while_others_give_way() {
        let served = served(LIMITS).await;
        let slow = served
            .says("GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await;
        served.begun.notified().await;
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(served.says("GET ").await);
        }
        assert!(served.asks("/").await.ends_with("here\n"));
        served.go.notify_one();
        assert!(end_of(slow).await.ends_with("slow\n"));
    }

    #[tokio::test]
    async fn bodies_that_never_end_give_way_too() {
        let served = served(LIMITS).await;
        let mut held = Vec::new();
        for _ in 0..20 {
            let head = "POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n12";
            held.push(served.says(head).await);
        }
        assert!(served.asks("/").await.ends_with("here\n"));
    }

    #[tokio::test]
    async fn whoever_does_not_read_its_answer_is_closed() {
        let life = Duration::from_millis(300);
        let served = served(Limits { life, ..LIMITS }).await;
        let stream = served.says("GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await;
        stream.readable().await.unwrap();
        // Closed with a part of it unsent: what is read later is not the whole.
        sleep(life + LIMITS.last * 3).await;
        assert!(end_of(stream).await.len() < 64 << 20);
    }

    #[tokio::test]
    async fn at_the_end_those_in_work_are_answered_and_nobody_else_is_waited_for() {
        let limits = Limits {
            last: LIMIT,
            ..LIMITS
        };
        let served = served(limits).await;
        let silent = served.says("GET ").await;
        let slow = served.says("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        served.begun.notified().await;
        served.stop.cancel();
        assert_eq!(end_of(silent).await, "");
        served.go.notify_one();
        assert!(end_of(slow).await.ends_with("slow\n"));
        timeout(LIMIT, served.task).await.unwrap().unwrap();
    }

    #[test]
    fn callers_get_a_part_of_the_descriptors() {
        let most = Limits::of_system().most;
        assert!((1..=128).contains(&most), "{most}");
    }
}
