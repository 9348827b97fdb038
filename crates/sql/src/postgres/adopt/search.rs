//! Trying families and places for tables, and what each is worth.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::Tables;

use super::facts::{Database, Links};
use super::families::{Family, families};
use super::judge::{Judged, judge};
use super::placement::{Placed, Why, may_be_reference};
use super::rules;
use super::{REFINED_MAX, ROUNDS_MAX, STATEMENTS_MAX};
use crate::Schema;

/// A place has to be better by so much to be taken instead of another.
const BETTER: f64 = 1e-9;
/// What of [`Score`] counts how much.
const TOGETHER_WEIGHT: f64 = 1.0;
const OBSTACLES_WEIGHT: f64 = 0.25;

/// What a placement is worth. More is better; the parts are what they say, and `total` weighs them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// What becomes of the statements, from -1 (all refused) to 1 (all on one shard of many), by the mean of their shares of time and calls. Without
    /// statistics of statements, the same of the tables' own counters.
    pub statements: f64,
    /// The share of all bytes that spread over shards, 0 to 1.
    pub spread: f64,
    /// What lies together with the root's rows: the mean of its shares of the tables and of their bytes.
    pub together: f64,
    /// Obstacles for each table, those that are easily mended counted in part.
    pub obstacles: f64,
}

impl Score {
    pub fn total(&self) -> f64 {
        self.statements + self.spread + TOGETHER_WEIGHT * self.together - OBSTACLES_WEIGHT * self.obstacles
    }
}

/// A family that was tried and not taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    pub root: String,
    /// Tables that would be sharded.
    pub sharded: usize,
    pub score: Score,
}

/// What was found.
pub(super) struct Found {
    pub root: Option<String>,
    pub family: Option<Family>,
    pub placements: Vec<Placed>,
    pub statements: Vec<Judged>,
    /// Each statement's weight; all together 1.
    pub weights: Vec<f64>,
    pub score: Score,
    pub alternatives: Vec<Alternative>,
    /// Tables that are used together with others: foreign keys refer to them, or statements name both.
    pub used: Vec<bool>,
}

pub(super) fn search(database: &Database) -> Found {
    let search = Search::new(database);
    let single = State::new(&search, None, vec![Placed::Single; database.tables.len()]);
    let mut tried: Vec<(Option<Family>, State)> = vec![(None, single)];
    for family in families(database, &search.links) {
        let mut state = State::new(&search, Some(&family), search.start(&family));
        search.refine(&family, &mut state);
        tried.push((Some(family), state));
    }
    // The first of equals: those come first that have most tables.
    let mut best = 0;
    for (at, (_, state)) in tried.iter().enumerate() {
        if state.score.total() > tried[best].1.score.total() + BETTER {
            best = at;
        }
    }
    let (family, state) = tried.swap_remove(best);
    let sharded = |placements: &[Placed]| placements.iter().filter(|placed| placed.column().is_some()).count();
    let mut alternatives: Vec<Alternative> = tried
        .into_iter()
        .filter(|(_, other)| other.placements != state.placements)
        .map(|(family, state)| Alternative {
            root: family.map_or_else(|| "nothing sharded".to_owned(), |family| family.label),
            sharded: sharded(&state.placements),
            score: state.score,
        })
        .collect();
    alternatives.sort_by(|one, other| {
        other.score.total().total_cmp(&one.score.total()).then_with(|| one.root.cmp(&other.root))
    });
    Found {
        root: family.as_ref().map(|family| family.label.clone()),
        family,
        placements: state.placements,
        statements: state.statements,
        score: state.score,
        alternatives,
        weights: search.weights,
        used: search.used,
    }
}

/// What is the same for all that is tried.
struct Search<'d> {
    database: &'d Database,
    weights: Vec<f64>,
    /// The statements that name a table, by the table's place.
    naming: Vec<Vec<usize>>,
    /// Tables that are used together with others.
    used: Vec<bool>,
    links: Links<'d>,
}

/// One thing that is tried.
struct State {
    placements: Vec<Placed>,
    tables: Tables,
    statements: Vec<Judged>,
    score: Score,
}

