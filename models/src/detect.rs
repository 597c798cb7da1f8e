//! Vectors to detector outputs, with the graphs of one bundle: those of our trainer by [`crate::compact`], others by tract.

use std::collections::BTreeSet;
use std::sync::Arc;

use tract_onnx::prelude::*;

use crate::bundle::Verified;
use crate::compact::Compact;
use crate::features::Vector;
use crate::nearest::Prototypes;
pub use crate::nearest::{Distances, Output};
use crate::schema::{FEATURES, SEQUENCE};
use crate::sequence::GramTable;

/// Names of the graphs in a bundle.
pub const VAE_PART: &str = "vae.onnx";
/// Absent when no process lived for [`SEQUENCE`] windows while it was learned.
pub const LSTM_PART: &str = "lstm.onnx";
/// [`Prototypes`], absent from bundles of an earlier version.
pub const PROTOTYPES_PART: &str = "prototypes.bin";

/// [`GramTable`], absent when nothing was learned about the order of calls.
pub const GRAMS_PART: &str = "grams.bin";

/// Why a bundle's graphs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// Not in the bundle.
    #[error("the bundle has no part `{0}`")]
    Missing(&'static str),
    /// Not a graph tract can run with our shapes.
    #[error("loading `{part}`: {reason}")]
    Load {
        /// Which part.
        part: &'static str,
        /// tract's words.
        reason: String,
    },
    /// It ran and failed, or gave outputs of another shape.
    #[error("running `{part}`: {reason}")]
    Run {
        /// Which part.
        part: &'static str,
        /// tract's words.
        reason: String,
    },
}

/// The detectors of a bundle, loaded.
pub struct Detectors {
    vae: Graph,
    lstm: Option<Graph>,
    prototypes: Prototypes,
    grams: Option<GramTable>,
}

impl Detectors {
    /// Loads the detectors of a checked bundle.
    ///
    /// # Errors
    /// When the VAE is missing or a part does not load.
    pub fn load(bundle: &Verified) -> Result<Self, DetectError> {
        let lstm = bundle.part(LSTM_PART).map(|part| Graph::load(LSTM_PART, part, SEQUENCE));
        let prototypes =
            bundle.part(PROTOTYPES_PART).map_or(Some(Prototypes::default()), Prototypes::from_bytes);
        let grams = bundle.part(GRAMS_PART).map(|part| {
            let damaged =
                || DetectError::Load { part: GRAMS_PART, reason: "not a table of grams".to_owned() };
            GramTable::from_bytes(part).ok_or_else(damaged)
        });
        let vae = bundle.part(VAE_PART).ok_or(DetectError::Missing(VAE_PART))?;
        Ok(Self {
            vae: Graph::load(VAE_PART, vae, 1)?,
            lstm: lstm.transpose()?,
            prototypes: prototypes.ok_or_else(|| DetectError::Load {
                part: PROTOTYPES_PART,
                reason: "not prototypes of this schema".to_owned(),
            })?,
            grams: grams.transpose()?,
        })
    }

    /// Scores one window.
    ///
    /// # Errors
    /// When the graph cannot be run, or gives no number.
    pub fn vae(&self, vector: &Vector) -> Result<Output, DetectError> {
        self.vae.run(vector)
    }

    /// Scores the last of [`SEQUENCE`] windows, oldest first; `None` when this baseline has no such model.
    ///
    /// # Errors
    /// When the graph cannot be run, or gives no number.
    pub fn lstm(&self, sequence: &[&Vector; SEQUENCE]) -> Result<Option<Output>, DetectError> {
        let Some(graph) = &self.lstm else { return Ok(None) };
        let flat: Vec<f32> = sequence.iter().flat_map(|vector| vector.iter().copied()).collect();
        graph.run(&flat).map(Some)
    }

    /// Distances of one window from the learned ones; `None` when this baseline has no prototypes.
    #[must_use]
    pub fn distances(&self, vector: &Vector) -> Option<Distances> {
        self.prototypes.score(vector)
    }

    /// Gives away what the kernel's table is filled with; `None` when this baseline has none.
    #[must_use]
    pub fn take_grams(&mut self) -> Option<GramTable> {
        self.grams.take()
    }

