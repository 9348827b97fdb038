//! Transactions over several shards, as one shard sees them, at apply.
//!
//! | state | what is stored | goes on by |
//! | --- | --- | --- |
//! | unknown | nothing | `Prepare` → prepared, or a refusal or failure that leaves nothing |
//! | prepared | the proposal, with its time and seed | `Decide(commit)` → committed, `Decide(abort)` → unknown |
//! | committed | its id, for a while; for each participant its number, as the newest | is forgotten |
//!
//! At most one transaction is prepared at a time, and while one is, nothing else changes the shard's content: writes,
//! schema changes and steps of moves are refused with [`Refusal::Prepared`], at apply, on every replica alike. So what
//! the statements gave when they were tried, they give again when they are committed: they run on the same content
//! with the same time and randomness. What is kept is therefore the statements, not their effects; and a replica that
//! is restarted, or begins from a snapshot, has all it needs in its database.
//!
//! *What a snapshot shows.* Commits are carried out here in the order of their numbers (`pleat_cluster`'s `ledger` says why).
//! So the newest number says how far the shard has come, and for each other shard the newest in which that one took part says
//! how far *it* must have come for both to show the same: two numbers, however many commits there were, and however
//! long ago.
//!
//! *What if a process dies?* All of this is content of the log and of the database. A transaction whose coordinator is
//! gone stays prepared until somebody asks the ledger and proposes the decision; that is the host's job.
//!
//! *Caveats.* A commit whose statements fail although they succeeded when they were tried would be a defect. Then
//! nothing is changed, the transaction stays prepared (and visible as such), and the failure is the outcome.
//! A `Prepare` that arrives late, after the decision, finds the transaction among the committed ones and does nothing;
//! after an abort it prepares anew, and is aborted again by whoever asks the ledger.

use pleat_cluster::{CommitNumber, Millis, PartitionId, ShardId, TxnId};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::content;
use super::failure::Applied;
use super::idempotency;
use super::store::Writer;
use super::write::Scope;
use crate::limits::{COMMITTED_KEPT_MAX, COMMITTED_KEPT_MS};
use crate::{Idempotency, Outcome, PreparedTxn, Refusal, Statement, StatementResult, TxnsSeen};

/// A prepared transaction, as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) began: Millis,
    pub(crate) participants: Vec<ShardId>,
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) units: Vec<PartitionId>,
    pub(crate) statements: Vec<Statement>,
    /// What the statements ran with.
    pub(crate) now_ms: Millis,
    pub(crate) seed: u64,
}

impl Writer {
    /// Refuses what would change the content under a prepared transaction.
    pub(crate) fn check_undecided(&self) -> Result<(), Refusal> {
        match self.prepared {
            Some(txn) => Err(Refusal::Prepared { txn }),
            None => Ok(()),
        }
    }

    /// Refuses a write that was decided on other content.
    pub(crate) fn check_base(&self, base: Option<u64>) -> Result<(), Refusal> {
        match base {
            Some(base) if base != self.beside.version => Err(Refusal::Conflict { base, version: self.beside.version }),
            _ => Ok(()),
        }
    }

    /// Tries a transaction's statements and keeps them.
    pub(crate) fn prepare(&mut self, txn: TxnId, base: Option<u64>, asked: Kept) -> Applied<Outcome> {
        if self.prepared == Some(txn) {
            let kept = load(&self.db.conn, txn)?;
            return Ok(Outcome::Prepared { results: self.try_out(&kept)? });
        }
        if was_committed(&self.db.conn, txn)? {
            return Ok(Outcome::Replayed { results: Vec::new(), rows_kept: false });
        }
        if let Some(known) =
            self.known_or_checked(asked.idempotency.as_ref(), &asked.units, base, self.beside.now_ms)?
        {
            return Ok(known.of_a_write());
        }
        self.check_reference(&asked.statements)?;
        let results = self.try_out(&asked)?;
        self.db
            .conn
            .prepare_cached("INSERT INTO __pleat_prepared(txn, kept) VALUES (?1, ?2)")?
            .execute((key(txn), postcard::to_stdvec(&asked)?))?;
        self.prepared = Some(txn);
        Ok(Outcome::Prepared { results })
    }

    /// What the statements give, without leaving anything.
    fn try_out(&mut self, kept: &Kept) -> Applied<Vec<StatementResult>> {
        self.begin_at(kept.now_ms, kept.seed)?;
        self.db.conn.prepare_cached("SAVEPOINT tried /* __pleat_ */")?.execute([])?;
        let results = self.run_all(&kept.statements, Scope::Units(&kept.units))?;
        self.db.conn.prepare_cached("ROLLBACK TO tried /* __pleat_ */")?.execute([])?;
        self.db.conn.prepare_cached("RELEASE tried /* __pleat_ */")?.execute([])?;
        Ok(results)
    }

