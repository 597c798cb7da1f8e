//! Two consecutive calls of a thread to one of the schema's pair buckets.

use crate::records::BIGRAMS;

/// The bucket of the pair (previous slot, this slot): `(a * 337 + b) mod 50`.
#[inline(always)]
#[must_use]
pub const fn bucket(previous: u16, current: u16) -> usize {
    // Unsigned 32-bit arithmetic cannot overflow here: 65535 * 337 + 65535 < 2^32.
    remainder(previous as u32 * 337 + current as u32) as usize
}

/// `x % 50`, by the product with the reciprocal: the compiler leaves a division for this target, and that is slow.
#[inline(always)]
const fn remainder(x: u32) -> u32 {
    x - ((x as u64 * 0x51eb_851f) >> 36) as u32 * BIGRAMS as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_follows_the_schema() {
        assert_eq!(bucket(0, 0), 0);
        assert_eq!(bucket(1, 0), 337 % 50);
        assert_eq!(bucket(334, 334), (334 * 337 + 334) % 50);
        assert!((0..=u16::MAX).all(|a| bucket(a, 334) == (u32::from(a) * 337 + 334) as usize % BIGRAMS));
        assert!((0..=u16::MAX).step_by(97).all(|a| bucket(a, u16::MAX) < BIGRAMS));
    }
}
