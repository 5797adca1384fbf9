//! A relay before a server that counts what passes. It changes nothing, but it takes time: what is timed goes past it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use atlas_ehrbase::Access;
use reqwest::Url;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy};
use tokio::net::{TcpListener, TcpStream};

use xtask::Result;

/// In the address of a web template, before the template's id.
const WEB_TEMPLATE: &str = "/definition/template/adl1.4/";

/// Ends with the runtime that it was started in.
pub(crate) struct Relay {
    /// Where it is, with the server's users.
    pub(crate) access: Access,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    requests: AtomicUsize,
    web_templates: AtomicUsize,
}

/// What passed since somebody asked last.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passed {
    /// Requests of any kind.
    pub(crate) requests: usize,
    /// Those for a web template.
    pub(crate) web_templates: usize,
}

impl Relay {
    /// Before a server that listens on this machine.
    pub(crate) async fn start(access: &Access) -> Result<Self> {
        let mut url = Url::parse(&access.base_url)?;
        let server = url.port().ok_or("the server's address has no port")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        url.set_port(Some(listener.local_addr()?.port()))
            .map_err(|()| "the server's address takes no port")?;
        let relay = Self {
            access: Access {
                base_url: url.to_string(),
                ..access.clone()
            },
            counters: Arc::default(),
        };
        let counters = Arc::clone(&relay.counters);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let counters = Arc::clone(&counters);
                tokio::spawn(async move { pass(client, server, &counters).await });
            }
        });
        Ok(relay)
    }

    pub(crate) fn passed(&self) -> Passed {
        let take = |counter: &AtomicUsize| counter.swap(0, Ordering::Relaxed);
        Passed {
            requests: take(&self.counters.requests),
            web_templates: take(&self.counters.web_templates),
        }
    }
}

/// One connection: answers go back as they come, requests are looked at one by one.
async fn pass(client: TcpStream, server: u16, counters: &Counters) -> std::io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
    let mut requests = BufReader::new(from_client);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if requests.read_until(b'\n', &mut head).await? == 0 {
                return Ok(());
            }
        }
        let text = String::from_utf8_lossy(&head);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        if text
            .lines()
            .next()
            .is_some_and(|line| line.contains(WEB_TEMPLATE))
        {
            counters.web_templates.fetch_add(1, Ordering::Relaxed);
        }
        let body = body_length(&text);
        to_server.write_all(&head).await?;
        copy(&mut (&mut requests).take(body), &mut to_server).await?;
    }
}

/// Bytes behind the head of a request; our clients always say it.
fn body_length(head: &str) -> u64 {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, length)| length.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn requests_of_one_connection_pass_unchanged_and_are_counted() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let access = Access {
            base_url: format!("http://{}", listener.local_addr().unwrap()),
            user: String::new(),
            password: String::new(),
            admin_user: String::new(),
            admin_password: String::new(),
        };
        let relay = Relay::start(&access).await.unwrap();
        let port = Url::parse(&relay.access.base_url).unwrap().port().unwrap();
        let requests = "POST /query/aql HTTP/1.1\r\ncontent-length: 35\r\n\r\nGET /definition/template/adl1.4/a\r\n\
                        GET /definition/template/adl1.4/a HTTP/1.1\r\n\r\nGET /definition/template/adl1.4 HTTP/1.1\r\n\r\n";
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        client.write_all(requests.as_bytes()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut arrived = vec![0; requests.len()];
        server.read_exact(&mut arrived).await.unwrap();
        assert_eq!(arrived, requests.as_bytes());
        server.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        let passed = relay.passed();
        assert_eq!((passed.requests, passed.web_templates), (3, 1));
        assert_eq!(relay.passed().requests, 0);
    }
}
