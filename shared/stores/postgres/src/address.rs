//! The connection string as libpq reads it: a URL or `key=value` text. What Atlas does not do is refused by name.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atlas_engine::{Error, ErrorKind};
use percent_encoding::percent_decode_str;
use secrecy::ExposeSecret;
use tokio_postgres::config::{ChannelBinding, LoadBalanceHosts, TargetSessionAttrs};

use crate::config::{Config, SslMode};

/// A server that is gone without a word is noticed after about a minute of silence.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;
const PORT: u16 = 5432;
/// Stands for a part of a string that is not known, such as a variable.
const UNKNOWN: char = '\0';

/// Where to connect and as whom.
#[derive(Clone)]
pub(crate) struct Address {
    /// In the order in which they are tried.
    pub(crate) hosts: Vec<Host>,
    /// Everything but hosts, ports and TLS.
    pub(crate) server: tokio_postgres::Config,
    /// Over TCP.
    pub(crate) ssl_mode: SslMode,
    /// `None` = the system's authorities where a chain has to be checked.
    pub(crate) root_cert: Option<RootCert>,
    /// The certificate by which the client shows who it is, and its key; both PEM files.
    pub(crate) client_cert: Option<(PathBuf, PathBuf)>,
    /// Whether the server is told by which name it was looked up.
    pub(crate) sends_name: bool,
    /// Whether nothing older than TLS 1.3 will do.
    pub(crate) only_tls13: bool,
    /// For opening a connection.
    pub(crate) timeout: Duration,
}

/// The file of the authorities to trust.
#[derive(Debug, Clone)]
pub(crate) struct RootCert {
    pub(crate) path: PathBuf,
    /// The key or parameter that names it.
    pub(crate) named_by: &'static str,
}

/// One of the servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// Name or address, by which the certificate is checked; a folder, if it begins with `/`.
    pub(crate) name: String,
    /// Where to connect to instead of looking up the name.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
}

/// How far a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Socket,
    Loopback,
    Network,
}

impl Host {
    pub(crate) fn reach(&self) -> Reach {
        let address = self.address.or_else(|| self.name.parse().ok());
        match address {
            Some(address) if address.is_loopback() => Reach::Loopback,
            Some(_) => Reach::Network,
            None if self.name.starts_with('/') => Reach::Socket,
            None if self.name.eq_ignore_ascii_case("localhost") => Reach::Loopback,
            None => Reach::Network,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.as_str(), self.address) {
            ("", Some(address)) => address.fmt(f),
            (name, _) => f.write_str(name),
        }
    }
}

/// Why a connection string cannot be used. Of what was written it shows names of libpq's parameters and nothing else: any other
/// word may be a part of a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// It cannot be read, or asks for what Atlas does not do.
    #[error("{0}")]
    Wrong(String),
    /// It says something else than the configuration beside it.
    #[error("`{parameter}` in it says something else than `postgresql.{key}`")]
    Contradiction {
        /// The parameter of libpq.
        parameter: &'static str,
        /// The key of the section.
        key: &'static str,
    },
}

impl ConnectionError {
    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::Wrong(_) => "Write postgres://user:password@host:5432/database (special characters as %41) or \
                 \"host=… user=… password=… dbname=…\", with the parameters that docs/configuration.md names."
                .to_owned(),
            Self::Contradiction { parameter, key } => {
                format!("Leave one of them out: `{parameter}` or `postgresql.{key}`.")
            }
        }
    }
}

impl From<ConnectionError> for Error {
    fn from(error: ConnectionError) -> Self {
        let fix = error.fix();
        let action = format!("use postgresql.connection_string: {error}");
        Self::new(ErrorKind::Usage, action).fix(fix)
    }
}

type Result<T> = std::result::Result<T, ConnectionError>;

fn wrong(what: impl fmt::Display) -> ConnectionError {
    ConnectionError::Wrong(what.to_string())
}

/// Parameters that let somebody in, whether or not Atlas supports them.
const SECRETS: &[&str] = &[
    "oauth_client_secret",
    "password",
    "scram_client_key",
    "scram_server_key",
    "sslpassword",
];

/// All in a connection string that lets somebody in; nothing if it cannot be read.
pub(crate) fn secrets(text: &str) -> Vec<String> {
    let found = parameters(text).unwrap_or_default().into_iter();
    let is_secret = |key: &str| SECRETS.contains(&key.trim_start_matches(UNKNOWN));
    found
        .filter(|(key, value)| is_secret(key) && !value.is_empty())
        .map(|(_, value)| value)
        .collect()
}

impl Address {
    /// # Errors
    /// What cannot be read, is not supported, or contradicts the file.
    pub(crate) fn of(config: &Config) -> Result<Self> {
        let text = config.connection_string.expose_secret();
        let mut reading = Reading::default();
        for (key, value) in parameters(text)? {
            reading.take(&key, &value)?;
        }
        reading.finish(config)
    }
}

