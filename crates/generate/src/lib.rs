//! Statements made at random, and whether two answers to one are equal: what the tests of several crates share.
//!
//! Pleat must answer as one SQLite database with all rows would. What people write by hand into a test they have thought
//! of; what breaks is what they have not. So statements are drawn from grammars, each by a seed that names it:
//! [`joins`] (plain queries, deep conditions), [`reads`] (every class that is taken apart and put together again) and
//! [`writes`]. All of them are about the tables of [`RICH`] or [`WRITTEN`], whose columns have the same names, and use the
//! same literals: many NULLs, 64-bit extremes, text in many scripts, numbers as text.
//!
//! An answer is not always determined. Which rows a LIMIT without ORDER BY gives, which of the equal values `5` and `5.0`
//! DISTINCT shows, and whether a sum overflows on the way to a total that would fit are SQLite's choice, made anew by each
//! plan; [`answer`] knows these cases and compares the rest exactly.
//!
//! Only tests use this crate.

pub mod answer;
mod dice;
pub mod joins;
mod literals;
pub mod reads;
pub mod writes;

pub use answer::Answer;
pub use dice::{Dice, seeds};

/// Tables that are filled once and then read.
pub const RICH: &[&str] = &[
    "CREATE TABLE t (k INTEGER, id INTEGER, a INTEGER, b REAL, c TEXT, d NUMERIC, e BLOB, f, n TEXT COLLATE NOCASE, g INTEGER AS (a * 2), PRIMARY KEY (k, id)) SHARD BY (k)",
    "CREATE TABLE u (id INTEGER, k INT NOT NULL, x INTEGER, y TEXT, PRIMARY KEY (k, id)) WITHOUT ROWID, SHARD BY (k)",
    "CREATE TABLE s (w TEXT PRIMARY KEY, v INTEGER, k INTEGER) STRICT SHARD BY (w)",
    "CREATE TABLE r (id INTEGER PRIMARY KEY, a INTEGER, c TEXT) REFERENCE",
    "CREATE TABLE one (id INTEGER PRIMARY KEY, a INTEGER, c TEXT) SINGLE",
    "CREATE TABLE empty (k INTEGER PRIMARY KEY, a) SHARD BY (k)",
];

/// The same for writes: with constraints that they can break, and `h`, whose ids Pleat gives.
pub const WRITTEN: &[&str] = &[
    "CREATE TABLE t (k INTEGER NOT NULL, id INTEGER NOT NULL, a INTEGER CHECK (a <> 13), b REAL, c TEXT, d NUMERIC, e BLOB, f, n TEXT COLLATE NOCASE, g INTEGER AS (a * 2), PRIMARY KEY (k, id)) SHARD BY (k)",
    "CREATE TABLE u (id INTEGER, k INT NOT NULL, x INTEGER, y TEXT DEFAULT 'dé', PRIMARY KEY (k, id), UNIQUE (k, y)) WITHOUT ROWID, SHARD BY (k)",
    "CREATE TABLE s (w TEXT NOT NULL PRIMARY KEY, v INTEGER, k INTEGER) STRICT SHARD BY (w)",
    "CREATE TABLE h (id INTEGER PRIMARY KEY, v INTEGER, c TEXT) SHARD BY (id)",
    "CREATE TABLE r (id INTEGER PRIMARY KEY, a INTEGER, c TEXT) REFERENCE",
    "CREATE TABLE one (id INTEGER PRIMARY KEY, a INTEGER, c TEXT) SINGLE",
];
