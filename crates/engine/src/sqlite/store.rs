//! One replica of a shard: the connection that writes.
//!
//! [`Store::apply`] runs a batch in one SQLite transaction. Each proposal has a savepoint: one that fails is rolled
//! back alone. The position in the log is stored in the same transaction, so a crash leaves either all of the
//! batch or none of it, and the log's owner knows which.
//!
//! How a log is cut into batches differs between replicas, and must not matter. Therefore nothing of one proposal
//! may reach another except through the database: counters are reset, deferred constraints are looked at, compiled
//! statements are dropped when the schema changes, and a statement that manages to roll back the *whole*
//! transaction (`ON CONFLICT ROLLBACK`) makes the batch begin again without it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Generation, Millis, Planned, TxnId};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::clock;
use super::connection::{self, Db, Role};
use super::content::{self, Beside};
use super::copy;
use super::failure::{self, Applied, Stop};
use super::placement::Placement;
use super::readers::{Readers, Shared};
use super::schema::OWN_TABLES;
use super::session::Budget;
use super::table::{self, Specs};
use super::txn::{self, Kept};
use crate::limits::{READ_CONNECTIONS_MAX, WAL_BYTES_KEPT_MAX};
use crate::{Action, ContentDigest, Outcome, Proposal, ProposalError, sqlstate};

/// How a replica is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The cluster's; a file that was made with another is refused.
    pub partition_count: u32,
    /// Read-only connections at one time.
    pub read_connections: usize,
}

impl StoreConfig {
    /// The defaults, for a cluster with this many partitions.
    pub fn new(partition_count: u32) -> Self {
        Self { partition_count, read_connections: READ_CONNECTIONS_MAX }
    }
}

/// Copies a replica's database into a new file, and gives what was applied in the copy.
pub type Copier = Box<dyn FnOnce(&Path) -> anyhow::Result<Vec<u8>> + Send>;

/// Computes a digest, see [`Store::digest_job`].
pub type DigestJob = Box<dyn FnOnce() -> anyhow::Result<ContentDigest> + Send>;

/// One replica of a shard. Owned by the thread that applies its log.
pub struct Store {
    shared: Arc<Shared>,
    /// `None` only after an installation that failed half way.
    writer: Option<Writer>,
}

/// The writing connection, and what it keeps in memory of the database.
pub(crate) struct Writer {
    pub(crate) db: Db,
    pub(crate) placement: Arc<Placement>,
    pub(crate) specs: Specs,
    /// The generation of the catalog that had the newest of the tables' triggers first; 0 when there are none.
    pub(crate) triggers_since: Generation,
    /// Which table each known statement writes.
    pub(crate) targets: RefCell<Targets>,
    /// Set when the proposal being applied changed the schema, or how statements are compiled.
    pub(crate) schema_changed: bool,
    placement_changed: bool,
    /// What is stored beside the position, as of the entry being applied.
    pub(crate) beside: Beside,
    /// What the entry being applied was planned by.
    pub(crate) planned: Planned,
    /// The transaction over several shards that waits for its decision.
    pub(crate) prepared: Option<TxnId>,
    /// The same after the last batch, as it is stored.
    stored: Beside,
}

/// The table that each statement text writes, by text.
#[derive(Debug, Default)]
pub(crate) struct Targets(HashMap<String, Option<String>>);

impl Targets {
    /// Texts remembered; beyond them the memory begins anew.
    const KNOWN_MAX: usize = 4 * crate::limits::STATEMENTS_CACHED_MAX;

    pub(crate) fn contains_key(&self, sql: &str) -> bool {
        self.0.contains_key(sql)
    }

    pub(crate) fn get(&self, sql: &str) -> Option<&String> {
        self.0.get(sql)?.as_ref()
    }

    pub(crate) fn insert(&mut self, sql: &str, target: Option<String>) {
        if self.0.len() >= Self::KNOWN_MAX {
            self.0.clear();
        }
        self.0.insert(sql.to_owned(), target);
    }
}

