//! The order of calls: each gram is looked up in its program's table, or counted while the program is being learned.

use core::{hint, ptr};

use agent_ebpf::{
    gram,
    records::{Follow, GRAM_MISS, KIND_BITS, STRANGE, USUAL, Window, counter},
};

use crate::shared::{Caller, FOLLOWED, GRAMS, LEARNED, OpenEpoch, add, add_n, add_u64, count_at};
use crate::syscall;

const NOT_FOLLOWED: Follow = Follow { table: 0, learner: 0 };

/// How the calls of a window's process are followed.
#[inline(always)]
pub(crate) fn followed(caller: Caller, window: *mut Window, epoch: OpenEpoch) -> Follow {
    // SAFETY: `window` points into a map value that stays valid while the program runs. Threads that race here write
    // the same values.
    unsafe {
        if (*window).checked != epoch.assigned {
            (*window).checked = epoch.assigned;
            set(window, FOLLOWED.get(caller.tgid).copied().unwrap_or_default());
        }
        Follow { table: (*window).table, learner: (*window).learner }
    }
}

/// Looks up and counts the latest gram of a thread, as its process is followed.
#[inline(always)]
pub(crate) fn count(window: *mut Window, followed: Follow, epoch: OpenEpoch, gram: u64) {
    if followed == NOT_FOLLOWED {
        return;
    }
    let steps = if followed.table == 0 { Some(0) } else { look_up(window, followed.table, gram) };
    if followed.learner != 0 {
        learn(gram::learner_key(followed.learner, epoch.number, gram), 1);
    }
    if let Some(steps) = steps {
        keep(window, followed, gram, steps);
    }
}

/// Counts a call by its gram alone where the window has found that before; false where it has not. The gram tells the call
/// and the one before it, so nothing else is counted then: each count is a locked instruction, and the hash of a map takes longer
/// than all other steps together.
#[inline(always)]
pub(crate) fn is_counted(window: *mut Window, followed: Follow, gram: u64) -> bool {
    let at = gram::usual_place(gram);
    // SAFETY: as for `followed`; a place is below the end, and so is the one beside it.
    unsafe {
        if (*window).usual_of != followed {
            return false;
        }
        let usual = (&raw const (*window).usual).cast::<u64>();
        let at = if gram::is_usual(usual.add(at).read_volatile(), gram) {
            at
        } else if gram::is_usual(usual.add(at ^ 1).read_volatile(), gram) {
            at ^ 1
        } else {
            return false;
        };
        add((&raw mut (*window).usual_counts).cast::<u32>().add(at));
    }
    true
}

/// Counts a call that is only learned by its gram alone where the window has room for that; false where it has not, and for all
/// threads but the process's first one, so that no two of them take one place. The map of what is learned is spared an entry for
/// each gram of a program that ends soon.
#[inline(always)]
pub(crate) fn is_counted_anew(caller: Caller, window: *mut Window, followed: Follow, gram: u64) -> bool {
    caller.tid == caller.tgid
        && followed.learner != 0
        && followed.table == 0
        && match free_place(window, followed, gram) {
            // SAFETY: as for `is_counted`. Where another thread keeps its gram in this place at this very instant, one call
            // counts for that one instead.
            Some(at) => unsafe {
                (&raw mut (*window).usual).cast::<u64>().add(at).write_volatile(gram::usual(gram, 0));
                add((&raw mut (*window).usual_counts).cast::<u32>().add(at));
                true
            },
            None => false,
        }
}

/// Keeps a gram where there is room. It was counted otherwise this time, so that two threads of a process that write to one
/// place at the same instant lose none: one of the two grams is not found next time.
#[inline(always)]
fn keep(window: *mut Window, followed: Follow, gram: u64, steps: u32) {
    if let Some(at) = free_place(window, followed, gram) {
        // SAFETY: as for `is_counted`.
        unsafe { (&raw mut (*window).usual).cast::<u64>().add(at).write_volatile(gram::usual(gram, steps)) };
    }
}

/// Where a window has room for a gram.
#[inline(always)]
fn free_place(window: *mut Window, followed: Follow, gram: u64) -> Option<usize> {
    let at = gram::usual_place(gram);
    // SAFETY: as for `is_counted`.
    unsafe {
        if (*window).usual_of == NOT_FOLLOWED {
            (*window).usual_of = followed;
        }
        let usual = (&raw const (*window).usual).cast::<u64>();
        if (*window).usual_of != followed {
            None
        } else if usual.add(at).read_volatile() == 0 {
            Some(at)
        } else if usual.add(at ^ 1).read_volatile() == 0 {
            Some(at ^ 1)
        } else {
            None
        }
    }
}

