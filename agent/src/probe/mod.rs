//! Loads the kernel programs, with fallbacks, and reads what they count and report.

mod attach;
mod batch;
mod btf;
mod counters;
mod decode;
mod drain;
mod egress;
mod inodes;
mod layers;
mod links;
mod memory;
mod narrow;
mod places;
mod real;
mod resolve;
mod sequences;

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd, BorrowedFd},
};

use agent_ebpf::{
    records::{
        Class, Field, MODE_COUNT_CALLS, MODE_DENY_EGRESS, MODE_QUARANTINE, MODE_SHED_OPENS, OFFSET_UNKNOWN,
        counter, names,
    },
    watched::WATCHED_MAX,
};
use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader, Endianness,
    maps::{Map, MapData, MapError, PerCpuArray, RingBuf},
};
use miniz_oxide::inflate::{DecompressError, decompress_to_vec_with_limit};
use models::{
    event::{Event, EventKind, SyscallWindow},
    sequence::summed,
    syscalls::Arch,
    wire::LayerState,
};

pub use egress::cgroup_root;
pub use layers::unseen;

use crate::quarantine::Reachable;
use real::RealPaths;

pub use counters::{ClassCounters, Counters, PollStats};
pub use decode::{DecodeError, decode, window};
pub use memory::MapMemory;
pub use sequences::{TableError, TableId};

/// The object with the programs, as the build script compresses it.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/behaveguard.bpf.o.deflate"));
/// What it may become.
const OBJECT_MAX: usize = 4 * 1024 * 1024;

const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// A process that made fewer calls that move data is not asked how much it was: the question costs some 15 microseconds.
const MOVES_MIN: u32 = 16;

/// How to load the programs.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// The agent's own process, which is not watched.
    pub own_tgid: u32,
    /// Window entries: processes that may make calls between two drains.
    pub windows: u32,
    /// Grams of all tables together.
    pub grams: u32,
    /// Grams that learning processes may show between two drains, each counted per process.
    pub learned: u32,
    /// Sockets connected to port 53 that are told apart.
    pub dns_sockets: u32,
    /// Size of the urgent ring. A power of two, at least a page.
    pub urgent_bytes: u32,
    /// Size of the bulk ring. A power of two, at least a page.
    pub bulk_bytes: u32,
    /// Ordinary opens that one process may report per epoch.
    pub bulk_cap: u32,
    /// Connections and sensitive opens that one process may report per epoch.
    pub urgent_cap: u32,
    /// Records that one process may report per epoch in each class of rare acts.
    pub act_cap: u32,
    /// Directories whose files nobody should remove, empty or redate: absolute, at most 8, each below 64 bytes.
    pub watched: Vec<String>,
    /// Attach what can deny control groups, or the whole device, their egress.
    pub deny_egress: bool,
    /// Backends that are not tried, as `layer:backend`, e.g. `syscall:tp_btf/sys_enter`.
    pub forced_off: Vec<String>,
    /// Act as on a kernel without type information.
    pub without_btf: bool,
}

impl ProbeOptions {
    /// What fits a gateway.
    #[must_use]
    pub fn new(own_tgid: u32) -> Self {
        Self {
            own_tgid,
            windows: 2048,
            grams: 65_536,
            learned: 16_384,
            dns_sockets: 1024,
            urgent_bytes: 256 * 1024,
            bulk_bytes: 1024 * 1024,
            bulk_cap: 256,
            urgent_cap: 512,
            act_cap: 256,
            watched: vec!["/var/log".to_owned(), "/run/log".to_owned()],
            deny_egress: false,
            forced_off: Vec::new(),
            without_btf: false,
        }
    }
}

