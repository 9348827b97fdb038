//! The tables of a shard as the engine needs them: which rows move, by what they are told apart, and the
//! triggers that hold statements to their keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleat_cluster::{KeyType, PartitionId, Table, TableKind};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::connection::key_type_number;
use super::value::{quote, quoted_list};
use crate::{Holding, TablePlace};

/// The tables of a shard, by lower-case name.
pub(crate) type Specs = BTreeMap<String, Arc<TableSpec>>;

/// One table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TableSpec {
    /// The table's number on this shard, in the names of what Pleat adds to it.
    pub(crate) slot: i64,
    pub(crate) table: Table,
    /// A single table's unit, once it is known.
    pub(crate) unit: Option<PartitionId>,
}

/// A table whose rows are on their way, and which of them.
#[derive(Clone, Debug)]
pub(crate) struct Moving {
    pub(crate) spec: Arc<TableSpec>,
    /// The condition that picks them.
    pub(crate) rows: String,
}

impl Moving {
    /// The rows of the moving units, as `pleat_moving()` knows them; all rows of a table that moves as a whole.
    pub(crate) fn units_of(spec: Arc<TableSpec>) -> Self {
        let rows = match spec.table.shard_key() {
            Some((key, _)) => format!("pleat_moving({})", quote(key)),
            None => "1".to_owned(),
        };
        Self { spec, rows }
    }
}

impl Holding {
    /// The condition for a row that is the shard's own.
    pub(crate) fn own(&self) -> String {
        match self {
            Holding::All => "1".to_owned(),
            Holding::None => "0".to_owned(),
            Holding::Key(key) => format!("pleat_owned({})", quote(key)),
        }
    }
}

impl TablePlace {
    /// The rows that were brought here before the switch.
    pub(crate) fn brought(&self) -> String {
        format!("NOT {}", self.before.own())
    }

    /// The rows that stay behind after the switch.
    pub(crate) fn leftovers(&self) -> String {
        format!("NOT {}", self.after.own())
    }

    /// The rows that other shards get from here.
    pub(crate) fn carried(&self) -> String {
        match self.table.kind {
            TableKind::Reference => self.before.own(),
            _ => format!("{} AND {}", self.before.own(), self.leftovers()),
        }
    }
}

impl TableSpec {
    /// The table as its rows travel to their new placement.
    pub(crate) fn travelling(&self, place: &TablePlace) -> TableSpec {
        let mut spec = self.clone();
        if let (true, Some(key)) = (place.by_primary_key, self.table.primary_key.first()) {
            // As rows of sharded tables do.
            spec.table.kind = TableKind::Sharded { key: key.clone(), key_type: KeyType::Integer };
        }
        spec
    }

    /// The table's name, quoted.
    pub(crate) fn quoted(&self) -> String {
        quote(&self.table.name)
    }

    /// The columns by which a row is told apart: the primary key; for copies that must be alike down to the
    /// rowid (reference and single tables) the rowid.
    pub(crate) fn identity(&self) -> Vec<String> {
        match self.rowid_name() {
            Some(name) => vec![name.to_owned()],
            None => self.table.primary_key.clone(),
        }
    }

    /// The columns that travel: all but generated ones, after the rowid where that is the identity.
    pub(crate) fn columns(&self) -> Vec<String> {
        let rowid = self.rowid_name().map(str::to_owned).into_iter();
        rowid.chain(self.table.columns.iter().filter(|c| !c.generated).map(|c| c.name.clone())).collect()
    }

    /// Where the identity's columns are among [`TableSpec::columns`].
    pub(crate) fn identity_places(&self) -> Vec<usize> {
        let columns = self.columns();
        let place = |name: &String| columns.iter().position(|column| column.eq_ignore_ascii_case(name));
        self.identity().iter().filter_map(place).collect()
    }

    /// The AUTOINCREMENT counter's owner: only tables that are copied as a whole take it along.
    pub(crate) fn has_sequence(&self) -> bool {
        self.table.shard_key().is_none() && self.table.may_autoincrement()
    }

    /// Whether the table is a full copy on every shard.
    pub(crate) fn is_reference(&self) -> bool {
        matches!(self.table.kind, TableKind::Reference)
    }

    /// The table that changed keys are written to.
    pub(crate) fn capture_table(&self) -> String {
        format!("__pleat_capture_{}", self.slot)
    }

