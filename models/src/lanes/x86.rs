//! Vectors of x86-64: SSE2, which every one has, and AVX2.
#![allow(unsafe_code, reason = "the compiler cannot know which processor it will be")]

use core::arch::x86_64::{
    __m128, __m256, _mm_add_ps, _mm_cvtepi32_ps, _mm_div_ps, _mm_loadl_epi64, _mm_loadu_ps, _mm_loadu_si128,
    _mm_max_ps, _mm_min_ps, _mm_mul_ps, _mm_set1_ps, _mm_srai_epi32, _mm_storeu_ps, _mm_unpacklo_epi16,
    _mm256_add_ps, _mm256_cvtepi16_epi32, _mm256_cvtepi32_ps, _mm256_div_ps, _mm256_loadu_ps, _mm256_max_ps,
    _mm256_min_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps,
};

use super::{Lanes, Work};

/// SSE2.
#[derive(Clone, Copy)]
pub(super) struct Four(__m128);

/// AVX2; see [`with_avx2`].
#[derive(Clone, Copy)]
struct Eight(__m256);

/// Does it in vectors of eight; gives it back where the processor has none.
pub(super) fn with_avx2<W: Work>(work: W) -> Result<(), W> {
    #[target_feature(enable = "avx2")]
    fn run(work: impl Work) {
        work.run::<8, Eight>();
    }
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Err(work);
    }
    // SAFETY: the processor has just been asked for what the function needs.
    unsafe { run(work) };
    Ok(())
}

// A macro, for the two differ in nothing but names.
macro_rules! lanes {
    ($vector:ident, $n:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $mul:ident, $div:ident, $max:ident, $min:ident, $widen:ident) => {
        impl Lanes<$n> for $vector {
            #[inline(always)]
            fn splat(value: f32) -> Self {
                // SAFETY: of all here: the processor has these instructions, or the vector would not be used; what is read
                // and written is an array of its length, and need not be aligned.
                Self(unsafe { $splat(value) })
            }

            #[inline(always)]
            fn load(from: &[f32; $n]) -> Self {
                // SAFETY: as above.
                Self(unsafe { $load(from.as_ptr()) })
            }

            #[inline(always)]
            fn widen(from: &[i16; $n]) -> Self {
                // SAFETY: as above.
                Self(unsafe { $widen(from) })
            }

            #[inline(always)]
            fn store(self, to: &mut [f32; $n]) {
                // SAFETY: as above.
                unsafe { $store(to.as_mut_ptr(), self.0) };
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $add(self.0, other.0) })
            }

            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $mul(self.0, other.0) })
            }

            #[inline(always)]
            fn div(self, other: Self) -> Self {
                // SAFETY: as above.
                Self(unsafe { $div(self.0, other.0) })
            }

            #[inline(always)]
            fn clamp(self, low: Self, high: Self) -> Self {
                // What is no number stays so: the second operand is given then.
                // SAFETY: as above.
                Self(unsafe { $min(high.0, $max(low.0, self.0)) })
            }
        }
    };
}

lanes!(
    Four,
    4,
    _mm_set1_ps,
    _mm_loadu_ps,
    _mm_storeu_ps,
    _mm_add_ps,
    _mm_mul_ps,
    _mm_div_ps,
    _mm_max_ps,
    _mm_min_ps,
    widen_four
);

lanes!(
    Eight,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_mul_ps,
    _mm256_div_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    widen_eight
);

/// # Safety
/// None to keep: every processor has it.
#[inline(always)]
unsafe fn widen_four(from: &[i16; 4]) -> __m128 {
    // SAFETY: 64 bits are read, which is the array.
    unsafe {
        let steps = _mm_loadl_epi64(from.as_ptr().cast());
        // Each in the upper half of a word, from where it is shifted down with its sign.
        _mm_cvtepi32_ps(_mm_srai_epi32::<16>(_mm_unpacklo_epi16(steps, steps)))
    }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn widen_eight(from: &[i16; 8]) -> __m256 {
    // SAFETY: 128 bits are read, which is the array; the rest is the caller's promise.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
}
