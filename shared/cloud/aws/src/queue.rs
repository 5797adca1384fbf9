use std::time::Duration;

use async_trait::async_trait;
use atlas_engine::message::Message;
use atlas_engine::ports::Queue;
use atlas_engine::{Error, ErrorKind, Result};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName;
use tokio::sync::OnceCell;

use crate::client;
use crate::failure::Failure;

const MOST_DELAY: Duration = Duration::from_secs(900);
/// Messages to be taken, taken and not deleted yet, and sent with a delay: all that lies in a queue.
const COUNTS: [QueueAttributeName; 3] = [
    QueueAttributeName::ApproximateNumberOfMessages,
    QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
    QueueAttributeName::ApproximateNumberOfMessagesDelayed,
];

/// A queue of Amazon SQS. A message is its JSON.
#[derive(Debug)]
pub struct SqsQueue {
    url: String,
    client: OnceCell<Client>,
}

impl SqsQueue {
    /// The queue at an address such as `https://sqs.REGION.amazonaws.com/ACCOUNT/QUEUE`. Does nothing yet.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            client: OnceCell::new(),
        }
    }

    /// Shows a message that was received again after `delay`, instead of when its visibility ends.
    ///
    /// # Errors
    /// As [`send`](Queue::send). The message comes back in any case, later.
    pub async fn show_again(&self, receipt: &str, delay: Duration) -> Result<()> {
        let shown = self
            .client()
            .await
            .change_message_visibility()
            .queue_url(&self.url)
            .receipt_handle(receipt)
            .visibility_timeout(seconds(delay))
            .send()
            .await;
        match shown {
            Ok(_) => Ok(()),
            Err(error) => Err(explain(
                "release a message",
                "sqs:ChangeMessageVisibility",
                error.into(),
            )),
        }
    }

    /// How many messages lie in the queue, about: those in work and those not due yet included.
    ///
    /// # Errors
    /// As [`send`](Queue::send).
    pub async fn count(&self) -> Result<u64> {
        self.try_to_count().await.map_err(|failure| {
            explain(
                "count the messages of the queue",
                "sqs:GetQueueAttributes",
                failure,
            )
        })
    }

    async fn try_to_count(&self) -> Result<u64, Failure> {
        let client = self.client().await;
        let asked = client.get_queue_attributes().queue_url(&self.url);
        let asked = asked.set_attribute_names(Some(COUNTS.to_vec()));
        let counts = asked.send().await?.attributes.unwrap_or_default();
        COUNTS.iter().try_fold(0, |sum, name| {
            let count = counts.get(name).and_then(|count| count.parse::<u64>().ok());
            count.map(|count| sum + count).ok_or(Failure::Answer)
        })
    }

    async fn client(&self) -> &Client {
        self.client
            .get_or_init(async || Client::new(&client::config().await))
            .await
    }

    async fn try_to_send(&self, message: &Message, delay: Duration) -> Result<(), Failure> {
        self.client()
            .await
            .send_message()
            .queue_url(&self.url)
            .message_body(message.to_json())
            .delay_seconds(seconds(delay.min(MOST_DELAY)))
            .send()
            .await?;
        Ok(())
    }
}

#[async_trait]
impl Queue for SqsQueue {
    async fn send(&self, message: &Message, delay: Duration) -> Result<()> {
        self.try_to_send(message, delay)
            .await
            .map_err(|failure| explain("send a message to the queue", "sqs:SendMessage", failure))
    }
}

fn explain(action: &'static str, right: &str, failure: Failure) -> Error {
    if failure.is_transient() {
        return Error::new(ErrorKind::QueueUnreachable, action).because(failure);
    }
    let fix = match &failure {
        failure if failure.is_missing() => {
            "Create the queue, or correct `queue.url` and the region.".to_owned()
        }
        Failure::NotSetUp => {
            "Set AWS_REGION, and give this program a role or credentials.".to_owned()
        }
        _ => format!("Give this program's role the right `{right}` on the queue."),
    };
    Error::new(ErrorKind::QueueDenied, action)
        .because(failure)
        .fix(fix)
}

fn seconds(duration: Duration) -> i32 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(whole).unwrap_or(i32::MAX)
}
