//! The host's side of a package that is tried in a virtual machine: a fleet server that the machine reaches as 10.0.2.2, and
//! somebody who waits for its alert. Started by `cargo xtask dist --check`, in a network namespace that has this address.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tests::fleet::Fleet;
use tests::{Failed, wait_for};

const DEVICE: &str = "vm-arm64";
/// Enough for the models.
const LEARN_WINDOWS: u32 = 60;
/// The machine is emulated.
const WITHIN: Duration = Duration::from_secs(420);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm-fleet: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failed> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from).ok_or_else(|| Failed("name a folder".into()))?;
    let config = "public_host = \"10.0.2.2\"\n";
    let mut fleet = Fleet::start_on(&dir.join("fleet"), LEARN_WINDOWS, config, "0.0.0.0")?;
    let token = fleet.enrolment_token(DEVICE)?;
    let failed = |error| Failed::new("writing the enrolment token", error);
    std::fs::write(dir.join("token.new"), token).map_err(failed)?;
    std::fs::rename(dir.join("token.new"), dir.join("token")).map_err(failed)?;
    let attack = |alert: &Value| alert["techniques"].to_string().contains("T1003.008");
    let alert = wait_for("an alert of the machine", WITHIN, || {
        Ok(fleet.alerts(DEVICE).unwrap_or_default().into_iter().find(attack))
    })?;
    let (severity, summary) = (alert["severity"].as_str(), alert["summary"].as_str());
    let device = fleet.get("devices")?["devices"][0].clone();
    let beat = &device["heartbeat"];
    println!(
        "the fleet server has it: {} from {}, Linux {} on {}: {}",
        severity.unwrap_or_default(),
        device["id"],
        beat["kernel"],
        beat["arch"],
        summary.unwrap_or_default()
    );
    if beat["arch"] != "aarch64" {
        return Err(Failed(format!("it is from another processor: {beat}")));
    }
    // Its last word, behind everything else that it had to say.
    wait_for("the end of the agent", WITHIN, || {
        let events = fleet.events(DEVICE).unwrap_or_default();
        Ok(events.iter().any(|event| event["kind"] == "stopped").then_some(()))
    })?;
    fleet.stop()
}
