//! Changes of the schema: Pleat's own clause, and what of the statement decides how it is carried out.
//!
//! `CREATE TABLE t (…) SHARD BY (k)`, `… REFERENCE` and `… SINGLE` are PostgreSQL's statement with one more clause at its end, which is cut off.
//! `ALTER TABLE t SHARD BY (k)` (and so on) is no statement of PostgreSQL's; it may name several tables, since foreign keys tie them:
//! `ALTER TABLE t SHARD BY (k), u SHARD BY (t_k), v REFERENCE`. What a
//! change comes to (columns, types, the primary key) is learned from a server that has tried it, so nothing of that is read here.

use std::collections::BTreeSet;

use pleat_cluster::{Table, TableKind, table_key};

use super::clauses::{Span, commas};
use super::lex::Tokens;
use super::plan::{Ddl, Placement, Plan, Several, UniqueIndex, What};
use super::query;
use super::serial;
use super::statement::Reader;
use super::views;
use crate::error::SqlError;

/// Plans the CREATE, ALTER, DROP … that the tokens `from..to` spell. CREATE TEMP TABLE … AS is a query.
pub(super) fn plan(reader: &Reader, from: usize, to: usize) -> Result<What, SqlError> {
    let mut change = Change { reader, from, to, at: from + 1, ddl: Ddl::of(reader.tokens.slice(from, to)) };
    match reader.tokens.str(from).to_ascii_uppercase().as_str() {
        "CREATE" => return change.create(),
        "ALTER" => change.alter()?,
        "DROP" => change.drop()?,
        word => change.other(word),
    }
    Ok(What::Ddl(change.ddl))
}

impl Ddl {
    fn of(statement: &str) -> Ddl {
        Ddl {
            about: String::new(),
            statement: statement.to_owned(),
            placement: None,
            notice: None,
            places: Vec::new(),
            table: None,
            if_not_exists: false,
            if_exists: false,
            temporary: false,
            in_transaction: true,
            try_first: true,
            unique: None,
        }
    }
}

/// The query of the CREATE TABLE … AS that goes on at `at`.
pub(super) fn query_of(tokens: &Tokens, mut at: usize, to: usize) -> Option<Span> {
    while at < to && !tokens.is(at, "AS") {
        at = if tokens.opens(at) == 1 { tokens.closing(at) + 1 } else { at + 1 };
    }
    let start = at + 1;
    let end = [&["WITH", "NO", "DATA"][..], &["WITH", "DATA"]]
        .iter()
        .find_map(|words| to.checked_sub(words.len()).filter(|end| *end > start && tokens.are(*end, words)));
    (start < to).then(|| (start, end.unwrap_or(to)))
}

/// A statement being read.
struct Change<'r, 'a> {
    reader: &'r Reader<'a>,
    from: usize,
    to: usize,
    at: usize,
    ddl: Ddl,
}

impl Change<'_, '_> {
    fn is(&self, words: &[&str]) -> bool {
        self.at + words.len() <= self.to && self.reader.tokens.are(self.at, words)
    }

    fn accept(&mut self, words: &[&str]) -> bool {
        let found = self.is(words);
        self.at += if found { words.len() } else { 0 };
        found
    }

    fn accept_any(&mut self, words: &[&str]) -> bool {
        words.iter().any(|word| self.accept(&[word]))
    }

    fn has(&self, words: &[&str]) -> bool {
        (self.at..self.to).any(|at| self.reader.tokens.are(at, words))
    }

    /// A name with its schema, as a table's key.
    fn key(&mut self, what: &str) -> Result<String, SqlError> {
        let tokens = self.reader.tokens;
        let mut parts = vec![self.reader.name(self.at, self.to, what)?];
        self.at += 1;
        while self.at + 1 < self.to && tokens.is_symbol(self.at, ".") {
            parts.push(self.reader.name(self.at + 1, self.to, what)?);
            self.at += 2;
        }
        Ok(match parts.as_slice() {
            [.., schema, name] => {
                self.ddl.temporary |= schema == "pg_temp";
                table_key(schema, name)
            }
            [name] => table_key("public", name),
            [] => String::new(),
        })
    }

    /// The first words of the statement, and the name behind them if one comes here.
    fn about(&mut self, words: &str) {
        let name = self.ddl.table.clone().or_else(|| self.reader.tokens.name(self.at).filter(|_| self.at < self.to));
        self.ddl.about = format!("{words} {}", name.unwrap_or_default()).trim().to_owned();
    }

    fn word(&self) -> String {
        if self.at < self.to { self.reader.tokens.str(self.at).to_ascii_lowercase() } else { String::new() }
    }

    // ---- CREATE ----

