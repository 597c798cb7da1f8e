//! Where the configuration comes from: a file, the fleet, the environment and the command line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use models::chain::chain;

use super::read::Reader;
use super::{Config, DEFAULT_PATH, OVERLAY_FILE, Overlay, Problem, environment};

/// What is read, at the start and again on SIGHUP.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file that was named; without one the default path, if something is there.
    pub file: Option<PathBuf>,
    /// The state folder that was named.
    pub state: Option<PathBuf>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// What it says.
    #[error("{}", told(.place, .problems))]
    Problems {
        /// The file, or the environment.
        place: String,
        /// All of them.
        problems: Vec<Problem>,
    },
}

/// The text of a file and what it is called.
#[derive(Debug)]
pub struct Found {
    /// Empty where there is no file.
    pub text: String,
    /// The file, or `the environment`.
    pub place: String,
    /// There is one.
    pub is_file: bool,
}

impl Source {
    /// What the agent runs with. What the fleet said and cannot be used here any more is told, and left out.
    ///
    /// # Errors
    /// When the file cannot be read, or something in it or the environment is wrong.
    pub fn load(&self) -> Result<Config, SourceError> {
        let alone = self.read(None)?;
        let with = match Overlay::read(&alone.state) {
            Ok(None) => return Ok(alone),
            Ok(Some(overlay)) => self.with(&overlay).map_err(|error| chain(&error)),
            // People who ask the agent may not read its state folder, and need not.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(alone),
            Err(error) => Err(format!("{}: {error}", alone.state.join(OVERLAY_FILE).display())),
        };
        Ok(with.unwrap_or_else(|reason| {
            log::error!("what the fleet says is left out: {reason}");
            alone
        }))
    }

    /// What the agent would run with if the fleet said this.
    ///
    /// # Errors
    /// As [`Source::load`], and when something in what the fleet says is wrong.
    pub fn with(&self, overlay: &Overlay) -> Result<Config, SourceError> {
        self.read(Some(overlay))
    }

    fn read(&self, overlay: Option<&Overlay>) -> Result<Config, SourceError> {
        let found = self.find()?;
        let place = match overlay {
            None => found.place,
            Some(overlay) => format!("{} with version {} of the fleet's", found.place, overlay.version),
        };
        let mut config = Config::read_with(&found.text, overlay, &environment())
            .map_err(|problems| SourceError::Problems { place, problems })?;
        if let Some(state) = &self.state {
            config.state.clone_from(state);
        }
        Ok(config)
    }

    /// Where the running agent answers, also while the file is being edited and something in it is wrong.
    #[must_use]
    pub fn state_folder(&self) -> PathBuf {
        let text = self.find().map(|found| found.text).unwrap_or_default();
        let mut state = Config::default().state;
        Reader::new(text.parse().unwrap_or_default(), &environment()).words("state", &mut state, |_| true);
        self.state.clone().unwrap_or(state)
    }

    /// The file's text. That none is at the default path is no error.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn find(&self) -> Result<Found, SourceError> {
        let default = Path::new(DEFAULT_PATH);
        let path = match &self.file {
            Some(path) => path,
            None if default.exists() => default,
            None => {
                return Ok(Found { text: String::new(), place: "the environment".into(), is_file: false });
            }
        };
        let text =
            fs::read_to_string(path).map_err(|source| SourceError::File { path: path.to_owned(), source })?;
        Ok(Found { text, place: path.display().to_string(), is_file: true })
    }
}

fn told(place: &str, problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
    let n = if problems.len() == 1 { "a problem".to_owned() } else { format!("{} problems", problems.len()) };
    format!("{place} has {n}:{}", lines.concat())
}
