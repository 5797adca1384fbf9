use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;

use crate::{Context, Result};

/// Signs the certificates of servers of this crate. A client trusts it when `SSL_CERT_FILE` names [`file`](Self::file).
pub struct Authority {
    pem: String,
    file: NamedTempFile,
    issuer: Issuer<'static, KeyPair>,
}

pub(crate) struct Signed {
    pub(crate) certificate: Certificate,
    pub(crate) key: KeyPair,
}

impl Authority {
    /// Makes a new authority, which no client trusts yet.
    ///
    /// # Errors
    /// A temporary file that cannot be written.
    pub fn new() -> Result<Self> {
        let action = "make an authority";
        let key = KeyPair::generate().context(action)?;
        let mut params = CertificateParams::new(Vec::new()).context(action)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).context(action)?.pem();
        let file = NamedTempFile::new().context(action)?;
        std::fs::write(file.path(), &pem).context(action)?;
        Ok(Self {
            pem,
            file,
            issuer: Issuer::new(params, key),
        })
    }

    /// Its certificate as a PEM file; removed with this value.
    pub fn file(&self) -> &Path {
        self.file.path()
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn sign(&self, host: &str) -> Result<Signed> {
        let action = "sign a certificate";
        let key = KeyPair::generate().context(action)?;
        let params = CertificateParams::new([host.to_owned()]).context(action)?;
        let certificate = params.signed_by(&key, &self.issuer).context(action)?;
        Ok(Signed { certificate, key })
    }

    pub(crate) fn acceptor(&self, host: &str) -> Result<TlsAcceptor> {
        let action = "set up TLS";
        let Signed { certificate, key } = self.sign(host)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).context(action)?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context(action)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .context(action)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
