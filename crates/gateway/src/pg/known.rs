//! What is known of a statement by its text: what kind it is, what it answers, and the types of its parameters.
//!
//! Clients ask for all of this before a statement runs. SQLite tells the names of an answer's columns, and the declared
//! types of those that are columns of tables, when it compiles the statement in a database with the same tables and
//! no rows ([`Scratch`]): so views, joins and RETURNING mean here what they mean on the shards. For expressions the
//! planner says what it can ([`pleat_sql::output_types`]).
//!
//! All of it is kept by text until the schema changes, so that a statement costs it once.

use std::borrow::Cow;
use std::sync::Arc;

use parking_lot::Mutex;
use pleat_cluster::Catalog;
use pleat_engine::{Scratch, SqlFailure};
use pleat_sql::{OutputType, Statement};

use super::catalog;
use super::copy;
use super::dialect::lex::{Kind as Token, Tokens};
use super::dialect::{parameters, translate, translate_system};
use super::named;
use super::settings;
use super::types::Type;
use crate::session::{Control, Executor, Failure, read_control};
use crate::settings::PG_SYSTEM_TEXT_BYTES_MAX;

/// A column of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub of: Type,
}

/// What a statement is.
#[derive(Clone, Debug)]
pub enum What {
    Empty,
    Control {
        text: String,
        control: Control,
    },
    Setting(settings::Command),
    Named(named::Command),
    Copy(copy::Command),
    /// A question to the system catalog, in SQLite's words.
    System(String),
    /// A statement for the shards, in SQLite's words.
    Sql {
        text: String,
        kind: Kind,
    },
}

/// What a statement for the shards does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Ddl,
}

/// How a statement's end is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tag {
    /// `INSERT 0 5`
    Insert,
    /// `SELECT 5`
    Counted(&'static str),
    Plain(String),
}

impl Tag {
    pub fn text(&self, rows: u64) -> String {
        match self {
            Tag::Insert => format!("INSERT 0 {rows}"),
            Tag::Counted(verb) => format!("{verb} {rows}"),
            Tag::Plain(text) => text.clone(),
        }
    }
}

/// What is known of a statement.
#[derive(Clone, Debug)]
pub struct Known {
    pub what: What,
    pub tag: Tag,
    /// Of its answer; none when it answers no rows. An error is one that running it would have.
    pub columns: Result<Vec<Column>, Failure>,
    pub parameters: Vec<Type>,
}

/// A database with the cluster's tables and no rows, for one state of the schema.
#[derive(Default)]
pub struct Describer {
    of: Mutex<Option<(Arc<Catalog>, Scratch)>>,
}

impl Describer {
    /// The columns that a statement answers, with their declared types.
    fn columns(&self, catalog: &Arc<Catalog>, text: &str) -> Result<Vec<(String, Option<String>)>, SqlFailure> {
        let mut of = self.of.lock();
        let same = |known: &Catalog| known.tables == catalog.tables && known.views == catalog.views;
        if !of.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, catalog) || same(known)) {
            *of = Some((catalog.clone(), Scratch::with_views(&catalog.tables, &catalog.views)?));
        }
        match of.as_mut() {
            Some((_, scratch)) => scratch.columns_of(text),
            None => Ok(Vec::new()),
        }
    }
}