    /// The name of the rowid, where it tells rows apart.
    pub(crate) fn rowid_name(&self) -> Option<&'static str> {
        let plain = self.table.shard_key().is_none() && !self.table.without_rowid && !self.table.rowid_alias;
        let free = ["rowid", "_rowid_", "oid"].into_iter().find(|name| self.table.column(name).is_none());
        free.filter(|_| plain)
    }

    /// Every trigger that Pleat keeps on the table for as long as it exists.
    pub(crate) fn triggers(&self) -> Vec<String> {
        let mut triggers = Vec::new();
        if let Some((key, key_type)) = self.table.shard_key() {
            self.ownership_triggers(&mut triggers, &quote(key), key_type_number(key_type));
            self.not_null_triggers(&mut triggers);
        }
        self.rowid_triggers(&mut triggers);
        triggers
    }

    /// Each row that is written must be of a partition that the statement was routed by.
    fn ownership_triggers(&self, triggers: &mut Vec<String>, key: &str, key_type: u8) {
        let (slot, table) = (self.slot, self.quoted());
        triggers.push(format!(
            "CREATE TRIGGER __pleat_row_insert_{slot} AFTER INSERT ON {table} \
             BEGIN SELECT pleat_check_row({key_type}, NEW.{key}); END"
        ));
        triggers.push(format!(
            "CREATE TRIGGER __pleat_row_delete_{slot} AFTER DELETE ON {table} \
             BEGIN SELECT pleat_check_row({key_type}, OLD.{key}); END"
        ));
        triggers.push(format!(
            "CREATE TRIGGER __pleat_row_update_{slot} AFTER UPDATE ON {table} \
             BEGIN SELECT pleat_check_row({key_type}, OLD.{key}); END"
        ));
        triggers.push(format!(
            "CREATE TRIGGER __pleat_key_update_{slot} AFTER UPDATE OF {key} ON {table} \
             WHEN OLD.{key} IS NOT NEW.{key} COLLATE BINARY OR typeof(OLD.{key}) <> typeof(NEW.{key}) \
             BEGIN SELECT RAISE(ABORT, 'a row''s shard key can''t be changed in place: \
             delete the row and insert it anew'); END"
        ));
    }

    /// SQLite lets a primary key be NULL unless it is declared otherwise; a moved row must have an identity.
    fn not_null_triggers(&self, triggers: &mut Vec<String>) {
        let nullable: Vec<_> = (self.table.primary_key.iter())
            .filter(|name| self.table.column(name).is_some_and(|column| !column.not_null))
            .collect();
        if nullable.is_empty() || self.table.without_rowid || self.table.rowid_alias {
            return;
        }
        let (slot, table) = (self.slot, self.quoted());
        let is_null = |name: &&String| format!("NEW.{} IS NULL", quote(name));
        let condition = nullable.iter().map(is_null).collect::<Vec<_>>().join(" OR ");
        let columns = quoted_list(&self.table.primary_key);
        // As SQLite says it of other columns.
        let text = |name: &str| format!("{}.{name}", self.table.name).replace('\'', "''");
        let named = nullable.iter().map(|name| format!("WHEN {} THEN '{}'", is_null(name), text(name)));
        let named = named.collect::<Vec<_>>().join(" ");
        for (event, name) in [("INSERT".to_owned(), "insert"), (format!("UPDATE OF {columns}"), "update")] {
            triggers.push(format!(
                "CREATE TRIGGER __pleat_null_{name}_{slot} AFTER {event} ON {table} WHEN {condition} \
                 BEGIN SELECT RAISE(ABORT, 'NOT NULL constraint failed: ' || CASE {named} END); END"
            ));
        }
    }

    /// After the largest rowid SQLite picks the next ones by chance, differently on each replica. So none gets there.
    fn rowid_triggers(&self, triggers: &mut Vec<String>) {
        if self.table.without_rowid {
            return;
        }
        let free = ["rowid", "_rowid_", "oid"].into_iter().find(|name| self.table.column(name).is_none());
        let alias = self.table.rowid_alias.then(|| self.table.primary_key.first()).flatten();
        let Some(rowid) = alias.map(|name| quote(name)).or_else(|| free.map(str::to_owned)) else { return };
        let (slot, table) = (self.slot, self.quoted());
        for (event, name) in [("INSERT", "insert"), ("UPDATE", "update")] {
            triggers.push(format!(
                "CREATE TRIGGER __pleat_rowid_{name}_{slot} AFTER {event} ON {table} WHEN NEW.{rowid} = 9223372036854775807 \
                 BEGIN SELECT RAISE(ABORT, 'rowid 9223372036854775807 is not available: SQLite would give later rows random ids'); END"
            ));
        }
    }

    /// What captures changes while the table's rows move: the table of keys, then its triggers. Those of rows of the
    /// moving units, or of all rows.
    pub(crate) fn capture_start(&self, all: bool) -> Vec<String> {
        let identity = self.identity();
        let (slot, table, capture) = (self.slot, self.quoted(), self.capture_table());
        let keys: Vec<_> = (0..identity.len()).map(|n| format!("k{n}")).collect();
        let of =
            |row: &str| identity.iter().map(|name| format!("{row}.{}", quote(name))).collect::<Vec<_>>().join(", ");
        let when = |row: &str| match self.table.shard_key().filter(|_| !all) {
            Some((key, _)) => format!("pleat_moving({row}.{})", quote(key)),
            None => "1".to_owned(),
        };
        let keys = keys.join(", ");
        let insert = format!("INSERT INTO {capture}({keys})");
        vec![
            format!("CREATE TABLE {capture}(seq INTEGER PRIMARY KEY AUTOINCREMENT, {keys})"),
            format!(
                "CREATE TRIGGER __pleat_capture_insert_{slot} AFTER INSERT ON {table} WHEN {} BEGIN {insert} VALUES ({}); END",
                when("NEW"),
                of("NEW")
            ),
            format!(
                "CREATE TRIGGER __pleat_capture_delete_{slot} AFTER DELETE ON {table} WHEN {} BEGIN {insert} VALUES ({}); END",
                when("OLD"),
                of("OLD")
            ),
            format!(
                "CREATE TRIGGER __pleat_capture_update_{slot} AFTER UPDATE ON {table} WHEN {} BEGIN \
                 {insert} VALUES ({}); {insert} SELECT {} WHERE ({}) IS NOT ({}); END",
                when("OLD"),
                of("OLD"),
                of("NEW"),
                of("NEW"),
                of("OLD")
            ),
        ]
    }

    /// The reverse of [`TableSpec::capture_start`].
    pub(crate) fn capture_end(&self) -> Vec<String> {
        let slot = self.slot;
        let mut statements: Vec<_> = ["insert", "delete", "update"]
            .iter()
            .map(|event| format!("DROP TRIGGER IF EXISTS __pleat_capture_{event}_{slot}"))
            .collect();
        statements.push(format!("DROP TABLE IF EXISTS {}", self.capture_table()));
        statements
    }
}

