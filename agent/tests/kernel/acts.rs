//! One act per layer, really done: each must be seen with the right process and the right object, on every hook.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use agent::probe::Probe;
use models::event::{Event, EventKind, SyscallWindow, Tampering, call_name};

use crate::{CALL_LAYERS, events, flushed, load_only, run, turn};

/// The best hooks, the other dispatcher, and none.
pub(crate) fn hooks() -> Vec<Vec<String>> {
    let classic = CALL_LAYERS.iter().map(|layer| format!("{layer}:tail_call")).collect();
    vec![vec![], vec!["syscall:tp_btf/sys_enter".into()], classic]
}

/// A process that waits, and ends with its owner.
pub(crate) struct Sleeper(pub(crate) Child);

impl Sleeper {
    pub(crate) fn start() -> Self {
        Self(Command::new("/bin/sleep").arg("60").stdout(Stdio::null()).spawn().expect("it starts"))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Something that is done; gives the process that did it.
type Act<'a> = &'a dyn Fn() -> u32;
/// Whether an event is the one that tells of it.
type Wanted<'a> = &'a dyn Fn(&EventKind) -> bool;

/// Acts, then looks among the events for the one that is wanted; on every hook of these layers.
fn check(layers: &[&str], acts: &[(Act<'_>, Wanted<'_>)]) {
    check_on(&hooks(), layers, acts);
}

fn check_on(hooks: &[Vec<String>], layers: &[&str], acts: &[(Act<'_>, Wanted<'_>)]) {
    for off in hooks {
        let off: Vec<&str> = off.iter().map(String::as_str).collect();
        let mut probe = load_only(layers, &off);
        for (place, (act, wanted)) in acts.iter().enumerate() {
            let pid = act();
            let events = events(&mut probe);
            let mine: Vec<&Event> = events.iter().filter(|event| event.tgid == pid).collect();
            assert!(mine.iter().any(|event| wanted(&event.kind)), "act {place}, {off:?}: {mine:?}");
        }
        balanced(&mut probe);
    }
}

pub(crate) fn balanced(probe: &mut Probe) {
    // Others on the machine go on while the counters are read, so the sums are compared at rest only.
    for _ in 0..50 {
        events(probe);
        let before = probe.counters().expect("read");
        let after = probe.counters().expect("read");
        if before == after && before.classes[1..].iter().all(|(_, c)| c.submitted == c.received) {
            for (name, c) in &before.classes[1..] {
                assert_eq!(c.seen, c.submitted + c.dropped + c.throttled, "{name}");
            }
            return;
        }
    }
    panic!("the counters never came to rest");
}

#[test]
fn taking_hold_of_a_process_names_its_victim() {
    let _turn = turn();
    let sleeper = Sleeper::start();
    let victim = sleeper.0.id();
    let pid = i32::try_from(victim).expect("a process id");
    let byte = [0_u8; 1];
    let seize = || {
        // SAFETY: the call takes integers and touches no memory of ours.
        let held = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
        assert!(held == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM));
        std::process::id()
    };
    let write = || {
        let local = libc::iovec { iov_base: byte.as_ptr().cast_mut().cast(), iov_len: 1 };
        let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(8), iov_len: 1 };
        // SAFETY: both vectors are valid for the call; the remote address is not mapped, so nothing is written.
        unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
        std::process::id()
    };
    let by = |name: &'static str| move |kind: &EventKind| matches!(kind, EventKind::Inject { call, victim: v } if *v == victim && call_name(*call) == name);
    check(&["injection"], &[(&seize, &by("ptrace")), (&write, &by("process_vm_writev"))]);
}

