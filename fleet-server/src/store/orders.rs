//! What people ask of devices, and the configurations of groups, which reach devices as orders too.
//!
//! An order waits until its device answered or its time is over. A device that comes into a group, or is enrolled
//! anew, is asked to use the group's configuration.

use models::program::ProgramId;
use models::wire::{Answer, Errand, Order};

use super::captures::{CaptureRow, remove_capture};
use super::sql::{Connection, OptionalExtension as _, Row, params};
use super::{StoreError, int, uint};
use crate::names::{DeviceId, GroupId};

/// Orders that wait for one device; one more is refused.
const ORDERS_MAX: i64 = 64;

/// Orders kept per device; one more drops the oldest of those that do not wait.
const KEPT_MAX: i64 = 200;

/// Versions kept per group; one more drops the oldest.
const VERSIONS_MAX: i64 = 100;

/// An order as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderRow {
    /// Counts up over the fleet.
    pub id: u64,
    /// For whom.
    pub device: String,
    /// What is to be done.
    pub errand: Errand,
    /// Who asked.
    pub by: String,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// Until when it is repeated; `None` for ever.
    pub expires_ms: Option<u64>,
    /// What the device said.
    pub answer: Option<Answered>,
    /// What it recorded.
    pub capture: Option<CaptureRow>,
}

/// What a device said to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// When it came, milliseconds since 1970.
    pub received_ms: u64,
    /// Carried out, not refused.
    pub done: bool,
    /// What was found, what came of it, or why it was refused.
    pub text: String,
}

/// One version of a group's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurationRow {
    /// Counts up over the fleet.
    pub version: u64,
    /// Whose.
    pub group: String,
    /// TOML.
    pub text: String,
    /// Who made it.
    pub by: String,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
}

/// How far a group's devices are with its configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Devices of the group that are not revoked.
    pub devices: u64,
    /// Use it.
    pub applied: u64,
    /// Refused it.
    pub refused: u64,
}

/// Why a program cannot be learned anew on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRelearned {
    /// The device has no such program.
    Unknown,
    /// Its baseline is one of many devices, which it would be offered again.
    OfMany,
}

const ORDER: &str =
    "SELECT o.id, device, body, by, created_ms, expires_ms, answered_ms, done, answer, c.size, c.stored
     FROM orders o LEFT JOIN captures c ON c.id = o.id";

/// Adds an order; `None` when too many wait for the device.
///
/// # Errors
/// When the database fails.
pub fn put_order(
    c: &Connection,
    device: &DeviceId,
    errand: &Errand,
    by: &str,
    now_ms: u64,
    expires_ms: Option<u64>,
) -> Result<Option<u64>, StoreError> {
    let mut count = c.prepare_cached(
        "SELECT count(*) FROM orders WHERE device = ? AND answered_ms IS NULL AND (expires_ms IS NULL OR expires_ms > ?)",
    )?;
    let waiting: i64 = count.query_row(params![device.as_str(), int(now_ms)], |row| row.get(0))?;
    if waiting >= ORDERS_MAX {
        return Ok(None);
    }
    insert(c, device.as_str(), errand, by, now_ms, expires_ms).map(Some)
}

fn insert(
    c: &Connection,
    device: &str,
    errand: &Errand,
    by: &str,
    now_ms: u64,
    expires_ms: Option<u64>,
) -> Result<u64, StoreError> {
    let body = postcard::to_stdvec(errand).map_err(StoreError::Damaged)?;
    let version = match errand {
        Errand::Configure { version, .. } => Some(int(*version)),
        Errand::Doctor
        | Errand::LogLevel { .. }
        | Errand::Relearn { .. }
        | Errand::Quarantine { .. }
        | Errand::EndQuarantine
        | Errand::Record { .. }
        | Errand::Processes
        | Errand::Process { .. }
        | Errand::Update(_)
        | Errand::EndUpdate => None,
    };
    let mut insert = c.prepare_cached(
        "INSERT INTO orders(device, body, version, by, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
    )?;
    let values = params![device, body, version, by, int(now_ms), expires_ms.map(int)];
    let id: i64 = insert.query_row(values, |row| row.get(0))?;
    let old = "device = ?1 AND (answered_ms IS NOT NULL OR expires_ms <= ?2)
         AND id <= (SELECT id FROM orders WHERE device = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?3)";
    let values = params![device, int(now_ms), KEPT_MAX];
    let recorded = format!("SELECT id FROM captures WHERE id IN (SELECT id FROM orders WHERE {old})");
    let mut recorded = c.prepare_cached(&recorded)?;
    let recorded: Vec<i64> = recorded.query_map(values, |row| row.get(0))?.collect::<Result<_, _>>()?;
    recorded.into_iter().try_for_each(|id| remove_capture(c, uint(id)))?;
    c.prepare_cached(&format!("DELETE FROM orders WHERE {old}"))?.execute(values)?;
    Ok(uint(id))
}