/// From here on the process runs another program: what the window counted of the old one goes where the rest of it is.
///
/// # Safety
/// `window` points into a map value.
#[inline(always)]
pub(crate) unsafe fn forget(window: *mut Window, epoch: OpenEpoch) {
    // SAFETY: by this function's contract; the places are below the end. Whoever starts a program has no other thread.
    unsafe {
        let learner = (*window).usual_of.learner;
        let mut at = 0;
        while at < USUAL {
            let usual = (&raw mut (*window).usual).cast::<u64>().add(at);
            let count = (&raw mut (*window).usual_counts).cast::<u32>().add(at);
            if *count != 0 {
                let gram = gram::gram_of(*usual);
                syscall::count_call(window, gram::before_latest(gram), gram::symbol(gram), *count);
                if learner != 0 {
                    learn(gram::learner_key(learner, epoch.number, gram), *count);
                }
            }
            (*usual, *count) = (0, 0);
            at += 1;
        }
        (*window).usual_of = NOT_FOLLOWED;
        set(window, NOT_FOLLOWED);
    }
}

/// From here on the window's grams are of another program, or none.
///
/// # Safety
/// `window` points into a map value.
#[inline(always)]
unsafe fn set(window: *mut Window, followed: Follow) {
    // SAFETY: the caller's promise.
    unsafe {
        // The sums of one window are all of one table.
        if (*window).table != followed.table {
            (*window).table = followed.table;
            (*window).grams = 0;
            (*window).misses = 0;
            // The compiler would call a function for so many plain writes, which arm64 before Linux 6.0 allows no program that
            // makes a tail call.
            (&raw mut (*window).surprisal).write_volatile(0);
            (&raw mut (*window).kinds).write_volatile(0);
            (&raw mut (*window).kinds_missed).write_volatile(0);
            (&raw mut (*window).kinds_surprisal).write_volatile(0);
            let mut at = 0;
            while at < KIND_BITS / 64 {
                (&raw mut (*window).kinds_met).cast::<u64>().add(at).write_volatile(0);
                at += 1;
            }
        }
        (*window).learner = followed.learner;
    }
}

/// What the table holds for a gram; `None` when it is not there.
#[inline(always)]
fn look_up(window: *mut Window, table: u16, gram: u64) -> Option<u32> {
    // SAFETY: the value is read at once, and user space writes it whole.
    let steps = unsafe { GRAMS.get(gram::table_key(table, gram)) }.copied();
    if steps.is_none() {
        // SAFETY: as for `followed`; the place is masked. Threads that race here lose one example.
        unsafe {
            let misses = ptr::read_volatile(&raw const (*window).misses);
            if misses < STRANGE as u32 {
                // The compiler must not drop the mask, which older verifiers want to see.
                let place = hint::black_box(misses as usize) & (STRANGE - 1);
                (&raw mut (*window).strange).cast::<u64>().add(place).write(gram);
            }
            add(&raw mut (*window).misses);
        }
    }
    let surprisal = steps.map_or(GRAM_MISS, u64::from);
    // SAFETY: as for `followed`.
    unsafe {
        add(&raw mut (*window).grams);
        add_u64(&raw mut (*window).surprisal, surprisal);
        if is_new_kind(window, gram) {
            add(&raw mut (*window).kinds);
            add_u64(&raw mut (*window).kinds_surprisal, surprisal);
            if steps.is_none() {
                add(&raw mut (*window).kinds_missed);
            }
        }
    }
    steps
}

/// Whether this kind of gram came for the first time, as far as its bit tells. What a window finds without looking it up
/// came before.
///
/// # Safety
/// `window` points into a map value.
#[inline(always)]
unsafe fn is_new_kind(window: *mut Window, gram: u64) -> bool {
    // The compiler must not drop the mask, which older verifiers want to see.
    let bit = hint::black_box(gram::kind_bit(gram)) & (KIND_BITS - 1);
    let mask = 1_u64 << (bit & 63);
    // SAFETY: by this function's contract; the place is masked. Threads that race here count one kind twice.
    unsafe {
        let word = (&raw mut (*window).kinds_met).cast::<u64>().add(bit >> 6);
        let met = word.read_volatile();
        word.write_volatile(met | mask);
        met & mask == 0
    }
}

/// Counts a gram of a process that is learned.
#[inline(always)]
fn learn(key: u64, n: u32) {
    if let Some(known) = LEARNED.get_ptr_mut(key) {
        return add_n(known, n);
    }
    // 1 is BPF_NOEXIST: another CPU may have been first.
    if LEARNED.insert(key, n, 1).is_err() {
        match LEARNED.get_ptr_mut(key) {
            Some(known) => add_n(known, n),
            None => count_at(counter::GRAMS_REFUSED),
        }
    }
}
