//! Queries for people and for the downlink.

use super::sql::{Connection, OptionalExtension as _, Row, params};
use models::program::ProgramId;
use models::wire::{Heartbeat, Request};

use super::updates::build_chunk;
use super::{StoreError, uint};
use crate::names::DeviceId;

/// A device as it is kept.
#[derive(Clone, Debug)]
pub struct DeviceRow {
    /// Its name.
    pub id: String,
    /// When it was enrolled last.
    pub enrolled_ms: u64,
    /// In which group.
    pub group: String,
    /// What people call it by, ascending.
    pub tags: Vec<String>,
    /// When its certificate ends, seconds since 1970.
    pub ends_s: u64,
    /// When it was revoked, 0 for not.
    pub revoked_ms: u64,
    /// When it was there last, 0 for never.
    pub seen_ms: u64,
    /// Alerts stored so far.
    pub alerts: u64,
    /// The newest heartbeat and when it came.
    pub heartbeat: Option<(u64, Heartbeat)>,
}

/// How far one program's baseline is.
#[derive(Clone, Debug)]
pub struct TrainingRow {
    /// Whose.
    pub device: String,
    /// [`ProgramId::key`].
    pub key: String,
    /// Which program.
    pub program: ProgramId,
    /// All windows ever stored.
    pub total: u64,
    /// The newest bundle, 0 for none.
    pub generation: u64,
    /// When it was made, seconds since 1970.
    pub trained_s: u64,
    /// The generation the device spoke of last.
    pub reported_generation: u64,
    /// Why the device refused it.
    pub refused: Option<String>,
    /// It keeps what it has, whatever is rolled out.
    pub pinned: bool,
}

impl TrainingRow {
    /// The device uses a baseline that was not made for it alone.
    #[must_use]
    pub fn uses_another(&self) -> bool {
        self.reported_generation > 0 && self.refused.is_none()
    }
}

const DEVICE: &str = "SELECT id, enrolled_ms, seen_ms, alerts, heartbeat_ms,
    (SELECT body FROM heartbeats WHERE device = id), grp, ends_s, revoked_ms, tags FROM devices";

/// Devices by name: the first `limit` behind `after`, of all or of one group, with any tags or this one.
///
/// # Errors
/// When the database fails.
pub fn devices(
    c: &Connection,
    after: &str,
    limit: u32,
    group: Option<&str>,
    tag: Option<&str>,
) -> Result<Vec<DeviceRow>, StoreError> {
    let in_group = if group.is_some() { "grp = ?3" } else { "CAST(?3 AS TEXT) IS NULL" };
    let tagged = if tag.is_some() { "instr(tags, ?4) > 0" } else { "CAST(?4 AS TEXT) IS NULL" };
    let sql = format!("{DEVICE} WHERE id > ?1 AND {in_group} AND {tagged} ORDER BY id LIMIT ?2");
    let mut query = c.prepare_cached(&sql)?;
    let tag = tag.map(|tag| format!(" {tag} "));
    let rows = query.query_map(params![after, limit, group, tag], device_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One device.
///
/// # Errors
/// When the database fails.
pub fn device(c: &Connection, id: &str) -> Result<Option<DeviceRow>, StoreError> {
    let mut query = c.prepare_cached(&format!("{DEVICE} WHERE id = ?"))?;
    Ok(query.query_row([id], device_row).optional()?)
}

/// A stored heartbeat. One that an older server stored in another form is as good as none: the next one replaces it.
pub(super) fn heartbeat(raw: &[u8]) -> Option<Heartbeat> {
    match models::wire::decode::<Request>(raw) {
        Ok(Request::Heartbeat(heartbeat)) => Some(heartbeat),
        _ => None,
    }
}

fn device_row(row: &Row<'_>) -> super::sql::Result<DeviceRow> {
    let raw: Option<Vec<u8>> = row.get(5)?;
    let heartbeat = match raw.and_then(|raw| heartbeat(&raw)) {
        Some(heartbeat) => Some((uint(row.get(4)?), heartbeat)),
        None => None,
    };
    Ok(DeviceRow {
        id: row.get(0)?,
        enrolled_ms: uint(row.get(1)?),
        seen_ms: uint(row.get(2)?),
        alerts: uint(row.get(3)?),
        heartbeat,
        group: row.get(6)?,
        ends_s: uint(row.get(7)?),
        revoked_ms: uint(row.get(8)?),
        tags: row.get::<String>(9)?.split_ascii_whitespace().map(str::to_owned).collect(),
    })
}

/// Programs of all devices or of one, at most 10 000.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn training(c: &Connection, device: Option<&str>) -> Result<Vec<TrainingRow>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT device, key, program, total, generation, trained_s, reported_generation, refused,
             EXISTS (SELECT 1 FROM pins WHERE pins.device = programs.device AND pins.key = programs.key) FROM programs
         WHERE CAST(?1 AS TEXT) IS NULL OR device = ?1 ORDER BY device, key LIMIT 10000",
    )?;
    let mut rows = query.query([device])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let program: Vec<u8> = row.get(2)?;
        found.push(TrainingRow {
            device: row.get(0)?,
            key: row.get(1)?,
            program: postcard::from_bytes(&program).map_err(StoreError::Damaged)?,
            total: uint(row.get(3)?),
            generation: uint(row.get(4)?),
            trained_s: uint(row.get(5)?),
            reported_generation: uint(row.get(6)?),
            refused: row.get(7)?,
            pinned: row.get(8)?,
        });
    }
    Ok(found)
}