impl Known {
    /// Find out all about a statement. Compiles it, so not for a task that must not wait.
    pub fn of(
        text: &str,
        catalog: &Arc<Catalog>,
        executor: &Executor,
        describer: &Describer,
        system: &catalog::System,
    ) -> Result<Known, Failure> {
        let tokens = Tokens::of(text)?;
        if tokens.len() == 0 {
            return Ok(plain(What::Empty, ""));
        }
        if let Some(control) = read_control(text) {
            let control = control?;
            let tag = control_tag(&tokens, &control);
            return Ok(plain(What::Control { text: text.to_owned(), control }, tag));
        }
        if let Some(command) = settings::read(&tokens) {
            return command.map(setting);
        }
        if let Some(command) = named::read(&tokens) {
            let command = command?;
            // Only a cursor's query takes values from the client at once.
            let parameters = match &command {
                named::Command::Declare { text, .. } => {
                    Self::of(text, catalog, executor, describer, system)?.parameters
                }
                _ => Vec::new(),
            };
            let tag = named::tag(&command);
            return Ok(Known { tag, parameters, ..plain(What::Named(command), "") });
        }
        if tokens.is(0, "COPY") {
            return copy::read(&tokens).map(|command| plain(What::Copy(command), "COPY"));
        }
        if catalog::is_about(&tokens) {
            if text.len() > PG_SYSTEM_TEXT_BYTES_MAX {
                let message = format!("a question to the system catalog has at most {PG_SYSTEM_TEXT_BYTES_MAX} bytes");
                return Err(Failure::new("54000", message, "ask for less at a time"));
            }
            return Self::of_system(text, catalog, system);
        }
        let translated = translate(text)?;
        let tokens = Tokens::of(&translated.text)?;
        // A place in the translation is none in the client's text.
        let same = matches!(translated.text, Cow::Borrowed(_));
        let placed = |failure: Failure| if same { failure } else { Failure { position: None, ..failure } };
        let plan = executor.plan_of(&translated.text, catalog).map_err(placed)?;
        let kind = match plan.as_ref() {
            Statement::Read(_) | Statement::Explain(_) | Statement::Analyze(_) => Kind::Read,
            Statement::Write(_) => Kind::Write,
            Statement::Ddl(_) => Kind::Ddl,
        };
        let columns = match plan.as_ref() {
            Statement::Ddl(_) => Ok(Vec::new()),
            Statement::Explain(_) | Statement::Analyze(_) => Ok(["step", "detail"].map(of_text).into()),
            Statement::Read(_) | Statement::Write(_) => columns(describer, catalog, &translated.text),
        };
        let mut types = parameters::types(&tokens, &catalog.tables);
        types.extend(translated.casts.iter());
        let count = parameters::count(&Tokens::of(text)?);
        let parameters = (1..=count).map(|number| types.get(&number).copied().unwrap_or(Type::Text)).collect();
        let (tag, text) = (tag(&tokens), translated.text.into_owned());
        Ok(Known { what: What::Sql { text, kind }, tag, columns, parameters })
    }

    fn of_system(text: &str, catalog: &Arc<Catalog>, system: &catalog::System) -> Result<Known, Failure> {
        let translated = translate_system(text)?;
        let count = parameters::count(&Tokens::of(text)?);
        let types = &translated.casts;
        let parameters = (1..=count).map(|number| types.get(&number).copied().unwrap_or(Type::Text)).collect();
        let columns = system.columns(catalog, &translated.text);
        let what = What::System(translated.text.into_owned());
        Ok(Known { what, tag: Tag::Counted("SELECT"), columns, parameters })
    }
}

/// Something without parameters and rows.
fn plain(what: What, tag: impl Into<String>) -> Known {
    Known { what, tag: Tag::Plain(tag.into()), columns: Ok(Vec::new()), parameters: Vec::new() }
}

fn of_text(name: &str) -> Column {
    Column { name: name.to_owned(), of: Type::Text }
}

fn setting(command: settings::Command) -> Known {
    use settings::Command;
    let tag = match &command {
        Command::Set { value: Some(_), .. } => "SET",
        Command::Set { value: None, .. } | Command::ResetAll => "RESET",
        Command::Show(_) | Command::ShowAll => "SHOW",
        Command::DiscardAll => "DISCARD ALL",
        Command::Deallocate(None) => "DEALLOCATE ALL",
        Command::Deallocate(Some(_)) => "DEALLOCATE",
        Command::Nothing(tag) => tag,
    };
    let columns = match &command {
        Command::Show(name) => vec![of_text(name)],
        Command::ShowAll => ["name", "setting", "description"].map(of_text).into(),
        _ => Vec::new(),
    };
    Known { columns: Ok(columns), ..plain(What::Setting(command), tag) }
}

