//! Rollouts in a database of their own.

use super::super::testing::{self, on_both};
use super::*;
use crate::names::GroupId;
use crate::store::{NewBaseline, Removed, Scope, newest_offers, put_baseline, put_report, remove_baseline};

fn program() -> ProgramId {
    ProgramId { unit: "pump.service".into(), exe: "/usr/bin/pump".into(), script: None }
}

fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).unwrap()
}

/// A database with these devices and their groups, each of which runs the program.
fn fleet(c: Connection, devices: &[(&str, &str)]) -> Connection {
    devices.iter().for_each(|(name, group)| join(&c, name, group));
    c
}

fn join(c: &Connection, name: &str, group: &str) {
    let insert =
        "INSERT INTO devices(id, certificate, enrolled_ms, grp, heartbeat_ms) VALUES (?, ?, 1, ?, 1000)";
    c.execute(insert, params![name, [0u8], group]).unwrap();
    let body = postcard::to_stdvec(&program()).unwrap();
    let insert = "INSERT INTO programs(device, key, program, total) VALUES (?, ?, ?, 9)";
    c.execute(insert, params![name, program().key(), body]).unwrap();
}

fn make(c: &Connection, generation: u64) -> u64 {
    let scope = Scope::Group(GroupId::parse("plant").unwrap());
    let bytes = vec![generation as u8; 10];
    let (by, program) = ("anna".to_owned(), program());
    let new = NewBaseline { scope, program, generation, by, windows: 40, devices: 3, bytes };
    put_baseline(c, &new, 5).unwrap().unwrap()
}

fn begin(c: &Connection, baseline: u64) -> RolloutRow {
    let plan = Plan { canary_percent: 34, ..Plan::default() };
    let id = begin_rollout(c, baseline, &plan, "anna", 10).unwrap().unwrap();
    rollout(c, id).unwrap().unwrap()
}

fn report(c: &Connection, name: &str, generation: u64, refused: Option<&str>) {
    let report = BundleReport { program: program(), generation, refused: refused.map(str::to_owned) };
    put_report(c, &device(name), &report, 20).unwrap();
}

fn offered(c: &Connection, name: &str) -> Vec<u64> {
    newest_offers(c, &device(name)).unwrap().iter().map(|offer| offer.generation).collect()
}

fn alarm(c: &Connection, name: &str, generation: u64, suppressed_before: u32) {
    let alert = Alert { program: program(), generation, suppressed_before, ..testing::alert("pump") };
    let insert = "INSERT INTO alerts(device, epoch, seq, received_ms, body, program_key)
                  VALUES (?1, 1, (SELECT count(*) FROM alerts), 7, ?2, ?3)";
    c.execute(insert, params![name, postcard::to_stdvec(&alert).unwrap(), program().key()]).unwrap();
}

const ALL: [(&str, &str); 4] = [("a", "plant"), ("b", "plant"), ("c", "plant"), ("d", "office")];

#[test]
fn only_the_first_devices_of_the_scope_are_offered_it_and_their_facts_are_counted() {
    on_both(|empty| {
        let c = fleet(empty(), &ALL);
        let row = begin(&c, make(&c, 1));
        let canaries: Vec<_> =
            rollout_devices(&c, row.id, 10).unwrap().into_iter().map(|one| one.device).collect();
        assert_eq!(canaries.len(), 2, "34 % of three");
        let of_all: Vec<_> = ALL.iter().filter(|(name, _)| !offered(&c, name).is_empty()).collect();
        assert_eq!(of_all.len(), 2);
        let other = ["a", "b", "c"].into_iter().find(|name| !canaries.iter().any(|one| one == name)).unwrap();
        report(&c, &canaries[0], 1, None);
        report(&c, &canaries[1], 1, Some("too old"));
        alarm(&c, &canaries[0], 1, 4);
        alarm(&c, &canaries[0], 0, 0);
        alarm(&c, other, 0, 0);
        alarm(&c, "d", 0, 0);
        let facts = rollout_facts(&c, &row, 500).unwrap();
        assert_eq!((facts.offered, facts.active, facts.refused, facts.unwell), (2, 1, 1, 0));
        assert_eq!((facts.alerts, facts.others, facts.refusal.as_deref()), (5, 1, Some("too old")));
        assert_eq!(facts.others_alerts, 2, "everywhere else");
        assert_eq!(rollout_facts(&c, &row, 2000).unwrap().unwell, 1, "silent since");
    });
}

