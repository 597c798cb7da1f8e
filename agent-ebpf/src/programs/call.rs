//! Which system call it is, and what it was given, also where a 32-bit program makes it: with other numbers, in other
//! registers, and with half as wide words in memory.

use core::hint;

use agent_ebpf::records::{
    CALL_PLACES, NARROW_IN_OLD_TASK, NARROW_IN_REGISTERS, NARROW_IN_TASK, NATIVE_CALLS, NR_SHARED,
    OFFSET_UNKNOWN, SOCKETCALLS, UNMAPPED,
};
use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_task, generated::bpf_get_current_task_btf},
    macros::map,
    maps::ProgramArray,
};

use crate::shared::{Caller, TASK_PID, TASK_TGID, caller, read_kernel, read_user};

// A program array takes programs of one type only, so each dispatcher has its own.
#[map]
pub(crate) static CALLS_BTF: ProgramArray = ProgramArray::with_max_entries(CALL_PLACES as u32, 0);
#[map]
pub(crate) static CALLS_RAW: ProgramArray = ProgramArray::with_max_entries(CALL_PLACES as u32, 0);

#[unsafe(no_mangle)]
static SLOTS: [Global<u16>; CALL_PLACES] = [const { Global::new(UNMAPPED) }; CALL_PLACES];
#[unsafe(no_mangle)]
static ARG_OFFSETS: [Global<u32>; 6] = [const { Global::new(OFFSET_UNKNOWN) }; 6];
#[unsafe(no_mangle)]
static NARROW_ARG_OFFSETS: [Global<u32>; 6] = [const { Global::new(OFFSET_UNKNOWN) }; 6];
#[unsafe(no_mangle)]
static NARROW_IN: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NARROW_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NARROW_BIT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCKETCALL: Global<u32> = Global::new(u32::MAX);
#[unsafe(no_mangle)]
static SOCKETCALL_PLACES: [Global<u16>; SOCKETCALLS] = [const { Global::new(0) }; SOCKETCALLS];
#[unsafe(no_mangle)]
pub(crate) static SEND_WITHOUT_ADDRESS: Global<u32> = Global::new(u32::MAX);

/// A system call that begins.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    /// Its place: the native number; of a 32-bit call [`NATIVE_CALLS`] more than its number, unless all architectures agree
    /// on that.
    pub(crate) nr: u64,
    /// Who makes it.
    pub(crate) caller: Caller,
    registers: Registers,
    /// By a 32-bit call.
    narrow: bool,
    /// Where the arguments of an i386 call on a socket are; zero for registers.
    list: u64,
}

impl Call {
    /// What the raw tracepoint gave, unless the agent makes the call itself. `typed` tells that the verifier knows the type of
    /// `registers`.
    #[inline(always)]
    pub(crate) fn new(registers: u64, nr: u64, typed: bool) -> Option<Self> {
        let registers = Registers { at: registers, typed };
        let (narrow, caller) = is_narrow(registers);
        let caller = caller?;
        if !narrow {
            let nr = if nr < NATIVE_CALLS as u64 { nr } else { CALL_PLACES as u64 };
            return Some(Self { nr, caller, registers, narrow: false, list: 0 });
        }
        let nr = nr & 0xffff_ffff;
        if nr == u64::from(SOCKETCALL.load()) {
            // The mask is for older verifiers, which forget what they know of a value kept on the stack.
            let which = hint::black_box(registers.narrow(0) as usize) & (SOCKETCALLS - 1);
            let nr = u64::from(SOCKETCALL_PLACES[which].load());
            return Some(Self { nr, caller, registers, narrow: true, list: registers.narrow(1) });
        }
        let nr = if nr >= NATIVE_CALLS as u64 {
            CALL_PLACES as u64
        } else if nr >= NR_SHARED {
            nr
        } else {
            nr + NATIVE_CALLS as u64
        };
        Some(Self { nr, caller, registers, narrow: true, list: 0 })
    }

    /// An argument. What cannot be read is zero.
    #[inline(always)]
    pub(crate) fn arg(self, index: usize) -> u64 {
        if !self.narrow {
            self.registers.arg(index)
        } else if self.list == 0 {
            self.registers.narrow(index)
        } else {
            read_user::<u32>(self.list + 4 * index as u64).unwrap_or(0).into()
        }
    }
}

/// Whether the words in memory that a call points to are 32 bits wide. Calls whose number all architectures agree on are
/// not told apart: what they point to is the same for both.
#[inline(always)]
pub(crate) fn is_narrow_place(nr: u64) -> bool {
    nr >= NATIVE_CALLS as u64
}

/// Words of the process's memory as a call of this number has them there.
#[inline(always)]
pub(crate) fn read_words<const N: usize>(nr: u64, address: u64) -> Option<[u64; N]> {
    if !is_narrow_place(nr) {
        return read_user(address);
    }
    let half = read_user::<[u32; N]>(address)?;
    let mut words = [0; N];
    let mut at = 0;
    while at < N {
        words[at] = u64::from(half[at]);
        at += 1;
    }
    Some(words)
}

