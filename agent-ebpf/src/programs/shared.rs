//! Maps, globals and the few steps that every layer takes.

use core::ptr;

use agent_ebpf::{
    records::{
        COMM_LEN, Class, Directory, DirectoryKey, Epoch, Field, Follow, Header, OFFSET_UNKNOWN, PATH_LEN,
        Peer, SocketKey, THREAD_CELLS, Thread, Window, WindowKey, counter,
    },
    watched::Watched,
};
use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
        bpf_probe_read_kernel, bpf_probe_read_user,
        generated::{
            bpf_get_current_comm as raw_get_comm, bpf_probe_read_kernel_str as raw_read_kernel_str,
            bpf_probe_read_user_str as raw_read_user_str,
        },
    },
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, Stack},
};

#[map]
pub(crate) static WINDOWS: Array<Window> = Array::with_max_entries(2048, 0);
#[map]
pub(crate) static PLACES: HashMap<WindowKey, u32> = HashMap::with_max_entries(2048, 0);
#[map]
pub(crate) static FREE: Stack<u32> = Stack::with_max_entries(2048, 0);
#[map]
pub(crate) static EPOCH: Array<Epoch> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static THREADS: Array<Thread> = Array::with_max_entries(THREAD_CELLS, 0);
#[map]
pub(crate) static GRAMS: HashMap<u64, u32> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static LEARNED: HashMap<u64, u32> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FOLLOWED: HashMap<u32, Follow> = HashMap::with_max_entries(2048, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::LEN, 0);
#[map]
pub(crate) static URGENT: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
#[map]
pub(crate) static BULK: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);
#[map]
pub(crate) static WATCHED: Array<Watched> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static DIRECTORIES: HashMap<DirectoryKey, Directory> = HashMap::with_max_entries(64, 0);
#[map]
pub(crate) static DNS_SOCKETS: LruHashMap<SocketKey, Peer> = LruHashMap::with_max_entries(1024, 0);

#[unsafe(no_mangle)]
static OWN_TGID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static OWN_MNT_NS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FIELDS: [Global<u32>; Field::ALL.len()] = [const { Global::new(OFFSET_UNKNOWN) }; Field::ALL.len()];
#[unsafe(no_mangle)]
static ACT_CAP: Global<u32> = Global::new(256);
#[unsafe(no_mangle)]
pub(crate) static TASK_PID: Global<u32> = Global::new(OFFSET_UNKNOWN);
#[unsafe(no_mangle)]
pub(crate) static TASK_TGID: Global<u32> = Global::new(OFFSET_UNKNOWN);
#[unsafe(no_mangle)]
pub(crate) static TASK_SIGNAL: Global<u32> = Global::new(OFFSET_UNKNOWN);
#[unsafe(no_mangle)]
pub(crate) static SIGNAL_LIVE: Global<u32> = Global::new(OFFSET_UNKNOWN);
#[unsafe(no_mangle)]
pub(crate) static BPRM_FILENAME: Global<u32> = Global::new(OFFSET_UNKNOWN);
#[unsafe(no_mangle)]
pub(crate) static BULK_CAP: Global<u32> = Global::new(256);
#[unsafe(no_mangle)]
static URGENT_CAP: Global<u32> = Global::new(512);
#[unsafe(no_mangle)]
static REPEATS_UP_TO: Global<u32> = Global::new(128 * 1024);
#[unsafe(no_mangle)]
static LIFE_UP_TO: Global<u32> = Global::new(192 * 1024);
#[unsafe(no_mangle)]
static BULK_WAKE_BYTES: Global<u32> = Global::new(256 * 1024);

static EMPTY: Window = Window::EMPTY;

/// The calling thread, unless it is one of the agent's own.
#[inline(always)]
pub(crate) fn caller() -> Option<Caller> {
    let both = bpf_get_current_pid_tgid();
    Caller { tgid: (both >> 32) as u32, tid: both as u32 }.unless_own()
}

/// A thread.
#[derive(Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) tgid: u32,
    pub(crate) tid: u32,
}

impl Caller {
    /// None of the agent's own threads.
    #[inline(always)]
    pub(crate) fn unless_own(self) -> Option<Self> {
        (self.tgid != OWN_TGID.load()).then_some(self)
    }

