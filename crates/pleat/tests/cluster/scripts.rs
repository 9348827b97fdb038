//! Scripts in sqllogictest's form (`scripts/*.slt`), for every class of statements. Each is run on one shard, on three, and
//! while partitions move, and must give the same every time. What it must give is no opinion: the scripts are run by plain
//! SQLite, too, where only what SQLite does not know is skipped (`skipif sqlite`). `BLESS_SCRIPTS=1` writes SQLite's
//! answers into them anew.
//!
//! How values are shown: text as it is, in quotes where it could be taken for something else (a number, NULL, spaces that
//! matter); blobs as `x'00ff'`; NULL as `NULL`. Errors are compared by SQLSTATE, transactions that lose against a move are
//! begun again, and what is done again must give what it gave.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use pleat_cluster::Value;
use sqllogictest::{AsyncDB, DB, DBOutput, DefaultColumnType, Runner};

use crate::client::{Client, Done, Refused};
use crate::moving::{InProcess, Moves};
use crate::sqlite::{Failure, Sqlite};

/// Scripts that run side by side on one cluster. Each has tables of its own.
const SIDE_BY_SIDE: usize = 3;
/// How often a transaction is begun again at most.
const BEGUN_MAX: u32 = 60;
const RECORDS_MIN: usize = 800;

fn scripts() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/scripts");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end == "slt")).collect();
    let only = std::env::var("PLEAT_SCRIPT").unwrap_or_default();
    scripts.retain(|file| file.to_string_lossy().contains(&only));
    scripts.sort();
    scripts
}

#[tokio::test]
async fn scripts_say_what_sqlite_does() {
    let mut records = 0;
    for script in scripts() {
        if std::env::var("BLESS_SCRIPTS").is_ok() {
            let (rows, words) = (sqllogictest::default_validator, sqllogictest::default_normalizer);
            plain().update_test_file(&script, " ", rows, words, |actual, expected| actual == expected).await.unwrap();
        }
        let parsed = sqllogictest::parse_file::<DefaultColumnType>(&script).unwrap();
        records += parsed.iter().filter(|record| is_statement(record)).count();
        plain().run_file_async(&script).await.unwrap_or_else(|error| panic!("SQLite: {}", error.display(false)));
    }
    println!("{records} records");
    assert!(std::env::var("PLEAT_SCRIPT").is_ok() || records >= RECORDS_MIN, "only {records} records");
}

/// Plain SQLite, empty.
fn plain() -> Runner<Sqlite, impl sqllogictest::MakeConnection<Conn = Sqlite>> {
    let database = Sqlite::new();
    let mut runner = Runner::new(move || std::future::ready(Ok(database.clone())));
    runner.with_column_validator(same_types);
    runner
}

