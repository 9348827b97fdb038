//! The PostgreSQL servers that this node supervises: those of the shards that name it in the catalog.
//!
//! A task watches the catalog, and keeps one *keeper* for each of these shards, be its server here the primary or the standby. A keeper makes the server's data if the shard is new, starts the
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
//! # Pairs
//!
//! Which of two servers is the primary is the catalog's to say (`pleat_cluster`'s `standby`), and a keeper follows: it stops a primary that is being replaced
//! (`control`'s `promote`), makes a standby a primary where it runs, and makes the old primary anew as a copy of the new one. [`attend`] has what it does meanwhile.
//!
//! - Of a pair no server is started or promoted without the control group's own word, at that moment, that this is its part. Should the node be paused right after that
//!   word and go on when it is not true any more, then the server's data has been fenced meanwhile, and nothing is started, nor promoted.
//! - A standby's data goes for a new copy only while its server is down *and* the catalog says that it is not to be promoted. Nobody says otherwise before it
//!   follows again.
//! - What a promotion has fenced is given its name back only when that promotion was given up.
//!
//! | who dies, and when | what follows |
//! | --- | --- |
//! | the primary's node | its server, with it; the standby is promoted, unless the node is back first |
//! | the standby's node | a synchronous primary waits for it, then goes on without it, when the catalog says so; the node's next start lets it catch up |
//! | the primary's node, between what it says of the standby and what it has the primary do | the next one sees that they differ, and does it |
//! | the old primary's node, while it copies the new one | its next start begins the copy anew |
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

