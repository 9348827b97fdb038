//! Cancelling: a client opens another connection and shows the number and the secret that the first one was given.
//!
//! Whoever shows a wrong pair changes nothing and learns nothing. A cancel stops the message that is being carried out at
//! that moment, and none that comes later. What can be given up without a doubt is: reads, and any statement of a
//! transaction (which has failed then). A write of its own, a COMMIT and a schema change go on to their end, which their
//! time limit bounds: giving them up would leave it open whether they were done.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

/// The sessions of a node that can be cancelled.
#[derive(Default)]
pub struct Cancels {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    last: u32,
    keys: HashMap<u32, (u32, Arc<Running>)>,
}

/// What a session is doing.
#[derive(Default)]
struct Running {
    /// Whether a message is being carried out, and whether that is to end.
    now: Mutex<(bool, bool)>,
    told: Notify,
}

/// A session's place among them; given back when it is dropped.
pub struct Key {
    cancels: Arc<Cancels>,
    running: Arc<Running>,
    pub process: u32,
    pub secret: u32,
}

impl Cancels {
    /// A key for a new session.
    pub fn key(self: &Arc<Self>) -> Key {
        let secret = Uuid::new_v4().as_fields().0;
        let running = Arc::new(Running::default());
        let mut known = self.known.lock();
        loop {
            // Clients take it for a process's number: positive, in 31 bits.
            known.last = known.last % (i32::MAX as u32 - 1) + 1;
            let process = known.last;
            if let std::collections::hash_map::Entry::Vacant(place) = known.keys.entry(process) {
                place.insert((secret, running.clone()));
                return Key { cancels: self.clone(), running, process, secret };
            }
        }
    }

    /// Stop what a session is doing.
    pub fn cancel(&self, process: u32, secret: u32) {
        let running =
            self.known.lock().keys.get(&process).filter(|(known, _)| *known == secret).map(|key| key.1.clone());
        if let Some(running) = running {
            let mut now = running.now.lock();
            if now.0 {
                now.1 = true;
                running.told.notify_waiters();
            }
        }
    }
}

impl Key {
    /// A message begins to be carried out, or has ended.
    pub fn run(&self, runs: bool) {
        *self.running.now.lock() = (runs, false);
    }

    /// Until the message is to end.
    pub async fn requested(&self) {
        loop {
            let told = self.running.told.notified();
            tokio::pin!(told);
            // From here on no notice is missed.
            told.as_mut().enable();
            if self.running.now.lock().1 {
                return;
            }
            told.await;
        }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.cancels.known.lock().keys.remove(&self.process);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn only_the_right_pair_stops_only_what_runs() {
        let cancels = Arc::new(Cancels::default());
        let (key, other) = (cancels.key(), cancels.key());
        assert_ne!(key.process, other.process);
        cancels.cancel(key.process, key.secret);
        key.run(true);
        assert!(key.requested().now_or_never().is_none(), "it came before the message");
        cancels.cancel(key.process, key.secret.wrapping_add(1));
        cancels.cancel(other.process, key.secret);
        assert!(key.requested().now_or_never().is_none(), "a wrong key");
        cancels.cancel(key.process, key.secret);
        key.requested().await;
        key.run(true);
        assert!(key.requested().now_or_never().is_none(), "the next message");
        let process = key.process;
        drop(key);
        assert!(!cancels.known.lock().keys.contains_key(&process));
    }
}
