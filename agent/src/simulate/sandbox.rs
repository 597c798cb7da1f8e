//! What a simulation may touch: paths and addresses become usable only through here, and all others are refused.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Every file and folder that a simulation makes begins with this.
pub(super) const MARK: &str = "behaveguard-simulation-";

/// Files that are opened for reading, as the attacks do; what is in them is neither kept nor shown.
const READABLE: [&str; 2] = ["/etc/shadow", "/etc/gshadow"];

/// Why an act was not done.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The sandbox does not allow it.
    #[error("refused to touch {0}")]
    Refused(String),
    /// This machine lacks something.
    #[error("needs {0}")]
    Needs(String),
    /// A step failed.
    #[error("{what}")]
    Step {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It ran, and what it should have brought about is not there.
    #[error("{0}")]
    Unproven(String),
}

/// Says what was being done when it failed.
pub(super) fn step<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, Problem> {
    result.map_err(|source| Problem::Step { what: what.into(), source })
}

/// The places that belong to one run, by the process that owns it.
#[derive(Clone, Copy, Debug)]
pub struct Sandbox {
    owner: u32,
    private: bool,
}

impl Sandbox {
    /// The sandbox of the run that `owner` leads. `private`: in network and mount namespaces of its own.
    #[must_use]
    pub fn of(owner: u32, private: bool) -> Self {
        Self { owner, private }
    }

    /// Whether network and mounts are its own, so that nothing outside can be touched at all.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// The process that leads the run.
    #[must_use]
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// Its folder of temporary files.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/tmp/{MARK}{}", self.owner))
    }

    /// The one log that it may wipe.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        PathBuf::from(format!("/var/log/{MARK}{}.log", self.owner))
    }

    /// A second folder on the file system of the log, in a mount namespace of its own only.
    #[must_use]
    pub fn beside_log(&self) -> PathBuf {
        PathBuf::from(format!("/var/tmp/{MARK}{}", self.owner))
    }

    /// A path that may be made, changed and removed: a name below the folder, or the log.
    ///
    /// # Errors
    /// When it lies elsewhere, also by way of `..`.
    pub fn path(&self, path: impl AsRef<Path>) -> Result<PathBuf, Problem> {
        let path = self.root().join(path);
        let refused = || Problem::Refused(path.display().to_string());
        let text = path.to_str().ok_or_else(refused)?;
        let climbs = text.split('/').any(|part| part == "..");
        let below = |folder: &Path| path.starts_with(folder) && path != folder;
        let moved = self.log().with_extension("log.1");
        let inside = below(&self.root())
            || path == self.log()
            || self.private && (path == moved || below(&self.beside_log()));
        if inside && !climbs { Ok(path) } else { Err(refused()) }
    }

    /// A path that may be opened for reading: also the files with hashed passwords.
    ///
    /// # Errors
    /// When it is another.
    pub fn readable(&self, path: &str) -> Result<PathBuf, Problem> {
        if READABLE.contains(&path) { Ok(path.into()) } else { self.path(path) }
    }

    /// An address that may be connected to: loopback, and a port that others could use only in a network of its own.
    ///
    /// # Errors
    /// When it is another.
    pub fn address(&self, address: SocketAddr) -> Result<SocketAddr, Problem> {
        let free = self.private || address.port() == 0 || address.port() >= 1024;
        if address.ip().is_loopback() && free {
            Ok(address)
        } else {
            Err(Problem::Refused(address.to_string()))
        }
    }

    /// The agent that may be attacked: the one that the user named, if that is what runs under this number.
    ///
    /// # Errors
    /// When it is another program, or has left.
    pub fn agent(&self, pid: u32) -> Result<u32, Problem> {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        let program = words.next().and_then(|path| path.rsplit(|byte| *byte == b'/').next());
        let is_agent = program == Some(b"behaveguard") && words.any(|word| word == b"run");
        if is_agent && pid > 1 {
            Ok(pid)
        } else {
            Err(Problem::Refused(format!("process {pid}: it is no agent")))
        }
    }

    /// A process that may be taken hold of: a child of the caller or of the caller's parent.
    ///
    /// # Errors
    /// When it is another, or has left.
    pub fn victim(&self, pid: u32) -> Result<u32, Problem> {
        let own = [std::process::id(), std::os::unix::process::parent_id()];
        match parent(pid) {
            Some(parent) if parent > 1 && pid != own[0] && own.contains(&parent) => Ok(pid),
            _ => Err(Problem::Refused(format!("process {pid}"))),
        }
    }
}

/// The parent of a process, as `/proc` says.
pub(super) fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_its_own_are_touched() {
        let open = Sandbox::of(17, false);
        for path in ["a", "a/b", "/tmp/behaveguard-simulation-17/x", "/var/log/behaveguard-simulation-17.log"]
        {
            assert!(open.path(path).is_ok(), "{path}");
        }
        for path in [
            "",
            "/",
            "..",
            "../x",
            "a/../../x",
            "/etc/passwd",
            "/etc/shadow",
            "/tmp",
            "/tmp/x",
            "/tmp/behaveguard-simulation-17",
            "/tmp/behaveguard-simulation-18/x",
            "/tmp/behaveguard-simulation-17x/x",
            "/var/log/syslog",
            "/var/log/behaveguard-simulation-18.log",
            "/var/log/behaveguard-simulation-17.log/../syslog",
            "/var/log/behaveguard-simulation-17.log.1",
            "/var/tmp/behaveguard-simulation-17/x",
        ] {
            assert!(matches!(open.path(path), Err(Problem::Refused(_))), "{path}");
        }
        let private = Sandbox::of(17, true);
        assert!(private.path("/var/log/behaveguard-simulation-17.log.1").is_ok());
        assert!(private.path("/var/tmp/behaveguard-simulation-17/x").is_ok());
        assert!(private.path("/var/log/syslog").is_err());
    }

    #[test]
    fn only_files_with_hashes_are_read_besides() {
        let sandbox = Sandbox::of(17, true);
        assert!(sandbox.readable("/etc/shadow").is_ok() && sandbox.readable("x").is_ok());
        assert!(sandbox.readable("/etc/shadow-").is_err() && sandbox.readable("/root/.ssh/id_rsa").is_err());
    }

    #[test]
    fn only_loopback_is_connected_to() {
        let (open, private) = (Sandbox::of(17, false), Sandbox::of(17, true));
        for (address, outside, inside) in [
            ("127.0.0.1:40000", true, true),
            ("[::1]:40000", true, true),
            ("127.0.0.9:22", false, true),
            ("[::1]:53", false, true),
            ("10.0.0.1:40000", false, false),
            ("0.0.0.0:40000", false, false),
            ("1.1.1.1:53", false, false),
            ("[2001:db8::1]:443", false, false),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(open.address(address).is_ok(), outside, "{address}");
            assert_eq!(private.address(address).is_ok(), inside, "{address} in its own network");
        }
    }

    #[test]
    fn only_its_own_children_are_taken_hold_of() {
        let sandbox = Sandbox::of(17, true);
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        assert!(sandbox.victim(child.id()).is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        for pid in [1, std::process::id(), child.id()] {
            assert!(sandbox.victim(pid).is_err(), "{pid}");
            assert!(sandbox.agent(pid).is_err(), "{pid}");
        }
    }
}
