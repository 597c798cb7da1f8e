//! The variational autoencoder 427-64-16-64-427 (Kingma & Welling, arXiv 1312.6114), gradients by hand.

use ndarray::{Array2, Axis, Zip};

use super::adam::Adam;
use super::random::Random;
use super::stop::Stop;
use crate::schema::FEATURES;

/// Hidden units.
pub(super) const HIDDEN: usize = 64;
/// Latent units.
pub(super) const LATENT: usize = 16;
/// A weight of 1 collapses the latent; measured 0.717 against 0.964 AUC.
const KL_WEIGHT: f32 = 1e-3;
const BATCH: usize = 32;
const RATE: f32 = 2e-3;

/// The weights; biases are matrices of one row.
#[derive(Clone)]
pub(super) struct Vae {
    pub(super) w1: Array2<f32>,
    pub(super) b1: Array2<f32>,
    pub(super) wm: Array2<f32>,
    pub(super) bm: Array2<f32>,
    wv: Array2<f32>,
    bv: Array2<f32>,
    pub(super) w3: Array2<f32>,
    pub(super) b3: Array2<f32>,
    pub(super) w4: Array2<f32>,
    pub(super) b4: Array2<f32>,
}

impl Vae {
    fn new(inputs: usize, hidden: usize, latent: usize, random: &mut Random) -> Self {
        let zeros = |columns| Array2::zeros((1, columns));
        Self {
            w1: random.weights(inputs, hidden),
            b1: zeros(hidden),
            wm: random.weights(hidden, latent),
            bm: zeros(latent),
            wv: random.weights(hidden, latent) * 0.1,
            bv: Array2::from_elem((1, latent), -3.0),
            w3: random.weights(latent, hidden),
            b3: zeros(hidden),
            w4: random.weights(hidden, inputs),
            b4: zeros(inputs),
        }
    }

    /// Fits to rows (square roots of the features) until `held` is reconstructed no better.
    pub(super) fn fit(
        rows: &Array2<f32>,
        held: &Array2<f32>,
        steps: usize,
        random: &mut Random,
        tick: &mut dyn FnMut(usize),
    ) -> Self {
        Self::fit_with(rows, held, (KL_WEIGHT, steps), random, tick)
    }

    /// As [`Self::fit`] with another weight of the latent's divergence.
    pub(super) fn fit_with(
        rows: &Array2<f32>,
        held: &Array2<f32>,
        (kl_weight, steps): (f32, usize),
        random: &mut Random,
        tick: &mut dyn FnMut(usize),
    ) -> Self {
        let mut vae = Self::new(FEATURES, HIDDEN, LATENT, random);
        if let Some(mean) = rows.mean_axis(Axis(0)) {
            vae.b4 = mean.insert_axis(Axis(0));
        }
        let mut adam = Adam::new(RATE, &vae.parameters());
        let mut stop = Stop::default();
        for step in 0..steps {
            let x = rows.select(Axis(0), &random.batch(BATCH, rows.nrows()));
            let noise = random.normals(BATCH, LATENT);
            let (_, gradients) = vae.gradients(&x, &noise, kl_weight);
            adam.update(vae.parameters(), &gradients);
            tick(step);
            if super::stop::looks_at(step) {
                let error = (vae.reconstruct(held) - held).mapv(|r| r * r).sum();
                if stop.after(error, &vae) {
                    break;
                }
            }
        }
        stop.best().unwrap_or(vae)
    }

    /// Reconstruction from the latent mean: scoring never samples.
    pub(super) fn reconstruct(&self, x: &Array2<f32>) -> Array2<f32> {
        let h = (x.dot(&self.w1) + &self.b1).mapv_into(f32::tanh);
        let z = h.dot(&self.wm) + &self.bm;
        let g = (z.dot(&self.w3) + &self.b3).mapv_into(f32::tanh);
        g.dot(&self.w4) + &self.b4
    }

