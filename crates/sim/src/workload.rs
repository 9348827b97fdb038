//! What clients do: deposits on one account, transfers between two, reads of one and of all; and an operator, who splits
//! and merges shards and moves partitions meanwhile.
//!
//! A client that gave its write an idempotency key sends it again, to any node, until it knows; a client without one leaves
//! it at that. Everything that is drawn comes from the seed.

use std::collections::VecDeque;
use std::time::Duration;

use pleat_cluster::{Catalog, NodeId, OperationKind, PartitionId, Shard, ShardId, ShardState, Value};
use pleat_oracle::{Account, BALANCE, Seen, Token, Wrong};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use crate::client::{self, Answer, Ask, Told};
use crate::copies;
use crate::faults::{with_busy_operator, with_schema, with_wipes};
use crate::invariants::Invariants;
use crate::node::NODES;
use crate::world::{ACCOUNTS, Phase, World};

/// Clients at work at one time.
pub const WORKERS: u64 = 8;
/// Those who write to the reference table, and change the schema. (The one between is the operator.)
const OF_COPIES: u64 = WORKERS + 1;
const OF_SCHEMA: u64 = WORKERS + 2;
/// The pause between two requests of a client, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 5..40;
/// The accounts that half of the single-account requests go to: a stale read shows only where something was written a moment
/// ago.
const HOT: std::ops::RangeInclusive<Account> = 1..=3;
/// The pause before a request is sent again, in milliseconds.
pub(crate) const AGAIN_MS: std::ops::Range<u64> = 10..300;
/// How often a write with a key is sent, at most.
const TRIES_MAX: usize = 12;
/// How many of the writes with a key are sent once more after they were acknowledged, and when.
const REPEATED: f64 = 0.3;
const REPEATED_AFTER: Duration = Duration::from_secs(2);
/// The pause between two operations, in milliseconds.
const OPERATE_MS: std::ops::Range<u64> = 200..1_500;
/// A busy operator rests for this part of that.
const BUSY_SHARE: u64 = 4;
/// The cluster is split up to this many shards.
const SHARDS_MAX: usize = 4;
/// It is not merged down to fewer than this.
const SHARDS_MIN: usize = 2;
/// How much of what the operator asks for is that a replica is made anew, where nodes lose their disks.
const RENEWED: f64 = 0.3;
/// Operations that a busy operator has under way: more than may begin at a time.
const OPEN_MAX: usize = 3;

const TABLES: [&str; 2] = [
    "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, items TEXT NOT NULL) SHARD BY (id)",
    "CREATE TABLE notes (account INTEGER, token INTEGER, PRIMARY KEY (account, token)) SHARD BY (account)",
];
const READ_ALL: &str = "SELECT id, balance, items FROM accounts";

/// A generator for one of those who draw.
pub fn chance(seed: u64, who: u64) -> ChaCha8Rng {
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    chance.set_stream(who);
    chance
}

/// All clients, on one host.
pub async fn run(world: World) -> turmoil::Result {
    let client = |number| {
        let (world, chance) = (world.clone(), chance(world.seed, number));
        Client { world, number, chance, repeated: VecDeque::new() }
    };
    for number in 0..WORKERS {
        tokio::task::spawn_local(client(number).work());
    }
    if with_schema(world.seed) {
        tokio::task::spawn_local(client(OF_COPIES).work_on_copies());
        tokio::task::spawn_local(client(OF_SCHEMA).change_schema());
    }
    operate(&world, chance(world.seed, WORKERS)).await;
    Ok(())
}

/// One client.
pub(crate) struct Client {
    pub world: World,
    pub number: u64,
    pub chance: ChaCha8Rng,
    /// Acknowledged writes that are sent once more, with their key, and when.
    repeated: VecDeque<(Instant, String, String)>,
}

impl Client {
    async fn work(mut self) {
        if self.number == 0 {
            self.found().await;
        }
        loop {
            self.pause(PAUSE_MS).await;
            match self.world.phase() {
                Phase::Working => {
                    let _asking = self.world.asking();
                    self.act().await;
                }
                Phase::Auditing if self.number == 0 => self.audit().await,
                _ => {}
            }
        }
    }

