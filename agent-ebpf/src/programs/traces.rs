//! The anti-forensic layer: files removed, emptied, renamed or redated in watched directories.
//!
//! An absolute path is matched by its text. A bare name or a descriptor is matched by walking up from the directory
//! or file it stands for, which needs the kernel's type information; what cannot be decided here is decided by the
//! agent, under a cap of its own.

use agent_ebpf::{
    acts::is_erasure,
    records::{
        Class, DirectoryKey, Field, KIND_TAMPER, Open, PATH_LEN, PLACE_UNKNOWN, PLACE_WATCHED, REPLACED,
        Tamper,
    },
    sensitive::is_roundabout,
    watched::{WATCHED_MAX, WORDS, Watched},
};
use aya_ebpf::{
    helpers::{bpf_get_current_task, generated::bpf_probe_read_kernel as raw_read_kernel},
    macros::map,
    maps::PerCpuArray,
};

use crate::{
    call::{call_of, slot},
    call_layer,
    file::AT_FDCWD,
    shared::{
        Caller, DIRECTORIES, OWN_MNT_NS, PathAt, WATCHED, field, offset, read_kernel, read_path, send_urgent,
    },
};

const SLOT_TRUNCATE: u16 = 76;
const SLOT_FTRUNCATE: u16 = 77;
const SLOT_RENAME: u16 = 82;
const SLOT_RENAMEAT: u16 = 264;
pub(crate) const SLOT_RENAMEAT2: u16 = 316;
const SLOT_UNLINK: u16 = 87;
pub(crate) const SLOT_UNLINKAT: u16 = 263;
const SLOT_UTIME: u16 = 132;
const SLOT_UTIMES: u16 = 235;
const SLOT_FALLOCATE: u16 = 285;
/// Directories between a file and the root that are looked at.
const DEPTH: usize = 12;

/// The record is too large for the stack, and whether it is sent is known only when its path is.
#[map]
static WIPING: PerCpuArray<Tamper> = PerCpuArray::with_max_entries(1, 0);

call_layer!(tamper_btf, tamper_raw, tamper_tp, tamper);

/// Whether a file lies in a watched directory.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Watched,
    Elsewhere,
    Unknown,
}

#[inline(always)]
fn tamper(caller: Caller, nr: u64, arg: impl Fn(usize) -> u64) {
    let call = slot(nr);
    let (dfd, path) = match call {
        SLOT_FALLOCATE if !is_erasure(arg(1)) => return,
        SLOT_FTRUNCATE | SLOT_FALLOCATE => (arg(0) as i32, 0),
        SLOT_TRUNCATE | SLOT_RENAME | SLOT_UNLINK | SLOT_UTIME | SLOT_UTIMES => (AT_FDCWD, arg(0)),
        // unlinkat, renameat, renameat2, futimesat, utimensat. Without a path the last two mean the descriptor.
        _ => (arg(0) as i32, arg(1)),
    };
    // What is renamed over another file removes that one.
    let (other_dfd, other_path) = match call {
        SLOT_RENAME => (AT_FDCWD, arg(1)),
        SLOT_RENAMEAT | SLOT_RENAMEAT2 => (arg(2) as i32, arg(3)),
        _ => (0, 0),
    };
    let mut names = [(dfd, path, 0), (other_dfd, other_path, REPLACED)].into_iter();
    while let Some((dfd, path, flags)) = names.next() {
        if touched(caller, call_of(nr), dfd, PathAt::User(path), flags) || other_path == 0 {
            return;
        }
    }
}

/// A file by directory and path, which is empty at address zero; true when it lies in a watched directory.
#[inline(always)]
pub(crate) fn touched(caller: Caller, call: u32, dfd: i32, path: PathAt, flags: u32) -> bool {
    let Some(record) = WIPING.get_ptr_mut(0) else { return false };
    // SAFETY: `record` points into this CPU's element, and no other program of ours runs on this CPU meanwhile.
    unsafe {
        (*record).dfd = dfd;
        (*record).flags = flags;
        let text = &raw mut (*record).path;
        if let PathAt::User(0) = path {
            *text.cast::<u8>() = 0;
        } else {
            read_path(text, path);
        }
        report(caller, call, record)
    }
}

/// A file was opened to be emptied.
#[inline(always)]
pub(crate) fn opened(caller: Caller, call: u32, open: &Open) {
    let Some(record) = WIPING.get_ptr_mut(0) else { return };
    // SAFETY: as above. Both paths are whole ones in map values, so the helper cannot fail.
    unsafe {
        (*record).dfd = open.dfd;
        (*record).flags = open.flags;
        raw_read_kernel((&raw mut (*record).path).cast(), PATH_LEN as u32, (&raw const open.path).cast());
        report(caller, call, record);
    }
}

/// Sends the record unless its file lies elsewhere; true when it lies in a watched directory.
///
/// # Safety
///
/// `record` points into this CPU's element of a per-CPU map.
#[inline(always)]
unsafe fn report(caller: Caller, call: u32, record: *mut Tamper) -> bool {
    let Some(watched) = WATCHED.get_ptr(0) else { return false };
    // SAFETY: by this function's contract; `watched` points to the array's only element, which the agent writes once.
    let place = unsafe { place(&*record, &*watched) };
    let (class, code) = match place {
        Place::Watched => (Class::AntiForensic, PLACE_WATCHED),
        Place::Unknown => (Class::Unplaced, PLACE_UNKNOWN),
        Place::Elsewhere => return false,
    };
    // Not one call for both: a class must be a constant where its cap is taken.
    let may = match place {
        Place::Watched => caller.may_act(Class::AntiForensic),
        _ => caller.may_act(Class::Unplaced),
    };
    if may {
        // SAFETY: by this function's contract.
        unsafe {
            caller.write_header(&raw mut (*record).header, KIND_TAMPER);
            (*record).call = call;
            (*record).place = code;
            send_urgent(class, &*record);
        }
    }
    code == PLACE_WATCHED
}

