//! TLS as `ssl_mode` means it, by rustls over aws-lc-rs.

use std::path::Path;
use std::sync::Arc;

use atlas_engine::{Error, ErrorKind, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::SslMode;

/// What opens TLS for a mode; `None` if the mode never does.
///
/// # Errors
/// `Usage` if there is no authority to trust.
pub(crate) fn connector(
    mode: SslMode,
    root_cert: Option<&Path>,
) -> Result<Option<MakeRustlsConnect>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::new(ErrorKind::Internal, "set up TLS").because(cause))?;
    let config = match mode {
        SslMode::Disable => return Ok(None),
        SslMode::Allow | SslMode::Prefer => without_name_check(builder, None, provider),
        SslMode::Require | SslMode::VerifyCa => {
            without_name_check(builder, Some(roots(root_cert)?), provider)
        }
        SslMode::VerifyFull => builder
            .with_root_certificates(roots(root_cert)?)
            .with_no_client_auth(),
    };
    Ok(Some(MakeRustlsConnect::new(config)))
}

fn without_name_check(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>,
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
) -> ClientConfig {
    builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName { roots, provider }))
        .with_no_client_auth()
}

fn roots(root_cert: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(path) = root_cert else {
        // What cannot be read of the system's store is left out, as browsers do; a chain to it will not be trusted.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(
                Error::new(ErrorKind::Usage, "find the system's trusted authorities").fix(
                    "Install the system's CA certificates (Debian: ca-certificates), or set postgresql.ssl_root_cert.",
                ),
            );
        }
        return Ok(roots);
    };
    let wrong = || {
        Error::new(
            ErrorKind::Usage,
            format!("read the authorities in {}", path.display()),
        )
        .fix("Set postgresql.ssl_root_cert to a readable PEM file with the certificate of the server's authority.")
    };
    for certificate in
        CertificateDer::pem_file_iter(path).map_err(|cause| wrong().because(cause))?
    {
        let certificate = certificate.map_err(|cause| wrong().because(cause))?;
        roots
            .add(certificate)
            .map_err(|cause| wrong().because(cause))?;
    }
    if roots.is_empty() {
        return Err(wrong().because("the file holds no certificate"));
    }
    Ok(roots)
}

/// Accepts any name, and any chain if there are no `roots`. That the server has the certificate's key is always checked.
#[derive(Debug)]
struct AnyName {
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
