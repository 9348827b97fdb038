//! What goes wrong, from a seed.
//!
//! Faults come from a deck that has each kind at least once and is shuffled anew when it is used up, so that a short run meets
//! all kinds and a long one meets them in many orders. One ends before the next begins, except that any may hit a cluster
//! that has not got over the one before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pleat_generate::Dice;

use super::place::{CLOCK_SHOWS_WITHIN, NODES, Place, Way};
use crate::harness::Cluster;

/// How long a node is down, stopped or cut off, in milliseconds.
const DOWN_MS: (usize, usize) = (50, 1_000);
const STOPPED_MS: (usize, usize) = (500, 3_000);
const CUT_MS: (usize, usize) = (1_000, 4_000);
/// A clock that is off stays so for a while.
const CLOCK_OFF_MS: (usize, usize) = (500, 3_000);
/// Who leads is asked for so long; then it is anybody's turn.
const LEADER_LIMIT: Duration = Duration::from_secs(2);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9 of the leader of the control group, of a shard's leader, or of anyone.
    KillControl,
    KillLeader,
    KillAny,
    /// kill -9 of all nodes at once.
    KillAll,
    /// SIGSTOP of a leader.
    Stop,
    /// The control leader or a shard's can't be reached and reaches nobody, or one of the two.
    Cut,
    CutIn,
    CutOut,
    /// A leader's clock is an hour ahead, or behind.
    ClockAhead,
    ClockBehind,
}

const DECK: [Kind; 10] = [
    Kind::KillControl,
    Kind::KillLeader,
    Kind::KillAny,
    Kind::KillAll,
    Kind::Stop,
    Kind::Cut,
    Kind::CutIn,
    Kind::CutOut,
    Kind::ClockAhead,
    Kind::ClockBehind,
];

/// The faults that are still to come, and those that were.
pub struct Faults {
    dice: Dice,
    deck: Vec<Kind>,
    pub met: BTreeMap<Kind, u32>,
    /// When each began and ended, and what it was.
    pub story: Vec<(Instant, Instant, String)>,
}

impl Faults {
    pub fn of_seed(seed: u64) -> Self {
        Self { dice: Dice::of_seed(seed), deck: Vec::new(), met: BTreeMap::new(), story: Vec::new() }
    }

    pub fn all_met(&self) -> bool {
        DECK.iter().all(|kind| self.met.contains_key(kind))
    }

    fn between(&mut self, (low, high): (usize, usize)) -> Duration {
        Duration::from_millis((low + self.dice.roll(high - low)) as u64)
    }

    /// A pause of so many milliseconds.
    pub async fn rest(&mut self, range_ms: (usize, usize)) {
        tokio::time::sleep(self.between(range_ms)).await;
    }

    /// The next fault, from its beginning to its end.
    pub async fn next(&mut self, cluster: &Cluster, places: &[Place]) {
        if self.deck.is_empty() {
            self.deck = DECK.to_vec();
        }
        let kind = self.deck.swap_remove(self.dice.roll(self.deck.len()));
        let begun = Instant::now();
        let node = self.victim(kind, cluster).await;
        println!("{kind:?} of node-{node}");
        self.happens(kind, node, places).await;
        *self.met.entry(kind).or_default() += 1;
        self.story.push((begun, Instant::now(), format!("{kind:?} of node-{node}")));
    }

    async fn victim(&mut self, kind: Kind, cluster: &Cluster) -> u16 {
        let anyone = self.dice.roll(usize::from(NODES)) as u16 + 1;
        let leads_control = match kind {
            Kind::KillAny | Kind::KillAll => return anyone,
            Kind::KillControl => true,
            Kind::KillLeader => false,
            _ => self.dice.roll(2) == 0,
        };
        let shard = (!leads_control).then_some("shard-1");
        tokio::time::timeout(LEADER_LIMIT, cluster.leader(shard)).await.unwrap_or(anyone)
    }

    async fn happens(&mut self, kind: Kind, node: u16, places: &[Place]) {
        let place = &places[usize::from(node) - 1];
        match kind {
            Kind::KillControl | Kind::KillLeader | Kind::KillAny => {
                place.kill();
                self.rest(DOWN_MS).await;
                place.start();
            }
            Kind::KillAll => {
                places.iter().for_each(Place::kill);
                places.iter().for_each(Place::start);
            }
            Kind::Stop => {
                place.signal(Signal::SIGSTOP);
                self.rest(STOPPED_MS).await;
                place.signal(Signal::SIGCONT);
            }
            Kind::Cut | Kind::CutIn | Kind::CutOut => {
                place.cut(match kind {
                    Kind::CutIn => Way::In,
                    Kind::CutOut => Way::Out,
                    _ => Way::Both,
                });
                self.rest(CUT_MS).await;
                place.join();
            }
            Kind::ClockAhead | Kind::ClockBehind => {
                place.set_clock(if kind == Kind::ClockAhead { 1 } else { -1 });
                tokio::time::sleep(CLOCK_SHOWS_WITHIN).await;
                self.rest(CLOCK_OFF_MS).await;
                place.set_clock(0);
            }
        }
    }
}
