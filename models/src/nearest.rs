//! A vector to its distance from the learned windows: by how often calls were made, and by which were made at all.
//!
//! Both views are unit vectors over the system call slots: `q = sqrt(frequency)`, whose distance is Hellinger's, and
//! `r = w` on the slots that are not zero, scaled to length 1, whose product is the cosine of two sets (Ochiai 1957).
//! There `w^2 = 1 + ln((1 + n) / (1 + d))` for a call that `d` of the `n` prototypes show (Sparck Jones, *Journal of
//! Documentation* 28(1), 1972): a call that all windows make says little about which kind of window this is. The score is the mean of `1 - q . x` over the [`NEIGHBOURS`] nearest prototypes `x` (Angiulli and Pizzuti, PKDD 2002):
//! one odd window among those learned does not make its like normal. `1 - q . x` is also `sum (q_i - x_i)^2 / 2`, which
//! explains it slot by slot. At most [`PROTOTYPES_MAX`] prototypes are kept: beyond, those that lie farthest from all chosen before
//! (Gonzalez, *Theoretical Computer Science* 38, 1985), here from the three nearest of them.

use core::borrow::Borrow;

use serde::{Deserialize, Serialize};

use crate::features::Vector;
use crate::schema::{FEATURES, SYSCALL_SLOTS};

/// Prototypes kept at most: 512 windows of some 30 calls are 120 KB.
pub const PROTOTYPES_MAX: usize = 512;
/// How many neighbours' distances count.
pub const NEIGHBOURS: usize = 3;

/// One detector's answer.
#[derive(Clone, Debug)]
pub struct Output {
    /// Not negative; larger is odder.
    pub score: f32,
    /// Each feature's share of it, not normalised; [`FEATURES`] long.
    pub contributions: Vec<f32>,
}

/// What [`Prototypes::score`] gives.
#[derive(Clone, Debug)]
pub struct Distances {
    /// By frequency.
    pub nearest: Output,
    /// By set.
    pub repertoire: Output,
}

type Sparse = Vec<(u16, f32)>;

/// Learned windows, as unit vectors of square-root frequencies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prototypes {
    points: Vec<Sparse>,
    /// Weight of each slot in a set: follows from the points.
    #[serde(skip)]
    rarity: Vec<f32>,
}

impl Prototypes {
    /// Chooses prototypes among windows.
    #[must_use]
    pub fn fit(windows: impl IntoIterator<Item = impl Borrow<Vector>>) -> Self {
        let points: Vec<Sparse> = windows.into_iter().map(|window| frequencies(window.borrow())).collect();
        if points.len() <= PROTOTYPES_MAX {
            return Self::of(points);
        }
        // Of every window, how alike its three nearest chosen ones are, least first: each must be covered three times.
        let mut covered = vec![[0.0_f32; NEIGHBOURS]; points.len()];
        let mut chosen = vec![0];
        while chosen.len() < PROTOTYPES_MAX {
            let last = *chosen.last().expect("the first is chosen");
            let mut dense = [0.0; SYSCALL_SLOTS];
            spread(&points[last], &mut dense);
            for (covered, point) in covered.iter_mut().zip(&points) {
                covered[0] = covered[0].max(product(point, &dense));
                covered.sort_by(f32::total_cmp);
            }
            covered[last] = [f32::MAX; NEIGHBOURS];
            let sum = |covered: &[f32; NEIGHBOURS]| covered.iter().sum::<f32>();
            let farthest = covered.iter().enumerate().min_by(|a, b| sum(a.1).total_cmp(&sum(b.1)));
            chosen.push(farthest.expect("there are points").0);
        }
        Self::of(chosen.into_iter().map(|at| points[at].clone()).collect())
    }

    #[allow(clippy::cast_precision_loss, reason = "at most PROTOTYPES_MAX")]
    fn of(points: Vec<Sparse>) -> Self {
        let mut shown = [0.0_f32; SYSCALL_SLOTS];
        points.iter().flatten().for_each(|(slot, _)| shown[usize::from(*slot)] += 1.0);
        let all = points.len() as f32;
        let rarity = shown.iter().map(|shown| (1.0 + ((1.0 + all) / (1.0 + shown)).ln()).sqrt()).collect();
        Self { points, rarity }
    }

