//! Floods: nothing grows, everything is counted, and what another process does meanwhile is still told.
//!
//! `cargo xtask bench flood` runs these with 200,000 processes, 10,000 threads, and full speed for a minute.

use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use agent::clock::boot_ns;
use agent::config::Config;
use agent::probe::{Probe, ProbeOptions};
use agent::vitals;
use agent::watch::Watch;
use models::event::{Event, EventKind};
use rustix::time::{ClockId, clock_gettime};

use crate::{in_child, load, load_with, turn};

/// One number for the suite, another for the bench.
fn scaled(suite: u32, bench: u32) -> u32 {
    if std::env::var_os("FLOOD_FULL").is_some() { bench } else { suite }
}

/// Opens a sensitive file every 20 ms, each time from a new process.
struct Witness {
    child: std::process::Child,
    dir: tempfile::TempDir,
}

impl Witness {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let script = "while :; do (: < /etc/gshadow); echo >> $0; sleep 0.02; done";
        let count = dir.path().join("count");
        let child = Command::new("/bin/sh").arg("-c").arg(script).arg(&count).spawn().expect("it starts");
        Self { child, dir }
    }

    /// Ends it; how often it opened the file.
    fn stop(mut self) -> usize {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        std::fs::read(self.dir.path().join("count")).expect("it wrote").len()
    }
}

fn is_of_witness(event: &Event) -> bool {
    matches!(&event.kind, EventKind::Open { path, sensitive: true, .. } if path == "/etc/gshadow")
}

/// Ends the witness; all that it did was told. How often that was.
fn all_told(probe: &mut Probe, witness: Witness, kept: &mut Vec<Event>) -> usize {
    let opened = witness.stop();
    probe.poll_events(&mut |event| {
        if is_of_witness(&event) {
            kept.push(event);
        }
    });
    // It may have been ended between opening the file and counting that.
    assert!(kept.len() == opened || kept.len() == opened + 1, "{} of {opened} were told", kept.len());
    opened
}

