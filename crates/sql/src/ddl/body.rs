//! Whether what a trigger does stays on the shard of the row that it fires for.
//!
//! The planner itself is asked, statement by statement. `NEW.x` and `OLD.x` become parameters, as they have values while the
//! statement runs, and the plan is asked for its route with made-up values: twice or more, each time with another shard key, and with
//! other values for all other columns.
//!
//! ```text
//! UPDATE totals SET n = n + NEW.n WHERE user_id = NEW.user_id
//! UPDATE totals SET n = n + ?1    WHERE user_id = ?2          ?1 = 2001, ?2 = 1001: only the partition of 1001?
//! ```
//!
//! If each route is the partition of that key and no other, the statement stays with the row: no constant and no other column
//! falls into the same partition every time. (`OLD.key` and `NEW.key` are one: a change of the key is another statement,
//! and refused where there are triggers.) Keys are of one type. For a single table the route is that table's shard. `RAISE`
//! is for SQLite to understand; what is planned has its message in its place.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{KeyType, PARTITION_COUNT_MAX, PartitionId, Table, TableId, TableKind, Value, partition_of};

use super::trigger::ids;
use crate::clauses::Span;
use crate::error::{Code, SqlError};
use crate::lex::{Kind, Tokens, quote};
use crate::params::Params;
use crate::read::{Route, Units};
use crate::scope::is_rowid;
use crate::statement::{Schema, Statement, prepare};
use crate::write::{Ids, WriteTarget, id_column};

/// How often a statement's route is asked for.
const PROBES: i64 = 4;
/// Functions that tell of the connection's past, in which Pleat's statements are too.
const PAST: [&str; 3] = ["changes", "total_changes", "last_insert_rowid"];

/// The table that a trigger is for.
pub(super) struct Home {
    pub table: Table,
    /// The trigger fires before rows are inserted.
    pub early: bool,
}

/// What a trigger does.
pub(super) struct Body<'a> {
    tokens: &'a Tokens<'a>,
    schema: Schema<'a>,
    home: Home,
    writes: BTreeSet<String>,
    reads: BTreeSet<String>,
}

/// A statement with parameters for the row's columns.
struct Rewritten {
    text: String,
    /// Whether each parameter is the row's key.
    keys: Vec<bool>,
}

impl<'a> Body<'a> {
    pub fn new(tokens: &'a Tokens<'a>, schema: Schema<'a>, home: Home) -> Self {
        Body { tokens, schema, home, writes: BTreeSet::new(), reads: BTreeSet::new() }
    }

    /// The tables that are written and those that are read, of what was looked at.
    pub fn tables(&self) -> (BTreeSet<TableId>, BTreeSet<TableId>) {
        (ids(self.schema.tables, self.writes.iter()), ids(self.schema.tables, self.reads.iter()))
    }

    /// Looks at the condition of WHEN.
    pub fn condition(&mut self, span: Span) -> Result<(), SqlError> {
        let mut rewritten = self.rewrite(span)?;
        rewritten.text = format!("SELECT 1 WHERE ({})", rewritten.text);
        self.look_at(&rewritten, span)
    }

    /// Looks at a statement.
    pub fn statement(&mut self, span: Span) -> Result<(), SqlError> {
        let rewritten = self.rewrite(span)?;
        self.look_at(&rewritten, span)
    }

    fn at(&self, error: SqlError, token: usize) -> SqlError {
        error.at(self.tokens.text, self.tokens.offset(token))
    }

