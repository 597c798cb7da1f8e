//! The benign service: started, told to be attacked, and ended.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::Failed;
use crate::process::{Process, binary};

/// A port on which nobody listens and which the service never uses.
pub const UNUSUAL_PORT: u16 = 4444;

/// The running service.
#[derive(Debug)]
pub struct Gateway {
    process: Process,
}

impl Gateway {
    /// Starts it; it works in `dir`. It runs from a copy in there, so that each one is a program of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(dir: &Path) -> Result<Self, Failed> {
        Self::start_every(dir, Duration::from_millis(100))
    }

    /// Starts one that works so often.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_every(dir: &Path, tick: Duration) -> Result<Self, Failed> {
        std::fs::create_dir_all(dir).map_err(|error| Failed::new(dir.display(), error))?;
        let executable = Self::executable(dir);
        std::fs::copy(binary("benign-gateway")?, &executable)
            .map_err(|error| Failed::new(executable.display(), error))?;
        let folder = dir.to_string_lossy().into_owned();
        let tick = tick.as_millis().to_string();
        let process =
            Process::start(&executable, &[&folder, &tick], &dir.join("gateway.log"), Stdio::piped())?;
        Ok(Self { process })
    }

    /// The executable of one that works in `dir`.
    #[must_use]
    pub fn executable(dir: &Path) -> PathBuf {
        dir.join("benign-gateway")
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// An error when it has ended.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check(&mut self) -> Result<(), Failed> {
        self.process.check()
    }

    /// Makes it do, from inside and without harm, what an intruder would: read `/etc/shadow`, start a shell, connect
    /// to [`UNUSUAL_PORT`] on loopback.
    ///
    /// # Errors
    /// When it has ended.
    pub fn attack(&mut self) -> Result<(), Failed> {
        self.process.check()?;
        let stdin = self.process.child().stdin.as_mut();
        let stdin = stdin.ok_or_else(|| Failed("the service has no standard input".into()))?;
        writeln!(stdin, "attack {UNUSUAL_PORT}")
            .and_then(|()| stdin.flush())
            .map_err(|error| Failed::new("telling the service", error))
    }
}
