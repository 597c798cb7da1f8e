//! How much kernel memory the maps of this process lock.

use std::{fs, io};

use aya::maps::MapInfo;
use serde::Serialize;

/// One map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapMemory {
    /// Its name; the kernel keeps 15 bytes of it.
    pub name: String,
    /// Entries at most. For a ring, bytes.
    pub max_entries: u64,
    /// Memory that the kernel charges for it, in bytes. Maps that grow are charged for what they may hold.
    pub locked_bytes: u64,
}

/// Every map that this process holds open, largest first. The minimum kernel version is 4.14.
pub(super) fn of_this_process() -> io::Result<Vec<MapMemory>> {
    let mut maps = std::collections::BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        if let Some((id, max_entries, locked_bytes)) = numbers(&text) {
            maps.entry(id).or_insert((max_entries, locked_bytes));
        }
    }
    let name = |id| MapInfo::from_id(id).ok().and_then(|info| info.name_as_str().map(str::to_owned));
    let mut maps: Vec<_> = maps
        .into_iter()
        .map(|(id, (max_entries, locked_bytes))| MapMemory {
            name: name(id).unwrap_or_else(|| format!("map {id}")),
            max_entries,
            locked_bytes,
        })
        .collect();
    maps.sort_by(|a, b| b.locked_bytes.cmp(&a.locked_bytes).then_with(|| a.name.cmp(&b.name)));
    Ok(maps)
}

/// Id, entries and locked bytes; `None` when the descriptor is no map.
fn numbers(fdinfo: &str) -> Option<(u32, u64, u64)> {
    let value = |key: &str| fdinfo.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    Some((
        value("map_id:")?.parse().ok()?,
        value("max_entries:")?.parse().ok()?,
        value("memlock:")?.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_told_from_other_descriptors() {
        let map =
            "pos:\t0\nflags:\t02\nmap_type:\t1\nkey_size:\t4\nmax_entries:\t9\nmemlock:\t4096\nmap_id:\t7\n";
        assert_eq!(numbers(map), Some((7, 9, 4096)));
        assert_eq!(numbers("pos:\t0\nflags:\t02\nmnt_id:\t3\n"), None);
    }
}
