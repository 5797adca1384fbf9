//! Where the server is and how it is asked. Keys of `[openehr]`, already checked one by one; what only
//! shows when they come together is checked by [`Cdr::connect`](crate::Cdr::connect).

use std::path::PathBuf;
use std::time::Duration;

use atlas_engine::{Error, ErrorKind, Result};
use backon::{BackoffBuilder, ExponentialBuilder};
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
    /// Bytes of one answer at most, after decompression, and so of one composition: `export.max_composition_mb`.
    pub body_limit: usize,
    /// Requests in flight at most, and so connections.
    pub parallel: usize,
    /// How far the server's clock may be from this machine's before that is told.
    pub max_clock_skew: Duration,
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
            max_clock_skew: Duration::from_secs(300),
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

/// What is done about failures that pass: waits grow by `multiplier` from `initial_delay` up to `max_delay`, each one longer
/// by a random part of itself, and never longer than `max_delay`. A server's `Retry-After` counts instead, whatever
/// `max_delay` says, up to [`Retry::LONGEST_PAUSE`].
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts after the first one.
    pub max_retries: u32,
    /// The first wait.
    pub initial_delay: Duration,
    /// The longest wait.
    pub max_delay: Duration,
    /// How much longer each wait is than the one before.
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
    /// The longest `Retry-After` that is waited for inside a request. A server that asks for more is left alone: the error
    /// `SourceBusy` says for how long, at once. A caller with less time drops the request, which ends the wait.
    pub const LONGEST_PAUSE: Duration = Duration::from_secs(600);

    /// The waits between attempts, one for each retry.
    pub(crate) fn backoff(&self) -> ExponentialBuilder {
        self.growth().with_jitter()
    }

    /// The waits before a random part of each is added to it.
    fn growth(&self) -> ExponentialBuilder {
        ExponentialBuilder::new()
            .with_min_delay(self.initial_delay)
            .with_max_delay(self.max_delay)
            .with_factor(self.multiplier as f32)
            .with_max_times(usize::try_from(self.max_retries).unwrap_or(usize::MAX))
    }

    /// How long all waits of one request take at most, where the server asks for none of its own.
    #[must_use]
    pub fn longest_waits(&self) -> Duration {
        self.growth()
            .build()
            .map(|wait| wait.saturating_mul(2).min(self.max_delay))
            .fold(Duration::ZERO, Duration::saturating_add)
    }

    /// The wait before the next attempt: `planned` by [`backoff`](Self::backoff) (`None` = there is no next one), or what
    /// the server `asked` for.
    pub(crate) fn wait(
        &self,
        planned: Option<Duration>,
        asked: Option<Duration>,
    ) -> Option<Duration> {
        match asked {
            Some(asked) => planned.and((asked <= Self::LONGEST_PAUSE).then_some(asked)),
            None => planned.map(|planned| planned.min(self.max_delay)),
        }
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

    fn waits(retry: &Retry) -> Vec<Duration> {
        retry
            .backoff()
            .build()
            .filter_map(|planned| retry.wait(Some(planned), None))
            .collect()
    }

    #[test]
    fn waits_grow_up_to_the_longest_one() {
        let retry = Retry {
            max_retries: 7,
            ..Retry::default()
        };
        for _ in 0..100 {
            let waits = waits(&retry);
            assert_eq!(waits.len(), 7);
            for (wait, least) in waits.iter().zip([1, 2, 4, 8, 16, 30, 30]) {
                let least = Duration::from_secs(least);
                assert!((least..=least * 2).contains(wait), "{waits:?}");
                assert!(*wait <= retry.max_delay, "{waits:?}");
            }
        }
    }

    #[test]
    fn a_pause_the_server_asked_for_is_kept_whatever_the_longest_wait_is() {
        let retry = Retry::default();
        let asked = |seconds| {
            retry.wait(
                Some(Duration::from_secs(1)),
                Some(Duration::from_secs(seconds)),
            )
        };
        for seconds in [0, 7, 31, 120, 600] {
            assert_eq!(asked(seconds), Some(Duration::from_secs(seconds)));
        }
        for seconds in [601, 3600, u64::MAX] {
            assert_eq!(asked(seconds), None, "longer than a request may wait");
        }
        assert_eq!(retry.wait(None, Some(Duration::ZERO)), None, "tried enough");
    }

    #[test]
    fn no_delay_at_all_is_a_delay_of_nothing() {
        let retry = Retry {
            initial_delay: Duration::ZERO,
            max_delay: Duration::ZERO,
            ..Retry::default()
        };
        assert_eq!(waits(&retry), [Duration::ZERO; 3]);
        let never = Retry {
            max_retries: 0,
            ..retry
        };
        assert!(waits(&never).is_empty());
    }
}
