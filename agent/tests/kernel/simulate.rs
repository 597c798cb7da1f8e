//! Every attack that `behaveguard simulate` enacts must be seen by its layer, with the right process, parent and object.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use agent::probe::{Counters, Probe};
use agent::simulate::evasion::EVASIONS;
use agent::simulate::report::{Outcome, Report};
use agent::simulate::table::THREATS;
use models::event::{Event, EventKind, SyscallWindow, Tampering, call_name};
use models::syscalls;
use serde_json::Value;

use crate::leftovers::{Machine, nothing_is_left};
use crate::{events, load, turn};

/// Tools that name the log by a descriptor and leave at once: the agent looks up the name too late for some of them, and
/// then reports the act without it.
const MAY_BE_NAMELESS: &[&str] = &["anti-forensics/truncate", "anti-forensics/touch"];

/// What may be missing where these tests run.
const MAY_BE_SKIPPED: &[&str] = &[
    // There is no agent here but this test; the tests of the whole agent attack one.
    "attack-on-the-agent/trace",
    "attack-on-the-agent/hold-up",
    "attack-on-the-agent/kill",
    // On aarch64.
    #[cfg(not(target_arch = "x86_64"))]
    "credential-dumping/open-shadow-32-bit",
    // Cron and systemd are services of a machine, not tools that a test may install.
    "lolbin-abuse/crontab-list",
    "lolbin-abuse/systemctl",
];

/// All that was recorded while a simulation ran.
pub(crate) struct Recording {
    /// The simulator's process.
    owner: u32,
    pub(crate) reports: Vec<Report>,
    /// How much of it the kernel side could not tell.
    counters: Counters,
    events: Vec<Event>,
    windows: BTreeMap<u32, SyscallWindow>,
    children: BTreeMap<u32, BTreeSet<u32>>,
}

impl Recording {
    /// Runs a command whose output holds reports, and records meanwhile.
    pub(crate) fn of(command: &mut Command) -> Self {
        let mut probe = load(&[]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut stdout = child.stdout.take().expect("it is piped");
        let reader = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).expect("text");
            text
        });
        let mut recording = Self {
            owner: child.id(),
            reports: Vec::new(),
            counters: Counters::default(),
            events: Vec::new(),
            windows: BTreeMap::new(),
            children: BTreeMap::new(),
        };
        while !reader.is_finished() {
            recording.poll(&mut probe);
            thread::sleep(Duration::from_millis(1));
        }
        child.wait().expect("it ends");
        recording.poll(&mut probe);
        recording.take(probe.drain().expect("drained"));
        recording.counters = probe.counters().expect("read");
        let text = reader.join().expect("it ends");
        recording.reports = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect();
        recording
    }

    fn poll(&mut self, probe: &mut Probe) {
        for event in events(probe) {
            match event.kind {
                EventKind::Flush(window) => self.take(vec![*window]),
                EventKind::Fork { child } => {
                    self.children.entry(event.tgid).or_default().insert(child);
                }
                _ => self.events.push(event),
            }
        }
    }

    fn take(&mut self, windows: Vec<SyscallWindow>) {
        for window in windows {
            self.windows
                .entry(window.tgid)
                .or_insert_with(|| SyscallWindow::empty(window.tgid, 0))
                .merge(&window);
        }
    }

    /// A process and all that it started.
    pub(crate) fn family(&self, pid: u32) -> BTreeSet<u32> {
        let (mut family, mut new) = (BTreeSet::new(), vec![pid]);
        while let Some(pid) = new.pop() {
            if family.insert(pid) {
                new.extend(self.children.get(&pid).into_iter().flatten());
            }
        }
        family
    }

    /// What one process did, in order of time; the two rings are read one after the other.
    pub(crate) fn of_process(&self, pid: u32) -> impl Iterator<Item = &Event> {
        let mut events: Vec<&Event> = self.events.iter().filter(|event| event.tgid == pid).collect();
        events.sort_by_key(|event| event.boot_ns);
        events.into_iter()
    }

    /// What a report says is hidden and was seen.
    fn told(&self, report: &Report) -> Vec<String> {
        let family = self.family(report.pid.expect("it ran"));
        let mut mine = self.events.iter().filter(|event| family.contains(&event.tgid));
        let told = |sign: &&Value| mine.any(|event| is(sign, &event.kind));
        report.hidden.iter().filter(told).map(ToString::to_string).collect()
    }

    /// What a report promises and was not seen.
    fn unseen(&self, report: &Report) -> Vec<String> {
        let (pid, ppid) = (report.pid.expect("it ran"), report.ppid.expect("it ran"));
        let mut unseen = Vec::new();
        if !self.children.get(&ppid).is_some_and(|children| children.contains(&pid)) {
            unseen.push(format!("process {pid} as a child of {ppid}"));
        }
        let executable = report.executable.as_deref().and_then(|path| path.to_str()).expect("a path");
        let family = self.family(pid);
        let mine: Vec<&Event> = self.events.iter().filter(|event| family.contains(&event.tgid)).collect();
        if !mine.iter().any(|event| {
            event.tgid == pid
                && matches!(&event.kind, EventKind::Exec { path, fileless: false, .. } if path == executable)
        }) {
            unseen.push(format!("process {pid} as {executable}"));
        }
        let mut sum = SyscallWindow::empty(pid, 0);
        family.iter().filter_map(|pid| self.windows.get(pid)).for_each(|window| sum.merge(window));
        assert!(report.expected.iter().any(|sign| sign["layer"] == *report.layer), "{report:?}");
        let nameless = MAY_BE_NAMELESS.contains(&report.name().as_str());
        for sign in &report.expected {
            let mut without = sign.clone();
            without["path"] = "".into();
            if nameless && mine.iter().any(|event| is(&without, &event.kind)) {
                continue;
            }
            if !mine.iter().any(|event| is(sign, &event.kind)) && !counted(sign, &sum) {
                unseen.push(sign.to_string());
            }
        }
        unseen
    }
}

