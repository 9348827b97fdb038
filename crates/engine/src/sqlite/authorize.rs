//! What a statement may do, decided when SQLite compiles it.
//!
//! A user's statement reads and writes the cluster's tables, and nothing else: no other files, no settings, no
//! transactions of its own (a proposal is one already), no module that shows pages instead of rows (replicas
//! hold the same rows in different pages), and nothing of Pleat's own.
//!
//! Pleat's own names begin with `__pleat_`. That a text holds such a name is checked in the text itself, since the
//! authorizer can't tell Pleat's trigger from a CTE that a user gave the same name.

use rusqlite::hooks::{AuthAction, AuthContext};

/// Who a statement belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Pleat itself.
    Internal,
    /// A user's query.
    Read,
    /// A user's write.
    Write,
    /// A schema change.
    Schema,
}

/// What Pleat's own tables, triggers and indexes begin with.
pub(crate) const RESERVED: &str = "__pleat_";

/// Functions that have effects beside their result, or show memory.
const FUNCTIONS_DENIED: [&str; 6] = ["load_extension", "fts3_tokenizer", "sqlite_log", "writefile", "readfile", "edit"];
/// Pragmas that only describe the schema.
const PRAGMAS_ALLOWED: [&str; 7] =
    ["table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list"];
/// Modules that can be named without being created, and whose content is the same on every replica.
const MODULES_PHYSICAL: [&str; 4] = ["dbstat", "sqlite_dbpage", "sqlite_stmt", "bytecode"];

/// Whether a text names something of Pleat's own.
pub(crate) fn names_reserved(sql: &str) -> bool {
    let wanted = RESERVED.as_bytes();
    sql.as_bytes().windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted))
}

/// Whether the action is allowed, and if not, what was tried.
pub(crate) fn decide(mode: Mode, context: &AuthContext<'_>) -> Result<(), String> {
    if mode == Mode::Internal {
        return Ok(());
    }
    // Pleat's triggers do what they must. A user can't have named anything like them.
    if context.accessor.is_some_and(|accessor| accessor.starts_with(RESERVED)) {
        return Ok(());
    }
    match &context.action {
        AuthAction::Select | AuthAction::Recursive => Ok(()),
        AuthAction::Function { function_name } => function(function_name, context.accessor),
        AuthAction::Pragma { pragma_name, .. } => pragma(mode, pragma_name),
        AuthAction::Read { table_name, .. } => read(mode, table_name),
        AuthAction::Insert { table_name } | AuthAction::Delete { table_name } => write(mode, table_name),
        AuthAction::Update { table_name, .. } => write(mode, table_name),
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => {
            Err("BEGIN, COMMIT, ROLLBACK and SAVEPOINT are not available here: the statements of one request are one transaction".into())
        }
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => Err("ATTACH and DETACH are not available".into()),
        AuthAction::CreateVtable { .. } | AuthAction::DropVtable { .. } => {
            Err("virtual tables are not available".into())
        }
        AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. }
        | AuthAction::DropTempIndex { .. }
        | AuthAction::DropTempTable { .. }
        | AuthAction::DropTempTrigger { .. }
        | AuthAction::DropTempView { .. } => Err("temporary tables, views and triggers are not available".into()),
        AuthAction::Unknown { .. } => Err("this statement is not available".into()),
        _ if mode == Mode::Schema => Ok(()),
        _ => Err("the schema is changed by a statement of its own".into()),
    }
}

fn function(name: &str, trigger: Option<&str>) -> Result<(), String> {
    let of_triggers = || trigger.is_none() && name.eq_ignore_ascii_case("pleat_firing");
    match FUNCTIONS_DENIED.iter().any(|denied| denied.eq_ignore_ascii_case(name)) || of_triggers() {
        true => Err(format!("the function {name}() is not available")),
        false => Ok(()),
    }
}

fn pragma(mode: Mode, name: &str) -> Result<(), String> {
    // It lists tables in the order of a hash table in memory, which differs between replicas.
    let unordered = mode == Mode::Write && name.eq_ignore_ascii_case("table_list");
    match !unordered && PRAGMAS_ALLOWED.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)) {
        true => Ok(()),
        false => Err(format!("PRAGMA {name} is not available")),
    }
}

fn read(mode: Mode, table: &str) -> Result<(), String> {
    if is_reserved(table) {
        return Err(reserved(table));
    }
    let physical = MODULES_PHYSICAL.iter().any(|name| name.eq_ignore_ascii_case(table));
    // sqlite_schema tells root pages, which differ between replicas; a write must not depend on it.
    let schema = ["sqlite_master", "sqlite_schema"].iter().any(|name| name.eq_ignore_ascii_case(table));
    match physical || (schema && mode == Mode::Write) {
        true => Err(format!("{table} can't be read here: it shows how this replica stores its data")),
        false => Ok(()),
    }
}

fn write(mode: Mode, table: &str) -> Result<(), String> {
    if is_reserved(table) {
        return Err(reserved(table));
    }
    let own = table.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("sqlite_"));
    match mode {
        Mode::Schema => Ok(()),
        Mode::Write if !own => Ok(()),
        Mode::Write => Err(format!("{table} belongs to SQLite and can't be written")),
        _ => Err("this statement writes; reads can't".into()),
    }
}

fn is_reserved(name: &str) -> bool {
    name.get(..RESERVED.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED))
}

/// What is said about names that begin with `__pleat_`.
pub(crate) fn reserved(what: &str) -> String {
    format!("{what}: names that begin with {RESERVED} belong to Pleat")
}
