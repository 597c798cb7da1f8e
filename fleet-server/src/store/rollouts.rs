//! Rollouts: a baseline of many devices on its way to them, a few first.
//!
//! What a device is offered follows from these tables at every connection; what it is to take back waits in
//! `take_backs` until the device has answered.

use std::collections::BTreeSet;

use super::sql::{Connection, OptionalExtension as _, Row, params};
use models::program::ProgramId;
use models::wire::{Alert, BundleReport, Offer};

use super::baselines::offer_row;
use super::{StoreError, int, uint};
use crate::names::DeviceId;
use crate::rollouts::{Facts, Plan, Stage};

/// Rollouts that are under way at once. One more is refused.
pub const UNDER_WAY_MAX: u64 = 100;

/// Alerts that a guard looks at, per stage.
const ALERTS_MAX: u32 = 10_000;

/// A rollout as it is kept.
#[derive(Clone, Debug)]
pub struct RolloutRow {
    /// Counts up.
    pub id: u64,
    /// The baseline that is rolled out.
    pub baseline: u64,
    /// The group it is for; `None` for all devices.
    pub group: Option<String>,
    /// [`ProgramId::key`].
    pub key: String,
    /// Which program.
    pub program: ProgramId,
    /// Of the baseline.
    pub generation: u64,
    /// How it goes on.
    pub plan: Plan,
    /// How far it is.
    pub stage: Stage,
    /// It waits for a person.
    pub paused: bool,
    /// Who began it.
    pub by: String,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// When this stage began.
    pub stage_ms: u64,
    /// What it waits for, or why it ended.
    pub reason: String,
    /// The newest alert when this stage began.
    pub first_alert: u64,
}

/// One device of a rollout.
#[derive(Clone, Debug)]
pub struct RolloutDevice {
    /// Its name.
    pub device: String,
    /// It is one of the first.
    pub canary: bool,
    /// When it was offered the baseline, milliseconds since 1970.
    pub offered_ms: u64,
    /// When it said that it uses it, 0 for never.
    pub active_ms: u64,
    /// Why it does not, or no longer.
    pub refused: Option<String>,
}

/// Why a rollout did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotBegun {
    /// There is no such baseline.
    NoBaseline,
    /// No device of its scope runs the program.
    NoDevice,
    /// Another one of the same program is under way.
    UnderWay(u64),
    /// It was rolled out, or rolled back, before.
    Before(u64),
    /// As many as may be are under way.
    Full,
}

impl super::Change for Result<u64, NotBegun> {
    fn is_done(&self) -> bool {
        self.is_ok()
    }
}

const ROLLOUT: &str =
    "SELECT r.id, r.baseline, b.grp, b.key, b.program, b.generation, r.plan, r.state, r.paused, r.by,
    r.created_ms, r.stage_ms, r.reason, r.first_alert FROM rollouts r JOIN baselines b ON b.id = r.baseline";

/// Begins a rollout with the first devices.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn begin_rollout(
    c: &Connection,
    baseline: u64,
    plan: &Plan,
    by: &str,
    now_ms: u64,
) -> Result<Result<u64, NotBegun>, StoreError> {
    let Some(row) = super::baseline(c, baseline)? else { return Ok(Err(NotBegun::NoBaseline)) };
    let before = "SELECT id FROM rollouts WHERE baseline = ?";
    if let Some(id) = c.query_row(before, [int(baseline)], |row| row.get(0)).optional()? {
        return Ok(Err(NotBegun::Before(uint(id))));
    }
    let under_way = "SELECT r.id, b.key FROM rollouts r JOIN baselines b ON b.id = r.baseline
                     WHERE r.state IN ('canary', 'everyone')";
    let mut query = c.prepare_cached(under_way)?;
    let rows = query.query_map([], |row| Ok((uint(row.get(0)?), row.get::<String>(1)?)))?;
    let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
    if let Some((id, _)) = rows.iter().find(|(_, key)| *key == row.key) {
        return Ok(Err(NotBegun::UnderWay(*id)));
    }
    if rows.len() as u64 >= UNDER_WAY_MAX {
        return Ok(Err(NotBegun::Full));
    }
    let targets = targets(c, row.group.as_deref(), &row.key)?;
    if targets.is_empty() {
        return Ok(Err(NotBegun::NoDevice));
    }
    let plan_json = serde_json::to_string(plan).expect("a plan has a JSON form");
    let id = c.query_row(
        "INSERT INTO rollouts(baseline, plan, state, by, created_ms, stage_ms, reason, first_alert)
         VALUES (?1, ?2, 'canary', ?3, ?4, ?4, '', (SELECT coalesce(max(id), 0) FROM alerts)) RETURNING id",
        params![int(baseline), plan_json, by, int(now_ms)],
        |row| row.get(0).map(uint),
    )?;
    for device in plan.canaries(id, targets) {
        add_device(c, id, &device, true, now_ms)?;
    }
    Ok(Ok(id))
}

