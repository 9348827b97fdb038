//! Values to the client and from it, in both formats.

use std::borrow::Cow;
use std::fmt::Write;

use bytes::{BufMut, BytesMut};
use pleat_cluster::Value;
use uuid::Uuid;

use super::{Type, moment, numeric};
use crate::session::Failure;

/// The largest integer that a double holds exactly, and all below it too.
const EXACT_MAX: u64 = 1 << 53;

/// How a value is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Binary,
}

impl Format {
    pub fn of(code: i16) -> Result<Format, Failure> {
        match code {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            other => Err(Failure::new("08P01", format!("there is no format {other}"), "0 is text and 1 is binary")),
        }
    }

    pub fn code(self) -> i16 {
        match self {
            Format::Text => 0,
            Format::Binary => 1,
        }
    }
}

/// The text of a value: as SQLite writes it, and bytes and moments as PostgreSQL does.
pub fn text_of(value: &Value, of: Type) -> Cow<'_, str> {
    match (value, of) {
        (Value::Null, _) => Cow::Borrowed(""),
        (Value::Integer(0), Type::Bool) => Cow::Borrowed("f"),
        (Value::Integer(1), Type::Bool) => Cow::Borrowed("t"),
        (Value::Integer(number), _) => Cow::Owned(number.to_string()),
        (Value::Real(real), _) => Cow::Owned(real_text(*real)),
        (Value::Text(text), Type::Bytea) => Cow::Owned(hex(text.as_bytes())),
        (Value::Text(text), Type::Timestamp | Type::Timestamptz) => {
            moment::canonical(text, of == Type::Timestamptz).map_or(Cow::Borrowed(text), Cow::Owned)
        }
        (Value::Text(text), _) => Cow::Borrowed(text),
        (Value::Blob(bytes), Type::Uuid) if bytes.len() == 16 => {
            Cow::Owned(Uuid::from_slice(bytes).unwrap_or_default().hyphenated().to_string())
        }
        (Value::Blob(bytes), _) => Cow::Owned(hex(bytes)),
    }
}

