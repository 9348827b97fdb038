//! The simple protocol: a Query message with statements in it, each answered as it comes, in text.

use std::sync::Arc;

use pleat_cluster::{Generation, ShardId};
use pleat_engine::postgres::wire::frontend::Bind;
use pleat_engine::postgres::{Request, Statement};
use pleat_sql::postgres::{Direction, Planned, Query, Route, Shape, What};

use super::block::{Answered, controls};
use super::extended::value_of;
use super::serial::Filled;
use super::spread::Call;
use super::{ROUTES_MAX, Relay, Way, never_settled};
use crate::pg::cancel::Key;
use crate::pg::client::{Client, Stop};
use crate::pg::wire::write::Severity;
use crate::session::Failure;
use crate::settings::{PLAN_TEXT_BYTES_MAX, STATEMENTS_MAX};

impl Relay {
    /// Carry out the statements of a Query message. A failure ends it, and what is implicit about its transaction.
    pub(super) async fn query(&mut self, client: &mut Client, key: &Key, text: &str) -> Result<(), Stop> {
        // Messages that no Sync ended belong to it.
        self.sync(client, key).await?;
        let done = self.statements_of(client, key, text).await;
        if let Err(Stop::Failed(failure)) = &done {
            self.values.answered(Some(&failure.code));
        }
        self.given_out().await;
        // Also when the connection is gone: half of a message is never committed.
        if !matches!(done, Ok(false)) {
            self.fail_block();
        }
        let ended = self.end_implicitly(client, key).await;
        // What was taken for a statement that failed before it went anywhere.
        if self.block.is_none() {
            self.keep_pinned();
        }
        done?;
        ended
    }

    /// True: a server's error was passed on.
    async fn statements_of(&mut self, client: &mut Client, key: &Key, text: &str) -> Result<bool, Stop> {
        if let Some(failed) = self.shaped(client, key, text).await? {
            return Ok(failed);
        }
        let by = self.shared.app.backend.catalog().generation;
        let plan = self.plan(text)?;
        if plan.is_empty() {
            client.out.plain(b'I');
            return Ok(false);
        }
        if plan.len() > STATEMENTS_MAX {
            let hint = "send them in several messages, or load rows with COPY";
            let message = format!("a message has {} statements; the limit is {STATEMENTS_MAX}", plan.len());
            return Err(Failure::new("54000", message, hint).into());
        }
        let alone = plan.len() == 1;
        for planned in plan.iter() {
            if !alone && !controls(&planned.what) && !matches!(planned.what, What::Ddl(_)) {
                self.begin_implicitly().await?;
            }
            if self.statement(client, key, planned, by).await? {
                return Ok(true);
            }
            client.flush_much().await?;
        }
        Ok(false)
    }

    /// A statement with its values in it that concerns one shard, by the plan of its shape. `None`: the text is to be planned for itself.
    async fn shaped(&mut self, client: &mut Client, key: &Key, text: &str) -> Result<Option<bool>, Stop> {
        let Some(shape) = Some(text).filter(|text| text.len() <= PLAN_TEXT_BYTES_MAX).and_then(Shape::of) else {
            return Ok(None);
        };
        for _ in 0..ROUTES_MAX {
            self.route_anew(false);
            let done = self.routed_shape(client, key, &shape).await;
            self.routed = None;
            if !matches!(done, Err(Stop::Stale)) {
                return done;
            }
        }
        Err(never_settled())
    }

    async fn routed_shape(&mut self, client: &mut Client, key: &Key, shape: &Shape<'_>) -> Result<Option<bool>, Stop> {
        let Some((shard, writes)) = self.shard_of(shape) else { return Ok(None) };
        self.check_block()?;
        self.writes |= writes;
        Ok(Some(self.through(client, key, shard, shape.statement).await?.failed()))
    }

