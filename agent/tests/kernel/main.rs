//! The probe against the running kernel. Needs root.

mod acts;
mod capture;
mod cgroups;
mod control;
mod floods;
mod leftovers;
mod names;
mod narrow;
mod places;
mod sequences;
mod simulate;
mod strace;

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard},
    thread,
    time::Duration,
};

use agent::probe::{Probe, ProbeOptions};
use agent_ebpf::records::Class;
use models::event::{Event, EventKind, SyscallWindow};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    // SAFETY: the call takes nothing and cannot fail.
    assert!(unsafe { libc::geteuid() } == 0, "these tests load kernel programs: run them as root");
    ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner())
}

fn load(forced_off: &[&str]) -> Probe {
    load_with(|o| o.forced_off = forced_off.iter().map(|s| (*s).to_owned()).collect())
}

/// The layers behind the dispatcher.
const CALL_LAYERS: [&str; 10] = [
    "file",
    "network",
    "injection",
    "container_escape",
    "anti_forensic",
    "dns",
    "network_bytes",
    "privilege",
    "kernel_load",
    "io_uring",
];

/// Layers whose best hooks only newer kernels have, and whose others only some.
const MAY_LACK_HOOKS: [&str; 1] = ["capability"];

#[test]
fn what_looks_at_calls_costs_the_others_nothing() {
    let _turn = turn();
    let probe = load(&[]);
    // With a tracepoint of its own for a call, each call of every process would become slower.
    for state in probe.layers().iter().filter(|state| CALL_LAYERS.contains(&state.layer.as_str())) {
        assert!(!state.backend.starts_with("tracepoint/syscalls"), "{state:?}");
    }
}

/// Loads, of the layers behind the dispatcher, only these: an emulated processor needs seconds to verify all of them.
fn load_only(layers: &[&str], forced_off: &[&str]) -> Probe {
    let others = CALL_LAYERS.iter().filter(|layer| !layers.contains(layer));
    let better = ["sock_send_length", "io_uring_submit_req"];
    let better = better.iter().flat_map(|name| [format!("tp_btf/{name}"), format!("raw_tp/{name}")]);
    let backends: Vec<_> =
        ["tail_call", "tracepoint/syscalls"].map(str::to_owned).into_iter().chain(better).collect();
    let others = others.flat_map(|layer| backends.iter().map(move |backend| format!("{layer}:{backend}")));
    let off: Vec<String> = forced_off.iter().map(|off| (*off).to_owned()).chain(others).collect();
    let probe = load_with(|options| options.forced_off = off);
    for state in probe.layers() {
        let forced =
            forced_off.iter().any(|off| off.split_once(':').is_some_and(|(name, _)| name == state.layer));
        // A kernel may have neither of the hooks that a layer would rather have.
        if forced && MAY_LACK_HOOKS.contains(&state.layer.as_str()) {
            continue;
        }
        let wanted = layers.contains(&state.layer.as_str()) || !CALL_LAYERS.contains(&state.layer.as_str());
        assert_eq!(!state.backend.is_empty(), wanted, "{state:?}");
    }
    probe
}

fn load_with(change: impl FnOnce(&mut ProbeOptions)) -> Probe {
    // The test's own process is watched here; only `own_process_is_not_seen` passes its real id.
    let mut options = ProbeOptions::new(u32::MAX);
    change(&mut options);
    Probe::load(&options).unwrap_or_else(|e| panic!("{e:?}"))
}

fn backend<'a>(probe: &'a Probe, layer: &str) -> &'a str {
    let state = probe.layers().iter().find(|l| l.layer == layer).expect("the layer is listed");
    assert!(!state.backend.is_empty(), "{state:?}");
    &state.backend
}

fn events(probe: &mut Probe) -> Vec<Event> {
    let mut events = Vec::new();
    let stats = probe.poll_events(&mut |e| events.push(e));
    assert_eq!(stats.decode_errors, 0);
    events
}

/// The windows of processes that left.
fn flushed(probe: &mut Probe) -> Vec<SyscallWindow> {
    let window = |event: Event| match event.kind {
        EventKind::Flush(window) => Some(*window),
        _ => None,
    };
    events(probe).into_iter().filter_map(window).collect()
}

/// What a child process does that leaves then, and its process id. It may do nothing but system calls that take integers, for
/// no lock that another thread held is ever let go in it, or become another program.
fn in_child(work: impl FnOnce()) -> u32 {
    // SAFETY: the child leaves without running any destructor, and does before what this function's description allows.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            work();
            libc::_exit(0);
        }
        child
    };
    // SAFETY: the child is ours, and no status is asked for.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    u32::try_from(child).expect("a process id")
}

/// Runs a program and returns its process id.
fn run(program: &str, arguments: &[&str]) -> u32 {
    let mut child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let pid = child.id();
    child.wait().expect("it ends");
    pid
}

