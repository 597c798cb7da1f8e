//! A device that was copied with its identity: both push each other out, the fleet says so, and nothing of either is lost.

use std::process::Command;
use std::time::Duration;

use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::gateway::Gateway;
use tests::story::counter;
use tests::{Failed, wait_for};

use crate::needs_root;

const DEVICE: &str = "gw-twin";

#[test]
fn two_agents_with_one_identity_are_told_and_nothing_of_either_is_lost() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 1000).unwrap();
    let watch = Gateway::executable(&dir.path().join("gateway"));
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let mut one = Agent::enroll(&first, &watch, &fleet, DEVICE).unwrap();
    let gateway = Gateway::start(&dir.path().join("gateway")).unwrap();
    one.run().unwrap();
    wait_for("the first windows", Duration::from_secs(40), || {
        Ok(fleet.windows_collected().filter(|n| *n >= 3))
    })
    .unwrap();
    one.stop().unwrap();
    let before = fleet.windows_collected().unwrap();
    assert!(Command::new("cp").arg("-a").arg(&first).arg(&second).status().unwrap().success());
    let config = format!("watch = [{watch:?}]\nwindow = \"1s\"\nheartbeat = \"2s\"\nsamples = 100\n");
    let mut two = Agent::alone(&second, &config).unwrap();
    one.run().unwrap();
    two.run().unwrap();
    let twins = wait_for("the event", Duration::from_secs(60), || {
        let events = fleet.events(DEVICE).unwrap_or_default();
        Ok(events.into_iter().find(|event| event["kind"] == "twins"))
    });
    twins.unwrap_or_else(|error: Failed| panic!("{error}\n{}", one.log()));
    std::thread::sleep(Duration::from_secs(5));
    drop(gateway);
    let all = wait_for("delivery of everything", Duration::from_secs(90), || {
        let (Ok(a), Ok(b)) = (one.status(), two.status()) else { return Ok(None) };
        let waits = |status: &serde_json::Value| status["heartbeat"]["outbox_waiting"] != 0;
        let sent = counter(&a, "windows_trained") + counter(&b, "windows_trained");
        let there = fleet.windows_collected().unwrap_or(0);
        Ok((!waits(&a) && !waits(&b) && sent > 0 && there >= before + sent).then_some((there, before + sent)))
    });
    let (there, expected) = all.unwrap_or_else(|error: Failed| {
        let trained = |agent: &Agent| agent.status().map(|status| counter(&status, "windows_trained"));
        panic!(
            "{error}: {:?} of {before} + {:?} + {:?}",
            fleet.windows_collected(),
            trained(&one),
            trained(&two)
        )
    });
    assert_eq!(there, expected, "each once");
    one.stop().unwrap();
    two.stop().unwrap();
}
