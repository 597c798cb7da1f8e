//! The main job, with the fleet server killed at the worst moment, and bad bundles afterwards.

use std::time::Duration;

use tests::story::{DEVICE, Story, counter};
use tests::wait_for;

use crate::bundles;

/// Enough for the models and few enough for a test.
const LEARN_WINDOWS: u32 = 60;

#[test]
fn an_attack_is_told_once_although_the_fleet_server_was_killed_and_bad_bundles_change_nothing() {
    crate::needs_root();
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::start(dir.path(), LEARN_WINDOWS).unwrap();
    story.learn(LEARN_WINDOWS, |_| {}).unwrap();
    let alerts = story.attack_during_outage(Duration::from_secs(3)).unwrap();
    let worst =
        alerts.iter().max_by(|a, b| a["score"].as_f64().unwrap().total_cmp(&b["score"].as_f64().unwrap()));
    let worst = worst.unwrap();
    assert!(worst["score"].as_f64().unwrap() >= 70.0, "{worst}");
    assert!(worst["techniques"].as_array().unwrap().iter().any(|id| id == "T1003.008"), "{worst}");
    assert!(alerts.iter().any(|alert| alert.to_string().contains("shell")), "{alerts:?}");

    // A second restart, now of both, brings nothing again and loses nothing.
    let before = alerts.len();
    story.agent.kill().unwrap();
    story.fleet.kill().unwrap();
    story.fleet.restart().unwrap();
    story.agent.run().unwrap();
    wait_for("the agent's return", Duration::from_secs(60), || {
        story.agent.check()?;
        Ok(story.agent.status().ok().filter(|status| status["online"] == true))
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(story.fleet.alerts(DEVICE).unwrap().len(), before);
    let status = story.agent.status().unwrap();
    assert_eq!(status["heartbeat"]["programs"][0]["state"], "ACTIVE", "the baseline survives a restart");
    for class in ["exec", "fork", "exit", "open", "connect", "flush"] {
        let of = |what: &str| counter(&status, &format!("kernel_{class}_{what}"));
        assert_eq!(of("dropped"), 0, "{class}");
        assert!(of("seen") >= of("submitted") + of("throttled"), "{class}");
    }

    bundles::bad_ones_are_refused_and_the_next_good_one_is_used(&mut story);
    story.stop().unwrap();
}