#[test]
fn every_process_backend_sees_its_event() {
    let _turn = turn();
    let sets: [(&[&str], [&str; 3]); 3] = [
        (&[], ["tp_btf/sched_process_exec", "tp_btf/task_newtask", "tp_btf/sched_process_exit"]),
        (
            &[
                "process_exec:tp_btf/sched_process_exec",
                "process_fork:tp_btf/task_newtask",
                "process_exit:tp_btf/sched_process_exit",
            ],
            ["raw_tp/sched_process_exec", "tp_btf/sched_process_fork", "raw_tp/sched_process_exit"],
        ),
        (
            &[
                "process_exec:tp_btf/sched_process_exec",
                "process_exec:raw_tp/sched_process_exec",
                "process_fork:tp_btf/task_newtask",
                "process_fork:tp_btf/sched_process_fork",
                "process_exit:tp_btf/sched_process_exit",
                "process_exit:raw_tp/sched_process_exit",
            ],
            ["tracepoint/sched_process_exec", "tracepoint/task_newtask", "tracepoint/sched_process_exit"],
        ),
    ];
    for (off, [exec, fork, exit]) in sets {
        // Once with everything beside it.
        let mut probe = if off.is_empty() { load(off) } else { load_only(&[], off) };
        assert_eq!(backend(&probe, "process_exec"), exec);
        assert_eq!(backend(&probe, "process_fork"), fork);
        assert_eq!(backend(&probe, "process_exit"), exit);
        let process = probe.layers().iter().filter(|l| l.layer.starts_with("process_"));
        assert_eq!(process.map(|l| l.failed.len()).sum::<usize>(), off.len(), "{:?}", probe.layers());
        let pid = run("/bin/true", &["--one", "two words"]);
        let events = events(&mut probe);
        let own = std::process::id();
        let execs = |e: &&Event| {
            e.tgid == pid
                && matches!(&e.kind, EventKind::Exec { path, arguments, .. } if path == "/bin/true"
                && arguments == "/bin/true\0--one\0two words\0")
        };
        let forks = |e: &&Event| e.tgid == own && e.kind == EventKind::Fork { child: pid };
        assert_eq!(events.iter().filter(execs).count(), 1, "{exec}");
        assert_eq!(events.iter().filter(forks).count(), 1, "{fork}");
        assert_eq!(events.iter().filter(|e| e.tgid == pid && e.kind == EventKind::Exit).count(), 1, "{exit}");
        thread::spawn(|| ()).join().expect("it ends");
        let threads = self::events(&mut probe);
        let own = |e: &&Event| e.tgid == own && matches!(e.kind, EventKind::Fork { .. } | EventKind::Exit);
        assert_eq!(threads.iter().filter(own).count(), 0, "threads are not processes");
    }
}

#[test]
fn every_file_and_network_backend_sees_its_event() {
    let _turn = turn();
    let sets: [(&[&str], &str); 3] = [
        (&[], "tail_call"),
        (&["syscall:tp_btf/sys_enter"], "tail_call"),
        (&["file:tail_call", "network:tail_call"], "tracepoint/syscalls"),
    ];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    let address = listener.local_addr().expect("bound");
    for (off, expected) in sets {
        let mut probe = load_only(&["file", "network"], off);
        assert_eq!(backend(&probe, "file"), expected, "{:?}", probe.layers());
        assert_eq!(backend(&probe, "network"), expected);
        File::open("/etc/shadow").expect("root may");
        File::open("/etc/hostname").expect("it exists");
        TcpStream::connect(address).expect("it listens");
        let own = std::process::id();
        let events: Vec<_> = events(&mut probe).into_iter().filter(|e| e.tgid == own).collect();
        let opened = |name: &str, expect: bool| {
            events.iter().any(
                |e| matches!(&e.kind, EventKind::Open { path, sensitive, .. } if path == name && *sensitive == expect),
            )
        };
        assert!(opened("/etc/shadow", true), "{off:?}");
        assert!(opened("/etc/hostname", false), "{off:?}");
        let etc = File::open("/etc").expect("it exists");
        // SAFETY: the path is NUL-terminated and outlives the call; the descriptor is closed at once.
        unsafe { libc::close(libc::openat(etc.as_raw_fd(), c"gshadow".as_ptr(), libc::O_RDONLY)) };
        let relative = self::events(&mut probe);
        let made_absolute = |e: &&Event| {
            e.tgid == own
                && matches!(&e.kind, EventKind::Open { path, sensitive: true, .. } if path == "/etc/gshadow")
        };
        assert_eq!(relative.iter().filter(made_absolute).count(), 1, "{off:?}: {relative:?}");
        let wanted = EventKind::Connect { addr: address.ip(), port: address.port() };
        assert_eq!(events.iter().filter(|e| e.kind == wanted).count(), 1, "{off:?}");
    }
}

