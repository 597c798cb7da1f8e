//! What was recorded from the running kernel gives the same again.

use std::io::Write as _;
use std::process::{Command, Stdio};

use agent::capture::Writer;
use agent::config::Config;
use agent::pipeline::Output;
use agent::probe::{Probe, ProbeOptions};
use agent::replay::replay;
use agent::watch::Watch;

use crate::{run, turn};

#[test]
fn a_capture_of_the_running_kernel_is_replayed_to_identical_results() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("capture");
    let config = Config::default();
    let mut watch = Watch::new(&config, Probe::load(&ProbeOptions::new(u32::MAX)).expect("loaded"));
    watch.record(Writer::create(&path, 64 << 20).expect("made")).expect("begun");
    let mut live = Vec::new();
    for _ in 0..3 {
        for _ in 0..10 {
            run("/bin/cat", &["/etc/hostname", "--password=hunter2"]);
        }
        watch.take_events(u64::MAX, &mut live);
        watch.close(&mut live);
    }
    let bytes = watch.stop_recording().expect("it did not end before").expect("written");
    let written = std::fs::read(&path).expect("readable");
    let holds = |text: &[u8]| written.windows(text.len()).any(|bytes| bytes == text);
    assert!(holds(b"--password=***") && !holds(b"hunter2"), "a capture may be given away");
    let mut again = Vec::new();
    let summary = replay(&path, &[], &mut |output| again.push(output)).expect("readable");
    again.retain(|output| matches!(output, Output::Alert(_) | Output::Train(_)));
    assert!(live.len() > 2, "{live:?}");
    assert_eq!(again, live);
    assert_eq!(summary.counters, *watch.pipeline().counters());
    assert!(summary.steps > 60 && !summary.full && summary.missing.is_empty(), "{summary:?}");
    println!("{} steps in {bytes} bytes", summary.steps);
}

#[test]
fn a_capture_that_begins_in_the_middle_knows_who_is_there() {
    let _turn = turn();
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("capture");
    let config = Config::default();
    let mut watch = Watch::new(&config, Probe::load(&ProbeOptions::new(u32::MAX)).expect("loaded"));
    // Replay has no /proc to ask who this is.
    let mut shell =
        Command::new("/bin/sh").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("a shell");
    let mut live = Vec::new();
    for window in 0..4 {
        if window == 1 {
            watch.record_next(Writer::create(&path, 64 << 20).expect("made"));
        }
        for _ in 0..10 {
            let input = shell.stdin.as_mut().expect("piped");
            input.write_all(b"read line < /etc/hostname; : > /dev/null\n").expect("written");
            run("/bin/cat", &["/etc/hostname"]);
        }
        watch.take_events(u64::MAX, &mut live);
        watch.close(&mut live);
        if window == 1 {
            live.clear();
        }
    }
    watch.stop_recording().expect("it did not end before").expect("written");
    shell.kill().expect("killed");
    shell.wait().expect("waited for");
    let mut again = Vec::new();
    let summary = replay(&path, &[], &mut |output| again.push(output)).expect("readable");
    // It may be a link, to busybox for instance.
    let exe = std::fs::canonicalize("/bin/sh").expect("it exists").display().to_string();
    let of_shell = |output: &Output| match output {
        Output::Train(windows) => windows.program.exe == exe && windows.program.script.is_none(),
        _ => false,
    };
    // Others on this machine may do anything, and be let go from a full ring.
    live.retain(of_shell);
    again.retain(of_shell);
    assert!(live.len() >= 2, "{live:?}");
    assert_eq!(again, live);
    assert!(summary.steps > 20 && summary.missing.is_empty(), "{summary:?}");
}
