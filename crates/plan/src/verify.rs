//! Comparing replicas: which of them is right, if that can be told.
//!
//! Every replica of a shard computes a digest of its content at the same entries of the log. Two that differ at the
//! same entry have diverged, and a majority of *all* voters, not of those that answered, says which of them is wrong:
//! with one of three replicas away, one against one says nothing.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::NodeId;

/// What a comparison says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Fewer than two replicas have a digest of the same entry, or one more is needed to tell.
    Open,
    /// All voters have the same content at this entry.
    Agree { index: u64 },
    /// A majority has the same content at this entry, and these have another.
    Diverged { index: u64, nodes: Vec<NodeId>, majority: Vec<NodeId> },
    /// Two replicas at least differ at this entry, and no majority says which is right. `missing` have not told theirs.
    Undecided { index: u64, nodes: Vec<NodeId>, missing: Vec<NodeId> },
}

/// Compare what each node has reported: the digest by the index of its entry. The newest entry at which something can
/// be told decides.
pub fn compare(voters: &BTreeSet<NodeId>, reports: &BTreeMap<NodeId, BTreeMap<u64, u64>>) -> Comparison {
    let told: BTreeSet<u64> =
        voters.iter().filter_map(|node| reports.get(node)).flat_map(|digests| digests.keys().copied()).collect();
    let verdict = |index: &u64| match at(voters, reports, *index) {
        Comparison::Open => None,
        found => Some(found),
    };
    told.iter().rev().find_map(verdict).unwrap_or(Comparison::Open)
}

fn at(voters: &BTreeSet<NodeId>, reports: &BTreeMap<NodeId, BTreeMap<u64, u64>>, index: u64) -> Comparison {
    let mut camps: BTreeMap<u64, Vec<NodeId>> = BTreeMap::new();
    let mut missing = Vec::new();
    for node in voters {
        match reports.get(node).and_then(|digests| digests.get(&index)) {
            Some(digest) => camps.entry(*digest).or_default().push(*node),
            None => missing.push(*node),
        }
    }
    let majority = camps.values().find(|camp| camp.len() * 2 > voters.len()).cloned();
    match majority {
        Some(_) if camps.len() == 1 && missing.is_empty() => Comparison::Agree { index },
        Some(_) if camps.len() == 1 => Comparison::Open,
        Some(majority) => {
            let mut nodes: Vec<_> = camps.into_values().filter(|camp| *camp != majority).flatten().collect();
            nodes.sort();
            Comparison::Diverged { index, nodes, majority }
        }
        None if camps.len() > 1 => {
            let mut nodes: Vec<_> = camps.into_values().flatten().collect();
            nodes.sort();
            Comparison::Undecided { index, nodes, missing }
        }
        None => Comparison::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests by node: `[(1, &[(10, 7)])]` is node 1 with digest 7 at entry 10.
    fn look(voters: u64, told: &[(u64, &[(u64, u64)])]) -> Comparison {
        let voters = (1..=voters).map(NodeId).collect();
        let reports = told.iter().map(|(node, digests)| (NodeId(*node), digests.iter().copied().collect()));
        compare(&voters, &reports.collect())
    }

    fn nodes(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn equal_digests_agree_only_when_everybody_has_told() {
        assert_eq!(look(3, &[(1, &[(5, 7)]), (2, &[(5, 7)]), (3, &[(5, 7)])]), Comparison::Agree { index: 5 });
        assert_eq!(look(3, &[(1, &[(5, 7)]), (2, &[(5, 7)])]), Comparison::Open);
        assert_eq!(look(1, &[(1, &[(5, 7)])]), Comparison::Agree { index: 5 });
        assert_eq!(look(3, &[]), Comparison::Open);
    }

    #[test]
    fn a_majority_of_all_voters_names_who_diverged() {
        let diverged = Comparison::Diverged { index: 5, nodes: nodes(&[2]), majority: nodes(&[1, 3]) };
        assert_eq!(look(3, &[(1, &[(5, 7)]), (2, &[(5, 8)]), (3, &[(5, 7)])]), diverged);
        let two = Comparison::Diverged { index: 5, nodes: nodes(&[1, 4]), majority: nodes(&[2, 3, 5]) };
        let told: &[(u64, &[(u64, u64)])] =
            &[(1, &[(5, 1)]), (2, &[(5, 7)]), (3, &[(5, 7)]), (4, &[(5, 2)]), (5, &[(5, 7)])];
        assert_eq!(look(5, told), two);
    }

    #[test]
    fn one_against_one_says_nothing_about_who_is_right() {
        let undecided =
            |missing: &[u64]| Comparison::Undecided { index: 5, nodes: nodes(&[1, 2]), missing: nodes(missing) };
        assert_eq!(look(2, &[(1, &[(5, 7)]), (2, &[(5, 8)])]), undecided(&[]));
        assert_eq!(look(3, &[(1, &[(5, 7)]), (2, &[(5, 8)])]), undecided(&[3]));
    }

    #[test]
    fn only_the_same_entry_is_compared_and_the_newest_that_tells_something_counts() {
        assert_eq!(look(3, &[(1, &[(5, 7)]), (2, &[(6, 8)]), (3, &[(4, 9)])]), Comparison::Open);
        let told: &[(u64, &[(u64, u64)])] = &[(1, &[(5, 7), (9, 1)]), (2, &[(5, 7), (9, 1)]), (3, &[(5, 8)])];
        let diverged = Comparison::Diverged { index: 5, nodes: nodes(&[3]), majority: nodes(&[1, 2]) };
        assert_eq!(look(3, told), diverged);
        let told: &[(u64, &[(u64, u64)])] = &[(1, &[(5, 7), (9, 1)]), (2, &[(5, 8), (9, 1)]), (3, &[(5, 7), (9, 1)])];
        assert_eq!(look(3, told), Comparison::Agree { index: 9 });
    }

    #[test]
    fn who_is_no_voter_is_not_heard() {
        let told: &[(u64, &[(u64, u64)])] = &[(1, &[(5, 7)]), (2, &[(5, 7)]), (3, &[(5, 7)]), (4, &[(5, 8)])];
        assert_eq!(look(3, told), Comparison::Agree { index: 5 });
    }
}