    /// The beginning of a record about this thread, now.
    #[inline(always)]
    pub(crate) fn header(self, kind: u32) -> Header {
        // SAFETY: the helper takes no arguments.
        let boot_ns = unsafe { bpf_ktime_get_boot_ns() };
        let comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
        Header { boot_ns, kind, tgid: self.tgid, tid: self.tid, uid: bpf_get_current_uid_gid() as u32, comm }
    }

    /// The same, written where it belongs. Without the calls to `memset` that a copy brings: on arm64 before Linux 6.0 a
    /// program that makes a tail call may not call anything else.
    ///
    /// # Safety
    ///
    /// `to` points to a whole header in a map value.
    #[inline(always)]
    pub(crate) unsafe fn write_header(self, to: *mut Header, kind: u32) {
        // SAFETY: by this function's contract; the helper fills the name or fails.
        unsafe {
            (*to).boot_ns = bpf_ktime_get_boot_ns();
            (*to).kind = kind;
            (*to).tgid = self.tgid;
            (*to).tid = self.tid;
            (*to).uid = bpf_get_current_uid_gid() as u32;
            let comm = &raw mut (*to).comm;
            if raw_get_comm(comm.cast(), COMM_LEN as u32) != 0 {
                comm.cast::<u8>().write(0);
            }
        }
    }

    /// What is known of this thread.
    #[inline(always)]
    pub(crate) fn thread(self) -> Option<*mut Thread> {
        THREADS.get_ptr_mut(self.tid & (THREAD_CELLS - 1))
    }

    /// This process's window in an open epoch, made on first use.
    #[inline(always)]
    pub(crate) fn window(self, epoch: u32) -> Option<*mut Window> {
        self.window_of(self.thread()?, epoch)
    }

    /// The same, for who has looked up the thread already. While it stays the same window, no hash is computed.
    #[inline(always)]
    pub(crate) fn window_of(self, thread: *mut Thread, epoch: u32) -> Option<*mut Window> {
        // SAFETY: `thread` and `window` point to elements of arrays. A place that another thread wrote leads to a window
        // with another key.
        unsafe {
            let window = WINDOWS.get_ptr_mut(ptr::read_volatile(&raw const (*thread).place))?;
            if ptr::read_volatile(&raw const (*window).key.tgid) == self.tgid
                && ptr::read_volatile(&raw const (*window).key.epoch) == epoch
            {
                return Some(window);
            }
        }
        let key = WindowKey { tgid: self.tgid, epoch };
        let place = place_of(key).or_else(|| claim(key))?;
        // SAFETY: as above.
        unsafe { ptr::write_volatile(&raw mut (*thread).place, place) };
        WINDOWS.get_ptr_mut(place)
    }

    /// Counts a rare act and takes one from its class's cap; false when that is used up.
    #[inline(always)]
    pub(crate) fn may_act(self, class: Class) -> bool {
        count(class, counter::SEEN);
        let Some(epoch) = open_epoch() else { return true };
        // As for `within_cap`.
        let Some(window) = self.window(epoch.number) else { return true };
        let Some(place) = class.act() else { return true };
        // SAFETY: `window` points into a map value; a class is a constant, and a test holds its place below the end.
        let counted = unsafe { (&raw mut (*window).n_acts).cast::<u32>().add(place) };
        // SAFETY: as above.
        let before = unsafe { ptr::read_volatile(counted) };
        if before >= ACT_CAP.load() || !has_room(before) {
            count(class, counter::THROTTLED);
            return false;
        }
        add(counted);
        true
    }

    /// Takes one from the cap of connections and sensitive opens; false when it is used up.
    #[inline(always)]
    pub(crate) fn may_report(self) -> bool {
        // As for `within_cap`.
        let Some(epoch) = open_epoch() else { return true };
        let Some(window) = self.window(epoch.number) else { return true };
        // SAFETY: `window` points into a map value that stays valid while the program runs.
        let counted = unsafe { &raw mut (*window).n_urgent };
        // SAFETY: as above.
        let before = unsafe { ptr::read_volatile(counted) };
        if before >= URGENT_CAP.load() || !has_room(before) {
            return false;
        }
        add(counted);
        true
    }

    /// Takes one from a cap of this process in the open epoch; false when it is used up.
    #[inline(always)]
    pub(crate) fn within_cap(self, cap: u32, counted: fn(*mut Window) -> *mut u32) -> bool {
        let Some(epoch) = open_epoch() else { return true };
        // A full map cannot hold the cap. The ring's size is the bound then.
        let Some(window) = self.window(epoch.number) else { return true };
        let counted = counted(window);
        // SAFETY: `counted` points into a map value that stays valid while the program runs.
        if unsafe { ptr::read_volatile(counted) } >= cap {
            return false;
        }
        add(counted);
        true
    }
}

