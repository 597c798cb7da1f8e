//! Events and drained counts to alerts and training windows: all of the agent's judgement, without any I/O.
//!
//! Time, events and identities come in as arguments, so the same input always gives the same output.
//!
//! A program is LEARNING until a baseline is activated: its windows go to the fleet. Then it is ACTIVE: its windows
//! are judged and go nowhere. It is STALE when its baseline has expired: still judged, and said so; or when its windows
//! are no longer like those learned ([`promise`]): then first-time acts alone are judged, and its windows go to the
//! fleet again.

mod close;
mod counters;
mod follow;
mod known;
mod lives;
mod memory;
mod promise;
mod resident;
mod tell;
#[cfg(test)]
mod tests;
mod training;
mod units;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use models::budget::{Account, AlertBudget};
use models::bundle::{Manifest, Verified};
use models::detect::{DetectError, Detectors};
use models::drift::Drift;
use models::event::{Event, EventKind, SyscallWindow, Volume};
use models::policy::Gate;
use models::program::{NO_UNIT, ProgramId};
use models::sequence::GramTable;
use models::verdict::{Verdict, judge};
use models::window::Window;
use models::wire::{AlarmedWindow, Alert, ProgramState, TrainingWindow, TrainingWindows};

use serde::{Deserialize, Serialize};

use crate::clock::Now;
use crate::config::Config;
use crate::explanations::Explanations;
use crate::processes::{Lookup, Started, unit_in};
use crate::whitelist::{Allowance, Whitelist};
pub use counters::Counters;
pub use follow::Follow;
use follow::how;
pub use known::{Known, Running};
pub use memory::Memory;
use promise::Promise;
pub use promise::PromiseState;
use resident::Resident;
pub use resident::Shelf;
use units::Units;

/// Traits of one program that wait for a window.
const LOOSE_MAX: usize = 128;

/// What the pipeline is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "events are many and live for one call: boxing each would cost more"
)]
pub enum Input {
    /// A record from the kernel.
    Event(Event),
    /// The epoch ended at `closed_ns`, and this is what the kernel counted in it.
    Close {
        /// `CLOCK_BOOTTIME`, nanoseconds.
        closed_ns: u64,
        /// One per process.
        syscalls: Vec<SyscallWindow>,
    },
}

/// What the pipeline wants told to the fleet or to the kernel.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// A verdict that passed the policy.
    Alert(Box<Alert>),
    /// Normal windows of a program that is being learned.
    Train(TrainingWindows),
    /// A window that there were alerts in, after them.
    Alarmed(Box<AlarmedWindow>),
    /// What the kernel shall do with the order of a process's calls.
    Follow(Follow),
    /// The process has left.
    Unfollow(u32),
}

/// A baseline that can judge.
pub struct Baseline {
    manifest: Manifest,
    /// `None` while they made room for others.
    detectors: Option<Detectors>,
    /// When they were used last, in the pipeline's turns.
    used_at: u64,
    /// They could not be read again, and it is not tried before this time.
    retry_ns: u64,
    /// The kernel's number of its table.
    table: Option<u16>,
    promise: Promise,
}

impl Baseline {
    /// Loads the graphs of a checked bundle.
    ///
    /// # Errors
    /// When a graph is missing or does not load.
    pub fn load(verified: &Verified) -> Result<Self, DetectError> {
        let (manifest, detectors) = (verified.manifest().clone(), Some(Detectors::load(verified)?));
        let promise = Promise::of(&manifest);
        Ok(Self { manifest, detectors, used_at: 0, retry_ns: 0, table: None, promise })
    }

    /// Gives away what the kernel's table is to be filled with.
    pub fn take_grams(&mut self) -> Option<GramTable> {
        self.detectors.as_mut()?.take_grams()
    }

    fn model_bytes(&self) -> usize {
        self.detectors.as_ref().map_or(0, Detectors::bytes)
    }

    /// The kernel has its table under this number.
    #[must_use]
    pub fn with_table(self, table: Option<u16>) -> Self {
        Self { table, ..self }
    }
}

/// Why a baseline is not used.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// Its graphs.
    #[error("its graphs cannot be used")]
    Load(#[from] DetectError),
    /// The table of programs.
    #[error("{0} programs are known already: raise `programs_max`, or watch fewer")]
    TableFull(u32),
}

struct Program {
    id: ProgramId,
    baseline: Option<Baseline>,
    windows: u64,
    /// What processes did before they became another program, while this one is learned: it goes with the next window.
    loose: BTreeSet<u64>,
    /// Which program of all it was that came.
    admitted: u64,
}

