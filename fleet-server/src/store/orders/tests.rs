//! Orders in a database of their own.

use super::super::testing::on_both;
use super::*;
use crate::store::set_group;

fn program() -> ProgramId {
    ProgramId { unit: "pump.service".into(), exe: "/usr/bin/pump".into(), script: None }
}

fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).unwrap()
}

fn group(name: &str) -> GroupId {
    GroupId::parse(name).unwrap()
}

fn join(c: &Connection, name: &str, group: &str) {
    let insert = "INSERT INTO devices(id, certificate, enrolled_ms, grp) VALUES (?, ?, 1, ?)";
    c.execute(insert, params![name, [0u8], group]).unwrap();
}

fn answer(c: &Connection, name: &str, id: u64, done: bool) -> bool {
    let answer = Answer { id, unix_ms: 1, done, text: format!("answer to {id}") };
    put_answer(c, &device(name), &answer, 50).unwrap()
}

fn waiting(c: &Connection, name: &str, now_ms: u64) -> Vec<u64> {
    orders_waiting(c, &device(name), now_ms).unwrap().iter().map(|order| order.id).collect()
}

/// The version that a device is asked to use.
fn wanted(c: &Connection, name: &str) -> Option<(u64, String)> {
    let mut orders = orders_waiting(c, &device(name), 0).unwrap().into_iter();
    orders.find_map(|order| match order.errand {
        Errand::Configure { version, text } => Some((version, text)),
        _ => None,
    })
}

#[test]
fn an_order_waits_until_it_is_answered_or_its_time_is_over_and_the_first_answer_counts() {
    on_both(|empty| {
        let c = empty();
        let put = |expires_ms| {
            put_order(&c, &device("a"), &Errand::Doctor, "anna", 10, Some(expires_ms)).unwrap().unwrap()
        };
        let (first, second) = (put(100), put(200));
        assert!(second > first);
        assert_eq!(waiting(&c, "a", 20), [first, second]);
        assert_eq!(waiting(&c, "a", 100), [second]);
        assert_eq!(waiting(&c, "b", 20), [0; 0]);
        assert!(!answer(&c, "b", second, true), "it is not for this device");
        assert!(answer(&c, "a", second, false));
        assert!(!answer(&c, "a", second, true), "it was answered before");
        // An answer that was under way when the time ended is still told.
        assert!(answer(&c, "a", first, true));
        assert_eq!(waiting(&c, "a", 20), [0; 0]);
        let rows = orders(&c, &device("a"), None, 10).unwrap();
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.id, row.by.as_str(), row.answer.as_ref().map(|answer| answer.done)))
            .collect();
        assert_eq!(told, [(second, "anna", Some(false)), (first, "anna", Some(true))]);
        assert_eq!(orders(&c, &device("a"), Some(second), 10).unwrap(), rows[1..]);
    });
}

#[test]
fn too_many_orders_are_refused_and_one_that_waits_can_be_taken_back() {
    on_both(|empty| {
        let c = empty();
        let put = |now_ms| put_order(&c, &device("a"), &Errand::Doctor, "anna", now_ms, Some(100)).unwrap();
        let ids: Vec<u64> = (0..ORDERS_MAX).map(|_| put(10).unwrap()).collect();
        assert_eq!(put(10), None);
        assert!(cancel_order(&c, &device("a"), ids[0]).unwrap());
        assert!(!cancel_order(&c, &device("a"), ids[0]).unwrap());
        assert!(!cancel_order(&c, &device("b"), ids[1]).unwrap());
        assert!(put(10).is_some());
        assert!(put(100).is_some(), "those before are over");
        // As the server does: not each on the disk by itself.
        c.begin().unwrap();
        for _ in 0..3 * KEPT_MAX {
            let id = put(200).unwrap_or_else(|| panic!("nothing waits"));
            answer(&c, "a", id, true);
        }
        let kept = orders(&c, &device("a"), None, 1000).unwrap().len() as i64;
        assert!((KEPT_MAX..=KEPT_MAX + 1).contains(&kept), "{kept}");
    });
}

