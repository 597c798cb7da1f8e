//! Files to an initramfs: the first and only file system of the machine that is booted.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use super::{VmError, kernels::write};
use crate::tools;

/// An archive in the form that kernels unpack (`newc` of cpio).
#[derive(Default)]
pub(super) struct Image {
    bytes: Vec<u8>,
    entries: u32,
    folders: Vec<String>,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

impl Image {
    /// Adds a file from this machine, with its rights.
    pub(super) fn copy(&mut self, from: &Path, to: &str) -> Result<(), VmError> {
        let failed = |error| VmError::File(from.to_owned(), error);
        let bytes = fs::read(from).map_err(failed)?;
        let mode = fs::metadata(from).map_err(failed)?.permissions().mode() & 0o777;
        self.file(to, mode, &bytes);
        Ok(())
    }

    /// Adds a folder and everything below it.
    pub(super) fn copy_all(&mut self, from: &Path, to: &str) -> Result<(), VmError> {
        let failed = |error| VmError::File(from.to_owned(), error);
        for entry in fs::read_dir(from).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let to = format!("{to}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                self.copy_all(&entry.path(), &to)?;
            } else {
                self.copy(&entry.path(), &to)?;
            }
        }
        Ok(())
    }

    /// Adds a file and the folders on its way.
    pub(super) fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        self.parents(path);
        self.entry(path, FILE | mode, bytes);
    }

    /// Adds an empty folder.
    pub(super) fn folder(&mut self, path: &str) {
        self.parents(&format!("{path}/"));
    }

    /// Adds a program that was built for this machine, and the libraries that it is linked with.
    pub(super) fn native(&mut self, program: &Path, to: &str) -> Result<(), VmError> {
        let mut ldd = Command::new("ldd");
        let text = tools::words(ldd.arg(program));
        let output = ldd.output().map_err(|error| tools::ToolError::Start(text, error))?;
        for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
            if !self.folders.contains(&library) {
                self.copy(Path::new(&library), library.trim_start_matches('/'))?;
                self.folders.push(library);
            }
        }
        self.copy(program, to)
    }

    /// Writes it down.
    pub(super) fn finish(mut self, path: &Path) -> Result<(), VmError> {
        self.entry("TRAILER!!!", 0, b"");
        write(path, &self.bytes)
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            let folder = &path[..at];
            if !folder.is_empty() && !self.folders.iter().any(|known| known == folder) {
                self.folders.push(folder.to_owned());
                self.entry(folder, FOLDER, b"");
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        self.entries += 1;
        let name_len = path.len() + 1;
        let len = u32::try_from(bytes.len()).expect("a file of an initramfs is below 4 GiB");
        self.bytes.extend(b"070701");
        // Number, mode, owner, group, links, time, length, four device numbers, length of the name, no checksum.
        for field in [self.entries, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len as u32, 0] {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The files that `ldd` names: `libc.so.6 => /lib/libc.so.6 (0x…)`, and the loader by its path alone.
fn libraries(ldd: &str) -> Vec<String> {
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    ldd.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_and_the_loader_are_found_and_the_kernels_own_is_not() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\t/lib64/ld.so.2 (0x0)\n";
        assert_eq!(libraries(ldd), ["/lib/x/libc.so.6", "/lib64/ld.so.2"]);
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn every_part_begins_at_a_multiple_of_four_and_folders_come_once_and_first() {
        let mut image = Image::default();
        image.file("a/b/one", 0o644, b"12345");
        image.file("a/b/two", 0o755, b"");
        image.folder("tmp");
        let text = String::from_utf8(image.bytes.clone()).unwrap();
        let starts: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 5);
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let names: Vec<_> = starts.iter().map(|at| text[at + 110..].split('\0').next().unwrap()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two", "tmp"]);
    }
}
