//! What can go wrong with one attempt, and the whole policy about it: whether it is tried again, what it
//! means to the engine, what the person reading can do.

use std::time::Duration;

use atlas_engine::{Error, ErrorKind};
use atlas_openehr::json::{JsonError, JsonErrorKind};
use atlas_openehr::time::Instant;
use reqwest::StatusCode;

use crate::said::Said;

/// What a request is about: the same status means different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestSubject {
    /// Compositions with content, by AQL: a 500 is one that the server cannot read back.
    Page,
    /// Everything else in AQL, and lists.
    Facts,
    /// One template by name.
    Template,
    /// One composition by uid.
    Composition,
}

/// What a refusal says about the number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RefusalOfMany {
    /// It repeats the number that was asked for.
    pub(crate) is_about_rows: bool,
    /// What to ask for instead.
    pub(crate) fewer: usize,
}

/// Why one attempt failed. No variant holds a piece of an answer, a parameter or a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no connection")]
    Connect(#[source] reqwest::Error),
    /// One side does not trust the other.
    #[error("no trust between server and client")]
    Tls(#[source] reqwest::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the answer paused for longer than {0:?}")]
    Stalled(Duration),
    #[error("the answer did not end within {0:?}")]
    Endless(Duration),
    #[error("the connection broke")]
    Broken(#[source] reqwest::Error),
    /// A whole answer by HTTP's rules, and half a JSON text.
    #[error("the answer was cut off")]
    Cut(#[source] JsonError),
    #[error("the server answered {status}")]
    Status {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    /// A query that the server understood and does not answer (400, 413, 416, 422).
    #[error("the server answered {status}{said}")]
    Refused { status: StatusCode, said: Said },
    #[error("the answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
    /// So many values in so few bytes that what describes them would not fit into memory.
    #[error("the answer has more values than any composition of its size")]
    TooDense(#[source] JsonError),
    #[error("the answer is not UTF-8")]
    NotText,
    #[error("the answer is not JSON")]
    NotJson(#[source] JsonError),
    /// Says what was expected.
    #[error("the answer has another shape: {0}")]
    Shape(&'static str),
    /// Rows that are not behind each other, or not behind the last page.
    #[error(
        "the server ignored the order, or the condition to go on behind the last row \
         (`v/commit_audit/time_committed` and `v/uid/value`)"
    )]
    Order,
    /// A row without the composition that was asked for.
    #[error("the answer has no content for a composition")]
    NoContent,
    #[error("the answer has no usable `Date` header")]
    NoDate,
    /// A clock that is far from ours, and before the server's own commits.
    #[error(
        "the server's clock says {says}, and its newest compositions were committed after that"
    )]
    Clock { says: Instant },
    /// A number that no server can mean. Says which.
    #[error("the answer cannot be true: {0}")]
    Untrue(&'static str),
    /// The identity provider, not the openEHR server.
    #[error("no token from the identity provider")]
    Token(#[source] Box<Failure>),
}

impl Failure {
    /// Of a request that never got an answer, or not the whole of it.
    pub(crate) fn transport(error: reqwest::Error) -> Self {
        // The address of a request can hold the id of an EHR.
        let error = error.without_url();
        if is_distrust(&error) {
            Self::Tls(error)
        } else if error.is_connect() {
            Self::Connect(error)
        } else {
            Self::Broken(error)
        }
    }

    pub(crate) fn json(error: JsonError) -> Self {
        match error.kind {
            JsonErrorKind::UnexpectedEnd => Self::Cut(error),
            JsonErrorKind::TooDense => Self::TooDense(error),
            _ => Self::NotJson(error),
        }
    }

    /// Whether the same request can succeed a moment later.
    pub(crate) fn is_transient(&self, subject: RequestSubject) -> bool {
        match self {
            Self::Connect(_)
            | Self::Late(_)
            | Self::Stalled(_)
            | Self::Endless(_)
            | Self::Broken(_)
            | Self::Cut(_) => true,
            Self::Status { status, .. } => match status.as_u16() {
                408 | 425 | 429 | 502 | 503 | 504 => true,
                500 => matches!(subject, RequestSubject::Facts | RequestSubject::Template),
                _ => false,
            },
            Self::Token(failure) => failure.is_transient(RequestSubject::Facts),
            Self::Tls(_)
            | Self::TooLarge { .. }
            | Self::TooDense(_)
            | Self::NotText
            | Self::NotJson(_)
            | Self::NoContent
            | Self::Clock { .. }
            | Self::Untrue(_)
            | Self::Refused { .. }
            | Self::Order
            | Self::Shape(_)
            | Self::NoDate => false,
        }
    }

    /// The refusal of a query for more than one row, if it may be about their number: its status or its words say why.
    pub(crate) fn refusal_of_many(&self) -> Option<RefusalOfMany> {
        match self {
            Self::Refused { status, said } => {
                let is_about_size = matches!(
                    *status,
                    StatusCode::PAYLOAD_TOO_LARGE | StatusCode::RANGE_NOT_SATISFIABLE
                );
                let fewer = said
                    .fewer_rows()
                    .filter(|_| is_about_size || !said.is_silent())?;
                Some(RefusalOfMany {
                    is_about_rows: said.is_about_rows(),
                    fewer,
                })
            }
            _ => None,
        }
    }

    /// How long the server asked to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Token(failure) => failure.retry_after(),
            _ => None,
        }
    }

    fn kind(&self, subject: RequestSubject) -> ErrorKind {
        match self {
            Self::Connect(_)
            | Self::Tls(_)
            | Self::Late(_)
            | Self::Stalled(_)
            | Self::Endless(_)
            | Self::Broken(_)
            | Self::Cut(_) => ErrorKind::SourceUnreachable,
            Self::Status {
                status,
                retry_after,
            } => match (status.as_u16(), subject) {
                (401 | 403, _) => ErrorKind::SourceDenied,
                (429 | 503, _) => ErrorKind::SourceBusy {
                    retry_after: *retry_after,
                },
                (500, RequestSubject::Page)
                | (204 | 400 | 404 | 406 | 422 | 500, RequestSubject::Composition) => {
                    ErrorKind::SourceUnreadable
                }
                (204 | 404, RequestSubject::Template) => ErrorKind::UnknownTemplate,
                (408 | 425 | 500 | 502 | 504, _) => ErrorKind::SourceUnreachable,
                _ => ErrorKind::SourceUnsupported,
            },
            Self::Refused { status, .. }
                if *status == StatusCode::PAYLOAD_TOO_LARGE && subject == RequestSubject::Page =>
            {
                ErrorKind::SourceUnreadable
            }
            Self::Refused { .. } => ErrorKind::SourceUnsupported,
            Self::Order | Self::Clock { .. } | Self::Untrue(_) => ErrorKind::SourceUntrue,
            // No other question is smaller.
            Self::TooLarge { .. } | Self::TooDense(_) if subject == RequestSubject::Template => {
                ErrorKind::SourceUnsupported
            }
            Self::TooLarge { .. } | Self::TooDense(_) => ErrorKind::SourceTooLarge,
            Self::NoContent => ErrorKind::SourceUnreadable,
            // A server that writes one broken composition into a sound answer: the page is divided around it.
            Self::NotText | Self::NotJson(_)
                if subject == RequestSubject::Page && !self.is_foreign() =>
            {
                ErrorKind::SourceUnreadable
            }
            Self::NotText | Self::NotJson(_) | Self::Shape(_) | Self::NoDate => {
                ErrorKind::SourceUnsupported
            }
            Self::Token(failure) => match failure.as_ref() {
                Self::Status { status, .. }
                    if status.is_client_error() && !failure.is_transient(RequestSubject::Facts) =>
                {
                    ErrorKind::SourceDenied
                }
                other => other.kind(RequestSubject::Facts),
            },
        }
    }

    /// Whether the answer was no JSON from its first byte on, such as a login page.
    fn is_foreign(&self) -> bool {
        matches!(self, Self::NotJson(error) if error.offset == 0)
    }

    fn fix(&self, subject: RequestSubject) -> Option<String> {
        let fix = match self {
            Self::Connect(_) => {
                "Check openehr.base_url, and whether the server runs and can be reached from here."
            }
            Self::Tls(_) => {
                "Set openehr.tls_ca_cert to the authority that signed the server's certificate, use the host name that is \
                 in it, and give openehr.tls_client_cert and tls_client_key if the server asks for them."
            }
            Self::Late(_) | Self::Stalled(_) | Self::Endless(_) => {
                "Raise openehr.timeout_seconds, or lower openehr.query.batch_size or openehr.query.parallel."
            }
            Self::Broken(_) | Self::Cut(_) => {
                "Look for a proxy or gateway before the server that closes connections or limits answers."
            }
            Self::Status { status, .. } => match (status.as_u16(), subject) {
                (401, _) => {
                    "Check openehr.auth_type and the credentials that belong to it: openehr.username and password for \
                     basic, token for bearer, client_id and client_secret for oidc."
                }
                (403, _) => {
                    "Give the account the right to read: AQL queries, templates and compositions."
                }
                (429 | 503, _) => "Run Atlas at a quieter time, or lower openehr.query.parallel.",
                (500, RequestSubject::Page) | (_, RequestSubject::Composition) => return None,
                (204 | 404 | 500, RequestSubject::Template) => {
                    "Ask the server for this web template yourself, and see its log. With the format `canonical` none is needed."
                }
                (404, _) => {
                    "Does openehr.base_url end with the context of the server, such as /ehrbase? \
                     `/rest/openehr/v1` is added by Atlas."
                }
                (300..=399, _) => {
                    "The server redirects: set openehr.base_url to the address it redirects to."
                }
                (502 | 504, _) => {
                    "Check the gateway before the server, and whether the server runs."
                }
                (500, _) => "Look into the server's own log at this time.",
                _ => "Check that openehr.base_url is the address of an openEHR server.",
            },
            Self::Refused { status, .. } if *status == StatusCode::BAD_REQUEST => {
                "The server refuses a query of the EHRbase dialect. Check that it is EHRbase 2.16 or newer, and \
                 openehr.vendor."
            }
            Self::Refused { .. } => {
                "The server refuses the query by a rule of its own: look into its configuration (EHRbase: \
                 ehrbase.rest.aql.max-fetch and the like)."
            }
            Self::TooLarge { .. } | Self::TooDense(_) if subject == RequestSubject::Template => {
                "No template that is known has a tenth of that: look at it on the server. With the format `canonical` none \
                 is needed."
            }
            Self::TooDense(_) => {
                "Look at these compositions on the server: they hold little besides numbers, brackets or empty texts. Such \
                 a one goes to quarantine, and the rest is copied."
            }
            Self::Clock { .. } => {
                "Correct the clock of the server, or of the proxy before it that writes the `Date` header (NTP), and check \
                 this machine's. openehr.max_clock_skew_seconds says how far they may be apart."
            }
            Self::Order | Self::Untrue(_) => {
                "Nothing of this answer was copied. Look for a gateway or cache before the server that changes requests \
                 or answers, and check openehr.vendor and the server's version."
            }
            Self::TooLarge { .. } => {
                "Raise export.max_composition_mb if a single composition is larger than that."
            }
            Self::NoContent => return None,
            Self::NotText | Self::NotJson(_) | Self::Shape(_) => {
                "This does not look like an openEHR server. Does openehr.base_url end with its context, such as /ehrbase, \
                 and is there no login page before it?"
            }
            Self::NoDate => {
                "Atlas needs the server's own clock: let the proxy before the server pass the `Date` header on."
            }
            Self::Token(failure) => match failure.as_ref() {
                Self::Status { .. } => {
                    "Check openehr.oidc_token_url, client_id, client_secret, username, password and scope."
                }
                Self::Tls(_) => {
                    "Set openehr.tls_ca_cert to the authority that signed the certificate of the identity provider."
                }
                Self::Connect(_) => {
                    "Check openehr.oidc_token_url, and whether it can be reached from here."
                }
                _ => {
                    "Check that openehr.oidc_token_url is the token endpoint of the identity provider."
                }
            },
        };
        Some(fix.to_owned())
    }

    /// What the engine gets after the last attempt.
    pub(crate) fn into_error(self, action: &'static str, subject: RequestSubject) -> Error {
        let error = Error::new(self.kind(subject), action);
        let error = match self.fix(subject) {
            Some(fix) => error.fix(fix),
            None => error,
        };
        error.because(self)
    }
}

/// Whether the handshake failed over a certificate, on either side.
fn is_distrust(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
            return matches!(
                tls,
                rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_)
            );
        }
        cause = match inner.downcast_ref::<std::io::Error>() {
            // An I/O error names what it wraps only here, not as its source.
            Some(io) => io
                .get_ref()
                .map(|wrapped| wrapped as &dyn std::error::Error),
            None => inner.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16) -> Failure {
        Failure::Status {
            status: StatusCode::from_u16(code).unwrap_or_default(),
            retry_after: None,
        }
    }

    #[test]
    fn only_what_can_pass_is_tried_again() {
        let tried_again: Vec<u16> = (300..600)
            .filter(|code| status(*code).is_transient(RequestSubject::Page))
            .collect();
        assert_eq!(tried_again, [408, 425, 429, 502, 503, 504]);
        assert!(status(500).is_transient(RequestSubject::Facts));
        assert!(!status(500).is_transient(RequestSubject::Composition));
    }

    #[test]
    fn every_status_has_a_kind_that_fits_what_was_asked() {
        let kind = |code, subject| status(code).kind(subject);
        assert_eq!(kind(500, RequestSubject::Page), ErrorKind::SourceUnreadable);
        assert_eq!(
            kind(500, RequestSubject::Facts),
            ErrorKind::SourceUnreachable
        );
        for (code, expected) in [
            (204, ErrorKind::UnknownTemplate),
            (404, ErrorKind::UnknownTemplate),
            (500, ErrorKind::SourceUnreachable),
        ] {
            assert_eq!(kind(code, RequestSubject::Template), expected);
        }
        assert_eq!(
            kind(404, RequestSubject::Facts),
            ErrorKind::SourceUnsupported
        );
        assert_eq!(
            kind(404, RequestSubject::Composition),
            ErrorKind::SourceUnreadable
        );
        assert_eq!(
            kind(302, RequestSubject::Page),
            ErrorKind::SourceUnsupported
        );
        for subject in [
            RequestSubject::Page,
            RequestSubject::Facts,
            RequestSubject::Template,
            RequestSubject::Composition,
        ] {
            assert_eq!(kind(401, subject), ErrorKind::SourceDenied);
            assert_eq!(
                kind(503, subject),
                ErrorKind::SourceBusy { retry_after: None }
            );
        }
    }
}
