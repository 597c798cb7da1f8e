//! The main job, with the fleet server killed at the worst moment, and bad bundles afterwards.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tests::story::{DEVICE, Story, counter};
use tests::wait_for;

use crate::bundles;

/// The running agent tells why an alert has its score, and of each process it judged.
fn explained(story: &Story, id: &str, alert: &Value) {
    let ask = |arguments: &[&str]| {
        let output = story.agent.command(&[&["explain"], arguments].concat()).unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let (good, json) = ask(&["--alert", id, "--json"]);
    assert!(good, "{json}");
    let why: Value = serde_json::from_str(&json).unwrap();
    for key in ["score", "pid", "summary", "severity"] {
        assert_eq!(why[key], alert[key], "{key}: {why}");
    }
    let evidence = why["explanation"]["evidence"].as_array().unwrap();
    let shadow = evidence.iter().find(|evidence| evidence["name"] == "first_sensitive_file").unwrap();
    assert!(shadow["first_boot_ns"].as_u64() <= why["boot_ns"].as_u64(), "{why}");
    let (good, text) = ask(&["--alert", id]);
    assert!(good && text.contains(why["summary"].as_str().unwrap()), "{text}");
    assert!(text.contains("s before the verdict"), "{text}");
    let (good, text) = ask(&["--pid", &alert["pid"].to_string()]);
    assert!(good && text.contains("baseline generation 1 ACTIVE"), "{text}");
    for (arguments, reason) in [(["--pid", "1"], "not judged lately"), (["--alert", "none"], "names them")] {
        let (good, text) = ask(&arguments);
        assert!(!good && text.contains(reason), "{text}");
    }
}

/// The baseline before is used again after a rollback, for which the agent must not run.
fn rolled_back(story: &mut Story) {
    let roll_back = |story: &Story| {
        let output = story.agent.command(&["baseline", "rollback", "*/benign-gateway"]).unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let generation = |story: &Story| {
        let output = story.agent.command(&["baseline", "list", "--json"]).unwrap();
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(rows[0]["made_by"], "fleet", "{rows}");
        rows[0]["generation"].as_u64().unwrap()
    };
    let newest = generation(story);
    let (good, text) = roll_back(story);
    assert!(!good && text.contains("stop it, roll back"), "{text}");
    story.agent.stop().unwrap();
    let (good, text) = roll_back(story);
    assert!(good && generation(story) < newest, "{text}");
    story.agent.run().unwrap();
    let used = wait_for("the agent's return", Duration::from_secs(60), || {
        story.agent.check()?;
        Ok(story.agent.status().ok().filter(|status| status["online"] == true))
    });
    assert_eq!(used.unwrap()["heartbeat"]["programs"][0]["generation"], generation(story));
}

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
    // What is told when its window ends may come later, on a busy machine.
    let alerts = wait_for("an alert about the shell", Duration::from_secs(60), || {
        let alerts = story.fleet.alerts(DEVICE)?;
        Ok(alerts.iter().any(|alert| alert.to_string().contains("shell")).then_some(alerts))
    });
    let alerts = alerts.unwrap_or_else(|error| panic!("{error}: {}", story.agent.log()));

    let told = story.agent.alerts().unwrap();
    let highest =
        told.iter().max_by(|a, b| a["score"].as_f64().unwrap().total_cmp(&b["score"].as_f64().unwrap()));
    let highest = highest.unwrap();
    let id = highest["id"].as_str().unwrap().to_owned();
    explained(&story, &id, highest);

    // A second restart, now of both, brings nothing again and loses nothing.
    story.agent.kill().unwrap();
    story.fleet.kill().unwrap();
    story.fleet.restart().unwrap();
    story.agent.run().unwrap();
    wait_for("the agent's return", Duration::from_secs(60), || {
        story.agent.check()?;
        Ok(story.agent.status().ok().filter(|status| status["online"] == true))
    })
    .unwrap();
    let forgotten = story.agent.command(&["explain", "--alert", &id]).unwrap();
    let reason = String::from_utf8_lossy(&forgotten.stderr).into_owned();
    assert!(!forgotten.status.success() && reason.contains("since the agent started"), "{reason}");
    std::thread::sleep(Duration::from_secs(2));
    // A normal window may be MEDIUM in the meantime: what was there is there once, and nothing is there twice.
    let key = |alert: &Value| format!("{} {} {}", alert["unix_ms"], alert["pid"], alert["summary"]);
    let after: Vec<String> = story.fleet.alerts(DEVICE).unwrap().iter().map(key).collect();
    let distinct: BTreeSet<&String> = after.iter().collect();
    assert_eq!(distinct.len(), after.len(), "{after:?}");
    assert!(alerts.iter().all(|alert| distinct.contains(&key(alert))), "{after:?}");
    let status = story.agent.status().unwrap();
    assert_eq!(status["heartbeat"]["programs"][0]["state"], "ACTIVE", "the baseline survives a restart");
    // Counters are read one after the other while the kernel goes on counting: what was seen is read later than what became of it.
    let later = wait_for("a later status", Duration::from_secs(20), || {
        let later = story.agent.status()?;
        Ok((later["heartbeat"]["unix_ms"] != status["heartbeat"]["unix_ms"]).then_some(later))
    })
    .unwrap();
    for class in ["exec", "fork", "exit", "open", "connect", "flush"] {
        let of = |status: &Value, what: &str| counter(status, &format!("kernel_{class}_{what}"));
        // What others open on a busy machine may fill the ring.
        assert!(of(&status, "dropped") == 0 || class == "open", "{class}");
        assert!(of(&later, "seen") >= of(&status, "submitted") + of(&status, "throttled"), "{class}");
    }

    bundles::bad_ones_are_refused_and_the_next_good_one_is_used(&mut story);
    rolled_back(&mut story);
    bundles::one_far_above_its_promise_is_taken_back(&mut story);
    story.stop().unwrap();
}
