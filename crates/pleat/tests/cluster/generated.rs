//! Generated statements, reads and writes mixed, while one shard becomes three and partitions move between these three all the
//! time. Each is also carried out by one SQLite database, and must give the same: rows, rows affected, kind of error; or be
//! refused with `0A000`. The contents of all tables are compared as well, now and then.
//!
//! Transactions run in sessions. When one loses against a move it is begun again, here and there, as the guide says.
//!
//! `PLEAT_STATEMENTS=50000` runs more of them, `PLEAT_SEED=7` others, `PLEAT_REPLICAS=3` on replicated shards (which take three
//! times as long).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pleat_cluster::Value;
use pleat_generate::answer::{compare, is_ordered, normalize, same};
use pleat_generate::writes::{Writes, parameters};
use pleat_generate::{Answer, Dice, WRITTEN, joins, reads};

use crate::client::{Client, Done, Refused};
use crate::moving::{InProcess, Moves};
use crate::sqlite::{Failure, Sqlite};

const STATEMENTS: u64 = 5_000;
const SHARDS: usize = 3;
const REFUSED_MAX: f64 = 0.05;
/// How often the contents of all tables are compared, in statements.
const CONTENTS_EVERY: u64 = 100;
/// How often a transaction is begun again at most.
const BEGUN_MAX: u32 = 60;

/// Each table, and which of its rows go when they are too many.
const TABLES: [(&str, &str); 6] = [
    ("t", "id % 3 <> 1"),
    ("u", "id % 3 <> 1"),
    ("s", "length(w) > 3"),
    ("h", "id % 3 <> 1"),
    ("r", "id % 3 <> 1"),
    ("one", "id % 3 <> 1"),
];
/// The most rows of a table: joins of three are to stay small.
const ROWS_MAX: usize = 80;

/// How a statement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ended {
    Done,
    /// On both sides, for the same kind of reason.
    Failed,
    /// With 0A000.
    Refused,
    /// A sum overflows on the way or not, by the order of the rows: nobody is wrong.
    Undetermined,
}

struct Test {
    client: Client,
    sqlite: Sqlite,
    moves: Moves,
    seed: u64,
    statements: u64,
    ended: BTreeMap<(&'static str, Ended), u64>,
    /// Statements during which a move was under way, or came to its end.
    overlapped: u64,
    handed_over: u64,
    begun_again: u64,
    /// How often, and the first statement.
    refusals: BTreeMap<String, (u64, String)>,
}

fn from_environment(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|given| given.parse().ok()).unwrap_or(usual)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_statements_during_moves_do_what_sqlite_does() {
    let (seed, count) = (from_environment("PLEAT_SEED", 1), from_environment("PLEAT_STATEMENTS", STATEMENTS));
    let cluster = InProcess::start(1, from_environment("PLEAT_REPLICAS", 1) as u32).await;
    let (client, sqlite) = (Client::new("generated", cluster.urls()), Sqlite::new());
    for create in WRITTEN {
        client.run(create, &[]).await.unwrap();
        sqlite.run(create, &[]).unwrap();
    }
    let moves = cluster.keep_moving(SHARDS, seed);
    let mut test = Test {
        client,
        sqlite,
        moves,
        seed,
        statements: 0,
        ended: BTreeMap::new(),
        overlapped: 0,
        handed_over: 0,
        begun_again: 0,
        refusals: BTreeMap::new(),
    };
    let begun = Instant::now();
    let (mut dice, mut writes) = (Dice::of_seed(seed), Writes::of_seed(seed));
    for _ in 0..80 {
        let insert = writes.insert();
        test.write(&insert).await;
    }
    let mut compared = 0;
    while test.statements < count {
        match dice.roll(20) {
            0..=4 => test.read(&reads::query(&mut dice)).await,
            5..=7 => test.read(&joins::query(&mut dice)).await,
            8 | 9 => test.read(&keyed(&mut dice)).await,
            10..=18 => test.write(&writes.statement()).await,
            _ => test.transaction(&mut dice, &mut writes).await,
        }
        test.thin_out().await;
        if test.statements / CONTENTS_EVERY > compared {
            compared = test.statements / CONTENTS_EVERY;
            test.contents().await;
        }
    }
    test.contents().await;
    test.report(begun).await;
    cluster.stop().await;
}

/// A read of one key, with the key as a parameter.
fn keyed(dice: &mut Dice) -> String {
    let (table, key) = dice.pick(&[&("t", "k"), &("u", "k"), &("h", "id")]);
    format!("SELECT * FROM {table} WHERE {key} = {{{}}}", dice.roll(16) as i64 - 3)
}

impl Test {
    async fn read(&mut self, text: &str) {
        let (sql, values) = parameters(text);
        let moment = self.moves.now();
        let answer = self.client.run(&sql, &values).await;
        self.count_overlap(moment);
        let expected = self.sqlite.run(&sql, &values);
        let compared = judge(answer, expected, |answer, expected| {
            compare(&sql, answer.answer, expected.answer, is_ordered(&sql)).map_or(Ok(()), Err)
        });
        self.note("reads", &sql, &values, compared);
    }

