//! Events and kernel counts of one process in one window, folded into bounded sets.

mod distinct;
mod odd_names;
mod sums;
mod texts;
mod volumes;
mod words;

use core::net::IpAddr;

use crate::capability;
use crate::event::{DnsQuestion, Event, EventKind, SyscallWindow, Tampering, call_name};
use crate::novelty::{Kind, trait_id};
use crate::schema::{LOLBINS, TOR_PORTS};
use crate::syscalls;
pub use distinct::{Distinct, Full};
use odd_names::OddNames;
pub use sums::Sums;
use texts::{Commands, Texts};
use words::{
    PROGRAM_DIRS, SHELLS, SYSTEM_DIRS, TEMPORARY_DIRS, decades, entropy, is_private, namespaces, operations,
    process_file, shown, tool,
};

/// Distinct addresses, ports and files a window tells apart; the caps of their features are 50.
pub const DISTINCT_MAX: usize = 64;
/// Distinct traits a window holds.
pub const TRAITS_MAX: usize = 128;

/// What one process did between two instants.
#[derive(Clone, Debug)]
pub struct Window {
    /// Process id.
    pub tgid: u32,
    /// `CLOCK_BOOTTIME` at its start, nanoseconds.
    pub opened_ns: u64,
    /// `CLOCK_BOOTTIME` at its end, nanoseconds.
    pub closed_ns: u64,
    /// The kernel's counts.
    pub syscalls: SyscallWindow,
    /// Remote addresses.
    pub addresses: Distinct<IpAddr, DISTINCT_MAX>,
    /// Remote ports.
    pub ports: Distinct<u16, DISTINCT_MAX>,
    /// Hashes of paths.
    pub files: Distinct<u64, DISTINCT_MAX>,
    /// Sums and flags.
    pub sums: Sums,
    /// Distinct values refused because a set was full.
    pub overflow: u64,
    odd_names: OddNames,
    traits: Distinct<u64, TRAITS_MAX>,
    texts: Texts,
    commands: Commands,
    /// Of what is folded in just now; 0 for the kernel's counts, which have no instant.
    now_ns: u64,
}

