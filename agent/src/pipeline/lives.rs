//! Processes come, become other programs, and go: who is followed, as what, and from when.

use std::collections::BTreeSet;

use models::event::{Event, Volume};
use models::program::{NO_UNIT, ProgramId};

use super::{Output, Pipeline, Process, Program, how};
use crate::clock::Now;
use crate::processes::{Identity, Lookup, Started};

/// A clock tick of `/proc`: `USER_HZ` is 100 on every architecture that we are built for.
const USER_TICK_NS: u64 = 10_000_000;

impl<L: Lookup> Pipeline<L> {
    /// A process left. When the kernel's counts have come, nothing more will, so it is judged at once. One that is
    /// learned waits for its grams, which come at the window's end, unless the table fills up.
    pub(super) fn left(&mut self, now: Now, event: &Event, out: &mut Vec<Output>) {
        let Some(process) = self.processes.get(&event.tgid) else { return };
        let counted = process.window.as_ref().is_some_and(|window| window.syscalls.total() > 0);
        // A stranger waits for its window's end as one that is learned does: what is decisive was told at once.
        let crowded = self.processes.len() > self.config.processes_max as usize / 2;
        let program = process.key.as_ref().and_then(|key| self.programs.get(key));
        if counted && (crowded || program.is_some_and(|program| !program.learns())) {
            self.close_one(now, event.boot_ns, event.tgid, out);
            self.processes.remove(&event.tgid);
            out.push(Output::Unfollow(event.tgid));
        }
    }

    pub(super) fn forked(&mut self, event: &Event, child: u32, out: &mut Vec<Output>) {
        if !self.follow(event.tgid, event.uid, out) {
            // A child that has the number of one that left must not have its identity.
            self.processes.remove(&child);
            return;
        }
        if self.processes.len() >= self.config.processes_max as usize && !self.processes.contains_key(&child)
        {
            self.counters.processes_refused += 1;
            return;
        }
        let Some(parent) = self.processes.get(&event.tgid) else { return };
        let (key, unit) = (parent.key.clone(), parent.unit.clone());
        // The kernel lets a child inherit its parent's table; a learner of its own it must be given.
        let program = key.as_ref().and_then(|key| self.programs.get(key));
        let learns = program.map(|program| how(program, child)).filter(|follow| follow.learn);
        out.extend(learns.map(Output::Follow));
        let process = Process {
            key,
            run: run_of(child, event.boot_ns),
            comm: event.comm.to_string(),
            uid: event.uid,
            unit,
            forked_by: Some(event.tgid),
            born_ns: event.boot_ns,
            volume: Some(Volume::default()),
            ..Process::default()
        };
        self.processes.insert(child, process);
    }

    /// A program was started: evidence about who started it, and a new identity for the process.
    pub(super) fn started(
        &mut self,
        now: Now,
        event: &Event,
        (path, arguments): (&str, &str),
        fileless: bool,
        out: &mut Vec<Output>,
    ) {
        let forked_by = self.processes.get(&event.tgid).and_then(|process| process.forked_by);
        let starter = forked_by.unwrap_or(event.tgid);
        let opened_ns = self.opened_ns;
        // What a child did before, such as to connect, it did for its parent.
        let child = self.processes.get_mut(&event.tgid).filter(|_| forked_by.is_some());
        let before = child.and_then(|child| child.window.take());
        if let Some(process) = self.processes.get_mut(&starter).filter(|process| process.key.is_some()) {
            let window = process.open(starter, opened_ns);
            if let Some(before) = before {
                window.absorb(&before);
            }
            window.now(event.boot_ns);
            window.program_started(path, arguments);
            let name = path.rsplit('/').next().unwrap_or(path);
            if self.config.lolbins.iter().any(|tool| tool == name) {
                window.tool_started(name, arguments);
            }
            let decisive = fileless.then(|| window.fileless_program_started(path, arguments));
            if let (Some(id), Some(_)) = (decisive, forked_by) {
                self.judge_so_far(now, starter, Some(id), out);
            }
            if forked_by.is_none() {
                // It replaced itself: what it did so far belongs to the program that it was.
                self.judge_at_once(now, event.tgid, out);
            }
        }
        self.processes.remove(&event.tgid);
    }

