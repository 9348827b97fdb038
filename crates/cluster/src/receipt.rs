//! The receipt of a move: what was carried, that both sides hold the same, and for how long writes waited.
//!
//! The leader that carries out a move hands the receipt in before it closes the gates ([`Command::KeepReceipt`]), with the
//! digests that it compared and the pause that it predicts, and once more when the target has taken over, with the pause
//! that it measured. It stays with the operation, so that whoever asks later, or leads next, has the figures.
//!
//! *A receipt whose sides differ refuses the cutover*, in two places. The mover gives such a move up; and the catalog
//! doesn't commit an operation that has one, whoever asks for it. It is kept all the same: it tells which tables differ.
//!
//! *What the digests cover.* The rows of the moving partitions at one position of the source's log, before the gates close.
//! The few changes carried after that position are counted here and not compared: that would have to happen behind closed
//! gates, and take as long as reading everything.
//!
//! *The pause* is measured by the clock of the leader that closed the gates. When that one died in between, its successor
//! takes the time from the journal's entry before the gates closed to its own present: too long rather than too short,
//! up to what the clocks of the two differ by.
//!
//! [`Command::KeepReceipt`]: crate::Command::KeepReceipt

use serde::{Deserialize, Serialize};

use crate::apply::{Applied, invalid};
use crate::{Catalog, Millis, OperationId, OperationKind};

/// Tables that a receipt lists by name. The digests over all tables cover the others.
pub const RECEIPT_TABLES_MAX: usize = 100;

/// How many rows there are, and the sum of their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub rows: u64,
    pub sum: u64,
}

/// One table on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableReceipt {
    pub table: String,
    pub source: Digest,
    pub target: Digest,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Rows brought from the snapshot.
    pub copied: u64,
    /// Rows and deletions brought afterwards, because they changed meanwhile.
    pub changed: u64,
    /// Bytes of values of all of these.
    pub bytes: u64,
    /// All that moves, as the source has it.
    pub source: Digest,
    /// The same as the target has it.
    pub target: Digest,
    /// By table: those that differ, then the others by name, at most [`RECEIPT_TABLES_MAX`].
    pub tables: Vec<TableReceipt>,
    /// For how long writes were expected to wait, when the gates were closed.
    pub pause_predicted_ms: u64,
    /// For how long they did; `None` until the target accepts them.
    pub pause_ms: Option<u64>,
}

impl Receipt {
    /// Whether both sides are the same, in all tables.
    pub fn agrees(&self) -> bool {
        self.source == self.target && self.differences().next().is_none()
    }

    /// The tables that are not the same on both sides.
    pub fn differences(&self) -> impl Iterator<Item = &TableReceipt> {
        self.tables.iter().filter(|table| table.source != table.target)
    }
}

impl Catalog {
    pub(crate) fn keep_receipt(&mut self, id: OperationId, receipt: &Receipt, at: Millis) -> Applied {
        if receipt.tables.len() > RECEIPT_TABLES_MAX {
            return Err(invalid(format!("a receipt lists at most {RECEIPT_TABLES_MAX} tables")));
        }
        let operation = self.open(id)?;
        if matches!(operation.kind, OperationKind::Rebuild { .. } | OperationKind::Promote { .. }) {
            return Err(invalid(format!("{id} moves nothing that there could be a receipt of")));
        }
        let compared = |receipt: &Receipt| (receipt.source, receipt.target, receipt.tables.clone());
        let known = operation.receipt.as_deref().map(compared);
        if operation.committed && known != Some(compared(receipt)) {
            return Err(invalid(format!("{id} was committed by its receipt, and what that compared does not change")));
        }
        operation.receipt = Some(Box::new(receipt.clone()));
        operation.updated = at;
        Ok(())
    }
}
