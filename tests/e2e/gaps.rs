//! An outbox that had to drop messages in its middle: the rest reaches the fleet at once, and what is missing is counted.

use std::time::Duration;

use agent::outbox::{LogOutbox, Outbox as _};
use models::policy::Severity;
use models::wire::Uplink;
use tests::agent::Agent;
use tests::fleet::Fleet;
use tests::wait_for;

use crate::device::alert;

#[test]
fn what_an_overfull_outbox_still_has_comes_at_once_and_what_it_dropped_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&dir.path().join("fleet"), 60).unwrap();
    let config = "watch = [\"/nothing\"]\noutbox_max = \"1MiB\"\nheartbeat = \"2s\"\n";
    let mut agent = Agent::enroll_with(&dir.path().join("agent"), config, &fleet, "gw").unwrap();
    let outbox = LogOutbox::open(&agent.state(), 1 << 20).unwrap();
    // Every third is worth less and makes room for the others, so there are as many gaps.
    let put = 9000;
    for n in 0..put {
        let Uplink::Alert(mut alert) = alert(n, "touched a file; it never did before").body else {
            unreachable!("it makes alerts")
        };
        alert.severity = if n % 3 == 0 { Severity::Medium } else { Severity::High };
        let _ = outbox.put(Uplink::Alert(alert)).unwrap();
    }
    let waiting = outbox.waiting();
    drop(outbox);
    assert!(waiting < put * 2 / 3, "{waiting}: it was not overfull");
    agent.run().unwrap();
    wait_for("all that was kept", Duration::from_secs(240), || {
        agent.check()?;
        Ok((fleet.counter("frames_stored")? >= waiting).then_some(()))
    })
    .unwrap();
    wait_for("the empty outbox", Duration::from_secs(30), || {
        Ok((agent.status()?["heartbeat"]["outbox_waiting"] == 0).then_some(()))
    })
    .unwrap();
    // The event of its start is stored too. Numbers begin with the first that was put.
    let stored = fleet.counter("frames_stored").unwrap();
    assert!(stored <= waiting + 2, "{stored} of {waiting}");
    let missing = fleet.counter("frames_missing").unwrap();
    assert!((1..put - waiting + 1).contains(&missing), "{missing} of {}", put - waiting);
    assert_eq!(fleet.counter("alerts_dropped").unwrap(), 0);
    agent.stop().unwrap();
}
