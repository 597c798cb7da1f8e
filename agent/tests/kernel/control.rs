//! What the agent changes in the kernel while it runs: evidence that is left out, and control groups that send nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;

use agent::probe::Probe;
use agent_ebpf::records::Class;
use models::event::EventKind;

use crate::cgroups::Hierarchy;
use crate::{events, load_only, load_with, turn};

/// Which of two opens by this process were told.
fn told(probe: &mut Probe) -> (bool, bool) {
    File::open("/etc/shadow").expect("root may");
    File::open("/etc/hostname").expect("it exists");
    let own = std::process::id();
    let events: Vec<_> = events(probe).into_iter().filter(|event| event.tgid == own).collect();
    let told = |name: &str| {
        events.iter().any(|event| matches!(&event.kind, EventKind::Open { path, .. } if path == name))
    };
    (told("/etc/shadow"), told("/etc/hostname"))
}

/// Whether both are told. An ordinary open has no place of its own: where others open much, it may find the ring full, and the
/// more so the more its process opened in a window.
fn both_told(probe: &mut Probe) -> bool {
    (0..200).any(|_| {
        probe.drain().expect("counts are taken");
        told(probe) == (true, true)
    })
}

#[test]
fn ordinary_opens_are_left_out_and_counted_while_sensitive_ones_are_told() {
    let _turn = turn();
    let mut probe = load_only(&["file"], &[]);
    assert!(both_told(&mut probe));
    let throttled = |probe: &Probe| probe.counters().expect("readable").class(Class::Open).throttled;
    let before = throttled(&probe);
    probe.shed_opens(true).expect("the map can be written");
    assert_eq!(told(&mut probe), (true, false));
    assert!(throttled(&probe) > before);
    probe.shed_opens(false).expect("the map can be written");
    assert!(both_told(&mut probe));
}

/// That packets are denied is shown end to end, where a network namespace has an interface to send through.
#[test]
fn egress_can_be_denied_on_this_kernel() {
    let _turn = turn();
    let hierarchy = Hierarchy::mounted();
    let mut probe = load_with(|options| options.deny_egress = true);
    let group = fs::metadata(&hierarchy.root).expect("it is there").ino();
    let prepared = probe.denies_egress().map(|prepared| prepared.map_err(str::to_owned));
    for denied in [BTreeSet::from([group + 1_000_000]), BTreeSet::new()] {
        probe.deny_egress(&denied).expect("the map can be written");
    }
    drop(probe);
    assert_eq!(prepared, Some(Ok(())));
}
