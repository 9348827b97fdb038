//! `numeric` in binary: groups of four decimal digits, and where the point is.

use bytes::{Buf, BufMut, BytesMut};
use pleat_cluster::Value;

/// Decimal digits of a group.
const GROUP: usize = 4;
const NEGATIVE: u16 = 0x4000;
/// Digits that a double always keeps.
const EXACT_DIGITS: usize = 15;
/// Digits on either side of the point. PostgreSQL's own limit is higher; nothing that SQLite counts with is.
const DIGITS_MAX: usize = 4_000;

/// A decimal number, taken apart.
struct Decimal {
    negative: bool,
    whole: String,
    fraction: String,
}

/// `-12.50e3`: sign, digits, point, exponent.
fn decimal(text: &str) -> Option<Decimal> {
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let plain = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
    let far = exponent.unsigned_abs() as usize > DIGITS_MAX || mantissa.len() > DIGITS_MAX;
    if whole.len() + fraction.len() == 0 || !plain(whole) || !plain(fraction) || far {
        return None;
    }
    let (mut whole, mut fraction) = (whole.to_owned(), fraction.to_owned());
    for _ in 0..exponent {
        whole.push(if fraction.is_empty() { '0' } else { fraction.remove(0) });
    }
    for _ in exponent..0 {
        fraction.insert(0, whole.pop().unwrap_or('0'));
    }
    let whole = whole.trim_start_matches('0').to_owned();
    Some(Decimal { negative, whole, fraction })
}

/// Whether a text is a number.
pub fn is_number(text: &str) -> bool {
    decimal(text).is_some()
}

/// The value that SQLite is given for a number: an integer or a double that is the same number. None where there is none, because SQLite
/// would make another number of its text.
pub fn value(text: &str) -> Option<Value> {
    let number = decimal(text)?;
    if number.fraction.is_empty()
        && let Ok(integer) = text.parse()
    {
        return Some(Value::Integer(integer));
    }
    let digits = format!("{}{}", number.whole, number.fraction);
    let digits = digits.trim_start_matches('0').trim_end_matches('0').len();
    match text.parse::<f64>() {
        Ok(real) if digits <= EXACT_DIGITS && real.is_finite() => Some(Value::Real(real)),
        _ => None,
    }
}

/// Add the binary form of a number's text.
pub fn put(body: &mut BytesMut, text: &str) -> Option<()> {
    let Decimal { negative, whole, fraction } = decimal(text)?;
    let scale = u16::try_from(fraction.len()).ok()?;
    let padded = "0".repeat((GROUP - whole.len() % GROUP) % GROUP) + &whole;
    let filled = fraction.clone() + &"0".repeat((GROUP - fraction.len() % GROUP) % GROUP);
    let digits = padded + &filled;
    let mut groups: Vec<u16> = Vec::with_capacity(digits.len() / GROUP);
    for at in (0..digits.len()).step_by(GROUP) {
        groups.push(digits[at..at + GROUP].parse().ok()?);
    }
    let mut weight = i16::try_from(whole.len().div_ceil(GROUP)).ok()? - 1;
    let leading = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..leading);
    weight -= i16::try_from(leading).ok()?;
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    body.put_u16(u16::try_from(groups.len()).ok()?);
    body.put_i16(weight);
    body.put_u16(if negative && !groups.is_empty() { NEGATIVE } else { 0 });
    body.put_u16(scale);
    groups.iter().for_each(|group| body.put_u16(*group));
    Some(())
}

/// The text of a number in binary form; none for NaN and infinities.
pub fn read(mut bytes: &[u8]) -> Option<String> {
    if bytes.len() < 8 {
        return None;
    }
    let (count, weight) = (usize::from(bytes.get_u16()), i32::from(bytes.get_i16()));
    let (sign, scale) = (bytes.get_u16(), usize::from(bytes.get_u16()));
    let sized = bytes.len() == 2 * count && scale <= DIGITS_MAX && weight.unsigned_abs() as usize <= DIGITS_MAX / GROUP;
    if !sized || (sign != 0 && sign != NEGATIVE) {
        return None;
    }
    let groups: Vec<u16> = (0..count).map(|_| bytes.get_u16()).collect();
    if groups.iter().any(|group| *group > 9_999) {
        return None;
    }
    let group = |place: i32| usize::try_from(place).ok().and_then(|at| groups.get(at).copied()).unwrap_or(0);
    let whole: String = (0..=weight).map(|place| format!("{:04}", group(place))).collect();
    let fraction: String = (0..i32::try_from(scale.div_ceil(GROUP)).ok()?)
        .map(|place| format!("{:04}", group(weight + 1 + place)))
        .collect();
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    let minus = if sign == NEGATIVE { "-" } else { "" };
    let point = if scale > 0 { "." } else { "" };
    Some(format!("{minus}{whole}{point}{}", &fraction[..scale]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_a_double_does_not_keep_is_refused() {
        for (text, kept) in [
            ("12", Some(Value::Integer(12))),
            ("0.1", Some(Value::Real(0.1))),
            ("9007199254740993", Some(Value::Integer(9_007_199_254_740_993))),
            ("1e20", Some(Value::Real(1e20))),
            ("0.000000000000000000123", Some(Value::Real(1.23e-19))),
            ("12345678901234567.89", None),
            ("1234567890.123456789", None),
            ("9223372036854775808", None),
            ("x", None),
        ] {
            assert_eq!(value(text), kept, "{text}");
        }
    }

    #[test]
    fn there_and_back() {
        for (text, back) in [
            ("0", "0"),
            ("-0.0", "0.0"),
            ("12345.678", "12345.678"),
            ("-10000", "-10000"),
            ("0.00001", "0.00001"),
            ("1e3", "1000"),
            ("1.5e-3", "0.0015"),
            ("100000000.10", "100000000.10"),
        ] {
            let mut body = BytesMut::new();
            put(&mut body, text).unwrap();
            assert_eq!(read(&body).unwrap(), back, "{text}");
        }
        assert_eq!(read(&[0, 0, 0, 0, 0xc0, 0, 0, 0]), None, "NaN");
        for odd in ["", "-", ".", "1.2.3", "1e99999", "0x10", "e1", "ü"] {
            assert!(decimal(odd).is_none(), "{odd}");
        }
    }
}
