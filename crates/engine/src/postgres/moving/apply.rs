//! Changes of the source, made on the target in transactions of the target's own.
//!
//! Statements are prepared with parameters whose types the target finds out by their columns, sent many at a time, and each must
//! have done what the source did: one row.
//!
//! A row that is inserted must not be there: the stream begins exactly where the snapshot ends, so nothing comes twice, and a row that is there
//! is somebody else's. A row that is updated must be there. One that is deleted need not be: on the target, what refers to a
//! row that was deleted there may be gone already by a trigger that fires always. The digests tell what is missing otherwise.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;

use super::super::wire::frontend::Bind;
use super::super::{Connection, PostgresError, Request, Server, Statement};
use super::Movement;
use super::pgoutput::{Change, Lsn, Relation, Tuple, Value};
use super::sql::{schema_name, session, session_prefix};
use super::table::Table;

/// So much is sent before answers are waited for.
const SENT_ROWS_MAX: usize = 500;
const SENT_BYTES_MAX: usize = 1 << 20;
/// A transaction of the target ends with the first one of the source that makes it so large.
const TRANSACTION_ROWS: u64 = 5_000;
/// Updates that leave out different columns, for each table.
const UPDATES_MAX: usize = 64;

/// Makes changes on the target.
pub struct Applier {
    connection: Connection,
    movement: Arc<Movement>,
    tables: Vec<Arc<Table>>,
    relations: HashMap<u32, Shape>,
    /// In the transaction that is open, if one is.
    rows: Option<u64>,
    sent: Vec<Sent>,
    sent_bytes: usize,
}

/// A table as the stream has it, and the statements for it.
struct Shape {
    table: Arc<Table>,
    /// The columns by which a row is found. Empty: all of them.
    found_by: Vec<usize>,
    insert: Arc<Statement>,
    delete: Arc<Statement>,
    /// By the columns that are set.
    updates: HashMap<Vec<usize>, Arc<Statement>>,
}

/// What was sent and not answered yet.
struct Sent {
    table: Arc<Table>,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Insert,
    Update,
    Delete,
}

impl Applier {
    pub async fn open(
        target: &Server,
        movement: Arc<Movement>,
        tables: Vec<Arc<Table>>,
    ) -> Result<Applier, PostgresError> {
        let connection = writer(target, &movement).await?;
        let (relations, sent) = (HashMap::new(), Vec::new());
        Ok(Applier { connection, movement, tables, relations, rows: None, sent, sent_bytes: 0 })
    }

    /// Whether something was done that is not committed.
    pub fn is_open(&self) -> bool {
        self.rows.is_some()
    }

    /// Whether the transaction should end now.
    pub fn is_full(&self) -> bool {
        self.rows.is_some_and(|rows| rows >= TRANSACTION_ROWS)
    }

    /// Make a change. How many rows it is here.
    pub async fn apply(&mut self, change: Change) -> Result<u64, PostgresError> {
        let before = self.rows.unwrap_or_default();
        match change {
            Change::Relation(relation) => self.relation(relation)?,
            Change::Insert { relation, new } => self.insert(relation, new).await?,
            Change::Update { relation, old, new } => self.update(relation, old, new).await?,
            Change::Delete { relation, old } => self.delete(relation, old).await?,
            Change::Truncate(relations) => self.truncate(&relations).await?,
            Change::Begin(_) | Change::Commit { .. } | Change::Message { .. } | Change::Aside => {}
        }
        Ok(self.rows.unwrap_or_default() - before)
    }

    fn relation(&mut self, relation: Relation) -> Result<(), PostgresError> {
        let Relation { id, schema, name, identity, columns } = relation;
        let Some(table) = self.tables.iter().find(|table| table.schema == schema && table.name == name) else {
            return Ok(());
        };
        let same = table.columns.iter().map(|column| &column.name).eq(columns.iter().map(|(name, _)| name));
        if !same {
            return Err(PostgresError::Moving(format!("the columns of {schema}.{name} were changed while it moved")));
        }
        let found_by: Vec<usize> = match identity {
            // The primary key says as much as the whole row, and has an index.
            b'f' => table.primary.clone(),
            _ => (0..columns.len()).filter(|at| columns[*at].1).collect(),
        };
        let lacks_key = table.key.is_some_and(|(key, _)| !found_by.contains(&key));
        if identity != b'f' && (found_by.is_empty() || lacks_key) {
            return Err(PostgresError::Moving(format!(
                "the replica identity of {schema}.{name} was changed while it moved: it lacks the shard key"
            )));
        }
        let shape = Shape::new(table.clone(), found_by);
        self.relations.insert(id, shape);
        Ok(())
    }

