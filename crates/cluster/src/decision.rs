//! What the autoscaler concluded, with all that it looked at.

use serde::{Deserialize, Serialize};

use crate::{DecisionId, Generation, Millis, OperationId, OperationKind, PartitionId, ShardId};

/// A number that was looked at, and the threshold that it was held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// `shard-1` or `cluster`.
    pub subject: String,
    /// `total_entries`, `cpu_percent`, …
    pub metric: String,
    pub value: f64,
    pub threshold: Option<f64>,
    pub exceeded: bool,
}

/// Something that could have been done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Option_ {
    pub what: String,
    pub chosen: bool,
    pub why: String,
}

/// The conclusion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Nothing to do, or nothing allowed yet; the reason says which.
    Hold {
        reason: String,
    },
    Split {
        from: ShardId,
        to: ShardId,
        partitions: Vec<PartitionId>,
        reason: String,
    },
    /// Shard `from` is to go, and all its partitions to `to`.
    Merge {
        from: ShardId,
        to: ShardId,
        partitions: Vec<PartitionId>,
        reason: String,
    },
}

impl Verdict {
    /// The reason, whatever the conclusion.
    pub fn reason(&self) -> &str {
        match self {
            Verdict::Hold { reason } | Verdict::Split { reason, .. } | Verdict::Merge { reason, .. } => reason,
        }
    }

    /// What carries it out; none for `Hold`.
    pub fn operation(&self) -> Option<OperationKind> {
        match self.clone() {
            Verdict::Hold { .. } => None,
            Verdict::Split { from, to, partitions, .. } => Some(OperationKind::Split { from, to, partitions }),
            Verdict::Merge { from, to, partitions, .. } => Some(OperationKind::Merge { from, to, partitions }),
        }
    }
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Assigned by the catalog.
    pub id: DecisionId,
    pub at: Millis,
    /// The catalog that it was made on.
    pub generation: Generation,
    pub strategy: crate::Strategy,
    pub measurements: Vec<Measurement>,
    pub options: Vec<Option_>,
    pub verdict: Verdict,
    /// The operation that carries it out; none for `Hold`, and none in manual mode.
    pub operation: Option<OperationId>,
}
