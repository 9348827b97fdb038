//! Changing what is right until it is nearly right.

use crate::INPUT_BYTES_MAX;

/// The most changes of one input.
const CHANGES_MAX: usize = 6;
/// Words of the seeds that are put elsewhere.
const WORDS_MAX: usize = 2_000;
/// Numbers at which things break.
const EDGES: [u64; 12] = [0, 1, 3, 4, 5, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff];
/// What lengths, texts, quotes and brackets begin and end with.
const BYTES: &[u8] = b"\0\x01\x04\x7f\x80\xff'\"\\$;,()[]{}:%=\n\r\t -/*.~@0a";

/// Makes inputs, always the same from one seed and name.
pub struct Mutator {
    state: u64,
    words: Vec<Vec<u8>>,
}

impl Mutator {
    pub fn new(seed: u64, name: &str, seeds: &[Vec<u8>]) -> Mutator {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for byte in name.bytes() {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Mutator { state, words: words(seeds) }
    }

    /// The next number (SplitMix64).
    fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 when that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.number() % limit).unwrap_or(0)
    }

    /// The next input, made of those that are `kept`.
    pub fn next(&mut self, kept: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.one_of(kept);
        for _ in 0..1 + self.below(CHANGES_MAX) {
            self.change(&mut input, kept);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn one_of(&mut self, all: &[Vec<u8>]) -> Vec<u8> {
        all.get(self.below(all.len())).cloned().unwrap_or_default()
    }

    /// A part of an input, of a few bytes mostly.
    fn part(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.below(length);
        let most = if self.below(4) == 0 { length } else { 16 };
        from..(from + self.below(most) + 1).min(length)
    }

    fn change(&mut self, input: &mut Vec<u8>, kept: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(12) {
            0 => input.truncate(at),
            1 => drop(input.drain(self.part(input.len()))),
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << (self.number() % 8);
                }
            }
            3 => {
                let byte = BYTES[self.below(BYTES.len())];
                match input.get_mut(at) {
                    Some(place) => *place = byte,
                    None => input.push(byte),
                }
            }
            4 => input.insert(at, BYTES[self.below(BYTES.len())]),
            5 | 6 => self.edge(input, at),
            7 => {
                let copied = input[self.part(input.len())].to_vec();
                input.splice(at..at, copied);
            }
            8 => {
                let copied = input[self.part(input.len())].to_vec();
                let times = [2, 3, 50, 2_000][self.below(4)];
                let times = times.min(INPUT_BYTES_MAX / copied.len().max(1));
                input.splice(at..at, copied.repeat(times));
            }
            9 => {
                let other = self.one_of(kept);
                let part = other[self.part(other.len())].to_vec();
                let end = self.part(input.len()).end.max(at).min(input.len());
                input.splice(at..end, part);
            }
            _ => {
                let words = std::mem::take(&mut self.words);
                let word = self.one_of(&words);
                self.words = words;
                // In the place of another one, or between.
                let end = match self.below(2) {
                    0 => at,
                    _ => input[at..].iter().position(|byte| !byte.is_ascii_alphanumeric()).map_or(at, |end| at + end),
                };
                input.splice(at..end, word);
            }
        }
    }

    /// A number of one, two, four or eight bytes becomes one at an edge, or a little more or less than it was.
    fn edge(&mut self, input: &mut [u8], at: usize) {
        let width = 1 << self.below(4);
        let Some(place) = input.get_mut(at..at + width) else { return };
        let was = place.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let number = match self.below(3) {
            0 => was.wrapping_add(1 + self.number() % 4),
            1 => was.wrapping_sub(1 + self.number() % 4),
            _ => EDGES[self.below(EDGES.len())],
        };
        place.copy_from_slice(&number.to_be_bytes()[8 - width..]);
    }
}

/// Words, numbers and symbols of texts.
fn words(seeds: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    for seed in seeds {
        let words = seed.chunk_by(|a, b| a.is_ascii_alphanumeric() == b.is_ascii_alphanumeric());
        found.extend(words.filter(|word| (1..=24).contains(&word.len())).map(<[u8]>::to_vec));
    }
    found.sort();
    found.dedup();
    found.truncate(WORDS_MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_nothing_is_too_long() {
        let seeds = [b"SELECT a FROM t".to_vec(), vec![], vec![0; INPUT_BYTES_MAX]];
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed, "x", &seeds);
            (0..2_000).map(|_| mutator.next(&seeds)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(3).iter().all(|input| input.len() <= INPUT_BYTES_MAX));
    }
}
