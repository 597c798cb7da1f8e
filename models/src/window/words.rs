//! Paths, addresses and flags to the classes and words that a window holds.

use core::net::IpAddr;

use crate::schema::LOLBINS;

pub(super) const SYSTEM_DIRS: [&str; 8] =
    ["/etc/", "/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/", "/boot/", "/var/log/"];
pub(super) const PROGRAM_DIRS: [&str; 6] =
    ["/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/", "/usr/local/bin/", "/usr/libexec/"];
pub(super) const SHELLS: [&str; 9] = ["sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "busybox", "tcsh"];
/// Folders in which everyone may make files.
pub(super) const TEMPORARY_DIRS: [&str; 4] = ["/tmp/", "/var/tmp/", "/dev/shm/", "/run/user/"];
/// Kinds of `io_uring` operations worth naming: number and name.
const OPERATIONS: [(u32, &str); 11] = [
    (1, "readv"),
    (2, "writev"),
    (9, "sendmsg"),
    (16, "connect"),
    (18, "openat"),
    (22, "read"),
    (23, "write"),
    (26, "send"),
    (28, "openat2"),
    (35, "renameat"),
    (36, "unlinkat"),
];
/// `CLONE_NEW*` bits and their names.
const NAMESPACES: [(u64, &str); 8] = [
    (0x80, "time"),
    (0x0002_0000, "mount"),
    (0x0200_0000, "cgroup"),
    (0x0400_0000, "uts"),
    (0x0800_0000, "ipc"),
    (0x1000_0000, "user"),
    (0x2000_0000, "pid"),
    (0x4000_0000, "net"),
];

/// The process whose file in `/proc` this is, and which of its files.
pub(super) fn process_file(path: &str) -> (Option<u32>, &str) {
    let rest = path.strip_prefix("/proc/").unwrap_or_default();
    let (process, file) = rest.split_once('/').unwrap_or_default();
    (process.parse().ok(), file)
}

/// The tool of the watch list that a path names; python3.11 counts as python.
pub(super) fn tool(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is = |tool: &&str| {
        name.strip_prefix(*tool).is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '.'))
    };
    LOLBINS.into_iter().find(is)
}

/// The amount and all its tenfolds.
pub(super) fn decades(from: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(from), |decade| decade.checked_mul(10))
}

pub(super) fn shown(path: &str) -> &str {
    if path.is_empty() { "something" } else { path }
}

pub(super) fn namespaces(flags: u64) -> String {
    let names: Vec<_> =
        NAMESPACES.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    names.join(", ")
}

pub(super) fn operations(bits: u64) -> String {
    let names: Vec<_> =
        OPERATIONS.iter().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| *name).collect();
    if names.is_empty() { "of other kinds".to_owned() } else { names.join(", ") }
}

/// Shannon entropy of a path's bytes, bits per byte.
pub(super) fn entropy(path: &str) -> f32 {
    let mut counts = [0_u16; 256];
    for byte in path.bytes() {
        counts[usize::from(byte)] += 1;
    }
    #[allow(clippy::cast_precision_loss, reason = "a path has at most 256 bytes")]
    let total = path.len().max(1) as f32;
    counts.iter().filter(|n| **n > 0).map(|n| f32::from(*n) / total).map(|share| -share * share.log2()).sum()
}

/// RFC 1918 for IPv4, unique local (RFC 4193) for IPv6.
pub(super) fn is_private(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.is_private(),
            None => v6.segments()[0] & 0xfe00 == 0xfc00,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_mapped_and_unique_local_addresses_are_private() {
        for private in ["10.1.2.3", "::ffff:192.168.0.1", "fd00::1"] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in ["127.0.0.1", "8.8.8.8", "2001:db8::1"] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }
}
