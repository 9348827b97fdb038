//! Writes over two shards, with a process killed at every step of them ([`pleat_host::failpoint`]): the coordinator, the
//! leader of each shard, the leader of the control group, and whoever recovers. Each time
//!
//! - within 10 s of the kill no transaction is in doubt, as a node that lives sees it;
//! - the write is there wholly or not at all, as its client was told, and sent again under its key it is there once;
//! - every sum over the bank that is read meanwhile is right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pleat_host::failpoint::PLACES;
use serde_json::{Value, json};

use crate::harness::{Cluster, Options, PATIENCE, Refused, answer};

/// How soon after a kill nothing may be in doubt any more.
const RESOLVED_WITHIN: Duration = Duration::from_secs(10);
/// How soon a process dies that passes the place where it is to. (Recovery has 2 s of patience, forgetting half of one.)
const DIES_WITHIN: Duration = Duration::from_secs(15);
/// How often a case is tried: leaders may change by themselves on a busy machine, and then nobody dies.
const TRIES_MAX: u32 = 5;
const ACCOUNTS: usize = 240;
const ROWS: i64 = 20;

/// Whose process dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Coordinator,
    /// The leader of one of the two shards.
    Leader(usize),
    Control,
    /// The leader of a shard that finds what the coordinator left when it died at this place.
    Recovery(usize, &'static str),
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ask {
    /// One request that takes from an account on one shard and gives to one on the other.
    Transfer,
    /// The same, of more than there is.
    Overdraft,
    /// The same as `Transfer`, in a session.
    Commit,
    /// A session's transaction on the first shard alone.
    CommitOnOne,
    /// Rows that are given ids, on both shards.
    Insert,
    /// The same as `Transfer`, with a statement that reads what it wrote and one that writes to a reference table: they go one
    /// after the other, in a transaction of their own.
    Steps,
}

struct Case {
    place: &'static str,
    /// On behalf of one of the shards.
    shard: Option<usize>,
    role: Role,
    ask: Ask,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Done,
    /// It was not done, for this reason.
    Not(String),
    Nothing,
}

impl Told {
    fn of(answer: &Result<Value, Refused>) -> Self {
        match answer {
            Ok(_) => Told::Done,
            Err(refused) if refused.status == 0 || refused.code() == "08007" => Told::Nothing,
            Err(refused) => Told::Not(format!("{} {}", refused.code(), refused.body["error"])),
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |place, shard, role, ask| cases.push(Case { place, shard, role, ask });
    for place in ["prepared", "decided", "before-answer", "before-forget"] {
        add(named("coordinator", place), None, Role::Coordinator, Ask::Transfer);
    }
    for place in ["before-prepare", "after-prepare", "before-decide", "after-decide"] {
        for shard in [0, 1] {
            add(named("coordinator", place), Some(shard), Role::Coordinator, Ask::Transfer);
        }
    }
    for place in ["before-abort", "aborted"] {
        add(named("coordinator", place), None, Role::Coordinator, Ask::Overdraft);
    }
    for place in ["before-prepare", "applying-prepare", "prepared", "before-decide", "applying-decide", "decided"] {
        for shard in [0, 1] {
            add(named("participant", place), Some(shard), Role::Leader(shard), Ask::Transfer);
        }
    }
    for place in ["before-decision", "decided"] {
        add(named("ledger", place), None, Role::Control, Ask::Transfer);
    }
    for (shard, place, left) in [
        (0, "before-ledger", "coordinator.prepared"),
        (1, "before-ledger", "coordinator.decided"),
        (1, "decided", "coordinator.prepared"),
        (0, "decided", "coordinator.decided"),
        (0, "carried-out", "coordinator.prepared"),
        (1, "carried-out", "coordinator.decided"),
    ] {
        add(named("recovery", place), Some(shard), Role::Recovery(shard, left), Ask::Transfer);
    }
    for (place, shard, role) in [
        ("coordinator.prepared", None, Role::Coordinator),
        ("coordinator.decided", None, Role::Coordinator),
        ("coordinator.before-decide", Some(1), Role::Coordinator),
        ("participant.prepared", Some(0), Role::Leader(0)),
        ("participant.before-decide", Some(1), Role::Leader(1)),
    ] {
        add(place, shard, role, Ask::Commit);
    }
    for place in ["participant.before-write", "participant.written"] {
        add(place, Some(0), Role::Leader(0), Ask::CommitOnOne);
    }
    for (place, shard, role) in [
        ("coordinator.prepared", None, Role::Coordinator),
        ("coordinator.decided", None, Role::Coordinator),
        ("coordinator.before-decide", Some(1), Role::Coordinator),
        ("participant.applying-prepare", Some(0), Role::Leader(0)),
        ("participant.prepared", Some(1), Role::Leader(1)),
        ("participant.before-decide", Some(0), Role::Leader(0)),
        ("participant.decided", Some(1), Role::Leader(1)),
    ] {
        add(place, shard, role, Ask::Steps);
    }
    for place in ["ids.before-block", "ids.block", "ids.remembered"] {
        add(place, None, Role::Coordinator, Ask::Insert);
    }
    cases
}

fn named(prefix: &str, place: &str) -> &'static str {
    let name = format!("{prefix}.{place}");
    PLACES.iter().find(|known| **known == name).unwrap_or_else(|| panic!("there is no failpoint {name}"))
}

/// The bank, and who asks for what.
struct Bank {
    cluster: Arc<Cluster>,
    shards: [String; 2],
    /// Accounts of each shard that were not used yet.
    fresh: [Vec<i64>; 2],
    tables: u32,
    number: u32,
    /// Nodes in the order in which they died last: one that dies again soon is started again late.
    rested: [u16; 3],
}

/// A request on its way, by which it is found out whether it was done.
struct Asked {
    key: String,
    sql: String,
    accounts: [i64; 2],
    table: String,
    mark: u32,
}

impl Bank {
    async fn found() -> Self {
        let cluster = Arc::new(Cluster::start(Options { shards: 2, ..Options::default() }).await);
        cluster
            .query(
                "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER CHECK (balance >= 0), moves INTEGER) \
                 SHARD BY (id)",
            )
            .await;
        cluster.query("CREATE TABLE marks (id INTEGER PRIMARY KEY, chance) REFERENCE").await;
        let tables = cases().iter().filter(|case| case.ask == Ask::Insert).count() as u32;
        for number in 1..=tables {
            cluster
                .query(&format!("CREATE TABLE notes{number} (id INTEGER PRIMARY KEY, text TEXT) SHARD BY (id)"))
                .await;
        }
        let rows: Vec<_> = (0..ACCOUNTS).map(|id| format!("({id}, 100, 0)")).collect();
        cluster.write(1, &format!("INSERT INTO accounts VALUES {}", rows.join(", ")), "found the bank").await;
        let shards = ["shard-1".to_owned(), "shard-2".to_owned()];
        let mut fresh = [Vec::new(), Vec::new()];
        for id in 0..ACCOUNTS as i64 {
            let found = cluster.query(&format!("SELECT 1 FROM accounts WHERE id = {id}")).await;
            let shard = shards.iter().position(|shard| found["shard"] == shard.as_str()).unwrap();
            fresh[shard].push(id);
        }
        Self { cluster, shards, fresh, tables, number: 0, rested: [1, 2, 3] }
    }

    /// What is asked next.
    fn ask(&mut self, ask: Ask) -> Asked {
        self.number += 1;
        let accounts = [self.fresh[0].pop().unwrap(), self.fresh[1].pop().unwrap()];
        let amount = if ask == Ask::Overdraft { 101 } else { 1 };
        let change = |sign, id| {
            format!("UPDATE accounts SET balance = balance {sign} {amount}, moves = moves + 1 WHERE id = {id}")
        };
        let mut table = String::new();
        let sql = match ask {
            Ask::Insert => {
                table = format!("notes{}", self.tables);
                self.tables = self.tables.saturating_sub(1).max(1);
                let rows: Vec<_> = (0..ROWS).map(|row| format!("('note {row}')")).collect();
                format!("INSERT INTO {table} (text) VALUES {}", rows.join(", "))
            }
            // Within the shard: the sum stays.
            Ask::CommitOnOne => format!("{}; {}", change("-", accounts[0]), change("+", accounts[0])),
            Ask::Steps => format!(
                "{}; {}; UPDATE accounts SET moves = moves + (SELECT count(*) FROM accounts WHERE balance < 0) WHERE id IN ({}, {}); \
                 INSERT INTO marks VALUES ({}, random())",
                change("+", accounts[0]),
                change("-", accounts[1]),
                accounts[0],
                accounts[1],
                self.number
            ),
            // The one that fails is on the second shard.
            _ => format!("{}; {}", change("+", accounts[0]), change("-", accounts[1])),
        };
        Asked { key: format!("ask {}", self.number), sql, accounts, table, mark: self.number }
    }

    /// How often the request was done; half of it is a failure.
    async fn done(&self, ask: Ask, asked: &Asked) -> i64 {
        let [one, other] = asked.accounts;
        let sql = match ask {
            Ask::Insert => format!("SELECT count(*) AS rows, count(DISTINCT id) AS ids FROM {}", asked.table),
            _ => format!("SELECT id, balance, moves FROM accounts WHERE id IN ({one}, {other})"),
        };
        let found = self.read(&sql).await;
        if ask == Ask::Insert {
            assert_eq!(found[0]["rows"], found[0]["ids"]);
            let rows = found[0]["rows"].as_i64().unwrap();
            assert_eq!(rows % ROWS, 0, "half of the rows\n{}", self.cluster.tail());
            return rows / ROWS;
        }
        let of = |id: i64| {
            let row = found.as_array().unwrap().iter().find(|row| row["id"] == id).unwrap();
            (row["balance"].as_i64().unwrap(), row["moves"].as_i64().unwrap())
        };
        let ((balance, moves), (other_balance, other_moves)) = (of(one), of(other));
        if ask == Ask::CommitOnOne {
            assert_eq!((balance, moves % 2, other_balance), (100, 0, 100));
            return moves / 2;
        }
        assert_eq!(
            (balance, other_balance, moves),
            (100 + moves, 100 - moves, other_moves),
            "half of a transfer\n{}",
            self.cluster.tail()
        );
        if ask == Ask::Steps {
            let mark = |shard| format!("/* pleat: shard={shard} */ SELECT chance FROM marks WHERE id = {}", asked.mark);
            let copies = [self.read(&mark(1)).await, self.read(&mark(2)).await];
            assert_eq!(copies[0], copies[1], "copies of a reference table differ\n{}", self.cluster.tail());
            assert_eq!(copies[0].as_array().map(Vec::len), Some(moves as usize), "half of it\n{}", self.cluster.tail());
        }
        moves
    }

    /// The rows of a query, as soon as it is answered.
    async fn read(&self, sql: &str) -> Value {
        let begun = Instant::now();
        loop {
            match self.cluster.try_query(sql).await {
                Ok(found) => return found["data"].clone(),
                Err(refused) => assert!(refused.retryable() && begun.elapsed() < PATIENCE, "{refused:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends the request to a node.
    async fn send(&self, node: u16, ask: Ask, asked: &Asked) -> Result<Value, Refused> {
        if !matches!(ask, Ask::Commit | Ask::CommitOnOne) {
            return self
                .cluster
                .post(node, "/query", &json!({ "query": asked.sql, "idempotency_key": asked.key }))
                .await;
        }
        let opened = self.cluster.post(node, "/sessions", &json!({})).await?;
        let path = format!("/sessions/{}/query", opened["session"].as_str().unwrap());
        for statement in ["BEGIN"].into_iter().chain(asked.sql.split("; ")) {
            self.cluster.post(node, &path, &json!({ "query": statement })).await?;
        }
        self.cluster.post(node, &path, &json!({ "query": "COMMIT" })).await
    }

    /// Until no transaction is in doubt, and stays so, as nodes other than the dead one see it. When that was.
    async fn resolved(&self, dead: u16) -> Instant {
        let begun = Instant::now();
        let mut since = None;
        loop {
            for node in (1..=3).filter(|node| *node != dead) {
                let asking = self.cluster.http.get(format!("{}/txns", self.cluster.url(node))).send();
                let found = match tokio::time::timeout(Duration::from_secs(3), asking).await {
                    Ok(sent) => answer(sent).await.ok(),
                    Err(_) => None,
                };
                let clear = found.is_some_and(|found| found["in_doubt"].as_array().is_some_and(Vec::is_empty));
                since = clear.then(|| since.unwrap_or_else(Instant::now));
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            // A message that the dead one had sent may still arrive.
            match since {
                Some(since) if since.elapsed() > Duration::from_millis(200) => return since,
                _ => assert!(begun.elapsed() < PATIENCE, "transactions stay in doubt\n{}", self.cluster.tail()),
            }
        }
    }

    /// One case: who coordinates and who dies, if anybody did.
    async fn attempt(&mut self, case: &Case) -> Option<Outcome> {
        let cluster = self.cluster.clone();
        let leaders = [cluster.leader(Some(&self.shards[0])).await, cluster.leader(Some(&self.shards[1])).await];
        let control = cluster.leader(None).await;
        let other = |dies: u16| self.rested.into_iter().find(|node| *node != dies);
        // A coordinator may lead shards as well, and does in every third case.
        let (coordinator, victim) = match case.role {
            Role::Coordinator => (self.rested[0], self.rested[0]),
            Role::Leader(shard) | Role::Recovery(shard, _) => (other(leaders[shard])?, leaders[shard]),
            Role::Control => (other(control)?, control),
        };
        let place = match case.shard {
            Some(shard) => format!("{}@{}", case.place, self.shards[shard]),
            None => case.place.to_owned(),
        };
        let pid = cluster.pid_of(victim)?;
        cluster.fail_at(victim, &format!("{place}=abort")).await;
        if let Role::Recovery(_, left) = case.role {
            cluster.fail_at(coordinator, &format!("{left}=abort")).await;
        }
        let asked = self.ask(case.ask);
        let client = self.send(coordinator, case.ask, &asked);
        let dying = async {
            let begun = Instant::now();
            while std::path::Path::new(&format!("/proc/{pid}")).exists() {
                if begun.elapsed() > DIES_WITHIN {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let died = Instant::now();
            Some((died, self.resolved(victim).await))
        };
        let (told, died) = futures::join!(client, dying);
        let Some((died, resolved)) = died else {
            println!("{place} on node-{victim}: nobody died; the client got {told:?}");
            // Whoever left something to recover has died all the same.
            cluster.wait_for_node(coordinator).await;
            cluster.fail_at(victim, &format!("{place}=off")).await;
            return None;
        };
        let told = Told::of(&told);
        let doubt = resolved.saturating_duration_since(died);
        let done = self.done(case.ask, &asked).await;
        let right = match &told {
            Told::Done => done == 1,
            Told::Not(_) => done == 0,
            Told::Nothing => done <= 1,
        };
        assert!(right, "{place}: done {done} times, and the client was told {told:?}\n{}", cluster.tail());
        self.repeat(case.ask, &asked, coordinator, done).await;
        let died = if matches!(case.role, Role::Recovery(..)) { vec![coordinator, victim] } else { vec![victim] };
        for node in died {
            cluster.wait_for_node(node).await;
            self.rested.sort_by_key(|other| *other == node);
        }
        let nodes =
            format!("node-{victim} dies, node-{coordinator} coordinates, leaders {leaders:?}, control {control}");
        Some(Outcome { place, nodes, told, done, doubt })
    }

    /// The client repeats its request under its key.
    async fn repeat(&self, ask: Ask, asked: &Asked, node: u16, done: i64) {
        match ask {
            // A transaction is begun anew, if at all.
            Ask::Commit | Ask::CommitOnOne => {}
            Ask::Overdraft => {
                assert_eq!(done, 0);
                let begun = Instant::now();
                let refused = loop {
                    match self.send(node % 3 + 1, ask, asked).await {
                        Err(refused) if refused.retryable() && begun.elapsed() < PATIENCE => {}
                        other => break other.unwrap_err(),
                    }
                };
                assert_eq!(refused.code(), "23514");
            }
            Ask::Transfer | Ask::Insert | Ask::Steps => {
                self.cluster.write(node % 3 + 1, &asked.sql, &asked.key).await;
                assert_eq!(self.done(ask, asked).await, 1, "sent again under its key\n{}", self.cluster.tail());
            }
        }
    }
}

struct Outcome {
    place: String,
    nodes: String,
    told: Told,
    done: i64,
    doubt: Duration,
}

/// Sums the bank up again and again, on all nodes in turn.
async fn looks(cluster: Arc<Cluster>, stop: Arc<AtomicBool>, sums: Arc<AtomicU64>) {
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let query = json!({ "query": "SELECT count(*) AS n, sum(balance) AS s FROM accounts" });
        match cluster.post(turn % 3 + 1, "/query", &query).await {
            Ok(found) => {
                assert_eq!(found["data"], json!([{ "n": ACCOUNTS, "s": 100 * ACCOUNTS }]), "half a transfer was seen");
                sums.fetch_add(1, Ordering::Relaxed);
            }
            Err(refused) => assert!(refused.retryable(), "{refused:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_killed_at_every_step_is_resolved_within_10_s_and_never_partial() {
    let all = cases();
    let met: BTreeSet<&str> = all.iter().map(|case| case.place).collect();
    let missed: Vec<_> = PLACES.iter().filter(|place| !met.contains(**place)).collect();
    assert!(missed.is_empty(), "nobody dies at {missed:?}");

    let mut bank = Bank::found().await;
    let (stop, sums) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let looking = tokio::spawn(looks(bank.cluster.clone(), stop.clone(), sums.clone()));
    let (begun, mut worst, mut moved) = (Instant::now(), Duration::ZERO, 0);
    for case in &all {
        let (started, mut tries) = (Instant::now(), 0);
        let outcome = loop {
            tries += 1;
            if let Some(outcome) = bank.attempt(case).await {
                break outcome;
            }
            assert!(tries < TRIES_MAX, "nobody dies at {}\n{}", case.place, bank.cluster.tail());
        };
        println!(
            "{:38} {:12} {:>5.2} s in doubt, told {:?}, done {}; {}; {:.1} s in all",
            outcome.place,
            format!("{:?}", case.ask),
            outcome.doubt.as_secs_f64(),
            outcome.told,
            outcome.done,
            outcome.nodes,
            started.elapsed().as_secs_f64(),
        );
        assert!(outcome.doubt <= RESOLVED_WITHIN, "{}: {:?} in doubt", outcome.place, outcome.doubt);
        worst = worst.max(outcome.doubt);
        moved += u32::from(case.ask == Ask::Transfer);
        assert!(!looking.is_finished(), "a sum was wrong");
    }
    stop.store(true, Ordering::Relaxed);
    looking.await.unwrap();
    println!(
        "{} kills in {:.0} s; in doubt for {:.2} s at most; {} sums meanwhile",
        all.len(),
        begun.elapsed().as_secs_f64(),
        worst.as_secs_f64(),
        sums.load(Ordering::Relaxed)
    );
    let cluster = &bank.cluster;
    let found = cluster
        .query(
            "SELECT sum(balance) AS s, sum(moves) >= 2 * :moved AS m FROM accounts"
                .replace(":moved", &moved.to_string())
                .as_str(),
        )
        .await;
    assert_eq!(found["data"], json!([{ "s": 100 * ACCOUNTS, "m": 1 }]));
    // Every replica comes to the same.
    let digest = "SELECT count(*), sum(id * balance), sum(id * moves) FROM accounts";
    let right = cluster.query(digest).await["data"].clone();
    for node in 1..=3 {
        let begun = Instant::now();
        let body = json!({ "query": digest, "consistency": "eventual" });
        while cluster.post(node, "/query", &body).await.is_ok_and(|found| found["data"] != right) {
            assert!(begun.elapsed() < PATIENCE, "node-{node} differs\n{}", cluster.tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
