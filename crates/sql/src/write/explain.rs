//! EXPLAIN of writes.

use std::collections::BTreeSet;

use pleat_cluster::PartitionId;

use super::computed::ComputedWrite;
use super::ids::{Ids, IdsWanted};
use super::spread::SpreadWrite;
use super::{WritePlan, WriteTarget};
use crate::error::SqlError;
use crate::explain::{ExplainedFetch, Explanation, SPREAD_WRITE, explain_route, units_text};
use crate::params::Params;
use crate::read::Units;

impl WritePlan {
    /// Where the write goes. Ids that it would be given are shown as 1, 2 and so on.
    pub(crate) fn explain(&self, params: &Params, partition_count: u32) -> Result<Explanation, SqlError> {
        let wanted = self.ids_wanted(params)?;
        let ids = wanted.iter().fold(Ids::none(), |ids, wanted| ids.with(wanted.table, 1));
        let route = self.route(params, partition_count, &ids)?;
        let mut explanation = match &route.target {
            WriteTarget::Units(units) => Explanation::new("write", units_text(units)),
            WriteTarget::Reference => Explanation::new("reference write", "every shard".to_owned()),
            WriteTarget::Everywhere { .. } | WriteTarget::Spread { .. } => {
                return self.explain_spread(params, partition_count, &ids);
            }
        };
        let several =
            matches!(&route.target, WriteTarget::Units(units) if units.partitions.len() + units.singles.len() > 1);
        explanation.reason = match several {
            true => self.explain_spread(params, partition_count, &ids).ok().map(|spread| if_several(&spread)),
            false => ids_text(&wanted),
        };
        Ok(route.statements.iter().fold(explanation, |explanation, statement| explanation.statement(&statement.sql)))
    }

    fn explain_spread(&self, params: &Params, partition_count: u32, ids: &Ids) -> Result<Explanation, SqlError> {
        let mut explanation = Explanation::new(SPREAD_WRITE, "one transaction over the shards below".to_owned());
        for statement in self.spread(params, partition_count, ids)? {
            match &statement {
                SpreadWrite::Rows(rows) => {
                    let partitions = rows.partitions();
                    if let Some(all) = rows.on(&partitions) {
                        step(&mut explanation, "rows", owners(&partitions), &all.sql);
                    }
                }
                SpreadWrite::Same { prune, sql, .. } => {
                    let shards = prune.as_ref().map_or("every shard".to_owned(), owners);
                    step(&mut explanation, "same", shards, sql);
                }
                SpreadWrite::Reference(bound) => {
                    step(&mut explanation, "reference", "every shard".to_owned(), &bound.sql);
                }
                SpreadWrite::Computed(write) => explain_computed(&mut explanation, write, partition_count)?,
            }
        }
        explanation.reason = self.reason();
        Ok(explanation)
    }

    fn reason(&self) -> Option<String> {
        let computed = self.statements.iter().any(|statement| statement.is_computed());
        Some(match computed {
            true => "the rows to write, or their values, are not known on their own shard alone".to_owned(),
            false => "all that a row needs is on its own shard".to_owned(),
        })
    }
}

fn explain_computed(explanation: &mut Explanation, write: &ComputedWrite, count: u32) -> Result<(), SqlError> {
    let read = explain_route(&write.read().route(&write.params(), count)?);
    for fetch in read.fetches {
        step(explanation, "read", fetch.shards, &fetch.sql);
    }
    if let Some(finish) = read.finish {
        step(explanation, "read", "here".to_owned(), &finish);
    }
    for sql in write.templates() {
        step(explanation, "write", "the owner of each row".to_owned(), sql);
    }
    Ok(())
}

fn step(explanation: &mut Explanation, what: &str, shards: String, sql: &str) {
    explanation.fetches.push(ExplainedFetch { table: what.to_owned(), shards, sql: sql.to_owned() });
}

fn owners(partitions: &BTreeSet<PartitionId>) -> String {
    let units = Units { partitions: partitions.clone(), ..Units::default() };
    if partitions.is_empty() { units_text(&units) } else { format!("owners of {}", units_text(&units)) }
}

/// What happens if the units turn out to be on several shards.
fn if_several(spread: &Explanation) -> String {
    let steps: Vec<&str> = spread.fetches.iter().map(|step| step.table.as_str()).collect();
    format!("one shard owns all of these, or else it is a spread write: {}", steps.join(", "))
}

fn ids_text(wanted: &[IdsWanted]) -> Option<String> {
    let texts: Vec<String> =
        wanted.iter().map(|wanted| format!("{} new ids for {} from the catalog", wanted.count, wanted.name)).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}