fn control_tag(tokens: &Tokens<'_>, control: &Control) -> &'static str {
    match control {
        Control::Begin(_) if tokens.is(0, "START") => "START TRANSACTION",
        Control::Begin(_) => "BEGIN",
        Control::Commit => "COMMIT",
        Control::Rollback | Control::RollbackTo(_) => "ROLLBACK",
        Control::Savepoint(_) => "SAVEPOINT",
        Control::Release(_) => "RELEASE",
    }
}

fn columns(describer: &Describer, catalog: &Arc<Catalog>, text: &str) -> Result<Vec<Column>, Failure> {
    let found = describer.columns(catalog, text).map_err(Failure::from)?;
    let declared = |declared: Option<&str>| declared.and_then(Type::declared);
    let missing = found.iter().any(|(_, name)| declared(name.as_deref()).is_none());
    let known = if missing { pleat_sql::output_types(text, &catalog.tables) } else { Vec::new() };
    // With `*` in it the list of expressions says nothing of places.
    let known = if known.len() == found.len() { known } else { Vec::new() };
    let of = |at: usize, name: Option<&str>| {
        let of_column = declared(name);
        of_column.or_else(|| match known.get(at)? {
            OutputType::Integer => Some(Type::Int8),
            OutputType::Real => Some(Type::Float8),
            OutputType::Text => Some(Type::Text),
            OutputType::Declared(name) => Type::declared(name),
            OutputType::Unknown => None,
        })
    };
    let columns = found.iter().enumerate();
    Ok(columns
        .map(|(at, (name, declared))| Column {
            name: name.clone(),
            of: of(at, declared.as_deref()).unwrap_or(Type::Text),
        })
        .collect())
}

/// The tag of a statement for the shards.
fn tag(tokens: &Tokens<'_>) -> Tag {
    let verb = |at: usize| match tokens.str(at).to_ascii_uppercase().as_str() {
        "INSERT" | "REPLACE" => Some(Tag::Insert),
        "UPDATE" => Some(Tag::Counted("UPDATE")),
        "DELETE" => Some(Tag::Counted("DELETE")),
        "SELECT" | "VALUES" => Some(Tag::Counted("SELECT")),
        _ => None,
    };
    let first = tokens.str(0).to_ascii_uppercase();
    match first.as_str() {
        "WITH" => {
            let mut depth = 0_usize;
            for at in 1..tokens.len() {
                match tokens.str(at) {
                    "(" if tokens.kind(at) == Some(Token::Symbol) => depth += 1,
                    ")" if tokens.kind(at) == Some(Token::Symbol) => depth = depth.saturating_sub(1),
                    _ if depth == 0 && tokens.kind(at) == Some(Token::Word) => {
                        if let Some(tag) = verb(at) {
                            return tag;
                        }
                    }
                    _ => {}
                }
            }
            Tag::Counted("SELECT")
        }
        "EXPLAIN" => Tag::Plain("EXPLAIN".to_owned()),
        "CREATE" | "DROP" | "ALTER" => {
            let kinds = ["TABLE", "INDEX", "VIEW", "TRIGGER"];
            let kind = (1..tokens.len()).find_map(|at| kinds.iter().find(|kind| tokens.is(at, kind)));
            Tag::Plain(format!("{first} {}", kind.unwrap_or(&"TABLE")))
        }
        _ => verb(0).unwrap_or(Tag::Counted("SELECT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for (text, rows, wanted) in [
            ("SELECT 1", 5, "SELECT 5"),
            ("insert into t values (1)", 1, "INSERT 0 1"),
            ("REPLACE INTO t VALUES (1)", 2, "INSERT 0 2"),
            ("WITH a AS (SELECT 1) DELETE FROM t", 3, "DELETE 3"),
            ("WITH a AS (DELETE FROM t) SELECT 1", 3, "SELECT 3"),
            ("CREATE UNIQUE INDEX i ON t (a)", 0, "CREATE INDEX"),
            ("DROP VIEW IF EXISTS v", 0, "DROP VIEW"),
            ("ALTER TABLE t ADD COLUMN index_a", 0, "ALTER TABLE"),
            ("EXPLAIN SELECT 1", 9, "EXPLAIN"),
        ] {
            assert_eq!(tag(&Tokens::of(text).unwrap()).text(rows), wanted, "{text}");
        }
    }
}
