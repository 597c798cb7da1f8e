//! What crosses the border between kernel and agent: records, window entries, counters and names.
//!
//! All of it is plain integers without padding, so no bit pattern is invalid. Both sides come from the same build,
//! so nothing here is kept stable between versions. Byte order is the device's own.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use crate::counters::{ACTS, Class, Field, counter};
pub use crate::window::{Thread, Window, WindowKey};

/// Bytes of a thread name, with its final NUL.
pub const COMM_LEN: usize = 16;
/// Bytes of a path, with its final NUL.
pub const PATH_LEN: usize = 256;
/// Bytes of a command line that a record holds.
pub const ARGUMENTS_LEN: usize = 256;
/// Bytes of a control group's name, with its final NUL: `cri-containerd-`, 64 digits and `.scope` fit.
pub const GROUP_LEN: usize = 96;
/// System call slots of the feature schema.
pub const SYSCALL_SLOTS: usize = 335;
/// Buckets of hashed call pairs of the feature schema.
pub const BIGRAMS: usize = 50;
/// Native system call numbers that the programs can map and dispatch on.
pub const NATIVE_CALLS: usize = 512;
/// Places of calls: native numbers, then those of 32-bit calls, each [`NATIVE_CALLS`] higher.
pub const CALL_PLACES: usize = 2 * NATIVE_CALLS;
/// Numbers of i386's `socketcall`.
pub const SOCKETCALLS: usize = 32;
/// In [`names::NARROW_IN`]: the mark of a 32-bit call is among the saved registers.
pub const NARROW_IN_REGISTERS: u32 = 1;
/// In [`names::NARROW_IN`]: it is in the task, which `bpf_get_current_task_btf` gives. The minimum kernel version is 5.11.
pub const NARROW_IN_TASK: u32 = 2;
/// In [`names::NARROW_IN`]: it is in the task, on older kernels.
pub const NARROW_IN_OLD_TASK: u32 = 3;
/// In the slot table: this number has no slot.
pub const UNMAPPED: u16 = u16::MAX;
/// Length of one activity bucket, in nanoseconds.
pub const ACTIVE_BUCKET_NS: u64 = 100_000_000;
/// Activity buckets of a window; later calls fall into the last one.
pub const ACTIVE_BUCKETS: u64 = 512;
/// Elements of the table of threads. A power of two.
pub const THREAD_CELLS: u32 = 16_384;
/// A global that user space could not fill in: the kernel's type information did not tell the offset.
pub const OFFSET_UNKNOWN: u32 = u32::MAX;

/// Schema slot of `open(2)`.
pub const SLOT_OPEN: u16 = 2;
/// Schema slot of `connect(2)`.
pub const SLOT_CONNECT: u16 = 42;
/// Schema slot of `creat(2)`.
pub const SLOT_CREAT: u16 = 85;
/// Schema slot of `openat(2)`.
pub const SLOT_OPENAT: u16 = 257;
/// Number of `openat2(2)`, the same on every architecture; it shares the slot of `openat`.
pub const NR_OPENAT2: u64 = 437;
/// The first number from which every architecture counts alike. Newer calls are reported by it, older ones by slot.
pub const NR_SHARED: u64 = 424;
/// Bytes of a message that a [`Dns`] record carries: header, the longest name, type and class, TCP's length.
pub const DNS_LEN: usize = 288;
/// The place in the dispatchers' arrays behind which the program is that looks at opens for writing: no call has this
/// number.
pub const WRITTEN: u32 = NATIVE_CALLS as u32 - 1;
/// In [`Epoch::modes`]: sent and received bytes are counted from the arguments of calls, for want of better.
pub const MODE_COUNT_CALLS: u32 = 1;
/// In [`Epoch::modes`]: ordinary opens are not reported, so that the CPU budget holds; they count as throttled.
pub const MODE_SHED_OPENS: u32 = 2;
/// In [`Epoch::modes`]: there is something in the map of control groups whose egress is denied.
pub const MODE_DENY_EGRESS: u32 = 4;
/// In [`Epoch::modes`]: only what is in the map of what is reachable leaves this machine.
pub const MODE_QUARANTINE: u32 = 8;
/// Addresses and networks that a quarantined device may reach.
pub const REACHABLE_MAX: u32 = 64;
/// Ports of one of them; all zero for any.
pub const PORTS: usize = 4;
/// Control groups whose egress may be denied at a time.
pub const DENIED_MAX: u32 = 64;
/// How far below the root a control group is found whose egress is denied.
pub const CGROUP_DEPTH_MAX: i32 = 8;

