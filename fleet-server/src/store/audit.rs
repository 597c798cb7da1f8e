//! Who did what: every change that a person or a program asked for, and every enrolment.

use super::sql::{Connection, params};

use super::{StoreError, int, uint};
use crate::counters::{Counter, Counters};

/// One entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// Counts up.
    pub id: u64,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// Whose token was used, or `local` for a command on the server itself.
    pub who: String,
    /// From where: an address, or empty for a command.
    pub from: String,
    /// e.g. `device.revoke`.
    pub action: String,
    /// To what, e.g. the device's name.
    pub target: String,
    /// What else there is to know.
    pub detail: String,
}

/// What became of something that was asked for.
pub trait Change {
    /// Whether anything was changed, and is to be in the audit log.
    fn is_done(&self) -> bool;
}

impl Change for bool {
    fn is_done(&self) -> bool {
        *self
    }
}

/// Something that can be refused for a reason.
impl<T: Change, E> Change for Result<T, E> {
    fn is_done(&self) -> bool {
        self.as_ref().is_ok_and(Change::is_done)
    }
}

/// The id of something that was made.
impl Change for Option<u64> {
    fn is_done(&self) -> bool {
        self.is_some()
    }
}

/// Adds an entry, whose id is not used; the oldest makes room.
///
/// # Errors
/// When the database fails.
pub fn put_audit(
    c: &Connection,
    counters: &Counters,
    row: &AuditRow,
    audit_max: u32,
) -> Result<(), StoreError> {
    let mut insert = c.prepare_cached(
        "INSERT INTO audit(unix_ms, who, source, action, target, detail) VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
    )?;
    let values = params![int(row.unix_ms), row.who, row.from, row.action, row.target, row.detail];
    let id: i64 = insert.query_row(values, |row| row.get(0))?;
    let mut drop = c.prepare_cached("DELETE FROM audit WHERE id <= ?")?;
    let dropped = drop.execute([id - i64::from(audit_max)])?;
    counters.add(Counter::AuditDropped, dropped as u64);
    Ok(())
}

/// Entries, the newest first: `limit` of those before `before`.
///
/// # Errors
/// When the database fails.
pub fn audit(c: &Connection, before: Option<u64>, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT id, unix_ms, who, source, action, target, detail FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?",
    )?;
    let rows = query.query_map(params![before.map_or(i64::MAX, int), limit], |row| {
        Ok(AuditRow {
            id: uint(row.get(0)?),
            unix_ms: uint(row.get(1)?),
            who: row.get(2)?,
            from: row.get(3)?,
            action: row.get(4)?,
            target: row.get(5)?,
            detail: row.get(6)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
