//! A server made of bytes: each answer is scripted down to where it pauses and where the connection ends, which
//! no well-behaved server can be told to do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atlas_cdr::{Cdr, Config, Retry};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What the server got.
#[derive(Debug, Clone)]
pub struct Request {
    /// `POST /path HTTP/1.1`.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }
}

/// One step of an answer.
#[derive(Debug, Clone)]
pub enum Step {
    Send(Vec<u8>),
    Pause(Duration),
    /// The same again until the client goes away.
    Forever(Vec<u8>, Duration),
    /// Ends the connection, without saying so before.
    Hang,
}

pub type Reply = Vec<Step>;

type Script = Box<dyn Fn(usize, &Request) -> Reply + Send + Sync>;

const DATE: &str = "Mon, 23 Nov 2026 20:35:38 GMT";

/// A whole answer.
pub fn reply(status: u16, headers: &str, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let mut bytes = head(
        status,
        &format!("Content-Length: {}\r\n{headers}", body.len()),
    );
    bytes.extend(body);
    vec![Step::Send(bytes)]
}

/// A whole answer with JSON.
pub fn json(body: &str) -> Reply {
    reply(200, "Content-Type: application/json\r\n", body)
}

/// The head of an answer; `headers` with `\r\n` behind each.
pub fn head(status: u16, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Scripted\r\nDate: {DATE}\r\n{headers}\r\n").into_bytes()
}

pub const UID: &str = "0f3c2a10-5f6e-4a53-9d5e-0a1b2c3d4e5f";
pub const EHR: &str = "7d44b88c-4199-4bad-97dc-d78268e01398";
pub const SECRET: &str = "pa55-w0rd-of-the-tests";

/// An answer with so many compositions, in order.
pub fn page(rows: usize) -> String {
    let rows: Vec<String> = (0..rows)
        .map(|row| {
            format!(
                r#"["{}{row:04}::sys::1","2026-11-23T03:50:12.1166Z","{EHR}","vitals","creation",{{"_type":"COMPOSITION"}}]"#,
                &UID[..UID.len() - 4]
            )
        })
        .collect();
    table(6, &rows.join(","))
}

pub fn table(columns: usize, rows: &str) -> String {
    let columns: Vec<String> = (0..columns)
        .map(|column| format!(r##"{{"name":"#{column}"}}"##))
        .collect();
    format!(
        r#"{{"q":"…","columns":[{}],"rows":[{rows}]}}"#,
        columns.join(",")
    )
}

/// Answers the n-th request (from 0) with what the script says.
pub struct Wire {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    most: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    pub async fn start(script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_on(None, script).await
    }

    pub async fn start_on(
        tls: Option<TlsAcceptor>,
        script: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (most, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let shared = Arc::new(Shared {
            script: Box::new(script),
            requests: Arc::clone(&requests),
            running: AtomicUsize::new(0),
            most: Arc::clone(&most),
        });
        let accepted = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &shared).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &shared).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            requests,
            most,
            connections,
            task,
        }
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How many requests were in work at once, at most.
    pub fn most_at_once(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Patient enough for a busy machine, with short waits between attempts.
    pub fn config(&self) -> Config {
        Config {
            retry: Retry {
                max_retries: 3,
                initial_delay: Duration::from_millis(1),
                max_delay: Duration::from_secs(2),
                multiplier: 2.0,
            },
            timeout: Duration::from_secs(20),
            ..Config::new(format!("http://{}/ehrbase", self.address))
        }
    }

    pub fn cdr(&self) -> Cdr {
        Cdr::connect(self.config()).unwrap()
    }
}

struct Shared {
    script: Script,
    requests: Arc<Mutex<Vec<Request>>>,
    running: AtomicUsize,
    most: Arc<AtomicUsize>,
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = receive(&mut stream).await {
        let running = shared.running.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most.fetch_max(running, Ordering::SeqCst);
        let number = {
            let mut requests = shared.requests.lock().unwrap();
            requests.push(request.clone());
            requests.len() - 1
        };
        let open = answer(&mut stream, (shared.script)(number, &request)).await;
        shared.running.fetch_sub(1, Ordering::SeqCst);
        if open.is_none() {
            return;
        }
    }
}

/// `None` when the connection is over.
async fn receive(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let headers: Vec<(String, String)> = lines
        .iter()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request {
        line: lines.first().cloned()?,
        headers,
        body: String::from_utf8(body).unwrap(),
    })
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), reply: Reply) -> Option<()> {
    for step in reply {
        match step {
            Step::Send(bytes) => stream.write_all(&bytes).await.ok()?,
            Step::Pause(pause) => {
                stream.flush().await.ok()?;
                tokio::time::sleep(pause).await;
            }
            Step::Forever(bytes, pause) => loop {
                stream.write_all(&bytes).await.ok()?;
                stream.flush().await.ok()?;
                tokio::time::sleep(pause).await;
            },
            Step::Hang => {
                stream.shutdown().await.ok()?;
                return None;
            }
        }
    }
    stream.flush().await.ok()
}
