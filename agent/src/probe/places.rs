//! Directories that the programs know: those whose files keep traces, and those that lead to sensitive files.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use agent_ebpf::records::{DIRECTORIES, DIRECTORY_LEN, Directories, Directory, names};
use agent_ebpf::sensitive;
use agent_ebpf::watched::{Prefix, WATCHED_MAX, Watched, device};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use zerocopy::IntoBytes as _;

use super::{ProbeError, in_map};

/// Tells the programs which directories to watch, by text and by inode.
pub(super) fn watch(programs: &mut Ebpf, directories: &[String]) -> Result<(), ProbeError> {
    let mut watched = Watched { list: [Prefix::NONE; WATCHED_MAX] };
    for (place, directory) in directories.iter().enumerate() {
        let (inode, device) = fs::metadata(directory).map_or((0, 0), |found| {
            (found.ino(), device(libc::major(found.dev()), libc::minor(found.dev())))
        });
        let prefix = Prefix::new(directory, inode, device);
        match (watched.list.get_mut(place), prefix) {
            (Some(free), Some(prefix)) => *free = prefix,
            _ => return Err(ProbeError::Watched(directory.clone())),
        }
    }
    let map = programs.map_mut(names::WATCHED).ok_or(ProbeError::MissingMap(names::WATCHED))?;
    let mut map: Array<&mut MapData, [u8; size_of::<Watched>()]> =
        Array::try_from(map).map_err(in_map(names::WATCHED))?;
    let bytes: [u8; size_of::<Watched>()] = zerocopy::transmute!(watched);
    map.set(0, bytes, 0).map_err(in_map(names::WATCHED))
}

/// Tells the programs which directories lead to sensitive files.
pub(super) fn lead(programs: &mut Ebpf) -> Result<(), ProbeError> {
    let mut directories = Directories { list: [Directory::NONE; DIRECTORIES] };
    for (free, found) in directories.list.iter_mut().zip(leading()) {
        *free = found;
    }
    let map = programs.map_mut(names::DIRECTORIES).ok_or(ProbeError::MissingMap(names::DIRECTORIES))?;
    let mut map: Array<&mut MapData, [u8; size_of::<Directories>()]> =
        Array::try_from(map).map_err(in_map(names::DIRECTORIES))?;
    let mut bytes = [0; size_of::<Directories>()];
    bytes.copy_from_slice(directories.as_bytes());
    map.set(0, bytes, 0).map_err(in_map(names::DIRECTORIES))
}

/// Every directory above a sensitive path that exists here.
fn leading() -> Vec<Directory> {
    let mut found: Vec<Directory> = Vec::new();
    for prefix in sensitive::PREFIXES.iter().filter_map(|prefix| core::str::from_utf8(prefix).ok()) {
        for (at, _) in prefix.match_indices('/') {
            let text = &prefix[..=at];
            let Ok(metadata) = fs::metadata(text) else { continue };
            let (inode, device) =
                (metadata.ino(), device(libc::major(metadata.dev()), libc::minor(metadata.dev())));
            let known = found.iter().any(|other| (other.inode, other.device) == (inode, device));
            if known || text.len() >= DIRECTORY_LEN {
                continue;
            }
            let mut directory = Directory { inode, device, ..Directory::NONE };
            directory.len = u32::try_from(text.len()).unwrap_or(0);
            directory.text[..text.len()].copy_from_slice(text.as_bytes());
            found.push(directory);
        }
    }
    found
}
