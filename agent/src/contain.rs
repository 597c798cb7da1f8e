//! What was done to programs that alarmed, so that it can be undone: `<state>/contained.json`.
//!
//! | action | what is done | how it ends |
//! |---|---|---|
//! | `deny_egress` | the control group of the program's service or session sends nothing to other machines | when it is released; for a session also when that is over |
//! | `stop` | SIGSTOP | when it is released, with SIGCONT, or the process is gone |
//! | `kill` | SIGKILL | at once: nothing is kept |
//!
//! A denial is in the kernel while the agent runs, and again when it starts. A stopped process stays stopped.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use agent_ebpf::records::DENIED_MAX;
use models::program::ProgramId;
use models::wire::Alert;
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::config::{Action, ContainRule};
use crate::files;
use crate::processes::{Identity, Lookup as _, ProcFs};
use crate::vitals;

/// Containments kept; one more is refused.
pub const ENTRIES_MAX: usize = DENIED_MAX as usize;

/// One program that is contained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contained {
    /// Its number on this device; never used again.
    pub id: u32,
    /// Since when, milliseconds since 1970.
    pub unix_ms: u64,
    /// Which program alarmed.
    pub program: ProgramId,
    /// What was done.
    pub action: Action,
    /// The process that alarmed.
    pub pid: u32,
    /// Its start, in clock ticks since boot.
    pub start_ticks: u64,
    /// Of which boot.
    pub boot_id: String,
    /// The control group, as a path below the hierarchy's root; for `deny_egress`.
    pub cgroup: Option<String>,
    /// What it had done.
    pub summary: String,
}

impl std::fmt::Display for Contained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, program, action, pid, summary, .. } = self;
        match &self.cgroup {
            Some(cgroup) => {
                write!(f, "{id}: {action} of {cgroup}, because {program} (process {pid}): {summary}")
            }
            None => write!(f, "{id}: {action} of process {pid}, {program}: {summary}"),
        }
    }
}

