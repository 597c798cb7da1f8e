//! `behaveguard doctor`: loads the kernel part for a moment and tells what this kernel allows.

use std::fmt::Write as _;
use std::io;

use models::wire::LayerState;
use serde::Serialize;

use crate::config::Config;
use crate::probe::{MapMemory, Probe, ProbeError, unseen};
use crate::vitals;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// The kernel's release.
    pub kernel: String,
    /// Each layer.
    pub layers: Vec<Layer>,
    /// Kernel memory of every map, largest first.
    pub maps: Vec<MapMemory>,
}

/// One layer.
#[derive(Debug, Serialize)]
pub struct Layer {
    /// Its name.
    pub layer: String,
    /// The hook in use; empty when there is none.
    pub backend: String,
    /// Better hooks, and why each failed.
    pub failed: Vec<(String, String)>,
    /// What is not seen as a result; empty when nothing is missed.
    pub unseen: &'static str,
}

/// Why nothing could be found out.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// The kernel part.
    #[error("starting the kernel part")]
    Probe(#[from] ProbeError),
    /// The maps' memory.
    #[error("reading /proc/self/fdinfo")]
    Maps(#[source] io::Error),
}

/// Loads, looks, and unloads. A running agent is not disturbed.
///
/// # Errors
/// When the kernel allows no `bpf()` at all.
pub fn examine(config: &Config) -> Result<Findings, DoctorError> {
    Findings::of(&Probe::load(&config.probe(std::process::id()))?)
}

impl Findings {
    /// What there is to say about a kernel part that is loaded.
    ///
    /// # Errors
    /// When the memory of its maps cannot be read.
    pub fn of(probe: &Probe) -> Result<Self, DoctorError> {
        let layer = |state: &LayerState| Layer {
            layer: state.layer.clone(),
            backend: state.backend.clone(),
            failed: state.failed.clone(),
            unseen: unseen(state),
        };
        Ok(Self {
            kernel: vitals::kernel(),
            layers: probe.layers().iter().map(layer).collect(),
            maps: probe.memory().map_err(DoctorError::Maps)?,
        })
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("Linux {}\n\n", self.kernel);
        for layer in &self.layers {
            let backend = if layer.backend.is_empty() { "none" } else { &layer.backend };
            let _ = writeln!(text, "{:17} {backend}", layer.layer);
            for (backend, reason) in &layer.failed {
                let _ = writeln!(text, "{:17} not {backend}: {reason}", "");
            }
            if !layer.unseen.is_empty() {
                let _ = writeln!(text, "{:17} less is seen: {}", "", layer.unseen);
            }
        }
        let _ = writeln!(text, "\n{:17} {:>12} {:>14}", "map", "max entries", "locked bytes");
        for map in &self.maps {
            let _ = writeln!(text, "{:17} {:>12} {:>14}", map.name, map.max_entries, map.locked_bytes);
        }
        let all: u64 = self.maps.iter().map(|map| map.locked_bytes).sum();
        let _ = writeln!(text, "{:17} {:>12} {all:>14}", "all", "");
        text
    }
}
