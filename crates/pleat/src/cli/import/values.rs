//! From a CSV field to a typed value.
//!
//! CSV has only text. SQLite would turn text into a number by itself where a column's declared type asks for
//! one, but a shard key is hashed before SQLite sees it, so `7` must arrive as the integer 7. The rules here
//! are SQLite's own (its column affinities): a number that a column's type asks for becomes one when nothing
//! is lost by it, and everything else stays text, for SQLite to judge.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value, json};

use super::csv::Field;

/// What SQLite prefers to store in a column, by its declared type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    Integer,
    Real,
    Numeric,
    Text,
    /// As it comes.
    Blob,
}

/// Beyond this a double no longer tells neighbouring integers apart.
const EXACT_INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

impl Affinity {
    /// SQLite's rules, in their order.
    pub fn of(declared: &str) -> Affinity {
        let declared = declared.to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        if has("INT") {
            Affinity::Integer
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Affinity::Text
        } else if declared.is_empty() || has("BLOB") {
            Affinity::Blob
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Affinity::Real
        } else {
            Affinity::Numeric
        }
    }

    /// The value of a field; `null` is the text that stands for NULL when it is not quoted. The error says
    /// why there is no value.
    pub fn value(self, field: &Field, null: Option<&str>) -> Result<Value, String> {
        let text = std::str::from_utf8(&field.bytes)
            .map_err(|error| format!("not valid UTF-8 after byte {}", error.valid_up_to()))?;
        if !field.quoted && null == Some(text) {
            return Ok(Value::Null);
        }
        let number = match self {
            Affinity::Text | Affinity::Blob => None,
            Affinity::Integer | Affinity::Numeric => integer(text).or_else(|| decimal(text, true)),
            Affinity::Real => decimal(text, false),
        };
        Ok(number.unwrap_or_else(|| Value::from(text)))
    }
}

impl Affinity {
    /// The value of a field as `pleat export` writes it: text in quotes, and nothing else.
    pub fn exported(self, field: &Field) -> Result<Value, String> {
        if field.quoted {
            return self.value(field, None).map(|value| match value {
                Value::String(text) => Value::String(text),
                _ => Value::from(String::from_utf8_lossy(&field.bytes).into_owned()),
            });
        }
        match field.bytes.as_slice() {
            b"" => return Ok(Value::Null),
            b"Infinity" => return Ok(json!({"real": "Infinity"})),
            b"-Infinity" => return Ok(json!({"real": "-Infinity"})),
            [b'x', b'\'', hex @ .., b'\''] => {
                let bytes = blob(hex).ok_or("x'…' holds no bytes in hexadecimal")?;
                return Ok(json!({"base64": STANDARD.encode(bytes)}));
            }
            _ => {}
        }
        match (self, self.value(field, None)?) {
            // Where SQLite would not make numbers of text, they were numbers before.
            (Affinity::Blob | Affinity::Text, Value::String(text)) => {
                Ok(integer(&text).or_else(|| decimal(&text, false)).unwrap_or_else(|| Value::from(text)))
            }
            (_, value) => Ok(value),
        }
    }
}

fn blob(hex: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = hex.chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

/// Digits with a sign at most, within 64 bits.
fn integer(text: &str) -> Option<Value> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse::<i64>().ok()).flatten().map(Value::from)
}