    fn shape(&mut self, relation: u32) -> Option<&mut Shape> {
        self.relations.get_mut(&relation)
    }

    fn moves(&self, table: &Table, row: &Tuple) -> Result<bool, PostgresError> {
        let Some((at, _)) = table.key else { return Ok(true) };
        let key = row.get(at).unwrap_or(&Value::Unchanged);
        table.moves(key, self.movement.partition_count, &self.movement.partitions)
    }

    async fn insert(&mut self, relation: u32, new: Tuple) -> Result<(), PostgresError> {
        let Some(shape) = self.shape(relation) else { return Ok(()) };
        let (table, statement) = (shape.table.clone(), shape.insert.clone());
        if !self.moves(&table, &new)? {
            return Ok(());
        }
        let values = new.into_iter().map(|value| known(&table, value)).collect::<Result<_, _>>()?;
        self.send(table, What::Insert, statement, values).await
    }

    async fn delete(&mut self, relation: u32, old: Tuple) -> Result<(), PostgresError> {
        let Some(shape) = self.shape(relation) else { return Ok(()) };
        let (table, statement) = (shape.table.clone(), shape.delete.clone());
        let values = shape.identity(&old)?;
        if !self.moves(&table, &old)? {
            return Ok(());
        }
        self.send(table, What::Delete, statement, values).await
    }

    async fn update(&mut self, relation: u32, old: Option<Tuple>, mut new: Tuple) -> Result<(), PostgresError> {
        let Some(shape) = self.shape(relation) else { return Ok(()) };
        let table = shape.table.clone();
        // A key that is stored apart and was not touched is what it was.
        if let (Some((key, _)), Some(old)) = (table.key, &old)
            && new.get(key) == Some(&Value::Unchanged)
            && let Some(value) = old.get(key)
        {
            new[key] = value.clone();
        }
        let before = old.as_ref().unwrap_or(&new);
        match (self.moves(&table, before)?, self.moves(&table, &new)?) {
            (false, false) => Ok(()),
            (true, true) => {
                let shape = self.relations.get_mut(&relation).ok_or_else(gone)?;
                let found = shape.identity(before)?;
                let set: Vec<usize> = (0..new.len())
                    // A value that only the server gives is never changed by an update.
                    .filter(|at| new[*at] != Value::Unchanged && table.columns.get(*at).is_some_and(|c| !c.always))
                    .collect();
                let statement = shape.update(&set);
                let mut values = set.iter().map(|at| known(&table, new[*at].clone())).collect::<Result<Vec<_>, _>>()?;
                values.extend(found);
                self.send(table, What::Update, statement, values).await
            }
            (true, false) => {
                let before = old.unwrap_or(new);
                self.delete(relation, before).await
            }
            (false, true) => {
                // What was not touched is known only where the identity is the whole row.
                for (at, value) in old.into_iter().flatten().enumerate() {
                    if let (Some(missing @ Value::Unchanged), Value::Text(_)) = (new.get_mut(at), &value) {
                        *missing = value;
                    }
                }
                self.insert(relation, new).await
            }
        }
    }

    async fn truncate(&mut self, relations: &[u32]) -> Result<(), PostgresError> {
        for relation in relations {
            let Some(shape) = self.shape(*relation) else { continue };
            let table = shape.table.clone();
            self.begin().await?;
            self.settle().await?;
            let condition = table.condition(&self.movement);
            let asked = self.connection.ask(&format!("DELETE FROM ONLY {} WHERE {condition}", table.quoted())).await?;
            self.count(touched(&asked.tag));
        }
        Ok(())
    }

    fn count(&mut self, rows: u64) {
        self.rows = Some(self.rows.unwrap_or_default() + rows);
    }

