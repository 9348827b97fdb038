//! What a channel is bound to (`tls-server-end-point`, RFC 5929): the server's certificate, by its hash, with the hash function of its
//! signature, or SHA-256 where that is MD5 or SHA-1. A certificate that is signed otherwise (Ed25519, RSA-PSS) has no such function, and
//! nothing is bound.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

/// The hash of a certificate that a channel is bound to.
pub fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(digest(hash_function(signature_algorithm(certificate)?)?, certificate).as_ref().to_vec())
}

fn hash_function(signature: &[u8]) -> Option<&'static Algorithm> {
    // 1.2.840.113549.1.1 is RSA (PKCS #1), 1.2.840.10045.4 is ECDSA.
    match signature {
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 4 | 5 | 11] => Some(&SHA256),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 12] => Some(&SHA384),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 13] => Some(&SHA512),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => Some(&SHA256),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => Some(&SHA384),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => Some(&SHA512),
        _ => None,
    }
}

/// The object identifier of the algorithm that a certificate is signed with:
/// `Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, … }, … }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (inside, _) = element(certificate, SEQUENCE)?;
    let (_, after) = element(inside, SEQUENCE)?;
    let (algorithm, _) = element(after, SEQUENCE)?;
    Some(element(algorithm, OBJECT_IDENTIFIER)?.0)
}

/// The content of a DER element with this tag, and what comes after it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        short @ 0..0x80 => (usize::from(*short), rest),
        long => {
            let (length, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            // No certificate has more than 2^32 bytes.
            let fits = (1..=4).contains(&length.len());
            (fits.then(|| length.iter().fold(0, |all, byte| all << 8 | usize::from(*byte)))?, rest)
        }
    };
    (*found == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_have_no_algorithm_or_one(bytes: Vec<u8>) {
            let _ = signature_algorithm(&bytes);
            let _ = signature_algorithm(&[&[0x30, 0x84][..], &bytes].concat());
        }
    }
}
