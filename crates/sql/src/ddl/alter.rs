//! ALTER TABLE: adding, renaming and dropping columns, renaming tables.
//!
//! A rename reaches the shards one after the other, and what is under way then must not apply a text with the old name
//! to a table with the new one. For sharded and single tables the shards see to that (see `control::ddl`). Writes to
//! reference tables are replayed from a log on each shard, and a text from before the rename could come after it; so
//! reference tables keep their names and columns.

use pleat_cluster::{DdlEffect, Retold, Rewritten, Table, TableKind};

use super::rules::Rules;
use super::trigger::retell;
use super::{DdlAction, DdlPlan, Reader, exists, not_yet, nothing};
use crate::error::{Code, SqlError};
use crate::lex::quote;
use crate::scope::unknown_table;

impl Reader<'_> {
    pub(super) fn alter(&mut self) -> Result<DdlPlan, SqlError> {
        if !self.accept(&["TABLE"]) {
            return Err(self.expected("TABLE"));
        }
        let quietly = self.accept(&["IF", "EXISTS"]);
        let at = self.at;
        let name = self.name("a table's name")?;
        self.no_view(&name, "DROP VIEW it and CREATE VIEW it anew")?;
        let Some(table) = self.tables.get(&name.to_ascii_lowercase()).cloned() else {
            return match quietly {
                true => Ok(nothing(&name, format!("{name} does not exist: nothing to alter"))),
                false => Err(unknown_table(&name).at(self.tokens.text, self.tokens.offset(at))),
            };
        };
        if self.accept(&["ADD"]) {
            return self.add_column(table);
        }
        if self.accept(&["DROP"]) {
            return self.drop_column(table);
        }
        if self.accept(&["RENAME"]) {
            return if self.accept(&["TO"]) { self.rename_table(table) } else { self.rename_column(table) };
        }
        if let Some(placement) = self.placement()? {
            return self.place_table(table, placement);
        }
        Err(self.error_here(not_yet(
            "this ALTER TABLE",
            "ADD COLUMN, DROP COLUMN, RENAME COLUMN … TO, RENAME TO, SHARD BY (…), REFERENCE and SINGLE work; otherwise \
             make a new table and copy the rows",
        )))
    }

    fn add_column(&mut self, table: Table) -> Result<DdlPlan, SqlError> {
        self.accept(&["COLUMN"]);
        let quietly = self.accept(&["IF", "NOT", "EXISTS"]);
        let definition = (self.at, self.end);
        let column = self.plain_name("the new column's name")?;
        if quietly && table.column(&column).is_some() {
            return exists(&format!("{}.{column}", table.name), "column", quietly);
        }
        let mut rules = Rules::default();
        self.definition_rules(definition, Some(&column.to_ascii_lowercase()), &mut rules)?;
        let definition = self.tokens.slice(definition.0, definition.1);
        Ok(DdlPlan {
            statements: vec![format!("ALTER TABLE {} ADD COLUMN {definition}", quote(&table.name))],
            table: table.name,
            action: DdlAction::AddColumn { column },
            notice: None,
            rules,
            before: None,
        })
    }

    fn drop_column(&mut self, table: Table) -> Result<DdlPlan, SqlError> {
        self.accept(&["COLUMN"]);
        let quietly = self.accept(&["IF", "EXISTS"]);
        let at = self.at;
        let name = self.plain_name("the column's name")?;
        self.end_here()?;
        if quietly && table.column(&name).is_none() {
            return Ok(nothing(&table.name, format!("{}.{name} does not exist: nothing to drop", table.name)));
        }
        let column = self.column(&table, &name, at)?;
        if table.shard_key().is_some_and(|(key, _)| key.eq_ignore_ascii_case(&column)) {
            return Err(invalid(format!(
                "{column} is the shard key of {}, which decides where its rows are",
                table.name
            ))
            .hint("shard by another column first: ALTER TABLE … SHARD BY (…)"));
        }
        let change = format!("DROP COLUMN {}", quote(&column));
        self.altered(table, DdlAction::DropColumn { column }, &change)
    }

    fn rename_column(&mut self, table: Table) -> Result<DdlPlan, SqlError> {
        self.accept(&["COLUMN"]);
        let at = self.at;
        let from = self.plain_name("the column's name")?;
        if !self.accept(&["TO"]) {
            return Err(self.expected("TO and the new name"));
        }
        let to = self.plain_name("the new name")?;
        self.end_here()?;
        let from = self.column(&table, &from, at)?;
        let change = format!("RENAME COLUMN {} TO {}", quote(&from), quote(&to));
        self.altered(table, DdlAction::RenameColumn { from, to }, &change)
    }

    fn rename_table(&mut self, table: Table) -> Result<DdlPlan, SqlError> {
        let at = self.at;
        let to = self.plain_name("the new name")?;
        self.end_here()?;
        if let Some(what) = self.taken(&to).filter(|_| !to.eq_ignore_ascii_case(&table.name)) {
            return exists(&to, what, false).map_err(|error| error.at(self.tokens.text, self.tokens.offset(at)));
        }
        let change = format!("RENAME TO {}", quote(&to));
        self.altered(table, DdlAction::RenameTable { to }, &change)
    }

    fn altered(&self, table: Table, action: DdlAction, change: &str) -> Result<DdlPlan, SqlError> {
        let (name, verb) = (&table.name, if change.starts_with("DROP") { "dropped" } else { "renamed" });
        if matches!(table.kind, TableKind::Reference) {
            return Err(SqlError::unsupported(format!(
                "nothing of the reference table {name} is {verb}: writes that name it are still on their way to the shards"
            ))
            .hint("make it SINGLE first, and REFERENCE again afterwards"));
        }
        let others = self.tables.values().filter(|other| !other.name.eq_ignore_ascii_case(name));
        if let Some(other) = others.into_iter().find(|other| other.references(name)) {
            return Err(SqlError::unsupported(format!(
                "nothing of {name} is {verb} while table {} refers to it with a foreign key",
                other.name
            ))
            .hint(format!("make {} anew without the foreign key first", other.name)));
        }
        Ok(DdlPlan {
            table: name.clone(),
            action,
            statements: vec![format!("ALTER TABLE {} {change}", quote(name))],
            notice: None,
            rules: Rules::default(),
            before: Some(table),
        })
    }

    /// The column's name as it was declared.
    fn column(&self, table: &Table, name: &str, at: usize) -> Result<String, SqlError> {
        let found = table.column(name).map(|column| column.name.clone());
        found.ok_or_else(|| {
            SqlError::new(Code::UnknownColumn, format!("table {} has no column {name}", table.name))
                .hint("GET /tables lists the columns of each table")
                .at(self.tokens.text, self.tokens.offset(at))
        })
    }
}

