//! Baselines that the fleet offers, and the way back to the one before.

use models::bundle::{BUNDLE_MAX, BundleError};
use models::chain::chain;
use models::program::ProgramId;
use models::wire::{BundleReport, EventKind, Offer, Request};

use super::Service;
use crate::clock;
use crate::pipeline::{Baseline, PromiseState};

/// Bundles remembered as refused, so that they are not fetched at every connection.
const REFUSED_MAX: usize = 64;

/// A new baseline is taken back when its promise breaks within this many windows: 24 hours of those of 30 s. Later it is the
/// program that has changed, and an older baseline knows it no better.
const ON_TRIAL: u64 = 2880;

/// It is taken back when so many times as many windows exceed a level as were promised to.
const FAR_ABOVE: f64 = 4.0;

impl Service {
    pub(super) fn offered(&mut self, offer: Offer) {
        let highest = self.baselines.highest(&offer.program);
        // The newest one is offered at every connection.
        if offer.generation == highest || self.refused.contains(&offer.sha256) {
            return;
        }
        if offer.generation < highest {
            let older = BundleError::Older { offered: offer.generation, active: highest };
            self.refuse(&offer, older.to_string());
            return;
        }
        if offer.size as usize > BUNDLE_MAX {
            self.refuse(
                &offer,
                format!("a bundle of {} bytes is over the limit of {BUNDLE_MAX}", offer.size),
            );
            return;
        }
        log::info!("fetching generation {} for {} ({} bytes)", offer.generation, offer.program, offer.size);
        if let Some(member) = &self.member {
            member.uplink.fetch(offer);
        }
    }

    pub(super) fn arrived(&mut self, offer: &Offer, raw: &[u8]) {
        let unix_s = clock::now().unix_ms / 1000;
        if let Err(reason) = self.activate(offer, raw, unix_s) {
            return self.refuse(offer, reason);
        }
        self.counters.bundles_activated += 1;
        log::info!("generation {} for {} is active", offer.generation, offer.program);
        self.report(offer, None);
        self.beat();
    }

    /// Checks everything that can fail before anything changes.
    fn activate(&mut self, offer: &Offer, raw: &[u8], unix_s: u64) -> Result<(), String> {
        let verified = self.baselines.check(&offer.program, raw, unix_s).map_err(|error| chain(&error))?;
        let loaded = self.trials.attempt(&offer.sha256, || Baseline::load(&verified));
        let baseline = loaded.map_err(|error| chain(&error))?.map_err(|error| chain(&error))?;
        self.watch.make_room(&offer.program).map_err(|error| chain(&error))?;
        self.baselines.store(&verified, raw).map_err(|error| chain(&error))?;
        self.watch.switch(&verified, baseline).map_err(|error| chain(&error))
    }

    fn refuse(&mut self, offer: &Offer, reason: String) {
        log::error!("generation {} for {} was refused: {reason}", offer.generation, offer.program);
        self.counters.bundles_refused += 1;
        if self.refused.len() >= REFUSED_MAX {
            self.refused.pop_front();
        }
        self.refused.push_back(offer.sha256);
        self.report(offer, Some(reason));
    }

    fn report(&self, offer: &Offer, refused: Option<String>) {
        let (program, generation) = (offer.program.clone(), offer.generation);
        self.request(&Request::Bundle(BundleReport { program, generation, refused }));
    }