/// The shortest text that is this number again.
pub fn real_text(real: f64) -> String {
    match real {
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        real => format!("{real:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Add a value to a row, with its length. An error tells that it is no value of this type.
pub fn put(body: &mut BytesMut, value: &Value, of: Type, format: Format) -> Result<(), Failure> {
    if *value == Value::Null {
        body.put_i32(-1);
        return Ok(());
    }
    let start = body.len();
    body.put_i32(0);
    match format {
        Format::Text => body.put_slice(text_of(value, of).as_bytes()),
        Format::Binary => put_binary(body, value, of).ok_or_else(|| misfit(value, of))?,
    }
    let length = i32::try_from(body.len() - start - 4).map_err(|_| misfit(value, of))?;
    body[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

fn misfit(value: &Value, of: Type) -> Failure {
    Failure::new(
        "22P02",
        format!("a value is {}, which has no binary form as {}", value.type_name(), of.about().formal),
        "SQLite keeps any value in any column: read it as text, with CAST(column AS TEXT) or in text format",
    )
}

fn put_binary(body: &mut BytesMut, value: &Value, of: Type) -> Option<()> {
    match (of, value) {
        (Type::Bool, Value::Integer(truth @ (0 | 1))) => body.put_u8(u8::from(*truth == 1)),
        (Type::Int2, Value::Integer(number)) => body.put_i16(i16::try_from(*number).ok()?),
        (Type::Int4, Value::Integer(number)) => body.put_i32(i32::try_from(*number).ok()?),
        (Type::Int8, Value::Integer(number)) => body.put_i64(*number),
        (Type::Oid, Value::Integer(number)) => body.put_u32(u32::try_from(*number).ok()?),
        (Type::Float8, _) => body.put_f64(double(value)?),
        (Type::Float4, _) => {
            let double = double(value)?;
            let single = double as f32;
            // Rounding is what the type is for; losing the magnitude is not.
            (single.is_finite() || double.is_infinite()).then(|| body.put_f32(single))?;
        }
        (Type::Numeric, value) => numeric::put(body, &text_of(value, Type::Text))?,
        (Type::Bytea, Value::Blob(bytes)) => body.put_slice(bytes),
        (Type::Bytea, value) => body.put_slice(text_of(value, Type::Text).as_bytes()),
        (Type::Uuid, Value::Blob(bytes)) if bytes.len() == 16 => body.put_slice(bytes),
        (Type::Uuid, Value::Text(text)) => body.put_slice(Uuid::parse_str(text).ok()?.as_bytes()),
        (Type::Date, Value::Text(text)) => body.put_i32(moment::date(text)?),
        (Type::Time, Value::Text(text)) => body.put_i64(moment::time(text)?),
        (Type::Timestamp, Value::Text(text)) => body.put_i64(moment::timestamp(text)?),
        (Type::Timestamptz, Value::Text(text)) => body.put_i64(moment::timestamptz(text)?),
        (Type::Jsonb, value) => {
            body.put_u8(1);
            body.put_slice(text_of(value, of).as_bytes());
        }
        (Type::Char | Type::Name | Type::Text | Type::Json | Type::Unknown | Type::Bpchar | Type::Varchar, value) => {
            body.put_slice(text_of(value, of).as_bytes());
        }
        _ => return None,
    }
    Some(())
}

/// The double that a number is, if it is one exactly.
fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Real(real) => Some(*real),
        Value::Integer(number) if number.unsigned_abs() <= EXACT_MAX => Some(*number as f64),
        _ => None,
    }
}

/// The value that a parameter's bytes are.
pub fn read(bytes: &[u8], of: Type, format: Format) -> Result<Value, Failure> {
    let read = match format {
        Format::Text => read_text(text(bytes)?, of),
        Format::Binary => read_binary(bytes, of)?,
    };
    if read.is_none() && of == Type::Numeric && is_number(bytes, format) {
        return Err(Failure::new(
            "22003",
            "the number has more digits than a NUMERIC column keeps (15)",
            "round it, or declare the column as TEXT and send the number as text",
        ));
    }
    read.ok_or_else(|| {
        let shown: String = String::from_utf8_lossy(bytes).chars().take(80).collect();
        let shown = if format == Format::Text { format!("'{shown}'") } else { format!("{} bytes", bytes.len()) };
        Failure::new(
            "22P02",
            format!("{shown} is not a value of type {}", of.about().formal),
            "a parameter has the type that the client names, or that the statement gives it",
        )
    })
}

fn is_number(bytes: &[u8], format: Format) -> bool {
    match format {
        Format::Text => std::str::from_utf8(bytes).is_ok_and(|text| numeric::is_number(text.trim())),
        Format::Binary => numeric::read(bytes).is_some(),
    }
}

/// The text of a number that is to go where texts are.
pub fn read_number_as_text(bytes: &[u8], format: Format) -> Result<Value, Failure> {
    match format {
        Format::Text if is_number(bytes, format) => read(bytes, Type::Text, format),
        Format::Binary if let Some(text) = numeric::read(bytes) => Ok(Value::Text(text)),
        _ => read(bytes, Type::Numeric, format),
    }
}

fn text(bytes: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(bytes)
        .map_err(|_| Failure::new("22021", "a text is not UTF-8", "the client's encoding must be UTF8"))
}

fn read_text(text: &str, of: Type) -> Option<Value> {
    let trimmed = text.trim();
    Some(match of {
        Type::Bool => match trimmed.to_ascii_lowercase().as_str() {
            "t" | "true" | "y" | "yes" | "on" | "1" => Value::Integer(1),
            "f" | "false" | "n" | "no" | "off" | "0" => Value::Integer(0),
            _ => return None,
        },
        Type::Int2 => Value::Integer(trimmed.parse::<i16>().ok()?.into()),
        Type::Int4 => Value::Integer(trimmed.parse::<i32>().ok()?.into()),
        Type::Int8 => Value::Integer(trimmed.parse().ok()?),
        Type::Oid => Value::Integer(trimmed.parse::<u32>().ok()?.into()),
        Type::Float4 | Type::Float8 => real(trimmed)?,
        Type::Numeric => numeric::value(trimmed)?,
        Type::Bytea => Value::Blob(bytea(text)?),
        Type::Timestamp | Type::Timestamptz => {
            Value::Text(moment::canonical(text, of == Type::Timestamptz).unwrap_or_else(|| text.to_owned()))
        }
        _ => Value::Text(text.to_owned()),
    })
}

/// A number; NaN is none, because SQLite would make NULL of it.
fn real(text: &str) -> Option<Value> {
    text.parse::<f64>().ok().filter(|real| !real.is_nan()).map(Value::Real)
}

/// Both forms that PostgreSQL takes: hexadecimal, or text with octal escapes.
fn bytea(text: &str) -> Option<Vec<u8>> {
    if let Some(digits) = text.strip_prefix("\\x") {
        let digits: Vec<u8> = digits.bytes().filter(|digit| !digit.is_ascii_whitespace()).collect();
        let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2));
        return pairs.map(|pair| pair.and_then(|pair| u8::from_str_radix(pair, 16).ok())).collect();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'\\', [b'\\', after @ ..]) => {
                bytes.push(b'\\');
                after
            }
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                after
            }
            (b'\\', _) => return None,
            (byte, after) => {
                bytes.push(*byte);
                after
            }
        };
    }
    Some(bytes)
}

