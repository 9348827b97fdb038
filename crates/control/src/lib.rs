//! The control loop: **observe, decide, journal as an operation, execute step by step, observe.**
//!
//! Every node runs it, and it acts only where the control group's leader is: [`Control`] waits until this
//! node leads, works for as long as it does, and stops at once when the term is over. Whoever leads next
//! finds everything in the catalog's journal.
//!
//! | part | does |
//! | --- | --- |
//! | `lead` | founds shards, then carries out operations, oldest first: one at a time, but for splits, merges and moves of different shards |
//! | `ddl` | a schema change on every shard; `ddl_servers` where these are servers |
//! | `place` | gives a table another placement, while clients write; `place_servers` where the shards are servers |
//! | `mover` | a split or a move of partitions, while clients write: start reading there |
//! | `rebuild` | brings back nodes that lost their disk, and replicas that differ; beside the others |
//! | `promote` | has the standby of a PostgreSQL server take its place; beside the others |
//! | `observer` | measures the cluster and lets `pleat-plan` decide |
//! | `work` | one operation in hand: its journal, its epochs, its limits |
//! | `steps` | what breaks a step off: a cancellation, a limit; what then happens to what it did |
//! | `tracker` | how far the step at hand is |
//! | `cluster` | all effects, as one trait; tests break it at every call |
//!
//! The gateway is not known here: it starts operations and reads their progress in the catalog, and that is
//! where the two meet.

mod cluster;
mod ddl;
mod ddl_servers;
mod lead;
mod mover;
mod observer;
mod place;
mod place_servers;
mod promote;
mod rebuild;
mod steps;
mod stop;
#[cfg(test)]
mod tests;
mod tracker;
mod work;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use pleat_host::Host;
use pleat_provision::{Embedded, Provisioner};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use cluster::ClusterProbe;
pub use cluster::{Cluster, HostCluster};
use work::{Epochs, Tools};

/// How often a node looks whether it leads.
const LEADERSHIP_EVERY: Duration = Duration::from_millis(50);
/// The pause after a panic.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// What the control loop goes by, beside the policy in the catalog.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For how long a move may make writes of its partitions wait. It is predicted before the gates are closed;
    /// on a machine that can't keep it, it is doubled after a while, up to sixteen times.
    pub pause_budget: Duration,
    /// How long a new shard may take until it has a leader.
    pub provision_limit: Duration,
    /// How long an operation waits for a shard that can't be reached: before its commit it is then given up, afterwards
    /// others go past it. A shard that is busy, building an index say, is not meant.
    pub shard_limit: Duration,
    /// How long a PostgreSQL server may be without an answer before its standby is promoted. One that is started again takes less.
    pub promote_after: Duration,
    /// The folder with PostgreSQL's programs, which copy the schema to a new shard that is a server.
    pub postgres_programs: PathBuf,
    /// Rows in one message of a move.
    pub chunk_rows: usize,
    /// Bytes of rows in one message of a move; a single larger row travels alone.
    pub chunk_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pause_budget: Duration::from_millis(200),
            provision_limit: Duration::from_secs(60),
            shard_limit: Duration::from_secs(60),
            promote_after: Duration::from_secs(10),
            postgres_programs: PathBuf::from(pleat_provision::process::PROGRAMS),
            chunk_rows: 4_000,
            chunk_bytes: 512 << 10,
        }
    }
}

/// The control loop of one node.
pub struct Control;

/// A running control loop. Dropping it stops the loop, too.
pub struct ControlHandle {
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Control {
    /// Run the loop on this node.
    pub fn start(host: Arc<Host>, settings: Settings) -> ControlHandle {
        Self::start_on(Arc::new(HostCluster(host)), settings)
    }

    /// The same on anything that behaves as a cluster.
    pub fn start_on(cluster: Arc<dyn Cluster>, settings: Settings) -> ControlHandle {
        let (stop, stopped) = watch::channel(false);
        let provisioner: Arc<dyn Provisioner> = Arc::new(Embedded::new(ClusterProbe(cluster.clone())));
        let task = pleat_consensus::spawn(supervise(cluster, provisioner, settings, stopped));
        ControlHandle { stop, task: Some(task) }
    }
}

impl ControlHandle {
    /// Stop, and return when nothing is done any more. An operation in hand is taken up by the next leader.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
            && error.is_panic()
        {
            tracing::error!(%error, "the control loop had failed");
        }
    }
}

impl Drop for ControlHandle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// A node that leads and does nothing would be worse than one that fails: after a panic the loop is started again.
///
/// The epochs are kept: in one term they must not be handed out twice.
async fn supervise(
    cluster: Arc<dyn Cluster>,
    provisioner: Arc<dyn Provisioner>,
    settings: Settings,
    mut stopped: watch::Receiver<bool>,
) {
    let mut epochs = Arc::new(Epochs::new(0));
    loop {
        let run = run(&cluster, &provisioner, &settings, &mut stopped, &mut epochs);
        let Err(panic) = AssertUnwindSafe(run).catch_unwind().await else { return };
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text");
        tracing::error!(panic = text, "the control loop has failed and is started again");
        if *stopped.borrow() {
            return;
        }
        let _ = tokio::time::timeout(PANIC_PAUSE, stopped.changed()).await;
    }
}

async fn run(
    cluster: &Arc<dyn Cluster>,
    provisioner: &Arc<dyn Provisioner>,
    settings: &Settings,
    stopped: &mut watch::Receiver<bool>,
    epochs: &mut Arc<Epochs>,
) {
    while !*stopped.borrow() {
        let Some(term) = cluster.epoch() else {
            let _ = tokio::time::timeout(LEADERSHIP_EVERY, stopped.changed()).await;
            continue;
        };
        if epochs.term() != term {
            *epochs = Arc::new(Epochs::new(term));
            tracing::info!(term, "this node leads the control group");
        }
        let tools = Tools {
            cluster: cluster.clone(),
            provisioner: provisioner.clone(),
            settings: settings.clone(),
            epochs: epochs.clone(),
        };
        tokio::select! {
            () = lead::lead(tools.clone()) => {}
            () = rebuild::keep_rebuilding(tools.clone()) => {}
            () = promote::keep_promoting(tools.clone()) => {}
            () = observer::keep_observing(tools) => {}
            () = until_over(&**cluster, term) => tracing::info!(term, "this node does not lead the control group any more"),
            _ = stopped.changed() => return,
        }
    }
}

async fn until_over(cluster: &dyn Cluster, term: u64) {
    while cluster.epoch() == Some(term) {
        tokio::time::sleep(LEADERSHIP_EVERY).await;
    }
}
