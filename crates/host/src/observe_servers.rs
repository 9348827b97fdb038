//! What a node measures of the servers that it supervises: PostgreSQL's own statistics.
//!
//! Rows are what the statistics estimate, which follow changes after moments; only [`Host::partition_weights`] counts. What one partition is used is not known to a
//! server, so a split goes by what partitions hold.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use parking_lot::Mutex;
use pleat_cluster::{PartitionId, ShardId, TableKind, partition_in_postgres};
use pleat_engine::postgres::Asked;

use crate::observe::{PartitionWeight, Quantiles, ShardObservation};
use crate::{Host, HostError};

/// How long a server may take to tell its figures.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// The size, transactions and those of them that were rolled back, and how many statements or transactions clients have under way.
const ASKED: &str = "SELECT pg_database_size(current_database()), xact_commit + xact_rollback, xact_rollback, \
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle' AND pid <> pg_backend_pid() \
     AND datname = current_database()) \
    FROM pg_stat_database WHERE datname = current_database()";

/// Rows by table.
const TABLES: &str = "SELECT CASE schemaname WHEN 'public' THEN relname ELSE schemaname || '.' || relname END, n_live_tup \
    FROM pg_stat_user_tables";

/// When servers had run how many transactions.
pub(crate) type Counted = Mutex<BTreeMap<ShardId, (Instant, u64)>>;

impl Host {
    /// The servers that this node supervises, as far as they answer.
    pub(crate) async fn look_at_servers(&self) -> Vec<ShardObservation> {
        let looks = self.own_servers().into_iter().map(|shard| async move {
            let look = self.look_at_server(shard).await;
            look.inspect_err(|error| tracing::debug!(%shard, %error, "the server does not tell its figures")).ok()
        });
        join_all(looks).await.into_iter().flatten().collect()
    }

    async fn look_at_server(&self, shard: ShardId) -> Result<ShardObservation, HostError> {
        let mut answers = self.ask_server(shard, &[ASKED.to_owned(), TABLES.to_owned()], LOOK_LIMIT).await?.into_iter();
        let mut rows = || answers.next().map(|Asked { rows, .. }| rows).unwrap_or_default();
        let row = rows().into_iter().next().unwrap_or_default();
        let number = |at: usize| row.get(at).and_then(|text| text.as_deref()?.parse::<u64>().ok()).unwrap_or(0);
        let catalog = self.catalog();
        let told = rows().into_iter().filter_map(|row| match row.as_slice() {
            [Some(name), Some(count)] if catalog.table(name).is_some() => Some((name.clone(), count.parse().ok()?)),
            _ => None,
        });
        let rows_per_table: BTreeMap<String, u64> = told.collect();
        let rate = self.rate(shard, number(1));
        Ok(ShardObservation {
            shard,
            total_rows: rows_per_table.values().sum(),
            rows_per_table,
            database_bytes: number(0),
            connections: number(3),
            queries_per_second: rate,
            transactions_per_second: rate,
            latency_ms: Quantiles::default(),
            errors: number(2),
            applied_index: number(1),
            ownership: catalog.shards.get(&shard).map_or(0, |shard| shard.ownership),
            holds_foreign_rows: !catalog.strays_on(shard).is_empty(),
            partition_load: BTreeMap::new(),
        })
    }

    /// Transactions per second since the look before.
    fn rate(&self, shard: ShardId, transactions: u64) -> f64 {
        let now = Instant::now();
        match self.servers().counted.lock().insert(shard, (now, transactions)) {
            Some((then, before)) => {
                let seconds = now.duration_since(then).as_secs_f64();
                if seconds > 0.0 { transactions.saturating_sub(before) as f64 / seconds } else { 0.0 }
            }
            None => 0.0,
        }
    }

    /// Rows and bytes of each partition on a shard's server. Reads all sharded tables.
    pub(crate) async fn weights_on_server(
        &self,
        shard: ShardId,
        within: Duration,
    ) -> Result<BTreeMap<PartitionId, PartitionWeight>, HostError> {
        let catalog = self.catalog();
        let texts: Vec<String> = (catalog.tables.values())
            .filter_map(|table| match &table.kind {
                TableKind::Sharded { key, key_type } => {
                    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
                    let (schema, name) = table.name.split_once('.').unwrap_or(("public", &table.name));
                    let partition = partition_in_postgres(&quoted(key), *key_type, catalog.partition_count);
                    let from = format!("{}.{}", quoted(schema), quoted(name));
                    Some(format!(
                        "SELECT {partition}, count(*), sum(pg_column_size(t)) FROM ONLY {from} AS t GROUP BY 1"
                    ))
                }
                TableKind::Reference | TableKind::Single { .. } => None,
            })
            .collect();
        let mut weights: BTreeMap<PartitionId, PartitionWeight> = BTreeMap::new();
        for row in self.ask_server(shard, &texts, within).await?.into_iter().flat_map(|Asked { rows, .. }| rows) {
            let number = |at: usize| row.get(at).and_then(Option::as_deref).and_then(|text| text.parse::<u64>().ok());
            let Some(partition) = number(0).and_then(|number| u32::try_from(number).ok()) else { continue };
            let weight = weights.entry(PartitionId(partition)).or_default();
            weight.rows += number(1).unwrap_or(0);
            weight.bytes += number(2).unwrap_or(0);
        }
        Ok(weights)
    }
}
