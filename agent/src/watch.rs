//! Probe and pipeline as one: takes what the kernel tells, has it judged, and does what the pipeline wants of the
//! kernel. `behaveguard run` keeps what comes out; `behaveguard record` writes down what goes in.

use std::sync::{Arc, Mutex};

use agent_ebpf::records::Class;
use models::bundle::Verified;
use models::chain::chain;
use models::event::Event;
use models::program::ProgramId;

use crate::capture::{CaptureError, Writer};
use crate::clock;
use crate::config::Config;
use crate::pipeline::{ActivateError, Baseline, Follow, Input, Memory, Output, Pipeline, Shelf};
use crate::probe::{Probe, ProbeError, TableId};
use crate::processes::{ProcFs, Tapped};
use crate::redact::redact;
use crate::shedding::Shed;
use crate::whitelist::Whitelist;

/// What happened how often since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Epochs whose counts could not be taken.
    pub drains_failed: u64,
    /// Tables that the kernel had no room for: their programs are judged without the order of calls.
    pub tables_refused: u64,
    /// Processes that the kernel had no room to follow.
    pub follows_refused: u64,
}

/// Records for which there is room from one look at the rings to the next: what one process starts and leaves behind is fewer.
const EVENTS_KEPT: usize = 128;

/// A probe whose records are judged.
pub struct Watch {
    probe: Probe,
    /// Empty between two looks at the rings. A record takes half a kilobyte, so memory for them is not asked for each time.
    events: Vec<Event>,
    pipeline: Pipeline<Tapped<ProcFs>>,
    /// Tables that an open window may still be looked up in.
    retired: Vec<TableId>,
    dropped_before: u64,
    shed: Shed,
    counters: Counters,
    tap: Tap,
}

/// Whether what goes in is written down.
enum Tap {
    Off,
    /// From the next window on.
    Waits(Writer),
    On(Writer),
    /// It ended by itself.
    Ended(CaptureError),
}

impl Watch {
    /// Watches with a probe that has just been loaded.
    #[must_use]
    pub fn new(config: &Config, probe: Probe) -> Self {
        let pipeline = Pipeline::new(config.clone(), Tapped::new(ProcFs), probe.epoch().1);
        let mut watch = Self {
            probe,
            events: Vec::new(),
            pipeline,
            retired: Vec::new(),
            dropped_before: 0,
            shed: Shed::Nothing,
            counters: Counters::default(),
            tap: Tap::Off,
        };
        watch.note_drops();
        watch
    }

