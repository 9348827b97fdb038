//! Columns that many tables can be spread by together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pleat_cluster::KeyType;

use super::FAMILIES_MAX;
use super::facts::{Database, Links};
use super::placement::Why;

/// A column, and all tables that have it in one way or another.
#[derive(Clone, Debug)]
pub(super) struct Family {
    /// For people: `customers.id`, or `tenant_id` where no table is the root of it.
    pub label: String,
    pub key_type: KeyType,
    /// By the table's place.
    pub members: BTreeMap<usize, (String, Why)>,
}

/// All of them, those with most tables and bytes first; none twice.
pub(super) fn families(database: &Database, links: &Links) -> Vec<Family> {
    let mut found: Vec<Family> = Vec::new();
    for (table, column) in roots(database, links) {
        found.extend(rooted(database, links, table, &column));
    }
    for name in shared_names(database) {
        found.extend(named(database, links, &name));
    }
    let bytes = |family: &Family| family.members.keys().map(|at| database.tables[*at].bytes).sum::<u64>();
    found.sort_by_key(|family| {
        (std::cmp::Reverse(family.members.len()), std::cmp::Reverse(bytes(family)), family.label.clone())
    });
    let mut seen = BTreeSet::new();
    found.retain(|family| {
        let columns: Vec<_> = family.members.iter().map(|(at, (column, _))| (*at, column.clone())).collect();
        seen.insert(columns)
    });
    found.truncate(FAMILIES_MAX);
    found
}

/// Columns that foreign keys lead to, and primary keys of one column.
fn roots(database: &Database, links: &Links) -> BTreeSet<(usize, String)> {
    let led_to = links.to.iter().enumerate().flat_map(|(at, references)| {
        let columns = references.iter().flat_map(|(reference, _)| &reference.to_columns);
        columns.map(move |column| (at, column.clone()))
    });
    let own = database.tables.iter().enumerate().filter_map(|(at, table)| Some((at, table.own_key()?.to_owned())));
    led_to.chain(own).collect()
}

fn rooted(database: &Database, links: &Links, root: usize, column: &str) -> Option<Family> {
    let table = &database.tables[root];
    let key_type = key_type(database, root, column)?;
    let mut members = BTreeMap::from([(root, (column.to_owned(), Why::Root))]);
    follow(database, links, key_type, &mut members);
    let mut names: BTreeSet<String> =
        members.iter().filter(|(at, _)| **at != root).map(|(_, (column, _))| column.clone()).collect();
    names.insert(column.to_owned());
    let bare = table.key.rsplit('.').next().unwrap_or(&table.key);
    if column == "id" {
        names.insert(format!("{}_id", singular(bare)));
    }
    join_by_name(database, key_type, &names, &mut members);
    Some(Family { label: format!("{}.{column}", table.name), key_type, members })
}

/// A family without a root: tables that have a column of one name.
fn named(database: &Database, links: &Links, name: &str) -> Option<Family> {
    let mut members = BTreeMap::new();
    let all = 0..database.tables.len();
    let key_type = all.clone().find_map(|at| key_type(database, at, name))?;
    join_by_name(database, key_type, &BTreeSet::from([name.to_owned()]), &mut members);
    follow(database, links, key_type, &mut members);
    Some(Family { label: name.to_owned(), key_type, members })
}

/// What refers to a member by the member's key.
fn follow(database: &Database, links: &Links, of: KeyType, members: &mut BTreeMap<usize, (String, Why)>) {
    let mut waiting: VecDeque<usize> = members.keys().copied().collect();
    while let Some(to) = waiting.pop_front() {
        let Some((key, _)) = members.get(&to).cloned() else { continue };
        for (reference, at) in &links.to[to] {
            let mut pairs = reference.columns.iter().zip(&reference.to_columns);
            let found = pairs.find(|(column, to)| **to == key && key_type(database, *at, column) == Some(of));
            if let (Some((column, _)), false) = (found, members.contains_key(at)) {
                let (name, to) = (reference.name.clone(), database.tables[to].name.clone());
                members.insert(*at, (column.clone(), Why::ForeignKey { name, to }));
                waiting.push_back(*at);
            }
        }
    }
}

fn join_by_name(
    database: &Database,
    of: KeyType,
    names: &BTreeSet<String>,
    members: &mut BTreeMap<usize, (String, Why)>,
) {
    // What every table has is called the same without being the same.
    let telling = |name: &&String| !matches!(name.as_str(), "id" | "uuid" | "key" | "code" | "name");
    for at in 0..database.tables.len() {
        let name = names.iter().filter(telling).find(|name| key_type(database, at, name) == Some(of));
        if let Some(name) = name {
            members.entry(at).or_insert_with(|| (name.clone(), Why::Name));
        }
    }
}

/// Names that two tables have, and that look like keys.
fn shared_names(database: &Database) -> BTreeSet<String> {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for column in database.tables.iter().flat_map(|table| &table.columns) {
        if column.key_type().is_ok() && column.name.ends_with("id") && column.name != "id" {
            *count.entry(&column.name).or_default() += 1;
        }
    }
    count.into_iter().filter(|(_, tables)| *tables > 1).map(|(name, _)| name.to_owned()).collect()
}

fn key_type(database: &Database, table: usize, column: &str) -> Option<KeyType> {
    let table = database.tables.get(table).filter(|table| table.oddity.is_none())?;
    table.column(column)?.key_type().ok()
}

/// `companies` is of companies; the rest is English enough.
fn singular(name: &str) -> String {
    match (name.strip_suffix("ies"), name.strip_suffix('s')) {
        (Some(stem), _) => format!("{stem}y"),
        (None, Some(stem)) => stem.to_owned(),
        (None, None) => name.to_owned(),
    }
}
