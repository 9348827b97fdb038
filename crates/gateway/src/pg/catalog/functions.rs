//! The functions that questions to the system catalog call.
//!
//! Arrays are texts as PostgreSQL prints them: `{a,b}`, or `a b` for the vectors of its catalog.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use regex::Regex;
use rusqlite::functions::{Aggregate, Context as Call, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, Result};

use crate::pg::settings::SERVER_VERSION;
use crate::pg::types::{TYPES, Type};

/// The largest program that a pattern may become, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Numbers of a series.
const SERIES_MAX: usize = 10_000;

/// What a question is asked by.
#[derive(Debug, Default)]
pub struct Context {
    pub user: String,
    pub database: String,
    pub process: u32,
    /// By lower-case name.
    pub settings: BTreeMap<String, String>,
    /// What `set_config` has set: name, value, and whether for the transaction alone.
    pub set: Vec<(String, String, bool)>,
}

type Shared = Arc<Mutex<Context>>;

const FLAGS: FunctionFlags = FunctionFlags::SQLITE_UTF8;

pub fn register(db: &Connection, context: &Shared) -> Result<()> {
    session(db, context)?;
    types(db)?;
    names(db)?;
    arrays(db)?;
    matching(db)?;
    // What there is none of, or everybody may.
    for (name, count) in [("pg_get_userbyid", 1), ("pg_get_function_arguments", 1), ("pg_get_function_result", 1)] {
        db.create_scalar_function(name, count, FLAGS, |_| Ok("pleat"))?;
    }
    for name in [
        "pg_table_is_visible",
        "pg_type_is_visible",
        "pg_function_is_visible",
        "pg_opclass_is_visible",
        "pg_collation_is_visible",
        "pg_statistics_obj_is_visible",
        "pg_is_other_temp_schema_not",
        "has_schema_privilege",
        "has_table_privilege",
        "has_database_privilege",
        "has_column_privilege",
        "pg_has_role",
        "has_sequence_privilege",
        "has_function_privilege",
        "pg_try_advisory_lock",
    ] {
        db.create_scalar_function(name, -1, FLAGS, |_| Ok(true))?;
    }
    for name in ["pg_is_in_recovery", "pg_is_other_temp_schema", "pg_relation_is_publishable", "pg_my_temp_schema"] {
        db.create_scalar_function(name, -1, FLAGS, |_| Ok(false))?;
    }
    for name in [
        "obj_description",
        "json_build_object",
        "col_description",
        "shobj_description",
        "pg_get_serial_sequence",
        "pg_get_partkeydef",
        "pg_get_partition_constraintdef",
        "pg_get_statisticsobjdef_columns",
        "pg_get_ruledef",
        "pg_relation_size",
        "pg_total_relation_size",
        "pg_table_size",
        "pg_database_size",
        "pg_tablespace_location",
        "pg_get_functiondef",
        "inet_server_addr",
        "inet_server_port",
        "inet_client_addr",
        "inet_client_port",
        "pg_size_pretty",
        "pg_partition_root",
    ] {
        db.create_scalar_function(name, -1, FLAGS, |_| Ok(None::<String>))?;
    }
    for name in ["pg_advisory_unlock_all", "pg_sleep", "pg_notify"] {
        db.create_scalar_function(name, -1, FLAGS, |_| Ok(""))?;
    }
    Ok(())
}