    /// Bytes that the weights of both networks take; those that tract runs are not counted.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let graphs = core::iter::once(&self.vae).chain(&self.lstm);
        graphs
            .map(|graph| if let Runner::Compact(compact) = &graph.runner { compact.bytes() } else { 0 })
            .sum()
    }

    /// Bytes in memory: the weights, and the prototypes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weight_bytes() + self.prototypes.bytes()
    }

    /// Every detector's name and output on a window, but for what the kernel found about the order of its calls, with the windows of its process up to it, oldest first.
    ///
    /// One that has no model or too few windows is absent; one that fails does not silence the others.
    pub fn all(
        &self,
        vector: &Vector,
        history: &[&Vector],
    ) -> Vec<(&'static str, Result<Output, DetectError>)> {
        let mut out = vec![("vae", self.vae(vector))];
        let last = history.len().checked_sub(SEQUENCE).and_then(|from| history[from..].try_into().ok());
        if let Some(sequence) = last
            && let Some(lstm) = self.lstm(sequence).transpose()
        {
            out.push(("lstm", lstm));
        }
        if let Some(distances) = self.distances(vector) {
            out.push(("nearest", Ok(distances.nearest)));
            out.push(("repertoire", Ok(distances.repertoire)));
        }
        out
    }
}

struct Graph {
    part: &'static str,
    runner: Runner,
}

enum Runner {
    Compact(Box<Compact>),
    Tract(Arc<TypedRunnableModel>),
}

impl Graph {
    fn load(part: &'static str, bytes: &[u8], windows: usize) -> Result<Self, DetectError> {
        let load = || -> TractResult<Runner> {
            let model = tract_onnx::onnx().proto_model_for_read(&mut &*bytes)?;
            match Compact::of(&model, windows) {
                Some(compact) => Ok(Runner::Compact(Box::new(compact))),
                None => {
                    names_fit(&model).map_err(TractError::msg)?;
                    optimised(&model, part, windows).map(Runner::Tract)
                }
            }
        };
        load()
            .map(|runner| Self { part, runner })
            .map_err(|e| DetectError::Load { part, reason: format!("{e:#}") })
    }

    fn run(&self, values: &[f32]) -> Result<Output, DetectError> {
        let failed = |reason: String| DetectError::Run { part: self.part, reason };
        let output = match &self.runner {
            Runner::Compact(compact) => compact.run(values),
            Runner::Tract(plan) => {
                run(plan, &shape(self.part, values.len() / FEATURES), values).map_err(failed)?
            }
        };
        if output.score.is_finite() && output.contributions.len() == FEATURES {
            // The graph gives the terms of a mean.
            #[allow(clippy::cast_precision_loss, reason = "427")]
            let contributions = output.contributions.into_iter().map(|term| term / FEATURES as f32).collect();
            return Ok(Output { contributions, ..output });
        }
        Err(failed(format!("it gives {} and {} contributions", output.score, output.contributions.len())))
    }
}

/// Whether each value has a name of its own and is made before it is used; tract panics where it is not.
fn names_fit(model: &tract_onnx::pb::ModelProto) -> Result<(), String> {
    let graph = model.graph.as_ref().ok_or("there is no graph")?;
    let inputs = graph.input.iter().map(|input| &input.name);
    let mut made: BTreeSet<&String> =
        inputs.chain(graph.initializer.iter().map(|given| &given.name)).collect();
    for node in &graph.node {
        // An input that is left out has no name.
        for used in node.input.iter().filter(|name| !name.is_empty()) {
            if !made.contains(used) {
                return Err(format!("`{used}` is used before it is made"));
            }
        }
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if !made.insert(output) {
                return Err(format!("`{output}` is made twice"));
            }
        }
    }
    match graph.output.iter().find(|output| !made.contains(&output.name)) {
        Some(output) => Err(format!("the output `{}` is not made", output.name)),
        None => Ok(()),
    }
}

/// The VAE takes a row, the LSTM one row a step.
fn shape(part: &str, windows: usize) -> TVec<usize> {
    if part == VAE_PART { tvec!(1, FEATURES) } else { tvec!(windows, 1, FEATURES) }
}

fn optimised(
    model: &tract_onnx::pb::ModelProto,
    part: &str,
    windows: usize,
) -> TractResult<Arc<TypedRunnableModel>> {
    tract_onnx::onnx()
        .model_for_proto_model(model)?
        .with_input_fact(0, f32::fact(shape(part, windows)).into())?
        .into_optimized()?
        .into_runnable()
}

