//! Statements of several shards.
//!
//! Each shard gets its part in the extended protocol, all before any is waited for. What they answer is either appended, or the rows go into
//! temporary tables of one more session, which finishes the statement ([`gather`](super::gather)): it is a session of a shard, so types, collations and
//! functions mean what they mean there.
//!
//! # What is held at a time
//!
//! One connection to each shard, taken in the order of the shards, so that two statements don't wait for each other; and for gathering one
//! more, which is why only so many gather at a time. Rows are not held: a shard waits until its rows are taken.
//! Only those that an INSERT of several shards RETURNs are, because they are told in the order in which they stand in it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use pleat_cluster::{Catalog, PartitionId, ShardId};
use pleat_engine::postgres::wire::frontend::Bind;
use pleat_engine::postgres::{Reply, Request, Statement};
use pleat_sql::Schema;
use pleat_sql::postgres::{Part as Piece, Query, Route, Screen, Spread};

use super::Relay;
use super::gather::Plan;
use super::messages::{Messages, Whole, counted, with_formats, words};
use crate::pg::cancel::Key;
use crate::pg::client::{Client, Stop};
use crate::session::Failure;

/// Types from here on are users' own; their numbers differ between servers.
pub const FIRST_USER_TYPE: u32 = 16_384;

/// A statement to carry out.
pub struct Call<'a> {
    pub query: &'a Query,
    /// As the client wrote it.
    pub statement: &'a Arc<Statement>,
    /// Of its parameters, as the client named them.
    pub types: &'a [u32],
    pub bind: &'a Bind,
    /// Whether the client is told of the columns with the rows.
    pub describe: bool,
}

/// What one shard does.
pub struct Run {
    pub shard: ShardId,
    pub statement: Arc<Statement>,
    pub bind: Bind,
}

/// In which order the rows of several shards are told.
enum Order {
    /// Shard by shard.
    AsTheyCome,
    /// All give the same: those of the first.
    First,
    /// RETURNING of an INSERT: as the rows stand in it. Clients count on that to know which of their rows got which id.
    Rows(BTreeMap<ShardId, Vec<usize>>),
}

impl Relay {
    /// Carry out a statement of several shards. True: a server's error was passed on.
    pub(super) async fn several(
        &mut self,
        client: &mut Client,
        key: &Key,
        call: &Call<'_>,
        route: Route<'_>,
    ) -> Result<bool, Stop> {
        let catalog = self.catalog();
        let active = || -> Vec<ShardId> { catalog.active_shards().map(|shard| shard.id).collect() };
        let types = match call.bind.values.is_empty() {
            true => Vec::new(),
            false => self.types(call).await?,
        };
        let whole = Piece { text: call.statement.text().into(), params: (0..call.bind.values.len()).collect() };
        match route {
            Route::Spread { plan: Spread::Concat(piece), prune } => {
                let mut shards = owners(&catalog, &prune);
                if shards.is_empty() {
                    shards.insert(self.any(&catalog)?);
                }
                let runs = self.runs(&catalog, shards, piece, call.bind, &types)?;
                self.append(client, key, runs, call.describe, false).await
            }
            Route::Spread { plan: Spread::Gather { fetches, finish }, prune } => {
                let shards = owners(&catalog, &prune);
                self.gather(client, key, call, &types, &Plan { fetches, finish, shards }).await
            }
            Route::Every { reference, prune } => {
                let shards = match (&prune, reference) {
                    (Some(_), false) => owners(&catalog, &prune).into_iter().collect(),
                    _ => active(),
                };
                let shards = match shards.is_empty() {
                    true => vec![self.any(&catalog)?],
                    false => shards,
                };
                if shards.len() > 1 && call.query.in_transaction {
                    self.begin_implicitly().await?;
                }
                let runs = self.runs(&catalog, shards, &whole, call.bind, &types)?;
                self.append(client, key, runs, call.describe, reference).await
            }
            Route::Rows(rows) => {
                let mut by_shard: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
                for (partition, rows) in rows {
                    let owner = catalog.owner(partition);
                    let owner =
                        owner.ok_or_else(|| Failure::internal(format!("partition {partition} has no owner")))?;
                    by_shard.entry(owner).or_default().extend(rows);
                }
                if by_shard.len() > 1 {
                    self.begin_implicitly().await?;
                }
                let mut runs = Vec::new();
                for (shard, rows) in &mut by_shard {
                    rows.sort_unstable();
                    let piece = call.query.rows(rows);
                    let piece = piece.ok_or_else(|| Failure::internal("an INSERT could not be taken apart"))?;
                    runs.push(run(*shard, &piece, call.bind, &types));
                }
                self.append_in_order(client, key, runs, call.describe, Order::Rows(by_shard)).await
            }
            Route::Any | Route::Partitions(_) | Route::Single(_) => {
                Err(Failure::internal("a statement of one shard was taken for one of several").into())
            }
        }
    }

