//! Tables of servers get other placements: `ALTER TABLE … SHARD BY`, `… REFERENCE`, `… SINGLE`, one table or several at once.
//!
//! # The problem
//!
//! From one moment on statements about a table are routed otherwise, its rows are elsewhere, and its ids come from somewhere else. A server
//! knows nothing of placements, so a router that goes by the old one a moment longer would write a row where nobody looks for it, or take an
//! id that another row gets as well.
//!
//! # The mechanism
//!
//! In a cluster of one shard every placement has all rows on that shard: *no row moves*, whatever the table's size, and all that is to be done is
//! to hold the routers back for the moment of the change. Where there are several shards the rows that change servers are carried over in the
//! same transactions, while clients wait; so a table may have [`ROWS_MAX`] rows there at most, and a larger one is refused before anybody waits.
//!
//! | step | what is true when it has ended |
//! | --- | --- |
//! | `check` | the tables are small enough, where rows have to move; no key is NULL |
//! | `fence` | **the gates of all shards are closed**; no router has anything under way that may write (or read, where rows move), and no server a transaction |
//! | `prepare` | what the servers' sequences gave is marked in the ledger as given; all servers have prepared their part |
//! | `commit` | the catalog has the new placements, and the gates open with it: what was planned before is planned anew |
//! | `commit on servers` | all servers have it |
//! | `undo` | it was given up, the gates are open, and the servers that could be reached have nothing of it |
//!
//! A part is: a lock on the tables, rows that go and rows that come ([`rows`]), how many there must be then, and what becomes of the sequence
//! ([`pleat_cluster::withhold`]; of a table that is single from then on it goes on above all that Pleat gave). Servers prepare and are told as with
//! any schema change, see [`ddl_servers`](crate::ddl_servers); an attempt that a lock, a transaction or a silent node was in the way of is taken
//! back, the gates are opened, and after a pause, and when what routers had under way has ended, there is another, for up to
//! [`Settings::shard_limit`](crate::Settings). Waiting for clients does not count in that; it has a limit of its own, [`WAIT_LIMIT`].
//!
//! # Invariants
//!
//! 1. The commit is proposed only while the catalog has the gates of all shards closed, after all routers and all servers have said that nothing
//!    older may write (nor, where rows move, read), and after all servers have prepared. The catalog refuses it while a gate is open.
//! 2. With the commit every shard's `ownership` rises: no statement that was planned before goes to any server afterwards.
//! 3. From the commit until a server is told, nobody sees a table there whose rows move: it is locked.
//! 4. No value of a column that counts is given twice: those that a server gave are marked before the commit, behind the gates; those of Pleat are
//!    below what the sequence of a table that becomes single goes on with.
//! 5. Gates are closed for [`FENCE_LIMIT`] and then [`CARRY_LIMIT`] at most, the commit's answer excepted. They are not closed while a client's
//!    transaction is open that has taken longer than a second, nor again while one is that made them open.
//!
//! # A process dies …
//!
//! | who, while | and then |
//! | --- | --- |
//! | the control leader, before the commit | clients wait at closed gates until the next one opens them, which it does first; it rolls back what is prepared, and starts anew |
//! | the control leader, at or after the commit | the catalog says whether it was committed; if so the next one tells the servers. A table whose rows move is locked meanwhile, nothing else waits |
//! | a server, before the commit | the attempt is over; the operation is given up when the server stays away |
//! | a server, after the commit | it keeps what it has prepared, and is told when it is back |
//! | a node | the attempt waits for its word within the limit, then the gates open; given up when it stays away |
//! | the client who asked | nothing changes: `pleat ops` shows the end |

mod rows;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{
    Catalog, Generation, LedgerCommand, LedgerReply, ShardId, Table, TableChange, TableKind, withhold,
};
use pleat_engine::postgres::Asked;
use pleat_engine::postgres::moving::Unsettled;
use pleat_host::HostError;
use tokio::time::{Instant, sleep, timeout};