/// A volume that nobody knows.
pub const VOLUME_UNKNOWN: u64 = u64::MAX;

/// What a gram that is not in a table adds to a window's surprisal.
pub const GRAM_MISS: u64 = 255;
/// Grams not in the table that a window keeps.
pub const STRANGE: usize = 4;
/// Grams that a window counts itself once it has found them; a power of two. The others are looked up in their map each time.
pub const USUAL: usize = 32;

/// Bits by which a window tells kinds of grams apart; a power of two.
pub const KIND_BITS: usize = 1024;

/// Names of maps and globals, as the object file spells them.
pub mod names {
    /// Array of [`super::Window`].
    pub const WINDOWS: &str = "WINDOWS";
    /// Hash: [`super::WindowKey`] to the place of its window, a `u32`.
    pub const PLACES: &str = "PLACES";
    /// Stack of places that hold no window, `u32` each. User space fills it.
    pub const FREE: &str = "FREE";
    /// Array of one [`super::Epoch`].
    pub const EPOCH: &str = "EPOCH";
    /// Hash: [`crate::gram::table_key`] to quantised surprisal, a `u32`.
    pub const GRAMS: &str = "GRAMS";
    /// Hash: [`crate::gram::learner_key`] to how often, a `u32`.
    pub const LEARNED: &str = "LEARNED";
    /// Hash: process to [`super::Follow`].
    pub const FOLLOWED: &str = "FOLLOWED";
    /// Per-CPU array of `u64`; see [`super::counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring of records that must not wait.
    pub const URGENT: &str = "URGENT";
    /// Ring of records that come in floods.
    pub const BULK: &str = "BULK";
    /// Program array of the `tp_btf` dispatcher, by place of the call.
    pub const CALLS_BTF: &str = "CALLS_BTF";
    /// Program array of the `raw_tp` dispatcher, by place of the call.
    pub const CALLS_RAW: &str = "CALLS_RAW";
    /// Global `u32`: the agent's own process, which is not watched.
    pub const OWN_TGID: &str = "OWN_TGID";
    /// Global `u32`: number of the agent's mount namespace.
    pub const OWN_MNT_NS: &str = "OWN_MNT_NS";
    /// Hash: [`super::DirectoryKey`] to [`super::Directory`].
    pub const DIRECTORIES: &str = "DIRECTORIES";
    /// Global `u32`: bytes in the urgent ring up to which a process's further records of a kind go in.
    pub const REPEATS_UP_TO: &str = "REPEATS_UP_TO";
    /// Global `u32`: bytes in the urgent ring up to which the coming and going of processes goes in.
    pub const LIFE_UP_TO: &str = "LIFE_UP_TO";
    /// Array of one [`crate::watched::Watched`].
    pub const WATCHED: &str = "WATCHED";
    /// LRU hash: [`super::SocketKey`] to [`super::Peer`], sockets connected to port 53.
    pub const DNS_SOCKETS: &str = "DNS_SOCKETS";
    /// Hash: id of a version 2 control group whose egress is denied, a `u64`, to a `u32` that nobody reads.
    pub const DENIED: &str = "DENIED";
    /// What a quarantined device may reach.
    pub const REACHABLE: &str = "REACHABLE";
    /// LRU hash: [`super::PeerKey`] to the epoch in which it was told, a `u32`.
    pub const PEERS: &str = "PEERS";
    /// Global array of `u32`: offsets of struct fields; see [`super::Field`].
    pub const FIELDS: &str = "FIELDS";
    /// Global `u32`: records that one process may report per epoch in each class of rare acts.
    pub const ACT_CAP: &str = "ACT_CAP";
    /// Global `[u32; 6]`: offsets of the call arguments in the saved registers.
    pub const ARG_OFFSETS: &str = "ARG_OFFSETS";
    /// Global `[u16; 1024]`: place of a call to schema slot.
    pub const SLOTS: &str = "SLOTS";
    /// Global `[u32; 6]`: offsets of a 32-bit call's arguments in the saved registers.
    pub const NARROW_ARG_OFFSETS: &str = "NARROW_ARG_OFFSETS";
    /// Global `u32`: where the mark of a 32-bit call is; 0 for nowhere, so that all calls count as native.
    pub const NARROW_IN: &str = "NARROW_IN";
    /// Global `u32`: offset of the 32-bit word that holds the mark.
    pub const NARROW_AT: &str = "NARROW_AT";
    /// Global `u32`: the mark in that word.
    pub const NARROW_BIT: &str = "NARROW_BIT";
    /// Global `u32`: number of the 32-bit call that stands for all on sockets; all ones for none.
    pub const SOCKETCALL: &str = "SOCKETCALL";
    /// Global `[u16; 32]`: the places of the calls that it stands for.
    pub const SOCKETCALL_PLACES: &str = "SOCKETCALL_PLACES";
    /// Global `u32`: place of a 32-bit call in the slot of `sendto` that has no address.
    pub const SEND_WITHOUT_ADDRESS: &str = "SEND_WITHOUT_ADDRESS";
    /// Global `u32`: offset of `task_struct.pid`.
    pub const TASK_PID: &str = "TASK_PID";
    /// Global `u32`: offset of `task_struct.tgid`.
    pub const TASK_TGID: &str = "TASK_TGID";
    /// Global `u32`: offset of `task_struct.signal`.
    pub const TASK_SIGNAL: &str = "TASK_SIGNAL";
    /// Global `u32`: offset of `signal_struct.live`.
    pub const SIGNAL_LIVE: &str = "SIGNAL_LIVE";
    /// Global `u32`: offset of `linux_binprm.filename`.
    pub const BPRM_FILENAME: &str = "BPRM_FILENAME";
    /// Global `u32`: ordinary opens that one process may report per epoch.
    pub const BULK_CAP: &str = "BULK_CAP";
    /// Global `u32`: connections and sensitive opens that one process may report per epoch.
    pub const URGENT_CAP: &str = "URGENT_CAP";
    /// Global `u32`: bytes waiting in the bulk ring that wake its reader.
    pub const BULK_WAKE_BYTES: &str = "BULK_WAKE_BYTES";
}

