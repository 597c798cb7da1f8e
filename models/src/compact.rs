//! The two graphs that our trainer writes, run without a graph: weights in 16 bits, inputs as what of them is not zero.
//!
//! tract reads the file. When its nodes are, one by one, those of [`VAE`] or [`LSTM`], the weights are kept here as
//! integers of 16 bits with one scale for each row, and the arithmetic is done on floats of 32; any other graph is tract's. Three things are known here that a
//! runtime cannot know: most of a window's 427 values are zero, the decoder sees the same code at every step, and only
//! its last state is used. Hyperbolic tangents are Eigen's rational function, which ONNX Runtime and tract use too ([`lanes`]).

use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

use crate::lanes;
use crate::nearest::Output;
use crate::schema::FEATURES;

/// Nodes of the VAE's scorer, as `operator[attributes](inputs)=outputs`.
const VAE: &str = "Sqrt[](x)=root MatMul[](root,enc_w)=enc_product Add[](enc_product,enc_b)=enc_out \
    Tanh[](enc_out)=h MatMul[](h,mean_w)=mean_product Add[](mean_product,mean_b)=mean_out \
    MatMul[](mean_out,dec_w)=dec_product Add[](dec_product,dec_b)=dec_out Tanh[](dec_out)=d \
    MatMul[](d,out_w)=out_product Add[](out_product,out_b)=out_out Sub[](root,out_out)=residual \
    Mul[](residual,residual)=squared Mul[](squared,inverse_variance)=weighted \
    ReduceMean[axes,keepdims](weighted)=score Squeeze[](weighted,row_axis)=contrib";
/// Nodes of the LSTM's scorer; one `code` for each window stands in the concatenation.
const LSTM: &str = "Sqrt[](x)=root LSTM[hidden_size](root,enc_W,enc_R,enc_B)=enc_all,code Concat[axis](CODES)=codes \
    LSTM[hidden_size](codes,dec_W,dec_R,dec_B)=dec_all,state Squeeze[](state,first_axis)=last_state \
    MatMul[](last_state,out_w)=out_product Add[](out_product,out_b)=out_out Gather[axis](root,last)=last_root \
    Sub[](last_root,out_out)=residual Mul[](residual,residual)=squared \
    Mul[](squared,inverse_variance)=weighted ReduceMean[axes,keepdims](weighted)=score \
    Squeeze[](weighted,row_axis)=contrib";

/// A weight matrix, one row per input: the value is the row's scale times the integer. Rows and columns of zeros, such as
/// those of features that never moved, are not held.
struct Matrix {
    /// Of the whole matrix.
    columns: usize,
    /// Of each row, where it is held; [`NOT_HELD`] for zeros.
    places: Box<[u16]>,
    /// The columns that are held, ascending.
    shown: Box<[u16]>,
    scales: Box<[f32]>,
    /// One row of the columns shown for each scale.
    steps: Box<[i16]>,
}

/// A row of zeros.
const NOT_HELD: u16 = u16::MAX;

/// `x W + b`.
struct Dense {
    weights: Matrix,
    bias: Box<[f32]>,
}

struct Layer {
    /// Of the inputs, for the gates i, o, f, c.
    input: Dense,
    recurrent: Matrix,
}

struct Residual {
    out: Dense,
    inverse_variance: Box<[f32]>,
}

/// A scorer that needs no graph.
pub(crate) struct Compact(Net);

enum Net {
    /// Encoder, mean, decoder, output.
    Vae([Dense; 3], Residual),
    /// Encoder and decoder, output.
    Lstm([Layer; 2], Residual),
}

