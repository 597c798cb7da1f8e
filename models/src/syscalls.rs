//! Native system call numbers to the schema's slots, by name, so that a baseline means the same on every architecture.
//!
//! A slot is the x86-64 number of a call, 0 to 334. A newer call shares the slot of the older one that does the same
//! work for the program ([`NEWER`]); those without a relative stay unmapped and are counted apart.

mod narrow;

use crate::schema::SYSCALL_SLOTS;

pub use narrow::{SOCKETCALL, SOCKETCALLS};

/// Numbers that a slot table covers.
pub const NATIVE_CALLS: usize = 512;
/// In a slot table: this number has no slot.
pub const UNMAPPED: u16 = u16::MAX;

/// Whose system call numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit programs on x86-64.
    I386,
    /// 32-bit programs on 64-bit ARM.
    Arm,
}

impl Arch {
    /// Whose numbers the 32-bit programs of a 64-bit kernel use.
    #[must_use]
    pub fn narrow(self) -> Self {
        match self {
            Self::X86_64 | Self::I386 => Self::I386,
            Self::Aarch64 | Self::Arm => Self::Arm,
        }
    }

    /// Number and slot of each call; `None` where both are the same.
    fn numbers(self) -> Option<&'static [(u16, u16)]> {
        match self {
            Self::X86_64 => None,
            Self::Aarch64 => Some(AARCH64),
            Self::I386 => Some(narrow::I386),
            Self::Arm => Some(narrow::ARM),
        }
    }
}

/// The slot of every native number below 512, or [`UNMAPPED`].
///
/// ```
/// use models::syscalls::{Arch, slot_table};
/// // `getppid` is 110 on x86-64 and 173 on ARM, and means the same.
/// assert_eq!(slot_table(Arch::X86_64)[110], 110);
/// assert_eq!(slot_table(Arch::Aarch64)[173], 110);
/// ```
#[must_use]
pub fn slot_table(arch: Arch) -> [u16; NATIVE_CALLS] {
    let mut table = [UNMAPPED; NATIVE_CALLS];
    match arch.numbers() {
        None => (0..SYSCALL_SLOTS as u16).for_each(|slot| table[usize::from(slot)] = slot),
        Some(numbers) => numbers.iter().for_each(|&(number, slot)| table[usize::from(number)] = slot),
    }
    // Numbers from 424 on are the same everywhere.
    for &(number, _, relative) in NEWER {
        table[usize::from(number)] = slot(relative).unwrap_or(UNMAPPED);
    }
    table
}

/// The name of a slot's call; `unknown` beyond the schema.
#[must_use]
pub fn name(slot: usize) -> &'static str {
    NAMES.get(slot).copied().unwrap_or("unknown")
}

/// The slot of a call of this name.
#[must_use]
pub fn slot(name: &str) -> Option<u16> {
    NAMES.iter().position(|&n| n == name).and_then(|slot| u16::try_from(slot).ok())
}

/// The slot of a call by any name that Linux has given it: ours, that of a newer call ([`NEWER`]), or an older or
/// 32-bit one. `None` for a name that means nothing here.
///
/// ```
/// use models::syscalls::{slot, slot_of_any};
/// assert_eq!(slot_of_any("stat64"), slot("stat"));
/// assert_eq!(slot_of_any("clock_gettime64"), slot("clock_gettime"));
/// ```
#[must_use]
pub fn slot_of_any(name: &str) -> Option<u16> {
    let newer = || NEWER.iter().find(|(_, newer, _)| *newer == name).map(|(_, _, relative)| *relative);
    let alias = || ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, relative)| *relative);
    slot(name).or_else(|| slot(newer().or_else(alias)?)).or_else(|| {
        let stripped = ["_time64", "64", "32"].into_iter().find_map(|suffix| name.strip_suffix(suffix))?;
        slot(stripped)
    })
}

