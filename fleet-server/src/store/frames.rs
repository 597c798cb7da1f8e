//! Numbered messages: stored once, acknowledged up to the first gap.
//!
//! A device sends its outbox in order and starts again behind the last acknowledgement at each connection. So the
//! first frame of a connection is the oldest it still has: numbers below it that never came are gone, they are
//! counted as missing and the acknowledgement moves past them. A gap later in a connection only waits.

use std::sync::Arc;

use super::sql::{Connection, OptionalExtension as _, params};
use models::program::ProgramId;
use models::wire::{TrainingWindow, Uplink, UplinkFrame};

use super::alarmed::put_alarmed;
use super::alerts::{StoredAlert, put_alert};
use super::channels::Channels;
use super::events::{StoredEvent, put_event};
use super::orders::put_answer;
use super::suppressions::Rules;
use super::{StoreError, bits, int, uint};
use crate::counters::{Counter, Counters};
use crate::names::DeviceId;

/// Numbers stored beyond a gap, per device and epoch; one more and the gap is given up.
const AHEAD_MAX: i64 = 4096;

/// Epochs remembered per device; one more and the one not used longest is forgotten.
const EPOCHS_MAX: i64 = 16;

/// Rejected messages kept; one more drops the oldest.
const REJECTED_MAX: i64 = 1000;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Windows per device and program.
    pub windows: u32,
    /// Programs per device.
    pub programs: u32,
    /// Alerts of all devices.
    pub alerts: u32,
    /// Events of all devices.
    pub events: u32,
    /// Captures of all devices.
    pub captures: u32,
}

/// What a new message is judged by.
#[derive(Clone, Debug)]
pub struct Intake {
    /// How much is kept.
    pub limits: Limits,
    /// What is hidden.
    pub rules: Arc<Rules>,
    /// Who is told.
    pub channels: Arc<Channels>,
}

/// What became of a frame.
#[derive(Clone, Debug)]
pub struct FrameOutcome {
    /// Stored now, not before.
    pub fresh: bool,
    /// Highest number with nothing missing below it.
    pub acked: u64,
    /// A fresh alert.
    pub alert: Option<Box<StoredAlert>>,
    /// A fresh event.
    pub event: Option<StoredEvent>,
    /// The order that was answered now, and whether it was carried out.
    pub answered: Option<(u64, bool)>,
    /// What is there to train with after fresh windows.
    pub windows: Option<WindowsOutcome>,
}

/// What is there to train one program with.
#[derive(Clone, Debug)]
pub struct WindowsOutcome {
    /// Which program.
    pub program: ProgramId,
    /// All windows ever stored.
    pub total: u64,
    /// The newest bundle that the device has or is to have, 0 for none.
    pub generation: u64,
    /// The program is new on this device.
    pub is_new: bool,
}

/// A message that is kept only to be looked at.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// Where it came on.
    pub topic: &'static str,
    /// What is wrong with it.
    pub reason: String,
    /// Its number, if it begins like a frame: it is acknowledged so that the device does not send it for ever.
    pub number: Option<(u64, u64)>,
    /// Its bytes.
    pub raw: Vec<u8>,
}

/// Stores a frame, unless it is there, and moves the acknowledgement.
///
/// # Errors
/// [`StoreError::Revoked`], or when the database fails.
pub fn put_frame(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    frame: &UplinkFrame,
    now_ms: u64,
    intake: &Intake,
) -> Result<FrameOutcome, StoreError> {
    let limits = intake.limits;
    super::seen(c, device, now_ms)?;
    let (fresh, acked) = number(c, counters, device, (frame.epoch, frame.seq), now_ms)?;
    let mut outcome = FrameOutcome { fresh, acked, alert: None, event: None, answered: None, windows: None };
    match &frame.body {
        // Also when the number is known: a frame that was given up as missing may still come.
        Uplink::Alert(alert) => {
            outcome.alert = put_alert(c, counters, device, frame, alert, now_ms, intake)?.map(Box::new);
            outcome.fresh = outcome.alert.is_some();
        }
        Uplink::Event(event) => {
            outcome.event = put_event(c, counters, device, frame, event, now_ms, limits.events)?;
            outcome.fresh = outcome.event.is_some();
        }
        // The first answer counts, also one that was given up as missing.
        Uplink::Answer(answer) => {
            outcome.fresh = put_answer(c, device, answer, now_ms)?;
            outcome.answered = outcome.fresh.then_some((answer.id, answer.done));
        }
        Uplink::Windows(windows) if fresh => {
            outcome.windows = put_windows(c, counters, device, &windows.program, &windows.windows, limits)?;
        }
        Uplink::Alarmed(alarmed) if fresh => put_alarmed(c, counters, device, alarmed)?,
        Uplink::Windows(_) | Uplink::Alarmed(_) => {}
    }
    counters.bump(if outcome.fresh { Counter::FramesStored } else { Counter::FramesDuplicate });
    Ok(outcome)
}

