//! What a table's definition promises, and whether the promise can be kept where the rows are.
//!
//! A shard sees its own rows only. So what must hold over rows holds if these always lie on one shard:
//!
//! - A PRIMARY KEY or UNIQUE contains the shard key: rows that agree in it agree in the shard key, too. One that
//!   does not can collide on two shards, or when a partition moves to a shard that has the same value.
//! - Unless Pleat gives out its values: the `INTEGER PRIMARY KEY` of a sharded table (see `write::ids`). If it is not the shard
//!   key, only Pleat may give it, since no shard sees an id that a user gave on another one. AUTOINCREMENT promises that
//!   ids are not given again, which Pleat's never are.
//! - `UNIQUE (email) PER KEY` asks for just that: unique among the rows with the same shard key. It is written with the
//!   shard key as one more column, which is what makes it safe to move.
//! - A foreign key contains the shard key and refers to the other table's shard key with it: parent and child
//!   lie on one shard. One to a reference table every shard can check, since each has all its rows; what is written to that table
//!   is asked of all shards (see `WritePlan::is_stepwise`).

use pleat_cluster::{Column, DdlEffect, KeyType, ShardId, Table, TableKind, Tried};

use super::{DdlAction, DdlPlan, Placement, Reader, check_name};
use crate::clauses::{Span, list};
use crate::error::{Code, SqlError};
use crate::fetch::is_strict;
use crate::lex::quote;
use crate::write::id_column;

/// What a definition says that SQLite's description of the columns does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rules {
    /// The columns of each UNIQUE or PRIMARY KEY, in lower case; those with a collation of their own are left out.
    pub uniques: Vec<Unique>,
    pub autoincrement: bool,
    pub parents: Vec<Parent>,
    rollback: bool,
    /// What is said to be unique per key.
    pub per_key: Vec<PerKey>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unique {
    pub what: String,
    pub columns: Vec<String>,
}

/// A foreign key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parent {
    /// The table that is referred to, in lower case.
    pub name: String,
    /// What is known of it; not the table itself, when that is just being made.
    known: Option<Table>,
    columns: Vec<String>,
    /// The columns there, in the order of `columns`; empty for the primary key.
    to: Vec<String>,
}

/// A `UNIQUE … PER KEY`, by where it stands among the tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum PerKey {
    /// `column … UNIQUE PER KEY`, with UNIQUE at this token.
    Column { at: usize, column: String },
    /// `UNIQUE (…) PER KEY`, with the `)` at this token.
    Columns { close: usize },
}

