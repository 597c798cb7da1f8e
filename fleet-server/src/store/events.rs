//! What happens to agents: told by them, or noticed here when they fall silent; and what they are asked to undo.

use super::sql::{Connection, OptionalExtension as _, Row, params};
use models::program::ProgramId;
use models::wire::{DeviceEvent, EventKind, UplinkFrame};

use super::{StoreError, bits, int, uint};
use crate::counters::{Counter, Counters};
use crate::names::DeviceId;

/// Releases that wait for one device; one more is refused.
const RELEASES_MAX: i64 = 256;

/// The kind of an event that a device fell silent.
pub(super) const SILENT: &str = "silent";
/// The kind of an event that a silent device was heard again.
pub(super) const HEARD: &str = "heard";
/// The kind of an event that two agents use one identity.
pub const TWINS: &str = "twins";
/// The kind of an event that a baseline takes for normal what is grave for any other program.
pub const GRAVE_LEARNED: &str = "grave_acts_learned";

/// What the server noticed about a device.
#[derive(Clone, Debug)]
pub struct Noticed {
    /// [`SILENT`], [`HEARD`], [`TWINS`] or [`GRAVE_LEARNED`].
    pub kind: &'static str,
    /// The program that it is about.
    pub program: Option<ProgramId>,
    /// One plain sentence.
    pub text: String,
}

impl Noticed {
    /// About the agent.
    #[must_use]
    pub fn of_agent(kind: &'static str, text: String) -> Self {
        Self { kind, program: None, text }
    }
}

/// An event as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Counts up over all devices.
    pub id: u64,
    /// Whose agent.
    pub device: String,
    /// When it was stored, milliseconds since 1970.
    pub received_ms: u64,
    /// When it was noticed, by the clock of who noticed it.
    pub unix_ms: u64,
    /// [`EventKind::name`], or that of a [`Noticed`].
    pub kind: String,
    /// Which program it is about.
    pub program: Option<ProgramId>,
    /// Which containment it is about, as numbered on the device.
    pub containment: Option<u32>,
    /// One plain sentence.
    pub text: String,
}

const EVENT: &str = "SELECT id, device, received_ms, unix_ms, kind, program, containment, text FROM events";

/// Stores what a device told, unless it is there; gives it when it is new.
pub(super) fn put_event(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    frame: &UplinkFrame,
    event: &DeviceEvent,
    now_ms: u64,
    events_max: u32,
) -> Result<Option<StoredEvent>, StoreError> {
    if let (EventKind::Released, Some(containment)) = (event.kind, event.containment) {
        c.prepare_cached("DELETE FROM releases WHERE device = ? AND containment = ?")?
            .execute(params![device.as_str(), containment])?;
    }
    let number = Some((bits(frame.epoch), int(frame.seq)));
    let event = StoredEvent {
        id: 0,
        device: device.to_string(),
        received_ms: now_ms,
        unix_ms: event.unix_ms,
        kind: event.kind.name().to_owned(),
        program: event.program.clone(),
        containment: event.containment,
        text: event.text.clone(),
    };
    insert(c, counters, number, event, events_max)
}

/// Gives the event its id; `None` when its number is there already.
fn insert(
    c: &Connection,
    counters: &Counters,
    number: Option<(i64, i64)>,
    event: StoredEvent,
    events_max: u32,
) -> Result<Option<StoredEvent>, StoreError> {
    let program = event.program.as_ref().map(postcard::to_stdvec).transpose().map_err(StoreError::Damaged)?;
    let mut insert = c.prepare_cached(
        "INSERT INTO events(device, epoch, seq, received_ms, unix_ms, kind, program, containment, text)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id",
    )?;
    let values = params![
        event.device,
        number.map(|number| number.0),
        number.map(|number| number.1),
        int(event.received_ms),
        int(event.unix_ms),
        event.kind,
        program,
        event.containment,
        event.text,
    ];
    let Some(id) = insert.query_row(values, |row| row.get::<i64>(0)).optional()? else { return Ok(None) };
    let mut drop = c.prepare_cached("DELETE FROM events WHERE id <= ?")?;
    counters.add(Counter::EventsDropped, drop.execute([id - i64::from(events_max)])? as u64);
    Ok(Some(StoredEvent { id: uint(id), ..event }))
}

