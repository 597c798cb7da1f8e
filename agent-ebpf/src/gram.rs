//! The last six calls of each thread, rolled on by one shift, and the keys under which their grams are looked up.
//!
//! A gram is six symbols of nine bits, the latest lowest; it packs exactly, so that two sequences never share one. A
//! cell holds a gram and, in the ten bits above it, whose it is: thread ids have at most 22 bits, of which the cell's
//! place holds 14. One word, so that no reader sees half of it.

use crate::records::{KIND_BITS, SYSCALL_SLOTS, THREAD_CELLS, USUAL};

/// Bits of a symbol.
pub const SYMBOL_BITS: u32 = 9;
/// Bits of a gram.
pub const GRAM_BITS: u32 = 6 * SYMBOL_BITS;
/// Stands for the calls before a thread's first.
pub const START: u16 = (1 << SYMBOL_BITS) - 1;
/// Stands for every call that has no slot.
pub const OTHER: u16 = START - 1;
/// The gram of a thread that has made no call yet.
pub const EMPTY: u64 = (1 << GRAM_BITS) - 1;
/// Table ids end here; zero means none.
pub const TABLES: u16 = 1 << (64 - GRAM_BITS);
/// Ids of processes whose grams are counted end here; zero means none. One bit of the key tells odd from even epochs.
pub const LEARNERS: u16 = TABLES / 2;

/// What the table of cells says about a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Its last calls.
    Gram(u64),
    /// Nothing is known yet.
    None,
    /// Another thread had the cell; its sequence ends here and ours starts.
    Collision,
}

/// Reads a cell.
#[inline(always)]
#[must_use]
pub const fn before(cell: u64, tid: u32) -> Before {
    if cell == 0 {
        Before::None
    } else if cell >> GRAM_BITS == owner(tid) {
        Before::Gram(cell & EMPTY)
    } else {
        Before::Collision
    }
}

/// The cell that holds a thread's gram.
#[inline(always)]
#[must_use]
pub const fn cell(tid: u32, gram: u64) -> u64 {
    owner(tid) << GRAM_BITS | gram
}

/// The gram after one more call. A number without a slot becomes [`OTHER`].
#[inline(always)]
#[must_use]
pub const fn roll(gram: u64, slot: u16) -> u64 {
    let symbol = if (slot as usize) < SYSCALL_SLOTS { slot } else { OTHER };
    (gram << SYMBOL_BITS | symbol as u64) & EMPTY
}

/// The latest symbol of a gram: a call's slot, or [`OTHER`].
#[inline(always)]
#[must_use]
pub const fn symbol(gram: u64) -> u16 {
    (gram & START as u64) as u16
}

/// The latest call of a gram, when it has a slot.
#[inline(always)]
#[must_use]
pub const fn latest(gram: u64) -> Option<u16> {
    let symbol = symbol(gram);
    if (symbol as usize) < SYSCALL_SLOTS { Some(symbol) } else { None }
}

/// The call before the latest, when it has a slot.
#[inline(always)]
#[must_use]
pub const fn before_latest(gram: u64) -> Option<u16> {
    latest(gram >> SYMBOL_BITS)
}

/// Where a table keeps a gram.
#[inline(always)]
#[must_use]
pub const fn table_key(table: u16, gram: u64) -> u64 {
    (table as u64) << GRAM_BITS | gram
}

/// Where a process's count of a gram in an epoch is kept.
#[inline(always)]
#[must_use]
pub const fn learner_key(learner: u16, epoch: u32, gram: u64) -> u64 {
    ((learner as u64) << 1 | (epoch & 1) as u64) << GRAM_BITS | gram
}

/// Learner, odd or even epoch, and gram of a key.
#[must_use]
pub const fn of_learner_key(key: u64) -> (u16, u32, u64) {
    let id = key >> GRAM_BITS;
    ((id >> 1) as u16, (id & 1) as u32, key & EMPTY)
}

/// The highest bit tells that a place of [`crate::records::Window::usual`] is taken: six times slot 0 is a gram as well.
const TAKEN: u64 = 1 << 63;
/// Between that and the gram is what the table holds for it.
const STEPS_BITS: u32 = 8;

/// How a window keeps a gram that it has found before, with what the table holds for it.
#[inline(always)]
#[must_use]
pub const fn usual(gram: u64, steps: u32) -> u64 {
    TAKEN | (steps as u64 & ((1 << STEPS_BITS) - 1)) << GRAM_BITS | gram
}