/// Devices of a scope that run the program and are not pinned.
fn targets(c: &Connection, group: Option<&str>, key: &str) -> Result<Vec<String>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT p.device FROM programs p JOIN devices d ON d.id = p.device
         WHERE p.key = ?1 AND d.revoked_ms = 0 AND (CAST(?2 AS TEXT) IS NULL OR d.grp = ?2)
         AND NOT EXISTS (SELECT 1 FROM pins WHERE pins.device = p.device AND pins.key = p.key)",
    )?;
    let rows = query.query_map(params![key, group], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn add_device(
    c: &Connection,
    rollout: u64,
    device: &str,
    canary: bool,
    now_ms: u64,
) -> Result<(), StoreError> {
    let insert = "INSERT INTO rollout_devices(rollout, device, canary, offered_ms) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING";
    c.prepare_cached(insert)?.execute(params![int(rollout), device, canary, int(now_ms)])?;
    Ok(())
}

/// Rollouts, the newest first: `limit` of those before `before`.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn rollouts(c: &Connection, before: Option<u64>, limit: u32) -> Result<Vec<RolloutRow>, StoreError> {
    let mut query = c.prepare_cached(&format!("{ROLLOUT} WHERE r.id < ? ORDER BY r.id DESC LIMIT ?"))?;
    let rows = query.query(params![before.map_or(i64::MAX, int), limit])?;
    collect(rows)
}

/// Those that go on by themselves.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn rollouts_under_way(c: &Connection) -> Result<Vec<RolloutRow>, StoreError> {
    let mut query =
        c.prepare_cached(&format!("{ROLLOUT} WHERE r.state IN ('canary', 'everyone') AND r.paused = 0"))?;
    let rows = query.query([])?;
    collect(rows)
}

/// One of them.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn rollout(c: &Connection, id: u64) -> Result<Option<RolloutRow>, StoreError> {
    let mut query = c.prepare_cached(&format!("{ROLLOUT} WHERE r.id = ?"))?;
    let mut rows = query.query([int(id)])?;
    rows.next()?.map(|row| rollout_row(&row)).transpose()
}

