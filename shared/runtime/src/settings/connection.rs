//! What the rules of production have to know of a PostgreSQL connection string: where it leads, which TLS mode it asks for, and
//! which passwords stand in it. It is read as libpq reads it, but never refused: that is up to the store.

use std::net::IpAddr;

use percent_encoding::percent_decode_str;

/// The parts of a connection string.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// Names or folders of sockets, as the `host` of libpq.
    hosts: Vec<String>,
    /// Addresses that are connected to instead of the names.
    addresses: Vec<String>,
    /// The last `sslmode`.
    pub(super) ssl_mode: Option<String>,
    /// All that lets somebody in.
    pub(super) passwords: Vec<String>,
}

/// How far a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Over sockets of this machine.
    Socket,
    /// Over TCP, within this machine.
    Loopback,
    /// To another host, at least perhaps.
    Network,
}

impl Connection {
    /// Reads a URL or `key=value` text.
    pub(super) fn parse(text: &str) -> Self {
        let mut connection = Self::default();
        let text = text.trim();
        match text.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(|c: char| c == '=' || c.is_whitespace()) => {
                connection.read_url(rest);
            }
            _ => connection.read_pairs(text),
        }
        connection
    }

    /// The farthest of all its hosts.
    pub(super) fn reach(&self) -> Reach {
        let count = self.hosts.len().max(self.addresses.len());
        let is_given = |text: &&String| !text.is_empty();
        let reach = |at: usize| match self.addresses.get(at).filter(is_given) {
            Some(address) => reach_of_host(address),
            None => self
                .hosts
                .get(at)
                .map_or(Reach::Socket, |h| reach_of_host(h)),
        };
        (0..count).map(reach).max().unwrap_or(Reach::Socket)
    }

    fn read_url(&mut self, rest: &str) {
        let (before, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = before.split('/').next().unwrap_or_default();
        let hosts = authority
            .rsplit_once('@')
            .map_or(authority, |(_, hosts)| hosts);
        // A password with a `/` in it is not read by libpq, but it is one.
        if let Some((user, _)) = before.rsplit_once('@')
            && let Some((_, password)) = user.split_once(':')
        {
            self.passwords.push(decoded(password));
        }
        self.hosts = hosts
            .split(',')
            .map(|host| decoded(without_port(host)))
            .collect();
        for parameter in parameters.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            self.set(&decoded(name), decoded(value));
        }
    }

    fn read_pairs(&mut self, text: &str) {
        let mut rest = text.trim_start();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = pair_value(after.trim_start());
            self.set(name.trim(), value);
            rest = after.trim_start();
        }
    }

    fn set(&mut self, name: &str, value: String) {
        let list = |value: &str| {
            value
                .split(',')
                .map(|item| item.trim().to_owned())
                .collect()
        };
        // What stands for a variable may stand before the name.
        match name.trim_matches('\0') {
            "host" => self.hosts = list(&value),
            "hostaddr" => self.addresses = list(&value),
            "sslmode" => self.ssl_mode = Some(value),
            "password"
            | "sslpassword"
            | "oauth_client_secret"
            | "scram_client_key"
            | "scram_server_key" => self.passwords.push(value),
            _ => {}
        }
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    }
}

/// A value in quotes or up to a space, and what follows it; `\` takes the next sign as it is.
fn pair_value(text: &str) -> (String, &str) {
    let (quoted, text) = match text.strip_prefix('\'') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return (value, text.get(at + 1..).unwrap_or_default()),
            c if c.is_whitespace() && !quoted => {
                return (value, text.get(at..).unwrap_or_default());
            }
            c => value.push(c),
        }
    }
    (value, "")
}

fn reach_of_host(host: &str) -> Reach {
    if host.is_empty() || host.starts_with(['/', '@']) {
        return Reach::Socket;
    }
    let is_loopback = match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    if is_loopback {
        Reach::Loopback
    } else {
        Reach::Network
    }
}

#[cfg(test)]
mod tests {
    #![allow(missing_docs)]

    use super::*;

    #[test]
    fn a_connection_reaches_as_far_as_its_farthest_host() {
        for (reach, texts) in [
            (
                Reach::Socket,
                &[
                    "postgresql:///d",
                    "postgresql://u@/d",
                    "postgresql://%2Fvar%2Frun/d",
                    "postgresql:///d?host=/tmp",
                    "host=/tmp port=1 user=u",
                    "host = '/tmp'",
                    "host=/a,/b",
                    "host=@abstract",
                    "dbname=d",
                    "",
                ][..],
            ),
            (
                Reach::Loopback,
                &[
                    "postgresql://u:p@localhost:5432/d",
                    "postgres://127.0.0.1/d",
                    "postgresql://[::1]:5432,127.3.2.1/d",
                    "postgresql://LOCALHOST?sslmode=require",
                    "host=localhost",
                    "host=/tmp,localhost",
                    "hostaddr=127.0.0.1 host=db.example.org",
                    "postgresql://u:p@h@localhost/d",
                ],
            ),
            (
                Reach::Network,
                &[
                    "postgresql://db/d",
                    "postgresql://u:p@h1:5432,h2:5432/d",
                    "postgresql://localhost,db/d",
                    "postgresql://[::1],h2/d",
                    "postgresql://[fe80::1]/d",
                    "postgresql://localhost/d?host=db",
                    "postgresql://localhost/d?%68ost=db",
                    "postgresql://localhost/d?hostaddr=192.0.2.1",
                    "host=localhost.example.org",
                    "host=localhost hostaddr=10.0.0.1",
                    "user='a b' host = db",
                    "host=0.0.0.0",
                ],
            ),
        ] {
            for text in texts {
                assert_eq!(Connection::parse(text).reach(), reach, "{text}");
            }
        }
    }

    #[test]
    fn every_password_is_found() {
        for text in [
            "postgresql://u:s3c ret@h/d",
            "postgresql://u:s3c%20ret@h1:5432,h2:5432/d",
            "postgresql://u:s3c%20ret@[::1],h2/d",
            "postgresql://h/d?password=s3c%20ret",
            "postgresql://h/d?user=u&%70assword=s3c%20ret",
            "postgresql://h/d?sslpassword=s3c%20ret",
            "password='s3c ret'",
            "host=h password = 's3c ret' user=u",
            "host=h password=s3c\\ ret",
            "host=h\tsslpassword='s3c ret'",
            "user='password=no' password='s3c ret'",
        ] {
            assert_eq!(Connection::parse(text).passwords, ["s3c ret"], "{text}");
        }
        for text in [
            "postgresql://u@h/d?application_name=password",
            "postgresql://password@h/password",
            "user=password host=h options='password=no'",
            "passfile=/etc/atlas/pgpass",
        ] {
            assert!(Connection::parse(text).passwords.is_empty(), "{text}");
        }
        let slashed = Connection::parse("postgresql://u:a/b@h/d");
        assert_eq!(slashed.passwords, ["a/b"]);
    }

    #[test]
    fn the_mode_is_the_last_one() {
        for text in [
            "postgresql://h/d?sslmode=prefer&sslmode=require",
            "sslmode=prefer sslmode='require'",
        ] {
            assert_eq!(
                Connection::parse(text).ssl_mode.as_deref(),
                Some("require"),
                "{text}"
            );
        }
    }
}
