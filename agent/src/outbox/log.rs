//! The outbox as a log of segment files, each append synced.
//!
//! ```text
//! outbox/epoch                      8 bytes, chosen anew at each opening at which nothing waits
//! outbox/cursor                     number up to which everything is forgotten, and a checksum
//! outbox/<first number, 16 hex>.seg record, record, ...; the last segment takes appends
//! record = length u32, its highest bit set when it made room | CRC-32 of what follows u32 | number u64 | message; all
//!          little-endian
//! ```
//! Opening reads every record once. A record that is cut or damaged at the end of the last segment was never
//! promised and is cut off; one before that is lost, counted, and seen by the fleet as a gap in the numbers. So is
//! one that made room for others: the lowest severity goes first, and of that the oldest. When such records take a quarter
//! of the room, the segment with most of them is written anew without them, so the files take at most a quarter more than
//! the messages may, and a segment. The cursor
//! is not synced: an older one only means that messages are sent again, and the fleet drops repeats. The last segment
//! is never removed, so a number is never used twice. The epoch is chosen anew so that a device that was copied does not number
//! its messages as its twin does: the fleet would take one's for the other's.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use models::chain::chain;
use models::wire::{Alert, MESSAGE_MAX, Uplink, UplinkFrame, decode, encode};

use super::recent::Recent;
use super::{Kept, Outbox, OutboxError, is_to_be_learned, random, rank};
use crate::files;

/// Length, checksum and number.
const HEAD: usize = 16;

/// In a record's length: it made room for others. No message is so long.
const DEAD: u32 = 1 << 31;

/// The largest segment; small outboxes have smaller ones, so that what is forgotten soon frees its space.
const SEGMENT_MAX: u64 = 1024 * 1024;

/// An outbox in files of its own.
pub struct LogOutbox {
    dir: PathBuf,
    epoch: u64,
    bytes_max: u64,
    segment_max: u64,
    log: Mutex<Log>,
    damaged: AtomicU64,
}

/// The messages that wait, oldest first, and where they are.
struct Log {
    waiting: VecDeque<Place>,
    bytes: u64,
    /// What made room for others and is still in a file.
    dead_bytes: u64,
    /// First numbers of all segments, ascending; the last one is open.
    segments: VecDeque<u64>,
    open: File,
    /// Bytes of the open segment that hold whole, synced records.
    end: u64,
    /// A failed append may have left bytes behind `end`.
    dirty: bool,
    next: u64,
    /// What made room when the outbox was opened, to be told with the next message.
    untold: u64,
    recent: Recent,
}

#[derive(Clone, Copy)]
struct Place {
    seq: u64,
    segment: u64,
    at: u64,
    len: u32,
    /// What matters less makes room first: training windows, then alerts by severity.
    rank: u8,
    /// It made room for others.
    is_dead: bool,
}

