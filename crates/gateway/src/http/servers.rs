//! What shards that are PostgreSQL servers say of themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{Catalog, Engine, ShardId, ShardState};

use crate::backend::Backend;

/// How long a server may take to tell its figures.
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// In one round trip: the database's size, its connections, its transactions that were rolled back, how far its standby is behind, and the rows of each table, as the
/// server's statistics have them.
const ASKED: &str = "SELECT pg_database_size(current_database()), numbackends, xact_rollback, \
    (SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn) FROM pg_stat_replication \
     WHERE application_name = 'pleat_standby' AND state = 'streaming' ORDER BY flush_lsn DESC LIMIT 1), \
    (SELECT coalesce(json_object_agg(CASE schemaname WHEN 'public' THEN relname ELSE schemaname || '.' || relname END, n_live_tup), '{}') \
     FROM pg_stat_user_tables) \
    FROM pg_stat_database WHERE datname = current_database()";

/// The figures of one server.
pub struct ServerFigures {
    pub database_bytes: u64,
    /// Pleat's own included.
    pub connections: u64,
    pub rolled_back: u64,
    /// How much of its log its standby does not have on its disk, in bytes. Absent: none follows.
    pub standby_behind: Option<u64>,
    /// Estimates.
    pub rows_per_table: BTreeMap<String, u64>,
}

/// The figures of each server; `Err`: why it could not be asked. Empty for shards that are no servers.
pub type Servers = BTreeMap<ShardId, Result<ServerFigures, String>>;

/// Ask all servers side by side.
pub async fn look(backend: &dyn Backend, catalog: &Catalog) -> Servers {
    if catalog.engine != Engine::Postgres {
        return Servers::new();
    }
    let there = catalog.shards.values().filter(|shard| shard.state != ShardState::Removed);
    let asked = there.map(|shard| async move {
        let answer = tokio::time::timeout(LOOK_TIME_MAX, ask(backend, shard.id)).await;
        let late = || Err(format!("the server gave no answer within {} ms", LOOK_TIME_MAX.as_millis()));
        (shard.id, answer.unwrap_or_else(|_| late()))
    });
    join_all(asked).await.into_iter().collect()
}

async fn ask(backend: &dyn Backend, shard: ShardId) -> Result<ServerFigures, String> {
    let mut lease = backend.lease(shard, LOOK_TIME_MAX).await.map_err(|error| error.to_string())?;
    let asked = lease.ask(ASKED).await.map_err(|error| error.to_string())?;
    let row = asked.rows.into_iter().next().unwrap_or_default();
    let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
    let number = |at: usize| text(at).parse().unwrap_or(0);
    Ok(ServerFigures {
        database_bytes: number(0),
        connections: number(1),
        rolled_back: number(2),
        standby_behind: text(3).parse().ok(),
        rows_per_table: serde_json::from_str(text(4))
            .map_err(|error| format!("the server's figures can't be read: {error}"))?,
    })
}
