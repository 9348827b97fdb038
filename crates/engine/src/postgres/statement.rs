//! Prepared statements that are carried across the connections of a pool.
//!
//! A client's statement is known by a name of its own, on whatever connection its next transaction lands. So the name on the
//! servers is made of what the statement *is*: its text and the types of its parameters. Clients that prepare the same
//! share it, and a connection that does not have it yet gets it in front of the first Bind.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use ring::digest;

/// Statements that a connection keeps from one transaction to the next.
pub const KEPT_MAX: usize = 500;
/// Statements that a connection may have in all, within a transaction whose open portals forbid to close any.
pub const HELD_MAX: usize = 4 * KEPT_MAX;
/// Bytes of the hash that a name is made of.
const NAME_BYTES: usize = 16;

/// A statement as it is prepared.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    /// On every server.
    pub(super) name: String,
    pub(super) text: String,
    /// Of its parameters, by their numbers in `pg_type`; 0 is for the server to find out.
    pub(super) types: Vec<u32>,
}

impl Statement {
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn new(text: String, types: Vec<u32>) -> Arc<Statement> {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(text.as_bytes());
        // A zero ends every text in the protocol, so none has one in it.
        hash.update(&[0]);
        types.iter().for_each(|oid| hash.update(&oid.to_be_bytes()));
        let hash = hash.finish();
        let mut name = "pleat_".to_owned();
        for byte in &hash.as_ref()[..NAME_BYTES] {
            let _ = write!(name, "{byte:02x}");
        }
        Arc::new(Statement { name, text, types })
    }
}

/// The statements that a connection has, or will have when what was sent is carried out.
#[derive(Debug, Default)]
pub struct Held {
    /// By name, with when each was used last.
    names: HashMap<String, u64>,
    uses: u64,
}

impl Held {
    /// Whether it is there; it is used now.
    pub fn uses(&mut self, name: &str) -> bool {
        self.uses += 1;
        self.names.get_mut(name).map(|last| *last = self.uses).is_some()
    }

    pub fn add(&mut self, name: &str) {
        self.names.insert(name.to_owned(), self.uses);
    }

    pub fn remove(&mut self, name: &str) {
        self.names.remove(name);
    }

    pub fn clear(&mut self) {
        self.names.clear();
    }

    pub fn is_full(&self) -> bool {
        self.names.len() >= HELD_MAX
    }

    /// Take those out that were not used for longest, down to what is kept.
    pub fn excess(&mut self) -> Vec<String> {
        let excess = self.names.len().saturating_sub(KEPT_MAX);
        if excess == 0 {
            return Vec::new();
        }
        let mut all: Vec<(u64, String)> = self.names.iter().map(|(name, last)| (*last, name.clone())).collect();
        all.sort_unstable();
        all.truncate(excess);
        all.iter().for_each(|(_, name)| self.remove(name));
        all.into_iter().map(|(_, name)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_the_statement_is() {
        let name = |text: &str, types: &[u32]| Statement::new(text.to_owned(), types.to_vec()).name.clone();
        assert_eq!(name("SELECT $1", &[20]), name("SELECT $1", &[20]));
        assert_ne!(name("SELECT $1", &[20]), name("SELECT $1", &[23]));
        assert_ne!(name("SELECT $1", &[]), name("SELECT $1 ", &[]));
        assert!(name("", &[]).len() < 64, "PostgreSQL cuts names there");
    }

    #[test]
    fn what_was_not_used_for_longest_goes() {
        let mut held = Held::default();
        for number in 0..KEPT_MAX + 2 {
            assert!(!held.uses(&number.to_string()));
            held.add(&number.to_string());
        }
        assert!(held.uses("0"));
        assert_eq!(held.excess(), ["1", "2"]);
        assert!(held.excess().is_empty() && held.uses("0") && !held.uses("1"));
    }
}
