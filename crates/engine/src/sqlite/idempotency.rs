//! Idempotency keys: a write is remembered with its effect, in the transaction of its effect.
//!
//! There are two classes. A *client's* key is a promise: it is kept until it expires, and when there are too many a
//! new one is refused. An *internal* key (it begins with [`IDEMPOTENCY_INTERNAL_PREFIX`]) was made up for one request,
//! to repeat it when a leader is lost; it is short-lived, so it may also go because of the number of those that came
//! after it. Neither class takes the other's room.
//!
//! Which are forgotten depends on the log's time and on the keys that are there, never on this replica's clock. Each
//! write remembers its key, so this is done on the way of every write and has to cost little: how many keys there are is
//! in memory ([`Tally`]) and stored once for each batch, and forgetting goes by the whole second, some keys at a time, so that most
//! writes have nothing to forget.

use anyhow::Context;
use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Millis, PartitionId};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::failure::Applied;
use super::move_read::Left;
use crate::limits::{
    IDEMPOTENCY_CLIENT_KEYS_MAX, IDEMPOTENCY_INTERNAL_KEYS_MAX, IDEMPOTENCY_INTERNAL_MARGIN_MS,
    IDEMPOTENCY_INTERNAL_PREFIX, IDEMPOTENCY_KEY_BYTES_MAX, IDEMPOTENCY_OUTCOME_BYTES_MAX,
    IDEMPOTENCY_PRUNED_PER_WRITE, IDEMPOTENCY_TTL_MS_MAX,
};
use crate::{BulkDone, Idempotency, IdempotencyRow, Outcome, Refusal, StatementResult, sqlstate};

/// Forgets the first keys of a class in the order in which they expire. Texts that are constants: none is put together for each write.
macro_rules! forget_sql {
    ($of:literal) => {
        concat!(
            "DELETE FROM __pleat_idempotency WHERE seq IN (SELECT seq FROM __pleat_idempotency ",
            $of,
            " AND expires_ms <= ?1 ORDER BY expires_ms, seq LIMIT ?2)"
        )
    };
}

/// When the first key of a class expires.
macro_rules! oldest_sql {
    ($of:literal) => {
        concat!("SELECT expires_ms FROM __pleat_idempotency ", $of, " ORDER BY expires_ms LIMIT 1")
    };
}

/// Whose key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Client,
    Internal,
}

impl Class {
    fn of(key: &str) -> Self {
        match key.starts_with(IDEMPOTENCY_INTERNAL_PREFIX) {
            true => Class::Internal,
            false => Class::Client,
        }
    }

    /// Forgets up to `limit` keys that expired by then, those first that expire first.
    fn forget(self, conn: &Connection, tally: &mut Tally, expired_by: i64, limit: i64) -> Applied<()> {
        let sql = match self {
            Class::Client => forget_sql!("INDEXED BY __pleat_idempotency_client WHERE substr(key, 1, 2) <> 'i/'"),
            Class::Internal => forget_sql!("INDEXED BY __pleat_idempotency_internal WHERE substr(key, 1, 2) = 'i/'"),
        };
        tally.of(self).count -= conn.prepare_cached(sql)?.execute((expired_by, limit))? as i64;
        let sql = match self {
            Class::Client => oldest_sql!("INDEXED BY __pleat_idempotency_client WHERE substr(key, 1, 2) <> 'i/'"),
            Class::Internal => oldest_sql!("INDEXED BY __pleat_idempotency_internal WHERE substr(key, 1, 2) = 'i/'"),
        };
        let oldest: Option<i64> = conn.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?;
        tally.of(self).expires_first_ms = oldest.unwrap_or(i64::MAX);
        Ok(())
    }
}

/// What is kept in memory of the remembered writes. It goes back with the savepoint of a proposal that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    client: Kept,
    internal: Kept,
    /// The highest number given to a remembered write. None is given twice, also not that of one that was replaced: a move asks for those
    /// after the last that it has seen.
    newest: i64,
}

/// Of the keys of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    count: i64,
    /// None of them expires before.
    expires_first_ms: i64,
}

