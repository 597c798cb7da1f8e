//! The one hook on every system call: counts it, then hands over to the layer that wants its arguments.

use core::{hint, ptr};

use agent_ebpf::{
    bigram,
    gram::{self, Before},
    records::{ACTIVE_BUCKET_NS, ACTIVE_BUCKETS, BIGRAMS, Class, SYSCALL_SLOTS, Thread, Window, counter},
};
use aya_ebpf::{
    helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};

use crate::{
    call::{CALLS_BTF, CALLS_RAW, Call, slot},
    sequence,
    shared::{Caller, OpenEpoch, add_n, count, count_at, open_epoch},
};

#[btf_tracepoint(function = "sys_enter")]
fn sys_enter_btf(ctx: BtfTracePointContext) -> i32 {
    if let Some(call) = Call::new(ctx.arg(0), ctx.arg(1), true)
        && enter(call.caller, call.nr)
    {
        // SAFETY: the array holds programs for this very hook, and nothing here needs dropping.
        unsafe { CALLS_BTF.tail_call(&ctx, call.nr as u32) };
    }
    0
}

#[raw_tracepoint(tracepoint = "sys_enter")]
fn sys_enter_raw(ctx: RawTracePointContext) -> i32 {
    if let Some(call) = Call::new(ctx.arg(0), ctx.arg(1), false)
        && enter(call.caller, call.nr)
    {
        // SAFETY: the array holds programs for this very hook, and nothing here needs dropping.
        unsafe { CALLS_RAW.tail_call(&ctx, call.nr as u32) };
    }
    0
}

/// Counts one call; false when no layer may see it.
#[inline(always)]
fn enter(caller: Caller, nr: u64) -> bool {
    let Some(epoch) = open_epoch() else { return false };
    let Some(thread) = caller.thread() else { return false };
    match caller.window_of(thread, epoch.number) {
        Some(window) => tally(caller, thread, window, slot(nr), epoch),
        None => count(Class::Syscall, counter::DROPPED),
    }
    true
}

#[inline(always)]
fn tally(caller: Caller, thread: *mut Thread, window: *mut Window, slot: u16, epoch: OpenEpoch) {
    // The exact clock costs a call up to 70 ns, so it is asked once per tick. Never zero, as a new window's is.
    // SAFETY: the helper takes no arguments.
    let tick = unsafe { bpf_jiffies64() } as u32 | 1 << 31;
    // SAFETY: `window` points into a map value that stays valid while the program runs. Times and activity bits are
    // written without a lock: threads that race here write nearly the same time and the same bit.
    unsafe {
        if (*window).tick != tick {
            (*window).tick = tick;
            let now_ns = bpf_ktime_get_boot_ns();
            (*window).last_ns = now_ns;
            if (*window).first_ns == 0 {
                (*window).first_ns = now_ns;
            }
            let bucket = now_ns.saturating_sub(epoch.start_ns) / ACTIVE_BUCKET_NS;
            let bucket = if bucket < ACTIVE_BUCKETS { bucket } else { ACTIVE_BUCKETS - 1 };
            let word = (&raw mut (*window).active).cast::<u64>().add((bucket as usize >> 6) & 7);
            *word |= 1_u64 << (bucket & 63);
        }
    }
    // SAFETY: `thread` points to an element of an array, and the cell is read and written as one aligned word.
    let gram = match gram::before(unsafe { ptr::read_volatile(&raw const (*thread).cell) }, caller.tid) {
        Before::Gram(gram) => gram,
        Before::None => gram::EMPTY,
        Before::Collision => {
            count_at(counter::COLLISIONS);
            gram::EMPTY
        }
    };
    let rolled = gram::roll(gram, slot);
    // SAFETY: as for the read.
    unsafe { ptr::write_volatile(&raw mut (*thread).cell, gram::cell(caller.tid, rolled)) };
    let followed = sequence::followed(caller, window, epoch);
    if !sequence::is_counted(window, followed, rolled)
        && !sequence::is_counted_anew(caller, window, followed, rolled)
    {
        // SAFETY: `window` points into a map value that stays valid while the program runs.
        unsafe { count_call(window, gram::latest(gram), slot, 1) };
        sequence::count(window, followed, epoch, rolled);
    }
}

/// Counts a call so often, and the pair that it makes with the one before it.
///
/// # Safety
/// `window` points into a map value.
#[inline(always)]
pub(crate) unsafe fn count_call(window: *mut Window, previous: Option<u16>, slot: u16, n: u32) {
    // Its own value, checked right before it is used: older verifiers forget what they know of one kept on the stack.
    let index = hint::black_box(slot as usize);
    if index >= SYSCALL_SLOTS {
        // SAFETY: by this function's contract.
        return add_n(unsafe { &raw mut (*window).unmapped }, n);
    }
    // SAFETY: by this function's contract, and `index` was checked.
    add_n(unsafe { (&raw mut (*window).calls).cast::<u32>().add(index) }, n);
    if let Some(previous) = previous {
        // The compiler knows the remainder's range and would drop both checks; the verifier does not, and 5.10 wants
        // the mask as well.
        let bucket = hint::black_box(bigram::bucket(previous, slot)) & 63;
        if bucket < BIGRAMS {
            // SAFETY: by this function's contract, and `bucket` was checked.
            add_n(unsafe { (&raw mut (*window).bigrams).cast::<u32>().add(bucket) }, n);
        }
    }
}
