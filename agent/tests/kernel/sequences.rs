//! The kernel's table of call sequences against its twin in user space.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::thread;

use agent::probe::Probe;
use agent_ebpf::gram::kind_bit;
use agent_ebpf::records::USUAL;
use models::event::SyscallWindow;
use models::sequence::{EMPTY, GramTable, ORDER, roll, symbols};
use models::syscalls::slot;

use crate::{flushed, in_child, load, load_with, turn};

const ROUNDS: u32 = 200;

/// Calls in a fixed order, on a thread of its own; `odd` breaks it once.
fn work(odd: bool) {
    thread::spawn(move || {
        for round in 0..ROUNDS {
            // SAFETY: the calls take integers and cannot fail.
            unsafe {
                libc::getppid();
                libc::getuid();
                libc::getppid();
                libc::getgid();
                if odd && round == ROUNDS / 2 {
                    libc::getpgid(0);
                }
            }
        }
    })
    .join()
    .expect("it ends");
}

/// This process's part of a drain.
fn own(probe: &mut Probe) -> SyscallWindow {
    let mut sum = SyscallWindow::empty(std::process::id(), 0);
    let windows = probe.drain().expect("drained");
    windows.iter().filter(|window| window.tgid == std::process::id()).for_each(|window| sum.merge(window));
    sum
}

fn learned(probe: &mut Probe) -> BTreeMap<u64, u32> {
    probe.follow(std::process::id(), None, true).expect("there is room");
    own(probe);
    work(false);
    own(probe).learned.into_iter().collect()
}

#[test]
fn every_call_of_a_learning_process_is_counted_in_one_gram() {
    let _turn = turn();
    for off in [&[][..], &["syscall:tp_btf/sys_enter"]] {
        let mut probe = load(off);
        probe.follow(std::process::id(), None, true).expect("there is room");
        own(&mut probe);
        work(false);
        let window = own(&mut probe);
        let counted: u64 = window.learned.iter().map(|(_, count)| u64::from(*count)).sum();
        assert!(
            counted == window.total() && counted > u64::from(ROUNDS),
            "{off:?}: {counted} of {}",
            window.total()
        );
        let slots = ["getgid", "getppid", "getuid", "getppid", "getgid", "getppid"]
            .map(|name| slot(name).expect("a slot"));
        let gram = slots.iter().fold(EMPTY, |gram, slot| roll(gram, *slot));
        let found = window.learned.iter().find(|(known, _)| *known == gram);
        assert_eq!(
            found.map(|(_, count)| *count),
            Some(ROUNDS - 2),
            "{off:?}: the first two rounds are not six calls long"
        );
    }
}

#[test]
fn the_kernel_and_user_space_find_the_same_sums() {
    let _turn = turn();
    let mut probe = load(&[]);
    let table = GramTable::of_counts(&learned(&mut probe));
    let id = probe.load_table(table.entries()).expect("there is room");
    probe.follow(std::process::id(), Some(id), true).expect("there is room");
    own(&mut probe);
    work(true);
    let window = own(&mut probe);
    let grams = window.grams.clone().expect("it was looked up");
    assert_eq!(grams.table, id.0);
    assert_eq!(grams.sums, table.sums_of(&window.learned));
    // Of two kinds of one bit the second is not counted.
    let bits: BTreeSet<usize> = window.learned.iter().map(|(gram, _)| kind_bit(*gram)).collect();
    assert!(
        grams.kinds.calls == bits.len() as u64 && bits.len() * 10 > window.learned.len() * 8,
        "{grams:?}"
    );
    if bits.len() == window.learned.len() {
        assert_eq!(grams.kinds, table.kinds_of(&window.learned));
    }
    assert!(grams.sums.misses >= ORDER as u64, "the odd call is in six grams: {grams:?}");
    let odd = slot("getpgid").expect("a slot");
    let strange = window.learned.iter().filter(|(gram, _)| symbols(*gram).contains(&odd));
    assert_eq!(strange.map(|(_, count)| count).sum::<u32>(), ORDER as u32);
    assert!(grams.strange.iter().all(|gram| window.learned.iter().any(|(known, _)| known == gram)));
}

#[test]
fn a_table_stays_with_its_program() {
    let _turn = turn();
    let mut probe = load(&[]);
    let table = GramTable::of_counts(&learned(&mut probe));
    let id = probe.load_table(table.entries()).expect("there is room");
    probe.follow(std::process::id(), Some(id), false).expect("there is room");
    let child = in_child(|| {
        // SAFETY: the call takes nothing and cannot fail.
        unsafe { libc::getppid() };
    });
    let other = Command::new("/bin/true").stdout(Stdio::null()).spawn().map(|mut child| {
        child.wait().expect("it ends");
        child.id()
    });
    let other = other.expect("it starts");
    let flushed = flushed(&mut probe);
    let of = |tgid: u32| flushed.iter().find(|window| window.tgid == tgid).expect("it was flushed");
    let child = of(child);
    assert_eq!(child.grams.as_ref().map(|grams| grams.table), Some(id.0), "a child runs the same program");
    assert_eq!(of(other).grams, None, "a program that was started is another one");
    probe.unfollow(std::process::id()).expect("removed");
    own(&mut probe);
    work(false);
    // What was looked up before is not forgotten; nothing more is.
    assert!(own(&mut probe).grams.is_none_or(|grams| grams.sums.calls < u64::from(ROUNDS)));
}

