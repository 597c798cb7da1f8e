//! Who a process is: `/proc` to a [`Found`].

use std::cell::RefCell;
use std::fs;
use std::io::{self, Read as _};

use models::program::{NO_UNIT, ProgramId};
use serde::{Deserialize, Serialize};

/// The longest part of a command line that is read to find a script, in bytes.
const CMDLINE_MAX: u64 = 4096;
/// How often a process is asked that starts one program after the other meanwhile.
const LOOKS_MAX: u32 = 3;
/// A kernel thread, in a process's flags (`include/linux/sched.h`).
const PF_KTHREAD: u32 = 0x0020_0000;

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
    /// Its command line as in `/proc/PID/cmdline`; empty when it is not known.
    pub arguments: String,
    /// Its unit, or that of who started it.
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
        let there = look(tgid, started.is_some()).unwrap_or_else(|error| {
            log::debug!("process {tgid}: {error}");
            Identity::Gone
        });
        match (there, started) {
            (Identity::Gone, Some(started)) => as_told(started),
            (there, _) => there,
        }
    }
}

/// A process that lived shorter than it takes to ask: by what was told of its start.
fn as_told(started: &Started) -> Identity {
    let real = |path: &str| {
        fs::canonicalize(path).map_or_else(|_| path.to_owned(), |real| real.to_string_lossy().into_owned())
    };
    let exe = real(interpreter_of(started).unwrap_or(&started.path));
    let comm = started.path.rsplit('/').next().unwrap_or(&started.path).to_owned();
    let script = if is_interpreter(&exe) { script_of(&exe, started.arguments.as_bytes()) } else { None };
    let program = ProgramId { unit: started.unit.clone(), exe, script };
    Identity::Program(Found { program, comm, start_ticks: 0 })
}

/// What runs the file, when it is a script: the kernel puts the interpreter first, then at most one argument of the
/// script's first line, then the file. The file itself is not opened: whoever started it may have put a pipe in its place.
fn interpreter_of(started: &Started) -> Option<&str> {
    let mut arguments = started.arguments.split('\0');
    let interpreter = arguments.next()?;
    let runs_it = arguments.take(2).any(|argument| argument == started.path);
    (runs_it && is_interpreter(interpreter)).then_some(interpreter)
}

/// Asks the kernel. When it was told how the process was started, an interpreter that shows no command line is taken for gone.
fn look(tgid: u32, was_told: bool) -> io::Result<Identity> {
    let stat = fs::read_to_string(format!("/proc/{tgid}/stat"))?;
    let Some(Stat { comm, flags, start_ticks }) = Stat::parse(&stat) else { return Ok(Identity::Gone) };
    let mut exe = match executable_of(tgid) {
        Ok(exe) => exe,
        // One that left and waits for its parent has no executable either.
        Err(error) if error.kind() == io::ErrorKind::NotFound && flags & PF_KTHREAD != 0 => {
            return Ok(Identity::Kernel);
        }
        Err(error) => return Err(error),
    };
    let unit = unit_of(&fs::read_to_string(format!("/proc/{tgid}/cgroup")).unwrap_or_default());
    let mut cmdline = Vec::new();
    for _ in 0..LOOKS_MAX {
        if !is_interpreter(&exe) {
            break;
        }
        cmdline.clear();
        fs::File::open(format!("/proc/{tgid}/cmdline"))?.take(CMDLINE_MAX).read_to_end(&mut cmdline)?;
        // Meanwhile it may have started another program; and one that is about to leave, or in the middle of its start, has none.
        let again = executable_of(tgid)?;
        if again == exe && !cmdline.is_empty() {
            break;
        }
        exe = again;
    }
    let script = match is_interpreter(&exe) {
        true if cmdline.is_empty() && was_told => return Ok(Identity::Gone),
        true => script_of(&exe, &cmdline),
        false => None,
    };
    Ok(Identity::Program(Found { program: ProgramId { unit, exe, script }, comm, start_ticks }))
}