impl Program {
    /// Its windows are given away: it has no baseline, or one whose promise is broken.
    fn learns(&self) -> bool {
        self.baseline.as_ref().is_none_or(|baseline| baseline.promise.is_broken())
    }
}

#[derive(Default)]
struct Process {
    /// Its program; `None` when it is not followed.
    key: Option<String>,
    /// Names this run of the process.
    run: u64,
    comm: String,
    uid: u32,
    /// Its unit, also when it is not followed.
    unit: String,
    /// The parent, while it has not started a program of its own.
    forked_by: Option<u32>,
    /// When it was made, or started its program; zero when that was before it was watched.
    born_ns: u64,
    exited_ns: Option<u64>,
    window: Option<Box<Window>>,
    history: VecDeque<Vec<(u16, f32)>>,
    /// Something in its open window was worth an alert, so it is not learned from.
    alarmed: bool,
    /// The alerts that were sent about its open window.
    told: Vec<u64>,
    /// What it had read and written by the end of its last window; `None` when it began before it was watched.
    volume: Option<Volume>,
}

impl Process {
    /// It began in the epoch that began at `opened_ns` and did not end in it: its first window ends with the next epoch, so
    /// that a program that runs for a moment shows one whole run, wherever an epoch ends.
    fn goes_on(&self, opened_ns: u64) -> bool {
        self.born_ns > opened_ns && self.exited_ns.is_none()
    }

    /// Its open window: from its birth when that was in this one, so that rates are of its own life.
    fn open(&mut self, tgid: u32, opened_ns: u64) -> &mut Window {
        let opened_ns = opened_ns.max(self.born_ns);
        self.window.get_or_insert_with(|| Box::new(Window::new(tgid, opened_ns)))
    }
}

/// The stage between the kernel and the outbox.
pub struct Pipeline<L> {
    config: Config,
    lookup: L,
    processes: BTreeMap<u32, Process>,
    programs: BTreeMap<String, Program>,
    /// Programs that ever came into the table.
    admitted: u64,
    units: Units,
    /// Of programs whose baseline did not come yet after a restart: generation, and what became of its promise.
    remembered: BTreeMap<String, (u64, Drift)>,
    resident: Resident,
    gate: Gate,
    /// `None` sends every verdict from MEDIUM on.
    account: Option<Account>,
    counters: Counters,
    opened_ns: u64,
    degraded: Vec<String>,
    /// Time of the last alert.
    alert_unix_ms: u64,
    /// Windows of learning programs since the last close.
    training: BTreeMap<String, Vec<TrainingWindow>>,
    /// Shared with whoever answers questions.
    explanations: Arc<Mutex<Explanations>>,
    /// Shared with whoever changes it.
    whitelist: Arc<Mutex<Whitelist>>,
}

impl<L: Lookup> Pipeline<L> {
    /// An empty pipeline whose first epoch began at `opened_ns`.
    pub fn new(config: Config, lookup: L, opened_ns: u64) -> Self {
        let account = config.alert_budget.map(|budget| Account::open(budget, opened_ns));
        Self {
            account,
            config,
            lookup,
            processes: BTreeMap::new(),
            programs: BTreeMap::new(),
            admitted: 0,
            units: Units::default(),
            remembered: BTreeMap::new(),
            resident: Resident::default(),
            gate: Gate::default(),
            counters: Counters::default(),
            opened_ns,
            degraded: Vec::new(),
            alert_unix_ms: 0,
            training: BTreeMap::new(),
            explanations: Arc::default(),
            whitelist: Arc::default(),
        }
    }

    /// What it judges by.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Judges by another configuration from now on, which [`Config::reloaded`] gave. Another alert budget begins anew.
    pub fn reconfigure(&mut self, config: Config) {
        if config.alert_budget != self.config.alert_budget {
            self.account = config.alert_budget.map(|budget| Account::open(budget, self.opened_ns));
        }
        self.config = config;
        self.make_models_fit(None);
    }

