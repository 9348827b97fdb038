//! The client's side of an exchange: Pleat before a server. Pure: the nonce is an argument.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use pleat_cluster::Verifier;
use subtle::ConstantTimeEq;

use super::exchange::{BINDING, Refused, malformed, text};
use super::verifier::{prepared, salted};
use super::{hash, hmac};

/// The channel that the exchange goes through, as its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel<'a> {
    /// Nothing can be bound to it.
    Unbound,
    /// It could be bound, and the server has not offered that. It is told so: one that has knows then that somebody struck it out.
    NotOffered,
    /// It is bound to this hash of the server's certificate.
    Bound(&'a [u8]),
}

/// What a server was told first.
#[derive(Debug)]
pub struct Begun {
    /// What is repeated, with the hash of the certificate if that is bound.
    bound: Vec<u8>,
    bare: String,
    nonce: String,
}

/// Begin, with a nonce that was never used before. The second value is the first message.
pub fn begin(channel: Channel<'_>, nonce: [u8; 18]) -> (Begun, String) {
    let (header, hash) = match channel {
        Channel::Unbound => ("n,,".to_owned(), &[][..]),
        Channel::NotOffered => ("y,,".to_owned(), &[][..]),
        Channel::Bound(hash) => (format!("p={BINDING},,"), hash),
    };
    let nonce = BASE64.encode(nonce);
    // PostgreSQL takes the name from the start-up message.
    let bare = format!("n=,r={nonce}");
    let first = format!("{header}{bare}");
    (Begun { bound: [header.as_bytes(), hash].concat(), bare, nonce }, first)
}

/// What the server has to answer in the end. One that does not know the password can't.
#[derive(Debug)]
pub struct Proven {
    signature: [u8; 32],
}

impl Begun {
    /// Answer the server's challenge. This is the work that its iterations make; it is refused where they are too few to
    /// protect the password, or more than a client can be asked to do.
    pub fn prove(self, challenge: &[u8], password: &[u8]) -> Result<(Proven, String), Refused> {
        let challenge = text(challenge)?;
        let broken = || malformed("it is not of the form r=…,s=…,i=…");
        let mut attributes = challenge.split(',');
        let mut attribute =
            |name: &str| attributes.next().and_then(|value| value.strip_prefix(name)).ok_or_else(broken);
        let (nonce, salt, iterations) = (attribute("r=")?, attribute("s=")?, attribute("i=")?);
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(malformed("its nonce does not go on from ours"));
        }
        let salt = BASE64.decode(salt).map_err(|_| broken())?;
        let iterations = iterations.parse().map_err(|_| broken())?;
        // The same limits as for the verifiers of our own users.
        let limits = Verifier { iterations, salt, stored_key: [0; 32], server_key: [0; 32] };
        limits
            .check()
            .map_err(|what| Refused::Unsupported(format!("the server's challenge is not answered: {what}")))?;
        let salted = salted(&prepared(password), iterations, &limits.salt);
        let client_key = hmac(&salted, b"Client Key");
        let without_proof = format!("c={},r={nonce}", BASE64.encode(&self.bound));
        let said = format!("{},{challenge},{without_proof}", self.bare);
        let signature = hmac(&hash(&client_key), said.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
        let proven = Proven { signature: hmac(&hmac(&salted, b"Server Key"), said.as_bytes()) };
        Ok((proven, format!("{without_proof},p={}", BASE64.encode(proof))))
    }
}

impl Proven {
    /// Whether the server has proven itself.
    pub fn check(&self, last: &[u8]) -> Result<(), Refused> {
        let signature = text(last)?.strip_prefix("v=").and_then(|signature| BASE64.decode(signature).ok());
        let signature = signature.ok_or_else(|| malformed("it is not of the form v=…"))?;
        match bool::from(signature.ct_eq(&self.signature)) {
            true => Ok(()),
            false => Err(Refused::Proof),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Binding, open, verifier_of};
    use super::*;

    #[test]
    fn both_sides_agree_and_only_with_the_same_password_and_certificate() {
        let exchange = |channel: Channel<'_>, binding: Binding<'_>, password: &str| -> Result<(), Refused> {
            let plus = matches!(channel, Channel::Bound(_));
            let (begun, first) = begin(channel, [3; 18]);
            let opening = open(first.as_bytes(), plus, binding)?;
            let (challenge, said) = opening.challenge(verifier_of("gr\u{fc}n".as_bytes(), [1; 16]).unwrap(), [2; 18]);
            let (proven, answer) = begun.prove(said.as_bytes(), password.as_bytes())?;
            let last = challenge.answer(answer.as_bytes())?;
            proven.check(last.as_bytes())?;
            assert_eq!(proven.check(format!("v={}", BASE64.encode([0; 32])).as_bytes()), Err(Refused::Proof));
            Ok(())
        };
        let hash = Binding::Offered(b"hash");
        assert_eq!(exchange(Channel::Unbound, Binding::None, "gr\u{fc}n"), Ok(()));
        assert_eq!(exchange(Channel::NotOffered, Binding::None, "gru\u{308}n"), Ok(()));
        assert_eq!(exchange(Channel::Bound(b"hash"), hash, "gr\u{fc}n"), Ok(()));
        assert_eq!(exchange(Channel::Unbound, Binding::None, "blau"), Err(Refused::Proof));
        assert!(matches!(exchange(Channel::Bound(b"other"), hash, "gr\u{fc}n"), Err(Refused::Bound(_))));
        assert!(matches!(exchange(Channel::NotOffered, hash, "gr\u{fc}n"), Err(Refused::Bound(_))));
    }

    #[test]
    fn a_challenge_that_harms_is_refused() {
        let prove = |challenge: &str| begin(Channel::Unbound, [0; 18]).0.prove(challenge.as_bytes(), b"x");
        let ours = BASE64.encode([0; 18]);
        let salt = BASE64.encode([0; 16]);
        assert!(prove(&format!("r={ours}more,s={salt},i=4096")).is_ok());
        for iterations in ["1", "2000000000", "4095", "1000001"] {
            let refused = prove(&format!("r={ours}more,s={salt},i={iterations}")).unwrap_err();
            assert!(matches!(refused, Refused::Unsupported(_)), "{iterations}");
        }
        for odd in
            ["", "r=", "r=other,s=AAAA,i=4096", format!("r={ours},s={salt},i=4096").as_str(), "m=x,r=a,s=b,i=4096"]
        {
            assert!(prove(odd).is_err(), "{odd}");
        }
        assert!(prove(&format!("r={ours}more,s=,i=4096")).is_err(), "no salt");
    }

    proptest! {
        #[test]
        fn arbitrary_challenges_are_refused(bytes: Vec<u8>) {
            prop_assert!(begin(Channel::Unbound, [0; 18]).0.prove(&bytes, b"x").is_err());
            let proven = Proven { signature: [0; 32] };
            prop_assert!(proven.check(&bytes).is_err());
        }
    }
}