fn session(db: &Connection, context: &Shared) -> Result<()> {
    let version = format!("PostgreSQL {SERVER_VERSION} (Pleat {}, SQLite's SQL)", env!("CARGO_PKG_VERSION"));
    db.create_scalar_function("version", 0, FLAGS, move |_| Ok(version.clone()))?;
    for name in ["current_user", "session_user", "current_role"] {
        let context = context.clone();
        db.create_scalar_function(name, 0, FLAGS, move |_| Ok(context.lock().user.clone()))?;
    }
    for name in ["current_database", "current_catalog"] {
        let context = context.clone();
        db.create_scalar_function(name, 0, FLAGS, move |_| Ok(context.lock().database.clone()))?;
    }
    db.create_scalar_function("current_schema", 0, FLAGS, |_| Ok("public"))?;
    db.create_scalar_function("current_schemas", 1, FLAGS, |call| {
        Ok(if truth(call, 0) { "{pg_catalog,public}" } else { "{public}" })
    })?;
    let shared = context.clone();
    db.create_scalar_function("pg_backend_pid", 0, FLAGS, move |_| Ok(shared.lock().process))?;
    let shared = context.clone();
    db.create_scalar_function("current_setting", -1, FLAGS, move |call| {
        let name = text(call, 0).unwrap_or_default().to_lowercase();
        match shared.lock().settings.get(&name) {
            Some(value) => Ok(Some(value.clone())),
            None if call.len() > 1 && truth(call, 1) => Ok(None),
            None => Err(said(format!("unrecognized configuration parameter \"{name}\""))),
        }
    })?;
    let shared = context.clone();
    db.create_scalar_function("set_config", 3, FLAGS, move |call| {
        let (name, value) = (text(call, 0).unwrap_or_default(), text(call, 1).unwrap_or_default());
        shared.lock().set.push((name, value.clone(), truth(call, 2)));
        Ok(value)
    })?;
    db.create_scalar_function("pg_encoding_to_char", 1, FLAGS, |_| Ok("UTF8"))?;
    db.create_scalar_function("txid_current", 0, FLAGS, |_| Ok(1))?;
    db.create_scalar_function("pg_postmaster_start_time", 0, FLAGS, |_| Ok(None::<String>))
}

fn types(db: &Connection) -> Result<()> {
    db.create_scalar_function("format_type", 2, FLAGS, |call| {
        Ok(oid(call, 0).map(|oid| match TYPES.iter().find(|about| i64::from(about.oid) == oid) {
            Some(about) => about.formal,
            None => "???",
        }))
    })?;
    db.create_scalar_function("to_regtype", 1, FLAGS, |call| {
        let name = text(call, 0).unwrap_or_default();
        let name = name.rsplit('.').next().unwrap_or_default();
        Ok(name.parse().ok().or_else(|| Type::cast(name).map(|of| of.oid())))
    })?;
    db.create_scalar_function("regtype_name", 1, FLAGS, |call| {
        let oid = oid(call, 0).unwrap_or_default();
        Ok(TYPES.iter().find(|about| i64::from(about.oid) == oid).map(|about| about.formal))
    })
}

/// Functions that look things up in the catalog's own tables.
fn names(db: &Connection) -> Result<()> {
    let look = |name: &'static str, sql: &'static str| {
        db.create_scalar_function(name, -1, FLAGS, move |call| {
            // SAFETY: nothing is done with the connection but to ask it, within the call that it makes.
            let db = unsafe { call.get_connection()? };
            let mut statement = db.prepare_cached(sql)?;
            let wanted = statement.parameter_count().min(call.len());
            for at in 0..wanted {
                statement.raw_bind_parameter(at + 1, call.get::<rusqlite::types::Value>(at)?)?;
            }
            let mut rows = statement.raw_query();
            match rows.next()? {
                Some(row) => Ok(Some(row.get::<_, rusqlite::types::Value>(0)?)),
                None => Ok(None),
            }
        })
    };
    look("regclass_name", "SELECT relname FROM pg_class WHERE oid = ?1")?;
    look(
        "pg_get_indexdef",
        "SELECT CASE WHEN coalesce(?2, 0) = 0 THEN (SELECT indexdef FROM pg_indexes JOIN pg_class ON relname = indexname WHERE oid = ?1) ELSE (SELECT attname FROM pg_attribute WHERE attrelid = ?1 AND attnum = ?2) END",
    )?;
    look("pg_get_constraintdef", "SELECT definition FROM pg_constraint WHERE oid = ?1")?;
    look(
        "pg_get_viewdef",
        "SELECT definition FROM pg_views JOIN pg_class ON relname = viewname WHERE oid = to_regclass(?1)",
    )?;
    look("pg_get_triggerdef", "SELECT definition FROM pg_trigger WHERE oid = ?1")?;
    look("to_regnamespace", "SELECT oid FROM pg_namespace WHERE nspname = ?1")?;
    look("regname", "SELECT nspname FROM pg_namespace WHERE oid = ?1 UNION ALL SELECT ?1")?;
    db.create_scalar_function("pg_get_expr", -1, FLAGS, |call| Ok(text(call, 0)))?;
    db.create_scalar_function("quote_ident", 1, FLAGS, |call| {
        let name = text(call, 0).unwrap_or_default();
        let plain = name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
        Ok(if plain { name } else { format!("\"{}\"", name.replace('"', "\"\"")) })
    })?;
    db.create_scalar_function("quote_literal", 1, FLAGS, |call| {
        Ok(text(call, 0).map(|text| format!("'{}'", text.replace('\'', "''"))))
    })?;
    db.create_scalar_function("to_regclass", 1, FLAGS, |call| {
        let Some(name) = text(call, 0) else { return Ok(None) };
        if let Ok(oid) = name.parse::<i64>() {
            return Ok(Some(oid));
        }
        let last = name.rsplit('.').next().unwrap_or(&name);
        let plain =
            last.strip_prefix('"').and_then(|name| name.strip_suffix('"')).map(|name| name.replace("\"\"", "\""));
        // SAFETY: as above.
        let db = unsafe { call.get_connection()? };
        let mut statement = db.prepare_cached("SELECT oid FROM pg_class WHERE lower(relname) = lower(?1)")?;
        let found = statement.query_row([plain.as_deref().unwrap_or(last)], |row| row.get(0));
        match found {
            Ok(oid) => Ok(Some(oid)),
            Err(Error::QueryReturnedNoRows) if let Some(oid) = system_relation(last) => Ok(Some(oid)),
            Err(Error::QueryReturnedNoRows) => Err(said(format!("relation \"{name}\" does not exist"))),
            Err(error) => Err(error),
        }
    })
}