    /// Takes one input; what is to be told goes to `out`.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Vec<Output>) {
        if let Some(account) = &mut self.account {
            account.earn(now.boot_ns);
        }
        match input {
            Input::Event(event) => self.event(now, &event, out),
            Input::Close { closed_ns, syscalls } => self.close(now, closed_ns, &syscalls, out),
        }
    }

    /// Uses a loaded baseline from now on: no window is judged by half of it. Returns the table of the one before.
    ///
    /// # Errors
    /// When there is no room for its program; never after [`Pipeline::make_room`] for it.
    pub fn switch(
        &mut self,
        mut baseline: Baseline,
        out: &mut Vec<Output>,
    ) -> Result<Option<u16>, ActivateError> {
        self.make_room(&baseline.manifest.program)?;
        let key = baseline.manifest.program.key();
        let before = self.remembered.remove(&key);
        if let Some((_, drift)) = before.filter(|(generation, _)| *generation == baseline.manifest.generation)
        {
            baseline.promise.go_on(drift);
        }
        let Some(program) = self.programs.get_mut(&key) else { return Ok(None) };
        let unit = program.id.unit.clone();
        let before = program.baseline.replace(baseline).and_then(|before| before.table);
        let of_it = self.processes.iter().filter(|(_, process)| process.key.as_ref() == Some(&key));
        out.extend(of_it.map(|(tgid, _)| Output::Follow(how(program, *tgid))));
        self.units.learn(&unit, &self.programs);
        self.make_models_fit(Some(&key));
        Ok(before)
    }

    /// Judges a program by its baseline no longer, and learns it anew. Returns the table it had.
    pub fn forget(&mut self, id: &ProgramId, out: &mut Vec<Output>) -> Option<u16> {
        let key = id.key();
        let program = self.programs.get_mut(&key)?;
        let before = program.baseline.take().and_then(|before| before.table);
        let of_it = self.processes.iter().filter(|(_, process)| process.key.as_ref() == Some(&key));
        out.extend(of_it.map(|(tgid, _)| Output::Follow(how(program, *tgid))));
        self.units.learn(&id.unit, &self.programs);
        before
    }

    /// Takes a place in the table of programs, unless it has one.
    ///
    /// # Errors
    /// When the table is full.
    pub fn make_room(&mut self, id: &ProgramId) -> Result<(), ActivateError> {
        if self.admit_program(&id.key(), id) {
            Ok(())
        } else {
            Err(ActivateError::TableFull(self.config.programs_max))
        }
    }

    /// Names the layers that do not see everything at the moment.
    pub fn set_degraded(&mut self, layers: Vec<String>) {
        self.degraded = layers;
    }

    /// The layers that do not see everything at the moment.
    #[must_use]
    pub fn degraded(&self) -> &[String] {
        &self.degraded
    }

    /// Where identities come from.
    #[must_use]
    pub fn lookup(&self) -> &L {
        &self.lookup
    }

    /// The same, to be changed.
    pub fn lookup_mut(&mut self) -> &mut L {
        &mut self.lookup
    }

    /// What happened how often.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The operator's budget, and the p-value up to which it sends what the statistics say.
    #[must_use]
    pub fn budget(&self) -> Option<(AlertBudget, f64)> {
        self.account.as_ref().map(|account| (account.budget(), account.p_max()))
    }

    /// Why what was judged lately has its score.
    #[must_use]
    pub fn explanations(&self) -> Arc<Mutex<Explanations>> {
        Arc::clone(&self.explanations)
    }

    /// What the operator expects from now on.
    pub fn set_whitelist(&mut self, whitelist: Arc<Mutex<Whitelist>>) {
        self.whitelist = whitelist;
    }

    fn allowance(&self, program: &ProgramId, now: Now) -> Allowance {
        self.whitelist.lock().unwrap_or_else(PoisonError::into_inner).of(program, now.unix_ms / 1000)
    }

    /// Processes that are followed.
    #[must_use]
    pub fn followed(&self) -> usize {
        self.processes.values().filter(|process| process.key.is_some()).count()
    }

    /// Every program and how far its baseline is.
    #[must_use]
    pub fn programs(&self, unix_s: u64) -> Vec<ProgramState> {
        let one = |program: &Program| ProgramState {
            program: program.id.clone(),
            state: state(program, unix_s).into(),
            generation: generation(program),
            windows: program.windows,
        };
        self.programs.values().map(one).collect()
    }

    fn event(&mut self, now: Now, event: &Event, out: &mut Vec<Output>) {
        let mut born = None;
        match &event.kind {
            EventKind::Fork { child } => self.forked(event, *child, out),
            EventKind::Exec { path, arguments, fileless, group } => {
                let came_from = || self.processes.get(&event.tgid).map_or(NO_UNIT, |process| &process.unit);
                let unit = unit_in(group).unwrap_or_else(came_from).to_owned();
                let told = Started { path: path.to_string(), arguments: arguments.to_string(), unit };
                born = Some((event.boot_ns, told));
                self.started(now, event, (path, arguments), *fileless, out);
            }
            EventKind::Inject { call, victim } => self.injected(now, event, *call, *victim, out),
            EventKind::Exit => {
                if let Some(process) = self.processes.get_mut(&event.tgid) {
                    process.exited_ns = Some(event.boot_ns);
                }
            }
            _ => {}
        }
        if !self.follow_as(event.tgid, event.uid, born.as_ref(), out) {
            return;
        }
        let opened_ns = self.opened_ns;
        let Some(process) = self.processes.get_mut(&event.tgid) else { return };
        let uid_before = process.uid;
        let window = process.open(event.tgid, opened_ns);
        let mut decisive = window.add(event);
        if event.uid == 0 && uid_before != 0 {
            decisive = Some(window.root_gained(uid_before));
        }
        process.uid = event.uid;
        if !event.comm.is_empty() {
            process.comm.clear();
            process.comm.push_str(&event.comm);
        }
        if let Some(id) = decisive {
            // A verdict that does not wait for the window's end.
            self.judge_so_far(now, event.tgid, Some(id), out);
        }
        if event.kind == EventKind::Exit {
            self.left(now, event, out);
        }
    }

    /// Judges what a process did so far by its traits alone; its window goes on. When one act `matters`, only if it is new.
    fn judge_so_far(&mut self, now: Now, tgid: u32, matters: Option<u64>, out: &mut Vec<Output>) {
        let Some(process) = self.processes.get(&tgid) else { return };
        let Some(window) = &process.window else { return };
        if let Some(verdict) = self.by_traits(now, process, window, matters) {
            self.tell(now, tgid, verdict, out);
        }
    }

    /// The same, and forgets it: what is left of a window is no window to compare with whole ones.
    fn judge_at_once(&mut self, now: Now, tgid: u32, out: &mut Vec<Output>) {
        let Some(process) = self.processes.get_mut(&tgid) else { return };
        let Some(window) = process.window.take() else { return };
        let Some(process) = self.processes.get(&tgid) else { return };
        let key = process.key.clone();
        if let Some(verdict) = self.by_traits(now, process, &window, None) {
            self.tell(now, tgid, verdict, out);
        }
        self.keep_alarmed(now, tgid, None, &window, out);
        let alarmed = self.processes.get(&tgid).is_some_and(|process| process.alarmed);
        let program = key.and_then(|key| self.programs.get_mut(&key));
        if let Some(program) = program.filter(|program| program.learns() && !alarmed) {
            let room = LOOSE_MAX.saturating_sub(program.loose.len());
            let traits = window.traits();
            self.counters.window_overflow += traits.len().saturating_sub(room) as u64;
            program.loose.extend(traits.iter().take(room));
            self.units.remember(&program.id, &window);
        }
    }

    /// What a window's first-time acts say, against the program's baseline, else against its unit; `None` where nothing is
    /// known of either, or the one act that matters is nothing new.
    fn by_traits(
        &self,
        now: Now,
        process: &Process,
        window: &Window,
        matters: Option<u64>,
    ) -> Option<Verdict> {
        let program = &self.programs.get(process.key.as_ref()?)?.id;
        let expected = self.allowance(program, now).acts;
        if let Some(baseline) = baseline_of(&self.programs, process) {
            let known = &baseline.manifest.traits;
            let is_new =
                matters.is_none_or(|id| known.binary_search(&id).is_err() && !expected.contains(&id));
            return is_new.then(|| judge(window, None, &[], &baseline.manifest, &expected));
        }
        self.units.judge(program, window, matters, &expected)
    }
}

/// How far a program's baseline is.
fn state(program: &Program, unix_s: u64) -> &'static str {
    match &program.baseline {
        None => "LEARNING",
        Some(baseline) if baseline.promise.is_broken() => "STALE",
        Some(baseline) if baseline.manifest.expires_unix_s <= unix_s => "STALE",
        Some(_) => "ACTIVE",
    }
}

fn generation(program: &Program) -> u64 {
    program.baseline.as_ref().map_or(0, |baseline| baseline.manifest.generation)
}

fn baseline_of<'a>(programs: &'a BTreeMap<String, Program>, process: &Process) -> Option<&'a Baseline> {
    programs.get(process.key.as_ref()?)?.baseline.as_ref()
}