    /// Reconstruction from a latent drawn with `noise`, as the original design scores.
    pub(super) fn sample(&self, x: &Array2<f32>, noise: &Array2<f32>) -> Array2<f32> {
        let h = (x.dot(&self.w1) + &self.b1).mapv_into(f32::tanh);
        let spread = (h.dot(&self.wv) + &self.bv).mapv_into(|v| (v.clamp(-10.0, 4.0) / 2.0).exp());
        let z = h.dot(&self.wm) + &self.bm + spread * noise;
        let g = (z.dot(&self.w3) + &self.b3).mapv_into(f32::tanh);
        g.dot(&self.w4) + &self.b4
    }

    fn parameters(&mut self) -> Vec<&mut Array2<f32>> {
        vec![
            &mut self.w1,
            &mut self.b1,
            &mut self.wm,
            &mut self.bm,
            &mut self.wv,
            &mut self.bv,
            &mut self.w3,
            &mut self.b3,
            &mut self.w4,
            &mut self.b4,
        ]
    }

    /// Loss and gradients in the order of [`Self::parameters`].
    fn gradients(&self, x: &Array2<f32>, noise: &Array2<f32>, kl_weight: f32) -> (f32, Vec<Array2<f32>>) {
        #[allow(clippy::cast_precision_loss, reason = "batches are small")]
        let n = x.nrows() as f32;
        let h = (x.dot(&self.w1) + &self.b1).mapv_into(f32::tanh);
        let mu = h.dot(&self.wm) + &self.bm;
        let lv = (h.dot(&self.wv) + &self.bv).mapv_into(|v| v.clamp(-10.0, 4.0));
        let spread = lv.mapv(|v| (v / 2.0).exp());
        let z = &mu + &(&spread * noise);
        let g = (z.dot(&self.w3) + &self.b3).mapv_into(f32::tanh);
        let y = g.dot(&self.w4) + &self.b4;
        let residual = &y - x;
        let kl: f32 = Zip::from(&mu).and(&lv).fold(0.0, |sum, m, v| sum - 0.5 * (1.0 + v - m * m - v.exp()));
        let loss = (residual.mapv(|r| r * r).sum() + kl_weight * kl) / n;

        let dy = residual * (2.0 / n);
        let dg = dy.dot(&self.w4.t()) * g.mapv(|v| 1.0 - v * v);
        let dz = dg.dot(&self.w3.t());
        let dmu = &dz + &(&mu * (kl_weight / n));
        let dlv = &dz * noise * &spread * 0.5 + lv.mapv(|v| kl_weight * 0.5 * (v.exp() - 1.0) / n);
        let dh = (dmu.dot(&self.wm.t()) + dlv.dot(&self.wv.t())) * h.mapv(|v| 1.0 - v * v);
        let sum = |d: &Array2<f32>| d.sum_axis(Axis(0)).insert_axis(Axis(0));
        let gradients = vec![
            x.t().dot(&dh),
            sum(&dh),
            h.t().dot(&dmu),
            sum(&dmu),
            h.t().dot(&dlv),
            sum(&dlv),
            z.t().dot(&dg),
            sum(&dg),
            g.t().dot(&dy),
            sum(&dy),
        ];
        (loss, gradients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let mut random = Random::new(7);
        let mut vae = Vae::new(6, 5, 3, &mut random);
        let x = random.normals(4, 6).mapv(f32::abs);
        let noise = random.normals(4, 3);
        let (_, gradients) = vae.gradients(&x, &noise, KL_WEIGHT);
        super::super::check_gradients(&gradients, |which, at, delta| {
            vae.parameters()[which][at] += delta;
            let loss = vae.gradients(&x, &noise, KL_WEIGHT).0;
            vae.parameters()[which][at] -= delta;
            loss
        });
    }

    #[test]
    fn fitting_beats_the_mean() {
        let mut random = Random::new(1);
        let sign = random.normals(60, 1);
        let rows = Array2::from_shape_fn((60, FEATURES), |(row, column)| {
            if column < 8 { 0.5 + 0.3 * sign[[row, 0]].signum() } else { 0.0 }
        });
        let vae = Vae::fit(&rows, &rows, 400, &mut random, &mut |_| {});
        let error = (vae.reconstruct(&rows) - &rows).mapv(|r| r * r).sum();
        let spread = rows.var_axis(Axis(0), 0.0).sum() * 60.0;
        assert!(error < 0.1 * spread, "{error} against {spread}");
    }
}
