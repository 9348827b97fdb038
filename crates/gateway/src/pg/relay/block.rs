//! Transactions: on one shard, or on several.
//!
//! A block is the client's transaction. It has none on any server until a statement goes there; each shard's begins with what the block
//! began with, and what was done in it that every shard has to know (savepoints, local settings).
//!
//! # Ending on several shards
//!
//! Those that only read just commit. If one has written, it commits, and that is the decision. If several have:
//!
//! ```text
//! PREPARE TRANSACTION on each ──all did──► ledger: commit ──► COMMIT PREPARED on each ──► the ledger may forget
//!        │                                    │
//!        └─ any did not                       └─ decided otherwise: somebody gave us up
//!              ▼                                 ▼
//!        ROLLBACK (PREPARED) on each           ROLLBACK PREPARED on each
//! ```
//!
//! The name of what is prepared is the transaction's id, so whoever supervises a server finds by it what the ledger says. Only the
//! coordinator says "commit", once all have prepared; whoever finds one that waits says "abort"; the first word counts (`pleat_cluster::Ledger`).
//! Without an answer of the ledger nobody is told anything, and the client that the outcome is unknown. The coordinator is a task of its own:
//! a client that hangs up doesn't stop it.
//!
//! A part that only notifies (`NOTIFY`, `pg_notify`) commits last, when the others have: whoever hears of it finds the rows. If it can't
//! then, the rows are committed nevertheless, and the client is warned. One that notifies and has written can't be prepared, says PostgreSQL; so with
//! another writer beside it the transaction is refused.
//!
//! With synchronous standbys both words wait for the standby, whatever the session has set: a part that a promotion loses, or finds prepared when the
//! ledger has forgotten it, would be half a transaction.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{LedgerCommand, LedgerReply, PreparedName, ShardId, Standbys, TxnId};
use pleat_engine::postgres::{Lease, PostgresError, Profile, Request};
use pleat_sql::postgres::{Planned, What};
use uuid::Uuid;

use super::Relay;
use super::part::Part;
use crate::backend::Backend;
use crate::pg::cancel::Key;
use crate::pg::client::{Client, Stop};
use crate::pg::wire::write::Severity;
use crate::session::Failure;

/// How long the ledger is asked.
const LEDGER_TIME_MAX: Duration = Duration::from_secs(10);
/// How often a shard is told what was decided, before it is left to find out.
const TOLD_TIMES: u32 = 3;

/// What has a transaction wait for the standby when it is prepared, and not be cut short in that. Not SET: that would have the connection reset.
const WAITING: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'on', true), pg_catalog.set_config('statement_timeout', '0', true); ";

/// A transaction of the client.
pub struct Block {
    /// No BEGIN made it.
    pub implicit: bool,
    pub failed: bool,
    /// A shard's part of it is gone: it can't be committed any more.
    pub lost: bool,
    /// What it began with.
    begin: String,
    /// What every shard has to know of it, in order.
    told: Vec<Told>,
}

enum Told {
    Savepoint { name: String, text: String },
    Local(String),
}

/// How a control statement is answered.
pub enum Answered {
    /// By this tag.
    Tag(String),
    /// The server's own answer was passed on; false if it is an error.
    Already(bool),
}

/// Whether a statement is one about transactions: those a failed block takes as well.
pub fn controls(what: &What) -> bool {
    matches!(
        what,
        What::Begin { .. }
            | What::Commit { .. }
            | What::Rollback { .. }
            | What::Savepoint(_)
            | What::Release(_)
            | What::RollbackTo(_)
    )
}

impl Block {
    fn new(begin: &str, implicit: bool) -> Block {
        Block { implicit, failed: false, lost: false, begin: begin.to_owned(), told: Vec::new() }
    }

    /// What begins it on one more shard.
    pub fn beginning(&self) -> String {
        let told = self.told.iter().map(|told| match told {
            Told::Savepoint { text, .. } | Told::Local(text) => text.as_str(),
        });
        let texts: Vec<&str> = std::iter::once(self.begin.as_str()).chain(told).collect();
        texts.join("; ")
    }

