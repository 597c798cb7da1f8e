//! The real programs together: kernel events, TLS, MQTT, database, models. Needs root.

use std::time::Duration;

use tests::story::{DEVICE, Story, counter};

/// Enough for the models and few enough for a test.
const LEARN_WINDOWS: u32 = 60;

#[test]
fn an_attack_is_told_once_although_the_fleet_server_was_killed_before_it_heard_of_it() {
    assert!(rustix::process::geteuid().is_root(), "this test loads kernel programs: run it as root");
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::start(dir.path(), LEARN_WINDOWS).unwrap();
    story.learn(LEARN_WINDOWS, |_| {}).unwrap();
    let alerts = story.attack_during_outage(Duration::from_secs(3)).unwrap();
    let first = &alerts[0];
    assert!(first["score"].as_f64().unwrap() >= 70.0, "{first}");
    assert!(first["techniques"].as_array().unwrap().iter().any(|id| id == "T1003.008"), "{first}");
    assert!(alerts.iter().any(|alert| alert.to_string().contains("shell")), "{alerts:?}");

    // A second restart, now of both, brings nothing again and loses nothing.
    let before = alerts.len();
    story.agent.kill().unwrap();
    story.fleet.kill().unwrap();
    story.fleet.restart().unwrap();
    story.agent.run().unwrap();
    tests::wait_for("the agent's return", Duration::from_secs(60), || {
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
    story.stop().unwrap();
}
