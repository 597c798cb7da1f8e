//! Calls in order to how unlike the set of neighbouring pairs is to the sets of learned windows.
//!
//! A window is the set `A` of all `(call, next call)` it shows. Its score is the mean of
//! `1 - |A n B| / sqrt(|A| |B|)` (Ochiai 1957) over the [`NEIGHBOURS`] most alike learned sets `B`, where `|.|` sums
//! the weights `1 + ln((1 + n) / (1 + d))` of pairs that `d` of the `n` learned sets show (Sparck Jones, *Journal of
//! Documentation* 28(1), 1972): what every window does says little about which kind of window this is. It says nothing
//! about how often: a loop that ran ten thousand times is the loop that ran once, and what is left is which work was
//! done after which. That is what a host full of programs has most in common from one day to the next.

use std::collections::{BTreeSet, HashMap};

use crate::nearest::NEIGHBOURS;
use crate::sequence::Symbol;

/// Learned sets kept at most; of more, every so many, which keeps the whole learning time.
pub const SETS_MAX: usize = 1024;
/// Pairs of one set at most; later new ones are left out.
pub const PAIRS_MAX: usize = 512;

/// The learned sets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairSets {
    /// Pairs, ascending, and the sum of their weights.
    sets: Vec<(Vec<u32>, f32)>,
    /// How many of the sets show a pair.
    shown: HashMap<u32, u32>,
}

impl PairSets {
    /// Keeps the sets of some windows, each a thread's calls in order.
    #[must_use]
    pub fn fit(learned: &[&[Symbol]]) -> Self {
        let every = learned.len().div_ceil(SETS_MAX).max(1);
        let mut all = Self {
            sets: learned.iter().step_by(every).map(|calls| (pairs(calls), 0.0)).collect(),
            shown: HashMap::new(),
        };
        for pair in all.sets.iter().flat_map(|(pairs, _)| pairs) {
            *all.shown.entry(*pair).or_insert(0) += 1;
        }
        let sums: Vec<f32> =
            all.sets.iter().map(|(pairs, _)| pairs.iter().map(|pair| all.weight(*pair)).sum()).collect();
        all.sets.iter_mut().zip(sums).for_each(|((_, sum), found)| *sum = found);
        all
    }

    /// How unlike a window is; `None` when nothing was learned.
    ///
    /// ```
    /// use models::pairs::PairSets;
    /// let learned = PairSets::fit(&[&[1, 2, 3, 1, 2, 3]]);
    /// assert!(learned.score(&[2, 3, 1, 2]).is_some_and(|score| score < 1e-6));
    /// assert_eq!(learned.score(&[3, 2, 1]), Some(1.0));
    /// ```
    #[must_use]
    pub fn score(&self, calls: &[Symbol]) -> Option<f32> {
        let query: Vec<(u32, f32)> = pairs(calls).into_iter().map(|pair| (pair, self.weight(pair))).collect();
        let length: f32 = query.iter().map(|(_, weight)| weight).sum();
        let mut best = [f32::MIN; NEIGHBOURS];
        for (set, sum) in &self.sets {
            let alike = common(&query, set) / (length * sum).max(f32::MIN_POSITIVE).sqrt();
            if alike > best[0] {
                best[0] = alike;
                best.sort_by(f32::total_cmp);
            }
        }
        let found = self.sets.len().min(NEIGHBOURS);
        #[allow(clippy::cast_precision_loss, reason = "at most three")]
        let mean = best[NEIGHBOURS - found..].iter().sum::<f32>() / found as f32;
        (found > 0).then(|| (1.0 - mean).max(0.0))
    }

    #[allow(clippy::cast_precision_loss, reason = "at most SETS_MAX")]
    fn weight(&self, pair: u32) -> f32 {
        let shown = self.shown.get(&pair).copied().unwrap_or(0);
        1.0 + ((1 + self.sets.len()) as f32 / (1 + shown) as f32).ln()
    }
}

/// The pairs of some calls, sorted, without repeats.
fn pairs(calls: &[Symbol]) -> Vec<u32> {
    let pair = |pair: &[Symbol]| u32::from(pair[0]) << 16 | u32::from(pair[1]);
    let set: BTreeSet<u32> = calls.windows(2).map(pair).collect();
    set.into_iter().take(PAIRS_MAX).collect()
}

/// The weight of what both have.
fn common(a: &[(u32, f32)], b: &[u32]) -> f32 {
    let (mut i, mut j, mut sum) = (0, 0, 0.0);
    while i < a.len() && j < b.len() {
        match a[i].0.cmp(&b[j]) {
            core::cmp::Ordering::Less => i += 1,
            core::cmp::Ordering::Greater => j += 1,
            core::cmp::Ordering::Equal => (i, j, sum) = (i + 1, j + 1, sum + a[i].1),
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_often_does_not_matter_and_order_does() {
        let learned: Vec<Symbol> = [1, 2, 3].repeat(3);
        let sets = PairSets::fit(&[&learned]);
        assert!(sets.score(&[1, 2, 3].repeat(900)).is_some_and(|score| score < 1e-6));
        assert_eq!(sets.score(&[3, 2, 1].repeat(3)), Some(1.0));
    }

    #[test]
    fn the_score_by_hand() {
        // {12, 23} has one pair in common with {23, 34, 45}, and none with {67}.
        let sets = PairSets::fit(&[&[2, 3, 4, 5], &[6, 7]]);
        // Of two sets, one shows 23, 34, 45 or 67, none shows 12.
        let (seen, new) = (1.0 + (3.0_f32 / 2.0).ln(), 1.0 + 3.0_f32.ln());
        let expected = 1.0 - seen / ((seen + new) * 3.0 * seen).sqrt() / 2.0;
        assert!((sets.score(&[1, 2, 3]).unwrap() - expected).abs() < 1e-6);
    }

    #[test]
    fn sets_are_bounded_and_nothing_learned_says_nothing() {
        let windows: Vec<Vec<Symbol>> = (0..3000).map(|n| vec![n, n + 1]).collect();
        let sets = PairSets::fit(&windows.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(sets.sets.len(), 1000);
        assert_eq!(PairSets::default().score(&[1, 2]), None);
        assert_eq!(sets.score(&[]), Some(1.0));
    }
}
