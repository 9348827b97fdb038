//! Composing the read and the writes of a computed write, out of the user's own words.
//!
//! ```text
//! UPDATE t AS x SET a = E FROM f WHERE w RETURNING r
//!     read   SELECT x.pk, x.key, E FROM t AS x, f WHERE w
//!     write  UPDATE t SET a = ?3 WHERE pk = ?1 AND key = ?2 RETURNING r
//! DELETE FROM t AS x WHERE w RETURNING r
//!     read   SELECT x.pk, x.key FROM t AS x WHERE w
//!     write  DELETE FROM t WHERE pk = ?1 AND key = ?2 RETURNING r
//! INSERT INTO t (a, b) SELECT … ON CONFLICT … RETURNING r
//!     read   SELECT …
//!     write  INSERT INTO t (a, b) VALUES (?1, ?2) ON CONFLICT … RETURNING r
//! ```
//!
//! When the shard key is set, the read gives the whole new row beside the old keys, and there are three statements:
//! UPDATE for rows whose key stays, DELETE and INSERT for the others. A WITH before the write goes before the read.

use std::sync::Arc;

use pleat_cluster::Table;
use sqlparser::ast::Statement as Ast;

use super::change::TARGET;
use super::compose::Composer;
use super::computed::{ComputedPlan, Id, Owner, Recipe, Step};
use super::ids::{id_column, may_be_given};
use super::rows::KeyColumn;
use super::set::SetValue;
use super::statement::{Draft, late_reads, single_unit};
use crate::clauses::Span;
use crate::error::SqlError;
use crate::lex::{Tokens, quote};
use crate::params::Slots;
use crate::parse;
use crate::read::{ReadPlan, Template, plan_read};
use crate::scope::Analysis;

/// What happens to the rows that are found.
pub(super) enum Change {
    Delete,
    Update(Vec<SetValue>),
    /// An UPDATE that sets the shard key.
    Move(Vec<SetValue>),
}

/// The places of values in the rows that are read.
struct Layout {
    base: usize,
    /// The primary key's columns, then the shard key if it is none of them.
    identity: Vec<String>,
    /// The columns that are set, or of the whole new row; behind the identity.
    values: Vec<String>,
}

impl Layout {
    fn slot(&self, column: &str, new: bool) -> usize {
        self.base + self.place(column, new)
    }

    fn place(&self, column: &str, new: bool) -> usize {
        let (list, start) = if new { (&self.values, self.identity.len()) } else { (&self.identity, 0) };
        start + list.iter().position(|name| name.eq_ignore_ascii_case(column)).unwrap_or(0)
    }

    /// ` WHERE pk = ? AND key = ?`
    fn filter(&self, composer: &mut Composer) {
        composer.text("WHERE");
        for (at, column) in self.identity.iter().enumerate() {
            composer
                .text(if at > 0 { "AND" } else { "" })
                .text(&quote(column))
                .text("=")
                .slot(self.slot(column, false));
        }
    }

    fn set<'c>(&self, composer: &mut Composer, columns: impl Iterator<Item = &'c String>) {
        composer.text("SET").list(columns, |composer, column| {
            composer.text(&quote(column)).text("=").slot(self.slot(column, true));
        });
    }
}

/// The recipe of an UPDATE or DELETE.
pub(super) fn read_change(draft: &Draft, table: &Table, change: Change) -> Result<ComputedPlan, SqlError> {
    let owner = owner(table)?;
    check_with(draft, table)?;
    if table.primary_key.is_empty() {
        return Err(SqlError::unsupported(format!("{} has no primary key to write its rows by", table.name))
            .hint("give the table a primary key, or read the rows first and send them as values"));
    }
    let key = table.shard_key().map(|(key, _)| key.to_owned());
    let mut identity = table.primary_key.clone();
    identity.extend(key.clone().filter(|key| !identity.iter().any(|name| name.eq_ignore_ascii_case(key))));
    let (values, sets) = match &change {
        Change::Delete => (Vec::new(), [].as_slice()),
        Change::Update(sets) => (sets.iter().map(|set| set.column.clone()).collect(), sets.as_slice()),
        Change::Move(sets) => {
            let stored = table.columns.iter().filter(|column| !column.generated);
            (stored.map(|column| column.name.clone()).collect(), sets.as_slice())
        }
    };
    let layout = Layout { base: draft.analysis.slots.count(), identity, values };
    let read = rows_to_change(draft, table, &layout, sets)?;
    let key_place = key.as_ref().map_or(0, |key| layout.place(key, false));
    let step = match &change {
        Change::Delete => Step::Change { statement: delete(draft, table, &layout, true), key: key_place },
        Change::Update(_) => Step::Change { statement: update(draft, table, &layout, sets), key: key_place },
        Change::Move(_) => Step::Move {
            update: update(draft, table, &layout, sets),
            delete: delete(draft, table, &layout, false),
            insert: insert(draft, table, &layout),
            old: key_place,
            new: key.as_ref().map_or(0, |key| layout.place(key, true)),
        },
    };
    finish(draft, table, owner, read, layout.identity.len(), step)
}

