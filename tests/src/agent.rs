//! An agent with a state folder of its own, used through its commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::Failed;
use crate::fleet::Fleet;
use crate::process::{Process, binary};

/// An agent.
#[derive(Debug)]
pub struct Agent {
    dir: PathBuf,
    /// What it has in its environment beside what everybody has.
    pub environment: Vec<(String, String)>,
    /// A program and arguments that start it, and its commands, in another place.
    pub before: Vec<String>,
    process: Option<Process>,
}

impl Agent {
    /// Writes a configuration that watches one program in windows of a second, and enrols.
    ///
    /// # Errors
    /// When a file cannot be written or the server refuses.
    pub fn enroll(dir: &Path, watch: &Path, fleet: &Fleet, device: &str) -> Result<Self, Failed> {
        let config = format!("watch = [{watch:?}]\nwindow = \"1s\"\nheartbeat = \"2s\"\nsamples = 100\n");
        Self::enroll_with(dir, &config, fleet, device)
    }

    /// Writes a configuration, to which the state folder is added, and enrols.
    ///
    /// # Errors
    /// When a file cannot be written or the server refuses.
    pub fn enroll_with(dir: &Path, config: &str, fleet: &Fleet, device: &str) -> Result<Self, Failed> {
        let agent = Self::alone(dir, config)?;
        agent.enroll_in(fleet, device)?;
        Ok(agent)
    }

    /// Enrols one that belongs to no fleet.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn enroll_in(&self, fleet: &Fleet, device: &str) -> Result<(), Failed> {
        let token = self.dir.join("token");
        fs::write(&token, fleet.enrolment_token(device)?)
            .map_err(|error| Failed::new("writing the enrolment token", error))?;
        let token = token.to_string_lossy().into_owned();
        let output = self.command(&["enroll", "--token", &token, "--device", device])?;
        if output.status.success() {
            Ok(())
        } else {
            Err(Failed::new("enrolling", String::from_utf8_lossy(&output.stderr)))
        }
    }

    /// Writes a configuration, to which the state folder is added, for one that belongs to no fleet.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn alone(dir: &Path, config: &str) -> Result<Self, Failed> {
        fs::create_dir_all(dir).map_err(|error| Failed::new(dir.display(), error))?;
        let agent = Self { dir: dir.to_owned(), environment: Vec::new(), before: Vec::new(), process: None };
        agent.configure(config)?;
        Ok(agent)
    }

    /// Writes another configuration; one that runs reads it on SIGHUP.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, config: &str) -> Result<(), Failed> {
        let config = format!("state = {:?}\n{config}", self.state());
        fs::write(self.config(), config).map_err(|error| Failed::new("writing the configuration", error))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<(), Failed> {
        self.process.as_ref().ok_or_else(|| Failed("the agent does not run".into()))?.signal(signal)
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn id(&self) -> Result<u32, Failed> {
        self.process.as_ref().map(Process::id).ok_or_else(|| Failed("the agent does not run".into()))
    }

    /// What it wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started; a later end is seen by [`Agent::check`].
    pub fn run(&mut self) -> Result<(), Failed> {
        let words = self.words(&["run"])?;
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let log = self.dir.join("agent.log");
        self.process = Some(Process::start_with(
            Path::new(&words[0]),
            &arguments,
            &self.environment,
            &log,
            Stdio::null(),
        )?);
        Ok(())
    }

    /// An error with the end of its log, when it does not run.
    ///
    /// # Errors
    /// When it does not run.
    pub fn check(&mut self) -> Result<(), Failed> {
        self.process.as_mut().map_or_else(|| Err(Failed("the agent does not run".into())), Process::check)
    }

    /// Ends it as `kill -9` does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<(), Failed> {
        self.process.take().ok_or_else(|| Failed("the agent does not run".into()))?.kill()
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not end, or with an error.
    pub fn stop(&mut self) -> Result<(), Failed> {
        self.process.take().map_or(Ok(()), Process::stop)
    }

    /// Runs one of its commands.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn command(&self, arguments: &[&str]) -> Result<Output, Failed> {
        let words = self.words(arguments)?;
        Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Failed::new("starting behaveguard", error))
    }

    /// `behaveguard status --json`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Value, Failed> {
        self.json(&["status", "--json"])
    }

    /// `behaveguard alerts --json`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn alerts(&self) -> Result<Vec<Value>, Failed> {
        Ok(self.json(&["alerts", "--json"])?.as_array().cloned().unwrap_or_default())
    }

    fn json(&self, arguments: &[&str]) -> Result<Value, Failed> {
        let output = self.command(arguments)?;
        if !output.status.success() {
            return Err(Failed::new(arguments.join(" "), String::from_utf8_lossy(&output.stderr)));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| Failed::new(arguments.join(" "), error))
    }

    /// All of a command of its own.
    fn words(&self, arguments: &[&str]) -> Result<Vec<String>, Failed> {
        let (program, config) = (binary("behaveguard")?, self.config());
        let own = [program.to_string_lossy(), "--config".into(), config.to_string_lossy()];
        let own = own.iter().map(ToString::to_string).chain(arguments.iter().map(ToString::to_string));
        Ok(self.before.iter().cloned().chain(own).collect())
    }

    fn config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }
}
