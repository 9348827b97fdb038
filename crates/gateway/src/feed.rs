//! What happens in the cluster, as a feed of events.
//!
//! Nobody announces events: a task watches the catalog, compares each version with the one before, and
//! publishes the differences ([`changes`], a pure function). So the feed can't tell something that is not so,
//! and a burst of changes that the task sees as one still gives one event per step, shard or decision.
//! Leaders are not in the catalog; they are looked at a few times a second. Nor is how far an operation is: while
//! somebody listens, its leader is asked once a second.
//!
//! Each node numbers its own events. A client that comes back with the id of the last one it saw gets what it
//! missed, as long as this node still remembers it and was not restarted; otherwise it is told to read the
//! lists again. A client that is too slow is told the same, and never holds the others up.

mod changes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use pleat_cluster::{Catalog, NodeId, Phase};
use serde_json::json;
use tokio::sync::broadcast;

pub use changes::{Change, changes};

use crate::backend::Backend;
use crate::settings::{EVENTS_KEPT_MAX, LEADERS_LOOKED_AT_EVERY, PROGRESS_TIME_MAX, PROGRESS_TOLD_EVERY};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub number: u64,
    /// `operation`, `step`, `progress`, `decision`, `shard`, `table`, `node`, `policy` or `leader`.
    pub kind: &'static str,
    /// JSON.
    pub data: Arc<str>,
}

/// The events of one node.
pub struct Feed {
    /// Sets this node's numbers apart from those before its restart.
    boot: u64,
    state: Mutex<State>,
}

struct State {
    kept: VecDeque<Event>,
    next: u64,
    /// `None` once the feed is closed.
    sender: Option<broadcast::Sender<Event>>,
}

/// What a client gets when it joins.
pub struct Joined {
    /// Events that it missed.
    pub missed: Vec<Event>,
    /// It missed more than is remembered: it must read the lists again.
    pub reset: bool,
    /// What comes from now on; `None` when the feed is closed.
    pub events: Option<broadcast::Receiver<Event>>,
}

impl Feed {
    pub fn new(boot: u64) -> Self {
        let (sender, _) = broadcast::channel(EVENTS_KEPT_MAX);
        let state = State { kept: VecDeque::new(), next: 1, sender: Some(sender) };
        Self { boot, state: Mutex::new(state) }
    }

    /// Publish differences.
    pub fn publish(&self, changes: Vec<Change>) {
        let mut state = self.state.lock();
        for change in changes {
            let event = Event { number: state.next, kind: change.kind, data: change.data.to_string().into() };
            state.next += 1;
            if state.kept.len() >= EVENTS_KEPT_MAX {
                state.kept.pop_front();
            }
            state.kept.push_back(event.clone());
            if let Some(sender) = &state.sender {
                // Without listeners there is nobody to miss it.
                let _ = sender.send(event);
            }
        }
    }

    /// Publish what is only of interest now. It is not kept, so that it can't push out what is, and has the number of
    /// the event before it.
    pub fn publish_passing(&self, changes: Vec<Change>) {
        let state = self.state.lock();
        let Some(sender) = &state.sender else { return };
        for change in changes {
            let _ =
                sender.send(Event { number: state.next - 1, kind: change.kind, data: change.data.to_string().into() });
        }
    }

    /// Whether anybody listens.
    pub fn has_listeners(&self) -> bool {
        self.state.lock().sender.as_ref().is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// The id by which a client names the last event that it saw.
    pub fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.boot)
    }

    /// The id of the newest event.
    pub fn newest(&self) -> String {
        self.id(self.state.lock().next - 1)
    }

    /// Join after the event with the id `after`, or from now on.
    pub fn join(&self, after: Option<&str>) -> Joined {
        let state = self.state.lock();
        let events = state.sender.as_ref().map(broadcast::Sender::subscribe);
        let Some(after) = after else { return Joined { missed: Vec::new(), reset: false, events } };
        let oldest = state.kept.front().map_or(state.next, |event| event.number);
        let seen = after
            .split_once('-')
            .and_then(|(boot, number)| (boot.parse() == Ok(self.boot)).then(|| number.parse::<u64>().ok()).flatten());
        match seen {
            Some(seen) if seen < state.next && seen + 1 >= oldest => {
                let missed = state.kept.iter().filter(|event| event.number > seen).cloned().collect();
                Joined { missed, reset: false, events }
            }
            _ => Joined { missed: Vec::new(), reset: true, events },
        }
    }

    /// End every client's stream, so that the server can stop.
    pub fn close(&self) {
        self.state.lock().sender = None;
    }
}