impl Reader<'_> {
    /// Reads the rules out of the definitions between the parentheses. By tokens, because SQLite accepts more
    /// (types of any words, defaults, checks) than a parser of standard SQL.
    pub(super) fn rules(&self, body: Span) -> Result<Rules, SqlError> {
        let mut rules = Rules::default();
        for definition in list(self.tokens, body) {
            let column = self.column_of(definition)?;
            self.definition_rules(definition, column.as_deref(), &mut rules)?;
        }
        Ok(rules)
    }

    /// The name of the column that a definition is of; `None` for a table constraint.
    fn column_of(&self, definition: Span) -> Result<Option<String>, SqlError> {
        const CONSTRAINTS: [&str; 5] = ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"];
        if definition.0 >= definition.1 || CONSTRAINTS.iter().any(|word| self.tokens.is(definition.0, word)) {
            return Ok(None);
        }
        let name = self.tokens.name(definition.0).unwrap_or_default();
        check_name(&name).map_err(|error| error.at(self.tokens.text, self.tokens.offset(definition.0)))?;
        Ok(Some(name.to_ascii_lowercase()))
    }

    pub(super) fn definition_rules(
        &self,
        definition: Span,
        column: Option<&str>,
        rules: &mut Rules,
    ) -> Result<(), SqlError> {
        let tokens = self.tokens;
        let mut index = definition.0 + usize::from(column.is_some());
        let mut foreign = Vec::new();
        while index < definition.1 {
            if tokens.is_symbol(index, "(") {
                index = tokens.closing(index);
            } else if tokens.are(index, &["PRIMARY", "KEY"]) {
                rules.uniques.push(self.unique("the primary key", index + 2, column));
                index += 1;
            } else if tokens.is(index, "UNIQUE") {
                match self.per_key(index, column) {
                    Some(per_key) => rules.per_key.push(per_key),
                    None => rules.uniques.push(self.unique("a UNIQUE constraint", index + 1, column)),
                }
            } else if tokens.is(index, "AUTOINCREMENT") {
                rules.autoincrement = true;
            } else if tokens.is(index, "REFERENCES") {
                let columns = match column {
                    Some(column) => vec![column.to_owned()],
                    None => foreign.clone(),
                };
                rules.parents.push(self.parent(index + 1, columns));
            } else if tokens.are(index, &["FOREIGN", "KEY"]) && tokens.is_symbol(index + 2, "(") {
                foreign = self.plain_columns(index + 2);
                index = tokens.closing(index + 2);
            } else if tokens.are(index, &["CONFLICT", "ROLLBACK"]) {
                rules.rollback = true;
            }
            index += 1;
        }
        Ok(())
    }

    fn unique(&self, what: &str, next: usize, column: Option<&str>) -> Unique {
        let columns = if self.tokens.is_symbol(next, "(") && column.is_none() {
            self.indexed_columns((next + 1, self.tokens.closing(next)))
        } else {
            column.map(str::to_owned).into_iter().collect()
        };
        Unique { what: what.to_owned(), columns }
    }

    /// The plain columns of an index, without those that have another collation than BINARY.
    pub(super) fn indexed_columns(&self, span: Span) -> Vec<String> {
        let plain = |term: Span| {
            let name = self.tokens.name(term.0).filter(|_| term.0 < term.1)?;
            let rest = term.0 + 1..term.1;
            let usual = rest.clone().all(|index| {
                ["ASC", "DESC", "COLLATE", "BINARY"].iter().any(|word| self.tokens.is(index, word))
                    || self.tokens.name(index).is_some_and(|name| name.eq_ignore_ascii_case("BINARY"))
            });
            usual.then(|| name.to_ascii_lowercase())
        };
        list(self.tokens, span).into_iter().filter_map(plain).collect()
    }

    /// `UNIQUE PER KEY` or `UNIQUE (…) PER KEY`, with UNIQUE at this token.
    fn per_key(&self, at: usize, column: Option<&str>) -> Option<PerKey> {
        if let Some(column) = column {
            let column = column.to_owned();
            return self.tokens.are(at + 1, &["PER", "KEY"]).then_some(PerKey::Column { at, column });
        }
        let close = self.tokens.is_symbol(at + 1, "(").then(|| self.tokens.closing(at + 1))?;
        self.tokens.are(close + 1, &["PER", "KEY"]).then_some(PerKey::Columns { close })
    }

    /// The text from token `from` up to `close`, with what is unique per key written out.
    pub(super) fn with_key(&self, per_key: &[PerKey], from: usize, close: usize, key: &str) -> String {
        let (mut sql, mut tail, mut at) = (String::new(), String::new(), from);
        for unique in per_key {
            match unique {
                PerKey::Column { at: unique, column } => {
                    sql += self.tokens.slice(at, *unique);
                    tail += &format!(", UNIQUE ({}, {})", quote(column), quote(key));
                    at = unique + 3; // UNIQUE PER KEY
                }
                PerKey::Columns { close } => {
                    sql += self.tokens.slice(at, *close);
                    sql += &format!(", {})", quote(key));
                    at = close + 3; // ) PER KEY
                }
            }
            sql.push(' ');
        }
        sql + self.tokens.slice(at, close) + &tail + ")"
    }

    fn plain_columns(&self, open: usize) -> Vec<String> {
        let columns = list(self.tokens, (open + 1, self.tokens.closing(open)));
        columns.iter().filter_map(|term| self.tokens.name(term.0)).map(|name| name.to_ascii_lowercase()).collect()
    }

    fn parent(&self, index: usize, columns: Vec<String>) -> Parent {
        let name = self.tokens.name(index).unwrap_or_default().to_ascii_lowercase();
        let to = if self.tokens.is_symbol(index + 1, "(") { self.plain_columns(index + 1) } else { Vec::new() };
        Parent { known: self.tables.get(&name).cloned(), name, columns, to }
    }
}

// ---- checking against SQLite's description ----

