//! Bundles for many devices: what they are trained from, and the bundles themselves.

use super::sql::{Connection, OptionalExtension as _, Row, params};
use models::bundle::sha256;
use models::program::ProgramId;
use models::wire::{Offer, TrainingWindow};

use super::alarmed::accepted;
use super::audit::Change;
use super::bundles::StoredWindows;
use super::{StoreError, int, uint};
use crate::names::GroupId;

/// Baselines of many devices that are kept. One more is refused until one is removed.
pub const BASELINES_MAX: u64 = 1000;

/// The devices that a baseline is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Those of a group.
    Group(GroupId),
    /// All.
    Fleet,
}

impl Scope {
    /// The group's name; `None` for all devices.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        match self {
            Self::Group(group) => Some(group.as_str()),
            Self::Fleet => None,
        }
    }
}

/// A baseline as it is listed.
#[derive(Clone, Debug)]
pub struct BaselineRow {
    /// Counts up.
    pub id: u64,
    /// The group it is for; `None` for all devices.
    pub group: Option<String>,
    /// [`ProgramId::key`].
    pub key: String,
    /// Which program.
    pub program: ProgramId,
    /// Counts up per program, over all devices.
    pub generation: u64,
    /// Of the bundle, bytes.
    pub size: u32,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// Who asked for it.
    pub by: String,
    /// From how many windows.
    pub windows: u64,
    /// Of how many devices.
    pub devices: u64,
}

/// A baseline that was just made.
#[derive(Clone, Debug)]
pub struct NewBaseline {
    /// The devices it is for.
    pub scope: Scope,
    /// Which program.
    pub program: ProgramId,
    /// Its generation.
    pub generation: u64,
    /// Who asked for it.
    pub by: String,
    /// From how many windows.
    pub windows: u64,
    /// Of how many devices.
    pub devices: u64,
    /// The sealed bundle.
    pub bytes: Vec<u8>,
}

/// What became of the wish to remove a baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone, with the rollouts that ended badly.
    Done,
    /// There was none.
    Missing,
    /// Devices use it, or are about to.
    InUse,
}

impl Change for Removed {
    fn is_done(&self) -> bool {
        *self == Self::Done
    }
}

/// The generation after every one that any device ever had of this program.
///
/// # Errors
/// When the database fails.
pub(super) fn next_generation(c: &Connection, key: &str) -> Result<u64, StoreError> {
    let highest = c.query_row(
        "SELECT max(coalesce((SELECT max(max(generation, reported_generation, floor)) FROM programs WHERE key = ?1), 0),
             coalesce((SELECT max(generation) FROM baselines WHERE key = ?1), 0))",
        [key],
        |row| row.get(0),
    )?;
    Ok(uint(highest) + 1)
}

/// Everything needed to train one program of many devices, and of how many: as much of each, and not more than `max` together.
/// `None` when no device has windows of it.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn windows_of_many(
    c: &Connection,
    scope: &Scope,
    key: &str,
    max: u32,
) -> Result<Option<(StoredWindows, u64)>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT p.device, p.program, p.total FROM programs p JOIN devices d ON d.id = p.device
         WHERE p.key = ?1 AND d.revoked_ms = 0 AND (CAST(?2 AS TEXT) IS NULL OR d.grp = ?2) AND p.total > 0 ORDER BY p.device",
    )?;
    let rows = query.query_map(params![key, scope.group()], |row| {
        Ok((row.get::<String>(0)?, row.get::<Vec<u8>>(1)?, uint(row.get(2)?)))
    })?;
    let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
    let Some((_, program, _)) = rows.first() else { return Ok(None) };
    let program = postcard::from_bytes(program).map_err(StoreError::Damaged)?;
    let total = rows.iter().map(|(_, _, total)| total).sum();
    let each = (u64::from(max) / rows.len() as u64).max(1);
    let mut query = c.prepare_cached(
        "SELECT body FROM (SELECT id, body FROM windows WHERE device = ? AND key = ? ORDER BY id DESC LIMIT ?)
         ORDER BY id",
    )?;
    let (mut windows, mut devices) = (Vec::new(), 0);
    for (device, _, _) in rows.iter().take(max as usize) {
        let bodies = query.query_map(params![device, key, int(each)], |row| row.get::<Vec<u8>>(0))?;
        let before = windows.len();
        for body in bodies {
            let mut window: TrainingWindow = postcard::from_bytes(&body?).map_err(StoreError::Damaged)?;
            window.run = run_of(device, window.run);
            windows.push(window);
        }
        devices += u64::from(windows.len() > before);
    }
    let generation = next_generation(c, key)? - 1;
    let of_device = |(device, window): (String, TrainingWindow)| {
        let run = run_of(&device, window.run);
        TrainingWindow { run, ..window }
    };
    let accepted = accepted(c, key, None, scope.group())?.into_iter().map(of_device).collect();
    Ok(Some((StoredWindows { program, generation, total, windows, accepted }, devices)))
}

