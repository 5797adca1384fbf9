//! What `environment = "production"` refuses. The other environments take it, and say so once.

use std::collections::BTreeSet;

use atlas_store_postgres::{Endpoint, SslMode};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use super::Stage;
use super::problem::Place;
use super::reader::{Reader, Secret, is_written};

/// How strict to be.
#[derive(Clone, Copy)]
pub(super) struct Safety {
    is_production: bool,
}

/// Something that production refuses.
struct Risk<'r> {
    /// What the key must do in production.
    rule: &'r str,
    /// What it does, and why that is a risk.
    fact: &'r str,
    fix: &'r str,
}

impl Safety {
    pub(super) fn of(stage: Option<Stage>) -> Self {
        Self {
            is_production: stage == Some(Stage::Production),
        }
    }

    fn refuse(self, reader: &mut Reader<'_>, key: &str, place: Place, risk: &Risk<'_>) {
        let Risk { rule, fact, fix } = risk;
        if self.is_production {
            let rule = format!("{rule} in production");
            reader.problem(key, place, rule, Some((*fix).to_owned()));
        } else {
            reader.notice(format!("`{key}` {fact}; production refuses it: {fix}"));
        }
    }

    /// An address of the openEHR server or its token endpoint: http stays within this machine.
    pub(super) fn url(self, reader: &mut Reader<'_>, key: &str, url: &Url, place: Place) {
        if url.scheme() == "http" && !is_loopback(url) {
            let risk = Risk {
                rule: "must be https",
                fact: "is plain http to another host, which shows everything to the network",
                fix: "write https",
            };
            self.refuse(reader, key, place, &risk);
        }
    }

    /// The address of a queue: there is no queue on the machine of a function, except for tests.
    pub(super) fn queue(self, reader: &mut Reader<'_>, key: &str, url: &Url, place: Place) {
        if self.is_production && url.scheme() == "http" {
            let fix = "plain http is for emulators";
            reader.problem(key, place, "must be https in production", Some(fix.into()));
        } else {
            self.url(reader, key, url, place);
        }
    }

    /// A secret that is one word. Any letter of it in the file is too much.
    pub(super) fn secret(
        self,
        reader: &mut Reader<'_>,
        key: &str,
        secret: Option<Secret>,
    ) -> Option<SecretString> {
        let secret = secret?;
        self.check_written(reader, key, &secret, |text| vec![text.to_owned()]);
        Some(secret.value)
    }

    /// A text in which some parts are secret. `parts` finds them in the text as the file has it.
    pub(super) fn check_written(
        self,
        reader: &mut Reader<'_>,
        key: &str,
        secret: &Secret,
        parts: impl Fn(&str) -> Vec<String>,
    ) {
        let written = secret.written.as_deref();
        if written.is_some_and(|text| parts(text).iter().any(|part| is_written(part))) {
            let risk = Risk {
                rule: "must not stand in the file",
                fact: "holds a secret that stands in the file",
                fix: "write `${NAME}`, or a reference such as `env:NAME` or `file:PATH`",
            };
            self.refuse(reader, key, secret.place.clone(), &risk);
        }
    }

    pub(super) fn tls_verify(self, reader: &mut Reader<'_>, key: &str, verify: bool, place: Place) {
        if !verify {
            let risk = Risk {
                rule: "must be true",
                fact: "is false, so that anybody on the way can play the server",
                fix: "name the authority of the server in `tls_ca_cert`",
            };
            self.refuse(reader, key, place, &risk);
        }
    }

    /// TLS modes that do not check who answers, on the way to another host. `key` is the one that says the mode.
    pub(super) fn ssl_mode(
        self,
        reader: &mut Reader<'_>,
        key: &str,
        place: Place,
        endpoints: &[Endpoint],
    ) {
        let mut weak = endpoints.iter().filter(|endpoint| {
            !endpoint.is_local
                && !matches!(endpoint.ssl_mode, SslMode::VerifyCa | SslMode::VerifyFull)
        });
        if let Some(Endpoint { ssl_mode, .. }) = weak.next() {
            let fact = format!(
                "asks for the TLS mode `{}` on the way to another host, which does not check who answers",
                ssl_mode.name()
            );
            let risk = Risk {
                rule: "must ask for the TLS mode `verify-ca` or `verify-full` on the way to another host",
                fact: &fact,
                fix: "leave the mode out for `verify-full`; `postgresql.ssl_root_cert` names the authority of the server",
            };
            self.refuse(reader, key, place, &risk);
        }
    }