    pub async fn pause(&mut self, range_ms: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.chance.random_range(range_ms))).await;
    }

    pub fn node(&mut self) -> u64 {
        NODES[self.chance.random_range(0..NODES.len())]
    }

    fn account(&mut self) -> Account {
        let hot = self.chance.random_bool(0.5);
        self.chance.random_range(if hot { HOT } else { ACCOUNTS })
    }

    /// Make the tables and the accounts.
    async fn found(&mut self) {
        let accounts =
            ACCOUNTS.map(|id| format!("INSERT INTO accounts (id, balance, items) VALUES ({id}, {BALANCE}, '')"));
        let mut statements: Vec<String> = TABLES.iter().map(ToString::to_string).chain(accounts).collect();
        if with_schema(self.world.seed) {
            statements.extend(copies::founding());
        }
        for (number, text) in statements.iter().enumerate() {
            let key = text.starts_with("INSERT");
            while !self.founded(text, key.then(|| format!("found-{number}"))).await {
                self.pause(AGAIN_MS).await;
            }
        }
        self.world.set_phase(Phase::Working);
    }

    async fn founded(&mut self, text: &str, key: Option<String>) -> bool {
        match self.ask(text, key).await {
            Told::Answer(_) => true,
            // An attempt before was taken for lost.
            Told::Not(why) => why.starts_with("42P07"),
            Told::Unknown(_) => false,
        }
    }

    async fn act(&mut self) {
        if self.repeated.front().is_some_and(|(due, ..)| *due <= Instant::now()) {
            return self.repeat().await;
        }
        match self.chance.random_range(0..100) {
            0..40 => self.deposit().await,
            40..60 => self.transfer().await,
            60..90 => {
                let account = self.account();
                self.read(&format!("{READ_ALL} WHERE id = {account}"), Some(account)).await;
            }
            _ => drop(self.read(READ_ALL, None).await),
        }
    }

    /// Two statements on one account.
    async fn deposit(&mut self) {
        let (account, amount) = (self.account(), self.chance.random_range(1..10));
        let text = |token| {
            let note = format!("INSERT INTO notes (account, token) VALUES ({account}, {token})");
            format!("{}; {note}", change(account, amount, token))
        };
        self.write(vec![(account, amount)], text).await;
    }

    /// A statement on each of two accounts, mostly on two shards.
    async fn transfer(&mut self) {
        let accounts: Vec<Account> = ACCOUNTS.collect();
        let two: Vec<Account> = accounts.choose_multiple(&mut self.chance, 2).copied().collect();
        let amount = self.chance.random_range(1..10);
        let changes = vec![(two[0], -amount), (two[1], amount)];
        let text = |token| format!("{}; {}", change(two[0], -amount, token), change(two[1], amount, token));
        self.write(changes.clone(), text).await;
    }

    /// A write, to its end. Every one changes two rows.
    async fn write(&mut self, changes: Vec<(Account, i64)>, text: impl Fn(Token) -> String) {
        let token = self.world.oracle(|oracle| oracle.begin_write(changes));
        let text = text(token);
        let key = self.chance.random_bool(0.5).then(|| format!("key-{token}"));
        match self.see_through(&text, key.clone(), 2).await {
            Some(true) => {
                if let Some(key) = key.filter(|_| self.chance.random_bool(REPEATED)) {
                    self.repeated.push_back((Instant::now() + REPEATED_AFTER, text, key));
                }
                self.world.oracle(|oracle| oracle.done(token));
            }
            Some(false) => self.world.oracle(|oracle| oracle.not_done(token)),
            None => {}
        }
    }

    /// Send a write, with a key until it is known what became of it: whether it was done, or `None` when nobody knows.
    pub async fn see_through(&mut self, text: &str, key: Option<String>, rows: u64) -> Option<bool> {
        let tries = if key.is_some() { TRIES_MAX } else { 1 };
        for attempt in 1..=tries {
            match self.ask(text, key.clone()).await {
                Told::Answer(Answer::Changed(changed)) if changed == rows => return Some(true),
                Told::Answer(answer) => {
                    self.world.wrong(format!("{text} was answered {answer:?}, not with {rows} rows"));
                    return None;
                }
                // The attempt before may have been done.
                Told::Not(_) if attempt == 1 && key.is_none() => return Some(false),
                Told::Not(_) | Told::Unknown(_) => {}
            }
            self.pause(AGAIN_MS).await;
        }
        None
    }

    /// An acknowledged write is sent once more: it is answered as it was, wherever its rows are now, and not done again.
    async fn repeat(&mut self) {
        let Some((_, text, key)) = self.repeated.pop_front() else { return };
        match self.ask(&text, Some(key)).await {
            Told::Answer(Answer::Changed(2)) | Told::Not(_) | Told::Unknown(_) => {}
            Told::Answer(answer) => self.world.wrong(format!("the repetition of {text} was answered {answer:?}")),
        }
    }

    /// A read of an account or of all. False: there was no answer.
    async fn read(&mut self, text: &str, account: Option<Account>) -> bool {
        let floor = self.world.oracle(|oracle| oracle.begin_read());
        let rows = match self.ask(text, None).await {
            Told::Answer(Answer::Rows(rows)) => rows,
            Told::Answer(answer) => {
                self.world.wrong(format!("a read was answered {answer:?}"));
                return false;
            }
            Told::Not(_) | Told::Unknown(_) => return false,
        };
        let checked = rows.iter().map(|row| seen(row)).collect::<Result<Vec<Seen>, Wrong>>().and_then(|seen| {
            self.world.oracle(|oracle| {
                match account {
                    Some(account) if seen.iter().map(|one| one.account).ne([account]) => {
                        return Err(format!("a read of account {account} shows {seen:?}"));
                    }
                    Some(_) => {}
                    None => oracle.all_there(&seen)?,
                }
                oracle.read(&floor, &seen)
            })
        });
        if let Err(wrong) = checked {
            self.world.wrong(wrong);
        }
        true
    }

    /// Read every account once more, from every node; and whether the notes of deposits say the same.
    async fn audit(&mut self) {
        for account in ACCOUNTS {
            while !self.read(&format!("{READ_ALL} WHERE id = {account}"), Some(account)).await {
                self.pause(AGAIN_MS).await;
            }
            self.audit_notes(account).await;
        }
        while !self.read(READ_ALL, None).await {
            self.pause(AGAIN_MS).await;
        }
        if with_schema(self.world.seed) {
            self.audit_copies().await;
            self.audit_schema().await;
        }
        self.world.set_phase(Phase::Audited);
    }

    async fn audit_notes(&mut self, account: Account) {
        let text = format!("SELECT token FROM notes WHERE account = {account} ORDER BY token");
        loop {
            if let Told::Answer(Answer::Rows(rows)) = self.ask(&text, None).await {
                let noted: Vec<Token> =
                    rows.iter().filter_map(|row| integer(row.first()?)).map(|n| n as Token).collect();
                let wanted = self.world.oracle(|oracle| oracle.deposits(account));
                if noted != wanted {
                    self.world.wrong(format!("account {account} has the deposits {wanted:?}, and notes of {noted:?}"));
                }
                return;
            }
            self.pause(AGAIN_MS).await;
        }
    }

    pub async fn ask(&mut self, text: &str, key: Option<String>) -> Told {
        let node = self.node();
        let trace = &self.world.trace;
        trace.note(format_args!("client {} asks {node}: {text} {}", self.number, key.as_deref().unwrap_or("")));
        let told = client::statement(node, text, key).await;
        trace.note(format_args!("client {} hears of {node}: {}", self.number, shown(&told)));
        told
    }
}

