//! The extended protocol: Parse, Bind, Describe, Execute, Close, and Sync at the end.
//!
//! Messages up to a Sync have a *home*: the shard that the first Bind among them goes to. Those before it wait (`pending`); all go out together when
//! the client waits for an answer. A Bind for another shard makes what was done at home a transaction, and that shard the home.
//!
//! What Pleat answers itself (BEGIN, SET, statements of several shards) comes after what the home still has to answer.

use std::sync::Arc;

use bytes::Bytes;
use pleat_cluster::{KeyType, ShardId, Value};
use pleat_engine::postgres::wire::frontend::Bind;
use pleat_engine::postgres::{Request, Statement};
use pleat_sql::postgres::{Planned, Query, What};

use super::block::{Answered, controls};
use super::part::Ended;
use super::serial::Filled;
use super::simple::{may_notify, may_write};
use super::spread::Call;
use super::{ROUTES_MAX, Relay, Way, never_settled};
use crate::pg::cancel::Key;
use crate::pg::client::{Client, Stop};

use crate::pg::extended::{check_name, no_portal, no_statement};
use crate::pg::wire::{Message, Target};
use crate::session::Failure;
use crate::settings::{PG_HELD_BYTES_MAX, PG_STATEMENTS_MAX};

/// A prepared statement of the client.
pub struct Prepared {
    text: String,
    /// As it is on servers.
    statement: Arc<Statement>,
    /// The types that the client named; 0 where it left it open.
    types: Vec<u32>,
}

/// A statement with its values.
pub struct Portal {
    prepared: Arc<Prepared>,
    place: Place,
    bytes: usize,
}

/// Where a portal is.
enum Place {
    /// Open on this shard.
    On(ShardId),
    /// Here: several shards have a part in it.
    Here(Bind),
    /// Here, and of a statement without rows.
    Other,
}

impl Relay {
    /// Carry out a message of the extended protocol, other than Sync. True: an error of a server was passed on.
    pub(super) async fn extended(&mut self, client: &mut Client, key: &Key, message: Message) -> Result<bool, Stop> {
        for _ in 0..ROUTES_MAX {
            self.route_anew(false);
            let done = self.routed_message(client, key, message.clone()).await;
            self.routed = None;
            if !matches!(done, Err(Stop::Stale)) {
                return done;
            }
        }
        Err(never_settled())
    }

    async fn routed_message(&mut self, client: &mut Client, key: &Key, message: Message) -> Result<bool, Stop> {
        match message {
            Message::Parse { name, text, types } => self.parse(client, key, name, text, types).await,
            Message::Bind(bind) => self.bind(client, key, bind).await,
            Message::Describe(target) => self.describe(client, key, &target).await,
            Message::Execute { portal, rows } => self.execute(client, key, portal, rows).await,
            Message::Close(target) => self.close(client, key, target).await,
            Message::Flush => {
                let failed = self.settle(client, key).await?;
                client.flush().await?;
                Ok(failed)
            }
            _ => Ok(false),
        }
    }

    async fn parse(
        &mut self,
        client: &mut Client,
        key: &Key,
        name: String,
        text: String,
        types: Vec<u32>,
    ) -> Result<bool, Stop> {
        check_name(&name)?;
        let plan = self.plan(&text)?;
        if plan.len() > 1 {
            let hint = "prepare them one by one, or send them in a simple query";
            return Err(Failure::new("42601", "cannot insert multiple commands into a prepared statement", hint).into());
        }
        if !name.is_empty() && self.statements.contains_key(&name) {
            let hint = "close it first, or use another name";
            return Err(Failure::new("42P05", format!("prepared statement \"{name}\" already exists"), hint).into());
        }
        let routed = matches!(plan.first(), None | Some(Planned { what: What::Query(_), .. }));
        if !plan.first().is_some_and(|planned| controls(&planned.what)) {
            self.check_block()?;
        }
        self.check_room(text.len() + types.len() * 4)?;
        let statement = Statement::new(text.clone(), types.clone());
        let failed = match routed {
            true => {
                self.forward(Request::Parse(statement.clone()))?;
                false
            }
            false => self.own(client, key, b'1').await?,
        };
        self.statements.insert(name, Arc::new(Prepared { text, statement, types }));
        Ok(failed)
    }

