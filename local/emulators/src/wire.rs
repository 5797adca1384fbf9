//! Servers that misbehave: they speak just enough HTTP/1.1 to take a request.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::Result;
use crate::server::{Task, listen};

/// Answers each request with the bytes that a script says, or never.
pub struct Scripted {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    _task: Task,
}

impl Scripted {
    /// Starts one. `script` gets how many requests came before, and answers a whole HTTP answer; `None` keeps the client
    /// waiting for good.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(
        script: impl Fn(usize) -> Option<&'static str> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (listener, address) = listen().await?;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (noted, script) = (Arc::clone(&requests), Arc::new(script));
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (noted, script) = (Arc::clone(&noted), Arc::clone(&script));
                tokio::spawn(async move {
                    let request = read_request(&mut client).await?;
                    let answer = {
                        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                        noted.push(String::from_utf8_lossy(&request).into_owned());
                        script(noted.len() - 1)
                    };
                    match answer {
                        Some(answer) => client.write_all(answer.as_bytes()).await,
                        None => std::future::pending().await,
                    }
                });
            }
        });
        Ok(Self {
            address,
            requests,
            _task: Task(task),
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far, head and body.
    pub fn requests(&self) -> Vec<String> {
        let requests = self.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Passes requests on to a server, and loses answers: what was asked for is done, and the client does not know.
pub struct Relay {
    address: SocketAddr,
    lost: Arc<AtomicUsize>,
    _task: Task,
}

impl Relay {
    /// Starts one that closes the connection in the place of the first `most` answers.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(server: SocketAddr, most: usize) -> Result<Self> {
        let (listener, address) = listen().await?;
        let lost = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&lost);
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let request = read_request(&mut client).await?;
                    let mut server = TcpStream::connect(server).await?;
                    server.write_all(&request).await?;
                    let mut first = [0];
                    server.read_exact(&mut first).await?;
                    if count.load(Ordering::Relaxed) < most {
                        count.fetch_add(1, Ordering::Relaxed);
                        return Ok(());
                    }
                    client.write_all(&first).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server)
                        .await
                        .map(drop)
                });
            }
        });
        Ok(Self {
            address,
            lost,
            _task: Task(task),
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many answers it lost.
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }
}

/// A server that can be switched off and on again, as its clients see it.
pub struct Door {
    address: SocketAddr,
    open: watch::Sender<bool>,
    _task: Task,
}

impl Door {
    /// Starts one that passes connections on to a server.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let (listener, address) = listen().await?;
        let (open, is_open) = watch::channel(true);
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut is_open = is_open.clone();
                if !*is_open.borrow() {
                    continue;
                }
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(server).await?;
                    tokio::select! {
                        passed = tokio::io::copy_bidirectional(&mut client, &mut server) => {
                            passed.map(drop)
                        }
                        _ = is_open.wait_for(|open| !open) => Ok(()),
                    }
                });
            }
        });
        Ok(Self {
            address,
            open,
            _task: Task(task),
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Switches it off or on. Connections end when it goes off, and new ones are ended at once as long as it is.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

/// A request whose length is told by its head.
async fn read_request(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    const END: &[u8] = b"\r\n\r\n";
    let mut request = Vec::new();
    loop {
        if client.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some(head) = request.windows(END.len()).position(|bytes| bytes == END) else {
            continue;
        };
        let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
            .unwrap_or(0);
        if request.len() >= head + END.len() + length {
            return Ok(request);
        }
    }
}
