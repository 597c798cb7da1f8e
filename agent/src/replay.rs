//! A capture judged again: the same pipeline, the same inputs, the same answers.

use std::collections::VecDeque;
use std::io::Read;
use std::path::Path;

use models::bundle::Verified;
use models::chain::chain;
use models::schema::SCHEMA_ID;

use crate::capture::{CaptureError, Entry, Origin, Reader};
use crate::pipeline::{Baseline, Counters, Output, Pipeline};
use crate::processes::{Identity, Lookup, Started};

/// Answers in the order in which they were given.
#[derive(Debug, Default)]
struct Answers(VecDeque<Identity>);

impl Lookup for Answers {
    fn identity(&mut self, _: u32, _: Option<&Started>) -> Identity {
        self.0.pop_front().unwrap_or(Identity::Gone)
    }
}

/// What a replay found.
#[derive(Debug, Default)]
pub struct Summary {
    /// Where the capture comes from.
    pub origin: Option<Origin>,
    /// Inputs that were judged.
    pub steps: u64,
    /// Baselines that were used then and are not at hand now: program and generation.
    pub missing: Vec<String>,
    /// Recording ended because the file had its full size.
    pub full: bool,
    /// What the pipeline counted.
    pub counters: Counters,
}

/// Judges a capture again with these baselines; what comes out goes to `sink`.
///
/// # Errors
/// When the file cannot be read or is damaged; what is whole before that has gone to `sink`.
pub fn replay(
    path: &Path,
    baselines: &[Verified],
    sink: &mut dyn FnMut(Output),
) -> Result<Summary, CaptureError> {
    replay_from(Reader::open(path)?, baselines, sink)
}

/// The same from anywhere.
///
/// # Errors
/// As [`replay`].
pub fn replay_from<R: Read>(
    mut reader: Reader<R>,
    baselines: &[Verified],
    sink: &mut dyn FnMut(Output),
) -> Result<Summary, CaptureError> {
    let mut summary = Summary::default();
    let mut pipeline: Option<Pipeline<Answers>> = None;
    let mut out = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        match (entry, &mut pipeline) {
            (Entry::Begin { origin, config, opened_ns, degraded }, _) => {
                if origin.schema != SCHEMA_ID {
                    return Err(CaptureError::Schema(origin.schema));
                }
                let mut begun = Pipeline::new(config, Answers::default(), opened_ns);
                begun.set_degraded(degraded);
                (pipeline, summary.origin) = (Some(begun), Some(origin));
            }
            (Entry::Known(known), Some(pipeline)) => pipeline.know(known),
            (Entry::Degraded(layers), Some(pipeline)) => pipeline.set_degraded(layers),
            (Entry::Switch { program, generation, table }, Some(pipeline)) => {
                let wanted = baselines.iter().find(|verified| {
                    (&verified.manifest().program, verified.manifest().generation) == (&program, generation)
                });
                match wanted.map(Baseline::load) {
                    Some(Ok(mut baseline)) => {
                        drop(baseline.take_grams());
                        if let Err(error) = pipeline.switch(baseline.with_table(table), &mut out) {
                            log::error!("the baseline of {program} is not used: {}", chain(&error));
                        }
                    }
                    Some(Err(error)) => {
                        log::error!("the baseline of {program} is not used: {}", chain(&error));
                    }
                    None => summary.missing.push(format!("{program} generation {generation}")),
                }
            }
            (Entry::Forget(program), Some(pipeline)) => {
                pipeline.forget(&program, &mut out);
            }
            (Entry::Step { now, input, answers }, Some(pipeline)) => {
                pipeline.lookup_mut().0 = answers.into();
                pipeline.step(now, input, &mut out);
                summary.steps += 1;
                summary.counters = *pipeline.counters();
            }
            (Entry::End { full, .. }, _) => summary.full = full,
            (_, None) => {}
        }
        out.drain(..).for_each(&mut *sink);
    }
    Ok(summary)
}