impl Store {
    /// The database's file in its directory.
    pub const FILE: &str = "shard.db";

    /// Opens the replica in `dir`, or makes an empty one. An installation that a crash interrupted is finished first.
    pub fn open(dir: &Path, config: StoreConfig) -> anyhow::Result<(Store, Readers)> {
        std::fs::create_dir_all(dir).with_context(|| format!("make the directory {}", dir.display()))?;
        copy::finish_installation(dir)?;
        let path = dir.join(Self::FILE);
        let writer = Writer::open(&path, config.partition_count)?;
        copy::sync_dir(dir)?;
        let shared = Arc::new(Shared::new(path, config));
        shared.tell_deciding(writer.prepared);
        let readers = Readers::new(shared.clone());
        Ok((Store { shared, writer: Some(writer) }, readers))
    }

    /// What the last [`Store::apply`] stored; empty for a new replica.
    pub fn applied(&self) -> anyhow::Result<Vec<u8>> {
        content::applied(&self.writer_ref()?.db.conn)
    }

    /// Applies encoded [`Proposal`]s in order, in one transaction, and stores `applied` in it. Gives one encoded
    /// [`Outcome`] each. An error means that nothing was applied and that this replica can't go on.
    pub fn apply(&mut self, proposals: &[&[u8]], applied: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        let shared = self.shared.clone();
        let _closed = shared.gate.close();
        let writer = self.writer()?;
        let outcomes = writer.apply(proposals, applied);
        if outcomes.is_err() && !writer.db.conn.is_autocommit() {
            writer.db.conn.execute_batch("ROLLBACK").ok();
        }
        if outcomes.is_err() {
            writer.reload()?;
        }
        let prepared = writer.prepared;
        self.shared.tell_deciding(prepared);
        Ok(outcomes?.into_iter().map(|outcome| outcome.encode()).collect())
    }

    /// Makes everything applied so far durable. The log may then be purged up to [`Store::applied`].
    ///
    /// With `synchronous=NORMAL` a commit only writes to the WAL; it is synced here. Moving the WAL into the database
    /// file is a matter of space, and goes as far as open snapshots let it.
    pub fn checkpoint(&mut self) -> anyhow::Result<()> {
        if planted::is(Bug::CheckpointUnsynced) {
            return Ok(());
        }
        let wal = wal_of(&self.shared.path);
        let conn = &self.writer()?.db.conn;
        let bytes = match std::fs::File::open(&wal) {
            Ok(file) => {
                // Never to be tried again, whatever the error, also "no space": the next one may succeed without what was lost.
                file.sync_data().map_err(failure::of_device).context("sync the write-ahead log")?;
                file.metadata().context("measure the write-ahead log")?.len()
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error).with_context(|| format!("open {}", wal.display())),
        };
        let mode = if bytes > WAL_BYTES_KEPT_MAX { "TRUNCATE" } else { "PASSIVE" };
        conn.busy_timeout(std::time::Duration::from_millis(20))?;
        let result = conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get::<_, i64>(0));
        conn.busy_timeout(std::time::Duration::from_secs(5))?;
        match result {
            Ok(_) => Ok(()),
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(()),
            Err(error) => Err(error).context("move the write-ahead log into the database"),
        }
    }

    /// A job that copies the database as of one moment into a new file and tells what was applied in it. It runs on
    /// any thread, on a connection of its own, while writing goes on.
    pub fn copier(&self) -> anyhow::Result<Copier> {
        let shared = self.shared.clone();
        Ok(Box::new(move |into| copy::copy_into(&shared.open_reader()?, into)))
    }

    /// Replaces everything by the copy in `from`, which stays as it is. Readers go on with the old content until
    /// they are done; new ones see the new.
    pub fn install(&mut self, from: &Path) -> anyhow::Result<()> {
        let partition_count = self.shared.config.partition_count;
        copy::check_copy(from, partition_count).with_context(|| format!("check the copy {}", from.display()))?;
        let dir = self.shared.path.parent().context("the database is in a directory")?.to_owned();
        copy::stage_installation(from, &dir)?;
        let path = self.shared.path.clone();
        let shared = self.shared.clone();
        let _closed = shared.gate.close();
        shared.replace(|| {
            self.writer = None;
            copy::finish_installation(&dir)?;
            let writer = self.writer.insert(Writer::open(&path, partition_count)?);
            self.shared.tell_deciding(writer.prepared);
            Ok(())
        })
    }

    /// A job that computes the digest of the content as it is now, on any thread, while writing goes on: its snapshot
    /// is open when this returns. Called between two batches, so "now" is a position of the log.
    pub fn digest_job(&self) -> anyhow::Result<DigestJob> {
        let db = self.shared.open_reader()?;
        db.conn.execute_batch("BEGIN")?;
        // The snapshot begins with the first read.
        content::applied(&db.conn)?;
        Ok(Box::new(move || content::digest(&db.conn)))
    }

    /// The digest of all that is replicated.
    pub fn digest(&mut self) -> anyhow::Result<ContentDigest> {
        content::digest(&self.writer()?.db.conn)
    }

    fn writer(&mut self) -> anyhow::Result<&mut Writer> {
        self.writer.as_mut().ok_or_else(half_installed)
    }

    fn writer_ref(&self) -> anyhow::Result<&Writer> {
        self.writer.as_ref().ok_or_else(half_installed)
    }
}

