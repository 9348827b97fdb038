//! A session's settings: SET, SHOW and RESET.
//!
//! A setting that Pleat acts on has its effect (`statement_timeout`, `default_transaction_read_only`, …). One that
//! clients set without needing an effect here is kept and shown. A value that would change what results mean, and that
//! Pleat can't honour (another encoding, another style of dates), is refused; so is a name that nobody knows.
//!
//! As in PostgreSQL, what was set in a transaction is undone when that is rolled back, and `SET LOCAL` when it ends.

use std::collections::BTreeMap;
use std::time::Duration;

use super::dialect::lex::{Kind, Tokens};
use crate::session::Failure;
use crate::settings::STATEMENT_TIMEOUT_MAX;

/// The version of PostgreSQL whose manners these are: clients choose what they send by it.
pub const SERVER_VERSION: &str = "15.0";
/// Bytes of a value.
const VALUE_BYTES_MAX: usize = 4 << 10;
/// Settings with a dot in their name, which are anybody's.
const CUSTOM_MAX: usize = 100;

/// Which values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Takes {
    /// Nobody changes it.
    Fixed,
    Any,
    Flag,
    /// One of these, in any case.
    Only(&'static [&'static str]),
    /// Milliseconds, or a number with a unit.
    Time,
}

/// A setting that is known: name, default, values, and whether clients are told of it unasked.
const KNOWN: [(&str, &str, Takes, bool); 37] = [
    ("application_name", "", Takes::Any, true),
    ("bytea_output", "hex", Takes::Only(&["hex"]), false),
    ("check_function_bodies", "on", Takes::Flag, false),
    ("client_encoding", "UTF8", Takes::Only(&["UTF8", "UTF-8", "UNICODE", "SQL_ASCII"]), true),
    ("client_min_messages", "notice", Takes::Any, false),
    ("DateStyle", "ISO, MDY", Takes::Only(&["ISO, MDY", "ISO", "ISO, YMD", "ISO, DMY"]), true),
    ("default_tablespace", "", Takes::Any, false),
    ("default_table_access_method", "heap", Takes::Any, false),
    ("default_transaction_deferrable", "off", Takes::Flag, false),
    ("default_transaction_isolation", "serializable", ISOLATION, false),
    ("default_transaction_read_only", "off", Takes::Flag, true),
    ("escape_string_warning", "on", Takes::Flag, false),
    ("extra_float_digits", "1", Takes::Any, false),
    ("idle_in_transaction_session_timeout", "0", Takes::Time, false),
    ("idle_session_timeout", "0", Takes::Time, false),
    ("in_hot_standby", "off", Takes::Fixed, true),
    ("integer_datetimes", "on", Takes::Fixed, true),
    ("IntervalStyle", "postgres", Takes::Only(&["postgres"]), true),
    ("is_superuser", "off", Takes::Fixed, true),
    ("jit", "off", Takes::Any, false),
    ("lc_collate", "C", Takes::Fixed, false),
    ("lc_ctype", "C", Takes::Fixed, false),
    ("lc_messages", "C", Takes::Any, false),
    ("lc_monetary", "C", Takes::Any, false),
    ("lock_timeout", "0", Takes::Time, false),
    ("max_identifier_length", "63", Takes::Fixed, false),
    ("max_index_keys", "32", Takes::Fixed, false),
    ("row_security", "on", Takes::Flag, false),
    ("search_path", "\"$user\", public", Takes::Any, false),
    ("server_encoding", "UTF8", Takes::Fixed, true),
    ("session_authorization", "", Takes::Fixed, true),
    ("standard_conforming_strings", "on", Takes::Only(&["on"]), true),
    ("statement_timeout", "0", Takes::Time, false),
    ("synchronous_commit", "on", Takes::Any, false),
    ("TimeZone", "UTC", Takes::Any, true),
    ("transaction_isolation", "serializable", ISOLATION, false),
    ("transaction_read_only", "off", Takes::Flag, false),
];

/// All of them get the strictest, as the standard allows.
const ISOLATION: Takes = Takes::Only(&["serializable", "repeatable read", "read committed", "read uncommitted"]);

/// What a statement wants of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `None`: the default.
    Set {
        name: String,
        value: Option<String>,
        local: bool,
    },
    Show(String),
    ShowAll,
    ResetAll,
    /// Settings, prepared statements and portals.
    DiscardAll,
    /// `None`: all of them.
    Deallocate(Option<String>),
    /// Something that there is none of; it is done, and this is its tag.
    Nothing(&'static str),
}

