//! Vectors to detector outputs, with the graphs of one bundle run by tract.

use std::sync::Arc;

use tract_onnx::prelude::*;

use crate::bundle::Verified;
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
        let lstm = bundle.part(LSTM_PART).map(|part| Graph::load(LSTM_PART, part, &[SEQUENCE, 1, FEATURES]));
        let prototypes =
            bundle.part(PROTOTYPES_PART).map_or(Some(Prototypes::default()), Prototypes::from_bytes);
        let grams = bundle.part(GRAMS_PART).map(|part| {
            let damaged =
                || DetectError::Load { part: GRAMS_PART, reason: "not a table of grams".to_owned() };
            GramTable::from_bytes(part).ok_or_else(damaged)
        });
        let vae = bundle.part(VAE_PART).ok_or(DetectError::Missing(VAE_PART))?;
        Ok(Self {
            vae: Graph::load(VAE_PART, vae, &[1, FEATURES])?,
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
    /// When tract cannot run the graph.
    pub fn vae(&self, vector: &Vector) -> Result<Output, DetectError> {
        self.vae.run(vector, &[1, FEATURES])
    }

    /// Scores the last of [`SEQUENCE`] windows, oldest first; `None` when this baseline has no such model.
    ///
    /// # Errors
    /// When tract cannot run the graph.
    pub fn lstm(&self, sequence: &[&Vector; SEQUENCE]) -> Result<Option<Output>, DetectError> {
        let Some(graph) = &self.lstm else { return Ok(None) };
        let flat: Vec<f32> = sequence.iter().flat_map(|vector| vector.iter().copied()).collect();
        graph.run(&flat, &[SEQUENCE, 1, FEATURES]).map(Some)
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
                // The graph gives the terms of a mean.
                #[allow(clippy::cast_precision_loss, reason = "427")]
                let contributions = contributions.into_iter().map(|term| term / FEATURES as f32).collect();
                Ok(Output { score, contributions })
            }
            _ => Err(failed(format!("it gives {score:?} and {} contributions", contributions.len()))),
        }
    }
}
