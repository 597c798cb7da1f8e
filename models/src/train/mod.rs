//! Normal windows to the parts of a bundle: both models, their graphs, calibration and learned traits.
//!
//! Windows are split in time: 60 % fit the weights, the next 20 % say when to stop and give each feature's residual
//! variance, the last 20 % calibrate. Nothing of the last part is seen before but by the LSTM's look back across the
//! border; afterwards the prototypes and the table of grams, which do not train, learn it too. Of more than [`WINDOWS_MAX`] windows, a [`Reservoir`] of runs of [`BLOCK`] neighbours is kept, in which every
//! hour of a long learning time has the same chance: at most three matrices of 20,000 x 427 values, 100 MB.

mod accepted;
mod adam;
mod lstm;
mod onnx;
pub mod original;
mod random;
mod reservoir;
mod stop;
mod vae;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use ndarray::{Array2, Axis, Slice};

use crate::bundle::{self, Manifest, SigningKey, TrainingFacts};
use crate::calibration::{Calibration, DetectorCalibration, News, weight};
use crate::features::{self, Vector};
use crate::nearest::Prototypes;
use crate::program::ProgramId;
use crate::schema::{FEATURES, SEQUENCE};
use crate::sequence::GramTable;
use crate::wire::TrainingWindow;
use lstm::Autoencoder;
use random::Random;
pub use reservoir::Reservoir;
use vae::Vae;

/// Fewer windows than this cannot be split three ways.
pub const WINDOWS_MIN: usize = 40;
/// More windows than this are thinned.
pub const WINDOWS_MAX: usize = 20_000;
/// Windows that are kept or thinned out together, so that the LSTM has neighbours to learn from.
pub const BLOCK: usize = 100;
/// Fewer calibration windows than this say nothing about a detector.
const OUTPUTS_MIN: usize = 5;
/// The smallest variance of a residual: a feature that never moved must not be infinitely surprising.
const VARIANCE_FLOOR: f32 = 1e-3;

/// How to train.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Seed of weights and batches; the same seed and windows give the same bundle.
    pub seed: u64,
    /// Written into the facts.
    pub now_unix_s: u64,
    /// Batches of 32 windows for the VAE, at most.
    pub vae_steps: usize,
    /// Batches of 32 sequences for the LSTM, at most.
    pub lstm_steps: usize,
    /// More windows than this are thinned; at most [`WINDOWS_MAX`].
    pub windows_max: usize,
    /// How many windows fit, and how many say when to stop; the rest calibrates. 60 % and 20 % when absent.
    pub split: Option<[usize; 2]>,
    /// Windows that alarmed and were found to be false alarms, oldest first: see [`accepted`].
    pub accepted: Vec<TrainingWindow>,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            seed: 0x5eed,
            now_unix_s: 0,
            vae_steps: 3000,
            lstm_steps: 600,
            windows_max: WINDOWS_MAX,
            split: None,
            accepted: Vec::new(),
        }
    }
}

/// How far training is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// `vae` or `lstm`.
    pub model: &'static str,
    /// 0 to 1 over both models.
    pub share: f32,
}

/// The parts of a bundle.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Names and bytes of the graphs.
    pub parts: Vec<(String, Vec<u8>)>,
    /// How outputs become a score.
    pub calibration: Calibration,
    /// Sorted.
    pub traits: Vec<u64>,
    /// For people and explanations.
    pub facts: TrainingFacts,
}

impl Trained {
    /// The signed bundle of a program, valid in this time, seconds since 1970.
    #[must_use]
    pub fn seal(
        self,
        program: ProgramId,
        generation: u64,
        valid_unix_s: Range<u64>,
        key: &SigningKey,
    ) -> Vec<u8> {
        let manifest = Manifest {
            calibration: self.calibration,
            traits: self.traits,
            training: self.facts,
            ..Manifest::new(program, generation, valid_unix_s)
        };
        bundle::seal(manifest, self.parts, key)
    }
}

/// Why there is no baseline.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TrainError {
    /// Collect more.
    #[error("{found} windows are too few to learn from; at least {WINDOWS_MIN} are needed")]
    TooFew {
        /// Usable windows.
        found: usize,
    },
    /// An index or a value is outside the schema.
    #[error("window {0} holds a value outside the schema; the device runs another version")]
    BadWindow(usize),
    /// [`TrainOptions::split`] leaves a part without windows.
    #[error("{found} windows cannot be split as asked: every part needs one")]
    Split {
        /// Usable windows.
        found: usize,
    },
    /// Training did not converge.
    #[error("training `{0}` gave numbers that are not finite")]
    Diverged(&'static str),
}