    fn look_at(&mut self, rewritten: &Rewritten, span: Span) -> Result<(), SqlError> {
        let pointed = |error: SqlError| error.at(self.tokens.text, self.tokens.offset(span.0));
        if crate::views::expand(&rewritten.text, self.schema.views).map_err(inside)?.is_some() {
            let error = SqlError::unsupported("a trigger can't read views: shards know none");
            return Err(pointed(error.hint("write the view's SELECT into the trigger")));
        }
        let planned = prepare(&rewritten.text, &self.schema).map_err(|error| pointed(inside(error)))?;
        match planned {
            Statement::Read(plan) => {
                self.check(rewritten, |values| match plan.route(&Params::Positional(values), PARTITION_COUNT_MAX)? {
                    Route::Anywhere(_) => Ok(Some(Units::default())),
                    Route::Shard { units, .. } => Ok(Some(units)),
                    Route::Concat { .. } | Route::Gather { .. } => Ok(None),
                })
                .map_err(pointed)?;
                self.alike(plan.tables()).map_err(pointed)?;
                self.reads.extend(plan.tables().iter().cloned());
            }
            Statement::Write(plan) => {
                self.check(rewritten, |values| {
                    let params = Params::Positional(values);
                    if let Some(wanted) = plan.ids_wanted(&params)?.first() {
                        return Err(no_ids(&wanted.name));
                    }
                    Ok(match plan.route(&params, PARTITION_COUNT_MAX, &Ids::none())?.target {
                        WriteTarget::Units(units) => Some(units),
                        WriteTarget::Reference => return Err(no_reference(&self.home.table)),
                        WriteTarget::Everywhere { .. } | WriteTarget::Spread { .. } => None,
                    })
                })
                .map_err(pointed)?;
                self.alike(plan.tables()).map_err(pointed)?;
                self.writes.extend(plan.targets().map(str::to_owned));
                self.reads.extend(plan.tables().iter().cloned());
            }
            Statement::Ddl(_) | Statement::Explain(_) | Statement::Analyze(_) => {
                return Err(pointed(SqlError::syntax("a trigger consists of INSERT, UPDATE, DELETE and SELECT")));
            }
        }
        Ok(())
    }

    /// Whether the statement stays with the row, whatever the row's key is.
    fn check(
        &self,
        rewritten: &Rewritten,
        route: impl Fn(&[Value]) -> Result<Option<Units>, SqlError>,
    ) -> Result<(), SqlError> {
        let key_type = self.home.table.shard_key().map_or(KeyType::Integer, |(_, key_type)| key_type);
        for probe in 1..=PROBES {
            let key = made_up(key_type, probe * 1_000_003);
            let other = |slot: usize| made_up(key_type, probe * 2_000_029 + slot as i64 + 1);
            let value = |(slot, is_key): (usize, &bool)| if *is_key { key.clone() } else { other(slot) };
            let values: Vec<Value> = rewritten.keys.iter().enumerate().map(value).collect();
            let own = partition_of(&key, key_type, PARTITION_COUNT_MAX).ok();
            let units = route(&values).map_err(inside)?;
            if !units.is_some_and(|units| self.stays(&units, own)) {
                return Err(self.leaves());
            }
        }
        Ok(())
    }

    /// Refuses sharded tables whose keys are of another type: `text_key = NEW.integer_key` compares as numbers, of which a text
    /// has many forms, each in a partition of its own.
    fn alike(&self, tables: &[String]) -> Result<(), SqlError> {
        let own = self.home.table.shard_key().map(|(_, key_type)| key_type);
        let found = tables.iter().filter_map(|name| self.schema.tables.get(name));
        let other = |table: &&Table| table.shard_key().is_some_and(|(_, key_type)| Some(key_type) != own);
        match found.into_iter().find(other) {
            Some(other) => Err(SqlError::unsupported(format!(
                "in the trigger: the shard key of {} is of another type than that of {}",
                other.name, self.home.table.name
            ))
            .hint("shard both tables by keys of one type")),
            None => Ok(()),
        }
    }

    fn stays(&self, units: &Units, own: Option<PartitionId>) -> bool {
        match self.home.table.kind {
            TableKind::Sharded { .. } => {
                units.singles.is_empty() && units.partitions.iter().all(|partition| Some(*partition) == own)
            }
            TableKind::Single { shard } => units.partitions.is_empty() && units.singles.values().all(|at| *at == shard),
            TableKind::Reference => false,
        }
    }

