//! The host's client of a queue service: the in-process one, Azurite and a real account alike.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::Secret;
use azure_core::error::ErrorKind;
use azure_core::hmac::hmac_sha256;
use azure_core::http::headers::HeaderName;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{ClientOptions, Context, Request, RetryOptions, Transport};
use azure_core::time::{OffsetDateTime, to_rfc7231};
use azure_storage_queue::models::{
    QueueClientGetPropertiesResultHeaders as _, QueueClientPeekMessagesOptions,
    QueueClientReceiveMessagesOptions, QueueClientSendMessageOptions, QueueMessage,
};
use azure_storage_queue::{QueueClient as Sdk, QueueClientOptions};
use jiff::Timestamp;
use url::Url;

/// The service takes and answers at most so many messages at once.
pub(super) const MOST: u32 = 32;

/// By this header the in-process service tells the host's own requests from the handler's.
pub(super) const HOST_HEADER: &str = "x-local-host";

/// Which queue service the suite uses.
#[derive(Clone)]
pub enum QueueService {
    /// One inside of this process, on a loopback port.
    InProcess,
    /// Azurite or a real account.
    Account {
        /// Such as `http://127.0.0.1:10001/devstoreaccount1`; may end with a SAS, and `key` is empty then.
        endpoint: String,
        /// The account's name.
        account: String,
        /// Its key, base64.
        key: String,
    },
}

impl std::fmt::Debug for QueueService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::InProcess => "InProcess",
            Self::Account { .. } => "Account",
        })
    }
}

/// A message as it was taken.
#[derive(Debug, Clone)]
pub struct Received {
    /// The service's id of it.
    pub id: String,
    /// Needed to change or delete it; a new one with each change.
    pub receipt: String,
    /// As it lies in the queue.
    pub text: String,
    /// How often it was taken, this time included.
    pub dequeue_count: u32,
    /// When it was put.
    pub inserted: Timestamp,
    /// When it ends by itself.
    pub expires: Timestamp,
    /// When it is visible again.
    pub next_visible: Timestamp,
}

/// A request that the queue service did not carry out.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} queue `{queue}`: {cause}")]
pub struct QueueError {
    action: &'static str,
    queue: String,
    cause: QueueFailure,
}

impl QueueError {
    /// The reason.
    #[must_use]
    pub fn cause(&self) -> &QueueFailure {
        &self.cause
    }
}

/// No client of a queue service can be made.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct ClientError {
    /// Completes the sentence "failed to …".
    action: &'static str,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl ClientError {
    fn new(action: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self {
            action,
            source: Box::new(source),
        }
    }
}

/// The reason. It holds no URL, because a URL can carry a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueFailure {
    /// No connection, or it broke.
    #[error("the queue service does not answer; is it running at the endpoint that was given?")]
    Unreachable,
    /// The service refused.
    #[error("the queue service answered {status} ({code})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Such as `QueueNotFound` or `PopReceiptMismatch`; empty if it gave none.
        code: String,
    },
    /// The address, the key or an answer cannot be used.
    #[error("the endpoint, the key or the answer is not that of a queue service")]
    Unusable,
}

/// A client of one queue service. It does not retry: the caller decides.
#[derive(Clone)]
pub struct QueueClient {
    endpoint: Url,
    options: ClientOptions,
}

impl std::fmt::Debug for QueueClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The endpoint can carry a signature.
        f.debug_struct("QueueClient").finish_non_exhaustive()
    }
}

impl QueueClient {
    /// Makes a client of an account. `key` (base64) is empty if the endpoint carries a SAS or the service checks no key.
    ///
    /// # Errors
    /// If the endpoint is no URL.
    pub fn new(endpoint: &str, account: &str, key: &str) -> Result<Self, ClientError> {
        let endpoint = Url::parse(endpoint)
            .map_err(|error| ClientError::new("read the endpoint of the queue service", error))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .build()
            .map_err(|error| ClientError::new("make a client of the queue service", error))?;
        let marked = Marked {
            account: account.to_owned(),
            key: (!key.is_empty()).then(|| Secret::new(key.to_owned())),
        };
        let options = ClientOptions {
            per_try_policies: vec![Arc::new(marked)],
            retry: RetryOptions::none(),
            transport: Some(Transport::new(Arc::new(http))),
            ..ClientOptions::default()
        };
        Ok(Self { endpoint, options })
    }