/// A number as SQL writes it. `to_integer`: one without a fraction becomes an integer, as SQLite does.
fn decimal(text: &str, to_integer: bool) -> Option<Value> {
    if !text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E')) {
        return None;
    }
    // What is left of words such as "inf" after that is nothing; an integer beyond 64 bits is a double.
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite())?;
    if to_integer && number.fract() == 0.0 && number.abs() < EXACT_INTEGER_MAX {
        return Some(Value::from(number as i64));
    }
    Number::from_f64(number).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(declared: &str, text: &str) -> Value {
        let field = Field { bytes: text.as_bytes().to_vec(), quoted: false };
        Affinity::of(declared).value(&field, Some("NA")).unwrap()
    }

    #[test]
    fn affinities_are_those_of_sqlite() {
        let cases = [
            ("INTEGER", Affinity::Integer),
            ("bigint unsigned", Affinity::Integer),
            ("FLOATING POINT", Affinity::Integer),
            ("VARCHAR(20)", Affinity::Text),
            ("", Affinity::Blob),
            ("BLOB", Affinity::Blob),
            ("double precision", Affinity::Real),
            ("DECIMAL(10,2)", Affinity::Numeric),
            ("DATE", Affinity::Numeric),
            ("BOOLEAN", Affinity::Numeric),
        ];
        for (declared, affinity) in cases {
            assert_eq!(Affinity::of(declared), affinity, "{declared}");
        }
    }

    #[test]
    fn a_field_becomes_what_sqlite_would_store() {
        // The text, and what a column of each type holds afterwards: typeof and value.
        let database = rusqlite::Connection::open_in_memory().unwrap();
        database.execute_batch("CREATE TABLE t (i INTEGER, r REAL, n NUMERIC, s TEXT, b)").unwrap();
        let texts = [
            "7",
            "-7",
            "+7",
            "007",
            "3.0",
            "3.5",
            "1e3",
            "1e400",
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775808",
            "123456789012345678901234567890",
            "",
            " 7",
            "7 ",
            "0x10",
            "inf",
            "nan",
            "1_000",
            "1,5",
            ".5",
            "5.",
            "-",
            "+",
            ".",
            "e",
            "1e",
            "2013-01-01",
            "true",
            "-0",
            "-0.0",
            "0.1",
            "9007199254740993.0",
            "ä",
        ];
        for text in texts {
            for (column, declared) in [("i", "INTEGER"), ("r", "REAL"), ("n", "NUMERIC"), ("s", "TEXT"), ("b", "")] {
                let stored = |parameter: &dyn rusqlite::ToSql| -> (String, String) {
                    database.execute("DELETE FROM t", []).unwrap();
                    database.execute(&format!("INSERT INTO t ({column}) VALUES (?)"), [parameter]).unwrap();
                    let look = format!("SELECT typeof({column}), quote({column}) FROM t");
                    database.query_row(&look, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
                };
                let ours = match value(declared, text) {
                    Value::Number(number) if number.is_i64() => stored(&number.as_i64().unwrap()),
                    Value::Number(number) => stored(&number.as_f64().unwrap()),
                    Value::String(text) => stored(&text),
                    other => panic!("{text} became {other}"),
                };
                assert_eq!(ours, stored(&text), "'{text}' in a column of type '{declared}'");
            }
        }
    }

    #[test]
    fn a_key_that_looks_like_an_integer_is_one_before_it_is_hashed() {
        assert_eq!(value("INTEGER", "12345"), Value::from(12345));
        assert_eq!(value("BIGINT", "9223372036854775807"), Value::from(i64::MAX));
        assert_eq!(value("TEXT", "12345"), Value::from("12345"));
    }

    #[test]
    fn what_was_exported_comes_back_as_it_was() {
        let value = |declared: &str, text: &str, quoted: bool| {
            Affinity::of(declared).exported(&Field { bytes: text.as_bytes().to_vec(), quoted })
        };
        assert_eq!(value("TEXT", "", false), Ok(Value::Null));
        assert_eq!(value("TEXT", "", true), Ok(Value::from("")));
        assert_eq!(value("BLOB", "x'00FF'", false), Ok(json!({"base64": "AP8="})));
        assert_eq!(value("BLOB", "x''", false), Ok(json!({"base64": ""})));
        assert_eq!(value("BLOB", "x'00ff'", true), Ok(Value::from("x'00ff'")));
        assert_eq!(value("", "7", false), Ok(Value::from(7)));
        assert_eq!(value("", "7", true), Ok(Value::from("7")));
        assert_eq!(value("INTEGER", "-9223372036854775808", false), Ok(Value::from(i64::MIN)));
        assert_eq!(value("REAL", "2.0", false), Ok(Value::from(2.0)));
        assert_eq!(value("", "2.0", false), Ok(Value::from(2.0)));
        assert_eq!(value("REAL", "-Infinity", false), Ok(json!({"real": "-Infinity"})));
        assert!(value("BLOB", "x'0'", false).is_err());
    }

    #[test]
    fn null_is_only_what_was_said_to_be_and_not_when_quoted() {
        assert_eq!(value("TEXT", "NA"), Value::Null);
        assert_eq!(value("TEXT", ""), Value::from(""));
        let quoted = Field { bytes: b"NA".to_vec(), quoted: true };
        assert_eq!(Affinity::Text.value(&quoted, Some("NA")).unwrap(), Value::from("NA"));
        let unquoted = Field { bytes: b"NA".to_vec(), quoted: false };
        assert_eq!(Affinity::Text.value(&unquoted, None).unwrap(), Value::from("NA"));
    }

    #[test]
    fn bytes_that_are_no_text_are_told_with_their_place() {
        let field = Field { bytes: b"ab\xff".to_vec(), quoted: false };
        assert_eq!(Affinity::Text.value(&field, None).unwrap_err(), "not valid UTF-8 after byte 2");
    }
}