fn half_installed() -> anyhow::Error {
    anyhow!("this replica's content was being replaced and that failed; start the node again")
}

fn wal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

impl Writer {
    fn open(path: &Path, partition_count: u32) -> anyhow::Result<Writer> {
        let db = connection::open(path, Role::Writer, partition_count)
            .with_context(|| format!("open the database {}", path.display()))?;
        set_up(&db.conn, partition_count)?;
        let mut writer = Writer::over(db);
        writer.stored = Beside::load(&writer.db.conn)?;
        writer.reload()?;
        Ok(writer)
    }

    /// Over a connection, with nothing known of the database yet.
    pub(crate) fn over(db: Db) -> Writer {
        Writer {
            db,
            placement: Arc::default(),
            specs: Specs::new(),
            triggers_since: 0,
            targets: RefCell::default(),
            schema_changed: false,
            placement_changed: false,
            beside: Beside::default(),
            planned: Planned::default(),
            prepared: None,
            stored: Beside::default(),
        }
    }

    /// Reads anew what is kept in memory.
    pub(crate) fn reload(&mut self) -> anyhow::Result<()> {
        self.placement = Placement::load(&self.db.conn)?.1;
        self.tell_session();
        self.prepared = txn::prepared(&self.db.conn)?;
        self.load_specs()?;
        self.forget_compiled();
        (self.schema_changed, self.placement_changed) = (false, false);
        Ok(())
    }

    /// What `pleat_owned()` and `pleat_moving()` say.
    fn tell_session(&self) {
        let mut session = self.db.session.lock();
        session.moving = Arc::new(self.placement.captured());
        session.owned = Arc::new(self.placement.owned.clone());
    }

    /// Statements compiled under another schema or other settings would be compiled again in the middle of running.
    pub(crate) fn forget_compiled(&self) {
        self.db.conn.flush_prepared_statement_cache();
        *self.targets.borrow_mut() = Targets::default();
    }

    pub(crate) fn reload_specs(&mut self) -> Applied<()> {
        self.load_specs().map_err(Stop::Fatal)
    }

    fn load_specs(&mut self) -> anyhow::Result<()> {
        self.specs = table::load(&self.db.conn)?;
        let triggers = self.specs.values().flat_map(|spec| &spec.table.triggers);
        self.triggers_since = triggers.map(|trigger| trigger.since).max().unwrap_or(0);
        Ok(())
    }

