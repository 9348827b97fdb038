//! The PostgreSQL servers that this node supervises: those of the shards that name it in the catalog.
//!
//! A task watches the catalog, and keeps one *keeper* for each of these shards. A keeper makes the server's data if the shard is new, starts the
//! server, tells the catalog where it listens, and tells the host (and so `GET /health`) when it is down. `provision::process` keeps the
//! server running; what that
//! gives up is tried again here, ever more rarely, since somebody may have mended it. The data is in `shards/N` of the node's directory.
//!
//! | who dies, and when | what follows |
//! | --- | --- |
//! | the node | its servers end with it; its next start reads the catalog and starts them |
//! | the node, between the server's start and the catalog's knowing of it | the next start tells it |
//! | the node, between a shard's removal and its files' | the next start finds a shard that the catalog calls removed |
//!
//! # Data of another shard
//!
//! A server is marked as its shard when it starts for the first time, and its mark is compared by every start and every connection
//! (`engine/postgres/identity`). Where two directories were mistaken for each other, nobody is sent to either.
//!
//! # Data that is gone
//!
//! The catalog knows whether a shard's server was ever started. If so, and there is no data, then it was lost, and an empty server in its
//! place would be a lie: it is not made. And data is only ever made for a shard that the newest catalog has, not one that is being replayed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{Catalog, Command, Engine, ShardId, ShardState};
use pleat_host::{Host, POOL_CONNECTIONS};
use pleat_provision::process::{ProcessConfig, Server, Size, State};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::config::PostgresConfig;

/// The pause before a server that did not start is tried again, at first and at most.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(60);
/// How long one message to the control group may take, and the pause before the next.
const TELL_LIMIT: Duration = Duration::from_secs(5);
const TELL_PAUSE: Duration = Duration::from_millis(500);
/// The pause before a server that was not marked is tried again.
const MARK_PAUSE: Duration = Duration::from_secs(2);
/// What a server has of connections beyond those of the nodes' pools: for people, and for what follows its changes.
const CONNECTIONS_SPARE: u32 = 44;
/// A server has room for so many nodes at least, so that one may come without its being started again.
const NODES_MIN: usize = 4;

/// The servers of a node.
pub struct Servers {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Servers {
    /// Start what the catalog wants, and go on doing that.
    pub fn start(host: Arc<Host>, data_dir: &Path, config: PostgresConfig) -> Servers {
        let (stop, told) = watch::channel(false);
        let node = Node { host, dir: data_dir.join("shards"), config };
        Servers { stop, task: tokio::spawn(node.run(told)) }
    }

    /// Stop all servers in order. Their clients are cut off.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the supervision of PostgreSQL servers had failed");
        }
    }
}

struct Node {
    host: Arc<Host>,
    dir: PathBuf,
    config: PostgresConfig,
}

/// One shard's keeper.
struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a PostgreSQL server's keeper had failed");
        }
    }
}

impl Node {
    async fn run(self, mut told: watch::Receiver<bool>) {
        let mut catalog = self.host.watch_catalog();
        let mut running: BTreeMap<ShardId, Running> = BTreeMap::new();
        while !*told.borrow() {
            let now = catalog.borrow_and_update().clone();
            let is_done = self.keep_to(&now, &mut running).await;
            tokio::select! {
                changed = catalog.changed() => if changed.is_err() { break },
                _ = told.changed() => {}
                () = sleep(PAUSE_LONGEST), if !is_done => {}
            }
        }
        join_all(running.into_values().map(Running::stop)).await;
    }

