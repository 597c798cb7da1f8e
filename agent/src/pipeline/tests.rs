use std::collections::HashMap;

use models::bundle::{self, Keyring, SigningKey, seal};
use models::event::{Comm, PathText};
use models::policy::Severity;
use models::schema::SCHEMA_ID;
use models::train::{self, TrainOptions};

use super::*;
use crate::config::Pattern;
use crate::processes::Found;

const SECOND: u64 = 1_000_000_000;
const GATEWAY: u32 = 100;

#[derive(Default)]
struct Table(HashMap<u32, Identity>);

impl Lookup for Table {
    fn identity(&mut self, tgid: u32) -> Identity {
        self.0.get(&tgid).cloned().unwrap_or(Identity::Gone)
    }
}

fn program(exe: &str) -> ProgramId {
    ProgramId { unit: "gw.service".into(), exe: exe.into(), script: None }
}

fn found(exe: &str) -> Identity {
    Identity::Program(Found { program: program(exe), comm: "gw".into(), start_ticks: 5 })
}

struct Bench {
    pipeline: Pipeline<Table>,
    now_s: u64,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { watch: vec![Pattern("/usr/bin/gw*".into())], ..Config::default() };
        change(&mut config);
        let mut table = Table::default();
        table.0.insert(GATEWAY, found("/usr/bin/gw"));
        Self { pipeline: Pipeline::new(config, table, 0), now_s: 0 }
    }

    fn event(&mut self, tgid: u32, kind: EventKind) -> Vec<Output> {
        let boot_ns = self.now_s * SECOND + 1;
        let event = Event { boot_ns, tgid, tid: tgid, uid: 7, comm: Comm::try_from("gw").unwrap(), kind };
        self.step(Input::Event(event))
    }

    fn open(&mut self, tgid: u32, path: &str, sensitive: bool) -> Vec<Output> {
        self.event(tgid, EventKind::Open { path: PathText::try_from(path).unwrap(), flags: 0, sensitive })
    }

    fn exec(&mut self, tgid: u32, path: &str) -> Vec<Output> {
        self.event(tgid, EventKind::Exec { path: PathText::try_from(path).unwrap(), fileless: false })
    }

    fn close(&mut self, tgids: &[u32]) -> Vec<Output> {
        let syscalls = tgids.iter().map(|tgid| {
            let mut window = SyscallWindow::empty(*tgid, 1);
            // A little different every time, as life is.
            window.calls[0] = 40 + u32::try_from(self.now_s * 7 % 5).unwrap();
            window.calls[1] = 20;
            window.bigrams[3] = 30;
            window.active = [0b1011, 0, 0, 0, 0, 0, 0, 0];
            window
        });
        let syscalls = syscalls.collect();
        self.now_s += 1;
        self.step(Input::Close { closed_ns: self.now_s * SECOND, syscalls })
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        let now = Now { boot_ns: self.now_s * SECOND + 2, unix_ms: self.now_s * 1000 };
        self.pipeline.step(now, input, &mut out);
        out
    }

    fn learn(&mut self) {
        let mut windows = Vec::new();
        for _ in 0..80 {
            self.open(GATEWAY, "/var/lib/gw/state", false);
            for output in self.close(&[GATEWAY]) {
                let Output::Train(training) = output else { panic!("an alert while learning") };
                windows.extend(training.windows);
            }
        }
        let options = TrainOptions { vae_steps: 300, lstm_steps: 40, ..TrainOptions::default() };
        let trained = train::fit(&windows, &options, &mut |_| {}).unwrap();
        let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
        let manifest = Manifest {
            schema: SCHEMA_ID,
            program: program("/usr/bin/gw"),
            generation: 1,
            not_before_unix_s: 0,
            expires_unix_s: u64::MAX,
            parts: vec![],
            calibration: trained.calibration,
            traits: trained.traits,
            training: trained.facts,
        };
        let raw = seal(manifest, trained.parts, &key);
        let keys = Keyring([key.public()].into_iter().collect());
        self.pipeline.activate(&bundle::open(&raw, &keys).unwrap()).unwrap();
    }
}

fn alerts(outputs: Vec<Output>) -> Vec<Alert> {
    let alert = |output| match output {
        Output::Alert(alert) => *alert,
        Output::Train(training) => panic!("trained after learning: {training:?}"),
    };
    outputs.into_iter().map(alert).collect()
}

#[test]
fn a_learned_program_is_quiet_until_it_opens_a_sensitive_file() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    for _ in 0..20 {
        assert_eq!(bench.open(GATEWAY, "/var/lib/gw/state", false).len(), 0);
        assert_eq!(alerts(bench.close(&[GATEWAY])), []);
    }
    let found = alerts(bench.open(GATEWAY, "/etc/shadow", true));
    let [alert] = &found[..] else { panic!("{found:?}") };
    assert!(alert.severity >= Severity::High && alert.score >= 70.0, "{alert:?}");
    assert_eq!(alert.techniques, ["T1003.008"]);
    assert!(alert.summary.contains("/etc/shadow"), "{}", alert.summary);
    assert_eq!((alert.pid, alert.generation, alert.program.exe.as_str()), (GATEWAY, 1, "/usr/bin/gw"));
    assert_eq!(bench.pipeline.programs(0)[0].state, "ACTIVE");
}

