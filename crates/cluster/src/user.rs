//! Users: who may connect where passwords are asked for, and what is kept to check them.
//!
//! The catalog never has a password. It has what SCRAM-SHA-256 (RFC 5802, RFC 7677) makes of one: a *verifier*, with which a server
//! can check a proof and prove itself, and with which nobody can log in without trying passwords out. It is as good to a thief
//! as a hash in a file of passwords, so neither it nor the [`Secret`] is ever printed.
//!
//! A name that no user has must not be told apart from one that somebody has. So a server goes through the same exchange with a
//! made-up salt, which has to be the same each time and on each node: it is derived from the name and the cluster's secret,
//! which comes into the catalog with the first user.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::apply::{Applied, invalid};
use crate::{Catalog, CommandError, Millis};

/// The users of a catalog, by name. Names are taken to the letter.
pub type Users = BTreeMap<String, User>;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    pub verifier: Verifier,
    pub added: Millis,
    /// When the password was set.
    pub changed: Millis,
}

/// What is kept of a password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verifier {
    pub iterations: u32,
    pub salt: Vec<u8>,
    pub stored_key: [u8; 32],
    pub server_key: [u8; 32],
}

/// What the answers to unknown names are derived from. The same on all nodes, and known to nobody else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(…)")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Verifier {
    /// How often the password is hashed. The least is PostgreSQL's own number; the most is what a client can be asked to do.
    pub const ITERATIONS_MIN: u32 = 4_096;
    pub const ITERATIONS_MAX: u32 = 1_000_000;
    /// Bytes of the salt.
    pub const SALT_MIN: usize = 8;
    pub const SALT_MAX: usize = 64;

    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if !(Self::ITERATIONS_MIN..=Self::ITERATIONS_MAX).contains(&self.iterations) {
            let (least, most) = (Self::ITERATIONS_MIN, Self::ITERATIONS_MAX);
            return Err(format!("it has {} iterations, and must have from {least} to {most}", self.iterations));
        }
        if !(Self::SALT_MIN..=Self::SALT_MAX).contains(&self.salt.len()) {
            let (least, most) = (Self::SALT_MIN, Self::SALT_MAX);
            return Err(format!("its salt has {} bytes, and must have from {least} to {most}", self.salt.len()));
        }
        Ok(())
    }
}

impl User {
    /// Bytes of a name, as in PostgreSQL.
    pub const NAME_BYTES_MAX: usize = 63;

    /// What is wrong with a name.
    pub fn check_name(name: &str) -> Result<(), String> {
        if name.is_empty() || name.len() > Self::NAME_BYTES_MAX {
            return Err(format!("a user's name must have from 1 to {} bytes", Self::NAME_BYTES_MAX));
        }
        // A path that names one of these is another path.
        if name == "." || name == ".." {
            return Err(format!("{name:?} can't be a user's name"));
        }
        match name.chars().any(char::is_control) {
            true => Err("a user's name can't have control characters".to_owned()),
            false => Ok(()),
        }
    }
}

impl Catalog {
    /// Users that a cluster may have.
    pub const USERS_MAX: usize = 1_000;

    /// Add a user, or give one another password.
    pub(crate) fn put_user(&mut self, name: &str, verifier: &Verifier, secret: &Secret, at: Millis) -> Applied {
        User::check_name(name).map_err(invalid)?;
        verifier.check().map_err(|what| invalid(format!("the verifier can't be used: {what}")))?;
        let known = self.users.get(name);
        if known.is_none() && self.users.len() >= Self::USERS_MAX {
            return Err(invalid(format!("there are {} users already, which is the limit", Self::USERS_MAX)));
        }
        let added = known.map_or(at, |user| user.added);
        let user = User { name: name.to_owned(), verifier: verifier.clone(), added, changed: at };
        self.users.insert(name.to_owned(), user);
        self.secret.get_or_insert_with(|| secret.clone());
        Ok(())
    }

    /// Remove a user. Without any nobody is asked for a password any more, so the last one goes only when that is meant.
    pub(crate) fn remove_user(&mut self, name: &str, last: bool) -> Applied {
        if !self.users.contains_key(name) {
            return Err(CommandError::Unknown { what: format!("user {name:?}") });
        }
        if self.users.len() == 1 && !last {
            return Err(invalid(format!("{name:?} is the last user: without any, nobody is asked for a password")));
        }
        self.users.remove(name);
        Ok(())
    }

    pub(crate) fn check_users(&self, found: &mut Vec<String>) {
        for (name, user) in &self.users {
            if *name != user.name {
                found.push(format!("user {:?} stands under {name:?}", user.name));
            }
            let wrong = User::check_name(name).and_then(|()| user.verifier.check()).err();
            found.extend(wrong.map(|what| format!("user {name:?}: {what}")));
        }
        if self.users.len() > Self::USERS_MAX {
            found.push(format!("{} users", self.users.len()));
        }
        if !self.users.is_empty() && self.secret.is_none() {
            found.push("there are users, and no secret for the names that are none".to_owned());
        }
    }
}