    /// One statement, answered in text, that was planned by this generation or a newer one. True: a server's error was passed on.
    async fn statement(
        &mut self,
        client: &mut Client,
        key: &Key,
        planned: &Planned,
        by: Generation,
    ) -> Result<bool, Stop> {
        for _ in 0..ROUTES_MAX {
            self.route_anew(false);
            // The tables may be others by now, by a statement before this one, too.
            let fresh = match self.catalog().generation == by {
                true => None,
                false => match self.plan(&planned.text) {
                    Ok(fresh) => Some(fresh),
                    Err(failure) => {
                        self.routed = None;
                        return Err(failure.into());
                    }
                },
            };
            let fresh = fresh.as_ref().and_then(|fresh| fresh.first().filter(|_| fresh.len() == 1));
            let planned = fresh.unwrap_or(planned);
            self.writes |= may_write(&planned.what);
            self.notifies |= may_notify(&planned.what);
            let done = self.routed_statement(client, key, planned).await;
            self.routed = None;
            if !matches!(done, Err(Stop::Stale)) {
                return done;
            }
        }
        Err(never_settled())
    }

    async fn routed_statement(&mut self, client: &mut Client, key: &Key, planned: &Planned) -> Result<bool, Stop> {
        match &planned.what {
            What::Query(query) => {
                self.check_block()?;
                if query.given.as_ref().map_or(!query.keys().is_empty(), |given| given.params > 0) {
                    let hint = "send values with the extended protocol, as drivers do for statements with parameters";
                    return Err(Failure::new("42P02", "there is no parameter $1", hint).into());
                }
                if let Some(given) = &query.given {
                    let filled = self.give(given, &[], &Bind::default()).await?;
                    return self.carry_out(client, key, query, &filled).await;
                }
                let catalog = self.catalog();
                self.values.goes(&catalog, query);
                match self.way_of(&catalog, query, &|_| None)? {
                    Way::One(shard) => {
                        let ended = match query.pins {
                            true => self.through_kept(client, key, shard, &planned.text).await?,
                            false => self.through(client, key, shard, &planned.text).await?,
                        };
                        Ok(ended.failed())
                    }
                    Way::Several(route) => {
                        let statement = Statement::new(planned.text.clone(), Vec::new());
                        let bind = Bind::default();
                        let call = Call { query, statement: &statement, types: &[], bind: &bind, describe: true };
                        self.several(client, key, &call, route).await
                    }
                }
            }
            What::Copy(copy) => {
                self.check_block()?;
                self.copy(client, key, planned, copy).await
            }
            _ => match self.other(client, key, planned).await? {
                Answered::Tag(tag) => {
                    client.out.complete(&tag);
                    Ok(false)
                }
                Answered::Already(done) => Ok(!done),
            },
        }
    }

    /// A statement with all its values, answered as in the simple protocol. True: a server's error was passed on.
    pub(super) async fn carry_out(
        &mut self,
        client: &mut Client,
        key: &Key,
        query: &Query,
        filled: &Filled,
    ) -> Result<bool, Stop> {
        self.notifies |= query.notifies;
        let Filled { statement, types, bind } = filled;
        let catalog = self.catalog();
        let call = Call { query, statement, types, bind, describe: true };
        match self.way_of(&catalog, query, &value_of(query, bind, types))? {
            Way::Several(route) => self.several(client, key, &call, route).await,
            Way::One(shard) => self.alone(client, key, &call, shard).await,
        }
    }