mod attend;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{Catalog, Command, Engine, Follows, NodeId, OperationKind, Place, ShardId, ShardState, Standbys};
use pleat_host::{Host, POOL_CONNECTIONS};
use pleat_provision::process::{self, ProcessConfig, Role, Server, Size, State};
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
            if dir.exists() && !self.is_gone(shard.id).await {
                is_done = false;
                continue;
            }
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

    /// Whether the newest catalog wants nothing of a shard here: one that is being replayed would have data removed that came later.
    async fn is_gone(&self, shard: ShardId) -> bool {
        let Ok(catalog) = self.host.fresh_catalog(TELL_LIMIT).await else { return false };
        let known = catalog.shards.get(&shard);
        known.is_some_and(|known| known.state == ShardState::Removed || !known.replicas.contains(&self.host.node()))
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

/// What a server of this node is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Primary,
    Standby {
        of: SocketAddr,
    },
    /// Nothing, until the catalog says otherwise; and why.
    None(&'static str),
}

fn part(catalog: &Catalog, shard: ShardId, node: NodeId) -> Part {
    let Some(known) = catalog.shards.get(&shard) else { return Part::None("the catalog does not know the shard yet") };
    let is_replaced = catalog.promoting(shard).is_some_and(|open| !open.committed && !open.given_up);
    match (known.primary() == Some(node), known.server) {
        (true, _) if is_replaced => Part::None("its standby is taking its place"),
        (true, _) => Part::Primary,
        (false, Some(of)) => Part::Standby { of },
        (false, None) => Part::None("there is no primary yet that it could follow"),
    }
}

/// Why a server does not run any more.
enum Ended {
    /// Nobody wants it.
    Told,
    /// It is to be something else.
    Changed,
    /// A standby is to be copied anew.
    Lost,
    Failed(String),
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
        let (mut pause, mut anew) = (PAUSE_FIRST, false);
        while !*told.borrow() {
            let part = self.part(&self.host.catalog());
            let ended = self.serve(part, anew, told.clone()).await;
            anew = false;
            let why = match ended {
                Ended::Told => return tracing::info!(shard = %self.shard, "the PostgreSQL server has stopped"),
                Ended::Changed => {
                    pause = PAUSE_FIRST;
                    continue;
                }
                Ended::Lost => {
                    anew = true;
                    continue;
                }
                Ended::Failed(why) => why,
            };
            tracing::error!(shard = %self.shard, why, again_in_s = pause.as_secs(), "the PostgreSQL server does not run");
            self.host.note_server_state(self.shard, Some(why));
            let part = self.part(&self.host.catalog());
            tokio::select! {
                _ = timeout(pause, told.changed()) => {}
                () = self.until_not(&part) => {}
            }
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
    }

    fn part(&self, catalog: &Catalog) -> Part {
        part(catalog, self.shard, self.host.node())
    }

    /// Until it is to be something else.
    async fn until_not(&self, now: &Part) {
        let mut catalog = self.host.watch_catalog();
        if catalog.wait_for(|catalog| self.part(catalog) != *now).await.is_err() {
            std::future::pending().await
        }
    }

    /// Have a server be this, for as long as it is to be.
    async fn serve(&self, mut part: Part, anew: bool, mut told: watch::Receiver<bool>) -> Ended {
        if let Part::None(why) = part {
            self.host.note_server_state(self.shard, Some(why.to_owned()));
            return tokio::select! {
                () = self.until_not(&part) => Ended::Changed,
                _ = told.wait_for(|told| *told) => Ended::Told,
            };
        }
        self.host.note_server_state(self.shard, Some("it is being started".to_owned()));
        let server = tokio::select! {
            started = self.start(&part, anew) => match started {
                Ok(server) => server,
                Err(why) => return Ended::Failed(why),
            },
            () = self.until_not(&part) => return Ended::Changed,
            _ = told.wait_for(|told| *told) => return Ended::Told,
        };
        loop {
            let attend = async {
                match part {
                    Part::Primary => self.attend_primary().await,
                    Part::Standby { .. } | Part::None(_) => self.attend_standby().await,
                }
            };
            let ended = tokio::select! {
                why = self.follow(&server) => Ended::Failed(why),
                () = self.until_not(&part) => Ended::Changed,
                () = attend => Ended::Lost,
                _ = told.wait_for(|told| *told) => Ended::Told,
            };
            let now = self.part(&self.host.catalog());
            let rises = matches!((&ended, &part, &now), (Ended::Changed, Part::Standby { .. }, Part::Primary));
            if rises {
                match self.promote(&server).await {
                    Ok(()) => {
                        part = now;
                        continue;
                    }
                    Err(why) => {
                        self.stop(server).await;
                        return Ended::Failed(why);
                    }
                }
            }
            self.stop(server).await;
            return ended;
        }
    }

    async fn stop(&self, server: Server) {
        // Before it does: who asks must not take it for one that runs.
        self.host.note_server_state(self.shard, Some("it was stopped".to_owned()));
        server.stop().await;
    }

    /// What the control group itself says that this node's server is to be.
    async fn confirm(&self, part: &Part) -> Result<Arc<Catalog>, String> {
        let catalog = self.host.fresh_catalog(TELL_LIMIT).await;
        let catalog = catalog.map_err(|error| format!("whether it is to run is not known yet: {error}"))?;
        match self.part(&catalog) == *part {
            true => Ok(catalog),
            false => Err("it is to be something else by now".to_owned()),
        }
    }

    async fn promote(&self, server: &Server) -> Result<(), String> {
        self.confirm(&Part::Primary).await?;
        server.promote().await.map_err(|error| error.to_string())
    }

    /// Until it takes connections, or follows.
    async fn start(&self, part: &Part, anew: bool) -> Result<Server, String> {
        let is_pair = self.host.catalog().shards.get(&self.shard).is_some_and(|shard| shard.standby().is_some());
        let is_here = self.dir.join("data").exists();
        let role = match part {
            Part::Standby { of } => {
                let catalog = self.confirm(part).await?;
                let shard = catalog.shards.get(&self.shard);
                let may_go = shard.is_some_and(|shard| shard.pair.follows == Follows::Coming);
                let anew = anew && may_go && catalog.promoting(self.shard).is_none();
                if anew || !is_here {
                    self.host.note_server_state(self.shard, Some("it is being copied".to_owned()));
                    self.have_log_kept().await?;
                }
                Role::Standby { of: *of, anew }
            }
            _ if is_here && !is_pair => Role::Primary { make: false },
            _ => {
                let catalog = self.confirm(part).await?;
                let make = !is_here && !self.take_back_fence(&catalog)?;
                if make {
                    self.may_be_made(&catalog)?;
                }
                Role::Primary { make }
            }
        };
        let nodes = self.host.catalog().active_nodes().count().max(NODES_MIN);
        let connections = u32::try_from(nodes * POOL_CONNECTIONS).unwrap_or(u32::MAX).saturating_add(CONNECTIONS_SPARE);
        let config = ProcessConfig {
            dir: self.dir.clone(),
            programs: self.config.programs.clone(),
            port: None,
            size: Size { memory_mib: self.config.memory_mib, connections: connections.min(Size::CONNECTIONS_MAX) },
            password_file: None,
            role,
        };
        let server = Server::start(config).await.map_err(|error| error.to_string())?;
        match role {
            // It may still be a standby, which the catalog has made a primary.
            Role::Primary { .. } => self.promote_if(&server, is_pair).await?,
            Role::Standby { .. } => {
                let keep_newest = self.host.catalog().policy.standbys == Standbys::Asynchronous;
                self.forget_fenced(keep_newest).await;
            }
        }
        Ok(server)
    }

    async fn forget_fenced(&self, keep_newest: bool) {
        let dir = self.dir.clone();
        let forgotten = pleat_consensus::blocking(move || process::forget_fenced(&dir, keep_newest)).await;
        if let Err(why) = forgotten.map_err(|error| error.to_string()).flatten() {
            tracing::error!(shard = %self.shard, why, "what was fenced can't be removed; the next start tries again");
        }
    }

    async fn promote_if(&self, server: &Server, is_pair: bool) -> Result<(), String> {
        match is_pair {
            true => self.promote(server).await,
            false => Ok(()),
        }
    }

    /// Give the data its name back that a promotion has fenced which was given up. False: there is none.
    fn take_back_fence(&self, catalog: &Catalog) -> Result<bool, String> {
        let Some(shard) = catalog.shards.get(&self.shard) else { return Ok(false) };
        let given_up = catalog.operations.values().rev().filter(|operation| {
            let of_this = |kind: &OperationKind| matches!(kind, OperationKind::Promote { shard: of, reign, .. } if (*of, *reign) == (self.shard, shard.pair.reign));
            operation.given_up && of_this(&operation.kind)
        });
        for operation in given_up {
            if process::unfence(&self.dir, shard.pair.reign, operation.id.0)? {
                tracing::warn!(shard = %self.shard, operation = %operation.id, "the promotion was given up; the primary is started again");
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn may_be_made(&self, catalog: &Catalog) -> Result<(), String> {
        match catalog.shards.get(&self.shard) {
            Some(shard) if shard.state != ShardState::Removed && shard.server.is_none() => Ok(()),
            Some(shard) if shard.state != ShardState::Removed => Err(format!(
                "its data is gone from {}; bring the directory back from a copy{}",
                self.dir.display(),
                if shard.standby().is_some() { ", unless its standby takes its place" } else { ", nobody else has it" }
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
                        tracing::info!(shard = %self.shard, pid, address = %server.address(), "the PostgreSQL server runs");
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

    fn is_primary(&self) -> bool {
        let catalog = self.host.catalog();
        catalog.shards.get(&self.shard).is_some_and(|shard| shard.primary() == Some(self.host.node()))
    }

    /// Until the server is marked as the shard, and the catalog has its address.
    async fn tell(&self, server: &Server) {
        let (shard, node) = (self.shard, self.host.node());
        // Before anybody is sent there: whose data this is, the directory's name alone can't say. A standby has its primary's mark.
        while self.is_primary()
            && let Err(error) = self.host.mark_server(shard, server.address()).await
        {
            tracing::error!(%shard, %error, "the PostgreSQL server was not marked as the shard; trying again");
            if !error.is_retryable() {
                self.host.note_server_state(shard, Some(error.to_string()));
            }
            sleep(MARK_PAUSE).await;
        }
        let dir = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        let place = Place { address: server.address(), dir: dir.display().to_string() };
        let is_known = |catalog: &Catalog| match catalog.shards.get(&shard) {
            Some(known) if known.state == ShardState::Removed => true,
            Some(known) => {
                let is_shards = known.primary() != Some(node) || known.server == Some(place.address);
                is_shards && known.pair.places.get(&node) == Some(&place)
            }
            None => false,
        };
        while !is_known(&self.host.catalog()) {
            let at = self.host.now_ms();
            let note = Command::NoteServer { shard, node, place: place.clone(), at };
            if let Err(error) = self.host.command(note, TELL_LIMIT).await {
                tracing::warn!(%shard, %error, "the catalog was not told where the PostgreSQL server listens; trying again");
                sleep(TELL_PAUSE).await;
            }
        }
    }
}