#[test]
fn what_a_child_did_before_it_started_a_program_is_learned_of_its_parent_and_not_of_that_program() {
    let _turn = turn();
    let mut probe = load(&[]);
    probe.follow(std::process::id(), None, true).expect("there is room");
    own(&mut probe);
    // SAFETY: the calls take integers and constants.
    let child = in_child(|| unsafe {
        for _ in 0..ROUNDS {
            libc::getppid();
        }
        libc::execl(c"/bin/true".as_ptr(), c"true".as_ptr(), std::ptr::null::<libc::c_char>());
    });
    // It comes when it leaves, and with the drain when the ring is full.
    let windows = [flushed(&mut probe), probe.drain().expect("drained")].concat();
    let of = |tgid: u32| {
        let mut sum = SyscallWindow::empty(tgid, 0);
        windows.iter().filter(|window| window.tgid == tgid).for_each(|window| sum.merge(window));
        sum
    };
    assert!(
        of(child).total() > u64::from(ROUNDS) && of(child).learned.is_empty(),
        "nobody learns that program"
    );
    let gram = [slot("getppid").expect("a slot"); ORDER].into_iter().fold(EMPTY, roll);
    let learned: BTreeMap<u64, u32> = of(std::process::id()).learned.into_iter().collect();
    assert_eq!(learned.get(&gram), Some(&(ROUNDS + 1 - ORDER as u32)));
}

/// Its first thread's calls are counted in their grams alone from the first one on, where its window has room for these.
#[test]
fn every_call_of_a_child_that_is_learned_is_counted_in_one_gram() {
    let _turn = turn();
    let mut probe = load(&[]);
    probe.follow(std::process::id(), None, true).expect("there is room");
    own(&mut probe);
    // In more orders than a window keeps.
    // SAFETY: the calls take nothing and cannot fail.
    let child = in_child(|| unsafe {
        for round in 0..ROUNDS {
            for bit in 0..6 {
                if round >> bit & 1 == 0 {
                    libc::getppid()
                } else {
                    libc::getuid().cast_signed()
                };
            }
        }
    });
    let windows = [flushed(&mut probe), probe.drain().expect("drained")].concat();
    // What the window had no room for is counted under its parent's number, which it was given.
    let ours = |window: &&SyscallWindow| [child, std::process::id()].contains(&window.tgid);
    let total: u64 = windows.iter().filter(ours).map(SyscallWindow::total).sum();
    let learned: Vec<_> = windows.iter().filter(ours).flat_map(|window| window.learned.clone()).collect();
    let counted: u64 = learned.iter().map(|(_, count)| u64::from(*count)).sum();
    let kinds: BTreeSet<u64> = learned.iter().map(|(gram, _)| *gram).collect();
    assert!(kinds.len() > 64, "{}", kinds.len());
    assert!(counted == total && total > u64::from(6 * ROUNDS), "{counted} of {total}");
}

#[test]
fn to_stop_following_whom_nobody_follows_is_no_error() {
    let _turn = turn();
    let mut probe = load(&[]);
    let pid = std::process::id();
    probe.follow(pid, None, false).expect("nothing is asked for, and nothing was there");
    probe.follow(pid, None, true).expect("there is room");
    probe.unfollow(pid).expect("removed");
    probe.unfollow(pid).expect("gone already, as after a process that left");
}

#[test]
fn full_maps_refuse_and_count() {
    let _turn = turn();
    let mut probe = load_with(|options| (options.grams, options.learned) = (8, 8));
    let kept = learned(&mut probe);
    // What the window keeps itself, and eight at a time: a drain makes room while the epoch goes on.
    assert!(kept.len() <= USUAL + 16, "{}", kept.len());
    assert!(probe.counters().expect("read").grams_refused > 0);
    let entries: Vec<(u64, u8)> = (0..9).map(|gram| (gram, 1)).collect();
    let refused = probe.load_table(&entries).expect_err("nine do not fit into eight");
    assert!(refused.to_string().contains("grams_max"), "{refused}");
    let first = probe.load_table(&entries[..8]).expect("eight fit");
    probe.unload_table(first);
    probe.load_table(&entries[..8]).expect("nothing of a removed table stays");
}
