//! What a connection's functions, authorizer and limits look at while a statement runs.
//!
//! SQLite calls back into Pleat: to allow each thing that a statement does, to compute `random()` or
//! `pleat_partition()`, to check a written row, to ask whether to go on. Those callbacks share one [`Session`]
//! with the code that runs the statement. It is locked for each callback only, never across a step.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use pleat_cluster::{KeyType, Millis, PartitionId};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::authorize::Mode;
use super::clock;
use crate::{Refusal, SqlFailure, UnitSet, sqlstate};

/// Shared by a connection's callbacks and its user.
pub(crate) type SharedSession = Arc<Mutex<Session>>;

/// Which rows a statement may write.
#[derive(Clone, Debug)]
pub(crate) enum RowCheck {
    /// Any: Pleat's own work, and writes to reference tables (which cascade).
    Off,
    /// Those of these units. The units themselves were checked before the statement ran.
    Routed(RoutedUnits),
}

/// The units of one write. Nearly always one or two.
#[derive(Clone, Debug)]
pub(crate) enum RoutedUnits {
    Few(Vec<PartitionId>),
    Many(UnitSet),
}

impl RoutedUnits {
    pub(crate) fn new(units: &[PartitionId]) -> Self {
        match units.len() {
            0..=8 => RoutedUnits::Few(units.to_vec()),
            _ => RoutedUnits::Many(units.iter().copied().collect()),
        }
    }

    pub(crate) fn contains(&self, unit: PartitionId) -> bool {
        match self {
            RoutedUnits::Few(units) => units.contains(&unit),
            RoutedUnits::Many(units) => units.contains(unit),
        }
    }
}

/// Why a row was refused by the row check.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RowRefusal {
    Refused(Refusal),
    Failed(SqlFailure),
}

/// When a running statement is stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Budget {
    Unlimited,
    /// Blocks of virtual machine steps: the same on every replica.
    Steps(u64),
    /// A point in time: for reads only.
    Until(Instant),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) mode: Mode,
    pub(crate) partition_count: u32,
    pub(crate) budget: Budget,
    /// Set while a statement is compiled: how often SQLite asks then depends on what it has cached.
    pub(crate) compiling: bool,
    pub(crate) rows: RowCheck,
    /// Set by the row check, for the code that sees the statement fail.
    pub(crate) refusal: Option<RowRefusal>,
    /// Set by the authorizer: why a statement was denied.
    pub(crate) denied: Option<String>,
    /// Set by the authorizer: the first table that the statement being compiled writes.
    pub(crate) target: Option<String>,
    /// What `pleat_owned()` looks at.
    pub(crate) owned: Arc<UnitSet>,
    /// What `pleat_moving()` looks at.
    pub(crate) moving: Arc<UnitSet>,
    /// What `total_changes()` counts from.
    pub(crate) changes_before: i64,
    /// The triggers that are under way in the running statement; see `pleat_cluster::Trigger::on_shards`.
    firing: BTreeSet<String>,
    /// Set from another thread to end an interactive transaction.
    pub(crate) stop: Option<Arc<AtomicBool>>,
    seed: u64,
    rng: Option<ChaCha8Rng>,
}

impl Session {
    pub(crate) fn new(partition_count: u32) -> Self {
        Self {
            mode: Mode::Internal,
            partition_count,
            budget: Budget::Unlimited,
            compiling: false,
            rows: RowCheck::Off,
            refusal: None,
            denied: None,
            target: None,
            owned: Arc::default(),
            moving: Arc::default(),
            changes_before: 0,
            firing: BTreeSet::new(),
            stop: None,
            seed: 0,
            rng: None,
        }
    }

    /// Begins a proposal or query: its time (for this thread) and its randomness.
    pub(crate) fn begin(&mut self, now_ms: Millis, seed: u64) {
        clock::set_now(now_ms);
        self.seed = seed;
        self.rng = None;
        self.refusal = None;
        self.denied = None;
        self.budget = Budget::Unlimited;
    }

    /// The same for one statement of several.
    pub(crate) fn restart(&mut self, now_ms: Millis, seed: u64) {
        clock::set_now(now_ms);
        self.seed = seed;
        self.rng = None;
    }

    /// Before a statement that may fire triggers: one that failed may have left some under way.
    pub(crate) fn no_trigger_fires(&mut self) {
        self.firing.clear();
    }

    pub(crate) fn is_firing(&self, trigger: &str) -> bool {
        self.firing.contains(trigger)
    }

    pub(crate) fn set_firing(&mut self, trigger: &str, firing: bool) {
        if firing {
            self.firing.insert(trigger.to_owned());
        } else {
            self.firing.remove(trigger);
        }
    }

    /// The generator of `random()`, made when it is first asked for.
    pub(crate) fn rng(&mut self) -> &mut ChaCha8Rng {
        let seed = self.seed;
        self.rng.get_or_insert_with(|| ChaCha8Rng::seed_from_u64(seed))
    }

