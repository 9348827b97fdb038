//! The session's connection to one shard, and a statement that goes to that shard alone.

use pleat_cluster::ShardId;
use pleat_engine::postgres::{Lease, PostgresError, Reply, Request};
use pleat_host::{HostError, Pass};

use super::{LEASE_TIME_MAX, Relay};
use crate::pg::cancel::Key;
use crate::pg::client::{Client, Stop};
use crate::pg::wire::{Broken, Message};
use crate::session::Failure;

/// In a transaction over several shards: two that wait for each other on two servers are noticed by neither of these. So none waits
/// for long (unless the session has said how long).
const PATIENCE: &str = "SET LOCAL lock_timeout = '10s'";

/// A connection that the session has.
pub struct Part {
    pub lease: Lease,
    /// The block's transaction was begun on it.
    pub open: bool,
    /// Something was executed on it since the last Sync, outside of a block.
    pub executed: bool,
    /// Its transaction notifies when it commits.
    pub notified: bool,
    /// For all that is under way, or was told and not sent yet; those of a transaction that may have written stay to its end.
    passes: Vec<Pass>,
}

/// Where a server's answers ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// At ReadyForQuery.
    Ready { failed: bool },
    /// All is answered, and no Sync was sent. `failed`: nothing more is answered up to one.
    Answered { failed: bool },
}

impl Ended {
    pub fn failed(self) -> bool {
        match self {
            Ended::Ready { failed } | Ended::Answered { failed } => failed,
        }
    }
}

impl From<PostgresError> for Failure {
    fn from(error: PostgresError) -> Self {
        pleat_host::HostError::from(error).into()
    }
}

impl From<PostgresError> for Stop {
    fn from(error: PostgresError) -> Self {
        Stop::Failed(error.into())
    }
}

impl Relay {
    /// A connection to a shard, with the session's settings.
    pub(super) async fn lease(&self, shard: ShardId) -> Result<Lease, Failure> {
        let mut lease = self.shared.app.backend.lease(shard, LEASE_TIME_MAX).await?;
        lease.assume(self.settings.profile()).await?;
        Ok(lease)
    }

    /// The session's connection to a shard, in the session's block if there is one, for the statement at hand. [`Stop::Stale`]: that is to
    /// be routed anew.
    pub(super) async fn part(&mut self, shard: ShardId) -> Result<&mut Part, Stop> {
        if self.parts.contains_key(&shard) {
            self.admit(shard).await?;
        } else {
            // Before the connection, so that nobody waits at the gates with one.
            let passes = vec![self.pass(shard).await?];
            let lease = self.lease(shard).await?;
            self.parts.insert(shard, Part { lease, open: false, executed: false, notified: false, passes });
        }
        let Some(mut part) = self.parts.remove(&shard) else {
            return Err(Failure::internal(format!("the session has no connection to {shard}")).into());
        };
        if let Some(block) = &self.block
            && !part.open
        {
            let mut open = self.parts.values_mut().filter(|part| part.open);
            let beginning = match (open.next(), open.next()) {
                _ if self.settings.has("lock_timeout") => block.beginning(),
                (None, _) => block.beginning(),
                (Some(first), None) => {
                    // One in the middle of something else is the only one that waits for long.
                    if first.lease.is_settled() {
                        first.lease.ask(PATIENCE).await?;
                    }
                    format!("{}; {PATIENCE}", block.beginning())
                }
                (Some(_), Some(_)) => format!("{}; {PATIENCE}", block.beginning()),
            };
            part.lease.ask(&beginning).await?;
            (part.open, part.notified) = (true, false);
        }
        part.notified |= self.notifies;
        Ok(self.parts.entry(shard).or_insert(part))
    }

    /// Have a pass for the statement at hand on a connection that the session has, beside those for what goes before it.
    pub(super) async fn admit(&mut self, shard: ShardId) -> Result<(), Stop> {
        let held =
            self.parts.get(&shard).is_some_and(|part| part.passes.iter().any(|pass| pass.writes() || !self.writes));
        if !held {
            let pass = self.pass(shard).await?;
            if let Some(part) = self.parts.get_mut(&shard) {
                part.passes.push(pass);
            }
        }
        Ok(())
    }

    /// What was read has been answered: in a block, too, nothing of it is under way any more.
    pub(super) fn release_reads(&mut self) {
        for part in self.parts.values_mut().filter(|part| part.lease.is_settled()) {
            part.passes.retain(Pass::writes);
        }
    }

    async fn pass(&self, shard: ShardId) -> Result<Pass, Stop> {
        let planned = self.catalog().generation;
        match self.shared.app.backend.pass(shard, planned, self.writes, LEASE_TIME_MAX).await {
            Ok(pass) => Ok(pass),
            Err(HostError::Refused(_)) => Err(Stop::Stale),
            Err(error) => Err(Stop::Failed(error.into())),
        }
    }

    /// Send a statement to one shard as it is, in the simple protocol, and pass its answer on.
    pub(super) async fn through(
        &mut self,
        client: &mut Client,
        key: &Key,
        shard: ShardId,
        text: &str,
    ) -> Result<Ended, Stop> {
        self.part(shard).await?.lease.push(Request::Query(text.to_owned()))?;
        self.pump(client, key, shard).await
    }