impl Compact {
    /// The scorer for `windows` windows of a model, if it is one that our trainer writes.
    pub(crate) fn of(model: &ModelProto, windows: usize) -> Option<Self> {
        let graph = model.graph.as_ref()?;
        let nodes = graph.node.iter().map(describe).collect::<Vec<_>>().join(" ");
        let residual = || {
            Some(Residual {
                out: dense(graph, "out")?,
                inverse_variance: floats(graph, "inverse_variance")?.into_boxed_slice(),
            })
        };
        let made = if nodes == VAE && windows == 1 {
            Net::Vae([dense(graph, "enc")?, dense(graph, "mean")?, dense(graph, "dec")?], residual()?)
        } else if nodes == LSTM.replace("CODES", &vec!["code"; windows].join(",")) {
            Net::Lstm([layer(graph, "enc")?, layer(graph, "dec")?], residual()?)
        } else {
            return None;
        };
        let made = Self(made);
        made.fits().then_some(made)
    }

    /// Scores the last of some windows, [`FEATURES`] values each, oldest first.
    pub(crate) fn run(&self, values: &[f32]) -> Output {
        let roots: Vec<f32> = values.iter().map(|value| value.max(0.0).sqrt()).collect();
        match &self.0 {
            Net::Vae([encoder, mean, decoder], residual) => {
                let mut hidden = encoder.run(&roots);
                lanes::tanh(&mut hidden);
                let mut hidden = decoder.run(&mean.run(&hidden));
                lanes::tanh(&mut hidden);
                residual.run(&roots, &hidden)
            }
            Net::Lstm([encoder, decoder], residual) => {
                let steps = roots.chunks_exact(FEATURES);
                let n = steps.len();
                let code = encoder.run(steps.map(|step| encoder.input.run(step)));
                let state = decoder.run(std::iter::repeat_n(decoder.input.run(&code), n));
                residual.run(&roots[roots.len() - FEATURES..], &state)
            }
        }
    }

    /// Bytes of weights held.
    pub(crate) fn bytes(&self) -> usize {
        let dense = |dense: &Dense| dense.weights.bytes() + 4 * dense.bias.len();
        let residual = |residual: &Residual| dense(&residual.out) + 4 * residual.inverse_variance.len();
        match &self.0 {
            Net::Vae(layers, out) => layers.iter().map(dense).sum::<usize>() + residual(out),
            Net::Lstm(layers, out) => {
                let layer = |layer: &Layer| dense(&layer.input) + layer.recurrent.bytes();
                layers.iter().map(layer).sum::<usize>() + residual(out)
            }
        }
    }

    /// Every layer takes what the one before gives.
    fn fits(&self) -> bool {
        let chain = |layers: &[&Dense]| {
            let begins = layers.first().is_some_and(|first| first.weights.rows() == FEATURES);
            begins && layers.windows(2).all(|two| two[0].bias.len() == two[1].weights.rows())
        };
        let ends = |out: &Residual| out.out.bias.len() == FEATURES && out.inverse_variance.len() == FEATURES;
        match &self.0 {
            Net::Vae([a, b, c], out) => chain(&[a, b, c, &out.out]) && ends(out),
            Net::Lstm([encoder, decoder], out) => {
                let hidden = out.out.weights.rows();
                let gates = |layer: &Layer| {
                    (layer.recurrent.rows(), layer.recurrent.columns, layer.input.bias.len())
                        == (hidden, 4 * hidden, 4 * hidden)
                };
                let inputs = [&encoder.input, &decoder.input].map(|input| input.weights.rows());
                gates(encoder) && gates(decoder) && inputs == [FEATURES, hidden] && ends(out)
            }
        }
    }
}

