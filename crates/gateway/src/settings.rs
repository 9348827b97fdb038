//! Every limit of the gateway, named with its unit, and the settings that a node is started with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pleat_engine::RoomLimits;

use crate::tls::Tls;

/// The longest text of a request (one statement or several).
pub const STATEMENT_BYTES_MAX: usize = 1 << 20;
/// The largest body of `POST /query`: the text and its parameters.
pub const QUERY_BODY_BYTES_MAX: usize = 8 << 20;
/// The largest body of `POST /tables/{table}/rows`.
pub const BULK_BODY_BYTES_MAX: usize = 16 << 20;
/// How long the head of a request may take, from the connection's beginning or the answer before: so also how long an
/// HTTP/1 connection may idle. Longer than the minute for which proxies usually keep connections.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(75);
/// The largest head of a request, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// The most headers of a request (HTTP/1; HTTP/2 limits their bytes).
pub const HEADERS_MAX: usize = 100;
/// How often the other end of an HTTP/2 connection is asked whether it is there.
pub const PING_EVERY: Duration = Duration::from_secs(20);
/// How long it may take to say so.
pub const PING_TIME_MAX: Duration = Duration::from_secs(20);
/// How long the body of a request may take to arrive.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a query waits for a place among those that gather rows on this node.
pub const GATHER_WAIT_MAX: Duration = Duration::from_secs(5);
/// The most rows of one bulk batch.
pub const BULK_ROWS_MAX: usize = 10_000;
/// What is read and thrown away of a body that is too large, so that its sender gets to see the answer.
pub const DISCARD_BYTES_MAX: usize = 256 << 20;
/// How long that may take.
pub const DISCARD_TIME_MAX: Duration = Duration::from_secs(10);
/// The most statements in one request.
pub const STATEMENTS_MAX: usize = 1_000;
/// The longest idempotency key or batch id that a client may send, in bytes.
pub const CLIENT_KEY_BYTES_MAX: usize = 200;
/// How long the effect of a client's idempotency key is remembered.
pub const CLIENT_KEY_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest time that a client may ask for with `timeout_ms`.
pub const STATEMENT_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Plans that are kept ready, by statement text.
pub const PLANS_CACHED_MAX: usize = 2_048;
/// Statement texts longer than this are planned each time.
pub const PLAN_TEXT_BYTES_MAX: usize = 16 << 10;
/// Shards of one read that are asked at the same time.
pub const SHARDS_ASKED_AT_ONCE_MAX: usize = 64;
/// Event streams open at one node.
pub const EVENT_STREAMS_MAX: usize = 256;
/// Events that a node remembers for clients that come back with `Last-Event-ID`.
pub const EVENTS_KEPT_MAX: usize = 1_024;
/// How often it is told, as an event, how far an operation is.
pub const PROGRESS_TOLD_EVERY: Duration = Duration::from_secs(1);
/// How long the leader of the control group may take to say how far operations are. They are shown without that otherwise.
pub const PROGRESS_TIME_MAX: Duration = Duration::from_millis(500);
/// How often leaders are looked at for events.
pub const LEADERS_LOOKED_AT_EVERY: Duration = Duration::from_millis(250);
/// How long the cluster's status and lists may take.
pub const STATUS_TIME_MAX: Duration = Duration::from_secs(5);
/// A measurement younger than this is shown again instead of taken anew, so that many watchers cost the
/// cluster no more than one. `last_updated` tells its age.
pub const OBSERVATION_AGE_MAX: Duration = Duration::from_millis(100);
/// Statements that a node keeps figures of.
pub const STATEMENTS_KEPT_MAX: usize = 1_000;
/// Bytes of a statement's text in those figures and in the log.
pub const STATEMENT_SHOWN_BYTES_MAX: usize = 2 << 10;
/// Operations or decisions in one list.
pub const LIST_MAX: usize = 1_000;

/// Sessions open at one node.
pub const SESSIONS_MAX: usize = 1_000;
/// How long a session may stay unused when its client names no time of its own, and at most.
pub const SESSION_IDLE_DEFAULT: Duration = Duration::from_secs(5 * 60);
pub const SESSION_IDLE_MAX: Duration = Duration::from_secs(60 * 60);

