//! Two consecutive calls of a thread to one of the schema's pair buckets, and what a thread called last.

use crate::records::BIGRAMS;

/// The bucket of the pair (previous slot, this slot): `(a * 337 + b) mod 50`.
#[inline(always)]
#[must_use]
pub const fn bucket(previous: u16, current: u16) -> usize {
    // Unsigned 32-bit arithmetic cannot overflow here: 65535 * 337 + 65535 < 2^32.
    ((previous as u32 * 337 + current as u32) % BIGRAMS as u32) as usize
}

/// What the table of previous calls says about a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Previous {
    /// The thread called this slot last.
    Slot(u16),
    /// Nothing is known yet.
    None,
    /// Another thread had the cell; its sequence ends here and ours starts.
    Collision,
}

/// Reads one cell of the table of previous calls.
#[inline(always)]
#[must_use]
pub const fn previous(cell: u64, tid: u32) -> Previous {
    if cell == 0 {
        Previous::None
    } else if (cell >> 32) as u32 == tid {
        Previous::Slot(cell as u16)
    } else {
        Previous::Collision
    }
}

/// The cell that says thread `tid` called `slot` last. One word, so that no reader sees half of it.
#[inline(always)]
#[must_use]
pub const fn cell(tid: u32, slot: u16) -> u64 {
    ((tid as u64) << 32) | slot as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_follows_the_schema() {
        assert_eq!(bucket(0, 0), 0);
        assert_eq!(bucket(1, 0), 337 % 50);
        assert_eq!(bucket(334, 334), (334 * 337 + 334) % 50);
        assert!((0..=u16::MAX).step_by(97).all(|a| bucket(a, u16::MAX) < BIGRAMS));
    }

    #[test]
    fn a_cell_belongs_to_one_thread() {
        assert_eq!(previous(0, 7), Previous::None);
        assert_eq!(previous(cell(7, 0), 7), Previous::Slot(0));
        assert_eq!(previous(cell(7, 334), 7), Previous::Slot(334));
        assert_eq!(previous(cell(7, 334), 7 + 16384), Previous::Collision);
    }
}