/// Why nothing could be loaded, or why a map failed later.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel refused `bpf()`.
    #[error(
        "loading kernel programs needs root, or CAP_BPF with CAP_PERFMON, and a container must not filter bpf()"
    )]
    NotPermitted(#[source] Box<EbpfError>),
    /// The kernel has no `bpf()`.
    #[error("this kernel has no bpf(): it needs CONFIG_BPF_SYSCALL and, for ring buffers, version 5.8")]
    NotSupported(#[source] Box<EbpfError>),
    /// Something else went wrong with the object.
    #[error("loading the kernel programs' maps")]
    Load(#[source] Box<EbpfError>),
    /// A directory of [`ProbeOptions::watched`] cannot be watched.
    #[error("cannot watch `{0}`: at most {WATCHED_MAX} absolute directories below 64 bytes")]
    Watched(String),
    /// The embedded object cannot be read: the agent's file is damaged.
    #[error("reading the embedded object: {0}; is the agent's program file whole?")]
    Object(DecompressError),
    /// The embedded object is not of this build.
    #[error("the embedded object has no map `{0}`")]
    MissingMap(&'static str),
    /// A map operation failed.
    #[error("using map `{name}`")]
    Map {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: MapError,
    },
    /// Reading many entries at once failed.
    #[error("reading map `{name}`")]
    Batch {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No layer could be attached.
    #[error(
        "no kernel hook could be attached: mount tracefs on /sys/kernel/tracing, or use a kernel with CONFIG_BPF_EVENTS"
    )]
    NothingAttached(Vec<LayerState>),
}

/// The loaded programs. Dropping it detaches them.
pub struct Probe {
    _programs: Ebpf,
    layers: Vec<LayerState>,
    drain: drain::Drain,
    sequences: sequences::Sequences,
    urgent: RingBuf<MapData>,
    bulk: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    received: [u64; Class::ALL.len()],
    decode_errors: u64,
    elsewhere: u64,
    unresolved: u64,
    links: links::Links,
    paths: RealPaths,
    watched: Vec<String>,
    /// `None` when it was not asked for.
    egress: Option<Result<egress::Egress, String>>,
    modes: u32,
}

impl Probe {
    /// Loads the programs and attaches, for each layer, the first backend that works.
    ///
    /// Blocks for as long as the kernel verifies, well below a second. The minimum kernel version is 5.8.
    ///
    /// # Errors
    ///
    /// When the kernel refuses `bpf()` or not a single layer can be attached. A layer without a backend is no error:
    /// see [`Probe::layers`].
    pub fn load(options: &ProbeOptions) -> Result<Self, ProbeError> {
        lift_memory_lock();
        let raw_btf = if options.without_btf { None } else { fs::read(VMLINUX_BTF).ok() };
        let btf = raw_btf.as_deref().and_then(|raw| Btf::parse(raw, Endianness::default()).ok());
        let types = raw_btf.as_deref().and_then(btf::Types::parse);
        let offset = |structure, field| {
            types.as_ref().and_then(|types| types.offset_of(structure, field)).unwrap_or(OFFSET_UNKNOWN)
        };
        let fields: Vec<u32> = Field::ALL.iter().map(|f| offset(f.names().0, f.names().1)).collect();
        let (task_pid, task_tgid) = (offset("task_struct", "pid"), offset("task_struct", "tgid"));
        let (signal, live) = (offset("task_struct", "signal"), offset("signal_struct", "live"));
        let filename = offset("linux_binprm", "filename");
        let slots = narrow::slots(ARCH);
        let mark = narrow::Mark::of(ARCH, types.as_ref());
        let (socketcall, socketcall_places) = narrow::socketcall(ARCH);
        let send_without_address = narrow::send_without_address(ARCH);
        let wake_bytes = options.bulk_bytes / 4;
        let (repeats_up_to, life_up_to) = (options.urgent_bytes / 2, options.urgent_bytes / 4 * 3);
        let mount_namespace = places::mount_namespace();
        let mut loader = EbpfLoader::new();
        loader
            .btf(btf.as_ref())
            .override_global(names::OWN_TGID, &options.own_tgid, true)
            .override_global(names::OWN_MNT_NS, &mount_namespace, true)
            .override_global(names::ARG_OFFSETS, &ARG_OFFSETS, true)
            .override_global(names::SLOTS, &slots, true)
            .override_global(names::NARROW_ARG_OFFSETS, &narrow::ARG_OFFSETS, true)
            .override_global(names::NARROW_IN, &mark.place, true)
            .override_global(names::NARROW_AT, &mark.at, true)
            .override_global(names::NARROW_BIT, &mark.bit, true)
            .override_global(names::SOCKETCALL, &socketcall, true)
            .override_global(names::SOCKETCALL_PLACES, &socketcall_places, true)
            .override_global(names::SEND_WITHOUT_ADDRESS, &send_without_address, true)
            .override_global(names::TASK_PID, &task_pid, true)
            .override_global(names::TASK_TGID, &task_tgid, true)
            .override_global(names::TASK_SIGNAL, &signal, true)
            .override_global(names::SIGNAL_LIVE, &live, true)
            .override_global(names::BPRM_FILENAME, &filename, true)
            .override_global(names::FIELDS, fields.as_slice(), true)
            .override_global(names::ACT_CAP, &options.act_cap, true)
            .override_global(names::BULK_CAP, &options.bulk_cap, true)
            .override_global(names::URGENT_CAP, &options.urgent_cap, true)
            .override_global(names::REPEATS_UP_TO, &repeats_up_to, true)
            .override_global(names::LIFE_UP_TO, &life_up_to, true)
            .override_global(names::BULK_WAKE_BYTES, &wake_bytes, true)
            .map_max_entries(names::WINDOWS, options.windows)
            .map_max_entries(names::PLACES, options.windows)
            .map_max_entries(names::FREE, options.windows)
            .map_max_entries(names::FOLLOWED, options.windows)
            .map_max_entries(names::GRAMS, options.grams)
            .map_max_entries(names::LEARNED, options.learned)
            .map_max_entries(names::DNS_SOCKETS, options.dns_sockets)
            .map_max_entries(names::URGENT, options.urgent_bytes)
            .map_max_entries(names::BULK, options.bulk_bytes);
        let object = decompress_to_vec_with_limit(OBJECT, OBJECT_MAX).map_err(ProbeError::Object)?;
        let mut programs = loader.load(&object).map_err(refusal)?;
        drop(object);
        places::tell(&mut programs, &options.watched)?;
        let mut drain = drain::Drain::new(&mut programs)?;
        let sequences = sequences::Sequences::new(&mut programs, options.grams)?;
        let urgent = RingBuf::try_from(take(&mut programs, names::URGENT)?).map_err(in_map(names::URGENT))?;
        let bulk = RingBuf::try_from(take(&mut programs, names::BULK)?).map_err(in_map(names::BULK))?;
        let counters =
            PerCpuArray::try_from(take(&mut programs, names::COUNTERS)?).map_err(in_map(names::COUNTERS))?;
        let known = attach::Known {
            task: task_pid != OFFSET_UNKNOWN && task_tgid != OFFSET_UNKNOWN,
            filename: filename != OFFSET_UNKNOWN,
        };
        let layers = attach::all(&mut programs, btf.as_ref(), known, ARCH, &options.forced_off);
        if layers.iter().all(|layer| layer.backend.is_empty()) {
            return Err(ProbeError::NothingAttached(layers));
        }
        let egress = options.deny_egress.then(|| egress::Egress::attach(&mut programs));
        let modes = if attach::counts_calls(&layers) { MODE_COUNT_CALLS } else { 0 };
        drain.set_modes(modes).map_err(in_map(names::EPOCH))?;
        Ok(Self {
            _programs: programs,
            layers,
            drain,
            sequences,
            urgent,
            bulk,
            counters,
            received: [0; Class::ALL.len()],
            decode_errors: 0,
            elsewhere: 0,
            unresolved: 0,
            links: links::Links::new(std::process::id()),
            paths: RealPaths::new(),
            watched: options.watched.clone(),
            egress,
            modes,
        })
    }

    /// Whether control groups can be denied their egress, or why not; `None` when it was not asked for.
    #[must_use]
    pub fn denies_egress(&self) -> Option<Result<(), &str>> {
        self.egress.as_ref().map(|attached| attached.as_ref().map(drop).map_err(String::as_str))
    }

    /// Denies egress of these control groups, by the number of their folder's inode, and of no others.
    ///
    /// # Errors
    ///
    /// When the map cannot be changed. Without the program nothing is done: see [`Probe::denies_egress`].
    pub fn deny_egress(&mut self, cgroups: &BTreeSet<u64>) -> Result<(), ProbeError> {
        let Some(Ok(egress)) = &mut self.egress else { return Ok(()) };
        egress.set(cgroups)?;
        self.set_mode(MODE_DENY_EGRESS, !cgroups.is_empty())
    }

    /// Lets the device reach this only, or everything again.
    ///
    /// # Errors
    ///
    /// As [`Probe::deny_egress`].
    pub fn quarantine(&mut self, reachable: Option<&Reachable>) -> Result<(), ProbeError> {
        let Some(Ok(egress)) = &mut self.egress else { return Ok(()) };
        if let Some(reachable) = reachable {
            egress.reach(reachable)?;
        }
        self.set_mode(MODE_QUARANTINE, reachable.is_some())
    }

    /// Leaves ordinary opens out from now on, or reports them again.
    ///
    /// # Errors
    ///
    /// When the map cannot be changed.
    pub fn shed_opens(&mut self, shed: bool) -> Result<(), ProbeError> {
        self.set_mode(MODE_SHED_OPENS, shed)
    }

    fn set_mode(&mut self, mode: u32, on: bool) -> Result<(), ProbeError> {
        self.modes = if on { self.modes | mode } else { self.modes & !mode };
        self.drain.set_modes(self.modes).map_err(in_map(names::EPOCH))
    }

    /// Each layer's backend, and why better ones failed.
    #[must_use]
    pub fn layers(&self) -> &[LayerState] {
        &self.layers
    }

    /// Readable when an urgent record waits.
    #[must_use]
    pub fn urgent_fd(&self) -> BorrowedFd<'_> {
        self.urgent.as_fd()
    }

    /// Readable when an ordinary record waits. More of them come soon: give them a moment.
    #[must_use]
    pub fn bulk_fd(&self) -> BorrowedFd<'_> {
        self.bulk.as_fd()
    }

    /// Takes every waiting record, urgent ones first: before an ordinary record, all urgent ones that are older. Otherwise
    /// order is kept within a ring, not between them: compare `boot_ns`.
    pub fn poll_events(&mut self, sink: &mut dyn FnMut(Event)) -> PollStats {
        let mut stats = PollStats::default();
        self.paths.forget_root();
        loop {
            let ordinary = self.bulk.next().map(|bytes| decode::read(&bytes));
            while let Some(urgent) = self.urgent.next().map(|bytes| decode::read(&bytes)) {
                self.take_record(urgent, &mut stats, sink);
            }
            let Some(ordinary) = ordinary else { break };
            self.take_record(ordinary, &mut stats, sink);
        }
        self.decode_errors += stats.decode_errors;
        stats
    }

    fn take_record(
        &mut self,
        record: Result<decode::Record, DecodeError>,
        stats: &mut PollStats,
        sink: &mut dyn FnMut(Event),
    ) {
        let mut record = match record {
            Ok(record) => record,
            Err(error) => {
                stats.decode_errors += 1;
                return log::debug!("kernel record: {error}");
            }
        };
        self.received[record.class as usize] += 1;
        match complete(&mut self.paths, &mut record, &self.watched) {
            Completed::Event => {
                let dfd = record.unplaced.map(|unplaced| unplaced.dfd);
                let extra = self.links.look(&mut self.paths, &mut record.event, dfd, &self.watched);
                let extra = extra.map(|kind| Event { kind, ..record.event.clone() });
                for event in [Some(record.event), extra].into_iter().flatten() {
                    stats.events += 1;
                    sink(event);
                }
            }
            Completed::Elsewhere => self.elsewhere += 1,
            Completed::Gone => self.unresolved += 1,
        }
    }

    /// Locked memory of every map, largest first.
    ///
    /// # Errors
    ///
    /// When `/proc/self/fdinfo` cannot be read.
    pub fn memory(&self) -> io::Result<Vec<MapMemory>> {
        memory::of_this_process()
    }

    /// The open epoch and its start (`CLOCK_BOOTTIME`, nanoseconds).
    #[must_use]
    pub fn epoch(&self) -> (u32, u64) {
        self.drain.open()
    }

    /// Closes the open epoch and takes its windows, and late ones of earlier epochs, which keep their number.
    ///
    /// Blocks for one kernel grace period, some 10 to 50 ms. A process that left during the epoch is not among them:
    /// its part came as [`EventKind::Flush`], or comes with the next [`Probe::poll_events`].
    ///
    /// # Errors
    ///
    /// When a map operation fails.
    pub fn drain(&mut self) -> Result<Vec<SyscallWindow>, ProbeError> {
        let batch = |name| move |source| ProbeError::Batch { name, source };
        self.links.forget();
        self.drain.flip().map_err(in_map(names::EPOCH))?;
        let mut windows = self.drain.collect()?;
        let mut learned = self.sequences.take_learned(self.epoch().0).map_err(batch(names::LEARNED))?;
        for window in &mut windows {
            if let Some(more) = learned.remove(&window.tgid) {
                window.learned.extend(more);
                window.learned = summed(std::mem::take(&mut window.learned));
            }
            // A volume counts from the process's beginning, so what is not asked for now comes with the next answer.
            if window.moves() >= MOVES_MIN {
                window.volume = resolve::volume(window.tgid);
            }
        }
        // Of processes that left, whose windows were flushed.
        let closed = self.epoch().0.wrapping_sub(1);
        windows.extend(
            learned
                .into_iter()
                .map(|(tgid, counts)| (tgid, summed(counts)))
                .map(|(tgid, learned)| SyscallWindow { learned, ..SyscallWindow::empty(tgid, closed) }),
        );
        Ok(windows)
    }

    /// Puts a table of grams, ascending, into the kernel.
    ///
    /// # Errors
    ///
    /// When there is no room; nothing of it stays then.
    pub fn load_table(&mut self, entries: &[(u64, u8)]) -> Result<TableId, TableError> {
        self.sequences.load(entries)
    }

    /// Removes a table that no process is looked up in any more. Its id may be used again: drain before that.
    pub fn unload_table(&mut self, table: TableId) {
        self.sequences.unload(table);
    }

    /// Looks up this process's grams in a table from now on, and counts them for learning when asked.
    ///
    /// Its children inherit both until they start a program of their own.
    ///
    /// # Errors
    ///
    /// When the map of followed processes is full.
    pub fn follow(&mut self, tgid: u32, table: Option<TableId>, learn: bool) -> Result<(), ProbeError> {
        self.sequences.follow(tgid, table, learn).map_err(in_map(names::FOLLOWED))?;
        self.drain.reassign().map_err(in_map(names::EPOCH))
    }

    /// The process has left.
    ///
    /// # Errors
    ///
    /// When the map cannot be changed.
    pub fn unfollow(&mut self, tgid: u32) -> Result<(), ProbeError> {
        self.sequences.unfollow(tgid).map_err(in_map(names::FOLLOWED))
    }

    /// Reads all counters.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Counters, ProbeError> {
        let read = |index: u32| {
            let values = self.counters.get(&index, 0).map_err(in_map(names::COUNTERS))?;
            Ok::<u64, ProbeError>(values.iter().sum())
        };
        let mut classes = Vec::with_capacity(Class::ALL.len());
        for class in Class::ALL {
            let at = class as u32 * 4;
            let counted = ClassCounters {
                seen: read(at + counter::SEEN)?,
                submitted: read(at + counter::SUBMITTED)?,
                dropped: read(at + counter::DROPPED)?,
                throttled: read(at + counter::THROTTLED)?,
                received: self.received[class as usize],
            };
            classes.push((class.name(), counted));
        }
        Ok(Counters {
            classes,
            collisions: read(counter::COLLISIONS)?,
            unreadable: read(counter::UNREADABLE)?,
            grams_refused: read(counter::GRAMS_REFUSED)?,
            places_lost: read(counter::PLACES_LOST)?,
            learners_refused: self.sequences.refused(),
            decode_errors: self.decode_errors,
            elsewhere: self.elsewhere,
            unresolved: self.unresolved,
            unchecked: self.links.unchecked() + self.paths.unanswered(),
            egress_denied: read(counter::EGRESS_DENIED)?,
        })
    }
}

