//! The container escape layer: namespaces, roots, mounts and a control group's release agent.

use agent_ebpf::{
    acts::NAMESPACES,
    records::{Class, Escape, KIND_ESCAPE, Open, PATH_LEN},
};
use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel as raw_read_kernel, macros::map, maps::PerCpuArray,
};

use crate::{
    call::{call_of, slot},
    call_layer,
    shared::{Caller, PathAt, read_path, read_user, send_urgent},
};

const SLOT_CLONE: u16 = 56;
const SLOT_PIVOT_ROOT: u16 = 155;
const SLOT_CHROOT: u16 = 161;
const SLOT_MOUNT: u16 = 165;
const SLOT_UNSHARE: u16 = 272;
const SLOT_SETNS: u16 = 308;
const NR_OPEN_TREE: u64 = 428;
const NR_MOVE_MOUNT: u64 = 429;
const NR_FSOPEN: u64 = 430;
const NR_FSMOUNT: u64 = 432;
const NR_CLONE3: u64 = 435;
/// `MS_REMOUNT`.
const REMOUNT: u64 = 32;

/// The record is too large for the stack.
#[map]
static LEAVING: PerCpuArray<Escape> = PerCpuArray::with_max_entries(1, 0);

call_layer!(escape_btf, escape_raw, escape_tp, escape);

/// What a call says: descriptor, flags, and where its two paths are (zero for none).
struct Said {
    fd: i32,
    flags: u64,
    path: u64,
    source: u64,
}

#[inline(always)]
fn escape(caller: Caller, nr: u64, arg: impl Fn(usize) -> u64) {
    let said = match nr {
        NR_OPEN_TREE => Said { fd: arg(0) as i32, flags: arg(2), path: arg(1), source: 0 },
        NR_MOVE_MOUNT => Said { fd: arg(2) as i32, flags: arg(4), path: arg(3), source: arg(1) },
        NR_FSOPEN => Said { fd: -1, flags: arg(1), path: 0, source: arg(0) },
        NR_FSMOUNT => Said { fd: arg(0) as i32, flags: arg(1), path: 0, source: 0 },
        NR_CLONE3 => {
            // `clone_args` begins with the flags as 64 bits.
            let flags = read_user::<u64>(arg(0)).unwrap_or(0) & NAMESPACES;
            if flags == 0 {
                return;
            }
            Said { fd: -1, flags, path: 0, source: 0 }
        }
        _ => match slot(nr) {
            SLOT_SETNS => Said { fd: arg(0) as i32, flags: arg(1), path: 0, source: 0 },
            SLOT_UNSHARE | SLOT_CLONE => {
                let flags = arg(0) & NAMESPACES;
                // The lowest byte of `clone` is a signal, and time namespaces cannot be had by it.
                let flags = if slot(nr) == SLOT_CLONE { flags & !0xff } else { flags };
                if flags == 0 {
                    return;
                }
                Said { fd: -1, flags, path: 0, source: 0 }
            }
            SLOT_PIVOT_ROOT | SLOT_CHROOT => Said { fd: -1, flags: 0, path: arg(0), source: 0 },
            SLOT_MOUNT => {
                let flags = arg(3);
                let source = if flags & REMOUNT == 0 { arg(0) } else { 0 };
                Said { fd: -1, flags, path: arg(1), source }
            }
            _ => return,
        },
    };
    if !caller.may_act(Class::Escape) {
        return;
    }
    let Some(record) = LEAVING.get_ptr_mut(0) else { return };
    // SAFETY: `record` points into this CPU's element, and no other program of ours runs on this CPU meanwhile.
    unsafe {
        begin(record, caller, nr, said.fd, said.flags);
        if said.path != 0 {
            read_path(&raw mut (*record).path, PathAt::User(said.path));
        }
        if said.source != 0 {
            read_path(&raw mut (*record).source, PathAt::User(said.source));
        }
        send_urgent(Class::Escape, &*record);
    }
}

/// A release agent was opened for writing: what is written runs outside every container.
#[inline(always)]
pub(crate) fn release_agent(caller: Caller, nr: u64, open: &Open) {
    if !caller.may_act(Class::Escape) {
        return;
    }
    let Some(record) = LEAVING.get_ptr_mut(0) else { return };
    // SAFETY: as above. Both paths are whole ones in map values, so the helper cannot fail.
    unsafe {
        begin(record, caller, nr, open.dfd, u64::from(open.flags));
        raw_read_kernel((&raw mut (*record).path).cast(), PATH_LEN as u32, (&raw const open.path).cast());
        send_urgent(Class::Escape, &*record);
    }
}

/// # Safety
///
/// `record` points into this CPU's element of a per-CPU map.
#[inline(always)]
unsafe fn begin(record: *mut Escape, caller: Caller, nr: u64, fd: i32, flags: u64) {
    // SAFETY: by this function's contract.
    unsafe {
        caller.write_header(&raw mut (*record).header, KIND_ESCAPE);
        (*record).call = call_of(nr);
        (*record).fd = fd;
        (*record).flags = flags;
        *(&raw mut (*record).path).cast::<u8>() = 0;
        *(&raw mut (*record).source).cast::<u8>() = 0;
    }
}
