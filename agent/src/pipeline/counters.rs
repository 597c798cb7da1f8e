//! What the pipeline counts.

/// What happened how often since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Windows judged against a baseline.
    pub windows_judged: u64,
    /// Windows given away for training.
    pub windows_trained: u64,
    /// Windows of learning programs whose calls came in too many orders to tell.
    pub windows_without_order: u64,
    /// Windows of learning programs beyond the first 128 of one program in a window's time.
    pub windows_surplus: u64,
    /// Acts of programs without a baseline that were not remembered for their unit.
    pub unit_traits_refused: u64,
    /// Windows of learning programs not used, because something in them was worth an alert.
    pub windows_alarmed: u64,
    /// Windows of learning programs not used, because something in them was not seen.
    pub windows_degraded: u64,
    /// Alerts given away.
    pub alerts: u64,
    /// Verdicts folded into an earlier alert.
    pub alerts_duplicate: u64,
    /// Verdicts held back by the rate limit.
    pub alerts_limited: u64,
    /// Verdicts from MEDIUM on that the alert budget does not send.
    pub alerts_over_budget: u64,
    /// Verdicts from MEDIUM on about programs of which the operator wants to hear nothing.
    pub alerts_whitelisted: u64,
    /// Acts that are no news because the operator expects them.
    pub acts_whitelisted: u64,
    /// Programs that stopped to behave as they were learned.
    pub programs_drifted: u64,
    /// Processes not followed because the table was full.
    pub processes_refused: u64,
    /// Programs without a baseline that made room for others.
    pub programs_forgotten: u64,
    /// Programs not followed because the table was full.
    pub programs_refused: u64,
    /// Processes that had left before they could be identified.
    pub unidentified: u64,
    /// Distinct values not kept because a window's set was full.
    pub window_overflow: u64,
    /// Models read again, because a process of their program was judged.
    pub models_loaded: u64,
    /// Models that made room for others.
    pub models_evicted: u64,
    /// Windows judged without models, because they could not be read again.
    pub models_missing: u64,
    /// Detectors that failed on a window.
    pub detector_errors: u64,
}

impl Counters {
    /// Names and values.
    #[must_use]
    pub fn list(&self) -> [(&'static str, u64); 23] {
        [
            ("windows_judged", self.windows_judged),
            ("windows_trained", self.windows_trained),
            ("windows_degraded", self.windows_degraded),
            ("windows_alarmed", self.windows_alarmed),
            ("unit_traits_refused", self.unit_traits_refused),
            ("windows_without_order", self.windows_without_order),
            ("windows_surplus", self.windows_surplus),
            ("alerts", self.alerts),
            ("alerts_duplicate", self.alerts_duplicate),
            ("alerts_limited", self.alerts_limited),
            ("alerts_over_budget", self.alerts_over_budget),
            ("alerts_whitelisted", self.alerts_whitelisted),
            ("acts_whitelisted", self.acts_whitelisted),
            ("programs_drifted", self.programs_drifted),
            ("processes_refused", self.processes_refused),
            ("programs_forgotten", self.programs_forgotten),
            ("programs_refused", self.programs_refused),
            ("processes_unidentified", self.unidentified),
            ("window_overflow", self.window_overflow),
            ("models_loaded", self.models_loaded),
            ("models_evicted", self.models_evicted),
            ("models_missing", self.models_missing),
            ("detector_errors", self.detector_errors),
        ]
    }
}