/// Keeps a message that could not be used, and acknowledges its number if it has one.
///
/// # Errors
/// When the database fails.
pub fn put_rejected(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    rejected: &Rejected,
    now_ms: u64,
) -> Result<Option<u64>, StoreError> {
    super::seen(c, device, now_ms)?;
    counters.bump(Counter::MessagesRejected);
    c.execute(
        "INSERT INTO rejected(device, received_ms, topic, reason, body) VALUES (?, ?, ?, ?, ?)",
        params![device.as_str(), int(now_ms), rejected.topic, rejected.reason, rejected.raw],
    )?;
    let dropped =
        c.execute("DELETE FROM rejected WHERE id <= (SELECT max(id) FROM rejected) - ?", [REJECTED_MAX])?;
    counters.add(Counter::RejectedDropped, dropped as u64);
    match rejected.number {
        Some(at) => number(c, counters, device, at, now_ms).map(|(_, acked)| Some(acked)),
        None => Ok(None),
    }
}

/// Notes a number; gives whether it is new and the acknowledgement after it.
fn number(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    (epoch, seq): (u64, u64),
    now_ms: u64,
) -> Result<(bool, u64), StoreError> {
    let (id, epoch, seq) = (device.as_str(), bits(epoch), int(seq));
    let known = acked_before(c, counters, (id, epoch))?;
    let before = known.unwrap_or(0);
    let mut acked = before;
    let mut fresh = false;
    if seq == acked + 1 {
        fresh = true;
        acked = seq;
    } else if seq > acked {
        let insert = "INSERT INTO ahead VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
        fresh = c.prepare_cached(insert)?.execute(params![id, epoch, seq])? == 1;
        if fresh && ahead_count(c, id, epoch)? > AHEAD_MAX {
            let mut lowest = c.prepare_cached("SELECT min(seq) FROM ahead WHERE device = ? AND epoch = ?")?;
            let lowest: i64 = lowest.query_row(params![id, epoch], |row| row.get(0))?;
            acked = give_up(c, counters, (id, epoch), acked, lowest - 1)?;
        }
    }
    if acked > before {
        acked = roll_forward(c, id, epoch, acked)?;
    }
    put_ack(c, (id, epoch), acked, now_ms)?;
    Ok((fresh, uint(acked)))
}

/// Notes that a device no longer has the numbers from `from` to `to`; gives the acknowledgement after it.
///
/// # Errors
/// [`StoreError::Revoked`], or when the database fails.
pub fn put_gone(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    epoch: u64,
    (from, to): (u64, u64),
    now_ms: u64,
) -> Result<u64, StoreError> {
    super::seen(c, device, now_ms)?;
    let (id, epoch, from, to) = (device.as_str(), bits(epoch), int(from), int(to));
    let known = acked_before(c, counters, (id, epoch))?;
    let acked = match known {
        None if from == 1 => to,
        Some(acked) if from <= acked + 1 && to > acked => {
            let acked = give_up(c, counters, (id, epoch), acked, to)?;
            roll_forward(c, id, epoch, acked)?
        }
        // What is before it is still on its way, by another connection or another server: each number waits for it,
        // as if it were stored. What has no place waits until the device tells it again.
        None | Some(_) if to > known.unwrap_or(0) => {
            let room = AHEAD_MAX - ahead_count(c, id, epoch)?;
            let mut insert = c.prepare_cached("INSERT INTO ahead VALUES (?, ?, ?) ON CONFLICT DO NOTHING")?;
            for seq in from..=to.min(from.saturating_add(room - 1)) {
                counters.add(Counter::FramesMissing, insert.execute(params![id, epoch, seq])? as u64);
            }
            known.unwrap_or(0)
        }
        None | Some(_) => known.unwrap_or(0),
    };
    put_ack(c, (id, epoch), acked, now_ms)?;
    Ok(uint(acked))
}

/// What was acknowledged of an epoch; a new one gets room first.
fn acked_before(
    c: &Connection,
    counters: &Counters,
    (id, epoch): (&str, i64),
) -> Result<Option<i64>, StoreError> {
    let known = c
        .prepare_cached("SELECT acked FROM acks WHERE device = ? AND epoch = ?")?
        .query_row(params![id, epoch], |row| row.get(0))
        .optional()?;
    if known.is_none() {
        forget_epochs(c, counters, id)?;
    }
    Ok(known)
}

