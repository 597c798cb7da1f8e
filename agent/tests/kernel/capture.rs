//! What was recorded from the running kernel gives the same again.

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
    watch.record(&config, Writer::create(&path, 64 << 20).expect("made")).expect("begun");
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
