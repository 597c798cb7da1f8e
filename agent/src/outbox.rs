//! Messages that wait for the fleet, numbered, on disk until the fleet has stored them.
//!
//! Behind a small trait, because the store may have to be another one on devices that cannot spare sled's memory.
//! `flush` of sled 0.34 does not reach the disk (a power cut lost data in 10 of 15 trials), so each append also syncs
//! sled's file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use models::wire::{Alert, Uplink, UplinkFrame, WireError, encode};
use ring::rand::{SecureRandom as _, SystemRandom};

/// Alerts kept for `behaveguard alerts`, also after the fleet has them.
pub const RECENT_MAX: usize = 1000;

/// Why a message was not kept.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The database.
    #[error("using the outbox in {path}; is the disk full or read-only?")]
    Store {
        /// Its folder.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: sled::Error,
    },
    /// Syncing its file.
    #[error("syncing the outbox in {path}; is the disk full or read-only?")]
    Sync {
        /// Its folder.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A message that is too long to be sent.
    #[error("a message cannot be sent")]
    Message(#[from] WireError),
}

/// What became of a message.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It has this number.
    As(u64),
    /// It has this number, and so many of the oldest had to go.
    AfterDropping(u64, u64),
    /// Training windows, while the outbox is half full: refused, so that alerts have the other half.
    Refused,
}

/// Numbered messages that survive a restart.
pub trait Outbox: Send + Sync {
    /// Chosen at random when this outbox was made.
    fn epoch(&self) -> u64;

    /// Keeps a message; when this returns, a power cut does not lose it.
    ///
    /// # Errors
    /// When it cannot be kept: try again later.
    fn put(&self, body: Uplink) -> Result<Kept, OutboxError>;

    /// The first message behind `seq`, encoded, with its number.
    ///
    /// # Errors
    /// When it cannot be read.
    fn after(&self, seq: u64) -> Result<Option<(u64, Vec<u8>)>, OutboxError>;

    /// Forgets everything up to and including `seq`; gives how many that were.
    ///
    /// # Errors
    /// When it cannot be written. Harmless: the fleet drops repeats.
    fn forget(&self, seq: u64) -> Result<u64, OutboxError>;

    /// Messages that wait.
    fn waiting(&self) -> u64;

    /// The newest alerts, oldest first, at most [`RECENT_MAX`].
    ///
    /// # Errors
    /// When they cannot be read.
    fn recent(&self) -> Result<Vec<Alert>, OutboxError>;
}

/// An outbox in sled.
pub struct SledOutbox {
    path: PathBuf,
    database: sled::Db,
    frames: sled::Tree,
    recent: sled::Tree,
    file: File,
    epoch: u64,
    max: u64,
    /// The next number, and one appender at a time.
    next: std::sync::Mutex<Numbers>,
}

struct Numbers {
    next: u64,
    waiting: VecDeque<u64>,
}