/// Polls as the agent does while `work` runs; gives the events that `keep` wants.
fn polled(probe: &mut Probe, work: impl FnOnce() + Send, keep: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut kept = Vec::new();
    thread::scope(|scope| {
        let worker = scope.spawn(work);
        loop {
            let over = worker.is_finished();
            probe.poll_events(&mut |event| {
                if keep(&event) {
                    kept.push(event);
                }
            });
            if over {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
    });
    kept
}

/// Every class adds up, once all is at rest.
fn adds_up(probe: &mut Probe) {
    for _ in 0..100 {
        probe.poll_events(&mut |_| ());
        let before = probe.counters().expect("read");
        let after = probe.counters().expect("read");
        if before == after && before.classes[1..].iter().all(|(_, class)| class.submitted == class.received) {
            for (name, class) in &before.classes[1..] {
                assert_eq!(class.seen, class.submitted + class.dropped + class.throttled, "{name}");
            }
            return;
        }
    }
    panic!("the counters never came to rest");
}

/// Makes processes that leave at once; a few at a time.
fn short_processes(count: u32) {
    for _ in 0..count {
        in_child(|| ());
    }
}

#[test]
fn many_short_processes_hide_nothing_and_nothing_grows() {
    let _turn = turn();
    let config = Config::default();
    let mut watch = Watch::new(&config, Probe::load(&ProbeOptions::new(u32::MAX)).expect("loaded"));
    let witness = Witness::start();
    let mut out = Vec::new();
    let mut memory = Vec::new();
    let done = AtomicBool::new(false);
    let seen_before = watch.probe().counters().expect("read");
    thread::scope(|scope| {
        scope.spawn(|| {
            short_processes(scaled(4000, 200_000));
            done.store(true, Relaxed);
        });
        let mut close_ns = boot_ns() + 1_000_000_000;
        while !done.load(Relaxed) {
            watch.take_events(u64::MAX, &mut out);
            if boot_ns() >= close_ns {
                watch.close(&mut out);
                out.clear();
                memory.push(vitals::rss_bytes());
                close_ns = boot_ns() + 1_000_000_000;
            }
            thread::sleep(Duration::from_millis(10));
        }
    });
    let opened = witness.stop();
    watch.close(&mut out);
    let counters = watch.probe().counters().expect("read");
    let class = |name: &str, of: &agent::probe::Counters| {
        of.classes.iter().find(|(known, _)| *known == name).expect("known").1
    };
    assert_eq!(class("open", &counters).dropped, class("open", &seen_before).dropped);
    assert!(opened > 5, "{opened}");
    assert!(class("fork", &counters).seen >= u64::from(scaled(4000, 200_000)));
    let followed = watch.pipeline().followed();
    assert!(followed <= config.processes_max as usize, "{followed}");
    // The first second fills tables and buffers; from then on nothing may grow with the number of processes.
    let (first, last) = (memory[memory.len() / 4], memory[memory.len() - 1]);
    assert!(last < first + 8 * 1024 * 1024, "{first} to {last} bytes");
    println!(
        "{} processes, {opened} sensitive opens, memory {first} to {last}",
        class("fork", &counters).seen
    );
    println!("{counters:?} {:?}", watch.pipeline().counters());
}

#[test]
fn a_fork_bomb_hides_nothing_of_another_process() {
    let _turn = turn();
    let mut probe = load(&[]);
    let witness = Witness::start();
    let mut kept = polled(
        &mut probe,
        || {
            for _ in 0..scaled(1, 8) {
                // 256 processes at a time, all doing what is told urgently, as often as they can.
                let bomb = "i=0; while [ $i -lt 256 ]; do (while :; do : < /etc/shadow; done) & i=$((i+1)); done; sleep 1; kill $(jobs -p)";
                Command::new("/bin/bash").arg("-c").arg(bomb).status().expect("it runs");
            }
        },
        is_of_witness,
    );
    let opened = all_told(&mut probe, witness, &mut kept);
    let counters = probe.counters().expect("read");
    assert!(counters.class(agent_ebpf::records::Class::Open).throttled > 0, "{counters:?}");
    adds_up(&mut probe);
    println!("{opened} opens of the other process, all told; {counters:?}");
}

#[test]
fn ten_thousand_threads_are_one_process() {
    let _turn = turn();
    let mut probe = load(&[]);
    probe.drain().expect("drained");
    let threads = scaled(1000, 10_000);
    let calls = AtomicU32::new(0);
    thread::scope(|scope| {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..threads {
            let (stop, calls) = (Arc::clone(&stop), &calls);
            thread::Builder::new()
                .stack_size(32 * 1024)
                .spawn_scoped(scope, move || {
                    for _ in 0..20 {
                        // SAFETY: the call takes nothing and cannot fail.
                        unsafe { libc::getppid() };
                        calls.fetch_add(1, Relaxed);
                    }
                    while !stop.load(Relaxed) {
                        thread::sleep(Duration::from_millis(50));
                    }
                })
                .expect("there is room for a thread");
        }
        stop.store(true, Relaxed);
    });
    let windows = probe.drain().expect("drained");
    let own: Vec<_> = windows.iter().filter(|window| window.tgid == std::process::id()).collect();
    assert_eq!(own.len(), 1, "one process, one window");
    assert_eq!(own[0].calls[110], calls.load(Relaxed), "every call of every thread");
    let counters = probe.counters().expect("read");
    assert_eq!(counters.class(agent_ebpf::records::Class::Syscall).dropped, 0);
    println!("{threads} threads, {} collisions", counters.collisions);
}

#[test]
fn full_speed_on_every_cpu_loses_no_urgent_record() {
    let _turn = turn();
    let mut probe = load(&[]);
    let witness = Witness::start();
    let seconds = u64::from(scaled(3, 60));
    let mut kept = polled(
        &mut probe,
        || {
            let end_ns = boot_ns() + seconds * 1_000_000_000;
            thread::scope(|scope| {
                for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
                    scope.spawn(|| {
                        while boot_ns() < end_ns {
                            for _ in 0..1000 {
                                // SAFETY: the call takes nothing and cannot fail.
                                unsafe { libc::getppid() };
                            }
                            let _ = File::open("/proc/self/nothing");
                        }
                    });
                }
            });
        },
        is_of_witness,
    );
    let opened = all_told(&mut probe, witness, &mut kept);
    adds_up(&mut probe);
    println!("{seconds} s at full speed, {opened} urgent records, all told");
}

#[test]
fn two_thousand_windows_are_drained_at_once() {
    let _turn = turn();
    let mut probe = load_with(|options| options.windows = 4096);
    probe.drain().expect("drained");
    let script = "i=0; while [ $i -lt 2100 ]; do sleep 30 & i=$((i+1)); done; echo ready; read go; kill $(jobs -p); wait";
    let mut child = Command::new("/bin/bash")
        .arg("-c")
        .arg(script)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    let out = child.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("it says when");
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("below a second"))
    };
    let before = cpu();
    let windows = probe.drain().expect("drained");
    let taken = cpu() - before;
    drop(child.stdin.take());
    child.wait().expect("it ends");
    assert!(windows.len() >= 2000, "{}", windows.len());
    assert_eq!(probe.counters().expect("read").class(agent_ebpf::records::Class::Syscall).dropped, 0);
    println!("{} windows drained in {taken:?} of CPU", windows.len());
}