    /// Evidence about the other process: something was written into it.
    pub(super) fn injected(
        &mut self,
        now: Now,
        event: &Event,
        call: u16,
        victim: u32,
        out: &mut Vec<Output>,
    ) {
        if !self.follow(victim, u32::MAX, out) {
            return;
        }
        let opened_ns = self.opened_ns;
        let Some(process) = self.processes.get_mut(&victim) else { return };
        let window = process.open(victim, opened_ns);
        window.now(event.boot_ns);
        let id = window.injected(event.tgid, &event.comm, call);
        self.judge_so_far(now, victim, Some(id), out);
    }

    /// Makes sure that the process is in the table; `false` when it is not followed.
    pub(super) fn follow(&mut self, tgid: u32, uid: u32, out: &mut Vec<Output>) -> bool {
        self.follow_as(tgid, uid, None, out)
    }

    /// The same, right after the process started a program.
    pub(super) fn follow_as(
        &mut self,
        tgid: u32,
        uid: u32,
        born: Option<&(u64, Started)>,
        out: &mut Vec<Output>,
    ) -> bool {
        if let Some(process) = self.processes.get(&tgid) {
            return process.key.is_some();
        }
        if self.processes.len() >= self.config.processes_max as usize {
            self.counters.processes_refused += 1;
            return false;
        }
        let mut unit = born.map_or(NO_UNIT, |(_, started)| &started.unit).to_owned();
        let mut volume = None;
        let (key, run, comm) = match self.lookup.identity(tgid, born.map(|(_, started)| started)) {
            Identity::Program(found) => {
                unit.clone_from(&found.program.unit);
                let key = found.program.key();
                let admitted =
                    self.config.watches(&found.program) && self.admit_program(&key, &found.program);
                let began_ns = found.start_ticks.saturating_mul(USER_TICK_NS);
                volume = (began_ns >= self.opened_ns || born.is_some()).then(Volume::default);
                (admitted.then_some(key), run_of(tgid, found.start_ticks), found.comm)
            }
            Identity::Kernel => (None, 0, String::new()),
            Identity::Gone => {
                self.counters.unidentified += 1;
                (None, 0, String::new())
            }
        };
        let followed = key.is_some();
        let program = key.as_ref().and_then(|key| self.programs.get(key));
        out.extend(program.map(|program| Output::Follow(how(program, tgid))));
        let born_ns = born.map_or(0, |(born_ns, _)| *born_ns);
        let process = Process { key, run, comm, uid, unit, born_ns, volume, ..Process::default() };
        self.processes.insert(tgid, process);
        followed
    }

    pub(super) fn admit_program(&mut self, key: &str, id: &ProgramId) -> bool {
        if self.programs.contains_key(key) {
            return true;
        }
        if self.programs.len() >= self.config.programs_max as usize && !self.forget_a_program() {
            self.counters.programs_refused += 1;
            return false;
        }
        self.admitted += 1;
        self.programs.insert(
            key.to_owned(),
            Program {
                id: id.clone(),
                baseline: None,
                windows: 0,
                loose: BTreeSet::new(),
                admitted: self.admitted,
            },
        );
        true
    }

    /// Makes room in the table of programs: of those without a baseline that no process runs now, the one with the fewest
    /// windows goes, and of several the one that came first. So nobody fills the table with programs that run once.
    fn forget_a_program(&mut self) -> bool {
        let running: BTreeSet<&str> =
            self.processes.values().filter_map(|process| process.key.as_deref()).collect();
        let idle = self.programs.iter().filter(|(key, program)| {
            program.baseline.is_none() && !running.contains(key.as_str()) && !self.training.contains_key(*key)
        });
        let least = idle.min_by_key(|(_, program)| (program.windows, program.admitted));
        let Some(key) = least.map(|(key, _)| key.clone()) else { return false };
        self.programs.remove(&key);
        self.counters.programs_forgotten += 1;
        true
    }
}

/// Names one run of a process: ids are used again, together with the start they are not.
fn run_of(tgid: u32, start: u64) -> u64 {
    start.rotate_left(20) ^ u64::from(tgid)
}
