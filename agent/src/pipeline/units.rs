//! What judges a program that has no baseline: what the learned programs of its unit are known to do.
//!
//! An attacker brings tools of their own into a service that was learned, and no baseline is theirs. Their windows are
//! judged by first-time acts alone, against all that the unit's learned programs do, and being there is evidence too
//! ([`Kind::Stranger`](models::novelty::Kind)). Programs of no unit have nothing in common, so nobody answers for them.

use std::collections::{BTreeMap, BTreeSet};

use models::bundle::{Manifest, TrainingFacts};
use models::calibration::{Calibration, News};
use models::program::{NO_UNIT, ProgramId};

use super::{Baseline, Program};

/// One manifest per unit with a learned program; as many as there are programs at most.
#[derive(Debug, Default)]
pub(super) struct Units(BTreeMap<String, Manifest>);

impl Units {
    /// What is known of this program's unit.
    pub(super) fn of(&self, program: &ProgramId) -> Option<&Manifest> {
        self.0.get(&program.unit)
    }

    /// A program of the unit got another baseline.
    pub(super) fn learn(&mut self, unit: &str, programs: &BTreeMap<String, Program>) {
        if unit == NO_UNIT {
            return;
        }
        let of_it: Vec<&Baseline> = programs
            .values()
            .filter(|program| program.id.unit == unit)
            .filter_map(|program| program.baseline.as_ref())
            .collect();
        let Some(first) = of_it.first() else { return };
        let traits: BTreeSet<u64> =
            of_it.iter().flat_map(|baseline| baseline.manifest.traits.iter().copied()).collect();
        let expires = of_it.iter().map(|baseline| baseline.manifest.expires_unix_s).max();
        let manifest = Manifest {
            program: ProgramId { unit: unit.to_owned(), exe: "*".to_owned(), script: None },
            generation: 0,
            expires_unix_s: expires.unwrap_or(0),
            parts: Vec::new(),
            calibration: Calibration { news: news(&of_it), ..Calibration::default() },
            traits: traits.into_iter().collect(),
            training: TrainingFacts::default(),
            ..first.manifest.clone()
        };
        self.0.insert(unit.to_owned(), manifest);
    }
}

/// How often each kind was news, in the program of which it was news most often.
fn news(baselines: &[&Baseline]) -> News {
    let windows = baselines.iter().map(|b| b.manifest.calibration.news.windows).min().unwrap_or(0);
    let mut counts: BTreeMap<u8, u32> = BTreeMap::new();
    for (kind, count) in baselines.iter().flat_map(|b| &b.manifest.calibration.news.counts) {
        let most = counts.entry(*kind).or_insert(0);
        *most = (*most).max(*count);
    }
    News { windows, counts: counts.into_iter().collect() }
}