impl Tally {
    fn of(&mut self, class: Class) -> &mut Kept {
        match class {
            Class::Client => &mut self.client,
            Class::Internal => &mut self.internal,
        }
    }

    /// As it is stored beside the position of the log.
    pub(crate) fn encode(&self) -> anyhow::Result<Vec<u8>> {
        Ok(postcard::to_stdvec(self)?)
    }

    /// The reverse; of a new shard nothing is stored.
    pub(crate) fn decode(bytes: &[u8]) -> anyhow::Result<Tally> {
        match bytes.is_empty() {
            true => Ok(Tally::default()),
            false => postcard::from_bytes(bytes).context("read how many writes are remembered"),
        }
    }
}

/// What a repeated write gives; `None` when the key is new.
pub(crate) fn replay(conn: &Connection, given: &Idempotency, now_ms: Millis) -> Applied<Option<Outcome>> {
    if given.key.is_empty() || given.key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(Refusal::KeyInvalid { limit_bytes: IDEMPOTENCY_KEY_BYTES_MAX as u32 }.into());
    }
    let mut statement =
        conn.prepare_cached("SELECT fingerprint, outcome FROM __pleat_idempotency WHERE key = ?1 AND expires_ms > ?2")?;
    let found: Option<(i64, Vec<u8>)> =
        statement.query_row((&given.key, signed(now_ms)), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match found.filter(|_| !planted::is(Bug::IdempotencyIgnored)) {
        None => Ok(None),
        Some((fingerprint, _)) if fingerprint as u64 != given.fingerprint => {
            Err(Refusal::KeyConflict { key: given.key.clone() }.into())
        }
        Some((_, outcome)) => Ok(Some(postcard::from_bytes(&outcome)?)),
    }
}

/// Makes sure that a new key can be remembered.
pub(crate) fn admit(conn: &Connection, tally: &mut Tally, given: &Idempotency, now_ms: Millis) -> Applied<()> {
    if Class::of(&given.key) == Class::Internal || tally.client.count < IDEMPOTENCY_CLIENT_KEYS_MAX {
        return Ok(());
    }
    Class::Client.forget(conn, tally, signed(now_ms), IDEMPOTENCY_PRUNED_PER_WRITE)?;
    if tally.client.count < IDEMPOTENCY_CLIENT_KEYS_MAX {
        return Ok(());
    }
    let message = format!("too many idempotency keys are remembered ({IDEMPOTENCY_CLIENT_KEYS_MAX}); nothing was done");
    let hint = "try again when older keys have expired, or send the request without a key";
    Err(sqlstate::refuse(0, "53400", message, hint).into())
}

/// Remembers what a write gave, as its repetition will give it.
pub(crate) fn remember(
    conn: &Connection,
    tally: &mut Tally,
    given: &Idempotency,
    units: &[PartitionId],
    outcome: &Outcome,
    now_ms: Millis,
) -> Applied<()> {
    let margin_ms = match Class::of(&given.key) {
        Class::Client => 0,
        Class::Internal => IDEMPOTENCY_INTERNAL_MARGIN_MS,
    };
    let expires_ms = now_ms.saturating_add(given.ttl_ms.min(IDEMPOTENCY_TTL_MS_MAX)).saturating_add(margin_ms);
    let row = IdempotencyRow {
        key: given.key.clone(),
        units: units.to_vec(),
        fingerprint: given.fingerprint,
        expires_ms,
        outcome: postcard::to_stdvec(&repeated(outcome, true))?,
    };
    let row = match row.outcome.len() > IDEMPOTENCY_OUTCOME_BYTES_MAX {
        true => IdempotencyRow { outcome: postcard::to_stdvec(&repeated(outcome, false))?, ..row },
        false => row,
    };
    store(conn, tally, &row)?;
    prune(conn, tally, now_ms)
}

