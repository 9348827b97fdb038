//! Statements for a shard that holds rows which it doesn't own: half copies where they are moved to, leftovers where they came from.
//!
//! Such rows must be neither seen nor changed. So a statement that isn't limited by keys to partitions that its shard owns gets a condition on
//! the partition of each row:
//!
//! - in WHERE, where that filters just as well: for a source of inner joins, the preserved side of a LEFT JOIN, and the table that is
//!   changed. Whole rows, system columns, FOR UPDATE and GROUP BY a primary key stay what they are.
//! - else, where an outer join gives NULLs in place of a missing row, the table becomes `(SELECT * FROM t WHERE …) AS t`.
//!
//! A table whose rows matter only with keys of another's rows needs no condition of its own: a LEFT JOIN by the key, or a correlated subquery, costs
//! one condition, not two.
//!
//! The client's text is only ever added to. What comes of it is parsed, and has to be the tree that the same change makes of the
//! statement's tree: a condition that landed anywhere else is noticed.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::ControlFlow;

use pleat_cluster::{KeyType, PartitionId, partition_in_postgres};
use sqlparser::ast::{BinaryOperator, Expr, FromTable, Select, SetExpr, Statement, TableFactor, VisitMut, VisitorMut};

use super::analysis::{Analysis, Mention};
use super::clauses::Span;
use super::compose::quote;
use super::lex::Tokens;
use super::parse::{self, token_of};
use super::plan::{Direction, Part};
use super::statement::{self, Reader};
use super::{copy, ddl, query, views};
use crate::Schema;
use crate::error::{Code, SqlError};

/// What a shard holds without owning it.
#[derive(Clone, Copy, Debug)]
pub struct Screen<'a> {
    pub schema: Schema<'a>,
    /// The partitions whose rows may be there without being the shard's.
    pub absent: &'a BTreeSet<PartitionId>,
    pub partition_count: u32,
}