use crate::ddl::commit;
use crate::ddl_servers::{
    ASK_LIMIT, PAUSE_FIRST, PAUSE_LONGEST, PREPARE, Trouble, active, conclude, forget_all, prepare, roll_back, trouble,
};
use crate::mover::cut_over::FENCE;
use crate::mover::servers::{FENCE_LIMIT, LONG_S, close, describe, open_gates, unsettled};
use crate::place::CHECK;
use crate::stop::{Failure, Stop};
use crate::work::{COMMAND_LIMIT, Work};
use rows::{BYTES_MAX, Moving, ROWS_MAX, qualified, quoted};

/// How long clients may wait for rows to be read, and for all servers to prepare.
const CARRY_LIMIT: Duration = Duration::from_secs(10);
/// How long clients are waited for altogether, with open gates: whoever asked is told why before his own time is over (ten minutes).
const WAIT_LIMIT: Duration = Duration::from_secs(480);
/// How long routers are asked at a time for what they have under way then.
const PASSES_LIMIT: Duration = Duration::from_secs(2);
/// How long a server may take for one statement of its part.
const PREPARE_LIMIT: Duration = Duration::from_secs(5);
/// How long it waits for a lock then, in milliseconds. Writers are gone; what holds one only reads.
const LOCK_MS: u32 = 1_000;
/// How long it may be looked for NULLs, and rows may be weighed or read, in milliseconds.
const LOOK_MS: u32 = 2_000;
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// SQLSTATEs: a NULL where there can be none; it was too much for the time or the room that there is.
const NOT_NULL: &str = "23502";
const TOO_LARGE: &str = "54000";
const QUERY_CANCELLED: &str = "57014";

/// Place tables anew, or take it up where an earlier leader left it.
pub(crate) async fn carry_out(work: &Work, changes: &[TableChange]) -> Result<(), Stop> {
    let tables: Vec<(&Table, &Table)> =
        changes.iter().filter_map(|change| Some((change.before.as_ref()?, change.after.as_ref()?))).collect();
    let names: Vec<&str> = tables.iter().map(|(_, after)| after.name.as_str()).collect();
    let done = match names.as_slice() {
        [name] => format!("table {name} was placed anew"),
        names => format!("tables {} were placed anew", names.join(", ")),
    };
    conclude(work, place(work, &tables), &done).await
}