    /// What these shards do: the same, but for rows that one of them has and doesn't own.
    pub(super) fn runs(
        &self,
        catalog: &Catalog,
        shards: impl IntoIterator<Item = ShardId>,
        piece: &Piece,
        bind: &Bind,
        types: &[u32],
    ) -> Result<Vec<Run>, Failure> {
        let of = |shard| Ok(run(shard, &*self.screened(catalog, shard, piece)?, bind, types));
        shards.into_iter().map(of).collect()
    }

    fn screened<'p>(&self, catalog: &Catalog, shard: ShardId, piece: &'p Piece) -> Result<Cow<'p, Piece>, Failure> {
        let absent = catalog.strays_on(shard);
        match absent.is_empty() {
            true => Ok(Cow::Borrowed(piece)),
            false => Ok(Cow::Owned(self.screen(catalog, &absent).part(piece)?)),
        }
    }

    /// A statement as text, for one shard of several.
    pub(super) fn screened_text(&self, catalog: &Catalog, shard: ShardId, text: &str) -> Result<String, Failure> {
        Ok(self.screen(catalog, &catalog.strays_on(shard)).statement(text)?.into_owned())
    }

    fn screen<'c>(&'c self, catalog: &'c Catalog, absent: &'c BTreeSet<PartitionId>) -> Screen<'c> {
        let default_keys = &self.shared.app.settings.default_keys;
        let schema = Schema { tables: &catalog.tables, views: &catalog.views, default_keys };
        Screen { schema, absent, partition_count: catalog.partition_count }
    }

    /// A statement that turns out to be one shard's.
    pub(super) async fn alone(
        &mut self,
        client: &mut Client,
        key: &Key,
        call: &Call<'_>,
        shard: ShardId,
    ) -> Result<bool, Stop> {
        let types = self.types(call).await?;
        let whole = Piece { text: call.statement.text().into(), params: (0..call.bind.values.len()).collect() };
        let runs = vec![run(shard, &whole, call.bind, &types)];
        self.append(client, key, runs, call.describe, false).await
    }

    /// The types of the parameters. Those that the client left open are what a server infers from the whole statement: from a piece of it, it might
    /// infer others.
    async fn types(&mut self, call: &Call<'_>) -> Result<Vec<u32>, Failure> {
        let declared = |at: usize| call.types.get(at).copied().unwrap_or(0);
        let count = call.bind.values.len();
        if (0..count).all(|at| declared(at) != 0) {
            return Ok((0..count).map(declared).collect());
        }
        let described = self.described(call.statement).await?;
        let Some(types) = described.iter().find(|message| message.tag == b't').map(Whole::body) else {
            return Err(Failure::internal("a server described no parameters"));
        };
        let inferred: Vec<u32> = types
            .get(2..)
            .unwrap_or_default()
            .chunks_exact(4)
            .map(|oid| u32::from_be_bytes(<[u8; 4]>::try_from(oid).unwrap_or_default()))
            .collect();
        // Users' own types have other numbers on other servers.
        let known = |oid: u32| if oid < FIRST_USER_TYPE { oid } else { 0 };
        Ok((0..count).map(|at| inferred.get(at).copied().map_or_else(|| declared(at), known)).collect())
    }

    /// What a server says to a statement that it prepares: its parameters and its columns.
    pub(super) async fn described(&mut self, statement: &Arc<Statement>) -> Result<Vec<Whole>, Failure> {
        let shard = self.any(&self.catalog())?;
        let mut lease = self.lease(shard).await?;
        lease.push(Request::DescribeStatement(statement.clone()))?;
        lease.push(Request::Sync)?;
        let mut messages = Messages::default();
        let mut found = Vec::new();
        loop {
            match lease.receive().await? {
                Reply::Bytes(bytes) => messages.push(&bytes),
                Reply::Ready { .. } => break,
                Reply::CopyIn | Reply::Answered => {}
            }
        }
        while let Some(whole) = messages.next()? {
            if whole.tag == b'E' {
                return Err(said(&whole));
            }
            found.push(whole);
        }
        Ok(found)
    }

    /// Tell the client of the columns of a portal that is here.
    pub(super) async fn describe_here(
        &mut self,
        client: &mut Client,
        _: &Key,
        statement: &Arc<Statement>,
        formats: &[i16],
    ) -> Result<bool, Stop> {
        for message in self.described(statement).await? {
            match message.tag {
                b'T' => client.out.raw(&with_formats(&message, formats)),
                b'n' => client.out.raw(&message.bytes),
                _ => {}
            }
        }
        Ok(false)
    }

    /// Have shards do their parts, and append what they answer. `same`: all do the same, and one answer counts.
    async fn append(
        &mut self,
        client: &mut Client,
        key: &Key,
        runs: Vec<Run>,
        describe: bool,
        same: bool,
    ) -> Result<bool, Stop> {
        let order = if same { Order::First } else { Order::AsTheyCome };
        self.append_in_order(client, key, runs, describe, order).await
    }

    async fn append_in_order(
        &mut self,
        client: &mut Client,
        key: &Key,
        runs: Vec<Run>,
        describe: bool,
        order: Order,
    ) -> Result<bool, Stop> {
        let mut canceller = Vec::new();
        let shards: Vec<ShardId> = runs.iter().map(|run| run.shard).collect();
        // First all connections: taking one may say something on those that are there.
        for shard in &shards {
            self.part(*shard).await?;
        }
        for run in runs {
            let part = self.part(run.shard).await?;
            part.lease.push(Request::Bind(run.statement, run.bind))?;
            if describe {
                part.lease.push(Request::DescribePortal(String::new()))?;
            }
            part.lease.push(Request::Execute { portal: String::new(), rows: 0 })?;
            part.lease.push(Request::Sync)?;
            canceller.push(part.lease.canceller());
        }
        let done = self.appended(client, key, &shards, &order, &canceller).await;
        match &done {
            Ok(failed) => {
                if *failed {
                    self.fail_block();
                }
                match self.block {
                    None => self.keep_pinned(),
                    Some(_) => self.release_reads(),
                }
            }
            Err(_) => self.lose(shards),
        }
        done
    }

    async fn appended(
        &mut self,
        client: &mut Client,
        key: &Key,
        shards: &[ShardId],
        order: &Order,
        cancellers: &[pleat_engine::postgres::Canceller],
    ) -> Result<bool, Stop> {
        // All of them begin before one is waited for.
        for shard in shards {
            if let Some(part) = self.parts.get_mut(shard) {
                part.lease.send().await?;
            }
        }
        let (mut failed, mut described, mut cancelled) = (false, false, false);
        let mut tag: Option<(String, u64)> = None;
        // Rows that wait for those before them, by their places.
        let mut held: Vec<(usize, Bytes)> = Vec::new();
        let mut each_has_one = true;
        for (at, shard) in shards.iter().enumerate() {
            let Some(part) = self.parts.get_mut(shard) else {
                return Err(Failure::internal(format!("the session has no connection to {shard}")).into());
            };
            let quiet = matches!(order, Order::First) && at > 0;
            let mut places = match order {
                Order::Rows(rows) => rows.get(shard).map_or(&[][..], Vec::as_slice).iter(),
                Order::AsTheyCome | Order::First => [].iter(),
            };
            let mut messages = Messages::default();
            loop {
                let reply = tokio::select! {
                    biased;
                    reply = part.lease.receive() => reply?,
                    () = key.requested(), if !cancelled => {
                        cancelled = true;
                        for canceller in cancellers {
                            let canceller = canceller.clone();
                            pleat_consensus::spawn(async move { canceller.cancel().await });
                        }
                        continue;
                    }
                    () = client.reader.gone() => return Err(gone()),
                };
                match reply {
                    Reply::Bytes(bytes) => messages.push(&bytes),
                    Reply::CopyIn => part.lease.copy_fail("rows are not taken here"),
                    Reply::Answered => {}
                    Reply::Ready { error, .. } => {
                        self.values.answered(error.as_ref().map(|code| code.as_str()));
                        break;
                    }
                }
                while let Some(whole) = messages.next()? {
                    match whole.tag {
                        b'E' if !failed => {
                            failed = true;
                            client.out.raw(&whole.bytes);
                        }
                        _ if failed => {}
                        b'T' if !described => {
                            described = true;
                            client.out.raw(&whole.bytes);
                        }
                        b'D' if matches!(order, Order::Rows(_)) => {
                            let place = places.next().copied();
                            each_has_one &= place.is_some();
                            held.push((place.unwrap_or(usize::MAX), whole.bytes));
                        }
                        b'D' | b'N' if !quiet => client.out.raw(&whole.bytes),
                        b'C' => {
                            let body = whole.body();
                            let (_, count) = tag.get_or_insert_with(|| (words(&body), 0));
                            if !quiet {
                                *count += counted(&body);
                            }
                        }
                        _ => {}
                    }
                }
                client.flush_much().await?;
            }
            each_has_one &= places.next().is_none();
        }
        if !failed {
            // Unless ON CONFLICT or a trigger has left some out: which those are nobody says.
            if each_has_one {
                held.sort_by_key(|(place, _)| *place);
            }
            for (_, row) in held {
                client.out.raw(&row);
                client.flush_much().await?;
            }
        }
        if let Some((words, count)) = tag.filter(|_| !failed) {
            // A tag without a number is told as it is.
            match matches!(words.as_str(), "SELECT" | "INSERT 0" | "UPDATE" | "DELETE" | "MERGE" | "COPY") {
                true => client.out.complete(&format!("{words} {count}")),
                false => client.out.complete(&words),
            }
        }
        Ok(failed)
    }
}