#[cfg(target_arch = "x86_64")]
const ARCH: Arch = Arch::X86_64;
/// `rdi`, `rsi`, `rdx`, `r10`, `r8`, `r9` in `struct pt_regs`.
#[cfg(target_arch = "x86_64")]
const ARG_OFFSETS: [u32; 6] = [112, 104, 96, 56, 72, 64];
#[cfg(target_arch = "aarch64")]
const ARCH: Arch = Arch::Aarch64;
/// `x0` to `x5` in `struct pt_regs`. Programs read them on entry, before a result replaces `x0`.
#[cfg(target_arch = "aarch64")]
const ARG_OFFSETS: [u32; 6] = [0, 8, 16, 24, 32, 40];

enum Completed {
    /// It is worth telling.
    Event,
    /// Its file lies in no watched directory.
    Elsewhere,
    /// Nobody can say any more where its file lies.
    Gone,
}

/// Completes the path of a file that was tampered with, when the record does not give it in full.
fn complete(paths: &mut RealPaths, record: &mut decode::Record, watched: &[String]) -> Completed {
    let (Some(unplaced), EventKind::Tamper { path, .. }) = (record.unplaced, &mut record.event.kind) else {
        return Completed::Event;
    };
    let tgid = record.event.tgid;
    let full =
        resolve::full_path(tgid, unplaced.dfd, path).map(|full| resolve::real_place(paths, tgid, &full));
    match full {
        Some(full) if unplaced.watched || resolve::is_below(&full, watched) => {
            *path = models::event::clipped(&full.to_string_lossy());
            Completed::Event
        }
        Some(_) => Completed::Elsewhere,
        // The kernel saw that it lies there; its bare name must do.
        None if unplaced.watched => Completed::Event,
        None => Completed::Gone,
    }
}

fn take(programs: &mut Ebpf, name: &'static str) -> Result<Map, ProbeError> {
    programs.take_map(name).ok_or(ProbeError::MissingMap(name))
}

fn in_map(name: &'static str) -> impl Fn(MapError) -> ProbeError {
    move |source| ProbeError::Map { name, source }
}

fn refusal(error: EbpfError) -> ProbeError {
    let errno = {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        let mut errno = None;
        while let Some(e) = cause {
            errno = e.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).or(errno);
            cause = e.source();
        }
        errno
    };
    match errno {
        Some(libc::EPERM | libc::EACCES) => ProbeError::NotPermitted(Box::new(error)),
        Some(libc::ENOSYS) => ProbeError::NotSupported(Box::new(error)),
        _ => ProbeError::Load(Box::new(error)),
    }
}

/// Kernels before 5.11 count maps as locked memory. Containers may refuse the change; then the default may do.
fn lift_memory_lock() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid structure that outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
        log::debug!("RLIMIT_MEMLOCK stays as it is: {}", io::Error::last_os_error());
    }
}