/// Trains both models on the windows of one program, oldest first.
///
/// # Errors
/// When the windows are too few or not of this schema.
pub fn fit(
    windows: &[TrainingWindow],
    options: &TrainOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Trained, TrainError> {
    // What was ever done is known, also where the window is left out.
    let traits = traits(windows.iter().chain(&options.accepted));
    let windows = &*thinned(windows, options.windows_max.min(WINDOWS_MAX), options.seed);
    let windows = &*accepted::merged(windows, &options.accepted);
    if windows.len() < WINDOWS_MIN {
        return Err(TrainError::TooFew { found: windows.len() });
    }
    let raw = rows(windows)?;
    let roots = raw.mapv(f32::sqrt);
    let n = windows.len();
    let [fit_n, variance_n] = options.split.unwrap_or([n * 6 / 10, n * 8 / 10 - n * 6 / 10]);
    let (fit_end, variance_end) = (fit_n, fit_n + variance_n);
    if fit_n == 0 || variance_n == 0 || variance_end >= n {
        return Err(TrainError::Split { found: n });
    }
    let mut random = Random::new(options.seed);

    let mut tick = |model, done: usize, steps: usize, base: f32| {
        if done.is_multiple_of(50) {
            #[allow(clippy::cast_precision_loss, reason = "thousands of steps")]
            progress(Progress { model, share: base + 0.5 * done as f32 / steps.max(1) as f32 });
        }
    };
    let part = |from: usize, to: usize| roots.slice_axis(Axis(0), Slice::from(from..to)).to_owned();
    let fit_rows = part(0, fit_end);
    let held = part(fit_end, variance_end);
    let vae = Vae::fit(&fit_rows, &held, options.vae_steps, &mut random, &mut |step| {
        tick("vae", step, options.vae_steps, 0.0);
    });
    let sequences = sequences(windows);
    let ending = |from: usize, to: usize| -> Vec<&Vec<usize>> {
        sequences.iter().filter(|s| s.last().is_some_and(|last| (from..to).contains(last))).collect()
    };
    let fit_sequences = ending(0, fit_end);
    let variance_sequences = ending(fit_end, variance_end);
    let calibration_sequences = ending(variance_end, n);
    // A program whose processes do not live for ten windows in each of the three parts is learned without the LSTM.
    let parts = [&fit_sequences, &variance_sequences, &calibration_sequences];
    let auto = parts.iter().all(|part| !part.is_empty()).then(|| {
        let held = lstm::gather(&roots, &variance_sequences);
        Autoencoder::fit(&fit_rows, &fit_sequences, &held, options.lstm_steps, &mut random, &mut |step| {
            tick("lstm", step, options.lstm_steps, 0.5);
        })
    });

    let vae_residuals = |rows: &Array2<f32>| vae.reconstruct(rows) - rows;
    let lstm_residuals = |sequences: &[&Vec<usize>]| -> Option<Array2<f32>> {
        let xs = lstm::gather(&roots, sequences);
        Some(auto.as_ref()?.reconstruct_last(&xs) - xs.last()?)
    };
    let vae_inverse = inverse_variance(&vae_residuals(&part(fit_end, variance_end)));
    let lstm_inverse = match lstm_residuals(&variance_sequences) {
        Some(residuals) => inverse_variance(&residuals),
        None => vae_inverse.clone(),
    };

    let vae_scores = scores(&vae_residuals(&part(variance_end, n)), &vae_inverse);
    let lstm_scores =
        lstm_residuals(&calibration_sequences).map(|r| scores(&r, &lstm_inverse)).unwrap_or_default();
    for (name, scores) in [("vae", &vae_scores), ("lstm", &lstm_scores)] {
        if scores.iter().any(|score| !score.is_finite()) {
            return Err(TrainError::Diverged(name));
        }
    }
    // Calibrated by what the other windows taught. The device gets what all of them teach: more learned windows bring new ones
    // nearer, so the promise errs towards silence.
    let prototypes = Prototypes::fit(vectors(&windows[..variance_end]));
    let distances = vectors(&windows[variance_end..]).filter_map(|vector| prototypes.score(&vector));
    let (nearest, repertoire) = distances.map(|d| (d.nearest.score, d.repertoire.score)).unzip();
    let grams = order(&windows[..variance_end]);
    let bits = |window: &TrainingWindow| grams.as_ref()?.kinds_of(&window.grams).bits();
    let calibration = calibrate(&Held {
        order: windows[variance_end..].iter().map(bits).collect(),
        windows,
        from: variance_end,
        nearest,
        repertoire,
        vae: &vae_scores,
        lstm: &lstm_scores,
        lstm_ends: calibration_sequences.iter().filter_map(|s| s.last().copied()).collect(),
    });
    let mut parts = vec![("vae.onnx".to_owned(), onnx::vae(&vae, &vae_inverse))];
    if let Some(auto) = &auto {
        parts.push(("lstm.onnx".to_owned(), onnx::lstm(auto, &lstm_inverse, SEQUENCE)));
    }
    parts.push(("prototypes.bin".to_owned(), Prototypes::fit(vectors(windows)).to_bytes()));
    // No table without one that was calibrated.
    if let Some(grams) = grams.and_then(|_| order(windows)) {
        parts.push(("grams.bin".to_owned(), grams.to_bytes()));
    }
    Ok(Trained {
        parts,
        calibration,
        traits,
        facts: facts(&raw, [fit_end, variance_end - fit_end, n - variance_end], options),
    })
}

/// Makes weights zero that no gradient will ever reach: of features that are zero in all rows. They would stay what chance
/// made them; as zeros they need no room. The VAE keeps its own: they let a call that was never made move the whole
/// reconstruction, and without them it tells attacks less well (AUC 0.915 instead of 0.928 on the nginx of `docs/models.md`).
fn leave_out_unused(rows: &Array2<f32>, inputs: &mut Array2<f32>, outputs: &mut Array2<f32>) {
    for (at, _) in
        rows.columns().into_iter().enumerate().filter(|(_, values)| values.iter().all(|v| *v == 0.0))
    {
        inputs.row_mut(at).fill(0.0);
        outputs.column_mut(at).fill(0.0);
    }
}

/// At most `most` windows, in order; no run reaches from one kept block into the next.
fn thinned(windows: &[TrainingWindow], most: usize, seed: u64) -> Cow<'_, [TrainingWindow]> {
    if windows.len() <= most {
        return Cow::Borrowed(windows);
    }
    let mut reservoir = Reservoir::new(most / BLOCK, seed);
    for (at, block) in (0_u64..).zip(windows.chunks(BLOCK)) {
        let _ = reservoir.push((at, block));
    }
    let kept = reservoir.into_items().into_iter().flat_map(|(at, block)| {
        block
            .iter()
            .map(move |window| TrainingWindow { run: window.run.rotate_left(32) ^ at, ..window.clone() })
    });
    Cow::Owned(kept.collect())
}