#[test]
fn a_group_s_configuration_is_asked_of_its_devices_and_of_those_that_come_into_it() {
    on_both(|empty| {
        let c = empty();
        for (name, of) in [("a", "plant"), ("b", "plant"), ("c", "office")] {
            join(&c, name, of);
        }
        let first = put_configuration(&c, &group("plant"), "window = \"9s\"", "anna", 10).unwrap();
        let second = put_configuration(&c, &group("plant"), "window = \"8s\"", "anna", 20).unwrap();
        assert!(second > first);
        for name in ["a", "b"] {
            assert_eq!(waiting(&c, name, 30).len(), 1, "the newest takes the older one's place");
            assert_eq!(wanted(&c, name), Some((second, "window = \"8s\"".into())));
            let id = waiting(&c, name, 30)[0];
            assert!(!cancel_order(&c, &device(name), id).unwrap(), "a configuration is not taken back");
            answer(&c, name, id, name == "a");
        }
        assert_eq!(wanted(&c, "c"), None);
        let of = |name: &str| spread(&c, &group(name), second).unwrap();
        assert_eq!(of("plant"), Spread { devices: 2, applied: 1, refused: 1 });
        assert_eq!(of("office"), Spread { devices: 1, applied: 0, refused: 0 });
        let versions = configurations(&c, &group("plant"), None, 10).unwrap();
        assert_eq!(versions.iter().map(|row| row.version).collect::<Vec<_>>(), [second, first]);

        // Whoever comes is asked, whoever leaves for a group without one is asked to forget it.
        assert!(set_group(&c, &device("c"), &group("plant"), 40).unwrap());
        assert_eq!(wanted(&c, "c").unwrap().0, second);
        assert!(set_group(&c, &device("a"), &group("office"), 40).unwrap());
        assert_eq!(wanted(&c, "a"), Some((0, String::new())));
        assert!(set_group(&c, &device("a"), &group("plant"), 50).unwrap());
        assert_eq!(wanted(&c, "a").unwrap().0, second);
        assert_eq!(waiting(&c, "a", 60).len(), 1);
        // Within its group nothing is asked twice, unless it was enrolled anew.
        let id = waiting(&c, "a", 60)[0];
        answer(&c, "a", id, true);
        assert!(set_group(&c, &device("a"), &group("plant"), 60).unwrap());
        assert_eq!(wanted(&c, "a"), None);
        configure(&c, &device("a"), &group("plant"), true, 70).unwrap();
        assert_eq!(wanted(&c, "a").unwrap().0, second);
        join(&c, "d", "office");
        configure(&c, &device("d"), &group("office"), true, 70).unwrap();
        assert_eq!(wanted(&c, "d"), None, "there is nothing to say");
    });
}

#[test]
fn versions_of_a_group_are_bounded_and_its_own() {
    on_both(|empty| {
        let c = empty();
        put_configuration(&c, &group("office"), "", "anna", 10).unwrap();
        for _ in 0..VERSIONS_MAX + 5 {
            put_configuration(&c, &group("plant"), "", "anna", 10).unwrap();
        }
        let kept = |name: &str| configurations(&c, &group(name), None, 1000).unwrap().len() as i64;
        assert_eq!((kept("plant"), kept("office")), (VERSIONS_MAX, 1));
    });
}

#[test]
fn what_a_device_learned_is_forgotten_when_it_says_that_it_learns_anew_and_not_before() {
    on_both(|empty| {
        let c = empty();
        join(&c, "a", "plant");
        let (key, body) = (program().key(), postcard::to_stdvec(&program()).unwrap());
        let insert =
            "INSERT INTO programs(device, key, program, total, generation, trained_s, reported_generation)
                      VALUES ('a', ?, ?, 40, 3, 7, 3)";
        c.execute(insert, params![key, body]).unwrap();
        c.execute("INSERT INTO windows(device, key, body) VALUES ('a', ?, ?)", params![key, [1u8]]).unwrap();
        let row = |table: &str| -> i64 {
            c.query_row(&format!("SELECT count(*) FROM {table}"), params![], |row| row.get(0)).unwrap()
        };
        let put = |key: &str| put_relearn(&c, &device("a"), key, "anna", 10, 100).unwrap();
        assert_eq!(put("other"), Err(NotRelearned::Unknown));
        let id = put(&key).unwrap().unwrap();
        assert_eq!(row("windows"), 1);
        assert!(answer(&c, "a", id, false));
        assert_eq!(row("windows"), 1, "it would not");
        let id = put(&key).unwrap().unwrap();
        assert!(answer(&c, "a", id, true));
        assert_eq!((row("windows"), row("bundles")), (0, 0));
        let left: (i64, i64, i64) = c
            .query_row("SELECT total, generation, reported_generation FROM programs", params![], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .unwrap();
        assert_eq!(left, (0, 0, 0));
        let next = crate::store::windows_of(&c, &device("a"), &key).unwrap().unwrap().generation + 1;
        assert_eq!(next, 4, "generations go on");
    });
}
