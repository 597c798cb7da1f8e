//! The process layer: programs started, processes made, processes gone.

use core::{hint, mem::offset_of, ptr};

use agent_ebpf::gram::{self, Before};
use agent_ebpf::records::{
    ARGUMENTS_LEN, Class, Exec, Field, Flush, Fork, GROUP_LEN, Header, KIND_EXEC, KIND_EXIT, KIND_FLUSH,
    KIND_FORK, OFFSET_UNKNOWN, PATH_LEN, VOLUME_UNKNOWN, Window, WindowKey, counter,
};
use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_task,
        generated::{
            bpf_probe_read_kernel as raw_read_kernel, bpf_probe_read_kernel_str as raw_read_kernel_str,
            bpf_probe_read_user as raw_read_user,
        },
    },
    macros::{btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

use crate::sequence;
use crate::shared::{
    BPRM_FILENAME, BULK, Caller, FOLLOWED, PLACES, SIGNAL_LIVE, TASK_PID, TASK_SIGNAL, TASK_TGID, URGENT,
    WAKE_WHEN_READ, WINDOWS, bulk_flags, caller, count, count_at, field, give, has_room_for_life, offset,
    open_epoch, place_of, read_kernel, release, send_life,
};

const CLONE_THREAD: u64 = 0x0001_0000;
/// Offset of a pointer to the text of a dynamic field, in the record of a classic tracepoint.
const EXEC_FILENAME_LOC: usize = 8;
const NEWTASK_PID: usize = 8;
const NEWTASK_CLONE_FLAGS: usize = 32;

#[btf_tracepoint(function = "sched_process_exec")]
fn exec_btf(ctx: BtfTracePointContext) -> i32 {
    exec_of_bprm(ctx.arg(2));
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn exec_raw(ctx: RawTracePointContext) -> i32 {
    exec_of_bprm(ctx.arg(2));
    0
}

#[tracepoint(category = "sched", name = "sched_process_exec")]
fn exec_tp(ctx: TracePointContext) -> u32 {
    // SAFETY: the field is a 32-bit location: offset in the lower half, length in the upper one.
    if let Ok(location) = unsafe { ctx.read_at::<u32>(EXEC_FILENAME_LOC) } {
        exec(ctx.as_ptr() as u64 + u64::from(location & 0xffff), None);
    }
    0
}

#[btf_tracepoint(function = "task_newtask")]
fn fork_newtask_btf(ctx: BtfTracePointContext) -> i32 {
    fork_of_task(ctx.arg(0));
    0
}

#[btf_tracepoint(function = "sched_process_fork")]
fn fork_sched_btf(ctx: BtfTracePointContext) -> i32 {
    fork_of_task(ctx.arg(1));
    0
}

#[tracepoint(category = "task", name = "task_newtask")]
fn fork_tp(ctx: TracePointContext) -> u32 {
    // SAFETY: both are plain integers at the offsets that the tracepoint has had since 3.4.
    let (child, flags) =
        unsafe { (ctx.read_at::<u32>(NEWTASK_PID), ctx.read_at::<u64>(NEWTASK_CLONE_FLAGS)) };
    if let (Ok(child), Ok(flags)) = (child, flags) {
        if flags & CLONE_THREAD == 0 {
            fork(child);
        }
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
fn exit_btf(_: BtfTracePointContext) -> i32 {
    exit();
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn exit_raw(_: RawTracePointContext) -> i32 {
    exit();
    0
}

#[tracepoint(category = "sched", name = "sched_process_exit")]
fn exit_tp(_: TracePointContext) -> u32 {
    exit();
    0
}

#[inline(always)]
fn exec_of_bprm(bprm: u64) {
    if let Some(filename) = read_kernel(bprm + u64::from(BPRM_FILENAME.load())) {
        exec(filename, links(bprm));
    }
}

/// How many names the new program's file has; `None` when the kernel's type information does not tell.
#[inline(always)]
fn links(bprm: u64) -> Option<u32> {
    let file: u64 = field(bprm, Field::BprmFile)?;
    let inode: u64 = field(file, Field::FileInode)?;
    field(inode, Field::InodeNlink)
}

#[inline(always)]
fn exec(filename: u64, links: Option<u32>) {
    let Some(caller) = caller() else { return };
    unfollow(caller);
    count(Class::Exec, counter::SEEN);
    let Some(mut entry) = (if has_room_for_life() { URGENT.reserve::<Exec>(0) } else { None }) else {
        return count(Class::Exec, counter::DROPPED);
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` points to a reserved entry of its size; the helper ends the text with a NUL or fails.
    unsafe {
        caller.write_header(&raw mut (*record).header, KIND_EXEC);
        (*record).unlinked = match links {
            Some(0) => 1,
            Some(_) => 0,
            None => 2,
        };
        (*record).arguments_len = arguments(&raw mut (*record).arguments);
        groups(&raw mut (*record).groups);
        let text = &raw mut (*record).filename;
        if raw_read_kernel_str(text.cast(), PATH_LEN as u32, filename as *const _) < 0 {
            *text.cast::<u8>() = 0;
            count_at(counter::UNREADABLE);
        }
    }
    entry.submit(WAKE_WHEN_READ);
    count(Class::Exec, counter::SUBMITTED);
}

/// Copies the command line of the new program from its stack, where the kernel has just put it; how many bytes.
#[inline(always)]
fn arguments(to: *mut [u8; ARGUMENTS_LEN]) -> u32 {
    let place = || -> Option<(u64, u64)> {
        // SAFETY: the helper takes no arguments.
        let mm: u64 = field(unsafe { bpf_get_current_task() }, Field::TaskMm)?;
        Some((field(mm, Field::MmArgStart)?, field(mm, Field::MmArgEnd)?))
    };
    let Some((start, end)) = place() else { return 0 };
    let all = end.wrapping_sub(start);
    // The verifier wants to see the bound right here.
    let len = if all < ARGUMENTS_LEN as u64 {
        hint::black_box(all) & (ARGUMENTS_LEN as u64 - 1)
    } else {
        ARGUMENTS_LEN as u64
    };
    // SAFETY: `to` has room for `len` bytes; the helper checks `start`.
    let read = unsafe { raw_read_user(to.cast(), len as u32, start as *const _) == 0 };
    if read { len as u32 } else { 0 }
}

/// Names the control group of the process, and the one above: by them its unit is known when it has left before it is asked.
#[inline(always)]
fn groups(to: *mut [[u8; GROUP_LEN]; 2]) {
    let own = || -> Option<u64> {
        // SAFETY: the helper takes no arguments.
        let groups: u64 = field(unsafe { bpf_get_current_task() }, Field::TaskCgroups)?;
        let group: u64 = field(groups, Field::CssSetGroup)?;
        field(group, Field::CgroupNode)
    };
    let own = own();
    // Linux 6.15 renamed it.
    let above =
        own.and_then(|node| field(node, Field::NodeParent).or_else(|| field(node, Field::NodeParentRcu)));
    for (at, node) in [above, own].into_iter().enumerate() {
        // SAFETY: `to` has room for both; the helper ends the text with a NUL or fails.
        unsafe {
            let text = to.cast::<u8>().add(at * GROUP_LEN);
            let name: u64 = node.and_then(|node| field(node, Field::NodeName)).unwrap_or(0);
            if raw_read_kernel_str(text.cast(), GROUP_LEN as u32, name as *const _) < 0 {
                *text = 0;
            }
        }
    }
}

/// What follows is the work of another program, whose table the agent does not know yet.
#[inline(always)]
fn unfollow(caller: Caller) {
    let _ = FOLLOWED.remove(caller.tgid);
    let Some(epoch) = open_epoch() else { return };
    let place = place_of(WindowKey { tgid: caller.tgid, epoch: epoch.number });
    if let Some(window) = place.and_then(|place| WINDOWS.get_ptr_mut(place)) {
        // SAFETY: `window` points into a map value.
        unsafe { sequence::forget(window, epoch) };
    }
}

#[inline(always)]
fn fork_of_task(task: u64) {
    let pid: Option<u32> = read_kernel(task + u64::from(TASK_PID.load()));
    let tgid: Option<u32> = read_kernel(task + u64::from(TASK_TGID.load()));
    if let (Some(pid), Some(tgid)) = (pid, tgid) {
        if pid == tgid {
            fork(tgid);
        }
    }
}

#[inline(always)]
fn fork(child: u32) {
    let Some(caller) = caller() else { return };
    count(Class::Fork, counter::SEEN);
    // The child runs the same program until it starts another.
    // SAFETY: the value is read at once, and user space writes it whole.
    if let Some(followed) = unsafe { FOLLOWED.get(caller.tgid) } {
        let _ = FOLLOWED.insert(child, followed, 0);
    }
    send_life(Class::Fork, &Fork { header: caller.header(KIND_FORK), child, _pad: 0 });
}

#[inline(always)]
fn exit() {
    let Some(caller) = caller() else { return };
    // The number may be used again; the next thread with it starts its own sequence.
    if let Some(thread) = caller.thread() {
        // SAFETY: `thread` points to an element of an array, and the cell is written as one aligned word.
        unsafe {
            let cell = &raw mut (*thread).cell;
            if matches!(gram::before(ptr::read_volatile(cell), caller.tid), Before::Gram(_)) {
                ptr::write_volatile(cell, 0);
            }
        }
    }
    if !is_last(caller) {
        return;
    }
    flush(caller);
    let _ = FOLLOWED.remove(caller.tgid);
    count(Class::Exit, counter::SEEN);
    send_life::<Header>(Class::Exit, &caller.header(KIND_EXIT));
}

/// Whether the whole process goes with this thread. The kernel has already counted this thread out of `signal.live`.
/// Where its place is unknown, the group leader stands for the process.
#[inline(always)]
fn is_last(caller: Caller) -> bool {
    let (signal, live) = (TASK_SIGNAL.load(), SIGNAL_LIVE.load());
    if signal == OFFSET_UNKNOWN || live == OFFSET_UNKNOWN {
        return caller.tid == caller.tgid;
    }
    // SAFETY: the helper takes no arguments.
    let task = unsafe { bpf_get_current_task() };
    let alive =
        read_kernel::<u64>(task + u64::from(signal)).and_then(|s| read_kernel::<u32>(s + u64::from(live)));
    alive == Some(0)
}

/// Bytes read and written since the process began: of its threads that are gone, and of this last one.
#[inline(always)]
fn volume() -> [u64; 2] {
    // SAFETY: the helper takes no arguments.
    let task = unsafe { bpf_get_current_task() };
    let sums = || -> Option<[u64; 2]> {
        let own = task + offset(Field::TaskIoac)?;
        let signal: u64 = read_kernel(task + u64::from(TASK_SIGNAL.load()))?;
        let others = signal + offset(Field::SignalIoac)?;
        let sum = |of: Field| -> Option<u64> {
            let (own, others): (u64, u64) = (field(own, of)?, field(others, of)?);
            Some(own.wrapping_add(others))
        };
        Some([sum(Field::IoacRead)?, sum(Field::IoacWritten)?])
    };
    sums().unwrap_or([VOLUME_UNKNOWN; 2])
}

/// Sends the window of the open epoch and removes it. When the ring is full the entry stays for the next drain.
#[inline(always)]
fn flush(caller: Caller) {
    let Some(epoch) = open_epoch() else { return };
    let key = WindowKey { tgid: caller.tgid, epoch: epoch.number };
    let Some(place) = place_of(key) else { return };
    let Some(window) = WINDOWS.get_ptr_mut(place) else { return };
    // SAFETY: `window` points to an element of an array.
    unsafe { (*window).volume = volume() };
    count(Class::Flush, counter::SEEN);
    let Some(mut entry) = BULK.reserve::<Flush>(0) else {
        return count(Class::Flush, counter::THROTTLED);
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` points to a reserved entry of its size. The helper copies the window, for the compiler would
    // copy it word by word; it cannot fail for a map value, and zeroes the target if it did.
    unsafe {
        caller.write_header(&raw mut (*record).header, KIND_FLUSH);
        let target = record.cast::<u8>().add(offset_of!(Flush, window));
        raw_read_kernel(target.cast(), size_of::<Window>() as u32, window.cast_const().cast());
    }
    entry.submit(bulk_flags());
    if PLACES.remove(key).is_err() {
        // The next drain finds the entry, and by this that its window was sent.
        give(place, WindowKey::NOBODY);
    } else if !release(place) && PLACES.insert(WindowKey::stranded(place), place, 0).is_err() {
        count_at(counter::PLACES_LOST);
    }
    count(Class::Flush, counter::SUBMITTED);
}
