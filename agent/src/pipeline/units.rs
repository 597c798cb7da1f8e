//! What judges a program that has no baseline: what it is known to have done, and what the learned programs of its unit do.
//!
//! An attacker brings tools of their own into a service that was learned, and no baseline is theirs. Their windows are
//! judged by first-time acts alone, and being there is evidence too ([`Kind::Stranger`](models::novelty::Kind)). What any
//! learned program of the unit does is no news from them, unless it is decisive or goes to another machine's remote service:
//! that the login service reads `/etc/shadow` is no reason for another to do so. Programs of no unit have nothing in common, so nobody answers for them.
//!
//! Programs that run too seldom to be learned are remembered one by one: what they did while nothing of the unit was
//! learned, and later in windows that were not worth an alert.

use std::collections::{BTreeMap, BTreeSet};

use models::attack;
use models::bundle::Manifest;
use models::calibration::{Calibration, News};
use models::novelty::{Kind, trait_id};
use models::program::{NO_UNIT, ProgramId};
use models::verdict::{Verdict, judge};
use models::window::Window;

use super::{Baseline, Program};

/// Traits remembered of the unlearned programs of one unit. A further one is news each time it comes.
const SEEN_MAX: usize = 4096;

/// By unit: who, and what.
pub(super) type Seen = BTreeMap<String, BTreeSet<(u64, u64)>>;

/// As many units as there are programs at most.
#[derive(Debug, Default)]
pub(super) struct Units {
    /// Of each unit with a learned program: what its learned programs do that is not decisive.
    known: BTreeMap<String, Manifest>,
    /// What programs without a baseline did.
    seen: Seen,
    refused: u64,
}

impl Units {
    /// What is known of this program's unit.
    pub(super) fn of(&self, program: &ProgramId) -> Option<&Manifest> {
        self.known.get(&program.unit)
    }

    /// What programs without a baseline did.
    pub(super) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// The same, from before a restart.
    pub(super) fn remember_all(&mut self, seen: Seen) {
        self.seen = seen;
    }

    /// Traits that found no room.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    /// Judges what an unlearned program did; `None` where nothing of its unit is learned, or the one act that matters is
    /// nothing new.
    pub(super) fn judge(
        &self,
        program: &ProgramId,
        window: &Window,
        matters: Option<u64>,
        expected: &[u64],
    ) -> Option<Verdict> {
        let unit = self.of(program)?;
        let (who, seen) = (who(program), self.seen.get(&program.unit));
        let is_known = |id: u64| seen.is_some_and(|seen| seen.contains(&(who, id)));
        if matters.is_some_and(|id| {
            is_known(id) || unit.traits.binary_search(&id).is_ok() || expected.contains(&id)
        }) {
            return None;
        }
        Some(judge(&window.of_stranger(&program.exe, is_known), None, &[], unit, expected))
    }

    /// An unlearned program did this, and it was not worth an alert.
    pub(super) fn remember(&mut self, program: &ProgramId, window: &Window) {
        if program.unit == NO_UNIT {
            return;
        }
        let mut acts = window.traits().to_vec();
        // Who comes when the unit is learned stays a stranger.
        if !self.known.contains_key(&program.unit) {
            let mut being_there = Window::new(window.tgid, window.opened_ns);
            being_there.note_stranger(&program.exe);
            acts.extend(being_there.traits());
        }
        let who = who(program);
        let seen = self.seen.entry(program.unit.clone()).or_default();
        for id in acts.into_iter().filter(|id| Kind::of(*id).is_some_and(Kind::tells_of_strangers)) {
            if seen.len() < SEEN_MAX {
                seen.insert((who, id));
            } else if !seen.contains(&(who, id)) {
                self.refused += 1;
            }
        }
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
        let Some(first) = of_it.first() else {
            self.known.remove(unit);
            return;
        };
        let learned = of_it.iter().flat_map(|baseline| baseline.manifest.traits.iter().copied());
        let common = |id: &u64| {
            Kind::of(*id).is_some_and(|kind| !kind.is_decisive()) && !attack::is_remote_service(*id)
        };
        let traits: BTreeSet<u64> = learned.filter(common).collect();
        let expires = of_it.iter().map(|baseline| baseline.manifest.expires_unix_s).max();
        let valid = first.manifest.not_before_unix_s..expires.unwrap_or(0);
        let program = ProgramId { unit: unit.to_owned(), exe: "*".to_owned(), script: None };
        let manifest = Manifest {
            calibration: Calibration { news: news(&of_it), ..Calibration::default() },
            traits: traits.into_iter().collect(),
            ..Manifest::new(program, 0, valid)
        };
        self.known.insert(unit.to_owned(), manifest);
    }
}

/// Names a program.
fn who(program: &ProgramId) -> u64 {
    trait_id(Kind::Stranger, &program.key())
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
