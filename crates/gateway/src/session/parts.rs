//! From a request's writes to each shard's part, and from the shards' results to the request's.
//!
//! A part is a list of statements, in the request's order. What each of them counts for in the answer is its
//! [`Share`]: several statements, on several shards, may stand for one statement of the request.
//!
//! # Repetitions
//!
//! A shard remembers under the request's idempotency key what *its* part gave. When the request is repeated, the
//! parts may be cut differently: a partition has moved, with a copy of the key, and two shards may now give the same
//! part's results. So a part that a client may repeat begins (or ends, if it was not known before) with a statement that
//! only says which part it is ([`LABEL`]), and that is remembered with the rest. Parts are then told apart, each is counted once, and it shows when one is missing.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{Catalog, Millis, PartitionId, ShardId};
use pleat_engine::{Stamp, Statement, StatementResult};
use pleat_sql::{Bound, KeyedWrite, SpreadWrite};

use super::write::statement;
use super::{Effect, Failure, place};

/// How the label of a part begins. Then come the shard that it is for, the number of parts, and the statements'
/// shares: `pleat part 2/3 0,1*`. It stands in a column's name, because a shard that leaves the rows of a large result
/// out of its memory keeps these.
const LABEL: &str = "pleat part ";

/// What a statement's result counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// The statement of the request, from 0.
    pub statement: usize,
    /// Whether its rows count. A row that only gives way to its successor does not.
    pub counted: bool,
    /// Whether the id that it inserted last may be the statement's.
    pub last: bool,
}

/// One shard's part.
#[derive(Debug, Default)]
pub(super) struct ShardPart {
    pub units: BTreeSet<PartitionId>,
    pub statements: Vec<Statement>,
    pub shares: Vec<Share>,
    /// The content version that the part was computed on.
    pub base: Option<u64>,
}

/// A request's parts.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub shards: BTreeMap<ShardId, ShardPart>,
    pub notices: Vec<String>,
}

impl Parts {
    /// Add a statement of the request that says itself where it goes.
    pub(super) fn add(&mut self, at: usize, write: &SpreadWrite, catalog: &Catalog) -> Result<(), Failure> {
        self.notices.extend(write.notice());
        match write {
            SpreadWrite::Rows(rows) => {
                for (shard, units) in by_owner(rows.partitions(), catalog)? {
                    if let Some(bound) = rows.on(&units) {
                        let last = rows.last().is_some_and(|last| units.contains(&last));
                        self.push(shard, units, statement(bound), Share { statement: at, counted: true, last });
                    }
                }
            }
            SpreadWrite::Same { prune, sql, sql_filtered, params } => {
                let units = prune.clone().unwrap_or_else(|| (0..catalog.partition_count).map(PartitionId).collect());
                let mut owners = by_owner(units, catalog)?;
                if owners.is_empty() {
                    owners.insert(place::anchor(catalog)?, BTreeSet::new());
                }
                for (shard, units) in owners {
                    let mut statement = Statement::new(sql.as_ref(), params.clone());
                    statement.filtered = sql_filtered.as_deref().map(str::to_owned);
                    self.push(shard, units, statement, Share { statement: at, counted: true, last: true });
                }
            }
            SpreadWrite::Reference(bound) => {
                let anchor = place::anchor(catalog)?;
                for shard in catalog.active_shards() {
                    let statement = Statement { reference: Some(0), ..statement(bound.clone()) };
                    // All shards give the same.
                    let answers = shard.id == anchor;
                    let share = Share { statement: at, counted: answers, last: answers };
                    self.push(shard.id, BTreeSet::new(), statement, share);
                }
            }
            SpreadWrite::Computed(_) => {
                return Err(Failure::internal("a write whose rows have to be read first was planned without them"));
            }
        }
        Ok(())
    }