    /// Statements without parameters and rows of their own, in either protocol.
    pub(super) async fn other(&mut self, client: &mut Client, key: &Key, planned: &Planned) -> Result<Answered, Stop> {
        if controls(&planned.what) {
            return self.control(client, key, planned).await;
        }
        self.check_block()?;
        let tag = |tag: &str| Ok(Answered::Tag(tag.to_owned()));
        match &planned.what {
            What::Ddl(ddl) => self.ddl(client, key, planned, ddl).await,
            What::Set { name, local } => self.set(client, key, planned, name, *local).await,
            What::SetTransaction => match self.block {
                Some(_) => {
                    self.locally(&planned.text).await?;
                    tag("SET")
                }
                None => {
                    let message = "SET TRANSACTION can only be used in transaction blocks";
                    client.out.notice(Severity::Warning, "25P01", message);
                    tag("SET")
                }
            },
            What::SetSessionCharacteristics => self.set(client, key, planned, "session characteristics", false).await,
            What::Reset(name) => {
                if !self.set_everywhere(client, key, &planned.text).await? {
                    return Ok(Answered::Already(false));
                }
                self.settings.reset(name.as_deref())?;
                Ok(Answered::Already(true))
            }
            What::Discard { all } => {
                if *all {
                    if self.block.is_some() {
                        let hint = "end the transaction first";
                        let message = "DISCARD ALL cannot run inside a transaction block";
                        return Err(Failure::new("25001", message, hint).into());
                    }
                    self.settings.reset(None)?;
                    self.statements.clear();
                    self.portals.clear();
                    self.pinned = None;
                    self.parts.clear();
                    self.held.clear();
                    return tag("DISCARD ALL");
                }
                match self.pinned {
                    Some(shard) => {
                        Ok(Answered::Already(!self.through(client, key, shard, &planned.text).await?.failed()))
                    }
                    // A session that is not pinned has nothing to discard.
                    None => tag(&planned.text.to_ascii_uppercase()),
                }
            }
            What::Deallocate(name) => {
                match name {
                    Some(name) => {
                        drop(self.statements.remove(name).ok_or_else(|| crate::pg::extended::no_statement(name))?)
                    }
                    None => self.statements.clear(),
                }
                tag(if name.is_some() { "DEALLOCATE" } else { "DEALLOCATE ALL" })
            }
            What::Listen => {
                let shard = self.catalog().anchor().map_or_else(|| self.any(&self.catalog()), Ok)?;
                let failed = self.through_kept(client, key, shard, &planned.text).await?.failed();
                Ok(Answered::Already(!failed))
            }
            What::Notify => {
                let shard = self.catalog().anchor().map_or_else(|| self.any(&self.catalog()), Ok)?;
                Ok(Answered::Already(!self.through(client, key, shard, &planned.text).await?.failed()))
            }
            What::Declare { name, hold, query, text } => {
                let catalog = self.catalog();
                let shard = match self.way_of(&catalog, query, &|_| None)? {
                    Way::One(shard) => shard,
                    Way::Several(route) => {
                        let statement = Statement::new(text.clone(), Vec::new());
                        let bind = Bind::default();
                        let call = Call { query, statement: &statement, types: &[], bind: &bind, describe: false };
                        return match self.declare(client, key, &call, route, (name, *hold)).await? {
                            true => Ok(Answered::Already(false)),
                            false => tag("DECLARE CURSOR"),
                        };
                    }
                };
                let ended = match hold {
                    true => self.through_kept(client, key, shard, &planned.text).await?,
                    false => self.through(client, key, shard, &planned.text).await?,
                };
                if !ended.failed() {
                    self.cursors.insert(name.clone(), shard);
                }
                Ok(Answered::Already(!ended.failed()))
            }
            What::Fetch { cursor } => self.on_cursor(client, key, planned, Some(cursor)).await,
            What::Close(cursor) => self.on_cursor(client, key, planned, cursor.as_deref()).await,
            What::Prepare { name, types, statement } => {
                self.prepare_by_name(name, types, statement).await?;
                tag("PREPARE")
            }
            What::Execute { name, values } => {
                Ok(Answered::Already(!self.execute_by_name(client, key, name, values).await?))
            }
            What::PrepareTransaction => {
                let hint = "COMMIT does it where several shards were written to";
                Err(Failure::new("0A000", "two-phase commit is Pleat's own to do", hint).into())
            }
            _ => Err(Failure::internal("a statement is of no kind that is known").into()),
        }
    }