    fn create(mut self) -> Result<What, SqlError> {
        self.accept(&["OR", "REPLACE"]);
        self.accept_any(&["LOCAL", "GLOBAL"]);
        self.ddl.temporary = self.accept_any(&["TEMP", "TEMPORARY"]);
        self.accept(&["UNLOGGED"]);
        if self.accept(&["TABLE"]) {
            return self.create_table();
        }
        let unique = self.accept(&["UNIQUE"]);
        if self.accept(&["INDEX"]) {
            self.create_index(unique)?;
            return Ok(What::Ddl(self.ddl));
        }
        self.refuse_of_one_shard()?;
        let mut words = vec!["create".to_owned()];
        words.push(self.word());
        self.ddl.in_transaction = !["DATABASE", "TABLESPACE", "SUBSCRIPTION"].iter().any(|word| self.is(&[word]));
        self.ddl.try_first = self.ddl.in_transaction;
        self.at += 1;
        for word in ["VIEW", "TABLE", "TRIGGER", "DATA", "SEARCH", "MAPPING", "METHOD", "WRAPPER"] {
            if self.is(&[word]) {
                words.push(self.word());
                self.at += 1;
            }
        }
        self.ddl.if_not_exists = self.accept(&["IF", "NOT", "EXISTS"]);
        self.about(&words.join(" "));
        Ok(What::Ddl(self.ddl))
    }

    /// What would have each shard keep, or do, something about its own rows alone.
    fn refuse_of_one_shard(&self) -> Result<(), SqlError> {
        let view = (self.at..self.to.min(self.at + 2)).any(|at| self.reader.tokens.is(at, "VIEW"));
        let kept = self.ddl.temporary || self.is(&["MATERIALIZED"]);
        let read = self.read_of_one_shard().filter(|_| kept);
        if let Some(table) = read.or_else(|| self.read_by_function())
            && view
        {
            let (name, kind) = (&table.name, table.kind_name());
            let what = match kept {
                true if self.ddl.temporary => "a temporary view that reads",
                true => "a materialized view that reads",
                false => "a view with a function that may read",
            };
            return Err(SqlError::unsupported(format!("{what} {name} ({kind}) would see the rows of one shard only"))
                .hint("such a view may read REFERENCE tables; make a plain view of the table, or keep the rows in a table"));
        }
        if self.is(&["RULE"]) {
            return Err(SqlError::unsupported("rules rewrite statements behind Pleat's back").hint("use a trigger"));
        }
        if self.is(&["SCHEMA"]) && (self.at + 1..self.to).any(|at| self.reader.tokens.is(at, "CREATE")) {
            return Err(SqlError::unsupported("CREATE SCHEMA with statements in it is not supported")
                .hint("create the schema, then what is in it"));
        }
        Ok(())
    }

    /// A table whose rows are not on every server, among those that a view reads.
    fn read_of_one_shard(&self) -> Option<&Table> {
        let (from, to) = query_of(self.reader.tokens, self.at, self.to).unwrap_or((self.from, self.to));
        let tables = views::tables_of(self.reader, from, to);
        let tables = tables.iter().filter_map(|key| self.reader.schema.tables.get(key));
        tables.into_iter().find(|table| table.kind != TableKind::Reference)
    }

    fn read_by_function(&self) -> Option<&Table> {
        let (from, to) = query_of(self.reader.tokens, self.at, self.to)?;
        views::hidden(self.reader, from, to)
    }

    fn create_table(mut self) -> Result<What, SqlError> {
        let tokens = self.reader.tokens;
        self.ddl.if_not_exists = self.accept(&["IF", "NOT", "EXISTS"]);
        let key = self.key("the new table's name")?;
        self.ddl.table = Some(key.clone());
        self.about("create table");
        if let Some(query) = query_of(tokens, self.at, self.to) {
            return self.create_as(query);
        }
        if self.ddl.temporary {
            return Ok(What::Ddl(self.ddl));
        }
        let attached =
            (self.at..self.to).find(|at| tokens.are(*at, &["PARTITION", "OF"]) || tokens.is(*at, "INHERITS"));
        if let Some(at) = attached {
            return Err(SqlError::unsupported("partitions and inheriting tables are not routed yet")
                .hint("leave partitioning out: Pleat spreads the rows")
                .at(tokens.text, tokens.start(at)));
        }
        let (clause, start) = self.placement()?;
        self.ddl.statement = tokens.slice(self.from, start).to_owned();
        self.place_new(clause, &key);
        Ok(What::Ddl(self.ddl))
    }