impl Matrix {
    /// `None` when the values are no rows of this length, or too many.
    fn of(values: &[f32], columns: usize) -> Option<Self> {
        if columns == 0 || !values.len().is_multiple_of(columns) {
            return None;
        }
        let rows = values.len() / columns;
        let [_, last] = [rows, columns].map(u16::try_from);
        if rows >= usize::from(NOT_HELD) {
            return None;
        }
        let used =
            |column: &u16| values.iter().skip(usize::from(*column)).step_by(columns).any(|v| *v != 0.0);
        let shown: Box<[u16]> = (0..last.ok()?).filter(used).collect();
        let (mut places, mut scales, mut steps) = (Vec::with_capacity(rows), Vec::new(), Vec::new());
        for row in values.chunks_exact(columns) {
            let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            if largest == 0.0 {
                places.push(NOT_HELD);
                continue;
            }
            places.push(u16::try_from(scales.len()).ok()?);
            let scale = (largest / f32::from(i16::MAX)).max(f32::MIN_POSITIVE);
            scales.push(scale);
            #[allow(clippy::cast_possible_truncation, reason = "within the largest of its row")]
            steps.extend(shown.iter().map(|column| (row[usize::from(*column)] / scale).round() as i16));
        }
        Some(Self { columns, places: places.into(), shown, scales: scales.into(), steps: steps.into() })
    }

    fn rows(&self) -> usize {
        self.places.len()
    }

    fn bytes(&self) -> usize {
        2 * (self.steps.len() + self.places.len() + self.shown.len()) + 4 * self.scales.len()
    }

    /// What is held of a row, with its scale.
    fn row(&self, at: usize) -> Option<(f32, &[i16])> {
        let place = usize::from(*self.places.get(at)?);
        let steps = self.steps.get(place * self.shown.len()..)?.get(..self.shown.len())?;
        Some((*self.scales.get(place)?, steps))
    }

    /// Adds `x W`.
    fn add(&self, x: &[f32], sum: &mut [f32]) {
        if self.shown.len() == sum.len() {
            return self.add_shown(x, sum);
        }
        let mut shown = vec![0.0; self.shown.len()];
        self.add_shown(x, &mut shown);
        self.shown.iter().zip(shown).for_each(|(column, add)| sum[usize::from(*column)] += add);
    }

    /// The same for the columns shown.
    fn add_shown(&self, x: &[f32], sum: &mut [f32]) {
        let moved = x.iter().enumerate().filter(|(_, x)| **x != 0.0);
        let used: Vec<(f32, &[i16])> =
            moved.filter_map(|(at, x)| self.row(at).map(|(scale, row)| (x * scale, row))).collect();
        lanes::add_rows(&used, sum);
    }
}

impl Dense {
    fn run(&self, x: &[f32]) -> Vec<f32> {
        let mut sum = self.bias.to_vec();
        self.weights.add(x, &mut sum);
        sum
    }
}

impl Layer {
    /// The last hidden state, from what the inputs of each step add to the gates.
    fn run(&self, steps: impl Iterator<Item = Vec<f32>>) -> Vec<f32> {
        let n = self.recurrent.rows();
        let (mut hidden, mut cell) = (vec![0.0; n], vec![0.0; n]);
        for mut gates in steps {
            self.recurrent.add(&hidden, &mut gates);
            // A sigmoid is half a tangent of the half.
            gates[..3 * n].iter_mut().for_each(|gate| *gate *= 0.5);
            lanes::tanh(&mut gates);
            gates[..3 * n].iter_mut().for_each(|gate| *gate = 0.5 * *gate + 0.5);
            for at in 0..n {
                cell[at] = gates[2 * n + at] * cell[at] + gates[at] * gates[3 * n + at];
            }
            hidden.copy_from_slice(&cell);
            lanes::tanh(&mut hidden);
            hidden.iter_mut().zip(&gates[n..]).for_each(|(hidden, out)| *hidden *= out);
        }
        hidden
    }
}

impl Residual {
    fn run(&self, x: &[f32], hidden: &[f32]) -> Output {
        let mut contributions = self.out.run(hidden);
        for ((out, x), weight) in contributions.iter_mut().zip(x).zip(&self.inverse_variance) {
            *out = (x - *out).powi(2) * weight;
        }
        #[allow(clippy::cast_precision_loss, reason = "427")]
        let score = contributions.iter().sum::<f32>() / FEATURES as f32;
        Output { score, contributions }
    }
}

