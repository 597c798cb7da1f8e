//! Raw detector outputs to one score from 0 to 100, by what held-out normal windows gave.
//!
//! Each detector's output becomes a robust z, `(ln(s + offset) - median) / spread`, clipped to -3 to 40. Beyond 3 it
//! counts as `3 + 2 (sqrt(z - 2) - 1)`, which has the same slope there: one detector may start the alarm, and it does
//! not outvote all others ten times. The weighted mean of the detectors that spoke is the fused z. Its rank among the `n` calibration windows is a conformal p-value
//! (Vovk et al., *Algorithmic Learning in a Random World*, 2005).
//!
//! Beyond the largest calibration value, by an excess `x`, the p-value goes on as
//! `(1 + x / S)^-k / (n + 1)`, with `S` the sum of the `k` largest values' excesses over the one before them, the
//! largest counted twice. For an exponential tail of unknown scale that is exact at every `n`: the `j`th spacing from
//! the top of ordered exponentials is exponential with rate `j` (Renyi 1953), a new largest value makes each of the
//! old ones one rank lower, so `x` and `S` are independent gammas of shapes 1 and `k`. For a lighter tail it errs
//! towards silence. `exp(-x k / S)`, as if the scale were known, made four windows of evidence look like certainty.
//!
//! Categorical novelty has no part in that extrapolation. It adds decades to `-log10 p`, and a kind of trait that
//! went on bringing news while the program was being learned cannot add more than that rate allows: [`News`].

use serde::{Deserialize, Serialize};

use crate::novelty::Kind;

/// The smallest mean excess of the tail, in units of z.
pub const TAIL_FLOOR: f32 = 0.25;

const Z_MIN: f32 = -3.0;
const Z_MAX: f32 = 40.0;
const SPREAD_FLOOR: f32 = 0.15;
/// Of a detector's mean output: what is added before the logarithm, so that a zero is small and not infinite.
const OFFSET_SHARE: f32 = 0.1;
const OFFSET_FLOOR: f32 = 1e-4;
/// Largest values that give the tail its scale: a quarter of all, within these bounds.
const TAIL_VALUES: [usize; 2] = [4, 64];
/// Decades that count in full, and by how much what is beyond them may add at most; see [`temper`].
const TEMPERED_FROM: f32 = 2.5;
const TEMPERED_BY: f32 = 0.8;
/// How far a window stays below HIGH that no act worth MEDIUM speaks against, in decades.
const BELOW_HIGH: f32 = 0.05;
/// Decades that all faint kinds add up to at most: with the most that statistics give, still below HIGH.
pub const FAINT_MAX: f32 = 2.0 / POINTS_PER_DECADE;
/// Points of a kind that are worth one decade.
const POINTS_PER_DECADE: f32 = 3.0;

/// `-log10(p)` to score: (0, 0), (2, 40), (4, 70), (6, 90), (8, 100), straight lines between.
const SCORE_KNOTS: [(f32, f32); 5] = [(0.0, 0.0), (2.0, 40.0), (4.0, 70.0), (6.0, 90.0), (8.0, 100.0)];

/// Calibration of all detectors of one baseline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// One per detector.
    pub detectors: Vec<DetectorCalibration>,
    /// Fused z of every calibration window, ascending.
    pub fused: Vec<f32>,
    /// How often each kind of trait was new in the later part of learning.
    pub news: News,
}

/// Median and spread of one detector's `ln(score + offset)` on calibration windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectorCalibration {
    /// The detector's name, e.g. `vae`.
    pub name: String,
    /// Weight in the fused z.
    pub weight: f32,
    /// Added to the raw output before the logarithm.
    pub offset: f32,
    /// Median of `ln(score + offset)`.
    pub median: f32,
    /// 84 % quantile less the median, at least a floor.
    pub spread: f32,
}

/// A detector's weight in the fused z: 0 for an unknown name.
///
/// The first five were chosen by AUC and detection rate on the test split of the development traces, attacks included:
/// expect less on traces nobody has seen. That `repertoire` counts double was chosen without attacks: by how well
/// normal traces into which 10 to 80 calls of another program were spliced, and normal traces of another service, are
/// told from normal ones. Which calls were made, which pairs of them, and how surprising their order is say most;
/// frequencies say less across programs of other load. 6-gram novelty is what surprisal says, coarser, and stays for
/// the kernel. The LSTM was near chance.
#[must_use]
pub fn weight(detector: &str) -> f32 {
    match detector {
        "repertoire" => 4.0,
        "order" | "surprisal" | "pairs" => 2.0,
        "vae" => 1.5,
        "nearest" => 0.5,
        "lstm" => 0.1,
        _ => 0.0,
    }
}