    /// Changes what the shard owns or takes part in.
    pub(crate) fn change_placement(&mut self, change: impl FnOnce(&mut Placement)) -> Applied<()> {
        self.placement_changed = true;
        let placement = Arc::make_mut(&mut self.placement);
        change(placement);
        placement.forget_old();
        placement.save(&self.db.conn)?;
        self.tell_session();
        Ok(())
    }

    /// Does something with a setting switched off.
    pub(crate) fn without<T>(&mut self, setting: DbConfig, work: impl FnOnce(&mut Self) -> Applied<T>) -> Applied<T> {
        self.db.conn.set_db_config(setting, false)?;
        self.forget_compiled();
        let result = work(self);
        self.db.conn.set_db_config(setting, true)?;
        self.forget_compiled();
        result
    }

    fn apply(&mut self, proposals: &[&[u8]], applied: &[u8]) -> anyhow::Result<Vec<Outcome>> {
        // Outcomes of proposals that would roll the whole batch back.
        let mut set_aside = BTreeMap::new();
        loop {
            if let Some(outcomes) = self.attempt(proposals, applied, &mut set_aside)? {
                return Ok(outcomes);
            }
            self.reload()?;
        }
    }

    /// One go at a batch. `None`: a statement rolled all of it back; it is among `set_aside` now.
    fn attempt(
        &mut self,
        proposals: &[&[u8]],
        applied: &[u8],
        set_aside: &mut BTreeMap<usize, Outcome>,
    ) -> anyhow::Result<Option<Vec<Outcome>>> {
        self.control("BEGIN IMMEDIATE /* __pleat_ */")?;
        self.beside = self.stored;
        let mut outcomes = Vec::with_capacity(proposals.len());
        for (index, bytes) in proposals.iter().enumerate() {
            if let Some(outcome) = set_aside.get(&index) {
                Proposal::decode(bytes).iter().for_each(|proposal| self.advance(proposal.now_ms));
                outcomes.push(outcome.clone());
                continue;
            }
            let outcome = self.one(bytes)?;
            if self.db.conn.is_autocommit() {
                set_aside.insert(index, outcome);
                return Ok(None);
            }
            outcomes.push(outcome);
        }
        if !planted::is(Bug::LostAppliedIndex) {
            content::set_applied(&self.db.conn, applied, &self.beside)?;
        }
        self.control("COMMIT /* __pleat_ */").context("commit a batch")?;
        self.stored = self.beside;
        Ok(Some(outcomes))
    }

