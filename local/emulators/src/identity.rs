use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use url::form_urlencoded;

use crate::authority::Authority;
use crate::server::{Task, serve};
use crate::{Context, Result};

const HEADER: &str = "header-of-the-tests";
const ASSERTION: &str = "assertion-of-the-tests";

type Asked = Arc<Mutex<Vec<HashMap<String, String>>>>;

/// Gives out tokens for any resource, as the identity endpoint of Azure Functions does and as Entra ID does for a workload
/// identity. No token is signed; [`Azurite`](crate::Azurite) with TLS and [`Vault`](crate::Vault) take them.
pub struct Identity {
    managed: SocketAddr,
    entra: SocketAddr,
    assertion: NamedTempFile,
    asked: Asked,
    _tasks: [Task; 2],
}

impl Identity {
    /// Starts it.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(authority: &Authority) -> Result<Self> {
        let asked = Asked::default();
        let router = Router::new()
            .route("/msi/token", get(managed_token))
            .with_state(Arc::clone(&asked));
        let (managed_task, managed) = serve(router, None).await?;
        let router = Router::new()
            .route("/{tenant}/oauth2/v2.0/token", post(workload_token))
            .with_state(Arc::clone(&asked));
        let (entra_task, entra) = serve(router, Some(authority.acceptor("127.0.0.1")?)).await?;
        let assertion = NamedTempFile::new().context("write an assertion")?;
        std::fs::write(assertion.path(), ASSERTION).context("write an assertion")?;
        Ok(Self {
            managed,
            entra,
            assertion,
            asked,
            _tasks: [managed_task, entra_task],
        })
    }

    /// What a program finds in its environment when its function app has an identity.
    pub fn managed(&self) -> Vec<(&'static str, String)> {
        vec![
            (
                "IDENTITY_ENDPOINT",
                format!("http://{}/msi/token", self.managed),
            ),
            ("IDENTITY_HEADER", HEADER.to_owned()),
        ]
    }

    /// What a program finds in its environment when its pod has a workload identity.
    pub fn workload(&self) -> Vec<(&'static str, String)> {
        let file = self.assertion.path().to_string_lossy().into_owned();
        vec![
            ("AZURE_AUTHORITY_HOST", format!("https://{}", self.entra)),
            ("AZURE_TENANT_ID", "tenant-of-the-tests".to_owned()),
            ("AZURE_CLIENT_ID", "client-of-the-tests".to_owned()),
            ("AZURE_FEDERATED_TOKEN_FILE", file),
        ]
    }

    /// The parameters of each request so far.
    pub fn asked(&self) -> Vec<HashMap<String, String>> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn note(asked: &Asked, request: HashMap<String, String>) {
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    asked.push(request);
}

async fn managed_token(
    State(asked): State<Asked>,
    Query(request): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Json<Value>, StatusCode> {
    if headers.get("x-identity-header").map(|h| h.as_bytes()) != Some(HEADER.as_bytes()) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let resource = request.get("resource").ok_or(StatusCode::BAD_REQUEST)?;
    let (token, until) = token(resource);
    let answer = json!({
        "access_token": token,
        "expires_on": until.to_string(),
        "resource": resource,
        "token_type": "Bearer",
    });
    note(&asked, request);
    Ok(Json(answer))
}

async fn workload_token(
    State(asked): State<Asked>,
    body: String,
) -> Result<Json<Value>, StatusCode> {
    let request: HashMap<String, String> = form_urlencoded::parse(body.as_bytes())
        .into_owned()
        .collect();
    if request.get("client_assertion").map(String::as_str) != Some(ASSERTION) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let scope = request.get("scope").ok_or(StatusCode::BAD_REQUEST)?;
    let (token, _) = token(scope.trim_end_matches("/.default"));
    note(&asked, request);
    Ok(Json(
        json!({ "access_token": token, "expires_in": 3_600, "token_type": "Bearer" }),
    ))
}

/// A token for an audience with nothing in the place of its signature, and when it expires (Unix seconds).
fn token(audience: &str) -> (String, i64) {
    let now = Timestamp::now().as_second();
    let until = now + 3_600;
    let claims = json!({
        "aud": audience,
        "iss": "https://sts.windows.net/tenant-of-the-tests/",
        "iat": now,
        "nbf": now - 60,
        "exp": until,
    });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = json!({ "alg": "none", "typ": "JWT" });
    (format!("{}.{}.", part(head), part(claims)), until)
}
