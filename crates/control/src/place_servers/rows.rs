//! Which rows of a table change servers when its placement does, and the statements that carry them.
//!
//! | before | who gives rows | who gets some |
//! | --- | --- | --- |
//! | single | its shard | those that own them, or all |
//! | sharded | each shard | the same |
//! | reference | nobody: all have all | nobody |
//!
//! Whoever holds rows that are not its own by the new placement deletes them. Values travel as texts under settings that lose nothing; triggers
//! and foreign keys are off meanwhile, since nothing happens to the rows but that they are elsewhere. At the end of its part each server counts; nobody else can write by then, so
//! a wrong count (copies of a reference table that differ) is no matter of trying again.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{Catalog, KeyType, ShardId, Table, TableKind, partition_in_postgres};
use pleat_engine::postgres::moving::in_partitions;

use super::partitions;

/// How many rows of a table, and of how many bytes, are carried while clients wait.
pub(super) const ROWS_MAX: u64 = 10_000;
pub(super) const BYTES_MAX: u64 = 8 << 20;
/// Rows and bytes in one INSERT.
const INSERT_ROWS: usize = 500;
const INSERT_BYTES: usize = 256 << 10;

/// What texts of values depend on.
pub(super) const SETTINGS: &str = "SET LOCAL DateStyle = 'ISO, MDY'; SET LOCAL IntervalStyle = 'postgres'; SET LOCAL TimeZone = 'UTC'; \
    SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C'; SET LOCAL xmloption = 'content'; \
    SET LOCAL standard_conforming_strings = on; SET LOCAL search_path = ''; SET LOCAL row_security = off";
/// No trigger sees rows that only change servers.
const UNSEEN: &str = "SET LOCAL session_replication_role = replica";

/// A row's values; `None` is NULL.
type Row = Vec<Option<String>>;

/// What happens to one table.
pub(super) struct Moving {
    /// `"schema"."name"`.
    name: String,
    key: Option<(String, KeyType)>,
    key_may_be_null: bool,
    /// Those that are written to.
    columns: Vec<String>,
    count: u32,
    before: TableKind,
    after: TableKind,
    owned: BTreeMap<ShardId, BTreeSet<u32>>,
    anchor: Option<ShardId>,
    rows: Vec<(ShardId, u32, Row)>,
    bytes: u64,
}

impl Moving {
    pub fn new(catalog: &Catalog, shards: &[ShardId], before: &Table, after: &Table) -> Moving {
        let columns = after.columns.iter().filter(|column| !column.generated);
        let key = after.shard_key();
        let may_be_null = key.is_some_and(|(key, _)| after.column(key).is_none_or(|column| !column.not_null));
        Moving {
            name: qualified(&after.name),
            key: key.map(|(key, key_type)| (quoted(key), key_type)),
            key_may_be_null: may_be_null,
            columns: columns.map(|column| quoted(&column.name)).collect(),
            count: catalog.partition_count,
            before: before.kind.clone(),
            after: after.kind.clone(),
            owned: shards.iter().map(|shard| (*shard, partitions(catalog, *shard))).collect(),
            anchor: catalog.anchor(),
            rows: Vec::new(),
            bytes: 0,
        }
    }

    /// With one shard all rows are where they have to be.
    fn stays(&self) -> bool {
        self.owned.len() < 2
    }

    /// Those that have rows, each of which one of them has.
    fn sources(&self) -> Vec<ShardId> {
        match &self.before {
            TableKind::Single { shard } => vec![*shard],
            TableKind::Reference => self.anchor.into_iter().collect(),
            TableKind::Sharded { .. } => self.owned.keys().copied().collect(),
        }
    }

    /// Whose answer has a row, if a key is NULL.
    pub fn null_keys(&self) -> Vec<(ShardId, String)> {
        let Some((key, _)) = self.key.as_ref().filter(|_| self.key_may_be_null) else { return Vec::new() };
        let text = format!("SELECT 1 FROM {} WHERE {key} IS NULL LIMIT 1", self.name);
        self.sources().into_iter().map(|shard| (shard, text.clone())).collect()
    }

