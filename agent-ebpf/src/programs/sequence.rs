//! The order of calls: each gram is looked up in its program's table, or counted while the program is being learned.

use core::{hint, ptr};

use agent_ebpf::{
    gram,
    records::{Follow, GRAM_MISS, STRANGE, Window, counter},
};

use crate::shared::{Caller, FOLLOWED, GRAMS, LEARNED, OpenEpoch, add, add_u64, count_at};

/// Looks up and counts the latest gram of a thread, as its process is followed.
#[inline(always)]
pub(crate) fn follow(caller: Caller, window: *mut Window, epoch: OpenEpoch, gram: u64) {
    // SAFETY: `window` points into a map value that stays valid while the program runs. Threads that race here write
    // the same values.
    let (table, learner) = unsafe {
        if (*window).checked != epoch.assigned {
            (*window).checked = epoch.assigned;
            let followed = FOLLOWED.get(caller.tgid).copied().unwrap_or_default();
            set(window, followed);
        }
        ((*window).table, (*window).learner)
    };
    if table != 0 {
        look_up(window, table, gram);
    }
    if learner != 0 {
        learn(gram::learner_key(learner, epoch.number, gram));
    }
}

/// From here on the window's grams are of another program, or none.
///
/// # Safety
/// `window` points into a map value.
#[inline(always)]
pub(crate) unsafe fn set(window: *mut Window, followed: Follow) {
    // SAFETY: the caller's promise.
    unsafe {
        // The sums of one window are all of one table.
        if (*window).table != followed.table {
            (*window).table = followed.table;
            (*window).grams = 0;
            (*window).misses = 0;
            (*window).surprisal = 0;
        }
        (*window).learner = followed.learner;
    }
}

#[inline(always)]
fn look_up(window: *mut Window, table: u16, gram: u64) {
    // SAFETY: the value is read at once, and user space writes it whole.
    let steps = match unsafe { GRAMS.get(gram::table_key(table, gram)) } {
        Some(steps) => u64::from(*steps),
        None => {
            // SAFETY: as for `follow`; the place is masked. Threads that race here lose one example.
            unsafe {
                let misses = ptr::read_volatile(&raw const (*window).misses);
                if misses < STRANGE as u32 {
                    // The compiler must not drop the mask, which older verifiers want to see.
                    let place = hint::black_box(misses as usize) & (STRANGE - 1);
                    (&raw mut (*window).strange).cast::<u64>().add(place).write(gram);
                }
                add(&raw mut (*window).misses);
            }
            GRAM_MISS
        }
    };
    // SAFETY: as for `follow`.
    unsafe {
        add(&raw mut (*window).grams);
        add_u64(&raw mut (*window).surprisal, steps);
    }
}

#[inline(always)]
fn learn(key: u64) {
    if let Some(known) = LEARNED.get_ptr_mut(key) {
        return add(known);
    }
    // 1 is BPF_NOEXIST: another CPU may have been first.
    if LEARNED.insert(key, 1, 1).is_err() {
        match LEARNED.get_ptr_mut(key) {
            Some(known) => add(known),
            None => count_at(counter::GRAMS_REFUSED),
        }
    }
}