    async fn on_cursor(
        &mut self,
        client: &mut Client,
        key: &Key,
        planned: &Planned,
        cursor: Option<&str>,
    ) -> Result<Answered, Stop> {
        let closes = matches!(planned.what, What::Close(_));
        if let Some(name) = cursor
            && let Some(failed) = self.on_held(client, key, name, [Request::Query(planned.text.clone())]).await?
        {
            if closes && !failed {
                self.held.remove(name);
            }
            return Ok(Answered::Already(!failed));
        }
        if closes && cursor.is_none() {
            self.held.clear();
        }
        let known = cursor.and_then(|cursor| self.cursors.get(cursor).copied());
        let shard = match known {
            Some(shard) => shard,
            None => self.any(&self.catalog())?,
        };
        let failed = self.through(client, key, shard, &planned.text).await?.failed();
        Ok(Answered::Already(!failed))
    }

    /// SET. A server says whether it can be; then it is every connection's that the session uses.
    async fn set(
        &mut self,
        client: &mut Client,
        key: &Key,
        planned: &Planned,
        name: &str,
        local: bool,
    ) -> Result<Answered, Stop> {
        if local && self.block.is_none() {
            client.out.notice(Severity::Warning, "25P01", "SET LOCAL can only be used in transaction blocks");
            return Ok(Answered::Tag("SET".to_owned()));
        }
        super::settings::check(name, super::settings::value_of(&planned.text))?;
        if !self.set_everywhere(client, key, &planned.text).await? {
            return Ok(Answered::Already(false));
        }
        match local {
            true => self.remember_locally(&planned.text),
            false => self.settings.set(name, &planned.text)?,
        }
        Ok(Answered::Already(true))
    }

    /// Have a setting made on one shard, and if that takes it on all connections that the session has. False: it did not.
    async fn set_everywhere(&mut self, client: &mut Client, key: &Key, text: &str) -> Result<bool, Stop> {
        let shard = self.any(&self.catalog())?;
        let others: Vec<ShardId> = self.parts.keys().copied().filter(|other| *other != shard).collect();
        if self.through(client, key, shard, text).await?.failed() {
            return Ok(false);
        }
        for other in others {
            if let Some(part) = self.parts.get_mut(&other)
                && let Err(error) = part.lease.ask(text).await
            {
                self.lose([other]);
                return Err(Stop::Failed(error.into()));
            }
        }
        Ok(true)
    }

    /// Where a query goes.
    pub(super) fn way_of<'q>(
        &self,
        catalog: &Arc<pleat_cluster::Catalog>,
        query: &'q Query,
        value: &dyn Fn(usize) -> Option<pleat_cluster::Value>,
    ) -> Result<Way<'q>, Failure> {
        // One shard has everything.
        let mut active = catalog.active_shards().map(|shard| shard.id);
        if let (Some(sole), None) = (active.next(), active.next()) {
            return Ok(Way::One(sole));
        }
        let count = catalog.partition_count;
        let route = query.route(value, count)?;
        if let (Route::Any, true, Some(anchor)) = (&route, query.counts || query.notifies, catalog.anchor()) {
            return Ok(Way::One(anchor));
        }
        // Also where the row is on the right server by chance: it may move.
        if query.notifies && !matches!(route, Route::Any) {
            let message = "pg_notify would notify on the servers of the rows, where nobody listens";
            let hint = "read the rows first; then NOTIFY, or SELECT pg_notify(…) without FROM";
            return Err(Failure::new("0A000", message, hint));
        }
        self.way(catalog, route, &|| query.scatter(value, count))
    }
}

/// Whether a statement may change rows. What is done about it besides, such as keeping a connection, is no question here.
pub fn may_write(what: &What) -> bool {
    match what {
        What::Query(query) | What::Declare { query, .. } => query.writes,
        What::Copy(copy) => match &copy.query {
            Some((_, query)) => query.writes,
            None => copy.direction == Direction::In,
        },
        What::Execute { .. } => true,
        _ => false,
    }
}

/// Whether a statement notifies those who listen. (What EXECUTE runs is known when it is run.)
pub fn may_notify(what: &What) -> bool {
    match what {
        What::Notify => true,
        What::Query(query) | What::Declare { query, .. } => query.notifies,
        What::Copy(copy) => copy.query.as_ref().is_some_and(|(_, query)| query.notifies),
        _ => false,
    }
}
