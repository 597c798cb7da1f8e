//! What a program was started with stays on the device.

use super::*;

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
        told.extend(bench.event(child, EventKind::Exec { path, arguments, fileless: child == 203 }));
    }
    told.extend(bench.close(&[GATEWAY, 201, 202, 203]));
    let told = alerts(told);
    assert!(!told.is_empty(), "a shell, a tool and a program without a file");
    assert!(!format!("{told:?}").contains(SECRET), "{told:?}");
}
