use std::sync::Arc;

use atlas_engine::{Error, ErrorKind, Result};
use azure_core::credentials::TokenCredential;
use azure_core::http::ClientOptions;
use azure_security_keyvault_secrets::models::SecretClientGetSecretOptions;
use azure_security_keyvault_secrets::{SecretClient, SecretClientOptions};
use secrecy::SecretString;
use url::Url;

use crate::client::{self, CALL_LIMIT};
use crate::failure::Failure;
use crate::identity;

/// Reads secrets from Key Vaults, as the identity of this program in Entra ID.
pub struct Vaults {
    client_options: ClientOptions,
    credential: Arc<dyn TokenCredential>,
}

impl Vaults {
    /// Sends nothing yet.
    ///
    /// # Errors
    /// `SecretUnavailable` if this program has no identity.
    pub fn new() -> Result<Self> {
        let client_options = client::options()?;
        let credential = identity::credential(client_options.clone())
            .map_err(|error| unavailable(Failure::from(error)))?;
        Ok(Self {
            client_options,
            credential,
        })
    }

    /// The value of a secret, in its newest version unless one is named. `vault` is the vault's address.
    ///
    /// # Errors
    /// `SecretUnavailable`, whatever the reason: the cause tells it.
    pub async fn secret(
        &self,
        vault: &Url,
        name: &str,
        version: Option<&str>,
    ) -> Result<SecretString> {
        let call = self.try_to_read(vault, name, version);
        match tokio::time::timeout(CALL_LIMIT, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Late),
        }
        .map_err(unavailable)
    }

    async fn try_to_read(
        &self,
        vault: &Url,
        name: &str,
        version: Option<&str>,
    ) -> Result<SecretString, Failure> {
        let options = SecretClientOptions {
            client_options: self.client_options.clone(),
            ..SecretClientOptions::default()
        };
        let credential = Arc::clone(&self.credential);
        let client = SecretClient::new(vault.as_str(), credential, Some(options))?;
        let options = SecretClientGetSecretOptions {
            secret_version: version.map(str::to_owned),
            ..SecretClientGetSecretOptions::default()
        };
        let secret = client.get_secret(name, Some(options)).await?.into_model()?;
        Ok(secret.value.unwrap_or_default().into())
    }
}

fn unavailable(failure: Failure) -> Error {
    let fix = match &failure {
        Failure::Status { status: 404, .. } => "Create the secret, or correct the reference to it.",
        failure if failure.is_transient() => {
            "Look whether the vault can be reached from here, then start again."
        }
        _ => "Give this program an identity with the role Key Vault Secrets User on the vault.",
    };
    Error::new(ErrorKind::SecretUnavailable, "read a secret from Key Vault")
        .because(failure)
        .fix(fix)
}
