//! A replica under test, and helpers to write entries and to look at content.
#![allow(dead_code)] // each test file uses its share

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pleat_cluster::{KeyType, PartitionId, Planned, Table, TableKind, Value, partition_of};
use pleat_engine::*;

/// Tests write by the catalog of generation 1.
pub const PLANNED: Planned = Planned { generation: 1, layout: 0 };

pub const PARTITIONS: u32 = 8;

/// The sharded table of most tests.
pub const ITEMS: &str = "CREATE TABLE items(k INTEGER, n INTEGER, name TEXT, data BLOB, twice INTEGER GENERATED ALWAYS AS (n * 2), \
                         u INTEGER UNIQUE, PRIMARY KEY (k, n))";

pub struct Replica {
    pub dir: tempfile::TempDir,
    pub store: Option<Store>,
    pub readers: Readers,
    pub log: Vec<Vec<u8>>,
    pub clock: u64,
}

impl Replica {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, readers) = Store::open(dir.path(), StoreConfig::new(PARTITIONS)).unwrap();
        Self { dir, store: Some(store), readers, log: Vec::new(), clock: 1_700_000_000_000 }
    }

    /// Owns everything and has the table `items`.
    pub fn with_items() -> Self {
        let mut replica = Self::new();
        replica.own(0..PARTITIONS);
        replica.create(ITEMS, "items", sharded("k", KeyType::Integer));
        replica
    }

    pub fn store(&mut self) -> &mut Store {
        self.store.as_mut().unwrap()
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join(Store::FILE)
    }

    pub fn apply(&mut self, action: Action) -> Outcome {
        self.clock += 1_000;
        let bytes = entry(action, self.clock, self.log.len() as u64);
        self.log.push(bytes.clone());
        let position = self.log.len() as u64;
        let outcomes = self.store().apply(&[&bytes], &position.to_le_bytes()).unwrap();
        Outcome::decode(&outcomes[0]).unwrap()
    }

    pub fn own(&mut self, units: std::ops::Range<u32>) {
        let units = units.map(PartitionId).collect();
        assert!(matches!(self.apply(Action::Own { units, ownership: 1, layout: 0 }), Outcome::Done { .. }));
    }

    pub fn create(&mut self, sql: &str, table: &str, kind: TableKind) {
        let described = validate_ddl(&Default::default(), &[sql.to_owned()], table, &kind).unwrap().unwrap();
        let action = ddl(self.log.len() as u64, &[sql], described);
        let outcome = self.apply(action);
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    }

    /// Runs statements that leave a table's columns as they are, such as CREATE TRIGGER. `sql` made the table.
    pub fn triggers(&mut self, sql: &str, table: &str, kind: TableKind, statements: &[&str]) {
        let described = validate_ddl(&Default::default(), &[sql.to_owned()], table, &kind).unwrap().unwrap();
        let action = ddl(self.log.len() as u64, statements, described);
        let outcome = self.apply(action);
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    }

    /// A write that is routed to everything.
    pub fn write(&mut self, sql: &str, params: Vec<Value>) -> Outcome {
        self.apply(write(sql, params))
    }

    pub fn ok(&mut self, sql: &str) -> Vec<StatementResult> {
        match self.write(sql, vec![]) {
            Outcome::Done { results } => results,
            other => panic!("{sql}: {other:?}"),
        }
    }

    pub fn failed(&mut self, sql: &str) -> SqlFailure {
        match self.write(sql, vec![]) {
            Outcome::Failed(failure) => failure,
            other => panic!("{sql}: {other:?}"),
        }
    }

    pub fn query(&self, sql: &str) -> Vec<Vec<Value>> {
        read_all(&self.readers, &request(sql)).unwrap()
    }

    pub fn step(&mut self, operation: u64, epoch: u64, action: MoveAction) -> Outcome {
        self.apply(Action::Move(MoveStep { operation, epoch, action }))
    }

    pub fn moved(&mut self, operation: u64, action: MoveAction) -> MoveState {
        let text = format!("{action:?}");
        match self.step(operation, 1, action) {
            Outcome::Moved(state) => state,
            other => panic!("{:.300}: {other:?}", text),
        }
    }

    pub fn dump(&self) -> String {
        dump(&self.file())
    }
}

