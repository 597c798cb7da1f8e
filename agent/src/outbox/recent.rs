//! The newest alerts, for `behaveguard alerts`: two files, of which the older goes when the newer is full.
//!
//! Nothing is promised about them: the outbox holds what must reach the fleet. So they are not synced, and what
//! cannot be written is only logged.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use models::wire::{Alert, encode};

use super::RECENT_MAX;

pub(super) struct Recent {
    newer: PathBuf,
    older: PathBuf,
    n_newer: usize,
}

impl Recent {
    pub(super) fn open(dir: &Path) -> Self {
        let (newer, older) = (dir.join("recent"), dir.join("recent.old"));
        let n_newer = load(&newer).len();
        Self { newer, older, n_newer }
    }

    pub(super) fn add(&mut self, alert: &Alert) {
        if self.n_newer >= RECENT_MAX {
            if let Err(error) = fs::rename(&self.newer, &self.older) {
                log::warn!("{}: {error}", self.newer.display());
                return;
            }
            self.n_newer = 0;
        }
        let Ok(bytes) = encode(alert) else { return };
        let mut record = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        record.extend(bytes);
        match self.file().and_then(|mut file| file.write_all(&record)) {
            Ok(()) => self.n_newer += 1,
            Err(error) => log::warn!("{}: {error}", self.newer.display()),
        }
    }

    /// At most [`RECENT_MAX`], oldest first.
    pub(super) fn read(&self) -> Vec<Alert> {
        let mut alerts = load(&self.older);
        alerts.extend(load(&self.newer));
        alerts.split_off(alerts.len().saturating_sub(RECENT_MAX))
    }

    fn file(&self) -> std::io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(&self.newer)
    }
}

/// The alerts of a file, up to the first that was cut.
fn load(path: &Path) -> Vec<Alert> {
    let bytes = fs::read(path).unwrap_or_default();
    let mut rest = &bytes[..];
    let mut alerts = Vec::new();
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        let Some((alert, after)) = after.split_at_checked(len) else { break };
        // One that another version wrote is left out; the fleet has it.
        alerts.extend(models::wire::decode::<Alert>(alert).ok());
        rest = after;
    }
    alerts
}