/// Notes which devices were last heard before `heard_before_ms` and were not known to be silent; gives the events.
///
/// An agent that ended before its first heartbeat was heard too. A device of which nothing ever came is not silent.
///
/// # Errors
/// When the database fails.
pub fn put_silent(
    c: &Connection,
    counters: &Counters,
    heard_before_ms: u64,
    now_ms: u64,
    events_max: u32,
) -> Result<Vec<StoredEvent>, StoreError> {
    let mut query = c.prepare_cached(
        "SELECT id, CASE WHEN heartbeat_ms > seen_ms THEN heartbeat_ms ELSE seen_ms END FROM devices
         WHERE silent_ms = 0 AND seen_ms > 0 AND heartbeat_ms < ?1 AND seen_ms < ?1 LIMIT 1000",
    )?;
    let rows =
        query.query_map([int(heard_before_ms)], |row| Ok((row.get::<String>(0)?, uint(row.get(1)?))))?;
    let silent = rows.collect::<Result<Vec<_>, _>>()?;
    let mut events = Vec::new();
    for (id, heard_ms) in silent {
        let Ok(device) = DeviceId::parse(&id) else { continue };
        let minutes = now_ms.saturating_sub(heard_ms) / 60_000;
        let text = format!("no heartbeat for {minutes} minutes: the agent, the device or its link is down");
        c.prepare_cached("UPDATE devices SET silent_ms = ? WHERE id = ?")?
            .execute(params![int(now_ms), id])?;
        events.extend(put_noticed(
            c,
            counters,
            &device,
            Noticed::of_agent(SILENT, text),
            now_ms,
            events_max,
        )?);
    }
    Ok(events)
}

/// Notes that a device was heard; gives the event when it was silent before.
///
/// # Errors
/// When the database fails.
pub fn put_heard(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    now_ms: u64,
    events_max: u32,
) -> Result<Option<StoredEvent>, StoreError> {
    let silent: Option<i64> = c
        .prepare_cached("SELECT silent_ms FROM devices WHERE id = ? AND silent_ms > 0")?
        .query_row([device.as_str()], |row| row.get(0))
        .optional()?;
    let Some(silent_ms) = silent else { return Ok(None) };
    c.prepare_cached("UPDATE devices SET silent_ms = 0 WHERE id = ?")?.execute([device.as_str()])?;
    let minutes = now_ms.saturating_sub(uint(silent_ms)) / 60_000;
    let text = format!("it is heard again, {minutes} minutes after it was noticed to be silent");
    put_noticed(c, counters, device, Noticed::of_agent(HEARD, text), now_ms, events_max)
}

/// Stores what the server noticed about a device.
///
/// # Errors
/// When the database fails.
pub fn put_noticed(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    notice: Noticed,
    now_ms: u64,
    events_max: u32,
) -> Result<Option<StoredEvent>, StoreError> {
    let event = StoredEvent {
        id: 0,
        device: device.to_string(),
        received_ms: now_ms,
        unix_ms: now_ms,
        kind: notice.kind.to_owned(),
        program: notice.program,
        containment: None,
        text: notice.text,
    };
    insert(c, counters, None, event, events_max)
}

/// The id of the newest event, 0 for none.
///
/// # Errors
/// When the database fails.
pub fn newest_event(c: &Connection) -> Result<u64, StoreError> {
    let mut query = c.prepare_cached("SELECT coalesce(max(id), 0) FROM events")?;
    Ok(query.query_row([], |row| row.get(0).map(uint))?)
}