    /// Add the statements that a computed statement of the request came to.
    pub(super) fn add_keyed(&mut self, at: usize, writes: Vec<KeyedWrite>, catalog: &Catalog) -> Result<(), Failure> {
        let last = writes.iter().rposition(|write| write.counted);
        for (number, write) in writes.into_iter().enumerate() {
            let share = Share { statement: at, counted: write.counted, last: Some(number) == last };
            let mut owners = by_owner(write.units, catalog)?.into_iter();
            let (shard, units) = match owners.next() {
                Some(owner) => owner,
                None => (place::anchor(catalog)?, BTreeSet::new()),
            };
            if owners.next().is_some() {
                return Err(Failure::internal("a computed row has keys of several shards"));
            }
            self.push(shard, units, statement(write.statement), share);
        }
        Ok(())
    }

    /// A request that is wholly one shard's.
    pub(super) fn whole(shard: ShardId, units: Vec<PartitionId>, statements: Vec<Bound>) -> Self {
        let mut parts = Self::default();
        let units: BTreeSet<_> = units.into_iter().collect();
        for (at, bound) in statements.into_iter().enumerate() {
            let share = Share { statement: at, counted: true, last: true };
            parts.push(shard, units.clone(), statement(bound), share);
        }
        parts
    }

    /// See that a shard whose rows were read is still at this version.
    pub(super) fn validate(&mut self, shard: ShardId, version: u64) {
        self.shards.entry(shard).or_default().base = Some(version);
    }

    fn push(&mut self, shard: ShardId, units: BTreeSet<PartitionId>, statement: Statement, share: Share) {
        let part = self.shards.entry(shard).or_default();
        part.units.extend(units);
        part.statements.push(statement);
        part.shares.push(share);
    }

    /// Give all statements the same "now", and each its own randomness.
    pub(super) fn stamp(&mut self, now_ms: Millis, seed: u64) {
        for (shard, part) in &mut self.shards {
            for (number, statement) in (1_u64..).zip(&mut part.statements) {
                let seed = mixed(seed, (u64::from(shard.0) << 32) | number);
                statement.stamp = Some(Stamp { now_ms, seed, undone: None });
            }
        }
    }

    /// Let writes to reference tables run with the same "now" and randomness on every shard.
    pub(super) fn agree(&mut self, now_ms: Millis, seed: u64) {
        for part in self.shards.values_mut() {
            for (statement, share) in part.statements.iter_mut().zip(&part.shares) {
                if statement.reference.is_some() {
                    let seed = mixed(seed, share.statement as u64);
                    statement.stamp = Some(Stamp { now_ms, seed, undone: None });
                }
            }
        }
    }

    /// Let each part say which it is.
    pub(super) fn label(&mut self) {
        let count = self.shards.len();
        for (shard, part) in &mut self.shards {
            part.statements.insert(0, label(*shard, count, &part.shares));
        }
    }

    /// What the parts of a transaction say last that a client may repeat: which they are. The one that has the key's `home`
    /// takes it along.
    pub(super) fn labels(
        shards: &BTreeSet<ShardId>,
        shares: &BTreeMap<ShardId, Vec<Share>>,
        home: (ShardId, PartitionId),
    ) -> BTreeMap<ShardId, ShardPart> {
        let part = |shard: &ShardId| {
            let shares = shares.get(shard).map_or(&[][..], Vec::as_slice);
            let statements = vec![label(*shard, shards.len(), shares)];
            let units = (*shard == home.0).then_some(home.1).into_iter().collect();
            (*shard, ShardPart { units, statements, ..ShardPart::default() })
        };
        shards.iter().map(part).collect()
    }
}

fn label(shard: ShardId, parts: usize, shares: &[Share]) -> Statement {
    Statement::new(format!("SELECT 1 AS \"{}\"", label_text(shard, parts, shares)), [])
}

fn label_text(shard: ShardId, parts: usize, shares: &[Share]) -> String {
    let shares: Vec<_> = shares.iter().map(Share::write).collect();
    format!("{LABEL}{}/{parts} {}", shard.0, shares.join(","))
}

