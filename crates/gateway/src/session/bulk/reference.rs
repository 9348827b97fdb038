//! A batch for a reference table, which every shard holds in full.
//!
//! Writes to reference tables are put in order by one shard and repeated by all others, so they are plain
//! statements, all or none. To keep the good rows of a piece all the same, a row that fails is replaced by
//! a SELECT that says which row it was and why, and the piece is tried again. What was rejected thus stands in
//! the piece's own result, and a repetition of the batch, which gives that result again, names the same rows.
//!
//! Each bad row costs an attempt, so their number is limited.

use pleat_cluster::{Table, Value, concerns_others};
use pleat_engine::{Action, Outcome, SqlFailure, Statement};

use super::split::{Rows, pieces};
use super::{PieceDone, Rejected};
use crate::session::deadline::Deadline;
use crate::session::write::{Key, fingerprint_of};
use crate::session::{Effect, Executor, Failure};

/// Rows of one piece that may be rejected.
const REJECTED_MAX: usize = 100;
/// Bytes of a rejected row's reason that are kept.
const REASON_BYTES_MAX: usize = 200;
/// What a rejected row leaves in its piece: its number in the piece, the SQLSTATE, the reason.
const REJECTED_SQL: &str = "SELECT ?1 AS pleat_rejected_row, ?2 AS code, ?3 AS reason";

impl Executor {
    pub(super) async fn bulk_reference(
        &self,
        table: &Table,
        columns: &[String],
        rows: Rows,
        key: &Key,
        deadline: &Deadline,
    ) -> (Vec<PieceDone>, Option<Failure>) {
        let (pieces, rejected) = pieces(columns.len(), rows);
        // Rows that don't fit are no piece's; they must not make the batch look new when it is repeated.
        let unfit = PieceDone { shard: None, inserted: 0, rejected, replayed: true };
        let mut done = if unfit.rejected.is_empty() { Vec::new() } else { vec![unfit] };
        let sql = insert(table, columns);
        let tables = &self.backend.catalog().tables;
        if !table.only_gains(&sql) && concerns_others(tables.values(), &table.name) {
            let message = format!("rows for {}, to which other tables refer, may replace others", table.name);
            let hint = "insert them with INSERT statements";
            return (done, Some(Failure::new("0A000", message, hint)));
        }
        for (number, piece) in pieces.into_iter().enumerate() {
            let key = key.part(&number.to_string(), fingerprint_of(&(columns, &piece)));
            match self.reference_piece(&sql, &piece, &key, deadline).await {
                Ok(piece) => done.push(piece),
                Err(failure) => return (done, Some(failure)),
            }
        }
        (done, None)
    }

    async fn reference_piece(
        &self,
        sql: &str,
        piece: &Rows,
        key: &Key,
        deadline: &Deadline,
    ) -> Result<PieceDone, Failure> {
        let mut statements: Vec<_> = piece.iter().map(|(_, row)| Statement::new(sql, row.clone())).collect();
        for _ in 0..=REJECTED_MAX {
            match self.reference_write(&statements, key, deadline).await? {
                Ok((effects, replayed)) => return Ok(done(piece, effects, replayed)),
                Err(failure) => {
                    let Some(statement) = statements.get_mut(failure.statement as usize) else {
                        return Err(failure.into());
                    };
                    *statement = rejection(&failure);
                }
            }
        }
        Err(Failure::new(
            "54000",
            format!("more than {REJECTED_MAX} of {} rows for a reference table were rejected", piece.len()),
            "nothing of these rows was inserted: correct them and send them again under another batch_id",
        ))
    }

    /// One attempt. The inner error is about one row.
    async fn reference_write(
        &self,
        statements: &[Statement],
        key: &Key,
        deadline: &Deadline,
    ) -> Result<Result<(Vec<Effect>, bool), SqlFailure>, Failure> {
        self.rerouting(deadline, |attempt| async move {
            let action =
                Action::ReferenceWrite { idempotency: Some(key.idempotency()), statements: statements.to_vec() };
            let written = self.backend.write_reference(attempt.catalog.planned(), action, deadline.left()).await;
            let written = written.map_err(|error| key.setback(error))?;
            match written.outcome {
                Outcome::Failed(failure) if is_about_a_row(&failure) => Ok(Err(failure)),
                Outcome::Refused(refusal) => Err(key.refused(refusal, written.uncertain)),
                outcome => crate::session::write::effects(outcome, key, written.uncertain).map(Ok),
            }
        })
        .await
    }
}

/// Constraints and values are a row's fault; anything else is the whole batch's.
fn is_about_a_row(failure: &SqlFailure) -> bool {
    failure.code.starts_with("23") || failure.code.starts_with("22") || failure.code == "42804"
}

fn rejection(failure: &SqlFailure) -> Statement {
    let mut reason = failure.message.clone();
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    let values = [Value::Integer(i64::from(failure.statement)), failure.code.clone().into(), reason.into()];
    Statement::new(REJECTED_SQL, values)
}

fn done(piece: &Rows, effects: Vec<Effect>, replayed: bool) -> PieceDone {
    let mut done = PieceDone { shard: None, inserted: 0, rejected: Vec::new(), replayed };
    for effect in effects {
        match effect.rows.first().map(Vec::as_slice) {
            Some([Value::Integer(at), Value::Text(code), Value::Text(error)]) => {
                let row = usize::try_from(*at).ok().and_then(|at| piece.get(at).map(|(number, _)| *number));
                let row = row.unwrap_or(u32::MAX);
                done.rejected.push(Rejected { row, code: code.clone(), error: error.clone() });
            }
            _ => done.inserted += effect.rows_affected,
        }
    }
    done
}

fn insert(table: &Table, columns: &[String]) -> String {
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let names: Vec<_> = columns.iter().map(|column| quote(column)).collect();
    let values = vec!["?"; columns.len()];
    format!("INSERT INTO {} ({}) VALUES ({})", quote(&table.name), names.join(", "), values.join(", "))
}
