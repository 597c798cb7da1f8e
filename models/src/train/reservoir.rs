//! An endless stream to a bounded sample in which every item had the same chance.
//!
//! Algorithm R (Vitter, *ACM Transactions on Mathematical Software* 11(1), 1985), then back into the stream's order.

use super::random::Random;

/// A sample of at most `bound` items.
pub struct Reservoir<T> {
    bound: usize,
    seen: usize,
    items: Vec<(usize, T)>,
    random: Random,
}

impl<T> Reservoir<T> {
    /// An empty sample; the same seed and stream give the same sample.
    #[must_use]
    pub fn new(bound: usize, seed: u64) -> Self {
        Self { bound, seen: 0, items: Vec::new(), random: Random::new(seed) }
    }

    /// Takes the next item, which may put out an earlier one or not be kept: gives the one that is not in the sample.
    pub fn push(&mut self, item: T) -> Option<T> {
        let at = self.seen;
        self.seen += 1;
        if self.items.len() < self.bound {
            self.items.push((at, item));
            return None;
        }
        let place = self.random.batch(1, self.seen)[0];
        let Some(slot) = self.items.get_mut(place) else { return Some(item) };
        Some(std::mem::replace(slot, (at, item)).1)
    }

    /// How many items came by; those not in the sample were thinned out.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// The sample in the order in which it came.
    #[must_use]
    pub fn into_items(mut self) -> Vec<T> {
        self.items.sort_by_key(|(at, _)| *at);
        self.items.into_iter().map(|(_, item)| item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_bounded_in_order_and_reaches_over_the_whole_stream() {
        let mut reservoir = Reservoir::new(200, 1);
        let left_out = (0..10_000).filter_map(|n| reservoir.push(n)).count();
        assert_eq!(left_out, 9_800);
        assert_eq!(reservoir.seen(), 10_000);
        let items = reservoir.into_items();
        assert!(items.len() == 200 && items.is_sorted());
        let early = items.iter().filter(|n| **n < 5000).count();
        assert!((70..130).contains(&early), "{early} of 200 are from the first half");
    }

    #[test]
    fn a_short_stream_is_kept_whole() {
        let mut reservoir = Reservoir::new(5, 1);
        assert!((0..5).all(|n| reservoir.push(n).is_none()));
        assert_eq!(reservoir.into_items(), [0, 1, 2, 3, 4]);
    }
}
