//! From a file's text to a tree, and from a key back to its line.

use std::path::Path;

use serde_json::Value;

use super::ConfigError;

/// Parse by extension: `.toml`, `.yaml`, `.yml` or `.json`.
pub fn parse(path: &Path, text: &str) -> Result<Value, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let fail = |line: Option<usize>, message: String| ConfigError { source: path.display().to_string(), line, message };
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let tree = match extension.to_ascii_lowercase().as_str() {
        "toml" => toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            fail(line, format!("this is not valid TOML: {}", error.message()))
        })?,
        "yaml" | "yml" => serde_norway::from_str(text)
            .map_err(|error| fail(error.location().map(|at| at.line()), format!("this is not valid YAML: {error}")))?,
        "json" => serde_json::from_str(text)
            .map_err(|error| fail(Some(error.line()), format!("this is not valid JSON: {error}")))?,
        _ => return Err(fail(None, "the name must end in .toml, .yaml, .yml or .json".to_string())),
    };
    // An empty YAML document is nothing at all, which says as much as an empty table.
    Ok(if tree == Value::Null { Value::Object(serde_json::Map::new()) } else { tree })
}

/// The line (from 1) on which the key at the end of `path` stands, looking for each key after the one before.
pub fn line_of(text: &str, path: &[String]) -> Option<usize> {
    let mut found = None;
    let mut at = Position { line: 0, column: 0 };
    for key in path {
        at = find_key(text, key, &at)?;
        found = Some(at.line + 1);
    }
    found
}

struct Position {
    line: usize,
    column: usize,
}

/// Where `key` stands as a key (before `:`, `=`, `.` or `]`), from `from` on; the position is that after it.
fn find_key(text: &str, key: &str, from: &Position) -> Option<Position> {
    for (number, line) in text.lines().enumerate().skip(from.line) {
        if line.trim_start().starts_with('#') {
            continue;
        }
        let mut column = if number == from.line { from.column } else { 0 };
        while let Some(offset) = line.get(column..).and_then(|rest| rest.find(key)) {
            let start = column + offset;
            let end = start + key.len();
            let before = line[..start].chars().next_back();
            let after = line[end..].trim_start_matches(['"', '\'']).trim_start().chars().next();
            let is_whole = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '-');
            if is_whole && matches!(after, Some(':' | '=' | '.' | ']')) {
                return Some(Position { line: number, column: end });
            }
            column = end;
        }
    }
    None
}