    fn of(&self, queue: &str) -> Result<Sdk, azure_core::Error> {
        let mut url = self.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push(queue);
        }
        let options = QueueClientOptions {
            client_options: self.options.clone(),
            // What Azurite knows too.
            version: "2025-11-05".to_owned(),
        };
        Sdk::new(url, None, Some(options))
    }

    /// Makes a queue; one that is there stays as it is.
    ///
    /// # Errors
    /// What the service said.
    pub async fn create(&self, queue: &str) -> Result<(), QueueError> {
        let sent = async { self.of(queue)?.create(None).await };
        sent.await.map(drop).map_err(failed("create", queue))
    }

    /// Puts a text, visible after `delay` (whole seconds). Makes the queue if there is none.
    ///
    /// # Errors
    /// What the service said.
    pub async fn put(&self, queue: &str, text: &str, delay: Duration) -> Result<(), QueueError> {
        match self.put_existing(queue, text, delay).await {
            Err(error) if error.cause.is(404) => {
                self.create(queue).await?;
                self.put_existing(queue, text, delay).await
            }
            other => other,
        }
    }

    async fn put_existing(
        &self,
        queue: &str,
        text: &str,
        delay: Duration,
    ) -> Result<(), QueueError> {
        let sent = async {
            let message = QueueMessage {
                message_text: Some(text.to_owned()),
            };
            let options = QueueClientSendMessageOptions {
                visibility_timeout: Some(seconds(delay)),
                ..QueueClientSendMessageOptions::default()
            };
            self.of(queue)?
                .send_message(message.try_into()?, Some(options))
                .await
        };
        sent.await.map(drop).map_err(failed("put into", queue))
    }

    /// Takes at most `count` messages and hides them for `visibility`. A queue that is not there is empty.
    ///
    /// # Errors
    /// What the service said.
    pub async fn get(
        &self,
        queue: &str,
        count: u32,
        visibility: Duration,
    ) -> Result<Vec<Received>, QueueError> {
        let sent = async {
            let options = QueueClientReceiveMessagesOptions {
                number_of_messages: i32::try_from(count).ok(),
                visibility_timeout: Some(seconds(visibility).max(1)),
                ..QueueClientReceiveMessagesOptions::default()
            };
            let answer = self.of(queue)?.receive_messages(Some(options)).await?;
            answer.into_model()
        };
        let list = match sent.await.map_err(failed("get from", queue)) {
            Err(error) if error.cause.is(404) => return Ok(Vec::new()),
            other => other?,
        };
        let unusable = || QueueError {
            action: "get from",
            queue: queue.to_owned(),
            cause: QueueFailure::Unusable,
        };
        list.items
            .unwrap_or_default()
            .into_iter()
            .map(|item| {
                Some(Received {
                    id: item.message_id?,
                    receipt: item.pop_receipt?,
                    text: item.message_text.unwrap_or_default(),
                    dequeue_count: u32::try_from(item.dequeue_count?).ok()?,
                    inserted: time(item.insertion_time?)?,
                    expires: time(item.expiration_time?)?,
                    next_visible: time(item.time_next_visible?)?,
                })
            })
            .collect::<Option<_>>()
            .ok_or_else(unusable)
    }

    /// The texts of at most 32 visible messages, which stay visible.
    ///
    /// # Errors
    /// What the service said.
    pub async fn peek(&self, queue: &str) -> Result<Vec<String>, QueueError> {
        let sent = async {
            let options = QueueClientPeekMessagesOptions {
                number_of_messages: i32::try_from(MOST).ok(),
                ..QueueClientPeekMessagesOptions::default()
            };
            let answer = self.of(queue)?.peek_messages(Some(options)).await?;
            answer.into_model()
        };
        match sent.await.map_err(failed("peek into", queue)) {
            Err(error) if error.cause.is(404) => Ok(Vec::new()),
            other => Ok(other?
                .items
                .unwrap_or_default()
                .into_iter()
                .map(|item| item.message_text.unwrap_or_default())
                .collect()),
        }
    }

    /// Hides a message for `visibility` from now, zero shows it; answers its new receipt.
    ///
    /// # Errors
    /// What the service said.
    pub async fn update(
        &self,
        queue: &str,
        id: &str,
        receipt: &str,
        visibility: Duration,
    ) -> Result<String, QueueError> {
        let sent = async {
            let client = self.of(queue)?;
            client
                .update_message(id, receipt, seconds(visibility), None)
                .await
        };
        let answer = sent.await.map_err(failed("update a message of", queue))?;
        answer
            .headers()
            .get_optional_str(&HeaderName::from_static("x-ms-popreceipt"))
            .map(str::to_owned)
            .ok_or_else(|| QueueError {
                action: "update a message of",
                queue: queue.to_owned(),
                cause: QueueFailure::Unusable,
            })
    }

    /// Deletes a message.
    ///
    /// # Errors
    /// What the service said.
    pub async fn delete(&self, queue: &str, id: &str, receipt: &str) -> Result<(), QueueError> {
        let sent = async { self.of(queue)?.delete_message(id, receipt, None).await };
        sent.await
            .map(drop)
            .map_err(failed("delete a message of", queue))
    }

    /// How many messages there are, hidden ones included. A queue that is not there has none.
    ///
    /// # Errors
    /// What the service said.
    pub async fn count(&self, queue: &str) -> Result<u64, QueueError> {
        let sent = async {
            let answer = self.of(queue)?.get_properties(None).await?;
            answer.approximate_messages_count()
        };
        match sent.await.map_err(failed("count", queue)) {
            Err(error) if error.cause.is(404) => Ok(0),
            other => Ok(other?
                .and_then(|count| u64::try_from(count).ok())
                .unwrap_or(0)),
        }
    }
}

