//! Clients that keep account while anything may happen to the cluster: sixteen that append to lists, move money between
//! accounts, insert rows that are given ids, and read.
//!
//! | workload | what a write does | what must be true |
//! | --- | --- | --- |
//! | append | adds its token to the list of an account | each account's history is linearizable ([`pleat_oracle`]) |
//! | bank | the same on two accounts, mostly of two shards, and moves an amount | in both or in none; the sum never changes |
//! | set | inserts a *fact* as one row or as three, whose ids Pleat gives | an acknowledged fact is there once and whole, any other once or not at all |
//!
//! Four in five writes have an idempotency key and are sent again, to any node, until their outcome is known; some
//! are sent once more after that. The others are sent once, and may end unknown. What is read is checked at once, the facts at the end
//! ([`Workload::check_all`]). The first thing that is wrong ends the run ([`Workload::so_far`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pleat_generate::Dice;
use pleat_oracle::{Account, BALANCE, Oracle, Seen, Token, Wrong};
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, Refused, answer};

pub const CLIENTS: usize = 16;
/// Enough that their lists stay short, few enough that clients meet.
pub const ACCOUNTS: i64 = 300;
/// How long a client waits for an answer before it asks another node.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// An acknowledged write is sent once more after so long, and how many of ten are.
const REPEATED_AFTER: Duration = Duration::from_secs(2);
const REPEATED_OF_TEN: usize = 1;
/// After these codes a write may have been done, or be done later.
const OUTCOME_UNKNOWN: [&str; 2] = ["08007", "XX000"];
/// The statement took longer than its limit.
const TIMED_OUT: &str = "57014";

const READ: &str = "SELECT id, balance, items FROM accounts";

/// Which of it clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    All,
    /// Appends, facts of one row, and reads: writes that one shard is enough for.
    OneShard,
}

/// What clients do, and what they were told.
pub struct Workload {
    mix: Mix,
    nodes: Vec<String>,
    http: reqwest::Client,
    told: Mutex<Told>,
    stop: AtomicBool,
    pub begun: Instant,
}

/// What clients were told so far.
struct Told {
    oracle: Oracle,
    facts: Vec<Fact>,
    figures: Figures,
    last_write: Instant,
    wrong: Option<Wrong>,
}

struct Fact {
    rows: u64,
    outcome: Option<bool>,
}

/// How it went, for people.
#[derive(Clone, Default)]
pub struct Figures {
    pub acknowledged: u64,
    pub refused: u64,
    pub unknown: u64,
    pub sent_again: u64,
    pub repeated: u64,
    pub reads: u64,
    pub sums: u64,
    /// The longest time in which no write at all was acknowledged, and when it began.
    pub gap: (Duration, Duration),
    /// When each acknowledged write began and ended.
    pub writes: Vec<(Duration, Duration)>,
}

/// What became of a request.
enum Outcome {
    Done(Value),
    /// It was not done, and may be tried again.
    Not,
    Unknown,
    /// This should not have been said.
    Refused(Refused),
}

