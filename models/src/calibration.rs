//! Raw detector outputs to one score from 0 to 100, by what held-out normal windows gave.
//!
//! Each detector's output becomes a robust z, `(ln s - median) / spread`, clipped to -3 to 40; the weighted mean
//! of the detectors that had enough windows, plus the points of [`crate::novelty`], is the fused z. Its rank among
//! the calibration windows is a conformal p-value (Vovk et al., *Algorithmic Learning in a Random World*, 2005).
//! Beyond the largest calibration value the p-value continues as an exponential tail whose scale is the mean excess
//! of the upper sixth, at least [`TAIL_FLOOR`]: an extrapolation, and named so in `docs/specification.md`.

use serde::{Deserialize, Serialize};

/// The smallest scale of the exponential tail, in units of z.
pub const TAIL_FLOOR: f32 = 0.5;

const Z_MIN: f32 = -3.0;
const Z_MAX: f32 = 40.0;
const SPREAD_FLOOR: f32 = 0.15;

/// `-log10(p)` to score: (0, 0), (2, 40), (4, 70), (6, 90), (8, 100), straight lines between.
const SCORE_KNOTS: [(f32, f32); 5] = [(0.0, 0.0), (2.0, 40.0), (4.0, 70.0), (6.0, 90.0), (8.0, 100.0)];

/// Calibration of all detectors of one baseline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// One per detector.
    pub detectors: Vec<DetectorCalibration>,
    /// Fused z of every calibration window, ascending.
    pub fused: Vec<f32>,
}

/// Median and spread of one detector's `ln(score)` on calibration windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectorCalibration {
    /// `vae` or `lstm`.
    pub name: String,
    /// Weight in the fused z.
    pub weight: f32,
    /// Median of `ln(score)`.
    pub median: f32,
    /// 84 % quantile less the median, at least a floor.
    pub spread: f32,
}

impl DetectorCalibration {
    /// Learns median and spread from raw outputs on calibration windows; weight 0 when there are none.
    #[must_use]
    pub fn fit(name: &str, weight: f32, raw: &[f32]) -> Self {
        let logs = sorted(raw.iter().map(|score| ln(*score)));
        if logs.is_empty() {
            return Self { name: name.to_owned(), weight: 0.0, median: 0.0, spread: 1.0 };
        }
        let median = quantile(&logs, 0.5);
        let spread = (quantile(&logs, 0.84) - median).max(SPREAD_FLOOR);
        Self { name: name.to_owned(), weight, median, spread }
    }

    /// Robust z of a raw output.
    #[must_use]
    pub fn z(&self, raw: f32) -> f32 {
        ((ln(raw) - self.median) / self.spread).clamp(Z_MIN, Z_MAX)
    }
}

impl Calibration {
    /// Weighted mean of the detectors that gave an output, plus `novelty` points.
    #[must_use]
    pub fn fuse(&self, raw: &[(&str, f32)], novelty: f32) -> f32 {
        let known = raw.iter().filter_map(|(name, score)| {
            self.detectors.iter().find(|detector| detector.name == *name).map(|detector| (detector, *score))
        });
        let (sum, weight) = known.fold((0.0, 0.0), |(sum, weight), (detector, score)| {
            (sum + detector.weight * detector.z(score), weight + detector.weight)
        });
        if weight > 0.0 { sum / weight + novelty } else { novelty }
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
        let excess = f64::from(fused - largest) / f64::from(self.tail_scale());
        (-excess).exp() / n
    }

    /// The score of a fused z, 0 to 100.
    #[must_use]
    pub fn score(&self, fused: f32) -> f32 {
        #[allow(clippy::cast_possible_truncation, reason = "-log10(p) is a small number")]
        let surprise = -self.p_value(fused).max(f64::MIN_POSITIVE).log10() as f32;
        let above = SCORE_KNOTS.iter().position(|(x, _)| surprise < *x);
        match above {
            None => 100.0,
            Some(0) => 0.0,
            Some(at) => {
                let ((x0, y0), (x1, y1)) = (SCORE_KNOTS[at - 1], SCORE_KNOTS[at]);
                y0 + (surprise - x0) / (x1 - x0) * (y1 - y0)
            }
        }
    }

    fn tail_scale(&self) -> f32 {
        let threshold = quantile(&self.fused, 0.84);
        let tail: Vec<f32> = self.fused.iter().filter(|z| **z > threshold).map(|z| z - threshold).collect();
        #[allow(clippy::cast_precision_loss, reason = "as above")]
        let mean = tail.iter().sum::<f32>() / tail.len().max(1) as f32;
        mean.max(TAIL_FLOOR)
    }
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
        let scores: Vec<f32> = (-30_i8..100).map(|z| calibration.score(f32::from(z) / 3.0)).collect();
        assert!(scores.windows(2).all(|pair| pair[0] <= pair[1]), "{scores:?}");
        assert_eq!((scores[0], *scores.last().unwrap()), (0.0, 100.0));
    }

    #[test]
    fn one_in_a_hundred_is_where_medium_starts() {
        let many = Calibration::default().with_fused((0..9999_u16).map(f32::from));
        assert!((many.score(9900.0) - 40.0).abs() < 0.5, "{}", many.score(9900.0));
    }

    #[test]
    fn a_missing_detector_does_not_silence_the_others() {
        let mut calibration = calibration();
        for name in ["vae", "lstm"] {
            calibration.detectors.push(DetectorCalibration::fit(name, 0.5, &[1.0, 1.0, 2.0]));
        }
        let both = calibration.fuse(&[("vae", 8.0), ("lstm", 8.0)], 0.0);
        assert!(both > 2.0);
        assert_eq!(both, calibration.fuse(&[("vae", 8.0)], 0.0));
        assert_eq!(calibration.fuse(&[], 4.0), 4.0);
    }

    #[test]
    fn without_calibration_nothing_is_odd() {
        assert_eq!(Calibration::default().score(1000.0), 0.0);
    }
}
