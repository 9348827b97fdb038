//! The PostgreSQL wire protocol, over [`session`](crate::session).
//!
//! # The problem
//!
//! Applications that speak to PostgreSQL are to speak to Pleat with another address and nothing else changed: psql, drivers,
//! and what is built on drivers. They expect the protocol to the letter, types for every column before the first row, a system
//! catalog to ask, and transactions that fail as PostgreSQL's do. What they send comes from a network, byte by byte,
//! perhaps never the next one.
//!
//! The SQL is SQLite's, and so are the values; [`types`] and [`dialect`] say what that means.
//!
//! # The states of a connection
//!
//! ```text
//!             encryption, a password: `start`
//!              ┌──┐                      ┌──────────────────────────────────────────┐
//!  accepted ──►│  first message ──►  ready ──Query──► carried out, ReadyForQuery ─────┤
//!              └──┘   │                  │ ──Parse, Bind, Describe, Execute, Close──► in a series ──Sync──┐
//!                     │ cancel: done,    │                                  │ an error: told once,         │
//!                     │ closed           │                                  ▼ all is skipped up to Sync ───┤
//!                     ▼                  └── Terminate, the client is gone, a broken message ─► closed      ▼
//!                   closed                                                                    ReadyForQuery
//! ```
//!
//! [`start`] has what comes before *ready*, and what happens when that fails.
//!
//! | message | in *first* | in *ready* and *in a series* | *skipping* | in COPY FROM |
//! | --- | --- | --- | --- | --- |
//! | SSLRequest, GSSENCRequest | `S` and TLS if there is a certificate, else `N`; once each | closed (`08P01`) | closed | closed |
//! | CancelRequest | done, closed without an answer | closed | closed | closed |
//! | StartupMessage | a password is asked for, or the session begins, `Z` | closed: a second one has no letter | closed | closed |
//! | SASLInitialResponse, SASLResponse | taken when asked for | closed (`08P01`) | closed | closed |
//! | Query | closed | its statements, `Z` | skipped | closed |
//! | Parse … Close | closed | done; an error begins *skipping* | skipped | closed |
//! | Flush | closed | what was gathered is sent | skipped | skipped |
//! | Sync | closed | an implicit transaction ends, `Z` | an implicit transaction ends, `Z` | skipped |
//! | CopyData, CopyDone, CopyFail | closed | skipped, as what is left of a COPY that failed | skipped | taken |
//! | Terminate | closed | closed; the transaction is rolled back | closed | closed |
//! | anything else, or too large, or cut short | closed (`08P01`) | closed (`08P01`) | closed | closed |
//!
//! Beside that stands the transaction block, which [`session`] describes. When the process dies, clients see their connection
//! end; a transaction that was not committed is rolled back by the shards themselves, and one whose COMMIT was not answered is
//! in the doubt that every protocol leaves.
//!
//! # Limits
//!
//! Each is named in [`settings`](crate::settings): the time to begin a session; the size of messages, and how many large
//! ones a node holds at once; connections (as many as the HTTP address may have, in addition to it); prepared
//! statements and portals of a connection; rows that a client does not take. Between two messages a client may idle: a
//! connection costs a socket and a few kilobytes, in TLS some more. In a transaction it may for [`SESSION_IDLE_DEFAULT`](crate::settings) at most.
//!
//! # What is not here yet
//!
//! Rights of users: whoever is let in may do everything. SQL-level PREPARE and cursors (DECLARE), LISTEN, COPY in binary format, arrays and intervals in binary format. The values
//! of a statement in the simple protocol count as its text, so each set of values is planned anew, as in PostgreSQL.

mod cancel;
mod catalog;
mod client;
mod connection;
mod copy;
mod dialect;
mod extended;
#[cfg(test)]
mod fuzz;
mod guesses;
mod known;
mod named;
pub(crate) mod relay;
mod run;
mod session;
mod settings;
mod simple;
mod socket;
mod start;
#[cfg(test)]
mod tests;
mod types;
mod wire;

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{OnceCell, Semaphore, watch};
use tokio::task::JoinSet;