    /// Writes down everything that is judged from now on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(&mut self, mut tap: Writer) -> Result<(), CaptureError> {
        tap.begin(self.pipeline.config(), self.probe.epoch().1, self.pipeline.degraded())?;
        tap.known(&self.pipeline.known())?;
        for (program, generation, table) in self.pipeline.in_use() {
            tap.switch(program, generation, table)?;
        }
        self.pipeline.lookup().tap(true);
        self.tap = Tap::On(tap);
        Ok(())
    }

    /// Writes down everything that is judged from the next window on.
    pub fn record_next(&mut self, tap: Writer) {
        self.tap = Tap::Waits(tap);
    }

    /// Begins what waits for this window.
    fn begin_recording(&mut self) {
        self.tap = match std::mem::replace(&mut self.tap, Tap::Off) {
            Tap::Waits(tap) => match self.record(tap) {
                Ok(()) => return,
                Err(error) => Tap::Ended(error),
            },
            as_before => as_before,
        };
    }

    /// The kernel's side.
    #[must_use]
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// The judging side.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline<Tapped<ProcFs>> {
        &self.pipeline
    }

    /// Makes sure that a baseline will have its place; see [`Pipeline::make_room`].
    ///
    /// # Errors
    /// When the table of programs is full.
    pub fn make_room(&mut self, program: &ProgramId) -> Result<(), ActivateError> {
        self.pipeline.make_room(program)
    }

    /// Judges by another configuration from now on; see [`Config::reloaded`].
    pub fn reconfigure(&mut self, config: &Config) {
        self.pipeline.reconfigure(config.clone());
    }

    /// Leaves evidence out from now on, or gathers it again.
    ///
    /// # Errors
    /// When the kernel cannot be told.
    pub fn shed(&mut self, shed: Shed) -> Result<(), ProbeError> {
        self.shed = shed;
        self.probe.shed_opens(shed >= Shed::Opens)
    }

    /// The kernel's side, to deny egress.
    pub fn probe_mut(&mut self) -> &mut Probe {
        &mut self.probe
    }

    /// What is worth keeping over a restart.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.pipeline.memory()
    }

    /// Goes on with it; before any baseline is used.
    pub fn remember(&mut self, memory: Memory) {
        self.pipeline.remember(memory);
    }

    /// What the operator expects from now on.
    pub fn set_whitelist(&mut self, whitelist: Arc<Mutex<Whitelist>>) {
        self.pipeline.set_whitelist(whitelist);
    }

    /// Where models come back from that made room; see [`Pipeline::set_shelf`].
    pub fn set_shelf(&mut self, shelf: Shelf) {
        self.pipeline.set_shelf(shelf);
    }

    /// What happened how often.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Gives waiting records to the pipeline; those after `until_ns` are kept for the caller.
    pub fn take_events(&mut self, until_ns: u64, out: &mut Vec<Output>) -> Vec<Event> {
        let (mut now_events, mut later) = (std::mem::take(&mut self.events), Vec::new());
        let words = &self.pipeline.config().redact;
        self.probe.poll_events(&mut |mut event| {
            redact(&mut event, words);
            if event.boot_ns <= until_ns { now_events.push(event) } else { later.push(event) }
        });
        // Two rings: what happened first is told first.
        now_events.sort_by_key(|event| event.boot_ns);
        later.sort_by_key(|event| event.boot_ns);
        self.feed(now_events.drain(..), out);
        now_events.shrink_to(EVENTS_KEPT);
        self.events = now_events;
        later
    }

    /// Ends the kernel's epoch and judges its windows.
    pub fn close(&mut self, out: &mut Vec<Output>) {
        let syscalls = match self.probe.drain() {
            Ok(syscalls) => syscalls,
            Err(error) => {
                self.counters.drains_failed += 1;
                log::error!("taking the kernel's counts: {}", chain(&error));
                Vec::new()
            }
        };
        // No open window can be looked up in them any more.
        for table in self.retired.drain(..) {
            self.probe.unload_table(table);
        }
        let (_, closed_ns) = self.probe.epoch();
        let later = self.take_events(closed_ns, out);
        self.note_drops();
        self.step(Input::Close { closed_ns, syscalls }, out);
        self.begin_recording();
        self.feed(later, out);
    }

    /// Uses a baseline from now on: the kernel gets its table and the pipeline the rest. Without room for the table the
    /// order of calls is not judged, and everything else is.
    ///
    /// # Errors
    /// When there is no room for its program; never after [`Watch::make_room`] for it.
    pub fn switch(&mut self, verified: &Verified, mut baseline: Baseline) -> Result<(), ActivateError> {
        let loaded = baseline.take_grams().map(|grams| self.probe.load_table(grams.entries()));
        let table = loaded.and_then(|loaded| match loaded {
            Ok(table) => Some(table),
            Err(error) => {
                self.counters.tables_refused += 1;
                log::error!("the order of calls is not judged: {}", chain(&error));
                None
            }
        });
        let table = table.map(|table| table.0);
        let mut out = Vec::new();
        let before = self.pipeline.switch(baseline.with_table(table), &mut out)?;
        self.retired.extend(before.map(TableId));
        let manifest = verified.manifest();
        self.write(|tap| tap.switch(&manifest.program, manifest.generation, table));
        self.obey(&mut out, 0);
        Ok(())
    }

    /// Judges a program by its baseline no longer: it is learned anew.
    pub fn forget(&mut self, program: &ProgramId) {
        let mut out = Vec::new();
        let before = self.pipeline.forget(program, &mut out);
        self.retired.extend(before.map(TableId));
        self.write(|tap| tap.forget(program));
        self.obey(&mut out, 0);
    }

    /// Uses what was active when the agent stopped; one that cannot be used is logged.
    pub fn activate(&mut self, verified: &Verified) {
        let used = Baseline::load(verified)
            .map_err(ActivateError::from)
            .and_then(|baseline| self.switch(verified, baseline));
        if let Err(error) = used {
            log::error!("the baseline of {} is not used: {}", verified.manifest().program, chain(&error));
        }
    }

    /// Ends the recording and gives the file's size; `None` when there is none.
    ///
    /// # Errors
    /// When its end cannot be written, or why it ended by itself.
    pub fn stop_recording(&mut self) -> Option<Result<u64, CaptureError>> {
        self.pipeline.lookup().tap(false);
        match std::mem::replace(&mut self.tap, Tap::Off) {
            Tap::Off => None,
            Tap::Waits(tap) | Tap::On(tap) => Some(tap.finish()),
            Tap::Ended(error) => Some(Err(error)),
        }
    }

    /// Something is written down, or will be.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        matches!(self.tap, Tap::Waits(_) | Tap::On(_))
    }

    /// Tells the pipeline which layers did not see everything in this window.
    fn note_drops(&mut self) {
        let mut degraded: Vec<String> =
            self.probe.layers().iter().filter(|l| l.backend.is_empty()).map(|l| l.layer.clone()).collect();
        if let Ok(counters) = self.probe.counters() {
            let dropped = counters.classes.iter().map(|(_, class)| class.dropped).sum();
            if dropped > self.dropped_before {
                let classes = counters.classes.iter().filter(|(_, class)| class.dropped > 0);
                degraded.extend(classes.map(|(name, _)| layer_of(name).to_owned()));
                self.dropped_before = dropped;
            }
        }
        degraded.extend(self.shed.layers().iter().map(|layer| (*layer).to_owned()));
        degraded.sort();
        degraded.dedup();
        self.write(|tap| tap.degraded(&degraded));
        self.pipeline.set_degraded(degraded);
    }

    fn feed(&mut self, events: impl IntoIterator<Item = Event>, out: &mut Vec<Output>) {
        for event in events {
            self.step(Input::Event(event), out);
        }
    }

    fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        let now = clock::now();
        let from = out.len();
        let copy = matches!(self.tap, Tap::On(_)).then(|| input.clone());
        self.pipeline.step(now, input, out);
        if let Some(input) = copy {
            let answers = self.pipeline.lookup().answers();
            self.write(|tap| tap.step(now, &input, &answers));
        }
        self.obey(out, from);
    }

    fn write(&mut self, entry: impl FnOnce(&mut Writer) -> Result<(), CaptureError>) {
        let Tap::On(tap) = &mut self.tap else { return };
        if let Err(error) = entry(tap) {
            self.tap = Tap::Ended(error);
            self.pipeline.lookup().tap(false);
        }
    }

    /// Does what the pipeline wants of the kernel, and leaves what is for the fleet.
    fn obey(&mut self, out: &mut Vec<Output>, from: usize) {
        let (probe, counters) = (&mut self.probe, &mut self.counters);
        let mut noted = |done: Result<(), ProbeError>| {
            if let Err(error) = done {
                counters.follows_refused += 1;
                log::debug!("the order of a process's calls: {}", chain(&error));
            }
        };
        out.extract_if(from.., |output| match output {
            Output::Follow(Follow { tgid, table, learn }) => {
                noted(probe.follow(*tgid, table.map(TableId), *learn));
                true
            }
            Output::Unfollow(tgid) => {
                noted(probe.unfollow(*tgid));
                true
            }
            Output::Alert(_) | Output::Train(_) | Output::Alarmed(_) => false,
        })
        .for_each(drop);
    }
}

/// The layer that a class of kernel records belongs to.
fn layer_of(class: &str) -> &'static str {
    let layers = [
        (Class::Exec, "process"),
        (Class::Fork, "process"),
        (Class::Exit, "process"),
        (Class::Open, "file"),
        (Class::Connect, "network"),
        (Class::Flush, "syscall"),
        (Class::Injection, "injection"),
        (Class::Escape, "container_escape"),
        (Class::AntiForensic, "anti_forensic"),
        (Class::Unplaced, "anti_forensic"),
        (Class::Dns, "dns"),
        (Class::Privilege, "privilege"),
        (Class::KernelLoad, "kernel_load"),
    ];
    layers.iter().find(|(known, _)| known.name() == class).map_or("syscall", |(_, layer)| layer)
}
