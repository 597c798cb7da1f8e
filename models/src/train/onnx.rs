//! Trained weights to ONNX graphs (opset 13) that hold the whole scorer: square root, model, weighted residual.
//!
//! Outputs are `score` [1], the mean weighted squared residual, and `contrib` [427], its terms. The messages are the
//! part of onnx.proto3 (ONNX 1.8) that these graphs need, by its field numbers.

use ndarray::Array2;
use prost::Message;

use super::lstm::{Autoencoder, HIDDEN, Layer};
use super::vae::Vae;
use crate::schema::FEATURES;

const OPSET: i64 = 13;
const IR_VERSION: i64 = 7;
const FLOAT: i32 = 1;
const INT64: i32 = 7;

/// The VAE's scorer: input `x` [1, 427].
pub(super) fn vae(model: &Vae, inverse_variance: &Array2<f32>) -> Vec<u8> {
    let mut g = Builder::default();
    g.node("Sqrt", &["x"], &["root"]);
    let h = g.dense("enc", "root", &model.w1, &model.b1);
    g.node("Tanh", &[&h], &["h"]);
    let z = g.dense("mean", "h", &model.wm, &model.bm);
    let d = g.dense("dec", &z, &model.w3, &model.b3);
    g.node("Tanh", &[&d], &["d"]);
    let y = g.dense("out", "d", &model.w4, &model.b4);
    g.residual("root", &y, inverse_variance);
    g.finish("vae", &[1, FEATURES])
}

/// The LSTM autoencoder's scorer of the last window: input `x` [windows, 1, 427].
pub(super) fn lstm(model: &Autoencoder, inverse_variance: &Array2<f32>, windows: usize) -> Vec<u8> {
    let mut g = Builder::default();
    g.node("Sqrt", &["x"], &["root"]);
    g.lstm("enc", "root", "code", &model.encoder);
    // tract 0.23 cannot optimise Tile or Expand in front of an LSTM.
    let copies = vec!["code"; windows];
    g.node_with("Concat", &copies, &["codes"], vec![Attribute::int("axis", 0)]);
    g.lstm("dec", "codes", "state", &model.decoder);
    g.integers("first_axis", &[0]);
    g.node("Squeeze", &["state", "first_axis"], &["last_state"]);
    let y = g.dense("out", "last_state", &model.wo, &model.bo);
    g.scalar("last", i64::try_from(windows - 1).expect("ten windows"));
    g.node_with("Gather", &["root", "last"], &["last_root"], vec![Attribute::int("axis", 0)]);
    g.residual("last_root", &y, inverse_variance);
    g.finish("lstm", &[windows, 1, FEATURES])
}

#[derive(Default)]
struct Builder {
    graph: Graph,
}

impl Builder {
    fn node(&mut self, op: &str, inputs: &[&str], outputs: &[&str]) {
        self.node_with(op, inputs, outputs, vec![]);
    }

    fn node_with(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<Attribute>) {
        self.graph.node.push(Node {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: outputs.iter().map(ToString::to_string).collect(),
            name: format!("{op}_{}", self.graph.node.len()),
            op_type: op.to_owned(),
            attribute,
        });
    }

    fn tensor(&mut self, name: &str, dims: &[usize], values: impl Iterator<Item = f32>) {
        self.graph.initializer.push(Tensor {
            dims: dims.iter().map(|d| *d as i64).collect(),
            data_type: FLOAT,
            name: name.to_owned(),
            raw_data: values.flat_map(f32::to_le_bytes).collect(),
        });
    }

    fn integers(&mut self, name: &str, values: &[i64]) {
        self.graph.initializer.push(Tensor {
            dims: vec![values.len() as i64],
            data_type: INT64,
            name: name.to_owned(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
    }

    fn scalar(&mut self, name: &str, value: i64) {
        let raw_data = value.to_le_bytes().to_vec();
        self.graph.initializer.push(Tensor {
            dims: vec![],
            data_type: INT64,
            name: name.to_owned(),
            raw_data,
        });
    }

    fn dense(&mut self, name: &str, input: &str, w: &Array2<f32>, b: &Array2<f32>) -> String {
        let [weight, bias, product, out] = ["w", "b", "product", "out"].map(|part| format!("{name}_{part}"));
        self.tensor(&weight, &[w.nrows(), w.ncols()], w.iter().copied());
        self.tensor(&bias, &[b.ncols()], b.iter().copied());
        self.node("MatMul", &[input, &weight], &[&product]);
        self.node("Add", &[&product, &bias], &[&out]);
        out
    }

    /// Only the last hidden state is used: `out` has the shape [1, 1, hidden].
    fn lstm(&mut self, name: &str, input: &str, out: &str, layer: &Layer) {
        let [w, r, b, all] = ["W", "R", "B", "all"].map(|part| format!("{name}_{part}"));
        let inputs = layer.wx.nrows();
        // Ours is inputs x gates; ONNX wants gates x inputs.
        self.tensor(&w, &[1, 4 * HIDDEN, inputs], layer.wx.t().iter().copied());
        self.tensor(&r, &[1, 4 * HIDDEN, HIDDEN], layer.wh.t().iter().copied());
        let zeros = core::iter::repeat_n(0.0, 4 * HIDDEN);
        self.tensor(&b, &[1, 8 * HIDDEN], layer.b.iter().copied().chain(zeros));
        let hidden = Attribute::int("hidden_size", HIDDEN as i64);
        self.node_with("LSTM", &[input, &w, &r, &b], &[&all, out], vec![hidden]);
    }

    fn residual(&mut self, x: &str, y: &str, inverse_variance: &Array2<f32>) {
        self.tensor("inverse_variance", &[1, FEATURES], inverse_variance.iter().copied());
        self.integers("row_axis", &[0]);
        self.node("Sub", &[x, y], &["residual"]);
        self.node("Mul", &["residual", "residual"], &["squared"]);
        self.node("Mul", &["squared", "inverse_variance"], &["weighted"]);
        let axes = Attribute { name: "axes".into(), ints: vec![1], kind: 7, ..Attribute::default() };
        self.node_with("ReduceMean", &["weighted"], &["score"], vec![axes, Attribute::int("keepdims", 0)]);
        self.node("Squeeze", &["weighted", "row_axis"], &["contrib"]);
    }

    fn finish(mut self, name: &str, input: &[usize]) -> Vec<u8> {
        self.graph.name = name.to_owned();
        self.graph.input = vec![ValueInfo::float("x", input)];
        self.graph.output = vec![ValueInfo::float("score", &[1]), ValueInfo::float("contrib", &[FEATURES])];
        let model = Model {
            ir_version: IR_VERSION,
            producer_name: "behaveguard".into(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
        };
        model.encode_to_vec()
    }
}

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSet>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSet {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "3")]
    int: i64,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
    /// 2 is INT, 7 is INTS.
    #[prost(int32, tag = "20")]
    kind: i32,
}

impl Attribute {
    fn int(name: &str, value: i64) -> Self {
        Self { name: name.to_owned(), int: value, kind: 2, ..Self::default() }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<Type>,
}

impl ValueInfo {
    fn float(name: &str, dims: &[usize]) -> Self {
        let dim = dims.iter().map(|d| Dimension { value: *d as i64 }).collect();
        let tensor = TensorType { element: FLOAT, shape: Some(Shape { dim }) };
        Self { name: name.to_owned(), kind: Some(Type { tensor: Some(tensor) }) }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Type {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, tag = "1")]
    value: i64,
}