#[test]
fn leaving_a_namespace_mounting_and_changing_the_root_are_seen() {
    let _turn = turn();
    let (from, to) =
        (CString::new("/etc").expect("no NUL"), CString::new("/nowhere-mounted").expect("no NUL"));
    let root = CString::new("/nowhere-new-root").expect("no NUL");
    let leave = || run("/usr/bin/unshare", &["--uts", "true"]);
    let mount = || {
        // SAFETY: the paths are NUL-terminated and outlive the call, which fails because the target does not exist.
        unsafe { libc::mount(from.as_ptr(), to.as_ptr(), std::ptr::null(), libc::MS_BIND, std::ptr::null()) };
        std::process::id()
    };
    let pivot = || {
        // SAFETY: both paths are NUL-terminated and outlive the call, which fails because they do not exist.
        unsafe { libc::syscall(libc::SYS_pivot_root, root.as_ptr(), root.as_ptr()) };
        std::process::id()
    };
    let chroot = || {
        // SAFETY: the path is NUL-terminated and outlives the call, which fails because it does not exist.
        unsafe { libc::chroot(root.as_ptr()) };
        std::process::id()
    };
    let root_changed = |name: &'static str| move |kind: &EventKind| matches!(kind, EventKind::ChangeRoot { call, path } if path == "/nowhere-new-root" && call_name(*call) == name);
    check(
        &["container_escape"],
        &[
            (&leave, &|kind| matches!(kind, EventKind::Namespace { flags, .. } if *flags & 0x0400_0000 != 0)),
            (
                &mount,
                &|kind| matches!(kind, EventKind::Mount { source, target, .. } if source == "/etc" && target == "/nowhere-mounted"),
            ),
            (&pivot, &root_changed("pivot_root")),
            (&chroot, &root_changed("chroot")),
        ],
    );
}

#[test]
fn each_way_to_wipe_a_log_is_seen_by_path_and_by_descriptor() {
    let _turn = turn();
    let log = format!("/var/log/behaveguard-test-{}.log", std::process::id());
    let moved = format!("{log}.1");
    let write = || fs::write(&log, "evidence\n").expect("root may");
    let tampered = |how: Tampering| {
        let log = log.clone();
        move |kind: &EventKind| matches!(kind, EventKind::Tamper { how: h, path } if *h == how && *path == log.as_str())
    };
    let remove = || {
        write();
        fs::remove_file(&log).expect("it is there");
        std::process::id()
    };
    let cut = || {
        write();
        let file = File::options().write(true).open(&log).expect("it is there");
        file.set_len(0).expect("writable");
        // The name behind a descriptor is looked up by the agent, so it must still be open then.
        std::mem::forget(file);
        std::process::id()
    };
    let rename = || {
        write();
        fs::rename(&log, &moved).expect("it is there");
        std::process::id()
    };
    let replace = || {
        write();
        let folder = tempfile::tempdir_in("/var").expect("a folder");
        let other = folder.path().join("empty");
        File::create(&other).expect("writable");
        // Another file system than the log's would have its tools copy.
        match fs::rename(&other, &log) {
            Err(error) if error.raw_os_error() != Some(libc::EXDEV) => panic!("{error}"),
            _ => std::process::id(),
        }
    };
    let roundabout = || {
        write();
        fs::remove_file(log.replace("/var/log", "/var/../var//log/.")).expect("it is there");
        std::process::id()
    };
    let redate = || {
        write();
        run("/usr/bin/touch", &["-d", "2001-01-01 00:00", &log])
    };
    check(
        &["anti_forensic"],
        &[
            (&remove, &tampered(Tampering::Removed)),
            (&cut, &tampered(Tampering::Emptied)),
            (&rename, &tampered(Tampering::Renamed)),
            (&replace, &tampered(Tampering::Replaced)),
            (&roundabout, &tampered(Tampering::Removed)),
            (&redate, &|kind| matches!(kind, EventKind::Tamper { how: Tampering::Redated, .. })),
        ],
    );
    for left in [&log, &moved] {
        let _ = fs::remove_file(left);
    }
}

