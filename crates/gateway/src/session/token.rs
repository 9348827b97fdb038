//! The token that makes a later read see an earlier write.
//!
//! A write answers with a token: the generation that it was routed under and, for each shard that it
//! touched, the index of its entry in that shard's log. A read with `read_your_writes` may then be served
//! by any replica that has applied that much, instead of asking the leader.
//!
//! What if the rows moved in between? Every read is checked against the replica's own table of what it
//! owns, and a replica that took over a partition has all that was written to it before. The one gap is a
//! partition that moved away and came back: an old replica of its first owner still believes to own it. So
//! a shard whose ownership changed after the token's generation is read from its leader
//! ([`Token::index_for`]), and a merged token keeps the older generation while any such shard exists
//! ([`Token::after_write`]). Tokens are opaque to clients; their text is `g17.1-2345.3-50`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use pleat_cluster::{Catalog, Generation, ShardId};

/// Stands for an index that is not known: the shard's leader must be asked.
const LEADER: u64 = u64::MAX;
/// The longest token text that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;

/// What a client has written so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// No shard that is named here had its ownership changed before this generation unnoticed.
    pub generation: Generation,
    /// For each shard, the index of the last entry written.
    pub indexes: BTreeMap<ShardId, u64>,
}

impl Token {
    /// How far a replica of `shard` must have come, or `None` when its leader must be asked.
    pub fn index_for(&self, shard: ShardId, catalog: &Catalog) -> Option<u64> {
        let known = catalog.shards.get(&shard)?;
        let index = self.indexes.get(&shard).copied().unwrap_or(0);
        (known.ownership <= self.generation && index != LEADER).then_some(index)
    }

    /// The token after a write to reference tables, which became entry `index` of `anchor` and was then
    /// applied by the leaders of all other shards, at indexes that nobody told.
    pub fn after_reference_write(earlier: Option<&Token>, catalog: &Catalog, anchor: ShardId, index: u64) -> Token {
        let mut token = Token::after_write(earlier, catalog, anchor, index);
        let others = catalog.active_shards().map(|shard| shard.id).filter(|shard| *shard != anchor);
        token.indexes.extend(others.map(|shard| (shard, LEADER)));
        token
    }

    /// The token after a write to shards that nobody told: all leaders must be asked.
    pub fn of_leaders(earlier: Option<&Token>, catalog: &Catalog) -> Token {
        let mut token =
            earlier.cloned().unwrap_or_else(|| Token { generation: catalog.generation, ..Token::default() });
        token.indexes.extend(catalog.active_shards().map(|shard| (shard.id, LEADER)));
        token
    }

    /// The token after another write, which was routed by `catalog` and became entry `index` of `shard`.
    pub fn after_write(earlier: Option<&Token>, catalog: &Catalog, shard: ShardId, index: u64) -> Token {
        let mut token =
            earlier.cloned().unwrap_or_else(|| Token { generation: catalog.generation, ..Token::default() });
        let moved = catalog.shards.values().any(|shard| shard.ownership > token.generation);
        if !moved {
            token.generation = token.generation.max(catalog.generation);
        }
        let known = token.indexes.entry(shard).or_default();
        *known = index.max(*known);
        token
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}", self.generation)?;
        self.indexes.iter().try_for_each(|(shard, index)| write!(f, ".{}-{index}", shard.0))
    }
}

impl FromStr for Token {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "not a token of this cluster; send the \"token\" of an earlier answer, unchanged";
        if text.len() > TOKEN_BYTES_MAX {
            return Err(WRONG);
        }
        let mut parts = text.strip_prefix('g').ok_or(WRONG)?.split('.');
        let generation = parts.next().and_then(|digits| digits.parse().ok()).ok_or(WRONG)?;
        let mut indexes = BTreeMap::new();
        for part in parts {
            let (shard, index) = part.split_once('-').ok_or(WRONG)?;
            let shard = ShardId(shard.parse().map_err(|_| WRONG)?);
            indexes.insert(shard, index.parse().map_err(|_| WRONG)?);
        }
        Ok(Token { generation, indexes })
    }
}

#[cfg(test)]
mod tests {
    use pleat_cluster::{Shard, ShardState};

    use super::*;

    fn catalog(generation: Generation, ownership: &[(u32, Generation)]) -> Catalog {
        let mut catalog = Catalog::default();
        catalog.generation = generation;
        for (number, ownership) in ownership {
            let id = ShardId(*number);
            let shard = Shard {
                id,
                state: ShardState::Active,
                replicas: vec![],
                ownership: *ownership,
                since: 0,
                numbers: Default::default(),
                distrusted: Default::default(),
                disagreement: None,
                server: None,
                pair: Default::default(),
            };
            catalog.shards.insert(id, shard);
        }
        catalog
    }

    #[test]
    fn the_text_form_reads_back() {
        let token = Token { generation: 17, indexes: [(ShardId(1), 2345), (ShardId(3), 50)].into() };
        assert_eq!(token.to_string(), "g17.1-2345.3-50");
        assert_eq!(token.to_string().parse(), Ok(token));
        for wrong in ["", "17", "g", "g1.2", "g1.x-2", "g1.-2", "g-1", "g1."] {
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_replica_may_serve_once_it_has_applied_the_write() {
        let catalog = catalog(5, &[(1, 2), (2, 2)]);
        let token = Token::after_write(None, &catalog, ShardId(1), 40);
        assert_eq!(token.index_for(ShardId(1), &catalog), Some(40));
        assert_eq!(token.index_for(ShardId(2), &catalog), Some(0));
        assert_eq!(token.index_for(ShardId(9), &catalog), None);
    }

    #[test]
    fn after_a_move_the_leader_is_asked_until_the_end_of_the_chain() {
        let before = catalog(5, &[(1, 2), (2, 2), (3, 2)]);
        let token = Token::after_write(None, &before, ShardId(1), 40);
        // A partition of shard 1 went to shard 2 and came back.
        let after = catalog(9, &[(1, 8), (2, 8), (3, 2)]);
        assert_eq!(token.index_for(ShardId(1), &after), None);
        // A write elsewhere must not make the old replicas of shard 1 trustworthy again.
        let token = Token::after_write(Some(&token), &after, ShardId(3), 7);
        assert_eq!(token.index_for(ShardId(1), &after), None);
        assert_eq!(token.index_for(ShardId(3), &after), Some(7));
    }

    #[test]
    fn a_reference_write_is_read_from_the_leaders_of_its_copies() {
        let catalog = catalog(5, &[(1, 2), (2, 2)]);
        let token = Token::after_reference_write(None, &catalog, ShardId(1), 40);
        assert_eq!(token.index_for(ShardId(1), &catalog), Some(40));
        assert_eq!(token.index_for(ShardId(2), &catalog), None);
        let token = Token::after_write(Some(&token.to_string().parse().unwrap()), &catalog, ShardId(2), 7);
        assert_eq!(token.index_for(ShardId(2), &catalog), None);
    }

    #[test]
    fn without_moves_the_generation_follows() {
        let first = Token::after_write(None, &catalog(5, &[(1, 2)]), ShardId(1), 40);
        let later = Token::after_write(Some(&first), &catalog(6, &[(1, 2)]), ShardId(1), 30);
        assert_eq!((later.generation, later.indexes[&ShardId(1)]), (6, 40));
    }
}
