//! Values that Pleat gives: those of serial and identity columns of tables that are not single, from the ledger's blocks.
//!
//! # The problem
//!
//! Each server would count from 1, and a row's shard may follow from the value. So the value is chosen here, before the statement is routed: the
//! planner has written places for it ([`Given`]), and they are bound like the client's own parameters.
//!
//! # Rules
//!
//! - *No value is given twice*, on whichever node, whatever dies: a node takes a block from the ledger and gives it out from memory; what is left
//!   when it ends is a gap. So is what a statement was given that failed, was rolled back, or was routed anew: then it gets other values.
//! - *A server gives none.* Its own sequences are at their ends from the moment in which it has the table ([`pleat_cluster::withhold`]: in the same
//!   transaction; in a new server before rows come). What reaches one nevertheless gets `2200H`: a trigger, a function, and a statement that a router
//!   planned by an older catalog, in which the table was single.
//! - *Values by hand* are the client's business, as in PostgreSQL, where the sequence doesn't notice: whoever meets one gets `23505`. But a block
//!   begins above the largest value of a primary key, and after a `23505` the node leaves out what it finds taken in its block (it looks once a
//!   second at most), so that this happens once and not a thousand times. `setval` raises the ledger's number, and never lowers it.
//! - `currval` and `lastval` are kept in the session: its servers know nothing of them. Which value a single table's server gave last is not known
//!   here, and then `lastval` answers none.
//!
//! # Caveats
//!
//! A unique constraint that holds because Pleat gives the values ([`pleat_cluster::Serial::sole`]) is broken by a trigger that sets the column
//! itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use pleat_cluster::{Catalog, Serial, Table, TableId};
use pleat_engine::postgres::Statement;
use pleat_engine::postgres::wire::frontend::Bind;
use pleat_sql::postgres::{Given, GivenValue, Query, Verb};

use super::Relay;
use super::ddl::written;
use super::extended::oid;
use crate::session::Failure;

/// How long servers are asked for the largest value that they have. A table that the session has locked itself is not waited for.
const LARGEST_TIME_MAX: Duration = Duration::from_secs(5);
const LARGEST_PATIENCE: &str = "SET LOCAL lock_timeout = '300ms'; SET LOCAL statement_timeout = '3s'";

/// A row has a value that another has.
const DUPLICATE: &str = "23505";

/// What a session was given.
#[derive(Debug, Default)]
pub struct Values {
    current: BTreeMap<TableId, i64>,
    last: Last,
    /// Tables whose values statements got that are not known to have been done.
    unsure: BTreeMap<TableId, String>,
    /// One of these statements met a value that was there.
    met: bool,
}

/// What `lastval` answers.
#[derive(Debug, Default)]
enum Last {
    #[default]
    None,
    Given(i64),
    /// The value came from a server, whose session has perhaps been another's since.
    OfServer,
}

impl Values {
    /// A server has answered, perhaps with an error.
    pub(super) fn answered(&mut self, code: Option<&str>) {
        self.met |= code == Some(DUPLICATE) && !self.unsure.is_empty();
    }

    /// A statement goes to servers with no value of Pleat's: if one of these counts now, it is not known here.
    pub(super) fn goes(&mut self, catalog: &Catalog, query: &Query) {
        let counts = |name: &String| catalog.tables.get(name).is_some_and(of_server);
        let inserts = query.writes && !matches!(query.verb, Verb::Update | Verb::Delete);
        if query.counts || inserts && query.given.is_none() && query.tables.iter().any(counts) {
            self.last = Last::OfServer;
        }
    }

    /// The same of rows that are copied into a table.
    pub(super) fn goes_into(&mut self, table: &Table) {
        if of_server(table) {
            self.last = Last::OfServer;
        }
    }
}

/// Whether it is a server that gives the values of a table.
fn of_server(table: &Table) -> bool {
    table.serial().is_none() && table.columns.iter().any(|column| column.serial.is_some())
}

/// A statement with its values.
pub struct Filled {
    pub statement: Arc<Statement>,
    pub types: Vec<u32>,
    pub bind: Bind,
}

impl Relay {
    /// Give a statement its values. `types` and `bind` are the client's.
    pub(super) async fn give(&mut self, given: &Given, types: &[u32], bind: &Bind) -> Result<Filled, Failure> {
        let (wanted, found) = (given.params, bind.values.len());
        if found < wanted {
            let message = format!("bind message supplies {found} parameters, but the statement requires {wanted}");
            return Err(Failure::new("08P01", message, "bind a value for each parameter"));
        }
        let mut filled = bind.clone();
        filled.values.truncate(wanted);
        for value in self.values_of(&given.values).await? {
            filled.values.push(Some(Bytes::from(value.to_string())));
        }
        let format = |at: usize| match bind.formats.as_slice() {
            _ if at >= wanted => 0,
            [] => 0,
            [one] => *one,
            all => all.get(at).copied().unwrap_or(0),
        };
        filled.formats = (0..filled.values.len()).map(format).collect();
        let kind = |at: usize| if at < wanted { types.get(at).copied().unwrap_or(0) } else { oid::INT8 };
        let types: Vec<u32> = (0..filled.values.len()).map(kind).collect();
        Ok(Filled { statement: Statement::new(given.text.clone(), types.clone()), types, bind: filled })
    }