fn change(account: Account, amount: i64, token: Token) -> String {
    format!("UPDATE accounts SET balance = balance + {amount}, items = items || '{token},' WHERE id = {account}")
        .replace("+ -", "- ")
}

/// Rows are long, and known from what clients are told of writes.
fn shown(told: &Told) -> String {
    match told {
        Told::Answer(Answer::Rows(rows)) => {
            let lengths: Vec<usize> = rows.iter().filter_map(|row| row.last()).map(Value::size).collect();
            format!("rows of {lengths:?} bytes")
        }
        told => format!("{told:?}"),
    }
}

pub(crate) fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        _ => None,
    }
}

pub(crate) fn seen(row: &[Value]) -> Result<Seen, Wrong> {
    let [id, balance, Value::Text(items)] = row else { return Err(format!("an account is read as {row:?}")) };
    let tokens = items.split_terminator(',').map(str::parse).collect::<Result<Vec<Token>, _>>();
    match (integer(id), integer(balance), tokens) {
        (Some(account), Some(balance), Ok(list)) => Ok(Seen { account, balance, list }),
        _ => Err(format!("an account is read as {row:?}")),
    }
}

/// Split shards and move partitions, now and then; a busy operator also merges shards, and does several at a time.
async fn operate(world: &World, mut chance: ChaCha8Rng) {
    let busy = with_busy_operator(world.seed);
    loop {
        let pause = chance.random_range(OPERATE_MS);
        tokio::time::sleep(Duration::from_millis(if busy { pause / BUSY_SHARE } else { pause })).await;
        if !world.operates() {
            continue;
        }
        let newest = world.hosts().into_values().map(|host| host.catalog()).max_by_key(|catalog| catalog.generation);
        let renews = with_wipes(world.seed) && chance.random_bool(RENEWED);
        let found = newest.and_then(|catalog| match renews {
            true => Invariants::whole(&world.hosts(), NODES.len()).then(|| rebuild(&catalog, &mut chance)).flatten(),
            false => operation(&catalog, &mut chance, busy),
        });
        let Some(kind) = found else { continue };
        let node = NODES[chance.random_range(0..NODES.len())];
        world.trace.note(format_args!("operator asks {node}: {kind:?}"));
        let told = client::ask(node, Ask::Start(kind)).await;
        world.trace.note(format_args!("operator hears of {node}: {told:?}"));
    }
}