#[inline(always)]
fn place(record: &Tamper, watched: &Watched) -> Place {
    let first = record.path[0];
    if first == b'/' {
        // SAFETY: the path is 256 bytes long and, after 56 bytes of other fields, aligned to eight.
        let path = unsafe { &*(&raw const record.path).cast::<[u64; PATH_LEN / 8]>() };
        let (words, _) = path.split_first_chunk::<WORDS>().unwrap_or((&[0; WORDS], &[]));
        let mut at = 0;
        while at < WATCHED_MAX {
            if watched.list[at].holds(words) {
                return Place::Watched;
            }
            at += 1;
        }
        return if is_roundabout(path) { Place::Unknown } else { Place::Elsewhere };
    }
    let start = if record.dfd == AT_FDCWD { working_directory() } else { file(record.dfd) };
    match start.map(is_below) {
        Some(Some(true)) => Place::Watched,
        // Its own directory is elsewhere, but a relative path may lead out of it.
        Some(Some(false)) if (first == 0 || is_bare(&record.path)) && sees_our_mounts() => Place::Elsewhere,
        _ => Place::Unknown,
    }
}

/// Whether the watched directories are those of this process: a container has its own under the same names.
#[inline(always)]
fn sees_our_mounts() -> bool {
    let number = || -> Option<u32> {
        // SAFETY: the helper takes no arguments.
        let task = unsafe { bpf_get_current_task() };
        let proxy: u64 = field(task, Field::TaskNsproxy)?;
        let mounts: u64 = field(proxy, Field::NsproxyMnt)?;
        field(mounts + offset(Field::MntNs)?, Field::NsInum)
    };
    // Unknown numbers are taken for ours, as on a kernel that does not tell.
    number().is_none_or(|number| number == OWN_MNT_NS.load())
}

/// Whether a relative path stays in its directory: no slash in its beginning.
#[inline(always)]
fn is_bare(path: &[u8; PATH_LEN]) -> bool {
    let mut at = 0;
    while at < 48 {
        if path[at] == b'/' {
            return false;
        }
        if path[at] == 0 {
            return true;
        }
        at += 1;
    }
    false
}

/// A file or directory, and the mount that it was reached by.
#[derive(Clone, Copy)]
pub(crate) struct Spot {
    pub(crate) dentry: u64,
    mount: u64,
}

#[inline(always)]
pub(crate) fn working_directory() -> Option<Spot> {
    // SAFETY: the helper takes no arguments.
    let task = unsafe { bpf_get_current_task() };
    let fs: u64 = field(task, Field::TaskFs)?;
    spot(fs + offset(Field::FsPwd)?)
}

#[inline(always)]
pub(crate) fn file(fd: i32) -> Option<Spot> {
    // SAFETY: the helper takes no arguments.
    let task = unsafe { bpf_get_current_task() };
    let files: u64 = field(task, Field::TaskFiles)?;
    let table: u64 = field(files, Field::FilesFdt)?;
    let max: u32 = field(table, Field::FdtMax)?;
    if fd < 0 || fd as u32 >= max {
        return None;
    }
    let list: u64 = field(table, Field::FdtFd)?;
    let file: u64 = read_kernel(list + 8 * u64::from(fd as u32))?;
    spot(file + offset(Field::FilePath)?)
}

/// What a `struct path` says.
#[inline(always)]
fn spot(path: u64) -> Option<Spot> {
    Some(Spot { dentry: field(path, Field::PathDentry)?, mount: field(path, Field::PathMnt)? })
}

/// Inode and device of a file or directory.
#[inline(always)]
pub(crate) fn identity(dentry: u64) -> Option<DirectoryKey> {
    let inode: u64 = field(dentry, Field::DentryInode)?;
    let sb: u64 = field(inode, Field::InodeSb)?;
    Some(DirectoryKey { inode: field(inode, Field::InodeIno)?, device: field(sb, Field::SbDev)?, _pad: 0 })
}

/// Walks up from a file or directory, and from the root of a file system to where it is mounted; `None` when the end was
/// not reached.
#[inline(always)]
fn is_below(mut spot: Spot) -> Option<bool> {
    let mut depth = 0;
    while depth < DEPTH {
        // SAFETY: the agent writes the entries before any program runs.
        if unsafe { DIRECTORIES.get(identity(spot.dentry)?) }.is_some_and(|directory| directory.watched != 0)
        {
            return Some(true);
        }
        let parent: u64 = field(spot.dentry, Field::DentryParent)?;
        if parent == spot.dentry {
            let mount = spot.mount.wrapping_sub(offset(Field::MountMnt)?);
            let above: u64 = field(mount, Field::MountParent)?;
            if above == mount {
                return Some(false);
            }
            spot = Spot { dentry: field(mount, Field::MountPoint)?, mount: above + offset(Field::MountMnt)? };
        } else {
            spot.dentry = parent;
        }
        depth += 1;
    }
    None
}