/// Stores a remembered write. The same key again (it had expired) is replaced.
fn store(conn: &Connection, tally: &mut Tally, row: &IdempotencyRow) -> Applied<()> {
    let units = postcard::to_stdvec(&row.units)?;
    let kept = tally.of(Class::of(&row.key));
    kept.expires_first_ms = kept.expires_first_ms.min(signed(row.expires_ms));
    kept.count += 1;
    tally.newest += 1;
    let values = (tally.newest, &row.key, &units, row.fingerprint as i64, signed(row.expires_ms), &row.outcome);
    let mut insert = conn.prepare_cached(
        "INSERT INTO __pleat_idempotency(seq, key, units, fingerprint, expires_ms, outcome) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
         ON CONFLICT (key) DO NOTHING",
    )?;
    if insert.execute(values)? == 0 {
        conn.prepare_cached("DELETE FROM __pleat_idempotency WHERE key = ?1")?.execute([&row.key])?;
        tally.of(Class::of(&row.key)).count -= 1;
        insert.execute(values)?;
    }
    Ok(())
}

/// Stands among a remembered write's units for all there are: its rows may be on any shard by now, and wherever it may
/// be repeated it has to be known. Alone, it says that the write was done on another shard.
pub(crate) const EVERY_UNIT: PartitionId = PartitionId(u32::MAX);

/// Stores a remembered write that a move brings. What is known of the key here stays, beside it: of a write over several
/// shards each has remembered its own part, and the move brings two of them to one place.
pub(crate) fn store_moved(conn: &Connection, tally: &mut Tally, row: &IdempotencyRow, now_ms: Millis) -> Applied<()> {
    let mut row = row.clone();
    if let Some((units, outcome)) = known(conn, &row.key, now_ms)? {
        row.units.extend(units);
        row.units.sort();
        row.units.dedup();
        if let Some(both) = both_parts(&outcome, &row.outcome)? {
            row.outcome = both;
        }
    }
    store(conn, tally, &row)
}

/// What two parts of a write gave, one after the other. `None`: the second one has all there is to tell.
///
/// A part that comes back from where it went once is among the other's already, and stands there once.
fn both_parts(known: &[u8], moved: &[u8]) -> Applied<Option<Vec<u8>>> {
    let (known, moved): (Outcome, Outcome) = (postcard::from_bytes(known)?, postcard::from_bytes(moved)?);
    let (
        Outcome::Replayed { results: mut both, rows_kept: one },
        Outcome::Replayed { results: others, rows_kept: other },
    ) = (known, moved)
    else {
        return Ok(None);
    };
    if contains(&others, &both) {
        return Ok(None);
    }
    if !contains(&both, &others) {
        both.extend(others);
    }
    Ok(Some(postcard::to_stdvec(&Outcome::Replayed { results: both, rows_kept: one && other })?))
}

fn contains(results: &[StatementResult], part: &[StatementResult]) -> bool {
    part.is_empty() || results.windows(part.len()).any(|some| some == part)
}

/// Stores a remembered write whose rows are going elsewhere by another rule. What the shard itself remembers under the
/// key stays: of a write over several shards each has its own part. It keeps its units, too: a shard that dies before all
/// others were told has to tell them again.
pub(crate) fn store_everywhere(
    conn: &Connection,
    tally: &mut Tally,
    row: &IdempotencyRow,
    now_ms: Millis,
) -> Applied<()> {
    let Some((mut units, _)) = known(conn, &row.key, now_ms)? else {
        return store(conn, tally, &IdempotencyRow { units: vec![EVERY_UNIT], ..row.clone() });
    };
    if !units.contains(&EVERY_UNIT) {
        units.push(EVERY_UNIT);
        conn.prepare_cached("UPDATE __pleat_idempotency SET units = ?2 WHERE key = ?1")?
            .execute((&row.key, postcard::to_stdvec(&units)?))?;
    }
    Ok(())
}

