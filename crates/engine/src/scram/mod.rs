//! SCRAM-SHA-256: how a client proves that it knows a password without saying it, and the server that it knows the client.
//!
//! RFC 5802 and RFC 7677, as PostgreSQL speaks it. The server keeps a *verifier* of each password ([`verifier`]): salt, iterations,
//! `StoredKey` and `ServerKey`. Whoever reads verifiers can't log in with them, except by trying passwords out, each of which
//! costs the iterations; whoever listens to an exchange can't either, and can't repeat it, because both ends contribute a nonce.
//! The iterations are the client's work: a login costs the server a few hashes.
//!
//! ```text
//! client: p=tls-server-end-point,,n=,r=<nonce>      gs2 header: what the client thinks of channel binding
//! server: r=<nonce><more>,s=<salt>,i=<iterations>
//! client: c=<header and binding>,r=<nonce><more>,p=<ClientKey XOR HMAC(StoredKey, all of the above)>
//! server: v=<HMAC(ServerKey, all of the above)>
//! ```
//!
//! [`exchange`] has the server's side (Pleat before its clients), [`client`] the other one (Pleat before a server), both as values: messages in,
//! messages out.
//!
//! # Channel binding
//!
//! Inside of TLS there is `SCRAM-SHA-256-PLUS`: the proof then also covers a hash of the server's certificate, so that a man in the
//! middle, who has another one, can't pass it on. A client that could bind but thinks that the server can't says `y`; if
//! the server has offered it, somebody has struck it out on the way, and the login is refused.
//!
//! # Names that are no user's
//!
//! get the same exchange, with a salt that is derived from the name and the cluster's secret, so it is the same each time and on
//! every node; the proof is never right. (The made-up ones have PostgreSQL's iterations and salts of 16 bytes, as those have
//! that `pleat user add` makes. A verifier that somebody brings along with others can be told apart by them.)

pub mod client;
mod end_point;
mod exchange;
mod verifier;

pub use end_point::end_point;
pub use exchange::{Binding, Challenge, Opening, Refused, open};
pub use verifier::{PASSWORD_BYTES_MAX, mock, parse, text, verifier_of};

use ring::hmac;

/// HMAC-SHA-256.
fn hmac(key: &[u8], of: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), of);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

/// SHA-256.
fn hash(of: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, of);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// So many bytes that nobody can guess, from the system.
pub fn random<const BYTES: usize>() -> Result<[u8; BYTES], ring::error::Unspecified> {
    let mut bytes = [0; BYTES];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)?;
    Ok(bytes)
}
