//! Where tasks, timers and chance come from.
//!
//! openraft asks its `AsyncRuntime` for all of them, through functions without `self`. In production they are
//! tokio's and the operating system's. In a simulation the same seed must give the same run, which
//! needs three replacements; [`simulate`] switches them for the current thread (a simulation is
//! single-threaded), so that one type serves both:
//!
//! - chance: openraft draws election time-outs; they come from a seeded generator;
//! - tasks: `spawn` becomes `spawn_local`, because tokio numbers tasks per process and drops a crashed host's tasks
//!   in the order of these numbers;
//! - threads: what would block runs inline ([`blocking`], [`thread`], the state machine's thread, the log's writer).
//!
//! Everything that a node runs uses [`spawn`], [`blocking`] and [`thread`], the crates above this one too.
//!
//! Time needs none: tokio's clock is already the simulation's. (The clocks and the chance that other crates take from
//! the operating system are replaced beneath them, by crate `sim`.)

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use openraft::{AsyncRuntime, TokioRuntime};
use tokio::task::JoinHandle;

/// openraft gives an AppendEntries one heartbeat interval, follower's fsync included. On a busy disk that is too
/// short: the entries would be sent again and again. Nothing else of what openraft times out with
/// this suffers from a longer limit, and the network layer has shorter ones of its own where they help.
const TIMEOUT_MIN: Duration = Duration::from_secs(2);

thread_local! {
    static SEEDED: RefCell<Option<SplitMix>> = const { RefCell::new(None) };
}

/// Makes everything of this crate that starts on this thread repeatable, until the guard is dropped.
///
/// Use it around a `turmoil` simulation, with [`crate::Storage::Memory`] as the log. The state machines'
/// methods then run inline on this thread.
#[must_use = "the simulation ends when the guard is dropped"]
pub fn simulate(seed: u64) -> Simulation {
    SEEDED.with(|seeded| *seeded.borrow_mut() = Some(SplitMix(seed)));
    Simulation(())
}

/// While it lives, the thread is a simulation's. See [`simulate`].
#[derive(Debug)]
pub struct Simulation(());

impl Drop for Simulation {
    fn drop(&mut self) {
        SEEDED.with(|seeded| *seeded.borrow_mut() = None);
    }
}

/// Whether this thread runs a simulation.
pub fn simulated() -> bool {
    SEEDED.with(|seeded| seeded.borrow().is_some())
}

/// Spawns a task: on the runtime's threads, or on this one in a simulation.
pub fn spawn<T>(future: T) -> JoinHandle<T::Output>
where
    T: Future + Send + 'static,
    T::Output: Send + 'static,
{
    if simulated() { tokio::task::spawn_local(future) } else { tokio::spawn(future) }
}

/// Begins `work`, which may block, without holding up the runtime's threads (inline in a simulation). It is carried out
/// whether or not its end is awaited.
pub fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = std::io::Result<T>> + Send {
    let begun = if simulated() { Ok(work()) } else { Err(tokio::task::spawn_blocking(work)) };
    async move {
        match begun {
            Ok(done) => Ok(done),
            Err(running) => running.await.map_err(std::io::Error::other),
        }
    }
}

/// Does long work on a thread of its own, outside of any runtime (inline in a simulation).
pub fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    if simulated() {
        work();
        return Ok(());
    }
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// openraft's runtime: tokio with a seedable source of chance.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: Send + 'static> = JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = tokio::time::Instant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = tokio::time::Timeout<T>;
    type ThreadLocalRng = Chance;
    type OneshotSender<T: Send> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: Send> = tokio::sync::oneshot::Receiver<T>;
    type OneshotReceiverError = tokio::sync::oneshot::error::RecvError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        tokio::time::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration.max(TIMEOUT_MIN), future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Chance(())
    }

    fn oneshot<T: Send>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}

/// The thread's source of chance: seeded in a simulation, the operating system's otherwise.
pub(crate) struct Chance(());

impl Chance {
    fn next(&self) -> u64 {
        SEEDED.with(|seeded| match seeded.borrow_mut().as_mut() {
            Some(generator) => generator.next(),
            None => rand_core::RngCore::next_u64(&mut <TokioRuntime as AsyncRuntime>::thread_rng()),
        })
    }
}

impl rand_core::RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.next()
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        for chunk in dest.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

/// SplitMix64: small, and good enough for time-outs.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
