//! What a path leads to in a process's view of the file system, with every link followed.
//!
//! `openat2` with `RESOLVE_IN_ROOT` (since Linux 5.6) from the process's root finds the file without opening it, so no
//! device or pipe notices. Most lookups need only what the kernel has in memory, which `RESOLVE_CACHED` (since 5.12) asks
//! for. The others could wait for a server that never answers, or for an attacker's own file system, so a thread does
//! them and is given little time. While it is stuck, nothing else is asked of it.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use std::{fs, io, thread};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;

use super::inodes::Inode;

/// For a lookup that needs the disk.
const PATIENCE: Duration = Duration::from_millis(20);

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Real {
    /// Its name, with every link followed.
    pub(super) path: PathBuf,
    /// Itself.
    pub(super) inode: Inode,
}

/// Follows links.
#[derive(Debug)]
pub(super) struct RealPaths {
    helper: Option<Helper>,
    /// The helper has not answered yet, and what it will say nobody waits for.
    stuck: bool,
}

#[derive(Debug)]
struct Helper {
    questions: SyncSender<(u32, PathBuf)>,
    answers: Receiver<Option<Real>>,
}

impl RealPaths {
    /// Starts no thread before one is needed.
    pub(super) fn new() -> Self {
        Self { helper: None, stuck: false }
    }

    /// `None` when there is nothing by this name, or it takes too long. Of a process that has left, what one with this
    /// process's root would find.
    pub(super) fn find(&mut self, tgid: u32, path: &Path) -> Option<Real> {
        match look_up(tgid, path, ResolveFlags::CACHED) {
            Ok(found) => Some(found),
            Err(Errno::AGAIN | Errno::INVAL) => self.ask(tgid, path),
            Err(_) => None,
        }
    }

    fn ask(&mut self, tgid: u32, path: &Path) -> Option<Real> {
        if self.helper.is_none() {
            self.helper = Helper::start().ok();
        }
        let helper = self.helper.as_ref()?;
        if self.stuck && helper.answers.try_recv().is_err() {
            return None;
        }
        helper.questions.send((tgid, path.to_owned())).ok()?;
        let answer = helper.answers.recv_timeout(PATIENCE);
        self.stuck = answer == Err(RecvTimeoutError::Timeout);
        if self.stuck {
            log::warn!("a file system does not answer: links are not followed until it does");
        }
        answer.ok().flatten()
    }
}

impl Helper {
    fn start() -> io::Result<Self> {
        let (questions, asked) = sync_channel::<(u32, PathBuf)>(1);
        let (answer, answers) = sync_channel(1);
        thread::Builder::new().name("links".into()).stack_size(64 * 1024).spawn(move || {
            while let Ok((tgid, path)) = asked.recv() {
                let found = look_up(tgid, &path, ResolveFlags::empty()).ok();
                if answer.send(found).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { questions, answers })
    }
}

fn look_up(tgid: u32, path: &Path, how: ResolveFlags) -> Result<Real, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = open(format!("/proc/{tgid}/root"), flags | OFlags::DIRECTORY, Mode::empty())
        .or_else(|_| open("/", flags | OFlags::DIRECTORY, Mode::empty()))?;
    let how = how | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&root, path, flags, Mode::empty(), how)?;
    let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::NOENT)?;
    let found = fstat(&file)?;
    // A link to `/proc/self` led to us.
    let path = match real.strip_prefix(format!("/proc/{}", std::process::id())) {
        Ok(rest) => Path::new(&format!("/proc/{tgid}")).join(rest),
        Err(_) => real,
    };
    Ok(Real { path, inode: (found.st_dev, found.st_ino) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id();
        symlink("/usr/./lib/..", dir.path().join("a")).unwrap();
        symlink("a/lib", dir.path().join("b")).unwrap();
        let mut paths = RealPaths::new();
        let mut found = |tgid, name| paths.find(tgid, &dir.path().join(name)).map(|real| real.path);
        for _ in 0..2 {
            assert_eq!(found(own, "b"), Some("/usr/lib".into()));
        }
        assert_eq!(found(own, "c"), None);
        symlink("/proc/self/status", dir.path().join("self")).unwrap();
        assert_eq!(found(1, "self"), Some("/proc/1/status".into()));
    }

    #[test]
    fn a_lookup_that_hangs_is_given_up_and_the_next_ones_do_not_wait() {
        let (questions, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let mut paths = RealPaths { helper: Some(Helper { questions, answers }), stuck: false };
        let begun_ns = crate::clock::boot_ns();
        assert_eq!(paths.ask(1, Path::new("/hangs")), None);
        let passed = Duration::from_nanos(crate::clock::boot_ns() - begun_ns);
        assert!(passed >= PATIENCE && paths.stuck);
        // It is not asked anything while it hangs.
        assert_eq!(paths.ask(1, Path::new("/other")), None);
        assert_eq!(asked.try_iter().count(), 1);
        // Its late answer is nobody's; then it works again.
        let real = |path: &str| Real { path: path.into(), inode: (0, 0) };
        answer.send(Some(real("/late"))).unwrap();
        let worker = thread::spawn(move || {
            asked.recv().unwrap();
            answer.send(Some(real("/found"))).unwrap();
        });
        assert_eq!(paths.ask(1, Path::new("/again")), Some(real("/found")));
        worker.join().unwrap();
    }
}