/// Names of 32-bit and abandoned calls that a suffix does not explain, with the call that does the same work.
const ALIASES: &[(&str, &str)] = &[
    ("_llseek", "lseek"),
    ("_newselect", "select"),
    ("arm_fadvise64_64", "fadvise64"),
    ("arm_sync_file_range", "sync_file_range"),
    ("fadvise64_64", "fadvise64"),
    ("fcntl64", "fcntl"),
    ("mmap2", "mmap"),
    ("fstatat64", "newfstatat"),
    ("nice", "setpriority"),
    ("oldfstat", "fstat"),
    ("oldlstat", "lstat"),
    ("oldolduname", "uname"),
    ("oldstat", "stat"),
    ("olduname", "uname"),
    ("pread", "pread64"),
    ("pwrite", "pwrite64"),
    ("readdir", "getdents"),
    ("recv", "recvfrom"),
    ("send", "sendto"),
    ("sendfile64", "sendfile"),
    ("sigaction", "rt_sigaction"),
    ("signal", "rt_sigaction"),
    ("sigpending", "rt_sigpending"),
    ("sigprocmask", "rt_sigprocmask"),
    ("sigreturn", "rt_sigreturn"),
    ("sigsuspend", "rt_sigsuspend"),
    ("socketcall", "socket"),
    ("stime", "settimeofday"),
    ("sync_file_range2", "sync_file_range"),
    ("ugetrlimit", "getrlimit"),
    ("umount", "umount2"),
    ("waitpid", "wait4"),
];

/// The numbers of the call `name` on `arch`: none where it does not exist or is newer than the schema, and for 32-bit
/// programs often several, for ids, offsets and times of either width.
pub fn numbers(arch: Arch, name: &str) -> impl Iterator<Item = u16> {
    let slot = slot(name);
    let same = slot.filter(|_| arch.numbers().is_none());
    let listed = arch.numbers().unwrap_or_default().iter().filter(move |&&(_, s)| Some(s) == slot);
    same.into_iter().chain(listed.map(|&(number, _)| number))
}

/// The number of a 32-bit call that sends without an address, under the slot of `sendto`.
#[must_use]
pub fn send_without_address(arch: Arch) -> u16 {
    if arch.narrow() == Arch::I386 { narrow::I386_SEND } else { narrow::ARM_SEND }
}

/// Calls above the schema's last slot: number, name, and the older call whose slot they share.
///
/// The older call is the one that a program used for the same purpose before. `io_uring_setup` and its companions
/// share the slots of the older asynchronous interface, whose use is as rare on a gateway. Mounts by file descriptor
/// share `mount`, because they are one when it comes to an escape.
pub const NEWER: &[(u16, &str, &str)] = &[
    (424, "pidfd_send_signal", "kill"),
    (425, "io_uring_setup", "io_setup"),
    (426, "io_uring_enter", "io_submit"),
    (427, "io_uring_register", "io_cancel"),
    (428, "open_tree", "mount"),
    (429, "move_mount", "mount"),
    (430, "fsopen", "mount"),
    (431, "fsconfig", "mount"),
    (432, "fsmount", "mount"),
    (433, "fspick", "mount"),
    (434, "pidfd_open", "openat"),
    (435, "clone3", "clone"),
    (436, "close_range", "close"),
    (437, "openat2", "openat"),
    (438, "pidfd_getfd", "dup"),
    (439, "faccessat2", "faccessat"),
    (440, "process_madvise", "madvise"),
    (441, "epoll_pwait2", "epoll_pwait"),
    (442, "mount_setattr", "mount"),
    (443, "quotactl_fd", "quotactl"),
    (447, "memfd_secret", "memfd_create"),
    (449, "futex_waitv", "futex"),
    (450, "set_mempolicy_home_node", "set_mempolicy"),
    (452, "fchmodat2", "fchmodat"),
    (454, "futex_wake", "futex"),
    (455, "futex_wait", "futex"),
    (456, "futex_requeue", "futex"),
];