impl LogOutbox {
    /// Opens or makes the outbox in `<state>/outbox`; its messages take at most `bytes_max`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(state: &Path, bytes_max: u64) -> Result<Self, OutboxError> {
        Self::open_with(state, bytes_max, &mut random)
    }

    /// The same with epochs from elsewhere, so that a simulation can be repeated.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_with(
        state: &Path,
        bytes_max: u64,
        new_epoch: &mut dyn FnMut() -> u64,
    ) -> Result<Self, OutboxError> {
        let dir = state.join("outbox");
        files::make_private_dir(&dir).map_err(at(&dir))?;
        let mut epoch = epoch(&dir, new_epoch)?;
        let damaged = AtomicU64::new(0);
        let mut segments = segments(&dir)?;
        if segments.is_empty() {
            drop(create(&dir, 1)?);
            segments.push_back(1);
        }
        let forgotten = read_cursor(&dir);
        let (mut waiting, mut end, mut next, mut dead_bytes) = (VecDeque::new(), 0, 1, 0);
        for (index, first) in segments.iter().enumerate() {
            let path = segment_path(&dir, *first);
            let bytes = fs::read(&path).map_err(at(&path))?;
            let (mut places, whole) = scan(&bytes, *first);
            next = places.last().map_or((*first).max(next), |place| place.seq + 1);
            let is_last = index + 1 == segments.len();
            if !is_last && whole < bytes.len() as u64 {
                damaged.fetch_add(1, Relaxed);
                ::log::error!(
                    "{} is damaged after {whole} bytes; what followed in it is lost",
                    path.display()
                );
            }
            dead_bytes += places.iter().filter(|place| place.is_dead).map(Place::bytes).sum::<u64>();
            // What bears another epoch was done when that ended.
            places.retain(|place| {
                !place.is_dead && place.seq > forgotten && epoch_of(&bytes, place) == Some(epoch)
            });
            waiting.extend(places);
            end = whole;
        }
        // A cursor ahead of everything: the segments were lost with it. Its numbers are used.
        next = next.max(forgotten + 1);
        if waiting.is_empty() && next > 1 {
            epoch = new_epoch();
            write_epoch(&dir, epoch)?;
        }
        let last = segments.back().copied().unwrap_or(1);
        let path = segment_path(&dir, last);
        let open = OpenOptions::new().read(true).write(true).open(&path).map_err(at(&path))?;
        open.set_len(end).and_then(|()| open.sync_all()).map_err(at(&path))?;
        let bytes = waiting.iter().map(Place::bytes).sum();
        let recent = Recent::open(&dir);
        let log =
            Log { waiting, bytes, dead_bytes, segments, open, end, dirty: false, next, untold: 0, recent };
        let segment_max = (bytes_max / 8).clamp(2048, SEGMENT_MAX);
        let outbox = Self { dir, epoch, bytes_max, segment_max, log: Mutex::new(log), damaged };
        outbox.remove_done(&mut outbox.log())?;
        // It may have less room than before, and the marks of an earlier run may not have reached the disk.
        let mut log = outbox.log();
        log.untold = outbox.make_room(&mut log);
        drop(log);
        Ok(outbox)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // What is in memory changes after the files, in steps that cannot fail.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes and syncs one record; afterwards it is kept, or there is no trace of it.
    fn append(&self, log: &mut Log, record: &[u8]) -> Result<(), OutboxError> {
        let path = segment_path(&self.dir, log.segments.back().copied().unwrap_or(1));
        if log.dirty {
            log.open.set_len(log.end).map_err(at(&path))?;
            log.dirty = false;
        }
        if log.end > 0 && log.end + record.len() as u64 > self.segment_max {
            log.open = create(&self.dir, log.next)?;
            log.segments.push_back(log.next);
            log.end = 0;
            self.remove_done(log)?;
        }
        let path = segment_path(&self.dir, log.segments.back().copied().unwrap_or(1));
        let written = log.open.write_all_at(record, log.end).and_then(|()| log.open.sync_data());
        if let Err(source) = written {
            // After a failed sync nobody knows what is on disk: it is cut off before anything else is written.
            log.dirty = log.open.set_len(log.end).is_err();
            return Err(OutboxError::File { path, source });
        }
        log.end += record.len() as u64;
        Ok(())
    }

    /// Removes segments in which nothing waits, but never the open one.
    fn remove_done(&self, log: &mut Log) -> Result<(), OutboxError> {
        let oldest = log.waiting.front().map_or(log.next, |place| place.segment);
        while let [first, second, ..] = log.segments.make_contiguous()
            && *first < oldest
            && *second <= oldest
        {
            let path = segment_path(&self.dir, *first);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
                _ => {}
            }
            log.segments.pop_front();
        }
        Ok(())
    }

    /// Drops what matters least, oldest first, until the messages fit. Gives how many that were. A file that cannot be changed now
    /// is tried again with the next message.
    fn make_room(&self, log: &mut Log) -> u64 {
        let mut n = 0;
        while log.bytes > self.bytes_max {
            let least = log.waiting.iter().enumerate().min_by_key(|(_, place)| place.rank);
            let Some((index, place)) = least.map(|(index, place)| (index, *place)) else { break };
            log.waiting.remove(index);
            log.bytes -= place.bytes();
            log.dead_bytes += place.bytes();
            self.mark_dead(&place);
            n += 1;
        }
        let removed = if n > 0 { self.remove_done(log) } else { Ok(()) };
        let is_due = log.dead_bytes > self.bytes_max / 4;
        if let Err(error) = removed.and_then(|()| if is_due { self.compact(log) } else { Ok(()) }) {
            ::log::warn!("making room in the outbox: {}", chain(&error));
        }
        n
    }

    /// Notes in the file that a record made room, so that it does not wait again after a restart: the fleet was told that it is
    /// gone. Not synced, and no harm when it fails: then it is sent although it was counted as dropped.
    fn mark_dead(&self, place: &Place) {
        let path = segment_path(&self.dir, place.segment);
        let file = OpenOptions::new().write(true).open(&path);
        let marked = file.and_then(|file| file.write_all_at(&(place.len | DEAD).to_le_bytes(), place.at));
        if let Err(error) = marked {
            ::log::debug!("{}: {error}", path.display());
        }
    }

    /// Writes the segment that holds most of what nobody waits for anew, without it; never the open one.
    fn compact(&self, log: &mut Log) -> Result<(), OutboxError> {
        let open = log.segments.back().copied().unwrap_or(1);
        let live = |segment: u64| log.waiting.iter().filter(move |place| place.segment == segment);
        let dead_in = |segment: u64| {
            let file = fs::metadata(segment_path(&self.dir, segment)).map_or(0, |file| file.len());
            file.saturating_sub(live(segment).map(Place::bytes).sum())
        };
        let others = log.segments.iter().copied().filter(|segment| *segment != open);
        let Some(segment) = others.max_by_key(|segment| dead_in(*segment)) else { return Ok(()) };
        let gained = dead_in(segment);
        if gained == 0 {
            return Ok(());
        }
        let path = segment_path(&self.dir, segment);
        let whole = fs::read(&path).map_err(at(&path))?;
        let (mut kept, mut places) = (Vec::new(), Vec::new());
        for place in live(segment) {
            let from = usize::try_from(place.at).unwrap_or(usize::MAX);
            let until = from.saturating_add(HEAD + place.len as usize);
            places.push(kept.len() as u64);
            kept.extend_from_slice(whole.get(from..until).unwrap_or_default());
        }
        files::write_private(&path, &kept).map_err(at(&path))?;
        for (place, at) in log.waiting.iter_mut().filter(|place| place.segment == segment).zip(places) {
            place.at = at;
        }
        log.dead_bytes = log.dead_bytes.saturating_sub(gained);
        Ok(())
    }

    /// Takes the oldest ones out, up to and including `seq`.
    fn take_until(&self, log: &mut Log, seq: u64) -> Result<u64, OutboxError> {
        let mut n = 0;
        while let Some(place) = log.waiting.front().copied().filter(|place| place.seq <= seq) {
            log.bytes -= place.bytes();
            log.waiting.pop_front();
            n += 1;
        }
        if n > 0 {
            write_cursor(&self.dir, seq)?;
            self.remove_done(log)?;
        }
        Ok(n)
    }
}

