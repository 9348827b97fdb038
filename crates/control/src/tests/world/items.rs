//! A table whose placement changes, and clients that plan their statements by the catalog that they know: the newest, or
//! an older one.

use std::collections::BTreeMap;

use pleat_cluster::*;
use pleat_engine::*;

use super::{Inner, PARTITIONS};

/// Keyed writes that are remembered, to be sent again.
const KEPT_MAX: usize = 30;

/// What must be there, and what was sent.
#[derive(Default)]
pub struct Items {
    pub rows: BTreeMap<(i64, String), i64>,
    keyed: Vec<(u64, (i64, String))>,
    last_key: u64,
    pub acknowledged: u64,
    pub refused: u64,
    pub answered: u64,
    pub repeated: u64,
}

/// Where a statement about one row goes, by the catalog that it is planned by.
enum Way {
    Unit(ShardId, PartitionId),
    Reference,
}

fn way(catalog: &Catalog, row: &(i64, String)) -> Way {
    let table = catalog.table("items").unwrap();
    match &table.kind {
        TableKind::Sharded { key, key_type } => {
            let key = if key == "a" { Value::Integer(row.0) } else { Value::Text(row.1.clone()) };
            let partition = partition_of(&key, *key_type, PARTITIONS).unwrap();
            Way::Unit(catalog.owner(partition).unwrap(), partition)
        }
        TableKind::Single { shard } => Way::Unit(*shard, PartitionId::of_single(table.id)),
        TableKind::Reference => Way::Reference,
    }
}

impl Inner {
    fn some_item(&mut self) -> (i64, String) {
        (self.random(12) as i64 - 4, format!("ключ-{}", self.random(12)))
    }

    /// What clients do between two calls of the control loop.
    pub(super) fn touch_items(&mut self) {
        match self.random(12) {
            0..=3 => self.put_item(),
            4..=5 => self.delete_item(),
            6..=7 => self.count_item(),
            8 => self.repeat_item(),
            9..=10 => self.get_item(),
            _ => self.count_items(),
        }
    }

    pub fn put_item(&mut self) {
        let row = self.some_item();
        let sql = "INSERT INTO items(a, b, n) VALUES (?1, ?2, 1) ON CONFLICT (a, b) DO UPDATE SET n = 1";
        if self.write_item(&row, sql, None) {
            self.items.rows.insert(row, 1);
        }
    }

    fn delete_item(&mut self) {
        let row = self.some_item();
        if self.write_item(&row, "DELETE FROM items WHERE a = ?1 AND b = ?2", None) {
            self.items.rows.remove(&row);
        }
    }

    /// A write that shows when it is done twice.
    fn count_item(&mut self) {
        let row = self.some_item();
        self.items.last_key += 1;
        let key = self.items.last_key;
        if self.write_item(&row, COUNT, Some(key)) {
            self.items.rows.entry(row.clone()).and_modify(|n| *n += 1);
            self.items.keyed.push((key, row));
            if self.items.keyed.len() > KEPT_MAX {
                self.items.keyed.remove(0);
            }
        }
    }

    /// A client that has not heard the answer sends its request again, wherever it goes by now.
    fn repeat_item(&mut self) {
        if self.items.keyed.is_empty() {
            return;
        }
        let at = self.random(self.items.keyed.len() as u64) as usize;
        let (key, row) = self.items.keyed[at].clone();
        self.write_item(&row, COUNT, Some(key));
        self.items.repeated += 1;
    }

    /// Whether the write was accepted and done now.
    fn write_item(&mut self, row: &(i64, String), sql: &str, key: Option<u64>) -> bool {
        let catalog = self.router();
        let statements = vec![Statement::new(sql, [Value::Integer(row.0), Value::Text(row.1.clone())])];
        let idempotency = key.map(|key| Idempotency { key: format!("c/{key}"), fingerprint: key, ttl_ms: 600_000 });
        let (shard, action) = match way(&catalog, row) {
            Way::Unit(shard, unit) => (shard, Action::Write { idempotency, units: vec![unit], statements, base: None }),
            Way::Reference => (catalog.anchor().unwrap(), Action::ReferenceWrite { idempotency, statements }),
        };
        let repeated = key.is_some_and(|key| self.items.keyed.iter().any(|(known, _)| *known == key));
        match self.apply_as(shard, action, catalog.planned()) {
            Ok(Outcome::Done { .. } | Outcome::Reference { replayed: false, .. }) => {
                assert!(!repeated, "{key:?} of {row:?} was done twice, on {shard}, call {}", self.calls);
                self.spread_items(shard);
                self.items.acknowledged += 1;
                true
            }
            Ok(Outcome::Replayed { .. } | Outcome::Reference { .. }) => {
                assert!(repeated, "{key:?} was never done");
                false
            }
            Ok(Outcome::Refused(refusal)) if refusal.is_retryable() => {
                self.items.refused += 1;
                false
            }
            other => panic!("write of {row:?} on {shard}: {other:?}"),
        }
    }