/// The numbers that tables of the system catalog have in every PostgreSQL: drivers compare `classoid` with them.
fn system_relation(name: &str) -> Option<i64> {
    Some(match name {
        "pg_type" => 1247,
        "pg_attribute" => 1249,
        "pg_proc" => 1255,
        "pg_class" => 1259,
        "pg_authid" => 1260,
        "pg_database" => 1262,
        "pg_am" => 2601,
        "pg_attrdef" => 2604,
        "pg_constraint" => 2606,
        "pg_description" => 2609,
        "pg_index" => 2610,
        "pg_language" => 2612,
        "pg_namespace" => 2615,
        "pg_rewrite" => 2618,
        "pg_trigger" => 2620,
        "pg_extension" => 3079,
        _ => return None,
    })
}

fn arrays(db: &Connection) -> Result<()> {
    db.create_scalar_function("array_has", 2, FLAGS, |call| {
        let (Some(one), Some(all)) = (text(call, 0), text(call, 1)) else { return Ok(None) };
        Ok(Some(items(&all).contains(&one)))
    })?;
    db.create_scalar_function("array_place", 2, FLAGS, |call| {
        let (Some(all), Some(one)) = (text(call, 0), text(call, 1)) else { return Ok(None) };
        let place = items(&all).iter().position(|item| *item == one);
        Ok(place.and_then(|at| i64::try_from(at + 1).ok()))
    })?;
    db.create_scalar_function("array_of", -1, FLAGS, |call| {
        let all: Vec<_> = (0..call.len()).map(|at| text(call, at)).collect();
        Ok(array(&all))
    })?;
    db.create_scalar_function("array_to_string", -1, FLAGS, |call| {
        let between = text(call, 1).unwrap_or_default();
        Ok(text(call, 0).map(|all| items(&all).join(&between)))
    })?;
    for (name, one) in [("array_length", false), ("array_upper", false), ("array_lower", true)] {
        db.create_scalar_function(name, 2, FLAGS, move |call| {
            let count = text(call, 0).map_or(0, |all| items(&all).len());
            Ok((count > 0).then(|| if one { 1 } else { i64::try_from(count).unwrap_or(i64::MAX) }))
        })?;
    }
    db.create_scalar_function("array_json", 1, FLAGS, |call| {
        let all = text(call, 0).map_or_else(Vec::new, |all| items(&all));
        Ok(serde_json::Value::from(all).to_string())
    })?;
    db.create_scalar_function("array_series", 2, FLAGS, |call| {
        let (from, to) = (oid(call, 0).unwrap_or(1), oid(call, 1).unwrap_or(0));
        let numbers: Vec<i64> = (from..=to).take(SERIES_MAX).collect();
        Ok(serde_json::Value::from(numbers).to_string())
    })?;
    db.create_scalar_function("array_item", 2, FLAGS, |call| {
        let all = text(call, 0).map_or_else(Vec::new, |all| items(&all));
        let place = oid(call, 1).and_then(|place| usize::try_from(place).ok()?.checked_sub(1));
        Ok(place.and_then(|place| all.get(place).cloned()))
    })?;
    db.create_aggregate_function("array_agg", 1, FLAGS, Gather)?;
    Ok(())
}

