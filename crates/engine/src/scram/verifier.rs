//! What is kept of a password, and its text form, which is PostgreSQL's.

use std::borrow::Cow;
use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use pleat_cluster::{Secret, Verifier};
use ring::pbkdf2;

use super::{hash, hmac};

/// A password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 1_024;
/// The salt of a verifier that is made here, in bytes: PostgreSQL's length.
pub const SALT_BYTES: usize = 16;
/// The text form of a verifier begins so.
const SCHEME: &str = "SCRAM-SHA-256$";

/// The verifier of a password. This is the work that the iterations make: some milliseconds.
///
/// A password is prepared by SASLprep, so that it does not depend on how a keyboard puts letters together; one that can't be is taken
/// as it is, as PostgreSQL does.
pub fn verifier_of(password: &[u8], salt: [u8; SALT_BYTES]) -> Result<Verifier, String> {
    if password.is_empty() {
        return Err("the password is empty".to_owned());
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(format!("the password has more than {PASSWORD_BYTES_MAX} bytes, which is the limit"));
    }
    if password.contains(&0) {
        return Err("the password has a zero byte, which no client can send".to_owned());
    }
    let iterations = Verifier::ITERATIONS_MIN;
    let salted = salted(&prepared(password), iterations, &salt);
    let (client_key, server_key) = (hmac(&salted, b"Client Key"), hmac(&salted, b"Server Key"));
    Ok(Verifier { iterations, salt: salt.to_vec(), stored_key: hash(&client_key), server_key })
}

/// A password as it is hashed.
pub(super) fn prepared(password: &[u8]) -> Cow<'_, [u8]> {
    let text = std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
    match text {
        Some(text) if !text.is_empty() => Cow::Owned(text.into_owned().into_bytes()),
        _ => Cow::Borrowed(password),
    }
}

/// A password, hashed so often.
pub(super) fn salted(prepared: &[u8], iterations: u32, salt: &[u8]) -> [u8; 32] {
    let mut salted = [0; 32];
    let times = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, times, salt, prepared, &mut salted);
    salted
}

/// A verifier for a name that is no user's. No proof fits it but by chance.
pub fn mock(secret: &Secret, name: &str) -> Verifier {
    let of = |what: &[u8]| hmac(&secret.0, &[what, name.as_bytes()].concat());
    Verifier {
        iterations: Verifier::ITERATIONS_MIN,
        salt: of(b"salt of ")[..SALT_BYTES].to_vec(),
        stored_key: of(b"stored key of "),
        server_key: of(b"server key of "),
    }
}

/// `SCRAM-SHA-256$4096:salt$StoredKey:ServerKey`, as PostgreSQL has it in `pg_authid.rolpassword`.
pub fn text(verifier: &Verifier) -> String {
    let Verifier { iterations, salt, stored_key, server_key } = verifier;
    let [salt, stored, server] = [&salt[..], stored_key, server_key].map(|bytes| BASE64.encode(bytes));
    format!("{SCHEME}{iterations}:{salt}${stored}:{server}")
}

/// The verifier with this text form. `None` when it is none; its limits are the catalog's to check.
pub fn parse(text: &str) -> Option<Verifier> {
    let (salted, keys) = text.strip_prefix(SCHEME)?.split_once('$')?;
    let (iterations, salt) = salted.split_once(':')?;
    let (stored, server) = keys.split_once(':')?;
    let key = |text: &str| <[u8; 32]>::try_from(BASE64.decode(text).ok()?).ok();
    Some(Verifier {
        iterations: iterations.parse().ok()?,
        salt: BASE64.decode(salt).ok()?,
        stored_key: key(stored)?,
        server_key: key(server)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_password_is_the_same_however_its_letters_are_put_together() {
        let of = |password: &str| verifier_of(password.as_bytes(), [7; SALT_BYTES]).unwrap();
        assert_eq!(of("gr\u{fc}n"), of("gr\u{fc}n"));
        assert_eq!(of("I\u{ad}X"), of("IX"), "a soft hyphen is nothing (RFC 4013)");
        assert_eq!(of("\u{aa}"), of("a"), "NFKC");
        assert_ne!(of("user"), of("USER"));
        assert_ne!(of("a"), verifier_of(b"a", [8; SALT_BYTES]).unwrap(), "another salt");
        // What can't be prepared is taken as it is.
        assert!(verifier_of(b"\xff\xfe", [7; SALT_BYTES]).is_ok());
        assert_ne!(of("\u{7}"), of("\u{8}"));
    }

    #[test]
    fn passwords_have_limits() {
        for wrong in [&b""[..], b"a\0b", &[b'x'; PASSWORD_BYTES_MAX + 1]] {
            assert!(verifier_of(wrong, [0; SALT_BYTES]).is_err());
        }
    }

    /// PostgreSQL 15 made these, of the passwords `pencil` and `I`, a soft hyphen, `X`.
    #[test]
    fn verifiers_are_those_that_postgresql_makes() {
        for (password, theirs) in [
            (
                "pencil",
                "SCRAM-SHA-256$4096:agZ4JOESaTyZRszu3pabOQ==$YrTTxmZ/yUuyFfWwwsZZ+AaDfYcX6UdPItN7k2SnJOQ=:HIuj9Akv4pI2TX+FLFAEewxS60AV1JO4jtC5G9K2V0w=",
            ),
            (
                "I\u{ad}X",
                "SCRAM-SHA-256$4096:HT06W4oOKivX/lrXVL/ndg==$+YbiLAAdib/qynu5k8CTzm2STeHBisNRheGJNnfy+I0=:dx4Lgt/ZSpa1W1YqRP50kUJAzQRsZ+vEGPLRgaRB4xs=",
            ),
        ] {
            let parsed = parse(theirs).unwrap();
            assert_eq!(text(&parsed), theirs);
            let salt = parsed.salt.clone().try_into().unwrap();
            assert_eq!(verifier_of(password.as_bytes(), salt).unwrap(), parsed);
        }
    }

    #[test]
    fn made_up_verifiers_are_the_same_each_time_and_for_nobody_else() {
        let (one, other) = (Secret([1; 32]), Secret([2; 32]));
        assert_eq!(mock(&one, "ada"), mock(&one, "ada"));
        assert_ne!(mock(&one, "ada").salt, mock(&one, "adb").salt);
        assert_ne!(mock(&one, "ada").salt, mock(&other, "ada").salt);
        let real = verifier_of(b"x", [0; SALT_BYTES]).unwrap();
        assert_eq!((real.iterations, real.salt.len()), (mock(&one, "x").iterations, mock(&one, "x").salt.len()));
    }

    proptest! {
        #[test]
        fn the_text_form_is_read_back_and_nothing_else_is(verifier in (any::<u32>(), any::<Vec<u8>>(), any::<[u8; 32]>(), any::<[u8; 32]>()), junk: String) {
            let (iterations, salt, stored_key, server_key) = verifier;
            let verifier = Verifier { iterations, salt, stored_key, server_key };
            prop_assert_eq!(parse(&text(&verifier)), Some(verifier));
            prop_assert_eq!(parse(&junk), None);
        }
    }
}
