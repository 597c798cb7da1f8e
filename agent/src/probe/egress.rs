//! Control groups that send nothing, and a device that reaches its fleet only: the program that denies it, and the maps of whom
//! and of what is reached.
//!
//! Everything that needs a privilege is done when the agent starts; later only the map changes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;

use agent_ebpf::records::{PORTS, names};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError};
use models::chain::chain;

use super::{ProbeError, in_map, take};
use crate::quarantine::{Network, Reachable};

const PROGRAM: &str = "deny_egress";

/// The attached program's maps, and what is in them.
pub(super) struct Egress {
    map: HashMap<MapData, u64, u32>,
    denied: BTreeSet<u64>,
    trie: LpmTrie<MapData, [u8; 16], [u16; PORTS]>,
    reachable: Reachable,
}

impl Egress {
    /// Attaches the program to the root of the version 2 hierarchy; until a mode is set it lets everything through.
    pub(super) fn attach(programs: &mut Ebpf) -> Result<Self, String> {
        let root = cgroup_root().ok_or("no cgroup2 file system is mounted")?;
        let folder = File::open(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        let map = take(programs, names::DENIED).map_err(|error| chain(&error))?;
        let map = HashMap::try_from(map).map_err(|error| chain(&error))?;
        let failed = |error: ProgramError| super::attach::reason(&error);
        let trie = take(programs, names::REACHABLE).map_err(|error| chain(&error))?;
        let trie = LpmTrie::try_from(trie).map_err(|error| chain(&error))?;
        let program = programs.program_mut(PROGRAM).ok_or("the embedded object lacks the program")?;
        let program = <&mut CgroupSkb>::try_from(program).map_err(failed)?;
        program.load().map_err(failed)?;
        // A link is beside those of others, whatever the mode says; 5.10 takes no other.
        program.attach(folder, CgroupSkbAttachType::Egress, CgroupAttachMode::Single).map_err(failed)?;
        Ok(Self { map, denied: BTreeSet::new(), trie, reachable: Reachable::new() })
    }

    /// Denies egress of these control groups and of no others.
    pub(super) fn set(&mut self, denied: &BTreeSet<u64>) -> Result<(), ProbeError> {
        for gone in self.denied.difference(denied).copied().collect::<Vec<_>>() {
            self.map.remove(&gone).map_err(in_map(names::DENIED))?;
            self.denied.remove(&gone);
        }
        for new in denied.difference(&self.denied).copied().collect::<Vec<_>>() {
            self.map.insert(new, 0, 0).map_err(in_map(names::DENIED))?;
            self.denied.insert(new);
        }
        Ok(())
    }

    /// These are reached in quarantine, and no others. What stays is not interrupted.
    pub(super) fn reach(&mut self, reachable: &Reachable) -> Result<(), ProbeError> {
        let key = |network: &Network| {
            let (address, bits) = network.parts();
            Key::new(bits, address)
        };
        let gone: Vec<_> =
            self.reachable.keys().filter(|network| !reachable.contains_key(network)).copied().collect();
        for network in gone {
            self.trie.remove(&key(&network)).map_err(in_map(names::REACHABLE))?;
            self.reachable.remove(&network);
        }
        for (network, ports) in reachable {
            if self.reachable.get(network) != Some(ports) {
                self.trie.insert(&key(network), *ports, 0).map_err(in_map(names::REACHABLE))?;
                self.reachable.insert(*network, *ports);
            }
        }
        Ok(())
    }
}

/// Where the version 2 hierarchy is mounted as a whole.
#[must_use]
pub fn cgroup_root() -> Option<PathBuf> {
    mounted(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// From the lines of proc_pid_mountinfo(5): `36 35 98:0 ROOT MOUNT_POINT OPTIONS ... - TYPE SOURCE OPTIONS`.
fn mounted(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (root == "/" && after.starts_with("cgroup2 ")).then(|| at.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_in_both_layouts() {
        let unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mounted(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "30 25 0:27 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755\n\
                      31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      32 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let part = "32 30 0:29 /a.slice /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted(part), None, "what is above is not seen");
    }
}