/// Flags of `open`, alike on x86-64 and aarch64.
const O_ACCMODE: u32 = 3;
const O_EXCL: u32 = 0o200;
const O_TRUNC: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;
const EPHEMERAL_PORT: u16 = 32768;
/// A DNS query above this size may carry data: an ordinary one has some 30 to 60 bytes.
const DNS_LARGE: u32 = 100;
/// The smallest sum of what is sent that is a trait, bytes.
const SENT_FROM: u64 = 100_000;
/// Bytes of a header and the shortest question (RFC 1035).
const DNS_SHORTEST: u32 = 17;

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(tgid: u32, opened_ns: u64) -> Self {
        Self {
            tgid,
            opened_ns,
            closed_ns: opened_ns,
            syscalls: SyscallWindow::empty(tgid, 0),
            addresses: Distinct::default(),
            ports: Distinct::default(),
            files: Distinct::default(),
            sums: Sums::default(),
            overflow: 0,
            odd_names: OddNames::default(),
            traits: Distinct::default(),
            texts: Texts::default(),
            commands: Commands::default(),
            now_ns: 0,
        }
    }

    /// Nothing happened in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.syscalls.total() == 0 && self.traits.is_empty() && self.sums == Sums::default()
    }

    /// Folds in one event of this process. Returns the first decisive trait it showed, if any.
    pub fn add(&mut self, event: &Event) -> Option<u64> {
        self.now(event.boot_ns);
        match &event.kind {
            EventKind::Open { path, flags, sensitive } => self.open(path, *flags, *sensitive),
            EventKind::Connect { addr, port } => self.connect(*addr, *port),
            EventKind::Fork { .. } => {
                self.sums.children += 1;
                None
            }
            EventKind::Flush(part) => {
                self.add_syscalls(part);
                None
            }
            EventKind::Inject { call, victim } => {
                let (value, text) = (call_name(*call), format!("process {victim} by {}", call_name(*call)));
                Some(self.note(Kind::Injection, value, &text))
            }
            EventKind::Namespace { call, flags } => {
                self.sums.namespace_changes += 1;
                let text = format!("{}({})", call_name(*call), namespaces(*flags));
                Some(self.note(Kind::Namespace, &text, &text))
            }
            EventKind::Mount { call, source, target } => {
                let text = format!("{} on {} by {}", shown(source), shown(target), call_name(*call));
                Some(self.note(Kind::Mount, target, &text))
            }
            EventKind::ChangeRoot { call, path } => {
                let name = call_name(*call);
                self.sums.pivot_root |= name == "pivot_root";
                Some(self.note(Kind::Breakout, name, &format!("{name} to {}", shown(path))))
            }
            EventKind::ReleaseAgent { path } => {
                Some(self.note(Kind::Breakout, "release_agent", &format!("{path} opened for writing")))
            }
            EventKind::Tamper { how, path } => Some(self.tamper(*how, path)),
            EventKind::Dns { addr, bytes, question } => self.dns(*addr, *bytes, question.as_ref()),
            EventKind::Privilege { call } if call_name(*call).contains("chmod") => {
                Some(self.note(Kind::SetUserId, "set-user-id", call_name(*call)))
            }
            EventKind::Privilege { call } => {
                self.sums.root_gained = true;
                let text = format!("asked for it by {} as user id {}", call_name(*call), event.uid);
                Some(self.note(Kind::Root, "root", &text))
            }
            EventKind::KernelLoad { call } => {
                let name = call_name(*call);
                let kind = if name == "bpf" { Kind::Bpf } else { Kind::Module };
                Some(self.note(kind, name, name))
            }
            EventKind::Exec { .. } | EventKind::Exit => None,
        }
    }

    /// What follows happened at this instant: `CLOCK_BOOTTIME`, nanoseconds.
    pub fn now(&mut self, boot_ns: u64) {
        self.now_ns = boot_ns;
    }

    /// Takes over what another process did for this one: a child, before it started a program of its own.
    pub fn absorb(&mut self, child: &Self) {
        for address in child.addresses.values() {
            self.overflow += u64::from(self.addresses.insert(*address).is_err());
        }
        for port in child.ports.values() {
            self.overflow += u64::from(self.ports.insert(*port).is_err());
        }
        for file in child.files.values() {
            self.overflow += u64::from(self.files.insert(*file).is_err());
        }
        self.overflow += child.overflow;
        self.sums.absorb(&child.sums);
        for id in child.traits.values() {
            match self.traits.insert(*id) {
                Ok(false) => {}
                Err(Full) => self.overflow += 1,
                Ok(true) => {
                    let shown = child.texts.get(*id);
                    self.overflow +=
                        shown.map_or(0, |shown| self.texts.keep(*id, &shown.text, shown.first_ns));
                }
            }
        }
    }

    /// A tool was started that the operator wants to know of, beside those of the schema.
    pub fn tool_started(&mut self, name: &str, arguments: &str) {
        let id = self.note(Kind::Lolbin, name, name);
        self.overflow += self.commands.keep(id, arguments);
    }

    /// A program was started by this process or by a child it had just forked. A NUL ends each of the arguments.
    pub fn program_started(&mut self, path: &str, arguments: &str) {
        let name = path.rsplit('/').next().unwrap_or(path);
        let id = self.note(Kind::Exec, path, path);
        self.overflow += self.commands.keep(id, arguments);
        if SHELLS.contains(&name) {
            self.sums.shell = true;
            let id = self.note(Kind::Shell, name, path);
            self.overflow += self.commands.keep(id, arguments);
        }
        if let Some(tool) = tool(path) {
            let count = LOLBINS.iter().position(|known| *known == tool).map(|at| &mut self.sums.lolbins[at]);
            if let Some(count) = count {
                *count = count.saturating_add(1);
            }
            self.tool_started(tool, arguments);
        }
    }

    /// A program without a file was started by this process or by a child it had just forked.
    pub fn fileless_program_started(&mut self, path: &str, arguments: &str) -> u64 {
        let id = self.note(Kind::Fileless, "fileless", path);
        self.overflow += self.commands.keep(id, arguments);
        id
    }

    /// Another process, `by`, took hold of this one or wrote into it.
    pub fn injected(&mut self, by: u32, comm: &str, call: u16) -> u64 {
        self.sums.injected = true;
        let text = format!("process {by} ({comm}) by {}", call_name(call));
        self.note(Kind::Injected, comm, &text)
    }

    /// The process runs as root now and did not before.
    pub fn root_gained(&mut self, from_uid: u32) -> u64 {
        self.sums.root_gained = true;
        self.note(Kind::Root, "root", &format!("from user id {from_uid}"))
    }

    /// Adds counts that the kernel drained or flushed.
    pub fn add_syscalls(&mut self, part: &SyscallWindow) {
        self.now(0);
        self.syscalls.merge(part);
        self.sums.bytes_sent = self.syscalls.bytes_sent;
        self.sums.bytes_recv = self.syscalls.bytes_recv;
        self.sums.accepts = self.syscalls.accepts();
        self.sums.uring = self.syscalls.uring;
        if part.uring > 0 {
            let text = format!("{} operations: {}", part.uring, operations(part.uring_ops));
            self.note(Kind::IoUring, "io_uring", &text);
        }
        let sent = self.sums.bytes_sent;
        for decade in decades(SENT_FROM).take_while(|decade| *decade <= sent) {
            let text = format!("{} kB", sent / 1000);
            self.note(Kind::Sent, &decade.to_string(), &text);
        }
        for name in capability::names(part.capabilities) {
            self.note(Kind::Capability, name, name);
        }
        for (slot, _) in part.calls.iter().enumerate().filter(|(_, n)| **n > 0) {
            let name = syscalls::name(slot);
            self.note(Kind::Syscall, name, name);
        }
    }

    /// The same window as that of a program without a baseline: with what tells of strangers and is not known of this one,
    /// and that it is one.
    #[must_use]
    pub fn of_stranger(&self, program: &str, is_known: impl Fn(u64) -> bool) -> Self {
        let mut stranger = self.clone();
        // Being there comes first: a window full of calls has no room left for it.
        stranger.traits = Distinct::default();
        stranger.note_stranger(program);
        let being_there = std::mem::take(&mut stranger.traits);
        for id in being_there.values().iter().chain(self.traits.values()) {
            if Kind::of(*id).is_some_and(Kind::tells_of_strangers) && !is_known(*id) {
                let _ = stranger.traits.insert(*id);
            }
        }
        stranger
    }

    /// What there is to say of a program for being there.
    pub fn note_stranger(&mut self, program: &str) {
        self.note(Kind::Stranger, program, program);
        if let Some(tool) = tool(program) {
            self.note(Kind::Lolbin, tool, tool);
        }
        if let Some(folder) = TEMPORARY_DIRS.iter().find(|folder| program.starts_with(*folder)) {
            self.note(Kind::Temporary, folder, program);
        }
    }

    /// The traits shown so far, ascending.
    #[must_use]
    pub fn traits(&self) -> &[u64] {
        self.traits.values()
    }

    fn open(&mut self, path: &str, flags: u32, sensitive: bool) -> Option<u64> {
        if self.files.insert(trait_id(Kind::Exec, path)).is_err() {
            self.overflow += 1;
        }
        self.sums.paths += 1;
        self.sums.path_entropy_sum += entropy(path);
        let in_system = SYSTEM_DIRS.iter().any(|dir| path.starts_with(dir));
        self.sums.system_dir_files += u32::from(in_system);
        self.sums.executables_opened += u32::from(PROGRAM_DIRS.iter().any(|dir| path.starts_with(dir)));
        if flags & O_ACCMODE != 0 {
            self.sums.files_written += 1;
            if in_system {
                let dir = path.rsplit_once('/').map_or("/", |(dir, _)| dir);
                self.note(Kind::SystemWrite, dir, path);
            }
        }
        // Who logs appends; what is cut by the open is another record.
        let over = flags & O_ACCMODE != 0 && flags & (O_APPEND | O_TRUNC | O_EXCL) == 0;
        if over && path.starts_with("/var/log/") {
            let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
            let text = format!("opened {path} to write over it");
            return Some(self.note(Kind::LogTamper, &format!("overwritten {dir}"), &text));
        }
        let (process, of_process) = process_file(path);
        let of_another = process.is_some_and(|process| process != self.tgid);
        let sensitive = sensitive || of_another && of_process == "environ";
        sensitive.then(|| {
            // Which process it was is another every time.
            let value = if of_another { format!("/proc/*/{of_process}") } else { path.to_owned() };
            self.note(Kind::Sensitive, &value, path)
        })
    }

    fn connect(&mut self, addr: IpAddr, port: u16) -> Option<u64> {
        self.sums.connections += 1;
        if self.addresses.insert(addr).is_err() {
            self.overflow += 1;
        }
        if self.ports.insert(port).is_err() {
            self.overflow += 1;
        }
        self.sums.rfc1918 |= is_private(addr);
        let class = if port < EPHEMERAL_PORT { port.to_string() } else { "ephemeral".to_owned() };
        self.note(Kind::Port, &class, &format!("{addr} port {port}"));
        TOR_PORTS.contains(&port).then(|| {
            self.sums.tor_port = true;
            self.note(Kind::Tor, "tor", &format!("{port} at {addr}"))
        })
    }

    fn tamper(&mut self, how: Tampering, path: &str) -> u64 {
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        // A process that left took the name of its descriptor with it.
        let path = if path.is_empty() { "a watched file" } else { path };
        if how == Tampering::Redated {
            self.sums.time_changes += 1;
            return self.note(Kind::Redate, dir, path);
        }
        self.sums.log_deletions += 1;
        let (class, verb) = match how {
            Tampering::Removed => ("removed", "removed"),
            Tampering::Emptied => ("emptied", "emptied or cut"),
            Tampering::Replaced => ("replaced", "put another file in the place of"),
            Tampering::Renamed | Tampering::Redated => ("renamed", "moved away"),
        };
        self.note(Kind::LogTamper, &format!("{class} {dir}"), &format!("{verb} {path}"))
    }

    fn dns(&mut self, addr: IpAddr, bytes: u32, question: Option<&DnsQuestion>) -> Option<u64> {
        // A message too short to ask anything is the length that comes first over TCP.
        if question.is_none() && bytes < DNS_SHORTEST {
            return None;
        }
        self.sums.dns_queries += 1;
        self.sums.dns_bytes += u64::from(bytes);
        self.sums.dns_bytes_max = self.sums.dns_bytes_max.max(bytes);
        self.note(Kind::Port, "53", &format!("{addr} port 53"));
        if bytes > DNS_LARGE
            || question.is_some_and(|question| self.odd_names.is_one_of_many(question, &mut self.overflow))
        {
            let about = match question {
                Some(question) => format!(
                    "about {} to {addr}, name of {} bytes with {:.1} bits a character",
                    question.domain, question.name_len, question.entropy
                ),
                None => format!("to {addr}, whose question was not seen"),
            };
            let value = question.map_or_else(|| addr.to_string(), |question| question.domain.to_string());
            self.note(Kind::DnsTunnel, &value, &format!("{bytes} bytes {about}"));
        }
        None
    }

    fn note(&mut self, kind: Kind, value: &str, text: &str) -> u64 {
        let id = trait_id(kind, value);
        match self.traits.insert(id) {
            Ok(false) => {}
            Err(Full) => self.overflow += 1,
            Ok(true) => self.overflow += self.texts.keep(id, text, self.now_ns),
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Comm, PathText};

    fn event(kind: EventKind) -> Event {
        Event { boot_ns: 1, tgid: 1, tid: 1, uid: 0, comm: Comm::new(), kind }
    }

    fn open(path: &str, flags: u32, sensitive: bool) -> Event {
        event(EventKind::Open { path: PathText::try_from(path).unwrap(), flags, sensitive })
    }

    #[test]
    fn a_sensitive_open_is_decisive_and_keeps_its_path() {
        let mut window = Window::new(1, 0);
        let id = window.add(&open("/etc/shadow", 0, true)).unwrap();
        assert_eq!(window.text(id), Some("/etc/shadow"));
        assert_eq!(window.add(&open("/etc/hosts", 0, false)), None);
        assert_eq!(window.sums.system_dir_files, 2);
    }

    #[test]
    fn the_65th_file_is_counted_as_overflow() {
        let mut window = Window::new(1, 0);
        for n in 0..65 {
            window.add(&open(&format!("/tmp/{n}"), 0, false));
        }
        assert_eq!((window.files.len(), window.overflow), (64, 1));
    }

    #[test]
    fn a_versioned_interpreter_counts_as_its_tool() {
        let mut window = Window::new(1, 0);
        window.program_started("/usr/bin/python3.11", "");
        window.program_started("/bin/sh", "");
        window.program_started("/usr/bin/ncdu", "");
        assert_eq!(window.sums.lolbins.iter().sum::<u16>(), 1);
        assert!(window.sums.shell);
    }

    #[test]
    fn events_land_in_the_right_sums() {
        let mut window = Window::new(1, 0);
        assert!(window.is_empty());
        window.add(&event(EventKind::Connect { addr: "10.0.0.1".parse().unwrap(), port: 9050 }));
        window.add(&event(EventKind::Fork { child: 2 }));
        window.add(&open("/etc/cron.d/x", 1, false));
        let sums = &window.sums;
        assert!(sums.tor_port && sums.rfc1918);
        assert_eq!((sums.connections, sums.children, sums.files_written), (1, 1, 1));
    }

    #[test]
    fn rare_acts_are_decisive_and_fill_their_features() {
        let mut window = Window::new(1, 0);
        let text = |s: &str| PathText::try_from(s).unwrap();
        for kind in [
            EventKind::Inject { call: 101, victim: 9 },
            EventKind::Namespace { call: 272, flags: 0x0002_0000 },
            EventKind::Mount { call: 428, source: text("/dev/sda1"), target: text("/mnt") },
            EventKind::ChangeRoot { call: 155, path: text("/mnt") },
            EventKind::ReleaseAgent { path: text("/sys/fs/cgroup/rdma/release_agent") },
            EventKind::Tamper { how: Tampering::Removed, path: text("/var/log/syslog") },
            EventKind::Tamper { how: Tampering::Redated, path: text("/var/log/syslog") },
            EventKind::Privilege { call: 105 },
            EventKind::KernelLoad { call: 313 },
            EventKind::KernelLoad { call: 321 },
        ] {
            let id = window.add(&event(kind.clone())).unwrap_or_else(|| panic!("{kind:?} is decisive"));
            assert!(Kind::of(id).unwrap().is_decisive(), "{kind:?}");
        }
        let sums = &window.sums;
        assert!(sums.pivot_root && sums.root_gained && !sums.injected);
        assert_eq!((sums.namespace_changes, sums.log_deletions, sums.time_changes), (1, 1, 1));
        window.injected(7, "gdb", 101);
        assert!(window.sums.injected);
        let traits = window.traits();
        let said: Vec<&str> = traits.iter().filter_map(|id| window.text(*id)).collect();
        assert!(said.contains(&"unshare(mount)") && said.contains(&"process 9 by ptrace"), "{said:?}");
        assert!(said.contains(&"/dev/sda1 on /mnt by open_tree"), "{said:?}");
    }

    #[test]
    fn messages_to_port_53_count_as_queries_and_only_large_ones_as_evidence() {
        let mut window = Window::new(1, 0);
        let ask = |bytes, domain: &str| {
            let domain = PathText::try_from(domain).unwrap();
            let question = DnsQuestion { domain, name_len: 20, entropy: 4.0, tcp: false };
            event(EventKind::Dns { addr: "9.9.9.9".parse().unwrap(), bytes, question: Some(question) })
        };
        let unread =
            |bytes| event(EventKind::Dns { addr: "9.9.9.9".parse().unwrap(), bytes, question: None });
        // The length that comes first over TCP asks nothing.
        window.add(&unread(2));
        assert!(window.traits().is_empty());
        window.add(&ask(40, "example.org"));
        let port = trait_id(Kind::Port, "53");
        assert_eq!(window.traits(), [port]);
        window.add(&ask(180, "example.net"));
        assert_eq!(window.traits(), [port, trait_id(Kind::DnsTunnel, "example.net")]);
        window.add(&unread(500));
        let tunnels = [trait_id(Kind::DnsTunnel, "example.net"), trait_id(Kind::DnsTunnel, "9.9.9.9")];
        assert!(tunnels.iter().all(|id| window.traits().contains(id)) && window.traits().len() == 3);
        let sums = &window.sums;
        assert_eq!((sums.dns_queries, sums.dns_bytes, sums.dns_bytes_max), (3, 720, 500));
    }

    #[test]
    fn a_log_that_is_opened_to_write_over_it_is_tampered_with() {
        let decisive = |path, flags| {
            let kind = Window::new(1, 0).add(&open(path, flags, false)).and_then(Kind::of);
            kind == Some(Kind::LogTamper)
        };
        assert!(decisive("/var/log/gw/access.log", 1));
        assert!(!decisive("/var/log/gw/access.log", 1 | O_APPEND), "as every logger does");
        assert!(!decisive("/var/log/gw/access.log", 0) && !decisive("/var/lib/gw/state", 1));
    }

    #[test]
    fn being_there_is_told_of_a_stranger_whose_window_is_full() {
        let mut window = Window::new(1, 0);
        (0..TRAITS_MAX + 1).for_each(|n| window.program_started(&format!("/opt/{n}"), ""));
        assert_eq!(window.traits().len(), TRAITS_MAX);
        let stranger = window.of_stranger("/tmp/nc", |_| false);
        for (kind, value) in [(Kind::Stranger, "/tmp/nc"), (Kind::Lolbin, "nc"), (Kind::Temporary, "/tmp/")] {
            assert!(stranger.traits().contains(&trait_id(kind, value)), "{kind:?}");
        }
        let known = trait_id(Kind::Stranger, "/tmp/nc");
        assert!(!window.of_stranger("/tmp/nc", |id| id == known).traits().contains(&known));
    }

    #[test]
    fn another_process_is_the_same_whichever_it_is() {
        let traits = |path: &str, sensitive| {
            let mut window = Window::new(1, 0);
            window.add(&open(path, 0, sensitive));
            window.traits().to_vec()
        };
        assert_eq!(traits("/proc/77/mem", true), traits("/proc/78/mem", true));
        assert_eq!(traits("/proc/77/environ", false), [trait_id(Kind::Sensitive, "/proc/*/environ")]);
        assert!(traits("/proc/1/environ", false).is_empty(), "its own");
        assert!(traits("/proc/77/stat", false).is_empty());
    }

    #[test]
    fn what_the_kernel_counted_reaches_the_sums_once() {
        let mut window = Window::new(1, 0);
        let mut part = SyscallWindow::empty(1, 1);
        (part.bytes_sent, part.uring, part.uring_ops) = (1000, 3, 1 << 18);
        part.calls[43] = 2;
        window.add_syscalls(&part);
        window.add_syscalls(&part);
        assert_eq!((window.sums.bytes_sent, window.sums.accepts, window.sums.uring), (2000, 4, 6));
        let id = trait_id(Kind::IoUring, "io_uring");
        assert_eq!(window.text(id), Some("3 operations: openat"));
    }
}