#[test]
fn a_shell_started_by_a_child_is_the_parents_doing() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.event(GATEWAY, EventKind::Fork { child: 200 });
    bench.pipeline.lookup.0.insert(200, found("/bin/sh"));
    assert_eq!(bench.exec(200, "/bin/sh").len(), 0);
    bench.event(200, EventKind::Exit);
    let found = alerts(bench.close(&[GATEWAY]));
    let [alert] = &found[..] else { panic!("{found:?}") };
    assert_eq!(alert.pid, GATEWAY);
    assert!(alert.summary.contains("shell"), "{}", alert.summary);
    assert_eq!(alert.techniques.first().map(String::as_str), Some("T1059"));
    assert_eq!(bench.pipeline.followed(), 1, "the shell is not watched");
}

#[test]
fn a_forked_worker_is_judged_by_its_parents_baseline() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.event(GATEWAY, EventKind::Fork { child: 201 });
    let found = alerts(bench.open(201, "/etc/shadow", true));
    assert_eq!((found.len(), found[0].pid), (1, 201));
}

#[test]
fn the_victim_of_an_injection_is_told_and_so_is_who_did_it() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.pipeline.lookup.0.insert(300, found("/usr/bin/gw"));
    let found = alerts(bench.event(300, EventKind::Inject { call: 101, victim: GATEWAY }));
    assert_eq!(found.iter().map(|alert| alert.pid).collect::<Vec<_>>(), [GATEWAY, 300]);
    assert!(found[0].summary.contains("process 300 (gw) by ptrace"), "{}", found[0].summary);
    assert!(found.iter().all(|alert| alert.techniques == ["T1055"]), "{found:?}");
}

#[test]
fn a_program_without_a_file_is_told_at_once() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.event(GATEWAY, EventKind::Fork { child: 200 });
    let path = PathText::try_from("/proc/self/fd/3").unwrap();
    let found = alerts(bench.event(200, EventKind::Exec { path, fileless: true }));
    let [alert] = &found[..] else { panic!("{found:?}") };
    assert!(alert.pid == GATEWAY && alert.techniques.contains(&"T1620".to_owned()), "{alert:?}");
}

#[test]
fn windows_in_which_something_was_lost_never_train() {
    let mut bench = Bench::new(|_| {});
    bench.pipeline.set_degraded(vec!["file".into()]);
    assert!(bench.close(&[GATEWAY]).is_empty());
    assert_eq!(bench.pipeline.counters().windows_degraded, 1);
}

#[test]
fn full_tables_refuse_and_count() {
    let mut bench = Bench::new(|config| {
        config.processes_max = 16;
        config.programs_max = 2;
    });
    for tgid in 1..=20 {
        bench.pipeline.lookup.0.insert(tgid, found(&format!("/usr/bin/gw{}", tgid % 4)));
    }
    let all: Vec<u32> = (1..=20).collect();
    bench.close(&all);
    assert_eq!(bench.pipeline.counters().processes_refused, 4);
    assert_eq!((bench.pipeline.programs(0).len(), bench.pipeline.followed()), (2, 8));
    assert_eq!(bench.pipeline.counters().programs_refused, 8);
}

#[test]
fn a_full_table_of_programs_refuses_a_baseline_by_name() {
    let mut bench = Bench::new(|config| config.programs_max = 1);
    assert!(bench.pipeline.make_room(&program("/usr/bin/gw")).is_ok());
    assert!(bench.pipeline.make_room(&program("/usr/bin/gw")).is_ok(), "it has its place already");
    let refused = bench.pipeline.make_room(&program("/usr/bin/other")).unwrap_err();
    assert!(refused.to_string().contains("raise `programs_max`"), "{refused}");
}

#[test]
fn processes_that_left_make_room() {
    let mut bench = Bench::new(|config| config.processes_max = 16);
    for round in 0..10 {
        for tgid in 1..=16 {
            bench.pipeline.lookup.0.insert(tgid, found("/usr/bin/gw"));
            bench.open(tgid, "/x", false);
            bench.event(tgid, EventKind::Exit);
        }
        bench.close(&[]);
        assert_eq!(bench.pipeline.counters().processes_refused, 0, "round {round}");
    }
}

#[test]
fn the_same_input_gives_the_same_output() {
    let run = || {
        let mut bench = Bench::new(|_| {});
        let mut text = String::new();
        for _ in 0..5 {
            bench.open(GATEWAY, "/var/lib/gw/state", false);
            text += &format!("{:?}", bench.close(&[GATEWAY]));
        }
        text
    };
    assert_eq!(run(), run());
}