fn executable_of(tgid: u32) -> io::Result<String> {
    let exe = fs::read_link(format!("/proc/{tgid}/exe"))?;
    let exe = exe.to_string_lossy();
    // A program replaced by an update keeps its baseline until it is started anew.
    Ok(exe.strip_suffix(" (deleted)").unwrap_or(&exe).to_owned())
}

/// Three fields of `/proc/<pid>/stat`, see proc_pid_stat(5).
#[derive(Debug, PartialEq)]
struct Stat {
    /// The second.
    comm: String,
    /// The ninth.
    flags: u32,
    /// The 22nd.
    start_ticks: u64,
}

impl Stat {
    fn parse(stat: &str) -> Option<Self> {
        let (before, after) = stat.rsplit_once(')')?;
        let (_, comm) = before.split_once('(')?;
        let mut fields = after.split_whitespace().skip(6);
        let flags = fields.next()?.parse().ok()?;
        let start_ticks = fields.nth(12)?.parse().ok()?;
        Some(Self { comm: comm.to_owned(), flags, start_ticks })
    }
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
    unit_in(line).unwrap_or(NO_UNIT).to_owned()
}

/// The same in the path of a control group, or in the end of one; `None` where none of its parts is a unit.
#[must_use]
pub fn unit_in(group: &str) -> Option<&str> {
    let unit = group.split('/').rev().find(|part| {
        [".service", ".scope", ".socket", ".mount"].iter().any(|suffix| part.ends_with(suffix))
    })?;
    // docker-<64 hex>.scope, session-12.scope, user@1000.service and instances are kept apart by what stays the same.
    for (prefix, name) in [
        ("docker-", "docker"),
        ("cri-containerd-", "containerd"),
        ("libpod-", "podman"),
        ("session-", "session"),
        ("run-", "run"),
    ] {
        if unit.starts_with(prefix) && unit.ends_with(".scope") {
            return Some(name);
        }
    }
    Some(unit)
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

/// The first argument that is no option: the script, or none where the program's text was given instead, which is no name.
fn script_of(exe: &str, cmdline: &[u8]) -> Option<String> {
    // Shells take the text after -c, alone or behind other letters; Python too, and the others after -e.
    let name = exe.rsplit('/').next().unwrap_or(exe);
    let text =
        if name.ends_with("sh") || name.starts_with("python") || name == "busybox" { b'c' } else { b'e' };
    let mut arguments = cmdline.split(|byte| *byte == 0).skip(1).filter(|argument| !argument.is_empty());
    while let Some(argument) = arguments.next() {
        match argument {
            b"-m" | b"-jar" => return arguments.next().map(lossy),
            [b'-', b'-', ..] => {}
            [b'-', letters @ ..] if letters.last() == Some(&text) => return None,
            [b'-', ..] => {}
            script => return Some(lossy(script)),
        }
    }
    None
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
        let started =
            Started { path: "/proc/self/exe".into(), arguments: String::new(), unit: "gw.service".into() };
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
    fn a_script_that_leaves_while_it_is_asked_for_is_never_its_interpreter_alone() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("job");
        fs::write(&script, "sleep 0.005\nexec /bin/true -x /no/script\n").unwrap();
        let script = script.display().to_string();
        let mut asked = 0;
        for _ in 0..200 {
            let mut child = std::process::Command::new("/bin/sh").arg(&script).spawn().unwrap();
            while child.try_wait().unwrap().is_none() {
                let Ok(Identity::Program(found)) = look(child.id(), true) else { continue };
                let ProgramId { exe, script: of, .. } = found.program;
                assert!(!is_interpreter(&exe) || of.as_ref() == Some(&script), "{exe} {of:?}");
                asked += 1;
            }
        }
        assert!(asked > 0);
    }

    #[test]
    fn a_script_that_left_is_known_by_its_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("job");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        let path = script.display().to_string();
        for (path, arguments) in
            [(&path[..], format!("/bin/sh\0{path}\0")), ("/bin/sh", format!("sh\0{path}\0-v\0"))]
        {
            let started = Started { path: path.to_owned(), arguments, unit: "gw.service".into() };
            let Identity::Program(found) = ProcFs.identity(u32::MAX, Some(&started)) else {
                panic!("not found")
            };
            assert_eq!(found.program.exe, fs::canonicalize("/bin/sh").unwrap().to_string_lossy());
            assert_eq!(found.program.script, Some(script.display().to_string()));
        }
    }

    #[test]
    fn a_pipe_in_the_place_of_what_was_started_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("job");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let path = pipe.display().to_string();
        let started =
            Started { arguments: format!("/bin/sh\0-e\0{path}\0"), path, unit: "gw.service".into() };
        let Identity::Program(found) = ProcFs.identity(u32::MAX, Some(&started)) else { panic!("not found") };
        assert_eq!(found.program.script, Some(pipe.display().to_string()));
        // Whoever names a service as its interpreter is not taken for it.
        let started = Started { arguments: format!("/usr/sbin/nginx\0{}\0", started.path), ..started };
        let Identity::Program(found) = ProcFs.identity(u32::MAX, Some(&started)) else { panic!("not found") };
        assert_eq!(found.program.exe, pipe.display().to_string());
    }

    #[test]
    fn one_that_waits_for_its_parent_is_no_kernel_thread() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let stat = || fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        while !stat().contains(") Z ") {
            std::thread::yield_now();
        }
        assert_eq!(ProcFs.identity(child.id(), None), Identity::Gone);
        let started =
            Started { path: "/bin/true".into(), arguments: "true\0".into(), unit: "gw.service".into() };
        assert!(matches!(ProcFs.identity(child.id(), Some(&started)), Identity::Program(_)));
        child.wait().unwrap();
        // In a process namespace of its own there is none.
        if fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm == "kthreadd\n") {
            assert_eq!(ProcFs.identity(2, None), Identity::Kernel);
        }
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let fields = (4..=30).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("12 (a) b( c) S {fields}");
        let expected = Stat { comm: "a) b( c".into(), flags: 9, start_ticks: 22 };
        assert_eq!(Stat::parse(&stat), Some(expected));
        assert_eq!(Stat::parse("12 (a) S 1 2"), None);
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
        for (group, unit) in [
            ("system.slice/gw.service", Some("gw.service")),
            ("gw.service/worker", Some("gw.service")),
            ("system.slice/docker-0123abcd.scope", Some("docker")),
            ("/user.slice", None),
            ("", None),
        ] {
            assert_eq!(unit_in(group), unit, "{group}");
        }
    }

    #[test]
    fn an_interpreter_is_its_script() {
        for (exe, cmdline, script) in [
            ("/usr/bin/python3.11", &b"python3\0/opt/gw.py\0--port\0"[..], Some("/opt/gw.py")),
            ("/usr/bin/python3.11", b"python3\0-u\0/opt/gw.py\0", Some("/opt/gw.py")),
            ("/usr/bin/python3.11", b"python3\0-m\0http.server\0", Some("http.server")),
            ("/usr/bin/dash", b"sh\0-c\0echo\0", None),
            ("/usr/bin/bash", b"bash\0--norc\0-ec\0echo; exit\0", None),
            ("/usr/bin/bash", b"bash\0-e\0/opt/job.sh\0", Some("/opt/job.sh")),
            ("/usr/bin/perl", b"perl\0-we\0print\0", None),
            ("/usr/bin/bash", b"bash\0", None),
            ("/usr/bin/bash", b"", None),
        ] {
            assert_eq!(script_of(exe, cmdline).as_deref(), script, "{}", String::from_utf8_lossy(cmdline));
        }
        assert!(is_interpreter("/usr/bin/python3.11") && !is_interpreter("/usr/bin/gateway"));
    }
}
