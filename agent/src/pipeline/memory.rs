//! What a pipeline knows beside its baselines, so that a restart does not make strangers of the programs that it knew, give
//! a new alert budget, or forget a promise that was about to break.

use std::collections::BTreeMap;

use models::drift::Drift;
use serde::{Deserialize, Serialize};

use super::Pipeline;
use super::units::Seen;
use crate::processes::Lookup;

/// All of it; bounded by the tables that it comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// What programs without a baseline did.
    pub(super) seen: Seen,
    /// What is left of the alert budget, in false alarms.
    balance: Option<f64>,
    /// By the key of the program: generation, and what became of its promise.
    drifts: BTreeMap<String, (u64, Drift)>,
}

impl<L: Lookup> Pipeline<L> {
    /// What is worth keeping over a restart.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let baselines =
            self.programs.iter().filter_map(|(key, program)| Some((key, program.baseline.as_ref()?)));
        let drift = |(key, baseline): (&String, &super::Baseline)| {
            (key.clone(), (baseline.manifest.generation, baseline.promise.drift().clone()))
        };
        Memory {
            seen: self.units.seen().clone(),
            balance: self.account.as_ref().map(models::budget::Account::balance),
            // Those that were remembered and whose baseline did not come yet, and those that are used.
            drifts: self.remembered.clone().into_iter().chain(baselines.map(drift)).collect(),
        }
    }

    /// Goes on with it; before any baseline is used.
    pub fn remember(&mut self, memory: Memory) {
        self.units.remember_all(memory.seen);
        if let (Some(account), Some(balance)) = (&mut self.account, memory.balance) {
            account.go_on(balance);
        }
        self.remembered = memory.drifts.into_iter().take(self.config.programs_max as usize).collect();
    }
}

#[cfg(test)]
impl Memory {
    /// One that holds something of each kind.
    pub(crate) fn of_tests() -> Self {
        let mut drift = Drift::new(40);
        drift.note(0.01);
        Self {
            seen: BTreeMap::from([("gw.service".to_owned(), [(1, 2), (3, 4)].into())]),
            balance: Some(0.5),
            drifts: BTreeMap::from([("key".to_owned(), (7, drift))]),
        }
    }
}
