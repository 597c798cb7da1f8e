//! The LSTM sequence autoencoder: ten windows, 64 hidden units, gradients by hand through time.
//!
//! The encoder's last state is fed to the decoder at every step (Srivastava et al., arXiv 1502.04681); a dense layer
//! turns each decoder state into a window. Gates stand in ONNX's order i, o, f, c.

use ndarray::{Array2, Axis, Slice};

use super::adam::Adam;
use super::random::Random;
use super::stop::Stop;
use crate::schema::FEATURES;

/// Hidden units of encoder and decoder.
pub(super) const HIDDEN: usize = 64;
const BATCH: usize = 32;
const RATE: f32 = 3e-3;

/// One LSTM layer.
#[derive(Clone)]
pub(super) struct Layer {
    /// inputs x 4 hidden.
    pub(super) wx: Array2<f32>,
    /// hidden x 4 hidden.
    pub(super) wh: Array2<f32>,
    /// 1 x 4 hidden.
    pub(super) b: Array2<f32>,
    hidden: usize,
}

struct Step {
    x: Array2<f32>,
    h_before: Array2<f32>,
    c_before: Array2<f32>,
    i: Array2<f32>,
    o: Array2<f32>,
    f: Array2<f32>,
    g: Array2<f32>,
    c_tanh: Array2<f32>,
}

impl Layer {
    fn new(inputs: usize, hidden: usize, random: &mut Random) -> Self {
        let mut b = Array2::zeros((1, 4 * hidden));
        // Remember at first (Jozefowicz et al., ICML 2015).
        b.slice_axis_mut(Axis(1), Slice::from(2 * hidden..3 * hidden)).fill(1.0);
        Self { wx: random.weights(inputs, 4 * hidden), wh: random.weights(hidden, 4 * hidden), b, hidden }
    }

    fn forward(&self, xs: &[Array2<f32>]) -> (Vec<Array2<f32>>, Vec<Step>) {
        let rows = xs[0].nrows();
        let mut h = Array2::zeros((rows, self.hidden));
        let mut c = Array2::zeros((rows, self.hidden));
        let (mut states, mut steps) = (Vec::new(), Vec::new());
        for x in xs {
            let a = x.dot(&self.wx) + h.dot(&self.wh) + &self.b;
            let gate = |at: usize, f: fn(f32) -> f32| {
                a.slice_axis(Axis(1), Slice::from(at * self.hidden..(at + 1) * self.hidden)).mapv(f)
            };
            let (i, o, f, g) = (gate(0, sigmoid), gate(1, sigmoid), gate(2, sigmoid), gate(3, f32::tanh));
            let c_next = &f * &c + &i * &g;
            let c_tanh = c_next.mapv(f32::tanh);
            let h_next = &o * &c_tanh;
            steps.push(Step { x: x.clone(), h_before: h, c_before: c, i, o, f, g, c_tanh });
            states.push(h_next.clone());
            h = h_next;
            c = c_next;
        }
        (states, steps)
    }

    /// From the gradients of every state: those of every input, and of wx, wh and b.
    fn backward(&self, steps: &[Step], mut dhs: Vec<Array2<f32>>) -> (Vec<Array2<f32>>, [Array2<f32>; 3]) {
        let mut dwx = Array2::zeros(self.wx.dim());
        let mut dwh = Array2::zeros(self.wh.dim());
        let mut db = Array2::zeros(self.b.dim());
        let mut dc = Array2::<f32>::zeros((steps[0].x.nrows(), self.hidden));
        let mut dxs = Vec::new();
        for (t, step) in steps.iter().enumerate().rev() {
            let dh = &dhs[t];
            dc = dc + dh * &step.o * step.c_tanh.mapv(|v| 1.0 - v * v);
            let parts = [
                &dc * &step.g * step.i.mapv(|v| v * (1.0 - v)),
                dh * &step.c_tanh * step.o.mapv(|v| v * (1.0 - v)),
                &dc * &step.c_before * step.f.mapv(|v| v * (1.0 - v)),
                &dc * &step.i * step.g.mapv(|v| 1.0 - v * v),
            ];
            let views = parts.each_ref().map(Array2::view);
            let da = ndarray::concatenate(Axis(1), &views).expect("the gates have the same rows");
            dwx = dwx + step.x.t().dot(&da);
            dwh = dwh + step.h_before.t().dot(&da);
            db = db + da.sum_axis(Axis(0)).insert_axis(Axis(0));
            if t > 0 {
                dhs[t - 1] += &da.dot(&self.wh.t());
            }
            dc *= &step.f;
            dxs.push(da.dot(&self.wx.t()));
        }
        dxs.reverse();
        (dxs, [dwx, dwh, db])
    }
}

/// Encoder, decoder and the dense layer.
#[derive(Clone)]
pub(super) struct Autoencoder {
    pub(super) encoder: Layer,
    pub(super) decoder: Layer,
    pub(super) wo: Array2<f32>,
    pub(super) bo: Array2<f32>,
}