/// Different for every number, with the same seed.
fn mixed(seed: u64, number: u64) -> u64 {
    // The finalizer of SplitMix64.
    let mut mixed = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Units by their owners.
pub(super) fn by_owner(
    units: BTreeSet<PartitionId>,
    catalog: &Catalog,
) -> Result<BTreeMap<ShardId, BTreeSet<PartitionId>>, Failure> {
    let mut owners: BTreeMap<ShardId, BTreeSet<PartitionId>> = BTreeMap::new();
    for unit in units {
        let owner = catalog.owner(unit).ok_or_else(|| Failure::internal(format!("partition {unit} has no owner")))?;
        owners.entry(owner).or_default().insert(unit);
    }
    Ok(owners)
}

impl Share {
    fn write(&self) -> String {
        let counted = if self.counted { "" } else { "-" };
        let last = if self.last { "*" } else { "" };
        format!("{}{counted}{last}", self.statement)
    }

    fn read(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(['-', '*']);
        let statement = digits.parse().ok()?;
        let flags = &text[digits.len()..];
        Some(Self { statement, counted: !flags.contains('-'), last: flags.contains('*') })
    }
}

/// What the request's statements gave, from what the shards' gave. Rows come in the order of the shards.
pub(super) fn combine<'a>(
    statements: usize,
    parts: impl Iterator<Item = (&'a [Share], Vec<StatementResult>)>,
) -> Vec<Effect> {
    let mut effects = vec![Effect::default(); statements];
    for (shares, results) in parts {
        for (share, result) in shares.iter().zip(results) {
            let Some(effect) = effects.get_mut(share.statement) else { continue };
            if share.last {
                effect.last_insert_id = effect.last_insert_id.max(result.last_insert_rowid);
            }
            if share.counted {
                effect.rows_affected += result.rows_affected;
                effect.rows.extend(result.rows);
                if effect.columns.is_empty() {
                    effect.columns = result.columns;
                }
            }
        }
    }
    effects
}

/// What shards remember of a request that was done before.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// By the shard that each was for at the time.
    parts: BTreeMap<u32, (Vec<Share>, Vec<StatementResult>)>,
    /// How many there were.
    count: usize,
    /// The whole of it, when it was one shard's.
    whole: Option<Vec<StatementResult>>,
}

impl Remembered {
    /// What one shard remembers.
    pub(super) fn of(results: Vec<StatementResult>) -> Self {
        let mut remembered = Self::default();
        remembered.add(results);
        remembered
    }

    /// Add what another shard remembers: a part, or several that moves have brought to one shard.
    pub(super) fn add(&mut self, results: Vec<StatementResult>) {
        if results.iter().all(|result| read_label(result).is_none()) {
            self.whole = Some(results);
            return;
        }
        // All parts of a request have their labels first, or all have them last. A part without statements is a label alone.
        let (first, last) = (labelled_first(results.iter()), labelled_first(results.iter().rev()));
        let fits = first.iter().all(|(_, _, shares, results)| shares.len() == results.len())
            && results.first().and_then(read_label).is_some();
        for (part, count, shares, mut results) in if fits { first } else { last } {
            if !fits {
                results.reverse();
            }
            self.count = count;
            self.parts.insert(part, (shares, results));
        }
    }

    /// Whether nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.whole.is_none() && self.parts.is_empty()
    }

    /// Whether something was found, and nothing is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.whole.is_some() || (self.count > 0 && self.parts.len() >= self.count)
    }

    /// What the request gave.
    pub(super) fn effects(self, statements: usize) -> Vec<Effect> {
        match self.whole {
            Some(results) => results.into_iter().map(Effect::from).collect(),
            None => combine(statements, self.parts.values().map(|(shares, results)| (&**shares, results.clone()))),
        }
    }
}

/// A part that is remembered: which it is, of how many, and what it gave.
type Part = (u32, usize, Vec<Share>, Vec<StatementResult>);

/// Parts that each begin with their label. What stands before the first label is nobody's.
fn labelled_first<'a>(results: impl Iterator<Item = &'a StatementResult>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for result in results {
        match (read_label(result), parts.last_mut()) {
            (Some((part, count, shares)), _) => parts.push((part, count, shares, Vec::new())),
            (None, Some((.., results))) => results.push(result.clone()),
            (None, None) => {}
        }
    }
    parts
}