/// Whether the kernel says that this is a 32-bit call, and whose it is. Where the mark lies in a task whose type is known the
/// numbers of its thread are read there as well: each helper that is called costs as much as all other steps together.
#[inline(always)]
fn is_narrow(registers: Registers) -> (bool, Option<Caller>) {
    let at = u64::from(NARROW_AT.load());
    // SAFETY: the helpers take no arguments. `typed` is for what has a known type.
    let (word, caller) = unsafe {
        match NARROW_IN.load() {
            NARROW_IN_REGISTERS if registers.typed => (typed::<u32>(registers.at + at), caller()),
            NARROW_IN_REGISTERS => (read_kernel(registers.at + at).unwrap_or(0), caller()),
            NARROW_IN_TASK => {
                let task = bpf_get_current_task_btf() as u64;
                let tgid = typed(task + u64::from(TASK_TGID.load()));
                let tid = typed(task + u64::from(TASK_PID.load()));
                (typed(task + at), Caller { tgid, tid }.unless_own())
            }
            NARROW_IN_OLD_TASK => (read_kernel(bpf_get_current_task() + at).unwrap_or(0), caller()),
            _ => (0, caller()),
        }
    };
    (word & NARROW_BIT.load() != 0, caller)
}

/// A value in kernel memory of which the verifier knows the type: read without a helper.
///
/// # Safety
///
/// `at` is an offset in such a type, which the kernel checks when it loads the program.
#[inline(always)]
unsafe fn typed<T>(at: u64) -> T {
    // SAFETY: by this function's contract; a fault when it runs gives zero.
    unsafe { (at as *const T).read_volatile() }
}

/// The registers of a process, saved on its way into the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Registers {
    at: u64,
    /// The verifier knows their type.
    typed: bool,
}

impl Registers {
    /// At this address, of which the verifier knows nothing.
    #[inline(always)]
    pub(crate) fn untyped(at: u64) -> Self {
        Self { at, typed: false }
    }

    /// Where 64-bit calls have their arguments.
    #[inline(always)]
    pub(crate) fn arg(self, index: usize) -> u64 {
        let at = self.at + u64::from(ARG_OFFSETS[index].load());
        if self.typed {
            // SAFETY: `at` is in the registers.
            unsafe { typed(at) }
        } else {
            read_kernel(at).unwrap_or(0)
        }
    }

    /// Where 32-bit calls have theirs.
    #[inline(always)]
    fn narrow(self, index: usize) -> u64 {
        read_kernel::<u32>(self.at + u64::from(NARROW_ARG_OFFSETS[index].load())).unwrap_or(0).into()
    }
}

/// The lower half of a value, of which the verifier knows nothing more. What an older one knows may be impossible, on ways that are
/// never taken and that it follows all the same; an address that is made of that is refused. It forgets what is written as a
/// word and read as half of one.
#[inline(always)]
fn unknown(value: u64) -> u32 {
    let mut kept = value;
    let at = &raw mut kept;
    // SAFETY: `at` points to a variable, and BPF has the lower half first on the processors that we build for.
    unsafe {
        at.write_volatile(value);
        at.cast::<u32>().read_volatile()
    }
}

/// The schema slot of a call by its place.
#[inline(always)]
pub(crate) fn slot(nr: u64) -> u16 {
    if nr >= CALL_PLACES as u64 {
        return UNMAPPED;
    }
    let index = unknown(nr) as usize & (CALL_PLACES - 1);
    SLOTS[index].load()
}

/// How records name a call: by its slot, or by its number where all architectures agree on it.
#[inline(always)]
pub(crate) fn call_of(nr: u64) -> u32 {
    if nr >= NR_SHARED && !is_narrow_place(nr) { nr as u32 } else { u32::from(slot(nr)) }
}

/// Where a classic tracepoint of a system call keeps its number.
pub(crate) const CLASSIC_NR: usize = 8;
/// Where it keeps its arguments.
pub(crate) const CLASSIC_ARGS: usize = 16;

/// A layer's three programs: tail-called behind either dispatcher, and on the classic tracepoints of its calls, which
/// 32-bit calls do not reach. The function gets who calls, the call's place and a way to read arguments.
#[macro_export]
macro_rules! call_layer {
    ($btf:ident, $raw:ident, $classic:ident, $run:path) => {
        #[aya_ebpf::macros::btf_tracepoint(function = "sys_enter")]
        fn $btf(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            if let Some(call) = $crate::call::Call::new(ctx.arg(0), ctx.arg(1), true) {
                $run(call.caller, call.nr, |i| call.arg(i));
            }
            0
        }

        #[aya_ebpf::macros::raw_tracepoint(tracepoint = "sys_enter")]
        fn $raw(ctx: aya_ebpf::programs::RawTracePointContext) -> i32 {
            if let Some(call) = $crate::call::Call::new(ctx.arg(0), ctx.arg(1), false) {
                $run(call.caller, call.nr, |i| call.arg(i));
            }
            0
        }

        #[aya_ebpf::macros::tracepoint]
        fn $classic(ctx: aya_ebpf::programs::TracePointContext) -> u32 {
            use $crate::call::{CLASSIC_ARGS, CLASSIC_NR};
            // SAFETY: the number is a 32-bit field of every system call's tracepoint, arguments are 64-bit fields.
            let nr = unsafe { ctx.read_at::<u32>(CLASSIC_NR) };
            if let (Ok(nr), Some(caller)) = (nr, $crate::shared::caller()) {
                // SAFETY: as above.
                $run(caller, u64::from(nr), |i| {
                    unsafe { ctx.read_at::<u64>(CLASSIC_ARGS + 8 * i) }.unwrap_or(0)
                });
            }
            0
        }
    };
}
