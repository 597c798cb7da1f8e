//! Alerts: stored once, found again by anything in them, and worked on.
//!
//! An alert's columns repeat what is looked for in its body; its words are in the full-text index `alert_words`.

use super::sql::{Connection, Dialect, OptionalExtension as _, Row, params};
use models::policy::Severity;
use models::program::ProgramId;
use models::wire::{Alert, UplinkFrame};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::devices::group_of;
use super::evidence::{forget_evidence, note_evidence, print_of};
use super::frames::Intake;
use super::incidents::{join_incident, leave_incident};
use super::{StoreError, bits, int, uint};
use crate::counters::{Counter, Counters};
use crate::names::DeviceId;

/// How far people are with an alert or an incident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkState {
    /// Nobody has looked.
    #[default]
    New,
    /// Somebody works on it.
    Acknowledged,
    /// It was what it said, and is over.
    Resolved,
    /// It was nothing.
    FalsePositive,
}

impl WorkState {
    /// Every state, in the order of work.
    pub const ALL: [Self; 4] = [Self::New, Self::Acknowledged, Self::Resolved, Self::FalsePositive];

    /// The name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Acknowledged => "acknowledged",
            Self::Resolved => "resolved",
            Self::FalsePositive => "false_positive",
        }
    }

    /// Reads a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    pub(super) fn number(self) -> i64 {
        self as i64
    }

    pub(super) fn of_number(number: i64) -> Self {
        usize::try_from(number).ok().and_then(|at| Self::ALL.get(at).copied()).unwrap_or_default()
    }
}

/// The id of the newest alert, 0 for none.
///
/// # Errors
/// When the database fails.
pub fn newest_alert(c: &Connection) -> Result<u64, StoreError> {
    let mut query = c.prepare_cached("SELECT coalesce(max(id), 0) FROM alerts")?;
    Ok(query.query_row([], |row| row.get(0).map(uint))?)
}

/// An alert as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredAlert {
    /// Counts up over all devices.
    pub id: u64,
    /// Who sent it.
    pub device: String,
    /// The group that the device is in now.
    pub group: String,
    /// When it was stored, milliseconds since 1970.
    pub received_ms: u64,
    /// How far people are with it.
    pub state: WorkState,
    /// Who works on it.
    pub assignee: Option<String>,
    /// With which others it belongs together; none when a rule hides it.
    pub incident: Option<u64>,
    /// The suppression rule that hides it.
    pub suppressed: Option<u64>,
    /// What was said.
    pub alert: Alert,
}

pub(super) const ALERT: &str =
    "SELECT a.id, a.device, a.received_ms, a.state, a.assignee, a.incident, a.suppressed, a.body,
    coalesce((SELECT grp FROM devices d WHERE d.id = a.device), '') FROM alerts a";

/// Stores an alert and everything that helps to find it again; `None` when its number is there already.
pub(super) fn put_alert(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    frame: &UplinkFrame,
    alert: &Alert,
    now_ms: u64,
    intake: &Intake,
) -> Result<Option<StoredAlert>, StoreError> {
    let there = c
        .prepare_cached("SELECT 1 FROM alerts WHERE device = ? AND epoch = ? AND seq = ?")?
        .exists(params![device.as_str(), bits(frame.epoch), int(frame.seq)])?;
    if there {
        return Ok(None);
    }
    let body = postcard::to_stdvec(alert).map_err(StoreError::Damaged)?;
    let print = print_of(alert);
    let group = group_of(c, device.as_str())?.unwrap_or_default();
    let suppressed = intake.rules.hides(device, &group, alert, now_ms);
    let incident = match suppressed {
        Some(rule) => {
            c.prepare_cached("UPDATE suppressions SET hidden = hidden + 1 WHERE id = ?")?
                .execute([int(rule)])?;
            None
        }
        None => Some(join_incident(c, device.as_str(), print, alert, now_ms)?),
    };
    let mut insert = c.prepare_cached(
        "INSERT INTO alerts(device, epoch, seq, received_ms, body, unix_ms, severity, score, program_key, program,
         techniques, print, incident, suppressed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
    )?;
    let values = params![
        device.as_str(),
        bits(frame.epoch),
        int(frame.seq),
        int(now_ms),
        body,
        int(alert.unix_ms),
        alert.severity as i64,
        alert.score,
        alert.program.key(),
        alert.program.to_string(),
        techniques(alert),
        print,
        incident.map(int),
        suppressed.map(int),
    ];
    let row: i64 = insert.query_row(values, |row| row.get(0))?;
    index(c, row, device.as_str(), alert, print, now_ms)?;
    c.prepare_cached("UPDATE devices SET alerts = alerts + 1 WHERE id = ?")?.execute([device.as_str()])?;
    drop_oldest(c, counters, row - i64::from(intake.limits.alerts))?;
    let stored = StoredAlert {
        id: uint(row),
        device: device.to_string(),
        group,
        received_ms: now_ms,
        state: WorkState::New,
        assignee: None,
        incident,
        suppressed,
        alert: alert.clone(),
    };
    if suppressed.is_none() {
        intake.channels.note(c, counters, &stored)?;
    }
    Ok(Some(stored))
}