#[test]
fn what_a_process_reads_and_writes_is_counted_until_its_end() {
    let _turn = turn();
    let mut probe = load_only(&[], &[]);
    // One that has left, and one that is there; a thread's part is the process's.
    let pid = run("/bin/dd", &["if=/dev/zero", "of=/dev/null", "bs=100000", "count=20"]);
    let moved = std::thread::spawn(|| {
        let zeros = File::open("/dev/zero").expect("it is there");
        std::io::copy(&mut zeros.take(3_000_000), &mut File::create("/dev/null").expect("it is there"))
    });
    let volume = |windows: Vec<SyscallWindow>, tgid| {
        windows.into_iter().filter(|window| window.tgid == tgid).find_map(|window| window.volume)
    };
    moved.join().expect("it ends").expect("copied");
    let gone = volume(flushed(&mut probe), pid).expect("counted");
    assert!(
        (2_000_000..2_100_000).contains(&gone.read) && (2_000_000..2_100_000).contains(&gone.written),
        "{gone:?}"
    );
    let there = volume(probe.drain().expect("drained"), std::process::id()).expect("counted");
    assert!(there.read > 3_000_000, "{there:?}");
}

#[test]
fn capabilities_that_a_process_uses_are_in_its_window() {
    const CAP_CHOWN: u64 = 1;
    const CAP_SYS_CHROOT: u64 = 1 << 18;
    let _turn = turn();
    let hooks = ["tp_btf/cap_capable", "raw_tp/cap_capable", "kprobe/cap_capable"];
    let mut worked = 0;
    for n in 0..hooks.len() {
        let off: Vec<String> = hooks[..n].iter().map(|hook| format!("capability:{hook}")).collect();
        let off: Vec<&str> = off.iter().map(String::as_str).collect();
        let mut probe = load_only(&[], &off);
        let state = probe.layers().iter().find(|layer| layer.layer == "capability").expect("listed");
        if state.backend.is_empty() {
            println!("none left on this kernel: {:?}", state.failed);
            break;
        }
        println!("by {}", state.backend);
        worked += 1;
        let chroot = |uid| {
            let mut command = Command::new("/bin/true");
            // SAFETY: the closure makes one system call and touches nothing of the parent.
            unsafe {
                command.pre_exec(move || {
                    libc::setuid(uid);
                    libc::chroot(c"/".as_ptr());
                    Ok(())
                })
            };
            let mut child = command.spawn().expect("it starts");
            child.wait().expect("it ends");
            child.id()
        };
        let (pid, nobody) = (chroot(0), chroot(65534));
        let mut used = std::collections::BTreeMap::new();
        for event in events(&mut probe) {
            if let EventKind::Flush(window) = event.kind {
                *used.entry(window.tgid).or_insert(0) |= window.capabilities;
            }
        }
        assert_eq!(used[&pid] & (CAP_SYS_CHROOT | CAP_CHOWN), CAP_SYS_CHROOT, "{:#x}", used[&pid]);
        assert_eq!(
            used.get(&nobody).copied().unwrap_or(0) & CAP_SYS_CHROOT,
            0,
            "it asked and did not have it"
        );
    }
    assert!(worked > 0, "this kernel has no hook for it at all");
}

#[test]
fn what_an_open_for_writing_does_to_others_is_seen() {
    let _turn = turn();
    let sleeper = Sleeper::start();
    let victim = sleeper.0.id();
    let folder = tempfile::tempdir().expect("a folder");
    let agent = folder.path().join("release_agent");
    let log = format!("/var/log/behaveguard-test-{}.log", std::process::id());
    let hold = || {
        drop(File::options().write(true).open(format!("/proc/{victim}/mem")));
        std::process::id()
    };
    let release = || {
        fs::write(&agent, "#").expect("writable");
        std::process::id()
    };
    let empty = || {
        fs::write(&log, "evidence\n").expect("root may");
        run("/bin/sh", &["-c", &format!(": > {log}")])
    };
    check(
        &["file", "file_write", "injection", "container_escape", "anti_forensic"],
        &[
            (&hold, &|kind| matches!(kind, EventKind::Inject { victim: v, .. } if *v == victim)),
            (
                &release,
                &|kind| matches!(kind, EventKind::ReleaseAgent { path } if path.ends_with("/release_agent")),
            ),
            (
                &empty,
                &|kind| matches!(kind, EventKind::Tamper { how: Tampering::Emptied, path } if *path == log.as_str()),
            ),
        ],
    );
    let _ = fs::remove_file(&log);
}

