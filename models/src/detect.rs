//! Vectors to detector outputs, with the graphs of one bundle run by tract.

use std::sync::Arc;

use tract_onnx::prelude::*;

use crate::bundle::Verified;
use crate::features::Vector;
use crate::schema::{FEATURES, SEQUENCE};

/// Names of the graphs in a bundle.
pub const VAE_PART: &str = "vae.onnx";
/// See [`VAE_PART`].
pub const LSTM_PART: &str = "lstm.onnx";

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

/// One scorer's answer.
#[derive(Clone, Debug)]
pub struct Output {
    /// Mean weighted squared residual.
    pub score: f32,
    /// Each feature's share of it, not normalised.
    pub contributions: Vec<f32>,
}

/// The two graphs of a bundle, loaded.
pub struct Detectors {
    vae: Graph,
    lstm: Graph,
}

impl Detectors {
    /// Loads the graphs of a checked bundle.
    ///
    /// # Errors
    /// When a graph is missing or does not load.
    pub fn load(bundle: &Verified) -> Result<Self, DetectError> {
        let part = |name| bundle.part(name).ok_or(DetectError::Missing(name));
        Ok(Self {
            vae: Graph::load(VAE_PART, part(VAE_PART)?, &[1, FEATURES])?,
            lstm: Graph::load(LSTM_PART, part(LSTM_PART)?, &[SEQUENCE, 1, FEATURES])?,
        })
    }

    /// Scores one window.
    ///
    /// # Errors
    /// When tract cannot run the graph.
    pub fn vae(&self, vector: &Vector) -> Result<Output, DetectError> {
        self.vae.run(vector, &[1, FEATURES])
    }

    /// Scores the last of [`SEQUENCE`] windows, oldest first.
    ///
    /// # Errors
    /// When tract cannot run the graph.
    pub fn lstm(&self, sequence: &[&Vector; SEQUENCE]) -> Result<Output, DetectError> {
        let flat: Vec<f32> = sequence.iter().flat_map(|vector| vector.iter().copied()).collect();
        self.lstm.run(&flat, &[SEQUENCE, 1, FEATURES])
    }
}

struct Graph {
    part: &'static str,
    plan: Arc<TypedRunnableModel>,
}

impl Graph {
    fn load(part: &'static str, bytes: &[u8], shape: &[usize]) -> Result<Self, DetectError> {
        let load = || -> TractResult<Arc<TypedRunnableModel>> {
            tract_onnx::onnx()
                .model_for_read(&mut &*bytes)?
                .with_input_fact(0, f32::fact(shape).into())?
                .into_optimized()?
                .into_runnable()
        };
        load()
            .map(|plan| Self { part, plan })
            .map_err(|e| DetectError::Load { part, reason: format!("{e:#}") })
    }

    fn run(&self, values: &[f32], shape: &[usize]) -> Result<Output, DetectError> {
        let failed = |reason| DetectError::Run { part: self.part, reason };
        let outputs = Tensor::from_shape(shape, values)
            .and_then(|input| self.plan.run(tvec!(input.into())))
            .map_err(|e| failed(format!("{e:#}")))?;
        let [score, contributions] = &outputs[..] else {
            return Err(failed(format!("it has {} outputs, not 2", outputs.len())));
        };
        let floats = |tensor: &TValue| -> TractResult<Vec<f32>> {
            Ok(tensor.to_plain_array_view::<f32>()?.iter().copied().collect())
        };
        let score = floats(score).map_err(|e| failed(format!("{e:#}")))?;
        let contributions = floats(contributions).map_err(|e| failed(format!("{e:#}")))?;
        match score[..] {
            [score] if score.is_finite() && contributions.len() == FEATURES => {
                Ok(Output { score, contributions })
            }
            _ => Err(failed(format!("it gives {score:?} and {} contributions", contributions.len()))),
        }
    }
}
