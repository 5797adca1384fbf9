use std::error::Error as StdError;

use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};

/// Why a call failed, without an address, a message or a text of the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("AWS answered {status}{}", code.as_deref().map(|code| format!(" {code}")).unwrap_or_default())]
    Status {
        status: u16,
        /// The service's name for it, such as `QueueDoesNotExist`.
        code: Option<String>,
    },
    #[error("no connection")]
    Connection,
    #[error("no answer in time")]
    Late,
    #[error("the answer is not understood")]
    Answer,
    /// Nothing was sent: there is no region, or there are no credentials.
    #[error("this program has no region or no credentials in AWS")]
    NotSetUp,
}

/// Codes that come with a status of 400 and still pass by themselves.
const PAUSES: [&str; 5] = [
    "KmsThrottled",
    "RequestThrottled",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
];

impl Failure {
    /// Whether the same call can succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, code } => {
                let pauses = code
                    .as_deref()
                    .is_some_and(|code| PAUSES.contains(&bare(code)));
                matches!(status, 408 | 429 | 500..) || pauses
            }
            Self::Connection | Self::Late | Self::Answer => true,
            Self::NotSetUp => false,
        }
    }

    /// Whether the service says that what was asked for is not there.
    pub(crate) fn is_missing(&self) -> bool {
        let codes = [
            "QueueDoesNotExist",
            "AWS.SimpleQueueService.NonExistentQueue",
            "ResourceNotFoundException",
        ];
        matches!(self, Self::Status { code: Some(code), .. } if codes.contains(&bare(code)))
    }
}

/// Without the namespace that some protocols put before a code.
fn bare(code: &str) -> &str {
    code.rsplit('#').next().unwrap_or(code)
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: StdError + ProvideErrorMetadata + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        match &error {
            SdkError::TimeoutError(_) => Self::Late,
            SdkError::ResponseError(_) => Self::Answer,
            SdkError::DispatchFailure(failure) if failure.is_timeout() => Self::Late,
            SdkError::DispatchFailure(failure) if failure.is_io() => Self::Connection,
            SdkError::ServiceError(answer) => Self::Status {
                status: answer.raw().status().as_u16(),
                code: answer.err().code().map(str::to_owned),
            },
            // What the SDK looks for before it sends: region, endpoint, credentials.
            _ => Self::NotSetUp,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(missing_docs)]

    use super::*;

    fn status(status: u16, code: Option<&str>) -> Failure {
        let code = code.map(str::to_owned);
        Failure::Status { status, code }
    }

    #[test]
    fn what_can_pass_by_itself_is_transient() {
        for (number, code) in [
            (500, None),
            (503, Some("ServiceUnavailable")),
            (400, Some("RequestThrottled")),
            (400, Some("com.amazonaws.sqs#RequestThrottled")),
            (400, Some("ThrottlingException")),
        ] {
            assert!(status(number, code).is_transient(), "{number} {code:?}");
        }
        for (number, code) in [
            (400, Some("QueueDoesNotExist")),
            (403, Some("AccessDenied")),
            (400, None),
        ] {
            assert!(!status(number, code).is_transient(), "{number} {code:?}");
        }
        assert!(Failure::Connection.is_transient());
        assert!(!Failure::NotSetUp.is_transient());
    }
}
