//! `POST /rebalance`: evening the shards out, and what that would cost.
//!
//! What each partition holds is counted when someone asks (a scan of every shard), and `pleat-plan` says what is to move. With
//! `dry_run` that is all. Otherwise the moves are put into the journal, all or none.
//!
//! The pause of writes that is predicted here is made of what a read on the source and an entry of the control group's log take just now;
//! an entry of a shard's log is taken to last as long as the latter, which is flushed to the same disks. To know it an entry is written
//! that changes nothing. Before the gates close it is predicted anew from the move's own messages, and held against the budget.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use futures::TryStreamExt;
use futures::future::join_all;
use pleat_cluster::{Catalog, Cause, Command, CommandError, OperationId, OperationKind, PartitionId, ShardId};
use pleat_engine::{OwnershipCheck, Query, ReadLimits, ReadRequest};
use pleat_host::{Freshness, HostError};
use pleat_plan::{Filled, PauseParts, Rebalance, Shift, THRESHOLD, Weight, able, rebalance};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json_;
use utoipa::ToSchema;

use super::App;
use super::extract::{Media, body, media, object, unsupported};
use super::problem::{CONFLICT, ErrorBody, Problem};
use crate::backend::Backend;
use crate::observer::Look;
use crate::settings::STATUS_TIME_MAX;

/// Moves that are begun at once. What is more is left for the next time.
const MOVES_MAX: usize = 32;
/// How long counting a shard's partitions may take.
const COUNT_TIME_MAX: Duration = Duration::from_secs(60);
const BODY_BYTES_MAX: usize = 16 * 1024;
/// By how much shards may be allowed to differ from the mean.
const THRESHOLD_MAX: f64 = 10.0;

/// What is asked for. An empty body asks for a rebalance.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct AskBody {
    /// Only show what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// By how much a shard may differ from the mean, as a share of it. Left out: 0.1.
    #[schema(example = 0.1)]
    pub threshold: Option<f64>,
}

/// What is done, or would be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RebalanceBody {
    pub dry_run: bool,
    pub threshold: f64,
    /// The moves, in the order of their operations. Empty when the shards are even, or can't be made more even.
    pub moves: Vec<MoveBody>,
    /// Moves beyond those that are begun at once: ask again when these have ended.
    pub more_moves: u32,
    /// Of all moves.
    pub bytes: u64,
    /// How much of what the shards hold is moved, by bytes and load.
    pub moved_percent: f64,
    /// Less than that would not do.
    pub least_percent: f64,
    pub shards: Vec<RebalancedBody>,
    /// Shards that neither give nor take.
    pub left_out: Vec<LeftOutBody>,
}

/// Partitions that go from one shard to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MoveBody {
    #[schema(example = "shard-1")]
    pub from: String,
    #[schema(example = "shard-3")]
    pub to: String,
    pub partitions: u32,
    pub partition_ids: Vec<u32>,
    pub rows: u64,
    pub bytes: u64,
    /// For how long writes to these partitions are expected to wait, when they are handed over.
    pub pause_predicted_ms: u64,
    /// What carries it out; null in a dry run.
    #[schema(example = "op-7")]
    pub operation: Option<String>,
}

/// What a shard holds, as a multiple of what a shard holds on average.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RebalancedBody {
    pub shard_id: String,
    #[schema(example = 1.62)]
    pub before: f64,
    #[schema(example = 1.04)]
    pub after: f64,
}

/// A shard that takes no part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LeftOutBody {
    pub shard_id: String,
    pub why: String,
}