    /// Reads what [`Self::to_bytes`] wrote; `None` when it is not that, or not within the bounds.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (prototypes, rest) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        let fits = |(slot, value): &(u16, f32)| usize::from(*slot) < SYSCALL_SLOTS && value.is_finite();
        let bounded = prototypes.points.len() <= PROTOTYPES_MAX
            && prototypes.points.iter().all(|point| point.len() <= SYSCALL_SLOTS && point.iter().all(fits));
        (rest.is_empty() && bounded).then(|| Self::of(prototypes.points))
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let values = self.points.iter().map(Vec::len).sum::<usize>();
        values * size_of::<(u16, f32)>() + self.points.len() * size_of::<Sparse>() + 4 * self.rarity.len()
    }

    /// As stored in a bundle.
    ///
    /// # Panics
    /// Never: numbers have a postcard form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("numbers have a postcard form")
    }

    /// Both distances of a window; `None` when there are no prototypes.
    #[must_use]
    pub fn score(&self, vector: &Vector) -> Option<Distances> {
        let query = frequencies(vector);
        let mut by_frequency = [0.0; SYSCALL_SLOTS];
        let mut by_set = [0.0; SYSCALL_SLOTS];
        spread(&query, &mut by_frequency);
        spread(&self.repertoire(&query), &mut by_set);
        let near = self.neighbours(|point| product(point, &by_frequency));
        let like = self.neighbours(|point| {
            let (common, square) = point.iter().fold((0.0, 0.0), |(common, square), (slot, _)| {
                let (slot, rarity) = (usize::from(*slot), self.rarity(*slot));
                (common + by_set[slot] * rarity, square + rarity * rarity)
            });
            common / square.max(f32::MIN_POSITIVE).sqrt()
        });
        let like: Vec<Sparse> = like.into_iter().map(|point| self.repertoire(point)).collect();
        Some(Distances {
            nearest: difference(&by_frequency, &near)?,
            repertoire: difference(&by_set, &like.iter().collect::<Vec<_>>())?,
        })
    }

    /// Prototypes held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// Nothing was learned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Which calls a window shows, each by its rarity, scaled to length 1.
    fn repertoire(&self, point: &Sparse) -> Sparse {
        let square: f32 = point.iter().map(|(slot, _)| self.rarity(*slot).powi(2)).sum();
        let length = square.max(f32::MIN_POSITIVE).sqrt();
        point.iter().map(|(slot, _)| (*slot, self.rarity(*slot) / length)).collect()
    }

    /// 1 while nothing was learned.
    fn rarity(&self, slot: u16) -> f32 {
        self.rarity.get(usize::from(slot)).copied().unwrap_or(1.0)
    }

    /// The nearest first; fewer when there are fewer prototypes.
    fn neighbours(&self, likeness: impl Fn(&Sparse) -> f32) -> Vec<&Sparse> {
        let mut best: [(f32, Option<&Sparse>); NEIGHBOURS] = [(f32::MIN, None); NEIGHBOURS];
        for point in &self.points {
            let likeness = likeness(point);
            if likeness > best[NEIGHBOURS - 1].0 {
                best[NEIGHBOURS - 1] = (likeness, Some(point));
                best.sort_by(|a, b| b.0.total_cmp(&a.0));
            }
        }
        best.into_iter().filter_map(|(_, point)| point).collect()
    }
}

/// Square roots of the call frequencies, scaled to length 1.
fn frequencies(vector: &Vector) -> Sparse {
    let sum: f32 = vector[..SYSCALL_SLOTS].iter().sum();
    let used = (0_u16..).zip(&vector[..SYSCALL_SLOTS]).filter(|(_, value)| **value > 0.0);
    used.map(|(slot, value)| (slot, (value / sum).sqrt())).collect()
}

fn spread(point: &Sparse, dense: &mut [f32; SYSCALL_SLOTS]) {
    for (slot, value) in point {
        dense[usize::from(*slot)] = *value;
    }
}

fn product(point: &Sparse, dense: &[f32; SYSCALL_SLOTS]) -> f32 {
    point.iter().map(|(slot, value)| value * dense[usize::from(*slot)]).sum()
}

