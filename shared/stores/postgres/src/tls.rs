//! TLS as libpq means each `sslmode`, by rustls over aws-lc-rs.

use std::path::Path;
use std::sync::Arc;

use atlas_engine::{Error, ErrorKind, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, version,
};
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::address::{Address, RootCert};
use crate::config::SslMode;

/// What opens TLS to an address; `None` if its mode never does.
///
/// # Errors
/// `Usage` if there is no authority to trust, or a file cannot be read.
pub(crate) fn connector(address: &Address) -> Result<Option<MakeRustlsConnect>> {
    let trust = match (address.ssl_mode, &address.root_cert) {
        (SslMode::Disable, _) => return Ok(None),
        (SslMode::VerifyCa | SslMode::VerifyFull, None) => Some(Trust::in_system()?),
        (_, Some(cert)) => Some(Trust::in_file(cert)?),
        (SslMode::Allow | SslMode::Prefer | SslMode::Require, None) => None,
    };
    let internal = |cause| Error::new(ErrorKind::Internal, "set up TLS").because(cause);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] = if address.only_tls13 {
        &[&version::TLS13]
    } else {
        rustls::DEFAULT_VERSIONS
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(internal)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier {
            trust,
            checks_name: address.ssl_mode == SslMode::VerifyFull,
            provider,
        }));
    let mut config = match &address.client_cert {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let (chain, secret) = (certificates(cert, "sslcert")?, private_key(key)?);
            builder
                .with_client_auth_cert(chain, secret)
                .map_err(|cause| unreadable(cert, "sslcert").because(cause))?
        }
    };
    config.enable_sni = address.sends_name;
    Ok(Some(MakeRustlsConnect::new(config)))
}

fn unreadable(path: &Path, parameter: &str) -> Error {
    let action = format!("read the file that `{parameter}` names, {}", path.display());
    Error::new(ErrorKind::Usage, action).fix(format!(
        "Let `{parameter}` name a PEM file that this user can read; a private key must be readable by nobody else."
    ))
}

fn certificates(path: &Path, parameter: &str) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = || unreadable(path, parameter);
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|cause| wrong().because(cause))?;
    if found.is_empty() {
        return Err(wrong().because("the file holds no certificate"));
    }
    Ok(found)
}

/// As libpq refuses it, a key that others can read is not used.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let wrong = || unreadable(path, "sslkey");
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let file = std::fs::metadata(path).map_err(|cause| wrong().because(cause))?;
        let others = if file.uid() == 0 { 0o037 } else { 0o077 };
        if file.mode() & others != 0 {
            return Err(wrong().because("others than its owner may read it or write to it"));
        }
    }
    PrivateKeyDer::from_pem_file(path).map_err(|cause| wrong().because(cause))
}

/// Which certificates of servers are believed.
#[derive(Debug)]
struct Trust {
    authorities: RootCertStore,
    /// Certificates that were given as authorities. A server may show one of them itself: it is made by PostgreSQL's manual then.
    given: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn in_system() -> Result<Self> {
        let mut authorities = RootCertStore::empty();
        // What cannot be read of the system's store is left out, as browsers do; a chain to it will not be trusted.
        authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if authorities.is_empty() {
            return Err(
                Error::new(ErrorKind::Usage, "find the system's trusted authorities").fix(
                    "Install the system's CA certificates (Debian: ca-certificates), or set postgresql.ssl_root_cert.",
                ),
            );
        }
        Ok(Self {
            authorities,
            given: Vec::new(),
        })
    }

    fn in_file(file: &RootCert) -> Result<Self> {
        let given = certificates(&file.path, file.named_by)?;
        let mut authorities = RootCertStore::empty();
        for certificate in &given {
            authorities
                .add(certificate.clone())
                .map_err(|cause| unreadable(&file.path, file.named_by).because(cause))?;
        }
        Ok(Self { authorities, given })
    }
}