    /// Whether it may be one that sees everything as of its first statement. Its own words say so, or not.
    pub fn keeps_snapshot(&self) -> bool {
        let says = |text: &str| {
            let text = text.to_ascii_lowercase();
            text.contains("repeatable") || text.contains("serializable")
        };
        let told = self.told.iter().map(|told| match told {
            Told::Savepoint { .. } => "",
            Told::Local(text) => text.as_str(),
        });
        says(&self.begin) || told.into_iter().any(says)
    }

    fn savepoint(&self, name: &str) -> Option<usize> {
        self.told.iter().rposition(|told| matches!(told, Told::Savepoint { name: known, .. } if known == name))
    }
}

impl Relay {
    /// A failed block refuses everything but its end.
    pub(super) fn check_block(&self) -> Result<(), Failure> {
        match &self.block {
            Some(block) if block.failed => Err(Failure::new(
                "25P02",
                "current transaction is aborted, commands ignored until end of transaction block",
                "end it with ROLLBACK, or go back to a savepoint with ROLLBACK TO",
            )),
            _ => Ok(()),
        }
    }

    /// The letter that ReadyForQuery tells.
    pub(super) fn status(&self) -> u8 {
        match &self.block {
            None => b'I',
            Some(block) if block.failed => b'E',
            Some(_) => b'T',
        }
    }

    /// A block for statements that belong together without a BEGIN.
    pub(super) async fn begin_implicitly(&mut self) -> Result<(), Failure> {
        if self.block.is_none() {
            self.block = Some(Block::new("BEGIN", true));
            self.settings.begin();
        }
        self.join_home().await
    }

    /// What was done at home since the last Sync belongs to the block, too: the transaction that it was is made one that waits.
    pub(super) async fn join_home(&mut self) -> Result<(), Failure> {
        if let Some(home) = self.home
            && let Some(part) = self.parts.get_mut(&home)
            && part.executed
            && !part.open
        {
            part.lease.ask("BEGIN").await?;
            (part.open, part.executed) = (true, false);
        }
        Ok(())
    }

    /// Whether something was done since the last Sync that is no block's yet.
    pub(super) fn has_done_something(&self) -> bool {
        self.home.and_then(|home| self.parts.get(&home)).is_some_and(|part| part.executed && !part.open)
    }

