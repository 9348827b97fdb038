//! One operation in the hands of one leader: its journal, its epochs, and the limits of its effects.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use pleat_cluster::{Catalog, Command, CommandError, Operation, OperationId, Phase, Receipt, ShardId, ShardState};
use pleat_engine::{Action, MoveAction, MoveChunk, MoveRead, MoveState, MoveStep, Outcome};
use pleat_host::HostError;
use pleat_host::failpoint::{effect, reach, reach_in};
use pleat_provision::Provisioner;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::steps::Limit;
use crate::stop::{Failure, Stop, is_deciding, took_effect, unexpected};
use crate::tracker::{Amount, Tracker};
use crate::{Cluster, Settings};

/// How long one command to the catalog may take.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(5);
/// How long one effect on a shard may take, a change of its leader included.
pub(crate) const EFFECT_LIMIT: Duration = Duration::from_secs(15);
/// The pause before a shard that decides a transaction is asked again.
const DECISION_PAUSE: Duration = Duration::from_millis(100);
/// How long one scan of a shard's rows may take, such as a digest.
pub(crate) const SCAN_LIMIT: Duration = Duration::from_secs(300);
/// How long a shard that did not carry out an effect may take to say that a majority follows its leader.
const REACH_LIMIT: Duration = Duration::from_secs(2);
/// Before the commit, an operation that has journaled this many steps is given up. The catalog's own limit is
/// higher, so what follows the commit still has room.
const STEPS_BEFORE_COMMIT_MAX: usize = Catalog::STEPS_MAX - 32;

/// Hands out the epochs of the steps that a leader sends to shards.
///
/// An epoch is the leader's term in the upper half and a counter in the lower: not only is every step of an
/// older leader older, *every step is newer than the one before it*. A shard remembers the newest epoch of a
/// move and refuses older ones, so a message that was lost, sent again, and turns up after all when later
/// steps are through is refused instead of applied out of turn: a late `Unfence` can't open a gate that was
/// closed again, and a late chunk of the copy can't overwrite rows that were changed since. The chunks of one copy, whose
/// order does not matter, are one step.
#[derive(Debug)]
pub(crate) struct Epochs {
    term: u64,
    count: AtomicU64,
}

impl Epochs {
    pub fn new(term: u64) -> Self {
        Self { term, count: AtomicU64::new(0) }
    }

    /// The leader's term: the epoch of commands to the catalog.
    pub fn term(&self) -> u64 {
        self.term
    }