/// The parameters that were seen so far.
#[derive(Default)]
struct Reading {
    server: tokio_postgres::Config,
    hosts: Vec<String>,
    addresses: Vec<Option<IpAddr>>,
    ports: Vec<u16>,
    timeout: Option<Duration>,
    application: Option<String>,
    fallback_application: Option<String>,
    ssl_mode: Option<SslMode>,
    root_cert: Option<String>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    without_name: bool,
    only_tls13: bool,
    user_timeout: Option<Duration>,
    keepalive_after: Option<Duration>,
    keepalive_every: Option<Duration>,
    keepalive_tries: Option<u32>,
}

impl Reading {
    fn take(&mut self, key: &str, value: &str) -> Result<()> {
        let not = |rule: &str| wrong(format_args!("the parameter `{key}` {rule}"));
        let number = || {
            let number = value.trim().parse::<u32>();
            number.map_err(|_| not("must be a whole number from 0 on"))
        };
        // Zero means the system's default in libpq.
        let seconds = || number().map(|n| (n > 0).then(|| Duration::from_secs(n.into())));
        match key {
            "user" => {
                self.server.user(value);
            }
            "password" if value.is_empty() => {}
            "password" => {
                self.server.password(value);
            }
            "dbname" => {
                self.server.dbname(value);
            }
            "options" => {
                self.server.options(value);
            }
            "host" => self.hosts = value.split(',').map(str::to_owned).collect(),
            "hostaddr" => {
                let addresses = value.split(',').map(|address| match address.trim() {
                    "" => Ok(None),
                    address => address.parse().map(Some),
                });
                self.addresses = addresses
                    .collect::<std::result::Result<_, _>>()
                    .map_err(|_| not("must be IP addresses"))?;
            }
            "port" => {
                let ports = value.split(',').map(|port| match port.trim() {
                    "" => Some(PORT),
                    port => port.parse().ok().filter(|port| *port > 0),
                });
                self.ports = ports
                    .collect::<Option<_>>()
                    .ok_or_else(|| not("must be numbers from 1 to 65535"))?;
            }
            "connect_timeout" => self.timeout = seconds()?,
            "application_name" => self.application = Some(value.to_owned()),
            "fallback_application_name" => self.fallback_application = Some(value.to_owned()),
            "client_encoding" => one_of(value, &["UTF8", "UTF-8", "auto"])
                .ok_or_else(|| not("must be `UTF8`, in which Atlas speaks"))?,
            "keepalives" => {
                self.server.keepalives(number()? > 0);
            }
            "keepalives_idle" => self.keepalive_after = seconds()?,
            "keepalives_interval" => self.keepalive_every = seconds()?,
            "keepalives_count" => self.keepalive_tries = Some(number()?).filter(|n| *n > 0),
            "tcp_user_timeout" => {
                let millis = Duration::from_millis(number()?.into());
                self.user_timeout = Some(millis).filter(|timeout| !timeout.is_zero());
            }
            "target_session_attrs" => {
                self.server.target_session_attrs(match value {
                    "any" => TargetSessionAttrs::Any,
                    // Atlas writes: a primary that takes no writes is of no use to it.
                    "read-write" | "primary" => TargetSessionAttrs::ReadWrite,
                    "read-only" | "standby" | "prefer-standby" => {
                        return Err(not(
                            "asks for a server that takes no writes, and Atlas writes",
                        ));
                    }
                    _ => return Err(not("must be `any`, `read-write` or `primary`")),
                });
            }
            "load_balance_hosts" => {
                self.server.load_balance_hosts(match value {
                    "disable" => LoadBalanceHosts::Disable,
                    "random" => LoadBalanceHosts::Random,
                    _ => return Err(not("must be `disable` or `random`")),
                });
            }
            "channel_binding" => {
                self.server.channel_binding(match value {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return Err(not("must be `disable`, `prefer` or `require`")),
                });
            }
            "gssencmode" => one_of(value, &["disable", "prefer"])
                .ok_or_else(|| not("must be `disable` or `prefer`: Atlas has no GSSAPI"))?,
            "sslmode" => {
                let mode = value.parse().map_err(|error| not(&format!("{error}")))?;
                self.ssl_mode = Some(mode);
            }
            "sslrootcert" => {
                self.root_cert = Some(value.to_owned()).filter(|path| !path.is_empty())
            }
            "sslcert" => self.cert = Some(PathBuf::from(value)).filter(|path| path != ""),
            "sslkey" => self.key = Some(PathBuf::from(value)).filter(|path| path != ""),
            "sslsni" => self.without_name = number()? == 0,
            "sslcompression" => {
                one_of(value, &["0"]).ok_or_else(|| not("must be 0: no TLS of today compresses"))?
            }
            "sslnegotiation" => one_of(value, &["postgres"])
                .ok_or_else(|| not("must be `postgres`: Atlas does not do another"))?,
            "ssl_min_protocol_version" => match value {
                // Nothing older than 1.2 is spoken, whatever is allowed.
                "" | "TLSv1" | "TLSv1.1" | "TLSv1.2" => self.only_tls13 = false,
                "TLSv1.3" => self.only_tls13 = true,
                _ => return Err(not("must be TLSv1, TLSv1.1, TLSv1.2 or TLSv1.3")),
            },
            "ssl_max_protocol_version" => one_of(value, &["", "TLSv1.3"])
                .ok_or_else(|| not("must be TLSv1.3: Atlas forbids no newer one"))?,
            _ if UNSUPPORTED.contains(&key) => {
                return Err(not(
                    "is libpq's, and Atlas does not support it: leave it out",
                ));
            }
            // A word that nobody knows may be a part of a password.
            _ => return Err(wrong("it has a parameter that libpq does not have")),
        }
        Ok(())
    }

