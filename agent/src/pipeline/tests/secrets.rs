//! What a program was started with is told without its secrets.

use models::event::{Comm, GroupText};

use super::*;
use crate::redact::redact;

#[test]
fn a_secret_on_a_command_line_is_in_nothing_that_leaves_the_pipeline() {
    const SECRET: &str = "hunter2";
    let mut bench = Bench::new(|_| {});
    bench.learn();
    let mut told = Vec::new();
    for (child, path) in [(201, "/bin/sh"), (202, "/usr/bin/curl"), (203, "/proc/self/fd/3")] {
        told.extend(bench.event(GATEWAY, EventKind::Fork { child }));
        let arguments = Arguments::try_from(format!("x\0--password={SECRET}\0").as_str()).unwrap();
        let path = PathText::try_from(path).unwrap();
        let kind = EventKind::Exec { path, arguments, fileless: child == 203, group: GroupText::new() };
        let mut event = Event { boot_ns: 0, tgid: child, tid: child, uid: 0, comm: Comm::new(), kind };
        redact(&mut event, &Config::default().redact);
        told.extend(bench.event(child, event.kind));
    }
    told.extend(bench.close(&[GATEWAY, 201, 202, 203]));
    let told = alerts(told);
    assert!(!told.is_empty(), "a shell, a tool and a program without a file");
    assert!(told.iter().any(|alert| alert.summary.ends_with("; command line: x --password=***")), "{told:?}");
    assert!(!format!("{told:?}").contains(SECRET), "{told:?}");
}
