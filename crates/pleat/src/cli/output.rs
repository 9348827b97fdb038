//! What is printed, and how values look.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

/// Write a line to standard output. An error, such as a reader that went away, is the caller's to return.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")
}

/// Write a line to standard error; when nobody reads it, there is nobody to tell.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Print JSON as one line.
pub fn json(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

/// Whether a person is looking.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// A table without borders, for lists of things. Columns whose name is in `right` hold numbers.
pub fn list(header: &[&str], right: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if right.contains(name) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    for text in table.to_string().lines() {
        line(text.trim_end())?;
    }
    Ok(())
}

/// A result with borders, numbers to the right.
pub fn result_table(columns: &[String], rows: &[Vec<Value>]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns);
    for row in rows {
        table.add_row(row.iter().map(|value| {
            let cell = Cell::new(display(value));
            if value.is_number() { cell.set_alignment(CellAlignment::Right) } else { cell }
        }));
    }
    table.to_string()
}

/// A value for people: text bare, NULL by name, blobs as SQL writes them. Control characters are shown as
/// escapes, so that data can't steer a terminal.
pub fn display(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_string(),
        Value::String(text) if text.contains(|c: char| c.is_control() && c != '\n' && c != '\t') => {
            text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
        }
        Value::String(text) => text.clone(),
        Value::Object(map) => match (map.get("base64"), map.get("real")) {
            (Some(Value::String(text)), _) => blob(text),
            (_, Some(Value::String(real))) => real.clone(),
            _ => value.to_string(),
        },
        other => other.to_string(),
    }
}

/// A value for programs that read tab-separated text: tabs, line ends and backslashes escaped, NULL as `\N`.
pub fn tab_separated(value: &Value) -> String {
    match value {
        Value::Null => "\\N".to_string(),
        Value::String(text) => {
            text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
        }
        other => display(other),
    }
}

/// `x'00ff'`, or the text itself when it is not base64.
fn blob(base64: &str) -> String {
    let mut hex = String::from("x'");
    let (mut bits, mut count) = (0_u32, 0);
    for byte in base64.bytes().filter(|byte| *byte != b'=') {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return base64.to_string(),
        };
        bits = (bits << 6) | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            hex.push_str(&format!("{:02x}", (bits >> count) & 0xff));
        }
    }
    hex.push('\'');
    hex
}

/// `336776` as `336,776`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `98304` as `96.0 KiB`.
pub fn bytes(number: u64) -> String {
    let mut amount = number as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{number} B") } else { format!("{amount:.1} {unit}") }
}

/// The text at `key`, or `-`.
pub fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        None | Some(Value::Null) => "-".to_string(),
        Some(value) => display(value),
    }
}

/// The strings of the list at `key`, or `-`.
pub fn texts(value: &Value, key: &str) -> String {
    let items = value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() { "-".to_string() } else { items.iter().map(display).collect::<Vec<_>>().join(",") }
}

/// The number at `key` with `digits` decimals, or `-`.
pub fn number(value: &Value, key: &str, digits: usize) -> String {
    match value.get(key).and_then(Value::as_f64) {
        Some(number) => format!("{number:.digits$}"),
        None => "-".to_string(),
    }
}

/// The whole number at `key` with thousands apart, or `-`.
pub fn count(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_u64).map_or_else(|| "-".to_string(), thousands)
}

/// The list at `key`, empty when there is none.
pub fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_look_as_sql_writes_them() {
        assert_eq!(display(&Value::Null), "NULL");
        assert_eq!(display(&json!(9_223_372_036_854_775_807_i64)), "9223372036854775807");
        assert_eq!(display(&json!(2.0)), "2.0");
        assert_eq!(display(&json!({"base64": "AP8Q"})), "x'00ff10'");
        assert_eq!(display(&json!({"base64": "/w=="})), "x'ff'");
        assert_eq!(display(&json!({"real": "-Infinity"})), "-Infinity");
        assert_eq!(display(&json!("\u{1b}[2J")), "\\u{1b}[2J", "data must not steer the terminal");
    }

    #[test]
    fn tab_separated_text_can_be_taken_apart_again() {
        assert_eq!(tab_separated(&json!("a\tb\\c\nd")), "a\\tb\\\\c\\nd");
        assert_eq!(tab_separated(&Value::Null), "\\N");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!((thousands(7), thousands(1000), thousands(336_776)), ("7".into(), "1,000".into(), "336,776".into()));
        assert_eq!((bytes(12), bytes(98_304), bytes(3 << 30)), ("12 B".into(), "96.0 KiB".into(), "3.0 GiB".into()));
    }
}
