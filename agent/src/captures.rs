//! Captures that the fleet asked for, until it has them: `captures/<order>` in the state folder.
//!
//! One that a restart or a power cut interrupted is sent as far as it came: what is whole in it can be replayed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use models::wire::CAPTURE_MAX;

use crate::capture::{CaptureError, Writer};
use crate::files;

/// Captures kept at once, with the one that is being recorded; one more is refused.
pub const CAPTURES_MAX: usize = 2;

/// Why none is begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// [`CAPTURES_MAX`].
    #[error("{CAPTURES_MAX} captures wait to be sent already: ask again when the fleet has one of them")]
    TooMany,
    /// The folder.
    #[error("using {0}")]
    Folder(PathBuf, #[source] io::Error),
    /// The file.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// The folder.
#[derive(Debug)]
pub struct Captures(PathBuf);

impl Captures {
    /// Of this state folder; nothing is made yet.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self(state.join("captures"))
    }

    /// What is there, by order.
    #[must_use]
    pub fn all(&self) -> Vec<Capture> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let named = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut orders: Vec<u64> = named.collect();
        orders.sort_unstable();
        orders.into_iter().filter_map(|order| self.get(order).ok()).collect()
    }

    /// Makes the file for an order.
    ///
    /// # Errors
    /// When there are too many, or it cannot be made.
    pub fn begin(&self, order: u64, bytes_max: u32) -> Result<Writer, BeginError> {
        if self.all().len() >= CAPTURES_MAX {
            return Err(BeginError::TooMany);
        }
        files::make_private_dir(&self.0).map_err(|error| BeginError::Folder(self.0.clone(), error))?;
        Ok(Writer::create(&self.path(order), u64::from(bytes_max))?)
    }

    /// One that was recorded.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, order: u64) -> io::Result<Capture> {
        let path = self.path(order);
        let size = fs::metadata(&path)?.len();
        let size = u32::try_from(size).unwrap_or(u32::MAX).min(CAPTURE_MAX);
        Ok(Capture { order, size, path })
    }

    /// Keeps it no longer.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, order: u64) -> io::Result<()> {
        fs::remove_file(self.path(order))
    }

    fn path(&self, order: u64) -> PathBuf {
        self.0.join(order.to_string())
    }
}

/// One that nobody writes any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// The order that it was recorded for.
    pub order: u64,
    /// Bytes.
    pub size: u32,
    path: PathBuf,
}

impl Capture {
    /// A part of it: `max` bytes from `offset` on, fewer at its end.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn part(&self, offset: u32, max: usize) -> io::Result<Vec<u8>> {
        let mut part = vec![0; max.min(self.size.saturating_sub(offset) as usize)];
        File::open(&self.path)?.read_exact_at(&mut part, u64::from(offset))?;
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_are_found_again_by_order_and_too_many_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let captures = Captures::of(dir.path());
        assert!(captures.all().is_empty());
        captures.begin(10, 1 << 20).unwrap().finish().unwrap();
        drop(captures.begin(9, 1 << 20).unwrap());
        assert!(matches!(captures.begin(11, 1 << 20), Err(BeginError::TooMany)));
        fs::write(dir.path().join("captures/notes"), "no capture").unwrap();
        let all = captures.all();
        assert_eq!(all.iter().map(|capture| capture.order).collect::<Vec<_>>(), [9, 10]);
        let whole = all[1].part(0, 1000).unwrap();
        assert_eq!(whole.len(), all[1].size as usize);
        assert_eq!(all[1].part(2, 3).unwrap(), whole[2..5]);
        assert!(all[1].part(all[1].size, 10).unwrap().is_empty());
        captures.remove(10).unwrap();
        assert_eq!(captures.all().len(), 1);
        captures.begin(11, 1 << 20).unwrap();
    }
}