    /// Carries out what was decided.
    pub(crate) fn decide(&mut self, txn: TxnId, commit: Option<CommitNumber>) -> Applied<Outcome> {
        if self.prepared != Some(txn) {
            return Ok(Outcome::Done { results: Vec::new() });
        }
        let kept = load(&self.db.conn, txn)?;
        self.db.conn.prepare_cached("DELETE FROM __pleat_prepared WHERE txn = ?1")?.execute([key(txn)])?;
        let results = match commit {
            Some(number) => self.commit(txn, number, &kept)?,
            None => Vec::new(),
        };
        self.prepared = None;
        Ok(Outcome::Done { results })
    }

    fn commit(&mut self, txn: TxnId, number: CommitNumber, kept: &Kept) -> Applied<Vec<StatementResult>> {
        self.begin_at(kept.now_ms, kept.seed)?;
        self.check_reference(&kept.statements)?;
        let results = self.run_all(&kept.statements, Scope::Units(&kept.units))?;
        self.log_reference(&kept.statements)?;
        let done = Outcome::Done { results };
        if let Some(given) = &kept.idempotency {
            idempotency::remember(
                &self.db.conn,
                &mut self.beside.remembered,
                given,
                &kept.units,
                &done,
                self.beside.now_ms,
            )?;
        }
        remember_commit(&self.db.conn, txn, self.beside.now_ms)?;
        remember_together(&self.db.conn, kept.participants.iter().map(|shard| (*shard, number)))?;
        if !kept.statements.is_empty() {
            self.beside.version += 1;
        }
        match done {
            Outcome::Done { results } => Ok(results),
            _ => Ok(Vec::new()),
        }
    }
}

/// The transaction that is prepared, if one is.
pub(crate) fn prepared(conn: &Connection) -> rusqlite::Result<Option<TxnId>> {
    conn.prepare_cached("SELECT txn FROM __pleat_prepared")?.query_row([], |row| txn_of(row.get(0)?)).optional()
}

/// The transactions that are prepared, for whoever finds out about their decision.
pub(crate) fn in_doubt(conn: &Connection) -> anyhow::Result<Vec<PreparedTxn>> {
    let Some(txn) = prepared(conn)? else { return Ok(Vec::new()) };
    let bytes: Vec<u8> =
        conn.query_row("SELECT kept FROM __pleat_prepared WHERE txn = ?1", [key(txn)], |row| row.get(0))?;
    let Kept { began, participants, now_ms, .. } = postcard::from_bytes(&bytes)?;
    Ok(vec![PreparedTxn { txn, began, participants, prepared_ms: now_ms }])
}

/// What the head of a read says.
pub(crate) fn seen(conn: &Connection) -> anyhow::Result<TxnsSeen> {
    let mut together = conn.prepare_cached("SELECT shard, newest FROM __pleat_together")?;
    let together = together.query_map([], |row| Ok((ShardId(row.get(0)?), row.get::<_, i64>(1)? as CommitNumber)))?;
    Ok(TxnsSeen { version: content::version(conn)?, together: together.collect::<Result<_, _>>()? })
}

fn load(conn: &Connection, txn: TxnId) -> Applied<Kept> {
    let mut statement = conn.prepare_cached("SELECT kept FROM __pleat_prepared WHERE txn = ?1")?;
    let bytes: Vec<u8> = statement.query_row([key(txn)], |row| row.get(0))?;
    Ok(postcard::from_bytes(&bytes)?)
}

fn was_committed(conn: &Connection, txn: TxnId) -> Applied<bool> {
    Ok(conn.prepare_cached("SELECT 1 FROM __pleat_committed WHERE txn = ?1")?.exists([key(txn)])?)
}

/// Remembers a commit, and forgets those that are old or too many.
fn remember_commit(conn: &Connection, txn: TxnId, now_ms: Millis) -> Applied<()> {
    conn.prepare_cached("INSERT INTO __pleat_committed(txn, at_ms) VALUES (?1, ?2)")?
        .execute((key(txn), now_ms as i64))?;
    conn.prepare_cached(
        "DELETE FROM __pleat_committed WHERE seq IN (SELECT seq FROM __pleat_committed \
         WHERE at_ms < ?1 OR seq <= (SELECT max(seq) FROM __pleat_committed) - ?2 ORDER BY seq LIMIT 8)",
    )?
    .execute((now_ms.saturating_sub(COMMITTED_KEPT_MS) as i64, COMMITTED_KEPT_MAX))?;
    Ok(())
}

/// Remembers with which shards commits were shared.
pub(crate) fn remember_together(
    conn: &Connection,
    together: impl Iterator<Item = (ShardId, CommitNumber)>,
) -> Applied<()> {
    let mut newest = conn.prepare_cached(
        "INSERT INTO __pleat_together VALUES (?1, ?2) ON CONFLICT DO UPDATE SET newest = max(newest, excluded.newest)",
    )?;
    for (shard, number) in together {
        newest.execute((shard.0, number as i64))?;
    }
    Ok(())
}

fn key(txn: TxnId) -> [u8; 16] {
    txn.0.to_be_bytes()
}

fn txn_of(bytes: [u8; 16]) -> rusqlite::Result<TxnId> {
    Ok(TxnId(u128::from_be_bytes(bytes)))
}