impl Place {
    fn bytes(&self) -> u64 {
        u64::from(self.len) + HEAD as u64
    }
}

impl Outbox for LogOutbox {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn put(&self, body: Uplink) -> Result<Kept, OutboxError> {
        let mut log = self.log();
        let frame = UplinkFrame { epoch: self.epoch, seq: log.next, body };
        let message = encode(&frame)?;
        let needed = (message.len() + HEAD) as u64;
        if is_to_be_learned(&frame.body) && log.bytes + needed > self.bytes_max / 2 {
            return Ok(Kept::Refused);
        }
        let seq = log.next;
        self.append(&mut log, &record(seq, &message))?;
        let segment = log.segments.back().copied().unwrap_or(1);
        let len = u32::try_from(message.len()).expect("a message is at most MESSAGE_MAX");
        let at = log.end - needed;
        log.waiting.push_back(Place { seq, segment, at, len, rank: rank(&frame.body), is_dead: false });
        log.bytes += needed;
        log.next += 1;
        if let Uplink::Alert(alert) = &frame.body {
            log.recent.add(alert);
        }
        // Only now, so that a failed append has dropped nothing.
        let dropped = self.make_room(&mut log);
        match std::mem::take(&mut log.untold) + dropped {
            0 => Ok(Kept::As(seq)),
            n => Ok(Kept::AfterDropping(seq, n)),
        }
    }

    fn after(&self, seq: u64) -> Result<Option<(u64, Vec<u8>)>, OutboxError> {
        let mut log = self.log();
        loop {
            let next = log.waiting.partition_point(|place| place.seq <= seq);
            let Some(place) = log.waiting.get(next).copied() else { return Ok(None) };
            let path = segment_path(&self.dir, place.segment);
            let mut bytes = vec![0; HEAD + place.len as usize];
            let read = File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, place.at));
            match (read, scan(&bytes, place.seq)) {
                (Ok(()), (places, _)) if places.len() == 1 => {
                    return Ok(Some((place.seq, bytes.split_off(HEAD))));
                }
                (Err(error), _) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    return Err(at(&path)(error));
                }
                // It was whole when it was written: the disk lost it. The others must not wait for it.
                _ => {
                    self.damaged.fetch_add(1, Relaxed);
                    ::log::error!("message {} in {} is damaged and lost", place.seq, path.display());
                    log.waiting.remove(next);
                    log.bytes -= place.bytes();
                }
            }
        }
    }

    fn forget(&self, seq: u64) -> Result<u64, OutboxError> {
        self.take_until(&mut self.log(), seq)
    }

    fn waiting(&self) -> u64 {
        self.log().waiting.len() as u64
    }

    fn damaged(&self) -> u64 {
        self.damaged.load(Relaxed)
    }

    fn recent(&self) -> Result<Vec<Alert>, OutboxError> {
        Ok(self.log().recent.read())
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> OutboxError + '_ {
    |source| OutboxError::File { path: path.to_owned(), source }
}

