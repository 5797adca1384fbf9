use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atlas_engine::message::Message;
use atlas_engine::ports::Queue;
use atlas_engine::{Error, ErrorKind, Result};
use azure_storage_queue::models::{
    QueueClientGetPropertiesResultHeaders as _, QueueClientSendMessageOptions, QueueMessage,
};
use azure_storage_queue::{QueueClient, QueueClientOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::client::{self, CALL_LIMIT};
use crate::failure::Failure;
use crate::identity;
use crate::shared_key::SharedKey;

const SEND: &str = "send a message to the queue";
const COUNT: &str = "count the messages of the queue";
const MOST_DELAY: Duration = Duration::from_secs(15 * 60);
/// The service's own default too, written down because the planner's sweep relies on messages that outlive a weekend.
const TIME_TO_LIVE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// How a queue lets us in.
pub enum Access {
    /// The identity of this program in Entra ID; https only.
    Identity,
    /// The address holds a shared access signature (SAS).
    Signed,
    /// The key of the storage account.
    Key {
        /// Name of the account.
        account: String,
        /// Base64, as Azure shows it.
        key: SecretString,
    },
}

/// A queue of an Azure storage account. A message is base64 of its JSON, as the Functions host expects it.
pub struct StorageQueue {
    client: QueueClient,
    access: Access,
}

impl fmt::Debug for StorageQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StorageQueue")
    }
}

impl StorageQueue {
    /// The queue at an address such as `https://ACCOUNT.queue.core.windows.net/QUEUE`. Sends nothing yet.
    ///
    /// # Errors
    /// `Usage` if the address does not fit the access, or there is no identity.
    pub fn new(url: &SecretString, access: Access) -> Result<Self> {
        let mut client_options = client::options()?;
        let refused = |failure: Failure| {
            Error::new(ErrorKind::Usage, "set up the queue")
                .because(failure)
                .fix(fix(&access))
        };
        let url = Url::parse(url.expose_secret()).map_err(|_| refused(Failure::Refused))?;
        let credential = match &access {
            Access::Identity => Some(
                identity::credential(client_options.clone())
                    .map_err(|error| refused(error.into()))?,
            ),
            Access::Signed => None,
            Access::Key { account, key } => {
                let policy = SharedKey::new(account, key.expose_secret());
                client_options.per_try_policies.push(Arc::new(policy));
                None
            }
        };
        let options = QueueClientOptions {
            client_options,
            ..QueueClientOptions::default()
        };
        let client = QueueClient::new(url, credential, Some(options))
            .map_err(|error| refused(error.into()))?;
        Ok(Self { client, access })
    }

    async fn try_to_send(&self, message: &Message, delay: Duration) -> Result<(), Failure> {
        let message = QueueMessage {
            message_text: Some(STANDARD.encode(message.to_json())),
        };
        let options = QueueClientSendMessageOptions {
            visibility_timeout: Some(seconds(delay.min(MOST_DELAY))),
            message_time_to_live: Some(seconds(TIME_TO_LIVE)),
            ..QueueClientSendMessageOptions::default()
        };
        let call = self.client.send_message(message.try_into()?, Some(options));
        in_time(async { Ok(call.await.map(drop)?) }).await
    }

    /// How many messages lie in the queue, about: those in work and those not due yet included.
    ///
    /// # Errors
    /// As [`send`](Queue::send).
    pub async fn count(&self) -> Result<u64> {
        in_time(self.try_to_count())
            .await
            .map_err(|failure| self.explain(COUNT, failure))
    }

    async fn try_to_count(&self) -> Result<u64, Failure> {
        let properties = self.client.get_properties(None).await?;
        let count = properties.approximate_messages_count()?;
        count
            .and_then(|count| u64::try_from(count).ok())
            .ok_or(Failure::Answer)
    }

    fn explain(&self, action: &'static str, failure: Failure) -> Error {
        if failure.is_transient() {
            return Error::new(ErrorKind::QueueUnreachable, action).because(failure);
        }
        let fix = match (&failure, action) {
            (Failure::Status { status: 404, .. }, _) => {
                "Create the queue, or correct its name in `[queue]`."
            }
            (_, COUNT) => {
                "Let this program read the queue: the role Storage Queue Data Reader, or a signature with the right to read (`sp=r`)."
            }
            _ => fix(&self.access),
        };
        Error::new(ErrorKind::QueueDenied, action)
            .because(failure)
            .fix(fix)
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(CALL_LIMIT, call)
        .await
        .unwrap_or(Err(Failure::Late))
}

#[async_trait]
impl Queue for StorageQueue {
    async fn send(&self, message: &Message, delay: Duration) -> Result<()> {
        self.try_to_send(message, delay)
            .await
            .map_err(|failure| self.explain(SEND, failure))
    }
}

fn fix(access: &Access) -> &'static str {
    match access {
        Access::Identity => {
            "Give this program an identity with the role Storage Queue Data Message Sender on the queue, and write its address with https."
        }
        Access::Signed => {
            "Renew the signature in `queue.url`; it needs the right to add messages (`sp=a`)."
        }
        Access::Key { .. } => {
            "Correct name and key of the account in `queue.connection_string`, and look whether the account takes keys."
        }
    }
}

/// Whole seconds, never fewer than asked for.
fn seconds(duration: Duration) -> i32 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(whole).unwrap_or(i32::MAX)
}
