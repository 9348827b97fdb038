//! Parameters: which value goes into which of SQLite's slots.
//!
//! SQLite numbers a statement's parameters: `?` takes the next free slot, `?7` takes slot 7, and a name
//! takes the next free slot at its first mention. Pleat numbers them the same way over the whole request,
//! with one difference: `$2` is the second value that the client gave, as in PostgreSQL, wherever it is
//! mentioned first. A part of a statement that is sent somewhere on its own has its parameters renumbered
//! from `?1`, and carries only the values that it mentions.

use std::collections::BTreeMap;

use pleat_cluster::Value;

use crate::error::{Code, SqlError};
use crate::lex::{Kind, Tokens};

/// The most parameters that a request may have (SQLite's own limit).
pub const PARAMETERS_MAX: usize = 32_766;

/// The values that a client gave.
#[derive(Clone, Copy, Debug)]
pub enum Params<'a> {
    Positional(&'a [Value]),
    /// By name, without the `:`, `@` or `$`.
    Named(&'a BTreeMap<String, Value>),
}

impl Params<'_> {
    pub const NONE: Params<'static> = Params::Positional(&[]);
}

/// Where a slot's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// No parameter uses this slot (`?7` alone leaves 1 to 6 free).
    Unused,
    Position(usize),
    /// A name; when values come by position, the slot's own number counts.
    Name(String),
}

/// The parameters of a request: `of_token` gives the slot (from 0) of each parameter token.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    sources: Vec<Source>,
    of_token: BTreeMap<usize, usize>,
}

impl Slots {
    /// Numbers the parameters of all statements in `tokens`.
    pub fn of(tokens: &Tokens) -> Result<Self, SqlError> {
        let mut slots = Slots::default();
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for index in (0..tokens.len()).filter(|index| tokens.kind(*index) == Some(Kind::Parameter)) {
            let text = tokens.str(index);
            let slot = match (&text[..1], &text[1..]) {
                ("?", "") => slots.sources.len(),
                ("?", number) => match number.parse::<usize>() {
                    Ok(number) if (1..=PARAMETERS_MAX).contains(&number) => number - 1,
                    _ => return Err(too_many().at(tokens.text, tokens.offset(index))),
                },
                _ => *names.entry(text).or_insert(slots.sources.len()),
            };
            if slot >= PARAMETERS_MAX {
                return Err(too_many().at(tokens.text, tokens.offset(index)));
            }
            slots.take(slot, text);
            slots.of_token.insert(index, slot);
        }
        Ok(slots)
    }

    fn take(&mut self, slot: usize, text: &str) {
        if slot >= self.sources.len() {
            self.sources.resize(slot + 1, Source::Unused);
        }
        if self.sources[slot] == Source::Unused {
            self.sources[slot] = match (&text[..1], text[1..].parse::<usize>()) {
                ("?", _) => Source::Position(slot),
                ("$", Ok(number)) if number > 0 => Source::Position(number - 1),
                _ => Source::Name(text[1..].to_owned()),
            };
        }
    }

    /// The slot of the parameter at token `index`.
    pub fn at(&self, index: usize) -> Option<usize> {
        self.of_token.get(&index).copied()
    }

    /// How many slots there are.
    pub fn count(&self) -> usize {
        self.sources.len()
    }

    /// The value of every slot, or what is missing or too much.
    pub fn bind(&self, params: &Params) -> Result<Vec<Value>, SqlError> {
        match params {
            Params::Positional(values) => self.bind_positions(values),
            Params::Named(values) => {
                self.sources.iter().enumerate().map(|(slot, source)| named(slot, source, values)).collect()
            }
        }
    }

    fn bind_positions(&self, values: &[Value]) -> Result<Vec<Value>, SqlError> {
        let position = |slot: usize, source: &Source| match source {
            Source::Unused => None,
            Source::Position(position) => Some(*position),
            Source::Name(_) => Some(slot),
        };
        let positions: Vec<_> = self.sources.iter().enumerate().map(|(slot, source)| position(slot, source)).collect();
        let wanted = positions.iter().flatten().max().map_or(0, |last| last + 1);
        if wanted != values.len() {
            return Err(wrong_count(wanted, values.len()));
        }
        Ok(positions.iter().map(|position| position.map_or(Value::Null, |at| values[at].clone())).collect())
    }
}

fn named(slot: usize, source: &Source, values: &BTreeMap<String, Value>) -> Result<Value, SqlError> {
    let name = match source {
        Source::Unused => return Ok(Value::Null),
        Source::Position(position) => (position + 1).to_string(),
        Source::Name(name) => name.clone(),
    };
    values.get(&name).cloned().ok_or_else(|| {
        SqlError::new(Code::Parameters, format!("no value was given for parameter {} ({name})", slot + 1))
            .hint("give every parameter of the statement a value; null is one")
    })
}

fn too_many() -> SqlError {
    SqlError::new(Code::Parameters, format!("a request has at most {PARAMETERS_MAX} parameters"))
        .hint("send the rows in several requests or through the bulk route")
}

fn wrong_count(wanted: usize, given: usize) -> SqlError {
    SqlError::new(Code::Parameters, format!("the statement has {wanted} parameters, but {given} values were given"))
        .hint("give exactly one value for each parameter, in order")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(text: &str, values: &[i64]) -> Result<Vec<Value>, SqlError> {
        let values: Vec<Value> = values.iter().map(|value| Value::Integer(*value)).collect();
        Slots::of(&Tokens::of(text).unwrap()).unwrap().bind(&Params::Positional(&values))
    }

    fn integers(values: &[i64]) -> Vec<Value> {
        values.iter().map(|value| Value::Integer(*value)).collect()
    }

    #[test]
    fn slots_are_numbered_as_sqlite_does() {
        assert_eq!(bind("? ?", &[7, 8]), Ok(integers(&[7, 8])));
        assert_eq!(bind("?2 ?1 ?2", &[7, 8]), Ok(integers(&[7, 8])));
        assert_eq!(bind(":a :b :a", &[7, 8]), Ok(integers(&[7, 8])));
        assert_eq!(bind("$2 $1", &[7, 8]), Ok(integers(&[8, 7])), "$2 is the second value");
        assert_eq!(bind("?2", &[7, 8]), Ok(vec![Value::Null, Value::Integer(8)]));
    }

    #[test]
    fn a_wrong_number_of_values_is_refused() {
        for (text, values) in [("?", &[][..]), ("1", &[1]), ("? ?", &[1]), ("?2", &[1])] {
            assert_eq!(bind(text, values).unwrap_err().sqlstate(), "07001", "{text}");
        }
        assert!(Slots::of(&Tokens::of("?32767").unwrap()).is_err());
        assert!(Slots::of(&Tokens::of("?0").unwrap()).is_err());
    }

    #[test]
    fn values_by_name() {
        let slots = Slots::of(&Tokens::of(":a @b $1").unwrap()).unwrap();
        let values = BTreeMap::from([("a".into(), 1.into()), ("b".into(), 2.into()), ("1".into(), 3.into())]);
        assert_eq!(slots.bind(&Params::Named(&values)), Ok(integers(&[1, 2, 3])));
        assert_eq!(slots.bind(&Params::Named(&BTreeMap::new())).unwrap_err().sqlstate(), "07001");
    }
}