/// Whether an event is the record that was promised.
fn is(sign: &Value, kind: &EventKind) -> bool {
    let path_is = |path: &str| sign["path"].as_str() == Some(path);
    let call_is = |call: u16| sign["call"].as_str() == Some(call_name(call));
    match (sign["record"].as_str().expect("named"), kind) {
        ("exec", EventKind::Exec { path, fileless, .. }) => {
            sign["fileless"] == *fileless && (sign["path"].is_null() || path_is(path))
        }
        ("open", EventKind::Open { path, sensitive, .. }) => {
            path_is(path) && (*sensitive || sign["sensitive"] == false)
        }
        ("connect", EventKind::Connect { addr, port }) => {
            sign["address"].as_str() == Some(&std::net::SocketAddr::new(*addr, *port).to_string())
        }
        ("inject", EventKind::Inject { call, victim }) => call_is(*call) && sign["victim"] == *victim,
        ("namespace", EventKind::Namespace { flags, .. }) => {
            sign["flags"].as_u64().is_some_and(|wanted| flags & wanted == wanted)
        }
        ("mount", EventKind::Mount { target, .. }) => path_is(target),
        ("change_root", EventKind::ChangeRoot { call, path }) => call_is(*call) && path_is(path),
        ("release_agent", EventKind::ReleaseAgent { path }) => path_is(path),
        ("tamper", EventKind::Tamper { how, path }) => {
            let how = match how {
                Tampering::Removed => "removed",
                Tampering::Emptied => "emptied",
                Tampering::Renamed => "renamed",
                Tampering::Redated => "redated",
                Tampering::Replaced => "replaced",
            };
            sign["how"] == how && path_is(path)
        }
        ("dns", EventKind::Dns { addr, question, bytes }) => {
            let domain = question.as_ref().map(|question| question.domain.as_str());
            sign["address"].as_str() == Some(&std::net::SocketAddr::new(*addr, 53).to_string())
                && sign["domain"].as_str() == domain
                && *bytes > 60
                && question.as_ref().is_none_or(|question| question.entropy > 3.0)
        }
        ("privilege", EventKind::Privilege { call }) | ("kernel_load", EventKind::KernelLoad { call }) => {
            call_is(*call)
        }
        _ => false,
    }
}

/// Whether the windows of the process and of those it started hold the number that was promised.
fn counted(sign: &Value, sum: &SyscallWindow) -> bool {
    match sign["record"].as_str().expect("named") {
        "sent" => sum.bytes_sent >= sign["bytes"].as_u64().expect("a number"),
        "uring" => sum.uring_ops & (1 << sign["operation"].as_u64().expect("a number")) != 0,
        "calls" => {
            let slot = sign["call"].as_str().and_then(syscalls::slot).expect("a call");
            sum.calls[usize::from(slot)] > 0
        }
        _ => false,
    }
}

pub(crate) fn simulate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_behaveguard"));
    command.arg("simulate").args(arguments).arg("--json");
    command
}

#[test]
fn every_simulated_attack_is_seen_by_its_layer_with_process_parent_and_object() {
    let variants = THREATS.iter().map(|threat| threat.variants.len()).sum();
    all_are_as_reported(&["--all"], variants);
}

#[test]
fn what_an_evasion_shows_is_seen_and_what_it_hides_is_not() {
    let variants = EVASIONS.iter().map(|evasion| evasion.threat.variants.len()).sum();
    all_are_as_reported(&["--evasive", "--all"], variants);
}

/// Each was done, is seen as its report says, and leaves the machine as it was. Where others open so many files that not each
/// path is looked at, which is counted, it is tried again.
fn all_are_as_reported(arguments: &[&str], variants: usize) {
    let _turn = turn();
    for _ in 0..3 {
        let (wrong, counters) = reported_wrongly(arguments, variants);
        if wrong.is_empty() {
            return;
        }
        assert!(counters.unchecked > 0, "{}\n{counters:?}", wrong.join("\n"));
        eprintln!("{}\n{} paths were not looked at: once more", wrong.join("\n"), counters.unchecked);
        thread::sleep(Duration::from_secs(20));
    }
    panic!("three times in a row");
}

fn reported_wrongly(arguments: &[&str], variants: usize) -> (Vec<String>, Counters) {
    let before = Machine::now();
    let recording = Recording::of(&mut simulate(arguments));
    nothing_is_left(recording.owner, &before, &arguments.join(" "));
    assert_eq!(recording.reports.len(), variants, "one line for each variant");
    let mut wrong = Vec::new();
    for report in &recording.reports {
        let name = report.name();
        match &report.outcome {
            Outcome::Done => {
                let unseen = recording.unseen(report);
                if !unseen.is_empty() {
                    wrong.push(format!("{name} not seen: {}", unseen.join(", ")));
                }
                let told = recording.told(report);
                if !told.is_empty() {
                    wrong.push(format!("{name} is said to hide, and was seen: {}", told.join(", ")));
                }
            }
            Outcome::Skipped(_) if MAY_BE_SKIPPED.contains(&name.as_str()) => {}
            other => wrong.push(format!("{name}: {other:?}")),
        }
    }
    (wrong, recording.counters)
}
