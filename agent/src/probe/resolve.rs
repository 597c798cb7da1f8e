//! Paths that a record gives by directory or descriptor, completed from `/proc` while the process is there.

use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use models::event::Volume;

use super::real::RealPaths;

/// The full path of what process `tgid` means by `path` seen from `dfd`, as text; `None` when it has left.
pub(super) fn full_path(tgid: u32, dfd: i32, path: &str) -> Option<PathBuf> {
    if path.starts_with('/') {
        return Some(path.into());
    }
    let base = if dfd == libc::AT_FDCWD { "cwd".to_owned() } else { format!("fd/{dfd}") };
    let base = fs::read_link(format!("/proc/{tgid}/{base}")).ok()?;
    Some(without_mark(&base).join(path))
}

/// What a process has read and written since it began; `None` when it has left, or the kernel does not count
/// (CONFIG_TASK_IO_ACCOUNTING).
pub(super) fn volume(tgid: u32) -> Option<Volume> {
    let text = fs::read_to_string(format!("/proc/{tgid}/io")).ok()?;
    let number = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some(Volume { read: number("rchar:")?, written: number("wchar:")? })
}

/// Where a file is, or was: its directory with every link followed, and its name.
pub(super) fn real_place(paths: &mut RealPaths, tgid: u32, path: &Path) -> PathBuf {
    let real = path.parent().and_then(|parent| paths.find(tgid, parent));
    match (real, path.file_name()) {
        (Some(parent), Some(name)) => parent.path.join(name),
        _ => normal(path),
    }
}

/// Whether a path lies below one of the directories.
pub(super) fn is_below(path: &Path, directories: &[String]) -> bool {
    directories.iter().any(|directory| path.starts_with(directory) && path != Path::new(directory))
}

/// What the kernel appends to the name of a file that was removed meanwhile.
fn without_mark(path: &Path) -> &Path {
    let text = path.as_os_str().as_encoded_bytes();
    let name = text.strip_suffix(b" (deleted)").and_then(|text| std::str::from_utf8(text).ok());
    name.map_or(path, |name| Path::new(OsStr::new(name)))
}

/// Without `.` and `..`, as text: links on the way are not followed.
pub(super) fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn descriptors_and_relative_paths_of_this_process_are_found() {
        let own = std::process::id();
        let folder = fs::File::open("/usr/lib").unwrap();
        let fd = folder.as_raw_fd();
        assert_eq!(full_path(own, fd, "").map(|path| normal(&path)), Some("/usr/lib".into()));
        assert_eq!(normal(&full_path(own, fd, "../a/./b").unwrap()), Path::new("/usr/a/b"));
        assert_eq!(
            real_place(&mut RealPaths::new(), own, &full_path(own, fd, "../lib/./nothing").unwrap()),
            Path::new("/usr/lib/nothing")
        );
        assert_eq!(full_path(u32::MAX, fd, ""), None);
    }

    #[test]
    fn a_directory_itself_and_its_neighbour_are_not_below_it() {
        let watched = ["/var/log".to_owned()];
        assert!(is_below(Path::new("/var/log/x"), &watched));
        assert!(!is_below(Path::new("/var/log"), &watched) && !is_below(Path::new("/var/logs/x"), &watched));
    }

    #[test]
    fn the_mark_of_a_removed_file_is_taken_off() {
        assert_eq!(without_mark(Path::new("/var/log/x (deleted)")), Path::new("/var/log/x"));
    }
}
