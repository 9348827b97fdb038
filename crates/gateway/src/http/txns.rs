//! `/txns`: transactions that are open, and those over several shards that are being decided.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use pleat_host::InDoubt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::problem::{ErrorBody, Problem};
use crate::session::OpenTxn;
use crate::settings::STATUS_TIME_MAX;
use pleat_cluster::rfc3339;

/// A transaction that is open in a session of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OpenTxnBody {
    #[schema(example = "txn-0f8fad5bd9cb469fa16570867728950e")]
    pub id: String,
    pub began: String,
    /// The shards that it has read or written.
    pub shards: Vec<String>,
    /// Those of them that it wrote on.
    pub wrote: Vec<String>,
    /// Nothing can be done in it any more; its session has not ended it yet.
    pub failed: bool,
}

/// A transaction that is prepared on shards which don't know yet what was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InDoubtBody {
    pub id: String,
    pub began: String,
    /// Every shard that takes part.
    pub participants: Vec<String>,
    /// Where it is prepared and not decided, with the time since when.
    pub prepared: BTreeMap<String, String>,
    /// `commit` or `abort`, when the ledger has it; the shards hear of it soon.
    pub decided: Option<String>,
}

/// An open transaction, with the session that it is open in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionTxnBody {
    pub session: String,
    /// How long the session has done nothing.
    pub unused_ms: u64,
    #[serde(flatten)]
    pub transaction: OpenTxnBody,
}

/// Transactions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TxnsBody {
    /// On all shards.
    pub in_doubt: Vec<InDoubtBody>,
    /// In the sessions of this node.
    pub open: Vec<SessionTxnBody>,
}

impl From<&OpenTxn> for OpenTxnBody {
    fn from(txn: &OpenTxn) -> Self {
        Self {
            id: txn.id.to_string(),
            began: rfc3339(txn.began),
            shards: txn.shards.keys().map(ToString::to_string).collect(),
            wrote: txn.shards.iter().filter(|(_, wrote)| **wrote).map(|(shard, _)| shard.to_string()).collect(),
            failed: txn.failed,
        }
    }
}

/// List transactions: those in doubt on all shards, and those that are open in this node's sessions.
///
/// One that is in doubt for longer than a few seconds waits for a shard that has no leader.
#[utoipa::path(get, path = "/txns", tag = "sessions",
    responses((status = 200, body = TxnsBody), (status = 503, body = ErrorBody)))]
pub async fn list(State(app): State<App>) -> Result<Json<TxnsBody>, Problem> {
    let in_doubt = app.backend.in_doubt(STATUS_TIME_MAX).await?;
    let open = app.executor.sessions().into_iter().filter_map(|info| {
        let transaction = OpenTxnBody::from(info.txn.as_ref()?);
        Some(SessionTxnBody { session: info.id, unused_ms: info.unused.as_millis() as u64, transaction })
    });
    Ok(Json(TxnsBody { in_doubt: by_txn(in_doubt), open: open.collect() }))
}

/// One entry for each transaction, from one for each shard.
fn by_txn(found: Vec<InDoubt>) -> Vec<InDoubtBody> {
    let mut txns: BTreeMap<_, InDoubtBody> = BTreeMap::new();
    for one in found {
        let decided = one.decided.map(|commit| if commit { "commit" } else { "abort" }.to_owned());
        let entry = txns.entry((one.began, one.txn)).or_insert_with(|| InDoubtBody {
            id: one.txn.to_string(),
            began: rfc3339(one.began),
            participants: one.participants.iter().map(ToString::to_string).collect(),
            prepared: BTreeMap::new(),
            decided: None,
        });
        entry.prepared.insert(one.shard.to_string(), rfc3339(one.prepared_ms));
        entry.decided = entry.decided.take().or(decided);
    }
    txns.into_values().collect()
}
