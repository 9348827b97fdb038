//! Rows that several shards have sorted, merged into one order as they come.
//!
//! Only the next chunk of each shard is in memory. A shard whose rows come late in the order waits with its own, which
//! is why all have opened their snapshots before the first row goes out.

use std::collections::VecDeque;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use pleat_cluster::Value;
use pleat_sql::{Order, compare_rows};

use super::{Failure, Rows};

/// Rows that are handed on together, at most.
const CHUNK_ROWS_MAX: usize = 256;

/// One shard's rows, and those of them that have come.
struct Source {
    rows: Rows,
    waiting: VecDeque<Vec<Value>>,
    ended: bool,
}

impl Source {
    /// Waits for rows if there are none.
    async fn fill(&mut self) -> Result<(), Failure> {
        while self.waiting.is_empty() && !self.ended {
            match self.rows.try_next().await? {
                Some(chunk) => self.waiting.extend(chunk),
                None => self.ended = true,
            }
        }
        Ok(())
    }
}

/// The rows of all sources by `order`, without their first `hidden` columns.
pub(super) fn merge(sources: Vec<Rows>, order: Vec<Order>, hidden: usize) -> Rows {
    let sources: Vec<Source> =
        sources.into_iter().map(|rows| Source { rows, waiting: VecDeque::new(), ended: false }).collect();
    stream::try_unfold((sources, order), move |(mut sources, order)| async move {
        try_join_all(sources.iter_mut().map(Source::fill)).await?;
        let mut chunk = Vec::new();
        // Until a source must be waited for, whose next row may come before all others.
        while chunk.len() < CHUNK_ROWS_MAX && sources.iter().all(|source| source.ended || !source.waiting.is_empty()) {
            let Some(mut row) = next(&mut sources, &order) else { break };
            row.drain(..hidden.min(row.len()));
            chunk.push(row);
        }
        Ok(if chunk.is_empty() { None } else { Some((chunk, (sources, order))) })
    })
    .boxed()
}

/// The first row of all that wait.
fn next(sources: &mut [Source], order: &[Order]) -> Option<Vec<Value>> {
    let heads = sources.iter().enumerate().filter_map(|(at, source)| Some((at, source.waiting.front()?)));
    let (first, _) = heads.min_by(|(_, left), (_, right)| compare_rows(order, left, right))?;
    sources[first].waiting.pop_front()
}

#[cfg(test)]
mod tests {
    use pleat_sql::Collation;

    use super::*;

    fn source(chunks: &[&[i64]]) -> Rows {
        let row = |n: &i64| vec![Value::Integer(*n), Value::Text(format!("row {n}"))];
        let chunks: Vec<Result<Vec<Vec<Value>>, Failure>> =
            chunks.iter().map(|chunk| Ok(chunk.iter().map(row).collect())).collect();
        stream::iter(chunks).boxed()
    }

    #[tokio::test]
    async fn chunks_of_any_size_give_one_order() {
        let order = vec![Order { column: 0, descending: false, nulls_last: false, collation: Collation::Binary }];
        let long: Vec<i64> = (0..1000).map(|n| n * 3).collect();
        let sources = vec![source(&[&[1, 4], &[], &[7], &[3001]]), source(&[]), source(&[&long]), source(&[&[2]])];
        let rows: Vec<_> = merge(sources, order, 1).try_concat().await.unwrap();
        let mut expected: Vec<i64> = long.iter().copied().chain([1, 4, 7, 3001, 2]).collect();
        expected.sort_unstable();
        let expected: Vec<_> = expected.iter().map(|n| vec![Value::Text(format!("row {n}"))]).collect();
        assert_eq!(rows, expected);
    }

    #[tokio::test]
    async fn a_source_that_breaks_off_ends_the_rest_with_its_error() {
        let order = vec![Order { column: 0, descending: false, nulls_last: false, collation: Collation::Binary }];
        let broken = stream::once(async { Err(Failure::internal("cut off")) });
        let sources = vec![source(&[&[1, 2, 3]]), source(&[&[2]]).chain(broken).boxed()];
        let ended: Result<Vec<_>, Failure> = merge(sources, order, 0).try_concat().await;
        assert_eq!(ended.unwrap_err().message, "cut off");
    }
}
