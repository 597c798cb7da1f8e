//! The file layer: which paths a process asks for.

use core::hint;

use agent_ebpf::{
    acts::{TRUNCATES, WRITES, is_release_agent, memory_of},
    records::{
        Class, DIRECTORY_LEN, Field, Inject, KIND_INJECT, KIND_OPEN, MODE_SHED_OPENS, NR_OPENAT2, Open,
        PATH_LEN, SLOT_CREAT, SLOT_OPEN, SLOT_OPENAT, WRITTEN, Window, counter,
    },
    sensitive::{Head, is_sensitive},
};
use aya_ebpf::{
    helpers::generated::{
        bpf_probe_read_kernel as raw_read_kernel, bpf_probe_read_kernel_str as raw_read_kernel_str,
    },
    macros::{btf_tracepoint, map, raw_tracepoint, tracepoint},
    maps::PerCpuArray,
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

use crate::{
    call::{CALLS_BTF, CALLS_RAW, CLASSIC_ARGS, CLASSIC_NR, Call, call_of, slot},
    call_layer, escape,
    shared::{
        BULK_CAP, Caller, DIRECTORIES, PathAt, caller, count, field, modes, offset, read_kernel, read_path,
        read_user, send_bulk, send_urgent,
    },
    traces,
};

pub(crate) const AT_FDCWD: i32 = -100;
/// `O_CREAT | O_WRONLY | O_TRUNC`, which is what `creat` means. The same on x86 and ARM.
const CREAT_FLAGS: u32 = 0o1101;

/// The record is too large for the stack, and which ring it goes to is known only when its path is.
#[map]
static OPENING: PerCpuArray<Open> = PerCpuArray::with_max_entries(1, 0);

#[map]
static COMPLETE: PerCpuArray<[u8; PATH_LEN]> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "sys_enter")]
fn open_btf(ctx: BtfTracePointContext) -> i32 {
    if let Some(call) = Call::new(ctx.arg(0), ctx.arg(1), true)
        && open(call.caller, call.nr, |i| call.arg(i))
    {
        // SAFETY: the array holds programs for this very hook, and nothing here needs dropping.
        unsafe { CALLS_BTF.tail_call(&ctx, WRITTEN) };
    }
    0
}

#[raw_tracepoint(tracepoint = "sys_enter")]
fn open_raw(ctx: RawTracePointContext) -> i32 {
    if let Some(call) = Call::new(ctx.arg(0), ctx.arg(1), false)
        && open(call.caller, call.nr, |i| call.arg(i))
    {
        // SAFETY: as above.
        unsafe { CALLS_RAW.tail_call(&ctx, WRITTEN) };
    }
    0
}

#[tracepoint]
fn open_tp(ctx: TracePointContext) -> u32 {
    // SAFETY: the number is a 32-bit field of every system call's tracepoint, arguments are 64-bit fields.
    if let (Ok(nr), Some(caller)) = (unsafe { ctx.read_at::<u32>(CLASSIC_NR) }, caller()) {
        // SAFETY: as above. What an open for writing means is another program on the same tracepoint.
        open(caller, u64::from(nr), |i| unsafe { ctx.read_at::<u64>(CLASSIC_ARGS + 8 * i) }.unwrap_or(0));
    }
    0
}

call_layer!(written_btf, written_raw, written_tp, written);

/// What an open asks for: directory, path, flags.
#[inline(always)]
fn asked(nr: u64, arg: impl Fn(usize) -> u64) -> Option<(i32, u64, u32)> {
    if nr == NR_OPENAT2 {
        // `open_how` begins with the flags as 64 bits.
        let flags = read_user::<u64>(arg(2)).unwrap_or(0);
        return Some((arg(0) as i32, arg(1), flags as u32));
    }
    match slot(nr) {
        SLOT_OPEN => Some((AT_FDCWD, arg(0), arg(1) as u32)),
        SLOT_CREAT => Some((AT_FDCWD, arg(0), CREAT_FLAGS)),
        SLOT_OPENAT => Some((arg(0) as i32, arg(1), arg(2) as u32)),
        _ => None,
    }
}

