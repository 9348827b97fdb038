//! SQL values in JSON, both ways.
//!
//! JSON has no bytes and no infinity, and its numbers are often read as doubles. Pleat writes every 64-bit
//! integer as a JSON integer, bytes as `{"base64": "…"}`, and the two infinities as `{"real": "Infinity"}`
//! and `{"real": "-Infinity"}`; the same forms are accepted as parameters, so a value that was read can be
//! sent back. A parameter outside 64 bits becomes a REAL, as such a literal does in SQLite.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pleat_cluster::Value;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::Value as Json;

/// A value that serializes in Pleat's JSON form, without an intermediate tree.
pub struct AsJson<'a>(pub &'a Value);

impl Serialize for AsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Integer(number) => serializer.serialize_i64(*number),
            Value::Real(real) if real.is_finite() => serializer.serialize_f64(*real),
            Value::Real(real) => tagged(serializer, "real", if *real > 0.0 { "Infinity" } else { "-Infinity" }),
            Value::Text(text) => serializer.serialize_str(text),
            Value::Blob(bytes) => tagged(serializer, "base64", &STANDARD.encode(bytes)),
        }
    }
}

fn tagged<S: Serializer>(serializer: S, tag: &str, text: &str) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(tag, text)?;
    map.end()
}

/// A row as a JSON array.
pub struct RowArray<'a>(pub &'a [Value]);

impl Serialize for RowArray<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut array = serializer.serialize_seq(Some(self.0.len()))?;
        for value in self.0 {
            array.serialize_element(&AsJson(value))?;
        }
        array.end()
    }
}

/// How to write rows as JSON objects: which values go in, when a name stands for several columns.
#[derive(Debug)]
pub struct ObjectShape {
    /// Name and position; of columns that share a name only the last one.
    fields: Vec<(String, usize)>,
}

impl ObjectShape {
    /// The shape of rows with these columns.
    pub fn new(columns: &[String]) -> Self {
        let is_last = |at: usize| !columns[at + 1..].contains(&columns[at]);
        let fields = (0..columns.len()).filter(|at| is_last(*at)).map(|at| (columns[at].clone(), at)).collect();
        Self { fields }
    }

    /// `row` in this shape.
    pub fn object<'a>(&'a self, row: &'a [Value]) -> RowObject<'a> {
        RowObject { shape: self, row }
    }
}

/// A row as a JSON object.
pub struct RowObject<'a> {
    shape: &'a ObjectShape,
    row: &'a [Value],
}

impl Serialize for RowObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.shape.fields.len()))?;
        for (name, at) in &self.shape.fields {
            map.serialize_entry(name, &AsJson(self.row.get(*at).unwrap_or(&Value::Null)))?;
        }
        map.end()
    }
}

/// The SQL value that a client's JSON stands for; the error says what would do instead.
pub fn from_json(json: Json) -> Result<Value, String> {
    match json {
        Json::Null => Ok(Value::Null),
        Json::Bool(yes) => Ok(Value::Integer(i64::from(yes))),
        Json::String(text) => Ok(Value::Text(text)),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Ok(Value::Integer(integer)),
            (None, Some(real)) => Ok(Value::from(real)),
            (None, None) => Err(format!("{number} is not a number that a column can hold")),
        },
        Json::Array(_) => Err("an array is not a value; to store JSON, send it as a string".to_owned()),
        Json::Object(map) => from_object(&map),
    }
}

fn from_object(map: &serde_json::Map<String, Json>) -> Result<Value, String> {
    let mut entries = map.iter();
    match (entries.next(), entries.next()) {
        (Some((tag, Json::String(text))), None) if tag == "base64" => {
            STANDARD.decode(text).map(Value::Blob).map_err(|error| format!("{{\"base64\": …}} is not base64: {error}"))
        }
        (Some((tag, Json::String(text))), None) if tag == "real" => match text.as_str() {
            "Infinity" => Ok(Value::Real(f64::INFINITY)),
            "-Infinity" => Ok(Value::Real(f64::NEG_INFINITY)),
            _ => Err("{\"real\": …} takes \"Infinity\" or \"-Infinity\"".to_owned()),
        },
        _ => Err("an object is not a value, except {\"base64\": \"…\"} for bytes and {\"real\": \"Infinity\"}; \
                  to store JSON, send it as a string"
            .to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(value: &Value) -> String {
        serde_json::to_string(&AsJson(value)).unwrap()
    }

    fn read(text: &str) -> Result<Value, String> {
        from_json(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn each_storage_class_has_its_form() {
        for (value, text) in [
            (Value::Null, "null"),
            (Value::Integer(i64::MAX), "9223372036854775807"),
            (Value::Integer(i64::MIN), "-9223372036854775808"),
            (Value::Real(1.0), "1.0"),
            (Value::Real(f64::INFINITY), r#"{"real":"Infinity"}"#),
            (Value::Real(f64::NEG_INFINITY), r#"{"real":"-Infinity"}"#),
            (Value::from("a\"b\u{0}ü"), r#""a\"b\u0000ü""#),
            (Value::Blob(vec![0, 255]), r#"{"base64":"AP8="}"#),
        ] {
            assert_eq!(json(&value), text);
            assert_eq!(read(text), Ok(value));
        }
    }

    #[test]
    fn what_is_no_value_is_refused_with_a_way_out() {
        assert_eq!(read("true"), Ok(Value::Integer(1)));
        assert_eq!(read("18446744073709551615"), Ok(Value::Real(18_446_744_073_709_551_615.0)));
        for (text, says) in [
            ("[1]", "as a string"),
            (r#"{"a":1}"#, "as a string"),
            (r#"{"base64":"?"}"#, "not base64"),
            (r#"{"base64":"AA==","x":1}"#, "not a value"),
            (r#"{"real":"NaN"}"#, "Infinity"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn of_columns_with_one_name_an_object_keeps_the_last() {
        let columns = ["a", "b", "a"].map(str::to_owned);
        let shape = ObjectShape::new(&columns);
        let row = [Value::Integer(1), Value::Integer(2), Value::Integer(3)];
        assert_eq!(serde_json::to_string(&shape.object(&row)).unwrap(), r#"{"b":2,"a":3}"#);
        assert_eq!(serde_json::to_string(&RowArray(&row)).unwrap(), "[1,2,3]");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::Blob),
        ]
    }

    proptest! {
        #[test]
        fn every_value_survives_the_round_trip(value in any_value()) {
            prop_assert_eq!(read(&json(&value)), Ok(value));
        }
    }
}