    fn finish(mut self, config: &Config) -> Result<Address> {
        let hosts = self.hosts()?;
        let application = self.application.take().filter(|name| !name.is_empty());
        let application = application
            .or(self.fallback_application.take())
            .unwrap_or_else(|| "atlas".to_owned());
        let timeout = self.timeout.unwrap_or(config.connection_timeout);
        self.server
            .application_name(application)
            .connect_timeout(timeout)
            .keepalives_idle(self.keepalive_after.unwrap_or(KEEPALIVE_AFTER))
            .keepalives_interval(self.keepalive_every.unwrap_or(KEEPALIVE_EVERY))
            .keepalives_retries(self.keepalive_tries.unwrap_or(KEEPALIVE_TRIES))
            .tcp_user_timeout(
                self.user_timeout
                    .unwrap_or(config.statement_timeout + KEEPALIVE_AFTER),
            );

        let contradicts = |key, parameter| ConnectionError::Contradiction { parameter, key };
        let ssl_mode = match (config.ssl_mode, self.ssl_mode) {
            (Some(file), Some(string)) if file != string => {
                return Err(contradicts("ssl_mode", "sslmode"));
            }
            (file, string) => file.or(string),
        };
        let root_cert = match (&config.ssl_root_cert, self.root_cert) {
            (Some(file), Some(string)) if file.as_os_str() != string.as_str() => {
                return Err(contradicts("ssl_root_cert", "sslrootcert"));
            }
            (Some(file), _) => Some((file.clone(), "postgresql.ssl_root_cert")),
            (None, string) => string.map(|path| (PathBuf::from(path), "sslrootcert")),
        };
        let root_cert = root_cert.map(|(path, named_by)| RootCert { path, named_by });
        let is_system = root_cert
            .as_ref()
            .is_some_and(|cert| cert.path == Path::new("system"));
        if is_system && ssl_mode.is_some_and(|mode| mode < SslMode::VerifyFull) {
            return Err(wrong(
                "`sslrootcert` = `system` goes with `sslmode` = `verify-full` only",
            ));
        }
        let ssl_mode = ssl_mode.unwrap_or(SslMode::VerifyFull);
        if ssl_mode == SslMode::VerifyFull && hosts.iter().any(|host| host.name.is_empty()) {
            return Err(wrong(
                "`hostaddr` without `host` leaves no name that `verify-full` could check",
            ));
        }
        Ok(Address {
            hosts,
            server: self.server,
            ssl_mode,
            root_cert: root_cert.filter(|_| !is_system),
            client_cert: match (self.cert, self.key) {
                (Some(cert), Some(key)) => Some((cert, key)),
                (None, None) => None,
                _ => return Err(wrong("`sslcert` and `sslkey` go together")),
            },
            sends_name: !self.without_name,
            only_tls13: self.only_tls13,
            timeout,
        })
    }

    fn hosts(&mut self) -> Result<Vec<Host>> {
        let (hosts, addresses) = (&self.hosts, &self.addresses);
        let count = hosts.len().max(addresses.len());
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            return Err(wrong(
                "`host` and `hostaddr` name different numbers of servers",
            ));
        }
        if self.ports.len() > 1 && self.ports.len() != count {
            return Err(wrong("`port` and `host` name different numbers of servers"));
        }
        let servers = (0..count).map(|i| Host {
            name: hosts.get(i).cloned().unwrap_or_default(),
            address: addresses.get(i).copied().flatten(),
            port: *self.ports.get(i).or(self.ports.first()).unwrap_or(&PORT),
        });
        let servers: Vec<Host> = servers.collect();
        let is_missing = |host: &Host| host.name.is_empty() && host.address.is_none();
        if servers.is_empty() || servers.iter().any(is_missing) {
            return Err(wrong("it names no host"));
        }
        if servers.iter().any(|host| host.name.starts_with('@')) {
            return Err(wrong(
                "`host` names an abstract socket, which Atlas does not support",
            ));
        }
        Ok(servers)
    }
}

