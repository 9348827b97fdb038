//! Why a table is placed as it is, in sentences.

use super::facts::{Database, Links, Oddity, TableFacts};
use super::judge::Verdict;
use super::placement::{Placed, Why, may_be_reference};
use super::search::Found;

/// A key is told to be uneven below this.
const EVEN_ENOUGH: f64 = 0.9;

pub(super) fn of(database: &Database, links: &Links, found: &Found, at: usize) -> Vec<String> {
    let table = &database.tables[at];
    let mut reasons = match &found.placements[at] {
        Placed::Sharded { column, why, .. } => of_sharded(database, found, at, column, why),
        Placed::Reference => of_reference(table, links.to[at].len()),
        Placed::Single => of_single(database, links, found, at),
    };
    reasons.extend(of_statements(database, found, at));
    reasons
}

fn of_sharded(database: &Database, found: &Found, at: usize, column: &str, why: &Why) -> Vec<String> {
    let table = &database.tables[at];
    let mut reasons = vec![match why {
        Why::Root => {
            let members = found.family.iter().flat_map(|family| &family.members);
            let with = members
                .filter(|(member, (column, _))| **member != at && found.placements[**member].column() == Some(column));
            match with.count() {
                0 => format!("It is sharded by its own {column}; nothing else hangs on it."),
                1 => format!("One other table hangs on its {column}, and lies with it."),
                several => format!("{several} other tables hang on its {column}, and lie with it."),
            }
        }
        Why::ForeignKey { name, to } => {
            format!("Its foreign key {name} leads by {column} to {to}: its rows lie with the rows that they refer to.")
        }
        Why::Name => match found.root.as_deref() {
            Some(root) if root.contains('.') => {
                format!(
                    "Its {column} is called as what refers to {root} is, though no foreign key says that it is the same."
                )
            }
            _ => format!("Other tables have a {column}, too, though no foreign key says that it is the same."),
        },
        Why::Own => format!("It is sharded by its own primary key, {column}."),
    }];
    if let Some(facts) = table.column(column).filter(|facts| facts.evenness() < EVEN_ENOUGH) {
        let values =
            facts.distinct.map_or("an unknown number of".to_owned(), |distinct| format!("about {distinct:.0}"));
        let top = 100.0 * facts.top_share.unwrap_or_default();
        reasons.push(format!(
            "Its rows spread unevenly: {column} has {values} values, and the most frequent one is that of {top:.1} % of the rows."
        ));
    }
    reasons
}

fn of_reference(table: &TableFacts, referring: usize) -> Vec<String> {
    let used = match referring {
        0 => "statements join it with others".to_owned(),
        1 => "one foreign key refers to it".to_owned(),
        several => format!("{several} foreign keys refer to it"),
    };
    vec![format!(
        "It is small ({} rows) and seldom changed ({} changes, {} reads), and {used}: with a copy on each shard all that stays on one.",
        table.rows, table.changes, table.scans
    )]
}

fn of_single(database: &Database, links: &Links, found: &Found, at: usize) -> Vec<String> {
    let table = &database.tables[at];
    let odd = match &table.oddity {
        Some(Oddity::Partitioned) => {
            "It is partitioned, and only plain tables are sharded: Pleat's own partitions would take the place of its"
                .to_owned()
        }
        Some(Oddity::PartitionOf(parent)) => format!("It is a partition of {parent}, and stays where that is"),
        Some(Oddity::Inherits) => {
            "It inherits from another table or others inherit from it, and only plain tables are sharded".to_owned()
        }
        Some(Oddity::Foreign) => "It is a foreign table, whose rows are elsewhere".to_owned(),
        Some(Oddity::Unlogged) => {
            "It is unlogged: its changes are in no stream, so its rows could not move (ALTER TABLE … SET LOGGED)"
                .to_owned()
        }
        None => String::new(),
    };
    if !odd.is_empty() {
        return vec![format!("{odd}.")];
    }
    let keys = table.columns.iter().filter(|column| column.key_type().is_ok()).count();
    if keys == 0 {
        return vec!["None of its columns can be a shard key: those are integers, texts, UUIDs and bytea.".to_owned()];
    }
    // What refers to a family's table without the family's column could follow it if it had the column.
    let parent = links.from[at]
        .iter()
        .find_map(|(reference, to)| found.placements[*to].column().map(|column| (reference, *to, column)));
    let mut reasons = Vec::new();
    if let Some((reference, to, column)) = parent {
        reasons.push(format!(
            "Its foreign key {} leads to {}, which is sharded by {column}, but it has no such column of its own; with one it could lie with those rows.",
            reference.name, database.tables[to].name
        ));
    } else if may_be_reference(table, found.used[at]) {
        reasons.push("A copy on each shard would be possible, and gains nothing that is known of.".to_owned());
    } else {
        reasons.push(
            "It hangs on no table that is sharded, and spreading it by itself would gain nothing that is known of."
                .to_owned(),
        );
    }
    reasons
}

/// What its statements become.
fn of_statements(database: &Database, found: &Found, at: usize) -> Option<String> {
    let key = &database.tables[at].key;
    let mentioning = || found.statements.iter().zip(&found.weights).filter(|(judged, _)| judged.tables.contains(key));
    let all: f64 = mentioning().map(|(_, weight)| weight).sum();
    if all <= 0.0 {
        return None;
    }
    let share = |wanted: fn(&Verdict) -> bool| {
        mentioning().filter(|(judged, _)| wanted(&judged.verdict)).map(|(_, weight)| weight).sum::<f64>() / all * 100.0
    };
    let parts = [
        ("go to one shard", share(|verdict| matches!(verdict, Verdict::OneShard | Verdict::AnyShard))),
        ("to the single tables' shard", share(|verdict| matches!(verdict, Verdict::SingleShard))),
        ("to several", share(|verdict| matches!(verdict, Verdict::SeveralShards | Verdict::EveryCopy))),
        ("are refused", share(|verdict| matches!(verdict, Verdict::Refused { .. }))),
    ];
    let told: Vec<String> =
        parts.iter().filter(|(_, share)| *share >= 0.5).map(|(what, share)| format!("{share:.0} % {what}")).collect();
    (!told.is_empty()).then(|| format!("Of its statements (by time and calls) {}.", told.join(", ")))
}
