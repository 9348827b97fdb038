//! SQL for a sharded database: where a statement runs, and how it is split.
//!
//! [`prepare`] reads a statement once. The plan that it gives is kept by the caller (by text and catalog
//! generation) and asked for a route each time, with the parameters: [`ReadPlan::route`], [`WritePlan::route`],
//! [`DdlPlan::effect`].
//!
//! Two rules stand above all others. **Every SELECT is answered as one SQLite database with all the rows would
//! answer it, or refused**: what isn't understood is never guessed at, but fetched and run in the caller's in-memory
//! SQLite (the *finisher*), which is always right. And **the user's own text is what runs**: the syntax tree only says
//! where things are, and pieces are cut from the text by SQLite's own tokens, so nothing is lost in printing.
//!
//! ```text
//! text ── lex ── parse ── scope ──┬─ read ─┬─ (one shard: unchanged)
//!         tokens  tree   + keys   │        ├─ spread    appended, or first rows
//!                        keys,    │        ├─ partial   aggregates in two steps
//!                        filters  │        └─ fetch     rows and columns, then the statement itself
//!                                 ├─ write    rows to their shard
//!                                 └─ ddl      Pleat's clause and its rules
//! ```
//!
//! This crate is pure: no sockets, files, clocks, randomness or databases (its tests use SQLite to compare with).

mod clauses;
mod ddl;
mod error;
mod explain;
mod fetch;
mod finish;
mod forms;
mod frame;
mod functions;
mod hint;
mod joins;
mod keys;
mod lex;
mod normal;
mod order;
mod outputs;
mod params;
mod parse;
mod partial;
pub mod postgres;
mod read;
mod scope;
mod shard_sql;
mod spread;
mod statement;
mod tree;
mod views;
mod why;
mod write;

pub use ddl::{DdlAction, DdlPlan, Placement};
pub use error::{Code, Position, SqlError};
pub use explain::{ExplainedFetch, Explanation};
pub use hint::Hint;
pub use normal::normalized;
pub use order::{Collation, Order, compare_rows};
pub use outputs::{OutputType, output_types};
pub use params::{PARAMETERS_MAX, Params};
pub use parse::{NESTING_MAX, OPERATORS_MAX, STATEMENT_BYTES_MAX};
pub use read::{Bound, Fetch, ReadPlan, Route, Source, Units};
pub use statement::{Schema, Statement, prepare, split_script};
pub use why::{NotPushed, Why};
pub use write::{
    BulkIds, COMPUTED_ROWS_MAX, ComputedWrite, Ids, IdsWanted, KeyedWrite, RowsWrite, SpreadWrite, WritePlan,
    WriteRoute, WriteTarget, several_shards,
};
