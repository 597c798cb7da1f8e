//! Opens by another name: a link of either kind or a bind mount of a sensitive file, a path with `..`, a relative path.
//!
//! The kernel side matches what a program says. Here the same path is looked up again as the process sees it, with every
//! link followed, while it is still there. An open that turns out to be of a sensitive file is told as such, under the file's name.
//!
//! Each look costs some ten microseconds, so so many are made a second at most; what is beyond that is counted. Half of those
//! saved up are kept for paths outside of system folders, and a quarter for processes that took few in this window, so
//! that one that opens many files uses up nobody else's. A path inside of system folders is looked at once per window. After a
//! mount, and elsewhere at any time, something else may be in its place: such a path is looked at again while looks are
//! plenty, so that who opens the same files all the time, or mounts all the time, leaves enough for those that nobody has
//! looked at. What lies where something was mounted is looked at once more in any case.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use agent_ebpf::acts::{self, TRUNCATES, WRITES};
use agent_ebpf::records::{PATH_LEN, SLOT_OPENAT};
use agent_ebpf::sensitive::{head, is_sensitive};
use models::event::{Event, EventKind, PathText, Tampering, clipped};

use super::inodes::SensitiveInodes;
use super::real::RealPaths;
use super::resolve;

/// Looks a second.
const PER_SECOND: u32 = 1000;
/// Looks saved up at most.
const BURST: u32 = 4000;
/// Looks that are left for paths that were not looked at yet, and for those that were looked at before the last mount.
const FOR_NEW: u32 = BURST / 4 * 3;
/// Looks that the latter leave for the former.
const FOR_MOUNTED: u32 = BURST / 2;
/// Folders whose files are opened most and where only root can put a link.
const SYSTEM: [&str; 3] = ["/usr/", "/lib/", "/lib64/"];
/// Looks of one process in a window, beyond which it leaves some for others.
const FEW: u32 = 64;
/// Looks that are left for processes that took few.
const FOR_FEW: u32 = BURST / 4;
/// Mounts of a window whose place is remembered. A further one makes every path one that was looked at before it.
const TARGETS_MAX: usize = 64;
/// Paths remembered in a window. A further one is looked at each time.
const PLAIN_MAX: usize = 4096;
/// Processes whose looks are counted in a window. A further one counts as having taken few.
const TAKERS_MAX: usize = 4096;

/// What was found out so far.
#[derive(Debug)]
pub(super) struct Links {
    /// Hashes of paths that lead to nothing sensitive, in this window, and after how many mounts.
    plain: BTreeMap<u64, u32>,
    mounts: u32,
    /// Where something was mounted in this window, and as the how manieth mount: what was looked at before is to be looked
    /// at again.
    targets: Vec<(PathText, u32)>,
    /// Looks that each process took in this window.
    taken: BTreeMap<u32, u32>,
    looks: u32,
    refilled_ns: u64,
    unchecked: u64,
    own_tgid: u32,
    inodes: SensitiveInodes,
}

impl Links {
    /// `own_tgid` is the process that looks.
    pub(super) fn new(own_tgid: u32) -> Self {
        let inodes = SensitiveInodes::now();
        Self {
            plain: BTreeMap::new(),
            mounts: 0,
            targets: Vec::new(),
            taken: BTreeMap::new(),
            looks: BURST,
            refilled_ns: 0,
            unchecked: 0,
            own_tgid,
            inodes,
        }
    }

    /// Opens that nobody looked at again, because too many came.
    pub(super) fn unchecked(&self) -> u64 {
        self.unchecked
    }

    /// Forgets what led where, and which files there were: another window begins.
    pub(super) fn forget(&mut self) {
        self.plain.clear();
        self.taken.clear();
        self.targets.clear();
        self.inodes = SensitiveInodes::now();
    }

