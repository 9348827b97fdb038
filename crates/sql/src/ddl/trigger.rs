//! CREATE TRIGGER and DROP TRIGGER.
//!
//! A trigger runs in the statement that fires it, on the shard of the row that it fires for. So it is taken if all that it does
//! stays there, which `body` finds out, and refused otherwise. Beside that:
//!
//! - *Not on reference tables*: a write to one reaches each shard in its turn, and one shard could have the trigger by then and
//!   another one not yet.
//! - *No REPLACE where a DELETE trigger is*: `recursive_triggers` is on in shards and off in SQLite by itself. The other thing
//!   that it changes, whether a trigger fires inside itself, is taken back by a guard (see `pleat_cluster::Trigger`).
//! - *No INSTEAD OF* (shards know no views), nothing temporary.
//!
//! What a table's triggers mean for writes to it is in `write::triggers`.

use std::collections::BTreeSet;

use pleat_cluster::{
    DdlEffect, Retold, Table, TableId, TableKind, Tables, Trigger, TriggerEvent, TriggerState, newest_trigger, reached,
    trigger_about, trigger_named, trigger_naming,
};

use super::body::{Body, Home};
use super::rules::Rules;
use super::{DdlAction, DdlPlan, Reader, nothing};
use crate::clauses::Span;
use crate::error::{Code, SqlError};
use crate::lex::{Kind, Tokens, quote};
use crate::scope::unknown_table;
use crate::statement::Schema;

/// What is read of a definition before its body.
struct Head {
    before: bool,
    event: TriggerEvent,
    /// `UPDATE OF` these.
    columns: Vec<String>,
    when: Option<Span>,
}

