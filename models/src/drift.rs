//! Whether windows still are like those that calibrated: a test martingale on how often they exceed what was promised.
//!
//! Of `n` calibration windows take the `k` largest. While new windows are exchangeable with those, the next one is beyond
//! them with probability `(k + s) / (n + 1 + t)`, where `s` of the last `t` were: a Polya urn, exact for every
//! distribution and every `n` (the conformal p-value is at most `k / (n + 1)` then). A bet that the odds are `m` times those multiplies its stake by the
//! ratio of the two probabilities of what came, and the stakes of all bets, with what is not yet at stake, are a test
//! martingale: they reach 100 with a probability of at most 1 %, ever (Ville; Vovk, Nouretdinov and Gammerman, *Testing
//! Exchangeability On-Line*, ICML 2003). A stake of `1 / (t (t + 1))` is laid anew at each window, so that a change
//! after a quiet year is found nearly as soon as one at once. That a
//! small calibration may promise too much is part of the urn and not called a change: after 16 windows only a gross one
//! can be told from that.

use serde::{Deserialize, Serialize};

/// The odds by which bets say exceedances have grown.
const ODDS: [f64; 3] = [2.0, 4.0, 16.0];
/// Promised shares of windows that are watched.
const LEVELS: [f64; 2] = [0.05, 0.01];
/// The capital at which the promise counts as broken: false with a probability of at most 1 % over all time.
const BROKEN_AT: f64 = 100.0;

/// What became of the promise of one calibration. Its size does not depend on how many windows it has seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    calibrated: u32,
    windows: u64,
    levels: [Level; LEVELS.len()],
    broken: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Level {
    /// 0 when the calibration is too small for this level.
    largest: u32,
    exceeded: u64,
    bets: [f64; ODDS.len()],
}

/// How often windows exceeded a level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exceeded {
    /// The share promised.
    pub promised: f64,
    /// The share found; 0 before the first window.
    pub found: f64,
}