impl Screen<'_> {
    /// A statement of [`prepare`](super::prepare) with its conditions: a query, EXPLAIN or DECLARE CURSOR of one, COPY TO, CREATE TEMP TABLE … AS. Parameters keep
    /// their numbers. Others don't read or change single rows, and come back as they are (TRUNCATE is of all rows, whosever they are).
    ///
    /// The error is [`Code::RowsMoving`]: the statement is fine, but not while such rows are there.
    pub fn statement<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, SqlError> {
        if self.absent.is_empty() {
            return Ok(Cow::Borrowed(text));
        }
        let tokens = Tokens::of(text)?;
        let to = tokens.len();
        let reader = Reader { tokens: &tokens, schema: self.schema };
        let is = |words: &[&str]| words.iter().any(|word| tokens.is(0, word));
        let query = match () {
            () if is(&["SELECT", "VALUES", "WITH", "TABLE", "INSERT", "UPDATE", "DELETE"]) => Some((0, to)),
            () if tokens.is_symbol(0, "(") => Some((0, to)),
            () if is(&["EXPLAIN"]) => Some((query::explained(&tokens, 0, to).0, to)),
            () if is(&["DECLARE"]) => statement::declared(&tokens, 1, to).map(|start| (start, to)),
            () if is(&["CREATE"]) && (1..5).any(|at| tokens.is(at, "TABLE")) => ddl::query_of(&tokens, 1, to),
            () if is(&["COPY"]) && tokens.is_symbol(1, "(") => Some((2, tokens.closing(1))),
            () => None,
        };
        let screened = match query.filter(|(from, to)| from < to) {
            Some(span) => self.query(&reader, span)?,
            None if is(&["COPY"]) => self.copy(&reader)?,
            None => None,
        };
        Ok(screened.map_or(Cow::Borrowed(text), Cow::Owned))
    }

    /// A part of a statement with its conditions.
    pub fn part(&self, part: &Part) -> Result<Part, SqlError> {
        Ok(match self.statement(&part.text)? {
            Cow::Borrowed(_) => part.clone(),
            Cow::Owned(text) => Part { text: text.into(), params: part.params.clone() },
        })
    }

    /// `COPY t TO` becomes a COPY of a query. `None`: it needs no condition.
    fn copy(&self, reader: &Reader) -> Result<Option<String>, SqlError> {
        let copy = copy::plan(reader, 0, reader.tokens.len())?;
        let table = copy.table.as_ref().and_then(|key| self.schema.tables.get(key));
        let table =
            table.filter(|_| copy.direction == Direction::Out).and_then(|table| Some((table, table.shard_key()?)));
        let Some((table, (key, key_type))) = table else { return Ok(None) };
        let all = table.columns.iter().filter(|column| !column.generated).map(|column| quote(&column.name));
        let columns: Vec<String> = match copy.columns.as_slice() {
            [] => all.collect(),
            named => named.iter().map(|name| quote(name)).collect(),
        };
        let name = &copy.name_as_written;
        let owned = self.owned(&format!("{name}.{}", quote(key)), key_type);
        let columns = columns.join(", ");
        Ok(Some(format!("COPY (SELECT {columns} FROM {name} WHERE {owned}) {}", copy.options_as_written)))
    }

    /// The condition that a row is of no absent partition.
    fn owned(&self, column: &str, key_type: KeyType) -> String {
        let mut list = String::new();
        for partition in self.absent {
            let comma = if list.is_empty() { "" } else { "," };
            let _ = write!(list, "{comma}{}", partition.0);
        }
        let partition = partition_in_postgres(column, key_type, self.partition_count);
        format!("NOT ({partition} = ANY ('{{{list}}}'::bigint[]))")
    }

    /// The text with conditions in the query that the tokens `span` spell. `None`: it needs none.
    fn query(&self, reader: &Reader, span: Span) -> Result<Option<String>, SqlError> {
        let tokens = reader.tokens;
        if let Some(query) = views::written_out(reader, span.0, span.1)? {
            let (before, behind) = (tokens.slice(0, span.0), &tokens.text[tokens.end(span.1 - 1)..]);
            let text = format!("{before} {query}{behind}");
            return Ok(Some(self.statement(&text)?.into_owned()));
        }
        let mut analysis = Analysis::new(reader.schema, tokens);
        let mut tree = match query::understood(&mut analysis, span) {
            Ok(tree) => tree,
            Err(error) => {
                let sharded =
                    query::named(reader, span.0, span.1).into_iter().find(|table| table.shard_key().is_some());
                return match sharded {
                    Some(table) => Err(refused(&table.name, &error.message)),
                    None if views::names_one(reader, span.0, span.1) => Err(refused("a view", &error.message)),
                    // What is not understood was let through for this reason.
                    None => Ok(None),
                };
            }
        };
        let changed = Changed::of(&mut tree);
        let screened = screened(&analysis, &changed);
        let Some(first) = screened.first() else { return Ok(None) };
        let table = analysis.mentions[*first].table.name.as_str();
        let mut change = Change { screen: self, tokens, span, insertions: Vec::new(), conditions: BTreeMap::new() };
        let mut wanted = Wanted::default();
        for at in screened {
            let mention = &analysis.mentions[at];
            let name = mention.tokens.ok_or_else(|| refused(table, "TABLE stands in place of a SELECT"))?;
            match clause_for(&analysis, at, &changed) {
                Some(word) => change.condition(word, mention, name),
                None => drop(wanted.sources.insert(name.0, change.source(mention, name)?)),
            }
        }
        let misplaced = || refused(table, "Pleat does not see where its conditions have to be");
        for (word, texts) in std::mem::take(&mut change.conditions) {
            let parsed = texts.iter().map(|text| condition(text)).collect::<Option<Vec<_>>>();
            wanted.conditions.insert(word, parsed.ok_or_else(misplaced)?);
            change.clause(word, &texts);
        }
        let _ = tree.visit(&mut wanted);
        if wanted.sampled {
            return Err(refused(table, "TABLESAMPLE takes rows that are moved, too"));
        }
        let text = change.text();
        let again = Tokens::of(&text)?;
        let end = again.len() - (tokens.len() - span.1);
        let same = parse::statement(&again, span.0, end).is_ok_and(|again| again == tree);
        if !same || !wanted.conditions.is_empty() || !wanted.sources.is_empty() {
            return Err(misplaced());
        }
        Ok(Some(text))
    }
}

fn refused(table: &str, why: &str) -> SqlError {
    SqlError::new(
        Code::RowsMoving,
        format!(
            "rows of {table} are being moved, and this statement can't be kept from those that aren't in place: {why}"
        ),
    )
    .hint(format!("try again when the move of rows of {table} has ended, or give the shard key of every sharded table"))
}

fn condition(text: &str) -> Option<Expr> {
    let tokens = Tokens::of(text).ok()?;
    parse::expression(&tokens, 0, tokens.len())
}

