//! Schema changes: Pleat's own clause, and the rules that keep a sharded table's promises.
//!
//! `CREATE TABLE t (…) SHARD BY (k)`, `… REFERENCE` and `… SINGLE` are SQLite's statement with one more option. It is
//! taken out of the tokens, so that SQLite sees the user's own text otherwise, and SQLite itself (the caller's
//! scratch database) says what the columns are. [`DdlPlan::effect`] then checks the result:
//!
//! - The shard key is a column of INTEGER, TEXT or BLOB affinity with BINARY collation. With others two keys that
//!   SQLite calls equal (`1` and `1.0`, `'a'` and `'A'`) could land on two shards.
//! - There is a primary key, and it and every UNIQUE contain the shard key: a shard can only check its own rows.
//! - No AUTOINCREMENT and no foreign keys yet on sharded tables, which could only be kept within a shard.

use std::collections::BTreeMap;

use pleat_cluster::{Column, DdlEffect, Index, KeyType, ShardId, Table, TableKind, Tables};
use serde::{Deserialize, Serialize};

use crate::clauses::{Span, list};
use crate::error::{Code, SqlError};
use crate::fetch::is_strict;
use crate::lex::Tokens;
use crate::scope::unknown_table;

/// A planned change of the schema.
#[derive(Clone, Debug, PartialEq)]
pub struct DdlPlan {
    /// The table that changes, as the statement (or the catalog) spells it.
    pub table: String,
    pub action: DdlAction,
    /// What SQLite runs, on the scratch database and on the shards. Empty when there is nothing to do.
    pub statements: Vec<String>,
    /// Something that the user should know.
    pub notice: Option<String>,
    rules: Rules,
}

/// What a schema change does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DdlAction {
    CreateTable(Placement),
    DropTable,
    CreateIndex {
        index: Index,
    },
    DropIndex {
        index: String,
    },
    AddColumn {
        column: String,
    },
    /// `IF [NOT] EXISTS` said so.
    Nothing,
}

/// Where the statement (or the configuration) says that a new table's rows live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    Sharded { key: String },
    Reference,
    Single,
}

/// What a definition says that SQLite's description of the columns does not.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rules {
    /// The columns of each UNIQUE or PRIMARY KEY, in lower case; those with a collation of their own are left out.
    uniques: Vec<Unique>,
    autoincrement: bool,
    /// Tables that foreign keys refer to, and the shard of those that are single (`None`: they are not).
    parents: BTreeMap<String, Option<ShardId>>,
    rollback: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Unique {
    what: String,
    columns: Vec<String>,
}

struct Reader<'a> {
    tokens: &'a Tokens<'a>,
    at: usize,
    end: usize,
    tables: &'a Tables,
}

/// Plans the CREATE, DROP or ALTER that `span` spells.
pub(crate) fn plan_ddl(
    tokens: &Tokens,
    span: Span,
    tables: &Tables,
    default_keys: &BTreeMap<String, String>,
) -> Result<DdlPlan, SqlError> {
    let mut reader = Reader { tokens, at: span.0 + 1, end: span.1, tables };
    match tokens.str(span.0).to_ascii_uppercase().as_str() {
        "CREATE" => reader.create(span.0, default_keys),
        "DROP" => reader.drop(span.0),
        _ => reader.alter(span.0),
    }
}

