//! A disk that is full now and then.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use agent::outbox::{Kept, LogOutbox, Outbox, OutboxError};
use models::wire::{Alert, Uplink};

/// An outbox on a disk that may be full.
pub(crate) struct Disk {
    log: LogOutbox,
    full: AtomicBool,
}

impl Disk {
    pub(crate) fn new(log: LogOutbox) -> Self {
        Self { log, full: AtomicBool::new(false) }
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Relaxed);
    }

    fn check(&self) -> Result<(), OutboxError> {
        if self.full.load(Relaxed) {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            return Err(OutboxError::File { path: PathBuf::from("made up"), source });
        }
        Ok(())
    }
}

impl Outbox for Disk {
    fn epoch(&self) -> u64 {
        self.log.epoch()
    }

    fn put(&self, body: Uplink) -> Result<Kept, OutboxError> {
        self.check()?;
        self.log.put(body)
    }

    fn after(&self, seq: u64) -> Result<Option<(u64, Vec<u8>)>, OutboxError> {
        self.log.after(seq)
    }

    fn forget(&self, seq: u64) -> Result<u64, OutboxError> {
        self.check()?;
        self.log.forget(seq)
    }

    fn waiting(&self) -> u64 {
        self.log.waiting()
    }

    fn damaged(&self) -> u64 {
        self.log.damaged()
    }

    fn recent(&self) -> Result<Vec<Alert>, OutboxError> {
        self.log.recent()
    }
}