/// Checks what the mode asks for. That the server has the certificate's key is always checked.
#[derive(Debug)]
struct Verifier {
    /// `None` = any certificate will do.
    trust: Option<Trust>,
    checks_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let read = Certificate::from_der(end_entity)
            .map_err(|_| rustls::Error::from(CertificateError::BadEncoding))?;
        let is_own_authority = read.tbs_certificate.issuer == read.tbs_certificate.subject;
        if is_own_authority && trust.given.iter().any(|given| given == end_entity) {
            // No chain to check: the very certificate is trusted. rustls would refuse it where it says CA:TRUE.
            require_valid_at(&read, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &trust.authorities,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        if self.checks_name {
            verify_server_name(&parsed, server_name).or_else(|error| {
                has_common_name(&read, server_name)
                    .then_some(())
                    .ok_or(error)
            })?;
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

fn require_valid_at(certificate: &Certificate, now: UnixTime) -> Result<(), rustls::Error> {
    let validity = &certificate.tbs_certificate.validity;
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// Whether a certificate without alternative names of the host's kind has the host as its common name, which libpq accepts.
fn has_common_name(certificate: &Certificate, host: &ServerName<'_>) -> bool {
    let certificate = &certificate.tbs_certificate;
    let Ok(alternatives) = certificate.get::<SubjectAltName>() else {
        return false;
    };
    let is_of_kind = |name: &GeneralName| {
        matches!(
            (name, host),
            (GeneralName::DnsName(_), ServerName::DnsName(_))
                | (GeneralName::IpAddress(_), ServerName::IpAddress(_))
        )
    };
    if alternatives.is_some_and(|(_, names)| names.0.iter().any(is_of_kind)) {
        return false;
    }
    let host = host.to_str();
    let mut attributes = (certificate.subject.0.iter()).flat_map(|names| names.0.iter());
    attributes.any(|attribute| {
        // All kinds of text in use here hold ASCII as it is.
        let name = std::str::from_utf8(attribute.value.value());
        attribute.oid == COMMON_NAME && name.is_ok_and(|name| name_matches(name, &host))
    })
}

/// A `*` at the beginning stands for one label.
fn name_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(domain) if domain.starts_with('.') => {
            let first = host.len().checked_sub(domain.len());
            first
                .and_then(|at| host.split_at_checked(at))
                .is_some_and(|(label, rest)| {
                    !label.is_empty() && !label.contains('.') && rest.eq_ignore_ascii_case(domain)
                })
        }
        _ => pattern.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
    };

    use super::*;

    /// A certificate by itself, as PostgreSQL's manual makes it.
    fn own(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "db.example.org");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn accepts(
        trusted: &CertificateDer<'static>,
        shown: &CertificateDer<'_>,
        host: Option<&str>,
    ) -> bool {
        let mut authorities = RootCertStore::empty();
        authorities.add(trusted.clone()).unwrap();
        let verifier = Verifier {
            trust: Some(Trust {
                authorities,
                given: vec![trusted.clone()],
            }),
            checks_name: host.is_some(),
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        };
        let name = ServerName::try_from(host.unwrap_or("any")).unwrap();
        verifier
            .verify_server_cert(shown, &[], &name, &[], UnixTime::now())
            .is_ok()
    }

    #[test]
    fn a_certificate_of_the_manual_is_believed_when_it_is_the_one_that_was_given() {
        let given = own(|_| {});
        assert!(accepts(&given, &given, None));
        assert!(accepts(&given, &given, Some("db.example.org")));
        assert!(accepts(&given, &given, Some("DB.example.ORG")));
        assert!(!accepts(&given, &given, Some("other.example.org")));
        assert!(!accepts(&given, &own(|_| {}), None));
        let no_authority = own(|params| params.is_ca = IsCa::ExplicitNoCa);
        assert!(accepts(
            &no_authority,
            &no_authority,
            Some("db.example.org")
        ));
    }

    #[test]
    fn one_that_is_not_valid_now_is_not_believed() {
        let past = own(|params| params.not_after = date_time_ymd(2001, 1, 1));
        let future = own(|params| params.not_before = date_time_ymd(2999, 1, 1));
        assert!(!accepts(&past, &past, None));
        assert!(!accepts(&future, &future, None));
    }

    #[test]
    fn the_common_name_counts_where_no_alternative_of_that_kind_is_there() {
        let names = |sans: Vec<SanType>| own(|params| params.subject_alt_names = sans);
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let address = SanType::IpAddress("10.0.0.1".parse().unwrap());
        let with_dns = names(vec![dns("a.example.org")]);
        assert!(accepts(&with_dns, &with_dns, Some("a.example.org")));
        assert!(!accepts(&with_dns, &with_dns, Some("db.example.org")));
        let with_address = names(vec![address]);
        assert!(accepts(
            &with_address,
            &with_address,
            Some("db.example.org")
        ));
        assert!(accepts(&with_address, &with_address, Some("10.0.0.1")));
        assert!(!accepts(&with_address, &with_address, Some("10.0.0.2")));
        let by_address = own(|params| {
            params
                .distinguished_name
                .push(DnType::CommonName, "10.0.0.9")
        });
        assert!(accepts(&by_address, &by_address, Some("10.0.0.9")));
    }

    #[test]
    fn a_star_stands_for_one_label() {
        for (pattern, host, matches) in [
            ("*.example.org", "db.example.org", true),
            ("*.example.org", "a.db.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.example.org", ".example.org", false),
            ("*", "db", false),
            ("*example.org", "dbexample.org", false),
            ("db.example.org", "DB.EXAMPLE.ORG", true),
        ] {
            assert_eq!(name_matches(pattern, host), matches, "{pattern} {host}");
        }
    }

    #[test]
    fn a_chain_to_a_given_authority_is_believed_and_a_given_leaf_alone_is_not() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        let leaf_key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(["db.example.org".to_owned()]).unwrap();
        leaf.is_ca = IsCa::ExplicitNoCa;
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap().der().clone();
        assert!(accepts(&authority, &leaf, Some("db.example.org")));
        assert!(!accepts(&authority, &leaf, Some("other.example.org")));
        assert!(!accepts(&leaf, &leaf, None));
    }
}
