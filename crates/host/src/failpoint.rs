//! Places where a test lets the process die.
//!
//! A commit over several shards has a dozen steps on four kinds of processes, and so have a move and every other operation.
//! That they survive a death after each of them is an argument in the module docs (`gateway/session/two_phase`,
//! `host/decide`, `docs/rfd/0005`, `control/mover`) and tables in the tests of crate `pleat` (`cluster/killed_at_every_step.rs`,
//! `cluster/operations_killed_at_every_step.rs`), which need to stop a process exactly there. So the steps have names, and
//! a process that was told to dies when it reaches one: by `abort`, without flushing, closing or telling anybody, as by
//! kill -9.
//!
//! All of it exists only with the feature `failpoints`. Without it [`reach`] is empty. Tests have it (crate `pleat` asks
//! for it among its dev-dependencies, which Cargo ignores when nothing but the program is built), `cargo build` and
//! `cargo run` don't, unless told `--features failpoints`.
//!
//! A process is told by the environment, `FAILPOINTS="coordinator.decided=abort"`, or while it runs, by
//! `PUT /failpoints` with the same text. In general it is a list `name=actions; …` in the language of the crate `fail`:
//! `2*off->abort` dies at the third time, `sleep(500)` is late by half a second (the task alone: the thread that it ran on
//! goes on with others, or the node would fall silent and lose its leads), `off` does nothing. A name may
//! be narrowed to one shard: `participant.prepared@shard-2=abort`; those of operations to a step of the journal, or to what a
//! shard is told to do: `operation.step-begun@copy=abort`, `shard.applying-effect@Fence=abort`.

use pleat_cluster::ShardId;
use pleat_engine::Action;

/// Every place of a commit, in the order in which it comes by.
///
/// | prefix | on |
/// | --- | --- |
/// | `ids` | the node that gives ids to rows |
/// | `coordinator` | the node that was asked for the write |
/// | `participant` | the leader of a shard that takes part; `applying` is any replica, after the log and before SQLite |
/// | `ledger` | the leader of the control group |
/// | `recovery` | the leader of a shard that finds a transaction which its coordinator has left |
pub const PLACES: &[&str] = &[
    "ids.before-block",
    "ids.block",
    "ids.remembered",
    "coordinator.before-prepare",
    "participant.before-prepare",
    "participant.applying-prepare",
    "participant.prepared",
    "coordinator.after-prepare",
    "coordinator.prepared",
    "coordinator.before-abort",
    "coordinator.aborted",
    "ledger.before-decision",
    "ledger.decided",
    "coordinator.decided",
    "coordinator.before-decide",
    "participant.before-decide",
    "participant.applying-decide",
    "participant.decided",
    "coordinator.after-decide",
    "coordinator.before-answer",
    "coordinator.before-forget",
    "recovery.before-ledger",
    "recovery.decided",
    "recovery.carried-out",
    "participant.before-write",
    "participant.written",
];

/// Every place of an operation: a move, a merge, a schema change, a new placement, a rebuild.
///
/// | prefix | on | narrowed to |
/// | --- | --- | --- |
/// | `operation.step` | the leader of the control group, with the journal written | a step of the journal |
/// | `operation` (effects) | the same, before a shard is told and after it has answered | what it is told: [`effect`] |
/// | `operation` (others) | the same, around the commands that decide | |
/// | `shard` | the leader of the shard that is told; `applying` is any replica, after the log and before SQLite | the same |
pub const OPERATION_PLACES: &[&str] = &[
    "operation.step-begun",
    "operation.before-effect",
    "shard.before-effect",
    "shard.applying-effect",
    "shard.had-effect",
    "operation.had-effect",
    "operation.step-ended",
    "operation.before-commit",
    "operation.committed",
    "operation.given-up",
    "operation.before-finish",
    "operation.finished",
];

/// What an operation tells a shard to do, as it narrows a place; none for what clients ask for.
pub fn effect(action: &Action) -> Option<&'static str> {
    match action {
        Action::Ddl { .. } => Some("Ddl"),
        Action::Own { .. } => Some("Own"),
        Action::Move(step) => Some(step.action.name()),
        _ => None,
    }
}

/// The process is at this place, on behalf of a shard if there is one.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach(_place: &'static str, _shard: Option<ShardId>) {}