impl DetectorCalibration {
    /// Learns offset, median and spread from raw outputs on calibration windows; weight 0 when there are none.
    #[must_use]
    pub fn fit(name: &str, weight: f32, raw: &[f32]) -> Self {
        let finite = sorted(raw.iter().copied());
        if finite.is_empty() {
            return Self { name: name.to_owned(), weight: 0.0, offset: 0.0, median: 0.0, spread: 1.0 };
        }
        #[allow(clippy::cast_precision_loss, reason = "a calibration holds thousands of values at most")]
        let mean = finite.iter().sum::<f32>() / finite.len() as f32;
        let offset = (OFFSET_SHARE * mean).max(OFFSET_FLOOR);
        let logs: Vec<f32> = finite.iter().map(|score| ln(score + offset)).collect();
        let median = quantile(&logs, 0.5);
        let spread = (quantile(&logs, 0.84) - median).max(SPREAD_FLOOR);
        Self { name: name.to_owned(), weight, offset, median, spread }
    }

    /// Robust z of a raw output.
    #[must_use]
    pub fn z(&self, raw: f32) -> f32 {
        ((ln(raw + self.offset) - self.median) / self.spread).clamp(Z_MIN, Z_MAX)
    }

    /// What a raw output adds to the weighted sum: divided by the weights of all that spoke, its share of the fused z.
    #[must_use]
    pub fn pull(&self, raw: f32) -> f32 {
        self.weight * compress(self.z(raw))
    }
}

/// How often windows brought a trait of a kind that no earlier window had.
///
/// Kind `K` starts with the rate `r = 10^-d`, `d` its points over three: what we hold of such a thing on a program
/// that never did it. Learning then counts `c` windows of `n` with news of this kind, and the rate becomes
/// `max(r, (c + r) / (n + 1))`, the mean under a prior worth one window and never below what the prior said (the
/// missing mass of Good, Biometrika 1953). A program that opened a new sensitive file in one learning window of 80
/// therefore gives 1.9 decades for the next one, not 4.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct News {
    /// Windows looked at.
    pub windows: u32,
    /// Kind and number of windows with news of it; kinds without any are absent.
    pub counts: Vec<(u8, u32)>,
}

impl News {
    /// Counts over windows in time order; what the first `settled` of them show is not news.
    #[must_use]
    pub fn count<'a>(windows: impl IntoIterator<Item = &'a [u64]>, settled: usize) -> Self {
        let mut seen = std::collections::BTreeSet::new();
        let mut news = Self::default();
        for (at, traits) in windows.into_iter().enumerate() {
            let fresh = traits.iter().filter(|id| seen.insert(**id)).filter_map(|id| Kind::of(*id));
            let mut kinds: Vec<u8> = fresh.map(|kind| kind as u8).collect();
            if at < settled {
                continue;
            }
            news.windows += 1;
            kinds.sort_unstable();
            kinds.dedup();
            for kind in kinds {
                match news.counts.iter_mut().find(|(known, _)| *known == kind) {
                    Some((_, count)) => *count += 1,
                    None => news.counts.push((kind, 1)),
                }
            }
        }
        news
    }

    /// Decades of evidence in the kinds of a window's new traits, one entry per trait.
    #[must_use]
    pub fn decades(&self, fresh: &[Kind]) -> f32 {
        self.by_kind(fresh).iter().map(|(_, decades)| decades).sum()
    }

    /// The same, by kind.
    ///
    /// Several new traits of one kind are hardly independent: the second, fourth and eighth add half as much each. Faint
    /// ones are what the statistical detectors see too, so all of them together are worth [`FAINT_MAX`] at most.
    #[must_use]
    pub fn by_kind(&self, fresh: &[Kind]) -> Vec<(Kind, f32)> {
        let mut worth: Vec<(Kind, f32)> = Vec::new();
        for (at, kind) in fresh.iter().enumerate() {
            if fresh[..at].contains(kind) {
                continue;
            }
            #[allow(clippy::cast_precision_loss, reason = "a window holds 128 traits at most")]
            let count = fresh.iter().filter(|other| *other == kind).count() as f32;
            worth.push((*kind, self.decades_of(*kind) * (1.0 + 0.5 * count.log2())));
        }
        let faint: f32 = worth.iter().filter(|(kind, _)| kind.is_faint()).map(|(_, decades)| decades).sum();
        if faint > FAINT_MAX {
            for (_, decades) in worth.iter_mut().filter(|(kind, _)| kind.is_faint()) {
                *decades *= FAINT_MAX / faint;
            }
        }
        worth
    }

    fn decades_of(&self, kind: Kind) -> f32 {
        let before = kind.points() / POINTS_PER_DECADE;
        let count = self.counts.iter().find(|(known, _)| *known == kind as u8).map_or(0, |(_, count)| *count);
        if count == 0 {
            return before;
        }
        let rate = (f64::from(count) + 10_f64.powf(-f64::from(before))) / (f64::from(self.windows) + 1.0);
        #[allow(clippy::cast_possible_truncation, reason = "a small number")]
        let seen = -rate.min(1.0).log10() as f32;
        before.min(seen)
    }
}