/// A workload that runs.
pub struct Running {
    pub workload: Arc<Workload>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Workload {
    /// Make the tables, and let the clients begin.
    pub async fn start(cluster: &Cluster, seed: u64, mix: Mix) -> Running {
        cluster
            .query(
                "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, items TEXT NOT NULL) \
                 SHARD BY (id)",
            )
            .await;
        cluster.query("CREATE TABLE facts (id INTEGER PRIMARY KEY, fact INTEGER NOT NULL) SHARD BY (id)").await;
        let accounts: Vec<String> = (0..ACCOUNTS).map(|id| format!("({id}, {BALANCE}, '')")).collect();
        cluster.write(1, &format!("INSERT INTO accounts VALUES {}", accounts.join(", ")), "accounts").await;
        let told = Told {
            oracle: Oracle::new(0..ACCOUNTS),
            facts: Vec::new(),
            figures: Figures::default(),
            last_write: Instant::now(),
            wrong: None,
        };
        let workload = Arc::new(Workload {
            mix,
            nodes: cluster.urls(),
            http: reqwest::Client::builder().timeout(ANSWER_LIMIT).build().unwrap(),
            told: Mutex::new(told),
            stop: AtomicBool::new(false),
            begun: Instant::now(),
        });
        let clients = (0..CLIENTS).map(|number| tokio::spawn(client(workload.clone(), seed, number))).collect();
        Running { workload, clients }
    }

    /// Panics if anything was wrong so far.
    pub fn so_far(&self) {
        if let Some(wrong) = &self.told.lock().wrong {
            panic!("{wrong}");
        }
    }

    pub fn acknowledged(&self) -> u64 {
        self.told.lock().figures.acknowledged
    }

    pub fn figures(&self) -> Figures {
        self.told.lock().figures.clone()
    }

    /// Until so many more writes are acknowledged.
    pub async fn progress(&self, writes: u64) {
        let (begun, wanted) = (Instant::now(), self.acknowledged() + writes);
        while self.acknowledged() < wanted {
            self.so_far();
            assert!(begun.elapsed() < PATIENCE, "writes stand still");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn wrong(&self, what: Wrong) {
        self.told.lock().wrong.get_or_insert(what);
        self.stop.store(true, Ordering::Relaxed);
    }

    async fn ask(&self, node: usize, sql: &str, key: Option<&str>) -> Outcome {
        let mut body = json!({ "query": sql });
        if let Some(key) = key {
            body["idempotency_key"] = json!(key);
        }
        match answer(self.http.post(format!("{}/query", self.nodes[node])).json(&body).send().await).await {
            Ok(done) => Outcome::Done(done),
            Err(refused) if refused.status == 0 => Outcome::Unknown,
            Err(refused) if OUTCOME_UNKNOWN.contains(&refused.code()) => Outcome::Unknown,
            Err(refused) if refused.retryable() || refused.code() == TIMED_OUT => Outcome::Not,
            Err(refused) => Outcome::Refused(refused),
        }
    }

    /// Everything there is, once nobody writes any more: through each node, and on its own replicas.
    pub async fn check_all(&self, cluster: &Cluster) {
        for node in 0..self.nodes.len() {
            let begun = Instant::now();
            while !self.read(node, READ, None).await {
                assert!(begun.elapsed() < PATIENCE, "node-{} does not answer\n{}", node + 1, cluster.tail());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            self.so_far();
        }
        let rows = cluster.rows("SELECT id, fact FROM facts").await;
        let ids: BTreeSet<i64> = rows.iter().map(|row| row[0].as_i64().unwrap()).collect();
        assert_eq!(ids.len(), rows.len(), "an id was given twice, or a row is there twice");
        let mut found: BTreeMap<usize, u64> = BTreeMap::new();
        for row in &rows {
            *found.entry(row[1].as_u64().unwrap() as usize).or_default() += 1;
        }
        {
            let told = self.told.lock();
            for (number, fact) in told.facts.iter().enumerate() {
                let there = found.remove(&number).unwrap_or(0);
                let right = match fact.outcome {
                    Some(true) => there == fact.rows,
                    Some(false) => there == 0,
                    None => there == 0 || there == fact.rows,
                };
                assert!(right, "fact {number} has {there} of {} rows; acknowledged: {:?}", fact.rows, fact.outcome);
            }
        }
        assert!(found.is_empty(), "nobody wrote these facts: {found:?}");
        cluster.wait_for_rows(ACCOUNTS + rows.len() as i64).await;
        cluster.wait_for_each_shard("no foreign rows", |shard| shard["holds_foreign_rows"] == false).await;
        self.check_replicas(cluster).await;
    }

    /// Every node's own replicas come to what their leaders have.
    async fn check_replicas(&self, cluster: &Cluster) {
        let digests = [
            "SELECT count(*), sum(balance), sum(id * length(items)) FROM accounts",
            "SELECT count(*), sum(id % 1000003 * fact) FROM facts",
        ];
        for digest in digests {
            let right = cluster.query(digest).await["data"].clone();
            for node in 1..=self.nodes.len() as u16 {
                let begun = Instant::now();
                let body = json!({ "query": digest, "consistency": "eventual" });
                while cluster.post(node, "/query", &body).await.is_ok_and(|found| found["data"] != right) {
                    assert!(begun.elapsed() < PATIENCE, "node-{node} differs\n{}", cluster.tail());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// A read of accounts: those of `one`, or all. False: there was no answer.
    async fn read(&self, node: usize, sql: &str, only: Option<&BTreeSet<Account>>) -> bool {
        let floor = self.told.lock().oracle.begin_read();
        let rows = match self.ask(node, sql, None).await {
            Outcome::Done(found) => found["data"].as_array().cloned().unwrap_or_default(),
            Outcome::Not | Outcome::Unknown => return false,
            Outcome::Refused(refused) => {
                self.wrong(format!("{sql}: {refused:?}"));
                return false;
            }
        };
        let mut told = self.told.lock();
        told.figures.reads += 1;
        let checked = rows.iter().map(seen).collect::<Result<Vec<Seen>, Wrong>>().and_then(|seen| {
            match only {
                Some(only) if seen.iter().map(|one| one.account).collect::<BTreeSet<_>>() != *only => {
                    return Err(format!("a read of accounts {only:?} shows {seen:?}"));
                }
                Some(_) => {}
                None => told.oracle.all_there(&seen)?,
            }
            told.oracle.read(&floor, &seen)
        });
        drop(told);
        if let Err(wrong) = checked {
            self.wrong(wrong);
        }
        true
    }

    async fn sum(&self, node: usize) {
        let sql = "SELECT count(*) AS n, sum(balance) AS s FROM accounts";
        match self.ask(node, sql, None).await {
            Outcome::Done(found) if found["data"] == json!([{ "n": ACCOUNTS, "s": ACCOUNTS * BALANCE }]) => {
                self.told.lock().figures.sums += 1;
            }
            Outcome::Done(found) => self.wrong(format!("the bank has {}", found["data"])),
            Outcome::Not | Outcome::Unknown => {}
            Outcome::Refused(refused) => self.wrong(format!("{sql}: {refused:?}")),
        }
    }
}

impl Running {
    /// Stop; every client learns what became of its last write.
    pub async fn end(self) -> Arc<Workload> {
        self.workload.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        self.workload.so_far();
        self.workload
    }
}

impl Told {
    fn acknowledged(&mut self, begun: Instant, since: Instant) {
        let now = Instant::now();
        let gap = now - self.last_write;
        if gap > self.figures.gap.0 {
            self.figures.gap = (gap, self.last_write - since);
        }
        self.last_write = now;
        self.figures.acknowledged += 1;
        self.figures.writes.push((begun - since, now - since));
    }
}

/// One of those who write and read.
struct Client {
    workload: Arc<Workload>,
    dice: Dice,
    /// Acknowledged writes that are sent once more with their key, and when.
    repeated: VecDeque<(Instant, String, String, u64)>,
}

async fn client(workload: Arc<Workload>, seed: u64, number: usize) {
    let dice = Dice::of_seed(seed.wrapping_mul(CLIENTS as u64).wrapping_add(number as u64));
    let mut client = Client { workload, dice, repeated: VecDeque::new() };
    while !client.workload.stop.load(Ordering::Relaxed) {
        client.act().await;
    }
}

impl Client {
    fn node(&mut self) -> usize {
        self.dice.roll(self.workload.nodes.len())
    }

    /// Half of the time one of a few: what is stale shows only where something was written a moment ago.
    fn account(&mut self) -> Account {
        let sides = if self.dice.roll(4) == 0 { 5 } else { ACCOUNTS as usize };
        self.dice.roll(sides) as Account
    }

    async fn act(&mut self) {
        if self.repeated.front().is_some_and(|(due, ..)| *due <= Instant::now()) {
            return self.repeat().await;
        }
        match self.dice.roll(100) {
            0..35 => self.append().await,
            35..55 if self.workload.mix == Mix::All => self.transfer().await,
            35..55 => self.append().await,
            55..75 => self.state_fact().await,
            75..95 => self.read().await,
            _ => {
                let node = self.node();
                self.workload.sum(node).await;
            }
        }
    }

    async fn append(&mut self) {
        let account = self.account();
        let token = self.workload.told.lock().oracle.begin_write(vec![(account, 0)]);
        self.write_token(token, change(account, 0, token), 1).await;
    }

    async fn transfer(&mut self) {
        let (one, amount) = (self.account(), self.dice.roll(9) as i64 + 1);
        let other = (one + 1 + self.dice.roll(ACCOUNTS as usize - 1) as i64) % ACCOUNTS;
        let token = self.workload.told.lock().oracle.begin_write(vec![(one, -amount), (other, amount)]);
        let sql = format!("{}; {}", change(one, -amount, token), change(other, amount, token));
        self.write_token(token, sql, 2).await;
    }

    async fn write_token(&mut self, token: Token, sql: String, rows: u64) {
        match self.write(sql, &format!("token {token}"), rows).await {
            Some(true) => self.workload.told.lock().oracle.done(token),
            Some(false) => self.workload.told.lock().oracle.not_done(token),
            None => {}
        }
    }

    async fn state_fact(&mut self) {
        let rows = if self.workload.mix == Mix::All { [1, 1, 3][self.dice.roll(3)] } else { 1 };
        let fact = {
            let facts = &mut self.workload.told.lock().facts;
            facts.push(Fact { rows, outcome: None });
            facts.len() - 1
        };
        let values = vec![format!("({fact})"); rows as usize].join(", ");
        let outcome =
            self.write(format!("INSERT INTO facts (fact) VALUES {values}"), &format!("fact {fact}"), rows).await;
        self.workload.told.lock().facts[fact].outcome = outcome;
    }

    /// Whether it was done, if that can be known. The oracle is told right after this, before the client does anything.
    async fn write(&mut self, sql: String, key: &str, rows: u64) -> Option<bool> {
        let begun = Instant::now();
        if self.dice.roll(5) == 0 {
            let node = self.node();
            let outcome = self.workload.ask(node, &sql, None).await;
            let mut told = self.workload.told.lock();
            return match outcome {
                Outcome::Done(done) => {
                    told.acknowledged(begun, self.workload.begun);
                    drop(told);
                    self.expect(&sql, &done, rows);
                    Some(true)
                }
                Outcome::Not => {
                    told.figures.refused += 1;
                    Some(false)
                }
                Outcome::Unknown => {
                    told.figures.unknown += 1;
                    None
                }
                Outcome::Refused(refused) => {
                    drop(told);
                    self.workload.wrong(format!("{sql}: {refused:?}"));
                    None
                }
            };
        }
        let mut pause = Duration::from_millis(5);
        loop {
            let node = self.node();
            match self.workload.ask(node, &sql, Some(key)).await {
                Outcome::Done(done) => {
                    self.workload.told.lock().acknowledged(begun, self.workload.begun);
                    self.expect(&sql, &done, rows);
                    if self.dice.roll(10) < REPEATED_OF_TEN {
                        self.repeated.push_back((Instant::now() + REPEATED_AFTER, sql, key.to_owned(), rows));
                    }
                    return Some(true);
                }
                Outcome::Not | Outcome::Unknown if begun.elapsed() < PATIENCE => {}
                Outcome::Not | Outcome::Unknown => {
                    self.workload.wrong(format!("what became of this is not known after {PATIENCE:?}: {sql}"));
                    return None;
                }
                Outcome::Refused(refused) => {
                    self.workload.wrong(format!("{sql} with its key '{key}': {refused:?}"));
                    return None;
                }
            }
            self.workload.told.lock().figures.sent_again += 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    fn expect(&self, sql: &str, done: &Value, rows: u64) {
        if done["rows_affected"] != rows {
            self.workload.wrong(format!("{sql}: {done}"));
        }
    }

    /// It is answered as it was, wherever its rows are now, and not done again.
    async fn repeat(&mut self) {
        let Some((_, sql, key, rows)) = self.repeated.pop_front() else { return };
        let node = self.node();
        match self.workload.ask(node, &sql, Some(&key)).await {
            Outcome::Done(done) => {
                self.expect(&sql, &done, rows);
                self.workload.told.lock().figures.repeated += 1;
            }
            Outcome::Not | Outcome::Unknown => {}
            Outcome::Refused(refused) => {
                self.workload.wrong(format!("{sql} once more with its key '{key}': {refused:?}"))
            }
        }
    }

    async fn read(&mut self) {
        let accounts: BTreeSet<Account> = (0..=self.dice.roll(4)).map(|_| self.account()).collect();
        let list: Vec<String> = accounts.iter().map(ToString::to_string).collect();
        let node = self.node();
        let sql = format!("{READ} WHERE id IN ({})", list.join(", "));
        if !self.workload.read(node, &sql, Some(&accounts)).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn change(account: Account, amount: i64, token: Token) -> String {
    format!("UPDATE accounts SET balance = balance + ({amount}), items = items || '{token},' WHERE id = {account}")
}

fn seen(row: &Value) -> Result<Seen, Wrong> {
    let list = row["items"].as_str().unwrap_or("?").split_terminator(',').map(str::parse);
    match (row["id"].as_i64(), row["balance"].as_i64(), list.collect::<Result<Vec<Token>, _>>()) {
        (Some(account), Some(balance), Ok(list)) => Ok(Seen { account, balance, list }),
        _ => Err(format!("an account is read as {row}")),
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let operations = self.acknowledged + self.refused + self.unknown + self.repeated + self.reads + self.sums;
        let slowest = self.writes.iter().map(|(begun, ended)| *ended - *begun).max().unwrap_or_default();
        write!(
            f,
            "{operations} operations: {} writes acknowledged, {} refused, {} unknown, {} requests sent again, {} \
             repeated; {} reads and {} sums. Longest time without any write: {:.2} s; slowest write: {:.2} s",
            self.acknowledged,
            self.refused,
            self.unknown,
            self.sent_again,
            self.repeated,
            self.reads,
            self.sums,
            self.gap.0.as_secs_f64(),
            slowest.as_secs_f64()
        )
    }
}
