//! Which shard a server is: a mark on it, which is looked at whenever a connection is made.
//!
//! # The problem
//!
//! The catalog has an address for each shard, and an address is nobody in particular: another cluster's server may listen on a port that has become
//! free, two directories may be mistaken for each other when they are brought back from copies. Whoever believed the address would
//! write one shard's rows into another one, and nobody would notice.
//!
//! # The mechanism
//!
//! The mark is a setting of the database, `pleat.identity = 'CLUSTER/shard-N'` ([`mark`]). So it is in no schema that a move could copy or empty, in no dump, and
//! each session has it from its start: asking for it costs a round trip once in a connection's life, and reads no table. What a client
//! sets in its own session changes nothing, since a connection is asked before it is anybody's.
//!
//! # What holds
//!
//! 1. A connection of a [`Server`] with an identity is to a server that has this mark, or there is none: a wrong mark and a
//!    missing one are [`PostgresError::Unavailable`], so nothing was done, and who waits finds the right server if it comes back.
//! 2. A mark is never changed: one server is one shard of one cluster. Of two that mark it at once one does, under a lock there.
//! 3. A server is marked before the catalog knows its address (`pleat/servers`).
//!
//! A copy of a server's data has its mark, too: two copies of one shard are not told apart.

use std::fmt;

use pleat_cluster::ShardId;

use super::connection::Connection;
use super::error::PostgresError;
use super::moving::literal;
use super::server::Server;
use super::wire::backend::SqlState;

/// The setting.
const NAME: &str = "pleat.identity";
/// The number of the lock under which a mark is made: the letters `pleat`.
const LOCK: u64 = 0x70_6c65_6174;

/// A shard of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(String);

impl Identity {
    pub fn new(cluster: &str, shard: ShardId) -> Identity {
        Identity(format!("{cluster}/{shard}"))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Make a server this shard, unless it is one already. [`PostgresError::Refused`]: it is another one, whatever `server.identity` says.
pub async fn mark(server: &Server, identity: &Identity) -> Result<(), PostgresError> {
    let plain = Server { identity: None, ..server.clone() };
    let mut connection = Connection::open(&plain).await?;
    connection.ask(&format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK})")).await?;
    // As it is in the catalogs now: what the session began with may be older than the lock.
    let asked = connection
        .ask(&format!(
            "SELECT substr(s.setting, {}), quote_ident(d.datname) FROM pg_database d \
             LEFT JOIN pg_db_role_setting r ON r.setdatabase = d.oid AND r.setrole = 0 \
             LEFT JOIN LATERAL unnest(r.setconfig) AS s(setting) ON s.setting LIKE '{NAME}=%' \
             WHERE d.datname = current_database()",
            NAME.len() + 2
        ))
        .await?;
    let mut row = asked.rows.into_iter().next().unwrap_or_default().into_iter();
    let (found, database) = (row.next().flatten(), row.next().flatten().unwrap_or_default());
    match found {
        Some(found) if found == identity.0 => Ok(()),
        Some(found) => Err(PostgresError::Refused {
            code: SqlState::NOT_LET_IN,
            message: format!(
                "the server's database is marked as {found}, and not as {identity}: it has another shard's data; bring back the right one"
            ),
        }),
        None => {
            let text = format!("ALTER DATABASE {database} SET {NAME} = {}; COMMIT", literal(&identity.0));
            connection.ask(&text).await.map(drop)
        }
    }
}

impl Connection {
    /// Whether it leads to this shard.
    pub(super) async fn check(&mut self, identity: &Identity) -> Result<(), PostgresError> {
        let asked = self.ask(&format!("SELECT current_setting('{NAME}', true)")).await?;
        let found = asked.rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        match found.filter(|found| !found.is_empty()) {
            Some(found) if found == identity.0 => Ok(()),
            Some(found) => Err(PostgresError::Unavailable(format!(
                "the server at the shard's address is {found}, and not {identity}: nothing was sent to it"
            ))),
            None => Err(PostgresError::Unavailable(format!(
                "the server at the shard's address has no mark that says that it is {identity}: nothing was sent to it"
            ))),
        }
    }
}
