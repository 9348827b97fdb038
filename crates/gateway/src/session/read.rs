//! Reads: from one shard, or from several side by side.
//!
//! The rule that keeps a scatter right: every shard is held to the ownership generation of *one* catalog
//! snapshot. If a partition moves while the shards are asked, either its old owner or its new one finds its
//! ownership changed and refuses, and the whole read starts over; so no row is missed and none comes twice.
//! A shard answers its columns only after that check, in the snapshot that it reads; only when all have done
//! so does the first row go on to the client. A shard is asked once for everything that the statement needs of
//! it, in one snapshot, so that what one write changed in two tables is seen in both or in neither.
//!
//! A hint (`/* pleat: shard=2 */`) narrows a scatter down to one shard: that shard is asked what it would be asked among the
//! others, ownership check and filters included, so the answer is exactly that of its own rows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt, TryFutureExt};
use futures::stream::{self, StreamExt, TryStreamExt};
use pleat_cluster::{Catalog, PartitionId, ShardId};
use pleat_engine::{OwnershipCheck, Query, ReadLimits, ReadRequest, TxnsSeen};
use pleat_host::{Freshness, Piece, RowStream};
use pleat_sql::{Bound, Fetch, Order, ReadPlan, Route, Source};

use super::merge::merge;
use super::reroute::{Setback, setback};
use super::{Attempt, Consistency, Executor, Failure, Output, Response, Rows, Run, Touched, place, whole};
use crate::settings::SHARDS_ASKED_AT_ONCE_MAX;

impl Executor {
    pub(super) async fn read(&self, run: &Run, attempt: &Attempt, plan: &ReadPlan) -> Result<Response, Setback> {
        let catalog = &attempt.catalog;
        let params = run.request.params.borrow();
        if let Some(shard) = place::sole_shard(catalog).filter(|_| run.hint.shard.is_none()) {
            let check = OwnershipCheck::Scatter { ownership: shard.ownership };
            return self.read_one(run, attempt, shard.id, plan.whole(&params)?, check).await;
        }
        if let Some(shard) = run.hint.shard {
            place::active(shard, catalog)?;
            return self.read_many(run, attempt, plan.scatter(&params, catalog.partition_count)?).await;
        }
        let mut route = plan.route(&params, catalog.partition_count)?;
        if let Route::Shard { units, statement } = route {
            let mut owners = place::owners(&units, catalog)?.into_iter();
            let (shard, units) = match (owners.next(), owners.next()) {
                (Some(owner), None) => owner,
                // A key that no row can have: any shard finds nothing.
                (None, _) => (place::anchor(catalog)?, Vec::new()),
                (Some(_), Some(_)) => {
                    route = plan.scatter(&params, catalog.partition_count)?;
                    return self.read_many(run, attempt, route).await;
                }
            };
            return self.read_one(run, attempt, shard, statement, OwnershipCheck::Keyed(units)).await;
        }
        self.read_many(run, attempt, route).await
    }

    async fn read_many(&self, run: &Run, attempt: &Attempt, route: Route) -> Result<Response, Setback> {
        match route {
            Route::Anywhere(statement) => {
                let shard = self.any_shard(run, &attempt.catalog)?;
                self.read_one(run, attempt, shard, statement, OwnershipCheck::None).await
            }
            Route::Concat { fetch, order, hidden, limit, offset } => {
                let shape = Shape { order, hidden, limit, offset };
                self.concat(run, attempt, fetch, shape).await
            }
            Route::Gather { fetches, finish } => self.gather(run, attempt, fetches, finish).await,
            Route::Shard { .. } => {
                Err(Failure::internal("a read over several shards was planned for a single one").into())
            }
        }
    }

    /// Where reference tables are read. Their writes are put in order by the anchor, so a strong read asks it.
    fn any_shard(&self, run: &Run, catalog: &Catalog) -> Result<ShardId, Failure> {
        let here = |shard: &ShardId| self.backend.shard_status(*shard).is_some();
        match run.request.consistency {
            Consistency::Eventual => {
                let held_here = catalog.active_shards().map(|shard| shard.id).find(here);
                held_here.map_or_else(|| place::anchor(catalog), Ok)
            }
            Consistency::Strong | Consistency::ReadYourWrites => place::anchor(catalog),
        }
    }