/// A query for one name, as in RFC 1035.
pub(crate) fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a label is short"));
        message.extend(label.bytes());
    }
    message.extend([0, 0, 16, 0, 1]);
    message
}

#[test]
fn a_dns_query_is_seen_with_its_domain_and_size_over_udp_and_connected() {
    let _turn = turn();
    let label = "a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6q7r8s9t0u1v2w3x4y5z6";
    let message = query(&format!("{label}.{label}.tunnel.example"));
    let wanted = |kind: &EventKind| {
        matches!(kind, EventKind::Dns { bytes, question: Some(question), .. }
            if *bytes as usize == message.len() && question.domain == "tunnel.example" && question.entropy > 3.0)
    };
    let send = |connected: bool| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        let server = (Ipv4Addr::LOCALHOST, 53);
        // Nobody listens; sending is what counts.
        if connected {
            socket.connect(server).expect("loopback");
            let _ = socket.send(&message);
        } else {
            let _ = socket.send_to(&message, server);
        }
        std::process::id()
    };
    check(&["dns", "network"], &[(&|| send(false), &wanted), (&|| send(true), &wanted)]);
}

#[test]
fn asking_for_root_and_making_a_file_that_gives_it_are_seen() {
    let _turn = turn();
    let ask = || {
        let mut command = Command::new("/bin/true");
        // SAFETY: between fork and exec only two system calls that take integers are made.
        unsafe {
            command.pre_exec(|| {
                assert_eq!(libc::setuid(65534), 0);
                libc::setuid(0);
                Ok(())
            });
        }
        let mut child = command.spawn().expect("it starts");
        child.wait().expect("it ends");
        child.id()
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("helper");
    fs::write(&file, "").expect("writable");
    let bit = || {
        for mode in [0o755, 0o4755] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("it is ours");
        }
        std::process::id()
    };
    check(
        &["privilege"],
        &[
            (&ask, &|kind| matches!(kind, EventKind::Privilege { call } if call_name(*call) == "setuid")),
            (
                &bit,
                &|kind| matches!(kind, EventKind::Privilege { call } if call_name(*call).contains("chmod")),
            ),
        ],
    );
}

#[test]
fn code_given_to_the_kernel_is_seen() {
    let _turn = turn();
    let empty = CString::default();
    // A kernel without modules has no tracepoint for the call; the dispatcher sees the attempt all the same.
    let modules = Path::new("/sys/kernel/tracing/events/syscalls/sys_enter_finit_module").exists();
    let modules = 2 + usize::from(modules);
    for (name, hooks) in [("bpf", hooks()), ("finit_module", hooks().into_iter().take(modules).collect())] {
        let load = || {
            // SAFETY: the descriptor and the sizes are invalid, so both calls fail before they read anything.
            unsafe {
                match name {
                    "bpf" => libc::syscall(libc::SYS_bpf, 5, 0, 0),
                    _ => libc::syscall(libc::SYS_finit_module, -1, empty.as_ptr(), 0),
                }
            };
            std::process::id()
        };
        check_on(
            &hooks,
            &["kernel_load"],
            &[(&load, &|kind| matches!(kind, EventKind::KernelLoad { call } if call_name(*call) == name))],
        );
    }
}

#[test]
fn a_program_that_lies_in_memory_only_is_told_from_one_with_a_file() {
    let _turn = turn();
    let name = CString::new("payload").expect("no NUL");
    // SAFETY: the name is NUL-terminated and outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), 0) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new and owned by nobody else.
    let mut file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
    file.write_all(&fs::read("/bin/true").expect("readable")).expect("memory");
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let mut probe = load_only(&[], &[]);
    let (memory, disk) = (run_writable(&path), run("/bin/true", &[]));
    let events = events(&mut probe);
    for (pid, expected) in [(memory, true), (disk, false)] {
        let mut execs = events.iter().filter(|event| event.tgid == pid);
        let found = execs.find_map(|event| match &event.kind {
            EventKind::Exec { fileless, .. } => Some(*fileless),
            _ => None,
        });
        assert_eq!(found, Some(expected), "{path}");
    }
}