async fn place(work: &Work, tables: &[(&Table, &Table)]) -> Result<(), Stop> {
    let (begun, mut pause, mut tries) = (Instant::now(), PAUSE_FIRST, Tries::default());
    loop {
        tries.count += 1;
        let failure = match attempt(work, tables, &mut tries).await {
            Ok(count) => {
                work.end(PREPARE, &format!("prepared on {count} servers")).await?;
                return commit(work).await;
            }
            Err(Trouble::Stop(stop)) => return Err(stop),
            Err(Trouble::Passing(failure)) => failure,
        };
        // All clients wait at the gates, and some for what is locked.
        open_gates(work).await?;
        roll_back(work).await;
        work.break_off(&failure.why).await?;
        if begun.elapsed().saturating_sub(tries.waited) >= work.tools.settings.shard_limit {
            return Err(Stop::Impossible(failure));
        }
        work.is_at(|| format!("tries again: {}", failure.why))?;
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
}

/// What one attempt leaves to the next.
#[derive(Default)]
struct Tries {
    count: u32,
    /// The generation as of which the gates were closed last.
    closed: Option<Generation>,
    /// How long was waited for clients, with open gates.
    waited: Duration,
}

/// Up to the moment before the commit. Gives how many servers have prepared.
async fn attempt(work: &Work, tables: &[(&Table, &Table)], tries: &mut Tries) -> Result<usize, Trouble> {
    // An earlier leader may have closed them, and a command of its that closes them may still be on its way.
    open_gates(work).await?;
    // First: from here on whatever of an earlier attempt is prepared late is rolled back by its server's node, instead of being waited for.
    work.begin_attempt(CHECK).await?;
    forget_all(work).await?;
    let shards = active(work);
    for (before, after) in tables {
        check(work, &shards, before, after).await?;
    }
    let begun = Instant::now();
    let waited = wait_for_clients(work, &shards, tries).await;
    tries.waited += begun.elapsed();
    waited?;
    work.end(CHECK, "").await?;
    work.begin(FENCE).await?;
    let closed = close(work).await?;
    tries.closed = Some(closed);
    let budget = (work.tools.settings.pause_budget * tries.count).min(FENCE_LIMIT);
    let quiet = timeout(FENCE_LIMIT, quiet(work, &shards, closed, budget)).await;
    quiet.unwrap_or_else(|_| {
        Err(passing(format!("the servers were not quiet within {} ms", FENCE_LIMIT.as_millis())))
    })?;
    work.end(FENCE, "").await?;
    work.begin(PREPARE).await?;
    let prepared = timeout(CARRY_LIMIT, carry(work, &shards, tables)).await;
    prepared
        .unwrap_or_else(|_| Err(passing(format!("the servers had not prepared within {} s", CARRY_LIMIT.as_secs()))))
}

/// Behind closed gates, have all servers prepare their parts. Gives how many did.
async fn carry(work: &Work, shards: &[ShardId], tables: &[(&Table, &Table)]) -> Result<usize, Trouble> {
    let mut parts: BTreeMap<ShardId, Vec<String>> = BTreeMap::new();
    for (before, after) in tables {
        let moving = moving(work, shards, before, after).await?;
        let sequence = hand_over_sequence(work, before, after).await?;
        for shard in shards {
            let part = parts.entry(*shard).or_default();
            part.extend(moving.texts(*shard));
            part.extend(sequence.of(*shard));
        }
    }
    prepare(work, LOCK_MS, PREPARE_LIMIT, |shard| parts.get(&shard).cloned().unwrap_or_default()).await
}

fn passing(why: String) -> Trouble {
    Trouble::Passing(Failure { why, code: Some("55006".to_owned()) })
}

fn impossible(code: &str, why: String) -> Trouble {
    Trouble::Stop(Stop::Impossible(Failure { why, code: Some(code.to_owned()) }))
}

/// What would end it is told before anybody waits.
async fn check(work: &Work, shards: &[ShardId], before: &Table, after: &Table) -> Result<(), Trouble> {
    let moving = Moving::new(&work.catalog(), shards, before, after);
    for (shard, text) in moving.null_keys() {
        refuse_null_keys(work, shard, after, text).await?;
    }
    let (mut rows, mut bytes) = (0_u64, 0_u64);
    for (shard, text) in moving.weights() {
        let asked = match look(work, shard, text).await {
            Err(Trouble::Stop(Stop::Impossible(failure))) if failure.code.as_deref() == Some(QUERY_CANCELLED) => {
                return Err(too_large(after));
            }
            asked => asked?,
        };
        let number = |at: usize| asked.rows.first().and_then(|row| row.get(at)?.as_deref()?.parse::<u64>().ok());
        rows += number(0).unwrap_or(0);
        bytes += number(1).unwrap_or(0);
    }
    if rows > ROWS_MAX || bytes > BYTES_MAX {
        return Err(too_large(after));
    }
    Ok(())
}

fn too_large(table: &Table) -> Trouble {
    let why = format!(
        "{} has more than {ROWS_MAX} rows or {} MiB, and its rows would have to change servers while clients wait: in a cluster of one shard a table of any \
         size can be placed anew; here make another table with the placement, and INSERT or COPY the rows into it",
        table.name,
        BYTES_MAX >> 20
    );
    impossible(TOO_LARGE, why)
}

async fn refuse_null_keys(work: &Work, shard: ShardId, table: &Table, text: String) -> Result<(), Trouble> {
    let key = table.shard_key().map_or("", |(key, _)| key);
    match look(work, shard, text).await {
        Ok(asked) if asked.rows.is_empty() => Ok(()),
        Ok(_) => {
            Err(impossible(NOT_NULL, format!("{}.{key} has NULLs, and a row without a key has no shard", table.name)))
        }
        Err(Trouble::Stop(Stop::Impossible(failure))) if failure.code.as_deref() == Some(QUERY_CANCELLED) => {
            let why = format!(
                "whether {name}.{key} has NULLs was not found out within {LOOK_MS} ms, while clients wait: ALTER TABLE {name} ALTER COLUMN {key} SET NOT NULL first",
                name = table.name
            );
            Err(impossible(TOO_LARGE, why))
        }
        Err(trouble) => Err(trouble),
    }
}

/// A short question about rows.
async fn look(work: &Work, shard: ShardId, text: String) -> Result<Asked, Trouble> {
    let texts = vec![
        format!(
            "BEGIN; SET LOCAL lock_timeout = {LOCK_MS}; SET LOCAL statement_timeout = {LOOK_MS}; {}",
            rows::SETTINGS
        ),
        text,
        "COMMIT".to_owned(),
    ];
    let answers = work.cluster().ask(shard, texts, ASK_LIMIT).await.map_err(|error| trouble(shard, error))?;
    Ok(answers.into_iter().nth(1).unwrap_or_default())
}

/// What changes servers, behind closed gates.
async fn moving(work: &Work, shards: &[ShardId], before: &Table, after: &Table) -> Result<Moving, Trouble> {
    let mut moving = Moving::new(&work.catalog(), shards, before, after);
    for (shard, text) in moving.null_keys() {
        refuse_null_keys(work, shard, after, text).await?;
    }
    for (shard, text) in moving.reads() {
        let asked = look(work, shard, text).await?;
        if !moving.take(shard, asked.rows) {
            return Err(too_large(after));
        }
    }
    Ok(moving)
}

/// What becomes of a table's sequence on the servers.
#[derive(Default)]
struct Sequence {
    everywhere: Option<String>,
    on: Option<(ShardId, String)>,
}

impl Sequence {
    fn of(&self, shard: ShardId) -> Vec<String> {
        let own = self.on.as_ref().filter(|(on, _)| *on == shard).map(|(_, text)| text.clone());
        self.everywhere.clone().into_iter().chain(own).collect()
    }
}

/// A column that counts goes on where it stands, whoever gives its values from now on.
async fn hand_over_sequence(work: &Work, before: &Table, after: &Table) -> Result<Sequence, Trouble> {
    // What a sharded table has was given by Pleat, or by hand.
    let from = match &before.kind {
        TableKind::Single { shard } => Some(*shard),
        TableKind::Reference => work.catalog().anchor(),
        TableKind::Sharded { .. } => None,
    };
    if let (Some(shard), Some((column, serial))) = (from, after.serial()) {
        let name = serial.qualified();
        let literal = format!("'{}'::regclass", name.replace('\'', "''"));
        // At its end it was withheld, and has given nothing of that.
        let given = format!(
            "SELECT last_value FROM {name} WHERE is_called AND last_value < (SELECT seqmax FROM pg_sequence WHERE seqrelid = {literal})"
        );
        // Where an index has the answer, values that were given by hand are left out as well.
        let indexed = serial.sole || after.primary_key.first().is_some_and(|first| first == column);
        let text = match indexed {
            true => {
                format!("SELECT greatest(({given}), (SELECT max({}) FROM {}))", quoted(column), qualified(&after.name))
            }
            false => given,
        };
        let asked = look(work, shard, text).await?;
        if let Some(last) = asked.rows.first().and_then(|row| row.first()?.as_deref()?.parse::<i64>().ok()) {
            mark(work, after, Some(last)).await?;
        }
    }
    if let (Some((_, serial)), TableKind::Single { shard }) = (before.serial(), &after.kind) {
        let next = mark(work, before, None).await?.max(serial.first);
        let name = serial.qualified();
        let literal = format!("'{}'::regclass", name.replace('\'', "''"));
        let (value, called) = if next > serial.last { (serial.last, true) } else { (next, false) };
        let text = format!("ALTER SEQUENCE {name} RESTART; SELECT setval({literal}, {value}, {called})");
        return Ok(Sequence { everywhere: None, on: Some((*shard, text)) });
    }
    Ok(Sequence { everywhere: withhold([after]), on: None })
}

/// Mark ids up to `last` as given. Gives the first that is not.
async fn mark(work: &Work, table: &Table, last: Option<i64>) -> Result<i64, Trouble> {
    let command = LedgerCommand::AllocateIds { table: table.id, count: 0, at_least: last };
    match work.cluster().ledger(command, COMMAND_LIMIT).await {
        Ok(LedgerReply::Ids { first }) => Ok(first),
        Ok(other) => Err(impossible("XX000", format!("the ledger gave {other:?} for ids"))),
        Err(HostError::Ledger(refused)) => Err(impossible("55000", format!("the ledger: {refused}"))),
        Err(error) => Err(passing(format!("the ledger: {error}"))),
    }
}

/// What routers have under way that was planned before the gates were closed. Where rows change servers what only reads counts as well: sent later,
/// it would miss rows, or see some twice.
async fn under_way(work: &Work, shards: &[ShardId], closed: Generation, within: Duration) -> Option<String> {
    let writes = shards.len() < 2;
    let asked = shards.iter().map(|shard| unsettled(work, *shard, closed, writes, within));
    let left: Vec<String> = join_all(asked).await.into_iter().flatten().collect();
    (!left.is_empty()).then(|| left.join("; "))
}

/// Nothing is left that goes by the placements that there were.
async fn quiet(work: &Work, shards: &[ShardId], closed: Generation, budget: Duration) -> Result<(), Trouble> {
    let until = Instant::now() + budget;
    if let Some(why) = under_way(work, shards, closed, budget).await {
        return Err(passing(why));
    }
    // What routers have lost sight of, the servers still have.
    for shard in shards {
        let since = now(work, *shard).await?;
        loop {
            let open = transactions(work, *shard, &since).await?;
            let Some(first) = open.first() else { break };
            if Instant::now() >= until {
                return Err(passing(format!("a transaction on {shard} has not ended: {}", describe(first))));
            }
            sleep(LOOK_PAUSE).await;
        }
    }
    Ok(())
}

async fn now(work: &Work, shard: ShardId) -> Result<String, Trouble> {
    let texts = vec!["SELECT clock_timestamp()::text".to_owned()];
    let asked = work.cluster().ask(shard, texts, ASK_LIMIT).await.map_err(|error| trouble(shard, error))?;
    let time = asked.into_iter().flat_map(|asked| asked.rows).flatten().flatten().next();
    time.ok_or_else(|| passing(format!("{shard} did not say what time it is")))
}

async fn transactions(work: &Work, shard: ShardId, since: &str) -> Result<Vec<Unsettled>, Trouble> {
    let texts = vec![Unsettled::question(Some(since))];
    let asked = work.cluster().ask(shard, texts, ASK_LIMIT).await.map_err(|error| trouble(shard, error))?;
    let read = asked.first().map_or_else(|| Ok(Vec::new()), Unsettled::read);
    read.map_err(|error| passing(format!("{shard}: {error}")))
}

/// Gates are not closed while something is open that would only make them open again.
async fn wait_for_clients(work: &Work, shards: &[ShardId], tries: &Tries) -> Result<(), Trouble> {
    let until = Instant::now() + WAIT_LIMIT.saturating_sub(tries.waited);
    // What routers had under way last time, and servers perhaps see nothing of: a transaction that keeps a snapshot.
    if let Some(closed) = tries.closed {
        while let Some(why) = under_way(work, shards, closed, PASSES_LIMIT).await {
            if Instant::now() >= until {
                return Err(impossible("55006", format!("{why}; end these, and try again")));
            }
            work.is_at(|| format!("waits: {why}"))?;
        }
    }
    for shard in shards {
        loop {
            let since = now(work, *shard).await?;
            let open = transactions(work, *shard, &since).await?;
            let Some(long) = open.iter().max_by_key(|one| one.age_seconds).filter(|one| one.age_seconds >= LONG_S)
            else {
                break;
            };
            let told = describe(long);
            if Instant::now() >= until {
                let why = format!("a client's transaction on {shard} does not end: {told}; end it, and try again");
                return Err(impossible("55006", why));
            }
            work.is_at(|| format!("waits for a client's transaction on {shard} to end: {told}"))?;
            sleep(PAUSE_FIRST).await;
            // It may be an earlier attempt's, prepared late.
            forget_all(work).await?;
        }
    }
    Ok(())
}

/// The partitions of a shard, as numbers.
fn partitions(catalog: &Catalog, shard: ShardId) -> std::collections::BTreeSet<u32> {
    catalog.partitions_of(shard).iter().map(|partition| partition.0).collect()
}
