//! Control groups of version 2, by whose names the agent tells units apart.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::Failed;

/// A control group, removed at the end.
pub struct Group(PathBuf);

impl Group {
    /// One of this name, below the root; a slice's name and a slash may stand before it.
    ///
    /// # Errors
    /// When there is no hierarchy of version 2, or the folder cannot be made.
    pub fn make(name: &str) -> Result<Self, Failed> {
        let root = agent::probe::cgroup_root();
        let root = root
            .ok_or_else(|| Failed("no cgroup2 file system is mounted: units cannot be told apart".into()))?;
        let group = root.join(name);
        fs::create_dir_all(&group).map_err(|error| Failed::new(group.display(), error))?;
        Ok(Self(group))
    }

    /// The file with the ids of its processes.
    #[must_use]
    pub fn processes(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// Puts a process into it.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn add(&self, pid: u32) -> Result<(), Failed> {
        let file = self.processes();
        fs::write(&file, pid.to_string()).map_err(|error| Failed::new(file.display(), error))
    }

    /// A program that starts within.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(self.script()).arg(program);
        command
    }

    /// What `/bin/sh -c` is given, before a program and its arguments, for it to start within.
    #[must_use]
    pub fn script(&self) -> String {
        format!("echo $$ > {} && exec \"$0\" \"$@\"", self.processes().display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process may still be leaving.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
