//! A training that ends the server ends it twice and not at each start: the third time it is refused.
//!
//! What devices send is checked and training is made to refuse what it cannot use; this is for what nobody thought of. A
//! release ends at a panic, and a server that starts trains what waited.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;

/// How often one is begun that did not end. Once may be a loss of power.
const TIMES_MAX: u32 = 2;

/// What is being trained, in a file of the state folder.
#[derive(Debug)]
pub(super) struct Unfinished {
    file: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Begun {
    what: String,
    times: u32,
}

impl Unfinished {
    pub(super) fn of(state: &Path) -> Self {
        Self { file: state.join("training.json") }
    }

    /// Notes that it begins; `false` when it began so often and never ended. Then it may be tried anew.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn begin(&self, what: &str) -> io::Result<bool> {
        let before = fs::read(&self.file).ok().and_then(|bytes| serde_json::from_slice::<Begun>(&bytes).ok());
        let times = before.filter(|begun| begun.what == what).map_or(0, |begun| begun.times);
        if times >= TIMES_MAX {
            self.end();
            return Ok(false);
        }
        let begun = Begun { what: what.to_owned(), times: times + 1 };
        files::write_private(&self.file, &serde_json::to_vec(&begun).expect("a text and a number"))?;
        Ok(true)
    }

    /// Notes that it ended, whatever came of it.
    pub(super) fn end(&self) {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::error!("{}: {error}", self.file.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_that_ends_the_server_is_begun_twice_and_then_refused() {
        let dir = tempfile::tempdir().unwrap();
        let started = || Unfinished::of(dir.path());
        assert!(started().begin("a").unwrap());
        started().end();
        assert!(started().begin("a").unwrap());
        assert!(started().begin("a").unwrap());
        assert!(!started().begin("a").unwrap());
        assert!(started().begin("a").unwrap(), "whoever asks again gets it tried again");
        assert!(started().begin("b").unwrap(), "another one is none of its business");
        fs::write(dir.path().join("training.json"), "{").unwrap();
        assert!(started().begin("b").unwrap(), "a damaged note counts as none");
    }
}
