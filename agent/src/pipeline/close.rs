//! The end of a window: what every process did in it is judged, or learned from.

use std::collections::VecDeque;

use models::event::SyscallWindow;
use models::features::{self, Vector};
use models::policy::Severity;
use models::schema::SEQUENCE;
use models::verdict::{Raw, judge};
use models::wire::TrainingWindows;

use super::training::batches;
use super::{Output, Pipeline, Program, baseline_of};
use crate::clock::{Now, nanoseconds};
use crate::processes::{Identity, Lookup};
use crate::shedding::MODELS;

/// With fewer calls than this a window says nothing about how often and in which order they come: only first-time acts
/// count. The rest of a process that lived across the end of a window is such a one.
const CALLS_MIN: u64 = 20;

impl<L: Lookup> Pipeline<L> {
    pub(super) fn close(
        &mut self,
        now: Now,
        closed_ns: u64,
        syscalls: &[SyscallWindow],
        out: &mut Vec<Output>,
    ) {
        for part in syscalls {
            if !self.follow(part.tgid, u32::MAX, out) {
                continue;
            }
            let opened_ns = self.opened_ns;
            if let Some(process) = self.processes.get_mut(&part.tgid) {
                process.open(part.tgid, opened_ns).add_syscalls(part);
            }
        }
        let open: Vec<u32> =
            self.processes.iter().filter(|(_, p)| p.window.is_some()).map(|(id, _)| *id).collect();
        for tgid in open {
            if self.processes.get(&tgid).is_some_and(|process| process.goes_on(self.opened_ns)) {
                self.judge_so_far(now, tgid, None, out);
            } else {
                self.close_one(now, closed_ns, tgid, out);
            }
        }
        for (key, windows) in std::mem::take(&mut self.training) {
            let Some(program) = self.programs.get_mut(&key) else { continue };
            program.windows += windows.len() as u64;
            self.counters.windows_trained += windows.len() as u64;
            let messages = batches(windows).into_iter();
            out.extend(
                messages
                    .map(|windows| Output::Train(TrainingWindows { program: program.id.clone(), windows })),
            );
        }
        let left =
            self.processes.iter().filter(|(_, process)| process.exited_ns.is_some() && process.key.is_some());
        out.extend(left.map(|(tgid, _)| Output::Unfollow(*tgid)));
        self.processes.retain(|_, process| process.exited_ns.is_none());
        if self.processes.len() >= self.config.processes_max as usize {
            // Exits may have been missed.
            let lookup = &mut self.lookup;
            self.processes.retain(|tgid, _| lookup.identity(*tgid, None) != Identity::Gone);
        }
        self.opened_ns = closed_ns;
    }

    pub(super) fn close_one(&mut self, now: Now, closed_ns: u64, tgid: u32, out: &mut Vec<Output>) {
        let Some(process) = self.processes.get_mut(&tgid) else { return };
        let Some(mut window) = process.window.take() else { return };
        // Without a single call there is nothing to compare; decisive events were judged when they came.
        if window.syscalls.total() == 0 {
            self.keep_alarmed(now, tgid, None, &window, out);
            return;
        }
        // Learned or judged, at once or later: the window of a process that left ends with it.
        window.closed_ns = process.exited_ns.unwrap_or(closed_ns).max(window.opened_ns);
        if let (Some(before), Some(after)) = (process.volume, window.syscalls.volume) {
            window.moved(after.since(before));
        }
        process.volume = window.syscalls.volume.or(process.volume);
        // It started its program in this window. A forked worker serves what its server took, so it is none.
        if process.forked_by.is_none() && process.born_ns > 0 && window.opened_ns <= process.born_ns {
            window.relayed();
        }
        self.counters.window_overflow += window.overflow;
        let long_enough = window.closed_ns - window.opened_ns >= nanoseconds(self.config.window) / 2;
        if window.opened_ns > process.born_ns && process.exited_ns.is_some() && !long_enough {
            process.window = Some(window);
            self.judge_at_once(now, tgid, out);
            return;
        }
        let vector = features::extract(&window);
        let Some(key) = process.key.clone() else { return };
        let enough = window.syscalls.total() >= CALLS_MIN;
        let asked = enough && !self.degraded.iter().any(|layer| layer == MODELS);
        if asked {
            self.use_models(&key);
        }
        let allowance =
            self.programs.get(&key).map(|program| self.allowance(&program.id, now)).unwrap_or_default();
        let Some(process) = self.processes.get_mut(&tgid) else { return };
        let Some(baseline) = baseline_of(&self.programs, process) else {
            let stranger =
                self.processes.get(&tgid).and_then(|process| self.by_traits(now, process, &window, None));
            if let Some(verdict) = stranger {
                self.tell(now, tgid, verdict, out);
            }
            self.keep_alarmed(now, tgid, Some(&vector), &window, out);
            let Some(process) = self.processes.get_mut(&tgid) else { return };
            if std::mem::take(&mut process.alarmed) {
                self.counters.windows_alarmed += 1;
                return;
            }
            let run = process.run;
            if let Some(program) = self.programs.get(&key) {
                self.units.remember(&program.id, &window);
                self.counters.unit_traits_refused = self.units.refused();
            }
            self.learn_from(now, key, run, &vector, &mut window);
            return;
        };
        process.history.push_back(features::to_sparse(&vector));
        if process.history.len() > SEQUENCE {
            process.history.pop_front();
        }
        let history = sequence(&process.history).unwrap_or_default();
        let history: Vec<&Vector> = history.iter().collect();
        let models = baseline.detectors.as_ref().filter(|_| asked);
        let spoken = models.map(|models| models.all(&vector, &history)).unwrap_or_default();
        let mut raw = Vec::new();
        for (name, output) in &spoken {
            match output {
                Ok(output) => {
                    raw.push(Raw { name, score: output.score, contributions: &output.contributions });
                }
                Err(error) => {
                    self.counters.detector_errors += 1;
                    log::warn!("judging process {tgid}: {error}");
                }
            }
        }
        let grams = window.syscalls.grams.as_ref();
        let grams = grams.filter(|grams| asked && Some(grams.table) == baseline.table);
        if let Some(bits) = grams.and_then(|grams| grams.kinds.bits()) {
            raw.push(Raw { name: "order", score: bits, contributions: &[] });
        }
        let verdict = judge(&window, Some(&vector), &raw, &baseline.manifest, &allowance.acts);
        self.counters.windows_judged += 1;
        let run = process.run;
        let mut verdict = self.hold_to_promise(&key, verdict, out);
        if allowance.statistics {
            verdict = verdict.by_evidence_alone();
        }
        let normal = self.config.policy.severity(verdict.score) == Severity::Low;
        self.tell(now, tgid, verdict, out);
        self.keep_alarmed(now, tgid, Some(&vector), &window, out);
        if normal && self.programs.get(&key).is_some_and(Program::learns) {
            self.learn_from(now, key, run, &vector, &mut window);
        }
        if let Some(account) = &mut self.account {
            account.judged();
        }
    }
}

/// The last windows as dense vectors, when there are enough.
fn sequence(history: &VecDeque<Vec<(u16, f32)>>) -> Option<Vec<Vector>> {
    if history.len() < SEQUENCE {
        return None;
    }
    history.iter().map(|sparse| features::from_sparse(sparse)).collect()
}