/// Read a statement about settings. `None`: it is none.
pub fn read(tokens: &Tokens<'_>) -> Option<Result<Command, Failure>> {
    let words = |words: &[&str]| tokens.are(0, words);
    let command = match tokens.str(0).to_ascii_uppercase().as_str() {
        "SET" => return Some(set(tokens)),
        "SHOW" if words(&["SHOW", "TRANSACTION", "ISOLATION", "LEVEL"]) => {
            Command::Show("transaction_isolation".to_owned())
        }
        "SHOW" if words(&["SHOW", "TIME", "ZONE"]) => Command::Show("timezone".to_owned()),
        "SHOW" if words(&["SHOW", "ALL"]) => Command::ShowAll,
        "SHOW" => Command::Show(setting(tokens, 1)?.0),
        "RESET" if words(&["RESET", "ALL"]) => Command::ResetAll,
        "RESET" => Command::Set { name: setting(tokens, 1)?.0, value: None, local: false },
        "DISCARD" if tokens.is(1, "ALL") => Command::DiscardAll,
        "DISCARD" => Command::Nothing("DISCARD"),
        "DEALLOCATE" => {
            let at = 1 + usize::from(tokens.is(1, "PREPARE"));
            match tokens.is(at, "ALL") {
                true => Command::Deallocate(None),
                false => Command::Deallocate(Some(tokens.name(at)?)),
            }
        }
        "UNLISTEN" => Command::Nothing("UNLISTEN"),
        _ => return None,
    };
    Some(Ok(command))
}

/// A setting's name, which may have a dot, and where it ends.
fn setting(tokens: &Tokens<'_>, mut at: usize) -> Option<(String, usize)> {
    let mut name = tokens.name(at)?;
    at += 1;
    while tokens.is_symbol(at, ".") {
        name = format!("{name}.{}", tokens.name(at + 1)?);
        at += 2;
    }
    Some((name, at))
}

fn set(tokens: &Tokens<'_>) -> Result<Command, Failure> {
    let odd = || Failure::new("42601", "SET is not understood", "SET [SESSION | LOCAL] name {TO | =} value is");
    let local = tokens.is(1, "LOCAL");
    let at = 1 + usize::from(local || tokens.is(1, "SESSION") && !tokens.is(2, "CHARACTERISTICS"));
    let set = |name: &str, value: Option<String>| Command::Set { name: name.to_owned(), value, local };
    if tokens.are(at, &["TIME", "ZONE"]) {
        return Ok(set("timezone", value(tokens, at + 2)));
    }
    if tokens.is(at, "NAMES") {
        return Ok(set("client_encoding", value(tokens, at + 1)));
    }
    if tokens.are(at, &["SESSION", "AUTHORIZATION"]) || tokens.is(at, "ROLE") {
        return Ok(Command::Nothing("SET"));
    }
    if tokens.is(at, "TRANSACTION") || tokens.are(at, &["SESSION", "CHARACTERISTICS", "AS", "TRANSACTION"]) {
        let session = tokens.is(at, "SESSION");
        let read_only =
            (at..tokens.len()).find(|at| tokens.is(*at, "READ")).filter(|at| !tokens.is(*at + 1, "COMMITTED"));
        let Some(read) = read_only.filter(|at| tokens.is(*at + 1, "ONLY") || tokens.is(*at + 1, "WRITE")) else {
            return Ok(Command::Nothing("SET"));
        };
        let name = if session { "default_transaction_read_only" } else { "transaction_read_only" };
        let value = if tokens.is(read + 1, "ONLY") { "on" } else { "off" };
        return Ok(Command::Set { name: name.to_owned(), value: Some(value.to_owned()), local: !session });
    }
    let (name, at) = setting(tokens, at).ok_or_else(odd)?;
    match tokens.is(at, "TO") || tokens.is_symbol(at, "=") {
        true if at + 1 < tokens.len() => Ok(set(&name, value(tokens, at + 1))),
        _ => Err(odd()),
    }
}

/// The value that begins here; `None` is the default.
fn value(tokens: &Tokens<'_>, at: usize) -> Option<String> {
    if tokens.is(at, "DEFAULT") || tokens.is(at, "LOCAL") {
        return None;
    }
    let mut value = String::new();
    for at in at..tokens.len() {
        match tokens.kind(at) {
            Some(Kind::Symbol) if tokens.is_symbol(at, ",") => value.push_str(", "),
            _ => match tokens.string(at) {
                Ok(text) => value.push_str(&text),
                Err(_) => value.push_str(tokens.str(at)),
            },
        }
    }
    Some(value)
}

/// The settings of a session.
#[derive(Clone, Debug)]
pub struct Settings {
    /// By lower-case name.
    values: BTreeMap<String, String>,
    /// What they were when the transaction began.
    before: Option<BTreeMap<String, String>>,
    /// Those that end with the transaction.
    local: Vec<String>,
    /// What RESET sets: the defaults, or what the client started with.
    defaults: BTreeMap<String, String>,
}

