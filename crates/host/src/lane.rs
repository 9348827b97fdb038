//! A shard's write lane, on its leader: who may propose writes.
//!
//! Ordinary writes share it: each passes through while it is proposed and applied. An interactive transaction has it
//! to itself from its first write to its end, so that what it has read is still true when it commits. Nothing depends
//! on the lane for being right (the content version decides, at apply); without it open transactions would hardly ever
//! come to their commit.
//!
//! *No deadlocks:* a transaction may hold the lanes of several shards and wait for one more. The older of two wins
//! (wound-wait): if an older one asks, a younger holder is ended; a younger one waits. So nobody waits for somebody
//! younger, and the oldest waits for nobody. Ordinary writes hold nothing while they wait. One that prepares a
//! transaction over several shards doesn't wait at all for an older holder, but is refused.
//!
//! *No starving:* ordinary writes that wait when the lane is given back go before the next transaction, and who holds
//! the lane has little time for it. A write that met a prepared transaction in the log is *put off* ([`Lane::put_off`]) until
//! that is decided; then it goes before the next that wants to prepare ([`Lane::pass_after`]). So it waits for one transaction
//! or two, however many there are; and these wait for the writes that were put off at that moment, not for a stream of them,
//! because none is put off while nothing is prepared.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use pleat_cluster::{Millis, TxnId};
use tokio::sync::Notify;

/// A transaction's age: smaller is older.
pub type Age = (Millis, TxnId);

/// Ends a holder because an older transaction needs its lane. Must not block.
pub type Wound = Arc<dyn Fn() + Send + Sync>;

/// See the module.
#[derive(Default)]
pub struct Lane {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Ordinary writes on their way.
    ordinary: usize,
    ordinary_waiting: usize,
    /// Ordinary writes that go before the next transaction.
    favoured: usize,
    holder: Option<Holder>,
    waiting: BTreeSet<Age>,
    /// Ordinary writes that met a prepared transaction and were not done yet.
    put_off: usize,
}

struct Holder {
    age: Age,
    /// `None` while it commits: then it can't be ended any more, and needs nobody.
    wound: Option<Wound>,
}

/// A place in the lane, given back when dropped.
pub struct Passing(Arc<Lane>);

/// A write that was put off, until this is dropped.
pub struct PutOff(Arc<Lane>);

/// The lane for oneself, given back when dropped.
pub struct Holding(Arc<Lane>, Age);

impl Lane {
    /// Waits until no transaction has the lane. `None` when the deadline came first.
    pub async fn pass(self: &Arc<Self>, deadline: Instant) -> Option<Passing> {
        self.pass_when(|_| true, deadline).await
    }

    /// The same, and until no write is put off.
    pub async fn pass_after(self: &Arc<Self>, deadline: Instant) -> Option<Passing> {
        self.pass_when(|state| state.put_off == 0, deadline).await
    }

    /// A write met a prepared transaction, and is to go before the next.
    pub fn put_off(self: &Arc<Self>) -> PutOff {
        self.state.lock().put_off += 1;
        PutOff(self.clone())
    }

    async fn pass_when(self: &Arc<Self>, may: fn(&State) -> bool, deadline: Instant) -> Option<Passing> {
        if let Some(passing) = self.try_pass_when(may) {
            return Some(passing);
        }
        let waiting = OrdinaryWaiting::new(self);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.holder.is_none() && (state.waiting.is_empty() || state.favoured > 0) && may(&state) {
                    state.ordinary += 1;
                    drop(state);
                    drop(waiting);
                    return Some(Passing(self.clone()));
                }
            }
            tokio::time::timeout_at(deadline.into(), changed).await.ok()?;
        }
    }

    /// The same without waiting.
    fn try_pass_when(self: &Arc<Self>, may: fn(&State) -> bool) -> Option<Passing> {
        let mut state = self.state.lock();
        if state.holder.is_some() || !state.waiting.is_empty() || !may(&state) {
            return None;
        }
        state.ordinary += 1;
        Some(Passing(self.clone()))
    }

    /// Who has the lane for itself.
    pub fn holder(&self) -> Option<Age> {
        self.state.lock().holder.as_ref().map(|holder| holder.age)
    }

    /// Whether somebody waits for the holder.
    pub fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        state.ordinary_waiting > 0 || !state.waiting.is_empty()
    }

    /// Ends a holder that is younger. False when there is an older one, or one that commits.
    pub fn wound(&self, age: Age) -> bool {
        let wound = match &self.state.lock().holder {
            Some(holder) if holder.age < age => return false,
            Some(Holder { wound: Some(wound), .. }) => wound.clone(),
            Some(_) => return false,
            None => return true,
        };
        wound();
        true
    }

    /// Waits for the lane. `None` when the deadline came first.
    pub async fn hold(self: &Arc<Self>, age: Age, wound: Wound, deadline: Instant) -> Option<Holding> {
        let waiting = Waiting::new(self, age);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.try_hold(age, &wound) {
                drop(waiting);
                return Some(Holding(self.clone(), age));
            }
            self.wound(age);
            tokio::time::timeout_at(deadline.into(), changed).await.ok()?;
        }
    }

    fn try_hold(&self, age: Age, wound: &Wound) -> bool {
        let mut state = self.state.lock();
        let free = state.holder.is_none() && state.ordinary == 0 && state.favoured == 0;
        let first = state.waiting.first() == Some(&age);
        if free && first {
            state.holder = Some(Holder { age, wound: Some(wound.clone()) });
        }
        free && first
    }
}