/// Even the shards out.
///
/// By what their partitions hold and how much they are used, moving as little as possible. With `dry_run` nothing happens: the answer
/// says what would move, and for how long writes would wait. Otherwise each move is an operation that can be followed and cancelled; the
/// answer comes when they have begun. The autoscaler's mode and limits don't matter, and it does nothing until the moves have ended.
#[utoipa::path(post, path = "/rebalance", tag = "operations", request_body = AskBody,
    responses(
        (status = 200, body = RebalanceBody), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn begin(State(app): State<App>, request: Request) -> Result<Json<RebalanceBody>, Problem> {
    if media(request.headers())? != Media::Json {
        return Err(unsupported("POST /rebalance takes one JSON object".to_owned()));
    }
    let (dry_run, threshold) = asked(&body(request, BODY_BYTES_MAX).await?)?;
    let catalog = app.backend.fresh_catalog(STATUS_TIME_MAX).await?;
    let look = app.observer.look().await;
    let (weights, failed) = count(&*app.backend, &catalog, &look).await;
    let measured = catalog.active_shards().map(|shard| shard.id).filter(|shard| !failed.contains_key(shard)).collect();
    let (able, mut left_out) = able(&catalog, &measured);
    left_out.extend(failed);
    let mut plan = rebalance(&catalog.owners, &able, &weights, threshold);
    let more = plan.moves.split_off(plan.moves.len().min(MOVES_MAX));
    let pauses = predict(&*app.backend, &catalog, &plan).await;
    let first = if dry_run { None } else { start(&*app.backend, &plan).await? };
    let left_out = left_out.into_iter().map(|(shard, why)| LeftOutBody { shard_id: shard.to_string(), why }).collect();
    let told = |((at, shift), pause)| shown(shift, pause, first.map(|first: OperationId| OperationId(first.0 + at)));
    Ok(Json(RebalanceBody {
        dry_run,
        threshold,
        more_moves: more.len() as u32,
        bytes: plan.moves.iter().chain(&more).map(|shift| shift.bytes).sum(),
        moved_percent: 100.0 * plan.moved,
        least_percent: 100.0 * plan.least,
        shards: plan.shards.iter().map(|(shard, filled)| filled_body(*shard, *filled)).collect(),
        moves: (0..).zip(&plan.moves).zip(pauses).map(told).collect(),
        left_out,
    }))
}

fn asked(bytes: &[u8]) -> Result<(bool, f64), Problem> {
    let bytes = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    let fields = object(bytes, &["dry_run", "threshold"])?;
    let hint =
        "send {\"dry_run\": true} to see what would move, and {\"threshold\": 0.1} to tolerate 10 % off the mean";
    let wrong = |what: String| Problem::bad_request(what, hint);
    let asked: AskBody =
        serde_json::from_value(Json_::Object(fields)).map_err(|error| wrong(format!("the body: {error}")))?;
    let threshold = asked.threshold.unwrap_or(THRESHOLD);
    match (0.0..=THRESHOLD_MAX).contains(&threshold) {
        true => Ok((asked.dry_run, threshold)),
        false => Err(wrong(format!("\"threshold\" is {threshold}, and must be from 0 to {THRESHOLD_MAX}"))),
    }
}

type Weights = BTreeMap<PartitionId, Weight>;

/// What every partition holds and does, by those that own them, and why that is not known of some shards.
async fn count(backend: &dyn Backend, catalog: &Catalog, look: &Look) -> (Weights, BTreeMap<ShardId, String>) {
    let asked = catalog.active_shards().map(|shard| async move {
        let counted = backend.partition_weights(shard.id, COUNT_TIME_MAX).await;
        (shard, counted)
    });
    let (mut weights, mut failed) = (Weights::new(), BTreeMap::new());
    for (shard, counted) in join_all(asked).await {
        match (counted, look.shard(shard.id)) {
            (Ok(counted), Some(seen)) => {
                let owns = |partition: &PartitionId| catalog.owner(*partition) == Some(shard.id);
                let held = counted.into_iter().filter(|(partition, _)| !partition.is_single() && owns(partition));
                for (partition, held) in held {
                    weights.insert(partition, Weight { rows: held.rows, bytes: held.bytes, load: 0.0 });
                }
                for (number, load) in &seen.shard.partition_load {
                    let partition = PartitionId(*number);
                    if owns(&partition) {
                        weights.entry(partition).or_default().load = load.reads_per_second + load.writes_per_second;
                    }
                }
            }
            (Err(error), _) => drop(failed.insert(shard.id, format!("its partitions could not be counted: {error}"))),
            (Ok(_), None) => drop(failed.insert(shard.id, look.trouble(&shard.replicas))),
        }
    }
    (weights, failed)
}

/// For how long writes would wait at each move.
async fn predict(backend: &dyn Backend, catalog: &Catalog, plan: &Rebalance) -> Vec<Duration> {
    if plan.moves.is_empty() {
        return Vec::new();
    }
    let command = time_command(backend, catalog).await;
    let sources: BTreeSet<ShardId> = plan.moves.iter().map(|shift| shift.from).collect();
    let timed = sources.iter().map(|shard| async { (*shard, time_read(backend, *shard).await) });
    let reads: BTreeMap<ShardId, Duration> = join_all(timed).await.into_iter().collect();
    let pause = |shift: &Shift| {
        let read = reads.get(&shift.from).copied().unwrap_or_default();
        PauseParts { write: command, read, command }.pause(command, 1)
    };
    plan.moves.iter().map(pause).collect()
}

/// How long an entry of the control group's log takes, one that changes nothing. One that fails took so long, too.
async fn time_command(backend: &dyn Backend, catalog: &Catalog) -> Duration {
    let begun = Instant::now();
    if let Some(shard) = catalog.anchor() {
        let _ = backend.command(Command::ActivateShard { shard, at: backend.now_ms() }, STATUS_TIME_MAX).await;
    }
    begun.elapsed()
}

async fn time_read(backend: &dyn Backend, shard: ShardId) -> Duration {
    let begun = Instant::now();
    let request = ReadRequest {
        queries: vec![Query::new("SELECT 1")],
        check: OwnershipCheck::None,
        layout: None,
        now_ms: backend.now_ms(),
        seed: 0,
        limits: ReadLimits { time: STATUS_TIME_MAX, ..ReadLimits::default() },
        names_txns: false,
    };
    if let Ok(rows) = backend.read(shard, request, Freshness::Strong, STATUS_TIME_MAX).await {
        let _ = rows.pieces.try_for_each(|_| async { Ok(()) }).await;
    }
    begun.elapsed()
}

/// Put the moves into the journal; gives the first one's id.
async fn start(backend: &dyn Backend, plan: &Rebalance) -> Result<Option<OperationId>, Problem> {
    if plan.moves.is_empty() {
        return Ok(None);
    }
    let kind =
        |shift: &Shift| OperationKind::Move { from: shift.from, to: shift.to, partitions: shift.partitions.clone() };
    let moves = plan.moves.iter().map(kind).collect();
    let fullest = |of: fn(&Filled) -> f64| plan.shards.values().map(of).fold(0.0, f64::max);
    let (before, after) = (fullest(|filled| filled.before), fullest(|filled| filled.after));
    let reason = format!(
        "rebalance, asked for by hand: the fullest shard holds {before:.2} times the mean, and {after:.2} times after {} moves",
        plan.moves.len()
    );
    let (cause, at) = (Cause::Request("http".to_owned()), backend.now_ms());
    match backend.command(Command::StartMoves { moves, cause, reason, at }, STATUS_TIME_MAX).await {
        Ok(reply) => Ok(reply.operation),
        Err(HostError::Command(CommandError::Invalid { what } | CommandError::Busy { what })) => {
            Err(Problem::new(CONFLICT, what, "GET /operations shows what is under way"))
        }
        Err(error) => Err(error.into()),
    }
}

fn shown(shift: &Shift, pause: Duration, operation: Option<OperationId>) -> MoveBody {
    MoveBody {
        from: shift.from.to_string(),
        to: shift.to.to_string(),
        partitions: shift.partitions.len() as u32,
        partition_ids: shift.partitions.iter().map(|partition| partition.0).collect(),
        rows: shift.rows,
        bytes: shift.bytes,
        pause_predicted_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        operation: operation.map(|id| id.to_string()),
    }
}

fn filled_body(shard: ShardId, filled: Filled) -> RebalancedBody {
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    RebalancedBody { shard_id: shard.to_string(), before: rounded(filled.before), after: rounded(filled.after) }
}