/// Fills this CPU's record but for its header, and gives it with the length of its path.
#[inline(always)]
fn fill(dfd: i32, path: PathAt, flags: u32) -> Option<(&'static mut Open, usize)> {
    let record = OPENING.get_ptr_mut(0)?;
    // SAFETY: `record` points into this CPU's element, and no other program of ours runs on this CPU meanwhile.
    unsafe {
        (*record).dfd = dfd;
        (*record).flags = flags;
        (*record)._pad = 0;
        let text = &raw mut (*record).path;
        let mut len = read_path(text, path);
        if len > 0 && (*text)[0] != b'/' {
            len += complete(record);
        }
        Some((&mut *record, len))
    }
}

/// Reports an open; true when it asks to write.
#[inline(always)]
fn open(caller: Caller, nr: u64, arg: impl Fn(usize) -> u64) -> bool {
    let Some((dfd, path, flags)) = asked(nr, arg) else { return false };
    tell(caller, dfd, PathAt::User(path), flags);
    flags & (WRITES | TRUNCATES) != 0
}

/// An open that was given to io_uring, whose path the kernel has read already.
#[inline(always)]
pub(crate) fn submitted(caller: Caller, dfd: i32, path: u64, flags: u32) {
    tell(caller, dfd, PathAt::Kernel(path), flags);
    if flags & (WRITES | TRUNCATES) != 0 {
        means(caller, NR_OPENAT2, dfd, PathAt::Kernel(path), flags);
    }
}

#[inline(always)]
fn tell(caller: Caller, dfd: i32, path: PathAt, flags: u32) {
    count(Class::Open, counter::SEEN);
    let Some((record, len)) = fill(dfd, path, flags) else { return };
    let sensitive = is_sensitive(head(record), &record.path, len);
    record.sensitive = u32::from(sensitive);
    if sensitive {
        if caller.may_report() {
            // SAFETY: the record is this CPU's.
            unsafe { caller.write_header(&raw mut record.header, KIND_OPEN) };
            send_urgent(Class::Open, record);
        } else {
            count(Class::Open, counter::THROTTLED);
        }
    } else if modes() & MODE_SHED_OPENS == 0 && caller.within_cap(BULK_CAP.load(), bulk) {
        // Most opens of a busy process end here or before, so what a record costs is asked for as late as that.
        // SAFETY: as above.
        unsafe { caller.write_header(&raw mut record.header, KIND_OPEN) };
        send_bulk(Class::Open, record);
    } else {
        count(Class::Open, counter::THROTTLED);
    }
}

/// An open for writing may be more than that: an injection, an escape, or the end of a log. A program of its own, for
/// the verifier follows every path through both otherwise, and gives up.
#[inline(always)]
fn written(caller: Caller, nr: u64, arg: impl Fn(usize) -> u64) {
    let Some((dfd, path, flags)) = asked(nr, arg) else { return };
    if flags & (WRITES | TRUNCATES) == 0 {
        return;
    }
    means(caller, nr, dfd, PathAt::User(path), flags);
}

#[inline(always)]
fn means(caller: Caller, nr: u64, dfd: i32, path: PathAt, flags: u32) {
    let Some((record, len)) = fill(dfd, path, flags) else { return };
    if let Some(victim) = memory_of(head(record), &record.path, len) {
        if victim != caller.tgid && caller.may_act(Class::Injection) {
            let header = caller.header(KIND_INJECT);
            let record = Inject { header, call: call_of(nr), victim, request: 0 };
            send_urgent(Class::Injection, &record);
        }
    } else if is_release_agent(&record.path, len) {
        escape::release_agent(caller, nr, record);
    } else if flags & TRUNCATES != 0 {
        traces::opened(caller, call_of(nr), record);
    }
}

