//! The server's side of an exchange. Pure: the nonce is an argument.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use pleat_cluster::Verifier;
use subtle::ConstantTimeEq;

use super::{hash, hmac};

/// What a certificate's hash is called in a gs2 header.
pub(super) const BINDING: &str = "tls-server-end-point";

/// The channel that the exchange goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding<'a> {
    /// Nothing can be bound to it, and that was not offered.
    None,
    /// It can be bound to this hash of the server's certificate, and the client was told so.
    Offered(&'a [u8]),
}

/// Why an exchange ends before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is no message of the exchange.
    Malformed(String),
    /// It asks for something that is not there.
    Unsupported(String),
    /// The client was made to believe that the server can't bind the channel, or has another certificate before it.
    Bound(String),
    /// The password is wrong.
    Proof,
}

/// A client's first message, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// What the client will have to repeat, with the hash of the certificate if it binds.
    bound: Vec<u8>,
    /// The message without its header.
    bare: String,
    nonce: String,
}

/// Read a client's first message. `plus` says that it has chosen the mechanism that binds the channel.
pub fn open(message: &[u8], plus: bool, binding: Binding<'_>) -> Result<Opening, Refused> {
    let message = text(message)?;
    let broken = || malformed("it is not of the form gs2-header,n=…,r=…");
    let (flag, rest) = message.split_once(',').ok_or_else(broken)?;
    let mut bound = format!("{flag},,").into_bytes();
    match (flag, plus, binding) {
        ("n", false, _) | ("y", false, Binding::None) => {}
        ("y", false, Binding::Offered(_)) => {
            let what = "the client can bind the channel and thinks that the server can't: somebody may be in between";
            return Err(Refused::Bound(what.to_owned()));
        }
        ("n" | "y", true, _) => return Err(malformed("it chose to bind the channel and does not")),
        (flag, plus, binding) => match (flag.strip_prefix("p="), plus, binding) {
            (Some(BINDING), true, Binding::Offered(hash)) => bound.extend_from_slice(hash),
            (Some(BINDING), false, _) => return Err(malformed("it binds the channel and did not choose to")),
            (Some(_), ..) => {
                return Err(Refused::Unsupported(format!("the channel can be bound by {BINDING} alone")));
            }
            (None, ..) => return Err(broken()),
        },
    }
    let (authorization, bare) = rest.split_once(',').ok_or_else(broken)?;
    if !authorization.is_empty() {
        return Err(Refused::Unsupported("one user can't act as another one".to_owned()));
    }
    let mut attributes = bare.split(',');
    // The name is the one of the start-up message; clients leave this one empty.
    let named = attributes.next().is_some_and(|name| name.starts_with("n="));
    let nonce = attributes.next().and_then(|nonce| nonce.strip_prefix("r=")).filter(|nonce| is_nonce(nonce));
    match (named, nonce) {
        (true, Some(nonce)) => Ok(Opening { bound, nonce: nonce.to_owned(), bare: bare.to_owned() }),
        _ if bare.starts_with("m=") => Err(Refused::Unsupported("it needs an extension that is not known".to_owned())),
        _ => Err(broken()),
    }
}

/// What a client was told, and what its answer has to fit.
#[derive(Debug)]
pub struct Challenge {
    bound: Vec<u8>,
    /// The messages so far.
    said: String,
    nonce: String,
    verifier: Verifier,
}

impl Opening {
    /// The server's first message, with a nonce that was never used before.
    pub fn challenge(self, verifier: Verifier, nonce: [u8; 18]) -> (Challenge, String) {
        let nonce = self.nonce + &BASE64.encode(nonce);
        let message = format!("r={nonce},s={},i={}", BASE64.encode(&verifier.salt), verifier.iterations);
        let said = format!("{},{message}", self.bare);
        (Challenge { bound: self.bound, said, nonce, verifier }, message)
    }
}

impl Challenge {
    /// Read the client's last message; whether it fits. Gives the server's own proof.
    pub fn answer(self, message: &[u8]) -> Result<String, Refused> {
        let message = text(message)?;
        let broken = || malformed("it is not of the form c=…,r=…,p=…");
        let (before, proof) = message.rsplit_once(",p=").ok_or_else(broken)?;
        let mut attributes = before.split(',');
        let bound = attributes.next().and_then(|value| value.strip_prefix("c=")).ok_or_else(broken)?;
        let nonce = attributes.next().and_then(|value| value.strip_prefix("r=")).ok_or_else(broken)?;
        let proof = BASE64.decode(proof).ok().and_then(|proof| <[u8; 32]>::try_from(proof).ok()).ok_or_else(broken)?;
        if BASE64.decode(bound).ok().as_ref() != Some(&self.bound) {
            let what = "the client is bound to another channel: somebody may be in between";
            return Err(Refused::Bound(what.to_owned()));
        }
        if nonce != self.nonce {
            return Err(malformed("its nonce belongs to another exchange"));
        }
        let said = format!("{},{before}", self.said);
        let signature = hmac(&self.verifier.stored_key, said.as_bytes());
        let client_key: Vec<u8> = proof.iter().zip(signature).map(|(proof, signature)| proof ^ signature).collect();
        match bool::from(hash(&client_key).ct_eq(&self.verifier.stored_key)) {
            true => Ok(format!("v={}", BASE64.encode(hmac(&self.verifier.server_key, said.as_bytes())))),
            false => Err(Refused::Proof),
        }
    }
}

pub(super) fn text(message: &[u8]) -> Result<&str, Refused> {
    std::str::from_utf8(message).map_err(|_| malformed("it is not UTF-8"))
}

