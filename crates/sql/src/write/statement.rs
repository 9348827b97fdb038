//! One write: what it mentions, and the ways to carry it out.

use std::collections::BTreeSet;
use std::ops::Range;

use pleat_cluster::{KeyType, PartitionId, ShardId, Table, TableKind, Value, concerns_others};
use sqlparser::ast::Statement as Ast;

use super::compose::Composer;
use super::computed::ComputedPlan;
use super::ids::RowIds;
use super::rows::RowsPlan;
use super::same::SamePlan;
use super::shape::Shape;
use super::spread::SpreadWrite;
use super::{change, insert, triggers};
use crate::clauses::{Output, Span};
use crate::error::SqlError;
use crate::lex::quote;
use crate::parse;
use crate::read::{Bound, Template, Units, partitions};
use crate::scope::Analysis;
use crate::tree::Constant;

/// A planned write.
#[derive(Clone, Debug)]
pub(crate) struct WriteStatement {
    whole: Template,
    /// The written table, as declared, and in lower case.
    pub table: String,
    pub target: String,
    pub reference: bool,
    /// The written table and those that its triggers and the actions of foreign keys may write; of a statement that is alone
    /// nobody asks for these.
    pub changes: BTreeSet<String>,
    /// A write to a reference table to which rows of other tables refer: each shard has to be asked, and may refuse.
    pub concerns_others: bool,
    /// Tables that are written or read; tables that are read.
    pub tables: BTreeSet<String>,
    pub reads: BTreeSet<String>,
    singles: Vec<(String, ShardId)>,
    /// The keys that matter of each sharded table that is read or changed; `None`: not known.
    mentions: Vec<(KeyType, Option<Vec<Constant>>)>,
    /// The rows of an `INSERT … VALUES` into a sharded table.
    rows: Option<RowsPlan>,
    spread: Result<SpreadPlan, SqlError>,
    pub must_spread: bool,
}

/// How a write is carried out over several shards.
#[derive(Clone, Debug)]
pub(super) enum SpreadPlan {
    /// As `rows` say.
    Rows,
    Same(SamePlan),
    Computed(ComputedPlan),
    /// A write to a reference table.
    Reference,
}

/// What reading a write's syntax tree found.
pub(super) struct Found<'a> {
    pub table: &'a Table,
    pub rows: Option<RowsPlan>,
    /// The keys of rows that are inserted from a SELECT.
    pub inserted: Option<(KeyType, Option<Vec<Constant>>)>,
    pub spread: Result<SpreadPlan, SqlError>,
    pub must_spread: bool,
}

/// A write that is being planned.
pub(super) struct Draft<'a> {
    pub analysis: Analysis<'a>,
    pub shape: Shape,
    /// The slot of the first id.
    pub id_base: usize,
}

/// Plans the INSERT, UPDATE or DELETE that `span` spells.
pub(super) fn plan(analysis: Analysis, span: Span, alone: bool, id_base: usize) -> Result<WriteStatement, SqlError> {
    let shape = Shape::of(analysis.tokens, span)?;
    let upserts = shape.upserts(analysis.tokens);
    let (tokens, slots) = (analysis.tokens, analysis.slots);
    let parse = |end: usize, rest: Span| {
        let [head, tail] = shape.parsed(end);
        parse::statement_of(tokens, slots, &[head, tail, rest])
    };
    let ast = match upserts.as_slice() {
        [] | [_] => parse(span.1, (span.1, span.1))?,
        [first, ..] => parse(first.1, shape.returning)?,
    };
    let more = upserts.iter().skip(1).map(|upsert| parse(shape.upsert.0, *upsert));
    let more: Vec<Ast> = more.collect::<Result<_, _>>()?;
    let mut draft = Draft { analysis, shape, id_base };
    let found = match &ast {
        Ast::Insert(insert) => {
            let others = more.iter().filter_map(|ast| if let Ast::Insert(insert) = ast { Some(insert) } else { None });
            let upserts: Vec<_> =
                std::iter::once(insert).chain(others).filter_map(|insert| insert.on.as_ref()).collect();
            insert::read(&mut draft, insert, &upserts)?
        }
        Ast::Update(update) => change::read_update(&mut draft, update)?,
        Ast::Delete(delete) => change::read_delete(&mut draft, delete)?,
        _ => return Err(SqlError::syntax("an INSERT, UPDATE or DELETE was expected")),
    };
    triggers::refuse_replace(tokens, &draft.shape, draft.analysis.tables, found.table)?;
    Ok(draft.finish(found, span, alone))
}

impl<'a> Draft<'a> {
    fn finish(self, found: Found, span: Span, alone: bool) -> WriteStatement {
        let analysis = &self.analysis;
        let target = found.table.name.to_ascii_lowercase();
        let reads: BTreeSet<String> = analysis.occurrences.iter().map(|occurrence| occurrence.table.clone()).collect();
        let mut tables = reads.clone();
        tables.insert(target.clone());
        let mut mentions: Vec<_> = (0..analysis.occurrences.len())
            .filter_map(|at| Some((analysis.key_type(at)?, analysis.occurrences[at].keys.clone())))
            .collect();
        mentions.extend(found.inserted);
        let single = |name: &String| match analysis.tables[name].kind {
            TableKind::Single { shard } => Some((name.clone(), shard)),
            TableKind::Sharded { .. } | TableKind::Reference => None,
        };
        WriteStatement {
            whole: self.whole(found.table, span, alone),
            table: found.table.name.clone(),
            target,
            reference: found.table.kind == TableKind::Reference,
            concerns_others: found.table.kind == TableKind::Reference
                && !found.table.only_gains(analysis.tokens.slice(span.0, span.1))
                && concerns_others(analysis.tables.values(), &found.table.name),
            changes: triggers::changes(analysis.tables, found.table, alone),
            singles: tables.iter().filter_map(single).collect(),
            tables,
            reads,
            mentions,
            rows: found.rows,
            spread: self.refuse_past().and(found.spread),
            must_spread: found.must_spread,
        }
    }