    async fn send(
        &mut self,
        table: Arc<Table>,
        what: What,
        statement: Arc<Statement>,
        values: Vec<Option<Bytes>>,
    ) -> Result<(), PostgresError> {
        self.begin().await?;
        self.sent_bytes += values.iter().flatten().map(Bytes::len).sum::<usize>();
        self.connection.push(Request::Bind(statement, Bind { values, ..Bind::default() }))?;
        self.connection.push(Request::Execute { portal: String::new(), rows: 0 })?;
        self.sent.push(Sent { table, what });
        self.count(1);
        match self.sent.len() >= SENT_ROWS_MAX || self.sent_bytes >= SENT_BYTES_MAX {
            true => self.settle().await,
            false => Ok(()),
        }
    }

    /// Wait for the answers to what was sent.
    async fn settle(&mut self) -> Result<(), PostgresError> {
        if self.sent.is_empty() {
            return Ok(());
        }
        self.connection.push(Request::Sync)?;
        let mut tags = Vec::new();
        let answered = self.connection.answers(&mut tags).await;
        if let Err(PostgresError::Answered { code, message, detail }) = answered {
            let at = self.sent.get(tags.len()).map_or_else(String::new, |sent| sent.table.quoted());
            let message = format!("the target does not take a change of {at}: {message}");
            return Err(PostgresError::Answered { code, message, detail });
        }
        answered?;
        let sent = std::mem::take(&mut self.sent);
        self.sent_bytes = 0;
        if tags.len() != sent.len() {
            return Err(PostgresError::Moving("the target did not answer every change".to_owned()));
        }
        for (Sent { table, what }, tag) in sent.iter().zip(&tags) {
            match touched(tag) {
                1 => {}
                0 if *what == What::Delete => {}
                rows => {
                    let Table { schema, name, .. } = &**table;
                    return Err(PostgresError::Moving(format!(
                        "a change of one row of {schema}.{name} on the source found {rows} on the target ({tag})"
                    )));
                }
            }
        }
        Ok(())
    }

    async fn begin(&mut self) -> Result<(), PostgresError> {
        if self.rows.is_none() {
            self.connection.ask(&fenced(&self.movement)).await?;
            self.rows = Some(0);
        }
        Ok(())
    }

    /// Commit what was done, if something was, and with it that everything of the source up to `position` is there.
    pub async fn commit(&mut self, position: Lsn) -> Result<(), PostgresError> {
        if self.rows.is_none() {
            return Ok(());
        }
        self.settle().await?;
        let (schema, attempt) = (schema_name(self.movement.operation), self.movement.attempt);
        let advance = format!("UPDATE {schema}.attempt SET position = '{position}' WHERE number = {attempt}");
        if self.connection.ask(&advance).await?.tag != "UPDATE 1" {
            return Err(superseded());
        }
        commit(&mut self.connection).await?;
        self.rows = None;
        Ok(())
    }
}

/// A session on the target in which triggers and foreign keys don't act: what they did on the source comes by itself.
pub async fn writer(target: &Server, movement: &Movement) -> Result<Connection, PostgresError> {
    let name = format!("{}{}", session_prefix(movement.operation), movement.attempt);
    let mut connection = session(target, &name).await?;
    connection.ask("SET session_replication_role = replica").await?;
    Ok(connection)
}

/// Begin a transaction on the target, which fails unless the attempt is the one that goes on. Whoever ends the attempt waits for it.
pub fn fenced(movement: &Movement) -> String {
    fenced_as(movement.operation, movement.attempt.into())
}

/// The same for whoever else has his number in that table.
pub fn fenced_as(operation: u64, number: i64) -> String {
    let schema = schema_name(operation);
    // The server itself refuses what follows: a division by zero where there is no such row.
    format!(
        "BEGIN; SELECT 1 / count(*) FROM (SELECT 1 FROM {schema}.attempt WHERE number = {number} FOR SHARE) AS held"
    )
}

pub async fn commit(connection: &mut Connection) -> Result<(), PostgresError> {
    match connection.ask("COMMIT").await?.tag.as_str() {
        "COMMIT" => Ok(()),
        other => Err(PostgresError::Moving(format!("the target answered COMMIT with {other}"))),
    }
}

fn superseded() -> PostgresError {
    PostgresError::Moving("another attempt has taken the place of this one".to_owned())
}

