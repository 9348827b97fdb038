//! Tables as every node knows them: enough of the schema to route, split and finish a statement without
//! asking a shard.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{KeyType, OperationId, Retold, Rewritten, Serial, ShardId, TableId, Trigger, View, ViewChange};

/// The tables of a catalog, by lower-case name (SQLite's names are case-insensitive).
pub type Tables = BTreeMap<String, Table>;

/// Where a table's rows live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableKind {
    /// Each row lives on the shard that owns its key's partition.
    Sharded { key: String, key_type: KeyType },
    /// A full copy on every shard.
    Reference,
    /// The whole table on one shard.
    Single { shard: ShardId },
}

/// One column, as declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    /// The declared type, verbatim (`VARCHAR(20)`), empty when there was none. It decides the affinity.
    pub decl_type: String,
    /// The declared collation, if any. `None` is `BINARY`.
    pub collation: Option<String>,
    pub not_null: bool,
    /// `GENERATED ALWAYS AS`: never written to, neither by users nor by a move.
    pub generated: bool,
    /// Whether the column has a DEFAULT, so that an INSERT may leave it out.
    pub has_default: bool,
    /// Of a table of servers: that a sequence gives its values, where an INSERT doesn't.
    pub serial: Option<Serial>,
}

/// One index that a user made (`CREATE INDEX`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    pub name: String,
    pub sql: String,
}

/// A table.
///
/// Invariants: a sharded table's key is one of its columns; every sharded table of SQLite has a primary key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub id: TableId,
    /// As declared, case kept.
    pub name: String,
    pub kind: TableKind,
    pub columns: Vec<Column>,
    /// The primary key's columns in order; empty when the table has none.
    pub primary_key: Vec<String>,
    /// Whether the primary key is an alias of SQLite's rowid (a sole `INTEGER PRIMARY KEY`).
    pub rowid_alias: bool,
    pub without_rowid: bool,
    /// The `CREATE TABLE` that shards run, without Pleat's own clauses.
    pub create_sql: String,
    pub indexes: Vec<Index>,
    /// In the order in which they were made: where several fire, the order decides which does first.
    pub triggers: Vec<Trigger>,
}

impl Table {
    /// The column called `name`, in any case.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// Whether SQLite keeps a counter for it in `sqlite_sequence` (or its definition says the word elsewhere).
    pub fn may_autoincrement(&self) -> bool {
        self.create_sql.to_ascii_uppercase().contains("AUTOINCREMENT")
    }

    /// The column whose values Pleat gives, on servers, and how it counts. A table has at most one.
    pub fn serial(&self) -> Option<(&str, &Serial)> {
        let counts = |column: &'_ Column| column.serial.is_some() && !matches!(self.kind, TableKind::Single { .. });
        let column = self.columns.iter().find(|column| counts(column))?;
        Some((&column.name, column.serial.as_ref()?))
    }

    /// The shard key and its type, when the table is sharded.
    pub fn shard_key(&self) -> Option<(&str, KeyType)> {
        match &self.kind {
            TableKind::Sharded { key, key_type } => Some((key, *key_type)),
            TableKind::Reference | TableKind::Single { .. } => None,
        }
    }

    /// Whether the definition has a foreign key to `name`. Words are compared, so a definition that says
    /// `references name` in a comment counts too: a refusal that is easily explained, where missing one would not be.
    pub fn references(&self, name: &str) -> bool {
        references(&self.create_sql, name)
    }

    /// Whether a write to it surely takes no row away and changes none, so that foreign keys of others have no say in it: an INSERT
    /// without upsert or REPLACE. (One whose words look like it does not count.)
    pub fn only_gains(&self, sql: &str) -> bool {
        let inserts = sql.trim_start().get(..6).is_some_and(|verb| verb.eq_ignore_ascii_case("INSERT"));
        let replaces = |text: &str| {
            let text = text.to_ascii_uppercase();
            text.contains("REPLACE") || text.contains("CONFLICT")
        };
        inserts && !replaces(sql) && !replaces(&self.create_sql)
    }

    /// `sharded`, `reference` or `single`.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            TableKind::Sharded { .. } => "sharded",
            TableKind::Reference => "reference",
            TableKind::Single { .. } => "single",
        }
    }
}

