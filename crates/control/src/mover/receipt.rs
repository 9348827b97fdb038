//! What a move has done so far, and how far its hand-over is. See `pleat_cluster::Receipt` for what is kept of it.

use std::time::Duration;

use pleat_cluster::{Digest, Operation, RECEIPT_TABLES_MAX, Receipt, TableReceipt};
use pleat_engine::{ContentDigest, TableDigest};
use tokio::time::Instant;

use super::{Plan, cut_over};
use crate::stop::Stop;
use crate::work::Work;

/// A move in the hands of one leader.
#[derive(Clone, Debug, Default)]
pub(crate) struct HandOver {
    /// What the catalog keeps.
    pub receipt: Receipt,
    /// When the source was told to refuse writes, if that was this leader.
    pub fenced: Option<Instant>,
    /// The target accepts writes.
    pub opened: bool,
    /// The journal and the catalog have the hand-over.
    pub journaled: bool,
    /// The source has let go.
    pub released: bool,
}

impl HandOver {
    /// Of a move that an earlier leader has committed.
    pub fn of(operation: &Operation) -> Self {
        Self { receipt: operation.receipt.as_deref().cloned().unwrap_or_default(), ..Self::default() }
    }

    /// Clients can write again: for how long they could not. A leader before may have noted it.
    pub fn opened(&mut self, work: &Work) -> Result<(), Stop> {
        self.opened = true;
        if self.receipt.pause_ms.is_none() {
            self.receipt.pause_ms = match self.fenced {
                Some(fenced) => Some(millis(fenced.elapsed())),
                None => since_fence(&work.operation()?, work.cluster().now_ms()),
            };
        }
        Ok(())
    }

    /// `writes paused for 31 ms (predicted 20 ms)`, where `writes` says which.
    pub fn pause(&self, writes: &str) -> String {
        let predicted = self.receipt.pause_predicted_ms;
        match self.receipt.pause_ms {
            Some(pause) => format!("{writes} paused for {pause} ms (predicted {predicted} ms)"),
            None => format!("{writes} were to pause for {predicted} ms"),
        }
    }

    /// The operation's message.
    pub fn message(&self, plan: &Plan, rest: &str) -> String {
        let (partitions, Receipt { copied, changed, bytes, tables, .. }) = (plan.partitions.len(), &self.receipt);
        let table = |table: &TableReceipt| format!(", {} {}", table.table, said(table.source));
        let digests: String = tables.iter().map(table).collect();
        format!(
            "{partitions} partitions of {} moved to {}: {copied} rows copied and {changed} changed meanwhile ({bytes} \
             bytes){digests}; {}; {rest}",
            plan.from,
            plan.to,
            self.pause("writes")
        )
    }
}

/// By the journal: from the entry before the gates were closed until now.
fn since_fence(operation: &Operation, now: u64) -> Option<u64> {
    let fence = operation.steps.iter().rev().find(|step| step.name == cut_over::FENCE)?;
    Some(now.saturating_sub(fence.begun))
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Note what both sides hold. Gives the tables that differ.
pub(crate) fn compare(receipt: &mut Receipt, source: &ContentDigest, target: &ContentDigest) -> Vec<String> {
    let (differences, of) =
        (source.differences(target), |digest: &ContentDigest, name: &str| kept(digest.tables.get(name)));
    let table =
        |name: &String| TableReceipt { table: name.clone(), source: of(source, name), target: of(target, name) };
    let same = source.tables.keys().filter(|name| !differences.contains(name));
    receipt.tables = differences.iter().chain(same).take(RECEIPT_TABLES_MAX).map(table).collect();
    (receipt.source, receipt.target) = (whole(source), whole(target));
    differences
}

fn kept(table: Option<&TableDigest>) -> Digest {
    table.map(|table| Digest { rows: table.rows, sum: table.sum }).unwrap_or_default()
}

/// All tables as one. One without rows counts as none: a shard that has no row of it may not name it.
fn whole(digest: &ContentDigest) -> Digest {
    let filled = |(_, table): &(&String, &TableDigest)| table.rows > 0;
    let tables = digest.tables.iter().filter(filled).map(|(name, table)| (name.clone(), *table)).collect();
    let digest = ContentDigest { tables };
    Digest { rows: digest.tables.values().map(|table| table.rows).sum(), sum: digest.fingerprint() }
}

fn said(digest: Digest) -> String {
    format!("{} rows {:016x}", digest.rows, digest.sum)
}

/// The digests as they stand in the journal: `, flights 1234 rows 00c0ffee…`.
pub(crate) fn describe(digest: &ContentDigest) -> String {
    digest.tables.iter().map(|(name, table)| format!(", {name} {}", said(kept(Some(table))))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(tables: &[(&str, u64, u64)]) -> ContentDigest {
        let tables =
            tables.iter().map(|(name, rows, sum)| ((*name).to_owned(), TableDigest { rows: *rows, sum: *sum }));
        ContentDigest { tables: tables.collect() }
    }

    #[test]
    fn what_differs_is_listed_first_and_counts_when_it_is_not_listed() {
        let names: Vec<String> = (0..RECEIPT_TABLES_MAX + 10).map(|n| format!("t{n:03}")).collect();
        let tables: Vec<_> = names.iter().map(|name| (name.as_str(), 1, 7)).collect();
        let (source, mut target) = (digest(&tables), digest(&tables));
        let mut receipt = Receipt::default();
        assert!(compare(&mut receipt, &source, &target).is_empty() && receipt.agrees());
        assert_eq!((receipt.tables.len(), receipt.source.rows), (RECEIPT_TABLES_MAX, 110));
        target.tables.insert("t109".to_owned(), TableDigest { rows: 1, sum: 8 });
        assert_eq!(compare(&mut receipt, &source, &target), ["t109"]);
        assert_eq!((receipt.tables[0].table.as_str(), receipt.agrees()), ("t109", false));
        receipt.tables.clear();
        assert!(!receipt.agrees(), "the digests over all tables differ as well");
        // Two tables that have swapped their content are no copy.
        assert!(
            !compare(&mut receipt, &digest(&[("a", 1, 7), ("b", 1, 8)]), &digest(&[("a", 1, 8), ("b", 1, 7)]))
                .is_empty()
        );
        assert!(!receipt.agrees());
        // A table without rows is the same as none.
        assert!(compare(&mut receipt, &digest(&[("a", 1, 7), ("b", 0, 0)]), &digest(&[("a", 1, 7)])).is_empty());
        assert!(receipt.agrees());
    }
}