fn rows(windows: &[TrainingWindow]) -> Result<Array2<f32>, TrainError> {
    let mut rows = Array2::zeros((windows.len(), FEATURES));
    for (at, (mut row, window)) in rows.outer_iter_mut().zip(windows).enumerate() {
        let vector = features::from_sparse(&window.vector).ok_or(TrainError::BadWindow(at))?;
        row.assign(&ndarray::ArrayView1::from(&vector[..]));
    }
    Ok(rows)
}

fn vectors(windows: &[TrainingWindow]) -> impl Iterator<Item = Vector> {
    windows.iter().filter_map(|window| features::from_sparse(&window.vector))
}

/// Every run of [`SEQUENCE`] neighbouring windows of one process.
fn sequences(windows: &[TrainingWindow]) -> Vec<Vec<usize>> {
    let mut runs: std::collections::BTreeMap<u64, Vec<usize>> = std::collections::BTreeMap::new();
    for (at, window) in windows.iter().enumerate() {
        runs.entry(window.run).or_default().push(at);
    }
    let mut sequences: Vec<Vec<usize>> =
        runs.values().flat_map(|run| run.windows(SEQUENCE).map(<[usize]>::to_vec)).collect();
    sequences.sort_by_key(|sequence| sequence.last().copied());
    sequences
}

fn inverse_variance(residuals: &Array2<f32>) -> Array2<f32> {
    let mean = residuals.mapv(|r| r * r).mean_axis(Axis(0)).expect("there is at least one window");
    mean.mapv(|variance| 1.0 / (variance + VARIANCE_FLOOR)).insert_axis(Axis(0))
}

fn scores(residuals: &Array2<f32>, inverse: &Array2<f32>) -> Vec<f32> {
    let weighted = residuals.mapv(|r| r * r) * inverse;
    weighted.mean_axis(Axis(1)).expect("a window has 427 values").to_vec()
}

