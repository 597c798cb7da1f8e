//! Messages that wait for the fleet, numbered, on disk until the fleet has stored them.
//!
//! Two engines behind one trait. [`LogOutbox`] is the one that runs: it keeps every promise below, also on a disk that
//! was full and has room again. The other, in sled, is built with the feature `sled`: after its first failed write
//! sled 0.34 refuses all others until the process ends, and it needs 24 MB of memory to open an empty database.

mod log;
mod memory;
mod recent;
#[cfg(feature = "sled")]
mod sled;

use std::io;
use std::path::PathBuf;

use models::wire::{Alert, Uplink, WireError};
use ring::rand::{SecureRandom as _, SystemRandom};

pub use self::log::LogOutbox;
pub use self::memory::MemoryOutbox;
#[cfg(feature = "sled")]
pub use self::sled::SledOutbox;

/// Alerts kept for `behaveguard alerts`, also after the fleet has them.
pub const RECENT_MAX: usize = 1000;

/// Why a message was not kept.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// A file of the log.
    #[error("using the outbox in {path}; is the disk full or read-only?")]
    File {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The database.
    #[cfg(feature = "sled")]
    #[error("using the outbox in {path}; is the disk full or read-only?")]
    Store {
        /// Its folder.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: ::sled::Error,
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

    /// Messages that were damaged on disk and are lost; the fleet sees the gap in the numbers.
    fn damaged(&self) -> u64;

    /// The newest alerts, oldest first, at most [`RECENT_MAX`].
    ///
    /// # Errors
    /// When they cannot be read.
    fn recent(&self) -> Result<Vec<Alert>, OutboxError>;
}

/// Half of an outbox is for what is not: a fleet can be without a window, and not without an alert.
fn is_to_be_learned(body: &Uplink) -> bool {
    matches!(body, Uplink::Windows(_) | Uplink::Alarmed(_))
}

/// What matters less makes room first: training windows, then alerts by severity. What happened to the agent, or
/// was done by it, is as good as a HIGH alert: who tampers with it must not get rid of the evidence by many small alerts.
fn rank(body: &Uplink) -> u8 {
    match body {
        Uplink::Windows(_) | Uplink::Alarmed(_) => 0,
        Uplink::Alert(alert) => 1 + alert.severity as u8,
        Uplink::Event(_) | Uplink::Answer(_) => 1 + models::policy::Severity::High as u8,
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).expect("the system gives random bytes");
    u64::from_be_bytes(bytes)
}

/// What every engine must do.
#[cfg(test)]
mod tests {
    use std::path::Path;

    use models::policy::Severity;
    use models::program::ProgramId;
    use models::wire::{TrainingWindows, UplinkFrame, decode};

    use super::*;

    type Open = fn(&Path, u64) -> Box<dyn Outbox>;

    const ENGINES: &[(&str, Open)] = &[
        ("log", |dir, max| Box::new(LogOutbox::open(dir, max).unwrap())),
        #[cfg(feature = "sled")]
        ("sled", |dir, max| Box::new(reopened(dir, max))),
    ];

    /// A process that another test starts at this moment holds sled's lock from its fork to its exec.
    #[cfg(feature = "sled")]
    fn reopened(dir: &Path, max: u64) -> SledOutbox {
        let mut opened = SledOutbox::open(dir, max);
        for _ in 0..200 {
            if opened.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            opened = SledOutbox::open(dir, max);
        }
        opened.unwrap()
    }

    fn program() -> ProgramId {
        ProgramId { unit: "u".into(), exe: "/e".into(), script: None }
    }

    pub(super) fn alert(pid: u32) -> Uplink {
        Uplink::Alert(Alert {
            unix_ms: 1,
            program: program(),
            pid,
            comm: "c".into(),
            score: 91.0,
            severity: Severity::Critical,
            techniques: vec![],
            // Long enough that bounds in bytes are easy to count.
            summary: "s".repeat(1000),
            reasons: vec![],
            generation: 1,
            detectors: vec![],
            suppressed_before: 0,
            degraded: vec![],
        })
    }

    fn windows() -> Uplink {
        let window = models::wire::TrainingWindow {
            unix_ms: 1,
            run: 1,
            vector: vec![],
            traits: vec![u64::MAX; 100],
            grams: vec![],
        };
        Uplink::Windows(TrainingWindows { program: program(), windows: vec![window] })
    }

    pub(super) fn pids(outbox: &dyn Outbox) -> Vec<u32> {
        let mut pids = Vec::new();
        let mut at = 0;
        while let Some((seq, bytes)) = outbox.after(at).unwrap() {
            let frame: UplinkFrame = decode(&bytes).unwrap();
            assert_eq!((frame.epoch, frame.seq), (outbox.epoch(), seq));
            if let Uplink::Alert(alert) = frame.body {
                pids.push(alert.pid);
            }
            at = seq;
        }
        pids
    }

    #[test]
    fn messages_numbers_and_epoch_survive_reopening() {
        for (engine, open) in ENGINES {
            let dir = tempfile::tempdir().unwrap();
            let outbox = open(dir.path(), 1 << 20);
            let epoch = outbox.epoch();
            for pid in 1..=3 {
                assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)), "{engine}");
            }
            assert_eq!(outbox.forget(2).unwrap(), 2, "{engine}");
            drop(outbox);
            let outbox = open(dir.path(), 1 << 20);
            assert_eq!((outbox.epoch(), outbox.waiting()), (epoch, 1), "{engine}");
            assert_eq!(outbox.forget(3).unwrap(), 1, "{engine}");
            drop(outbox);
            let outbox = open(dir.path(), 1 << 20);
            assert_eq!(outbox.waiting(), 0, "{engine}");
            assert_eq!(outbox.put(alert(4)).unwrap(), Kept::As(4), "{engine}: a number was used twice");
            let recent: Vec<u32> = outbox.recent().unwrap().iter().map(|alert| alert.pid).collect();
            assert_eq!(recent, [1, 2, 3, 4], "{engine}");
        }
    }

    #[test]
    fn when_full_the_oldest_goes_and_is_counted() {
        for (engine, open) in ENGINES {
            let dir = tempfile::tempdir().unwrap();
            let outbox = open(dir.path(), 4300);
            for pid in 1..=4 {
                assert_eq!(outbox.put(alert(pid)).unwrap(), Kept::As(u64::from(pid)), "{engine}");
            }
            assert_eq!(outbox.put(alert(5)).unwrap(), Kept::AfterDropping(5, 1), "{engine}");
            assert_eq!(pids(outbox.as_ref()), [2, 3, 4, 5], "{engine}");
            drop(outbox);
            assert_eq!(pids(open(dir.path(), 4300).as_ref()), [2, 3, 4, 5], "{engine}");
        }
    }

    #[test]
    fn training_windows_leave_half_of_the_room_to_alerts() {
        for (engine, open) in ENGINES {
            let dir = tempfile::tempdir().unwrap();
            let outbox = open(dir.path(), 4300);
            assert_eq!(outbox.put(windows()).unwrap(), Kept::As(1), "{engine}");
            assert_eq!(outbox.put(windows()).unwrap(), Kept::As(2), "{engine}");
            assert_eq!(outbox.put(windows()).unwrap(), Kept::Refused, "{engine}");
            assert_eq!(outbox.put(alert(1)).unwrap(), Kept::As(3), "{engine}");
        }
    }

    #[test]
    fn only_the_newest_alerts_are_kept_to_be_shown() {
        for (engine, open) in ENGINES {
            let dir = tempfile::tempdir().unwrap();
            let outbox = open(dir.path(), 1 << 24);
            let last = if cfg!(feature = "sled") { 1010 } else { 2500 };
            for pid in 1..=last {
                let Kept::As(seq) = outbox.put(alert(pid)).unwrap() else { panic!("{engine}: dropped") };
                outbox.forget(seq).unwrap();
            }
            let recent = outbox.recent().unwrap();
            assert_eq!(recent.len(), RECENT_MAX, "{engine}");
            assert_eq!(recent.last().map(|alert| alert.pid), Some(last), "{engine}");
        }
    }
}
