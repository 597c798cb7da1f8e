//! What a path leads to in a process's view of the file system, with every link followed.
//!
//! `openat2` with `RESOLVE_IN_ROOT` (since Linux 5.6) from the process's root finds the file without opening it, so no
//! device or pipe notices. Most lookups need only what the kernel has in memory, which `RESOLVE_CACHED` (since 5.12) asks
//! for. The others could wait for a server that never answers, or for an attacker's own file system, so a thread does
//! them and is given little time: a quarter of a second each, and a tenth of the time all together, so that nobody who
//! makes them slow keeps records from being read. While it is stuck, nothing else is asked of it.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use std::{fs, io, thread};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;

use super::inodes::Inode;
use crate::clock;

/// For a lookup that needs the disk.
const PATIENCE_NS: u64 = 250_000_000;
/// One part in so many of the time may be spent waiting for them.
const SHARE: u64 = 10;
/// Such time saved up at most.
const SAVED_NS: u64 = 4 * PATIENCE_NS;
/// With less of it left, nothing is asked.
const LEAST_NS: u64 = 20_000_000;

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
    /// Of the process that was asked about last, until [`RealPaths::forget_root`]; `None` when it had left.
    root: Option<(u32, Option<OwnedFd>)>,
    /// This process's, once one was asked about that had left.
    own_root: Option<OwnedFd>,
    helper: Option<Helper>,
    /// The helper has not answered yet, and what it will say nobody waits for.
    stuck: bool,
    /// Time that may be spent waiting, as of `counted_ns`.
    patience_ns: u64,
    counted_ns: u64,
    unanswered: u64,
}

#[derive(Debug)]
struct Helper {
    questions: SyncSender<(u32, PathBuf)>,
    answers: Receiver<Option<Real>>,
}

impl RealPaths {
    /// Starts no thread before one is needed.
    pub(super) fn new() -> Self {
        Self {
            root: None,
            own_root: None,
            helper: None,
            stuck: false,
            patience_ns: SAVED_NS,
            counted_ns: 0,
            unanswered: 0,
        }
    }

    /// Lookups that took too long, or were not tried because others did.
    pub(super) fn unanswered(&self) -> u64 {
        self.unanswered
    }

    /// `None` when there is nothing by this name, or it takes too long. Of a process that has left, what one with this
    /// process's root would find.
    pub(super) fn find(&mut self, tgid: u32, path: &Path) -> Option<Real> {
        let root = self.root(tgid);
        match root.and_then(|root| look_up(root, tgid, path, ResolveFlags::CACHED)) {
            Ok(found) => Some(found),
            Err(Errno::AGAIN | Errno::INVAL) => self.ask(tgid, path),
            Err(_) => None,
        }
    }

    /// A process may have another root by the next time that records are read.
    pub(super) fn forget_root(&mut self) {
        self.root = None;
    }

    fn root(&mut self, tgid: u32) -> Result<&OwnedFd, Errno> {
        let root = match self.root.take() {
            Some((of, root)) if of == tgid => root,
            _ => root_of(tgid).ok(),
        };
        if let Some(root) = &self.root.insert((tgid, root)).1 {
            return Ok(root);
        }
        if self.own_root.is_none() {
            self.own_root = Some(root_at(Path::new("/"))?);
        }
        self.own_root.as_ref().ok_or(Errno::NOENT)
    }

    fn ask(&mut self, tgid: u32, path: &Path) -> Option<Real> {
        let answer = self.answer(tgid, path, clock::boot_ns());
        self.unanswered += u64::from(answer.is_none());
        answer.flatten()
    }

    /// `None` when there is none in time.
    fn answer(&mut self, tgid: u32, path: &Path, now_ns: u64) -> Option<Option<Real>> {
        let fresh_ns = now_ns.saturating_sub(self.counted_ns) / SHARE;
        self.patience_ns = self.patience_ns.saturating_add(fresh_ns).min(SAVED_NS);
        self.counted_ns = now_ns;
        if self.helper.is_none() {
            self.helper = Helper::start().ok();
        }
        let helper = self.helper.as_ref()?;
        if self.patience_ns < LEAST_NS || self.stuck && helper.answers.try_recv().is_err() {
            return None;
        }
        helper.questions.send((tgid, path.to_owned())).ok()?;
        let answer = helper.answers.recv_timeout(Duration::from_nanos(self.patience_ns.min(PATIENCE_NS)));
        self.patience_ns = self.patience_ns.saturating_sub(clock::boot_ns().saturating_sub(now_ns));
        self.stuck = answer == Err(RecvTimeoutError::Timeout);
        if self.stuck {
            log::warn!("a file system does not answer: links are not followed until it does");
        }
        answer.ok()
    }
}

