//! Alerts: stored once, found again by anything in them, and worked on.
//!
//! An alert's columns repeat what is looked for in its body; its words are in the full-text index, see [`super::words`].

use std::collections::BTreeMap;

use super::sql::{Connection, OptionalExtension as _, Row, params};
use models::policy::Severity;
use models::wire::{Alert, UplinkFrame};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::devices::group_of;
use super::evidence::{forget_evidence, note_evidence, print_of};
use super::frames::Intake;
use super::incidents::{join_incident, leave_incident};
use super::{StoreError, bits, int, uint, words};
use crate::counters::{Counter, Counters};
use crate::names::DeviceId;

/// Of the alerts that are kept, the part that goes at once when there are too many.
const DROPPED_SHARE: u32 = 1000;

/// The most that go at once.
const DROPPED_MAX: i64 = 255;

/// The most that go with one new alert, so that nobody waits long.
const CAUGHT_UP_BY: i64 = 499;

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

/// Stores an alert and everything that helps to find it again but its words; `None` when its number is there already.
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
    note_evidence(c, print, device.as_str(), now_ms)?;
    c.prepare_cached("UPDATE devices SET alerts = alerts + 1 WHERE id = ?")?.execute([device.as_str()])?;
    make_room(c, counters, row, intake.limits.alerts)?;
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

/// Makes room when there are more than `most`: for some at once, for one by one each would cost as much as storing one.
fn make_room(c: &Connection, counters: &Counters, newest: i64, most: u32) -> Result<(), StoreError> {
    let oldest: Option<i64> =
        c.prepare_cached("SELECT min(id) FROM alerts")?.query_row([], |row| row.get(0))?;
    let too_old = newest - i64::from(most);
    let Some(oldest) = oldest.filter(|oldest| *oldest <= too_old) else { return Ok(()) };
    let wanted = too_old + i64::from(most / DROPPED_SHARE).min(DROPPED_MAX);
    // Many more than may be are there after `alerts_max` was lowered: each new alert then takes some of them along.
    drop_oldest(c, counters, wanted.min(oldest + CAUGHT_UP_BY))
}

/// Drops alerts up to this one, with all that belongs to them.
pub(super) fn drop_oldest(c: &Connection, counters: &Counters, up_to: i64) -> Result<(), StoreError> {
    let mut drop = c.prepare_cached("DELETE FROM alerts WHERE id <= ? RETURNING device, print, incident")?;
    let mut rows = drop.query([up_to])?;
    let (mut dropped, mut evidence, mut incidents) = (0, BTreeMap::new(), BTreeMap::new());
    while let Some(row) = rows.next()? {
        dropped += 1;
        let (device, print): (String, i64) = (row.get(0)?, row.get(1)?);
        *evidence.entry((print, device)).or_insert(0) += 1;
        if let Some(incident) = row.get::<Option<i64>>(2)? {
            *incidents.entry(incident).or_insert(0) += 1;
        }
    }
    words::forget(c, up_to)?;
    c.prepare_cached("DELETE FROM comments WHERE alert <= ?")?.execute([up_to])?;
    for ((print, device), alerts) in evidence {
        forget_evidence(c, print, &device, alerts)?;
    }
    for (incident, alerts) in incidents {
        leave_incident(c, incident, alerts)?;
    }
    counters.add(Counter::AlertsDropped, dropped);
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
        note_evidence(c, print, &device, uint(received_ms))?;
    }
    words::index_new(c)
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

#[cfg(test)]
mod tests {
    use models::wire::Uplink;

    use super::*;
    use crate::store::testing::{alert, intake, join, on_both};
    use crate::store::{Limits, put_frame};

    #[test]
    fn too_many_alerts_make_room_some_at_once_and_every_sum_stays_right() {
        on_both(|empty| {
            let c = empty();
            let (counters, device) = (Counters::default(), DeviceId::parse("gw").unwrap());
            join(&c, &["gw"]);
            let few = Intake { limits: Limits { alerts: 1000, ..intake().limits }, ..intake() };
            let number = |sql: &str| -> i64 { c.query_row(sql, [], |row| row.get(0)).unwrap() };
            for seq in 1..=1003 {
                let of = if seq % 2 == 0 { "pump" } else { "fan" };
                let frame = UplinkFrame { epoch: 1, seq, body: Uplink::Alert(alert(of)) };
                put_frame(&c, &counters, &device, &frame, 10, &few).unwrap();
                assert!(seq < 1000 || (999..=1000).contains(&number("SELECT count(*) FROM alerts")));
            }
            assert_eq!((number("SELECT min(id) FROM alerts"), counters.get(Counter::AlertsDropped)), (5, 4));
            for table in ["evidence", "incidents"] {
                let sum = format!("SELECT CAST(sum(alerts) AS BIGINT) FROM {table}");
                assert_eq!(number(&sum), 999, "{table}");
            }
            // Fewer may be kept from now on.
            let fewer = Intake { limits: Limits { alerts: 100, ..intake().limits }, ..intake() };
            for (seq, kept) in [(1004, 500), (1005, 100)] {
                let frame = UplinkFrame { epoch: 1, seq, body: Uplink::Alert(alert("pump")) };
                put_frame(&c, &counters, &device, &frame, 10, &fewer).unwrap();
                assert_eq!(number("SELECT count(*) FROM alerts"), kept);
            }
            drop_oldest(&c, &counters, 1005).unwrap();
            for table in ["alerts", "evidence", "incidents", "incident_devices"] {
                assert_eq!(number(&format!("SELECT count(*) FROM {table}")), 0, "{table}");
            }
        });
    }
}
