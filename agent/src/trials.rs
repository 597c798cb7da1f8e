//! Bundles that ended the agent while they were read: each is tried twice, then refused.
//!
//! A graph of another form than our trainer's is read by a library that panics on some that are no good, and a panic ends the
//! agent. Which bundle is being read is written down before, so a bad one costs two restarts and not one after the other.
//! The loss of power in that moment counts as well, hence twice.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use models::program::hex;

use crate::files;

/// The file in the state folder: a line for each, its SHA-256 and how often it was begun.
const FILE: &str = "bundles-begun";
/// How often a bundle may be begun without an end.
const TRIES_MAX: u32 = 2;
/// Bundles remembered; of more the oldest is forgotten.
const BUNDLES_MAX: usize = 16;

/// Why a bundle is not tried.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// It was begun too often.
    #[error(
        "the agent ended {0} times while it read this bundle, so it is not read again: train the program anew"
    )]
    Ended(u32),
    /// It cannot be written down.
    #[error("writing {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// What was begun and not ended.
#[derive(Debug)]
pub struct Trials {
    path: PathBuf,
    begun: VecDeque<(String, u32)>,
}

impl Trials {
    /// Reads what was written down. A line that means nothing is left out.
    #[must_use]
    pub fn open(state: &Path) -> Self {
        let path = state.join(FILE);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let line = |line: &str| {
            let (hash, times) = line.split_once(' ')?;
            (hash.len() == 64).then_some((hash.to_owned(), times.parse().ok()?))
        };
        let begun = text.lines().filter_map(line).take(BUNDLES_MAX).collect();
        Self { path, begun }
    }

    /// Reads a bundle with this hash, unless it ended the agent too often.
    ///
    /// # Errors
    /// When it did, or what is begun cannot be written down.
    pub fn attempt<T>(&mut self, sha256: &[u8; 32], read: impl FnOnce() -> T) -> Result<T, TrialError> {
        let hash = hex(sha256);
        let before = self.begun.iter().position(|(known, _)| *known == hash);
        let times = before.map_or(0, |at| self.begun[at].1);
        if times >= TRIES_MAX {
            return Err(TrialError::Ended(times));
        }
        if let Some(at) = before {
            self.begun.remove(at);
        } else if self.begun.len() >= BUNDLES_MAX {
            self.begun.pop_front();
        }
        self.begun.push_back((hash, times + 1));
        self.write()?;
        let read = read();
        self.begun.pop_back();
        self.write()?;
        Ok(read)
    }

    fn write(&self) -> Result<(), TrialError> {
        let failed = |source| TrialError::File { path: self.path.clone(), source };
        if self.begun.is_empty() {
            return fs::remove_file(&self.path).map_err(failed);
        }
        let lines = self.begun.iter().map(|(hash, times)| format!("{hash} {times}\n"));
        files::write_private(&self.path, lines.collect::<String>().as_bytes()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// The agent begins to read a bundle and ends.
    fn ends(state: &Path, sha256: [u8; 32]) {
        let mut trials = Trials::open(state);
        let ended = catch_unwind(AssertUnwindSafe(|| trials.attempt(&sha256, || panic!("a bad graph"))));
        assert!(ended.is_err(), "it was not even tried");
    }

    #[test]
    fn a_bundle_that_ends_the_agent_is_tried_twice_and_others_are_not_held_up() {
        let dir = tempfile::tempdir().unwrap();
        let (bad, good) = ([1; 32], [2; 32]);
        ends(dir.path(), bad);
        assert_eq!(Trials::open(dir.path()).attempt(&good, || 7).unwrap(), 7);
        ends(dir.path(), bad);
        let refused = Trials::open(dir.path()).attempt(&bad, || 7);
        assert!(matches!(refused, Err(TrialError::Ended(2))), "{refused:?}");
        assert_eq!(Trials::open(dir.path()).attempt(&good, || 7).unwrap(), 7);
    }

    #[test]
    fn what_was_read_is_forgotten_and_the_oldest_of_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let mut trials = Trials::open(dir.path());
        trials.attempt(&[1; 32], || ()).unwrap();
        assert!(!dir.path().join(FILE).exists());
        for n in 0..=u8::try_from(BUNDLES_MAX).unwrap() {
            ends(dir.path(), [n; 32]);
        }
        let trials = Trials::open(dir.path());
        assert_eq!(trials.begun.len(), BUNDLES_MAX);
        assert_eq!(trials.begun[0].0, hex(&[1; 32]));
        fs::write(dir.path().join(FILE), "nonsense\n").unwrap();
        assert!(Trials::open(dir.path()).begun.is_empty());
    }
}