fn read_binary(bytes: &[u8], of: Type) -> Result<Option<Value>, Failure> {
    let integer = |number: Option<i64>| number.map(Value::Integer);
    let number = |real: Option<f64>| real.filter(|real| !real.is_nan()).map(Value::Real);
    Ok(match of {
        Type::Bool => integer(bytes.try_into().ok().map(|[byte]: [u8; 1]| i64::from(byte != 0))),
        Type::Int2 => integer(bytes.try_into().ok().map(|bytes| i16::from_be_bytes(bytes).into())),
        Type::Int4 => integer(bytes.try_into().ok().map(|bytes| i32::from_be_bytes(bytes).into())),
        Type::Int8 => integer(bytes.try_into().ok().map(i64::from_be_bytes)),
        Type::Oid => integer(bytes.try_into().ok().map(|bytes| u32::from_be_bytes(bytes).into())),
        Type::Float4 => number(bytes.try_into().ok().map(|bytes| f32::from_be_bytes(bytes).into())),
        Type::Float8 => number(bytes.try_into().ok().map(f64::from_be_bytes)),
        Type::Numeric => numeric::read(bytes).and_then(|text| numeric::value(&text)),
        Type::Bytea => Some(Value::Blob(bytes.to_vec())),
        Type::Uuid => Uuid::from_slice(bytes).ok().map(|uuid| Value::Text(uuid.hyphenated().to_string())),
        Type::Date => {
            bytes.try_into().ok().and_then(|bytes| moment::date_text(i32::from_be_bytes(bytes))).map(Value::Text)
        }
        Type::Time => {
            bytes.try_into().ok().and_then(|bytes| moment::time_text(i64::from_be_bytes(bytes))).map(Value::Text)
        }
        Type::Timestamp => {
            bytes.try_into().ok().and_then(|bytes| moment::timestamp_text(i64::from_be_bytes(bytes))).map(Value::Text)
        }
        Type::Timestamptz => (bytes.try_into().ok())
            .and_then(|bytes| moment::timestamp_text(i64::from_be_bytes(bytes)))
            .map(|text| Value::Text(text + moment::UTC)),
        Type::Jsonb => match bytes.split_first() {
            Some((1, json)) => Some(Value::Text(text(json)?.to_owned())),
            _ => None,
        },
        Type::Char | Type::Name | Type::Text | Type::Json | Type::Unknown | Type::Bpchar | Type::Varchar => {
            Some(Value::Text(text(bytes)?.to_owned()))
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::TYPES;
    use super::*;

    fn binary(value: &Value, of: Type) -> Option<Vec<u8>> {
        let mut body = BytesMut::new();
        put(&mut body, value, of, Format::Binary).ok().map(|()| body[4..].to_vec())
    }

    #[test]
    fn values_come_back_as_they_went() {
        for (of, value) in [
            (Type::Bool, Value::Integer(1)),
            (Type::Int2, Value::Integer(-32_768)),
            (Type::Int8, Value::Integer(i64::MIN)),
            (Type::Float8, Value::Real(-1.5e300)),
            (Type::Bytea, Value::Blob(vec![0, 255, 92])),
            (Type::Text, Value::from("ü'\\")),
            (Type::Numeric, Value::Integer(i64::MAX)),
            (Type::Numeric, Value::Real(0.0125)),
            (Type::Date, Value::from("2024-02-29")),
            (Type::Time, Value::from("23:59:59.000001")),
            (Type::Timestamp, Value::from("1999-12-31 23:59:59")),
            (Type::Uuid, Value::from("6ba7b810-9dad-11d1-80b4-00c04fd430c8")),
            (Type::Jsonb, Value::from("{\"a\": 1}")),
        ] {
            let bytes = binary(&value, of).unwrap_or_else(|| panic!("{of:?} {value:?}"));
            assert_eq!(read(&bytes, of, Format::Binary).unwrap(), value, "{of:?}");
            let text = text_of(&value, of).into_owned();
            assert_eq!(read(text.as_bytes(), of, Format::Text).unwrap(), value, "{of:?} {text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said_so_in_binary_and_shown_in_text() {
        for (of, value) in [
            (Type::Int8, Value::from("five")),
            (Type::Int8, Value::Real(5.0)),
            (Type::Int4, Value::Integer(1 << 40)),
            (Type::Bool, Value::Integer(2)),
            (Type::Float8, Value::Integer(i64::MAX)),
            (Type::Date, Value::from("tomorrow")),
            (Type::Uuid, Value::from("x")),
            (Type::Numeric, Value::from("many")),
        ] {
            assert_eq!(binary(&value, of), None, "{of:?}");
            let mut body = BytesMut::new();
            put(&mut body, &value, of, Format::Text).unwrap();
        }
        assert_eq!(text_of(&Value::Integer(2), Type::Bool), "2");
        assert_eq!(text_of(&Value::Blob(vec![1, 171]), Type::Text), "\\x01ab");
    }

    #[test]
    fn parameters_that_are_none() {
        for (of, text) in [
            (Type::Int8, "5x"),
            (Type::Int8, "9223372036854775808"),
            (Type::Bool, "maybe"),
            (Type::Float8, "NaN"),
            (Type::Bytea, "\\x1"),
            (Type::Bytea, "\\9"),
            (Type::Numeric, "1,5"),
        ] {
            assert_eq!(read(text.as_bytes(), of, Format::Text).unwrap_err().code, "22P02", "{text}");
        }
        assert_eq!(read(b"\xff", Type::Text, Format::Text).unwrap_err().code, "22021");
        assert_eq!(read(b"a\\\\\\001", Type::Bytea, Format::Text).unwrap(), Value::Blob(vec![b'a', b'\\', 1]));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_value_or_an_error(bytes: Vec<u8>) {
            for about in &TYPES {
                for format in [Format::Text, Format::Binary] {
                    if let Ok(value) = read(&bytes, about.of, format) {
                        let _ = binary(&value, about.of);
                    }
                }
            }
        }
    }
}
