//! A child process that ends with its owner and writes its log into a file.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{Failed, wait_for};

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

/// The binary `name` of this workspace: beside the running one, or a folder up when a test runs.
///
/// # Errors
/// When it was not built.
pub fn binary(name: &str) -> Result<PathBuf, Failed> {
    let me = std::env::current_exe().map_err(|error| Failed::new("finding this program", error))?;
    let found = me.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| Failed(format!("{name} is not built: run this through `cargo xtask`")))
}

/// A file of the checkers that `cargo xtask test` installs into the target folder.
///
/// # Errors
/// When it is not there.
pub fn checker(path: &str) -> Result<PathBuf, Failed> {
    let me = std::env::current_exe().map_err(|error| Failed::new("finding this program", error))?;
    let found = me.ancestors().map(|folder| folder.join("checkers").join(path)).find(|file| file.is_file());
    found.ok_or_else(|| {
        Failed(format!("checkers/{path} is missing: run this through `cargo xtask test`, which installs it"))
    })
}

impl Process {
    /// Starts a program; its output goes to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, arguments: &[&str], log: &Path, stdin: Stdio) -> Result<Self, Failed> {
        Self::start_with(program, arguments, &[], log, stdin)
    }

    /// The same with more in its environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with(
        program: &Path,
        arguments: &[&str],
        environment: &[(String, String)],
        log: &Path,
        stdin: Stdio,
    ) -> Result<Self, Failed> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed = |error| Failed::new(format!("starting {name}"), error);
        let out = File::options().create(true).append(true).open(log).map_err(failed)?;
        let child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().cloned())
            .stdin(stdin)
            .stdout(out.try_clone().map_err(failed)?)
            .stderr(out)
            // Ctrl-C at the terminal is for the owner, who ends its children in order.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// An error with the end of its log, when it has ended.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check(&mut self) -> Result<(), Failed> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Failed(format!("{} ended ({status}):\n{}", self.name, self.tail()))),
            Err(error) => Err(Failed::new(&self.name, error)),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), Failed> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failed(format!("{} has no process id", self.name)))?;
        kill_process(pid, signal).map_err(|error| Failed::new(&self.name, error))
    }

    /// Ends it as `kill -9` does.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(mut self) -> Result<(), Failed> {
        self.check()?;
        self.child.kill().and_then(|()| self.child.wait()).map_err(|error| Failed::new(&self.name, error))?;
        Ok(())
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// When it does not end in time or ended with an error.
    pub fn stop(mut self) -> Result<(), Failed> {
        self.check()?;
        self.signal(Signal::TERM)?;
        let status = wait_for(&format!("the end of {}", self.name), Duration::from_secs(20), || {
            self.child.try_wait().map_err(|error| Failed::new(&self.name, error))
        })?;
        if status.success() {
            Ok(())
        } else {
            Err(Failed(format!("{} ended with {status}:\n{}", self.name, self.tail())))
        }
    }

    /// The last lines of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
