//! What a pipeline knows in the middle of its work, for people, and so that a recording of it can begin there.
//!
//! Left out of a recording is what a window has of what came before it: windows that are open, the vectors before them, and how often
//! an alert was told lately.

use models::event::Volume;
use models::program::ProgramId;
use serde::{Deserialize, Serialize};

use super::{Baseline, Memory, Pipeline, Process};
use crate::processes::Lookup;

/// All of it; bounded by the tables that it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// Beside baselines and processes.
    memory: Memory,
    processes: Vec<Present>,
}

/// A process that is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Present {
    tgid: u32,
    /// `None` when it is not followed.
    program: Option<ProgramId>,
    run: u64,
    comm: String,
    uid: u32,
    unit: String,
    forked_by: Option<u32>,
    born_ns: u64,
    exited_ns: Option<u64>,
    volume: Option<Volume>,
}

/// A process that is followed.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a> {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: &'a str,
    /// User id when it was seen last.
    pub uid: u32,
    /// Which program it is.
    pub program: &'a ProgramId,
    /// `LEARNING`, `ACTIVE` or `STALE`.
    pub state: &'static str,
}

impl<L: Lookup> Pipeline<L> {
    /// What it knows beside its baselines.
    #[must_use]
    pub fn known(&self) -> Known {
        let present = |(tgid, process): (&u32, &Process)| Present {
            tgid: *tgid,
            program: process.key.as_ref().and_then(|key| Some(self.programs.get(key)?.id.clone())),
            run: process.run,
            comm: process.comm.clone(),
            uid: process.uid,
            unit: process.unit.clone(),
            forked_by: process.forked_by,
            born_ns: process.born_ns,
            exited_ns: process.exited_ns,
            volume: process.volume,
        };
        Known { memory: self.memory(), processes: self.processes.iter().map(present).collect() }
    }

    /// Goes on with what another knew; before any baseline is used.
    pub fn know(&mut self, known: Known) {
        self.remember(known.memory);
        let room = (self.config.processes_max as usize).saturating_sub(self.processes.len());
        for present in known.processes.into_iter().take(room) {
            let key = present.program.and_then(|id| {
                let key = id.key();
                self.admit_program(&key, &id).then_some(key)
            });
            let process = Process {
                key,
                run: present.run,
                comm: present.comm,
                uid: present.uid,
                unit: present.unit,
                forked_by: present.forked_by,
                born_ns: present.born_ns,
                exited_ns: present.exited_ns,
                volume: present.volume,
                ..Process::default()
            };
            self.processes.insert(present.tgid, process);
        }
    }

    /// Processes that are followed, at `unix_s`.
    pub fn running(&self, unix_s: u64) -> impl Iterator<Item = Running<'_>> {
        self.processes.iter().filter_map(move |(pid, process)| {
            let program = self.programs.get(process.key.as_ref()?)?;
            let state = super::state(program, unix_s);
            Some(Running { pid: *pid, comm: &process.comm, uid: process.uid, program: &program.id, state })
        })
    }

    /// Baselines that are used: program, generation, and the kernel's number of the table.
    pub fn in_use(&self) -> impl Iterator<Item = (&ProgramId, u64, Option<u16>)> {
        let baselines = self.programs.values().filter_map(|program| program.baseline.as_ref());
        baselines.map(|Baseline { manifest, table, .. }| (&manifest.program, manifest.generation, *table))
    }
}
