//! Paths whose opening is reported at once, however busy the device is.
//!
//! The match is on the text that the program passed, made absolute when it starts from a directory above one of these: a
//! link to one of these files, or a path with `..`, does not match.
//! It is written so that the kernel's verifier accepts it: fixed lengths, no pointers inside tables, no library calls.

use core::hint;

use crate::records::PATH_LEN;

macro_rules! prefixes {
    ($($prefix:literal,)*) => {
        /// Every prefix that counts as sensitive, besides the memory of a process.
        pub const PREFIXES: &[&[u8]] = &[$($prefix,)*];

        #[inline(always)]
        fn listed(head: Head) -> bool {
            // Not `|`: the verifier would follow every combination.
            $((differs(head, const { words($prefix, false) }, const { words($prefix, true) }) == 0) ||)* false
        }
    };
}

/// The first bytes of a path, as little-endian words: compared without a branch per byte, each of which the verifier would
/// follow.
pub type Head = [u64; 3];
const HEAD_BYTES: usize = size_of::<Head>();

/// A prefix, or all ones where it has a byte.
const fn words(prefix: &[u8], mask: bool) -> Head {
    assert!(prefix.len() <= HEAD_BYTES, "a prefix is longer than what is compared");
    let mut words = [0; 3];
    let mut at = 0;
    while at < prefix.len() {
        let byte = if mask { 0xff } else { prefix[at] };
        words[at / 8] |= (byte as u64) << (at % 8 * 8);
        at += 1;
    }
    words
}

/// The head of a path. In the kernel it is read from memory at once; see `file`.
#[must_use]
pub const fn head(path: &[u8; PATH_LEN]) -> Head {
    let mut words = [0; 3];
    let mut at = 0;
    while at < HEAD_BYTES {
        words[at / 8] |= (path[at] as u64) << (at % 8 * 8);
        at += 1;
    }
    words
}

#[inline(always)]
const fn differs(head: Head, wanted: Head, mask: Head) -> u64 {
    ((head[0] ^ wanted[0]) & mask[0]) | ((head[1] ^ wanted[1]) & mask[1]) | ((head[2] ^ wanted[2]) & mask[2])
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

/// Whether a path's text may differ from what it means: it holds `//`, `/./` or `/../`, or ends in `/.` or `/..`. Looks at
/// all bytes and without branches, so what stands behind the NUL may make it true.
#[inline(always)]
#[must_use]
pub fn is_roundabout(path: &[u64; PATH_LEN / 8]) -> bool {
    const fn every(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    const HIGH: u64 = 0x8080_8080_8080_8080;
    /// The high bit of each byte that is zero.
    #[inline(always)]
    const fn zeros(word: u64) -> u64 {
        !(((word & !HIGH) + !HIGH) | word) & HIGH
    }
    /// What stood so many bytes before.
    #[inline(always)]
    const fn back(bytes: u32, word: u64, before: u64) -> u64 {
        word << (8 * bytes) | before >> (64 - 8 * bytes)
    }
    let (mut found, mut slashes_before, mut dots_before) = (0, 0, 0);
    let mut at = 0;
    while at < path.len() {
        let word = u64::from_le(path[at]);
        let slashes = zeros(word ^ every(b'/'));
        let dots = zeros(word ^ every(b'.'));
        let slash = |n| back(n, slashes, slashes_before);
        let dot = |n| back(n, dots, dots_before);
        let doubled = slashes & slash(1);
        let dotted = (slashes | zeros(word)) & dot(1) & (slash(2) | dot(2) & slash(3));
        found |= doubled | dotted;
        (slashes_before, dots_before) = (slashes, dots);
        at += 1;
    }
    found != 0
}

/// Whether a path of `len` bytes without its NUL is one that an ordinary program has no business with.
#[inline(always)]
#[must_use]
pub fn is_sensitive(head: Head, path: &[u8; PATH_LEN], len: usize) -> bool {
    listed(head) || is_process_memory(head, path, len)
}

/// `/proc/<pid>/mem`, or the same of one of its threads: it begins with `/proc/` and ends with `/mem`.
#[inline(always)]
#[must_use]
pub fn is_process_memory(head: Head, path: &[u8; PATH_LEN], len: usize) -> bool {
    const SHORTEST: usize = b"/proc/1/mem".len();
    const WANTED: Head = words(b"/proc/", false);
    const MASK: Head = words(b"/proc/", true);
    if !(SHORTEST..PATH_LEN).contains(&len) {
        return false;
    }
    // The mask says so to the compiler, which would check each place otherwise; it must not drop it, for older verifiers
    // want to see it.
    let len = hint::black_box(len);
    let byte = |back: usize| path[len.wrapping_sub(back) % PATH_LEN];
    let end = [byte(4), byte(3), byte(2), byte(1)];
    u32::from_le_bytes(end) == u32::from_le_bytes(*b"/mem") && differs(head, WANTED, MASK) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> bool {
        let mut bytes = [0; PATH_LEN];
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        is_sensitive(head(&bytes), &bytes, path.len())
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
    fn a_roundabout_path_is_told_at_every_place() {
        for (text, expected) in [
            ("//", true),
            ("/./", true),
            ("/../", true),
            ("/.", true),
            ("/..", true),
            ("/.ssh/", false),
            ("/..x/", false),
            ("/a./b../", false),
            ("/...", false),
            ("", false),
        ] {
            for before in 0..40 {
                let mut bytes = [0_u8; PATH_LEN];
                bytes[..before].fill(b'a');
                bytes[before..before + text.len()].copy_from_slice(text.as_bytes());
                let words: [u64; PATH_LEN / 8] = zerocopy::transmute!(bytes);
                assert_eq!(is_roundabout(&words), expected, "{text} behind {before} bytes");
            }
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
