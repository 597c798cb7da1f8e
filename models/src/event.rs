//! What happened in the kernel, decoded: the input of the window stage.

use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::schema::{BIGRAMS, SYSCALL_SLOTS};
use crate::sequence::{GramWindow, summed};
use crate::syscalls;

/// The longest path an event carries, in bytes; longer ones keep their first bytes.
pub const PATH_MAX: usize = 256;

/// A path or file name, at most [`PATH_MAX`] bytes of UTF-8 (other bytes are replaced while decoding).
pub type PathText = heapless::String<PATH_MAX>;

/// A command line, at most its first 256 bytes.
pub type Arguments = heapless::String<256>;

/// The last two parts of a control group's path, each at most its first 95 bytes.
pub type GroupText = heapless::String<192>;

/// The thread name that the kernel keeps, at most 16 bytes.
pub type Comm = heapless::String<16>;

/// What fits of a text; the rest is left out.
#[must_use]
pub fn clipped<const N: usize>(text: &str) -> heapless::String<N> {
    let mut out = heapless::String::new();
    let _ = text.chars().try_for_each(|c| out.push(c));
    out
}

/// One record from the kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "events are many and live for one call: boxing each would cost more"
)]
pub enum EventKind {
    /// It replaced its program by the file at this path (as given to `execve`).
    Exec {
        /// The path as the kernel saw it.
        path: PathText,
        /// The command line; a NUL ends each argument, the last may be cut. Empty where the kernel could not tell.
        arguments: Arguments,
        /// The program's file has no name: it lies in memory only, or was deleted.
        fileless: bool,
        /// Its control group of version 2 and the one above, such as `system.slice/gw.service`. Empty where the kernel could
        /// not tell, and in the root.
        group: GroupText,
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
    /// It took hold of another process, or wrote into its memory.
    Inject {
        /// By which call; see [`call_name`].
        call: u16,
        /// The other process.
        victim: u32,
    },
    /// It made or entered a namespace.
    Namespace {
        /// By which call; see [`call_name`].
        call: u16,
        /// `CLONE_NEW*` bits; zero when the call did not tell.
        flags: u64,
    },
    /// It mounted something.
    Mount {
        /// By which call; see [`call_name`].
        call: u16,
        /// What was mounted, as given.
        source: PathText,
        /// Where, as given.
        target: PathText,
    },
    /// It asked for another root directory.
    ChangeRoot {
        /// By which call; see [`call_name`].
        call: u16,
        /// The new root, as given.
        path: PathText,
    },
    /// It opened a control group's release agent for writing.
    ReleaseAgent {
        /// The path as given.
        path: PathText,
    },
    /// It removed, emptied, renamed or redated a file in a watched directory.
    Tamper {
        /// What it did.
        how: Tampering,
        /// The file.
        path: PathText,
    },
    /// It sent a message to port 53.
    Dns {
        /// To whom.
        addr: IpAddr,
        /// Bytes of the whole message.
        bytes: u32,
        /// The question in it; `None` when it holds none.
        question: Option<DnsQuestion>,
    },
    /// It asked for user id 0 without having it, or to have a file run as its owner.
    Privilege {
        /// By which call; see [`call_name`].
        call: u16,
    },
    /// It put code into the kernel.
    KernelLoad {
        /// By which call; see [`call_name`].
        call: u16,
    },
    /// It left while its window was open: what the kernel had counted so far.
    Flush(Box<SyscallWindow>),
}

/// What happened to a file that should keep traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tampering {
    /// It was removed.
    Removed,
    /// It was emptied or cut.
    Emptied,
    /// It was moved away.
    Renamed,
    /// Its times were set.
    Redated,
    /// Another file took its name.
    Replaced,
}

/// The question of a DNS query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DnsQuestion {
    /// The last two labels of the name.
    pub domain: PathText,
    /// Bytes of the name.
    pub name_len: u16,
    /// Shannon entropy of the labels before the last two, bits per character.
    pub entropy: f32,
    /// It went over TCP.
    pub tcp: bool,
}

/// The name of a call in an event: a schema slot, or the number of one that is newer than the schema.
#[must_use]
pub fn call_name(call: u16) -> &'static str {
    let newer = syscalls::NEWER.iter().find(|(number, _, _)| *number == call);
    newer.map_or_else(|| syscalls::name(usize::from(call)), |(_, name, _)| name)
}

