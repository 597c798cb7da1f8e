//! Vectors of aarch64, which every one has.
#![allow(unsafe_code, reason = "loads and stores take addresses")]

use core::arch::aarch64::{
    float32x4_t, vaddq_f32, vcvtq_f32_s32, vdivq_f32, vdupq_n_f32, vld1_s16, vld1q_f32, vmaxq_f32, vminq_f32,
    vmovl_s16, vmulq_f32, vst1q_f32,
};

use super::Lanes;

/// Four floats.
#[derive(Clone, Copy)]
pub(super) struct Four(float32x4_t);

impl Lanes<4> for Four {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: of all here: every processor of this architecture that runs Linux has these instructions; what is read and
        // written is an array of their length.
        Self(unsafe { vdupq_n_f32(value) })
    }

    #[inline(always)]
    fn load(from: &[f32; 4]) -> Self {
        // SAFETY: as above.
        Self(unsafe { vld1q_f32(from.as_ptr()) })
    }

    #[inline(always)]
    fn widen(from: &[i16; 4]) -> Self {
        // SAFETY: as above.
        Self(unsafe { vcvtq_f32_s32(vmovl_s16(vld1_s16(from.as_ptr()))) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; 4]) {
        // SAFETY: as above.
        unsafe { vst1q_f32(to.as_mut_ptr(), self.0) };
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { vaddq_f32(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { vmulq_f32(self.0, other.0) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { vdivq_f32(self.0, other.0) })
    }

    #[inline(always)]
    fn clamp(self, low: Self, high: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { vminq_f32(high.0, vmaxq_f32(low.0, self.0)) })
    }
}