    /// Completes an open that seemed ordinary; gives what else it was.
    pub(super) fn look(
        &mut self,
        paths: &mut RealPaths,
        event: &mut Event,
        dfd: Option<i32>,
        watched: &[String],
    ) -> Option<EventKind> {
        let tgid = event.tgid;
        if let EventKind::Mount { target, .. } = &event.kind {
            self.mounts = self.mounts.wrapping_add(1);
            // Who makes a namespace of mounts says so at the root.
            let is_place = target.starts_with('/') && target.len() > 1;
            match self.targets.iter().position(|(known, _)| known == target) {
                Some(at) => self.targets[at].1 = self.mounts,
                None if is_place && self.targets.len() < TARGETS_MAX => {
                    self.targets.push((target.clone(), self.mounts));
                }
                None => {}
            }
        }
        let EventKind::Open { path, flags, sensitive: sensitive @ false } = &mut event.kind else {
            return None;
        };
        // Whoever watches itself would look at its own looks for ever.
        if tgid == self.own_tgid {
            return None;
        }
        // Below /proc the kernel side needs no help, and `/proc/self` would be ours.
        if path.is_empty() || path.starts_with("/proc/") && !path.contains("/../") {
            return None;
        }
        let in_system = SYSTEM.iter().any(|folder| path.starts_with(folder));
        let key = dfd.is_none().then(|| hash(path));
        self.refill(event.boot_ns);
        let plain_after = key.and_then(|key| self.plain.get(&key));
        let below = |target: &PathText| Path::new(path.as_str()).starts_with(target.as_str());
        let mounted_over = self
            .targets
            .iter()
            .any(|(target, mount)| plain_after.is_none_or(|mounts| mounts < mount) && below(target));
        let settled = !mounted_over
            && plain_after.is_some_and(|mounts| {
                let since = *mounts != self.mounts;
                !since && in_system || self.looks <= if since { FOR_MOUNTED } else { FOR_NEW }
            });
        if settled {
            return None;
        }
        if !self.may_look(tgid, in_system && !mounted_over) {
            self.unchecked += 1;
            return None;
        }
        let full = match dfd {
            Some(dfd) => resolve::full_path(tgid, dfd, path)?,
            None => PathBuf::from(path.as_str()),
        };
        if dfd.is_some() {
            *path = text(&full);
        }
        let real = match paths.find(tgid, &full) {
            Some(real) => self.inodes.name_of(real.inode).map_or(real.path, Path::to_owned),
            None => resolve::normal(&full),
        };
        let bytes = bytes(&real);
        let found = is_sensitive(head(&bytes), &bytes, real.as_os_str().len().min(PATH_LEN));
        let traces = *flags & TRUNCATES != 0 && resolve::is_below(&real, watched);
        // What the kernel side matched by its text has been told already.
        let told = resolve::is_below(Path::new(path.as_str()), watched) && dfd.is_none();
        if found {
            if let Some(key) = key {
                self.plain.remove(&key);
            }
            *sensitive = true;
            *path = text(&real);
            let victim = acts::memory_of(head(&bytes), &bytes, real.as_os_str().len().min(PATH_LEN));
            let written = *flags & (WRITES | TRUNCATES) != 0;
            let victim = victim.filter(|victim| written && *victim != tgid);
            return victim.map(|victim| EventKind::Inject { call: SLOT_OPENAT, victim });
        }
        if traces && !told {
            return Some(EventKind::Tamper { how: Tampering::Emptied, path: text(&real) });
        }
        if let Some(key) = key
            && (self.plain.len() < PLAIN_MAX || self.plain.contains_key(&key))
        {
            self.plain.insert(key, self.mounts);
        }
        None
    }

    /// A bucket of tokens on the records' own clock.
    fn refill(&mut self, now_ns: u64) {
        let passed_ns = now_ns.saturating_sub(self.refilled_ns);
        let fresh = passed_ns.saturating_mul(PER_SECOND.into()) / 1_000_000_000;
        if fresh > 0 {
            self.looks = self.looks.saturating_add(u32::try_from(fresh).unwrap_or(BURST)).min(BURST);
            self.refilled_ns = now_ns;
        }
    }

    /// Takes a token, of which some are kept for others.
    fn may_look(&mut self, tgid: u32, in_system: bool) -> bool {
        let taken = self.taken.get(&tgid).copied().unwrap_or(0);
        let kept = match (in_system, taken < FEW) {
            (true, _) => BURST / 2,
            (false, true) => 0,
            (false, false) => FOR_FEW,
        };
        let may = self.looks > kept;
        self.looks -= u32::from(may);
        if may && (taken > 0 || self.taken.len() < TAKERS_MAX) {
            self.taken.insert(tgid, taken + 1);
        }
        may
    }
}