impl Helper {
    fn start() -> io::Result<Self> {
        let (questions, asked) = sync_channel::<(u32, PathBuf)>(1);
        let (answer, answers) = sync_channel(1);
        thread::Builder::new().name("links".into()).stack_size(64 * 1024).spawn(move || {
            while let Ok((tgid, path)) = asked.recv() {
                let root = root_of(tgid).or_else(|_| root_at(Path::new("/")));
                let found = root.and_then(|root| look_up(&root, tgid, &path, ResolveFlags::empty())).ok();
                if answer.send(found).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { questions, answers })
    }
}

fn root_of(tgid: u32) -> Result<OwnedFd, Errno> {
    root_at(Path::new(&format!("/proc/{tgid}/root")))
}

fn root_at(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())
}

fn look_up(root: &OwnedFd, tgid: u32, path: &Path, how: ResolveFlags) -> Result<Real, Errno> {
    let how = how | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how)?;
    let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::NOENT)?;
    let found = fstat(&file)?;
    // A link to `/proc/self` led to us.
    let rest = real
        .strip_prefix("/proc")
        .ok()
        .and_then(|rest| rest.strip_prefix(std::process::id().to_string()).ok());
    let path = rest.map(|rest| Path::new(&format!("/proc/{tgid}")).join(rest));
    let path = path.unwrap_or(real);
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
    fn each_process_is_asked_about_in_its_own_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("here"), b"").unwrap();
        let mut paths = RealPaths::new();
        let own = std::process::id();
        assert_eq!(paths.find(own, Path::new("/usr/lib")).map(|real| real.path), Some("/usr/lib".into()));
        assert_eq!(paths.root.as_ref().map(|(tgid, _)| *tgid), Some(own));
        // One that has left has ours.
        assert_eq!(
            paths.find(u32::MAX, Path::new("/usr/lib")).map(|real| real.path),
            Some("/usr/lib".into())
        );
        assert!(matches!(paths.root, Some((u32::MAX, None))) && paths.own_root.is_some());
        paths.root = Some((own, root_at(dir.path()).ok()));
        assert!(paths.find(own, Path::new("/here")).is_some() && paths.find(1, Path::new("/here")).is_none());
        paths.root = Some((own, root_at(dir.path()).ok()));
        paths.forget_root();
        assert_eq!(paths.find(own, Path::new("/here")), None);
    }

    #[test]
    fn a_lookup_that_hangs_is_given_up_and_the_next_ones_do_not_wait() {
        let (questions, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let mut paths = RealPaths { helper: Some(Helper { questions, answers }), ..RealPaths::new() };
        let begun_ns = clock::boot_ns();
        assert_eq!(paths.ask(1, Path::new("/hangs")), None);
        let passed_ns = clock::boot_ns() - begun_ns;
        assert!(passed_ns >= PATIENCE_NS && paths.stuck);
        assert!(paths.patience_ns <= SAVED_NS - PATIENCE_NS);
        // It is not asked anything while it hangs.
        assert_eq!(paths.ask(1, Path::new("/other")), None);
        assert_eq!((asked.try_iter().count(), paths.unanswered()), (1, 2));
        // Its late answer is nobody's; then it works again.
        let real = |path: &str| Real { path: path.into(), inode: (0, 0) };
        answer.send(Some(real("/late"))).unwrap();
        let worker = thread::spawn(move || {
            for name in ["/found", "/slow"] {
                asked.recv().unwrap();
                answer.send(Some(real(name))).unwrap();
            }
        });
        assert_eq!(paths.ask(1, Path::new("/again")), Some(real("/found")));
        // Who has waited for so long asks nothing for a while, and then again.
        paths.patience_ns = 0;
        assert_eq!((paths.answer(1, Path::new("/more"), paths.counted_ns), paths.unanswered()), (None, 2));
        let later_ns = paths.counted_ns + LEAST_NS * SHARE;
        assert_eq!(paths.answer(1, Path::new("/more"), later_ns), Some(Some(real("/slow"))));
        worker.join().unwrap();
    }
}
