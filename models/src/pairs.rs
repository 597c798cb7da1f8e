//! Calls in order to how unlike the set of neighbouring pairs is to the sets of learned windows.
//!
//! A window is the set `A` of all `(call, next call)` it shows. Its score is the mean of
//! `1 - |A n B| / sqrt(|A| |B|)` (Ochiai 1957) over the [`NEIGHBOURS`] most alike learned sets `B`. It says nothing
//! about how often: a loop that ran ten thousand times is the loop that ran once, and what is left is which work was
//! done after which. That is what a host full of programs has most in common from one day to the next.

use serde::{Deserialize, Serialize};

use crate::nearest::NEIGHBOURS;
use crate::sequence::Symbol;

/// Learned sets kept at most; of more, every so many, which keeps the whole learning time.
pub const SETS_MAX: usize = 1024;
/// Pairs of one set at most; later new ones are left out.
pub const PAIRS_MAX: usize = 512;

/// The learned sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairSets {
    sets: Vec<Vec<u32>>,
}

impl PairSets {
    /// Keeps the sets of some windows, each a thread's calls in order.
    #[must_use]
    pub fn fit(learned: &[&[Symbol]]) -> Self {
        let every = learned.len().div_ceil(SETS_MAX).max(1);
        Self { sets: learned.iter().step_by(every).map(|calls| pairs(calls)).collect() }
    }

    /// How unlike a window is; `None` when nothing was learned.
    ///
    /// ```
    /// use models::pairs::PairSets;
    /// let learned = PairSets::fit(&[&[1, 2, 3, 1, 2, 3]]);
    /// assert_eq!(learned.score(&[2, 3, 1, 2]), Some(0.0));
    /// assert_eq!(learned.score(&[3, 2, 1]), Some(1.0));
    /// ```
    #[must_use]
    pub fn score(&self, calls: &[Symbol]) -> Option<f32> {
        let query = pairs(calls);
        let mut best = [f32::MIN; NEIGHBOURS];
        for set in &self.sets {
            let alike = likeness(&query, set);
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
}

/// The pairs of some calls, sorted, without repeats.
fn pairs(calls: &[Symbol]) -> Vec<u32> {
    let pair = |pair: &[Symbol]| u32::from(pair[0]) << 16 | u32::from(pair[1]);
    let set: std::collections::BTreeSet<u32> = calls.windows(2).map(pair).collect();
    set.into_iter().take(PAIRS_MAX).collect()
}

#[allow(clippy::cast_precision_loss, reason = "at most PAIRS_MAX")]
fn likeness(a: &[u32], b: &[u32]) -> f32 {
    let (mut i, mut j, mut common) = (0, 0, 0_u32);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            core::cmp::Ordering::Less => i += 1,
            core::cmp::Ordering::Greater => j += 1,
            core::cmp::Ordering::Equal => (i, j, common) = (i + 1, j + 1, common + 1),
        }
    }
    common as f32 / ((a.len() * b.len()).max(1) as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_often_does_not_matter_and_order_does() {
        let learned: Vec<Symbol> = [1, 2, 3].repeat(3);
        let sets = PairSets::fit(&[&learned]);
        assert_eq!(sets.score(&[1, 2, 3].repeat(900)), Some(0.0));
        assert_eq!(sets.score(&[3, 2, 1].repeat(3)), Some(1.0));
    }

    #[test]
    fn the_score_by_hand() {
        // {12, 23} has one pair in common with {23, 34, 45}, and none with {67}.
        let sets = PairSets::fit(&[&[2, 3, 4, 5], &[6, 7]]);
        let expected = 1.0 - (1.0 / 6.0_f32.sqrt() + 0.0) / 2.0;
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
