//! What does not hold across shards as the database stands. The rules are those by which Pleat refuses a schema change.

use super::facts::{Database, ForeignKey, Links, TableFacts, Unique};
use super::placement::Placed;

/// Something that has to be changed before a table can be placed as proposed.
#[derive(Clone, Debug, PartialEq)]
pub struct Obstacle {
    /// The table, as the catalog would have it.
    pub table: String,
    pub kind: ObstacleKind,
    /// What it is: `primary key orders_pkey (id)`.
    pub what: String,
    pub why: String,
    /// What to do about it.
    pub remedy: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObstacleKind {
    /// A unique constraint without the shard key.
    Unique,
    /// A foreign key to rows that may be on another shard.
    ForeignKey,
    /// A shard key that may be NULL.
    NullKey,
}

impl ObstacleKind {
    pub fn name(self) -> &'static str {
        match self {
            ObstacleKind::Unique => "unique",
            ObstacleKind::ForeignKey => "foreign_key",
            ObstacleKind::NullKey => "nullable_key",
        }
    }
}

// How much each of them speaks against a placement.

/// Something is lost, or has to be looked after by the application.
const LOST: f64 = 1.0;
/// A column is to be added to a key, and nothing that matters is lost.
const WIDENED: f64 = 0.5;
const NOT_NULL: f64 = 0.25;

/// One of them, not told yet: what is tried thousands of times need not be put into words.
enum Broken<'a> {
    Unique { table: &'a TableFacts, key: &'a str, unique: &'a Unique },
    Null { table: &'a TableFacts, key: &'a str },
    Reference { reference: &'a ForeignKey, from: Side<'a>, to: Side<'a> },
}

type Side<'a> = (&'a TableFacts, &'a Placed);

/// All of them, by table.
pub(super) fn obstacles(database: &Database, links: &Links, placements: &[Placed]) -> Vec<Obstacle> {
    let mut found = Vec::new();
    each(database, links, placements, |broken| found.push(broken.told()));
    found
}

/// How much all of them speak against the placements.
pub(super) fn weight(database: &Database, links: &Links, placements: &[Placed]) -> f64 {
    let mut all = 0.0;
    each(database, links, placements, |broken| all += broken.weight());
    all
}

fn each<'a>(database: &'a Database, links: &Links<'a>, placements: &'a [Placed], mut found: impl FnMut(Broken<'a>)) {
    for (at, table) in database.tables.iter().enumerate() {
        let placed = &placements[at];
        if let Some(key) = placed.column() {
            let has_key = |unique: &&Unique| unique.columns.iter().flatten().any(|column| column == key);
            let lacking = table.uniques.iter().filter(|unique| !has_key(unique));
            lacking.for_each(|unique| found(Broken::Unique { table, key, unique }));
            if table.column(key).is_some_and(|column| !column.not_null) {
                found(Broken::Null { table, key });
            }
        }
        for (reference, to) in &links.from[at] {
            let (from, to) = ((table, placed), (&database.tables[*to], &placements[*to]));
            if !holds(reference, from.1, to.1) {
                found(Broken::Reference { reference, from, to });
            }
        }
    }
}

fn holds(reference: &ForeignKey, from: &Placed, to: &Placed) -> bool {
    match (from, to) {
        (_, Placed::Reference) | (Placed::Single, Placed::Single) => true,
        (Placed::Sharded { column, key_type, .. }, Placed::Sharded { column: to_column, key_type: to_type, .. }) => {
            let mut pairs = reference.columns.iter().zip(&reference.to_columns);
            key_type == to_type && pairs.any(|(here, there)| here == column && there == to_column)
        }
        _ => false,
    }
}

/// The keys of both sides, by which a foreign key could be widened.
fn widened<'a>(reference: &ForeignKey, from: &'a Placed, to: &'a Placed) -> Option<(&'a str, &'a str)> {
    match (from, to) {
        (Placed::Sharded { column, key_type, .. }, Placed::Sharded { column: to_column, key_type: to_type, .. }) => {
            let free = !reference.columns.contains(column) && !reference.to_columns.contains(to_column);
            (free && key_type == to_type).then_some((column, to_column))
        }
        _ => None,
    }
}

fn is_primary(table: &TableFacts, unique: &Unique) -> bool {
    let columns: Option<Vec<&str>> = unique.columns.iter().map(Option::as_deref).collect();
    columns.is_some_and(|columns| columns == table.primary_key)
}

impl Broken<'_> {
    fn weight(&self) -> f64 {
        match self {
            Broken::Unique { table, unique, .. } if is_primary(table, unique) => WIDENED,
            Broken::Unique { .. } => LOST,
            Broken::Null { .. } => NOT_NULL,
            Broken::Reference { reference, from, to } => match widened(reference, from.1, to.1) {
                Some(_) => WIDENED,
                None => LOST,
            },
        }
    }

    fn told(&self) -> Obstacle {
        match self {
            Broken::Unique { table, key, unique } => of_unique(table, key, unique),
            Broken::Null { table, key } => Obstacle {
                table: table.name.clone(),
                kind: ObstacleKind::NullKey,
                what: format!("column {key}"),
                why: "it may be NULL, and a row without a shard key belongs to no shard".to_owned(),
                remedy: format!("give each row a {key}, and ALTER COLUMN {key} SET NOT NULL"),
            },
            Broken::Reference { reference, from, to } => of_reference(reference, *from, *to),
        }
    }
}

fn of_unique(table: &TableFacts, key: &str, unique: &Unique) -> Obstacle {
    let columns: Vec<&str> = unique.columns.iter().map(|column| column.as_deref().unwrap_or("an expression")).collect();
    let columns = columns.join(", ");
    let (kind, remedy) = match (is_primary(table, unique), unique.columns.contains(&None)) {
        (true, _) => (
            "primary key",
            format!(
                "make it PRIMARY KEY ({key}, {columns}); if the values alone must be unique, make them so where they come from (a UUID)"
            ),
        ),
        (false, false) => (
            "unique constraint",
            format!(
                "make it UNIQUE ({key}, {columns}), or keep the values in a table of their own that is sharded by them"
            ),
        ),
        (false, true) => ("unique constraint", format!("add {key} to the index, or do without it")),
    };
    Obstacle {
        table: table.name.clone(),
        kind: ObstacleKind::Unique,
        what: format!("{kind} {} ({columns})", unique.name),
        why: format!("it lacks the shard key {key}, so each shard could keep it among its own rows only"),
        remedy,
    }
}

fn of_reference(reference: &ForeignKey, (table, from): Side, (other, to): Side) -> Obstacle {
    let why = match (from.column(), to.column()) {
        (Some(column), Some(to_column)) => format!(
            "{} is sharded by {column} and {} by {to_column}, and it does not lead from one to the other",
            table.name, other.name
        ),
        _ => format!(
            "{} would be {} and {} {}, so the rows may be on different shards",
            table.name,
            from.name(),
            other.name,
            to.name()
        ),
    };
    let columns = reference.columns.join(", ");
    let remedy = match widened(reference, from, to) {
        Some((column, to_column)) => format!(
            "if both rows have the same key, make it FOREIGN KEY ({column}, {columns}) REFERENCES {} ({to_column}, {}); else drop it",
            other.name,
            reference.to_columns.join(", ")
        ),
        None => format!("drop it, and look after {columns} in the application"),
    };
    Obstacle {
        table: table.name.clone(),
        kind: ObstacleKind::ForeignKey,
        what: format!("foreign key {} ({columns}) to {}", reference.name, other.name),
        why,
        remedy,
    }
}