impl Drift {
    /// Watches the promise of a calibration on `calibrated` windows.
    #[must_use]
    pub fn new(calibrated: usize) -> Self {
        let calibrated = u32::try_from(calibrated).unwrap_or(u32::MAX - 1);
        let mut levels = LEVELS.map(|level| {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a number that fits"
            )]
            let largest = (level * f64::from(calibrated + 1)) as u32;
            Level { largest, ..Level::default() }
        });
        // A few windows can promise something near the first level only.
        levels[0].largest = levels[0].largest.max(u32::from(calibrated > 0));
        Self { calibrated, windows: 0, levels, broken: false }
    }

    /// Takes the conformal p-value of one window; `true` when it breaks the promise.
    pub fn note(&mut self, p_value: f64) -> bool {
        self.windows += 1;
        #[allow(clippy::cast_precision_loss, reason = "exact up to 2^53 windows")]
        let (t, n) = (self.windows as f64, f64::from(self.calibrated));
        let watched = self.levels.iter().filter(|level| level.largest > 0).count();
        #[allow(clippy::cast_precision_loss, reason = "at most 6")]
        let stake = 1.0 / (t * (t + 1.0)) / (watched.max(1) * ODDS.len()) as f64;
        for level in self.levels.iter_mut().filter(|level| level.largest > 0) {
            let k = f64::from(level.largest);
            let exceeds = p_value <= k / (n + 1.0) * (1.0 + 1e-9);
            #[allow(clippy::cast_precision_loss, reason = "as above")]
            let urn = (k + level.exceeded as f64) / (n + t);
            for (bet, odds) in level.bets.iter_mut().zip(ODDS) {
                let told = odds * urn / (1.0 - urn + odds * urn);
                *bet = (*bet + stake) * if exceeds { told / urn } else { (1.0 - told) / (1.0 - urn) };
            }
            level.exceeded += u64::from(exceeds);
        }
        let before = self.broken;
        self.broken |= self.capital() >= BROKEN_AT;
        self.broken && !before
    }

    /// The promise is broken; stays so.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The evidence against the promise: at most 1 in expectation while it holds.
    #[must_use]
    pub fn capital(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "exact up to 2^53 windows")]
        let reserve = 1.0 / (self.windows as f64 + 1.0);
        reserve + self.levels.iter().flat_map(|level| level.bets).sum::<f64>()
    }

    /// Windows taken.
    #[must_use]
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// How often the levels were exceeded; those that the calibration is too small for are absent.
    #[must_use]
    pub fn exceeded(&self) -> Vec<Exceeded> {
        let one = |level: &Level| {
            #[allow(clippy::cast_precision_loss, reason = "shown to people")]
            let found = level.exceeded as f64 / self.windows.max(1) as f64;
            Exceeded { promised: f64::from(level.largest) / f64::from(self.calibrated + 1), found }
        };
        self.levels.iter().filter(|level| level.largest > 0).map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::Calibration;

    const YEAR_WINDOWS: u32 = 2880 * 365;

    fn exponentials(seed: u64) -> impl FnMut() -> f32 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            -(((state >> 40) as f32 + 0.5) / (1_u32 << 24) as f32).ln()
        }
    }

    fn learned(n: usize, draw: &mut impl FnMut() -> f32) -> (Calibration, Drift) {
        (Calibration::default().with_fused((0..n).map(|_| draw())), Drift::new(n))
    }

    #[test]
    fn a_year_of_windows_like_those_learned_is_not_stale_in_99_of_100_seeds() {
        let mut broken = 0;
        for seed in 1..=100 {
            let mut draw = exponentials(seed);
            // Small calibrations promise what they can; that is no drift.
            let n = [16, 48, 200, 1000][seed as usize % 4];
            let (calibration, mut drift) = learned(n, &mut draw);
            broken += u32::from((0..YEAR_WINDOWS).any(|_| drift.note(calibration.p_value(draw()))));
        }
        assert!(broken <= 1, "{broken} of 100");
    }

    #[test]
    fn a_load_that_shifts_is_stale_soon_at_once_and_after_a_quiet_month() {
        for (n, quiet, most) in [(100, 0, 60), (200, 0, 60), (200, 86_400, 120), (1000, 86_400, 120)] {
            let mut taken = Vec::new();
            for seed in 1..=20 {
                let mut draw = exponentials(seed);
                let (calibration, mut drift) = learned(n, &mut draw);
                assert!(!(0..quiet).any(|_| drift.note(calibration.p_value(draw()))), "stale before");
                // Every window twice as odd and a little more: some 40 % are beyond the 5 % level.
                let found = (1..5000).find(|_| drift.note(calibration.p_value(2.0 * draw() + 1.2)));
                taken.push(found.unwrap_or(5000));
            }
            taken.sort_unstable();
            assert!(taken[17] <= most, "n = {n}, after {quiet} windows: {taken:?}");
        }
    }

    #[test]
    fn the_expected_capital_is_one_while_the_promise_holds() {
        let (mut sum, rounds) = (0.0, 20_000);
        for seed in 1..=rounds {
            let mut draw = exponentials(seed);
            let (calibration, mut drift) = learned(20, &mut draw);
            for _ in 0..8 {
                drift.note(calibration.p_value(draw()));
            }
            sum += drift.capital();
        }
        let mean = sum / rounds as f64;
        assert!((0.9..1.1).contains(&mean), "{mean}");
    }

    #[test]
    fn exceedances_are_told_beside_what_was_promised_and_without_calibration_nothing_is() {
        let mut drift = Drift::new(199);
        for at in 0..100 {
            drift.note(if at % 10 == 0 { 0.005 } else { 0.5 });
        }
        let told: Vec<(f64, f64)> = drift.exceeded().iter().map(|e| (e.promised, e.found)).collect();
        assert_eq!(told, [(0.05, 0.1), (0.01, 0.1)]);
        let mut nothing = Drift::new(0);
        assert!(!(0..1000).any(|_| nothing.note(0.0)));
        assert_eq!(nothing.exceeded(), []);
    }
}
