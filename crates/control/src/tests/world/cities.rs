//! Transactions that write to a reference table on all shards that they know of, while another shard is made.

use pleat_cluster::*;
use pleat_engine::*;
use pleat_host::HostError;

use super::Inner;

/// Keys of rows that transactions insert: no other client uses these.
const FIRST_KEY: i64 = 1_000;
const TXN: TxnId = TxnId(7);
/// Calls between its prepare and its decision.
pub const DECIDED_AFTER: u64 = 2;

/// A transaction on its way.
#[derive(Default)]
pub struct CityTxn {
    /// The one that it goes by.
    catalog: Catalog,
    /// What it ran on each shard.
    scripts: Vec<(ShardId, Script)>,
    prepared: Vec<ShardId>,
    pub committed: bool,
}

impl Inner {
    /// A write to a reference table, spread as `host` does it.
    pub fn put_city(&mut self) {
        let (key, value) = (self.random(40) as i64, format!("{:x}", self.random(u64::from(u32::MAX))));
        let sql = "INSERT OR REPLACE INTO cities(id, name) VALUES (?1, ?2)";
        if self.write_cities(Statement::new(sql, [Value::Integer(key), Value::Text(value.clone())])) {
            self.cities.insert(key, value);
        }
    }

    pub fn delete_city(&mut self) {
        let Some((key, _)) = self.cities.pop_first() else { return };
        self.write_cities(Statement::new("DELETE FROM cities WHERE id = ?1", [Value::Integer(key)]));
    }

    pub(super) fn spread_to(&mut self, anchor: ShardId, shard: ShardId) {
        let request = MoveRead::ReferenceLog { after: 0, limit: 100_000 };
        let Ok(MoveChunk::ReferenceLog { entries: log, .. }) = self.move_read(anchor, &request) else { panic!() };
        let mut next = log.last().map_or(0, |entry| entry.seq);
        while let Some(entry) = log.iter().find(|entry| entry.seq == next) {
            match self.apply(shard, Action::ReferenceApply(entry.clone())).unwrap() {
                Outcome::Reference { .. } => next += 1,
                Outcome::Refused(Refusal::Gap { expected, .. }) => next = expected,
                other => panic!("{other:?}"),
            }
        }
    }

    /// What is due at this call of a transaction that begins before call `at`.
    pub fn city_txn(&mut self, call: u64, at: u64, pause: u64, runs_late: bool) {
        match call.checked_sub(at) {
            Some(0) => {
                self.city_txn = CityTxn { catalog: self.catalog.clone(), ..CityTxn::default() };
                if !runs_late {
                    self.run_city_txn();
                }
            }
            Some(after) if after == pause => {
                if runs_late {
                    self.run_city_txn();
                }
                self.prepare_city_txn();
            }
            Some(after) if after == pause + DECIDED_AFTER => self.decide_city_txn(),
            _ => {}
        }
    }

    fn run_city_txn(&mut self) {
        let catalog = self.city_txn.catalog.clone();
        let shards: Vec<_> = catalog.active_shards().map(|shard| shard.id).collect();
        let stamp = Some(Stamp { now_ms: self.now, seed: 1, undone: None });
        let insert =
            Statement::new("INSERT INTO cities(id, name) VALUES (?1, 'by a transaction')", [Value::Integer(FIRST_KEY)]);
        let insert = Statement { stamp, reference: Some(0), ..insert };
        let planned = catalog.planned();
        let run = |shard: ShardId| {
            let local = self.shards[&shard].1.begin_txn(1, || {}).unwrap();
            local.write(&[], std::slice::from_ref(&insert), planned, self.now)?;
            Ok((shard, local.reference(), local.finish()?))
        };
        let ran: Result<Vec<_>, EngineError> = shards.into_iter().map(run).collect();
        let Ok(ran) = ran else { return };
        if ran.windows(2).any(|pair| pair[0].1 != pair[1].1) {
            return;
        }
        self.city_txn.scripts = ran.into_iter().map(|(shard, _, script)| (shard, script)).collect();
    }

    fn prepare_city_txn(&mut self) {
        let CityTxn { scripts, catalog, .. } = std::mem::take(&mut self.city_txn);
        let participants: Vec<ShardId> = scripts.iter().map(|(shard, _)| *shard).collect();
        for (shard, Script { base, units, statements }) in scripts {
            let (participants, base) = (participants.clone(), Some(base));
            let (txn, began, idempotency) = (TXN, 1, None);
            let prepare = Action::Prepare { txn, began, participants, idempotency, units, statements, base };
            match self.apply_as(shard, prepare, catalog.planned()) {
                Ok(Outcome::Prepared { .. }) => self.city_txn.prepared.push(shard),
                // The shard refuses, or was removed.
                Ok(Outcome::Refused(_)) | Err(HostError::Unavailable(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        self.city_txn.committed = !participants.is_empty() && self.city_txn.prepared.len() == participants.len();
    }

    fn decide_city_txn(&mut self) {
        let commit = self.city_txn.committed.then_some(1);
        for shard in std::mem::take(&mut self.city_txn.prepared) {
            let decided = self.apply(shard, Action::Decide { txn: TXN, commit }).unwrap();
            assert!(matches!(decided, Outcome::Done { .. }), "{decided:?}");
        }
        if self.city_txn.committed {
            self.cities.insert(FIRST_KEY, "by a transaction".to_owned());
        }
    }
}
