//! Calls in order to 6-gram novelty and quantised surprisal: what one map lookup per call can tell, in the kernel too.
//!
//! A gram is the last [`ORDER`] calls of one thread, ten bits each, packed into a `u64`: exact, without collisions, and
//! rolled on by one shift. The share of grams never seen while learning is STIDE (Forrest et al., *A Sense of Self for
//! Unix Processes*, IEEE S&P 1996). Each known gram also holds the surprisal `-log2 P(last | five before)` of
//! [`crate::surprisal`] in sixteenths of a bit, so the same lookup sums a Markov-5 score.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::surprisal::Surprisal;

/// Calls in a gram.
pub const ORDER: usize = 6;
/// Grams a table holds at most; services show 414 to 7,875.
pub const GRAMS_MAX: usize = 32_768;
/// Quantised steps per bit of surprisal.
pub const STEPS_PER_BIT: f64 = 16.0;
/// What a gram that is not in the table costs: the largest value.
pub const MISS: u8 = u8::MAX;

/// A call: a schema slot, or any numbering below [`START`] that learning and scoring share.
pub type Symbol = u16;
/// Stands for the calls before a thread's first.
pub const START: Symbol = (1 << BITS) - 1;

const BITS: u32 = 10;
const MASK: u64 = (1 << (BITS as usize * ORDER)) - 1;

/// A thread that has made no call yet.
pub const EMPTY: u64 = MASK;

/// The gram after one more call.
///
/// ```
/// use models::sequence::{EMPTY, roll};
/// let six = [3, 1, 4, 1, 5, 9];
/// let forget = |first: u16| six.iter().fold(roll(EMPTY, first), |gram, call| roll(gram, *call));
/// assert_eq!(forget(7), forget(8), "the seventh call back is forgotten");
/// ```
#[must_use]
pub fn roll(gram: u64, call: Symbol) -> u64 {
    (gram << BITS | u64::from(call.min(START))) & MASK
}

/// What a table says about some calls; sums of parts add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Calls looked up.
    pub calls: u64,
    /// Of these, not in the table.
    pub misses: u64,
    /// Quantised surprisal, [`MISS`] for each miss.
    pub surprisal: u64,
}

impl Sums {
    /// The share of grams never seen; `None` without a call.
    #[must_use]
    pub fn novelty(&self) -> Option<f32> {
        (self.calls > 0).then(|| ratio(self.misses, self.calls))
    }

    /// Mean surprisal in bits; `None` without a call.
    #[must_use]
    pub fn bits(&self) -> Option<f32> {
        #[allow(clippy::cast_possible_truncation, reason = "a small constant")]
        let steps = STEPS_PER_BIT as f32;
        (self.calls > 0).then(|| ratio(self.surprisal, self.calls) / steps)
    }
}

/// Gram to quantised surprisal, sorted by gram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GramTable {
    entries: Vec<(u64, u8)>,
    refused: u64,
}

impl GramTable {
    /// The table of everything that `learned` shows, with the surprisals of `model`.
    ///
    /// Over [`GRAMS_MAX`] the most frequent grams stay, equals by their value; the others are counted as refused.
    #[must_use]
    pub fn build(model: &Surprisal, learned: &[&[Symbol]]) -> Self {
        let mut found: BTreeMap<u64, (u64, u8)> = BTreeMap::new();
        for calls in learned {
            let mut gram = EMPTY;
            for (at, call) in calls.iter().enumerate() {
                gram = roll(gram, *call);
                let entry = found.entry(gram).or_insert_with(|| {
                    let from = at.saturating_sub(ORDER - 1);
                    (0, quantise(model.bits(&calls[from..at], *call)))
                });
                entry.0 += 1;
            }
        }
        let refused = found.len().saturating_sub(GRAMS_MAX) as u64;
        let mut kept: Vec<(u64, (u64, u8))> = found.into_iter().collect();
        if refused > 0 {
            kept.sort_by_key(|(gram, (count, _))| (core::cmp::Reverse(*count), *gram));
            kept.truncate(GRAMS_MAX);
            kept.sort_by_key(|(gram, _)| *gram);
        }
        Self { entries: kept.into_iter().map(|(gram, (_, steps))| (gram, steps)).collect(), refused }
    }