fn gone() -> PostgresError {
    PostgresError::Moving("a change came before its table".to_owned())
}

/// The number at the end of a tag.
fn touched(tag: &str) -> u64 {
    tag.rsplit(' ').next().and_then(|rows| rows.parse().ok()).unwrap_or_default()
}

fn known(table: &Table, value: Value) -> Result<Option<Bytes>, PostgresError> {
    match value {
        Value::Null => Ok(None),
        Value::Text(text) => Ok(Some(text)),
        Value::Unchanged => Err(PostgresError::Moving(format!(
            "a row of {}.{} came into the moving partitions without its large values; set REPLICA IDENTITY FULL for the table \
             while it moves, or change no shard keys",
            table.schema, table.name
        ))),
    }
}

impl Shape {
    fn new(table: Arc<Table>, found_by: Vec<usize>) -> Shape {
        let all: Vec<String> = (1..=table.columns.len()).map(|number| format!("${number}")).collect();
        let insert = format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
            table.quoted(),
            table.list(),
            all.join(", ")
        );
        let mut shape = Shape {
            insert: Statement::new(insert, Vec::new()),
            delete: Statement::new(String::new(), Vec::new()),
            updates: HashMap::new(),
            table,
            found_by,
        };
        let delete = format!("DELETE FROM ONLY {} WHERE {}", shape.table.quoted(), shape.one(1));
        shape.delete = Statement::new(delete, Vec::new());
        shape
    }

    /// The condition of the one row, whose identity is in parameters from this number on.
    fn one(&self, mut number: usize) -> String {
        let mut condition = String::new();
        let Table { columns, key, .. } = &*self.table;
        let all: Vec<usize> = (0..columns.len()).collect();
        let by = if self.found_by.is_empty() { &all } else { &self.found_by };
        for at in by {
            let (name, column) = (self.table.column(*at), &columns[*at]);
            let and = if condition.is_empty() { "" } else { " AND " };
            let is_key = key.is_some_and(|(key, _)| key == *at);
            // An index can help with the first kind. The second finds equal rows of any type: there are some without an equality, and some whose
            // equality is not sameness.
            let _ = match column.comparable && (is_key || !self.found_by.is_empty()) {
                true => write!(condition, "{and}{name} = ${number}"),
                false => write!(condition, "{and}{name}::text IS NOT DISTINCT FROM ${number}::{}::text", column.kind),
            };
            number += 1;
        }
        match self.found_by.is_empty() {
            // There may be several such rows: one of them, whichever.
            true => format!("ctid = (SELECT ctid FROM ONLY {} WHERE {condition} LIMIT 1)", self.table.quoted()),
            false => condition,
        }
    }

    fn update(&mut self, set: &[usize]) -> Arc<Statement> {
        if let Some(statement) = self.updates.get(set) {
            return statement.clone();
        }
        let (table, condition) = (self.table.quoted(), self.one(set.len() + 1));
        let sets = set.iter().zip(1..).map(|(at, number)| format!("{} = ${number}", self.table.column(*at)));
        let sets: Vec<String> = sets.collect();
        let text = match sets.is_empty() {
            // Nothing is left to set; the row must be there all the same.
            true => format!("SELECT 1 FROM ONLY {table} WHERE {condition}"),
            false => format!("UPDATE ONLY {table} SET {} WHERE {condition}", sets.join(", ")),
        };
        let statement = Statement::new(text, Vec::new());
        if self.updates.len() >= UPDATES_MAX {
            self.updates.clear();
        }
        self.updates.insert(set.to_vec(), statement.clone());
        statement
    }

    /// What of a row it is found by.
    fn identity(&self, row: &Tuple) -> Result<Vec<Option<Bytes>>, PostgresError> {
        let Table { schema, name, columns, .. } = &*self.table;
        let odd = || PostgresError::Moving(format!("a change of {schema}.{name} does not say which row it is about"));
        let value = |at: usize| match row.get(at) {
            Some(Value::Null) => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(Value::Unchanged) | None => Err(odd()),
        };
        match self.found_by.is_empty() {
            true => (0..columns.len()).map(value).collect(),
            false => self.found_by.iter().map(|at| value(*at)).collect(),
        }
    }
}