    /// One proposal, in its savepoint.
    fn one(&mut self, bytes: &[u8]) -> anyhow::Result<Outcome> {
        let proposal = match Proposal::decode(bytes) {
            Ok(proposal) => proposal,
            Err(error @ ProposalError::Format { .. }) => return Err(error.into()),
            // The same bytes are as malformed on every replica.
            Err(error @ ProposalError::Malformed(_)) => {
                return Ok(Outcome::Failed(sqlstate::refuse(0, "08P01", error.to_string(), "")));
            }
        };
        self.advance(proposal.now_ms);
        self.planned = proposal.planned;
        self.control("SAVEPOINT proposal /* __pleat_ */")?;
        self.begin(&proposal)?;
        let beside = self.beside;
        let result = self.act(&proposal);
        self.db.session.lock().budget = Budget::Unlimited;
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(Stop::Fatal(error)) => return Err(error),
            Err(Stop::Outcome(outcome)) => {
                if self.db.conn.is_autocommit() {
                    return Ok(*outcome);
                }
                self.control("ROLLBACK TO proposal /* __pleat_ */")?;
                self.beside = beside;
                self.roll_back_memory()?;
                *outcome
            }
        };
        self.control("RELEASE proposal /* __pleat_ */")?;
        if std::mem::take(&mut self.schema_changed) {
            self.forget_compiled();
        }
        self.placement_changed = false;
        Ok(outcome)
    }

    /// Takes the log's time on to an entry's. Every entry counts, also one that fails.
    fn advance(&mut self, now_ms: Millis) {
        self.beside.now_ms = self.beside.now_ms.max(now_ms.min(clock::LAST_MS as Millis));
    }

    fn act(&mut self, proposal: &Proposal) -> Applied<Outcome> {
        let now_ms = self.beside.now_ms;
        match &proposal.action {
            Action::Write { idempotency, units, statements, base } => {
                self.write(idempotency.as_ref(), units, statements, *base, now_ms)
            }
            Action::Bulk { table, columns, parts } => self.bulk(table, columns, parts, now_ms),
            Action::Own { units, ownership, layout } => self.own(units, *ownership, *layout),
            Action::Ddl { operation, statements, change, single, undoes } => {
                self.ddl(*operation, statements, change, *single, *undoes)
            }
            Action::ReferenceWrite { idempotency, statements } => {
                self.reference_write(idempotency.as_ref(), statements, now_ms, proposal.seed)
            }
            Action::ReferenceApply(entry) => self.reference_apply(entry),
            Action::ReferenceMembers { generation } => self.reference_members(*generation),
            Action::ReferencePrune { upto } => self.reference_prune(*upto),
            Action::Move(step) => self.move_step(step),
            Action::Prepare { txn, began, participants, idempotency, units, statements, base } => {
                let asked = Kept {
                    began: *began,
                    participants: participants.clone(),
                    idempotency: idempotency.clone(),
                    units: units.clone(),
                    statements: statements.clone(),
                    now_ms,
                    seed: proposal.seed,
                };
                self.prepare(*txn, *base, asked)
            }
            Action::Decide { txn, commit } => self.decide(*txn, *commit),
            Action::Digest => Ok(Outcome::Done { results: Vec::new() }),
        }
    }

    /// Time, randomness and counters as every replica has them here.
    fn begin(&mut self, proposal: &Proposal) -> anyhow::Result<()> {
        let (now_ms, seed) = match &proposal.action {
            Action::ReferenceApply(entry) => (entry.now_ms, entry.seed),
            _ => (self.beside.now_ms, proposal.seed),
        };
        Ok(self.begin_at(now_ms, seed)?)
    }

    /// The same at a time and with a seed of the past.
    pub(crate) fn begin_at(&mut self, now_ms: Millis, seed: u64) -> rusqlite::Result<()> {
        self.set_counters(0, 0)?;
        self.db.session.lock().begin(now_ms, seed);
        Ok(())
    }

    /// After a rollback to the savepoint: memory follows the database.
    fn roll_back_memory(&mut self) -> anyhow::Result<()> {
        if self.schema_changed {
            content::reload_statistics(&self.db.conn)?;
        }
        if self.schema_changed || self.placement_changed {
            self.reload()?;
        }
        Ok(())
    }

    /// The comment in these texts keeps users' statements from being taken for them in the statement cache.
    pub(crate) fn control(&self, sql: &str) -> rusqlite::Result<()> {
        self.db.conn.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

/// Makes Pleat's own tables in a new database, or checks those of an old one.
fn set_up(conn: &Connection, partition_count: u32) -> anyhow::Result<()> {
    if !content::is_set_up(conn)? {
        let placement = postcard::to_stdvec(&Placement::default())?;
        conn.execute_batch("BEGIN IMMEDIATE")?;
        conn.execute_batch(OWN_TABLES)?;
        conn.execute("INSERT INTO __pleat_placement VALUES (0, 1, ?1)", [placement])?;
        conn.execute("INSERT INTO __pleat_meta VALUES ('format', ?1)", [content::FORMAT])?;
        conn.execute("INSERT INTO __pleat_meta VALUES ('partition_count', ?1)", [partition_count])?;
        conn.execute_batch("COMMIT")?;
    }
    let (format, partitions) = content::format_and_partitions(conn)?;
    ensure!(
        format == content::FORMAT,
        "the shard's file has format {format}, this build reads format {}; run the version that wrote it",
        content::FORMAT
    );
    ensure!(
        partitions == partition_count,
        "the shard's file was made for {partitions} partitions, the cluster has {partition_count}"
    );
    Ok(())
}
