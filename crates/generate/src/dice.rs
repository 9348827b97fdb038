//! Chance with a seed.

use std::ops::Range;

/// A small generator of pseudo-random numbers (xorshift), so that a seed names a run.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The dice of a seed: neighbouring seeds give quite different rolls.
    pub fn of_seed(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            dice.roll(2);
        }
        dice
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    pub fn pick<'t, T: ?Sized>(&mut self, list: &[&'t T]) -> &'t T {
        list[self.roll(list.len())]
    }
}

/// The seeds that a variable of the environment names (`PLEAT_SEEDS=7..8`), otherwise the usual ones.
pub fn seeds(variable: &str, usual: Range<u64>) -> Range<u64> {
    let given = std::env::var(variable).ok();
    let range = given.as_deref().and_then(|text| text.split_once(".."));
    range.and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?)).unwrap_or(usual)
}