    /// What callers show at a port that others can reach.
    pub(super) fn token(self, reader: &mut Reader<'_>, key: &str, token: &Secret) {
        if bits(token.value.expose_secret()) < LEAST_BITS {
            let risk = Risk {
                rule: "must be too long to be guessed (128 bits) where others can call",
                fact: "can be guessed (fewer than 128 bits), and others can call",
                fix: "make one with `openssl rand -hex 32`",
            };
            self.refuse(reader, key, token.place.clone(), &risk);
        }
    }
}

/// Whether an address leads to this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

const LEAST_BITS: f64 = 128.0;

/// How many bits of chance a token can hold at most, by its length and the signs in it.
fn bits(token: &str) -> f64 {
    const FEWEST_SIGNS: usize = 8;
    const OF_UUID: f64 = 122.0;
    let token = token.trim();
    if is_uuid(token) {
        return OF_UUID;
    }
    let signs: Vec<char> = token.chars().collect();
    let different: BTreeSet<char> = signs.iter().copied().collect();
    if different.len() < FEWEST_SIGNS {
        return 0.0;
    }
    let all = |is: fn(&char) -> bool| different.iter().all(is);
    let any = |is: fn(&char) -> bool| different.iter().any(is);
    let alphabet: u32 = if all(char::is_ascii_digit) {
        10
    } else if all(char::is_ascii_hexdigit) {
        16
    } else {
        // Letters of both cases are the mark of base64, which need not hold a digit.
        let words = match (any(char::is_ascii_lowercase), any(char::is_ascii_uppercase)) {
            (true, true) => 62,
            (true, false) | (false, true) if any(char::is_ascii_digit) => 36,
            (true, false) | (false, true) => 26,
            (false, false) => 10,
        };
        let others = if all(char::is_ascii_alphanumeric) {
            0
        } else {
            32
        };
        words + others
    };
    period(&signs) as f64 * f64::from(alphabet).log2()
}

/// After so many signs they come again: what repeats adds nothing.
fn period(signs: &[char]) -> usize {
    let repeats = |period: &usize| {
        let again = signs.iter().skip(*period);
        again.zip(signs).all(|(later, earlier)| later == earlier)
    };
    (1..=signs.len() / 2).find(repeats).unwrap_or(signs.len())
}

fn is_uuid(token: &str) -> bool {
    let groups: Vec<&str> = token.split('-').collect();
    let is_hex = |group: &&str| group.chars().all(|c| c.is_ascii_hexdigit());
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(is_hex)
}

#[cfg(test)]
mod tests {
    #![allow(missing_docs)]

    use super::*;

    #[test]
    fn a_token_has_as_many_bits_as_its_signs_can_hold() {
        for enough in [
            "9f86d081884c7d659a2feaa0c55ad015",
            "9F86D081884C7D659A2FEAA0C55AD015A3BF",
            "kS0ZyT1vQm8Xb2Rw7LcJdA",
            "kS0ZyT1vQm8Xb2Rw7LcJdA==",
            "k-0Zy_1vQm8Xb2Rw7LcJdA",
            "314159265358979323846264338327950288419",
            "q7w2e9r4t1y8u3i6o5p0a2s7d",
        ] {
            assert!(bits(enough) >= LEAST_BITS, "{enough}");
        }
        for few in [
            "",
            "a",
            "s3cret",
            "9f86d081884c7d659a2feaa0c55ad01",
            "kS0ZyT1vQm8Xb2Rw7Lc",
            "31415926535897932384626433832795028841",
            "550e8400-e29b-41d4-a716-446655440000",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "abababababababababababababababababababababababab",
            "Password1!Password1!Password1!Password1!Password",
            "0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert!(bits(few) < LEAST_BITS, "{few}");
        }
    }
}
