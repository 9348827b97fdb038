//! The start of a session with a server: the first message, the password's proof, and what the server says about itself.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::error::PostgresError;
use super::server::{Opened, Server, Stream};
use super::wire::backend::{Asked, Failure, Head, SMALL_BYTES_MAX, SqlState, Status, key, parameter};
use super::wire::frontend::{First, write_sasl, write_sasl_initial};
use super::wire::{Broken, HEAD};
use crate::scram::client::{self, Channel, Proven};
use crate::scram::{self, Refused};

const PLAIN: &str = "SCRAM-SHA-256";
const PLUS: &str = "SCRAM-SHA-256-PLUS";
/// Parameters that a server may report.
pub const PARAMETERS_MAX: usize = 100;

/// A session that has begun.
pub struct Started {
    pub stream: Box<dyn Stream>,
    /// What was read ahead.
    pub buffer: BytesMut,
    pub parameters: BTreeMap<String, String>,
    pub process: u32,
    pub secret: u32,
}

/// Begin a session, with these settings.
pub async fn start(server: &Server, settings: &[(&str, &str)]) -> Result<Started, PostgresError> {
    let opened = server.address.open().await.map_err(PostgresError::before)?;
    begin(opened, server, settings).await
}

/// The same, on a socket.
pub(super) async fn begin(
    opened: Opened,
    server: &Server,
    settings: &[(&str, &str)],
) -> Result<Started, PostgresError> {
    let Opened { stream, end_point } = opened;
    let mut starting = Starting { stream, buffer: BytesMut::new(), end_point };
    let fixed = [("user", &*server.user), ("database", &server.database), ("client_encoding", "UTF8")];
    let parameters = fixed.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let parameters = parameters.collect();
    let mut first = BytesMut::new();
    First::Startup { minor: 0, parameters }.write(&mut first);
    starting.send(first).await?;
    starting.prove(server).await?;
    starting.settle().await
}

struct Starting {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    end_point: Option<Vec<u8>>,
}

impl Starting {
    async fn send(&mut self, bytes: BytesMut) -> Result<(), PostgresError> {
        let sent = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| PostgresError::before(error.into()))
    }

    /// The next message. A server's error is one here.
    async fn message(&mut self) -> Result<(u8, Bytes), PostgresError> {
        let (tag, body) = self.whole().await.map_err(PostgresError::before)?;
        match tag {
            b'E' => Err(PostgresError::refused(Failure::read(&body))),
            tag => Ok((tag, body)),
        }
    }

    async fn whole(&mut self) -> Result<(u8, Bytes), Broken> {
        loop {
            if let Some(head) = Head::read(&self.buffer)? {
                if head.bytes > SMALL_BYTES_MAX + HEAD {
                    return Err(Broken::TooLarge { bytes: head.bytes as u64, limit: SMALL_BYTES_MAX });
                }
                if self.buffer.len() >= head.bytes {
                    let mut body = self.buffer.split_to(head.bytes).freeze();
                    body.advance(HEAD);
                    return Ok((head.tag, body));
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    async fn asked(&mut self) -> Result<Asked, PostgresError> {
        loop {
            match self.message().await? {
                (b'R', body) => return Asked::read(body).map_err(PostgresError::before),
                (b'N', _) => {}
                (tag, _) => return Err(unexpected(tag)),
            }
        }
    }

    /// Prove that we know the password, if we are asked, and that the server does.
    async fn prove(&mut self, server: &Server) -> Result<(), PostgresError> {
        let mechanisms = match self.asked().await? {
            Asked::Nothing => return Ok(()),
            Asked::Sasl(mechanisms) => mechanisms,
            Asked::Other(3) => {
                return Err(refused(
                    "the server asks for the password itself, which Pleat does not send; let it ask for scram-sha-256",
                ));
            }
            Asked::Other(5) => {
                return Err(refused(
                    "the server asks for an MD5 of the password, which is as good as the password; let it ask for scram-sha-256",
                ));
            }
            _ => {
                return Err(refused(
                    "the server asks for a kind of authentication that Pleat does not know; let it ask for scram-sha-256",
                ));
            }
        };
        let Some(password) = &server.password else {
            return Err(refused("the server asks for a password, and none is set"));
        };
        let offers = |name: &str| mechanisms.iter().any(|offered| offered == name);
        let end_point = self.end_point.take();
        let (channel, mechanism) = match &end_point {
            Some(hash) if offers(PLUS) => (Channel::Bound(hash), PLUS),
            Some(_) => (Channel::NotOffered, PLAIN),
            None => (Channel::Unbound, PLAIN),
        };
        if !offers(mechanism) {
            return Err(refused(&format!("the server does not offer {mechanism}")));
        }
        let nonce = scram::random().map_err(|_| refused("the system gives no random bytes"))?;
        let (begun, first) = client::begin(channel, nonce);
        let mut out = BytesMut::new();
        write_sasl_initial(&mut out, mechanism, &first);
        self.send(out).await?;
        let Asked::Continue(challenge) = self.asked().await? else {
            return Err(refused("the server gives no challenge"));
        };
        let password = password.clone();
        // The work of its iterations: milliseconds, or as much as the limit allows.
        let proved = tokio::task::spawn_blocking(move || begun.prove(&challenge, password.0.as_bytes())).await;
        let (proven, answer) = proved.map_err(|error| refused(&error.to_string()))?.map_err(told)?;
        let mut out = BytesMut::new();
        write_sasl(&mut out, &answer);
        self.send(out).await?;
        self.proven(&proven).await
    }

    async fn proven(&mut self, proven: &Proven) -> Result<(), PostgresError> {
        match self.asked().await? {
            Asked::Final(last) => proven.check(&last).map_err(told)?,
            _ => return Err(refused("the server does not prove that it knows the password")),
        }
        match self.asked().await? {
            Asked::Nothing => Ok(()),
            _ => Err(refused("the server asks for a second proof")),
        }
    }

    /// Read what the server says about itself, up to where it takes statements.
    async fn settle(mut self) -> Result<Started, PostgresError> {
        let (mut parameters, mut keys) = (BTreeMap::new(), (0, 0));
        loop {
            match self.message().await? {
                (b'S', body) => {
                    let (name, value) = parameter(body).map_err(PostgresError::before)?;
                    if parameters.len() < PARAMETERS_MAX {
                        parameters.insert(name, value);
                    }
                }
                (b'K', body) => keys = key(body).map_err(PostgresError::before)?,
                (b'N', _) => {}
                (b'Z', body) => {
                    Status::read(&body).map_err(PostgresError::before)?;
                    let (process, secret) = keys;
                    return Ok(Started { stream: self.stream, buffer: self.buffer, parameters, process, secret });
                }
                (tag, _) => return Err(unexpected(tag)),
            }
        }
    }
}

fn unexpected(tag: u8) -> PostgresError {
    let what = format!("a message of type {tag:#04x} came before the session began");
    PostgresError::before(Broken::Malformed(what))
}

fn refused(why: &str) -> PostgresError {
    PostgresError::Refused { code: SqlState::NOT_LET_IN, message: why.to_owned() }
}

fn told(why: Refused) -> PostgresError {
    match why {
        Refused::Malformed(why) | Refused::Unsupported(why) | Refused::Bound(why) => refused(&why),
        Refused::Proof => refused("the server does not know the password, so it is not the one that it says"),
    }
}
