//! Training windows out, sealed bundles in, and what devices said about them.

use std::collections::BTreeMap;

use super::sql::{Connection, OptionalExtension as _, params};
use models::bundle::sha256;
use models::program::ProgramId;
use models::wire::{BundleReport, Offer, TrainingWindow};

use super::alarmed::accepted;
use super::baselines::offer_row;
use super::{StoreError, int, uint};
use crate::names::DeviceId;

/// Bundles kept per device and program: the newest and the one before.
const BUNDLES_KEPT: i64 = 2;

/// What a training starts from.
#[derive(Clone, Debug)]
pub struct StoredWindows {
    /// Which program.
    pub program: ProgramId,
    /// The last generation that there was for whom it is trained, 0 for none.
    pub generation: u64,
    /// All windows ever stored.
    pub total: u64,
    /// What is still there, in the order of arrival.
    pub windows: Vec<TrainingWindow>,
    /// Windows of false alarms, oldest first.
    pub accepted: Vec<TrainingWindow>,
}

/// Everything needed to train one program of one device; `None` when it is unknown.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn windows_of(c: &Connection, device: &DeviceId, key: &str) -> Result<Option<StoredWindows>, StoreError> {
    let row = c
        .query_row(
            "SELECT program, total, max(max(generation, floor), reported_generation,
                 coalesce((SELECT max(b.generation) FROM baselines b WHERE b.key = programs.key), 0))
             FROM programs WHERE device = ? AND key = ?",
            params![device.as_str(), key],
            |row| Ok((row.get::<Vec<u8>>(0)?, row.get::<i64>(1)?, row.get::<i64>(2)?)),
        )
        .optional()?;
    let Some((program, total, generation)) = row else { return Ok(None) };
    let program = postcard::from_bytes(&program).map_err(StoreError::Damaged)?;
    let mut query = c.prepare_cached("SELECT body FROM windows WHERE device = ? AND key = ? ORDER BY id")?;
    let rows = query.query_map(params![device.as_str(), key], |row| row.get::<Vec<u8>>(0))?;
    let mut windows = Vec::new();
    for row in rows {
        windows.push(postcard::from_bytes(&row?).map_err(StoreError::Damaged)?);
    }
    let accepted = accepted(c, key, Some(device), None)?.into_iter().map(|(_, window)| window).collect();
    let (generation, total) = (uint(generation), uint(total));
    Ok(Some(StoredWindows { program, generation, total, windows, accepted }))
}

/// Programs with enough windows and no bundle.
///
/// # Errors
/// When the database fails.
pub fn training_candidates(
    c: &Connection,
    learn_windows: u32,
) -> Result<Vec<(String, String, u64)>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT device, key, total FROM programs WHERE generation = 0 AND (reported_generation = 0 OR refused IS NOT NULL)
             AND total >= ? ORDER BY total LIMIT 1000",
    )?;
    let rows =
        query.query_map([learn_windows], |row| Ok((row.get(0)?, row.get(1)?, uint(row.get::<i64>(2)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Stores a sealed bundle and gives the offer for it. Older ones than the previous are dropped.
///
/// # Errors
/// When the database fails, e.g. because that generation exists.
pub fn put_bundle(
    c: &Connection,
    device: &DeviceId,
    program: &ProgramId,
    generation: u64,
    bytes: &[u8],
    now_ms: u64,
) -> Result<Offer, StoreError> {
    let (id, key, hash) = (device.as_str(), program.key(), sha256(bytes));
    let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    c.execute(
        "INSERT INTO bundles VALUES (?, ?, ?, ?, ?, ?, ?)",
        params![id, key, int(generation), hash, size, int(now_ms), bytes],
    )?;
    c.execute(
        "UPDATE programs SET generation = ?, trained_s = ? WHERE device = ? AND key = ?",
        params![int(generation), int(now_ms / 1000), id, key],
    )?;
    c.execute(
        "DELETE FROM bundles WHERE device = ? AND key = ? AND generation <= ?",
        params![id, key, int(generation) - BUNDLES_KEPT],
    )?;
    Ok(Offer { program: program.clone(), generation, sha256: hash, size })
}

/// Whether there is anything to train a program with: on one device, or on any of a group or of all.
///
/// # Errors
/// When the database fails.
pub fn has_windows(
    c: &Connection,
    device: Option<&DeviceId>,
    group: Option<&str>,
    key: &str,
) -> Result<bool, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT 1 FROM programs p JOIN devices d ON d.id = p.device WHERE p.key = ?1 AND p.total > 0
         AND (CAST(?2 AS TEXT) IS NULL OR p.device = ?2) AND (CAST(?3 AS TEXT) IS NULL OR d.grp = ?3)",
    )?;
    Ok(query.exists(params![key, device.map(DeviceId::as_str), group])?)
}

/// The newest bundle of every program of a device, made for it or rolled out to it. One that the device has had, and went
/// back from, is not offered again.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn newest_offers(c: &Connection, device: &DeviceId) -> Result<Vec<Offer>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT p.program, b.generation, b.sha256, b.size FROM programs p JOIN bundles b
         ON b.device = p.device AND b.key = p.key AND b.generation = p.generation WHERE p.device = ?",
    )?;
    let mut newest: BTreeMap<String, Offer> = BTreeMap::new();
    let own =
        query.query_map([device.as_str()], offer_row)?.map(|row| row?).collect::<Result<Vec<_>, _>>()?;
    for offer in own.into_iter().chain(super::rollouts::offers(c, device)?) {
        let key = offer.program.key();
        if newest.get(&key).is_none_or(|other| other.generation < offer.generation) {
            newest.insert(key, offer);
        }
    }
    let mut reported =
        c.prepare_cached("SELECT reported_generation FROM programs WHERE device = ? AND key = ?")?;
    let mut offers = Vec::with_capacity(newest.len());
    for (key, offer) in newest {
        let reported: i64 = reported.query_row(params![device.as_str(), key], |row| row.get(0))?;
        if offer.generation >= uint(reported) {
            offers.push(offer);
        }
    }
    Ok(offers)
}

/// Notes what became of a bundle. Reports about programs that never sent windows are ignored.
///
/// # Errors
/// When the database fails.
pub fn put_report(
    c: &Connection,
    device: &DeviceId,
    report: &BundleReport,
    now_ms: u64,
) -> Result<(), StoreError> {
    super::seen(c, device, now_ms)?;
    c.execute(
        "UPDATE programs SET reported_generation = ?, refused = ? WHERE device = ? AND key = ?",
        params![int(report.generation), report.refused, device.as_str(), report.program.key()],
    )?;
    super::rollouts::put_rollout_report(c, device, report, now_ms)
}
