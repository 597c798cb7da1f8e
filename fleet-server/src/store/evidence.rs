//! How rare an alert is: on how many devices the same program did the same.

use super::sql::{Connection, params};
use models::bundle::sha256;
use models::wire::Alert;

use super::{StoreError, int, uint};

/// A reason with this share of the anomaly, or more, is evidence of its own.
const DECISIVE: f32 = 0.5;

/// How often the same was told, and by how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rarity {
    /// Devices that told it.
    pub devices: u64,
    /// Devices of the fleet that are not revoked.
    pub of: u64,
    /// Alerts that are kept.
    pub alerts: u64,
}

/// What an alert is about, the same on every device: executable, script and the decisive reasons, or the first one.
pub(super) fn print_of(alert: &Alert) -> i64 {
    let mut names: Vec<&str> = alert
        .reasons
        .iter()
        .filter(|reason| reason.share >= DECISIVE)
        .map(|reason| reason.name.as_str())
        .collect();
    if names.is_empty() {
        names.extend(alert.reasons.first().map(|reason| reason.name.as_str()));
    }
    names.sort_unstable();
    names.dedup();
    let script = alert.program.script.as_deref().unwrap_or("");
    let text = [alert.program.exe.as_str(), script].into_iter().chain(names).collect::<Vec<_>>().join("\0");
    let mut first = [0; 8];
    first.copy_from_slice(&sha256(text.as_bytes())[..8]);
    i64::from_le_bytes(first)
}

pub(super) fn note_evidence(c: &Connection, print: i64, device: &str, now_ms: u64) -> Result<(), StoreError> {
    c.prepare_cached(
        "INSERT INTO evidence(print, device, first_ms, alerts) VALUES (?, ?, ?, 1)
         ON CONFLICT(print, device) DO UPDATE SET alerts = evidence.alerts + 1",
    )?
    .execute(params![print, device, int(now_ms)])?;
    Ok(())
}

/// So many alerts less: so there are never more rows than alerts.
pub(super) fn forget_evidence(
    c: &Connection,
    print: i64,
    device: &str,
    alerts: i64,
) -> Result<(), StoreError> {
    let gone = c
        .prepare_cached("DELETE FROM evidence WHERE print = ? AND device = ? AND alerts <= ?")?
        .execute(params![print, device, alerts])?;
    if gone == 0 {
        c.prepare_cached("UPDATE evidence SET alerts = alerts - ? WHERE print = ? AND device = ?")?
            .execute(params![alerts, print, device])?;
    }
    Ok(())
}

/// How rare an alert is among those that are kept.
///
/// # Errors
/// When the database fails.
pub fn rarity(c: &Connection, alert: &Alert) -> Result<Rarity, StoreError> {
    let of = c
        .prepare_cached("SELECT count(*) FROM devices WHERE revoked_ms = 0")?
        .query_row([], |row| row.get::<i64>(0))?;
    let (devices, alerts) = c
        .prepare_cached(
            "SELECT count(*), CAST(coalesce(sum(alerts), 0) AS BIGINT) FROM evidence WHERE print = ?",
        )?
        .query_row([print_of(alert)], |row| Ok((row.get::<i64>(0)?, row.get::<i64>(1)?)))?;
    Ok(Rarity { devices: uint(devices), of: uint(of), alerts: uint(alerts) })
}
