//! What a node measures about itself: real figures from the operating system and from the shards it leads.
//! A figure that can't be had is absent, never made up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use parking_lot::Mutex;
use pleat_cluster::{Generation, Millis, NodeId, ShardId};
use serde::{Deserialize, Serialize};
use sysinfo::{Disks, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// One look at a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeObservation {
    pub node: NodeId,
    pub at: Millis,
    pub resources: Resources,
    /// The shards that this node leads.
    pub shards: Vec<ShardObservation>,
}

/// The node's process and machine. Source: the operating system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU time of this process as a percentage of all cores of the machine.
    pub cpu_percent: f64,
    /// CPU time of everything on the machine, as a percentage of all cores.
    pub system_cpu_percent: f64,
    /// Resident memory of this process as a percentage of the machine's.
    pub memory_percent: f64,
    pub memory_bytes: u64,
    /// How full the file system of the data directory is.
    pub disk_percent: f64,
    pub disk_read_bytes_per_second: f64,
    pub disk_write_bytes_per_second: f64,
    /// Over all interfaces of the machine, loopback included.
    pub network_received_bytes_per_second: f64,
    pub network_sent_bytes_per_second: f64,
}

/// Latencies in milliseconds; absent where nothing was served in the window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
}

/// Statements that named one partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartitionLoad {
    pub reads_per_second: f64,
    pub writes_per_second: f64,
}

/// What one partition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionWeight {
    pub rows: u64,
    pub bytes: u64,
}

/// One look at a shard, by its leader.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardObservation {
    pub shard: ShardId,
    pub rows_per_table: BTreeMap<String, u64>,
    pub total_rows: u64,
    pub database_bytes: u64,
    /// Statements being served or waiting at one time: the peak of the last ten seconds.
    pub connections: u64,
    pub queries_per_second: f64,
    pub transactions_per_second: f64,
    pub latency_ms: Quantiles,
    /// Since the replica started.
    pub errors: u64,
    pub applied_index: u64,
    /// The ownership generation beside the shard's data.
    pub ownership: Generation,
    pub holds_foreign_rows: bool,
    pub partition_load: BTreeMap<u32, PartitionLoad>,
}

/// Looks at the machine once a second and keeps the last figures.
pub struct ResourceSampler {
    data_dir: PathBuf,
    state: Mutex<State>,
}

struct State {
    system: System,
    networks: Networks,
    last: Option<Instant>,
    current: Resources,
}

impl ResourceSampler {
    /// Fails where the operating system does not let a process look at itself.
    pub fn new(data_dir: &Path) -> anyhow::Result<Self> {
        let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
        let state = State {
            system: System::new().context("measure this machine")?,
            networks: Networks::new_with_refreshed_list().context("measure the network")?,
            last: None,
            current: Resources::default(),
        };
        Ok(Self { data_dir, state: Mutex::new(state) })
    }

    /// The figures of the last look.
    pub fn current(&self) -> Resources {
        self.state.lock().current.clone()
    }

    /// Look. Blocking (reads `/proc`), about a millisecond.
    pub fn sample(&self) {
        let mut state = self.state.lock();
        let State { system, networks, last, current } = &mut *state;
        system.refresh_memory();
        system.refresh_cpu_usage();
        networks.refresh(true);
        let seconds = last.map(|at| at.elapsed().as_secs_f64());
        *last = Some(Instant::now());
        let per_second = |bytes: u64| seconds.filter(|s| *s > 0.0).map_or(0.0, |s| bytes as f64 / s);

        current.system_cpu_percent = f64::from(system.global_cpu_usage());
        current.network_received_bytes_per_second = per_second(networks.values().map(|n| n.received()).sum());
        current.network_sent_bytes_per_second = per_second(networks.values().map(|n| n.transmitted()).sum());
        current.disk_percent = disk_percent(&self.data_dir).unwrap_or(current.disk_percent);

        let pid = Pid::from_u32(std::process::id());
        let wanted = ProcessRefreshKind::nothing().with_cpu().with_memory().with_disk_usage();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, wanted);
        let cores = system.cpus().len().max(1) as f64;
        let total_memory = system.total_memory().max(1) as f64;
        if let Some(process) = system.process(pid) {
            let disk = process.disk_usage();
            current.cpu_percent = f64::from(process.cpu_usage()) / cores;
            current.memory_bytes = process.memory();
            current.memory_percent = 100.0 * process.memory() as f64 / total_memory;
            current.disk_read_bytes_per_second = per_second(disk.read_bytes);
            current.disk_write_bytes_per_second = per_second(disk.written_bytes);
        }
    }
}

/// How full the file system that holds `dir` is.
fn disk_percent(dir: &Path) -> Option<f64> {
    let disks = Disks::new_with_refreshed_list().ok()?;
    let disk = disks
        .iter()
        .filter(|disk| dir.starts_with(disk.mount_point()))
        .max_by_key(|disk| disk.mount_point().as_os_str().len())?;
    let total = disk.total_space();
    (total > 0).then(|| 100.0 * (total - disk.available_space().min(total)) as f64 / total as f64)
}