    async fn values_of(&mut self, wanted: &[GivenValue]) -> Result<Vec<i64>, Failure> {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for value in wanted {
            if let GivenValue::Next { table } = value {
                *counts.entry(table).or_default() += 1;
            }
        }
        let mut next = BTreeMap::new();
        for (table, count) in counts {
            next.insert(table, self.take(table, count).await?);
        }
        let mut found = Vec::with_capacity(wanted.len());
        for value in wanted {
            let value = match value {
                GivenValue::Next { table } => {
                    let next =
                        next.get_mut(table.as_str()).ok_or_else(|| Failure::internal("a value was not taken"))?;
                    let value = *next;
                    *next += 1;
                    self.gave(table, value);
                    value
                }
                GivenValue::Current { table } => {
                    let (id, serial) = self.serial_of(table)?;
                    let undefined = || {
                        let message =
                            format!("currval of sequence \"{}\" is not yet defined in this session", serial.sequence);
                        Failure::new("55000", message, "insert a row first, or call nextval")
                    };
                    self.values.current.get(&id).copied().ok_or_else(undefined)?
                }
                GivenValue::Last => match self.values.last {
                    Last::Given(value) => value,
                    Last::OfServer => {
                        let message = "lastval doesn't know the value that a single table got last";
                        return Err(Failure::new("0A000", message, "use RETURNING"));
                    }
                    Last::None => {
                        let message = "lastval is not yet defined in this session";
                        let hint = "it knows of sharded and reference tables; use RETURNING, or currval";
                        return Err(Failure::new("55000", message, hint));
                    }
                },
                GivenValue::Set { table, to, called } => {
                    let (id, serial) = self.serial_of(table)?;
                    if *to < 1 || *to > serial.last {
                        let (name, last) = (&serial.sequence, serial.last);
                        let message =
                            format!("setval: value {to} is out of bounds for sequence \"{name}\" (1..{last})");
                        return Err(Failure::new("22003", message, ""));
                    }
                    self.shared.app.executor.set_serial(id, to.saturating_sub(i64::from(!*called))).await?;
                    if *called {
                        self.gave(table, *to);
                    }
                    *to
                }
            };
            found.push(value);
        }
        Ok(found)
    }

    fn serial_of(&self, table: &str) -> Result<(TableId, Serial), Failure> {
        let catalog = self.catalog();
        let found = catalog.tables.get(table).and_then(|table| Some((table.id, table.serial()?.1.clone())));
        found.ok_or_else(|| Failure::internal(format!("{table} has no column that counts")))
    }

    fn gave(&mut self, table: &str, value: i64) {
        if let Ok((id, _)) = self.serial_of(table) {
            self.values.current.insert(id, value);
            self.values.last = Last::Given(value);
        }
    }

    /// The first of `count` values that nobody else gets.
    pub(super) async fn take(&mut self, name: &str, count: u32) -> Result<i64, Failure> {
        let (id, serial) = self.serial_of(name)?;
        let (shared, catalog) = (self.shared.clone(), self.catalog());
        let largest = async {
            let table = catalog.tables.get(name)?;
            self.largest(table, None).await
        };
        let first = shared.app.executor.serials(id, (serial.first, serial.last), count, largest).await?;
        self.values.unsure.insert(id, name.to_owned());
        Ok(first)
    }

    /// The same for one row that is copied.
    pub(super) async fn take_one(&mut self, name: &str) -> Result<i64, Failure> {
        let value = self.take(name, 1).await?;
        self.gave(name, value);
        Ok(value)
    }

    /// Statements that were given values have been done, or one of them met values that were given by hand.
    pub(super) async fn given_out(&mut self) {
        let unsure = std::mem::take(&mut self.values.unsure);
        if !std::mem::take(&mut self.values.met) {
            return;
        }
        for (id, name) in unsure {
            let catalog = self.shared.app.backend.catalog();
            let Some(table) = catalog.tables.get(&name).filter(|table| table.id == id) else { continue };
            let largest = async |from, to| self.largest(table, Some((from, to))).await;
            self.shared.app.executor.skip_serials(id, largest).await;
        }
    }

    /// The largest value in a table's rows, or of those in a range (its end is not in it). Asked only where an index has the answer; `None` also when
    /// a server gives none, since it saves errors and no more.
    async fn largest(&self, table: &Table, range: Option<(i64, i64)>) -> Option<i64> {
        let (column, _) = table.serial()?;
        if table.primary_key.first().is_none_or(|first| first != column) {
            return None;
        }
        let quoted = format!("\"{}\"", column.replace('"', "\"\""));
        let within =
            range.map_or_else(String::new, |(from, to)| format!(" WHERE {quoted} >= {from} AND {quoted} < {to}"));
        let text = format!("{LARGEST_PATIENCE}; SELECT max({quoted}) FROM {}{within}", written(&table.name));
        let backend = &self.shared.app.backend;
        let catalog = backend.catalog();
        let asked = catalog.active_shards().map(|shard| backend.ask_server(shard.id, text.clone(), LARGEST_TIME_MAX));
        let answers = join_all(asked).await.into_iter().flatten().flatten();
        answers.filter_map(|asked| asked.rows.first()?.first()?.as_deref()?.parse::<i64>().ok()).max()
    }
}
