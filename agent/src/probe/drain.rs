//! Closes an epoch and takes its windows out of the kernel.
//!
//! Nothing is lost or counted twice: after the flip, a barrier waits for every program that may still count in the
//! closed epoch. Then nobody writes those entries, and each is read once and removed. An entry that a run leaves
//! behind is found by the next one, because a run takes every epoch before the open one.

use std::{io, thread, time::Duration};

use agent_ebpf::records::{Epoch, Window, WindowKey};
use aya::maps::{Array, MapData, MapError};
use models::event::SyscallWindow;
use zerocopy::IntoBytes;

use super::batch::Batch;
use super::decode;
use crate::clock::boot_ns;

/// The maps that a drain needs.
pub(super) struct Drain {
    epoch: Array<MapData, [u8; size_of::<Epoch>()]>,
    windows: Batch<WindowKey, Window>,
    state: Epoch,
}

impl Drain {
    /// Opens the first epoch.
    pub(super) fn new(
        epoch: Array<MapData, [u8; size_of::<Epoch>()]>,
        windows: Batch<WindowKey, Window>,
    ) -> Result<Self, MapError> {
        let state = Epoch { current: 0, modes: 0, assigned: 1, _pad: 0, start_ns: [0; 2] };
        let mut drain = Self { epoch, windows, state };
        drain.flip()?;
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
    pub(super) fn collect(&mut self) -> io::Result<Vec<SyscallWindow>> {
        barrier();
        let current = self.state.current;
        let (mut keys, mut taken) = (Vec::new(), Vec::new());
        self.windows.read(|key, window| {
            if key.epoch != current {
                keys.push(*key);
                let window = decode::window(*key, window);
                if window.total() > 0 {
                    taken.push(window);
                }
            }
        })?;
        self.windows.remove(&keys)?;
        Ok(taken)
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
