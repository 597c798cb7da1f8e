//! Windows in which there were alerts. Those of false alarms go into the next training: see [`models::train`].
//!
//! Accepted is a window of which somebody said that an alert was a false positive, and nobody that another one was none.

use std::collections::BTreeSet;

use models::wire::{AlarmedWindow, TrainingWindow};

use super::alerts::WorkState;
use super::sql::{Connection, OptionalExtension as _, params};
use super::{StoreError, int, uint};
use crate::counters::{Counter, Counters};
use crate::names::DeviceId;

/// Windows kept per device; one more drops the oldest of those that nobody accepted, else the oldest.
const KEPT_MAX: i64 = 256;

/// Newest alerts of a device among which those of a window are looked for: they came right before it.
const LOOK_BACK: i64 = 1000;

/// What is here of the window that an alert was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarmed {
    /// Nothing: it did not come yet, or was dropped.
    Missing,
    /// It is learned from when the alert is found to be a false positive.
    Kept,
    /// The next training learns from it.
    Accepted,
}

/// Stores a window for the alerts that it names.
pub(super) fn put_alarmed(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    alarmed: &AlarmedWindow,
) -> Result<(), StoreError> {
    let (id, key) = (device.as_str(), alarmed.program.key());
    let body = postcard::to_stdvec(&alarmed.window).map_err(StoreError::Damaged)?;
    let mut find = c.prepare_cached(
        "SELECT id FROM (SELECT id, unix_ms, program_key FROM alerts WHERE device = ?1 ORDER BY id DESC LIMIT ?2) AS newest
         WHERE unix_ms = ?3 AND program_key = ?4",
    )?;
    let mut alerts: Vec<i64> = Vec::new();
    for unix_ms in &alarmed.alerts {
        let found: Option<i64> =
            find.query_row(params![id, LOOK_BACK, int(*unix_ms), key], |row| row.get(0)).optional()?;
        alerts.extend(found);
    }
    // Of alerts that are not here nobody can say anything.
    if alerts.is_empty() {
        counters.bump(Counter::AlarmedDropped);
        return Ok(());
    }
    let window: i64 = c
        .prepare_cached("INSERT INTO alarmed(device, key, body) VALUES (?, ?, ?) RETURNING id")?
        .query_row(params![id, key, body], |row| row.get(0))?;
    for alert in alerts {
        c.prepare_cached("UPDATE alerts SET alarmed = ? WHERE id = ?")?.execute([window, alert])?;
    }
    settle(c, window)?;
    let mut drop = c.prepare_cached(
        "DELETE FROM alarmed WHERE id IN
         (SELECT id FROM alarmed WHERE device = ? ORDER BY accepted DESC, id DESC LIMIT 1000000 OFFSET ?)",
    )?;
    counters.add(Counter::AlarmedDropped, drop.execute(params![id, KEPT_MAX])? as u64);
    Ok(())
}

/// Notes that people said something about an alert.
pub(super) fn judged(c: &Connection, alert: i64) -> Result<(), StoreError> {
    let mut query = c.prepare_cached("SELECT alarmed FROM alerts WHERE id = ?")?;
    let window: Option<Option<i64>> = query.query_row([alert], |row| row.get(0)).optional()?;
    window.flatten().map_or(Ok(()), |window| settle(c, window))
}

/// Whether a window is accepted follows from what is said of its alerts.
fn settle(c: &Connection, window: i64) -> Result<(), StoreError> {
    let mut query = c.prepare_cached("SELECT state FROM alerts WHERE alarmed = ?")?;
    let states = query.query_map([window], |row| row.get(0).map(WorkState::of_number))?;
    let states: Vec<WorkState> = states.collect::<Result<_, _>>()?;
    let is_accepted = states.contains(&WorkState::FalsePositive)
        && states.iter().all(|state| matches!(state, WorkState::FalsePositive | WorkState::New));
    c.prepare_cached("UPDATE alarmed SET accepted = ? WHERE id = ?")?
        .execute([i64::from(is_accepted), window])?;
    Ok(())
}

/// What is here of the window that an alert was about.
///
/// # Errors
/// When the database fails.
pub fn alarmed(c: &Connection, alert: u64) -> Result<Alarmed, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT w.accepted FROM alerts a JOIN alarmed w ON w.id = a.alarmed WHERE a.id = ?",
    )?;
    let accepted: Option<i64> = query.query_row([int(alert)], |row| row.get(0)).optional()?;
    Ok(match accepted {
        None => Alarmed::Missing,
        Some(0) => Alarmed::Kept,
        Some(_) => Alarmed::Accepted,
    })
}