/// The recipe of an INSERT.
pub(super) fn read_rows(draft: &Draft, table: &Table, columns: &[String]) -> Result<ComputedPlan, SqlError> {
    let owner = owner(table)?;
    check_with(draft, table)?;
    let shape = &draft.shape;
    let mut read = Composer::default();
    if let Some(with) = shape.with() {
        draft.words(&mut read, with);
    }
    if shape.with().is_some() && draft.analysis.tokens.is(shape.source.0, "WITH") {
        read.text("SELECT * FROM (");
        draft.words(&mut read, shape.source);
        read.text(")");
    } else {
        draft.words(&mut read, shape.source);
    }
    let place = |name: &str| columns.iter().position(|column| column.eq_ignore_ascii_case(name));
    let id = id_column(table).map(|column| Id {
        column: column.to_owned(),
        place: place(column).unwrap_or(columns.len()),
        may_be_given: may_be_given(table),
    });
    let base = draft.analysis.slots.count();
    let mut statement = Composer::default();
    let end = shape.columns.map_or(shape.source.0, |columns| columns.0 - 1);
    draft.words(&mut statement, (shape.verb, end));
    let added = id.as_ref().filter(|id| id.place == columns.len()).map(|id| &id.column);
    let all: Vec<&String> = columns.iter().chain(added).collect();
    statement.text("(").list(&all, |composer, column| {
        composer.text(&quote(column));
    });
    statement.text(")").text("VALUES").text("(").list(0..all.len(), |composer, at| {
        composer.slot(base + at);
    });
    statement.text(")");
    draft.words(&mut statement, (shape.upsert.0, shape.span.1));
    let key = table.shard_key().map_or(Some(0), |(key, _)| {
        place(key).or_else(|| id.as_ref().filter(|id| id.column.eq_ignore_ascii_case(key)).map(|id| id.place))
    });
    let key = key.ok_or_else(|| super::several_shards(&table.name))?;
    let step = Step::Insert { statement: statement.template(), width: columns.len(), key, id };
    finish(draft, table, owner, read.template(), 0, step)
}

fn owner(table: &Table) -> Result<Owner, SqlError> {
    match (KeyColumn::of(table), single_unit(table)) {
        (Some(key), _) => Ok(Owner::Key(key)),
        (None, Some(unit)) => Ok(Owner::Single(unit)),
        (None, None) => Err(super::several_shards(&table.name)),
    }
}

/// The WITH goes to the read, so that what is written can't use it.
fn check_with(draft: &Draft, table: &Table) -> Result<(), SqlError> {
    let late = draft.shape.upsert.0.min(draft.shape.returning.0)..draft.shape.span.1;
    let selects = late.into_iter().any(|index| draft.analysis.tokens.is(index, "SELECT"));
    match selects && draft.shape.with().is_some() {
        true => Err(late_reads(table, "ON CONFLICT or RETURNING")),
        false => Ok(()),
    }
}

fn finish(
    draft: &Draft,
    table: &Table,
    owner: Owner,
    read: Template,
    identity: usize,
    step: Step,
) -> Result<ComputedPlan, SqlError> {
    let returning = draft.shape.returning;
    let nothing = (returning.0 < returning.1).then(|| {
        let mut nothing = Composer::default();
        nothing.text("DELETE FROM").text(&quote(&table.name)).text("WHERE 0");
        draft.words(&mut nothing, returning);
        nothing.template()
    });
    Ok(ComputedPlan(Arc::new(Recipe {
        read: plan(draft, &read.sql)?,
        read_slots: read.slots,
        table: table.id,
        name: table.name.clone(),
        owner,
        base: draft.analysis.slots.count(),
        identity,
        step,
        nothing,
    })))
}

