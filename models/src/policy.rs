//! Score to severity, and which verdicts become alerts: deduplication and a rate limit.

use heapless::index_map::FnvIndexMap;
use serde::{Deserialize, Serialize};

/// How urgent an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Severity {
    /// Below the MEDIUM threshold; never sent as an alert.
    Low,
    /// From 40.
    Medium,
    /// From 70.
    High,
    /// From 90.
    Critical,
}

impl Severity {
    /// The word shown to people and used in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "LOW",
            Self::Medium => "MEDIUM",
            Self::High => "HIGH",
            Self::Critical => "CRITICAL",
        }
    }

    /// The severity of an alert by its word, in letters of any case; LOW is never that of an alert.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        let all = [Self::Medium, Self::High, Self::Critical];
        all.into_iter().find(|severity| severity.as_str().eq_ignore_ascii_case(word))
    }
}

/// When a score alerts, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Scores from which a verdict is MEDIUM, HIGH and CRITICAL.
    pub thresholds: [f32; 3],
    /// Same program and same reason within this time are one alert, in nanoseconds.
    pub dedup_ns: u64,
    /// Alerts a minute, over all programs.
    pub per_minute: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { thresholds: [40.0, 70.0, 90.0], dedup_ns: 300_000_000_000, per_minute: 10 }
    }
}

impl Policy {
    /// The severity of a score.
    #[must_use]
    pub fn severity(&self, score: f32) -> Severity {
        let [medium, high, critical] = self.thresholds;
        if score >= critical {
            Severity::Critical
        } else if score >= high {
            Severity::High
        } else if score >= medium {
            Severity::Medium
        } else {
            Severity::Low
        }
    }
}

/// What becomes of one verdict.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Below every threshold.
    Quiet,
    /// Send it; so many were held back since the last one of this key.
    Send {
        /// Verdicts folded into this one.
        suppressed_before: u32,
    },
    /// The same was sent less than the deduplication time ago, and not less severe.
    Duplicate,
    /// The rate limit is used up. CRITICAL verdicts may use a second budget of the same size.
    RateLimited,
}

/// Remembers what was sent. Holds 256 keys; item 257 replaces the one sent longest ago.
#[derive(Debug, Default)]
pub struct Gate {
    sent: FnvIndexMap<u64, Sent, 256>,
    minute_start_ns: u64,
    in_minute: u32,
    critical_in_minute: u32,
    /// Keys forgotten because the table was full.
    pub evicted: u64,
}

#[derive(Debug)]
struct Sent {
    at_ns: u64,
    severity: Severity,
    suppressed: u32,
}

const MINUTE_NS: u64 = 60_000_000_000;

impl Gate {
    /// Decides about a verdict: `key` names program and main reason.
    pub fn admit(&mut self, now_ns: u64, key: u64, severity: Severity, policy: &Policy) -> Decision {
        if severity == Severity::Low {
            return Decision::Quiet;
        }
        let mut suppressed_before = 0;
        if let Some(sent) = self.sent.get_mut(&key) {
            let fresh = now_ns.saturating_sub(sent.at_ns) < policy.dedup_ns;
            if fresh && severity <= sent.severity {
                sent.suppressed = sent.suppressed.saturating_add(1);
                return Decision::Duplicate;
            }
            suppressed_before = sent.suppressed;
        }
        if !self.take_token(now_ns, severity, policy) {
            if let Some(sent) = self.sent.get_mut(&key) {
                sent.suppressed = sent.suppressed.saturating_add(1);
            }
            return Decision::RateLimited;
        }
        self.remember(key, Sent { at_ns: now_ns, severity, suppressed: 0 });
        Decision::Send { suppressed_before }
    }

    fn take_token(&mut self, now_ns: u64, severity: Severity, policy: &Policy) -> bool {
        if now_ns.saturating_sub(self.minute_start_ns) >= MINUTE_NS {
            self.minute_start_ns = now_ns;
            self.in_minute = 0;
            self.critical_in_minute = 0;
        }
        if self.in_minute < policy.per_minute {
            self.in_minute += 1;
            return true;
        }
        // A flood of MEDIUM verdicts must not hide the one that matters.
        if severity == Severity::Critical && self.critical_in_minute < policy.per_minute {
            self.critical_in_minute += 1;
            return true;
        }
        false
    }

    fn remember(&mut self, key: u64, sent: Sent) {
        if self.sent.len() == self.sent.capacity() && !self.sent.contains_key(&key) {
            let oldest = self.sent.iter().min_by_key(|(_, sent)| sent.at_ns).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                self.sent.remove(&oldest);
                self.evicted += 1;
            }
        }
        let full = self.sent.insert(key, sent).is_err();
        debug_assert!(!full, "room was made above");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn check(gate: &mut Gate, at_s: u64, key: u64, severity: Severity) -> Decision {
        gate.admit(at_s * SECOND, key, severity, &Policy::default())
    }

    #[test]
    fn the_same_verdict_is_sent_once_in_300_seconds() {
        let mut gate = Gate::default();
        assert_eq!(check(&mut gate, 100, 1, Severity::High), Decision::Send { suppressed_before: 0 });
        assert_eq!(check(&mut gate, 399, 1, Severity::High), Decision::Duplicate);
        assert_eq!(check(&mut gate, 400, 1, Severity::High), Decision::Send { suppressed_before: 1 });
    }

    #[test]
    fn a_worse_verdict_is_not_a_duplicate() {
        let mut gate = Gate::default();
        assert_eq!(check(&mut gate, 100, 1, Severity::Medium), Decision::Send { suppressed_before: 0 });
        assert_eq!(check(&mut gate, 101, 1, Severity::High), Decision::Send { suppressed_before: 0 });
    }

    #[test]
    fn the_eleventh_alert_of_a_minute_waits_unless_it_is_critical() {
        let mut gate = Gate::default();
        for key in 0..10 {
            assert_eq!(check(&mut gate, 100, key, Severity::High), Decision::Send { suppressed_before: 0 });
        }
        assert_eq!(check(&mut gate, 101, 10, Severity::High), Decision::RateLimited);
        assert_eq!(check(&mut gate, 102, 11, Severity::Critical), Decision::Send { suppressed_before: 0 });
        assert_eq!(check(&mut gate, 161, 12, Severity::High), Decision::Send { suppressed_before: 0 });
    }

    #[test]
    fn the_oldest_key_is_forgotten_when_the_table_is_full() {
        let mut gate = Gate::default();
        let policy = Policy { per_minute: 1000, ..Policy::default() };
        for key in 0..257 {
            let _ = gate.admit(key, key, Severity::High, &policy);
        }
        assert_eq!(gate.evicted, 1);
        assert_eq!(gate.admit(300, 1, Severity::High, &policy), Decision::Duplicate);
        assert_eq!(gate.admit(300, 0, Severity::High, &policy), Decision::Send { suppressed_before: 0 });
    }

    #[test]
    fn severities_start_at_40_70_and_90() {
        let policy = Policy::default();
        let at = |score| policy.severity(score);
        assert_eq!(
            [at(39.9), at(40.0), at(70.0), at(90.0)],
            [Severity::Low, Severity::Medium, Severity::High, Severity::Critical]
        );
    }
}