    /// PREPARE, as a statement.
    pub(super) async fn prepare_by_name(
        &mut self,
        name: &str,
        types: &[String],
        statement: &Planned,
    ) -> Result<(), Failure> {
        check_name(name)?;
        if self.statements.contains_key(name) {
            let hint = "DEALLOCATE it first, or use another name";
            return Err(Failure::new("42P05", format!("prepared statement \"{name}\" already exists"), hint));
        }
        if !matches!(statement.what, What::Query(_)) {
            return Err(Failure::new("42601", "only SELECT, INSERT, UPDATE, DELETE and VALUES can be prepared", ""));
        }
        self.check_room(statement.text.len() + types.len() * 4)?;
        let types: Vec<u32> = types.iter().map(|name| oid::of(name)).collect();
        let prepared = Statement::new(statement.text.clone(), types.clone());
        // The server looks at it now, as a client expects.
        self.described(&prepared).await?;
        let text = statement.text.clone();
        self.statements.insert(name.to_owned(), Arc::new(Prepared { text, statement: prepared, types }));
        Ok(())
    }

    /// EXECUTE, as a statement. A server computes the values, which may be any expressions. True: a server's error was passed on.
    pub(super) async fn execute_by_name(
        &mut self,
        client: &mut Client,
        key: &Key,
        name: &str,
        values: &[String],
    ) -> Result<bool, Stop> {
        let prepared = self.statements.get(name).cloned().ok_or_else(|| no_statement(name))?;
        let values = match values {
            [] => Vec::new(),
            values => {
                let shard = self.any(&self.catalog())?;
                let asked = self.lease(shard).await?.ask(&format!("SELECT {}", values.join(", "))).await?;
                asked.rows.into_iter().next().unwrap_or_default()
            }
        };
        let bind = Bind { values: values.into_iter().map(|value| value.map(Bytes::from)).collect(), ..Bind::default() };
        let plan = self.plan(&prepared.text)?;
        let Some(Planned { what: What::Query(query), .. }) = plan.first() else {
            return Err(no_statement(name).into());
        };
        let filled = match &query.given {
            Some(given) => self.give(given, &prepared.types, &bind).await?,
            None => {
                self.values.goes(&self.catalog(), query);
                Filled { statement: prepared.statement.clone(), types: prepared.types.clone(), bind }
            }
        };
        self.carry_out(client, key, query, &filled).await
    }

    async fn bind(&mut self, client: &mut Client, key: &Key, bind: Bind) -> Result<bool, Stop> {
        check_name(&bind.portal)?;
        let prepared = self.statements.get(&bind.statement).cloned().ok_or_else(|| no_statement(&bind.statement))?;
        if !bind.portal.is_empty() && self.portals.contains_key(&bind.portal) {
            let hint = "close it first, or use another name";
            return Err(Failure::new("42P03", format!("portal \"{}\" already exists", bind.portal), hint).into());
        }
        let bytes = bind.values.iter().flatten().map(Bytes::len).sum();
        self.check_room(bytes)?;
        let plan = self.plan(&prepared.text)?;
        let name = bind.portal.clone();
        let (mut prepared, mut bind) = (prepared, bind);
        let (place, failed) = match plan.first() {
            Some(Planned { what: What::Query(query), .. }) => {
                self.check_block()?;
                self.writes |= query.writes;
                if let Some(given) = &query.given {
                    let Filled { statement, types, bind: filled } = self.give(given, &prepared.types, &bind).await?;
                    bind = filled;
                    prepared = Arc::new(Prepared { text: prepared.text.clone(), statement, types });
                }
                let catalog = self.catalog();
                self.values.goes(&catalog, query);
                let way = self.way_of(&catalog, query, &value_of(query, &bind, &prepared.types))?;
                match way {
                    Way::One(shard) => {
                        let failed = self.go_home(client, key, shard).await?;
                        self.forward(Request::Bind(prepared.statement.clone(), bind))?;
                        (Place::On(shard), failed)
                    }
                    Way::Several(_) => (Place::Here(bind), self.own(client, key, b'2').await?),
                }
            }
            // An empty statement is the server's to answer.
            None => {
                let shard = self.any(&self.catalog())?;
                let failed = self.go_home(client, key, shard).await?;
                self.forward(Request::Bind(prepared.statement.clone(), bind))?;
                (Place::On(shard), failed)
            }
            Some(planned) => {
                if !controls(&planned.what) {
                    self.check_block()?;
                }
                (Place::Other, self.own(client, key, b'2').await?)
            }
        };
        self.portals.insert(name, Portal { prepared, place, bytes });
        Ok(failed)
    }