/// Why a program was not contained, or a containment not undone.
#[derive(Debug, thiserror::Error)]
pub enum ContainError {
    /// It is not there.
    #[error("process {0} is gone")]
    Gone(u32),
    /// Its number is another's now.
    #[error("process {0} runs {1} now")]
    Another(u32, String),
    /// Never.
    #[error("{0} is never contained")]
    Protected(&'static str),
    /// Not a service's and not a session's.
    #[error("it is in the root control group, whose egress is that of the whole machine")]
    Root,
    /// The agent cannot.
    #[error("egress cannot be denied here: {0}")]
    NoEgress(String),
    /// No room.
    #[error("{ENTRIES_MAX} programs are contained already: release some")]
    Full,
    /// No such containment.
    #[error("nothing is contained under the number {0}: `behaveguard contain list` shows what is")]
    Unknown(u32),
    /// The signal.
    #[error("sending {0} to process {1}")]
    Signal(&'static str, u32, #[source] io::Error),
    /// The file.
    #[error("writing {0}")]
    File(PathBuf, #[source] io::Error),
}

/// What is contained.
#[derive(Debug)]
pub struct Containment {
    path: PathBuf,
    kept: Kept,
    /// Where control groups are.
    root: Option<PathBuf>,
    boot_id: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Kept {
    next: u32,
    entries: Vec<Contained>,
}

impl Containment {
    /// What was contained when the agent stopped. A damaged file is logged and begun anew: stopped processes stay stopped then
    /// until somebody sends them SIGCONT.
    #[must_use]
    pub fn open(state: &Path, root: Option<PathBuf>) -> Self {
        let path = state.join("contained.json");
        let read = match fs::read(&path) {
            Ok(raw) => serde_json::from_slice(&raw).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
            Err(error) => Err(error),
        };
        let kept = read.unwrap_or_else(|error| {
            log::error!("{} cannot be used: {error}; what was contained is not known", path.display());
            Kept::default()
        });
        Self { path, kept, root, boot_id: vitals::boot_id() }
    }

    /// Everything that is contained, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[Contained] {
        &self.kept.entries
    }

    /// Contains the program of an alert; `None` when it is contained in this way already.
    ///
    /// # Errors
    /// When it is not done, and why.
    pub fn contain(&mut self, alert: &Alert, action: Action) -> Result<Option<Contained>, ContainError> {
        let pid = alert.pid;
        if pid == 1 || pid == std::process::id() {
            return Err(ContainError::Protected(if pid == 1 { "process 1" } else { "the agent" }));
        }
        // From here on the number means this process, whatever becomes of it.
        let handle = handle(pid)?;
        let found = match ProcFs.identity(pid, None) {
            Identity::Program(found) => found,
            Identity::Kernel => return Err(ContainError::Protected("a kernel thread")),
            Identity::Gone => return Err(ContainError::Gone(pid)),
        };
        if found.program != alert.program {
            return Err(ContainError::Another(pid, found.program.to_string()));
        }
        let cgroup = if action == Action::DenyEgress { Some(self.cgroup_of(pid)?) } else { None };
        let same = |entry: &Contained| {
            entry.action == action
                && match (&entry.cgroup, &cgroup) {
                    (Some(theirs), Some(ours)) => theirs == ours,
                    _ => (entry.pid, entry.start_ticks) == (pid, found.start_ticks),
                }
        };
        if self.kept.entries.iter().any(same) {
            return Ok(None);
        }
        if self.kept.entries.len() >= ENTRIES_MAX {
            return Err(ContainError::Full);
        }
        let entry = Contained {
            id: self.kept.next + 1,
            unix_ms: alert.unix_ms,
            program: alert.program.clone(),
            action,
            pid,
            start_ticks: found.start_ticks,
            boot_id: self.boot_id.clone(),
            cgroup,
            summary: alert.summary.clone(),
        };
        // Written first: what cannot be undone later is not done.
        let mut kept = Kept { next: entry.id, entries: self.kept.entries.clone() };
        if action != Action::Kill {
            kept.entries.push(entry.clone());
        }
        self.write(kept)?;
        let sent = match action {
            Action::DenyEgress => Ok(()),
            Action::Stop => signal(&handle, pid, Signal::STOP, "SIGSTOP"),
            Action::Kill => signal(&handle, pid, Signal::KILL, "SIGKILL"),
        };
        if let Err(error) = sent {
            self.forget(entry.id)?;
            return Err(error);
        }
        Ok(Some(entry))
    }

    /// Undoes a containment. A denial ends when [`Containment::denied`] is told to the kernel.
    ///
    /// # Errors
    /// When there is none of this number, or a process cannot be told to go on.
    pub fn release(&mut self, id: u32) -> Result<Contained, ContainError> {
        let entry = self.kept.entries.iter().find(|entry| entry.id == id).cloned();
        let entry = entry.ok_or(ContainError::Unknown(id))?;
        if entry.action == Action::Stop
            && let Some(handle) = self.still(&entry)
        {
            signal(&handle, entry.pid, Signal::CONT, "SIGCONT")?;
        }
        self.forget(id)?;
        Ok(entry)
    }

    /// Those that ended by themselves, which are no longer kept.
    pub fn sweep(&mut self) -> Vec<Contained> {
        let over = |entry: &Contained| match (&entry.cgroup, &self.root) {
            // A service comes back under its name, and is denied again.
            (Some(cgroup), Some(root)) => cgroup.ends_with(".scope") && !root.join(&cgroup[1..]).exists(),
            (Some(_), None) => false,
            (None, _) => self.still(entry).is_none(),
        };
        let ended: Vec<Contained> = self.kept.entries.iter().filter(|entry| over(entry)).cloned().collect();
        for entry in &ended {
            if let Err(error) = self.forget(entry.id) {
                log::error!("{}", models::chain::chain(&error));
            }
        }
        ended
    }

    /// Control groups whose egress is denied, as the kernel numbers them: a version 2 group's number is its folder's inode.
    #[must_use]
    pub fn denied(&self) -> BTreeSet<u64> {
        let Some(root) = &self.root else { return BTreeSet::new() };
        let groups = self.kept.entries.iter().filter_map(|entry| entry.cgroup.as_deref());
        groups
            .filter_map(|group| fs::metadata(root.join(&group[1..])).ok())
            .map(|group| group.ino())
            .collect()
    }

    /// The control group of a process's service or session, or else its own.
    fn cgroup_of(&self, pid: u32) -> Result<String, ContainError> {
        let read = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let group = group_of(&read(&pid.to_string())).ok_or(ContainError::Root)?;
        if group_of(&read("self")).as_ref() == Some(&group) {
            return Err(ContainError::Protected("the control group of the agent"));
        }
        let root =
            self.root.as_ref().ok_or_else(|| ContainError::NoEgress("no cgroup2 file system".into()))?;
        match fs::metadata(root.join(&group[1..])) {
            Ok(_) => Ok(group),
            Err(error) => Err(ContainError::NoEgress(format!("{group}: {error}"))),
        }
    }

    /// The process of an entry, if it is still that one.
    fn still(&self, entry: &Contained) -> Option<OwnedFd> {
        let handle = handle(entry.pid).ok().filter(|_| entry.boot_id == self.boot_id)?;
        match ProcFs.identity(entry.pid, None) {
            Identity::Program(found) if found.start_ticks == entry.start_ticks => Some(handle),
            _ => None,
        }
    }

    fn forget(&mut self, id: u32) -> Result<(), ContainError> {
        let mut kept = self.kept.clone();
        kept.entries.retain(|entry| entry.id != id);
        self.write(kept)
    }

    fn write(&mut self, kept: Kept) -> Result<(), ContainError> {
        let written = serde_json::to_vec_pretty(&kept).map_err(io::Error::other);
        let written = written.and_then(|json| files::write_private(&self.path, &json));
        written.map_err(|source| ContainError::File(self.path.clone(), source))?;
        self.kept = kept;
        Ok(())
    }
}

/// The first rule that fits an alert.
#[must_use]
pub fn rule_for<'a>(rules: &'a [ContainRule], alert: &Alert) -> Option<&'a ContainRule> {
    rules.iter().find(|rule| alert.severity >= rule.severity && rule.program.fits(&alert.program))
}

/// From `/proc/PID/cgroup`: the part of the version 2 path up to the service or session; `None` for the root.
fn group_of(cgroup: &str) -> Option<String> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| path.len() > 1)?;
    let mut group = String::new();
    for part in path.split('/').skip(1) {
        group = format!("{group}/{part}");
        // A user's services are below `user@1000.service`, which is everything the user runs.
        if (part.ends_with(".service") && !part.starts_with("user@")) || part.ends_with(".scope") {
            break;
        }
    }
    Some(group)
}

