//! Who a process is: `/proc` to a [`Found`].

use std::cell::RefCell;
use std::fs;
use std::io::{self, Read as _};

use models::program::{NO_UNIT, ProgramId};
use serde::{Deserialize, Serialize};

/// The longest part of a command line that is read to find a script, in bytes.
const CMDLINE_MAX: u64 = 4096;

/// A process that was there when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What its baseline is learned for.
    pub program: ProgramId,
    /// Its name.
    pub comm: String,
    /// Start time in clock ticks since boot: with the process id it names one run.
    pub start_ticks: u64,
}

/// What a lookup may find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// A program.
    Program(Found),
    /// A kernel thread: it has no executable.
    Kernel,
    /// It has left, or may not be seen.
    Gone,
}

/// What a record told about a program that was started, for when the process has left before it is asked.
#[derive(Clone, Debug)]
pub struct Started {
    /// The path that was given to `execve`.
    pub path: String,
    /// The unit of who started it.
    pub unit: String,
}

/// Where identities come from: [`ProcFs`], or a table in a test and in a replay.
pub trait Lookup {
    /// Who this process is now, or, when it has left, what was just told about its start.
    fn identity(&mut self, tgid: u32, started: Option<&Started>) -> Identity;
}

/// Another source, whose answers are kept while somebody writes them down.
#[derive(Debug)]
pub struct Tapped<L> {
    inner: L,
    answers: RefCell<Option<Vec<Identity>>>,
}

impl<L> Tapped<L> {
    /// Nothing is kept yet.
    pub fn new(inner: L) -> Self {
        Self { inner, answers: RefCell::new(None) }
    }

    /// Keeps answers from now on, or no longer.
    pub fn tap(&self, keep: bool) {
        self.answers.replace(keep.then(Vec::new));
    }

    /// The answers since the last question, in order.
    pub fn answers(&self) -> Vec<Identity> {
        self.answers.borrow_mut().as_mut().map(std::mem::take).unwrap_or_default()
    }
}

impl<L: Lookup> Lookup for Tapped<L> {
    fn identity(&mut self, tgid: u32, started: Option<&Started>) -> Identity {
        let answer = self.inner.identity(tgid, started);
        if let Some(answers) = self.answers.get_mut() {
            answers.push(answer.clone());
        }
        answer
    }
}

/// The kernel's `/proc`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcFs;

impl Lookup for ProcFs {
    fn identity(&mut self, tgid: u32, started: Option<&Started>) -> Identity {
        let there = look(tgid).unwrap_or_else(|error| {
            log::debug!("process {tgid}: {error}");
            Identity::Gone
        });
        match (there, started) {
            (Identity::Gone, Some(started)) => as_told(started),
            (there, _) => there,
        }
    }
}

/// A process that lived shorter than it takes to ask: by the file that was started, in the unit that it came from. What
/// script it ran nobody knows.
fn as_told(started: &Started) -> Identity {
    let exe = fs::canonicalize(&started.path)
        .map_or_else(|_| started.path.clone(), |real| real.to_string_lossy().into_owned());
    let comm = exe.rsplit('/').next().unwrap_or(&exe).to_owned();
    let program = ProgramId { unit: started.unit.clone(), exe, script: None };
    Identity::Program(Found { program, comm, start_ticks: 0 })
}

fn look(tgid: u32) -> io::Result<Identity> {
    let stat = fs::read_to_string(format!("/proc/{tgid}/stat"))?;
    let Some((comm, start_ticks)) = comm_and_start(&stat) else { return Ok(Identity::Gone) };
    let exe = match fs::read_link(format!("/proc/{tgid}/exe")) {
        Ok(exe) => exe.to_string_lossy().into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Identity::Kernel),
        Err(error) => return Err(error),
    };
    // A program replaced by an update keeps its baseline until it is started anew.
    let exe = exe.strip_suffix(" (deleted)").unwrap_or(&exe).to_owned();
    let unit = unit_of(&fs::read_to_string(format!("/proc/{tgid}/cgroup")).unwrap_or_default());
    let script = if is_interpreter(&exe) {
        let mut cmdline = Vec::new();
        fs::File::open(format!("/proc/{tgid}/cmdline"))?.take(CMDLINE_MAX).read_to_end(&mut cmdline)?;
        script_of(&cmdline)
    } else {
        None
    };
    Ok(Identity::Program(Found { program: ProgramId { unit, exe, script }, comm, start_ticks }))
}

/// The second and the 22nd field of `/proc/<pid>/stat`.
fn comm_and_start(stat: &str) -> Option<(String, u64)> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, comm) = before.split_once('(')?;
    let start = after.split_whitespace().nth(19)?.parse().ok()?;
    Some((comm.to_owned(), start))
}

