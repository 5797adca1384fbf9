//! Configurations whose secrets lie in vaults, and the queues that they name.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use atlas_cdr::Auth;
use atlas_emulators::{Authority, Azurite, Identity, Moto, Vault, in_child};
use atlas_engine::ErrorKind;
use atlas_engine::message::{Message, Task};
use atlas_runtime::cloud::{LoadError, queue};
use atlas_runtime::settings::{AzureAccess, ConfigError, QueueAccess, Settings, Store};
use atlas_runtime::{Environment, load};
use secrecy::ExposeSecret;

fn example(name: &str) -> PathBuf {
    atlas_machine::checkout()
        .unwrap()
        .join("docs/examples")
        .join(name)
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().copied().collect()
}

async fn of_variables(variables: &[(&str, &str)]) -> Result<Settings, LoadError> {
    let base = ("ATLAS_OPENEHR_BASE_URL", "https://cdr.example");
    load(None, environment(&[&[base], variables].concat()), &[]).await
}

fn password(settings: &Settings) -> &str {
    match &settings.openehr.auth {
        Auth::Basic { password, .. } => password.expose_secret(),
        other => panic!("{other:?}"),
    }
}

fn connection_string(settings: &Settings) -> &str {
    match &settings.store {
        Store::Postgresql(config) => config.connection_string.expose_secret(),
        other @ Store::Sqlite { .. } => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn secrets_are_read_from_secrets_manager() {
    if std::env::var_os("AWS_ENDPOINT_URL").is_none() {
        let moto = Moto::start().unwrap();
        let test = "secrets_are_read_from_secrets_manager";
        return in_child(test, moto.environment()).unwrap();
    }
    let config = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
    let client = aws_sdk_secretsmanager::Client::new(&config);
    let url = r#"{"url":"postgresql://atlas:s3cret@db/research"}"#;
    for (name, value) in [("atlas/cdr-password", "s3cret"), ("atlas/postgresql", url)] {
        let made = client.create_secret().name(name).secret_string(value);
        made.send().await.unwrap();
    }

    let path = example("aws-functions.toml");
    let settings = load(Some(&path), environment(&[]), &[]).await.unwrap();
    assert_eq!(password(&settings), "s3cret");
    assert_eq!(
        connection_string(&settings),
        "postgresql://atlas:s3cret@db/research"
    );
    assert!(matches!(settings.queue, Some(QueueAccess::Sqs { .. })));
    assert!(!format!("{settings:?}").contains("s3cret"));

    let user = ("ATLAS_OPENEHR_USERNAME", "atlas");
    let reference = |target| ("ATLAS_OPENEHR_PASSWORD", target);
    let settings = of_variables(&[user, reference("secretsmanager:atlas/cdr-password")]).await;
    assert_eq!(password(&settings.unwrap()), "s3cret");

    let missing = reference("secretsmanager:atlas/none");
    match of_variables(&[user, missing]).await.unwrap_err() {
        LoadError::Secret { key, source } => {
            assert_eq!(key, "openehr.password");
            assert_eq!(source.kind(), ErrorKind::SecretUnavailable);
        }
        LoadError::Config(error) => panic!("{error}"),
    }

    // What is wrong anyway is told before a vault is asked.
    let wrong = ("ATLAS_EXPORT_MODE", "delta");
    match of_variables(&[user, missing, wrong]).await.unwrap_err() {
        LoadError::Config(ConfigError::Invalid(invalid)) => {
            let keys: Vec<&str> = invalid.problems.iter().map(|p| p.key.as_str()).collect();
            assert_eq!(keys, ["export.mode"]);
        }
        other => panic!("{other}"),
    }

    // A section that is not in use costs no request.
    let unused = ("ATLAS_COSMOSDB_KEY", "secretsmanager:atlas/none");
    let settings = of_variables(&[unused]).await.unwrap();
    assert!(settings.notices[0].contains("cosmosdb.key"));
}

#[tokio::test]
async fn secrets_are_read_from_key_vault() {
    if std::env::var_os("IDENTITY_ENDPOINT").is_some() {
        let path = example("azure-functions.toml");
        let settings = load(Some(&path), environment(&[]), &[]).await.unwrap();
        assert_eq!(password(&settings), "s3cret");
        assert_eq!(connection_string(&settings), "postgresql://db/research");
        assert!(matches!(
            settings.queue,
            Some(QueueAccess::Azure {
                access: AzureAccess::Identity,
                ..
            })
        ));
        return;
    }
    let authority = Authority::new().unwrap();
    let identity = Identity::start(&authority).await.unwrap();
    let secrets = [
        ("cdr-password", "s3cret"),
        ("postgresql", "postgresql://db/research"),
    ];
    let vault = Vault::start(&authority, "atlas-hospital", secrets);
    let vault = vault.await.unwrap();
    let mut variables = [identity.managed(), vault.environment()].concat();
    let trusted = authority.file().to_string_lossy().into_owned();
    variables.push(("SSL_CERT_FILE", trusted));
    let test = "secrets_are_read_from_key_vault";
    tokio::task::spawn_blocking(move || in_child(test, variables).unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn the_queue_of_a_connection_string_takes_messages() {
    let azurite = Azurite::start().unwrap();
    azurite.create_queue("export-work").await.unwrap();
    let connection = azurite.connection_string();
    let settings = of_variables(&[("ATLAS_QUEUE_CONNECTION_STRING", &connection)]).await;
    let message = Message {
        run: "run".to_owned(),
        task: Task::Slice {
            id: "slice".to_owned(),
            part: 0,
        },
        waits: 0,
    };
    let queue = queue(&settings.unwrap()).unwrap();
    queue.send(&message, Duration::ZERO).await.unwrap();
    assert_eq!(azurite.take("export-work").await.unwrap().len(), 1);
}

#[tokio::test]
async fn settings_without_a_queue_say_how_to_name_one() {
    let settings = of_variables(&[]).await.unwrap();
    let Err(error) = queue(&settings) else {
        panic!("there is a queue")
    };
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.help().unwrap().contains("ATLAS_QUEUE_URL"));
}

#[tokio::test]
async fn variables_alone_are_told_what_is_missing() {
    let error = load(None, environment(&[]), &[]).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("environment variables"), "{text}");
    assert!(text.contains("ATLAS_OPENEHR_BASE_URL"), "{text}");
}