/// Whether rows of tables that are no reference tables refer to the table called `name` with foreign keys, themselves or by way of
/// reference tables. Then every shard has a say in what becomes of its rows.
pub fn concerns_others<'t>(tables: impl Iterator<Item = &'t Table> + Clone, name: &str) -> bool {
    let (mut known, mut waiting) = (BTreeSet::new(), vec![name]);
    while let Some(parent) = waiting.pop() {
        for child in tables.clone().filter(|child| child.references(parent)) {
            if child.kind != TableKind::Reference {
                return true;
            }
            if known.insert(child.id) {
                waiting.push(&child.name);
            }
        }
    }
    false
}

/// A table to which a foreign key ties this one, so that neither can get another placement without the other. (Every shard has
/// all rows of a reference table: what refers to one may go anywhere.)
pub fn tied<'t>(tables: &'t Tables, table: &Table) -> Option<&'t Table> {
    let away = |other: &Table| other.kind != TableKind::Reference && table.references(&other.name);
    tables.values().find(|other| other.references(&table.name) || away(other))
}

/// Whether a definition has a foreign key to `name`.
fn references(create_sql: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let mut words = create_sql.split(|c: char| !is_word(c)).filter(|word| !word.is_empty()).peekable();
    let wanted: Vec<&str> = name.split(|c: char| !is_word(c)).filter(|word| !word.is_empty()).collect();
    while let Some(word) = words.next() {
        let mut rest = words.clone();
        if word.eq_ignore_ascii_case("references")
            && !wanted.is_empty()
            && wanted.iter().all(|want| rest.next().is_some_and(|word| word.eq_ignore_ascii_case(want)))
        {
            return true;
        }
    }
    false
}

/// What a schema change does to the catalog's tables once every shard has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DdlEffect {
    /// The table's `id` is assigned by the catalog; whatever is given is replaced.
    CreateTable(Table),
    DropTable {
        table: String,
    },
    CreateIndex {
        table: String,
        index: Index,
    },
    DropIndex {
        table: String,
        index: String,
    },
    /// `ALTER TABLE … ADD COLUMN`; `create_sql` is the table's new definition.
    AddColumn {
        table: String,
        column: Column,
        create_sql: String,
    },
    /// Another name for a table or a column, or a column less. The shards follow the catalog, and scatter reads are
    /// refused, retryably, where a shard and the router are not of one mind: so nobody sees both shapes at once.
    AlterTable {
        /// As it was when this was planned; if it isn't any more, this is refused.
        before: Box<Table>,
        after: Box<Table>,
        /// The ALTER TABLE that shards run.
        statement: String,
        /// What views that name the old name say from then on.
        views: Vec<Rewritten>,
        /// All triggers of this table, and those of others that name it.
        triggers: Vec<Retold>,
    },
    /// The trigger's `id` is assigned by the catalog.
    CreateTrigger {
        table: String,
        trigger: Trigger,
        /// The trigger's table and those that it names, as they were when this was planned; if one isn't any more, this is refused.
        about: Vec<Table>,
        /// The newest trigger then ([`newest_trigger`](crate::newest_trigger)); if there is a newer one, this is refused.
        seen: u32,
    },
    DropTrigger {
        table: String,
        trigger: String,
    },
    /// Shards have no part in it.
    CreateView(View),
    /// Shards have no part in it.
    DropView {
        view: String,
    },
    /// A schema change of shards that are servers: what one of them told of its tables and views when the change was tried there. What
    /// Pleat keeps of a schema is of these alone, so one of an index or a function changes nothing here.
    Servers {
        /// For people: `create table flights`.
        about: String,
        changes: Vec<TableChange>,
        views: Vec<ViewChange>,
    },
    /// Tables of servers whose rows live elsewhere from then on, all at once. What was planned by the old placements is refused
    /// afterwards; it is committed behind closed gates ([`Command::SetGates`](crate::Command::SetGates)).
    PlaceOnServers {
        /// Each has a `before`, and an `after` that differs in its `kind` (and in whether a column that counts is `sole`).
        changes: Vec<TableChange>,
        /// The newest operation when it was looked whether that can be. A schema change since may stand in the way without being seen in `changes`:
        /// a unique index, a foreign key, a rule.
        seen: OperationId,
    },
    /// The same table, with its rows elsewhere: `ALTER TABLE … SHARD BY`, `… REFERENCE`, `… SINGLE`.
    PlaceTable {
        /// As it was when this was planned; if it isn't any more, this is refused.
        before: Box<Table>,
        /// The same but for its `kind`.
        after: Box<Table>,
    },
}

/// A table before a schema change and after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChange {
    /// `None`: there was none. If the catalog has another one by then, the change is refused.
    pub before: Option<Table>,
    /// `None`: it is dropped. A new table's id is assigned by the catalog.
    pub after: Option<Table>,
}

