//! Reads: one shard if the keys say so, else spread over several.

use std::collections::BTreeSet;

use pleat_cluster::TableKind;
use sqlparser::ast::Query as Ast;

use super::analysis::{Analysis, refuse_system_columns};
use super::plan::{Plan, Several, Spread};
use super::{gather, partial, spread, write};
use crate::error::SqlError;

/// Where the tables of a statement say that it belongs.
pub(super) fn located(analysis: &Analysis) -> Plan {
    let keyed =
        analysis.mentions.iter().filter_map(|mention| Some(write::keyed(mention, mention.key_type()?))).collect();
    let single = |kind: &TableKind| match kind {
        TableKind::Single { shard } => Some(*shard),
        _ => None,
    };
    let singles: BTreeSet<_> = analysis.mentions.iter().filter_map(|mention| single(&mention.table.kind)).collect();
    Plan { keyed, singles, several: Several::Any }
}

/// Plans a statement that reads.
pub(super) fn plan(analysis: &Analysis, query: &Ast, range: (usize, usize)) -> Plan {
    let mut plan = located(analysis);
    if plan.keyed.is_empty() && plan.singles.len() <= 1 {
        // A lock on one shard's copy would keep nobody off the others.
        if plan.singles.is_empty() && analysis.writes && analysis.bound.is_some() && !analysis.mentions.is_empty() {
            plan.several = Several::Every { reference: true };
        }
        return plan;
    }
    plan.several = match over_several(analysis, query, range) {
        Ok(spread) => Several::Spread(Box::new(spread)),
        Err(error) => Several::Refused(Box::new(error)),
    };
    plan
}

fn over_several(analysis: &Analysis, query: &Ast, range: (usize, usize)) -> Result<Spread, SqlError> {
    if let Some(what) = analysis.bound {
        return Err(SqlError::unsupported(format!("{what} of rows on several shards is not supported"))
            .hint("say in WHERE what the shard key of every sharded table is"));
    }
    if analysis.writes {
        return Err(SqlError::unsupported("a statement that writes in WITH can't concern several shards")
            .hint("say what the shard keys are, or write several statements in one transaction"));
    }
    refuse_system_columns(analysis.tokens, range.0, range.1)?;
    if let Some(found) = spread::plan(analysis, query, range).or_else(|| partial::plan(analysis, query, range)) {
        return Ok(found);
    }
    gather::plan(analysis, range)
}