impl SledOutbox {
    /// Opens or makes the outbox in `<state>/outbox`; it keeps at most `max` messages.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(state: &Path, max: u32) -> Result<Self, OutboxError> {
        let path = state.join("outbox");
        let failed = |source| OutboxError::Store { path: path.clone(), source };
        let database = sled::Config::new()
            .path(&path)
            // Messages are written once and read once: a cache would only cost memory.
            .cache_capacity(1024 * 1024)
            .mode(sled::Mode::LowSpace)
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
        let waiting: Option<VecDeque<u64>> = frames.iter().keys().map(|key| number(&key.ok()?)).collect();
        let waiting = waiting.unwrap_or_default();
        let next = waiting.back().copied().unwrap_or(0).max(issued) + 1;
        let file =
            File::open(path.join("db")).map_err(|source| OutboxError::Sync { path: path.clone(), source })?;
        let outbox = Self {
            database,
            frames,
            recent,
            file,
            epoch,
            max: u64::from(max),
            next: std::sync::Mutex::new(Numbers { next, waiting }),
            path,
        };
        outbox.sync()?;
        Ok(outbox)
    }

    fn store(&self) -> impl Fn(sled::Error) -> OutboxError {
        |source| OutboxError::Store { path: self.path.clone(), source }
    }

    fn sync(&self) -> Result<(), OutboxError> {
        self.database.flush().map_err(self.store())?;
        self.file.sync_data().map_err(|source| OutboxError::Sync { path: self.path.clone(), source })
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
        let waiting = numbers.waiting.len() as u64;
        if matches!(body, Uplink::Windows(_)) && waiting >= self.max / 2 {
            return Ok(Kept::Refused);
        }
        let mut dropped = 0;
        while numbers.waiting.len() as u64 >= self.max
            && let Some(oldest) = numbers.waiting.front().copied()
        {
            self.frames.remove(oldest.to_be_bytes()).map_err(self.store())?;
            numbers.waiting.pop_front();
            dropped += 1;
        }
        let seq = numbers.next;
        let frame = UplinkFrame { epoch: self.epoch, seq, body };
        let bytes = encode(&frame)?;
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
        numbers.waiting.push_back(seq);
        Ok(if dropped == 0 { Kept::As(seq) } else { Kept::AfterDropping(seq, dropped) })
    }

    fn after(&self, seq: u64) -> Result<Option<(u64, Vec<u8>)>, OutboxError> {
        let found = self.frames.get_gt(seq.to_be_bytes()).map_err(self.store())?;
        Ok(found.and_then(|(key, value)| Some((number(&key)?, value.to_vec()))))
    }

    fn forget(&self, seq: u64) -> Result<u64, OutboxError> {
        let mut numbers = self.numbers();
        let mut forgotten = 0;
        while let Some(oldest) = numbers.waiting.front().copied().filter(|oldest| *oldest <= seq) {
            self.frames.remove(oldest.to_be_bytes()).map_err(self.store())?;
            numbers.waiting.pop_front();
            forgotten += 1;
        }
        Ok(forgotten)
    }

    fn waiting(&self) -> u64 {
        self.numbers().waiting.len() as u64
    }

    fn recent(&self) -> Result<Vec<Alert>, OutboxError> {
        let mut alerts = Vec::new();
        for value in self.recent.iter().values() {
            match models::wire::decode(&value.map_err(self.store())?) {
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

fn random() -> u64 {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use models::policy::Severity;
    use models::program::ProgramId;
    use models::wire::{TrainingWindows, decode};

    use super::*;

    fn program() -> ProgramId {
        ProgramId { unit: "u".into(), exe: "/e".into(), script: None }
    }

    fn alert(pid: u32) -> Uplink {
        Uplink::Alert(Alert {
            unix_ms: 1,
            program: program(),
            pid,
            comm: "c".into(),
            score: 91.0,
            severity: Severity::Critical,
            techniques: vec![],
            summary: "s".into(),
            reasons: vec![],
            generation: 1,
            detectors: vec![],
            suppressed_before: 0,
            degraded: vec![],
        })
    }

    fn windows() -> Uplink {
        Uplink::Windows(TrainingWindows { program: program(), windows: vec![] })
    }

    fn pids(outbox: &SledOutbox) -> Vec<u32> {
        let mut pids = Vec::new();
        let mut at = 0;
        while let Some((seq, bytes)) = outbox.after(at).unwrap() {
            let frame: UplinkFrame = decode(&bytes).unwrap();
            assert_eq!((frame.epoch, frame.seq), (outbox.epoch(), seq));
            let Uplink::Alert(alert) = frame.body else { panic!("not an alert") };
            pids.push(alert.pid);
            at = seq;
        }
        pids
    }

    #[test]
    fn messages_numbers_and_epoch_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = SledOutbox::open(dir.path(), 100).unwrap();
        let epoch = outbox.epoch();
        for pid in 1..=3 {
            assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)));
        }
        assert_eq!(outbox.forget(3).unwrap(), 3);
        drop(outbox);
        let outbox = SledOutbox::open(dir.path(), 100).unwrap();
        assert_eq!((outbox.epoch(), outbox.waiting()), (epoch, 0));
        assert_eq!(outbox.put(alert(4)).unwrap(), Kept::As(4), "a number was used twice");
        assert_eq!(outbox.recent().unwrap().len(), 4);
    }

    #[test]
    fn when_full_the_oldest_goes_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = SledOutbox::open(dir.path(), 4).unwrap();
        for pid in 1..=4 {
            assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)));
        }
        assert_eq!(outbox.put(alert(5)).unwrap(), Kept::AfterDropping(5, 1));
        assert_eq!(pids(&outbox), [2, 3, 4, 5]);
    }

    #[test]
    fn training_windows_leave_half_of_the_room_to_alerts() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = SledOutbox::open(dir.path(), 4).unwrap();
        assert_eq!(outbox.put(windows()).unwrap(), Kept::As(1));
        assert_eq!(outbox.put(windows()).unwrap(), Kept::As(2));
        assert_eq!(outbox.put(windows()).unwrap(), Kept::Refused);
        assert_eq!(outbox.put(alert(1)).unwrap(), Kept::As(3));
    }
}