pub(super) fn malformed(what: &str) -> Refused {
    Refused::Malformed(format!("a message of the SCRAM exchange can't be read: {what}"))
}

fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::verifier_of;
    use super::*;

    /// RFC 7677, section 3. Its server's nonce is a text of its own, which ours can't be: the challenge is put together by hand.
    fn of_the_rfc() -> Challenge {
        let opening = open(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO", false, Binding::None).unwrap();
        let salt: [u8; 16] = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap().try_into().unwrap();
        let verifier = verifier_of(b"pencil", salt).unwrap();
        let nonce = format!("{}%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", opening.nonce);
        let server = format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        Challenge { bound: opening.bound, said: format!("{},{server}", opening.bare), nonce, verifier }
    }

    const OF_THE_CLIENT: &str =
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    #[test]
    fn the_example_of_rfc_7677() {
        let answer = of_the_rfc().answer(OF_THE_CLIENT.as_bytes());
        assert_eq!(answer.unwrap(), "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn every_byte_of_an_answer_counts() {
        for at in 0..OF_THE_CLIENT.len() {
            let mut other = OF_THE_CLIENT.as_bytes().to_vec();
            other[at] ^= 1;
            assert!(of_the_rfc().answer(&other).is_err(), "{at}");
            assert!(of_the_rfc().answer(&OF_THE_CLIENT.as_bytes()[..at]).is_err(), "{at}");
        }
        let wrong = OF_THE_CLIENT.replace("p=dHz", "p=eHz");
        assert_eq!(of_the_rfc().answer(wrong.as_bytes()), Err(Refused::Proof));
    }

    #[test]
    fn an_answer_to_another_challenge_is_refused() {
        let opening = || open(b"n,,n=,r=abc", false, Binding::None).unwrap();
        let verifier = verifier_of(b"x", [0; 16]).unwrap();
        let (first, said) = opening().challenge(verifier.clone(), [1; 18]);
        let (second, other) = opening().challenge(verifier, [2; 18]);
        assert_ne!(said, other);
        let answer = format!("c=biws,r={},p={}", first.nonce, BASE64.encode([0; 32]));
        assert!(matches!(second.answer(answer.as_bytes()), Err(Refused::Malformed(_))));
        assert_eq!(first.answer(answer.as_bytes()), Err(Refused::Proof));
    }

    #[test]
    fn the_channel_is_bound_or_it_is_not() {
        let offered = Binding::Offered(b"hash");
        let first = |header: &str, plus, binding| open(format!("{header},,n=,r=abc").as_bytes(), plus, binding);
        assert!(first("n", false, Binding::None).is_ok());
        assert!(first("n", false, offered).is_ok());
        assert!(first("y", false, Binding::None).is_ok());
        assert!(matches!(first("y", false, offered), Err(Refused::Bound(_))), "it was struck out on the way");
        for header in ["n", "y"] {
            assert!(matches!(first(header, true, offered), Err(Refused::Malformed(_))));
        }
        assert!(matches!(first("p=tls-server-end-point", false, offered), Err(Refused::Malformed(_))));
        assert!(first("p=tls-server-end-point", true, Binding::None).is_err());
        assert!(matches!(first("p=tls-unique", true, offered), Err(Refused::Unsupported(_))));

        let challenge = || {
            let opening = first("p=tls-server-end-point", true, offered).unwrap();
            opening.challenge(verifier_of(b"x", [0; 16]).unwrap(), [1; 18]).0
        };
        let answer = |bound: &[u8]| {
            let (nonce, proof) = (challenge().nonce, BASE64.encode([0; 32]));
            challenge().answer(format!("c={},r={nonce},p={proof}", BASE64.encode(bound)).as_bytes())
        };
        assert_eq!(answer(b"p=tls-server-end-point,,hash"), Err(Refused::Proof));
        for other in [&b"n,,"[..], b"y,,", b"p=tls-server-end-point,,", b"p=tls-server-end-point,,hush"] {
            assert!(matches!(answer(other), Err(Refused::Bound(_))), "{other:?}");
        }
    }

    #[test]
    fn what_is_no_first_message_is_refused() {
        let first = |message: &[u8]| open(message, false, Binding::None);
        for (message, unsupported) in [
            (&b""[..], false),
            (b"n", false),
            (b"n,,", false),
            (b"n,,n=", false),
            (b"n,,n=,r=", false),
            (b"n,,r=abc,n=", false),
            (b"n,,n=,r=a\x07c", false),
            (b"n,,n=,r=\xff", false),
            (b"x,,n=,r=abc", false),
            (b"n,a=other,n=,r=abc", true),
            (b"n,,m=ext,n=,r=abc", true),
        ] {
            let refused = first(message).unwrap_err();
            assert_eq!(matches!(refused, Refused::Unsupported(_)), unsupported, "{message:?}");
        }
        assert!(first(b"n,,n=,r=abc,x=anything").is_ok(), "extensions that need nothing");
    }

    proptest! {
        #[test]
        fn arbitrary_messages_are_refused(bytes: Vec<u8>, tail in "[a-z=,+/]{0,60}") {
            let _ = open(&bytes, true, Binding::Offered(b"x"));
            let _ = open(format!("n,,{tail}").as_bytes(), false, Binding::None);
            prop_assert!(of_the_rfc().answer(&bytes).is_err());
            let answered = of_the_rfc().answer(format!("c=biws,r={tail}").as_bytes());
            prop_assert!(answered.is_err());
        }
    }
}
