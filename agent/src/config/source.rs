//! Where the configuration comes from: a file, the environment and the command line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::read::Reader;
use super::{Config, DEFAULT_PATH, Problem, environment};

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
    /// What the agent runs with.
    ///
    /// # Errors
    /// When the file cannot be read, or something in it or the environment is wrong.
    pub fn load(&self) -> Result<Config, SourceError> {
        let found = self.find()?;
        let mut config = Config::read(&found.text, &environment())
            .map_err(|problems| SourceError::Problems { place: found.place, problems })?;
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
