//! Where the server is and how it is asked. Keys of `[openehr]`, already checked one by one; what only
//! shows when they come together is checked by [`Cdr::connect`](crate::Cdr::connect).

use std::path::PathBuf;
use std::time::Duration;

use atlas_engine::{Error, ErrorKind, Result};
use secrecy::SecretString;
use url::Url;

/// Everything that [`Cdr::connect`](crate::Cdr::connect) wants to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address of the server, such as `https://cdr.example.org/ehrbase`; `/rest/openehr/v1` behind it does not matter.
    pub base_url: String,
    /// Whose dialect the server speaks; `None` = the one that is known best (EHRbase).
    pub vendor: Option<Vendor>,
    /// Who asks.
    pub auth: Auth,
    /// How the connection is protected.
    pub tls: Tls,
    /// How long an answer may take to begin, and then again to end.
    pub timeout: Duration,
    /// What is done about failures that pass.
    pub retry: Retry,
    /// Bytes of one answer at most, after decompression.
    pub body_limit: usize,
    /// Requests in flight at most, and so connections.
    pub parallel: usize,
}

impl Config {
    /// The defaults of the configuration file, without authentication.
    #[must_use]
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            vendor: None,
            auth: Auth::None,
            tls: Tls::default(),
            timeout: Duration::from_secs(60),
            retry: Retry::default(),
            body_limit: 24 << 20,
            parallel: 8,
        }
    }
}

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// EHRbase 2.
    EhrBase,
    /// Better Platform.
    Better,
    /// Ocean Health Systems.
    Ocean,
}

/// Who asks.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Nobody in particular.
    None,
    /// User name and password with each request.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: SecretString,
    },
    /// A token that somebody else renews.
    Bearer {
        /// The token.
        token: SecretString,
    },
    /// Tokens from an identity provider.
    Oidc(Oidc),
}

/// How tokens are got from an identity provider: the password grant if there is a `user`, else client credentials.
#[derive(Debug, Clone)]
pub struct Oidc {
    /// The provider's token endpoint.
    pub token_url: String,
    /// Client.
    pub client_id: String,
    /// `None` for a public client.
    pub client_secret: Option<SecretString>,
    /// Scopes, separated by blanks.
    pub scope: Option<String>,
    /// User name and password.
    pub user: Option<(String, SecretString)>,
}

/// How the connection is protected. Files are PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Whether the server's certificate is looked at.
    pub verify: bool,
    /// Authorities to trust besides those of the system.
    pub ca_cert: Option<PathBuf>,
    /// Certificate of this client, its chain behind it.
    pub client_cert: Option<PathBuf>,
    /// Key of `client_cert`, not encrypted.
    pub client_key: Option<PathBuf>,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            verify: true,
            ca_cert: None,
            client_cert: None,
            client_key: None,
        }
    }
}

/// What is done about failures that pass: waits grow by `multiplier` from `initial_delay` up to `max_delay`,
/// each one drawn evenly between nothing and that (full jitter). A server's `Retry-After` counts instead, up to `max_delay`.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts after the first one.
    pub max_retries: u32,
    /// The longest first wait.
    pub initial_delay: Duration,
    /// The longest wait.
    pub max_delay: Duration,
    /// How much longer each wait may be than the one before.
    pub multiplier: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_retries: 3,
            initial_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
            multiplier: 2.0,
        }
    }
}

impl Retry {
    /// How long to wait after the `tried`-th retry failed (0 = the first attempt). `chance` is drawn from 0 to 1.
    pub(crate) fn delay(&self, tried: u32, asked: Option<Duration>, chance: f64) -> Duration {
        if let Some(asked) = asked {
            return asked.min(self.max_delay);
        }
        let exponent = i32::try_from(tried).unwrap_or(i32::MAX);
        let most = self.initial_delay.as_secs_f64() * self.multiplier.powi(exponent);
        self.max_delay
            .mul_f64((most / self.max_delay.as_secs_f64().max(f64::MIN_POSITIVE)).clamp(0.0, 1.0))
            .mul_f64(chance.clamp(0.0, 1.0))
    }
}

/// Checks an address: http or https, and no credentials in it, because addresses are shown to people.
pub(crate) fn address(text: &str, key: &'static str) -> Result<Url> {
    let wrong = |fix: &'static str| Error::new(ErrorKind::Usage, format!("use {key}")).fix(fix);
    let url = Url::parse(text.trim()).map_err(|error| {
        wrong("It must be a whole address, such as https://cdr.example.org/ehrbase.").because(error)
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("It must begin with http:// or https://."));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "Take the credentials out of the address: they have keys of their own.",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("Take `?…` and `#…` out of the address."));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_longest_one() {
        let retry = Retry::default();
        let most: Vec<f64> = (0..7)
            .map(|tried| retry.delay(tried, None, 1.0).as_secs_f64())
            .collect();
        let expected = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0];
        for (got, want) in most.iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{most:?}");
        }
        assert_eq!(retry.delay(u32::MAX, None, 1.0), retry.max_delay);
        assert_eq!(retry.delay(3, None, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_pause_the_server_asked_for_is_kept_but_not_beyond_the_longest_wait() {
        let retry = Retry::default();
        let asked = |seconds| retry.delay(0, Some(Duration::from_secs(seconds)), 0.5);
        assert_eq!(asked(7), Duration::from_secs(7));
        assert_eq!(asked(3600), retry.max_delay);
    }

    #[test]
    fn no_delay_at_all_is_a_delay_of_nothing() {
        let retry = Retry {
            initial_delay: Duration::ZERO,
            max_delay: Duration::ZERO,
            ..Retry::default()
        };
        assert_eq!(retry.delay(2, None, 1.0), Duration::ZERO);
    }
}