    /// The user-space twin of the kernel's lookups over one thread's calls.
    #[must_use]
    pub fn sums(&self, calls: &[Symbol]) -> Sums {
        let mut sums = Sums::default();
        let mut gram = EMPTY;
        for call in calls {
            gram = roll(gram, *call);
            let found = self.entries.binary_search_by_key(&gram, |(known, _)| *known);
            sums.calls += 1;
            sums.misses += u64::from(found.is_err());
            sums.surprisal += u64::from(found.map_or(MISS, |at| self.entries[at].1));
        }
        sums
    }

    /// What the kernel's map is filled with.
    #[must_use]
    pub fn entries(&self) -> &[(u64, u8)] {
        &self.entries
    }

    /// Distinct grams left out because the table was full.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of u8")]
fn quantise(bits: f64) -> u8 {
    (bits * STEPS_PER_BIT).round().clamp(0.0, f64::from(MISS - 1)) as u8
}

#[allow(clippy::cast_precision_loss, reason = "counts of a window; 24 bits of precision are enough")]
fn ratio(part: u64, whole: u64) -> f32 {
    part as f32 / whole as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls without a pattern: a xorshift generator's.
    fn noise(n: usize, below: u64) -> Vec<Symbol> {
        let mut state = 0x5eed_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) % below
        };
        (0..n).map(|_| next() as Symbol).collect()
    }

    fn table(learned: &[Symbol]) -> GramTable {
        GramTable::build(&Surprisal::fit(&[learned], ORDER - 1), &[learned])
    }

    #[test]
    fn what_was_learned_holds_no_news() {
        let learned: Vec<Symbol> = [1, 2, 3, 4].repeat(20);
        let sums = table(&learned).sums(&learned);
        assert_eq!((sums.calls, sums.misses, sums.novelty()), (80, 0, Some(0.0)));
        assert!(sums.bits() < Some(1.0), "{sums:?}");
    }

    #[test]
    fn one_strange_call_is_seen_by_the_six_grams_that_hold_it() {
        let learned: Vec<Symbol> = [1, 2, 3, 4].repeat(20);
        let mut odd = learned.clone();
        odd[40] = 9;
        let sums = table(&learned).sums(&odd);
        assert_eq!(sums.misses, ORDER as u64);
        assert!(sums.surprisal >= ORDER as u64 * u64::from(MISS));
    }

    #[test]
    fn sums_from_the_table_are_the_models_to_half_a_step_a_call() {
        let learned = noise(400, 4);
        let model = Surprisal::fit(&[&learned], ORDER - 1);
        let exact: f64 = (0..learned.len())
            .map(|at| model.bits(&learned[at.saturating_sub(ORDER - 1)..at], learned[at]))
            .sum();
        let sums = GramTable::build(&model, &[&learned]).sums(&learned);
        let error = (sums.surprisal as f64 / STEPS_PER_BIT - exact).abs();
        assert!(error <= 0.5 / STEPS_PER_BIT * learned.len() as f64, "{error} bits over {}", learned.len());
    }

    #[test]
    fn a_full_table_keeps_the_frequent_and_counts_the_rest() {
        let mut learned: Vec<Symbol> = [1, 2, 3].repeat(100);
        learned.extend(noise(50_000, 400));
        let table = table(&learned);
        assert_eq!(table.entries().len(), GRAMS_MAX);
        assert!(table.refused() > 10_000, "{}", table.refused());
        let misses = table.sums(&[1, 2, 3].repeat(10)).misses;
        assert!(misses < ORDER as u64, "{misses}: more than the thread's beginning, which was seen once");
    }

    #[test]
    fn symbols_beyond_ten_bits_do_not_reach_into_their_neighbours() {
        assert_eq!(roll(0, 5000), u64::from(START));
    }
}
