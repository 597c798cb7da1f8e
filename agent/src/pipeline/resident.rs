//! Which models are in memory: bounded in bytes. The ones unused longest make room, and come back from where they are kept
//! when a process of their program is judged.

use models::detect::Detectors;
use models::program::ProgramId;

use super::Pipeline;
use crate::processes::Lookup;

/// How long it takes until what could not be read is tried again.
const RETRY_NS: u64 = 600_000_000_000;

/// Where models come back from: those of a program's baseline, if it is still of this generation.
pub type Shelf = Box<dyn FnMut(&ProgramId, u64) -> Option<Detectors> + Send>;

/// What decides which models stay.
#[derive(Default)]
pub(super) struct Resident {
    /// Without one, every model stays.
    shelf: Option<Shelf>,
    /// Counts up with every use.
    turn: u64,
}

impl<L: Lookup> Pipeline<L> {
    /// Models may make room from now on: here they come back from.
    pub fn set_shelf(&mut self, shelf: Shelf) {
        self.resident.shelf = Some(shelf);
        self.make_models_fit(None);
    }

    /// Bytes of models in memory.
    #[must_use]
    pub fn model_bytes(&self) -> usize {
        self.programs.values().filter_map(|program| program.baseline.as_ref()).map(|b| b.model_bytes()).sum()
    }

    /// Has the models of a program in memory, if they can be had: it is judged by first-time acts and the order of calls
    /// without them.
    pub(super) fn use_models(&mut self, key: &str) {
        let Resident { shelf, turn } = &mut self.resident;
        let baseline = self.programs.get_mut(key).and_then(|program| program.baseline.as_mut());
        let Some(baseline) = baseline else { return };
        *turn += 1;
        baseline.used_at = *turn;
        if baseline.detectors.is_some() {
            return;
        }
        let manifest = &baseline.manifest;
        // Reading a bundle takes milliseconds: one that is damaged is not read for every window.
        let shelf = shelf.as_mut().filter(|_| self.opened_ns >= baseline.retry_ns);
        baseline.detectors = shelf.and_then(|shelf| {
            baseline.retry_ns = self.opened_ns.saturating_add(RETRY_NS);
            shelf(&manifest.program, manifest.generation)
        });
        if baseline.detectors.is_some() {
            baseline.retry_ns = 0;
            self.counters.models_loaded += 1;
            self.make_models_fit(Some(key));
        } else {
            self.counters.models_missing += 1;
        }
    }

    /// Lets those unused longest go until the others fit; `keep` stays, also when it is larger than all room.
    pub(super) fn make_models_fit(&mut self, keep: Option<&str>) {
        if self.resident.shelf.is_none() {
            return;
        }
        let mut held = self.model_bytes() as u64;
        while held > self.config.models_max {
            let others = self.programs.iter_mut().filter(|(key, _)| Some(key.as_str()) != keep);
            let loaded = others.filter_map(|(_, program)| program.baseline.as_mut());
            let oldest = loaded.filter(|b| b.detectors.is_some()).min_by_key(|baseline| baseline.used_at);
            let Some(baseline) = oldest else { return };
            held -= baseline.model_bytes() as u64;
            baseline.detectors = None;
            self.counters.models_evicted += 1;
        }
    }
}
