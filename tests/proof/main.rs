//! What is tried at random: ten thousand days on a clock that is made up, and bytes that nobody would send.

use std::process::Command;

use serde_json::Value;
use tests::process::binary;

/// What every run does, however slow the machine is; `cargo xtask fuzz` does far more.
const EXECUTIONS_MIN: u64 = 50;

/// Runs an example; what it said, and its last line.
fn run(name: &str, arguments: &[&str]) -> (bool, String, Value) {
    let program = binary(&format!("examples/{name}")).unwrap();
    let output = Command::new(program).args(arguments).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = serde_json::from_str(told.lines().last().unwrap_or_default()).unwrap_or_default();
    (output.status.success(), told, last)
}

#[test]
fn in_ten_thousand_simulated_days_nothing_is_lost_twice_or_without_bound() {
    let (is_good, told, last) = run("sim", &["--seeds", "255"]);
    assert!(is_good && last["violations"] == 0, "{told}");
    assert!(last["device_days"].as_u64() >= Some(10_000), "{told}");
    // It met what it is there for.
    for met in [
        "agent_crashes",
        "server_crashes",
        "partitions",
        "duplicates_sent",
        "dropped_and_counted",
        "lost_with_a_crash",
    ] {
        assert!(last[met].as_u64() > Some(0), "no {met}: {told}");
    }
}

#[test]
fn a_simulated_world_is_the_same_whenever_its_seed_is() {
    let of = |seed| run("sim", &["--from", seed, "--seeds", "2"]).2;
    assert_eq!(of("7"), of("7"));
    assert_ne!(of("7"), of("9"));
}

#[test]
fn readers_of_outside_bytes_end_well_whatever_they_are_given() {
    let (is_good, told, last) = run("fuzz", &["--time", "1s"]);
    assert!(is_good, "{told}");
    let targets = last.as_object().unwrap();
    assert!(targets.len() >= 13, "{told}");
    for (name, found) in targets {
        assert_eq!((&found["crashes"], &found["slow"]), (&0.into(), &0.into()), "{name}: {told}");
        assert!(found["executions"].as_u64() >= Some(EXECUTIONS_MIN), "{name}: {told}");
    }
}
