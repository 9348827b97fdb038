//! Schema changes while everything else goes on: what is acknowledged holds on every shard, and in the end every shard has the
//! catalog's schema, whatever became of the others.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use pleat_cluster::{Catalog, OperationKind, Value};
use pleat_engine::{Chunk, OwnershipCheck, Query, ReadLimits, ReadRequest, Readers};
use pleat_oracle::{Account, Wrong};
use rand::Rng;

use crate::client::{Answer, Told};
use crate::copies;
use crate::workload::{AGAIN_MS, Client};
use crate::world::{ACCOUNTS, Phase};

/// The pause between two requests, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 100..1_000;
/// How much of what is asked are changes; the rest reads columns that there must be.
const CHANGES: f64 = 0.3;
/// SQLSTATE: there is no such column.
const UNKNOWN_COLUMN: &str = "42703";
/// Tables with a column that an index can have.
const TABLES: [(&str, &str); 3] = [("accounts", "balance"), ("notes", "token"), (copies::TABLE, "balance")];
/// What is somebody's own of a shard, as SQLite has it.
const OF_USERS: &str = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE '\\_\\_pleat%' ESCAPE '\\' \
     AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";

/// A schema change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A column whose value in every row is its number.
    Column {
        table: &'static str,
        number: u64,
    },
    Index {
        table: &'static str,
        column: &'static str,
        number: u64,
    },
}

impl Change {
    fn name(self) -> String {
        match self {
            Change::Column { number, .. } => format!("extra_{number}"),
            Change::Index { number, .. } => format!("by_{number}"),
        }
    }

    fn sql(self) -> String {
        let name = self.name();
        match self {
            Change::Column { table, number } => {
                format!("ALTER TABLE {table} ADD COLUMN {name} INTEGER NOT NULL DEFAULT {number}")
            }
            Change::Index { table, column, .. } => format!("CREATE INDEX {name} ON {table} ({column})"),
        }
    }

    fn is_in(self, catalog: &Catalog) -> bool {
        let name = self.name();
        match self {
            Change::Column { table, .. } => catalog.table(table).is_some_and(|table| table.column(&name).is_some()),
            Change::Index { table, .. } => {
                catalog.table(table).is_some_and(|table| table.indexes.iter().any(|index| index.name == name))
            }
        }
    }
}

impl Client {
    /// Change the schema now and then, and read what was changed.
    pub async fn change_schema(mut self) {
        let mut number = 0;
        loop {
            self.pause(PAUSE_MS).await;
            if self.world.phase() != Phase::Working {
                continue;
            }
            let _asking = self.world.asking();
            if self.chance.random_bool(CHANGES) {
                if self.world.operates() && !self.is_changing() {
                    number += 1;
                    self.change(number).await;
                }
                continue;
            }
            let columns = self.columns();
            if !columns.is_empty() {
                let column = columns[self.chance.random_range(0..columns.len())];
                let account = self.chance.random_range(ACCOUNTS);
                self.read_column(column, account).await;
            }
        }
    }

    /// Whether a schema change is in the journal: of those that wait for each other there would be ever more.
    fn is_changing(&self) -> bool {
        let is_ddl =
            |catalog: &Catalog| catalog.open_operations().any(|open| matches!(open.kind, OperationKind::Ddl { .. }));
        self.world.hosts().values().any(|host| is_ddl(&host.catalog()))
    }

    async fn change(&mut self, number: u64) {
        let (table, column) = TABLES[self.chance.random_range(0..TABLES.len())];
        let change = match self.chance.random_bool(0.5) {
            true => Change::Column { table, number },
            false => Change::Index { table, column, number },
        };
        // Whatever else it hears, the change may come or not.
        if let Told::Answer(_) = self.ask(&change.sql(), None).await {
            self.world.changed(change);
        }
    }

    /// Columns that there must be of the accounts.
    fn columns(&self) -> Vec<Change> {
        let of_accounts = |change: &Change| matches!(change, Change::Column { table: "accounts", .. });
        self.world.changes().into_iter().filter(of_accounts).collect()
    }

    /// Read a column that there must be. False: there was no answer.
    async fn read_column(&mut self, column: Change, account: Account) -> bool {
        let Change::Column { table, number } = column else { return true };
        let name = column.name();
        // One whose catalog lags behind does not know it yet.
        let knows = |host: &std::sync::Arc<pleat_host::Host>| column.is_in(&host.catalog());
        let known = self.world.hosts().values().all(knows);
        match self.ask(&format!("SELECT {name} FROM {table} WHERE id = {account}"), None).await {
            Told::Answer(Answer::Rows(rows)) if rows == [[Value::Integer(number as i64)]] => true,
            Told::Answer(answer) => {
                self.world.wrong(format!("{name} of account {account} was read as {answer:?}"));
                false
            }
            Told::Not(why) if known && why.starts_with(UNKNOWN_COLUMN) => {
                self.world.wrong(format!("{name} of account {account}: every node's catalog has it, and then {why}"));
                false
            }
            Told::Not(_) | Told::Unknown(_) => false,
        }
    }

    /// Read every column that there must be, of every account.
    pub async fn audit_schema(&mut self) {
        for column in self.columns() {
            for account in ACCOUNTS {
                while !self.read_column(column, account).await {
                    self.pause(AGAIN_MS).await;
                }
            }
        }
    }
}

/// Whether the catalog has every change that was acknowledged.
pub fn check_catalog(catalog: &Catalog, changes: &[Change]) -> Result<(), Wrong> {
    match changes.iter().find(|change| !change.is_in(catalog)) {
        Some(lost) => Err(format!("{} was acknowledged and is not in the catalog", lost.sql())),
        None => Ok(()),
    }
}

/// Whether a shard has the catalog's tables and indexes and no others.
pub fn check_shard(readers: &Readers, catalog: &Catalog) -> Result<(), Wrong> {
    let tables = catalog.tables.values();
    let wanted: BTreeSet<(String, String)> = tables
        .flat_map(|table| {
            let indexes = table.indexes.iter().map(|index| (index.name.clone(), index.sql.clone()));
            std::iter::once((table.name.clone(), table.create_sql.clone())).chain(indexes)
        })
        .collect();
    let request = ReadRequest {
        queries: vec![Query::new(OF_USERS)],
        check: OwnershipCheck::None,
        layout: None,
        now_ms: 0,
        seed: 0,
        limits: ReadLimits::default(),
        names_txns: false,
    };
    let mut found = BTreeSet::new();
    let read = readers.read(&request, &mut |chunk: Chunk| {
        found.extend(chunk.rows.into_iter().filter_map(|row| match <[Value; 2]>::try_from(row) {
            Ok([Value::Text(name), Value::Text(sql)]) => Some((name, sql)),
            _ => None,
        }));
        ControlFlow::Continue(())
    });
    read.map_err(|error| format!("its schema can't be read: {error}"))?;
    match found == wanted {
        true => Ok(()),
        false => {
            let (more, less): (Vec<_>, Vec<_>) =
                (found.difference(&wanted).collect(), wanted.difference(&found).collect());
            Err(format!("it has {more:?}, which the catalog does not, and lacks {less:?}"))
        }
    }
}