/// Notes an alert's words, and that its device told this.
fn index(
    c: &Connection,
    row: i64,
    device: &str,
    alert: &Alert,
    print: i64,
    now_ms: u64,
) -> Result<(), StoreError> {
    put_words(c, row, device, alert)?;
    note_evidence(c, print, device, now_ms)
}

/// Notes an alert's words.
pub(super) fn put_words(c: &Connection, row: i64, device: &str, alert: &Alert) -> Result<(), StoreError> {
    let words = words(device, alert);
    match c.dialect() {
        Dialect::Sqlite => c
            .prepare_cached("INSERT INTO alert_words(rowid, words) VALUES (?, ?)")?
            .execute(params![row, words])?,
        Dialect::Postgres => c
            .prepare_cached("INSERT INTO alert_words(rowid, words) VALUES (?, to_tsvector('simple', ?))")?
            .execute(params![row, split(&words).join(" ")])?,
    };
    Ok(())
}

/// Drops alerts up to this one, with all that belongs to them.
pub(super) fn drop_oldest(c: &Connection, counters: &Counters, up_to: i64) -> Result<(), StoreError> {
    if up_to <= 0 {
        return Ok(());
    }
    let mut drop =
        c.prepare_cached("DELETE FROM alerts WHERE id <= ? RETURNING id, device, print, incident")?;
    let mut rows = drop.query([up_to])?;
    let mut dropped = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, device, print): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        dropped.push((id, device, print, row.get::<Option<i64>>(3)?));
    }
    for (id, device, print, incident) in &dropped {
        c.prepare_cached("DELETE FROM alert_words WHERE rowid = ?")?.execute([id])?;
        c.prepare_cached("DELETE FROM comments WHERE alert = ?")?.execute([id])?;
        forget_evidence(c, *print, device)?;
        if let Some(incident) = incident {
            leave_incident(c, *incident)?;
        }
    }
    counters.add(Counter::AlertsDropped, dropped.len() as u64);
    Ok(())
}

fn techniques(alert: &Alert) -> String {
    // With a space on both sides of each, so that one can be looked for.
    let mut text = String::from(" ");
    for technique in &alert.techniques {
        text.push_str(technique);
        text.push(' ');
    }
    text
}

fn words(device: &str, alert: &Alert) -> String {
    let ProgramId { unit, exe, script } = &alert.program;
    let reasons = alert.reasons.iter().flat_map(|reason| [reason.name.as_str(), reason.text.as_str()]);
    let own = [device, unit, exe, script.as_deref().unwrap_or(""), &alert.comm, &alert.summary];
    let all = own.into_iter().chain(reasons).chain(alert.techniques.iter().map(String::as_str));
    all.collect::<Vec<_>>().join(" ")
}

/// A text's words as SQLite's index takes them: what is neither letter nor digit is between words.
pub(super) fn split(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// From the number in the column `severity`.
pub(super) fn severity_of(number: i64) -> Severity {
    match number {
        3 => Severity::Critical,
        2 => Severity::High,
        1 => Severity::Medium,
        _ => Severity::Low,
    }
}

/// Fills the columns of alerts that an older server stored.
pub(super) fn fill(c: &Connection) -> Result<(), StoreError> {
    let mut query = c.prepare_cached("SELECT id, device, received_ms, body FROM alerts ORDER BY id")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let (id, device, received_ms): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let alert: Alert = postcard::from_bytes(&row.get::<Vec<u8>>(3)?).map_err(StoreError::Damaged)?;
        let print = print_of(&alert);
        let incident = join_incident(c, &device, print, &alert, uint(received_ms))?;
        c.prepare_cached(
            "UPDATE alerts SET unix_ms = ?, severity = ?, score = ?, program_key = ?, program = ?, techniques = ?,
             print = ?, incident = ? WHERE id = ?",
        )?
        .execute(params![
            int(alert.unix_ms),
            alert.severity as i64,
            alert.score,
            alert.program.key(),
            alert.program.to_string(),
            techniques(&alert),
            print,
            int(incident),
            id
        ])?;
        index(c, id, &device, &alert, print, uint(received_ms))?;
    }
    Ok(())
}

/// One alert.
///
/// # Errors
/// When the database fails or the row is damaged.
pub fn alert(c: &Connection, id: u64) -> Result<Option<StoredAlert>, StoreError> {
    c.prepare_cached(&format!("{ALERT} WHERE a.id = ?"))?
        .query_row([int(id)], |row| Ok(read(row)))
        .optional()?
        .transpose()
}

pub(super) fn read(row: &Row<'_>) -> Result<StoredAlert, StoreError> {
    let alert = postcard::from_bytes(&row.get::<Vec<u8>>(7)?).map_err(StoreError::Damaged)?;
    Ok(StoredAlert {
        id: uint(row.get(0)?),
        device: row.get(1)?,
        received_ms: uint(row.get(2)?),
        state: WorkState::of_number(row.get(3)?),
        assignee: row.get(4)?,
        incident: row.get::<Option<i64>>(5)?.map(uint),
        suppressed: row.get::<Option<i64>>(6)?.map(uint),
        group: row.get(8)?,
        alert,
    })
}
