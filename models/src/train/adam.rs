//! The Adam optimiser (Kingma & Ba, arXiv 1412.6980) over a list of matrices.

use ndarray::{Array2, Zip};

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// First and second moments of every parameter.
pub(super) struct Adam {
    rate: f32,
    step: i32,
    moments: Vec<(Array2<f32>, Array2<f32>)>,
}

impl Adam {
    pub(super) fn new(rate: f32, parameters: &[&mut Array2<f32>]) -> Self {
        let zeros = |p: &&mut Array2<f32>| (Array2::zeros(p.dim()), Array2::zeros(p.dim()));
        Self { rate, step: 0, moments: parameters.iter().map(zeros).collect() }
    }

    /// Moves every parameter against its gradient, the gradients' common norm clipped to 5.
    pub(super) fn update(&mut self, parameters: Vec<&mut Array2<f32>>, gradients: &[Array2<f32>]) {
        self.step += 1;
        let norm = gradients.iter().map(|g| g.iter().map(|x| x * x).sum::<f32>()).sum::<f32>().sqrt();
        let clip = if norm > 5.0 { 5.0 / norm } else { 1.0 };
        let correct1 = 1.0 - BETA1.powi(self.step);
        let correct2 = 1.0 - BETA2.powi(self.step);
        let rate = self.rate;
        for ((parameter, gradient), (m, v)) in parameters.into_iter().zip(gradients).zip(&mut self.moments) {
            Zip::from(parameter).and(gradient).and(m).and(v).for_each(|p, g, m, v| {
                let g = g * clip;
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                *p -= rate * (*m / correct1) / ((*v / correct2).sqrt() + EPSILON);
            });
        }
    }
}