fn describe(node: &NodeProto) -> String {
    let attributes: Vec<&str> = node.attribute.iter().map(|attribute| attribute.name.as_str()).collect();
    let (attributes, inputs, outputs) = (attributes.join(","), node.input.join(","), node.output.join(","));
    format!("{}[{attributes}]({inputs})={outputs}", node.op_type)
}

fn floats(graph: &GraphProto, name: &str) -> Option<Vec<f32>> {
    let tensor = graph.initializer.iter().find(|tensor| tensor.name == name)?;
    let (values, rest) = tensor.raw_data.as_chunks::<4>();
    let values: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (tensor.data_type == FLOAT && rest.is_empty() && values.iter().all(|value| value.is_finite()))
        .then_some(values)
}

fn dense(graph: &GraphProto, name: &str) -> Option<Dense> {
    let bias = floats(graph, &format!("{name}_b"))?;
    let weights = Matrix::of(&floats(graph, &format!("{name}_w"))?, bias.len())?;
    Some(Dense { weights, bias: bias.into_boxed_slice() })
}

/// ONNX keeps gates x inputs, and two biases.
fn layer(graph: &GraphProto, name: &str) -> Option<Layer> {
    let [input, recurrent, biases] = ["W", "R", "B"].map(|part| floats(graph, &format!("{name}_{part}")));
    let biases = biases?;
    let gates = biases.len() / 2;
    let bias: Box<[f32]> = biases.iter().zip(biases.get(gates..)?).map(|(a, b)| a + b).collect();
    let turned = |values: Vec<f32>| {
        let inputs = values.len().checked_div(gates)?;
        let value = |at: usize| values.get(at % gates * inputs + at / gates).copied();
        let turned: Option<Vec<f32>> = (0..inputs * gates).map(value).collect();
        Matrix::of(&turned?, gates)
    };
    Some(Layer { input: Dense { weights: turned(input?)?, bias }, recurrent: turned(recurrent?)? })
}

const FLOAT: i32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    impl Matrix {
        fn widened(&self) -> Vec<f32> {
            let mut wide = vec![0.0; self.rows() * self.columns];
            for (at, wide) in wide.chunks_exact_mut(self.columns).enumerate() {
                let Some((scale, row)) = self.row(at) else { continue };
                for (column, step) in self.shown.iter().zip(row) {
                    wide[usize::from(*column)] = scale * f32::from(*step);
                }
            }
            wide
        }
    }

    #[test]
    fn a_weight_is_off_by_half_a_step_of_its_row_at_most() {
        let values: Vec<f32> = (0..600_u16).map(|at| f32::from(at * 7 % 599) / 100.0 - 3.0).collect();
        let mut small = values.clone();
        small.iter_mut().step_by(2).for_each(|value| *value *= 1e-4);
        small[..6].fill(0.0);
        for values in [values, small] {
            let matrix = Matrix::of(&values, 6).unwrap();
            for (row, (found, expected)) in matrix.widened().chunks(6).zip(values.chunks(6)).enumerate() {
                let step = matrix.row(row).map_or(0.0, |(scale, _)| scale);
                assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 0.501 * step), "{row}");
            }
        }
        let mut sparse = vec![0.0; 6 * 5];
        (sparse[7], sparse[9], sparse[25]) = (1.0, -2.0, 3.0);
        let matrix = Matrix::of(&sparse, 6).unwrap();
        assert_eq!((matrix.rows(), matrix.scales.len(), &*matrix.shown), (5, 2, &[1_u16, 3][..]));
        let (mut sum, x) = (vec![1.0; 6], [9.0, 0.5, 0.0, 0.0, 2.0]);
        matrix.add(&x, &mut sum);
        let expected = [1.0, 7.5, 1.0, 0.0, 1.0, 1.0];
        assert!(sum.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3), "{sum:?}");
        assert!(Matrix::of(&[1.0; 7], 3).is_none() && Matrix::of(&[], 0).is_none());
    }
}
