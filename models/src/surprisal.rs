//! Calls in order to surprisal in bits: an interpolated Markov model of variable order.
//!
//! With `n(c)` calls seen after the context `c`, `d(c)` of them distinct and `n(c, x)` of them `x`,
//! `P(x | c) = (n(c, x) + d(c) P(x | c')) / (n(c) + d(c))`, where `c'` is `c` without its oldest call: method C of
//! Witten and Bell (IEEE Trans. Information Theory 37(4), 1991) as Chen and Goodman (1999) interpolate it. The empty
//! context backs off to a uniform share of [`SYMBOLS`]. A context never seen takes the probability of its own `c'`.
//!
//! Order 5 fills the table of [`crate::sequence`] and needs counts of 6-grams only. User space has room for [`ORDER_MAX`]: on services with long
//! regular request loops the longer context is what tells one loop from another.

use std::collections::{BTreeMap, HashMap};

use crate::sequence::{EMPTY, ORDER, Symbol, roll, symbols};

/// The longest context: with its next call it fills twelve times ten bits.
pub const ORDER_MAX: usize = 11;
/// Contexts a model holds at most, over all orders; new ones are not learned when it is full.
pub const CONTEXTS_MAX: usize = 400_000;
/// Calls that might be seen: the reach of system call numbers on every architecture we know.
pub const SYMBOLS: f64 = 512.0;

const BITS: u32 = 10;

/// Counts of contexts and of what came after them.
#[derive(Clone, Debug, Default)]
pub struct Surprisal {
    order: usize,
    /// Context to (calls after it, distinct calls after it).
    contexts: HashMap<u128, (u32, u32)>,
    /// Context and next call to how often.
    nexts: HashMap<u128, u32>,
    refused: u64,
}

impl Surprisal {
    /// Counts contexts up to `order` calls, at most [`ORDER_MAX`].
    #[must_use]
    pub fn fit(learned: &[&[Symbol]], order: usize) -> Self {
        let mut model = Self { order: order.min(ORDER_MAX), ..Self::default() };
        for calls in learned {
            for at in 0..calls.len() {
                for length in 0..=model.order.min(at) {
                    model.learn(&calls[at - length..at], calls[at], 1);
                }
            }
        }
        model
    }

    /// The model of order 5 that counted grams of [`crate::sequence`] give: the same as of the calls themselves.
    #[must_use]
    pub fn of_grams(counts: impl IntoIterator<Item = (u64, u32)>) -> Self {
        let mut model = Self { order: ORDER - 1, ..Self::default() };
        for (gram, times) in counts {
            let calls = symbols(gram);
            let Some((last, before)) = calls.split_last() else { continue };
            for length in 0..=before.len() {
                model.learn(&before[before.len() - length..], *last, times);
            }
        }
        model
    }

    /// Surprisal of `call` after `before`, the oldest first.
    ///
    /// ```
    /// use models::surprisal::Surprisal;
    /// let model = Surprisal::fit(&[&[1, 2, 1, 2, 1, 2, 1, 2]], 2);
    /// assert!(model.bits(&[1], 2) < 1.0 && model.bits(&[1], 3) > 8.0);
    /// ```
    #[must_use]
    pub fn bits(&self, before: &[Symbol], call: Symbol) -> f64 {
        let mut p = 1.0 / SYMBOLS;
        for length in 0..=self.order.min(before.len()) {
            let context = key(&before[before.len() - length..]);
            let Some(&(all, distinct)) = self.contexts.get(&context) else { break };
            let count = self.nexts.get(&extend(context, call)).copied().unwrap_or(0);
            p = (f64::from(count) + f64::from(distinct) * p) / f64::from(all + distinct);
        }
        -p.log2()
    }

