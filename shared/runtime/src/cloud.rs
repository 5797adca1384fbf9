//! What needs a cloud: secrets from its vault, and its queue. Each cloud is a feature; a program without one says so when
//! a configuration asks for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use atlas_engine::ports::Queue;
use atlas_engine::{Error, ErrorKind, Result};
use futures::future::{BoxFuture, try_join_all};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use crate::settings::{
    AzureAccess, ConfigError, Invalid, Override, QueueAccess, Reference, read_file,
};
use crate::suite::DEAD_SUFFIX;
use crate::{Environment, Settings};

/// Settings that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A vault does not give out what the configuration refers to.
    #[error("failed to get the secret for `{key}`")]
    Secret {
        /// The key that refers to it.
        key: String,
        /// What was tried, and what helps.
        #[source]
        source: Error,
    },
}

impl From<Invalid> for LoadError {
    fn from(invalid: Invalid) -> Self {
        Self::Config(invalid.into())
    }
}

/// Reads and checks a configuration whose secrets may lie in vaults. Without a path, variables alone are the configuration,
/// as functions have it. All that can be wrong without the secrets is told before any vault is asked.
///
/// # Errors
/// What is wrong with the configuration, or the first secret that could not be had.
pub async fn load(
    path: Option<&Path>,
    environment: Environment,
    overrides: &[Override],
) -> Result<Settings, LoadError> {
    let (text, path) = match path {
        Some(path) => (read_file(path)?, path),
        None => (String::new(), Path::new("environment variables")),
    };
    let references = Settings::references(&text, path, &environment, overrides)?;
    let environment = environment.with_secrets(secrets(references).await?);
    Ok(Settings::parse(&text, path, &environment, overrides)?)
}

/// What the vaults answer; references to the vault of a cloud that this program was built without stay open.
async fn secrets(
    references: Vec<(String, Reference)>,
) -> Result<BTreeMap<Reference, SecretString>, LoadError> {
    let vaults = Vaults::default();
    let by_reference: BTreeMap<Reference, String> = references
        .into_iter()
        .map(|(key, reference)| (reference, key))
        .collect();
    let answers = by_reference.into_iter().map(async |(reference, key)| {
        match vaults.secret(&reference).await {
            Ok(secret) => Ok(secret.map(|secret| (reference, secret))),
            Err(source) => Err(LoadError::Secret { key, source }),
        }
    });
    Ok(try_join_all(answers).await?.into_iter().flatten().collect())
}

#[derive(Default)]
struct Vaults {
    #[cfg(feature = "azure")]
    azure: std::sync::OnceLock<atlas_cloud_azure::Vaults>,
    #[cfg(feature = "aws")]
    aws: atlas_cloud_aws::ManagedSecrets,
}

impl Vaults {
    async fn secret(&self, reference: &Reference) -> Result<Option<SecretString>> {
        match reference {
            #[cfg(feature = "azure")]
            Reference::KeyVault {
                vault,
                name,
                version,
            } => {
                let vaults = match self.azure.get() {
                    Some(vaults) => vaults,
                    None => {
                        let vaults = atlas_cloud_azure::Vaults::new()?;
                        self.azure.get_or_init(|| vaults)
                    }
                };
                let secret = vaults.secret(vault, name, version.as_deref());
                secret.await.map(Some)
            }
            #[cfg(feature = "aws")]
            Reference::SecretsManager { id, member } => {
                let secret = self.aws.secret(id, member.as_deref());
                secret.await.map(Some)
            }
            #[cfg(not(all(feature = "azure", feature = "aws")))]
            _ => Ok(None),
        }
    }
}

/// The queue of work and the queue of what was set aside, to be counted.
pub struct Queues {
    work: Box<dyn Counted>,
    dead: Box<dyn Counted>,
}

impl Queues {
    /// Those of the settings; `None` if they name no queue. Nothing is asked yet. What was tried too often lies beside the queue of
    /// work, under its name and [`DEAD_SUFFIX`].
    ///
    /// # Errors
    /// As [`queue`].
    pub fn of(settings: &Settings) -> Result<Option<Self>> {
        let Some(access) = &settings.queue else {
            return Ok(None);
        };
        let queues = match access {
            QueueAccess::Sqs { url } => Self {
                work: counted_sqs(url)?,
                dead: counted_sqs(&dead_queue(url)?)?,
            },
            QueueAccess::Azure { url, access } => {
                let dead = SecretString::from(dead_queue(url.expose_secret())?);
                Self {
                    work: counted_storage(url, access)?,
                    dead: counted_storage(&dead, access)?,
                }
            }
        };
        Ok(Some(queues))
    }

