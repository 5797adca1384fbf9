//! Encrypted connections: who is trusted, and who is let in.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use atlas_cdr::{Cdr, Config, Tls};
use atlas_engine::ErrorKind;
use atlas_engine::ports::Definitions;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use wire::{Wire, json};

/// An authority, and what it signs.
struct Authority {
    pem: String,
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

struct Signed {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    fn sign(&self, name: &str) -> Signed {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        Signed {
            certificate: params.signed_by(&key, &self.issuer).unwrap(),
            key,
        }
    }

    /// A server with a certificate for `name`; with `clients`, only those with a certificate of that authority get in.
    async fn serve(&self, name: &str, clients: Option<&Self>) -> Wire {
        let signed = self.sign(name);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.certificate.der().clone()).unwrap();
                config.with_client_cert_verifier(
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .unwrap(),
                )
            }
        };
        let key = PrivateKeyDer::try_from(signed.key.serialize_der()).unwrap();
        let config = config
            .with_single_cert(vec![signed.certificate.der().clone()], key)
            .unwrap();
        Wire::start_on(Some(TlsAcceptor::from(Arc::new(config))), |_, _| {
            json(r#"[{"template_id":"vitals"}]"#)
        })
        .await
    }
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> Option<PathBuf> {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    }
}

async fn call(wire: &Wire, tls: Tls) -> Result<usize, atlas_engine::Error> {
    let cdr = Cdr::connect(Config {
        base_url: format!("https://localhost:{}/ehrbase", wire.address.port()),
        tls,
        ..wire.config()
    })?;
    Ok(cdr.templates().await?.len())
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_when_it_is_named() {
    let (files, authority) = (Files::new(), Authority::new());
    let wire = authority.serve("localhost", None).await;
    let trusting = Tls {
        ca_cert: files.write("ca.pem", &authority.pem),
        ..Tls::default()
    };
    assert_eq!(call(&wire, trusting).await.unwrap(), 1);
    let other = Tls {
        ca_cert: files.write("other.pem", &Authority::new().pem),
        ..Tls::default()
    };
    for stranger in [Tls::default(), other] {
        let before = wire.connections();
        let error = call(&wire, stranger).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnreachable);
        assert_eq!(
            wire.connections() - before,
            1,
            "a certificate does not get better"
        );
        assert!(
            error.help().unwrap().contains("openehr.tls_ca_cert"),
            "{}",
            error.chain()
        );
    }
    let careless = Tls {
        verify: false,
        ..Tls::default()
    };
    assert_eq!(call(&wire, careless).await.unwrap(), 1);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let (files, authority) = (Files::new(), Authority::new());
    let wire = authority.serve("elsewhere.test", None).await;
    let tls = Tls {
        ca_cert: files.write("ca.pem", &authority.pem),
        ..Tls::default()
    };
    let error = call(&wire, tls).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUnreachable);
    assert!(error.help().unwrap().contains("host name"));
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks_for_it() {
    let (files, authority, clients) = (Files::new(), Authority::new(), Authority::new());
    let wire = authority.serve("localhost", Some(&clients)).await;
    let client = clients.sign("atlas");
    let with = Tls {
        ca_cert: files.write("ca.pem", &authority.pem),
        client_cert: files.write("client.pem", &client.certificate.pem()),
        client_key: files.write("client.key", &client.key.serialize_pem()),
        ..Tls::default()
    };
    assert_eq!(call(&wire, with.clone()).await.unwrap(), 1);
    let half = Tls {
        client_key: None,
        ..with.clone()
    };
    assert_eq!(
        call(&wire, half).await.unwrap_err().kind(),
        ErrorKind::Usage
    );
    let stranger = authority.sign("atlas");
    for tls in [
        Tls {
            client_cert: None,
            client_key: None,
            ..with.clone()
        },
        Tls {
            client_cert: files.write("stranger.pem", &stranger.certificate.pem()),
            client_key: files.write("stranger.key", &stranger.key.serialize_pem()),
            ..with.clone()
        },
    ] {
        // In TLS 1.3 the client hears of it after the handshake, or only that the connection is gone.
        let error = call(&wire, tls).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnreachable);
    }
    assert_eq!(wire.requests().len(), 1, "a stranger was let in");
}

#[test]
fn files_that_cannot_be_used_are_refused_before_anything_is_sent() {
    let files = Files::new();
    let rubbish = files.write("rubbish.pem", "no certificate");
    let missing = Some(files.0.path().join("missing.pem"));
    for tls in [
        Tls {
            ca_cert: missing.clone(),
            ..Tls::default()
        },
        Tls {
            ca_cert: rubbish.clone(),
            ..Tls::default()
        },
        Tls {
            client_cert: missing.clone(),
            client_key: missing,
            ..Tls::default()
        },
        Tls {
            client_cert: rubbish.clone(),
            client_key: rubbish,
            ..Tls::default()
        },
    ] {
        let error = Cdr::connect(Config {
            tls,
            ..Config::new("https://localhost/ehrbase")
        })
        .err()
        .unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("openehr.tls_"), "{error}");
        assert!(error.help().is_some());
    }
}
