//! The fleet at a glance: what the last day brought, where, and how the devices are.

use std::collections::HashMap;

use super::sql::{Connection, params};
use models::policy::Severity;

use super::alerts::{WorkState, severity_of};
use super::{StoreError, int, uint};

/// Hours that are counted apart.
const HOURS: usize = 24;

/// Alerts that are looked at: the newest.
const OVERVIEW_OVER: u32 = 50_000;

/// Programs and devices that are shown: those with the most severe, then the most alerts.
const SHOWN: usize = 12;

const HOUR_MS: u64 = 3_600_000;

/// One program, on all devices or on one.
#[derive(Clone, Debug, PartialEq)]
pub struct Suspect {
    /// Its device; empty for all.
    pub device: String,
    /// Its key.
    pub program_key: String,
    /// Its name.
    pub program: String,
    /// Its alerts.
    pub alerts: u64,
    /// The highest score.
    pub score: f64,
}

/// The fleet at a glance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overview {
    /// When the first hour begins, milliseconds since 1970.
    pub since_ms: u64,
    /// Alerts per hour: MEDIUM, HIGH, CRITICAL.
    pub hours: Vec<[u64; 3]>,
    /// Alerts of these hours that nobody looked at, by the same severities.
    pub new: [u64; 3],
    /// The most suspicious programs.
    pub programs: Vec<Suspect>,
    /// The most suspicious devices with their programs.
    pub heat: Vec<Suspect>,
    /// Whether all alerts of these hours were looked at.
    pub complete: bool,
    /// Incidents that are not closed.
    pub incidents: u64,
    /// Devices that are not revoked.
    pub devices: u64,
    /// Those of them that are silent.
    pub silent: u64,
    /// Devices by group.
    pub groups: Vec<(String, u64)>,
}

/// The last 24 hours.
///
/// # Errors
/// When the database fails.
pub fn overview(c: &Connection, now_ms: u64) -> Result<Overview, StoreError> {
    let since_ms = (now_ms / HOUR_MS + 1).saturating_sub(HOURS as u64) * HOUR_MS;
    let mut found = Overview { since_ms, hours: vec![[0; 3]; HOURS], ..Overview::default() };
    let mut query = c.prepare_cached(
        "SELECT received_ms, severity, score, device, program_key, program, state FROM alerts
         WHERE suppressed IS NULL ORDER BY id DESC LIMIT ?",
    )?;
    let mut rows = query.query([OVERVIEW_OVER])?;
    let mut by_program: HashMap<String, Suspect> = HashMap::new();
    let mut by_both: HashMap<(String, String), Suspect> = HashMap::new();
    let mut looked_at = 0;
    while let Some(row) = rows.next()? {
        let received_ms = uint(row.get(0)?);
        if received_ms < since_ms {
            looked_at = 0;
            break;
        }
        looked_at += 1;
        let at = match severity_of(row.get(1)?) {
            Severity::Low | Severity::Medium => 0,
            Severity::High => 1,
            Severity::Critical => 2,
        };
        let hour = usize::try_from((received_ms - since_ms) / HOUR_MS).unwrap_or(usize::MAX).min(HOURS - 1);
        found.hours[hour][at] += 1;
        let state = WorkState::of_number(row.get(6)?);
        if state == WorkState::New {
            found.new[at] += 1;
        }
        if state == WorkState::FalsePositive {
            continue;
        }
        let (score, device): (f64, String) = (row.get(2)?, row.get(3)?);
        let (key, program): (String, String) = (row.get(4)?, row.get(5)?);
        let suspect = |device: &str| Suspect {
            device: device.to_owned(),
            program_key: key.clone(),
            program: program.clone(),
            alerts: 0,
            score: 0.0,
        };
        for one in [
            by_program.entry(key.clone()).or_insert_with(|| suspect("")),
            by_both.entry((device.clone(), key.clone())).or_insert_with(|| suspect(&device)),
        ] {
            one.alerts += 1;
            one.score = one.score.max(score);
        }
    }
    found.complete = looked_at < OVERVIEW_OVER;
    found.programs = worst(by_program.into_values().collect(), SHOWN);
    found.heat = squares(by_both.into_values().collect());
    found.incidents = uint(c.query_row(
        "SELECT count(*) FROM incidents WHERE state <= ? AND last_ms >= ?",
        params![WorkState::Acknowledged.number(), int(since_ms)],
        |row| row.get(0),
    )?);
    let count = "SELECT count(*), count(*) FILTER (WHERE silent_ms > 0) FROM devices WHERE revoked_ms = 0";
    (found.devices, found.silent) =
        c.query_row(count, [], |row| Ok((uint(row.get(0)?), uint(row.get(1)?))))?;
    let mut groups = c.prepare_cached(
        "SELECT grp, count(*) FROM devices WHERE revoked_ms = 0 GROUP BY grp ORDER BY 2 DESC, 1 LIMIT 100",
    )?;
    let rows = groups.query_map([], |row| Ok((row.get(0)?, uint(row.get(1)?))))?;
    found.groups = rows.collect::<Result<_, _>>()?;
    Ok(found)
}

fn worst(mut suspects: Vec<Suspect>, shown: usize) -> Vec<Suspect> {
    suspects.sort_by(|a, b| {
        let by_score = b.score.total_cmp(&a.score).then(b.alerts.cmp(&a.alerts));
        by_score.then_with(|| (&a.device, &a.program_key).cmp(&(&b.device, &b.program_key)))
    });
    suspects.truncate(shown);
    suspects
}

/// What a map of the worst devices and the worst programs on them needs.
fn squares(all: Vec<Suspect>) -> Vec<Suspect> {
    let all = worst(all, usize::MAX);
    let mut devices: Vec<&str> = Vec::new();
    let mut programs: Vec<&str> = Vec::new();
    for one in &all {
        if devices.len() < SHOWN && !devices.contains(&one.device.as_str()) {
            devices.push(&one.device);
        }
        if programs.len() < SHOWN && !programs.contains(&one.program_key.as_str()) {
            programs.push(&one.program_key);
        }
    }
    let shown = |one: &&Suspect| {
        devices.contains(&one.device.as_str()) && programs.contains(&one.program_key.as_str())
    };
    all.iter().filter(shown).cloned().collect()
}
