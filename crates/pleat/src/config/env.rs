//! The environment over the file.

use serde_json::{Map, Number, Value};

use super::ConfigError;
use super::keys::{self, Kind};

/// Variables that other parts of Pleat read themselves.
const NOT_KEYS: &[&str] = &["PLEAT_URL", "PLEAT_LOG", "PLEAT_CONFIG", "PLEAT_HISTORY"];

/// Put every `PLEAT_*` variable into the tree.
pub fn overlay(tree: &mut Value, environment: impl IntoIterator<Item = (String, String)>) -> Result<(), ConfigError> {
    for (name, text) in environment {
        let Some(key) = name.strip_prefix("PLEAT_") else { continue };
        if NOT_KEYS.contains(&name.as_str()) || is_service_link(key) {
            continue;
        }
        let fail =
            |message: String| ConfigError { source: format!("environment variable {name}"), line: None, message };
        let path = key.to_lowercase().replace("__", ".");
        let kind = keys::kind_of(&path).ok_or_else(|| fail(unknown(&path)))?;
        let value = parse(kind, &text).ok_or_else(|| fail(format!("must be {}, not '{text}'", kind.expected())))?;
        set(tree, &path, value);
        keys::check(tree).map_err(|wrong| fail(wrong.message))?;
    }
    Ok(())
}

/// Kubernetes gives every pod variables for each service: with a service called "pleat" that is
/// `PLEAT_SERVICE_HOST`, `PLEAT_PORT_8080_TCP` and so on. They are no keys of ours and no mistakes either.
fn is_service_link(key: &str) -> bool {
    key == "PORT" || key.contains("SERVICE_HOST") || key.contains("SERVICE_PORT") || key.contains("PORT_")
}

fn unknown(path: &str) -> String {
    let message = keys::unknown(path);
    match message.split_once("did you mean '") {
        Some((_, rest)) => {
            let meant = rest.trim_end_matches("'?").to_uppercase().replace('.', "__");
            format!("unknown key '{path}'; did you mean PLEAT_{meant}?")
        }
        None => message,
    }
}

fn parse(kind: Kind, text: &str) -> Option<Value> {
    match kind {
        Kind::Integer(..) => Some(Value::from(text.parse::<u64>().ok()?)),
        Kind::Number(..) => Some(Value::Number(Number::from_f64(text.parse::<f64>().ok()?)?)),
        Kind::Choice(_) | Kind::Address | Kind::AddressOrOff | Kind::Path => Some(Value::from(text)),
        Kind::Flag => match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Some(Value::Bool(true)),
            "0" | "false" | "no" | "off" | "" => Some(Value::Bool(false)),
            _ => None,
        },
        // `users=user_id,orders=customer_id`
        Kind::Names => {
            let mut names = Map::new();
            for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
                let (name, other) = pair.split_once('=')?;
                names.insert(name.trim().to_string(), Value::from(other.trim()));
            }
            Some(Value::Object(names))
        }
    }
}

fn set(tree: &mut Value, path: &str, value: Value) {
    let mut at = tree;
    for key in path.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[key];
    }
    *at = value;
}