    fn place_new(&mut self, clause: Option<Placement>, key: &str) {
        let default = self.reader.schema.default_keys.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
        let (placement, notice) = match (clause, default) {
            (Some(placement), _) => (placement, None),
            (None, Some((_, column))) => (
                Placement::Sharded { key: column.clone() },
                Some(format!("table {key} is sharded by {column}, as table_shard_keys in the configuration says")),
            ),
            (None, None) => (
                Placement::Single,
                Some(format!(
                    "table {key} is single: all of it lives on one shard. Add SHARD BY (column) to spread its rows, or REFERENCE to keep a copy on every shard"
                )),
            ),
        };
        self.ddl.placement = Some(placement);
        self.ddl.notice = notice;
    }

    fn create_as(self, (start, end): Span) -> Result<What, SqlError> {
        if !self.ddl.temporary {
            return Err(SqlError::unsupported("CREATE TABLE … AS is not supported")
                .hint("create the table with its columns (and say where its rows live), then use INSERT … SELECT"));
        }
        let mut query = query::plan(self.reader, start, end)?;
        serial::refuse(&query, "CREATE TABLE … AS")?;
        query.plan = Plan {
            several: match query.plan.several {
                kept @ (Several::Any | Several::Refused(_)) => kept,
                _ => Several::Refused(Box::new(
                    SqlError::unsupported("a temporary table can't be made from rows of several shards yet")
                        .hint("say what the shard key is, or read the rows and insert them"),
                )),
            },
            ..query.plan
        };
        Ok(What::Query(super::Query { verb: super::Verb::Other, writes: true, pins: true, ..query }))
    }

    /// Pleat's clause at the end of the statement, and where it starts.
    fn placement(&self) -> Result<(Option<Placement>, usize), SqlError> {
        let tokens = self.reader.tokens;
        let last = self.to - 1;
        if tokens.is(last, "REFERENCE") || tokens.is(last, "SINGLE") {
            let placement = if tokens.is(last, "SINGLE") { Placement::Single } else { Placement::Reference };
            return Ok((Some(placement), last));
        }
        let Some(start) = (self.at..self.to).find(|at| tokens.are(*at, &["SHARD", "BY"]) && !inside(self, *at)) else {
            return Ok((None, self.to));
        };
        let key = tokens
            .name(start + 3)
            .filter(|_| tokens.is_symbol(start + 2, "(") && tokens.is_symbol(start + 4, ")") && start + 5 == self.to);
        let key = key.ok_or_else(|| {
            self.reader.expected(start + 2, "one column in parentheses, and then the end of the statement,")
        })?;
        Ok((Some(Placement::Sharded { key }), start))
    }

    fn create_index(&mut self, unique: bool) -> Result<(), SqlError> {
        let tokens = self.reader.tokens;
        self.ddl.in_transaction = !self.accept(&["CONCURRENTLY"]);
        self.ddl.try_first = false;
        self.ddl.if_not_exists = self.accept(&["IF", "NOT", "EXISTS"]);
        let name = if self.is(&["ON"]) { String::new() } else { self.key("the index's name, or ON")? };
        self.ddl.about = format!("create index {name}").trim().to_owned();
        if !self.accept(&["ON"]) {
            return Err(self.reader.expected(self.at, "ON and a table's name"));
        }
        self.accept(&["ONLY"]);
        let table = self.key("a table's name")?;
        if name.is_empty() {
            self.ddl.about = format!("create index on {table}");
        }
        if unique {
            let open = (self.at..self.to).find(|at| tokens.is_symbol(*at, "(")).unwrap_or(self.to);
            let elements = commas(tokens, open + 1, tokens.closing(open).min(self.to));
            // A column is a name alone, or with an operator class and an order behind it.
            let column = |(from, to): (usize, usize)| {
                tokens
                    .name(from)
                    .filter(|_| from + 1 == to || !tokens.is_symbol(from + 1, "(") && !tokens.is_symbol(from + 1, "."))
            };
            let columns = elements.into_iter().filter_map(column).collect();
            self.ddl.unique = Some(UniqueIndex { table: table.clone(), columns });
        }
        self.ddl.table = Some(table);
        Ok(())
    }

    // ---- ALTER, DROP and the rest ----

    /// What Pleat has given is never given again.
    fn refuse_restart(&self) -> Result<(), SqlError> {
        if !self.has(&["RESTART"]) {
            return Ok(());
        }
        let names: BTreeSet<String> = (self.at..self.to).filter_map(|at| self.reader.tokens.name(at)).collect();
        let has = |name: &str| names.iter().any(|found| found.eq_ignore_ascii_case(name));
        let bare = |key: &str| has(key.rsplit('.').next().unwrap_or(key));
        let restarted = |(key, table): &(&String, &Table)| {
            table.serial().is_some_and(|(_, serial)| bare(key) || has(&serial.sequence))
        };
        match self.reader.schema.tables.iter().find(restarted) {
            Some((name, _)) => {
                Err(serial::no_restart(name).hint("SELECT setval('the sequence', n) has them go on above n"))
            }
            None => Ok(()),
        }
    }

