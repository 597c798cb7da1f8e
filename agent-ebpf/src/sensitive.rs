//! Paths whose opening is reported at once, however busy the device is.
//!
//! The match is on the text that the program passed, made absolute when it starts from a directory above one of these: a
//! link to one of these files, or a path with `..`, does not match.
//! It is written so that the kernel's verifier accepts it: fixed lengths, no pointers inside tables, no library calls.

use crate::acts::{is_mem, is_memory_of_thread};
use crate::records::PATH_LEN;

macro_rules! prefixes {
    ($($prefix:literal,)*) => {
        /// Every prefix that counts as sensitive, besides `/proc/<pid>/mem`.
        pub const PREFIXES: &[&[u8]] = &[$($prefix,)*];

        #[inline(always)]
        fn listed(path: &[u8; PATH_LEN]) -> bool {
            $(starts_with(path, $prefix) ||)* false
        }
    };
}

prefixes! {
    b"/etc/shadow",
    b"/etc/gshadow",
    b"/etc/sudoers",
    b"/etc/security/opasswd",
    b"/etc/krb5.keytab",
    b"/etc/ssh/ssh_host_",
    b"/etc/ssl/private/",
    b"/root/.ssh/",
    b"/root/.aws/",
    b"/root/.kube/",
    b"/var/run/secrets/",
    b"/run/secrets/",
    b"/var/lib/sss/",
    b"/proc/kcore",
    b"/dev/mem",
    b"/dev/kmem",
}

/// Whether a NUL-terminated path is one that an ordinary program has no business with.
#[inline(always)]
#[must_use]
pub fn is_sensitive(path: &[u8; PATH_LEN]) -> bool {
    path[0] == b'/' && (listed(path) || is_process_memory(path))
}

#[inline(always)]
fn starts_with<const N: usize>(path: &[u8; PATH_LEN], prefix: &[u8; N]) -> bool {
    let mut i = 0;
    while i < N {
        if path[i] != prefix[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// `/proc/<up to ten characters without a slash>/mem`, or the same of one of its threads.
#[inline(always)]
fn is_process_memory(path: &[u8; PATH_LEN]) -> bool {
    const START: usize = 6;
    const LONGEST: usize = 11;
    if !starts_with(path, b"/proc/") {
        return false;
    }
    let mut i = START;
    while i < START + LONGEST {
        if path[i] == b'/' {
            return is_mem(path, i + 1) || is_memory_of_thread(path, i + 1);
        }
        i += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> bool {
        let mut bytes = [0; PATH_LEN];
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        is_sensitive(&bytes)
    }

    #[test]
    fn every_listed_prefix_matches_and_its_beginning_does_not() {
        for prefix in PREFIXES {
            let text = core::str::from_utf8(prefix).unwrap();
            assert!(check(text), "{text}");
            assert!(!check(&text[..text.len() - 1]), "{text} without its last byte");
        }
    }

    #[test]
    fn ordinary_paths_do_not_match() {
        for path in [
            "",
            "/",
            "etc/shadow",
            "/etc/passwd",
            "/etc/ssh/sshd_config",
            "/proc/self/maps",
            "/tmp/etc/shadow",
        ] {
            assert!(!check(path), "{path}");
        }
    }

    #[test]
    fn memory_of_a_process_matches() {
        for path in ["/proc/1/mem", "/proc/self/mem", "/proc/4194304/mem", "/proc/1/task/1/mem"] {
            assert!(check(path), "{path}");
        }
        for path in ["/proc/1/memory", "/proc/meminfo", "/proc/1/task/1/maps", "/proc/1/me"] {
            assert!(!check(path), "{path}");
        }
    }
}
