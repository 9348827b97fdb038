//! One attempt at a move between servers, from the new server to the commit.

use std::time::Duration;

use pleat_cluster::{Digest, RECEIPT_TABLES_MAX, ShardState, TableReceipt, withhold};
use pleat_engine::postgres::moving::{self, Mover, TableDigest};
use pleat_provision::process::{SchemaPart, copy_schema};
use tokio::time::{Instant, sleep};

use super::super::attempt::{CAPTURE, CATCH_UP, COPY_SCHEMA, CREATE_SHARD, VERIFY};
use super::super::copy::COPY;
use super::super::receipt::HandOver;
use super::{Plan, failed, fence, movement, server, servers, settle};
use crate::stop::{Failure, Stop};
use crate::tracker::Amount;
use crate::work::Work;

pub(crate) const CHECK: &str = "check";
pub(crate) const BUILD_INDEXES: &str = "build indexes";

/// Pairs of connections that copy at the same time.
const PARALLEL: usize = 2;
/// The stream is near enough to close the gates when so little of the source's log was not looked at yet.
const NEAR_BYTES: u64 = 1 << 20;
/// How long transactions of clients may keep the digests from one position, before the attempt is told what it waits for and tries again.
const DIGEST_WAIT: Duration = Duration::from_secs(20);
const DIGESTS_MAX: usize = 30;
/// How long a short question to a server may take.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// The stream is followed for so long between two looks.
const FOLLOW: Duration = Duration::from_millis(500);

/// Everything up to and with the commit.
pub(in crate::mover) async fn attempt(work: &Work, plan: &Plan) -> Result<HandOver, Stop> {
    if plan.creates {
        create_shard(work, plan).await?;
    }
    let mut hand_over = HandOver::default();
    let what = movement(&work.catalog(), work, plan, work.operation()?.attempts);
    let (source, target) = servers(work, plan)?;
    check(work, plan, &what).await?;
    if plan.creates {
        schema(work, plan, COPY_SCHEMA, SchemaPart::Before).await?;
    }
    work.begin(CAPTURE).await?;
    if !plan.creates {
        let generation = work.catalog().shards.get(&plan.to).map_or(0, |shard| shard.ownership);
        settle(work, plan.to, generation, false).await?;
    }
    let mut mover = Mover::begin(&source, &target, what).await.map_err(failed("make a slot and what belongs to it"))?;
    work.end(CAPTURE, &format!("changes to {} partitions are captured", plan.partitions.len())).await?;

    work.begin(COPY).await?;
    let progress = |copied: moving::Copied| {
        work.advance(Amount { rows: copied.rows, bytes: copied.bytes }, String::new);
    };
    let copied = mover.copy(PARALLEL, &progress).await.map_err(failed("copy rows"))?;
    (hand_over.receipt.copied, hand_over.receipt.bytes) = (copied.rows, copied.bytes);
    work.end(COPY, &format!("{} rows, {} bytes", copied.rows, copied.bytes)).await?;
    if plan.creates {
        schema(work, plan, BUILD_INDEXES, SchemaPart::After).await?;
    }
    catch_up(work, &mut mover, &mut hand_over).await?;
    verify(work, &mut mover, &mut hand_over).await?;
    fence::hand_over(work, plan, &source, &mut mover, &mut hand_over).await?;
    Ok(hand_over)
}

async fn create_shard(work: &Work, plan: &Plan) -> Result<(), Stop> {
    let catalog = work.catalog();
    let shard = catalog.shards.get(&plan.to).filter(|shard| shard.state != ShardState::Removed);
    let shard = shard.ok_or_else(|| Stop::impossible(format!("{} was removed", plan.to)))?;
    let provided = work.tools.provisioner.provide(shard, work.tools.settings.provision_limit).await;
    provided.map_err(|error| Stop::Again(error.to_string()))?;
    work.end(CREATE_SHARD, &format!("the server of {} takes connections", plan.to)).await
}

/// All that is missing is named at once, before anything is made.
async fn check(work: &Work, plan: &Plan, what: &moving::Movement) -> Result<(), Stop> {
    work.begin(CHECK).await?;
    let (source, target) = servers(work, plan)?;
    let missing =
        moving::missing(&source, &target, what, plan.creates).await.map_err(failed("look what is missing"))?;
    match missing.is_empty() {
        true => work.end(CHECK, "").await,
        false => Err(Stop::Impossible(Failure { why: missing.join("; "), code: Some("55000".to_owned()) })),
    }
}