fn difference(query: &[f32; SYSCALL_SLOTS], points: &[&Sparse]) -> Option<Output> {
    let mut contributions = vec![0.0; FEATURES];
    #[allow(clippy::cast_precision_loss, reason = "at most three")]
    let n = points.len() as f32;
    for point in points {
        let mut dense = [0.0; SYSCALL_SLOTS];
        spread(point, &mut dense);
        for (out, (a, b)) in contributions.iter_mut().zip(query.iter().zip(&dense)) {
            *out += (a - b).powi(2) / 2.0 / n;
        }
    }
    (!points.is_empty()).then(|| Output { score: contributions.iter().sum(), contributions })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(shares: &[(usize, f32)]) -> Vector {
        let mut vector = [0.0; FEATURES];
        shares.iter().for_each(|(slot, share)| vector[*slot] = *share);
        vector
    }

    #[test]
    fn a_learned_window_is_at_no_distance_once_it_was_seen_three_times() {
        let (usual, rare) = (vector(&[(0, 0.5), (1, 0.5)]), vector(&[(7, 1.0)]));
        let prototypes = Prototypes::fit([&usual, &usual, &usual, &rare]);
        let distances = prototypes.score(&usual).unwrap();
        assert!(distances.nearest.score < 1e-6 && distances.repertoire.score < 1e-6, "{distances:?}");
        let score = prototypes.score(&rare).unwrap().nearest.score;
        assert!((score - 2.0 / 3.0).abs() < 1e-6, "one odd window is not a habit: {score}");
    }

    #[test]
    fn distances_by_hand() {
        let prototypes = Prototypes::fit([&vector(&[(0, 0.64), (1, 0.36)])]);
        let distances = prototypes.score(&vector(&[(0, 0.36), (2, 0.64)])).unwrap();
        // 1 - 0.6 x 0.8; one call in common, whose square weight is 1, of {1, 1} and {1, 1 + ln 2}.
        assert!((distances.nearest.score - 0.52).abs() < 1e-6, "{distances:?}");
        let expected = 1.0 - 1.0 / (2.0 * (2.0 + 2.0_f32.ln())).sqrt();
        assert!((distances.repertoire.score - expected).abs() < 1e-6, "{distances:?}");
        assert!((distances.nearest.contributions[2] - 0.32).abs() < 1e-6);
        assert!((distances.nearest.contributions[1] - 0.18).abs() < 1e-6);
    }

    #[test]
    fn beyond_the_bound_no_window_is_far_from_a_prototype() {
        let windows: Vec<Vector> = (0..2000_u16)
            .map(|n| {
                let share = f32::from(n % 40) / 80.0 + 0.1;
                vector(&[(usize::from(n % 20), share), (100, 1.0 - share)])
            })
            .collect();
        let prototypes = Prototypes::fit(&windows);
        assert_eq!(prototypes.len(), PROTOTYPES_MAX);
        let worst = windows.iter().map(|window| prototypes.score(window).unwrap().nearest.score);
        assert!(worst.fold(0.0, f32::max) < 0.02);
    }

    #[test]
    fn a_rare_call_counts_more_than_one_that_all_windows_make() {
        let mut windows = vec![vector(&[(0, 0.5), (1, 0.5)]); 40];
        windows.extend(vec![vector(&[(0, 0.5), (2, 0.5)]); 3]);
        let prototypes = Prototypes::fit(&windows);
        let odd = |slot| prototypes.score(&vector(&[(slot, 0.5), (9, 0.5)])).unwrap().repertoire.score;
        assert!(odd(0) > odd(2) + 0.1, "what is left in common is rare: {} and {}", odd(0), odd(2));
    }

    #[test]
    fn bytes_give_the_same_prototypes_and_no_truncation_does() {
        let prototypes = Prototypes::fit([&vector(&[(0, 0.5), (1, 0.5)]), &vector(&[(300, 1.0)])]);
        let bytes = prototypes.to_bytes();
        assert_eq!(Prototypes::from_bytes(&bytes), Some(prototypes));
        assert!((0..bytes.len()).all(|end| Prototypes::from_bytes(&bytes[..end]).is_none()));
        let outside = Prototypes { points: vec![vec![(400, 0.5)]], rarity: vec![] };
        assert_eq!(Prototypes::from_bytes(&outside.to_bytes()), None);
    }

    #[test]
    fn an_empty_window_and_an_empty_baseline_are_no_accident() {
        let prototypes = Prototypes::fit([&vector(&[(0, 1.0)])]);
        assert!(prototypes.score(&vector(&[])).unwrap().nearest.score.is_finite());
        assert!(Prototypes::default().score(&vector(&[(0, 1.0)])).is_none());
    }
}
