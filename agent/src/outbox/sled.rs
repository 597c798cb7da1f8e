//! The outbox in sled, for the feature `sled`.
//!
//! `flush` of sled 0.34 does not reach the disk (a power cut lost data in 10 of 15 trials), so each append also syncs
//! sled's file.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use models::wire::{Alert, Uplink, UplinkFrame, decode, encode};

use super::{Kept, Outbox, OutboxError, RECENT_MAX, is_to_be_learned, random, rank};

/// An outbox in sled.
pub struct SledOutbox {
    path: PathBuf,
    database: ::sled::Db,
    frames: ::sled::Tree,
    recent: ::sled::Tree,
    file: File,
    epoch: u64,
    bytes_max: u64,
    /// The next number, and one appender at a time.
    next: std::sync::Mutex<Numbers>,
}

struct Numbers {
    next: u64,
    /// Number and bytes of every message.
    /// Number, bytes and rank.
    waiting: VecDeque<(u64, u64, u8)>,
}

impl SledOutbox {
    /// Opens or makes the outbox in `<state>/outbox`; its messages take at most `bytes_max`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(state: &Path, bytes_max: u64) -> Result<Self, OutboxError> {
        let path = state.join("outbox");
        let failed = |source| OutboxError::Store { path: path.clone(), source };
        let database = ::sled::Config::new()
            .path(&path)
            // Messages are written once and read once: a cache would only cost memory.
            .cache_capacity(1024 * 1024)
            .mode(::sled::Mode::LowSpace)
            .open()
            .map_err(failed)?;
        let frames = database.open_tree("frames").map_err(failed)?;
        let recent = database.open_tree("recent").map_err(failed)?;
        let epoch = match database.get("epoch").map_err(failed)?.as_deref().and_then(number) {
            Some(epoch) => epoch,
            None => {
                let epoch = random();
                database.insert("epoch", &epoch.to_be_bytes()).map_err(failed)?;
                epoch
            }
        };
        // Numbers are never used twice, also when everything was forgotten.
        let issued = database.get("issued").map_err(failed)?.as_deref().and_then(number).unwrap_or(0);
        let mut waiting = VecDeque::new();
        for frame in frames.iter() {
            let (key, value) = frame.map_err(failed)?;
            let rank = decode::<UplinkFrame>(&value).map_or(0, |frame| rank(&frame.body));
            waiting.extend(number(&key).map(|seq| (seq, value.len() as u64, rank)));
        }
        let next = waiting.back().map_or(0, |(seq, ..)| *seq).max(issued) + 1;
        let file =
            File::open(path.join("db")).map_err(|source| OutboxError::File { path: path.clone(), source })?;
        let outbox = Self {
            database,
            frames,
            recent,
            file,
            epoch,
            bytes_max,
            next: std::sync::Mutex::new(Numbers { next, waiting }),
            path,
        };
        outbox.sync()?;
        Ok(outbox)
    }

    fn store(&self) -> impl Fn(::sled::Error) -> OutboxError {
        |source| OutboxError::Store { path: self.path.clone(), source }
    }

    fn sync(&self) -> Result<(), OutboxError> {
        self.database.flush().map_err(self.store())?;
        self.file.sync_data().map_err(|source| OutboxError::File { path: self.path.clone(), source })
    }

    fn numbers(&self) -> std::sync::MutexGuard<'_, Numbers> {
        // Numbers are changed after the database, in one statement each.
        self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn put_recent(&self, seq: u64, alert: &Alert) -> Result<(), OutboxError> {
        let bytes = encode(alert)?;
        self.recent.insert(seq.to_be_bytes(), bytes).map_err(self.store())?;
        while self.recent.len() > RECENT_MAX {
            self.recent.pop_min().map_err(self.store())?;
        }
        Ok(())
    }
}

impl Outbox for SledOutbox {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn put(&self, body: Uplink) -> Result<Kept, OutboxError> {
        let mut numbers = self.numbers();
        let seq = numbers.next;
        let frame = UplinkFrame { epoch: self.epoch, seq, body };
        let bytes = encode(&frame)?;
        let needed = bytes.len() as u64;
        let mut taken: u64 = numbers.waiting.iter().map(|(_, bytes, _)| bytes).sum();
        if is_to_be_learned(&frame.body) && taken + needed > self.bytes_max / 2 {
            return Ok(Kept::Refused);
        }
        let mut dropped = 0;
        while taken + needed > self.bytes_max
            && let Some((at, (least, bytes, _))) =
                numbers.waiting.iter().copied().enumerate().min_by_key(|(_, (.., rank))| *rank)
        {
            self.frames.remove(least.to_be_bytes()).map_err(self.store())?;
            numbers.waiting.remove(at);
            taken -= bytes;
            dropped += 1;
        }
        if let Uplink::Alert(alert) = &frame.body {
            self.put_recent(seq, alert)?;
        }
        self.database.insert("issued", &seq.to_be_bytes()).map_err(self.store())?;
        // From here on the number is used, whatever becomes of the message.
        numbers.next += 1;
        self.frames.insert(seq.to_be_bytes(), bytes).map_err(self.store())?;
        if let Err(error) = self.sync() {
            // Not surely on disk: the caller tries again under another number, so this one must not be sent too.
            let _ = self.frames.remove(seq.to_be_bytes());
            return Err(error);
        }
        numbers.waiting.push_back((seq, needed, rank(&frame.body)));
        Ok(if dropped == 0 { Kept::As(seq) } else { Kept::AfterDropping(seq, dropped) })
    }

    fn after(&self, seq: u64) -> Result<Option<(u64, Vec<u8>)>, OutboxError> {
        let found = self.frames.get_gt(seq.to_be_bytes()).map_err(self.store())?;
        Ok(found.and_then(|(key, value)| Some((number(&key)?, value.to_vec()))))
    }

    fn forget(&self, seq: u64) -> Result<u64, OutboxError> {
        let mut numbers = self.numbers();
        let mut forgotten = 0;
        while let Some((oldest, ..)) = numbers.waiting.front().copied().filter(|(oldest, ..)| *oldest <= seq)
        {
            self.frames.remove(oldest.to_be_bytes()).map_err(self.store())?;
            numbers.waiting.pop_front();
            forgotten += 1;
        }
        Ok(forgotten)
    }

    fn waiting(&self) -> u64 {
        self.numbers().waiting.len() as u64
    }

    fn damaged(&self) -> u64 {
        // sled checks its pages itself and fails as a whole.
        0
    }

    fn recent(&self) -> Result<Vec<Alert>, OutboxError> {
        let mut alerts = Vec::new();
        for value in self.recent.iter().values() {
            match decode(&value.map_err(self.store())?) {
                Ok(alert) => alerts.push(alert),
                // Written by another version; the fleet has it.
                Err(error) => log::debug!("an old alert cannot be shown: {error}"),
            }
        }
        Ok(alerts)
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}