/// The largest message of a PostgreSQL client, in bytes.
pub const PG_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// The largest of those that have no statement, value or row in them; larger ones of the others need a place.
pub const PG_SMALL_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Such places at a node: so many messages of the largest size may be held at the same time.
pub const PG_LARGE_MESSAGES_MAX: usize = 32;
/// The largest message before the session begins, as in PostgreSQL.
pub const PG_FIRST_BYTES_MAX: usize = 10_000;
/// How long a PostgreSQL client may take until its session has begun.
pub const PG_STARTUP_TIME_MAX: Duration = Duration::from_secs(10);
/// A message in which a PostgreSQL client proves its password, in bytes.
pub const PG_PROOF_BYTES_MAX: usize = 1_024;
/// Wrong passwords of a user from one address that cost nothing, and the longest pause after a further one.
pub const PG_GUESSES_FREE: u32 = 5;
pub const PG_GUESS_PAUSE_MAX: Duration = Duration::from_secs(60);
/// After how long without another one they are forgotten.
pub const PG_GUESS_FORGOTTEN_AFTER: Duration = Duration::from_secs(10 * 60);
/// Users, each with an address, whose wrong passwords a node remembers.
pub const PG_GUESSERS_MAX: usize = 4_096;
/// How long a node that has just started may take to learn who the cluster's users are.
pub const PG_USERS_TIME_MAX: Duration = Duration::from_secs(5);
/// What is read of the messages that a client sends while a statement is carried out, to notice when it goes away.
pub const PG_AHEAD_BYTES_MAX: usize = 64 << 10;
/// Bytes of an answer that are gathered before they are sent.
pub const PG_SEND_BYTES: usize = 32 << 10;
/// Connections beside the allowed ones: for cancelling, and to be told that there are too many.
pub const PG_SPARE_CONNECTIONS: usize = 64;
/// The name of a prepared statement or portal, in bytes.
pub const PG_NAME_BYTES_MAX: usize = 1_000;
/// Statements of a node whose types are being found out at one time.
pub const PG_KNOWING_MAX: usize = 4;
/// A question to the system catalog, in bytes: many words make it slow to translate.
pub const PG_SYSTEM_TEXT_BYTES_MAX: usize = 64 << 10;
/// A value of the system catalog, and all of an answer's, in bytes.
pub const PG_SYSTEM_VALUE_BYTES_MAX: usize = 1 << 20;
pub const PG_SYSTEM_ANSWER_BYTES_MAX: usize = 64 << 20;
/// Prepared statements and portals of one connection.
pub const PG_STATEMENTS_MAX: usize = 2_000;
/// What their texts and values may take, in bytes.
pub const PG_HELD_BYTES_MAX: usize = 32 << 20;
/// Rows and bytes of one batch of COPY.
pub const PG_COPY_BATCH_ROWS: usize = 5_000;
pub const PG_COPY_BATCH_BYTES: usize = 4 << 20;

/// Limits that an operator may want to change.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a statement may take when the client names no time of its own.
    pub statement_timeout: Duration,
    /// The largest result that is answered as one JSON document, in bytes of JSON. NDJSON has no limit.
    pub json_result_bytes: usize,
    /// Memory and disk for the rows that queries gather.
    pub room: RoomLimits,
    /// Queries that gather rows at the same time on this node.
    pub gathers: usize,
    /// Statements that take longer are logged; none when zero.
    pub slow_query: Duration,
    /// Statements and bulk batches that this node serves at the same time; more are refused at once.
    pub requests_in_flight: usize,
    /// How long an answer that is streamed waits for a client that reads nothing before it is given up, with all that it
    /// holds on the shards.
    pub client_stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            statement_timeout: Duration::from_secs(30),
            json_result_bytes: 64 << 20,
            room: RoomLimits::default(),
            gathers: 32,
            slow_query: Duration::from_secs(1),
            requests_in_flight: 512,
            client_stall: Duration::from_secs(15),
        }
    }
}

/// How PostgreSQL clients are let in.
#[derive(Clone, Debug)]
pub struct PgSettings {
    /// What encryption is offered with.
    pub tls: Option<Tls>,
    /// Whether clients on this machine have to take it, too. Those on others have to in any case, unless `insecure`.
    pub tls_required: bool,
    /// Let clients on other machines in without encryption, and without a password while there is no user.
    pub insecure: bool,
    /// How long a client may take until its session has begun.
    pub startup_time: Duration,
}

impl Default for PgSettings {
    fn default() -> Self {
        Self { tls: None, tls_required: false, insecure: false, startup_time: PG_STARTUP_TIME_MAX }
    }
}

/// What a gateway is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub limits: Limits,
    pub pg: PgSettings,
    /// `table_shard_keys` of the configuration: the shard key of tables that name none themselves.
    pub default_keys: BTreeMap<String, String>,
    /// The version that `/health` shows.
    pub version: String,
    /// Where what doesn't fit into memory goes.
    pub spill_dir: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            pg: PgSettings::default(),
            default_keys: BTreeMap::new(),
            version: String::new(),
            spill_dir: std::env::temp_dir(),
        }
    }
}
