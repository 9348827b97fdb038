//! The way to shards that are servers: one pool for each, in every node.
//!
//! Pleat's own statements (recovery, schema changes, probes) have a few connections of their own: those of clients may all be waiting for
//! just what these statements end.
//!
//! A pool belongs to an address. When the catalog has another one for the shard, there is a new pool, and the old one ends with the last
//! transaction that is open in it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pleat_cluster::{Catalog, Engine, NodeId, SERVER_NAME, ShardId, ShardState};
use pleat_consensus::Status;
use pleat_engine::Refusal;
use pleat_engine::postgres::{Address, Asked, Connection, Identity, Lease, Limits, Pool, PostgresError, Server, mark};

use crate::observe_servers::Counted;
use crate::{Host, HostError};

/// Connections that one node has to one server at most. A server has to have room for those of all nodes.
pub const POOL_CONNECTIONS: usize = CLIENTS.connections + OWN.connections;
const CLIENTS: Limits = Limits { connections: 60, waiting: 10_000, wait: Duration::from_secs(10) };
const OWN: Limits = Limits { connections: 4, ..CLIENTS };

/// How long a server may take to be marked.
const MARK_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may take to end a session, and the pause before it is asked again.
const END_LIMIT: Duration = Duration::from_secs(5);
const END_PAUSE: Duration = Duration::from_millis(500);

/// The pools of a node.
#[derive(Default)]
pub(crate) struct Servers {
    pools: Mutex<BTreeMap<ShardId, Pools>>,
    /// What this node supervises: what is wrong with it, if anything is.
    supervised: Mutex<BTreeMap<ShardId, Option<String>>>,
    pub(crate) counted: Counted,
}

struct Pools {
    address: SocketAddr,
    clients: Pool,
    own: Pool,
}

/// Whose statement it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Clients,
    Own,
}

/// A shard's server at an address, and who Pleat is to it.
fn server_at(address: SocketAddr, identity: Identity) -> Server {
    let name = || SERVER_NAME.to_owned();
    let address = Address::Tcp(address);
    Server { address, user: name(), database: name(), password: None, identity: Some(identity) }
}

impl Pools {
    fn new(address: SocketAddr, identity: Identity) -> Pools {
        let server = server_at(address, identity);
        Pools { address, clients: Pool::new(server.clone(), CLIENTS), own: Pool::new(server, OWN) }
    }
}

impl Servers {
    fn pool(&self, cluster: &str, shard: ShardId, address: SocketAddr, whose: Whose) -> Pool {
        let mut all = self.pools.lock();
        let new = || Pools::new(address, Identity::new(cluster, shard));
        let pools = all.entry(shard).or_insert_with(new);
        if pools.address != address {
            *pools = new();
        }
        match whose {
            Whose::Clients => pools.clients.clone(),
            Whose::Own => pools.own.clone(),
        }
    }

    /// How this node's server of a shard is, in the words for a replica. A server has no term and no log.
    pub(crate) fn status(&self, shard: ShardId, node: NodeId, primary: Option<NodeId>) -> Option<Status> {
        let stopped = self.supervised.lock().get(&shard)?.clone();
        let runs = stopped.is_none();
        let leader = primary.filter(|_| runs);
        Some(Status { leader, is_leader: leader == Some(node), ready: runs, stopped, ..Status::default() })
    }

    /// Close what leads to servers that are not there any more.
    pub(crate) fn keep_to(&self, catalog: &Catalog) {
        self.pools.lock().retain(|shard, pools| server_of(catalog, *shard) == Ok(Some(pools.address)));
        self.supervised.lock().retain(|shard, _| server_of(catalog, *shard).is_ok());
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
        self.lease_for(Whose::Clients, shard, within).await
    }

    /// Have a shard's server carry out texts of Pleat's own, one after the other on one connection, up to the first that fails. What they
    /// have left open
    /// is then taken back.
    ///
    /// # Errors
    /// [`HostError::Server`] is the server's own word, [`HostError::Unavailable`] says that nothing was done, and
    /// [`HostError::OutcomeUnknown`] that the server was lost in the middle, or did not answer in time.
    pub async fn ask_server(
        &self,
        shard: ShardId,
        texts: &[String],
        within: Duration,
    ) -> Result<Vec<Asked>, HostError> {
        let deadline = Instant::now() + within;
        let mut lease = self.lease_for(Whose::Own, shard, within).await?;
        let mut answers = Vec::new();
        for text in texts {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = tokio::time::timeout(left, lease.ask(text)).await;
            let late = |_| HostError::OutcomeUnknown(format!("the server of {shard} did not answer within {within:?}"));
            answers.push(answer.map_err(late)??);
        }
        Ok(answers)
    }