/// Whether a place holds this gram.
#[inline(always)]
#[must_use]
pub const fn is_usual(kept: u64, gram: u64) -> bool {
    kept & (TAKEN | EMPTY) == TAKEN | gram
}

/// The gram of a place that is taken.
#[inline(always)]
#[must_use]
pub const fn gram_of(kept: u64) -> u64 {
    kept & EMPTY
}

/// The gram of a place, and what the table holds for it; `None` for a place that is free.
#[must_use]
pub const fn of_usual(kept: u64) -> Option<(u64, u8)> {
    if kept & TAKEN == 0 { None } else { Some((gram_of(kept), (kept >> GRAM_BITS) as u8)) }
}

/// Where a window keeps a gram: here, or beside it where the lowest bit differs.
#[inline(always)]
#[must_use]
pub const fn usual_place(gram: u64) -> usize {
    hash(gram, USUAL)
}

/// The bit that tells a window that this kind of gram came.
#[inline(always)]
#[must_use]
pub const fn kind_bit(gram: u64) -> usize {
    hash(gram, KIND_BITS)
}

/// Fibonacci hashing: the highest bits of a product with 2^64 by the golden ratio depend on all others.
#[inline(always)]
const fn hash(gram: u64, places: usize) -> usize {
    (gram.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - places.trailing_zeros())) as usize
}

/// Never zero, so that no cell with an owner is.
#[inline(always)]
const fn owner(tid: u32) -> u64 {
    (tid / THREAD_CELLS + 1) as u64 & (TABLES as u64 - 1)
}

const _: () = assert!(SYSCALL_SLOTS < OTHER as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_belongs_to_one_thread() {
        assert_eq!(before(0, 7), Before::None);
        // Six times slot 0 by a thread with a small number is not nothing.
        assert_eq!(before(cell(7, 0), 7), Before::Gram(0));
        assert_eq!(before(cell(7, EMPTY), 7), Before::Gram(EMPTY));
        assert_eq!(before(cell(7, 334), 7 + THREAD_CELLS), Before::Collision);
        let last_tid = (1 << 22) - 1;
        assert_eq!(before(cell(last_tid, 9), last_tid), Before::Gram(9));
        assert_eq!(before(cell(last_tid, 9), last_tid - THREAD_CELLS), Before::Collision);
    }

    #[test]
    fn six_calls_are_remembered_and_the_seventh_is_forgotten() {
        let after =
            |first| [3, 1, 4, 1, 5, 334].iter().fold(roll(EMPTY, first), |gram, call| roll(gram, *call));
        assert_eq!(after(7), after(8));
        assert_eq!(latest(after(7)), Some(334));
        assert_eq!(latest(EMPTY), None);
        assert_eq!(latest(roll(0, u16::MAX)), None, "a call without a slot is no slot");
        let two = roll(roll(EMPTY, 9), u16::MAX);
        assert_eq!((before_latest(two), symbol(two)), (Some(9), OTHER));
        assert_eq!(before_latest(roll(EMPTY, 9)), None);
    }

    #[test]
    fn a_window_keeps_usual_grams_with_what_the_table_holds_for_them() {
        assert_eq!(of_usual(0), None);
        for (gram, steps) in [(0, 0), (EMPTY, 255), (12_345, 7)] {
            let kept = usual(gram, u32::from(steps));
            assert_eq!(of_usual(kept), Some((gram, steps)));
            assert!(is_usual(kept, gram) && !is_usual(kept, gram ^ 1) && !is_usual(0, gram));
        }
        let mut used = [0; USUAL];
        (0..1000).for_each(|gram| used[usual_place(gram)] += 1);
        assert!(used.iter().all(|n| *n > 1000 / USUAL / 2), "{used:?}");
        let mut met = [false; KIND_BITS];
        (0..500).for_each(|gram| met[kind_bit(gram)] = true);
        assert!(met.iter().filter(|met| **met).count() > 400);
    }

    #[test]
    fn keys_keep_ids_and_grams_apart() {
        assert_eq!(of_learner_key(learner_key(LEARNERS - 1, 7, EMPTY)), (LEARNERS - 1, 1, EMPTY));
        assert_ne!(table_key(1, 0), table_key(2, 0));
        assert_eq!(table_key(TABLES - 1, EMPTY), u64::MAX);
    }
}