/// The accepted windows of a program, oldest first, with their devices: of one device, or of a group or all.
pub(super) fn accepted(
    c: &Connection,
    key: &str,
    device: Option<&DeviceId>,
    group: Option<&str>,
) -> Result<Vec<(String, TrainingWindow)>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT w.id, w.device, w.body FROM alarmed w JOIN devices d ON d.id = w.device
         WHERE w.key = ?1 AND w.accepted = 1 AND d.revoked_ms = 0
         AND (CAST(?2 AS TEXT) IS NULL OR w.device = ?2) AND (CAST(?3 AS TEXT) IS NULL OR d.grp = ?3)
         ORDER BY w.id DESC LIMIT ?4",
    )?;
    let values = params![key, device.map(DeviceId::as_str), group, KEPT_MAX];
    let rows = query
        .query_map(values, |row| Ok((uint(row.get(0)?), row.get::<String>(1)?, row.get::<Vec<u8>>(2)?)))?;
    let rows: BTreeSet<(u64, String, Vec<u8>)> = rows.collect::<Result<_, _>>()?;
    rows.into_iter()
        .map(|(_, device, body)| Ok((device, postcard::from_bytes(&body).map_err(StoreError::Damaged)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use models::program::ProgramId;
    use models::wire::{Uplink, UplinkFrame};

    use super::super::testing::{self, on_both};
    use super::super::{Work, put_frame, windows_of, work};
    use super::*;

    fn device(name: &str) -> DeviceId {
        DeviceId::parse(name).unwrap()
    }

    fn program() -> ProgramId {
        testing::alert("pump").program
    }

    /// A device's next frame.
    fn put(c: &Connection, counters: &Counters, name: &str, seq: u64, body: Uplink) -> Option<u64> {
        let frame = UplinkFrame { epoch: 1, seq, body };
        let outcome = put_frame(c, counters, &device(name), &frame, 10, &testing::intake()).unwrap();
        outcome.alert.map(|alert| alert.id)
    }

    fn alert(unix_ms: u64) -> Uplink {
        Uplink::Alert(models::wire::Alert { unix_ms, ..testing::alert("pump") })
    }

    fn window(alerts: &[u64], run: u64) -> Uplink {
        let window =
            TrainingWindow { unix_ms: 9, run, vector: vec![(1, 0.5)], traits: vec![3], grams: vec![] };
        Uplink::Alarmed(AlarmedWindow { program: program(), alerts: alerts.to_vec(), window })
    }

    fn say(c: &Connection, alert: u64, state: WorkState) {
        work(c, &[alert], &Work { state: Some(state), ..Work::default() }, "anna", 1).unwrap();
    }

    #[test]
    fn a_window_is_learned_from_when_its_alert_was_false_and_no_other_of_it_was_true() {
        on_both(|empty| {
            let (c, counters) = (empty(), Counters::default());
            testing::join(&c, &["a", "b"]);
            let first = put(&c, &counters, "a", 1, alert(100)).unwrap();
            let second = put(&c, &counters, "a", 2, alert(101)).unwrap();
            let third = put(&c, &counters, "a", 3, alert(102)).unwrap();
            assert_eq!(alarmed(&c, first).unwrap(), Alarmed::Missing);
            // One was judged before its window came.
            say(&c, third, WorkState::FalsePositive);
            put(&c, &counters, "a", 4, window(&[100, 101], 1));
            put(&c, &counters, "a", 5, window(&[102], 2));
            put(&c, &counters, "a", 6, window(&[555], 3));
            assert_eq!(counters.get(Counter::AlarmedDropped), 1, "nobody knows that alert");
            let runs = || -> Vec<u64> {
                let windows = accepted(&c, &program().key(), Some(&device("a")), None).unwrap();
                windows.into_iter().map(|(_, window)| window.run).collect()
            };
            assert_eq!(runs(), [2]);
            say(&c, first, WorkState::FalsePositive);
            assert_eq!((runs(), alarmed(&c, second).unwrap()), (vec![1, 2], Alarmed::Accepted));
            say(&c, second, WorkState::Resolved);
            assert_eq!(
                (runs(), alarmed(&c, first).unwrap()),
                (vec![2], Alarmed::Kept),
                "it was an attack as well"
            );
            say(&c, second, WorkState::FalsePositive);
            say(&c, third, WorkState::New);
            assert_eq!(runs(), [1]);

            let of = |device: Option<&DeviceId>, group| {
                accepted(&c, &program().key(), device, group).unwrap().len()
            };
            assert_eq!(
                (of(Some(&device("b")), None), of(None, Some("default")), of(None, Some("x"))),
                (0, 1, 0)
            );
            assert!(
                windows_of(&c, &device("a"), &program().key()).unwrap().is_none(),
                "nothing else was sent"
            );
        });
    }

    #[test]
    fn windows_that_nobody_accepted_make_room_first() {
        on_both(|empty| {
            let (c, counters) = (empty(), Counters::default());
            testing::join(&c, &["a"]);
            let first = put(&c, &counters, "a", 1, alert(1)).unwrap();
            put(&c, &counters, "a", 2, window(&[1], 1));
            say(&c, first, WorkState::FalsePositive);
            let second = put(&c, &counters, "a", 3, alert(2)).unwrap();
            for n in 0..KEPT_MAX as u64 {
                put(&c, &counters, "a", 4 + n, window(&[2], 10 + n));
            }
            assert_eq!(counters.get(Counter::AlarmedDropped), 1);
            assert_eq!(alarmed(&c, first).unwrap(), Alarmed::Accepted);
            assert_eq!(alarmed(&c, second).unwrap(), Alarmed::Kept);
            let left: i64 = c.query_row("SELECT count(*) FROM alarmed", [], |row| row.get(0)).unwrap();
            assert_eq!(left, KEPT_MAX);
        });
    }
}
