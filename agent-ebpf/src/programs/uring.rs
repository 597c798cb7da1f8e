//! Operations given to `io_uring`, which no system call tracepoint sees: counted by kind in the window; files that they
//! open, remove or rename, and peers that they connect to, are told as those of calls are.

use agent_ebpf::records::{Field, REPLACED, Window};
use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};

use crate::{
    call_layer, file, network,
    shared::{Caller, PathAt, add_n, caller, field, open_epoch},
    traces::{self, SLOT_RENAMEAT2, SLOT_UNLINKAT},
};

const NR_IO_URING_ENTER: u64 = 426;
// `enum io_uring_op`.
const CONNECT: u8 = 16;
const OPENAT: u8 = 18;
const OPENAT2: u8 = 28;
const RENAMEAT: u8 = 35;
const UNLINKAT: u8 = 36;

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
    let operation = field::<u8>(request, Field::UringOpcode);
    if let Some(window) = window(caller) {
        // SAFETY: `window` points into a map value. The bit is set without a lock: at worst a bit set at the same moment is
        // lost, and comes again with the next operation.
        unsafe {
            add_n(&raw mut (*window).uring, 1);
            if let Some(operation) = operation {
                let bit = if operation < 63 { operation } else { 63 };
                (*window).uring_ops |= 1 << bit;
            }
        }
    }
    if let Some(operation) = operation {
        let _ = tell(caller, request, operation);
    }
}

/// What the operation is about. The kernel has read its paths already, so nobody can change them any more.
#[inline(always)]
fn tell(caller: Caller, request: u64, operation: u8) -> Option<()> {
    match operation {
        OPENAT | OPENAT2 => {
            let path = path(request, Field::UringOpenPath)?;
            // `open_how` begins with the flags as 64 bits.
            let flags: u64 = field(request, Field::UringOpenHow)?;
            file::submitted(caller, field(request, Field::UringOpenDfd)?, path, flags as u32);
        }
        UNLINKAT => {
            let path = PathAt::Kernel(path(request, Field::UringUnlinkPath)?);
            let dfd = field(request, Field::UringUnlinkDfd)?;
            traces::touched(caller, SLOT_UNLINKAT.into(), dfd, path, 0);
        }
        RENAMEAT => {
            let from = PathAt::Kernel(path(request, Field::UringRenamePath)?);
            let to = PathAt::Kernel(path(request, Field::UringRenameNewPath)?);
            let call = SLOT_RENAMEAT2.into();
            if !traces::touched(caller, call, field(request, Field::UringRenameDfd)?, from, 0) {
                traces::touched(caller, call, field(request, Field::UringRenameNewDfd)?, to, REPLACED);
            }
        }
        CONNECT => network::submitted(caller, field(request, Field::UringConnectAddr)?),
        _ => {}
    }
    Some(())
}

/// Where the kernel keeps a path that it has read.
#[inline(always)]
fn path(request: u64, of: Field) -> Option<u64> {
    field(field(request, of)?, Field::FilenameName)
}

/// `io_uring_setup` and `io_uring_enter`: what the call says that it submits.
#[inline(always)]
fn enter(caller: Caller, nr: u64, arg: impl Fn(usize) -> u64) {
    let submits = if nr == NR_IO_URING_ENTER { arg(1) as u32 } else { 1 };
    if let Some(window) = window(caller) {
        // SAFETY: `window` points into a map value.
        add_n(unsafe { &raw mut (*window).uring }, submits);
    }
}

#[inline(always)]
fn window(caller: Caller) -> Option<*mut Window> {
    caller.window(open_epoch()?.number)
}
