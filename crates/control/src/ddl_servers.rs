//! Schema changes on shards that are servers: the statement as it is, on all or on none, by two-phase commit.
//!
//! A server runs the change in a transaction and *prepares* it: then nothing on that server can keep it from being committed, and until it
//! is, what it has
//! locked stays locked, so no client sees it. When all servers have prepared, the operation is committed in the catalog, which takes the new
//! tables at the same time; then each server is told.
//!
//! | step | what is true when it has ended |
//! | --- | --- |
//! | `prepare` | all servers have prepared this attempt |
//! | `commit` | the catalog has the tables; the operation can only succeed |
//! | `commit on servers` | all servers have it |
//! | `undo` | it was given up, and all servers that could be reached have nothing of it |
//!
//! # Attempts
//!
//! A change waits for what clients have locked for a moment only ([`LOCK_MS`]): behind it every statement on the table would wait as well. And while
//! it waits on one server it holds its locks on those before, so a client's transaction on both could wait for it, and it for that one. So when one
//! server can't, all are *rolled back*, and after a pause it begins again from the first, as another attempt, for up to
//! [`Settings::shard_limit`](crate::Settings).
//!
//! Each attempt prepares under a name of its own ([`PreparedName::Ddl`]), and the catalog counts attempts: it refuses one to a leader that
//! was replaced, and
//! what is committed is the newest. So a PREPARE that arrives late, of a leader that died or a connection that was lost, is never
//! committed: it is rolled back
//! by the next attempt, or by the node that supervises the server (`host`'s `decide_servers`).
//!
//! # A leader dies …
//!
//! | while | and then |
//! | --- | --- |
//! | servers prepare | the next one rolls back what it finds, and makes another attempt |
//! | undoing | the next one sees in the catalog that it was given up, and goes on with the undoing |
//! | after the commit | the next one tells all servers; one that has nothing prepared under the name was told before, and where its standby is synchronous that has to have it |
//!
//! # A server is gone
//!
//! Before the commit it is waited for, then the change is given up. What it has prepared is rolled back when it is back, by its node; so nothing
//! waits for that. After the commit the operation waits for it, and others that don't need this shard go past. The server keeps what it has
//! prepared when it dies, locks included, so no client finds the table as it was. A standby that is promoted and has it prepared still, as it had
//! not heard of the commit, is told by its node.
//!
//! # What the client sees
//!
//! An error that a server gives to the statement itself is the operation's: its SQLSTATE and its message.

use std::time::Duration;

use pleat_cluster::{Operation, Phase, PreparedName, ShardId, Standbys};
use pleat_engine::postgres::Asked;
use pleat_host::failpoint::reach;
use pleat_host::{HostError, ServerError};
use tokio::time::{Instant, sleep};

use crate::ddl::{UNREACHED, commit};
use crate::stop::{Failure, Stop};
use crate::work::Work;

pub(crate) const PREPARE: &str = "prepare";
const FINISH: &str = "commit on servers";
const UNDO: &str = "undo";
/// How long the change waits for a lock, in milliseconds.
const LOCK_MS: u32 = 2_000;
/// How long it may run on one server, locks apart: it may read or write all of a table.
const RUN_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a short question to a server may take.
pub(crate) const ASK_LIMIT: Duration = Duration::from_secs(5);
/// The pause before the next attempt, at first and at most.
pub(crate) const PAUSE_FIRST: Duration = Duration::from_millis(200);
pub(crate) const PAUSE_LONGEST: Duration = Duration::from_secs(3);
/// SQLSTATEs of what passes: a lock that was not free, a deadlock, a conflict with what others commit.
const PASSING: [&str; 3] = ["55P03", "40P01", "40001"];
/// SQLSTATE: the server has no such transaction.
const UNDEFINED_OBJECT: &str = "42704";

/// Carry out a schema change on servers, or take it up where an earlier leader left it.
pub(crate) async fn carry_out(work: &Work, about: &str, sql: &str) -> Result<(), Stop> {
    conclude(work, prepare_and_commit(work, sql), &format!("{about}: done on all shards")).await
}