/// Makes a relative path absolute when it starts from a directory that leads to sensitive files: `cd /etc; cat shadow`
/// is no less than `cat /etc/shadow`. Returns how many bytes came before it.
///
/// # Safety
///
/// `record` points into this CPU's element of a per-CPU map.
#[inline(always)]
unsafe fn complete(record: *mut Open) -> usize {
    const REST: usize = PATH_LEN - DIRECTORY_LEN;
    // SAFETY: by this function's contract.
    let dfd = unsafe { (*record).dfd };
    let start = if dfd == AT_FDCWD { traces::working_directory() } else { traces::file(dfd) };
    let Some(start) = start else { return 0 };
    let Some(key) = traces::identity(start.dentry) else { return 0 };
    let Some(full) = COMPLETE.get_ptr_mut(0) else { return 0 };
    let to = full.cast::<u8>();
    // SAFETY: the agent writes the entries before any program runs.
    let len = match unsafe { DIRECTORIES.get(key) } {
        Some(directory) => {
            // SAFETY: both are whole fields of map values; the helper cannot fail for them.
            unsafe { raw_read_kernel(to.cast(), DIRECTORY_LEN as u32, (&raw const directory.text).cast()) };
            directory.len as usize
        }
        // SAFETY: `to` points to a whole path in a map value.
        None => unsafe { process_directory(start.dentry, to) }.unwrap_or(0),
    };
    // The compiler must not drop the mask, which the verifier wants to see.
    let len = hint::black_box(len) & (DIRECTORY_LEN - 1);
    if len == 0 {
        return 0;
    }
    // SAFETY: all are whole fields of map values. The first copy fills 224 bytes behind at most 31, the second 256; the
    // helper cannot fail for them.
    unsafe {
        let path = (&raw mut (*record).path).cast::<u8>();
        raw_read_kernel(to.add(len).cast(), REST as u32, path.cast());
        *to.add(PATH_LEN - 1) = 0;
        raw_read_kernel(path.cast(), PATH_LEN as u32, to.cast());
    }
    len
}

/// Writes `/proc/<pid>/` when the directory is a process's, whose memory lies there: `cd /proc/17; dd of=mem`. Returns its
/// length, or zero.
///
/// # Safety
///
/// `to` points to at least [`DIRECTORY_LEN`] bytes of a map value.
#[inline(always)]
unsafe fn process_directory(dentry: u64, to: *mut u8) -> Option<usize> {
    const PROC_SUPER_MAGIC: u64 = 0x9fa0;
    const START: &[u8; 8] = b"/proc/\0\0";
    /// Seven digits and a NUL.
    const NAME: usize = 8;
    let inode: u64 = field(dentry, Field::DentryInode)?;
    let sb: u64 = field(inode, Field::InodeSb)?;
    let magic: u64 = field(sb, Field::SbMagic)?;
    if magic != PROC_SUPER_MAGIC {
        return None;
    }
    let name: u64 = read_kernel(dentry + offset(Field::DentryName)? + offset(Field::QstrName)?)?;
    // SAFETY: by this function's contract: 6 bytes, and at most 8 behind them. The map's values are aligned to eight.
    unsafe {
        to.cast::<u64>().write(u64::from_ne_bytes(*START));
        let n = raw_read_kernel_str(to.add(6).cast(), NAME as u32, name as *const _);
        // What is no number is no process; what is read as one decides.
        if n < 2 {
            return None;
        }
        let end = hint::black_box(n as usize + 5) & (DIRECTORY_LEN - 1);
        *to.add(end) = b'/';
        Some(end + 1)
    }
}

/// The beginning of the record's path.
#[inline(always)]
fn head(record: *const Open) -> Head {
    const _: () = assert!(core::mem::offset_of!(Open, path) % align_of::<Head>() == 0);
    // SAFETY: `record` points to a whole record in a map value; its path is longer than the head, and aligned to it.
    unsafe { (&raw const (*record).path).cast::<Head>().read() }
}

#[inline(always)]
fn bulk(window: *mut Window) -> *mut u32 {
    // SAFETY: `window` points into a map value.
    unsafe { &raw mut (*window).n_bulk }
}
