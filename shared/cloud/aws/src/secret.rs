use atlas_engine::{Error, ErrorKind, Result};
use aws_sdk_secretsmanager::Client;
use secrecy::SecretString;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::client;
use crate::failure::Failure;

/// Reads secrets from AWS Secrets Manager.
#[derive(Debug, Default)]
pub struct ManagedSecrets {
    client: OnceCell<Client>,
}

/// Why an answer is of no use. Holds nothing of it.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("the secret is bytes, not text")]
    Bytes,
    #[error("the secret is not a JSON object")]
    NotObject,
    #[error("the secret has no such member, or it is not a text")]
    NoMember,
}

impl ManagedSecrets {
    /// The current value of a secret, by name or ARN; with `member`, the text under that name in a secret that is a JSON
    /// object.
    ///
    /// # Errors
    /// `SecretUnavailable`, whatever the reason: the cause tells it.
    pub async fn secret(&self, id: &str, member: Option<&str>) -> Result<SecretString> {
        self.try_to_read(id, member).await.map_err(|unusable| {
            let fix = match &unusable {
                Unusable::Failed(failure) if failure.is_missing() => {
                    "Create the secret, or correct the reference to it and the region."
                }
                Unusable::Failed(failure) if failure.is_transient() => {
                    "Look whether Secrets Manager can be reached from here, then start again."
                }
                Unusable::Failed(Failure::NotSetUp) => {
                    "Set AWS_REGION, and give this program a role or credentials."
                }
                Unusable::Failed(_) => {
                    "Give this program's role the right `secretsmanager:GetSecretValue` on the secret."
                }
                _ => "Write `secretsmanager:NAME` for a text, `secretsmanager:NAME#MEMBER` for a member of a JSON object.",
            };
            Error::new(ErrorKind::SecretUnavailable, "read a secret from Secrets Manager")
                .because(unusable)
                .fix(fix)
        })
    }

    async fn try_to_read(&self, id: &str, member: Option<&str>) -> Result<SecretString, Unusable> {
        let client = self
            .client
            .get_or_init(async || Client::new(&client::config().await))
            .await;
        let answer = client.get_secret_value().secret_id(id).send().await;
        let secret = answer.map_err(Failure::from)?.secret_string;
        let text = secret.ok_or(Unusable::Bytes)?;
        let Some(member) = member else {
            return Ok(text.into());
        };
        let Ok(Value::Object(mut members)) = serde_json::from_str(&text) else {
            return Err(Unusable::NotObject);
        };
        match members.remove(member) {
            Some(Value::String(value)) => Ok(value.into()),
            _ => Err(Unusable::NoMember),
        }
    }
}
