//! Control groups of version 2, by whose names the agent tells units apart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A control group, removed at the end.
pub struct Group(PathBuf);

impl Group {
    /// A new one.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn make(name: &str) -> Self {
        let root = agent::probe::cgroup_root().expect("a cgroup2 file system is mounted");
        let group = root.join(name);
        fs::create_dir(&group).unwrap_or_else(|error| panic!("{}: {error}", group.display()));
        Self(group)
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Puts a process into it.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn add(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// A program that starts within.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display());
        command.args(["-c", &script]).arg(program);
        command
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