    async fn read_one(
        &self,
        run: &Run,
        attempt: &Attempt,
        shard: ShardId,
        statement: Bound,
        check: OwnershipCheck,
    ) -> Result<Response, Setback> {
        let query = Query { sql: statement.sql.to_string(), sql_filtered: None, params: statement.params };
        let request = read_request(run, attempt, vec![query], check);
        let answer = self.open(run, attempt, shard, request, false).await?;
        let columns = answer.columns.clone();
        Ok(response(attempt, Touched::One(shard), columns, rows_of(answer)))
    }

    /// Rows of several shards, one after the other as they come, or merged by their order.
    async fn concat(&self, run: &Run, attempt: &Attempt, fetch: Fetch, shape: Shape) -> Result<Response, Setback> {
        let answers = self.fetch(run, attempt, std::slice::from_ref(&fetch)).await?;
        let shards = answers.iter().map(|asked| asked.shard).collect();
        let columns = answers.first().map(|asked| asked.answer.columns.clone()).unwrap_or_default();
        let columns = columns.into_iter().skip(shape.hidden).collect();
        let sources = answers.into_iter().map(|asked| rows_of(asked.answer));
        let rows = if shape.order.is_empty() {
            stream::select_all(sources).boxed()
        } else {
            merge(sources.collect(), shape.order, shape.hidden)
        };
        let sliced = shape.limit.is_some() || shape.offset > 0;
        let rows = if sliced { slice(rows, shape.offset, shape.limit) } else { rows };
        Ok(response(attempt, Touched::of(shards), columns, rows))
    }

    /// Ask every shard for all those of the fetches that it has rows for, in one snapshot. All have accepted when
    /// this returns.
    pub(super) async fn fetch(&self, run: &Run, attempt: &Attempt, fetches: &[Fetch]) -> Result<Vec<Asked>, Setback> {
        let catalog = &attempt.catalog;
        let mut by_shard: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        for (number, fetch) in fetches.iter().enumerate() {
            for shard in self.sources(run, catalog, fetch)? {
                by_shard.entry(shard).or_default().push(number);
            }
        }
        if run.hint.no_scatter && by_shard.len() > 1 {
            return Err(place::would_scatter(by_shard.keys()).into());
        }
        let several = by_shard.len() > 1;
        let open = |shard: ShardId, numbers: Vec<usize>, again: bool| {
            let owned = numbers.iter().any(|number| !matches!(fetches[*number].source, Source::Reference));
            let ownership = catalog.shards.get(&shard).map_or(0, |shard| shard.ownership);
            let check = if owned { OwnershipCheck::Scatter { ownership } } else { OwnershipCheck::None };
            let queries = numbers.iter().map(|number| query_of(&fetches[*number])).collect();
            let request = ReadRequest { names_txns: several, ..read_request(run, attempt, queries, check) };
            let opened = self.open(run, attempt, shard, request, again);
            // Boxed, because the compiler can't see through the borrows of an unnamed stream's futures.
            async move { Ok(Asked { shard, numbers, answer: opened.await? }) }.boxed()
        };
        let asked: Vec<_> = by_shard.into_iter().map(|(shard, numbers)| open(shard, numbers, false)).collect();
        let mut asked: Vec<Asked> = stream::iter(asked).buffered(SHARDS_ASKED_AT_ONCE_MAX).try_collect().await?;
        // Inside a transaction COMMIT finds out.
        if several && attempt.inside.is_none() {
            self.make_whole(run, &mut asked, open).await?;
        }
        Ok(asked)
    }

