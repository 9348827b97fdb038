//! The hand-over between servers: gates, the rest of the stream, the commit.

use std::time::Duration;

use pleat_cluster::{Command, Generation};
use pleat_engine::postgres::moving::{self, Mover, Unsettled};
use pleat_engine::postgres::{Connection, Server};
use tokio::time::{Instant, sleep, timeout};

use super::super::cut_over::{FENCE, commit};
use super::super::receipt::{HandOver, millis};
use super::attempt::rest;
use super::{Plan, failed, open_gates, unsettled};
use crate::stop::{Failure, Stop};
use crate::work::Work;

/// From closing the gates to the moment before the commit. Past it they are opened again.
pub(crate) const FENCE_LIMIT: Duration = Duration::from_secs(3);
/// How often one attempt closes the gates.
const FENCES_MAX: u32 = 40;
/// The pause after they had to be opened again, times how often that was, and at most.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A transaction that is open for so long already is not going to end within a pause: the gates are not closed on its account.
pub(crate) const LONG_S: u64 = 1;
/// How long such transactions are waited for.
const LONG_LIMIT: Duration = Duration::from_secs(600);
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Close the gates, carry the rest over, and commit; as often as it takes.
pub(super) async fn hand_over(
    work: &Work,
    plan: &Plan,
    source: &Server,
    mover: &mut Mover,
    hand_over: &mut HandOver,
) -> Result<(), Stop> {
    let mut why = String::new();
    for tried in 1..=FENCES_MAX {
        // Each time another: an answer that was not waited for would be taken for the next one.
        let mut asking = Connection::open(source).await.map_err(failed("ask the source for its transactions"))?;
        wait_for_long_ones(work, &mut asking, mover).await?;
        mover.catch_up().await.map_err(failed("carry changes over"))?;
        hand_over.receipt.pause_predicted_ms = millis(work.tools.settings.pause_budget);
        work.keep(&hand_over.receipt).await?;
        work.begin(FENCE).await?;
        hand_over.fenced = Some(Instant::now());
        // A machine that is slow gets more time, up to a limit.
        let budget = (work.tools.settings.pause_budget * tried).min(FENCE_LIMIT);
        let closed = match close(work).await {
            Ok(closed) => timeout(FENCE_LIMIT, drained(work, plan, &mut asking, closed, budget)).await,
            Err(stop) => Ok(Err(stop)),
        };
        let stop = match closed {
            Ok(Ok(())) => match timeout(FENCE_LIMIT, mover.catch_up()).await {
                Ok(applied) => {
                    hand_over.receipt.changed = applied.map_err(failed("carry the rest over"))?.rows;
                    commit(work, &format!("give the partitions to {}", plan.to)).await?;
                    return Ok(());
                }
                // The stream was left in the middle: the attempt is over, and its end opens the gates.
                Err(_) => {
                    let limit = FENCE_LIMIT.as_millis();
                    return Err(Stop::Again(format!("the rest was not carried over within {limit} ms")));
                }
            },
            Ok(Err(stop)) => stop,
            Err(_) => Stop::Again(format!("the source was not quiet within {} ms", FENCE_LIMIT.as_millis())),
        };
        open_gates(work).await?;
        work.break_off(&stop.reason()).await?;
        match stop {
            Stop::Again(reason) => why = reason,
            stop => return Err(stop),
        }
        tracing::info!(operation = %work.id, why, "the gates were opened again");
        rest(mover, (PAUSE * tried).min(PAUSE_MAX)).await?;
    }
    Err(Stop::Again(format!(
        "the gates were closed {FENCES_MAX} times and had to be opened again, at last because {why}"
    )))
}

/// Have the catalog close the gates. Gives the generation as of which they are.
pub(crate) async fn close(work: &Work) -> Result<Generation, Stop> {
    let (operation, epoch, at) = (work.id, work.tools.epochs.term(), work.cluster().now_ms());
    work.command(Command::SetGates { operation, closed: true, epoch, at }).await?;
    work.operation()?.gates_closed.ok_or_else(|| Stop::Again("the gates were opened".to_owned()))
}

/// Nothing is left that may write to what moves.
async fn drained(
    work: &Work,
    plan: &Plan,
    asking: &mut Connection,
    closed: Generation,
    budget: Duration,
) -> Result<(), Stop> {
    let until = Instant::now() + budget;
    if let Some(why) = unsettled(work, plan.from, closed, true, budget).await {
        return Err(Stop::Again(why));
    }
    // What routers have lost sight of, the server still has.
    let since = now(asking).await?;
    loop {
        let left = moving::unsettled(asking, Some(&since)).await.map_err(failed("ask for transactions"))?;
        let Some(first) = left.first() else { return Ok(()) };
        if Instant::now() >= until {
            return Err(Stop::Again(format!("a transaction has not ended: {}", describe(first))));
        }
        sleep(LOOK_PAUSE).await;
    }
}

async fn now(asking: &mut Connection) -> Result<String, Stop> {
    let asked = asking.ask("SELECT clock_timestamp()::text").await.map_err(failed("ask for the time"))?;
    let time = asked.rows.into_iter().flatten().flatten().next();
    time.ok_or_else(|| Stop::Again("the source did not say what time it is".to_owned()))
}

/// Gates are not closed while a transaction is open that would only make them open again.
async fn wait_for_long_ones(work: &Work, asking: &mut Connection, mover: &mut Mover) -> Result<(), Stop> {
    let begun = Instant::now();
    loop {
        // Also what only reads so far: behind closed gates nobody could tell what it is going to do.
        let since = now(asking).await?;
        let open = moving::unsettled(asking, Some(&since)).await.map_err(failed("ask for transactions"))?;
        let Some(long) = open.iter().max_by_key(|one| one.age_seconds).filter(|one| one.age_seconds >= LONG_S) else {
            return Ok(());
        };
        let told = describe(long);
        if begun.elapsed() >= LONG_LIMIT {
            let why = format!("a client's transaction on the source does not end: {told}; end it, and try again");
            return Err(Stop::Impossible(Failure { why, code: Some("55006".to_owned()) }));
        }
        work.is_at(|| format!("waits for a client's transaction to end: {told}"))?;
        rest(mover, PAUSE).await?;
    }
}

pub(crate) fn describe(one: &Unsettled) -> String {
    let who = match (one.pid, &one.gid) {
        (Some(pid), _) => format!("process {pid} of the server"),
        (None, Some(gid)) => format!("'{gid}', prepared"),
        (None, None) => "unknown".to_owned(),
    };
    format!("{who}, {}, for {} s: {}", one.state, one.age_seconds, one.query)
}
