//! Attempts to become user id 0, files that let others do so, and code that enters the kernel.

use agent_ebpf::{
    acts::is_bpf_load,
    records::{Act, Class, KIND_KERNEL_LOAD, KIND_PRIVILEGE},
};

use crate::{
    call::{call_of, slot},
    call_layer,
    shared::{Caller, send_urgent},
};

const SLOT_CHMOD: u16 = 90;
const SLOT_FCHMOD: u16 = 91;
const SLOT_SETUID: u16 = 105;
const SLOT_SETREUID: u16 = 113;
const SLOT_SETFSUID: u16 = 122;
const SLOT_FCHMODAT: u16 = 268;
const SLOT_FINIT_MODULE: u16 = 313;
const SLOT_BPF: u16 = 321;
/// The set-user-id bit of a file's mode.
const S_ISUID: u64 = 0o4000;

call_layer!(become_btf, become_raw, become_tp, become_root);
call_layer!(load_btf, load_raw, load_tp, load);

/// `setuid`, `setreuid`, `setresuid` and `setfsuid` with user id 0, by a user that is not; and `chmod`, `fchmod`, `fchmodat`
/// and `fchmodat2` with the set-user-id bit, by anyone.
#[inline(always)]
fn become_root(caller: Caller, nr: u64, arg: impl Fn(usize) -> u64) {
    let root = || aya_ebpf::helpers::bpf_get_current_uid_gid() as u32 == 0;
    let matters = match slot(nr) {
        SLOT_CHMOD | SLOT_FCHMOD => arg(1) & S_ISUID != 0,
        SLOT_FCHMODAT => arg(2) & S_ISUID != 0,
        SLOT_SETUID | SLOT_SETFSUID => arg(0) as u32 == 0 && !root(),
        SLOT_SETREUID => (arg(0) as u32 == 0 || arg(1) as u32 == 0) && !root(),
        _ => (arg(0) as u32 == 0 || arg(1) as u32 == 0 || arg(2) as u32 == 0) && !root(),
    };
    if !matters {
        return;
    }
    if caller.may_act(Class::Privilege) {
        let header = caller.header(KIND_PRIVILEGE);
        send_urgent(Class::Privilege, &Act { header, call: call_of(nr), argument: 0 });
    }
}

/// `init_module`, `finit_module`, `kexec_load`, `kexec_file_load`, and `bpf` where it loads or attaches.
#[inline(always)]
fn load(caller: Caller, nr: u64, arg: impl Fn(usize) -> u64) {
    let argument = match slot(nr) {
        SLOT_BPF => {
            let command = arg(0);
            if !is_bpf_load(command) {
                return;
            }
            command as u32
        }
        SLOT_FINIT_MODULE => arg(0) as u32,
        _ => 0,
    };
    if caller.may_act(Class::KernelLoad) {
        let header = caller.header(KIND_KERNEL_LOAD);
        send_urgent(Class::KernelLoad, &Act { header, call: call_of(nr), argument });
    }
}