fn hash(path: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// As the kernel side wants it.
fn bytes(path: &Path) -> [u8; PATH_LEN] {
    let mut bytes = [0; PATH_LEN];
    let text = path.as_os_str().as_bytes();
    let len = text.len().min(PATH_LEN);
    bytes[..len].copy_from_slice(&text[..len]);
    bytes
}

fn text(path: &Path) -> PathText {
    clipped(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use models::event::Comm;

    use super::*;

    fn open(path: &Path, flags: u32) -> Event {
        let kind = EventKind::Open { path: text(path), flags, sensitive: false };
        Event { boot_ns: 1, tgid: std::process::id(), tid: 0, uid: 0, comm: Comm::new(), kind }
    }

    #[test]
    fn a_link_to_a_sensitive_file_is_told_under_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("notes");
        symlink("/etc/shadow", &link).unwrap();
        let (mut links, mut paths) = (Links::new(u32::MAX), RealPaths::new());
        let mut event = open(&link, 0);
        assert_eq!(links.look(&mut paths, &mut event, None, &[]), None);
        let wanted = EventKind::Open { path: "/etc/shadow".try_into().unwrap(), flags: 0, sensitive: true };
        assert_eq!(event.kind, wanted);
        // By way of a folder that is a link, and of `..`.
        let folder = dir.path().join("folder");
        symlink("/etc", &folder).unwrap();
        for path in [folder.join("shadow"), "/usr/../etc/./shadow".into()] {
            let mut event = open(&path, 0);
            assert_eq!(links.look(&mut paths, &mut event, None, &[]), None);
            assert_eq!(event.kind, wanted, "{}", path.display());
        }
    }

    #[test]
    fn a_log_emptied_by_another_name_is_told_besides_the_open() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, link) = (dir.path().join("log"), dir.path().join("notes"));
        fs::create_dir(&logs).unwrap();
        fs::write(logs.join("syslog"), "x").unwrap();
        symlink(logs.join("syslog"), &link).unwrap();
        let watched = [logs.to_string_lossy().into_owned()];
        let mut event = open(&link, TRUNCATES | 1);
        let mut paths = RealPaths::new();
        let extra = Links::new(u32::MAX).look(&mut paths, &mut event, None, &watched);
        let path = text(&logs.join("syslog"));
        assert_eq!(extra, Some(EventKind::Tamper { how: Tampering::Emptied, path }));
        // By its own name the kernel side has told it.
        assert_eq!(
            Links::new(u32::MAX).look(
                &mut paths,
                &mut open(&logs.join("syslog"), TRUNCATES | 1),
                None,
                &watched
            ),
            None
        );
    }

    #[test]
    fn what_is_beyond_the_rate_is_counted() {
        let (mut links, mut paths) = (Links::new(u32::MAX), RealPaths::new());
        for n in 0..BURST / 2 + 5 {
            links.look(&mut paths, &mut open(Path::new(&format!("/usr/nowhere/{n}")), 0), None, &[]);
        }
        assert_eq!(links.unchecked(), 5, "half is kept for others");
        for n in 0..BURST / 2 + 2 {
            links.look(&mut paths, &mut open(Path::new(&format!("/nowhere/{n}")), 0), None, &[]);
        }
        assert_eq!(links.unchecked(), 7 + u64::from(FOR_FEW), "a quarter is kept for other processes");
        for n in 0..FOR_FEW + 1 {
            let mut other =
                Event { tgid: 1_000_000 + n, ..open(Path::new(&format!("/nowhere/else/{n}")), 0) };
            links.look(&mut paths, &mut other, None, &[]);
        }
        assert_eq!(links.unchecked(), 8 + u64::from(FOR_FEW));
        let before = links.unchecked();
        // A path that was looked at needs no other look while there are so few.
        links.look(&mut paths, &mut open(Path::new("/nowhere/1"), 0), None, &[]);
        assert_eq!(links.unchecked(), before);
        links.forget();
        links.look(&mut paths, &mut open(Path::new("/nowhere/1"), 0), None, &[]);
        assert_eq!(links.unchecked(), before + 1);
    }

    #[test]
    fn who_opens_the_same_files_all_the_time_leaves_looks_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("source"), dir.path().join("link"));
        fs::write(&path, "").unwrap();
        symlink("/etc/shadow", &link).unwrap();
        let (mut links, mut paths) = (Links::new(u32::MAX), RealPaths::new());
        for _ in 0..BURST * 2 {
            links.look(&mut paths, &mut open(&path, 0), None, &[]);
        }
        let mut event = open(&link, 0);
        links.look(&mut paths, &mut event, None, &[]);
        assert!(matches!(event.kind, EventKind::Open { sensitive: true, .. }));
        assert_eq!((links.unchecked(), links.looks), (0, FOR_NEW - 1));
    }

    #[test]
    fn what_takes_a_plain_files_place_is_looked_at_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        fs::write(&path, "").unwrap();
        let (mut links, mut paths) = (Links::new(u32::MAX), RealPaths::new());
        let mut sensitive = |path: &Path| {
            let mut event = open(path, 0);
            links.look(&mut paths, &mut event, None, &[]);
            matches!(event.kind, EventKind::Open { sensitive: true, .. })
        };
        assert!(!sensitive(&path));
        fs::remove_file(&path).unwrap();
        symlink("/etc/shadow", &path).unwrap();
        assert!(sensitive(&path));
        // In a system folder what was found is kept until something is mounted, and then looked at while looks are plenty.
        let looks = |links: &Links| links.looks;
        let mut look = |links: &mut Links, kind: Option<EventKind>| {
            let mut event = open(Path::new("/usr/lib"), 0);
            event.kind = kind.unwrap_or(event.kind);
            let before = looks(links);
            links.look(&mut paths, &mut event, None, &[]);
            before - looks(links)
        };
        assert_eq!((look(&mut links, None), look(&mut links, None)), (1, 0));
        let (source, target) = (PathText::new(), PathText::new());
        let mount = EventKind::Mount { call: 165, source: source.clone(), target };
        assert_eq!((look(&mut links, Some(mount.clone())), look(&mut links, None)), (0, 1));
        assert_eq!(look(&mut links, None), 0);
        links.looks = FOR_MOUNTED;
        look(&mut links, Some(mount));
        assert_eq!((look(&mut links, None), links.unchecked()), (0, 0));
        // Below the place of a mount that is known, once in any case.
        let mount = EventKind::Mount { call: 165, source, target: "/usr".try_into().unwrap() };
        look(&mut links, Some(mount));
        assert_eq!((look(&mut links, None), look(&mut links, None)), (1, 0));
    }
}