    /// Whose answers are how many rows there are, up to one too many, and their bytes.
    pub fn weights(&self) -> Vec<(ShardId, String)> {
        if self.stays() {
            return Vec::new();
        }
        let text = format!(
            "SELECT count(*), coalesce(sum(octet_length(one::text)), 0) FROM (SELECT * FROM {} LIMIT {}) AS one",
            self.name,
            ROWS_MAX + 1
        );
        self.sources().into_iter().map(|shard| (shard, text.clone())).collect()
    }

    /// Whose answers are the rows, for [`Moving::take`].
    pub fn reads(&self) -> Vec<(ShardId, String)> {
        if self.stays() {
            return Vec::new();
        }
        let partition = match &self.key {
            Some((key, key_type)) => partition_in_postgres(key, *key_type, self.count),
            None => "0".to_owned(),
        };
        let columns: String = self.columns.iter().map(|column| format!(", {column}")).collect();
        let text = format!("SELECT {partition}{columns} FROM {} LIMIT {}", self.name, ROWS_MAX + 1);
        self.sources().into_iter().map(|shard| (shard, text.clone())).collect()
    }

    /// Rows that a shard has. False: there are too many.
    pub fn take(&mut self, shard: ShardId, rows: Vec<Row>) -> bool {
        for mut row in rows {
            let partition = row.first().and_then(|value| value.as_deref()?.parse::<u32>().ok()).unwrap_or(0);
            row.drain(..row.len().min(1));
            self.bytes += row.iter().flatten().map(|value| value.len() as u64).sum::<u64>();
            self.rows.push((shard, partition, row));
        }
        self.rows.len() as u64 <= ROWS_MAX && self.bytes <= BYTES_MAX
    }

    fn belongs(&self, shard: ShardId, partition: u32) -> bool {
        match &self.after {
            TableKind::Single { shard: home } => *home == shard,
            TableKind::Reference => true,
            TableKind::Sharded { .. } => self.owned.get(&shard).is_some_and(|owned| owned.contains(&partition)),
        }
    }

    fn has(&self, shard: ShardId, from: ShardId) -> bool {
        self.before == TableKind::Reference || shard == from
    }

    /// A shard's part in it, in a transaction.
    pub fn texts(&self, shard: ShardId) -> Vec<String> {
        let name = &self.name;
        if self.stays() {
            // Routers hold clients back, and nobody else is kept from anything but from changing the table itself.
            return vec![format!("LOCK TABLE {name} IN ROW EXCLUSIVE MODE")];
        }
        let mut texts = vec![format!("{SETTINGS}; {UNSEEN}; LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")];
        let belonging: Vec<&(ShardId, u32, Row)> =
            self.rows.iter().filter(|(_, partition, _)| self.belongs(shard, *partition)).collect();
        let had = self.rows.iter().filter(|(from, ..)| self.has(shard, *from)).count();
        let kept = belonging.iter().filter(|(from, ..)| self.has(shard, *from)).count();
        if kept < had {
            let owned = self.owned.get(&shard).cloned().unwrap_or_default();
            texts.push(match &self.key {
                Some((key, key_type)) => {
                    format!("DELETE FROM {name} WHERE NOT ({})", in_partitions(key, *key_type, self.count, &owned))
                }
                None => format!("DELETE FROM {name}"),
            });
        }
        let coming = belonging.iter().filter(|(from, ..)| !self.has(shard, *from)).map(|(_, _, row)| row);
        texts.extend(self.inserts(coming));
        let wrong =
            literal(&format!("{name} on {shard} does not have the {} rows that it is to have", belonging.len()));
        let block = format!(
            "BEGIN IF (SELECT count(*) FROM {name}) <> {} THEN RAISE EXCEPTION USING ERRCODE = 'XX001', MESSAGE = {wrong}; END IF; END",
            belonging.len()
        );
        texts.push(format!("DO {}", literal(&block)));
        texts
    }

