//! Idempotency keys: a write is remembered with its effect, in the transaction of its effect.
//!
//! They are bounded in number and age. Which are forgotten depends on the entry's time and on the number of keyed
//! writes so far, never on this replica's clock.

use pleat_cluster::{Millis, PartitionId};
use rusqlite::{Connection, OptionalExtension};

use super::failure::Applied;
use crate::limits::{
    IDEMPOTENCY_KEY_BYTES_MAX, IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_OUTCOME_BYTES_MAX, IDEMPOTENCY_PRUNED_PER_WRITE,
    IDEMPOTENCY_TTL_MS_MAX,
};
use crate::{Idempotency, IdempotencyRow, Outcome, Refusal, StatementResult};

/// What a repeated write gives; `None` when the key is new.
pub(crate) fn replay(conn: &Connection, given: &Idempotency, now_ms: Millis) -> Applied<Option<Outcome>> {
    if given.key.is_empty() || given.key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(Refusal::KeyInvalid { limit_bytes: IDEMPOTENCY_KEY_BYTES_MAX as u32 }.into());
    }
    let mut statement =
        conn.prepare_cached("SELECT fingerprint, outcome FROM __pleat_idempotency WHERE key = ?1 AND expires_ms > ?2")?;
    let found: Option<(i64, Vec<u8>)> =
        statement.query_row((&given.key, signed(now_ms)), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match found {
        None => Ok(None),
        Some((fingerprint, _)) if fingerprint as u64 != given.fingerprint => {
            Err(Refusal::KeyConflict { key: given.key.clone() }.into())
        }
        Some((_, outcome)) => Ok(Some(postcard::from_bytes(&outcome)?)),
    }
}

/// Remembers what a write gave, as its repetition will give it.
pub(crate) fn remember(
    conn: &Connection,
    given: &Idempotency,
    units: &[PartitionId],
    outcome: &Outcome,
    now_ms: Millis,
) -> Applied<()> {
    let expires_ms = now_ms.saturating_add(given.ttl_ms.min(IDEMPOTENCY_TTL_MS_MAX));
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
    store(conn, &row)?;
    prune(conn, now_ms)
}

/// Stores a remembered write, here or from another shard. The same key again (it had expired) is replaced.
pub(crate) fn store(conn: &Connection, row: &IdempotencyRow) -> Applied<()> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO __pleat_idempotency(key, units, fingerprint, expires_ms, outcome) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute((
        &row.key,
        postcard::to_stdvec(&row.units)?,
        row.fingerprint as i64,
        signed(row.expires_ms),
        &row.outcome,
    ))?;
    Ok(())
}

/// The remembered writes after `seq` that concern one of the units which `wanted` accepts, and the last number
/// looked at. At most `limit` are looked at.
pub(crate) fn after(
    conn: &Connection,
    seq: i64,
    limit: usize,
    wanted: impl Fn(PartitionId) -> bool,
) -> anyhow::Result<(Vec<IdempotencyRow>, i64, bool)> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, key, units, fingerprint, expires_ms, outcome FROM __pleat_idempotency WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut rows = statement.query((seq, limit as i64))?;
    let (mut found, mut last, mut looked_at) = (Vec::new(), seq, 0);
    while let Some(row) = rows.next()? {
        last = row.get(0)?;
        looked_at += 1;
        let units: Vec<PartitionId> = postcard::from_bytes(row.get_ref(2)?.as_blob()?)?;
        if !units.iter().any(|unit| wanted(*unit)) {
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

fn prune(conn: &Connection, now_ms: Millis) -> Applied<()> {
    conn.prepare_cached(
        "DELETE FROM __pleat_idempotency WHERE seq IN (SELECT seq FROM __pleat_idempotency INDEXED BY __pleat_idempotency_expiry \
         WHERE expires_ms <= ?1 ORDER BY expires_ms, seq LIMIT ?2)",
    )?
    .execute((signed(now_ms), IDEMPOTENCY_PRUNED_PER_WRITE))?;
    conn.prepare_cached(
        "DELETE FROM __pleat_idempotency WHERE seq <= (SELECT max(seq) FROM __pleat_idempotency) - ?1",
    )?
    .execute([IDEMPOTENCY_KEYS_MAX])?;
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
        Outcome::Bulk { inserted, rejected, .. } => Outcome::Bulk {
            inserted: *inserted,
            rejected: if keep_rows { rejected.clone() } else { Vec::new() },
            replayed: true,
        },
        other => other.clone(),
    }
}

fn signed(millis: Millis) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}