struct Gather;

impl Aggregate<Vec<Option<String>>, Option<String>> for Gather {
    fn init(&self, _: &mut Call<'_>) -> Result<Vec<Option<String>>> {
        Ok(Vec::new())
    }

    fn step(&self, call: &mut Call<'_>, all: &mut Vec<Option<String>>) -> Result<()> {
        all.push(text(call, 0));
        Ok(())
    }

    fn finalize(&self, _: &mut Call<'_>, all: Option<Vec<Option<String>>>) -> Result<Option<String>> {
        Ok(all.filter(|all| !all.is_empty()).map(|all| array(&all)))
    }
}

fn matching(db: &Connection) -> Result<()> {
    db.create_scalar_function("regexp", 2, FLAGS, |call| {
        let (Some(pattern), Some(text)) = (text(call, 0), text(call, 1)) else { return Ok(None) };
        let pattern: Arc<Regex> =
            call.get_or_create_aux(0, |_| -> std::result::Result<_, Box<dyn std::error::Error + Send + Sync>> {
                Ok(regex::RegexBuilder::new(&pattern).size_limit(PATTERN_BYTES_MAX).build()?)
            })?;
        Ok(Some(pattern.is_match(&text)))
    })?;
    db.create_scalar_function("regexp_replace", -1, FLAGS, |call| {
        let (Some(all), Some(pattern), Some(with)) = (text(call, 0), text(call, 1), text(call, 2)) else {
            return Ok(None);
        };
        let pattern = regex::RegexBuilder::new(&pattern).size_limit(PATTERN_BYTES_MAX).build();
        let pattern = pattern.map_err(|error| said(error.to_string()))?;
        Ok(Some(pattern.replace_all(&all, with.replace('\\', "$")).into_owned()))
    })
}

/// The items of an array, or of a vector.
fn items(all: &str) -> Vec<String> {
    match all.strip_prefix('{').and_then(|all| all.strip_suffix('}')) {
        Some("") => Vec::new(),
        Some(inner) => inner.split(',').map(|item| item.trim_matches('"').to_owned()).collect(),
        None => all.split_whitespace().map(str::to_owned).collect(),
    }
}

fn array(items: &[Option<String>]) -> String {
    let special = |text: &str| text.is_empty() || text.contains([',', '"', '{', '}', ' ', '\\']);
    let item = |item: &Option<String>| match item {
        None => "NULL".to_owned(),
        Some(text) if special(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        Some(text) => text.clone(),
    };
    format!("{{{}}}", items.iter().map(item).collect::<Vec<_>>().join(","))
}

fn text(call: &Call<'_>, at: usize) -> Option<String> {
    if at >= call.len() {
        return None;
    }
    match call.get_raw(at) {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(real) => Some(real.to_string()),
        ValueRef::Text(text) | ValueRef::Blob(text) => Some(String::from_utf8_lossy(text).into_owned()),
    }
}

fn oid(call: &Call<'_>, at: usize) -> Option<i64> {
    text(call, at)?.parse().ok()
}

fn truth(call: &Call<'_>, at: usize) -> bool {
    text(call, at).is_some_and(|text| matches!(text.as_str(), "1" | "t" | "true" | "on"))
}

fn said(message: String) -> Error {
    Error::UserFunctionError(message.into())
}
