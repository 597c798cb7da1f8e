//! What devices recorded for an order, part by part, until it is whole.

use models::wire::Errand;

use super::sql::{Connection, OptionalExtension as _, params};
use super::{StoreError, int, uint};
use crate::counters::{Counter, Counters};
use crate::names::DeviceId;

/// Parts that are smaller are not stored, unless they are the last: a device must not make millions of rows.
const PART_MIN: usize = 1024;

/// How much of a capture is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureRow {
    /// Of the whole file, bytes.
    pub size: u32,
    /// Of them stored.
    pub stored: u32,
}

/// Part of a capture.
#[derive(Clone, Debug)]
pub struct CapturePart {
    /// The order that it was recorded for.
    pub order: u64,
    /// Of the whole file, bytes.
    pub size: u32,
    /// First byte.
    pub offset: u32,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Stores a part if it is the next one; gives the first byte that is not stored, `None` when nobody asked for this. A
/// capture over `max` drops the oldest.
///
/// # Errors
/// [`StoreError::Revoked`], or when the database fails or holds damaged rows.
pub fn put_part(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    part: &CapturePart,
    now_ms: u64,
    max: u32,
) -> Result<Option<u32>, StoreError> {
    super::seen(c, device, now_ms)?;
    let order = super::order(c, device, part.order)?;
    let capture = order.as_ref().and_then(|order| order.capture);
    let wanted = order.is_some_and(|order| match order.errand {
        Errand::Record { bytes_max, .. } => (1..=bytes_max).contains(&part.size),
        _ => false,
    });
    let end = u64::from(part.offset) + part.data.len() as u64;
    if !wanted || end > u64::from(part.size) {
        return Ok(None);
    }
    let stored = match capture {
        Some(CaptureRow { size, stored }) if size == part.size => stored,
        None if part.offset > 0 => return Ok(None),
        // Its first part, or another file than before.
        _ => {
            remove_capture(c, part.order)?;
            make_room(c, counters, max)?;
            let insert = "INSERT INTO captures(id, size, stored) VALUES (?, ?, 0)";
            c.prepare_cached(insert)?.execute(params![int(part.order), part.size])?;
            0
        }
    };
    let is_crumb = part.data.len() < PART_MIN && end < u64::from(part.size);
    if part.offset != stored || part.data.is_empty() || is_crumb {
        return Ok(Some(stored));
    }
    let values = params![int(part.order), part.offset, part.data];
    c.prepare_cached("INSERT INTO capture_parts(capture, at, body) VALUES (?, ?, ?)")?.execute(values)?;
    let stored = part.offset + part.data.len() as u32;
    c.prepare_cached("UPDATE captures SET stored = ? WHERE id = ?")?
        .execute(params![stored, int(part.order)])?;
    Ok(Some(stored))
}

/// The whole file; `None` when it is not there, or not whole yet.
///
/// # Errors
/// When the database fails.
pub fn capture(c: &Connection, device: &DeviceId, order: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let size = c
        .prepare_cached(
            "SELECT c.size FROM captures c JOIN orders o ON o.id = c.id
             WHERE o.device = ? AND c.id = ? AND c.stored = c.size",
        )?
        .query_row(params![device.as_str(), int(order)], |row| row.get::<i64>(0))
        .optional()?;
    let Some(size) = size else { return Ok(None) };
    let mut whole = Vec::with_capacity(uint(size) as usize);
    let mut parts = c.prepare_cached("SELECT body FROM capture_parts WHERE capture = ? ORDER BY at")?;
    for part in parts.query_map([int(order)], |row| row.get::<Vec<u8>>(0))? {
        whole.extend(part?);
    }
    Ok(Some(whole))
}

/// Removes a capture of a device, whole or not; `false` when there is none.
///
/// # Errors
/// When the database fails.
pub fn drop_capture(c: &Connection, device: &DeviceId, order: u64) -> Result<bool, StoreError> {
    let is_of_it = super::order(c, device, order)?.is_some_and(|order| order.capture.is_some());
    if is_of_it {
        remove_capture(c, order)?;
    }
    Ok(is_of_it)
}

/// Drops captures that were asked for before this time.
pub(super) fn drop_older_captures(
    c: &Connection,
    counters: &Counters,
    before_ms: u64,
) -> Result<(), StoreError> {
    let old = "SELECT c.id FROM captures c JOIN orders o ON o.id = c.id WHERE o.created_ms < ?";
    drop_those(c, counters, old, int(before_ms))
}

fn make_room(c: &Connection, counters: &Counters, max: u32) -> Result<(), StoreError> {
    // With the one that comes.
    let oldest = "SELECT id FROM captures ORDER BY id DESC LIMIT 1000000 OFFSET ?";
    drop_those(c, counters, oldest, i64::from(max) - 1)
}

fn drop_those(c: &Connection, counters: &Counters, select: &str, value: i64) -> Result<(), StoreError> {
    let mut query = c.prepare_cached(select)?;
    let ids: Vec<i64> = query.query_map([value], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for id in ids {
        remove_capture(c, uint(id))?;
        counters.bump(Counter::CapturesDropped);
    }
    Ok(())
}

pub(super) fn remove_capture(c: &Connection, order: u64) -> Result<(), StoreError> {
    c.prepare_cached("DELETE FROM capture_parts WHERE capture = ?")?.execute([int(order)])?;
    c.prepare_cached("DELETE FROM captures WHERE id = ?")?.execute([int(order)])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{join, on_both};
    use super::super::{order, put_order};
    use super::*;

    const MIB: u32 = 1 << 20;

    fn device(name: &str) -> DeviceId {
        DeviceId::parse(name).unwrap()
    }

    fn ordered(c: &Connection, errand: &Errand) -> u64 {
        put_order(c, &device("a"), errand, "anna", 10, Some(100)).unwrap().unwrap()
    }

    fn put(c: &Connection, name: &str, order: u64, size: u32, (offset, len): (u32, u32)) -> Option<u32> {
        let data = (offset..offset + len).map(|n| n as u8).collect();
        let part = CapturePart { order, size, offset, data };
        put_part(c, &Counters::default(), &device(name), &part, 20, 2).unwrap()
    }

    #[test]
    fn a_capture_comes_in_parts_and_goes_on_where_it_was() {
        on_both(|empty| {
            let c = empty();
            join(&c, &["a", "b"]);
            let id = ordered(&c, &Errand::Record { for_s: 60, bytes_max: MIB });
            let whole = || capture(&c, &device("a"), id).unwrap();
            assert_eq!(put(&c, "a", id, 5000, (0, 2000)), Some(2000));
            assert_eq!(put(&c, "a", id, 5000, (0, 2000)), Some(2000), "it came twice");
            assert_eq!(put(&c, "a", id, 5000, (4000, 1000)), Some(2000), "one between is missing");
            assert_eq!(put(&c, "a", id, 5000, (2000, 1000)), Some(2000), "it is too small");
            assert!(whole().is_none());
            assert_eq!(
                order(&c, &device("a"), id).unwrap().unwrap().capture,
                Some(CaptureRow { size: 5000, stored: 2000 })
            );
            assert_eq!(put(&c, "a", id, 5000, (2000, 2000)), Some(4000));
            assert_eq!(put(&c, "a", id, 5000, (4000, 1000)), Some(5000));
            assert_eq!(whole().unwrap(), (0..5000).map(|n| n as u8).collect::<Vec<u8>>());
            assert!(capture(&c, &device("b"), id).unwrap().is_none(), "it is of another device");
            // Another file under the same order is taken anew.
            assert_eq!(put(&c, "a", id, 30, (0, 30)), Some(30));
            assert_eq!(whole().unwrap().len(), 30);
            assert!(!drop_capture(&c, &device("b"), id).unwrap());
            assert!(drop_capture(&c, &device("a"), id).unwrap());
            assert!(!drop_capture(&c, &device("a"), id).unwrap());
            assert_eq!(put(&c, "a", id, 30, (10, 10)), None, "it was removed while it came");
        });
    }

    #[test]
    fn what_nobody_asked_for_is_not_taken_and_the_oldest_makes_room() {
        on_both(|empty| {
            let c = empty();
            join(&c, &["a", "b"]);
            let record = Errand::Record { for_s: 60, bytes_max: MIB };
            let (doctor, first) = (ordered(&c, &Errand::Doctor), ordered(&c, &record));
            assert_eq!(put(&c, "a", doctor, 10, (0, 10)), None, "it was no order to record");
            assert_eq!(put(&c, "b", first, 10, (0, 10)), None, "it is for another device");
            assert_eq!(put(&c, "a", first + 100, 10, (0, 10)), None);
            assert_eq!(put(&c, "a", first, MIB + 1, (0, 10)), None, "larger than asked for");
            assert_eq!(put(&c, "a", first, 10, (0, 11)), None, "beyond its end");
            assert_eq!(put(&c, "a", first, 0, (0, 0)), None, "nothing");
            let others = [ordered(&c, &record), ordered(&c, &record)];
            for id in [first, others[0], others[1]] {
                assert_eq!(put(&c, "a", id, 10, (0, 10)), Some(10));
            }
            let here = |id| capture(&c, &device("a"), id).unwrap().is_some();
            assert_eq!([here(first), here(others[0]), here(others[1])], [false, true, true]);
            let counters = Counters::default();
            drop_older_captures(&c, &counters, 11).unwrap();
            assert_eq!((here(others[1]), counters.get(Counter::CapturesDropped)), (false, 2));
            let parts: i64 = c.query_row("SELECT count(*) FROM capture_parts", [], |row| row.get(0)).unwrap();
            assert_eq!(parts, 0);
        });
    }
}
