//! What the autoscaler concluded, with all that it looked at.

use serde::{Deserialize, Serialize};

use crate::{DecisionId, Generation, Millis, OperationId, PartitionId, ShardId};

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
}

impl Verdict {
    /// The reason, whatever the conclusion.
    pub fn reason(&self) -> &str {
        match self {
            Verdict::Hold { reason } | Verdict::Split { reason, .. } => reason,
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