use crate::http::App;
use crate::server::accept;
use crate::session::Failure;
use crate::session::plans::Plans;
use crate::settings::{PG_KNOWING_MAX, PG_LARGE_MESSAGES_MAX, PG_SPARE_CONNECTIONS, STATEMENT_BYTES_MAX};

/// What all connections of a node share.
pub(crate) struct Shared {
    app: App,
    cancels: Arc<cancel::Cancels>,
    known: Plans<known::Known>,
    describer: known::Describer,
    system: catalog::System,
    /// Places for those who find out about a statement, which takes a thread.
    knowing: Semaphore,
    /// Places for large messages.
    large: Arc<Semaphore>,
    guesses: guesses::Guesses,
    /// Plans of what goes to PostgreSQL servers.
    relayed: relay::Plans,
    /// Plans of the shapes of texts that have their values in them; one that can't be used is empty.
    relayed_shapes: relay::Plans,
    /// Places for those who gather rows of several servers.
    relayed_gathers: Arc<Semaphore>,
    /// The node's catalog was once up to date since it started.
    caught_up: OnceCell<()>,
}

impl Shared {
    pub fn new(app: App) -> Arc<Self> {
        let relayed_gathers = Arc::new(Semaphore::new(app.settings.limits.gathers.clamp(1, Semaphore::MAX_PERMITS)));
        Arc::new(Self {
            app,
            relayed: relay::Plans::new(),
            relayed_shapes: relay::Plans::new(),
            relayed_gathers,
            cancels: Arc::default(),
            known: Plans::new(),
            describer: known::Describer::default(),
            system: catalog::System::new(),
            knowing: Semaphore::new(PG_KNOWING_MAX),
            large: Arc::new(Semaphore::new(PG_LARGE_MESSAGES_MAX)),
            guesses: guesses::Guesses::default(),
            caught_up: OnceCell::new(),
        })
    }

    /// All that is known of a statement.
    async fn know(self: &Arc<Self>, text: &str) -> Result<Arc<known::Known>, Failure> {
        let catalog = self.app.backend.catalog();
        if let Some(known) = self.known.find(text, &catalog) {
            return Ok(known);
        }
        if text.len() > STATEMENT_BYTES_MAX {
            let message = format!("the statement has {} bytes; the limit is {STATEMENT_BYTES_MAX}", text.len());
            return Err(Failure::new("54000", message, "send values as parameters, or load rows with COPY"));
        }
        let (shared, text) = (self.clone(), text.to_owned());
        let place = tokio::time::timeout(catalog::TIME_MAX, self.knowing.acquire()).await;
        let _place = place.map_err(|_| catalog::busy())?;
        let find_out = move || {
            let find_out =
                || known::Known::of(&text, &catalog, &shared.app.executor, &shared.describer, &shared.system);
            shared.known.get(&text, &catalog, find_out).map(|(known, _)| known)
        };
        // Compiling takes a moment, and the first time the schema is made.
        pleat_consensus::blocking(find_out).await.map_err(|error| Failure::internal(error.to_string()))?
    }
}

/// Serve the address until `shutdown` completes; then tell every client that is not in the middle of a message, wait for the
/// others to come to the end of theirs, and return. Dropping the future breaks them off.
pub(crate) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    connections_max: usize,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopping) = watch::channel(());
    let places = Arc::new(Semaphore::new(connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            stream = accept(&listener), if connections.len() < connections_max.saturating_add(PG_SPARE_CONNECTIONS) => {
                connections.spawn(connection::serve(stream, shared.clone(), places.clone(), stopping.clone()));
            }
        }
    }
    drop(listener);
    stop.send_replace(());
    while connections.join_next().await.is_some() {}
}