impl Autoencoder {
    fn new(inputs: usize, hidden: usize, random: &mut Random) -> Self {
        Self {
            encoder: Layer::new(inputs, hidden, random),
            decoder: Layer::new(hidden, hidden, random),
            wo: random.weights(hidden, inputs),
            bo: Array2::zeros((1, inputs)),
        }
    }

    /// Fits to sequences of rows until the last windows of `held` (time-major, may be empty) come out no better.
    pub(super) fn fit(
        rows: &Array2<f32>,
        sequences: &[&Vec<usize>],
        held: &[Array2<f32>],
        steps: usize,
        random: &mut Random,
        tick: &mut dyn FnMut(usize),
    ) -> Self {
        let mut model = Self::new(FEATURES, HIDDEN, random);
        super::leave_out_unused(rows, &mut model.encoder.wx, &mut model.wo);
        if let Some(mean) = rows.mean_axis(Axis(0)) {
            model.bo = mean.insert_axis(Axis(0));
        }
        let mut adam = Adam::new(RATE, &model.parameters());
        let mut stop = Stop::default();
        for step in 0..steps {
            let chosen = random.batch(BATCH, sequences.len());
            let chosen: Vec<&Vec<usize>> = chosen.iter().map(|at| sequences[*at]).collect();
            let (_, gradients) = model.gradients(&gather(rows, &chosen));
            adam.update(model.parameters(), &gradients);
            tick(step);
            if let Some(last) = held.last().filter(|_| super::stop::looks_at(step)) {
                let error = (model.reconstruct_last(held) - last).mapv(|r| r * r).sum();
                if stop.after(error, &model) {
                    break;
                }
            }
        }
        stop.best().unwrap_or(model)
    }

    /// The last window of each sequence, reconstructed.
    pub(super) fn reconstruct_last(&self, xs: &[Array2<f32>]) -> Array2<f32> {
        let (states, _) = self.encoder.forward(xs);
        let code = states.last().expect("a sequence is not empty");
        let (out, _) = self.decoder.forward(&vec![code.clone(); xs.len()]);
        out.last().expect("a sequence is not empty").dot(&self.wo) + &self.bo
    }

    fn parameters(&mut self) -> Vec<&mut Array2<f32>> {
        let (e, d) = (&mut self.encoder, &mut self.decoder);
        vec![&mut e.wx, &mut e.wh, &mut e.b, &mut d.wx, &mut d.wh, &mut d.b, &mut self.wo, &mut self.bo]
    }

    fn gradients(&self, xs: &[Array2<f32>]) -> (f32, Vec<Array2<f32>>) {
        #[allow(clippy::cast_precision_loss, reason = "batches are small")]
        let scale = 1.0 / (xs[0].nrows() * xs.len()) as f32;
        let (states, encoded) = self.encoder.forward(xs);
        let code = states.last().expect("a sequence is not empty");
        let (out, decoded) = self.decoder.forward(&vec![code.clone(); xs.len()]);
        let mut loss = 0.0;
        let mut dwo = Array2::zeros(self.wo.dim());
        let mut dbo = Array2::zeros(self.bo.dim());
        let mut dout = Vec::new();
        for (x, h) in xs.iter().zip(&out) {
            let residual = h.dot(&self.wo) + &self.bo - x;
            loss += residual.mapv(|r| r * r).sum() * scale;
            let dy = residual * (2.0 * scale);
            dwo = dwo + h.t().dot(&dy);
            dbo = dbo + dy.sum_axis(Axis(0)).insert_axis(Axis(0));
            dout.push(dy.dot(&self.wo.t()));
        }
        let (dcodes, [ddx, ddh, ddb]) = self.decoder.backward(&decoded, dout);
        let mut dstates = vec![Array2::zeros(code.dim()); xs.len()];
        for dcode in dcodes {
            dstates[xs.len() - 1] += &dcode;
        }
        let (_, [dex, deh, deb]) = self.encoder.backward(&encoded, dstates);
        (loss, vec![dex, deh, deb, ddx, ddh, ddb, dwo, dbo])
    }
}

/// Time-major batches from row indices.
pub(super) fn gather(rows: &Array2<f32>, sequences: &[&Vec<usize>]) -> Vec<Array2<f32>> {
    let length = sequences.first().map_or(0, |sequence| sequence.len());
    let at = |t: usize| sequences.iter().map(|sequence| sequence[t]).collect::<Vec<_>>();
    (0..length).map(|t| rows.select(Axis(0), &at(t))).collect()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let mut random = Random::new(3);
        let mut model = Autoencoder::new(4, 3, &mut random);
        let xs: Vec<Array2<f32>> = (0..5).map(|_| random.normals(2, 4)).collect();
        let (_, gradients) = model.gradients(&xs);
        super::super::check_gradients(&gradients, |which, at, delta| {
            model.parameters()[which][at] += delta;
            let loss = model.gradients(&xs).0;
            model.parameters()[which][at] -= delta;
            loss
        });
    }
}
