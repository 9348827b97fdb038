//! Schema changes: Pleat's own clause, and the rules that keep a sharded table's promises.
//!
//! `CREATE TABLE t (…) SHARD BY (k)`, `… REFERENCE` and `… SINGLE` are SQLite's statement with one more option. It is
//! taken out of the tokens, so that SQLite sees the user's own text otherwise, and SQLite itself (the caller's
//! scratch database) says what the columns are. [`DdlPlan::effect`] then checks the result:
//!
//! - The shard key is a column of INTEGER, TEXT or BLOB affinity with BINARY collation. With others two keys that
//!   SQLite calls equal (`1` and `1.0`, `'a'` and `'A'`) could land on two shards.
//! - There is a primary key, and it and every UNIQUE contain the shard key: a shard can only check its own rows.
//! - No AUTOINCREMENT on reference tables. What else a definition promises is
//!   checked by `rules`; `alter` reads ALTER TABLE, `place` the part of it that changes where the rows are, `view` what
//!   concerns views, `trigger` what concerns triggers.

mod alter;
mod body;
mod place;
mod rules;
mod trigger;
mod view;

use std::collections::BTreeMap;

use pleat_cluster::{Index, Table, Tables, Trigger, View, Views};
use serde::{Deserialize, Serialize};

use crate::clauses::Span;
use crate::error::{Code, SqlError};
use crate::lex::{Tokens, quote};
use crate::scope::unknown_table;
use crate::statement::Schema;
use rules::{Rules, Unique, check_unique};
pub(crate) use view::not_modified;

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
    /// The table before it is renamed or placed anew, or one of its columns renamed or dropped.
    before: Option<Table>,
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
    RenameTable {
        to: String,
    },
    RenameColumn {
        from: String,
        to: String,
    },
    DropColumn {
        column: String,
    },
    CreateView {
        view: View,
    },
    DropView,
    /// The same table with its rows elsewhere.
    Place(Placement),
    CreateTrigger {
        trigger: Trigger,
        /// The trigger's table and those that it names, as they are.
        about: Vec<Table>,
        /// The newest trigger.
        seen: u32,
    },
    DropTrigger {
        trigger: String,
    },
    /// `IF [NOT] EXISTS` said so, or it is so already.
    Nothing,
}

/// Where the statement (or the configuration) says that a table's rows live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    Sharded { key: String },
    Reference,
    Single,
}

struct Reader<'a> {
    tokens: &'a Tokens<'a>,
    at: usize,
    end: usize,
    tables: &'a Tables,
    views: &'a Views,
}