impl DdlPlan {
    /// What the change does to the catalog, once SQLite has described the table as it is after the statements
    /// (`None` for DROP TABLE). `single_on` is where a new single table will live. The description's `id`, `kind`
    /// and `indexes` don't matter for a new table.
    pub fn effect(&self, tried: Tried, single_on: ShardId) -> Result<DdlEffect, SqlError> {
        if let Some(effect) = self.view_effect().or_else(|| self.trigger_effect()) {
            return Ok(effect);
        }
        let table = self.table.clone();
        let Tried { table: described, views, triggers } = tried;
        match &self.action {
            DdlAction::CreateTable(placement) => self.create_effect(placement, self.described(described)?, single_on),
            DdlAction::DropTable => Ok(DdlEffect::DropTable { table }),
            DdlAction::CreateIndex { index } => Ok(DdlEffect::CreateIndex { table, index: index.clone() }),
            DdlAction::DropIndex { index } => Ok(DdlEffect::DropIndex { table, index: index.clone() }),
            DdlAction::RenameTable { .. } | DdlAction::RenameColumn { .. } | DdlAction::DropColumn { .. } => {
                self.alter_effect(self.described(described)?, views, triggers)
            }
            DdlAction::Place(_) => self.place_effect(single_on),
            DdlAction::AddColumn { column } => {
                let described = self.described(described)?;
                self.check_references(&described, single_on)?;
                let added = described.column(column).cloned().ok_or_else(|| self.not_described())?;
                Ok(DdlEffect::AddColumn { table, column: added, create_sql: described.create_sql })
            }
            DdlAction::CreateView { .. }
            | DdlAction::DropView
            | DdlAction::CreateTrigger { .. }
            | DdlAction::DropTrigger { .. }
            | DdlAction::Nothing => Err(SqlError::unsupported("there is nothing to do").hint("answer with the notice")),
        }
    }

    fn described(&self, described: Option<Table>) -> Result<Table, SqlError> {
        described.ok_or_else(|| self.not_described())
    }

    pub(super) fn not_described(&self) -> SqlError {
        SqlError::new(Code::InvalidTable, format!("SQLite did not describe table {} after the change", self.table))
    }

    fn create_effect(
        &self,
        placement: &Placement,
        mut table: Table,
        single_on: ShardId,
    ) -> Result<DdlEffect, SqlError> {
        table.kind = match placement {
            Placement::Sharded { key } => sharded(&table, key)?,
            Placement::Reference => TableKind::Reference,
            Placement::Single => TableKind::Single { shard: single_on },
        };
        table.indexes.clear();
        for unique in &self.rules.uniques {
            check_unique(&table, unique)?;
        }
        if self.rules.autoincrement && table.kind == TableKind::Reference {
            return Err(SqlError::unsupported("AUTOINCREMENT on a reference table is not supported")
                .hint("leave AUTOINCREMENT out: the INTEGER PRIMARY KEY numbers the rows all the same"));
        }
        if self.rules.rollback {
            return Err(SqlError::unsupported("ON CONFLICT ROLLBACK is not supported")
                .hint("ON CONFLICT ABORT (the default) undoes the whole request"));
        }
        self.check_references(&table, single_on)?;
        Ok(DdlEffect::CreateTable(table))
    }

    /// Foreign keys work where a shard that has the one row has the other, too.
    fn check_references(&self, table: &Table, single_on: ShardId) -> Result<(), SqlError> {
        let fits = |parent: &&Parent| {
            // A table that refers to itself is just as it is described.
            let known = if parent.name.eq_ignore_ascii_case(&table.name) { Some(table) } else { parent.known.as_ref() };
            let itself = parent.name.eq_ignore_ascii_case(&table.name);
            match (&table.kind, known.map(|known| &known.kind)) {
                (TableKind::Single { .. }, _) if itself => true,
                (TableKind::Single { .. }, Some(TableKind::Single { shard })) => *shard == single_on,
                // Every shard has all rows of a reference table.
                (_, Some(TableKind::Reference)) => true,
                (TableKind::Sharded { .. }, Some(TableKind::Sharded { .. })) => keeps_key(table, parent, known),
                _ => false,
            }
        };
        match self.rules.parents.iter().find(|parent| !fits(parent)) {
            Some(parent) => Err(foreign_key(table, &parent.name)),
            None => Ok(()),
        }
    }
}

/// Whether a foreign key between sharded tables says that both rows have the same shard key.
fn keeps_key(table: &Table, parent: &Parent, known: Option<&Table>) -> bool {
    let (Some((key, key_type)), Some(known)) = (table.shard_key(), known) else { return false };
    let Some((parent_key, parent_type)) = known.shard_key() else { return false };
    let to = if parent.to.is_empty() { lower(&known.primary_key) } else { parent.to.clone() };
    let place = parent.columns.iter().position(|column| column.eq_ignore_ascii_case(key));
    let meets = place.and_then(|place| to.get(place)).is_some_and(|column| column.eq_ignore_ascii_case(parent_key));
    meets && key_type == parent_type
}

