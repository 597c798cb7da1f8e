//! The file layer: which paths a process asks for.

use agent_ebpf::{
    records::{
        Class, KIND_OPEN, NR_OPENAT2, Open, PATH_LEN, SLOT_CREAT, SLOT_OPEN, SLOT_OPENAT, Window, counter,
    },
    sensitive::is_sensitive,
};
use aya_ebpf::{
    helpers::{bpf_probe_read_user, generated::bpf_probe_read_user_str as raw_read_user_str},
    macros::{btf_tracepoint, map, raw_tracepoint, tracepoint},
    maps::PerCpuArray,
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

use crate::shared::{BULK_CAP, Registers, URGENT_CAP, caller, count, count_at, send_bulk, send_urgent, slot};

const AT_FDCWD: i32 = -100;
/// `O_CREAT | O_WRONLY | O_TRUNC`, which is what `creat` means. The same on x86 and ARM.
const CREAT_FLAGS: u32 = 0o1101;
/// Where a classic tracepoint of a system call keeps its number and its arguments.
const TP_NR: usize = 8;
const TP_ARGS: usize = 16;

/// The record is too large for the stack, and which ring it goes to is known only when its path is.
#[map]
static OPENING: PerCpuArray<Open> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "sys_enter")]
fn open_btf(ctx: BtfTracePointContext) -> i32 {
    let registers = Registers(ctx.arg(0));
    open(ctx.arg(1), |i| registers.arg(i));
    0
}

#[raw_tracepoint(tracepoint = "sys_enter")]
fn open_raw(ctx: RawTracePointContext) -> i32 {
    let registers = Registers(ctx.arg(0));
    open(ctx.arg(1), |i| registers.arg(i));
    0
}

#[tracepoint]
fn open_tp(ctx: TracePointContext) -> u32 {
    // SAFETY: the number is a 32-bit field of every system call's tracepoint, its arguments are 64-bit fields.
    if let Ok(nr) = unsafe { ctx.read_at::<u32>(TP_NR) } {
        // SAFETY: as above.
        open(u64::from(nr), |i| unsafe { ctx.read_at::<u64>(TP_ARGS + 8 * i) }.unwrap_or(0));
    }
    0
}

#[inline(always)]
fn open(nr: u64, arg: impl Fn(usize) -> u64) {
    let (dfd, path, flags) = if nr == NR_OPENAT2 {
        // SAFETY: the helper checks the address; `open_how` begins with the flags as 64 bits.
        let flags = unsafe { bpf_probe_read_user(arg(2) as *const u64) }.unwrap_or(0);
        (arg(0) as i32, arg(1), flags as u32)
    } else {
        match slot(nr) {
            SLOT_OPEN => (AT_FDCWD, arg(0), arg(1) as u32),
            SLOT_CREAT => (AT_FDCWD, arg(0), CREAT_FLAGS),
            SLOT_OPENAT => (arg(0) as i32, arg(1), arg(2) as u32),
            _ => return,
        }
    };
    let Some(caller) = caller() else { return };
    let Some(record) = OPENING.get_ptr_mut(0) else { return };
    count(Class::Open, counter::SEEN);
    // SAFETY: `record` points into this CPU's element, and no other program of ours runs on this CPU meanwhile.
    // The helper ends the text with a NUL or fails.
    let sensitive = unsafe {
        (&raw mut (*record).header).write(caller.header(KIND_OPEN));
        (*record).dfd = dfd;
        (*record).flags = flags;
        (*record)._pad = 0;
        let text = &raw mut (*record).path;
        if raw_read_user_str(text.cast(), PATH_LEN as u32, path as *const _) < 0 {
            *text.cast::<u8>() = 0;
            count_at(counter::UNREADABLE);
        }
        let sensitive = is_sensitive(&*text);
        (*record).sensitive = u32::from(sensitive);
        sensitive
    };
    // SAFETY: as above.
    let record = unsafe { &*record };
    if sensitive {
        if caller.within_cap(URGENT_CAP.load(), urgent) {
            send_urgent(Class::Open, record);
        } else {
            count(Class::Open, counter::THROTTLED);
        }
    } else if caller.within_cap(BULK_CAP.load(), bulk) {
        send_bulk(Class::Open, record);
    } else {
        count(Class::Open, counter::THROTTLED);
    }
}

#[inline(always)]
fn bulk(window: *mut Window) -> *mut u32 {
    // SAFETY: `window` points into a map value.
    unsafe { &raw mut (*window).n_bulk }
}

#[inline(always)]
fn urgent(window: *mut Window) -> *mut u32 {
    // SAFETY: `window` points into a map value.
    unsafe { &raw mut (*window).n_urgent }
}