/// Runs of different devices are different runs.
fn run_of(device: &str, run: u64) -> u64 {
    let mut text = run.to_le_bytes().to_vec();
    text.extend_from_slice(device.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&sha256(&text)[..8]);
    u64::from_le_bytes(first)
}

/// Stores a baseline; `None` when there are as many as may be.
///
/// # Errors
/// When the database fails, e.g. because that generation exists.
pub fn put_baseline(c: &Connection, new: &NewBaseline, now_ms: u64) -> Result<Option<u64>, StoreError> {
    let there = c.query_row("SELECT count(*) FROM baselines", [], |row| row.get(0).map(uint))?;
    if there >= BASELINES_MAX {
        return Ok(None);
    }
    let program = postcard::to_stdvec(&new.program).map_err(StoreError::Damaged)?;
    let id = c.query_row(
        "INSERT INTO baselines(grp, key, program, generation, sha256, size, created_ms, by, windows, devices, body)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        params![
            new.scope.group(),
            new.program.key(),
            program,
            int(new.generation),
            sha256(&new.bytes),
            int(new.bytes.len() as u64),
            int(now_ms),
            new.by,
            int(new.windows),
            int(new.devices),
            new.bytes
        ],
        |row| row.get(0),
    )?;
    Ok(Some(uint(id)))
}

const BASELINE: &str =
    "SELECT id, grp, key, program, generation, size, created_ms, by, windows, devices FROM baselines";

/// Baselines, the newest first.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn baselines(c: &Connection) -> Result<Vec<BaselineRow>, StoreError> {
    let mut query = c.prepare_cached(&format!("{BASELINE} ORDER BY id DESC"))?;
    let mut rows = query.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(baseline_row(&row)?);
    }
    Ok(found)
}

/// One of them.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn baseline(c: &Connection, id: u64) -> Result<Option<BaselineRow>, StoreError> {
    let mut query = c.prepare_cached(&format!("{BASELINE} WHERE id = ?"))?;
    let mut rows = query.query([int(id)])?;
    rows.next()?.map(|row| baseline_row(&row)).transpose()
}

/// What devices are offered of a baseline.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn offer_of(c: &Connection, baseline: u64) -> Result<Option<Offer>, StoreError> {
    let mut query =
        c.prepare_cached("SELECT program, generation, sha256, size FROM baselines WHERE id = ?")?;
    query.query_row([int(baseline)], offer_row).optional()?.transpose()
}

/// Columns `program, generation, sha256, size` as an offer.
pub(super) fn offer_row(row: &Row<'_>) -> super::sql::Result<Result<Offer, StoreError>> {
    let (program, generation, sha256, size): (Vec<u8>, i64, _, _) =
        (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    let offer = |program| Offer { program, generation: uint(generation), sha256, size };
    Ok(postcard::from_bytes(&program).map(offer).map_err(StoreError::Damaged))
}

/// Removes a baseline that no device uses, with the rollouts that did not come to their end.
///
/// # Errors
/// When the database fails.
pub fn remove_baseline(c: &Connection, id: u64) -> Result<Removed, StoreError> {
    let used = "SELECT 1 FROM rollouts WHERE baseline = ? AND state <> 'rolled_back'";
    if c.prepare_cached(used)?.exists([int(id)])? {
        return Ok(Removed::InUse);
    }
    c.execute(
        "DELETE FROM rollout_devices WHERE rollout IN (SELECT id FROM rollouts WHERE baseline = ?)",
        [int(id)],
    )?;
    c.execute("DELETE FROM rollouts WHERE baseline = ?", [int(id)])?;
    let gone = c.execute("DELETE FROM baselines WHERE id = ?", [int(id)])?;
    Ok(if gone > 0 { Removed::Done } else { Removed::Missing })
}

fn baseline_row(row: &Row<'_>) -> Result<BaselineRow, StoreError> {
    let program: Vec<u8> = row.get(3)?;
    Ok(BaselineRow {
        id: uint(row.get(0)?),
        group: row.get(1)?,
        key: row.get(2)?,
        program: postcard::from_bytes(&program).map_err(StoreError::Damaged)?,
        generation: uint(row.get(4)?),
        size: row.get(5)?,
        created_ms: uint(row.get(6)?),
        by: row.get(7)?,
        windows: uint(row.get(8)?),
        devices: uint(row.get(9)?),
    })
}