/// The systemd unit or container in `/proc/<pid>/cgroup`, without what changes at every start.
fn unit_of(cgroup: &str) -> String {
    // Version 2 is the line `0::`; before it systemd had a hierarchy of its own.
    let line = cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .filter(|path| *path != "/")
        .or_else(|| cgroup.lines().find_map(|line| line.split_once(":name=systemd:").map(|(_, path)| path)))
        .unwrap_or("/");
    let unit = line
        .split('/')
        .rev()
        .find(|part| [".service", ".scope", ".socket", ".mount"].iter().any(|suffix| part.ends_with(suffix)));
    let Some(unit) = unit else { return NO_UNIT.into() };
    // docker-<64 hex>.scope, session-12.scope, user@1000.service and instances are kept apart by what stays the same.
    for (prefix, name) in [
        ("docker-", "docker"),
        ("cri-containerd-", "containerd"),
        ("libpod-", "podman"),
        ("session-", "session"),
        ("run-", "run"),
    ] {
        if unit.starts_with(prefix) && unit.ends_with(".scope") {
            return name.into();
        }
    }
    unit.to_owned()
}

fn is_interpreter(exe: &str) -> bool {
    let name = exe.rsplit('/').next().unwrap_or(exe);
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    [
        "python", "perl", "ruby", "node", "nodejs", "php", "lua", "luajit", "sh", "bash", "dash", "ash",
        "busybox", "zsh", "java",
    ]
    .contains(&name)
}

/// The first argument that is no option: the script, or none for `-c` and the like.
fn script_of(cmdline: &[u8]) -> Option<String> {
    let mut arguments = cmdline.split(|byte| *byte == 0).skip(1).filter(|argument| !argument.is_empty());
    let first = arguments.next()?;
    match first {
        b"-m" | b"-jar" => arguments.next().map(|name| String::from_utf8_lossy(name).into_owned()),
        _ if first.starts_with(b"-") => {
            let flags_only = arguments.find(|argument| !argument.starts_with(b"-"));
            // After -c or -e comes the program's text, which is no name.
            if first.starts_with(b"-c") || first.starts_with(b"-e") { None } else { flags_only.map(lossy) }
        }
        _ => Some(lossy(first)),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_and_an_impossible_one_is_not() {
        let Identity::Program(found) = ProcFs.identity(std::process::id(), None) else { panic!("not found") };
        assert_eq!(found.program.exe, std::env::current_exe().unwrap().to_string_lossy());
        assert!(found.start_ticks > 0);
        assert_eq!(ProcFs.identity(u32::MAX, None), Identity::Gone);
    }

    #[test]
    fn who_left_before_it_was_asked_is_known_by_its_start() {
        let started = Started { path: "/proc/self/exe".into(), unit: "gw.service".into() };
        let Identity::Program(found) = ProcFs.identity(u32::MAX, Some(&started)) else { panic!("not found") };
        let own = std::env::current_exe().unwrap();
        assert_eq!(
            (found.program.unit.as_str(), found.program.exe.as_ref()),
            ("gw.service", own.to_str().unwrap())
        );
        // Who is there is asked.
        let Identity::Program(found) = ProcFs.identity(std::process::id(), Some(&started)) else {
            panic!("not found")
        };
        assert_ne!(found.program.unit, "gw.service");
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let fields = (4..=30).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("12 (a) b( c) S {fields}");
        assert_eq!(comm_and_start(&stat), Some(("a) b( c".into(), 22)));
        assert_eq!(comm_and_start("12 (a) S 1 2"), None);
    }

    #[test]
    fn units_survive_a_restart() {
        for (cgroup, unit) in [
            ("0::/system.slice/gw.service\n", "gw.service"),
            ("0::/system.slice/gw.service/worker\n", "gw.service"),
            ("0::/system.slice/docker-0123abcd.scope\n", "docker"),
            ("0::/user.slice/user-0.slice/session-7.scope\n", "session"),
            ("12:cpu:/\n1:name=systemd:/system.slice/cron.service\n0::/\n", "cron.service"),
            ("0::/\n", "-"),
            ("", "-"),
        ] {
            assert_eq!(unit_of(cgroup), unit, "{cgroup}");
        }
    }

    #[test]
    fn an_interpreter_is_its_script() {
        for (cmdline, script) in [
            (&b"python3\0/opt/gw.py\0--port\0"[..], Some("/opt/gw.py")),
            (b"python3\0-u\0/opt/gw.py\0", Some("/opt/gw.py")),
            (b"python3\0-m\0http.server\0", Some("http.server")),
            (b"sh\0-c\0echo\0", None),
            (b"bash\0", None),
            (b"", None),
        ] {
            assert_eq!(script_of(cmdline).as_deref(), script);
        }
        assert!(is_interpreter("/usr/bin/python3.11") && !is_interpreter("/usr/bin/gateway"));
    }
}
