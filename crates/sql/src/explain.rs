//! EXPLAIN: the route of a statement, as data.

use serde::{Deserialize, Serialize};

use crate::ddl::{DdlAction, Placement};
use crate::error::SqlError;
use crate::params::Params;
use crate::read::{Fetch, Route, Source, Units};
use crate::statement::Statement;

/// The route of a write over several shards; a step's `table` then says what is done: `rows`, `same`, `read` or `write`.
pub(crate) const SPREAD_WRITE: &str = "spread write";

/// What Pleat would do with a statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `anywhere`, `shard`, `concat`, `gather`, `write`, `reference write`, `spread write` or `schema change`.
    pub route: String,
    /// Which units or shards are asked.
    pub shards: String,
    /// What the shards run.
    pub fetches: Vec<ExplainedFetch>,
    /// What the finisher runs on the fetched rows.
    pub finish: Option<String>,
    /// Why not a better route.
    pub reason: Option<String>,
}

/// A statement that shards run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedFetch {
    /// The table that the rows go into; empty when they are the answer.
    pub table: String,
    pub shards: String,
    pub sql: String,
}

impl Explanation {
    pub(crate) fn new(route: &str, shards: String) -> Self {
        Explanation { route: route.to_owned(), shards, fetches: Vec::new(), finish: None, reason: None }
    }

    pub(crate) fn statement(mut self, sql: &str) -> Self {
        self.fetches.push(ExplainedFetch { table: String::new(), shards: self.shards.clone(), sql: sql.to_owned() });
        self
    }

    /// The explanation as rows of a step and its detail.
    pub fn lines(&self) -> Vec<(String, String)> {
        let mut lines = vec![("route".to_owned(), self.route.clone()), ("shards".to_owned(), self.shards.clone())];
        for fetch in &self.fetches {
            let step = if fetch.table.is_empty() {
                "run".to_owned()
            } else if self.route == SPREAD_WRITE {
                format!("{} on {}", fetch.table, fetch.shards)
            } else {
                format!("fetch {} from {}", fetch.table, fetch.shards)
            };
            lines.push((step, fetch.sql.clone()));
        }
        lines.extend(self.finish.iter().map(|finish| ("finish".to_owned(), finish.clone())));
        lines.extend(self.reason.iter().map(|reason| ("because".to_owned(), reason.clone())));
        lines
    }
}

impl Statement {
    /// What Pleat would do with this statement and these values.
    pub fn explain(&self, params: &Params, partition_count: u32) -> Result<Explanation, SqlError> {
        match self {
            Statement::Explain(inner) => inner.explain(params, partition_count),
            Statement::Read(plan) => {
                let mut explanation = explain_route(&plan.route(params, partition_count)?);
                let spread = matches!(explanation.route.as_str(), "concat" | "gather");
                explanation.reason = spread.then(|| plan.reason.clone());
                Ok(explanation)
            }
            Statement::Write(plan) => plan.explain(params, partition_count),
            Statement::Ddl(plan) => {
                let shards = match &plan.action {
                    DdlAction::CreateTable(Placement::Single) => "one shard",
                    DdlAction::Nothing => "none",
                    _ => "every shard that has the table",
                };
                let mut explanation = Explanation::new("schema change", shards.to_owned());
                explanation.reason = plan.notice.clone();
                Ok(plan.statements.iter().fold(explanation, |explanation, sql| explanation.statement(sql)))
            }
        }
    }
}

pub(crate) fn explain_route(route: &Route) -> Explanation {
    match route {
        Route::Anywhere(statement) => {
            Explanation::new("anywhere", "any one shard".to_owned()).statement(&statement.sql)
        }
        Route::Shard { units, statement } => Explanation::new("shard", units_text(units)).statement(&statement.sql),
        Route::Concat { fetch, limit, offset } => {
            let mut explanation = Explanation::new("concat", source_text(&fetch.source)).statement(&fetch.sql);
            if limit.is_some() || *offset > 0 {
                let limit = limit.map_or_else(|| "all".to_owned(), |limit| limit.to_string());
                explanation.finish = Some(format!("skip {offset} rows, then give {limit}"));
            }
            explanation
        }
        Route::Gather { fetches, finish } => {
            let mut explanation = Explanation::new("gather", gathered_text(fetches));
            explanation.fetches = fetches.iter().map(explain_fetch).collect();
            explanation.finish = Some(finish.sql.to_string());
            explanation
        }
    }
}

fn gathered_text(fetches: &[Fetch]) -> String {
    let mut texts: Vec<String> = fetches.iter().map(|fetch| source_text(&fetch.source)).collect();
    texts.dedup();
    texts.join("; ")
}

fn explain_fetch(fetch: &Fetch) -> ExplainedFetch {
    ExplainedFetch { table: fetch.table.clone(), shards: source_text(&fetch.source), sql: fetch.sql.to_string() }
}

fn source_text(source: &Source) -> String {
    match source {
        Source::Sharded { prune: None } => "all shards".to_owned(),
        Source::Sharded { prune: Some(partitions) } if partitions.is_empty() => {
            "any one shard: no key can match".to_owned()
        }
        Source::Sharded { prune: Some(partitions) } => {
            format!("owners of {}", units_text(&Units { partitions: partitions.clone(), ..Units::default() }))
        }
        Source::Reference => "any one shard".to_owned(),
        Source::Single(shard) => format!("shard {shard}"),
    }
}

pub(crate) fn units_text(units: &Units) -> String {
    let partitions = units.partitions.iter().map(|partition| format!("partition {partition}"));
    let singles = units.singles.iter().map(|(table, shard)| format!("table {table} on shard {shard}"));
    let all: Vec<_> = partitions.chain(singles).collect();
    if all.is_empty() { "any one shard: no key can match".to_owned() } else { all.join(", ") }
}
