//! A verdict to an alert, or to silence, and to what `behaveguard explain` knows of it.

use std::sync::PoisonError;

use models::budget::Account;
use models::calibration::score_of;
use models::novelty::{Kind, trait_id};
use models::policy::{Decision, Severity};
use models::verdict::Verdict;
use models::wire::{ALARMED_ALERTS_MAX, Alert};

use super::{Output, Pipeline, generation, state};
use crate::clock::Now;
use crate::explanations::{BaselineFacts, Explained, alert_id};
use crate::processes::Lookup;

impl<L: Lookup> Pipeline<L> {
    pub(super) fn tell(&mut self, now: Now, tgid: u32, verdict: Verdict, out: &mut Vec<Output>) {
        let Some(process) = self.processes.get(&tgid) else { return };
        let Some((key, program)) = process.key.as_ref().and_then(|key| self.programs.get_key_value(key))
        else {
            return;
        };
        let own = program.baseline.as_ref().map(|baseline| &baseline.manifest);
        let Some(manifest) = own.or_else(|| self.units.of(&program.id)) else { return };
        let policy = &self.config.policy;
        let severity = policy.severity(verdict.score);
        let everything = self.allowance(&program.id, now).everything;
        self.counters.acts_whitelisted += verdict.explanation.whitelisted as u64;
        let about = trait_id(Kind::Exec, key) ^ verdict.cause;
        // How often the statistics are wrong is promised; first-time acts that are worth telling by themselves are told.
        let [medium, ..] = policy.thresholds;
        let affordable = score_of(verdict.explanation.evidence_decades) >= medium
            || self.account.as_ref().is_none_or(|account| verdict.explanation.p_value <= account.p_max());
        let decision = if everything && severity != Severity::Low {
            self.counters.alerts_whitelisted += 1;
            Decision::Quiet
        } else if affordable || severity == Severity::Low {
            self.gate.admit(now.boot_ns, about, severity, policy)
        } else {
            self.counters.alerts_over_budget += 1;
            Decision::Quiet
        };
        let mut explained = Explained {
            alert: None,
            unix_ms: now.unix_ms,
            boot_ns: now.boot_ns,
            pid: tgid,
            comm: process.comm.clone(),
            program: program.id.clone(),
            baseline: BaselineFacts {
                generation: manifest.generation,
                state: state(program, now.unix_ms / 1000).into(),
                windows: manifest.training.windows,
                trained_unix_s: manifest.training.trained_unix_s,
            },
            score: verdict.score,
            p_max: self.account.as_ref().map(Account::p_max),
            severity,
            techniques: verdict.techniques.clone(),
            summary: verdict.summary.clone(),
            degraded: self.degraded.clone(),
            explanation: verdict.explanation,
        };
        // What is expected may be learned too.
        if severity != Severity::Low
            && !everything
            && let Some(process) = self.processes.get_mut(&tgid)
        {
            process.alarmed = true;
        }
        match decision {
            Decision::Quiet => {}
            Decision::Duplicate => self.counters.alerts_duplicate += 1,
            Decision::RateLimited => self.counters.alerts_limited += 1,
            Decision::Send { suppressed_before } => {
                self.counters.alerts += 1;
                // An alert is known by its content, so no two of them may be of the same moment; unless the clock was set back.
                let behind = self.alert_unix_ms.checked_sub(now.unix_ms).filter(|behind| *behind < 1000);
                self.alert_unix_ms = behind.map_or(now.unix_ms, |_| self.alert_unix_ms + 1);
                let alert = Alert {
                    unix_ms: self.alert_unix_ms,
                    program: program.id.clone(),
                    pid: tgid,
                    comm: explained.comm.clone(),
                    score: verdict.score,
                    severity,
                    techniques: verdict.techniques,
                    summary: verdict.summary,
                    reasons: verdict.reasons,
                    generation: generation(program),
                    detectors: verdict.detectors,
                    suppressed_before,
                    degraded: self.degraded.clone(),
                };
                explained.alert = Some(alert_id(&alert));
                if let Some(process) = self.processes.get_mut(&tgid)
                    && process.told.len() < ALARMED_ALERTS_MAX
                {
                    process.told.push(alert.unix_ms);
                }
                out.push(Output::Alert(Box::new(alert)));
            }
        }
        self.explanations.lock().unwrap_or_else(PoisonError::into_inner).keep(explained);
    }
}