fn run(plan: &Arc<TypedRunnableModel>, shape: &[usize], values: &[f32]) -> Result<Output, String> {
    let words = |error: TractError| format!("{error:#}");
    let input = Tensor::from_shape(shape, values).map_err(words)?;
    let outputs = plan.run(tvec!(input.into())).map_err(words)?;
    let [score, contributions] = &outputs[..] else {
        return Err(format!("it has {} outputs, not 2", outputs.len()));
    };
    let floats = |tensor: &TValue| -> TractResult<Vec<f32>> {
        Ok(tensor.to_plain_array_view::<f32>()?.iter().copied().collect())
    };
    match floats(score).map_err(words)?[..] {
        [score] => Ok(Output { score, contributions: floats(contributions).map_err(words)? }),
        ref other => Err(format!("it gives {} scores, not 1", other.len())),
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;
    use crate::features;
    use crate::train::{self, TrainOptions};
    use crate::wire::TrainingWindow;

    /// Windows of three loads, and the graphs learned from them.
    fn trained() -> (Vec<Vector>, Vec<(String, Vec<u8>)>) {
        let vector = |at: usize| {
            let mut vector = [0.0; FEATURES];
            for slot in 0..40 {
                vector[slot * 9 % FEATURES] = (1.0 + ((at + slot) % 3) as f32) / 120.0;
            }
            vector
        };
        let vectors: Vec<Vector> = (0..80).map(vector).collect();
        let window = |vector: &Vector| TrainingWindow {
            unix_ms: 0,
            run: 1,
            vector: features::to_sparse(vector),
            traits: vec![],
            grams: vec![],
        };
        let windows: Vec<TrainingWindow> = vectors.iter().map(window).collect();
        let options = TrainOptions { vae_steps: 60, lstm_steps: 30, ..TrainOptions::default() };
        (vectors, train::fit(&windows, &options, &mut |_| {}).unwrap().parts)
    }

    fn part<'a>(parts: &'a [(String, Vec<u8>)], name: &str) -> &'a [u8] {
        &parts.iter().find(|part| part.0 == name).expect("it was learned").1
    }

    #[test]
    fn ours_agrees_with_tract_to_a_thousandth_on_usual_and_odd_windows() {
        let (vectors, parts) = trained();
        for (name, windows) in [(VAE_PART, 1), (LSTM_PART, SEQUENCE)] {
            let bytes = part(&parts, name);
            let ours = Graph::load(name, bytes, windows).unwrap();
            assert!(matches!(ours.runner, Runner::Compact(_)), "{name} is a graph of our trainer");
            let model = tract_onnx::onnx().proto_model_for_read(&mut &*bytes).unwrap();
            let tracts =
                Graph { part: name, runner: Runner::Tract(optimised(&model, name, windows).unwrap()) };
            for (first, odd) in [(0, 0.0), (17, 0.0), (40, 0.5)] {
                let mut values: Vec<f32> =
                    vectors[first..first + windows].iter().flatten().copied().collect();
                let last = values.len() - FEATURES;
                values[last + 5] += odd;
                let (ours, tracts) = (ours.run(&values).unwrap(), tracts.run(&values).unwrap());
                let error = (ours.score / tracts.score - 1.0).abs();
                assert!(error < 1e-3, "{name} from {first}: {} and {}", ours.score, tracts.score);
                let sum: f32 = tracts.contributions.iter().sum();
                for (at, (a, b)) in ours.contributions.iter().zip(&tracts.contributions).enumerate() {
                    assert!((a - b).abs() < 1e-3 * sum, "{name}, feature {at}: {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn a_graph_of_another_form_is_run_by_tract_and_a_damaged_one_refused() {
        let (vectors, parts) = trained();
        let bytes = part(&parts, VAE_PART);
        // The same operators under another name: no longer what our trainer writes.
        let at = bytes.windows(8).position(|eight| eight == b"residual").expect("the graph has it");
        let mut renamed = bytes.to_vec();
        while let Some(at) = renamed.windows(8).position(|eight| eight == b"residual") {
            renamed[at..at + 8].copy_from_slice(b"leftover");
        }
        let graph = Graph::load(VAE_PART, &renamed, 1).unwrap();
        assert!(matches!(graph.runner, Runner::Tract(_)));
        let ours = Graph::load(VAE_PART, bytes, 1).unwrap().run(&vectors[0]).unwrap().score;
        assert!((graph.run(&vectors[0]).unwrap().score / ours - 1.0).abs() < 1e-3);
        assert!(Graph::load(VAE_PART, &bytes[..at], 1).is_err());
        assert!(Graph::load(LSTM_PART, bytes, SEQUENCE).is_err(), "a VAE is no LSTM");
        // An output that no node makes, and a value that is made by two: found by the fuzzer.
        let mut nameless = renamed.clone();
        let last = nameless.windows(7).rposition(|seven| seven == b"contrib").expect("the graph has it");
        nameless[last..last + 7].copy_from_slice(b"nowhere");
        let twice: Vec<u8> = {
            let at = renamed.windows(8).position(|eight| eight == b"weighted").expect("the graph has it");
            let mut twice = renamed.clone();
            twice[at..at + 8].copy_from_slice(b"leftover");
            twice
        };
        for (bad, why) in [(nameless, "is not made"), (twice, "is made twice")] {
            let error = Graph::load(VAE_PART, &bad, 1).err().expect("it is refused").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
