//! Devices: whose certificates may connect, in which group they are, and what they last said about themselves.

use std::collections::BTreeSet;

use super::sql::{Connection, OptionalExtension as _, params};

use super::{StoreError, certificates, int, uint};
use crate::counters::Counters;
use crate::names::{DeviceId, GroupId, Tag};
use crate::pki::Signed;

/// When a device was seen is written down at most this often.
const SEEN_EVERY_MS: u64 = 1000;

/// Whether a certificate may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It holds the key that the device was enrolled with.
    Yes,
    /// The device was enrolled again since, with another key.
    Replaced,
    /// Somebody said that this device may not connect any more.
    Revoked,
    /// No such device.
    No,
}

/// Whether a certificate with this key may connect as the device.
///
/// # Errors
/// When the database fails.
pub fn known(c: &Connection, device: &DeviceId, key_sha256: [u8; 32]) -> Result<Known, StoreError> {
    let stored = c
        .prepare_cached("SELECT key, revoked_ms FROM devices WHERE id = ?")?
        .query_row([device.as_str()], |row| Ok((row.get::<Option<Vec<u8>>>(0)?, row.get::<i64>(1)?)))
        .optional()?;
    Ok(match stored {
        None => Known::No,
        Some((_, revoked_ms)) if revoked_ms > 0 => Known::Revoked,
        Some((Some(key), _)) if key == key_sha256 => Known::Yes,
        Some(_) => Known::Replaced,
    })
}

/// Whether messages of a device are taken whose certificate somebody else checked.
///
/// # Errors
/// When the database fails.
pub fn admitted(c: &Connection, device: &DeviceId) -> Result<Known, StoreError> {
    let mut query = c.prepare_cached("SELECT revoked_ms FROM devices WHERE id = ?")?;
    let revoked_ms = query.query_row([device.as_str()], |row| row.get::<i64>(0)).optional()?;
    Ok(match revoked_ms {
        None => Known::No,
        Some(0) => Known::Yes,
        Some(_) => Known::Revoked,
    })
}

/// Remembers the newest certificate of a device that holds its key.
///
/// # Errors
/// When the database fails.
pub fn renewed(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    signed: &Signed,
    now_s: u64,
) -> Result<Known, StoreError> {
    let known = known(c, device, signed.key_sha256)?;
    if known == Known::Yes {
        c.prepare_cached("UPDATE devices SET certificate = ?, ends_s = ? WHERE id = ?")?.execute(params![
            signed.sha256,
            int(signed.ends_unix_s),
            device.as_str()
        ])?;
        certificates::add(c, counters, device, signed, now_s)?;
    }
    Ok(known)
}

/// Remembers that the device was there.
///
/// # Errors
/// [`StoreError::Revoked`] when it may not be: whatever it sent is not kept. When the database fails.
pub fn seen(c: &Connection, device: &DeviceId, now_ms: u64) -> Result<(), StoreError> {
    let seen_ms = c
        .prepare_cached("SELECT seen_ms FROM devices WHERE id = ? AND revoked_ms = 0")?
        .query_row([device.as_str()], |row| row.get(0).map(uint))
        .optional()?
        .ok_or(StoreError::Revoked)?;
    // Under load this is asked thousands of times a second.
    if now_ms.abs_diff(seen_ms) >= SEEN_EVERY_MS {
        c.prepare_cached("UPDATE devices SET seen_ms = ? WHERE id = ?")?
            .execute(params![int(now_ms), device.as_str()])?;
    }
    Ok(())
}

/// Keeps the newest heartbeat, as the bytes the device sent.
///
/// # Errors
/// As [`seen`].
pub fn put_heartbeat(c: &Connection, device: &DeviceId, raw: &[u8], now_ms: u64) -> Result<(), StoreError> {
    seen(c, device, now_ms)?;
    c.prepare_cached("UPDATE devices SET heartbeat_ms = ? WHERE id = ?")?
        .execute(params![int(now_ms), device.as_str()])?;
    c.prepare_cached(
        "INSERT INTO heartbeats(device, body) VALUES (?1, ?2) ON CONFLICT(device) DO UPDATE SET body = ?2",
    )?
    .execute(params![device.as_str(), raw])?;
    Ok(())
}

/// From now on nothing of this device is taken, and tokens for it are worth nothing. `false` when there is none.
///
/// # Errors
/// When the database fails.
pub fn revoke(c: &Connection, device: &DeviceId, now_ms: u64) -> Result<bool, StoreError> {
    c.execute("DELETE FROM tokens WHERE device = ?", [device.as_str()])?;
    certificates::withdraw(c, device, None, now_ms / 1000)?;
    let revoked = "UPDATE devices SET revoked_ms = ? WHERE id = ? AND revoked_ms = 0";
    let changed = c.execute(revoked, params![int(now_ms), device.as_str()])?;
    if changed > 0 {
        return Ok(true);
    }
    let there = "SELECT count(*) FROM devices WHERE id = ?";
    Ok(c.query_row(there, [device.as_str()], |row| row.get::<i64>(0))? > 0)
}

/// The group that a device is in; `None` when there is no such device.
///
/// # Errors
/// When the database fails.
pub fn group_of(c: &Connection, device: &str) -> Result<Option<String>, StoreError> {
    let mut query = c.prepare_cached("SELECT grp FROM devices WHERE id = ?")?;
    Ok(query.query_row([device], |row| row.get(0)).optional()?)
}

/// Gives a device these tags in place of those that it had; `false` when there is no such device.
///
/// # Errors
/// When the database fails.
pub fn set_tags(c: &Connection, device: &DeviceId, tags: &BTreeSet<Tag>) -> Result<bool, StoreError> {
    let text: String = tags.iter().map(|tag| format!(" {tag}")).chain([" ".to_owned()]).collect();
    Ok(c.execute("UPDATE devices SET tags = ? WHERE id = ?", params![text, device.as_str()])? > 0)
}

/// Puts a device into a group, whose configuration it is asked to use; `false` when there is no such device.
///
/// # Errors
/// When the database fails.
pub fn set_group(
    c: &Connection,
    device: &DeviceId,
    group: &GroupId,
    now_ms: u64,
) -> Result<bool, StoreError> {
    let set = "UPDATE devices SET grp = ? WHERE id = ?";
    let is_there = c.execute(set, params![group.as_str(), device.as_str()])? > 0;
    if is_there {
        super::orders::configure(c, device, group, false, now_ms)?;
    }
    Ok(is_there)
}