    async fn write(&mut self, text: &str) {
        let (sql, values) = parameters(text);
        let before = self.ids(&sql);
        let moment = self.moves.now();
        let done = self.client.run(&sql, &values).await;
        self.count_overlap(moment);
        self.sqlite.run("SAVEPOINT statement", &[]).unwrap();
        let expected = self.sqlite.run(&sql, &values);
        let given = before.is_some();
        let compared = judge(done, expected, |done, expected| compare_effects(done, expected, given));
        if !matches!(compared, Ok((Ended::Done, _))) {
            self.sqlite.run("ROLLBACK TO statement", &[]).unwrap();
        }
        self.sqlite.run("RELEASE statement", &[]).unwrap();
        self.note("writes", &sql, &values, compared);
        if let Some(before) = before {
            self.adopt(&sql, before).await;
        }
    }

    /// The ids that are there before a statement that may be given some.
    fn ids(&self, sql: &str) -> Option<Vec<Value>> {
        sql.contains("INTO h ")
            .then(|| self.sqlite_rows("SELECT id FROM h ORDER BY id").into_iter().flatten().collect())
    }

    fn sqlite_rows(&self, sql: &str) -> Vec<Vec<Value>> {
        self.sqlite.run(sql, &[]).unwrap().answer.rows
    }

    async fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        self.client.run(sql, &[]).await.unwrap().answer.rows
    }

    /// Pleat's ids are not the next ones. Beside its id a new row must be what it is in SQLite, which takes the id over.
    async fn adopt(&mut self, sql: &str, before: Vec<Value>) {
        let all = "SELECT v, c, id FROM h ORDER BY v, c, id";
        let (ours, theirs) = (self.rows(all).await, self.sqlite_rows(all));
        if ours == theirs {
            return;
        }
        let new = |rows: Vec<Vec<Value>>| -> Vec<Vec<Value>> {
            rows.into_iter().filter(|row| !before.contains(&row[2])).collect()
        };
        let (ours, theirs) = (new(ours), new(theirs));
        let rest = |rows: &[Vec<Value>]| -> Vec<Vec<Value>> { rows.iter().map(|row| row[..2].to_vec()).collect() };
        assert_eq!(rest(&ours), rest(&theirs), "{}: {sql}\n  new rows of h differ", self.place());
        // By way of ids that nobody has.
        for (at, row) in theirs.iter().enumerate() {
            let values = [Value::Integer(-1_000_000 - at as i64), row[2].clone()];
            self.sqlite.run("UPDATE h SET id = ? WHERE id = ?", &values).unwrap();
        }
        for (at, row) in ours.iter().enumerate() {
            let values = [row[2].clone(), Value::Integer(-1_000_000 - at as i64)];
            self.sqlite.run("UPDATE h SET id = ? WHERE id = ?", &values).unwrap();
        }
    }

