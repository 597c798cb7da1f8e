//! What a child does for who made it, and with what it was given.

use super::*;

#[test]
fn a_shell_started_by_a_child_is_the_parents_doing() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.event(GATEWAY, EventKind::Fork { child: 200 });
    bench.pipeline.lookup.0.insert(200, found("/bin/sh"));
    assert_eq!(bench.exec(200, "/bin/sh").len(), 0);
    bench.event(200, EventKind::Exit);
    let found = alerts(bench.close(&[GATEWAY]));
    let [alert] = &found[..] else { panic!("{found:?}") };
    assert_eq!(alert.pid, GATEWAY);
    assert!(alert.summary.contains("shell"), "{}", alert.summary);
    assert_eq!(alert.techniques.first().map(String::as_str), Some("T1059"));
    assert_eq!(bench.pipeline.followed(), 1, "the shell is not watched");
}

#[test]
fn what_a_child_does_before_it_starts_a_program_is_the_parents_doing_too() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.event(GATEWAY, EventKind::Fork { child: 200 });
    let kind = EventKind::Connect { addr: [10, 9, 8, 7].into(), port: 4444 };
    bench.event(200, kind);
    bench.exec(200, "/bin/sh");
    let found = alerts(bench.close(&[GATEWAY]));
    let [alert] = &found[..] else { panic!("{found:?}") };
    assert!(alert.severity >= Severity::High, "a connection and a shell: {alert:?}");
    let names: Vec<&str> = alert.reasons.iter().map(|reason| &*reason.name).collect();
    assert!(names.contains(&"first_port") && names.contains(&"first_shell"), "{names:?}");
    assert!(alert.summary.contains("10.9.8.7 port 4444"), "{}", alert.summary);
}

#[test]
fn a_learned_tool_that_sends_over_a_connection_of_who_started_it_is_told() {
    const TOOL: u32 = 200;
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.pipeline.lookup.0.insert(TOOL, found("/usr/bin/gw"));
    let alerts_after = |bench: &mut Bench, connects: bool| {
        bench.event(GATEWAY, EventKind::Fork { child: TOOL });
        bench.exec(TOOL, "/usr/bin/gw");
        if connects {
            bench.event(TOOL, EventKind::Connect { addr: [10, 9, 8, 7].into(), port: 443 });
        }
        let mut part = SyscallWindow { bytes_sent: 1_500_000, ..SyscallWindow::empty(TOOL, 1) };
        part.calls[0] = 12;
        bench.event(TOOL, EventKind::Flush(Box::new(part)));
        let mut told = bench.event(TOOL, EventKind::Exit);
        told.extend(bench.close(&[]));
        alerts(told)
    };
    let found = alerts_after(&mut bench, false);
    let [alert] = &found[..] else { panic!("{found:?}") };
    assert_eq!((alert.pid, alert.severity, alert.techniques[0].as_str()), (TOOL, Severity::Medium, "T1041"));
    assert!(alert.summary.contains("sent 1500 kB over a connection"), "{}", alert.summary);
    let found = alerts_after(&mut bench, true);
    let relays = |alert: &Alert| alert.reasons.iter().any(|reason| reason.name == "first_bytes_relayed");
    assert!(!found.iter().any(relays), "{found:?}");
}

#[test]
fn a_forked_worker_is_judged_by_its_parents_baseline() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.event(GATEWAY, EventKind::Fork { child: 201 });
    let found = alerts(bench.open(201, "/etc/shadow", true));
    assert_eq!((found.len(), found[0].pid), (1, 201));
}

#[test]
fn a_program_that_left_before_it_was_asked_is_in_the_unit_that_the_kernel_named() {
    let mut bench = Bench::new(|_| {});
    bench.learn();
    bench.event(GATEWAY, EventKind::Fork { child: 200 });
    // Whoever is not known comes from no unit; a child is in its parent's, unless it was moved.
    for (tgid, group, unit) in [
        (200, "", "gw.service"),
        (300, "", "-"),
        (301, "system.slice/gw.service", "gw.service"),
        (200, "system.slice/other.service", "other.service"),
    ] {
        let (path, group) = ("/usr/bin/dd".try_into().unwrap(), group.try_into().unwrap());
        bench.event(tgid, EventKind::Exec { path, arguments: Arguments::new(), fileless: false, group });
        assert_eq!(bench.pipeline.lookup.1.as_ref().map(|told| told.unit.as_str()), Some(unit), "{tgid}");
    }
}