    /// Reference writes are on every shard before they are answered.
    fn spread_items(&mut self, anchor: ShardId) {
        if self.catalog.anchor() == Some(anchor) {
            let others: Vec<_> = self.catalog.active_shards().map(|shard| shard.id).collect();
            for shard in others.into_iter().filter(|shard| *shard != anchor) {
                self.spread_to(anchor, shard);
            }
        }
    }

    fn get_item(&mut self) {
        let row = self.some_item();
        let catalog = self.router();
        let (shard, check) = match way(&catalog, &row) {
            Way::Unit(shard, unit) => (shard, OwnershipCheck::Keyed(vec![unit])),
            Way::Reference => {
                let shards: Vec<_> = catalog.active_shards().map(|shard| shard.id).collect();
                (shards[self.random(shards.len() as u64) as usize], OwnershipCheck::None)
            }
        };
        let params = vec![Value::Integer(row.0), Value::Text(row.1.clone())];
        let sql = "SELECT n FROM items WHERE a = ?1 AND b = ?2";
        match self.read_as(shard, sql, None, params, check, Some(catalog.layout)) {
            Ok(rows) => {
                let expected: Vec<_> =
                    self.items.rows.get(&row).map(|n| vec![Value::Integer(*n)]).into_iter().collect();
                assert_eq!(rows, expected, "{row:?} on {shard}, call {}", self.calls);
                self.items.answered += 1;
            }
            Err(EngineError::Refused(refusal)) if refusal.is_retryable() => {}
            Err(error) => panic!("read of {row:?} on {shard}: {error}"),
        }
    }

    /// All rows, each once, or a refusal.
    fn count_items(&mut self) {
        let catalog = self.router();
        let table = catalog.table("items").unwrap();
        let sql = "SELECT count(*), coalesce(sum(n), 0) FROM items";
        let (shards, filtered) = match &table.kind {
            TableKind::Sharded { key, .. } => {
                let all = catalog
                    .active_shards()
                    .map(|shard| (shard.id, OwnershipCheck::Scatter { ownership: shard.ownership }));
                (all.collect(), Some(format!("{sql} WHERE pleat_owned({key})")))
            }
            TableKind::Single { shard } => {
                (vec![(*shard, OwnershipCheck::Keyed(vec![PartitionId::of_single(table.id)]))], None)
            }
            TableKind::Reference => (vec![(catalog.anchor().unwrap(), OwnershipCheck::None)], None),
        };
        let (mut rows, mut sum) = (0, 0);
        for (shard, check) in shards {
            match self.read_as(shard, sql, filtered.as_deref(), Vec::new(), check, Some(catalog.layout)) {
                Ok(answer) => {
                    let [Value::Integer(more), Value::Integer(of)] = answer[0][..] else { panic!("{answer:?}") };
                    (rows, sum) = (rows + more, sum + of);
                }
                Err(EngineError::Refused(refusal)) if refusal.is_retryable() => return,
                Err(error) => panic!("count on {shard}: {error}"),
            }
        }
        let expected = (self.items.rows.len() as i64, self.items.rows.values().sum::<i64>());
        assert_eq!((rows, sum), expected, "call {}", self.calls);
        self.items.answered += 1;
    }

    /// What must hold of the table when no operation is open: each row where it belongs, and nothing else.
    pub(super) fn check_items(&self) {
        let Some(table) = self.catalog.table("items") else { return };
        let sql = "SELECT rowid, a, b, n FROM items ORDER BY a, b";
        let mut found = BTreeMap::new();
        let mut copies = Vec::new();
        for shard in self.catalog.active_shards() {
            let rows = self.read(shard.id, sql, None, Vec::new(), OwnershipCheck::None).unwrap();
            for row in &rows {
                let [_, Value::Integer(a), Value::Text(b), Value::Integer(n)] = &row[..] else { panic!("{row:?}") };
                let row = (*a, b.clone());
                let here = match way(&self.catalog, &row) {
                    Way::Unit(owner, _) => owner == shard.id,
                    Way::Reference => true,
                };
                assert!(here, "{row:?} is left on {}", shard.id);
                found.insert(row, *n);
            }
            copies.push(rows);
            // Neither captured nor fenced, and no number table.
            let own = "SELECT name FROM sqlite_schema WHERE name GLOB '__pl?at_capture*' OR name GLOB '__pl?at_fence*' OR name GLOB '__pl?at_renum*'";
            assert_eq!(
                self.read(shard.id, own, None, Vec::new(), OwnershipCheck::None).unwrap(),
                Vec::<Vec<Value>>::new()
            );
        }
        assert_eq!(found, self.items.rows);
        match &table.kind {
            TableKind::Reference => assert!(copies.iter().all(|copy| *copy == copies[0]), "copies differ"),
            _ => assert_eq!(copies.iter().map(Vec::len).sum::<usize>(), found.len(), "a row is there twice"),
        }
    }
}

const COUNT: &str = "UPDATE items SET n = n + 1 WHERE a = ?1 AND b = ?2";

/// The partition of an integer key, and who owns it.
pub fn owner(catalog: &Catalog, key: i64) -> (PartitionId, ShardId) {
    let partition = partition_of(&Value::Integer(key), KeyType::Integer, PARTITIONS).unwrap();
    (partition, catalog.owner(partition).unwrap())
}