struct Held<'a> {
    windows: &'a [TrainingWindow],
    from: usize,
    nearest: Vec<f32>,
    repertoire: Vec<f32>,
    vae: &'a [f32],
    lstm: &'a [f32],
    lstm_ends: Vec<usize>,
    order: Vec<Option<f32>>,
}

/// The order of calls in windows that hold it; `None` when none does.
fn order(windows: &[TrainingWindow]) -> Option<GramTable> {
    let mut counts = BTreeMap::new();
    for (gram, count) in windows.iter().flat_map(|window| &window.grams) {
        let sum: &mut u32 = counts.entry(*gram).or_default();
        *sum = sum.saturating_add(*count);
    }
    (!counts.is_empty()).then(|| GramTable::of_counts(&counts))
}

/// A detector that few calibration windows tell of has no say.
fn weight_of(name: &str, outputs: usize) -> f32 {
    if outputs < OUTPUTS_MIN { 0.0 } else { weight(name) }
}

fn calibrate(held: &Held<'_>) -> Calibration {
    let order: Vec<f32> = held.order.iter().copied().flatten().collect();
    let calibration = Calibration {
        detectors: vec![
            DetectorCalibration::fit("vae", weight("vae"), held.vae),
            DetectorCalibration::fit("lstm", weight_of("lstm", held.lstm.len()), held.lstm),
            DetectorCalibration::fit("nearest", weight("nearest"), &held.nearest),
            DetectorCalibration::fit("repertoire", weight("repertoire"), &held.repertoire),
            DetectorCalibration::fit("order", weight_of("order", order.len()), &order),
        ],
        fused: Vec::new(),
        news: News::count(held.windows.iter().map(|window| &window.traits[..]), held.windows.len() * 6 / 10),
    };
    let fused: Vec<f32> = held
        .vae
        .iter()
        .enumerate()
        .filter_map(|(at, vae)| {
            let window = held.from + at;
            let (nearest, repertoire) = (held.nearest[at], held.repertoire[at]);
            let mut raw = vec![("vae", *vae), ("nearest", nearest), ("repertoire", repertoire)];
            // Without a network none of the sequences that would calibrate it has a score.
            let ended = held.lstm_ends.iter().zip(held.lstm).find(|(end, _)| **end == window);
            raw.extend(ended.map(|(_, score)| ("lstm", *score)));
            raw.extend(held.order[at].map(|bits| ("order", bits)));
            calibration.fuse(&raw)
        })
        .collect();
    calibration.with_fused(fused)
}

fn traits<'a>(windows: impl Iterator<Item = &'a TrainingWindow>) -> Vec<u64> {
    windows.flat_map(|window| window.traits.iter().copied()).collect::<BTreeSet<_>>().into_iter().collect()
}

fn facts(raw: &Array2<f32>, split: [usize; 3], options: &TrainOptions) -> TrainingFacts {
    let means = raw.mean_axis(Axis(0)).expect("there is at least one window");
    TrainingFacts {
        windows: split.map(|n| u32::try_from(n).expect("bounded by WINDOWS_MAX")),
        means: (0_u16..).zip(means).filter(|(_, mean)| *mean != 0.0).collect(),
        highs: (0_u16..)
            .zip(raw.columns())
            .map(|(at, column)| (at, high(column)))
            .filter(|(_, high)| *high != 0.0)
            .collect(),
        seed: options.seed,
        trained_unix_s: options.now_unix_s,
    }
}

/// The 99 % quantile by nearest rank.
fn high(column: ndarray::ArrayView1<'_, f32>) -> f32 {
    let mut values = column.to_vec();
    let at = (values.len() * 99).div_ceil(100) - 1;
    *values.select_nth_unstable_by(at, f32::total_cmp).1
}

/// Compares analytic gradients with central differences at a few places of every parameter.
#[cfg(test)]
fn check_gradients(gradients: &[Array2<f32>], mut loss_at: impl FnMut(usize, (usize, usize), f32) -> f32) {
    let delta = 1e-2;
    for (which, gradient) in gradients.iter().enumerate() {
        for (row, column) in [(0, 0), (gradient.nrows() - 1, gradient.ncols() - 1), (0, gradient.ncols() / 2)]
        {
            let at = (row, column);
            let numeric = (loss_at(which, at, delta) - loss_at(which, at, -delta)) / (2.0 * delta);
            let analytic = gradient[at];
            let error = (numeric - analytic).abs() / (numeric.abs() + analytic.abs()).max(0.1);
            assert!(error < 0.02, "parameter {which} at {at:?}: {analytic} is not {numeric}");
        }
    }
}

#[cfg(test)]
mod tests;