    async fn describe(&mut self, client: &mut Client, key: &Key, target: &Target) -> Result<bool, Stop> {
        match target {
            Target::Statement(name) => {
                let prepared = self.statements.get(name).cloned().ok_or_else(|| no_statement(name))?;
                let plan = self.plan(&prepared.text)?;
                if !matches!(plan.first(), None | Some(Planned { what: What::Query(_), .. })) {
                    let failed = self.settle(client, key).await?;
                    client.out.parameter_types(&[]);
                    client.out.plain(b'n');
                    return Ok(failed);
                }
                let failed = self.somewhere(client, key).await?;
                self.forward(Request::DescribeStatement(prepared.statement.clone()))?;
                Ok(failed)
            }
            Target::Portal(name) => {
                let Some(portal) = self.portals.get(name) else { return self.describe_cursor(client, key, name).await };
                match &portal.place {
                    Place::On(shard) => {
                        let shard = *shard;
                        let failed = self.go_home(client, key, shard).await?;
                        self.forward(Request::DescribePortal(name.clone()))?;
                        Ok(failed)
                    }
                    Place::Other => self.own(client, key, b'n').await,
                    Place::Here(bind) => {
                        let (statement, formats) = (portal.prepared.statement.clone(), bind.results.clone());
                        let failed = self.settle(client, key).await?;
                        Ok(failed || self.describe_here(client, key, &statement, &formats).await?)
                    }
                }
            }
        }
    }

    /// A cursor is a portal of its name.
    async fn describe_cursor(&mut self, client: &mut Client, key: &Key, name: &str) -> Result<bool, Stop> {
        let describe = Request::DescribePortal(name.to_owned());
        if let Some(shard) = self.cursors.get(name).copied() {
            let failed = self.go_home(client, key, shard).await?;
            self.forward(describe)?;
            return Ok(failed);
        }
        let failed = self.settle(client, key).await?;
        match self.on_held(client, key, name, [describe, Request::Sync]).await? {
            Some(wrong) => Ok(failed || wrong),
            None => Err(no_portal(name).into()),
        }
    }

    async fn execute(&mut self, client: &mut Client, key: &Key, name: String, rows: u32) -> Result<bool, Stop> {
        let portal = self.portals.get(&name).ok_or_else(|| no_portal(&name))?;
        let prepared = portal.prepared.clone();
        let plan = self.plan(&prepared.text)?;
        self.writes |= plan.first().is_some_and(|planned| may_write(&planned.what));
        self.notifies |= plan.first().is_some_and(|planned| may_notify(&planned.what));
        if let Place::On(shard) = portal.place {
            let failed = self.go_home(client, key, shard).await?;
            self.forward(Request::Execute { portal: name, rows })?;
            if let Some(part) = self.parts.get_mut(&shard) {
                part.executed = true;
                part.notified |= self.notifies;
            }
            if let Some(Planned { what: What::Query(query), .. }) = plan.first() {
                // Whether it fails shows only later: a connection too much is kept then.
                if query.pins {
                    self.pinned.get_or_insert(shard);
                }
            }
            return Ok(failed);
        }
        if self.settle(client, key).await? {
            return Ok(true);
        }
        let Some(portal) = self.portals.remove(&name) else { return Ok(false) };
        let Some(planned) = plan.first() else { return Ok(false) };
        let (place, bytes) = (portal.place, portal.bytes);
        match (place, &planned.what) {
            (Place::Here(bind), What::Query(query)) => {
                self.check_block()?;
                if query.given.as_ref().is_some_and(|given| given.text != prepared.statement.text()) {
                    // A schema change since the Bind.
                    return Err(stale_plan().into());
                }
                let catalog = self.catalog();
                if client.reader.peek().await? != Some(b'S') || self.has_done_something() {
                    self.begin_implicitly().await?;
                }
                let call = Call {
                    query,
                    statement: &prepared.statement,
                    types: &prepared.types,
                    bind: &bind,
                    describe: false,
                };
                let done = match self.way_of(&catalog, query, &value_of(query, &bind, &prepared.types))? {
                    Way::Several(route) => self.several(client, key, &call, route).await,
                    // Partitions have moved together meanwhile.
                    Way::One(shard) => self.alone(client, key, &call, shard).await,
                };
                if matches!(done, Err(Stop::Stale)) {
                    self.portals.insert(name, Portal { prepared, place: Place::Here(bind), bytes });
                }
                done
            }
            (Place::Other, What::Copy(_)) => Err(Failure::new(
                "0A000",
                "COPY is a statement of its own, without parameters",
                "send it with the simple protocol; drivers have a call for COPY",
            )
            .into()),
            (Place::Other, _) => match self.other(client, key, planned).await {
                Ok(Answered::Tag(tag)) => {
                    client.out.complete(&tag);
                    Ok(false)
                }
                Ok(Answered::Already(done)) => Ok(!done),
                Err(Stop::Stale) => {
                    self.portals.insert(name, Portal { prepared, place: Place::Other, bytes });
                    Err(Stop::Stale)
                }
                Err(stop) => Err(stop),
            },
            _ => Err(stale_plan().into()),
        }
    }