/// Runs a program that this process holds open for writing, which the kernel refuses unless it lies in memory.
fn run_writable(path: &str) -> u32 {
    let mut child = Command::new(path).stderr(Stdio::null()).spawn().expect("a memory file may run");
    child.wait().expect("it ends");
    child.id()
}

#[test]
fn bytes_and_io_uring_work_are_counted_per_process() {
    let _turn = turn();
    let off = |hook: &str| {
        [format!("io_uring:{hook}/io_uring_submit_req"), format!("network_bytes:{hook}/sock_send_length")]
    };
    let (typed, raw) = (off("tp_btf").to_vec(), off("raw_tp").to_vec());
    let calls = [&typed[..], &raw].concat();
    let by_raw = [&calls[..], &["syscall:tp_btf/sys_enter".to_owned()]].concat();
    let classic = CALL_LAYERS.iter().map(|layer| format!("{layer}:tail_call"));
    let classic = calls.iter().cloned().chain(classic).collect();
    for off in [vec![], typed, calls, by_raw, classic] {
        let off: Vec<&str> = off.iter().map(String::as_str).collect();
        // Bytes sent are counted by the layer that looks into them, where no better hook tells.
        let mut probe = load_only(&["network", "network_bytes", "dns", "io_uring"], &off);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (mut server, _) = listener.accept().expect("it connects");
        client.write_all(&[7; 50_000]).expect("sent");
        server.read_exact(&mut [0; 50_000]).expect("received");
        let submitted = submit_nothing();
        let windows = probe.drain().expect("drained");
        let mut mine = SyscallWindow::empty(std::process::id(), 0);
        windows
            .iter()
            .filter(|window| window.tgid == std::process::id())
            .for_each(|window| mine.merge(window));
        assert!(
            mine.bytes_sent >= 50_000 && mine.bytes_recv >= 50_000,
            "{} {}",
            mine.bytes_sent,
            mine.bytes_recv
        );
        assert!(mine.accepts() >= 1);
        match submitted {
            Ok(()) => assert!(mine.uring >= 1, "{off:?}"),
            // Where io_uring is switched off, the calls are attempts all the same; a better hook has nothing to tell.
            Err(errno) => {
                assert!(matches!(errno, Some(libc::EPERM | libc::ENOSYS)), "{errno:?}");
                assert!(mine.uring >= 1 || probe.layers().iter().any(|l| l.backend.ends_with("submit_req")));
            }
        }
    }
}

/// Gives io_uring one operation that does nothing. The error is that of the set-up.
fn submit_nothing() -> Result<(), Option<i32>> {
    const ENTRIES: usize = 4;
    let mut parameters = [0_u32; 30];
    // SAFETY: the parameters are zeroed memory of the size the kernel wants, valid for the call.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, parameters.as_mut_ptr()) };
    if ring < 0 {
        return Err(std::io::Error::last_os_error().raw_os_error());
    }
    // Offsets that the kernel filled in: `sq_off.tail` and `sq_off.array`. Fresh entries are zeroes, which is a no-op.
    let (tail, len) = (parameters[11] as usize, parameters[16] as usize + ENTRIES * size_of::<u32>());
    let shared = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: `ring` is an io_uring whose queue has at least `len` bytes, `tail` lies within, and nobody else uses it.
    unsafe {
        let fd = i32::try_from(ring).expect("a descriptor");
        let queue = libc::mmap(std::ptr::null_mut(), len, shared, libc::MAP_SHARED, fd, 0);
        assert_ne!(queue, libc::MAP_FAILED);
        queue.byte_add(tail).cast::<u32>().write_volatile(1);
        assert_eq!(libc::syscall(libc::SYS_io_uring_enter, ring, 1, 0, 0, 0, 0), 1, "one was submitted");
        libc::munmap(queue, len);
        libc::close(fd);
    }
    Ok(())
}
