//! A set of units of ownership.

use std::collections::BTreeSet;

use pleat_cluster::PartitionId;
use serde::{Deserialize, Serialize};

/// A set of partitions and single tables' units. Looking a partition up costs one bit test: it happens for
/// every row that is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitSet {
    bits: Vec<u64>,
    singles: BTreeSet<PartitionId>,
}

impl UnitSet {
    /// Whether `unit` is a member.
    pub fn contains(&self, unit: PartitionId) -> bool {
        if unit.is_single() {
            return self.singles.contains(&unit);
        }
        self.bits.get(unit.0 as usize / 64).is_some_and(|word| word & (1 << (unit.0 % 64)) != 0)
    }

    /// Add `unit`.
    pub fn insert(&mut self, unit: PartitionId) {
        if unit.is_single() {
            self.singles.insert(unit);
            return;
        }
        let word = unit.0 as usize / 64;
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (unit.0 % 64);
    }

    /// Take `unit` out.
    pub fn remove(&mut self, unit: PartitionId) {
        self.singles.remove(&unit);
        if !unit.is_single()
            && let Some(word) = self.bits.get_mut(unit.0 as usize / 64)
        {
            *word &= !(1 << (unit.0 % 64));
        }
        while self.bits.last() == Some(&0) {
            self.bits.pop();
        }
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PartitionId> + '_ {
        let hashed = (0u32..).zip(&self.bits).flat_map(|(word, bits)| {
            (0..64u32).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| PartitionId(word * 64 + bit))
        });
        hashed.chain(self.singles.iter().copied())
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|word| *word == 0) && self.singles.is_empty()
    }

    /// Whether a hash partition is a member.
    pub fn has_partitions(&self) -> bool {
        self.bits.iter().any(|word| *word != 0)
    }

    /// Add every member of `other`.
    pub fn extend(&mut self, other: &UnitSet) {
        for unit in other.iter() {
            self.insert(unit);
        }
    }

    /// Take out every member of `other`.
    pub fn subtract(&mut self, other: &UnitSet) {
        for unit in other.iter() {
            self.remove(unit);
        }
    }

    /// The first unit that both have.
    pub fn common(&self, other: &UnitSet) -> Option<PartitionId> {
        self.iter().find(|unit| other.contains(*unit))
    }
}

impl FromIterator<PartitionId> for UnitSet {
    fn from_iter<T: IntoIterator<Item = PartitionId>>(units: T) -> Self {
        let mut set = UnitSet::default();
        for unit in units {
            set.insert(unit);
        }
        set
    }
}

impl Serialize for UnitSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.iter().collect::<Vec<_>>().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for UnitSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<PartitionId>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_back_in_order() {
        let single = PartitionId(PartitionId::SINGLE_BASE + 7);
        let mut set: UnitSet = [300, 0, 64, 63].map(PartitionId).into_iter().chain([single]).collect();
        set.remove(PartitionId(300));
        let members: Vec<u32> = set.iter().map(|unit| unit.0).collect();
        assert_eq!(members, [0, 63, 64, single.0]);
        assert!(set.contains(single) && !set.contains(PartitionId(300)) && !set.contains(PartitionId(60_000)));
    }

    #[test]
    fn sets_with_the_same_members_are_equal_however_they_came_about() {
        let mut grown: UnitSet = [1, 200].map(PartitionId).into_iter().collect();
        grown.remove(PartitionId(200));
        assert_eq!(grown, [PartitionId(1)].into_iter().collect());
    }
}