fn lower(names: &[String]) -> Vec<String> {
    names.iter().map(|name| name.to_ascii_lowercase()).collect()
}

fn foreign_key(table: &Table, parent: &str) -> SqlError {
    let hint = match table.shard_key() {
        Some((key, _)) => format!(
            "shard {parent} alike and put {key} into the foreign key: FOREIGN KEY ({key}, …) REFERENCES {parent} (its shard key, …); \
             or leave out REFERENCES"
        ),
        None => "leave out REFERENCES; foreign keys work between single tables on one shard, to reference tables, \
                 and between sharded tables when they contain both shard keys"
            .to_owned(),
    };
    SqlError::unsupported(format!(
        "the foreign key from {} to {parent} can't be checked: the rows may be on different shards",
        table.name
    ))
    .hint(hint)
}

fn invalid(message: String) -> SqlError {
    SqlError::new(Code::InvalidTable, message)
}

/// The kind of a table that is to be sharded by `key`, if that can be done safely.
pub(super) fn sharded(table: &Table, key: &str) -> Result<TableKind, SqlError> {
    let name = &table.name;
    let column = table.column(key).ok_or_else(|| {
        SqlError::new(Code::UnknownColumn, format!("table {name} can't be sharded by {key}: it has no such column"))
            .hint("SHARD BY names one of the table's columns")
    })?;
    if column.generated {
        return Err(invalid(format!("the shard key {name}.{key} is a generated column"))
            .hint("shard by a column that is written"));
    }
    if let Some(collation) = column.collation.as_ref().filter(|collation| !collation.eq_ignore_ascii_case("BINARY")) {
        return Err(invalid(format!(
            "the shard key {name}.{key} has the collation {collation}, which calls different texts equal"
        ))
        .hint("leave COLLATE out of the key's column; compare with COLLATE in the queries that need it"));
    }
    let key_type = key_type(table, column)?;
    if table.primary_key.is_empty() {
        return Err(invalid(format!("the sharded table {name} needs a primary key"))
            .hint(format!("add PRIMARY KEY ({key}, …), so that moves and retries know its rows")));
    }
    Ok(TableKind::Sharded { key: column.name.clone(), key_type })
}

/// The key's type, by SQLite's affinity rules.
fn key_type(table: &Table, column: &Column) -> Result<KeyType, SqlError> {
    let declared = column.decl_type.to_ascii_uppercase();
    let has = |word: &str| declared.contains(word);
    let any = declared == "ANY" && is_strict(&table.create_sql);
    if has("INT") {
        Ok(KeyType::Integer)
    } else if ["CHAR", "CLOB", "TEXT"].iter().any(|word| has(word)) {
        Ok(KeyType::Text)
    } else if has("BLOB") {
        Ok(KeyType::Bytes)
    } else {
        let reason = match (declared.as_str(), any) {
            ("", _) => "has no declared type".to_owned(),
            (_, true) => "can hold values of any type".to_owned(),
            _ => format!("is declared {}, where 1 and 1.0 are the same", column.decl_type),
        };
        Err(invalid(format!("the shard key {}.{} {reason}", table.name, column.name))
            .hint("declare the key INTEGER, TEXT or BLOB (dates and UUIDs are TEXT, amounts of money are no keys)"))
    }
}

/// A sharded table's UNIQUE must contain the shard key.
pub(super) fn check_unique(table: &Table, unique: &Unique) -> Result<(), SqlError> {
    let Some((key, _)) = table.shard_key() else { return Ok(()) };
    let is_id = |id: &str| matches!(unique.columns.as_slice(), [column] if column.eq_ignore_ascii_case(id));
    if unique.columns.iter().any(|column| column.eq_ignore_ascii_case(key)) || id_column(table).is_some_and(is_id) {
        return Ok(());
    }
    Err(invalid(format!(
        "{} of {} does not contain the shard key {key}, so it can't be checked across shards",
        unique.what, table.name
    ))
    .hint(format!("add {key} to its columns, say PER KEY after it if it is to hold among the rows with the same {key}, shard by one of its columns, or make the table REFERENCE or SINGLE")))
}