impl Holding {
    /// From here on the holder can't be ended by others.
    pub fn commits(&self) {
        if let Some(holder) = &mut self.0.state.lock().holder {
            holder.wound = None;
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        debug_assert_eq!(state.holder.as_ref().map(|holder| holder.age), Some(self.1));
        state.holder = None;
        state.favoured = state.ordinary_waiting;
        drop(state);
        self.0.changed.notify_waiters();
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.ordinary -= 1;
        let last = state.ordinary == 0 && !state.waiting.is_empty();
        drop(state);
        if last {
            self.0.changed.notify_waiters();
        }
    }
}

impl Drop for PutOff {
    fn drop(&mut self) {
        self.0.state.lock().put_off -= 1;
        self.0.changed.notify_waiters();
    }
}

/// An ordinary write that waits.
struct OrdinaryWaiting<'a>(&'a Lane);

impl<'a> OrdinaryWaiting<'a> {
    fn new(lane: &'a Lane) -> Self {
        lane.state.lock().ordinary_waiting += 1;
        Self(lane)
    }
}

impl Drop for OrdinaryWaiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.ordinary_waiting -= 1;
        // Whether it got in or gave up: the next transaction has one less to wait for.
        state.favoured = state.favoured.saturating_sub(1);
        drop(state);
        self.0.changed.notify_waiters();
    }
}

/// A transaction that waits.
struct Waiting<'a>(&'a Lane, Age);

impl<'a> Waiting<'a> {
    fn new(lane: &'a Lane, age: Age) -> Self {
        lane.state.lock().waiting.insert(age);
        Self(lane, age)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiting.remove(&self.1);
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    fn age(began: Millis) -> Age {
        (began, TxnId(began.into()))
    }

    fn nothing() -> Wound {
        Arc::new(|| {})
    }

    fn long() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn writes_share_the_lane_and_a_transaction_has_it_alone() {
        let lane = Arc::new(Lane::default());
        let (one, two) = (lane.pass(long()).await.unwrap(), lane.pass(long()).await.unwrap());
        let holding = tokio::spawn({
            let lane = lane.clone();
            async move { lane.hold(age(1), nothing(), long()).await.unwrap() }
        });
        while lane.state.lock().waiting.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(lane.try_pass_when(|_| true).is_none(), "who comes later waits behind the transaction");
        drop((one, two));
        let holding = holding.await.unwrap();
        assert!(lane.pass(Instant::now()).await.is_none());
        drop(holding);
        assert!(lane.try_pass_when(|_| true).is_some());
    }

    #[tokio::test]
    async fn the_older_one_wounds_and_the_younger_one_waits() {
        let lane = Arc::new(Lane::default());
        let wounded = Arc::new(AtomicU32::new(0));
        let count = wounded.clone();
        let wound: Wound = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let holding = lane.hold(age(5), wound, long()).await.unwrap();
        assert!(lane.hold(age(9), nothing(), Instant::now()).await.is_none());
        assert_eq!(wounded.load(Ordering::SeqCst), 0);
        assert!(!lane.wound(age(9)));
        assert!(lane.hold(age(1), nothing(), Instant::now()).await.is_none());
        assert_eq!(wounded.load(Ordering::SeqCst), 1);
        holding.commits();
        assert!(lane.hold(age(1), nothing(), Instant::now()).await.is_none());
        assert_eq!(wounded.load(Ordering::SeqCst), 1, "one that commits is waited for");
        drop(holding);
        assert!(lane.hold(age(9), nothing(), long()).await.is_some(), "nobody who gave up is in the way");
    }

    #[tokio::test]
    async fn writes_that_waited_go_before_the_next_transaction() {
        let lane = Arc::new(Lane::default());
        let holding = lane.hold(age(1), nothing(), long()).await.unwrap();
        let passing = tokio::spawn({
            let lane = lane.clone();
            async move { lane.pass(long()).await.unwrap() }
        });
        let next = tokio::spawn({
            let lane = lane.clone();
            async move { lane.hold(age(2), nothing(), long()).await.unwrap() }
        });
        while lane.state.lock().waiting.is_empty() || lane.state.lock().ordinary_waiting == 0 {
            tokio::task::yield_now().await;
        }
        drop(holding);
        let passing = passing.await.unwrap();
        assert!(!next.is_finished());
        drop(passing);
        drop(next.await.unwrap());
    }

    #[tokio::test]
    async fn a_write_that_was_put_off_goes_before_the_next_that_prepares() {
        let lane = Arc::new(Lane::default());
        let write = lane.pass(long()).await.unwrap();
        let put_off = lane.put_off();
        assert!(lane.pass_after(Instant::now()).await.is_none());
        assert!(lane.try_pass_when(|_| true).is_some(), "other writes are in nobody's way");
        let next = tokio::spawn({
            let lane = lane.clone();
            async move { lane.pass_after(long()).await.unwrap() }
        });
        while lane.state.lock().ordinary_waiting == 0 {
            tokio::task::yield_now().await;
        }
        drop((put_off, write));
        drop(next.await.unwrap());
    }
}