    async fn close(&mut self, client: &mut Client, key: &Key, target: Target) -> Result<bool, Stop> {
        let place = match target {
            Target::Statement(name) => {
                self.statements.remove(&name);
                None
            }
            Target::Portal(name) => self.portals.remove(&name).map(|portal| (name, portal.place)),
        };
        match place {
            Some((name, Place::On(shard))) => {
                let failed = self.go_home(client, key, shard).await?;
                self.forward(Request::ClosePortal(name))?;
                Ok(failed)
            }
            _ if self.home.is_some() || !self.pending.is_empty() => {
                self.forward(Request::CloseStatement)?;
                Ok(false)
            }
            _ => self.own(client, key, b'3').await,
        }
    }

    /// The end of a series.
    pub(super) async fn sync(&mut self, client: &mut Client, key: &Key) -> Result<(), Stop> {
        for _ in 0..ROUTES_MAX {
            if self.home.is_some() || self.pending.is_empty() {
                break;
            }
            self.route_anew(false);
            let went = self.somewhere(client, key).await;
            self.routed = None;
            match went {
                Err(Stop::Stale) => {}
                Err(stop) => {
                    self.pending.clear();
                    self.fail_block();
                    self.end_implicitly(client, key).await?;
                    return Err(stop);
                }
                Ok(_) => {}
            }
        }
        if let Some(home) = self.home.take()
            && let Some(part) = self.parts.get_mut(&home)
        {
            part.lease.push(Request::Sync)?;
            if !self.discards {
                self.pump(client, key, home).await?;
            } else if drain(part).await.is_err() {
                self.lose([home]);
            }
        }
        self.given_out().await;
        self.discards = false;
        self.pending.clear();
        let ended = self.end_implicitly(client, key).await;
        if self.block.is_none() {
            self.portals.clear();
            self.keep_pinned();
        }
        ended
    }

    /// Something of Pleat's own failed in the middle of a series: what was sent in it has no effect, and what the servers say to it is not passed on.
    pub(super) fn give_up_series(&mut self) {
        self.pending.clear();
        let Some(home) = self.home else { return };
        match self.parts.get(&home) {
            // Its block has failed, and takes it back.
            Some(part) if part.open => self.discards = true,
            _ => {
                // Closed in the middle, the connection takes back what was done on it.
                self.leave(home);
                self.home = None;
            }
        }
    }

    /// Send something with the series.
    fn forward(&mut self, request: Request) -> Result<(), Failure> {
        match self.home.and_then(|home| self.parts.get_mut(&home)) {
            Some(part) => Ok(part.lease.push(request)?),
            None => {
                self.pending.push(request);
                Ok(())
            }
        }
    }

    /// Give the series a home, wherever.
    async fn somewhere(&mut self, client: &mut Client, key: &Key) -> Result<bool, Stop> {
        match self.home {
            Some(_) => Ok(false),
            None => {
                let shard = self.any(&self.catalog())?;
                self.go_home(client, key, shard).await
            }
        }
    }

    /// Make a shard the home of the series. True: the one before it had failed.
    async fn go_home(&mut self, client: &mut Client, key: &Key, shard: ShardId) -> Result<bool, Stop> {
        if self.home == Some(shard) {
            self.admit(shard).await?;
            return Ok(false);
        }
        if self.settle(client, key).await? {
            return Ok(true);
        }
        // What was done there has to end with what is done elsewhere.
        if self.has_done_something() {
            self.begin_implicitly().await?;
        }
        if let Some(left) = self.home.take()
            && let Some(part) = self.parts.get_mut(&left)
            && !part.open
        {
            part.lease.push(Request::Sync)?;
            drain(part).await?;
            if self.pinned != Some(left) {
                self.parts.remove(&left);
            }
        }
        self.send_pending(shard).await?;
        Ok(false)
    }