/// The devices of a rollout, those first that do not use it.
///
/// # Errors
/// When the database fails.
pub fn rollout_devices(c: &Connection, id: u64, limit: u32) -> Result<Vec<RolloutDevice>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT device, canary, offered_ms, active_ms, refused FROM rollout_devices WHERE rollout = ?
         ORDER BY refused IS NULL, active_ms > 0, canary DESC, device LIMIT ?",
    )?;
    let rows = query.query_map(params![int(id), limit], |row| {
        Ok(RolloutDevice {
            device: row.get(0)?,
            canary: row.get(1)?,
            offered_ms: uint(row.get(2)?),
            active_ms: uint(row.get(3)?),
            refused: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What its guard looks at.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn rollout_facts(c: &Connection, row: &RolloutRow, heard_before_ms: u64) -> Result<Facts, StoreError> {
    let mut facts = Facts::default();
    let mut part: BTreeSet<String> = BTreeSet::new();
    let mut query = c.prepare_cached(
        "SELECT r.device, r.active_ms, r.refused, d.heartbeat_ms,
             EXISTS (SELECT 1 FROM events e WHERE e.device = r.device AND e.kind = 'killed' AND e.received_ms > r.offered_ms)
         FROM rollout_devices r JOIN devices d ON d.id = r.device WHERE r.rollout = ? AND d.revoked_ms = 0",
    )?;
    let mut rows = query.query([int(row.id)])?;
    while let Some(one) = rows.next()? {
        let (device, active_ms, refused): (String, i64, Option<String>) =
            (one.get(0)?, one.get(1)?, one.get(2)?);
        let (heard_ms, killed): (i64, bool) = (one.get(3)?, one.get(4)?);
        facts.offered += 1;
        if let Some(refused) = refused {
            facts.refused += 1;
            facts.refusal = Some(refused);
        } else if active_ms > 0 {
            facts.active += 1;
            facts.unwell += u64::from(killed || uint(heard_ms) < heard_before_ms);
        }
        part.insert(device);
    }
    let mut query = c.prepare_cached(
        "SELECT d.id, d.heartbeat_ms FROM programs p JOIN devices d ON d.id = p.device
         WHERE p.key = ?1 AND d.revoked_ms = 0 AND (CAST(?2 AS TEXT) IS NULL OR d.grp = ?2)",
    )?;
    let mut rows = query.query(params![row.key, row.group])?;
    while let Some(one) = rows.next()? {
        let (device, heard_ms): (String, i64) = (one.get(0)?, one.get(1)?);
        if !part.contains(&device) && heard_ms > 0 {
            facts.others += 1;
            facts.others_unwell += u64::from(uint(heard_ms) < heard_before_ms);
        }
    }
    let mut query = c.prepare_cached(
        "SELECT device, body FROM alerts WHERE program_key = ? AND id > ? ORDER BY id LIMIT ?",
    )?;
    let mut rows = query.query(params![row.key, int(row.first_alert), ALERTS_MAX])?;
    while let Some(one) = rows.next()? {
        let (device, body): (String, Vec<u8>) = (one.get(0)?, one.get(1)?);
        let alert: Alert = postcard::from_bytes(&body).map_err(StoreError::Damaged)?;
        // A device folds what it says again and again into one.
        let n = 1 + u64::from(alert.suppressed_before);
        if !part.contains(&device) {
            facts.others_alerts += n;
        } else if alert.generation == row.generation {
            facts.alerts += n;
        }
    }
    Ok(facts)
}

/// Says what a rollout waits for.
///
/// # Errors
/// When the database fails.
pub fn put_reason(c: &Connection, row: &RolloutRow, reason: &str) -> Result<(), StoreError> {
    let change = "UPDATE rollouts SET reason = ? WHERE id = ? AND state = ?";
    c.execute(change, params![reason, int(row.id), row.stage.as_str()])?;
    Ok(())
}

/// Goes on to another stage; gives the devices that are told. `None` when the rollout is not in the stage any more in which
/// that was decided.
///
/// # Errors
/// When the database fails.
pub fn put_stage(
    c: &Connection,
    row: &RolloutRow,
    stage: Stage,
    reason: &str,
    now_ms: u64,
) -> Result<Option<Vec<String>>, StoreError> {
    let changed = c.execute(
        "UPDATE rollouts SET state = ?, reason = ?, stage_ms = ?, paused = 0,
             first_alert = (SELECT coalesce(max(id), 0) FROM alerts) WHERE id = ? AND state = ?",
        params![stage.as_str(), reason, int(now_ms), int(row.id), row.stage.as_str()],
    )?;
    if changed == 0 {
        return Ok(None);
    }
    told_of(c, row, stage, now_ms).map(Some)
}

/// Notes whom a stage brings the baseline to, or takes it back from.
fn told_of(c: &Connection, row: &RolloutRow, stage: Stage, now_ms: u64) -> Result<Vec<String>, StoreError> {
    match stage {
        Stage::Canary | Stage::Done => Ok(Vec::new()),
        Stage::Everyone => {
            let targets = targets(c, row.group.as_deref(), &row.key)?;
            for device in &targets {
                add_device(c, row.id, device, false, now_ms)?;
            }
            Ok(targets)
        }
        Stage::RolledBack => {
            let program = postcard::to_stdvec(&row.program).map_err(StoreError::Damaged)?;
            // After its end also devices that came later have it.
            let mut query = c.prepare_cached(
                "SELECT device FROM rollout_devices WHERE rollout = ?1 AND refused IS NULL
                 UNION SELECT device FROM programs WHERE key = ?2 AND reported_generation = ?3 AND refused IS NULL",
            )?;
            let generation = int(row.generation);
            let have = query.query_map(params![int(row.id), row.key, generation], |row| row.get(0))?;
            let have: Vec<String> = have.collect::<Result<_, _>>()?;
            let mut insert = c.prepare_cached(
                "INSERT INTO take_backs(device, key, program, generation, asked_ms) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT DO NOTHING",
            )?;
            for device in have {
                insert.execute(params![device, row.key, program, generation, int(now_ms)])?;
            }
            let mut query =
                c.prepare_cached("SELECT device FROM take_backs WHERE key = ? AND generation = ?")?;
            let rows = query.query_map(params![row.key, int(row.generation)], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        }
    }
}

/// Lets a rollout wait for a person, or go on; the time it waited counts for nothing.
///
/// # Errors
/// When the database fails.
pub fn pause_rollout(c: &Connection, id: u64, paused: bool, now_ms: u64) -> Result<bool, StoreError> {
    let changed = c.execute(
        "UPDATE rollouts SET paused = ?1, stage_ms = CASE WHEN ?1 = 1 THEN stage_ms ELSE ?2 END
         WHERE id = ?3 AND paused <> ?1 AND state IN ('canary', 'everyone')",
        params![paused, int(now_ms), int(id)],
    )?;
    Ok(changed > 0)
}

/// What a device is to take back, as program and generation.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn take_backs(c: &Connection, device: &DeviceId) -> Result<Vec<(ProgramId, u64)>, StoreError> {
    let mut query = c.prepare_cached("SELECT program, generation FROM take_backs WHERE device = ?")?;
    let rows = query.query_map([device.as_str()], |row| Ok((row.get::<Vec<u8>>(0)?, uint(row.get(1)?))))?;
    let mut found = Vec::new();
    for row in rows {
        let (program, generation) = row?;
        found.push((postcard::from_bytes(&program).map_err(StoreError::Damaged)?, generation));
    }
    Ok(found)
}

/// What rollouts offer to a device: those it takes part in, and those that came to their end.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub(super) fn offers(c: &Connection, device: &DeviceId) -> Result<Vec<Offer>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT b.program, b.generation, b.sha256, b.size
         FROM programs p JOIN devices d ON d.id = p.device JOIN baselines b ON b.key = p.key
         JOIN rollouts r ON r.baseline = b.id
         LEFT JOIN rollout_devices m ON m.rollout = r.id AND m.device = p.device
         LEFT JOIN pins ON pins.device = p.device AND pins.key = p.key
         WHERE p.device = ? AND pins.device IS NULL AND (
             (r.state = 'done' AND (b.grp IS NULL OR b.grp = d.grp))
             OR (r.state IN ('canary', 'everyone') AND m.device IS NOT NULL AND (r.paused = 0 OR m.active_ms > 0)))",
    )?;
    let rows = query.query_map([device.as_str()], offer_row)?;
    rows.map(|row| row?).collect()
}

/// Notes what a device said about a baseline that is rolled out.
///
/// # Errors
/// When the database fails.
pub(super) fn put_rollout_report(
    c: &Connection,
    device: &DeviceId,
    report: &BundleReport,
    now_ms: u64,
) -> Result<(), StoreError> {
    let (key, generation) = (report.program.key(), int(report.generation));
    c.prepare_cached(
        "UPDATE rollout_devices SET refused = ?1, active_ms = CASE WHEN CAST(?1 AS TEXT) IS NULL THEN ?2 ELSE active_ms END
         WHERE device = ?3 AND rollout IN (SELECT r.id FROM rollouts r JOIN baselines b ON b.id = r.baseline
             WHERE b.key = ?4 AND b.generation = ?5)",
    )?
    .execute(params![report.refused, int(now_ms), device.as_str(), key, generation])?;
    if report.refused.is_some() {
        c.prepare_cached("DELETE FROM take_backs WHERE device = ? AND key = ? AND generation = ?")?
            .execute(params![device.as_str(), key, generation])?;
    }
    Ok(())
}

/// Whether a device keeps the baseline it has of a program, whatever is rolled out. `None` when it does not run it.
///
/// # Errors
/// When the database fails.
pub fn set_pinned(c: &Connection, device: &DeviceId, key: &str, pinned: bool) -> Result<bool, StoreError> {
    let at = params![device.as_str(), key];
    if !pinned {
        return Ok(c.execute("DELETE FROM pins WHERE device = ? AND key = ?", at)? > 0);
    }
    let there = c.prepare_cached("SELECT 1 FROM programs WHERE device = ? AND key = ?")?.exists(at)?;
    if there {
        c.execute("INSERT INTO pins(device, key) VALUES (?, ?) ON CONFLICT DO NOTHING", at)?;
    }
    Ok(there)
}

fn collect(mut rows: super::sql::Rows<'_>) -> Result<Vec<RolloutRow>, StoreError> {
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(rollout_row(&row)?);
    }
    Ok(found)
}

fn rollout_row(row: &Row<'_>) -> Result<RolloutRow, StoreError> {
    let (program, plan, stage): (Vec<u8>, String, String) = (row.get(4)?, row.get(6)?, row.get(7)?);
    Ok(RolloutRow {
        id: uint(row.get(0)?),
        baseline: uint(row.get(1)?),
        group: row.get(2)?,
        key: row.get(3)?,
        program: postcard::from_bytes(&program).map_err(StoreError::Damaged)?,
        generation: uint(row.get(5)?),
        plan: serde_json::from_str(&plan).unwrap_or_default(),
        stage: Stage::parse(&stage).unwrap_or(Stage::RolledBack),
        paused: row.get(8)?,
        by: row.get(9)?,
        created_ms: uint(row.get(10)?),
        stage_ms: uint(row.get(11)?),
        reason: row.get(12)?,
        first_alert: uint(row.get(13)?),
    })
}

#[cfg(test)]
mod tests;
