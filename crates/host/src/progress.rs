//! How far the operations in hand are: rows, bytes, rate, and when the step at hand will be over.
//!
//! The leader that carries an operation out knows it, and nobody else needs it to carry on: whoever leads next goes by the
//! journal. So it is not journaled. An entry of the journal is an entry of the control group's log, written and fsynced on
//! a majority of nodes, and a copy sends hundreds of messages a second. It lives in the memory of the node that leads the
//! control group, and *other nodes ask it, when somebody looks*. Telling them would cost a message to every node all
//! the time, mostly for nobody. It is lost with the leader, as is the attempt that it speaks of.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use pleat_cluster::{Millis, OperationId};
use serde::{Deserialize, Serialize};

use crate::host::CONTROL;
use crate::route::Effect;
use crate::rpc::{Request, Response};
use crate::{Host, HostError};

/// How far the step of an operation is that is being carried out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub step: String,
    /// For people: `in table flights`.
    pub detail: String,
    /// When the step began.
    pub begun: Millis,
    pub rows: u64,
    pub bytes: u64,
    /// About how many there are, where that is known. Clients go on writing meanwhile.
    pub rows_total: Option<u64>,
    pub bytes_total: Option<u64>,
    /// Over the last seconds; `None` until there is something to measure.
    pub rows_per_second: Option<f64>,
    pub bytes_per_second: Option<f64>,
    /// When the step will have ended at this rate.
    pub ends: Option<Millis>,
}

/// What this node knows because it carries the operations out.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<BTreeMap<OperationId, Progress>>);

impl Board {
    pub fn all(&self) -> BTreeMap<OperationId, Progress> {
        self.0.lock().clone()
    }
}

impl Host {
    /// Note how far an operation is that this node carries out; `None` when it does not any more.
    pub fn note_progress(&self, operation: OperationId, progress: Option<Progress>) {
        let mut board = self.board().0.lock();
        match progress {
            Some(progress) => board.insert(operation, progress),
            None => board.remove(&operation),
        };
    }

    /// How far the operations are that are being carried out, from the node that does.
    pub async fn progress(&self, within: Duration) -> Result<BTreeMap<OperationId, Progress>, HostError> {
        match self.ask_leader(CONTROL, Effect::None, within, || Request::Progress).await? {
            (Response::Progress(progress), _) => Ok(progress),
            _ => Err(crate::calls::mismatch()),
        }
    }
}
