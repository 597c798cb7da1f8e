//! What happened in the kernel, decoded: the input of the window stage.

use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::schema::{BIGRAMS, SYSCALL_SLOTS};

/// The longest path an event carries, in bytes; longer ones keep their first bytes.
pub const PATH_MAX: usize = 256;

/// A path or file name, at most [`PATH_MAX`] bytes of UTF-8 (other bytes are replaced while decoding).
pub type PathText = heapless::String<PATH_MAX>;

/// The thread name that the kernel keeps, at most 16 bytes.
pub type Comm = heapless::String<16>;

/// One record from the kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `CLOCK_BOOTTIME` at the hook, in nanoseconds.
    pub boot_ns: u64,
    /// Process (thread group) id in the initial pid namespace.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Real user id of the caller.
    pub uid: u32,
    /// Thread name at the hook.
    pub comm: Comm,
    /// What it did.
    pub kind: EventKind,
}

/// What a process did.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// It replaced its program by the file at this path (as given to `execve`).
    Exec {
        /// The path as the kernel saw it.
        path: PathText,
    },
    /// It made a child process; threads are not reported.
    Fork {
        /// The child's process id.
        child: u32,
    },
    /// Its last thread group leader left.
    Exit,
    /// It asked to open a file. The call may have failed afterwards.
    Open {
        /// The path as given; relative ones are completed by the agent where `/proc` still allows it.
        path: PathText,
        /// `open(2)` flags.
        flags: u32,
        /// The kernel matched it against the sensitive prefixes.
        sensitive: bool,
    },
    /// It asked for a connection.
    Connect {
        /// The address given.
        addr: IpAddr,
        /// The port given, host order.
        port: u16,
    },
    /// It left while its window was open: what the kernel had counted so far.
    Flush(Box<SyscallWindow>),
}

/// One process's system calls in one epoch, as counted in the kernel, in schema slots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyscallWindow {
    /// Process (thread group) id.
    pub tgid: u32,
    /// The epoch in which this was counted.
    pub epoch: u32,
    /// First call, `CLOCK_BOOTTIME` nanoseconds.
    pub first_ns: u64,
    /// Last call, `CLOCK_BOOTTIME` nanoseconds.
    pub last_ns: u64,
    /// Calls per schema slot; see [`crate::syscalls`].
    pub calls: Vec<u32>,
    /// Calls whose number has no slot.
    pub unmapped: u32,
    /// Hashed pairs of consecutive calls of one thread.
    pub bigrams: Vec<u32>,
    /// One bit per 100 ms in which the process made a call, counted from the epoch's start.
    pub active: [u64; 8],
}

impl SyscallWindow {
    /// A window in which nothing was counted yet.
    #[must_use]
    pub fn empty(tgid: u32, epoch: u32) -> Self {
        Self {
            tgid,
            epoch,
            first_ns: 0,
            last_ns: 0,
            calls: vec![0; SYSCALL_SLOTS],
            unmapped: 0,
            bigrams: vec![0; BIGRAMS],
            active: [0; 8],
        }
    }

    /// All calls of the window, mapped or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.calls.iter().map(|&n| u64::from(n)).sum::<u64>() + u64::from(self.unmapped)
    }

    /// Adds what another part of the same process counted (a partial window flushed at exit or exec).
    pub fn merge(&mut self, other: &Self) {
        if self.total() == 0 {
            self.first_ns = other.first_ns;
        } else if other.total() > 0 {
            self.first_ns = self.first_ns.min(other.first_ns);
        }
        self.last_ns = self.last_ns.max(other.last_ns);
        for (mine, theirs) in self.calls.iter_mut().zip(&other.calls) {
            *mine = mine.saturating_add(*theirs);
        }
        for (mine, theirs) in self.bigrams.iter_mut().zip(&other.bigrams) {
            *mine = mine.saturating_add(*theirs);
        }
        for (mine, theirs) in self.active.iter_mut().zip(&other.active) {
            *mine |= theirs;
        }
        self.unmapped = self.unmapped.saturating_add(other.unmapped);
    }
}