/// The units and the outcome of a write that is remembered here.
fn known(conn: &Connection, key: &str, now_ms: Millis) -> Applied<Option<(Vec<PartitionId>, Vec<u8>)>> {
    let mut known =
        conn.prepare_cached("SELECT units, outcome FROM __pleat_idempotency WHERE key = ?1 AND expires_ms > ?2")?;
    let found: Option<(Vec<u8>, Vec<u8>)> =
        known.query_row((key, signed(now_ms)), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    Ok(match found {
        Some((units, outcome)) => Some((postcard::from_bytes(&units)?, outcome)),
        None => None,
    })
}

/// The remembered writes after `seq` whose units `wanted` accepts, and the last number
/// looked at; and whether there may be more. At most `limit` are looked at, and as many are given as fit.
pub(crate) fn after(
    conn: &Connection,
    seq: i64,
    limit: usize,
    left: &mut Left,
    wanted: impl Fn(&[PartitionId]) -> bool,
) -> anyhow::Result<(Vec<IdempotencyRow>, i64, bool)> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, key, units, fingerprint, expires_ms, outcome FROM __pleat_idempotency WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut rows = statement.query((seq, limit as i64))?;
    let (mut found, mut last, mut looked_at) = (Vec::new(), seq, 0);
    while let Some(row) = rows.next()? {
        let units_bytes = row.get_ref(2)?.as_blob()?;
        let units: Vec<PartitionId> = postcard::from_bytes(units_bytes)?;
        let is_wanted = wanted(&units);
        let bytes =
            || anyhow::Ok(row.get_ref(1)?.as_str()?.len() + units_bytes.len() + row.get_ref(5)?.as_blob()?.len());
        if is_wanted && !left.take(ROW_BYTES + bytes()?) {
            return Ok((found, last, true));
        }
        last = row.get(0)?;
        looked_at += 1;
        if !is_wanted {
            continue;
        }
        found.push(IdempotencyRow {
            key: row.get(1)?,
            units,
            fingerprint: row.get::<_, i64>(3)? as u64,
            expires_ms: row.get::<_, i64>(4)? as u64,
            outcome: row.get(5)?,
        });
    }
    Ok((found, last, looked_at == limit))
}

/// What a remembered write takes on its way beside its key, units and outcome, in bytes.
const ROW_BYTES: usize = 32;

/// Forgets what may be forgotten, a few at a time: more than one write adds.
///
/// What has expired goes by the whole second of the log's time, and what is too many by as many as go at a time. So there is something
/// to do for one write in eight, and not for each.
fn prune(conn: &Connection, tally: &mut Tally, now_ms: Millis) -> Applied<()> {
    let expired_by = signed(now_ms - now_ms % 1_000);
    for class in [Class::Client, Class::Internal] {
        if tally.of(class).expires_first_ms <= expired_by {
            class.forget(conn, tally, expired_by, IDEMPOTENCY_PRUNED_PER_WRITE)?;
        }
    }
    if tally.internal.count >= IDEMPOTENCY_INTERNAL_KEYS_MAX + IDEMPOTENCY_PRUNED_PER_WRITE {
        Class::Internal.forget(conn, tally, i64::MAX, IDEMPOTENCY_PRUNED_PER_WRITE)?;
    }
    Ok(())
}

/// The outcome that the repetition of a write gets.
fn repeated(outcome: &Outcome, keep_rows: bool) -> Outcome {
    let results = |results: &Vec<StatementResult>| match keep_rows {
        true => results.clone(),
        false => results.iter().map(|result| StatementResult { rows: Vec::new(), ..result.clone() }).collect(),
    };
    match outcome {
        Outcome::Done { results: given } => Outcome::Replayed { results: results(given), rows_kept: keep_rows },
        Outcome::Reference { seq, results: given, .. } => {
            Outcome::Reference { seq: *seq, results: results(given), replayed: true }
        }
        Outcome::Bulk { parts } => {
            let rejected = |part: &BulkDone| if keep_rows { part.rejected.clone() } else { Vec::new() };
            let again =
                |part: &BulkDone| BulkDone { inserted: part.inserted, rejected: rejected(part), replayed: true };
            Outcome::Bulk { parts: parts.iter().map(again).collect() }
        }
        other => other.clone(),
    }
}

fn signed(millis: Millis) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}