/// A replica that is made anew from the others.
fn rebuild(catalog: &Catalog, chance: &mut ChaCha8Rng) -> Option<OperationKind> {
    let shards: Vec<&Shard> = catalog.active_shards().collect();
    let (node, shard) = (NodeId(NODES[chance.random_range(0..NODES.len())]), shards.choose(chance)?.id);
    Some(OperationKind::Rebuild { node, shard: Some(shard) })
}

/// Something to do, unless as much is being done as may be.
fn operation(catalog: &Catalog, chance: &mut ChaCha8Rng, busy: bool) -> Option<OperationKind> {
    if catalog.open_moves().count() >= if busy { OPEN_MAX } else { 1 } {
        return None;
    }
    let shards: Vec<&Shard> = catalog.active_shards().collect();
    let from = shards.choose(chance)?.id;
    let mut partitions = catalog.settled_partitions_of(from);
    let taken = chance.random_range(1..=partitions.len().clamp(1, 4));
    partitions = partitions.choose_multiple(chance, taken).copied().collect::<Vec<PartitionId>>();
    partitions.sort_unstable();
    let all = catalog.shards.values().filter(|shard| shard.state != ShardState::Removed).count();
    let others: Vec<&&Shard> = shards.iter().filter(|shard| shard.id != from).collect();
    if busy && all > SHARDS_MIN && catalog.kept_because(from).is_none() && chance.random_bool(0.7) {
        let (partitions, to) = (catalog.partitions_of(from), others.choose(chance)?.id);
        let part =
            |(one, other, _): (ShardId, ShardId, &[PartitionId])| [from, to].iter().any(|id| [one, other].contains(id));
        let is_free = !catalog.open_moves().filter_map(|open| open.kind.moves()).any(part);
        return is_free.then_some(OperationKind::Merge { from, to, partitions });
    }
    if partitions.is_empty() {
        return None;
    }
    if all < SHARDS_MAX && chance.random_bool(if busy { 0.7 } else { 0.4 }) {
        return Some(OperationKind::Split { from, to: catalog.next_shard(), partitions });
    }
    Some(OperationKind::Move { from, to: others.choose(chance)?.id, partitions })
}
