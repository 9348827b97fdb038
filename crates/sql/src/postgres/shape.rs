//! What statements have in common that differ in their literal values alone.
//!
//! A program that writes its values into the text sends a new text each time, and each would be planned anew. Cutting a text into tokens costs a small part
//! of that: so its shape is planned once, and a statement is routed by its own values.

use std::fmt::Write;

use pleat_cluster::Value;

use super::lex::{Kind, Tokens};

/// A text with parameters in the place of its plain numbers and strings.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape<'t> {
    /// The statement as it was written, without the `;` behind it.
    pub statement: &'t str,
    /// `SELECT * FROM t WHERE k = $1`
    pub text: String,
    /// What stands in each parameter's place. `None`: a number that is no 64-bit integer.
    pub values: Vec<Option<Value>>,
}

impl Shape<'_> {
    /// The shape of a text that is one SELECT, INSERT, UPDATE or DELETE (WITH before it included) without parameters of its own and with values in it.
    ///
    /// Its plan ([`prepare`](super::prepare)) is the text's as far as it leads to [`Route::Partitions`](super::Route::Partitions), by the values here: the keys
    /// are then the same. Anything else may be another plan (`ORDER BY 1` names a column, `ORDER BY $1` none) or none at all (`interval '1 day'`): the text is then to be
    /// planned for itself; and so is what asks a sequence, whose name is such a value.
    pub fn of(text: &str) -> Option<Shape<'_>> {
        let tokens = Tokens::of(text).ok()?;
        let routed = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"].iter().any(|word| tokens.is(0, word));
        if !routed {
            return None;
        }
        let mut count = tokens.len();
        while tokens.is_symbol(count - 1, ";") {
            count -= 1;
        }
        let (mut shape, mut values, mut from) = (String::with_capacity(text.len()), Vec::new(), 0);
        for at in 0..count {
            let value = match tokens.kind(at)? {
                Kind::Number => tokens.str(at).parse().ok().map(Value::Integer),
                Kind::Text if tokens.str(at).starts_with('\'') && !is_typed(&tokens, at) => {
                    tokens.string(at).map(Value::Text)
                }
                Kind::Param => return None,
                Kind::Symbol if tokens.str(at) == ";" => return None,
                _ => continue,
            };
            values.push(value);
            shape.push_str(&text[from..tokens.start(at)]);
            // Writing to a String can't fail.
            let _ = write!(shape, "${}", values.len());
            from = tokens.end(at);
        }
        let end = tokens.end(count - 1);
        shape.push_str(&text[from..end]);
        (!values.is_empty()).then(|| Shape { statement: &text[tokens.start(0)..end], text: shape, values })
    }
}

/// Whether the string at `at` has a type's name before it, where no parameter can stand.
fn is_typed(tokens: &Tokens, at: usize) -> bool {
    const TYPES: [&str; 6] = ["INTERVAL", "DATE", "TIME", "TIMESTAMP", "TIMESTAMPTZ", "ZONE"];
    at > 0 && TYPES.iter().any(|word| tokens.is(at - 1, word))
}
