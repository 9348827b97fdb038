//! Planning for clusters whose shards are PostgreSQL servers: where a statement goes, and how one that concerns several
//! shards is taken apart and put together again.
//!
//! Two rules stand above all others. **A statement that one shard can answer goes there as the client wrote it**: nothing of
//! it is printed from a syntax tree. **Nothing is guessed**: what isn't understood for certain is gathered into one
//! server's session, which runs the client's own statement over the rows, or refused with `0A000`.
//!
//! ```text
//! text ── lex ── split ── statement ─┬─ (BEGIN, SET, PREPARE, FETCH …: from the tokens)
//!         tokens                     ├─ copy, ddl
//!                                    └─ parse ── analysis ─┬─ read ── spread ─┬─ the client's text on every shard
//!                                               mentions,  │                  ├─ rows to sort, or to merge (partial)
//!                                               keys, ties └─ write           └─ gather: tables, then the statement itself
//! ```
//!
//! [`prepare`] depends on the text and the schema alone, so its plans can be kept by text and catalog generation. A plan is asked
//! for its route each time, with the parameters: [`Query::route`].
//!
//! A statement that reads views is planned with their queries in their place ([`views`]).
//!
//! An INSERT that leaves out a column which counts, and `nextval` and its like, get values from Pleat: [`serial`] writes parameters for them, and
//! what is planned is that text ([`Given`]).
//!
//! Tokens are cut as PostgreSQL does with `standard_conforming_strings = on`: whoever lets clients turn that off plans wrongly.

pub mod adopt;
mod analysis;
mod clauses;
mod compose;
mod copy;
mod ddl;
mod functions;
mod gather;
mod keys;
mod lex;
mod local;
mod outputs;
mod parse;
mod partial;
mod plan;
mod query;
mod read;
mod route;
mod screen;
mod serial;
mod shape;
mod sources;
mod spread;
mod statement;
mod tree;
mod types;
mod views;
mod write;

pub use plan::{
    Copy, CopyFormat, Ddl, Direction, Fetch, Given, GivenValue, Part, Placement, Planned, Query, Route, Source, Spread,
    UniqueIndex, Verb, What,
};

pub use screen::Screen;
pub use shape::Shape;

use crate::{Schema, SqlError};

/// Plans the statements of one message, in order; empty ones are left out.
///
/// The error is of the first statement that can't be planned: `42601` for what is no SQL, `0A000` for what Pleat can't
/// route, `54000` and `54001` for what is too long or nested too deeply.
pub fn prepare(text: &str, schema: &Schema<'_>) -> Result<Vec<Planned>, SqlError> {
    statement::prepare(text, schema)
}
