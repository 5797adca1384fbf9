//! Servers of ours: tasks of the test's runtime that end when they are dropped.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::{Context, Result};

/// Ends its task when it is dropped.
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A free port of this machine.
pub(crate) async fn listen() -> Result<(TcpListener, SocketAddr)> {
    let action = "listen on a free port";
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context(action)?;
    let address = listener.local_addr().context(action)?;
    Ok((listener, address))
}

/// Answers requests over http, or over https if there is an acceptor.
pub(crate) async fn serve(
    router: Router,
    acceptor: Option<TlsAcceptor>,
) -> Result<(Task, SocketAddr)> {
    let (listener, address) = listen().await?;
    let task = tokio::spawn(async move {
        // Never ends by itself.
        let _ = match acceptor {
            None => axum::serve(listener, router).await,
            Some(acceptor) => axum::serve(Tls { listener, acceptor }, router).await,
        };
    });
    Ok((Task(task), address))
}

struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // By axum's own rules for connections that fail.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // A client that does not trust us has gone away; the next one may.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
