//! Devices, their certificates and tickets, and what they last said about themselves.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{StoreError, int};
use crate::device::DeviceId;

/// Tickets that may wait; when as many are open, no more are made.
const TICKETS_MAX: i64 = 10_000;

/// Whether a certificate may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is the device's newest.
    Yes,
    /// The device was enrolled again since.
    Replaced,
    /// No such device.
    No,
}

/// What became of an enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrol {
    /// The ticket is used up and the device known.
    Done,
    /// Never made, or for another device.
    NoSuchTicket,
    /// Used before.
    Used,
    /// Too late.
    Expired,
}

/// Stores a ticket's hash; `false` when too many are open.
///
/// # Errors
/// When the database fails.
pub fn add_ticket(
    c: &Connection,
    hash: [u8; 32],
    device: &DeviceId,
    expires_s: u64,
    now_s: u64,
) -> Result<bool, StoreError> {
    // A used ticket is remembered until it expires, so that a second use can be named as such.
    c.execute("DELETE FROM tickets WHERE expires_s < ?", [int(now_s.saturating_sub(7 * 86_400))])?;
    let open: i64 = c.query_row("SELECT count(*) FROM tickets", [], |row| row.get(0))?;
    if open >= TICKETS_MAX {
        return Ok(false);
    }
    c.execute(
        "INSERT INTO tickets(hash, device, expires_s) VALUES (?, ?, ?)",
        params![hash, device.as_str(), int(expires_s)],
    )?;
    Ok(true)
}

/// Uses a ticket up and remembers the device's certificate, both or neither.
///
/// # Errors
/// When the database fails.
pub fn enrol(
    c: &Connection,
    hash: [u8; 32],
    device: &DeviceId,
    certificate: [u8; 32],
    now_ms: u64,
) -> Result<Enrol, StoreError> {
    let found = c
        .query_row("SELECT device, expires_s, used_ms FROM tickets WHERE hash = ?", [&hash[..]], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<i64>>(2)?))
        })
        .optional()?;
    match found {
        None => return Ok(Enrol::NoSuchTicket),
        Some((owner, _, _)) if owner != device.as_str() => return Ok(Enrol::NoSuchTicket),
        Some((_, _, Some(_))) => return Ok(Enrol::Used),
        Some((_, expires_s, None)) if expires_s <= int(now_ms / 1000) => return Ok(Enrol::Expired),
        Some(_) => {}
    }
    c.execute("UPDATE tickets SET used_ms = ? WHERE hash = ?", params![int(now_ms), hash])?;
    c.execute(
        "INSERT INTO devices(id, certificate, enrolled_ms) VALUES (?1, ?2, ?3)
         ON CONFLICT(id) DO UPDATE SET certificate = ?2, enrolled_ms = ?3",
        params![device.as_str(), certificate, int(now_ms)],
    )?;
    Ok(Enrol::Done)
}

/// Whether this certificate of the device may connect.
///
/// # Errors
/// When the database fails.
pub fn known(c: &Connection, device: &DeviceId, certificate: [u8; 32]) -> Result<Known, StoreError> {
    let stored = c
        .prepare_cached("SELECT certificate FROM devices WHERE id = ?")?
        .query_row([device.as_str()], |row| row.get::<_, Vec<u8>>(0))
        .optional()?;
    Ok(match stored {
        None => Known::No,
        Some(stored) if stored == certificate => Known::Yes,
        Some(_) => Known::Replaced,
    })
}

/// Remembers that the device was there.
///
/// # Errors
/// When the database fails.
pub fn seen(c: &Connection, device: &DeviceId, now_ms: u64) -> Result<(), StoreError> {
    c.prepare_cached("UPDATE devices SET seen_ms = ? WHERE id = ?")?
        .execute(params![int(now_ms), device.as_str()])?;
    Ok(())
}

/// Keeps the newest heartbeat, as the bytes the device sent.
///
/// # Errors
/// When the database fails.
pub fn put_heartbeat(c: &Connection, device: &DeviceId, raw: &[u8], now_ms: u64) -> Result<(), StoreError> {
    c.prepare_cached("UPDATE devices SET heartbeat = ?, heartbeat_ms = ?, seen_ms = ?2 WHERE id = ?")?
        .execute(params![raw, int(now_ms), device.as_str()])?;
    Ok(())
}
