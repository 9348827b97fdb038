//! `EXPLAIN`: how a statement would be routed, without running it.

use futures::StreamExt;
use futures::stream;
use pleat_cluster::{Catalog, Value};
use pleat_sql::Statement;

use super::reroute::Setback;
use super::{Output, Response, Run, Touched, place};

pub(super) fn explain(statement: &Statement, run: &Run, catalog: &Catalog) -> Result<Response, Setback> {
    let statement = match statement {
        Statement::Explain(inner) => inner,
        other => other,
    };
    let params = run.request.params.borrow();
    let explanation = match (statement, place::sole_shard(catalog)) {
        (Statement::Read(plan), Some(_)) => plan.explain_only_shard(&params)?,
        _ => statement.explain(&params, catalog.partition_count)?,
    };
    let lines = explanation.lines();
    let rows = lines.into_iter().map(|(what, detail)| vec![Value::Text(what), Value::Text(detail)]).collect();
    Ok(Response {
        output: Output::Rows {
            columns: vec!["step".to_owned(), "detail".to_owned()],
            rows: stream::iter([Ok(rows)]).boxed(),
        },
        touched: Touched::Many(Vec::new()),
        generation: catalog.generation,
        token: None,
        notice: None,
        operation: None,
        replayed: false,
    })
}