fn epoch(dir: &Path, new_epoch: &mut dyn FnMut() -> u64) -> Result<u64, OutboxError> {
    let path = dir.join("epoch");
    match fs::read(&path) {
        Ok(bytes) if bytes.len() == 8 => Ok(u64::from_le_bytes(bytes.try_into().unwrap_or_default())),
        Ok(_) => {
            let source = io::Error::other("it does not hold 8 bytes; remove the outbox folder to start anew");
            Err(OutboxError::File { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let epoch = new_epoch();
            write_epoch(dir, epoch)?;
            Ok(epoch)
        }
        Err(error) => Err(at(&path)(error)),
    }
}

fn write_epoch(dir: &Path, epoch: u64) -> Result<(), OutboxError> {
    let path = dir.join("epoch");
    files::write_private(&path, &epoch.to_le_bytes()).map_err(at(&path))
}

/// The epoch in a record's message, which begins with it.
fn epoch_of(segment: &[u8], place: &Place) -> Option<u64> {
    let from = usize::try_from(place.at).ok()? + HEAD;
    postcard::take_from_bytes(segment.get(from..)?).ok().map(|(epoch, _)| epoch)
}

fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:016x}.seg"))
}

fn segments(dir: &Path) -> Result<VecDeque<u64>, OutboxError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let name = entry.map_err(at(dir))?.file_name();
        let first = name.to_str().and_then(|name| u64::from_str_radix(name.strip_suffix(".seg")?, 16).ok());
        found.extend(first);
    }
    found.sort_unstable();
    Ok(found.into())
}

fn create(dir: &Path, first: u64) -> Result<File, OutboxError> {
    let path = segment_path(dir, first);
    // One that a failed attempt left behind is empty or was never promised.
    let options =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
    let file = options.map_err(at(&path))?;
    files::sync_dir(&path).map_err(at(&path))?;
    Ok(file)
}

fn record(seq: u64, message: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEAD + message.len());
    record.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes());
    record.extend_from_slice(&[0; 4]);
    record.extend_from_slice(&seq.to_le_bytes());
    record.extend_from_slice(message);
    let sum = crc32fast::hash(&record[8..]);
    record[4..8].copy_from_slice(&sum.to_le_bytes());
    record
}

/// The whole records at the beginning of a segment, and how many bytes they take.
fn scan(bytes: &[u8], segment: u64) -> (Vec<Place>, u64) {
    let mut places: Vec<Place> = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + HEAD) {
        let word = |from: usize| head[from..from + 4].try_into().map(u32::from_le_bytes).unwrap_or(0);
        let (len, sum) = (word(0) & !DEAD, word(4));
        let seq = head[8..].try_into().map(u64::from_le_bytes).unwrap_or(0);
        let follows = places.last().is_none_or(|before| seq > before.seq) && seq >= segment;
        let Some(body) = bytes.get(at + 8..at + HEAD + len as usize) else { break };
        if len as usize > MESSAGE_MAX || !follows || crc32fast::hash(body) != sum {
            break;
        }
        let rank = decode::<UplinkFrame>(&body[8..]).map_or(0, |frame| rank(&frame.body));
        places.push(Place { seq, segment, at: at as u64, len, rank, is_dead: word(0) & DEAD > 0 });
        at += HEAD + len as usize;
    }
    (places, at as u64)
}

fn read_cursor(dir: &Path) -> u64 {
    let bytes = fs::read(dir.join("cursor")).unwrap_or_default();
    match (bytes.get(..8), bytes.get(8..12)) {
        (Some(seq), Some(sum)) if crc32fast::hash(seq).to_le_bytes() == sum => {
            seq.try_into().map(u64::from_le_bytes).unwrap_or(0)
        }
        _ => 0,
    }
}

fn write_cursor(dir: &Path, seq: u64) -> Result<(), OutboxError> {
    let path = dir.join("cursor");
    let seq = seq.to_le_bytes();
    let bytes = [&seq[..], &crc32fast::hash(&seq).to_le_bytes()].concat();
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    open.and_then(|file| file.write_all_at(&bytes, 0)).map_err(at(&path))
}

#[cfg(test)]
mod tests;