impl Settings {
    /// The settings of a session that begins.
    pub fn new(user: &str) -> Self {
        let defaults = KNOWN.iter().map(|(name, value, ..)| (name.to_lowercase(), (*value).to_owned()));
        let mut values: BTreeMap<_, _> = defaults.collect();
        values.insert("server_version".to_owned(), format!("{SERVER_VERSION} (Pleat {})", env!("CARGO_PKG_VERSION")));
        values.insert("server_version_num".to_owned(), "150000".to_owned());
        values.insert("session_authorization".to_owned(), user.to_owned());
        Self { defaults: values.clone(), values, before: None, local: Vec::new() }
    }

    /// What the client starts with is what RESET sets.
    pub fn start_with(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        // Some drivers quote as if it were SQL.
        let value = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap_or(value);
        self.set(name, Some(value), false)?;
        self.defaults = self.values.clone();
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        let name = name.to_lowercase();
        let name = match name.as_str() {
            "session characteristics" => "default_transaction_isolation",
            name => name,
        };
        self.values.get(name).map(String::as_str)
    }

    pub fn is_on(&self, name: &str) -> bool {
        self.get(name) == Some("on")
    }

    /// All of them, in order.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (canonical(name), value.as_str()))
    }

    /// Those that clients are told of.
    pub fn reported(&self) -> Vec<(&'static str, String)> {
        let told = KNOWN.iter().filter(|(.., told)| *told).map(|(name, ..)| *name).chain(["server_version"]);
        told.map(|name| (name, self.get(name).unwrap_or("").to_owned())).collect()
    }

    /// How long a statement may take, if the client has said so.
    pub fn statement_timeout(&self) -> Option<Duration> {
        self.time("statement_timeout").map(|time| time.min(STATEMENT_TIMEOUT_MAX))
    }

    /// A time that is not zero, which stands for no limit.
    pub fn time(&self, name: &str) -> Option<Duration> {
        milliseconds(self.get(name)?).filter(|ms| *ms > 0).map(Duration::from_millis)
    }

    /// Set one; without a value to what it was at first.
    pub fn set(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<(), Failure> {
        let key = name.to_lowercase();
        let known = KNOWN.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name));
        let fixed = known.is_some_and(|(_, _, takes, _)| *takes == Takes::Fixed) || key.starts_with("server_version");
        if fixed {
            return Err(Failure::new("55P02", format!("\"{name}\" can't be changed"), ""));
        }
        if known.is_none() && !key.contains('.') {
            return Err(unknown(name));
        }
        let value = match (value, known) {
            (None, _) => self.defaults.get(&key).cloned(),
            (Some(value), Some((name, _, takes, _))) => Some(accepted(name, value, *takes)?),
            (Some(value), None) => Some(value.to_owned()),
        };
        if value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
            let hint = format!("a setting has at most {VALUE_BYTES_MAX} bytes");
            return Err(Failure::new("22023", format!("the value of \"{name}\" is too long"), hint));
        }
        if self.values.len() >= KNOWN.len() + CUSTOM_MAX && !self.values.contains_key(&key) {
            return Err(Failure::new("53400", format!("a session has at most {CUSTOM_MAX} settings of its own"), ""));
        }
        match value {
            Some(value) => self.values.insert(key.clone(), value),
            None => self.values.remove(&key),
        };
        if local && self.before.is_some() {
            self.local.push(key);
        } else {
            self.local.retain(|name| *name != key);
        }
        Ok(())
    }

    pub fn reset_all(&mut self) {
        self.values = self.defaults.clone();
    }

    /// A transaction begins.
    pub fn begin(&mut self) {
        let read_only = self.get("default_transaction_read_only").unwrap_or("off").to_owned();
        self.before = Some(self.values.clone());
        self.values.insert("transaction_read_only".to_owned(), read_only);
        self.local = vec!["transaction_read_only".to_owned()];
    }

    /// It has ended.
    pub fn end(&mut self, committed: bool) {
        let Some(before) = self.before.take() else { return };
        let local = std::mem::take(&mut self.local);
        if !committed {
            self.values = before;
            return;
        }
        for name in local {
            match before.get(&name) {
                Some(value) => self.values.insert(name, value.clone()),
                None => self.values.remove(&name),
            };
        }
    }
}

fn canonical(name: &str) -> &str {
    KNOWN.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name)).map_or(name, |(known, ..)| known)
}

/// The failure of asking for a setting that there is none of.
pub fn unknown(name: &str) -> Failure {
    let hint = "SHOW ALL lists the settings; one of your own has a dot in its name";
    Failure::new("42704", format!("unrecognized configuration parameter \"{name}\""), hint)
}