/// Where a window is.
#[inline(always)]
pub(crate) fn place_of(key: WindowKey) -> Option<u32> {
    // SAFETY: the value is read at once, and written once before the entry can be found.
    unsafe { PLACES.get(key) }.copied()
}

/// Makes a window where none was.
#[inline(always)]
fn claim(key: WindowKey) -> Option<u32> {
    let place = FREE.pop().ok()??;
    // Nobody's until it can be found.
    let _ = WINDOWS.set(place, &EMPTY, 0);
    // 1 is BPF_NOEXIST.
    if PLACES.insert(key, place, 1).is_ok() {
        give(place, key);
        return Some(place);
    }
    // Another thread of the process was first, or there is no memory for an entry.
    if FREE.push(place, 0).is_err() {
        // To keep it as `flush` does would be code in each of a hundred places, for what two rare things together bring.
        count_at(counter::PLACES_LOST);
    }
    place_of(key)
}

/// Takes a place from its window; false when the stack does not take it. There is room for every place that there is, but
/// since Linux 6.15 a lock gives up when it takes too long.
#[inline(always)]
pub(crate) fn release(place: u32) -> bool {
    give(place, WindowKey::NOBODY);
    FREE.push(place, 0).is_ok()
}

/// Threads that remember a place find only the process there that it is given to.
#[inline(always)]
pub(crate) fn give(place: u32, key: WindowKey) {
    if let Some(window) = WINDOWS.get_ptr_mut(place) {
        // SAFETY: `window` points to an element of an array.
        unsafe { ptr::write_volatile(&raw mut (*window).key, key) };
    }
}

/// The open epoch, as one look at it shows.
#[derive(Clone, Copy)]
pub(crate) struct OpenEpoch {
    pub(crate) number: u32,
    /// [`Epoch::assigned`].
    pub(crate) assigned: u32,
    pub(crate) start_ns: u64,
}

/// The open epoch, once the agent has opened one.
#[inline(always)]
pub(crate) fn open_epoch() -> Option<OpenEpoch> {
    let epoch = EPOCH.get_ptr(0)?;
    // SAFETY: `epoch` points to the array's only element. The start of an epoch is written before the epoch is opened,
    // and is not written again before the next but one.
    unsafe {
        let number = ptr::read_volatile(&raw const (*epoch).current);
        let assigned = ptr::read_volatile(&raw const (*epoch).assigned);
        let start_ns = if number & 1 == 0 {
            ptr::read_volatile(&raw const (*epoch).start_ns[0])
        } else {
            ptr::read_volatile(&raw const (*epoch).start_ns[1])
        };
        (number != 0).then_some(OpenEpoch { number, assigned, start_ns })
    }
}

/// How the agent wants it done: `MODE_` bits.
#[inline(always)]
pub(crate) fn modes() -> u32 {
    // SAFETY: it points to the array's only element.
    EPOCH.get_ptr(0).map_or(0, |epoch| unsafe { ptr::read_volatile(&raw const (*epoch).modes) })
}

/// The offset of a struct field, where the kernel's type information told it.
#[inline(always)]
pub(crate) fn offset(field: Field) -> Option<u64> {
    let offset = FIELDS[field as usize].load();
    (offset != OFFSET_UNKNOWN).then_some(u64::from(offset))
}

/// The value of a struct's field in kernel memory.
#[inline(always)]
pub(crate) fn field<T>(structure: u64, field: Field) -> Option<T> {
    read_kernel(structure + offset(field)?)
}

/// Where a path lies.
#[derive(Clone, Copy)]
pub(crate) enum PathAt {
    /// In the process's memory.
    User(u64),
    /// In the kernel's.
    Kernel(u64),
}

/// Copies a path. Returns its length without the NUL; an unreadable one becomes empty and is counted.
#[inline(always)]
pub(crate) fn read_path(to: *mut [u8; PATH_LEN], from: PathAt) -> usize {
    // SAFETY: `to` points to a whole path in a map value. The helpers check `from`, and end the text with a NUL or fail.
    let len = unsafe {
        match from {
            PathAt::User(from) => raw_read_user_str(to.cast(), PATH_LEN as u32, from as *const _),
            PathAt::Kernel(from) => raw_read_kernel_str(to.cast(), PATH_LEN as u32, from as *const _),
        }
    };
    if len > 0 && len <= PATH_LEN as i64 {
        return len as usize - 1;
    }
    // SAFETY: as above.
    unsafe { *to.cast::<u8>() = 0 };
    count_at(counter::UNREADABLE);
    0
}