/// Events in ascending order: the first `limit` after `after`, or without it the last `limit`.
///
/// # Errors
/// When the database fails or holds damaged rows.
pub fn events(
    c: &Connection,
    after: Option<u64>,
    limit: u32,
    device: Option<&str>,
) -> Result<Vec<StoredEvent>, StoreError> {
    let order = if after.is_some() { "ASC" } else { "DESC" };
    let filter = if device.is_some() { "device = ?1" } else { "CAST(?1 AS TEXT) IS NULL" };
    let sql = format!("{EVENT} WHERE {filter} AND id > ?2 ORDER BY id {order} LIMIT ?3");
    let mut query = c.prepare_cached(&sql)?;
    let mut rows = query.query(params![device, int(after.unwrap_or(0)), limit])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(event(&row)?);
    }
    events.sort_by_key(|event| event.id);
    Ok(events)
}

fn event(row: &Row<'_>) -> Result<StoredEvent, StoreError> {
    let program: Option<Vec<u8>> = row.get(5)?;
    let program = program.map(|raw| postcard::from_bytes(&raw)).transpose().map_err(StoreError::Damaged)?;
    Ok(StoredEvent {
        id: uint(row.get(0)?),
        device: row.get(1)?,
        received_ms: uint(row.get(2)?),
        unix_ms: uint(row.get(3)?),
        kind: row.get(4)?,
        program,
        containment: row.get(6)?,
        text: row.get(7)?,
    })
}

/// Remembers that a containment is to be undone, until the device says that it was; `false` when too many wait.
///
/// # Errors
/// When the database fails.
pub fn put_release(
    c: &Connection,
    device: &DeviceId,
    containment: u32,
    now_ms: u64,
) -> Result<bool, StoreError> {
    let waiting: i64 =
        c.query_row("SELECT count(*) FROM releases WHERE device = ?", [device.as_str()], |row| row.get(0))?;
    if waiting >= RELEASES_MAX {
        return Ok(false);
    }
    c.prepare_cached("INSERT INTO releases VALUES (?, ?, ?) ON CONFLICT DO NOTHING")?.execute(params![
        device.as_str(),
        containment,
        int(now_ms)
    ])?;
    Ok(true)
}

/// What a device is asked to undo.
///
/// # Errors
/// When the database fails.
pub fn releases(c: &Connection, device: &DeviceId) -> Result<Vec<u32>, StoreError> {
    let mut query =
        c.prepare_cached("SELECT containment FROM releases WHERE device = ? ORDER BY containment")?;
    let rows = query.query_map([device.as_str()], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::super::devices::seen;
    use super::super::put_heartbeat;
    use super::super::testing::{join, on_both};
    use super::*;

    #[test]
    fn whoever_was_heard_falls_silent_also_without_a_heartbeat() {
        on_both(|empty| {
            let c = empty();
            let device = |name| DeviceId::parse(name).unwrap();
            join(&c, &["never", "once", "beating"]);
            seen(&c, &device("once"), 5000).unwrap();
            put_heartbeat(&c, &device("beating"), b"", 5000).unwrap();
            let look = |before_ms, now_ms| {
                let silent = put_silent(&c, &Counters::default(), before_ms, now_ms, 100).unwrap();
                let mut names: Vec<_> = silent.into_iter().map(|event| (event.device, event.text)).collect();
                names.sort();
                names
            };
            assert_eq!(look(5000, 10_000), []);
            put_heartbeat(&c, &device("beating"), b"", 8000).unwrap();
            let silent = look(6000, 65_000);
            assert_eq!(silent.len(), 1, "{silent:?}");
            assert!(
                silent[0].0 == "once" && silent[0].1.starts_with("no heartbeat for 1 minutes"),
                "{silent:?}"
            );
            let silent = look(9000, 68_000);
            assert!(silent.len() == 1 && silent[0].0 == "beating", "{silent:?}");
        });
    }
}
