//! The embedded engine: SQLite.

mod authorize;
pub(crate) mod build;
mod bulk;
mod clock;
mod connection;
mod content;
mod copy;
mod failure;
pub(crate) mod finisher;
mod idempotency;
mod import;
pub(crate) mod local;
mod move_read;
mod move_step;
mod placement;
pub(crate) mod readers;
mod reading;
mod reference;
mod schema;
pub(crate) mod scratch;
mod session;
mod stats;
pub(crate) mod store;
mod table;
mod txn;
mod value;
mod write;
