//! What one process called in one epoch, as the kernel side counts it and user space reads it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::counters::ACTS;
use crate::records::{BIGRAMS, Follow, KIND_BITS, STRANGE, SYSCALL_SLOTS, USUAL, VOLUME_UNKNOWN};

/// Identifies a window entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct WindowKey {
    /// Process.
    pub tgid: u32,
    /// Epoch.
    pub epoch: u32,
}

impl WindowKey {
    /// Of a place that holds no window. No epoch has the number zero.
    pub const NOBODY: Self = Self { tgid: 0, epoch: 0 };

    /// Under which an empty place waits for the next drain.
    #[inline(always)]
    #[must_use]
    pub const fn stranded(place: u32) -> Self {
        Self { tgid: place, epoch: 0 }
    }
}

/// What is known of a thread between two calls. Threads whose ids differ by a multiple of [`crate::records::THREAD_CELLS`] share it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Thread {
    /// Its last calls, and whose they are; see [`crate::gram`].
    pub cell: u64,
    /// Where its process's window was last. A hint: the window there says whose it is.
    pub place: u32,
    /// Zero.
    pub _pad: u32,
}

/// What one process called in one epoch.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Window {
    /// Whose it is.
    pub key: WindowKey,
    /// First call, `CLOCK_BOOTTIME` nanoseconds.
    pub first_ns: u64,
    /// Last call, but for what came within the same tick of the kernel's timer, 1 to 10 ms.
    pub last_ns: u64,
    /// That tick.
    pub tick: u32,
    /// [`crate::records::Epoch::assigned`] when `table` and `learner` were last looked up.
    pub checked: u32,
    /// Table that the grams of this window are looked up in, 0 for none.
    pub table: u16,
    /// Id under which the grams of this window are counted, 0 for none.
    pub learner: u16,
    /// Grams looked up in the table's map; those of `usual` are counted there.
    pub grams: u32,
    /// Of these, not in the table.
    pub misses: u32,
    /// Whose the grams of `usual` are.
    pub usual_of: Follow,
    /// Sum of what the table holds for the grams looked up, [`crate::records::GRAM_MISS`] for each miss.
    pub surprisal: u64,
    /// The same three of kinds of grams: each counts once, however often it came.
    pub kinds: u32,
    /// Of these, not in the table.
    pub kinds_missed: u32,
    /// Their sum.
    pub kinds_surprisal: u64,
    /// One bit for each kind that came; see [`crate::gram::kind_bit`]. Another kind of the same bit is not counted.
    pub kinds_met: [u64; KIND_BITS / 64],
    /// Grams that were found before, each with what the table holds for it; see [`crate::gram::usual`].
    pub usual: [u64; USUAL],
    /// How often each came since, or at all where nothing had to be looked up. These calls are counted nowhere else.
    pub usual_counts: [u32; USUAL],
    /// One bit per [`crate::records::ACTIVE_BUCKET_NS`] since the epoch's start.
    pub active: [u64; 8],
    /// Bytes sent over IPv4 and IPv6.
    pub bytes_sent: u64,
    /// Bytes received over IPv4 and IPv6.
    pub bytes_recv: u64,
    /// One bit per `io_uring` operation submitted; operations above 63 share the last bit.
    pub uring_ops: u64,
    /// Bytes that calls like `read` and `write` moved since the process began, of a process that left; [`VOLUME_UNKNOWN`]
    /// where the kernel does not count them.
    pub volume: [u64; 2],
    /// One bit per capability that was asked for and had, as capability.h numbers them.
    pub capabilities: u64,
    /// Operations submitted to `io_uring`.
    pub uring: u32,
    /// Records of rare acts, for their caps; see [`crate::records::Class::act`].
    pub n_acts: [u32; ACTS],
    /// Calls per schema slot, but for those that `usual_counts` has; so are the next two.
    pub calls: [u32; SYSCALL_SLOTS],
    /// Calls without a slot.
    pub unmapped: u32,
    /// Pairs of calls per bucket.
    pub bigrams: [u32; BIGRAMS],
    /// Ordinary opens, for their cap.
    pub n_bulk: u32,
    /// Connections and sensitive opens, for their cap.
    pub n_urgent: u32,
    /// The first grams that were not in the table.
    pub strange: [u64; STRANGE],
}

impl Window {
    /// A window in which nothing was counted yet.
    pub const EMPTY: Self = Self {
        key: WindowKey::NOBODY,
        first_ns: 0,
        last_ns: 0,
        tick: 0,
        checked: 0,
        table: 0,
        learner: 0,
        grams: 0,
        misses: 0,
        usual_of: Follow { table: 0, learner: 0 },
        surprisal: 0,
        kinds: 0,
        kinds_missed: 0,
        kinds_surprisal: 0,
        kinds_met: [0; KIND_BITS / 64],
        usual: [0; USUAL],
        usual_counts: [0; USUAL],
        active: [0; 8],
        bytes_sent: 0,
        bytes_recv: 0,
        uring_ops: 0,
        volume: [VOLUME_UNKNOWN; 2],
        capabilities: 0,
        uring: 0,
        n_acts: [0; ACTS],
        calls: [0; SYSCALL_SLOTS],
        unmapped: 0,
        bigrams: [0; BIGRAMS],
        n_bulk: 0,
        n_urgent: 0,
        strange: [0; STRANGE],
    };
}

const _: () = assert!(USUAL.is_power_of_two() && KIND_BITS.is_power_of_two());
const _: () = assert!(size_of::<Window>() == 2312);
const _: () = assert!(size_of::<Thread>() == 16);