    /// How many messages lie in both, about: work, then what was set aside.
    pub async fn count(&self) -> (Result<u64>, Result<u64>) {
        futures::join!(self.work.count(), self.dead.count())
    }
}

/// A queue that can be counted.
trait Counted: Send + Sync {
    fn count(&self) -> BoxFuture<'_, Result<u64>>;
}

#[cfg(feature = "aws")]
impl Counted for atlas_cloud_aws::SqsQueue {
    fn count(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.count())
    }
}

#[cfg(feature = "azure")]
impl Counted for atlas_cloud_azure::StorageQueue {
    fn count(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.count())
    }
}

/// The address of a queue with the name of its dead letters.
fn dead_queue(url: &str) -> Result<String> {
    // The address can hold a signature.
    let odd = || Error::new(ErrorKind::Usage, "find the queue of dead letters");
    let mut url = Url::parse(url).map_err(|_| odd())?;
    let name = url.path_segments().and_then(|mut all| all.next_back());
    let dead = format!("{}{DEAD_SUFFIX}", name.ok_or_else(odd)?);
    url.path_segments_mut()
        .map_err(|()| odd())?
        .pop()
        .push(&dead);
    Ok(url.into())
}

/// The queue of work that the settings name. Nothing is sent yet.
///
/// # Errors
/// `Usage` if they name none, or one of a cloud that this program was built without.
pub fn queue(settings: &Settings) -> Result<Arc<dyn Queue>> {
    let Some(access) = &settings.queue else {
        let fix = "Set `queue.url` (ATLAS_QUEUE_URL), or `queue.connection_string` of an Azure storage account.";
        return Err(Error::new(ErrorKind::Usage, "find the queue of work").fix(fix));
    };
    match access {
        QueueAccess::Sqs { url } => sqs(url),
        QueueAccess::Azure { url, access } => storage(url, access),
    }
}

#[cfg(feature = "aws")]
fn sqs(url: &str) -> Result<Arc<dyn Queue>> {
    Ok(Arc::new(atlas_cloud_aws::SqsQueue::new(url)))
}

#[cfg(feature = "aws")]
fn counted_sqs(url: &str) -> Result<Box<dyn Counted>> {
    Ok(Box::new(atlas_cloud_aws::SqsQueue::new(url)))
}

#[cfg(not(feature = "aws"))]
fn sqs(_url: &str) -> Result<Arc<dyn Queue>> {
    Err(built_without("Amazon SQS"))
}

#[cfg(not(feature = "aws"))]
fn counted_sqs(_url: &str) -> Result<Box<dyn Counted>> {
    Err(built_without("Amazon SQS"))
}

#[cfg(feature = "azure")]
fn storage(url: &SecretString, access: &AzureAccess) -> Result<Arc<dyn Queue>> {
    Ok(Arc::new(storage_queue(url, access)?))
}

#[cfg(feature = "azure")]
fn counted_storage(url: &SecretString, access: &AzureAccess) -> Result<Box<dyn Counted>> {
    Ok(Box::new(storage_queue(url, access)?))
}

#[cfg(feature = "azure")]
fn storage_queue(
    url: &SecretString,
    access: &AzureAccess,
) -> Result<atlas_cloud_azure::StorageQueue> {
    use atlas_cloud_azure::{Access, StorageQueue};

    let access = match access {
        AzureAccess::Identity => Access::Identity,
        AzureAccess::Signed => Access::Signed,
        AzureAccess::Key { account, key } => Access::Key {
            account: account.clone(),
            key: key.clone(),
        },
    };
    StorageQueue::new(url, access)
}

#[cfg(not(feature = "azure"))]
fn counted_storage(_url: &SecretString, _access: &AzureAccess) -> Result<Box<dyn Counted>> {
    Err(built_without("Azure storage"))
}

#[cfg(not(feature = "azure"))]
fn storage(_url: &SecretString, _access: &AzureAccess) -> Result<Arc<dyn Queue>> {
    Err(built_without("Azure storage"))
}

#[cfg(not(all(feature = "azure", feature = "aws")))]
fn built_without(service: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("use a queue of {service}")).fix(
        "Use a program that was built for this cloud, or take the queue out of the configuration.",
    )
}
