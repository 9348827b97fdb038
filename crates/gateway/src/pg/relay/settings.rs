//! What a session has set: it goes along to whatever connection a statement lands on.
//!
//! The server decides whether a value is one: a SET is carried out on a shard, and remembered when that took it. As in PostgreSQL, what was set in a
//! transaction is undone when that is rolled back.

use std::collections::BTreeMap;

use pleat_engine::postgres::Profile;

use crate::pg::start::Started;
use crate::session::Failure;

/// Bytes of all settings together.
const BYTES_MAX: usize = 64 << 10;

/// A session's settings.
pub struct Settings {
    /// From the first message, in its order: what RESET goes back to.
    first: Vec<(String, String)>,
    /// SETs by what they set.
    set: BTreeMap<String, String>,
    /// As they were when the transaction began.
    before: Option<BTreeMap<String, String>>,
    profile: Profile,
}

impl Settings {
    /// What the first message asks for.
    pub fn new(started: &Started) -> Result<Settings, Failure> {
        let mut first = Vec::new();
        for (name, value) in &started.settings {
            if name.eq_ignore_ascii_case("client_encoding") {
                let plain: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
                if !["UTF8", "UNICODE", "SQLASCII", "AUTO"].iter().any(|known| plain.eq_ignore_ascii_case(known)) {
                    let message = format!("the encoding {value} is not supported");
                    return Err(Failure::new("22023", message, "use UTF8"));
                }
                continue;
            }
            check(&name.to_ascii_lowercase(), value)?;
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
            if name.is_empty() || !name.chars().all(plain) {
                return Err(Failure::new("42704", format!("unrecognized configuration parameter \"{name}\""), ""));
            }
            // So it is read the same, whatever `standard_conforming_strings` says.
            let value = value.replace('\\', "\\\\").replace('\'', "''");
            first.push((name.to_ascii_lowercase(), format!("SET {name} TO E'{value}'")));
        }
        let mut settings = Settings { first, set: BTreeMap::new(), before: None, profile: Profile::default() };
        settings.renew()?;
        Ok(settings)
    }

    /// For connections.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Whether the session has set it.
    pub fn has(&self, name: &str) -> bool {
        self.set.contains_key(name) || self.first.iter().any(|(known, _)| known == name)
    }

    /// A transaction begins.
    pub fn begin(&mut self) {
        self.before.get_or_insert_with(|| self.set.clone());
    }

    /// It ends.
    pub fn end(&mut self, committed: bool) {
        if let Some(before) = self.before.take()
            && !committed
        {
            self.set = before;
            // It was there before, so there is room for it.
            let _ = self.renew();
        }
    }

    /// A server has taken it.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), Failure> {
        self.set.insert(name.to_owned(), text.to_owned());
        self.renew()
    }

    /// `None`: all.
    pub fn reset(&mut self, name: Option<&str>) -> Result<(), Failure> {
        match name {
            Some(name) => drop(self.set.remove(name)),
            None => self.set.clear(),
        }
        self.renew()
    }

    fn renew(&mut self) -> Result<(), Failure> {
        let first = self.first.iter().filter(|(name, _)| !self.set.contains_key(name)).map(|(_, text)| text);
        let texts: Vec<&str> = first.chain(self.set.values()).map(String::as_str).collect();
        let text = texts.join("; ");
        if text.len() > BYTES_MAX {
            let message = format!("the settings of a session have more than {BYTES_MAX} bytes");
            return Err(Failure::new("53400", message, "RESET those that are not needed"));
        }
        self.profile = Profile::new(&text);
        Ok(())
    }
}

/// Settings by which the same text would mean something else than the planner takes it for.
pub fn check(name: &str, value: &str) -> Result<(), Failure> {
    let bare = |text: &str| text.trim().trim_matches(['\'', '"']).to_ascii_lowercase();
    match name {
        "standard_conforming_strings" if !["on", "true", "yes", "1", "default"].contains(&bare(value).as_str()) => {
            let hint = "write backslashes in E'' strings";
            Err(Failure::new("0A000", "standard_conforming_strings has to stay on", hint))
        }
        "search_path" => {
            let mut schemas = value.split(',').map(bare);
            let first = schemas.find(|schema| !matches!(schema.as_str(), "$user" | "pg_catalog" | ""));
            match first.as_deref() {
                None | Some("public" | "default") => Ok(()),
                Some(other) => Err(Failure::new(
                    "0A000",
                    format!(
                        "names without a schema are looked for in public, and this search_path begins with {other}"
                    ),
                    format!("write {other}.name for tables of that schema"),
                )),
            }
        }
        _ => Ok(()),
    }
}

/// What a SET gives its setting: what follows TO or the equals sign.
pub fn value_of(text: &str) -> &str {
    let lower = text.to_ascii_lowercase();
    let words = [" to ", "="].iter().filter_map(|word| Some(lower.find(word)? + word.len()));
    words.min().and_then(|at| text.get(at..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(settings: &[(&str, &str)]) -> Started {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Started { user: "u".to_owned(), database: "d".to_owned(), settings }
    }

    #[test]
    fn what_was_set_goes_along_and_a_rollback_undoes_it() {
        let mut settings =
            Settings::new(&started(&[("application_name", "it's"), ("client_encoding", "utf-8")])).unwrap();
        let first = Profile::new("SET application_name TO E'it''s'");
        assert_eq!(settings.profile(), &first);
        settings.begin();
        settings.set("timezone", "SET TIME ZONE 'UTC'").unwrap();
        settings.set("application_name", "SET application_name = b").unwrap();
        assert_eq!(settings.profile(), &Profile::new("SET application_name = b; SET TIME ZONE 'UTC'"));
        settings.end(false);
        assert_eq!(settings.profile(), &first);
        settings.begin();
        settings.set("timezone", "SET TIME ZONE 'UTC'").unwrap();
        settings.end(true);
        settings.reset(Some("timezone")).unwrap();
        assert_eq!(settings.profile(), &first);
    }

    #[test]
    fn what_would_change_the_meaning_of_texts_is_refused() {
        for (text, fine) in [
            ("SET search_path TO public", true),
            ("SET search_path = \"$user\", public, other", true),
            ("set search_path to ''", true),
            ("SET search_path TO other, public", false),
            ("SET search_path = 'other'", false),
        ] {
            assert_eq!(check("search_path", value_of(text)).is_ok(), fine, "{text}");
        }
        assert!(check("standard_conforming_strings", "on").is_ok());
        assert_eq!(check("standard_conforming_strings", " off").unwrap_err().code, "0A000");
        assert!(check("timezone", "other").is_ok());
    }

    #[test]
    fn names_and_encodings_are_checked() {
        for (name, code) in [("a; DROP TABLE t", "42704"), ("", "42704")] {
            assert_eq!(Settings::new(&started(&[(name, "1")])).err().unwrap().code, code);
        }
        assert_eq!(Settings::new(&started(&[("client_encoding", "LATIN1")])).err().unwrap().code, "22023");
    }
}