impl QueueFailure {
    /// Whether the service answered with this status.
    #[must_use]
    pub fn is(&self, status: u16) -> bool {
        matches!(self, Self::Refused { status: given, .. } if *given == status)
    }
}

fn failed(action: &'static str, queue: &str) -> impl FnOnce(azure_core::Error) -> QueueError {
    let queue = queue.to_owned();
    move |error| QueueError {
        action,
        queue,
        cause: match error.kind() {
            ErrorKind::HttpResponse {
                status, error_code, ..
            } => QueueFailure::Refused {
                status: u16::from(*status),
                code: error_code.clone().unwrap_or_default(),
            },
            ErrorKind::Connection | ErrorKind::Io => QueueFailure::Unreachable,
            _ => QueueFailure::Unusable,
        },
    }
}

/// The service counts whole seconds; what is asked for is not cut short.
fn seconds(time: Duration) -> i32 {
    let up = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i32::try_from(up).unwrap_or(i32::MAX)
}

fn time(time: OffsetDateTime) -> Option<Timestamp> {
    Timestamp::from_second(time.unix_timestamp()).ok()
}

/// Marks requests as the host's, and signs them with the account's key where there is one.
#[derive(Debug)]
struct Marked {
    account: String,
    key: Option<Secret>,
}

#[async_trait]
impl Policy for Marked {
    async fn send(
        &self,
        context: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        request.insert_header(HOST_HEADER, "1");
        if let Some(key) = &self.key {
            request.insert_header("x-ms-date", to_rfc7231(&OffsetDateTime::now_utc()));
            let signature = hmac_sha256(&string_to_sign(&self.account, request), key)?;
            request.insert_header(
                "authorization",
                format!("SharedKey {}:{signature}", self.account),
            );
        }
        match next.split_first() {
            Some((policy, rest)) => policy.send(context, request, rest).await,
            None => Err(azure_core::Error::with_message(
                ErrorKind::Other,
                "the pipeline has no transport",
            )),
        }
    }
}

/// The text whose signature proves the account's key: verb, standard headers, `x-ms-` headers, resource.
fn string_to_sign(account: &str, request: &Request) -> String {
    let header = |name: &'static str| {
        request
            .headers()
            .get_optional_str(&HeaderName::from_static(name))
            .unwrap_or_default()
            .to_owned()
    };
    let length = match request.body().len() {
        None | Some(0) => String::new(),
        Some(length) => length.to_string(),
    };
    let mut marks: Vec<String> = request
        .headers()
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-ms-"))
        .map(|(name, value)| format!("{}:{}\n", name.as_str(), value.as_str().trim()))
        .collect();
    marks.sort();
    let url = request.url();
    let mut query: Vec<String> = url
        .query_pairs()
        .map(|(name, value)| format!("\n{}:{value}", name.to_lowercase()))
        .collect();
    query.sort();
    let standard = [
        request.method().as_str().to_owned(),
        header("content-encoding"),
        header("content-language"),
        length,
        header("content-md5"),
        header("content-type"),
        header("date"),
        header("if-modified-since"),
        header("if-match"),
        header("if-none-match"),
        header("if-unmodified-since"),
        header("range"),
    ];
    format!(
        "{}\n{}/{account}{}{}",
        standard.join("\n"),
        marks.concat(),
        url.path(),
        query.concat()
    )
}