impl Calibration {
    /// Weighted mean of the detectors that gave an output; `None` when none with a weight did.
    #[must_use]
    pub fn fuse(&self, raw: &[(&str, f32)]) -> Option<f32> {
        let known = raw.iter().filter_map(|(name, score)| {
            self.detectors.iter().find(|detector| detector.name == *name).map(|detector| (detector, *score))
        });
        let (sum, weight) = known.fold((0.0, 0.0), |(sum, weight), (detector, score)| {
            (sum + detector.pull(score), weight + detector.weight)
        });
        (weight > 0.0).then(|| sum / weight)
    }

    /// Keeps the fused z of calibration windows.
    #[must_use]
    pub fn with_fused(mut self, fused: impl IntoIterator<Item = f32>) -> Self {
        self.fused = sorted(fused.into_iter());
        self
    }

    /// The p-value of a fused z; 1 when there is no calibration.
    #[must_use]
    pub fn p_value(&self, fused: f32) -> f64 {
        let Some(largest) = self.fused.last().copied() else { return 1.0 };
        let at_least = self.fused.len() - self.fused.partition_point(|normal| *normal < fused);
        #[allow(clippy::cast_precision_loss, reason = "a calibration holds thousands of values at most")]
        let n = (self.fused.len() + 1) as f64;
        if fused <= largest {
            #[allow(clippy::cast_precision_loss, reason = "as above")]
            return (at_least + 1) as f64 / n;
        }
        let (k, sum) = self.tail();
        (1.0 + f64::from(fused - largest) / sum).powi(-k) / n
    }

    /// The score of a fused z and of the `decades` of categorical evidence beside it, 0 to 100.
    #[must_use]
    pub fn score(&self, fused: Option<f32>, decades: f32) -> f32 {
        score_of(fused.map_or(0.0, |fused| temper(self.p_value(fused), decades)) + decades)
    }

    /// How many of the largest values shape the tail, and the sum `S` of their excesses; see the module.
    fn tail(&self) -> (i32, f64) {
        let n = self.fused.len();
        let k = (n / 4).clamp(TAIL_VALUES[0], TAIL_VALUES[1]).min(n.saturating_sub(1)).max(1);
        let threshold = self.fused[n.saturating_sub(k + 1)];
        let top = &self.fused[n.saturating_sub(k)..];
        let sum: f64 = top.iter().chain(top.last()).map(|z| f64::from(z - threshold)).sum();
        let k = i32::try_from(k).expect("bounded by TAIL_VALUES");
        (k, sum.max(f64::from(k) * f64::from(TAIL_FLOOR)))
    }
}

/// What the p-value of one window's statistics counts for, in decades: `d = -log10 p` up to 2.5, then
/// `2.5 + 0.8 (1 - exp(-(d - 2.5) / 0.8))`, which never gets to 3.3.
///
/// A few hundred windows of calibration do not tell once in 10^4 from once in 10^6, however far their tail is drawn out,
/// and a device judges 10^5 windows a day: by statistics alone one window is MEDIUM at most. The same with first-time acts
/// beside it, unless their `evidence` is worth MEDIUM by itself: then both add up.
#[must_use]
pub fn temper(p: f64, evidence: f32) -> f32 {
    #[allow(clippy::cast_possible_truncation, reason = "-log10(p) is a small number")]
    let decades = -p.max(f64::MIN_POSITIVE).log10() as f32;
    let beyond = (decades - TEMPERED_FROM).max(0.0);
    let worth = decades.min(TEMPERED_FROM) + TEMPERED_BY * (1.0 - (-beyond / TEMPERED_BY).exp());
    let [(_, _), (medium, _), (high, _), ..] = SCORE_KNOTS;
    if evidence < medium { worth.min(high - BELOW_HIGH - evidence) } else { worth }
}

