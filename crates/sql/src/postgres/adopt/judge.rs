//! What becomes of a statement, by the word of the planner that routes it.

use std::borrow::Cow;

use pleat_cluster::{KeyType, Value};

use super::super::lex::{Kind, Tokens};
use super::super::{Direction, Planned, Query, Route, What, prepare};
use crate::{Schema, SqlError};

const PARTITIONS: u32 = pleat_cluster::PARTITION_COUNT_DEFAULT;

/// What becomes of a statement. Later ones are worse.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It concerns no table of the database: BEGIN, SET, a driver's look at the system's catalogs.
    Session,
    /// It changes the schema.
    Schema,
    /// One shard, that of its key.
    OneShard,
    /// Any shard can answer it: it reads reference tables alone.
    AnyShard,
    /// The shard of the single tables, as before.
    SingleShard,
    /// Several shards, or all: appended, merged or gathered, or a transaction over them.
    SeveralShards,
    /// Every shard does the same: a write to a reference table, of which each has a copy; ANALYZE and VACUUM.
    EveryCopy,
    /// It can't be routed.
    Refused { sqlstate: &'static str, message: String, hint: Option<String> },
}

/// A statement, and what becomes of it.
#[derive(Clone, Debug)]
pub struct Judged {
    pub verdict: Verdict,
    /// Tables of the catalog that it mentions, by their keys; empty if it was not understood.
    pub tables: Vec<String>,
}

impl Verdict {
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Session => "session",
            Verdict::Schema => "schema",
            Verdict::OneShard => "one_shard",
            Verdict::AnyShard => "any_shard",
            Verdict::SingleShard => "single_tables",
            Verdict::SeveralShards => "several_shards",
            Verdict::EveryCopy => "every_copy",
            Verdict::Refused { .. } => "refused",
        }
    }

    /// What it is worth to have a statement end so; `None`: it says nothing about placement.
    pub(super) fn worth(&self) -> Option<f64> {
        match self {
            Verdict::Session | Verdict::Schema => None,
            Verdict::OneShard | Verdict::AnyShard => Some(1.0),
            Verdict::SingleShard => Some(0.0),
            // All shards work on it, so there is no room for more of them; but each has less to read.
            Verdict::SeveralShards => Some(0.1),
            Verdict::EveryCopy => Some(-0.5),
            Verdict::Refused { .. } => Some(-1.0),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Verdict::Session => 0,
            Verdict::Schema => 1,
            Verdict::AnyShard => 2,
            Verdict::OneShard => 3,
            Verdict::SingleShard => 4,
            Verdict::SeveralShards => 5,
            Verdict::EveryCopy => 6,
            Verdict::Refused { .. } => 7,
        }
    }
}

impl From<SqlError> for Verdict {
    fn from(error: SqlError) -> Verdict {
        Verdict::Refused { sqlstate: error.sqlstate(), message: error.message, hint: error.hint }
    }
}

/// Ask the planner. Of a text of several statements the worst counts.
pub(super) fn judge(text: &str, schema: &Schema<'_>) -> Judged {
    match prepare(&runnable(text), schema) {
        Err(error) => Judged { verdict: error.into(), tables: Vec::new() },
        Ok(planned) => {
            let all = planned.iter().map(|one| of(one, schema));
            all.max_by_key(|judged| judged.verdict.rank())
                .unwrap_or(Judged { verdict: Verdict::Session, tables: Vec::new() })
        }
    }
}

fn of(planned: &Planned, schema: &Schema<'_>) -> Judged {
    let verdict = |verdict| Judged { verdict, tables: Vec::new() };
    match &planned.what {
        What::Query(query) | What::Declare { query, .. } => of_query(query),
        What::Prepare { statement, .. } => of(statement, schema),
        What::Ddl(_) => verdict(Verdict::Schema),
        What::Copy(copy) => {
            if let Some((_, query)) = &copy.query {
                return of_query(query);
            }
            let table = copy.table.as_ref().and_then(|key| schema.tables.get(key));
            use pleat_cluster::TableKind as T;
            let found = match (table.map(|table| &table.kind), copy.direction) {
                (None, _) => Verdict::Session,
                (Some(T::Single { .. }), _) => Verdict::SingleShard,
                (Some(T::Reference), Direction::Out) => Verdict::AnyShard,
                (Some(T::Reference), Direction::In) => Verdict::EveryCopy,
                (Some(T::Sharded { .. }), _) => Verdict::SeveralShards,
            };
            Judged { verdict: found, tables: copy.table.iter().cloned().collect() }
        }
        _ => verdict(Verdict::Session),
    }
}

fn of_query(query: &Query) -> Judged {
    let value = |at: usize| query.keys().iter().find(|(param, _)| *param == at).map(|(_, of)| sample(at, *of));
    let verdict = match query.route(&value, PARTITIONS) {
        Err(error) => error.into(),
        Ok(Route::Any) if query.tables.is_empty() => Verdict::Session,
        Ok(Route::Any) => Verdict::AnyShard,
        Ok(Route::Partitions(found)) if found.len() <= 1 => Verdict::OneShard,
        Ok(Route::Partitions(_)) => match query.scatter(&value, PARTITIONS) {
            Ok(_) => Verdict::SeveralShards,
            Err(error) => error.into(),
        },
        Ok(Route::Single(_)) => Verdict::SingleShard,
        Ok(Route::Every { reference: true, .. }) => Verdict::EveryCopy,
        Ok(Route::Every { .. } | Route::Rows(_) | Route::Spread { .. }) => Verdict::SeveralShards,
    };
    Judged { verdict, tables: query.tables.clone() }
}

/// A key, another one for each parameter.
fn sample(at: usize, of: KeyType) -> Value {
    let number = at as i64;
    match of {
        KeyType::Integer => Value::Integer(100 + number),
        KeyType::Text => Value::Text(format!("key {number}")),
        KeyType::Bytes => Value::Blob(number.to_be_bytes().to_vec()),
        KeyType::Uuid => Value::Text(format!("a0eebc99-9c0b-4ef8-bb6d-{number:012x}")),
    }
}

/// Statistics have `$1` for each constant, also where only a constant can stand: `interval $1`, `extract($1 FROM x)`.
fn runnable(text: &str) -> Cow<'_, str> {
    let Ok(tokens) = Tokens::of(text) else { return Cow::Borrowed(text) };
    let (mut out, mut copied) = (String::new(), 0);
    for at in 1..tokens.len() {
        if tokens.kind(at) != Some(Kind::Param) {
            continue;
        }
        let typed = ["interval", "date", "time", "timestamp", "timestamptz"].iter().any(|word| tokens.is(at - 1, word))
            || tokens.are(at.saturating_sub(3), &["with", "time", "zone"]);
        let field = tokens.is_symbol(at - 1, "(") && at > 1 && tokens.is(at - 2, "extract");
        let constant = match (typed, field) {
            (true, _) => "'0'",
            (_, true) => "year",
            _ => continue,
        };
        out.push_str(&text[copied..tokens.start(at)]);
        out.push_str(constant);
        copied = tokens.end(at);
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_come_back_where_only_they_can_stand() {
        let text = "SELECT extract($1 FROM at), interval $2, a = $3 FROM t WHERE at > timestamp with time zone $4 - $5";
        let wanted =
            "SELECT extract(year FROM at), interval '0', a = $3 FROM t WHERE at > timestamp with time zone '0' - $5";
        assert_eq!(runnable(text), wanted);
        assert!(matches!(runnable("SELECT $1"), Cow::Borrowed(_)));
    }
}