    /// The end of a message, or a Sync: what is implicit about the transaction ends.
    pub(super) async fn end_implicitly(&mut self, client: &mut Client, key: &Key) -> Result<(), Stop> {
        match &self.block {
            Some(block) if block.implicit => {
                let commit = !block.failed;
                let ended = self.end(client, key, commit, false).await?;
                match ended {
                    Answered::Already(false) | Answered::Already(true) | Answered::Tag(_) => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// BEGIN, COMMIT and their like.
    pub(super) async fn control(
        &mut self,
        client: &mut Client,
        key: &Key,
        planned: &Planned,
    ) -> Result<Answered, Stop> {
        let mut warn = |code, message: &str| client.out.notice(Severity::Warning, code, message);
        let tag = |tag: &str| Ok(Answered::Tag(tag.to_owned()));
        match &planned.what {
            What::Begin { .. } => {
                self.check_block()?;
                match &mut self.block {
                    None => {
                        self.block = Some(Block::new(&planned.text, false));
                        self.settings.begin();
                    }
                    Some(block) if block.implicit => block.implicit = false,
                    Some(_) => warn("25001", "there is already a transaction in progress"),
                }
                self.join_home().await?;
                tag("BEGIN")
            }
            What::Commit { chain } | What::Rollback { chain } => {
                let commit = matches!(planned.what, What::Commit { .. });
                let word = if commit { "COMMIT" } else { "ROLLBACK" };
                let Some(block) = &self.block else {
                    if *chain {
                        let message = format!("{word} AND CHAIN can only be used in transaction blocks");
                        return Err(Failure::new("25P01", message, "BEGIN opens one").into());
                    }
                    warn("25P01", "there is no transaction in progress");
                    return tag(word);
                };
                if block.implicit {
                    warn("25P01", "there is no transaction in progress");
                }
                let begin = block.begin.clone();
                let failed = block.failed;
                let ended = self.end(client, key, commit && !failed, true).await?;
                if *chain && !matches!(ended, Answered::Already(false)) {
                    self.block = Some(Block::new(&begin, false));
                    self.settings.begin();
                }
                Ok(ended)
            }
            What::Savepoint(name) => {
                self.check_block()?;
                self.in_block("SAVEPOINT")?;
                self.everywhere(&planned.text).await?;
                if let Some(block) = &mut self.block {
                    block.told.push(Told::Savepoint { name: name.clone(), text: planned.text.clone() });
                }
                tag("SAVEPOINT")
            }
            What::Release(name) | What::RollbackTo(name) => {
                let back = matches!(planned.what, What::RollbackTo(_));
                if !back {
                    self.check_block()?;
                }
                let block = self.in_block(if back { "ROLLBACK TO SAVEPOINT" } else { "RELEASE SAVEPOINT" })?;
                let Some(at) = block.savepoint(name) else {
                    return Err(Failure::new("3B001", format!("savepoint \"{name}\" does not exist"), "").into());
                };
                if block.lost {
                    let message = "a shard's part of the transaction is lost, with its savepoints";
                    return Err(Failure::new("40001", message, "ROLLBACK, and begin again").into());
                }
                self.everywhere(&planned.text).await?;
                if let Some(block) = &mut self.block {
                    match back {
                        true => {
                            block.failed = false;
                            block.told.truncate(at + 1);
                        }
                        false => {
                            let mut index = 0;
                            block.told.retain(|told| {
                                index += 1;
                                index <= at || matches!(told, Told::Local(_))
                            });
                        }
                    }
                }
                tag(if back { "ROLLBACK" } else { "RELEASE" })
            }
            _ => Err(Failure::internal("a statement was taken for one that controls transactions").into()),
        }
    }

    fn in_block(&self, what: &str) -> Result<&Block, Failure> {
        let none =
            || Failure::new("25P01", format!("{what} can only be used in transaction blocks"), "BEGIN opens one");
        self.block.as_ref().filter(|block| !block.implicit).ok_or_else(none)
    }

    /// Something that holds for the block on all its shards, and on those that come to it.
    pub(super) async fn locally(&mut self, text: &str) -> Result<(), Failure> {
        self.everywhere(text).await?;
        self.remember_locally(text);
        Ok(())
    }

    /// The same, for what its shards know already.
    pub(super) fn remember_locally(&mut self, text: &str) {
        if let Some(block) = &mut self.block {
            block.told.push(Told::Local(text.to_owned()));
        }
    }

    /// Run a statement on every shard of the block.
    async fn everywhere(&mut self, text: &str) -> Result<(), Failure> {
        let open: Vec<ShardId> = self.parts.iter().filter(|(_, part)| part.open).map(|(shard, _)| *shard).collect();
        for shard in open {
            let Some(part) = self.parts.get_mut(&shard) else { continue };
            if let Err(error) = part.lease.ask(text).await {
                match error {
                    PostgresError::Answered { .. } => self.fail_block(),
                    _ => self.lose([shard]),
                }
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// End the block. Whatever comes of it, there is none afterwards. `told`: the client waits for an answer to its COMMIT or ROLLBACK.
    async fn end(&mut self, client: &mut Client, key: &Key, commit: bool, told: bool) -> Result<Answered, Stop> {
        let Some(block) = self.block.take() else { return Ok(Answered::Tag("COMMIT".to_owned())) };
        self.portals.clear();
        self.held.retain(|_, cursor| cursor.hold);
        // One that outlives it is where the session is pinned.
        self.cursors.clear();
        self.home = None;
        let commit = commit && !block.lost;
        let open: Vec<ShardId> = self.parts.iter().filter(|(_, part)| part.open).map(|(shard, _)| *shard).collect();
        for part in self.parts.values_mut() {
            (part.open, part.executed) = (false, false);
        }
        let word = if commit { "COMMIT" } else { "ROLLBACK" };
        let ended = match (open.as_slice(), commit) {
            ([], _) => Ok(Answered::Tag(word.to_owned())),
            ([shard], true) if told => {
                // Its end needs no pass: what may have written has one, and there is no way back from here.
                let sent = match self.parts.get_mut(shard) {
                    Some(part) => part.lease.push(Request::Query("COMMIT".to_owned())).map_err(Stop::from),
                    None => Err(Failure::internal(format!("the session has no connection to {shard}")).into()),
                };
                match sent {
                    Ok(()) => self.pump(client, key, *shard).await.map(|ended| Answered::Already(!ended.failed())),
                    Err(stop) => Err(stop),
                }
            }
            (_, true) => {
                self.commit(client, &open).await.map(|()| Answered::Tag(word.to_owned())).map_err(Stop::Failed)
            }
            (_, false) => {
                for shard in &open {
                    if let Some(part) = self.parts.get_mut(shard)
                        && part.lease.ask("ROLLBACK").await.is_err()
                    {
                        // The server takes it back when the connection ends.
                        self.leave(*shard);
                    }
                }
                Ok(Answered::Tag(word.to_owned()))
            }
        };
        self.settings.end(commit && matches!(ended, Ok(Answered::Tag(_) | Answered::Already(true))));
        self.keep_pinned();
        ended
    }

    /// Commit on these shards, on all or none.
    async fn commit(&mut self, client: &mut Client, open: &[ShardId]) -> Result<(), Failure> {
        let mut writers = Vec::new();
        for shard in open {
            let Some(part) = self.parts.get_mut(shard) else { continue };
            match open.len() {
                1 => writers.push(*shard),
                _ => {
                    let asked = part.lease.ask("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").await?;
                    let wrote = asked
                        .rows
                        .first()
                        .and_then(|row| row.first())
                        .is_none_or(|value| value.as_deref() != Some("f"));
                    if wrote {
                        writers.push(*shard);
                    }
                }
            }
        }
        // PostgreSQL gives what notifies an id only when it commits.
        let notifies = |shard: &ShardId| self.parts.get(shard).is_some_and(|part| part.notified);
        let (last, readers): (Vec<ShardId>, Vec<ShardId>) =
            open.iter().copied().filter(|shard| !writers.contains(shard)).partition(notifies);
        let committed = self.commit_rows(&readers, &writers).await;
        for shard in last {
            let Some(part) = self.parts.get_mut(&shard) else { continue };
            let word = if committed.is_ok() { "COMMIT" } else { "ROLLBACK" };
            match part.lease.ask(word).await {
                Ok(_) => {}
                Err(_) if committed.is_err() => self.leave(shard),
                Err(error) if writers.is_empty() => return Err(error.into()),
                Err(error) => {
                    let message = format!("the transaction is committed, but those who listen were not told: {error}");
                    client.out.notice(Severity::Warning, error.sqlstate(), &message);
                }
            }
        }
        committed
    }

    /// Commit what has read, and then what has written.
    async fn commit_rows(&mut self, readers: &[ShardId], writers: &[ShardId]) -> Result<(), Failure> {
        for shard in readers {
            if let Some(part) = self.parts.get_mut(shard) {
                part.lease.ask("COMMIT").await?;
            }
        }
        match writers {
            [] => Ok(()),
            [shard] => match self.parts.get_mut(shard) {
                Some(part) => Ok(part.lease.ask("COMMIT").await.map(drop)?),
                None => Ok(()),
            },
            several => {
                if let Some(pinned) = self.pinned.filter(|pinned| several.contains(pinned)) {
                    let message = format!(
                        "a transaction that uses what its session has on {pinned} can't be committed on several shards"
                    );
                    return Err(Failure::new(
                        "0A000",
                        message,
                        "keep temporary tables out of transactions over several shards",
                    ));
                }
                let parts = several.iter().filter_map(|shard| Some((*shard, self.parts.remove(shard)?))).collect();
                let backend = self.shared.app.backend.clone();
                let task = pleat_consensus::spawn(async move { two_phase(backend, parts).await });
                task.await.map_err(|error| Failure::internal(format!("a commit broke off: {error}")))?
            }
        }
    }
}

/// Commit on several shards, on all or none.
async fn two_phase(backend: Arc<dyn Backend>, mut parts: Vec<(ShardId, Part)>) -> Result<(), Failure> {
    let txn = TxnId(Uuid::new_v4().as_u128());
    let began = backend.txn_clock();
    // By it whoever finds a part knows whom to ask.
    let name = PreparedName::Txn(txn);
    let waits = backend.catalog().policy.standbys == Standbys::Synchronous;
    let prepare = format!("{}PREPARE TRANSACTION '{name}'", if waits { WAITING } else { "" });
    let votes = join_all(parts.iter_mut().map(|(_, part)| part.lease.ask(&prepare))).await;
    let mut refused = None;
    let mut prepared = Vec::new();
    for ((_, part), vote) in parts.iter_mut().zip(votes) {
        match vote {
            // A transaction that had failed is rolled back by it, and says so.
            Ok(asked) if asked.tag == "PREPARE TRANSACTION" => prepared.push(&mut part.lease),
            Ok(_) => {
                refused = refused.or_else(|| Some(Failure::new("40000", "a shard had rolled the transaction back", "")))
            }
            Err(error) => refused = refused.or_else(|| Some(unprepared(error))),
        }
    }
    if let Some(failure) = refused {
        // What was not told its end finds it in the ledger.
        let rollback = format!("ROLLBACK PREPARED '{name}'");
        join_all(prepared.into_iter().map(|lease| lease.ask(&rollback))).await;
        return Err(failure);
    }
    drop(prepared);
    let participants: Vec<ShardId> = parts.iter().map(|(shard, _)| *shard).collect();
    let decide = LedgerCommand::Decide { txn, commit: true, participants, began, at: backend.now_ms() };
    let commit = match backend.ledger_command(decide, LEDGER_TIME_MAX).await {
        Ok(LedgerReply::Decided { commit }) => commit.is_some(),
        Ok(_) => return Err(Failure::internal("the ledger answered another question")),
        Err(error) => {
            let message = format!("whether the transaction was committed is not known: {error}");
            return Err(Failure::new(
                "08007",
                message,
                format!("look for what it wrote; `pleat txns` lists it as {txn} until it is decided"),
            ));
        }
    };
    let word = if commit { "COMMIT" } else { "ROLLBACK" };
    let told = format!("{word} PREPARED '{name}'");
    let tell = parts.iter_mut().map(|(shard, part)| tell(backend.as_ref(), *shard, &mut part.lease, &told, waits));
    let told = join_all(tell).await;
    if !commit {
        return Err(Failure::passing(
            "40001",
            "the transaction took too long to commit, and was rolled back",
            "begin it again",
        ));
    }
    if told.into_iter().all(|told| told) {
        let backend = backend.clone();
        pleat_consensus::spawn(async move {
            // If it gets lost, the ledger finds out itself.
            let _ = backend.ledger_command(LedgerCommand::Forget { txns: vec![txn] }, LEDGER_TIME_MAX).await;
        });
    }
    Ok(())
}

/// Why a part can't be prepared.
fn unprepared(error: PostgresError) -> Failure {
    match &error {
        // The word is in the message in every language.
        PostgresError::Answered { code, message, .. } if code.as_str() == "0A000" && message.contains("NOTIFY") => {
            let message = "a transaction that writes on several servers can't notify on one of them";
            Failure::new("0A000", message, "NOTIFY after COMMIT; in triggers and functions, leave it out")
        }
        _ => error.into(),
    }
}

/// Tell a shard what was decided. One that can't be told now finds out. `waits`: it counts when its standby has it, too.
async fn tell(backend: &dyn Backend, shard: ShardId, lease: &mut Lease, text: &str, waits: bool) -> bool {
    if tell_once(lease, text, waits).await {
        return true;
    }
    for _ in 1..TOLD_TIMES {
        if let Ok(mut lease) = backend.lease(shard, LEDGER_TIME_MAX).await
            && tell_once(&mut lease, text, waits).await
        {
            return true;
        }
    }
    false
}

async fn tell_once(lease: &mut Lease, text: &str, waits: bool) -> bool {
    // The settings of a session may say that it waits for nobody, or not for long.
    if waits && lease.assume(&Profile::default()).await.is_err() {
        return false;
    }
    match lease.ask(text).await {
        Ok(_) => true,
        // Somebody was faster. Whether the standby has that, the ledger finds out.
        Err(error) => !waits && error.sqlstate() == "42704",
    }
}