    /// Open anew what lacks a transaction that another shard's snapshot has: see [`whole`].
    async fn make_whole<'a>(
        &self,
        run: &Run,
        asked: &mut [Asked],
        open: impl Fn(ShardId, Vec<usize>, bool) -> BoxFuture<'a, Result<Asked, Setback>>,
    ) -> Result<(), Setback> {
        let mut pause = whole::PAUSE_MIN;
        for round in 1.. {
            let none = TxnsSeen::default();
            let seen = asked.iter().map(|one| (one.shard, one.answer.txns.as_ref().unwrap_or(&none)));
            let behind = whole::behind(&seen.collect::<Vec<_>>());
            if behind.is_empty() {
                return Ok(());
            }
            if run.deadline.is_over() {
                return Err(Setback::Failed(whole::still_behind(run.deadline.limit())));
            }
            if round > 1 {
                tokio::time::sleep(pause.min(run.deadline.left())).await;
                pause = (pause * 2).min(whole::PAUSE_MAX);
            }
            // Its place among the shard's readers is needed for the new one.
            let dropped = asked.iter_mut().filter(|one| behind.contains(&one.shard));
            dropped.for_each(|one| one.answer.pieces = stream::empty().boxed());
            let again = (asked.iter().enumerate()).filter(|(_, one)| behind.contains(&one.shard));
            let again = again.map(|(at, one)| open(one.shard, one.numbers.clone(), true).map_ok(move |one| (at, one)));
            let again: Vec<_> = again.collect();
            for (at, opened) in futures::future::try_join_all(again).await? {
                asked[at] = opened;
            }
        }
        Ok(())
    }

    fn sources(&self, run: &Run, catalog: &Catalog, fetch: &Fetch) -> Result<Vec<ShardId>, Failure> {
        match (&fetch.source, run.hint.shard) {
            (Source::Sharded { .. }, Some(shard)) => Ok(vec![shard]),
            (Source::Single(shard), Some(only)) if *shard != only => Err(place::single_elsewhere(*shard, only)),
            (Source::Sharded { prune }, None) => sharded_sources(catalog, prune.as_ref()),
            (Source::Reference, Some(shard)) => Ok(vec![shard]),
            (Source::Reference, None) => Ok(vec![self.any_shard(run, catalog)?]),
            (Source::Single(shard), _) => Ok(vec![*shard]),
        }
    }

    async fn open(
        &self,
        run: &Run,
        attempt: &Attempt,
        shard: ShardId,
        mut request: ReadRequest,
        newest: bool,
    ) -> Result<RowStream, Setback> {
        if let Some(txn) = &attempt.inside {
            return txn.read(shard, &attempt.catalog, request, run.deadline.left()).await;
        }
        let freshness = if newest { Freshness::Strong } else { freshness(run, attempt, shard) };
        request.names_txns |= attempt.versions.is_some();
        let (asked, statements) = (Instant::now(), request.queries.len());
        let answer = self.backend.read(shard, request, freshness, run.deadline.left()).await.map_err(setback)?;
        if let (Some(versions), Some(txns)) = (&attempt.versions, &answer.txns) {
            versions.lock().insert(shard, txns.version);
        }
        Ok(match &attempt.analysis {
            Some(analysis) => analysis.watch(shard, statements, asked, answer),
            None => answer,
        })
    }
}

/// How fresh the answer must be. A replica that refused was behind: then the leader is asked.
fn freshness(run: &Run, attempt: &Attempt, shard: ShardId) -> Freshness {
    match (run.request.consistency, &run.request.token) {
        _ if attempt.refused > 0 => Freshness::Strong,
        (Consistency::Eventual, _) => Freshness::Eventual,
        (Consistency::ReadYourWrites, Some(token)) => {
            token.index_for(shard, &attempt.catalog).map_or(Freshness::Strong, Freshness::AtLeast)
        }
        (Consistency::Strong | Consistency::ReadYourWrites, _) => Freshness::Strong,
    }
}

/// Which shards hold rows of the partitions. When none can match, one is asked all the same: an aggregate has
/// a row even over nothing, and the answer needs its columns.
fn sharded_sources(catalog: &Catalog, prune: Option<&BTreeSet<PartitionId>>) -> Result<Vec<ShardId>, Failure> {
    let shards = place::shards_of_partitions(catalog, prune);
    match shards.is_empty() {
        true => Ok(vec![place::anchor(catalog)?]),
        false => Ok(shards.into_iter().collect()),
    }
}