impl Reader<'_> {
    fn accept(&mut self, words: &[&str]) -> bool {
        let found = self.at + words.len() <= self.end && self.tokens.are(self.at, words);
        self.at += if found { words.len() } else { 0 };
        found
    }

    fn error_here(&self, error: SqlError) -> SqlError {
        error.at(self.tokens.text, self.tokens.offset(self.at))
    }

    fn expected(&self, what: &str) -> SqlError {
        self.error_here(SqlError::syntax(format!("{what} was expected here")))
    }

    /// A name, with an optional `main.` before it.
    fn name(&mut self, what: &str) -> Result<String, SqlError> {
        let mut name = self.plain_name(what)?;
        if self.at < self.end && self.tokens.is_symbol(self.at, ".") {
            if !name.eq_ignore_ascii_case("main") {
                return Err(
                    self.error_here(SqlError::unsupported("there is one schema, main").hint("leave the schema out"))
                );
            }
            self.at += 1;
            name = self.plain_name(what)?;
        }
        Ok(name)
    }

    fn plain_name(&mut self, what: &str) -> Result<String, SqlError> {
        let name =
            (self.at < self.end).then(|| self.tokens.name(self.at)).flatten().ok_or_else(|| self.expected(what))?;
        check_name(&name).map_err(|error| self.error_here(error))?;
        self.at += 1;
        Ok(name)
    }

    fn table(&mut self) -> Result<&Table, SqlError> {
        let at = self.at;
        let name = self.name("a table's name")?;
        let found = self.tables.get(&name.to_ascii_lowercase());
        found.ok_or_else(|| unknown_table(&name).at(self.tokens.text, self.tokens.offset(at)))
    }

    // ---- CREATE ----

    fn create(&mut self, start: usize, default_keys: &BTreeMap<String, String>) -> Result<DdlPlan, SqlError> {
        if self.accept(&["TEMP"]) || self.accept(&["TEMPORARY"]) {
            return Err(self.error_here(not_yet(
                "temporary tables, views and triggers",
                "use a CTE or a subquery for one statement, or a table",
            )));
        }
        if self.accept(&["TABLE"]) {
            return self.create_table(start, default_keys);
        }
        let unique = self.accept(&["UNIQUE"]);
        if self.accept(&["INDEX"]) {
            return self.create_index(unique);
        }
        Err(match self.tokens.str(self.at).to_ascii_uppercase().as_str() {
            "VIEW" => self.error_here(not_yet("views", "write the view's SELECT as a CTE (WITH …) in the statement")),
            "TRIGGER" => self
                .error_here(not_yet("triggers", "do the work in the same request: all its statements happen or none")),
            "VIRTUAL" => self.error_here(not_yet("virtual tables", "use an ordinary table")),
            _ => self.expected("TABLE or INDEX"),
        })
    }

    fn create_table(&mut self, start: usize, default_keys: &BTreeMap<String, String>) -> Result<DdlPlan, SqlError> {
        let quietly = self.accept(&["IF", "NOT", "EXISTS"]);
        let name_at = self.at;
        let table = self.name("the new table's name")?;
        if self.tables.contains_key(&table.to_ascii_lowercase()) {
            return exists(&table, "table", quietly)
                .map_err(|error| error.at(self.tokens.text, self.tokens.offset(name_at)));
        }
        if self.accept(&["AS"]) {
            return Err(self.error_here(not_yet(
                "CREATE TABLE … AS SELECT",
                "create the table with its columns, then insert the rows",
            )));
        }
        if self.at >= self.end || !self.tokens.is_symbol(self.at, "(") {
            return Err(self.expected("( and the columns"));
        }
        let open = self.at;
        let close = self.tokens.closing(open).min(self.end);
        if close == self.end {
            return Err(self.expected("a closing ) for this one"));
        }
        let rules = self.rules((open + 1, close))?;
        self.at = close + 1;
        let (options, placement) = self.options()?;
        let mut sql = self.tokens.slice(start, close + 1).to_owned();
        if !options.is_empty() {
            sql.push(' ');
            sql.push_str(&options.join(", "));
        }
        let (placement, notice) = placed(&table, placement, default_keys);
        Ok(DdlPlan { table, action: DdlAction::CreateTable(placement), statements: vec![sql], notice, rules })
    }

    /// What follows the columns: SQLite's options, and Pleat's clause.
    fn options(&mut self) -> Result<(Vec<&'static str>, Option<Placement>), SqlError> {
        let mut options = Vec::new();
        let mut placement = None;
        while self.at < self.end {
            let at = self.at;
            let found = if self.accept(&["WITHOUT", "ROWID"]) {
                options.push("WITHOUT ROWID");
                None
            } else if self.accept(&["STRICT"]) {
                options.push("STRICT");
                None
            } else if self.accept(&["SHARD", "BY"]) {
                Some(Placement::Sharded { key: self.shard_key()? })
            } else if self.accept(&["REFERENCE"]) {
                Some(Placement::Reference)
            } else if self.accept(&["SINGLE"]) {
                Some(Placement::Single)
            } else if self.tokens.is_symbol(self.at, ",") && at + 1 < self.end {
                self.at += 1;
                None
            } else {
                return Err(self.expected("SHARD BY (column), REFERENCE, SINGLE, WITHOUT ROWID, STRICT or the end"));
            };
            if found.is_some() && placement.is_some() {
                self.at = at;
                return Err(self.error_here(
                    SqlError::syntax("the table's placement is given twice")
                        .hint("say SHARD BY (column), REFERENCE or SINGLE once"),
                ));
            }
            placement = found.or(placement);
        }
        Ok((options, placement))
    }

    fn shard_key(&mut self) -> Result<String, SqlError> {
        if !self.tokens.is_symbol(self.at, "(") || self.at >= self.end {
            return Err(self.expected("( and the key's column"));
        }
        self.at += 1;
        let key = self.plain_name("the key's column")?;
        if self.tokens.is_symbol(self.at, ",") {
            return Err(self.error_here(not_yet(
                "a shard key of several columns",
                "shard by the one column that most statements name",
            )));
        }
        if !self.tokens.is_symbol(self.at, ")") || self.at >= self.end {
            return Err(self.expected(")"));
        }
        self.at += 1;
        Ok(key)
    }

    /// Reads the rules out of the definitions between the parentheses. By tokens, because SQLite accepts more
    /// (types of any words, defaults, checks) than a parser of standard SQL.
    fn rules(&self, body: Span) -> Result<Rules, SqlError> {
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

    fn definition_rules(&self, definition: Span, column: Option<&str>, rules: &mut Rules) -> Result<(), SqlError> {
        let tokens = self.tokens;
        let mut index = definition.0 + usize::from(column.is_some());
        while index < definition.1 {
            if tokens.is_symbol(index, "(") {
                index = tokens.closing(index);
            } else if tokens.are(index, &["PRIMARY", "KEY"]) {
                rules.uniques.push(self.unique("the primary key", index + 2, column));
                index += 1;
            } else if tokens.is(index, "UNIQUE") {
                rules.uniques.push(self.unique("a UNIQUE constraint", index + 1, column));
            } else if tokens.is(index, "AUTOINCREMENT") {
                rules.autoincrement = true;
            } else if tokens.is(index, "REFERENCES") {
                self.parent(index + 1, rules);
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
    fn indexed_columns(&self, span: Span) -> Vec<String> {
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

    fn parent(&self, index: usize, rules: &mut Rules) {
        let name = self.tokens.name(index).unwrap_or_default().to_ascii_lowercase();
        let shard = self.tables.get(&name).and_then(|table| match table.kind {
            TableKind::Single { shard } => Some(shard),
            TableKind::Sharded { .. } | TableKind::Reference => None,
        });
        rules.parents.insert(name, shard);
    }

    fn create_index(&mut self, unique: bool) -> Result<DdlPlan, SqlError> {
        let quietly = self.accept(&["IF", "NOT", "EXISTS"]);
        let name = self.name("the new index's name")?;
        let name_at = self.at - 1;
        if owner_of_index(self.tables, &name).is_some() {
            return exists(&name, "index", quietly)
                .map_err(|error| error.at(self.tokens.text, self.tokens.offset(name_at)));
        }
        if !self.accept(&["ON"]) {
            return Err(self.expected("ON and a table"));
        }
        let table = self.table()?.clone();
        if self.at >= self.end || !self.tokens.is_symbol(self.at, "(") {
            return Err(self.expected("( and the columns"));
        }
        let columns = self.indexed_columns((self.at + 1, self.tokens.closing(self.at)));
        if unique {
            check_unique(&table, &Unique { what: format!("the unique index {name}"), columns })?;
        }
        let head = if unique { "CREATE UNIQUE INDEX" } else { "CREATE INDEX" };
        let sql = format!("{head} {}", self.tokens.slice(name_at, self.end));
        let index = Index { name, sql: sql.clone() };
        Ok(DdlPlan {
            table: table.name,
            action: DdlAction::CreateIndex { index },
            statements: vec![sql],
            notice: None,
            rules: Rules::default(),
        })
    }

    // ---- DROP, ALTER ----

    fn drop(&mut self, start: usize) -> Result<DdlPlan, SqlError> {
        let table = self.accept(&["TABLE"]);
        if !table && !self.accept(&["INDEX"]) {
            return Err(match self.tokens.str(self.at).to_ascii_uppercase().as_str() {
                "VIEW" | "TRIGGER" => self.error_here(not_yet("views and triggers", "there are none to drop")),
                _ => self.expected("TABLE or INDEX"),
            });
        }
        let quietly = self.accept(&["IF", "EXISTS"]);
        let at = self.at;
        let name = self.name("a name")?;
        self.end_here()?;
        let found =
            if table { self.tables.get(&name.to_ascii_lowercase()) } else { owner_of_index(self.tables, &name) };
        let Some(found) = found else {
            if quietly {
                return Ok(nothing(&name, format!("{name} does not exist: nothing to drop")));
            }
            let error = if table { unknown_table(&name) } else { unknown_index(&name) };
            return Err(error.at(self.tokens.text, self.tokens.offset(at)));
        };
        Ok(DdlPlan {
            table: found.name.clone(),
            action: if table { DdlAction::DropTable } else { DdlAction::DropIndex { index: index_named(found, name) } },
            statements: vec![self.tokens.slice(start, self.end).to_owned()],
            notice: None,
            rules: Rules::default(),
        })
    }

    fn end_here(&self) -> Result<(), SqlError> {
        if self.at < self.end { Err(self.expected("the end of the statement")) } else { Ok(()) }
    }

    fn alter(&mut self, start: usize) -> Result<DdlPlan, SqlError> {
        if !self.accept(&["TABLE"]) {
            return Err(self.expected("TABLE"));
        }
        let table = self.table()?.clone();
        if !self.accept(&["ADD"]) {
            return Err(self.error_here(not_yet(
                "this ALTER TABLE",
                "ALTER TABLE … ADD COLUMN works; otherwise make a new table and copy the rows",
            )));
        }
        self.accept(&["COLUMN"]);
        let definition = (self.at, self.end);
        let column = self.plain_name("the new column's name")?;
        let mut rules = Rules::default();
        self.definition_rules(definition, Some(&column.to_ascii_lowercase()), &mut rules)?;
        Ok(DdlPlan {
            table: table.name.clone(),
            action: DdlAction::AddColumn { column },
            statements: vec![self.tokens.slice(start, self.end).to_owned()],
            notice: None,
            rules,
        })
    }
}

fn check_name(name: &str) -> Result<(), SqlError> {
    let lower = name.to_ascii_lowercase();
    let reserved = ["__pleat_", "sqlite_"].into_iter().find(|prefix| lower.starts_with(prefix));
    match reserved {
        Some(prefix) => {
            Err(SqlError::new(Code::ReservedName, format!("the name {name} is reserved: it starts with {prefix}"))
                .hint("choose another name"))
        }
        None if name.is_empty() || name.contains('\0') => Err(SqlError::syntax("a name can't be empty")),
        None => Ok(()),
    }
}

fn not_yet(what: &str, hint: &str) -> SqlError {
    SqlError::unsupported(format!("{what} are not supported")).hint(hint)
}

fn nothing(name: &str, notice: String) -> DdlPlan {
    let rules = Rules::default();
    DdlPlan { table: name.to_owned(), action: DdlAction::Nothing, statements: Vec::new(), notice: Some(notice), rules }
}

fn exists(name: &str, what: &str, quietly: bool) -> Result<DdlPlan, SqlError> {
    if quietly {
        return Ok(nothing(name, format!("{what} {name} exists already: nothing to do")));
    }
    Err(SqlError::new(Code::Duplicate, format!("{what} {name} exists already"))
        .hint("choose another name, or say IF NOT EXISTS"))
}

fn unknown_index(name: &str) -> SqlError {
    SqlError::new(Code::UnknownObject, format!("no such index: {name}"))
        .hint("GET /tables lists the indexes of each table")
}

fn owner_of_index<'t>(tables: &'t Tables, name: &str) -> Option<&'t Table> {
    tables.values().find(|table| table.indexes.iter().any(|index| index.name.eq_ignore_ascii_case(name)))
}

/// The index's name as it was declared.
fn index_named(table: &Table, name: String) -> String {
    let declared = table.indexes.iter().find(|index| index.name.eq_ignore_ascii_case(&name));
    declared.map_or(name, |index| index.name.clone())
}

fn placed(
    table: &str,
    clause: Option<Placement>,
    default_keys: &BTreeMap<String, String>,
) -> (Placement, Option<String>) {
    if let Some(placement) = clause {
        return (placement, None);
    }
    if let Some((_, key)) = default_keys.iter().find(|(name, _)| name.eq_ignore_ascii_case(table)) {
        let notice = format!("table {table} is sharded by {key}, as table_shard_keys in the configuration says");
        return (Placement::Sharded { key: key.clone() }, Some(notice));
    }
    let notice = format!(
        "table {table} is single: all of it lives on one shard. Add SHARD BY (column) to spread its rows, or REFERENCE to keep a copy on every shard"
    );
    (Placement::Single, Some(notice))
}

// ---- checking against SQLite's description ----

impl DdlPlan {
    /// What the change does to the catalog, once SQLite has described the table as it is after the statements
    /// (`None` for DROP TABLE). `single_on` is where a new single table will live. The description's `id`, `kind`
    /// and `indexes` don't matter for a new table.
    pub fn effect(&self, described: Option<Table>, single_on: ShardId) -> Result<DdlEffect, SqlError> {
        let table = self.table.clone();
        match &self.action {
            DdlAction::CreateTable(placement) => self.create_effect(placement, self.described(described)?, single_on),
            DdlAction::DropTable => Ok(DdlEffect::DropTable { table }),
            DdlAction::CreateIndex { index } => Ok(DdlEffect::CreateIndex { table, index: index.clone() }),
            DdlAction::DropIndex { index } => Ok(DdlEffect::DropIndex { table, index: index.clone() }),
            DdlAction::AddColumn { column } => {
                let described = self.described(described)?;
                self.check_references(&described.kind, &table, single_on)?;
                let added = described.column(column).cloned().ok_or_else(|| self.not_described())?;
                Ok(DdlEffect::AddColumn { table, column: added, create_sql: described.create_sql })
            }
            DdlAction::Nothing => Err(SqlError::unsupported("there is nothing to do").hint("answer with the notice")),
        }
    }

    fn described(&self, described: Option<Table>) -> Result<Table, SqlError> {
        described.ok_or_else(|| self.not_described())
    }

    fn not_described(&self) -> SqlError {
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
        if self.rules.autoincrement && !matches!(table.kind, TableKind::Single { .. }) {
            return Err(SqlError::unsupported(format!(
                "AUTOINCREMENT on a {} table is not supported yet",
                table.kind_name()
            ))
            .hint("give ids in the statement (for example UUIDs as TEXT), or make the table SINGLE"));
        }
        if self.rules.rollback {
            return Err(SqlError::unsupported("ON CONFLICT ROLLBACK is not supported")
                .hint("ON CONFLICT ABORT (the default) undoes the whole request"));
        }
        self.check_references(&table.kind, &table.name, single_on)?;
        Ok(DdlEffect::CreateTable(table))
    }

    /// Foreign keys work where both tables are whole on one shard.
    fn check_references(&self, kind: &TableKind, table: &str, single_on: ShardId) -> Result<(), SqlError> {
        let TableKind::Single { .. } = kind else {
            return match self.rules.parents.keys().next() {
                Some(parent) => Err(foreign_key(table, parent)),
                None => Ok(()),
            };
        };
        let own = table.to_ascii_lowercase();
        let elsewhere = self.rules.parents.iter().find(|(parent, shard)| **parent != own && **shard != Some(single_on));
        elsewhere.map_or(Ok(()), |(parent, _)| Err(foreign_key(table, parent)))
    }
}

fn foreign_key(table: &str, parent: &str) -> SqlError {
    SqlError::unsupported(format!(
        "the foreign key from {table} to {parent} is not supported yet: the rows may be on different shards"
    ))
    .hint("leave out REFERENCES; foreign keys work between single tables on the same shard")
}

fn invalid(message: String) -> SqlError {
    SqlError::new(Code::InvalidTable, message)
}

/// The kind of a table that is to be sharded by `key`, if that can be done safely.
fn sharded(table: &Table, key: &str) -> Result<TableKind, SqlError> {
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
fn check_unique(table: &Table, unique: &Unique) -> Result<(), SqlError> {
    let Some((key, _)) = table.shard_key() else { return Ok(()) };
    if unique.columns.iter().any(|column| column.eq_ignore_ascii_case(key)) {
        return Ok(());
    }
    Err(invalid(format!(
        "{} of {} does not contain the shard key {key}, so it can't be checked across shards",
        unique.what, table.name
    ))
    .hint(format!("add {key} to its columns, shard by one of its columns, or make the table REFERENCE or SINGLE")))
}
