//! What `pleat up` is going to run: from the flags, the configuration, and the cluster that is already there.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use pleat_cluster::{Engine, Standbys};

use super::UpArgs;
use crate::config::Config;
use crate::directory::ClusterIdentity;
use crate::options::{PgListen, require_loopback, require_tls};

/// The cluster on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub dir: PathBuf,
    pub identity: ClusterIdentity,
    /// Where the coordinator's interface of node 1 listens.
    pub coordinator: SocketAddr,
    /// Where node 1 serves PostgreSQL clients, if they are served.
    pub pg: Option<SocketAddr>,
    /// Whether the cluster was there before, so that its addresses are known to its nodes.
    pub exists: bool,
}

impl Plan {
    /// Put it together; flags that contradict the existing cluster are an error.
    pub fn new(
        args: &UpArgs,
        config: &Config,
        dir: PathBuf,
        existing: Option<ClusterIdentity>,
    ) -> anyhow::Result<Plan> {
        let nodes = args.nodes.or(config.nodes);
        let shards = args.shards.or(config.initial_shards);
        let engine = args.engine.or(config.engine);
        let listen = args.listen.or(config.listen);
        let coordinator = args.coordinator.or(config.coordinator_listen);
        let pg_listen = args.pg_listen.or(config.pg_listen);
        let exists = existing.is_some();
        let identity = match existing {
            Some(found) => {
                agree(&dir, "--nodes", nodes, found.nodes)?;
                agree(&dir, "--shards", shards, found.initial_shards)?;
                agree(&dir, "--engine", engine, found.engine)?;
                agree(&dir, "--listen", listen, found.listen)?;
                // A default is no wish: only a count that was asked for can contradict.
                let partitions =
                    (config.partition_count != Config::default().partition_count).then_some(config.partition_count);
                agree(&dir, "partition_count", partitions, found.partition_count)?;
                found
            }
            None => {
                let listen = listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)));
                ClusterIdentity {
                    cluster_id: uuid::Uuid::new_v4().to_string(),
                    nodes: nodes.unwrap_or(3),
                    listen,
                    coordinator: coordinator.unwrap_or_else(|| SocketAddr::new(listen.ip(), 9090)),
                    pg_listen,
                    initial_shards: shards.unwrap_or(1),
                    partition_count: config.partition_count,
                    engine: engine.unwrap_or_default(),
                }
            }
        };
        if identity.initial_shards > identity.partition_count {
            bail!(
                "{} shards can't share {} partitions; raise partition_count or start with fewer shards",
                identity.initial_shards,
                identity.partition_count
            );
        }
        let copies = identity.nodes.min(config.replication_factor);
        if identity.engine == Engine::Postgres && config.postgres.standbys != Standbys::None && copies < 2 {
            bail!(
                "a standby is on another node than its primary; have two nodes at least (--nodes, and replication_factor), or leave out \
                 postgres.standbys"
            );
        }
        let coordinator = coordinator.unwrap_or(identity.coordinator);
        let otherwise = PgListen::At(SocketAddr::new(identity.listen.ip(), PG_PORT));
        let pg = pg_listen.or(identity.pg_listen).unwrap_or(otherwise).address();
        let plan = Plan { dir, identity, coordinator, pg, exists };
        plan.check_addresses(config)?;
        Ok(plan)
    }

    fn check_addresses(&self, config: &Config) -> anyhow::Result<()> {
        let further = u16::try_from(self.identity.nodes - 1).unwrap_or(u16::MAX);
        let addresses = self.addresses();
        for (_, address) in &addresses {
            let address = *address;
            match Some(address) == self.pg {
                true => require_tls(address, config)?,
                false => require_loopback(address, config.insecure)?,
            }
            if address.port() == 0 {
                bail!("{address}: the port can't be 0, since the nodes must find each other again; name one");
            }
            address.port().checked_add(further).with_context(|| {
                format!("{address} leaves no ports for {} nodes; choose a lower one", self.identity.nodes)
            })?;
        }
        for (at, (flag, low)) in addresses.iter().enumerate() {
            for (other, high) in &addresses[at + 1..] {
                let apart = low.port().abs_diff(high.port()) > further;
                let same_interface = low.ip() == high.ip() || low.ip().is_unspecified() || high.ip().is_unspecified();
                if same_interface && !apart {
                    bail!(
                        "the ports of {} nodes from {low} ({flag}) and from {high} ({other}) overlap; choose others with \
                         {flag} or {other}",
                        self.identity.nodes
                    );
                }
            }
        }
        Ok(())
    }

    /// Where node 1 listens, each with the flag that says so.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let http = [("--listen", self.identity.listen), ("--coordinator", self.coordinator)];
        http.into_iter().chain(self.pg.map(|pg| ("--pg-listen", pg))).collect()
    }

    /// The directory of a node.
    pub fn node_dir(&self, node: u32) -> PathBuf {
        self.dir.join(format!("node-{node}"))
    }

    /// Where a node listens.
    pub fn node_listen(&self, node: u32) -> SocketAddr {
        nth(self.identity.listen, node)
    }

    /// Where the coordinator's interface of a node listens.
    pub fn coordinator_listen(&self, node: u32) -> SocketAddr {
        nth(self.coordinator, node)
    }

    /// Where a node serves PostgreSQL clients.
    pub fn pg_listen(&self, node: u32) -> Option<SocketAddr> {
        self.pg.map(|first| nth(first, node))
    }

    /// The founding nodes, as `pleat node --founders` takes them.
    pub fn founders(&self) -> Vec<(u64, String)> {
        (1..=self.identity.nodes).map(|node| (u64::from(node), self.node_listen(node).to_string())).collect()
    }
}