    /// What had no home yet goes to this one.
    async fn send_pending(&mut self, shard: ShardId) -> Result<(), Stop> {
        self.part(shard).await?;
        let pending = std::mem::take(&mut self.pending);
        let part = self.part(shard).await?;
        for request in pending {
            part.lease.push(request)?;
        }
        self.home = Some(shard);
        Ok(())
    }

    /// Have everything answered that was sent. True: something failed, and the client was told.
    async fn settle(&mut self, client: &mut Client, key: &Key) -> Result<bool, Stop> {
        if self.home.is_none() && self.pending.is_empty() {
            return Ok(false);
        }
        if self.home.is_none() {
            let shard = self.any(&self.catalog())?;
            self.send_pending(shard).await?;
        }
        let Some(home) = self.home else { return Ok(false) };
        let Some(part) = self.parts.get_mut(&home) else { return Ok(false) };
        part.lease.push(Request::Flush)?;
        match self.pump(client, key, home).await? {
            Ended::Answered { failed } | Ended::Ready { failed } => Ok(failed),
        }
    }

    /// Answer a message without a body, in its place.
    async fn own(&mut self, client: &mut Client, key: &Key, tag: u8) -> Result<bool, Stop> {
        let failed = self.settle(client, key).await?;
        if !failed {
            client.out.plain(tag);
        }
        Ok(failed)
    }

    /// Whether there is room for one more statement or portal of so many bytes.
    fn check_room(&self, bytes: usize) -> Result<(), Failure> {
        let statements = self.statements.values().map(|one| one.text.len() + one.types.len() * 4);
        let held = statements.chain(self.portals.values().map(|one| one.bytes)).sum::<usize>();
        if self.statements.len() + self.portals.len() < PG_STATEMENTS_MAX && held + bytes <= PG_HELD_BYTES_MAX {
            return Ok(());
        }
        Err(Failure::new(
            "53400",
            format!(
                "a connection keeps at most {PG_STATEMENTS_MAX} prepared statements and portals, of {PG_HELD_BYTES_MAX} bytes"
            ),
            "close those that are not used any more, or DEALLOCATE ALL",
        ))
    }
}

/// Read up to ReadyForQuery what nobody is to see.
async fn drain(part: &mut super::part::Part) -> Result<(), Failure> {
    use pleat_engine::postgres::Reply;
    loop {
        match part.lease.receive().await? {
            Reply::Ready { .. } => return Ok(()),
            Reply::CopyIn => part.lease.copy_fail("given up"),
            Reply::Bytes(_) | Reply::Answered => {}
        }
    }
}

/// Types by their numbers in `pg_type`.
pub mod oid {
    pub const BYTEA: u32 = 17;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const UNKNOWN: u32 = 705;
    pub const VARCHAR: u32 = 1043;
    pub const UUID: u32 = 2950;

    /// Of a type's name in SQL; 0, which leaves it to the server, where it is another.
    pub fn of(name: &str) -> u32 {
        let name = name.split('(').next().unwrap_or_default().trim().to_ascii_lowercase();
        match name.as_str() {
            "smallint" | "int2" => INT2,
            "integer" | "int" | "int4" => INT4,
            "bigint" | "int8" => INT8,
            "text" => TEXT,
            "varchar" | "character varying" => VARCHAR,
            "uuid" => UUID,
            "bytea" => BYTEA,
            "boolean" | "bool" => 16,
            "real" | "float4" => 700,
            "double precision" | "float8" => 701,
            "date" => 1082,
            "timestamp" => 1114,
            "timestamptz" | "timestamp with time zone" => 1184,
            "numeric" | "decimal" => 1700,
            _ => 0,
        }
    }
}

fn stale_plan() -> Failure {
    Failure::new("0A000", "cached plan must not change result type", "prepare the statement again")
}

/// The values of the parameters that a query is routed by.
pub fn value_of<'v>(query: &'v Query, bind: &'v Bind, types: &'v [u32]) -> impl Fn(usize) -> Option<Value> + 'v {
    move |at: usize| {
        let of = query.keys().iter().find(|(known, _)| *known == at).map(|(_, of)| *of)?;
        key_value(bind, types, at, of)
    }
}

