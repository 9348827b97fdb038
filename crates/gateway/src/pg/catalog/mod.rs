//! The system catalog: what psql, drivers and tools ask about tables, types and the session.
//!
//! # The mechanism
//!
//! PostgreSQL answers these questions from tables, and clients join and filter those at will. So there is a database here
//! with tables of the same names (`schema.sql`), filled from Pleat's catalog when its schema has changed ([`fill`]), and with
//! the functions that such questions call ([`functions`]). It is SQLite, in memory; [`super::dialect`] puts a question into
//! its words. Each node has one; a question waits for its turn, twice [`TIME_MAX`] at
//! most, and may then take that time itself.
//!
//! A statement is such a question when it names one of these tables or functions ([`is_about`]). It can't read the user's
//! tables as well.
//!
//! # Caveats
//!
//! What clients are known to ask is there; a question to a column or function that isn't fails with SQLite's words
//! for it. There are no privileges, comments, sequences or rules to tell of, and no types beside the built-in ones.

mod fill;
mod functions;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pleat_cluster::{Catalog, Value};
use pleat_engine::{Bind, value_of};
use rusqlite::Connection;
use rusqlite::limits::Limit;
use tokio::sync::Semaphore;

use super::dialect::VALUES;
use super::dialect::lex::{Kind, Tokens};
use super::known::Column;
use super::session::Session;
use super::types::Type;
use crate::session::Failure;
use crate::settings::{PG_SYSTEM_ANSWER_BYTES_MAX, PG_SYSTEM_VALUE_BYTES_MAX};
use functions::Context;

/// How long a question may take.
pub(super) const TIME_MAX: Duration = Duration::from_secs(5);
/// Steps of SQLite's machine between two looks at the clock.
const STEPS_PER_LOOK: i32 = 10_000;
/// Rows of an answer.
const ROWS_MAX: usize = 100_000;

/// Functions that are about the system, whatever else a statement says.
const FUNCTIONS: [&str; 14] = [
    "version",
    "current_database",
    "current_schema",
    "current_schemas",
    "current_setting",
    "set_config",
    "format_type",
    "inet_server_addr",
    "inet_server_port",
    "inet_client_addr",
    "inet_client_port",
    "has_schema_privilege",
    "has_table_privilege",
    "txid_current",
];

/// Whether a statement is about the system.
pub fn is_about(tokens: &Tokens<'_>) -> bool {
    if !["SELECT", "WITH", "VALUES", "TABLE"].iter().any(|word| tokens.is(0, word)) {
        return false;
    }
    (0..tokens.len()).any(|at| {
        let Some(name) = tokens.name(at) else { return false };
        let called = tokens.is_symbol(at + 1, "(");
        let bare = tokens.kind(at) == Some(Kind::Word) && !(at > 0 && tokens.is_symbol(at - 1, "."));
        name == "pg_catalog"
            || name == "information_schema"
            || called && (name.starts_with("pg_") || FUNCTIONS.contains(&name.as_str()))
            || bare && VALUES.contains(&name.as_str())
            || bare && name.starts_with("pg_") && follows_from(tokens, at)
    })
}

/// Whether a table is named here.
fn follows_from(tokens: &Tokens<'_>, at: usize) -> bool {
    at > 0 && (tokens.is(at - 1, "FROM") || tokens.is(at - 1, "JOIN") || tokens.is_symbol(at - 1, ","))
}

/// The system catalog of a node.
pub struct System {
    database: Mutex<Option<Database>>,
    /// Whose question it is. Waiting for it takes no thread.
    turn: Arc<Semaphore>,
}

/// Too many questions at once.
pub(super) fn busy() -> Failure {
    Failure::new("53400", "too many questions to the system catalog wait on this node", "try again in a moment")
}

struct Database {
    /// What it was made from.
    catalog: Arc<Catalog>,
    connection: Connection,
    context: Arc<Mutex<Context>>,
    ends: Arc<Mutex<Instant>>,
}

/// What a question gave.
struct Found {
    columns: Vec<Column>,
    rows: Vec<Vec<Value>>,
}

impl System {
    pub fn new() -> Self {
        Self { database: Mutex::default(), turn: Arc::new(Semaphore::new(1)) }
    }

    /// The columns of an answer.
    pub fn columns(&self, catalog: &Arc<Catalog>, text: &str) -> Result<Vec<Column>, Failure> {
        self.with(catalog, |database| {
            let statement = database.connection.prepare(text)?;
            Ok(columns(&statement))
        })
    }

    fn with<T>(
        &self,
        catalog: &Arc<Catalog>,
        work: impl FnOnce(&Database) -> rusqlite::Result<T>,
    ) -> Result<T, Failure> {
        let mut database = self.database.lock();
        let same = |known: &Catalog| known.tables == catalog.tables && known.views == catalog.views;
        if !database.as_ref().is_some_and(|known| Arc::ptr_eq(&known.catalog, catalog) || same(&known.catalog)) {
            *database = Some(Database::new(catalog.clone()).map_err(|error| Failure::internal(error.to_string()))?);
        }
        let Some(database) = database.as_ref() else { return Err(Failure::internal("the system catalog is missing")) };
        *database.ends.lock() = Instant::now() + TIME_MAX;
        work(database).map_err(|error| told(&error, catalog))
    }
}