/// Where node 1 serves PostgreSQL clients unless told otherwise.
const PG_PORT: u16 = 6432;

/// Checked not to go beyond the last port when the plan was made.
pub fn nth(first: SocketAddr, node: u32) -> SocketAddr {
    let further = u16::try_from(node - 1).unwrap_or(u16::MAX);
    SocketAddr::new(first.ip(), first.port().saturating_add(further))
}

fn agree<T: PartialEq + std::fmt::Display>(
    dir: &std::path::Path,
    flag: &str,
    wanted: Option<T>,
    found: T,
) -> anyhow::Result<()> {
    match wanted {
        Some(wanted) if wanted != found => bail!(
            "{flag} {wanted} contradicts the cluster in {}, which was made with {flag} {found}; leave {flag} out to go \
             on with that cluster, or make a new one in another directory with --data-dir",
            dir.display()
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: UpArgs, existing: Option<&Plan>) -> Result<Plan, String> {
        let existing = existing.map(|plan| plan.identity.clone());
        Plan::new(&args, &Config::default(), PathBuf::from("d"), existing).map_err(|error| error.to_string())
    }

    fn at(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn three_nodes_by_default_each_on_a_port_of_its_own() {
        let plan = plan(UpArgs::default(), None).unwrap();
        assert_eq!(plan.node_listen(3), "127.0.0.1:8082".parse().unwrap());
        assert_eq!(plan.coordinator_listen(3), "127.0.0.1:9092".parse().unwrap());
        assert_eq!(plan.founders()[1], (2, "127.0.0.1:8081".to_string()));
        assert_eq!(plan.node_dir(1), PathBuf::from("d/node-1"));
    }

    #[test]
    fn the_same_flags_or_none_go_on_with_the_cluster_and_others_contradict_it() {
        let flags = || UpArgs { nodes: Some(5), listen: at("127.0.0.1:7000"), shards: Some(2), ..UpArgs::default() };
        let first = plan(flags(), None).unwrap();
        for again in [flags(), UpArgs::default()] {
            let second = plan(again, Some(&first)).unwrap();
            assert_eq!((second.identity, second.coordinator), (first.identity.clone(), first.coordinator));
        }
        let refused = |args: UpArgs| plan(args, Some(&first)).unwrap_err();
        let message = refused(UpArgs { nodes: Some(3), ..UpArgs::default() });
        assert!(
            message.starts_with("--nodes 3 contradicts the cluster in d, which was made with --nodes 5;"),
            "{message}"
        );
        assert!(refused(UpArgs { shards: Some(1), ..UpArgs::default() }).starts_with("--shards 1 contradicts"));
        let engine = Some(Engine::Postgres);
        assert!(refused(UpArgs { engine, ..UpArgs::default() }).starts_with("--engine postgres contradicts"));
        assert!(refused(UpArgs { listen: at("127.0.0.1:7001"), ..UpArgs::default() }).contains("--data-dir"));
    }

    #[test]
    fn the_coordinator_may_move() {
        let first = plan(UpArgs::default(), None).unwrap();
        let args = UpArgs { coordinator: at("127.0.0.1:9500"), ..UpArgs::default() };
        assert_eq!(plan(args, Some(&first)).unwrap().coordinator_listen(2), "127.0.0.1:9501".parse().unwrap());
    }

    #[test]
    fn postgresql_has_ports_of_its_own_may_be_off_and_is_remembered() {
        let first = plan(UpArgs::default(), None).unwrap();
        assert_eq!(first.pg_listen(2), at("127.0.0.1:6433"));
        let off = UpArgs { pg_listen: Some(PgListen::Off), ..UpArgs::default() };
        let off = plan(off, None).unwrap();
        assert_eq!(off.pg_listen(1), None);
        assert_eq!(plan(UpArgs::default(), Some(&off)).unwrap().pg_listen(1), None);
        let moved = UpArgs { pg_listen: at("127.0.0.1:7000").map(PgListen::At), ..UpArgs::default() };
        assert_eq!(plan(moved, Some(&off)).unwrap().pg_listen(3), at("127.0.0.1:7002"));
        let clash = UpArgs { pg_listen: at("127.0.0.1:8081").map(PgListen::At), ..UpArgs::default() };
        assert!(plan(clash, None).unwrap_err().contains("--pg-listen"));
    }

    #[test]
    fn standbys_need_another_node() {
        let postgres = crate::config::PostgresConfig { standbys: Standbys::Synchronous, ..Default::default() };
        let config = Config { postgres, ..Config::default() };
        let plan = |nodes, engine| {
            let args = UpArgs { nodes: Some(nodes), engine: Some(engine), ..UpArgs::default() };
            Plan::new(&args, &config, PathBuf::from("d"), None).map_err(|error| error.to_string())
        };
        assert!(plan(1, Engine::Postgres).unwrap_err().contains("two nodes at least"));
        assert!(plan(2, Engine::Postgres).is_ok() && plan(1, Engine::Sqlite).is_ok());
    }

    #[test]
    fn addresses_that_can_not_work_are_refused() {
        let refused = |listen: &str, coordinator: &str| {
            plan(UpArgs { listen: at(listen), coordinator: at(coordinator), ..UpArgs::default() }, None).unwrap_err()
        };
        assert!(refused("127.0.0.1:8080", "127.0.0.1:8082").contains("overlap"));
        assert!(refused("127.0.0.1:65535", "127.0.0.1:9090").contains("leaves no ports"));
        assert!(refused("127.0.0.1:0", "127.0.0.1:9090").contains("can't be 0"));
        assert!(refused("0.0.0.0:8080", "127.0.0.1:9090").contains("--insecure"));
    }
}