impl<'d> Search<'d> {
    fn new(database: &'d Database) -> Search<'d> {
        let statements = &database.statements[..database.statements.len().min(STATEMENTS_MAX)];
        let mut naming = vec![Vec::new(); database.tables.len()];
        let links = Links::of(database);
        let referred = links.to.iter().enumerate();
        let mut used: Vec<bool> =
            referred.map(|(at, references)| references.iter().any(|(_, from)| *from != at)).collect();
        for (at, statement) in statements.iter().enumerate() {
            let words = words(&statement.text);
            let named: Vec<usize> =
                (0..database.tables.len()).filter(|table| words.contains(bare(&database.tables[*table].key))).collect();
            for table in &named {
                naming[*table].push(at);
                used[*table] |= named.len() > 1;
            }
        }
        let mut search = Search { database, weights: Vec::new(), naming, used, links };
        search.weights = search.weigh();
        search
    }

    /// The mean of a statement's shares of time and of calls, among those that are about tables.
    fn weigh(&self) -> Vec<f64> {
        let statements = &self.database.statements[..self.database.statements.len().min(STATEMENTS_MAX)];
        let mut about = vec![false; statements.len()];
        for at in self.naming.iter().flatten() {
            about[*at] = true;
        }
        let counted = || statements.iter().zip(&about).filter(|(_, about)| **about).map(|(statement, _)| statement);
        let calls: f64 = counted().map(|statement| statement.calls as f64).sum();
        let time: f64 = counted().map(|statement| statement.time_ms).sum();
        let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
        let weight = |(statement, about): (&super::StatementFacts, &bool)| match about {
            true => (share(statement.calls as f64, calls) + share(statement.time_ms, time)) / 2.0,
            false => 0.0,
        };
        statements.iter().zip(&about).map(weight).collect()
    }

    /// A family's tables by its column, and of the others those as reference tables that may be.
    fn start(&self, family: &Family) -> Vec<Placed> {
        let tables = self.database.tables.iter().enumerate();
        let placed = tables.map(|(at, table)| match family.members.get(&at) {
            Some((column, why)) => {
                Placed::Sharded { column: column.clone(), key_type: family.key_type, why: why.clone() }
            }
            None if may_be_reference(table, self.used[at]) => Placed::Reference,
            None => Placed::Single,
        });
        placed.collect()
    }

    /// Give each table a better place, if it has one, the largest first.
    fn refine(&self, family: &Family, state: &mut State) {
        let mut order: Vec<usize> = (0..self.database.tables.len()).collect();
        order.sort_by_key(|at| (std::cmp::Reverse(self.database.tables[*at].bytes), *at));
        order.truncate(REFINED_MAX);
        for _ in 0..ROUNDS_MAX {
            let mut changed = false;
            for at in &order {
                for place in self.places(family, *at) {
                    changed |= state.try_place(self, family, *at, place);
                }
            }
            if !changed {
                return;
            }
        }
    }

    fn places(&self, family: &Family, at: usize) -> Vec<Placed> {
        let table = &self.database.tables[at];
        let mut places = vec![Placed::Single];
        if may_be_reference(table, self.used[at]) {
            places.push(Placed::Reference);
        }
        if let Some((column, why)) = family.members.get(&at) {
            let (column, why) = (column.clone(), why.clone());
            places.push(Placed::Sharded { column, key_type: family.key_type, why });
        }
        if let Some(own) = table.own_key().filter(|_| table.oddity.is_none())
            && let Some(Ok(key_type)) = table.column(own).map(super::ColumnFacts::key_type)
            && family.members.get(&at).is_none_or(|(column, _)| column != own)
        {
            places.push(Placed::Sharded { column: own.to_owned(), key_type, why: Why::Own });
        }
        places
    }

    fn score(&self, family: Option<&Family>, placements: &[Placed], statements: &[Judged]) -> Score {
        let tables = &self.database.tables;
        let count = tables.len().max(1) as f64;
        let even = |at: usize| {
            let column = placements[at].column().and_then(|name| tables[at].column(name));
            column.map_or(0.0, super::ColumnFacts::evenness)
        };
        let bytes: f64 = tables.iter().map(|table| table.bytes as f64).sum();
        let spread = match bytes > 0.0 {
            true => (0..tables.len()).map(|at| even(at) * tables[at].bytes as f64).sum::<f64>() / bytes,
            false => (0..tables.len()).map(even).sum::<f64>() / count,
        };
        let in_family = |at: &usize| {
            let member = family.and_then(|family| family.members.get(at));
            member.is_some_and(|(column, _)| placements[*at].column() == Some(column))
        };
        let members: Vec<usize> = (0..tables.len()).filter(in_family).collect();
        let with_them: f64 = members.iter().map(|at| tables[*at].bytes as f64).sum();
        let of_tables = members.len() as f64 / count;
        let together = match (members.len(), bytes > 0.0) {
            // One table alone is together with nothing.
            (0 | 1, _) => 0.0,
            (_, true) => (of_tables + with_them / bytes) / 2.0,
            (_, false) => of_tables,
        };
        let against = rules::weight(self.database, &self.links, placements);
        let statements = match self.weights.iter().sum::<f64>() > 0.0 {
            true => {
                let worth = statements.iter().zip(&self.weights);
                worth.filter_map(|(judged, weight)| Some(judged.verdict.worth()? * weight)).sum()
            }
            false => self.by_counters(placements),
        };
        Score { statements, spread, together, obstacles: against / count }
    }

    /// What the tables' counters say, where nothing is known of statements.
    fn by_counters(&self, placements: &[Placed]) -> f64 {
        let (mut all, mut good) = (0.0, 0.0);
        for (table, placed) in self.database.tables.iter().zip(placements) {
            let (scans, changes) = (table.scans as f64, table.changes as f64);
            all += scans + changes;
            good += match placed {
                Placed::Sharded { .. } => scans + changes,
                Placed::Reference => scans - changes / 2.0,
                Placed::Single => 0.0,
            };
        }
        if all > 0.0 { good / all } else { 0.0 }
    }
}

impl State {
    fn new(search: &Search, family: Option<&Family>, placements: Vec<Placed>) -> State {
        let tables = search.database.tables.iter().zip(&placements).enumerate();
        let tables = tables.map(|(at, (table, placed))| {
            (table.key.clone(), table.in_catalog(u32::try_from(at).unwrap_or(u32::MAX), placed.kind()))
        });
        let tables = tables.collect();
        let mut state = State { placements, tables, statements: Vec::new(), score: Score::default() };
        let all = 0..search.weights.len();
        state.statements = all.map(|at| state.judge(search, at)).collect();
        state.score = search.score(family, &state.placements, &state.statements);
        state
    }

