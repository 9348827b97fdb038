//! Certificates for tests, made anew each time.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SignatureAlgorithm};

/// A server's certificate and key, and the authority that has signed it.
pub struct Files {
    /// Where the files are, as long as this is kept.
    pub dir: tempfile::TempDir,
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Files for a server that is called `localhost`, signed with `algorithm`.
pub fn files(algorithm: &'static SignatureAlgorithm) -> Files {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate_for(algorithm).unwrap()).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let certificate = params.signed_by(&key, &authority).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (authority, certificate, key) = (
        write("authority.pem", authority.pem()),
        write("certificate.pem", certificate.pem()),
        write("key.pem", key.serialize_pem()),
    );
    Files { dir, authority, certificate, key }
}