    /// How a shard's server is reached by whoever needs connections of its own. `None`: it was not started yet.
    pub fn server(&self, shard: ShardId) -> Result<Option<Server>, HostError> {
        let address = server_of(&self.catalog(), shard).map_err(HostError::Refused)?;
        Ok(address.map(|address| server_at(address, Identity::new(self.cluster_id(), shard))))
    }

    /// Mark the server at an address as this shard, before the catalog is told of it. Again is fine.
    ///
    /// # Errors
    /// [`HostError::Server`], or what is not retryable: it is another shard.
    pub async fn mark_server(&self, shard: ShardId, address: SocketAddr) -> Result<(), HostError> {
        let identity = Identity::new(self.cluster_id(), shard);
        let server = server_at(address, identity.clone());
        match tokio::time::timeout(MARK_LIMIT, mark(&server, &identity)).await {
            Ok(marked) => Ok(marked?),
            Err(_) => {
                Err(HostError::Unavailable(format!("the server of {shard} was not marked within {MARK_LIMIT:?}")))
            }
        }
    }

    /// Have a session on a shard's server ended, by the number of its process there. Returns when the server has said that there is none,
    /// or is another one.
    pub async fn end_session(&self, shard: ShardId, process: u32) {
        let mut stop = self.stopping();
        let text = format!("SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE pid = {process}");
        while !*stop.borrow() && server_of(&self.catalog(), shard).is_ok() {
            match self.ask_server(shard, std::slice::from_ref(&text), END_LIMIT).await {
                Ok(answers) if answers.iter().all(|asked| asked.rows.is_empty()) => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%shard, process, %error, "whether a session has ended is not known yet");
                    let _ = tokio::time::timeout(END_PAUSE, stop.changed()).await;
                }
            }
        }
    }

    /// The same as [`Host::ask_server`] for a single text, on a connection of its own that is closed afterwards: there is one while those of the pool wait for a
    /// standby, and it has the settings that the server has now.
    pub async fn ask_apart(&self, shard: ShardId, text: &str, within: Duration) -> Result<Asked, PostgresError> {
        let known = self.server(shard).ok().flatten();
        let server =
            known.ok_or_else(|| PostgresError::Unavailable(format!("the server of {shard} was not started yet")))?;
        let asked = async { Connection::open(&server).await?.ask(text).await };
        let late = |_| PostgresError::Unavailable(format!("the server of {shard} did not answer within {within:?}"));
        tokio::time::timeout(within, asked).await.map_err(late)?
    }

    /// Whether the server of a shard that this node supervises runs, be it the primary or the standby.
    pub(crate) fn runs_server(&self, shard: ShardId) -> bool {
        self.servers().supervised.lock().get(&shard).is_some_and(Option::is_none)
    }

    /// What this node's supervision says of a server: what is wrong with it, if anything is.
    pub fn note_server_state(&self, shard: ShardId, trouble: Option<String>) {
        self.servers().supervised.lock().insert(shard, trouble);
    }

    async fn lease_for(&self, whose: Whose, shard: ShardId, within: Duration) -> Result<Lease, HostError> {
        let deadline = Instant::now() + within.min(CLIENTS.wait);
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
            let pool = self.servers().pool(self.cluster_id(), shard, server, whose);
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
    use pleat_cluster::{Command, Place, Policy};

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
        let known = |servers: &Servers| servers.pools.lock().get(&shard).map(|pools| pools.address);
        let note = |catalog: &mut Catalog, address| {
            catalog
                .apply(&Command::NoteServer {
                    shard,
                    node: NodeId(1),
                    place: Place { address, dir: String::new() },
                    at: 2,
                })
                .unwrap();
        };
        note(&mut catalog, address(1));
        servers.pool("test", shard, address(1), Whose::Clients);
        servers.keep_to(&catalog);
        assert_eq!(known(&servers), Some(address(1)));
        note(&mut catalog, address(2));
        servers.keep_to(&catalog);
        assert_eq!(known(&servers), None);
        servers.pool("test", shard, address(1), Whose::Clients);
        servers.pool("test", shard, address(2), Whose::Own);
        assert_eq!(known(&servers), Some(address(2)), "another address takes its place");
    }

    #[test]
    fn a_server_that_is_down_is_told_of_as_a_replica_that_has_stopped() {
        let (servers, shard, node) = (Servers::default(), ShardId(1), NodeId(1));
        let status = |servers: &Servers| servers.status(shard, node, Some(node));
        assert_eq!(status(&servers), None);
        servers.supervised.lock().insert(shard, None);
        assert!(status(&servers).is_some_and(|status| status.ready && status.leader == Some(node)));
        servers.supervised.lock().insert(shard, Some("it died".to_owned()));
        let down = status(&servers).unwrap();
        assert_eq!((down.ready, down.leader, down.stopped.as_deref()), (false, None, Some("it died")));
    }
}