/// A value from the process's memory, checked by the kernel.
#[inline(always)]
pub(crate) fn read_user<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails on a bad one; every `T` used here is made of plain integers.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// A value from kernel memory, checked by the kernel.
#[inline(always)]
pub(crate) fn read_kernel<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails on a bad one; every `T` used here is a plain integer.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// Adds to 64 bits, whichever CPU does the same at the same time.
#[inline(always)]
pub(crate) fn add_u64(counted: *mut u64, n: u64) {
    // SAFETY: `counted` points into a map value, aligned to eight bytes, that stays valid while the program runs.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counted, n);
    }
}

/// Adds one, whichever CPU does the same at the same time.
#[inline(always)]
pub(crate) fn add(counted: *mut u32) {
    add_n(counted, 1);
}

/// Adds to 32 bits, whichever CPU does the same at the same time.
#[inline(always)]
pub(crate) fn add_n(counted: *mut u32, n: u32) {
    // The target has no `AtomicU32`, though the machine has the instruction.
    // SAFETY: `counted` points into a map value, aligned to four bytes, that stays valid while the program runs.
    unsafe {
        core::intrinsics::atomic_xadd::<u32, u32, { core::intrinsics::AtomicOrdering::Relaxed }>(counted, n);
    }
}

/// Counts in a class.
#[inline(always)]
pub(crate) fn count(class: Class, what: u32) {
    count_at(class as u32 * 4 + what);
}

/// Counts at a place of the counter array.
#[inline(always)]
pub(crate) fn count_at(index: u32) {
    if let Some(counted) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: `counted` points into this CPU's element, and tracing programs are not preempted by another one of
        // ours: none of our hooks can fire in an interrupt.
        unsafe { *counted += 1 };
    }
}

/// Whether the urgent ring takes one more record of a kind of which this process had so many in its window. When the
/// ring is half full only a process's first ones go in, so that no process hides another one's.
#[inline(always)]
fn has_room(before: u32) -> bool {
    before == 0 || URGENT.query(u64::from(BPF_RB_AVAIL_DATA)) < u64::from(REPEATS_UP_TO.load())
}

/// Whether the urgent ring takes what is told about the coming and going of processes. Its last quarter is left to what
/// they do, so that a fork bomb hides nothing but itself.
#[inline(always)]
pub(crate) fn has_room_for_life() -> bool {
    URGENT.query(u64::from(BPF_RB_AVAIL_DATA)) < u64::from(LIFE_UP_TO.load())
}

/// Sends a record about the coming and going of processes, and counts what became of it.
#[inline(always)]
pub(crate) fn send_life<T: 'static>(class: Class, record: &T) {
    if has_room_for_life() {
        send_urgent(class, record);
    } else {
        count(class, counter::DROPPED);
    }
}

/// Wakes the reader when it had read everything before. While it gathers what comes together, or has not come to reading,
/// it needs no further interrupt, each of which costs the process that is watched some microseconds.
pub(crate) const WAKE_WHEN_READ: u64 = 0;

/// Sends a record that must not wait, and counts what became of it.
#[inline(always)]
pub(crate) fn send_urgent<T: 'static>(class: Class, record: &T) {
    sent(class, URGENT.output::<T>(record, WAKE_WHEN_READ).is_ok());
}

/// Sends a record that may wait for others, and counts what became of it.
#[inline(always)]
pub(crate) fn send_bulk<T: 'static>(class: Class, record: &T) {
    sent(class, BULK.output::<T>(record, bulk_flags()).is_ok());
}

/// Wakes the reader of the bulk ring for the first record, who then lets some more come, and when much waits. So an idle
/// machine is not woken to look, and a busy one not for every record.
#[inline(always)]
pub(crate) fn bulk_flags() -> u64 {
    let waiting = BULK.query(u64::from(BPF_RB_AVAIL_DATA));
    u64::from(if waiting == 0 || waiting >= u64::from(BULK_WAKE_BYTES.load()) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    })
}

#[inline(always)]
fn sent(class: Class, entered: bool) {
    count(class, if entered { counter::SUBMITTED } else { counter::DROPPED });
}