impl DdlPlan {
    /// The table that SQLite is to describe after the statements: a renamed one under its new name.
    pub fn describes(&self) -> &str {
        match &self.action {
            DdlAction::RenameTable { to } => to,
            _ => &self.table,
        }
    }

    /// What a rename, or dropping a column, does to the catalog.
    pub(super) fn alter_effect(
        &self,
        described: Table,
        views: Vec<Rewritten>,
        triggers: Vec<Retold>,
    ) -> Result<DdlEffect, SqlError> {
        let before = self.before.clone().ok_or_else(|| self.not_described())?;
        let kind = match (&before.kind, &self.action) {
            (TableKind::Sharded { key, key_type }, DdlAction::RenameColumn { from, to })
                if key.eq_ignore_ascii_case(from) =>
            {
                TableKind::Sharded { key: to.clone(), key_type: *key_type }
            }
            (kind, _) => kind.clone(),
        };
        let after = Table { id: before.id, kind, ..described };
        let statement = self.statements.first().cloned().unwrap_or_default();
        let about = |retold: &Retold| retold.table == before.name || retold.before.names(before.id);
        let triggers = triggers.into_iter().filter(about).map(retell).collect::<Result<_, _>>()?;
        Ok(DdlEffect::AlterTable { before: Box::new(before), after: Box::new(after), statement, views, triggers })
    }
}

fn invalid(message: String) -> SqlError {
    SqlError::new(Code::InvalidTable, message)
}
