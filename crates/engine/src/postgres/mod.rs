//! A shard that is a PostgreSQL server, as Pleat speaks to it: the client's side of the protocol, and a pool in transaction mode.
//!
//! # The problem
//!
//! There are more clients than a server can have connections, and a client's transactions land on several servers. So a connection is
//! a client's for a transaction only; the next one gets another, and must not notice. And what the server answers is the client's
//! as it is: whoever decodes each row and encodes it again has lost to one who goes directly.
//!
//! # The mechanism
//!
//! A [`Pool`] gives out a [`Lease`] of a [`Connection`] for a transaction. [`Request`]s go in, [`Reply`]s come out: bytes to pass on, and the few
//! events that matter. Of the server's messages only the heads are read ([`wire::backend`]), and a queue of what was asked
//! tells what each one answers (`exchange`). Prepared statements have names of their own on the servers, made of their text and types, and are
//! prepared on a connection that lacks them when a client needs them there (`statement`). A connection on which a session's state was
//! changed is reset before it is another's.
//!
//! # Invariants
//!
//! 1. A connection is passed on only when the server has said that it is idle, all is answered, and nothing is on its way in either
//!    direction, cancel requests included.
//! 2. A client gets exactly the answers to what it asked, in order.
//! 3. No message is held whole but small ones; what waits to be sent, for a connection, or in a session has a limit.
//! 4. A failure says whether something may have been done: [`PostgresError::is_retryable`] is true only where surely nothing was.
//! 5. The password is not sent, whatever the server asks for; one that can't prove that it knows the password is left.
//! 6. Nothing is sent to a server that isn't marked as the shard that it is taken for (`identity`).
//!
//! # What happens when something dies
//!
//! | what, and when | what follows |
//! | --- | --- |
//! | the server, while nobody uses a connection | its end is noticed before it is given out, and another one made |
//! | the server, in the middle | [`PostgresError::Lost`]: the outcome is unknown, and whoever has the statement decides |
//! | the server, for longer | leases wait for it up to their limit, then `57P03` |
//! | a client, in the middle | its statement is cancelled and the connection closed; the server takes back the transaction |
//! | Pleat | the server sees its connections end, as above; a statement that runs may still commit |
//!
//! # What is not seen here
//!
//! What a statement leaves in a session is known by its command tag and by what the server reports. A function that changes a setting, takes an
//! advisory lock or makes a temporary table inside of a SELECT is not noticed: whoever routes refuses it, or keeps the lease.

mod ask;
mod cancel;
mod connection;
mod dsn;
mod error;
mod exchange;
#[cfg(test)]
mod fuzz;
mod identity;
pub mod moving;
mod pool;
mod server;
mod start;
mod statement;
pub mod wire;

pub use ask::{ANSWER_BYTES_MAX, Asked};
pub use cancel::Canceller;
pub use connection::{Connection, Profile, Reply, Request};
pub use dsn::{Dsn, Host};
pub use error::PostgresError;
pub use identity::{Identity, mark};
pub use pool::{Lease, Limits, Pool};
pub use server::{Address, Password, Server, Tls};
pub use statement::Statement;
