//! The last explanations, for `behaveguard explain`: of the alerts sent, and of each process's last verdict.

use std::collections::{BTreeMap, VecDeque};

use models::bundle::sha256;
use models::explain::Explanation;
use models::policy::Severity;
use models::program::{ProgramId, hex};
use models::wire::{Alert, encode};
use serde::{Deserialize, Serialize};

/// Alerts whose explanation is kept; one more and the oldest goes.
pub const ALERTS_MAX: usize = 256;
/// Verdicts of a process whose scores are kept, half an hour of windows; one more and the oldest goes.
pub const SCORES_MAX: usize = 60;
/// Processes whose last verdict is kept; with one more, the one judged longest ago goes.
pub const PROCESSES_MAX: usize = 256;
/// Bytes of a hash that name an alert.
const ID_BYTES: usize = 6;

/// A verdict with everything that led to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// Of the alert that was sent; `None` when the verdict was no alert.
    pub alert: Option<String>,
    /// Wall clock of the verdict, milliseconds since 1970.
    pub unix_ms: u64,
    /// The same instant on the clock of [`models::explain::Evidence::first_boot_ns`].
    pub boot_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread name.
    pub comm: String,
    /// Whose behaviour it was.
    pub program: ProgramId,
    /// What judged it.
    pub baseline: BaselineFacts,
    /// 0 to 100.
    pub score: f32,
    /// Up to which p-value what the statistics say was sent then; `None` without an alert budget.
    pub p_max: Option<f64>,
    /// From the score by the device's policy.
    pub severity: Severity,
    /// ATT&CK ids, most telling first.
    pub techniques: Vec<String>,
    /// One plain sentence.
    pub summary: String,
    /// Kernel layers that were not fully seen in this window.
    pub degraded: Vec<String>,
    /// Why.
    pub explanation: Explanation,
}

/// The baseline that judged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineFacts {
    /// Counts up per program.
    pub generation: u64,
    /// `ACTIVE` or `STALE`.
    pub state: String,
    /// Windows used to fit, for the residual variance, and for calibration.
    pub windows: [u32; 3],
    /// Seconds since 1970.
    pub trained_unix_s: u64,
}

/// Bounded memory of explanations.
#[derive(Debug, Default)]
pub struct Explanations {
    alerts: VecDeque<Explained>,
    processes: BTreeMap<u32, Lately>,
    alerts_forgotten: u64,
    processes_forgotten: u64,
}

/// How a process was judged.
#[derive(Debug)]
struct Lately {
    last: Explained,
    /// With that of `last`, oldest first.
    scores: VecDeque<Score>,
}

/// When a process was judged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// 0 to 100.
    pub score: f32,
}

/// Names an alert by its content, so that agent and fleet give it the same name.
#[must_use]
pub fn alert_id(alert: &Alert) -> String {
    // What is too long to be sent has no name.
    encode(alert).map_or_else(|_| String::new(), |bytes| hex(&sha256(&bytes)[..ID_BYTES]))
}

/// An alert with the name by which it is explained.
#[derive(Debug, Serialize)]
pub struct Named<'a> {
    id: String,
    /// Left out where everyone knows which device it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a str>,
    #[serde(flatten)]
    alert: &'a Alert,
}

impl<'a> Named<'a> {
    /// For a reader who may have to do with several devices.
    #[must_use]
    pub fn of_device(device: &'a str, alert: &'a Alert) -> Self {
        Self { device: Some(device), ..alert.into() }
    }
}

impl<'a> From<&'a Alert> for Named<'a> {
    fn from(alert: &'a Alert) -> Self {
        Self { id: alert_id(alert), device: None, alert }
    }
}