/// [`Header::kind`] of an [`Exec`].
pub const KIND_EXEC: u32 = 1;
/// [`Header::kind`] of a [`Fork`].
pub const KIND_FORK: u32 = 2;
/// [`Header::kind`] of an exit, which is a bare [`Header`].
pub const KIND_EXIT: u32 = 3;
/// [`Header::kind`] of an [`Open`].
pub const KIND_OPEN: u32 = 4;
/// [`Header::kind`] of a [`Connect`].
pub const KIND_CONNECT: u32 = 5;
/// [`Header::kind`] of a [`Flush`].
pub const KIND_FLUSH: u32 = 6;

/// [`Header::kind`] of an [`Inject`].
pub const KIND_INJECT: u32 = 7;
/// [`Header::kind`] of an [`Escape`].
pub const KIND_ESCAPE: u32 = 8;
/// [`Header::kind`] of a [`Tamper`].
pub const KIND_TAMPER: u32 = 9;
/// [`Header::kind`] of a [`Dns`].
pub const KIND_DNS: u32 = 10;
/// [`Header::kind`] of a [`Act`] by which a process asks for user id 0.
pub const KIND_PRIVILEGE: u32 = 11;
/// [`Header::kind`] of a [`Act`] by which code enters the kernel.
pub const KIND_KERNEL_LOAD: u32 = 12;

