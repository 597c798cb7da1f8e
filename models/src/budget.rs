//! An operator's budget of false alarms to the p-value from which a verdict is sent.
//!
//! A window's p-value is at most `a` with a probability of at most `a` while the program behaves as it was learned. So
//! `W` windows a week, each judged at `a = N / W`, give `N` false alarms a week in expectation. `W` is not known before,
//! and changes with every program that starts. So the budget is an account, as in alpha investing (Foster and Stine, J.
//! R. Stat. Soc. B 70(2), 2008): it earns `N` false alarms a period, evenly in time, and every judged window is judged at, and
//! pays, one part in [`WINDOWS`] of what is there. At a steady rate `a` settles at `N / W`. At any rate whatever the
//! payments of a time `T` add up to at most `N T / period` and what was there at its start, and as each `a` is fixed before its window
//! is seen, so do the false alarms expected. The account begins with a tenth of the budget and holds at most all of it.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Windows over which the account evens out.
pub const WINDOWS: f64 = 1024.0;
/// What the account begins with, of one period's budget.
const START_SHARE: f64 = 0.1;

/// So many false alarms a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertBudget {
    /// At least 1.
    pub alerts: u32,
    /// In which time.
    pub per: Period,
}

/// A time in which false alarms are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "they say it")]
pub enum Period {
    Hour,
    Day,
    Week,
    /// 30 days.
    Month,
}

const PERIODS: [(&str, Period, u64); 4] = [
    ("hour", Period::Hour, 3600),
    ("day", Period::Day, 86_400),
    ("week", Period::Week, 604_800),
    ("month", Period::Month, 2_592_000),
];

/// Alerts a period at most.
const ALERTS_MAX: u32 = 10_000;

/// Why a text is no budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// The words.
    #[error("must be like \"1 per device per week\"")]
    Form,
    /// The number.
    #[error("must allow 1 to {ALERTS_MAX} alerts: 0 would silence every alert, also of an attack")]
    Alerts,
    /// The period.
    #[error("must be per hour, day, week or month")]
    Period,
}

impl FromStr for AlertBudget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [alerts, "per", "device", "per", period] = words[..] else { return Err(BudgetError::Form) };
        if alerts.is_empty() || !alerts.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(BudgetError::Form);
        }
        let alerts =
            alerts.parse().ok().filter(|n| (1..=ALERTS_MAX).contains(n)).ok_or(BudgetError::Alerts)?;
        let known = PERIODS.iter().find(|(name, ..)| *name == period).ok_or(BudgetError::Period)?;
        Ok(Self { alerts, per: known.1 })
    }
}

impl fmt::Display for AlertBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = PERIODS.iter().find(|(_, period, _)| *period == self.per).map_or("", |(name, ..)| name);
        write!(f, "{} per device per {name}", self.alerts)
    }
}

impl AlertBudget {
    fn per_ns(self) -> f64 {
        let seconds = PERIODS.iter().find(|(_, period, _)| *period == self.per).map_or(1, |(.., s)| *s);
        #[allow(clippy::cast_precision_loss, reason = "a few million")]
        let seconds = seconds as f64;
        f64::from(self.alerts) / seconds / 1e9
    }
}

/// The account of one device.
#[derive(Clone, Debug)]
pub struct Account {
    budget: AlertBudget,
    /// False alarms that may still be expected.
    balance: f64,
    earned_until_ns: u64,
}

impl Account {
    /// Opens an account at `now_ns`.
    #[must_use]
    pub fn open(budget: AlertBudget, now_ns: u64) -> Self {
        Self { budget, balance: START_SHARE * f64::from(budget.alerts), earned_until_ns: now_ns }
    }

    /// What it is opened for.
    #[must_use]
    pub fn budget(&self) -> AlertBudget {
        self.budget
    }

    /// False alarms that may still be expected.
    #[must_use]
    pub fn balance(&self) -> f64 {
        self.balance
    }

    /// Goes on with what was left before.
    pub fn go_on(&mut self, balance: f64) {
        if balance.is_finite() {
            self.balance = balance.clamp(0.0, f64::from(self.budget.alerts));
        }
    }

    /// A verdict with at most this p-value is sent.
    #[must_use]
    pub fn p_max(&self) -> f64 {
        (self.balance / WINDOWS).min(1.0)
    }

    /// Earns what is due; a clock that goes back earns nothing.
    pub fn earn(&mut self, now_ns: u64) {
        #[allow(clippy::cast_precision_loss, reason = "a time")]
        let passed = now_ns.saturating_sub(self.earned_until_ns) as f64;
        self.earned_until_ns = self.earned_until_ns.max(now_ns);
        self.balance = (self.balance + passed * self.budget.per_ns()).min(f64::from(self.budget.alerts));
    }