impl TableChange {
    /// Whether there is no table of this name afterwards, where there was one.
    pub(crate) fn takes(&self, name: &str) -> bool {
        let is = |table: &Option<Table>| table.as_ref().is_some_and(|table| table.name.eq_ignore_ascii_case(name));
        is(&self.before) && !is(&self.after)
    }
}

/// The name by which a table of a server is known: `name`, or `schema.name` where the schema is not `public`.
pub fn table_key(schema: &str, name: &str) -> String {
    match schema {
        "public" => name.to_ascii_lowercase(),
        schema => format!("{schema}.{name}").to_ascii_lowercase(),
    }
}

/// What a schema change comes to, as SQLite tells when it is tried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// The table as it is afterwards; `None` when it is dropped.
    pub table: Option<Table>,
    /// The views that SQLite wrote anew.
    pub views: Vec<Rewritten>,
    /// All triggers that are still there, each with the text that SQLite has now. What shards are to run for it is not known here.
    pub triggers: Vec<Retold>,
}

impl DdlEffect {
    /// The table that changes, or the view.
    pub fn table(&self) -> &str {
        match self {
            DdlEffect::CreateTable(table) => &table.name,
            DdlEffect::DropTable { table }
            | DdlEffect::CreateIndex { table, .. }
            | DdlEffect::DropIndex { table, .. }
            | DdlEffect::CreateTrigger { table, .. }
            | DdlEffect::DropTrigger { table, .. }
            | DdlEffect::AddColumn { table, .. } => table,
            DdlEffect::AlterTable { before, .. } | DdlEffect::PlaceTable { before, .. } => &before.name,
            DdlEffect::CreateView(view) => &view.name,
            DdlEffect::DropView { view } => view,
            DdlEffect::PlaceOnServers { changes, .. } => {
                let table = changes.first().and_then(|change| change.after.as_ref().or(change.before.as_ref()));
                table.map_or("", |table| &table.name)
            }
            DdlEffect::Servers { changes, views, .. } => {
                let table = changes.first().and_then(|change| change.after.as_ref().or(change.before.as_ref()));
                let view = || views.first().and_then(|change| change.after.as_ref().or(change.before.as_ref()));
                table.map_or_else(|| view().map_or("", |view| &view.name), |table| &table.name)
            }
        }
    }

    /// Whether this gives a table a foreign key to `name`, where it had none.
    pub fn refers_to(&self, name: &str) -> bool {
        match self {
            DdlEffect::CreateTable(table) => table.references(name),
            DdlEffect::AddColumn { create_sql, .. } => references(create_sql, name),
            _ => false,
        }
    }

    /// Whether it changes a view, which the catalog alone knows.
    pub fn is_of_view(&self) -> bool {
        matches!(self, DdlEffect::CreateView(_) | DdlEffect::DropView { .. })
    }

    /// The names that it makes, takes away or changes what they stand for: tables, views and indexes share them.
    pub fn names(&self) -> Vec<&str> {
        let index = match self {
            DdlEffect::CreateIndex { index, .. } => Some(index.name.as_str()),
            DdlEffect::DropIndex { index, .. } => Some(index.as_str()),
            _ => None,
        };
        if let DdlEffect::PlaceOnServers { changes, .. } = self {
            let tables = changes.iter().flat_map(|change| [&change.before, &change.after]);
            return tables.flatten().map(|table| table.name.as_str()).collect();
        }
        if let DdlEffect::Servers { changes, views, .. } = self {
            let tables = changes.iter().flat_map(|change| [&change.before, &change.after]);
            let views = views.iter().flat_map(|change| [&change.before, &change.after]);
            let tables = tables.flatten().map(|table| table.name.as_str());
            return tables.chain(views.flatten().map(|view| view.name.as_str())).collect();
        }
        let (about, retold): (&[Table], &[Retold]) = match self {
            DdlEffect::CreateTrigger { about, .. } => (about, &[]),
            DdlEffect::AlterTable { triggers, .. } => (&[], triggers),
            _ => (&[], &[]),
        };
        let named = about.iter().map(|table| table.name.as_str());
        let named = named.chain(retold.iter().map(|retold| retold.table.as_str()));
        [self.table(), self.table_after()].into_iter().chain(index).chain(named).collect()
    }

    /// The table's name when it is done.
    pub fn table_after(&self) -> &str {
        match self {
            DdlEffect::AlterTable { after, .. } => &after.name,
            _ => self.table(),
        }
    }
}
