use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::Result;
use crate::authority::Authority;
use crate::server::{Task, listen, serve};

const CHALLENGE: &str =
    r#"Bearer authorization="https://login.windows.net/tests", resource="https://vault.azure.net""#;

/// An Azure Key Vault with secrets that any token opens. It has the name of a real one, so clients reach it through the
/// proxy that comes with it.
///
/// ```text
/// client ── CONNECT NAME.vault.azure.net:443 ──► proxy ──► vault
///        ◄──────────── TLS, 401 with a challenge, token, secret ───────────►
/// ```
pub struct Vault {
    host: String,
    proxy: SocketAddr,
    _tasks: [Task; 2],
}

type Secrets = Arc<HashMap<String, String>>;

impl Vault {
    /// Starts one with a name. A secret is named `NAME`, or `NAME/VERSION` if it is asked for with its version. The name
    /// `denied` is refused.
    ///
    /// # Errors
    /// No free port.
    pub async fn start<const N: usize>(
        authority: &Authority,
        name: &str,
        secrets: [(&str, &str); N],
    ) -> Result<Self> {
        let host = format!("{name}.vault.azure.net");
        let secrets = secrets.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let secrets: Secrets = Arc::new(secrets.into_iter().collect());
        let router = Router::new()
            .route("/secrets/{*name}", get(secret))
            .with_state(secrets);
        let (vault_task, vault) = serve(router, Some(authority.acceptor(&host)?)).await?;
        let (listener, proxy) = listen().await?;
        let proxy_task = Task(tokio::spawn(forward(listener, vault)));
        Ok(Self {
            host,
            proxy,
            _tasks: [vault_task, proxy_task],
        })
    }

    /// `https://VAULT.vault.azure.net/secrets/NAME`.
    pub fn secret(&self, name: &str) -> String {
        format!("https://{}/secrets/{name}", self.host)
    }

    /// What a program needs in its environment to reach it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("HTTPS_PROXY", format!("http://{}", self.proxy)),
            ("NO_PROXY", "127.0.0.1".to_owned()),
        ]
    }
}

async fn secret(
    State(secrets): State<Secrets>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if !headers.contains_key("authorization") {
        return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, CHALLENGE)]).into_response();
    }
    let name = name.trim_end_matches('/');
    let refusal = |status: StatusCode, code: &str| {
        let body = json!({ "error": { "code": code, "message": "told by the tests" } });
        (status, Json(body)).into_response()
    };
    if name == "denied" {
        return refusal(StatusCode::FORBIDDEN, "Forbidden");
    }
    match secrets.get(name) {
        Some(value) => Json(json!({ "value": value })).into_response(),
        None => refusal(StatusCode::NOT_FOUND, "SecretNotFound"),
    }
}

/// A proxy that leads everywhere to the vault.
async fn forward(listener: TcpListener, vault: SocketAddr) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut client = BufReader::new(client);
            let mut line = String::new();
            // The head of the CONNECT request; what it asks for does not matter.
            while client.read_line(&mut line).await? > 0 && line != "\r\n" {
                line.clear();
            }
            let mut vault = TcpStream::connect(vault).await?;
            client
                .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .await?;
            copy_bidirectional(&mut client, &mut vault).await
        });
    }
}
