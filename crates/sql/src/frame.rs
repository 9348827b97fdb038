//! Where the rows of a query are, and what its columns carry.
//!
//! [`Lie`] says how the answer of a query relates to what shards find on their own rows; [`Key`] says which of its
//! columns tell the shard of a row. A [`Frame`] is what the expressions of one SELECT can name.

use std::collections::BTreeSet;

use pleat_cluster::{Column, KeyType};

/// How a query's rows relate to the rows that each shard finds when it runs the query on what it owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Every shard finds all of them: reference tables and constants.
    Same,
    /// The shard of the outer query's row finds all of them: a subquery tied to that row by the shard key.
    Local,
    /// They are the disjoint union of what the shards find.
    Spread,
    /// As a set they are the union, but the same row may be found on several shards. `distinct`: and duplicates
    /// are to be removed anyway.
    Set { distinct: bool },
}

/// Whether a column's values are shard keys of the shard that finds the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    No,
    /// The key, or NULL (a row that an outer join made up).
    OrNull(KeyType),
    Always(KeyType),
}

impl Key {
    pub fn key_type(self) -> Option<KeyType> {
        match self {
            Key::No => None,
            Key::OrNull(key_type) | Key::Always(key_type) => Some(key_type),
        }
    }

    fn or_null(self) -> Key {
        self.key_type().map_or(Key::No, Key::OrNull)
    }

    /// What a column carries whose rows come from both.
    pub fn both(self, other: Key) -> Key {
        match (self, other) {
            (Key::Always(a), Key::Always(b)) if a == b => Key::Always(a),
            _ if self.key_type().is_some() && self.key_type() == other.key_type() => self.or_null(),
            _ => Key::No,
        }
    }
}

/// What decides how a column's values compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind<'a> {
    /// As this column, of a STRICT table if so marked.
    Column(&'a Column, bool),
    /// An expression: no affinity, bytewise.
    Plain,
    Unknown,
}

/// A column of a query or of a source.
#[derive(Clone, Debug)]
pub(crate) struct OutColumn<'a> {
    /// As SQLite names it.
    pub name: String,
    pub key: Key,
    pub kind: Kind<'a>,
}

/// A query's rows.
#[derive(Clone, Debug)]
pub(crate) struct Shape<'a> {
    pub lie: Lie,
    /// `None`: not known.
    pub columns: Option<Vec<OutColumn<'a>>>,
    /// The mentions of sharded tables whose rows decide which shards have any: for each row of the answer there is
    /// one of them with a row on the same shard.
    pub drivers: Vec<usize>,
    /// All mentions of sharded tables whose rows matter only with the keys of the rows of the answer.
    pub mentions: Vec<usize>,
    /// Its rows come in an order that may matter.
    pub ordered: bool,
}

/// One source of a FROM.
#[derive(Clone, Debug)]
pub(crate) struct Source<'a> {
    pub alias: String,
    pub shape: Shape<'a>,
    /// On the side of an outer join that gets NULLs.
    pub nullable: bool,
    /// Columns (in lower case) that `USING` or NATURAL merged into those of a source before.
    pub merged: BTreeSet<String>,
}

impl<'a> Source<'a> {
    pub fn find(&self, name: &str) -> Option<usize> {
        self.shape.columns.as_ref()?.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }

    pub fn column(&self, at: usize) -> Option<OutColumn<'a>> {
        let mut column = self.shape.columns.as_ref()?.get(at)?.clone();
        if self.shape.lie != Lie::Spread {
            column.key = Key::No;
        } else if self.nullable {
            column.key = column.key.or_null();
        }
        Some(column)
    }
}

/// The sources that the expressions of a SELECT can name, and its aliases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frame<'a> {
    pub sources: Vec<Source<'a>>,
    pub aliases: BTreeSet<String>,
    /// Columns merged by a RIGHT or FULL join: neither side's.
    pub coalesced: BTreeSet<String>,
}

/// What a column's name stands for.
#[derive(Clone, Debug)]
pub(crate) enum Named<'a> {
    Column {
        frame: usize,
        source: usize,
        column: OutColumn<'a>,
    },
    /// An alias, something merged, or something inside a source that is not known.
    Unclear,
    /// Nothing in sight.
    Nothing,
}

/// Looks a column up as SQLite does: innermost frame first.
pub(crate) fn resolve<'a>(frames: &[Frame<'a>], qualifier: Option<&str>, name: &str) -> Named<'a> {
    for (at, frame) in frames.iter().enumerate().rev() {
        if qualifier.is_none() && frame.coalesced.contains(name) {
            return Named::Unclear;
        }
        for (number, source) in frame.sources.iter().enumerate() {
            if qualifier.is_some_and(|qualifier| qualifier != source.alias) {
                continue;
            }
            if source.shape.columns.is_none() {
                return Named::Unclear;
            }
            if let Some(column) = source.find(name).and_then(|found| source.column(found)) {
                return Named::Column { frame: at, source: number, column };
            }
        }
        if qualifier.is_none() && frame.aliases.contains(name) {
            return Named::Unclear;
        }
    }
    Named::Nothing
}