/// Names of the slots.
#[rustfmt::skip]
const NAMES: [&str; SYSCALL_SLOTS] = [
    "read", "write", "open", "close", "stat", "fstat", "lstat", "poll", "lseek", "mmap", "mprotect",
    "munmap", "brk", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "ioctl", "pread64", "pwrite64",
    "readv", "writev", "access", "pipe", "select", "sched_yield", "mremap", "msync", "mincore", "madvise",
    "shmget", "shmat", "shmctl", "dup", "dup2", "pause", "nanosleep", "getitimer", "alarm", "setitimer",
    "getpid", "sendfile", "socket", "connect", "accept", "sendto", "recvfrom", "sendmsg", "recvmsg",
    "shutdown", "bind", "listen", "getsockname", "getpeername", "socketpair", "setsockopt", "getsockopt",
    "clone", "fork", "vfork", "execve", "exit", "wait4", "kill", "uname", "semget", "semop", "semctl",
    "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "fcntl", "flock", "fsync", "fdatasync", "truncate",
    "ftruncate", "getdents", "getcwd", "chdir", "fchdir", "rename", "mkdir", "rmdir", "creat", "link",
    "unlink", "symlink", "readlink", "chmod", "fchmod", "chown", "fchown", "lchown", "umask",
    "gettimeofday", "getrlimit", "getrusage", "sysinfo", "times", "ptrace", "getuid", "syslog", "getgid",
    "setuid", "setgid", "geteuid", "getegid", "setpgid", "getppid", "getpgrp", "setsid", "setreuid",
    "setregid", "getgroups", "setgroups", "setresuid", "getresuid", "setresgid", "getresgid", "getpgid",
    "setfsuid", "setfsgid", "getsid", "capget", "capset", "rt_sigpending", "rt_sigtimedwait",
    "rt_sigqueueinfo", "rt_sigsuspend", "sigaltstack", "utime", "mknod", "uselib", "personality", "ustat",
    "statfs", "fstatfs", "sysfs", "getpriority", "setpriority", "sched_setparam", "sched_getparam",
    "sched_setscheduler", "sched_getscheduler", "sched_get_priority_max", "sched_get_priority_min",
    "sched_rr_get_interval", "mlock", "munlock", "mlockall", "munlockall", "vhangup", "modify_ldt",
    "pivot_root", "_sysctl", "prctl", "arch_prctl", "adjtimex", "setrlimit", "chroot", "sync", "acct",
    "settimeofday", "mount", "umount2", "swapon", "swapoff", "reboot", "sethostname", "setdomainname",
    "iopl", "ioperm", "create_module", "init_module", "delete_module", "get_kernel_syms", "query_module",
    "quotactl", "nfsservctl", "getpmsg", "putpmsg", "afs_syscall", "tuxcall", "security", "gettid",
    "readahead", "setxattr", "lsetxattr", "fsetxattr", "getxattr", "lgetxattr", "fgetxattr", "listxattr",
    "llistxattr", "flistxattr", "removexattr", "lremovexattr", "fremovexattr", "tkill", "time", "futex",
    "sched_setaffinity", "sched_getaffinity", "set_thread_area", "io_setup", "io_destroy", "io_getevents",
    "io_submit", "io_cancel", "get_thread_area", "lookup_dcookie", "epoll_create", "epoll_ctl_old",
    "epoll_wait_old", "remap_file_pages", "getdents64", "set_tid_address", "restart_syscall", "semtimedop",
    "fadvise64", "timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete",
    "clock_settime", "clock_gettime", "clock_getres", "clock_nanosleep", "exit_group", "epoll_wait",
    "epoll_ctl", "tgkill", "utimes", "vserver", "mbind", "set_mempolicy", "get_mempolicy", "mq_open",
    "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr", "kexec_load", "waitid",
    "add_key", "request_key", "keyctl", "ioprio_set", "ioprio_get", "inotify_init", "inotify_add_watch",
    "inotify_rm_watch", "migrate_pages", "openat", "mkdirat", "mknodat", "fchownat", "futimesat",
    "newfstatat", "unlinkat", "renameat", "linkat", "symlinkat", "readlinkat", "fchmodat", "faccessat",
    "pselect6", "ppoll", "unshare", "set_robust_list", "get_robust_list", "splice", "tee",
    "sync_file_range", "vmsplice", "move_pages", "utimensat", "epoll_pwait", "signalfd", "timerfd_create",
    "eventfd", "fallocate", "timerfd_settime", "timerfd_gettime", "accept4", "signalfd4", "eventfd2",
    "epoll_create1", "dup3", "pipe2", "inotify_init1", "preadv", "pwritev", "rt_tgsigqueueinfo",
    "perf_event_open", "recvmmsg", "fanotify_init", "fanotify_mark", "prlimit64", "name_to_handle_at",
    "open_by_handle_at", "clock_adjtime", "syncfs", "sendmmsg", "setns", "getcpu", "process_vm_readv",
    "process_vm_writev", "kcmp", "finit_module", "sched_setattr", "sched_getattr", "renameat2", "seccomp",
    "getrandom", "memfd_create", "kexec_file_load", "bpf", "execveat", "userfaultfd", "membarrier",
    "mlock2", "copy_file_range", "preadv2", "pwritev2", "pkey_mprotect", "pkey_alloc", "pkey_free", "statx",
    "io_pgetevents", "rseq",];

