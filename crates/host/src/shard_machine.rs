//! An embedded shard's state machine: the log's proposals, applied to SQLite.
//!
//! All committed entries that are waiting go into one SQLite transaction, and the position in the log with
//! them, so that after a crash the database says exactly how far it is.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use pleat_cluster::ShardId;
use pleat_cluster::planted::{self, Bug};
use pleat_consensus::{Applied, Entry, StateMachine};
use pleat_engine::{Proposal, Store};

use crate::position::with_index;
use crate::verify::Digests;

/// A [`Store`] that follows a Raft log.
pub struct ShardMachine {
    #[cfg_attr(
        not(feature = "failpoints"),
        expect(dead_code, reason = "only failpoints ask on whose behalf it applies")
    )]
    shard: ShardId,
    store: Store,
    digests: Arc<Digests>,
}

impl ShardMachine {
    pub fn new(shard: ShardId, store: Store, digests: Arc<Digests>) -> Self {
        Self { shard, store, digests }
    }

    /// The log has these proposals, and the database doesn't.
    #[cfg(feature = "failpoints")]
    fn applying(&self, proposals: &[&[u8]]) {
        use crate::failpoint::{effect, reach_in};
        use pleat_engine::Action;
        for proposal in proposals.iter().filter_map(|bytes| Proposal::decode(bytes).ok()) {
            match proposal.action {
                Action::Prepare { .. } => crate::failpoint::reach("participant.applying-prepare", Some(self.shard)),
                Action::Decide { .. } => crate::failpoint::reach("participant.applying-decide", Some(self.shard)),
                action => reach_in("shard.applying-effect", effect(&action)),
            }
        }
    }
}

impl StateMachine for ShardMachine {
    fn applied(&mut self) -> anyhow::Result<Applied> {
        decode(&self.store.applied()?)
    }

    fn apply(&mut self, entries: Vec<Entry>, applied: Applied) -> anyhow::Result<Vec<Vec<Bytes>>> {
        let proposals: Vec<&[u8]> = entries.iter().flat_map(|entry| &entry.proposals).map(|p| p.as_ref()).collect();
        #[cfg(feature = "failpoints")]
        self.applying(&proposals);
        let skipped = usize::from(planted::is(Bug::EntrySkipped) && proposals.len() > 1);
        let carried_out = &proposals[..proposals.len() - skipped];
        let applied = postcard::to_stdvec(&applied)?;
        let mut outcomes = self.store.apply(carried_out, &applied).map_err(pleat_engine::disk_error)?;
        outcomes.extend(outcomes.last().filter(|_| skipped > 0).cloned());
        let mut outcomes = outcomes.into_iter();
        let of_entry = |entry: &Entry| {
            outcomes.by_ref().take(entry.proposals.len()).map(|outcome| with_index(entry.index, &outcome)).collect()
        };
        let outcomes = entries.iter().map(of_entry).collect();
        if let Some(last) = entries.last().filter(|last| self.ends_batch(last)) {
            match self.store.digest_job() {
                Ok(job) => self.digests.compute(last.index, job),
                // The replica is as well as before, only not compared.
                Err(error) => tracing::warn!(index = last.index, "no digest was computed: {error:#}"),
            }
        }
        Ok(outcomes)
    }

    fn ends_batch(&self, entry: &Entry) -> bool {
        entry.proposals.iter().any(|proposal| Proposal::is_digest(proposal))
    }

    fn checkpoint(&mut self) -> anyhow::Result<Applied> {
        self.store.checkpoint().map_err(pleat_engine::disk_error)?;
        self.applied()
    }

    fn snapshot(&mut self) -> anyhow::Result<Box<dyn FnOnce(&Path) -> anyhow::Result<Applied> + Send>> {
        let copy = self.store.copier()?;
        Ok(Box::new(move |into| decode(&copy(into)?)))
    }

    fn install(&mut self, from: &Path, _applied: Applied) -> anyhow::Result<()> {
        // The file says itself how far it is: the position was copied along with the rows.
        self.store.install(from).map_err(pleat_engine::disk_error)
    }
}

/// The position in the log, as it stands in the database.
pub fn decode(bytes: &[u8]) -> anyhow::Result<Applied> {
    if bytes.is_empty() {
        return Ok(Applied::default());
    }
    postcard::from_bytes(bytes).context("decode the position in the log")
}
