//! The design this project replaced, for comparison only: what `cargo xtask eval` calls `original`.
//!
//! Features are scaled by the minimum and maximum of the training windows and clipped to 0 to 1. A VAE with KL weight
//! 1 and an LSTM autoencoder over 20 windows reconstruct them; each error (mean square) becomes `z` by mean and
//! standard deviation of the errors on the training windows, and the score is `0.6 s(z_lstm) + 0.4 s(z_vae)` with the
//! logistic `s`. The VAE draws its latent also when it scores. The LSTM says nothing until 20 windows of a process
//! exist; the VAE's logistic is the score till then. Layer sizes are ours (427-64-16 and 64): measured, the large ones score the same.

use ndarray::{Array2, Axis};

use super::lstm::{self, Autoencoder};
use super::random::Random;
use super::vae::{LATENT, Vae};
use crate::features::Vector;
use crate::schema::FEATURES;

/// Windows the original's LSTM wants.
pub const LENGTH: usize = 20;

const KL_WEIGHT: f32 = 1.0;
const LSTM_SHARE: f32 = 0.6;
const VAE_SHARE: f32 = 0.4;
const STEPS: [usize; 2] = [1500, 300];
/// Errors that set mean and deviation, at most.
const ERRORS_MAX: usize = 2000;

/// The fitted original.
#[derive(Clone)]
pub struct Original {
    low: Vec<f32>,
    range: Vec<f32>,
    vae: (Vae, f32, f32),
    lstm: Option<(Autoencoder, f32, f32)>,
    random: Random,
}

impl Original {
    /// Fits to the windows of some process runs, each oldest first; `None` without a window.
    #[must_use]
    pub fn fit(runs: &[Vec<Vector>], seed: u64) -> Option<Self> {
        let mut random = Random::new(seed);
        let windows: Vec<&Vector> = runs.iter().flatten().collect();
        let first = *windows.first()?;
        let (mut low, mut high) = (first.to_vec(), first.to_vec());
        for window in &windows {
            for (at, value) in window.iter().enumerate() {
                low[at] = low[at].min(*value);
                high[at] = high[at].max(*value);
            }
        }
        let range: Vec<f32> = low.iter().zip(&high).map(|(low, high)| (high - low).max(1e-9)).collect();
        let scaled = Array2::from_shape_fn((windows.len(), FEATURES), |(row, column)| {
            clip(windows[row][column], low[column], range[column])
        });
        let vae = Vae::fit_with(&scaled, &scaled, (KL_WEIGHT, STEPS[0]), &mut random, &mut |_| {});
        let some = scaled.select(Axis(0), &random.batch(ERRORS_MAX.min(windows.len()), windows.len()));
        let noise = random.normals(some.nrows(), LATENT);
        let (mean, deviation) = moments(&errors(&vae.sample(&some, &noise), &some));

        let mut sequences = Vec::new();
        let mut start = 0;
        for run in runs {
            sequences.extend(
                (start..start + run.len()).collect::<Vec<_>>().windows(LENGTH).map(<[usize]>::to_vec),
            );
            start += run.len();
        }
        let sequences: Vec<&Vec<usize>> = sequences.iter().collect();
        let lstm = (!sequences.is_empty()).then(|| {
            let model = Autoencoder::fit(&scaled, &sequences, &[], STEPS[1], &mut random, &mut |_| {});
            let some: Vec<&Vec<usize>> =
                random.batch(ERRORS_MAX / 4, sequences.len()).into_iter().map(|at| sequences[at]).collect();
            let xs = lstm::gather(&scaled, &some);
            let (mean, deviation) = moments(&errors(&model.reconstruct_last(&xs), &xs[LENGTH - 1]));
            (model, mean, deviation)
        });
        Some(Self { low, range, vae: (vae, mean, deviation), lstm, random })
    }

