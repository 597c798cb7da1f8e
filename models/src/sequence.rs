//! Calls in order to 6-gram novelty and quantised surprisal: what one map lookup per call can tell, in the kernel too.
//!
//! A gram is the last [`ORDER`] calls of one thread, nine bits each, packed into a `u64`: exact, without collisions, and
//! rolled on by one shift; the ten bits above are free for the id of a table. The share of grams never seen while learning is STIDE (Forrest et al., *A Sense of Self for
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

/// A call: a schema slot, or any numbering below [`OTHER`] that learning and scoring share.
pub type Symbol = u16;
/// Stands for the calls before a thread's first.
pub const START: Symbol = (1 << BITS) - 1;
/// Stands for every call without a slot.
pub const OTHER: Symbol = START - 1;
/// Distinct grams of one window that are kept for learning; a window with more of them is learned without its order.
pub const WINDOW_GRAMS_MAX: usize = 2048;

const BITS: u32 = 9;
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

/// The grams of one thread's calls, one for each.
///
/// ```
/// use models::sequence::{EMPTY, grams, roll};
/// assert_eq!(grams(&[3, 7]).last(), Some(roll(roll(EMPTY, 3), 7)));
/// ```
pub fn grams(calls: &[Symbol]) -> impl Iterator<Item = u64> {
    calls.iter().scan(EMPTY, |gram, call| {
        *gram = roll(*gram, *call);
        Some(*gram)
    })
}

/// The calls of a gram, oldest first; those before a thread's first are absent.
///
/// ```
/// use models::sequence::{EMPTY, roll, symbols};
/// assert_eq!(symbols(roll(roll(EMPTY, 3), 7)).as_slice(), [3, 7]);
/// ```
#[must_use]
pub fn symbols(gram: u64) -> heapless::Vec<Symbol, ORDER> {
    let at =
        |place: usize| Symbol::try_from(gram >> (BITS as usize * place) & u64::from(START)).unwrap_or(START);
    (0..ORDER).rev().map(at).filter(|symbol| *symbol != START).collect()
}

/// What one process's window says about the order of its calls, as looked up in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GramWindow {
    /// The kernel's number of the table.
    pub table: u16,
    /// What the table says about the window's calls.
    pub sums: Sums,
    /// The same of kinds of grams: each counts once in each part of the window, however often it came. An order that was never
    /// seen is as odd among a million usual calls as among ten.
    pub kinds: Sums,
    /// The first grams that were not in it.
    pub strange: Vec<u64>,
}

impl GramWindow {
    /// Adds another part of the same window. Of parts with different tables the one with more calls stays.
    pub fn merge(&mut self, other: &Self) {
        if self.table == other.table {
            self.sums.merge(&other.sums);
            self.kinds.merge(&other.kinds);
            let room = STRANGE_MAX.saturating_sub(self.strange.len());
            self.strange.extend(other.strange.iter().take(room));
        } else if other.sums.calls > self.sums.calls {
            self.clone_from(other);
        }
    }
}

/// Grams that were not in the table, kept per window to explain it.
pub const STRANGE_MAX: usize = 4;

/// What a table says about some calls, or about kinds of grams; sums of parts add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Calls looked up, or kinds.
    pub calls: u64,
    /// Of these, not in the table.
    pub misses: u64,
    /// Quantised surprisal, [`MISS`] for each miss.
    pub surprisal: u64,
}

impl Sums {
    /// Adds calls by what the table holds for their gram, `None` when it is not there.
    pub fn add(&mut self, found: Option<u8>, times: u64) {
        self.calls = self.calls.saturating_add(times);
        self.misses = self.misses.saturating_add(if found.is_none() { times } else { 0 });
        let surprisal = times.saturating_mul(u64::from(found.unwrap_or(MISS)));
        self.surprisal = self.surprisal.saturating_add(surprisal);
    }