/// See that an operation which servers prepare is committed or given up, by `preparing` if it is neither yet, and tell them. `done` is its message when it
/// was done.
pub(crate) async fn conclude(
    work: &Work,
    preparing: impl Future<Output = Result<(), Stop>>,
    done: &str,
) -> Result<(), Stop> {
    let operation = work.operation()?;
    if !operation.committed && !operation.given_up {
        match work.interruptible(preparing).await {
            Ok(()) => {}
            Err(Stop::Cancelled) => work.give_up(&Failure::cancelled()).await?,
            Err(Stop::Impossible(failure)) => work.give_up(&failure).await?,
            Err(stop) => return Err(stop),
        }
    }
    let operation = work.operation()?;
    match operation.given_up {
        true => undo(work, &operation).await,
        false => {
            tell_servers(work, &operation).await?;
            work.finish(Phase::Successful, done).await
        }
    }
}

async fn prepare_and_commit(work: &Work, sql: &str) -> Result<(), Stop> {
    let (begun, mut pause) = (Instant::now(), PAUSE_FIRST);
    loop {
        work.begin_attempt(PREPARE).await?;
        match attempt(work, sql).await {
            Ok(count) => {
                work.end(PREPARE, &format!("prepared on {count} servers")).await?;
                return commit(work).await;
            }
            Err(Trouble::Stop(stop)) => return Err(stop),
            Err(Trouble::Passing(failure)) if begun.elapsed() >= work.tools.settings.shard_limit => {
                return Err(Stop::Impossible(failure));
            }
            Err(Trouble::Passing(failure)) => {
                // At once: clients wait for its locks.
                roll_back(work).await;
                work.is_at(|| format!("tries again: {}", failure.why))?;
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_LONGEST);
            }
        }
    }
}

/// Why an attempt was none.
pub(crate) enum Trouble {
    /// Another one may do.
    Passing(Failure),
    Stop(Stop),
}

impl From<Stop> for Trouble {
    fn from(stop: Stop) -> Self {
        Trouble::Stop(stop)
    }
}

/// Prepare the change on all servers. Gives how many there are.
async fn attempt(work: &Work, sql: &str) -> Result<usize, Trouble> {
    forget_all(work).await?;
    prepare(work, LOCK_MS, RUN_LIMIT, |_| vec![sql.to_owned()]).await
}

/// Roll back what earlier attempts hold: it would be waited for in vain.
pub(crate) async fn forget_all(work: &Work) -> Result<(), Trouble> {
    for shard in active(work) {
        forget(work, shard).await.map_err(|error| trouble(shard, error))?;
    }
    Ok(())
}

/// Have every server carry out and prepare its texts, for the attempt at hand. Gives how many servers there are.
pub(crate) async fn prepare(
    work: &Work,
    lock_ms: u32,
    run_limit: Duration,
    texts_of: impl Fn(ShardId) -> Vec<String>,
) -> Result<usize, Trouble> {
    let name = name_of(&work.operation()?);
    let shards = active(work);
    let run_ms = run_limit.as_millis();
    for (done, shard) in shards.iter().enumerate() {
        let mut texts = vec![format!(
            "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = {lock_ms}; SET LOCAL statement_timeout = {run_ms}"
        )];
        texts.extend(texts_of(*shard));
        texts.push(format!("PREPARE TRANSACTION '{name}'"));
        reach("operation.before-effect", Some(*shard));
        let answers = work.cluster().ask(*shard, texts, run_limit + ASK_LIMIT).await;
        reach("operation.had-effect", Some(*shard));
        let answers = answers.map_err(|error| trouble(*shard, error))?;
        if answers.last().is_none_or(|last| last.tag != "PREPARE TRANSACTION") {
            let why = "the statement ended the transaction that it was run in, so it can't be carried out on all shards or none";
            return Err(Trouble::Stop(Stop::Impossible(Failure {
                why: why.to_owned(),
                code: Some("0A000".to_owned()),
            })));
        }
        work.is_at(|| format!("prepared on {} of {} servers", done + 1, shards.len()))?;
    }
    Ok(shards.len())
}