/// The process is at this place of an operation, which is narrowed to a step or to an [`effect`].
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach_in(_place: &'static str, _narrowed: Option<&str>) {}

#[cfg(feature = "failpoints")]
pub use with_feature::{configure, from_environment, reach, reach_in};

#[cfg(feature = "failpoints")]
mod with_feature {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::runtime::{Handle, RuntimeFlavor};

    use super::{OPERATION_PLACES, PLACES, ShardId};

    /// Whether this process was ever told anything.
    static ARMED: AtomicBool = AtomicBool::new(false);
    /// Whether it was ever told to be late somewhere.
    static LATE: AtomicBool = AtomicBool::new(false);

    /// The process is at this place, on behalf of a shard if there is one.
    pub fn reach(place: &'static str, shard: Option<ShardId>) {
        debug_assert!(PLACES.contains(&place) || OPERATION_PLACES.contains(&place), "{place} is in no list");
        if !ARMED.load(Ordering::Relaxed) {
            return;
        }
        die_at(place);
        if let Some(shard) = shard {
            die_at(&format!("{place}@{shard}"));
        }
    }

    /// The process is at this place of an operation, which is narrowed to a step or to an [`effect`](super::effect).
    pub fn reach_in(place: &'static str, narrowed: Option<&str>) {
        debug_assert!(OPERATION_PLACES.contains(&place), "{place} is in no list");
        if !ARMED.load(Ordering::Relaxed) {
            return;
        }
        if let Some(narrowed) = narrowed {
            die_at(place);
            die_at(&format!("{place}@{narrowed}"));
        }
    }

    /// A node may have a single worker thread, and all of its Raft groups live on it.
    fn die_at(name: &str) {
        let is_worker = Handle::try_current().is_ok_and(|on| on.runtime_flavor() == RuntimeFlavor::MultiThread);
        match LATE.load(Ordering::Relaxed) && is_worker {
            true => tokio::task::block_in_place(|| met(name)),
            false => met(name),
        }
    }

    fn met(name: &str) {
        fail::fail_point!(name, |_| {
            eprintln!("died at {name}, as it was told");
            std::process::abort()
        });
    }

    /// Do what `FAILPOINTS` says, if it is set.
    pub fn from_environment() -> Result<(), String> {
        match std::env::var("FAILPOINTS") {
            Ok(text) => configure(&text),
            Err(_) => Ok(()),
        }
    }

    /// Do what a list says, beside what was said before.
    pub fn configure(text: &str) -> Result<(), String> {
        for one in text.split(';').map(str::trim).filter(|one| !one.is_empty()) {
            let (name, actions) = one.split_once('=').ok_or_else(|| format!("'{one}' is not name=actions"))?;
            let place = name.split_once('@').map_or(name, |(place, _)| place);
            if !PLACES.contains(&place) && !OPERATION_PLACES.contains(&place) {
                let known = [PLACES, OPERATION_PLACES].concat().join(", ");
                return Err(format!("there is no failpoint {place}; there are {known}"));
            }
            // What `return` does is up to the place: here it dies.
            fail::cfg(name, &actions.replace("abort", "return"))?;
            LATE.fetch_or(["sleep", "delay", "pause"].iter().any(|one| actions.contains(one)), Ordering::Relaxed);
            ARMED.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_not_understood_is_refused() {
            for (text, why) in
                [("coordinator.decided", "name=actions"), ("elsewhere=abort", "no failpoint"), ("ids.block=what", "")]
            {
                assert!(configure(text).unwrap_err().contains(why), "{text}");
            }
            configure("ids.block@shard-99=1*off->sleep(1); ;ids.remembered=off").unwrap();
            reach("ids.block", None);
        }

        #[test]
        fn who_is_late_leaves_the_only_worker_to_others() {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
            configure("ids.block@shard-98=pause").unwrap();
            let late = runtime.spawn(async { reach("ids.block", Some(ShardId(98))) });
            // It runs on the worker that the other one would keep to itself, and alone can end it.
            let other = runtime.spawn(async { configure("ids.block@shard-98=off") });
            runtime.block_on(async { tokio::try_join!(late, other).map(drop) }).unwrap();
        }
    }
}