    fn leaves(&self) -> SqlError {
        let table = &self.home.table;
        match table.shard_key() {
            Some((key, _)) => SqlError::unsupported(format!(
                "what this trigger does may concern rows that are not with {key}, the shard key of {}, on one shard",
                table.name
            ))
            .hint(format!(
                "in each table that it names give the shard key as NEW.{key} or OLD.{key}; only reference tables are read without, \
                 and none is written"
            )),
            None => SqlError::unsupported(format!(
                "what this trigger does may concern rows that are not on the shard of {}",
                table.name
            ))
            .hint("triggers of a single table may write single tables on the same shard, and read reference tables too"),
        }
    }

    /// The words of `span` with parameters for the row's columns, and without RAISE.
    fn rewrite(&self, span: Span) -> Result<Rewritten, SqlError> {
        let tokens = self.tokens;
        let mut rewritten = Rewritten { text: String::new(), keys: Vec::new() };
        let mut slots: BTreeMap<(String, String), usize> = BTreeMap::new();
        let mut at = span.0;
        while at < span.1 {
            let after_dot = at > span.0 && tokens.is_symbol(at - 1, ".");
            let name = if tokens.kind(at) == Some(Kind::Text) { None } else { tokens.name(at) };
            let row = name.map(|name| name.to_ascii_lowercase()).filter(|_| !after_dot);
            match row.as_deref() {
                Some("new" | "old") if tokens.is_symbol(at + 1, ".") && at + 2 < span.1 => {
                    let column = self.column(at + 2)?;
                    let is_key = self.is_key(&column);
                    let named = (row.unwrap_or_default(), column);
                    let slot = slot_of(&mut slots, &mut rewritten.keys, named, is_key);
                    rewritten.text.push_str(&format!(" ?{slot} "));
                    at += 3;
                }
                Some("new" | "old") => {
                    let error =
                        SqlError::unsupported("NEW and OLD are the trigger's rows and can name nothing else here");
                    return Err(self.at(error.hint("use another alias; write table.new for a column"), at));
                }
                Some("raise") if tokens.is_symbol(at + 1, "(") => {
                    let (text, next) = self.raise(at)?;
                    rewritten.text.push_str(text);
                    at = next;
                }
                Some(name) if name.starts_with("pleat_") && tokens.is_symbol(at + 1, "(") => {
                    let error = SqlError::unsupported(format!("{name}() in a trigger is not supported"));
                    return Err(self.at(error.hint("functions that begin with pleat_ are Pleat's own"), at));
                }
                Some(name) if PAST.contains(&name) && tokens.is_symbol(at + 1, "(") => {
                    let error = SqlError::unsupported(format!("{name}() in a trigger is not supported"));
                    return Err(self.at(error.hint("its value would tell of Pleat's own statements"), at));
                }
                _ if self.is_own_row(span, at) => {
                    if let Some((key, _)) = self.home.table.shard_key() {
                        let named = (tokens.str(at + 2).to_ascii_lowercase(), key.to_ascii_lowercase());
                        let slot = slot_of(&mut slots, &mut rewritten.keys, named, true);
                        rewritten.text.push_str(&format!(" {} = ?{slot}", quote(key)));
                    } else {
                        rewritten.text.push_str(" 1");
                    }
                    at = span.1;
                }
                _ if is_rowid(&tokens.str(at).to_ascii_lowercase()) && self.home.table.shard_key().is_some() => {
                    return Err(self.at(rowid(), at));
                }
                _ => {
                    rewritten.text.push(' ');
                    rewritten.text.push_str(tokens.str(at));
                    at += 1;
                }
            }
        }
        Ok(rewritten)
    }

    /// Whether a statement ends here with `rowid = NEW.rowid` (or OLD), and changes or deletes that row of the trigger's own
    /// table. A rowid names a row within a shard, and this one is there; its key is what is planned with.
    fn is_own_row(&self, (from, to): Span, at: usize) -> bool {
        let tokens = self.tokens;
        let named = match tokens.is(from, "UPDATE") {
            true => from + 1,
            false if tokens.are(from, &["DELETE", "FROM"]) => from + 2,
            false => return false,
        };
        let row = |at: usize| tokens.is(at, "NEW") || tokens.is(at, "OLD");
        let rowid = |at: usize| {
            let name = tokens.str(at).to_ascii_lowercase();
            is_rowid(&name) && self.home.table.column(&name).is_none()
        };
        let named_own = tokens.name(named).is_some_and(|name| name.eq_ignore_ascii_case(&self.home.table.name));
        at + 5 == to
            && named_own
            && !self.home.early
            && tokens.is(at - 1, "WHERE")
            && rowid(at)
            && tokens.is_symbol(at + 1, "=")
            && row(at + 2)
            && tokens.is_symbol(at + 3, ".")
            && rowid(at + 4)
    }

