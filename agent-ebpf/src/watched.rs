//! Directories whose files nobody should remove, empty or redate: matched by text and by the directory itself.
//!
//! Text is compared in words under a mask, without a branch per byte, which is what the kernel's verifier can follow.
//! A relative path or a descriptor is matched by walking up from its directory; see [`crate::records::Directory`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Watched directories at most.
pub const WATCHED_MAX: usize = 8;
/// Words of a directory's path that are compared.
pub const WORDS: usize = 8;
/// Bytes of a directory's path at most, with its final slash.
pub const TEXT_MAX: usize = WORDS * 8;

/// One directory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Prefix {
    /// Its path with a final slash, padded with zeros.
    pub text: [u64; WORDS],
    /// All ones where `text` holds a byte.
    pub mask: [u64; WORDS],
    /// 1 when this place of the table is used, else 0.
    pub used: u64,
}

/// The table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Watched {
    /// Used places come first.
    pub list: [Prefix; WATCHED_MAX],
}

const _: () = assert!(size_of::<Watched>() == 1088);

impl Prefix {
    /// An unused place.
    pub const NONE: Self = Self { text: [0; WORDS], mask: [0; WORDS], used: 0 };

    /// A directory; `None` when its path is not absolute or too long.
    #[must_use]
    pub fn new(path: &str) -> Option<Self> {
        let path = path.trim_end_matches('/');
        if !path.starts_with('/') || path.len() >= TEXT_MAX {
            return None;
        }
        let mut prefix = Self { used: 1, ..Self::NONE };
        for (at, byte) in path.bytes().chain([b'/']).enumerate() {
            prefix.text.as_mut_bytes()[at] = byte;
            prefix.mask.as_mut_bytes()[at] = 0xff;
        }
        Some(prefix)
    }

    /// Whether a path that begins with these words lies in the directory.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, path: &[u64; WORDS]) -> bool {
        let mut differing = 0;
        let mut at = 0;
        while at < WORDS {
            differing |= (path[at] ^ self.text[at]) & self.mask[at];
            at += 1;
        }
        self.used != 0 && differing == 0
    }
}

/// A device number from its parts, as the kernel keeps it.
#[must_use]
pub const fn device(major: u32, minor: u32) -> u32 {
    (major << 20) | (minor & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(path: &str) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        let len = path.len().min(TEXT_MAX);
        words.as_mut_bytes()[..len].copy_from_slice(&path.as_bytes()[..len]);
        words
    }

    #[test]
    fn files_below_the_directory_match_and_neighbours_do_not() {
        let log = Prefix::new("/var/log").unwrap();
        for path in ["/var/log/syslog", "/var/log/a/b", "/var/log/"] {
            assert!(log.holds(&words(path)), "{path}");
        }
        for path in ["/var/log", "/var/logs/x", "/var/lo", "", "var/log/x", "/tmp/var/log/x"] {
            assert!(!log.holds(&words(path)), "{path}");
        }
    }

    #[test]
    fn an_unused_place_matches_nothing() {
        assert!(!Prefix::NONE.holds(&words("/")));
    }

    #[test]
    fn relative_and_long_directories_are_refused() {
        assert!(Prefix::new("var/log").is_none());
        let long = "/0123456789012345678901234567890123456789012345678901234567890123";
        assert!(Prefix::new(&long[..TEXT_MAX]).is_none());
        assert!(Prefix::new(&long[..TEXT_MAX - 1]).is_some());
    }
}