    /// Pays for a window that was judged at [`Self::p_max`].
    pub fn judged(&mut self) {
        self.balance -= self.p_max();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::Calibration;

    const WINDOW_NS: u64 = 30_000_000_000;
    const WEEK_WINDOWS: u64 = 20_160;

    fn uniforms(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        }
    }

    #[test]
    fn a_budget_is_read_and_everything_else_refused_with_the_reason() {
        for text in ["1 per device per week", "24 per device per day", "3 per device per month"] {
            assert_eq!(text.parse::<AlertBudget>().unwrap().to_string(), text);
        }
        for (text, error) in [
            ("", BudgetError::Form),
            ("1 per week", BudgetError::Form),
            ("one per device per week", BudgetError::Form),
            ("-1 per device per week", BudgetError::Form),
            ("1.5 per device per week", BudgetError::Form),
            ("1 per device per week please", BudgetError::Form),
            ("0 per device per week", BudgetError::Alerts),
            ("10001 per device per week", BudgetError::Alerts),
            ("99999999999999 per device per week", BudgetError::Alerts),
            ("1 per device per year", BudgetError::Period),
        ] {
            assert_eq!(text.parse::<AlertBudget>(), Err(error), "{text}");
        }
    }

    #[test]
    fn at_a_steady_rate_the_threshold_is_the_budget_over_the_windows() {
        for programs in [1_u64, 10, 50] {
            let mut account = Account::open("1 per device per week".parse().unwrap(), 0);
            for at in 1..=WEEK_WINDOWS {
                account.earn(at * WINDOW_NS);
                (0..programs).for_each(|_| account.judged());
            }
            account.earn((WEEK_WINDOWS + 1) * WINDOW_NS);
            let expected = 1.0 / (WEEK_WINDOWS * programs) as f64;
            let ratio = account.p_max() / expected;
            assert!((0.95..1.05).contains(&ratio), "{programs} programs: {ratio}");
        }
    }

    #[test]
    fn whatever_the_rate_the_payments_stay_within_the_budget_and_a_tenth() {
        let mut uniform = uniforms(0x5eed);
        for _ in 0..20 {
            let mut account = Account::open("3 per device per day".parse().unwrap(), 0);
            let (mut paid, mut now_ns) = (0.0, 0);
            while now_ns < 86_400_000_000_000 {
                now_ns += (uniform() * 3_600e9) as u64;
                account.earn(now_ns.min(86_400_000_000_000));
                for _ in 0..(1.0 / uniform()).min(1e5) as u32 {
                    paid += account.p_max();
                    account.judged();
                }
            }
            assert!(paid <= 3.3 + 1e-9, "{paid}");
        }
    }

    const WEEKS: u64 = 4;

    /// False alarms over the budget, of devices whose programs behave as learned, each for four weeks.
    fn spent(text: &str, programs: usize, devices: u32, mut normal: impl FnMut() -> f32) -> f64 {
        let budget: AlertBudget = text.parse().unwrap();
        let mut sent = 0_u32;
        for _ in 0..devices {
            let learned: Vec<Calibration> = (0..programs)
                .map(|_| Calibration::default().with_fused((0..400).map(|_| normal())))
                .collect();
            let mut account = Account::open(budget, 0);
            for at in 1..=WEEKS * WEEK_WINDOWS {
                account.earn(at * WINDOW_NS);
                for calibration in &learned {
                    sent += u32::from(calibration.p_value(normal()) <= account.p_max());
                    account.judged();
                }
            }
        }
        let time_ns = (WEEKS * WEEK_WINDOWS * WINDOW_NS) as f64;
        f64::from(sent) / (budget.per_ns() * time_ns * f64::from(devices))
    }

    #[test]
    fn programs_that_behave_as_learned_spend_at_most_the_budget() {
        let mut uniform = uniforms(0xb0d6e7);
        // Tails that the calibration's extrapolation meets exactly, and lighter ones.
        let mut exponential = || -(uniform() as f32).ln();
        for (text, programs, devices) in [
            ("1 per device per week", 1, 1000),
            ("1 per device per week", 5, 200),
            ("2 per device per day", 20, 40),
        ] {
            let spent = spent(text, programs, devices, &mut exponential);
            assert!((0.7..=1.1).contains(&spent), "{text}, {programs} programs: {spent} of the budget");
        }
        let mut light = || exponential().sqrt();
        let spent = spent("1 per device per week", 5, 100, &mut light);
        assert!(spent <= 1.1, "lighter tails: {spent} of the budget");
    }
}