    /// The score of each window of one run, 0 to 1. Two calls differ: the latent is drawn.
    pub fn scores(&mut self, run: &[Vector]) -> Vec<f32> {
        let x = Array2::from_shape_fn((run.len(), FEATURES), |(row, column)| {
            clip(run[row][column], self.low[column], self.range[column])
        });
        let (vae, mean, deviation) = &self.vae;
        let noise = self.random.normals(run.len(), LATENT);
        let mut scores: Vec<f32> = errors(&vae.sample(&x, &noise), &x)
            .into_iter()
            .map(|error| logistic((error - mean) / deviation))
            .collect();
        if let Some((model, mean, deviation)) = self.lstm.as_ref().filter(|_| run.len() >= LENGTH) {
            let all: Vec<usize> = (0..run.len()).collect();
            let sequences: Vec<Vec<usize>> = all.windows(LENGTH).map(<[usize]>::to_vec).collect();
            let xs = lstm::gather(&x, &sequences.iter().collect::<Vec<_>>());
            let errors = errors(&model.reconstruct_last(&xs), &xs[LENGTH - 1]);
            for (score, error) in scores[LENGTH - 1..].iter_mut().zip(errors) {
                *score = VAE_SHARE * *score + LSTM_SHARE * logistic((error - mean) / deviation);
            }
        }
        scores
    }
}

fn clip(value: f32, low: f32, range: f32) -> f32 {
    ((value - low) / range).clamp(0.0, 1.0)
}

fn errors(y: &Array2<f32>, x: &Array2<f32>) -> Vec<f32> {
    (y - x).mapv(|r| r * r).mean_axis(Axis(1)).expect("a window has 427 values").to_vec()
}

#[allow(clippy::cast_precision_loss, reason = "thousands of windows")]
fn moments(errors: &[f32]) -> (f32, f32) {
    let n = errors.len().max(1) as f32;
    let mean = errors.iter().sum::<f32>() / n;
    let variance = errors.iter().map(|error| (error - mean).powi(2)).sum::<f32>() / n;
    (mean, variance.sqrt().max(1e-9))
}

fn logistic(z: f32) -> f32 {
    1.0 / (1.0 + (-z).exp())
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    fn run(windows: usize, share: f32) -> Vec<Vector> {
        (0..windows)
            .map(|at| {
                let mut vector = [0.0; FEATURES];
                vector[0] = share + (at % 5) as f32 / 50.0;
                vector[1] = 1.0 - vector[0];
                vector
            })
            .collect()
    }

    /// One for all tests: it takes longer than each of them.
    fn fitted() -> Original {
        static FITTED: LazyLock<Original> = LazyLock::new(|| Original::fit(&[run(60, 0.4)], 1).unwrap());
        FITTED.clone()
    }

    #[test]
    fn the_lstm_has_no_vote_until_twenty_windows_exist() {
        let mut original = fitted();
        let scores = |original: &mut Original, windows| original.scores(&run(windows, 0.4));
        original.random = Random::new(7);
        let few = scores(&mut original, LENGTH - 1);
        original.lstm = None;
        original.random = Random::new(7);
        assert_eq!(few, scores(&mut original, LENGTH - 1), "the VAE alone, and its share is the whole");
        assert!(few.iter().any(|score| *score > VAE_SHARE), "{few:?}");
        assert!(Original::fit(&[], 1).is_none());
    }

    #[test]
    fn from_the_twentieth_window_both_vote() {
        let mut original = fitted();
        original.random = Random::new(7);
        let both = original.scores(&run(30, 0.4));
        original.lstm = None;
        original.random = Random::new(7);
        let alone = original.scores(&run(30, 0.4));
        assert_eq!(both[..LENGTH - 1], alone[..LENGTH - 1]);
        assert!(both[LENGTH - 1..].iter().zip(&alone[LENGTH - 1..]).all(|(both, alone)| both != alone));
    }

    #[test]
    fn what_left_the_learned_range_is_clipped_and_lost() {
        let original = fitted();
        let (low, range) = (original.low[7], original.range[7]);
        assert_eq!(clip(0.0, low, range), 0.0);
        assert_eq!(clip(0.3, low, range), clip(0.9, low, range), "a call never learned saturates at once");
    }
}
