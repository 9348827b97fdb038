//! Which tables of an existing database would be sharded, by what, and what stands in the way: the thinking of `pleat adopt`.
//!
//! # The problem
//!
//! A team's one database is full. Which column its rows should be spread by is a decision that costs them most when it is wrong, and that they
//! can hardly try out. What the answer depends on is in the database: its foreign keys, and the statements that it has run.
//!
//! # The mechanism
//!
//! ```text
//! tables, foreign keys ─► families ─► placements ─┬─► rules: what can't hold across shards ──┐
//!                                        ▲        └─► judge: the router's own planner, asked │
//!                                        │                   about each statement it has run ▼
//!                                        └───────────── search: the best sum ◄──────────── score
//! ```
//!
//! A *family* is a column that many tables can be spread by together: `customers.id`, what refers to it, what refers to that by the same
//! column, and what has a column called the same. Each family is tried: its tables by its column, small and seldom written ones as
//! reference tables, the others single. Then each table is tried by itself at each of its other places, as long as that makes the sum better.
//!
//! What a placement is worth ([`Score`]) is first of all what the statements become that were really run, by time and by calls. They are not
//! estimated: [`prepare`](super::prepare) is asked, with the catalog that there would be, so what is told here is what clients will get. Where no statistics
//! of statements are kept, the tables' own counters take their place.
//!
//! # What holds
//!
//! 1. The same facts give the same proposal: nothing is random, and ties are broken by names.
//! 2. No table is proposed to be sharded by a column that Pleat refuses as a key.
//! 3. Whatever `rules` knows to be impossible as it stands is told with its remedy; nothing is proposed silently.
//! 4. The work is bounded: [`FAMILIES_MAX`], [`ROUNDS_MAX`], [`REFINED_MAX`], [`STATEMENTS_MAX`].
//!
//! # What it doesn't see
//!
//! Transactions: statistics don't say which statements were run together. Tables of one family lie together, which is what
//! makes their transactions cheap, and counts for something of its own. What a function or a trigger does inside is not looked into.
//! A statement's constants are gone from the statistics, so two keys in it count as different.

mod facts;
mod families;
mod judge;
mod placement;
mod reasons;
mod rules;
mod search;

pub use facts::{ColumnFacts, Database, ForeignKey, Oddity, StatementFacts, TableFacts, Unique};
pub use judge::{Judged, Verdict};
pub use placement::Placed;
pub use rules::{Obstacle, ObstacleKind};
pub use search::{Alternative, Score};

/// The most statements that are looked at: those that took most time.
pub const STATEMENTS_MAX: usize = 1_000;
/// The most families that are tried.
pub const FAMILIES_MAX: usize = 12;
/// The most tables that are tried at other places than their family's, the largest.
pub const REFINED_MAX: usize = 500;
/// How often they are gone through for a better place.
pub const ROUNDS_MAX: usize = 3;

/// What is proposed.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The family that most hangs on, for people: `customers.id`. `None`: nothing is to be sharded.
    pub root: Option<String>,
    /// In the order of [`Database::tables`].
    pub tables: Vec<TableProposal>,
    /// What does not hold across shards as it stands, by table.
    pub obstacles: Vec<Obstacle>,
    /// In the order of [`Database::statements`].
    pub statements: Vec<Judged>,
    pub score: Score,
    /// Other families, best first.
    pub alternatives: Vec<Alternative>,
}

/// One table of a proposal.
#[derive(Clone, Debug)]
pub struct TableProposal {
    /// As the catalog would have it: `name`, or `schema.name`.
    pub name: String,
    pub placed: Placed,
    /// Whole sentences.
    pub reasons: Vec<String>,
}

/// Propose where each table's rows go.
pub fn propose(database: &Database) -> Proposal {
    let (found, links) = (search::search(database), facts::Links::of(database));
    let tables = database.tables.iter().enumerate().map(|(at, table)| TableProposal {
        name: table.name.clone(),
        placed: found.placements[at].clone(),
        reasons: reasons::of(database, &links, &found, at),
    });
    Proposal {
        root: found.root.clone(),
        tables: tables.collect(),
        obstacles: rules::obstacles(database, &links, &found.placements),
        statements: found.statements.clone(),
        score: found.score,
        alternatives: found.alternatives.clone(),
    }
}

#[cfg(test)]
mod tests;