/// The beginning of every record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// `CLOCK_BOOTTIME` at the hook, in nanoseconds.
    pub boot_ns: u64,
    /// One of the `KIND_` constants.
    pub kind: u32,
    /// Process (thread group) id in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Real user id.
    pub uid: u32,
    /// Thread name, NUL-terminated.
    pub comm: [u8; COMM_LEN],
}

/// A process replaced its program.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Exec {
    /// Who.
    pub header: Header,
    /// 1 when the file has no name any more (memory, or deleted), 0 when it has, 2 when the kernel could not tell.
    pub unlinked: u32,
    /// Bytes of `arguments` that were read; 0 when the kernel could not tell.
    pub arguments_len: u32,
    /// Names of its control group of version 2 and, before that, of the one above; NUL-terminated, empty where the kernel
    /// could not tell, and of the root. Bytes after the NUL mean nothing.
    pub groups: [[u8; GROUP_LEN]; 2],
    /// NUL-terminated; bytes after the NUL mean nothing.
    pub filename: [u8; PATH_LEN],
    /// The command line as in `/proc/PID/cmdline`: each argument ends with a NUL, the last may be cut.
    pub arguments: [u8; ARGUMENTS_LEN],
}

/// A process made a child process.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Fork {
    /// The parent.
    pub header: Header,
    /// The child's process id.
    pub child: u32,
    /// Zero.
    pub _pad: u32,
}

/// A process asked for a file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Open {
    /// Who.
    pub header: Header,
    /// Directory that a relative path starts from, or `AT_FDCWD`.
    pub dfd: i32,
    /// Flags of `open(2)`.
    pub flags: u32,
    /// 1 when the path is sensitive, else 0.
    pub sensitive: u32,
    /// Zero.
    pub _pad: u32,
    /// NUL-terminated; bytes after the NUL mean nothing. Empty when the text was not in memory.
    pub path: [u8; PATH_LEN],
}

/// A process asked for a connection over IPv4 or IPv6.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Connect {
    /// Who.
    pub header: Header,
    /// `AF_INET` (2) or `AF_INET6` (10).
    pub family: u32,
    /// Host order.
    pub port: u32,
    /// Network order; IPv4 uses the first four bytes and the others are zero.
    pub addr: [u8; 16],
}

/// A process wrote into another one, or asked to control it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Inject {
    /// Who.
    pub header: Header,
    /// Slot of the call, or its number from [`NR_SHARED`] on.
    pub call: u32,
    /// The other process, as the caller numbers it: inside a pid namespace that is not the initial number.
    pub victim: u32,
    /// The request of `ptrace`, else zero.
    pub request: u64,
}

/// A process changed what it sees of the system, or reached for what lies outside its container.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Escape {
    /// Who.
    pub header: Header,
    /// Slot of the call, or its number from [`NR_SHARED`] on.
    pub call: u32,
    /// The file descriptor that the call takes, or -1.
    pub fd: i32,
    /// Flags of the call.
    pub flags: u64,
    /// Target of a mount, new root, or the file written to. NUL-terminated.
    pub path: [u8; PATH_LEN],
    /// Source of a mount. NUL-terminated.
    pub source: [u8; PATH_LEN],
}

/// A process removed, emptied, renamed or redated a file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Tamper {
    /// Who.
    pub header: Header,
    /// Slot of the call, or its number from [`NR_SHARED`] on.
    pub call: u32,
    /// Directory of a relative path, or the file itself when `path` is empty.
    pub dfd: i32,
    /// Flags of an open; [`REPLACED`] when another file took this one's name; else zero.
    pub flags: u32,
    /// One of the `PLACE_` constants.
    pub place: u32,
    /// NUL-terminated. Empty when the call names the file by descriptor.
    pub path: [u8; PATH_LEN],
}