/// The score of `-log10 p`: straight lines through p = 1 (0), 1e-2 (40), 1e-4 (70), 1e-6 (90) and 1e-8 (100).
#[must_use]
pub fn score_of(surprise: f32) -> f32 {
    match SCORE_KNOTS.iter().position(|(x, _)| surprise < *x) {
        None => 100.0,
        Some(0) => 0.0,
        Some(at) => {
            let ((x0, y0), (x1, y1)) = (SCORE_KNOTS[at - 1], SCORE_KNOTS[at]);
            y0 + (surprise - x0) / (x1 - x0) * (y1 - y0)
        }
    }
}

/// Slower than itself beyond 3.
fn compress(z: f32) -> f32 {
    if z <= 3.0 { z } else { 3.0 + 2.0 * ((z - 2.0).sqrt() - 1.0) }
}

fn ln(score: f32) -> f32 {
    score.max(1e-12).ln()
}

fn sorted(values: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut values: Vec<f32> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f32::total_cmp);
    values
}

/// Nearest-rank quantile of ascending values.
fn quantile(sorted: &[f32], share: f32) -> f32 {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into a short slice, share in 0 to 1"
    )]
    let at = (share * (sorted.len() - 1) as f32).round() as usize;
    sorted[at]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::novelty::trait_id;

    fn calibration() -> Calibration {
        Calibration::default().with_fused((0..99_u8).map(|n| f32::from(n) / 33.0 - 1.5))
    }

    #[test]
    fn the_p_value_is_the_share_of_normals_at_least_as_odd() {
        let calibration = calibration();
        assert!((calibration.p_value(0.0) - 0.5).abs() < 0.02);
        assert!((calibration.p_value(*calibration.fused.last().unwrap()) - 0.02).abs() < 1e-9);
        assert_eq!(calibration.p_value(-9.0), 1.0);
    }

    #[test]
    fn odder_is_never_less_severe() {
        let calibration = calibration();
        let scores: Vec<f32> = (-30_i8..100).map(|z| calibration.score(Some(f32::from(z)), 0.0)).collect();
        assert!(scores.windows(2).all(|pair| pair[0] <= pair[1]), "{scores:?}");
        assert_eq!(scores[0], 0.0);
        assert!(scores.last().is_some_and(|most| (55.0..60.0).contains(most)), "statistics alone are MEDIUM");
        let faint = [Kind::Syscall, Kind::Capability, Kind::Volume, Kind::Sent];
        let faint = News::default().decades(&faint);
        assert!(calibration.score(Some(100.0), faint) < 70.0);
        let score = |kinds: &[Kind]| calibration.score(Some(100.0), News::default().decades(kinds));
        assert!((60.0..70.0).contains(&score(&[Kind::Exec])), "a first program does not make it HIGH");
        assert!(score(&[Kind::Shell]) > 70.0 && score(&[Kind::Exec, Kind::Port]) > 70.0);
        assert!(score(&[Kind::Sensitive]) > 90.0);
    }

    #[test]
    fn one_in_a_hundred_is_where_medium_starts() {
        let many = Calibration::default().with_fused((0..9999_u16).map(f32::from));
        let score = many.score(Some(9900.0), 0.0);
        assert!((score - 40.0).abs() < 0.5, "{score}");
    }

    /// A source of standard normals that needs no dependency: xorshift and Box-Muller.
    fn normals(seed: u64) -> impl FnMut() -> f32 {
        let mut state = seed;
        move || {
            let mut uniform = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                ((state >> 40) as f32 + 0.5) / (1_u32 << 24) as f32
            };
            let radius = (-2.0 * uniform().ln()).sqrt();
            radius * (core::f32::consts::TAU * uniform()).cos()
        }
    }

    /// The share of exchangeable normals whose p-value is at most `target`, over many calibrations of size `n`.
    fn obtained(n: usize, target: f64, draw: &mut impl FnMut() -> f32) -> f64 {
        let (rounds, tests) = (4000, 25);
        let mut hits = 0_u32;
        for _ in 0..rounds {
            let calibration = Calibration::default().with_fused((0..n).map(|_| draw()));
            hits += (0..tests).filter(|_| calibration.p_value(draw()) <= target).count() as u32;
        }
        f64::from(hits) / f64::from(rounds * tests as u32)
    }

    #[test]
    fn the_false_positive_rate_promised_is_the_rate_obtained_also_with_sixteen_windows() {
        let mut normal = normals(0x5eed);
        for (n, target, least) in [
            (16, 0.05, 0.6),
            (16, 0.01, 0.4),
            (48, 0.05, 0.75),
            (48, 0.01, 0.4),
            (200, 0.05, 0.85),
            (200, 0.01, 0.6),
        ] {
            let rate = obtained(n, target, &mut normal) / target;
            assert!((least..=1.1).contains(&rate), "n = {n}, target {target}: {rate} of what was promised");
        }
    }

    #[test]
    fn exponential_tails_are_met_exactly_at_every_size() {
        let mut normal = normals(77);
        let mut exponential = move || 0.5 * (normal().powi(2) + normal().powi(2));
        for n in [16, 48] {
            let rate = obtained(n, 0.01, &mut exponential) / 0.01;
            assert!((0.85..=1.15).contains(&rate), "n = {n}: {rate}");
        }
    }

    #[test]
    fn an_uneasy_window_after_sixteen_is_no_alert() {
        // From a quiet gateway: detectors at z 4.3 and 0.9 had scored 42 with 16 calibration windows.
        let sixteen = [-1.5, -1.1, -0.9, -0.7, -0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5];
        let score = Calibration::default().with_fused(sixteen).score(Some(f32::midpoint(4.3, 0.9)), 0.0);
        assert!(score < 40.0, "{score}");
    }

    #[test]
    fn a_missing_detector_does_not_silence_the_others() {
        let mut calibration = calibration();
        for name in ["vae", "lstm"] {
            calibration.detectors.push(DetectorCalibration::fit(name, 0.5, &[1.0, 1.0, 2.0]));
        }
        let both = calibration.fuse(&[("vae", 8.0), ("lstm", 8.0)]);
        assert!(both > Some(2.0));
        assert_eq!(both, calibration.fuse(&[("vae", 8.0)]));
        assert_eq!(calibration.fuse(&[("other", 8.0)]), None);
    }

    #[test]
    fn a_detector_that_was_always_zero_gives_a_bounded_z_to_a_little() {
        let detector = DetectorCalibration::fit("ngram", 1.0, &[0.0; 20]);
        assert_eq!(detector.z(0.0), 0.0);
        assert!(detector.z(0.2) > detector.z(0.01) && detector.z(0.01) > 2.0);
    }

    #[test]
    fn without_calibration_nothing_is_odd() {
        assert_eq!(Calibration::default().score(Some(1000.0), 0.0), 0.0);
    }

    #[test]
    fn a_kind_that_kept_bringing_news_is_weak_evidence() {
        let quiet = vec![trait_id(Kind::Sensitive, "/etc/shadow")];
        let steady = vec![quiet; 80];
        let news = |windows: &[Vec<u64>]| News::count(windows.iter().map(Vec::as_slice), 48);
        assert_eq!(news(&steady), News { windows: 32, counts: vec![] });
        assert_eq!(news(&steady).decades(&[Kind::Sensitive]), 4.0);
        let mut busy = steady;
        for (at, window) in busy.iter_mut().enumerate().skip(50).take(3) {
            window.push(trait_id(Kind::Sensitive, &at.to_string()));
        }
        let decades = news(&busy).decades(&[Kind::Sensitive]);
        assert!((decades - (33.0_f32 / 3.0).log10()).abs() < 0.01, "{decades}");
        assert_eq!(news(&busy).decades(&[Kind::Shell]), Kind::Shell.points() / POINTS_PER_DECADE);
    }

    #[test]
    fn many_new_traits_of_one_kind_are_not_many_times_the_evidence() {
        let news = News::default();
        let one = news.decades(&[Kind::Port]);
        assert!((news.decades(&[Kind::Port; 4]) - 2.0 * one).abs() < 1e-6);
        assert!(news.decades(&[Kind::Shell, Kind::Exec]) > news.decades(&[Kind::Shell]));
    }
}