    fn judge(&self, search: &Search, at: usize) -> Judged {
        let default_keys = BTreeMap::new();
        let schema = Schema { tables: &self.tables, views: &search.database.views, default_keys: &default_keys };
        judge(&search.database.statements[at].text, &schema)
    }

    /// Place a table elsewhere, unless that is no better.
    fn try_place(&mut self, search: &Search, family: &Family, at: usize, place: Placed) -> bool {
        if self.placements[at] == place {
            return false;
        }
        let before = std::mem::replace(&mut self.placements[at], place);
        self.place(search, at);
        let concerned = &search.naming[at];
        let judged: Vec<Judged> = concerned.iter().map(|statement| self.judge(search, *statement)).collect();
        let old: Vec<Judged> = concerned
            .iter()
            .zip(judged)
            .map(|(statement, judged)| std::mem::replace(&mut self.statements[*statement], judged))
            .collect();
        let score = search.score(Some(family), &self.placements, &self.statements);
        if score.total() > self.score.total() + BETTER {
            self.score = score;
            return true;
        }
        self.placements[at] = before;
        self.place(search, at);
        for (statement, judged) in concerned.iter().zip(old) {
            self.statements[*statement] = judged;
        }
        false
    }

    fn place(&mut self, search: &Search, at: usize) {
        if let Some(table) = self.tables.get_mut(&search.database.tables[at].key) {
            table.kind = self.placements[at].kind();
        }
    }
}

pub(super) fn bare(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// The words of a text, in lower case.
fn words(text: &str) -> BTreeSet<String> {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    text.split(|c| !part(c)).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}
