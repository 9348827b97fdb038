//! An input as a person sees it, and types it between single quotes.

use std::fmt::Write;

/// Letters as they are, everything else as `\x00`.
pub fn escaped(input: &[u8]) -> String {
    let mut text = String::with_capacity(input.len());
    for byte in input {
        match byte {
            b' '..=b'~' if !matches!(byte, b'\\' | b'\'') => text.push(char::from(*byte)),
            // Writing to a String can't fail.
            byte => drop(write!(text, "\\x{byte:02x}")),
        }
    }
    text
}

/// The bytes of such a text. What is no escape is taken as it is.
pub fn unescaped(text: &str) -> Vec<u8> {
    let (mut input, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((byte, behind)) = rest.split_first() {
        let digits = behind.strip_prefix(b"x").and_then(|digits| digits.get(..2));
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match code {
            Some(code) if *byte == b'\\' => {
                input.push(code);
                rest = &behind[3..];
            }
            _ => {
                input.push(*byte);
                rest = behind;
            }
        }
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).chain(*b"\\x41\\x4\\'x41").collect();
        assert_eq!(unescaped(&escaped(&all)), all);
        assert_eq!(escaped(b"Q\0'a\\"), "Q\\x00\\x27a\\x5c");
        assert_eq!(unescaped("plain \\ text"), b"plain \\ text");
    }
}
