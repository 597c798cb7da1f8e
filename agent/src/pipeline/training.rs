//! Normal windows to what the fleet learns from, in messages that fit.

use std::collections::BTreeSet;

use models::features::{self, Vector};
use models::sequence::WINDOW_GRAMS_MAX;
use models::window::Window;
use models::wire::{AlarmedWindow, TrainingWindow};

use super::{Output, Pipeline};
use crate::clock::Now;
use crate::processes::Lookup;
use crate::shedding::MODELS;

/// Windows of one program that are learned from between two closes; the others are counted.
const TRAINING_WAITING_MAX: usize = 128;

/// Bytes of windows in one training message, by the estimate below; a message has at most 64 KB.
const TRAINING_MAX: usize = 48 * 1024;
/// At most what a value of a window takes on the wire: a trait, a gram with its count, or an index with a number.
const VALUE_BYTES: usize = 13;
/// What is left of a window.
const WINDOW_BYTES: usize = 40;

impl<L: Lookup> Pipeline<L> {
    /// Nothing of a window was left out. That the models are not asked takes nothing from it: else a device that is too busy for
    /// them would never have learned.
    fn saw_everything(&self) -> bool {
        self.degraded.iter().all(|layer| layer == MODELS)
    }

    /// Gives away a window that there were alerts in: if people find that they were false alarms, the next baseline is to know
    /// it. Only by what was done in it when there is no `vector`, or something was not seen.
    pub(super) fn keep_alarmed(
        &mut self,
        now: Now,
        tgid: u32,
        vector: Option<&Vector>,
        window: &Window,
        out: &mut Vec<Output>,
    ) {
        let saw_everything = self.saw_everything();
        let Some(process) = self.processes.get_mut(&tgid) else { return };
        let alerts = std::mem::take(&mut process.told);
        let program = process.key.as_ref().and_then(|key| self.programs.get(key));
        let Some(program) = program.filter(|_| !alerts.is_empty()) else { return };
        let vector = vector.filter(|_| saw_everything).map(features::to_sparse).unwrap_or_default();
        let window = TrainingWindow {
            unix_ms: now.unix_ms,
            run: process.run,
            vector,
            traits: window.traits().to_vec(),
            grams: Vec::new(),
        };
        out.push(Output::Alarmed(Box::new(AlarmedWindow { program: program.id.clone(), alerts, window })));
    }

    /// Keeps a window to be learned from, unless something in it was not seen.
    pub(super) fn learn_from(
        &mut self,
        now: Now,
        key: String,
        run: u64,
        vector: &Vector,
        window: &mut Window,
    ) {
        let saw_everything = self.saw_everything();
        let loose = self.programs.get_mut(&key).map(|program| std::mem::take(&mut program.loose));
        let waiting = self.training.entry(key).or_default();
        if waiting.len() >= TRAINING_WAITING_MAX {
            self.counters.windows_surplus += 1;
        } else if saw_everything {
            waiting.push(TrainingWindow {
                unix_ms: now.unix_ms,
                run,
                vector: features::to_sparse(vector),
                traits: loose
                    .into_iter()
                    .flatten()
                    .chain(window.traits().iter().copied())
                    .collect::<BTreeSet<u64>>()
                    .into_iter()
                    .collect(),
                grams: if window.syscalls.learned.len() > WINDOW_GRAMS_MAX {
                    self.counters.windows_without_order += 1;
                    Vec::new()
                } else {
                    std::mem::take(&mut window.syscalls.learned)
                },
            });
        } else {
            self.counters.windows_degraded += 1;
        }
    }
}

/// Windows in order, as many in one message as surely fit.
pub(super) fn batches(windows: Vec<TrainingWindow>) -> Vec<Vec<TrainingWindow>> {
    let size = |window: &TrainingWindow| {
        WINDOW_BYTES + VALUE_BYTES * (window.vector.len() + window.traits.len() + window.grams.len())
    };
    let mut messages: Vec<Vec<TrainingWindow>> = Vec::new();
    let mut used = 0;
    for window in windows {
        let more = size(&window);
        match messages.last_mut() {
            Some(message) if used + more <= TRAINING_MAX => message.push(window),
            _ => {
                used = 0;
                messages.push(vec![window]);
            }
        }
        used += more;
    }
    messages
}