    /// The same, for what leaves something in its session when it does not fail: the connection is kept from then on.
    pub(super) async fn through_kept(
        &mut self,
        client: &mut Client,
        key: &Key,
        shard: ShardId,
        text: &str,
    ) -> Result<Ended, Stop> {
        let before = self.pinned;
        self.pinned.get_or_insert(shard);
        let ended = self.through(client, key, shard, text).await;
        if !matches!(ended, Ok(ended) if !ended.failed()) {
            self.pinned = before;
            if self.block.is_none() {
                self.keep_pinned();
            }
        }
        ended
    }

    /// Outside of a block, a session keeps the connection that it is pinned to.
    pub(super) fn keep_pinned(&mut self) {
        let others: Vec<ShardId> = self.parts.keys().copied().filter(|shard| Some(*shard) != self.pinned).collect();
        others.into_iter().for_each(|shard| self.leave(shard));
        for part in self.parts.values_mut().filter(|part| part.lease.is_settled()) {
            part.passes.clear();
        }
    }

    /// Pass on what a shard answers, to the end of it. An error of the server is passed on as well, and told by the result.
    pub(super) async fn pump(&mut self, client: &mut Client, key: &Key, shard: ShardId) -> Result<Ended, Stop> {
        let pumped = self.pumped(client, key, shard).await;
        match &pumped {
            Ok(ended) => {
                if ended.failed() {
                    self.fail_block();
                }
                if matches!(ended, Ended::Ready { .. }) {
                    self.settle_part(shard);
                }
            }
            Err(_) => self.lose([shard]),
        }
        pumped
    }

    async fn pumped(&mut self, client: &mut Client, key: &Key, shard: ShardId) -> Result<Ended, Stop> {
        let Some(part) = self.parts.get_mut(&shard) else {
            return Err(Failure::internal(format!("the session has no connection to {shard}")).into());
        };
        let lease = &mut part.lease;
        let canceller = lease.canceller();
        let mut cancelled = false;
        loop {
            let reply = tokio::select! {
                biased;
                reply = lease.receive() => reply?,
                () = key.requested(), if !cancelled => {
                    cancelled = true;
                    let canceller = canceller.clone();
                    // The server answers with the error that tells of it.
                    pleat_consensus::spawn(async move { canceller.cancel().await });
                    continue;
                }
                () = client.reader.gone() => {
                    return Err(Broken::Socket(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)).into());
                }
            };
            match reply {
                Reply::Bytes(bytes) => {
                    client.out.raw(&bytes);
                    client.flush_much().await?;
                }
                Reply::CopyIn => {
                    client.flush().await?;
                    take_rows(client, key, lease).await?;
                }
                Reply::Ready { error, .. } => {
                    self.values.answered(error.as_ref().map(|code| code.as_str()));
                    return Ok(Ended::Ready { failed: error.is_some() });
                }
                Reply::Answered => return Ok(Ended::Answered { failed: lease.is_skipping() }),
            }
        }
    }

    /// A shard is ready again: outside of a block, its connection is another's.
    fn settle_part(&mut self, shard: ShardId) {
        let in_block = self.block.is_some();
        if let Some(part) = self.parts.get_mut(&shard) {
            part.executed = false;
            part.passes.retain(|pass| in_block && pass.writes());
        }
        if !in_block && self.pinned != Some(shard) {
            self.parts.remove(&shard);
        }
    }

    /// Give up connections whose state is not known any more: what runs there is cancelled. A block that had a part of it there can't be committed.
    pub(super) fn lose(&mut self, shards: impl IntoIterator<Item = ShardId>) {
        for shard in shards {
            self.leave(shard);
        }
        if let Some(block) = &mut self.block {
            (block.failed, block.lost) = (true, true);
        }
    }

    /// Give up a connection, be it in the middle of something. What was sent there may be carried out yet: its passes stay out until the server says
    /// that the session has ended.
    pub(super) fn leave(&mut self, shard: ShardId) {
        let Some(Part { lease, passes, .. }) = self.parts.remove(&shard) else { return };
        if lease.is_settled() || passes.is_empty() {
            return;
        }
        let (backend, process) = (self.shared.app.backend.clone(), lease.canceller().process());
        drop(lease);
        pleat_consensus::spawn(async move {
            backend.end_session(shard, process).await;
            drop(passes);
        });
    }

    /// Something failed: a block takes nothing but its end.
    pub(super) fn fail_block(&mut self) {
        if let Some(block) = &mut self.block {
            block.failed = true;
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let shards: Vec<ShardId> = self.parts.keys().copied().collect();
        shards.into_iter().for_each(|shard| self.leave(shard));
    }
}

/// Hand the client's rows to a server that waits for them.
async fn take_rows(client: &mut Client, key: &Key, lease: &mut Lease) -> Result<(), Stop> {
    loop {
        let message = tokio::select! {
            message = client.reader.message() => message?,
            () = key.requested() => {
                lease.copy_fail("cancelled by its user");
                return Ok(());
            }
        };
        match message {
            Some(Message::CopyData(data)) => lease.copy_data(data).await?,
            Some(Message::CopyDone) => {
                lease.copy_done();
                return Ok(());
            }
            Some(Message::CopyFail(why)) => {
                lease.copy_fail(&why);
                return Ok(());
            }
            Some(Message::Flush | Message::Sync) => {}
            Some(_) => return Err(Broken::Malformed("a COPY takes rows, and its end".to_owned()).into()),
            None => return Err(Broken::Socket(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)).into()),
        }
    }
}