    /// False: something is left to do.
    async fn keep_to(&self, catalog: &Catalog, running: &mut BTreeMap<ShardId, Running>) -> bool {
        let mut is_done = true;
        for shard in catalog.shards.values().filter(|_| catalog.engine == Engine::Postgres) {
            if shard.state != ShardState::Removed && shard.replicas.contains(&self.host.node()) {
                running.entry(shard.id).or_insert_with(|| self.keep(shard.id));
                continue;
            }
            if let Some(running) = running.remove(&shard.id) {
                running.stop().await;
            }
            let dir = self.dir_of(shard.id);
            let gone = dir.clone();
            match pleat_consensus::blocking(move || std::fs::remove_dir_all(gone)).await {
                Ok(Ok(())) => {
                    tracing::info!(shard = %shard.id, dir = %dir.display(), "the data of a removed shard was removed")
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(Err(error)) => {
                    tracing::error!(shard = %shard.id, dir = %dir.display(), %error, "the data of a removed shard can't be removed");
                    is_done = false;
                }
                Err(_) => is_done = false,
            }
        }
        is_done
    }

    fn dir_of(&self, shard: ShardId) -> PathBuf {
        self.dir.join(shard.0.to_string())
    }

    fn keep(&self, shard: ShardId) -> Running {
        let (stop, told) = watch::channel(false);
        let keeper = Keeper { host: self.host.clone(), shard, dir: self.dir_of(shard), config: self.config.clone() };
        Running { stop, task: tokio::spawn(keeper.run(told)) }
    }
}

/// Keeps the server of one shard.
struct Keeper {
    host: Arc<Host>,
    shard: ShardId,
    dir: PathBuf,
    config: PostgresConfig,
}

impl Keeper {
    async fn run(self, mut told: watch::Receiver<bool>) {
        let mut pause = PAUSE_FIRST;
        while !*told.borrow() {
            let started = tokio::select! {
                started = self.start() => started,
                _ = told.changed() => return,
            };
            let why = match started {
                Ok(server) => {
                    pause = PAUSE_FIRST;
                    let ended = tokio::select! {
                        ended = self.follow(&server) => Some(ended),
                        _ = told.changed() => None,
                    };
                    server.stop().await;
                    match ended {
                        Some(why) => why,
                        None => return tracing::info!(shard = %self.shard, "the PostgreSQL server has stopped"),
                    }
                }
                Err(why) => why,
            };
            tracing::error!(shard = %self.shard, why, again_in_s = pause.as_secs(), "the PostgreSQL server does not run");
            self.host.note_server_state(self.shard, Some(why));
            let _ = timeout(pause, told.changed()).await;
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
    }

    /// Until it takes connections.
    async fn start(&self) -> Result<Server, String> {
        if !self.dir.join("data").exists() {
            self.may_be_made().await?;
        }
        let nodes = self.host.catalog().active_nodes().count().max(NODES_MIN);
        let connections = u32::try_from(nodes * POOL_CONNECTIONS).unwrap_or(u32::MAX).saturating_add(CONNECTIONS_SPARE);
        let config = ProcessConfig {
            dir: self.dir.clone(),
            programs: self.config.programs.clone(),
            port: None,
            size: Size { memory_mib: self.config.memory_mib, connections: connections.min(Size::CONNECTIONS_MAX) },
            password_file: None,
        };
        Server::start(config).await.map_err(|error| error.to_string())
    }

    async fn may_be_made(&self) -> Result<(), String> {
        let catalog = self.host.fresh_catalog(TELL_LIMIT).await;
        let catalog = catalog.map_err(|error| format!("whether its data is to be made is not known yet: {error}"))?;
        match catalog.shards.get(&self.shard) {
            Some(shard) if shard.state != ShardState::Removed && shard.server.is_none() => Ok(()),
            Some(shard) if shard.state != ShardState::Removed => Err(format!(
                "its data is gone from {}, and nobody else has it; bring the directory back from a copy",
                self.dir.display()
            )),
            _ => Err("the shard was removed".to_owned()),
        }
    }

    /// As long as it is kept running. Gives why it is not any more.
    async fn follow(&self, server: &Server) -> String {
        let told = self.tell(server);
        let watched = async {
            let mut state = server.state();
            loop {
                let now = state.borrow_and_update().clone();
                match now {
                    State::Ready { pid } => {
                        tracing::info!(shard = %self.shard, pid, address = %server.address(), "the PostgreSQL server takes connections");
                        self.host.note_server_state(self.shard, None);
                    }
                    State::Starting => {}
                    State::Down { why, pause } => {
                        tracing::error!(shard = %self.shard, why, pause_ms = pause.as_millis() as u64, "the PostgreSQL server is down");
                        self.host.note_server_state(self.shard, Some(why));
                    }
                    State::Failed { why } => return why,
                    State::Stopped => return "it stopped".to_owned(),
                }
                if state.changed().await.is_err() {
                    return "its supervision has ended".to_owned();
                }
            }
        };
        tokio::pin!(watched);
        tokio::select! {
            why = &mut watched => why,
            () = told => watched.await,
        }
    }

    /// Until the server is marked as the shard, and the catalog has its address.
    async fn tell(&self, server: &Server) {
        let (shard, address) = (self.shard, server.address());
        // Before anybody is sent there: whose data this is, the directory's name alone can't say.
        while let Err(error) = self.host.mark_server(shard, address).await {
            tracing::error!(%shard, %error, "the PostgreSQL server was not marked as the shard; trying again");
            if !error.is_retryable() {
                self.host.note_server_state(shard, Some(error.to_string()));
            }
            sleep(MARK_PAUSE).await;
        }
        let is_known = |catalog: &Catalog| match catalog.shards.get(&shard) {
            Some(known) => known.server == Some(address) || known.state == ShardState::Removed,
            None => false,
        };
        while !is_known(&self.host.catalog()) {
            let (node, at) = (self.host.node(), self.host.now_ms());
            if let Err(error) = self.host.command(Command::NoteServer { shard, node, address, at }, TELL_LIMIT).await {
                tracing::warn!(%shard, %error, "the catalog was not told where the PostgreSQL server listens; trying again");
                sleep(TELL_PAUSE).await;
            }
        }
    }
}
