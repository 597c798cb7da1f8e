//! Brokers of others: Mosquitto and NATS Server, with the files that the fleet server writes for them.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::fleet::Fleet;
use crate::process::Process;
use crate::{Failed, free_port, wait_for};

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Mosquitto.
    Mosquitto,
    /// NATS Server with its MQTT listener.
    Nats,
}

/// A broker on loopback.
#[derive(Debug)]
pub struct Broker {
    kind: Kind,
    dir: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Broker {
    /// One in `dir` that does not run yet; its port is free now.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn new(kind: Kind, dir: &Path) -> Result<Self, Failed> {
        Ok(Self { kind, dir: dir.to_owned(), port: free_port()?, process: None })
    }

    /// What the fleet server's configuration says of it.
    #[must_use]
    pub fn config(&self) -> String {
        let shared = self.kind == Kind::Mosquitto;
        format!("[broker]\nexternal = \"mqtts://127.0.0.1:{}\"\nshared = {shared}\n", self.port)
    }

    /// Has the fleet server write its files, and starts it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&mut self, fleet: &Fleet) -> Result<(), Failed> {
        let (out, port) = (self.dir.to_string_lossy().into_owned(), self.port.to_string());
        fleet.command(&[
            "broker",
            "--name",
            "127.0.0.1",
            "--name",
            "localhost",
            "--port",
            &port,
            "--out",
            &out,
        ])?;
        self.restart()
    }

    /// Adds to its configuration, and to its access control where it has one.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn add(&self, file: &str, text: &str) -> Result<(), Failed> {
        let path = self.dir.join(file);
        let before = std::fs::read_to_string(&path).map_err(|error| Failed::new(path.display(), error))?;
        std::fs::write(&path, before + text).map_err(|error| Failed::new(path.display(), error))
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts it again, after [`Broker::kill`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<(), Failed> {
        let (program, file) = match self.kind {
            Kind::Mosquitto => ("/usr/sbin/mosquitto", "mosquitto.conf"),
            Kind::Nats => ("/usr/sbin/nats-server", "nats-server.conf"),
        };
        let config = self.dir.join(file);
        if self.kind == Kind::Mosquitto && !self.dir.join("user").exists() {
            // As root it would become a user who cannot read what is in a private folder.
            self.add(file, "user root\n")?;
            std::fs::write(self.dir.join("user"), "")
                .map_err(|error| Failed::new("marking the folder", error))?;
        }
        let arguments = ["-c", &config.to_string_lossy()];
        let mut process =
            Process::start(Path::new(program), &arguments, &self.dir.join("broker.log"), Stdio::null())?;
        wait_for("the start of the broker", Duration::from_secs(20), || {
            process.check()?;
            Ok(TcpStream::connect(("127.0.0.1", self.port)).ok())
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<(), Failed> {
        self.process.take().ok_or_else(|| Failed("the broker does not run".into()))?.kill()
    }
}
