//! The injection layer: a process takes hold of another one or writes into its memory.

use agent_ebpf::{
    acts::is_injection,
    records::{Class, Inject, KIND_INJECT},
};

use crate::{
    call::{call_of, slot},
    call_layer,
    shared::{Caller, send_urgent},
};

const SLOT_PTRACE: u16 = 101;

call_layer!(inject_btf, inject_raw, inject_tp, inject);

/// `ptrace(request, pid, ...)` and `process_vm_writev(pid, ...)`.
#[inline(always)]
fn inject(caller: Caller, nr: u64, arg: impl Fn(usize) -> u64) {
    let (victim, request) = if slot(nr) == SLOT_PTRACE {
        let request = arg(0);
        if !is_injection(request) {
            return;
        }
        (arg(1) as u32, request)
    } else {
        (arg(0) as u32, 0)
    };
    if victim != caller.tgid && caller.may_act(Class::Injection) {
        let header = caller.header(KIND_INJECT);
        send_urgent(Class::Injection, &Inject { header, call: call_of(nr), victim, request });
    }
}