    /// Mean surprisal in bits a call; `None` without a call.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a mean of small numbers"
    )]
    pub fn mean_bits(&self, calls: &[Symbol]) -> Option<f32> {
        let sum: f64 = (0..calls.len()).map(|at| self.bits(&calls[..at], calls[at])).sum();
        (!calls.is_empty()).then(|| (sum / calls.len() as f64) as f32)
    }

    /// Mean surprisal in bits a 6-gram: what was done, however often, counts once. `None` without a call.
    ///
    /// A loop that ran a thousand times is one loop, and a short burst within a long trace is not diluted by it.
    ///
    /// ```
    /// use models::surprisal::Surprisal;
    /// let model = Surprisal::fit(&[&[1, 2].repeat(50)], 5);
    /// let diluted = [[1, 2].repeat(500), vec![7, 8, 9]].concat();
    /// assert!(model.mean_bits_of_kinds(&diluted) > model.mean_bits(&diluted).map(|bits| 10.0 * bits));
    /// ```
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a mean of small numbers"
    )]
    pub fn mean_bits_of_kinds(&self, calls: &[Symbol]) -> Option<f32> {
        let mut kinds: BTreeMap<u64, (f64, u32)> = BTreeMap::new();
        let mut gram = EMPTY;
        for (at, call) in calls.iter().enumerate() {
            gram = roll(gram, *call);
            let (sum, times) = kinds.entry(gram).or_default();
            *sum += self.bits(&calls[..at], *call);
            *times += 1;
        }
        let sum: f64 = kinds.values().map(|(sum, times)| sum / f64::from(*times)).sum();
        (!kinds.is_empty()).then(|| (sum / kinds.len() as f64) as f32)
    }

    /// Contexts held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.contexts.len()
    }

    /// Nothing was learned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.contexts.is_empty()
    }

    /// Calls whose context was not learned because the model was full.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn learn(&mut self, before: &[Symbol], call: Symbol, times: u32) {
        let context = key(before);
        if self.contexts.len() >= CONTEXTS_MAX && !self.contexts.contains_key(&context) {
            self.refused += u64::from(times);
            return;
        }
        let (all, distinct) = self.contexts.entry(context).or_insert((0, 0));
        let count = self.nexts.entry(extend(context, call)).or_insert(0);
        *distinct += u32::from(*count == 0);
        *count = count.saturating_add(times);
        *all = all.saturating_add(times);
    }
}

/// A context's calls, ten bits each, with a leading 1 that marks its length.
fn key(calls: &[Symbol]) -> u128 {
    calls.iter().fold(1, |key, call| extend(key, *call))
}

fn extend(key: u128, call: Symbol) -> u128 {
    key << BITS | u128::from(call & ((1 << BITS) - 1))
}

const _: () = assert!((ORDER_MAX + 1) * (BITS as usize) < 128);

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

    #[test]
    fn the_formula_by_hand() {
        let model = Surprisal::fit(&[&[1, 2, 1, 2, 1, 3]], 1);
        // Empty context: 6 calls, 3 distinct, two of them `2`; after `1`: 3 calls, 2 distinct, two of them `2`.
        let empty = (2.0 + 3.0 / SYMBOLS) / 9.0;
        let after_one = (2.0 + 2.0 * empty) / 5.0;
        assert!((model.bits(&[1], 2) + f64::log2(after_one)).abs() < 1e-9);
        assert!((model.bits(&[9], 2) + f64::log2(empty)).abs() < 1e-9, "an unknown context backs off");
    }

    #[test]
    fn probabilities_of_all_symbols_sum_to_one() {
        let learned = noise(300, 11);
        let model = Surprisal::fit(&[&learned], 4);
        for before in [&learned[20..24], &[500, 1, 4], &[]] {
            let sum: f64 = (0..SYMBOLS as Symbol).map(|call| (-model.bits(before, call)).exp2()).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        }
    }

    #[test]
    fn a_longer_context_tells_loops_apart_that_a_shorter_one_confuses() {
        let learned: Vec<Symbol> = [1, 1, 1, 2].repeat(50);
        let odd = [1, 1, 2].repeat(50);
        let gap = |order| {
            let model = Surprisal::fit(&[&learned], order);
            model.mean_bits(&odd).unwrap() - model.mean_bits(&learned).unwrap()
        };
        assert!(gap(3) > 2.0 * gap(1), "{} and {}", gap(3), gap(1));
    }

    #[test]
    fn a_full_model_refuses_and_counts() {
        let learned = noise(60_000, 400);
        let model = Surprisal::fit(&[&learned], ORDER_MAX);
        assert_eq!(model.len(), CONTEXTS_MAX);
        assert!(model.refused() > 0 && model.mean_bits(&learned).is_some_and(f32::is_finite));
    }
}
