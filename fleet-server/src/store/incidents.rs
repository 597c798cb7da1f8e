//! Alerts that belong together: the same program doing the same on many devices, or a chain on one.

use super::sql::{Connection, OptionalExtension as _, Row, ToCell, params};
use models::policy::Severity;
use models::wire::Alert;

use super::alerts::{WorkState, severity_of};
use super::{StoreError, int, uint};

/// The same on any device joins within this time of the last.
const SAME_WITHIN_MS: u64 = 24 * 3_600_000;

/// Anything on the same device joins within this time of the last.
const CHAIN_WITHIN_MS: u64 = 30 * 60_000;

/// The time of an incident's last alert is exact to this: it is in three indexes, and under load there are thousands a second.
const LAST_EVERY_MS: u64 = 1000;

/// An incident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncidentRow {
    /// Counts up.
    pub id: u64,
    /// When its first alert was stored, milliseconds since 1970.
    pub first_ms: u64,
    /// When its last one was, or up to a second before.
    pub last_ms: u64,
    /// How many alerts are kept.
    pub alerts: u64,
    /// On how many devices.
    pub devices: u64,
    /// The device of its first alert.
    pub device: String,
    /// The highest severity.
    pub severity: Severity,
    /// How far people are with it.
    pub state: WorkState,
    /// Who works on it.
    pub assignee: Option<String>,
    /// The summary of its most severe alert, the first of these.
    pub title: String,
}

const INCIDENT: &str =
    "SELECT id, first_ms, last_ms, alerts, devices, device, severity, state, assignee, title FROM incidents";

/// Puts an alert into the incident that it belongs to, or into a new one; gives its id.
pub(super) fn join_incident(
    c: &Connection,
    device: &str,
    print: i64,
    alert: &Alert,
    now_ms: u64,
) -> Result<u64, StoreError> {
    let severity = alert.severity as i64;
    let found = match open(c, "print = ?1", &print, now_ms.saturating_sub(SAME_WITHIN_MS))? {
        Some(id) => Some(id),
        None => open(c, "device = ?1 AND devices = 1", &device, now_ms.saturating_sub(CHAIN_WITHIN_MS))?,
    };
    let id = match found {
        Some(id) => {
            let counted = c
                .prepare_cached(
                    "UPDATE incidents SET alerts = alerts + 1 WHERE id = ? AND last_ms > ? AND severity >= ?",
                )?
                .execute(params![id, int(now_ms) - int(LAST_EVERY_MS), severity])?;
            if counted == 0 {
                // The columns on the right are those from before.
                c.prepare_cached(
                    "UPDATE incidents SET alerts = alerts + 1, last_ms = max(last_ms, ?2), severity = max(severity, ?3),
                     title = CASE WHEN ?3 > severity THEN ?4 ELSE title END WHERE id = ?1",
                )?
                .execute(params![id, int(now_ms), severity, alert.summary])?;
            }
            id
        }
        None => {
            let mut insert = c.prepare_cached(
                "INSERT INTO incidents(print, device, first_ms, last_ms, alerts, devices, severity, title)
                 VALUES (?, ?, ?, ?, 1, 0, ?, ?) RETURNING id",
            )?;
            let values = params![print, device, int(now_ms), int(now_ms), severity, alert.summary];
            insert.query_row(values, |row| row.get(0))?
        }
    };
    let fresh = c
        .prepare_cached(
            "INSERT INTO incident_devices(incident, device) VALUES (?, ?) ON CONFLICT DO NOTHING",
        )?
        .execute(params![id, device])?;
    if fresh > 0 {
        c.prepare_cached("UPDATE incidents SET devices = devices + 1 WHERE id = ?")?.execute([id])?;
    }
    Ok(uint(id))
}

/// The newest incident that is worked on, of this kind, whose last alert is not older.
fn open(c: &Connection, which: &str, value: &dyn ToCell, since_ms: u64) -> Result<Option<i64>, StoreError> {
    let sql = format!(
        "SELECT id FROM incidents WHERE {which} AND last_ms >= ?2 AND state <= ?3 ORDER BY last_ms DESC LIMIT 1"
    );
    let mut query = c.prepare_cached(&sql)?;
    let found = query
        .query_row(params![value, int(since_ms), WorkState::Acknowledged.number()], |row| row.get(0))
        .optional()?;
    Ok(found)
}

/// So many alerts less; without any the incident goes.
pub(super) fn leave_incident(c: &Connection, id: i64, alerts: i64) -> Result<(), StoreError> {
    let gone = c
        .prepare_cached("DELETE FROM incidents WHERE id = ? AND alerts <= ?")?
        .execute(params![id, alerts])?;
    if gone > 0 {
        c.prepare_cached("DELETE FROM incident_devices WHERE incident = ?")?.execute([id])?;
    } else {
        c.prepare_cached("UPDATE incidents SET alerts = alerts - ? WHERE id = ?")?
            .execute(params![alerts, id])?;
    }
    Ok(())
}

/// Incidents, the one with the newest alert first: `limit` of those whose last alert is older than `before_ms`.
///
/// # Errors
/// When the database fails.
pub fn incidents(
    c: &Connection,
    before_ms: Option<u64>,
    limit: u32,
    state: Option<WorkState>,
) -> Result<Vec<IncidentRow>, StoreError> {
    let mut query = c.prepare_cached(&format!(
        "{INCIDENT} WHERE last_ms < ?1 AND (CAST(?2 AS BIGINT) IS NULL OR state = ?2) ORDER BY last_ms DESC LIMIT ?3"
    ))?;
    let before = before_ms.map_or(i64::MAX, int);
    let rows = query.query_map(params![before, state.map(WorkState::number), limit], incident_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One incident with its devices, at most 1000 of them.
///
/// # Errors
/// When the database fails.
pub fn incident(c: &Connection, id: u64) -> Result<Option<(IncidentRow, Vec<String>)>, StoreError> {
    let mut query = c.prepare_cached(&format!("{INCIDENT} WHERE id = ?"))?;
    let Some(row) = query.query_row([int(id)], incident_row).optional()? else { return Ok(None) };
    let mut query = c.prepare_cached(
        "SELECT device FROM incident_devices WHERE incident = ? ORDER BY device LIMIT 1000",
    )?;
    let devices = query.query_map([int(id)], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(Some((row, devices)))
}

fn incident_row(row: &Row<'_>) -> super::sql::Result<IncidentRow> {
    Ok(IncidentRow {
        id: uint(row.get(0)?),
        first_ms: uint(row.get(1)?),
        last_ms: uint(row.get(2)?),
        alerts: uint(row.get(3)?),
        devices: uint(row.get(4)?),
        device: row.get(5)?,
        severity: severity_of(row.get(6)?),
        state: WorkState::of_number(row.get(7)?),
        assignee: row.get(8)?,
        title: row.get(9)?,
    })
}