/// [`Tamper::flags`] of a rename: the path is the new name, and what had it is gone.
pub const REPLACED: u32 = 1;
/// [`Tamper::place`]: the kernel could not tell whether the file lies in a watched directory.
pub const PLACE_UNKNOWN: u32 = 0;
/// [`Tamper::place`]: it does.
pub const PLACE_WATCHED: u32 = 1;

/// A process sent a message to port 53.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Dns {
    /// Who.
    pub header: Header,
    /// `AF_INET` (2) or `AF_INET6` (10).
    pub family: u32,
    /// Bytes of the whole message.
    pub len: u32,
    /// Bytes of `message` that are part of it.
    pub taken: u32,
    /// Zero.
    pub _pad: u32,
    /// Network order; IPv4 uses the first four bytes and the others are zero.
    pub addr: [u8; 16],
    /// The beginning of the message.
    pub message: [u8; DNS_LEN],
}

/// A call that says everything by its number and one argument.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Act {
    /// Who.
    pub header: Header,
    /// Slot of the call, or its number from [`NR_SHARED`] on.
    pub call: u32,
    /// The command of `bpf`, the descriptor of `finit_module`, else zero.
    pub argument: u32,
}

/// A socket of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SocketKey {
    /// Process.
    pub tgid: u32,
    /// Its descriptor.
    pub fd: u32,
}

/// Someone whom a process sent a datagram to.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PeerKey {
    /// Process.
    pub tgid: u32,
    /// To whom.
    pub peer: Peer,
}

/// Whom a socket talks to.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Peer {
    /// `AF_INET` (2) or `AF_INET6` (10).
    pub family: u32,
    /// Host order.
    pub port: u32,
    /// Network order; IPv4 uses the first four bytes and the others are zero.
    pub addr: [u8; 16],
}

/// Names a directory.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DirectoryKey {
    /// Its inode.
    pub inode: u64,
    /// Its device as the kernel numbers it.
    pub device: u32,
    /// Zero.
    pub _pad: u32,
}

/// A directory that the programs know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Directory {
    /// Not zero when nobody should remove, empty or redate the files in it.
    pub watched: u32,
    /// Bytes of `text`; zero when no relative path from here leads to a sensitive file.
    pub len: u32,
    /// Its absolute path with a final slash.
    pub text: [u8; DIRECTORY_LEN],
}

/// Bytes of a [`Directory`]'s path at most; a power of two.
pub const DIRECTORY_LEN: usize = 32;

/// What becomes of the grams of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Follow {
    /// Table that they are looked up in, 0 for none.
    pub table: u16,
    /// Id under which they are counted, 0 for none.
    pub learner: u16,
}

/// A process left while its window was open.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Flush {
    /// Who.
    pub header: Header,
    /// What it held.
    pub window: Window,
}

/// Which epoch is open. The start of the next epoch is written before `current` changes, so that a program never
/// pairs an epoch with the start of another.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Epoch {
    /// The open epoch. Counts up from 1.
    pub current: u32,
    /// `MODE_` bits.
    pub modes: u32,
    /// Counts up, from 1, whenever a process gets another table or learner.
    pub assigned: u32,
    /// Zero.
    pub _pad: u32,
    /// Starts of the even and the odd epoch, `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: [u64; 2],
}

const _: () = assert!(size_of::<Header>() == 40);
const _: () = assert!(size_of::<Exec>() == 752);
const _: () = assert!(size_of::<Fork>() == 48);
const _: () = assert!(size_of::<Open>() == 312);
const _: () = assert!(size_of::<Connect>() == 64);
const _: () = assert!(size_of::<Flush>() == 2352);
const _: () = assert!(size_of::<Epoch>() == 32);
const _: () = assert!(size_of::<Inject>() == 56);
const _: () = assert!(size_of::<Escape>() == 568);
const _: () = assert!(size_of::<Tamper>() == 312);
const _: () = assert!(size_of::<Dns>() == 360);
const _: () = assert!(size_of::<Act>() == 48);
