//! A false alarm teaches: what people say of an alert is in the next baseline, and the same is no alert then.

use std::time::Duration;

use serde_json::{Value, json};
use tests::fleet::Fleet;
use tests::story::{DEVICE, Story};
use tests::wait_for;

/// Alerts that name the technique of reading the password file, with an id above this.
fn shadow_alerts(fleet: &Fleet, above: u64) -> Vec<u64> {
    let alerts = fleet.alerts(DEVICE).unwrap_or_default();
    let told = alerts.iter().filter(|alert| alert["techniques"].to_string().contains("T1003.008"));
    told.map(|alert| alert["id"].as_u64().unwrap()).filter(|id| *id > above).collect()
}

fn window_of(fleet: &Fleet, alert: u64) -> Value {
    fleet.get(&format!("alerts/{alert}")).unwrap()["window"].clone()
}

#[test]
fn a_false_alarm_is_in_the_next_baseline_and_no_alarm_then() {
    crate::needs_root();
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::start_with(dir.path(), 60, "[alerts]\ndedup = \"0s\"\n", "").unwrap();
    story.learn(60, |_| {}).unwrap_or_else(|error| panic!("{error}\n{}", story.agent.log()));
    let found = story.attack().unwrap_or_else(|error| panic!("{error}\n{}", story.agent.log()));
    let key = found[0]["program"]["key"].clone();
    let alerts = wait_for("the alerts' windows", Duration::from_secs(40), || {
        let alerts = shadow_alerts(&story.fleet, 0);
        let here = alerts.iter().all(|alert| window_of(&story.fleet, *alert) == "kept");
        Ok((here && !alerts.is_empty()).then_some(alerts))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", story.agent.log()));

    // How the process was judged can be asked from afar.
    let asked = json!({ "order": { "kind": "process", "pid": story.gateway.id() } });
    let (status, order) = story.fleet.post(&format!("devices/{DEVICE}/orders"), &asked).unwrap();
    assert_eq!(status, 202, "{order}");
    let path = format!("devices/{DEVICE}/orders/{}", order["id"]);
    let answer = wait_for("the answer", Duration::from_secs(40), || {
        Ok(story.fleet.get(&path)?["answer"].as_str().map(str::to_owned))
    });
    let told: Value = serde_json::from_str(&answer.unwrap()).unwrap();
    let scores = told["scores"].as_array().unwrap();
    assert!(scores.iter().any(|score| score["score"].as_f64() >= Some(70.0)), "{told}");
    assert!(told["last"]["summary"].is_string() && told["state"] == "ACTIVE", "{told}");

    // All of what the attack was is said to be nothing.
    std::thread::sleep(Duration::from_secs(3));
    let all = story.fleet.alerts(DEVICE).unwrap();
    let token = story.fleet.token().unwrap();
    for alert in &all {
        let body = json!({ "state": "false_positive" });
        let path = format!("alerts/{}", alert["id"]);
        assert_eq!(story.fleet.send("PATCH", &path, Some(&body), &token).unwrap().0, 200);
    }
    for alert in &alerts {
        assert_eq!(window_of(&story.fleet, *alert), "accepted");
    }
    let (status, answer) =
        story.fleet.post("training", &json!({ "device": DEVICE, "program_key": key })).unwrap();
    assert_eq!(status, 202, "{answer}");
    wait_for("the next baseline", Duration::from_secs(240), || {
        story.agent.check()?;
        Ok((story.agent.status()?["heartbeat"]["programs"][0]["generation"] == 2).then_some(()))
    })
    .unwrap_or_else(|error| {
        panic!("{error}: {}\n{}", story.fleet.get("training").unwrap(), story.agent.log())
    });

    let newest = story.fleet.alerts(DEVICE).unwrap().iter().filter_map(|alert| alert["id"].as_u64()).max();
    story.gateway.attack().unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(shadow_alerts(&story.fleet, newest.unwrap_or(0)), [] as [u64; 0], "{}", story.agent.log());
    story.stop().unwrap();
}
