//! What goes wrong in a run, and when: drawn from the seed before the run begins.

use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::disk::Death;
use crate::node::NODES;

/// The pause between two faults, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 300..2_500;
/// How long a node is down, or cut off, in milliseconds.
const LASTS_MS: std::ops::Range<u64> = 200..4_000;

/// The pause between two disks that become slow, in milliseconds.
const SLOW_PAUSE_MS: std::ops::Range<u64> = 1_000..5_000;

/// Whom a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    Node(u64),
    /// Whoever leads the group then; any node if none does.
    Leader(u64),
}

/// Something that goes wrong, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A node dies, and is started again.
    Dies(Whom, Death),
    /// All nodes lose their power at once.
    Outage,
    /// A node is cut off from the others. Clients still reach it.
    CutOff(Whom),
    /// A node hears nothing from the others, but is heard.
    Deaf(Whom),
    /// A node is not heard by the others, but hears them.
    Mute(Whom),
    /// Two nodes don't reach each other.
    Parted(u64, u64),
    /// Messages take up to this long, in milliseconds.
    Slow(u64),
    /// What a node makes durable fails, until it has ended and is started again.
    DiskFails(Whom),
    /// A node's disk is full.
    Full(Whom),
    /// All disks are.
    AllFull,
    /// What a node makes durable takes so long, in milliseconds.
    SlowDisk(Whom, u64),
}

/// A fault with its time.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub at: Duration,
    pub lasts: Duration,
    pub fault: Fault,
}

/// Disks go wrong, too, with every seed that is this more than a multiple of [`DISKS_EVERY`]: what the others find stays as it was.
const DISKS_AT: u64 = 3;
const DISKS_EVERY: u64 = 4;

/// With these seeds, of every four, a node loses its disk, too, and replicas are made anew that have nothing wrong.
const WIPES_AT: u64 = 2;
/// With these the operator does all that it can: several operations at a time, and merges.
const BUSY_AT: [u64; 2] = [1, WIPES_AT];
/// With these seeds, half of all and some of each of these kinds, clients also write to a reference table and change the schema: what the
/// others find stays as it was.
const SCHEMA_FROM: u64 = DISKS_EVERY;
const SCHEMA_EVERY: u64 = 2 * DISKS_EVERY;
/// The times at which a node loses its disk, in milliseconds after the first fault may happen.
const WIPES_MS: std::ops::Range<u64> = 500..6_000;
/// How soon, in milliseconds, a node dies again after something of it was rebuilt: while the log that it will replay still begins before that.
const AGAIN_MS: std::ops::Range<u64> = 0..1_500;

/// Whether a node loses its disk with a seed.
pub fn with_wipes(seed: u64) -> bool {
    seed % DISKS_EVERY == WIPES_AT
}

/// Whether the operator is a busy one with a seed.
pub fn with_busy_operator(seed: u64) -> bool {
    BUSY_AT.contains(&(seed % DISKS_EVERY))
}

/// Whether there is a reference table, and the schema changes, with a seed.
pub fn with_schema(seed: u64) -> bool {
    seed % SCHEMA_EVERY >= SCHEMA_FROM
}

/// A node that loses its disk.
#[derive(Clone, Copy, Debug)]
pub struct Wipe {
    /// Not before this, and not before all replicas are there: of three nodes one may lose its disk at a time.
    pub at: Duration,
    pub node: u64,
    /// How long it is down.
    pub lasts: Duration,
}

/// The node that loses its disk in a run.
pub fn plan_wipe(chance: &mut ChaCha8Rng, from: Duration) -> Wipe {
    let mut ms = |range| Duration::from_millis(chance.random_range(range));
    let (at, lasts) = (from + ms(WIPES_MS), ms(LASTS_MS));
    Wipe { at, node: NODES[chance.random_range(0..NODES.len())], lasts }
}

/// How soon a node dies again of which something was rebuilt, and for how long.
pub fn draw_again(chance: &mut ChaCha8Rng) -> (Duration, Duration) {
    let mut ms = |range| Duration::from_millis(chance.random_range(range));
    (ms(AGAIN_MS), ms(LASTS_MS))
}

/// Whether disks go wrong with a seed.
pub fn with_disks(seed: u64) -> bool {
    seed % DISKS_EVERY == DISKS_AT
}

/// The faults of disks, drawn as [`plan`] draws the others.
pub fn plan_disks(chance: &mut ChaCha8Rng, from: Duration, until: Duration) -> Vec<Planned> {
    draw_all(chance, PAUSE_MS, from, until, draw_of_disk)
}

/// The times at which disks are slow.
pub fn plan_slow_disks(chance: &mut ChaCha8Rng, from: Duration, until: Duration) -> Vec<Planned> {
    draw_all(chance, SLOW_PAUSE_MS, from, until, draw_slow_disk)
}

/// The faults of a run, by time. They begin after `from`, and the last one is over by `until`.
pub fn plan(chance: &mut ChaCha8Rng, from: Duration, until: Duration) -> Vec<Planned> {
    draw_all(chance, PAUSE_MS, from, until, draw)
}

fn draw_all(
    chance: &mut ChaCha8Rng,
    pause_ms: std::ops::Range<u64>,
    from: Duration,
    until: Duration,
    draw: impl Fn(&mut ChaCha8Rng) -> Fault,
) -> Vec<Planned> {
    let mut planned = Vec::new();
    let mut at = from;
    loop {
        at += Duration::from_millis(chance.random_range(pause_ms.clone()));
        let lasts = Duration::from_millis(chance.random_range(LASTS_MS));
        let fault = draw(chance);
        if at + lasts > until {
            return planned;
        }
        planned.push(Planned { at, lasts, fault });
    }
}

/// A node, and it or whoever leads something.
fn draw_whom(chance: &mut ChaCha8Rng) -> (u64, Whom) {
    let node = NODES[chance.random_range(0..NODES.len())];
    // Groups 0 to 2: the control group and the first shards.
    let whom = if chance.random_bool(0.5) { Whom::Leader(chance.random_range(0..3)) } else { Whom::Node(node) };
    (node, whom)
}

fn draw_of_disk(chance: &mut ChaCha8Rng) -> Fault {
    let (_, whom) = draw_whom(chance);
    match chance.random_range(0..100) {
        0..50 => Fault::DiskFails(whom),
        50..85 => Fault::Full(whom),
        _ => Fault::AllFull,
    }
}

/// Some so slow that another node should lead.
fn draw_slow_disk(chance: &mut ChaCha8Rng) -> Fault {
    let (_, whom) = draw_whom(chance);
    let most_ms = if chance.random_bool(0.2) { 2_000 } else { 200 };
    Fault::SlowDisk(whom, chance.random_range(10..most_ms))
}

fn draw(chance: &mut ChaCha8Rng) -> Fault {
    let (node, whom) = draw_whom(chance);
    match chance.random_range(0..100) {
        0..20 => Fault::Dies(whom, Death::Process),
        20..45 => Fault::Dies(whom, Death::Power),
        45..52 => Fault::Outage,
        52..66 => Fault::CutOff(whom),
        66..74 => Fault::Deaf(whom),
        74..82 => Fault::Mute(whom),
        82..92 => Fault::Parted(node, node % NODES.len() as u64 + 1),
        _ => Fault::Slow(chance.random_range(20..200)),
    }
}
