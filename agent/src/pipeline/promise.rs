//! Whether a baseline's scores still mean what they promise, and what is done when they do not.

use models::bundle::Manifest;
use models::drift::Drift;
use models::program::ProgramId;
use models::verdict::Verdict;
use serde::{Deserialize, Serialize};

use super::{Output, Pipeline, how};
use crate::processes::Lookup;

/// A window whose first-time acts alone are worth this much says nothing about drift: MEDIUM by itself.
const EVIDENCE_DECADES: f32 = 2.0;

/// One baseline's drift.
pub(super) struct Promise {
    drift: Drift,
    /// The epoch whose window was taken: processes of one program in one epoch do the same for the same reason.
    taken_ns: Option<u64>,
}

/// How well one program's baseline keeps its promise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromiseState {
    /// Whose.
    pub program: ProgramId,
    /// Windows compared with the promise.
    pub windows: u64,
    /// The share promised to exceed a level, and the share that did.
    pub exceeded: Vec<(f64, f64)>,
    /// Evidence that the promise is broken; at most 1 in expectation while it is not, and STALE from 100 on.
    pub evidence: f64,
    /// STALE for this reason.
    pub broken: bool,
}

impl Promise {
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self { drift: Drift::new(manifest.calibration.fused.len()), taken_ns: None }
    }

    /// Goes on with what became of it before a restart.
    pub(super) fn go_on(&mut self, drift: Drift) {
        self.drift = drift;
    }

    pub(super) fn drift(&self) -> &Drift {
        &self.drift
    }

    pub(super) fn is_broken(&self) -> bool {
        self.drift.is_broken()
    }
}

impl<L: Lookup> Pipeline<L> {
    /// Compares a judged window with what its baseline promised. When that is broken, the verdict is by first-time acts
    /// alone: what the detectors say is not on the scale of p any more.
    pub(super) fn hold_to_promise(&mut self, key: &str, verdict: Verdict, out: &mut Vec<Output>) -> Verdict {
        let opened_ns = self.opened_ns;
        let Some(program) = self.programs.get_mut(key) else { return verdict };
        let Some(baseline) = &mut program.baseline else { return verdict };
        let (promise, why) = (&mut baseline.promise, &verdict.explanation);
        let tells = why.evidence_decades < EVIDENCE_DECADES && promise.taken_ns != Some(opened_ns);
        if let Some(fused) = why.fused_z.filter(|_| tells && !promise.is_broken()) {
            promise.taken_ns = Some(opened_ns);
            if promise.drift.note(baseline.manifest.calibration.p_value(fused)) {
                self.counters.programs_drifted += 1;
                log::warn!(
                    "{} is STALE: it does not behave as it was learned; it is learned again",
                    program.id
                );
                let of_it = self.processes.iter().filter(|(_, process)| process.key.as_deref() == Some(key));
                out.extend(of_it.map(|(tgid, _)| Output::Follow(how(program, *tgid))));
            }
        }
        let broken = program.baseline.as_ref().is_some_and(|baseline| baseline.promise.is_broken());
        if broken { verdict.by_evidence_alone() } else { verdict }
    }

    /// How well every baseline keeps its promise.
    #[must_use]
    pub fn promises(&self) -> Vec<PromiseState> {
        let one = |program: &super::Program| {
            let drift = &program.baseline.as_ref()?.promise.drift;
            let exceeded = drift.exceeded().iter().map(|level| (level.promised, level.found)).collect();
            Some(PromiseState {
                program: program.id.clone(),
                windows: drift.windows(),
                exceeded,
                evidence: drift.capital(),
                broken: drift.is_broken(),
            })
        };
        self.programs.values().filter_map(one).collect()
    }
}