    /// Some statements in a session, from BEGIN to COMMIT or ROLLBACK.
    async fn transaction(&mut self, dice: &mut Dice, writes: &mut Writes) {
        let mut script = vec![dice.pick(&["BEGIN", "BEGIN IMMEDIATE"]).to_owned()];
        let mut savepoint = false;
        for _ in 0..2 + dice.roll(4) {
            script.push(match dice.roll(10) {
                0..=2 => reads::query(dice),
                3 if savepoint => "ROLLBACK TO here".to_owned(),
                3 => {
                    savepoint = true;
                    "SAVEPOINT here".to_owned()
                }
                _ => ordinary(writes),
            });
        }
        script.push(dice.pick(&["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"]).to_owned());
        let session = self.client.session().await;
        let mut begun = 0;
        while let Err(lost) = self.attempt(&session, &script).await {
            begun += 1;
            self.begun_again += 1;
            assert!(begun < BEGUN_MAX, "{}: {script:?} is lost again and again: {lost}", self.place());
            self.sqlite.run("ROLLBACK", &[]).unwrap();
            // COMMIT ends what it refuses.
            let ended = self.client.run_in(&session, "ROLLBACK").await;
            assert!(ended.as_ref().map_or_else(|refused| refused.code == "25P01", |_| true), "{ended:?}");
            // As the guide has it for shards on which others write.
            script[0] = "BEGIN IMMEDIATE".to_owned();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn attempt(&mut self, session: &str, script: &[String]) -> Result<(), Refused> {
        let mut notes = Vec::new();
        for sql in script {
            let moment = self.moves.now();
            let begun = Instant::now();
            let done = self.client.run_in(session, sql).await;
            self.count_overlap(moment);
            if let Err(refused) = &done
                && refused.code == "57P03"
            {
                println!("{}: {refused} after {:?}: {sql} in {script:?}", self.place(), begun.elapsed());
            }
            if let Err(refused) = &done
                && refused.lost()
            {
                return Err(refused.clone());
            }
            let control = ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT"].iter().any(|word| sql.starts_with(word));
            let is_read = !control && !sql.contains("INSERT") && !sql.contains("UPDATE") && !sql.contains("DELETE");
            let refused = done.as_ref().is_err_and(|refused| refused.code == "0A000");
            let expected = if refused { Ok(nothing()) } else { self.sqlite.run(sql, &[]) };
            let compared = judge(done, expected, |done, expected| match (control, is_read) {
                (true, _) => Ok(()),
                (_, true) => compare(sql, done.answer, expected.answer, is_ordered(sql)).map_or(Ok(()), Err),
                _ => compare_effects(done, expected, false),
            });
            notes.push((sql, compared));
        }
        for (sql, compared) in notes {
            self.note("in transactions", sql, &[], compared);
        }
        Ok(())
    }

    fn count_overlap(&mut self, moment: crate::moving::Moment) {
        self.overlapped += u64::from(self.moves.went_on(&moment));
        self.handed_over += u64::from(self.moves.handed_over(&moment));
    }

    fn place(&self) -> String {
        format!("seed {}, statement {}", self.seed, self.statements)
    }

    fn note(&mut self, class: &'static str, sql: &str, values: &[Value], compared: Result<(Ended, String), String>) {
        let (ended, why) = compared.unwrap_or_else(|what| panic!("{}: {sql} {values:?}\n  {what}", self.place()));
        if ended == Ended::Refused {
            self.refusals.entry(why).or_insert_with(|| (0, sql.to_owned())).0 += 1;
        }
        self.statements += u64::from(ended != Ended::Undetermined);
        *self.ended.entry((class, ended)).or_default() += 1;
    }

    /// Writes add more rows than they delete.
    async fn thin_out(&mut self) {
        for (table, some) in TABLES {
            if self.sqlite_rows(&format!("SELECT 1 FROM {table}")).len() > ROWS_MAX {
                self.write(&format!("DELETE FROM {table} WHERE {some}")).await;
            }
        }
    }

    async fn contents(&self) {
        for (table, _) in TABLES {
            let all = format!("SELECT * FROM {table}");
            let (mut ours, mut theirs) = (self.rows(&all).await, self.sqlite_rows(&all));
            normalize(&mut ours);
            normalize(&mut theirs);
            let without = |left: &[Vec<Value>], right: &[Vec<Value>]| -> Vec<Vec<Value>> {
                left.iter().filter(|row| !right.contains(row)).take(5).cloned().collect()
            };
            assert!(
                same(&ours, &theirs),
                "{}: {table} has {:?}, not {:?}",
                self.place(),
                without(&ours, &theirs),
                without(&theirs, &ours)
            );
        }
    }

    async fn report(self, begun: Instant) {
        let all: u64 = self.ended.values().sum();
        let sum = |ended: Ended| -> u64 {
            self.ended.iter().filter(|((_, other), _)| *other == ended).map(|(_, count)| count).sum()
        };
        let moves = self.moves.stop().await;
        let share = sum(Ended::Refused) as f64 / self.statements as f64;
        println!("seed {}: {} statements in {:?}: {:?}", self.seed, self.statements, begun.elapsed(), self.ended);
        println!("{moves}; {} statements ran beside one, {} saw a hand-over", self.overlapped, self.handed_over);
        println!("{} requests were sent again, {} transactions begun again", self.client.retries(), self.begun_again);
        println!("refused {:.2} %: {:#?}", share * 100.0, self.refusals);
        assert!(share < REFUSED_MAX, "{share} of the statements were refused");
        assert!(self.overlapped * 4 > all * 3, "only {} of {all} statements ran beside a move", self.overlapped);
        assert!(sum(Ended::Failed) * 4 < all, "too many statements fail to test much");
        assert!(sum(Ended::Undetermined) * 20 < all, "too many sums overflow");
    }
}

/// A write that a transaction may do: no reference tables, no ids that Pleat gives, no parameters, one at a time.
fn ordinary(writes: &mut Writes) -> String {
    loop {
        let text = writes.statement();
        let changes_reference =
            ["INTO r ", "UPDATE r ", "UPDATE OR IGNORE r ", "UPDATE OR REPLACE r ", "DELETE FROM r "];
        let unfit = changes_reference.iter().any(|words| text.contains(words))
            || [" h ", "{", ";\n"].iter().any(|words| text.contains(words));
        if !unfit {
            return text;
        }
    }
}

fn nothing() -> Done {
    Done { answer: Answer { columns: Vec::new(), rows: Vec::new() }, rows_affected: 0 }
}

/// Holds what Pleat said against what SQLite said; `same` compares two successes.
fn judge(
    done: Result<Done, Refused>,
    expected: Result<Done, Failure>,
    same: impl FnOnce(Done, Done) -> Result<(), String>,
) -> Result<(Ended, String), String> {
    let overflows = |code: &str| code == "22003";
    match (done, expected) {
        (Ok(done), Ok(expected)) => same(done, expected).map(|()| (Ended::Done, String::new())),
        (Err(refused), _) if refused.code == "0A000" => Ok((Ended::Refused, refused.message)),
        (Err(refused), Ok(_)) if overflows(&refused.code) => Ok((Ended::Undetermined, refused.message)),
        (Ok(_), Err(failure)) if overflows(failure.code) => Ok((Ended::Undetermined, failure.message)),
        (Err(refused), Err(failure)) => same_kind(&refused, &failure).map(|()| (Ended::Failed, refused.message)),
        (Err(refused), Ok(_)) => Err(format!("failed with {refused}")),
        (Ok(done), Err(failure)) => Err(format!("done ({done:?}), but SQLite says {failure}")),
    }
}

/// Where several constraints are broken, which one is told depends on the order of the rows.
fn same_kind(refused: &Refused, failure: &Failure) -> Result<(), String> {
    let constraint = |code: &str| code.starts_with("23") || code == "42804" || code == "22P02";
    if constraint(&refused.code) == constraint(failure.code) && refused.code != "internal" {
        return Ok(());
    }
    Err(format!("failed with {refused}, but SQLite with {failure}"))
}

/// `given`: the ids of the rows were given by Pleat, and differ from SQLite's.
fn compare_effects(mut done: Done, mut expected: Done, given: bool) -> Result<(), String> {
    for effect in [&mut done, &mut expected] {
        let ids: Vec<usize> =
            (0..effect.answer.columns.len()).filter(|at| effect.answer.columns[*at] == "id").collect();
        for row in effect.answer.rows.iter_mut().filter(|_| given) {
            ids.iter().for_each(|at| row[*at] = Value::Null);
        }
        normalize(&mut effect.answer.rows);
    }
    let equal = done.rows_affected == expected.rows_affected
        && done.answer.columns == expected.answer.columns
        && same(&done.answer.rows, &expected.answer.rows);
    if equal { Ok(()) } else { Err(format!("gave {done:?}\n  expected {expected:?}")) }
}