/// The shards that own these partitions, or any.
pub fn owners(catalog: &Catalog, partitions: &Option<BTreeSet<PartitionId>>) -> BTreeSet<ShardId> {
    match partitions {
        Some(partitions) => partitions.iter().filter_map(|partition| catalog.owner(*partition)).collect(),
        None => catalog.owners.iter().copied().collect(),
    }
}

/// A shard's part of a statement.
pub fn run(shard: ShardId, piece: &Piece, bind: &Bind, types: &[u32]) -> Run {
    let of = |list: &[i16], at: usize| match list {
        [] => 0,
        [one] => *one,
        all => all.get(at).copied().unwrap_or(0),
    };
    let params = || piece.params.iter().copied();
    let bind = Bind {
        portal: String::new(),
        statement: String::new(),
        formats: params().map(|at| of(&bind.formats, at)).collect(),
        values: params().map(|at| bind.values.get(at).cloned().flatten()).collect(),
        results: bind.results.clone(),
    };
    let types = params().map(|at| types.get(at).copied().unwrap_or(0)).collect();
    Run { shard, statement: Statement::new(piece.text.to_string(), types), bind }
}

pub fn gone() -> Stop {
    crate::pg::wire::Broken::Socket(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)).into()
}

/// What a server said.
fn said(whole: &Whole) -> Failure {
    let failure = pleat_engine::postgres::wire::backend::Failure::read(&whole.body());
    Failure::new(failure.code.as_str().to_owned(), failure.message, String::new())
}
