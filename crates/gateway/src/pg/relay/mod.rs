//! Sessions on shards that are PostgreSQL servers: what a client sends goes to the servers, and what they answer comes back as it is.
//!
//! # The problem
//!
//! A client believes that it speaks to one server. Its statements go to several, over connections that are its own for a transaction
//! only; a statement may need rows of all of them; a transaction may write to several and has to be done on all or none.
//!
//! # The mechanism
//!
//! The planner (`pleat_sql::postgres`) tells what a statement is and which partitions it concerns. Then
//!
//! - [`part`]: the session's connection to a shard, made to look as the session expects it: its settings, its transaction. A
//!   statement of one shard goes there as it is, and the bytes of the answer to the client.
//! - [`simple`], [`extended`]: the two ways in which clients send statements.
//! - [`spread`]: statements of several shards: answers appended, or ([`gather`]) gathered in a session of one shard that finishes them.
//! - [`block`]: transactions, over one shard or several.
//! - [`copy`]: rows in and out, split by their keys.
//! - [`ddl`]: schema changes, tried on one shard, then made on all by an operation of the journal.
//! - [`place`]: tables that get another placement.
//! - [`settings`]: SET and its like.
//! - [`serial`]: values of serial columns, which no server gives.
//!
//! # States of a session
//!
//! ```text
//!          BEGIN, or a second shard before Sync
//!   idle ─────────────────────────────────────► block ──an error──► failed ──ROLLBACK TO──► block
//!    ▲                                            │                   │
//!    └──COMMIT, ROLLBACK, Sync of an implicit one─┴───ROLLBACK, COMMIT┘
//! ```
//!
//! In a block each shard that is touched has a transaction of its own, begun with the first statement that goes there, with the block's
//! BEGIN, savepoints and local settings. Outside of one, what goes to a single shard is its server's business alone.
//! A session that left something in its connection (a temporary table, an advisory lock, LISTEN) is *pinned*: it keeps that connection,
//! and what could go anywhere goes there.
//!
//! # Invariants
//!
//! 1. A statement is sent to a server once. What was lost in the middle is told to the client (`08006`), never sent again.
//! 2. Several shards that were written to commit by two phases, or none does.
//! 3. A connection goes back to its pool idle; one that is not is closed, and its server takes back what was open.
//! 4. Between two messages of the client nothing of its is on the way, so what Pleat itself answers stands in its place.
//!
//! # What happens when something dies
//!
//! | what | the client is told | and then |
//! | --- | --- | --- |
//! | a server, in a statement | `08006`; the outcome is unknown unless it was in a block, which has failed | the pool connects anew |
//! | a server, before a statement | it waits, then `57P03` | |
//! | this process, before the decision of a transaction over shards | the connection ends | the prepared parts are rolled back by whoever supervises the servers |
//! | after it | the same | they are committed |
//!
//! # What is not here yet
//!
//! COPY of a query that has to be gathered, limits of rows in an Execute over several shards (all rows come at once).

mod block;
mod copy;
mod ddl;
mod extended;
#[cfg(test)]
pub(super) mod fuzz;
mod gather;
mod messages;
mod part;
mod place;
mod serial;
mod settings;
mod simple;
mod spread;
mod talk;
mod views;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use pleat_cluster::{Catalog, PartitionId, ShardId};
use pleat_engine::postgres::Request;
use pleat_sql::Schema;
use pleat_sql::postgres::{Planned, Route, Shape, What};
use tokio::sync::watch;

use super::Shared;
use super::cancel::Key;
use super::client::{Client, Stop};
use super::start::Started;
use crate::session::Failure;
use crate::settings::PLAN_TEXT_BYTES_MAX;
use block::Block;
use extended::{Portal, Prepared};
use gather::Cursor;
use part::Part;
pub(crate) use place::place;
use settings::Settings;

/// How long a session waits for a connection to a shard.
const LEASE_TIME_MAX: Duration = Duration::from_secs(30);

/// A client's session.
struct Relay {
    shared: Arc<Shared>,
    settings: Settings,
    /// By name.
    statements: HashMap<String, Arc<Prepared>>,
    portals: HashMap<String, Portal>,
    block: Option<Block>,
    /// Connections that the session has: those of its block, of the messages up to the next Sync, and the one it is pinned to.
    parts: BTreeMap<ShardId, Part>,
    /// Where the messages since the last Sync went.
    home: Option<ShardId>,
    /// Messages since then that have no home yet.
    pending: Vec<Request>,
    /// What the home still answers to the series is not passed on.
    discards: bool,
    /// Where cursors are open.
    cursors: HashMap<String, ShardId>,
    /// Those over the rows of several shards.
    held: HashMap<String, Cursor>,
    /// The shard whose connection the session keeps.
    pinned: Option<ShardId>,
    /// Which shard is asked where any would do: always the same, so that it has the statements.
    turn: usize,
    /// What the statement at hand is routed by. `None`: there is none.
    routed: Option<Arc<Catalog>>,
    /// Whether that may write.
    writes: bool,
    /// Whether it notifies.
    notifies: bool,
    /// Values of serial columns that it was given.
    values: serial::Values,
}

/// Plans of texts, by the catalog's tables.
pub type Plans = crate::session::plans::Plans<Vec<Planned>>;

