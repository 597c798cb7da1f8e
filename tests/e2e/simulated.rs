//! What docs/operations.md tells an operator who wants to see an alarm work.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::process::binary;
use tests::wait_for;

use crate::needs_root;

const PYTHON: &str = "/usr/bin/python3";

#[test]
fn a_simulated_attack_by_a_learned_tool_is_an_alert_about_its_process() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start(&dir.path().join("fleet"), 40).unwrap();
    let python = std::fs::canonicalize(PYTHON).unwrap();
    let mut agent = Agent::enroll(&dir.path().join("agent"), &python, &fleet, "drill").unwrap();
    agent.run().unwrap();
    let learned = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // What the tool does here every day: it starts, computes and ends.
            while !learned.load(Ordering::SeqCst) {
                let words = ["-c", "import hashlib,socket,time; time.sleep(0.6)"];
                Command::new(PYTHON).args(words).status().unwrap();
            }
        });
        let result = wait_for("learning the tool's baseline", Duration::from_secs(150), || {
            agent.check()?;
            let Ok(status) = agent.status() else { return Ok(None) };
            let programs = status["heartbeat"]["programs"].as_array().cloned().unwrap_or_default();
            Ok(programs.iter().any(|program| program["generation"].as_u64() > Some(0)).then_some(()))
        });
        learned.store(true, Ordering::SeqCst);
        result.unwrap();
    });
    let mut simulate = Command::new(binary("behaveguard").unwrap());
    simulate.args(["simulate", "cryptomining", "--variant", "python-stratum", "--json"]);
    let output = simulate.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["outcome"], "done", "{report}");
    let alert = wait_for("the alert", Duration::from_secs(20), || {
        agent.check()?;
        Ok(agent.alerts()?.into_iter().find(|alert| alert["pid"] == report["pid"]))
    })
    .unwrap();
    assert!(alert.to_string().contains("127.0.0.1 port 3333"), "{alert}\n{report}");
    agent.stop().unwrap();
    fleet.stop().unwrap();
}