/// 64-bit ARM: native number and slot of the call with the same name.
#[rustfmt::skip]
const AARCH64: &[(u16, u16)] = &[
    (0, 206), (1, 207), (2, 209), (3, 210), (4, 208), (5, 188), (6, 189), (7, 190), (8, 191), (9, 192),
    (10, 193), (11, 194), (12, 195), (13, 196), (14, 197), (15, 198), (16, 199), (17, 79), (18, 212),
    (19, 290), (20, 291), (21, 233), (22, 281), (23, 32), (24, 292), (25, 72), (26, 294), (27, 254),
    (28, 255), (29, 16), (30, 251), (31, 252), (32, 73), (33, 259), (34, 258), (35, 263), (36, 266),
    (37, 265), (38, 264), (39, 166), (40, 165), (41, 155), (42, 180), (43, 137), (44, 138), (45, 76),
    (46, 77), (47, 285), (48, 269), (49, 80), (50, 81), (51, 161), (52, 91), (53, 268), (54, 260), (55, 93),
    (56, 257), (57, 3), (58, 153), (59, 293), (60, 179), (61, 217), (62, 8), (63, 0), (64, 1), (65, 19),
    (66, 20), (67, 17), (68, 18), (69, 295), (70, 296), (71, 40), (72, 270), (73, 271), (74, 289),
    (75, 278), (76, 275), (77, 276), (78, 267), (79, 262), (80, 5), (81, 162), (82, 74), (83, 75),
    (84, 277), (85, 283), (86, 286), (87, 287), (88, 280), (89, 163), (90, 125), (91, 126), (92, 135),
    (93, 60), (94, 231), (95, 247), (96, 218), (97, 272), (98, 202), (99, 273), (100, 274), (101, 35),
    (102, 36), (103, 38), (104, 246), (105, 175), (106, 176), (107, 222), (108, 224), (109, 225),
    (110, 223), (111, 226), (112, 227), (113, 228), (114, 229), (115, 230), (116, 103), (117, 101),
    (118, 142), (119, 144), (120, 145), (121, 143), (122, 203), (123, 204), (124, 24), (125, 146),
    (126, 147), (127, 148), (128, 219), (129, 62), (130, 200), (131, 234), (132, 131), (133, 130),
    (134, 13), (135, 14), (136, 127), (137, 128), (138, 129), (139, 15), (140, 141), (141, 140), (142, 169),
    (143, 114), (144, 106), (145, 113), (146, 105), (147, 117), (148, 118), (149, 119), (150, 120),
    (151, 122), (152, 123), (153, 100), (154, 109), (155, 121), (156, 124), (157, 112), (158, 115),
    (159, 116), (160, 63), (161, 170), (162, 171), (163, 97), (164, 160), (165, 98), (166, 95), (167, 157),
    (168, 309), (169, 96), (170, 164), (171, 159), (172, 39), (173, 110), (174, 102), (175, 107),
    (176, 104), (177, 108), (178, 186), (179, 99), (180, 240), (181, 241), (182, 242), (183, 243),
    (184, 244), (185, 245), (186, 68), (187, 71), (188, 70), (189, 69), (190, 64), (191, 66), (192, 220),
    (193, 65), (194, 29), (195, 31), (196, 30), (197, 67), (198, 41), (199, 53), (200, 49), (201, 50),
    (202, 43), (203, 42), (204, 51), (205, 52), (206, 44), (207, 45), (208, 54), (209, 55), (210, 48),
    (211, 46), (212, 47), (213, 187), (214, 12), (215, 11), (216, 25), (217, 248), (218, 249), (219, 250),
    (220, 56), (221, 59), (222, 9), (223, 221), (224, 167), (225, 168), (226, 10), (227, 26), (228, 149),
    (229, 150), (230, 151), (231, 152), (232, 27), (233, 28), (234, 216), (235, 237), (236, 239),
    (237, 238), (238, 256), (239, 279), (240, 297), (241, 298), (242, 288), (243, 299), (260, 61),
    (261, 302), (262, 300), (263, 301), (266, 305), (267, 306), (268, 308), (269, 307), (270, 310),
    (271, 311), (272, 312), (273, 313), (274, 314), (275, 315), (276, 316), (277, 317), (278, 318),
    (279, 319), (280, 321), (281, 322), (282, 323), (283, 324), (284, 325), (285, 326), (286, 327),
    (287, 328), (288, 329), (289, 330), (290, 331), (291, 332), (292, 333), (293, 334), (294, 320),];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_at_their_x86_64_numbers() {
        for (number, expected) in [(0, "read"), (2, "open"), (42, "connect"), (59, "execve"), (257, "openat")]
        {
            assert_eq!(name(usize::from(number)), expected);
            assert_eq!(slot(expected), Some(number));
        }
        assert_eq!(name(334), "rseq");
        assert_eq!(name(335), "unknown");
    }

    #[test]
    fn arm_numbers_map_by_name() {
        for (call, number) in
            [("openat", 56), ("close", 57), ("connect", 203), ("execve", 221), ("rseq", 293)]
        {
            assert!(numbers(Arch::Aarch64, call).eq([number]), "{call}");
            assert_eq!(slot_table(Arch::Aarch64)[usize::from(number)], slot(call).unwrap(), "{call}");
        }
        assert_eq!(numbers(Arch::Aarch64, "open").count(), 0);
        assert!(numbers(Arch::X86_64, "open").eq([2]));
        assert!(numbers(Arch::I386, "truncate").eq([92, 193]), "with an offset of either width");
        assert!(numbers(Arch::Arm, "sendto").eq([send_without_address(Arch::Aarch64), 290]));
    }

    #[test]
    fn every_relative_of_a_newer_call_exists() {
        for &(number, call, relative) in NEWER {
            assert!(usize::from(number) >= SYSCALL_SLOTS && slot(relative).is_some(), "{call}");
            for arch in [Arch::X86_64, Arch::Aarch64, Arch::I386, Arch::Arm] {
                assert_eq!(slot_table(arch)[usize::from(number)], slot(relative).unwrap(), "{call}");
            }
        }
    }

    #[test]
    fn numbers_without_a_call_are_unmapped() {
        assert_eq!(slot_table(Arch::X86_64)[400], UNMAPPED);
        assert_eq!(slot_table(Arch::Aarch64)[300], UNMAPPED);
    }

    #[test]
    fn every_alias_is_new_and_leads_to_a_slot() {
        for &(alias, relative) in ALIASES {
            assert!(slot(alias).is_none() && slot(relative).is_some(), "{alias}");
        }
        for (name, same) in [("getuid32", "getuid"), ("futex_time64", "futex"), ("openat2", "openat")] {
            assert_eq!(slot_of_any(name), slot(same), "{name}");
        }
        assert_eq!(slot_of_any("no_such_call"), None);
    }
}