/// Asks a device to learn a program anew; `None` when too many orders wait.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn put_relearn(
    c: &Connection,
    device: &DeviceId,
    key: &str,
    by: &str,
    now_ms: u64,
    expires_ms: u64,
) -> Result<Result<Option<u64>, NotRelearned>, StoreError> {
    let program: Option<Vec<u8>> = c
        .prepare_cached("SELECT program FROM programs WHERE device = ? AND key = ?")?
        .query_row(params![device.as_str(), key], |row| row.get(0))
        .optional()?;
    let Some(program) = program else { return Ok(Err(NotRelearned::Unknown)) };
    if super::rollouts::offers(c, device)?.iter().any(|offer| offer.program.key() == key) {
        return Ok(Err(NotRelearned::OfMany));
    }
    let program: ProgramId = postcard::from_bytes(&program).map_err(StoreError::Damaged)?;
    put_order(c, device, &Errand::Relearn { program }, by, now_ms, Some(expires_ms)).map(Ok)
}

/// Takes back an order that waits; `false` when there is none, or it is a configuration.
///
/// # Errors
/// When the database fails.
pub fn cancel_order(c: &Connection, device: &DeviceId, id: u64) -> Result<bool, StoreError> {
    let mut delete = c.prepare_cached(
        "DELETE FROM orders WHERE device = ? AND id = ? AND answered_ms IS NULL AND version IS NULL",
    )?;
    Ok(delete.execute(params![device.as_str(), int(id)])? > 0)
}

/// Orders of a device, the newest first: `limit` of those before `before`.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn orders(
    c: &Connection,
    device: &DeviceId,
    before: Option<u64>,
    limit: u32,
) -> Result<Vec<OrderRow>, StoreError> {
    let sql = format!("{ORDER} WHERE device = ? AND o.id < ? ORDER BY o.id DESC LIMIT ?");
    rows(c, &sql, params![device.as_str(), before.map_or(i64::MAX, int), limit])
}

/// One order of a device.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn order(c: &Connection, device: &DeviceId, id: u64) -> Result<Option<OrderRow>, StoreError> {
    let sql = format!("{ORDER} WHERE device = ? AND o.id = ?");
    Ok(rows(c, &sql, params![device.as_str(), int(id)])?.pop())
}

/// What a device is to do, in order.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn orders_waiting(c: &Connection, device: &DeviceId, now_ms: u64) -> Result<Vec<Order>, StoreError> {
    let sql = format!(
        "{ORDER} WHERE device = ? AND answered_ms IS NULL AND (expires_ms IS NULL OR expires_ms > ?) ORDER BY o.id"
    );
    let rows = rows(c, &sql, params![device.as_str(), int(now_ms)])?;
    Ok(rows.into_iter().map(|row| Order { id: row.id, errand: row.errand }).collect())
}

/// Orders after the one with this id that wait, in ascending order: the first `limit`.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn orders_after(
    c: &Connection,
    after: u64,
    limit: u32,
    now_ms: u64,
) -> Result<Vec<OrderRow>, StoreError> {
    let sql = format!(
        "{ORDER} WHERE o.id > ? AND answered_ms IS NULL AND (expires_ms IS NULL OR expires_ms > ?) ORDER BY o.id LIMIT ?"
    );
    rows(c, &sql, params![int(after), int(now_ms), limit])
}