    fn next(&self) -> u64 {
        (self.term << 32) + self.count.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// The number by which shards know one attempt at a move. A shard that was told that an attempt has ended never
/// takes part in it again, so each attempt has a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MoveNumber(pub u64);

impl MoveNumber {
    /// Of the attempt that has left traces, if one has.
    pub fn newest(operation: &Operation) -> Self {
        MoveNumber((operation.id.0 << 8) + u64::from(operation.attempts))
    }
}

/// What a leader works with.
#[derive(Clone)]
pub(crate) struct Tools {
    pub cluster: Arc<dyn Cluster>,
    pub provisioner: Arc<dyn Provisioner>,
    pub settings: Settings,
    pub epochs: Arc<Epochs>,
}

/// One operation and what its leader works with.
pub(crate) struct Work {
    pub tools: Tools,
    pub id: OperationId,
    /// Until when the step at hand may take.
    pub limit: watch::Sender<Option<Limit>>,
    tracker: Mutex<Option<Tracker>>,
}

impl Work {
    pub fn new(tools: Tools, id: OperationId) -> Self {
        Self { tools, id, limit: watch::channel(None).0, tracker: Mutex::new(None) }
    }

    pub fn cluster(&self) -> &dyn Cluster {
        &*self.tools.cluster
    }

    pub fn catalog(&self) -> Arc<Catalog> {
        self.cluster().catalog()
    }

    /// The operation as it stands, if it is still this leader's to carry out.
    pub fn operation(&self) -> Result<Operation, Stop> {
        let catalog = self.catalog();
        let (id, term) = (self.id, self.tools.epochs.term());
        match catalog.operations.get(&id) {
            Some(operation) if operation.phase.is_final() => Err(Stop::Superseded(format!("{id} has ended"))),
            Some(operation) if operation.epoch > term => {
                Err(Stop::Superseded(format!("the leader of term {} works on {id}", operation.epoch)))
            }
            Some(operation) => Ok(operation.clone()),
            None => Err(Stop::Superseded(format!("{id} is not in the journal any more"))),
        }
    }

    /// An open operation that an earlier leader worked on: end the step that it left open, and take over. From
    /// here on the catalog refuses the earlier leader, so what this leader then reads there is final.
    pub async fn take_over(&self) -> Result<(), Stop> {
        let operation = self.operation()?;
        let term = self.tools.epochs.term();
        if operation.epoch == 0 || operation.epoch == term {
            return Ok(());
        }
        self.break_off("its leader was lost").await?;
        let detail = format!("from the leader of term {} by that of term {term}", operation.epoch);
        self.note("take over", true, &detail).await
    }

    /// End the step that is open, if one is, with the reason why it was not finished.
    pub async fn break_off(&self, why: &str) -> Result<(), Stop> {
        let Some(step) = self.operation()?.steps.last().filter(|step| step.ended.is_none()).cloned() else {
            return Ok(());
        };
        let so_far = self.so_far(&step.name);
        self.note(&step.name, true, &format!("{so_far}broken off: {why}")).await
    }

    /// Journal that a step is about to act. Between steps, and before the commit, is where cancelling works.
    pub async fn begin(&self, step: &str) -> Result<(), Stop> {
        self.may_begin()?;
        self.note(step, false, "").await
    }

    /// Journal that another attempt begins, with this step. Whatever those before it left must be taken back by then.
    pub async fn begin_attempt(&self, step: &str) -> Result<MoveNumber, Stop> {
        self.may_begin()?;
        self.track(step, false);
        let (operation, epoch, at) = (self.id, self.tools.epochs.term(), self.cluster().now_ms());
        let begun = self.command(Command::BeginAttempt { operation, step: step.to_owned(), epoch, at }).await;
        begun.map_err(|stop| stop.context("write the journal"))?;
        Ok(MoveNumber::newest(&self.operation()?))
    }

    fn may_begin(&self) -> Result<(), Stop> {
        let operation = self.operation()?;
        if !operation.committed && !operation.given_up {
            if operation.cancel_requested {
                return Err(Stop::Cancelled);
            }
            if operation.steps.len() >= STEPS_BEFORE_COMMIT_MAX {
                return Err(Stop::impossible(format!("it has taken {} steps and is given up", operation.steps.len())));
            }
        }
        Ok(())
    }

    /// About how much the step at hand has to do.
    pub fn expect(&self, total: Amount) {
        if let Some(tracker) = self.tracker.lock().as_mut() {
            tracker.expect(total);
        }
    }

    /// How much of it is done; the detail is for people.
    pub fn advance(&self, done: Amount, detail: impl FnOnce() -> String) {
        let mut tracker = self.tracker.lock();
        if let Some(tracker) = tracker.as_mut()
            && tracker.advance(Instant::now(), done, detail)
        {
            self.tell(Some(tracker));
        }
    }

    /// What the step at hand is at, where there is nothing to count. Fails when the operation is another leader's by now.
    pub fn is_at(&self, detail: impl FnOnce() -> String) -> Result<(), Stop> {
        let mut tracker = self.tracker.lock();
        if let Some(tracker) = tracker.as_mut() {
            tracker.is_at(detail());
            self.tell(Some(tracker));
        }
        self.operation().map(drop)
    }

    fn so_far(&self, step: &str) -> String {
        let tracker = self.tracker.lock();
        let so_far = tracker.as_ref().filter(|tracker| tracker.step() == step).map(Tracker::so_far);
        so_far.filter(|text| !text.is_empty()).map_or_else(String::new, |text| format!("{text}; "))
    }

    fn tell(&self, tracker: Option<&Tracker>) {
        let progress = tracker.map(|tracker| tracker.progress(self.cluster().now_ms()));
        self.cluster().note_progress(self.id, progress);
    }

    /// A step has begun, or ended.
    fn track(&self, step: &str, ended: bool) {
        let mut tracker = self.tracker.lock();
        if ended {
            *tracker = None;
        } else if tracker.as_ref().is_none_or(|tracker| tracker.step() != step) {
            *tracker = Some(Tracker::new(step, self.cluster().now_ms(), Instant::now()));
            self.limit.send_replace(Limit::of(step));
        }
        self.tell(tracker.as_ref());
    }

    /// The commit is about to be proposed: from here on no limit breaks the operation off.
    pub fn decide(&self) {
        self.limit.send_replace(None);
    }

    /// Journal that a step has acted.
    pub async fn end(&self, step: &str, detail: &str) -> Result<(), Stop> {
        self.note(step, true, detail).await
    }

    /// Journal, whatever was asked meanwhile.
    pub async fn note(&self, step: &str, ended: bool, detail: &str) -> Result<(), Stop> {
        self.track(step, ended);
        let (operation, epoch, at) = (self.id, self.tools.epochs.term(), self.cluster().now_ms());
        let (name, detail) = (step.to_owned(), detail.to_owned());
        let command = Command::JournalStep { operation, step: name, ended, detail, epoch, at };
        match self.cluster().command(command, COMMAND_LIMIT).await {
            Ok(_) => {
                reach_in(if ended { "operation.step-ended" } else { "operation.step-begun" }, Some(step));
                Ok(())
            }
            Err(HostError::Command(error @ CommandError::Invalid { .. })) => {
                // Refused: another leader's, or (which must not stop what is decided) the journal is full.
                let operation = self.operation()?;
                if (operation.committed || operation.given_up) && operation.steps.len() >= Catalog::STEPS_MAX {
                    return Ok(());
                }
                Err(Stop::impossible(error.to_string()))
            }
            Err(error) => Err(Stop::from(error).context("write the journal")),
        }
    }

    /// Hand a receipt in.
    pub async fn keep(&self, receipt: &Receipt) -> Result<(), Stop> {
        let (operation, epoch, at) = (self.id, self.tools.epochs.term(), self.cluster().now_ms());
        let receipt = Box::new(receipt.clone());
        self.command(Command::KeepReceipt { operation, receipt, epoch, at }).await
    }

    /// Another command of this operation.
    pub async fn command(&self, command: Command) -> Result<(), Stop> {
        match self.cluster().command(command, COMMAND_LIMIT).await {
            Ok(_) => Ok(()),
            Err(error) => {
                self.operation()?; // a refusal may mean that the operation is not ours any more
                Err(error.into())
            }
        }
    }

    /// From here on it does not happen; what it did is to be taken back.
    pub async fn give_up(&self, failure: &Failure) -> Result<(), Stop> {
        let (operation, epoch, at) = (self.id, self.tools.epochs.term(), self.cluster().now_ms());
        let Failure { why, code } = failure.clone();
        tracing::info!(%operation, why, "operation given up");
        let given_up = self.command(Command::GiveUpOperation { operation, message: why, code, epoch, at }).await;
        reach("operation.given-up", None);
        given_up.map_err(|stop| match stop {
            // It was committed after all, and goes on.
            Stop::Impossible(failure) => Stop::Again(failure.why),
            stop => stop,
        })
    }

    /// Put off what is left to do of a decided operation until `shards` are back: others go on.
    pub async fn wait_for(&self, shards: Vec<ShardId>) -> Stop {
        let known = match self.operation() {
            Ok(operation) => operation.waits_for,
            Err(stop) => return stop,
        };
        let names: Vec<String> = shards.iter().map(ToString::to_string).collect();
        let why = format!("waits for {}, which can't be reached", names.join(" and "));
        if known != shards {
            tracing::warn!(operation = %self.id, why, "operation put off");
            let (operation, epoch, at) = (self.id, self.tools.epochs.term(), self.cluster().now_ms());
            if let Err(stop) = self.command(Command::AwaitShards { operation, shards, epoch, at }).await {
                return stop;
            }
        }
        Stop::Waiting(why)
    }

    /// Which of these shards have no leader that a majority follows. What doesn't exist any more is not missed.
    pub async fn unreached(&self, shards: &[ShardId]) -> Vec<ShardId> {
        let catalog = self.catalog();
        let exists = |shard: &&ShardId| catalog.shards.get(shard).is_some_and(|s| s.state != ShardState::Removed);
        let asked = shards.iter().filter(exists).map(|shard| async {
            let answer = self.cluster().reach(*shard, REACH_LIMIT).await;
            answer.err().map(|_| *shard)
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// How long a shard that can't be reached is waited for: not at all when the operation waits for it already.
    pub fn patience(&self) -> Result<Duration, Stop> {
        Ok(if self.operation()?.is_waiting() { Duration::ZERO } else { self.tools.settings.shard_limit })
    }

    /// End the operation.
    pub async fn finish(&self, phase: Phase, message: &str) -> Result<(), Stop> {
        let (operation, epoch, at) = (self.id, self.tools.epochs.term(), self.cluster().now_ms());
        let message = message.to_owned();
        tracing::info!(%operation, ?phase, message, "operation ended");
        reach("operation.before-finish", None);
        self.command(Command::FinishOperation { operation, phase, message, epoch, at }).await?;
        reach("operation.finished", None);
        Ok(())
    }

    /// An effect on a shard.
    pub async fn write(&self, shard: ShardId, action: Action) -> Result<Outcome, Stop> {
        let deadline = Instant::now() + EFFECT_LIMIT;
        reach_in("operation.before-effect", effect(&action));
        loop {
            let outcome = self.cluster().write(shard, action.clone(), EFFECT_LIMIT).await;
            reach_in("operation.had-effect", effect(&action));
            if !is_deciding(&outcome) || Instant::now() >= deadline {
                return took_effect(outcome?);
            }
            sleep(DECISION_PAUSE).await;
        }
    }

    /// A step of a move on a shard: how the move stands there now.
    pub async fn step(&self, attempt: MoveNumber, shard: ShardId, action: MoveAction) -> Result<MoveState, Stop> {
        self.step_in(attempt, self.new_epoch(), shard, action).await
    }

    /// An epoch that is newer than all before it.
    pub fn new_epoch(&self) -> u64 {
        self.tools.epochs.next()
    }

    /// A step whose order among others of the same epoch does not matter.
    pub async fn step_in(
        &self,
        attempt: MoveNumber,
        epoch: u64,
        shard: ShardId,
        action: MoveAction,
    ) -> Result<MoveState, Stop> {
        let step = MoveStep { operation: attempt.0, epoch, action };
        match self.write(shard, Action::Move(step)).await? {
            Outcome::Moved(state) => Ok(state),
            _ => Err(unexpected("a step of a move")),
        }
    }

    /// A question of the mover to a shard.
    pub async fn ask(&self, shard: ShardId, request: MoveRead) -> Result<MoveChunk, Stop> {
        Ok(self.cluster().move_read(shard, request, EFFECT_LIMIT).await?)
    }

    /// A question that takes reading many rows.
    pub async fn scan(&self, shard: ShardId, request: MoveRead) -> Result<MoveChunk, Stop> {
        Ok(self.cluster().move_read(shard, request, SCAN_LIMIT).await?)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.cluster().note_progress(self.id, None);
    }
}