    /// What SQLite's own `random()` gives: any integer but the smallest, whose absolute value doesn't exist.
    pub(crate) fn random(&mut self) -> i64 {
        let number = self.rng().next_u64() as i64;
        if number == i64::MIN { 0 } else { number }
    }

    /// Called every so many steps of the virtual machine. `true` stops the statement.
    pub(crate) fn exhausted(&mut self) -> bool {
        if self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::SeqCst)) {
            return true;
        }
        match &mut self.budget {
            Budget::Unlimited => false,
            Budget::Steps(_) if self.compiling => false,
            Budget::Steps(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
            Budget::Until(deadline) => Instant::now() >= *deadline,
        }
    }

    /// Refuses a client's write to a table that takes none. A write to reference tables that the anchor has accepted
    /// before is carried out on every shard.
    pub(crate) fn refuse_placing(&mut self, table: String) -> Result<(), ()> {
        if let RowCheck::Off = self.rows {
            return Ok(());
        }
        self.refusal = Some(RowRefusal::Refused(Refusal::Placing { table }));
        Err(())
    }

    /// The check of one written row. `Err` is kept for whoever sees the statement fail.
    pub(crate) fn check_row(&mut self, key: Key<'_>, key_type: KeyType) -> Result<(), ()> {
        let RowCheck::Routed(routed) = &self.rows else { return Ok(()) };
        let refusal = match key.partition_as(key_type, self.partition_count) {
            Ok(unit) if routed.contains(unit) => return Ok(()),
            Ok(unit) => RowRefusal::Refused(Refusal::NotRouted { unit }),
            Err(failure) => RowRefusal::Failed(failure),
        };
        self.refusal = Some(refusal);
        Err(())
    }
}

/// A key as SQLite hands it over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Key<'a> {
    Null,
    Integer(i64),
    Real,
    Text(&'a [u8]),
    Blob(&'a [u8]),
}

impl<'a> From<rusqlite::types::ValueRef<'a>> for Key<'a> {
    fn from(value: rusqlite::types::ValueRef<'a>) -> Self {
        use rusqlite::types::ValueRef;
        match value {
            ValueRef::Null => Key::Null,
            ValueRef::Integer(number) => Key::Integer(number),
            ValueRef::Real(_) => Key::Real,
            ValueRef::Text(text) => Key::Text(text),
            ValueRef::Blob(bytes) => Key::Blob(bytes),
        }
    }
}

impl Key<'_> {
    /// The key's partition; none for NULL and for reals, which no key column holds.
    pub(crate) fn partition(self, count: u32) -> Option<PartitionId> {
        use std::io::Write;
        match self {
            Key::Null | Key::Real => None,
            Key::Integer(number) => {
                let mut text = [0u8; 20];
                let mut rest = &mut text[..];
                write!(rest, "{number}").ok()?;
                let unused = rest.len();
                Some(pleat_cluster::partition_of_text(&text[..20 - unused], count))
            }
            Key::Text(text) => Some(pleat_cluster::partition_of_text(text, count)),
            Key::Blob(bytes) => {
                let mut text = Vec::with_capacity(2 + 2 * bytes.len());
                text.extend_from_slice(b"\\x");
                for byte in bytes {
                    text.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                }
                Some(pleat_cluster::partition_of_text(&text, count))
            }
        }
    }

    /// The partition of a key that must have been stored as `key_type`.
    fn partition_as(self, key_type: KeyType, count: u32) -> Result<PartitionId, SqlFailure> {
        let found = match self {
            Key::Null => {
                let message = "the shard key is NULL: every row needs a key to have an owner";
                return Err(sqlstate::refuse(0, "23502", message, "give the key column a value"));
            }
            Key::Integer(_) => "integer",
            Key::Real => "real",
            Key::Text(_) => "text",
            Key::Blob(_) => "blob",
        };
        let wanted = key_type.storage_class();
        match self.partition(count).filter(|_| found == wanted) {
            Some(unit) => Ok(unit),
            None => Err(sqlstate::refuse(
                0,
                "42804",
                format!("the shard key was stored as {found}, but the key column holds {wanted} values"),
                "give the key as the type that the column declares",
            )),
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use pleat_cluster::{Value, partition_of};

    use super::*;

    #[test]
    fn partitions_are_those_of_the_catalog() {
        for number in [0, 1, -1, i64::MAX, i64::MIN] {
            let wanted = partition_of(&Value::Integer(number), KeyType::Integer, 256).ok();
            assert_eq!(Key::Integer(number).partition(256), wanted);
        }
        let bytes = vec![0, 0xde, 0xad, 0xff];
        let wanted = partition_of(&Value::Blob(bytes.clone()), KeyType::Bytes, 256).ok();
        assert_eq!(Key::Blob(&bytes).partition(256), wanted);
        let wanted = partition_of(&Value::from("naïve\0text"), KeyType::Text, 256).ok();
        assert_eq!(Key::Text("naïve\0text".as_bytes()).partition(256), wanted);
        assert_eq!(Key::Null.partition(256), None);
    }
}