    fn alter(&mut self) -> Result<(), SqlError> {
        self.refuse_restart()?;
        if !self.accept(&["TABLE"]) {
            let words = format!("alter {}", self.word());
            self.ddl.in_transaction = !["SYSTEM", "SUBSCRIPTION", "DATABASE"].iter().any(|word| self.is(&[word]));
            self.ddl.try_first = self.ddl.in_transaction;
            self.at += 1;
            self.about(&words);
            return Ok(());
        }
        self.ddl.if_exists = self.accept(&["IF", "EXISTS"]);
        self.accept(&["ONLY"]);
        let key = self.key("a table's name")?;
        self.ddl.table = Some(key);
        self.about("alter table");
        if self.has(&["ATTACH", "PARTITION"]) || self.is(&["INHERIT"]) {
            return Err(SqlError::unsupported("partitions and inheriting tables are not routed yet")
                .hint("leave partitioning out: Pleat spreads the rows"));
        }
        self.ddl.in_transaction = !self.has(&["CONCURRENTLY"]);
        self.ddl.try_first = self.ddl.in_transaction;
        let ends = self.at + 1 == self.to || self.reader.tokens.is_symbol(self.at + 1, ",");
        if self.is(&["SHARD", "BY"]) || ends && (self.is(&["REFERENCE"]) || self.is(&["SINGLE"])) {
            self.places()?;
        }
        Ok(())
    }

    /// The first table's placement, and other tables with theirs.
    fn places(&mut self) -> Result<(), SqlError> {
        let tokens = self.reader.tokens;
        self.ddl.statement = String::new();
        let mut table = self.ddl.table.clone().unwrap_or_default();
        loop {
            let placement = if self.accept(&["REFERENCE"]) {
                Placement::Reference
            } else if self.accept(&["SINGLE"]) {
                Placement::Single
            } else if self.accept(&["SHARD", "BY"]) {
                let key = tokens.name(self.at + 1).filter(|_| {
                    self.at + 2 < self.to && tokens.is_symbol(self.at, "(") && tokens.is_symbol(self.at + 2, ")")
                });
                let key = key.ok_or_else(|| self.reader.expected(self.at, "one column in parentheses"))?;
                self.at += 3;
                Placement::Sharded { key }
            } else {
                return Err(self.reader.expected(self.at, "SHARD BY (a column), REFERENCE or SINGLE"));
            };
            self.ddl.places.push((table, placement));
            if self.at == self.to {
                return Ok(());
            }
            if !tokens.is_symbol(self.at, ",") {
                return Err(self.reader.expected(self.at, "a comma and another table, or the end of the statement,"));
            }
            self.at += 1;
            self.accept(&["TABLE"]);
            table = self.key("a table's name")?;
        }
    }

    fn drop(&mut self) -> Result<(), SqlError> {
        let table = self.is(&["TABLE"]);
        let words = format!("drop {}", self.word());
        let outside = ["DATABASE", "TABLESPACE", "SUBSCRIPTION"].iter().any(|word| self.is(&[word]));
        self.at += 1;
        if self.accept(&["VIEW"]) && words.ends_with("materialized") {
            self.ddl.about = words.clone();
        }
        self.ddl.in_transaction = !outside && !self.accept(&["CONCURRENTLY"]);
        self.ddl.try_first = self.ddl.in_transaction;
        self.ddl.if_exists = self.accept(&["IF", "EXISTS"]);
        if table {
            let key = self.key("a table's name")?;
            self.ddl.table = Some(key);
        }
        self.about(&words);
        Ok(())
    }

    /// COMMENT, GRANT, REINDEX …
    fn other(&mut self, word: &str) {
        let words = word.to_ascii_lowercase();
        let whole = ["DATABASE", "SYSTEM", "SCHEMA"].iter().any(|word| self.is(&[word]));
        let of_all = word == "CLUSTER" && self.at == self.to;
        self.ddl.in_transaction = !(word == "REINDEX" && (whole || self.has(&["CONCURRENTLY"])) || of_all);
        self.ddl.try_first = self.ddl.in_transaction && !matches!(word, "REINDEX" | "CLUSTER" | "REFRESH");
        self.ddl.about = format!("{words} {}", self.reader.tokens.slice(self.at, self.to.min(self.at + 3)))
            .trim()
            .to_ascii_lowercase();
    }
}

/// Whether token `at` is inside of brackets that open behind the statement's name.
fn inside(change: &Change, at: usize) -> bool {
    let tokens = change.reader.tokens;
    let depth: i32 = (change.at..at).map(|at| i32::from(tokens.opens(at))).sum();
    depth != 0
}
