//! TLS for clients: a certificate and its key from files, checked when the node starts.
//!
//! TLS 1.2 and 1.3, as rustls has them with ring. There are no tickets, no cache of sessions and no early data: database connections
//! are few and long, and what is not there can't be replayed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use pleat_engine::scram::end_point;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::{self, ServerConfig};

/// What a server shows, and how it proves that it is its own.
#[derive(Clone)]
pub struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    /// The certificate's hash that a channel is bound to.
    pub(crate) end_point: Option<Arc<[u8]>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(…)")
    }
}

impl Tls {
    /// Read a certificate (and those that lead to its authority) and its key, as PEM. An error says what to do, and nothing of the key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, String> {
        let unread = |what: &str, file: &Path, error: PemError| {
            let why = match error {
                PemError::Io(error) => format!("can't be read: {error}"),
                PemError::NoItemsFound => format!("has no {what} in it; it must be a PEM file"),
                // What was read of a key is not repeated.
                _ => "is no PEM file".to_owned(),
            };
            format!("the file {} {why}", file.display())
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
        let chain = chain.map_err(|error| unread("certificate", certificate, error))?;
        let first = chain.first().ok_or_else(|| unread("certificate", certificate, PemError::NoItemsFound))?;
        let end_point = end_point(first).map(Arc::from);
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|error| unread("private key without a password", key, error))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => format!(
                    "the key in {} does not belong to the first certificate in {}; the server's own certificate \
                     comes first, then those that lead to its authority",
                    key.display(),
                    certificate.display()
                ),
                error => format!("{} and {} can't be used: {error}", certificate.display(), key.display()),
            })?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), end_point })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tls::{self, Files};

    #[test]
    fn a_certificate_is_hashed_as_it_is_signed() {
        let hashed = |algorithm: &'static rcgen::SignatureAlgorithm| {
            let Files { dir: _dir, certificate, key, .. } = tls::files(algorithm);
            let tls = Tls::load(&certificate, &key).unwrap();
            tls.end_point.map(|hash| hash.len())
        };
        assert_eq!(hashed(&rcgen::PKCS_ECDSA_P256_SHA256), Some(32));
        assert_eq!(hashed(&rcgen::PKCS_ECDSA_P384_SHA384), Some(48));
        assert_eq!(hashed(&rcgen::PKCS_ED25519), None);
    }

    #[test]
    fn files_that_can_not_be_used_are_named() {
        let Files { dir, certificate, key, .. } = tls::files(&rcgen::PKCS_ECDSA_P256_SHA256);
        let other = tls::files(&rcgen::PKCS_ECDSA_P256_SHA256);
        let refused = |certificate: &Path, key: &Path| Tls::load(certificate, key).unwrap_err();
        let nothing = dir.path().join("nothing");
        assert!(refused(&nothing, &key).contains("nothing can't be read"));
        assert!(refused(&certificate, &nothing).contains("nothing can't be read"));
        assert!(refused(&key, &key).contains("has no certificate in it"));
        assert!(refused(&certificate, &certificate).contains("has no private key"));
        assert!(refused(&certificate, &other.key).contains("does not belong to the first certificate"));
        let junk = dir.path().join("junk");
        std::fs::write(&junk, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n").unwrap();
        let told = refused(&certificate, &junk);
        assert!(told.contains("can't be used") && !told.contains("c2Vj"), "{told}");
        std::fs::write(&junk, "-----BEGIN PRIVATE KEY-----\nsecret?\n-----END PRIVATE KEY-----\n").unwrap();
        let told = refused(&certificate, &junk);
        assert!(told.contains("is no PEM file") && !told.contains("secret"), "{told}");
    }
}
