//! The kernel's tables of call sequences: who is looked up in which, and what learning processes showed.
//!
//! A table belongs to one generation of one program's baseline and has an id of its own, so a window's sums are always
//! of one table. A process that is being learned has an id under which the kernel counts its grams, apart for odd and
//! even epochs, so that a closed epoch's counts are final.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;

use agent_ebpf::gram::{LEARNERS, TABLES, of_learner_key, table_key};
use agent_ebpf::records::{Follow, names};
use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use zerocopy::IntoBytes as _;

use super::batch::Batch;
use super::{ProbeError, in_map, take};

/// A table in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub u16);

/// Why a table is not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// No room for all of its entries; nothing of it stays.
    #[error("{wanted} entries do not fit: the map holds {max} and {used} are used; raise `grams_max`")]
    Full {
        /// Its entries.
        wanted: usize,
        /// What is there already.
        used: usize,
        /// What the map holds.
        max: usize,
    },
    /// Every id is used.
    #[error("{} tables are in the kernel already", TABLES - 1)]
    Ids,
    /// The map.
    #[error("filling the table")]
    Map(#[from] MapError),
}

/// Counts of an id come with the next drain, or with the one after when they were of the open epoch.
const DRAINS_AT_REST: u8 = 2;

/// Grams and how often one process showed them in one epoch.
pub(super) type Learned = Vec<(u64, u32)>;

pub(super) struct Sequences {
    grams: HashMap<MapData, u64, u32>,
    learned: Batch<u64, u32>,
    followed: HashMap<MapData, u32, [u8; size_of::<Follow>()]>,
    /// Grams of every table.
    tables: BTreeMap<u16, Vec<u64>>,
    grams_max: usize,
    learners: Learners,
    /// Counts of epochs that were still open when the map was read.
    early: BTreeMap<(u16, u32), Learned>,
}

/// Who is learned under which id.
struct Learners {
    processes: BTreeMap<u16, u32>,
    ids: BTreeMap<u32, u16>,
    /// Without a process: the kernel may still hold their counts for this many drains.
    resting: BTreeMap<u16, u8>,
    /// The one that was free for longest first.
    free: VecDeque<u16>,
    /// Processes that got none because all were in use.
    refused: u64,
}

impl Learners {
    fn new() -> Self {
        let (processes, ids, resting) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { processes, ids, resting, free: (1..LEARNERS).collect(), refused: 0 }
    }

    /// The id of a process, a new one when it has none; 0 when there is none left.
    fn of(&mut self, tgid: u32) -> u16 {
        if let Some(id) = self.ids.get(&tgid) {
            return *id;
        }
        let Some(id) = self.free.pop_front() else {
            self.refused += 1;
            return 0;
        };
        self.processes.insert(id, tgid);
        self.ids.insert(tgid, id);
        id
    }

    fn forget(&mut self, tgid: u32) {
        if let Some(id) = self.ids.remove(&tgid) {
            self.processes.remove(&id);
            self.resting.insert(id, DRAINS_AT_REST);
        }
    }

    /// The counts of one more drain have come.
    fn drained(&mut self) {
        let free = &mut self.free;
        self.resting.retain(|id, drains| {
            *drains -= 1;
            if *drains == 0 {
                free.push_back(*id);
            }
            *drains > 0
        });
    }
}

impl Sequences {
    pub(super) fn new(programs: &mut Ebpf, grams_max: u32) -> Result<Self, ProbeError> {
        let grams = HashMap::try_from(take(programs, names::GRAMS)?).map_err(in_map(names::GRAMS))?;
        let learned =
            programs.map(names::LEARNED).and_then(Batch::of).ok_or(ProbeError::MissingMap(names::LEARNED))?;
        let followed =
            HashMap::try_from(take(programs, names::FOLLOWED)?).map_err(in_map(names::FOLLOWED))?;
        let (tables, learners, early) = (BTreeMap::new(), Learners::new(), BTreeMap::new());
        Ok(Self { grams, learned, followed, tables, grams_max: grams_max as usize, learners, early })
    }