pub(crate) fn trouble(shard: ShardId, error: HostError) -> Trouble {
    match error {
        HostError::Server(ServerError { code, message, retryable, .. }) => {
            let passes = retryable || PASSING.contains(&code.as_str());
            let failure = Failure { why: message, code: Some(code) };
            if passes { Trouble::Passing(failure) } else { Trouble::Stop(Stop::Impossible(failure)) }
        }
        error => Trouble::Passing(Failure { why: format!("{shard}: {error}"), code: Some(UNREACHED.to_owned()) }),
    }
}

/// After the commit: every server has it, or the operation waits for those that can't be reached.
async fn tell_servers(work: &Work, operation: &Operation) -> Result<(), Stop> {
    let name = name_of(operation);
    let waiting = |shard: &ShardId| !operation.is_waiting() || operation.waits_for.contains(shard);
    work.begin(FINISH).await?;
    let mut gone = Vec::new();
    for shard in active(work).into_iter().filter(waiting) {
        loop {
            reach("operation.before-effect", Some(shard));
            let told = work.cluster().ask(shard, vec![format!("COMMIT PREPARED '{name}'")], ASK_LIMIT).await;
            reach("operation.had-effect", Some(shard));
            let why = match told {
                Ok(_) => break,
                Err(HostError::Server(ServerError { code, .. })) if code == UNDEFINED_OBJECT => {
                    match is_on_standby(work, shard).await {
                        Ok(()) => break,
                        Err(error) => error.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            if !work.unreached(&[shard]).await.is_empty() {
                gone.push(shard);
                break;
            }
            work.is_at(|| format!("waits for {shard}: {why}"))?;
            sleep(PAUSE_FIRST).await;
        }
    }
    match gone.is_empty() {
        true => work.end(FINISH, "").await,
        false => {
            work.note(FINISH, false, "").await?;
            Err(work.wait_for(gone).await)
        }
    }
}

/// Until a synchronous standby has all that its primary has committed so far. Who was told of the commit may have been cut off while it waited for
/// that; the operation must not end before.
async fn is_on_standby(work: &Work, shard: ShardId) -> Result<(), HostError> {
    if work.catalog().policy.standbys != Standbys::Synchronous {
        return Ok(());
    }
    // A commit that has written something waits; there is nothing to read in it.
    let write = "SELECT pg_logical_emit_message(true, 'pleat', '')".to_owned();
    work.cluster().ask(shard, vec![write], ASK_LIMIT).await.map(drop)
}

async fn undo(work: &Work, operation: &Operation) -> Result<(), Stop> {
    let why = &operation.message;
    if operation.attempts > 0 {
        if !operation.steps.last().is_some_and(|step| step.name == UNDO && step.ended.is_none()) {
            work.break_off(why).await?;
            work.note(UNDO, false, why).await?;
        }
        roll_back(work).await;
        work.end(UNDO, why).await?;
    }
    let phase = if operation.cancel_requested { Phase::Skipped } else { Phase::Failed };
    work.finish(phase, why).await
}

/// Roll back what servers have prepared for the operation. One that can't is rid of it by its own node, since nobody can commit it any more.
pub(crate) async fn roll_back(work: &Work) {
    for shard in active(work) {
        if let Err(error) = forget(work, shard).await {
            tracing::info!(operation = %work.id, %shard, %error, "what the server has prepared is left to its node");
        }
    }
}

async fn forget(work: &Work, shard: ShardId) -> Result<(), HostError> {
    let begins = PreparedName::of_operation(work.id);
    let ask = format!(
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, '{begins}')"
    );
    let found = work.cluster().ask(shard, vec![ask], ASK_LIMIT).await?;
    let rows = found.into_iter().flat_map(|Asked { rows, .. }| rows).flatten().flatten();
    for name in rows.filter_map(|name| name.parse::<PreparedName>().ok()) {
        match work.cluster().ask(shard, vec![format!("ROLLBACK PREPARED '{name}'")], ASK_LIMIT).await {
            Ok(_) => {}
            Err(HostError::Server(ServerError { code, .. })) if code == UNDEFINED_OBJECT => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn name_of(operation: &Operation) -> PreparedName {
    PreparedName::Ddl { operation: operation.id, attempt: operation.attempts }
}

/// In order, so that two leaders don't wait for each other.
pub(crate) fn active(work: &Work) -> Vec<ShardId> {
    work.catalog().active_shards().map(|shard| shard.id).collect()
}