    /// The statement as it stands; but an INSERT into a reference table names its columns. It is run on each shard in its turn,
    /// and on one of them the table may have a column more by then.
    fn whole(&self, table: &Table, span: Span, alone: bool) -> Template {
        let (analysis, shape) = (&self.analysis, &self.shape);
        let inserts = shape.source.0 < shape.source.1 && !analysis.tokens.is(shape.source.0, "DEFAULT");
        if table.kind != TableKind::Reference || !inserts || shape.columns.is_some() {
            return Template::verbatim(analysis, span, alone);
        }
        let columns: Vec<String> =
            (table.columns.iter()).filter(|column| !column.generated).map(|column| quote(&column.name)).collect();
        let mut output = Output::default();
        output.span(analysis.tokens, analysis.slots, (span.0, shape.source.0));
        output.push(&format!(" ({})", columns.join(", ")));
        output.span(analysis.tokens, analysis.slots, (shape.source.0, span.1));
        output.into()
    }

    /// Reads the WITH before the write. Its names are then visible everywhere in it, except as the written table.
    pub fn with(&mut self, table: &str) -> Result<(), SqlError> {
        let Some(span) = self.shape.with() else { return Ok(()) };
        let with = parse::with_clause(self.analysis.tokens, self.analysis.slots, span.0, span.1)?;
        if with.cte_tables.iter().any(|cte| cte.alias.name.value.eq_ignore_ascii_case(table)) {
            return Err(SqlError::unsupported(format!("the CTE {table} has the name of the table that is written"))
                .hint("give the CTE another name"));
        }
        self.analysis.with(&with, None)
    }

    /// Appends the words of `span`.
    pub fn words(&self, composer: &mut Composer, span: Span) {
        composer.span(self.analysis.tokens, self.analysis.slots, span);
    }

    /// Whether the occurrences of `range` are of reference tables alone.
    pub fn only_references(&self, range: Range<usize>) -> bool {
        range.into_iter().all(|at| self.analysis.table(at).kind == TableKind::Reference)
    }

    /// Functions of the connection's own past, which is another one on each shard.
    fn refuse_past(&self) -> Result<(), SqlError> {
        let tokens = self.analysis.tokens;
        let asks = |index: &usize| {
            let past = ["changes", "total_changes", "last_insert_rowid"].iter().any(|name| tokens.is(*index, name));
            past && tokens.is_symbol(index + 1, "(")
        };
        match (self.shape.span.0..self.shape.span.1).find(asks) {
            None => Ok(()),
            Some(index) => {
                Err(SqlError::unsupported(format!("{}() in a write over several shards", tokens.str(index)))
                    .hint("read the value first (RETURNING gives ids), and send it as a parameter")
                    .at(tokens.text, tokens.offset(index)))
            }
        }
    }
}

/// RETURNING, or an upsert, that reads rows of other shards.
pub(super) fn late_reads(table: &Table, clause: &str) -> SqlError {
    SqlError::unsupported(format!("a subquery in the {clause} of a write to {} over several shards", table.name))
        .hint("there, subqueries can read reference tables; read other tables in a statement of its own")
}

impl WriteStatement {
    /// The ids of its rows, if Pleat may have to give some.
    pub fn ids(&self) -> Option<&RowIds> {
        self.rows.as_ref()?.ids.as_ref()
    }

    /// How many slots its ids take.
    pub fn id_slots(&self) -> usize {
        self.ids().map_or(0, |ids| ids.rows.len())
    }

    pub fn is_computed(&self) -> bool {
        matches!(self.spread, Ok(SpreadPlan::Computed(_)))
    }

    /// The statement as it runs where it runs whole.
    pub fn whole(&self, values: &[Value]) -> Bound {
        match &self.rows {
            Some(rows) if rows.ids.is_some() => rows.all(values),
            _ => self.whole.bind(values),
        }
    }

    pub fn spread(&self, values: &[Value], partition_count: u32) -> Result<SpreadWrite, SqlError> {
        match (self.spread.as_ref().map_err(Clone::clone)?, &self.rows) {
            (SpreadPlan::Rows, Some(rows)) => rows.bind(values, partition_count).map(SpreadWrite::Rows),
            (SpreadPlan::Rows, None) => Err(super::several_shards(&self.table)),
            (SpreadPlan::Same(same), _) => Ok(same.bind(values, partition_count)),
            (SpreadPlan::Reference, _) => Ok(SpreadWrite::Reference(self.whole.bind(values))),
            (SpreadPlan::Computed(plan), _) => Ok(SpreadWrite::Computed(plan.bind(values, partition_count))),
        }
    }

    /// The units that are known, and whether these are all.
    pub fn units(&self, values: &[Value], partition_count: u32) -> Result<(Units, bool), SqlError> {
        let mut units = Units { singles: self.singles.iter().cloned().collect(), ..Units::default() };
        if let Some(rows) = &self.rows {
            units.partitions.extend(rows.partitions(values, partition_count)?);
        }
        let mut complete = true;
        for (key_type, keys) in &self.mentions {
            match keys.as_ref().and_then(|keys| partitions(keys, *key_type, values, partition_count)) {
                Some(found) => units.partitions.extend(found),
                None => complete = false,
            }
        }
        Ok((units, complete))
    }
}

/// The unit that a table is as a whole, if it is single.
pub(super) fn single_unit(table: &Table) -> Option<PartitionId> {
    matches!(table.kind, TableKind::Single { .. }).then(|| PartitionId::of_single(table.id))
}
