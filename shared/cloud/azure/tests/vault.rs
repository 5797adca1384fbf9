//! Secrets from a vault that has the name of a real one.
#![allow(clippy::unwrap_used, missing_docs)]

use atlas_cloud_azure::Vaults;
use atlas_emulators::{Authority, Identity, Vault, in_child};
use atlas_engine::ErrorKind;
use secrecy::ExposeSecret;
use url::Url;

#[tokio::test]
async fn secrets_come_with_and_without_a_version() {
    const VAULT: &str = "ATLAS_TEST_VAULT";
    if let Ok(vault) = std::env::var(VAULT) {
        return read_them(&vault.parse().unwrap()).await;
    }
    let authority = Authority::new().unwrap();
    let identity = Identity::start(&authority).await.unwrap();
    let secrets = [("cdr", "s3cret"), ("cdr/0f3c", "older")];
    let vault = Vault::start(&authority, "tests", secrets).await.unwrap();
    let mut variables = [identity.managed(), vault.environment()].concat();
    let trusted = authority.file().to_string_lossy().into_owned();
    variables.push(("SSL_CERT_FILE", trusted));
    variables.push((VAULT, "https://tests.vault.azure.net/".to_owned()));
    let test = "secrets_come_with_and_without_a_version";
    tokio::task::spawn_blocking(move || in_child(test, variables).unwrap())
        .await
        .unwrap();
    let asked = identity.asked();
    assert_eq!(asked.len(), 1, "one token for all of them");
    assert_eq!(asked[0]["resource"], "https://vault.azure.net");
}

async fn read_them(vault: &Url) {
    let vaults = Vaults::new().unwrap();
    let newest = vaults.secret(vault, "cdr", None).await.unwrap();
    assert_eq!(newest.expose_secret(), "s3cret");
    let older = vaults.secret(vault, "cdr", Some("0f3c")).await.unwrap();
    assert_eq!(older.expose_secret(), "older");

    for (name, said, help) in [
        ("other", "404 SecretNotFound", "Create the secret"),
        ("denied", "403 Forbidden", "Key Vault Secrets User"),
    ] {
        let error = vaults.secret(vault, name, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SecretUnavailable);
        assert!(error.chain().contains(said), "{}", error.chain());
        assert!(error.help().unwrap().contains(help), "{:?}", error.help());
    }
}