/// The value as it is kept.
fn accepted(name: &str, value: &str, takes: Takes) -> Result<String, Failure> {
    let refused =
        |hint: String| Failure::new("22023", format!("invalid value for parameter \"{name}\": \"{value}\""), hint);
    match takes {
        Takes::Fixed | Takes::Any => Ok(value.to_owned()),
        Takes::Flag => match value.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" | "1" | "t" => Ok("on".to_owned()),
            "off" | "false" | "no" | "0" | "f" => Ok("off".to_owned()),
            _ => Err(refused("on or off".to_owned())),
        },
        Takes::Only(values) => match values.iter().find(|known| known.eq_ignore_ascii_case(value)) {
            Some(_) if name == "client_encoding" && !value.eq_ignore_ascii_case("SQL_ASCII") => Ok("UTF8".to_owned()),
            Some(known) => Ok((*known).to_owned()),
            None => Err(refused(format!("it can be: {}", values.join("; ")))),
        },
        Takes::Time => match milliseconds(value) {
            Some(0) => Ok("0".to_owned()),
            Some(ms) if ms % 1_000 == 0 => Ok(format!("{}s", ms / 1_000)),
            Some(ms) => Ok(format!("{ms}ms")),
            None => Err(refused("a number of milliseconds, or one with a unit: 500ms, 5s, 1min, 1h".to_owned())),
        },
    }
}

fn milliseconds(value: &str) -> Option<u64> {
    let value = value.trim();
    let digits = value.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(value.len());
    let unit = match value[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    value[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Command {
        read(&Tokens::of(text).unwrap()).unwrap().unwrap()
    }

    #[test]
    fn what_is_understood() {
        let set = |name: &str, value: &str, local| Command::Set {
            name: name.to_owned(),
            value: Some(value.to_owned()),
            local,
        };
        for (text, wanted) in [
            ("SET application_name = 'a b'", set("application_name", "a b", false)),
            ("SET LOCAL statement_timeout TO 500", set("statement_timeout", "500", true)),
            ("SET SESSION search_path TO a, \"B\"", set("search_path", "a, \"B\"", false)),
            ("SET TIME ZONE 'UTC'", set("timezone", "UTC", false)),
            ("SET extra_float_digits = -1", set("extra_float_digits", "-1", false)),
            ("set names 'utf8'", set("client_encoding", "utf8", false)),
            ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY", set("transaction_read_only", "on", true)),
            (
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
                set("default_transaction_read_only", "off", false),
            ),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED", Command::Nothing("SET")),
            ("SHOW TRANSACTION ISOLATION LEVEL", Command::Show("transaction_isolation".to_owned())),
            ("SHOW my.own", Command::Show("my.own".to_owned())),
            ("DEALLOCATE PREPARE \"S 1\"", Command::Deallocate(Some("S 1".to_owned()))),
            ("DEALLOCATE ALL", Command::Deallocate(None)),
            ("UNLISTEN *", Command::Nothing("UNLISTEN")),
        ] {
            assert_eq!(command(text), wanted, "{text}");
        }
        assert!(read(&Tokens::of("SELECT 1").unwrap()).is_none());
        assert!(read(&Tokens::of("SET").unwrap()).unwrap().is_err());
    }

    #[test]
    fn what_a_transaction_sets_goes_when_it_is_rolled_back_and_local_ends_with_it() {
        let mut settings = Settings::new("me");
        settings.set("application_name", Some("a"), false).unwrap();
        settings.begin();
        settings.set("application_name", Some("b"), false).unwrap();
        settings.end(false);
        assert_eq!(settings.get("application_name"), Some("a"));
        settings.begin();
        settings.set("application_name", Some("c"), true).unwrap();
        settings.set("my.own", Some("d"), false).unwrap();
        settings.end(true);
        assert_eq!((settings.get("application_name"), settings.get("my.own")), (Some("a"), Some("d")));
    }

    #[test]
    fn values_are_checked() {
        let mut settings = Settings::new("me");
        settings.set("statement_timeout", Some("2min"), false).unwrap();
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(120)));
        for (name, value, code) in [
            ("client_encoding", "LATIN1", "22023"),
            ("standard_conforming_strings", "off", "22023"),
            ("statement_timeout", "soon", "22023"),
            ("no_such", "1", "42704"),
            ("server_version", "9", "55P02"),
        ] {
            assert_eq!(settings.set(name, Some(value), false).unwrap_err().code, code, "{name}");
        }
        settings.set("client_encoding", Some("unicode"), false).unwrap();
        assert_eq!(settings.get("client_encoding"), Some("UTF8"));
    }
}