/// Plans the CREATE, DROP or ALTER that `span` spells.
pub(crate) fn plan_ddl(tokens: &Tokens, span: Span, schema: &Schema<'_>) -> Result<DdlPlan, SqlError> {
    let mut reader = Reader { tokens, at: span.0 + 1, end: span.1, tables: schema.tables, views: schema.views };
    match tokens.str(span.0).to_ascii_uppercase().as_str() {
        "CREATE" => reader.create(span.0, schema),
        "DROP" => reader.drop(span.0),
        _ => reader.alter(),
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
        self.no_view(&name, "views have no indexes; index the tables that it reads")?;
        let found = self.tables.get(&name.to_ascii_lowercase());
        found.ok_or_else(|| unknown_table(&name).at(self.tokens.text, self.tokens.offset(at)))
    }

    // ---- CREATE ----

    fn create(&mut self, start: usize, schema: &Schema<'_>) -> Result<DdlPlan, SqlError> {
        if self.accept(&["TEMP"]) || self.accept(&["TEMPORARY"]) {
            return Err(self.error_here(view::temporary()));
        }
        if self.accept(&["TABLE"]) {
            return self.create_table(start, schema.default_keys);
        }
        if self.accept(&["VIEW"]) {
            return self.create_view(schema);
        }
        if self.accept(&["TRIGGER"]) {
            return self.create_trigger(schema);
        }
        let unique = self.accept(&["UNIQUE"]);
        if self.accept(&["INDEX"]) {
            return self.create_index(unique);
        }
        Err(match self.tokens.str(self.at).to_ascii_uppercase().as_str() {
            "VIRTUAL" => self.error_here(not_yet("virtual tables", "use an ordinary table")),
            _ => self.expected("TABLE, VIEW, INDEX or TRIGGER"),
        })
    }

    fn create_table(&mut self, start: usize, default_keys: &BTreeMap<String, String>) -> Result<DdlPlan, SqlError> {
        let quietly = self.accept(&["IF", "NOT", "EXISTS"]);
        let name_at = self.at;
        let table = self.name("the new table's name")?;
        if let Some(what) = self.taken(&table) {
            return exists(&table, what, quietly && what != "index")
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
        let (placement, notice) = placed(&table, placement, default_keys);
        let mut sql = match (&placement, rules.per_key.is_empty()) {
            (Placement::Sharded { key }, false) => self.with_key(&rules.per_key, start, close, key),
            (_, true) => self.tokens.slice(start, close + 1).to_owned(),
            (_, false) => return Err(per_key_of_what()),
        };
        if !options.is_empty() {
            sql.push(' ');
            sql.push_str(&options.join(", "));
        }
        let action = DdlAction::CreateTable(placement);
        Ok(DdlPlan { table, action, statements: vec![sql], notice, rules, before: None })
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
            } else if let Some(placement) = self.placement()? {
                Some(placement)
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

    fn create_index(&mut self, unique: bool) -> Result<DdlPlan, SqlError> {
        let quietly = self.accept(&["IF", "NOT", "EXISTS"]);
        let name = self.name("the new index's name")?;
        let name_at = self.at - 1;
        if let Some(what) = self.taken(&name) {
            return exists(&name, what, quietly && what == "index")
                .map_err(|error| error.at(self.tokens.text, self.tokens.offset(name_at)));
        }
        if !self.accept(&["ON"]) {
            return Err(self.expected("ON and a table"));
        }
        let table = self.table()?.clone();
        if self.at >= self.end || !self.tokens.is_symbol(self.at, "(") {
            return Err(self.expected("( and the columns"));
        }
        let close = self.tokens.closing(self.at);
        let columns = self.indexed_columns((self.at + 1, close));
        let per_key = self.tokens.are(close + 1, &["PER", "KEY"]);
        if per_key && !unique {
            self.at = close + 1;
            return Err(self.expected("the end, or UNIQUE before INDEX for PER KEY,"));
        }
        if unique && !per_key {
            check_unique(&table, &Unique { what: format!("the unique index {name}"), columns })?;
        }
        let head = if unique { "CREATE UNIQUE INDEX" } else { "CREATE INDEX" };
        let sql = if per_key {
            let key = table.shard_key().ok_or_else(per_key_of_what)?.0;
            let (columns, rest) = (self.tokens.slice(name_at, close), self.tokens.slice(close + 3, self.end));
            format!("{head} {columns}, {}) {rest}", quote(key)).trim_end().to_owned()
        } else {
            format!("{head} {}", self.tokens.slice(name_at, self.end))
        };
        let index = Index { name, sql: sql.clone() };
        Ok(DdlPlan {
            table: table.name,
            action: DdlAction::CreateIndex { index },
            statements: vec![sql],
            notice: None,
            rules: Rules::default(),
            before: None,
        })
    }

    // ---- DROP, ALTER ----

    fn drop(&mut self, start: usize) -> Result<DdlPlan, SqlError> {
        if self.accept(&["VIEW"]) {
            return self.drop_view();
        }
        if self.accept(&["TRIGGER"]) {
            return self.drop_trigger();
        }
        let table = self.accept(&["TABLE"]);
        if !table && !self.accept(&["INDEX"]) {
            return Err(self.expected("TABLE, VIEW, INDEX or TRIGGER"));
        }
        let quietly = self.accept(&["IF", "EXISTS"]);
        let at = self.at;
        let name = self.name("a name")?;
        self.end_here()?;
        if table {
            self.no_view(&name, "use DROP VIEW to drop a view")?;
        }
        let found =
            if table { self.tables.get(&name.to_ascii_lowercase()) } else { owner_of_index(self.tables, &name) };
        let Some(found) = found else {
            if quietly {
                return Ok(nothing(&name, format!("{name} does not exist: nothing to drop")));
            }
            let error = if table { unknown_table(&name) } else { unknown_index(&name) };
            return Err(error.at(self.tokens.text, self.tokens.offset(at)));
        };
        if table {
            self.no_trigger_naming(found)?;
        }
        Ok(DdlPlan {
            table: found.name.clone(),
            action: if table { DdlAction::DropTable } else { DdlAction::DropIndex { index: index_named(found, name) } },
            statements: vec![self.tokens.slice(start, self.end).to_owned()],
            notice: None,
            rules: Rules::default(),
            before: None,
        })
    }

    fn end_here(&self) -> Result<(), SqlError> {
        if self.at < self.end { Err(self.expected("the end of the statement")) } else { Ok(()) }
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
    let (table, notice) = (name.to_owned(), Some(notice));
    DdlPlan { table, action: DdlAction::Nothing, statements: Vec::new(), notice, rules, before: None }
}

fn exists(name: &str, what: &str, quietly: bool) -> Result<DdlPlan, SqlError> {
    if quietly {
        return Ok(nothing(name, format!("{what} {name} exists already: nothing to do")));
    }
    Err(SqlError::new(Code::Duplicate, format!("{what} {name} exists already"))
        .hint("choose another name, or say IF NOT EXISTS"))
}

fn per_key_of_what() -> SqlError {
    SqlError::new(Code::InvalidTable, "PER KEY means per shard key, and this table has none")
        .hint("say UNIQUE without PER KEY, or shard the table with SHARD BY (column)")
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