    /// Adds what was found of others.
    pub fn merge(&mut self, other: &Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.misses = self.misses.saturating_add(other.misses);
        self.surprisal = self.surprisal.saturating_add(other.surprisal);
    }

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

/// Counts of grams, ascending, each gram once.
#[must_use]
pub fn summed(mut counts: Vec<(u64, u32)>) -> Vec<(u64, u32)> {
    counts.sort_unstable();
    counts.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        kept.1 = kept.1.saturating_add(if same { next.1 } else { 0 });
        same
    });
    counts
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

    /// The table of counted grams, with the surprisals of the model that they give.
    ///
    /// Counts of 6-grams are all that a model of order five asks for: see [`Surprisal::of_grams`].
    #[must_use]
    pub fn of_counts(counts: &BTreeMap<u64, u32>) -> Self {
        let model = Surprisal::of_grams(counts.iter().map(|(gram, count)| (*gram, *count)));
        let mut kept: Vec<(u64, u32)> = counts.iter().map(|(gram, count)| (*gram, *count)).collect();
        let refused = kept.len().saturating_sub(GRAMS_MAX) as u64;
        kept.sort_by_key(|(gram, count)| (core::cmp::Reverse(*count), *gram));
        kept.truncate(GRAMS_MAX);
        kept.sort_unstable_by_key(|(gram, _)| *gram);
        let entry = |(gram, _): (u64, u32)| {
            let calls = symbols(gram);
            let (last, before) = calls.split_last()?;
            Some((gram, quantise(model.bits(before, *last))))
        };
        Self { entries: kept.into_iter().filter_map(entry).collect(), refused }
    }

    /// What the table says about counted grams.
    #[must_use]
    pub fn sums_of(&self, counts: &[(u64, u32)]) -> Sums {
        let mut sums = Sums::default();
        for (gram, count) in counts {
            sums.add(self.look_up(*gram), u64::from(*count));
        }
        sums
    }

    /// What the table says about their kinds: each counts once.
    #[must_use]
    pub fn kinds_of(&self, counts: &[(u64, u32)]) -> Sums {
        let mut sums = Sums::default();
        for (gram, _) in counts {
            sums.add(self.look_up(*gram), 1);
        }
        sums
    }

    /// The table as bytes: each gram as its distance from the one before.
    ///
    /// # Panics
    /// Never: writing into memory does not fail.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut before = 0;
        let steps: Vec<(u64, u8)> = self
            .entries
            .iter()
            .map(|(gram, steps)| {
                let distance = gram - before;
                before = *gram;
                (distance, *steps)
            })
            .collect();
        postcard::to_allocvec(&steps).expect("memory can be written")
    }

    /// Reads [`GramTable::to_bytes`]; `None` for anything else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (steps, rest): (Vec<(u64, u8)>, _) = postcard::take_from_bytes(bytes).ok()?;
        let mut gram = 0_u64;
        let mut entries = Vec::with_capacity(steps.len().min(GRAMS_MAX));
        for (at, (distance, steps)) in steps.iter().enumerate() {
            let ascends = at == 0 || *distance > 0;
            gram = gram.checked_add(*distance).filter(|gram| ascends && *gram <= MASK)?;
            entries.push((gram, *steps));
        }
        (rest.is_empty() && entries.len() <= GRAMS_MAX).then_some(Self { entries, refused: 0 })
    }

    fn look_up(&self, gram: u64) -> Option<u8> {
        self.entries.binary_search_by_key(&gram, |(known, _)| *known).ok().map(|at| self.entries[at].1)
    }

    /// The user-space twin of the kernel's lookups over one thread's calls.
    #[must_use]
    pub fn sums(&self, calls: &[Symbol]) -> Sums {
        let mut sums = Sums::default();
        grams(calls).for_each(|gram| sums.add(self.look_up(gram), 1));
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

    #[test]
    fn counts_of_one_gram_are_summed() {
        assert_eq!(summed(vec![(5, 1), (3, 2), (5, u32::MAX), (3, 1)]), [(3, 3), (5, u32::MAX)]);
        assert!(summed(Vec::new()).is_empty());
    }

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
    fn counted_grams_give_the_same_table_and_the_same_sums_as_the_calls_themselves() {
        let learned = noise(500, 5);
        let mut counts = BTreeMap::new();
        let mut gram = EMPTY;
        for call in &learned {
            gram = roll(gram, *call);
            *counts.entry(gram).or_insert(0) += 1;
        }
        let of_counts = GramTable::of_counts(&counts);
        assert_eq!(of_counts, table(&learned));
        let list: Vec<(u64, u32)> = counts.into_iter().collect();
        assert_eq!(of_counts.sums_of(&list), of_counts.sums(&learned));
        let once: Vec<(u64, u32)> = list.iter().map(|(gram, _)| (*gram, 1)).collect();
        assert_eq!(of_counts.kinds_of(&list), of_counts.sums_of(&once));
        assert_eq!(GramTable::from_bytes(&of_counts.to_bytes()), Some(of_counts.clone()));
        let cut = &of_counts.to_bytes()[1..];
        assert_ne!(GramTable::from_bytes(cut), Some(of_counts));
    }

    #[test]
    fn parts_of_a_window_add_up_and_tables_do_not_mix() {
        let part = |table, calls| GramWindow {
            table,
            sums: Sums { calls, misses: 1, surprisal: 300 },
            kinds: Sums { calls: 2, misses: 1, surprisal: 260 },
            strange: vec![calls; 3],
        };
        let mut window = part(1, 10);
        window.merge(&part(1, 5));
        assert_eq!((window.sums.calls, window.sums.misses, window.strange.len()), (15, 2, STRANGE_MAX));
        assert_eq!(window.kinds, Sums { calls: 4, misses: 2, surprisal: 520 });
        window.merge(&part(2, 5));
        assert_eq!((window.table, window.sums.calls), (1, 15));
        window.merge(&part(2, 50));
        assert_eq!((window.table, window.sums.calls), (2, 50));
    }

    #[test]
    fn symbols_beyond_nine_bits_do_not_reach_into_their_neighbours() {
        assert_eq!(roll(0, 5000), u64::from(START));
    }
}
