//! Sensitive files by what they are, not by their names: a hard link or a bind mount gives one another name that no text
//! matches.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use agent_ebpf::sensitive::PREFIXES;

/// Files known at most; those of a prefix that comes later are then known by name only.
const FILES_MAX: usize = 256;
/// Entries of one folder that are looked at.
const ENTRIES_MAX: usize = 1024;

/// Device and inode of a file.
pub(super) type Inode = (u64, u64);

/// What there is under the sensitive prefixes, by inode.
#[derive(Debug, Default)]
pub(super) struct SensitiveInodes(BTreeMap<Inode, PathBuf>);

impl SensitiveInodes {
    /// What is there now. A file that is made or replaced later is known by name only until this is asked again.
    pub(super) fn now() -> Self {
        Self::below(PREFIXES.iter().copied())
    }

    fn below<'a>(prefixes: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut known = BTreeMap::new();
        for prefix in prefixes {
            for path in matching(prefix) {
                // A link's target is found by its own name, and `/dev/mem` is a device that many nodes may stand for.
                let Ok(found) = fs::symlink_metadata(&path) else { continue };
                if found.is_file() && known.len() < FILES_MAX {
                    known.entry((found.dev(), found.ino())).or_insert(path);
                }
            }
        }
        Self(known)
    }

    /// The name that this file goes by. It is asked again: the number of a file that was replaced meanwhile may be another's.
    pub(super) fn name_of(&self, inode: Inode) -> Option<&Path> {
        let path = self.0.get(&inode)?;
        let found = fs::symlink_metadata(path).ok()?;
        ((found.dev(), found.ino()) == inode).then_some(path)
    }
}

/// The entries of a prefix's folder whose path begins with it.
fn matching(prefix: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    let folder = prefix.iter().rposition(|byte| *byte == b'/').map_or(&prefix[..0], |at| &prefix[..=at]);
    let folder = Path::new(std::ffi::OsStr::from_bytes(folder));
    // The kernel's own files have no other names.
    let entries = (!folder.starts_with("/proc")).then(|| fs::read_dir(folder).ok()).flatten();
    let paths = entries.into_iter().flatten().take(ENTRIES_MAX).flatten().map(|entry| entry.path());
    paths.filter(move |path| path.as_os_str().as_bytes().starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(path: &Path) -> Inode {
        let found = fs::metadata(path).unwrap();
        (found.dev(), found.ino())
    }

    #[test]
    fn a_hard_link_is_the_file_and_a_neighbour_or_a_link_is_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["secret", "secret-", "public"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("secrets")).unwrap();
        fs::hard_link(dir.path().join("secret"), dir.path().join("notes")).unwrap();
        std::os::unix::fs::symlink("public", dir.path().join("secret-link")).unwrap();
        let prefix = dir.path().join("secret");
        let known = SensitiveInodes::below([prefix.as_os_str().as_bytes()].into_iter());
        assert_eq!(known.0.len(), 2);
        assert_eq!(known.name_of(inode(&dir.path().join("notes"))), Some(prefix.as_path()));
        assert_eq!(known.name_of(inode(&dir.path().join("public"))), None);
        let old = inode(&prefix);
        fs::rename(dir.path().join("public"), &prefix).unwrap();
        assert_eq!(known.name_of(old), None, "another file has the name now");
    }

    #[test]
    fn what_every_system_has_is_known_and_the_number_is_bounded() {
        let known = SensitiveInodes::now();
        assert_eq!(known.name_of(inode(Path::new("/etc/shadow"))), Some(Path::new("/etc/shadow")));
        let dir = tempfile::tempdir().unwrap();
        for n in 0..FILES_MAX + 3 {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        let prefix = format!("{}/", dir.path().display());
        assert_eq!(SensitiveInodes::below([prefix.as_bytes()].into_iter()).0.len(), FILES_MAX);
    }
}
