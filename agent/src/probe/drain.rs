//! Closes an epoch and takes its windows out of the kernel.
//!
//! Nothing is lost or counted twice: after the flip, a barrier waits for every program that may still count in the
//! closed epoch. Then nobody writes those entries, and each is read once and removed. An entry that a run leaves
//! behind is found by the next one, because a run takes every epoch before the open one.

use std::{thread, time::Duration};

use agent_ebpf::records::{Epoch, Window, WindowKey, names};
use aya::Ebpf;
use aya::maps::{Array, MapData, MapError, Stack};
use models::chain::chain;
use models::event::SyscallWindow;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::batch::Batch;
use super::{ProbeError, decode, in_map, take};
use crate::clock::boot_ns;

/// The maps that a drain needs.
pub(super) struct Drain {
    epoch: Array<MapData, [u8; size_of::<Epoch>()]>,
    windows: Array<MapData, [u8; size_of::<Window>()]>,
    places: Batch<WindowKey, u32>,
    free: Stack<MapData, u32>,
    /// Places without a window that the kernel does not know of yet.
    emptied: Vec<u32>,
    state: Epoch,
}

impl Drain {
    /// Gives the kernel every place for a window, and opens the first epoch.
    pub(super) fn new(programs: &mut Ebpf) -> Result<Self, ProbeError> {
        let epoch = Array::try_from(take(programs, names::EPOCH)?).map_err(in_map(names::EPOCH))?;
        let windows = Array::try_from(take(programs, names::WINDOWS)?).map_err(in_map(names::WINDOWS))?;
        let places =
            programs.map(names::PLACES).and_then(Batch::of).ok_or(ProbeError::MissingMap(names::PLACES))?;
        let free = Stack::try_from(take(programs, names::FREE)?).map_err(in_map(names::FREE))?;
        let emptied = (0..windows.len()).rev().collect();
        let state = Epoch { current: 0, modes: 0, assigned: 1, _pad: 0, start_ns: [0; 2] };
        let mut drain = Self { epoch, windows, places, free, emptied, state };
        drain.give_back().map_err(in_map(names::FREE))?;
        drain.flip().map_err(in_map(names::EPOCH))?;
        Ok(drain)
    }

    /// Makes the programs look up again how each process is followed.
    pub(super) fn reassign(&mut self) -> Result<(), MapError> {
        self.state.assigned = self.state.assigned.wrapping_add(1).max(1);
        self.write()
    }

    /// Tells the programs how to count from now on.
    pub(super) fn set_modes(&mut self, modes: u32) -> Result<(), MapError> {
        self.state.modes = modes;
        self.write()
    }

    /// The open epoch and its start.
    pub(super) fn open(&self) -> (u32, u64) {
        (self.state.current, self.state.start_ns[(self.state.current & 1) as usize])
    }

    /// Opens the next epoch; returns the closed one.
    pub(super) fn flip(&mut self) -> Result<u32, MapError> {
        let closed = self.state.current;
        // Zero means that no epoch was opened yet, so it is left out when the counter wraps.
        let next = closed.wrapping_add(1).max(1);
        self.state.start_ns[(next & 1) as usize] = boot_ns();
        self.write()?;
        self.state.current = next;
        self.write()?;
        Ok(closed)
    }

    /// Waits until no program counts in a closed epoch any more, then takes every closed window.
    pub(super) fn collect(&mut self) -> Result<Vec<SyscallWindow>, ProbeError> {
        let batch = |source| ProbeError::Batch { name: names::PLACES, source };
        barrier();
        let current = self.state.current;
        let (mut keys, mut places) = (Vec::new(), Vec::new());
        self.places
            .read(|key, place| {
                if key.epoch != current {
                    keys.push(*key);
                    places.push(*place);
                }
            })
            .map_err(batch)?;
        let mut taken = Vec::with_capacity(places.len());
        for (key, place) in keys.iter().zip(&places) {
            let bytes = self.windows.get(place, 0).map_err(in_map(names::WINDOWS))?;
            let window = Window::read_from_bytes(&bytes).expect("the map's values are windows");
            // Another one's key is on a place that is empty: its window was sent when the process left.
            if window.key != *key || key.epoch == WindowKey::NOBODY.epoch {
                continue;
            }
            let window = decode::window(&window);
            if window.total() > 0 {
                taken.push(window);
            }
        }
        self.places.remove(&keys).map_err(batch)?;
        self.emptied.append(&mut places);
        // Since Linux 6.15 the stack's lock gives up when it takes too long, as on a machine whose CPUs are taken away from it.
        // The windows have been taken all the same.
        if let Err(error) = self.give_back() {
            log::debug!("{} places wait for the next drain: {}", self.emptied.len(), chain(&error));
        }
        Ok(taken)
    }

    /// Lets the kernel use again what is empty. What it does not take is kept for the next time.
    fn give_back(&mut self) -> Result<(), MapError> {
        while let Some(place) = self.emptied.last() {
            self.free.push(place, 0)?;
            self.emptied.pop();
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), MapError> {
        let mut bytes = [0; size_of::<Epoch>()];
        bytes.copy_from_slice(self.state.as_bytes());
        self.epoch.set(0, bytes, 0)
    }
}

/// Returns when every program that was running has ended: tracing programs run inside a read-side critical section,
/// and a global barrier waits for all of them.
fn barrier() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes two integers and touches no memory of ours.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) };
    if done != 0 {
        // Not offered (tickless CPUs, or filtered). A program of ours runs for microseconds.
        thread::sleep(Duration::from_millis(20));
    }
}