impl Database {
    fn new(catalog: Arc<Catalog>) -> rusqlite::Result<Self> {
        let mut connection = Connection::open_in_memory()?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, PG_SYSTEM_VALUE_BYTES_MAX as i32)?;
        connection.execute_batch("ATTACH ':memory:' AS pg_catalog; ATTACH ':memory:' AS information_schema")?;
        let context = Arc::new(Mutex::new(Context::default()));
        functions::register(&connection, &context)?;
        connection.execute_batch("PRAGMA trusted_schema = ON")?;
        connection.execute_batch(include_str!("schema.sql"))?;
        fill::fill(&connection, &catalog)?;
        connection.execute_batch("PRAGMA query_only = ON")?;
        let ends = Arc::new(Mutex::new(Instant::now()));
        let watched = ends.clone();
        connection.progress_handler(STEPS_PER_LOOK, Some(move || Instant::now() > *watched.lock()))?;
        Ok(Self { catalog, connection, context, ends })
    }

    fn ask(&self, text: &str, values: &[Value]) -> rusqlite::Result<Found> {
        let mut statement = self.connection.prepare(text)?;
        let columns = columns(&statement);
        let wanted = statement.parameter_count();
        for at in 1..=wanted {
            // `$2` may be the first parameter that SQLite meets.
            let name = statement.parameter_name(at).and_then(|name| name[1..].parse::<usize>().ok());
            let value = values.get(name.unwrap_or(at).saturating_sub(1)).unwrap_or(&Value::Null);
            statement.raw_bind_parameter(at, Bind(value))?;
        }
        let (mut rows, mut bytes, mut asked) = (Vec::new(), 0, statement.raw_query());
        while let Some(row) = asked.next()? {
            let value = |at| row.get_ref(at).map(value_of);
            let row: Vec<Value> = (0..columns.len()).map(value).collect::<Result<_, _>>()?;
            bytes += row.iter().map(Value::size).sum::<usize>();
            if rows.len() >= ROWS_MAX || bytes > PG_SYSTEM_ANSWER_BYTES_MAX {
                let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_TOOBIG);
                return Err(rusqlite::Error::SqliteFailure(code, Some("the answer is too large".to_owned())));
            }
            rows.push(row);
        }
        Ok(Found { columns, rows })
    }
}

impl Session {
    /// Ask the system catalog.
    pub(super) async fn ask_system(
        &mut self,
        text: &str,
        values: Vec<Value>,
    ) -> Result<(Vec<Column>, Vec<Vec<Value>>), Failure> {
        let (shared, text) = (self.shared.clone(), text.to_owned());
        let context = Context {
            user: self.user.clone(),
            database: self.database.clone(),
            process: self.process,
            settings: self.settings.all().map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
            set: Vec::new(),
        };
        let turn = tokio::time::timeout(2 * TIME_MAX, shared.system.turn.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| busy())?;
        let ask = move || {
            // To the end of the work, also when nobody waits for it any more.
            let _turn = turn;
            shared.system.with(&shared.app.backend.catalog(), |database| {
                *database.context.lock() = context;
                fill::fill_session(&database.connection, &database.context)?;
                let found = database.ask(&text, &values)?;
                let set = std::mem::take(&mut database.context.lock().set);
                Ok((found, set))
            })
        };
        let (found, set) =
            pleat_consensus::blocking(ask).await.map_err(|error| Failure::internal(error.to_string()))??;
        for (name, value, local) in set {
            self.settings.set(&name, Some(&value), local)?;
        }
        Ok((found.columns, found.rows))
    }
}

fn columns(statement: &rusqlite::Statement<'_>) -> Vec<Column> {
    let of = |column: &rusqlite::Column<'_>| Column {
        name: name_of(column.name()),
        of: column.decl_type().and_then(Type::declared).unwrap_or(Type::Text),
    };
    statement.columns().map(|column| of(&column)).collect()
}

/// What PostgreSQL calls a column that has no name: after its function.
fn name_of(name: &str) -> String {
    match name.split_once('(') {
        Some((function, _))
            if !function.is_empty() && function.chars().all(|letter| letter.is_alphanumeric() || letter == '_') =>
        {
            function.to_lowercase()
        }
        _ => name.to_owned(),
    }
}

fn told(error: &rusqlite::Error, catalog: &Catalog) -> Failure {
    let message = match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        other => other.to_string(),
    };
    if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) {
        return Failure::timeout(TIME_MAX);
    }
    if let Some(name) = message.strip_prefix("no such table: ") {
        if catalog.table(name).is_some() || catalog.view(name).is_some() {
            return Failure::new(
                "0A000",
                format!("a statement can't ask the system catalog, or a function of it, and read {name} too"),
                "ask in two statements",
            );
        }
        return Failure::new("42P01", format!("relation \"{name}\" does not exist"), "");
    }
    let code = match () {
        () if error.sqlite_error_code() == Some(rusqlite::ErrorCode::TooBig) => "54000",
        () if message.starts_with("no such column") => "42703",
        () if message.starts_with("no such function") => "42883",
        () if message.contains("syntax error") => "42601",
        () if message.starts_with("relation ") => "42P01",
        () => "0A000",
    };
    Failure::new(
        code,
        format!("the system catalog: {message}"),
        "it has what clients are known to ask; the guide's page on PostgreSQL says more",
    )
}
