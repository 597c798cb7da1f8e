//! Which arguments make a call worth a record: tracing requests, namespaces, `bpf` commands, paths of memory.
//!
//! Written so that the kernel's verifier accepts it: fixed lengths, no pointers inside tables, no library calls.

use core::hint;

use crate::records::PATH_LEN;
use crate::sensitive::{Head, is_process_memory};

/// `CLONE_NEWNS`, `CGROUP`, `UTS`, `IPC`, `USER`, `PID`, `NET` and `TIME`.
pub const NAMESPACES: u64 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000 | 0x80;
/// The name that a control group's escape hatch has.
const RELEASE_AGENT: &[u8; 13] = b"release_agent";
/// `O_WRONLY | O_RDWR`, the same on x86 and ARM.
pub const WRITES: u32 = 3;
/// `O_TRUNC`, the same on x86 and ARM.
pub const TRUNCATES: u32 = 0o1000;

/// Whether a `ptrace` request takes hold of another process or writes into it.
#[inline(always)]
#[must_use]
pub const fn is_injection(request: u64) -> bool {
    // POKETEXT, POKEDATA, POKEUSR, SETREGS, SETFPREGS, ATTACH, SETREGSET, SEIZE.
    matches!(request, 4 | 5 | 6 | 13 | 15 | 16 | 0x4205 | 0x4206)
}

/// Whether a `bpf` command puts code into the kernel or attaches it.
#[inline(always)]
#[must_use]
pub const fn is_bpf_load(command: u64) -> bool {
    // PROG_LOAD, PROG_ATTACH, RAW_TRACEPOINT_OPEN, LINK_CREATE.
    matches!(command, 5 | 8 | 17 | 28)
}

/// Whether a mode of `fallocate` takes content away: punching, collapsing or zeroing a range.
#[inline(always)]
#[must_use]
pub const fn is_erasure(mode: u64) -> bool {
    mode & (0x02 | 0x08 | 0x10) != 0
}

/// The process whose memory `/proc/<pid>/mem` or `/proc/<pid>/task/<tid>/mem` is; `None` for other paths and for the
/// caller's own (`self`). `len` is the path's length without its NUL.
#[inline(always)]
#[must_use]
pub fn memory_of(head: Head, path: &[u8; PATH_LEN], len: usize) -> Option<u32> {
    const START: usize = b"/proc/".len();
    if !is_process_memory(head, path, len) {
        return None;
    }
    let mut pid = 0_u32;
    let mut at = START;
    while at < START + 11 {
        let digit = path[at].wrapping_sub(b'0');
        if digit > 9 {
            return if (path[at] == b'/') & (at > START) { Some(pid) } else { None };
        }
        pid = pid.wrapping_mul(10).wrapping_add(u32::from(digit));
        at += 1;
    }
    None
}

/// Whether a path of `len` bytes without its NUL ends in `release_agent`.
#[inline(always)]
#[must_use]
pub fn is_release_agent(path: &[u8; PATH_LEN], len: usize) -> bool {
    let Some(start) = len.checked_sub(RELEASE_AGENT.len()) else { return false };
    if start >= PATH_LEN - RELEASE_AGENT.len() {
        return false;
    }
    // The compiler must not drop the masks, which older verifiers want to see.
    let start = hint::black_box(start);
    let mut differing = 0;
    let mut at = 0;
    while at < RELEASE_AGENT.len() {
        differing |= path[(start + at) % PATH_LEN] ^ RELEASE_AGENT[at];
        at += 1;
    }
    differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensitive::head;

    fn path(text: &str) -> [u8; PATH_LEN] {
        let mut bytes = [0; PATH_LEN];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        bytes
    }

    #[test]
    fn memory_is_told_from_its_neighbours() {
        for (text, victim) in [
            ("/proc/17/mem", Some(17)),
            ("/proc/4194304/mem", Some(4_194_304)),
            ("/proc/self/mem", None),
            ("/proc//mem", None),
            ("/proc/17/maps", None),
            ("/proc/17/memory", None),
            ("/proc/17/task/18/mem", Some(17)),
            ("/proc/17/task/18/maps", None),
            ("/proc/17/mem2", None),
            ("/proc/123456789012/mem", None),
            ("proc/17/mem", None),
        ] {
            assert_eq!(memory_of(head(&path(text)), &path(text), text.len()), victim, "{text}");
        }
    }

    #[test]
    fn only_the_end_of_a_path_is_a_release_agent() {
        for (text, expected) in [
            ("/sys/fs/cgroup/rdma/release_agent", true),
            ("release_agent", true),
            ("elease_agent", false),
            ("/tmp/release_agent.bak", false),
            ("", false),
        ] {
            assert_eq!(is_release_agent(&path(text), text.len()), expected, "{text}");
        }
        assert!(!is_release_agent(&[b'x'; PATH_LEN], PATH_LEN), "a path without an end");
    }

    #[test]
    fn harmless_requests_are_not_reported() {
        // TRACEME, PEEKTEXT, CONT; MAP_CREATE, MAP_LOOKUP.
        assert!([0, 1, 7].iter().all(|request| !is_injection(*request)));
        assert!([0, 1].iter().all(|command| !is_bpf_load(*command)));
        assert!(is_injection(16) && is_injection(0x4206) && is_bpf_load(5));
        assert!(!is_erasure(0) && !is_erasure(1) && is_erasure(3), "KEEP_SIZE alone takes nothing away");
        assert_eq!(NAMESPACES & 0x0001_0f00, 0, "threads and shared memory are no namespaces");
    }
}
