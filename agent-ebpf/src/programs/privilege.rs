//! Attempts to become user id 0, and code that enters the kernel.

use agent_ebpf::{
    acts::is_bpf_load,
    records::{Act, Class, KIND_KERNEL_LOAD, KIND_PRIVILEGE},
};

use crate::{
    call_layer,
    shared::{call_of, caller, send_urgent, slot},
};

const SLOT_SETUID: u16 = 105;
const SLOT_SETREUID: u16 = 113;
const SLOT_SETFSUID: u16 = 122;
const SLOT_FINIT_MODULE: u16 = 313;
const SLOT_BPF: u16 = 321;

call_layer!(become_btf, become_raw, become_tp, become_root);
call_layer!(load_btf, load_raw, load_tp, load);

/// `setuid`, `setreuid`, `setresuid` and `setfsuid` with user id 0, by a user that is not.
#[inline(always)]
fn become_root(nr: u64, arg: impl Fn(usize) -> u64) {
    let zero = match slot(nr) {
        SLOT_SETUID | SLOT_SETFSUID => arg(0) as u32 == 0,
        SLOT_SETREUID => arg(0) as u32 == 0 || arg(1) as u32 == 0,
        _ => arg(0) as u32 == 0 || arg(1) as u32 == 0 || arg(2) as u32 == 0,
    };
    if !zero || aya_ebpf::helpers::bpf_get_current_uid_gid() as u32 == 0 {
        return;
    }
    let Some(caller) = caller() else { return };
    if caller.may_act(Class::Privilege) {
        let header = caller.header(KIND_PRIVILEGE);
        send_urgent(Class::Privilege, &Act { header, call: call_of(nr), argument: 0 });
    }
}

/// `init_module`, `finit_module`, `kexec_load`, `kexec_file_load`, and `bpf` where it loads or attaches.
#[inline(always)]
fn load(nr: u64, arg: impl Fn(usize) -> u64) {
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
    let Some(caller) = caller() else { return };
    if caller.may_act(Class::KernelLoad) {
        let header = caller.header(KIND_KERNEL_LOAD);
        send_urgent(Class::KernelLoad, &Act { header, call: call_of(nr), argument });
    }
}
