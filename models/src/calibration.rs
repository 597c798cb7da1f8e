//! Raw detector outputs to one score from 0 to 100, by what held-out normal windows gave.

use serde::{Deserialize, Serialize};

/// Calibration of all detectors of one baseline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// One per detector.
    pub detectors: Vec<DetectorCalibration>,
    /// Fused z of every calibration window, ascending.
    pub fused: Vec<f32>,
}

/// Median and spread of one detector's `ln(score)` on calibration windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectorCalibration {
    /// `vae` or `lstm`.
    pub name: String,
    /// Weight in the fused z.
    pub weight: f32,
    /// Median of `ln(score)`.
    pub median: f32,
    /// 84 % quantile less the median, at least a floor.
    pub spread: f32,
}