impl Reader<'_> {
    pub(super) fn create_trigger(&mut self, schema: &Schema<'_>) -> Result<DdlPlan, SqlError> {
        let quietly = self.accept(&["IF", "NOT", "EXISTS"]);
        let name = self.name("the new trigger's name")?;
        let name_at = self.at - 1;
        if trigger_named(self.tables, &name).is_some() {
            return super::exists(&name, "trigger", quietly)
                .map_err(|error| error.at(self.tokens.text, self.tokens.offset(name_at)));
        }
        let before = self.timing()?;
        let event = self.event()?;
        let columns = self.update_of(event)?;
        if !self.accept(&["ON"]) {
            return Err(self.expected("ON and a table"));
        }
        let table = self.trigger_table()?.clone();
        let unknown = |column: &&String| table.column(column).is_none();
        if let Some(column) = columns.iter().find(unknown) {
            return Err(SqlError::new(Code::UnknownColumn, format!("table {} has no column {column}", table.name)));
        }
        self.accept(&["FOR", "EACH", "ROW"]);
        let (when, statements) = self.body()?;
        if let Some(at) = (name_at..self.end).find(|at| self.tokens.kind(*at) == Some(Kind::Parameter)) {
            return Err(SqlError::syntax("parameters are not allowed in triggers")
                .hint("write the value into the trigger")
                .at(self.tokens.text, self.tokens.offset(at)));
        }
        let head = Head { before, event, columns, when };
        self.planned(schema, table, (name, name_at), &head, &statements)
    }

    fn planned(
        &self,
        schema: &Schema<'_>,
        table: Table,
        (name, name_at): (String, usize),
        head: &Head,
        statements: &[Span],
    ) -> Result<DdlPlan, SqlError> {
        let home = Home::of(&table, head.before && head.event == TriggerEvent::Insert)?;
        let mut body = Body::new(self.tokens, *schema, home);
        if let Some(when) = head.when {
            body.condition(when)?;
        }
        statements.iter().try_for_each(|statement| body.statement(*statement))?;
        let (writes, reads) = body.tables();
        // The catalog gives it a number, and says since when it is there.
        let (id, state, event, since) = (0, TriggerState::Coming, head.event, 0);
        let sql = format!("CREATE TRIGGER {}", self.tokens.slice(name_at, self.end));
        let on_shards = guarded(&sql, &name)?;
        let trigger = Trigger { id, name, event, sql, on_shards, writes, reads, state, since };
        if event == TriggerEvent::Delete {
            check_replace(self.tables, &table)?;
        }
        let named = |other: &&Table| other.id == table.id || trigger.names(other.id);
        let about = self.tables.values().filter(named).cloned().collect();
        let try_out = firing(&table, head);
        Ok(DdlPlan {
            table: table.name.clone(),
            statements: vec![trigger.on_shards.clone(), try_out],
            action: DdlAction::CreateTrigger { trigger, about, seen: newest_trigger(self.tables) },
            notice: None,
            rules: Rules::default(),
            before: None,
        })
    }

    /// Whether it is BEFORE (which is what SQLite takes when nothing is said).
    fn timing(&mut self) -> Result<bool, SqlError> {
        if self.tokens.are(self.at, &["INSTEAD", "OF"]) {
            return Err(self.error_here(
                SqlError::unsupported(
                    "INSTEAD OF triggers are not supported: shards know no views, which they are for",
                )
                .hint("write to the tables that the view reads"),
            ));
        }
        let after = self.accept(&["AFTER"]);
        if !after {
            self.accept(&["BEFORE"]);
        }
        Ok(!after)
    }

    fn event(&mut self) -> Result<TriggerEvent, SqlError> {
        if self.accept(&["INSERT"]) {
            Ok(TriggerEvent::Insert)
        } else if self.accept(&["UPDATE"]) {
            Ok(TriggerEvent::Update)
        } else if self.accept(&["DELETE"]) {
            Ok(TriggerEvent::Delete)
        } else {
            Err(self.expected("INSERT, UPDATE or DELETE"))
        }
    }

    fn update_of(&mut self, event: TriggerEvent) -> Result<Vec<String>, SqlError> {
        let mut columns = Vec::new();
        if event != TriggerEvent::Update || !self.accept(&["OF"]) {
            return Ok(columns);
        }
        loop {
            columns.push(self.plain_name("a column's name")?);
            if self.at >= self.end || !self.tokens.is_symbol(self.at, ",") {
                return Ok(columns);
            }
            self.at += 1;
        }
    }

    fn trigger_table(&mut self) -> Result<&Table, SqlError> {
        let at = self.at;
        let name = self.name("a table's name")?;
        self.no_view(&name, "triggers are for tables")?;
        let found = self.tables.get(&name.to_ascii_lowercase());
        found.ok_or_else(|| unknown_table(&name).at(self.tokens.text, self.tokens.offset(at)))
    }

    /// The condition of WHEN, and the statements between BEGIN and END.
    fn body(&mut self) -> Result<(Option<Span>, Vec<Span>), SqlError> {
        let Some(begin) = begin_of(self.tokens, self.at, self.end) else {
            self.at = self.end;
            return Err(self.expected("BEGIN and the trigger's statements"));
        };
        let when = if self.accept(&["WHEN"]) { Some((self.at, begin)) } else { None };
        if when.is_none() && self.at < begin {
            return Err(self.expected("WHEN or BEGIN"));
        }
        self.at = self.end;
        if !self.tokens.is(self.end - 1, "END") || !self.tokens.is_symbol(self.end - 2, ";") {
            return Err(self.expected("; END"));
        }
        let mut statements = Vec::new();
        let mut start = begin + 1;
        for end in (begin + 1..self.end - 1).filter(|at| self.tokens.is_symbol(*at, ";")) {
            statements.push((start, end));
            start = end + 1;
        }
        match statements.iter().any(|(from, to)| from == to) || statements.is_empty() {
            true => Err(self.expected("at least one statement, and none that is empty,")),
            false => Ok((when, statements)),
        }
    }

    pub(super) fn drop_trigger(&mut self) -> Result<DdlPlan, SqlError> {
        let quietly = self.accept(&["IF", "EXISTS"]);
        let at = self.at;
        let name = self.name("a trigger's name")?;
        self.end_here()?;
        let Some((table, trigger)) = trigger_named(self.tables, &name) else {
            return match quietly {
                true => Ok(nothing(&name, format!("{name} does not exist: nothing to drop"))),
                false => Err(SqlError::new(Code::UnknownObject, format!("no such trigger: {name}"))
                    .hint("GET /tables (or \\d TABLE in the shell) lists the triggers of each table")
                    .at(self.tokens.text, self.tokens.offset(at))),
            };
        };
        Ok(DdlPlan {
            table: table.name.clone(),
            action: DdlAction::DropTrigger { trigger: trigger.name.clone() },
            statements: vec![format!("DROP TRIGGER {}", quote(&trigger.name))],
            notice: None,
            rules: Rules::default(),
            before: None,
        })
    }

    /// Refuses a change of a table that triggers name; `what` would be done to it.
    pub(super) fn no_trigger_about(&self, table: &Table, what: &str) -> Result<(), SqlError> {
        trigger_about(self.tables, &table.name).map_or(Ok(()), |(of, trigger)| Err(named(table, of, trigger, what)))
    }

    /// Refuses to drop a table that triggers of others name.
    pub(super) fn no_trigger_naming(&self, table: &Table) -> Result<(), SqlError> {
        trigger_naming(self.tables, table.id).map_or(Ok(()), |(of, trigger)| Err(named(table, of, trigger, "dropped")))
    }
}

fn named(table: &Table, of: &Table, trigger: &Trigger, what: &str) -> SqlError {
    let whose = if of.id == table.id {
        format!("it has trigger {}", trigger.name)
    } else {
        format!("trigger {} of table {} names it", trigger.name, of.name)
    };
    SqlError::unsupported(format!("nothing of {} is {what} while {whose}", table.name))
        .hint(format!("DROP TRIGGER {} first, and CREATE it anew afterwards", quote(&trigger.name)))
}

