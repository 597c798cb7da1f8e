//! The file layer: which paths a process asks for.

use agent_ebpf::{
    acts::{TRUNCATES, WRITES, is_release_agent, memory_of},
    records::{
        Class, DIRECTORIES as LISTED, DIRECTORY_LEN, Directories, Inject, KIND_INJECT, KIND_OPEN, NR_OPENAT2,
        Open, PATH_LEN, SLOT_CREAT, SLOT_OPEN, SLOT_OPENAT, Window, counter,
    },
    sensitive::is_sensitive,
};
use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel as raw_read_kernel,
    macros::map,
    maps::{Array, PerCpuArray},
};

use crate::{
    call_layer, escape,
    shared::{BULK_CAP, Caller, call_of, caller, count, read_path, read_user, send_bulk, send_urgent, slot},
    traces,
};

pub(crate) const AT_FDCWD: i32 = -100;
/// `O_CREAT | O_WRONLY | O_TRUNC`, which is what `creat` means. The same on x86 and ARM.
const CREAT_FLAGS: u32 = 0o1101;

/// The record is too large for the stack, and which ring it goes to is known only when its path is.
#[map]
static OPENING: PerCpuArray<Open> = PerCpuArray::with_max_entries(1, 0);

#[map]
static DIRECTORIES: Array<Directories> = Array::with_max_entries(1, 0);
#[map]
static COMPLETE: PerCpuArray<[u8; PATH_LEN]> = PerCpuArray::with_max_entries(1, 0);

call_layer!(open_btf, open_raw, open_tp, open);

#[inline(always)]
fn open(nr: u64, arg: impl Fn(usize) -> u64) {
    let (dfd, path, flags) = if nr == NR_OPENAT2 {
        // `open_how` begins with the flags as 64 bits.
        let flags = read_user::<u64>(arg(2)).unwrap_or(0);
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
    let (sensitive, len) = unsafe {
        (&raw mut (*record).header).write(caller.header(KIND_OPEN));
        (*record).dfd = dfd;
        (*record).flags = flags;
        (*record)._pad = 0;
        let text = &raw mut (*record).path;
        let len = read_path(text, path);
        if len > 0 && (*text)[0] != b'/' {
            complete(record);
        }
        let sensitive = is_sensitive(&*text);
        (*record).sensitive = u32::from(sensitive);
        (sensitive, len)
    };
    // SAFETY: as above.
    let record = unsafe { &*record };
    if flags & (WRITES | TRUNCATES) != 0 {
        written(caller, nr, record, len);
    }
    if sensitive {
        if caller.may_report() {
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

/// Makes a relative path absolute when it starts from a directory that leads to sensitive files: `cd /etc; cat shadow`
/// is no less than `cat /etc/shadow`.
///
/// # Safety
///
/// `record` points into this CPU's element of a per-CPU map.
#[inline(always)]
unsafe fn complete(record: *mut Open) {
    const REST: usize = PATH_LEN - DIRECTORY_LEN;
    // SAFETY: by this function's contract.
    let dfd = unsafe { (*record).dfd };
    let start = if dfd == AT_FDCWD { traces::working_directory() } else { traces::file(dfd) };
    let Some((inode, device)) = start.and_then(traces::identity) else { return };
    let (Some(known), Some(full)) = (DIRECTORIES.get_ptr(0), COMPLETE.get_ptr_mut(0)) else { return };
    let mut at = 0;
    while at < LISTED {
        // SAFETY: `known` points to the array's only element, which the agent writes once.
        let directory = unsafe { &(*known).list[at] };
        if directory.inode == 0 {
            return;
        }
        if directory.inode == inode && directory.device == device {
            let len = (directory.len as usize) & (DIRECTORY_LEN - 1);
            // SAFETY: all are whole fields of map values. The first copy fills 32 bytes, the second at most the 224
            // that follow the first 31, the third 256; the helper cannot fail for them.
            unsafe {
                let (to, path) = (full.cast::<u8>(), (&raw mut (*record).path).cast::<u8>());
                raw_read_kernel(to.cast(), DIRECTORY_LEN as u32, (&raw const directory.text).cast());
                raw_read_kernel(to.add(len).cast(), REST as u32, path.cast());
                *to.add(PATH_LEN - 1) = 0;
                raw_read_kernel(path.cast(), PATH_LEN as u32, to.cast());
            }
            return;
        }
        at += 1;
    }
}

/// An open for writing may be more than that: an injection, an escape, or the end of a log.
#[inline(always)]
fn written(caller: Caller, nr: u64, record: &Open, len: usize) {
    if let Some(victim) = memory_of(&record.path) {
        if victim != caller.tgid && caller.may_act(Class::Injection) {
            let header = caller.header(KIND_INJECT);
            let record = Inject { header, call: call_of(nr), victim, request: 0 };
            send_urgent(Class::Injection, &record);
        }
    } else if is_release_agent(&record.path, len) {
        escape::release_agent(caller, nr, record);
    } else if record.flags & TRUNCATES != 0 {
        traces::opened(caller, nr, record);
    }
}

#[inline(always)]
fn bulk(window: *mut Window) -> *mut u32 {
    // SAFETY: `window` points into a map value.
    unsafe { &raw mut (*window).n_bulk }
}
