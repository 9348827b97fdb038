//! The way to shards that are servers: one pool for each, in every node.
//!
//! A pool belongs to an address. When the catalog has another one for the shard, there is a new pool, and the old one ends with the last
//! transaction that is open in it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pleat_cluster::{Catalog, Engine, SERVER_NAME, ShardId, ShardState};
use pleat_engine::Refusal;
use pleat_engine::postgres::{Address, Lease, Limits, Pool, Server};

use crate::{Host, HostError};

/// Connections that one node has to one server at most. A server has to have room for those of all nodes.
pub const POOL_CONNECTIONS: usize = 64;
const LIMITS: Limits = Limits { connections: POOL_CONNECTIONS, waiting: 10_000, wait: Duration::from_secs(10) };

/// The pools of a node.
#[derive(Default)]
pub(crate) struct Servers {
    pools: Mutex<BTreeMap<ShardId, (SocketAddr, Pool)>>,
}

impl Servers {
    fn pool(&self, shard: ShardId, address: SocketAddr) -> Pool {
        let mut pools = self.pools.lock();
        if let Some((known, pool)) = pools.get(&shard)
            && *known == address
        {
            return pool.clone();
        }
        let name = || SERVER_NAME.to_owned();
        let server = Server { address: Address::Tcp(address), user: name(), database: name(), password: None };
        let pool = Pool::new(server, LIMITS);
        pools.insert(shard, (address, pool.clone()));
        pool
    }

    /// Close what leads to servers that are not there any more.
    pub(crate) fn keep_to(&self, catalog: &Catalog) {
        self.pools.lock().retain(|shard, (address, _)| server_of(catalog, *shard) == Ok(Some(*address)));
    }
}

/// Where a shard's server listens, if it is known. An error: the shard is gone.
fn server_of(catalog: &Catalog, shard: ShardId) -> Result<Option<SocketAddr>, Refusal> {
    match catalog.shards.get(&shard) {
        Some(shard) if shard.state != ShardState::Removed => Ok(shard.server),
        _ => Err(Refusal::Leaving),
    }
}

fn stops() -> HostError {
    HostError::Unavailable("the node stops".into())
}

impl Host {
    /// A connection to a shard's server, for a transaction. A server that was not started yet, is starting again or has no connection left is waited
    /// for; [`HostError::Unavailable`] then says that nothing was done. A shard that was removed is [`HostError::Refused`].
    pub async fn lease(&self, shard: ShardId, within: Duration) -> Result<Lease, HostError> {
        let deadline = Instant::now() + within.min(LIMITS.wait);
        let mut catalog = self.watch_catalog();
        loop {
            let known = catalog.borrow_and_update().clone();
            if known.is_initialised() && known.engine != Engine::Postgres {
                return Err(HostError::Internal(format!("{shard} is no server")));
            }
            // A catalog that is not there yet has no shards.
            let server = match known.is_initialised() {
                true => server_of(&known, shard).map_err(HostError::Refused)?,
                false => None,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let moved = catalog.wait_for(|catalog| server_of(catalog, shard) != Ok(server));
            let Some(server) = server else {
                match tokio::time::timeout(left, moved).await {
                    Ok(Ok(_)) => continue,
                    Ok(Err(_)) => return Err(stops()),
                    Err(_) => return Err(HostError::Unavailable(format!("the server of {shard} was not started yet"))),
                }
            };
            let pool = self.servers().pool(shard, server);
            tokio::select! {
                // What is free is taken.
                biased;
                lease = pool.lease_within(left) => return Ok(lease?),
                moved = moved => if moved.is_err() { return Err(stops()) },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pleat_cluster::{Command, NodeId, Policy};

    use super::*;

    fn catalog() -> Catalog {
        let nodes = vec![(NodeId(1), "one".to_owned(), "127.0.0.1:1".to_owned())];
        let mut catalog = Catalog::default();
        let init = Command::Init {
            cluster_id: "test".to_owned(),
            partition_count: 16,
            replication_factor: 1,
            nodes,
            incarnations: BTreeMap::from([(NodeId(1), 1)]),
            shards: 2,
            engine: Engine::Postgres,
            policy: Policy::default(),
            at: 1,
        };
        catalog.apply(&init).unwrap();
        catalog
    }

    #[test]
    fn a_pool_ends_with_its_address() {
        let mut catalog = catalog();
        let (shard, servers) = (ShardId(1), Servers::default());
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let known = |servers: &Servers| servers.pools.lock().get(&shard).map(|(address, _)| *address);
        let note = |catalog: &mut Catalog, address| {
            catalog.apply(&Command::NoteServer { shard, node: NodeId(1), address, at: 2 }).unwrap();
        };
        note(&mut catalog, address(1));
        servers.pool(shard, address(1));
        servers.keep_to(&catalog);
        assert_eq!(known(&servers), Some(address(1)));
        note(&mut catalog, address(2));
        servers.keep_to(&catalog);
        assert_eq!(known(&servers), None);
        servers.pool(shard, address(1));
        servers.pool(shard, address(2));
        assert_eq!(known(&servers), Some(address(2)), "another address takes its place");
    }
}