/// The id of the newest order, 0 for none.
///
/// # Errors
/// When the database fails.
pub fn newest_order(c: &Connection) -> Result<u64, StoreError> {
    let mut query = c.prepare_cached("SELECT coalesce(max(id), 0) FROM orders")?;
    Ok(query.query_row([], |row| row.get(0).map(uint))?)
}

/// Notes what became of an order; `false` when nobody waits for the answer: only the first counts.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub(super) fn put_answer(
    c: &Connection,
    device: &DeviceId,
    answer: &Answer,
    now_ms: u64,
) -> Result<bool, StoreError> {
    let order = order(c, device, answer.id)?.filter(|order| order.answer.is_none());
    let Some(order) = order else { return Ok(false) };
    c.prepare_cached("UPDATE orders SET answered_ms = ?, done = ?, answer = ? WHERE id = ?")?
        .execute(params![int(now_ms), i64::from(answer.done), answer.text, int(answer.id)])?;
    if let (Errand::Relearn { program }, true) = (order.errand, answer.done) {
        // What came before the answer was learned before it.
        forget_program(c, device, &program.key())?;
    }
    Ok(true)
}

/// Forgets what a device learned of a program, as if it were new there. Its generations go on: the device takes none that is
/// not above the last one, whatever became of it.
fn forget_program(c: &Connection, device: &DeviceId, key: &str) -> Result<(), StoreError> {
    for table in ["windows", "bundles"] {
        c.prepare_cached(&format!("DELETE FROM {table} WHERE device = ? AND key = ?"))?
            .execute(params![device.as_str(), key])?;
    }
    c.prepare_cached(
        "UPDATE programs SET floor = max(floor, generation, reported_generation), total = 0, generation = 0, trained_s = 0,
             reported_generation = 0, refused = NULL
         WHERE device = ? AND key = ?",
    )?
    .execute(params![device.as_str(), key])?;
    Ok(())
}