    /// The column of the trigger's row that is named at a token, in lower case.
    fn column(&self, at: usize) -> Result<String, SqlError> {
        let table = &self.home.table;
        let name = self.tokens.name(at).unwrap_or_default().to_ascii_lowercase();
        if table.column(&name).is_none() {
            let unknown = || SqlError::new(Code::UnknownColumn, format!("table {} has no column {name}", table.name));
            return Err(self.at(if is_rowid(&name) { rowid() } else { unknown() }, at));
        }
        match id_column(table) {
            Some(id) if self.home.early && id.eq_ignore_ascii_case(&name) => Err(self.at(
                SqlError::unsupported(format!("NEW.{id} is not known before the row is inserted"))
                    .hint("use AFTER INSERT"),
                at,
            )),
            _ => Ok(name),
        }
    }

    fn is_key(&self, column: &str) -> bool {
        self.home.table.shard_key().is_some_and(|(key, _)| key.eq_ignore_ascii_case(column))
    }

    /// What is planned for the RAISE at a token, and where it goes on.
    fn raise(&self, at: usize) -> Result<(&'static str, usize), SqlError> {
        let tokens = self.tokens;
        if tokens.is(at + 2, "IGNORE") && tokens.is_symbol(at + 3, ")") {
            return Ok((" (NULL) ", at + 4));
        }
        if tokens.is(at + 2, "ABORT") && tokens.is_symbol(at + 3, ",") {
            return Ok((" (", at + 4)); // up to the closing parenthesis there is the message
        }
        let error = match tokens.is(at + 2, "FAIL") || tokens.is(at + 2, "ROLLBACK") {
            true => SqlError::unsupported(format!("RAISE({}, …) is not supported", tokens.str(at + 2)))
                .hint("RAISE(ABORT, …) undoes the whole request"),
            false => SqlError::syntax("RAISE(IGNORE) or RAISE(ABORT, 'message') was expected here"),
        };
        Err(self.at(error, at))
    }
}

/// The number of the parameter that stands for a column of the trigger's row.
fn slot_of(
    slots: &mut BTreeMap<(String, String), usize>,
    keys: &mut Vec<bool>,
    named: (String, String),
    is_key: bool,
) -> usize {
    let next = slots.len();
    let slot = *slots.entry(named).or_insert(next);
    if slot == next {
        keys.push(is_key);
    }
    slot + 1
}

fn made_up(key_type: KeyType, number: i64) -> Value {
    match key_type {
        KeyType::Integer => Value::Integer(number),
        KeyType::Text | KeyType::Uuid => Value::Text(format!("made up {number}")),
        KeyType::Bytes => Value::Blob(format!("made up {number}").into_bytes()),
    }
}

/// An error of a statement, whose text is not the one that the user wrote.
fn inside(error: SqlError) -> SqlError {
    let message = format!("in the trigger: {}", error.message);
    SqlError { message, position: None, ..error }
}

fn rowid() -> SqlError {
    SqlError::unsupported("rowid names a row only within one shard").hint("use the primary key's columns instead")
}

fn no_ids(table: &str) -> SqlError {
    SqlError::unsupported(format!("a row for {table} would get its id from Pleat, and a trigger can't ask for one"))
        .hint(format!("give {table} a primary key of columns that the trigger can fill"))
}

fn no_reference(table: &Table) -> SqlError {
    SqlError::unsupported(format!(
        "a trigger of {} can't write to a reference table: that one is written on all shards",
        table.name
    ))
    .hint("write to a table that is sharded alike; reference tables can be read")
}
