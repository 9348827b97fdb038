//! A catalog, loads, and a day of simulated time in which the autoscaler's decisions are carried out.

use std::collections::BTreeMap;

use pleat_cluster::{
    Catalog, Command, Millis, NodeId, OperationId, OperationKind, PartitionId, Phase, Policy, ShardId, ShardState,
};
use pleat_plan::{Conclusion, History, Observed, ShardLoad, Weight, autoscale, worth_recording};

pub const NOW: Millis = 1_000_000;
pub const MINUTE: Millis = 60_000;
pub const DAY: Millis = 24 * 60 * MINUTE;
/// How long a split or a merge takes.
const OPERATION_TAKES: Millis = 40_000;
const PARTITIONS: u32 = 16;

/// A cluster of three nodes with `shards` active shards and a threshold of 1000 rows.
pub fn cluster(shards: u32, change: impl FnOnce(&mut Policy)) -> Catalog {
    let mut policy = Policy::default();
    policy.thresholds.total_entries_per_shard = Some(1_000);
    change(&mut policy);
    policy.check().unwrap();
    let mut catalog = Catalog::default();
    let nodes = (1..=3).map(|n| (NodeId(n), format!("node-{n}"), format!("127.0.0.1:{n}"))).collect();
    let (cluster_id, incarnations) = ("test".to_owned(), Default::default());
    let (partition_count, replication_factor) = (PARTITIONS, 3);
    let init = Command::Init {
        cluster_id,
        partition_count,
        replication_factor,
        nodes,
        incarnations,
        shards,
        engine: Default::default(),
        policy,
        at: 1,
    };
    run(&mut catalog, init);
    for shard in 1..=shards {
        run(&mut catalog, Command::ActivateShard { shard: ShardId(shard), at: 1 });
    }
    catalog
}

pub fn run(catalog: &mut Catalog, command: Command) {
    catalog.apply(&command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert_eq!(catalog.check(), []);
}

pub fn idle() -> ShardLoad {
    ShardLoad {
        node: NodeId(1),
        measured: NOW,
        rows: 10,
        rows_fixed: 0,
        bytes: 500,
        connections: 0,
        queries_per_second: 1.0,
        cpu_percent: 2.0,
        memory_percent: 2.0,
        partition_load: BTreeMap::new(),
    }
}

pub fn seen(loads: impl IntoIterator<Item = ShardLoad>) -> Observed {
    Observed { shards: (1..).map(ShardId).zip(loads).collect(), silent: BTreeMap::new() }
}

/// One whole look, of measurements as new.
pub fn look(catalog: &Catalog, observed: &Observed, now: Millis, history: &mut History) -> Conclusion {
    let mut observed = observed.clone();
    observed.shards.values_mut().for_each(|load| load.measured = now);
    let weight = |p| (PartitionId(p), Weight { rows: 10, bytes: 100, load: 0.0 });
    let mut draft = autoscale(catalog, &observed, now, history);
    loop {
        match draft.conclude(catalog, (0..catalog.partition_count).map(weight).collect()) {
            Ok(conclusion) => return conclusion,
            Err(next) => draft = *next,
        }
    }
}

/// A day: a load that spreads evenly over the partitions, and operations that end some time after they began.
pub struct Day {
    catalog: Catalog,
    history: History,
    under_way: Option<(OperationId, Millis)>,
    /// How operations end.
    pub outcome: Phase,
}

/// What a day came to.
#[derive(Debug, Default)]
pub struct Came {
    pub splits: u32,
    pub merges: u32,
    pub shards_most: usize,
    pub shards_last: usize,
    pub decisions: usize,
}

impl Day {
    pub fn new(change: impl FnOnce(&mut Policy)) -> Self {
        let catalog = cluster(1, change);
        Self { catalog, history: History::default(), under_way: None, outcome: Phase::Successful }
    }

    /// Every monitoring interval a look, at a load of so many queries per second. Holds that there is never more than one action in
    /// 300 s, that decisions that change nothing are not piled up, and that a shard is always left.
    pub fn run(mut self, mut load: impl FnMut(Millis) -> f64) -> Came {
        let mut came = Came::default();
        let mut last: Option<Millis> = None;
        for past in (0..DAY).step_by(10_000) {
            let now = NOW + past;
            self.end_operation(now);
            let observed = self.observed(load(past));
            let conclusion = look(&self.catalog, &observed, now, &mut self.history);
            if worth_recording(&self.catalog, &conclusion) {
                let Conclusion { decision, start } = conclusion;
                match &start {
                    Some(OperationKind::Split { .. }) => came.splits += 1,
                    Some(OperationKind::Merge { .. }) => came.merges += 1,
                    _ => {}
                }
                if start.is_some() {
                    assert!(last.is_none_or(|last| now - last >= 300_000), "two actions within 300 s");
                    last = Some(now);
                }
                let reply = self.catalog.apply(&Command::RecordDecision { decision, start, at: now }).unwrap();
                self.under_way = self.under_way.or(reply.operation.map(|id| (id, now)));
                came.decisions += 1;
            }
            assert_eq!(self.catalog.check(), []);
            let shards = self.catalog.active_shards().count();
            assert!(shards >= 1);
            came.shards_most = came.shards_most.max(shards);
            came.shards_last = shards;
        }
        came
    }

    fn observed(&self, queries_per_second: f64) -> Observed {
        let of = |shard: ShardId| {
            let owned = self.catalog.partitions_of(shard);
            let each = queries_per_second / f64::from(PARTITIONS);
            let partition_load = owned.iter().map(|partition| (*partition, each)).collect();
            let rows = owned.len() as u64;
            ShardLoad { rows, queries_per_second: each * owned.len() as f64, partition_load, ..idle() }
        };
        let shards = self.catalog.active_shards().map(|shard| (shard.id, of(shard.id))).collect();
        Observed { shards, silent: BTreeMap::new() }
    }

    fn end_operation(&mut self, at: Millis) {
        let Some((operation, _)) = self.under_way.take_if(|(_, begun)| at >= *begun + OPERATION_TAKES) else { return };
        let kind = self.catalog.operations[&operation].kind.clone();
        let (epoch, phase, message) = (1, self.outcome, String::new());
        let succeeds = phase == Phase::Successful;
        if let OperationKind::Split { to, .. } = kind {
            let command = match succeeds {
                true => Command::ActivateShard { shard: to, at },
                false => Command::RemoveShard { shard: to, at },
            };
            run(&mut self.catalog, command);
        }
        if succeeds {
            run(&mut self.catalog, Command::CommitOperation { operation, epoch, at });
            if let OperationKind::Merge { from, .. } = kind {
                assert_eq!(self.catalog.shards[&from].state, ShardState::Leaving);
                run(&mut self.catalog, Command::RemoveShard { shard: from, at });
            }
        }
        run(&mut self.catalog, Command::FinishOperation { operation, phase, message, epoch, at });
    }
}