fn is_statement(record: &sqllogictest::Record<DefaultColumnType>) -> bool {
    use sqllogictest::Record::{Query, Statement};
    matches!(record, Statement { .. } | Query { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_on_one_shard() {
    run_all(InProcess::start(1, 3).await, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_on_three_shards() {
    run_all(InProcess::start(3, 3).await, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_during_moves() {
    run_all(InProcess::start(1, 3).await, true).await;
}

async fn run_all(cluster: InProcess, moving: bool) {
    let moves = moving.then(|| Arc::new(cluster.keep_moving(3, 1)));
    let urls = cluster.urls();
    let running = futures::stream::iter(scripts()).map(|script| run(script, urls.clone(), moves.clone()));
    let tallies: Vec<Tally> = running.buffer_unordered(SIDE_BY_SIDE).collect().await;
    let problems: Vec<&String> = tallies.iter().flat_map(|tally| &tally.problems).collect();
    assert!(
        problems.is_empty(),
        "{} problems\n{}",
        problems.len(),
        problems.iter().map(|problem| problem.as_str()).collect::<Vec<_>>().join("\n")
    );
    if let Some(moves) = moves {
        let sum = |what: fn(&Tally) -> u64| tallies.iter().map(what).sum::<u64>();
        let (all, beside, over) = (sum(|tally| tally.all), sum(|tally| tally.beside), sum(|tally| tally.over));
        let moved = Arc::into_inner(moves).expect("all scripts have ended").stop().await;
        println!("{moved}; of {all} statements {beside} ran beside one, {over} saw a hand-over");
        assert!(beside * 2 > all, "only {beside} of {all} statements ran beside a move");
    }
    cluster.stop().await;
}

/// Statements, those with a move going on, and those that saw partitions get another owner.
#[derive(Debug, Default)]
struct Tally {
    all: u64,
    beside: u64,
    over: u64,
    problems: Vec<String>,
}

async fn run(script: PathBuf, urls: Vec<String>, moves: Option<Arc<Moves>>) -> Tally {
    let name = script.file_stem().unwrap().to_string_lossy().into_owned();
    let tally = Arc::new(parking_lot::Mutex::new(Tally::default()));
    let connect = async || {
        let client = Client::new(&format!("{name}-{}", uuid::Uuid::new_v4()), urls.clone());
        let (moves, tally) = (moves.clone(), tally.clone());
        Ok(Connection { client, session: None, said: Vec::new(), moves, tally })
    };
    let mut runner = Runner::new(connect);
    runner.with_column_validator(same_types);
    for record in sqllogictest::parse_file(&script).unwrap() {
        if let Err(error) = runner.run_async(record).await {
            tally.lock().problems.push(error.display(false).to_string());
        }
    }
    drop(runner);
    std::mem::take(&mut *tally.lock())
}

/// A connection to Pleat: requests by themselves until it needs a session.
struct Connection {
    client: Client,
    session: Option<String>,
    /// What was said since BEGIN, and what came of it.
    said: Vec<(String, Result<Done, String>)>,
    moves: Option<Arc<Moves>>,
    tally: Arc<parking_lot::Mutex<Tally>>,
}

impl Connection {
    async fn say(&mut self, sql: &str) -> Result<Done, Refused> {
        let word = sql.trim_start().split(|char: char| !char.is_alphabetic()).next().unwrap_or_default();
        let mut word = word.to_ascii_uppercase();
        if self.session.is_none() && (word == "BEGIN" || sql.contains("last_insert_rowid()")) {
            self.session = Some(self.client.session().await);
        }
        // A script that begins and ends a transaction stands by itself.
        if sql.contains(';') {
            word.clear();
        }
        let Some(session) = self.session.clone() else { return self.client.run(sql, &[]).await };
        let mut begun = 0;
        loop {
            let done = self.client.run_in(&session, sql).await;
            if done.as_ref().is_err_and(Refused::lost) && begun < BEGUN_MAX {
                begun += 1;
                // COMMIT ends what it refuses, and it may have been a statement by itself.
                let _ = self.client.run_in(&session, "ROLLBACK").await;
                self.say_again(&session).await;
                continue;
            }
            if word == "BEGIN" || !self.said.is_empty() {
                self.said.push((sql.to_owned(), done.clone().map_err(|refused| refused.code)));
            }
            let ends = ["COMMIT", "END"].contains(&word.as_str()) && done.is_ok();
            if ends || (word == "ROLLBACK" && !sql.to_ascii_uppercase().contains(" TO ")) {
                self.said.clear();
            }
            return done;
        }
    }

    /// Begins the transaction again, until it stands where it stood. What was promised must hold.
    async fn say_again(&mut self, session: &str) {
        'again: for _ in 0..BEGUN_MAX {
            for (sql, gave) in &self.said {
                // As the guide has it for shards on which others write.
                let sql = if sql == "BEGIN" { "BEGIN IMMEDIATE" } else { sql };
                let gives = self.client.run_in(session, sql).await;
                if gives.as_ref().is_err_and(Refused::lost) {
                    let _ = self.client.run_in(session, "ROLLBACK").await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue 'again;
                }
                assert_eq!(&gives.map_err(|refused| refused.code), gave, "{sql}, when done again");
            }
            return;
        }
        panic!("lost again and again: {:?}", self.said);
    }
}

#[async_trait]
impl AsyncDB for Connection {
    type Error = Refused;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Refused> {
        // Not inside of a transaction, which must not be idle.
        if let Some(moves) = self.moves.as_ref().filter(|_| self.said.is_empty()) {
            moves.one_under_way().await;
        }
        let moment = self.moves.as_ref().map(|moves| moves.now());
        let done = self.say(sql).await;
        let mut tally = self.tally.lock();
        tally.all += 1;
        if let (Some(moves), Some(moment)) = (&self.moves, moment) {
            tally.beside += u64::from(moves.went_on(&moment));
            tally.over += u64::from(moves.handed_over(&moment));
        }
        done.map(output)
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "pleat"
    }
}

impl DB for Sqlite {
    type Error = Failure;
    type ColumnType = DefaultColumnType;

    fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failure> {
        Sqlite::run(self, sql, &[]).map(output)
    }

    fn engine_name(&self) -> &str {
        "sqlite"
    }
}

fn output(done: Done) -> DBOutput<DefaultColumnType> {
    if done.answer.columns.is_empty() {
        return DBOutput::StatementComplete(done.rows_affected);
    }
    let types = (0..done.answer.columns.len()).map(|at| type_of(done.answer.rows.iter().map(|row| &row[at]))).collect();
    let rows = done.answer.rows.iter().map(|row| row.iter().map(shown).collect()).collect();
    DBOutput::Rows { types, rows }
}

/// The type that all values of a column have.
fn type_of<'v>(values: impl Iterator<Item = &'v Value>) -> DefaultColumnType {
    let mut types = values.filter_map(|value| match value {
        Value::Null => None,
        Value::Integer(_) => Some(DefaultColumnType::Integer),
        Value::Real(_) => Some(DefaultColumnType::FloatingPoint),
        Value::Text(_) => Some(DefaultColumnType::Text),
        Value::Blob(_) => Some(DefaultColumnType::Any),
    });
    let first = types.next().unwrap_or(DefaultColumnType::Any);
    if types.all(|other| other == first) { first } else { DefaultColumnType::Any }
}

/// `?` stands for any.
#[allow(clippy::ptr_arg)] // sqllogictest's own type
fn same_types(actual: &Vec<DefaultColumnType>, expected: &Vec<DefaultColumnType>) -> bool {
    let fits = |(actual, expected): (&DefaultColumnType, &DefaultColumnType)| {
        *expected == DefaultColumnType::Any || actual == expected
    };
    actual.len() == expected.len() && actual.iter().zip(expected).all(fits)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(integer) => integer.to_string(),
        Value::Real(real) => format!("{real:?}"),
        Value::Text(text) => {
            let ambiguous = text.is_empty()
                || text.parse::<f64>().is_ok()
                || ["NULL", "x'", "'"].iter().any(|begin| text.starts_with(begin))
                || text.split(' ').any(str::is_empty)
                || text.contains(['\n', '\t']);
            if ambiguous {
                format!("'{}'", text.replace(' ', "␠").replace('\n', "␤").replace('\t', "␉"))
            } else {
                text.clone()
            }
        }
        Value::Blob(bytes) => format!("x'{}'", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}