/// Watch the cluster and publish what changes, for as long as the node runs.
pub async fn watch(backend: Arc<dyn Backend>, feed: Arc<Feed>) {
    tokio::select! {
        () = watch_catalog(backend.as_ref(), &feed) => {}
        () = watch_progress(backend.as_ref(), &feed) => {}
    }
}

/// How far operations are, while one is under way and anybody listens: it has to be asked for.
async fn watch_progress(backend: &dyn Backend, feed: &Feed) {
    let mut told = BTreeMap::new();
    loop {
        tokio::time::sleep(PROGRESS_TOLD_EVERY).await;
        let is_under_way = |catalog: &Catalog| catalog.open_operations().any(|open| open.phase == Phase::Progressing);
        if !feed.has_listeners() || !is_under_way(&backend.catalog()) {
            told.clear(); // who comes next is told all of it
            continue;
        }
        // Without an answer there is nothing to tell.
        let Ok(progress) = backend.progress(PROGRESS_TIME_MAX).await else { continue };
        let changed = progress.iter().filter(|(id, progress)| told.get(*id) != Some(*progress));
        feed.publish_passing(changed.map(|(id, progress)| changes::progress_event(*id, progress)).collect());
        told = progress;
    }
}

async fn watch_catalog(backend: &dyn Backend, feed: &Feed) {
    let mut catalogs = backend.watch_catalog();
    let mut before: Arc<Catalog> = catalogs.borrow_and_update().clone();
    let mut leaders = Leaders::default();
    let mut look = tokio::time::interval(LEADERS_LOOKED_AT_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = catalogs.changed() => {
                if changed.is_err() {
                    return;
                }
                let after = catalogs.borrow_and_update().clone();
                feed.publish(changes(&before, &after));
                before = after;
            }
            _ = look.tick() => feed.publish(leaders.look(backend, &before)),
        }
    }
}

/// Who led each group when we last looked.
#[derive(Default)]
struct Leaders {
    known: BTreeMap<String, (Option<NodeId>, u64)>,
}

impl Leaders {
    fn look(&mut self, backend: &dyn Backend, catalog: &Catalog) -> Vec<Change> {
        let mut seen = vec![("control".to_owned(), backend.control_status())];
        for shard in catalog.shards.keys() {
            seen.extend(backend.shard_status(*shard).map(|status| (shard.to_string(), status)));
        }
        let mut changes = Vec::new();
        self.known.retain(|group, _| seen.iter().any(|(name, _)| name == group));
        for (group, status) in seen {
            let now = (status.leader, status.term);
            let known = self.known.insert(group.clone(), now);
            // The first look is no change; and a new term under the same leader is no news.
            if known.is_some_and(|(leader, _)| leader != now.0) {
                let leader = now.0.map(|node| node.to_string());
                changes
                    .push(Change { kind: "leader", data: json!({ "group": group, "leader": leader, "term": now.1 }) });
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(feed: &Feed, count: usize) {
        feed.publish((0..count).map(|n| Change { kind: "node", data: json!(n) }).collect());
    }

    #[test]
    fn a_client_that_comes_back_gets_what_it_missed() {
        let feed = Feed::new(77);
        publish(&feed, 3);
        let joined = feed.join(Some("77-1"));
        assert_eq!(joined.missed.iter().map(|event| event.number).collect::<Vec<_>>(), [2, 3]);
        assert!(!joined.reset);
        assert!(!feed.join(Some(&feed.newest())).reset);
        assert!(feed.join(Some("77-3")).missed.is_empty());
        assert!(feed.join(None).missed.is_empty());
    }

    #[test]
    fn a_client_that_missed_too_much_or_another_boot_is_told_so() {
        let feed = Feed::new(77);
        publish(&feed, EVENTS_KEPT_MAX + 5);
        assert!(!feed.join(Some("77-5")).reset, "event 6 is the oldest kept");
        for id in ["77-4", "78-9", "77-999999", "77-x", "x", "", "-1", "77--1"] {
            let joined = feed.join(Some(id));
            assert!(joined.reset && joined.missed.is_empty(), "{id}");
        }
    }

    #[tokio::test]
    async fn a_slow_client_is_told_and_a_closed_feed_ends() {
        let feed = Feed::new(1);
        let mut slow = feed.join(None).events.unwrap();
        publish(&feed, 2 * EVENTS_KEPT_MAX);
        assert!(matches!(slow.recv().await, Err(broadcast::error::RecvError::Lagged(_))));
        feed.close();
        while slow.recv().await.is_ok() {}
        assert!(feed.join(None).events.is_none());
    }
}