/// Serve a session to its end.
pub async fn serve(
    client: &mut Client,
    shared: &Arc<Shared>,
    started: Started,
    key: &Key,
    stopping: watch::Receiver<()>,
) -> Result<(), Stop> {
    let mut relay = Relay {
        shared: shared.clone(),
        settings: Settings::new(&started)?,
        statements: HashMap::new(),
        portals: HashMap::new(),
        block: None,
        parts: BTreeMap::new(),
        home: None,
        pending: Vec::new(),
        discards: false,
        cursors: HashMap::new(),
        held: HashMap::new(),
        pinned: None,
        turn: usize::try_from(key.process).unwrap_or(0),
        routed: None,
        writes: false,
        notifies: false,
        values: serial::Values::default(),
    };
    relay.greet(client, key).await?;
    relay.talk(client, key, stopping).await
}

/// How often a statement is routed anew before it is given up.
const ROUTES_MAX: u32 = 100;

/// Partitions kept moving away from under a statement.
fn never_settled() -> Stop {
    let message = "the partitions of the statement kept moving";
    Failure::passing("40001", message, "try again in a moment").into()
}

/// Where a statement goes.
enum Way<'a> {
    /// As it is, to one shard.
    One(ShardId),
    /// To several.
    Several(Route<'a>),
}

impl Relay {
    /// A statement goes by one catalog from its beginning to its end.
    fn catalog(&self) -> Arc<Catalog> {
        self.routed.clone().unwrap_or_else(|| self.shared.app.backend.catalog())
    }

    /// Begin to route a statement, or do so again, by the newest catalog. `writes`: whether it may.
    fn route_anew(&mut self, writes: bool) {
        self.routed = Some(self.shared.app.backend.catalog());
        // A snapshot that outlives its statement must not see rows on the shard that they have left.
        self.writes = writes || self.keeps_snapshot();
        self.notifies = false;
    }

    fn keeps_snapshot(&self) -> bool {
        let names = ["default_transaction_isolation", "transaction_isolation", "session characteristics"];
        names.iter().any(|name| self.settings.has(name)) || self.block.as_ref().is_some_and(Block::keeps_snapshot)
    }

    /// What a text is.
    fn plan(&self, text: &str) -> Result<Arc<Vec<Planned>>, Failure> {
        let catalog = self.catalog();
        let default_keys = &self.shared.app.settings.default_keys;
        let schema = Schema { tables: &catalog.tables, views: &catalog.views, default_keys };
        let plan = || pleat_sql::postgres::prepare(text, &schema);
        let (plan, known) = self.shared.relayed.get(text, &catalog, plan)?;
        self.shared.app.metrics.planned(known);
        Ok(plan)
    }

    /// The one shard that a statement with its values in it concerns, and whether it writes there. `None`: the text is to be planned for itself.
    fn shard_of(&self, shape: &Shape) -> Option<(ShardId, bool)> {
        let catalog = self.catalog();
        let default_keys = &self.shared.app.settings.default_keys;
        let schema = Schema { tables: &catalog.tables, views: &catalog.views, default_keys };
        let plan = || Ok::<_, Infallible>(pleat_sql::postgres::prepare(&shape.text, &schema).unwrap_or_default());
        if shape.text.len() > PLAN_TEXT_BYTES_MAX {
            return None;
        }
        let Ok((plan, known)) = self.shared.relayed_shapes.get(&shape.text, &catalog, plan);
        let [Planned { what: What::Query(query), .. }] = plan.as_slice() else { return None };
        // What counts may be named by a value.
        if query.pins || query.counts || query.notifies || query.given.is_some() {
            return None;
        }
        let value = |at: usize| shape.values.get(at).cloned().flatten();
        let Ok(Route::Partitions(partitions)) = query.route(&value, catalog.partition_count) else { return None };
        let shard = self.owner_of(&catalog, partitions.iter()).ok()??;
        self.shared.app.metrics.planned(known);
        Some((shard, query.writes))
    }

    /// The shard for what any shard can answer.
    fn any(&self, catalog: &Catalog) -> Result<ShardId, Failure> {
        if let Some(shard) = self.pinned.or(self.home).or_else(|| self.parts.keys().next().copied()) {
            return Ok(shard);
        }
        let active: Vec<ShardId> = catalog.active_shards().map(|shard| shard.id).collect();
        let starting =
            || Failure::passing("57P03", "no shard is active yet", "the cluster is starting: try again in a moment");
        active.get(self.turn % active.len().max(1)).copied().ok_or_else(starting)
    }

    /// From partitions to shards.
    fn way<'a>(
        &self,
        catalog: &Catalog,
        route: Route<'a>,
        scatter: &dyn Fn() -> Result<Route<'a>, pleat_sql::SqlError>,
    ) -> Result<Way<'a>, Failure> {
        match route {
            Route::Any => Ok(Way::One(self.any(catalog)?)),
            Route::Single(shard) => Ok(Way::One(shard)),
            Route::Partitions(partitions) => match self.owner_of(catalog, partitions.iter())? {
                Some(shard) => Ok(Way::One(shard)),
                None => match scatter()? {
                    Route::Partitions(_) => Err(Failure::internal("a statement that was to be scattered was not")),
                    route => self.way(catalog, route, scatter),
                },
            },
            route => Ok(Way::Several(route)),
        }
    }

    /// The one shard that owns all of these; any, when there are none.
    fn owner_of<'p>(
        &self,
        catalog: &Catalog,
        mut partitions: impl Iterator<Item = &'p PartitionId>,
    ) -> Result<Option<ShardId>, Failure> {
        let owner = |partition: &PartitionId| {
            let owner = catalog.owner(*partition);
            owner.ok_or_else(|| Failure::internal(format!("partition {partition} has no owner")))
        };
        let Some(first) = partitions.next() else { return self.any(catalog).map(Some) };
        let shard = owner(first)?;
        for partition in partitions {
            if owner(partition)? != shard {
                return Ok(None);
            }
        }
        Ok(Some(shard))
    }
}