    fn inserts<'r>(&self, rows: impl Iterator<Item = &'r Row>) -> Vec<String> {
        let head = match self.columns.is_empty() {
            // A table without columns that are written to.
            true => format!("INSERT INTO {} DEFAULT VALUES", self.name),
            false => format!("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ", self.name, self.columns.join(", ")),
        };
        let (mut texts, mut text, mut count) = (Vec::new(), String::new(), 0);
        for row in rows {
            if self.columns.is_empty() {
                texts.push(head.clone());
                continue;
            }
            let values: Vec<String> =
                row.iter().map(|value| value.as_deref().map_or_else(|| "NULL".to_owned(), literal)).collect();
            text.push_str(if count == 0 { &head } else { ", " });
            text.push_str(&format!("({})", values.join(", ")));
            count += 1;
            if count >= INSERT_ROWS || text.len() >= INSERT_BYTES {
                texts.push(std::mem::take(&mut text));
                count = 0;
            }
        }
        texts.extend(Some(text).filter(|text| !text.is_empty()));
        texts
    }
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table's name as SQL has it: `schema.name` comes apart at its first dot, and without one it is in `public`.
pub(super) fn qualified(name: &str) -> String {
    let (schema, name) = name.split_once('.').unwrap_or(("public", name));
    format!("{}.{}", quoted(schema), quoted(name))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use pleat_cluster::{Column, Command, Engine, NodeId, PartitionId, Policy, TableId};

    use super::*;

    fn table(kind: TableKind) -> Table {
        let column = |name: &str, generated: bool| Column {
            name: name.to_owned(),
            decl_type: "bigint".to_owned(),
            collation: None,
            not_null: false,
            generated,
            serial: None,
            has_default: false,
        };
        Table {
            id: TableId(1),
            name: "a\"b".to_owned(),
            kind,
            columns: vec![column("k", false), column("v", false), column("g", true)],
            primary_key: Vec::new(),
            rowid_alias: false,
            without_rowid: false,
            create_sql: String::new(),
            indexes: Vec::new(),
            triggers: Vec::new(),
        }
    }

    fn catalog(shards: u32) -> (Catalog, Vec<ShardId>) {
        let mut catalog = Catalog::default();
        let init = Command::Init {
            cluster_id: "test".to_owned(),
            partition_count: 4,
            replication_factor: 1,
            nodes: vec![(NodeId(1), "one".to_owned(), "127.0.0.1:1".to_owned())],
            incarnations: BTreeMap::from([(NodeId(1), 1)]),
            shards,
            engine: Engine::Postgres,
            policy: Policy::default(),
            at: 1,
        };
        catalog.apply(&init).unwrap();
        for shard in 1..=shards {
            catalog.apply(&Command::ActivateShard { shard: ShardId(shard), at: 1 }).unwrap();
        }
        (catalog, (1..=shards).map(ShardId).collect())
    }

    fn by_k() -> TableKind {
        TableKind::Sharded { key: "k".to_owned(), key_type: KeyType::Integer }
    }

    fn row(partition: u32, key: &str, value: Option<&str>) -> Row {
        vec![Some(partition.to_string()), Some(key.to_owned()), value.map(str::to_owned)]
    }

    #[test]
    fn with_one_shard_nothing_is_read_but_whether_keys_are_null() {
        let (catalog, shards) = catalog(1);
        let single = table(TableKind::Single { shard: ShardId(1) });
        let moving = Moving::new(&catalog, &shards, &single, &table(by_k()));
        assert!(moving.reads().is_empty() && moving.weights().is_empty());
        assert_eq!(
            moving.null_keys(),
            [(ShardId(1), "SELECT 1 FROM \"public\".\"a\"\"b\" WHERE \"k\" IS NULL LIMIT 1".to_owned())]
        );
        assert_eq!(moving.texts(ShardId(1)), ["LOCK TABLE \"public\".\"a\"\"b\" IN ROW EXCLUSIVE MODE"]);
    }

    #[test]
    fn each_shard_gets_what_it_owns_and_the_one_that_had_all_keeps_its_own() {
        let (catalog, shards) = catalog(2);
        let of = |shard: u32| catalog.partitions_of(ShardId(shard)).first().map_or(0, |PartitionId(id)| *id);
        let (one, two) = (of(1), of(2));
        let single = table(TableKind::Single { shard: ShardId(1) });
        let mut moving = Moving::new(&catalog, &shards, &single, &table(by_k()));
        assert_eq!(moving.reads().len(), 1);
        assert!(
            moving
                .take(ShardId(1), vec![row(one, "1", Some("it's")), row(two, "2", Some("a\\b")), row(two, "3", None)])
        );
        let first = moving.texts(ShardId(1));
        assert!(
            first[0].contains("ACCESS EXCLUSIVE") && first[1].starts_with("DELETE FROM") && first.len() == 3,
            "{first:?}"
        );
        assert!(first[2].contains("<> 1 THEN"), "{first:?}");
        let second = moving.texts(ShardId(2));
        assert_eq!(
            second[1],
            "INSERT INTO \"public\".\"a\"\"b\" (\"k\", \"v\") OVERRIDING SYSTEM VALUE VALUES ('2', 'a\\b'), ('3', NULL)"
        );
        assert!(second[2].contains("<> 2 THEN") && second.len() == 3, "{second:?}");
    }

    #[test]
    fn copies_stay_where_they_belong_and_come_where_there_are_none() {
        let (catalog, shards) = catalog(2);
        let placed = |before: TableKind, after: TableKind| {
            let mut moving = Moving::new(&catalog, &shards, &table(before), &table(after));
            let sources: Vec<ShardId> = moving.reads().into_iter().map(|(shard, _)| shard).collect();
            for shard in &sources {
                assert!(moving.take(*shard, vec![row(0, &shard.0.to_string(), None)]));
            }
            let texts = [1, 2].map(|shard| moving.texts(ShardId(shard))[1..].join("\n"));
            (sources.len(), texts)
        };
        let single = || TableKind::Single { shard: ShardId(1) };
        let (sources, [one, two]) = placed(single(), TableKind::Reference);
        assert!(sources == 1 && one.starts_with("DO") && two.starts_with("INSERT"), "{one}\n{two}");
        let (sources, [one, two]) = placed(TableKind::Reference, single());
        assert!(sources == 1 && one.starts_with("DO") && two.starts_with("DELETE"), "{one}\n{two}");
        let (sources, [one, two]) = placed(by_k(), single());
        assert!(sources == 2 && one.starts_with("INSERT") && two.starts_with("DELETE"), "{one}\n{two}");
        let (sources, [one, two]) = placed(by_k(), TableKind::Reference);
        assert!(sources == 2 && one.starts_with("INSERT") && two.starts_with("INSERT"), "{one}\n{two}");
    }

    #[test]
    fn what_is_too_large_is_not_carried() {
        let (catalog, shards) = catalog(2);
        let single = table(TableKind::Single { shard: ShardId(1) });
        let mut moving = Moving::new(&catalog, &shards, &single, &table(by_k()));
        assert!(moving.take(ShardId(1), vec![row(0, "1", None); ROWS_MAX as usize]));
        assert!(!moving.take(ShardId(1), vec![row(0, "1", None)]));
        let mut moving = Moving::new(&catalog, &shards, &single, &table(by_k()));
        assert!(!moving.take(ShardId(1), vec![row(0, "1", Some(&"x".repeat(BYTES_MAX as usize)))]));
    }
}
