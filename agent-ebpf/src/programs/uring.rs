//! Operations given to `io_uring`, which no system call tracepoint sees: counted by kind in the window.

use agent_ebpf::records::{Field, Window};
use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};

use crate::{
    call_layer,
    shared::{Caller, add_n, caller, field, open_epoch},
};

const NR_IO_URING_ENTER: u64 = 426;

call_layer!(uring_btf, uring_raw, uring_tp, enter);

#[btf_tracepoint(function = "io_uring_submit_req")]
fn submit_btf(ctx: BtfTracePointContext) -> i32 {
    submitted(ctx.arg(0));
    0
}

#[raw_tracepoint(tracepoint = "io_uring_submit_req")]
fn submit_raw(ctx: RawTracePointContext) -> i32 {
    submitted(ctx.arg(0));
    0
}

/// One operation, also when a kernel thread of the process took it from the ring.
#[inline(always)]
fn submitted(request: u64) {
    let Some(caller) = caller() else { return };
    let Some(window) = window(caller) else { return };
    // SAFETY: `window` points into a map value. The bit is set without a lock: at worst a bit set at the same moment is
    // lost, and comes again with the next operation.
    unsafe {
        add_n(&raw mut (*window).uring, 1);
        if let Some(operation) = field::<u8>(request, Field::UringOpcode) {
            let bit = if operation < 63 { operation } else { 63 };
            (*window).uring_ops |= 1 << bit;
        }
    }
}

/// `io_uring_setup` and `io_uring_enter`: what the call says that it submits.
#[inline(always)]
fn enter(nr: u64, arg: impl Fn(usize) -> u64) {
    let submits = if nr == NR_IO_URING_ENTER { arg(1) as u32 } else { 1 };
    let Some(caller) = caller() else { return };
    if let Some(window) = window(caller) {
        // SAFETY: `window` points into a map value.
        add_n(unsafe { &raw mut (*window).uring }, submits);
    }
}

#[inline(always)]
fn window(caller: Caller) -> Option<*mut Window> {
    caller.window(open_epoch()?.number)
}
