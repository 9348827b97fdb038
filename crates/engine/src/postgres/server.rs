//! Which server, as whom, and through what: everything that a connection needs to know.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use bytes::BytesMut;

use super::identity::Identity;
use super::wire::Broken;
use super::wire::frontend::First;
use crate::scram::end_point;

/// A server and who Pleat is to it.
#[derive(Clone, Debug)]
pub struct Server {
    pub address: Address,
    pub user: String,
    pub database: String,
    /// For a server that asks for one. Only its proof is ever sent.
    pub password: Option<Password>,
    /// The shard that it has to be; `None`: whatever it is.
    pub identity: Option<Identity>,
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    Tcp(SocketAddr),
    /// TLS, or nothing.
    Tls(SocketAddr, Tls),
    /// The socket itself, not its folder.
    Unix(PathBuf),
}

/// A password, which is never printed.
#[derive(Clone)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Whom a server has to be, as its certificate shows.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({:?})", self.name)
    }
}

impl Tls {
    /// A server with this name, whose certificate one of the authorities in a PEM file has signed.
    pub fn load(authorities: &Path, name: &str) -> Result<Tls, String> {
        let told = |why: String| format!("the certificates in {} can't be used: {why}", authorities.display());
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(authorities).map_err(|error| told(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| told(error.to_string()))?;
            roots.add(certificate).map_err(|error| told(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(told("there is none; it must be a PEM file".to_owned()));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| told(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is no name of a server"))?;
        Ok(Tls { connector: TlsConnector::from(Arc::new(config)), name: server })
    }
}

/// A socket, whatever it goes through.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// A socket, and what a proof can be bound to.
pub(super) struct Opened {
    pub stream: Box<dyn Stream>,
    pub end_point: Option<Vec<u8>>,
}

impl Address {
    /// Connect. Nothing of a session was sent yet.
    pub(super) async fn open(&self) -> Result<Opened, Broken> {
        match self {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                Ok(Opened { stream: Box::new(stream), end_point: None })
            }
            Address::Tcp(address) => Ok(Opened { stream: Box::new(connect(*address).await?), end_point: None }),
            Address::Tls(address, tls) => {
                let mut stream = connect(*address).await?;
                let mut asked = BytesMut::new();
                First::Ssl.write(&mut asked);
                stream.write_all(&asked).await?;
                // One byte and no more is read in the clear: what somebody put behind it is no TLS.
                match stream.read_u8().await? {
                    b'S' => {}
                    b'N' => {
                        return Err(Broken::Malformed(
                            "the server has no TLS, and is to be reached by it alone".to_owned(),
                        ));
                    }
                    other => {
                        return Err(Broken::Malformed(format!("the server answered {other:#04x} when asked for TLS")));
                    }
                }
                let stream = tls.connector.connect(tls.name.clone(), stream).await?;
                let shown = stream.get_ref().1.peer_certificates().and_then(|shown| end_point(shown.first()?));
                Ok(Opened { stream: Box::new(stream), end_point: shown })
            }
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
