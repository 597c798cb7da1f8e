//! Training windows out, sealed bundles in, and what devices said about them.

use models::bundle::sha256;
use models::program::ProgramId;
use models::wire::{BundleReport, Offer, TrainingWindow};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{StoreError, int, uint};
use crate::names::DeviceId;

/// Bundles kept per device and program: the newest and the one before.
const BUNDLES_KEPT: i64 = 2;

/// What a training starts from.
#[derive(Clone, Debug)]
pub struct StoredWindows {
    /// Which program.
    pub program: ProgramId,
    /// The last generation made, 0 for none.
    pub generation: u64,
    /// All windows ever stored.
    pub total: u64,
    /// What is still there, in the order of arrival.
    pub windows: Vec<TrainingWindow>,
}

/// Everything needed to train one program of one device; `None` when it is unknown.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn windows_of(c: &Connection, device: &DeviceId, key: &str) -> Result<Option<StoredWindows>, StoreError> {
    let row = c
        .query_row(
            "SELECT program, generation, total FROM programs WHERE device = ? AND key = ?",
            params![device.as_str(), key],
            |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)),
        )
        .optional()?;
    let Some((program, generation, total)) = row else { return Ok(None) };
    let program = postcard::from_bytes(&program).map_err(StoreError::Damaged)?;
    let mut query = c.prepare_cached("SELECT body FROM windows WHERE device = ? AND key = ? ORDER BY id")?;
    let rows = query.query_map(params![device.as_str(), key], |row| row.get::<_, Vec<u8>>(0))?;
    let mut windows = Vec::new();
    for row in rows {
        windows.push(postcard::from_bytes(&row?).map_err(StoreError::Damaged)?);
    }
    Ok(Some(StoredWindows { program, generation: uint(generation), total: uint(total), windows }))
}

/// Programs with enough windows and no bundle.
///
/// # Errors
/// When the database fails.
pub fn training_candidates(
    c: &Connection,
    learn_windows: u32,
) -> Result<Vec<(String, String, u64)>, StoreError> {
    let mut query = c.prepare(
        "SELECT device, key, total FROM programs WHERE generation = 0 AND total >= ? ORDER BY total LIMIT 1000",
    )?;
    let rows = query
        .query_map([learn_windows], |row| Ok((row.get(0)?, row.get(1)?, uint(row.get::<_, i64>(2)?))))?;
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

/// The newest bundle of every program of a device.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn newest_offers(c: &Connection, device: &DeviceId) -> Result<Vec<Offer>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT p.program, b.generation, b.sha256, b.size FROM programs p JOIN bundles b
         ON b.device = p.device AND b.key = p.key AND b.generation = p.generation WHERE p.device = ?",
    )?;
    let rows = query.query_map([device.as_str()], |row| {
        Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?, row.get::<_, [u8; 32]>(2)?, row.get(3)?))
    })?;
    let mut offers = Vec::new();
    for row in rows {
        let (program, generation, sha256, size) = row?;
        let program = postcard::from_bytes(&program).map_err(StoreError::Damaged)?;
        offers.push(Offer { program, generation: uint(generation), sha256, size });
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
    Ok(())
}