pub fn sharded(key: &str, key_type: KeyType) -> TableKind {
    TableKind::Sharded { key: key.to_owned(), key_type }
}

pub fn all_units() -> Vec<PartitionId> {
    (0..PARTITIONS).map(PartitionId).collect()
}

pub fn write(sql: &str, params: Vec<Value>) -> Action {
    Action::Write { idempotency: None, units: all_units(), statements: vec![Statement::new(sql, params)], base: None }
}

pub fn ddl(operation: u64, statements: &[&str], table: Table) -> Action {
    let statements = statements.iter().map(|sql| sql.to_string()).collect();
    Action::Ddl { operation, statements, change: SchemaChange::Put(table), single: None, undoes: None }
}

pub fn entry(action: Action, now_ms: u64, seed: u64) -> Vec<u8> {
    Proposal { id: uuid::Uuid::from_u128(seed.into()), planned: PLANNED, now_ms, seed, action }.encode()
}

pub fn unit_of(key: i64) -> PartitionId {
    partition_of(&Value::Integer(key), KeyType::Integer, PARTITIONS).unwrap()
}

pub fn request(sql: &str) -> ReadRequest {
    ReadRequest {
        queries: vec![Query::new(sql)],
        check: OwnershipCheck::None,
        layout: None,
        now_ms: 1_700_000_000_000,
        seed: 7,
        limits: ReadLimits { time: Duration::from_secs(60), ..ReadLimits::default() },
        names_txns: false,
    }
}

pub fn read_all(readers: &Readers, request: &ReadRequest) -> Result<Vec<Vec<Value>>, EngineError> {
    let mut rows = Vec::new();
    readers.read(request, &mut |chunk| {
        rows.extend(chunk.rows);
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

/// The names of the columns that a read gives.
pub fn read_columns(readers: &Readers, request: &ReadRequest) -> Vec<String> {
    let mut columns = Vec::new();
    let read = readers.read(request, &mut |chunk| {
        columns.extend(chunk.columns.into_iter().flatten().map(|column| column.name));
        ControlFlow::Continue(())
    });
    read.unwrap();
    columns
}

/// All that a replica holds, as text: the schema and every row of every table with its rowid. The position in
/// the log is left out: it says how far, not what.
pub fn dump(file: &Path) -> String {
    let conn = rusqlite::Connection::open_with_flags(file, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut text = String::new();
    let mut schema =
        conn.prepare("SELECT type || ' ' || name || ': ' || coalesce(sql, '') FROM sqlite_schema ORDER BY 1").unwrap();
    for line in schema.query_map([], |row| row.get::<_, String>(0)).unwrap() {
        text += &(line.unwrap() + "\n");
    }
    let mut tables = conn
        .prepare("SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT IN ('sqlite_schema', '__pleat_applied') ORDER BY name")
        .unwrap();
    let tables: Vec<(String, bool)> =
        tables.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap();
    for (table, without_rowid) in tables {
        let mut columns =
            conn.prepare("SELECT name FROM pragma_table_xinfo(?1) WHERE hidden <> 1 ORDER BY cid").unwrap();
        let mut columns: Vec<String> =
            columns.query_map([&table], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        if !without_rowid {
            columns.insert(0, "rowid".into());
        }
        let quoted: Vec<_> = columns.iter().map(|name| format!("quote(\"{name}\")")).collect();
        let sql = format!("SELECT concat_ws(', ', {}) FROM \"{table}\" ORDER BY 1", quoted.join(", "));
        let mut rows = conn.prepare(&sql).unwrap();
        for line in rows.query_map([], |row| row.get::<_, String>(0)).unwrap() {
            text += &format!("{table}: {}\n", line.unwrap());
        }
    }
    text
}

/// What the head of a read says.
pub fn seen(replica: &Replica) -> TxnsSeen {
    let request = ReadRequest { names_txns: true, ..request("SELECT 1") };
    let mut heads = Vec::new();
    replica
        .readers
        .read(&request, &mut |chunk| {
            heads.push(chunk.txns);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    heads.remove(0).expect("the first chunk has the head")
}