/// What shards run in the place of a trigger, so that it does not fire inside itself; see `pleat_cluster::Trigger`.
fn guarded(sql: &str, name: &str) -> Result<String, SqlError> {
    let tokens = Tokens::of(sql)?;
    let end = tokens.len() - 1;
    let begin = begin_of(&tokens, 0, end).unwrap_or(end);
    let when = (0..begin).find(|at| tokens.is(*at, "WHEN"));
    let declaration = tokens.slice(0, when.unwrap_or(begin));
    let condition = when.map_or("1", |when| tokens.slice(when + 1, begin));
    let firing = format!("pleat_firing('{}'", name.replace('\'', "''"));
    let mut guarded =
        format!("{declaration} WHEN CASE WHEN {firing}) THEN 0 WHEN ({condition}) THEN {firing}, 1) END BEGIN");
    let ignores = |at: &usize| tokens.is(*at, "RAISE") && tokens.is_symbol(at + 1, "(") && tokens.is(at + 2, "IGNORE");
    let mut at = begin + 1;
    while let Some(raise) = (at..end).find(ignores) {
        guarded.push_str(&format!(" {} CASE WHEN {firing}, 0) THEN RAISE(IGNORE) END", tokens.slice(at, raise)));
        at = raise + 4;
    }
    guarded.push_str(&format!(" {} SELECT {firing}, 0); END", tokens.slice(at, end)));
    Ok(guarded)
}

/// Where the body begins.
fn begin_of(tokens: &Tokens, from: usize, to: usize) -> Option<usize> {
    (from..to).find(|at| tokens.is(*at, "BEGIN") && !tokens.is_symbol(at.wrapping_sub(1), "."))
}

/// A trigger that SQLite wrote anew, with what shards run for it.
pub(super) fn retell(retold: Retold) -> Result<Retold, SqlError> {
    let on_shards = guarded(&retold.after.sql, &retold.after.name)?;
    Ok(Retold { after: Trigger { on_shards, ..retold.after }, ..retold })
}

/// Where REPLACE deletes rows of a table, its DELETE triggers would fire in shards, and not in SQLite by itself.
fn check_replace(tables: &Tables, table: &Table) -> Result<(), SqlError> {
    let refused = |why: String| {
        Err(SqlError::unsupported(format!("a DELETE trigger on {}, {why}", table.name))
            .hint("use an upsert (ON CONFLICT … DO UPDATE) instead of REPLACE"))
    };
    if replaces(&table.create_sql) {
        return refused("whose constraints say ON CONFLICT REPLACE".to_owned());
    }
    let replaced = |trigger: &&Trigger| {
        let reaches =
            |id: TableId| trigger.writes.contains(&id) || reached(tables, trigger.writes.iter().copied()).contains(&id);
        replaces(&trigger.sql) && reaches(table.id)
    };
    match tables.values().flat_map(|table| &table.triggers).find(replaced) {
        Some(trigger) => refused(format!("whose rows trigger {} may replace", trigger.name)),
        None => Ok(()),
    }
}

/// Whether a definition says REPLACE where it is no function.
fn replaces(sql: &str) -> bool {
    let Ok(tokens) = Tokens::of(sql) else { return true };
    (0..tokens.len()).any(|at| tokens.is(at, "REPLACE") && !tokens.is_symbol(at + 1, "("))
}

/// A statement that would fire the trigger. SQLite compiles the trigger with it, and says what is wrong in there.
fn firing(table: &Table, head: &Head) -> String {
    let name = quote(&table.name);
    match head.event {
        TriggerEvent::Insert => format!("EXPLAIN INSERT INTO {name} DEFAULT VALUES"),
        TriggerEvent::Delete => format!("EXPLAIN DELETE FROM {name}"),
        TriggerEvent::Update => {
            let stored = || table.columns.iter().find(|column| !column.generated).map(|column| column.name.clone());
            let set = head.columns.first().cloned().or_else(stored).map_or_else(String::new, |column| quote(&column));
            format!("EXPLAIN UPDATE {name} SET {set} = {set}")
        }
    }
}

impl DdlPlan {
    /// What creating or dropping a trigger does to the catalog.
    pub(super) fn trigger_effect(&self) -> Option<DdlEffect> {
        let table = self.table.clone();
        match &self.action {
            DdlAction::CreateTrigger { trigger, about, seen } => {
                let (trigger, about) = (trigger.clone(), about.clone());
                Some(DdlEffect::CreateTrigger { table, trigger, about, seen: *seen })
            }
            DdlAction::DropTrigger { trigger } => Some(DdlEffect::DropTrigger { table, trigger: trigger.clone() }),
            _ => None,
        }
    }
}

/// The ids of tables by their lower-case names.
pub(super) fn ids<'n>(tables: &Tables, names: impl Iterator<Item = &'n String>) -> BTreeSet<TableId> {
    names.filter_map(|name| tables.get(name)).map(|table| table.id).collect()
}

impl Home {
    /// Where rows of `table` live; `early`: a BEFORE INSERT trigger, for which a row's id is not known yet.
    fn of(table: &Table, early: bool) -> Result<Home, SqlError> {
        if table.kind == TableKind::Reference {
            return Err(SqlError::unsupported(format!(
                "triggers on the reference table {} are not supported: its writes reach the shards one after the other, \
                 some of them maybe before the trigger",
                table.name
            ))
            .hint("do the work in the same request, or shard the table"));
        }
        Ok(Home { table: table.clone(), early })
    }
}