/// Bytes of a bundle that was made for this device, or for its group or all, and of a program that it runs.
///
/// # Errors
/// When the database fails.
pub fn chunk(
    c: &Connection,
    device: &DeviceId,
    sha256: [u8; 32],
    offset: u32,
    len: u32,
) -> Result<Option<Vec<u8>>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT substr(b.body, ?1, ?2) FROM bundles b JOIN devices d ON d.id = b.device
             WHERE b.sha256 = ?3 AND b.device = ?4 AND d.revoked_ms = 0
         UNION ALL
         SELECT substr(b.body, ?1, ?2) FROM baselines b JOIN programs p ON p.key = b.key
             JOIN devices d ON d.id = p.device AND (b.grp IS NULL OR b.grp = d.grp)
             WHERE b.sha256 = ?3 AND p.device = ?4 AND d.revoked_ms = 0",
    )?;
    let found = query
        .query_row(params![i64::from(offset) + 1, len, sha256, device.as_str()], |row| row.get(0))
        .optional()?;
    match found {
        Some(found) => Ok(Some(found)),
        None => build_chunk(c, device, sha256, offset, len),
    }
}

/// How many bytes that file has; `None` when this device may not have it.
///
/// # Errors
/// When the database fails.
pub fn file_size(c: &Connection, device: &DeviceId, sha256: [u8; 32]) -> Result<Option<u32>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT b.size FROM bundles b JOIN devices d ON d.id = b.device
             WHERE b.sha256 = ?1 AND b.device = ?2 AND d.revoked_ms = 0
         UNION ALL
         SELECT b.size FROM baselines b JOIN programs p ON p.key = b.key
             JOIN devices d ON d.id = p.device AND (b.grp IS NULL OR b.grp = d.grp)
             WHERE b.sha256 = ?1 AND p.device = ?2 AND d.revoked_ms = 0
         UNION ALL
         SELECT (SELECT sum(length(p.body)) FROM build_parts p WHERE p.build = b.id) FROM builds b
             JOIN update_devices u ON u.sha256 = b.sha256 JOIN devices d ON d.id = u.device
             WHERE b.sha256 = ?1 AND u.device = ?2 AND d.revoked_ms = 0",
    )?;
    let found = query.query_row(params![sha256, device.as_str()], |row| row.get::<i64>(0)).optional()?;
    Ok(found.and_then(|size| u32::try_from(size).ok()))
}

/// Rejected messages kept at the moment.
///
/// # Errors
/// When the database fails.
pub fn count_rejected(c: &Connection) -> Result<u64, StoreError> {
    Ok(c.query_row("SELECT count(*) FROM rejected", [], |row| row.get(0)).map(uint)?)
}