/// The mentions that need a condition: each other one is tied to one of them, or its rows are those that are inserted.
fn screened(analysis: &Analysis, changed: &Changed) -> Vec<usize> {
    let mentions = &analysis.mentions;
    let inserted = |at: usize| mentions[at].target && !changed.is(&mentions[at]);
    let sharded: Vec<usize> = (0..mentions.len()).filter(|at| mentions[*at].is_sharded()).collect();
    let mut found: Vec<usize> = sharded.iter().copied().filter(|at| changed.is(&mentions[*at])).collect();
    let mut rest: Vec<usize> = sharded.iter().copied().filter(|at| !mentions[*at].target).collect();
    // Those that a condition in WHERE will do for come first.
    rest.sort_by_key(|at| clause_for(analysis, *at, changed).is_none());
    for at in rest {
        let tied = |to: usize| to != at && analysis.tied(at, to);
        // One that this is tied to, but that isn't tied to this, limits this one whatever happens to it.
        let limited = |to: &usize| tied(*to) && (inserted(*to) || found.contains(to) || !analysis.tied(*to, at));
        if !sharded.iter().any(limited) {
            found.push(at);
        }
    }
    found
}

/// The SELECT, UPDATE or DELETE whose WHERE can have the condition on a mention: the token of its first word, or of the name of the table that it changes.
fn clause_for(analysis: &Analysis, at: usize, changed: &Changed) -> Option<usize> {
    let mention = &analysis.mentions[at];
    if changed.is(mention) {
        return mention.tokens.map(|(start, _)| start);
    }
    if mention.nullable || mention.renamed || analysis.scopes[mention.scope].odd {
        return None;
    }
    let target = || analysis.mentions.iter().find(|other| other.scope == mention.scope && changed.is(other));
    analysis.select_of(mention.scope).or_else(|| Some(target()?.tokens?.0))
}

/// The tables of UPDATE and DELETE, by the tokens of their names.
#[derive(Debug, Default)]
struct Changed(BTreeSet<usize>);

impl Changed {
    fn of(tree: &mut Statement) -> Changed {
        let mut changed = Changed::default();
        let _ = tree.visit(&mut changed);
        changed
    }

    fn is(&self, mention: &Mention) -> bool {
        mention.target && mention.tokens.is_some_and(|(start, _)| self.0.contains(&start))
    }
}

impl VisitorMut for Changed {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &mut Statement) -> ControlFlow<()> {
        self.0.extend(changed_by(statement).map(|(token, _)| token));
        ControlFlow::Continue(())
    }
}

/// The token of the name of the table that an UPDATE or DELETE changes, and its condition.
fn changed_by(statement: &mut Statement) -> Option<(usize, &mut Option<Expr>)> {
    let (relation, selection) = match statement {
        Statement::Update(update) => (&update.table.relation, &mut update.selection),
        Statement::Delete(delete) => match &delete.from {
            FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from) => {
                (&from.first()?.relation, &mut delete.selection)
            }
        },
        _ => return None,
    };
    Some((name_token(relation)?, selection))
}

fn name_token(factor: &TableFactor) -> Option<usize> {
    let TableFactor::Table { name, .. } = factor else { return None };
    token_of(name.0.first()?.as_ident()?.span)
}

/// What is put into the text.
struct Change<'a, 's, 't> {
    screen: &'a Screen<'s>,
    tokens: &'a Tokens<'t>,
    span: Span,
    /// Text, by where it goes.
    insertions: Vec<(usize, String)>,
    /// The conditions that clauses get, by their words.
    conditions: BTreeMap<usize, Vec<String>>,
}