/// What libpq has and Atlas does not.
const UNSUPPORTED: &[&str] = &[
    "authtype",
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "oauth_ca_file",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_issuer",
    "oauth_scope",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "sslcertmode",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslpassword",
    "tty",
];

fn one_of(value: &str, words: &[&str]) -> Option<()> {
    let mut words = words.iter();
    words
        .any(|word| word.eq_ignore_ascii_case(value))
        .then_some(())
}

type Parameters = Vec<(String, String)>;

fn parameters(text: &str) -> Result<Parameters> {
    let mut schemes = ["postgresql://", "postgres://"].into_iter();
    match schemes.find_map(|scheme| text.strip_prefix(scheme)) {
        Some(rest) => of_url(rest),
        None => of_pairs(text),
    }
}

fn decoded(text: &str) -> Result<Cow<'_, str>> {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let mut percents = text.match_indices('%');
    if percents.any(|(at, _)| !is_digit(at + 1) || !is_digit(at + 2)) {
        return Err(wrong(
            "a `%` in the URL is not followed by two hexadecimal digits",
        ));
    }
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map_err(|_| wrong("a text with `%` in the URL is not UTF-8"))
}

/// `user:password@host:port,host:port/database?key=value&…`, all of it optional.
fn of_url(text: &str) -> Result<Parameters> {
    let mut found = Parameters::new();
    let mut add = |key: &str, value: &str| -> Result<()> {
        found.push((key.to_owned(), decoded(value)?.into_owned()));
        Ok(())
    };
    // As in libpq the credentials end at the first `@` that stands before any `/`.
    let (authority, _) = text.split_once('/').unwrap_or((text, ""));
    let rest = match authority.split_once('@') {
        Some((credentials, _)) => {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            if !user.is_empty() {
                add("user", user)?;
            }
            add("password", password)?;
            text.get(credentials.len() + 1..).unwrap_or_default()
        }
        None => text,
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (servers, database) = rest.split_once('/').unwrap_or((rest, ""));
    if !servers.is_empty() {
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        for server in servers.split(',') {
            let (host, port) = match server.strip_prefix('[') {
                Some(rest) => {
                    let (host, rest) = rest.split_once(']').ok_or_else(|| {
                        wrong("an IPv6 address in the URL has no closing bracket")
                    })?;
                    match rest.strip_prefix(':') {
                        Some(port) => (host, port),
                        None if rest.is_empty() => (host, ""),
                        None => {
                            return Err(wrong("something follows the bracket of an IPv6 address"));
                        }
                    }
                }
                None => server.split_once(':').unwrap_or((server, "")),
            };
            hosts.push(host);
            ports.push(port);
        }
        if hosts.iter().any(|host| !host.is_empty()) {
            add("host", &hosts.join(","))?;
        }
        if ports.iter().any(|port| !port.is_empty()) {
            add("port", &ports.join(","))?;
        }
    }
    if !database.is_empty() {
        add("dbname", database)?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| wrong("a parameter of the URL has no `=`"))?;
        match (&*decoded(key)?, value) {
            // As JDBC says it, and libpq takes it.
            ("ssl", "true") => add("sslmode", "require")?,
            (key, value) => add(key, value)?,
        }
    }
    Ok(found)
}

/// `key = value` with blanks between pairs; values with blanks in single quotes, `\` before a quote or itself.
fn of_pairs(text: &str) -> Result<Parameters> {
    let mut found = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest
            .split_once('=')
            .ok_or_else(|| wrong("it is neither a URL nor key=value pairs"))?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(wrong("it is neither a URL nor key=value pairs"));
        }
        let mut characters = after.trim_start().chars();
        let mut ahead = characters.clone();
        let quote = ahead.next() == Some('\'');
        if quote {
            characters = ahead;
        }
        let mut value = String::new();
        let is_closed = loop {
            let before = characters.clone();
            match characters.next() {
                None => break !quote,
                Some('\'') if quote => break true,
                Some(blank) if !quote && blank.is_whitespace() => {
                    characters = before;
                    break true;
                }
                Some('\\') => value.extend(characters.next()),
                Some(character) => value.push(character),
            }
        };
        if !is_closed {
            return Err(wrong("a quoted value has no end"));
        }
        rest = characters.as_str();
        found.push((key.to_owned(), value));
        rest = rest.trim_start();
    }
    Ok(found)
}
