//! Opening connections: one way, so that every connection of every replica behaves alike.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use pleat_cluster::KeyType;
use rusqlite::config::DbConfig;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::hooks::{AuthContext, Authorization, Wal};
use rusqlite::limits::Limit;
use rusqlite::types::{ToSqlOutput, Value as SqlValue};
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::authorize;
use super::clock;
use super::session::{Key, Session, SharedSession};
use crate::limits;

/// A connection and the session that its callbacks share.
pub(crate) struct Db {
    pub(crate) conn: Connection,
    pub(crate) session: SharedSession,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Writer,
    /// For an interactive transaction: it writes, and never commits.
    Local,
    Reader,
    Memory,
    /// For what one query gathers.
    Temporary,
}

/// Opens a database with Pleat's time, functions, authorizer and limits.
pub(crate) fn open(path: &Path, role: Role, partition_count: u32) -> rusqlite::Result<Db> {
    clock::register().map_err(rusqlite::Error::InvalidParameterName)?;
    let flags = match role {
        Role::Writer => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
        Role::Local => OpenFlags::SQLITE_OPEN_READ_WRITE,
        Role::Reader => OpenFlags::SQLITE_OPEN_READ_ONLY,
        // Without a name it is in memory as far as its cache goes, and beyond in a temporary file.
        Role::Temporary => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
        Role::Memory => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_MEMORY,
    };
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let mut conn = Connection::open_with_flags_and_vfs(path, flags, clock::VFS)?;
    let session = Arc::new(Mutex::new(Session::new(partition_count)));
    configure(&mut conn, role)?;
    functions(&conn, &session)?;
    let shared = session.clone();
    conn.progress_handler(limits::STEPS_PER_CHECK, Some(move || shared.lock().exhausted()))?;
    let shared = session.clone();
    conn.authorizer(Some(move |context: AuthContext<'_>| authorize_one(&shared, &context)))?;
    Ok(Db { conn, session })
}

/// The URI-free name of a database in memory.
pub(crate) fn open_memory(partition_count: u32) -> rusqlite::Result<Db> {
    open(Path::new(":memory:"), Role::Memory, partition_count)
}

/// A database for one query's rows.
pub(crate) fn open_temporary(partition_count: u32) -> rusqlite::Result<Db> {
    open(Path::new(""), Role::Temporary, partition_count)
}

fn configure(conn: &mut Connection, role: Role) -> rusqlite::Result<()> {
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    conn.set_prepared_statement_cache_capacity(limits::STATEMENTS_CACHED_MAX);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    // Plans depend on the schema and its statistics alone, never on the values of parameters, so that a cached
    // statement and a fresh one do the same.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, matches!(role, Role::Writer | Role::Local))?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, matches!(role, Role::Reader | Role::Local))?;
    conn.set_limit(Limit::SQLITE_LIMIT_LENGTH, limits::INTERNAL_VALUE_BYTES_MAX as i32)?;
    conn.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, limits::STATEMENT_BYTES_MAX as i32)?;
    conn.set_limit(Limit::SQLITE_LIMIT_EXPR_DEPTH, limits::EXPRESSION_DEPTH_MAX as i32)?;
    conn.set_limit(Limit::SQLITE_LIMIT_TRIGGER_DEPTH, limits::TRIGGER_DEPTH_MAX as i32)?;
    conn.set_limit(Limit::SQLITE_LIMIT_VARIABLE_NUMBER, limits::PARAMETERS_MAX as i32)?;
    conn.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    conn.set_limit(Limit::SQLITE_LIMIT_WORKER_THREADS, 0)?;
    // REPLACE fires delete triggers only so; captures and the row check rely on it.
    conn.execute_batch("PRAGMA recursive_triggers = ON")?;
    if role == Role::Writer {
        conn.execute_batch(&format!(
            "PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
             PRAGMA journal_size_limit = {}",
            limits::WAL_BYTES_KEPT_MAX
        ))?;
        conn.wal_hook(Some(|wal: &mut Wal, pages| checkpoint_if_long(wal, pages)))?;
    }
    if role == Role::Local {
        conn.execute_batch("PRAGMA wal_autocheckpoint = 0")?;
    }
    if role == Role::Reader {
        // A scan that has to fetch each page by a system call spends much of its time there: with the file mapped,
        // counting the rows of a table looks at the heads of its pages and is done.
        conn.execute_batch(&format!("PRAGMA mmap_size = {}", limits::READER_MAPPED_BYTES_MAX))?;
    }
    Ok(())
}

/// Moves a write-ahead log that has grown into the database. In the place of SQLite's own automatism, which says nothing of its
/// errors: of a failed fsync, then, nobody would hear, and the next one may succeed without what was lost. Only what
/// does no harm is passed over: readers in the way, and a full disk.
fn checkpoint_if_long(wal: &mut Wal, pages: i32) -> rusqlite::Result<()> {
    if pages < limits::WAL_PAGES_CHECKPOINT as i32 {
        return Ok(());
    }
    match wal.checkpoint() {
        Err(error)
            if matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}

fn authorize_one(session: &SharedSession, context: &AuthContext<'_>) -> Authorization {
    let mut session = session.lock();
    match authorize::decide(session.mode, context) {
        Ok(()) => {
            note_target(&mut session, context);
            Authorization::Allow
        }
        Err(reason) => {
            session.denied.get_or_insert(reason);
            Authorization::Deny
        }
    }
}

fn note_target(session: &mut Session, context: &AuthContext<'_>) {
    use rusqlite::hooks::AuthAction::{Delete, Insert, Update};
    if session.mode != authorize::Mode::Write || session.target.is_some() {
        return;
    }
    if let Insert { table_name } | Delete { table_name } | Update { table_name, .. } = context.action {
        session.target = Some(table_name.to_ascii_lowercase());
    }
}

/// `random()` and its like draw from the session; `pleat_…()` are Pleat's own.
fn functions(conn: &Connection, session: &SharedSession) -> rusqlite::Result<()> {
    let volatile = FunctionFlags::SQLITE_UTF8;
    let shared = session.clone();
    conn.create_scalar_function("random", 0, volatile, move |_| Ok(shared.lock().random()))?;
    let shared = session.clone();
    conn.create_scalar_function("randomblob", 1, volatile, move |context| randomblob(&shared, context))?;
    let shared = session.clone();
    conn.create_scalar_function("total_changes", 0, volatile, move |context| {
        // SAFETY: the handle is used only while the function runs, and only to read a counter.
        let now = unsafe { ffi::sqlite3_total_changes64(context.get_connection()?.handle()) };
        Ok(now - shared.lock().changes_before)
    })?;
    let shared = session.clone();
    let pure = volatile | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    conn.create_scalar_function("pleat_partition", 1, pure, move |context| {
        let count = shared.lock().partition_count;
        Ok(Key::from(context.get_raw(0)).partition(count).map(|partition| partition.0))
    })?;
    let shared = session.clone();
    conn.create_scalar_function("pleat_owned", 1, volatile, move |context| {
        let session = shared.lock();
        let partition = Key::from(context.get_raw(0)).partition(session.partition_count);
        Ok(partition.is_some_and(|partition| session.owned.contains(partition)))
    })?;
    let shared = session.clone();
    conn.create_scalar_function("pleat_moving", 1, volatile, move |context| {
        let session = shared.lock();
        let partition = Key::from(context.get_raw(0)).partition(session.partition_count);
        Ok(partition.is_some_and(|partition| session.moving.contains(partition)))
    })?;
    firing(conn, session)?;
    let shared = session.clone();
    conn.create_scalar_function("pleat_placing", 1, volatile, move |context| {
        let table = context.get::<String>(0)?;
        match shared.lock().refuse_placing(table) {
            Ok(()) => Ok(true),
            Err(()) => Err(rusqlite::Error::UserFunctionError("row refused".into())),
        }
    })?;
    let shared = session.clone();
    conn.create_scalar_function("pleat_check_row", 2, volatile, move |context| check_row(&shared, context))
}

/// `pleat_firing(trigger)`: whether it is under way; `pleat_firing(trigger, 1)` and `…, 0)`: it is from here on, or no longer.
fn firing(conn: &Connection, session: &SharedSession) -> rusqlite::Result<()> {
    let shared = session.clone();
    conn.create_scalar_function("pleat_firing", 1, FunctionFlags::SQLITE_UTF8, move |context| {
        Ok(shared.lock().is_firing(context.get_raw(0).as_str()?))
    })?;
    let shared = session.clone();
    conn.create_scalar_function("pleat_firing", 2, FunctionFlags::SQLITE_UTF8, move |context| {
        shared.lock().set_firing(context.get_raw(0).as_str()?, context.get(1)?);
        Ok(true)
    })
}

fn randomblob(session: &SharedSession, context: &Context<'_>) -> rusqlite::Result<ToSqlOutput<'static>> {
    use rand::RngCore;
    let wanted = match context.get_raw(0) {
        rusqlite::types::ValueRef::Integer(number) => number,
        rusqlite::types::ValueRef::Real(real) => real as i64,
        _ => 1,
    };
    if wanted > limits::VALUE_BYTES_MAX as i64 {
        return Err(rusqlite::Error::UserFunctionError("string or blob too big".into()));
    }
    let mut bytes = vec![0; wanted.max(1) as usize];
    session.lock().rng().fill_bytes(&mut bytes);
    Ok(ToSqlOutput::Owned(SqlValue::Blob(bytes)))
}

/// `pleat_check_row(storage class as a number, key)`, called by the triggers of sharded tables.
fn check_row(session: &SharedSession, context: &Context<'_>) -> rusqlite::Result<bool> {
    let key_type = match context.get::<i64>(0)? {
        0 => KeyType::Integer,
        1 => KeyType::Text,
        _ => KeyType::Bytes,
    };
    match session.lock().check_row(Key::from(context.get_raw(1)), key_type) {
        Ok(()) => Ok(true),
        Err(()) => Err(rusqlite::Error::UserFunctionError("row refused".into())),
    }
}

/// The first argument of `pleat_check_row()`.
pub(crate) fn key_type_number(key_type: KeyType) -> u8 {
    match key_type {
        KeyType::Integer => 0,
        KeyType::Text => 1,
        KeyType::Bytes => 2,
        // No SQLite shard has a key of this type.
        KeyType::Uuid => 3,
    }
}

impl Db {
    /// Does something that compiles statements in `mode`.
    pub(crate) fn in_mode<T>(&self, mode: authorize::Mode, work: impl FnOnce(&Connection) -> T) -> T {
        self.session.lock().mode = mode;
        let result = work(&self.conn);
        self.session.lock().mode = authorize::Mode::Internal;
        result
    }
}