    /// Puts a table into the kernel. Nobody is looked up in it before [`Sequences::follow`] says so.
    pub(super) fn load(&mut self, entries: &[(u64, u8)]) -> Result<TableId, TableError> {
        let used = self.tables.values().map(Vec::len).sum::<usize>();
        if used + entries.len() > self.grams_max {
            return Err(TableError::Full { wanted: entries.len(), used, max: self.grams_max });
        }
        let id = (1..TABLES).find(|id| !self.tables.contains_key(id)).ok_or(TableError::Ids)?;
        self.tables.insert(id, entries.iter().map(|(gram, _)| *gram).collect());
        for (gram, steps) in entries {
            if let Err(error) = self.grams.insert(table_key(id, *gram), u32::from(*steps), 0) {
                self.unload(TableId(id));
                return Err(error.into());
            }
        }
        Ok(TableId(id))
    }

    /// Removes a table. Windows that are open may still miss grams in it: drain before the id is used again.
    pub(super) fn unload(&mut self, id: TableId) {
        for gram in self.tables.remove(&id.0).unwrap_or_default() {
            // What was not inserted cannot be removed.
            let _ = self.grams.remove(&table_key(id.0, gram));
        }
    }

    /// What becomes of a process's grams from now on.
    pub(super) fn follow(&mut self, tgid: u32, table: Option<TableId>, learn: bool) -> Result<(), MapError> {
        let learner = if learn {
            self.learners.of(tgid)
        } else {
            self.learners.forget(tgid);
            0
        };
        let follow = Follow { table: table.map_or(0, |table| table.0), learner };
        if follow == Follow::default() {
            return self.remove(tgid);
        }
        let mut bytes = [0; size_of::<Follow>()];
        bytes.copy_from_slice(follow.as_bytes());
        self.followed.insert(tgid, bytes, 0)
    }

    /// The process has left, or runs another program.
    pub(super) fn unfollow(&mut self, tgid: u32) -> Result<(), MapError> {
        self.learners.forget(tgid);
        self.remove(tgid)
    }

    /// What learning processes showed in the closed epoch, which the one before `open` is, but for what their windows counted.
    pub(super) fn take_learned(&mut self, open: u32) -> std::io::Result<BTreeMap<u32, Learned>> {
        let mut found = std::mem::take(&mut self.early);
        self.learned.take(|key, count| {
            let (learner, parity, gram) = of_learner_key(*key);
            found.entry((learner, parity)).or_default().push((gram, *count));
        })?;
        self.learners.drained();
        let mut closed: BTreeMap<u32, Learned> = BTreeMap::new();
        for ((learner, parity), counts) in found {
            if parity == open & 1 {
                self.early.insert((learner, parity), counts);
            } else if let Some(tgid) = self.learners.processes.get(&learner) {
                closed.insert(*tgid, counts);
            }
        }
        Ok(closed)
    }

    /// Processes that got no learner because all were in use.
    pub(super) fn refused(&self) -> u64 {
        self.learners.refused
    }

    fn remove(&mut self, tgid: u32) -> Result<(), MapError> {
        match self.followed.remove(&tgid) {
            Err(MapError::SyscallError(failed)) if failed.io_error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_used_again_when_its_counts_have_come() {
        let mut learners = Learners::new();
        let all: Vec<u16> = (0..u32::from(LEARNERS) - 1).map(|tgid| learners.of(tgid)).collect();
        assert!(all.iter().all(|id| *id != 0));
        assert_eq!((learners.of(0), learners.of(9999), learners.refused), (all[0], 0, 1));
        learners.forget(5);
        learners.forget(9999);
        for _ in 0..DRAINS_AT_REST {
            assert_eq!(learners.of(9999), 0, "the kernel may hold its counts");
            learners.drained();
        }
        assert_eq!(learners.of(9999), all[5]);
        assert_eq!(learners.processes[&all[5]], 9999);
    }
}