/// Acknowledges everything up to `to`, counts what of it is missing, and gives `to`.
fn give_up(
    c: &Connection,
    counters: &Counters,
    (id, epoch): (&str, i64),
    acked: i64,
    to: i64,
) -> Result<i64, StoreError> {
    let below = "DELETE FROM ahead WHERE device = ? AND epoch = ? AND seq <= ?";
    let stored = c.prepare_cached(below)?.execute(params![id, epoch, to])? as i64;
    // A new epoch need not begin at 1: nothing of it was promised yet.
    let missing = if acked > 0 { uint(to - acked - stored) } else { 0 };
    counters.add(Counter::FramesMissing, missing);
    log::debug!("device {id} no longer has {missing} numbers of epoch {epoch:x} up to {to}");
    Ok(to)
}

fn put_ack(c: &Connection, (id, epoch): (&str, i64), acked: i64, now_ms: u64) -> Result<(), StoreError> {
    let write = "INSERT INTO acks VALUES (?1, ?2, ?3, ?4) ON CONFLICT(device, epoch) DO UPDATE SET acked = ?3, touched_ms = ?4";
    c.prepare_cached(write)?.execute(params![id, epoch, acked, int(now_ms)])?;
    Ok(())
}

/// The acknowledgements of all epochs of a device, as (epoch, seq).
///
/// # Errors
/// When the database fails.
pub fn acks(c: &Connection, device: &DeviceId) -> Result<Vec<(u64, u64)>, StoreError> {
    let mut query = c.prepare_cached("SELECT epoch, acked FROM acks WHERE device = ?")?;
    let rows =
        query.query_map([device.as_str()], |row| Ok((super::from_bits(row.get(0)?), uint(row.get(1)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn ahead_count(c: &Connection, device: &str, epoch: i64) -> Result<i64, StoreError> {
    let mut count = c.prepare_cached("SELECT count(*) FROM ahead WHERE device = ? AND epoch = ?")?;
    Ok(count.query_row(params![device, epoch], |row| row.get(0))?)
}

/// Takes numbers from `ahead` while they follow without a gap.
fn roll_forward(c: &Connection, device: &str, epoch: i64, mut acked: i64) -> Result<i64, StoreError> {
    let mut take = c.prepare_cached("DELETE FROM ahead WHERE device = ? AND epoch = ? AND seq = ?")?;
    while take.execute(params![device, epoch, acked + 1])? == 1 {
        acked += 1;
    }
    Ok(acked)
}

fn forget_epochs(c: &Connection, counters: &Counters, device: &str) -> Result<(), StoreError> {
    let count: i64 = c.query_row("SELECT count(*) FROM acks WHERE device = ?", [device], |row| row.get(0))?;
    if count >= EPOCHS_MAX {
        let oldest: i64 = c.query_row(
            "SELECT epoch FROM acks WHERE device = ? ORDER BY touched_ms LIMIT 1",
            [device],
            |row| row.get(0),
        )?;
        c.execute("DELETE FROM acks WHERE device = ? AND epoch = ?", params![device, oldest])?;
        c.execute("DELETE FROM ahead WHERE device = ? AND epoch = ?", params![device, oldest])?;
        counters.bump(Counter::EpochsForgotten);
    }
    Ok(())
}

fn put_windows(
    c: &Connection,
    counters: &Counters,
    device: &DeviceId,
    program: &ProgramId,
    windows: &[TrainingWindow],
    limits: Limits,
) -> Result<Option<WindowsOutcome>, StoreError> {
    let (id, key) = (device.as_str(), program.key());
    if !program_row(c, id, &key, program, limits)? {
        counters.add(Counter::ProgramsRefused, windows.len() as u64);
        return Ok(None);
    }
    let mut insert = c.prepare_cached("INSERT INTO windows(device, key, body) VALUES (?, ?, ?)")?;
    for window in windows {
        let body = postcard::to_stdvec(window).map_err(StoreError::Damaged)?;
        insert.execute(params![id, key, body])?;
    }
    let dropped = c
        .prepare_cached(
            "DELETE FROM windows WHERE device = ?1 AND key = ?2 AND id <=
             (SELECT id FROM windows WHERE device = ?1 AND key = ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3)",
        )?
        .execute(params![id, key, limits.windows])?;
    counters.add(Counter::WindowsDropped, dropped as u64);
    let (total, generation): (i64, i64) = c
        .prepare_cached(
            "UPDATE programs SET total = total + ? WHERE device = ? AND key = ? RETURNING total,
                 max(generation, CASE WHEN refused IS NULL THEN reported_generation ELSE 0 END)",
        )?
        .query_row(params![windows.len() as i64, id, key], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let is_new = total == windows.len() as i64;
    let (total, generation) = (uint(total), uint(generation));
    Ok(Some(WindowsOutcome { program: program.clone(), total, generation, is_new }))
}

/// Whether the program has a row, making one while there is room.
fn program_row(
    c: &Connection,
    device: &str,
    key: &str,
    program: &ProgramId,
    limits: Limits,
) -> Result<bool, StoreError> {
    let known = c
        .prepare_cached("SELECT 1 FROM programs WHERE device = ? AND key = ?")?
        .exists(params![device, key])?;
    if known {
        return Ok(true);
    }
    let count: i64 =
        c.query_row("SELECT count(*) FROM programs WHERE device = ?", [device], |row| row.get(0))?;
    if count >= i64::from(limits.programs) {
        return Ok(false);
    }
    let body = postcard::to_stdvec(program).map_err(StoreError::Damaged)?;
    c.execute("INSERT INTO programs(device, key, program) VALUES (?, ?, ?)", params![device, key, body])?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::testing::on_both;
    use super::*;

    struct Numbers {
        c: Connection,
        counters: Counters,
        device: DeviceId,
    }

    impl Numbers {
        fn new(c: Connection) -> Self {
            let insert = "INSERT INTO devices(id, certificate, enrolled_ms) VALUES ('gw', ?, 1)";
            c.execute(insert, [vec![0u8]]).unwrap();
            Self { c, counters: Counters::default(), device: DeviceId::parse("gw").unwrap() }
        }

        /// A number came; whether it is new, and what is acknowledged.
        fn came(&self, seq: u64) -> (bool, u64) {
            number(&self.c, &self.counters, &self.device, (7, seq), 5).unwrap()
        }

        fn gone(&self, from: u64, to: u64) -> u64 {
            put_gone(&self.c, &self.counters, &self.device, 7, (from, to), 5).unwrap()
        }

        fn missing(&self) -> u64 {
            self.counters.get(Counter::FramesMissing)
        }
    }

    #[test]
    fn numbers_that_are_gone_are_waited_for_no_longer_and_counted_once() {
        on_both(|empty| {
            let n = Numbers::new(empty());
            assert_eq!(n.came(1), (true, 1));
            assert_eq!(n.came(2), (true, 2));
            assert_eq!(n.gone(3, 9), 9);
            assert_eq!(n.came(10), (true, 10));
            assert_eq!(n.came(10), (false, 10));
            assert_eq!((n.gone(3, 9), n.missing()), (10, 7), "told again");
            // In a new connection all that was before the first number is told.
            assert_eq!((n.gone(1, 12), n.missing()), (12, 9));
            assert_eq!(n.came(13), (true, 13));
        });
    }

    #[test]
    fn what_comes_in_another_order_gives_the_same() {
        on_both(|empty| {
            let n = Numbers::new(empty());
            n.came(1);
            assert_eq!(n.came(6), (true, 1), "5 is on its way, 2 to 4 are gone");
            assert_eq!(n.came(5), (true, 1));
            assert_eq!((n.gone(2, 4), n.missing()), (6, 3));
            assert_eq!(n.gone(9, 10), 6, "7 and 8 are on their way");
            assert_eq!(n.came(8), (true, 6));
            assert_eq!((n.came(7), n.missing()), ((true, 10), 5));
        });
    }

    #[test]
    fn a_new_outbox_may_begin_anywhere_and_nothing_of_it_is_missing() {
        on_both(|empty| {
            let n = Numbers::new(empty());
            assert_eq!(n.gone(1, 5000), 5000);
            assert_eq!(n.came(5001), (true, 5001));
            let n = {
                let other = Numbers::new(empty());
                assert_eq!(other.came(5001), (true, 0), "before it is known what there was");
                assert_eq!(other.gone(1, 5000), 5001);
                other
            };
            assert_eq!(n.missing(), 0);
        });
    }

    #[test]
    fn a_gap_that_nobody_explains_is_given_up_when_too_much_waits_behind_it() {
        on_both(|empty| {
            let n = Numbers::new(empty());
            n.came(1);
            let last = 3 + AHEAD_MAX as u64;
            // As the server does: not each on the disk by itself.
            n.c.begin().unwrap();
            let acked: Vec<u64> = (3..=last).map(|seq| n.came(seq).1).collect();
            assert_eq!((acked[acked.len() - 2], acked[acked.len() - 1]), (1, last));
            assert_eq!(n.missing(), 1);
        });
    }
}