impl Explanations {
    /// Keeps a verdict as its process's last, and as an alert's when it has an id.
    pub fn keep(&mut self, explained: Explained) {
        if explained.alert.is_some() {
            if self.alerts.len() >= ALERTS_MAX {
                self.alerts.pop_front();
                self.alerts_forgotten += 1;
            }
            self.alerts.push_back(explained.clone());
        }
        if self.processes.len() >= PROCESSES_MAX && !self.processes.contains_key(&explained.pid) {
            let oldest = self.processes.values().map(|known| &known.last);
            let oldest = oldest.min_by_key(|last| last.boot_ns).map(|last| last.pid);
            if let Some(oldest) = oldest {
                self.processes.remove(&oldest);
                self.processes_forgotten += 1;
            }
        }
        let score = Score { unix_ms: explained.unix_ms, score: explained.score };
        match self.processes.get_mut(&explained.pid) {
            // Another program is another process, or will not be judged as this one was.
            Some(known) if known.last.program == explained.program => {
                if known.scores.len() >= SCORES_MAX {
                    known.scores.pop_front();
                }
                known.scores.push_back(score);
                known.last = explained;
            }
            _ => {
                let scores = VecDeque::from([score]);
                self.processes.insert(explained.pid, Lately { last: explained, scores });
            }
        }
    }

    /// Of an alert, by its id.
    #[must_use]
    pub fn alert(&self, id: &str) -> Option<&Explained> {
        self.alerts.iter().rev().find(|known| known.alert.as_deref() == Some(id))
    }

    /// A process's last verdict.
    #[must_use]
    pub fn process(&self, pid: u32) -> Option<&Explained> {
        self.processes.get(&pid).map(|known| &known.last)
    }

    /// The scores of a process's last [`SCORES_MAX`] verdicts, oldest first.
    pub fn scores(&self, pid: u32) -> impl Iterator<Item = Score> {
        self.processes.get(&pid).into_iter().flat_map(|known| known.scores.iter().copied())
    }

    /// Explanations of alerts and of processes that made room for others.
    #[must_use]
    pub fn forgotten(&self) -> [(&'static str, u64); 2] {
        [
            ("explanations_alerts_forgotten", self.alerts_forgotten),
            ("explanations_processes_forgotten", self.processes_forgotten),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(pid: u32, alert: Option<String>) -> Explained {
        Explained {
            alert,
            unix_ms: 0,
            boot_ns: u64::from(pid),
            pid,
            comm: "gw".into(),
            program: ProgramId { unit: "-".into(), exe: "/gw".into(), script: None },
            baseline: BaselineFacts::default(),
            score: 50.0,
            p_max: None,
            severity: Severity::Medium,
            techniques: vec![],
            summary: String::new(),
            degraded: vec![],
            explanation: Explanation::default(),
        }
    }

    #[test]
    fn the_oldest_explanations_make_room_and_are_counted() {
        let mut kept = Explanations::default();
        let n = u32::try_from(ALERTS_MAX.max(PROCESSES_MAX)).unwrap() + 1;
        for pid in 1..=n {
            kept.keep(explained(pid, Some(format!("id{pid}"))));
        }
        assert_eq!(kept.forgotten().map(|(_, n)| n), [1, 1]);
        assert!(kept.alert("id1").is_none() && kept.process(1).is_none());
        assert!(kept.alert("id2").is_some() && kept.process(n).is_some());
        kept.keep(explained(n, None));
        assert_eq!(kept.scores(n).count(), 2);
        assert_eq!(kept.process(n).unwrap().alert, None, "the last verdict counts");
        assert!(kept.alert(&format!("id{n}")).is_some(), "a quiet verdict pushes no alert out");
    }

    #[test]
    fn the_last_scores_of_a_process_are_kept_and_those_of_another_program_are_not() {
        let mut kept = Explanations::default();
        for unix_ms in 0..70 {
            kept.keep(Explained { unix_ms, score: 1.0, ..explained(7, None) });
        }
        let times: Vec<u64> = kept.scores(7).map(|score| score.unix_ms).collect();
        assert_eq!((times.len(), times[0], times[59]), (SCORES_MAX, 10, 69));
        let program = ProgramId { unit: "-".into(), exe: "/other".into(), script: None };
        kept.keep(Explained { program, unix_ms: 80, ..explained(7, None) });
        assert_eq!(kept.scores(7).map(|score| score.unix_ms).collect::<Vec<_>>(), [80]);
        assert_eq!(kept.scores(8).count(), 0);
    }
}
