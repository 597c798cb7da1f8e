//! After a simulation the machine is as before, however the simulation ended.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use agent::simulate::report::{Outcome, Report};

use crate::simulate::simulate;
use crate::turn;

/// What a simulation might change. Others work on the machine meanwhile, so only what could be its own is looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    files: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
    ports: BTreeSet<String>,
    shadow: (u64, std::time::SystemTime),
    modules: String,
}

impl Machine {
    pub(crate) fn now() -> Self {
        let ours = |folder: &str| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            entries
                .filter(|path| path.to_string_lossy().contains("behaveguard-simulation"))
                .collect::<Vec<_>>()
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let shadow = fs::metadata("/etc/shadow").expect("it exists");
        Self {
            files: ["/tmp", "/var/log", "/var/tmp", "/dev/shm"].into_iter().flat_map(ours).collect(),
            mounts: mounts.lines().filter(|line| line.contains("simulation")).map(str::to_owned).collect(),
            ports: listening(),
            shadow: (shadow.len(), shadow.modified().expect("known")),
            modules: fs::read_to_string("/proc/modules").unwrap_or_default(),
        }
    }
}

/// Of the ports that the simulator uses where it has a network of its own, those on which somebody listens here.
fn listening() -> BTreeSet<String> {
    let used = [22, 53, 445, 3333, 3389, 4444, 5985, 8080, 9050, 14_444, 41_337, 41_338];
    let used: Vec<String> = used.iter().map(|port| format!(":{port:04X}")).collect();
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // 0A listens; 07 is a datagram socket without a peer.
            if ["0A", "07"].contains(&fields[3]) && used.iter().any(|port| fields[1].ends_with(port)) {
                found.insert(format!("{table} {}", fields[1]));
            }
        }
    }
    found
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Processes of a simulation, found by folder, program and command line.
fn processes_of(owner: u32) -> Vec<u32> {
    let mark = format!("behaveguard-simulation-{owner}");
    let stage = format!("--owner\0{owner}\0");
    let all = fs::read_dir("/proc").expect("readable").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let holds = |text: &str| text.contains(&mark) || text.contains(&stage);
        [link("cwd"), link("exe")].iter().any(|path| holds(&path.to_string_lossy()))
            || holds(&String::from_utf8_lossy(&words))
    })
    .collect()
}

fn is_stage(words: &[u8]) -> bool {
    String::from_utf8_lossy(words).contains("\0--stage\0")
}

/// The stage, once it has started its program: one that is stopped before would hold up the simulator.
fn stage_of(owner: u32) -> u32 {
    let is = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| is_stage(&words));
    wait_for("the stage", || children(owner).into_iter().find(is))
}

fn start(arguments: &[&str]) -> Child {
    simulate(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts")
}

fn end(mut child: Child) -> (ExitStatus, Vec<Report>) {
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
    let reports = text.lines().map(|line| serde_json::from_str(line).expect("a report")).collect();
    (child.wait().expect("it ends"), reports)
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: the call takes integers and touches no memory.
    unsafe { libc::kill(i32::try_from(pid).expect("a process id"), signal) };
}

/// Waits for something of a simulation that lasts for a third of a second.
fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..5000 {
        if let Some(found) = found() {
            return found;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} never came");
}

/// Stops whatever the stage has started, so that it cannot end by itself.
fn freeze(owner: u32) {
    let stage = stage_of(owner);
    // One that has not yet started its program would hold up the stage.
    let started = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !is_stage(&words));
    let mut next = wait_for("the actor", || {
        Some(children(stage)).filter(|found| !found.is_empty() && found.iter().all(|pid| started(*pid)))
    });
    while let Some(pid) = next.pop() {
        signal(pid, libc::SIGSTOP);
        next.extend(children(pid));
    }
}

/// Waits for the last process of a simulation, and compares.
pub(crate) fn nothing_is_left(owner: u32, before: &Machine, when: &str) {
    let gone = || processes_of(owner).is_empty() && Machine::now() == *before;
    for _ in 0..300 {
        if gone() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let named = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let left: Vec<String> = processes_of(owner).iter().map(named).collect();
    panic!("{when}: left {left:?}\n{:?}\nbefore {before:?}", Machine::now());
}

#[test]
fn an_interrupted_or_killed_simulation_leaves_nothing() {
    let _turn = turn();
    let before = Machine::now();
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let child = start(&["anti-forensics", "--variant", "ftruncate"]);
        let owner = child.id();
        let log = format!("/var/log/behaveguard-simulation-{owner}.log");
        wait_for("the log", || Path::new(&log).exists().then_some(()));
        freeze(owner);
        signal(owner, number);
        let (status, _) = end(child);
        assert!(!status.success(), "signal {number}");
        nothing_is_left(owner, &before, &format!("after signal {number}"));
    }
    // A shell and a pipe are orphans when their stage is killed.
    for of_stage in [true, false] {
        let child = start(&["reverse-shell", "--variant", "nc-mkfifo"]);
        let owner = child.id();
        let stage = stage_of(owner);
        wait_for("the pipe", || children(*children(stage).first()?).get(2).copied());
        freeze(owner);
        signal(if of_stage { stage } else { owner }, libc::SIGKILL);
        let (status, reports) = end(child);
        assert!(!status.success());
        assert!(reports.iter().all(|report| matches!(report.outcome, Outcome::Failed(_))), "{reports:?}");
        nothing_is_left(owner, &before, "after SIGKILL");
    }
}

#[test]
fn a_simulation_that_hangs_is_ended_in_time_and_leaves_nothing() {
    let _turn = turn();
    let before = Machine::now();
    let hang = |whole_stage: bool| {
        let child = start(&["anti-forensics", "--variant", "ftruncate"]);
        let owner = child.id();
        if whole_stage {
            signal(stage_of(owner), libc::SIGSTOP);
        } else {
            freeze(owner);
        }
        let (status, reports) = end(child);
        assert_eq!(status.code(), Some(1));
        assert!(matches!(&reports[0].outcome, Outcome::Failed(_)), "{reports:?}");
        owner
    };
    thread::scope(|scope| {
        let both = [scope.spawn(|| hang(false)), scope.spawn(|| hang(true))];
        let owners = both.map(|one| one.join().expect("no panic"));
        owners.iter().for_each(|owner| nothing_is_left(*owner, &before, "after its time"));
    });
}

#[test]
fn without_root_nothing_fails_and_what_needs_root_is_skipped() {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("behaveguard");
    fs::copy(env!("CARGO_BIN_EXE_behaveguard"), &program).expect("copied");
    Command::new("chmod").args(["-R", "a+rx"]).arg(folder.path()).status().expect("it runs");
    let before = Machine::now();
    for (what, skipped_min, done_min) in [("--all", 10, 40), ("--evasive --all", 5, 10)] {
        let mut command = Command::new(&program);
        command.arg("simulate").args(what.split(' ')).arg("--json");
        command.current_dir("/").uid(65534).gid(65534).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn().expect("it starts");
        let owner = child.id();
        let (status, reports) = end(child);
        let failed: Vec<&Report> =
            reports.iter().filter(|report| matches!(report.outcome, Outcome::Failed(_))).collect();
        assert!(status.success() && failed.is_empty(), "{failed:#?}");
        let skipped =
            |report: &&Report| matches!(&report.outcome, Outcome::Skipped(why) if why.contains("root"));
        assert!(reports.iter().filter(skipped).count() > skipped_min, "{what}");
        let done = reports.iter().filter(|report| report.outcome == Outcome::Done).count();
        assert!(done > done_min, "{what}: {done}");
        nothing_is_left(owner, &before, "without root");
    }
}