/// Plans a SELECT that Pleat composed.
fn plan(draft: &Draft, text: &str) -> Result<ReadPlan, SqlError> {
    let tokens = Tokens::of(text)?;
    let slots = Slots::of(&tokens)?;
    let span: Span = (0, tokens.len());
    let Ast::Query(query) = parse::statement(&tokens, &slots, span.0, span.1)? else {
        return Err(SqlError::syntax("the rows to write could not be read by a SELECT"));
    };
    plan_read(Analysis::new(draft.analysis.schema, &tokens, &slots), &query, span)
}

fn rows_to_change(draft: &Draft, table: &Table, layout: &Layout, sets: &[SetValue]) -> Result<Template, SqlError> {
    let alias = &draft.analysis.occurrences[TARGET].alias;
    let column = |composer: &mut Composer, name: &str| {
        composer.text(&format!("{}.{}", quote(alias), quote(name)));
    };
    let mut read = Composer::default();
    if let Some(with) = draft.shape.with() {
        draft.words(&mut read, with);
    }
    read.text("SELECT").list(&layout.identity, |composer, name| column(composer, name));
    for name in &layout.values {
        read.text(",");
        match sets.iter().find(|set| set.column == *name) {
            Some(set) => {
                read.snippet(&set.value);
            }
            None => column(&mut read, name),
        }
    }
    read.text("FROM").text(&quote(&table.name));
    if !alias.eq_ignore_ascii_case(&table.name) {
        read.text("AS").text(&quote(alias));
    }
    if let Some(from) = draft.shape.from {
        let bound_together = is_bound_together(draft, from)?;
        read.text(",").text(if bound_together { "(" } else { "" });
        draft.words(&mut read, from);
        read.text(if bound_together { ")" } else { "" });
    }
    if let Some(filter) = draft.shape.filter {
        read.text("WHERE");
        draft.words(&mut read, filter);
    }
    Ok(read.template())
}

/// Whether the sources of a FROM would mean something else behind the written table and a comma.
fn is_bound_together(draft: &Draft, from: Span) -> Result<bool, SqlError> {
    let tokens = draft.analysis.tokens;
    let word = |index: usize| ["NATURAL", "USING", "RIGHT", "FULL"].iter().any(|word| tokens.is(index, word));
    let binds = (from.0..from.1).any(word);
    match binds && crate::clauses::list(tokens, from).len() > 1 {
        true => Err(SqlError::unsupported("an UPDATE … FROM with commas beside NATURAL, USING, RIGHT or FULL joins")
            .hint("write JOIN … ON … instead of commas")),
        false => Ok(binds),
    }
}

fn update(draft: &Draft, table: &Table, layout: &Layout, sets: &[SetValue]) -> Template {
    let mut statement = Composer::default();
    draft.words(&mut statement, draft.shape.head);
    statement.text(&quote(&table.name));
    layout.set(&mut statement, sets.iter().map(|set| &set.column));
    layout.filter(&mut statement);
    draft.words(&mut statement, draft.shape.returning);
    statement.template()
}

fn delete(draft: &Draft, table: &Table, layout: &Layout, returning: bool) -> Template {
    let mut statement = Composer::default();
    statement.text("DELETE FROM").text(&quote(&table.name));
    layout.filter(&mut statement);
    if returning {
        draft.words(&mut statement, draft.shape.returning);
    }
    statement.template()
}

/// The whole new row, as the UPDATE would leave it.
fn insert(draft: &Draft, table: &Table, layout: &Layout) -> Template {
    let mut statement = Composer::default();
    let abort =
        if draft.analysis.tokens.is(draft.shape.verb + 1, "OR") { "INSERT OR ABORT INTO" } else { "INSERT INTO" };
    statement.text(abort).text(&quote(&table.name)).text("(").list(&layout.values, |composer, column| {
        composer.text(&quote(column));
    });
    statement.text(")").text("VALUES").text("(").list(&layout.values, |composer, column| {
        composer.slot(layout.slot(column, true));
    });
    statement.text(")");
    draft.words(&mut statement, draft.shape.returning);
    statement.template()
}