#[test]
fn after_its_end_a_device_that_comes_gets_it_unless_it_is_pinned_or_of_another_group() {
    on_both(|empty| {
        let c = fleet(empty(), &ALL);
        let row = begin(&c, make(&c, 1));
        assert!(set_pinned(&c, &device("b"), &program().key(), true).unwrap());
        let everyone = put_stage(&c, &row, Stage::Everyone, "well", 30).unwrap().unwrap();
        assert!(!everyone.contains(&"b".to_owned()) && !everyone.contains(&"d".to_owned()), "{everyone:?}");
        let row = rollout(&c, row.id).unwrap().unwrap();
        put_stage(&c, &row, Stage::Done, "well", 40).unwrap();
        join(&c, "e", "plant");
        for (name, expected) in [("a", &[1][..]), ("b", &[]), ("c", &[1]), ("d", &[]), ("e", &[1])] {
            assert_eq!(offered(&c, name), expected, "{name}");
        }
        assert!(set_pinned(&c, &device("b"), &program().key(), false).unwrap());
        assert_eq!(offered(&c, "b"), [1]);
        // The newer one wins, and the same is not begun twice.
        let newer = begin(&c, make(&c, 2));
        let again = begin_rollout(&c, newer.baseline, &Plan::default(), "anna", 10).unwrap();
        assert_eq!(again, Err(NotBegun::Before(newer.id)));
        let third = begin_rollout(&c, make(&c, 3), &Plan::default(), "anna", 10).unwrap();
        assert_eq!(third, Err(NotBegun::UnderWay(newer.id)));
        let first = &rollout_devices(&c, newer.id, 1).unwrap()[0].device;
        assert_eq!(offered(&c, first), [2]);
    });
}

#[test]
fn what_was_rolled_back_is_asked_back_until_the_device_has_answered_and_never_offered_again() {
    on_both(|empty| {
        let c = fleet(empty(), &ALL);
        let row = begin(&c, make(&c, 7));
        let devices = rollout_devices(&c, row.id, 10).unwrap();
        let name = devices[0].device.clone();
        report(&c, &name, 7, None);
        let told = put_stage(&c, &row, Stage::RolledBack, "alarms", 50).unwrap().unwrap();
        assert_eq!(told.len(), 2, "also the one that may be fetching it");
        assert_eq!(take_backs(&c, &device(&name)).unwrap(), [(program(), 7)]);
        assert!(offered(&c, &name).is_empty());
        report(&c, &name, 7, Some("the fleet took it back"));
        assert!(take_backs(&c, &device(&name)).unwrap().is_empty());
        // What was decided before, by who did not know of it, changes nothing any more.
        assert_eq!(put_stage(&c, &row, Stage::Everyone, "well", 60).unwrap(), None);
        assert_eq!(rollout(&c, row.id).unwrap().unwrap().stage, Stage::RolledBack);
        assert!(rollouts_under_way(&c).unwrap().is_empty());
        assert_eq!(remove_baseline(&c, row.baseline).unwrap(), Removed::Done);
        assert!(rollouts(&c, None, 10).unwrap().is_empty());
    });
}

#[test]
fn a_rollout_that_waits_for_a_person_offers_nothing_new_and_its_time_begins_anew() {
    on_both(|empty| {
        let c = fleet(empty(), &ALL);
        let row = begin(&c, make(&c, 1));
        let name = rollout_devices(&c, row.id, 1).unwrap()[0].device.clone();
        assert!(pause_rollout(&c, row.id, true, 60).unwrap());
        assert!(!pause_rollout(&c, row.id, true, 60).unwrap(), "it was");
        assert!(rollouts_under_way(&c).unwrap().is_empty());
        assert!(offered(&c, &name).is_empty());
        assert!(pause_rollout(&c, row.id, false, 70).unwrap());
        assert_eq!(rollouts_under_way(&c).unwrap()[0].stage_ms, 70);
        assert_eq!(offered(&c, &name), [1]);
    });
}

#[test]
fn the_next_generation_is_above_all_that_any_device_had() {
    on_both(|empty| {
        let c = fleet(empty(), &ALL);
        let next = || crate::store::baselines::next_generation(&c, &program().key()).unwrap();
        assert_eq!(next(), 1);
        report(&c, "d", 4, None);
        assert_eq!(next(), 5);
        make(&c, 9);
        assert_eq!(next(), 10);
    });
}