async fn schema(work: &Work, plan: &Plan, step: &str, part: SchemaPart) -> Result<(), Stop> {
    work.begin(step).await?;
    let address = |shard| match server(work, shard)?.address {
        pleat_engine::postgres::Address::Tcp(address) => Ok(address),
        _ => Err(Stop::impossible("the schema of a server that is reached otherwise than by TCP can't be copied")),
    };
    let (from, to) = (address(plan.from)?, address(plan.to)?);
    copy_schema(&work.tools.settings.postgres_programs, from, to, None, part).await.map_err(Stop::Again)?;
    // In a new server they would begin anew.
    if let Some(text) = withhold(work.catalog().tables.values()) {
        let answers = work.cluster().ask(plan.to, vec![text], ASK_LIMIT).await;
        answers.map_err(|error| Stop::Again(format!("withhold sequences: {error}")))?;
    }
    work.end(step, "").await
}

/// Until what is left of the stream is carried over in a moment.
async fn catch_up(work: &Work, mover: &mut Mover, hand_over: &mut HandOver) -> Result<(), Stop> {
    work.begin(CATCH_UP).await?;
    loop {
        let applied = mover.catch_up().await.map_err(failed("carry changes over"))?;
        hand_over.receipt.changed = applied.rows;
        work.advance(Amount { rows: applied.rows, bytes: applied.bytes }, String::new);
        if mover.lag().await.map_err(failed("ask for the source's position"))? <= NEAR_BYTES {
            return work.end(CATCH_UP, &format!("{} changes", applied.rows)).await;
        }
        work.operation()?;
    }
}

/// The rows are the same on both sides, at one position of the stream.
async fn verify(work: &Work, mover: &mut Mover, hand_over: &mut HandOver) -> Result<(), Stop> {
    work.begin(VERIFY).await?;
    for tried in 1..=DIGESTS_MAX {
        let Some(digests) = mover.digest(DIGEST_WAIT).await.map_err(failed("compare both sides"))? else {
            work.is_at(|| format!("waits for transactions of clients on the source to end (tried {tried} times)"))?;
            mover.follow(FOLLOW).await.map_err(failed("carry changes over"))?;
            continue;
        };
        let differ = keep(hand_over, &digests);
        if !differ.is_empty() {
            work.keep(&hand_over.receipt).await?;
            let tables = differ.join(", ");
            return Err(Stop::impossible(format!(
                "the copy of {tables} differs from its source; nothing was handed over"
            )));
        }
        let rows = hand_over.receipt.source.rows;
        return work.end(VERIFY, &format!("{rows} rows are the same on both shards")).await;
    }
    let why = "clients' transactions on the source did not end, so that there was no position to compare both sides at";
    Err(Stop::Impossible(Failure { why: why.to_owned(), code: Some("55006".to_owned()) }))
}

/// Note what both sides hold. Gives the tables that differ.
fn keep(hand_over: &mut HandOver, digests: &[TableDigest]) -> Vec<String> {
    let of = |digest: moving::Digest| Digest { rows: digest.rows, sum: digest.sum };
    let all = |side: fn(&TableDigest) -> moving::Digest| {
        let sum = |sum: Digest, table: &TableDigest| {
            let digest = side(table);
            // By the table's place: two that have swapped their rows are no copy.
            let turned = digest.sum.rotate_left(1) ^ sum.sum.rotate_left(7);
            Digest { rows: sum.rows + digest.rows, sum: turned }
        };
        digests.iter().fold(Digest::default(), sum)
    };
    let name = |table: &TableDigest| match table.schema.as_str() {
        "public" => table.name.clone(),
        schema => format!("{schema}.{}", table.name),
    };
    let receipt = &mut hand_over.receipt;
    (receipt.source, receipt.target) = (all(|table| table.source), all(|table| table.target));
    let (same, differ): (Vec<&TableDigest>, Vec<&TableDigest>) =
        digests.iter().partition(|table| table.source == table.target);
    let listed = differ.iter().chain(&same).take(RECEIPT_TABLES_MAX);
    receipt.tables = listed
        .map(|table| TableReceipt { table: name(table), source: of(table.source), target: of(table.target) })
        .collect();
    differ.into_iter().map(name).collect()
}

/// Follow the stream while something else has to end first.
pub(super) async fn rest(mover: &mut Mover, pause: Duration) -> Result<(), Stop> {
    let until = Instant::now() + pause;
    mover.follow(pause).await.map_err(failed("carry changes over"))?;
    sleep(until.saturating_duration_since(Instant::now())).await;
    Ok(())
}