impl TableSpec {
    /// What refuses writes to the table at the end of its getting another placement.
    pub(crate) fn fence_start(&self) -> Vec<String> {
        let (slot, table, name) = (self.slot, self.quoted(), self.table.name.replace('\'', "''"));
        let trigger = |event: &str| {
            format!(
                "CREATE TRIGGER __pleat_fence_{event}_{slot} BEFORE {event} ON {table} \
                 BEGIN SELECT pleat_placing('{name}'); END"
            )
        };
        ["insert", "delete", "update"].map(trigger).into()
    }

    /// The reverse of [`TableSpec::fence_start`].
    pub(crate) fn fence_end(&self) -> Vec<String> {
        let slot = self.slot;
        ["insert", "delete", "update"]
            .map(|event| format!("DROP TRIGGER IF EXISTS __pleat_fence_{event}_{slot}"))
            .into()
    }
}

/// Every table that the shard knows.
pub(crate) fn load(conn: &Connection) -> anyhow::Result<Specs> {
    let mut statement = conn.prepare_cached("SELECT name, spec FROM __pleat_tables")?;
    let mut rows = statement.query([])?;
    let mut specs = Specs::new();
    while let Some(row) = rows.next()? {
        let spec: TableSpec = postcard::from_bytes(row.get_ref(1)?.as_blob()?)?;
        specs.insert(row.get(0)?, Arc::new(spec));
    }
    Ok(specs)
}
