//! Directories that the programs know: those whose files keep traces, and those that lead to sensitive files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use agent_ebpf::records::{DIRECTORY_LEN, Directory, DirectoryKey, names};
use agent_ebpf::sensitive;
use agent_ebpf::watched::{Prefix, WATCHED_MAX, Watched, device};
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};

use super::{ProbeError, in_map};

/// Tells the programs which directories to watch, by text and by inode, and which lead to sensitive files.
pub(super) fn tell(programs: &mut Ebpf, traces: &[String]) -> Result<(), ProbeError> {
    let mut watched = Watched { list: [Prefix::NONE; WATCHED_MAX] };
    for (place, directory) in traces.iter().enumerate() {
        match (watched.list.get_mut(place), Prefix::new(directory)) {
            (Some(free), Some(prefix)) => *free = prefix,
            _ => return Err(ProbeError::Watched(directory.clone())),
        }
    }
    let map = programs.map_mut(names::WATCHED).ok_or(ProbeError::MissingMap(names::WATCHED))?;
    let mut map: Array<&mut MapData, [u8; size_of::<Watched>()]> =
        Array::try_from(map).map_err(in_map(names::WATCHED))?;
    let bytes: [u8; size_of::<Watched>()] = zerocopy::transmute!(watched);
    map.set(0, bytes, 0).map_err(in_map(names::WATCHED))?;

    let map = programs.map_mut(names::DIRECTORIES).ok_or(ProbeError::MissingMap(names::DIRECTORIES))?;
    let mut map: HashMap<&mut MapData, [u8; size_of::<DirectoryKey>()], [u8; size_of::<Directory>()]> =
        HashMap::try_from(map).map_err(in_map(names::DIRECTORIES))?;
    for (key, directory) in known(traces) {
        let key: [u8; size_of::<DirectoryKey>()] = zerocopy::transmute!(key);
        let value: [u8; size_of::<Directory>()] = zerocopy::transmute!(directory);
        map.insert(key, value, 0).map_err(in_map(names::DIRECTORIES))?;
    }
    Ok(())
}

/// The number of our mount namespace; zero where the kernel has none.
pub(super) fn mount_namespace() -> u32 {
    fs::metadata("/proc/self/ns/mnt").ok().and_then(|found| u32::try_from(found.ino()).ok()).unwrap_or(0)
}

/// Every directory that is watched or lies above a sensitive path, and exists here.
fn known(traces: &[String]) -> BTreeMap<DirectoryKey, Directory> {
    let mut known = BTreeMap::new();
    let mut entry = |path: &str, change: &dyn Fn(&mut Directory)| {
        let Ok(found) = fs::metadata(path) else { return };
        let device = device(libc::major(found.dev()), libc::minor(found.dev()));
        let key = DirectoryKey { inode: found.ino(), device, _pad: 0 };
        change(known.entry(key).or_insert(Directory { watched: 0, len: 0, text: [0; DIRECTORY_LEN] }));
    };
    for path in traces {
        entry(path, &|directory| directory.watched = 1);
    }
    let prefixes = sensitive::PREFIXES.iter().filter_map(|prefix| core::str::from_utf8(prefix).ok());
    for prefix in prefixes {
        for (at, _) in prefix.match_indices('/') {
            let text = &prefix[..=at];
            entry(text, &|directory| {
                // Of two names of one directory the first one counts.
                if directory.len == 0 && text.len() < DIRECTORY_LEN {
                    directory.len = u32::try_from(text.len()).unwrap_or(0);
                    directory.text[..text.len()].copy_from_slice(text.as_bytes());
                }
            });
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_may_be_watched_and_lead_to_a_sensitive_file() {
        let known = known(&["/etc".to_owned(), "/nowhere".to_owned()]);
        let etc = known.values().find(|directory| directory.watched != 0).expect("it exists");
        assert_eq!(&etc.text[..etc.len as usize], b"/etc/");
        let root = known.values().find(|directory| directory.len == 1).expect("it leads to all of them");
        assert_eq!((root.watched, root.text[0]), (0, b'/'));
        assert!(known.len() <= 32, "{}", known.len());
    }
}