fn read_label(result: &StatementResult) -> Option<(u32, usize, Vec<Share>)> {
    let (place, shares) = result.columns.first()?.strip_prefix(LABEL)?.split_once(' ')?;
    let (part, parts) = place.split_once('/')?;
    let shares = shares.split(',').filter(|text| !text.is_empty()).map(Share::read).collect::<Option<_>>()?;
    Some((part.parse().ok()?, parts.parse().ok()?, shares))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(rows_affected: u64, last: Option<i64>) -> StatementResult {
        StatementResult { rows_affected, last_insert_rowid: last, ..StatementResult::default() }
    }

    fn labelled(part: u32, parts: usize, shares: &[Share], mut results: Vec<StatementResult>) -> Vec<StatementResult> {
        let columns = vec![label_text(ShardId(part), parts, shares)];
        results.insert(0, StatementResult { columns, ..StatementResult::default() });
        results
    }

    const FIRST: Share = Share { statement: 0, counted: true, last: false };
    const LAST: Share = Share { statement: 0, counted: true, last: true };
    const GONE: Share = Share { statement: 1, counted: false, last: false };

    #[test]
    fn parts_that_came_to_one_shard_are_told_apart() {
        let mut both = labelled(1, 2, &[FIRST], vec![result(2, None)]);
        both.extend(labelled(2, 2, &[LAST], vec![result(2, Some(4))]));
        let mut remembered = Remembered::of(both.clone());
        assert!(remembered.is_complete());
        remembered.add(both);
        assert_eq!(remembered.effects(1)[0].rows_affected, 4, "each counts once");
        // The same with the labels behind, and a part that has no statements.
        let mut behind = labelled(3, 3, &[], Vec::new());
        behind.extend(labelled(1, 3, &[FIRST], vec![result(2, None)]).into_iter().rev());
        behind.extend(labelled(2, 3, &[LAST], vec![result(5, Some(4))]).into_iter().rev());
        let remembered = Remembered::of(behind);
        assert!(remembered.is_complete());
        assert_eq!(remembered.effects(1)[0].rows_affected, 7);
    }

    #[test]
    fn several_shards_results_make_one() {
        let parts =
            [(&[FIRST, GONE][..], vec![result(2, Some(9)), result(1, None)]), (&[LAST], vec![result(3, Some(7))])];
        let effects = combine(2, parts.into_iter());
        assert_eq!((effects[0].rows_affected, effects[0].last_insert_id), (5, Some(7)));
        assert_eq!(effects[1], Effect::default(), "a row that gave way is not counted");
    }

    #[test]
    fn a_share_reads_back() {
        for share in [FIRST, LAST, GONE, Share { statement: 12, counted: false, last: true }] {
            assert_eq!(Share::read(&share.write()), Some(share));
        }
        assert_eq!(Share::read("x"), None);
    }

    #[test]
    fn a_part_that_came_to_two_shards_counts_once() {
        let mut remembered = Remembered::default();
        remembered.add(labelled(1, 2, &[FIRST], vec![result(2, None)]));
        remembered.add(labelled(1, 2, &[FIRST], vec![result(2, None)]));
        assert!(!remembered.is_complete());
        remembered.add(labelled(2, 2, &[LAST], vec![result(2, Some(4))]));
        assert!(remembered.is_complete());
        let effects = remembered.effects(1);
        assert_eq!((effects[0].rows_affected, effects[0].last_insert_id), (4, Some(4)));
    }

    #[test]
    fn what_was_one_shards_is_the_same_wherever_it_is_found() {
        let mut remembered = Remembered::default();
        remembered.add(vec![result(3, None)]);
        remembered.add(vec![result(3, None)]);
        assert!(remembered.is_complete());
        assert_eq!(remembered.effects(1)[0].rows_affected, 3);
    }
}
