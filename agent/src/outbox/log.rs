//! The outbox as a log of segment files, each append synced.
//!
//! ```text
//! outbox/epoch                      8 bytes, chosen anew at each opening at which nothing waits
//! outbox/cursor                     number up to which everything is forgotten, and a checksum
//! outbox/<first number, 16 hex>.seg record, record, ...; the last segment takes appends
//! record = length u32 | CRC-32 of what follows u32 | number u64 | message; all little-endian
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

use models::wire::{Alert, MESSAGE_MAX, Uplink, UplinkFrame, decode, encode};

use super::recent::Recent;
use super::{Kept, Outbox, OutboxError, random, rank};
use crate::files;

/// Length, checksum and number.
const HEAD: usize = 16;

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
}

impl LogOutbox {
    /// Opens or makes the outbox in `<state>/outbox`; its messages take at most `bytes_max`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(state: &Path, bytes_max: u64) -> Result<Self, OutboxError> {
        let dir = state.join("outbox");
        files::make_private_dir(&dir).map_err(at(&dir))?;
        let mut epoch = epoch(&dir)?;
        let damaged = AtomicU64::new(0);
        let mut segments = segments(&dir)?;
        if segments.is_empty() {
            drop(create(&dir, 1)?);
            segments.push_back(1);
        }
        let forgotten = read_cursor(&dir);
        let (mut waiting, mut end, mut next) = (VecDeque::new(), 0, 1);
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
            // What bears another epoch was done when that ended.
            places.retain(|place| place.seq > forgotten && epoch_of(&bytes, place) == Some(epoch));
            waiting.extend(places);
            end = whole;
        }
        // A cursor ahead of everything: the segments were lost with it. Its numbers are used.
        next = next.max(forgotten + 1);
        if waiting.is_empty() && next > 1 {
            epoch = random();
            write_epoch(&dir, epoch)?;
        }
        let last = segments.back().copied().unwrap_or(1);
        let path = segment_path(&dir, last);
        let open = OpenOptions::new().read(true).write(true).open(&path).map_err(at(&path))?;
        open.set_len(end).and_then(|()| open.sync_all()).map_err(at(&path))?;
        let bytes = waiting.iter().map(Place::bytes).sum();
        let recent = Recent::open(&dir);
        let log = Log { waiting, bytes, dead_bytes: 0, segments, open, end, dirty: false, next, recent };
        let segment_max = (bytes_max / 8).clamp(2048, SEGMENT_MAX);
        let outbox = Self { dir, epoch, bytes_max, segment_max, log: Mutex::new(log), damaged };
        outbox.remove_done(&mut outbox.log())?;
        // What made room in an earlier run and is still in a file makes room again.
        outbox.make_room(&mut outbox.log())?;
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

    /// Drops what matters least, oldest first, until the messages fit. Gives how many that were.
    fn make_room(&self, log: &mut Log) -> Result<u64, OutboxError> {
        let mut n = 0;
        while log.bytes > self.bytes_max {
            let least = log.waiting.iter().enumerate().min_by_key(|(_, place)| place.rank);
            let Some((index, place)) = least.map(|(index, place)| (index, *place)) else { break };
            log.waiting.remove(index);
            log.bytes -= place.bytes();
            log.dead_bytes += place.bytes();
            n += 1;
        }
        if n > 0 {
            self.remove_done(log)?;
        }
        if log.dead_bytes > self.bytes_max / 4 {
            self.compact(log)?;
        }
        Ok(n)
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
        if matches!(frame.body, Uplink::Windows(_)) && log.bytes + needed > self.bytes_max / 2 {
            return Ok(Kept::Refused);
        }
        let seq = log.next;
        self.append(&mut log, &record(seq, &message))?;
        let segment = log.segments.back().copied().unwrap_or(1);
        let len = u32::try_from(message.len()).expect("a message is at most MESSAGE_MAX");
        let at = log.end - needed;
        log.waiting.push_back(Place { seq, segment, at, len, rank: rank(&frame.body) });
        log.bytes += needed;
        log.next += 1;
        if let Uplink::Alert(alert) = &frame.body {
            log.recent.add(alert);
        }
        // Only now, so that a failed append has dropped nothing.
        match self.make_room(&mut log)? {
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

fn epoch(dir: &Path) -> Result<u64, OutboxError> {
    let path = dir.join("epoch");
    match fs::read(&path) {
        Ok(bytes) if bytes.len() == 8 => Ok(u64::from_le_bytes(bytes.try_into().unwrap_or_default())),
        Ok(_) => {
            let source = io::Error::other("it does not hold 8 bytes; remove the outbox folder to start anew");
            Err(OutboxError::File { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let epoch = random();
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
        let (len, sum) = (word(0), word(4));
        let seq = head[8..].try_into().map(u64::from_le_bytes).unwrap_or(0);
        let follows = places.last().is_none_or(|before| seq > before.seq) && seq >= segment;
        let Some(body) = bytes.get(at + 8..at + HEAD + len as usize) else { break };
        if len as usize > MESSAGE_MAX || !follows || crc32fast::hash(body) != sum {
            break;
        }
        let rank = decode::<UplinkFrame>(&body[8..]).map_or(0, |frame| rank(&frame.body));
        places.push(Place { seq, segment, at: at as u64, len, rank });
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
mod tests {
    use models::policy::Severity;

    use super::super::tests::{alert, pids};
    use super::*;

    fn open(dir: &Path) -> LogOutbox {
        LogOutbox::open(dir, 1 << 20).unwrap()
    }

    fn segment_files(dir: &Path) -> Vec<PathBuf> {
        let dir = dir.join("outbox");
        segments(&dir).unwrap().into_iter().map(|first| segment_path(&dir, first)).collect()
    }

    #[test]
    fn every_cut_of_the_file_keeps_the_whole_records_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = open(dir.path());
        for pid in 1..=3 {
            assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)));
        }
        drop(outbox);
        let path = &segment_files(dir.path())[0];
        let whole = fs::read(path).unwrap();
        let (places, _) = scan(&whole, 1);
        for len in (0..whole.len()).step_by(7) {
            fs::write(path, &whole[..len]).unwrap();
            let kept = places.iter().filter(|p| p.at + p.bytes() <= len as u64).count();
            let outbox = open(dir.path());
            assert_eq!(pids(&outbox).len(), kept, "{len} bytes were left");
            assert_eq!(outbox.put(alert(9)).unwrap(), Kept::As(kept as u64 + 1), "{len} bytes were left");
            assert_eq!(pids(&outbox).last(), Some(&9));
        }
    }

    #[test]
    fn a_damaged_record_is_counted_and_does_not_hold_up_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = open(dir.path());
        for pid in 1..=3 {
            assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)));
        }
        let path = &segment_files(dir.path())[0];
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, &bytes).unwrap();
        assert_eq!(pids(&outbox), [1, 3]);
        assert_eq!((outbox.damaged(), outbox.waiting()), (1, 2));
    }

    #[test]
    fn segments_go_when_nothing_in_them_waits() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = LogOutbox::open(dir.path(), 32_000).unwrap();
        for pid in 1..=30 {
            assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)));
        }
        assert!(segment_files(dir.path()).len() > 5);
        assert_eq!(outbox.forget(29).unwrap(), 29);
        assert_eq!(segment_files(dir.path()).len(), 1);
        assert_eq!(pids(&outbox), [30]);
        assert_eq!(outbox.forget(30).unwrap(), 1);
        drop(outbox);
        let outbox = LogOutbox::open(dir.path(), 32_000).unwrap();
        assert_eq!(outbox.put(alert(31)).unwrap(), Kept::As(31), "a number was used twice");
    }

    #[test]
    fn when_full_the_lowest_severity_goes_first_and_of_that_the_oldest() {
        const ROOM: u64 = 40_000;
        let dir = tempfile::tempdir().unwrap();
        let of = |severity: Severity, pid: u32| {
            let Uplink::Alert(alert) = alert(pid) else { unreachable!() };
            Uplink::Alert(Alert { severity, ..alert })
        };
        let outbox = LogOutbox::open(dir.path(), ROOM).unwrap();
        let mut dropped = 0;
        for pid in 1..=300 {
            let severity =
                [Severity::Medium, Severity::Critical, Severity::Medium, Severity::High][pid as usize % 4];
            match outbox.put(of(severity, pid)).unwrap() {
                Kept::As(seq) => assert_eq!(seq, u64::from(pid)),
                Kept::AfterDropping(_, n) => dropped += n,
                Kept::Refused => panic!("alerts are not refused"),
            }
        }
        let left = pids(&outbox);
        assert_eq!(left.len() as u64 + dropped, 300);
        let newest: Vec<u32> = (1..=300).filter(|pid| pid % 4 == 1).rev().take(left.len()).collect();
        assert_eq!(left, newest.into_iter().rev().collect::<Vec<_>>(), "the newest CRITICAL ones");
        let bytes: u64 = segment_files(dir.path()).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
        assert!(bytes <= ROOM + ROOM / 4 + outbox.segment_max + 2000, "{bytes} bytes on disk");
        drop(outbox);
        let outbox = LogOutbox::open(dir.path(), ROOM).unwrap();
        assert_eq!(pids(&outbox), left, "also after a restart");
        assert_eq!(outbox.put(of(Severity::Medium, 301)).unwrap(), Kept::AfterDropping(301, 1));
        assert_eq!(pids(&outbox), left, "what matters least is what came");
    }

    #[test]
    fn an_outbox_that_was_copied_with_nothing_waiting_has_an_epoch_of_its_own() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outbox = open(dir.path());
        let first = outbox.epoch();
        assert_eq!(outbox.put(alert(1)).unwrap(), Kept::As(1));
        drop(outbox);
        assert_eq!(open(dir.path()).epoch(), first, "something waits");
        assert_eq!(open(dir.path()).forget(1).unwrap(), 1);
        fs::create_dir(copy.path().join("outbox")).unwrap();
        for entry in fs::read_dir(dir.path().join("outbox")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, copy.path().join("outbox").join(path.file_name().unwrap())).unwrap();
        }
        let (one, other) = (open(dir.path()), open(copy.path()));
        assert!(one.epoch() != first && other.epoch() != first && one.epoch() != other.epoch());
        assert_eq!((one.put(alert(2)).unwrap(), other.put(alert(3)).unwrap()), (Kept::As(2), Kept::As(2)));
        drop(one);
        // A cursor that a power cut took back brings nothing of the old epoch up again.
        write_cursor(&dir.path().join("outbox"), 0).unwrap();
        assert_eq!(pids(&open(dir.path())), [2]);
    }

    #[test]
    fn a_lost_cursor_only_brings_repeats() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = open(dir.path());
        for pid in 1..=3 {
            assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)));
        }
        assert_eq!(outbox.forget(2).unwrap(), 2);
        drop(outbox);
        fs::write(dir.path().join("outbox/cursor"), b"torn").unwrap();
        assert_eq!(pids(&open(dir.path())), [1, 2, 3]);
    }
}
