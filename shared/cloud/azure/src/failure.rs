use std::error::Error as StdError;
use std::io;

use azure_core::error::ErrorKind;

use crate::client::CALL_LIMIT;

/// Why a call failed, without an address, a message or a text of the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("Azure answered {status}{}", code.as_deref().map(|code| format!(" {code}")).unwrap_or_default())]
    Status {
        status: u16,
        /// The service's name for it, such as `QueueNotFound`.
        code: Option<String>,
    },
    /// The identity endpoint or Entra ID, not the service.
    #[error("no token from the identity: {0}")]
    Token(Box<Failure>),
    #[error("no connection{}", cause.map(|kind| format!(" ({kind})")).unwrap_or_default())]
    Connection { cause: Option<io::ErrorKind> },
    #[error("no answer in {CALL_LIMIT:?}")]
    Late,
    #[error("an answer that is not understood")]
    Answer,
    /// Nothing was sent: there is no identity, or it is set up in a way that the SDK does not know.
    #[error("this program has no identity in Azure")]
    NoIdentity,
    #[error("the SDK refused the call")]
    Refused,
}

impl Failure {
    /// Whether the same call can succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            Self::Token(failure) => failure.is_transient(),
            Self::Connection { .. } | Self::Late | Self::Answer => true,
            Self::NoIdentity | Self::Refused => false,
        }
    }
}

impl From<azure_core::Error> for Failure {
    fn from(error: azure_core::Error) -> Self {
        match error.kind() {
            ErrorKind::Credential => match innermost(&error) {
                Some(failure) => Self::Token(Box::new(failure)),
                None => Self::NoIdentity,
            },
            kind => of_kind(kind, &error).unwrap_or(Self::Refused),
        }
    }
}

fn of_kind(kind: &ErrorKind, error: &azure_core::Error) -> Option<Failure> {
    match kind {
        ErrorKind::HttpResponse {
            status, error_code, ..
        } => Some(Failure::Status {
            status: u16::from(*status),
            code: error_code.as_deref().and_then(plain),
        }),
        ErrorKind::Connection | ErrorKind::Io => Some(Failure::Connection {
            cause: causes(error).find_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind())),
        }),
        ErrorKind::DataConversion => Some(Failure::Answer),
        _ => None,
    }
}

/// What the credential wraps into errors of its own kind.
fn innermost(error: &azure_core::Error) -> Option<Failure> {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<azure_core::Error>())
        .find_map(|error| of_kind(error.kind(), error))
}

fn causes(error: &azure_core::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// A code is a word; anything else may quote the request.
fn plain(code: &str) -> Option<String> {
    let is_word = code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric());
    is_word.then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]

    use super::*;

    fn status(status: u16) -> Failure {
        Failure::Status { status, code: None }
    }

    #[test]
    fn what_can_pass_by_itself_is_transient() {
        for transient in [408, 429, 500, 503] {
            assert!(status(transient).is_transient(), "{transient}");
            assert!(Failure::Token(Box::new(status(transient))).is_transient());
        }
        for lasting in [400, 401, 403, 404, 409, 413] {
            assert!(!status(lasting).is_transient(), "{lasting}");
        }
    }

    #[test]
    fn a_code_that_is_no_word_is_left_out() {
        assert_eq!(plain("QueueNotFound").unwrap(), "QueueNotFound");
        assert_eq!(plain("https://a/b?sig=x"), None);
    }
}
