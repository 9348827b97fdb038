//! What is known of a database before anything is proposed.

use std::collections::BTreeMap;

use pleat_cluster::{Column, KeyType, Serial, Table, TableId, TableKind, Views};

/// A database, as its own catalogs and statistics tell.
#[derive(Clone, Debug, Default)]
pub struct Database {
    pub tables: Vec<TableFacts>,
    pub references: Vec<ForeignKey>,
    /// Views, as the catalog would have them. One that is materialized has no text.
    pub views: Views,
    /// Empty where no statistics of statements are kept.
    pub statements: Vec<StatementFacts>,
}

#[derive(Clone, Debug, Default)]
pub struct TableFacts {
    /// The catalog's key of it ([`pleat_cluster::table_key`]).
    pub key: String,
    /// `name`, or `schema.name` where the schema is not `public`.
    pub name: String,
    pub columns: Vec<ColumnFacts>,
    /// Empty when it has none.
    pub primary_key: Vec<String>,
    /// Unique indexes and exclusion constraints, the primary key among them.
    pub uniques: Vec<Unique>,
    pub oddity: Option<Oddity>,
    /// As the server estimates.
    pub rows: u64,
    /// With indexes and all.
    pub bytes: u64,
    /// How often it was read (scans of it and of its indexes) since the statistics began.
    pub scans: u64,
    /// Rows inserted, updated and deleted since then.
    pub changes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct ColumnFacts {
    pub name: String,
    /// As `format_type` says it.
    pub decl_type: String,
    pub not_null: bool,
    pub generated: bool,
    pub has_default: bool,
    /// Its equality is not that of its bytes: a collation that is not deterministic.
    pub loose: bool,
    /// A sequence of the server fills it: serial or identity.
    pub serial: bool,
    /// How many values it has; `None` when the table was never analyzed.
    pub distinct: Option<f64>,
    /// The share of rows that have its most frequent value, 0 to 1.
    pub top_share: Option<f64>,
}

#[derive(Clone, Debug, Default)]
pub struct Unique {
    pub name: String,
    /// `None` for an expression.
    pub columns: Vec<Option<String>>,
}

/// A foreign key. Tables by their keys in the catalog; `columns` and `to_columns` belong together by place.
#[derive(Clone, Debug, Default)]
pub struct ForeignKey {
    pub name: String,
    pub table: String,
    pub columns: Vec<String>,
    pub to: String,
    pub to_columns: Vec<String>,
}

/// A statement that was run, with `$1` for its constants.
#[derive(Clone, Debug, Default)]
pub struct StatementFacts {
    pub text: String,
    pub calls: u64,
    pub time_ms: f64,
}

/// Why a table can't be anything but single.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oddity {
    Partitioned,
    PartitionOf(String),
    Inherits,
    /// A foreign table.
    Foreign,
    Unlogged,
}

/// Foreign keys by the places of their tables.
#[derive(Clone, Debug)]
pub(super) struct Links<'d> {
    /// By the table that refers: the one referred to.
    pub from: Vec<Vec<(&'d ForeignKey, usize)>>,
    /// By the table referred to: the one that refers.
    pub to: Vec<Vec<(&'d ForeignKey, usize)>>,
}

impl Links<'_> {
    pub fn of(database: &Database) -> Links<'_> {
        let tables = database.tables.iter().enumerate();
        let places: BTreeMap<&str, usize> = tables.map(|(at, table)| (table.key.as_str(), at)).collect();
        let none = vec![Vec::new(); database.tables.len()];
        let mut links = Links { from: none.clone(), to: none };
        for reference in &database.references {
            if let (Some(from), Some(to)) = (places.get(&*reference.table), places.get(&*reference.to)) {
                links.from[*from].push((reference, *to));
                links.to[*to].push((reference, *from));
            }
        }
        links
    }
}

impl TableFacts {
    pub fn column(&self, name: &str) -> Option<&ColumnFacts> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The primary key, where it is one column.
    pub(super) fn own_key(&self) -> Option<&str> {
        match self.primary_key.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// What Pleat would give the values of a column by, as far as planning needs it.
    fn counts(&self, column: &str) -> Serial {
        let (schema, table) = self.name.split_once('.').unwrap_or(("public", &self.name));
        let (schema, sequence) = (schema.to_owned(), format!("{table}_{column}_seq"));
        Serial { schema, sequence, always: false, first: 1, last: i64::MAX, sole: false }
    }

    /// As the catalog would have it.
    pub(super) fn in_catalog(&self, id: u32, kind: TableKind) -> Table {
        let column = |column: &ColumnFacts| Column {
            name: column.name.clone(),
            decl_type: column.decl_type.clone(),
            collation: None,
            not_null: column.not_null,
            generated: column.generated,
            has_default: column.has_default,
            serial: column.serial.then(|| self.counts(&column.name)),
        };
        Table {
            id: TableId(id),
            name: self.name.clone(),
            kind,
            columns: self.columns.iter().map(column).collect(),
            primary_key: self.primary_key.clone(),
            rowid_alias: false,
            without_rowid: false,
            create_sql: String::new(),
            indexes: Vec::new(),
            triggers: Vec::new(),
        }
    }
}

impl ColumnFacts {
    /// What kind of a shard key it would be; the error says why it can't be one.
    pub fn key_type(&self) -> Result<KeyType, String> {
        let key_type = match self.decl_type.as_str() {
            "smallint" | "integer" | "bigint" => KeyType::Integer,
            "text" | "character varying" => KeyType::Text,
            varchar if varchar.starts_with("character varying(") => KeyType::Text,
            "uuid" => KeyType::Uuid,
            "bytea" => KeyType::Bytes,
            other => return Err(format!("its type is {other}")),
        };
        match () {
            () if self.loose => Err("its collation is not deterministic".to_owned()),
            () if self.generated => Err("it is generated".to_owned()),
            () => Ok(key_type),
        }
    }

    /// How well rows spread by it, from 0 (all in one place) to 1. What nobody has counted is taken to be even.
    pub(super) fn evenness(&self) -> f64 {
        /// So many values fill the partitions of a few shards well enough.
        const VALUES_ENOUGH: f64 = 64.0;
        let values = self.distinct.map_or(1.0, |distinct| (distinct / VALUES_ENOUGH).clamp(0.0, 1.0));
        // One value is a hot spot when it has a good part of all rows.
        let hot = self.top_share.filter(|share| *share > 0.05).unwrap_or(0.0);
        values * (1.0 - hot)
    }
}
