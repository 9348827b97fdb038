//! Every limit of the embedded engine, with its unit.
//!
//! Those that bear on writes are part of the cluster's version: replicas that disagreed on one would disagree
//! on an outcome. That is why they are constants, and why none of them is a time.

/// The longest SQL text, in bytes.
pub const STATEMENT_BYTES_MAX: usize = 1 << 20;
/// The largest value and the largest row that can be written, in bytes. A row has to fit into one entry of the log
/// (8 MiB) with something to spare, or it could never be moved.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// The largest value of Pleat's own (an entry of the reference log), and of a query on its way, in bytes.
pub const INTERNAL_VALUE_BYTES_MAX: usize = 32 << 20;
/// Parameters of one statement.
pub const PARAMETERS_MAX: usize = 32_766;
/// Nesting of an expression.
pub const EXPRESSION_DEPTH_MAX: usize = 1_000;
/// Triggers that fire one another.
pub const TRIGGER_DEPTH_MAX: usize = 100;

/// How many steps of SQLite's virtual machine one proposal may take, in blocks of [`STEPS_PER_CHECK`]. About a
/// second or two: all writers of the shard wait meanwhile.
pub const WRITE_STEP_BLOCKS_MAX: u64 = 10_000;
/// The same for one statement that changes the schema: an index over many rows takes its time.
pub const SCHEMA_STEP_BLOCKS_MAX: u64 = 10_000_000;
/// Steps of the virtual machine between two looks at a limit.
pub const STEPS_PER_CHECK: i32 = 10_000;
/// Rows that one write may return (`RETURNING`, or a SELECT among its statements).
pub const WRITE_RESULT_ROWS_MAX: usize = 100_000;
/// Bytes that one write may return.
pub const WRITE_RESULT_BYTES_MAX: usize = 4 << 20;

/// Clients' idempotency keys that a shard keeps. None is forgotten before its time: a new one beyond is refused.
pub const IDEMPOTENCY_CLIENT_KEYS_MAX: i64 = 1_000_000;
/// Internal idempotency keys that a shard keeps; those that expire first go first.
pub const IDEMPOTENCY_INTERNAL_KEYS_MAX: i64 = 500_000;
/// What an internal key's text begins with: the gateway makes one up for each write that has none of its client's
/// (those begin with `c/`).
pub const IDEMPOTENCY_INTERNAL_PREFIX: &str = "i/";
/// How much longer an internal key is kept than was asked, in milliseconds of the log's time: that jumps ahead when
/// the clock of the next leader is ahead, while the write is still being retried.
pub const IDEMPOTENCY_INTERNAL_MARGIN_MS: u64 = 5 * 60 * 1_000;
/// How long an idempotency key is kept at most, in milliseconds.
pub const IDEMPOTENCY_TTL_MS_MAX: u64 = 7 * 24 * 3_600 * 1_000;
/// The longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Keys of each class that one keyed write removes because they expired, and internal ones because of their number.
pub const IDEMPOTENCY_PRUNED_PER_WRITE: i64 = 8;
/// A stored outcome above this many bytes keeps its counts and leaves out its rows.
pub const IDEMPOTENCY_OUTCOME_BYTES_MAX: usize = 64 << 10;

/// How long a shard remembers that it committed a transaction over several shards, in milliseconds of the log's time.
pub const COMMITTED_KEPT_MS: u64 = 10 * 60 * 1_000;
/// Committed transactions over several shards that a shard remembers.
pub const COMMITTED_KEPT_MAX: i64 = 100_000;

/// Bytes of the statements of one interactive transaction: they have to fit into one entry of the log.
pub const TXN_SCRIPT_BYTES_MAX: usize = 6 << 20;
/// Savepoints that one interactive transaction has at a time.
pub const TXN_SAVEPOINTS_MAX: usize = 1_000;

/// Schema changes whose ids are remembered, so that repeating one does nothing.
pub const SCHEMA_CHANGES_REMEMBERED: i64 = 1_000;

/// Read-only connections of one shard unless configured otherwise.
pub const READ_CONNECTIONS_MAX: usize = 16;
/// Statements that a connection keeps prepared.
pub const STATEMENTS_CACHED_MAX: usize = 256;
/// Bytes of rows in one chunk of a result.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;
/// Rows in one chunk of a result.
pub const CHUNK_ROWS_MAX: usize = 4_096;

/// Memory that a finisher begins with, in bytes. Half of it is for cached pages: room for a chunk that is gathered.
pub const FINISHER_BYTES_MIN: u64 = 2 << 20;
/// Memory that a finisher asks for before it runs its statement, if it has gathered little, in bytes: to sort in.
pub const FINISHER_SORT_BYTES: u64 = 16 << 20;

/// A move's snapshot that nobody asked for this long is closed, in seconds: it keeps the WAL from shrinking.
pub const MOVE_SNAPSHOT_IDLE_SECONDS_MAX: u64 = 60;
/// Snapshots that moves hold open on one shard.
pub const MOVE_SNAPSHOTS_MAX: usize = 8;
/// Moves that a shard remembers after they ended, so that their late messages are recognised.
pub const MOVES_REMEMBERED_MAX: usize = 64;
/// Changes that may be left when a move is verified; more must be caught up with first.
pub const VERIFY_DELTA_ROWS_MAX: usize = 10_000;
/// The same in bytes: they go into one entry of the target's log.
pub const VERIFY_DELTA_BYTES_MAX: usize = 4 << 20;
/// Bytes of reference log entries in one answer; one entry is given whatever its size.
pub const REFERENCE_LOG_BYTES_MAX: usize = 4 << 20;

/// Pages of the WAL after which the writer moves them into the database file.
pub const WAL_PAGES_CHECKPOINT: u32 = 4_000;
/// A WAL larger than this is cut back when it is reset, in bytes.
pub const WAL_BYTES_KEPT_MAX: u64 = 64 << 20;
/// Pages per step of a snapshot's copy.
pub const COPY_PAGES_PER_STEP: i32 = 1_024;
