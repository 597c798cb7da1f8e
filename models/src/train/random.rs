//! Seeded randomness for weights and batches.

use ndarray::Array2;

/// A reproducible source.
#[derive(Clone)]
pub(super) struct Random(fastrand::Rng);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Standard normal by Box and Muller.
    pub(super) fn normal(&mut self) -> f32 {
        let u = self.0.f32().max(f32::MIN_POSITIVE);
        (-2.0 * u.ln()).sqrt() * (core::f32::consts::TAU * self.0.f32()).cos()
    }

    pub(super) fn normals(&mut self, rows: usize, columns: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || self.normal())
    }

    /// Weights as Glorot and Bengio (AISTATS 2010) draw them.
    #[allow(clippy::cast_precision_loss, reason = "layer sizes are small")]
    pub(super) fn weights(&mut self, rows: usize, columns: usize) -> Array2<f32> {
        let limit = (6.0 / (rows + columns) as f32).sqrt();
        Array2::from_shape_simple_fn((rows, columns), || (self.0.f32() * 2.0 - 1.0) * limit)
    }

    /// `count` indices below `below`, with repeats.
    pub(super) fn batch(&mut self, count: usize, below: usize) -> Vec<usize> {
        (0..count).map(|_| self.0.usize(..below)).collect()
    }
}