/// A parameter's value, where it is compared with a key of this type. `None`: it can't be told what the server makes of it.
pub(super) fn key_value(bind: &Bind, types: &[u32], at: usize, of: KeyType) -> Option<Value> {
    let Some(bytes) = bind.values.get(at)? else { return Some(Value::Null) };
    let binary = match bind.formats.as_slice() {
        [] => false,
        [one] => *one == 1,
        all => *all.get(at)? == 1,
    };
    let declared = types.get(at).copied().unwrap_or(0);
    let open = matches!(declared, 0 | oid::UNKNOWN);
    match (of, binary) {
        (KeyType::Integer, false) if open || matches!(declared, oid::INT2 | oid::INT4 | oid::INT8) => {
            let text = std::str::from_utf8(bytes).ok()?;
            text.trim().parse().ok().map(Value::Integer)
        }
        (KeyType::Integer, true) => {
            let wanted = match declared {
                oid::INT2 => 2,
                oid::INT4 => 4,
                oid::INT8 => 8,
                _ if open => bytes.len(),
                _ => return None,
            };
            match (wanted == bytes.len()).then_some(&bytes[..])? {
                [a, b] => Some(Value::Integer(i16::from_be_bytes([*a, *b]).into())),
                [a, b, c, d] => Some(Value::Integer(i32::from_be_bytes([*a, *b, *c, *d]).into())),
                bytes => Some(Value::Integer(i64::from_be_bytes(bytes.try_into().ok()?))),
            }
        }
        (KeyType::Text, _) if open || matches!(declared, oid::TEXT | oid::VARCHAR) => {
            Some(Value::Text(std::str::from_utf8(bytes).ok()?.to_owned()))
        }
        (KeyType::Uuid, false) if open || declared == oid::UUID => {
            Some(Value::Text(std::str::from_utf8(bytes).ok()?.trim().to_owned()))
        }
        (KeyType::Uuid, true) if open || declared == oid::UUID => {
            let bytes: [u8; 16] = bytes[..].try_into().ok()?;
            Some(Value::Text(uuid::Uuid::from_bytes(bytes).to_string()))
        }
        (KeyType::Bytes, true) if open || declared == oid::BYTEA => Some(Value::Blob(bytes.to_vec())),
        (KeyType::Bytes, false) if open || declared == oid::BYTEA => {
            let digits = bytes.strip_prefix(b"\\x")?;
            let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let whole = digits.len() % 2 == 0;
            digits.chunks(2).map(pair).collect::<Option<Vec<u8>>>().filter(|_| whole).map(Value::Blob)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(bytes: &[u8], format: i16) -> Bind {
        Bind { formats: vec![format], values: vec![Some(Bytes::copy_from_slice(bytes))], ..Bind::default() }
    }

    #[test]
    fn keys_are_read_as_the_server_reads_them() {
        let read = |bytes: &[u8], format, declared: u32, of| key_value(&bind(bytes, format), &[declared], 0, of);
        for (bytes, format, declared) in [
            (&b"42"[..], 0, 0),
            (b" 42 ", 0, oid::INT4),
            (&[0, 42], 1, 0),
            (&[0, 0, 0, 42], 1, oid::INT4),
            (&[0, 0, 0, 0, 0, 0, 0, 42], 1, oid::INT8),
        ] {
            assert_eq!(read(bytes, format, declared, KeyType::Integer), Some(Value::Integer(42)), "{bytes:?}");
        }
        // A float of eight bytes, and an integer of the wrong size, are none.
        assert_eq!(read(&[0x40, 0x45, 0, 0, 0, 0, 0, 0], 1, 701, KeyType::Integer), None);
        assert_eq!(read(&[0, 42], 1, oid::INT8, KeyType::Integer), None);
        assert_eq!(read(b"4.2", 0, 0, KeyType::Integer), None);
        assert_eq!(read(b"abc", 1, 0, KeyType::Text), Some(Value::from("abc")));
        assert_eq!(read(b"abc", 0, 1042, KeyType::Text), None, "char(n) pads");
        let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
        let bytes = uuid::Uuid::parse_str(uuid).unwrap().into_bytes();
        assert_eq!(read(&bytes, 1, oid::UUID, KeyType::Uuid), Some(Value::from(uuid)));
        assert_eq!(read(b"\\xdead", 0, 0, KeyType::Bytes), Some(Value::Blob(vec![0xde, 0xad])));
        assert_eq!(read(b"\\xdea", 0, 0, KeyType::Bytes), None);
        assert_eq!(
            key_value(&Bind { values: vec![None], ..Bind::default() }, &[], 0, KeyType::Text),
            Some(Value::Null)
        );
        assert_eq!(key_value(&Bind::default(), &[], 0, KeyType::Text), None);
    }
}
