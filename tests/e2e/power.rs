//! The power goes at any write: a block device that keeps what was flushed, and of the rest what chance lets it keep.
//!
//! A file of a file system of ours (FUSE) is the disk behind a loop device with ext4, and writes down every write and flush
//! in order. Afterwards the disk is put together as it might have been left at some write, mounted, and the outbox opened.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use agent::outbox::{Kept, LogOutbox, Outbox as _};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};
use models::wire::{Uplink, UplinkFrame, decode};
use nix::sched::{CloneFlags, unshare};

use crate::needs_root;

const DISK_BYTES: usize = 16 << 20;
/// A disk writes these as a whole.
const SECTOR: usize = 512;
/// The first block of an ext4 file system has its superblock.
const SUPERBLOCK_END: usize = 4096;
const MESSAGES: u64 = 160;
/// Writes at which the power goes.
const CUTS: usize = 60;

enum Op {
    Write(usize, Vec<u8>),
    Flush,
}

#[derive(Default)]
struct Written {
    now: Vec<u8>,
    ops: Vec<Op>,
}

#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Written>>);

impl Disk {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap()
    }

    fn len(&self) -> usize {
        self.written().ops.len()
    }
}

fn attributes(ino: INodeNo) -> FileAttr {
    let (kind, size) =
        if ino == INodeNo::ROOT { (FileType::Directory, 0) } else { (FileType::RegularFile, DISK_BYTES) };
    FileAttr {
        ino,
        size: size as u64,
        blocks: (size / SECTOR) as u64,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

const FOREVER: Duration = Duration::from_secs(3600);
const FILE: INodeNo = INodeNo(2);

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk" {
            reply.entry(&FOREVER, &attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &attributes(ino));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let from = usize::try_from(offset).unwrap().min(DISK_BYTES);
        let to = (from + size as usize).min(DISK_BYTES);
        reply.data(&self.written().now[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let at = usize::try_from(offset).unwrap();
        let mut written = self.written();
        written.now[at..at + data.len()].copy_from_slice(data);
        written.ops.push(Op::Write(at, data.to_vec()));
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.written().ops.push(Op::Flush);
        reply.ok();
    }
}

/// A file mounted through a loop device, unmounted at the end.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(file: &Path, at: &'a Path) -> Self {
        let output = Command::new("mount").args(["-o", "loop"]).arg(file).arg(at).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // A process that another test starts at this moment holds our files from its fork to its exec.
        for _ in 0..100 {
            if Command::new("umount").arg(self.0).status().is_ok_and(|status| status.success()) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert!(thread::panicking(), "{} stays mounted", self.0.display());
    }
}

fn alert(n: u64) -> Uplink {
    crate::device::alert(n, &format!("message {n} {}", "x".repeat(900))).body
}

fn number_of(frame: &UplinkFrame) -> u64 {
    let Uplink::Alert(alert) = &frame.body else { panic!("only alerts were put") };
    alert.summary.split(' ').nth(1).unwrap().parse().unwrap()
}

/// What was promised, and when: after how many operations of the disk.
#[derive(Default)]
struct Promises {
    /// Message and its number in the outbox, when it was said to be kept.
    kept: Vec<(usize, u64, u64)>,
    /// Up to which number was to be forgotten, before that began.
    forgotten: Vec<(usize, u64)>,
}

/// Puts messages and forgets some, on the disk that writes everything down. Half-way nothing waits, and it is opened anew.
fn work(disk: &Disk, state: &Path) -> Promises {
    let mut promises = Promises::default();
    let mut outbox = LogOutbox::open(state, 1 << 20).unwrap();
    for n in 1..=MESSAGES {
        if n == MESSAGES / 2 {
            promises.forgotten.push((disk.len(), n - 1));
            outbox.forget(n - 1).unwrap();
            drop(outbox);
            outbox = LogOutbox::open(state, 1 << 20).unwrap();
        }
        match outbox.put(alert(n)).unwrap() {
            Kept::As(seq) => promises.kept.push((disk.len(), n, seq)),
            other => panic!("{other:?}"),
        }
        if n % 40 == 0 {
            promises.forgotten.push((disk.len(), n - 25));
            outbox.forget(n - 25).unwrap();
        }
    }
    promises
}

/// The disk as it may be when the power goes before operation `cut`: everything up to the last flush, and of what came behind
/// it each write, a part of it, or nothing.
fn left(base: &[u8], ops: &[Op], cut: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    let flushed = ops[..cut].iter().rposition(|op| matches!(op, Op::Flush)).unwrap_or(0);
    let share = random.u8(0..=4);
    let mut image = base.to_vec();
    for (index, op) in ops[..cut].iter().enumerate() {
        let Op::Write(at, data) = op else { continue };
        let whole = index < flushed || random.u8(0..4) < share;
        // A sector is written or not. ext4 counts on its superblock being written whole, and does not mount without.
        let is_whole = whole || *at < SUPERBLOCK_END;
        let len = if is_whole { data.len() } else { random.usize(0..=data.len() / SECTOR) * SECTOR };
        let kept = if whole || random.bool() { len } else { 0 };
        image[*at..at + kept].copy_from_slice(&data[..kept]);
    }
    image
}

/// What is mounted in a namespace that came from ours stays mounted there when we are done with it, and holds the disk. So
/// ours is one that nobody else comes from.
fn alone_with_what_is_mounted() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let output = Command::new("mount").args(["--make-rprivate", "/"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn no_kept_message_is_lost_when_the_power_goes_at_any_write() {
    needs_root();
    // A thread of its own: with one test at a time this one is that of all tests.
    thread::spawn(lose_power).join().unwrap();
}

fn lose_power() {
    alone_with_what_is_mounted();
    let dir = tempfile::tempdir().unwrap();
    let (folder, mount, image) =
        (dir.path().join("fuse"), dir.path().join("mount"), dir.path().join("image"));
    fs::create_dir(&folder).unwrap();
    fs::create_dir(&mount).unwrap();
    fs::write(&image, vec![0; DISK_BYTES]).unwrap();
    let made =
        Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F", "-b", "1024"]).arg(&image).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let base = fs::read(&image).unwrap();

    let disk = Disk::default();
    disk.written().now.clone_from(&base);
    let session = fuser::spawn_mount(disk.clone(), &folder, &fuser::Config::default()).unwrap();
    let promises = {
        let _mounted = Mounted::new(&folder.join("disk"), &mount);
        work(&disk, &mount)
    };
    session.umount_and_join().unwrap();
    let ops = std::mem::take(&mut disk.written().ops);
    let flushes = ops.iter().filter(|op| matches!(op, Op::Flush)).count();
    assert!(flushes as u64 >= MESSAGES, "{flushes} flushes for {MESSAGES} messages: nothing was synced");

    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut promised = 0;
    for n in 0..CUTS {
        let cut = random.usize(1..=ops.len());
        // Of what is still in use, mount would give us the one before again.
        let image = dir.path().join(format!("left-{n}"));
        fs::write(&image, left(&base, &ops, cut, &mut random)).unwrap();
        let at = format!("seed {seed}, power cut at {cut} of {}", ops.len());
        let _mounted = Mounted::new(&image, &mount);
        let outbox = LogOutbox::open(&mount, 1 << 20).unwrap_or_else(|error| panic!("{at}: {error}"));
        let (mut found, mut from) = (Vec::new(), 0);
        while let Some((seq, bytes)) = outbox.after(from).unwrap() {
            found.push(number_of(&decode(&bytes).unwrap()));
            from = seq;
        }
        assert!(found.is_sorted_by(|a, b| a < b), "{at}: {found:?}");
        let before = |then: usize| then <= cut;
        let forgotten =
            promises.forgotten.iter().filter(|(then, _)| before(*then)).map(|(_, seq)| *seq).max();
        let kept = promises.kept.iter().filter(|(then, ..)| before(*then));
        let mut highest = 0;
        for (_, n, seq) in kept {
            let waits = Some(*seq) > forgotten;
            assert!(!waits || found.contains(n), "{at}: message {n} was kept and is lost");
            promised += u64::from(waits);
            highest = *seq;
        }
        assert_eq!(outbox.damaged(), 0, "{at}");
        let Kept::As(next) = outbox.put(alert(1000)).unwrap() else { panic!("{at}: no room") };
        assert!(next > highest, "{at}: the number {next} is used again");
        fs::remove_file(image).unwrap();
    }
    assert!(promised > 100, "{promised} promises were looked at");
}
