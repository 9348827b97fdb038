//! CREATE VIEW and DROP VIEW, and views where a table was expected.
//!
//! As in SQLite a view may name tables that don't exist (yet): using it is an error until they do, and creating it gives a
//! notice. What can never work is refused: parameters, and what Pleat does not support in a SELECT.
//!
//! When a table or a column gets another name, SQLite itself rewrites the views that name it, in the scratch database in
//! which every schema change is tried; the catalog takes both changes at once ([`DdlEffect::AlterTable`]).

use pleat_cluster::{DdlEffect, View};

use super::rules::Rules;
use super::{DdlAction, DdlPlan, Reader, exists, not_yet, nothing};
use crate::error::{Code, SqlError};
use crate::lex::{Kind, Tokens};
use crate::statement::{Schema, Statement, prepare};
use crate::views::Definition;

impl Reader<'_> {
    pub(super) fn create_view(&mut self, schema: &Schema<'_>) -> Result<DdlPlan, SqlError> {
        let quietly = self.accept(&["IF", "NOT", "EXISTS"]);
        let name = self.name("the new view's name")?;
        let name_at = self.at - 1;
        let at = |error: SqlError| error.at(self.tokens.text, self.tokens.offset(name_at));
        if let Some(what) = self.taken(&name) {
            return exists(&name, what, quietly && what != "index").map_err(at);
        }
        if let Some(parameter) = (name_at..self.end).find(|at| self.tokens.kind(*at) == Some(Kind::Parameter)) {
            return Err(SqlError::syntax("parameters are not allowed in views")
                .hint("give the value in the statement that uses the view")
                .at(self.tokens.text, self.tokens.offset(parameter)));
        }
        let view = View { sql: format!("CREATE VIEW {}", self.tokens.slice(name_at, self.end)), name };
        let definition_tokens = Tokens::of(&view.sql)?;
        let Some(definition) = Definition::of(&definition_tokens) else {
            self.at = name_at + 1;
            return Err(self.expected("AS and a SELECT"));
        };
        let notice = check_body(&view, definition.body, schema)?;
        Ok(DdlPlan {
            table: view.name.clone(),
            statements: vec![view.sql.clone()],
            action: DdlAction::CreateView { view },
            notice,
            rules: Rules::default(),
            before: None,
        })
    }

    pub(super) fn drop_view(&mut self) -> Result<DdlPlan, SqlError> {
        let quietly = self.accept(&["IF", "EXISTS"]);
        let at = self.at;
        let name = self.name("a view's name")?;
        self.end_here()?;
        let pointed = |error: SqlError| error.at(self.tokens.text, self.tokens.offset(at));
        if let Some(table) = self.tables.get(&name.to_ascii_lowercase()) {
            return Err(pointed(wrong(format!("{} is a table", table.name), "use DROP TABLE to drop a table")));
        }
        let Some(view) = self.views.get(&name.to_ascii_lowercase()) else {
            return match quietly {
                true => Ok(nothing(&name, format!("{name} does not exist: nothing to drop"))),
                false => Err(pointed(
                    SqlError::new(Code::UnknownObject, format!("no such view: {name}"))
                        .hint("GET /tables (or \\d in the shell) lists tables and views"),
                )),
            };
        };
        Ok(DdlPlan {
            table: view.name.clone(),
            action: DdlAction::DropView,
            statements: vec![format!("DROP VIEW {}", crate::lex::quote(&view.name))],
            notice: None,
            rules: Rules::default(),
            before: None,
        })
    }

    /// The refusal of a view where only a table will do.
    pub(super) fn no_view(&self, name: &str, hint: &str) -> Result<(), SqlError> {
        match self.views.get(&name.to_ascii_lowercase()) {
            Some(view) => Err(self.error_here(wrong(format!("{} is a view", view.name), hint))),
            None => Ok(()),
        }
    }

    /// What has the name already.
    pub(super) fn taken(&self, name: &str) -> Option<&'static str> {
        let lower = name.to_ascii_lowercase();
        if self.tables.contains_key(&lower) {
            Some("table")
        } else if self.views.contains_key(&lower) {
            Some("view")
        } else {
            super::owner_of_index(self.tables, name).map(|_| "index")
        }
    }
}

/// Refuses a body that could never be used. Gives a notice when it can't be yet.
fn check_body(view: &View, body: &str, schema: &Schema<'_>) -> Result<Option<String>, SqlError> {
    let unusable = |message: &str| Some(format!("view {} can't be used yet: {message}", view.name));
    match prepare(body, schema) {
        Ok(Statement::Read(_)) => Ok(None),
        Ok(_) => Err(SqlError::syntax(format!("view {} is a SELECT, and nothing else", view.name))),
        Err(error) if matches!(error.code, Code::UnknownTable | Code::UnknownColumn | Code::InvalidTable) => {
            Ok(unusable(&error.message))
        }
        Err(error) => Err(SqlError { position: None, ..error }),
    }
}

fn wrong(message: String, hint: &str) -> SqlError {
    SqlError::new(Code::WrongObject, message).hint(hint)
}

/// The refusal of a write to a view.
pub(crate) fn not_modified(view: &View) -> SqlError {
    wrong(format!("cannot modify {} because it is a view", view.name), "write the tables that it reads")
}

/// The refusal of a temporary table, view or trigger.
pub(super) fn temporary() -> SqlError {
    not_yet("temporary tables, views and triggers", "use a CTE or a subquery for one statement, or a table")
}

impl DdlPlan {
    /// What creating or dropping a view does to the catalog.
    pub(super) fn view_effect(&self) -> Option<DdlEffect> {
        match &self.action {
            DdlAction::CreateView { view } => Some(DdlEffect::CreateView(view.clone())),
            DdlAction::DropView => Some(DdlEffect::DropView { view: self.table.clone() }),
            _ => None,
        }
    }
}