/// Gives a group a new configuration and asks its devices to use it.
///
/// # Errors
/// When the database fails.
pub fn put_configuration(
    c: &Connection,
    group: &GroupId,
    text: &str,
    by: &str,
    now_ms: u64,
) -> Result<u64, StoreError> {
    let mut insert_version = c.prepare_cached(
        "INSERT INTO group_configs(grp, text, by, created_ms) VALUES (?, ?, ?, ?) RETURNING id",
    )?;
    let values = params![group.as_str(), text, by, int(now_ms)];
    let version: i64 = insert_version.query_row(values, |row| row.get(0))?;
    c.prepare_cached(
        "DELETE FROM group_configs WHERE grp = ?1
         AND id <= (SELECT id FROM group_configs WHERE grp = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
    )?
    .execute(params![group.as_str(), VERSIONS_MAX])?;
    let mut devices = c.prepare_cached("SELECT id FROM devices WHERE grp = ? AND revoked_ms = 0")?;
    let devices = devices.query_map([group.as_str()], |row| row.get(0))?;
    let devices: Vec<String> = devices.collect::<Result<_, _>>()?;
    let errand = Errand::Configure { version: uint(version), text: text.to_owned() };
    for device in devices {
        replace(c, &device, &errand, by, now_ms)?;
    }
    Ok(uint(version))
}

/// The same, unless the newest version is another than the one that was seen; `None` then, and nothing is changed.
///
/// # Errors
/// When the database fails.
pub fn put_configuration_over(
    c: &Connection,
    group: &GroupId,
    over: u64,
    text: &str,
    by: &str,
    now_ms: u64,
) -> Result<Option<u64>, StoreError> {
    let newest = configurations(c, group, None, 1)?.pop().map_or(0, |row| row.version);
    if newest != over {
        return Ok(None);
    }
    put_configuration(c, group, text, by, now_ms).map(Some)
}

/// Asks a device to use the configuration of the group that it came into, unless it was asked to already.
///
/// `anew`: it may have forgotten what it was asked before.
pub(super) fn configure(
    c: &Connection,
    device: &DeviceId,
    group: &GroupId,
    anew: bool,
    now_ms: u64,
) -> Result<(), StoreError> {
    let wanted = configurations(c, group, None, 1)?.pop();
    let (version, text, by) =
        wanted.map_or((0, String::new(), String::new()), |row| (row.version, row.text, row.by));
    let last: Option<i64> = c
        .prepare_cached(
            "SELECT max(version) FROM orders WHERE id =
             (SELECT max(id) FROM orders WHERE device = ? AND version IS NOT NULL)",
        )?
        .query_row([device.as_str()], |row| row.get(0))?;
    let is_asked = last.map_or(0, uint) == version;
    if (is_asked && !anew) || (last.is_none() && version == 0) {
        return Ok(());
    }
    replace(c, device.as_str(), &Errand::Configure { version, text }, &by, now_ms)
}

/// What waits of an older configuration is of no use any more.
fn replace(c: &Connection, device: &str, errand: &Errand, by: &str, now_ms: u64) -> Result<(), StoreError> {
    c.prepare_cached("DELETE FROM orders WHERE device = ? AND answered_ms IS NULL AND version IS NOT NULL")?
        .execute([device])?;
    insert(c, device, errand, by, now_ms, None).map(drop)
}

/// Configurations of a group, the newest first: `limit` of those before `before`.
///
/// # Errors
/// When the database fails.
pub fn configurations(
    c: &Connection,
    group: &GroupId,
    before: Option<u64>,
    limit: u32,
) -> Result<Vec<ConfigurationRow>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT id, grp, text, by, created_ms FROM group_configs WHERE grp = ? AND id < ? ORDER BY id DESC LIMIT ?",
    )?;
    let rows = query.query_map(params![group.as_str(), before.map_or(i64::MAX, int), limit], |row| {
        Ok(ConfigurationRow {
            version: uint(row.get(0)?),
            group: row.get(1)?,
            text: row.get(2)?,
            by: row.get(3)?,
            created_ms: uint(row.get(4)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How far a group's devices are with one version.
///
/// # Errors
/// When the database fails.
pub fn spread(c: &Connection, group: &GroupId, version: u64) -> Result<Spread, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT count(*), coalesce(sum(CASE WHEN o.done = 1 THEN 1 ELSE 0 END), 0),
                coalesce(sum(CASE WHEN o.done = 0 THEN 1 ELSE 0 END), 0)
         FROM devices d LEFT JOIN orders o ON o.device = d.id AND o.version = ? AND o.id =
             (SELECT max(id) FROM orders WHERE device = d.id AND version IS NOT NULL)
         WHERE d.grp = ? AND d.revoked_ms = 0",
    )?;
    Ok(query.query_row(params![int(version), group.as_str()], |row| {
        Ok(Spread { devices: uint(row.get(0)?), applied: uint(row.get(1)?), refused: uint(row.get(2)?) })
    })?)
}

fn rows(c: &Connection, sql: &str, values: impl super::sql::Params) -> Result<Vec<OrderRow>, StoreError> {
    let mut query = c.prepare_cached(sql)?;
    let mut rows = query.query(values)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(row_of(&row)?);
    }
    Ok(found)
}

fn row_of(row: &Row<'_>) -> Result<OrderRow, StoreError> {
    let body: Vec<u8> = row.get(2)?;
    let answered_ms: Option<i64> = row.get(6)?;
    let answer = match answered_ms {
        None => None,
        Some(received_ms) => {
            Some(Answered { received_ms: uint(received_ms), done: row.get::<i64>(7)? > 0, text: row.get(8)? })
        }
    };
    Ok(OrderRow {
        id: uint(row.get(0)?),
        device: row.get(1)?,
        errand: postcard::from_bytes(&body).map_err(StoreError::Damaged)?,
        by: row.get(3)?,
        created_ms: uint(row.get(4)?),
        expires_ms: row.get::<Option<i64>>(5)?.map(uint),
        answer,
        capture: match (row.get::<Option<i64>>(9)?, row.get::<Option<i64>>(10)?) {
            (Some(size), Some(stored)) => {
                Some(CaptureRow { size: uint(size) as u32, stored: uint(stored) as u32 })
            }
            _ => None,
        },
    })
}

#[cfg(test)]
mod tests;
