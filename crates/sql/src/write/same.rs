//! The same statement on every shard.
//!
//! Right if all that a written row depends on is on the row's own shard: every sharded table that the statement
//! mentions is tied to one of them, the *driver*, by equality of the keys (see `keys`: a tied table's rows matter only
//! with the driver's key), other tables are reference tables, and there is no single table. The driver is the written table of an UPDATE or DELETE,
//! and for an `INSERT … SELECT` the table whose key becomes the new row's.
//!
//! A shard may hold rows that it doesn't own: half copies of a move, or what it left behind. Then the driver is filtered by
//! `pleat_owned(key)`. The tied tables need no filter of their own: their rows matter only with the driver's key.

use std::collections::BTreeSet;
use std::sync::Arc;

use pleat_cluster::{KeyType, PartitionId, TableKind, Value};
use sqlparser::ast::{Expr, GroupByExpr, Query, Select};

use super::compose::Composer;
use super::spread::SpreadWrite;
use super::statement::Draft;
use crate::clauses::{Clauses, Span};
use crate::lex::quote;
use crate::parse::token_of;
use crate::read::{Template, partitions};
use crate::scope::{Analysis, Resolved, column_name};
use crate::spread::{has_calls, is_grouped};
use crate::tree::{Constant, bare};

/// A statement to run on several shards.
#[derive(Clone, Debug)]
pub(crate) struct SamePlan {
    place: Place,
    sql: Template,
    filtered: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
enum Place {
    /// Where the driver's rows with these keys are.
    Sharded { key_type: KeyType, keys: Option<Vec<Constant>> },
    /// The one shard of some single tables.
    Singles(BTreeSet<PartitionId>),
}

impl SamePlan {
    pub fn bind(&self, values: &[Value], partition_count: u32) -> SpreadWrite {
        let prune = match &self.place {
            Place::Singles(units) => Some(units.clone()),
            Place::Sharded { key_type, keys } => {
                keys.as_ref().and_then(|keys| partitions(keys, *key_type, values, partition_count))
            }
        };
        let Template { sql, .. } = &self.sql;
        let (sql, sql_filtered, params) = (sql.clone(), self.filtered.clone(), self.sql.values(values));
        SpreadWrite::Same { prune, sql, sql_filtered, params }
    }

    /// The statement as it stands, on the one shard that has all of the single tables it mentions.
    pub fn singles(draft: &Draft, written: Option<PartitionId>) -> Option<SamePlan> {
        let analysis = &draft.analysis;
        let mut units: BTreeSet<PartitionId> = written.into_iter().collect();
        let mut shards = BTreeSet::new();
        for at in 0..analysis.occurrences.len() {
            match analysis.table(at).kind {
                TableKind::Reference => {}
                TableKind::Sharded { .. } => return None,
                TableKind::Single { shard } => {
                    shards.insert(shard);
                    units.insert(PartitionId::of_single(analysis.table(at).id));
                }
            }
        }
        let mut composer = Composer::default();
        draft.words(&mut composer, draft.shape.span);
        let plan = SamePlan { place: Place::Singles(units), sql: composer.template(), filtered: None };
        (shards.len() <= 1).then_some(plan)
    }

    /// The statement with a condition on its driver, whose WHERE is `filter` or would stand at token `place`.
    pub fn sharded(draft: &Draft, driver: usize, filter: Option<Span>, place: usize) -> Option<SamePlan> {
        let (analysis, span) = (&draft.analysis, draft.shape.span);
        let (key, key_type) = analysis.table(driver).shard_key()?;
        let owned = format!("pleat_owned({}.{})", quote(&analysis.occurrences[driver].alias), quote(key));
        let (mut sql, mut filtered) = (Composer::default(), Composer::default());
        draft.words(&mut sql, span);
        match filter {
            Some(filter) => {
                draft.words(&mut filtered, (span.0, filter.0));
                filtered.text(&owned).text("AND").text("(");
                draft.words(&mut filtered, filter);
                filtered.text(")");
                draft.words(&mut filtered, (filter.1, span.1));
            }
            None => {
                draft.words(&mut filtered, (span.0, place));
                filtered.text("WHERE").text(&owned);
                draft.words(&mut filtered, (place, span.1));
            }
        }
        let place = Place::Sharded { key_type, keys: analysis.occurrences[driver].keys.clone() };
        let (sql, filtered) = (sql.template(), filtered.template());
        debug_assert_eq!(sql.slots, filtered.slots, "both take the same parameters");
        Some(SamePlan { place, sql, filtered: Some(filtered.sql) })
    }
}

/// Whether every row that matters is on the driver's shard.
pub(super) fn stays_with(analysis: &Analysis, driver: usize) -> bool {
    let all = 0..analysis.occurrences.len();
    if all.clone().any(|at| matches!(analysis.table(at).kind, TableKind::Single { .. })) {
        return false;
    }
    let sharded: Vec<usize> = all.filter(|at| analysis.key_type(*at).is_some()).collect();
    let mut tied = BTreeSet::from([driver]);
    while let Some(next) =
        sharded.iter().find(|at| !tied.contains(at) && !analysis.occurrences[**at].tied_to.is_disjoint(&tied))
    {
        tied.insert(*next);
    }
    sharded.iter().all(|at| tied.contains(at))
}

/// The plan of an `INSERT … SELECT` that stays on its shard: its rows are the disjoint union of what each shard selects.
pub(super) fn selected(draft: &Draft, query: &Query, select: &Select, driver: usize) -> Option<SamePlan> {
    let analysis = &draft.analysis;
    let start = token_of(select.select_token.0.span)?;
    let scope = analysis.scope_of_select.get(&start).copied()?;
    let own = |expr: &Expr| match column_name(bare(expr)) {
        Some((qualifier, name)) => {
            let key = analysis.table(driver).shard_key().is_some_and(|(key, _)| key.eq_ignore_ascii_case(&name));
            let found = analysis.resolve(scope, qualifier.as_deref(), &name);
            key && found == Resolved::Occurrence { occurrence: driver, own: true }
        }
        None => false,
    };
    let by_key = matches!(&select.group_by, GroupByExpr::Expressions(groups, _) if groups.iter().any(own));
    let groups_stay = by_key || !(is_grouped(select) || has_calls(select, query, false));
    let stays = groups_stay
        && !has_calls(select, query, true)
        && query.limit_clause.is_none()
        && !analysis.scopes[scope].odd
        && !analysis.occurrences[driver].nullable
        && stays_with(analysis, driver);
    let clauses = Clauses::of(analysis.tokens, start, draft.shape.source.1);
    let from = clauses.from?;
    stays.then(|| SamePlan::sharded(draft, driver, clauses.filter, from.1)).flatten()
}
