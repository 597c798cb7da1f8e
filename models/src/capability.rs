//! Names of Linux capabilities, by their numbers in `capability.h`.

/// As of Linux 5.9; none was added since.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The names of the bits that are set; a number that has no name yet is `CAP_OTHER`.
pub(crate) fn names(bits: u64) -> impl Iterator<Item = &'static str> {
    let known = NAMES.iter().enumerate().filter(move |(at, _)| bits >> at & 1 != 0).map(|(_, name)| *name);
    known.chain((bits >> NAMES.len() != 0).then_some("CAP_OTHER"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_the_numbers_of_the_kernels_header() {
        assert_eq!(names(1 << 19 | 1 << 39).collect::<Vec<_>>(), ["CAP_SYS_PTRACE", "CAP_BPF"]);
        assert_eq!(names(1 << 0 | 1 << 40).collect::<Vec<_>>(), ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"]);
        assert_eq!(names(1 << 41 | 1 << 50).collect::<Vec<_>>(), ["CAP_OTHER"]);
        assert_eq!(names(0).count(), 0);
    }
}
