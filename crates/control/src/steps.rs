//! What breaks a step off: that someone asks for the operation to be cancelled, or that the step takes too long.
//!
//! Both work in the same way, and in whatever the step waits for: a message, a scan of many rows, the pause before
//! another try. The attempt is *dropped where it stands*, exactly as when its leader dies, which may happen at any point
//! anyway; then the operation is given up, and what it did is taken back, as a leader that takes over does with what it
//! finds. Steps that are still on their way to shards are older than those that take back, and refused there.
//!
//! | broken off in | what there is | what is done |
//! | --- | --- | --- |
//! | `create shard`, `copy schema`, `copy reference tables` | a shard that owns nothing | it is removed |
//! | `capture`, `copy`, `catch up`, `verify` | a capture at the source, rows at the target that nobody owns | the capture is dropped, the rows are deleted; of a split, the shard is removed |
//! | `fence` | the same, and closed gates | the gates are opened first |
//! | `take back`, between two attempts | some of that | the rest of it is taken back |
//! | `check`, `reach shards`, `change shards`, `settle reference tables` | a schema change on some shards | it is undone there |
//! | `prepare` | a schema change that some servers have prepared | it is rolled back there (of tables that are placed anew the gates open first) |
//! | `commit` | nobody knows yet whether it took place | a cancellation is put in order with the commit by the catalog: whichever is there first refuses the other. No limit applies |
//! | `activate`, `release`, `switch`, `open`, `own`, `clean up` | the result is in the catalog | nothing breaks these off; a cancellation is refused |
//!
//! An operation that was cancelled ends `Skipped`, one that took too long `Failed`, with the step's name and limit in its
//! message and `57014` as its code.
//!
//! The limits are for what never ends. What a shard can't do right now is tried again first, and up to five attempts are made;
//! see [`Settings::shard_limit`](crate::Settings) for shards that are gone.

//! # Where this is tested
//!
//! | promise | test (`tests::moves`, unless said otherwise) |
//! | --- | --- |
//! | cancelled at every step | `a_split_can_be_cancelled_at_every_step_before_its_commit`, `a_cancellation_at_any_call_comes_before_the_commit_or_is_refused`, and `tests::schema`, `tests::place` |
//! | at once, whatever it waits for | `a_call_that_never_returns_keeps_no_cancellation_waiting` |
//! | resumed by any leader | `a_split_survives_a_leader_that_dies_before_any_call` (and after), `messages_that_arrive_late_do_no_harm` |
//! | limits name their step and leave nothing | `a_step_that_never_ends_is_broken_off_with_its_name_and_nothing_is_left` |
//! | progress | `a_move_tells_how_far_it_is_and_the_journal_is_spared`; in the gateway `how_far_an_operation_is_is_shown_and_told_but_not_remembered` |
//! | receipts | `every_finished_move_has_a_whole_receipt`, `a_copy_that_differs_is_not_handed_over_and_the_source_goes_on` |
//! | clients keep their throughput | `mover::throttle`, as arithmetic; `what_writers_keep_while_their_shard_is_split` measures it |

use std::time::Duration;

use pleat_cluster::Catalog;
use tokio::time::{Instant, sleep_until};

use crate::ddl::{CHANGE_STEP, REACH_STEP, SETTLE_STEP};
use crate::ddl_servers::PREPARE;
use crate::mover::attempt::{CAPTURE, CATCH_UP, COPY_SCHEMA, CREATE_SHARD, VERIFY};
use crate::mover::clean_up::TAKE_BACK;
use crate::mover::copy::COPY;
use crate::mover::cut_over::FENCE;
use crate::mover::reference::COPY_REFERENCE;
use crate::mover::servers::BUILD_INDEXES;
use crate::place::CHECK;
use crate::stop::{Failure, Stop};
use crate::work::Work;

/// Steps that send a few messages to each shard.
const BRIEF_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Steps that send a message for each table, or read all rows where they are.
const SCAN_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);
/// Steps that carry rows from shard to shard, or let each shard work on all of a table.
const CARRY_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a step may take. Those that follow a commit have no limit: they are only ever finished.
fn limit_of(step: &str) -> Option<Duration> {
    match step {
        CHECK | REACH_STEP | CREATE_SHARD | CAPTURE | FENCE => Some(BRIEF_LIMIT),
        COPY_SCHEMA | VERIFY | SETTLE_STEP => Some(SCAN_LIMIT),
        COPY_REFERENCE | COPY | BUILD_INDEXES | CATCH_UP | TAKE_BACK | CHANGE_STEP | PREPARE => Some(CARRY_LIMIT),
        _ => None,
    }
}

/// The step at hand, and until when it may take.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limit {
    step: String,
    limit: Duration,
    at: Instant,
}

impl Limit {
    /// Of a step that begins now.
    pub fn of(step: &str) -> Option<Self> {
        limit_of(step).map(|limit| Self { step: step.to_owned(), limit, at: Instant::now() + limit })
    }

    fn overdue(&self) -> Stop {
        let minutes = self.limit.as_secs() / 60;
        Stop::Impossible(Failure {
            why: format!("the step '{}' took longer than its limit of {minutes} minutes and was broken off", self.step),
            code: Some("57014".to_owned()),
        })
    }
}

impl Work {
    /// Run what comes before the commit, and the commit, until it is broken off.
    pub async fn interruptible<T>(&self, work: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
        tokio::select! {
            biased;
            done = work => done,
            stop = self.interrupted() => Err(stop),
        }
    }

    async fn interrupted(&self) -> Stop {
        let (mut catalogs, mut limits) = (self.cluster().watch_catalog(), self.limit.subscribe());
        loop {
            if self.is_cancelled(&catalogs.borrow_and_update()) {
                return Stop::Cancelled;
            }
            let limit = limits.borrow_and_update().clone();
            let overdue = async {
                match &limit {
                    Some(limit) => sleep_until(limit.at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Ok(()) = catalogs.changed() => {}
                Ok(()) = limits.changed() => {}
                // The step may have ended in the very moment, and the commit be on its way.
                () = overdue => if let Some(limit) = limit.as_ref().filter(|limit| limits.borrow().as_ref() == Some(*limit)) {
                    return limit.overdue();
                },
            }
        }
    }

    /// Whether someone asked for that before the commit, which the catalog then refuses for ever.
    fn is_cancelled(&self, catalog: &Catalog) -> bool {
        let open = catalog.operations.get(&self.id);
        open.is_some_and(|operation| operation.cancel_requested && !operation.committed)
    }
}
