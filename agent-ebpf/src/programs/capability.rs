//! Capabilities that a process asked for and had: one bit each in its window.

use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_get_current_uid_gid,
    macros::{btf_tracepoint, kprobe, raw_tracepoint},
    programs::{BtfTracePointContext, ProbeContext, RawTracePointContext},
};

use crate::{
    call::Registers,
    shared::{caller, open_epoch},
};

#[btf_tracepoint(function = "cap_capable")]
fn capable_btf(ctx: BtfTracePointContext) -> i32 {
    used(ctx.arg(3), ctx.arg(4));
    0
}

#[raw_tracepoint(tracepoint = "cap_capable")]
fn capable_raw(ctx: RawTracePointContext) -> i32 {
    used(ctx.arg(3), ctx.arg(4));
    0
}

/// Before Linux 6.14 there is no tracepoint. The check's result is not known on its way in; root has most of what it asks
/// for, and others have it seldom. Arguments one to three are in the same registers as those of a system call.
#[kprobe]
fn capable_probe(ctx: ProbeContext) -> u32 {
    if bpf_get_current_uid_gid() as u32 == 0 {
        used(Registers::untyped(ctx.as_ptr() as u64).arg(2) as u32, 0);
    }
    0
}

/// Capability number and what the check returned: zero when it was had.
#[inline(always)]
fn used(capability: u32, result: i32) {
    if result != 0 {
        return;
    }
    let (Some(caller), Some(epoch)) = (caller(), open_epoch()) else { return };
    let Some(window) = caller.window(epoch.number) else { return };
    // SAFETY: `window` points into a map value. The bit is set without a lock: at worst a bit set at the same moment is
    // lost, and comes again with the next use.
    unsafe {
        let bits = &raw mut (*window).capabilities;
        let bit = 1_u64 << (capability & 63);
        if bits.read_volatile() & bit == 0 {
            bits.write_volatile(bits.read_volatile() | bit);
        }
    }
}
