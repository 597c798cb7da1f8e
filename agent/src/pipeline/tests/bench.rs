//! A pipeline with one program, and a clock that steps by seconds.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use models::bundle::{self, Keyring, SigningKey};
use models::event::{Arguments, Comm, GroupText, PathText};
use models::train::{self, TrainOptions, Trained};

use super::super::*;
use crate::config::Pattern;
use crate::processes::{Found, Identity};

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const GATEWAY: u32 = 100;

/// Who is there, and what was told about the last start.
#[derive(Default)]
pub(super) struct Table(pub(super) HashMap<u32, Identity>, pub(super) Option<Started>);

impl Lookup for Table {
    fn identity(&mut self, tgid: u32, started: Option<&Started>) -> Identity {
        self.1 = started.cloned();
        self.0.get(&tgid).cloned().unwrap_or(Identity::Gone)
    }
}

pub(super) fn program(exe: &str) -> ProgramId {
    ProgramId { unit: "gw.service".into(), exe: exe.into(), script: None }
}

pub(super) fn found(exe: &str) -> Identity {
    Identity::Program(Found { program: program(exe), comm: "gw".into(), start_ticks: 5 })
}

pub(super) struct Bench {
    pub(super) pipeline: Pipeline<Table>,
    pub(super) now_s: u64,
    /// What the kernel was told so far.
    told: Vec<Output>,
    pub(super) table: GramTable,
    pub(super) bundle: Option<Verified>,
}

/// The kernel's number of the table in these tests.
pub(super) const TABLE: u16 = 4;

/// What windows train, and which are accepted.
type Lesson = [Vec<TrainingWindow>; 2];

/// What these windows train. Most tests learn the same, and to fit takes longer than all else that they do.
pub(super) fn fitted(windows: &[TrainingWindow], accepted: &[TrainingWindow]) -> Trained {
    static FITTED: Mutex<Vec<(Lesson, Trained)>> = Mutex::new(Vec::new());
    let lesson = [windows.to_vec(), accepted.to_vec()];
    let mut all = FITTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, trained)) = all.iter().find(|(known, _)| *known == lesson) {
        return trained.clone();
    }
    let accepted = accepted.to_vec();
    let options = TrainOptions { vae_steps: 300, lstm_steps: 40, accepted, ..TrainOptions::default() };
    let trained = train::fit(windows, &options, &mut |_| {}).unwrap();
    all.push((lesson, trained.clone()));
    trained
}

/// Six calls that are normal here.
pub(super) fn usual_gram() -> u64 {
    [0, 1, 0, 1, 0, 1].iter().fold(models::sequence::EMPTY, |gram, call| models::sequence::roll(gram, *call))
}

impl Bench {
    pub(super) fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { watch: vec![Pattern("/usr/bin/gw*".into())], ..Config::default() };
        change(&mut config);
        let mut table = Table::default();
        table.0.insert(GATEWAY, found("/usr/bin/gw"));
        Self {
            pipeline: Pipeline::new(config, table, 0),
            now_s: 0,
            told: Vec::new(),
            table: GramTable::default(),
            bundle: None,
        }
    }

    pub(super) fn event(&mut self, tgid: u32, kind: EventKind) -> Vec<Output> {
        let boot_ns = self.now_s * SECOND + 1;
        let event = Event { boot_ns, tgid, tid: tgid, uid: 7, comm: Comm::try_from("gw").unwrap(), kind };
        self.step(Input::Event(event))
    }

    pub(super) fn open(&mut self, tgid: u32, path: &str, sensitive: bool) -> Vec<Output> {
        self.event(tgid, EventKind::Open { path: PathText::try_from(path).unwrap(), flags: 0, sensitive })
    }

    pub(super) fn exec(&mut self, tgid: u32, path: &str) -> Vec<Output> {
        self.event(
            tgid,
            EventKind::Exec {
                path: PathText::try_from(path).unwrap(),
                arguments: Arguments::new(),
                fileless: false,
                group: GroupText::new(),
            },
        )
    }

    pub(super) fn close(&mut self, tgids: &[u32]) -> Vec<Output> {
        self.close_with(tgids, |_| {})
    }

    pub(super) fn close_with(&mut self, tgids: &[u32], change: impl Fn(&mut SyscallWindow)) -> Vec<Output> {
        let syscalls = tgids.iter().map(|tgid| {
            let mut window = SyscallWindow::empty(*tgid, 1);
            // A little different every time, as life is.
            window.calls[0] = 40 + u32::try_from(self.now_s * 7 % 5).unwrap();
            window.calls[1] = 20;
            window.bigrams[3] = 30;
            window.active = [0b1011, 0, 0, 0, 0, 0, 0, 0];
            window.learned = vec![(usual_gram(), 50), (usual_gram() + 1, 10)];
            change(&mut window);
            window
        });
        let syscalls = syscalls.collect();
        self.now_s += 1;
        self.step(Input::Close { closed_ns: self.now_s * SECOND, syscalls })
    }

    pub(super) fn step(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        let now = Now { boot_ns: self.now_s * SECOND + 2, unix_ms: self.now_s * 1000 };
        self.pipeline.step(now, input, &mut out);
        let told = |output: &mut Output| matches!(output, Output::Follow(_) | Output::Unfollow(_));
        self.told.extend(out.extract_if(.., told));
        out
    }

    /// What the kernel was told since the last question.
    pub(super) fn told(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.told)
    }

    pub(super) fn learn(&mut self) {
        let trained = self.train();
        let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8()).unwrap();
        self.bundle = Some(seal(&trained, program("/usr/bin/gw"), &key));
        self.activate_again();
    }

    pub(super) fn train(&mut self) -> Trained {
        fitted(&self.normal_windows(), &[])
    }

    pub(super) fn normal_windows(&mut self) -> Vec<TrainingWindow> {
        let mut windows = Vec::new();
        for _ in 0..80 {
            self.open(GATEWAY, "/var/lib/gw/state", false);
            for output in self.close(&[GATEWAY]) {
                let Output::Train(training) = output else { panic!("an alert while learning") };
                windows.extend(training.windows);
            }
        }
        windows
    }

    /// Uses what was learned as if it were new.
    pub(super) fn activate_again(&mut self) {
        let mut baseline = Baseline::load(self.bundle.as_ref().expect("it was learned")).unwrap();
        self.table = baseline.take_grams().expect("the order of calls was learned");
        self.pipeline.switch(baseline.with_table(Some(TABLE)), &mut self.told).unwrap();
    }
}

pub(super) fn seal(trained: &Trained, program: ProgramId, key: &SigningKey) -> Verified {
    let raw = trained.clone().seal(program, 1, 0..u64::MAX, key);
    bundle::open(&raw, &Keyring([key.public()].into_iter().collect())).unwrap()
}

/// The alerts, and nothing else but the windows that they are about.
pub(super) fn alerts(outputs: Vec<Output>) -> Vec<Alert> {
    let alert = |output| match output {
        Output::Alert(alert) => Some(*alert),
        Output::Alarmed(_) => None,
        other => panic!("not an alert: {other:?}"),
    };
    outputs.into_iter().filter_map(alert).collect()
}
