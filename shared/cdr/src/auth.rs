//! The `Authorization` header; OIDC tokens are fetched, kept and renewed.

use std::borrow::Cow;
use std::time::Duration;

use atlas_engine::{Error, ErrorKind, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Client, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Mutex;
use tokio::time::Instant as Moment;
use tracing::debug;
use url::form_urlencoded::byte_serialize;

use crate::config::{Auth, Oidc, address};
use crate::failure::Failure;
use crate::http::{Limits, begin, read_body, refusal};

/// A token is renewed so long before it expires, at most.
const MARGIN: Duration = Duration::from_secs(30);
/// How long a token is taken for good whose provider does not say.
const UNSAID: Duration = Duration::from_secs(300);
/// No token is taken for good for longer, whatever its provider says: a time that far away must not overflow.
const MOST: Duration = Duration::from_secs(24 * 3_600);
/// An answer with a token is never larger.
const TOKEN_BYTES: usize = 1 << 20;

/// What goes into the `Authorization` header.
pub(crate) enum Authorization {
    /// The same each time; `None` = no header.
    Fixed(Option<HeaderValue>),
    /// A token with an end.
    Oidc(Box<Tokens>),
}

/// The token in use, and how to get the next one.
pub(crate) struct Tokens {
    url: Url,
    settings: Oidc,
    limits: Limits,
    /// Locked while a token is fetched, so that one fetch serves everybody who waits.
    held: Mutex<Option<Token>>,
}

struct Token {
    header: HeaderValue,
    fresh_until: Moment,
}

impl Authorization {
    pub(crate) fn new(auth: &Auth, limits: Limits) -> Result<Self> {
        Ok(match auth {
            Auth::None => Self::Fixed(None),
            Auth::Basic { user, password } => {
                if user.contains(':') {
                    return Err(Error::new(ErrorKind::Usage, "use openehr.username")
                        .fix("A user name with a colon cannot be sent by basic authentication."));
                }
                Self::Fixed(Some(basic(user, password.expose_secret()).map_err(|error| {
                    Error::new(ErrorKind::Usage, "use openehr.username and password").because(error)
                })?))
            }
            Auth::Bearer { token } => Self::Fixed(Some(bearer(token.expose_secret()).map_err(|error| {
                Error::new(ErrorKind::Usage, "use the bearer token")
                    .because(error)
                    .fix("A token is one line of visible ASCII characters: look for a line break or a blank in it.")
            })?)),
            Auth::Oidc(settings) => Self::Oidc(Box::new(Tokens {
                url: address(&settings.token_url, "openehr.oidc_token_url")?,
                settings: settings.clone(),
                limits: Limits {
                    bytes: TOKEN_BYTES,
                    ..limits
                },
                held: Mutex::new(None),
            })),
        })
    }

    /// The header for the next request.
    pub(crate) async fn header(&self, client: &Client) -> Result<Option<HeaderValue>, Failure> {
        match self {
            Self::Fixed(header) => Ok(header.clone()),
            Self::Oidc(tokens) => tokens.other_than(None, client).await.map(Some),
        }
    }

    /// Another header after the server refused `used`, if there can be one.
    pub(crate) async fn renewed(
        &self,
        client: &Client,
        used: &HeaderValue,
    ) -> Result<Option<HeaderValue>, Failure> {
        match self {
            Self::Fixed(_) => Ok(None),
            Self::Oidc(tokens) => tokens.other_than(Some(used), client).await.map(Some),
        }
    }
}

impl Tokens {
    async fn other_than(
        &self,
        refused: Option<&HeaderValue>,
        client: &Client,
    ) -> Result<HeaderValue, Failure> {
        let mut held = self.held.lock().await;
        if let Some(token) = held.as_ref()
            && Moment::now() < token.fresh_until
            && refused != Some(&token.header)
        {
            return Ok(token.header.clone());
        }
        // A token that was refused or is stale is gone even if no new one can be had.
        *held = None;
        let token = self
            .fetch(client)
            .await
            .map_err(|failure| Failure::Token(Box::new(failure)))?;
        let header = token.header.clone();
        *held = Some(token);
        Ok(header)
    }

    async fn fetch(&self, client: &Client) -> Result<Token, Failure> {
        let Oidc {
            client_id,
            client_secret,
            scope,
            user,
            ..
        } = &self.settings;
        let mut form = Vec::new();
        match user {
            Some((name, password)) => form.extend([
                ("grant_type", "password"),
                ("username", name.as_str()),
                ("password", password.expose_secret()),
            ]),
            None => form.push(("grant_type", "client_credentials")),
        }
        if let Some(scope) = scope {
            form.push(("scope", scope));
        }
        let mut request = client.post(self.url.clone());
        match client_secret {
            Some(secret) => {
                request = request.header(AUTHORIZATION, client_header(client_id, secret)?)
            }
            None => form.push(("client_id", client_id)),
        }
        let started = Moment::now();
        let response = begin(request.form(&form), self.limits).await?;
        debug!(
            status = response.status().as_u16(),
            elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the identity provider answered"
        );
        if !response.status().is_success() {
            return Err(refusal(response.status(), response.headers()));
        }
        let body = SecretString::from(read_body(response, self.limits, |_| {}).await?);
        // The error of the parser can hold a piece of the token.
        let answer: TokenAnswer<'_> = serde_json::from_str(body.expose_secret())
            .map_err(|_| Failure::Shape("a token was expected"))?;
        let lifetime = answer.expires_in.and_then(lifetime).unwrap_or(UNSAID);
        Ok(Token {
            header: bearer(&answer.access_token)
                .map_err(|_| Failure::Shape("a token that fits into a header was expected"))?,
            fresh_until: started + lifetime.saturating_sub(MARGIN.min(lifetime / 2)),
        })
    }
}

#[derive(Deserialize)]
struct TokenAnswer<'a> {
    #[serde(borrow)]
    access_token: Cow<'a, str>,
    /// Seconds; some providers write them as a text.
    #[serde(borrow, default)]
    expires_in: Option<&'a RawValue>,
}

/// How long a token is good, as far as that can be believed: `None` if no number says so, or one below zero.
fn lifetime(said: &RawValue) -> Option<Duration> {
    let text = said.get().trim_matches('"');
    let seconds: f64 = text.trim().parse().ok().filter(|seconds| *seconds >= 0.0)?;
    Some(Duration::try_from_secs_f64(seconds).map_or(MOST, |said| said.min(MOST)))
}

/// RFC 6749 section 2.3.1: both parts are form-encoded before they become user name and password.
fn client_header(id: &str, secret: &SecretString) -> Result<HeaderValue, Failure> {
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    basic(&encoded(id), &encoded(secret.expose_secret()))
        .map_err(|_| Failure::Shape("a client that fits into a header was expected"))
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, reqwest::header::InvalidHeaderValue> {
    let pair = BASE64_STANDARD.encode(format!("{user}:{password}"));
    secret_header(&format!("Basic {pair}"))
}

fn bearer(token: &str) -> Result<HeaderValue, reqwest::header::InvalidHeaderValue> {
    secret_header(&format!("Bearer {token}"))
}

/// Sensitive: prints as `Sensitive`.
fn secret_header(text: &str) -> Result<HeaderValue, reqwest::header::InvalidHeaderValue> {
    let mut header = HeaderValue::from_str(text)?;
    header.set_sensitive(true);
    Ok(header)
}