    /// The fleet wants a bundle to be used no longer.
    pub(super) fn taken_back(&mut self, program: &ProgramId, generation: u64) {
        let told = if self.generation(program) != generation {
            "it is not in use here".to_owned()
        } else {
            match self.roll_back(program).and_then(|done| match done {
                Some((_, to)) => Ok(format!("generation {to} is active again")),
                None => self.unlearn(program).map(|()| "the program is learned anew".to_owned()),
            }) {
                Ok(now) => {
                    self.counters.bundles_rolled_back += 1;
                    let text = format!("the fleet took back generation {generation} for {program}: {now}");
                    log::warn!("{text}");
                    self.event(EventKind::BaselineRolledBack, Some(program.clone()), None, text);
                    format!("the fleet took it back, and {now}")
                }
                Err(reason) => {
                    // Without an answer the fleet asks again at the next connection.
                    log::error!("generation {generation} for {program} was not taken back: {reason}");
                    return;
                }
            }
        };
        let (program, refused) = (program.clone(), Some(told));
        self.request(&Request::Bundle(BundleReport { program, generation, refused }));
        self.beat();
    }

    /// Uses the fleet's baseline of a program no longer, where there is none to go back to.
    pub(super) fn unlearn(&mut self, program: &ProgramId) -> Result<(), String> {
        self.baselines.remove(program).map_err(|error| chain(&error))?;
        self.watch.forget(program);
        Ok(())
    }

    /// The active generation of a program; 0 for none.
    fn generation(&self, program: &ProgramId) -> u64 {
        let states = self.watch.pipeline().programs(clock::now().unix_ms / 1000);
        states.iter().find(|state| state.program == *program).map_or(0, |state| state.generation)
    }

    /// Takes back new baselines that alarm far above their promise, where there is one before.
    pub(super) fn take_back(&mut self) {
        let promises = self.watch.pipeline().promises();
        for promise in promises.iter().filter(|promise| is_far_above(promise)) {
            let program = &promise.program;
            match self.roll_back(program) {
                Ok(Some((from, to))) => {
                    self.counters.bundles_rolled_back += 1;
                    let text = format!(
                        "the baseline of {program} alarmed far above its promise: generation {from} was taken back, {to} is \
                         active again"
                    );
                    self.event(EventKind::BaselineRolledBack, Some(program.clone()), None, text);
                    let reason =
                        format!("it alarmed far above its promise, and generation {to} is active again");
                    let (program, refused) = (program.clone(), Some(reason));
                    self.request(&Request::Bundle(BundleReport { program, generation: from, refused }));
                }
                Ok(None) => {}
                Err(reason) => log::error!("the baseline of {program} stays, STALE: {reason}"),
            }
        }
    }

    /// Generations before and after; `None` when there is no way back, or it was gone already.
    fn roll_back(&mut self, program: &ProgramId) -> Result<Option<(u64, u64)>, String> {
        let active = self.generation(program);
        // This device's own baselines have generations of their own; one that is not the newest was rolled back before.
        if active == 0 || active != self.baselines.highest(program) || !self.baselines.has_previous(program) {
            return Ok(None);
        }
        let verified = self.baselines.roll_back(program).map_err(|error| chain(&error))?;
        let baseline = Baseline::load(&verified).map_err(|error| chain(&error))?;
        let generation = verified.manifest().generation;
        self.watch.switch(&verified, baseline).map_err(|error| chain(&error))?;
        Ok(Some((active, generation)))
    }
}

fn is_far_above(promise: &PromiseState) -> bool {
    let far = |(promised, found): &(f64, f64)| *found > FAR_ABOVE * promised;
    promise.broken && promise.windows <= ON_TRIAL && promise.exceeded.iter().any(far)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_baseline_far_above_its_promise_is_taken_back() {
        let program = ProgramId { unit: "u".into(), exe: "/e".into(), script: None };
        let promise = PromiseState {
            program,
            windows: 40,
            exceeded: vec![(0.05, 0.1), (0.01, 0.05)],
            evidence: 200.0,
            broken: true,
        };
        assert!(is_far_above(&promise));
        for kept in [
            PromiseState { broken: false, ..promise.clone() },
            PromiseState { windows: ON_TRIAL + 1, ..promise.clone() },
            PromiseState { exceeded: vec![(0.05, 0.15), (0.01, 0.03)], ..promise },
        ] {
            assert!(!is_far_above(&kept), "{kept:?}");
        }
    }
}