/// What becomes of the shards' rows on their way to the client.
struct Shape {
    order: Vec<Order>,
    hidden: usize,
    limit: Option<u64>,
    offset: u64,
}

/// A shard's answer to the fetches with these numbers, in this order.
pub(super) struct Asked {
    pub(super) shard: ShardId,
    pub(super) numbers: Vec<usize>,
    pub(super) answer: RowStream,
}

fn query_of(fetch: &Fetch) -> Query {
    Query {
        sql: fetch.sql.to_string(),
        sql_filtered: fetch.sql_filtered.as_deref().map(str::to_owned),
        params: fetch.params.clone(),
    }
}

fn read_request(run: &Run, attempt: &Attempt, queries: Vec<Query>, check: OwnershipCheck) -> ReadRequest {
    ReadRequest {
        queries,
        check,
        layout: Some(attempt.catalog.layout),
        now_ms: run.now_ms,
        seed: run.seed,
        // How much a client takes is limited where it is kept: by the gather, or by the protocol.
        limits: ReadLimits { time: run.deadline.left(), rows: u64::MAX, bytes: u64::MAX },
        names_txns: false,
    }
}

/// The rows of an answer to one query.
fn rows_of(answer: RowStream) -> Rows {
    let rows = |piece| async move {
        Ok(match piece {
            Piece::Rows(rows) => Some(rows),
            Piece::Columns(_) | Piece::Txns(_) | Piece::End => None,
        })
    };
    answer.pieces.map_err(failure_of).try_filter_map(rows).boxed()
}

/// After the first row there is no starting over, so a refusal (which hosts give before) is a failure too.
pub(super) fn failure_of(error: pleat_host::HostError) -> Failure {
    error.into()
}

pub(super) fn response(attempt: &Attempt, touched: Touched, columns: Vec<String>, rows: Rows) -> Response {
    Response {
        output: Output::Rows { columns, rows },
        touched,
        generation: attempt.catalog.generation,
        token: None,
        notice: None,
        operation: None,
        replayed: false,
    }
}

/// `rows` without the first `offset`, ending after `limit`.
fn slice(rows: Rows, offset: u64, limit: Option<u64>) -> Rows {
    let state = (rows, offset, limit.unwrap_or(u64::MAX));
    stream::try_unfold(state, |(mut rows, mut skip, mut left)| async move {
        while left > 0 {
            let Some(mut chunk) = rows.try_next().await? else { return Ok(None) };
            let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            skip -= skipped as u64;
            chunk.drain(..skipped);
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= chunk.len() as u64;
            if !chunk.is_empty() {
                return Ok(Some((chunk, (rows, skip, left))));
            }
        }
        Ok(None)
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use pleat_cluster::Value;

    use super::*;

    async fn sliced(chunks: &[&[i64]], offset: u64, limit: Option<u64>) -> Vec<i64> {
        let chunks: Vec<Result<Vec<Vec<Value>>, Failure>> =
            chunks.iter().map(|chunk| Ok(chunk.iter().map(|n| vec![Value::Integer(*n)]).collect())).collect();
        let rows: Vec<_> = slice(stream::iter(chunks).boxed(), offset, limit).try_concat().await.unwrap();
        rows.into_iter()
            .map(|row| match row[0] {
                Value::Integer(n) => n,
                _ => unreachable!("only integers went in"),
            })
            .collect()
    }

    #[tokio::test]
    async fn offset_and_limit_count_over_all_shards() {
        let chunks: &[&[i64]] = &[&[1, 2], &[], &[3], &[4, 5, 6]];
        assert_eq!(sliced(chunks, 0, None).await, [1, 2, 3, 4, 5, 6]);
        assert_eq!(sliced(chunks, 1, Some(3)).await, [2, 3, 4]);
        assert_eq!(sliced(chunks, 3, Some(2)).await, [4, 5]);
        assert_eq!(sliced(chunks, 5, Some(100)).await, [6]);
        assert!(sliced(chunks, 6, Some(1)).await.is_empty());
        assert!(sliced(chunks, 0, Some(0)).await.is_empty());
        assert!(sliced(chunks, u64::MAX, Some(u64::MAX)).await.is_empty());
    }
}