#[test]
fn without_type_information_everything_falls_back() {
    let _turn = turn();
    let mut probe = load_with(|o| o.without_btf = true);
    assert_eq!(backend(&probe, "syscall"), "raw_tp/sys_enter");
    assert_eq!(backend(&probe, "process_exec"), "tracepoint/sched_process_exec");
    assert_eq!(backend(&probe, "process_fork"), "tracepoint/task_newtask");
    assert_eq!(backend(&probe, "process_exit"), "raw_tp/sched_process_exit");
    for layer in probe.layers() {
        // A raw tracepoint that this kernel has not fails for that reason.
        let typed =
            layer.failed.iter().filter(|f| f.0.starts_with("tp_btf/") || layer.layer.starts_with("process_"));
        typed.for_each(|(_, why)| assert!(why.contains("CONFIG_DEBUG_INFO_BTF"), "{layer:?}"));
    }
    let pid = run("/bin/true", &[]);
    assert!(events(&mut probe).iter().any(|e| e.tgid == pid && e.kind == EventKind::Exit));
}

#[test]
fn no_call_is_lost_or_counted_twice_across_epochs() {
    let _turn = turn();
    for off in [&[][..], &["syscall:tp_btf/sys_enter"]] {
        const CALLS: u32 = 300_000;
        let mut probe = load_only(&[], off);
        let own = std::process::id();
        let worker = thread::spawn(|| {
            for _ in 0..CALLS {
                // SAFETY: the call takes nothing and cannot fail.
                unsafe { libc::getppid() };
            }
        });
        let mut windows = Vec::new();
        let mut epochs = 0;
        while !worker.is_finished() {
            windows.extend(probe.drain().expect("drained"));
            epochs += 1;
        }
        worker.join().expect("it ends");
        windows.extend(probe.drain().expect("drained"));
        let mut sum = SyscallWindow::empty(own, 0);
        windows.iter().filter(|w| w.tgid == own).for_each(|w| sum.merge(w));
        assert_eq!(sum.calls[110], CALLS, "{epochs} epochs");
        assert!(epochs > 1, "the work must cross an epoch");
        // Pairs of getppid all fall into one bucket; only the first has another predecessor.
        assert!(sum.bigrams[(110 * 337 + 110) % 50] >= CALLS - 1);
        assert_eq!(probe.counters().expect("read").class(Class::Syscall).dropped, 0);
    }
}

#[test]
fn a_short_process_is_flushed_at_exit() {
    let _turn = turn();
    let mut probe = load_only(&[], &[]);
    let pid = run("/bin/sleep", &["0.08"]);
    let flushed: Vec<_> = events(&mut probe)
        .into_iter()
        .filter_map(|e| match e.kind {
            EventKind::Flush(window) if window.tgid == pid => Some(window),
            _ => None,
        })
        .collect();
    assert_eq!(flushed.len(), 1);
    let window = &flushed[0];
    assert!(window.calls[59] == 1 && window.calls[230] + window.calls[35] == 1, "execve and clock_nanosleep");
    // Its clock ticks every 4 to 10 ms.
    let lived_ns = window.last_ns - window.first_ns;
    assert!((70_000_000..30_000_000_000).contains(&lived_ns), "{lived_ns}");
    let now_ns = agent::clock::boot_ns();
    assert!(
        window.last_ns <= now_ns && now_ns - window.last_ns < 30_000_000_000,
        "{} {now_ns}",
        window.last_ns
    );
    assert!(window.active.iter().map(|w| w.count_ones()).sum::<u32>() >= 1);
    assert!(probe.drain().expect("drained").iter().all(|w| w.tgid != pid), "it was taken once");
}

#[test]
fn the_drop_equation_holds_under_a_flood() {
    let _turn = turn();
    let mut probe = load_with(|o| {
        (o.urgent_bytes, o.bulk_bytes, o.bulk_cap) = (4096, 4096, 100);
    });
    for _ in 0..200 {
        run("/bin/true", &[]);
    }
    for _ in 0..500 {
        File::open("/etc/hostname").expect("it exists");
    }
    // Others on the machine go on; a poll after the flood and two equal readings make a steady state.
    let counters = loop {
        let before = probe.counters().expect("read");
        events(&mut probe);
        let after = probe.counters().expect("read");
        if before
            .classes
            .iter()
            .zip(&after.classes)
            .all(|(a, b)| a.1.submitted == b.1.submitted && a.1.seen == b.1.seen)
        {
            break after;
        }
        thread::sleep(Duration::from_millis(20));
    };
    for (name, c) in &counters.classes[1..] {
        assert_eq!(c.seen, c.submitted + c.dropped + c.throttled, "{name}: {c:?}");
        assert_eq!(c.submitted, c.received, "{name}: {c:?}");
    }
    assert!(counters.class(Class::Fork).dropped > 0, "the small ring overflowed: {counters:?}");
    assert!(counters.class(Class::Open).throttled > 0, "the cap was reached: {counters:?}");
}

#[test]
fn own_process_is_not_seen() {
    let _turn = turn();
    let own = std::process::id();
    let mut probe = load_with(|o| o.own_tgid = own);
    File::open("/etc/shadow").expect("root may");
    run("/bin/true", &[]);
    let events = events(&mut probe);
    assert!(!events.is_empty() && events.iter().all(|e| e.tgid != own));
    assert!(probe.drain().expect("drained").iter().all(|w| w.tgid != own));
}