fn handle(pid: u32) -> Result<OwnedFd, ContainError> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ContainError::Gone(pid))?;
    pidfd_open(number, PidfdFlags::empty()).map_err(|_| ContainError::Gone(pid))
}

fn signal(handle: &OwnedFd, pid: u32, signal: Signal, name: &'static str) -> Result<(), ContainError> {
    pidfd_send_signal(handle, signal).map_err(|error| ContainError::Signal(name, pid, error.into()))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Duration;

    use models::policy::Severity;

    use super::*;

    struct Running(Child);

    impl Running {
        fn start() -> Self {
            Self(Command::new("sleep").arg("60").spawn().unwrap())
        }

        fn alert(&self) -> Alert {
            let pid = self.0.id();
            // It is another program until its exec is done.
            let program = loop {
                match ProcFs.identity(pid, None) {
                    Identity::Program(found) if found.comm == "sleep" => break found.program,
                    _ => std::thread::sleep(Duration::from_millis(1)),
                }
            };
            Alert {
                unix_ms: 1,
                program,
                pid,
                comm: "sleep".into(),
                score: 95.0,
                severity: Severity::Critical,
                techniques: vec![],
                summary: "it slept".into(),
                reasons: vec![],
                generation: 1,
                detectors: vec![],
                suppressed_before: 0,
                degraded: vec![],
            }
        }

        fn is_stopped(&self) -> bool {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        }

        /// A signal is taken when the process runs next.
        fn becomes_stopped(&self, stopped: bool) -> bool {
            (0..2000).any(|_| {
                std::thread::sleep(Duration::from_millis(1));
                self.is_stopped() == stopped
            })
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_is_stopped_once_and_goes_on_when_it_is_released_also_after_a_restart() {
        let (dir, running) = (tempfile::tempdir().unwrap(), Running::start());
        let mut containment = Containment::open(dir.path(), None);
        let alert = running.alert();
        let entry = containment.contain(&alert, Action::Stop).unwrap().unwrap();
        assert!(running.becomes_stopped(true));
        assert_eq!(containment.contain(&alert, Action::Stop).unwrap(), None, "it is stopped already");
        let mut containment = Containment::open(dir.path(), None);
        assert_eq!(containment.entries(), std::slice::from_ref(&entry));
        assert!(containment.sweep().is_empty());
        assert_eq!(containment.release(entry.id).unwrap(), entry);
        assert!(running.becomes_stopped(false));
        assert!(matches!(containment.release(entry.id), Err(ContainError::Unknown(1))));
        let second = containment.contain(&alert, Action::Stop).unwrap().unwrap();
        assert_eq!(second.id, 2, "numbers are not used again");
        drop(running);
        assert_eq!(containment.sweep(), [second]);
    }

    #[test]
    fn a_killed_process_is_gone_and_leaves_nothing_to_undo() {
        let (dir, mut running) = (tempfile::tempdir().unwrap(), Running::start());
        let mut containment = Containment::open(dir.path(), None);
        let alert = running.alert();
        assert!(containment.contain(&alert, Action::Kill).unwrap().is_some());
        assert!(!running.0.wait().unwrap().success());
        assert!(containment.entries().is_empty());
        assert!(matches!(containment.contain(&alert, Action::Kill), Err(ContainError::Gone(_))));
    }

    #[test]
    fn another_program_the_agent_and_what_leads_the_machine_are_left_alone() {
        let (dir, running) = (tempfile::tempdir().unwrap(), Running::start());
        let mut containment = Containment::open(dir.path(), None);
        let mut alert = running.alert();
        alert.program.exe = "/usr/bin/other".into();
        assert!(matches!(containment.contain(&alert, Action::Kill), Err(ContainError::Another(..))));
        for pid in [1, std::process::id()] {
            let refused = containment.contain(&Alert { pid, ..alert.clone() }, Action::Stop);
            assert!(matches!(refused, Err(ContainError::Protected(_))), "{refused:?}");
        }
        assert!(!running.is_stopped());
    }

    #[test]
    fn what_cannot_be_written_down_is_not_done() {
        let (dir, running) = (tempfile::tempdir().unwrap(), Running::start());
        let mut containment = Containment::open(&dir.path().join("missing"), None);
        assert!(matches!(containment.contain(&running.alert(), Action::Stop), Err(ContainError::File(..))));
        assert!(!running.is_stopped());
    }

    #[test]
    fn a_group_is_that_of_the_service_or_session() {
        for (cgroup, group) in [
            ("0::/system.slice/nginx.service\n", Some("/system.slice/nginx.service")),
            ("0::/system.slice/docker-ab.scope/init\n", Some("/system.slice/docker-ab.scope")),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service\n",
                Some("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service"),
            ),
            ("12:cpu:/a\n0::/lxc/one\n", Some("/lxc/one")),
            ("0::/\n", None),
            ("12:cpu:/a\n", None),
        ] {
            assert_eq!(group_of(cgroup).as_deref(), group, "{cgroup}");
        }
    }
}