/// Bytes that a process moved by calls like `read` and `write`, from and to files, pipes and sockets, since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Volume {
    /// Into its memory.
    pub read: u64,
    /// Out of it.
    pub written: u64,
}

impl Volume {
    /// What was moved after an earlier moment.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            read: self.read.saturating_sub(before.read),
            written: self.written.saturating_sub(before.written),
        }
    }
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
    /// Bits that were set in earlier epochs of the same window.
    pub active_before: u32,
    /// Bytes sent over IPv4 and IPv6.
    pub bytes_sent: u64,
    /// Bytes received over IPv4 and IPv6.
    pub bytes_recv: u64,
    /// Operations submitted to `io_uring`.
    pub uring: u32,
    /// One bit per kind of operation submitted to `io_uring`; kinds above 63 share the last bit.
    pub uring_ops: u64,
    /// One bit per capability that was asked for and had, as capability.h numbers them.
    pub capabilities: u64,
    /// What the process had read and written by the end of this part; `None` where nobody can tell.
    pub volume: Option<Volume>,
    /// The order of its calls, when its program has a table in the kernel.
    pub grams: Option<GramWindow>,
    /// Its grams and how often each came, ascending, while it is being learned.
    pub learned: Vec<(u64, u32)>,
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
            active_before: 0,
            bytes_sent: 0,
            bytes_recv: 0,
            uring: 0,
            uring_ops: 0,
            capabilities: 0,
            volume: None,
            grams: None,
            learned: Vec::new(),
        }
    }

    /// Connections that the process waited for or took.
    #[must_use]
    pub fn accepts(&self) -> u32 {
        ["accept", "accept4"]
            .iter()
            .filter_map(|name| syscalls::slot(name))
            .fold(0, |sum, slot| self.calls[usize::from(slot)].saturating_add(sum))
    }

    /// Calls that move data from or to files, pipes and sockets in ways that [`Volume`] counts.
    #[must_use]
    pub fn moves(&self) -> u32 {
        const MOVES: [&str; 13] = [
            "read",
            "write",
            "pread64",
            "pwrite64",
            "readv",
            "writev",
            "preadv",
            "pwritev",
            "preadv2",
            "pwritev2",
            "sendfile",
            "splice",
            "copy_file_range",
        ];
        MOVES
            .iter()
            .filter_map(|name| syscalls::slot(name))
            .fold(0, |sum, slot| self.calls[usize::from(slot)].saturating_add(sum))
    }

    /// All calls of the window, mapped or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.calls.iter().map(|&n| u64::from(n)).sum::<u64>() + u64::from(self.unmapped)
    }

    /// How many slots of 100 ms had a call.
    #[must_use]
    pub fn active_slots(&self) -> u32 {
        self.active_before + bits(&self.active)
    }

    /// Adds what another part of the same process counted (a partial window flushed at exit or exec).
    pub fn merge(&mut self, other: &Self) {
        let was_empty = self.total() == 0;
        if was_empty {
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
        self.active_before += other.active_before;
        if self.epoch == other.epoch || was_empty {
            self.active.iter_mut().zip(&other.active).for_each(|(mine, theirs)| *mine |= theirs);
        } else {
            // The slots of another epoch are others.
            self.active_before += bits(&self.active);
            self.active = other.active;
        }
        self.epoch = other.epoch;
        self.unmapped = self.unmapped.saturating_add(other.unmapped);
        self.bytes_sent = self.bytes_sent.saturating_add(other.bytes_sent);
        self.bytes_recv = self.bytes_recv.saturating_add(other.bytes_recv);
        self.uring = self.uring.saturating_add(other.uring);
        self.uring_ops |= other.uring_ops;
        self.capabilities |= other.capabilities;
        // Totals only grow, so the larger one is the later one.
        self.volume = self.volume.max(other.volume);
        match (&mut self.grams, &other.grams) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (None, Some(theirs)) => self.grams = Some(theirs.clone()),
            (_, None) => {}
        }
        if !other.learned.is_empty() {
            self.learned.extend(&other.learned);
            self.learned = summed(std::mem::take(&mut self.learned));
        }
    }
}

fn bits(words: &[u64]) -> u32 {
    words.iter().map(|word| word.count_ones()).sum()
}