impl Change<'_, '_, '_> {
    fn owned(&self, mention: &Mention, qualifier: &str) -> String {
        let key = mention.table.shard_key();
        key.map_or_else(String::new, |(key, of)| self.screen.owned(&format!("{qualifier}.{}", quote(key)), of))
    }

    fn condition(&mut self, word: usize, mention: &Mention, (start, end): Span) {
        let qualifier = match mention.has_alias {
            true => quote(&mention.alias),
            false => self.tokens.slice(start, end).to_owned(),
        };
        let condition = self.owned(mention, &qualifier);
        self.conditions.entry(word).or_default().push(condition);
    }

    /// Puts a SELECT around a table; gives what that is in the tree.
    fn source(&mut self, mention: &Mention, (start, end): Span) -> Result<TableFactor, SqlError> {
        let name = self.tokens.slice(start, end);
        let condition = self.owned(mention, name);
        let alias = if mention.has_alias { String::new() } else { format!(" AS {}", quote(&mention.alias)) };
        let text = format!("SELECT * FROM (SELECT * FROM {name} WHERE {condition}){alias}");
        self.insertions.push((self.tokens.start(start), "(SELECT * FROM ".to_owned()));
        self.insertions.push((self.tokens.end(end - 1), format!(" WHERE {condition}){alias}")));
        let tokens = Tokens::of(&text)?;
        let Statement::Query(query) = parse::statement(&tokens, 0, tokens.len())? else {
            return Err(refused(name, "its name is not understood"));
        };
        let found = match *query.body {
            SetExpr::Select(select) => select.from.into_iter().next(),
            _ => None,
        };
        found.map(|tree| tree.relation).ok_or_else(|| refused(name, "its name is not understood"))
    }

    /// Puts conditions into the WHERE of the clause at `word`.
    fn clause(&mut self, word: usize, conditions: &[String]) {
        let (found, end) = where_of(self.tokens, word, self.span.1);
        let conditions = conditions.join(" AND ");
        let end = self.tokens.end(end - 1);
        match found {
            Some(found) => {
                self.insertions.push((self.tokens.start(found + 1), "(".to_owned()));
                self.insertions.push((end, format!(") AND {conditions}")));
            }
            None => self.insertions.push((end, format!(" WHERE {conditions}"))),
        }
    }

    fn text(mut self) -> String {
        // At the same place what is around a table comes before the clause: it was put in first.
        self.insertions.sort_by_key(|(offset, _)| *offset);
        let (mut text, mut from) = (String::new(), 0);
        for (offset, inserted) in &self.insertions {
            text.push_str(&self.tokens.text[from..*offset]);
            text.push_str(inserted);
            from = *offset;
        }
        text.push_str(&self.tokens.text[from..]);
        text
    }
}

/// The word WHERE of the SELECT, UPDATE or DELETE that goes on behind `word`, and the token behind the last one that a WHERE could have.
fn where_of(tokens: &Tokens, word: usize, to: usize) -> (Option<usize>, usize) {
    const ENDS: [&str; 11] =
        ["GROUP", "HAVING", "WINDOW", "UNION", "INTERSECT", "EXCEPT", "ORDER", "LIMIT", "OFFSET", "FETCH", "RETURNING"];
    let (mut at, mut found) = (word + 1, None);
    while at < to {
        match tokens.opens(at) {
            1 => {
                at = tokens.closing(at) + 1;
                continue;
            }
            -1 => break,
            _ => {}
        }
        let named = tokens.is(at - 1, "AS") || tokens.is_symbol(at - 1, ".");
        let within = tokens.is(at - 1, "WITHIN");
        let ends = ENDS.iter().any(|end| tokens.is(at, end)) || tokens.is(at, "FOR") || conflicts(tokens, at);
        if !named && !within && ends {
            break;
        }
        if !named && found.is_none() && tokens.is(at, "WHERE") {
            found = Some(at);
        }
        at += 1;
    }
    (found, at.min(to))
}

/// Whether the ON CONFLICT of an INSERT is at `at`.
fn conflicts(tokens: &Tokens, at: usize) -> bool {
    let behind = at + 2;
    tokens.are(at, &["ON", "CONFLICT"])
        && (tokens.is_symbol(behind, "(") || tokens.is(behind, "DO") || tokens.is(behind, "ON"))
}

/// The same change of the tree. What is done is taken out.
#[derive(Debug, Default)]
struct Wanted {
    conditions: BTreeMap<usize, Vec<Expr>>,
    sources: BTreeMap<usize, TableFactor>,
    /// A table would become a SELECT that no sample can be taken of.
    sampled: bool,
}

impl Wanted {
    fn limit(&mut self, word: usize, selection: &mut Option<Expr>) {
        let Some(conditions) = self.conditions.remove(&word) else { return };
        let before = selection.take().map(|before| Expr::Nested(Box::new(before)));
        *selection = before.into_iter().chain(conditions).reduce(|left, right| Expr::BinaryOp {
            left: Box::new(left),
            op: BinaryOperator::And,
            right: Box::new(right),
        });
    }
}

// All on the way back, so that nothing that is put in is visited.
impl VisitorMut for Wanted {
    type Break = ();

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        if let Some(word) = token_of(select.select_token.0.span) {
            self.limit(word, &mut select.selection);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_statement(&mut self, statement: &mut Statement) -> ControlFlow<()> {
        if let Some((word, selection)) = changed_by(statement) {
            self.limit(word, selection);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let Some(mut derived) = name_token(factor).and_then(|token| self.sources.remove(&token)) else {
            return ControlFlow::Continue(());
        };
        if let (TableFactor::Table { alias, sample, .. }, TableFactor::Derived { alias: of_derived, .. }) =
            (&mut *factor, &mut derived)
        {
            self.sampled |= sample.is_some();
            if alias.is_some() {
                std::mem::swap(of_derived, alias);
            }
        }
        *factor = derived;
        ControlFlow::Continue(())
    }
}
