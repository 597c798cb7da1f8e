//! Places of windows that the kernel's own maps do not take back.

use std::process::{Command, Stdio};

use agent_ebpf::records::{WindowKey, names};
use aya::maps::{HashMap, Map, MapData, Stack, loaded_maps};
use models::event::EventKind;

use crate::{events, load_only, turn};

type Places = HashMap<MapData, [u32; 2], u32>;

/// The map of this name that was loaded last.
fn map(name: &str) -> MapData {
    let ids = loaded_maps().flatten().filter(|map| map.name_as_str() == Some(name)).map(|map| map.id());
    MapData::from_id(ids.max().expect("it is loaded")).expect("root may open it")
}

fn key(key: WindowKey) -> [u32; 2] {
    [key.tgid, key.epoch]
}

/// Where a process's window is.
fn place_of(places: &Places, tgid: u32) -> Option<u32> {
    places.iter().flatten().find(|([of, epoch], _)| *of == tgid && *epoch > 0).map(|(_, place)| place)
}

/// All that it holds, the last one first.
fn emptied(free: &mut Stack<MapData, u32>) -> Vec<u32> {
    std::iter::from_fn(|| free.pop(0).ok()).collect()
}

#[test]
fn a_place_that_is_not_taken_back_waits_for_the_next_drain_and_its_window_is_told_once() {
    let _turn = turn();
    let mut probe = load_only(&[], &[]);
    let mut free: Stack<_, u32> = Stack::try_from(Map::Stack(map(names::FREE))).expect("a stack of numbers");
    let places: Places = HashMap::try_from(Map::HashMap(map(names::PLACES))).expect("keys and numbers");
    // Another process on the machine may take a place at any time, and then there is room for one.
    for _ in 0..20 {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("it starts");
        let tgid = child.id();
        let place = loop {
            if let Some(place) = place_of(&places, tgid) {
                break place;
            }
        };
        let added = std::iter::repeat_with(|| free.push(place, 0)).take_while(Result::is_ok).count();
        drop(child.stdin.take());
        child.wait().expect("it ends");
        let stranded = places.get(&key(WindowKey::stranded(place)), 0).ok();
        // What was added is not free.
        let all = emptied(&mut free);
        assert!(added > 0 && all.contains(&place), "there was room for the place of the process");
        all.iter().rev().filter(|free| **free != place).for_each(|free_place| {
            free.push(*free_place, 0).expect("there is room");
        });
        let told =
            |event: &&models::event::Event| event.tgid == tgid && matches!(event.kind, EventKind::Flush(_));
        let flushed = events(&mut probe).iter().filter(told).count();
        let drained = probe.drain().expect("drained").iter().filter(|window| window.tgid == tgid).count();
        if stranded.is_none() {
            continue;
        }
        assert_eq!((stranded, flushed, drained), (Some(place), 1, 0));
        assert_eq!(places.get(&key(WindowKey::stranded(place)), 0).ok(), None);
        let all = emptied(&mut free);
        assert_eq!(all.iter().filter(|free| **free == place).count(), 1, "it is free again, once");
        assert_eq!(probe.counters().expect("read").places_lost, 0);
        return;
    }
    panic!("there always was room");
}
