//! How the kernel marks the calls of 32-bit programs, for the kernel side to find them.

use agent_ebpf::records::{
    CALL_PLACES, NARROW_IN_OLD_TASK, NARROW_IN_REGISTERS, NARROW_IN_TASK, NATIVE_CALLS, SOCKETCALLS, UNMAPPED,
};
use models::syscalls::{self, Arch, slot_table};

use super::btf::Types;

/// Where the mark is; with `at` and `bit` zero for nowhere, so that all calls count as 64-bit ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// `NARROW_IN_`, or 0.
    pub(super) place: u32,
    /// Offset of the 32-bit word.
    pub(super) at: u32,
    /// In that word.
    pub(super) bit: u32,
}

impl Mark {
    /// As this kernel has it.
    pub(super) fn of(arch: Arch, types: Option<&Types<'_>>) -> Self {
        match arch.narrow() {
            // `pstate` in `struct pt_regs`, and PSR_MODE32_BIT.
            Arch::Arm => Self { place: NARROW_IN_REGISTERS, at: 264, bit: 0x10 },
            _ => Self::in_task(types).unwrap_or_default(),
        }
    }

    /// TS_COMPAT of x86-64, which is set also when a 64-bit program makes a 32-bit call.
    fn in_task(types: Option<&Types<'_>>) -> Option<Self> {
        const TS_COMPAT: u32 = 2;
        let types = types?;
        let info = types.offset_of("task_struct", "thread_info")?;
        let status = types.offset_of("thread_info", "status")?;
        let typed = types.has_function("bpf_get_current_task_btf");
        let place = if typed { NARROW_IN_TASK } else { NARROW_IN_OLD_TASK };
        Some(Self { place, at: info + status, bit: TS_COMPAT })
    }
}

/// Where 32-bit calls have their arguments in `struct pt_regs`: `ebx`, `ecx`, `edx`, `esi`, `edi`, `ebp`.
#[cfg(target_arch = "x86_64")]
pub(super) const ARG_OFFSETS: [u32; 6] = [40, 88, 96, 104, 112, 32];
/// `r0` to `r5`, where the 64-bit calls have theirs.
#[cfg(target_arch = "aarch64")]
pub(super) const ARG_OFFSETS: [u32; 6] = super::ARG_OFFSETS;

/// The slot of each place of a call.
pub(super) fn slots(arch: Arch) -> [u16; CALL_PLACES] {
    let mut slots = [UNMAPPED; CALL_PLACES];
    let (native, narrow) = slots.split_at_mut(NATIVE_CALLS);
    native.copy_from_slice(&slot_table(arch));
    narrow.copy_from_slice(&slot_table(arch.narrow()));
    slots
}

/// The places of a call of the schema.
pub(super) fn places(arch: Arch, name: &str) -> impl Iterator<Item = u32> {
    let narrow = syscalls::numbers(arch.narrow(), name).map(narrow_place);
    syscalls::numbers(arch, name).chain(narrow).map(u32::from)
}

/// The number of the call that stands for all on sockets, and the places of those; an i386 matter.
pub(super) fn socketcall(arch: Arch) -> (u32, [u16; SOCKETCALLS]) {
    match arch.narrow() {
        Arch::I386 => (
            syscalls::SOCKETCALL.into(),
            syscalls::SOCKETCALLS.map(|number| if number == 0 { NO_CALL } else { narrow_place(number) }),
        ),
        _ => (u32::MAX, [NO_CALL; SOCKETCALLS]),
    }
}

/// The place of the call that sends without an address.
pub(super) fn send_without_address(arch: Arch) -> u32 {
    narrow_place(syscalls::send_without_address(arch)).into()
}

/// A place that no call has.
#[allow(clippy::cast_possible_truncation, reason = "a constant, 1024")]
const NO_CALL: u16 = CALL_PLACES as u16;

#[allow(clippy::cast_possible_truncation, reason = "a constant, 512")]
fn narrow_place(number: u16) -> u16 {
    NATIVE_CALLS as u16 + number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_32_bit_call_has_a_place_of_its_own_and_the_slot_of_its_name() {
        let slots = slots(Arch::X86_64);
        let open = syscalls::slot("open").unwrap();
        assert!(places(Arch::X86_64, "open").eq([2, 512 + 5]));
        assert_eq!((slots[2], slots[512 + 5]), (open, open));
        assert!(places(Arch::Aarch64, "open").eq([512 + 5]), "64-bit ARM has none");
        let (number, stands_for) = socketcall(Arch::X86_64);
        assert_eq!((number, slots[usize::from(stands_for[3])]), (102, syscalls::slot("connect").unwrap()));
        assert_eq!((stands_for[0], u32::from(stands_for[9])), (NO_CALL, send_without_address(Arch::X86_64)));
        assert_eq!(socketcall(Arch::Aarch64).0, u32::MAX);
    }

    #[test]
    fn this_kernel_tells_where_its_mark_is() {
        let Ok(btf) = std::fs::read(super::super::VMLINUX_BTF) else { return };
        let mark = Mark::of(super::super::ARCH, Types::parse(&btf).as_ref());
        assert!(mark.place == NARROW_IN_REGISTERS || mark.place == NARROW_IN_TASK, "{mark:?}");
        assert!(mark.at > 0 && mark.bit > 0, "{mark:?}");
        assert_eq!(Mark::of(Arch::X86_64, None), Mark::default());
    }
}
